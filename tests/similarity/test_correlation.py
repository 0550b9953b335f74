"""Exactness: the same numbers as float64 NumPy, the same bits however it is run."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unalike.images.moments import sum_pixels
from unalike.similarity import products
from unalike.similarity.correlation import Block, correlate, find_matches


def random_images(seed: int, shape: tuple[int, ...], dtype: type) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max + 1, shape).astype(dtype)


def reference(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """numpy.corrcoef in float64; NaN for constant images."""
    with np.errstate(invalid="ignore", divide="ignore"):
        both = np.concatenate([a.reshape(len(a), -1), b.reshape(len(b), -1)]).astype(np.float64)
        return np.corrcoef(both)[: len(a), len(a) :]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 7, 5), (1, 363, 363)])
def test_equals_numpy_corrcoef(dtype: type, shape: tuple[int, int, int]) -> None:
    """The largest shape has 131,769 pixels: more than one int32 block holds."""
    a, b = random_images(0, (5, *shape), dtype), random_images(1, (9, *shape), dtype)
    np.testing.assert_allclose(correlate(a, b), reference(a, b), atol=1e-12, rtol=0)


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_equals_numpy_corrcoef_on_drawn_images(data: st.DataObject) -> None:
    dtype = data.draw(st.sampled_from([np.uint8, np.uint16]))
    top = int(np.iinfo(dtype).max)
    shape = data.draw(st.tuples(st.integers(1, 3), st.integers(1, 9), st.integers(2, 9)))
    pixels = int(np.prod(shape))
    levels = data.draw(st.sampled_from([[0, top], [0, 1], [top - 1, top], list(range(0, top, max(1, top // 7)))]))
    images = data.draw(
        st.lists(st.lists(st.sampled_from(levels), min_size=pixels, max_size=pixels), min_size=1, max_size=4)
    )
    a = np.array(images, dtype=dtype).reshape(-1, *shape)
    ours, numpys = correlate(a, a), reference(a, a)
    constant = a.reshape(len(a), -1).min(axis=1) == a.reshape(len(a), -1).max(axis=1)
    assert np.isnan(ours[constant]).all()
    assert np.isnan(ours[:, constant]).all()
    np.testing.assert_allclose(ours[~constant][:, ~constant], numpys[~constant][:, ~constant], atol=1e-12, rtol=0)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_extreme_images(dtype: type) -> None:
    top = np.iinfo(dtype).max
    board = np.indices((300, 300)).sum(axis=0) % 2
    one = np.zeros((300, 300), dtype)
    one[0, 0] = 1
    images = np.stack([board * top, (1 - board) * top, one, np.full((300, 300), top), np.zeros((300, 300))])
    images = images.astype(dtype)[:, None]
    ours = correlate(images, images)
    assert ours[0, 0] == ours[2, 2] == 1.0
    assert ours[0, 1] == -1.0
    assert np.isnan(ours[3:]).all()
    np.testing.assert_allclose(ours[:3, :3], reference(images, images)[:3, :3], atol=1e-12)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_an_image_has_similarity_one_with_itself_to_the_bit(dtype: type) -> None:
    a = random_images(3, (40, 2, 13, 11), dtype)
    assert (np.diagonal(correlate(a, a)) == 1.0).all()


def test_channels_by_hand() -> None:
    """Three channels with the mask left out equal the value computed by hand on the first two."""
    a = np.array([[[[0, 10]], [[20, 30]], [[255, 0]]]], dtype=np.uint8)  # t1: 0 10, t2: 20 30, mask: 255 0
    b = np.array([[[[1, 2]], [[3, 5]], [[0, 255]]]], dtype=np.uint8)  # t1: 1 2, t2: 3 5, mask: 0 255
    # Pixels (0, 10, 20, 30), mean 15; (1, 2, 3, 5), mean 2.75.
    covariance = (-15 * -1.75) + (-5 * -0.75) + (5 * 0.25) + (15 * 2.25)
    expected = covariance / np.sqrt((225 + 25 + 25 + 225) * (1.75**2 + 0.75**2 + 0.25**2 + 2.25**2))
    assert correlate(a, b, channels=[0, 1])[0, 0] == pytest.approx(expected, abs=1e-15)
    assert correlate(a, b)[0, 0] < expected


def blocks(images: np.ndarray, size: int, *, known: bool) -> Iterator[Block]:
    for begin in range(0, len(images), size):
        part = images[begin : begin + size]
        yield Block(begin, part, *(sum_pixels(part) if known else ()))


def search(images: np.ndarray, queries: np.ndarray, size: int, **options: object):
    known = bool(options.pop("known", True))
    return find_matches(queries=queries, references=blocks(images, size, known=known), best=4, **options)


@pytest.fixture(scope="module")
def world() -> tuple[np.ndarray, np.ndarray]:
    """700 references with duplicates (ties) and constant images, 60 queries, one of them constant."""
    references = random_images(4, (700, 2, 12, 12), np.uint8)
    references[350:500] = references[:150]
    references[[5, 600]] = 9
    queries = np.concatenate([references[100:130], random_images(5, (29, 2, 12, 12), np.uint8), references[5:6]])
    return references, queries


def test_search_equals_brute_force(world: tuple[np.ndarray, np.ndarray]) -> None:
    references, queries = world
    found = search(references, queries, 128)
    everything = correlate(queries, references)
    order = np.argsort(-np.nan_to_num(everything, nan=-9), axis=1, kind="stable")[:, :4]
    np.testing.assert_array_equal(found.references[:-1], order[:-1])
    np.testing.assert_array_equal(found.similarities[:-1], np.take_along_axis(everything, order, 1)[:-1])
    np.testing.assert_allclose(found.mean[:-1], np.nanmean(everything[:-1], axis=1), atol=1e-11)


def test_a_constant_query_is_undefined_and_constant_references_match_nobody(
    world: tuple[np.ndarray, np.ndarray],
) -> None:
    references, queries = world
    found = search(references, queries, 100)
    assert np.isnan(found.similarities[-1]).all()
    assert np.isnan(found.mean[-1])
    assert (found.references[-1] == -1).all()
    assert not np.isin(found.references, [5, 600]).any()


def assert_same_bits(a: object, b: object) -> None:
    for name in ("references", "similarities", "mean"):
        assert getattr(a, name).tobytes() == getattr(b, name).tobytes()


@pytest.mark.parametrize("size", [1, 7, 256, 257, 10_000])
def test_same_bits_for_every_block_size(world: tuple[np.ndarray, np.ndarray], size: int) -> None:
    assert_same_bits(search(*world, 64), search(*world, size))


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_same_bits_for_every_number_of_threads(world: tuple[np.ndarray, np.ndarray], threads: int) -> None:
    expected, before = search(*world, 64), torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        assert_same_bits(expected, search(*world, 64))
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_same_bits_with_the_float32_fallback(dtype: type) -> None:
    references, queries = random_images(6, (50, 1, 40, 41), dtype), random_images(7, (9, 1, 40, 41), dtype)
    fast = search(references, queries, 16, product=products.int8_product)
    assert_same_bits(fast, search(references, queries, 16, product=products.float32_product))


def test_same_bits_whether_the_sums_are_known_or_not(world: tuple[np.ndarray, np.ndarray]) -> None:
    assert_same_bits(search(*world, 64, known=True), search(*world, 64, known=False))


def test_queries_beyond_one_tile(monkeypatch: pytest.MonkeyPatch, world: tuple[np.ndarray, np.ndarray]) -> None:
    expected = search(*world, 64)
    monkeypatch.setattr("unalike.similarity.correlation.QUERY_TILE", 7)
    assert_same_bits(expected, search(*world, 64))


def test_fewer_references_than_asked_for() -> None:
    images = random_images(8, (2, 1, 6, 6), np.uint8)
    found = search(images, images, 1)
    assert found.references.tolist() == [[0, 1, -1, -1], [1, 0, -1, -1]]
    assert np.isnan(found.similarities[:, 2:]).all()


def test_no_references_and_no_queries() -> None:
    images = random_images(8, (2, 1, 6, 6), np.uint8)
    nothing = find_matches(queries=images, references=[], best=2)
    assert np.isnan(nothing.mean).all()
    assert (nothing.references == -1).all()
    assert find_matches(queries=images[:0], references=[Block(0, images)], best=2).similarities.shape == (
        0,
        2,
    )


def test_floats_are_refused() -> None:
    with pytest.raises(TypeError, match="uint8 or uint16"):
        correlate(np.zeros((1, 1, 4, 4)), np.zeros((1, 1, 4, 4)))


def test_the_private_function_of_torch_is_there_and_exact() -> None:
    """``torch._int_mm`` is private: this test says so when it goes or changes."""
    assert hasattr(torch, "_int_mm")
    assert products._int8_is_exact("cpu")


def test_a_saturating_product_is_found_out_and_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processors without VNNI add pairs of int8 products in 16 bits, which saturates."""

    def saturating(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        pairs = (a.int()[:, None] * b.T.int()[None]).unflatten(2, (-1, 2)).sum(3)
        return pairs.clamp(-(2**15), 2**15 - 1).sum(2).int()

    monkeypatch.setattr(torch, "_int_mm", saturating)
    monkeypatch.setattr(products, "_worst_cases", lambda: [(torch.full((4, 64), -128, dtype=torch.int8),) * 2])
    products._int8_is_exact.cache_clear()
    try:
        assert products.pick_product(torch.device("cpu")) is products.float32_product
    finally:
        products._int8_is_exact.cache_clear()


def test_sums_are_exact() -> None:
    images = np.full((2, 3, 500, 500), 65535, np.uint16)
    sums, squares = sum_pixels(images)
    assert sums[0, 0] == 65535 * 250_000
    assert squares[1, 2] == 65535**2 * 250_000


@pytest.mark.parametrize("count", [2, 3, 17])
def test_images_of_one_pixel_have_no_correlation(count: int) -> None:
    images = np.arange(count, dtype=np.uint8).reshape(count, 1, 1, 1)
    assert np.isnan(correlate(images, images)).all()
