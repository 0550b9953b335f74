"""``unalike utility``: what are the samples worth to train on?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from unalike.cli.output import Device, DryRun, Json, Seed, print_json, require_paths, show_settings
from unalike.utility.settings import UtilitySettings


def utility(
    synthetic: Path,
    *,
    out: Path,
    against: Path | None = None,
    train: Path | None = None,
    holdout: Path | None = None,
    settings: Annotated[UtilitySettings, Parameter(name="*", consume_multiple=True)] = UtilitySettings(),  # noqa: B008 - frozen
    name: str | None = None,
    seed: Seed = 0,
    device: Device = "auto",
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Train classifiers (or segmenters) on samples and test them on held-out patients, against training on real images.

    Interrupted, the same command goes on with the training it was at.

    Parameters
    ----------
    synthetic
        Samples folder with classes (or masks), or a plain folder of pictures with a folder for each class.
    out
        Utility folder to write: numbers, tables (Markdown, LaTeX, CSV), models, report.html. Models trained on patients
        are kept in it, and pictures of patients with --task segment: keep it internal.
    against
        Cohort the generator was trained on; its holdout is tested on.
    train
        Instead of --against: folder of the images the generator was trained on.
    holdout
        With --train: folder of images of other subjects, to test on.
    name
        Title in reports; default the name of the synthetic folder.
    """
    from unalike.report import write_report
    from unalike.report.utility import tabulate_utility
    from unalike.utility.run import measure_utility

    settings.check()
    require_paths(synthetic, against, train, holdout)
    show_settings(settings, dry_run=dry_run, json_out=json)
    if dry_run:
        return
    header = measure_utility(
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
        print_json(dict(header.content) | {"report": page})
        return
    tables = [table.markdown() for table in tabulate_utility(header)]
    print("\n".join([*header.content["warnings"], *tables, *header.content["notes"], f"report: {page}"]))
