"""Search with a stored index: what `find_matches` finds, to the last bit, while most pixels stay on disk."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.similarity.test_pruning import KINDS, assert_same_matches, coarse_of, covariances, draw

from unalike import folders
from unalike.engine import Progress
from unalike.similarity import pruning, stored
from unalike.similarity.correlation import Block, SearchResult, correlate, find_matches
from unalike.similarity.products import float32_product, pick_product
from unalike.similarity.stored import CoarseIndex, build_index, find_stored, open_index

CPU = torch.device("cpu")


def reader(images: np.ndarray, asked: list[int] | None = None) -> Callable[[np.ndarray], np.ndarray]:
    """Reads rows as an index may ask for them: some, ascending, each once."""

    def read(rows: np.ndarray) -> np.ndarray:
        assert len(rows) > 0
        assert (np.diff(rows) > 0).all()
        if asked is not None:
            asked.extend(rows.tolist())
        fresh: np.ndarray = images[rows]
        return fresh

    return read


def in_memory(images: np.ndarray, channels: list[int] | None = None) -> CoarseIndex:
    return build_index(read=reader(images), count=len(images), channels=channels, key="any", folder=None)


def dense(queries: np.ndarray, references: np.ndarray, best: int, channels: list[int] | None = None) -> SearchResult:
    return find_matches(queries=queries, references=[Block(0, references)], best=best, channels=channels)


def best_of_owners(queries: np.ndarray, references: np.ndarray, owners: np.ndarray, best: int) -> list[list[int]]:
    """The plain way: all similarities, best first, ties to the lower index, one for each owner."""
    found = []
    for similarities in correlate(queries, references):
        chosen: dict[int, int] = {}
        for place in sorted(range(len(references)), key=lambda at: (-np.nan_to_num(similarities[at], nan=-9), at)):
            if not np.isnan(similarities[place]):
                chosen.setdefault(int(owners[place]), place)
        found.append([*list(chosen.values())[:best], *[-1] * (best - len(chosen))])
    return found


def test_known_answers() -> None:
    """A copy, its negative, a constant image and another copy: r = 1, −1, undefined, 1; the tie goes to the first."""
    image = np.arange(64, dtype=np.uint8).reshape(1, 8, 8)
    references = np.stack([255 - image, image, np.full_like(image, 7), image])
    found = find_stored(queries=np.stack([image, np.full_like(image, 9)]), index=in_memory(references), best=4)
    np.testing.assert_array_equal(found.references, [[1, 3, 0, -1], [-1] * 4])
    np.testing.assert_array_equal(found.similarities, [[1, 1, -1, np.nan], [np.nan] * 4])
    assert np.isnan(found.mean).all()


def test_sums_and_means_of_the_index_are_those_of_the_pixels() -> None:
    images = draw("noise", 1, (5, 3, 16, 24))
    index = in_memory(images, channels=[2, 0])
    chosen = images[:, [2, 0]].astype(np.int64)
    np.testing.assert_array_equal(index.sums, chosen.sum(axis=(2, 3)))
    np.testing.assert_array_equal(index.squares, (chosen**2).sum(axis=(2, 3)))
    assert index.shape == (2, 16, 24)
    assert [level.area for level in index.levels] == [64, 16]
    for side, level in zip((8, 4), index.levels, strict=True):
        means = chosen.reshape(5, 2, 16 // side, side, 24 // side, side).mean(axis=(3, 5)).reshape(5, -1)
        np.testing.assert_array_equal(level.means, np.floor(means + 0.5) - 128)
    assert index.nbytes == 5 * 2 * 16 * 24 * 5 // 64


@settings(deadline=None, max_examples=40)
@given(
    kinds=st.tuples(st.sampled_from(sorted(KINDS)), st.sampled_from(sorted(KINDS))),
    seed=st.integers(0, 2**32 - 1),
    channels=st.integers(1, 2),
    height=st.integers(1, 5),
    width=st.integers(1, 5),
)
def test_the_bound_of_every_level_is_never_below_the_covariance(
    kinds: tuple[str, str], seed: int, channels: int, height: int, width: int
) -> None:
    a, b = (draw(kind, seed + turn, (4, channels, 8 * height, 8 * width)) for turn, kind in enumerate(kinds))
    a[0] = b[0]
    exact, pixels = covariances(a, b), channels * 64 * height * width
    product = pick_product(CPU)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stored, "FINEST_PIXELS", 1)
        indices = in_memory(a), in_memory(b)
    assert [level.area for level in indices[0].levels] == [64, 16, 4]
    for number in range(3):
        (left, sound), (right, _) = (index.pick(number, slice(None)) for index in indices)
        assert sound.all()
        bound = pruning.bound_covariances(left, right, product).numpy()
        for value, truth in zip(bound.flat, exact.flat, strict=True):
            numerator, denominator = float(value).as_integer_ratio()
            assert numerator * pixels >= truth * denominator


def test_the_finest_level_is_that_of_the_streaming_search() -> None:
    images = draw("smooth", 2, (6, 2, 32, 32))
    ours, theirs = in_memory(images).levels[-1], coarse_of(images)
    for name in ("means", *stored.NORMS):
        torch.testing.assert_close(getattr(ours, name), getattr(theirs, name), rtol=0, atol=0)


@settings(deadline=None, max_examples=40)
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
    rows = data.draw(st.none() | st.lists(st.integers(0, 59), unique=True).map(sorted))
    searched = references if rows is None else references[rows]
    best = data.draw(st.integers(1, 70))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stored, "PRUNED_TILE", data.draw(st.sampled_from([1, 4, 16])))
        patch.setattr(stored, "PICKED_QUERIES", data.draw(st.sampled_from([1, 3, 128])))
        patch.setattr(stored, "BOUND_PAIRS", data.draw(st.sampled_from([1, 200, 2**19])))
        patch.setattr(stored, "FINEST_PIXELS", data.draw(st.sampled_from([1, 2**14])))
        patch.setattr(stored, "FINE_TILE", data.draw(st.sampled_from([1, 5, 64])))
        patch.setattr(stored, "READ_BYTES", data.draw(st.sampled_from([1, 2**12, 2**24])))
        patch.setattr(stored, "QUERY_BYTES", data.draw(st.sampled_from([2**11, 2**29])))
        found = find_stored(
            queries=queries,
            index=in_memory(references, chosen),
            rows=None if rows is None else np.array(rows, np.int64),
            best=best,
            workers=data.draw(st.sampled_from([1, 3])),
        )
    assert_same_matches(found, dense(queries, searched, best, chosen))


@settings(deadline=None, max_examples=40)
@given(
    kind=st.sampled_from(sorted(KINDS)),
    seed=st.integers(0, 2**32 - 1),
    owners=st.lists(st.integers(-2, 6), min_size=40, max_size=40),
    best=st.integers(1, 9),
    tile=st.sampled_from([1, 16]),
)
def test_matches_of_different_owners(kind: str, seed: int, owners: list[int], best: int, tile: int) -> None:
    references = draw(kind, seed, (40, 1, 16, 16))
    references[3:6] = references[20]
    queries = np.concatenate([references[18:22], draw(kind, seed + 1, (4, 1, 16, 16))])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stored, "PRUNED_TILE", tile)
        found = find_stored(queries=queries, index=in_memory(references), best=best, owners=np.array(owners))
    assert found.references.tolist() == best_of_owners(queries, references, np.array(owners), best)


@pytest.fixture(scope="module")
def world() -> tuple[np.ndarray, np.ndarray]:
    """Five queries and three thousand structured images, some of which are the queries'."""
    images = draw("slices", 3, (3005, 1, 64, 64))
    queries = images[3000:].copy()
    queries[0], queries[1] = images[700], np.clip(images[1500].astype(int) + 3, 0, 255)
    return images[:3000], queries


@pytest.mark.parametrize("finest", [1, 2**14])
@pytest.mark.parametrize("best", [1, 5])
@pytest.mark.parametrize("product", [None, float32_product])
def test_most_pixels_are_not_read(
    world: tuple[np.ndarray, np.ndarray], best: int, product: Any, finest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stored, "FINEST_PIXELS", finest)
    references, queries = world
    asked: list[int] = []
    index = build_index(read=reader(references, asked), count=3000, key="any", folder=None)
    asked.clear()
    found = find_stored(queries=queries, index=index, best=best, product=product)
    assert_same_matches(found, dense(queries, references, best))
    assert found.share_read == len(asked) / 3000 < 0.15
    assert found.share_multiplied < 0.15


def test_the_finest_means_spare_reading(world: tuple[np.ndarray, np.ndarray], monkeypatch: pytest.MonkeyPatch) -> None:
    references, queries = world
    shares = []
    for finest in (2**14, 1):
        monkeypatch.setattr(stored, "FINEST_PIXELS", finest)
        shares.append(find_stored(queries=queries, index=in_memory(references), best=5).share_read)
    assert shares[1] < shares[0]


def test_finest_means_are_for_large_images_and_in_memory_only_if_they_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    large, small = draw("slices", 10, (4, 1, 128, 128)), draw("slices", 10, (4, 1, 120, 128))
    assert [level.area for level in in_memory(small).levels] == [64, 16]
    index = in_memory(large)
    assert [level.area for level in index.levels] == [64, 16, 4]
    assert index.nbytes == 4 * 2**14 * (1 + 4 + 16 + 4) // 64
    monkeypatch.setattr(stored, "FINEST_BYTES", 4 * 2**12 - 1)
    assert [level.area for level in in_memory(large).levels] == [64, 16]


def test_one_index_answers_again_and_again(world: tuple[np.ndarray, np.ndarray]) -> None:
    references, queries = world
    index = in_memory(references)
    expected = dense(queries, references, 2)
    for at in range(len(queries)):
        found = find_stored(queries=queries[at : at + 1], index=index, best=2)
        assert found.references.tolist() == [expected.references[at].tolist()]
        assert found.similarities.tobytes() == expected.similarities[at].tobytes()


@pytest.mark.parametrize(
    ("shape", "dtype"), [((1, 18, 16), np.uint8), ((2, 16, 20), np.uint8), ((1, 16, 16), np.uint16)]
)
def test_other_images_are_all_read(shape: tuple[int, int, int], dtype: type, tmp_path: Path) -> None:
    images: np.ndarray = draw("slices", 4, (40, *shape)).astype(dtype) * dtype(200 if dtype is np.uint16 else 1)
    images[4] = 1
    index = open_index(read=reader(images), count=40, key="any", folder=tmp_path)
    found = find_stored(queries=images[:9], index=index, best=3)
    assert_same_matches(found, dense(images[:9], images, 3))
    assert found.share_read == 1.0
    assert found.share_multiplied <= 1.0
    assert list(tmp_path.iterdir()) == []


def test_no_references_and_no_queries() -> None:
    images = draw("noise", 5, (2, 1, 16, 16))
    nothing = find_stored(queries=images, index=in_memory(images[:0]), best=2)
    assert nothing.references.tolist() == [[-1, -1]] * 2
    nothing = find_stored(queries=images, index=in_memory(images), rows=np.zeros(0, np.int64), best=2)
    assert nothing.references.tolist() == [[-1, -1]] * 2
    assert find_stored(queries=images[:0], index=in_memory(images), best=2).similarities.shape == (0, 2)


def test_arguments_that_do_not_fit() -> None:
    images = draw("noise", 6, (4, 1, 16, 16))
    with pytest.raises(ValueError, match="queries are"):
        find_stored(queries=images[:, :, :8], index=in_memory(images))
    with pytest.raises(ValueError, match="3 owners for 4 images"):
        find_stored(queries=images, index=in_memory(images), owners=np.arange(3))


# The index on disk


IMAGES = draw("slices", 7, (60, 2, 16, 16))


class Opened:
    """One opening of an index: the index, what was told, and how many images were read for it."""

    def __init__(self, folder: Path, *, images: np.ndarray = IMAGES, key: str = "a", channels: Any = None) -> None:
        asked: list[int] = []
        self.told: list[str] = []
        self.index = open_index(
            read=reader(images, asked),
            count=len(images),
            key=key,
            channels=channels,
            folder=folder,
            notice=self.told.append,
        )
        self.read = len(asked) - 1  # one to know how large they are
        chosen = None if channels is None else list(channels)
        found = find_stored(queries=images[:3], index=self.index, best=2)
        assert_same_matches(found, dense(images[:3], images, 2, chosen))


def test_an_index_is_made_once_and_opened_afterwards(tmp_path: Path) -> None:
    first, second = Opened(tmp_path), Opened(tmp_path)
    assert (first.read, second.read) == (60, 0)
    assert len(first.told) == 1
    assert "later searches" in first.told[0]
    assert second.told == []
    assert first.index.place == second.index.place == tmp_path / folders.INDEX / "channels-0-1"
    assert Opened(tmp_path, channels=[1]).read == 60  # of other channels: another index
    assert Opened(tmp_path).read == 0
    assert {path.suffix for path in (tmp_path / folders.INDEX).rglob("*") if path.is_file()} == {".npy", ".json", ""}


def test_a_stale_index_is_made_again(tmp_path: Path) -> None:
    Opened(tmp_path)
    other = draw("slices", 8, (60, 2, 16, 16))
    again = Opened(tmp_path, images=other, key="b")
    assert again.read == 60
    assert "of other images" in again.told[0]
    assert Opened(tmp_path, images=other, key="b").read == 0


def change_header(place: Path, **changes: Any) -> None:
    header = json.loads((place / stored.HEADER).read_text())
    (place / stored.HEADER).write_text(json.dumps(header | changes))


def flip_a_byte(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-9] ^= 1
    file.write_bytes(content)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "no header": lambda place: (place / stored.HEADER).unlink(),
    "header is no JSON": lambda place: (place / stored.HEADER).write_text("{"),
    "header is a list": lambda place: (place / stored.HEADER).write_text("[]"),
    "other format": lambda place: change_header(place, format=0),
    "fewer images": lambda place: change_header(place, images=59),
    "no checks": lambda place: change_header(place, checks=None),
    "checks of other files": lambda place: change_header(place, checks={}),
    "means changed": lambda place: flip_a_byte(place / "means-4.npy"),
    "norms changed": lambda place: flip_a_byte(place / "norms-8.npy"),
    "file missing": lambda place: (place / "means-8.npy").unlink(),
    "file empty": lambda place: (place / "means-8.npy").write_bytes(b""),
    "file cut short": lambda place: (place / "means-4.npy").write_bytes((place / "means-4.npy").read_bytes()[:-1]),
    "file of somebody else": lambda place: np.save(place / "sums.npy", np.zeros((60, 2))),
    "objects": lambda place: np.save(place / "sums.npy", np.array([None] * 60), allow_pickle=True),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_index_is_made_again(damage: str, tmp_path: Path) -> None:
    place = Opened(tmp_path).index.place
    assert place is not None
    DAMAGE[damage](place)
    again = Opened(tmp_path)
    assert again.read == 60
    assert len(again.told) == 1
    assert Opened(tmp_path).read == 0


def test_an_index_of_another_format_is_said_to_be_one(tmp_path: Path) -> None:
    place = Opened(tmp_path).index.place
    assert place is not None
    change_header(place, format=1)
    assert "of another format" in Opened(tmp_path).told[0]


@pytest.mark.parametrize("name", ["means-2", "left-2"])
@pytest.mark.parametrize("images", [1, 200])
def test_damaged_finest_means_rule_nothing_out(
    name: str, images: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are not read when the index is opened: the images whose means are damaged are read instead."""
    monkeypatch.setattr(stored, "FINEST_PIXELS", 1)
    references = draw("slices", 11, (200, 1, 32, 32))
    place = Opened(tmp_path, images=references).index.place
    assert place is not None
    means = np.load(place / f"{name}.npy", mmap_mode="r+")
    means[:images, ::3] ^= 1
    means.flush()
    opened = Opened(tmp_path, images=references)  # finds what the dense search finds
    assert opened.read == 0
    assert opened.told == []
    assert opened.index.pick(2, slice(None))[1].tolist() == [False] * images + [True] * (200 - images)


def test_where_nothing_can_be_written_the_index_is_kept_in_memory(tmp_path: Path) -> None:
    (tmp_path / folders.INDEX).write_text("a file in the way")
    opened = Opened(tmp_path)
    assert opened.index.place is None
    assert "kept in memory" in opened.told[-1]
    assert (tmp_path / folders.INDEX).read_text() == "a file in the way"


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(folders, "write_json", full)
    opened = Opened(tmp_path)
    assert opened.index.place is None
    assert "No space left on device" in opened.told[-1]
    assert [path.name for path in (tmp_path / folders.INDEX).iterdir()] == [stored.LOCK]


def test_another_process_that_makes_the_index_is_not_disturbed(tmp_path: Path) -> None:
    fcntl = pytest.importorskip("fcntl")
    (tmp_path / folders.INDEX).mkdir()
    with (tmp_path / folders.INDEX / stored.LOCK).open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        opened = Opened(tmp_path)
    assert opened.index.place is None
    assert "another process makes it" in opened.told[-1]


def test_images_that_cannot_be_read_are_an_error_and_leave_nothing(tmp_path: Path) -> None:
    def read(rows: np.ndarray) -> np.ndarray:
        if len(rows) > 1:
            raise OSError("chunk 0 is cut short")
        fresh: np.ndarray = IMAGES[rows]
        return fresh

    with pytest.raises(OSError, match="cut short"):
        open_index(read=read, count=60, key="a", folder=tmp_path)
    assert [path.name for path in (tmp_path / folders.INDEX).iterdir()] == [stored.LOCK]


def test_maps_are_given_back_and_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored, "KEPT_MAP_BYTES", 0)
    images = draw("slices", 9, (200, 2, 64, 64))
    assert Opened(tmp_path, images=images).index.maps
    assert Opened(tmp_path, images=images).read == 0


def test_progress_counts_images() -> None:
    counted: list[int] = []

    class Count(Progress):
        def advance(self, count: int = 1, text: str = "") -> None:
            counted.append(count)

    build_index(read=reader(IMAGES), count=60, key="a", folder=None, progress=Count())
    assert sum(counted) == 60
