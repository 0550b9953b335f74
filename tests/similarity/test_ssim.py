"""SSIM: values by hand, the same as a float64 reference, and a search that gives what all pairs give."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter

from unalike.engine import Progress
from unalike.errors import InputError, SettingsError
from unalike.similarity import ssim
from unalike.similarity.correlation import Block
from unalike.similarity.ssim import Ranking, find_by_ssim, ssim_pairs


def random_images(seed: int, shape: tuple[int, ...], dtype: type) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max + 1, shape).astype(dtype)


def smooth_images(seed: int, shape: tuple[int, ...]) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(0, 1, shape)
    return np.clip(gaussian_filter(noise, (0, 0, 2, 2)) * 300 + 128, 0, 255).astype(np.uint8)


def reference(a: np.ndarray, b: np.ndarray) -> float:
    """One pair (C, H, W), step by step as scikit-image does it with Wang's settings."""
    top = float(np.iinfo(a.dtype).max)
    small, large = (0.01 * top) ** 2, (0.03 * top) ** 2

    def blur(plane: np.ndarray) -> np.ndarray:
        return gaussian_filter(plane, 1.5, truncate=3.5)[5:-5, 5:-5]

    values = []
    for x, y in zip(a.astype(np.float64), b.astype(np.float64), strict=True):
        ux, uy = blur(x), blur(y)
        vx, vy, vxy = blur(x * x) - ux * ux, blur(y * y) - uy * uy, blur(x * y) - ux * uy
        above = (2 * ux * uy + small) * (2 * vxy + large)
        values.append(np.mean(above / ((ux**2 + uy**2 + small) * (vx + vy + large))))
    return float(np.mean(values))


def all_pairs(queries: np.ndarray, references: np.ndarray) -> np.ndarray:
    rows, columns = np.indices((len(queries), len(references))).reshape(2, -1)
    return ssim_pairs(queries[rows], references[columns]).reshape(len(queries), len(references))


def blocks(images: np.ndarray, size: int) -> Iterator[Block]:
    for begin in range(0, len(images), size):
        yield Block(begin, images[begin : begin + size])


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_an_image_has_similarity_one_with_itself_to_the_bit(dtype: type) -> None:
    images = np.concatenate([random_images(0, (5, 2, 13, 17), dtype), np.full((1, 2, 13, 17), 7, dtype)])
    assert (ssim_pairs(images, images) == 1.0).all()


def test_constant_images_by_hand() -> None:
    """Without variance only the luminance is left: (2·x·y + C1)/(x² + y² + C1)."""
    a, b = np.full((1, 1, 20, 20), 100, np.uint8), np.full((1, 1, 20, 20), 200, np.uint8)
    small = (0.01 * 255) ** 2
    assert ssim_pairs(a, b)[0] == pytest.approx((2 * 100 * 200 + small) / (100**2 + 200**2 + small), abs=1e-12)


def test_one_window_by_hand() -> None:
    """An 11 × 11 image holds one window; one bright pixel in its middle weighs the square of the middle weight."""
    a, b = np.zeros((1, 1, 11, 11), np.uint8), np.zeros((1, 1, 11, 11), np.uint8)
    a[0, 0, 5, 5], b[0, 0, 5, 5] = 255, 51
    weight = (1 / np.exp(-0.5 * (np.arange(-5, 6) / 1.5) ** 2).sum()) ** 2
    spread = weight - weight**2  # variance of the first in units of 255²; the second is a fifth of it
    luminance = (2 * weight**2 / 5 + 1e-4) / (weight**2 * 1.04 + 1e-4)
    expected = luminance * (2 * spread / 5 + 9e-4) / (spread * 1.04 + 9e-4)
    assert ssim_pairs(a, b)[0] == pytest.approx(expected, abs=1e-12)


def test_an_inverted_image_is_less_like_than_an_unrelated_one() -> None:
    a, b = random_images(1, (1, 1, 40, 40), np.uint8), random_images(2, (1, 1, 40, 40), np.uint8)
    inverted = 255 - a
    assert ssim_pairs(a, inverted)[0] < -0.5
    assert abs(ssim_pairs(a, b)[0]) < 0.05


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("shape", [(1, 11, 11), (3, 12, 29), (1, 64, 50), (2, 190, 201)])
def test_equals_the_reference(dtype: type, shape: tuple[int, int, int]) -> None:
    a, b = random_images(3, (3, *shape), dtype), random_images(4, (3, *shape), dtype)
    b[1] = a[1] // 2 + b[1] // 4
    b[2] = np.iinfo(dtype).max - a[2]
    expected = [reference(x, y) for x, y in zip(a, b, strict=True)]
    np.testing.assert_allclose(ssim_pairs(a, b), expected, atol=1e-9, rtol=0)


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_properties_on_drawn_images(data: st.DataObject) -> None:
    dtype = data.draw(st.sampled_from([np.uint8, np.uint16]))
    top = int(np.iinfo(dtype).max)
    shape = data.draw(st.tuples(st.integers(1, 3), st.integers(1, 2), st.integers(11, 30), st.integers(11, 30)))
    levels = data.draw(st.sampled_from([[0, top], [0, 1], [top - 1, top], [5], list(range(0, top, top // 7))]))
    random = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    a, b = (random.choice(levels, shape).astype(dtype) for _ in range(2))
    ours = ssim_pairs(a, b)
    np.testing.assert_allclose(ours, [reference(x, y) for x, y in zip(a, b, strict=True)], atol=1e-9, rtol=0)
    assert (ours == ssim_pairs(b, a)).all()
    assert (ours == ssim_pairs(a[..., ::-1, :], b[..., ::-1, :])).all()
    assert (np.abs(ours) <= 1).all()


def test_a_pair_has_one_value_whatever_is_computed_beside_it(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = random_images(5, (40, 1, 37, 23), np.uint8), random_images(6, (40, 1, 37, 23), np.uint8)
    together = ssim_pairs(a, b)
    monkeypatch.setattr(ssim, "PIXELS_AT_ONCE", 3000)
    np.testing.assert_array_equal(ssim_pairs(a, b), together)
    np.testing.assert_array_equal(np.concatenate([ssim_pairs(a[[i]], b[[i]]) for i in range(40)]), together)


@pytest.fixture(scope="module")
def world() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """150 references with duplicates (ties) and empty images, 12 queries, and the similarities of all pairs."""
    references = smooth_images(7, (150, 2, 35, 30))
    references[80:120] = references[:40]
    references[[5, 60, 130]] = 0
    queries = np.concatenate([references[30:34], smooth_images(8, (7, 2, 35, 30)), references[5:6]])
    return references, queries, all_pairs(queries, references)


def expected_best(similarities: np.ndarray, best: int) -> tuple[np.ndarray, np.ndarray]:
    order = np.argsort(-similarities, axis=1, kind="stable")[:, :best]
    return order, np.take_along_axis(similarities, order, axis=1)


@pytest.mark.parametrize("size", [9, 37, 150])
def test_search_equals_all_pairs_to_the_bit(world: tuple[np.ndarray, ...], size: int) -> None:
    references, queries, similarities = world
    found = find_by_ssim(queries=queries, references=blocks(references, size), best=4)
    indices, values = expected_best(similarities, 4)
    np.testing.assert_array_equal(found.references, indices)
    np.testing.assert_array_equal(found.similarities, values)
    assert np.isnan(found.mean).all()
    assert found.references[0].tolist()[:2] == [30, 110]
    assert found.references[-1].tolist()[:3] == [5, 60, 130]
    assert found.highest[-1] == 1.0


def test_little_memory_changes_nothing(world: tuple[np.ndarray, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """Queries prepared again and again, five references at a time, pairs copied one by one."""
    references, queries, similarities = world
    monkeypatch.setattr(ssim, "KEPT_NUMBERS", 5 * ssim.FIELDS * 2 * 35 * 30)
    monkeypatch.setattr(ssim, "COPIED_PIXELS", 1)
    found = find_by_ssim(queries=queries, references=blocks(references, 64), best=3)
    np.testing.assert_array_equal(found.references, expected_best(similarities, 3)[0])


@pytest.mark.parametrize("steps", [(3, 7), (64, 1024)])
def test_the_size_of_a_step_changes_nothing(
    world: tuple[np.ndarray, ...], steps: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Strips of 3 rows do not divide the image; those of 64, a graphics card's, are larger than it."""
    references, queries, similarities = world
    monkeypatch.setattr(ssim, "_steps", lambda width, device: steps)
    found = find_by_ssim(queries=queries, references=blocks(references, 150), best=3)
    np.testing.assert_array_equal(found.references, expected_best(similarities, 3)[0])


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_change_nothing_and_are_given_back(world: tuple[np.ndarray, ...], threads: int) -> None:
    references, queries, similarities = world
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found = find_by_ssim(queries=queries, references=blocks(references, 150), best=3)
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    np.testing.assert_array_equal(found.similarities, expected_best(similarities, 3)[1])


def test_float32_stays_far_within_the_margin(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flat halves, chessboards, steps of one gray level: what cancels most."""
    y, x = np.indices((48, 70))
    half = (x < 35) * 255
    planes = [0 * x, 0 * x + 255, half, 255 - half, np.clip(half, 1, 254), (x + y) % 2 * 255, x * 3, y * 5, 254 + x % 2]
    images = np.stack(planes).astype(np.uint8)[:, None]
    compared = []
    monkeypatch.setattr(ssim, "_settle", lambda ranking, table, *rest: compared.append(table))
    find_by_ssim(queries=images, references=[Block(0, images)])
    assert np.abs(compared[0] - all_pairs(images, images)).max() < ssim.MARGIN / 2


def test_sixteen_bits_and_chosen_channels() -> None:
    references, queries = random_images(9, (20, 3, 16, 18), np.uint16), random_images(10, (4, 3, 16, 18), np.uint16)
    found = find_by_ssim(queries=queries, references=blocks(references, 6), best=2, channels=[2, 0])
    indices, values = expected_best(all_pairs(queries[:, [2, 0]], references[:, [2, 0]]), 2)
    np.testing.assert_array_equal(found.references, indices)
    np.testing.assert_array_equal(found.similarities, values)


def test_fewer_references_than_asked_for_and_none() -> None:
    images = random_images(11, (2, 1, 12, 12), np.uint8)
    found = find_by_ssim(queries=images, references=[Block(7, images)], best=3)
    assert found.references.tolist() == [[7, 8, -1], [8, 7, -1]]
    assert np.isnan(found.similarities[:, 2]).all()
    assert find_by_ssim(queries=images, references=[], best=1).references.tolist() == [[-1], [-1]]
    assert find_by_ssim(queries=images[:0], references=[Block(0, images)]).references.shape == (0, 1)
    assert ssim_pairs(images[:0], images[:0]).shape == (0,)


def test_progress_counts_references() -> None:
    class Counted(Progress):
        total = 0

        def advance(self, count: int = 1, text: str = "") -> None:
            self.total += count

    progress = Counted()
    images = random_images(12, (9, 1, 11, 11), np.uint8)
    find_by_ssim(queries=images[:1], references=blocks(images, 4), progress=progress)
    assert progress.total == 9


def test_bad_input_is_told_in_one_line() -> None:
    small, good = np.zeros((1, 1, 10, 40), np.uint8), np.zeros((1, 1, 12, 12), np.uint8)
    with pytest.raises(SettingsError, match="11 × 11 pixels or more, these have 10 × 40"):
        ssim_pairs(small, small)
    with pytest.raises(SettingsError, match="11 × 11"):
        find_by_ssim(queries=small, references=[])
    with pytest.raises(InputError, match="1×12×12 uint8 cannot be compared with 1×12×12 uint16"):
        find_by_ssim(queries=good, references=[Block(0, good.astype(np.uint16))])
    with pytest.raises(InputError, match="float64 cannot be compared"):
        ssim_pairs(good.astype(np.float64), good.astype(np.float64))
    with pytest.raises(InputError, match="1 images cannot be paired with 2"):
        ssim_pairs(good, np.concatenate([good, good]))
    with pytest.raises(SettingsError, match="best 0"):
        find_by_ssim(queries=good, references=[], best=0)


def test_ranking_keeps_the_lower_index_and_never_takes_the_undefined() -> None:
    ranking = Ranking(2, 2)
    ranking.merge(np.array([[0.5, np.nan, 0.5], [np.nan, np.nan, np.nan]]), 0)
    ranking.merge(np.array([[0.5, 0.7], [-1.0, np.nan]]), 3)
    found = ranking.result()
    assert found.references.tolist() == [[4, 0], [3, -1]]
    np.testing.assert_array_equal(found.similarities, [[0.7, 0.5], [-1.0, np.nan]])
