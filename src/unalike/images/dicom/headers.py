"""What one DICOM file says of itself, from its header: place, levels, and why it cannot be used."""

from __future__ import annotations

import math
import re
import struct
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
from pydicom.datadict import tag_for_keyword
from pydicom.dataset import Dataset, FileDataset
from pydicom.errors import InvalidDicomError
from pydicom.filereader import read_file_meta_info, read_partial
from pydicom.pixels.decoders.base import get_decoder
from pydicom.tag import BaseTag
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from unalike.errors import PictureError
from unalike.images.quiet import QUIET
from unalike.images.volumes import LARGEST_VOLUME

_FARTHEST = 1e6  # mm: what is beyond is damaged, and its distances would overflow
# A deflated file can unpack to a thousand times its size.
LARGEST_UNPACKED = 2**30
_SKIP_FILE = "Remove the file or pass --on-bad-file skip."
_SKIP_SERIES = "Mend or remove it, or pass --on-bad-file skip."
_UNDEFINED = 0xFFFFFFFF
_DIRECTORY = 0x00041220
_PIXELS = {0x7FE00008: "FloatPixelData", 0x7FE00009: "DoubleFloatPixelData", 0x7FE00010: "PixelData"}
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
    except RuntimeError:  # pydicom knows no decoder of this name
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
