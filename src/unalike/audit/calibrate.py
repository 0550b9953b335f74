"""From evidence to findings: p-values calibrated on held-out subjects, flags, and what P subjects can certify."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from unalike.audit.evidence import Evidence
from unalike.records import FloatArray, IntArray, TextArray
from unalike.stats.combine import pooled_minimum_p_values, spokesman
from unalike.stats.conformal import (
    benjamini_hochberg,
    chance_beyond,
    smallest_p_value,
    subject_p_values,
    subjects_needed,
)

BENJAMINI_HOCHBERG = "Benjamini–Hochberg"
BEYOND = "beyond every holdout image"


@dataclass(frozen=True)
class Calibration:
    """P-values of the synthetic images and the rule by which they are flagged.

    ``p_values`` (n,) combine all measures; ``by_measure`` (measures, n) are those of each alone, and ``spoke`` (n,)
    is the index of the measure with the smallest, −1 if none is defined. ``identical`` (n,) are, pixel for pixel,
    training images: a fact that needs no statistics. ``flagged`` (n,) are those and the ones rejected by
    Benjamini–Hochberg at ``level``; ``beyond`` (n,) have the smallest p-value there is: they stand out more than every
    holdout image. ``chance_beyond`` bounds the chance of so many if nothing was copied. ``fewest_copies`` is the
    smallest number of copies among the n images that the rule can flag at all.
    """

    p_values: FloatArray
    by_measure: FloatArray
    spoke: IntArray
    q_values: FloatArray
    identical: npt.NDArray[np.bool_]
    flagged: npt.NDArray[np.bool_]
    beyond: npt.NDArray[np.bool_]
    level: float
    holdout_subjects: int
    highest_holdout: float
    chance_beyond: float
    smallest_p: float
    certifies_single_image: bool
    subjects_needed: int
    fewest_copies: int

    @property
    def can_flag(self) -> bool:
        """Whether the holdout is large enough for any flag at this level."""
        return self.smallest_p <= self.level

    def summary(self) -> dict[str, Any]:
        """What the audit's header keeps of it."""
        return {
            "level": self.level,
            "holdout_subjects": self.holdout_subjects,
            "highest_holdout": self.highest_holdout,
            "chance_beyond": self.chance_beyond,
            "smallest_p": self.smallest_p,
            "certifies_single_image": self.certifies_single_image,
            "subjects_needed": self.subjects_needed,
            "fewest_copies": self.fewest_copies,
            "identical": int(self.identical.sum()),
            "rule": BENJAMINI_HOCHBERG if self.can_flag else BEYOND,
        }


def p_values_of(evidence: Evidence, *, holdout: Evidence, subjects: TextArray) -> FloatArray:
    """P-values (n,) of images, all measures together, by the evidence of holdout images and their subjects (h,)."""
    return pooled_minimum_p_values(evidence.scores, holdout=holdout.scores, subjects=subjects, weights=evidence.weights)


def calibrate(
    synthetic: Evidence,
    *,
    identical: npt.NDArray[np.bool_],
    holdout: Evidence,
    subjects: TextArray,
    highest_holdout: float,
    level: float,
) -> Calibration:
    """Calibrate the evidence of synthetic images (n) on that of holdout images (h) with their ``subjects`` (h,).

    ``identical`` (n,) tells which images are pixel-identical to a training image; constant ones do not count.
    ``highest_holdout`` is the highest plain correlation of a holdout image, kept for the record.
    """
    defined = np.isfinite(holdout.scores).any(axis=0)
    count = len(np.unique(subjects[defined]))
    by_measure = np.stack(
        [
            subject_p_values(own, holdout=held, subjects=subjects)
            for own, held in zip(synthetic.scores, holdout.scores, strict=True)
        ]
    )
    p_values = p_values_of(synthetic, holdout=holdout, subjects=subjects)
    q_values = benjamini_hochberg(p_values)
    smallest = smallest_p_value(count)
    queries = int(np.isfinite(p_values).sum())
    identical = identical & np.isfinite(p_values)
    with np.errstate(invalid="ignore"):  # comparisons with NaN are False, as wanted
        beyond = (p_values <= smallest * (1 + 1e-9)) & (count > 0)
        return Calibration(
            p_values=p_values,
            by_measure=by_measure,
            spoke=spokesman(np.minimum(by_measure / np.asarray(synthetic.weights)[:, None], 1.0)),
            q_values=q_values,
            identical=identical,
            flagged=identical | (q_values <= level),
            beyond=beyond,
            level=level,
            holdout_subjects=count,
            highest_holdout=highest_holdout,
            chance_beyond=chance_beyond(int(beyond.sum()), queries=queries, subjects=count),
            smallest_p=smallest,
            certifies_single_image=smallest * queries <= level * (1 + 1e-12),
            subjects_needed=subjects_needed(queries=max(queries, 1), level=level),
            fewest_copies=max(math.ceil(smallest * queries / level - 1e-9), 1),
        )
