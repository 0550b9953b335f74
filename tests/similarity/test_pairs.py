"""Pairs of alike images: all of them, mirrored ones too, and none else, to the last bit what `correlate` gives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from unalike.engine import Progress
from unalike.errors import SettingsError
from unalike.similarity import pairs
from unalike.similarity.correlation import correlate
from unalike.similarity.pairs import MIRRORS, Mirror, Pairs, find_pairs
from unalike.similarity.products import float32_product

AXES: dict[Mirror, tuple[int, ...]] = {"none": (), "left-right": (3,), "up-down": (2,), "both": (2, 3)}


def reader(images: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Reads rows as find_pairs may ask for them: some, ascending, each once."""

    def read(rows: np.ndarray) -> np.ndarray:
        assert len(rows) > 0
        assert (np.diff(rows) > 0).all()
        return images[rows]

    return read


def search(images: np.ndarray, at_least: float, **options: Any) -> Pairs:
    """All chunks as one; each is sorted, not empty, and has no pair of another."""
    found = list(find_pairs(count=len(images), read=reader(images), at_least=at_least, **options))
    for chunk in found:
        order = [tuple(pair) for pair in zip(chunk.first.tolist(), chunk.second.tolist(), strict=True)]
        assert order
        assert all(before < after for before, after in pairwise(order))
    if not found:
        empty = np.zeros(0, np.int64)
        return Pairs(empty, empty, np.zeros(0), np.zeros(0, dtype=np.str_))
    whole = [np.concatenate([getattr(chunk, name) for chunk in found]) for name in vars(found[0])]
    order = np.lexsort((whole[1], whole[0]))
    return Pairs(*(column[order] for column in whole))


def brute_force(
    images: np.ndarray,
    at_least: float,
    *,
    groups: np.ndarray | None = None,
    mirrors: Sequence[Mirror] = MIRRORS,
    channels: Sequence[int] | None = None,
) -> Pairs:
    """Every pair in every mirror by `correlate`."""
    used = [mirror for mirror in MIRRORS if mirror in mirrors]
    tables = np.stack([correlate(images, np.flip(images, AXES[mirror]), channels=channels) for mirror in used])
    tables = np.nan_to_num(tables, nan=-9)
    alike = np.triu(tables.max(axis=0) >= at_least, 1)
    if groups is not None:
        alike &= groups[:, None] != groups
    first, second = np.nonzero(alike)
    best = tables.argmax(axis=0)[first, second]  # the first of equals
    return Pairs(first, second, tables.max(axis=0)[first, second], np.array(used)[best])


def assert_same(found: Pairs, expected: Pairs) -> None:
    for name in vars(expected):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name), err_msg=name)


def draw(seed: int, shape: tuple[int, ...], *, dtype: type = np.uint8, blur: float = 0.0) -> np.ndarray:
    fields = np.random.default_rng(seed).normal(size=shape)
    if blur:
        fields = ndimage.gaussian_filter(fields, (0, 0, blur, blur))
    top = np.iinfo(dtype).max
    spread = fields.std() if fields.size > 1 else 1
    return np.clip((0.5 + fields / spread / 7) * top, 0, top).astype(dtype)


def with_copies(images: np.ndarray, seed: int) -> np.ndarray:
    """The second half holds copies of some of the first half: exact, noisy or fainter, mirrored in all ways."""
    random = np.random.default_rng(seed)
    images = images.copy()
    half, top = len(images) // 2, np.iinfo(images.dtype).max
    for row in range(half, len(images), 2):
        copy = np.flip(images[random.integers(half)][None], AXES[MIRRORS[random.integers(4)]])[0].astype(np.float64)
        noise = random.choice([0, 0.002, 0.02, 0.1]) * random.normal(size=copy.shape)
        images[row] = np.clip(copy * random.choice([1, 0.7]) + noise * top, 0, top)
    return images


def test_by_hand() -> None:
    """Pixels 0 1 / 2 4 less their mean 1.75, squares 8.75; 1 0 / 4 2 is its left-right mirror; 1 3 / 5 9 is 2a + 1.

    With 0 1 / 2 3, (−1.5, −0.5, 0.5, 1.5) and squares 5: covariance 2.625 + 0.375 + 0.125 + 3.375 = 6.5.
    """
    images = np.array([[[0, 1], [2, 4]], [[1, 0], [4, 2]], [[1, 3], [5, 9]], [[6, 6], [6, 6]], [[0, 1], [2, 3]]])
    found = search(images[:, None].astype(np.uint8), 0.98)
    assert found.first.tolist() == [0, 0, 0, 1, 1, 2]
    assert found.second.tolist() == [1, 2, 4, 2, 4, 4]
    assert found.mirror.tolist() == ["left-right", "none", "none", "left-right", "left-right", "none"]
    near = 6.5 / np.sqrt(8.75 * 5)
    np.testing.assert_allclose(found.similarity, [1, 1, near, 1, near, near], atol=1e-15)
    assert (found.similarity[[0, 1, 3]] == 1).all()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_planted_copies_are_found(dtype: type) -> None:
    images = draw(0, (400, 1, 32, 32), dtype=dtype, blur=2)
    top = np.iinfo(dtype).max
    images[300], images[301] = images[7], images[8, :, :, ::-1]
    images[302], images[303] = images[9, :, ::-1], images[10, :, ::-1, ::-1]
    noise = np.random.default_rng(1).normal(0, top / 100, images[11].shape)
    images[304] = np.clip(images[11, :, ::-1] + noise, 0, top)
    found = search(images, 0.99)
    assert found.first.tolist() == [7, 8, 9, 10, 11]
    assert found.second.tolist() == [300, 301, 302, 303, 304]
    assert found.mirror.tolist() == ["none", "left-right", "up-down", "both", "up-down"]
    assert (found.similarity[:4] == 1).all()
    assert 0.99 < found.similarity[4] < 1


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("shape", [(1, 32, 32), (5, 17, 23), (1, 1, 7), (2, 40, 1), (3, 64, 48), (400, 3, 2)])
@pytest.mark.parametrize("blur", [0, 3])
def test_equals_brute_force(dtype: type, shape: tuple[int, int, int], blur: float) -> None:
    images = with_copies(draw(2, (90, *shape), dtype=dtype, blur=blur), 3)
    images[[5, 60]] = 7
    for at_least in (0.2, 0.95, 0.999, 1.0):
        assert_same(search(images, at_least), brute_force(images, at_least))


def test_images_alike_all_over() -> None:
    """All share a shape, as heads do: what tells them apart is small beside it."""
    row, column = np.indices((48, 40))
    head = ((row - 23.5) / 20) ** 2 + ((column - 19.5) / 15) ** 2 < 1
    images = with_copies((head * (100 + draw(4, (150, 1, 48, 40), blur=3) / 4)).astype(np.uint8), 5)
    assert np.median(correlate(images[:20], images[20:75])) > 0.8
    for at_least in (0.97, 0.99, 0.999):
        assert_same(search(images, at_least), brute_force(images, at_least))


@settings(deadline=None, max_examples=120)
@given(data=st.data())
def test_equals_brute_force_on_drawn_sets(data: st.DataObject) -> None:
    """Whatever the size of tiles, of reads and of what waits: the same pairs."""
    shape = data.draw(st.tuples(st.integers(1, 3), st.integers(1, 9), st.integers(2, 9)))
    dtype = data.draw(st.sampled_from([np.uint8, np.uint16]))
    seed, count = data.draw(st.integers(0, 2**32 - 1)), data.draw(st.integers(0, 40))
    images = draw(seed, (count, *shape), dtype=dtype, blur=data.draw(st.sampled_from([0, 1, 4])))
    if data.draw(st.booleans()):
        images //= data.draw(st.sampled_from([2, np.iinfo(dtype).max // 3]))  # few levels: ties, constant images
    images = with_copies(images, seed) if count > 1 else images
    options = {
        "groups": data.draw(st.none() | st.just(np.random.default_rng(seed).integers(0, 5, count))),
        "mirrors": data.draw(st.lists(st.sampled_from(MIRRORS), min_size=1, unique=True)),
        "channels": data.draw(st.none() | st.lists(st.integers(0, shape[0] - 1), min_size=1, unique=True)),
    }
    at_least = data.draw(st.floats(0.01, 1))
    if count > 1 and data.draw(st.booleans()):  # exactly what two images have
        similarity = correlate(images[:1], images[1:], channels=options["channels"]).max()
        at_least = float(similarity) if similarity > 0 else at_least
    with pytest.MonkeyPatch.context() as patch:
        for name in ("TILE_ROWS", "TILE_COLUMNS", "READ_IMAGES", "PICKED_ROWS"):
            patch.setattr(pairs, name, data.draw(st.integers(1, 50)))
        for name in ("WAITING_PAIRS", "DENSE_PAIRS", "CHUNK_PAIRS", "NUMBERS", "KEPT_BYTES", "AT_ONCE"):
            patch.setattr(pairs, name, data.draw(st.sampled_from([1, 30, 1000])))
        patch.setattr(pairs, "SMALLEST_STEP", data.draw(st.sampled_from([2e-4, 0.1])))
        patch.setattr(pairs, "DENSE_SHARE", data.draw(st.sampled_from([0, 0.1, 1])))
        found = search(images, at_least, **options)
    assert_same(found, brute_force(images, at_least, **options))


@settings(deadline=None, max_examples=60)
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 40), st.integers(2, 40)),
    numbers=st.sampled_from([4, 64, 1280]),
    dtype=st.sampled_from([np.uint8, np.uint16]),
    seed=st.integers(0, 2**32 - 1),
)
def test_the_projection_is_one(shape: tuple[int, int, int], numbers: int, dtype: type, seed: int) -> None:
    """Parts and rests have unit length together, flips change their signs alone, and x bounds r for all mirrors."""
    images = np.random.default_rng(seed).integers(0, np.iinfo(dtype).max + 1, (6, *shape)).astype(dtype)
    images[0] = 3
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pairs, "NUMBERS", numbers)
        projector = pairs._Projector(shape)
    plain = projector.project(images)
    assert plain.defined.tolist() == [image.min() < image.max() for image in images]
    whole = np.concatenate([plain.rest, *plain.parts], axis=1)
    np.testing.assert_allclose(np.square(whole).sum(axis=1), 1, atol=1e-10)
    invariant = np.concatenate([plain.even, plain.norms], axis=1)
    for place, mirror in enumerate(MIRRORS):
        flipped = projector.project(np.flip(images, AXES[mirror]))
        for sign, part, other in zip(pairs.SIGNS[place], plain.parts, flipped.parts, strict=True):
            np.testing.assert_allclose(other, sign * part, atol=1e-12)
        exact = correlate(images, np.flip(images, AXES[mirror]))[plain.defined][:, plain.defined]
        signed = np.concatenate([flipped.rest, *flipped.parts], axis=1)
        assert (exact <= whole @ signed.T + 1e-5).all()
        assert (whole @ signed.T <= invariant @ invariant.T + 1e-10).all()


def test_small_images_are_represented_whole() -> None:
    """An image no larger than the layout of blocks leaves nothing out."""
    projected = pairs._Projector((1, 32, 31)).project(draw(6, (5, 1, 32, 31)))
    np.testing.assert_allclose(projected.rest, 0, atol=1e-6)


def test_pairs_within_a_group_are_skipped() -> None:
    images = np.repeat(draw(7, (10, 1, 16, 16)), 3, axis=0)  # 0 0 0 1 1 1 …
    groups = np.tile([4, 4, 9], 10)
    found = search(images, 0.999, groups=groups)
    assert list(zip(found.first.tolist(), found.second.tolist(), strict=True))[:3] == [(0, 2), (1, 2), (3, 5)]
    assert len(found.first) == 20
    assert_same(found, brute_force(images, 0.999, groups=groups))
    assert len(search(images, 0.5, groups=np.zeros(30, np.int64)).first) == 0


def test_constant_images_pair_with_nobody() -> None:
    constant = np.repeat(np.array([0, 0, 9, 255], np.uint8), 16).reshape(4, 1, 4, 4)
    assert len(search(constant, 0.01).first) == 0
    one = constant.copy()
    one[2, 0, 0, 0] = 10
    assert len(search(one, 0.01).first) == 0


def test_images_of_one_pixel_pair_with_nobody() -> None:
    assert len(search(np.arange(20, dtype=np.uint8).reshape(20, 1, 1, 1), 0.01).first) == 0


def test_identical_images_have_similarity_one() -> None:
    images = np.repeat(draw(8, (1, 2, 9, 9)), 5, axis=0)
    found = search(images, 1.0)
    assert len(found.first) == 10
    assert (found.similarity == 1).all()
    assert (found.mirror == "none").all()


def test_ties_between_mirrors_go_to_the_first() -> None:
    """A symmetric image and its copy: all mirrors reach 1; without "none", the next of them is told."""
    half = draw(9, (1, 1, 6, 6))
    image = np.concatenate([half, half[..., ::-1]], axis=3)
    image = np.repeat(np.concatenate([image, image[:, :, ::-1]], axis=2), 2, axis=0)
    assert search(image, 0.9).mirror.tolist() == ["none"]
    assert search(image, 0.9, mirrors=["both", "up-down"]).mirror.tolist() == ["up-down"]


def test_the_best_mirror_is_told() -> None:
    """Nearly symmetric: the pair reaches the threshold unmirrored, and more closely mirrored."""
    images = draw(10, (2, 1, 12, 12), blur=2)
    images[0] = images[0] // 2 + images[0, :, :, ::-1] // 2
    images[0, 0, 3, 2] ^= 30
    images[1] = images[0, :, :, ::-1]
    found = search(images, 0.9)
    assert found.mirror.tolist() == ["left-right"]
    assert found.similarity.tolist() == [1.0]
    unmirrored = search(images, 0.9, mirrors=["none"])
    assert unmirrored.mirror.tolist() == ["none"]
    assert 0.9 < unmirrored.similarity[0] < 1


@pytest.mark.parametrize("shape", [(1, 20, 20), (2, 13, 11)])
def test_a_threshold_that_a_pair_just_reaches(shape: tuple[int, int, int]) -> None:
    images = with_copies(draw(11, (60, *shape), blur=2), 12)
    similarities = brute_force(images, 0.3).similarity
    for at_least in similarities[:: max(len(similarities) // 12, 1)]:
        found = search(images, float(at_least))
        assert at_least in found.similarity
        above = search(images, min(float(np.nextafter(at_least, 2)), 1.0))
        assert at_least == 1 or at_least not in above.similarity


def test_nearly_nothing_is_multiplied_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of half a million pairs in four mirrors, only planted ones and few beside them are read again."""
    images = draw(13, (1000, 1, 32, 32), blur=3)
    images[[900, 950]] = images[[10, 20]]
    counted, original = [], pairs._similarities
    monkeypatch.setattr(
        pairs,
        "_similarities",
        lambda a, b, product: counted.append(len(a.sums) * len(b.sums)) or original(a, b, product),
    )
    found = search(images, 0.99)
    assert found.first.tolist() == [10, 20]
    assert sum(counted) < 1000


def test_many_pairs_come_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """All images alike: bounded parts, by ascending blocks of first images."""
    for name in ("CHUNK_PAIRS", "WAITING_PAIRS"):
        monkeypatch.setattr(pairs, name, 500)
    monkeypatch.setattr(pairs, "TILE_ROWS", 32)
    monkeypatch.setattr(pairs, "TILE_COLUMNS", 32)
    images = np.repeat(draw(14, (1, 1, 8, 8)), 200, axis=0)
    found = list(find_pairs(count=200, read=reader(images), at_least=0.9))
    assert sum(len(chunk.first) for chunk in found) == 200 * 199 // 2
    assert max(len(chunk.first) for chunk in found) < 2 * (500 + 32 * 32)
    blocks = [chunk.first[0] // 32 for chunk in found]
    assert blocks == sorted(blocks)
    assert all(chunk.first[-1] // 32 == block for chunk, block in zip(found, blocks, strict=True))


def test_pixels_are_never_all_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many pairs there are, no read asks for more than it may."""
    for name in ("READ_IMAGES", "TILE_ROWS"):
        monkeypatch.setattr(pairs, name, 16)
    monkeypatch.setattr(pairs, "KEPT_BYTES", 16 * 100)
    images, asked = with_copies(draw(15, (200, 1, 10, 10), blur=5), 16), []

    def read(rows: np.ndarray) -> np.ndarray:
        asked.append(len(rows))
        return images[rows]

    assert list(find_pairs(count=200, read=read, at_least=0.3))
    assert max(asked) <= 16


def test_the_other_product_gives_the_same_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    images = with_copies(draw(17, (80, 1, 33, 20), blur=3), 18)
    expected = search(images, 0.9)
    monkeypatch.setattr(pairs, "pick_product", lambda device: float32_product)
    assert_same(search(images, 0.9), expected)


@pytest.mark.parametrize("count", [0, 1])
def test_fewer_than_two_images(count: int) -> None:
    assert len(search(draw(19, (count, 1, 4, 4)), 0.5).first) == 0


@pytest.mark.parametrize("count", [0, 1, 50])
def test_progress_adds_up(count: int) -> None:
    images = draw(20, (max(count, 1), 1, 6, 6))
    images[:10] = 4  # constant ones count too

    class Counted(Progress):
        done = 0

        def advance(self, count: int = 1, text: str = "") -> None:
            self.done += count

    progress = Counted()
    list(find_pairs(count=count, read=reader(images), at_least=0.99, progress=progress))
    assert progress.done == 2 * count


@pytest.mark.parametrize("at_least", [0, -0.5, 1.01, float("nan"), float("inf")])
def test_impossible_thresholds_are_refused(at_least: float) -> None:
    """At once, not when the first part is asked for."""
    with pytest.raises(SettingsError, match="give a number above 0 and at most 1"):
        find_pairs(count=2, read=reader(draw(21, (2, 1, 4, 4))), at_least=at_least)


@pytest.mark.parametrize("mirrors", [[], ["sideways"]])
def test_unknown_mirrors_are_refused(mirrors: list[Any]) -> None:
    with pytest.raises(SettingsError, match="choose from none, left-right, up-down, both"):
        find_pairs(count=2, read=reader(draw(22, (2, 1, 4, 4))), at_least=0.9, mirrors=mirrors)


def test_other_inputs_that_do_not_fit() -> None:
    images = draw(23, (3, 1, 4, 4))
    with pytest.raises(ValueError, match="2 groups for 3 images"):
        find_pairs(count=3, read=reader(images), at_least=0.9, groups=np.zeros(2, np.int64))
    with pytest.raises(TypeError, match="float64"):
        list(find_pairs(count=3, read=reader(images.astype(float)), at_least=0.9))
