"""Exact sums over pixels, from which correlations are made."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from unalike.records import IntArray


def sum_pixels(images: npt.NDArray[Any]) -> tuple[IntArray, IntArray]:
    """Σa and Σa² of each image and channel: two int64 arrays (n, C) from unsigned images (n, C, H, W)."""
    flat = images.reshape(*images.shape[:2], images.shape[2] * images.shape[3])
    sums = flat.sum(axis=2, dtype=np.int64)
    squares = np.empty_like(sums)
    for row, image in enumerate(flat):  # one image at a time: the wide copy stays in cache
        wide = image.astype(np.int64)
        squares[row] = np.einsum("cp,cp->c", wide, wide)
    return sums, squares
