"""Two sets of feature vectors that are compared, checked once, and whose images are whose."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from unalike.errors import InputError
from unalike.records import FloatArray, IntArray, TextArray


@dataclass(frozen=True)
class Side:
    """Features (n, D) of one set, and the subject of each image as a number below ``subjects``."""

    features: FloatArray
    codes: IntArray
    subjects: int


def make_sides(
    a: FloatArray,
    b: FloatArray,
    subjects_a: TextArray,
    subjects_b: TextArray,
    *,
    names: tuple[str, str] = ("first", "second"),
) -> tuple[Side, Side]:
    """Features ``a`` (n, D) and ``b`` (m, D) of two sets with their subjects (n,) and (m,), in float64.

    ``names`` are what the sets are called in an error. Raises `InputError` if the dimensions differ or are 0, a number
    is not finite, or there is not one subject for each image.
    """
    first, second = (np.asarray(features, dtype=np.float64) for features in (a, b))
    if first.ndim != 2 or second.ndim != 2 or first.shape[1] != second.shape[1] or first.shape[1] == 0:
        raise InputError(f"features {first.shape} and {second.shape} do not fit. Give (n, D) and (m, D).")
    sides = []
    for name, features, subjects in zip(names, (first, second), (subjects_a, subjects_b), strict=True):
        if not np.isfinite(features).all():
            raise InputError(f"features of the {name} set are not all finite. Check the images and the features.")
        if np.shape(subjects) != (len(features),):
            raise InputError(
                f"the {name} set has {len(features)} images and subjects {np.shape(subjects)}. Give one for each image."
            )
        found, codes = np.unique(subjects, return_inverse=True)
        sides.append(Side(features, codes.astype(np.int64), len(found)))
    return sides[0], sides[1]
