"""What `score_fidelity` can be told."""

from __future__ import annotations

from dataclasses import dataclass

from unalike.cohort.settings import PictureSettings
from unalike.errors import SettingsError


@dataclass(frozen=True)
class FidelitySettings(PictureSettings):
    """Everything that decides a measurement of fidelity; saved in its header."""

    features: str = "own"
    """What images are compared by: own (the cohort's autoencoder and frequency bands, made offline), inception (the
    network of the FID), radimagenet, dinov2, or one of torchvision's classification networks such as resnet50."""

    weights: str = ""
    """File of the features' weights (dinov2: folder), .safetensors or .pth; not needed for own."""

    fetch_weights: bool = False
    """Fetch the weights from their authors' page, once, and check them; without it nothing is ever fetched."""

    resamples: int = 200
    """Bootstrap samples of subjects behind the interval of the Fréchet distance, an eighth as many for features of more
    than 500 numbers."""

    per_class: bool = True
    """Measure each class by itself as well, where samples and cohort have classes."""

    neighbours: int = 500
    """At most so many images of each set, one a subject, whose likeness within the set is measured by MS-SSIM and
    SSIM; 0 leaves that out."""

    def check(self) -> None:
        """Raise `SettingsError` for a value that makes no sense."""
        for name, least in (("resamples", 16), ("neighbours", 0)):
            if getattr(self, name) < least:
                raise SettingsError(f"--{name} {getattr(self, name)}: give {least} or more.")
        if self.features == "own" and (self.weights or self.fetch_weights):
            raise SettingsError("--weights: the cohort's own features need none. Name others with --features.")
