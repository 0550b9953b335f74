"""What `explain_predictions` and `draw_evidence` can be told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from unalike.cohort.settings import PictureSettings
from unalike.errors import SettingsError

Hidden = Literal["mean", "blur", "zero"]
_AT_LEAST = {"each": 1, "segments": 2, "samples": 20, "repetitions": 2, "top": 1, "sheets": 0, "tile": 1}


@dataclass(frozen=True)
class ExplainSettings(PictureSettings):
    """Everything that decides an explanation; saved in its header."""

    network: str = ""
    """Which network's kept classifiers are explained; without it, the first one of which both are kept: trained on
    synthetic and on real images."""

    each: int = 2
    """Images of each class and kind (correct, wrong, uncertain) and role (holdout, synthetic)."""

    segments: int = 50
    """Superpixels of an image at most; small images get fewer (`unalike.explain.lime.LEAST_PIXELS` a superpixel)."""

    samples: int = 300
    """Pictures with superpixels hidden at random that the classifier is asked about, for one explanation."""

    repetitions: int = 3
    """Explanations of each image by other random numbers: how stable they are."""

    hidden: Hidden = "mean"
    """What a hidden superpixel shows: the image's mean colour, the image blurred, or zero."""

    top: int = 5
    """Superpixels that count as the most important ones."""

    sheets: int = 0
    """Evidence of an audit: sheets at most; 0 draws one of every flagged image whose pair the audit kept."""

    tile: int = 8
    """Evidence of an audit: height and width (pixels) of the regions whose part in a match is told."""

    def check(self) -> None:
        """Raise `SettingsError` for a value that makes no sense."""
        for name, least in _AT_LEAST.items():
            if getattr(self, name) < least:
                raise SettingsError(f"--{name} {getattr(self, name)}: give {least} or more.")
        if self.hidden not in {"mean", "blur", "zero"}:
            raise SettingsError(f"--hidden {self.hidden}: there are mean, blur, zero.")
