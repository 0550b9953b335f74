"""Numbers about explanations: closed forms, SciPy's values, what chance gives."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import spearmanr
from tests.explain.conftest import wrap
from tests.explain.test_lime import QUADRANTS, Brightness

from unalike.explain import agreement
from unalike.explain.lime import hide_partly


def test_share_of_the_top_counts_sizes_whatever_their_sign() -> None:
    assert agreement.share_of_top(np.asarray([1.0, -6.0, 2.0, 1.0]), 2) == pytest.approx(0.8)
    assert np.isnan(agreement.share_of_top(np.zeros(4), 2))


def test_rank_correlation_is_that_of_scipy() -> None:
    random = np.random.default_rng(0)
    first, second = random.integers(0, 6, (2, 40)).astype(float)
    assert agreement.correlate_ranks(first, second) == pytest.approx(spearmanr(first, second).statistic)
    assert agreement.correlate_ranks(first, np.exp(first)) == pytest.approx(1.0)
    assert np.isnan(agreement.correlate_ranks(first, np.ones(40)))


def test_overlap_of_the_top_counts_what_both_have() -> None:
    first, second = np.asarray([5.0, 4, 3, 0, -9]), np.asarray([5.0, -4, 3, 4, 0])
    assert agreement.overlap_of_top(first, second, 2) == pytest.approx(1 / 3)
    assert np.isnan(agreement.overlap_of_top(first, second, 5))
    assert np.isnan(agreement.overlap_of_top(first, np.zeros(5), 2))


def test_chance_overlap_is_what_random_weights_have() -> None:
    random = np.random.default_rng(1)
    found = [agreement.overlap_of_top(*random.random((2, 12)), 4) for _ in range(4000)]
    assert agreement.chance_of_top(12, 4) == pytest.approx(np.mean(found), abs=0.012)
    assert agreement.chance_of_top(2, 1) == pytest.approx(0.5)


def test_stability_is_the_mean_over_pairs() -> None:
    up, down = np.arange(6.0), -np.arange(6.0)
    found = agreement.measure_stability(np.stack([up, up, down]), 2)
    assert (found.rank, found.top) == pytest.approx((-1 / 3, 1 / 3))
    assert np.isnan(agreement.measure_stability(up[None], 2).rank)


def test_overlap_with_the_lesion_in_closed_form() -> None:
    lesion = np.zeros((10, 10), bool)
    lesion[:4, :5] = True
    heat = np.zeros((10, 10))
    heat[:4, :5] = 1.0
    heat[0, 0] = 2.0
    exact = agreement.measure_overlap(heat, lesion)
    assert (exact.iou, exact.pointing, exact.inside, exact.area) == pytest.approx((1.0, 1.0, 1.0, 0.2))
    half = agreement.measure_overlap(np.roll(heat, 2, axis=0) - 0.5, lesion)
    # 10 of 20 pixels shared; heat 1.5 once and 0.5 nineteen times, the hottest one now in row 2.
    assert (half.iou, half.pointing, half.inside) == pytest.approx((10 / 30, 1.0, (1.5 + 9 * 0.5) / (1.5 + 19 * 0.5)))


def test_heat_anywhere_overlaps_as_chance_says() -> None:
    random = np.random.default_rng(2)
    lesion = np.zeros((20, 20), bool)
    lesion[3:9, 5:15] = True
    found = [agreement.measure_overlap(random.random((20, 20)), lesion) for _ in range(400)]
    assert np.mean([each.iou for each in found]) == pytest.approx(found[0].iou_chance, abs=0.01)
    assert np.mean([each.inside for each in found]) == pytest.approx(found[0].area, abs=0.01)
    assert np.mean([each.pointing for each in found]) == pytest.approx(found[0].area, abs=0.06)
    flat = agreement.measure_overlap(np.ones((20, 20)), lesion)
    assert (flat.iou, flat.pointing, flat.inside) == pytest.approx((flat.iou_chance, flat.area, flat.area))


@pytest.mark.parametrize("lesion", [np.zeros((4, 4), bool), np.ones((4, 4), bool)])
def test_overlap_without_a_lesion_or_without_anything_else_is_undefined(lesion: np.ndarray) -> None:
    found = agreement.measure_overlap(np.arange(16.0).reshape(4, 4), lesion)
    assert np.isnan([found.iou, found.pointing, found.inside, found.area]).all()


def test_heat_is_averaged_within_superpixels() -> None:
    segments = np.asarray([[0, 0, 1], [2, 2, 1]])
    assert agreement.average_in_segments(np.asarray([[1.0, 3, 5], [0, 1, 7]]), segments) == pytest.approx([2, 6, 0.5])


def test_true_importance_is_faithful_and_its_opposite_is_not() -> None:
    given = np.asarray([0.8, 0.1, 0.4, 0.0])
    classifier = wrap(Brightness(given[QUADRANTS]), mean=(0.0,), deviation=(1.0,))
    view = hide_partly(classifier, np.full((1, 32, 32), 255, np.uint8), QUADRANTS, hidden="zero")
    right = agreement.measure_faithfulness(view, given, target=0, seed=0)
    wrong = agreement.measure_faithfulness(view, -given, target=0, seed=0)
    # Probability with the first k of four hidden: 0.325, 0.125, 0.025, 0, 0; shown: 0, 0.2, 0.3, 0.325, 0.325.
    assert right.deletion == pytest.approx((0.325 / 2 + 0.125 + 0.025) / 4, abs=1e-4)
    assert right.insertion == pytest.approx((0.2 + 0.3 + 0.325 + 0.325 / 2) / 4, abs=1e-4)
    assert right.deletion_gain > 0 > wrong.deletion_gain
    assert right.insertion_gain > 0 > wrong.insertion_gain
    assert wrong.deletion == pytest.approx(right.insertion, abs=1e-4)
