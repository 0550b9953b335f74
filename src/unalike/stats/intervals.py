"""Intervals for shares and for means of clustered values."""

from __future__ import annotations

import math

import numpy as np
from scipy.stats import beta

from unalike.records import Estimate, FloatArray, IntArray, TextArray

REPETITIONS = 2000


def estimate_share(successes: int, trials: int, *, confidence: float = 0.95) -> Estimate:
    """Share of independent trials with its exact interval (Clopper & Pearson 1934).

    ``low`` and ``high`` are each wrong at most (1 − confidence)/2 of the time. No trials: undefined.
    """
    method = "Clopper–Pearson"
    if trials == 0:
        return Estimate(math.nan, math.nan, math.nan, 0, method, confidence)
    tail = (1 - confidence) / 2
    low = 0.0 if successes == 0 else float(beta.ppf(tail, successes, trials - successes + 1))
    high = 1.0 if successes == trials else float(beta.ppf(1 - tail, successes + 1, trials - successes))
    return Estimate(successes / trials, low, high, trials, method, confidence)


def _totals(values: FloatArray, groups: TextArray) -> tuple[FloatArray, FloatArray]:
    """Sum of the defined values and their number, per group that has any."""
    defined = np.isfinite(values)
    names, index = np.unique(groups[defined], return_inverse=True)
    sums = np.bincount(index, weights=values[defined], minlength=len(names)).astype(np.float64)
    return sums, np.bincount(index, minlength=len(names)).astype(np.float64)


def _replicates(sums: FloatArray, counts: FloatArray, random: np.random.Generator) -> FloatArray:
    """Bootstrap replicates of the overall mean when whole groups are drawn with replacement."""
    groups = len(sums)
    drawn: IntArray = random.multinomial(groups, np.full(groups, 1 / groups), size=REPETITIONS)
    replicates: FloatArray = (drawn @ sums) / (drawn @ counts)
    return replicates


def _interval(replicates: FloatArray, confidence: float) -> tuple[float, float]:
    tail = (1 - confidence) / 2
    low, high = np.quantile(replicates, [tail, 1 - tail])
    return float(low), float(high)


def estimate_mean(
    values: FloatArray, groups: TextArray, *, random: np.random.Generator, confidence: float = 0.95
) -> Estimate:
    """Mean over images, with a percentile interval from resampled groups (the subjects).

    ``values`` (n,) may hold NaN (undefined), which is left out; ``groups`` (n,) names each value's subject.
    With one subject there is a value but no interval. Cluster bootstrap: Davison & Hinkley 1997, 3.8.
    """
    method = "bootstrap of subjects"
    sums, counts = _totals(values, groups)
    if len(sums) == 0:
        return Estimate(math.nan, math.nan, math.nan, 0, method, confidence)
    value = float(sums.sum() / counts.sum())
    if len(sums) == 1:
        return Estimate(value, math.nan, math.nan, 1, method, confidence)
    low, high = _interval(_replicates(sums, counts, random), confidence)
    return Estimate(value, low, high, len(sums), method, confidence)


def estimate_difference(
    first: tuple[FloatArray, TextArray],
    second: tuple[FloatArray, TextArray],
    *,
    random: np.random.Generator,
    confidence: float = 0.95,
) -> Estimate:
    """Mean of ``first`` minus mean of ``second`` (values, groups), subjects of each resampled independently."""
    method = "bootstrap of subjects, both sides"
    totals = [_totals(*first), _totals(*second)]
    if any(len(sums) == 0 for sums, _ in totals):
        return Estimate(math.nan, math.nan, math.nan, 0, method, confidence)
    one, two = (sums.sum() / counts.sum() for sums, counts in totals)
    n = min(len(sums) for sums, _ in totals)
    if n == 1:
        return Estimate(float(one - two), math.nan, math.nan, 1, method, confidence)
    replicates = [_replicates(sums, counts, random) for sums, counts in totals]
    low, high = _interval(replicates[0] - replicates[1], confidence)
    return Estimate(float(one - two), low, high, n, method, confidence)
