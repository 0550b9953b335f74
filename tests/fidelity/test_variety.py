"""Variety within sets has closed forms and equals references; planted twins and copies move what they should."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import ndimage

import unalike.fidelity.variety as variety_module
from unalike.cohort.roles import pick_one_each
from unalike.errors import InputError, SettingsError
from unalike.fidelity.variety import (
    count_scales,
    count_vendi,
    measure_nearest,
    multiscale_estimate,
    multiscale_name,
    multiscale_ssim,
    nearest_across,
    nearest_divergence,
    nearest_within,
    vendi_estimate,
    vendi_score,
)
from unalike.seeds import generator_for
from unalike.similarity.ssim import ssim_pairs


def names(count: int, each: int = 1) -> np.ndarray:
    return np.repeat([f"subject {number:04d}" for number in range(count)], each)


def pictures(count: int, side: int = 24, *, channels: int = 1, seed: int = 0, dtype: type = np.uint8) -> np.ndarray:
    """Smooth random images (count, channels, side, side)."""
    noise = np.random.default_rng(seed).standard_normal((count, channels, side, side))
    smooth = ndimage.gaussian_filter(noise, (0, 0, 2, 2))
    scaled = (smooth - smooth.min()) / (smooth.max() - smooth.min())
    found: np.ndarray = np.rint(scaled * np.iinfo(dtype).max).astype(dtype)
    return found


# One image each


def test_one_image_each_of_different_subjects() -> None:
    subjects = np.array(list("aaabbcdddd"))
    rows = pick_one_each(subjects, 3, generator_for(0, "test"))
    assert len(set(subjects[rows])) == 3
    assert (np.diff(rows) > 0).all()
    assert len(pick_one_each(subjects, 9, generator_for(0, "test"))) == 4
    drawn = [tuple(pick_one_each(subjects, 2, generator_for(0, "test", index))) for index in range(200)]
    assert {row for rows in drawn for row in rows} == set(range(10))


# Multiscale SSIM


@pytest.mark.parametrize(
    ("height", "width", "scales"), [(11, 400, 1), (21, 21, 1), (22, 22, 2), (64, 64, 3), (175, 300, 4), (176, 176, 5)]
)
def test_scales_by_size(height: int, width: int, scales: int) -> None:
    assert count_scales(height, width) == scales
    assert multiscale_name(height, width) == f"MS-SSIM ({scales} scale{'s' * (scales > 1)})"


def test_a_constant_pair_has_the_closed_form() -> None:
    # Contrast and structure are 1 at all scales; luminance counts at the coarsest alone.
    a, b = np.full((1, 1, 64, 64), 51, np.uint8), np.full((1, 1, 64, 64), 102, np.uint8)
    luminance = (2 * 0.2 * 0.4 + 0.01**2) / (0.2**2 + 0.4**2 + 0.01**2)
    weight = 0.3001 / (0.0448 + 0.2856 + 0.3001)
    assert multiscale_ssim(a, b) == pytest.approx([luminance**weight], rel=1e-9)


def test_equal_images_are_1_and_negatives_0() -> None:
    images = pictures(3, 48, channels=2)
    assert multiscale_ssim(images, images) == pytest.approx(np.ones(3), abs=1e-12)
    assert multiscale_ssim(images, 255 - images) == pytest.approx(np.zeros(3), abs=1e-12)


@pytest.mark.parametrize(("side", "scales", "dtype"), [(182, 5, np.uint8), (100, 4, np.uint16), (21, 1, np.uint8)])
def test_equals_torchmetrics(side: int, scales: int, dtype: type) -> None:
    # Loads torchvision, which `import unalike` prepares.
    from torchmetrics.functional.image.ssim import multiscale_structural_similarity_index_measure as theirs

    a, b = pictures(2, side, channels=2, dtype=dtype), pictures(2, side, channels=2, seed=1, dtype=dtype)
    b = (0.7 * a + 0.3 * b).astype(dtype)
    weights = np.array(variety_module.SCALE_WEIGHTS[:scales])
    options = {"data_range": float(np.iinfo(dtype).max), "betas": tuple((weights / weights.sum()).tolist())}
    one, two = (torch.from_numpy(images.astype(np.float64)) for images in (a, b))
    expected = [theirs(one[:, [c]], two[:, [c]], reduction="none", **options) for c in range(2)]
    found = multiscale_ssim(a, b)
    assert found == pytest.approx(torch.stack(expected).mean(dim=0).numpy(), abs=1e-5)
    assert (found < 0.99).all()


def test_pairs_do_not_depend_on_what_is_computed_beside(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = pictures(5, 24, channels=2), pictures(5, 24, channels=2, seed=1)
    whole = multiscale_ssim(a, b)
    monkeypatch.setattr(variety_module, "PIXELS_AT_ONCE", 1)
    assert multiscale_ssim(a, b) == pytest.approx(whole, rel=1e-12, abs=1e-12)


def test_the_mean_of_all_pairs_of_a_small_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(variety_module, "PAIRS_AT_ONCE", 4)
    images = pictures(6, 24)
    pairs = [(i, j) for i in range(6) for j in range(i)]
    expected = multiscale_ssim(images[[i for i, _ in pairs]], images[[j for _, j in pairs]])
    found = multiscale_estimate(images, seed=0)
    assert found.value == pytest.approx(expected.mean(), rel=1e-12)
    assert found.n == 6
    left = [expected[[subject not in pair for pair in pairs]].mean() for subject in range(6)]
    error = math.sqrt(5 * np.var(left))
    assert found.high - found.value == pytest.approx(2.5705818 * error, rel=1e-6)  # Student's t of 5 degrees


def test_pairs_of_a_large_set_use_each_image_as_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(variety_module, "PAIRS", 100)
    pairs = variety_module._random_pairs(40, generator_for(0, "test"))
    assert len(pairs) == 120
    assert (np.bincount(pairs.ravel()) == 6).all()
    assert len({frozenset(pair) for pair in pairs.tolist()}) == 120


def test_the_interval_of_pairs_covers_the_mean() -> None:
    # exp(−(x − y)²) of standard normal x, y has the mean 1/√5.
    covered = 0
    for seed in range(300):
        points = np.random.default_rng(seed).standard_normal(60)
        pairs = variety_module._random_pairs(60, generator_for(seed, "test"))
        values = np.exp(-((points[pairs[:, 0]] - points[pairs[:, 1]]) ** 2))
        found = variety_module._pairs_estimate(values, pairs, 60, 0.95)
        covered += found.low <= 1 / math.sqrt(5) <= found.high
    assert covered >= 270


def test_a_collapsed_set_is_more_alike() -> None:
    images = pictures(12, 24)
    collapsed = np.clip(images[:1].astype(int) + pictures(12, 24, seed=1) // 8, 0, 255).astype(np.uint8)
    assert multiscale_estimate(collapsed, seed=0).low > multiscale_estimate(images, seed=0).high


@pytest.mark.parametrize("count", [0, 1, 2])
def test_too_few_images_for_pairs(count: int) -> None:
    found = multiscale_estimate(pictures(3, 24)[:count], seed=0)
    assert math.isnan(found.value) == (count < 2)
    assert math.isnan(found.low)
    assert found.n == count


# SSIM with the nearest


def test_nearest_equals_all_pairs() -> None:
    images, others = pictures(9), pictures(7, seed=1)
    table = np.array([[ssim_pairs(one[None], two[None])[0] for two in images] for one in images])
    np.fill_diagonal(table, -1)
    assert nearest_within(images).tolist() == table.max(axis=1).tolist()
    table = np.array([[ssim_pairs(one[None], two[None])[0] for two in others] for one in images])
    assert nearest_across(images, others).tolist() == table.max(axis=1).tolist()


def test_planted_twins_are_nearest() -> None:
    images = pictures(8)
    images[[3, 5, 6]] = images[0]
    assert np.flatnonzero(nearest_within(images) == 1).tolist() == [0, 3, 5, 6]
    assert np.isnan(nearest_within(images[:1])).all()
    assert np.isnan(nearest_across(images, images[:0])).all()


def test_planted_copies_stand_out_from_the_holdout() -> None:
    train, holdout, fresh = (pictures(40, 16, seed=seed) for seed in range(3))
    innocent = measure_nearest(fresh, holdout, train, seed=0)
    copied = measure_nearest(np.concatenate([train[:30], fresh[:10]]), holdout, train, seed=0)
    assert (copied.synthetic_to_train[:30] == 1).all()
    assert (copied.synthetic_to_train[30:] == innocent.synthetic_to_train[:10]).all()
    assert copied.to_train.jensen_shannon.low > innocent.to_train.jensen_shannon.high
    assert innocent.to_train.jensen_shannon.low < 0.1
    assert copied.yardstick == innocent.yardstick
    assert (innocent.holdout == nearest_within(holdout)).all()


def test_a_set_without_images_is_undefined_and_the_others_are_not() -> None:
    train, fresh = pictures(6, 16), pictures(6, 16, seed=1)
    found = measure_nearest(fresh, train[:0], train, seed=0)
    assert found.drawn.jensen_shannon.value >= 0
    assert math.isnan(found.yardstick.jensen_shannon.value)
    assert math.isnan(found.to_train.kullback_leibler.value)


def test_sets_of_different_size_do_not_compare() -> None:
    images = pictures(6, 16)
    with pytest.raises(InputError, match=r"sets of \[5, 6\] images do not compare"):
        measure_nearest(images, images[:5], images, seed=0)


# Divergence


def test_divergence_by_hand() -> None:
    # Three of four in one bin and one in another, against one and three.
    a, b = np.array([0.11, 0.12, 0.13, 0.91]), np.array([0.11, 0.92, 0.93, 0.94])
    found = nearest_divergence(a, b, seed=0)
    entropy = -(0.75 * math.log2(0.75) + 0.25 * math.log2(0.25))
    assert found.jensen_shannon.value == pytest.approx(1 - entropy)
    smoothed = np.array([3.5, 1.5]) / 14
    expected = (smoothed[0] - smoothed[1]) * math.log2(3.5 / 1.5)
    assert found.kullback_leibler.value == pytest.approx(expected)


def test_equal_and_disjoint_distributions() -> None:
    values = np.linspace(0, 0.45, 50)
    same = nearest_divergence(values, values, seed=0)
    assert same.kullback_leibler.value == same.kullback_leibler.low == 0
    assert same.jensen_shannon.value == pytest.approx(0, abs=1e-12)
    disjoint = nearest_divergence(values, values + 0.51, seed=0)
    assert disjoint.jensen_shannon.value == pytest.approx(1)
    assert disjoint.jensen_shannon.high <= 1
    assert disjoint.jensen_shannon.low > 0.9
    assert math.isfinite(disjoint.kullback_leibler.value)


def test_values_outside_and_undefined_ones() -> None:
    found = nearest_divergence(np.array([-0.4, 1.0, math.nan]), np.array([0.0, 1.0]), seed=0)
    assert found.jensen_shannon.value == pytest.approx(0, abs=1e-12)
    assert found.jensen_shannon.n == 2
    alone = nearest_divergence(np.array([0.3, math.nan]), np.array([0.0, 1.0]), seed=0)
    assert math.isnan(alone.jensen_shannon.value)


def test_two_samples_of_one_distribution_are_not_told_apart() -> None:
    random = np.random.default_rng(0)
    low = [
        (found.kullback_leibler.low, found.jensen_shannon.low)
        for found in (nearest_divergence(random.beta(8, 4, 60), random.beta(8, 4, 60), seed=seed) for seed in range(40))
    ]
    assert (np.array(low) == 0).mean(axis=0).min() > 0.9


# Vendi score


@pytest.mark.parametrize(("n", "dimension"), [(1, 5), (6, 6), (6, 40)])
def test_orthogonal_vectors_count_each(n: int, dimension: int) -> None:
    assert vendi_score(np.eye(dimension)[:n] * np.arange(1, n + 1)[:, None]) == pytest.approx(n)


@pytest.mark.parametrize(("n", "dimension"), [(30, 4), (4, 30)])
def test_equal_vectors_count_once(n: int, dimension: int) -> None:
    vector = np.random.default_rng(0).standard_normal(dimension)
    assert vendi_score(np.tile(vector, (n, 1))) == pytest.approx(1)
    assert vendi_score(vector * np.linspace(1, 9, n)[:, None]) == pytest.approx(1)  # lengths do not count


def test_groups_of_unequal_size_by_hand() -> None:
    assert vendi_score(np.eye(3)[[0, 0, 0, 1]]) == pytest.approx(
        math.exp(-0.75 * math.log(0.75) - 0.25 * math.log(0.25))
    )


def test_two_vectors_at_an_angle() -> None:
    # Eigenvalues (1 ± cos 60°)/2.
    found = vendi_score(np.array([[1, 0], [0.5, math.sqrt(0.75)]]))
    assert found == pytest.approx(math.exp(-0.75 * math.log(0.75) - 0.25 * math.log(0.25)))


def test_both_sides_give_the_same() -> None:
    features = np.random.default_rng(1).standard_normal((12, 7))
    wide = np.concatenate([features, np.zeros((12, 20))], axis=1)
    assert vendi_score(features) == pytest.approx(vendi_score(wide), rel=1e-9)


def test_vendi_estimate_compares_equal_numbers() -> None:
    random = np.random.default_rng(2)
    size = count_vendi(40, 90, 60)
    assert size == 20
    assert count_vendi(10_000) == 500
    few, many = (random.standard_normal((count, 10)) for count in (40, 90))
    scores = [vendi_estimate(features, subjects=names(len(features)), size=size, seed=0) for features in (few, many)]
    assert scores[0].low < scores[1].value < scores[0].high
    assert vendi_score(many) > scores[1].high  # the plain score grows with n
    assert scores[1].high - scores[1].low < scores[0].high - scores[0].low
    collapsed = vendi_estimate(np.ones((90, 10)) + 0.1 * many, subjects=names(90), size=size, seed=0)
    assert 1 <= collapsed.low <= collapsed.high < scores[1].low


def test_images_of_one_subject_are_one_draw() -> None:
    features = np.random.default_rng(3).standard_normal((30, 8))
    once = vendi_estimate(features, subjects=names(30), size=10, seed=0)
    copied = vendi_estimate(features.repeat(3, axis=0), subjects=names(30, 3), size=10, seed=0)
    assert copied.n == once.n == 30
    assert copied.value == pytest.approx(once.value, rel=0.05)
    assert copied.high - copied.low == pytest.approx(once.high - once.low, rel=0.3)


def test_too_few_subjects_for_parts_are_undefined() -> None:
    found = vendi_estimate(np.ones((30, 2)), subjects=names(10, 3), size=6, seed=0)
    assert math.isnan(found.value)
    assert found.n == 10


# Bad input


def test_vectors_without_a_cosine() -> None:
    for features in (np.zeros((3, 2)), np.full((3, 2), np.nan)):
        with pytest.raises(InputError, match="not finite or of length 0"):
            vendi_score(features)
    for features in (np.zeros((0, 2)), np.zeros(3)):
        with pytest.raises(InputError, match="no set of vectors"):
            vendi_score(features)


def test_what_does_not_fit() -> None:
    images = pictures(2, 16)
    with pytest.raises(InputError, match="cannot be paired"):
        multiscale_ssim(images, images[:1])
    with pytest.raises(SettingsError, match="11 × 11"):
        multiscale_ssim(images[:, :, :10], images[:, :, :10])
    with pytest.raises(SettingsError, match="size = 1"):
        vendi_estimate(np.ones((4, 2)), subjects=names(4), size=1, seed=0)
    with pytest.raises(InputError, match="Give one for each image"):
        vendi_estimate(np.ones((4, 2)), subjects=names(3), size=2, seed=0)
