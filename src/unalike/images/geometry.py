"""Resize, pad and crop images (channels, height, width)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

Fit = Literal["pad", "stretch", "crop"]


def resize_plane(plane: npt.NDArray[Any], height: int, width: int, *, labels: bool = False) -> npt.NDArray[Any]:
    """Resize one (H, W) plane; bicubic with anti-aliasing for intensities, nearest for ``labels``.

    Works in float32, so that 8 and 16 bits go the same way; integers are rounded and clipped to their range.
    """
    if plane.shape == (height, width):
        return plane
    how = Image.Resampling.NEAREST if labels else Image.Resampling.BICUBIC
    resized = np.asarray(Image.fromarray(plane.astype(np.float32)).resize((width, height), how))
    if np.issubdtype(plane.dtype, np.integer):
        limits = np.iinfo(plane.dtype)
        resized = np.clip(np.rint(resized), limits.min, limits.max)
    result: npt.NDArray[Any] = resized.astype(plane.dtype)
    return result


def center(plane: npt.NDArray[Any], height: int, width: int) -> npt.NDArray[Any]:
    """Pad with zeros, or crop, around the middle to (height, width)."""
    result = np.zeros((height, width), dtype=plane.dtype)
    center_into(result, plane)
    return result


def center_into(target: npt.NDArray[Any], planes: npt.NDArray[Any]) -> None:
    """Copy planes (…, H, W) around the middle of ``target``, cropped where they are larger; the rest stays as it is."""
    sizes = tuple(zip(planes.shape[-2:], target.shape[-2:], strict=True))
    taken = tuple(slice(max(old - new, 0) // 2, max(old - new, 0) // 2 + min(old, new)) for old, new in sizes)
    put = tuple(slice(max(new - old, 0) // 2, max(new - old, 0) // 2 + min(old, new)) for old, new in sizes)
    target[..., put[0], put[1]] = planes[..., taken[0], taken[1]]


def fit_plane(plane: npt.NDArray[Any], size: int, *, fit: Fit, labels: bool = False) -> npt.NDArray[Any]:
    """Fit one plane into size × size.

    ``pad`` scales the longer side to ``size`` and pads with zeros, ``crop`` scales the shorter side and crops,
    ``stretch`` scales both sides alone.
    """
    height, width = fitted_shape(plane.shape, size, fit=fit)
    return center(resize_plane(plane, height, width, labels=labels), size, size)


def fitted_shape(shape: Sequence[int], size: int, *, fit: Fit) -> tuple[int, int]:
    """(height, width) to which `fit_plane` scales a plane before it pads or crops to size × size."""
    if fit == "stretch":
        return size, size
    longest = max(shape) if fit == "pad" else min(shape)
    height, width = (max(1, round(side * size / longest)) for side in shape)
    return height, width


def find_content(pixels: npt.NDArray[Any]) -> tuple[slice, slice] | None:
    """Rows and columns of what is not 0 in an image (C, H, W); None if all is 0."""
    lit = (pixels != 0).any(axis=0)
    rows, columns = np.flatnonzero(lit.any(axis=1)), np.flatnonzero(lit.any(axis=0))
    if not len(rows):
        return None
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)


@dataclass(frozen=True)
class Placement:
    """Where an image came from: source row = scale[0] · row + offset[0], and the same for columns.

    Coordinates are those of pixel centres, the first pixel's being 0. With it a slice can be written back into its
    volume, or a crop onto its picture.
    """

    source: tuple[int, int]
    """Height and width of the source's plane, in pixels."""
    scale: tuple[float, float] = (1.0, 1.0)
    offset: tuple[float, float] = (0.0, 0.0)

    @classmethod
    def of(cls, shape: Sequence[int]) -> Placement:
        """The plane itself: nothing was done yet."""
        return cls(source=(int(shape[0]), int(shape[1])))

    def _then(self, scale: Sequence[float], offset: Sequence[float]) -> Placement:
        """The next step's coordinates in those of this one: this ∘ (scale · x + offset)."""
        new_scale = tuple(a * b for a, b in zip(self.scale, scale, strict=True))
        new_offset = tuple(a * b + c for a, b, c in zip(self.scale, offset, self.offset, strict=True))
        return Placement(self.source, (new_scale[0], new_scale[1]), (new_offset[0], new_offset[1]))

    def cropped(self, top: int, left: int) -> Placement:
        """After rows above ``top`` and columns left of ``left`` were cut off (negative: padded)."""
        return self._then((1.0, 1.0), (top, left))

    def resized(self, before: Sequence[int], after: Sequence[int]) -> Placement:
        """After resizing from (height, width) ``before`` to ``after``: outer edges stay."""
        steps = [old / new for old, new in zip(before, after, strict=True)]
        return self._then(steps, [(step - 1) / 2 for step in steps])

    def centered(self, before: Sequence[int], after: Sequence[int]) -> Placement:
        """After `center` padded or cropped from (height, width) ``before`` to ``after``."""
        cut = [max(old - new, 0) // 2 - max(new - old, 0) // 2 for old, new in zip(before, after, strict=True)]
        return self.cropped(cut[0], cut[1])

    def fitted(self, shape: Sequence[int], size: int, *, fit: Fit) -> Placement:
        """After `fit_plane` brought a plane of ``shape`` to size × size."""
        inner = fitted_shape(shape, size, fit=fit)
        return self.resized(shape, inner).centered(inner, (size, size))

    def frame(self, height: int, width: int) -> tuple[int, int, int, int]:
        """First and end row, first and end column of what comes from the source in an image; the rest is padding."""
        edges = []
        for side, length, scale, offset in zip((height, width), self.source, self.scale, self.offset, strict=True):
            first, last = (-0.5 - offset) / scale, (length - 0.5 - offset) / scale
            edges += [min(max(math.ceil(first - 1e-6), 0), side), min(max(math.floor(last + 1e-6) + 1, 0), side)]
        return edges[0], edges[1], edges[2], edges[3]

    def as_record(self) -> dict[str, Any]:
        """As columns of a cohort's records."""
        return {"source_size": list(self.source), "scale": list(self.scale), "offset": list(self.offset)}

    def as_matrix(self, index: int) -> npt.NDArray[np.float64]:
        """(4, 4) matrix from (column, row, 0, 1) of the image to (column, row, slice ``index``, 1) of its stack."""
        matrix = np.eye(4)
        matrix[0, 0], matrix[1, 1] = self.scale[1], self.scale[0]
        matrix[:3, 3] = self.offset[1], self.offset[0], index
        return matrix
