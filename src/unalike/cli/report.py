"""``unalike report``: one self-contained page from folders."""

from __future__ import annotations

from pathlib import Path

from unalike.cli.output import Json, print_json


def report(
    *sources: Path,
    out: Path | None = None,
    title: str | None = None,
    shareable: bool = False,
    json: Json = False,
) -> None:
    """Write the report of one folder, or one page of several: audits compared, privacy held against utility.

    Parameters
    ----------
    sources
        Audit, fidelity, utility and explain folders.
    out
        Page to write; default report.html in the folder (needed for several).
    title
        Heading of the page.
    shareable
        Leave out every picture and pseudonym of real patients.
    """
    from unalike.errors import SettingsError
    from unalike.report import write_report

    if not sources:
        raise SettingsError("give at least one audit, fidelity, utility or explain folder.")
    page = write_report(sources[0] if len(sources) == 1 else sources, out=out, title=title, shareable=shareable)
    if json:
        print_json({"report": page})
    else:
        print(page)
