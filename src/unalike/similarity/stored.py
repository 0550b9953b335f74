"""A coarse index stored beside a set of images: a search reads only the pixels that a certified bound lets through.

The index holds every image averaged over 8 × 8, over 4 × 4 and, if it is large, over 2 × 2 blocks, as int8, with the
exact sums and the norms that bound a correlation from above (`pruning`, which proves it). A search goes best first:

1. the 8 × 8 means order the references of each query, and the most promising ones are read and multiplied out: from
   then on the query's k-th best is high;
2. all pairs are bounded by their 8 × 8 means, what passes by its 4 × 4 means, what passes those by its 2 × 2 means, and
   what passes all is read and multiplied out. A pair whose bound is below the k-th best so far cannot be among the k
   best, nor tie with them.

So the answers are those of `find_matches` to the last bit, ties to the lower index included, whatever the order.

An index is derived from patients' pixels, so it lies in their folder and is as internal as that. It is a folder of
plain .npy files, opened as memory maps, and a header that is written last; the whole is renamed into place. Opening it
reads all files and compares their checksums, but for the 2 × 2 means and what rounding left of them, 5/16 as large as
the pixels: of these a search reads few, so each image's have a checksum of their own, compared whenever they are used.
Means that do not fit theirs rule nothing out: the image's pixels are read instead, and the answers stay right.
"""

from __future__ import annotations

import mmap
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from zlib_ng import zlib_ng

from unalike import folders
from unalike.engine import Progress, map_in_order
from unalike.errors import FolderError
from unalike.images.moments import sum_pixels
from unalike.records import IntArray, Pixels
from unalike.similarity.correlation import (
    PICKED_QUERIES,
    PRUNED_TILE,
    Block,
    SearchResult,
    _Images,
    _prepare,
    _similarities,
    single_threaded_torch,
)
from unalike.similarity.products import Product, pick_product
from unalike.similarity.pruning import BLOCK, Coarse, bound_covariances, coarsen_to, pack_left, unpack_left

# What the files mean; another number is another format, and the index is made again.
FORMAT = 2
HEADER = "index.json"
LOCK = ".lock"
# What opening a missing, stale or damaged index may raise.
MISFIT = (OSError, EOFError, ValueError, KeyError, TypeError, FolderError)
# Sides of the blocks that are averaged, largest first.
SIDES = (8, 4, 2)
# Means of this side are checked image by image, when they are used.
FINEST = 2
# Smaller images are read about as fast as their finest means, or are ruled out before.
FINEST_PIXELS = 2**14
# Bytes of the finest means that an index kept in memory may have; if they were more, it goes without them.
FINEST_BYTES = 2**28
NORMS = tuple(field.name for field in fields(Coarse) if field.name not in ("means", "area", "left"))

# Bytes of pixels read at once by a thread.
READ_BYTES = 2**24
# Pairs bounded at once by a thread, and references at most: tables of some MiB.
BOUND_PAIRS, BOUND_REFERENCES = 2**19, 2**13
# References bounded by their 4 × 4 means at once, with those queries of which one of them is still possible. Of 2 × 2
# means it is as many as are multiplied out at once: fewer references share fewer queries.
FINE_TILE = 64
# Bytes of the queries that are searched together; more of them cost another pass.
QUERY_BYTES = 2**29
# A map larger than this is given back to the system block by block, so that it does not count as memory in use.
KEPT_MAP_BYTES = 2**28
CHECKED_BYTES = 2**22

Reader = Callable[[IntArray], Pixels]
Notice = Callable[[str], None]
Found = list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]  # queries (n,), similarities (n, m), references (m,)


@dataclass(frozen=True)
class CoarseIndex:
    """What is known of ``count`` images without reading them: open once, search again and again.

    ``shape`` is (C, H, W) of the chosen ``channels``; ``sums`` and ``squares`` (N, C) are Σa and Σa² of the pixels;
    ``levels`` holds the block means with their norms, coarsest first: none for images of 16 bits, or of sizes other
    than multiples of 4 × 8, whose search reads everything. Of 2 × 2 means, if there are such, ``left`` (N, D/16) is
    what rounding left, packed, and ``checks`` (N,) are the CRC-32 of each image's means and ``left``. ``place`` is the
    folder of the index, None in memory.
    """

    count: int
    channels: tuple[int, ...]
    shape: tuple[int, int, int]
    read: Reader
    sums: IntArray
    squares: IntArray
    levels: tuple[Coarse, ...]
    left: torch.Tensor | None = None
    checks: IntArray | None = None
    place: Path | None = None
    maps: tuple[np.memmap[Any, Any], ...] = ()

    @property
    def nbytes(self) -> int:
        """Bytes of the block means, on disk or in memory."""
        left = 0 if self.left is None else int(self.left.nbytes)
        return left + sum(int(level.means.nbytes) for level in self.levels)

    def pick(self, number: int, rows: torch.Tensor | slice) -> tuple[Coarse, torch.Tensor]:
        """Level ``number`` of some images, to bound with, and which of them fit their checksum (of those there are)."""
        level = _pick_coarse(self.levels[number], rows)
        if _side(level) != FINEST or self.left is None or self.checks is None:
            return level, torch.ones(len(level.norm), dtype=torch.bool)
        packed = self.left[rows]
        sound = torch.from_numpy(_check_rows(level.means, packed)) == torch.from_numpy(self.checks)[rows]
        return replace(level, left=unpack_left(packed)), sound

    def release(self, rows: slice) -> None:
        """Tell the system that the maps of these rows are not needed for now: it keeps them as long as it likes."""
        for array in self.maps:
            if array.nbytes < KEPT_MAP_BYTES or not isinstance(array.base, mmap.mmap):
                continue
            size, page = array[0].nbytes, mmap.PAGESIZE
            begin = -(-(array.offset + rows.start * size) // page) * page
            end = (array.offset + rows.stop * size) // page * page
            if end > begin:
                array.base.madvise(mmap.MADV_DONTNEED, begin, end - begin)


def open_index(
    *,
    read: Reader,
    count: int,
    channels: Sequence[int] | None = None,
    key: str,
    folder: Path | None,
    notice: Notice | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
) -> CoarseIndex:
    """Open the index of ``count`` images in ``folder``, or make it there if it is missing, stale or damaged.

    ``key`` names the content of the images: an index made for another one is stale. ``notice`` is told, in a line,
    what is made and why. The other arguments are those of `build_index`.
    """
    tell = notice or _ignore
    source = _Source.measure(read, count, channels)
    if folder is not None and source.sides:
        place = _place(folder, source)
        try:
            return _load(place, source, key)
        except FileNotFoundError:
            tell(f"{place} is made: later searches read only what may match.")
        except MISFIT as error:
            tell(f"{place} does not fit ({str(error).splitlines()[0]}). It is made again.")
    return _build(source, key, folder, tell, workers, progress or Progress())


def build_index(
    *,
    read: Reader,
    count: int,
    channels: Sequence[int] | None = None,
    key: str,
    folder: Path | None,
    notice: Notice | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
) -> CoarseIndex:
    """Read all images once and make their index, under ``folder``/index, or in memory only if ``folder`` is None.

    ``read(rows)`` gives the pixels (n, C, H, W), uint8 or uint16, of ascending rows, as a fresh array; threads call it
    at the same time. Of the channels, ``channels`` picks indices (None: all). Where ``folder`` cannot be written (it is
    read-only, the disk is full, or another process makes the same index), the index is kept in memory and ``notice``
    is told; that is never an error. ``progress`` advances by 1 an image.
    """
    source = _Source.measure(read, count, channels)
    return _build(source, key, folder, notice or _ignore, workers, progress or Progress())


def _ignore(message: str) -> None:
    """For callers who want no notices."""


@dataclass(frozen=True)
class _Source:
    """Where pixels come from, which channels of them, and their geometry."""

    reader: Reader
    count: int
    channels: tuple[int, ...]
    all_channels: int
    shape: tuple[int, int, int]
    sides: tuple[int, ...]

    @classmethod
    def measure(cls, read: Reader, count: int, channels: Sequence[int] | None) -> _Source:
        """Read one image, to know how large they are."""
        if count == 0:
            return cls(read, 0, tuple(channels or ()), 0, (0, 0, 0), ())
        first = read(np.zeros(1, np.int64))
        _, all_channels, height, width = first.shape
        chosen = tuple(range(all_channels) if channels is None else channels)
        fits = first.dtype == np.uint8 and height % BLOCK == 0 and width % 8 == 0 and len(chosen) > 0
        sides = tuple(side for side in SIDES if height % side == 0) if fits else ()
        if len(chosen) * height * width < FINEST_PIXELS:
            sides = tuple(side for side in sides if side != FINEST)
        return cls(read, count, chosen, all_channels, (len(chosen), height, width), sides)

    def in_memory(self) -> _Source:
        """The same, without means that are too large to be kept in memory."""
        large = self.count * int(np.prod(self.shape)) // FINEST**2 > FINEST_BYTES
        return replace(self, sides=tuple(side for side in self.sides if side != FINEST)) if large else self

    def pixels(self, rows: IntArray) -> Pixels:
        """The chosen channels of some images."""
        return pick_channels(self.reader(rows), self.channels)

    def parts(self) -> Iterator[IntArray]:
        """All rows, as many at once as are read together."""
        _, height, width = self.shape
        step = max(READ_BYTES // max(self.all_channels * height * width, 1), 1)
        for begin in range(0, self.count, step):
            yield np.arange(begin, min(begin + step, self.count), dtype=np.int64)

    def layout(self) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
        """Shape and type of each array of the index."""
        pixels = int(np.prod(self.shape))
        arrays: dict[str, tuple[tuple[int, ...], np.dtype[Any]]] = {
            name: ((self.count, len(self.channels)), np.dtype("<i8")) for name in ("sums", "squares")
        }
        for side in self.sides:
            arrays[f"means-{side}"] = ((self.count, pixels // side**2), np.dtype("i1"))
            arrays[f"norms-{side}"] = ((self.count, len(NORMS)), np.dtype("<f8"))
            if side == FINEST:
                arrays[f"left-{side}"] = ((self.count, pixels // side**2 // 4), np.dtype("u1"))
                arrays[f"checks-{side}"] = ((self.count,), np.dtype("<i8"))
        return arrays


def pick_channels(images: Pixels, channels: Sequence[int]) -> Pixels:
    """The same images (N, C, H, W) with only these channels; no copy where all are chosen in order."""
    return images if list(channels) == list(range(images.shape[1])) else images[:, list(channels)]


def _describe(images: Pixels, sides: Sequence[int], product: Product) -> tuple[dict[str, np.ndarray], list[Coarse]]:
    """What the index says of these images: as arrays to be stored, and as levels to be bounded with."""
    sums, squares = sum_pixels(images)
    pixels = int(np.prod(images.shape[1:]))
    total, square = (torch.from_numpy(moment.sum(axis=1)) for moment in (sums, squares))
    # Moments of pixels − 128: Σa − 128·D and Σa² − 256·Σa + 128²·D.
    centred, squared = total - 128 * pixels, square - 256 * total + 2**14 * pixels
    levels = coarsen_to(np.ascontiguousarray(images), centred, squared, product, sides) if sides else []
    arrays = {"sums": sums, "squares": squares}
    for side, level in zip(sides, levels, strict=True):
        arrays[f"means-{side}"] = level.means.numpy()
        arrays[f"norms-{side}"] = torch.stack([getattr(level, name) for name in NORMS], dim=1).numpy()
        if level.left is not None:
            packed = pack_left(level.left)
            arrays[f"left-{side}"] = packed.numpy()
            arrays[f"checks-{side}"] = _check_rows(level.means, packed)
    return arrays, levels


def _check_rows(means: torch.Tensor, packed: torch.Tensor) -> IntArray:
    """CRC-32 (n,) of the means (n, ·) of each image and of what rounding left of them."""
    rows = zip(means.numpy(), packed.numpy(), strict=True)
    return np.array([zlib_ng.crc32(left.data, zlib_ng.crc32(row.data)) for row, left in rows], dtype=np.int64)


def _as_index(source: _Source, arrays: Mapping[str, np.ndarray], place: Path | None) -> CoarseIndex:
    levels = []
    for side in source.sides:
        norms = {name: torch.from_numpy(arrays[f"norms-{side}"][:, at].copy()) for at, name in enumerate(NORMS)}
        levels.append(Coarse(means=torch.from_numpy(arrays[f"means-{side}"]), area=side * side, **norms))
    return CoarseIndex(
        count=source.count,
        channels=source.channels,
        shape=source.shape,
        read=source.reader,
        sums=arrays["sums"],
        squares=arrays["squares"],
        levels=tuple(levels),
        left=torch.from_numpy(arrays[f"left-{FINEST}"]) if FINEST in source.sides else None,
        checks=arrays.get(f"checks-{FINEST}"),
        place=place,
        maps=tuple(array for array in arrays.values() if isinstance(array, np.memmap)),
    )


# Making and opening


class _KeepError(Exception):
    """The index cannot be written: reading images must not be taken for it, so it has a type of its own."""


def _build(
    source: _Source, key: str, folder: Path | None, tell: Notice, workers: int | None, progress: Progress
) -> CoarseIndex:
    if folder is not None and source.sides:
        place = _place(folder, source)
        try:
            with _held(place.parent), _files(place, source, key) as write:
                _fill(source, write, workers, progress)
        except _KeepError as error:
            tell(f"{place} cannot be written ({error}). The index is kept in memory for now.")
        else:
            with suppress(*MISFIT):  # somebody else may have taken it away already
                return _load(place, source, key)
    source = source.in_memory()
    arrays = {name: np.empty(shape, dtype) for name, (shape, dtype) in source.layout().items()}

    def keep(begin: int, part: Mapping[str, np.ndarray]) -> None:
        for name, values in part.items():
            arrays[name][begin : begin + len(values)] = values

    if source.sides:  # otherwise all images are read by every search, which sums them up then
        _fill(source, keep, workers, progress)
    return _as_index(source, arrays, None)


def _fill(
    source: _Source,
    write: Callable[[int, Mapping[str, np.ndarray]], None],
    workers: int | None,
    progress: Progress,
) -> None:
    """Describe all images, in order, a part to a thread."""
    product = pick_product(torch.device("cpu"))
    begin = 0
    with single_threaded_torch() as threads:
        described = map_in_order(
            lambda rows: _describe(source.pixels(rows), source.sides, product)[0],
            source.parts(),
            workers=workers or threads,
        )
        for part in described:
            write(begin, part)
            begin += len(part["sums"])
            progress.advance(len(part["sums"]))


def _place(folder: Path, source: _Source) -> Path:
    return folder / folders.INDEX / "-".join(["channels", *map(str, source.channels)])


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    """Hold the folder of indices for one process; advisory, so nothing is held where a system has no flock."""
    try:
        import fcntl
    except ImportError:
        fcntl = None  # type: ignore[assignment]
    with ExitStack() as stack:
        try:
            folder.mkdir(exist_ok=True)
            if fcntl is not None:
                stream = stack.enter_context((folder / LOCK).open("w"))
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise _KeepError("another process makes it") from error
        except OSError as error:
            raise _KeepError(error.strerror or str(error)) from error
        yield


@contextmanager
def _files(place: Path, source: _Source, key: str) -> Iterator[Callable[[int, Mapping[str, np.ndarray]], None]]:
    """Files that parts of the arrays are written to, in order; renamed to ``place`` when all is well, else removed."""
    partial = place.with_name(place.name + ".partial")
    checks: dict[str, int] = {}
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, partial, ignore_errors=True)
        streams = {}
        try:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            for name, (shape, dtype) in source.layout().items():
                streams[name] = stack.enter_context((partial / f"{name}.npy").open("wb"))
                header = {"descr": dtype.str, "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(streams[name], header)
        except OSError as error:
            raise _KeepError(error.strerror or str(error)) from error

        def write(_: int, part: Mapping[str, np.ndarray]) -> None:
            try:
                for name, values in part.items():
                    data = np.ascontiguousarray(values).astype(source.layout()[name][1], copy=False).data.cast("B")
                    streams[name].write(data)
                    checks[name] = zlib_ng.crc32(data, checks.get(name, 0))
            except OSError as error:
                raise _KeepError(error.strerror or str(error)) from error

        yield write
        try:
            for stream in streams.values():
                stream.close()
            folders.write_json(partial / HEADER, _header(source, key) | {"checks": checks})
            shutil.rmtree(place, ignore_errors=True)
            partial.rename(place)
        except OSError as error:
            raise _KeepError(error.strerror or str(error)) from error


def _header(source: _Source, key: str) -> dict[str, Any]:
    """What must be the same for an index to fit."""
    return {
        "kind": "index",
        "format": FORMAT,
        "key": key,
        "images": source.count,
        "channels": list(source.channels),
        "shape": list(source.shape),
        "sides": list(source.sides),
    }


def _load(place: Path, source: _Source, key: str) -> CoarseIndex:
    """Open an index. Raises one of `MISFIT` if it does not fit."""
    if not (place / HEADER).is_file():
        raise FileNotFoundError(f"{place} is missing")
    header = folders.read_json(place / HEADER)
    wanted = _header(source, key)
    if isinstance(header, dict) and header.get("format") != FORMAT:
        raise ValueError("it is of another format")
    if not isinstance(header, dict) or {name: header.get(name) for name in wanted} != wanted:
        raise ValueError("it was made of other images")
    arrays = {}
    for name, (shape, dtype) in source.layout().items():
        file = place / f"{name}.npy"
        # "c" is a private map: torch wants arrays that could be written.
        array = np.load(file, mmap_mode="c", allow_pickle=False)
        if array.shape != shape or array.dtype != dtype or not array.flags.c_contiguous:
            raise ValueError(f"{file.name} is damaged")
        # The finest means are not read here: a search reads few of them, and checks those.
        if name not in (f"means-{FINEST}", f"left-{FINEST}") and _check(file, array.offset) != header["checks"][name]:
            raise ValueError(f"{file.name} is damaged")
        arrays[name] = array if name.startswith(("means", "left")) else np.array(array)
    return _as_index(source, arrays, place)


def _check(file: Path, offset: int) -> int:
    """CRC-32 of a file after the first ``offset`` bytes, read past the map."""
    check, buffer = 0, memoryview(bytearray(CHECKED_BYTES))
    with file.open("rb", buffering=0) as stream:
        stream.seek(offset)
        while size := stream.readinto(buffer):
            check = zlib_ng.crc32(buffer[:size], check)
    return int(check)


# Searching


def find_stored(
    *,
    queries: Pixels,
    index: CoarseIndex,
    rows: IntArray | None = None,
    best: int = 1,
    owners: IntArray | None = None,
    workers: int | None = None,
    product: Product | None = None,
) -> SearchResult:
    """Find the ``best`` matches of each query among the images of an index: what `find_matches` finds, to the last bit.

    ``queries`` (Q, C, H, W) have all channels of the images, of which those of the index are compared. ``rows``
    (ascending) are the images to search (None: all); the result's ``references`` are positions in it. With ``owners``,
    an integer for each of them, the matches are of different owners: the best image of each of the best owners.
    ``mean`` is not computed (NaN). ``share_read`` is what was read of the images that were searched.
    """
    if owners is not None and len(owners) != (index.count if rows is None else len(rows)):
        raise ValueError(f"{len(owners)} owners for {index.count if rows is None else len(rows)} images")
    product = product or pick_product(torch.device("cpu"))
    images = pick_channels(queries, index.channels) if index.count else queries
    if index.count and images.shape[1:] != index.shape:
        raise ValueError(f"queries are {images.shape[1:]}, but the images of the index are {index.shape}")
    step = max(QUERY_BYTES // max(int(np.prod(images.shape[1:])), 1), 1)
    searches = []
    with single_threaded_torch() as threads:
        for begin in range(0, max(len(images), 1), step):
            search = _Search(images[begin : begin + step], index, rows, best, owners, product)
            search.run(workers or threads)
            searches.append(search)
    return _result(searches)


def _result(searches: list[_Search]) -> SearchResult:
    queries, count = sum(len(search.images.sums) for search in searches), searches[0].count
    return SearchResult(
        references=np.concatenate([search.top.references.numpy() for search in searches]),
        similarities=np.concatenate([search.top.values.numpy() for search in searches]),
        mean=np.full(queries, np.nan),
        share_multiplied=sum(search.multiplied for search in searches) / max(queries * count, 1),
        share_read=sum(search.read_images for search in searches) / max(count, 1),
    )


class _Top:
    """The best values so far of each query and where they were found, of different owners if there are owners."""

    def __init__(self, queries: int, best: int, owners: torch.Tensor | None) -> None:
        self.best, self.owners = best, owners
        self.values = torch.full((queries, best), torch.nan, dtype=torch.float64)
        self.references = torch.full((queries, best), -1, dtype=torch.int64)
        # What a value must reach to matter. No correlation is below −2, which stands for −∞ because ∞ · 0 is NaN.
        self.threshold = torch.full((queries, 1), -2.0, dtype=torch.float64)

    def merge(self, rows: torch.Tensor, values: torch.Tensor, references: torch.Tensor) -> None:
        """Take in ``values`` (n, m), NaN where there is none, of queries ``rows`` (n,) at ``references`` (n, m)."""
        values = torch.cat([self.values[rows], values], dim=1)
        references = torch.cat([self.references[rows], references], dim=1)
        # Two stable sorts: the lower index comes first among equals, in whatever order they were found.
        order = references.sort(dim=1, stable=True).indices
        values, references = values.gather(1, order), references.gather(1, order)
        values, references = _sort(values, references)
        if self.owners is not None:
            owner = self.owners[references]
            again = (owner[:, :, None] == owner[:, None, :]).tril(-1).any(dim=2)
            values, references = _sort(values.masked_fill(again, torch.nan), references)
        self.values[rows] = values[:, : self.best]
        self.references[rows] = references[:, : self.best].where(~values[:, : self.best].isnan(), -1)
        self.threshold[rows] = values[:, self.best - 1 : self.best].nan_to_num(nan=-2.0)


def _sort(values: torch.Tensor, references: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Descending and stable, NaN last."""
    order = values.nan_to_num(nan=-torch.inf).sort(dim=1, descending=True, stable=True).indices
    return values.gather(1, order), references.gather(1, order)


class _Search:
    """The search of one tile of queries."""

    def __init__(
        self,
        queries: Pixels,
        index: CoarseIndex,
        rows: IntArray | None,
        best: int,
        owners: IntArray | None,
        product: Product,
    ) -> None:
        self.index, self.product, self.best = index, product, best
        self.rows = np.arange(index.count, dtype=np.int64) if rows is None else np.asarray(rows, dtype=np.int64)
        self.count = len(self.rows)
        self.images = _prepare(Block(0, queries), channels=None, device=torch.device("cpu"))
        self.levels = _describe(queries, [_side(level) for level in index.levels], product)[1]
        # The last entry is for the reference −1.
        self.owners = None if owners is None else torch.from_numpy(np.append(owners, -1).astype(np.int64))
        self.top = _Top(len(queries), best, self.owners)
        self.defined = self.images.spread > 0
        self.promising = torch.full((len(queries), 0), -1, dtype=torch.int64)
        self.multiplied = self.read_images = 0
        self.local = threading.local()

    def run(self, workers: int) -> None:
        """Search all references."""
        if not len(self.images.sums) or not self.count:
            return
        size = max(min(BOUND_PAIRS // len(self.images.sums), BOUND_REFERENCES), PRUNED_TILE)
        blocks = [slice(begin, min(begin + size, self.count)) for begin in range(0, self.count, size)]
        if self.levels:
            self._find_promising(blocks, workers)
            self._take(self._multiply_promising, self._parts(np.unique(self.promising.numpy())), workers)
        self._take(self._search_block, blocks, workers)

    def _take(self, function: Callable[[Any], tuple[Found, int, int]], items: Any, workers: int) -> None:
        for found, read, multiplied in map_in_order(function, items, workers=workers):
            self.read_images += read
            self.multiplied += multiplied
            for rows, similarities, references in found:
                self.top.merge(rows, similarities, references.expand(len(rows), -1))

    def _parts(self, places: IntArray) -> list[IntArray]:
        """Places ≥ 0, ascending, as many at once as are read together."""
        places = places[places >= 0]
        step = max(READ_BYTES // max(int(np.prod(self.index.shape)), 1), 1)
        return [places[begin : begin + step] for begin in range(0, len(places), step)]

    # Bounds

    def _level(self, level: Coarse, block: slice) -> Coarse:
        rows = self.rows[block]
        if rows[-1] - rows[0] + 1 == len(rows):
            return _pick_coarse(level, slice(int(rows[0]), int(rows[-1]) + 1))
        return _pick_coarse(level, torch.from_numpy(rows))

    def _release(self, block: slice) -> None:
        self.index.release(slice(int(self.rows[block.start]), int(self.rows[block.stop - 1]) + 1))

    def _find_promising(self, blocks: list[slice], workers: int) -> None:
        """Fill ``promising`` (Q, m) with the places that are best by the coarsest means, −1 where there are fewer."""
        top = _Top(len(self.images.sums), self.best, self.owners)
        every = torch.arange(len(self.images.sums))
        # Several images of an owner count once, so more are looked at.
        wanted = self.best * (1 if self.owners is None else 4)

        def look(block: slice) -> tuple[torch.Tensor, torch.Tensor]:
            left, right = self.levels[0], self._level(self.index.levels[0], block)
            values = self.product(left.means, right.means).to(torch.float64).mul_(right.area)
            values.addr_(left.mean, right.mean, alpha=-1).div_(right.norm)
            values.masked_fill_(right.norm == 0, -torch.inf)
            best = values.topk(min(wanted, values.shape[1]), dim=1)
            self._release(block)
            return best.values, best.indices + block.start

        for values, places in map_in_order(look, blocks, workers=workers):
            top.merge(every, values.masked_fill(values.isinf(), torch.nan), places)
        self.promising = torch.where(self.defined[:, None], top.references, -1)

    def _possible(self, block: slice) -> torch.Tensor:
        """Whether a pair (Q, n) may be among the best; those that were promising are done."""
        if not self.levels:
            return self.defined[:, None].expand(-1, block.stop - block.start).clone()
        level = self._level(self.index.levels[0], block)
        possible = self._reaches(0, slice(None), level)
        possible &= self.defined[:, None]
        possible &= level.norm > 0
        inside = (self.promising >= block.start) & (self.promising < block.stop)
        row, column = inside.nonzero(as_tuple=True)
        possible[row, self.promising[row, column] - block.start] = False
        for finer in range(1, len(self.levels)):
            self._sieve(finer, block, possible)
        return possible

    def _sieve(self, finer: int, block: slice, possible: torch.Tensor) -> None:
        """Take from ``possible`` what the finer means rule out."""
        columns = possible.any(dim=0).nonzero()[:, 0]
        step = PRUNED_TILE if _side(self.index.levels[finer]) == FINEST else FINE_TILE
        for begin in range(0, len(columns), step):
            tile = columns[begin : begin + step]
            references = self.rows[tile.numpy() + block.start]
            level, sound = self.index.pick(finer, torch.from_numpy(references))
            if not sound.any():  # nothing is ruled out by damaged means
                continue
            if not sound.all():
                tile, level = tile[sound], _pick_coarse(level, sound)
            part = possible[:, tile]
            rows = part.any(dim=1).nonzero()[:, 0]
            if 2 * len(rows) > len(part):  # most of them: copying costs more than it saves
                possible[:, tile] = part.logical_and_(self._reaches(finer, slice(None), level))
                continue
            for pick in range(0, len(rows), PICKED_QUERIES):  # few: their copies lie in memory that was freed
                chosen = rows[pick : pick + PICKED_QUERIES]
                possible[chosen[:, None], tile] = part[chosen].logical_and_(self._reaches(finer, chosen, level))
        self._release(block)

    def _reaches(self, number: int, rows: torch.Tensor | slice, level: Coarse) -> torch.Tensor:
        """Whether the upper bound of each pair (n, m) is at least its query's threshold."""
        queries = _pick_coarse(self.levels[number], rows)
        bound = bound_covariances(queries, level, self.product)
        return bound >= (self.top.threshold[rows] * queries.norm[:, None]) * level.norm

    # Reading and multiplying out

    def _search_block(self, block: slice) -> tuple[Found, int, int]:
        possible = self._possible(block)
        columns = possible.any(dim=0).nonzero()[:, 0]
        found: Found = []
        multiplied = 0
        for places in self._parts(columns.numpy()):
            part, pairs = self._multiply(places + block.start, possible[:, torch.from_numpy(places)])
            found += part
            multiplied += pairs
        return found, len(columns), multiplied

    def _multiply_promising(self, places: IntArray) -> tuple[Found, int, int]:
        at = torch.searchsorted(torch.from_numpy(places), self.promising).clamp_(max=len(places) - 1)
        row, column = (torch.from_numpy(places)[at] == self.promising).nonzero(as_tuple=True)
        wanted = torch.zeros(len(self.promising), len(places), dtype=torch.bool)
        wanted[row, at[row, column]] = True
        found, multiplied = self._multiply(places, wanted)
        return found, len(places), multiplied

    def _multiply(self, places: IntArray, wanted: torch.Tensor) -> tuple[Found, int]:
        """Read the references at ``places`` and multiply out the pairs ``wanted`` (Q, n); gives what may matter."""
        rows = self.rows[places]
        pixels = pick_channels(self.index.read(rows), self.index.channels)
        sums, squares = (self.index.sums[rows], self.index.squares[rows]) if self.levels else (None, None)
        references = _prepare(Block(0, pixels, sums, squares), channels=None, device=torch.device("cpu"))
        found: Found = []
        multiplied = 0
        for begin in range(0, len(places), PRUNED_TILE):
            tile = slice(begin, begin + PRUNED_TILE)
            chosen = wanted[:, tile].any(dim=1).nonzero()[:, 0]
            for pick in range(0, len(chosen), PICKED_QUERIES):
                queries = chosen[pick : pick + PICKED_QUERIES]
                similarities = _similarities(self._pick(queries), references.part(tile), self.product)
                multiplied += similarities.numel()
                # Every pair is taken in once: one that is not wanted was ruled out, or is done.
                similarities.masked_fill_(~wanted[queries, tile], torch.nan)
                better = (similarities >= self.top.threshold[queries]).any(dim=1)
                if better.any():
                    here = torch.from_numpy(places[tile])
                    found.append((queries[better], similarities[better], here))
        return found, multiplied

    def _pick(self, rows: torch.Tensor) -> _Images:
        """Some queries, copied into memory that the thread has already: fresh memory costs more than the copying."""
        if len(rows) == len(self.images.sums):
            return self.images
        if not hasattr(self.local, "buffers"):
            count = min(len(self.images.sums), PICKED_QUERIES)
            shape = (count, self.images.planes[0].shape[1])
            self.local.buffers = [torch.from_numpy(np.empty(shape, np.int8)) for _ in self.images.planes]
        planes = tuple(
            torch.index_select(plane, 0, rows, out=buffer[: len(rows)])
            for plane, buffer in zip(self.images.planes, self.local.buffers, strict=True)
        )
        return _Images(planes, self.images.sums[rows], self.images.spread[rows])


def _side(level: Coarse) -> int:
    return int(level.area**0.5)


def _pick_coarse(level: Coarse, rows: torch.Tensor | slice) -> Coarse:
    """Some images of a level."""
    left = None if level.left is None else level.left[rows]
    return replace(level, means=level.means[rows], left=left, **{name: getattr(level, name)[rows] for name in NORMS})
