"""Which training subjects were reproduced, and how often."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from unalike.audit.calibrate import Calibration
from unalike.audit.evidence import Evidence
from unalike.audit.search import Comparison
from unalike.records import IntArray


@dataclass(frozen=True)
class ExposedSubject:
    """One training subject (its pseudonym) with the flagged images that come from an image of theirs."""

    subject: str
    copies: int
    share: float  # of all synthetic images
    highest: float
    images: int  # distinct training images that were hit


def find_culprits(calibration: Calibration, evidence: Evidence, copied: Comparison) -> IntArray:
    """Row of the train image that each image (n,) would be a copy of: what the measure that spoke loudest points at.

    A pixel-identical image, and one of which no measure says anything, is its best match's; −1 where there is none.
    """
    best = copied.best_rows[:, 0]
    spoken = evidence.references[calibration.spoke.clip(0), np.arange(len(best))]
    rows: IntArray = np.where(calibration.identical | (calibration.spoke < 0) | (spoken < 0), best, spoken)
    return rows


def count_exposure(culprits: IntArray, copied: Comparison, flagged: npt.NDArray[np.bool_]) -> list[ExposedSubject]:
    """Exposed training subjects, most copied first; ``culprits`` (n,) from `find_culprits`."""
    rows = culprits[flagged]
    owners = copied.references.folder.column("subject")[rows]
    highest = copied.highest[flagged]
    exposed = [
        ExposedSubject(
            subject=str(subject),
            copies=int((owners == subject).sum()),
            share=float((owners == subject).sum() / len(flagged)),
            highest=float(highest[owners == subject].max()),
            images=len(np.unique(rows[owners == subject])),
        )
        for subject in np.unique(owners)
    ]
    return sorted(exposed, key=lambda entry: (-entry.copies, -entry.highest, entry.subject))
