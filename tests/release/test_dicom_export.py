from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from tests.release.test_bundle_images import AXIAL, NOTE, all_rows, make_folder, make_images

from unalike.images.dicom import read_series, refuse_reason, scan_dicom
from unalike.release.dicom import key_of
from unalike.release.images import write_images
from unalike.release.nifti import Grid

GRID = Grid((1.5, 2.5, 3.0), AXIAL, known=True)
KINDS = [
    (("gray",), np.uint8),
    (("gray",), np.uint16),
    (("red", "green", "blue"), np.uint8),
    (("red", "green", "blue"), np.uint16),
    (("t1", "mask"), np.uint8),
]


def _write(tmp_path: Path, channels: tuple[str, ...], dtype: Any, *, grid: Grid = GRID, name: str = "out") -> Any:
    # An odd number of pixels, so that the padding of a value is met.
    images = make_images(2, channels=len(channels), dtype=dtype, size=15)[..., :17]
    samples = make_folder(tmp_path / f"samples-{name}", images, channels=channels)
    rows = write_images(samples, all_rows(samples), tmp_path / name, formats=("dicom",), grid=grid, note=NOTE)
    return images, [[tmp_path / name / file for file in row.files["dicom"]] for row in rows]


@pytest.mark.parametrize(("channels", "dtype"), KINDS)
def test_pixels_come_back_equal(tmp_path: Path, channels: tuple[str, ...], dtype: Any) -> None:
    images, files = _write(tmp_path, channels, dtype)
    for image, paths in zip(images, files, strict=True):
        found = [pydicom.dcmread(path).pixel_array for path in paths]
        if len(found) < len(image):
            np.testing.assert_array_equal(found[0].transpose(2, 0, 1), image)
        else:
            np.testing.assert_array_equal(found, image)
        assert found[0].dtype == dtype


def test_it_says_that_it_is_synthetic_and_names_nobody(tmp_path: Path) -> None:
    _, files = _write(tmp_path, ("t1", "mask"), np.uint8)
    t1, mask = (pydicom.dcmread(path) for path in files[1])
    assert t1.SyntheticData == "YES"
    assert t1.ConversionType == "SYN"
    assert list(t1.ImageType) == ["DERIVED", "SECONDARY"]
    assert str(t1.PatientName) == "SYNTHETIC^sample-000001"
    assert t1.PatientID == "sample-000001"
    assert (t1.SeriesDescription, mask.SeriesDescription) == ("t1", "mask")
    assert t1.ImageComments == NOTE
    assert "diffusion" in t1.DerivationDescription
    assert t1.BurnedInAnnotation == "NO"
    assert "RecognizableVisualFeatures" not in t1
    assert [float(step) for step in t1.NominalScannedPixelSpacing] == [2.5, 1.5]  # between rows, between columns
    assert list(t1.PatientOrientation) == ["L", "P"]
    assert all(not element.value for element in t1 if element.VR in {"DA", "TM", "DT"})


def test_identifiers_are_one_study_a_sample_and_one_series_a_channel(tmp_path: Path) -> None:
    _, files = _write(tmp_path, ("t1", "mask"), np.uint8)
    read = [[pydicom.dcmread(path) for path in paths] for paths in files]
    assert read[0][0].StudyInstanceUID == read[0][1].StudyInstanceUID != read[1][0].StudyInstanceUID
    assert len({one.SeriesInstanceUID for pair in read for one in pair}) == 4
    assert len({one.SOPInstanceUID for pair in read for one in pair}) == 4
    _, again = _write(tmp_path, ("t1", "mask"), np.uint8, name="again")
    assert pydicom.dcmread(again[0][0]).SOPInstanceUID == read[0][0].SOPInstanceUID
    assert key_of(["a", "b"]) != key_of(["b", "a"])


def test_slices_of_a_volume_are_one_series_in_order(tmp_path: Path) -> None:
    records = [{"subject": "sample-000000", "slice": index} for index in (2, 3, 4)]
    samples = make_folder(tmp_path / "samples", make_images(3), records=records)
    rows = write_images(samples, all_rows(samples), tmp_path / "out", formats=("dicom",), grid=GRID, note=NOTE)
    read = [pydicom.dcmread(tmp_path / "out" / row.files["dicom"][0]) for row in rows]
    assert len({one.SeriesInstanceUID for one in read}) == 1
    assert [one.InstanceNumber for one in read] == [3, 4, 5]


def test_without_geometry_no_spacing_is_claimed(tmp_path: Path) -> None:
    _, files = _write(tmp_path, ("gray",), np.uint8, grid=Grid())
    found = pydicom.dcmread(files[0][0])
    assert "NominalScannedPixelSpacing" not in found
    assert not found.PatientOrientation


@pytest.mark.parametrize(("channels", "dtype"), [KINDS[1], KINDS[2]])
def test_our_own_reader_takes_it_as_a_derived_series(tmp_path: Path, channels: tuple[str, ...], dtype: Any) -> None:
    images, files = _write(tmp_path, channels, dtype)
    series, bad = scan_dicom([path for paths in files for path in paths])
    assert not bad
    assert len(series) == 2
    assert "derived" in refuse_reason(series[0], derived=False)
    chosen = next(one for one in series if files[0][0] in one.files)
    assert refuse_reason(chosen, derived=True) == ""
    found = np.concatenate([np.asarray(frame) for frame in read_series(chosen).frames])
    np.testing.assert_array_equal(np.squeeze(found), np.squeeze(images[0]))


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="dicom3tools is not installed")
@pytest.mark.parametrize(("channels", "dtype"), KINDS)
@pytest.mark.parametrize("grid", [GRID, Grid()])
def test_dciodvfy_finds_no_error(tmp_path: Path, channels: tuple[str, ...], dtype: Any, grid: Grid) -> None:
    _, files = _write(tmp_path, channels, dtype, grid=grid)
    said = subprocess.run(["dciodvfy", str(files[0][-1])], capture_output=True, text=True, check=False)
    lines = (said.stdout + said.stderr).splitlines()
    assert any("SCImage" in line for line in lines)
    # Synthetic Data (0008,001C) is newer than some versions of the program.
    assert [line for line in lines if line.startswith("Error") and "(0x0008,0x001c)" not in line] == []


@pytest.mark.skipif(shutil.which("dcmdump") is None, reason="dcmtk is not installed")
def test_dcmdump_reads_it(tmp_path: Path) -> None:
    _, files = _write(tmp_path, ("red", "green", "blue"), np.uint8)
    said = subprocess.run(["dcmdump", str(files[0][0])], capture_output=True, text=True, check=False)
    assert said.returncode == 0
    assert said.stderr == ""
    assert "SYNTHETIC^sample-000000" in said.stdout
    assert "ConversionType" in said.stdout
