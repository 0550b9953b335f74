"""Views in which a changed copy stays near, and the gallery that finds whose it is."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import fft, ndimage
from tests.conftest import draw_person

from unalike.similarity.correlation import correlate
from unalike.similarity.gallery import POSES, Gallery, distance_above, rank_subjects
from unalike.similarity.views import EQUALIZED, RAW, VIEWS, WHITENED, Equalizer, Views, Whitening, centre, shrink


def people(count: int, seed: int = 0, size: int = 32) -> np.ndarray:
    random = np.random.default_rng(seed)
    return np.concatenate([draw_person(random, size=size) for _ in range(count)])[:, None]


@pytest.fixture(scope="module")
def train() -> np.ndarray:
    return people(80)


@pytest.fixture(scope="module")
def gallery(train: np.ndarray) -> Gallery:
    return Gallery(train, np.arange(len(train)).astype(str))


def test_the_raw_view_is_the_correlation(train: np.ndarray) -> None:
    vectors = centre(torch.from_numpy(train[:6].astype(np.float32)))
    np.testing.assert_allclose((vectors @ vectors.T).numpy(), correlate(train[:6], train[:6]), atol=1e-5)


def test_the_transform_is_the_cosine_transform_and_comes_back() -> None:
    random = np.random.default_rng(0)
    images = random.normal(100, 30, (3, 2, 12, 10)).astype(np.float32)
    equalizer = Equalizer.of(12, 10, upto=2.0)
    flat = (equalizer.rows @ torch.from_numpy(images) @ equalizer.columns.T).numpy()
    np.testing.assert_allclose(flat, fft.dctn(images, axes=(2, 3), norm="ortho"), rtol=1e-4, atol=1e-3)
    back = equalizer.restore(torch.from_numpy(flat).flatten(2)[..., equalizer.kept]).numpy()
    np.testing.assert_allclose(back, images - images.mean(axis=(2, 3), keepdims=True), atol=1e-3)


def test_whitened_components_have_equal_variance() -> None:
    random = np.random.default_rng(0)
    spread = np.array([100, 10, 1.0, 0.1])
    for vectors in (random.normal(size=(5000, 4)) * spread, random.normal(size=(6, 40))):
        fitted = Whitening.fit(torch.from_numpy(vectors.astype(np.float32)), epsilon=1e-9)
        made = ((torch.from_numpy(vectors.astype(np.float32)) - fitted.mean) @ fitted.components).numpy()
        covariance = made.T @ made / len(made)
        np.testing.assert_allclose(covariance, np.eye(len(covariance)), atol=0.02)


def test_blur_and_contrast_change_the_equalized_view_less_than_the_raw_one(train: np.ndarray) -> None:
    windows = torch.from_numpy(train.astype(np.float32))
    views = Views.fit(windows)
    blurred = ndimage.gaussian_filter(train.astype(float), (0, 0, 1.5, 1.5))
    original, changed = views.look(windows), views.look(torch.from_numpy(blurred.astype(np.float32)))
    likeness = {name: torch.linalg.vecdot(original[name], changed[name]).mean().item() for name in VIEWS}
    assert likeness[EQUALIZED] > likeness[WHITENED]
    dimmed = views.look(windows * 0.5 + 20)
    for name in VIEWS:
        # The floor of a ring's energy is in gray levels, so contrast matters a little.
        assert torch.linalg.vecdot(original[name], dimmed[name]).min().item() > (0.9999 if name == RAW else 0.97)


@pytest.mark.parametrize("pose", range(len(POSES)))
def test_every_pose_of_an_image_is_found_with_its_name(gallery: Gallery, train: np.ndarray, pose: int) -> None:
    turned = POSES[pose].apply(torch.from_numpy(train[5:8])).contiguous().numpy()
    found = gallery.resemble(turned)
    np.testing.assert_array_equal(found.references, np.broadcast_to([5, 6, 7], (3, 3)))
    undone = POSES[int(found.poses[0, 0])].apply(torch.from_numpy(turned))
    np.testing.assert_array_equal(undone.numpy(), train[5:8])


@pytest.mark.parametrize(
    "change",
    [
        lambda image: np.roll(image, (2, -2), axis=(2, 3)),
        lambda image: np.roll(image, (1, 2), axis=(2, 3))[..., ::-1],
        lambda image: ndimage.rotate(image, 3, axes=(2, 3), reshape=False, order=1, mode="nearest"),
        lambda image: ndimage.gaussian_filter(image, (0, 0, 1, 1)),
        lambda image: 255 * (image / 255) ** 0.6,
        lambda image: image + np.random.default_rng(1).normal(0, 15, image.shape),
    ],
)
def test_changed_copies_stand_out_from_all_new_people(gallery: Gallery, train: np.ndarray, change: object) -> None:
    copies = np.clip(np.rint(change(train[:20].astype(float))), 0, 255).astype(np.uint8)  # type: ignore[operator]
    strangers = gallery.resemble(people(60, seed=9)).scores
    found = gallery.resemble(copies)
    stand_out = (found.scores > strangers.max(axis=1, keepdims=True)).any(axis=0)
    assert stand_out.mean() >= 0.85
    assert (found.references[2] == np.arange(20)).mean() >= 0.95


def test_a_query_counts_alone(gallery: Gallery) -> None:
    """Neither the other queries nor their number matter."""
    images = people(21, seed=3)
    whole = gallery.resemble(images)
    for part in (slice(0, 1), slice(5, 17)):
        alone = gallery.resemble(images[part])
        np.testing.assert_allclose(alone.scores, whole.scores[:, part], atol=2e-4)
        np.testing.assert_array_equal(alone.references, whole.references[:, part])


def test_constant_images_are_undefined_and_hurt_nobody(train: np.ndarray) -> None:
    images = np.concatenate([train[:20], np.full((2, 1, 32, 32), 9, np.uint8)])
    found = Gallery(images, np.arange(22).astype(str)).resemble(np.concatenate([images[20:], images[3:4]]))
    assert np.isnan(found.scores[:, :2]).all()
    assert (found.references[:, :2] == -1).all()
    assert (found.references[:, 2] == 3).all()


def test_small_galleries_of_few_subjects_and_odd_shapes(train: np.ndarray) -> None:
    for images, subjects in (
        (train[:1], ["a"]),
        (train[:6], ["a", "a", "b", "b", "b", "b"]),
        (train[:9, :, :20], list("abcdefghi")),
        (np.concatenate([train[:9]] * 4, axis=1), list("abcdefghi")),
        (train[:9, :, :4, :4], list("abcdefghi")),
        (train[:9].astype(np.uint16) * 257, list("abcdefghi")),
    ):
        found = Gallery(images, np.array(subjects)).resemble(images)
        assert np.isfinite(found.scores).all()
        if images.shape[2] > 4:
            assert (found.references[0] == np.arange(len(images))).all()


def test_sixteen_bits_say_what_eight_do(train: np.ndarray) -> None:
    subjects = np.arange(30).astype(str)
    eight = Gallery(train[:30], subjects).resemble(train[30:40])
    sixteen = Gallery(train[:30].astype(np.uint16) * 257, subjects).resemble(train[30:40].astype(np.uint16) * 257)
    np.testing.assert_array_equal(eight.scores, sixteen.scores)


def test_large_images_are_averaged() -> None:
    large = np.repeat(np.repeat(people(3, size=64), 2, axis=2), 2, axis=3)
    np.testing.assert_array_equal(shrink(large), people(3, size=64))
    assert shrink(np.zeros((2, 1, 100, 200), np.uint16)).shape == (2, 1, 32, 64)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.floats(-0.99, 0.99), st.integers(0, 4)), min_size=1, max_size=12))
def test_subjects_are_ranked_as_by_hand(entries: list[tuple[float, int]]) -> None:
    values, owners = (torch.tensor([column]) for column in zip(*entries, strict=True))
    best: dict[int, float] = {}
    for value, owner in entries:
        best[owner] = max(best.get(owner, -1.0), value)
    ranked = sorted(best.values(), reverse=True)
    padded = (ranked + [ranked[-1]] * 6)[:6] if len(ranked) > 1 else ranked + [0.0] * 5
    expected = np.arctanh(np.array(padded))
    got = rank_subjects(values.to(torch.float32), owners)
    np.testing.assert_allclose(got[0].numpy(), expected, atol=1e-4)
    assert distance_above(got)[0].item() == pytest.approx(expected[0] - expected[5], abs=1e-4)
