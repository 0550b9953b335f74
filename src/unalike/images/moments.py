"""Exact sums over pixels, from which correlations are made."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from unalike.records import IntArray

# 256 · 255² is below 2²⁴: float32 adds up the squares of so many 8-bit pixels without rounding.
EXACT_SQUARES = 256
# Pixels widened at once: few enough for the cache, many enough that threads seldom wait for one another.
AT_ONCE = 2**20


def sum_pixels(images: npt.NDArray[Any]) -> tuple[IntArray, IntArray]:
    """Σa and Σa² of each image and channel: two int64 arrays (n, C) from unsigned images (n, C, H, W); exact."""
    sums = np.empty(images.shape[:2], np.int64)
    return sums, _sum_up(images, sums)


def sum_squares(images: npt.NDArray[Any]) -> IntArray:
    """Σa² alone."""
    return _sum_up(images, None)


def _sum_up(images: npt.NDArray[Any], sums: IntArray | None) -> IntArray:
    """Give Σa² (n, C), and fill ``sums`` (n, C) with Σa."""
    pixels = images.shape[2] * images.shape[3]
    planes = images.reshape(images.shape[0] * images.shape[1], pixels)
    squares = np.empty(len(planes), np.int64)
    line = None if sums is None else sums.reshape(-1)
    whole = pixels // EXACT_SQUARES * EXACT_SQUARES if images.dtype == np.uint8 else 0
    step = max(AT_ONCE // max(pixels, 1), 1)
    for begin in range(0, len(planes), step):
        part = slice(begin, begin + step)
        rest = planes[part, whole:].astype(np.int64)
        runs = planes[part, :whole].astype(np.float32).reshape(len(rest), whole // EXACT_SQUARES, EXACT_SQUARES)
        if line is not None:
            line[part] = np.einsum("nrp->nr", runs).sum(axis=1, dtype=np.float64).astype(np.int64) + rest.sum(axis=1)
        squares[part] = np.einsum("nrp,nrp->nr", runs, runs).sum(axis=1, dtype=np.float64).astype(np.int64)
        squares[part] += np.einsum("np,np->n", rest, rest)
    return squares.reshape(images.shape[:2])
