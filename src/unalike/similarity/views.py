"""What is compared of an image beside its plain pixels: views, in which a copy stays near although it was changed.

A view turns a window of an image into a unit vector; the inner product of two such vectors is their similarity:

* ``raw``: pixels, centred: the inner product is Pearson's correlation.
* ``whitened``: the same in the principal components of the training images, each divided by √(variance + ε of the
  largest): what is common to all patients counts little, what is a patient's own counts much. Finds noisy copies.
* ``equalized``: cosine transform, each ring of frequencies brought to the same energy, noise subtracted as Wiener's
  filter does, high frequencies left out, then whitened. What only changes how strong a frequency is (blur,
  sharpening, contrast, and much of gamma) leaves it as it is. Finds blurred, turned and blended copies.

Views are fitted on training images alone. A new patient and an innocent synthetic image are both strangers to the
fit, so what is calibrated on the one holds for the other.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from unalike.records import Pixels

RAW, WHITENED, EQUALIZED = VIEWS = ("raw", "whitened", "equalized")

# Longest side of the images that are compared in views: smaller ones stay as they are.
SIDE = 64
# Principal components: at most so many, and at most this share of the images they are fitted on.
COMPONENTS, SHARE_OF_IMAGES = 400, 0.57
# ε, as a share of the largest variance.
WHITENING, EQUAL_WHITENING = 1e-3, 3e-3
# Frequencies kept, and those that tell the noise, as shares of the side; width of a ring, in steps of the transform.
KEPT_FREQUENCY, NOISE_FREQUENCY, RING = 7 / 15, 0.75, 2.0
# Gray levels (of 255, orthonormal transform) that a ring's energy is never thought to be below.
FLOOR = 3.0
# Frequencies of the view in which candidates are looked for: so low that small shifts and turns do not matter.
COARSE_FREQUENCY = 0.2
# Windows (n, C, h, w) transformed at once.
AT_ONCE = 1024


def shrink(images: Pixels) -> Pixels:
    """Images (n, C, H, W) of 8 or 16 bits, area-averaged to at most `SIDE`, as uint8."""
    _, _, height, width = images.shape
    scale = min(SIDE / max(height, width), 1.0)
    size = (max(round(height * scale), 1), max(round(width * scale), 1))
    if size == (height, width) and images.dtype == np.uint8:
        return images
    made = np.empty((*images.shape[:2], *size), np.uint8)
    for begin in range(0, len(images), AT_ONCE):
        part = torch.from_numpy(images[begin : begin + AT_ONCE].astype(np.float32))
        if images.dtype == np.uint16:
            part /= 257
        made[begin : begin + AT_ONCE] = torch.nn.functional.adaptive_avg_pool2d(part, size).round_().to(torch.uint8)
    return made


def unit(vectors: torch.Tensor) -> torch.Tensor:
    """Vectors (…, d) at length 1; those without length stay zero."""
    norm = vectors.norm(dim=-1, keepdim=True)
    made: torch.Tensor = vectors / norm.clamp(min=1e-6) * (norm > 1e-6)
    return made


def centre(windows: torch.Tensor) -> torch.Tensor:
    """The raw view: windows (n, C, h, w) float32 → (n, D), centred, unit length; zero for a constant one."""
    flat = windows.flatten(1)
    flat = flat - flat.mean(dim=1, keepdim=True)
    return unit(flat * (flat.abs().amax(dim=1, keepdim=True) > 1e-3))


@dataclass(frozen=True)
class Equalizer:
    """The transform behind ``equalized``, for windows of one size."""

    rows: torch.Tensor  # cosine transform (h, h)
    columns: torch.Tensor  # (w, w)
    kept: torch.Tensor  # places of the frequencies kept, among h·w
    ring: torch.Tensor  # the ring of each
    noise: torch.Tensor  # places of the frequencies that hold nothing but noise

    @classmethod
    def of(cls, height: int, width: int, *, upto: float = KEPT_FREQUENCY) -> Equalizer:
        """Frequencies ``upto`` a share of the side."""
        down, across = (torch.arange(side, dtype=torch.float32) / side for side in (height, width))
        radius = (down[:, None] ** 2 + across**2).sqrt().flatten()
        longest = max(height, width)
        # A small image keeps two frequencies at least, or nothing would be left to compare.
        kept = ((radius > 0) & (radius < max(upto, 2.5 / longest))).nonzero()[:, 0]
        _, ring = torch.unique((radius[kept] * longest / RING).floor(), return_inverse=True)
        noise = (radius > NOISE_FREQUENCY).nonzero()[:, 0]
        return cls(_cosines(height), _cosines(width), kept, ring, noise)

    def transform(self, windows: torch.Tensor) -> torch.Tensor:
        """Windows (n, C, h, w) → equalized coefficients (n, C, kept)."""
        flat = (self.rows @ windows @ self.columns.T).flatten(2)
        chosen, noise = flat[..., self.kept], flat[..., self.noise].square().mean(dim=-1, keepdim=True)
        rings = int(self.ring.max()) + 1
        energy = torch.zeros(*chosen.shape[:2], rings).index_add_(2, self.ring, chosen.square())
        energy /= torch.bincount(self.ring, minlength=rings)
        gain = (energy - noise).clamp_(min=0) / (energy + 1e-9) / (energy + FLOOR**2).sqrt_()
        return chosen * gain[..., self.ring]

    def restore(self, coefficients: torch.Tensor) -> torch.Tensor:
        """Coefficients (n, C, kept) back to windows (n, C, h, w), to be laid over each other."""
        whole = torch.zeros(*coefficients.shape[:2], len(self.rows) * len(self.columns))
        whole[..., self.kept] = coefficients
        return self.rows.T @ whole.view(*whole.shape[:2], len(self.rows), len(self.columns)) @ self.columns


def _cosines(side: int) -> torch.Tensor:
    """Orthonormal cosine transform (DCT-II)."""
    place = torch.arange(side, dtype=torch.float64)
    matrix = torch.cos(math.pi / side * (place + 0.5) * place[:, None]) * math.sqrt(2 / side)
    matrix[0] /= math.sqrt(2)
    return matrix.to(torch.float32)


@dataclass(frozen=True)
class Whitening:
    """Mean (d,) and scaled principal components (d, K)."""

    mean: torch.Tensor
    components: torch.Tensor

    @classmethod
    def fit(cls, vectors: torch.Tensor, *, epsilon: float) -> Whitening:
        """Fit on vectors (n, d), by the smaller of their two products."""
        mean = vectors.mean(dim=0)
        centred = (vectors - mean).to(torch.float64)
        count = max(min(COMPONENTS, round(SHARE_OF_IMAGES * len(vectors)), centred.shape[1]), 1)
        if len(centred) <= centred.shape[1]:
            variances, left = torch.linalg.eigh(centred @ centred.T / len(centred))
            axes = centred.T @ left[:, -count:]
        else:
            variances, right = torch.linalg.eigh(centred.T @ centred / len(centred))
            axes = right[:, -count:]
        axes = axes / axes.norm(dim=0).clamp(min=1e-12)
        variance = variances[-count:].clamp(min=0)
        scale = (variance + epsilon * variance[-1]).clamp(min=1e-12).rsqrt()
        return cls(mean, (axes * scale).to(torch.float32))

    def apply(self, vectors: torch.Tensor) -> torch.Tensor:
        """Vectors (n, d) → (n, K), unit length; a zero vector (a constant image) stays zero."""
        defined = vectors.abs().amax(dim=1, keepdim=True) > 0
        return unit((vectors - self.mean) @ self.components) * defined


@dataclass(frozen=True)
class Views:
    """The fitted views, for windows (n, C, h, w) of one size."""

    equalizer: Equalizer
    coarse: Equalizer
    whitened: Whitening
    equalized: Whitening

    @classmethod
    def fit(cls, windows: torch.Tensor) -> Views:
        """Fit on windows (n, C, h, w) float32 of training images."""
        height, width = windows.shape[2:]
        equalizer, coarse = Equalizer.of(height, width), Equalizer.of(height, width, upto=COARSE_FREQUENCY)
        equal = torch.cat([unit(equalizer.transform(part).flatten(1)) for part in torch.split(windows, AT_ONCE)])
        return cls(
            equalizer=equalizer,
            coarse=coarse,
            whitened=Whitening.fit(centre(windows), epsilon=WHITENING),
            equalized=Whitening.fit(equal, epsilon=EQUAL_WHITENING),
        )

    def look(self, windows: torch.Tensor) -> dict[str, torch.Tensor]:
        """Unit vectors (n, …) of each view."""
        raw = centre(windows)
        equal = unit(self.equalizer.transform(windows).flatten(1)) * (raw.abs().amax(dim=1, keepdim=True) > 0)
        return {RAW: raw, WHITENED: self.whitened.apply(raw), EQUALIZED: self.equalized.apply(equal)}

    def look_coarsely(self, windows: torch.Tensor) -> torch.Tensor:
        """Unit vectors (n, …) of low frequencies, in which small shifts and turns hardly matter."""
        raw = windows.flatten(1)
        defined = (raw.amax(dim=1) - raw.amin(dim=1) > 1e-3)[:, None]
        return unit(self.coarse.transform(windows).flatten(1)) * defined
