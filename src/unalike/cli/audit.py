"""``unalike audit``: was anyone copied?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from unalike.audit.settings import AuditSettings
from unalike.cli.output import Device, DryRun, Json, Seed, print_json, require_paths, show_settings
from unalike.records import as_json


def audit(
    synthetic: Path,
    *,
    out: Path,
    against: Path | None = None,
    train: Path | None = None,
    holdout: Path | None = None,
    settings: Annotated[AuditSettings, Parameter(name="*")] = AuditSettings(),  # noqa: B008 - frozen
    name: str | None = None,
    seed: Seed = 0,
    device: Device = "auto",
    scheduler: str | None = None,
    workers: int | None = None,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Hold every synthetic image against every training image, and say who was copied and how sure that is.

    An interrupted audit goes on where it was: repeat the command.

    Parameters
    ----------
    synthetic
        Samples folder, or a plain folder of pictures from any generator.
    out
        Audit folder to write, with report.html inside. It holds pictures of real patients: keep it internal.
    against
        Cohort the generator was trained on.
    train
        Instead of --against: folder of the images the generator was trained on.
    holdout
        With --train: folder of images of other subjects. Without it nothing can be calibrated.
    scheduler
        Address of a Dask scheduler (tcp://host:8786) whose workers share the file system. Plain folders of pictures are
        prepared in this machine's temporary folder, so with them all workers must be on this machine.
    workers
        Blocks of images worked on at once, on this machine; default one, with all cores.
    name
        Title of the audit in reports; default the name of the synthetic folder.
    """
    from unalike.audit.run import audit_samples
    from unalike.report import write_report
    from unalike.report.statistics import brief_lines
    from unalike.report.words import describe_diversity

    settings.check()
    require_paths(synthetic, against, train, holdout)
    show_settings(settings, dry_run=dry_run, json_out=json)
    if dry_run:
        return
    result = audit_samples(
        synthetic=synthetic,
        out=out,
        against=against,
        train=train,
        holdout=holdout,
        settings=settings,
        name=name,
        seed=seed,
        device=device,
        scheduler=scheduler,
        workers=workers,
    )
    try:
        page = write_report(out)
    except KeyboardInterrupt as interrupt:
        raise KeyboardInterrupt(f"the audit is finished; its report is made by: unalike report {out}") from interrupt
    if json:
        print_json(as_json(result) | {"report": page})
        return
    verdict = result.verdict
    lines = [f"{verdict.decision.upper()}: {verdict.headline}", *verdict.warnings, *verdict.reasons]
    lines += [f"{name}: {value}" for name, value in brief_lines(result.estimates)]
    found = result.diversity
    lines.append(f"diversity: {describe_diversity(found.verdict, m=found.m, alike=found.alike, spread=found.spread)}")
    print("\n".join([*lines, f"report: {page}"]))
