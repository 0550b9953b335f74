"""Which training subjects were reproduced, and how often."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from unalike.audit.search import Comparison


@dataclass(frozen=True)
class ExposedSubject:
    """One training subject (its pseudonym) with the flagged images whose best match is an image of theirs."""

    subject: str
    copies: int
    share: float  # of all synthetic images
    highest: float
    images: int  # distinct training images that were hit


def count_exposure(comparison: Comparison, flagged: npt.NDArray[np.bool_]) -> list[ExposedSubject]:
    """Exposed training subjects, most copied first."""
    rows = comparison.best_rows[flagged, 0]
    owners = comparison.references.folder.column("subject")[rows]
    highest = comparison.highest[flagged]
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
