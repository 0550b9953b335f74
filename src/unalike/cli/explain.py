"""``unalike explain``: what a classifier looked at, and what makes a flagged sample a copy."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from unalike.cli.output import Device, DryRun, Json, Seed, print_json, require_paths, show_settings
from unalike.explain.settings import ExplainSettings


def explain(
    source: Path,
    *,
    out: Path,
    against: Path | None = None,
    synthetic: Path | None = None,
    settings: Annotated[ExplainSettings, Parameter(name="*", consume_multiple=True)] = ExplainSettings(),  # noqa: B008 - frozen
    seed: Seed = 0,
    device: Device = "auto",
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Explain a classifier's decisions (LIME, Grad-CAM), or show what speaks for each copy that an audit flagged.

    Parameters
    ----------
    source
        Utility folder of a classification, or audit folder.
    out
        Folder to write. Pictures whose names end in -internal, and all sheets of an audit, show patients.
    against
        Of a utility: the cohort whose holdout images are explained.
    synthetic
        Of a utility: samples folder, to explain samples as well.
    """
    from unalike import folders
    from unalike.errors import FolderError, SettingsError
    from unalike.report import write_report
    from unalike.report.explain import tabulate_explain

    settings.check()
    require_paths(source, against, synthetic)
    kind = folders.kind_of(source)
    if kind is None and (source / folders.UNFINISHED).is_file():
        folders.read_header(source, kind="utility")  # raises, and says that it is unfinished
    if kind not in {"utility", "audit"}:
        raise FolderError(f"{source} is no finished utility or audit folder. Check the path.")
    if kind == "utility" and against is None:
        raise SettingsError("give the cohort whose images are explained: --against COHORT.")
    show_settings(settings, dry_run=dry_run, json_out=json)
    if dry_run:
        return
    if kind == "audit":
        from unalike.explain.evidence import draw_evidence

        draw_evidence(source, out, settings=settings, seed=seed, device=device)
    else:
        from unalike.explain.run import explain_predictions

        assert against is not None  # noqa: S101 - refused above
        explain_predictions(
            utility=source, synthetic=synthetic, against=against, out=out, settings=settings, seed=seed, device=device
        )
    page = write_report(out)
    header = folders.read_header(out, kind="explain")
    if json:
        print_json(dict(header.content) | {"report": page})
        return
    tables = [table.markdown() for table in tabulate_explain(header)]
    print("\n".join([*tables, *header.content["notes"], f"report: {page}"]))
