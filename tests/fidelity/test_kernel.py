"""The kernel distance equals a direct double sum; by subjects it is unbiased, and its interval covers the truth."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy.stats import t as student

import unalike.fidelity.kernel as kernel_module
from unalike.errors import InputError, SettingsError
from unalike.fidelity.kernel import block_kernel_distance, kernel_distance, kernel_estimate
from unalike.records import Estimate


def names(count: int, each: int = 1) -> np.ndarray:
    return np.repeat([f"subject {number:04d}" for number in range(count)], each)


def double_sum(a: np.ndarray, b: np.ndarray, subjects_a: np.ndarray, subjects_b: np.ndarray) -> float:
    """The definition, pair by pair."""

    def k(x: np.ndarray, y: np.ndarray) -> float:
        return float((x @ y / len(x) + 1) ** 3)

    def within(images: np.ndarray, subjects: np.ndarray) -> float:
        values = [
            k(x, y) for x, one in zip(images, subjects, strict=True) for y, two in zip(images, subjects, strict=True)
            if one != two
        ]  # fmt: skip
        return math.fsum(values) / len(values)

    across = math.fsum(k(x, y) for x in a for y in b) / (len(a) * len(b))
    return within(a, subjects_a) + within(b, subjects_b) - 2 * across


# Known answers


def test_two_points_a_side_by_hand() -> None:
    # k(1, 1) = 8 within a; k(0, 0) = 1 within b; k(1, 0) = 1 across.
    assert kernel_distance(np.ones((2, 1)), np.zeros((2, 1))) == pytest.approx(8 + 1 - 2, rel=1e-15)


def test_orthogonal_points_by_hand() -> None:
    # Within a: k = 1. Within b: (2·2/2 + 1)³ = 27. Across: 0·… + 1 and 1·2/2 + 1 = 2, each half of the time.
    a, b = np.array([[1.0, 0.0], [0.0, 1.0]]), np.array([[0.0, 2.0], [0.0, 2.0]])
    assert kernel_distance(a, b) == pytest.approx(1 + 27 - 2 * (1 + 8) / 2, rel=1e-15)


def test_shifted_normal_distributions_have_the_closed_form() -> None:
    # In one dimension E(xy + 1)³ = 1 + 3 m m' + 3 s s' + t t' with the first three raw moments of either.
    def moments(mean: float, deviation: float) -> np.ndarray:
        return np.array([1, mean, mean**2 + deviation**2, mean**3 + 3 * mean * deviation**2])

    weights, one, two = np.array([1, 3, 3, 1]), moments(0, 1), moments(0.5, 1)
    truth = float(weights @ (one - two) ** 2)
    found = [
        kernel_distance(random.standard_normal((200, 1)), random.standard_normal((200, 1)) + 0.5)
        for random in (np.random.default_rng(seed) for seed in range(60))
    ]
    assert np.mean(found) == pytest.approx(truth, abs=4 * np.std(found) / math.sqrt(60))
    assert np.std(found) / math.sqrt(60) < 0.2 * truth


# Reference


@pytest.mark.parametrize(("n", "m", "dimension"), [(2, 2, 1), (9, 14, 3), (20, 5, 40)])
def test_equals_the_double_sum(n: int, m: int, dimension: int) -> None:
    random = np.random.default_rng(n)
    a, b = random.standard_normal((n, dimension)) + 0.3, 2 * random.standard_normal((m, dimension))
    assert kernel_distance(a, b) == pytest.approx(double_sum(a, b, names(n), names(m)), rel=1e-12)


def test_pairs_of_one_subject_do_not_count() -> None:
    random = np.random.default_rng(1)
    a, b = random.standard_normal((11, 4)), random.standard_normal((9, 4)) + 1
    subjects_a = np.array(list("abbcaaddbef"))
    subjects_b = np.array(list("xyzxyzzzx"))
    found = kernel_estimate(a, b, subjects_a=subjects_a, subjects_b=subjects_b)
    assert found.value == pytest.approx(double_sum(a, b, subjects_a, subjects_b), rel=1e-12)
    assert found.n == 3
    assert found.value != pytest.approx(kernel_distance(a, b), rel=1e-3)


def test_one_image_a_subject_is_the_plain_distance() -> None:
    a, b = np.random.default_rng(2).standard_normal((2, 25, 3))
    found = kernel_estimate(a, b, subjects_a=names(25), subjects_b=names(25))
    assert found.value == pytest.approx(kernel_distance(a, b), rel=1e-12)


def test_the_interval_is_that_of_leaving_out_each_subject() -> None:
    random = np.random.default_rng(3)
    a, b = random.standard_normal((12, 3)), random.standard_normal((10, 3)) + 0.5
    subjects_a, subjects_b = np.array(list("aabbbccddddd")), np.array(list("vvwwxxxyyz"))
    variance, shares = [], []
    for side in range(2):
        subjects = (subjects_a, subjects_b)[side]
        left = []
        for name in np.unique(subjects):
            kept = [np.ones(12, bool), np.ones(10, bool)]
            kept[side] = subjects != name
            left.append(double_sum(a[kept[0]], b[kept[1]], subjects_a[kept[0]], subjects_b[kept[1]]))
        variance.append((len(left) - 1) * np.var(left))
        shares.append(variance[-1] ** 2 / (len(left) - 1))
    half = student.isf(0.05, sum(variance) ** 2 / sum(shares)) * math.sqrt(sum(variance))
    found = kernel_estimate(a, b, subjects_a=subjects_a, subjects_b=subjects_b, confidence=0.9)
    assert found.high - found.value == pytest.approx(half, rel=1e-9)
    assert found.value - found.low == pytest.approx(half, rel=1e-9)
    assert found.confidence == 0.9


# The interval


@pytest.mark.parametrize("each", [1, 4])
def test_equal_distributions_are_seldom_told_apart(each: int) -> None:
    apart, values = 0, []
    for seed in range(200):
        random = np.random.default_rng([seed, each])
        a, b = (np.repeat(random.standard_normal((20, 4)), each, axis=0) for _ in range(2))
        a, b = (side + 0.3 * random.standard_normal(side.shape) for side in (a, b))
        found = kernel_estimate(a, b, subjects_a=names(20, each), subjects_b=names(20, each))
        apart += found.low > 0
        values.append(found.value)
    assert apart <= 8
    assert abs(np.mean(values)) < 4 * np.std(values) / math.sqrt(200)  # nothing is added by a finite set
    assert min(values) < 0


def test_copies_of_the_same_images_add_no_certainty() -> None:
    a, b = np.random.default_rng(4).standard_normal((2, 15, 3))
    once = kernel_estimate(a, b, subjects_a=names(15), subjects_b=names(15))
    thrice = kernel_estimate(a.repeat(3, axis=0), b, subjects_a=names(15, 3), subjects_b=names(15))
    assert [thrice.value, thrice.low, thrice.high] == pytest.approx([once.value, once.low, once.high], rel=1e-9)


def test_far_distributions_are_told_apart() -> None:
    random = np.random.default_rng(5)
    found = kernel_estimate(
        random.standard_normal((40, 6)),
        random.standard_normal((50, 6)) + 2,
        subjects_a=names(40),
        subjects_b=names(50),
    )
    assert 0 < found.low < found.value < found.high
    assert found.n == 40


def test_constant_features_are_certain() -> None:
    found = kernel_estimate(np.ones((5, 2)), np.zeros((4, 2)), subjects_a=names(5), subjects_b=names(4))
    assert (found.value, found.low, found.high) == (7, 7, 7)


@pytest.mark.parametrize(("subjects", "defined"), [(0, False), (1, False), (2, True)])
def test_too_few_subjects(subjects: int, defined: bool) -> None:
    random = np.random.default_rng(6)
    a = random.standard_normal((subjects * 3, 2))
    found = kernel_estimate(
        a, random.standard_normal((9, 2)), subjects_a=names(subjects, 3), subjects_b=names(9)
    )  # fmt: skip
    assert math.isnan(found.value) != defined
    assert math.isnan(found.low)
    assert found.n == subjects


# Blocks


@pytest.mark.parametrize("block_bytes", [1, 8 * 17 * 5, 2**25])
def test_blocks_change_nothing(block_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = np.random.default_rng(7).standard_normal((2, 23, 5))
    subjects = np.array(list("abcabcddeeffghijklmnopp"))
    expected: Estimate = kernel_estimate(a, b[:17], subjects_a=subjects, subjects_b=names(17))
    monkeypatch.setattr(kernel_module, "BLOCK_BYTES", block_bytes)
    found = kernel_estimate(a, b[:17], subjects_a=subjects, subjects_b=names(17))
    assert [found.value, found.low, found.high] == pytest.approx([expected.value, expected.low, expected.high])


def test_random_blocks_have_the_same_mean() -> None:
    random = np.random.default_rng(8)
    a, b = random.standard_normal((300, 3)), random.standard_normal((250, 3)) + 0.7
    found = block_kernel_distance(a, b, blocks=200, size=50, seed=0)
    assert (found.blocks, found.size) == (200, 50)
    assert found.mean == pytest.approx(kernel_distance(a, b), abs=4 * found.deviation / math.sqrt(200))
    assert found.deviation > 0
    assert found == block_kernel_distance(a, b, blocks=200, size=50, seed=0)
    assert found != block_kernel_distance(a, b, blocks=200, size=50, seed=1)


def test_random_blocks_of_small_sets_are_half_of_them() -> None:
    a, b = np.random.default_rng(9).standard_normal((2, 40, 3))
    assert block_kernel_distance(a, b[:30], blocks=3, seed=0).size == 15
    assert block_kernel_distance(a, b[:3], blocks=3, seed=0).size == 2
    whole = block_kernel_distance(a, b, blocks=3, size=40, seed=0)
    assert (whole.size, whole.mean) == (40, pytest.approx(kernel_distance(a, b)))


# Bad input


@pytest.mark.parametrize(
    ("a", "b", "said"),
    [
        (np.zeros((3, 2)), np.zeros((3, 3)), "do not fit"),
        (np.zeros((3, 0)), np.zeros((3, 0)), "do not fit"),
        (np.zeros(3), np.zeros(3), "do not fit"),
        (np.zeros((1, 2)), np.zeros((3, 2)), "first set has 1 images"),
        (np.zeros((3, 2)), np.zeros((0, 2)), "second set has 0 images"),
        (np.zeros((3, 2)), np.full((3, 2), np.nan), "second set are not all finite"),
    ],
)
def test_features_that_do_not_fit(a: np.ndarray, b: np.ndarray, said: str) -> None:
    with pytest.raises(InputError, match=said):
        kernel_distance(a, b)


def test_subjects_and_settings_that_do_not_fit() -> None:
    a = np.zeros((3, 2))
    with pytest.raises(InputError, match="second set has 3 images and subjects"):
        kernel_estimate(a, a, subjects_a=names(3), subjects_b=names(2))
    with pytest.raises(SettingsError, match="confidence = 1"):
        kernel_estimate(a, a, subjects_a=names(3), subjects_b=names(3), confidence=1)
    wrong: list[dict[str, Any]] = [{"blocks": 0}, {"size": 1}]
    for options in wrong:
        with pytest.raises(SettingsError, match="give 1 or more"):
            block_kernel_distance(a, a, seed=0, **options)
