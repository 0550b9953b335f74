"""Explanations in numbers: how much few regions say, how stable that is, whether it is the lesion, whether two agree.

All but `measure_faithfulness` look at weights of superpixels (S,) or heat (H, W) alone. A number of one image is NaN
where it is undefined; means over images, with intervals from resampled subjects, are the caller's.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from scipy.stats import hypergeom, rankdata

from unalike.explain.lime import BoolArray, PartlyHidden
from unalike.records import FloatArray, IntArray
from unalike.seeds import generator_for

LEVELS = 10  # steps in which superpixels are hidden or shown
RANDOM_ORDERS = 5  # what hiding in any order does
UNDEFINED = float("nan")


def share_of_top(weights: FloatArray, top: int) -> float:
    """Share of Σ|weight| that the ``top`` superpixels of largest |weight| hold; NaN if all are 0."""
    sizes = np.sort(np.abs(weights))[::-1]
    return float(sizes[:top].sum() / sizes.sum()) if sizes.sum() > 0 else UNDEFINED


def correlate_ranks(first: FloatArray, second: FloatArray) -> float:
    """Spearman's rank correlation (equals share their mean rank); NaN if either is constant."""
    if np.ptp(first) == 0 or np.ptp(second) == 0:
        return UNDEFINED
    return float(np.corrcoef(rankdata(first), rankdata(second))[0, 1])


def overlap_of_top(first: FloatArray, second: FloatArray, top: int) -> float:
    """Jaccard index of the ``top`` superpixels that speak most for the class by one and by the other.

    Equal weights go in the order of their numbers. NaN if all superpixels are among the top, or if either explanation
    is constant and has no top.
    """
    if top >= len(first) or np.ptp(first) == 0 or np.ptp(second) == 0:
        return UNDEFINED
    one, other = (set(np.argsort(-weights, kind="stable")[:top].tolist()) for weights in (first, second))
    return len(one & other) / len(one | other)


def chance_of_top(count: int, top: int) -> float:
    """Expected Jaccard index of two random choices of ``top`` of ``count`` superpixels; NaN if that is all of them."""
    if top >= count:
        return UNDEFINED
    shared = np.arange(top + 1)
    return float((hypergeom.pmf(shared, count, top, top) * shared / (2 * top - shared)).sum())


@dataclass(frozen=True)
class Stability:
    """Agreement of repeated explanations of one image: means over all pairs of repetitions."""

    rank: float
    top: float


def measure_stability(repeated: FloatArray, top: int) -> Stability:
    """Mean pairwise rank correlation and top-``top`` Jaccard index of weights (repetitions, S); NaN for one alone."""
    pairs = list(itertools.combinations(repeated, 2))
    return Stability(
        mean_of([correlate_ranks(first, second) for first, second in pairs]),
        mean_of([overlap_of_top(first, second, top) for first, second in pairs]),
    )


def mean_of(values: list[float]) -> float:
    """Mean of the defined values; NaN if there is none."""
    known = [value for value in values if not np.isnan(value)]
    return float(np.mean(known)) if known else UNDEFINED


@dataclass(frozen=True)
class Overlap:
    """How much heat lies on the lesion, and what heat anywhere would reach.

    ``iou`` intersection over union of the lesion and as many of the hottest pixels; ``iou_chance`` that of as many
    pixels anywhere; ``pointing`` 1 if the hottest pixel is on the lesion (a share, if several are equally hot);
    ``inside`` share of positive heat on the lesion; ``area`` the lesion's share of the image, which is what chance
    gives for both.
    """

    iou: float
    iou_chance: float
    pointing: float
    inside: float
    area: float


def measure_overlap(heat: FloatArray, lesion: BoolArray) -> Overlap:
    """Compare heat (H, W) with a lesion (H, W); all NaN where there is no lesion or nothing but lesion.

    Of pixels equally hot (all of a superpixel are), where only some are needed, each counts for its share. Constant
    heat has no hottest pixel and gives what chance does. Without positive heat ``inside`` is NaN.
    """
    size, pixels = int(lesion.sum()), lesion.size
    if size in {0, pixels}:
        return Overlap(*[UNDEFINED] * 5)
    edge = np.partition(heat.ravel(), pixels - size)[pixels - size]
    above, level = heat > edge, heat == edge
    part = (size - above.sum()) / level.sum()
    shared = (above & lesion).sum() + part * (level & lesion).sum()
    positive = np.maximum(heat, 0.0)
    area = size / pixels
    return Overlap(
        iou=float(shared / (2 * size - shared)),
        iou_chance=area / (2 - area),
        pointing=float(lesion[heat == heat.max()].mean()),
        inside=float(positive[lesion].sum() / positive.sum()) if positive.sum() > 0 else UNDEFINED,
        area=area,
    )


def average_in_segments(heat: FloatArray, segments: IntArray) -> FloatArray:
    """Mean of heat (H, W) in each superpixel (S,), so that any heat can be compared with LIME's weights."""
    sums = np.bincount(segments.ravel(), weights=heat.ravel())
    means: FloatArray = sums / np.bincount(segments.ravel())
    return means


@dataclass(frozen=True)
class Faithfulness:
    """Whether the regions said to matter do (Petsiuk, Das & Saenko 2018).

    ``deletion`` and ``insertion`` are mean probabilities of the class while superpixels are hidden, or shown, most
    important first; the gains are by how much that is lower, or higher, than in random orders. A gain of 0 is chance.
    """

    deletion: float
    insertion: float
    deletion_gain: float
    insertion_gain: float


def measure_faithfulness(view: PartlyHidden, weights: FloatArray, *, target: int, seed: int) -> Faithfulness:
    """Hide and show superpixels in about `LEVELS` steps by ``weights`` (S,), and in random orders."""
    count = view.count
    steps = np.unique(np.linspace(0, count, LEVELS + 1).round().astype(np.int64))
    random = generator_for(seed, "faithfulness")
    ranks = [np.argsort(np.argsort(-weights, kind="stable"))]
    ranks += [random.permutation(count) for _ in range(RANDOM_ORDERS)]
    shown = np.stack(ranks)[:, None, :] < steps[:, None]  # (orders, steps, S)
    asked = np.concatenate([~shown, shown]).reshape(-1, count)
    curves = view.probabilities(asked, target).reshape(2, len(ranks), len(steps))
    areas = np.asarray(np.trapezoid(curves, steps / count, axis=2))
    deletion, insertion = areas[:, 0]
    by_chance = areas[:, 1:].mean(axis=1)
    return Faithfulness(
        float(deletion), float(insertion), float(by_chance[0] - deletion), float(insertion - by_chance[1])
    )
