"""Channels as colours and back, and sizes: by hand, against Pillow, and what must hold of any image."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from unalike.errors import SettingsError
from unalike.generators.inversion.pixels import ChannelMapping, choose_mapping, resize_to

BRATS = ("t1", "t1ce", "t2", "flair", "mask")


def _draw(*shape: int, scale: float = 1.0) -> np.ndarray:
    return np.random.default_rng(3).uniform(-scale, scale, shape).astype(np.float32)


# Which channel is which colour


@pytest.mark.parametrize(
    ("channels", "sources", "drawn"),
    [
        (("gray",), (0, 0, 0), ("gray",)),
        (("mask", "gray"), (1, 1, 1), ("gray",)),
        (("adc", "dwi"), (0, 1, 0), ("adc", "dwi")),
        (("t2w", "adc", "dwi"), (0, 1, 2), ("t2w", "adc", "dwi")),
        (("t2", "flair", "t1ce"), (0, 1, 2), ("t2", "flair", "t1ce")),
        (("red", "green", "blue"), (0, 1, 2), ("red", "green", "blue")),
        (("blue", "mask", "green", "red"), (3, 2, 0), ("blue", "green", "red")),
        (("near-infrared", "red", "green", "blue"), (1, 2, 3), ("red", "green", "blue")),
        (BRATS, (1, 2, 3), ("t1ce", "t2", "flair")),
        (("flair", "t1w", "t1gd", "t2w", "mask"), (2, 3, 0), ("flair", "t1gd", "t2w")),
        (("a", "b", "c", "d", "e"), (0, 1, 2), ("a", "b", "c")),
    ],
)
def test_channels_have_the_colours_stated(
    channels: tuple[str, ...], sources: tuple[int, int, int], drawn: tuple[str, ...]
) -> None:
    mapping = choose_mapping(channels, {"mask": [0, 255]})
    assert mapping == ChannelMapping(channels, sources)
    assert mapping.drawn == drawn


@pytest.mark.parametrize(
    ("rgb", "sources"),
    [
        (("t2",), (2, 2, 2)),
        (("flair", "t1"), (3, 0, 3)),
        (("flair", "t2", "t1"), (3, 2, 0)),
        (("t1", "t1", "t2"), (0, 0, 2)),
    ],
)
def test_other_channels_can_be_chosen(rgb: Sequence[str], sources: tuple[int, int, int]) -> None:
    assert choose_mapping(BRATS, ["mask"], rgb=rgb).sources == sources


def test_a_channel_of_classes_is_a_mask_whatever_its_name() -> None:
    assert choose_mapping(("zones", "t2"), {"zones": [0, 1]}).drawn == ("t2",)


@pytest.mark.parametrize(
    ("rgb", "problem"),
    [
        (("flaire",), "rgb = flaire: no image channel of the cohort; did you mean flair\\? There are: t1, t1ce"),
        (("mask", "t1"), "rgb = mask: no image channel"),
        (("t1", "t1ce", "t2", "flair"), "at most three"),
    ],
)
def test_channels_that_cannot_be_drawn_are_refused(rgb: Sequence[str], problem: str) -> None:
    with pytest.raises(SettingsError, match=problem):
        choose_mapping(BRATS, ["mask"], rgb=rgb)


def test_a_cohort_of_masks_is_refused() -> None:
    with pytest.raises(SettingsError, match="draws no mask"):
        choose_mapping(("mask",), {})


def test_the_description_says_what_is_left_out_and_how_to_choose() -> None:
    assert choose_mapping(("gray",), {}).describe() == "gray in red, green and blue"
    assert choose_mapping(("adc", "dwi"), {}).describe() == "adc in red and blue, dwi in green"
    assert choose_mapping(("red", "green", "blue"), {}).describe() == "red, green and blue as they are"
    assert choose_mapping(BRATS, {"mask": [0, 255]}).describe() == (
        "t1ce in red, t2 in green, flair in blue; t1 left out, as there are three colours: --rgb t1ce t2 flair is what "
        "was chosen, name others there; mask left out, as a text-to-image base draws no mask"
    )


# To colours and back


def test_each_colour_holds_its_channel() -> None:
    images = np.stack([np.full((2, 4, 3), value, np.float32) for value in (-0.5, 0.0, 0.25, 0.5, 1.0)], axis=1)
    rgb = choose_mapping(BRATS, ["mask"]).to_rgb(images)
    assert rgb.shape == (2, 3, 4, 3)
    assert rgb.dtype == np.float32
    assert rgb[:, :, 0, 0].tolist() == [[0.0, 0.25, 0.5]] * 2


def test_a_channel_of_several_colours_is_their_mean() -> None:
    rgb = np.array([0.25, 0.5, 0.75], np.float32).reshape(1, 3, 1, 1)
    assert choose_mapping(("gray",), {}).from_rgb(rgb).flatten().tolist() == [0.5]
    assert choose_mapping(("adc", "dwi"), {}).from_rgb(rgb).flatten().tolist() == [0.5, 0.5]
    assert choose_mapping(("blue", "green", "red"), {}).from_rgb(rgb).flatten().tolist() == [0.75, 0.5, 0.25]
    assert choose_mapping(BRATS, {}, rgb=["flair", "t1", "t2"]).from_rgb(rgb).flatten().tolist() == [0.5, 0.75, 0.25]


@pytest.mark.parametrize(
    "channels", [("gray",), ("mask", "adc", "dwi"), ("t2w", "adc", "dwi"), ("blue", "green", "red"), BRATS]
)
def test_what_became_colours_comes_back_bit_for_bit(channels: tuple[str, ...]) -> None:
    images = _draw(3, len(channels), 16, 24)
    mapping = choose_mapping(channels, ["mask"])
    back = mapping.from_rgb(mapping.to_rgb(images))
    assert back.dtype == np.float32
    assert np.array_equal(back, images[:, [channels.index(name) for name in mapping.drawn]])


def test_other_numbers_of_channels_are_refused() -> None:
    mapping = choose_mapping(("adc", "dwi"), {})
    with pytest.raises(ValueError, match="3 channels, not the 2"):
        mapping.to_rgb(_draw(1, 3, 4, 4))
    with pytest.raises(ValueError, match="2 colours, not 3"):
        mapping.from_rgb(_draw(1, 2, 4, 4))


# Sizes


def _row(*values: float) -> np.ndarray:
    return np.array(values, np.float32).reshape(1, 1, 1, -1)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ((0.0, 0.5, 1.0, 0.0), (0.25, 0.5)),
        ((0.0, 0.5, 1.0), (1 / 6, 5 / 6)),  # the middle pixel is shared: (0 + 0.5 / 2) / 1.5
        ((-1.0, 0.0, 0.5, 0.25, 1.0), (-0.6, 0.35, 0.7)),  # the middle: (0 / 3 + 0.5 + 0.25 / 3) / (5 / 3)
        ((0.25, -0.75, 0.5), (0.0,)),
    ],
)
def test_down_is_the_mean_over_the_area(old: tuple[float, ...], new: tuple[float, ...]) -> None:
    assert resize_to(_row(*old), 1, len(new)).flatten() == pytest.approx(new, abs=1e-6)


def test_up_is_cubic_convolution() -> None:
    # Keys' weights a quarter of a pixel from the centre, as fractions of 128.
    line = np.zeros((1, 1, 1, 9), np.float32)
    line[..., 4] = 1
    doubled = resize_to(line, 1, 18).flatten() * 128
    assert doubled.tolist() == [0] * 5 + [-3, -9, 29, 111, 111, 29, -9, -3] + [0] * 5


def test_up_repeats_the_outermost_pixel() -> None:
    doubled = resize_to(_row(0.5, 0, 0, 0, 0, 0), 1, 12).flatten() * 256
    assert doubled.tolist() == [-3 + 29 + 111, -9 + 111, -3 + 29, -9, -3] + [0] * 7


def test_up_agrees_with_pillow_away_from_the_border() -> None:
    plane = _draw(13, 10, scale=0.5)
    theirs = np.asarray(Image.fromarray(plane).resize((33, 40), Image.Resampling.BICUBIC))
    ours = resize_to(plane[None, None], 40, 33)[0, 0]
    assert np.allclose(ours[8:-8, 8:-8], theirs[8:-8, 8:-8], atol=1e-5)


def test_down_by_whole_numbers_agrees_with_block_means() -> None:
    images = _draw(2, 3, 24, 12)
    blocks = images.astype(np.float64).reshape(2, 3, 8, 3, 6, 2).mean(axis=(3, 5))
    assert np.allclose(resize_to(images, 8, 6), blocks, atol=1e-6)


def test_one_axis_may_shrink_while_the_other_grows() -> None:
    images = _draw(1, 1, 6, 5, scale=0.5)
    both = resize_to(images, 3, 11)
    assert both.shape == (1, 1, 3, 11)
    assert np.allclose(both, resize_to(resize_to(images, 3, 5), 3, 11), atol=1e-6)


def test_the_same_size_changes_nothing() -> None:
    images = _draw(2, 3, 8, 16, scale=3.0)
    assert np.array_equal(resize_to(images, 8, 16), images)


def test_a_kept_axis_is_not_smoothed() -> None:
    images = np.repeat(_draw(1, 2, 1, 9), 4, axis=2)
    assert np.array_equal(resize_to(images, 2, 9), images[:, :, :2])


def test_overshoot_is_clipped() -> None:
    step = _row(*[-1.0] * 4, *[1.0] * 4)
    up = resize_to(step, 1, 32)
    assert up.min() == -1
    assert up.max() == 1
    assert resize_to(step / 2, 1, 32).max() > 0.5


SIDES = st.integers(1, 20)


@settings(max_examples=60, deadline=None)
@given(SIDES, SIDES, SIDES, SIDES)
def test_flat_stays_flat_mirrors_stay_mirrors_and_batches_do_not_matter(
    h: int, w: int, height: int, width: int
) -> None:
    flat = np.full((1, 2, h, w), 0.3, np.float32)
    assert np.allclose(resize_to(flat, height, width), 0.3, atol=1e-6)
    images = _draw(3, 2, h, w)
    resized = resize_to(images, height, width)
    assert resized.dtype == np.float32
    assert resized.shape == (3, 2, height, width)
    assert np.abs(resized).max() <= 1
    assert np.allclose(resize_to(images[..., ::-1], height, width), resized[..., ::-1], atol=1e-6)
    assert np.array_equal(resize_to(images[1:2], height, width), resized[1:2])


@settings(max_examples=30, deadline=None)
@given(SIDES, SIDES)
def test_down_keeps_the_mean(old: int, new: int) -> None:
    images = _draw(1, 1, max(old, new), 7)
    assert resize_to(images, min(old, new), 7).mean() == pytest.approx(images.mean(), abs=1e-6)


@pytest.mark.parametrize("size", [(0, 8), (8, -1)])
def test_no_size_is_refused(size: tuple[int, int]) -> None:
    with pytest.raises(SettingsError, match="at least 1 pixel"):
        resize_to(_draw(1, 1, 4, 4), *size)
