"""How many training subjects are copied in all, judged by how often each was seen copied.

Ecologists ask how many species live where a sample was taken. Here a species is a training subject, an individual is
a synthetic image that was flagged as a copy and assigned to that subject, and the sample is everything drawn so far.
Subjects seen copied once (f₁) or twice (f₂) tell of those not yet seen. All of it supposes that draws are independent
and that flagged images are assigned to the right subject: false alarms are mostly singletons, so they inflate every
number here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import gammaln
from scipy.stats import norm

from unalike.errors import InputError
from unalike.records import Estimate, FloatArray, IntArray

REPETITIONS = 500
_BLOCK = 1 << 22  # counts that are drawn at a time


@dataclass(frozen=True)
class _Seen:
    """What a table of copies says: subjects, copies, subjects seen once and twice, and the most there can be."""

    subjects: int
    copies: int
    once: int
    twice: int
    total: float


def _checked(counts: IntArray, total: int | None) -> tuple[IntArray, _Seen]:
    """Counts above zero, and their summary."""
    given = np.asarray(counts)
    if given.ndim != 1 or (given.size and not np.issubdtype(given.dtype, np.integer)) or np.any(given < 0):
        raise InputError("counts are not whole numbers of copies, one per subject. Count the copies of each subject.")
    seen = given[given > 0].astype(np.int64)
    if total is not None and total < len(seen):
        raise InputError(
            f"{len(seen)} subjects were copied but total is {total}. Pass the number of training subjects."
        )
    bound = math.inf if total is None else float(total)
    return seen, _Seen(len(seen), int(seen.sum()), int((seen == 1).sum()), int((seen == 2).sum()), bound)


def _unseen(once: FloatArray, twice: FloatArray, copies: int, most: float) -> FloatArray:
    """f̂₀ = ((n − 1)/n) f₁(f₁ − 1) / (2(f₂ + 1)), at most ``most``: bias-corrected Chao1 (Chao 2005)."""
    found = (copies - 1) / copies * once * (once - 1) / (2 * (twice + 1))
    return np.minimum(found, most)


def _unseen_in(seen: _Seen, most: float) -> float:
    once, twice = (np.array([count], dtype=np.float64) for count in (seen.once, seen.twice))
    return float(_unseen(once, twice, seen.copies, most)[0])


def _chao_variance(seen: _Seen, unseen: float) -> float:
    """Variance of bias-corrected Chao1 by the delta method (Chao 1987; Colwell 2013, appendix B)."""
    a, f1, f2 = (seen.copies - 1) / seen.copies, seen.once, seen.twice
    if f2 == 0:
        largest = seen.subjects + unseen
        return max(a * f1 * (f1 - 1) / 2 + a**2 * f1 * (2 * f1 - 1) ** 2 / 4 - a**2 * f1**4 / (4 * largest), 0.0)
    first = a * f1 * (f1 - 1) / (2 * (f2 + 1))
    second = a**2 * f1 * (2 * f1 - 1) ** 2 / (4 * (f2 + 1) ** 2)
    return first + second + a**2 * f1**2 * f2 * (f1 - 1) ** 2 / (4 * (f2 + 1) ** 4)


def _log_normal(value: float, deviation: float, z: float) -> tuple[float, float]:
    """Bounds of something that cannot be negative (Chao 1987): value ·/÷ exp(z √ln(1 + deviation²/value²))."""
    factor = math.exp(z * math.sqrt(math.log1p((deviation / value) ** 2)))
    return value / factor, value * factor


def _complete_interval(counts: IntArray, z: float) -> tuple[float, float]:
    """Bounds where nothing seems unseen: each subject had a chance of exp(−count) to be missed.

    D/(1 − P) ± z √var/(1 − P) with P = Σ exp(−Xᵢ)/D and var = Σ (e^−Xᵢ − e^−2Xᵢ) − (Σ Xᵢ e^−Xᵢ)²/n (Chao & Shen 2010).
    """
    missed, subjects = np.exp(-counts.astype(np.float64)), len(counts)
    variance = float((missed - missed**2).sum() - (counts * missed).sum() ** 2 / counts.sum())
    kept = 1.0 - float(missed.mean())
    middle, half = subjects / kept, z * math.sqrt(max(variance, 0.0)) / kept
    return max(float(subjects), middle - half), middle + half


def estimate_richness(counts: IntArray, *, total: int | None = None, confidence: float = 0.95) -> Estimate:
    """How many subjects the generator copies at all: those seen and an estimate of those not yet seen.

    ``counts`` (subjects,) holds the copies found of each subject (zeros do not count), ``total`` the number of
    training subjects, which bounds value and interval. Chao1 with its correction for bias (Chao 1984, 2005): S = D +
    ((n − 1)/n) f₁(f₁ − 1) / (2(f₂ + 1)), for D subjects in n copies, f₁ of them seen once and f₂ twice. The interval
    is log-normal (Chao 1987), so that it never excludes subjects that were seen; where f₁ < 2 that of Chao & Shen
    2010. ``n`` is the number of copies.

    Chao1 estimates a lower bound: where subjects are copied at very different rates, those copied almost never are
    missed and the interval covers the truth less often than it says. With fewer than two copies nothing can be said:
    undefined. Raises `InputError` if counts are not whole numbers from 0 or if more subjects were seen than
    ``total``.
    """
    method = "Chao1, bias-corrected, log-normal interval"
    seen, summary = _checked(counts, total)
    if summary.copies < 2:
        return Estimate(math.nan, math.nan, math.nan, summary.copies, method, confidence)
    z = float(norm.isf((1 - confidence) / 2))
    unseen = _unseen_in(summary, math.inf)
    if unseen == 0.0:
        low, high = _complete_interval(seen, z)
    else:
        low, high = (
            summary.subjects + bound for bound in _log_normal(unseen, math.sqrt(_chao_variance(summary, unseen)), z)
        )
    # Subjects are whole: outward to whole numbers, for 50.02 to 51.3 says "50 or 51" and not "never 50".
    low, high = math.floor(low), math.ceil(high)
    value, low, high = (min(float(number), summary.total) for number in (summary.subjects + unseen, low, high))
    return Estimate(value, low, high, summary.copies, method, confidence)


def _further(once: FloatArray, unseen: FloatArray, copies: int, more: float) -> FloatArray:
    """f̂₀ [1 − (1 − f₁/(n f̂₀ + f₁))^m] new subjects in m more copies (Chao et al. 2014, order 0)."""
    rate = np.divide(once, copies * unseen + once, out=np.zeros_like(unseen), where=(unseen > 0) & (once > 0))
    return unseen * -np.expm1(more * np.log1p(-np.minimum(rate, 1 - 1e-12)))


def _assemblage(counts: IntArray, seen: _Seen) -> FloatArray:
    """Chances of subjects, seen and unseen, to be the next one copied: (subjects,), sum 1 (Chao et al. 2014).

    Seen: (Xᵢ/n)(1 − λ(1 − Xᵢ/n)ⁿ), with λ such that they add up to the coverage C of the sample; the rest is spread
    evenly over the estimated number of unseen subjects.
    """
    n, f1, f2 = seen.copies, seen.once, seen.twice
    # Coverage by Good and Turing as improved by Chao & Jost 2012; without doubletons with their f₁(f₁ − 1)/2.
    once = f1 if f2 else max(f1 - 1, 0)
    known = (n - 1) * once / ((n - 1) * once + 2 * max(f2, 1))
    beyond = f1 / n * known
    raw = counts / n
    missed = (1 - raw) ** n
    scale = beyond / float((raw * missed).sum()) if beyond else 0.0
    chances: FloatArray = np.maximum(raw * (1 - scale * missed), 0.0)
    room = seen.total - seen.subjects
    hidden = int(min(max(math.ceil(_unseen_in(seen, room)), 1), room)) if beyond else 0
    chances = np.append(chances, np.full(hidden, beyond / hidden)) if hidden else chances
    chances /= chances.sum()
    return chances


def _resampled(chances: FloatArray, seen: _Seen, more: float, random: np.random.Generator) -> FloatArray:
    """New subjects in ``more`` copies, estimated anew from each of `REPETITIONS` samples of the assemblage."""
    step = max(_BLOCK // len(chances), 1)
    estimates = []
    for first in range(0, REPETITIONS, step):
        drawn = random.multinomial(seen.copies, chances, size=min(step, REPETITIONS - first))
        once, twice, found = ((drawn == 1).sum(axis=1), (drawn == 2).sum(axis=1), (drawn > 0).sum(axis=1))
        room: FloatArray = seen.total - found.astype(np.float64)
        unseen = np.minimum(_unseen(once.astype(np.float64), twice.astype(np.float64), seen.copies, math.inf), room)
        estimates.append(_further(once.astype(np.float64), unseen, seen.copies, more))
    return np.concatenate(estimates)


def expected_new(
    counts: IntArray,
    *,
    factor: float,
    random: np.random.Generator,
    total: int | None = None,
    confidence: float = 0.95,
) -> Estimate:
    """How many subjects not yet seen are to be expected in a further sample ``factor`` times as large as this one.

    ``counts`` (subjects,) holds the copies found of each subject; ``factor`` ≥ 0, and 1 doubles what was drawn.
    Extrapolation of Chao et al. 2014 (order 0): f̂₀ [1 − (1 − f₁/(n f̂₀ + f₁))^m] with m = ``factor`` · n and f̂₀ the
    unseen subjects of `estimate_richness`, at most ``total`` minus those seen. It never exceeds f̂₀, where the series
    of Good & Toulmin 1956 would run away; the authors advise against more than ``factor`` = 2.

    The interval is log-normal, with the standard deviation of the same estimate in `REPETITIONS` samples drawn from
    the estimated assemblage (their bootstrap). It is for the expected number: what one further sample brings scatters
    around it. With fewer than two copies: undefined. Raises `InputError` as `estimate_richness`, or if ``factor`` is
    negative.
    """
    method = "iNEXT extrapolation, bootstrap of an estimated assemblage"
    seen, summary = _checked(counts, total)
    if not (math.isfinite(factor) and factor >= 0):
        raise InputError(
            f"factor is {factor}, not a number from 0. Pass how many times as large the further sample is."
        )
    if summary.copies < 2:
        return Estimate(math.nan, math.nan, math.nan, summary.copies, method, confidence)
    more, room = factor * summary.copies, summary.total - summary.subjects
    once = np.array([summary.once], dtype=np.float64)
    unseen = np.array([_unseen_in(summary, room)])
    value = float(_further(once, unseen, summary.copies, more)[0])
    deviation = float(_resampled(_assemblage(seen, summary), summary, more, random).std(ddof=1))
    z = float(norm.isf((1 - confidence) / 2))
    low, high = _log_normal(value, deviation, z) if value > 0 else (0.0, z * deviation)
    return Estimate(value, low, min(high, room), summary.copies, method, confidence)


def rarefy(counts: IntArray, sizes: IntArray) -> FloatArray:
    """Expected number of different subjects in a random part of the copies, for each of ``sizes`` (k,); (k,).

    Σᵢ [1 − C(n − Xᵢ, size) / C(n, size)], exact for a part drawn without putting back (Hurlbert 1971). ``counts``
    (subjects,) holds the copies of each of the subjects, n of them in all; each size is from 0 to n. Two generators are
    compared fairly at the same size. Raises `InputError` for counts that are not whole numbers from 0, or other sizes.
    """
    seen, summary = _checked(counts, None)
    drawn = np.asarray(sizes)
    if np.any((drawn < 0) | (drawn > summary.copies)):
        raise InputError(f"a size lies outside 0 to {summary.copies}, the number of copies. Pass smaller sizes.")
    kinds, subjects = np.unique(seen, return_counts=True)
    n, left = summary.copies, summary.copies - kinds[:, None]
    possible: npt.NDArray[np.bool_] = left >= drawn[None, :]
    # C(n − X, s)/C(n, s) = (n − X)! (n − s)! / ((n − X − s)! n!)
    log_ratio = gammaln(left + 1.0) + gammaln(n - drawn + 1.0) - gammaln(np.where(possible, left - drawn, 0) + 1.0)
    missed = np.where(possible, np.exp(np.minimum(log_ratio - gammaln(n + 1.0), 0.0)), 0.0)
    expected: FloatArray = (subjects[:, None] * (1.0 - missed)).sum(axis=0)
    return expected
