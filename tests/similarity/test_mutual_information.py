"""Mutual information: entropies by hand, the same as NumPy's histograms, the same bits however it is run."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unalike.errors import InputError, SettingsError
from unalike.similarity import mutual_information as room
from unalike.similarity.correlation import Block
from unalike.similarity.mutual_information import find_by_mutual_information, mutual_information_pairs
from unalike.similarity.products import float32_product, pick_product


def random_images(seed: int, shape: tuple[int, ...], dtype: type) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max + 1, shape).astype(dtype)


def entropy(counts: np.ndarray) -> float:
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log(shares)).sum())


def reference(a: np.ndarray, b: np.ndarray, bins: int) -> tuple[float, float]:
    """I and 2·I/(H(a) + H(b)) of one pair, from NumPy's histogram."""
    range_ = (0, int(np.iinfo(a.dtype).max) + 1)
    joint, _, _ = np.histogram2d(a.ravel(), b.ravel(), bins=bins, range=(range_, range_))
    own = entropy(joint.sum(axis=1)), entropy(joint.sum(axis=0))
    shared = sum(own) - entropy(joint)
    return shared, 2 * shared / sum(own) if min(own) > 0 else np.nan


def all_pairs(queries: np.ndarray, references: np.ndarray, **options: object) -> np.ndarray:
    rows, columns = np.indices((len(queries), len(references))).reshape(2, -1)
    return mutual_information_pairs(queries[rows], references[columns], **options).reshape(
        len(queries), len(references)
    )


def blocks(images: np.ndarray, size: int) -> Iterator[Block]:
    for begin in range(0, len(images), size):
        yield Block(begin, images[begin : begin + size])


def test_two_levels_by_hand() -> None:
    """A fair coin seen twice shares log 2; turned over it does too; one independent of it shares nothing."""
    coin = np.array([0, 0, 255, 255], np.uint8).reshape(1, 1, 2, 2)
    other = np.array([0, 255, 0, 255], np.uint8).reshape(1, 1, 2, 2)
    assert mutual_information_pairs(coin, coin)[0] == pytest.approx(np.log(2), abs=1e-15)
    assert mutual_information_pairs(coin, 255 - coin)[0] == pytest.approx(np.log(2), abs=1e-15)
    assert mutual_information_pairs(coin, other)[0] == 0.0
    assert mutual_information_pairs(coin, coin, normalized=True)[0] == 1.0
    assert mutual_information_pairs(coin, 255 - coin, normalized=True)[0] == 1.0
    assert mutual_information_pairs(coin, other, normalized=True)[0] == 0.0


def test_three_of_four_by_hand() -> None:
    """Joint counts 2, 1, 0, 1 of 4: I = 1.5·log 2 − 0.75·log 3 + … written out below."""
    a = np.array([0, 0, 0, 255], np.uint8).reshape(1, 1, 1, 4)
    b = np.array([0, 0, 255, 255], np.uint8).reshape(1, 1, 1, 4)
    of_a = -(0.75 * np.log(0.75) + 0.25 * np.log(0.25))
    of_both = -(0.5 * np.log(0.5) + 2 * 0.25 * np.log(0.25))
    expected = of_a + np.log(2) - of_both
    assert mutual_information_pairs(a, b, bins=2)[0] == pytest.approx(expected, abs=1e-15)
    ratio = mutual_information_pairs(a, b, bins=2, normalized=True)[0]
    assert ratio == pytest.approx(2 * expected / (of_a + np.log(2)), abs=1e-15)
    studholme = (of_a + np.log(2)) / of_both
    assert studholme == pytest.approx(2 / (2 - ratio), abs=1e-14)


def test_bins_are_equal_parts_of_the_full_range() -> None:
    """63 and 64 lie on two sides of the first of four bins' edge, 64 and 127 on one."""
    image = np.array([63, 64, 63, 64], np.uint8).reshape(1, 1, 2, 2)
    within = np.array([64, 127, 64, 127], np.uint8).reshape(1, 1, 2, 2)
    assert mutual_information_pairs(image, image, bins=4)[0] == pytest.approx(np.log(2), abs=1e-15)
    assert mutual_information_pairs(within, within, bins=4)[0] == 0.0
    wide = np.array([16383, 16384, 16383, 16384], np.uint16).reshape(1, 1, 2, 2)
    assert mutual_information_pairs(wide, wide, bins=4)[0] == pytest.approx(np.log(2), abs=1e-15)


def test_channels_share_one_histogram() -> None:
    """Brightness swapped between channels is told by one histogram, not by each channel's own."""
    a = np.stack([np.zeros((3, 3)), np.full((3, 3), 255)])[None].astype(np.uint8)
    assert mutual_information_pairs(a, 255 - a)[0] == pytest.approx(np.log(2), abs=1e-15)


def test_constant_images() -> None:
    images = random_images(0, (1, 1, 8, 8), np.uint8)
    constant = np.full((1, 1, 8, 8), 9, np.uint8)
    for other in (images, constant):
        assert mutual_information_pairs(constant, other)[0] == 0.0
        assert np.isnan(mutual_information_pairs(constant, other, normalized=True)[0])


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_properties_on_drawn_images(data: st.DataObject) -> None:
    dtype = data.draw(st.sampled_from([np.uint8, np.uint16]))
    top = int(np.iinfo(dtype).max)
    shape = data.draw(st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(1, 20), st.integers(1, 20)))
    levels = data.draw(st.sampled_from([[0, top], [0, 1], [top - 1, top], [5], list(range(0, top, top // 40))]))
    bins = data.draw(st.sampled_from([2, 3, 64, 100, 256]))
    random = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    a, b = (random.choice(levels, shape).astype(dtype) for _ in range(2))
    nats, ratio = (mutual_information_pairs(a, b, bins=bins, normalized=flag) for flag in (False, True))
    expected = np.array([reference(x, y, bins) for x, y in zip(a, b, strict=True)])
    np.testing.assert_allclose(nats, expected[:, 0], atol=1e-12, rtol=0)
    np.testing.assert_allclose(ratio, expected[:, 1], atol=1e-10, rtol=0)
    assert (nats == mutual_information_pairs(b, a, bins=bins)).all()
    assert (nats >= 0).all()
    assert (np.isnan(ratio) | ((ratio >= 0) & (ratio <= 1))).all()
    same = mutual_information_pairs(a, a, bins=bins, normalized=True)
    assert (np.isnan(same) | (same == 1.0)).all()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_equals_numpy_on_large_images(dtype: type) -> None:
    a, b = random_images(1, (3, 2, 200, 150), dtype), random_images(2, (3, 2, 200, 150), dtype)
    b[1] = a[1] // 2
    expected = [reference(x, y, 64)[0] for x, y in zip(a, b, strict=True)]
    np.testing.assert_allclose(mutual_information_pairs(a, b), expected, atol=1e-11, rtol=0)


def test_pixels_in_another_order_change_nothing_to_the_bit() -> None:
    a, b = random_images(3, (5, 1, 40, 30), np.uint8), random_images(4, (5, 1, 40, 30), np.uint8)
    order = np.random.default_rng(5).permutation(1200)
    mixed = [images.reshape(5, -1)[:, order].reshape(a.shape) for images in (a, b)]
    np.testing.assert_array_equal(mutual_information_pairs(a, b), mutual_information_pairs(*mixed))


@pytest.fixture(scope="module")
def world() -> tuple[np.ndarray, np.ndarray]:
    """200 references with duplicates (ties) and constant images, 12 queries, one of them constant."""
    random = np.random.default_rng(6)
    references = (random.integers(0, 200, (200, 1, 1, 1)) + random.integers(0, 50, (200, 2, 12, 14))).astype(np.uint8)
    references[100:150] = references[:50]
    references[[5, 160]] = 9
    queries = np.concatenate([references[30:34], random_images(7, (7, 2, 12, 14), np.uint8), references[5:6]])
    return references, queries


@pytest.mark.parametrize("normalized", [False, True])
@pytest.mark.parametrize("size", [1, 37, 200])
def test_search_equals_all_pairs_to_the_bit(world: tuple[np.ndarray, np.ndarray], size: int, normalized: bool) -> None:
    references, queries = world
    found = find_by_mutual_information(
        queries=queries, references=blocks(references, size), best=4, bins=32, normalized=normalized
    )
    similarities = all_pairs(queries, references, bins=32, normalized=normalized)
    order = np.argsort(-similarities, axis=1, kind="stable")[:, :4]
    values = np.take_along_axis(similarities, order, axis=1)
    np.testing.assert_array_equal(found.similarities, values)
    np.testing.assert_array_equal(found.references, np.where(np.isnan(values), -1, order))
    assert found.references[0].tolist()[:2] == [30, 130]
    assert found.references[-1].tolist() == ([-1] * 4 if normalized else [0, 1, 2, 3])
    assert np.isnan(found.mean).all()


def test_one_hot_products_count_the_same(world: tuple[np.ndarray, np.ndarray], monkeypatch: pytest.MonkeyPatch) -> None:
    """What runs on a graphics card, here: several tiles, and both products."""
    references, queries = world
    cpu = torch.device("cpu")
    table = room._make_table(queries, 32, cpu)
    left, right = room._prepare(queries, table), room._prepare(references, table)
    with ThreadPoolExecutor(3) as pool:
        counted = room._compare_by_counting(left, right, table, pool, 3)
    monkeypatch.setattr(room, "MULTIPLIED_AT_ONCE", 32 * 336 * 7)
    for product in (float32_product, pick_product(cpu)):
        assert torch.equal(room._compare_by_products(left, right, table, product), counted)


def test_little_memory_changes_nothing(world: tuple[np.ndarray, np.ndarray], monkeypatch: pytest.MonkeyPatch) -> None:
    references, queries = world
    before = find_by_mutual_information(queries=queries, references=blocks(references, 64), best=3)
    pairs = mutual_information_pairs(references[:12], queries)
    monkeypatch.setattr(room, "BLOCK_PIXELS", 336 * 5)
    monkeypatch.setattr(room, "COUNTED_AT_ONCE", 1)
    after = find_by_mutual_information(queries=queries, references=blocks(references, 64), best=3)
    np.testing.assert_array_equal(after.references, before.references)
    np.testing.assert_array_equal(after.similarities, before.similarities)
    np.testing.assert_array_equal(mutual_information_pairs(references[:12], queries), pairs)


def test_sixteen_bits_and_chosen_channels() -> None:
    references, queries = random_images(8, (20, 3, 16, 18), np.uint16), random_images(9, (4, 3, 16, 18), np.uint16)
    found = find_by_mutual_information(queries=queries, references=blocks(references, 6), channels=[2, 0])
    similarities = all_pairs(queries[:, [2, 0]], references[:, [2, 0]])
    np.testing.assert_array_equal(found.references[:, 0], similarities.argmax(axis=1))
    np.testing.assert_array_equal(found.highest, similarities.max(axis=1))


def test_fewer_references_than_asked_for_and_none() -> None:
    images = random_images(10, (2, 1, 12, 12), np.uint8)
    found = find_by_mutual_information(queries=images, references=[Block(7, images)], best=3)
    assert found.references.tolist() == [[7, 8, -1], [8, 7, -1]]
    assert find_by_mutual_information(queries=images, references=[]).references.tolist() == [[-1], [-1]]
    assert find_by_mutual_information(queries=images[:0], references=[Block(0, images)]).references.shape == (0, 1)
    assert mutual_information_pairs(images[:0], images[:0]).shape == (0,)


def test_bad_input_is_told_in_one_line() -> None:
    good = np.zeros((1, 1, 12, 12), np.uint8)
    for bins in (1, 257):
        with pytest.raises(SettingsError, match=f"bins {bins}: give 2 to 256"):
            mutual_information_pairs(good, good, bins=bins)
    with pytest.raises(InputError, match="1×12×12 uint8 cannot be compared with 1×12×12 uint16"):
        find_by_mutual_information(queries=good, references=[Block(0, good.astype(np.uint16))])
    with pytest.raises(InputError, match="1 images cannot be paired with 2"):
        mutual_information_pairs(good, np.concatenate([good, good]))
    with pytest.raises(SettingsError, match="best 0"):
        find_by_mutual_information(queries=good, references=[], best=0)
