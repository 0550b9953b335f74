"""Bounds and shares by hand, against brute force, and how often the intervals cover the truth."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, mannwhitneyu, norm

from unalike.errors import InputError, SettingsError
from unalike.records import Estimate, FloatArray, TextArray
from unalike.stats.intervals import estimate_share
from unalike.stats.rates import (
    auc_estimate,
    closer_share,
    true_positive_rate_at,
    upper_bound_of_copy_rate,
    upper_bound_of_missed,
)

SURE = Estimate(1.0, 1.0, 1.0, 100, "given")
HALF = Estimate(0.8, 0.5, 0.9, 100, "given")


def _random() -> np.random.Generator:
    return np.random.default_rng(0)


def _names(n: int) -> TextArray:
    return np.arange(n).astype(str)


# The bound of the copy rate


def test_nothing_found_with_a_perfect_detector_is_the_exact_bound() -> None:
    bound = upper_bound_of_copy_rate(found=0, n=200, sensitivity=SURE)
    assert (bound.value, bound.low, bound.n) == (0.0, 0.0, 200)
    assert bound.high == pytest.approx(1 - 0.025 ** (1 / 200))


def test_half_the_sensitivity_doubles_the_bound() -> None:
    bound = upper_bound_of_copy_rate(found=4, n=100, sensitivity=HALF)
    assert bound.value == pytest.approx(0.05)
    assert bound.high == pytest.approx(2 * estimate_share(4, 100).high)


def test_certain_false_alarms_are_taken_off() -> None:
    """(0.10 − 0.02)/(0.8 − 0.02), and the same for the bounds."""
    bound = upper_bound_of_copy_rate(found=10, n=100, sensitivity=HALF, false_alarm_rate=0.02)
    assert bound.value == pytest.approx(0.08 / 0.78)
    assert bound.high == pytest.approx((estimate_share(10, 100).high - 0.02) / 0.48)


def test_a_detector_that_may_see_nothing_excludes_nothing() -> None:
    for low in (0.0, math.nan):
        blind = Estimate(0.3, low, 0.9, 3, "given")
        assert upper_bound_of_copy_rate(found=0, n=1000, sensitivity=blind).high == 1.0
    assert upper_bound_of_copy_rate(found=90, n=100, sensitivity=HALF).high == 1.0
    assert math.isnan(upper_bound_of_copy_rate(found=0, n=0, sensitivity=SURE).value)


@pytest.mark.parametrize(
    "wrong",
    [
        {"found": 3, "n": 2},
        {"found": -1, "n": 2},
        {"found": 0, "n": 2, "false_alarm_rate": 1.0},
        {"found": 0, "n": 2, "confidence": 1.0},
        {"found": 0, "n": 2, "confidence": 0.99},  # more than the sensitivity's own
    ],
)
def test_numbers_that_make_no_sense(wrong: dict[str, float]) -> None:
    with pytest.raises(SettingsError):
        upper_bound_of_copy_rate(sensitivity=SURE, **wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(("rate", "caught"), [(0.02, 0.6), (0.2, 0.9)])
def test_the_bound_holds_as_often_as_promised(rate: float, caught: float) -> None:
    random, rounds = _random(), 800
    holds = []
    for _ in range(rounds):
        sensitivity = estimate_share(int(random.binomial(60, caught)), 60)
        found = int(random.binomial(300, rate * caught))
        holds.append(upper_bound_of_copy_rate(found=found, n=300, sensitivity=sensitivity).high >= rate)
    assert np.mean(holds) >= 0.95


@given(st.integers(0, 50), st.floats(0.05, 1.0), st.floats(0, 0.04))
def test_the_bound_is_a_share_and_never_below_the_estimate(found: int, low: float, alarms: float) -> None:
    sensitivity = Estimate((1 + low) / 2, low, 1.0, 20, "given")
    bound = upper_bound_of_copy_rate(found=found, n=50, sensitivity=sensitivity, false_alarm_rate=alarms)
    assert 0 <= bound.value <= bound.high <= 1


# Closer to train than to a holdout of the same size


def test_closer_share_by_hand() -> None:
    """Won, lost, tied, won; one undefined: 2.5/4."""
    train = np.array([0.9, 0.1, 0.5, 0.8, np.nan])
    holdout = np.array([0.2, 0.3, 0.5, 0.7, 0.1])
    share = closer_share(train, holdout, _names(5), random=_random())
    assert share.value == 2.5 / 4
    assert share.low < 0.5 < share.high
    assert share.n == 4


def test_all_closer_to_train_is_still_not_certain() -> None:
    share = closer_share(np.ones(20), np.zeros(20), _names(20), random=_random())
    assert (share.value, share.high) == (1.0, 1.0)
    assert share.low == pytest.approx(0.025 ** (1 / 20))
    with pytest.raises(InputError, match="differ in length"):
        closer_share(np.ones(2), np.ones(3), _names(2), random=_random())


def test_closer_share_of_a_generator_that_memorized_nothing_is_one_half() -> None:
    random, covered = np.random.default_rng(1), []
    for _ in range(100):
        groups = np.repeat(_names(40), 3)
        start = np.repeat(random.normal(size=40), 3)
        train, holdout = (start + random.normal(size=120) for _ in range(2))
        share = closer_share(train, holdout, groups, random=random)
        covered.append(share.low <= 0.5 <= share.high)
    assert np.mean(covered) >= 0.88


# Members and others


def _rates(members: FloatArray, others: FloatArray, rates: tuple[float, ...]) -> list[Estimate]:
    return true_positive_rate_at(
        members,
        others,
        member_groups=_names(len(members)),
        other_groups=_names(len(others)),
        random=_random(),
        rates=rates,
    )


def test_true_positive_rates_by_hand() -> None:
    """Others 0 … 99. A rate of 0.01 lets one pass, so above 98; 0.05 five, so above 94; 0.001 cannot be resolved."""
    members = np.array([98.0, 98.5, 99.5, 94.5, 10.0, np.nan])
    tight, middle, wide = _rates(members, np.arange(100.0), (0.001, 0.01, 0.05))
    assert math.isnan(tight.value)
    assert tight.method == "cannot be resolved"
    assert (middle.value, middle.n) == (2 / 5, 5)
    assert (middle.low, middle.high) == (estimate_share(2, 5).low, estimate_share(2, 5).high)
    assert wide.value == 4 / 5


def test_ties_are_never_told_apart() -> None:
    """Ten others share the highest score: none may be exceeded by calling them members."""
    others = np.append(np.zeros(90), np.ones(10))
    assert _rates(np.array([1.0, 1.0, 2.0]), others, (0.05,))[0].value == pytest.approx(1 / 3)
    assert _rates(np.array([1.0, 1.0, 2.0]), others, (0.1,))[0].value == 1.0


def test_the_rate_of_three_in_three_thousand_lets_three_pass() -> None:
    members = np.array([2996.5, 2995.5])
    assert _rates(members, np.arange(3000.0), (0.001,))[0].value == 0.5


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, 9), min_size=1, max_size=20),
    st.lists(st.integers(0, 9), min_size=2, max_size=40),
    st.sampled_from([0.05, 0.1, 0.5]),
)
def test_true_positive_rates_equal_brute_force(told: list[int], mistaken: list[int], rate: float) -> None:
    members, others = np.array(told, float), np.array(mistaken, float)
    (estimate,) = _rates(members, others, (rate,))
    if rate * len(others) < 1:
        assert math.isnan(estimate.value)
        return
    allowed = [t for t in others if (others > t).sum() <= math.floor(rate * len(others) + 1e-9)]
    assert estimate.value == pytest.approx(np.mean(members > min(allowed)))
    assert estimate.low <= estimate.value <= estimate.high


def test_resolution_and_doubt_count_subjects_not_images() -> None:
    random = _random()
    members, others = random.normal(1, 1, 400), random.normal(0, 1, 400)
    groups = np.repeat(_names(40), 10)
    estimates = true_positive_rate_at(
        members, others, member_groups=groups, other_groups=groups, random=random, rates=(0.01, 0.1)
    )
    assert math.isnan(estimates[0].value)
    assert estimates[1].method == "bootstrap of subjects, both sides"
    assert estimates[1].low < estimates[1].value < estimates[1].high
    assert estimates[1].n == 40
    apart = true_positive_rate_at(
        others + 99, others, member_groups=groups, other_groups=groups, random=random, rates=(0.1,)
    )
    assert apart[0].value == 1.0
    assert apart[0].low == pytest.approx(0.025 ** (1 / 40))


def test_rates_and_lengths_that_make_no_sense() -> None:
    with pytest.raises(SettingsError, match="between 0 and 1"):
        _rates(np.ones(3), np.ones(3), (0.0,))
    with pytest.raises(InputError, match="differ in length"):
        auc_estimate(np.ones(3), np.ones(3), member_groups=_names(2), other_groups=_names(3), random=_random())
    assert math.isnan(_rates(np.array([np.nan]), np.arange(100.0), (0.1,))[0].value)


def _auc(members: FloatArray, others: FloatArray) -> Estimate:
    return auc_estimate(
        members, others, member_groups=_names(len(members)), other_groups=_names(len(others)), random=_random()
    )


def test_area_by_hand() -> None:
    """Pairs of (3, 1) with (2, 1, 0): 3 wins, then 0, ½, 1: 4.5/6."""
    area = _auc(np.array([3.0, 1.0]), np.array([2.0, 1.0, 0.0]))
    assert area.value == 4.5 / 6
    assert area.n == 2


@settings(max_examples=10, deadline=None)
@given(
    st.lists(st.integers(0, 9), min_size=1, max_size=20),
    st.lists(st.integers(0, 9), min_size=1, max_size=20),
)
def test_area_equals_scipys_u(told: list[int], mistaken: list[int]) -> None:
    members, others = np.array(told, float), np.array(mistaken, float)
    wanted = mannwhitneyu(members, others, method="asymptotic").statistic / (len(members) * len(others))
    assert _auc(members, others).value == pytest.approx(wanted)


def test_perfectly_told_apart_is_still_not_certain() -> None:
    area = _auc(np.arange(10.0) + 50, np.arange(30.0))
    assert (area.value, area.high, area.n) == (1.0, 1.0, 10)
    assert area.low == pytest.approx(0.025 ** (1 / 10))
    assert math.isnan(_auc(np.array([np.nan]), np.arange(3.0)).value)


def test_the_area_of_shifted_normals_is_covered() -> None:
    """P(m > o) = Φ(1/√(2·(1 + ½²))) for two parts, of the subject (variance 1) and of the image (¼), shifted by 1."""
    random, truth, covered = np.random.default_rng(2), norm.cdf(1 / math.sqrt(2.5)), []
    groups = np.repeat(_names(40), 4)
    for _ in range(40):
        others, members = (
            np.repeat(random.normal(shift, 1, 40), 4) + random.normal(0, 0.5, 160) for shift in (0.0, 1.0)
        )
        area = auc_estimate(members, others, member_groups=groups, other_groups=groups, random=random)
        covered.append(area.low <= truth <= area.high)
    assert np.mean(covered) >= 0.85


# Copies that a screening missed


def _covered(*, copies: int, n: int, caught_share: float, planted: int, alarms: int) -> float:
    """Exact chance that the bound holds: every number of planted and of true copies caught, weighed by its chance.

    ``alarms`` innocent samples are removed beside the copies, or as many as there are.
    """
    holds = 0.0
    for caught in range(planted + 1):
        chance = binom.pmf(caught, planted, caught_share)
        if chance < 1e-9:
            continue  # counts as not covered
        for found in range(copies + 1):
            removed = found + min(alarms, n - copies)
            bound = upper_bound_of_missed(removed=removed, n=n, caught=caught, planted=planted)
            missed = (copies - found) / (n - removed) if n > removed else 0.0
            if not bound.high < missed - 1e-12:  # nothing remains: nothing can be missed
                holds += chance * binom.pmf(found, copies, caught_share)
    return float(holds)


@pytest.mark.parametrize("copies", [0, 1, 6])
@pytest.mark.parametrize("caught_share", [0.3, 0.85, 0.97])
@pytest.mark.parametrize(("planted", "alarms"), [(8, 0), (8, 5), (24, 2)])
def test_the_bound_of_missed_copies_holds_exactly_as_often_as_promised(
    copies: int, caught_share: float, planted: int, alarms: int
) -> None:
    covered = _covered(copies=copies, n=60, caught_share=caught_share, planted=planted, alarms=alarms)
    assert covered >= 0.95 - 1e-6


def test_the_bound_of_missed_copies_holds_in_simulation_with_random_false_alarms() -> None:
    random, rounds, n, copies = _random(), 1500, 200, 15
    holds = 0
    for _ in range(rounds):
        caught_share = random.uniform(0.5, 1.0)
        found = int(random.binomial(copies, caught_share))
        removed = found + int(random.binomial(n - copies, 0.02))
        caught = int(random.binomial(64, caught_share))
        bound = upper_bound_of_missed(removed=removed, n=n, caught=caught, planted=64)
        holds += bound.high * (n - removed) >= copies - found - 1e-9
    assert holds / rounds >= 0.95 - 3 * math.sqrt(0.05 * 0.95 / rounds)


def test_nothing_removed_and_all_planted_caught_leaves_one_copy_at_most() -> None:
    bound = upper_bound_of_missed(removed=0, n=1000, caught=64, planted=64)
    assert (bound.value, bound.low, bound.n) == (0.0, 0.0, 1000)
    assert bound.high == 1 / 1000
    # 0.025^(1/146) > 0.975: then even a single copy would have been caught but for a chance below 2.5 %.
    assert upper_bound_of_missed(removed=0, n=1000, caught=146, planted=146).high == 0.0
    assert upper_bound_of_missed(removed=0, n=1000, caught=145, planted=145).high == 1 / 1000


def test_the_bound_of_missed_copies_is_what_a_plain_search_finds() -> None:
    for removed, n, caught, planted in (
        (0, 40, 5, 10),
        (3, 40, 9, 10),
        (7, 300, 60, 64),
        (20, 25, 30, 64),
        (2, 9, 1, 4),
    ):
        low = estimate_share(caught, planted).low
        most = max(c for c in range(removed, n + 1) if binom.cdf(removed, c, low) >= 0.025)
        bound = upper_bound_of_missed(removed=removed, n=n, caught=caught, planted=planted)
        assert round(bound.high * (n - removed)) == most - removed
        plug_in = removed * (1 - caught / planted) / (caught / planted) / (n - removed)
        assert bound.value == pytest.approx(min(plug_in, 1.0))


def test_a_screening_that_catches_nothing_excludes_nothing() -> None:
    for caught, planted in ((0, 64), (0, 0)):
        bound = upper_bound_of_missed(removed=2, n=50, caught=caught, planted=planted)
        assert math.isnan(bound.value)
        assert (bound.low, bound.high, bound.n) == (0.0, 1.0, 48)


def test_where_nothing_remains_the_share_missed_is_undefined() -> None:
    bound = upper_bound_of_missed(removed=5, n=5, caught=64, planted=64)
    assert bound.n == 0
    assert math.isnan(bound.value)
    assert math.isnan(bound.high)


@given(
    n=st.integers(1, 400),
    share=st.floats(0, 1),
    planted=st.integers(1, 100),
    found=st.floats(0, 1),
)
@settings(max_examples=60, deadline=None)
def test_further_removals_never_lower_the_number_that_may_be_missed(
    n: int, share: float, planted: int, found: float
) -> None:
    removed, caught = int(share * (n - 1)), round(found * planted)

    def most(removed: int) -> float:
        bound = upper_bound_of_missed(removed=removed, n=n, caught=caught, planted=planted)
        return 0.0 if bound.n == 0 else bound.high * bound.n

    # But for those that are no longer there to be missed.
    assert most(removed + 1) >= min(most(removed), n - removed - 1) - 1e-9
    fewer = upper_bound_of_missed(removed=removed, n=n, caught=max(caught - 1, 0), planted=planted)
    assert fewer.high * fewer.n >= most(removed) - 1e-9


@pytest.mark.parametrize(
    "wrong",
    [
        {"removed": 3, "n": 2},
        {"removed": -1},
        {"caught": 65},
        {"caught": -1},
        {"confidence": 0.0},
    ],
)
def test_screenings_that_make_no_sense(wrong: dict[str, float]) -> None:
    with pytest.raises(SettingsError):
        upper_bound_of_missed(**{"removed": 0, "n": 10, "caught": 1, "planted": 64, **wrong})  # type: ignore[arg-type]
