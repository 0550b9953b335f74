"""Check a bundle as its recipient: nothing changed, missing or added, and the card's numbers are those of the images.

Whoever made the bundle is not trusted. Nothing in it is executed or unpickled, links are not followed, and no memory
is taken that a header announces and the table of the bundle does not. What a checksum cannot say is who made it:
compare the digest of checksums.sha256 with the one that you were given on another way.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import nibabel as nib
import numpy as np
import pyarrow.parquet as pq
import pydicom
from PIL import Image
from pydicom.uid import ExplicitVRLittleEndian

from unalike import folders
from unalike.engine import show_progress
from unalike.errors import FolderError, InputError
from unalike.images.quiet import QUIET
from unalike.records import Pixels
from unalike.release.card import CARD, DATASHEET, KIND, PAGE, README, SCHEMA
from unalike.release.checksums import CHECKSUMS, read_lines, walk_files
from unalike.release.descriptors import (
    describe,
    frechet_between,
    moments_from_json,
    moments_of,
    name_descriptors,
)
from unalike.release.images import COLUMNS, FORMATS, LABELS, PLACES, SEPARATOR
from unalike.release.png import is_colour

TOLERANCE = 1e-3
"""Largest relative difference between the Fréchet distance of the card and the one recomputed."""
_MOST_PROBLEMS = 50
_FILES = frozenset({CARD, README, DATASHEET, PAGE, LABELS})
_LARGEST_IMAGE = 2**27  # pixels
_LARGEST_VOLUME = 2**31  # voxels
_LARGEST_TEXT = 2**28  # bytes of card.json, labels.csv, checksums.sha256
_MOST_INFLATED = 1032  # deflate makes of one byte at most this many (zlib's technical notes)
_HEADER_SLACK = 2**16  # bytes of a DICOM file beside its pixels
_RECORDS_A_ROW = 2**14  # bytes of records.parquet, unpacked, for one image


@dataclass(frozen=True)
class Verification:
    """What was found of a bundle.

    ``problems`` in words, at most fifty; ``files`` and ``images`` count what was looked at; ``recomputed`` holds
    numbers that were computed anew and what the card says: name → {"card": …, "found": …}.
    """

    passed: bool
    problems: tuple[str, ...]
    files: int
    images: int
    recomputed: Mapping[str, Mapping[str, float | None]] = field(default_factory=dict)


class _Problem(Exception):  # noqa: N818
    """Something is wrong with one file; becomes a line of the result."""


@dataclass(frozen=True)
class _Shape:
    """What the card says of every image."""

    channels: tuple[str, ...]
    height: int
    width: int
    dtype: np.dtype[Any]

    @property
    def bytes(self) -> int:
        return len(self.channels) * self.height * self.width * self.dtype.itemsize


@dataclass(frozen=True)
class _Line:
    """A line of labels.csv."""

    number: int
    sample: str
    label: str
    index: int
    files: Mapping[str, tuple[str, ...]]


def verify_bundle(bundle: str | Path) -> Verification:
    """Check every file of a bundle, and that the card's numbers are those of its images.

    In order: every file is listed in checksums.sha256, is there, is a plain file and has the digest; nothing else is
    there; labels.csv and card.json hold together; every image of every format decodes to the size that the table
    states, and the formats agree pixel for pixel; the descriptors' Fréchet distance is the card's, to a relative
    `TOLERANCE`. Where a file was changed the rest is still checked.

    Raises `FolderError` if ``bundle`` is no folder or holds no checksums.
    """
    bundle = Path(bundle)
    if not bundle.is_dir():
        raise FolderError(f"{bundle} does not exist or is not a folder. Check the path.")
    if not (bundle / CHECKSUMS).is_file():
        raise FolderError(f"{bundle} is no bundle ({CHECKSUMS} is missing). Give the folder with README.md in it.")
    problems: list[str] = []
    recomputed: dict[str, dict[str, float | None]] = {}
    sound: set[str] = set()
    images = 0
    try:
        sound = _check_files(bundle, problems)
        card = _read_card(bundle, sound)
        shape = _shape_of(card)
        lines = _read_labels(bundle, sound, shape)
        _check_counts(card, lines, problems)
        images = _check_images(bundle, sound, card, shape, lines, problems, recomputed)
    except _Problem as problem:
        problems.append(str(problem))
    if len(problems) > _MOST_PROBLEMS:
        rest = len(problems) - _MOST_PROBLEMS + 1
        problems = [*problems[: _MOST_PROBLEMS - 1], f"… and {rest} more problems"]
    return Verification(not problems, tuple(problems), len(sound), images, recomputed)


def _check_files(bundle: Path, problems: list[str]) -> set[str]:
    """Names of the plain files that are listed; what is wrong with files goes to ``problems``."""
    listed = read_lines(_read_text(bundle, CHECKSUMS))
    if listed is None:
        problems.append(f"{CHECKSUMS} was changed: it is not in the form in which it was written")
        listed = {}
    found = set()
    for name, problem in walk_files(bundle):
        if problem:
            problems.append(f"{_quote(name)} {problem}")
        elif name != CHECKSUMS:
            found.add(name)
    problems += [f"{_quote(name)} is not listed in {CHECKSUMS}" for name in sorted(found - set(listed))]
    problems += [f"{_quote(name)} is missing" for name in sorted(set(listed) - found)]
    strange = [name for name in sorted(found & set(listed)) if not _is_known(name)]
    problems += [f"{_quote(name)} is nothing that unalike puts into a bundle" for name in strange]
    both = sorted(found & set(listed))
    with show_progress("Checking files", total=len(both), unit="files") as progress:
        for name in both:
            try:
                changed = folders.digest_file(bundle / name) != listed[name]
            except OSError as error:
                raise _Problem(f"{_quote(name)} cannot be read ({error.strerror})") from error
            if changed:
                problems.append(f"{_quote(name)} was changed")
            progress.advance()
    return set(both)


def _is_known(name: str) -> bool:
    """Whether a bundle has files of this name; which of the images belong there, the table says."""
    return name in _FILES or name.startswith(tuple(f"{place}/" for place in PLACES.values()))


def _quote(name: str) -> str:
    """A name as one line of harmless characters."""
    return name if name.isprintable() else ascii(name)


def _read_text(bundle: Path, name: str) -> str:
    path = bundle / name
    if path.is_symlink() or not path.is_file():
        raise _Problem(f"{name} is missing or no plain file")
    if path.stat().st_size > _LARGEST_TEXT:
        raise _Problem(f"{name} is larger than any that unalike writes")
    return path.read_bytes().decode("utf-8", "replace")


def _read_card(bundle: Path, sound: set[str]) -> Mapping[str, Any]:
    if CARD not in sound:
        raise _Problem(f"{CARD} is missing or not listed, so images were not looked at")
    try:
        card = json.loads(_read_text(bundle, CARD))
    except (ValueError, RecursionError) as error:
        raise _Problem(f"{CARD} cannot be read as JSON, so images were not looked at") from error
    if not isinstance(card, dict):
        raise _Problem(f"{CARD} is no card")
    if (card.get("kind"), card.get("schema")) != (KIND, SCHEMA):
        raise _Problem(f"{CARD} is of another version than {KIND}, schema {SCHEMA}: images were not looked at")
    return card


def _shape_of(card: Mapping[str, Any]) -> _Shape:
    try:
        about = card["images"]
        names, dtype = about["channels"], about["dtype"]
        shape = _Shape(tuple(str(name) for name in names), int(about["height"]), int(about["width"]), np.dtype(dtype))
    except (KeyError, TypeError, ValueError) as error:
        raise _Problem(f"{CARD} does not say what the images are like") from error
    plain = isinstance(dtype, str) and dtype in {"uint8", "uint16"} and isinstance(names, list)
    sized = shape.height > 0 and shape.width > 0 and shape.height * shape.width <= _LARGEST_IMAGE
    if not (plain and sized and 0 < len(shape.channels) <= 1000 and shape.bytes <= 8 * _LARGEST_IMAGE):
        raise _Problem(f"{CARD} announces images of {shape.width}×{shape.height} pixels, {dtype}: not looked at")
    return shape


def _read_labels(bundle: Path, sound: set[str], shape: _Shape) -> list[_Line]:
    if LABELS not in sound:
        raise _Problem(f"{LABELS} is missing or not listed, so images were not looked at")
    try:
        table = csv.reader(io.StringIO(_read_text(bundle, LABELS), newline=""), strict=True)
        head = next(table)
        formats = head[len(COLUMNS) :]
        if (
            tuple(head[: len(COLUMNS)]) != COLUMNS
            or not set(formats) <= set(FORMATS)
            or len(set(formats)) < len(formats)
        ):
            raise _Problem(f"{LABELS} has other columns than unalike writes")
        return [_read_line(row, number, formats, shape, sound) for number, row in enumerate(table)]
    except (csv.Error, ValueError, StopIteration) as error:
        raise _Problem(f"{LABELS} is damaged, so images were not looked at") from error


def _read_line(row: list[str], number: int, formats: Sequence[str], shape: _Shape, sound: set[str]) -> _Line:
    """One line; every file it names lies in its format's folder and is listed, so that no path leaves the bundle."""
    if len(row) != len(COLUMNS) + len(formats):
        raise _Problem(f"{LABELS}, line {number + 2}, has {len(row)} columns")
    sample, _, label, index, width, height = row[: len(COLUMNS)]
    if (int(width), int(height)) != (shape.width, shape.height):
        raise _Problem(f"{LABELS}, line {number + 2}, states {width}×{height} pixels, {CARD} another size")
    files = {name: tuple(entry.split(SEPARATOR)) for name, entry in zip(formats, row[len(COLUMNS) :], strict=True)}
    for name, entries in files.items():
        for entry in entries:
            if str(PurePosixPath(entry).parent) != PLACES[name] or entry not in sound:
                raise _Problem(
                    f"{LABELS}, line {number + 2}, names {_quote(entry)}, which is no file of {PLACES[name]}/"
                )
    return _Line(number, sample, label, int(index or -1), files)


def _check_counts(card: Mapping[str, Any], lines: Sequence[_Line], problems: list[str]) -> None:
    """The card's counts are those of the table."""
    about = card["images"]
    if about.get("count") != len(lines):
        problems.append(f"{CARD} speaks of {about.get('count')} images, {LABELS} lists {len(lines)}")
    found: dict[str, int] = {}
    for line in lines:
        found[line.label or "none"] = found.get(line.label or "none", 0) + 1
    if about.get("labels") and about["labels"] != found:
        problems.append(f"{CARD} and {LABELS} count the labels differently")
    listed = set(lines[0].files) if lines else set()
    if isinstance(card.get("formats"), list) and set(map(str, card["formats"])) - {"samples"} != listed:
        problems.append(f"{CARD} and {LABELS} name different formats")


def _check_images(
    bundle: Path,
    sound: set[str],
    card: Mapping[str, Any],
    shape: _Shape,
    lines: Sequence[_Line],
    problems: list[str],
    recomputed: dict[str, dict[str, float | None]],
) -> int:
    """Decode all images of all formats and compare them; gives how many could be decoded."""
    used = {entry for line in lines for entries in line.files.values() for entry in entries}
    places = tuple(f"{PLACES[name]}/" for name in FORMATS if name != "samples")
    problems += [f"{name} is no image of {LABELS}" for name in sorted(sound - used) if name.startswith(places)]
    stored = None
    if f"{PLACES['samples']}/{folders.HEADERS['samples']}" in sound:
        try:
            stored = _Stored.open(bundle / PLACES["samples"], shape, lines, sound)
        except _Problem as problem:
            problems.append(str(problem))
    elif "samples" in (card.get("formats") or ()):
        problems.append(f"{PLACES['samples']}/ is missing")
    if not lines or (not used and stored is None):
        problems.append("there are no images")
    volumes = _Volumes(bundle, shape, lines)
    vectors, subjects, decoded = [], [], 0
    with show_progress("Checking images", total=len(lines), unit="images") as progress:
        for line in lines:
            image = _decode_line(bundle, line, shape, stored, volumes, problems)
            if image is not None:
                vectors.append(describe(image[None])[0])
                subjects.append(line.sample)
                decoded += 1
            progress.advance()
    if decoded == len(lines) and decoded:
        _check_descriptors(card, shape, np.stack(vectors), np.asarray(subjects, dtype=np.str_), problems, recomputed)
    return decoded


def _decode_line(
    bundle: Path, line: _Line, shape: _Shape, stored: _Stored | None, volumes: _Volumes, problems: list[str]
) -> Pixels | None:
    """The image (C, H, W) of a line from every format; problems if one fails or two differ. None if all fail."""
    found: dict[str, Pixels] = {}
    for name in [*line.files, *(("samples",) if stored is not None else ())]:
        try:
            with QUIET:
                if name == "png":
                    found[name] = _read_png(bundle, line.files[name], shape)
                elif name == "dicom":
                    found[name] = _read_dicom(bundle, line.files[name], shape)
                elif name == "nifti":
                    found[name] = volumes.read(line)
                elif stored is not None:
                    found[name] = stored.read(line.number)
        except _Problem as problem:
            problems.append(str(problem))
        except Exception as error:  # decoders raise whatever they like on damaged files
            said = " ".join(str(error).split())[:100] or type(error).__name__
            problems.append(f"the {name} of {_quote(line.sample)} cannot be decoded ({said!a})")
    names = list(found)
    where = _quote(line.sample) + (f", slice {line.index}" if line.index >= 0 else "")
    problems += [
        f"{where}: {name} and {names[0]} show different pixels"
        for name in names[1:]
        if not np.array_equal(found[name], found[names[0]])
    ]
    return found[names[0]] if names else None


def _expect(entries: Sequence[str], shape: _Shape, *, together: bool) -> None:
    wanted = 1 if together and is_colour(shape.channels, shape.dtype) else len(shape.channels)
    if len(entries) != wanted:
        raise _Problem(f"{entries[0]}: {len(entries)} files for {len(shape.channels)} channels")


def _read_png(bundle: Path, entries: Sequence[str], shape: _Shape) -> Pixels:
    """One image (C, H, W) from its PNG files."""
    _expect(entries, shape, together=True)
    planes = []
    for entry in entries:
        path = bundle / entry
        with Image.open(path, formats=["PNG"]) as picture:
            colour = len(entries) < len(shape.channels)
            modes = {"RGB"} if colour else {"L"} if shape.dtype == np.uint8 else {"I;16", "I;16B", "I"}
            if picture.size != (shape.width, shape.height) or picture.mode not in modes:
                raise _Problem(f"{entry} is {picture.size[0]}×{picture.size[1]} {picture.mode}, not as {LABELS} states")
            if shape.height * shape.width > path.stat().st_size * _MOST_INFLATED:
                raise _Problem(f"{entry} announces more pixels than it can hold")
            pixels = np.asarray(picture)
        planes += list(pixels.transpose(2, 0, 1)) if colour else [pixels.astype(shape.dtype)]
    return np.stack(planes)


def _read_dicom(bundle: Path, entries: Sequence[str], shape: _Shape) -> Pixels:
    """One image (C, H, W) from its DICOM files."""
    _expect(entries, shape, together=True)
    planes = []
    colour = len(entries) < len(shape.channels)
    samples = 3 if colour else 1
    wanted = shape.height * shape.width * samples * shape.dtype.itemsize
    for entry in entries:
        path = bundle / entry
        # Deflated files would be unpacked whole, whatever they hold: only plain pixels are read.
        if path.stat().st_size > wanted + _HEADER_SLACK:
            raise _Problem(f"{entry} is larger than its image")
        if pydicom.filereader.read_file_meta_info(path).get("TransferSyntaxUID") != ExplicitVRLittleEndian:
            raise _Problem(f"{entry} is not uncompressed DICOM")
        dataset = pydicom.dcmread(path)
        sides = (dataset.Rows, dataset.Columns, dataset.SamplesPerPixel, dataset.BitsAllocated)
        if sides != (shape.height, shape.width, samples, shape.dtype.itemsize * 8):
            raise _Problem(f"{entry} is {dataset.Columns}×{dataset.Rows} pixels, not as {LABELS} states")
        if dataset.get("SyntheticData") != "YES":
            raise _Problem(f"{entry} is not marked as synthetic")
        if len(dataset.PixelData) != wanted + wanted % 2:
            raise _Problem(f"{entry} has {len(dataset.PixelData)} bytes of pixels, {wanted} are needed")
        stored = np.frombuffer(dataset.PixelData, shape.dtype.newbyteorder("<"), wanted // shape.dtype.itemsize)
        pixels = stored.reshape(shape.height, shape.width, samples).astype(shape.dtype)
        planes += list(pixels.transpose(2, 0, 1))
    return np.stack(planes)


@dataclass
class _Volumes:
    """NIfTI files: the one read last is kept, because the slices of a volume follow one another."""

    bundle: Path
    shape: _Shape
    lines: Sequence[_Line]
    spans: dict[str, tuple[int, int]] = field(default_factory=dict)
    kept: tuple[tuple[str, ...], Pixels] | None = None

    def __post_init__(self) -> None:
        for line in self.lines:
            if line.index >= 0:
                low, high = self.spans.get(line.sample, (line.index, line.index))
                self.spans[line.sample] = min(low, line.index), max(high, line.index)

    def read(self, line: _Line) -> Pixels:
        """The image (C, H, W) of a line."""
        entries = line.files["nifti"]
        _expect(entries, self.shape, together=False)
        first, last = self.spans[line.sample] if line.index >= 0 else (0, 0)
        if self.kept is None or self.kept[0] != entries:
            if (last - first + 1) * self.shape.height * self.shape.width > _LARGEST_VOLUME:
                raise _Problem(f"{entries[0]}: {LABELS} announces {last - first + 1} slices")
            self.kept = (
                entries,
                np.stack([_read_nifti(self.bundle, entry, self.shape, last - first + 1) for entry in entries]),
            )
        return self.kept[1][:, max(line.index, 0) - first]


def _read_nifti(bundle: Path, entry: str, shape: _Shape, depth: int) -> Pixels:
    """One volume (D, H, W) of a file; no more is unpacked than the size that is wanted."""
    size = shape.width * shape.height * depth * shape.dtype.itemsize
    if size > (bundle / entry).stat().st_size * _MOST_INFLATED:
        raise _Problem(f"{entry} is too short for its {shape.width}×{shape.height}×{depth} voxels")
    with gzip.open(bundle / entry, "rb") as stream:
        header = nib.Nifti1Header(stream.read(nib.Nifti1Header.sizeof_hdr))
        sides = tuple(int(side) for side in header.get_data_shape())
        if sides != (shape.width, shape.height, depth) or header.get_data_dtype().newbyteorder("=") != shape.dtype:
            raise _Problem(f"{entry} announces {sides} voxels, not as {LABELS} states")
        offset = int(header.get_data_offset())
        if not nib.Nifti1Header.sizeof_hdr <= offset <= _HEADER_SLACK:
            raise _Problem(f"{entry} has no sound header")
        stream.read(offset - nib.Nifti1Header.sizeof_hdr)
        content = stream.read(size + 1)
    if len(content) != size:
        raise _Problem(f"{entry} holds {'more' if len(content) > size else 'fewer'} voxels than it announces")
    voxels = np.frombuffer(content, header.get_data_dtype()).reshape(sides, order="F").transpose(2, 1, 0)
    unknown = (
        int(header["sform_code"]) == 0 and int(header["qform_code"]) == 0
    )  # then rows lead up: see `release.nifti`
    return np.ascontiguousarray(voxels[:, ::-1] if unknown else voxels).astype(shape.dtype)


@dataclass(frozen=True)
class _Stored:
    """The samples folder: chunks of plain pixels, read without libraries that a hostile description could misuse."""

    place: Path
    shape: _Shape
    chunk: int
    count: int

    @classmethod
    def open(cls, place: Path, shape: _Shape, lines: Sequence[_Line], sound: set[str]) -> _Stored:
        """Check zarr.json, the header and the records against the card and the table."""
        count = len(lines)
        inside = f"{PLACES['samples']}/"
        if f"{inside}{folders.IMAGES}/zarr.json" not in sound:
            raise _Problem(f"{inside}{folders.IMAGES} does not say what it holds")
        try:
            array = json.loads(_read_text(place, f"{folders.IMAGES}/zarr.json"))
            header = json.loads(_read_text(place, folders.HEADERS["samples"]))["content"]
            chunks = array["chunk_grid"]["configuration"]["chunk_shape"]
            plain = (
                array["zarr_format"] == 3
                and array["shape"] == [count, *_sides(shape)]
                and array["data_type"] == shape.dtype.name
                and chunks[1:] == _sides(shape)
                and [codec["name"] for codec in array["codecs"]] == ["bytes"]
                and array["codecs"][0].get("configuration", {}).get("endian", "little") == "little"
            )
            chunk = int(chunks[0])
            said = (list(header["channels"]), header["height"], header["width"], header["dtype"], header["images"])
        except (KeyError, TypeError, ValueError, IndexError, RecursionError) as error:
            raise _Problem(f"{inside} is damaged ({type(error).__name__})") from error
        if not plain or chunk < 1 or said != (list(shape.channels), shape.height, shape.width, shape.dtype.name, count):
            raise _Problem(f"{inside} holds other images than {CARD} and {LABELS} state")
        names = {f"{inside}{folders.IMAGES}/c/{number}/0/0/0" for number in range(math.ceil(count / chunk))}
        if not names | {f"{inside}{folders.RECORDS}"} <= sound:
            raise _Problem(f"{inside} lacks images or records")
        _check_records(place / folders.RECORDS, lines, inside)
        return cls(place, shape, chunk, count)

    def read(self, number: int) -> Pixels:
        """Image (C, H, W) of this row."""
        path = self.place / folders.IMAGES / "c" / str(number // self.chunk) / "0" / "0" / "0"
        if path.stat().st_size != self.chunk * self.shape.bytes:
            raise _Problem(f"{PLACES['samples']}/{folders.IMAGES}: chunk {number // self.chunk} is cut short")
        with path.open("rb") as stream:
            stream.seek(number % self.chunk * self.shape.bytes)
            content = stream.read(self.shape.bytes)
        stored = np.frombuffer(content, self.shape.dtype.newbyteorder("<"))
        return stored.reshape(_sides(self.shape)).astype(self.shape.dtype)


def _sides(shape: _Shape) -> list[int]:
    return [len(shape.channels), shape.height, shape.width]


def _check_records(path: Path, lines: Sequence[_Line], inside: str) -> None:
    """The records name the samples, labels and slices of the table, in its order, and nothing else of anybody."""
    try:
        with pq.ParquetFile(path) as records:
            about = records.metadata
            size = sum(about.row_group(number).total_byte_size for number in range(about.num_row_groups))
            if about.num_rows != len(lines) or size > 2**20 + len(lines) * _RECORDS_A_ROW:
                raise _Problem(f"{inside}{folders.RECORDS} has {about.num_rows} rows, {LABELS} has {len(lines)}")
            table = records.read(columns=["subject", "label", "slice"]).to_pylist()
    except _Problem:
        raise
    except Exception as error:  # pyarrow raises many kinds on damaged files
        raise _Problem(f"{inside}{folders.RECORDS} cannot be read") from error
    wanted = [{"subject": line.sample, "label": line.label, "slice": line.index} for line in lines]
    if table != wanted:
        raise _Problem(f"{inside}{folders.RECORDS} and {LABELS} differ")


def _check_descriptors(
    card: Mapping[str, Any],
    shape: _Shape,
    vectors: Any,
    subjects: Any,
    problems: list[str],
    recomputed: dict[str, dict[str, float | None]],
) -> None:
    """The Fréchet distance of the images from the card's reference is the card's."""
    entry = card.get("recompute")
    if not isinstance(entry, dict) or entry.get("descriptors") is None:
        return
    try:
        reference = moments_from_json(entry["descriptors"])
        found = frechet_between(moments_of(vectors, subjects, names=name_descriptors(shape.channels)), reference)
        said = float(entry["frechet"])
    except (InputError, TypeError, ValueError, KeyError, np.linalg.LinAlgError) as error:
        problems.append(f"the descriptors of {CARD} cannot be compared ({error})")
        return
    recomputed["frechet"] = {"card": said, "found": found}
    if not abs(found - said) <= TOLERANCE * max(abs(said), 1e-6):
        problems.append(f"the images' Fréchet distance is {found:.6g}, {CARD} says {said:.6g}")
