"""Write the images of a bundle in open formats, and the table that says what each of them is."""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

import numpy as np

from unalike import folders
from unalike.cohort.store import ImageFolder, ImageWriter, iterate_blocks
from unalike.engine import show_progress
from unalike.errors import InputError, SettingsError
from unalike.records import IntArray, Pixels
from unalike.release.dicom import DicomWriter, key_of
from unalike.release.nifti import Grid, NiftiWriter
from unalike.release.png import PngWriter

Format = Literal["png", "nifti", "dicom", "samples"]
FORMATS: tuple[Format, ...] = get_args(Format)
PLACES: Mapping[str, str] = {
    "png": "images/png",
    "nifti": "images/nifti",
    "dicom": "images/dicom",
    "samples": "samples",
}
"""Folder of each format in a bundle."""
LABELS = "labels.csv"
COLUMNS = ("sample", "seed", "label", "slice", "width", "height")
SEPARATOR = ";"
# No separators, no leading dot or dash, nothing a shell or another system's file names would trip over.
SAFE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


@dataclass(frozen=True)
class Unit:
    """One image to be written: ``stem`` begins the names of its files and is its own.

    ``index`` is its slice (−1: a picture); ``siblings`` counts the images of its volume, of which ``first`` to ``last``
    are the slices.
    """

    sample: str
    stem: str
    seed: int
    label: str
    index: int
    siblings: int
    first: int
    last: int

    def file(self, channel: str, suffix: str) -> str:
        """Name of a file of this image alone: ``sample-000017-mri.png``; without the channel where it is empty."""
        return _file_name(self.stem, channel, suffix)

    def volume_file(self, channel: str, suffix: str) -> str:
        """Name of the file of its volume, or of itself if it is a picture."""
        return _file_name(self.stem if self.index < 0 else self.sample, channel, suffix)


@dataclass(frozen=True)
class Row:
    """A line of labels.csv: one image, in the order of the samples folder.

    ``seed`` and ``slice`` are −1 where there is none (empty in the file); images that share ``sample`` and have slices
    are one volume. ``files``: format → file names relative to the bundle; without ``samples``, where the line's number
    says which image it is.
    """

    sample: str
    seed: int
    label: str
    slice: int
    width: int
    height: int
    files: Mapping[str, tuple[str, ...]]


class _Writer(Protocol):
    def add(self, unit: Unit, image: Pixels) -> tuple[str, ...]:
        """Write one image (C, H, W); names of its files in the format's folder."""

    def close(self) -> None:
        """Write what is waiting."""


def write_images(
    samples: ImageFolder, rows: IntArray, out: Path, *, formats: Sequence[Format], grid: Grid, note: str
) -> tuple[Row, ...]:
    """Write the images ``rows`` (ascending) of ``samples`` into the bundle ``out``, in every format, and labels.csv.

    ``note`` is one line that every file says which can hold text. Written again, every file is the same byte by byte.
    Images stream by, chunk by chunk.

    Raises `SettingsError` for an unknown format or none, `InputError` if there is nothing to write or samples have
    names that are no file names.
    """
    unknown = [name for name in formats if name not in FORMATS]
    if unknown or not formats:
        raise SettingsError(f"--formats {', '.join(unknown) or 'is empty'}: there are {', '.join(FORMATS)}.")
    if not len(rows):
        raise InputError(f"{samples.path}: no image is left to be written. Draw more samples.")
    units = name_units(samples, rows)
    note = " ".join(note.split())
    chosen = [name for name in FORMATS if name in formats]
    for name in chosen:
        (out / PLACES[name]).mkdir(parents=True, exist_ok=True)
    writers = {name: _writer(name, out / PLACES[name], samples, rows, grid, note) for name in chosen}
    height, width = samples.size
    written: list[Row] = []
    with show_progress("Writing images", total=len(rows), unit="images") as progress:
        for unit, image in _walk(samples, rows, units):
            names = {
                name: tuple(f"{PLACES[name]}/{each}" for each in writer.add(unit, image))
                for name, writer in writers.items()
            }
            files: dict[str, tuple[str, ...]] = {name: each for name, each in names.items() if name != "samples"}
            written.append(Row(unit.sample, unit.seed, unit.label, unit.index, width, height, files))
            progress.advance()
    for writer in writers.values():
        writer.close()
    write_labels(out / LABELS, written)
    return tuple(written)


def _walk(samples: ImageFolder, rows: IntArray, units: Sequence[Unit]) -> Iterator[tuple[Unit, Pixels]]:
    for first, block in iterate_blocks(samples, rows):
        yield from zip(units[first : first + len(block)], block, strict=True)


def _writer(name: str, place: Path, samples: ImageFolder, rows: IntArray, grid: Grid, note: str) -> _Writer:
    channels = samples.channels
    if name == "png":
        return PngWriter(place, channels, note)
    if name == "nifti":
        return NiftiWriter(place, channels, note, grid)
    if name == "samples":
        return _SamplesWriter(place, samples, rows, note)
    generator = str(samples.header.content.get("generator", "unknown"))
    return DicomWriter(place, channels, note, grid, generator, key_of(samples.column("digest")[rows].tolist()))


@dataclass
class _SamplesWriter:
    """Writes a samples folder that says what the images are, and of where they come from nothing but the generator."""

    place: Path
    samples: ImageFolder
    rows: IntArray
    note: str
    records: Iterator[Mapping[str, Any]] = field(init=False)
    images: ImageWriter = field(init=False)

    def __post_init__(self) -> None:
        folders.begin_folder(self.place, kind="samples", settings={})
        height, width = self.samples.size
        self.records = iter(self.samples.records.take(self.rows).to_pylist())
        self.images = ImageWriter(
            self.place, channels=self.samples.channels, height=height, width=width, dtype=self.samples.dtype
        )

    def add(self, unit: Unit, image: Pixels) -> tuple[str, ...]:
        """Write one image (C, H, W); it has no file of its own."""
        record = next(self.records)
        kept = {name: record[name] for name in ("slice", "label", "seed", "digest", "sums", "squares")}
        self.images.append(image, kept | {"subject": unit.sample, "source": "release", "role": "synthetic"})
        return ()

    def close(self) -> None:
        """Write records and header: no attributes, no settings, no digest of a cohort or a run."""
        content = self.samples.header.content
        about = {
            "generator": str(content.get("generator", "unknown")),
            "label_counts": count_labels(self.images.columns["label"]),
            "note": self.note,
        }
        header = folders.finish_folder(
            self.place, kind="samples", settings={}, seed=0, inputs={}, content=self.images.close() | about
        )
        # The day alone, and that of the samples: folders of the same samples are equal, whenever they are written.
        document = folders.read_json(header.path) | {"created": self.samples.header.created[:10]}
        folders.write_json(header.path, document)


def write_labels(path: Path, rows: Sequence[Row]) -> None:
    """Write labels.csv: `COLUMNS`, then one column a format with file names joined by ";" (UTF-8, lines end in \\n)."""
    formats = list(rows[0].files)
    with path.open("w", encoding="utf-8", newline="") as stream:
        table = csv.writer(stream, lineterminator="\n")
        table.writerow([*COLUMNS, *formats])
        for row in rows:
            numbers = ["" if number < 0 else number for number in (row.seed, row.slice)]
            names = [SEPARATOR.join(row.files[name]) for name in formats]
            table.writerow([row.sample, numbers[0], row.label, numbers[1], row.width, row.height, *names])


def _file_name(stem: str, channel: str, suffix: str) -> str:
    """Unsafe characters of a channel become "_"."""
    safe = re.sub(r"[^A-Za-z0-9_.-]", "_", channel)
    return f"{stem}-{safe}.{suffix}" if channel else f"{stem}.{suffix}"


def name_units(samples: ImageFolder, rows: IntArray) -> list[Unit]:
    """What each of the images ``rows`` is, in that order.

    Images that share a subject and have slices are one volume: ``sample-000017-s003``. Pictures that share a subject
    are numbered: ``sample-000017``, ``sample-000017-2``.

    Raises `InputError` if a sample's name is no safe file name, a slice occurs twice, or two channels would get the
    same file.
    """
    channels = [_file_name("", name, "") for name in samples.channels]
    if len(set(channels)) < len(channels):
        raise InputError(
            f"{samples.path}: channels {', '.join(samples.channels)} get the same file names. Rename them."
        )
    subjects = samples.column("subject")[rows].tolist()
    slices, seeds = samples.numbers("slice")[rows].tolist(), samples.numbers("seed")[rows].tolist()
    labels = samples.column("label")[rows].tolist()
    volumes: dict[str, list[int]] = {}
    for subject, index in zip(subjects, slices, strict=True):
        if not SAFE.fullmatch(subject):
            raise InputError(f"{samples.path}: a sample is called {subject!r}, which is no file name. Draw it again.")
        if index >= 0:
            volumes.setdefault(subject, []).append(index)
    units: list[Unit] = []
    seen: Counter[str] = Counter()
    for subject, index, seed, label in zip(subjects, slices, seeds, labels, strict=True):
        stem = subject if index < 0 else f"{subject}-s{index:03d}"
        seen[stem] += 1
        if index >= 0 and seen[stem] > 1:
            raise InputError(f"{samples.path}: slice {index} of {subject} occurs twice. Draw the samples again.")
        stem = stem if seen[stem] == 1 else f"{stem}-{seen[stem]}"
        group = volumes[subject] if index >= 0 else [0]
        units.append(Unit(subject, stem, seed, label, index, len(group), min(group), max(group)))
    if len({unit.stem for unit in units}) < len(units):
        raise InputError(f"{samples.path}: samples get the same file names. Draw the samples again.")
    return units


def count_labels(labels: Sequence[str]) -> dict[str, int]:
    """Images of each class, by name; "none" where there is no class."""
    names, counts = np.unique([label or "none" for label in labels], return_counts=True)
    return dict(zip(names.tolist(), counts.tolist(), strict=True))
