"""``unalike release``: only what passes leaves the house."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from unalike.cli.output import Device, DryRun, Json, Seed, print_json, require_paths
from unalike.errors import HeldError, SettingsError
from unalike.folders import read_json
from unalike.records import as_json

if TYPE_CHECKING:
    from unalike.release.run import ReleaseResult

Several = Parameter(consume_multiple=True, negative="")


def release(
    samples: Path,
    *,
    audit: Path,
    out: Path,
    against: Path | None = None,
    train: Path | None = None,
    holdout: Path | None = None,
    policy: Path | None = None,
    formats: Annotated[tuple[Literal["png", "nifti", "dicom", "samples"], ...], Several] = ("png",),
    decisions: Annotated[tuple[Path, ...], Several] = (),
    sign: Annotated[tuple[str, ...], Several] = (),
    override: Annotated[bool, Parameter(negative="")] = False,
    reason: str = "",
    by: str = "",
    fidelity: Annotated[tuple[Path, ...], Several] = (),
    utility: Annotated[tuple[Path, ...], Several] = (),
    run: Path | None = None,
    title: str = "",
    licence: str = "",
    contact: str = "",
    intended_use: Annotated[tuple[str, ...], Several] = (),
    seed: Seed = 0,
    device: Device = "auto",
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Remove copies, audit what remains by a second measure, and release what a policy allows.

    Decides RELEASE (as it is), FILTERED (without what was removed) or HELD: exit codes 0, 0 and 3. What may leave is
    OUT/bundle; everything else in OUT is internal. Interrupted, the same command goes on; of samples that were held
    the same OUT may be used again.

    Parameters
    ----------
    samples
        Samples folder, or plain folder of pictures, that was audited.
    audit
        Its audit folder.
    out
        Release folder to write.
    against
        Cohort of the audit; default the one that lies beside the samples or the audit.
    train
        Of an audit of plain folders: its --train.
    holdout
        Of an audit of plain folders: its --holdout.
    policy
        TOML file with the budget; --dry-run prints the default one, to begin with.
    formats
        What images are written as: png, nifti, dicom, samples (a folder of unalike).
    decisions
        Files that a steward exported from the evidence page of the audit's report.
    sign
        A signature that the policy asks for: "ROLE=NAME".
    override
        Release what the gate holds. Needs --reason; both are written into everything that leaves.
    reason
        Why.
    by
        Who says so.
    fidelity
        Fidelity folders of the same samples, for the cards.
    utility
        Utility folders of the same samples, for the cards.
    run
        Run that drew the samples, for its settings on the cards.
    title
        Title of the bundle.
    licence
        Terms under which it may be used.
    contact
        Whom to ask.
    intended_use
        What it is meant for.
    """
    from unalike.release.policy import ReleasePolicy, read_policy, write_policy

    chosen = ReleasePolicy() if policy is None else read_policy(policy)
    require_paths(samples, against, train, holdout, run, *decisions, *fidelity, *utility)
    signatures = _read_signatures(sign)
    if (reason or by) and not override:
        raise SettingsError("--reason and --by belong to --override. Give all or none.")
    if dry_run:
        print_json(as_json(chosen)) if json else print(write_policy(chosen), end="")
        return
    from unalike.release.run import About, Override, release_samples

    result = release_samples(
        samples=samples,
        audit=audit,
        out=out,
        against=against,
        train=train,
        holdout=holdout,
        policy=chosen,
        formats=formats,
        decisions=decisions,
        signatures=signatures,
        override=Override(reason, by) if override else None,
        fidelity=fidelity,
        utility=utility,
        run=run,
        about=About(title, licence, contact, intended_use),
        seed=seed,
        device=device,
    )
    if json:
        decision = read_json(result.path / "decision.json")
        print_json({"release": result.path, "bundle": result.bundle, "overridden": result.overridden} | decision)
    else:
        print("\n".join(_tell(result)), file=sys.stdout if result.leaves else sys.stderr)
    if not result.leaves:
        failed = [clause.name for clause in result.gate.clauses if not clause.passed]
        raise HeldError(f"HELD: {', '.join(failed)}. Nothing leaves; see {result.path / 'decision.json'}")


def _read_signatures(given: tuple[str, ...]) -> dict[str, str]:
    found: dict[str, str] = {}
    for entry in given:
        role, sign, name = entry.partition("=")
        if not sign or not role.strip() or not name.strip():
            raise SettingsError(f'--sign {entry!r}: give "ROLE=NAME", such as "data protection officer=A. Berg".')
        found[role.strip()] = name.strip()
    return found


def _tell(result: ReleaseResult) -> list[str]:
    """The decision first, then every clause, then what leaves."""
    gate = result.gate
    head = f"{gate.decision}: {gate.kept} images may leave; {gate.removed + gate.removed_by_second} were removed."
    if gate.decision == "HELD":
        head = f"{gate.decision}, BUT RELEASED BY OVERRIDE: {gate.kept} images." if result.overridden else "HELD"
    lines = [head]
    for clause in gate.clauses:
        gap = f" ({clause.gap})" if not clause.passed and clause.gap else ""
        lines.append(
            f"{'  ok  ' if clause.passed else '  NO  '} {clause.name}: {clause.found}; wanted: {clause.wanted}{gap}"
        )
    if result.search is not None:
        lines.append(
            f"searched: {result.search.files} files, {result.search.streams} streams, "
            f"{len(result.search.leaks)} finds of what is a patient's"
        )
        lines += [f"note: {note}" for note in result.search.notes]
    if result.bundle is not None:
        lines.append(f"bundle: {result.bundle}   check it: unalike verify {result.bundle}")
    return lines
