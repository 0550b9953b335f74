"""Images of a bundle as NIfTI-1: one file a channel; slices of one synthetic volume are one 3-D file.

Voxel (column, row, slice) is the image's pixel (row, column). Where the train images' geometry is known, the affine
gives a *nominal* grid, nobody's own: usual spacing and direction of the train slices, centred on 0. Where it is not,
both codes are 0 and rows are stored from the bottom up, because programs then assume that rows lead up and columns to
the patient's left: so the picture stands the right way round in either case.
"""

from __future__ import annotations

import gzip
import math
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import nibabel as nib
import numpy as np

from unalike.cohort.store import ImageFolder
from unalike.records import FloatArray, Pixels

if TYPE_CHECKING:
    from unalike.release.images import Unit

_SCANNER = 1  # code of an affine in millimetres; without one, both codes are 0
_DESCRIPTION_BYTES = 80  # of NIfTI's field descrip, the closing 0 included
# Column to the patient's left, row to the back, slice to the head: how NIfTI is shown where it does not say.
_USUAL = ((-1.0, 0.0, 0.0), (0.0, -1.0, 0.0), (0.0, 0.0, 1.0))


@dataclass(frozen=True)
class Grid:
    """Where the pixels of a synthetic image nominally lie.

    ``spacing`` in millimetres between columns, between rows, between slices. ``orientation`` is a 3 × 3 matrix (three
    rows) whose columns are the directions of the column index, the row index and the slice index in RAS (right,
    anterior, superior positive). ``known``: whether it comes from the cohort; otherwise 1 mm, not to be trusted.
    """

    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0)
    orientation: tuple[tuple[float, float, float], ...] = _USUAL
    known: bool = False

    def affine(self, width: int, height: int, depth: int) -> FloatArray:
        """(4, 4) from (column, row, slice, 1) to RAS millimetres; the middle of the block is at 0."""
        matrix = np.eye(4)
        matrix[:3, :3] = np.asarray(self.orientation) * np.asarray(self.spacing)
        middle = (np.asarray([width, height, depth], dtype=np.float64) - 1) / 2
        matrix[:3, 3] = -matrix[:3, :3] @ middle
        return matrix


def nominal_grid(cohort: ImageFolder) -> Grid:
    """The usual grid of the cohort's train slices: nobody's own.

    Spacing is the median over subjects of each subject's median, rounded to two significant digits; directions are the
    nearest axes that most subjects have. Pictures, which know no millimetres, give 1 mm and ``known`` False.
    """
    rows = cohort.rows("train")
    subjects = cohort.column("subject")[rows].tolist()
    affines = cohort.records["affine"].take(rows).to_pylist()
    spacings: dict[str, list[FloatArray]] = {}
    turns: dict[str, Counter[tuple[int, ...]]] = {}
    for subject, entries in zip(subjects, affines, strict=True):
        matrix = np.reshape(np.asarray(entries, dtype=np.float64), (4, 4))[:3, :3] if len(entries) == 16 else None
        if matrix is None:
            continue
        steps = np.sqrt((matrix**2).sum(axis=0))
        if not (np.isfinite(steps).all() and (steps > 0).all()):
            continue
        axes = np.abs(matrix / steps).argmax(axis=0)
        if len(set(axes.tolist())) < 3:  # between two axes: no direction to speak of
            continue
        signs = np.sign(matrix[axes, np.arange(3)])
        turn = tuple(int(sign * (axis + 1)) for sign, axis in zip(signs, axes, strict=True))
        spacings.setdefault(subject, []).append(steps)
        turns.setdefault(subject, Counter())[turn] += 1
    if not spacings:
        return Grid()
    found = np.median([np.median(each, axis=0) for each in spacings.values()], axis=0)
    chosen = Counter(min(each, key=lambda turn: (-each[turn], turn)) for each in turns.values())
    turn = min(chosen, key=lambda each: (-chosen[each], each))
    orientation = np.zeros((3, 3))
    for index, axis in enumerate(turn):
        orientation[abs(axis) - 1, index] = math.copysign(1.0, axis)
    right, anterior, superior = ((float(row[0]), float(row[1]), float(row[2])) for row in orientation)
    column, row, slices = (round_significant(float(step), 2) for step in found)
    return Grid((column, row, slices), (right, anterior, superior), known=True)


def round_significant(value: float, digits: int) -> float:
    """The number with this many significant digits: 1.8421 with 2 is 1.8."""
    return float(f"{value:.{digits - 1}e}")


@dataclass
class NiftiWriter:
    """Writes NIfTI files into ``place``; a volume waits in memory until all its slices have come."""

    place: Path
    channels: tuple[str, ...]
    note: str
    grid: Grid
    waiting: dict[str, list[tuple[Unit, Pixels]]] = field(default_factory=dict)

    def add(self, unit: Unit, image: Pixels) -> tuple[str, ...]:
        """Take one image (C, H, W), uint8 or uint16; gives the names of the files in which it lies or will lie.

        Slices that are missing between the first and the last of a volume (they were removed) are 0 there.
        """
        several = len(self.channels) > 1
        names = tuple(unit.volume_file(name if several else "", "nii.gz") for name in self.channels)
        if unit.index < 0:
            self._save(names, image[:, None])
            return names
        parts = self.waiting.setdefault(unit.sample, [])
        parts.append((unit, image.copy()))
        if len(parts) == unit.siblings:
            channels, height, width = image.shape
            volume = np.zeros((channels, unit.last - unit.first + 1, height, width), image.dtype)
            for each, plane in parts:
                volume[:, each.index - unit.first] = plane
            self._save(names, volume)
            del self.waiting[unit.sample]
        return names

    def _save(self, names: tuple[str, ...], volume: Pixels) -> None:
        """Write one volume (C, D, H, W), each channel into its file."""
        for name, voxels in zip(names, volume, strict=True):
            depth, height, width = voxels.shape
            stored = np.ascontiguousarray((voxels if self.grid.known else voxels[:, ::-1]).transpose(2, 1, 0))
            affine = self.grid.affine(width, height, depth) if self.grid.known else None
            image = nib.Nifti1Image(stored, affine, dtype=stored.dtype)
            image.header.set_zooms(self.grid.spacing)
            if affine is not None:
                image.set_qform(affine, code=_SCANNER)
                image.set_sform(affine, code=_SCANNER)
            image.header.set_xyzt_units("mm")
            image.header["descrip"] = describe_file(self.note, known=self.grid.known)
            with (
                (self.place / name).open("wb") as raw,
                gzip.GzipFile(filename="", mode="wb", fileobj=raw, compresslevel=6, mtime=0) as stream,
            ):
                stream.write(image.to_bytes())

    def close(self) -> None:
        """Raise `ValueError` if slices were promised that never came."""
        if self.waiting:
            raise ValueError(f"{len(self.waiting)} volumes lack slices")


def describe_file(note: str, *, known: bool) -> bytes:
    """The field descrip: that the geometry is unknown, where it is, and as much of the note as its 79 bytes take."""
    text = note if known else f"geometry unknown; {note}"
    return text.encode("ascii", "replace")[: _DESCRIPTION_BYTES - 1]
