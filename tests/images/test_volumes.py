"""Reading, orientation, slicing, scaling and resampling of volumes by hand; geometry of images."""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as itk  # noqa: N813
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from unalike.errors import PictureError, SettingsError
from unalike.images import volumes
from unalike.images.geometry import center, fit_plane, resize_plane
from unalike.images.volumes import (
    Volume,
    crop_volume,
    read_extent,
    read_volume,
    resample_like,
    resample_volume,
    same_grid,
    scale_intensity,
    shows_face,
    slice_affine,
    slice_volume,
)

OBLIQUE = np.array([[-1.9, 0.3, 0.2, 80.0], [0.25, -1.2, 0.4, -7.0], [0.1, 0.3, 2.8, 33.0], [0, 0, 0, 1]])
PERMUTED = np.array([[0, 0, 3.0, -20], [-1.0, 0, 0, 40], [0, 2.0, 0, 10], [0, 0, 0, 1]])
AFFINES = [np.diag([1.0, 2, 3, 1]), np.diag([-1.0, -2, 3, 1]), OBLIQUE, PERMUTED]


def save(path: Path, voxels: np.ndarray, affine: np.ndarray | None = None) -> Path:
    # nibabel wants 64-bit integers to be asked for by name.
    wanted = voxels.dtype if voxels.dtype.itemsize == 8 else None
    nib.save(nib.Nifti1Image(voxels, np.eye(4) if affine is None else affine, dtype=wanted), path)
    return path


def noise(*shape: int, dtype: str = "int16") -> np.ndarray:
    return np.random.default_rng(0).integers(0, 100, shape).astype(dtype)


def save_itk(path: Path, voxels: np.ndarray, *, squeeze: bool = False, vector: bool = False) -> Path:
    """Voxels (X, Y, Z) or (X, Y, Z, C) through SimpleITK, with a flipped and shifted grid."""
    turned = voxels.transpose(2, 1, 0, 3) if vector else voxels.T
    image = itk.GetImageFromArray(np.ascontiguousarray(turned), isVector=vector)
    if image.GetDimension() == 3:
        image.SetSpacing((2.0, 1.0, 3.0))
        image.SetOrigin((5.0, 6.0, 7.0))
        image.SetDirection((0, 1, 0, -1, 0, 0, 0, 0, 1))
    itk.WriteImage(image, str(path), squeeze)
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


@pytest.mark.parametrize("affine", AFFINES)
@pytest.mark.parametrize("name", ["v.nii", "v.nii.gz"])
def test_reads_what_nibabel_reads(tmp_path: Path, affine: np.ndarray, name: str) -> None:
    path = save(tmp_path / name, noise(5, 6, 7), affine)
    volume, reference = read_volume(path), nib.as_closest_canonical(nib.load(path))
    np.testing.assert_array_equal(volume.voxels, np.asarray(reference.dataobj))
    np.testing.assert_allclose(volume.affine, reference.affine, atol=1e-6)
    np.testing.assert_allclose(volume.spacing, reference.header.get_zooms(), rtol=1e-6)
    assert volume.digest == hashlib.sha256(path.read_bytes()).hexdigest()
    assert read_extent(path) == (volume.voxels.shape, volume.spacing)


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int16", "int32", "float32"])
@pytest.mark.parametrize("order", ["<", ">"])
def test_small_types_stay_as_they_are_whatever_the_byte_order(tmp_path: Path, dtype: str, order: str) -> None:
    voxels = noise(3, 4, 5, dtype=dtype)
    header = nib.Nifti1Header(endianness=order)
    header.set_data_dtype(np.dtype(dtype).newbyteorder(order))
    nib.save(nib.Nifti1Image(voxels, np.eye(4), header), tmp_path / "v.nii.gz")
    found = read_volume(tmp_path / "v.nii.gz").voxels
    assert found.dtype == np.dtype(dtype)
    assert found.dtype.isnative
    np.testing.assert_array_equal(found, voxels)


@pytest.mark.parametrize("dtype", ["uint32", "int64", "uint64", "float64"])
def test_wide_types_become_float32(tmp_path: Path, dtype: str) -> None:
    voxels = np.arange(60).reshape(3, 4, 5).astype(dtype)
    found = read_volume(save(tmp_path / "v.nii.gz", voxels)).voxels
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, voxels)


def test_slope_and_intercept_are_applied_as_nibabel_does(tmp_path: Path) -> None:
    image = nib.Nifti1Image(noise(3, 4, 5), np.eye(4))
    image.header.set_slope_inter(0.37, -3)
    nib.save(image, tmp_path / "v.nii")
    content = bytearray((tmp_path / "v.nii").read_bytes())
    content[112:120] = np.array([0.37, -3], "<f4").tobytes()
    (tmp_path / "v.nii").write_bytes(content)
    found = read_volume(tmp_path / "v.nii").voxels
    assert found.dtype == np.float32
    reference = np.asarray(nib.load(tmp_path / "v.nii").dataobj, dtype=np.float32)
    assert reference.min() < 0
    np.testing.assert_array_equal(found, reference)


def test_nifti_2_is_read_too(tmp_path: Path) -> None:
    voxels = noise(3, 4, 5)
    nib.save(nib.Nifti2Image(voxels, np.eye(4)), tmp_path / "v.nii.gz")
    np.testing.assert_array_equal(read_volume(tmp_path / "v.nii.gz").voxels, voxels)


@pytest.mark.parametrize("name", ["v.nii", "v.nii.gz", "v.nrrd"])
def test_one_component_of_several_can_be_chosen(tmp_path: Path, name: str) -> None:
    voxels = noise(3, 4, 5, 2)
    path = tmp_path / name
    path = save(path, voxels) if ".nii" in name else save_itk(path, voxels)
    assert sorted(read_extent(path, component=1)[0]) == [3, 4, 5]
    for component in (0, 1):
        found = read_volume(path, component=component).voxels
        if ".nii" in name:
            np.testing.assert_array_equal(found, voxels[..., component])
        else:  # left–posterior–superior
            np.testing.assert_array_equal(found, voxels[::-1, ::-1, :, component])
    for refused in (-1, 2):
        with pytest.raises(PictureError, match="no component"):
            read_volume(path, component=refused)
    with pytest.raises(PictureError, match="is 4D"):
        read_extent(path)


@pytest.mark.parametrize("name", ["v.mha", "v.mhd", "v.nrrd"])
@pytest.mark.parametrize("squeeze", [False, True])
def test_metaimage_and_nrrd_by_hand(tmp_path: Path, name: str, squeeze: bool) -> None:
    """Stored: x runs to anterior (2 mm), y to the left (1 mm), z up (3 mm); ITK counts left and posterior positive."""
    stored = noise(3, 4, 5)
    volume = read_volume(save_itk(tmp_path / name, stored, squeeze=squeeze))
    np.testing.assert_array_equal(volume.voxels, stored[:, ::-1].transpose(1, 0, 2))
    assert volume.voxels.dtype == np.int16
    assert volume.spacing == (1.0, 2.0, 3.0)
    # The last stored y is the rightmost: x = −(5 + 3) mm; the first stored x is the hindmost: y = −6 mm.
    np.testing.assert_allclose(volume.affine, [[1, 0, 0, -8], [0, 2, 0, -6], [0, 0, 3, 7], [0, 0, 0, 1]], atol=1e-12)
    assert read_extent(tmp_path / name) == ((4, 3, 5), (1.0, 2.0, 3.0))
    content = (tmp_path / name).read_bytes()
    if name == "v.mhd":
        content += (tmp_path / ("v.zraw" if squeeze else "v.raw")).read_bytes()
    assert volume.digest == hashlib.sha256(content).hexdigest()


def test_the_parts_of_a_vector_are_components(tmp_path: Path) -> None:
    voxels = noise(3, 4, 5, 2, dtype="uint8")
    path = save_itk(tmp_path / "v.mha", voxels, vector=True)
    found = read_volume(path, component=1).voxels
    np.testing.assert_array_equal(found, voxels[:, ::-1, :, 1].transpose(1, 0, 2))


@pytest.mark.parametrize("cut", [0, 5, 60, 700, -20])
@pytest.mark.parametrize("name", ["v.mha", "v.nrrd"])
@pytest.mark.parametrize("squeeze", [False, True])
def test_damaged_itk_files_are_refused_quietly(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], name: str, squeeze: bool, cut: int
) -> None:
    path = save_itk(tmp_path / name, noise(9, 9, 9), squeeze=squeeze)
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(PictureError, match="cannot be read") as caught:
        read_volume(path)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr().err == ""


def test_a_header_with_its_voxels_beside_it_is_read(tmp_path: Path) -> None:
    voxels = noise(3, 4, 5)
    save_itk(tmp_path / "v.nhdr", voxels)
    path = (tmp_path / "v.nhdr").rename(tmp_path / "v.nrrd")
    volume = read_volume(path)
    np.testing.assert_array_equal(volume.voxels, voxels[:, ::-1].transpose(1, 0, 2))
    beside = next(tmp_path.glob("v.raw*")).read_bytes()
    assert volume.digest == hashlib.sha256(path.read_bytes() + beside).hexdigest()
    path.write_text(path.read_text().replace("v.raw", "../v.raw"))
    with pytest.raises(PictureError, match="one file beside it"):
        read_volume(path)


@pytest.mark.parametrize("sides", ["1200 1200 1000", "2000 2000 2000"])
@pytest.mark.parametrize("name", ["v.mha", "v.nrrd"])
def test_itk_headers_that_announce_too_much_take_no_memory(tmp_path: Path, name: str, sides: str) -> None:
    path = save_itk(tmp_path / name, noise(3, 4, 5))
    path.write_bytes(path.read_bytes().replace(b"3 4 5", sides.encode()))
    with pytest.raises(PictureError, match=r"announces|cut short"):
        read_extent(path)


def test_flat_pictures_and_complex_itk_files_are_refused(tmp_path: Path) -> None:
    for name, array, message in (("flat", noise(3, 4), "is 2D"), ("complex", np.ones((3, 4, 5), complex), "complex")):
        itk.WriteImage(itk.GetImageFromArray(array), str(tmp_path / f"{name}.nrrd"))
        with pytest.raises(PictureError, match=message):
            read_volume(tmp_path / f"{name}.nrrd")


def test_voxels_in_another_folder_are_not_fetched(tmp_path: Path) -> None:
    path = save_itk(tmp_path / "v.mhd", noise(3, 4, 5))
    for named in ("../v.raw", "LIST", "v%02d.raw", "absent.raw"):
        path.write_text(path.read_text().partition("ElementDataFile")[0] + f"ElementDataFile = {named}\n")
        with pytest.raises(PictureError, match="one file beside it"):
            read_volume(path)


def _compress_in_two(content: bytes) -> bytes:
    return gzip.compress(content[:300]) + gzip.compress(content[300:])


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(_compress_in_two, id="two members"),
        pytest.param(
            lambda content: gzip.compress(content[:500]) + bytes(600) + gzip.compress(content[500:]), id="gap"
        ),
        pytest.param(lambda content: gzip.compress(content) + b"garbage", id="garbage after"),
        pytest.param(lambda content: gzip.compress(content + b"more"), id="more inside"),
    ],
)
def test_unusual_gzip_files_are_read(tmp_path: Path, change: Callable[[bytes], bytes]) -> None:
    voxels = noise(30, 31, 32)
    content = save(tmp_path / "v.nii", voxels).read_bytes()
    (tmp_path / "v.nii.gz").write_bytes(change(content))
    np.testing.assert_array_equal(read_volume(tmp_path / "v.nii.gz").voxels, voxels)


@pytest.mark.parametrize("cut", [0, 1, 15, 200, 5000, -9, -1])
def test_gzip_files_that_break_off_are_refused(tmp_path: Path, cut: int) -> None:
    path = save(tmp_path / "v.nii.gz", noise(30, 31, 32))
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(PictureError, match="cannot be read"):
        read_volume(path)


def test_a_gzip_file_that_lies_of_its_content_takes_no_memory(tmp_path: Path) -> None:
    """A small file that announces much, and one that announces little and holds much."""
    content = bytearray(save(tmp_path / "v.nii", noise(3, 4, 5)).read_bytes())
    content[42:48] = np.array([1200, 1200, 1000], "<i2").tobytes()
    (tmp_path / "much.nii.gz").write_bytes(gzip.compress(bytes(content)))
    with pytest.raises(PictureError, match="cut short"):
        read_volume(tmp_path / "much.nii.gz")
    content[42:48] = np.array([3, 4, 5], "<i2").tobytes()
    (tmp_path / "bomb.nii.gz").write_bytes(gzip.compress(bytes(content) + bytes(2**24)))
    assert read_volume(tmp_path / "bomb.nii.gz").voxels.shape == (3, 4, 5)
    content[42:48] = np.array([2000, 2000, 2000], "<i2").tobytes()
    (tmp_path / "huge.nii").write_bytes(content)
    with pytest.raises(PictureError, match="announces"):
        read_extent(tmp_path / "huge.nii")


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("4D", "is 4D"),
        ("text", "cannot be read"),
        ("uncompressed", "cannot be read"),
        ("checksum", "cannot be read"),
        ("nan", "NaN"),
        ("infinite", "NaN"),
        ("too large for float32", "NaN"),
        ("2D", "is 2D"),
        ("complex", "complex"),
        ("colour", "coloured"),
        ("singular", "singular"),
        ("spacing", "spacing"),
        ("absent", "cannot be read"),
    ],
)
def test_bad_volumes_are_refused_in_one_line(tmp_path: Path, kind: str, message: str) -> None:
    path = tmp_path / "v.nii.gz"
    colours = np.zeros((3, 4, 5), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    made = {
        "4D": np.zeros((3, 4, 5, 2), np.int16),
        "2D": np.zeros((3, 4), np.int16),
        "nan": np.full((3, 4, 5), np.nan, np.float32),
        "infinite": np.where(noise(3, 4, 5) > 50, -np.inf, 1).astype(np.float32),
        "too large for float32": np.full((3, 4, 5), 1e300),
        "complex": np.zeros((3, 4, 5), np.complex64),
        "colour": colours,
        "checksum": noise(3, 4, 5),
    }
    if kind in made:
        save(path, made[kind])
        if kind == "checksum":
            content = bytearray(path.read_bytes())
            content[-6] ^= 1
            path.write_bytes(content)
    elif kind == "text":
        path.write_text("hello")
    elif kind == "uncompressed":
        path.write_bytes(save(tmp_path / "v.nii", noise(3, 4, 5)).read_bytes())
    elif kind in {"singular", "spacing"}:
        content = bytearray(save(tmp_path / "v.nii", noise(3, 4, 5)).read_bytes())
        content[280:296] = np.array([0 if kind == "singular" else 1e6, 0, 0, 0], "<f4").tobytes()
        path.write_bytes(gzip.compress(bytes(content)))
    with pytest.raises(PictureError, match=message) as caught:
        read_volume(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("axis", ["axial", "coronal", "sagittal"])
@pytest.mark.parametrize("affine", AFFINES)
def test_a_slice_can_be_put_back_in_space(tmp_path: Path, affine: np.ndarray, axis: volumes.Axis) -> None:
    stored = np.zeros((5, 6, 7), np.int16)
    stored[1, 4, 2] = 9
    volume = read_volume(save(tmp_path / "v.nii", stored, affine))
    stack, _ = slice_volume(volume, axis)
    (number,), (row,), (column,) = np.nonzero(stack)
    world = slice_affine(volume, axis) @ [column, row, number, 1]
    np.testing.assert_allclose(world, affine @ [1, 4, 2, 1], atol=1e-4)


def old_scale(voxels: np.ndarray, percentiles: tuple[float, float]) -> np.ndarray:
    """The definition, written out: everything in float64, all voxels sorted."""
    exact = voxels.astype(np.float64)
    low, high = np.percentile(exact, percentiles)
    if not high > low:
        return np.zeros(voxels.shape, np.uint8)
    return np.rint(np.clip((exact - low) * (255.0 / (high - low)), 0, 255)).astype(np.uint8)


PERCENTILES = st.tuples(st.floats(0, 100), st.floats(0, 100)).map(sorted).map(tuple)


@settings(deadline=None, max_examples=150)
@given(
    voxels=hnp.arrays(
        st.sampled_from(["u1", "i1", "u2", "i2", "i4", "f4"]).map(np.dtype),
        hnp.array_shapes(min_dims=1, max_dims=3, max_side=9),
        elements={"allow_nan": False, "allow_infinity": False, "min_value": None, "max_value": None},
    ),
    percentiles=PERCENTILES,
    flip=st.booleans(),
)
def test_scaling_is_the_definition_to_the_last_bit(
    voxels: np.ndarray, percentiles: tuple[float, float], flip: bool
) -> None:
    voxels = voxels.T[::-1] if flip else voxels
    np.testing.assert_array_equal(scale_intensity(voxels, percentiles=percentiles), old_scale(voxels, percentiles))


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 2**32),
    dtype=st.sampled_from(["u1", "i1", "u2", "i2", "i4", "f4"]),
    background=st.sampled_from([0.0, 0.3, 0.9, 0.999]),
    levels=st.sampled_from([2, 40, 10**9]),
    percentiles=PERCENTILES,
)
def test_scaling_of_whole_volumes_too(
    seed: int, dtype: str, background: float, levels: int, percentiles: tuple[float, float]
) -> None:
    """Large enough for the sample of voxels and for the table."""
    random = np.random.default_rng(seed)
    voxels = (random.standard_normal((37, 53, 29)) * levels).astype(np.int64).astype(dtype)
    voxels[random.random(voxels.shape) < background] = voxels.min()
    voxels = np.sort(voxels, axis=None).reshape(voxels.shape, order="F") if seed % 2 else voxels
    np.testing.assert_array_equal(scale_intensity(voxels, percentiles=percentiles), old_scale(voxels, percentiles))


@pytest.mark.parametrize("dtype", ["u1", "i1", "u2", "i2"])
def test_the_table_and_arithmetic_agree(dtype: str) -> None:
    """More voxels than the type has values: every one of them is looked up."""
    limits = np.iinfo(dtype)
    voxels = np.random.default_rng(0).integers(limits.min, limits.max, (97, 61, 17), dtype, endpoint=True)
    np.testing.assert_array_equal(scale_intensity(voxels, percentiles=(1, 98)), old_scale(voxels, (1, 98)))


def test_a_sample_that_misleads_costs_time_but_no_accuracy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every sampled value is 1; the percentile lies among the others."""
    monkeypatch.setattr(volumes, "_SAMPLE", 16)
    values = np.arange(1600, dtype=np.float32)
    values[::100] = 1
    assert volumes._in_order(values, 800, 801) == tuple(np.sort(values)[800:802])


def grid(voxels: np.ndarray, affine: np.ndarray) -> Volume:
    x, y, z = np.sqrt((affine[:3, :3] ** 2).sum(axis=0)).tolist()
    return Volume(voxels=voxels, spacing=(x, y, z), affine=affine)


def ramp(shape: tuple[int, int, int], affine: np.ndarray) -> np.ndarray:
    """1000 + x + 2y − 3z of the place in millimetres: nowhere 0."""
    places = np.stack([*np.indices(shape), np.ones(shape)])
    return np.tensordot(np.array([1.0, 2.0, -3.0, 1000.0]) @ affine, places, axes=1).astype(np.float32)


def inner(array: np.ndarray, margin: int) -> np.ndarray:
    return array[margin:-margin, margin:-margin, margin:-margin]


def test_resampling_a_line_by_hand() -> None:
    """4 voxels of 1 mm become 2 of 2 mm, whose centres lie between two old ones, and 8 of 0.5 mm."""
    volume = grid(np.array([0, 10, 20, 30], np.int16).reshape(4, 1, 1), np.eye(4))
    coarse = resample_volume(volume, spacing=(2.0, 1.0, 1.0), labels=False)
    assert coarse.voxels.ravel().tolist() == [5, 25]
    assert coarse.affine[0].tolist() == [2, 0, 0, 0.5]
    fine = resample_volume(volume, spacing=(0.5, 1.0, 1.0), labels=False)
    assert fine.voxels.ravel().tolist() == [0, 2.5, 7.5, 12.5, 17.5, 22.5, 27.5, 30]
    assert fine.affine[0].tolist() == [0.5, 0, 0, -0.25]
    labels = resample_volume(volume, spacing=(0.5, 1.0, 1.0), labels=True)
    assert labels.voxels.ravel().tolist() == [0, 0, 10, 10, 20, 20, 30, 30]
    assert labels.voxels.dtype == np.int16
    assert resample_volume(volume, spacing=(50.0, 1.0, 1.0), labels=False).voxels.shape == (1, 1, 1)


@pytest.mark.parametrize("affine", [np.diag([1.0, 2, 3, 1]), np.abs(OBLIQUE)])
def test_a_ramp_stays_a_ramp_in_millimetres(affine: np.ndarray) -> None:
    volume = grid(ramp((20, 18, 16), affine), affine)
    changed = resample_volume(volume, spacing=(1.3, 1.1, 2.0), labels=False)
    assert changed.spacing == (1.3, 1.1, 2.0)
    expected = ramp(changed.voxels.shape, changed.affine)
    np.testing.assert_allclose(inner(changed.voxels, 3), inner(expected, 3), atol=1e-3)
    corner = np.array([-0.5, -0.5, -0.5, 1])
    np.testing.assert_allclose(changed.affine @ corner, affine @ corner, atol=1e-9)
    cropped = crop_volume(volume, shape=(9, 7, 6))
    np.testing.assert_allclose(cropped.voxels, ramp((9, 7, 6), cropped.affine), atol=1e-3)
    back = resample_like(cropped, like=volume, labels=False)
    assert same_grid(back, volume)
    here = back.voxels != 0
    assert 9 * 7 * 6 - 1 <= here.sum() <= 9 * 7 * 6
    np.testing.assert_allclose(back.voxels[here], volume.voxels[here], atol=1e-3)


def test_resampling_onto_the_same_grid_changes_nothing() -> None:
    volume = grid(noise(6, 7, 8), OBLIQUE)
    for labels in (False, True):
        again = resample_like(volume, like=(volume.affine, (6, 7, 8)), labels=labels)
        np.testing.assert_allclose(again.voxels, volume.voxels, atol=1e-4)


def test_outside_is_zero_and_half_a_voxel_is_inside() -> None:
    volume = grid(np.full((2, 1, 1), 7, np.uint8), np.eye(4))
    shifted = np.eye(4)
    shifted[0, 3] = -1.5
    found = resample_like(volume, like=(shifted, (5, 1, 1)), labels=True).voxels.ravel()
    assert found.tolist() == [0, 7, 7, 7, 0]


def test_cropping_and_padding_by_hand() -> None:
    volume = grid(np.arange(1, 6, dtype=np.int16).reshape(5, 1, 1), np.diag([2.0, 1, 1, 1]))
    cropped = crop_volume(volume, shape=(2, 1, 2))
    assert cropped.voxels[:, 0, 0].tolist() == [2, 3]
    assert cropped.affine[0, 3] == 2
    padded = crop_volume(volume, shape=(8, 1, 1))
    assert padded.voxels.ravel().tolist() == [0, 1, 2, 3, 4, 5, 0, 0]
    assert padded.affine[0, 3] == -2
    assert padded.voxels.dtype == np.int16


def test_grids_that_make_no_sense_are_refused() -> None:
    volume = grid(noise(3, 4, 5), np.eye(4))
    for spacing in ((0.0, 1.0, 1.0), (1.0, float("nan"), 1.0), (1.0, 1.0, 99.0)):
        with pytest.raises(SettingsError, match="spacing"):
            resample_volume(volume, spacing=spacing, labels=False)
    for call in (
        lambda: crop_volume(volume, shape=(0, 1, 1)),
        lambda: crop_volume(volume, shape=(2**12, 2**12, 2**12)),
        lambda: resample_volume(replace(volume, spacing=(50.0, 50.0, 50.0)), spacing=(0.005,) * 3, labels=False),
        lambda: resample_like(volume, like=(np.zeros((4, 4)), (3, 4, 5)), labels=False),
    ):
        with pytest.raises(SettingsError):
            call()


def head(*, face: bool = True, skull: bool = True) -> Volume:
    """A head in a box of 200 mm: an ellipsoid, a brain brighter than the rest inside, and a block for the face."""
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, 100),) * 3, indexing="ij")
    brain = x**2 / 0.4 + y**2 / 0.5 + (z - 0.25) ** 2 / 0.3 < 1
    whole = x**2 / 0.6 + y**2 / 0.8 + (z - 0.1) ** 2 / 0.8 < 1
    block = (abs(x) < 0.5) & (y > 0.3) & (y < 0.95) & (z < 0.1) & (z > -0.9)
    voxels = np.where(brain, 900, 0)
    if skull:
        voxels = np.where(whole & ~brain, 400, voxels)
        voxels[block] = 400 if face else 0
        voxels[:, 66:, :34] *= face
        voxels = voxels + np.random.default_rng(0).integers(0, 20, voxels.shape)
    return Volume(voxels=voxels.astype(np.int16), spacing=(2.0, 2.0, 2.0), affine=np.diag([2.0, 2, 2, 1]))


def test_faces_are_seen_on_whole_heads_only() -> None:
    assert shows_face(head())
    assert not shows_face(head(face=False))
    assert not shows_face(head(skull=False))
    assert not shows_face(replace(head(), spacing=(2.0, 1.0, 2.0)))


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


@pytest.mark.parametrize("dtype", [np.int16, np.float32, np.uint8])
def test_sixteen_bits_follow_the_same_formula(dtype: type) -> None:
    voxels = np.random.default_rng(0).integers(0, 200, (9, 8, 7)).astype(dtype)
    low, high = np.percentile(voxels.astype(np.float64), (2, 97))
    expected = np.rint(np.clip((voxels.astype(np.float64) - low) * (65_535 / (high - low)), 0, 65_535))
    scaled = scale_intensity(voxels, percentiles=(2, 97), bits=16)
    assert scaled.dtype == np.uint16
    np.testing.assert_array_equal(scaled, expected)
    assert not scale_intensity(np.full((2, 2, 2), 7, dtype), percentiles=(2, 97), bits=16).any()
