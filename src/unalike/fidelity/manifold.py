"""Improved precision and recall, density and coverage: are samples where patients are, and patients where samples are?

Around each image of a set lies a ball up to its k-th nearest neighbour in the set. With the balls of real images R and
of synthetic images S:

* precision: share of synthetic images that lie in a ball of R; recall: share of real images that lie in a ball of S
  (Kynkäänniemi et al., "Improved precision and recall metric for assessing generative models", 2019, equations 1, 2);
* density: mean number of balls of R that a synthetic image lies in, over k; coverage: share of balls of R that hold a
  synthetic image (Naeem et al., "Reliable fidelity and diversity metrics for generative models", 2020, equations 3, 5).

A neighbour is an image *of another subject*: slices of one patient are close to one another, and would make tiny balls.
With one image a subject that is the published definition. Balls are closed: on the border is inside.

Squared distances come from float64 matrix products of features from which the mean of both sets is taken, a block of
rows at a time, never a table of all pairs: with 10,000 images of 2,048 numbers on either side the whole process peaked
at 0.9 GiB, both sets included. They are off by rounding, about 10⁻¹⁴ of the squared norms; what is within
`TIE` of these on the border counts as on it, so that equal images are at distance 0 of each other whatever the block.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from unalike.errors import SettingsError
from unalike.fidelity.kernel import row_blocks
from unalike.fidelity.sides import Side, make_sides
from unalike.records import Estimate, FloatArray, TextArray
from unalike.seeds import generator_for
from unalike.stats.intervals import estimate_mean, estimate_share

BLOCK_BYTES = 2**26  # of one block of distances; about three are held at once
TIE = 1e-11  # of the sum of both squared norms
NAMES = ("precision", "recall", "density", "coverage")


@dataclass(frozen=True)
class Manifold:
    """What is said of each image; NaN where the balls it is held against are not defined.

    ``precision`` (m,) is 1 for a synthetic image in a real ball, else 0; ``density`` (m,) how many real balls it lies
    in, over ``density_neighbours``, from 0 on and possibly above 1. ``recall`` (n,) is 1 for a real image in a
    synthetic ball, ``coverage`` (n,) for one in whose ball a synthetic image lies. ``neighbours`` is k of precision and
    recall. Subjects are those of the synthetic (m,) and real (n,) images.
    """

    precision: FloatArray
    recall: FloatArray
    density: FloatArray
    coverage: FloatArray
    synthetic_subjects: TextArray
    real_subjects: TextArray
    neighbours: int
    density_neighbours: int


def measure_manifold(
    real: FloatArray,
    synthetic: FloatArray,
    *,
    real_subjects: TextArray,
    synthetic_subjects: TextArray,
    neighbours: int = 3,
    density_neighbours: int = 5,
) -> Manifold:
    """Precision, recall, density and coverage, image by image, of features ``real`` (n, D) and ``synthetic`` (m, D).

    ``real_subjects`` (n,) and ``synthetic_subjects`` (m,) name each image's subject; each synthetic image drawn by
    itself is a subject of its own. Both sets should hold about equally many images: recall grows with m smaller (balls
    are larger), precision with n smaller.

    Balls of a set are defined if each of its images has k images of other subjects beside it. If not (fewer than k + 1
    subjects with one image each, or no image at all) all that is held against them is NaN, no error: small classes are
    undefined, the others are not. Equal images, or constant features, make balls of radius 0, which hold what is equal.

    Raises `InputError` if the features are not finite or do not fit, `SettingsError` for neighbours below 1.
    """
    if min(neighbours, density_neighbours) < 1:
        raise SettingsError(f"neighbours = {neighbours} and {density_neighbours}: give 1 or more, such as 3 and 5.")
    sides = make_sides(real, synthetic, real_subjects, synthetic_subjects, names=("real", "synthetic"))
    first, second = _centred(*sides)
    radii = [_squared_radii(first, k) for k in (neighbours, density_neighbours)]
    found = _compare(first.features, second.features, radii, _squared_radii(second, neighbours))
    return Manifold(
        precision=found[0],
        recall=found[1],
        density=found[2] / density_neighbours,
        coverage=found[3],
        synthetic_subjects=np.asarray(synthetic_subjects),
        real_subjects=np.asarray(real_subjects),
        neighbours=neighbours,
        density_neighbours=density_neighbours,
    )


def manifold_estimates(manifold: Manifold, *, seed: int, confidence: float = 0.95) -> dict[str, Estimate]:
    """Means over images of ``precision``, ``recall``, ``density`` and ``coverage``, each with an interval.

    Precision and density are means over synthetic images, whose subjects are resampled; recall and coverage over real
    images, whose subjects are. Where all images agree on 0 or 1, resampling would show no doubt, and the exact interval
    of Clopper & Pearson for as many subjects is given. An estimate is undefined where its balls are (`Manifold`).

    The intervals hold for the balls and the other set *as they are*: that another cohort, or other samples, would make
    other balls is left out, and so is that all four depend on the size of both sets. So the same four numbers of
    holdout against train, from as many images, are the yardstick, not 1.
    """
    groups = {"precision": manifold.synthetic_subjects, "density": manifold.synthetic_subjects}
    estimates = {}
    for name in NAMES:
        values, subjects = getattr(manifold, name), groups.get(name, manifold.real_subjects)
        random = generator_for(seed, f"manifold {name}")
        estimate = estimate_mean(values, subjects, random=random, confidence=confidence)
        estimates[name] = estimate if name == "density" else _never_certain(estimate)
    return estimates


def _never_certain(estimate: Estimate) -> Estimate:
    if estimate.n < 1 or estimate.value not in (0.0, 1.0):
        return estimate
    return estimate_share(round(estimate.value) * estimate.n, estimate.n, confidence=estimate.confidence)


def _centred(*sides: Side) -> list[Side]:
    """The same sets around the mean of all their images: distances stay, and norms, which rounding goes by, shrink."""
    images = sum(len(side.features) for side in sides)
    mean = sum(side.features.sum(axis=0) for side in sides) / max(images, 1)
    return [Side(side.features - mean, side.codes, side.subjects) for side in sides]


def _squared_norms(features: FloatArray) -> FloatArray:
    norms: FloatArray = np.einsum("nd,nd->n", features, features)
    return norms


def _squared_distances(x: FloatArray, y: FloatArray, norms: tuple[FloatArray, FloatArray]) -> FloatArray:
    """|x|² + |y|² − 2 x·y of all rows of both (n, m), with ``norms`` (n,) and (m,) for the first two."""
    distances = x @ y.T
    distances *= -2
    distances += norms[0][:, None]
    distances += norms[1]
    return distances


def _squared_radii(side: Side, k: int) -> FloatArray:
    """Squared distance (n,) of each image to the k-th nearest of another subject; NaN unless every image has one."""
    images = len(side.features)
    own = np.bincount(side.codes, minlength=1).max()
    if images - own < k:
        return np.full(images, math.nan)
    norms, radii = _squared_norms(side.features), np.empty(images)
    for rows in row_blocks(images, images, BLOCK_BYTES):
        distances = _squared_distances(side.features[rows], side.features, (norms[rows], norms))
        distances[side.codes[rows, None] == side.codes] = math.inf
        distances.partition(k - 1, axis=1)
        radii[rows] = distances[:, k - 1]
    return np.maximum(radii, 0)


def _compare(
    real: FloatArray, synthetic: FloatArray, real_radii: list[FloatArray], synthetic_radii: FloatArray
) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
    """Precision (m,), recall (n,), number of balls (m,) and coverage (n,) of images, from squared radii."""
    precision, balls = np.zeros(len(synthetic)), np.zeros(len(synthetic))
    recall, coverage = np.zeros(len(real), bool), np.zeros(len(real), bool)
    # What lies on the border but for rounding is inside.
    norms = [(1 - TIE) * _squared_norms(features) for features in (synthetic, real)]
    for rows in row_blocks(len(synthetic), len(real), BLOCK_BYTES):
        distances = _squared_distances(synthetic[rows], real, (norms[0][rows], norms[1]))
        precision[rows] = (distances <= real_radii[0]).any(axis=1)
        inside = distances <= real_radii[1]
        balls[rows] = inside.sum(axis=1)
        coverage |= inside.any(axis=0)
        recall |= (distances <= synthetic_radii[rows, None]).any(axis=0)
    return (
        _defined(precision, real_radii[0]),
        _defined(recall, synthetic_radii),
        _defined(balls, real_radii[1]),
        _defined(coverage, real_radii[1], synthetic),
    )


def _defined(values: np.ndarray, *needed: FloatArray) -> FloatArray:
    """The same numbers; all NaN where one of ``needed`` is empty or not defined."""
    if any(not len(of_set) or np.isnan(of_set).any() for of_set in needed):
        return np.full(len(values), math.nan)
    return values.astype(np.float64)
