"""Pruning: the bound is never below the truth, and the answers are those of the dense search to the last bit."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from unalike.images.moments import sum_pixels
from unalike.similarity import correlation, pruning
from unalike.similarity.correlation import Block, SearchResult, find_matches
from unalike.similarity.products import float32_product, pick_product

CPU = torch.device("cpu")


def noise(random: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return random.integers(0, 256, shape)


def smooth(random: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    fields = ndimage.gaussian_filter(random.normal(size=shape), (0, 0, 8, 8))
    return 128 + 60 * fields / fields.std() + random.normal(0, 4, shape)


def slices(random: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Neighbours are alike, as in a volume, on a black ground."""
    fields = ndimage.gaussian_filter(random.normal(size=shape), (2, 0, 8, 8))
    return 80 * fields / fields.std()


def extremes(random: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Only 0 and 255, in checkerboards, stripes, halves and single pixels: rounding and rest at their largest."""
    row, column = np.indices(shape[2:])
    patterns = [(row + column) % 2, row % 2, column // 4 % 2, row < 4, (row == 0) & (column == 0), row % 4 == 0]
    chosen = np.stack([patterns[index] for index in random.integers(0, len(patterns), shape[0] * shape[1])])
    flipped = chosen.reshape(shape) ^ random.integers(0, 2, (shape[0], 1, 1, 1))
    return 255 * flipped


def faint(random: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Hardly any contrast at either end of the range: nearly everything cancels."""
    return random.choice([0, 254], (shape[0], 1, 1, 1)) + (random.random(shape) < 0.01)


KINDS: dict[str, Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]] = {
    function.__name__: function for function in (noise, smooth, slices, extremes, faint)
}


def draw(kind: str, seed: int, shape: tuple[int, ...]) -> np.ndarray:
    return np.clip(KINDS[kind](np.random.default_rng(seed), shape), 0, 255).astype(np.uint8)


def covariances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """D·Σ(a − ā)(b − b̄) of all pairs, as exact Python integers."""
    a, b = (images.reshape(len(images), -1).astype(np.int64) for images in (a, b))
    exact: np.ndarray = a.shape[1] * (a @ b.T).astype(object) - np.outer(a.sum(1).astype(object), b.sum(1))
    return exact


def coarse_of(images: np.ndarray) -> pruning.Coarse:
    centred = images.reshape(len(images), -1).astype(np.int64) - 128
    sums, squares = torch.from_numpy(centred.sum(1)), torch.from_numpy((centred**2).sum(1))
    return pruning.coarsen(images, sums, squares, pick_product(CPU))


@settings(deadline=None, max_examples=80)
@given(
    kinds=st.tuples(st.sampled_from(sorted(KINDS)), st.sampled_from(sorted(KINDS))),
    seed=st.integers(0, 2**32 - 1),
    channels=st.integers(1, 3),
    height=st.integers(1, 12),
    width=st.integers(1, 6),
)
def test_the_bound_is_never_below_the_covariance(
    kinds: tuple[str, str], seed: int, channels: int, height: int, width: int
) -> None:
    a, b = (draw(kind, seed + turn, (5, channels, 4 * height, 8 * width)) for turn, kind in enumerate(kinds))
    bound = pruning.bound_covariances(coarse_of(a), coarse_of(b), pick_product(CPU)).numpy()
    pixels = channels * 32 * height * width
    exact = covariances(a, b)
    # Exact rational comparison: a float is a ratio of integers.
    for value, truth in zip(bound.flat, exact.flat, strict=True):
        numerator, denominator = float(value).as_integer_ratio()
        assert numerator * pixels >= truth * denominator


def test_the_bound_is_tight_on_smooth_images_and_equal_on_blocks() -> None:
    """Images that are constant in each block lose nothing by averaging."""
    blocks = np.random.default_rng(0).integers(0, 256, (6, 1, 16, 16)).astype(np.uint8)
    images = blocks.repeat(4, axis=2).repeat(4, axis=3)
    exact = covariances(images, images).astype(float) / 64**2
    bound = pruning.bound_covariances(coarse_of(images), coarse_of(images), pick_product(CPU)).numpy()
    np.testing.assert_allclose(bound, exact, rtol=1e-9, atol=1e-3)
    images = draw("smooth", 1, (6, 1, 64, 64))
    spread = np.sqrt(np.diagonal(exact := covariances(images, images).astype(float) / 64**2))
    bound = pruning.bound_covariances(coarse_of(images), coarse_of(images), pick_product(CPU)).numpy()
    assert ((bound - exact) / np.outer(spread, spread)).max() < 0.1


def test_block_means_are_rounded_means_of_the_blocks() -> None:
    images = draw("noise", 2, (3, 2, 8, 16))
    means = images.reshape(3, 2, 2, 4, 4, 4).astype(float).mean(axis=(3, 5)).reshape(3, -1)
    np.testing.assert_array_equal(coarse_of(images).means, np.floor(means + 0.5) - 128)


def test_known_sums_of_two_by_two() -> None:
    """One row of blocks by hand: means rounded half up, what is left of the sums, and back from the packed form."""
    image = np.full((1, 1, 4, 8), 128, np.uint8)
    image[0, 0, :2] = [[0, 0, 255, 255, 129, 128, 129, 129], [0, 0, 255, 255, 128, 128, 129, 128]]
    sums, squares = (torch.zeros(1, dtype=torch.int64),) * 2
    (coarse,) = pruning.coarsen_to(image, sums, squares, pick_product(CPU), (2,))
    assert coarse.means.tolist() == [[-128, 127, 0, 1, 0, 0, 0, 0]]
    assert coarse.left is not None
    assert coarse.left.tolist() == [[0, 0, 1, -1, 0, 0, 0, 0]]


def test_what_is_left_is_packed_and_unpacked() -> None:
    left = torch.cartesian_prod(*[torch.arange(-2, 2, dtype=torch.int8)] * 4)
    packed = pruning.pack_left(left)
    assert len(set(packed[:, 0].tolist())) == 256
    assert torch.equal(pruning.unpack_left(packed), left)


@pytest.mark.parametrize("side", [2, 4, 8])
def test_means_and_what_is_left_add_up_to_the_sums(side: int) -> None:
    images = np.concatenate([draw(kind, 8, (3, 2, 16, 24)) for kind in sorted(KINDS)])
    centred = images.astype(np.int64) - 128
    blocks = centred.reshape(-1, 2, 16 // side, side, 24 // side, side).sum(axis=(3, 5)).reshape(len(images), -1)
    sums, squares = (torch.from_numpy((centred**power).sum(axis=(1, 2, 3))) for power in (1, 2))
    (coarse,) = pruning.coarsen_to(images, sums, squares, pick_product(CPU), (side,))
    np.testing.assert_array_equal(coarse.means, (blocks + side * side // 2) // side**2)
    if coarse.left is not None:
        np.testing.assert_array_equal(coarse.means.numpy().astype(int) * side**2 + coarse.left.numpy(), blocks)
    assert (coarse.left is None) == (side != 2)


def blocks_of(images: np.ndarray, size: int) -> list[Block]:
    starts = range(0, len(images), size)
    return [Block(begin, images[begin : begin + size], *sum_pixels(images[begin : begin + size])) for begin in starts]


def assert_same_matches(pruned: SearchResult, dense: SearchResult) -> None:
    assert pruned.references.tobytes() == dense.references.tobytes()
    assert pruned.similarities.tobytes() == dense.similarities.tobytes()


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_same_matches_as_the_dense_search(data: st.DataObject) -> None:
    kinds, seeds = st.sampled_from(sorted(KINDS)), st.integers(0, 2**32 - 1)
    channels = data.draw(st.integers(1, 3))
    shape = (channels, 4 * data.draw(st.integers(1, 6)), 8 * data.draw(st.integers(1, 3)))
    references = np.concatenate([draw(data.draw(kinds), data.draw(seeds), (20, *shape)) for _ in range(3)])
    copied = data.draw(st.lists(st.integers(0, 59), max_size=30))
    references[: len(copied)] = references[copied]  # ties
    references[data.draw(st.lists(st.integers(0, 59), max_size=3))] = data.draw(st.integers(0, 255))  # constant
    queries = np.concatenate(
        [references[data.draw(st.lists(st.integers(0, 59), max_size=5))], draw(data.draw(kinds), 7, (10, *shape))]
    )
    chosen = data.draw(st.none() | st.lists(st.integers(0, channels - 1), min_size=1, unique=True))
    best, size = data.draw(st.integers(1, 70)), data.draw(st.sampled_from([1, 7, 16, 17, 60]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pruning, "LEAST_PIXELS", 1)
        patch.setattr(correlation, "REFERENCE_TILE", data.draw(st.sampled_from([5, 32, 256])))
        patch.setattr(correlation, "PRUNED_TILE", data.draw(st.sampled_from([1, 4, 16])))
        patch.setattr(correlation, "PICKED_QUERIES", data.draw(st.sampled_from([1, 3, 128])))
        patch.setattr(correlation, "QUERY_TILE", data.draw(st.sampled_from([4, 1024])))
        patch.setattr(correlation, "PREPARED_PIXELS", data.draw(st.sampled_from([1, 2**12, 2**23])))
        patch.setattr(pruning, "AT_ONCE", data.draw(st.sampled_from([1, 2**11, 2**19])))
        dense, pruned = (
            find_matches(queries=queries, references=blocks_of(references, size), best=best, channels=chosen, mean=mean)
            for mean in (True, False)
        )
    assert_same_matches(pruned, dense)
    assert dense.share_multiplied == 1.0
    assert np.isnan(pruned.mean).all()


@pytest.fixture(scope="module")
def world() -> tuple[np.ndarray, np.ndarray]:
    images = draw("slices", 3, (650, 1, 96, 96))
    return images[:600], images[600:]


@pytest.mark.parametrize("size", [1, 100, 600])
@pytest.mark.parametrize("product", [None, float32_product])
def test_most_pairs_are_ruled_out(world: tuple[np.ndarray, np.ndarray], size: int, product: object) -> None:
    references, queries = world
    dense, pruned = (
        find_matches(queries=queries, references=blocks_of(references, size), best=3, mean=mean, product=product)
        for mean in (True, False)
    )
    assert_same_matches(pruned, dense)
    assert pruned.share_multiplied < 0.5


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        ((1, 88, 88), np.uint8),  # small
        ((1, 98, 96), np.uint8),  # height no multiple of 4
        ((1, 96, 100), np.uint8),  # width no multiple of 8
        ((1, 96, 96), np.uint16),
    ],
)
def test_other_images_go_the_dense_way(shape: tuple[int, int, int], dtype: type) -> None:
    images = draw("slices", 4, (40, *shape)).astype(dtype)
    dense, pruned = (
        find_matches(queries=images[:9], references=blocks_of(images, 16), best=3, mean=mean) for mean in (True, False)
    )
    assert_same_matches(pruned, dense)
    assert pruned.share_multiplied == 1.0
    assert np.isnan(pruned.mean).all()


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_same_matches_for_every_number_of_threads(world: tuple[np.ndarray, np.ndarray], threads: int) -> None:
    references, queries = world
    dense, before = (
        find_matches(queries=queries, references=blocks_of(references, 100), best=3),
        torch.get_num_threads(),
    )
    try:
        torch.set_num_threads(threads)
        pruned = find_matches(queries=queries, references=blocks_of(references, 100), best=3, mean=False)
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert_same_matches(pruned, dense)


def test_no_references_and_no_queries() -> None:
    images = draw("noise", 5, (2, 1, 96, 96))
    nothing = find_matches(queries=images, references=[], best=2, mean=False)
    assert (nothing.references == -1).all()
    assert np.isnan(nothing.mean).all()
    empty = find_matches(queries=images[:0], references=[Block(0, images)], best=2, mean=False)
    assert empty.similarities.shape == (0, 2)
