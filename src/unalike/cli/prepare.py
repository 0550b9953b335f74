"""``unalike prepare``: a folder of scans becomes a cohort."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from unalike.cli.output import DryRun, Json, Seed, print_json, show_settings
from unalike.cohort.settings import PrepareSettings
from unalike.records import as_json

_SHORTEST_KEY = 16


def prepare(
    source: Path,
    *,
    out: Path,
    settings: Annotated[PrepareSettings, Parameter(name="*", consume_multiple=True)] = PrepareSettings(),  # noqa: B008 - frozen
    seed: Seed = 0,
    key: Path | None = None,
    workers: int | None = None,
    scheduler: str | None = None,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Prepare a cohort: read pictures or volumes, find duplicates, split by subject, store images and records.

    An interrupted preparation goes on where it was: repeat the command. `unalike recipes` lists the recipes, whose
    settings take the place of the defaults below.

    Parameters
    ----------
    source
        Folder with the pictures or volumes.
    out
        Cohort folder to write.
    key
        File whose bytes key the pseudonyms; give another cohort's private/key to name its patients alike.
    workers
        Threads that read; default one per core.
    scheduler
        Address of a Dask scheduler (tcp://host:8786) whose workers share the file system.
    """
    from unalike import folders
    from unalike.cohort.build import prepare_cohort
    from unalike.cohort.draft import plan_cohort
    from unalike.errors import InputError

    draft = plan_cohort(source=source, settings=settings, seed=seed)
    for note in draft.describe_shared_subjects():  # nothing is more important: it comes before all else
        print(note, file=sys.stderr if json else sys.stdout, flush=True)
    if dry_run:
        _show_plan(draft.summarize(), settings, json)
        return
    show_settings(settings, dry_run=False, json_out=json)
    if key is not None and not key.is_file():
        raise InputError(f"--key {key} is no file. Check the path.")
    if key is not None and len(key.read_bytes()) < _SHORTEST_KEY:
        raise InputError(f"--key {key} is shorter than {_SHORTEST_KEY} bytes: pseudonyms could be guessed. Give more.")
    cohort = prepare_cohort(
        source=source,
        out=out,
        settings=settings,
        seed=seed,
        key=key.read_bytes() if key else None,
        workers=workers,
        scheduler=scheduler,
    )
    content = cohort.header.content
    for bad in folders.read_json(out / folders.PRIVATE / folders.SKIPPED):
        print(f"skipped {bad['source']}: {bad['reason']}", file=sys.stderr)
    if json:
        print_json({"cohort": out} | dict(content))
        return
    subjects = {role: len(set(cohort.column("subject")[cohort.rows(role)])) for role in ("train", "holdout")}
    images = {role: len(cohort.rows(role)) for role in subjects}
    summary = (
        f"{out}: {len(cohort)} images of {cohort.size[0]} × {cohort.size[1]} pixels (height × width), "
        f"{', '.join(cohort.channels)}; "
        f"train {images['train']} images of {subjects['train']} subjects, "
        f"holdout {images['holdout']} images of {subjects['holdout']} subjects"
    )
    skipped = [f"{content['skipped']} of {content['items']} items were skipped."] if content["skipped"] else []
    print("\n".join([summary, *content["notes"], *skipped]))


def _show_plan(plan: dict[str, Any], settings: PrepareSettings, json: bool) -> None:
    """What would be prepared, as far as file names and headers tell."""
    if json:
        print_json(as_json(settings) | {"plan": plan})
        return
    show_settings(settings, dry_run=True, json_out=False)
    for role, counts in plan["roles"].items():
        classes = ", ".join(f"{name} {count}" for name, count in counts.pop("classes").items())
        print(
            f"{role}: "
            + ", ".join(f"{count} {name}" for name, count in counts.items())
            + (f" ({classes})" if classes else "")
        )
    print("\n".join(plan["notes"]))
