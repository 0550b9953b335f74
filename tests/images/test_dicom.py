"""Series of DICOM files made on the fly, value by value against sums done by hand; pydicom's own files as a check."""

from __future__ import annotations

import contextlib
import hashlib
import random
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import dcmread
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.pixels.processing import apply_rescale
from pydicom.sequence import Sequence
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGLosslessSV1,
    RLELossless,
)

from unalike.errors import PictureError, SettingsError
from unalike.images.dicom import DicomPixels, Series, apply_window, headers, read_series, refuse_reason, scan_dicom
from unalike.images.volumes import slice_volume

AXIAL = [1, 0, 0, 0, 1, 0]
BUNDLED = Path(pydicom.__file__).parent / "data"


def items(**tags: Any) -> Sequence:
    item = Dataset()
    for keyword, value in tags.items():
        setattr(item, keyword, value)
    return Sequence([item])


def dataset_of(pixels: np.ndarray | None, **tags: Any) -> Dataset:
    """A data set of one image (H, W) or (H, W, 3), or of frames if NumberOfFrames is given; None leaves a tag out."""
    dataset = Dataset()
    given_tags: dict[str, Any] = {
        "SOPClassUID": "1.2.840.10008.5.1.4.1.1.2",
        "SOPInstanceUID": f"1.2.3.{random.randrange(10**12)}",
        "StudyInstanceUID": "1.2.3",
        "SeriesInstanceUID": "1.2.3.4",
        "FrameOfReferenceUID": "1.2.3.5",
        "PatientID": "P1",
        "Modality": "CT",
        "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"],
    }
    if pixels is not None:
        stored = pixels.dtype.itemsize * 8
        color = pixels.ndim > 2 and pixels.shape[-1] == 3 and tags.get("SamplesPerPixel") == 3
        rows, columns = pixels.shape[-3:-1] if color else pixels.shape[-2:]
        given_tags |= {
            "Rows": rows,
            "Columns": columns,
            "SamplesPerPixel": 1,
            "PhotometricInterpretation": "MONOCHROME2",
            "BitsAllocated": stored,
            "BitsStored": stored,
            "HighBit": (tags.get("BitsStored") or stored) - 1,
            "PixelRepresentation": int(pixels.dtype.kind == "i"),
        }
        if pixels.dtype.kind == "f":
            given_tags["FloatPixelData"] = pixels.tobytes()
        else:
            given_tags["PixelData"] = pixels.tobytes() + b"\0" * (pixels.nbytes % 2)
    for keyword, value in (given_tags | tags).items():
        if value is not None:
            setattr(dataset, keyword, value)
    return dataset


def save(path: Path, pixels: np.ndarray | None, *, syntax: UID = ExplicitVRLittleEndian, **tags: Any) -> Path:
    dataset = dataset_of(pixels, **tags)
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    if "PixelData" in dataset:
        dataset["PixelData"].VR = "OW" if dataset.BitsAllocated > 8 else "OB"
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path, enforce_file_format=True)
    return path


def save_stack(
    folder: Path, voxels: np.ndarray, *, positions: list[Any], orientation: list[float] | None = None, **tags: Any
) -> list[Path]:
    """One file per slice (n, H, W), named so that names, numbers and positions disagree."""
    placed: dict[str, Any] = {"PixelSpacing": [1.0, 1.0]}
    return [
        save(
            folder / f"{(7 * index) % 11:02d}_{index}.dcm",
            plane,
            ImagePositionPatient=[float(value) for value in position],
            ImageOrientationPatient=AXIAL if orientation is None else orientation,
            **(placed | {"InstanceNumber": (5 * index) % 13} | tags),
        )
        for index, (plane, position) in enumerate(zip(voxels, positions, strict=True))
    ]


def only(paths: list[Path]) -> Series:
    series, bad = scan_dicom(paths)
    assert bad == []
    assert len(series) == 1
    return series[0]


def read(*paths: Path, window: tuple[float, float] | None = None) -> DicomPixels:
    return read_series(only(list(paths)), window=window)


def problem_of(paths: list[Path]) -> str:
    """The one line that says why a series cannot be used; reading it says the same."""
    series = only(paths)
    assert "\n" not in series.problem
    assert str(series.files[0]) in series.problem
    with pytest.raises(PictureError) as caught:
        read_series(series)
    assert str(caught.value) == series.problem
    return series.problem


def reason_of(path: Path) -> str:
    series, bad = scan_dicom([path])
    assert series == []
    ((named, reason),) = bad
    assert named == path
    assert reason.startswith(f"{path} ")
    assert "\n" not in reason
    return reason


# --- Volumes ----------------------------------------------------------------------------------------------------------


def test_an_axial_stack_by_hand(tmp_path: Path) -> None:
    """Two slices 2.5 mm apart, files in the wrong order: columns go to the left, rows to the back, slices up."""
    low, high = np.array([[1, 2, 3], [4, 5, 6]], np.int16), np.array([[7, 8, 9], [10, 11, 12]], np.int16)
    paths = save_stack(tmp_path, np.stack([high, low]), positions=[(10, 20, 32.5), (10, 20, 30)], PixelSpacing=[2, 0.5])
    series = only(paths)
    assert series.files == (paths[1], paths[0])
    assert (series.frames, series.rows, series.columns, series.samples, series.bits) == (2, 2, 3, 1, 16)
    pixels = read_series(series)
    volume = pixels.volume
    assert volume is not None
    assert volume.voxels.dtype == np.int16
    assert volume.voxels.shape == (3, 2, 2)
    # RAS: the first index grows to the patient's right, where the column number is least.
    assert volume.voxels[:, 1, 0].tolist() == [3, 2, 1]
    assert volume.voxels[:, 0, 1].tolist() == [12, 11, 10]
    assert volume.spacing == (0.5, 2.0, 2.5)
    # LPS (10, 20, 30) of value 1 is RAS (−10, −20, 30), here voxel (2, 1, 0); voxel 0 is two columns and a row away.
    expected = [[0.5, 0.0, 0.0, -11.0], [0.0, 2.0, 0.0, -22.0], [0.0, 0.0, 2.5, 30.0], [0.0, 0.0, 0.0, 1.0]]
    np.testing.assert_allclose(volume.affine, expected, atol=1e-12)
    assert pixels.frames.shape == (0, 1, 2, 3)
    assert not pixels.windowed
    expected_digest = hashlib.sha256(paths[1].read_bytes() + paths[0].read_bytes()).hexdigest()
    assert pixels.digest == volume.digest == expected_digest
    # Seen as radiologists see it, an axial slice is as the scanner stored it.
    slices, _ = slice_volume(volume, "axial")
    np.testing.assert_array_equal(slices, [low, high])


def test_order_of_files_does_not_matter(tmp_path: Path) -> None:
    voxels = np.arange(5 * 4 * 3, dtype=np.uint16).reshape(5, 4, 3)
    paths = save_stack(tmp_path, voxels, positions=[(0, 0, 3 * k) for k in range(5)])
    first = scan_dicom(paths)
    assert scan_dicom(paths[::-1]) == scan_dicom([paths[2], *paths[3:], *paths[:2]]) == first
    assert scan_dicom([tmp_path]) == first
    assert list(first[0][0].files) == paths


def world_of(
    position: Any, orientation: list[float], spacing: tuple[float, float], row: int, column: int
) -> np.ndarray:
    """RAS millimetres of a pixel: equation C.7.6.2.1-1 of PS3.3, with x and y negated."""
    along_row, along_column = np.array(orientation[:3]), np.array(orientation[3:])
    lps = np.array(position) + along_row * spacing[1] * column + along_column * spacing[0] * row
    return lps * [-1, -1, 1]


TILT = np.deg2rad(20)
ORIENTATIONS = {
    "axial": AXIAL,
    "sagittal": [0, 1, 0, 0, 0, -1],
    "coronal": [1, 0, 0, 0, 0, -1],
    "feet first": [-1, 0, 0, 0, 1, 0],
    "oblique": [np.cos(TILT), np.sin(TILT), 0, 0, 0, -1],
}


@pytest.mark.parametrize("name", ORIENTATIONS)
@pytest.mark.parametrize("sign", [1, -1])
def test_a_marked_voxel_is_where_the_position_says(tmp_path: Path, name: str, sign: int) -> None:
    orientation = [float(value) for value in ORIENTATIONS[name]]
    normal = np.cross(orientation[:3], orientation[3:])
    positions = [np.array([-7.0, 11.0, 40.0]) + sign * 3 * k * normal for k in range(4)]
    voxels = np.zeros((4, 5, 6), np.int16)
    voxels[1, 3, 4] = 99
    save_stack(tmp_path, voxels, positions=positions, orientation=orientation, PixelSpacing=[0.8, 0.6])
    volume = read(tmp_path).volume
    assert volume is not None
    index = np.argwhere(volume.voxels == 99)
    assert len(index) == 1
    place = volume.affine @ [*index[0], 1]
    np.testing.assert_allclose(place[:3], world_of(positions[1], orientation, (0.8, 0.6), 3, 4), atol=1e-9)
    # RAS: each axis' largest part is positive and on the diagonal.
    turn = volume.affine[:3, :3] / volume.spacing
    assert (np.diag(turn) > 0.7).all()
    assert sorted(volume.spacing) == pytest.approx([0.6, 0.8, 3.0])


def test_a_tilted_gantry_keeps_its_shear(tmp_path: Path) -> None:
    positions = [(0.0, 1.0 * k, 4.0 * k) for k in range(3)]
    voxels = np.zeros((3, 2, 2), np.int16)
    voxels[2, 1, 0] = 5
    save_stack(tmp_path, voxels, positions=positions)
    volume = read(tmp_path).volume
    assert volume is not None
    ((i, j, k),) = np.argwhere(volume.voxels == 5)
    assert (volume.affine @ [i, j, k, 1])[:3].tolist() == [0.0, -3.0, 8.0]
    assert volume.spacing[2] == pytest.approx(np.sqrt(17))


def test_slope_and_intercept_of_each_file(tmp_path: Path) -> None:
    """As in PET: the same stored 10 means 20 in one slice and 25.5 in the next."""
    for index, (slope, intercept) in enumerate([(2.0, 0.0), (2.5, 0.5)]):
        save(
            tmp_path / f"{index}.dcm",
            np.full((2, 2), 10, np.uint16),
            ImagePositionPatient=[0, 0, index],
            ImageOrientationPatient=AXIAL,
            PixelSpacing=[1, 1],
            RescaleSlope=slope,
            RescaleIntercept=intercept,
        )
    volume = read(tmp_path).volume
    assert volume is not None
    assert volume.voxels.dtype == np.float32
    assert volume.voxels[0, 0].tolist() == [20.0, 25.5]


@pytest.mark.parametrize(
    ("pixels", "tags", "kind", "value"),
    [
        (np.array([[24, 0]], np.uint16), {"BitsStored": 12, "RescaleIntercept": -1024}, np.int16, -1000),
        (np.array([[24, 0]], np.uint16), {"RescaleIntercept": -1024}, np.int32, -1000),
        (np.array([[-5, 0]], np.int16), {}, np.int16, -5),
        (np.array([[200, 0]], np.uint8), {}, np.int16, 200),
        (np.array([[-70000, 0]], np.int32), {}, np.int32, -70000),
        (np.array([[7, 0]], np.uint16), {"RescaleSlope": 0.5}, np.float32, 3.5),
        (np.array([[1.25, 0]], np.float32), {"BitsStored": None, "HighBit": None}, np.float32, 1.25),
        # Bits above those stored hold something else (overlays, once).
        (np.array([[0xF018, 0]], np.uint16), {"BitsStored": 12}, np.int16, 24),
        # −5 in 12 bits, the others 0.
        (np.array([[0x0FFB, 0]], np.int16), {"BitsStored": 12}, np.int16, -5),
    ],
)
def test_voxel_types(tmp_path: Path, pixels: np.ndarray, tags: dict[str, Any], kind: type, value: float) -> None:
    save_stack(tmp_path, np.stack([pixels, pixels]), positions=[(0, 0, 0), (0, 0, 1)], **tags)
    volume = read(tmp_path).volume
    assert volume is not None
    assert volume.voxels.dtype == kind
    assert volume.voxels[1, 0, 0] == value


def enhanced(tmp_path: Path, voxels: np.ndarray, heights: list[float], **tags: Any) -> Path:
    groups = []
    for index, height in enumerate(heights):
        group = Dataset()
        group.PlanePositionSequence = items(ImagePositionPatient=[0, 0, height])
        group.PixelValueTransformationSequence = items(RescaleSlope=index + 1, RescaleIntercept=-10, RescaleType="US")
        groups.append(group)
    shared = Dataset()
    shared.PlaneOrientationSequence = items(ImageOrientationPatient=AXIAL)
    shared.PixelMeasuresSequence = items(PixelSpacing=[0.5, 0.25], SliceThickness=9)
    return save(
        tmp_path / "enhanced.dcm",
        voxels,
        NumberOfFrames=len(voxels),
        SharedFunctionalGroupsSequence=Sequence([shared]),
        PerFrameFunctionalGroupsSequence=Sequence(groups),
        **tags,
    )


def test_enhanced_frames_become_a_volume(tmp_path: Path) -> None:
    """Frames at 4, 0 and 2 mm: the volume has them as 0, 2, 4 with each one's own slope."""
    voxels = np.stack([np.full((2, 3), value, np.int16) for value in (100, 50, 20)])
    path = enhanced(tmp_path, voxels, [4, 0, 2])
    series = only([path])
    assert (series.frames, series.files) == (3, (path,))
    volume = read(path).volume
    assert volume is not None
    assert volume.voxels[0, 0].tolist() == [50 * 2 - 10, 20 * 3 - 10, 100 * 1 - 10]
    assert volume.spacing == (0.25, 0.5, 2.0)


def test_enhanced_problems(tmp_path: Path) -> None:
    voxels = np.zeros((3, 2, 2), np.int16)
    assert "describes 2 of 3 frames" in problem_of([enhanced(tmp_path, voxels, [0, 1])])
    assert "2 slices at the same position" in problem_of([enhanced(tmp_path, voxels, [0, 1, 1])])


def test_frames_without_positions(tmp_path: Path) -> None:
    frames = np.arange(3 * 2 * 4, dtype=np.uint8).reshape(3, 2, 4)
    path = save(
        tmp_path / "cine.dcm",
        frames,
        NumberOfFrames=3,
        Modality="XA",
        ImagePositionPatient=[0, 0, 0],
        ImageOrientationPatient=AXIAL,
    )
    pixels = read(path)
    assert pixels.volume is None
    assert pixels.frames.dtype == np.uint8
    np.testing.assert_array_equal(pixels.frames, frames[:, None])


def test_one_slice_is_no_volume(tmp_path: Path) -> None:
    save_stack(tmp_path, np.ones((1, 2, 2), np.uint16), positions=[(0, 0, 0)])
    pixels = read(tmp_path)
    assert pixels.volume is None
    assert pixels.frames.shape == (1, 1, 2, 2)
    assert pixels.frames.dtype == np.uint16


def test_files_without_positions_go_by_number_then_by_name(tmp_path: Path) -> None:
    for name, number in (("a", 3), ("b", 1), ("c", 2)):
        save(tmp_path / f"{name}.dcm", np.full((2, 2), number, np.uint8), InstanceNumber=number)
    assert read(tmp_path).frames[:, 0, 0, 0].tolist() == [1, 2, 3]
    save(tmp_path / "b.dcm", np.full((2, 2), 1, np.uint8))  # one without a number: names decide
    assert read(tmp_path).frames[:, 0, 0, 0].tolist() == [3, 1, 2]


# --- Values -----------------------------------------------------------------------------------------------------------


def test_a_window_by_hand() -> None:
    """PS3.3 C.11.2.1.2.1: center 40, width 401 maps −160.5 to 0, 39.5 to half, 239.5 to 255."""
    values = np.array([-1000.0, -160.5, -60.5, 39.5, 139.5, 239.5, 3000.0])
    np.testing.assert_allclose(
        apply_window(values, center=40, width=401), [0, 0, 63.75, 127.5, 191.25, 255, 255], rtol=1e-6
    )
    assert apply_window(np.array([9.0, 9.5, 10.0]), center=10, width=1).tolist() == [0, 0, 255]
    # The standard's own example of 12 bits: center 2048, width 4096 is the whole range.
    ends = apply_window(np.array([0, 4095]), center=2048, width=4096)
    np.testing.assert_allclose(ends, [0, 255])


@given(
    st.floats(-2000, 2000),
    st.floats(1, 4000),
    st.lists(st.integers(-3000, 3000), min_size=1, max_size=20),
)
def test_windows_never_leave_their_range_and_keep_order(center: float, width: float, values: list[int]) -> None:
    out = apply_window(np.sort(np.array(values)), center=center, width=width)
    assert out.dtype == np.float32
    assert out.min() >= 0
    assert out.max() <= 255
    assert (np.diff(out) >= 0).all()


def test_a_window_works_on_hounsfield_units(tmp_path: Path) -> None:
    stored = np.full((2, 1, 1), 1024 + 40, np.uint16)
    save_stack(tmp_path, stored, positions=[(0, 0, 0), (0, 0, 1)], BitsStored=12, RescaleIntercept=-1024)
    pixels = read(tmp_path, window=(40, 401))
    assert pixels.windowed
    assert pixels.volume is not None
    assert pixels.volume.voxels.dtype == np.float32
    assert pixels.volume.voxels[0, 0, 0] == pytest.approx((0.5 / 400 + 0.5) * 255)


@pytest.mark.parametrize("window", [(40.0, 0.5), (float("nan"), 400.0), (0.0, float("inf"))])
def test_senseless_windows(tmp_path: Path, window: tuple[float, float]) -> None:
    path = save(tmp_path / "a.dcm", np.zeros((2, 2), np.uint8))
    with pytest.raises(SettingsError, match="makes no sense"):
        read(path, window=window)


def test_monochrome1_is_inverted(tmp_path: Path) -> None:
    stored = np.array([[0, 1000, 4095]], np.uint16)
    tags: dict[str, Any] = {"BitsStored": 12, "PhotometricInterpretation": "MONOCHROME1", "Modality": "DX"}
    path = save(tmp_path / "a.dcm", stored, **tags)
    pixels = read(path)
    assert pixels.frames.dtype == np.uint16
    assert pixels.frames[0, 0, 0].tolist() == [4095, 3095, 0]
    # The window is one of stored values; what it makes dark is bright.
    np.testing.assert_allclose(read(path, window=(2048, 4096)).frames[0, 0, 0], [255, 255 - 1000 / 4095 * 255, 0], 1e-5)
    signed = save(tmp_path / "b.dcm", np.array([[-128, 0, 127]], np.int8), PhotometricInterpretation="MONOCHROME1")
    assert read(signed).frames[0, 0, 0].tolist() == [127.0, -1.0, -128.0]


def test_colour(tmp_path: Path) -> None:
    red = np.zeros((2, 2, 3), np.uint8)
    red[..., 0] = 200
    tags: dict[str, Any] = {"SamplesPerPixel": 3, "PlanarConfiguration": 0, "Modality": "US"}
    rgb = read(save(tmp_path / "rgb.dcm", red, PhotometricInterpretation="RGB", **tags), window=(10, 20))
    assert not rgb.windowed
    assert rgb.frames.shape == (1, 3, 2, 2)
    assert rgb.frames[0, :, 0, 0].tolist() == [200, 0, 0]
    # Gray 120 in YBR_FULL is Y = 120 and both differences 128.
    gray = np.full((2, 2, 3), [120, 128, 128], np.uint8)
    ybr = read(save(tmp_path / "ybr.dcm", gray, PhotometricInterpretation="YBR_FULL", **tags))
    assert ybr.frames[0, :, 0, 0].tolist() == [120, 120, 120]


@pytest.mark.parametrize("bits", [8, 16])
def test_palettes(tmp_path: Path, bits: int) -> None:
    """Indices 10 … 12 have colours; those beyond take the first or the last."""
    kind = np.uint8 if bits == 8 else "<u2"
    tables: dict[str, Any] = {
        f"{color}PaletteColorLookupTable{part}": value
        for color, entries in (("Red", [1, 2, 3, 0]), ("Green", [4, 5, 6, 0]), ("Blue", [7, 8, 9, 0]))
        for part, value in (("Descriptor", [3 + 1, 10, bits]), ("Data", np.array(entries, kind).tobytes()))
    }
    index = np.array([[0, 10, 11, 12, 300]], np.uint16)
    path = save(tmp_path / "a.dcm", index, PhotometricInterpretation="PALETTE COLOR", **tables)
    assert only([path]).samples == 3
    frames = read(path).frames
    assert frames.dtype == (np.uint8 if bits == 8 else np.uint16)
    assert frames[0, :, 0].tolist() == [[1, 1, 2, 3, 0], [4, 4, 5, 6, 0], [7, 7, 8, 9, 0]]


def test_a_look_up_table_of_the_modality(tmp_path: Path) -> None:
    table = items(LUTDescriptor=[3, 1, 16], LUTData=np.array([100, 200, 300], "<u2").tobytes(), ModalityLUTType="OD")
    path = save(tmp_path / "a.dcm", np.array([[0, 1, 2, 3, 9]], np.uint16), ModalityLUTSequence=table)
    assert read(path).frames[0, 0, 0].tolist() == [100, 100, 200, 300, 300]


@pytest.mark.parametrize(
    "syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian]
)
def test_encodings(tmp_path: Path, syntax: UID) -> None:
    stored = np.array([[1, 256], [513, 4000]], np.uint16)
    big = syntax == ExplicitVRBigEndian
    path = save(
        tmp_path / "a.dcm", stored, syntax=syntax, PixelData=stored.byteswap().tobytes() if big else stored.tobytes()
    )
    assert read(path).frames[0, 0].tolist() == stored.tolist()


def test_run_length_encoding(tmp_path: Path) -> None:
    stored = np.arange(64, dtype=np.uint16).reshape(8, 8) * 300
    dataset = dcmread(save(tmp_path / "plain.dcm", stored))
    dataset.compress(RLELossless, generate_instance_uid=False)
    (tmp_path / "rle").mkdir()
    dataset.save_as(tmp_path / "rle" / "a.dcm")
    np.testing.assert_array_equal(read(tmp_path / "rle").frames[0, 0], stored)


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_every_voxel_of_a_shuffled_stack(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Against the slow way: each pixel's millimetres by the standard's equation, looked up in the volume."""
    folder = tmp_path_factory.mktemp("stack")
    axes = data.draw(st.permutations(np.eye(3).tolist()))
    signs = data.draw(st.tuples(*[st.sampled_from([-1.0, 1.0])] * 2))
    orientation = [signs[0] * v for v in axes[0]] + [signs[1] * v for v in axes[1]]
    step = data.draw(st.sampled_from([0.5, 1.0, 3.3]))
    spacing = data.draw(st.sampled_from([(1.0, 1.0), (0.7, 2.0)]))
    count, rows, columns = data.draw(st.tuples(st.integers(2, 4), st.integers(1, 4), st.integers(1, 4)))
    voxels = np.arange(count * rows * columns, dtype=np.int16).reshape(count, rows, columns)
    positions = [np.array([1.0, 2.0, 3.0]) + k * step * np.array(axes[2]) for k in range(count)]
    paths = save_stack(folder, voxels, positions=positions, orientation=orientation, PixelSpacing=list(spacing))
    volume = read(*data.draw(st.permutations(paths))).volume
    assert volume is not None
    from_world = np.linalg.inv(volume.affine)
    for k, row, column in np.ndindex(voxels.shape):
        world = world_of(positions[k], orientation, spacing, row, column)
        i, j, n = np.rint(from_world @ [*world, 1])[:3].astype(int)
        assert volume.voxels[i, j, n] == voxels[k, row, column]


# --- What is refused --------------------------------------------------------------------------------------------------


def stack_with(tmp_path: Path, heights: list[float], **tags: Any) -> list[Path]:
    voxels = np.zeros((len(heights), 2, 2), np.int16)
    return save_stack(tmp_path, voxels, positions=[(0, 0, height) for height in heights], **tags)


def test_a_missing_slice(tmp_path: Path) -> None:
    problem = problem_of(stack_with(tmp_path, [0, 5, 10, 20, 25]))
    assert "slices 3 and 4 that are 10 mm apart, the others 5 mm: a slice is missing" in problem


def test_many_missing_slices(tmp_path: Path) -> None:
    assert "slices are missing" in problem_of(stack_with(tmp_path, [0, 1, 2, 9]))


def test_doubled_slices(tmp_path: Path) -> None:
    assert "holds 2 slices at the same position" in problem_of(stack_with(tmp_path, [0, 5, 5, 10]))


def test_a_series_in_time_is_no_stack(tmp_path: Path) -> None:
    assert "holds 3 slices at the same position" in problem_of(stack_with(tmp_path, [0, 0, 0, 5, 5, 5]))


def test_uneven_slices(tmp_path: Path) -> None:
    assert "unevenly spaced" in problem_of(stack_with(tmp_path, [0, 5, 10, 16, 21]))


def test_positions_rounded_to_tenths_are_even(tmp_path: Path) -> None:
    series = only(stack_with(tmp_path, [round(1.25 * k, 1) for k in range(9)]))
    assert series.problem == ""
    volume = read(tmp_path).volume
    assert volume is not None
    assert volume.spacing[2] == pytest.approx(1.25)


def test_slices_off_the_line(tmp_path: Path) -> None:
    paths = save_stack(tmp_path, np.zeros((3, 2, 2), np.int16), positions=[(0, 0, 0), (2, 0, 1), (0, 0, 2)])
    assert "one straight line" in problem_of(paths)


def test_a_file_twice(tmp_path: Path) -> None:
    paths = stack_with(tmp_path, [0, 5, 10])
    copy = tmp_path / "copy.dcm"
    copy.write_bytes(paths[1].read_bytes())
    assert "has two files of the same image" in problem_of([*paths, copy])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"ImageOrientationPatient": [0, 1, 0, 0, 0, -1]}, "several orientations"),
        ({"PixelSpacing": [2, 2]}, "several pixel spacings"),
        ({"FrameOfReferenceUID": "1.9"}, "frames of reference"),
        ({"PatientID": "P2"}, "mixes 2 patients"),
        ({"StudyInstanceUID": "1.9"}, "mixes 2 studies"),
        ({"ImagePositionPatient": None}, "positions for only 3 of its 4 images"),
    ],
)
def test_mixtures(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    paths = stack_with(tmp_path, [0, 5, 10])
    tags = {"ImagePositionPatient": [0, 0, 15], "ImageOrientationPatient": AXIAL, "PixelSpacing": [1, 1]}
    paths.append(save(tmp_path / "z.dcm", np.zeros((2, 2), np.int16), **(tags | change)))
    problem = problem_of(paths)
    assert said in problem
    assert "P2" not in problem


def test_mixed_sizes(tmp_path: Path) -> None:
    paths = [save(tmp_path / f"{side}.dcm", np.zeros((side, 3), np.uint8)) for side in (2, 4)]
    assert "mixes images of 2 sizes, such as 3×2×1 and 3×4×1" in problem_of(paths)


@pytest.mark.parametrize(
    ("tags", "said"),
    [
        ({"PixelSpacing": None}, "no pixel spacing"),
        ({"PixelSpacing": [0, 1]}, "voxel spacing of 1 × 0 × 5 mm"),
        ({"HighBit": 15, "BitsStored": 12}, "12 bits below bit 15"),
        ({"Modality": "RTDOSE"}, "radiation doses"),
        ({"Rows": 60000, "Columns": 60000}, "announces 1 frames of 60000×60000 pixels"),
        ({"Rows": 3000}, "but announces 12,000"),
        ({"SamplesPerPixel": 4}, "4 samples per pixel"),
        ({"BitsAllocated": 16, "BitsStored": 17, "HighBit": 16}, "17 of 16 bits"),
    ],
)
def test_headers_that_cannot_be_used(tmp_path: Path, tags: dict[str, Any], said: str) -> None:
    assert said in problem_of(stack_with(tmp_path, [0, 5], **tags))


@pytest.mark.parametrize(
    ("tags", "said"),
    [
        ({"RescaleSlope": 0}, "RescaleSlope is 0"),
        ({"ImageOrientationPatient": [1, 0, 0, 1, 0, 0], "ImagePositionPatient": [0, 0, 0]}, "perpendicular"),
        ({"Rows": None}, "does not give Rows"),
    ],
)
def test_files_that_cannot_be_used(tmp_path: Path, tags: dict[str, Any], said: str) -> None:
    assert said in reason_of(save(tmp_path / "a.dcm", np.zeros((2, 2), np.int16), **tags))


def test_a_decoder_that_is_not_there_is_named(tmp_path: Path) -> None:
    dataset = dataset_of(np.zeros((2, 2), np.uint8))
    dataset.PixelData = pydicom.encaps.encapsulate([b"\xff\xd8\xff\xd9"])
    dataset["PixelData"].is_undefined_length = True
    dataset["PixelData"].VR = "OB"
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = JPEGLosslessSV1
    dataset.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    series = only([tmp_path])
    assert "JPEG Lossless" in series.problem
    assert "pylibjpeg-libjpeg" in series.problem
    dataset.NumberOfFrames = 1000
    dataset.file_meta.TransferSyntaxUID = RLELossless
    dataset.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    assert "announces 1000 frames, but ends after" in only([tmp_path]).problem


def test_a_damaged_transfer_syntax_stays_on_one_line(tmp_path: Path) -> None:
    whole = bundled("MR_small_RLE.dcm").read_bytes()
    path = tmp_path / "a.dcm"
    path.write_bytes(whole.replace(b"1.2.840.10008.1.2.5", b"1.2.840.10008.1\n2.5", 1))
    assert "is compressed as 1.2.840.10008.1 2.5, which is not read" in problem_of([path])


def test_no_pixels(tmp_path: Path) -> None:
    assert "holds no pixels (SR)" in reason_of(save(tmp_path / "a.dcm", None, Modality="SR"))


def test_other_files(tmp_path: Path) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("nothing to see\n" * 20)
    assert "is not DICOM" in reason_of(text)
    empty = tmp_path / "empty"
    empty.touch()
    assert "is not DICOM" in reason_of(empty)
    missing = tmp_path / "missing"
    assert "No such file" in reason_of(missing)


def test_truncated(tmp_path: Path) -> None:
    path = save(tmp_path / "a.dcm", np.zeros((8, 8), np.uint16))
    path.write_bytes(path.read_bytes()[:-28])
    assert "is truncated: 28 bytes of pixels are missing" in reason_of(path)


def test_a_file_cut_anywhere_is_refused(tmp_path: Path) -> None:
    whole = save(tmp_path / "a.dcm", np.arange(64, dtype=np.uint16).reshape(8, 8)).read_bytes()
    cut = tmp_path / "cut.dcm"
    for size in range(0, len(whole), 7):
        cut.write_bytes(whole[:size])
        reason_of(cut)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=5))
def test_damaged_bytes_never_end_in_a_traceback(
    tmp_path_factory: pytest.TempPathFactory, damage: list[tuple[float, int]]
) -> None:
    folder = tmp_path_factory.mktemp("damaged")
    path = enhanced(folder, np.arange(12, dtype=np.int16).reshape(3, 2, 2), [0, 1, 2])
    content = bytearray(path.read_bytes())
    for place, value in damage:
        content[128 + int(place * (len(content) - 128))] = value
    path.write_bytes(content)
    series, bad = scan_dicom([path])
    assert len(series) + len(bad) == 1
    for one in series:
        with contextlib.suppress(PictureError):
            read_series(one)


def test_threads_leave_the_warning_filters_as_they_were(tmp_path: Path) -> None:
    paths = [save(tmp_path / f"{index}.dcm", np.zeros((2, 2), np.uint8)) for index in range(40)]
    before = list(warnings.filters)
    with ThreadPoolExecutor(4) as pool:
        assert all(
            one.problem == "" for series, _ in pool.map(lambda path: scan_dicom([path]), paths) for one in series
        )
    assert warnings.filters == before


def test_a_file_that_changed_since_the_scan(tmp_path: Path) -> None:
    path = save(tmp_path / "a.dcm", np.zeros((2, 2), np.uint8))
    series = only([path])
    path.write_bytes(b"")
    with pytest.raises(PictureError, match="is not DICOM"):
        read_series(series)


def test_infinite_voxels(tmp_path: Path) -> None:
    path = save(tmp_path / "a.dcm", np.array([[1, np.inf]], np.float32), BitsStored=None, HighBit=None)
    with pytest.raises(PictureError, match="NaN or infinite"):
        read(path)


def test_a_deflated_bomb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / "a.dcm", np.zeros((400, 400), np.uint8), syntax=DeflatedExplicitVRLittleEndian)
    assert only([path]).problem == ""
    monkeypatch.setattr(headers, "LARGEST_UNPACKED", 100_000)
    assert "unpacks to more than 100,000 bytes" in reason_of(path)


def test_without_preamble(tmp_path: Path) -> None:
    """Old files begin with the data set at once; a text of the same bytes further on is none."""
    whole = save(tmp_path / "a.dcm", np.array([[5, 6]], np.uint16)).read_bytes()
    bare = tmp_path / "bare" / "a.dcm"
    bare.parent.mkdir()
    bare.write_bytes(whole[132:])
    assert read(bare).frames[0, 0].tolist() == [[5, 6]]
    start = whole.index(b"\x08\x00\x08\x00CS")
    bare.write_bytes(whole[start:])  # no file meta information either
    assert read(bare).frames[0, 0].tolist() == [[5, 6]]


# --- What headers say -------------------------------------------------------------------------------------------------


def test_several_series(tmp_path: Path) -> None:
    save(tmp_path / "x" / "1.dcm", np.zeros((2, 2), np.uint8), PatientID="B", SeriesInstanceUID="1.1")
    save(
        tmp_path / "2.dcm",
        np.zeros((2, 2), np.uint8),
        PatientID=None,
        SeriesInstanceUID="1.2",
        SeriesDescription="a\nb",
    )
    save(tmp_path / "3.dcm", np.zeros((2, 2), np.uint8), PatientID="", SeriesInstanceUID=None)
    save(tmp_path / "4.dcm", np.zeros((2, 2), np.uint8), PatientID="", SeriesInstanceUID=None)
    (tmp_path / ".hidden").write_text("x")
    (tmp_path / "DICOMDIR").write_text("x")
    series, bad = scan_dicom([tmp_path])
    assert bad == []
    assert [one.patient for one in series] == ["", "", "", "B"]
    assert [one.uid for one in series] == ["", "", "1.2", "1.1"]
    assert series[2].description == "a b"
    assert (series[3].study, series[3].modality, series[3].frame_of_reference) == ("1.2.3", "CT", "1.2.3.5")


def test_localizers_and_derived_series(tmp_path: Path) -> None:
    for kind, said in (
        (["ORIGINAL", "PRIMARY", "LOCALIZER"], "is a localizer"),
        (["DERIVED", "PRIMARY"], "is no original image"),
        (["ORIGINAL", "SECONDARY"], "is no original image"),
        (["ORIGINAL", "PRIMARY", "AXIAL"], ""),
        ([], ""),
    ):
        series = only([save(tmp_path / "a.dcm", np.zeros((2, 2), np.uint8), ImageType=kind)])
        assert series.image_type == tuple(kind)
        reason = refuse_reason(series, derived=False)
        assert said in reason
        assert bool(reason) == bool(said)
        assert refuse_reason(series, derived=True) == ""


def test_one_odd_image_type_counts_for_the_series(tmp_path: Path) -> None:
    save(tmp_path / "a.dcm", np.zeros((2, 2), np.uint8))
    save(tmp_path / "b.dcm", np.zeros((2, 2), np.uint8), ImageType=["ORIGINAL", "PRIMARY", "SCOUT"])
    assert only([tmp_path]).image_type == ("ORIGINAL", "PRIMARY", "AXIAL", "SCOUT")


@pytest.mark.parametrize(
    ("tags", "head"),
    [
        ({"BodyPartExamined": "HEAD"}, True),
        ({"BodyPartExamined": "BRAIN"}, True),
        ({"SeriesDescription": "ax T2_FLAIR"}, True),
        ({"StudyDescription": "CT Facial bones"}, True),
        ({"ProtocolName": "Schädel nativ", "SpecificCharacterSet": "ISO_IR 100"}, True),
        ({"AnatomicRegionSequence": items(CodeMeaning="Head and Neck")}, True),
        ({"BodyPartExamined": "CHEST", "SeriesDescription": "linear surface"}, False),
        ({}, False),
    ],
)
def test_heads(tmp_path: Path, tags: dict[str, Any], head: bool) -> None:
    assert only([save(tmp_path / "a.dcm", np.zeros((2, 2), np.uint8), **tags)]).head is head


@pytest.mark.parametrize(
    ("tags", "defaced"),
    [
        ({"RecognizableVisualFeatures": "NO"}, True),
        ({"RecognizableVisualFeatures": "YES"}, False),
        ({"DeidentificationMethod": ["Basic profile", "Defaced by hand"]}, True),
        ({"DeidentificationMethod": "Basic profile"}, False),
        ({"DeidentificationMethodCodeSequence": items(CodeValue="113102", CodingSchemeDesignator="DCM")}, True),
        ({"DeidentificationMethodCodeSequence": items(CodeValue="113100", CodingSchemeDesignator="DCM")}, False),
    ],
)
def test_defaced(tmp_path: Path, tags: dict[str, Any], defaced: bool) -> None:
    path = save(tmp_path / "a.dcm", np.zeros((2, 2), np.uint8), **tags)
    assert only([path]).defaced is defaced
    save(tmp_path / "b.dcm", np.zeros((2, 2), np.uint8))
    assert only([tmp_path]).defaced is False


def test_burned_in(tmp_path: Path) -> None:
    path = save(tmp_path / "a.dcm", np.zeros((2, 2), np.uint8), BurnedInAnnotation="NO")
    assert only([path]).burned_in == "NO"
    other = save(tmp_path / "b.dcm", np.zeros((2, 2), np.uint8))
    assert only([path, other]).burned_in == ""
    save(other, np.zeros((2, 2), np.uint8), BurnedInAnnotation="YES")
    assert only([path, other]).burned_in == "YES"


# --- pydicom's own files ----------------------------------------------------------------------------------------------


def bundled(name: str) -> Path:
    path = get_testdata_file(name, download=False)
    assert isinstance(path, str)
    return Path(path)


def test_every_bundled_file_is_read_or_refused_in_one_line(
    capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    paths = sorted(path for path in BUNDLED.rglob("*") if path.is_file() and path.suffix not in {".py", ".pyc"})
    assert len(paths) > 150
    read_whole = 0
    for path in paths:
        series, bad = scan_dicom([path])
        assert len(series) + len(bad) == 1
        for _, reason in bad:
            assert reason.startswith(f"{path} ")
            assert reason.endswith("skip.")
            assert "\n" not in reason
        for one in series:
            refused = ""
            try:
                frames = read_series(one).frames
                read_whole += 1
                assert np.isfinite(frames).all()
            except PictureError as error:
                refused = str(error)
            assert "\n" not in refused
            assert refused == "" or refused.startswith(f"{path} ")
    assert read_whole > 70
    assert capfd.readouterr() == ("", "")
    assert caplog.records == []


@pytest.mark.parametrize(
    "name",
    [
        "CT_small.dcm",
        "MR_small.dcm",
        "MR_small_RLE.dcm",
        "MR_small_bigendian.dcm",
        "MR_small_expb.dcm",
        "MR_small_implicit.dcm",
        "MR_small_jp2klossless.dcm",
        "MR_small_padded.dcm",
        "693_J2KI.dcm",
        "J2K_pixelrep_mismatch.dcm",
        "examples_jpeg2k.dcm",
    ],
)
def test_bundled_files_have_pydicom_s_pixels(name: str) -> None:
    path = bundled(name)
    dataset = dcmread(path)
    frames = read(path).frames[0]
    frames = frames[0] if len(frames) == 1 else np.moveaxis(frames, 0, -1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MR_small_padded has bytes too many
        expected = dataset.pixel_array
    np.testing.assert_array_equal(frames, apply_rescale(expected, dataset) if expected.ndim == 2 else expected)


def test_a_bundled_jpeg_ls_file_names_its_decoder() -> None:
    problem = problem_of([bundled("MR_small_jpeg_ls_lossless.dcm")])
    assert "is compressed as JPEG-LS Lossless" in problem
    assert "pip install pyjpegls" in problem


def test_all_mr_small_encodings_agree() -> None:
    first = read(bundled("MR_small.dcm")).frames
    for kind in ("RLE", "bigendian", "implicit", "jp2klossless", "padded", "expb"):
        np.testing.assert_array_equal(read(bundled(f"MR_small_{kind}.dcm")).frames, first)


@pytest.mark.parametrize(
    "name",
    ["SC_rgb_jpeg_dcmtk.dcm", "SC_rgb_rle_2frame.dcm", "examples_ybr_color.dcm", "SC_ybr_full_422_uncompressed.dcm"],
)
def test_bundled_colours(name: str) -> None:
    path = bundled(name)
    expected = np.moveaxis(dcmread(path).pixel_array, -1, -3)
    frames = read(path).frames
    np.testing.assert_array_equal(frames, expected.reshape(frames.shape))


def test_a_bundled_ct_series() -> None:
    volume = read(BUNDLED / "test_files" / "dicomdirtests" / "98892001" / "CT5N").volume
    assert volume is not None
    assert volume.voxels.shape == (16, 16, 5)
    assert volume.spacing == pytest.approx((0.488281, 0.488281, 2.5), abs=1e-6)
