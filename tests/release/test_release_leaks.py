from __future__ import annotations

import base64
import gzip
import io
import json
import random as dice
import shutil
import struct
import subprocess
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zarr
from PIL import Image, PngImagePlugin

from unalike import folders
from unalike.cohort.store import ImageWriter, open_images
from unalike.errors import FolderError
from unalike.release import decoded
from unalike.release.leaks import Leak, search_bundle
from unalike.release.needles import WIDTH, NameNeedles, Table, choose_runs, roll

SIZE, IMAGES = 32, 12
PATIENT, FILE = "MRN-4711/Müller", "scans/site b/patient17_t1.nii.gz"


def draw(seed: int, count: int = 1, depth: int = 256) -> np.ndarray:
    """Pictures (count, SIZE, SIZE): a bright disc of a smooth field and noise on a black ground."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:SIZE, :SIZE] - SIZE / 2 + 0.5
    waves = random.normal(0, 0.2, (count, 2)) @ np.stack([x.ravel(), y.ravel()])
    field = 0.5 + 0.2 * np.sin(waves).reshape(count, SIZE, SIZE) + random.normal(0, 0.05, (count, SIZE, SIZE))
    field[:, x**2 + y**2 > (SIZE / 2) ** 2] = 0
    return np.clip(field * (depth - 1), 0, depth - 1).astype(np.uint8 if depth == 256 else np.uint16)


def write_cohort(out: Path, pixels: np.ndarray, channels: tuple[str, ...] = ("t1weighted",)) -> Path:
    """A cohort (the first half train) of one image a subject, with its private folder."""
    folders.begin_folder(out, kind="cohort", settings={})
    writer = ImageWriter(out, channels=channels, height=SIZE, width=SIZE, dtype=pixels.dtype)
    for index, image in enumerate(pixels):
        role = "train" if index < len(pixels) // 2 else "holdout"
        names = {"subject": f"s{index:012x}"[::-1], "source": f"s{index + 500:012x}"[::-1], "label": "glioma"}
        writer.append(image, names | {"role": role})
    content = writer.close()
    private = out / folders.PRIVATE
    private.mkdir()
    table = {
        "source": writer.columns["source"],
        "path": [FILE, *(f"scans/site b/pers{index:04d}x_t1.nii.gz" for index in range(1, len(pixels)))],
        "subject": writer.columns["subject"],
        "identifier": [PATIENT, *(f"MRN-9{index:03d}/Meyer" for index in range(1, len(pixels)))],
    }
    pq.write_table(pa.table(table), private / folders.SOURCES)
    folders.finish_folder(out, kind="cohort", settings={}, seed=0, inputs={}, content=content)
    return out


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cohort(tmp_path_factory.mktemp("leaks") / "cohort", draw(1, IMAGES)[:, None])


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    place = tmp_path / "bundle"
    place.mkdir()
    return place


def train_image() -> np.ndarray:
    return draw(1, IMAGES)[0]


def as_png(pixels: np.ndarray, **words: str) -> bytes:
    info = PngImagePlugin.PngInfo()
    for key, value in words.items():
        info.add_text(key, value)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG", pnginfo=info)
    return stream.getvalue()


def as_zip(content: bytes, name: str = "inner", compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as archive:
        archive.writestr(name, content)
    return stream.getvalue()


def as_tar(content: bytes) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        info = tarfile.TarInfo("inner")
        info.size = len(content)
        archive.addfile(info, io.BytesIO(content))
    return stream.getvalue()


def as_nifti(pixels: np.ndarray, place: Path, dtype: type = np.int16) -> bytes:
    import nibabel

    volume = np.stack([draw(90)[0], pixels, draw(91)[0]], axis=1).astype(dtype)  # the slices lie along the second axis
    nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), place / "volume.nii.gz")
    content = (place / "volume.nii.gz").read_bytes()
    (place / "volume.nii.gz").unlink()
    return content


def as_dicom(pixels: np.ndarray, *, comment: str = "", deflated: bool = False) -> bytes:
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian, generate_uid

    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian if deflated else ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = generate_uid()
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.PixelRepresentation = 1, "MONOCHROME2", 0
    dataset.BitsAllocated = dataset.BitsStored = 8 * pixels.itemsize
    dataset.HighBit = dataset.BitsStored - 1
    dataset.ImageComments = comment
    dataset.PixelData = pixels.tobytes()
    stream = io.BytesIO()
    dataset.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def as_npy(values: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, values)
    return stream.getvalue()


def as_header(dtype: str, shape: str) -> bytes:
    words = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}}}".encode()
    return struct.pack("<H", len(words)) + words


def as_npz(values: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.savez_compressed(stream, some=draw(92), all=values)
    return stream.getvalue()


def as_safetensors(values: np.ndarray) -> bytes:
    from safetensors.numpy import save

    return save({"weights": np.random.default_rng(0).normal(size=99).astype(np.float32), "buffer": values})


def as_parquet(column: pa.Array, **metadata: str) -> bytes:
    stream = io.BytesIO()
    pq.write_table(pa.table({"column": column}).replace_schema_metadata(metadata), stream, compression="zstd")
    return stream.getvalue()


def as_floats(pixels: np.ndarray) -> np.ndarray:
    return pixels.astype(np.float32) / np.float32(127.5) - np.float32(1)


def paste(pixels: np.ndarray) -> np.ndarray:
    """A quarter turn of the left half of an image, in the midst of another picture."""
    picture = np.tile(draw(93)[0], (3, 3))
    turned = np.rot90(pixels[:, : SIZE // 2])
    picture[40 : 40 + turned.shape[0], 37 : 37 + turned.shape[1]] = turned
    return picture


def upscale(pixels: np.ndarray, factor: int) -> np.ndarray:
    return np.repeat(np.repeat(pixels, factor, 0), factor, 1)


def as_data_uri(content: bytes) -> bytes:
    return b'<html><img src="data:image/png;base64,' + base64.b64encode(content) + b'"></html>'


def as_wrapped_base64(content: bytes) -> bytes:
    return b"attachment:\r\n\r\n" + base64.encodebytes(content).replace(b"\n", b"\r\n")


def as_png_of_its_icon(content: bytes) -> bytes:
    """A PNG whose rows hold more than the picture: no decoder shows the rest."""
    picture = as_png(np.zeros((4, 4), np.uint8))
    body = zlib.compress(bytes(20) + content)
    chunk = struct.pack(">I", len(body)) + b"IDAT" + body + struct.pack(">I", zlib.crc32(b"IDAT" + body))
    begin = picture.index(b"IDAT") - 4
    return picture[:begin] + chunk + picture[picture.index(b"IEND") - 4 :]


PLANTED: dict[str, Callable[[np.ndarray, Path], bytes]] = {
    "png": lambda image, _: as_png(image),
    "png data URI in HTML": lambda image, _: as_data_uri(as_png(image)),
    "base64 in lines": lambda image, _: as_wrapped_base64(as_png(image)),
    "url-safe base64 of pixels in JSON": lambda image, _: json.dumps(
        {"thumb": base64.urlsafe_b64encode(image.tobytes()).decode()}
    ).encode(),
    "hexadecimal digits": lambda image, _: b"pixels = " + image.tobytes().hex().encode(),
    "numbers in JSON": lambda image, _: json.dumps({"rows": image.tolist()}, indent=1).encode(),
    "fractions in CSV": lambda image, _: "\n".join(",".join(f"{v / 255:.4f}" for v in row) for row in image).encode(),
    "numbers between words": lambda image, _: "\n".join(
        f"row {i}: {row.tolist()}" for i, row in enumerate(image)
    ).encode(),
    "text chunk": lambda image, _: as_png(draw(94)[0], note=base64.b64encode(image.tobytes()).decode()),
    "hidden rows of a PNG": lambda image, _: as_png_of_its_icon(image.tobytes()),
    "after the end of a PNG": lambda image, _: as_png(draw(94)[0]) + image.tobytes(),
    "a PNG after a PNG": lambda image, _: as_png(draw(94)[0]) + as_png(image),
    "a PNG within anything": lambda image, _: b"\x07 anything" + as_png(draw(94)[0]) + as_png(image) + bytes(9),
    "colour channel": lambda image, _: as_png(np.stack([draw(94)[0], image, draw(95)[0]], axis=-1)),
    "bmp": lambda image, _: save(image, "BMP"),
    "gif": lambda image, _: save(image, "GIF"),
    "lossless webp": lambda image, _: save(np.stack([image] * 3, -1), "WEBP", lossless=True),
    "tiff": lambda image, _: save(image, "TIFF", compression="tiff_lzw"),
    "16 bits": lambda image, _: as_png(image.astype(np.uint16)),
    "stretched to 16 bits": lambda image, _: as_png(image.astype(np.uint16) * 257),
    "turned": lambda image, _: as_png(np.ascontiguousarray(np.rot90(image))),
    "mirrored": lambda image, _: as_png(np.ascontiguousarray(image[:, ::-1])),
    "inverted": lambda image, _: as_png(255 - image),
    "twice as large": lambda image, _: as_png(upscale(image, 2)),
    "three times as large, turned, inverted": lambda image, _: as_png(np.rot90(255 - upscale(image, 3)).copy()),
    "half of it pasted": lambda image, _: as_png(paste(image)),
    "half of it pasted, twice as large": lambda image, _: as_png(upscale(paste(image), 2)),
    "NIfTI": as_nifti,
    "NIfTI of float64": lambda image, place: as_nifti(image, place, np.float64),
    "DICOM": lambda image, _: as_dicom(image),
    "DICOM of 16 bits": lambda image, _: as_dicom(image.astype(np.uint16)),
    "deflated DICOM": lambda image, _: as_dicom(image, deflated=True),
    "npy of float64": lambda image, _: as_npy(image.astype(np.float64)),
    "npy of pixels with bands": lambda image, _: as_npy(np.stack([draw(94)[0], image], -1).astype(np.int64)),
    "npz": lambda image, _: as_npz(image),
    "safetensors": lambda image, _: as_safetensors(as_floats(image)),
    "safetensors of half numbers": lambda image, _: as_safetensors((image / 255).astype(np.float16)),
    "parquet list": lambda image, _: as_parquet(pa.array([draw(94).ravel().tolist(), image.ravel().tolist()])),
    "parquet rows": lambda image, _: as_parquet(pa.array([[1, 2], *image.tolist()])),
    "parquet pictures": lambda image, _: as_parquet(pa.array([{"bytes": as_png(image), "path": ""}])),
    "float32": lambda image, _: b"\x01" + (image.astype(np.float32) / 255).tobytes(),
    "float32 from −1 to 1": lambda image, _: b"123" + as_floats(image).tobytes(),
    "float32 up to 255": lambda image, _: image.astype(np.float32).tobytes(),
    "big-endian 16 bits": lambda image, _: b"\x01" + image.astype(">u2").tobytes(),
    "32 bits": lambda image, _: b"\x01" + image.astype("<i4").tobytes(),
    "zip in zip": lambda image, _: as_zip(as_zip(image.tobytes())),
    "stored in zip": lambda image, _: as_zip(as_png(image), compression=zipfile.ZIP_STORED),
    "zip after a PNG": lambda image, _: as_png(draw(94)[0]) + as_zip(as_png(image)),
    "tar.gz": lambda image, _: as_tar(as_png(image)),
    "second gzip member": lambda image, _: gzip.compress(b"first") + gzip.compress(image.tobytes()),
    "zlib": lambda image, _: zlib.compress(image.tobytes()),
    "zstd": lambda image, _: bytes(pa.compress(image.tobytes() * 2, "zstd")),
    "PDF stream": lambda image, _: b"%PDF-1.7\nstream\n" + zlib.compress(image.tobytes()) + b"\nendstream",
}


def save(pixels: np.ndarray, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind, **options)  # type: ignore[arg-type]
    return stream.getvalue()


@pytest.fixture(scope="module")
def planted(cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Leak]]:
    """One bundle of all plants and of the same forms of an innocent image: leaks by file."""
    place = tmp_path_factory.mktemp("planted")
    for name, form in PLANTED.items():
        (place / f"planted {name}").write_bytes(form(train_image(), place))
        (place / f"innocent {name}").write_bytes(form(draw(7)[0], place))
    found: dict[str, list[Leak]] = {path.name: [] for path in place.iterdir()}
    for leak in search_bundle(place, cohort).leaks:
        found[leak.file].append(leak)
    return found


@pytest.mark.parametrize("form", PLANTED)
def test_a_planted_training_image_is_found_in(form: str, planted: dict[str, list[Leak]]) -> None:
    assert {leak.what for leak in planted[f"planted {form}"]} == {"training image"}


@pytest.mark.parametrize("form", PLANTED)
def test_nothing_is_found_of_an_innocent_image_in(form: str, planted: dict[str, list[Leak]]) -> None:
    assert planted[f"innocent {form}"] == []


def test_leaks_tell_the_way_and_how_much(planted: dict[str, list[Leak]]) -> None:
    assert planted["planted zip in zip"][0].where == "zip member 1 › zip member 1"
    whole = {leak.where: leak.detail for leak in planted["planted png"]}["decoded picture"]
    assert "whole plane" in whole or "of 8 distinctive runs" in whole


def test_a_holdout_image_is_told_as_one(cohort: Path, bundle: Path) -> None:
    (bundle / "a.png").write_bytes(as_png(draw(1, IMAGES)[-1]))
    assert {leak.what for leak in search_bundle(bundle, cohort).leaks} == {"holdout image"}


@pytest.mark.parametrize("compressor", ["blosc", "zstd", "none"])
def test_chunks_of_a_zarr_array_are_searched(compressor: str, cohort: Path, bundle: Path) -> None:
    codecs = {"blosc": zarr.codecs.BloscCodec(), "zstd": zarr.codecs.ZstdCodec(), "none": None}
    pixels = np.concatenate([draw(8, 3), train_image()[None]])[:, None]
    array = zarr.create_array(bundle / "images.zarr", shape=pixels.shape, chunks=(2, 1, SIZE, SIZE), dtype="u1",
                              compressors=codecs[compressor])  # fmt: skip
    array[:3] = pixels[:3]
    assert not search_bundle(bundle, cohort).leaks
    array[:] = pixels
    assert {leak.what for leak in search_bundle(bundle, cohort).leaks} == {"training image"}


def test_images_of_16_bits_are_found(tmp_path: Path, bundle: Path) -> None:
    pixels = draw(3, 4, depth=65536)
    cohort = write_cohort(tmp_path / "deep", pixels[:, None])
    image = pixels[0]
    forms = {
        "picture": as_png(image),
        "inverted": as_png(np.rot90(65535 - image).copy()),
        "little": b"\1" + image.astype("<u2").tobytes(),
        "big": image.astype(">u2").tobytes(),
        "wide": image.astype("<u4").tobytes(),
        "float": as_npy(image.astype(np.float32) / np.float32(65535)),
        "signed": as_npy(image.astype(np.float32) / np.float32(32767.5) - np.float32(1)),
        "dicom": as_dicom(image),
    }
    for name, content in forms.items():
        (bundle / name).write_bytes(content)
    (bundle / "innocent").write_bytes(as_png(draw(4, depth=65536)[0]))
    assert {leak.file for leak in search_bundle(bundle, cohort).leaks} == set(forms)


def test_masks_are_found_as_a_whole_unless_they_are_too_small_to_mean_anybody(tmp_path: Path, bundle: Path) -> None:
    pixels = np.stack([draw(5, 4), np.zeros((4, SIZE, SIZE), np.uint8)], axis=1)
    random = np.random.default_rng(0)
    pixels[0, 1, 8:24, 8:24] = 51 * random.integers(0, 2, (16, 16))
    pixels[1, 1, 8:10, 8:10] = 51
    cohort = write_cohort(tmp_path / "masks", pixels, ("t1weighted", "mask"))
    for number in range(3):
        (bundle / f"{number}.png").write_bytes(as_png(np.rot90(pixels[number, 1]).copy()))
    result = search_bundle(bundle, cohort)
    assert [(leak.file, leak.detail) for leak in result.leaks] == [("0.png", "a whole plane")]
    assert "1 of 8 planes are too flat" in result.notes[0]
    assert "3 of 8 planes show so little" in result.notes[1]


# --- names


def names_of(cohort: Path) -> tuple[str, str, str]:
    records = open_images(cohort)
    return records.column("subject")[2], records.column("source")[3], records.column("digest")[4]


def test_names_are_found_wherever_they_are_written(cohort: Path, bundle: Path) -> None:
    subject, source, digest = names_of(cohort)
    innocent = draw(8)[0]
    planted = {
        "text-chunk.png": (as_png(innocent, note=subject), "pseudonym"),
        "compressed-chunk.png": (as_png(innocent, note="x" * 2000 + PATIENT), "identifier"),
        "utf-16.txt": (f"Überschrift {source.upper()}.".encode("utf-16"), "pseudonym"),
        "tag.dcm": (as_dicom(innocent, comment=subject), "pseudonym"),
        "deflated.dcm": (as_dicom(innocent, comment=subject, deflated=True), "pseudonym"),
        f"of {subject}.txt": (b"nothing", "pseudonym"),
        "path.json": (json.dumps({"source": FILE}).encode(), "path"),
        "escaped.json": (json.dumps({"source": PATIENT}).encode(), "identifier"),
        "other-slash.json": (json.dumps({"source": FILE.replace("/", "\\")}).encode(), "path"),
        "link.html": (b'<a href="x/scans/site%20b/patient17_t1.nii.gz">', "path"),
        "capitals.txt": (("IN " + PATIENT.upper()).encode(), "identifier"),
        "latin.txt": (PATIENT.encode("latin-1"), "identifier"),
        "stem.txt": (b"as in patient17_t1.", "path"),
        "part.txt": (b"see patient17_t1.nii.gz", "path"),
        "digest.json": (json.dumps([digest.upper()]).encode(), "digest"),
        "digest.bin": (bytes.fromhex(digest), "digest"),
        "column.parquet": (as_parquet(pa.array(["a", subject])), "pseudonym"),
        "metadata.parquet": (as_parquet(pa.array([1]), note=subject), "pseudonym"),
        "member.zip": (as_zip(b"", name=f"{source}.png"), "pseudonym"),
        "packed.txt.gz": (gzip.compress(subject.encode()), "pseudonym"),
        "cohort.txt": (str(cohort.resolve()).encode(), "path"),
    }  # fmt: skip
    for name, (content, _) in planted.items():
        (bundle / name).write_bytes(content)
    result = search_bundle(bundle, cohort)
    assert {(leak.file, leak.what) for leak in result.leaks} == {(name, what) for name, (_, what) in planted.items()}
    for leak in result.leaks:  # the file's name is the only place where a name may be said
        assert not any(name.lower() in leak.detail.lower() for name in (subject, source, digest, PATIENT, FILE))
    assert next(leak for leak in result.leaks if leak.file == "digest.json").detail == f"{digest[:2]}… (64 characters)"


def test_words_that_only_look_like_names_are_none(cohort: Path, bundle: Path) -> None:
    subject, _, digest = names_of(cohort)
    words = f"glioma t1weighted scans t1 site {subject[:-1]} {digest[:-1]} MRN-471 MRN-47112 patient17 pers00019x_t1"
    (bundle / "a.txt").write_text(words)
    result = search_bundle(bundle, cohort)
    assert not result.leaks
    assert any("names that are too short or too common" in note for note in result.notes)


def test_a_short_name_counts_in_words_and_not_in_pixels(tmp_path: Path, bundle: Path) -> None:
    cohort = write_cohort(tmp_path / "short", draw(6, 2)[:, None])
    sources = cohort / folders.PRIVATE / folders.SOURCES
    table = pq.read_table(sources).to_pydict() | {"identifier": ["Qx7kz", "471147"]}
    pq.write_table(pa.table(table), sources)
    noise = np.random.default_rng(0).integers(128, 256, 400).astype(np.uint8).tobytes()
    (bundle / "pixels.bin").write_bytes(noise + b"qx7kz" + noise)
    (bundle / "longer.txt").write_text("aqx7kzb 0.471147 471147.5 1.2.840.471147 00471147 4711470")
    assert not search_bundle(bundle, cohort).leaks
    (bundle / "words.txt").write_text("It is qx7kz!")
    (bundle / "number.txt").write_text("no.471147.png")
    (bundle / "words.bin").write_bytes(noise + b"name of the patient: Qx7kz" + noise)
    assert {leak.file for leak in search_bundle(bundle, cohort).leaks} == {"words.txt", "words.bin", "number.txt"}


def test_without_its_private_folder_the_cohort_says_so(cohort: Path, bundle: Path, tmp_path: Path) -> None:
    shutil.copytree(cohort, tmp_path / "public", ignore=shutil.ignore_patterns("private"))
    (bundle / "a.txt").write_text(FILE)
    result = search_bundle(bundle, tmp_path / "public")
    assert not result.leaks
    assert any("identifiers, file names and paths were not searched" in note for note in result.notes)


# --- bounds


def test_a_gzip_bomb_is_not_unpacked(cohort: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoded, "ALLOWANCE", 2**20)
    bomb = gzip.compress(bytes(2**24))
    (bundle / "bomb.gz").write_bytes(bomb)
    (bundle / "bombs.zip").write_bytes(as_zip(gzip.compress(bomb * 4)))
    result = search_bundle(bundle, cohort)
    assert {(leak.file, leak.what) for leak in result.leaks} == {("bomb.gz", "unsearched"), ("bombs.zip", "unsearched")}
    assert result.bytes_searched < 2**22


def test_streams_that_lie_too_deep_are_told(cohort: Path, bundle: Path) -> None:
    content = train_image().tobytes()
    for _ in range(4):
        content = gzip.compress(content)
    (bundle / "four").write_bytes(content)
    (bundle / "five").write_bytes(gzip.compress(content))
    found = {(leak.file, leak.what) for leak in search_bundle(bundle, cohort).leaks}
    assert found == {("four", "training image"), ("five", "unsearched")}


def test_what_cannot_be_opened_is_told(cohort: Path, bundle: Path) -> None:
    encrypted = bytearray(as_zip(b"secret"))
    for magic, flags in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        encrypted[encrypted.index(magic) + flags] |= 1
    damaged = {
        "cut.png": as_png(draw(8)[0])[:300],
        "cut.gz": gzip.compress(dice.Random(0).randbytes(4000))[:2000],
        "cut.npy": as_npy(draw(8))[:500],
        "objects.npy": b"\x93NUMPY\1\0" + as_header("|O", "(1,)"),
        "huge.npy": b"\x93NUMPY\1\0" + as_header("<f8", "(99999999, 9999)"),
        "cut.parquet": as_parquet(pa.array([1]))[:-9],
        "cut.dcm": as_dicom(draw(8)[0])[:-90],
        "encrypted.zip": bytes(encrypted),
        "any.h5": b"\x89HDF\r\n\x1a\n",
    }  # fmt: skip
    for name, content in damaged.items():
        (bundle / name).write_bytes(content)
    (bundle / "link").symlink_to(cohort / "records.parquet")
    result = search_bundle(bundle, cohort)
    assert {(leak.file, leak.what) for leak in result.leaks} == {(name, "unsearched") for name in [*damaged, "link"]}


def test_random_bytes_and_plain_words_are_innocent(cohort: Path, bundle: Path) -> None:
    random = dice.Random(1)
    for number in range(20):
        (bundle / f"{number}.bin").write_bytes(random.randbytes(20_000))
    ramp = np.arange(256, dtype=np.uint8)
    (bundle / "ramp.png").write_bytes(as_png(np.tile(ramp, (40, 1))))
    (bundle / "flat.png").write_bytes(as_png(np.zeros((SIZE, SIZE), np.uint8)))
    (bundle / "README.md").write_text("# Released images\n\n" + "Nobody was copied here, as far as we can tell.\n" * 50)
    assert search_bundle(bundle, cohort).leaks == ()


def test_a_folder_without_files_is_no_pass(cohort: Path, bundle: Path) -> None:
    with pytest.raises(FolderError, match="holds no files"):
        search_bundle(bundle, cohort)
    with pytest.raises(FolderError, match="holds no files"):
        search_bundle(bundle / "missing", cohort)


# --- the tables


@pytest.mark.parametrize("width", [5, 8, 16])
def test_equal_runs_have_equal_hashes_wherever_they_are(width: int) -> None:
    values = np.random.default_rng(0).integers(0, 256, 500).astype(np.uint8)
    hashed = roll(np.concatenate([values, values[100:140]]), width)
    assert len(hashed) == 540 - width + 1
    np.testing.assert_array_equal(hashed[500 : 541 - width], hashed[100 : 141 - width])
    assert len(np.unique(hashed[: 501 - width])) > 0.99 * (501 - width)


def test_a_table_gives_all_numbers_of_a_hash() -> None:
    table = Table(np.array([7, 2**31, 7, 5], np.uint32))
    at, number = table.find(np.array([1, 7, 2**31], np.uint32))
    assert sorted(zip(at.tolist(), number.tolist(), strict=True)) == [(1, 0), (1, 2), (2, 1)]


def test_halves_have_half_of_the_runs_and_ramps_none() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (1, 32, 32)).astype(np.uint8)
    values, whose = choose_runs(noise)
    assert values.shape == (8, WIDTH)
    rows = [int(np.flatnonzero([run.tobytes() in row.tobytes() for row in noise[0]])[0]) for run in values]
    assert sum(row < 16 for row in rows) == 4
    assert whose.tolist() == [0] * 8
    assert len(choose_runs(np.tile(np.arange(32, dtype=np.uint8), (1, 32, 1)))[0]) == 0


def test_names_that_begin_alike_are_told_apart() -> None:
    names = [f"/data/hospital/case{number:05d}/scan.dcm" for number in range(300)]
    table = NameNeedles((name.encode(), number) for number, name in enumerate(names))
    text = f"a {names[17]} b {names[250].upper()} c /data/hospital/case00300/scan.dcm".encode()
    assert sorted(number for number, _, _ in table.search(text)) == [17, 250]


def test_the_search_needs_no_torch() -> None:
    code = "import sys, unalike.release.leaks; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
