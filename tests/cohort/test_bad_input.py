"""Bad sources: a one-line error that names the file and the next step, or a counted skip; nothing half-made."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from unalike import folders
from unalike.cohort.build import prepare_cohort
from unalike.cohort.settings import PrepareSettings
from unalike.errors import FolderError, InputError, PictureError, SettingsError, UnalikeError


def refuse(source: Path, out: Path, kind: type[UnalikeError], message: str, **options: object) -> None:
    with pytest.raises(kind, match=message) as caught:
        prepare_cohort(source=source, out=out, settings=PrepareSettings(**options))
    assert "\n" not in str(caught.value)
    assert not out.exists() or not folders.kind_of(out)
    with pytest.raises(FolderError):
        folders.read_header(out, kind="cohort")


def test_missing_and_empty_folders_and_files(tmp_path: Path) -> None:
    refuse(tmp_path / "nowhere", tmp_path / "c", InputError, "does not exist")
    (tmp_path / "empty").mkdir()
    refuse(tmp_path / "empty", tmp_path / "c", InputError, "holds no")
    (tmp_path / "file.png").write_text("x")
    refuse(tmp_path / "file.png", tmp_path / "c", InputError, "is a file")
    assert not (tmp_path / "c").exists()


def test_a_corrupt_picture_among_good_ones(make_pictures: Callable[..., Path], tmp_path: Path) -> None:
    source = make_pictures(subjects=6)
    bad = source / "p0002_1.png"
    bad.write_bytes(bad.read_bytes()[:100])
    refuse(source, tmp_path / "c", PictureError, "p0002_1.png cannot be read")
    assert not (tmp_path / "c").exists()
    cohort = prepare_cohort(source=source, out=tmp_path / "c", settings=PrepareSettings(on_bad_file="skip"))
    assert (len(cohort), cohort.header.content["skipped"]) == (11, 1)
    listed = folders.read_json(cohort.path / folders.PRIVATE / folders.SKIPPED)
    assert [entry["source"] for entry in listed] == ["p0002_1.png"]


@pytest.mark.parametrize(("kind", "message"), [("truncated", "cannot be read"), ("4D", "is 4D"), ("missing", "no t2")])
def test_bad_volumes(make_volumes: Callable[..., Path], tmp_path: Path, kind: str, message: str) -> None:
    source = make_volumes()
    path = source / "case03" / "case03_t2.nii.gz"
    if kind == "truncated":
        path.write_bytes(path.read_bytes()[:200])
    elif kind == "4D":
        nib.save(nib.Nifti1Image(np.zeros((12, 14, 6, 3), np.int16), np.eye(4)), path)
    else:
        path.unlink()
    refuse(source, tmp_path / "c", PictureError, message, recipe="nifti", size=14)
    settings = PrepareSettings(recipe="nifti", size=14, on_bad_file="skip")
    cohort = prepare_cohort(source=source, out=tmp_path / "d", settings=settings)
    assert (len(set(cohort.column("subject"))), cohort.header.content["skipped"]) == (5, 1)


def test_when_nothing_can_be_read(make_pictures: Callable[..., Path], tmp_path: Path) -> None:
    source = make_pictures(subjects=3)
    for path in source.iterdir():
        path.write_text("x")
    refuse(source, tmp_path / "c", InputError, "none of the 6 files", on_bad_file="skip")


def test_mixed_channels_sizes_and_depths(make_pictures: Callable[..., Path], tmp_path: Path) -> None:
    source = make_pictures(subjects=3)
    random = np.random.default_rng(0)
    Image.fromarray(random.integers(0, 255, (24, 24, 3), dtype=np.uint8)).save(source / "z.png")
    refuse(source, tmp_path / "c", PictureError, "z.png has 3 channels, p0000_0.png has 1. Pass --color")
    Image.fromarray(random.integers(0, 255, (20, 24), dtype=np.uint8)).save(source / "z.png")
    refuse(source, tmp_path / "c", PictureError, "z.png is 20 × 24, p0000_0.png is 24 × 24. Pass --size")
    Image.fromarray(random.integers(0, 65535, (24, 24), dtype=np.uint16)).save(source / "z.png")
    refuse(source, tmp_path / "c", PictureError, "z.png has 16 bits, p0000_0.png has 8. Pass --depth")
    skipping = PrepareSettings(on_bad_file="skip")
    skipped = prepare_cohort(source=source, out=tmp_path / "skipped", settings=skipping)
    assert (len(skipped), skipped.header.content["skipped"]) == (6, 1)
    settings = PrepareSettings(size=24, color="gray", depth="8")
    assert len(prepare_cohort(source=source, out=tmp_path / "c", settings=settings)) == 7


def test_holdouts_that_cannot_be(make_pictures: Callable[..., Path], tmp_path: Path) -> None:
    source = make_pictures(subjects=2, images=4)
    refuse(source, tmp_path / "c", SettingsError, "only 1 subject", subject_pattern="(p)")
    refuse(source, tmp_path / "c", SettingsError, "from 0 to below 1", holdout=1.5)
    cohort = prepare_cohort(source=source, out=tmp_path / "c", settings=PrepareSettings(holdout=0.0))
    assert any(note.startswith("No holdout") for note in cohort.header.content["notes"])


def test_outputs_that_cannot_be_written(make_pictures: Callable[..., Path], tmp_path: Path) -> None:
    source = make_pictures(subjects=3)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("years of work")
    with pytest.raises(FolderError, match="exists already and is not empty"):
        prepare_cohort(source=source, out=tmp_path / "full")
    assert (tmp_path / "full" / "thesis.txt").read_text() == "years of work"
    (tmp_path / "a file").write_text("x")
    with pytest.raises(FolderError, match="cannot be written"):
        prepare_cohort(source=source, out=tmp_path / "a file" / "c")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"recipe": "dicomm"}, "dicomm is unknown. Use one of: all-leukemia, brain-tumor-mri"),
        ({"subject_pattern": "("}, "no regular expression"),
        ({"subject_pattern": "(q)"}, "does not match"),
        ({"size": 1}, "4 to 4096"),
        ({"recipe": "nifti"}, "needs --size"),
        ({"split": "keep"}, "no train or test folder"),
        ({"percentiles": (99, 1)}, "two rising numbers"),
    ],
)
def test_unknown_recipes_and_senseless_options(
    make_pictures: Callable[..., Path], tmp_path: Path, options: dict[str, object], message: str
) -> None:
    refuse(make_pictures(subjects=3), tmp_path / "c", SettingsError, message, **options)


def test_interrupted_preparation_leaves_nothing(
    make_pictures: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from unalike.cohort.store import ImageWriter

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(ImageWriter, "append", interrupt)
    with pytest.raises(KeyboardInterrupt):
        prepare_cohort(source=make_pictures(subjects=3), out=tmp_path / "c")
    assert not (tmp_path / "c").exists()


def test_two_files_for_one_channel(make_volumes: Callable[..., Path], tmp_path: Path) -> None:
    source = make_volumes()
    refuse(
        source,
        tmp_path / "c",
        InputError,
        "are both the mask of case",
        recipe="nifti",
        size=14,
        subject_pattern="(case)",
    )


def test_masks_must_hold_labels(make_volumes: Callable[..., Path], tmp_path: Path) -> None:
    source = make_volumes()
    path = source / "case01" / "case01_seg.nii.gz"
    nib.save(nib.Nifti1Image(np.full((12, 14, 6), 0.5, np.float32), np.eye(4)), path)
    refuse(source, tmp_path / "c", PictureError, "does not hold whole labels", recipe="nifti", size=14)
    nib.save(nib.Nifti1Image(np.full((12, 14, 6), 9, np.uint8), np.eye(4)), path)
    refuse(source, tmp_path / "c", PictureError, "label 9, which times --mask-scale", recipe="nifti", size=14)


def test_channels_must_lie_on_one_grid(make_volumes: Callable[..., Path], tmp_path: Path) -> None:
    source = make_volumes()
    path = source / "case01" / "case01_seg.nii.gz"
    labels = np.asarray(nib.load(path).dataobj)
    for affine in (np.diag([3.0, 1, 1, 1]), np.array([[1.0, 0, 0, 9], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])):
        nib.save(nib.Nifti1Image(labels, affine), path)
        refuse(source, tmp_path / "c", PictureError, "another grid than case01_t1", recipe="nifti", size=14)


def test_absurd_spacings_do_not_shrink_everybody(make_volumes: Callable[..., Path], tmp_path: Path) -> None:
    source = make_volumes()
    path = source / "case01" / "case01_t1.nii.gz"
    image = nib.Nifti1Image(np.asarray(nib.load(path).dataobj), np.diag([1e6, 1, 1, 1]))
    nib.save(image, path)
    refuse(source, tmp_path / "c", PictureError, "voxel spacing", recipe="nifti", size=14)
    skipping = PrepareSettings(recipe="nifti", size=14, holdout=0.4, on_bad_file="skip")
    cohort = prepare_cohort(source=source, out=tmp_path / "d", settings=skipping)
    assert (cohort.images[:, 0] > 0).any(axis=(1, 2)).all()
    assert cohort.header.content["skipped"] == 1


def test_file_names_that_are_not_text(make_pictures: Callable[..., Path], tmp_path: Path) -> None:
    source = make_pictures(subjects=3)
    try:
        (source / "p0000_0.png").rename(source / os.fsdecode(b"p\xff_0.png"))
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    assert len(prepare_cohort(source=source, out=tmp_path / "c")) == 6


def test_hidden_files_and_our_own_folders_are_no_patients(make_pictures: Callable[..., Path], tmp_path: Path) -> None:
    source = make_pictures(subjects=4)
    (source / ".trash").mkdir()
    for name in (".trash/x.png", "._p.png"):
        (source / name).write_bytes((source / "p0000_0.png").read_bytes())
    first = prepare_cohort(source=source, out=source / "cohort")
    Image.fromarray(np.zeros((24, 24), np.uint8)).save(first.path / "contact-sheet.png")
    assert len(prepare_cohort(source=source, out=tmp_path / "second")) == 8


def test_two_writers_do_not_destroy_each_other(tmp_path: Path) -> None:
    import subprocess
    import sys

    code = (
        "import sys, time; from pathlib import Path; from unalike import folders;"
        "folders.begin_folder(Path(sys.argv[1]), kind='cohort', settings={}); print('begun', flush=True);time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "c")], stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"begun\n"
        with pytest.raises(FolderError, match="being written by another"):
            folders.begin_folder(tmp_path / "c", kind="cohort", settings={})
        other.kill()
    assert folders.begin_folder(tmp_path / "c", kind="cohort", settings={}) is False
