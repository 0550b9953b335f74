"""What `audit_samples` can be told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from unalike.cohort.settings import PictureSettings
from unalike.errors import SettingsError


@dataclass(frozen=True)
class AuditSettings(PictureSettings):
    """Everything that decides an audit; saved in its header."""

    level: float = 0.05
    """Error rate: the expected share of false alarms among the flagged images (Benjamini–Hochberg)."""

    best: int = 5
    """Matches to keep per image, best first."""

    channels: tuple[str, ...] = ()
    """Channels to compare; without it, all but the mask."""

    pairs: int = 24
    """Closest pairs to keep as evidence, with pictures."""

    planted: int = 64
    """Planted copies per kind of change, from as many subjects, to measure the power; 0 leaves it unmeasured."""

    learned: tuple[Literal["autoencoder", "contrastive"], ...] = ()
    """Spaces to learn from the train images (about 2 minutes each on two cores, kept beside the cohort) and count as
    evidence: autoencoder, contrastive."""

    local: bool = False
    """Look for patches as well, so that a lesion copied into another patient's image is found."""

    rerank: tuple[Literal["ssim", "mutual-information", "normalized-mutual-information"], ...] = ()
    """Measure the best matches in these ways too: ssim, mutual-information, normalized-mutual-information."""

    exhaustive: bool = False
    """With --rerank: look for the best match of each measure among all train images, not among the best only."""

    @property
    def extra_measures(self) -> tuple[str, ...]:
        """Names of the measures beyond the default ones, in order."""
        learned = tuple(name for name in ("autoencoder", "contrastive") if name in self.learned)
        return learned + (("local",) if self.local else ())

    def check(self) -> None:
        """Raise `SettingsError` for a value that makes no sense."""
        if not 0 < self.level < 1:
            raise SettingsError(f"--level {self.level}: give a rate between 0 and 1, such as 0.05.")
        if self.best < 1:
            raise SettingsError(f"--best {self.best}: give 1 or more.")
        if self.exhaustive and not self.rerank:
            raise SettingsError("--exhaustive says how --rerank searches. Name a measure, such as --rerank ssim.")
        if self.pairs < 0 or self.planted < 0:
            raise SettingsError("--pairs and --planted cannot be negative.")
