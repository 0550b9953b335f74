"""Cohorts are right value by value, split by subject, and carry no identity."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from unalike import folders
from unalike.cohort.build import prepare_cohort
from unalike.cohort.settings import PrepareSettings
from unalike.cohort.split import draw_holdout, select_train_rows
from unalike.cohort.store import ImageWriter, chunk_images, iterate_blocks, open_images
from unalike.errors import InputError, SettingsError
from unalike.images.moments import sum_pixels

PATTERN = r"(p\d+)_"


def prepare(source: Path, out: Path, **options: object):
    extra = {name: options.pop(name) for name in ("seed", "key", "workers") if name in options}
    return prepare_cohort(source=source, out=out, settings=PrepareSettings(**options), **extra)


def test_pictures_come_out_pixel_by_pixel(make_pictures: Callable[..., Path], tmp_path: Path) -> None:
    source = make_pictures(subjects=10, images=3)
    cohort = prepare(source, tmp_path / "c", subject_pattern=PATTERN)
    assert cohort.images.shape == (30, 1, 24, 24)
    for row, path in enumerate(sorted(source.iterdir())):
        np.testing.assert_array_equal(cohort.images[row, 0], np.asarray(Image.open(path)))
    sums, squares = sum_pixels(cohort.images[:])
    np.testing.assert_array_equal(cohort.numbers("sums"), sums)
    np.testing.assert_array_equal(cohort.numbers("squares"), squares)


def test_subjects_are_never_on_both_sides(make_pictures: Callable[..., Path], tmp_path: Path) -> None:
    cohort = prepare(make_pictures(subjects=20, images=3), tmp_path / "c", subject_pattern=PATTERN, holdout=0.25)
    subjects = cohort.column("subject")
    train, holdout = (set(subjects[cohort.rows(role)]) for role in ("train", "holdout"))
    assert not train & holdout
    assert (len(train), len(holdout)) == (15, 5)
    assert len(cohort.rows("holdout")) == 15


def test_nothing_that_names_a_patient_leaves_private(make_pictures: Callable[..., Path], tmp_path: Path) -> None:
    cohort = prepare(make_pictures(subjects=5), tmp_path / "c", subject_pattern=PATTERN)
    names = [b"p0000", b"p0004_1", b"pictures", str(tmp_path).encode()]
    for path in cohort.path.rglob("*"):
        if path.is_file() and folders.PRIVATE not in path.parts:
            assert not any(name in path.read_bytes() for name in names), path
    private = cohort.path / folders.PRIVATE
    assert private.stat().st_mode & 0o077 == 0
    assert (private / folders.KEY).stat().st_mode & 0o077 == 0
    import pyarrow.parquet as pq

    sources = pq.read_table(private / folders.SOURCES).to_pydict()
    assert set(sources["subject"]) == set(cohort.column("subject"))
    assert "p0004_1.png" in sources["path"]


def test_pseudonyms_need_the_key(make_pictures: Callable[..., Path], tmp_path: Path) -> None:
    source = make_pictures(subjects=4)
    first = prepare(source, tmp_path / "a", subject_pattern=PATTERN)
    other = prepare(source, tmp_path / "b", subject_pattern=PATTERN)
    again = prepare(
        source,
        tmp_path / "c",
        subject_pattern=PATTERN,
        key=(first.path / folders.PRIVATE / folders.KEY).read_bytes(),
    )
    assert not set(first.column("subject")) & set(other.column("subject"))
    assert first.column("subject").tolist() == again.column("subject").tolist()


def test_the_same_source_and_seed_give_the_same_cohort(make_pictures: Callable[..., Path], tmp_path: Path) -> None:
    source = make_pictures(subjects=12)
    options = {"subject_pattern": PATTERN, "key": b"k"}
    one = prepare(source, tmp_path / "a", workers=1, **options)
    two = prepare(source, tmp_path / "b", workers=3, **options)
    three = prepare(source, tmp_path / "c", seed=1, **options)
    assert one.header.content == two.header.content
    assert one.header.inputs == two.header.inputs
    assert one.column("role").tolist() != three.column("role").tolist()


def test_classes_and_published_splits(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for split, count in (("train", 6), ("test", 3)):
        for label in ("NORMAL", "PNEUMONIA"):
            folder = tmp_path / "xrays" / split / label
            folder.mkdir(parents=True)
            for index in range(count):
                Image.fromarray(random.integers(0, 255, (8, 8), dtype=np.uint8)).save(folder / f"{split}{index}.png")
    kept = prepare(tmp_path / "xrays", tmp_path / "kept", split="keep")
    assert len(kept.rows("holdout")) == 6
    assert sorted(set(kept.column("label"))) == ["NORMAL", "PNEUMONIA"]
    redrawn = prepare(tmp_path / "xrays", tmp_path / "redrawn", holdout=0.5)
    assert len(redrawn.rows("holdout")) == 9
    assert any("were ignored" in note for note in redrawn.header.content["notes"])


def test_leaks_of_a_published_split_are_said_first(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for split in ("train", "test"):
        (tmp_path / "x" / split).mkdir(parents=True)
    images = [random.integers(0, 255, (8, 8), dtype=np.uint8) for _ in range(6)]
    for name, image in (
        ("train/p1_a", 0),
        ("train/p2_a", 1),
        ("test/p2_b", 2),
        ("test/p3_a", 3),
        ("test/p4_a", 0),
    ):
        Image.fromarray(images[image]).save(tmp_path / "x" / f"{name}.png")
    cohort = prepare(tmp_path / "x", tmp_path / "c", split="keep", subject_pattern=r"(p\d)_")
    leaks = cohort.header.content["leaks"]
    assert (leaks["shared_subjects"], leaks["holdout_subjects"], leaks["shared_holdout_images"]) == (1, 3, 1)
    assert (leaks["exact_pairs_across_roles"], leaks["redundant_images"]) == (1, 1)
    notes = cohort.header.content["notes"]
    assert notes[0].startswith("LEAK: 1 of the 3 holdout patients also occur in train")
    assert notes[1].startswith("LEAK: 1 pairs of duplicates stand in train and holdout, 1 of them pixel-identical")


def test_an_assumption_about_patients_is_said(make_pictures: Callable[..., Path], tmp_path: Path) -> None:
    cohort = prepare(make_pictures(subjects=5), tmp_path / "c")
    assert any(
        note.startswith("Assumption: each file is taken as a patient") for note in cohort.header.content["notes"]
    )


def test_a_volume_slice_by_hand(tmp_path: Path) -> None:
    """Values, orientation, padding and mask levels of one slice, computed here step by step."""
    random = np.random.default_rng(0)
    (tmp_path / "v").mkdir()
    for case in range(3):
        t1 = random.integers(100, 5000, (6, 8, 4)).astype(np.int16)
        seg = random.choice([0, 1, 2, 4], (6, 8, 4)).astype(np.uint8)
        for name, voxels in (("t1", t1), ("seg", seg)):
            nib.save(nib.Nifti1Image(voxels, np.eye(4)), tmp_path / "v" / f"case{case}_{name}.nii.gz")
    cohort = prepare(
        tmp_path / "v",
        tmp_path / "c",
        recipe="nifti",
        size=10,
        percentiles=(5, 95),
        least_content=0.0,
        holdout=0.4,
    )
    assert cohort.channels == ("t1", "mask")
    assert len(cohort) == 12
    low, high = np.percentile(t1, [5, 95])
    scaled = np.rint(np.clip((t1.astype(float) - low) / (high - low) * 255, 0, 255))
    expected = np.zeros((2, 10, 10))
    for channel, voxels in enumerate((scaled, seg * 51)):
        expected[channel, 1:9, 2:8] = voxels[:, :, 2][::-1, ::-1].T  # front up, right on the left
    last = np.flatnonzero(cohort.numbers("slice") == 2)[-1]
    np.testing.assert_array_equal(cohort.images[last], expected)


def test_slices_with_little_content_are_left_out_and_the_rest_thinned(tmp_path: Path) -> None:
    voxels = np.zeros((10, 10, 9), np.float32)
    voxels[2:8, 2:8, 2:7] = 100  # 36 % of slices 2 to 6
    (tmp_path / "v").mkdir()
    for case in range(2):
        nib.save(nib.Nifti1Image(voxels, np.eye(4)), tmp_path / "v" / f"case{case}.nii.gz")
    options = {"recipe": "nifti", "size": 16, "percentiles": (0, 100), "holdout": 0.5, "on_leak": "report"}
    every = prepare(tmp_path / "v", tmp_path / "a", least_content=0.36, **options)
    assert every.numbers("slice").tolist() == [2, 3, 4, 5, 6] * 2
    middle = prepare(tmp_path / "v", tmp_path / "b", least_content=0.36, slices=1, **options)
    assert middle.numbers("slice").tolist() == [4, 4]
    with pytest.raises(InputError, match="no slice has 37%"):
        prepare(tmp_path / "v", tmp_path / "c", least_content=0.37, **options)


def test_volumes_share_one_scale(tmp_path: Path) -> None:
    """A head half as large stays half as large."""
    (tmp_path / "v").mkdir()
    for name, side in (("large", 40), ("small", 20)):
        nib.save(nib.Nifti1Image(np.full((side, side, 2), 9.0), np.eye(4)), tmp_path / "v" / f"{name}.nii.gz")
        ramp = np.linspace(1, 2, side * side * 2).reshape(side, side, 2)
        nib.save(nib.Nifti1Image(ramp, np.eye(4)), tmp_path / "v" / f"{name}.nii.gz")
    cohort = prepare(
        tmp_path / "v",
        tmp_path / "c",
        recipe="nifti",
        size=20,
        percentiles=(0, 100),
        holdout=0.5,
        least_content=0.05,
    )
    widths = [(image[0].max(axis=0) > 0).sum() for image in cohort.images[:]]
    assert sorted(set(widths)) == [10, 20]


def test_decathlon_layout(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for folder in ("imagesTr", "labelsTr"):
        (tmp_path / "v" / folder).mkdir(parents=True)
        for case in range(4):
            voxels = random.choice([0, 1, 2], (8, 8, 3)).astype(np.uint8 if folder == "labelsTr" else np.float32)
            nib.save(nib.Nifti1Image(voxels, np.eye(4)), tmp_path / "v" / folder / f"hippo_{case:03d}.nii.gz")
    cohort = prepare(tmp_path / "v", tmp_path / "c", recipe="nifti", size=8, holdout=0.5)
    assert cohort.channels == ("image", "mask")
    assert set(np.unique(cohort.images[:, 1])) == {0, 51, 102}
    assert len(set(cohort.column("subject"))) == 4


def test_channels_can_be_chosen_and_ordered(make_volumes: Callable[..., Path], tmp_path: Path) -> None:
    source = make_volumes()
    assert prepare(source, tmp_path / "a", recipe="nifti", size=14).channels == ("t1", "t2", "mask")
    options = {"recipe": "nifti", "size": 14}
    assert prepare(source, tmp_path / "b", channels=("t2",), **options).channels == ("t2",)
    with pytest.raises(SettingsError, match="flair not found; there are t1, t2, mask"):
        prepare(source, tmp_path / "c", channels=("flair",), **options)


def test_subsets_are_nested_and_hold_train_subjects_only(make_pictures: Callable[..., Path], tmp_path: Path) -> None:
    cohort = prepare(make_pictures(subjects=20), tmp_path / "c", subject_pattern=PATTERN)
    few, more = (set(select_train_rows(cohort, subjects=count, seed=3)) for count in (4, 9))
    assert few < more < set(cohort.rows("train"))
    assert len(few) == 8
    assert few != set(select_train_rows(cohort, subjects=4, seed=4))
    np.testing.assert_array_equal(select_train_rows(cohort, subjects=None, seed=0), cohort.rows("train"))
    with pytest.raises(SettingsError, match="give 1 to 16"):
        select_train_rows(cohort, subjects=17, seed=0)


def test_holdout_shares() -> None:
    names = np.array([f"s{index}" for index in range(10)])
    assert (draw_holdout(names, share=0.0, seed=0) == "train").all()
    assert (draw_holdout(names, share=0.01, seed=0) == "holdout").sum() == 1
    assert (draw_holdout(names, share=0.999, seed=0) == "train").sum() == 1
    with pytest.raises(SettingsError, match="only 1 subject"):
        draw_holdout(names[:1], share=0.5, seed=0)
    assert (draw_holdout(names, share=4, seed=0) == "holdout").sum() == 4
    for share, message in ((-0.1, "from 0 to below 1"), (1.5, "or a whole number"), (10, "only 10 subjects")):
        with pytest.raises(SettingsError, match=message):
            draw_holdout(names, share=share, seed=0)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_images_read_back_in_any_order_and_block(tmp_path: Path, dtype: type) -> None:
    images = np.random.default_rng(0).integers(0, np.iinfo(dtype).max, (1100, 2, 5, 6)).astype(dtype)
    folders.begin_folder(tmp_path / "c", kind="cohort", settings={})
    writer = ImageWriter(tmp_path / "c", channels=["a", "b"], height=5, width=6, dtype=np.dtype(dtype))
    for image in images:
        writer.append(image, {"subject": "s", "source": "x", "role": "train"})
    folders.finish_folder(tmp_path / "c", kind="cohort", settings={}, seed=0, inputs={}, content=writer.close())
    cohort = open_images(tmp_path / "c")
    np.testing.assert_array_equal(cohort.images[:], images)
    for begin, end in ((0, 512), (3, 40), (512, 1024), (500, 600), (1030, 1100)):
        np.testing.assert_array_equal(cohort.read(np.arange(begin, end)), images[begin:end])
    rows = np.array([1099, 3, 3, 700])
    np.testing.assert_array_equal(cohort.read(rows), images[rows])
    rows = np.arange(1, 1100, 3)
    for size in (None, 1, 50, 5000):
        blocks = list(iterate_blocks(cohort, rows, size=size))
        assert [first for first, _ in blocks] == np.cumsum([0] + [len(b) for _, b in blocks[:-1]]).tolist()
        np.testing.assert_array_equal(np.concatenate([block for _, block in blocks]), images[rows])
    assert cohort.read(rows[:0]).shape == (0, 2, 5, 6)


def test_a_chunk_of_zeros_is_no_file_and_reads_back(tmp_path: Path) -> None:
    folders.begin_folder(tmp_path / "c", kind="cohort", settings={})
    writer = ImageWriter(tmp_path / "c", channels=["a"], height=4, width=4, dtype=np.dtype(np.uint8))
    for _ in range(3):
        writer.append(np.zeros((1, 4, 4), np.uint8), {"subject": "s", "source": "x", "role": "train"})
    folders.finish_folder(tmp_path / "c", kind="cohort", settings={}, seed=0, inputs={}, content=writer.close())
    assert not open_images(tmp_path / "c").read(np.arange(3)).any()


def test_chunks_are_a_few_hundred_images_or_32_mib() -> None:
    assert chunk_images(1, 256, 256, np.dtype(np.uint8)) == 512
    assert chunk_images(5, 512, 512, np.dtype(np.uint16)) == 12
    assert chunk_images(1, 8192, 8192, np.dtype(np.uint16)) == 1


def test_the_header_tells_how_it_was_made(make_pictures: Callable[..., Path], tmp_path: Path) -> None:
    cohort = prepare(make_pictures(), tmp_path / "c", size=16, seed=5)
    document = json.loads((cohort.path / "cohort.json").read_text())
    assert list(document)[:2] == ["kind", "schema"]
    assert document["settings"]["size"] == 16
    assert document["seed"] == 5
    assert len(document["inputs"]["source"]) == 64


def test_folders_that_name_patients_are_no_classes(make_pictures: Callable[..., Path], tmp_path: Path) -> None:
    source = make_pictures(subjects=6)
    for path in sorted(source.iterdir()):
        folder = source / f"Mueller_{path.name[:5]}"
        folder.mkdir(exist_ok=True)
        path.rename(folder / path.name)
    cohort = prepare(source, tmp_path / "c", subject_pattern=r"^([^/]+)/")
    assert set(cohort.column("label")) == {""}
    assert any("were not taken as classes" in note for note in cohort.header.content["notes"])
    for path in cohort.path.rglob("*"):
        if path.is_file() and folders.PRIVATE not in path.parts:
            assert b"Mueller" not in path.read_bytes()
    named = prepare(source, tmp_path / "d", labels=False)
    assert set(named.column("label")) == {""}


def test_modalities_in_a_folder_per_patient(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for case in range(4):
        (tmp_path / "v" / f"p{case}").mkdir(parents=True)
        for name in ("t1", "flair"):
            voxels = random.integers(0, 900, (8, 8, 3)).astype(np.int16)
            nib.save(nib.Nifti1Image(voxels, np.eye(4)), tmp_path / "v" / f"p{case}" / f"{name}.nii.gz")
    cohort = prepare(tmp_path / "v", tmp_path / "c", recipe="nifti", size=8)
    assert cohort.channels == ("t1", "flair")
    assert len(set(cohort.column("subject"))) == 4


def test_damage_is_noticed(make_pictures: Callable[..., Path], tmp_path: Path) -> None:
    from unalike.cohort.store import verify_images
    from unalike.errors import FolderError

    cohort = prepare(make_pictures(), tmp_path / "c")
    assert sum(len(block) for block in verify_images(cohort)) == len(cohort)
    chunk = cohort.path / folders.IMAGES / "c" / "0" / "0" / "0" / "0"
    whole = chunk.read_bytes()
    chunk.write_bytes(whole[:99] + bytes([whole[99] ^ 1]) + whole[100:])
    with pytest.raises(FolderError, match="image 0 was changed"):
        list(verify_images(open_images(cohort.path)))
    chunk.write_bytes(whole[:5000])
    with pytest.raises(FolderError, match="cut short"):
        open_images(cohort.path)
    chunk.unlink()
    with pytest.raises(FolderError, match="missing"):
        open_images(cohort.path)
    chunk.write_bytes(whole)
    with (cohort.path / folders.RECORDS).open("ab") as stream:
        stream.write(b"x")
    with pytest.raises(FolderError, match=r"was changed|is damaged"):
        open_images(cohort.path)


def test_the_layout_is_readable_from_any_store(make_volumes: Callable[..., Path], tmp_path: Path) -> None:
    """Nothing of ours is needed, and no local disk: zarr and pyarrow read a cohort that fsspec holds in memory."""
    import fsspec
    import pyarrow.parquet as pq
    import zarr

    cohort = prepare(make_volumes(), tmp_path / "c", recipe="nifti", size=14)
    memory = fsspec.filesystem("memory")
    memory.put(str(cohort.path), "/cohort", recursive=True)
    images = zarr.open_array("memory://cohort/images.zarr", mode="r")
    np.testing.assert_array_equal(images[:], cohort.images[:])
    with memory.open("/cohort/records.parquet") as stream:
        assert pq.read_table(stream).equals(cohort.records)
    assert json.loads(memory.cat("/cohort/cohort.json"))["kind"] == "cohort"


@pytest.mark.parametrize(
    ("layout", "options", "classes"),
    [
        ("{person}/{index}.png", {}, set()),  # a folder a patient, and no pattern that says so
        ("{person}/{index}.png", {"subject_pattern": r"^([^/]+)/"}, set()),
        ("{kind}/{person}_{index}.png", {}, set()),  # may be patients for all that is known
        ("{kind}/{person}_{index}.png", {"labels": True}, {"sick", "well"}),
        ("{kind}/{person}_{index}.png", {"subject_pattern": r"/([A-Z]+)_"}, {"sick", "well"}),
        ("{side}/{kind}/{person}_{index}.png", {}, {"sick", "well"}),  # in train and in test
        ("{side}/{kind}/{person}_{index}.png", {"labels": False}, set()),
        ("{kind}/{person}/{index}.png", {"subject_pattern": r"/([A-Z]+)/"}, set()),
    ],
)
def test_folder_names_are_classes_only_where_they_cannot_be_patients(
    tmp_path: Path, layout: str, options: dict[str, object], classes: set[str]
) -> None:
    random = np.random.default_rng(0)
    for number, person in enumerate(("ANNA", "BERND", "CARLA", "DIETER", "EMMA", "FRIDA", "GRETA", "HANS")):
        for index in range(2):
            kind, side = ("sick", "well")[number % 2], ("train", "test")[number // 2 % 2]
            path = tmp_path / "x" / layout.format(person=person, index=index, kind=kind, side=side)
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(random.integers(0, 255, (8, 8), dtype=np.uint8)).save(path)
    cohort = prepare(tmp_path / "x", tmp_path / "c", **options)
    assert set(cohort.column("label")) - {""} == classes
    notes = cohort.header.content["notes"]
    assert any("were not taken as classes" in note for note in notes) == (not classes and "labels" not in options)
    assert not any("ANNA" in note or "sick" in note for note in notes)


def test_an_odd_first_picture_is_not_the_norm(make_pictures: Callable[..., Path], tmp_path: Path) -> None:
    source = make_pictures(subjects=6)
    Image.fromarray(np.zeros((24, 30), np.uint8)).save(source / "a.png")
    with pytest.raises(InputError, match=r"12 of the 13 items that could be read do not fit the first, a\.png"):
        prepare(source, tmp_path / "c", on_bad_file="skip")
    assert not (tmp_path / "c").exists()
    (source / "a.png").rename(source / "z.png")
    assert prepare(source, tmp_path / "c", on_bad_file="skip").header.content["skipped"] == 1


def test_what_leaks_are_left_is_told_beside_what_was_found(make_pictures: Callable[..., Path], tmp_path: Path) -> None:
    source = make_pictures(subjects=12, images=1)
    for side in ("train", "test"):
        (source / side).mkdir()
    for number, path in enumerate(sorted(source.glob("*.png"))):
        path.rename(source / ("test" if number % 3 == 0 else "train") / path.name)
    copied = next((source / "train").iterdir())
    (source / "test" / "q_0.png").write_bytes(copied.read_bytes())
    for on_leak, split, left in (
        ("report", "keep", (0, 1)),
        ("merge-subjects", "keep", (1, 1)),
        ("drop", "keep", (0, 0)),
        ("merge-subjects", "redraw", (0, 0)),
    ):
        out = tmp_path / f"{on_leak}-{split}"
        content = prepare(source, out, on_leak=on_leak, split=split, subject_pattern=r"(\w+)_").header.content
        assert content["leaks"]["redundant_images"] == 1
        assert (content["leaks_left"]["shared_subjects"], content["leaks_left"]["pairs_across_roles"]) == left
    for seed in range(4):  # whatever the split: the same picture has two names
        with pytest.raises(InputError, match="1 pairs of duplicates stand under different subjects"):
            prepare(source, tmp_path / f"e{seed}", on_leak="error", seed=seed)
