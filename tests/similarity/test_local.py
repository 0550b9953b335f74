"""Local copies: a planted window is found at its places; what is reported is the correlation of those windows."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.ndimage
from hypothesis import given, settings
from hypothesis import strategies as st

from unalike.errors import SettingsError
from unalike.similarity.correlation import Block
from unalike.similarity.local import (
    LocalMatches,
    default_window,
    find_local_matches,
    make_details,
    windows_of_mask,
)


def noise(seed: int, shape: tuple[int, ...], dtype: type = np.uint8) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max + 1, shape).astype(dtype)


def search(queries: np.ndarray, references: np.ndarray, *, size: int = 1000, **options: object) -> LocalMatches:
    blocks = [Block(begin, references[begin : begin + size]) for begin in range(0, len(references), size)]
    return find_local_matches(queries=queries, references=blocks, **options)  # type: ignore[arg-type]


def cut(images: np.ndarray, number: int, place: np.ndarray, window: int) -> np.ndarray:
    top, left = place
    return images[number, :, top : top + window, left : left + window].astype(np.float64).ravel()


def best_by_force(a: np.ndarray, b: np.ndarray, window: int, stride: int) -> tuple[float, int]:
    """Highest correlation of the windows of image ``a`` with all windows of all ``b``, and which of ``b`` has it."""
    last = a.shape[-2] - window, a.shape[-1] - window
    ours = [
        cut(a, 0, np.array([top, left]), window)
        for top in sorted({*range(0, last[0] + 1, stride), last[0]})
        for left in sorted({*range(0, last[1] + 1, stride), last[1]})
    ]
    places = [np.array([top, left]) for top in range(last[0] + 1) for left in range(last[1] + 1)]
    highest = [
        np.corrcoef(np.array([*ours, *(cut(b, number, place, window) for place in places)]))[: len(ours), len(ours) :]
        for number in range(len(b))
    ]
    best = [float(table.max()) for table in highest]
    return max(best), int(np.argmax(best))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 2])
def test_equals_a_full_search(dtype: type, channels: int) -> None:
    queries, references = noise(0, (3, channels, 13, 15), dtype), noise(1, (4, channels, 13, 15), dtype)
    references[2, :, 3:9, 5:11] = queries[1, :, 4:10, 4:10]
    result = search(queries, references, window=6, stride=2, reach=None)
    ours, theirs = make_details(queries, window=6)[0], make_details(references, window=6)[0]
    for query in range(3):
        value, reference = best_by_force(ours[query : query + 1], theirs, 6, 2)
        assert result.references[query, 0] == reference
        assert result.similarities[query, 0] == pytest.approx(value, abs=1e-12)
        assert result.scores[query, 0] == pytest.approx(np.arctanh(value), abs=1e-9)  # few references


def planted(size: int, *, moved: int = 0, mirrored: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """30 references of smooth noise, and 2 queries, of which the second has a quarter of reference 17."""
    images = np.random.default_rng(5).normal(size=(32, 1, size, size))
    images = scipy.ndimage.gaussian_filter(images, (0, 0, size / 64, size / 64))
    images = (127 + 40 * images / images.std()).clip(0, 255).astype(np.uint8)
    references, queries = images[:30], images[30:].copy()
    begin, side = size // 4, size // 4
    source = references[17, :, :, ::-1] if mirrored else references[17]
    queries[1, :, begin + moved : begin + moved + side, begin : begin + side] = source[
        :, begin : begin + side, begin : begin + side
    ]
    return queries, references


@pytest.mark.parametrize(("size", "moved"), [(64, 0), (64, 3), (96, 5), (128, 3)])
def test_finds_a_planted_window_and_its_places(size: int, moved: int) -> None:
    queries, references = planted(size, moved=moved)
    result = search(queries, references, best=2)
    assert result.window == default_window((size, size))
    assert result.references[1, 0] == 17
    assert result.highest[1] > 2 * result.highest[0]
    np.testing.assert_array_equal(result.query_windows[1, 0] - result.reference_windows[1, 0], [moved, 0])
    assert (result.scores[:, 0] >= result.scores[:, 1]).all()
    assert (result.references[:, 0] != result.references[:, 1]).all()


def test_finds_a_mirrored_window_only_where_mirrors_are_searched() -> None:
    queries, references = planted(64, mirrored=True)
    plain = search(queries, references)
    assert plain.references[1, 0] != 17 or plain.similarities[1, 0] < 0.8
    result = search(queries, references, mirrors=("none", "left-right"))
    assert (result.references[1, 0], result.mirrors[1, 0]) == (17, "left-right")
    (top, left), (other_top, other_left) = result.query_windows[1, 0], result.reference_windows[1, 0]
    assert (top, 64 - result.window - left) == (other_top, other_left)


def test_reach_bounds_how_far_a_window_moved() -> None:
    queries, references = planted(64, moved=9)
    result = search(queries, references, reach=4)
    assert result.similarities[1, 0] < 0.9
    assert np.abs(result.query_windows - result.reference_windows).max() <= 4
    assert search(queries, references, reach=9).similarities[1, 0] > 0.95


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_constant_images_have_no_match_and_are_none(dtype: type) -> None:
    queries, references = noise(0, (2, 1, 16, 16), dtype), noise(1, (3, 1, 16, 16), dtype)
    queries[0], references[0] = 7, 9
    result = search(queries, references, window=8, best=3)
    assert np.isnan(result.scores[0]).all()
    assert np.isnan(result.similarities[0]).all()
    assert (result.references[0] == -1).all()
    assert (result.query_windows[0] == -1).all()
    assert sorted(result.references[1]) == [-1, 1, 2]
    assert np.isnan(search(queries, references[:0], window=8).highest).all()
    assert search(queries[:0], references, window=8).scores.shape == (0, 1)


def test_ties_go_to_the_lower_reference() -> None:
    queries = noise(3, (1, 1, 16, 16))
    references = np.concatenate([noise(4, (2, 1, 16, 16)), queries, queries])
    result = search(queries, references, window=8, best=3)
    assert list(result.references[0, :2]) == [2, 3]
    assert (result.similarities[0, :2] == 1.0).all()


@settings(deadline=None, max_examples=6)
@given(st.integers(0, 1000), st.integers(1, 9), st.integers(1, 3), st.booleans())
def test_nothing_depends_on_blocks_or_on_other_queries(seed: int, size: int, best: int, detail: bool) -> None:
    queries, references = noise(seed, (3, 1, 14, 12)), noise(seed + 1, (25, 1, 14, 12))
    options = {"window": 6, "reach": 2, "best": best, "detail": detail, "mirrors": ("none", "up-down")}
    whole = search(queries, references, **options)
    parts = search(queries, references, size=size, **options)
    alone = search(queries[1:2], references, **options)
    for field in ("scores", "similarities", "references", "query_windows", "reference_windows", "mirrors"):
        np.testing.assert_array_equal(getattr(whole, field), getattr(parts, field))
        np.testing.assert_array_equal(getattr(whole, field)[1:2], getattr(alone, field))


def test_reported_similarity_is_that_of_the_reported_windows() -> None:
    queries, references = planted(128, moved=3)
    result = search(queries, references)
    ours, theirs = (make_details(images, window=result.window)[0] for images in (queries, references))
    for query in range(2):
        pair = [
            cut(ours, query, result.query_windows[query, 0], result.window),
            cut(theirs, result.references[query, 0], result.reference_windows[query, 0], result.window),
        ]
        assert result.similarities[query, 0] == pytest.approx(np.corrcoef(pair)[0, 1], abs=1e-12)


def test_channels_are_chosen() -> None:
    queries, references = planted(64)
    other = noise(9, references.shape)
    both = np.concatenate([other[:2], queries], axis=1), np.concatenate([other[2:], references[2:]], axis=1)
    one = search(both[0], both[1], channels=[1])
    np.testing.assert_array_equal(one.scores, search(queries, references[2:]).scores)


def test_windows_are_where_masks_are() -> None:
    masks = np.zeros((4, 32, 32), np.uint8)
    masks[1, 10:14, 20:24] = 2  # middle (12, 22): window from (8, 18)
    masks[1, 0:2, 0:2] = 1  # smaller: left out
    masks[2, 30:32, 0:3] = 1  # at the edge: moved inside
    masks[3, 0:16, 4:12] = 1  # twice as high as a window: three windows half a side apart
    windows = windows_of_mask(masks, window=8)
    expected = [[], [[8, 18]], [[24, 0]], [[0, 4], [4, 4], [8, 4]]]
    assert [part.tolist() for part in windows] == expected
    result = search(noise(0, (4, 1, 32, 32)), noise(1, (3, 1, 32, 32)), window=8, windows=windows)
    assert result.references[0, 0] == -1
    assert result.query_windows[1:3, 0].tolist() == [[8, 18], [24, 0]]
    assert result.query_windows[3, 0].tolist() in expected[3]


def test_flat_windows_do_not_count() -> None:
    queries, references = np.full((1, 1, 32, 32), 9, np.uint8), noise(1, (3, 1, 32, 32))
    queries[:, :, 20:, 20:] = noise(0, (1, 1, 12, 12))
    result = search(queries, references, window=8, stride=4)
    assert (result.query_windows[0, 0] >= 16).all()


@pytest.mark.parametrize(
    "options",
    [{"window": 2}, {"window": 17}, {"stride": 0}, {"reach": -2}, {"best": 0}, {"mirrors": ()}, {"mirrors": ("x",)}],
)
def test_refuses_settings_that_make_no_sense(options: dict[str, object]) -> None:
    with pytest.raises(SettingsError):
        search(noise(0, (1, 1, 16, 16)), noise(1, (1, 1, 16, 16)), **options)


def test_refuses_windows_outside_the_image_and_other_types() -> None:
    images = noise(0, (1, 1, 16, 16))
    with pytest.raises(SettingsError, match="beyond"):
        search(images, images, window=8, windows=[np.array([[9, 0]])])
    with pytest.raises(TypeError, match="uint8"):
        search(images.astype(np.float32), images)
