"""``unalike inspect``: what is in a folder, in words and one picture."""

from __future__ import annotations

from pathlib import Path

from unalike.cli.output import Json, print_json


def inspect(folder: Path, *, sheet: Path | None = None, json: Json = False) -> None:
    """Say what a cohort, samples, run or audit folder holds, and draw a contact sheet of cohorts and samples.

    Parameters
    ----------
    folder
        Folder made by unalike.
    sheet
        Contact sheet to write (PNG); default contact-sheet.png inside the folder.
    """
    from unalike.report.inspect import inspect_folder

    facts = inspect_folder(folder, sheet=sheet)
    if json:
        print_json(facts)
        return
    for name, value in facts.items():
        if isinstance(value, dict):
            value = ", ".join(f"{key} {entry}" for key, entry in value.items())
        elif isinstance(value, list | tuple):
            value = "; ".join(str(entry) for entry in value)
        print(f"{name.replace('_', ' ')}: {value}")
