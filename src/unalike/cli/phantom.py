"""``unalike phantom``: procedural brain volumes, for when there are no data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from unalike.cli.output import DryRun, Json, Seed, print_json, show_settings
from unalike.cohort.phantom import PhantomSettings


def phantom(
    out: Path,
    *,
    settings: Annotated[PhantomSettings, Parameter(name="*")] = PhantomSettings(),  # noqa: B008 - frozen
    seed: Seed = 0,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Make a procedural cohort: brain volumes of patients who never lived, as NIfTI files in the BraTS layout.

    Parameters
    ----------
    out
        Folder to write; prepare it with --recipe nifti.
    """
    from unalike.cohort.phantom import make_phantom

    show_settings(settings, dry_run=dry_run, json_out=json)
    if dry_run:
        return
    folder = make_phantom(out=out, settings=settings, seed=seed)
    if json:
        print_json({"folder": folder, "subjects": settings.subjects})
    else:
        print(
            f"{folder}: {settings.subjects} subjects. Next: unalike prepare {folder} --recipe nifti --size 64 --out …"
        )
