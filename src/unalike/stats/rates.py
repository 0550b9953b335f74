"""Shares that an audit reports: how many copies there can be at most, and how well members are told from others."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import binom

from unalike.errors import InputError, SettingsError
from unalike.records import Estimate, FloatArray, IntArray, TextArray
from unalike.stats.intervals import REPETITIONS, estimate_mean, estimate_share


def upper_bound_of_copy_rate(
    *, found: int, n: int, sensitivity: Estimate, false_alarm_rate: float = 0.0, confidence: float = 0.95
) -> Estimate:
    """The true share of copies among samples of which ``found`` of ``n`` were flagged, and how large it may be.

    If copies are flagged with chance s and others with chance f, the flagged share is r = s·π + f·(1 − π), so that π
    = (r − f)/(s − f) (Rogan & Gladen 1978), cut to 0 to 1. ``high`` is (r⁺ − f)/(s⁻ − f), with r⁺ the upper bound of
    Clopper & Pearson for found/n and s⁻ = ``sensitivity.low``; each is wrong with chance at most (1 −
    ``confidence``)/2, so both hold with ``confidence`` (Bonferroni). ``low`` is 0: the interval is one-sided. If s⁻
    is undefined or not above f, nothing is excluded and ``high`` is 1.

    ``false_alarm_rate`` f must be a rate that is certain to be reached at least: a larger f gives a smaller bound. The
    level of a test is an upper limit of it, so it must not be passed; 0 is always safe.
    ``found`` from 0 to ``n`` of independent samples; none: undefined. Raises `SettingsError` for other numbers, or
    if the interval of ``sensitivity`` was made with less than ``confidence``.
    """
    method = "Clopper–Pearson over the lower bound of the sensitivity, one-sided"
    _check_rate(found=found, n=n, false_alarm_rate=false_alarm_rate, confidence=confidence)
    if sensitivity.confidence < confidence:
        raise SettingsError(
            f"the sensitivity has {sensitivity.confidence:g} confidence, not {confidence:g}. Estimate it with as much."
        )
    if n == 0:
        return Estimate(math.nan, math.nan, math.nan, 0, method, confidence)
    flagged = estimate_share(found, n, confidence=confidence)
    value = _corrected(flagged.value, sensitivity.value, false_alarm_rate)
    high = _corrected(flagged.high, sensitivity.low, false_alarm_rate)
    return Estimate(value, 0.0, 1.0 if math.isnan(high) else high, n, method, confidence)


def _check_rate(*, found: int, n: int, false_alarm_rate: float, confidence: float) -> None:
    if not 0 <= found <= n:
        raise SettingsError(f"{found} found of {n} samples. Pass numbers with 0 ≤ found ≤ n.")
    if not 0 <= false_alarm_rate < 1:
        raise SettingsError(f"the false alarm rate is {false_alarm_rate}. Pass a share from 0 to below 1.")
    if not 0 < confidence < 1:
        raise SettingsError(f"the confidence is {confidence}. Pass a share between 0 and 1.")


def _corrected(flagged: float, sensitivity: float, false_alarm_rate: float) -> float:
    """Rogan & Gladen's share, from 0 to 1; undefined where flags say nothing."""
    if not sensitivity > false_alarm_rate:  # also if it is NaN
        return math.nan
    return min(max((flagged - false_alarm_rate) / (sensitivity - false_alarm_rate), 0.0), 1.0)


def upper_bound_of_missed(*, removed: int, n: int, caught: int, planted: int, confidence: float = 0.95) -> Estimate:
    """Share of copies among the n − ``removed`` samples that a screening left, and how large it may be.

    The screening removed ``removed`` of ``n`` samples, and caught ``caught`` of ``planted`` planted copies, so that its
    sensitivity s is at least s⁻, the lower bound of Clopper & Pearson, but for a chance of (1 − ``confidence``)/2 =:
    a. Of C copies it caught K ~ Bin(C, s). ``high`` is min(C⁺(``removed``) − ``removed``, n − ``removed``) copies over
    the remainder, where C⁺(r) is the largest C with P(Bin(C, s⁻) ≤ r) ≥ a.

    **Why it holds.** Were K known: P(Bin(C, s) ≤ K) < a has a chance below a, and s⁻ ≤ s makes P(Bin(C, s⁻) ≤ K)
    larger; so C ≤ C⁺(K) and C − K ≤ C⁺(K) − K, but for a chance of 2a in all (Bonferroni: it does not matter whether
    the two depend on one another). K is not known, only ``removed`` ≥ K, since innocent samples are removed as well.
    But C⁺(r) − r never falls as r grows: Bin(C + 1, s) is Bin(C, s) and at most one more, so P(Bin(C + 1, s) ≤ r + 1)
    ≥ P(Bin(C, s) ≤ r), and with C = C⁺(r) it follows that C⁺(r + 1) ≥ C⁺(r) + 1. So C − K ≤ C⁺(removed) − removed:
    false alarms make the bound larger, never smaller. Copies that were removed for other reasons than the rule whose
    sensitivity was measured only lower what remains, and count among ``removed`` like false alarms.

    ``value`` puts ŝ = caught/planted and ``removed`` copies in their place: removed·(1 − ŝ)/ŝ over the remainder, cut
    to 1; undefined if ŝ is. ``low`` is 0: the interval is one-sided. Nothing planted, or none of them caught, excludes
    nothing: ``high`` is 1. ``n`` of the estimate is the remainder; nothing remains: undefined.

    The copies must be caught independently of one another, as the planted ones are: samples that are drawn each for
    itself, and copies changed no more than the planted ones. Raises `SettingsError` for numbers that make no sense.
    """
    method = "missed copies, binomial over the lower bound of the sensitivity, one-sided"
    _check_screened(removed=removed, n=n, caught=caught, planted=planted, confidence=confidence)
    remain = n - removed
    if remain == 0:
        return Estimate(math.nan, math.nan, math.nan, 0, method, confidence)
    sensitivity = estimate_share(caught, planted, confidence=confidence)
    value = min(removed * (planted - caught) / caught / remain, 1.0) if caught else math.nan
    least = sensitivity.low if planted else 0.0
    most = _most_copies(removed, n, least, (1 - confidence) / 2)
    return Estimate(value, 0.0, min(most - removed, remain) / remain, remain, method, confidence)


def _check_screened(*, removed: int, n: int, caught: int, planted: int, confidence: float) -> None:
    if not 0 <= removed <= n:
        raise SettingsError(f"{removed} removed of {n} samples. Pass numbers with 0 ≤ removed ≤ n.")
    if not 0 <= caught <= planted:
        raise SettingsError(f"{caught} caught of {planted} planted copies. Pass numbers with 0 ≤ caught ≤ planted.")
    if not 0 < confidence < 1:
        raise SettingsError(f"the confidence is {confidence}. Pass a share between 0 and 1.")


def _most_copies(caught: int, n: int, sensitivity: float, tail: float) -> int:
    """The largest C ≤ n with P(Bin(C, sensitivity) ≤ caught) ≥ tail: bisection, for it falls in C."""
    tail *= 1 - 1e-9  # rounding may make the bound larger, never smaller

    def possible(copies: int) -> bool:
        return bool(binom.cdf(caught, copies, sensitivity) >= tail)

    if possible(n):
        return n
    low, high = caught, n  # caught copies are always possible
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if possible(middle) else (low, middle)
    return low


def closer_share(
    to_train: FloatArray,
    to_holdout: FloatArray,
    groups: TextArray,
    *,
    random: np.random.Generator,
    confidence: float = 0.95,
) -> Estimate:
    """Share of synthetic images whose best match lies in ``to_train`` rather than in a holdout of the same size.

    ``to_train`` and ``to_holdout`` (n,) are each image's highest similarity to either set, ties count one half, NaN
    in either leaves the image out. ``groups`` (n,) names what was drawn independently: each image's own name, or a
    name shared by images drawn from one start. One half is expected of a generator that memorized nothing, if both
    sets hold equally many images of equally many subjects of one population (the fair coin of Meehan, Chaudhuri &
    Dasgupta 2020).

    Bootstrap of groups; if all images say the same, resampling shows no doubt and the exact interval of Clopper &
    Pearson for as many groups is given instead. The two sets are taken as they are: which subjects fell into which is
    no part of the interval. Raises `InputError` if the lengths differ.
    """
    train, holdout = np.asarray(to_train, np.float64), np.asarray(to_holdout, np.float64)
    if not train.shape == holdout.shape == np.shape(groups) or train.ndim != 1:
        raise InputError("similarities and groups differ in length. Pass one of each per synthetic image.")
    won = (train > holdout) + 0.5 * (train == holdout)
    won[np.isnan(train) | np.isnan(holdout)] = np.nan
    return _never_certain(estimate_mean(won, groups, random=random, confidence=confidence))


def _never_certain(estimate: Estimate) -> Estimate:
    """The exact interval for n units that all agree, where the bootstrap would claim to be certain of 0 or 1."""
    if estimate.n < 1 or estimate.value not in (0.0, 1.0) or estimate.low < estimate.high:
        return estimate
    exact = estimate_share(round(estimate.value) * estimate.n, estimate.n, confidence=estimate.confidence)
    return Estimate(estimate.value, exact.low, exact.high, estimate.n, exact.method, estimate.confidence)


@dataclass(frozen=True)
class _Scores:
    """Defined scores, falling, with the number of each one's subject, and how many subjects there are."""

    values: FloatArray
    owner: IntArray
    subjects: int

    @property
    def one_each(self) -> bool:
        return self.subjects == len(self.values)


def _scores(values: FloatArray, groups: TextArray) -> _Scores:
    given = np.asarray(values, np.float64)
    if given.ndim != 1 or given.shape != np.shape(groups):
        raise InputError("scores and groups differ in length. Pass one subject per score.")
    defined = ~np.isnan(given)
    order = np.argsort(-given[defined], kind="stable")
    names, owner = np.unique(np.asarray(groups)[defined], return_inverse=True)
    return _Scores(given[defined][order], owner[order].astype(np.int64), len(names))


def _redrawn(scores: _Scores, random: np.random.Generator) -> FloatArray:
    """How often each score occurs when as many subjects are drawn with replacement; (scores,)."""
    times = random.multinomial(scores.subjects, np.full(scores.subjects, 1 / scores.subjects))
    weights: FloatArray = times[scores.owner].astype(np.float64)
    return weights


def _threshold(others: _Scores, weights: FloatArray, rate: float) -> float:
    """The lowest score that at most ⌊rate · W⌋ of the others, W in all, exceed."""
    allowed = math.floor(rate * weights.sum() + 1e-9)  # 0.001 · 3000 may fall just short of 3
    first = int(np.searchsorted(np.cumsum(weights), allowed, side="right"))
    return float(others.values[first])


def _shares_above(
    members: _Scores, others: _Scores, weights: tuple[FloatArray, FloatArray], rates: list[float]
) -> FloatArray:
    """Weighted share of members above the threshold of each rate; (rates,)."""
    total = np.append(0.0, np.cumsum(weights[0]))
    above = [np.searchsorted(-members.values, -_threshold(others, weights[1], rate), side="left") for rate in rates]
    shares: FloatArray = total[above] / total[-1]
    return shares


def true_positive_rate_at(
    members: FloatArray,
    others: FloatArray,
    *,
    member_groups: TextArray,
    other_groups: TextArray,
    random: np.random.Generator,
    rates: Sequence[float] = (0.001, 0.01),
    confidence: float = 0.95,
) -> list[Estimate]:
    """Share of members told apart when at most a share of ``rates`` of the others is mistaken for members.

    ``members`` (n,) and ``others`` (m,) are scores, higher for those believed to be members (of the training set),
    and ``member_groups``, ``other_groups`` name each one's subject. NaN scores are left out. One estimate per rate,
    as Carlini et al. 2022 ask of membership inference: what counts is whether some are certain, not the average. A
    member is told apart if its score is above the lowest threshold that at most ⌊rate · m⌋ of the others exceed; ties
    are never told apart. A rate of which the others' subjects are too few (rate · subjects < 1) cannot be resolved:
    undefined, NaN.

    With one score per member and per other, the interval is that of Clopper & Pearson at this threshold, whose own
    doubt is left out; otherwise both sides' subjects are resampled and the threshold set anew each time. If all
    images agree the exact interval of as many subjects is given, since resampling would show no doubt. ``n`` counts
    members' subjects. Raises `InputError` if lengths differ, `SettingsError` if a rate is not between 0 and 1.
    """
    told, mistaken = _scores(members, member_groups), _scores(others, other_groups)
    if any(not 0 < rate < 1 for rate in rates):
        raise SettingsError(f"a rate of {tuple(rates)} is not between 0 and 1. Pass shares such as 0.01.")
    resolved = [rate for rate in rates if told.subjects and rate * mistaken.subjects + 1e-9 >= 1]
    found = dict(zip(resolved, _told_apart(told, mistaken, resolved, random, confidence), strict=True))
    unresolved = Estimate(math.nan, math.nan, math.nan, told.subjects, "cannot be resolved", confidence)
    return [found.get(rate, unresolved) for rate in rates]


def _told_apart(
    members: _Scores, others: _Scores, rates: list[float], random: np.random.Generator, confidence: float
) -> list[Estimate]:
    if not rates:
        return []
    whole = (np.ones(len(members.values)), np.ones(len(others.values)))
    values = _shares_above(members, others, whole, rates)
    n = members.subjects
    if members.one_each and others.one_each:
        return [estimate_share(round(value * n), n, confidence=confidence) for value in values]
    drawn = ((_redrawn(members, random), _redrawn(others, random)) for _ in range(REPETITIONS))
    replicates = np.stack([_shares_above(members, others, weights, rates) for weights in drawn])
    return [
        _never_certain(_from_replicates(float(value), column, (members, others), confidence))
        for value, column in zip(values, replicates.T, strict=True)
    ]


def _from_replicates(
    value: float, replicates: FloatArray, sides: tuple[_Scores, _Scores], confidence: float
) -> Estimate:
    """Percentile interval; none where a side has one subject, which says nothing of other subjects."""
    low, high = np.quantile(replicates, [(1 - confidence) / 2, (1 + confidence) / 2])
    if min(side.subjects for side in sides) < 2:
        low = high = math.nan
    return Estimate(value, float(low), float(high), sides[0].subjects, "bootstrap of subjects, both sides", confidence)


def auc_estimate(
    members: FloatArray,
    others: FloatArray,
    *,
    member_groups: TextArray,
    other_groups: TextArray,
    random: np.random.Generator,
    confidence: float = 0.95,
) -> Estimate:
    """Chance that a random member scores higher than a random other, ties one half: the area under the ROC curve.

    Arguments as in `true_positive_rate_at`. Mann & Whitney's U over n·m (Bamber 1975), with a percentile interval
    from resampled subjects of both sides. If all members lie above all others (or below), resampling shows no doubt;
    then the exact interval of Clopper & Pearson is given for as many pairs as can be formed without using a subject
    twice: each pair is right with the chance asked for, so that all of them are by luck at most that often. One side
    without scores: undefined. ``n`` is the smaller number of subjects. Raises `InputError` if lengths differ.
    """
    told, mistaken = _scores(members, member_groups), _scores(others, other_groups)
    n = min(told.subjects, mistaken.subjects)
    if n == 0:
        return Estimate(math.nan, math.nan, math.nan, 0, "bootstrap of subjects, both sides", confidence)
    ranks = _ranks(told, mistaken)
    value = _area(ranks, np.ones(len(told.values)), np.ones(len(mistaken.values)))
    replicates = np.array(
        [_area(ranks, _redrawn(told, random), _redrawn(mistaken, random)) for _ in range(REPETITIONS)]
    )
    estimate = _from_replicates(value, replicates, (told, mistaken), confidence)
    estimate = Estimate(value, estimate.low, estimate.high, n, estimate.method, confidence)
    return _never_certain(estimate)


def _ranks(members: _Scores, others: _Scores) -> tuple[IntArray, IntArray]:
    """How many others score higher than each member, and how many at least as high; (members,) each."""
    higher = np.searchsorted(-others.values, -members.values, side="left").astype(np.int64)
    return higher, np.searchsorted(-others.values, -members.values, side="right").astype(np.int64)


def _area(ranks: tuple[IntArray, IntArray], members: FloatArray, others: FloatArray) -> float:
    """Weighted share of pairs in which the member is higher, ties one half; weights of members and others."""
    total = np.append(0.0, np.cumsum(others))  # of those from the highest down
    beaten = total[-1] - (total[ranks[0]] + total[ranks[1]]) / 2
    return float(members @ beaten / (members.sum() * total[-1]))
