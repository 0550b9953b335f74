"""What `prepare_cohort` can be told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from unalike.errors import SettingsError
from unalike.images.geometry import Fit
from unalike.images.pictures import Color
from unalike.images.volumes import Axis

OnBadFile = Literal["error", "skip"]
Split = Literal["redraw", "keep"]


@dataclass(frozen=True)
class PrepareSettings:
    """Everything that decides what a cohort holds; saved in its header."""

    recipe: str = "folder"
    """How the source is laid out: folder (pictures) or nifti (volumes)."""

    size: int | None = None
    """Height and width of every image in pixels; without it, pictures keep their size and must all be alike."""

    holdout: float = 0.2
    """Share of the subjects that no generator will see, drawn by subject."""

    split: Split = "redraw"
    """redraw the roles by subject, or keep the train and test folders of the source."""

    subject_pattern: str | None = None
    """Regular expression over the path below SOURCE whose first group (or whole match) names the patient."""

    labels: bool = True
    """Pictures: take the innermost folder name as the class; --no-labels if folder names identify patients."""

    on_bad_file: OnBadFile = "error"
    """Stop at the first file that cannot be read or does not fit the others, or skip such files and list them."""

    fit: Fit = "pad"
    """Reach --size by padding with zeros (aspect kept), stretching, or cropping."""

    color: Color = "auto"
    """Pictures: keep gray or colour as they are, or turn all into gray or rgb."""

    depth: Literal["auto", "8", "16"] = "auto"
    """Pictures: bits per pixel; auto keeps what the files have."""

    channel_pattern: str | None = None
    """Volumes: regular expression over the path whose first group (or whole match) names the channel."""

    channels: tuple[str, ...] = ()
    """Volumes: channels to take, in this order; without it, all that are found."""

    mask_scale: int = 51
    """Volumes: gray levels per label of the mask (1, 2, 4 become 51, 102, 204 as in Akbar et al. 2025)."""

    axis: Axis = "axial"
    """Volumes: slice along this anatomical axis."""

    percentiles: tuple[float, float] = (0.5, 99.5)
    """Volumes: these percentiles of each volume become 0 and 255."""

    content_above: int = 50
    """Volumes: a pixel above this level (of 255) in any channel counts as content."""

    least_content: float = 0.15
    """Volumes: keep slices with at least this share of content pixels (before padding)."""

    slices: int | None = None
    """Volumes: keep at most this many slices per volume, evenly spaced; 1 is the middle one. Default: all."""

    def check(self) -> None:
        """Raise `SettingsError` for a value that makes no sense."""
        if self.size is not None and not 4 <= self.size <= 4096:
            raise SettingsError(f"--size {self.size}: give 4 to 4096 pixels.")
        if self.slices is not None and self.slices < 1:
            raise SettingsError(f"--slices {self.slices}: give 1 or more.")
        if not 0 <= self.percentiles[0] < self.percentiles[1] <= 100:
            raise SettingsError(f"--percentiles {self.percentiles}: give two rising numbers from 0 to 100.")
        if not 0 <= self.least_content <= 1:
            raise SettingsError(f"--least-content {self.least_content}: give a share from 0 to 1.")
        if not 0 < self.mask_scale <= 255:
            raise SettingsError(f"--mask-scale {self.mask_scale}: give 1 to 255.")
