"""``unalike cohort``: what is done to a cohort once it is made."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from unalike.cli.output import DryRun, Json, print_json

cohort = App(name="cohort", help="Change a cohort that is made: remove a patient on request.")


@cohort.command
def drop(
    folder: Path,
    *,
    subject: Annotated[tuple[str, ...], Parameter(consume_multiple=True)],
    search: Path | None = None,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Remove subjects and all their images from a cohort, and say which folders were made with them.

    Parameters
    ----------
    folder
        Cohort to change.
    subject
        Identifiers as the source names them, or pseudonyms.
    search
        Folder below which runs, samples, audits and releases are looked for; default the cohort's parent folder.
    """
    from unalike.cohort.removal import drop_subject

    result = drop_subject(cohort=folder, subjects=subject, search=search, dry_run=dry_run)
    if json:
        print_json(result)
        return
    verb = "would be removed" if dry_run else "removed"
    if result.ended:
        print(f"{folder}: an interrupted removal is complete now.")
    print(f"{folder}: {result.images} images of {result.subjects} subjects {verb}; {result.left} images are left.")
    if not result.made_from:
        print(f"Nothing below {result.searched} was made from this cohort as it was.")
    for made in result.made_from:
        print(f"{made.path}: {made.kind}, {made.what}")
