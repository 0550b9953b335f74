"""How well found masks lie on true ones: Dice and the 95th percentile of surface distances, by image and by subject.

NumPy and SciPy only. Masks are class maps: 0 is background, k the k-th label. Subjects, not slices, are independent, so
every interval resamples subjects, and two models are compared on the same subjects.

What is done where a label is missing, once for all:

* in truth and in what was found: Dice and distance are undefined (NaN), left out, and counted;
* in one of the two: Dice is 0, and the distance is the image's diagonal, the largest there can be.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.ndimage import binary_erosion
from scipy.spatial import cKDTree

from unalike.records import Estimate, FloatArray, IntArray, TextArray
from unalike.seeds import generator_for
from unalike.stats.intervals import estimate_mean

PERCENTILE = 95
MEAN = "mean"  # over labels, beside their names

Classes = npt.NDArray[np.uint8]
Plane = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Overlap:
    """Scores of n images of S subjects for K labels.

    ``image_dice``, ``image_hd95`` (n, K) are by image. ``dice`` (S, K) pools a subject's images (sums over all of
    them), ``hd95`` (S, K) is the mean over those of its images where it is defined; in the order of ``subjects`` (S,).
    NaN is undefined. ``both_empty`` and ``one_empty`` (K,) count images without the label in truth and in what was
    found, and in only one of them. Distances are in ``unit``: ``mm`` or ``pixels``.
    """

    subjects: TextArray
    dice: FloatArray
    hd95: FloatArray
    image_dice: FloatArray
    image_hd95: FloatArray
    both_empty: IntArray
    one_empty: IntArray
    unit: str


def measure_overlap(
    truth: Classes, found: Classes, subjects: TextArray, *, labels: int, spacing: FloatArray | None = None
) -> Overlap:
    """Scores of found class maps against true ones, both (n, H, W) with values 0 to ``labels``.

    ``subjects`` (n,) names whose each image is. ``spacing`` (n, 2) gives height and width of a pixel in mm; without it
    distances are in pixels.
    """
    counts = count_pixels(truth, found, labels=labels)
    image_hd95 = np.full((len(truth), labels), np.nan)
    for index in range(len(truth)):
        step = (1.0, 1.0) if spacing is None else (float(spacing[index, 0]), float(spacing[index, 1]))
        for label in range(labels):
            image_hd95[index, label] = surface_distance(
                truth[index] == label + 1, found[index] == label + 1, spacing=step
            )
    names, whose = np.unique(subjects, return_inverse=True)
    pooled = np.zeros((3, len(names), labels), dtype=np.int64)
    for total, each in zip(pooled, counts, strict=True):
        np.add.at(total, whose, each)
    empty = counts[1:] == 0
    return Overlap(
        subjects=names,
        dice=dice_of(pooled),
        hd95=_mean_by_subject(image_hd95, whose, len(names)),
        image_dice=dice_of(counts),
        image_hd95=image_hd95,
        both_empty=empty.all(axis=0).sum(axis=0).astype(np.int64),
        one_empty=(empty[0] ^ empty[1]).sum(axis=0).astype(np.int64),
        unit="pixels" if spacing is None else "mm",
    )


def count_pixels(truth: Classes, found: Classes, *, labels: int) -> IntArray:
    """Pixels of each image and label (3, n, ``labels``): in both, in ``truth``, in ``found`` (n, H, W)."""
    counts = np.empty((3, len(truth), labels), dtype=np.int64)
    for label in range(labels):
        one, two = truth == label + 1, found == label + 1
        for place, marked in enumerate((one & two, one, two)):
            counts[place, :, label] = marked.sum(axis=(1, 2))
    return counts


def dice_of(counts: IntArray) -> FloatArray:
    """Dice = 2 |A ∩ B| / (|A| + |B|) from `count_pixels` or sums of them, (3, …) to (…); NaN where both are empty."""
    both, sizes = counts[0], counts[1] + counts[2]
    dice: FloatArray = np.where(sizes > 0, 2 * both / np.maximum(sizes, 1), np.nan)
    return dice


def surface_distance(truth: Plane, found: Plane, *, spacing: tuple[float, float] = (1.0, 1.0)) -> float:
    """HD95 of two marked areas (H, W): how far one's surface is from the other's, in units of ``spacing``.

    A surface is all marked pixels with an unmarked neighbour, above, below, left or right (outside the image counts as
    unmarked). The 95th percentile is taken of the distances from each surface to the other, and the larger of the two
    percentiles is given, as MONAI does. NaN if both are empty, the image's diagonal if one is.
    """
    surfaces = [np.argwhere(area & ~binary_erosion(area)) * np.asarray(spacing) for area in (truth, found)]
    if not len(surfaces[0]) and not len(surfaces[1]):
        return float("nan")
    if not len(surfaces[0]) or not len(surfaces[1]):
        return float(np.hypot(truth.shape[0] * spacing[0], truth.shape[1] * spacing[1]))
    there = cKDTree(surfaces[1]).query(surfaces[0])[0]
    back = cKDTree(surfaces[0]).query(surfaces[1])[0]
    return float(max(np.percentile(there, PERCENTILE), np.percentile(back, PERCENTILE)))


def spacing_of(affines: Sequence[Sequence[float]]) -> FloatArray | None:
    """Height and width of a pixel in mm (n, 2), from the records' ``affine`` (4 × 4, row by row, or nothing).

    None as soon as one image has none: millimetres and pixels are never mixed in a mean.
    """
    if not len(affines) or any(len(affine) != 16 for affine in affines):
        return None
    matrices = np.asarray(affines, dtype=np.float64).reshape(-1, 4, 4)
    steps = np.linalg.norm(matrices[:, :3, :2], axis=1)[:, ::-1]  # the affine takes (column, row), images are (row, …)
    return np.ascontiguousarray(steps) if (np.isfinite(steps) & (steps > 0)).all() else None


def estimate_scores(scores: FloatArray, subjects: TextArray, names: Sequence[str], *, seed: int) -> dict[str, Estimate]:
    """Mean over subjects of ``scores`` (S, K), by label's name and for the mean over labels (key ``mean``).

    The mean is taken within each subject over the labels that are defined, then over subjects. Intervals are of
    resampled subjects, the same ones for everything that is estimated under ``seed``.
    """
    columns = dict(zip(names, scores.T, strict=True)) | {MEAN: _mean_defined(scores)}
    return {
        name: estimate_mean(values, subjects, random=generator_for(seed, "subjects for overlap"))
        for name, values in columns.items()
    }


def estimate_gains(
    first: FloatArray, second: FloatArray, subjects: TextArray, names: Sequence[str], *, seed: int
) -> dict[str, Estimate]:
    """As `estimate_scores`, of ``first`` minus ``second`` (S, K): two models, subject by subject.

    A subject and label that is undefined for one of the two is left out.
    """
    return estimate_scores(first - second, subjects, names, seed=seed)


def _mean_defined(values: FloatArray) -> FloatArray:
    """Mean of each row's defined values; NaN where there is none, without a warning."""
    defined = np.isfinite(values)
    number = defined.sum(axis=1)
    means: FloatArray = np.where(number > 0, np.where(defined, values, 0).sum(axis=1) / np.maximum(number, 1), np.nan)
    return means


def _mean_by_subject(values: FloatArray, whose: IntArray, subjects: int) -> FloatArray:
    """Means (S, K) of the defined among values (n, K) of each subject's images."""
    defined = np.isfinite(values)
    sums, number = (np.zeros((subjects, values.shape[1])) for _ in range(2))
    np.add.at(sums, whose, np.where(defined, values, 0))
    np.add.at(number, whose, defined)
    means: FloatArray = np.where(number > 0, sums / np.maximum(number, 1), np.nan)
    return means
