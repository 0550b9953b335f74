"""Dice and surface distances: closed forms, MONAI's values, empty masks, subjects pooled and resampled."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest

from unalike.utility.overlap import (
    MEAN,
    dice_of,
    estimate_gains,
    estimate_scores,
    measure_overlap,
    spacing_of,
    surface_distance,
)


def square(top: int, left: int, side: int = 6, size: int = 24) -> np.ndarray:
    plane = np.zeros((size, size), np.uint8)
    plane[top : top + side, left : left + side] = 1
    return plane


def names(*texts: str) -> np.ndarray:
    return np.asarray(texts, dtype=np.str_)


@pytest.mark.parametrize("shift", range(7))
def test_a_square_shifted_by_d_of_its_side_has_dice_one_minus_d_over_the_side(shift: int) -> None:
    found = measure_overlap(square(4, 4)[None], square(4, 4 + shift)[None], names("a"), labels=1)
    assert found.image_dice[0, 0] == pytest.approx(1 - shift / 6)
    assert found.dice[0, 0] == found.image_dice[0, 0]


@pytest.mark.parametrize(("shift", "spacing", "distance"), [(0, (1, 1), 0), (3, (1, 1), 3), (8, (5.0, 0.25), 2.0)])
def test_the_surface_of_a_shifted_square_is_as_far_away_as_it_was_shifted(
    shift: int, spacing: tuple[float, float], distance: float
) -> None:
    # More than 5 % of the moved surface, its far side, is exactly that far from the other.
    one, two = square(4, 4).astype(bool), square(4, 4 + shift).astype(bool)
    assert surface_distance(one, two, spacing=spacing) == pytest.approx(distance)
    assert surface_distance(two, one, spacing=spacing) == pytest.approx(distance)


def test_rows_and_columns_have_spacings_of_their_own() -> None:
    one, down = square(4, 4).astype(bool), square(7, 4).astype(bool)
    assert surface_distance(one, down, spacing=(5.0, 0.25)) == pytest.approx(15.0)
    assert surface_distance(one.T, down.T, spacing=(5.0, 0.25)) == pytest.approx(0.75)


def test_a_tenth_of_the_surface_counts_and_a_twentieth_does_not() -> None:
    truth = np.zeros((3, 103), bool)
    truth[1, :100] = True
    near, far = truth.copy(), truth.copy()
    near[1, 100:103] = True  # 3 of 103 pixels stick out: below the percentile
    far[1, 90:100] = False  # 10 of 100 pixels of the truth are left alone
    assert surface_distance(truth, near) == 0
    assert surface_distance(truth, far) == pytest.approx(np.percentile([0] * 90 + list(range(1, 11)), 95))


@pytest.mark.parametrize("spacing", [None, [1.7, 0.6]])
def test_scores_equal_those_of_monai(spacing: list[float] | None) -> None:
    import torch
    from monai.metrics import compute_dice, compute_hausdorff_distance
    from scipy.ndimage import gaussian_filter

    random = np.random.default_rng(3)
    maps = gaussian_filter(random.normal(size=(2, 12, 3, 20, 26)), (0, 0, 0, 2, 2)).argmax(axis=2).astype(np.uint8)
    steps = None if spacing is None else np.tile(spacing, (12, 1))
    found = measure_overlap(maps[0], maps[1], np.arange(12).astype(np.str_), labels=2, spacing=steps)
    truth, guess = (
        torch.stack([torch.from_numpy(each == k) for k in range(3)], 1).float() for each in (maps[0], maps[1])
    )
    dice = compute_dice(guess, truth, include_background=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # MONAI calls a deprecated argument of its own
        distances = compute_hausdorff_distance(guess, truth, percentile=95, spacing=spacing)
    np.testing.assert_allclose(found.image_dice, dice.numpy(), rtol=1e-6)
    np.testing.assert_allclose(found.image_hd95, distances.numpy(), rtol=1e-5)
    assert 0.1 < np.nanmean(found.image_dice) < 0.9
    assert found.unit == ("pixels" if spacing is None else "mm")


def test_empty_masks_are_undefined_together_and_worst_alone() -> None:
    blank, full = np.zeros((24, 24), np.uint8), square(4, 4)
    truth, guess = np.stack([blank, blank, full, full]), np.stack([blank, full, blank, full])
    found = measure_overlap(truth, guess, names("a", "b", "c", "d"), labels=1, spacing=np.tile([3.0, 4.0], (4, 1)))
    assert math.isnan(found.image_dice[0, 0])
    assert math.isnan(found.image_hd95[0, 0])
    np.testing.assert_array_equal(found.image_dice[1:, 0], [0, 0, 1])
    np.testing.assert_allclose(found.image_hd95[1:, 0], [24 * 5, 24 * 5, 0])
    assert (found.both_empty[0], found.one_empty[0]) == (1, 2)
    assert math.isnan(found.dice[0, 0])


def test_a_subject_sums_its_slices_for_dice_and_averages_them_for_the_distance() -> None:
    # a: 36 and 36 of 36 and 36 pixels, of which 36 and 0 overlap; a third slice is empty and changes nothing.
    truth = np.stack([square(4, 4), square(4, 4), np.zeros((24, 24), np.uint8), square(2, 2, side=10)])
    guess = np.stack([square(4, 4), square(4, 14), np.zeros((24, 24), np.uint8), square(2, 2, side=10)])
    found = measure_overlap(truth, guess, names("a", "a", "a", "b"), labels=1)
    np.testing.assert_allclose(found.dice[:, 0], [0.5, 1.0])
    np.testing.assert_allclose(found.hd95[:, 0], [5.0, 0.0])
    # Pooled, not averaged: a large slice weighs more.
    big = measure_overlap(truth[[1, 3]], guess[[1, 3]], names("a", "a"), labels=1)
    assert big.dice[0, 0] == pytest.approx(200 / 272)


def test_labels_do_not_see_each_other() -> None:
    truth = (square(2, 2) + 2 * square(12, 12)).astype(np.uint8)
    guess = (square(2, 2) * 2 + square(12, 12)).astype(np.uint8)
    assert (measure_overlap(truth[None], guess[None], names("a"), labels=2).dice == 0).all()
    assert (measure_overlap(truth[None], truth[None], names("a"), labels=2).dice == 1).all()


def test_dice_of_counts_is_twice_the_overlap_over_both_sizes() -> None:
    np.testing.assert_array_equal(dice_of(np.array([[3, 0], [4, 0], [8, 0]])), [0.5, np.nan])


def test_pixel_sizes_come_from_the_affine_and_are_all_or_none() -> None:
    affine = np.diag([-2.0, 0.5, 9.0, 1.0])  # (column, row) → mm
    turned = affine[:, [1, 0, 2, 3]]
    np.testing.assert_allclose(spacing_of([affine.ravel(), turned.ravel()]), [[0.5, 2.0], [2.0, 0.5]])
    assert spacing_of([list(affine.ravel()), []]) is None
    assert spacing_of([]) is None
    assert spacing_of([[0.0] * 16]) is None


def test_means_are_over_subjects_and_over_the_labels_they_have() -> None:
    scores = np.array([[1.0, 0.0], [0.5, np.nan], [np.nan, np.nan]])
    found = estimate_scores(scores, names("a", "b", "c"), ["x", "y"], seed=0)
    assert (found["x"].value, found["x"].n) == (0.75, 2)
    assert (found["y"].value, found["y"].n) == (0.0, 1)
    assert (found[MEAN].value, found[MEAN].n) == (0.5, 2)
    assert 0.5 <= found["x"].low <= 0.75 <= found["x"].high <= 1.0


def test_a_constant_gain_has_no_width_however_different_the_subjects_are() -> None:
    random = np.random.default_rng(1)
    worse = random.uniform(0, 0.8, (30, 2))
    people = np.array([f"s{index}" for index in range(30)])
    gain = estimate_gains(worse + 0.1, worse, people, ["x", "y"], seed=5)
    for estimate in gain.values():
        assert estimate.low == pytest.approx(0.1)
        assert estimate.high == pytest.approx(0.1)
    wide = estimate_scores(worse, people, ["x", "y"], seed=5)["x"]
    assert wide.high - wide.low > 0.1
