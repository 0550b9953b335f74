from __future__ import annotations

import gzip
import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest
from PIL import Image
from tests.release.test_bundle_images import NOTE, all_rows, make_folder, make_images
from tests.release.test_card import LEAST

from unalike.errors import FolderError
from unalike.records import as_json
from unalike.release.card import build_card, write_cards
from unalike.release.checksums import CHECKSUMS, read_lines, write_checksums
from unalike.release.descriptors import describe_folder, frechet_between, round_moments
from unalike.release.images import FORMATS, write_images
from unalike.release.nifti import Grid
from unalike.release.verify import Verification, verify_bundle


def make_bundle(
    place: Path, *, slices: bool = False, dtype: Any = np.uint8, channels: tuple[str, ...] = ("t1", "mask")
) -> Path:
    images = make_images(6, channels=len(channels), dtype=dtype)
    records = [{"subject": f"sample-{row // 2:06d}", "slice": row % 2} for row in range(6)] if slices else None
    samples = make_folder(place / "samples", images, channels=channels, records=records)
    others = make_folder(
        place / "others", make_images(60, channels=len(channels), dtype=dtype, seed=1), channels=channels
    )
    bundle = place / "bundle"
    bundle.mkdir()
    write_images(samples, all_rows(samples), bundle, formats=FORMATS, grid=Grid(), note=NOTE)
    reference = round_moments(describe_folder(others, all_rows(others)))
    found = frechet_between(describe_folder(samples, all_rows(samples)), reference)
    about = {
        "count": 6,
        "channels": list(channels),
        "height": 16,
        "width": 18,
        "dtype": np.dtype(dtype).name,
        "labels": {"cat": 3, "dog": 3},
    }
    facts = LEAST | {"images": about, "formats": list(FORMATS)}
    facts |= {"recompute": {"descriptors": as_json(reference), "frechet": found}}
    write_cards(build_card(facts=facts), bundle)
    write_checksums(bundle)
    return bundle


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("made"))


@pytest.fixture
def bundle(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "bundle"))


def _problems(bundle: Path, *, resign: bool = False) -> str:
    """What is found; with ``resign`` of a bundle whose checksums were made anew by whoever changed it."""
    if resign:
        write_checksums(bundle)
    found = verify_bundle(bundle)
    assert found.passed == (not found.problems)
    assert all("\n" not in line for line in found.problems)
    return "\n".join(found.problems)


def _edit_card(bundle: Path, change: Callable[[dict[str, Any]], None]) -> None:
    card = json.loads((bundle / "card.json").read_text())
    change(card)
    (bundle / "card.json").write_text(json.dumps(card))


@pytest.mark.parametrize(
    ("slices", "dtype", "channels"),
    [
        (True, np.uint16, ("t1", "mask")),
        (False, np.uint8, ("red", "green", "blue")),
        (False, np.uint16, ("red", "green", "blue")),
        (False, np.uint16, ("gray",)),
    ],
)
def test_an_untouched_bundle_passes(tmp_path: Path, slices: bool, dtype: Any, channels: tuple[str, ...]) -> None:
    bundle = make_bundle(tmp_path, slices=slices, dtype=dtype, channels=channels)
    found = verify_bundle(bundle)
    assert found.problems == ()
    assert found.passed
    assert found.images == 6
    assert found.files == sum(path.is_file() for path in bundle.rglob("*")) - 1
    assert found.recomputed["frechet"]["found"] == pytest.approx(found.recomputed["frechet"]["card"], rel=1e-9)


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="no sha256sum here")
def test_sha256sum_agrees(bundle: Path) -> None:
    said = subprocess.run(["sha256sum", "--strict", "-c", CHECKSUMS], cwd=bundle, capture_output=True, check=False)
    assert said.returncode == 0
    names = list(read_lines((bundle / CHECKSUMS).read_text()) or ())
    assert names == sorted(names)
    assert len(names) == sum(path.is_file() for path in bundle.rglob("*")) - 1


def test_one_flipped_bit_in_any_file_is_noticed(bundle: Path) -> None:
    files = sorted(path for path in bundle.rglob("*") if path.is_file())
    kinds = {
        path.name if path.suffix in {".csv", ".json", ".md", ".html", ".parquet", ".sha256"} else path.suffix: path
        for path in files
    }
    assert {".png", ".gz", ".dcm", "0"} <= {name or "0" for name in kinds}
    for path in kinds.values():
        whole = path.read_bytes()
        for position in {0, len(whole) // 2, len(whole) - 1}:
            changed = bytearray(whole)
            changed[position] ^= 0x20
            path.write_bytes(bytes(changed))
            assert not verify_bundle(bundle).passed, (path, position)
        path.write_bytes(whole)
    assert verify_bundle(bundle).passed


def test_a_bundle_of_no_images_does_not_pass(bundle: Path) -> None:
    shutil.rmtree(bundle / "samples")
    shutil.rmtree(bundle / "images")
    lines = (bundle / "labels.csv").read_text().splitlines()
    (bundle / "labels.csv").write_text("".join(",".join(line.split(",")[:6]) + "\n" for line in lines))
    _edit_card(bundle, lambda card: card.update(formats=[]))
    assert _problems(bundle, resign=True) == "there are no images"


def test_checksums_that_are_a_link_are_refused(bundle: Path, tmp_path: Path) -> None:
    shutil.move(bundle / CHECKSUMS, tmp_path / CHECKSUMS)
    (bundle / CHECKSUMS).symlink_to(tmp_path / CHECKSUMS)
    assert f"{CHECKSUMS} is missing or no plain file" in _problems(bundle)


def test_a_file_more_or_less_is_noticed(bundle: Path) -> None:
    (bundle / "images" / "png" / ".hidden").write_text("x")
    assert "images/png/.hidden is not listed" in _problems(bundle)
    (bundle / "images" / "png" / ".hidden").unlink()
    (bundle / "datasheet.md").unlink()
    assert "datasheet.md is missing" in _problems(bundle)


def test_a_picture_of_no_line_is_noticed_though_it_is_signed(bundle: Path) -> None:
    shutil.copy(bundle / "images/png/sample-000000-t1.png", bundle / "images/png/extra.png")
    assert "images/png/extra.png is no image of labels.csv" in _problems(bundle, resign=True)


@pytest.mark.skipif(not hasattr(os, "symlink"), reason="no links here")
def test_links_and_pipes_are_refused_and_not_followed(bundle: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside.txt"
    outside.write_text("secret")
    (bundle / "link.txt").symlink_to(outside)
    (bundle / "linked").symlink_to(tmp_path, target_is_directory=True)
    os.mkfifo(bundle / "pipe")
    found = _problems(bundle)
    assert "link.txt is a link" in found
    assert "linked is a link" in found
    assert "pipe is no plain file" in found
    with pytest.raises(FolderError, match=r"is a link|no plain file"):
        write_checksums(bundle)


def test_a_listed_file_that_is_a_link_is_refused(bundle: Path, tmp_path: Path) -> None:
    shutil.move(bundle / "README.md", tmp_path / "README.md")
    (bundle / "README.md").symlink_to(tmp_path / "README.md")
    found = _problems(bundle)
    assert "README.md is a link" in found
    assert "README.md is missing" in found


@pytest.mark.parametrize("name", ["../outside.txt", "/etc/passwd", "a/../../b", "./README.md", "a//b"])
def test_paths_that_leave_the_bundle_are_refused(bundle: Path, name: str) -> None:
    with (bundle / CHECKSUMS).open("a") as stream:
        stream.write(f"{'0' * 64}  {name}\n")
    assert f"{CHECKSUMS} was changed" in _problems(bundle)


def test_labels_that_name_a_path_outside_are_refused(bundle: Path) -> None:
    path = bundle / "labels.csv"
    path.write_text(path.read_text().replace("images/png/sample-000000-t1.png", "../../etc/passwd", 1))
    assert "names ../../etc/passwd, which is no file of images/png/" in _problems(bundle, resign=True)


def _swap_png(bundle: Path) -> None:
    path = bundle / "images/png/sample-000001-t1.png"
    pixels = np.array(Image.open(path))
    pixels[3, 4] ^= 1
    Image.fromarray(pixels).save(path)


def _swap_dicom(bundle: Path) -> None:
    path = bundle / "images/dicom/sample-000001-t1.dcm"
    dataset = pydicom.dcmread(path)
    pixels = bytearray(dataset.PixelData)
    pixels[5] ^= 1
    dataset.PixelData = bytes(pixels)
    dataset.save_as(path)


def _swap_nifti(bundle: Path) -> None:
    path = bundle / "images/nifti/sample-000001-t1.nii.gz"
    content = bytearray(gzip.decompress(path.read_bytes()))
    content[-1] ^= 1
    path.write_bytes(gzip.compress(bytes(content)))


def _swap_samples(bundle: Path) -> None:
    path = bundle / "samples/images.zarr/c/0/0/0/0"
    content = bytearray(path.read_bytes())
    content[16 * 18 * 2 + 7] ^= 1  # of the second image
    path.write_bytes(bytes(content))


@pytest.mark.parametrize(
    ("change", "name"),
    [(_swap_png, "png"), (_swap_dicom, "dicom"), (_swap_nifti, "nifti"), (_swap_samples, "samples")],
)
def test_a_pixel_that_differs_between_formats_is_noticed_though_it_is_signed(
    bundle: Path, change: Callable[[Path], None], name: str
) -> None:
    change(bundle)
    found = _problems(bundle, resign=True)
    assert "sample-000001: " in found
    assert name in found
    assert "show different pixels" in found
    assert "sample-000002: " not in found


def test_a_frechet_distance_that_is_not_the_images_is_noticed(bundle: Path) -> None:
    def change(card: dict[str, Any]) -> None:
        card["recompute"]["frechet"] *= 1.002

    _edit_card(bundle, change)
    assert "Fréchet distance" in _problems(bundle, resign=True)


def test_a_card_of_other_images_is_noticed(bundle: Path) -> None:
    def change(card: dict[str, Any]) -> None:
        card["images"]["count"] = 7
        card["images"]["labels"] = {"cat": 7}
        card["formats"] = ["png"]

    _edit_card(bundle, change)
    found = _problems(bundle, resign=True)
    assert "speaks of 7 images, labels.csv lists 6" in found
    assert "count the labels differently" in found
    assert "name different formats" in found


def _huge_nifti(bundle: Path) -> None:
    path = bundle / "images/nifti/sample-000000-t1.nii.gz"
    header = nib.Nifti1Header()
    header.set_data_shape((30000, 30000, 30000))
    header.set_data_dtype(np.uint8)
    path.write_bytes(gzip.compress(header.binaryblock + b"\0" * 1000))


def _swelling_nifti(bundle: Path) -> None:
    path = bundle / "images/nifti/sample-000000-t1.nii.gz"
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()) + b"\0" * 2**26, 1))


def _huge_png(bundle: Path) -> None:
    path = bundle / "images/png/sample-000000-t1.png"
    content = bytearray(path.read_bytes())
    content[16:24] = (60000).to_bytes(4, "big") * 2
    import zlib

    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    path.write_bytes(bytes(content))


def _deflated_dicom(bundle: Path) -> None:
    path = bundle / "images/dicom/sample-000000-t1.dcm"
    dataset = pydicom.dcmread(path)
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
    dataset.save_as(path)


def _pickled_samples(bundle: Path) -> None:
    path = bundle / "samples/images.zarr/zarr.json"
    document = json.loads(path.read_text())
    document["codecs"].append({"name": "numcodecs.pickle", "configuration": {}})
    path.write_text(json.dumps(document))


def _huge_samples(bundle: Path) -> None:
    path = bundle / "samples/images.zarr/zarr.json"
    document = json.loads(path.read_text())
    document["chunk_grid"]["configuration"]["chunk_shape"][0] = 10**15
    path.write_text(json.dumps(document))


def _huge_card(bundle: Path) -> None:
    def change(card: dict[str, Any]) -> None:
        card["images"]["height"] = card["images"]["width"] = 10**6

    _edit_card(bundle, change)


def _deep_card(bundle: Path) -> None:
    (bundle / "card.json").write_text("[" * 200_000)


def _wild_labels(bundle: Path) -> None:
    (bundle / "labels.csv").write_bytes(b'sample,seed\n"\xff\x00')


@pytest.mark.parametrize(
    "change",
    [
        _huge_nifti,
        _swelling_nifti,
        _huge_png,
        _deflated_dicom,
        _pickled_samples,
        _huge_samples,
        _huge_card,
        _deep_card,
        _wild_labels,
    ],
)
def test_hostile_files_are_problems_and_no_harm(bundle: Path, change: Callable[[Path], None]) -> None:
    change(bundle)
    assert _problems(bundle, resign=True)


def test_many_problems_are_cut_short(bundle: Path) -> None:
    for number in range(80):
        (bundle / f"extra{number}").write_text("x")
    found = verify_bundle(bundle)
    assert len(found.problems) == 50
    assert found.problems[-1] == "… and 31 more problems"


def test_what_is_no_bundle_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FolderError, match="does not exist"):
        verify_bundle(tmp_path / "nowhere")
    with pytest.raises(FolderError, match="is no bundle"):
        verify_bundle(tmp_path)


def test_a_result_without_problems_has_passed() -> None:
    assert Verification(True, (), 1, 1).recomputed == {}
