"""``unalike study``: a whole paper in one file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from unalike.cli.output import Device, DryRun, Json, print_json
from unalike.errors import RunError, SettingsError
from unalike.records import as_json

Several = Parameter(consume_multiple=True, negative="")


def study(
    file: str = "",
    *,
    out: Path | None = None,
    data: Annotated[tuple[str, ...], Several] = (),
    workers: int = 1,
    scheduler: str | None = None,
    only: str | None = None,
    tracker: Annotated[tuple[Literal["tensorboard", "mlflow", "wandb"], ...], Several] = (),
    seed: int | None = None,
    device: Device = "auto",
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Run a study file: cohorts × generators × training-set sizes × measures, with a paper's tables and figures.

    Each cell is one command of unalike in a process of its own. Interrupted, or with a changed file, the same command
    does what is missing. Without FILE: lists the papers that ship as study files.

    Parameters
    ----------
    file
        Study file (TOML), or the name of one that ships.
    out
        Folder of the study, to write or to go on with.
    data
        Where data sets lie: NAME=PATH.
    workers
        Cells to run at once on this machine.
    scheduler
        Address of a Dask scheduler (tcp://host:8786) for cells that pass over data.
    only
        Names of cells to run, with what they need: ``audit:*``, ``run:brains/diffusion/*``.
    tracker
        Trackers that trainings write to.
    seed
        Everything random follows from this number; default what the file says.
    """
    from unalike.study.layouts import find_paper, list_papers
    from unalike.study.run import list_commands, run_study

    if not file:
        papers = list_papers()
        print_json({name: str(path) for name, path in papers.items()}) if json else print("\n".join(papers))
        return
    if out is None:
        raise SettingsError("--out is missing: name the folder that the study writes.")
    place = Path(file) if Path(file).is_file() or file.endswith(".toml") else find_paper(file)
    sources = _read_sources(data)
    if dry_run:
        lines = list_commands(place, out=out, data=sources, device=device, scheduler=scheduler, only=only, seed=seed)
        print_json(list(lines)) if json else print("\n".join(lines))
        return
    result = run_study(
        place,
        out=out,
        data=sources,
        workers=workers,
        scheduler=scheduler,
        device=device,
        only=only,
        seed=seed,
        trackers=tracker,
    )
    if json:
        cells = [{"name": done.cell.name, "state": done.state, "reason": done.reason} for done in result.cells]
        print_json({"study": result.path, "cells": cells, "files": as_json(result.files)})
    else:
        print(result.describe())
        print("\n".join(f"written: {path}" for path in result.files if path.suffix in (".html", ".md")))
    if result.failed:
        names = ", ".join(done.cell.name for done in result.failed)
        count = "1 cell" if len(result.failed) == 1 else f"{len(result.failed)} cells"
        raise RunError(f"{count} failed: {names}. Mend the cause and repeat the command.")


def _read_sources(given: tuple[str, ...]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for entry in given:
        name, sign, path = entry.partition("=")
        if not sign or not name or not path:
            raise SettingsError(f"--data {entry!r}: give NAME=PATH, such as chest-xray=/data/chest.")
        found[name] = Path(path)
    return found
