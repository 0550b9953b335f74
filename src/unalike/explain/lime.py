"""LIME: which superpixels of an image speak for a class (Ribeiro, Singh & Guestrin 2016).

Superpixels (SLIC, Achanta et al. 2012) of the image as it lies in the cohort are hidden at random, each with
probability ½; a ridge regression of the classifier's probability on which were kept gives each its weight. A picture
counts exp(−d²/w²) in the regression, d = 1 − √(share of superpixels kept), the cosine distance to the whole image, and
w = `KERNEL_WIDTH`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from captum.attr import LimeBase
from scipy.ndimage import gaussian_filter
from skimage.segmentation import slic

from unalike.explain.settings import Hidden
from unalike.records import FloatArray, IntArray, Pixels
from unalike.seeds import generator_for
from unalike.utility.classifier import AT_ONCE, Classifier

BoolArray = npt.NDArray[np.bool_]

KERNEL_WIDTH = 0.25  # the authors' for images
PENALTY = 1.0  # of the ridge regression, beside the sum of the weights of all pictures
LEAST_PIXELS = 16  # pixels that a superpixel has on average at least: a 32 × 32 image gets no more than 64
COMPACTNESS = 0.1  # of SLIC, for channels that fill 0 to 1: follows edges, yet stays in one piece
BLUR = 0.1  # standard deviation of the blurred image as a share of its shorter side


@dataclass(frozen=True)
class LimeMap:
    """An explanation of one image for one class.

    ``segments`` (H, W) numbers the superpixels from 0, ``weights`` (S,) is what the probability gains when one is
    shown, in the linear picture of the classifier near this image; ``heat`` (H, W) has each pixel's weight. ``fit``
    is the weighted R² of that linear picture: near 0 the weights say little. NaN where the probability never changed.
    """

    segments: IntArray
    weights: FloatArray
    heat: FloatArray
    fit: float


def find_superpixels(image: Pixels, count: int) -> IntArray:
    """Superpixels (H, W), numbered from 0, of an image (C, H, W): about ``count``, fewer if it is small.

    Each channel is stretched to its own range, and superpixels see all of them. A constant image is cut into tiles.
    """
    height, width = image.shape[1:]
    count = max(2, min(count, height * width // LEAST_PIXELS))
    values = image.astype(np.float64)
    low, high = (bound(values, axis=(1, 2), keepdims=True) for bound in (np.min, np.max))
    if (low == high).all():
        return _cut_into_tiles(height, width, count)
    unit = (values - low) / np.where(high > low, high - low, 1.0)
    found = slic(
        np.moveaxis(unit, 0, -1), count, compactness=COMPACTNESS, channel_axis=-1, convert2lab=False, start_label=0
    )
    # Numbered without gaps, whatever was joined on the way.
    _, numbers = np.unique(found, return_inverse=True)
    segments: IntArray = numbers.reshape(height, width).astype(np.int64)
    return segments if segments.max() > 0 else _cut_into_tiles(height, width, count)


def _cut_into_tiles(height: int, width: int, count: int) -> IntArray:
    down = min(height, max(1, round(np.sqrt(count * height / width))))
    across = min(width, max(1, count // down))
    rows, columns = np.arange(height) * down // height, np.arange(width) * across // width
    tiles: IntArray = (rows[:, None] * across + columns).astype(np.int64)
    return tiles


@dataclass(frozen=True, eq=False)
class PartlyHidden:
    """An image of which some superpixels are hidden, and what the classifier then says.

    ``image`` and ``other`` (what hidden superpixels show) are (C, H, W), ``segments`` (H, W).
    """

    classifier: Classifier
    image: Pixels
    other: Pixels
    segments: IntArray

    @property
    def count(self) -> int:
        """Number of superpixels."""
        return int(self.segments.max()) + 1

    def probabilities(self, kept: BoolArray, target: int) -> FloatArray:
        """Probability (n,) of the class ``target`` with only superpixels ``kept`` (n, S) shown."""
        found = [
            self.classifier.predict(np.where(part[:, self.segments][:, None], self.image, self.other))[:, target]
            for part in (kept[begin : begin + AT_ONCE] for begin in range(0, len(kept), AT_ONCE))
        ]
        return np.concatenate(found) if found else np.empty(0)


def hide_partly(classifier: Classifier, image: Pixels, segments: IntArray, *, hidden: Hidden) -> PartlyHidden:
    """Make ready to hide superpixels of ``image`` (C, H, W); channels the classifier does not see stay as they are."""
    other = image.copy()
    for channel in classifier.channels:
        plane = image[channel].astype(np.float64)
        if hidden == "blur":
            shown: Any = gaussian_filter(plane, BLUR * min(plane.shape))
        else:
            shown = plane.mean() if hidden == "mean" else 0.0
        other[channel] = np.rint(shown)
    return PartlyHidden(classifier, image, other, segments)


def explain_by_lime(
    classifier: Classifier,
    image: Pixels,
    *,
    target: int,
    segments: int | IntArray,
    samples: int,
    seed: int,
    hidden: Hidden = "mean",
) -> LimeMap:
    """Explain why ``classifier`` gives ``image`` (channels of the cohort, H, W) the class ``target``.

    ``segments`` is the number of superpixels wanted, or superpixels (H, W) found before, so that two classifiers can
    be compared. The same ``seed`` gives the same explanation; torch's own random numbers are left alone.
    """
    if isinstance(segments, int):
        segments = find_superpixels(image[list(classifier.channels)], segments)
    view = hide_partly(classifier, image, segments, hidden=hidden)
    random = generator_for(seed, "lime")
    drawn = iter(torch.from_numpy(random.random((samples, view.count)) < 0.5))
    surrogate = _Ridge()

    def ask(kept: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(view.probabilities(kept.numpy(), target))

    explainer = LimeBase(
        ask,
        surrogate,
        similarity_func=lambda _whole, _shown, kept, **_: float(weigh_picture(kept.numpy())[0]),
        perturb_func=lambda _whole, **_: next(drawn)[None],
        perturb_interpretable_space=True,
        from_interp_rep_transform=lambda kept, _whole, **_: kept,
        to_interp_rep_transform=None,
    )
    with torch.random.fork_rng(devices=[]):  # captum's loader draws from torch's global stream
        weights = explainer.attribute(
            torch.ones(1, view.count, dtype=torch.bool), n_samples=samples, perturbations_per_eval=AT_ONCE
        )
    found: FloatArray = weights.numpy()
    return LimeMap(segments, found, found[segments], surrogate.fit_of_it)


def weigh_picture(kept: BoolArray) -> FloatArray:
    """How much pictures with superpixels ``kept`` (n, S) count: exp(−d²/w²), see the module."""
    distance = 1.0 - np.sqrt(kept.mean(axis=1))
    weight: FloatArray = np.exp(-np.square(distance / KERNEL_WIDTH))
    return weight


def fit_ridge(kept: FloatArray, values: FloatArray, counts: FloatArray) -> tuple[FloatArray, float]:
    """Weights (S,) and weighted R² of a ridge regression of ``values`` (n,) on ``kept`` (n, S), with an intercept.

    ``counts`` (n,) is how much each row counts. Minimizes Σ counts·(residual)² + `PENALTY`·Σ weights².
    """
    share = counts / counts.sum()
    x, y = kept - share @ kept, values - share @ values
    matrix = (x * counts[:, None]).T @ x + PENALTY * np.eye(x.shape[1])
    weights: FloatArray = np.linalg.solve(matrix, x.T @ (counts * y))
    spread = float(counts @ np.square(y))
    if spread <= 1e-12 * counts.sum():
        return weights, float("nan")
    return weights, 1.0 - float(counts @ np.square(y - x @ weights)) / spread


class _Ridge:
    """The linear picture of the classifier, as captum asks for it."""

    def __init__(self) -> None:
        self.weights: FloatArray = np.empty(0)
        self.fit_of_it = float("nan")

    def fit(self, batches: Iterable[Sequence[torch.Tensor]]) -> None:
        """Fit on captum's one batch: what was kept (n, S), probabilities (n,), weights (n,)."""
        kept, values, counts = (part.double().numpy() for part in next(iter(batches)))
        self.weights, self.fit_of_it = fit_ridge(kept, values, counts)

    def representation(self) -> torch.Tensor:
        """Weights (S,)."""
        return torch.from_numpy(self.weights)
