"""``unalike demo``: watch a diffusion model copy its patients, on a laptop."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from unalike.cli.output import Device, DryRun, Json, Seed, print_json, show_settings
from unalike.study.settings import DemoSettings


def demo(
    *,
    out: Path = Path("demo"),
    settings: Annotated[DemoSettings, Parameter(name="*")] = DemoSettings(),  # noqa: B008 - frozen
    seed: Seed = 0,
    device: Device = "auto",
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Watch a diffusion model copy its patients, on a laptop: the whole way, once, in a few minutes.

    A cohort is prepared; a gaussian, a memorizer, and twice the same diffusion model (trained on a few subjects and
    on all) are trained, sampled and audited; one page compares the four. Interrupted, the same command goes on.

    Parameters
    ----------
    out
        Folder for everything the demo makes.
    """
    from unalike.study.demo import run_demo

    show_settings(settings, dry_run=dry_run, json_out=json)
    if dry_run:
        return
    result = run_demo(out=out, settings=settings, seed=seed, device=device)
    if json:
        print_json(result)
        return
    print(result.table())
    print(f"report: {result.report}")
