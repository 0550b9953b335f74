"""The folder format that cohorts and samples share: records, images, and the sums the audit needs.

``images.zarr`` is one uncompressed array (N, C, H, W) of uint8 or uint16, a few hundred images a chunk;
``records.parquet`` has one row per image, in the same order, with the columns of `SCHEMA`.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import zarr

from unalike import folders
from unalike.errors import FolderError
from unalike.folders import Header
from unalike.images.moments import sum_pixels
from unalike.records import IntArray, Pixels, TextArray

SCHEMA = pa.schema(
    [
        ("subject", pa.string()),  # keyed pseudonym of the patient; "sample-000017" for synthetic images
        ("source", pa.string()),  # keyed pseudonym of the file or volume
        ("slice", pa.int32()),  # index along the slicing axis; −1 for pictures
        ("label", pa.string()),  # class; "" where there is none
        ("role", pa.string()),  # train, holdout, or synthetic
        ("seed", pa.int64()),  # random stream of a synthetic image; −1 for real ones
        ("digest", pa.string()),  # SHA-256 of the pixels: equal digests are pixel-identical images
        ("sums", pa.list_(pa.int64())),  # Σa of each channel
        ("squares", pa.list_(pa.int64())),  # Σa² of each channel
        # Where a real image came from (see `geometry.Placement`); empty for synthetic ones.
        ("source_size", pa.list_(pa.int32())),  # height and width of the source's plane (of volumes, once resampled)
        ("scale", pa.list_(pa.float64())),  # source row (column) = scale · row (column) + offset
        ("offset", pa.list_(pa.float64())),
        ("affine", pa.list_(pa.float64())),  # slices: 4 × 4, row by row, (column, row, 0, 1) → RAS mm
        ("attributes", pa.map_(pa.string(), pa.string())),  # what is known of the subject: name → value, by name
    ]
)

_BLANK: dict[str, Any] = {
    "slice": -1,
    "label": "",
    "seed": -1,
    "source_size": [],
    "scale": [],
    "offset": [],
    "affine": [],
    "attributes": {},
}

# Chunks near 32 MiB: large enough to read at disk speed, small enough to hold a few in memory.
CHUNK_BYTES = 32 * 2**20
LARGEST_CHUNK_IMAGES = 512


@dataclass(frozen=True)
class ImageFolder:
    """A finished cohort or samples folder, opened. Records are in memory, images stay on disk."""

    path: Path
    header: Header
    records: pa.Table

    @cached_property
    def images(self) -> Any:
        """The zarr array (N, C, H, W); slicing it reads from disk."""
        return zarr.open_array(self.path / folders.IMAGES, mode="r")

    @property
    def channels(self) -> tuple[str, ...]:
        """Names of the channels, in order."""
        return tuple(self.header.content["channels"])

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return int(self.header.content["height"]), int(self.header.content["width"])

    @property
    def dtype(self) -> np.dtype[Any]:
        """``uint8`` or ``uint16``."""
        return np.dtype(str(self.header.content["dtype"]))

    @property
    def digest(self) -> str:
        """Digest by which other headers name this folder."""
        return folders.digest_of(self.path, kind=self.header.kind)

    def __len__(self) -> int:
        """Number of images."""
        return int(self.records.num_rows)

    def column(self, name: str) -> TextArray:
        """One text column of the records as a NumPy array."""
        return np.asarray(self.records[name].to_pylist(), dtype=np.str_)

    def numbers(self, name: str) -> IntArray:
        """One integer column as int64: (N,), or (N, C) for ``sums`` and ``squares``."""
        return np.asarray(self.records[name].to_pylist(), dtype=np.int64)

    def attributes(self) -> list[dict[str, str]]:
        """Attributes of each image's subject and scan (age, sex, place of the slice …): name → value, both text.

        One dictionary an image, in order; empty where nothing is known.
        """
        return [dict(pairs) for pairs in self.records["attributes"].to_pylist()]

    def rows(self, role: str) -> IntArray:
        """Indices of the images with this role, ascending."""
        return np.flatnonzero(self.column("role") == role).astype(np.int64)

    def read(self, rows: IntArray) -> Pixels:
        """Pixels of these images, (len(rows), C, H, W), in the order asked for."""
        if len(rows) == 0:
            return np.empty((0, len(self.channels), *self.size), dtype=self.dtype)
        ordered, back = np.unique(rows, return_inverse=True)
        pixels = read_rows(self.images, self.path / folders.IMAGES, ordered)
        if np.array_equal(ordered, rows):
            return pixels  # in order already: no need to copy
        return pixels[back]


def read_run(array: Any, place: Path, begin: int, end: int) -> Pixels:
    """Images ``begin`` to ``end`` of the zarr array in the folder ``place``: a chunk's file is their plain bytes.

    zarr gives the same at a quarter of the speed, because it reads into one fresh buffer and copies to another.
    """
    shape = (end - begin, *array.shape[1:])
    dtype, chunk = np.dtype(array.dtype), int(array.chunks[0])
    if array.chunks[1:] != shape[1:] or array.compressors or not dtype.isnative:
        return np.asarray(array[begin:end])
    size = int(np.prod(shape[1:]))
    pixels = np.empty(shape, dtype)
    for first in range(begin // chunk * chunk, end, chunk):
        low, high = max(begin, first), min(end, first + chunk)
        with (place / "c" / str(first // chunk) / "0" / "0" / "0").open("rb", buffering=0) as stream:
            stream.seek((low - first) * size * dtype.itemsize)
            part = pixels[low - begin : high - begin]
            if stream.readinto(part.view(np.uint8).data) != part.nbytes:
                raise OSError(f"{stream.name} is cut short")
    return pixels


def read_rows(array: Any, place: Path, rows: IntArray) -> Pixels:
    """Images of these rows (ascending) of the zarr array in the folder ``place``, a fresh array."""
    if len(rows) and rows[-1] - rows[0] + 1 == len(rows):
        return read_run(array, place, int(rows[0]), int(rows[-1]) + 1)
    runs = np.split(rows, np.flatnonzero(np.diff(rows) != 1) + 1)
    parts = [read_run(array, place, int(run[0]), int(run[-1]) + 1) for run in runs if len(run)]
    return np.concatenate(parts) if parts else np.empty((0, *array.shape[1:]), array.dtype)


def read_stored(place: Path) -> Callable[[IntArray], Pixels]:
    """A function that reads images of ascending rows from the zarr array in ``place``."""
    return functools.partial(read_rows, zarr.open_array(place, mode="r"), place)


def open_images(path: str | Path, *, kind: str = "cohort") -> ImageFolder:
    """Open a finished ``cohort`` or ``samples`` folder.

    Raises `FolderError` if it is missing, unfinished, or of another kind or schema, or if records and images
    do not fit each other.
    """
    path = Path(path)
    header = folders.read_header(path, kind=kind)
    try:
        records = _without_gaps(pq.read_table(path / folders.RECORDS, schema=SCHEMA))
        opened = ImageFolder(path=path, header=header, records=records)
        shape = tuple(opened.images.shape)
        wanted = (len(opened), len(opened.channels), *opened.size)
        same_depth = opened.images.dtype == opened.dtype
        recorded = opened.header.content["records_digest"]
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
        raise FolderError(f"{path} is damaged ({error}). Make the folder again.") from error
    if shape != wanted or not same_depth:
        raise FolderError(f"{path} is damaged: {shape} images for {len(opened)} records. Make the folder again.")
    if folders.digest_file(path / folders.RECORDS) != recorded:
        raise FolderError(f"{path / folders.RECORDS} was changed since it was made. Make the folder again.")
    _check_chunks(opened)
    return opened


def _without_gaps(records: pa.Table) -> pa.Table:
    """Records with empty attributes where there are none: folders were once written without that column."""
    column = records["attributes"]
    if not column.null_count:
        return records
    index = SCHEMA.get_field_index("attributes")
    whole = pa.array([pairs or [] for pairs in column.to_pylist()], SCHEMA.field(index).type)
    return records.set_column(index, SCHEMA.field(index), whole)


def _as_pairs(attributes: Any) -> list[tuple[str, str]]:
    """Attributes of one image as they are stored; a mapping, or pairs that were read back."""
    return sorted(dict(attributes or ()).items())


def _check_chunks(opened: ImageFolder) -> None:
    """Every chunk is there and whole: zarr reads a missing one as black images. Uncompressed chunks have one size."""
    size = int(np.prod(opened.images.chunks)) * opened.dtype.itemsize
    for index in range(-(-len(opened) // int(opened.images.chunks[0]))):
        chunk = opened.path / folders.IMAGES / "c" / str(index) / "0" / "0" / "0"
        if not chunk.is_file() or chunk.stat().st_size != size:
            raise FolderError(f"{chunk} is missing or cut short. Make {opened.path} again.")


def verify_images(opened: ImageFolder) -> Iterator[Pixels]:
    """Yield all images, block by block, once each is compared with the digest in its record.

    Raises `FolderError` naming the first image that was changed.
    """
    digests = opened.column("digest")
    for first, block in iterate_blocks(opened, np.arange(len(opened), dtype=np.int64)):
        for index, image in enumerate(block, start=first):
            if digest_pixels(image) != digests[index]:
                raise FolderError(f"{opened.path}: image {index} was changed since it was made. Make the folder again.")
        yield block


def digest_pixels(image: Pixels) -> str:
    """SHA-256 of one image's shape, depth and pixels."""
    hasher = hashlib.sha256(f"{image.shape}{image.dtype.str}".encode())
    hasher.update(np.ascontiguousarray(image).data)
    return hasher.hexdigest()


def digest_content(columns: Mapping[str, Sequence[Any]], subjects: TextArray) -> str:
    """Digest of images, classes, roles and who belongs to whom, which does not depend on the pseudonym key."""
    _, first, number = np.unique(subjects, return_index=True, return_inverse=True)
    order = np.argsort(np.argsort(first))[number].tolist()  # subjects by first appearance
    named = ("digest", "slice", "label", "role", "affine")
    rows = zip(order, *(columns[name] for name in named), strict=True)
    return hashlib.sha256(json.dumps(list(rows)).encode()).hexdigest()


def describe_pixels(image: Pixels) -> dict[str, Any]:
    """Digest and sums of one image (C, H, W), as fields of its record."""
    sums, squares = sum_pixels(image[None])
    return {"digest": digest_pixels(image), "sums": sums[0].tolist(), "squares": squares[0].tolist()}


def chunk_images(channels: int, height: int, width: int, dtype: np.dtype[Any]) -> int:
    """Images per chunk for this geometry."""
    return max(1, min(LARGEST_CHUNK_IMAGES, CHUNK_BYTES // (channels * height * width * dtype.itemsize)))


class ImageWriter:
    """Writes images and records of a cohort or samples folder, chunk by chunk, in order.

    The folder has been begun with `folders.begin_folder`; `close` writes the records and returns the
    ``content`` of the header, which the caller completes and hands to `folders.finish_folder`.
    """

    def __init__(self, out: Path, *, channels: Sequence[str], height: int, width: int, dtype: np.dtype[Any]) -> None:
        """Create the empty array in ``out``."""
        self.out, self.channels, self.height, self.width, self.dtype = (
            out,
            tuple(channels),
            height,
            width,
            dtype,
        )
        self.chunk = chunk_images(len(self.channels), height, width, dtype)
        self.array = zarr.create_array(
            store=out / folders.IMAGES,
            shape=(0, len(self.channels), height, width),
            chunks=(self.chunk, len(self.channels), height, width),
            dtype=dtype,
            compressors=None,
            config={"write_empty_chunks": True},  # a missing chunk must mean damage, not a run of black images
            overwrite=True,
        )
        self.columns: dict[str, list[Any]] = {name: [] for name in SCHEMA.names}
        self.waiting: list[Pixels] = []

    @classmethod
    def resume(cls, out: Path, *, channels: Sequence[str], records: Sequence[Mapping[str, Any]]) -> ImageWriter:
        """Go on after the images of ``records``, which a writer before wrote to ``out``; later ones are forgotten.

        Raises `FolderError` if an image is not what its record says.
        """
        for stale in (out / folders.IMAGES).rglob("*.partial"):  # of a chunk that was being written
            stale.unlink()
        array = zarr.open_array(out / folders.IMAGES, mode="r+", config={"write_empty_chunks": True})
        writer = cls.__new__(cls)
        writer.out, writer.channels, writer.array = out, tuple(channels), array
        writer.height, writer.width, writer.dtype = int(array.shape[2]), int(array.shape[3]), np.dtype(array.dtype)
        writer.chunk = int(array.chunks[0])
        writer.columns = {name: [(_BLANK | dict(record))[name] for record in records] for name in SCHEMA.names}
        digests = writer.columns["digest"]
        for begin in range(0, len(records), writer.chunk):
            wanted = digests[begin : begin + writer.chunk]
            images = writer.read_chunk(begin, len(wanted))
            if [digest_pixels(image) for image in images] != wanted:
                raise FolderError(f"{out} has lost or damaged images. Remove the folder and begin again.")
            writer.waiting = list(images) if len(wanted) < writer.chunk else []
        return writer

    def read_chunk(self, begin: int, count: int) -> Pixels:
        """The first ``count`` images of the chunk that begins with image ``begin``; none if it is missing or short."""
        file = self.out / folders.IMAGES / "c" / str(begin // self.chunk) / "0" / "0" / "0"
        shape = (self.chunk, len(self.channels), self.height, self.width)
        if not file.is_file() or file.stat().st_size != int(np.prod(shape)) * self.dtype.itemsize:
            return np.empty((0, *shape[1:]), self.dtype)
        size = int(np.prod(shape[1:]))
        return np.fromfile(file, self.dtype, count * size).reshape(count, *shape[1:])

    @property
    def written(self) -> int:
        """Images that are on disk: the others wait for their chunk to be full."""
        return len(self.columns["digest"]) - len(self.waiting)

    def append(self, image: Pixels, record: Mapping[str, Any]) -> None:
        """Add one image (C, H, W) with its record; digest and sums are computed here unless the record has them."""
        if image.shape != (len(self.channels), self.height, self.width) or image.dtype != self.dtype:
            raise ValueError(f"image {image.shape} {image.dtype} does not fit the folder")
        full = _BLANK | dict(record)
        if "digest" not in full:
            full |= describe_pixels(image)
        for name in SCHEMA.names:
            self.columns[name].append(full[name])
        self.waiting.append(image)
        if len(self.waiting) == self.chunk:
            self._flush()

    def _flush(self) -> None:
        begin = self.written
        self._write_chunk(begin // self.chunk)
        self.array.resize((begin + len(self.waiting), len(self.channels), self.height, self.width))
        self.waiting = []

    def _write_chunk(self, number: int) -> None:
        """Write the waiting images as zarr would: a chunk is its images' plain bytes, filled up with zeros.

        zarr would copy them three times.
        """
        file = self.out / folders.IMAGES / "c" / str(number) / "0" / "0" / "0"
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(".partial")
        with partial.open("wb", buffering=0) as stream:
            for image in self.waiting:
                stream.write(np.ascontiguousarray(image).data)
            stream.truncate(self.chunk * len(self.channels) * self.height * self.width * self.dtype.itemsize)
        partial.replace(file)

    def flush(self) -> None:
        """Write what is waiting, though it fills no chunk. Nothing may be appended afterwards."""
        if self.waiting:
            self._flush()
        elif self.array.shape[0] != self.written:  # what an interrupted writer had begun beyond
            self.array.resize((self.written, *self.array.shape[1:]))

    def keep(self, rows: IntArray) -> None:
        """Keep only these images (ascending), in place: the array is rewritten chunk by chunk."""
        self.flush()
        for begin in range(0, len(rows), self.chunk):
            part = rows[begin : begin + self.chunk]  # never before where it goes: what is overwritten was read
            self.array[begin : begin + len(part)] = self.array.oindex[part]
        self.columns = {name: [values[row] for row in rows.tolist()] for name, values in self.columns.items()}
        self.array.resize((len(rows), *self.array.shape[1:]))

    def close(self) -> dict[str, Any]:
        """Write what is waiting and the records; gives the first part of the header's content."""
        self.flush()
        columns = self.columns | {"attributes": [_as_pairs(one) for one in self.columns["attributes"]]}
        pq.write_table(pa.table(columns, schema=SCHEMA), self.out / folders.RECORDS)
        return {
            "channels": list(self.channels),
            "height": self.height,
            "width": self.width,
            "dtype": self.dtype.name,
            "images": len(self.columns["digest"]),
            "images_digest": hashlib.sha256("".join(self.columns["digest"]).encode()).hexdigest(),
            "records_digest": folders.digest_file(self.out / folders.RECORDS),
        }


def iterate_blocks(folder: ImageFolder, rows: IntArray, *, size: int | None = None) -> Iterator[tuple[int, Pixels]]:
    """Yield (position of the first row, pixels) over ``rows`` (ascending) in blocks of at most ``size`` images.

    Blocks follow the chunks on disk by default, so that each chunk is read once.
    """
    if size is None:
        chunk = int(folder.images.chunks[0])
        edges = np.flatnonzero(np.diff(rows // chunk)) + 1
    else:
        edges = np.arange(size, len(rows), size)
    for block in np.split(np.arange(len(rows)), edges):
        if len(block):
            yield int(block[0]), folder.read(rows[block])
