"""P-values by hand, by simulation, and against SciPy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import false_discovery_control

from unalike.stats.conformal import (
    benjamini_hochberg,
    chance_beyond,
    smallest_p_value,
    subject_p_values,
    subjects_needed,
)


def test_by_hand() -> None:
    """Subject a has two images (0.5, 0.9), b one (0.7). q = 0.7: wₐ = 1/2, w_b = 1 → p = 2.5/3."""
    holdout, subjects = np.array([0.5, 0.9, 0.7]), np.array(["a", "a", "b"])
    p = subject_p_values(np.array([0.7, 0.95, 0.9, 0.1, np.nan]), holdout=holdout, subjects=subjects)
    np.testing.assert_allclose(p[:4], [2.5 / 3, 1 / 3, 1.5 / 3, 1.0])
    assert np.isnan(p[4])


def test_without_holdout_every_p_value_is_one() -> None:
    p = subject_p_values(np.array([0.99]), holdout=np.empty(0), subjects=np.empty(0, np.str_))
    assert p.tolist() == [1.0]


@given(
    st.lists(st.floats(-1, 1), min_size=1, max_size=30),
    st.lists(st.tuples(st.floats(-1, 1), st.integers(0, 5)), min_size=1, max_size=40),
)
def test_the_fast_path_equals_the_definition(queries: list[float], holdout: list[tuple[float, int]]) -> None:
    values = np.array([value for value, _ in holdout])
    subjects = np.array([str(subject) for _, subject in holdout])
    slow = [
        (1 + sum(np.mean(values[subjects == name] >= query) for name in np.unique(subjects)))
        / (1 + len(np.unique(subjects)))
        for query in queries
    ]
    fast = subject_p_values(np.array(queries), holdout=values, subjects=subjects)
    np.testing.assert_allclose(fast, slow, atol=1e-12)


@pytest.mark.parametrize("level", [0.05, 0.2])
def test_a_new_subject_is_flagged_no_more_often_than_promised(level: float) -> None:
    """Slices of one subject are nearly alike. Image-level calibration would have failed here."""
    random = np.random.default_rng(0)
    subject_level, image_level = [], []
    for _ in range(1500):
        # Subjects differ in how many slices they have, and those with many are more typical.
        counts = random.choice([1, 60], 21, p=[0.5, 0.5])
        centers = random.normal(0, np.where(counts == 1, 2.0, 0.5))
        values = [random.normal(center, 0.01, count) for center, count in zip(centers, counts, strict=True)]
        query = random.choice(values[0])
        holdout, subjects = np.concatenate(values[1:]), np.repeat(np.arange(20).astype(str), counts[1:])
        subject_level.append(subject_p_values(np.array([query]), holdout=holdout, subjects=subjects)[0] <= level)
        image_level.append((1 + (holdout >= query).sum()) / (1 + len(holdout)) <= level)
    sd = np.sqrt(level * (1 - level) / 1500)
    assert np.mean(subject_level) <= level + 3 * sd
    assert np.mean(image_level) > level + 3 * sd


def test_benjamini_hochberg_equals_scipy() -> None:
    p = np.random.default_rng(0).random(50) ** 2
    np.testing.assert_allclose(benjamini_hochberg(p), false_discovery_control(p), atol=1e-12)


def test_undefined_p_values_do_not_count() -> None:
    q = benjamini_hochberg(np.array([0.01, np.nan, 0.04]))
    np.testing.assert_allclose(q[[0, 2]], [0.02, 0.04])
    assert np.isnan(q[1])
    assert len(benjamini_hochberg(np.empty(0))) == 0


def test_what_a_number_of_subjects_can_certify() -> None:
    assert smallest_p_value(99) == 0.01
    assert subjects_needed(queries=128, level=0.05) == 2559
    assert subjects_needed(queries=1, level=0.05) == 19
    # That many, and not one fewer, let a lone smallest p-value pass.
    for queries in (1, 7, 128):
        needed = subjects_needed(queries=queries, level=0.05)
        for subjects, passes in ((needed, True), (needed - 1, False)):
            p = np.ones(queries)
            p[0] = smallest_p_value(subjects)
            assert (benjamini_hochberg(p)[0] <= 0.05 + 1e-12) == passes


def test_the_chance_of_lying_beyond_every_holdout_image() -> None:
    """Bounded from above, whatever the dependence; exact where all images are one and the same."""
    random = np.random.default_rng(0)
    values = random.random((40_000, 6 + 20))
    for queries in (values[:, :6], np.repeat(values[:, :1], 6, axis=1)):
        beyond = (queries > values[:, 6:].max(axis=1, keepdims=True)).sum(axis=1)
        for count in range(1, 7):
            assert (beyond >= count).mean() <= chance_beyond(count, queries=6, subjects=20) + 0.005
    assert (beyond == 6).mean() == pytest.approx(chance_beyond(6, queries=6, subjects=20), abs=0.005)
    assert chance_beyond(0, queries=6, subjects=20) == 1.0
    assert chance_beyond(4, queries=6, subjects=20) == pytest.approx(6 / 21 / 4)
