"""What `audit_membership` can be told. Nothing heavy is imported: the command line reads it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from unalike.errors import SettingsError


@dataclass(frozen=True)
class MembershipSettings:
    """Everything that decides a membership test; saved in its header."""

    level: float = 0.05
    """Error rate of the verdict: largest permutation p-value at which membership shows."""

    difficulty: Literal["features", "none"] = "features"
    """What is taken out of a loss without a reference run: what the image's own statistics predict, or nothing."""

    images_per_subject: int = 8
    """Images of one subject to score, drawn with --seed (count)."""

    subjects: int | None = None
    """Subjects of each side to score, drawn with --seed; without it, all (count)."""

    splits: int = 200
    """Random halves of the members, and of the non-members, for the null control (count)."""

    permutations: int = 2000
    """Permutations of the labels (count)."""

    def check(self) -> None:
        """Raise `SettingsError` for a value that makes no sense."""
        if not 0 < self.level < 1:
            raise SettingsError(f"--level {self.level}: give a rate between 0 and 1, such as 0.05.")
        if self.difficulty not in ("features", "none"):
            raise SettingsError(f"--difficulty {self.difficulty}: give features or none.")
        for name in ("images_per_subject", "splits", "permutations"):
            if getattr(self, name) < 1:
                raise SettingsError(f"--{name.replace('_', '-')} {getattr(self, name)}: give 1 or more.")
        if self.subjects is not None and self.subjects < 1:
            raise SettingsError(f"--subjects {self.subjects}: give 1 or more.")
