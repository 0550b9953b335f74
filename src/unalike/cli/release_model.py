"""``unalike release-model``: the weights themselves, which the papers advise to keep."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from unalike.audit.membership_settings import MembershipSettings
from unalike.cli.output import Device, DryRun, Json, Seed, print_json, require_paths, show_settings
from unalike.errors import FolderError, HeldError, InputError, SettingsError
from unalike.records import as_json


def release_model(
    run: Path,
    *,
    against: Path,
    out: Path,
    settings: Annotated[MembershipSettings, Parameter(name="*")] = MembershipSettings(),  # noqa: B008 - frozen
    override: Annotated[bool, Parameter(negative="")] = False,
    reason: str = "",
    by: str = "",
    seed: Seed = 0,
    device: Device = "auto",
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Release a model's weights, after asking them who was in the training set.

    A model is held (exit code 3) where membership shows or nothing can be told. OUT/bundle is what may leave.

    Parameters
    ----------
    run
        Run folder whose model is to be shared.
    against
        Cohort it was trained on.
    out
        Folder to write: OUT/internal says how recognizable each patient is.
    override
        Release what is held. Needs --reason; both are written beside the model.
    reason
        Why.
    by
        Who says so.
    """
    from unalike.generators.losses import open_loss_model
    from unalike.release.model import ADVICE, release_model
    from unalike.release.run import Override

    settings.check()
    require_paths(run, against)
    if (reason or by) and not override:
        raise SettingsError("--reason and --by belong to --override. Give all or none.")
    print(f"Before you share a model: {ADVICE}", file=sys.stderr)
    show_settings(settings, dry_run=dry_run, json_out=json)
    if dry_run:
        return
    try:
        model = open_loss_model(run, device=device)
    except FolderError:
        raise
    except InputError as error:  # a kind of run that has no loss
        print(f"{error}", file=sys.stderr)
        model = None
    result = release_model(
        run=run,
        against=against,
        out=out,
        model=model,
        settings=settings,
        override=Override(reason, by) if override else None,
        seed=seed,
    )
    if json:
        print_json(as_json(result))
    elif result.bundle is not None:
        print("\n".join([result.decision, *result.reasons, f"bundle: {result.bundle}"]))
    if result.bundle is None:
        raise HeldError(f"HELD: {'; '.join(result.reasons)} Nothing leaves.")
