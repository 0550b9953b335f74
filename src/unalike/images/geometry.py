"""Resize, pad and crop images (channels, height, width)."""

from __future__ import annotations

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
    rows, columns = (min(a, b) for a, b in zip(plane.shape, (height, width), strict=True))
    top, left = (plane.shape[0] - rows) // 2, (plane.shape[1] - columns) // 2
    to_top, to_left = (height - rows) // 2, (width - columns) // 2
    result[to_top : to_top + rows, to_left : to_left + columns] = plane[top : top + rows, left : left + columns]
    return result


def fit_plane(plane: npt.NDArray[Any], size: int, *, fit: Fit, labels: bool = False) -> npt.NDArray[Any]:
    """Fit one plane into size × size.

    ``pad`` scales the longer side to ``size`` and pads with zeros, ``crop`` scales the shorter side and crops,
    ``stretch`` scales both sides alone.
    """
    if fit == "stretch":
        return resize_plane(plane, size, size, labels=labels)
    longest = max(plane.shape) if fit == "pad" else min(plane.shape)
    height, width = (max(1, round(side * size / longest)) for side in plane.shape)
    return center(resize_plane(plane, height, width, labels=labels), size, size)
