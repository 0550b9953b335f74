"""``unalike steps``: how many denoising steps samples need, and of which sampler."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from unalike.cli.output import Device, DryRun, Json, Seed, print_json, show_settings
from unalike.generators.diffusion.settings import SamplerName


def steps(
    run: Path,
    *,
    against: Path,
    out: Path,
    samplers: Annotated[tuple[SamplerName, ...], Parameter(consume_multiple=True)] = ("ddim", "dpm++", "euler", "heun"),
    steps: Annotated[tuple[int, ...], Parameter(consume_multiple=True)] = (5, 10, 20, 50),
    reference_sampler: SamplerName = "ddpm",
    reference_steps: int = 0,
    count: int = 200,
    seed: Seed = 0,
    device: Device = "auto",
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Compare samplers and numbers of steps on a run: distance to real images, and time.

    The same noises are drawn in every way. Interrupted, the same command keeps what was measured.

    Parameters
    ----------
    run
        Run folder of a diffusion model.
    against
        Cohort the run was trained on.
    out
        Folder to write: the table as steps.json, and steps.png.
    samplers
        Samplers to compare; unalike sample --help tells what they are.
    steps
        Numbers of denoising steps to compare.
    reference_sampler
        Sampler that the others are held against.
    reference_steps
        Its steps; 0 takes all time steps the run was trained with.
    count
        Samples drawn in each way.
    """
    from unalike import folders
    from unalike.study.steps import compare_planned, plan_steps, read_steps

    plan = plan_steps(
        run=run,
        against=against,
        samplers=samplers,
        steps=steps,
        reference=(reference_sampler, reference_steps),
        count=count,
        seed=seed,
        device=device,
    )
    show_settings(plan.settings, dry_run=dry_run, json_out=json)
    if dry_run:
        return
    made = compare_planned(plan, out=out)
    if json:
        print_json(dict(folders.read_header(made, kind="steps").content) | {"steps": made})
    else:
        print(f"{read_steps(made).table()}\nfigure and table: {made}")
