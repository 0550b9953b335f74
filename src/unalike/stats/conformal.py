"""P-values calibrated on held-out subjects, and what a given number of subjects can certify.

The question of each p-value: if this query were an image of one more subject whom the generator never saw,
how often would it come as close to the training images as it does? (Conformal p-values: Vovk et al. 2005; with
subjects instead of images as the exchangeable unit: Dunn, Wasserman & Ramdas 2023.)
"""

from __future__ import annotations

import math

import numpy as np

from unalike.records import FloatArray, TextArray


def subject_p_values(queries: FloatArray, *, holdout: FloatArray, subjects: TextArray) -> FloatArray:
    """p(q) = (1 + Σₚ wₚ(q)) / (1 + P) for each query.

    ``queries`` (n,) and ``holdout`` (m,) are best similarities to the training images; ``subjects`` (m,) names
    each holdout image's subject. wₚ(q) is the share of subject p's images at least as similar as q, so that a
    subject with many slices counts as much as one with few. NaN queries (constant images) give NaN; NaN holdout
    images are left out. Without any holdout subject every p-value is 1.
    """
    defined = np.isfinite(holdout)
    values, owners = holdout[defined], subjects[defined]
    names, index = np.unique(owners, return_inverse=True)
    share = 1.0 / np.bincount(index, minlength=len(names))[index] if len(names) else np.empty(0)
    order = np.argsort(values, kind="stable")
    # above[i]: total weight of the holdout images from the i-th smallest on.
    above = np.append(np.cumsum(share[order][::-1])[::-1], 0.0)
    weight = above[np.searchsorted(values[order], queries, side="left")]
    p = (1.0 + weight) / (1.0 + len(names))
    # Summation may overshoot the last bit: a p-value is never above 1.
    return np.where(np.isfinite(queries), np.minimum(p, 1.0), np.nan)


def benjamini_hochberg(p_values: FloatArray) -> FloatArray:
    """Adjusted p-values (q-values) of Benjamini & Hochberg 1995; NaN stays NaN and does not count.

    Rejecting q ≤ level keeps the expected share of false rejections at or below ``level`` for p-values that are
    independent or depend on one another in the benign way that conformal p-values of independent calibration points do
    (Bates et al. 2023, theorem 2). Averaging within subjects is not covered by that theorem.
    """
    q_values = np.full(len(p_values), np.nan)
    defined = np.flatnonzero(np.isfinite(p_values))
    order = defined[np.argsort(p_values[defined], kind="stable")]
    if len(order):
        scaled = p_values[order] * len(order) / np.arange(1, len(order) + 1)
        q_values[order] = np.minimum(np.minimum.accumulate(scaled[::-1])[::-1], 1.0)
    return q_values


def smallest_p_value(subjects: int) -> float:
    """No p-value from this many holdout subjects is smaller."""
    return 1.0 / (subjects + 1)


def subjects_needed(*, queries: int, level: float) -> int:
    """Holdout subjects with which a single copy among ``queries`` images can be certified at ``level``.

    Benjamini–Hochberg rejects a lone smallest p-value if p ≤ level / queries.
    """
    # Guards against 1/0.05 = 20.000000000000004-like quotients.
    return max(math.ceil(queries / level - 1 - 1e-9), 1)


def chance_beyond(beyond: int, *, queries: int, subjects: int) -> float:
    """Chance that ``beyond`` or more of ``queries`` images exceed all ``subjects`` of the holdout, if none is a copy.

    The largest k of queries + subjects exchangeable values are all queries with probability
    Π (queries − i) / (queries + subjects − i), i = 0 … k − 1. With several images per holdout subject the true
    chance is smaller.
    """
    order = np.arange(beyond)
    return float(np.prod((queries - order) / (queries + subjects - order)))
