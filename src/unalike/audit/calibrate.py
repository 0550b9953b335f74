"""From similarities to findings: p-values calibrated on held-out subjects, flags, and what P subjects can certify."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from unalike.records import FloatArray, TextArray
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

    ``identical`` (n,) are, pixel for pixel, training images: a fact that needs no statistics. ``flagged`` (n,) are
    those and the ones rejected by Benjamini–Hochberg at ``level``; ``beyond`` (n,) are closer to train than every
    holdout image, and ``chance_beyond`` is the chance of so many if nothing was copied. ``fewest_copies`` is the
    smallest number of copies among the n images that the rule can flag at all.
    """

    p_values: FloatArray
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


def calibrate(
    synthetic: FloatArray,
    *,
    identical: npt.NDArray[np.bool_],
    holdout: FloatArray,
    subjects: TextArray,
    level: float,
) -> Calibration:
    """Calibrate highest similarities (n,) to train on those of holdout images (m,) with their subjects (m,).

    ``identical`` (n,) tells which images are pixel-identical to a training image; constant ones do not count.
    """
    identical = identical & np.isfinite(synthetic)
    defined = np.isfinite(holdout)
    count = len(np.unique(subjects[defined]))
    p_values = subject_p_values(synthetic, holdout=holdout, subjects=subjects)
    q_values = benjamini_hochberg(p_values)
    highest = float(holdout[defined].max()) if count else math.nan
    smallest = smallest_p_value(count)
    queries = int(np.isfinite(synthetic).sum())
    with np.errstate(invalid="ignore"):  # comparisons with NaN are False, as wanted
        beyond = synthetic > highest
        return Calibration(
            p_values=p_values,
            q_values=q_values,
            identical=identical,
            flagged=identical | (q_values <= level),
            beyond=beyond,
            level=level,
            holdout_subjects=count,
            highest_holdout=highest,
            chance_beyond=chance_beyond(int(beyond.sum()), queries=queries, subjects=count),
            smallest_p=smallest,
            certifies_single_image=smallest * queries <= level * (1 + 1e-12),
            subjects_needed=subjects_needed(queries=max(queries, 1), level=level),
            fewest_copies=max(math.ceil(smallest * queries / level - 1e-9), 1),
        )
