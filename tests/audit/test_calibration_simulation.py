"""The audit's p-values keep what they promise, simulated with nothing copied and with planted copies."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from audit_calibration import (
    BY_IMAGE,
    POOLED,
    Outcome,
    Pool,
    Scores,
    discoveries,
    draw_copies,
    draw_fields,
    fresh_repetition,
    least_copies,
    over_repetitions,
    p_values,
    planted,
    shares_below,
)
from unalike.similarity.views import RAW, VIEWS

REPETITIONS, DEALS = 20, 30
P_VALUES = st.lists(st.sampled_from([0.001, 0.004, 0.02, 0.3, 1.0]), min_size=1, max_size=12)


@pytest.fixture(scope="module")
def null() -> Mapping[str, Sequence[Outcome]]:
    made = [
        fresh_repetition(3, index, holdouts=(14,), train=20, synthetic=20, few=4, slices=20)
        for index in range(REPETITIONS)
    ]
    return {key: [result[key] for result in made] for key in made[0]}


@pytest.fixture(scope="module")
def dealt() -> Mapping[str, Sequence[Outcome]]:
    random = np.random.default_rng(5)
    pool = Pool.draw(random, cohort=0, subjects=220, copies=24, train=20)
    made = [pool.deal(random, holdouts=(20, 199), synthetic=20, copies=8) for _ in range(DEALS)]
    return {key: [result[key] for result in made] for key in made[0]}


def standard_error(values: np.ndarray) -> float:
    return float(values.std(ddof=1) / math.sqrt(len(values)))


# --- known answers --------------------------------------------------------------------------------------------------


def test_discoveries_by_hand() -> None:
    assert discoveries(np.array([0.5, 0.9]), np.array([0.001])) == (0.0, 1.0)
    # Both smallest have q = 0.001 · 3 / 2.
    assert discoveries(np.array([0.001, 0.9]), np.array([0.001])) == (0.5, 1.0)
    assert discoveries(np.array([0.5, 0.9]), np.array([0.2])) == (0.0, 0.0)
    share, power = discoveries(np.array([0.001]), np.array([]))
    assert share == 1.0
    assert math.isnan(power)


@pytest.mark.parametrize(("subjects", "least"), [(20, 96), (99, 20), (199, 10), (1999, 1)])
def test_fewer_copies_than_the_least_are_never_flagged(subjects: int, least: int) -> None:
    assert least_copies(subjects) == least
    for count, found in ((least, 1.0), (least - 1, 0.0)):
        copies = np.full(count, 1 / (subjects + 1))
        if count:
            assert discoveries(np.ones(100 - count), copies) == (0.0, found)


def test_an_image_on_its_own_counts_as_much_as_a_subject() -> None:
    # Three images of one subject above the query, one of another below it.
    values = np.tile([5.0, 6.0, 7.0, 1.0], (3, 1))
    holdout, query = Scores(values, np.array([0, 0, 0, 1])), np.full((3, 1), 4.0)
    assert p_values(RAW, query, holdout) == pytest.approx([2 / 3])
    assert p_values(POOLED, query, holdout) == pytest.approx([2 / 3])
    assert p_values(BY_IMAGE, query, holdout) == pytest.approx([4 / 5])


def test_no_event_is_no_certainty() -> None:
    none = over_repetitions(np.zeros(200), [])
    assert (none.value, none.low) == (0.0, 0.0)
    assert none.high == pytest.approx(1 - 0.025 ** (1 / 200))
    outcomes = [Outcome(cohort, {}, {}) for cohort in (0, 0, 1, 1)]
    some = over_repetitions(np.array([0.0, 0.2, 0.4, 0.6]), outcomes)
    # Two cohorts, of means 0.1 and 0.5: a replicate is 0.1, 0.3 or 0.5.
    assert (some.low, some.value, some.high) == pytest.approx((0.1, 0.3, 0.5))


def test_slices_are_nearly_equal_and_copies_near_the_image_they_are_made_of() -> None:
    random = np.random.default_rng(0)
    people = draw_fields(random, counts=np.array([2, 2, 2, 2]))
    alike = np.corrcoef(people.images.reshape(8, -1).astype(float))
    same = people.subjects[:, None] == people.subjects
    assert alike[same].min() > 0.98
    assert alike[~same].max() < 0.97
    copies = draw_copies(random, images=people.images[:1], count=12)
    assert copies.shape == (12, 1, 24, 24)
    # Shifted ones are further away, pixel by pixel.
    near = np.corrcoef(copies.reshape(12, -1).astype(float), people.images[0].ravel())[-1, :-1]
    assert np.median(near) > 0.9
    assert near.max() < 1


# --- properties -----------------------------------------------------------------------------------------------------


@given(P_VALUES, P_VALUES)
def test_flags_do_not_depend_on_the_order(innocent: list[float], copies: list[float]) -> None:
    found = discoveries(np.array(innocent), np.array(copies))
    assert found == discoveries(np.array(innocent[::-1]), np.array(copies[::-1]))
    assert 0 <= found[0] <= 1
    assert 0 <= found[1] <= 1


# --- what is promised -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [POOLED, *VIEWS])
@pytest.mark.parametrize("key", ["14", "few"])
@pytest.mark.parametrize("alpha", [0.05, 0.1, 0.25])
def test_small_p_values_are_as_rare_as_promised(
    null: Mapping[str, Sequence[Outcome]], key: str, method: str, alpha: float
) -> None:
    shares = shares_below(null[key], method, alpha)
    assert shares.mean() <= alpha + 3 * standard_error(shares)


def test_images_counted_on_their_own_break_the_promise(null: Mapping[str, Sequence[Outcome]]) -> None:
    # An image of a stranger is beyond all four subjects with a chance of one in five, however many images they have.
    shares = shares_below(null["few"], BY_IMAGE, 0.1)
    assert shares.mean() - 2 * standard_error(shares) > 0.1


def test_copies_are_found_and_few_others_flagged(dealt: Mapping[str, Sequence[Outcome]]) -> None:
    false, power = planted(dealt["199"], POOLED, 8)
    assert power.mean() > 0.5
    assert false.mean() <= 0.05 + 3 * standard_error(false)


def test_a_small_holdout_certifies_nothing(dealt: Mapping[str, Sequence[Outcome]]) -> None:
    false, power = planted(dealt["20"], POOLED, 8)
    assert not false.any()
    assert not power.any()
    assert least_copies(20, synthetic=20) > 8


def test_the_same_seed_gives_the_same_p_values() -> None:
    first, again = (
        fresh_repetition(1, 2, holdouts=(5,), train=8, synthetic=5, few=2, slices=3)["5"].innocent[POOLED]
        for _ in range(2)
    )
    np.testing.assert_array_equal(first, again)
