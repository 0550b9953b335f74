"""Adaptive augmentation: exact where it can be, near the analytic answer elsewhere, as often as stated."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import stats

from unalike.errors import SettingsError
from unalike.generators.stylegan.augment import (
    BRIGHTNESS,
    CONTRAST_OCTAVES,
    FRACTIONAL_SHIFT,
    LARGEST_SHIFT,
    SCALE_OCTAVES,
    Transforms,
    adapt_strength,
    apply_transforms,
    draw_transforms,
)
from unalike.seeds import generator_for


def _images(*shape: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(3).uniform(-1, 1, shape).astype(np.float32))


def _draw(count: int, strength: float = 0.5, *, square: bool = True, index: int = 0) -> Transforms:
    random = generator_for(5, "augment", index)
    return draw_transforms(count, strength=strength, random=random, square=square)


def _blit(count: int, mirrored: float = 0, quarters: float = 0, right: float = 0, down: float = 0) -> Transforms:
    """Shifts in shares of the shorter side. The matrices are nonsense, as nothing may read them."""
    return Transforms(
        matrices=torch.full((count, 2, 3), math.nan),
        blits=torch.tensor([[mirrored, quarters, right, down]] * count),
        moved=torch.zeros(count, dtype=torch.bool),
        gain=torch.ones(count),
        offset=torch.zeros(count),
    )


def _moved(backward: np.ndarray, count: int = 1) -> Transforms:
    """``backward`` (2, 3), in half shorter sides. The blits are nonsense, as nothing may read them."""
    return Transforms(
        matrices=torch.from_numpy(backward.astype(np.float32)).expand(count, 2, 3),
        blits=torch.full((count, 4), 1.0),
        moved=torch.ones(count, dtype=torch.bool),
        gain=torch.ones(count),
        offset=torch.zeros(count),
    )


def _recoloured(gain: list[float], offset: list[float]) -> Transforms:
    none = _blit(len(gain))
    return Transforms(none.matrices, none.blits, none.moved, torch.tensor(gain), torch.tensor(offset))


def _geometry_alone(drawn: Transforms) -> Transforms:
    count = len(drawn.moved)
    return Transforms(drawn.matrices, drawn.blits, drawn.moved, torch.ones(count), torch.zeros(count))


def _backward(turn: float, right: float, down: float, shift: tuple[float, float]) -> np.ndarray:
    """Backward matrix of: stretched by ``right`` and ``down``, turned clockwise, shifted (half shorter sides)."""
    clockwise = np.array([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]])
    linear = np.linalg.inv(clockwise @ np.diag([right, down]))
    return np.column_stack([linear, -linear @ shift])


def _centred(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """x and y of each pixel, in pixels from the centre."""
    y, x = np.mgrid[:height, :width].astype(float)
    return x - (width - 1) / 2, y - (height - 1) / 2


def _wave(x: np.ndarray, y: np.ndarray, frequency: float) -> np.ndarray:
    """A wave of ``frequency`` a pixel, neither along the rows nor along the columns."""
    return np.cos(2 * np.pi * frequency * (math.cos(0.3) * x + math.sin(0.3) * y) + 0.4)


def _tensor(image: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(image.astype(np.float32))[None, None]


# Known answers: exact copies


@pytest.mark.parametrize("shape", [(9, 7), (8, 8)])
@pytest.mark.parametrize("index", range(3))
def test_strength_0_leaves_images_bit_for_bit_untouched(shape: tuple[int, int], index: int) -> None:
    images = _images(5, 2, *shape)
    drawn = _draw(5, 0, square=shape[0] == shape[1], index=index)
    assert torch.equal(apply_transforms(images, drawn, masks=[1]), images)
    assert torch.equal(drawn.matrices, torch.eye(3)[:2].expand(5, 2, 3))
    assert not drawn.moved.any()
    assert not drawn.blits.any()


@pytest.mark.parametrize("side", [8, 9])
@pytest.mark.parametrize("quarters", [0, 1, 2, 3])
@pytest.mark.parametrize("mirrored", [0, 1])
def test_mirror_then_clockwise_quarter_turns_are_exact(side: int, quarters: int, mirrored: int) -> None:
    images = _images(3, 2, side, side)
    wanted = torch.rot90(images.flip(3) if mirrored else images, -quarters, (2, 3))
    assert torch.equal(apply_transforms(images, _blit(3, mirrored, quarters), masks=[1]), wanted)


@pytest.mark.parametrize(("height", "width"), [(16, 16), (16, 21), (23, 16)])
def test_a_whole_shift_is_a_roll_inside_and_a_reflection_at_the_edge(height: int, width: int) -> None:
    images = _images(2, 1, height, width)
    shifted = apply_transforms(images, _blit(2, right=2.2 / 16, down=-0.9 / 16))  # rounded: 2 right, 1 up
    assert torch.equal(shifted[:, :, :-1, 2:], images.roll((-1, 2), (2, 3))[:, :, :-1, 2:])
    assert torch.equal(shifted[:, :, :-1, :2], images[:, :, 1:, :2].flip(3))
    assert torch.equal(shifted[:, :, -1, 2:], images[:, :, -1, :-2])


def test_blits_come_in_order_mirror_turn_shift() -> None:
    images = _images(1, 1, 16, 16)
    changed = apply_transforms(images, _blit(1, mirrored=1, quarters=1, right=1 / 16))
    turned = torch.rot90(images.flip(3), -1, (2, 3))
    assert torch.equal(changed[..., 1:], turned[..., :-1])


def test_blits_are_undone_exactly_by_their_inverse() -> None:
    images = _images(2, 2, 12, 12)
    for mirrored in (0, 1):
        for quarters in range(4):
            there = apply_transforms(images, _blit(2, mirrored, quarters))
            # A mirror undoes itself and reverses the turns that it comes before.
            back = apply_transforms(there, _blit(2, mirrored, quarters if mirrored else -quarters % 4))
            assert torch.equal(back, images)
    shifted = apply_transforms(images, _blit(2, right=1 / 12, down=1 / 12))
    back = apply_transforms(shifted, _blit(2, right=-1 / 12, down=-1 / 12))
    assert torch.equal(back[:, :, :-1, :-1], images[:, :, :-1, :-1])


def test_drawn_blits_only_ever_copy_pixels() -> None:
    drawn = _draw(400, 0.3)
    images = torch.arange(400 * 100.0).view(400, 1, 10, 10)
    changed = apply_transforms(images, _geometry_alone(drawn))
    exact = ~drawn.moved
    assert 0 < int(exact.sum()) < 400
    assert bool((drawn.blits[exact] != 0).any())
    for before, after in zip(images[exact], changed[exact], strict=True):
        assert set(after.unique().tolist()) <= set(before.unique().tolist())


def test_a_quarter_turn_of_an_oblong_image_is_refused() -> None:
    with pytest.raises(ValueError, match="8 × 6"):
        apply_transforms(_images(1, 1, 8, 6), _blit(1, quarters=1))
    drawn = _draw(500, 1, square=False)
    assert not drawn.blits[:, 1].any()
    assert apply_transforms(_images(500, 1, 8, 6), drawn).shape == (500, 1, 8, 6)


# Known answers: resampling


@pytest.mark.parametrize(("height", "width"), [(64, 64), (56, 80), (80, 56)])
@pytest.mark.parametrize(("frequency", "tolerance"), [(0.05, 0.005), (0.1, 0.015), (0.2, 0.05)])
def test_a_transformed_wave_is_the_wave_at_the_transformed_places(
    height: int, width: int, frequency: float, tolerance: float
) -> None:
    backward = _backward(0.45, 1.15, 0.9, (0.11, -0.07))
    x, y = _centred(height, width)
    unit = min(height, width) / 2
    from_x = backward[0, 0] * x + backward[0, 1] * y + backward[0, 2] * unit
    from_y = backward[1, 0] * x + backward[1, 1] * y + backward[1, 2] * unit
    wanted = _wave(from_x, from_y, frequency)
    image = _tensor(_wave(x, y, frequency))
    got = apply_transforms(image, _moved(backward))[0, 0].numpy()
    inside = np.hypot(x, y) < 18
    assert np.abs(got - wanted)[inside].max() < tolerance
    # So far away is what was there before, and what plain bilinear reading gives.
    assert np.abs(image[0, 0].numpy() - wanted)[inside].max() > 0.3
    if height == width:
        grid = F.affine_grid(_moved(backward).matrices, list(image.shape), align_corners=False)
        bilinear = F.grid_sample(image, grid, align_corners=False)[0, 0].numpy()
        assert np.abs(got - wanted)[inside].max() < 0.5 * np.abs(bilinear - wanted)[inside].max()


def test_detail_too_fine_once_shrunk_vanishes_and_is_no_alias() -> None:
    x, _ = _centred(64, 64)
    shrunk = apply_transforms(_tensor(np.cos(2 * np.pi * 0.45 * x)), _moved(_backward(0, 0.7, 0.7, (0, 0))))
    assert float(shrunk[..., 20:-20, 20:-20].std()) < 0.1  # 0.71 before, 0.42 read bilinearly


def test_a_constant_stays_constant_up_to_the_border() -> None:
    images = torch.full((64, 1, 13, 10), 0.7)
    changed = apply_transforms(images, _geometry_alone(_draw(64, 0.9, square=False)))
    torch.testing.assert_close(changed, images, atol=1e-5, rtol=0)


def test_resampling_far_outside_reads_reflections() -> None:
    image = _tensor(_wave(*_centred(32, 32), 0.04))
    away = apply_transforms(image, _moved(_backward(0, 1, 1, (2, 0))))  # by a whole side
    still = apply_transforms(image, _moved(_backward(0, 1, 1, (0, 0))))
    torch.testing.assert_close(away, still.flip(3), atol=1e-5, rtol=0)


@pytest.mark.parametrize("square", [True, False])
def test_resampling_agrees_with_the_exact_copy_of_the_same_blits(square: bool) -> None:
    drawn = _draw(400, 0.4, square=square)
    chosen = ~drawn.moved & (drawn.blits != 0).any(dim=1)
    blits, matrices = drawn.blits[chosen], drawn.matrices[chosen]
    assert len(blits) > 10
    height, width = 40, (40 if square else 56)
    images = _tensor(_wave(*_centred(height, width), 0.04)).expand(len(blits), 1, height, width)
    # Shifts of a matrix are not rounded; here they are whole already.
    pixels = (blits[:, 2:] * 40).round()
    forward = torch.linalg.inv(torch.cat([matrices, torch.tensor([0.0, 0, 1]).expand(len(blits), 1, 3)], dim=1))
    forward[:, :2, 2] = pixels / 20
    whole = torch.linalg.inv(forward)[:, :2]
    exact = Transforms(matrices, blits, torch.zeros(len(blits), dtype=torch.bool), drawn.gain, drawn.offset)
    read = Transforms(whole, blits, ~exact.moved, drawn.gain, drawn.offset)
    copied = apply_transforms(images, _geometry_alone(exact))
    between = apply_transforms(images, _geometry_alone(read))
    torch.testing.assert_close(between[..., 8:-8, 8:-8], copied[..., 8:-8, 8:-8], atol=0.01, rtol=0)


# Known answers: intensity and masks


def test_intensity_is_exactly_affine_on_images_and_absent_on_masks() -> None:
    images = _images(3, 3, 6, 5)
    changed = apply_transforms(images, _recoloured([-1, 1.5, 2], [0, 0.25, -0.5]), masks=[1])
    assert torch.equal(changed[:, 1], images[:, 1])
    for channel in (0, 2):
        assert torch.equal(changed[0, channel], -images[0, channel])
        torch.testing.assert_close(changed[1, channel], 1.5 * images[1, channel] + 0.25)
        torch.testing.assert_close(changed[2, channel], 2 * images[2, channel] - 0.5)
    assert float(changed.max()) > 1  # not clipped


@pytest.mark.parametrize(("height", "width"), [(24, 24), (24, 31)])
def test_no_mask_ever_gets_a_new_level(height: int, width: int) -> None:
    levels = torch.tensor([-1.0, -0.6, 0.3])
    mask = levels[torch.from_numpy(np.random.default_rng(0).integers(0, 3, (64, 1, height, width)))]
    images = torch.cat([mask, _images(64, 1, height, width)], dim=1)
    drawn = _draw(64, 0.8, square=height == width)
    changed = apply_transforms(images, drawn, masks=[0])
    assert set(changed[:, 0].unique().tolist()) == set(levels.tolist())
    assert torch.equal(changed[:, 1:], apply_transforms(images[:, 1:], drawn))
    assert torch.equal(changed[:, :1], apply_transforms(images[:, :1], drawn, masks=[0]))


@pytest.mark.parametrize(("height", "width"), [(48, 48), (40, 64)])
def test_mask_and_image_move_together(height: int, width: int) -> None:
    x, y = _centred(height, width)
    blob = (np.hypot(x - 3, y + 2) < 5).astype(np.float32)
    drawn = _geometry_alone(_draw(200, 0.5, square=height == width))
    images = torch.from_numpy(np.stack([blob, blob])).expand(200, 2, height, width)
    changed = apply_transforms(images, drawn, masks=[1]).numpy()
    whole = 0
    for before, (image, mask) in zip(images.numpy(), changed, strict=True):
        edge = np.concatenate([mask[0], mask[-1], mask[:, 0], mask[:, -1]])
        if edge.any():
            continue  # partly outside: the two are cut off differently
        whole += 1
        for axis in (x, y):
            of_image, of_mask = (float((axis * pixels).sum() / pixels.sum()) for pixels in (image, mask))
            assert abs(of_image - of_mask) < 1
        assert 0.2 < mask.sum() / before[1].sum() < 5
    assert whole > 100


# Reference: gradients


def test_gradients_equal_finite_differences() -> None:
    images = _images(9, 2, 8, 8)
    drawn = _draw(9, 0.25)
    copied = ~drawn.moved & (drawn.blits != 0).any(dim=1)
    assert min(int(drawn.moved.sum()), int(copied.sum()), int((~drawn.moved & ~copied).sum())) > 0
    weights = _images(9, 2, 8, 8).flip(2) + 0.1

    def value(of: torch.Tensor) -> torch.Tensor:
        return (apply_transforms(of, drawn, masks=[1]).double() * weights).sum()

    leaf = images.clone().requires_grad_()
    (slope,) = torch.autograd.grad(value(leaf), leaf)
    # It is affine in the images, so that a wide step is as exact as a narrow one, and rounds less.
    for place in np.random.default_rng(1).integers(0, images.numel(), 90).tolist():
        step = torch.zeros(images.numel())
        step[place] = 1
        step = step.view_as(images)
        numeric = float(value(images + step) - value(images - step)) / 2
        assert numeric == pytest.approx(float(slope.flatten()[place]), abs=2e-4)
    assert torch.equal(leaf.detach(), images)


def test_gradients_arrive_where_inference_came_first_and_in_half_precision() -> None:
    drawn = _draw(8, 0.9)
    with torch.inference_mode():
        apply_transforms(_images(8, 1, 17, 17), drawn)
    images = _images(8, 1, 17, 17).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        changed = apply_transforms(images, drawn)
    assert changed.dtype == torch.float32
    assert torch.equal(changed, apply_transforms(images, drawn))
    (slope,) = torch.autograd.grad(changed.sum(), images)
    assert bool(slope.isfinite().all())
    assert bool(slope.flatten(1).any(dim=1).all())


# Properties of the draw


def _share_is(share: float, happened: np.ndarray) -> None:
    test = stats.binomtest(int(happened.sum()), len(happened), share)
    assert test.pvalue > 1e-4, (share, happened.mean())


@pytest.mark.parametrize("strength", [0.2, 0.7, 1.0])
def test_each_transformation_happens_as_often_as_stated(strength: float) -> None:
    drawn = _draw(20_000, strength)
    mirrored, quarters, right, down = drawn.blits.numpy().T
    _share_is(strength / 2, mirrored == 1)
    for turns in (1, 2, 3):
        _share_is(strength / 4, quarters == turns)
    _share_is(strength, right != 0)
    assert np.array_equal(right != 0, down != 0)
    assert np.abs(drawn.blits[:, 2:].numpy()).max() == pytest.approx(LARGEST_SHIFT, abs=1e-3)
    # Scale, stretch, fractional shift, and two turns of which at least one happens with the strength.
    _share_is(1 - (1 - strength) ** 4, drawn.moved.numpy())
    _share_is(strength / 2, drawn.gain.numpy() < 0)
    _share_is(strength, np.abs(drawn.gain.numpy()) != 1)
    _share_is(strength, drawn.offset.numpy() != 0)


def test_amounts_are_distributed_as_in_the_paper() -> None:
    drawn = _draw(20_000, 1)
    matrices = drawn.matrices.double().numpy()
    # The stretch keeps areas, turns and mirrors keep them too: the determinant knows the scale alone.
    octaves = -np.log2(np.abs(np.linalg.det(matrices[:, :, :2]))) / 2
    assert stats.kstest(octaves, "norm", args=(0, SCALE_OCTAVES)).pvalue > 1e-3
    # Singular values are the scale times and divided by the stretch.
    singular = np.linalg.svd(matrices[:, :, :2], compute_uv=False)
    stretch = np.log2(singular[:, 0] / singular[:, 1]) / 2
    assert stats.kstest(stretch, "halfnorm", args=(0, SCALE_OCTAVES)).pvalue > 1e-3
    gain = drawn.gain.double().numpy()
    assert stats.kstest(np.log2(np.abs(gain)), "norm", args=(0, CONTRAST_OCTAVES)).pvalue > 1e-3
    brightness = drawn.offset.double().numpy() / gain
    assert stats.kstest(brightness, "norm", args=(0, BRIGHTNESS)).pvalue > 1e-3
    # Every direction is as likely as any other.
    angle = np.arctan2(matrices[:, 1, 0], matrices[:, 0, 0])
    assert stats.kstest((angle + math.pi) / (2 * math.pi), "uniform").pvalue > 1e-3
    # The fractional shift comes last, so that the forward shift is it and the whole one, turned and scaled.
    forward = np.linalg.inv(np.concatenate([matrices, np.tile([[[0, 0, 1.0]]], (20_000, 1, 1))], axis=1))
    fraction = FRACTIONAL_SHIFT**2
    scaled_by = np.exp(2 * (SCALE_OCTAVES * math.log(2)) ** 2)  # the mean square of a lognormal factor, of each of two
    whole = LARGEST_SHIFT**2 / 3 * scaled_by**2
    for axis in (0, 1):
        assert (forward[:, axis, 2] / 2).std() == pytest.approx(math.sqrt(fraction + whole), rel=0.03)


def test_turns_happen_with_the_root_probability() -> None:
    strength = 0.36  # each of the two turns: 0.2
    drawn = _draw(20_000, strength)
    matrices = drawn.matrices.double().numpy()[:, :, :2]
    # Without any turn, a matrix has zeros on one diagonal, whatever was mirrored or turned by quarters.
    straight = (matrices[:, 0, 1] == 0) & (matrices[:, 1, 0] == 0) | (matrices[:, 0, 0] == 0) & (matrices[:, 1, 1] == 0)
    _share_is(1 - strength, straight)


def test_a_slice_is_that_part_of_the_batch() -> None:
    drawn, images = _draw(16), _images(16, 1, 10, 10)
    whole = apply_transforms(images, drawn)
    part = drawn[4:8]
    assert len(part) == 4
    for name in ("matrices", "blits", "moved", "gain", "offset"):
        assert torch.equal(getattr(part, name), getattr(drawn, name)[4:8])
    torch.testing.assert_close(apply_transforms(images[4:8], part), whole[4:8], atol=1e-5, rtol=0)


def test_an_image_s_numbers_depend_neither_on_the_count_nor_on_others() -> None:
    few, many = _draw(5), _draw(50)
    for name in ("matrices", "blits", "moved", "gain", "offset"):
        assert torch.equal(getattr(few, name), getattr(many[:5], name))
    # With another strength other coins fall, and what falls to an image stays as large.
    weak, strong = _draw(50, 0.3), _draw(50, 0.9)
    both = (weak.offset != 0) & (weak.gain.abs() == 1) & (strong.gain.abs() == 1)
    shifted = (weak.blits[:, 2] != 0) & (strong.blits[:, 2] != 0)
    assert torch.equal(weak.blits[shifted][:, 2:], strong.blits[shifted][:, 2:])
    assert torch.equal(weak.offset[both].abs(), strong.offset[both].abs())
    assert bool(shifted.any())


def test_no_global_random_state_is_touched() -> None:
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    apply_transforms(_images(4, 1, 8, 8), _draw(4))
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("strength", [-0.1, 1.1, math.nan])
def test_an_impossible_strength_is_refused_in_one_line(strength: float) -> None:
    with pytest.raises(SettingsError, match="strength") as refused:
        _draw(1, strength)
    assert "\n" not in str(refused.value)


# Changes do not leak


@pytest.mark.parametrize("strength", [0.3, 0.8])
def test_below_strength_1_quarter_turns_leave_the_original_most_frequent_and_can_be_told_apart(strength: float) -> None:
    corners = [(0, 0), (0, -1), (-1, -1), (-1, 0)]  # clockwise
    count = 4000
    drawn = _draw(count, strength)
    blits = torch.zeros(count, 4)
    blits[:, 1] = drawn.blits[:, 1]
    turned_only = Transforms(
        drawn.matrices, blits, torch.zeros(count, dtype=torch.bool), torch.ones(count), torch.zeros(count)
    )
    mixing = np.zeros((4, 4))
    for start, (row, column) in enumerate(corners):
        images = torch.zeros(count, 1, 6, 6)
        images[:, :, row, column] = 1
        changed = apply_transforms(images, turned_only)
        mixing[start] = [float(changed[:, 0, row, column].mean()) for row, column in corners]
    np.testing.assert_allclose(mixing.sum(axis=1), 1, atol=1e-6)
    assert (mixing.argmax(axis=1) == np.arange(4)).all()
    eigenvalues = np.sort_complex(np.linalg.eigvals(mixing))
    np.testing.assert_allclose(eigenvalues, [1 - strength] * 3 + [1], atol=0.05)
    assert np.abs(eigenvalues).min() > 0.1


# The strength that adapts


def test_the_strength_goes_from_0_to_1_in_kimg_thousand_images() -> None:
    assert adapt_strength(0.2, 0.9, images=256) == pytest.approx(0.2 + 256 / 500_000)
    assert adapt_strength(0.2, 0.1, images=256) == pytest.approx(0.2 - 256 / 500_000)
    assert adapt_strength(0.2, 0.6, images=256) == 0.2
    strength = 0.0
    for _ in range(100):
        strength = adapt_strength(strength, 1, images=1000, kimg=100, highest=2)
    assert strength == pytest.approx(1)


def test_the_strength_follows_its_target() -> None:
    assert adapt_strength(0.2, 0.5, images=1000, target=0.4) > 0.2
    assert adapt_strength(0.2, 0.5, images=1000, target=0.5) == 0.2
    assert adapt_strength(0.2, 0.5, images=1000, target=0.6) < 0.2


def test_the_strength_stays_within_its_bounds() -> None:
    assert adapt_strength(0.7999, 1, images=10_000) == 0.8
    assert adapt_strength(0.0001, -1, images=10_000) == 0
    assert adapt_strength(0.9, 1, images=10_000, highest=0.5) == 0.5
