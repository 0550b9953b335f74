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
    """Bound of the chance that ``beyond`` or more of ``queries`` images have the smallest p-value, if none is a copy.

    Each has it with a chance of at most 1/(P + 1), so queries/(P + 1) of them are expected at most, and Markov's
    inequality bounds the chance of k by that over k, however they depend on one another.
    """
    return min(queries * smallest_p_value(subjects) / beyond, 1.0) if beyond else 1.0
