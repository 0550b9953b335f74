"""The recipe dicom on trees of DICOM files made on the fly, value by value against slices worked out by hand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pydicom
import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from pydicom.dataset import FileMetaDataset
from pydicom.uid import JPEGLSLossless
from tests.images.test_dicom import AXIAL, BUNDLED, dataset_of, enhanced, save, save_stack

from unalike import folders
from unalike.cohort.build import prepare_cohort
from unalike.cohort.draft import plan_cohort
from unalike.cohort.recipes import recipe_settings
from unalike.cohort.store import ImageFolder
from unalike.errors import InputError, PictureError, SettingsError, UnalikeError

SIDE = 4
WINDOW = (40, 401)  # −160.5 becomes 0, 39.5 becomes 127.5, 239.5 becomes 255: 0.6375 a Hounsfield unit
# Everything is kept, at its own size and without looking for look-alikes: what is stored is what was written.
PLAIN: dict[str, Any] = {"size": SIDE, "least_content": 0.0, "near_duplicates": 0.0, "holdout": 0.0}


def prepare(source: Path, out: Path, **changes: Any) -> ImageFolder:
    settings = recipe_settings("dicom", **(PLAIN | changes))
    return prepare_cohort(source=source, out=out, settings=settings, key=b"k", workers=2)


def refuse(source: Path, out: Path, kind: type[UnalikeError], message: str, **changes: Any) -> str:
    with pytest.raises(kind, match=message) as caught:
        prepare(source, out, **changes)
    assert "\n" not in str(caught.value)
    assert not out.exists()
    return str(caught.value)


def skipped(cohort: ImageFolder) -> list[tuple[str, str]]:
    entries = folders.read_json(cohort.path / folders.PRIVATE / folders.SKIPPED)
    assert len(entries) == cohort.header.content["skipped"]
    return [(entry["source"], entry["reason"]) for entry in entries]


def notes(cohort: ImageFolder) -> str:
    return " ".join(cohort.header.content["notes"])


def who(cohort: ImageFolder) -> dict[str, str]:
    """The PatientID of each pseudonym."""
    table = pq.read_table(cohort.path / folders.PRIVATE / folders.SOURCES).to_pydict()
    return dict(zip(table["subject"], table["identifier"], strict=True))


def images_of(cohort: ImageFolder, patient: str) -> list[np.ndarray]:
    """A patient's images (C, H, W) in the order of the cohort."""
    known = who(cohort)
    rows = [row for row, name in enumerate(cohort.column("subject").tolist()) if known[name] == patient]
    return [np.asarray(cohort.images[row]) for row in rows]


def stack(
    folder: Path, voxels: np.ndarray, *, patient: str = "P1", series: str = "1", step: float = 5.0, **tags: Any
) -> list[Path]:
    """A series with slices (n, H, W) from below, ``step`` mm apart, written in a jumble of names."""
    own: dict[str, Any] = {
        "PatientID": patient,
        "StudyInstanceUID": f"1.2.{len(patient)}.{sum(map(ord, patient))}",
        "SeriesInstanceUID": f"1.2.{len(patient)}.{sum(map(ord, patient))}.{series}",
        "FrameOfReferenceUID": f"1.3.{sum(map(ord, patient))}",
    }
    return save_stack(folder, voxels, positions=[(10, 20, 30 + step * k) for k in range(len(voxels))], **(own | tags))


def ramp(seed: int, count: int = 3, side: int = SIDE) -> np.ndarray:
    """Stored 12-bit values of a CT (1024 is water), another set for each seed."""
    return np.random.default_rng(seed).integers(1024 - 300, 1024 + 400, (count, side, side)).astype(np.uint16)


HOUNSFIELD: dict[str, Any] = {"BitsStored": 12, "RescaleIntercept": -1024, "RescaleSlope": 1}


def windowed(stored: np.ndarray, top: int = 255) -> np.ndarray:
    """The standard's formula for `WINDOW`, written out (PS3.3 C.11.2.1.2.1)."""
    levels = ((stored.astype(np.float64) - 1024 - 39.5) / 400 + 0.5) * 255
    result: np.ndarray = np.rint(np.clip(levels, 0, 255).astype(np.float32) * np.float32(top / 255)).astype(int)
    return result


# ---------------------------------------------------------------- slices and where they lie


def test_two_patients_with_two_series_each(tmp_path: Path) -> None:
    """Names, folders and numbers say nothing of the order: positions do."""
    source = tmp_path / "src"
    expected: dict[str, list[np.ndarray]] = {}
    for number, (patient, series) in enumerate([("A", "1"), ("A", "2"), ("B", "1"), ("B", "2")]):
        voxels = ramp(number)
        expected[patient + series] = list(windowed(voxels))
        for index, path in enumerate(stack(tmp_path / "made", voxels, patient=patient, series=series, **HOUNSFIELD)):
            place = source / f"d{(number + index) % 2}" / "deep" / f"IM{(37 * (number * 3 + index)) % 101}"
            place.parent.mkdir(parents=True, exist_ok=True)
            path.rename(place)
    cohort = prepare(source, tmp_path / "c", window=WINDOW)
    assert len(cohort) == 12
    assert cohort.channels == ("gray",)
    assert sorted(who(cohort).values()) == ["A", "B"]
    records = cohort.records.to_pylist()
    by_source: dict[str, list[int]] = {}
    for row, record in enumerate(records):
        by_source.setdefault(record["source"], []).append(row)
    assert len(by_source) == 4
    for rows in by_source.values():
        assert [records[row]["slice"] for row in rows] == [0, 1, 2]
        found = [cohort.images[row][0].tolist() for row in rows]
        patient = who(cohort)[records[rows[0]]["subject"]]
        assert found in [[plane.tolist() for plane in expected[patient + series]] for series in "12"]


def test_window_values_by_hand(tmp_path: Path) -> None:
    """−200, −161, −60, 40, 140, 240 and 400 HU; (40 − 39.5) · 0.6375 + 127.5 = 127.82, and so on."""
    hounsfield = np.array([-200, -161, -60, 40, 140, 240, 400, 40])
    row = (hounsfield + 1024).astype(np.uint16)
    stack(tmp_path / "src", np.stack([np.stack([row] * 8)] * 2), **HOUNSFIELD)
    cohort = prepare(tmp_path / "src", tmp_path / "c", window=WINDOW, size=8)
    assert cohort.images[0][0, 0].tolist() == [0, 0, 64, 128, 192, 255, 255, 128]
    deep = prepare(tmp_path / "src", tmp_path / "d", window=WINDOW, size=8, depth="16")
    # 64.06875, 127.81875 and 191.56875 times 257: not 64, 128 and 192 times 257.
    assert deep.images[0][0, 0].tolist() == [0, 0, 16466, 32849, 49233, 65535, 65535, 32849]
    assert deep.images.dtype == np.uint16


def test_a_marked_voxel_in_millimetres(tmp_path: Path) -> None:
    """A 4 × 4 slice in the middle of 8 × 8: its row 1, column 3 is row 3, column 5 of the image."""
    voxels = np.zeros((3, 4, 4), np.int16)
    voxels[1, 1, 3] = 1000
    stack(tmp_path / "src", voxels, PixelSpacing=[0.5, 0.5], step=2.5)
    cohort = prepare(tmp_path / "src", tmp_path / "c", size=8)
    image, record = cohort.images[1], cohort.records.to_pylist()[1]
    assert np.argwhere(image[0] == image.max()).tolist() == [[3, 5]]
    assert record["slice"] == 1
    place = np.reshape(record["affine"], (4, 4)) @ [5, 3, 0, 1]
    # LPS: 10 + 3 columns of 0.5 to the left, 20 + 1 row of 0.5 to the back, 30 + 1 slice of 2.5 up.
    np.testing.assert_allclose(place, [-11.5, -20.5, 32.5, 1], atol=1e-9)
    assert record["source_size"] == [4, 4]
    assert record["offset"] == [-2.0, -2.0]


@pytest.mark.parametrize(
    ("orientation", "normal"), [([0, 1, 0, 0, 0, -1], (-1, 0, 0)), ([1, 0, 0, 0, 0, -1], (0, 1, 0))]
)
def test_sagittal_and_coronal_scans_are_cut_axially(
    tmp_path: Path, orientation: list[float], normal: tuple[float, ...]
) -> None:
    """Whatever the scanner's plane, a voxel's image, row and column lead back to its millimetres."""
    voxels = np.zeros((4, 4, 4), np.int16)
    voxels[2, 1, 3] = 1000
    positions = [np.array([-7.0, 11.0, 40.0]) + k * np.array(normal) for k in range(4)]
    save_stack(tmp_path / "src", voxels, positions=positions, orientation=orientation)
    cohort = prepare(tmp_path / "src", tmp_path / "c")
    ((row, _, y, x),) = np.argwhere(np.asarray(cohort.images[:]) == 255)
    affine = np.reshape(cohort.records.to_pylist()[int(row)]["affine"], (4, 4))
    lps = positions[2] + 3 * np.array(orientation[:3]) + 1 * np.array(orientation[3:])
    np.testing.assert_allclose((affine @ [x, y, 0, 1])[:3], lps * [-1, -1, 1], atol=1e-9)


@examples(max_examples=12, deadline=None)
@given(st.permutations(range(5)), st.integers(0, 2**16))
def test_the_order_of_names_changes_nothing(
    tmp_path_factory: pytest.TempPathFactory, order: Sequence[int], seed: int
) -> None:
    folder = tmp_path_factory.mktemp("order")
    voxels = ramp(seed, 5)
    for name, path in zip(order, stack(folder / "made", voxels, **HOUNSFIELD), strict=True):
        (folder / "src").mkdir(exist_ok=True)
        path.rename(folder / "src" / f"{name}")
    cohort = prepare(folder / "src", folder / "c", window=WINDOW, on_leak="report")
    np.testing.assert_array_equal(np.asarray(cohort.images[:])[:, 0], windowed(voxels))


# ---------------------------------------------------------------- values


def test_slope_and_intercept_of_each_slice(tmp_path: Path) -> None:
    """PET: stored 1064 with slope 1 and 532 with slope 2 are the same 40 HU."""
    for index, (stored, slope) in enumerate([(1064, 1), (532, 2)]):
        pixels = np.full((SIDE, SIDE), stored, np.uint16)
        pixels[0, 0] = index
        place: dict[str, Any] = {
            "ImagePositionPatient": [0, 0, index],
            "ImageOrientationPatient": AXIAL,
            "PixelSpacing": [1, 1],
        }
        save(tmp_path / "src" / f"{index}", pixels, RescaleSlope=slope, RescaleIntercept=-1024, **place)
    cohort = prepare(tmp_path / "src", tmp_path / "c", window=WINDOW)
    assert [image[0, 1, 1] for image in cohort.images[:]] == [128, 128]


def test_percentiles_when_no_window_is_given(tmp_path: Path) -> None:
    """Values 0 … 31 in two slices: percentiles 0 and 100 are 0 and 31."""
    voxels = np.arange(32, dtype=np.int16).reshape(2, SIDE, SIDE)
    stack(tmp_path / "src", voxels)
    cohort = prepare(tmp_path / "src", tmp_path / "c", percentiles=(0.0, 100.0))
    np.testing.assert_array_equal(np.asarray(cohort.images[:])[:, 0], np.rint(voxels * (255 / 31)))
    deep = prepare(tmp_path / "src", tmp_path / "d", percentiles=(0.0, 100.0), depth="16")
    np.testing.assert_array_equal(np.asarray(deep.images[:])[:, 0], np.rint(voxels * (65535 / 31)))


def test_monochrome1_and_2_make_one_picture(tmp_path: Path) -> None:
    """A radiograph without positions is one picture; where white is least, it is turned around."""
    stored = np.arange(16, dtype=np.uint16).reshape(SIDE, SIDE) * 273  # 0 … 4095
    common: dict[str, Any] = {"BitsStored": 12, "Modality": "CR", "PatientID": "N"}
    save(tmp_path / "src" / "a", stored, SeriesInstanceUID="1.1", **common)
    turned: dict[str, Any] = {"PhotometricInterpretation": "MONOCHROME1", "PatientID": "T"}
    save(tmp_path / "src" / "b", 4095 - stored, SeriesInstanceUID="1.2", **(common | turned))
    options: dict[str, Any] = {"percentiles": (0.0, 100.0), "on_leak": "report"}
    for depth, top in (("auto", 255), ("16", 65535)):
        cohort = prepare(tmp_path / "src", tmp_path / f"c{depth}", depth=depth, **options)
        expected = np.arange(16).reshape(SIDE, SIDE) * (top // 15)
        np.testing.assert_array_equal(images_of(cohort, "N"), [[expected]])
        np.testing.assert_array_equal(images_of(cohort, "T"), [[expected]])
        assert cohort.records["slice"].to_pylist() == [-1, -1]
    windowed_too = prepare(tmp_path / "src", tmp_path / "w", window=(2048, 4096), **options)
    # The window speaks of stored values: 0 … 4095 of the turned one, inverted, are 0 … 4095 again.
    np.testing.assert_array_equal(images_of(windowed_too, "T"), images_of(windowed_too, "N"))


def test_frames_and_slices_of_one_value_have_one_level(tmp_path: Path) -> None:
    """A windowed picture without a position keeps its 16 bits as a slice does."""
    stored = np.full((SIDE, SIDE), 1064, np.uint16)
    stored[0] = 0
    save(tmp_path / "src" / "a", stored, **HOUNSFIELD)
    cohort = prepare(tmp_path / "src", tmp_path / "c", window=WINDOW, depth="16")
    assert cohort.images[0][0, 1, 1] == 32849


def test_colour_and_gray(tmp_path: Path) -> None:
    """Luma of (200, 100, 50) is 0.299 · 200 + 0.587 · 100 + 0.114 · 50 = 124.2."""
    pixels = np.full((SIDE, SIDE, 3), [200, 100, 50], np.uint8)
    pixels[0, 0] = 0
    tags: dict[str, Any] = {
        "SamplesPerPixel": 3,
        "PlanarConfiguration": 0,
        "PhotometricInterpretation": "RGB",
        "Modality": "US",
    }
    save(tmp_path / "src" / "a", pixels, **tags)
    cohort = prepare(tmp_path / "src", tmp_path / "c")
    assert cohort.channels == ("red", "green", "blue")
    assert cohort.images[0][:, 1, 1].tolist() == [200, 100, 50]
    assert prepare(tmp_path / "src", tmp_path / "d", color="gray").images[0][:, 1, 1].tolist() == [124]
    assert prepare(tmp_path / "src", tmp_path / "e", depth="16").images[0][:, 1, 1].tolist() == [51400, 25700, 12850]


def test_frames_of_one_file(tmp_path: Path) -> None:
    """Frames without positions are pictures 0, 1, 2; with positions, slices in their order."""
    frames = np.random.default_rng(0).integers(0, 256, (3, SIDE, SIDE), dtype=np.uint8)
    save(tmp_path / "cine" / "a", frames, NumberOfFrames=3, Modality="XA")
    cohort = prepare(tmp_path / "cine", tmp_path / "c")
    np.testing.assert_array_equal(np.asarray(cohort.images[:])[:, 0], frames)
    assert cohort.records["slice"].to_pylist() == [0, 1, 2]
    (tmp_path / "enhanced").mkdir()
    stored = np.stack([np.full((SIDE, SIDE), value, np.int16) for value in (100, 50, 20)])
    enhanced(tmp_path / "enhanced", stored, [4, 0, 2])  # slopes 1, 2, 3, intercept −10: 90, 90 and 50
    cohort = prepare(tmp_path / "enhanced", tmp_path / "d", window=(70.5, 81), fit="stretch")
    # Window 70.5 ± 40: (90 − 70) / 80 + 0.5 = 0.75 of 255, and (50 − 70) / 80 + 0.5 = 0.25 of it.
    assert [int(image[0, 0, 0]) for image in cohort.images[:]] == [191, 64, 191]


def test_pictures_do_not_shrink_volumes(tmp_path: Path) -> None:
    """A large radiograph in the same tree has no say in the scale that all volumes share."""
    stack(tmp_path / "src", ramp(0), patient="A", **HOUNSFIELD)
    save(tmp_path / "src" / "x", np.random.default_rng(0).integers(0, 255, (40, 40), dtype=np.uint8), PatientID="B")
    cohort = prepare(tmp_path / "src", tmp_path / "c", window=WINDOW)
    np.testing.assert_array_equal(np.asarray(images_of(cohort, "A"))[:, 0], windowed(ramp(0)))


# ---------------------------------------------------------------- what is taken


def test_derived_series_and_localizers(tmp_path: Path) -> None:
    stack(tmp_path / "src" / "a", ramp(0), series="1")
    stack(tmp_path / "src" / "b", ramp(1), series="2", ImageType=["DERIVED", "SECONDARY"])
    stack(tmp_path / "src" / "c", ramp(2), series="3", ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    cohort = prepare(tmp_path / "src", tmp_path / "c")
    assert len(cohort) == 3
    assert "2 derived or localizer series were left out. Pass --derived" in notes(cohort)
    everything = prepare(tmp_path / "src", tmp_path / "d", derived=True)
    assert len(everything) == 9
    assert "left out" not in notes(everything)
    for path in (tmp_path / "src" / "a").iterdir():
        path.unlink()
    refuse(tmp_path / "src", tmp_path / "e", InputError, "all 2 series are refused; the first: .*Pass --derived")


def test_patients_without_an_id(tmp_path: Path) -> None:
    """Two studies without a PatientID are two patients, and so are two files without any UID."""
    for name, uid in (("a", "1.5"), ("b", "1.6")):
        common: dict[str, Any] = {"PatientID": "", "StudyInstanceUID": uid, "SeriesInstanceUID": f"{uid}.1"}
        save(
            tmp_path / "src" / name, np.random.default_rng(len(uid)).integers(0, 255, (4, 4), dtype=np.uint8), **common
        )
    for name in ("c", "d"):
        bare: dict[str, Any] = {"PatientID": None, "StudyInstanceUID": None, "SeriesInstanceUID": None}
        save(tmp_path / "src" / name, np.full((4, 4), ord(name), np.uint8), **bare)
    cohort = prepare(tmp_path / "src", tmp_path / "c", on_leak="report")
    assert sorted(who(cohort).values()) == ["1.5", "1.6", "c", "d"]
    assert "Some series have no PatientID" in notes(cohort)
    chosen = prepare(tmp_path / "src", tmp_path / "d", on_leak="report", subject_pattern="^(.)")
    assert sorted(who(chosen).values()) == ["a", "b", "c", "d"]
    assert "PatientID" not in notes(chosen)


@pytest.mark.parametrize(
    ("tags", "said"),
    [
        ({"BurnedInAnnotation": "YES"}, "1 of 1 series say that names may be burned into"),
        ({"BurnedInAnnotation": "NO"}, ""),
        ({"BodyPartExamined": "HEAD"}, "1 of 1 series are of the head"),
        ({"BodyPartExamined": "HEAD", "RecognizableVisualFeatures": "NO"}, ""),
        ({"BodyPartExamined": "HEAD", "DeidentificationMethod": "defaced"}, ""),
        ({"BodyPartExamined": "CHEST"}, ""),
    ],
)
def test_notes_of_what_may_name_somebody(tmp_path: Path, tags: dict[str, Any], said: str) -> None:
    stack(tmp_path / "src", ramp(0), **tags)
    text = notes(prepare(tmp_path / "src", tmp_path / "c"))
    assert said in text
    assert ("burned" in text, "head" in text) == ("burned" in said, "head" in said)


def test_other_files_are_left_out_with_a_note(tmp_path: Path) -> None:
    stack(tmp_path / "src", ramp(0))
    (tmp_path / "src" / "README").write_text("nothing to see\n" * 20)
    save(tmp_path / "src" / "report.dcm", None, Modality="SR", SeriesInstanceUID="1.9")
    cohort = prepare(tmp_path / "src", tmp_path / "c")
    assert "2 of 5 files are no DICOM images: left out." in notes(cohort)
    assert cohort.header.content["skipped"] == 0


# ---------------------------------------------------------------- series as channels

PATTERN = "(?i)(t1|t2)"


def study(folder: Path, patient: str, seeds: tuple[int, int], **second: Any) -> tuple[np.ndarray, np.ndarray]:
    """Two series of one study, t1 and t2, on one grid; ``second`` are tags of the t2."""
    t1, t2 = (ramp(seed) for seed in seeds)
    stack(folder / "x", t1, patient=patient, series="1", SeriesDescription="AX T1 post", **HOUNSFIELD)
    stack(folder / "y", t2, patient=patient, series="2", **({"SeriesDescription": "ax t2"} | HOUNSFIELD | second))
    return t1, t2


def test_series_become_channels(tmp_path: Path) -> None:
    t1, t2 = study(tmp_path / "src" / "p", "P", (0, 1))
    stack(tmp_path / "src" / "z", ramp(2), patient="P", series="3", SeriesDescription="DWI", **HOUNSFIELD)
    cohort = prepare(tmp_path / "src", tmp_path / "c", channel_pattern=PATTERN, window=WINDOW)
    assert cohort.channels == ("t1", "t2")
    assert np.asarray(cohort.images[:]).tolist() == [
        [windowed(a).tolist(), windowed(b).tolist()] for a, b in zip(t1, t2, strict=True)
    ]
    assert "1 series were left out, because no channel is taken from them" in notes(cohort)
    turned = prepare(tmp_path / "src", tmp_path / "d", channel_pattern=PATTERN, window=WINDOW, channels=("t2", "t1"))
    assert turned.channels == ("t2", "t1")
    np.testing.assert_array_equal(np.asarray(turned.images[:]), np.asarray(cohort.images[:])[:, ::-1])
    alone = prepare(tmp_path / "src", tmp_path / "e", channel_pattern=PATTERN, window=WINDOW, channels=("t2",))
    np.testing.assert_array_equal(np.asarray(alone.images[:])[:, 0], windowed(t2))
    refuse(tmp_path / "src", tmp_path / "f", SettingsError, "no series description", channel_pattern="(flair)")
    wrong = {"channel_pattern": PATTERN, "channels": ("t3",)}
    refuse(tmp_path / "src", tmp_path / "f", SettingsError, "t3 not found; there are t1, t2", **wrong)


def test_channels_on_another_grid(tmp_path: Path) -> None:
    """t2 has pixels twice as large from the same first corner: brought onto t1's grid, or skipped."""
    study(tmp_path / "src" / "a", "A", (0, 1))
    _, t2 = study(tmp_path / "src" / "b", "B", (2, 3), PixelSpacing=[2, 2])
    options: dict[str, Any] = {"channel_pattern": PATTERN, "window": WINDOW}
    refuse(tmp_path / "src", tmp_path / "c", PictureError, "lies on another grid.*--resample-channels", **options)
    rest = prepare(tmp_path / "src", tmp_path / "d", on_bad_file="skip", **options)
    assert list(who(rest).values()) == ["A"]
    assert "lies on another grid" in skipped(rest)[0][1]
    joined = prepare(tmp_path / "src", tmp_path / "e", resample_channels=True, **options)
    # Pixel (row, column) of t1 lies at (row / 2, column / 2) of t2: every other one on a pixel, others between two.
    levels = (windowed_float(t2)[..., :2, :2], np.asarray(images_of(joined, "B"))[:, 1])
    np.testing.assert_array_equal(levels[1][:, ::2, ::2], np.rint(levels[0]))
    between = (levels[0][:, 0, 0] + levels[0][:, 0, 1]) / 2
    np.testing.assert_allclose(levels[1][:, 0, 1], between, atol=0.51)


def windowed_float(stored: np.ndarray) -> np.ndarray:
    result: np.ndarray = np.clip(((stored.astype(np.float64) - 1024 - 39.5) / 400 + 0.5) * 255, 0, 255)
    return result


@pytest.mark.parametrize("frame", ["1.99", None])
def test_another_frame_of_reference_is_another_place(tmp_path: Path, frame: str | None) -> None:
    """Same study and numbers, but nobody knows how the two lie to each other; nor where no frame is given."""
    study(tmp_path / "src" / "a", "A", (0, 1))
    study(tmp_path / "src" / "b", "B", (2, 3), FrameOfReferenceUID=frame)
    if frame is None:
        for path in (tmp_path / "src" / "b" / "x").iterdir():
            dataset = pydicom.dcmread(path)
            del dataset.FrameOfReferenceUID
            dataset.save_as(path)
    options: dict[str, Any] = {"channel_pattern": PATTERN, "window": WINDOW}
    refuse(tmp_path / "src", tmp_path / "c", PictureError, "has no t2 series that shares its frame", **options)
    cohort = prepare(tmp_path / "src", tmp_path / "d", on_bad_file="skip", **options)
    assert list(who(cohort).values()) == ["A"]
    assert sorted("no t1" in reason for _, reason in skipped(cohort)) == [False, True]


def test_a_study_that_lacks_a_channel(tmp_path: Path) -> None:
    study(tmp_path / "src" / "a", "A", (0, 1))
    stack(tmp_path / "src" / "b", ramp(2), patient="B", SeriesDescription="T1", **HOUNSFIELD)
    options: dict[str, Any] = {"channel_pattern": PATTERN, "window": WINDOW}
    refuse(tmp_path / "src", tmp_path / "c", PictureError, "its study has no t2 series", **options)
    cohort = prepare(tmp_path / "src", tmp_path / "d", on_bad_file="skip", **options)
    assert len(cohort) == 3
    assert [source.split("/")[0] for source, _ in skipped(cohort)] == ["b"]


def test_two_series_for_one_channel(tmp_path: Path) -> None:
    """A scan that was repeated: said, or the study is skipped and the others stay."""
    study(tmp_path / "src" / "a", "A", (0, 1))
    study(tmp_path / "src" / "b", "B", (2, 3))
    stack(tmp_path / "src" / "again", ramp(4), patient="B", series="9", SeriesDescription="T2 rpt", **HOUNSFIELD)
    options: dict[str, Any] = {"channel_pattern": PATTERN, "window": WINDOW}
    refuse(tmp_path / "src", tmp_path / "c", PictureError, "that are both t2. Tell them apart", **options)
    cohort = prepare(tmp_path / "src", tmp_path / "d", on_bad_file="skip", **options)
    assert (list(who(cohort).values()), len(skipped(cohort))) == (["A"], 1)
    only_t1 = prepare(tmp_path / "src", tmp_path / "e", channels=("t1",), **options)
    assert sorted(who(only_t1).values()) == ["A", "B"]


def test_studies_of_two_patients_with_one_uid_stay_apart(tmp_path: Path) -> None:
    """As in data sets whose UIDs were all overwritten by one."""
    same: dict[str, Any] = {"StudyInstanceUID": "1.7", "FrameOfReferenceUID": "1.8"}
    for number, patient in enumerate(("A", "B")):
        for series, name in enumerate(("t1", "t2")):
            tags = HOUNSFIELD | same | {"SeriesDescription": name}
            place = tmp_path / "src" / patient / name
            stack(place, ramp(2 * number + series), patient=patient, series=name[1], **tags)
    cohort = prepare(tmp_path / "src", tmp_path / "c", channel_pattern=PATTERN, window=WINDOW)
    assert sorted(who(cohort).values()) == ["A", "B"]
    assert len(cohort) == 6


def test_a_series_of_labels_is_a_mask(tmp_path: Path) -> None:
    """Labels 0, 1 and 2 times 51, whatever the window of the other channel; the mask is the last channel."""
    t1 = ramp(0)
    labels = np.random.default_rng(0).integers(0, 3, t1.shape).astype(np.uint16)
    stack(tmp_path / "src" / "a", labels, series="1", SeriesDescription="mask")
    stack(tmp_path / "src" / "b", t1, series="2", SeriesDescription="t1", **HOUNSFIELD)
    cohort = prepare(tmp_path / "src", tmp_path / "c", channel_pattern="mask|t1", window=WINDOW)
    assert cohort.channels == ("t1", "mask")
    np.testing.assert_array_equal(np.asarray(cohort.images[:])[:, 0], windowed(t1))
    np.testing.assert_array_equal(np.asarray(cohort.images[:])[:, 1], labels * 51)


# ---------------------------------------------------------------- what cannot be used


def missing_slice(folder: Path) -> None:
    stack(folder, ramp(0, 5))[2].unlink()


def doubled_slice(folder: Path) -> None:
    save_stack(folder, ramp(0, 4), positions=[(0, 0, z) for z in (0, 5, 5, 10)])


def same_file_twice(folder: Path) -> None:
    paths = stack(folder, ramp(0, 3))
    (folder / "copy").write_bytes(paths[0].read_bytes())


def not_decoded(folder: Path) -> None:
    dataset = dataset_of(np.zeros((2, 2), np.uint8))
    dataset.PixelData = pydicom.encaps.encapsulate([b"\xff\xd8\xff\xd9"])
    dataset["PixelData"].is_undefined_length = True
    dataset["PixelData"].VR = "OB"
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = JPEGLSLossless
    folder.mkdir(parents=True)
    dataset.save_as(folder / "a.dcm", enforce_file_format=True)


def truncated(folder: Path) -> None:
    path = save(folder / "IM1", np.zeros((8, 8), np.uint16))
    path.write_bytes(path.read_bytes()[:-28])


def text(folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "a.DCM").write_text("nothing to see\n" * 20)


def nothing(folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "a.dcm").touch()


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (missing_slice, "a slice is missing"),
        (doubled_slice, "holds 2 slices at the same position"),
        (same_file_twice, "has two files of the same image"),
        (not_decoded, "pip install pyjpegls"),
        (truncated, "is truncated: 28 bytes of pixels are missing"),
        (text, "is not DICOM"),
        (nothing, "is not DICOM"),
    ],
)
def test_a_bad_series_does_not_stop_the_others(tmp_path: Path, make: Any, said: str) -> None:
    stack(tmp_path / "src" / "good", ramp(9), patient="good", **HOUNSFIELD)
    make(tmp_path / "src" / "bad")
    message = refuse(tmp_path / "src", tmp_path / "c", PictureError, said, window=WINDOW)
    assert str(tmp_path / "src" / "bad") in message
    cohort = prepare(tmp_path / "src", tmp_path / "d", window=WINDOW, on_bad_file="skip")
    np.testing.assert_array_equal(np.asarray(cohort.images[:])[:, 0], windowed(ramp(9)))
    ((source, reason),) = skipped(cohort)
    assert source.startswith("bad/")
    assert said in reason


def test_no_pixels_at_all(tmp_path: Path) -> None:
    save(tmp_path / "src" / "report", None, Modality="SR")
    message = refuse(
        tmp_path / "src", tmp_path / "c", InputError, r"holds no DICOM series \(.*holds no pixels \(SR\)\)"
    )
    assert "src/report" in message
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a").write_text("x" * 200)
    refuse(tmp_path / "text", tmp_path / "c", InputError, r"holds no DICOM series\. Check the path and --recipe\.")


def test_sizes_that_cannot_be_stored(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="needs --size"):
        plan_cohort(source=tmp_path, settings=recipe_settings("dicom", size=None), seed=0)


# ---------------------------------------------------------------- what leaves the source

SECRETS: dict[str, Any] = {
    "PatientName": "Duck^Donald",
    "PatientID": "PID-4711",
    "PatientBirthDate": "19340609",
    "InstitutionName": "Entenhausen Clinic",
    "ReferringPhysicianName": "Gans^Gustav",
    "StudyDate": "19991231",
    "AcquisitionDate": "19991230",
    "AccessionNumber": "ACC-0815",
    "StudyDescription": "abdomen of a duck",
    "SeriesDescription": "secret series",
    "StudyInstanceUID": "1.2.826.0.1.77.1",
    "SeriesInstanceUID": "1.2.826.0.1.77.2",
    "FrameOfReferenceUID": "1.2.826.0.1.77.3",
    "BurnedInAnnotation": "YES",
}


def everything_outside_private(cohort: Path) -> str:
    """All bytes and names of a cohort's files, and the cells of its tables (whose bytes may be compressed)."""
    said = []
    for path in sorted(cohort.rglob("*")):
        if path.is_dir() or folders.PRIVATE in path.relative_to(cohort).parts:
            continue
        said += [str(path.relative_to(cohort)), path.read_bytes().decode("latin-1")]
        if path.suffix == ".parquet":
            table = pq.read_table(path)
            said += [repr(table.to_pylist()), repr(table.schema.metadata), repr(table.schema)]
    return "\n".join(said)


def test_tags_stay_in_the_source(tmp_path: Path) -> None:
    stack(tmp_path / "src" / "named-duckburg", ramp(0), **SECRETS)
    stack(tmp_path / "src" / "other", ramp(1), patient="OTHER-1", SeriesDescription="t")
    (tmp_path / "src" / "gone.dcm").write_text("PID-4712")
    cohort = prepare(tmp_path / "src", tmp_path / "c", on_bad_file="skip")
    outside = everything_outside_private(cohort.path)
    secrets = [value for key, value in SECRETS.items() if key != "BurnedInAnnotation"]
    for secret in (*secrets, "Donald", "duckburg", "OTHER-1", "gone.dcm", "PID-4712", str(tmp_path)):
        assert secret not in outside, secret
    private = (cohort.path / folders.PRIVATE).stat().st_mode & 0o777
    assert private == 0o700
    assert "PID-4711" in who(cohort).values()


def test_bundled_files_make_a_cohort(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Some 190 files of all kinds and encodings, a third of them damaged on purpose."""
    cohort = prepare(
        BUNDLED, tmp_path / "c", on_bad_file="skip", derived=True, color="gray", size=32, on_leak="report", slices=2
    )
    assert len(cohort) > 50
    assert cohort.images.dtype == np.uint8
    assert cohort.header.content["skipped"] > 10
    for where, reason in skipped(cohort):
        assert where
        assert "\n" not in reason
        assert reason.endswith(("skip.", "again."))
    assert capfd.readouterr() == ("", "")
