"""``unalike fidelity``: do the samples resemble the real images as a set?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from unalike.cli.output import Device, DryRun, Json, Seed, print_json, require_paths, show_settings
from unalike.fidelity.settings import FidelitySettings
from unalike.records import as_json


def fidelity(
    synthetic: Path,
    *,
    out: Path,
    against: Path | None = None,
    train: Path | None = None,
    holdout: Path | None = None,
    settings: Annotated[FidelitySettings, Parameter(name="*", consume_multiple=True)] = FidelitySettings(),  # noqa: B008 - frozen
    name: str | None = None,
    seed: Seed = 0,
    device: Device = "auto",
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Measure how samples resemble the real images as a set, beside what images of held-out patients reach.

    Distances, precision and recall, density and coverage, variety; each with an interval over subjects. It says nothing
    of copies: a generator that hands back its patients scores best. An interrupted measurement goes on where it was.

    Parameters
    ----------
    synthetic
        Samples folder, or a plain folder of pictures from any generator.
    out
        Fidelity folder to write: numbers, tables (Markdown, LaTeX, CSV), report.html. It shows no picture.
    against
        Cohort the generator was trained on.
    train
        Instead of --against: folder of the images the generator was trained on.
    holdout
        With --train: folder of images of other subjects. Without it nothing tells what a good value is.
    name
        Title in reports; default the name of the synthetic folder.
    """
    from unalike.fidelity.score import score_fidelity
    from unalike.report import write_report
    from unalike.report.fidelity import tabulate_fidelity

    settings.check()
    require_paths(synthetic, against, train, holdout)
    show_settings(settings, dry_run=dry_run, json_out=json)
    if dry_run:
        return
    found = score_fidelity(
        synthetic=synthetic,
        out=out,
        against=against,
        train=train,
        holdout=holdout,
        settings=settings,
        name=name,
        seed=seed,
        device=device,
    )
    page = write_report(out)
    if json:
        print_json(as_json(found) | {"report": page})
        return
    tables = [table.markdown() for table in tabulate_fidelity(found)]
    print("\n".join([*found.warnings, *tables, *found.notes, f"report: {page}"]))
