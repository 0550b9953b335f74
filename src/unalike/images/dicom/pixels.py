"""Pixels of a series: one volume, or single frames."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.processing import apply_color_lut, apply_modality_lut

from unalike.errors import PictureError, SettingsError
from unalike.images.dicom.headers import (
    _SKIP_SERIES,
    Series,
    _force,
    _Header,
    _Levels,
    _name,
    _read_header,
    _reading,
    _syntax,
)
from unalike.images.dicom.series import _is_stack, _mixture, _Stack, _stack
from unalike.images.volumes import Volume


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
