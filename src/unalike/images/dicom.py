"""DICOM files in any order as series; a series as one volume or as single frames.

Written from the DICOM standard (https://dicom.nema.org): PS3.3 C.7.6.2 (image plane: position, orientation, spacing),
C.7.6.3 (pixels), C.7.6.16 (functional groups of enhanced multi-frame images), C.11.1 (rescale) and C.11.2 (windows);
PS3.5 for the encoding, which pydicom reads.

Of a patient's identity nothing leaves but the fields of `Series`, which the caller keeps private.
"""

from __future__ import annotations

import hashlib
import math
import re
import struct
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import nibabel as nib
import numpy as np
import numpy.typing as npt
from pydicom import dcmread
from pydicom.datadict import tag_for_keyword
from pydicom.dataset import Dataset, FileDataset
from pydicom.errors import InvalidDicomError
from pydicom.filereader import read_file_meta_info, read_partial
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.processing import apply_color_lut, apply_modality_lut
from pydicom.tag import BaseTag
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from unalike.errors import PictureError, SettingsError
from unalike.images.quiet import QUIET
from unalike.images.volumes import LARGEST_SPACING, LARGEST_VOLUME, SMALLEST_SPACING, Volume

# Gaps between neighbouring slices may differ from their median by this share of it, or, because scanners round
# positions to tenths of a millimetre, by up to 0.1 mm where that is no more than a tenth of the gap. A missing slice
# doubles a gap.
GAP_TOLERANCE, GAP_ROUNDING = 0.01, 0.1
# Direction cosines are rounded too; a thousandth is half a millimetre at the edge of the largest field of view.
ANGLE_TOLERANCE = 1e-3
_FARTHEST = 1e6  # mm: what is beyond is damaged, and its distances would overflow
# A deflated file can unpack to a thousand times its size.
LARGEST_UNPACKED = 2**30

_SKIP_FILE = "Remove the file or pass --on-bad-file skip."
_SKIP_SERIES = "Mend or remove it, or pass --on-bad-file skip."
_UNDEFINED = 0xFFFFFFFF
_DIRECTORY = 0x00041220
_PIXELS = {0x7FE00008: "FloatPixelData", 0x7FE00009: "DoubleFloatPixelData", 0x7FE00010: "PixelData"}
_LOCALIZERS = {"LOCALIZER", "SCOUT", "TOPOGRAM", "SURVEY"}
_NO_FACE = "113102"  # PS3.16 CID 7050: Clean Recognizable Visual Features Option
_HEAD = re.compile(
    r"head|brain|skull|\bfac(e|ial)|neck|orbit|sinus|\bjaw|mandib|maxill|\bears?\b|\beyes?\b|\bnose\b|\biacs?\b|cereb"
    r"|pituit|crani|cran[eo]|crâne|dental|teeth|tooth|\btmj\b|carotid|mprage|flair|whole.?body|\bwb\b|kopf|schädel"
    r"|schaedel|hirn|\bhals|\bt[eê]te\b|cerveau|cabeza",
    re.IGNORECASE,
)
_DEFACED = re.compile(r"de-?fac(ed|ing|e\b)|skull.?strip|brain.?extract|fac(e|ial features?) (was |were )?remov", re.I)
_LIBJPEG = "pip install pylibjpeg pylibjpeg-libjpeg (GPL), or pip install python-gdcm"
_OPENJPEG = "pip install pylibjpeg pylibjpeg-openjpeg"
# What adds a decoder, by how the transfer syntax's name begins. Pillow decodes 8-bit JPEG and most JPEG 2000, and
# pydicom RLE, so these are always there.
_DECODERS = {
    "JPEG 2000": _OPENJPEG,
    "High-Throughput": _OPENJPEG,
    "JPEG-LS": "pip install pyjpegls, or pip install python-gdcm",
    "JPEG": _LIBJPEG,
}
_KEYWORDS = """
    ImageType SOPClassUID SOPInstanceUID Modality StudyDescription SeriesDescription ProtocolName PatientID
    BodyPartExamined AnatomicRegionSequence DeidentificationMethod DeidentificationMethodCodeSequence
    RecognizableVisualFeatures BurnedInAnnotation StudyInstanceUID SeriesInstanceUID FrameOfReferenceUID
    InstanceNumber ImagePositionPatient ImageOrientationPatient PixelSpacing SamplesPerPixel
    PhotometricInterpretation NumberOfFrames Rows Columns BitsAllocated BitsStored HighBit PixelRepresentation
    RescaleIntercept RescaleSlope ModalityLUTSequence RedPaletteColorLookupTableDescriptor
    SharedFunctionalGroupsSequence PerFrameFunctionalGroupsSequence
"""
_TAGS: list[BaseTag | int] = [tag for tag in map(tag_for_keyword, _KEYWORDS.split()) if tag is not None]


@dataclass(frozen=True)
class Series:
    """One series, from headers alone: its files in slice order.

    ``files`` run along the slice normal where every image has a position, else by InstanceNumber, else by name.
    ``stacked`` says that these are gray slices with positions, which become one volume.
    ``frames`` counts the images of all files; ``samples`` is what a picture has once read (a palette has 3); ``bits``
    are those stored. ``shape`` and ``spacing`` (mm) are those of the RAS volume that a stack becomes; of anything else
    (columns, rows, frames) and 1. ``image_type`` is the first file's, then what the others add. ``burned_in`` is "YES"
    (of any file), "NO" (of all) or "". ``head`` is said by the body part or a description; ``defaced`` by all files'
    tags on de-identification. ``problem`` is one line that says why the series cannot be used, "" if it can.
    """

    uid: str
    study: str
    patient: str
    modality: str
    description: str
    frame_of_reference: str
    files: tuple[Path, ...]
    frames: int
    rows: int
    columns: int
    samples: int
    bits: int
    image_type: tuple[str, ...]
    burned_in: str
    head: bool
    defaced: bool
    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    stacked: bool = False
    problem: str = ""


@dataclass(frozen=True)
class DicomPixels:
    """Pixels of a series: either ``volume`` or ``frames`` holds them.

    * ``volume``: a stack of at least two positions, RAS. Voxels are int16 or int32 where rescaling keeps them whole
      (Hounsfield units for CT), else float32. Sheared slices (a tilted gantry) keep their shear in the affine. None
      without positions.
    * ``frames``: images (n, C, H, W) without positions (n = 0 if there is a volume). uint8 or uint16 where rescaling
      keeps them whole and not negative, else float32. YBR and palettes have become red, green and blue.

    MONOCHROME1 (white is least) is inverted within the range that its stored bits allow. ``windowed`` says that
    values are float32 in 0…255 by the window asked for; colour never is. ``digest`` is the SHA-256 of the files'
    bytes in order.
    """

    volume: Volume | None
    frames: npt.NDArray[Any]
    windowed: bool
    digest: str


@dataclass(frozen=True)
class _Place:
    """Where one slice lies: LPS position of its first pixel in mm, its two directions, (row, column) spacing in mm."""

    position: npt.NDArray[np.float64]
    along_row: npt.NDArray[np.float64]
    along_column: npt.NDArray[np.float64]
    spacing: tuple[float, float] | None


@dataclass(frozen=True)
class _Levels:
    """Values after rescaling: slope and intercept, lowest and highest value possible, whether all are whole."""

    slope: float
    intercept: float
    low: float
    high: float
    whole: bool


@dataclass(frozen=True)
class _Header:
    """What one file says of itself; tuples have one entry per frame. ``problem`` is a clause, "" if there is none."""

    path: Path
    uid: str
    study: str
    patient: str
    modality: str
    description: str
    frame_of_reference: str
    sop: str
    instance: int | None
    rows: int
    columns: int
    samples: int
    bits: int
    frames: int
    image_type: tuple[str, ...]
    burned_in: str
    head: bool
    defaced: bool
    places: tuple[_Place | None, ...]
    levels: tuple[_Levels, ...]
    problem: str


@dataclass(frozen=True)
class _Stack:
    """Slices in order along their normal: (file, frame) of each, and the LPS affine of (column, row, slice)."""

    slices: tuple[tuple[int, int], ...]
    affine: npt.NDArray[np.float64]


# --- Headers ----------------------------------------------------------------------------------------------------------


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


def _name(files: Sequence[Path]) -> str:
    return str(files[0]) if len(files) == 1 else f"The series of {files[0]} ({len(files)} files)"


def _unreadable(path: Path, reason: str) -> PictureError:
    return PictureError(f"{path} cannot be read ({reason}). {_SKIP_FILE}")


def _one_line(error: Exception) -> str:
    """What an exception says, short and on one line (without the path, which the message names anyway)."""
    said = (error.strerror or "") if isinstance(error, OSError) else " ".join(str(error).split())
    return said.rstrip(" .")[:200] or type(error).__name__


@contextmanager
def _reading(path: Path) -> Iterator[BinaryIO]:
    """Open a file; whatever pydicom, zlib or a decoder raises becomes a `PictureError`, and warnings stay here."""
    try:
        with QUIET, path.open("rb") as stream:
            yield stream
    except PictureError:
        raise
    except InvalidDicomError as error:
        raise PictureError(f"{path} is not DICOM. {_SKIP_FILE}") from error
    except Exception as error:  # damaged values raise whatever they meet first
        raise _unreadable(path, _one_line(error)) from error


def _read_header(path: Path) -> _Header:
    """Header of one file, up to its pixels. Raises `PictureError` if it holds no usable DICOM image."""
    stopped: list[tuple[int, int, int]] = []

    def at_pixels(tag: BaseTag, vr: str | None, length: int) -> bool:
        if tag in _PIXELS or tag == _DIRECTORY:
            # The tag and the length take 8 bytes, with a value representation 12.
            stopped.append((int(tag), length, 8 if vr is None else 12))
        return bool(stopped)

    with _reading(path) as stream:
        force = _force(stream)
        deflated = _refuse_bomb(path, stream)
        dataset = read_partial(stream, at_pixels, force=force, specific_tags=_TAGS)
        tag, length, begin = stopped[0] if stopped else (0, 0, 0)
        if tag == _DIRECTORY:
            raise PictureError(f"{path} is a DICOMDIR, an index of other files. {_SKIP_FILE}")
        if not tag:
            kind = _text(dataset, "Modality") or UID(_text(dataset, "SOPClassUID")).name or "of no kind"
            raise PictureError(f"{path} holds no pixels ({kind}). {_SKIP_FILE}")
        left = path.stat().st_size - stream.tell() - begin
        if not deflated and length != _UNDEFINED and length > left:
            raise PictureError(f"{path} is truncated: {length - left:,} bytes of pixels are missing. {_SKIP_FILE}")
        lacking = [key for key in ("Rows", "Columns", "BitsAllocated") if not dataset.get(key)]
        if lacking:
            raise PictureError(f"{path} does not give {lacking[0]}. {_SKIP_FILE}")
        return _header_of(path, dataset, kind=_PIXELS[tag], length=length, left=left)


def _force(stream: BinaryIO) -> bool:
    """Whether a file without the preamble begins like DICOM all the same: an even element of group 2 or 8.

    Its value representation, or the length of a first element without one, must make sense too.
    """
    start = stream.read(132)
    stream.seek(0)
    if start[128:] == b"DICM" or len(start) < 8:
        return False
    for order in "<>":
        group, element, vr, short = struct.unpack(f"{order}HH2sH", start[:8])
        length = struct.unpack(f"{order}I", start[4:8])[0]
        explicit = vr in (b"UL", b"UI", b"CS", b"OB", b"SH", b"DA", b"TM", b"LO", b"SQ") and short <= 256
        implicit = order == "<" and length <= 256 and length % 2 == 0
        if group in (2, 8) and element < 0x3000 and (explicit or implicit):
            return True
    return False


def _refuse_bomb(path: Path, stream: BinaryIO) -> bool:
    """Whether the file is deflated; `PictureError` if it unpacks to more than `LARGEST_UNPACKED` bytes."""
    start = stream.read(1024)
    stream.seek(0)
    if DeflatedExplicitVRLittleEndian.encode() not in start:
        return False
    # pydicom unpacks the whole file before anything can be known of it, so it is counted in small pieces first.
    stream.seek(144 + int(read_file_meta_info(path).FileMetaInformationGroupLength))
    unpacker, size, packed = zlib.decompressobj(-zlib.MAX_WBITS), 0, stream.read(2**16)
    while packed and not unpacker.eof:
        size += len(unpacker.decompress(packed, 2**20))
        if size > LARGEST_UNPACKED:
            raise PictureError(f"{path} unpacks to more than {LARGEST_UNPACKED:,} bytes. {_SKIP_FILE}")
        packed = unpacker.unconsumed_tail or stream.read(2**16)
    stream.seek(0)
    return True


def _header_of(path: Path, dataset: FileDataset, *, kind: str, length: int, left: int) -> _Header:
    """Everything wanted of one file.

    ``kind`` and ``length`` are its pixel element's name and bytes, and ``left`` the bytes of the file from there.
    """
    frames = int(dataset.get("NumberOfFrames") or 1)
    rows, columns = int(dataset.Rows), int(dataset.Columns)
    stored = int(dataset.get("SamplesPerPixel") or 1)
    instance = _text(dataset, "InstanceNumber")
    problem = _pixel_problem(dataset, kind=kind, shape=(frames, rows, columns, stored), length=length)
    if not problem and length == _UNDEFINED and 8 * frames > left:  # each frame begins with an item of 8 bytes
        problem = f"announces {frames} frames, but ends after {left:,} bytes"
    enhanced = "PerFrameFunctionalGroupsSequence" in dataset
    if not problem and enhanced and len(dataset.PerFrameFunctionalGroupsSequence) != frames:
        problem = f"describes {len(dataset.PerFrameFunctionalGroupsSequence)} of {frames} frames"
    # Frames that are not described one by one are alike.
    described, alike = (0, 1) if problem else (frames, 1) if enhanced else (1, frames)
    return _Header(
        path=path,
        uid=_text(dataset, "SeriesInstanceUID"),
        study=_text(dataset, "StudyInstanceUID"),
        patient=_text(dataset, "PatientID"),
        modality=_text(dataset, "Modality"),
        description=_text(dataset, "SeriesDescription"),
        frame_of_reference=_text(dataset, "FrameOfReferenceUID"),
        sop=_text(dataset, "SOPInstanceUID"),
        instance=int(instance) if re.fullmatch(r"-?\d{1,12}", instance) else None,
        rows=rows,
        columns=columns,
        samples=3 if _text(dataset, "PhotometricInterpretation") == "PALETTE COLOR" else stored,
        bits=int(dataset.get("BitsStored") or dataset.BitsAllocated),
        frames=frames,
        image_type=_texts(dataset, "ImageType"),
        burned_in=_text(dataset, "BurnedInAnnotation").upper(),
        head=_shows_head(dataset),
        defaced=_is_defaced(dataset),
        places=alike * tuple(_place(dataset, frame, frames) for frame in range(described)),
        levels=alike * tuple(_levels(dataset, frame, kind) for frame in range(described)),
        problem=problem,
    )


def _text(dataset: Dataset, keyword: str) -> str:
    """A text value on one line, "" if it is missing or empty."""
    value = dataset.get(keyword)
    return "" if value is None else " ".join(str(value).split())


def _texts(dataset: Dataset, keyword: str) -> tuple[str, ...]:
    value = dataset.get(keyword)
    if value is None:
        return ()
    parts = [value] if isinstance(value, str) else value
    return tuple(" ".join(str(part).split()) for part in parts if str(part).strip())


def _numbers(dataset: Dataset, keyword: str, count: int) -> list[float] | None:
    """``count`` finite numbers, None if the value is missing or empty. Raises `ValueError` if it is something else."""
    value = dataset.get(keyword)
    if value is None or value == "":
        return None
    parts = [value] if isinstance(value, str | int | float) else list(value)
    if not parts:
        return None
    numbers = [float(part) for part in parts]
    if len(numbers) != count or not all(map(math.isfinite, numbers)):
        raise ValueError(f"{keyword} is no list of {count} finite numbers")
    return numbers


def _shows_head(dataset: Dataset) -> bool:
    keywords = ("BodyPartExamined", "SeriesDescription", "StudyDescription", "ProtocolName")
    texts = [_text(dataset, keyword) for keyword in keywords]
    regions = list(dataset.get("AnatomicRegionSequence") or [])
    for group in dataset.get("SharedFunctionalGroupsSequence") or []:
        for anatomy in group.get("FrameAnatomySequence") or []:
            regions += anatomy.get("AnatomicRegionSequence") or []
    texts += [_text(region, "CodeMeaning") for region in regions]
    return any(_HEAD.search(text.replace("_", " ")) for text in texts)


def _is_defaced(dataset: Dataset) -> bool:
    """Attributes of PS3.15 E.3.3: no recognizable features are left, or a method that removes them was used."""
    if _text(dataset, "RecognizableVisualFeatures").upper() == "NO":
        return True
    codes = {_text(code, "CodeValue") for code in dataset.get("DeidentificationMethodCodeSequence") or []}
    methods = " ".join(_texts(dataset, "DeidentificationMethod"))
    return _NO_FACE in codes or _NO_FACE in methods or bool(_DEFACED.search(methods))


def _pixel_problem(dataset: FileDataset, *, kind: str, shape: tuple[int, int, int, int], length: int) -> str:
    """Why these pixels cannot be decoded, before any memory is taken for them: a clause, or ""."""
    frames, rows, columns, samples = shape
    if min(shape) < 1 or math.prod(shape) > LARGEST_VOLUME:
        return f"announces {frames} frames of {columns}×{rows} pixels with {samples} samples"
    if _text(dataset, "Modality") == "RTDOSE":
        return "holds radiation doses, not images"
    if samples not in (1, 3):
        return f"has {samples} samples per pixel, but 1 or 3 are needed"
    allocated = int(dataset.BitsAllocated)
    stored = int(dataset.get("BitsStored") or allocated)
    if not 1 <= stored <= allocated or allocated not in (1, 8, 16, 32, 64):
        return f"announces {stored} of {allocated} bits per pixel"
    if kind == "PixelData" and int(dataset.get("HighBit", stored - 1)) != stored - 1:
        return f"keeps its {stored} bits below bit {dataset.HighBit}, which is not read"
    if length == _UNDEFINED:
        return _decoder_problem(_syntax(dataset), bits=stored, samples=samples)
    subsampled = _text(dataset, "PhotometricInterpretation") == "YBR_FULL_422"
    needed = math.prod(shape) * allocated // 8
    if length < (needed * 2 // 3 if subsampled else needed):
        return f"holds {length:,} bytes of pixels, but announces {needed:,}"
    return ""


def _syntax(dataset: FileDataset) -> UID:
    """The transfer syntax; where it is not named, the one that the file was found to be written in."""
    named = _text(dataset.file_meta, "TransferSyntaxUID")
    if named:
        return UID(named)
    implicit, little = dataset.original_encoding
    if implicit:
        return ImplicitVRLittleEndian
    return ExplicitVRLittleEndian if little else ExplicitVRBigEndian


def _decoder_problem(syntax: UID, *, bits: int, samples: int) -> str:
    """Which package is missing to decode compressed pixels: a clause, or ""."""
    try:
        plugins = get_decoder(syntax).available_plugins
    except NotImplementedError:
        return f"is compressed as {syntax.name}, which is not read"
    # Pillow decodes extended JPEG of 8 bits, and 8 bits of colour in JPEG 2000.
    too_deep = bits > 8 and ("Extended" in syntax.name or ("2000" in syntax.name and samples > 1))
    if plugins and not (too_deep and plugins == ("pillow",)):
        return ""
    package = next((add for start, add in _DECODERS.items() if syntax.name.startswith(start)), "")
    if not package:
        return f"is compressed as {syntax.name}, which is not read"
    return f"is compressed as {syntax.name} of {bits} bits, which needs a decoder ({package})"


def _macro(dataset: Dataset, frame: int, sequence: str) -> Dataset | None:
    """Functional group ``sequence`` of a frame, its own before the one that all share (PS3.3 C.7.6.16)."""
    own = dataset.get("PerFrameFunctionalGroupsSequence") or []
    shared = dataset.get("SharedFunctionalGroupsSequence") or []
    for groups in ([own[frame]] if frame < len(own) else [], shared):
        for group in groups:
            if group.get(sequence):
                item: Dataset = group.get(sequence)[0]
                return item
    return None


def _place(dataset: Dataset, frame: int, frames: int) -> _Place | None:
    """Where a frame lies; None where the file does not say.

    Raises `ValueError` if the directions are not perpendicular.
    """
    position = _numbers(_macro(dataset, frame, "PlanePositionSequence") or Dataset(), "ImagePositionPatient", 3)
    turn = _numbers(_macro(dataset, frame, "PlaneOrientationSequence") or Dataset(), "ImageOrientationPatient", 6)
    spacing = _numbers(_macro(dataset, frame, "PixelMeasuresSequence") or Dataset(), "PixelSpacing", 2)
    if frames == 1:  # in a file of many frames these would be the first one's alone
        position = position or _numbers(dataset, "ImagePositionPatient", 3)
        turn = turn or _numbers(dataset, "ImageOrientationPatient", 6)
        spacing = spacing or _numbers(dataset, "PixelSpacing", 2)
    if position is None or turn is None:
        return None
    if max(map(abs, (*position, *turn, *(spacing or ())))) > _FARTHEST:
        raise ValueError("its position is more than a kilometre away")
    along_row, along_column = np.array(turn[:3]), np.array(turn[3:])
    lengths = np.linalg.norm(along_row), np.linalg.norm(along_column)
    if max(abs(lengths[0] - 1), abs(lengths[1] - 1), abs(along_row @ along_column)) > 0.01:
        raise ValueError("ImageOrientationPatient is not two perpendicular directions")
    return _Place(
        position=np.array(position),
        along_row=along_row / lengths[0],
        along_column=along_column / lengths[1],
        spacing=(spacing[0], spacing[1]) if spacing else None,
    )


def _levels(dataset: Dataset, frame: int, kind: str) -> _Levels:
    """Slope and intercept of a frame, and the range that its stored bits allow (PS3.3 C.11.1.1.2)."""
    if dataset.get("ModalityLUTSequence"):
        bits = int(dataset.ModalityLUTSequence[0].LUTDescriptor[2])
        return _Levels(slope=1.0, intercept=0.0, low=0.0, high=2.0**bits - 1, whole=True)
    if _text(dataset, "PhotometricInterpretation") == "PALETTE COLOR":
        bits = int(dataset.RedPaletteColorLookupTableDescriptor[2])
        return _Levels(slope=1.0, intercept=0.0, low=0.0, high=255.0 if bits == 8 else 65535.0, whole=True)
    source = _macro(dataset, frame, "PixelValueTransformationSequence") or dataset
    slope = (_numbers(source, "RescaleSlope", 1) or [1.0])[0]
    intercept = (_numbers(source, "RescaleIntercept", 1) or [0.0])[0]
    if slope == 0:
        raise ValueError("RescaleSlope is 0")
    if kind != "PixelData":
        return _Levels(slope=slope, intercept=intercept, low=-math.inf, high=math.inf, whole=False)
    bits = int(dataset.get("BitsStored") or dataset.BitsAllocated)
    signed = bool(dataset.get("PixelRepresentation"))
    ends = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    low, high = sorted(end * slope + intercept for end in ends)
    # Beyond 2⁵³ a float64 no longer tells whole numbers apart, and int64 would soon overflow.
    whole = slope.is_integer() and intercept.is_integer() and max(abs(low), abs(high)) < 2**53
    return _Levels(slope=slope, intercept=intercept, low=low, high=high, whole=whole)


# --- Series -----------------------------------------------------------------------------------------------------------


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


# --- Pixels -----------------------------------------------------------------------------------------------------------


def read_series(series: Series, *, window: tuple[float, float] | None = None) -> DicomPixels:
    """Read the pixels of a series that `scan_dicom` found.

    ``window`` (center, width at least 1, in values after rescaling: Hounsfield units for CT) maps gray values to
    0…255 by the linear formula of PS3.3 C.11.2.1.2.1.

    Raises `PictureError` if the series has a problem, or a file is damaged or has changed since the scan, and
    `SettingsError` if the window makes no sense.
    """
    if series.problem:
        raise PictureError(series.problem)
    if window is not None and not (all(map(math.isfinite, window)) and window[1] >= 1):
        raise SettingsError(f"Window {window} makes no sense. Give a center, and a width of at least 1.")
    headers = [_read_header(path) for path in series.files]
    stack = None
    problem = _mixture(headers)
    if not problem and _is_stack(headers):
        stack, problem = _stack(headers)
    if problem:
        raise PictureError(f"{_name(series.files)} {problem}. {_SKIP_SERIES}")
    windowed = window is not None and headers[0].samples == 1
    frames, digest = _decode(headers, stack, window if windowed else None)
    if stack is None:
        return DicomPixels(volume=None, frames=frames, windowed=windowed, digest=digest)
    volume = replace(_as_ras(frames[:, 0], stack.affine), digest=digest)
    return DicomPixels(volume=volume, frames=frames[:0], windowed=windowed, digest=digest)


def _decode(
    headers: list[_Header], stack: _Stack | None, window: tuple[float, float] | None
) -> tuple[npt.NDArray[Any], str]:
    """Frames (n, C, H, W) in the order of the stack, or of the files, and the SHA-256 of the files."""
    keys = stack.slices if stack else [(file, frame) for file, one in enumerate(headers) for frame in range(one.frames)]
    slot = {key: index for index, key in enumerate(keys)}
    first = headers[0]
    levels = [level for header in headers for level in header.levels]
    kind = np.dtype(np.float32) if window else _dtype_for(levels, signed=stack is not None)
    out = np.empty((len(slot), first.samples, first.rows, first.columns), kind)
    digest = hashlib.sha256()
    for file, header in enumerate(headers):
        with _reading(header.path) as stream:
            while piece := stream.read(2**20):
                digest.update(piece)
            stream.seek(0)
            dataset = dcmread(stream, force=_force(stream))
            dataset.file_meta.TransferSyntaxUID = _syntax(dataset)
            count = 0
            for count, (pixels, said) in enumerate(_frames_of(dataset, header.frames), start=1):
                values = _values(
                    dataset, pixels, said, levels=header.levels[min(count, header.frames) - 1], window=window
                )
                if count > header.frames or values.shape != out.shape[1:]:
                    raise ValueError("its pixels are not of the size and number announced")
                _put(out[slot[file, count - 1]], values)
            if count != header.frames:
                raise ValueError(f"it holds {count} of {header.frames} frames")
    return out, digest.hexdigest()


def _frames_of(dataset: Dataset, count: int) -> Iterator[tuple[npt.NDArray[Any], dict[str, Any]]]:
    """Frames (H, W) or (H, W, C) and what pydicom says of them; YBR is turned to RGB."""
    decoder = get_decoder(dataset.file_meta.TransferSyntaxUID)
    # A single frame is asked for by its number: pydicom 3.0 cannot mend a wrong sign of JPEG 2000 on the other way.
    return decoder.iter_array(dataset, indices=[0] if count == 1 else None)


def _dtype_for(levels: list[_Levels], *, signed: bool) -> np.dtype[Any]:
    """Smallest type that holds all values exactly: int16, int32 (volumes) or uint8, uint16 (frames), else float32."""
    low, high = min(level.low for level in levels), max(level.high for level in levels)
    if all(level.whole for level in levels):
        for kind in (np.int16, np.int32) if signed else (np.uint8, np.uint16):
            if np.iinfo(kind).min <= low and high <= np.iinfo(kind).max:
                return np.dtype(kind)
    return np.dtype(np.float32)


def _put(out: npt.NDArray[Any], values: npt.NDArray[Any]) -> None:
    """Write values into a slice of the result, which must hold them exactly (whole) or as finite numbers."""
    if out.dtype.kind == "f":
        out[...] = values
        if not np.isfinite(out).all():
            raise ValueError("it holds NaN or infinite values")
        return
    limits = np.iinfo(out.dtype)
    if values.min() < limits.min or values.max() > limits.max:
        raise ValueError("it holds values beyond the bits announced")
    out[...] = values


def _values(
    dataset: Dataset,
    pixels: npt.NDArray[Any],
    said: dict[str, Any],
    *,
    levels: _Levels,
    window: tuple[float, float] | None,
) -> npt.NDArray[Any]:
    """One decoded frame as (C, H, W): rescaled, windowed, with white as the largest value, or in red, green, blue."""
    interpretation = str(said["photometric_interpretation"])
    if interpretation == "PALETTE COLOR":
        return np.moveaxis(_apply_palette(dataset, pixels)[..., :3], -1, 0)
    if pixels.ndim == 3:
        if interpretation != "RGB":
            raise ValueError(f"colours as {interpretation} are not read")
        return np.moveaxis(pixels, -1, 0)
    if interpretation not in ("MONOCHROME1", "MONOCHROME2"):
        raise ValueError(f"one sample per pixel as {interpretation} is not read")
    values = _rescale(dataset, pixels, levels)
    inverted = interpretation == "MONOCHROME1"
    if window is not None:
        values = apply_window(values, center=window[0], width=window[1])
        return 255 - values[None] if inverted else values[None]
    if inverted and not math.isfinite(levels.high):
        raise ValueError("floating-point pixels have no range to invert MONOCHROME1 in")
    # Whole numbers stay whole: the ends of the range are whole where the values are.
    ends = levels.low + levels.high
    return (int(ends) if levels.whole else ends) - values[None] if inverted else values[None]


def _rescale(dataset: Dataset, pixels: npt.NDArray[Any], levels: _Levels) -> npt.NDArray[Any]:
    """Stored values to those meant, int64 or float64: slope × stored + intercept, or the modality's look-up table."""
    if dataset.get("ModalityLUTSequence"):
        return apply_modality_lut(pixels, dataset).astype(np.int64)
    if not levels.whole:
        return pixels.astype(np.float64) * levels.slope + levels.intercept
    return pixels.astype(np.int64) * int(levels.slope) + int(levels.intercept)


def apply_window(values: npt.NDArray[Any], *, center: float, width: float) -> npt.NDArray[np.float32]:
    """Map values to 0…255 (float32) by a linear window, DICOM PS3.3 C.11.2.1.2.1; ``width`` is at least 1.

    At most center − 0.5 − (width − 1) / 2 becomes 0, more than center − 0.5 + (width − 1) / 2 becomes 255, and between
    y = ((x − (center − 0.5)) / (width − 1) + 0.5) × 255.
    """
    inner = values.astype(np.float64) - (center - 0.5)
    scaled = inner / (width - 1) + 0.5 if width > 1 else inner > 0
    return (np.clip(scaled, 0, 1) * 255).astype(np.float32)


def _apply_palette(dataset: Dataset, pixels: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Colours (H, W, 3) of palette entries (PS3.3 C.7.6.3.1.5); indices beyond its ends take its first or last."""
    if "RedPaletteColorLookupTableData" not in dataset:
        return apply_color_lut(pixels, dataset)  # in segments
    entries, start, bits = (int(value) for value in dataset.RedPaletteColorLookupTableDescriptor)
    entries = entries or 2**16
    index = np.clip(pixels.astype(np.int64) - start, 0, entries - 1)
    tables = []
    for color in ("Red", "Green", "Blue"):
        data = dataset[f"{color}PaletteColorLookupTableData"].value
        wide = len(data) >= 2 * entries  # entries of 8 bits may be kept in 16
        order = "<" if dataset.original_encoding[1] else ">"
        table = np.frombuffer(data, f"{order}u2" if wide else "u1")[:entries]
        tables.append(table.astype(np.uint8 if bits == 8 else np.uint16))
    return np.stack([table[index] for table in tables], axis=-1)


def _as_ras(slices: npt.NDArray[Any], affine: npt.NDArray[np.float64]) -> Volume:
    """Turn slices (n, H, W) with the LPS affine of (column, row, slice) to the nearest RAS orientation."""
    voxels = slices.transpose(2, 1, 0)
    to_ras = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
    turn = nib.orientations.io_orientation(to_ras)
    turned = nib.orientations.apply_orientation(voxels, turn)
    placed = to_ras @ nib.orientations.inv_ornt_aff(turn, voxels.shape)
    x, y, z = (float(step) for step in np.linalg.norm(placed[:3, :3], axis=0))
    return Volume(voxels=turned, spacing=(x, y, z), affine=placed)
