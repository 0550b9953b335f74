"""Orientation, slicing and scaling of volumes by hand; geometry of images."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from unalike.errors import PictureError
from unalike.images.geometry import center, fit_plane, resize_plane
from unalike.images.volumes import read_extent, read_volume, scale_intensity, slice_volume


def save(path: Path, voxels: np.ndarray, affine: np.ndarray | None = None) -> Path:
    nib.save(nib.Nifti1Image(voxels, np.eye(4) if affine is None else affine), path)
    return path


def test_any_orientation_shows_the_same_anatomy(tmp_path: Path) -> None:
    """A voxel at the patient's right, front, top is seen there whatever way the file stores it."""
    ras = np.zeros((4, 5, 6), np.float32)
    ras[3, 4, 5] = 1  # right, anterior, superior
    ras[3, 4, 0] = 2  # right, anterior, inferior
    lps = np.ascontiguousarray(ras[::-1, ::-1])
    for voxels, affine in ((ras, np.diag([1, 1, 2, 1])), (lps, np.diag([-1, -1, 2, 1]))):
        volume = read_volume(save(tmp_path / "v.nii.gz", voxels, affine.astype(float)))
        axial, spacing = slice_volume(volume, "axial")
        assert axial.shape == (6, 5, 4)
        assert axial[5, 0, 0] == 1  # top slice; front is up, the patient's right is on the left
        assert axial[0, 0, 0] == 2
        assert spacing == (1.0, 1.0)
        coronal, spacing = slice_volume(volume, "coronal")
        assert coronal.shape == (5, 6, 4)
        assert coronal[4, 0, 0] == 1
        assert spacing == (2.0, 1.0)
        sagittal, _ = slice_volume(volume, "sagittal")
        assert sagittal.shape == (4, 6, 5)
        assert sagittal[3, 0, 0] == 1


def test_extent_needs_only_the_header(tmp_path: Path) -> None:
    path = save(tmp_path / "v.nii.gz", np.zeros((3, 4, 5), np.int16), np.diag([2.0, 1, 3, 1]))
    assert read_extent(path) == ((3, 4, 5), (2.0, 1.0, 3.0))


def test_a_fourth_dimension_of_one_is_dropped(tmp_path: Path) -> None:
    assert read_volume(save(tmp_path / "v.nii", np.ones((3, 4, 5, 1), np.int16))).voxels.shape == (3, 4, 5)


def test_percentiles_become_black_and_white() -> None:
    volume = np.arange(101, dtype=np.float32) * 1e6
    scaled = scale_intensity(volume, percentiles=(10, 90))
    assert (scaled[:11] == 0).all()
    assert (scaled[90:] == 255).all()
    assert scaled[50] == 128
    assert (scale_intensity(np.full(9, 7, np.float32), percentiles=(1, 99)) == 0).all()


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("4D", "is 4D"),
        ("truncated", "cannot be read"),
        ("text", "cannot be read"),
        ("nan", "NaN"),
        ("2D", "is 2D"),
    ],
)
def test_bad_volumes_are_refused_in_one_line(tmp_path: Path, kind: str, message: str) -> None:
    path = tmp_path / "v.nii.gz"
    if kind == "4D":
        save(path, np.zeros((3, 4, 5, 2), np.int16))
    elif kind == "2D":
        save(path, np.zeros((3, 4), np.int16))
    elif kind == "nan":
        save(path, np.full((3, 4, 5), np.nan, np.float32))
    elif kind == "text":
        path.write_text("hello")
    else:
        save(path, np.random.default_rng(0).integers(0, 999, (30, 30, 30)).astype(np.int16))
        path.write_bytes(path.read_bytes()[:9000])
    with pytest.raises(PictureError, match=message) as caught:
        read_volume(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_center_pads_and_crops() -> None:
    plane = np.arange(1, 7, dtype=np.uint8).reshape(2, 3)
    np.testing.assert_array_equal(center(plane, 4, 1)[:, 0], [0, 2, 5, 0])
    np.testing.assert_array_equal(center(center(plane, 8, 9), 2, 3), plane)


def test_fits_keep_or_change_the_aspect() -> None:
    plane = np.full((10, 20), 100, np.uint8)
    padded = fit_plane(plane, 10, fit="pad")
    assert (padded[3:7] == 100).all()
    assert (padded[:2] == 0).all()
    for fit in ("stretch", "crop"):
        assert (fit_plane(plane, 10, fit=fit) == 100).all()


def test_labels_are_never_mixed() -> None:
    labels = np.kron(np.array([[0, 51], [102, 204]], np.uint8), np.ones((8, 8), np.uint8))
    assert set(np.unique(resize_plane(labels, 5, 7, labels=True))) == {0, 51, 102, 204}


def test_shrinking_averages_and_keeps_16_bits() -> None:
    board = (np.indices((64, 64)).sum(axis=0) % 2 * 60000).astype(np.uint16)
    small = resize_plane(board, 8, 8)
    assert small.dtype == np.uint16
    assert abs(small[2:-2, 2:-2].astype(int) - 30000).max() < 1500
