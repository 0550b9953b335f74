"""Exact sums over pixels, from which correlations are made."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from unalike.records import IntArray

# 256 · 255² is below 2²⁴: float32 adds up the squares of so many 8-bit pixels without rounding.
EXACT_SQUARES = 256


def sum_pixels(images: npt.NDArray[Any]) -> tuple[IntArray, IntArray]:
    """Σa and Σa² of each image and channel: two int64 arrays (n, C) from unsigned images (n, C, H, W)."""
    flat = images.reshape(*images.shape[:2], images.shape[2] * images.shape[3])
    return flat.sum(axis=2, dtype=np.int64), sum_squares(images)


def sum_squares(images: npt.NDArray[Any]) -> IntArray:
    """Σa² of each image and channel, int64 (n, C), from unsigned images (n, C, H, W); exact."""
    flat = images.reshape(*images.shape[:2], images.shape[2] * images.shape[3])
    squares = np.empty(flat.shape[:2], np.int64)
    whole = flat.shape[2] // EXACT_SQUARES * EXACT_SQUARES if flat.dtype == np.uint8 else 0
    for row, image in enumerate(flat):  # one image at a time: the wide copy stays in cache
        runs = image[:, :whole].astype(np.float32).reshape(len(image), -1, EXACT_SQUARES)
        rest = image[:, whole:].astype(np.int64)
        squares[row] = np.einsum("crp,crp->cr", runs, runs).sum(axis=1, dtype=np.float64).astype(np.int64)
        squares[row] += np.einsum("cp,cp->c", rest, rest)
    return squares
