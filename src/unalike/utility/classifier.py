"""A trained classifier as its users see it: pixels in, probabilities of classes out."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from unalike.errors import PictureError
from unalike.records import FloatArray, Pixels

AT_ONCE = 64  # images in the network together


@dataclass(frozen=True, eq=False)
class Classifier:
    """A network with all that stands between it and an image of the cohort.

    ``channels`` are indices of the cohort's channels that it sees (never the mask), ``side`` the height and width
    (pixels) to which they are brought, ``highest`` the pixel value that counts as 1. ``classes`` name its outputs.
    ``mean`` and ``deviation`` (C,) are taken away and divided by, in units of ``highest``.
    """

    name: str
    classes: tuple[str, ...]
    channels: tuple[int, ...]
    side: int
    highest: int
    mean: tuple[float, ...]
    deviation: tuple[float, ...]
    network: nn.Module = field(repr=False)
    precision: str = "float32"

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.network.parameters()).device

    def prepare(self, images: Pixels) -> torch.Tensor:
        """What the network takes, (n, C, side, side) float32, from images (n, channels of the cohort, H, W).

        Enlarged bilinearly, made smaller with antialiasing. Raises `PictureError` if a channel is missing.
        """
        if images.shape[1] <= max(self.channels):
            raise PictureError(f"images have {images.shape[1]} channels, the classifier looks at {self.channels}.")
        chosen = np.ascontiguousarray(images[:, list(self.channels)]).astype(np.float32)
        unit = torch.from_numpy(chosen).to(self.device) / self.highest
        if unit.shape[2:] != (self.side, self.side):
            unit = F.interpolate(unit, (self.side, self.side), mode="bilinear", antialias=True, align_corners=False)
        mean, deviation = (
            torch.tensor(values, dtype=torch.float32, device=self.device)[:, None, None]
            for values in (self.mean, self.deviation)
        )
        return (unit - mean) / deviation

    def logits(self, prepared: torch.Tensor) -> torch.Tensor:
        """Scores (n, K) of prepared images, before softmax; gradients flow."""
        with torch.autocast(prepared.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
            found: torch.Tensor = self.network(prepared)
        return found.float()

    @torch.no_grad()
    def predict(self, images: Pixels) -> FloatArray:
        """Probabilities (n, K) of images (n, channels of the cohort, H, W), each image by itself."""
        self.network.train(False)
        found = np.empty((len(images), len(self.classes)))
        for begin in range(0, len(images), AT_ONCE):
            part = slice(begin, begin + AT_ONCE)
            found[part] = self.logits(self.prepare(images[part])).double().softmax(dim=1).cpu().numpy()
        return found
