"""Augmentation: exact where it can be, a reference implementation where it interpolates, and honest labels."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from unalike.errors import SettingsError
from unalike.generators.diffusion.augment import (
    AUGMENT_LABELS,
    LARGEST_SCALE,
    LARGEST_SHIFT,
    LARGEST_TURN,
    Changes,
    apply_changes,
    changes_from_labels,
    draw_changes,
)
from unalike.seeds import generator_for


def _images(*shape: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(3).uniform(-1, 1, shape).astype(np.float32))


def _smooth(height: int, width: int) -> torch.Tensor:
    noise = np.random.default_rng(4).normal(size=(2, 1, height, width))
    field = ndimage.gaussian_filter(noise, (0, 0, 2, 2))
    return torch.from_numpy((field / np.abs(field).max()).astype(np.float32))


def _change(
    count: int, *, mirrored: float = 0, scale: float = 0, turn: float = 0, right: float = 0, down: float = 0
) -> Changes:
    """``scale`` in octaves, ``turn`` in radians, shifts in shares of the shorter side."""
    row = [
        mirrored,
        scale / LARGEST_SCALE,
        math.cos(turn) - 1,
        math.sin(turn),
        right / LARGEST_SHIFT,
        down / LARGEST_SHIFT,
    ]
    return changes_from_labels(torch.tensor([row] * count))


def _draw(count: int, probability: float = 0.5) -> Changes:
    return draw_changes(count, probability=probability, random=generator_for(5, "augment"))


def test_untouched_images_come_back_bit_for_bit() -> None:
    images = _images(3, 2, 9, 7)
    for untouched in (_change(3), _draw(3, probability=0)):
        assert not untouched.labels.any()
        assert torch.equal(untouched.matrices, torch.eye(3)[:2].expand(3, 2, 3))
        assert torch.equal(apply_changes(images, untouched, nearest=[1]), images)


def test_an_image_that_is_only_mirrored_is_mirrored_bit_for_bit() -> None:
    images = _images(3, 2, 9, 7)
    assert torch.equal(apply_changes(images, _change(3, mirrored=1), nearest=[1]), images.flip(3))


def test_the_resampled_mirror_agrees_with_the_exact_one() -> None:
    images = _images(2, 1, 8, 12)
    tiny = _change(2, mirrored=1, right=1e-9)  # counts as moved, and is resampled
    assert not torch.equal(tiny.labels, _change(2, mirrored=1).labels)
    torch.testing.assert_close(apply_changes(images, tiny), images.flip(3), atol=1e-4, rtol=0)


@pytest.mark.parametrize(("height", "width"), [(16, 16), (16, 24), (24, 16)])
def test_a_shift_by_whole_pixels_moves_content_right_and_down_and_repeats_the_border(height: int, width: int) -> None:
    images = _images(2, 1, height, width)
    moved = apply_changes(images, _change(2, right=2 / 16, down=1 / 16))
    torch.testing.assert_close(moved[:, :, 1:, 2:], images[:, :, :-1, :-2], atol=1e-5, rtol=0)
    torch.testing.assert_close(moved[:, :, 1:, 0], images[:, :, :-1, 0], atol=1e-5, rtol=0)
    torch.testing.assert_close(moved[:, :, 0, 2:], images[:, :, 0, :-2], atol=1e-5, rtol=0)


def test_the_mirror_comes_before_the_shift() -> None:
    images = _images(1, 1, 16, 16)
    moved = apply_changes(images, _change(1, mirrored=1, right=1 / 16))
    torch.testing.assert_close(moved[..., 1:], images.flip(3)[..., :-1], atol=1e-5, rtol=0)


def test_a_quarter_turn_is_clockwise() -> None:
    # Wider than anything drawn, but with an exact answer.
    images = _images(1, 1, 10, 10)
    turned = apply_changes(images, _change(1, turn=math.pi / 2))
    torch.testing.assert_close(turned, torch.rot90(images, -1, (2, 3)), atol=1e-5, rtol=0)


def test_one_octave_larger_doubles_the_distance_from_the_centre() -> None:
    ramp = torch.linspace(-1, 1, 17).expand(1, 1, 9, 17)
    larger = apply_changes(ramp, _change(1, scale=1))
    torch.testing.assert_close(larger, ramp / 2, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("height", "width"), [(24, 24), (20, 36), (37, 21)])
@pytest.mark.parametrize("mirrored", [0, 1])
def test_changes_agree_with_scipy_in_pixel_space(height: int, width: int, mirrored: int) -> None:
    images = _smooth(height, width)
    turn, octaves, right, down = 0.45, 0.2, 0.07, -0.05
    change = _change(2, mirrored=mirrored, turn=turn, scale=octaves, right=right, down=down)
    ours = apply_changes(images, change)

    # The forward map in pixels from the centre, (row, column): mirror, scale and turn, then shift.
    mirror = np.diag([1.0, -1.0 if mirrored else 1.0])
    clockwise = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    forward = 2**octaves * clockwise @ mirror
    shift = min(height, width) * np.array([down, right])
    centre = (np.array([height, width]) - 1) / 2
    backward = np.linalg.inv(forward)
    offset = centre - backward @ (centre + shift)
    for image, got in zip(images[:, 0].numpy(), ours[:, 0].numpy(), strict=True):
        wanted = ndimage.affine_transform(image.astype(float), backward, offset, order=1, mode="nearest")
        np.testing.assert_allclose(got, wanted, atol=2e-5)
    assert float((ours - images).abs().max()) > 0.2


def test_masks_keep_their_levels_and_move_with_the_image() -> None:
    levels = torch.tensor([-1.0, -0.6, 0.3])
    mask = levels[torch.from_numpy(np.random.default_rng(0).integers(0, 3, (6, 1, 12, 15)))]
    images = torch.cat([_images(6, 1, 12, 15), mask], dim=1)
    change = _change(6, turn=0.3, scale=-0.1, right=0.05)
    changed = apply_changes(images, change, nearest=[1])
    assert set(changed[:, 1].unique().tolist()) == set(levels.tolist())
    assert not torch.equal(changed[:, 1], images[:, 1])
    # The picture beside it is what it is without a mask, and a block of one level lies where its picture does.
    assert torch.equal(changed[:, :1], apply_changes(images[:, :1], change))
    block = torch.full((1, 2, 24, 24), -1.0)
    block[:, :, 6:14, 8:18] = 1
    picture, label = apply_changes(block, _change(1, turn=0.3, right=0.1), nearest=[1])[0]
    assert float(((picture > 0) == (label > 0)).float().mean()) > 0.98
    assert set(label.unique().tolist()) == {-1.0, 1.0}


def test_given_images_stay_as_they_are_and_each_image_stands_alone() -> None:
    images = _images(8, 2, 12, 10).requires_grad_()
    before = images.detach().clone()
    change = _draw(8)
    changed = apply_changes(images, change, nearest=[1])
    assert torch.equal(images.detach(), before)
    assert not changed.requires_grad
    for i in range(8):
        alone = Changes(change.matrices[i : i + 1], change.labels[i : i + 1])
        assert torch.equal(apply_changes(images[i : i + 1], alone, nearest=[1])[0], changed[i])


def test_each_transformation_comes_as_often_as_asked() -> None:
    count, p = 20_000, 0.12
    labels = _draw(count, probability=p).labels
    # Mirror, scale, turn, shift; a drawn number is zero with probability zero.
    shares = (labels[:, [0, 1, 3, 4]] != 0).float().mean(dim=0)
    deviation = math.sqrt(p * (1 - p) / count)
    assert bool(((shares - p).abs() < 4.5 * deviation).all())
    assert torch.equal(labels[:, 4] != 0, labels[:, 5] != 0)
    touched = 1 - (1 - p) ** 4
    share = float((labels != 0).any(dim=1).float().mean())
    assert abs(share - touched) < 4.5 * math.sqrt(touched * (1 - touched) / count)


def test_numbers_are_uniform_within_their_bounds() -> None:
    labels = _draw(20_000, probability=0.9).labels
    assert set(labels[:, 0].unique().tolist()) == {0.0, 1.0}
    for column in (1, 4, 5):
        values = labels[:, column][labels[:, column] != 0]
        assert float(values.abs().max()) <= 1
        assert abs(float(values.mean())) < 0.03
        assert float(values.std()) == pytest.approx(1 / math.sqrt(3), abs=0.02)
    angle = torch.atan2(labels[:, 3], labels[:, 2] + 1)
    assert float(angle.abs().max()) <= LARGEST_TURN + 1e-6
    torch.testing.assert_close((labels[:, 2] + 1) ** 2 + labels[:, 3] ** 2, torch.ones(20_000), atol=1e-5, rtol=0)


def test_numbers_depend_on_the_stream_and_the_place_alone() -> None:
    first, again, longer = _draw(7), _draw(7), _draw(12)
    assert torch.equal(first.labels, again.labels)
    assert torch.equal(first.matrices, again.matrices)
    assert torch.equal(first.labels, longer.labels[:7])
    other = draw_changes(7, probability=0.5, random=generator_for(5, "augment", 1))
    assert not torch.equal(first.labels, other.labels)
    # Where an image is touched under a lower probability, it is touched alike under a higher one.
    few, many = _draw(200, probability=0.2).labels, _draw(200, probability=0.6).labels
    assert torch.equal(few[few != 0], many[few != 0])
    assert int((many != 0).sum()) > int((few != 0).sum())


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    probability=st.floats(0, 0.99),
    count=st.integers(0, 5),
)
def test_labels_determine_the_matrices(seed: int, probability: float, count: int) -> None:
    changes = draw_changes(count, probability=probability, random=np.random.default_rng(seed))
    assert changes.labels.shape == (count, AUGMENT_LABELS)
    assert changes.matrices.shape == (count, 2, 3)
    assert changes.labels.dtype == changes.matrices.dtype == torch.float32
    for label, matrix in zip(changes.labels.double().numpy(), changes.matrices.double().numpy(), strict=True):
        mirrored, scale, cosine, sine, right, down = label
        forward = np.eye(3)
        forward[:2, :2] = 2 ** (LARGEST_SCALE * scale) * np.array([[cosine + 1, -sine], [sine, cosine + 1]])
        forward[:2, 0] *= 1 - 2 * mirrored
        forward[:2, 2] = 2 * LARGEST_SHIFT * right, 2 * LARGEST_SHIFT * down
        np.testing.assert_allclose(matrix, np.linalg.inv(forward)[:2], atol=1e-6)


@pytest.mark.parametrize("probability", [-0.1, 1.0, math.nan])
def test_a_probability_that_leaves_no_untouched_image_is_refused(probability: float) -> None:
    with pytest.raises(SettingsError, match="below 1"):
        _draw(1, probability=probability)
