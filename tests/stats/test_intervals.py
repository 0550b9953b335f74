"""Intervals against closed forms and their promised coverage."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import binomtest

from unalike.seeds import generator_for
from unalike.stats.intervals import estimate_difference, estimate_mean, estimate_share


@pytest.mark.parametrize(("hits", "trials"), [(0, 10), (3, 10), (10, 10), (1, 500)])
def test_shares_equal_scipys_exact_interval(hits: int, trials: int) -> None:
    ours = estimate_share(hits, trials)
    theirs = binomtest(hits, trials).proportion_ci(method="exact")
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=1e-12)
    assert ours.value == hits / trials


def test_none_found_in_n_has_the_closed_form_bound() -> None:
    assert estimate_share(0, 128).high == pytest.approx(1 - 0.025 ** (1 / 128))


def test_no_trials_is_undefined() -> None:
    assert math.isnan(estimate_share(0, 0).value)


def test_the_bootstrap_of_equal_groups_has_the_textbook_standard_error() -> None:
    random = np.random.default_rng(0)
    values = random.normal(0, 1, 400)
    estimate = estimate_mean(values, np.arange(400).astype(str), random=generator_for(0, "t"))
    assert estimate.value == pytest.approx(values.mean())
    assert estimate.high - estimate.low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.08)
    assert estimate.n == 400


def test_subjects_not_images_set_the_width() -> None:
    """100 copies of each subject's value add nothing to what is known."""
    random = np.random.default_rng(1)
    people = random.normal(0, 1, 40)
    once = estimate_mean(people, np.arange(40).astype(str), random=generator_for(0, "t"))
    often = estimate_mean(
        np.repeat(people, 100), np.repeat(np.arange(40).astype(str), 100), random=generator_for(0, "t")
    )
    assert (often.low, often.high) == pytest.approx((once.low, once.high))


def test_coverage_with_correlated_slices() -> None:
    """95 % intervals of clustered data hold the truth about 95 % of the time; image-level ones would not."""
    held = 0
    for repetition in range(200):
        random = np.random.default_rng(repetition)
        people = random.normal(0, 1, 50)
        values = np.repeat(people, 8) + random.normal(0, 0.2, 400)
        estimate = estimate_mean(values, np.repeat(np.arange(50).astype(str), 8), random=generator_for(repetition, "t"))
        held += estimate.low <= 0 <= estimate.high
    assert 0.89 <= held / 200 <= 0.99


def test_undefined_values_are_left_out_and_one_subject_has_no_interval() -> None:
    groups = np.array(["a", "a", "a"])
    estimate = estimate_mean(np.array([1.0, np.nan, 3.0]), groups, random=generator_for(0, "t"))
    assert (estimate.value, estimate.n) == (2.0, 1)
    assert math.isnan(estimate.low)
    assert math.isnan(estimate_mean(np.array([np.nan]), np.array(["a"]), random=generator_for(0, "t")).value)


def test_differences() -> None:
    random = np.random.default_rng(2)
    a, b = random.normal(1, 1, 300), random.normal(0, 1, 300)
    names = np.arange(300).astype(str)
    estimate = estimate_difference((a, names), (b, names), random=generator_for(0, "t"))
    assert estimate.value == pytest.approx(a.mean() - b.mean())
    assert estimate.high - estimate.low == pytest.approx(2 * 1.96 * math.sqrt(2 / 300), rel=0.12)
