"""``unalike membership``: does the model give away who was in its training set?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from unalike.audit.membership_settings import MembershipSettings
from unalike.cli.output import Device, DryRun, Json, Seed, print_json, show_settings

if TYPE_CHECKING:
    from unalike.audit.membership import MembershipResult


def membership(
    run: Path,
    *,
    against: Path,
    out: Path,
    reference: Path | None = None,
    settings: Annotated[MembershipSettings, Parameter(name="*")] = MembershipSettings(),  # noqa: B008 - frozen
    seed: Seed = 0,
    device: Device = "auto",
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Ask a run's own loss who was in its training set, and say how sure that is.

    Parameters
    ----------
    run
        Run folder: diffusion, stylegan, gaussian or memorizer.
    against
        Cohort the run was trained on. Subjects it did not see are the non-members.
    out
        Membership folder to write. It says how recognizable each patient is: keep it internal.
    reference
        A run trained alike on other subjects: its loss says how hard an image is for anybody.
    """
    from unalike.audit.membership import audit_membership, split_members, summary_of
    from unalike.cohort.store import open_images
    from unalike.generators.losses import open_loss_model

    settings.check()
    model = open_loss_model(run, device=device)
    other = open_loss_model(reference, device=device) if reference else None
    show_settings(settings, dry_run=dry_run, json_out=json)
    if dry_run:
        split_members(open_images(against), run=run, reference=reference)
        return
    result = audit_membership(
        run=run,
        model=model,
        against=against,
        out=out,
        reference=reference,
        reference_model=other,
        settings=settings,
        seed=seed,
    )
    if json:
        print_json(summary_of(result) | {"membership": out})
    else:
        print("\n".join([*_tell(result), f"figures and scores: {out}"]))


def _tell(result: MembershipResult) -> list[str]:
    """The verdict first, then what must be distrusted, then the numbers."""
    counts = result.counts
    lines = [result.headline[0].upper() + result.headline[1:], *result.warnings]
    lines.append(
        f"{counts['member_subjects']} members, {counts['other_subjects']} non-members; difficulty: {result.difficulty}"
    )
    for rate, found in result.true_positives.items():
        told = found.method if found.value != found.value else str(found)
        lines.append(f"members found at {float(rate):.1%} false alarms: {told}")
    lines += [f"AUC of {entry.level}: {entry.auc}" for entry in result.levels if len(result.levels) > 1]
    lines += [f"control, {entry.name}: AUC {entry.auc}" for entry in result.controls]
    return lines
