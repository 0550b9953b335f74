"""What `run_demo` can be told."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from unalike.errors import SettingsError


@dataclass(frozen=True)
class DemoSettings:
    """Everything that decides a demo; saved in its header."""

    data: Path | None = None
    """Real pictures or NIfTI volumes to use instead of the procedural cohort."""

    subject_pattern: str | None = None
    """With --data: regular expression over the path whose first group (or whole match) names the patient."""

    subjects: int = 1000
    """Patients of the procedural cohort."""

    few: int = 8
    """Train subjects of the diffusion model that is trained on few."""

    size: int = 32
    """Height and width of the images in pixels."""

    steps: int = 800
    """Training steps of each diffusion model."""

    count: int = 128
    """Synthetic images to draw from each generator."""

    holdout: float = 0.2
    """Share of the subjects held out."""

    def check(self) -> None:
        """Raise `SettingsError` for a value that makes no sense."""
        if self.few < 1 or self.count < 1 or self.steps < 1:
            raise SettingsError("--few, --count and --steps must be 1 or more.")
        if self.subjects < 30:
            raise SettingsError(f"--subjects {self.subjects}: give at least 30, or the holdout can certify nothing.")
