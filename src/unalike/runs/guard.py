"""Guarded sampling: samples that look like copies are rejected, and how many were is told.

Rejection hides evidence: the kept samples have p-values above the level by construction, so an audit by the same
measures finds nothing even where copies that these measures miss went through. The samples' header says that there was
a guard and how many it rejected; an audit repeats it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from unalike.audit.index import CopyFindings, CopyIndex
from unalike.cohort.split import select_train_rows
from unalike.engine import tell
from unalike.errors import RunError, SettingsError
from unalike.folders import Header
from unalike.records import Pixels, as_json
from unalike.runs.sample import open_run_cohort
from unalike.runs.settings import GuardSettings
from unalike.stats.intervals import estimate_share


@dataclass(frozen=True)
class Guard:
    """The live index of the subjects that a run saw, and the level at which a sample is rejected."""

    index: CopyIndex
    level: float

    def look(self, samples: Pixels) -> CopyFindings:
        """What is known of samples (n, C, H, W)."""
        return self.index.query(samples, level=self.level)


def open_guard(cohort: Path, *, header: Header, settings: GuardSettings) -> Guard:
    """The guard of the run with this ``header`` on the cohort it was trained on.

    Raises `InputError` if it was trained on another cohort, and `SettingsError` if the cohort has too few holdout
    subjects to reject anything at this level.
    """
    opened = open_run_cohort(cohort, header)
    subjects, seed = header.content["subjects"], int(header.content["subject_seed"])
    rows = select_train_rows(opened, subjects=subjects, seed=seed)
    index = CopyIndex.open(opened, train_rows=rows, notice=tell)
    if index.smallest_p > settings.level:
        raise SettingsError(
            f"--guard-level {settings.level} rejects no image: {cohort} has {round(1 / index.smallest_p) - 1} subjects "
            f"that the run did not see, so no p-value is below {index.smallest_p:.3g}. Raise it, or hold out more."
        )
    return Guard(index, settings.level)


@dataclass
class Tally:
    """Who was kept and who was rejected so far. At most ``limit`` samples are drawn."""

    wanted: int
    limit: int
    kept: list[int] = field(default_factory=list)
    rejections: list[dict[str, Any]] = field(default_factory=list)
    drawn: int = 0

    def add(self, seeds: Sequence[int], found: CopyFindings) -> None:
        """Count the samples of these seeds, in order, until there are enough."""
        for place, seed in enumerate(seeds):
            if self.done:
                return
            self.drawn += 1
            if not found.flagged[place]:
                self.kept.append(seed)
                continue
            self.rejections.append(
                {
                    "seed": seed,
                    "reason": "pixel-identical to a training image" if found.identical[place] else "looks like a copy",
                    "p_value": float(found.p_values[place]),
                    "similarity": float(found.similarities[place]),
                    "measure": str(found.spoke[place]),
                }
            )

    @property
    def done(self) -> bool:
        """Whether as many as wanted were kept."""
        return len(self.kept) >= self.wanted

    def give_up_in_time(self) -> None:
        """Raise `RunError` with the copy rate once the limit cannot give as many as are wanted."""
        share = estimate_share(len(self.kept), self.drawn)
        if self.done or (self.drawn < self.limit and share.high * self.limit >= self.wanted):
            return
        rejected = estimate_share(len(self.rejections), self.drawn)
        raise RunError(
            f"{len(self.rejections)} of {self.drawn} samples ({rejected.value:.1%}, {rejected.low:.1%} to "
            f"{rejected.high:.1%}) look like copies: {self.wanted} others will not be found among {self.limit}. "
            "Train on more subjects or for fewer steps, or draw fewer."
        )

    def about(self, guard: Guard) -> dict[str, Any]:
        """What the samples' header says, and the list of rejections."""
        share = estimate_share(len(self.rejections), self.drawn)
        summary = {
            "level": guard.level,
            "drawn": self.drawn,
            "rejected": len(self.rejections),
            "rejected_share": as_json(share),
            "holdout_subjects": int(np.rint(1 / guard.index.smallest_p)) - 1,
        }
        return {"summary": summary, "rejections": self.rejections}
