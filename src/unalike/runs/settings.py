"""How a training is watched and a drawing is guarded. No torch here: the command line reads it."""

from __future__ import annotations

from dataclasses import dataclass

from unalike.generators.settings import require


@dataclass(frozen=True)
class WatchSettings:
    """How samples are drawn and judged while a generator is trained."""

    every: int = 1000
    """Updates between two looks (count)."""

    samples: int = 200
    """Samples drawn at each look, always from the same noise (count)."""

    steps: int = 20
    """Denoising steps they are drawn in (count)."""

    level: float = 0.05
    """p-value up to which a sample counts as a copy: so large a share of images of new patients would, too. Raised to
    the smallest p-value that the holdout can give."""

    budget: float = 0.05
    """Largest share of copies, beyond false alarms, among the samples of weights that may become the model."""

    stop: bool = False
    """End the training at the first look beyond the budget, and fail if there was none within it."""

    def __post_init__(self) -> None:
        """Refuse values that make no sense, naming the setting."""
        for name in ("every", "samples", "steps"):
            require(getattr(self, name) >= 1, f"watch_{name}", getattr(self, name), "at least 1")
        require(0 < self.level < 1, "watch_level", self.level, "a rate between 0 and 1")
        require(0 <= self.budget < 1, "copy_budget", self.budget, "a share from 0 to below 1")


@dataclass(frozen=True)
class GuardSettings:
    """How samples that look like copies are rejected while they are drawn."""

    level: float = 0.05
    """p-value up to which a sample is rejected (rate)."""

    patience: int = 10
    """At most so many samples are drawn for each that is wanted (count)."""

    def __post_init__(self) -> None:
        """Refuse values that make no sense, naming the setting."""
        require(0 < self.level < 1, "guard_level", self.level, "a rate between 0 and 1")
        require(self.patience >= 1, "guard_patience", self.patience, "at least 1")
