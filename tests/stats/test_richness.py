"""Unseen subjects: by hand, against brute force, and how often the intervals cover the truth."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unalike.errors import InputError
from unalike.records import FloatArray
from unalike.stats.richness import estimate_richness, expected_new, rarefy


def _random() -> np.random.Generator:
    return np.random.default_rng(0)


def test_chao1_by_hand() -> None:
    """n = 10, D = 5, f₁ = 3, f₂ = 1: f̂₀ = 0.9 · 3 · 2 / (2 · 2) = 1.35.

    Variance 0.9·6/4 + 0.81·3·25/16 + 0.81·9·1·4/64 = 1.35 + 3.796875 + 0.455625 = 5.6025.
    """
    estimate = estimate_richness(np.array([5, 2, 1, 1, 1, 0]))
    assert estimate.value == pytest.approx(6.35)
    factor = math.exp(1.959964 * math.sqrt(math.log(1 + 5.6025 / 1.35**2)))
    assert estimate.low == math.floor(5 + 1.35 / factor)
    assert estimate.high == math.ceil(5 + 1.35 * factor)
    assert estimate.n == 10


def test_all_singletons() -> None:
    """Nobody seen twice: 6 + (5/6) · 6 · 5 / 2 = 18.5, and next to no upper bound but the number of subjects."""
    estimate = estimate_richness(np.ones(6, np.int64), total=40)
    assert estimate.value == pytest.approx(18.5)
    assert 6 <= estimate.low <= 10
    assert estimate.high == 40


def test_one_subject_only() -> None:
    estimate = estimate_richness(np.array([30]))
    assert (estimate.value, estimate.low) == (1.0, 1.0)
    assert estimate.high <= 2.0
    new = expected_new(np.array([30]), factor=1, random=_random())
    assert (new.value, new.low, new.high) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize("counts", [[], [0, 0], [1]])
def test_too_little_says_nothing(counts: list[int]) -> None:
    table = np.array(counts, dtype=np.int64)
    assert math.isnan(estimate_richness(table, total=5).value)
    assert math.isnan(expected_new(table, factor=1, random=_random()).value)


def test_the_number_of_subjects_bounds_everything() -> None:
    counts = np.ones(8, np.int64)
    assert estimate_richness(counts, total=8).high == 8
    new = expected_new(counts, factor=2, total=10, random=_random())
    assert 0 < new.low <= new.value <= new.high <= 2
    assert expected_new(counts, factor=2, total=8, random=_random()).high == 0


def test_extrapolation_by_hand() -> None:
    """f̂₀ = 1.35 and rate 3/(10 · 1.35 + 3) = 2/11 for each further copy."""
    counts = np.array([5, 2, 1, 1, 1])
    for factor in (0.0, 0.1, 1.0, 2.0):
        new = expected_new(counts, factor=factor, random=_random())
        assert new.value == pytest.approx(1.35 * (1 - (9 / 11) ** (10 * factor)))
        assert new.low <= new.value <= new.high
    # In the limit all that are unseen.
    assert expected_new(counts, factor=1e6, random=_random()).value == pytest.approx(1.35)


def test_the_same_stream_gives_the_same_interval() -> None:
    counts = np.array([9, 4, 2, 2, 1, 1, 1, 1])
    assert expected_new(counts, factor=1, random=_random()) == expected_new(counts, factor=1, random=_random())


def test_bad_tables() -> None:
    for wrong in (np.array([-1, 2]), np.array([0.5]), np.array([[1]])):
        with pytest.raises(InputError, match="whole numbers"):
            estimate_richness(wrong)
    with pytest.raises(InputError, match="total is 1"):
        estimate_richness(np.array([2, 2]), total=1)
    with pytest.raises(InputError, match="factor"):
        expected_new(np.array([2, 2]), factor=-1, random=_random())
    with pytest.raises(InputError, match="outside 0 to 4"):
        rarefy(np.array([2, 2]), np.array([5]))


def _abundances(kind: str, subjects: int) -> FloatArray:
    weights: FloatArray = np.ones(subjects) if kind == "uniform" else 1.0 / np.arange(1, subjects + 1)
    weights /= weights.sum()
    return weights


@pytest.mark.parametrize(
    ("kind", "subjects", "copies", "richness", "new"),
    [
        # Found with 150 rounds: 0.93 and 0.95, 0.99 and 0.97, 0.95 and 0.94 where all are copied at one rate;
        # 0.85 and 0.91, 0.73 and 0.91 where rates fall as 1/rank, for Chao1 is a lower bound.
        ("uniform", 50, 60, 0.88, 0.88),
        ("uniform", 50, 200, 0.88, 0.88),
        ("uniform", 200, 200, 0.88, 0.88),
        ("skewed", 50, 60, 0.72, 0.82),
        ("skewed", 200, 200, 0.55, 0.82),
    ],
)
def test_coverage(kind: str, subjects: int, copies: int, richness: float, new: float) -> None:
    random, rounds = np.random.default_rng(5), 100
    chances = _abundances(kind, subjects)
    unseen = (1 - chances) ** copies
    truth = float((unseen - unseen**2).sum())  # seen in the second sample and not in the first
    covered = np.zeros((rounds, 3), bool)
    for turn in range(rounds):
        counts = random.multinomial(copies, chances)
        all_, more = estimate_richness(counts), expected_new(counts, factor=1, random=random)
        covered[turn] = all_.low <= subjects <= all_.high, more.low <= truth <= more.high, all_.low <= subjects
    rates = covered.mean(axis=0)
    assert rates[0] >= richness
    assert rates[1] >= new
    assert rates[2] >= 0.93  # as a lower bound it holds whatever the rates


def test_rarefaction_equals_brute_force() -> None:
    counts = np.array([3, 2, 1, 0, 1])
    owners = np.repeat(np.arange(5), counts)
    for size in range(8):
        parts = list(itertools.combinations(owners, size))
        assert rarefy(counts, np.array([size]))[0] == pytest.approx(np.mean([len(set(part)) for part in parts]))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 200), min_size=1, max_size=40))
def test_rarefaction_rises_ever_more_slowly_to_what_was_seen(table: list[int]) -> None:
    counts = np.array(table)
    curve = rarefy(counts, np.arange(counts.sum() + 1))
    assert curve[0] == pytest.approx(0, abs=1e-8)
    assert curve[-1] == pytest.approx((counts > 0).sum())
    steps = np.diff(curve)
    assert np.all(steps >= -1e-8)
    assert np.all(np.diff(steps) <= 1e-8)
    if counts.sum() > 1:
        estimate = estimate_richness(counts, total=60)
        assert (counts > 0).sum() <= estimate.low <= estimate.value + 1
        assert estimate.value <= estimate.high <= 60


def test_rarefaction_of_a_large_table() -> None:
    """A million copies of a thousand subjects evenly: close to drawing with putting back."""
    curve = rarefy(np.full(1000, 1000), np.array([1, 500, 10_000]))
    np.testing.assert_allclose(curve, 1000 * (1 - 0.999 ** np.array([1, 500, 10_000])), rtol=1e-3)


@pytest.mark.parametrize("copies", [2, 3, 7])
def test_one_subject_again_and_again_leaves_nobody_to_come(copies: int) -> None:
    random = np.random.default_rng(0)
    found = expected_new(np.array([copies]), factor=1.0, random=random, total=40)
    assert (found.value, found.low) == (0.0, 0.0)
