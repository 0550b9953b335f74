"""One p-value from several measures of similarity, each of which has its own p-value for the same image.

The measures look at the same image, so their p-values depend on one another in an unknown way. What is promised here:

* `combine_bonferroni`, `combine_harmonic`: valid whatever the dependence;
* `combine_cauchy`: valid in the limit of small p-values, see there;
* `pooled_minimum_p_values`: made from the similarities themselves, exactly valid, never larger than Bonferroni, and
  much smaller where the measures agree, because it learns their dependence from the holdout.

"Valid" means: for an image that is no copy, P(p ≤ α) ≤ α for every α between 0 and 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from unalike.errors import InputError
from unalike.records import FloatArray, IntArray, TextArray

_BLOCK = 1 << 22  # pairs of a query and a holdout image that are compared at a time
_SLACK = 1e-9  # sums of shares of subjects err by less; in doubt a holdout image is counted


def _checked(p: FloatArray) -> FloatArray:
    """The p-values as they came, (measures, n), if each is NaN or from 0 to 1."""
    values = np.asarray(p, dtype=np.float64)
    if values.ndim != 2:
        raise InputError(f"p-values have {values.ndim} dimensions, not 2. Pass one row per measure.")
    if np.any((values < 0) | (values > 1)):
        raise InputError("a p-value lies outside 0 to 1. Check what the measure hands over.")
    return values


def combine_bonferroni(p: FloatArray) -> FloatArray:
    """min(1, m · minⱼ pⱼ) of each image, (n,), from ``p`` (measures, n); valid under any dependence (Bonferroni; Dunn
    1961).

    NaN (undefined) is left out and m counts the measures that are defined for the image; none defined gives NaN.
    Which measures are defined must not depend on how small their p-values would have been.
    Raises `InputError` if a p-value lies outside 0 to 1.
    """
    values = _checked(p)
    defined = np.isfinite(values).sum(axis=0)
    smallest = np.where(np.isnan(values), np.inf, values).min(axis=0, initial=np.inf)
    return np.where(defined > 0, np.minimum(np.maximum(defined, 1) * smallest, 1.0), np.nan)


def combine_cauchy(p: FloatArray, *, largest: float = 0.99) -> FloatArray:
    """Cauchy combination of each image, (n,), from ``p`` (measures, n) (Liu & Xie 2020, equal weights).

    T = (1/m) Σⱼ tan((½ − pⱼ)π) and p = ½ − arctan(T)/π. Exact for independent measures and for identical ones; for
    others P(p ≤ α)/α → 1 as α → 0 (their theorem 1, for pairs of normal statistics), so at α = 0.05 it may be a
    little too small.

    tan((½ − p)π) → −∞ as p → 1: one p of exactly 1, common among p-values from a holdout, would swamp any evidence of
    the others. So p-values above ``largest`` count as ``largest``. That makes T larger by at most what a p-value of
    ``largest`` takes away, and the combination smaller than Liu & Xie's; where a guarantee is needed, use
    `combine_bonferroni` or `pooled_minimum_p_values`. NaN is left out; none defined gives NaN. Raises `InputError` if
    a p-value lies outside 0 to 1.
    """
    values = np.minimum(_checked(p), largest)  # NaN stays NaN
    present = np.isfinite(values)
    defined = present.sum(axis=0)
    with np.errstate(divide="ignore"):
        # cot(πp) instead of tan((½ − p)π): ½ − p would lose the digits of a small p.
        terms = 1.0 / np.tan(np.pi * np.where(present, values, 0.5))
    mean = np.where(present, terms, 0.0).sum(axis=0) / np.maximum(defined, 1)
    # ½ − arctan(T)/π without cancellation; T = ∞ (some p = 0) gives 0.
    return np.where(defined > 0, np.arctan2(1.0, mean) / np.pi, np.nan)


def combine_harmonic(p: FloatArray) -> FloatArray:
    """min(1, c · harmonic mean) of each image, (n,), from ``p`` (measures, n); valid under any dependence.

    c = e·ln m for m ≥ 3 defined measures (Vovk & Wang 2020, on the harmonic mean of Wilson 2019), c = m for m ≤ 2.
    For two measures e·ln 2 ≈ 1.88 is not enough: with p₂ = c' − p₁ the mean never exceeds c'/2, hence c ≥ 2; and 2
    suffices, because the harmonic mean is at least the smallest p. For m ≥ 3 it beats Bonferroni when several
    measures agree. NaN is left out; none defined gives NaN. Raises `InputError` if a p-value lies outside 0 to 1.
    """
    values = _checked(p)
    present = np.isfinite(values)
    defined = present.sum(axis=0)
    with np.errstate(divide="ignore"):
        inverse = np.where(present, 1.0 / np.where(present, values, 1.0), 0.0).sum(axis=0)
    m = np.maximum(defined, 1)
    factor = np.where(m <= 2, m, math.e * np.log(m))
    mean = m / np.where(defined > 0, inverse, 1.0)
    return np.where(defined > 0, np.minimum(factor * mean, 1.0), np.nan)


def spokesman(p: FloatArray) -> IntArray:
    """Index of the measure with the smallest p-value of each image, (n,): the first of equals, −1 if none is defined.

    Raises `InputError` if a p-value lies outside 0 to 1.
    """
    values = _checked(p)
    if len(values) == 0:
        return np.full(values.shape[1], -1, dtype=np.int64)
    speaks = np.where(np.isnan(values), np.inf, values).argmin(axis=0).astype(np.int64)
    return np.where(np.isfinite(values).any(axis=0), speaks, -1)


@dataclass(frozen=True)
class _Ladder:
    """One measure of the holdout: its different values as rungs, and what lies on or above each.

    ``rungs`` (r,) are the different values, rising; ``mass`` (r + 1,) the shares of subjects on or above each, falling
    to 0; ``place`` (h,) the rung of each holdout image.
    """

    rungs: FloatArray
    mass: FloatArray
    place: IntArray


def _ladder(values: FloatArray, share: FloatArray) -> _Ladder:
    rungs, place = np.unique(values, return_inverse=True)
    on = np.bincount(place, weights=share, minlength=len(rungs))
    mass = np.append(np.cumsum(on[::-1])[::-1], 0.0)
    return _Ladder(rungs, mass, place.astype(np.int32))


def _lowest_counted(ladder: _Ladder, values: FloatArray, reach: FloatArray, bound: FloatArray) -> IntArray:
    """The rung of one measure from which on holdout images are counted against each query, (n,).

    Those above the query whose mass is at most ``bound``, and those level with it if its mass is below that.
    """
    level = np.searchsorted(ladder.rungs, values, side="left")
    above = np.searchsorted(ladder.rungs, values, side="right")
    start = np.where(reach < bound, level, above)
    few = np.searchsorted(-ladder.mass[:-1], -(bound + _SLACK), side="left")
    return np.maximum(start, few).astype(np.int32)


def _weight_against(ladders: list[_Ladder], lowest: list[IntArray], share: FloatArray) -> FloatArray:
    """Shares of subjects counted against each query: images on or above the lowest rung of at least one measure."""
    n, h = len(lowest[0]), len(share)
    weight = np.zeros(n)
    step = max(_BLOCK // max(h, 1), 1)
    for first in range(0, n, step):
        block = slice(first, first + step)
        counted: npt.NDArray[np.bool_] = ladders[0].place >= lowest[0][block, None]
        for ladder, low in zip(ladders[1:], lowest[1:], strict=True):
            counted |= ladder.place >= low[block, None]
        weight[block] = counted @ share
    return weight


def pooled_minimum_p_values(
    scores: FloatArray, *, holdout: FloatArray, subjects: TextArray, weights: Sequence[float] | None = None
) -> FloatArray:
    """P-value of the smallest of m p-values, itself calibrated on the holdout's subjects; (n,) for n queries.

    ``scores`` (m, n) and ``holdout`` (m, h) are similarities to the training images under m measures, higher is
    closer; ``subjects`` (h,) names each holdout image's subject. A similarity that is not finite counts as lower than
    all others; holdout images without any are left out, and a query without any gives NaN. Without holdout subjects p
    is 1. With one measure this is `subject_p_values`.

    **What is computed.** Let subjects 1 … P be the holdout and wₚⱼ(x) the share of subject p's images at least as
    similar as image x under measure j, Aⱼ(x) = Σₚ wₚⱼ(x), and a = minⱼ Aⱼ(q) for query q. A holdout image y counts
    against q if, under some measure j, it is more similar than q and Aⱼ(y) ≤ a + 1, or as similar as q and Aⱼ(q) < a
    + 1. Then p(q) = (1 + Σₚ share of p's images that count) / (1 + P).

    **Why it is valid.** Take q as a random image of a further subject 0, exchangeable with the others, of whom we may
    see no other image. Among all 1 + P subjects let Tⱼ(x) = Aⱼ(x) + w₀ⱼ(x) and T(x) = minⱼ Tⱼ(x): (1 + P) times the
    smallest of the per-measure p-values. T does not depend on which subject is called 0. So, given the 1 + P sets of
    images, q is a random image of a random subject, and p*(q) = P(T(draw) ≤ T(q)) satisfies P(p* ≤
    α) ≤ α: conformal prediction (Vovk et al. 2005) with subjects as units (Dunn, Wasserman & Ramdas 2023). Subject
    0's share in p* is at most 1. An image y of another subject has T(y) ≤ T(q) only if Tⱼ(y) ≤ Tᵢ(q) for some j and
    all i. If y is less similar than q under j, then Aⱼ(y) > Aⱼ(q) and w₀ⱼ(y) ≥ w₀ⱼ(q), so Tⱼ(y) > Tⱼ(q): impossible.
    If more similar, Aⱼ(y) ≤ Tᵢ(q) ≤ Aᵢ(q) + 1, hence Aⱼ(y) ≤ a + 1. If as similar, Aⱼ(q) ≤ Aᵢ(q) + w₀ᵢ(q) − w₀ⱼ(q) <
    Aᵢ(q) + 1. So p ≥ p*, whatever subject 0's other images are: p is valid, whatever the dependence between measures
    and between images of one subject. If every subject, that of q included, has one image, all w₀ are known and p =
    p*: nothing is lost.

    **How it compares.** With k = a + 1 at most k shares count under each measure, and a under the one that attains a,
    so (a + 1)/(1 + P) = minⱼ pⱼ ≤ p ≤ m·minⱼ pⱼ: never above Bonferroni, and near the lower end where the measures
    agree.

    **Weights.** ``weights`` (m,) above 0 say how much each measure is trusted, fixed before anything is seen: the
    smallest of pⱼ / weightⱼ takes the place of the smallest pⱼ. With Tⱼ = (Aⱼ + w₀ⱼ) / weightⱼ the proof is the same:
    a + 1 becomes weightⱼ · minᵢ (Aᵢ(q) + 1) / weightᵢ. (Level with q: Aⱼ(q) below that.)

    Raises `InputError` if the shapes do not fit. Time O(m·n·h) comparisons of integers, memory a fixed block.
    """
    queries, pool = _checked_pair(scores, holdout, subjects)
    answerable, usable = (np.isfinite(values).any(axis=0) for values in (queries, pool))
    names, owner = np.unique(np.asarray(subjects)[usable], return_inverse=True)
    if len(names) == 0:
        return np.where(answerable, 1.0, np.nan)
    share = 1.0 / np.bincount(owner)[owner]
    # Minus infinity is a value like any other to the proof: undefined is the least similar.
    queries, pool = (np.where(np.isfinite(values), values, -np.inf) for values in (queries, pool[:, usable]))
    ladders = [_ladder(values, share) for values in pool]
    reach = np.stack(
        [ladder.mass[np.searchsorted(ladder.rungs, q)] for ladder, q in zip(ladders, queries, strict=True)]
    )
    trust = np.ones(len(queries)) if weights is None else np.asarray(weights, dtype=np.float64)
    if trust.shape != (len(queries),) or not (trust > 0).all():
        raise InputError(f"{len(queries)} measures need as many weights above 0, not {weights}.")
    bounds = trust[:, None] * ((reach + 1.0) / trust[:, None]).min(axis=0)
    lowest = [_lowest_counted(*measure) for measure in zip(ladders, queries, reach, bounds, strict=True)]
    p = (1.0 + _weight_against(ladders, lowest, share)) / (1.0 + len(names))
    # Summation may overshoot the last bit: a p-value is never above 1.
    return np.where(answerable, np.minimum(p, 1.0), np.nan)


def _checked_pair(scores: FloatArray, holdout: FloatArray, subjects: TextArray) -> tuple[FloatArray, FloatArray]:
    queries, pool = np.asarray(scores, dtype=np.float64), np.asarray(holdout, dtype=np.float64)
    if queries.ndim != 2 or pool.ndim != 2 or len(queries) != len(pool) or len(queries) == 0:
        raise InputError(
            f"scores {queries.shape} and holdout {pool.shape} do not fit. Pass one row per measure in both."
        )
    if pool.shape[1] != len(subjects):
        raise InputError(
            f"{pool.shape[1]} holdout images but {len(subjects)} subjects. Name the subject of each image."
        )
    return queries, pool
