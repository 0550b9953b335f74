"""NIfTI volumes in, oriented alike; slices out."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import nibabel as nib
import numpy as np
import numpy.typing as npt

from unalike.errors import PictureError

Axis = Literal["axial", "coronal", "sagittal"]

SUFFIXES = (".nii", ".nii.gz")
# Index of the slicing axis in a volume oriented right–anterior–superior (RAS).
_AXES = {"sagittal": 0, "coronal": 1, "axial": 2}
# 2³¹ voxels of float32 are 8 GiB: more is a damaged header or needs a larger machine.
LARGEST_VOLUME = 2**31
# Millimetres. Beyond is a header in other units or a damaged one, and would shrink everybody else's images.
SMALLEST_SPACING, LARGEST_SPACING = 0.005, 50.0


@dataclass(frozen=True)
class Volume:
    """Voxels (X, Y, Z) in RAS orientation, float32, their spacing in millimetres, and the affine (4, 4)."""

    voxels: npt.NDArray[np.float32]
    spacing: tuple[float, float, float]
    affine: npt.NDArray[np.float64]


def same_grid(a: Volume, b: Volume) -> bool:
    """Whether two volumes have the same shape, spacing and place (to a hundredth of a millimetre)."""
    return a.voxels.shape == b.voxels.shape and np.allclose(a.affine, b.affine, atol=1e-2, rtol=0)


def _load(path: Path) -> Any:
    """Header of a 3D NIfTI, nearest to RAS; the voxels stay on disk."""
    try:
        image: Any = nib.load(path)
        shape = tuple(int(side) for side in image.shape)
        if len(shape) == 4 and shape[3] == 1:
            image, shape = image.slicer[..., 0], shape[:3]
        if len(shape) != 3:
            raise PictureError(
                f"{path} is {len(shape)}D {shape}, but one 3D volume per file is needed. Split it into 3D files."
            )
        if min(shape) < 1 or math.prod(shape) > LARGEST_VOLUME:
            raise PictureError(f"{path} announces {shape} voxels. Remove the file or pass --on-bad-file skip.")
        if np.issubdtype(image.get_data_dtype(), np.complexfloating):
            raise PictureError(f"{path} holds complex voxels. Save their magnitude.")
        image = nib.as_closest_canonical(image)
        if not all(SMALLEST_SPACING <= step <= LARGEST_SPACING for step in _spacing(image)):
            raise PictureError(f"{path} gives a voxel spacing of {_spacing(image)} mm. Mend its header.")
        return image
    except PictureError:
        raise
    except Exception as error:  # nibabel, gzip and zlib each raise their own on damaged files
        raise PictureError(_unreadable(path, error)) from error


def _unreadable(path: Path, error: Exception) -> str:
    first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return f"{path} cannot be read ({first}). Remove the file or pass --on-bad-file skip."


def read_extent(path: Path) -> tuple[tuple[int, int, int], tuple[float, float, float]]:
    """Shape and spacing of a volume in RAS orientation, from the header alone."""
    image = _load(path)
    return tuple(image.shape), _spacing(image)


def _spacing(image: Any) -> tuple[float, float, float]:
    x, y, z = (float(zoom) for zoom in image.header.get_zooms()[:3])
    return x, y, z


def read_volume(path: Path) -> Volume:
    """Read one 3D NIfTI file, turned to RAS.

    Raises `PictureError` if the file is truncated or damaged, not 3D, too large, or holds NaN or infinity.
    """
    image = _load(path)
    try:
        voxels = np.asarray(image.dataobj, dtype=np.float32)
    except Exception as error:
        raise PictureError(_unreadable(path, error)) from error
    if not np.isfinite(voxels).all():
        raise PictureError(f"{path} holds NaN or infinite voxels. Clean it or pass --on-bad-file skip.")
    return Volume(voxels=voxels, spacing=_spacing(image), affine=np.asarray(image.affine, dtype=np.float64))


def slice_volume(volume: Volume, axis: Axis) -> tuple[npt.NDArray[np.float32], tuple[float, float]]:
    """All slices (n, H, W) along an anatomical axis, and the (row, column) spacing in millimetres.

    Slices are seen as radiologists see them: anterior (or superior) up, the patient's right on the left;
    sagittal ones with anterior on the left. Slice 0 is the lowest, hindmost, or leftmost.
    """
    along = _AXES[axis]
    across = [index for index in range(3) if index != along]
    slices = np.moveaxis(volume.voxels, along, 0)  # (n, first in-plane axis, second in-plane axis)
    turned = slices[:, ::-1, ::-1].transpose(0, 2, 1)
    return np.ascontiguousarray(turned), (volume.spacing[across[1]], volume.spacing[across[0]])


def scale_intensity(voxels: npt.NDArray[np.float32], *, percentiles: tuple[float, float]) -> npt.NDArray[np.uint8]:
    """Scale a volume to 0–255 so that these percentiles of its voxels become 0 and 255; the rest is clipped.

    A constant volume becomes 0.
    """
    low, high = (float(value) for value in np.percentile(voxels, percentiles))
    if not high > low:
        return np.zeros(voxels.shape, np.uint8)
    scaled = (voxels.astype(np.float64) - low) * (255.0 / (high - low))
    return np.rint(np.clip(scaled, 0, 255)).astype(np.uint8)
