"""``unalike sweep``: one kind of generator over settings of training and sampling, as a table."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from unalike.cli.output import Device, DryRun, Json, Seed, print_json, show_settings

Words = tuple[str, ...]


def sweep(
    kind: str,
    cohort: Path,
    *,
    out: Path,
    train: Annotated[Words, Parameter(consume_multiple=True, negative="")] = (),
    sample: Annotated[Words, Parameter(consume_multiple=True, negative="")] = (),
    fixed: Annotated[Words, Parameter(name="--set", consume_multiple=True, negative="")] = (),
    count: int = 200,
    seed: Seed = 0,
    device: Device = "auto",
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Train one kind of generator with several settings, draw with several, and compare all in one table.

    Distance to real images, share of copies, diversity and time of each cell. A cell that fails does not stop the
    others. Interrupted, the same command goes on.

    Parameters
    ----------
    kind
        diffusion, stylegan, inversion, gaussian or memorizer.
    cohort
        Cohort folder.
    out
        Folder to write: runs, and the table as sweep.json, .md, .tex, .csv and .png.
    train
        Training settings to vary, as NAME=VALUE,VALUE with the names of unalike train KIND (learning_rate=0.1,0.01), or
        subjects=10,100,all. All combinations are trained. Entries of a value that is a list are joined by +.
    sample
        Sampling settings to vary, as NAME=VALUE,VALUE with the names of unalike sample. Each run is drawn from in all
        combinations.
    fixed
        Training settings of all runs, as NAME=VALUE; entries of a list are joined by commas.
    count
        Samples drawn for each cell, always of the same seeds.
    """
    from unalike import folders
    from unalike.study.sweep import plan_sweep, read_sweep, sweep_planned

    plan = plan_sweep(
        kind=kind, cohort=cohort, train=train, sample=sample, fixed=fixed, count=count, seed=seed, device=device
    )
    cells = {"cells": [{"train": cell.train, "sample": cell.sample} for cell in plan.cells]} if dry_run and json else {}
    show_settings(plan.settings | cells, dry_run=dry_run, json_out=json)
    if dry_run:
        if not json:
            print(plan.describe())
        return
    made = sweep_planned(plan, out=out)
    if json:
        print_json(dict(folders.read_header(made, kind="sweep").content) | {"sweep": made})
    else:
        print(f"{read_sweep(made).table()}\n\nfigure, tables and runs: {made}")
