"""Hostile and broken sources at the command line: one line and exit code 2, or a listed skip and a whole cohort."""

from __future__ import annotations

import gzip
import io
import json
import os
import socket
import struct
import tarfile
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import nibabel as nib
import numpy as np
import pyarrow.parquet as pq
import pydicom
import pytest
import SimpleITK as sitk  # noqa: N813
import tifffile
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from PIL import Image, ImageFile, PngImagePlugin
from pydicom.dataset import FileMetaDataset
from pydicom.uid import JPEGLSLossless
from tests.images.test_dicom import dataset_of, save, save_stack

from unalike import folders
from unalike.cli import run
from unalike.cohort.plan import walk_files
from unalike.cohort.store import open_images
from unalike.errors import InputError, PictureError
from unalike.images import pictures, volumes

SIDE = 8
Capture = pytest.CaptureFixture[str]
Maker = Callable[[Path], Path]


def noise(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape or (SIDE, SIDE), dtype=np.uint8)


def picture(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noise(seed)).save(path)
    return path


def volume(path: Path, seed: int = 0, affine: np.ndarray | None = None, shape: tuple[int, ...] = (8, 8, 4)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    voxels = np.random.default_rng(seed).integers(0, 1000, shape).astype(np.int16)
    nib.save(nib.Nifti1Image(voxels, np.eye(4) if affine is None else affine), path)
    return path


def series(folder: Path, patient: str, seed: int = 0, count: int = 3) -> list[Path]:
    uid = f"1.2.{sum(map(ord, patient))}"
    voxels = np.random.default_rng(seed).integers(0, 1000, (count, SIDE, SIDE)).astype(np.int16)
    tags: dict[str, Any] = {"PatientID": patient, "StudyInstanceUID": uid, "SeriesInstanceUID": f"{uid}.1"}
    return save_stack(folder, voxels, positions=[(0, 0, 5 * k) for k in range(count)], **tags)


def four_pictures(source: Path) -> int:
    for number in range(4):
        picture(source / f"good{number}.png", number)
    return 4


def four_scans(source: Path) -> int:
    for number in range(4):
        for index, channel in enumerate(("t1", "t2")):
            volume(source / f"good{number}" / f"good{number}_{channel}.nii.gz", 2 * number + index)
    return 4


def four_series(source: Path) -> int:
    for number in range(4):
        series(source / f"good{number}", f"good{number}", number)
    return 4


GOOD: dict[str, Callable[[Path], int]] = {"folder": four_pictures, "nifti": four_scans, "dicom": four_series}
ALL = ("--size", str(SIDE), "--least-content", "0", "--near-duplicates", "0")


def prepare(recipe: str, source: Path, out: Path, *options: str) -> int:
    holdout = () if "--holdout" in options else ("--holdout", "0")
    return run(["prepare", str(source), "--out", str(out), "--recipe", recipe, *ALL, *holdout, *options])


def only_line(capfd: Capture) -> str:
    """The one line on standard error, where the settings stand before it."""
    text = capfd.readouterr()
    lines = [line for line in text.err.splitlines() if not line.startswith("settings: ")]
    assert len(lines) == 1, text.err
    assert lines[0].startswith("unalike: ")
    assert "Traceback" not in text.out + text.err
    return lines[0]


def refuse(capfd: Capture, recipe: str, source: Path, out: Path, *options: str) -> str:
    assert prepare(recipe, source, out, *options) == 2
    assert not out.exists()
    return only_line(capfd)


def accept(capfd: Capture, recipe: str, source: Path, out: Path, *options: str) -> list[dict[str, str]]:
    """Prepare, and what was listed as skipped; nothing unforeseen on standard error."""
    assert prepare(recipe, source, out, *options) == 0
    lines = capfd.readouterr().err.splitlines()
    assert all(line.startswith(("settings: ", "skipped ")) for line in lines), lines
    listed: list[dict[str, str]] = folders.read_json(out / folders.PRIVATE / folders.SKIPPED)
    assert len(listed) == open_images(out).header.content["skipped"]
    assert not (out / "unfinished.json").exists()
    return listed


# ---------------------------------------------------------------- one bad file among good ones


def beside_its_channel(path: Path) -> Path:
    """A path in a new folder, where a scan's second channel is good already."""
    path.parent.mkdir()
    if "_t1." in path.name:
        volume(path.parent / "z_t2.nii.gz", 99)
    return path


def zero_bytes(name: str) -> Maker:
    def make(source: Path) -> Path:
        path = beside_its_channel(source / "z" / name)
        path.touch()
        return path

    return make


def text_named(name: str) -> Maker:
    def make(source: Path) -> Path:
        path = beside_its_channel(source / "z" / name)
        path.write_text("Dear all,\nthis is no picture.\n" * 30)
        return path

    return make


def broken_link(name: str) -> Maker:
    def make(source: Path) -> Path:
        path = beside_its_channel(source / "z" / name)
        path.symlink_to(source / "nowhere")
        return path

    return make


def link_to_itself(name: str) -> Maker:
    def make(source: Path) -> Path:
        path = beside_its_channel(source / "z" / name)
        path.symlink_to(path)
        return path

    return make


def cut(path: Path, size: int) -> Path:
    path.write_bytes(path.read_bytes()[:size])
    return path


def truncated_png(source: Path) -> Path:
    return cut(picture(source / "z.png"), 60)


def truncated_tiff(source: Path) -> Path:
    tifffile.imwrite(source / "z.tif", noise(9, 64, 64))
    return cut(source / "z.tif", 2000)


def deep_png(source: Path) -> Path:
    Image.fromarray(noise(9).astype(np.uint16) * 257).save(source / "z.png")
    return source / "z.png"


def deep_tiff(source: Path) -> Path:
    tifffile.imwrite(source / "z.tif", noise(9).astype(np.uint16) * 257)
    return source / "z.tif"


def transparent_png(source: Path) -> Path:
    Image.fromarray(noise(9, SIDE, SIDE, 4)).save(source / "z.png")
    return source / "z.png"


def colour_png(source: Path) -> Path:
    Image.fromarray(noise(9, SIDE, SIDE, 3)).save(source / "z.png")
    return source / "z.png"


def two_frames(source: Path) -> Path:
    tifffile.imwrite(source / "z.tif", noise(9, 2, SIDE, SIDE))
    return source / "z.tif"


def swelling_tiff(source: Path) -> Path:
    """A strip of 64 MiB of zeros in 64 KiB, where 64 bytes are announced."""
    path = source / "z.tif"
    tifffile.imwrite(path, noise(9), compression="zlib")
    with tifffile.TiffFile(path) as tiff:
        where = tiff.pages[0].tags["StripOffsets"].valueoffset
        length = tiff.pages[0].tags["StripByteCounts"].valueoffset
    content = bytearray(path.read_bytes())
    strip = zlib.compress(bytes(2**26), 9)
    struct.pack_into("<I", content, where, len(content))
    struct.pack_into("<I" if len(strip) > 65535 else "<H", content, length, len(strip))
    path.write_bytes(bytes(content) + strip)
    return path


def truncated_scan(source: Path) -> Path:
    volume(source / "z" / "z_t2.nii.gz")
    return cut(volume(source / "z" / "z_t1.nii.gz"), 200)


def damaged_scan(source: Path) -> Path:
    volume(source / "z" / "z_t2.nii.gz")
    path = volume(source / "z" / "z_t1.nii.gz")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    return path


def infinite(value: float) -> Maker:
    def make(source: Path) -> Path:
        volume(source / "z" / "z_t1.nii.gz")
        voxels = np.ones((8, 8, 4), np.float32)
        voxels[1, 2, 3] = value
        nib.save(nib.Nifti1Image(voxels, np.eye(4)), source / "z" / "z_t2.nii.gz")
        return source / "z" / "z_t2.nii.gz"

    return make


def four_dimensions(source: Path) -> Path:
    volume(source / "z" / "z_t1.nii.gz")
    return volume(source / "z" / "z_t2.nii.gz", shape=(8, 8, 4, 2))


def unequal_shapes(source: Path) -> Path:
    volume(source / "z" / "z_t1.nii.gz")
    return volume(source / "z" / "z_t2.nii.gz", shape=(8, 8, 5))


def unequal_affines(source: Path) -> Path:
    volume(source / "z" / "z_t1.nii.gz")
    return volume(source / "z" / "z_t2.nii.gz", affine=np.diag([2.0, 1, 1, 1]))


def lacking(source: Path) -> Path:
    return volume(source / "z" / "z_t1.nii.gz")


def missing_slice(source: Path) -> Path:
    paths = series(source / "z", "z", 9, 5)
    paths[2].unlink()
    return paths[0]


def doubled_slice(source: Path) -> Path:
    voxels = np.zeros((3, SIDE, SIDE), np.int16)
    tags: dict[str, Any] = {"PatientID": "z", "StudyInstanceUID": "1.9", "SeriesInstanceUID": "1.9.1"}
    return save_stack(source / "z", voxels, positions=[(0, 0, 0), (0, 0, 5), (0, 0, 5)], **tags)[0]


def not_decoded(source: Path) -> Path:
    dataset = dataset_of(np.zeros((2, 2), np.uint8), SeriesInstanceUID="1.9")
    dataset.PixelData = pydicom.encaps.encapsulate([b"\xff\xd8\xff\xd9"])
    dataset["PixelData"].is_undefined_length = True
    dataset["PixelData"].VR = "OB"
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = JPEGLSLossless
    dataset.save_as(source / "z.dcm", enforce_file_format=True)
    return source / "z.dcm"


def huge_dicom(source: Path) -> Path:
    tags: dict[str, Any] = {"Rows": 65535, "Columns": 65535, "NumberOfFrames": 100_000, "SeriesInstanceUID": "1.9"}
    return save(source / "z.dcm", noise(9), **tags)


BAD: dict[str, tuple[str, Maker, str]] = {
    "empty png": ("folder", zero_bytes("z.png"), "is not a picture"),
    "empty jpeg": ("folder", zero_bytes("z.jpg"), "is not a picture"),
    "empty tiff": ("folder", zero_bytes("z.tif"), "cannot be read"),
    "empty nifti": ("nifti", zero_bytes("z_t1.nii"), "cannot be read"),
    "empty gzip": ("nifti", zero_bytes("z_t1.nii.gz"), "cannot be read"),
    "empty mha": ("nifti", zero_bytes("z_t1.mha"), "cannot be read"),
    "empty nrrd": ("nifti", zero_bytes("z_t1.nrrd"), "cannot be read"),
    "empty dicom": ("dicom", zero_bytes("z.dcm"), "is not DICOM"),
    "text as png": ("folder", text_named("z.png"), "is not a picture"),
    "text as jpeg": ("folder", text_named("z.jpeg"), "is not a picture"),
    "text as tiff": ("folder", text_named("z.tiff"), "cannot be read"),
    "text as nifti": ("nifti", text_named("z_t1.nii"), "cannot be read"),
    "text as gzip": ("nifti", text_named("z_t1.nii.gz"), "cannot be read"),
    "text as mha": ("nifti", text_named("z_t1.mha"), "cannot be read"),
    "text as nrrd": ("nifti", text_named("z_t1.nrrd"), "cannot be read"),
    "text as dicom": ("dicom", text_named("z.dcm"), "is not DICOM"),
    "broken link to a picture": ("folder", broken_link("z.png"), "cannot be read"),
    "broken link to a scan": ("nifti", broken_link("z_t1.nii.gz"), "cannot be read"),
    "broken link to a series": ("dicom", broken_link("z.dcm"), "cannot be read"),
    "picture that is a link to itself": ("folder", link_to_itself("z.png"), "cannot be read"),
    "scan that is a link to itself": ("nifti", link_to_itself("z_t1.nii.gz"), "cannot be read"),
    "series that is a link to itself": ("dicom", link_to_itself("z.dcm"), "cannot be read"),
    "truncated png": ("folder", truncated_png, "cannot be read"),
    "truncated tiff": ("folder", truncated_tiff, "cannot be read"),
    "16-bit png": ("folder", deep_png, "has 16 bits"),
    "16-bit tiff": ("folder", deep_tiff, "has 16 bits"),
    "transparent png": ("folder", transparent_png, "is transparent in places"),
    "colour among gray": ("folder", colour_png, "has 3 channels"),
    "two pages": ("folder", two_frames, "pages"),
    "swelling tiff": ("folder", swelling_tiff, "cannot be read"),
    "truncated gzip": ("nifti", truncated_scan, "cannot be read"),
    "damaged gzip": ("nifti", damaged_scan, "cannot be read"),
    "NaN": ("nifti", infinite(np.nan), "NaN or infinite"),
    "infinite": ("nifti", infinite(-np.inf), "NaN or infinite"),
    "4D": ("nifti", four_dimensions, "is 4D"),
    "unequal shapes": ("nifti", unequal_shapes, "another grid"),
    "unequal affines": ("nifti", unequal_affines, "another grid"),
    "a modality is missing": ("nifti", lacking, "no t2 volume"),
    "missing slice": ("dicom", missing_slice, "a slice is missing"),
    "doubled slice": ("dicom", doubled_slice, "at the same position"),
    "no decoder": ("dicom", not_decoded, "pip install pyjpegls"),
    "huge dicom": ("dicom", huge_dicom, "announces 100000 frames of 65535×65535"),
}


@pytest.mark.parametrize("what", BAD)
def test_one_bad_file_is_one_line_or_one_skip(tmp_path: Path, capfd: Capture, what: str) -> None:
    recipe, make, said = BAD[what]
    source = tmp_path / "src"
    good = GOOD[recipe](source)
    bad = make(source)
    line = refuse(capfd, recipe, source, tmp_path / "c")
    assert said in line
    assert bad.name in line
    (listed,) = accept(capfd, recipe, source, tmp_path / "d", "--on-bad-file", "skip")
    assert listed["source"].startswith("z")
    assert said in listed["reason"]
    assert "\n" not in listed["reason"]
    cohort = open_images(tmp_path / "d")
    assert len(set(cohort.column("subject").tolist())) == good
    assert all(np.asarray(image).any() for image in cohort.images[:])


def test_labels_outside_the_map(tmp_path: Path, capfd: Capture) -> None:
    """brats20 has labels 1, 2 and 4."""
    names = [f"BraTS20_Training_00{number}" for number in range(4)]
    for number, name in enumerate(names):
        place = tmp_path / "src" / name
        for index, channel in enumerate(("t1", "t1ce", "t2", "flair")):
            volume(place / f"{name}_{channel}.nii", 4 * number + index)
        labels = np.zeros((8, 8, 4), np.uint8)
        labels[2, 2, 2] = 3 if number == 2 else 4
        nib.save(nib.Nifti1Image(labels, np.eye(4)), place / f"{name}_seg.nii")
    line = refuse(capfd, "brats20", tmp_path / "src", tmp_path / "c")
    assert f"{names[2]}_seg.nii has label 3, which is none of 1, 2, 4" in line
    (listed,) = accept(capfd, "brats20", tmp_path / "src", tmp_path / "d", "--on-bad-file", "skip")
    assert names[2] in listed["source"]


def test_series_without_pixels(tmp_path: Path, capfd: Capture) -> None:
    """Alone they are refused; among others they are no images, and only counted."""
    save(tmp_path / "src" / "report.dcm", None, Modality="SR", SeriesInstanceUID="1.9")
    assert "report.dcm holds no pixels (SR)" in refuse(capfd, "dicom", tmp_path / "src", tmp_path / "c")
    four_series(tmp_path / "src")
    assert accept(capfd, "dicom", tmp_path / "src", tmp_path / "d") == []
    assert "1 of 13 files are no DICOM images" in " ".join(open_images(tmp_path / "d").header.content["notes"])


# ---------------------------------------------------------------- odd pictures that are fine


def save_as(mode: str, **options: Any) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        Image.fromarray(noise(7)).convert(mode).save(path, **options)

    return make


def opaque(path: Path) -> None:
    Image.merge("RGBA", [*[Image.fromarray(noise(n)) for n in (1, 2, 3)], Image.new("L", (SIDE, SIDE), 255)]).save(path)


ODD: dict[str, tuple[str, Callable[[Path], None]]] = {
    "palette": ("z.png", lambda path: Image.fromarray(noise(1, SIDE, SIDE, 3)).quantize(9).save(path)),
    "bits": ("z.png", save_as("1")),
    "opaque alpha": ("z.png", opaque),
    "CMYK": ("z.jpg", save_as("CMYK")),
    "one pixel": ("z.png", lambda path: Image.fromarray(np.array([[7]], np.uint8)).save(path)),
    "constant": ("z.png", lambda path: Image.new("L", (SIDE, SIDE), 99).save(path)),
    "black": ("z.png", lambda path: Image.new("L", (SIDE, SIDE)).save(path)),
    "long and thin": ("z.png", lambda path: Image.new("L", (3000, 1), 7).save(path)),
    "deflated tiff": ("z.tif", lambda path: tifffile.imwrite(path, noise(3), compression="zlib")),
}


@pytest.mark.parametrize("what", ODD)
def test_odd_pictures_are_taken(tmp_path: Path, capfd: Capture, what: str) -> None:
    name, make = ODD[what]
    four_pictures(tmp_path / "src")
    make(tmp_path / "src" / name)
    assert accept(capfd, "folder", tmp_path / "src", tmp_path / "c", "--color", "gray") == []
    assert len(open_images(tmp_path / "c")) == 5


def test_constant_pictures_have_no_correlation(tmp_path: Path, capfd: Capture) -> None:
    """They are stored; what cannot be compared is said to be undefined, and is nobody's copy."""
    for name in ("src", "made"):
        four_pictures(tmp_path / name)
        for number in range(4):
            Image.new("L", (SIDE, SIDE), 40 * number + 7).save(tmp_path / name / f"z{number}.png")
    assert accept(capfd, "folder", tmp_path / "src", tmp_path / "c", "--holdout", "0.5") == []
    assert accept(capfd, "folder", tmp_path / "made", tmp_path / "s", "--holdout", "0.5") == []
    code = run(["audit", str(tmp_path / "s"), "--against", str(tmp_path / "c"), "--out", str(tmp_path / "a"), "--json"])
    result = json.loads(capfd.readouterr().out)
    assert code == 0
    assert (result["counts"]["synthetic"], result["counts"]["undefined"]) == (8, 4)
    warnings = " ".join(result["verdict"]["warnings"])
    assert "4 synthetic images are constant: their correlation is undefined and they count as not flagged." in warnings


# ---------------------------------------------------------------- headers that announce too much


def png_chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def huge_png(path: Path) -> None:
    head = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0)
    rows = zlib.compress(bytes(1000))
    chunks = [png_chunk(b"IHDR", head), png_chunk(b"IDAT", rows), png_chunk(b"IEND", b"")]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))


def huge_jpeg(path: Path) -> None:
    stream = io.BytesIO()
    Image.fromarray(noise(0)).save(stream, "JPEG")
    content = stream.getvalue()
    at = content.index(b"\xff\xc0") + 5
    path.write_bytes(content[:at] + struct.pack(">HH", 60_000, 60_000) + content[at + 4 :])


def patched_tiff(path: Path, **values: int) -> None:
    tifffile.imwrite(path, noise(0, SIDE, SIDE))
    with tifffile.TiffFile(path) as tiff:
        places = {name: tiff.pages[0].tags[name] for name in values}
        spots = [(tag.valueoffset, tag.dtype.name, values[name]) for name, tag in places.items()]
    content = bytearray(path.read_bytes())
    for offset, kind, value in spots:
        struct.pack_into("<I" if kind == "LONG" else "<H", content, offset, value)
    path.write_bytes(content)


def many_samples(path: Path) -> None:
    patched_tiff(path, ImageWidth=10_000, ImageLength=10_000, SamplesPerPixel=60_000)


def huge_nifti(path: Path) -> None:
    header = nib.Nifti2Header()
    header.set_data_dtype(np.uint8)
    header.set_data_shape((2**20, 2**10, 2**10))
    header["magic"] = b"n+2\0\r\n\x1a\n"
    header["vox_offset"] = 544
    header.set_sform(np.eye(4), 1)
    content = header.binaryblock + bytes(4 + 64)
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def large_nifti(path: Path) -> None:
    """As many voxels as are allowed, in far too few bytes."""
    header = nib.Nifti1Header()
    header.set_data_dtype(np.float64)
    header.set_data_shape((1024, 1024, 1024))
    header["vox_offset"] = 352
    header["magic"] = b"n+1"
    header.set_sform(np.eye(4), 1)
    path.write_bytes(gzip.compress(header.binaryblock + bytes(4 + 10_000)))


def huge_mha(path: Path) -> None:
    lines = ["ObjectType = Image", "NDims = 3", "DimSize = 65536 65536 65536", "ElementType = MET_SHORT"]
    path.write_bytes("\n".join([*lines, "ElementDataFile = LOCAL", ""]).encode() + bytes(64))


def huge_compressed_mha(path: Path) -> None:
    lines = ["ObjectType = Image", "NDims = 3", "DimSize = 65536 65536 65536", "ElementType = MET_SHORT"]
    lines += ["CompressedData = True", "CompressedDataSize = 64"]
    path.write_bytes("\n".join([*lines, "ElementDataFile = LOCAL", ""]).encode() + bytes(64))


def huge_nrrd(path: Path) -> None:
    lines = ["NRRD0004", "type: short", "dimension: 3", "sizes: 65536 65536 65536", "encoding: raw", "endian: little"]
    path.write_bytes("\n".join([*lines, "", ""]).encode() + bytes(64))


HUGE: dict[str, tuple[str, str, Callable[[Path], object]]] = {
    "png": ("folder", "z.png", huge_png),
    "jpeg": ("folder", "z.jpg", huge_jpeg),
    "tiff": ("folder", "z.tif", lambda path: patched_tiff(path, ImageWidth=60_000, ImageLength=60_000)),
    "tiff of many samples": ("folder", "z.tif", many_samples),
    "nifti": ("nifti", "z.nii", huge_nifti),
    "gzip": ("nifti", "z.nii.gz", huge_nifti),
    "small gzip": ("nifti", "z.nii.gz", large_nifti),
    "mha": ("nifti", "z.mha", huge_mha),
    "compressed mha": ("nifti", "z.mha", huge_compressed_mha),
    "nrrd": ("nifti", "z.nrrd", huge_nrrd),
    "dicom": ("dicom", "z.dcm", lambda path: huge_dicom(path.parent)),
}


@pytest.fixture
def little_memory(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No more than 48 MiB of Python's and NumPy's memory, and no picture decoded, while the test runs."""

    def refuse_to_load(*_: object) -> None:
        raise AssertionError("pixels were decoded")

    monkeypatch.setattr(ImageFile.ImageFile, "load", refuse_to_load)
    monkeypatch.setattr(sitk.ImageFileReader, "Execute", refuse_to_load)
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    yield
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak - before < 48 * 2**20


@pytest.mark.parametrize("what", HUGE)
def test_huge_headers_are_refused_before_memory_is_taken(
    tmp_path: Path, capfd: Capture, little_memory: None, what: str
) -> None:
    recipe, name, make = HUGE[what]
    (tmp_path / "src").mkdir()
    make(tmp_path / "src" / name)
    line = refuse(capfd, recipe, tmp_path / "src", tmp_path / "c")
    assert name in line
    assert "pixels were decoded" not in line
    assert "none of the 1 files could be read" in refuse(
        capfd, recipe, tmp_path / "src", tmp_path / "c", "--on-bad-file", "skip"
    )


def test_gigabytes_behind_a_small_header(tmp_path: Path, capfd: Capture, little_memory: None) -> None:
    """A gzip of 4 GiB of zeros after an honest header: no more is unpacked than was announced."""
    four_scans(tmp_path / "src")
    path = tmp_path / "src" / "good0" / "good0_t1.nii.gz"
    whole = gzip.decompress(path.read_bytes())
    path.write_bytes(gzip.compress(whole + bytes(2**22)) + gzip.compress(bytes(2**22)) * 1024)
    accept(capfd, "nifti", tmp_path / "src", tmp_path / "c", "--on-bad-file", "skip")


def test_a_strip_that_swells(tmp_path: Path, capfd: Capture) -> None:
    (tmp_path / "src").mkdir()
    swelling_tiff(tmp_path / "src")
    tracemalloc.start()
    refuse(capfd, "folder", tmp_path / "src", tmp_path / "c")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 48 * 2**20


# ---------------------------------------------------------------- HDF5 and tasks


def patches(folder: Path, images: Any, labels: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "camelyonpatch_level_2_split_test_x.h5"
    with h5py.File(path, "w") as file:
        images(file)
    with h5py.File(folder / "camelyonpatch_level_2_split_test_y.h5", "w") as file:
        labels(file)
    return path


def six_labels(file: h5py.File) -> None:
    file["y"] = np.arange(6).reshape(6, 1, 1, 1) % 2


PATCHES = noise(3, 6, 8, 8, 3)


def external_link(file: h5py.File) -> None:
    with h5py.File(Path(file.filename).with_name("elsewhere.hdf"), "w") as other:
        other["x"] = PATCHES
    file["x"] = h5py.ExternalLink("elsewhere.hdf", "x")


def external_bytes(file: h5py.File) -> None:
    raw = Path(file.filename).with_name("secret.bin")
    raw.write_bytes(PATCHES.tobytes())
    file.create_dataset("x", PATCHES.shape, np.uint8, external=[(str(raw), 0, PATCHES.nbytes)])


HDF5: dict[str, tuple[Any, Any, str]] = {
    "no dataset": (lambda file: None, six_labels, "holds no dataset 'x'"),
    "a group": (lambda file: file.create_group("x"), six_labels, "holds no dataset 'x'"),
    "a loose link": (lambda file: file.__setitem__("x", h5py.SoftLink("/nowhere")), six_labels, "holds no dataset 'x'"),
    "a link to another file": (external_link, six_labels, "lies in another file"),
    "bytes of another file": (external_bytes, six_labels, "lies in another file"),
    "three dimensions": (lambda file: file.__setitem__("x", PATCHES[..., 0]), six_labels, "are needed"),
    "sparse": (
        lambda file: file.create_dataset("x", (2**28, 96, 96, 3), np.uint8, chunks=(1, 96, 96, 3)),
        six_labels,
        "more than it can hold",
    ),
    "large patches": (
        lambda file: file.create_dataset("x", (1, 60_000, 60_000, 3), np.uint8, chunks=(1, 96, 96, 3)),
        six_labels,
        "announces 60000×60000 pixels",
    ),
    "strings": (lambda file: file.create_dataset("x", (6, 8, 8, 3), h5py.string_dtype()), six_labels, "pixels"),
    "floats": (lambda file: file.__setitem__("x", PATCHES.astype(np.float32)), six_labels, "float32 pixels"),
    "labels of text": (
        lambda file: file.__setitem__("x", PATCHES),
        lambda file: file.__setitem__("y", [b"a"] * 6),
        "no labels that can be read",
    ),
    "too few labels": (
        lambda file: file.__setitem__("x", PATCHES),
        lambda file: file.__setitem__("y", [1, 0]),
        "2 labels for 6 images",
    ),
}


@pytest.mark.parametrize("what", HDF5)
def test_hdf5(tmp_path: Path, capfd: Capture, little_memory: None, what: str) -> None:
    images, labels, said = HDF5[what]
    patches(tmp_path / "src", images, labels)
    line = refuse(capfd, "pcam", tmp_path / "src", tmp_path / "c")
    assert said in line
    assert "camelyonpatch_level_2_split_test_" in line


@pytest.mark.parametrize("cut_at", [0, 100, 900, -100])
def test_broken_hdf5(tmp_path: Path, capfd: Capture, cut_at: int) -> None:
    path = patches(tmp_path / "src", lambda file: file.__setitem__("x", PATCHES), six_labels)
    path.write_bytes(path.read_bytes()[:cut_at])
    assert path.name in refuse(capfd, "pcam", tmp_path / "src", tmp_path / "c")


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "[" * 100_000,
        '{"modality": {"0": "MRI"}, "labels": {"1": "a"}, "training": [{"image": "../a", "label": "b"}]}',
        '{"modality": {"0": "MRI"}, "labels": {"1": "a"}, "training": [{"image": "/etc/a", "label": "b"}]}',
        '{"modality": {"0": "MRI"}, "labels": {"1": "a"}, "training": [{"image": "\\ud800", "label": "b"}]}',
        '{"modality": {"0": "MRI"}, "labels": {"%s": "a"}, "training": []}' % ("9" * 5000),
        '{"modality": {"0": "MRI"}, "labels": {"1": "a"}, "training": []}',
        '{"modality": {}, "labels": {}, "training": [{"image": "a", "label": "b"}]}',
    ],
)
def test_broken_tasks(tmp_path: Path, capfd: Capture, content: str) -> None:
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "dataset.json").write_text(content)
    assert "dataset.json" in refuse(capfd, "msd", tmp_path / "src", tmp_path / "c")


# ---------------------------------------------------------------- names, links, folders


@pytest.mark.parametrize(
    "name", ["with space", "quo'te\"", "new\nline", "ümläut 患者", "-dash", "--out", "$(touch x)", "%s{0}", "a" * 200]
)
def test_odd_names(tmp_path: Path, capfd: Capture, name: str) -> None:
    """Whatever a file is called it is taken; and if it is bad, that is still said in one line."""
    four_pictures(tmp_path / "src")
    path = picture(tmp_path / "src" / f"{name}.png", 9)
    assert accept(capfd, "folder", tmp_path / "src", tmp_path / "c") == []
    assert len(open_images(tmp_path / "c")) == 5
    cut(path, 60)
    line = refuse(capfd, "folder", tmp_path / "src", tmp_path / "d")
    assert " ".join(name.split()) in line
    (listed,) = accept(capfd, "folder", tmp_path / "src", tmp_path / "e", "--on-bad-file", "skip")
    assert listed["source"] == f"{name}.png".replace("\n", "\\n")


def test_links_that_make_loops(tmp_path: Path, capfd: Capture) -> None:
    """Each picture once, by its own name, however many ways lead to it; nothing outside the source."""
    source = tmp_path / "outer" / "src"
    four_pictures(source / "z" / "deep")
    picture(tmp_path / "outer" / "foreign.png")
    (source / "0parent").symlink_to(tmp_path / "outer", target_is_directory=True)
    (source / "0self").symlink_to(source, target_is_directory=True)
    (source / "0short").symlink_to(source / "z" / "deep", target_is_directory=True)
    (source / "z" / "deep" / "up").symlink_to(source / "z", target_is_directory=True)
    (source / "round").symlink_to(source / "round")
    files, notes = walk_files(source, (".png",))
    assert [path.relative_to(source).as_posix() for path in files] == [f"z/deep/good{n}.png" for n in range(4)]
    assert notes == ["4 folders that symbolic links reach a second time were taken once."]
    assert accept(capfd, "folder", source, tmp_path / "c") == []
    assert len(open_images(tmp_path / "c")) == 4


def test_links_to_folders_elsewhere_are_followed(tmp_path: Path) -> None:
    four_pictures(tmp_path / "elsewhere")
    picture(tmp_path / "src" / "own.png")
    (tmp_path / "src" / "link").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (tmp_path / "src" / "again").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    files, notes = walk_files(tmp_path / "src")
    assert [path.parent.name for path in files] == ["again"] * 4 + ["src"]
    assert notes == ["1 folders that symbolic links reach a second time were taken once."]


def test_pipes_and_sockets_are_not_waited_for(tmp_path: Path, capfd: Capture, monkeypatch: Any) -> None:
    four_pictures(tmp_path / "src")
    os.mkfifo(tmp_path / "src" / "pipe.png")
    monkeypatch.chdir(tmp_path / "src")  # names of sockets must be short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket.png")
        assert accept(capfd, "folder", tmp_path / "src", tmp_path / "c") == []
    assert "2 pipes, sockets or devices were left out." in open_images(tmp_path / "c").header.content["notes"]
    assert "is a file" in refuse(capfd, "folder", tmp_path / "src" / "pipe.png", tmp_path / "d")


@pytest.mark.parametrize("recipe", ["folder", "nifti", "dicom", "pcam", "msd", "chexpert"])
def test_empty_folders(tmp_path: Path, capfd: Capture, recipe: str) -> None:
    (tmp_path / "src" / "below").mkdir(parents=True)
    assert f"{tmp_path / 'src'} holds no" in refuse(capfd, recipe, tmp_path / "src", tmp_path / "c")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_what_may_not_be_read(tmp_path: Path, capfd: Capture) -> None:
    four_pictures(tmp_path / "src")
    bad = picture(tmp_path / "src" / "z" / "z.png", 9)
    bad.chmod(0)
    assert "z.png cannot be read" in refuse(capfd, "folder", tmp_path / "src", tmp_path / "c")
    assert len(accept(capfd, "folder", tmp_path / "src", tmp_path / "d", "--on-bad-file", "skip")) == 1
    bad.parent.chmod(0)
    assert "z cannot be listed" in refuse(capfd, "folder", tmp_path / "src", tmp_path / "e")
    bad.parent.chmod(0o700)


def test_a_folder_that_cannot_be_listed_is_no_empty_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    four_pictures(tmp_path / "src")
    (tmp_path / "src" / "z").mkdir()
    plain = os.scandir

    def scandir(place: Path) -> Any:
        if Path(place).name == "z":
            raise PermissionError(13, "Permission denied", str(place))
        return plain(place)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(InputError, match=r"z cannot be listed \(Permission denied\)"):
        walk_files(tmp_path / "src")


@pytest.mark.parametrize(
    ("recipe", "name"), [("folder", b"z\xff.png"), ("nifti", b"z\xff_t1.nii.gz"), ("dicom", b"z\xff.dcm")]
)
def test_bad_files_whose_names_are_no_text(tmp_path: Path, capfd: Capture, recipe: str, name: bytes) -> None:
    GOOD[recipe](tmp_path / "src")
    try:
        (tmp_path / "src" / os.fsdecode(name)).write_bytes(b"no picture" * 30)
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    refuse(capfd, recipe, tmp_path / "src", tmp_path / "c")
    (listed,) = accept(capfd, recipe, tmp_path / "src", tmp_path / "d", "--on-bad-file", "skip")
    assert listed["source"].startswith("z\\xff")


def test_masks_alone(tmp_path: Path, capfd: Capture) -> None:
    for number in range(3):
        volume(tmp_path / "src" / f"p{number}_seg.nii.gz", number)
        series(tmp_path / "dicom" / str(number), f"p{number}", number)
    assert "masks alone" in refuse(capfd, "nifti", tmp_path / "src", tmp_path / "c")
    for path in (tmp_path / "dicom").rglob("*.dcm"):
        dataset = pydicom.dcmread(path)
        dataset.SeriesDescription = "Mask"
        dataset.save_as(path)
    assert "a mask alone" in refuse(capfd, "dicom", tmp_path / "dicom", tmp_path / "c", "--channel-pattern", "Mask")


@pytest.mark.parametrize("tag", ["ImagePositionPatient", "PixelSpacing", "ImageOrientationPatient", "RescaleSlope"])
def test_numbers_that_overflow(tmp_path: Path, capfd: Capture, tag: str) -> None:
    """1e300 is a finite number, but its square is not."""
    four_series(tmp_path / "src")
    for path in series(tmp_path / "src" / "z", "z", 9):
        dataset = pydicom.dcmread(path)
        old: Any = dataset.get(tag)
        setattr(dataset, tag, "1e300" if tag == "RescaleSlope" else ["1e300", *list(old)[1:]])
        dataset.save_as(path)
    assert "z/" in refuse(capfd, "dicom", tmp_path / "src", tmp_path / "c")
    assert len(accept(capfd, "dicom", tmp_path / "src", tmp_path / "d", "--on-bad-file", "skip")) in (1, 3)


# ---------------------------------------------------------------- archives


def entry(name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


TARS = {
    "../x": entry("../x"),
    "/abs": entry("/abs"),
    "a/../../x": entry("a/../../x"),
    "link": entry("link", tarfile.SYMTYPE, "../outside"),
    "a/up": entry("a/up", tarfile.SYMTYPE, "../../outside"),
    "away": entry("away", tarfile.SYMTYPE, "/etc"),
    "a/hard": entry("a/hard", tarfile.LNKTYPE, "../x"),
}


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:xz"])
@pytest.mark.parametrize("name", TARS)
def test_tars_that_climb_out(tmp_path: Path, capfd: Capture, mode: Any, name: str) -> None:
    with tarfile.open(tmp_path / "scans.tar", mode) as tar:
        tar.addfile(entry("a/good.png"))
        tar.addfile(TARS[name])
    line = refuse(capfd, "folder", tmp_path / "scans.tar", tmp_path / "c")
    assert f"climbs out of its folder ({name})" in line
    assert "Do not unpack it" in line


@pytest.mark.parametrize("name", ["../x", "/abs", "a/../../x", "a\\..\\..\\x", "C:\\x", "link"])
def test_zips_that_climb_out(tmp_path: Path, capfd: Capture, name: str) -> None:
    with zipfile.ZipFile(tmp_path / "scans.zip", "w") as archive:
        archive.writestr("a/good.png", "x")
        info = zipfile.ZipInfo(name)
        if name == "link":
            info.external_attr = 0o120777 << 16
        archive.writestr(info, "../outside")
    assert "climbs out of its folder" in refuse(capfd, "folder", tmp_path / "scans.zip", tmp_path / "c")


def test_honest_archives_are_to_be_unpacked(tmp_path: Path, capfd: Capture) -> None:
    """A link that stays inside is no harm, and a damaged archive is one all the same."""
    with tarfile.open(tmp_path / "scans.tgz", "w:gz") as tar:
        tar.addfile(entry("a/b/good.png"))
        tar.addfile(entry("a/b/link", tarfile.SYMTYPE, "../good.png"))
        tar.addfile(entry("a/hard", tarfile.LNKTYPE, "a/b/good.png"))
    with zipfile.ZipFile(tmp_path / "scans.zip", "w") as archive:
        archive.writestr("..a/b..c/good.png", "x")
        info = zipfile.ZipInfo("a/b/link")
        info.external_attr = 0o120777 << 16
        archive.writestr(info, "../good.png")
    for name in ("scans.tgz", "scans.zip"):
        line = refuse(capfd, "folder", tmp_path / name, tmp_path / "c")
        assert line.endswith(f"{name} is an archive. Unpack it and give the folder.")
    cut(tmp_path / "scans.tgz", 80)
    assert "scans.tgz is a" in refuse(capfd, "folder", tmp_path / "scans.tgz", tmp_path / "c")


@examples(max_examples=60, deadline=None)
@given(content=st.binary(max_size=300), kind=st.sampled_from(["x.zip", "x.tar", "x.tar.gz", "x.tar.xz", "x.tar.bz2"]))
def test_any_file_as_source_is_one_line(tmp_path_factory: pytest.TempPathFactory, content: bytes, kind: str) -> None:
    starts = {"x.zip": b"PK\x03\x04", "x.tar.gz": b"\x1f\x8b\x08\0", "x.tar.xz": b"\xfd7zXZ\0", "x.tar.bz2": b"BZh9"}
    path = tmp_path_factory.mktemp("archive") / kind
    path.write_bytes(starts.get(kind, b"") + content)
    with pytest.raises(InputError, match=" is a") as caught:
        walk_files(path)
    assert "\n" not in str(caught.value)


# ---------------------------------------------------------------- what pictures say of people


NAME = "Duck Donald 19340609"


def png_with_text(path: Path) -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text("Patient", NAME)
    info.add_text("Compressed", NAME, zip=True)
    info.add_itxt("International", NAME)
    Image.fromarray(noise(5)).save(path, pnginfo=info)


def jpeg_with_exif(path: Path) -> None:
    exif = Image.Exif()
    exif[0x010E], exif[0x013B] = NAME, NAME
    Image.fromarray(noise(6)).save(path, exif=exif, comment=NAME.encode())


def tiff_with_tags(path: Path) -> None:
    tifffile.imwrite(path, noise(7), description=NAME, software=NAME, metadata={"Patient": NAME})


@pytest.mark.parametrize(
    ("name", "make"), [("z.png", png_with_text), ("z.jpg", jpeg_with_exif), ("z.tif", tiff_with_tags)]
)
def test_what_a_picture_says_of_its_patient_stays_in_it(
    tmp_path: Path, capfd: Capture, name: str, make: Callable[[Path], None]
) -> None:
    source = tmp_path / "src"
    four_pictures(source)
    make(source / name)
    picture(source / "Donald Duck.png", 8)
    assert accept(capfd, "folder", source, tmp_path / "c") == []
    said = []
    for path in (tmp_path / "c").rglob("*"):
        if path.is_file() and folders.PRIVATE not in path.relative_to(tmp_path / "c").parts:
            said += [path.name, path.read_bytes().decode("latin-1")]
            said += [json.dumps(pq.read_table(path).to_pylist(), default=str)] if path.suffix == ".parquet" else []
    for secret in ("Duck", "19340609", "Donald", str(source)):
        assert secret not in "\n".join(said)


# ---------------------------------------------------------------- damage anywhere


def seeds_of_damage(folder: Path) -> dict[str, bytes]:
    """A small file of each kind whose library keeps silent, or can be silenced."""
    voxels = np.random.default_rng(0).integers(0, 900, (8, 8, 6)).astype(np.int16)
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, NAME
    Image.fromarray(noise(0)).save(folder / "a.png")
    Image.fromarray(noise(0, SIDE, SIDE, 3)).quantize(9).save(folder / "p.png")
    Image.fromarray(noise(0)).save(folder / "a.jpg", exif=exif)
    tifffile.imwrite(folder / "a.tif", noise(0))
    tifffile.imwrite(folder / "z.tif", noise(0, 32, 32), compression="zlib", tile=(16, 16))
    nib.save(nib.Nifti1Image(voxels, np.eye(4)), folder / "a.nii")
    nib.save(nib.Nifti1Image(voxels, np.eye(4)), folder / "a.nii.gz")
    sitk.WriteImage(sitk.GetImageFromArray(voxels), str(folder / "a.nrrd"))
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_damage_is_told_once_and_by_us(tmp_path: Path, capfd: Capture) -> None:
    """Whatever bytes change: pixels, or one line; and not a word of the libraries, which might quote a tag."""
    random = np.random.default_rng(4)
    told: list[tuple[str, str]] = []
    for name, whole in seeds_of_damage(tmp_path).items():
        read = pictures.read_picture if name.endswith(("png", "jpg", "tif")) else volumes.read_volume
        for _ in range(40):
            content = bytearray(whole)
            for place in random.integers(0, min(len(content), 400), 3):
                content[place] = random.choice([0, 1, 255, int(random.integers(256))])
            (tmp_path / name).write_bytes(content[: random.choice([len(content), int(random.integers(len(content)))])])
            try:
                read(tmp_path / name)
            except PictureError as error:
                told.append((name, str(error)))
    assert all(name in line and "\n" not in line for name, line in told)
    assert max(len(line.replace(str(tmp_path), "")) for _, line in told) < 400
    assert len(told) > 50
    assert capfd.readouterr() == ("", "")
