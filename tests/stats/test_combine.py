"""Combined p-values by hand, by brute force, and by how often they err."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from unalike.errors import InputError
from unalike.records import FloatArray, IntArray, TextArray
from unalike.stats.combine import (
    combine_bonferroni,
    combine_cauchy,
    combine_harmonic,
    pooled_minimum_p_values,
    spokesman,
)
from unalike.stats.conformal import subject_p_values

NAN = math.nan
P = np.array([[0.01, 0.3, NAN, NAN], [0.5, 0.9, 0.02, NAN], [0.25, 0.8, 0.4, NAN]])


def test_bonferroni_by_hand() -> None:
    np.testing.assert_allclose(combine_bonferroni(P), [0.03, 0.9, 0.04, NAN])
    np.testing.assert_allclose(combine_bonferroni(np.array([[0.7], [0.6]])), [1.0])


def test_harmonic_by_hand() -> None:
    """1/0.01 + 1/0.5 + 1/0.25 = 106; two defined: 1/0.02 + 1/0.4 = 52.5, times 2."""
    wanted = [math.e * math.log(3) * 3 / 106, 1.0, 2 * 2 / 52.5, NAN]
    np.testing.assert_allclose(combine_harmonic(P), wanted)
    assert combine_harmonic(np.array([[0.2], [NAN]])).tolist() == [0.2]
    assert combine_harmonic(np.array([[0.0], [0.5]])).tolist() == [0.0]


def test_cauchy_by_hand() -> None:
    terms = np.tan((0.5 - P[:, 0]) * np.pi)
    assert combine_cauchy(P)[0] == pytest.approx(0.5 - np.arctan(terms.mean()) / np.pi)
    assert np.isnan(combine_cauchy(P)[3])
    # Equal p-values stay what they are, and so does one alone, down to the smallest.
    same = np.array([[1e-18, 0.04, 0.5, 0.9]])
    np.testing.assert_allclose(combine_cauchy(np.repeat(same, 4, axis=0)), same[0], rtol=1e-12)
    assert combine_cauchy(np.array([[0.0], [0.4]]))[0] == 0.0


def test_a_p_value_of_one_does_not_swamp_the_rest() -> None:
    p = np.array([[1e-4], [1.0]])
    assert combine_cauchy(p, largest=1.0)[0] > 0.99
    assert combine_cauchy(p)[0] == pytest.approx(2e-4, rel=0.02)


def test_the_spokesman() -> None:
    assert spokesman(P).tolist() == [0, 0, 1, -1]
    assert spokesman(np.array([[0.2], [0.2]])).tolist() == [0]
    assert spokesman(np.empty((0, 2))).tolist() == [-1, -1]


@pytest.mark.parametrize("combine", [combine_bonferroni, combine_cauchy, combine_harmonic])
def test_no_measures_and_no_images(combine: object) -> None:
    assert callable(combine)
    assert combine(np.empty((3, 0))).shape == (0,)
    assert np.isnan(combine(np.empty((0, 2)))).tolist() == [True, True]
    for wrong in (np.array([[1.5]]), np.array([[-0.1]]), np.array([0.5])):
        with pytest.raises(InputError):
            combine(wrong)


@pytest.mark.parametrize("rho", [0.0, 0.5, 0.99])
def test_dependent_nulls_are_rejected_no_more_often_than_promised(rho: float) -> None:
    random = np.random.default_rng(1)
    n, m = 40_000, 6
    z = math.sqrt(rho) * random.normal(size=(1, n)) + math.sqrt(1 - rho) * random.normal(size=(m, n))
    p = norm.sf(z)
    for level in (0.01, 0.05, 0.2):
        allowed = level + 3 * math.sqrt(level * (1 - level) / n)
        assert (combine_bonferroni(p) <= level).mean() <= allowed
        assert (combine_harmonic(p) <= level).mean() <= allowed
        # No guarantee, only nearly right: Liu & Xie's own tables show the like.
        assert (combine_cauchy(p) <= level).mean() <= 1.35 * level + 3 * math.sqrt(level / n)


def test_two_measures_need_the_factor_two() -> None:
    """p₂ = 0.1 − p₁ whenever p₁ < 0.1: the harmonic mean is at most 0.05 in a tenth of the cases."""
    p1 = np.random.default_rng(0).random(50_000)
    p = np.stack([p1, np.where(p1 < 0.1, 0.1 - p1, p1)])
    level = 0.1
    rate = (combine_harmonic(p) <= level).mean()
    assert rate == pytest.approx(level, abs=3 * math.sqrt(level * (1 - level) / 50_000))
    mean = 2 / (1 / p).sum(axis=0)
    assert (math.e * math.log(2) * mean <= 0.0942).mean() > 0.0942 + 3 * math.sqrt(0.0942 * 0.9058 / 50_000)


# The pooled minimum


def test_pooled_by_hand() -> None:
    """Four subjects of one image under two measures; ranks among the five with q.

    Measure 1: q > a > b > c > d, measure 2: d > a > q > b > c. T(q) = 1, T(d) = 1, all others 2 or more: p = 2/5.
    """
    holdout = np.array([[0.8, 0.7, 0.6, 0.5], [0.8, 0.3, 0.2, 0.9]])
    names = np.array(["a", "b", "c", "d"])
    p = pooled_minimum_p_values(np.array([[0.9, 0.9], [0.4, 1.0]]), holdout=holdout, subjects=names)
    np.testing.assert_allclose(p, [2 / 5, 1 / 5])


def test_pooled_without_holdout_and_without_scores() -> None:
    names = np.empty(0, np.str_)
    p = pooled_minimum_p_values(np.array([[0.5, NAN]]), holdout=np.empty((1, 0)), subjects=names)
    assert p[0] == 1.0
    assert np.isnan(p[1])
    # An image that no measure can see is left out; one that a single measure sees is not.
    holdout = np.array([[NAN, NAN], [NAN, 0.3]])
    p = pooled_minimum_p_values(np.array([[0.5, 0.5], [0.9, 0.1]]), holdout=holdout, subjects=np.array(["a", "b"]))
    # Each of the second query and b is ahead under one measure.
    np.testing.assert_allclose(p, [1 / 2, 1.0])


def test_shapes_that_do_not_fit() -> None:
    one = np.array(["a"])
    with pytest.raises(InputError, match="one row per measure"):
        pooled_minimum_p_values(np.zeros((2, 1)), holdout=np.zeros((3, 1)), subjects=one)
    with pytest.raises(InputError, match="subject of each image"):
        pooled_minimum_p_values(np.zeros((2, 1)), holdout=np.zeros((2, 2)), subjects=one)


def _shares(values: FloatArray, owner: TextArray, x: float, without: str = "") -> float:
    """Σ over subjects of the share of their images at least as similar as ``x``."""
    return sum(float(np.mean(values[owner == name] >= x)) for name in np.unique(owner) if name != without)


def _oracle(bags: list[FloatArray]) -> float:
    """p* of the first image of the first bag, all images of all subjects known: the definition in the docstring."""
    pool, owner = np.concatenate(bags, axis=1), np.repeat(np.arange(len(bags)).astype(str), [b.shape[1] for b in bags])
    t = np.array([min(_shares(row, owner, x) for row, x in zip(pool, image, strict=True)) for image in pool.T])
    return _shares(-t, owner, -t[0] - 1e-12) / len(bags)


@st.composite
def _subjects(draw: st.DrawFn) -> list[FloatArray]:
    """Bags of images (m, images) with few different values, so that ties are many."""
    m = draw(st.integers(1, 3))
    sizes = draw(st.lists(st.integers(1, 4), min_size=2, max_size=7))
    values = st.integers(0, 6)
    return [np.array(draw(st.lists(values, min_size=m * k, max_size=m * k)), float).reshape(m, k) for k in sizes]


def _ours(bags: list[FloatArray]) -> float:
    holdout = np.concatenate(bags[1:], axis=1)
    names = np.repeat(np.arange(1, len(bags)).astype(str), [b.shape[1] for b in bags[1:]])
    return float(pooled_minimum_p_values(bags[0][:, :1], holdout=holdout, subjects=names)[0])


@settings(max_examples=100, deadline=None)
@given(_subjects())
def test_never_below_the_p_value_that_sees_all_images(bags: list[FloatArray]) -> None:
    """That one is a rank among exchangeable subjects, so what is never below it is valid."""
    assert _ours(bags) >= _oracle(bags) - 1e-9


@settings(max_examples=100, deadline=None)
@given(_subjects())
def test_equal_to_it_when_every_subject_has_one_image(bags: list[FloatArray]) -> None:
    singles = [bag[:, :1] for bag in bags]
    assert _ours(singles) == pytest.approx(_oracle(singles))


@settings(max_examples=100, deadline=None)
@given(_subjects())
def test_between_the_smallest_p_value_and_bonferroni(bags: list[FloatArray]) -> None:
    holdout = np.concatenate(bags[1:], axis=1)
    names = np.repeat(np.arange(1, len(bags)).astype(str), [b.shape[1] for b in bags[1:]])
    queries = np.concatenate(bags, axis=1) + 0.5
    for q in (queries, queries - 0.5):
        each = np.stack([subject_p_values(s, holdout=h, subjects=names) for s, h in zip(q, holdout, strict=True)])
        p = pooled_minimum_p_values(q, holdout=holdout, subjects=names)
        assert np.all(p >= each.min(axis=0) - 1e-9)
        assert np.all(p <= combine_bonferroni(np.minimum(each, 1.0)) + 1e-9)
        alone = pooled_minimum_p_values(q[:1], holdout=holdout[:1], subjects=names)
        np.testing.assert_allclose(alone, each[0], atol=1e-12)


def _cohort(random: np.random.Generator, sizes: IntArray, m: int, rho: float) -> tuple[FloatArray, TextArray]:
    """Similarities (m, images): a part of the subject, a part of the image, both shared by the measures to ``rho``."""

    def dependent(n: int) -> FloatArray:
        return math.sqrt(rho) * random.normal(size=(1, n)) + math.sqrt(1 - rho) * random.normal(size=(m, n))

    names = np.repeat(np.arange(len(sizes)).astype(str), sizes)
    # Subjects with many images are the more typical ones, which image-level calibration would not survive.
    spread = np.repeat(np.where(sizes > 1, 0.6, 2.0), sizes)
    return np.repeat(dependent(len(sizes)), sizes, axis=1) * spread + 0.2 * dependent(int(sizes.sum())), names


@pytest.mark.parametrize("rho", [0.0, 0.7, 0.99])
def test_an_image_of_a_new_subject_is_flagged_no_more_often_than_promised(rho: float) -> None:
    random = np.random.default_rng(2)
    rounds, p = 1000, []
    for _ in range(rounds):
        sizes = random.choice([1, 8], 40, p=[0.4, 0.6])
        values, names = _cohort(random, sizes, 4, rho)
        query = random.integers(sizes[0])
        p.append(pooled_minimum_p_values(values[:, [query]], holdout=values[:, sizes[0] :], subjects=names[sizes[0] :]))
    for level in (0.05, 0.1, 0.3):
        assert np.mean(np.array(p) <= level) <= level + 3 * math.sqrt(level * (1 - level) / rounds)


def test_more_copies_are_found_than_by_bonferroni_when_measures_agree() -> None:
    random = np.random.default_rng(3)
    values, names = _cohort(random, np.full(199, 3), 6, 0.97)
    queries = _cohort(random, np.ones(2000, np.int64), 6, 0.97)[0] / 2 + 1.1
    each = np.stack([subject_p_values(q, holdout=h, subjects=names) for q, h in zip(queries, values, strict=True)])
    pooled = (pooled_minimum_p_values(queries, holdout=values, subjects=names) <= 0.05).mean()
    bonferroni = (combine_bonferroni(each) <= 0.05).mean()
    assert pooled > bonferroni + 0.05
