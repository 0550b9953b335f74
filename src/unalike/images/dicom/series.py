"""DICOM files in any order as series: grouped, sorted along their normal, and looked through for what is missing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt

from unalike.errors import PictureError
from unalike.images.dicom.headers import _SKIP_SERIES, Series, _Header, _name, _read_header
from unalike.images.volumes import LARGEST_SPACING, LARGEST_VOLUME, SMALLEST_SPACING

# Gaps between neighbouring slices may differ from their median by this share of it, or, because scanners round
# positions to tenths of a millimetre, by up to 0.1 mm where that is no more than a tenth of the gap. A missing slice
# doubles a gap.
GAP_TOLERANCE, GAP_ROUNDING = 0.01, 0.1
# Direction cosines are rounded too; a thousandth is half a millimetre at the edge of the largest field of view.
ANGLE_TOLERANCE = 1e-3
_LOCALIZERS = {"LOCALIZER", "SCOUT", "TOPOGRAM", "SURVEY"}


@dataclass(frozen=True)
class _Stack:
    """Slices in order along their normal: (file, frame) of each, and the LPS affine of (column, row, slice)."""

    slices: tuple[tuple[int, int], ...]
    affine: npt.NDArray[np.float64]


def scan_dicom(paths: Sequence[Path]) -> tuple[list[Series], list[tuple[Path, str]]]:
    """Group DICOM files by series from their headers; no pixels are read.

    Folders among ``paths`` are searched with all below them, but for hidden files and indexes (DICOMDIR). Series
    come sorted by patient, study and UID, whatever the order of the files. A file without a SeriesInstanceUID
    is a series of its own.

    The second list has the files that hold no usable DICOM image, each with one line that says why.
    """
    groups: dict[tuple[str, str], list[_Header]] = {}
    bad = []
    for path in _files_below(paths):
        try:
            header = _read_header(path)
        except PictureError as error:
            bad.append((path, str(error)))
            continue
        groups.setdefault((header.uid, "" if header.uid else str(path)), []).append(header)
    series = [_series_of(headers) for headers in groups.values()]
    return sorted(series, key=lambda one: (one.patient, one.study, one.uid, one.files)), bad


def refuse_reason(series: Series, *, derived: bool) -> str:
    """Why a localizer or a derived series is not taken unless asked for (``derived``), in one line; "" if it is.

    ImageType (PS3.3 C.7.6.1.1.2) says so: LOCALIZER or SCOUT; DERIVED (computed from other images) or SECONDARY.
    """
    if derived:
        return ""
    kinds = {kind.upper() for kind in series.image_type}
    label = "\\".join(series.image_type)
    if kinds & _LOCALIZERS:
        return f"{_name(series.files)} is a localizer ({label}): not taken unless derived series are asked for."
    if kinds & {"DERIVED", "SECONDARY"}:
        return f"{_name(series.files)} is no original image ({label}): not taken unless derived series are asked for."
    return ""


def _files_below(paths: Sequence[Path]) -> list[Path]:
    files: dict[Path, None] = {}
    for path in paths:
        if not path.is_dir():
            files[path] = None
            continue
        for below in sorted(path.rglob("*")):
            hidden = any(part.startswith(".") for part in below.relative_to(path).parts)
            if below.is_file() and not hidden and below.name.upper() != "DICOMDIR":
                files[below] = None
    return list(files)


def _series_of(headers: list[_Header]) -> Series:
    """The series that these files, in any order, make up."""
    headers = sorted(headers, key=_by_instance(headers))
    problem = _mixture(headers)
    first, frames = headers[0], sum(header.frames for header in headers)
    shape, spacing = (first.columns, first.rows, frames), (1.0, 1.0, 1.0)
    stacked = not problem and _is_stack(headers)
    if stacked:
        headers, problem, affine = _along_normal(headers)
        if affine is not None:
            shape, spacing = _extent(shape, affine)
    first = headers[0]
    files = tuple(header.path for header in headers)
    burned = {header.burned_in for header in headers}
    return Series(
        uid=first.uid,
        study=first.study,
        patient=first.patient,
        modality=first.modality,
        description=first.description,
        frame_of_reference=first.frame_of_reference,
        files=files,
        frames=frames,
        rows=first.rows,
        columns=first.columns,
        samples=first.samples,
        bits=max(header.bits for header in headers),
        image_type=first.image_type
        + tuple(dict.fromkeys(kind for h in headers for kind in h.image_type if kind not in first.image_type)),
        burned_in="YES" if "YES" in burned else "NO" if burned == {"NO"} else "",
        head=any(header.head for header in headers),
        defaced=all(header.defaced for header in headers),
        shape=shape,
        spacing=spacing,
        stacked=stacked,
        problem=f"{_name(files)} {problem}. {_SKIP_SERIES}" if problem else "",
    )


def _by_instance(headers: list[_Header]) -> Any:
    """Key that sorts by instance number, if all have one, then by name."""
    numbered = all(header.instance is not None for header in headers)
    return lambda header: (header.instance if numbered else 0, str(header.path))


def _mixture(headers: list[_Header]) -> str:
    """Why these files are no one series: a clause, or ""."""
    for header in headers:
        if header.problem:
            return header.problem if len(headers) == 1 else f"is not whole: {header.path.name} {header.problem}"
    for what, values in (
        ("patients", {header.patient for header in headers}),
        ("studies", {header.study for header in headers}),
        ("modalities", {header.modality for header in headers}),
    ):
        if len(values) > 1:
            return f"mixes {len(values)} {what}"
    sizes = {(header.columns, header.rows, header.samples) for header in headers}
    if len(sizes) > 1:
        (a, b, c), (d, e, f) = sorted(sizes)[:2]
        return f"mixes images of {len(sizes)} sizes, such as {a}×{b}×{c} and {d}×{e}×{f}"
    seen: dict[str, Path] = {}
    for header in headers:
        if header.sop and header.sop in seen:
            return f"has two files of the same image, {seen[header.sop].name} and {header.path.name}"
        seen[header.sop] = header.path
    if sum(header.frames for header in headers) * math.prod(sizes.pop()) > LARGEST_VOLUME:
        return f"announces more than {LARGEST_VOLUME:,} values"
    places = [place is not None for header in headers for place in header.places]
    if any(places) and not all(places) and headers[0].samples == 1:
        return f"gives positions for only {sum(places)} of its {len(places)} images"
    return ""


def _is_stack(headers: list[_Header]) -> bool:
    """Whether there are at least two gray images and each says where it lies."""
    places = [place for header in headers for place in header.places]
    return len(places) > 1 and headers[0].samples == 1 and None not in places


def _along_normal(headers: list[_Header]) -> tuple[list[_Header], str, npt.NDArray[np.float64] | None]:
    """Files by the position of their first slice, what is wrong with the stack ("" if nothing), and its affine."""
    stack, problem = _stack(headers)
    if stack is None:
        return headers, problem, None
    order = list(dict.fromkeys(file for file, _ in stack.slices))
    return [headers[file] for file in order], "", stack.affine


def _extent(
    shape: tuple[int, int, int], affine: npt.NDArray[np.float64]
) -> tuple[tuple[int, int, int], tuple[float, float, float]]:
    """Shape and spacing once (columns, rows, slices) are turned to RAS, as `_as_ras` does."""
    axes = nib.orientations.io_orientation(np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine)[:, 0].astype(int)
    steps = np.linalg.norm(affine[:3, :3], axis=0)
    x, y, z = np.argsort(axes)
    return (shape[x], shape[y], shape[z]), (float(steps[x]), float(steps[y]), float(steps[z]))


def _stack(headers: list[_Header]) -> tuple[_Stack | None, str]:
    """Order the slices of a stack and place it in the patient; or None, and why not, as a clause.

    The slices lie along the cross product of the row and the column direction (PS3.3 C.7.6.2.1.1). Their distance
    comes from the positions, as SliceThickness says nothing of gaps and overlaps.
    """
    if len({header.frame_of_reference for header in headers}) > 1:
        return None, "mixes frames of reference, so its positions cannot be compared"
    keys = [(file, frame) for file, header in enumerate(headers) for frame in range(header.frames)]
    places = [place for header in headers for place in header.places if place is not None]
    first = places[0]
    if first.spacing is None or any(place.spacing is None for place in places):
        return None, "gives positions but no pixel spacing"
    turns = np.array([(*place.along_row, *place.along_column) for place in places])
    if np.abs(turns - turns[0]).max() > ANGLE_TOLERANCE:
        return None, "mixes slices of several orientations"
    spacings = np.array([place.spacing for place in places])
    if not np.allclose(spacings, spacings[0], rtol=1e-3, atol=0):
        return None, "mixes several pixel spacings"
    positions = np.array([place.position for place in places])
    order = np.argsort(positions @ np.cross(first.along_row, first.along_column), kind="stable")
    positions = positions[order]
    problem = _gap_problem(positions, np.cross(first.along_row, first.along_column))
    if problem:
        return None, problem
    affine = np.eye(4)
    # An index along a row is a column's number: it steps by the distance between columns, the second of PixelSpacing.
    affine[:3, 0] = first.along_row * first.spacing[1]
    affine[:3, 1] = first.along_column * first.spacing[0]
    affine[:3, 2] = (positions[-1] - positions[0]) / (len(positions) - 1)
    affine[:3, 3] = positions[0]
    steps = np.linalg.norm(affine[:3, :3], axis=0)
    if not all(SMALLEST_SPACING <= step <= LARGEST_SPACING for step in steps):
        return None, f"gives a voxel spacing of {' × '.join(f'{step:g}' for step in steps)} mm"
    return _Stack(slices=tuple(keys[index] for index in order), affine=affine), ""


def _gap_problem(positions: npt.NDArray[np.float64], normal: npt.NDArray[np.float64]) -> str:
    """What is wrong with sorted slice positions (n, 3) in mm: a clause with slices counted from 1, or ""."""
    gaps = np.diff(positions @ normal)
    same = np.flatnonzero(gaps < SMALLEST_SPACING)
    if len(same):
        # Times, echoes or directions of a series with a fourth dimension look alike.
        run = 2
        while same[0] + run <= len(gaps) and gaps[same[0] + run - 1] < SMALLEST_SPACING:
            run += 1
        return f"holds {run} slices at the same position (slice {same[0] + 1} from below and the next)"
    usual = float(np.sort(gaps)[(len(gaps) - 1) // 2])
    tolerance = max(GAP_TOLERANCE * usual, min(GAP_ROUNDING, 0.1 * usual)) + 1e-6
    odd = np.flatnonzero(np.abs(gaps - usual) > tolerance)
    if len(odd):
        at = int(odd[np.argmax(np.abs(gaps[odd] - usual))])
        missing = round(gaps[at] / usual) - 1
        why = ("a slice is missing", "slices are missing")[missing > 1] if missing > 0 else "they are unevenly spaced"
        return f"has slices {at + 1} and {at + 2} that are {gaps[at]:.4g} mm apart, the others {usual:.4g} mm: {why}"
    even = np.linspace(positions[0], positions[-1], len(positions))
    if np.abs(positions - even).max() > tolerance:
        return "has slices that do not lie evenly on one straight line"
    return ""
