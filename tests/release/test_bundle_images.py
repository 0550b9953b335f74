from __future__ import annotations

import csv
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest
from PIL import Image

from unalike import folders
from unalike.cohort.store import ImageFolder, ImageWriter, open_images
from unalike.errors import InputError, SettingsError
from unalike.images.pictures import read_picture
from unalike.images.volumes import read_volume, slice_volume
from unalike.release.images import FORMATS, write_images
from unalike.release.nifti import Grid, nominal_grid, round_significant

NOTE = "SYNTHETIC image. Released by override: because"
AXIAL = ((-1.0, 0.0, 0.0), (0.0, -1.0, 0.0), (0.0, 0.0, 1.0))
CORONAL = ((-1.0, 0.0, 0.0), (0.0, 0.0, 1.0), (0.0, -1.0, 0.0))
SAGITTAL = ((0.0, 0.0, 1.0), (-1.0, 0.0, 0.0), (0.0, -1.0, 0.0))


def make_images(count: int, *, channels: int = 1, dtype: Any = np.uint8, seed: int = 0, size: int = 16) -> np.ndarray:
    """Blurred noise (count, channels, size, size + 2): no two images, rows, columns or channels are alike."""
    random = np.random.default_rng(seed)
    noise = random.normal(0, 1, (count, channels, size + 2, size + 4))
    smooth = sum(noise[:, :, i : i + size, j : j + size + 2] for i in range(3) for j in range(3)) / 9
    full = np.iinfo(dtype).max
    return np.clip((0.5 + 0.7 * smooth) * full, 0, full).astype(dtype)


def make_folder(
    place: Path,
    images: np.ndarray,
    *,
    channels: Sequence[str] = ("gray",),
    kind: str = "samples",
    records: Sequence[dict[str, Any]] | None = None,
) -> ImageFolder:
    folders.begin_folder(place, kind=kind, settings={})
    _, _, height, width = images.shape
    writer = ImageWriter(place, channels=channels, height=height, width=width, dtype=images.dtype)
    for row, image in enumerate(images):
        record = {
            "subject": f"sample-{row:06d}",
            "source": "run",
            "role": "synthetic",
            "seed": row,
            "label": ("cat", "dog")[row % 2],
            "attributes": {"age": "61"},
        }
        writer.append(image, record | (dict(records[row]) if records else {}))
    content = writer.close() | {"generator": "diffusion"}
    inputs = {"cohort": "c" * 64, "run": "d" * 64}
    folders.finish_folder(place, kind=kind, settings={"steps": 3}, seed=5, inputs=inputs, content=content)
    return open_images(place, kind=kind)


def all_rows(folder: ImageFolder) -> np.ndarray:
    return np.arange(len(folder), dtype=np.int64)


def make_cohort(place: Path, *, orientations: Sequence[Any], spacings: Sequence[Sequence[float]]) -> ImageFolder:
    records = []
    for number, (orientation, spacing) in enumerate(zip(orientations, spacings, strict=True)):
        affine = np.eye(4)
        affine[:3, :3] = np.asarray(orientation) * np.asarray(spacing)
        affine[:3, 3] = 7.0 * number
        records.append({"subject": f"p{number}", "role": "train", "slice": 0, "affine": affine.ravel().tolist()})
    return make_folder(place, make_images(len(records)), kind="cohort", records=records)


def test_every_pixel_of_every_format_is_the_samples(tmp_path: Path) -> None:
    for name, channels, dtype in (
        ("gray8", ("gray",), np.uint8),
        ("gray16", ("gray",), np.uint16),
        ("colour8", ("red", "green", "blue"), np.uint8),
        ("colour16", ("red", "green", "blue"), np.uint16),
        ("masked", ("t1", "mask"), np.uint8),
    ):
        images = make_images(3, channels=len(channels), dtype=dtype)
        samples = make_folder(tmp_path / name, images, channels=channels)
        out = tmp_path / f"{name}-bundle"
        rows = write_images(samples, np.array([0, 2]), out, formats=FORMATS, grid=Grid(), note=NOTE)
        assert [row.sample for row in rows] == ["sample-000000", "sample-000002"]
        for row, image in zip(rows, images[[0, 2]], strict=True):
            planes = [read_picture(out / file) for file in row.files["png"]]
            assert len(planes) == (1 if name in {"gray8", "gray16", "colour8"} else len(channels))
            np.testing.assert_array_equal(np.concatenate(planes), image)
            assert planes[0].dtype == dtype
            for file, plane in zip(row.files["nifti"], image, strict=True):
                stored = nib.load(out / file)
                assert stored.get_data_dtype() == dtype
                # Rows from the bottom up, as programs take them where nothing is said.
                np.testing.assert_array_equal(np.asarray(stored.dataobj)[:, ::-1, 0].T, plane)
        np.testing.assert_array_equal(open_images(out / "samples", kind="samples").images[:], images[[0, 2]])


def test_labels_list_each_image_with_its_files(tmp_path: Path) -> None:
    samples = make_folder(tmp_path / "samples", make_images(3, channels=2), channels=("t1 w/c", "mask"))
    write_images(samples, all_rows(samples), tmp_path / "out", formats=("png", "samples"), grid=Grid(), note=NOTE)
    with (tmp_path / "out" / "labels.csv").open(newline="") as stream:
        lines = list(csv.DictReader(stream))
    assert lines[1] == {
        "sample": "sample-000001",
        "seed": "1",
        "label": "dog",
        "slice": "",
        "width": "18",
        "height": "16",
        "png": "images/png/sample-000001-t1_w_c.png;images/png/sample-000001-mask.png",
    }
    assert all((tmp_path / "out" / file).is_file() for line in lines for file in line["png"].split(";"))


def test_the_note_is_in_every_file_that_holds_text_and_nothing_else_is(tmp_path: Path) -> None:
    samples = make_folder(tmp_path / "samples", make_images(1))
    write_images(samples, all_rows(samples), tmp_path / "out", formats=FORMATS, grid=Grid(), note=NOTE)
    with Image.open(tmp_path / "out/images/png/sample-000000.png") as picture:
        assert picture.info == {"Software": folders.made_by(), "Description": NOTE}
    header = nib.load(tmp_path / "out/images/nifti/sample-000000.nii.gz").header
    assert bytes(header["descrip"]).decode().startswith("geometry unknown; SYNTHETIC image. Released by override")
    kept = open_images(tmp_path / "out/samples", kind="samples")
    assert kept.header.content["note"] == NOTE
    assert kept.header.inputs == {}
    assert kept.header.settings == {}
    assert kept.attributes() == [{}]
    assert kept.header.content["label_counts"] == {"cat": 1}


def test_a_note_in_any_script_is_kept(tmp_path: Path) -> None:
    samples = make_folder(tmp_path / "samples", make_images(1))
    note = "SYNTHETIC. Übersteuert → 緊急\\"
    write_images(samples, all_rows(samples), tmp_path / "out", formats=FORMATS, grid=Grid(), note=f" {note}\n")
    with Image.open(tmp_path / "out/images/png/sample-000000.png") as picture:
        assert picture.info["Description"] == note
    assert pydicom.dcmread(tmp_path / "out/images/dicom/sample-000000.dcm").ImageComments == note
    header = nib.load(tmp_path / "out/images/nifti/sample-000000.nii.gz").header
    assert bytes(header["descrip"]).startswith(b"geometry unknown; SYNTHETIC. ?bersteuert ? ??")


def test_written_twice_every_byte_is_the_same(tmp_path: Path) -> None:
    samples = make_folder(tmp_path / "samples", make_images(3, channels=2), channels=("t1", "mask"))
    for name in ("a", "b"):
        write_images(samples, all_rows(samples), tmp_path / name, formats=FORMATS, grid=Grid(), note=NOTE)
    assert folders.digest_tree(tmp_path / "a") == folders.digest_tree(tmp_path / "b")


def test_slices_of_one_sample_become_one_volume_with_removed_ones_dark(tmp_path: Path) -> None:
    images = make_images(6)
    records = [{"subject": f"sample-{row // 3:06d}", "slice": 4 + row % 3} for row in (2, 0, 1, 3, 4, 5)]
    samples = make_folder(tmp_path / "samples", images, records=records)
    grid = Grid((2.0, 3.0, 4.0), AXIAL, known=True)
    kept = np.array([0, 1, 2, 3, 5])  # the second volume's middle slice was removed
    rows = write_images(samples, kept, tmp_path / "out", formats=("png", "nifti"), grid=grid, note=NOTE)
    first, second = (nib.load(tmp_path / f"out/images/nifti/sample-00000{number}.nii.gz") for number in (0, 1))
    np.testing.assert_array_equal(np.asarray(first.dataobj).transpose(2, 1, 0), images[[1, 2, 0], 0])
    assert first.header.get_zooms() == (2.0, 3.0, 4.0)
    found = np.asarray(second.dataobj).transpose(2, 1, 0)
    np.testing.assert_array_equal(found[[0, 2]], images[[3, 5], 0])
    assert not found[1].any()
    assert rows[0].files == {
        "png": ("images/png/sample-000000-s006.png",),
        "nifti": ("images/nifti/sample-000000.nii.gz",),
    }


@pytest.mark.parametrize("orientation", [AXIAL, CORONAL, SAGITTAL])
def test_nifti_lies_as_the_train_slices_do(tmp_path: Path, orientation: Any) -> None:
    spacing = (1.25, 2.5, 3.0)
    cohort = make_cohort(tmp_path / "cohort", orientations=[orientation] * 3, spacings=[spacing] * 3)
    grid = nominal_grid(cohort)
    assert grid == Grid((1.2, 2.5, 3.0), orientation, known=True)  # two digits: nobody's own
    phantom = np.zeros((1, 1, 16, 18), np.uint8)
    phantom[0, 0, 2, 5], phantom[0, 0, 13, 16] = 100, 200
    samples = make_folder(tmp_path / "samples", phantom)
    write_images(samples, all_rows(samples), tmp_path / "out", formats=("nifti",), grid=grid, note=NOTE)
    path = tmp_path / "out/images/nifti/sample-000000.nii.gz"
    found = nib.load(path)
    assert int(found.header["sform_code"]) == int(found.header["qform_code"]) == 1
    np.testing.assert_allclose(found.get_qform(), found.affine, atol=1e-5)
    stored = np.asarray(found.dataobj)
    affine = np.reshape(cohort.records["affine"][0].as_py(), (4, 4))
    for value, (row, column) in ((100, (2, 5)), (200, (13, 16))):
        here = found.affine @ [*np.argwhere(stored == value)[0], 1]
        # Millimetres from the middle of the image, as the cohort's own affine gives them.
        there = affine[:3, :3] @ [column - 8.5, row - 7.5, 0]
        np.testing.assert_allclose(here[:3], there, rtol=0.05, atol=1e-4)
    # And unalike's own reader, which turns volumes to RAS and slices them, shows the picture as it was.
    axis = {AXIAL: "axial", CORONAL: "coronal", SAGITTAL: "sagittal"}[orientation]
    slices, _ = slice_volume(read_volume(path), axis)
    np.testing.assert_array_equal(slices[0], phantom[0, 0])


def test_without_geometry_both_codes_are_0_and_the_picture_stands_upright(tmp_path: Path) -> None:
    samples = make_folder(tmp_path / "samples", make_images(1))
    grid = nominal_grid(make_folder(tmp_path / "cohort", make_images(2), kind="cohort"))
    assert grid == Grid()
    assert not grid.known
    write_images(samples, all_rows(samples), tmp_path / "out", formats=("nifti",), grid=grid, note=NOTE)
    path = tmp_path / "out/images/nifti/sample-000000.nii.gz"
    header = nib.load(path).header
    assert int(header["sform_code"]) == int(header["qform_code"]) == 0
    slices, spacing = slice_volume(read_volume(path), "axial")
    np.testing.assert_array_equal(slices[0], samples.images[0, 0])
    assert spacing == (1.0, 1.0)


def test_the_nominal_grid_is_the_subjects_median_and_the_usual_direction(tmp_path: Path) -> None:
    tilted = np.asarray(AXIAL) + 0.1
    spacings = [(1.0, 1.0, 5.0), (1.0, 1.0, 5.0), (1.57, 1.57, 5.0), (9.0, 9.0, 9.0), (8.0, 8.0, 8.0)]
    turned = [AXIAL, AXIAL, tilted, CORONAL, SAGITTAL]
    cohort = make_cohort(tmp_path / "cohort", orientations=turned, spacings=spacings)
    grid = nominal_grid(cohort)
    assert grid.orientation == AXIAL
    tilt = float(np.linalg.norm(tilted[:, 0]))
    assert grid.spacing[0] == round_significant(1.57 * tilt, 2)


def test_a_subject_with_many_slices_does_not_decide_the_grid(tmp_path: Path) -> None:
    spacings = [(1.0, 1.0, 1.0)] * 3 + [(4.0, 4.0, 4.0)] * 20
    records = [
        {"subject": f"p{min(row, 3)}", "role": "train", "affine": np.diag([*spacing, 1.0]).ravel().tolist()}
        for row, spacing in enumerate(spacings)
    ]
    cohort = make_folder(tmp_path / "cohort", make_images(23), kind="cohort", records=records)
    assert nominal_grid(cohort).spacing == (1.0, 1.0, 1.0)


def test_bad_orders_are_refused_in_one_line(tmp_path: Path) -> None:
    samples = make_folder(tmp_path / "samples", make_images(2))

    def write(folder: ImageFolder, rows: np.ndarray, formats: Sequence[Any]) -> None:
        write_images(folder, rows, tmp_path / "out", formats=formats, grid=Grid(), note=NOTE)

    with pytest.raises(SettingsError, match="jpeg: there are png"):
        write(samples, all_rows(samples), ("jpeg",))
    with pytest.raises(SettingsError, match="--formats is empty"):
        write(samples, all_rows(samples), ())
    with pytest.raises(InputError, match="no image is left"):
        write(samples, np.empty(0, np.int64), ("png",))
    named = make_folder(tmp_path / "named", make_images(1), records=[{"subject": "../../etc/passwd"}])
    with pytest.raises(InputError, match="no file name"):
        write(named, all_rows(named), ("png",))
    twice = make_folder(tmp_path / "twice", make_images(2), records=[{"subject": "sample-1", "slice": 3}] * 2)
    with pytest.raises(InputError, match="slice 3 of sample-1 occurs twice"):
        write(twice, all_rows(twice), ("nifti",))
    alike = make_folder(tmp_path / "alike", make_images(1, channels=2), channels=("a/b", "a b"))
    with pytest.raises(InputError, match="same file names"):
        write(alike, all_rows(alike), ("png",))
    assert not (tmp_path / "out" / "labels.csv").exists()


def test_pictures_that_share_a_subject_get_files_of_their_own(tmp_path: Path) -> None:
    samples = make_folder(tmp_path / "samples", make_images(2), records=[{"subject": "sample-000007"}] * 2)
    rows = write_images(samples, all_rows(samples), tmp_path / "out", formats=("png",), grid=Grid(), note=NOTE)
    assert [row.files["png"][0] for row in rows] == [
        "images/png/sample-000007.png",
        "images/png/sample-000007-2.png",
    ]


def test_no_module_of_the_bundle_loads_torch() -> None:
    names = ["images", "png", "nifti", "dicom", "descriptors", "card", "checksums", "verify"]
    lines = "; ".join(f"import unalike.release.{name}" for name in names)
    subprocess.run([sys.executable, "-c", f"import sys; {lines}; assert 'torch' not in sys.modules"], check=True)
