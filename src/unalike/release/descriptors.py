"""Fidelity that a recipient can compute again: no weights, no patients, NumPy alone.

A picture becomes a short vector of plain statistics for each channel, a set of pictures their mean and covariance, and
two sets are compared by the Fréchet distance between those (Dowson and Landau 1982; of images Heusel et al. 2017).
This is a check that the images are what the card speaks of, and a coarse measure of likeness. It sees grey levels and
textures, no anatomy: the card's other measures say more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from unalike.cohort.store import ImageFolder, iterate_blocks
from unalike.engine import show_progress
from unalike.errors import InputError
from unalike.records import FloatArray, IntArray, Pixels, TextArray

QUANTILES = (0.02, 0.1, 0.25, 0.5, 0.75, 0.9, 0.98, 1.0)
BANDS = 8
NAMES = (
    "mean",
    "sd",
    "skewness",
    *(f"quantile {share:g}" for share in QUANTILES),
    "gradient",
    *(f"band {number}" for number in range(1, BANDS + 1)),
    "asymmetry",
)
FEWEST_SUBJECTS = 50
"""Moments of fewer subjects' images are not shared: they could be somebody's."""
_DIGITS = 4
# Standard deviations below this count as this: a descriptor that is nearly the same in all images must not outweigh the
# others. Descriptors are shares of the grey scale or of the energy, so it is a hundredth of their range.
_LEAST_SD = 1e-2
# Added to both covariances once standardized: the root of a matrix is ill-conditioned where eigenvalues are near 0.
_RIDGE = 1e-3


@dataclass(frozen=True)
class Moments:
    """Mean (d,) and covariance (d, d) of descriptors, each subject with equal weight, and what they rest on."""

    mean: FloatArray
    covariance: FloatArray
    n_subjects: int
    n_images: int
    names: tuple[str, ...]


def describe(images: Pixels) -> FloatArray:
    """Descriptors (n, C · 21) of images (n, C, H, W), uint8 or uint16; channel by channel in the order of `NAMES`.

    With grey levels divided by 255 or 65,535: mean, standard deviation and skewness (0 for a plain image); quantiles
    at `QUANTILES`, interpolated; mean length of the gradient of central differences, per pixel; share of the energy
    (squared modulus of the discrete Fourier transform of the image less its mean; 0 for a plain image) in `BANDS`
    rings of equal ratio between 1 / max(H, W) and √½ cycles a pixel; mean absolute difference from the image mirrored
    left to right.

    Each image is worked on alone, so what it gets does not depend on the others.
    """
    count, channels = images.shape[:2]
    rings = _rings(int(images.shape[2]), int(images.shape[3]))
    full = float(np.iinfo(images.dtype).max)
    result = np.empty((count, channels * len(NAMES)))
    for row, image in enumerate(images):
        parts = [_describe_plane(plane.astype(np.float64) / full, rings) for plane in image]
        result[row] = np.concatenate(parts)
    return result


def name_descriptors(channels: Sequence[str]) -> tuple[str, ...]:
    """Names of the numbers that `describe` gives, such as ``mri: mean``."""
    return tuple(f"{channel}: {name}" for channel in channels for name in NAMES)


def _rings(height: int, width: int) -> npt.NDArray[np.intp]:
    """Ring (H, W) of each frequency, 0 to BANDS − 1; the mean's is the lowest, where it adds nothing."""
    radius = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None, :])
    edges = np.geomspace(1 / max(height, width, 2), np.sqrt(0.5), BANDS + 1)
    # A hair below each edge: whether a frequency lies on it must not hang on the last bit of a square root.
    rings: npt.NDArray[np.intp] = np.clip(np.searchsorted(edges * (1 - 1e-9), radius, side="right") - 1, 0, BANDS - 1)
    return rings


def _describe_plane(plane: FloatArray, rings: npt.NDArray[np.intp]) -> FloatArray:
    mean, sd = float(plane.mean()), float(plane.std())
    centred = plane - mean
    plain = plane.min() == plane.max()
    skewness = 0.0 if plain else float((centred**3).mean()) / sd**3
    down, right = (np.gradient(plane, axis=axis) if plane.shape[axis] > 1 else np.zeros_like(plane) for axis in (0, 1))
    energy = np.abs(np.fft.fft2(centred)) ** 2
    sums = np.bincount(rings.ravel(), weights=energy.ravel(), minlength=BANDS)
    bands = np.zeros(BANDS) if plain else sums / sums.sum()
    asymmetry = float(np.abs(plane - plane[:, ::-1]).mean())
    quantiles = np.quantile(plane, QUANTILES)
    gradient = float(np.hypot(down, right).mean())
    return np.concatenate([[mean, 0.0 if plain else sd, skewness], quantiles, [gradient], bands, [asymmetry]])


def describe_rows(folder: ImageFolder, rows: IntArray) -> FloatArray:
    """Descriptors (len(rows), d) of images of a folder; they stream by, chunk by chunk."""
    parts = []
    with show_progress("Describing images", total=len(rows), unit="images") as progress:
        for _, block in iterate_blocks(folder, rows):
            parts.append(describe(block))
            progress.advance(len(block))
    return np.concatenate(parts) if parts else np.empty((0, len(folder.channels) * len(NAMES)))


def describe_folder(folder: ImageFolder, rows: IntArray) -> Moments:
    """`Moments` of the images ``rows`` (ascending) of a cohort or samples folder."""
    return moments_of(
        describe_rows(folder, rows), folder.column("subject")[rows], names=name_descriptors(folder.channels)
    )


def moments_of(vectors: FloatArray, subjects: TextArray, *, names: Sequence[str] = ()) -> Moments:
    """Mean and covariance of vectors (n, d); an image counts 1 / (images of its subject), ``subjects`` (n,).

    The covariance is divided by 1 − 1 / (number of subjects): without bias where each subject has one image. One
    subject has no covariance: zeros. Raises `InputError` without vectors.
    """
    if not len(vectors):
        raise InputError("there are no images to describe. Give at least one.")
    _, codes, counts = np.unique(subjects, return_inverse=True, return_counts=True)
    number = len(counts)
    weights = 1 / (number * counts[codes].astype(np.float64))
    mean = weights @ vectors
    centred = np.sqrt(weights)[:, None] * (vectors - mean)
    covariance = centred.T @ centred * (number / (number - 1) if number > 1 else 0.0)
    return Moments(mean, covariance, number, len(vectors), tuple(names))


def frechet_between(found: Moments, reference: Moments) -> float:
    """Fréchet distance |μ₁ − μ₂|² + tr(Σ₁ + Σ₂ − 2 (Σ₁Σ₂)^½) of two sets, standardized; 0 means equal moments.

    Every descriptor is divided by the reference's standard deviation, or by 0.01 where that is smaller, so that no
    unit decides: a shift of all images by one standard deviation in one descriptor is 1. Then 0.001 is added to the
    diagonal of both covariances, because in directions in which nothing varies the root would blow rounding up.
    Computed in float64 from the eigenvalues; those below 0, as rounded moments may have, count as 0.

    Raises `InputError` if the two describe images by different numbers, or a number is not finite.
    """
    if found.mean.shape != reference.mean.shape or (found.names and reference.names and found.names != reference.names):
        raise InputError("the images have other channels than the reference. Compare images of the same channels.")
    if not all(np.isfinite(each).all() for one in (found, reference) for each in (one.mean, one.covariance)):
        raise InputError("moments are not finite. Describe the images again.")
    scale = np.maximum(np.sqrt(np.maximum(np.diag(reference.covariance), 0)), _LEAST_SD)
    ridge = _RIDGE * np.eye(len(scale))
    one, two = (each.covariance / np.outer(scale, scale) + ridge for each in (found, reference))
    shift = (found.mean - reference.mean) / scale
    first, second = _root(one), _root(two)
    # tr (Σ₁Σ₂)^½ is the sum of the singular values of Σ₁^½ Σ₂^½; with its polar part all becomes a sum of squares.
    left, _, right = np.linalg.svd(first @ second)
    return float(shift @ shift + ((first - left @ right @ second) ** 2).sum())


def _root(matrix: FloatArray) -> FloatArray:
    """Symmetric root of a covariance; eigenvalues below 0 count as 0."""
    values, vectors = np.linalg.eigh((matrix + matrix.T) / 2)
    root: FloatArray = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    return root


def round_moments(moments: Moments) -> Moments:
    """The same with four significant digits, as it is stored: enough to compare, too few to count with."""
    return Moments(
        _round(moments.mean), _round(moments.covariance), moments.n_subjects, moments.n_images, moments.names
    )


def _round(values: FloatArray) -> FloatArray:
    return np.array([float(f"{value:.{_DIGITS - 1}e}") for value in values.ravel().tolist()]).reshape(values.shape)


def nominal_reference(cohort: ImageFolder, rows: IntArray) -> Moments | None:
    """Rounded `Moments` of a cohort's images ``rows`` (its train role), to go with a bundle.

    None where they are of fewer than `FEWEST_SUBJECTS` subjects.
    """
    if len(np.unique(cohort.column("subject")[rows])) < FEWEST_SUBJECTS:
        return None
    return round_moments(describe_folder(cohort, rows))


def moments_from_json(entry: Mapping[str, Any]) -> Moments:
    """Read back what `records.as_json` makes of `Moments`. Raises `InputError` if it is damaged."""
    try:
        mean, covariance = (np.asarray(entry[name], dtype=np.float64) for name in ("mean", "covariance"))
        names = tuple(str(name) for name in entry["names"])
        counts = int(entry["n_subjects"]), int(entry["n_images"])
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"the card's descriptors are damaged ({error}). Ask for the bundle again.") from error
    if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)) or len(names) not in (0, len(mean)):
        raise InputError("the card's descriptors do not fit each other. Ask for the bundle again.")
    return Moments(mean, covariance, *counts, names)
