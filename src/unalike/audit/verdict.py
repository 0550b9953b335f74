"""What the numbers mean, in words, with the doubt that belongs to them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from unalike.audit.calibrate import Calibration
from unalike.audit.power import PowerRow

Decision = Literal["copies found", "no copies found", "cannot tell"]

# The kinds of copy that the whole-image correlation must catch before "no copies found" may be said.
PLAIN_COPIES = ("none", "noise, sd 5 of 255")
LEAST_POWER = 0.8


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
) -> Verdict:
    """Decide between ``copies found``, ``no copies found`` and ``cannot tell``."""
    if calibration.holdout_subjects == 0:
        return _without_holdout(calibration, warnings)
    flagged, total = int(calibration.flagged.sum()), len(calibration.flagged)
    reasons = [_rule(calibration), _beyond(calibration), *_power(power)]
    warnings = [*_too_few(calibration), *_doubt(power), *warnings]
    if flagged:
        patients = "patient" if exposed_subjects == 1 else "patients"
        headline = (
            f"{flagged} of {total} synthetic images are flagged as copies of {exposed_subjects} training {patients}."
        )
        return Verdict("copies found", headline, tuple(reasons), tuple(warnings))
    weak = _weakest(power)
    if not calibration.can_flag:
        headline = (
            f"Cannot tell: {calibration.holdout_subjects} holdout subjects are too few to flag anything at an error rate "
            f"of {calibration.level:g}; at least {_fewest_subjects(calibration.level)} are needed."
        )
        return Verdict("cannot tell", headline, tuple(reasons), tuple(warnings))
    if weak is None or weak.planted.value < LEAST_POWER:
        known = (
            "the power was not measured"
            if weak is None
            else f"only {weak.planted.value:.0%} of planted copies (change: {weak.change}) would have been caught"
        )
        return Verdict(
            "cannot tell", f"Cannot tell: nothing was flagged, but {known}.", tuple(reasons), tuple(warnings)
        )
    headline = (
        f"None of {total} synthetic images is flagged; at least {weak.planted.low:.0%} of copies with slight noise "
        "would have come closer to train than every holdout image."
    )
    return Verdict("no copies found", headline, tuple(reasons), tuple(warnings))


def _without_holdout(calibration: Calibration, warnings: Sequence[str]) -> Verdict:
    return Verdict(
        "cannot tell",
        "Cannot tell: without holdout subjects, nothing says how similar a new patient would be.",
        ("Similarities are reported, but no threshold on them can be defended.",),
        (
            "UNCALIBRATED: there is no holdout subject. Prepare with --holdout 0.2, or pass --holdout FOLDER.",
            *warnings,
        ),
    )


def _fewest_subjects(level: float) -> int:
    return int(np.ceil(1 / level - 1e-9)) - 1


def _rule(calibration: Calibration) -> str:
    return (
        f"Of the flagged images, at most {calibration.level:.0%} are expected to be false alarms (Benjamini–Hochberg over p-values "
        f"calibrated on {calibration.holdout_subjects} holdout subjects; the smallest possible p-value is {calibration.smallest_p:.2g})."
    )


def _beyond(calibration: Calibration) -> str:
    defined = int(np.isfinite(calibration.p_values).sum())
    return (
        f"{int(calibration.beyond.sum())} of {defined} images are closer to a training image than every holdout image is "
        f"(correlation above {calibration.highest_holdout:.3f}); about {defined * calibration.smallest_p:.1f} "
        "would be by chance."
    )


def _too_few(calibration: Calibration) -> list[str]:
    if calibration.certifies_single_image:
        return []
    return [
        f"{calibration.holdout_subjects} holdout subjects cannot certify a single copy among {len(calibration.flagged)} images: "
        f"at least {calibration.fewest_copies} copies must be present before any is flagged; "
        f"{calibration.subjects_needed} holdout subjects would do for one. Images closer than every holdout image are listed as well."
    ]


def _weakest(power: Sequence[PowerRow]) -> PowerRow | None:
    rows = [row for row in power if row.change in PLAIN_COPIES]
    return min(rows, key=lambda row: row.planted.value) if rows else None


def _power(power: Sequence[PowerRow]) -> list[str]:
    if not power:
        return ["The power was not measured, so an absence of flags means little."]
    caught = ", ".join(f"{row.change}: {row.planted.value:.0%}" for row in power)
    return [f"Planted copies closer to train than every holdout image, by kind of change — {caught}."]


def _doubt(power: Sequence[PowerRow]) -> list[str]:
    """Changes that alone make innocent images look copied: a generator that blurs may be flagged for its blur."""
    rows = [row for row in power if row.sham.low > 0.05]
    return [
        f"The change “{row.change}” alone makes {row.sham.value:.0%} of holdout images look copied: look at the pairs."
        for row in rows
    ]
