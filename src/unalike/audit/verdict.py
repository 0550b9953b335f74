"""What the numbers mean, in words, with the doubt that belongs to them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from unalike.audit.calibrate import Calibration
from unalike.audit.power import PowerRow
from unalike.audit.volumes import VolumeVote

Decision = Literal["copies found", "no copies found", "cannot tell"]

# The kinds of copy that must be caught before "no copies found" may be said.
PLAIN_COPIES = ("none", "noise, sd 5 of 255")
LEAST_POWER = 0.8
# A change that alone makes so many innocent images look copied is worth a warning.
MOST_SHAM = 0.05
# A change that hides so many planted copies is named among the warnings.
MOST_BLIND = 0.5


@dataclass(frozen=True)
class Verdict:
    """The decision, its headline, the reasons for it, and the distrust that must be read first."""

    decision: Decision
    headline: str
    reasons: tuple[str, ...]
    warnings: tuple[str, ...]


def reach_verdict(
    calibration: Calibration,
    *,
    exposed_subjects: int,
    power: Sequence[PowerRow],
    warnings: Sequence[str],
    volumes: Sequence[VolumeVote] = (),
) -> Verdict:
    """Decide between ``copies found``, ``no copies found`` and ``cannot tell``."""
    decision, headline = _decide(calibration, exposed_subjects, power)
    copied = [vote for vote in volumes if vote.flagged]
    if copied and calibration.holdout_subjects:
        found = (
            f"{len(copied)} of {count_of(len(volumes), 'synthetic volume')} {'is' if len(copied) == 1 else 'are'} "
            f"flagged as {'a copy' if len(copied) == 1 else 'copies'}, by the slices together."
        )
        headline = f"{headline} {found}" if decision == "copies found" else found
        decision = "copies found"
    if calibration.holdout_subjects == 0:
        uncalibrated = (
            "UNCALIBRATED: there is no holdout subject. Prepare with --holdout 0.2, or pass --holdout FOLDER."
        )
        return Verdict(
            decision=decision,
            headline=headline,
            reasons=("Similarities are reported, but no threshold on them can be defended.",),
            warnings=(uncalibrated, *warnings),
        )
    return Verdict(
        decision=decision,
        headline=headline,
        reasons=(*_rule(calibration), _beyond(calibration), _power(power)),
        warnings=(*_too_few(calibration), *_blind(power), *_doubt(power), *warnings),
    )


def _decide(calibration: Calibration, exposed_subjects: int, power: Sequence[PowerRow]) -> tuple[Decision, str]:
    flagged, total = int(calibration.flagged.sum()), _count_defined(calibration)
    if flagged:
        return "copies found", _found(calibration, exposed_subjects)
    if total == 0:
        return "cannot tell", "Every synthetic image is constant, so none can be compared."
    subjects, level = calibration.holdout_subjects, calibration.level
    if subjects == 0:
        return "cannot tell", "Without holdout subjects, nothing says how similar a new patient would be."
    if not calibration.can_flag:
        least = int(np.ceil(1 / level - 1e-9)) - 1
        return "cannot tell", (
            f"{count_of(subjects, 'holdout subject')} cannot certify any copy at an error rate of {level:g}; "
            f"at least {least} are needed."
        )
    beyond = int(calibration.beyond.sum())
    if beyond and not calibration.certifies_single_image:
        chance = calibration.chance_beyond
        explained = f"more than chance explains (p ≤ {chance:.2g})" if chance <= level else "as chance may do"
        return "cannot tell", (
            f"{beyond} of {total} images stand out more than every holdout image, {explained}, and "
            f"{count_of(subjects, 'holdout subject')} cannot certify which are copies. Look at the pairs."
        )
    weakest = weakest_plain_copy(power)
    if weakest is None:
        return "cannot tell", "Nothing was flagged, but the power was not measured."
    if weakest.planted.value < LEAST_POWER:
        return "cannot tell", (
            f"Nothing was flagged, but only {weakest.planted.value:.0%} of planted copies "
            f"(change: {weakest.change}) would have been caught."
        )
    return "no copies found", (
        f"None of {total} synthetic images is flagged; at least {weakest.planted.low:.0%} of copies with slight noise "
        "would have been caught."
    )


def _found(calibration: Calibration, exposed_subjects: int) -> str:
    flagged, identical = int(calibration.flagged.sum()), int(calibration.identical.sum())
    total = len(calibration.flagged)
    patients = count_of(exposed_subjects, "training patient")
    verb = "is flagged as a copy" if flagged == 1 else "are flagged as copies"
    same = f" {identical} of them pixel for pixel." if identical else ""
    return f"{flagged} of {count_of(total, 'synthetic image')} {verb} of {patients}.{same}"


def count_of(number: int, noun: str) -> str:
    """A number with its noun: 1 subject, 2 subjects."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _count_defined(calibration: Calibration) -> int:
    return int(np.isfinite(calibration.p_values).sum())


def _rule(calibration: Calibration) -> list[str]:
    if not calibration.can_flag:
        return []
    return [
        f"Flagging aims at an expected share of false alarms of at most {calibration.level:.0%} (Benjamini–Hochberg "
        f"over p-values calibrated on {count_of(calibration.holdout_subjects, 'holdout subject')}; "
        f"the smallest possible p-value is {calibration.smallest_p:.2g})."
    ]


def _beyond(calibration: Calibration) -> str:
    defined = _count_defined(calibration)
    return (
        f"{int(calibration.beyond.sum())} of {defined} images stand out as one training patient's more than every "
        f"holdout image does; at most {defined * calibration.smallest_p:.1f} would on average by chance."
    )


def _too_few(calibration: Calibration) -> list[str]:
    if calibration.certifies_single_image:
        return []
    total, subjects = len(calibration.flagged), calibration.holdout_subjects
    least = (
        f"at least {calibration.fewest_copies} must be copies before any is flagged"
        if calibration.can_flag
        else "none can be flagged"
    )
    return [
        f"{count_of(subjects, 'holdout subject')} cannot certify a single copy among {total} images: {least}; "
        f"{calibration.subjects_needed} holdout subjects would do for one. Images that stand out more than every "
        "holdout image are listed as well."
    ]


def weakest_plain_copy(power: Sequence[PowerRow]) -> PowerRow | None:
    """The kind of plain copy (`PLAIN_COPIES`) of which fewest were caught; None if the power was not measured."""
    rows = [row for row in power if row.change in PLAIN_COPIES]
    return min(rows, key=lambda row: row.planted.value) if rows else None


def _power(power: Sequence[PowerRow]) -> str:
    if not power:
        return "The power was not measured, so an absence of flags means little."
    caught = "; ".join(f"{row.change}: {row.planted.value:.0%}" for row in power)
    return f"Planted copies that would have been caught, by what was changed: {caught}."


def _blind(power: Sequence[PowerRow]) -> list[str]:
    """Changes by which a copy escapes: nothing may be concluded about copies changed like that."""
    missed = [f"{row.change} ({row.planted.value:.0%} found)" for row in power if row.planted.value < MOST_BLIND]
    if not missed:
        return []
    return [f"Blind to copies changed in these ways: {'; '.join(missed)}."]


def _doubt(power: Sequence[PowerRow]) -> list[str]:
    """Changes that alone make innocent images look copied: a generator that blurs may be flagged for its blur."""
    return [
        f"The change “{row.change}” alone makes {row.sham.value:.0%} of holdout images look copied: look at the pairs."
        for row in power
        if row.sham.low > MOST_SHAM
    ]
