"""Volumes in (NIfTI, MetaImage, NRRD), oriented alike; slices out; resampling and cropping in millimetres.

Reading is made for threads: a file's bytes are read once, and what takes time (zlib, hashlib, NumPy on large blocks)
lets other threads run meanwhile. Voxels stay in the file's own integers, because a copy as float32 costs more
than everything else but the decompression.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import nibabel as nib
import numpy as np
import numpy.typing as npt
from scipy import ndimage
from zlib_ng import zlib_ng as zlib  # the same interface, more than twice as fast

from unalike.errors import PictureError, SettingsError
from unalike.images.quiet import QUIET
from unalike.records import FloatArray

Axis = Literal["axial", "coronal", "sagittal"]
Scalar = TypeVar("Scalar", bound=np.generic)
Voxels = npt.NDArray[Any]  # uint8, uint16, int8, int16, int32 or float32, whichever holds what the file holds

_ITK = {".mha": "MetaImageIO", ".mhd": "MetaImageIO", ".nrrd": "NrrdImageIO"}
SUFFIXES = (".nii", ".nii.gz", *_ITK)
# Index of the slicing axis in a volume oriented right–anterior–superior (RAS).
_AXES = {"sagittal": 0, "coronal": 1, "axial": 2}
# 2³¹ voxels of float32 are 8 GiB: more is a damaged header or needs a larger machine.
LARGEST_VOLUME = 2**31
# Millimetres. Beyond is a header in other units or a damaged one, and would shrink everybody else's images.
SMALLEST_SPACING, LARGEST_SPACING = 0.005, 50.0

_KEPT = frozenset(np.dtype(name) for name in ("uint8", "int8", "uint16", "int16", "int32"))
_HEADER_BYTES = 544  # the longer of the two NIfTI headers, with the four bytes that follow it
_SLACK = 2**20  # bytes that may follow the voxels
_MOST_INFLATED = 1032  # deflate makes of one byte at most this many (zlib's technical notes)
_PIECE = 2**18  # elements (or compressed bytes) at a time: stays in the processor's cache, yet seldom takes the lock
_GROUP = 8  # voxels that are looked at together: eight bytes of a comparison make one 64-bit word
_SAMPLE = 2**14  # values that are sorted to find where a percentile lies


@dataclass(frozen=True)
class Volume:
    """Voxels (X, Y, Z) in RAS orientation, their spacing in millimetres, and the affine (4, 4) to RAS millimetres.

    ``voxels`` has the file's own integer type up to int32, else float32; it may be a view with any strides.
    ``digest`` is the SHA-256 of the bytes of the file (of the header, then the voxels, where these are two files),
    or empty for a volume that was not read from a file; what is resampled or cropped keeps it.
    """

    voxels: Voxels
    spacing: tuple[float, float, float]
    affine: FloatArray
    digest: str = ""


@dataclass(frozen=True)
class _Header:
    """What a file says of its voxels before they are read: 3 or 4 sides, and the affine to RAS as stored."""

    shape: tuple[int, ...]
    affine: FloatArray
    dtype: np.dtype[Any]
    offset: int = 0
    slope: float = 1.0
    inter: float = 0.0


def same_grid(a: Volume, b: Volume) -> bool:
    """Whether two volumes have the same shape, spacing and place (to a hundredth of a millimetre)."""
    return a.voxels.shape == b.voxels.shape and np.allclose(a.affine, b.affine, atol=1e-2, rtol=0)


def read_extent(path: Path, *, component: int | None = None) -> tuple[tuple[int, int, int], tuple[float, float, float]]:
    """Shape and spacing (millimetres) of a volume in RAS orientation, from the header alone.

    ``component`` is that of `read_volume`: without it, a file of several volumes is refused.
    Raises `PictureError` where `read_volume` would, unless only the voxels are damaged.
    """
    with _explained(path):
        if path.suffix.lower() in _ITK:
            header = _itk_header(path, _itk_reader(path))
        else:
            with path.open("rb") as stream:
                header = _nifti_header(path, stream.read(_PIECE))
        _check_header(path, header, component)
        return _ras_grid(header)[:2]


def read_volume(path: Path, *, component: int | None = None) -> Volume:
    """Read one volume, turned to RAS.

    ``component`` chooses one volume of a file that holds several along a last, fourth axis, as the multi-modal tasks
    of the Medical Segmentation Decathlon do; without it such a file is refused.

    Raises `PictureError` if the file is truncated or damaged, not 3D, too large, or holds complex, coloured, NaN or
    infinite voxels.
    """
    with _explained(path):
        read = _read_itk if path.suffix.lower() in _ITK else _read_nifti
        header, stored, digest = read(path, component)
        voxels = _as_voxels(stored, header)
        # Minimum and maximum carry NaN and infinities along, and need no memory.
        if voxels.dtype == np.float32 and not (np.isfinite(voxels.min()) and np.isfinite(voxels.max())):
            raise PictureError(f"{path} holds NaN or infinite voxels. Clean it or pass --on-bad-file skip.")
        _, spacing, affine, orientation = _ras_grid(header)
        turned = nib.orientations.apply_orientation(voxels, orientation)
        return Volume(voxels=turned, spacing=spacing, affine=affine, digest=digest)


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Whatever goes wrong inside becomes a `PictureError` of one line that names the file; nothing else is said."""
    try:
        with QUIET:
            yield
    except PictureError:
        raise
    except Exception as error:  # nibabel, zlib and SimpleITK each raise their own on damaged files
        lines = str(error).strip().splitlines()
        reason = lines[0] if lines else type(error).__name__
        raise PictureError(_unreadable(path, reason)) from error


def _unreadable(path: Path, reason: str) -> str:
    return f"{path} cannot be read ({reason}). Remove the file or pass --on-bad-file skip."


def _check_header(path: Path, header: _Header, component: int | None) -> None:
    """Refuse what cannot be read, before memory is taken for it."""
    shape = header.shape
    several = len(shape) == 4 and shape[3] != 1
    if len(shape) not in (3, 4) or (several and component is None):
        raise PictureError(
            f"{path} is {len(shape)}D {shape}, but one 3D volume per file is needed. Split it into 3D files."
        )
    if min(shape) < 1 or math.prod(shape) > LARGEST_VOLUME:
        raise PictureError(f"{path} announces {shape} voxels. Remove the file or pass --on-bad-file skip.")
    count = shape[3] if several else 1
    if component is not None and not 0 <= component < count:
        raise PictureError(f"{path} has no component {component}; it holds {count}. Choose one from 0 to {count - 1}.")
    if header.dtype.kind == "c":
        raise PictureError(f"{path} holds complex voxels. Save their magnitude.")
    if header.dtype.kind not in "biuf":
        raise PictureError(f"{path} holds coloured voxels. Save it with one number per voxel.")
    if not (np.isfinite(header.affine).all() and abs(np.linalg.det(header.affine[:3, :3])) > 0):
        raise PictureError(f"{path} does not say where its voxels lie (its affine is singular). Mend its header.")
    spacing = _steps(header.affine)
    if not all(SMALLEST_SPACING <= step <= LARGEST_SPACING for step in spacing):
        raise PictureError(f"{path} gives a voxel spacing of {spacing} mm. Mend its header.")


def _ras_grid(header: _Header) -> tuple[tuple[int, int, int], tuple[float, float, float], FloatArray, Any]:
    """Shape, spacing and affine after turning to the nearest RAS, and nibabel's orientation that turns."""
    stored = header.shape[:3]
    orientation = nib.orientations.io_orientation(header.affine)
    affine = np.asarray(header.affine @ nib.orientations.inv_ornt_aff(orientation, stored), dtype=np.float64)
    back = np.argsort(orientation[:, 0])
    x, y, z = (int(stored[index]) for index in back)
    return (x, y, z), _steps(affine), affine, orientation


def _steps(affine: FloatArray) -> tuple[float, float, float]:
    """Spacing in millimetres. Headers store float32, so that is how far the square root can be trusted."""
    x, y, z = (float(np.float32(step)) for step in np.sqrt((affine[:3, :3] ** 2).sum(axis=0)))
    return x, y, z


def _is_gzip(path: Path) -> bool:
    return path.name.lower().endswith(".gz")


def _nifti_header(path: Path, start: bytes) -> _Header:
    """Header of a NIfTI-1 or NIfTI-2 file from its first bytes (compressed, if the file is)."""
    if not start:
        raise PictureError(_unreadable(path, "it is empty"))
    if _is_gzip(path):
        start = gzip.GzipFile(fileobj=io.BytesIO(start)).read(_HEADER_BYTES)
    kinds = (nib.Nifti1Header, nib.Nifti2Header)
    kind: Any = next((kind for kind in kinds if kind.may_contain_header(start)), None)
    if kind is None:
        raise PictureError(_unreadable(path, "it does not begin like a NIfTI file"))
    fields = kind(start[: kind.template_dtype.itemsize])
    slope, inter = fields.get_slope_inter()
    return _Header(
        shape=tuple(int(side) for side in fields.get_data_shape()),
        affine=np.asarray(fields.get_best_affine(), dtype=np.float64),
        dtype=fields.get_data_dtype(),
        offset=int(fields.get_data_offset()),
        slope=1.0 if slope is None else slope,
        inter=0.0 if inter is None else inter,
    )


def _read_nifti(path: Path, component: int | None) -> tuple[_Header, Voxels, str]:
    """Header, voxels (X, Y, Z) as the file stores them, and the digest."""
    with path.open("rb") as stream:
        header = _nifti_header(path, stream.read(_PIECE))
        _check_header(path, header, component)
        total = math.prod(header.shape) * header.dtype.itemsize
        stored = stream.seek(0, io.SEEK_END)
        if header.offset < 0 or header.offset + total > stored * (_MOST_INFLATED if _is_gzip(path) else 1):
            raise PictureError(_unreadable(path, "it is cut short"))
        if stored > header.offset + total + total // 64 + 16 * _SLACK:
            raise PictureError(_unreadable(path, "it is much longer than its header announces"))
        stream.seek(0)
        content = np.empty(stored, np.uint8)
        content = content[: stream.readinto(content.data)]
    digest = hashlib.sha256(content.data).hexdigest()
    size = math.prod(header.shape[:3]) * header.dtype.itemsize
    begin = header.offset + (component or 0) * size
    if _is_gzip(path):
        chosen = _inflate(path, content, begin=begin, end=begin + size, total=header.offset + total)
    else:
        chosen = content[begin : begin + size]
    if chosen.ctypes.data % header.dtype.alignment:
        chosen = chosen.copy()
    return header, chosen.view(header.dtype).reshape(header.shape[:3], order="F"), digest


def _inflate(path: Path, content: npt.NDArray[np.uint8], *, begin: int, end: int, total: int) -> npt.NDArray[np.uint8]:
    """Bytes ``begin`` to ``end`` of a gzip file (RFC 1952) of one or several members.

    ``total`` bytes are decompressed and no more than `_SLACK` beyond, whatever the file holds. Anything after a
    complete member is ignored once ``total`` is reached; a member that breaks off is refused.
    """
    chosen = np.empty(end - begin, np.uint8)
    member, position, made = zlib.decompressobj(31), 0, 0
    while made < total or not member.eof:
        piece = content[position : position + _PIECE].data
        if not piece:
            raise PictureError(_unreadable(path, "it is cut short"))
        if member.eof:  # another member, or the zeros that pad to the end of a tape block
            used = np.flatnonzero(content[position : position + _PIECE])
            if not used.size or used[0]:
                position += int(used[0]) if used.size else len(piece)
                continue
            member = zlib.decompressobj(31)
        grown = member.decompress(piece, max(total - made, 1))
        position += len(piece) - len(member.unconsumed_tail) - len(member.unused_data)
        low, high = max(made, begin), min(made + len(grown), end)
        if low < high:
            chosen[low - begin : high - begin] = np.frombuffer(grown, np.uint8)[low - made : high - made]
        made += len(grown)
        if made > total:
            # More than announced follows: look whether the file ends well, but not for long.
            rest = member.decompress(content[position : position + _SLACK].data, _SLACK)
            if member.eof or len(rest) == _SLACK or position + _SLACK < len(content):
                break
            raise PictureError(_unreadable(path, "it is cut short"))
    return chosen


def _as_voxels(stored: Voxels, header: _Header) -> Voxels:
    """Voxels in this machine's byte order: as they are if they are small integers, else float32, scaled."""
    plain = header.slope == 1 and header.inter == 0
    native = stored.dtype.newbyteorder("=")
    if plain and native == np.bool_:
        return stored.view(np.uint8)
    if plain and (native in _KEPT or native == np.float32):
        return stored.astype(native, copy=False)
    line, restore = _as_line(stored)
    result = np.empty(line.size, np.float32)
    with np.errstate(over="ignore"):  # what does not fit becomes infinite, and is refused
        for part in _pieces(line.size):
            exact = line[part].astype(np.float64)
            if not plain:
                exact *= header.slope
                exact += header.inter
            result[part] = exact
    return restore(result)


def _itk() -> Any:
    """SimpleITK, loaded when first needed: most cohorts are NIfTI, and it takes half a second."""
    import SimpleITK as toolkit  # noqa: N813

    toolkit.ProcessObject.SetGlobalWarningDisplay(False)  # a damaged file is told of once, by us
    return toolkit


def _itk_reader(path: Path) -> Any:
    """A SimpleITK reader that has read the header of a MetaImage or NRRD file."""
    _itk_files(path)
    reader = _itk().ImageFileReader()
    reader.SetFileName(str(path))
    reader.SetImageIO(_ITK[path.suffix.lower()])
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:  # its words are many lines about its own source
        raise PictureError(_unreadable(path, "SimpleITK finds its header damaged")) from error
    return reader


def _itk_files(path: Path) -> tuple[Path, ...]:
    """The file, and the one beside it that holds the voxels if the header names one.

    Looks for what makes the MetaImage library print to standard error, which nothing can silence for one thread alone:
    a header without its sizes or type, and voxels that break off.
    """
    with path.open("rb") as stream:
        start = stream.read(_PIECE).decode("latin-1")
    if not start:
        raise PictureError(_unreadable(path, "it is empty"))
    if path.suffix.lower() == ".nrrd":
        found = re.search(r"^data ?file:[ =]*(.*?)\r?$", start.partition("\n\n")[0], re.M | re.I)
        named = found[1] if found else "LOCAL"
    else:
        text, mark, after = start.partition("ElementDataFile")
        fields = dict(re.findall(r"^\s*(\w+)\s*=\s*(.*?)\s*$", text, re.M))
        if not mark or not {"NDims", "DimSize", "ElementType"} <= set(fields):
            raise PictureError(_unreadable(path, "it does not begin like a MetaImage file"))
        line = after.partition("\n")[0]
        named = line.strip(" \t\r=")
        begin = len(text) + len(mark) + len(line) + 1 if named == "LOCAL" else 0
        _refuse_short(path, fields, (path.stat().st_size if begin else _beside(path, named).stat().st_size) - begin)
    return (path,) if named == "LOCAL" else (path, _beside(path, named))


def _beside(path: Path, named: str) -> Path:
    """A file of voxels in the same folder; lists and patterns of files, and other folders, are refused."""
    if named.startswith("LIST") or "%" in named or Path(named).name != named or not (path.parent / named).is_file():
        raise PictureError(_unreadable(path, f"its voxels should be in one file beside it, not in {named[:100]!r}"))
    return path.parent / named


def _refuse_short(path: Path, fields: dict[str, str], stored: int) -> None:
    """Refuse a MetaImage file with fewer bytes of voxels than its header announces."""
    widths = {"CHAR": 1, "SHORT": 2, "INT": 4, "LONG": 4, "LONG_LONG": 8, "FLOAT": 4, "DOUBLE": 8}
    kind = fields.get("ElementType", "").removeprefix("MET_").replace("UCHAR", "CHAR").replace("ULONG", "LONG")
    kind = kind.replace("USHORT", "SHORT").replace("UINT", "INT")
    if fields.get("CompressedData", "False").lower() == "true":
        needed = int(fields.get("CompressedDataSize", 0))
    elif fields.get("BinaryData", "True").lower() == "true":
        channels = int(fields.get("ElementNumberOfChannels", 1))
        needed = math.prod(int(side) for side in fields["DimSize"].split()) * channels * widths.get(kind, 1)
    else:
        needed = 0
    if stored < needed:
        raise PictureError(_unreadable(path, "it is cut short"))


def _itk_header(path: Path, reader: Any) -> _Header:
    """What the header says, with ITK's left–posterior–superior millimetres turned into RAS ones."""
    sides = tuple(int(side) for side in reader.GetSize())
    if reader.GetNumberOfComponents() > 1 and len(sides) == 3:
        sides += (int(reader.GetNumberOfComponents()),)
    name = str(_itk().GetPixelIDValueAsString(reader.GetPixelIDValue()))
    bits = re.search(r"\d+", name)
    kind = "c" if "complex" in name else "f" if "float" in name else "u" if "unsigned" in name else "i"
    width = int(bits[0]) // 8 if bits else 1
    dimensions = reader.GetDimension()
    affine = np.eye(4)
    if len(sides) >= 3:
        turn = np.reshape(reader.GetDirection(), (dimensions, dimensions))[:3, :3]
        affine[:3, :3] = turn * np.asarray(reader.GetSpacing()[:3])
        affine[:3, 3] = reader.GetOrigin()[:3]
        affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
    header = _Header(shape=sides, affine=affine, dtype=np.dtype(f"{kind}{width * (2 if kind == 'c' else 1)}"))
    stored = sum(file.stat().st_size for file in _itk_files(path))
    if math.prod(sides) * width > stored * _MOST_INFLATED:
        raise PictureError(_unreadable(path, f"it announces {sides} voxels, more than it can hold"))
    return header


def _read_itk(path: Path, component: int | None) -> tuple[_Header, Voxels, str]:
    """Header, voxels (X, Y, Z) as the file stores them, and the digest."""
    reader = _itk_reader(path)
    header = _itk_header(path, reader)
    _check_header(path, header, component)
    hasher = hashlib.sha256()
    for file in _itk_files(path):
        hasher.update(file.read_bytes())
    try:
        image = reader.Execute()
    except RuntimeError as error:
        raise PictureError(_unreadable(path, "SimpleITK finds its voxels damaged")) from error
    array: Voxels = _itk().GetArrayFromImage(image)
    if len(header.shape) == 4:
        last = 0 if reader.GetDimension() == 4 else -1  # a fourth axis is NumPy's first, the parts of a vector its last
        array = np.ascontiguousarray(np.take(array, component or 0, axis=last))
    return header, array.transpose(2, 1, 0), hasher.hexdigest()


def slice_volume(volume: Volume, axis: Axis) -> tuple[Voxels, tuple[float, float]]:
    """All slices (n, H, W) along an anatomical axis, and the (row, column) spacing in millimetres.

    Slices are seen as radiologists see them: anterior (or superior) up, the patient's right on the left;
    sagittal ones with anterior on the left. Slice 0 is the lowest, hindmost, or leftmost. The slices are a view
    of the volume's voxels: copy what is kept.
    """
    along, column, row = _plane(axis)
    slices = np.moveaxis(volume.voxels, along, 0)  # (n, first in-plane axis, second in-plane axis)
    return slices[:, ::-1, ::-1].transpose(0, 2, 1), (volume.spacing[row], volume.spacing[column])


def slice_affine(volume: Volume, axis: Axis) -> FloatArray:
    """Matrix (4, 4) from (column, row, slice, 1) of the stack that `slice_volume` returns to RAS millimetres."""
    along, column, row = _plane(axis)
    places = np.zeros((4, 4))
    places[along, 2] = places[3, 3] = 1
    for index, side in ((0, column), (1, row)):
        places[side, index] = -1
        places[side, 3] = volume.voxels.shape[side] - 1
    return np.asarray(volume.affine @ places, dtype=np.float64)


def _plane(axis: Axis) -> tuple[int, int, int]:
    """Axes of a RAS volume that become slices, columns and rows."""
    column, row = (index for index in range(3) if index != _AXES[axis])
    return _AXES[axis], column, row


def scale_intensity(voxels: Voxels, *, percentiles: tuple[float, float], bits: Literal[8, 16] = 8) -> Voxels:
    """Scale a volume so that these percentiles of its voxels become 0 and 255 (or 65,535); the rest is clipped.

    A constant volume becomes 0. Percentiles interpolate linearly, and all is computed as in float64 and rounded half
    to even, so the result depends on the values alone and not on the type that holds them. It has the strides of
    ``voxels``.
    """
    return _scale_to_16(voxels, percentiles) if bits == 16 else _scale_to_8(voxels, percentiles)


def _scale_to_16(voxels: Voxels, percentiles: tuple[float, float]) -> npt.NDArray[np.uint16]:
    line, restore = _as_line(voxels)
    low, high = _percentiles(line, percentiles, least=float(line.min()), left_out=0)
    result = np.zeros(line.size, np.uint16)
    if high > low:
        for part in _pieces(line.size):
            exact = (line[part].astype(np.float64) - low) * (65_535.0 / (high - low))
            result[part] = np.rint(np.clip(exact, 0, 65_535))
    return restore(result)


def _scale_to_8(voxels: Voxels, percentiles: tuple[float, float]) -> npt.NDArray[np.uint8]:
    line, restore = _as_line(voxels)
    least = line.min()
    whole = line.size // _GROUP * _GROUP
    result = np.empty(line.size, np.uint8)
    # Which groups of eight voxels hold more than background. The result's own memory serves for the comparison.
    np.greater(line, least, out=result.view(np.bool_))
    groups = np.flatnonzero(result[:whole].view(np.uint64) != 0)
    chosen = np.empty(groups.size * _GROUP + line.size - whole, line.dtype)
    head = chosen[: groups.size * _GROUP].reshape(-1, _GROUP)
    np.take(line[:whole].reshape(-1, _GROUP), groups, axis=0, out=head, mode="clip")  # "clip" spares a buffered copy
    chosen[head.size :] = line[whole:]
    low, high = _percentiles(chosen, percentiles, least=float(least), left_out=line.size - chosen.size)
    result[:] = 0
    if high > low:
        table = _table(chosen, low, high)
        for part in _pieces(groups.size, _PIECE // _GROUP):
            result[:whole].view(np.uint64)[groups[part]] = _scaled(head[part].ravel(), low, high, table).view(np.uint64)
        result[whole:] = _scaled(chosen[head.size :], low, high, table)
    return restore(result)


def _table(line: Voxels, low: float, high: float) -> npt.NDArray[np.uint8] | None:
    """Gray levels of all bit patterns of an 8- or 16-bit integer type, where ``line`` has more values than these."""
    bits = 8 * line.dtype.itemsize
    if line.dtype.kind not in "iu" or bits > 16 or line.size <= 2**bits:
        return None
    return _scaled(np.arange(2**bits, dtype=f"u{line.dtype.itemsize}").view(line.dtype), low, high, None)


def _scaled(line: Voxels, low: float, high: float, table: npt.NDArray[np.uint8] | None) -> npt.NDArray[np.uint8]:
    """Values as gray levels, looked up in the table if there is one."""
    result = np.empty(line.size, np.uint8)
    if table is not None:
        return np.take(table, line.view(f"u{line.dtype.itemsize}"), out=result, mode="clip")
    exact = line.astype(np.float64)
    exact -= low
    exact *= 255.0 / (high - low)
    np.clip(exact, 0, 255, out=exact)
    np.rint(exact, out=exact)
    result[:] = exact
    return result


def _as_line(array: Voxels) -> tuple[Voxels, Callable[[npt.NDArray[Scalar]], npt.NDArray[Scalar]]]:
    """The elements in the order of memory (1D), and a function that gives such a line the array's shape again.

    A view wherever axes were only turned or flipped.
    """
    flips = tuple(slice(None, None, -1 if step < 0 else 1) for step in array.strides)
    order = sorted(range(array.ndim), key=lambda axis: -abs(array.strides[axis]))
    plain = array[flips].transpose(order)
    back = np.argsort(order)

    def restore(line: npt.NDArray[Scalar]) -> npt.NDArray[Scalar]:
        return line.reshape(plain.shape).transpose(back)[flips]

    return plain.reshape(-1), restore


def _pieces(size: int, step: int = _PIECE) -> Iterator[slice]:
    return (slice(begin, min(begin + step, size)) for begin in range(0, size, step))


def _percentiles(line: Voxels, percentiles: tuple[float, float], *, least: float, left_out: int) -> tuple[float, float]:
    """Percentiles of ``line`` and of ``left_out`` more voxels that are all at the minimum, ``least``.

    The same to the last bit as ``np.percentile`` of all these values as float64 gives.
    """
    last = left_out + line.size - 1
    low, high = (_percentile(line, last * (percentile / 100), last, least, left_out) for percentile in percentiles)
    return low, high


def _percentile(line: Voxels, place: float, last: int, least: float, left_out: int) -> float:
    rank = min(math.floor(place), last)
    following = min(rank + 1, last)
    if following < left_out:
        return least
    a, b = _in_order(line, max(rank - left_out, 0), following - left_out)
    return _between(least if rank < left_out else a, b, place - rank)


def _in_order(values: Voxels, rank: int, following: int) -> tuple[float, float]:
    """The two values that would stand at these neighbouring places if all were sorted.

    A sorted sample says between which bounds they lie; then it is enough to count what is below and to sort
    what is between (Floyd and Rivest 1975, Expected time bounds for selection). If the sample misled, all are sorted.
    """
    few = np.sort(values[:: max(1, values.size // _SAMPLE)])
    share = rank / values.size
    margin = 4 + math.ceil(6 * math.sqrt(few.size * share * (1 - share)))  # standard errors; neighbours are alike
    first, last = int(share * few.size) - margin, int(share * few.size) + margin
    low = few[first] if first >= 0 else values.min()
    high = few[last] if last < few.size else values.max()
    if rank > values.size // 2:  # the shorter end first: percentiles in use are near one
        end = values[values >= low]
        between, skipped = end[end <= high], values.size - end.size
    else:
        end = values[values <= high]
        between = end[end >= low]
        skipped = end.size - between.size
    if not skipped <= rank <= following < skipped + between.size:
        between, skipped = values, 0
    ordered = np.partition(between, sorted({rank - skipped, following - skipped}))
    return float(ordered[rank - skipped]), float(ordered[following - skipped])


def _between(a: float, b: float, weight: float) -> float:
    """Linear interpolation, in the order of operations of NumPy's ``lerp``, which keeps it monotonic."""
    return b - (b - a) * (1 - weight) if weight >= 0.5 else a + (b - a) * weight


def resample_volume(volume: Volume, *, spacing: tuple[float, float, float], labels: bool) -> Volume:
    """The volume on a grid of another ``spacing`` (x, y, z; millimetres) with the same axes.

    The outer corner of voxel (0, 0, 0) stays, and each side has round(extent / spacing) voxels, at least one.
    Intensities are interpolated linearly (float32), ``labels`` keep the value of the nearest voxel and their type.
    Outside the outermost voxel centres these voxels' values go on. Nothing is smoothed before shrinking. Prostate MRI,
    for one, is brought to 0.5 × 0.5 × 3 mm before it is cropped (de Wilde et al. 2023, section 3.3.1).

    Raises `SettingsError` if a spacing is not within `SMALLEST_SPACING` and `LARGEST_SPACING`, or makes a volume of
    more than `LARGEST_VOLUME` voxels.
    """
    if not all(SMALLEST_SPACING <= step <= LARGEST_SPACING for step in spacing):
        raise SettingsError(f"A voxel spacing of {spacing} mm is none. Choose {SMALLEST_SPACING} to {LARGEST_SPACING}.")
    ratios = np.asarray(spacing) / np.asarray(volume.spacing)
    shape = tuple(max(1, round(side / ratio)) for side, ratio in zip(volume.voxels.shape, ratios.tolist(), strict=True))
    _refuse_large(shape)
    places = np.diag([*ratios, 1.0])
    places[:3, 3] = (ratios - 1) / 2  # of the new first centre, in old voxels
    voxels = _interpolate(volume.voxels, places, shape, labels=labels)
    return Volume(voxels=voxels, spacing=spacing, affine=volume.affine @ places, digest=volume.digest)


def resample_like(volume: Volume, *, like: Volume | tuple[FloatArray, tuple[int, int, int]], labels: bool) -> Volume:
    """The volume on the grid of another, given as a `Volume` or as (affine (4, 4) to RAS millimetres, shape).

    Linear interpolation of intensities (float32), nearest voxel for ``labels``. Where the volume has no voxel
    (more than half a voxel outside the outermost centres) the result is 0.

    Raises `SettingsError` if the grid has no room for a voxel, or for too many.
    """
    affine, shape = (like.affine, like.voxels.shape) if isinstance(like, Volume) else like
    _refuse_large(shape)
    if min(shape) < 1 or not abs(np.linalg.det(affine[:3, :3])) > 0:
        raise SettingsError(f"A grid of {tuple(shape)} voxels with a singular affine or no voxel cannot be filled.")
    places = np.linalg.solve(volume.affine, affine).astype(np.float64)
    voxels = _interpolate(volume.voxels, places, shape, labels=labels)
    sides = [np.arange(side, dtype=np.float64) for side in shape]
    for x in range(shape[0]):  # plane by plane: coordinates of the whole grid would take more memory than the volume
        inside = np.ones(shape[1:], bool)
        for row, side in zip(places[:3], volume.voxels.shape, strict=True):
            place = row[0] * x + row[3] + (row[1] * sides[1])[:, None] + row[2] * sides[2]
            # The millionth of a voxel forgives rounding where both grids have the same outer face.
            inside &= (place >= -0.5 - 1e-6) & (place <= side - 0.5 + 1e-6)
        voxels[x][~inside] = 0
    return Volume(voxels=voxels, spacing=_steps(affine), affine=np.asarray(affine, np.float64), digest=volume.digest)


def _refuse_large(shape: Sequence[int]) -> None:
    if math.prod(shape) > LARGEST_VOLUME:
        raise SettingsError(f"A grid of {tuple(shape)} voxels is too large. Choose a larger voxel spacing.")


def _interpolate(voxels: Voxels, places: FloatArray, shape: Sequence[int], *, labels: bool) -> Voxels:
    """Values at ``places`` (4, 4; from new to old voxel indices), the edges going on outside."""
    result = np.empty(tuple(shape), voxels.dtype if labels else np.float32)
    source = voxels if labels else voxels.astype(np.float32, copy=False)
    order = 0 if labels else 1
    ndimage.affine_transform(source, places[:3, :3], places[:3, 3], output=result, order=order, mode="nearest")
    return result


def crop_volume(volume: Volume, *, shape: tuple[int, int, int]) -> Volume:
    """The middle (x, y, z) voxels; sides that are shorter are padded with zeros. The affine stays true.

    Of an odd rest, the first side gets the smaller half. Raises `SettingsError` if a side is below 1 or all
    together too large.
    """
    if min(shape) < 1:
        raise SettingsError(f"A volume of {shape} voxels cannot be cut out. Choose sides of at least 1.")
    _refuse_large(shape)
    result = np.zeros(shape, volume.voxels.dtype)
    old, new, shift = [], [], []
    for side, wanted in zip(volume.voxels.shape, shape, strict=True):
        both, skipped, padded = min(side, wanted), max(side - wanted, 0) // 2, max(wanted - side, 0) // 2
        old.append(slice(skipped, skipped + both))
        new.append(slice(padded, padded + both))
        shift.append(skipped - padded)
    result[tuple(new)] = volume.voxels[tuple(old)]
    affine = volume.affine.copy()
    affine[:3, 3] = volume.affine[:3, :3] @ shift + volume.affine[:3, 3]
    return replace(volume, voxels=result, affine=affine)


# Millimetres along each axis that a scan of a whole head covers, and a scan of its brain alone does not.
_WHOLE_HEAD = 150.0
_MOST_BACKGROUND = 0.7
_LEAST_FACE = 0.1


def shows_face(volume: Volume) -> bool:
    """Whether a volume seems to be a scan of a whole head with its face. A basis for a warning, and for no more.

    It is a rule of thumb without a known error rate: the field of view is at least 150 mm along each axis, fewer
    than 70 % of the voxels are at the minimum (after removal of the skull more are), and of the front lower part
    (front third, lower third) at least 10 % are above a tenth of the way from the minimum to the 99th percentile.
    Another part of the body can pass it, and a face behind noise, or one blurred, too.
    """
    extent = [side * step for side, step in zip(volume.voxels.shape, volume.spacing, strict=True)]
    if min(extent) < _WHOLE_HEAD:
        return False
    few = volume.voxels[tuple(slice(None, None, max(1, side // 64)) for side in volume.voxels.shape)]
    least, bright = float(few.min()), float(np.percentile(few, 99))
    if (few == few.min()).mean() >= _MOST_BACKGROUND:
        return False
    front, low = few.shape[1] * 2 // 3, -(-few.shape[2] // 3)
    return bool((few[:, front:, :low] > least + (bright - least) / 10).mean() >= _LEAST_FACE)
