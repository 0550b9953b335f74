"""The distance has the values of closed forms; its interval covers the truth, which plain resampling does not."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import sqrtm

from unalike.errors import InputError, SettingsError
from unalike.fidelity.frechet import extrapolated_frechet, frechet_distance, frechet_estimate, frechet_of


def exact_normal(mean: np.ndarray, covariance: np.ndarray, *, count: int, seed: int) -> np.ndarray:
    """Points (count, D) whose own mean and covariance are these, to the last digits; count > D."""
    points = np.random.default_rng(seed).standard_normal((count, len(mean)))
    points -= points.mean(axis=0)
    q, _ = np.linalg.qr(points)
    return mean + math.sqrt(count - 1) * q @ np.linalg.cholesky(covariance).T


def names(count: int, each: int = 1) -> np.ndarray:
    return np.repeat([f"subject {number:04d}" for number in range(count)], each)


# Closed forms


@pytest.mark.parametrize(("mean", "deviation", "expected"), [(0, 1, 0), (3, 1, 9), (0, 4, 9), (2, 0.5, 4.25)])
def test_normal_distributions_of_one_dimension(mean: float, deviation: float, expected: float) -> None:
    standard = exact_normal(np.zeros(1), np.eye(1), count=20, seed=0)
    other = exact_normal(np.array([mean]), np.array([[deviation**2]]), count=31, seed=1)
    assert frechet_distance(standard, other) == pytest.approx(expected, abs=1e-12)
    found = frechet_of(np.zeros(1), np.eye(1), np.array([mean]), np.array([[deviation**2]]))
    assert found == pytest.approx(expected, abs=1e-12)


def test_diagonal_covariances() -> None:
    first, second = np.array([1.0, 4.0, 9.0, 0.0]), np.array([4.0, 4.0, 0.0, 25.0])
    expected = (1 - 2) ** 2 + 0 + 3**2 + 5**2 + 4 * 0.25
    found = frechet_of(np.zeros(4), np.diag(first), np.full(4, 0.5), np.diag(second))
    assert found == pytest.approx(expected, rel=1e-12)


def test_equal_sets_are_at_distance_zero() -> None:
    points = np.random.default_rng(0).standard_normal((50, 8)) * 1000
    assert frechet_distance(points, points) == pytest.approx(0, abs=1e-15 * points.var())
    few = points[:5]
    assert frechet_distance(few, few[::-1]) == pytest.approx(0, abs=1e-15 * points.var())


def test_a_shift_adds_its_squared_length() -> None:
    random = np.random.default_rng(1)
    a, b, shift = random.standard_normal((40, 5)), random.standard_normal((30, 5)), np.arange(5.0)
    b += a.mean(axis=0) - b.mean(axis=0)
    assert frechet_distance(a, b + shift) == pytest.approx(frechet_distance(a, b) + 30)


def test_two_lines_at_an_angle() -> None:
    # Variance 1 along directions at angle t: Σa Σb has the one eigenvalue cos² t, the distance is 2 − 2 |cos t|.
    angle = 0.7
    one, other = np.array([1.0, 0.0]), np.array([math.cos(angle), math.sin(angle)])
    steps = np.array([-1.0, 1.0])[:, None] / math.sqrt(2)
    assert frechet_distance(steps * one, steps * other) == pytest.approx(2 - 2 * math.cos(angle))


# Reference implementation


@pytest.mark.parametrize("seed", range(4))
def test_agrees_with_the_matrix_square_root(seed: int) -> None:
    random = np.random.default_rng(seed)
    a = random.standard_normal((60, 6)) @ random.standard_normal((6, 6))
    b = random.standard_normal((45, 6)) @ random.standard_normal((6, 6)) + 0.3
    sigma_a, sigma_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = np.trace(sqrtm(sigma_a @ sigma_b)).real
    expected = ((a.mean(axis=0) - b.mean(axis=0)) ** 2).sum() + np.trace(sigma_a + sigma_b) - 2 * root
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-9)
    assert frechet_of(a.mean(axis=0), sigma_a, b.mean(axis=0), sigma_b) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("n", "m"), [(4, 3), (4, 100), (2, 2), (30, 4)])
def test_fewer_images_than_dimensions(n: int, m: int) -> None:
    random = np.random.default_rng(2)
    a, b = random.standard_normal((n, 12)), random.standard_normal((m, 12)) * 2 + 1
    moments = [(points.mean(axis=0), np.cov(points, rowvar=False)) for points in (a, b)]
    # Roots of eigenvalues that should be 0 leave errors of the root of the precision in this form.
    assert frechet_distance(a, b) == pytest.approx(frechet_of(*moments[0], *moments[1]), rel=1e-6)
    eigenvalues = np.linalg.eigvals(moments[0][1] @ moments[1][1]).real
    trace = np.trace(moments[0][1] + moments[1][1]) - 2 * np.sqrt(np.maximum(eigenvalues, 0)).sum()
    expected = ((moments[0][0] - moments[1][0]) ** 2).sum() + trace
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-5)


# Properties


@given(seed=st.integers(0, 10**6), n=st.integers(2, 12), m=st.integers(2, 12), dimension=st.integers(1, 8))
@settings(max_examples=50, deadline=None)
def test_symmetric_turned_scaled_and_in_any_order(seed: int, n: int, m: int, dimension: int) -> None:
    random = np.random.default_rng(seed)
    a, b = random.standard_normal((n, dimension)), random.standard_normal((m, dimension)) * 2
    value = frechet_distance(a, b)
    assert value >= 0
    assert frechet_distance(b, a) == pytest.approx(value, abs=1e-9)
    turn, _ = np.linalg.qr(random.standard_normal((dimension, dimension)))
    assert frechet_distance(a @ turn + 7, b @ turn + 7) == pytest.approx(value, abs=1e-9)
    assert frechet_distance(a * 3, b * 3) == pytest.approx(9 * value, abs=1e-9)
    assert frechet_distance(random.permutation(a), random.permutation(b)) == pytest.approx(value, abs=1e-9)


def test_small_differences_are_not_lost_beside_large_variances() -> None:
    # tr Σa + tr Σb − 2 tr (ΣaΣb)^½ would leave about 1e-16 · 1e8 of rounding here: nothing of 1e-10.
    large = np.diag([1e8, 1.0])
    found = frechet_of(np.zeros(2), large, np.zeros(2), np.diag([1e8, (1 + 1e-5) ** 2]))
    assert found == pytest.approx(1e-10, rel=1e-4)


# The estimate


def draw(random: np.random.Generator, *, subjects: int, each: int, scale: np.ndarray, shift: float) -> np.ndarray:
    """Features (subjects · each, D) of normal subjects, whose images are alike: more than half of the variance."""
    common = np.repeat(random.standard_normal((subjects, len(scale))), each, axis=0)
    points: np.ndarray = math.sqrt(0.6) * common + math.sqrt(0.4) * random.standard_normal(common.shape)
    points *= scale
    points[:, 0] += shift
    return points


def percentiles(a: np.ndarray, b: np.ndarray, each: int, random: np.random.Generator) -> tuple[float, float]:
    drawn = []
    for _ in range(40):
        parts = []
        for points in (a, b):
            by_subject = points.reshape(-1, each, points.shape[1])
            parts.append(by_subject[random.integers(0, len(by_subject), len(by_subject))].reshape(points.shape))
        drawn.append(frechet_distance(*parts))
    low, high = np.quantile(drawn, [0.025, 0.975])
    return float(low), float(high)


@pytest.mark.parametrize(("dimension", "subjects", "shift", "growth"), [(4, 40, 1.0, 1.0), (16, 30, 0.5, 1.2)])
def test_the_interval_covers_the_truth(dimension: int, subjects: int, shift: float, growth: float) -> None:
    random = np.random.default_rng(3)
    scale = 1 / np.sqrt(np.arange(1, dimension + 1))
    truth = shift**2 + ((growth - 1) ** 2 * scale**2).sum()
    owners, repetitions = names(subjects, 2), 50
    covered, plain, values, plug_in = 0, [], [], []
    for seed in range(repetitions):
        a = draw(random, subjects=subjects, each=2, scale=scale, shift=0)
        b = draw(random, subjects=subjects, each=2, scale=scale * growth, shift=shift)
        found = frechet_estimate(a, b, subjects_a=owners, subjects_b=owners, seed=seed, resamples=40)
        covered += found.low <= truth <= found.high
        plain.append(percentiles(a, b, 2, random))
        values.append(found.value)
        plug_in.append(frechet_distance(a, b))
    assert covered >= 0.86 * repetitions  # at 95 %, fewer than that have a chance of 0.3 %
    if dimension > 4:  # the bias is larger than the spread: what plain resampling gives lies above the truth
        assert sum(low <= truth for low, _ in plain) < 0.1 * repetitions
        assert abs(np.mean(values) - truth) < 0.2 * abs(np.mean(plug_in) - truth)


def test_equal_distributions_are_not_told_apart_with_fewer_subjects_than_dimensions() -> None:
    random, owners = np.random.default_rng(4), names(30, 4)
    scale, lows, values, plug_in = 1 / np.sqrt(np.arange(1, 129)), [], [], []
    for seed in range(8):
        a, b = (draw(random, subjects=30, each=4, scale=scale, shift=0) for _ in range(2))
        found = frechet_estimate(a, b, subjects_a=owners, subjects_b=owners, seed=seed, resamples=20)
        lows.append(found.low)
        values.append(found.value)
        plug_in.append(frechet_distance(a, b))
    assert lows == [0.0] * 8
    assert np.mean(values) < 0.5 * np.mean(plug_in)


def test_distributions_far_apart_are_told_apart() -> None:
    random, owners = np.random.default_rng(5), names(60)
    a, b = (draw(random, subjects=60, each=1, scale=np.ones(4), shift=shift) for shift in (0, 3))
    found = frechet_estimate(a, b, subjects_a=owners, subjects_b=owners, seed=0, resamples=50)
    assert 3 < found.low < 9 < found.high < 15
    assert found.low < found.value < found.high
    assert found.n == 60


def test_images_of_one_subject_are_one_draw() -> None:
    random = np.random.default_rng(6)
    a, b = (random.standard_normal((40, 3)) + shift for shift in (0, 1))
    apart = frechet_estimate(a, b, subjects_a=names(40), subjects_b=names(40), seed=0, resamples=100)
    # Each image four times: nothing new is known if they are of one subject, and much if one believes they are of four.
    a, b = np.repeat(a, 4, axis=0), np.repeat(b, 4, axis=0)
    together = frechet_estimate(a, b, subjects_a=names(40, 4), subjects_b=names(40, 4), seed=0, resamples=100)
    mistaken = frechet_estimate(a, b, subjects_a=names(160), subjects_b=names(160), seed=0, resamples=100)
    assert together.n == 40
    assert together.high - together.low == pytest.approx(apart.high - apart.low, rel=0.1)
    assert mistaken.high - mistaken.low < 0.7 * (apart.high - apart.low)


def test_a_seed_gives_the_same_interval_whatever_the_order() -> None:
    random = np.random.default_rng(7)
    a, b = random.standard_normal((24, 3)), random.standard_normal((18, 3)) + 1
    owners = {"subjects_a": names(8, 3), "subjects_b": names(9, 2)}
    first = frechet_estimate(a, b, **owners, seed=1, resamples=20)
    assert frechet_estimate(a, b, **owners, seed=1, resamples=20) == first
    assert frechet_estimate(a, b, **owners, seed=2, resamples=20) != first
    one, two = random.permutation(24), random.permutation(18)
    shuffled = {"subjects_a": owners["subjects_a"][one], "subjects_b": owners["subjects_b"][two]}
    again = frechet_estimate(a[one], b[two], **shuffled, seed=1, resamples=20)
    assert (again.value, again.low, again.high) == pytest.approx((first.value, first.low, first.high), abs=1e-9)


def test_a_narrower_interval_for_less_confidence() -> None:
    random = np.random.default_rng(8)
    a, b = random.standard_normal((30, 2)), random.standard_normal((30, 2)) + 2
    wide, narrow = (
        frechet_estimate(a, b, subjects_a=names(30), subjects_b=names(30), seed=0, resamples=30, confidence=confidence)
        for confidence in (0.99, 0.5)
    )
    assert wide.low < narrow.low < narrow.value < narrow.high < wide.high
    assert (wide.confidence, narrow.confidence) == (0.99, 0.5)


def test_too_few_subjects_are_undefined() -> None:
    a = np.random.default_rng(9).standard_normal((12, 2))
    for count in (1, 2):
        found = frechet_estimate(a, a[:3], subjects_a=names(count, 12 // count), subjects_b=names(3), seed=0)
        assert math.isnan(found.value)
        assert math.isnan(found.low)
        assert found.n == count
    found = frechet_estimate(a, a[:3], subjects_a=names(12), subjects_b=names(3), seed=0, resamples=30)
    assert found.low <= found.value <= found.high
    empty = frechet_estimate(a[:0], a, subjects_a=names(0), subjects_b=names(12), seed=0)
    assert (math.isnan(empty.value), empty.n) == (True, 0)
    assert math.isnan(extrapolated_frechet(a, a, subjects_a=names(3, 4), subjects_b=names(12), seed=0))


# Extrapolation


def test_extrapolation_is_nearer_to_the_truth_than_the_plug_in() -> None:
    random, owners = np.random.default_rng(10), names(80)
    scale = 1 / np.sqrt(np.arange(1, 9))
    errors = []
    for seed in range(10):
        a, b = (draw(random, subjects=80, each=1, scale=scale * growth, shift=0) for growth in (1, 1.5))
        truth = 0.25 * (scale**2).sum()
        found = extrapolated_frechet(a, b, subjects_a=owners, subjects_b=owners, seed=seed)
        errors.append((found - truth, frechet_distance(a, b) - truth))
    left, plain = np.mean(errors, axis=0)
    assert plain > 0
    assert abs(left) < 0.4 * plain


def test_extrapolation_allows_sides_of_different_sizes() -> None:
    random, scale = np.random.default_rng(11), np.ones(6)
    errors = []
    for seed in range(10):
        a = draw(random, subjects=40, each=2, scale=scale, shift=0)
        b = draw(random, subjects=301, each=1, scale=scale, shift=0)
        found = extrapolated_frechet(a, b, subjects_a=names(40, 2), subjects_b=names(301), seed=seed)
        errors.append((found, frechet_distance(a, b)))
    left, plain = np.mean(errors, axis=0)
    assert abs(left) < 0.4 * plain


# What is refused


@pytest.mark.parametrize(
    ("a", "b", "said"),
    [
        (np.zeros((3, 2)), np.zeros((3, 4)), "do not fit"),
        (np.zeros(3), np.zeros(3), "do not fit"),
        (np.zeros((3, 0)), np.zeros((3, 0)), "do not fit"),
        (np.zeros((3, 2)), np.zeros((1, 2)), "second set has 1 images"),
        (np.zeros((0, 2)), np.zeros((3, 2)), "first set has 0 images"),
        (np.full((3, 2), np.nan), np.zeros((3, 2)), "first set are not all finite"),
        (np.zeros((3, 2)), np.full((3, 2), np.inf), "second set are not all finite"),
    ],
)
def test_features_that_do_not_fit(a: np.ndarray, b: np.ndarray, said: str) -> None:
    with pytest.raises(InputError, match=said):
        frechet_distance(a, b)


def test_moments_that_do_not_fit() -> None:
    for covariance in (np.eye(3), np.ones(2), np.full((2, 2), np.nan)):
        with pytest.raises(InputError):
            frechet_of(np.zeros(2), covariance, np.zeros(2), np.eye(2))
    with pytest.raises(InputError, match="2 and 3"):
        frechet_of(np.zeros(2), np.eye(2), np.zeros(3), np.eye(3))


@pytest.mark.parametrize("options", [{"resamples": 1}, {"confidence": 0.0}, {"confidence": 1.0}])
def test_settings_that_make_no_sense(options: dict[str, Any]) -> None:
    points = np.zeros((4, 2))
    with pytest.raises(SettingsError, match=next(iter(options))):
        frechet_estimate(points, points, subjects_a=names(4), subjects_b=names(4), seed=0, **options)


def test_subjects_that_do_not_fit() -> None:
    points = np.zeros((4, 2))
    with pytest.raises(InputError, match="second set has 4 images"):
        frechet_estimate(points, points, subjects_a=names(4), subjects_b=names(3), seed=0)
