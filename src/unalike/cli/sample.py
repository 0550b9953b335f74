"""``unalike sample``: draw synthetic images from a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from unalike.cli.output import Device, DryRun, Json, print_json, show_settings
from unalike.generators.settings import DrawSettings


def sample(
    run: Path,
    *,
    count: int,
    out: Path,
    first_seed: int = 0,
    settings: Annotated[DrawSettings, Parameter(name="*")] = DrawSettings(),  # noqa: B008 - frozen
    device: Device = "auto",
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Draw synthetic images; each has a random stream of its own, so any can be drawn again alone.

    Parameters
    ----------
    run
        Run folder.
    count
        Number of images to draw.
    out
        Samples folder to write, or to resume.
    first_seed
        Seed of the first image; the others follow. --first-seed 17 --count 1 draws sample 17 again.
    """
    from unalike import folders
    from unalike.generators.runs import draw_samples

    header = folders.read_header(run, kind="run")
    show_settings(settings, dry_run=dry_run, json_out=json)
    if dry_run:
        return
    samples = draw_samples(run=run, out=out, count=count, first_seed=first_seed, settings=settings, device=device)
    if json:
        print_json({"samples": samples, "count": count, "generator": header.content["generator"]})
    else:
        print(f"{samples}: {count} images. Next: unalike audit {samples} --against COHORT --out …")
