"""Mirror images and quarter turns by name, in NumPy: a match is shown as it was found, where torch is not installed.

The names are those of `similarity.gallery.POSES`. There the query is turned until it matches a training image; here
the training image is turned the other way, so that it lies as the synthetic image does.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

AS_IT_IS = "as it is"
# What turns a query into the pose: whether rows and columns change places, then the axes that are reversed.
_POSES: dict[str, tuple[bool, tuple[int, ...]]] = {
    AS_IT_IS: (False, ()),
    "left-right": (False, (-1,)),
    "up-down": (False, (-2,)),
    "half turn": (False, (-1, -2)),
    "diagonal": (True, ()),
    "quarter turn": (True, (-1,)),
    "three-quarter turn": (True, (-2,)),
    "other diagonal": (True, (-1, -2)),
}
POSE_NAMES = tuple(_POSES)


def lay_like_query(images: npt.NDArray[Any], pose: str) -> npt.NDArray[Any]:
    """Images (…, h, w) of a match that was found with the query in ``pose``, turned to lie as the query does.

    Raises ValueError for a pose of another name, or one that swaps sides of different length.
    """
    if pose not in _POSES:
        raise ValueError(f"{pose!r} is not a pose")
    swap, axes = _POSES[pose]
    if swap and images.shape[-1] != images.shape[-2]:
        raise ValueError(f"the pose {pose!r} needs square pictures")
    turned = np.flip(images, axes)
    return np.swapaxes(turned, -1, -2) if swap else turned
