"""``unalike inspect``: what is in a folder or an embedding; and what leaks between folders of pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from unalike.cli.output import Json, print_json

_LISTED = 20
_SIDES = ("first", "second")


def inspect(
    folder: Path,
    other: Path | None = None,
    *,
    pictures: Path | None = None,
    leaks: Annotated[bool, Parameter(negative="")] = False,
    subject_pattern: str | None = None,
    near_duplicates: float = 0.95,
    json: Json = False,
) -> None:
    """Say what a cohort, samples, run or audit folder holds, and draw what cohorts and samples look like.

    Given a file of textual inversion (.safetensors, .pt, .bin) or a folder of such files: list the embeddings. Nothing
    in such a file is run.

    With --leaks: find duplicates and shared patients in one folder of pictures, or between two, before anything is
    prepared.

    Parameters
    ----------
    folder
        Folder made by unalike, or embeddings: a file, or a folder of them; with --leaks, a folder of pictures.
    other
        With --leaks: a second folder of pictures.
    pictures
        Folder for contact sheets and histogram, default the folder itself; with --leaks, a PNG file for the pairs.
    leaks
        Compare all pictures: equal pixels, near duplicates, mirrored ones, patients in both.
    subject_pattern
        With --leaks: regular expression over the path whose first group (or whole match) names the patient.
    near_duplicates
        With --leaks: correlation from which two pictures count as near duplicates; 0 looks for none.
    """
    if leaks:
        _show_leaks(folder, other, pictures, subject_pattern, near_duplicates, json)
        return
    from unalike.errors import SettingsError
    from unalike.report.inspect import inspect_folder

    if other is not None:
        raise SettingsError("two folders are compared with --leaks only. Add it, or give one folder.")
    facts = inspect_folder(folder, pictures=pictures)
    if json:
        print_json(facts)
        return
    for name, value in facts.items():
        title = name.replace("_", " ")
        if name == "histogram":  # its numbers are for --json
            continue
        if name in ("embeddings", "refused"):  # a line each
            print(f"{title}: {len(value)}")
            for entry in value:
                line = entry if name == "refused" else _embedding_line(entry)
                # A file's name may hold what a terminal takes for a command.
                print("  " + "".join(letter if letter.isprintable() else "?" for letter in line))
            continue
        if name == "gray_levels":
            print(f"{title}:")
            for key, entry in value.items():
                print(f"  {key:10} {entry}")
            continue
        if isinstance(value, dict):
            value = ", ".join(f"{key} {entry}" for key, entry in value.items())
        elif isinstance(value, list | tuple):
            value = "; ".join(str(entry) for entry in value)
        print(f"{title}: {value}")


def _embedding_line(row: dict[str, Any]) -> str:
    base = " ".join(word for word in (row["base_name"], row["base"] and f"({row['base']})") if word)
    learned = f", {row['steps']:,} steps" if row["steps"] else ""
    return (
        f"{row['token']}: {row['vectors']:,} × {row['dimension']:,}{learned}, base {base or 'unknown'}, "
        f"{row['bytes']:,} bytes, {row['file']}" + (f", cohort {row['cohort']}" if row["cohort"] else "")
    )


def _show_leaks(
    folder: Path, other: Path | None, sheet: Path | None, pattern: str | None, near_duplicates: float, json: bool
) -> None:
    from unalike.cohort.compare import find_leaks

    report = find_leaks(folder, other, subject_pattern=pattern, near_duplicates=near_duplicates, sheet=sheet)
    if json:
        print_json(report)
        return
    if report.shared_subjects:
        print(f"LEAK: {report.shared_subjects} patients are in both folders.")
    if report.shared_images:
        print(f"LEAK: {report.shared_images} of the {report.images[1]} pictures of {other} are also in {folder}.")
    total = " and ".join(f"{count} in {path}" for count, path in zip(report.images, (folder, other), strict=False))
    print(
        f"pictures: {total}; pairs of equal pixels {report.exact_pairs}, near duplicates {report.near_pairs}, mirrored "
        f"{report.mirrored_pairs}" + (f"; {report.across_pairs} of them across the folders" if other else "")
    )
    places = (folder, other or folder)
    order = sorted(report.pairs, key=lambda pair: (not pair["across"], pair["kind"] != "exact", -pair["similarity"]))
    for pair in order[:_LISTED]:
        first, second = (places[side] / pair[name] for side, name in zip(pair["folders"], _SIDES, strict=True))
        print(f"  {pair['kind']:8} {pair['similarity']:.4f}  {first}  {second}")
    more = len(order) - _LISTED + report.pairs_not_listed
    if more > 0:
        print(f"  and {more} more; --json lists up to {len(order)}")
    for reason in report.skipped:
        print(f"skipped: {reason}")
    if sheet is not None and report.pairs:
        print(f"pairs drawn: {sheet}")
