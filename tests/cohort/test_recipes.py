"""Each recipe on a small tree in its data set's own layout, value by value against arithmetic written out here."""

from __future__ import annotations

import csv
import json
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import h5py
import nibabel as nib
import numpy as np
import pyarrow.parquet as pq
import pytest
import SimpleITK as sitk  # noqa: N813
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from unalike import folders
from unalike.cohort.build import plan_cohort, prepare_cohort
from unalike.cohort.recipes import find_recipe, list_recipes, recipe_settings
from unalike.cohort.settings import PrepareSettings
from unalike.cohort.store import ImageFolder
from unalike.errors import InputError, PictureError, SettingsError, UnalikeError

# ---------------------------------------------------------------- arithmetic, written out


def prepare(recipe: str, source: Path, out: Path, *, seed: int = 0, **changes: Any) -> ImageFolder:
    options = recipe_settings(recipe, **changes)
    return prepare_cohort(source=source, out=out, settings=options, seed=seed, key=b"k", workers=1)


def refuse(recipe: str, source: Path, out: Path, kind: type[UnalikeError], message: str, **changes: Any) -> None:
    with pytest.raises(kind, match=message) as caught:
        prepare(recipe, source, out, **changes)
    assert "\n" not in str(caught.value)


def rows_of(cohort: ImageFolder) -> dict[str, list[int]]:
    """Rows of each file of the source, by its path."""
    private = pq.read_table(cohort.path / folders.PRIVATE / folders.SOURCES).to_pydict()
    paths = dict(zip(private["source"], private["path"], strict=True))
    rows: dict[str, list[int]] = {}
    for row, source in enumerate(cohort.column("source").tolist()):
        rows.setdefault(paths[source], []).append(row)
    return rows


def subjects_of(cohort: ImageFolder) -> dict[str, str]:
    """The name in the source of each file's patient, by the file's path."""
    private = pq.read_table(cohort.path / folders.PRIVATE / folders.SOURCES).to_pydict()
    return dict(zip(private["path"], private["identifier"], strict=True))


def role_counts(cohort: ImageFolder) -> dict[tuple[str, str], int]:
    return dict(Counter(zip(cohort.column("label").tolist(), cohort.column("role").tolist(), strict=True)))


def record_of(cohort: ImageFolder, row: int) -> dict[str, list[float]]:
    return dict(cohort.records.slice(row, 1).to_pylist()[0])


def keys_weights(old: int, new: int) -> np.ndarray:
    """(new, old) weights of cubic interpolation with a = −1/2, widened to shrink (Keys 1981, eq. 15)."""
    step = old / new
    centers = (np.arange(new)[:, None] + 0.5) * step
    distance = np.abs(np.arange(old)[None] + 0.5 - centers) / max(step, 1.0)
    near = 1.5 * distance**3 - 2.5 * distance**2 + 1
    far = -0.5 * distance**3 + 2.5 * distance**2 - 4 * distance + 2
    weights = np.where(distance < 1, near, np.where(distance < 2, far, 0))
    result: np.ndarray = weights / weights.sum(axis=1, keepdims=True)
    return result


def assert_resized(stored: np.ndarray, plane: np.ndarray, height: int, width: int) -> None:
    """``stored`` is ``plane`` brought to (height, width): the nearest whole numbers, float32 rounding allowed for."""
    exact = keys_weights(plane.shape[0], height) @ plane.astype(np.float64) @ keys_weights(plane.shape[1], width).T
    np.testing.assert_allclose(stored, np.clip(exact, 0, np.iinfo(stored.dtype).max), rtol=0, atol=0.5 + 1e-3)


def luma(color: np.ndarray) -> np.ndarray:
    """Gray of (H, W, 3) by ITU-R 601, not rounded yet."""
    red, green, blue = (color[..., index].astype(np.int64) for index in range(3))
    return (299 * red + 587 * green + 114 * blue) / 1000


def noise(random: np.random.Generator, *shape: int) -> np.ndarray:
    return random.integers(1, 256, shape, dtype=np.uint8)


def save(path: Path, pixels: np.ndarray) -> np.ndarray:
    """Write a picture and give what its decoder gives back (JPEG changes values)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    with Image.open(path) as picture:
        return np.asarray(picture)


def save_volume(path: Path, voxels: np.ndarray, affine: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(voxels, affine), path)


def write_table(path: Path, rows: Sequence[Sequence[object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows(rows)


# ---------------------------------------------------------------- recipes as such


def test_every_recipe_is_complete_and_its_settings_are_accepted() -> None:
    names = [recipe.name for recipe in list_recipes()]
    assert names == [
        "folder", "nifti", "dicom", "all-leukemia", "brain-tumor-mri", "brats20", "brats21", "chexpert",
        "cxr-pneumonia", "msd", "pcam", "pi-cai", "sars-cov-2-ct",
    ]  # fmt: skip
    for recipe in list_recipes():
        assert all(text.strip() for text in (recipe.title, recipe.expects, recipe.does))
        assert recipe.layouts
        options = recipe_settings(recipe.name)
        options.check()
        for entry in fields(PrepareSettings):
            if entry.name != "recipe":
                expected = recipe.settings.get(entry.name, entry.default)
                assert getattr(options, entry.name) == expected
                assert type(getattr(options, entry.name)) is type(expected)


@pytest.mark.parametrize("recipe", ["brats20", "brats21"])
def test_brats_holds_out_56_subjects_as_the_paper_does(recipe: str) -> None:
    known = recipe_settings(recipe)
    assert (known.holdout, known.size, known.least_content, known.content_above) == (56, 256, 0.15, 50)
    assert known.channels == ("t1", "t1ce", "t2", "flair", "mask")


def test_56_of_369_subjects_are_held_out(tmp_path: Path) -> None:
    # Roles are planned from names alone, so empty files do.
    for number in range(1, 370):
        place = tmp_path / "MICCAI_BraTS2020_TrainingData" / f"BraTS20_Training_{number:03d}"
        place.mkdir(parents=True)
        for channel in ("t1", "t1ce", "t2", "flair", "seg"):
            (place / f"{place.name}_{channel}.nii.gz").touch()
    draft = plan_cohort(source=tmp_path, settings=recipe_settings("brats20"), seed=0)
    assert Counter(draft.roles.tolist()) == {"train": 313, "holdout": 56}
    assert {len(item.files) for item in draft.plan.items} == {5}


OWN = """
title = "Eyes"
expects = "eye_17_left.png"
does = "takes them"
reference = ""
[settings]
size = 8
color = "gray"
[[layout]]
reader = "pictures"
files = ['(?P<label>healthy|ill)/eye_(?P<subject>\\d+)_(left|right)\\.png$']
"""


def test_a_recipe_of_the_users_own(tmp_path: Path) -> None:
    (tmp_path / "eyes.toml").write_text(OWN)
    random = np.random.default_rng(0)
    written = {
        f"{label}/eye_{number}_{side}.png": noise(random, 8, 8)
        for label, number in (("healthy", 1), ("ill", 2), ("ill", 3))
        for side in ("left", "right")
    }
    for name, pixels in written.items():
        save(tmp_path / "s" / name, pixels)
    save(tmp_path / "s" / "logo.png", noise(random, 8, 8))
    assert find_recipe(str(tmp_path / "eyes.toml")).title == "Eyes"
    cohort = prepare(str(tmp_path / "eyes.toml"), tmp_path / "s", tmp_path / "c")
    assert cohort.header.settings["recipe"] == "eyes"
    assert subjects_of(cohort) == {name: name.split("_")[1] for name in written}
    for name, (row,) in rows_of(cohort).items():
        np.testing.assert_array_equal(cohort.images[row, 0], written[name])
        assert cohort.column("label")[row] == name.split("/")[0]
    assert len(set(cohort.column("subject").tolist())) == 3
    assert any(note.startswith("1 of 7 pictures lie elsewhere") for note in cohort.header.content["notes"])


def test_a_recipe_of_the_users_own_for_volumes_with_classes(tmp_path: Path) -> None:
    own = tmp_path / "livers.toml"
    own.write_text(
        OWN.replace("Eyes", "Livers")
        .replace('"pictures"', '"volumes"')
        .replace("eye_(?P<subject>\\d+)_(left|right)\\.png", "(?P<subject>p\\d+)-(?P<channel>[a-z]+)\\.nii")
    )
    random = np.random.default_rng(0)
    for name in ("healthy/p1", "healthy/p2", "ill/p3", "ill/p4"):
        for channel in ("native", "contrast"):
            save_volume(tmp_path / "s" / f"{name}-{channel}.nii", noise(random, 8, 8, 1), np.eye(4))
    cohort = prepare(str(own), tmp_path / "s", tmp_path / "c", holdout=0.5, stratify=True)
    assert cohort.channels == ("contrast", "native")
    assert role_counts(cohort) == {(name, role): 1 for name in ("healthy", "ill") for role in ("train", "holdout")}
    chosen = prepare(str(own), tmp_path / "s", tmp_path / "d", holdout=0.5, classes=("ill",))
    assert sorted(set(subjects_of(chosen).values())) == ["p3", "p4"]
    refuse(
        str(own), tmp_path / "s", tmp_path / "e", SettingsError, "no image of class dead; there are", classes=("dead",)
    )
    bare = prepare(str(own), tmp_path / "s", tmp_path / "f", labels=False)
    assert set(bare.column("label").tolist()) == {""}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("title =", "titel ="), "is no recipe"),
        (("size = 8", "sise = 8"), "sise is no setting of prepare"),
        (('reader = "pictures"', 'reader = "paintings"'), "reader 'paintings' is none of pictures, volumes"),
        (('reader = "pictures"', ""), "is no recipe"),
        (("files =", "fils ="), "fils"),
        (("(?P<subject>", "(?P<subject"), "is no recipe"),
        (("[[layout]]", "[[layouts]]"), "is no recipe"),
        (('title = "Eyes"', "title = 3"), "a text is no text"),
        (('title = "Eyes"', 'title = "Eyes'), "is no TOML file"),
    ],
)
def test_mistakes_in_a_users_recipe_are_said_in_one_line(tmp_path: Path, change: tuple[str, str], message: str) -> None:
    file = tmp_path / "eyes.toml"
    file.write_text(OWN.replace(*change))
    with pytest.raises(SettingsError, match=message) as caught:
        recipe_settings(str(file))
    assert "\n" not in str(caught.value)
    assert str(file) in str(caught.value)


def test_unknown_recipes_and_settings_are_named() -> None:
    with pytest.raises(SettingsError, match=r"--recipe brats19 is unknown. Use one of: .*brats20, brats21"):
        find_recipe("brats19")
    with pytest.raises(SettingsError, match="cannot be read"):
        find_recipe("nowhere/at-all.toml")
    with pytest.raises(SettingsError, match="is unknown"):
        find_recipe("../recipes/brats20")
    with pytest.raises(SettingsError, match="sise: no setting of prepare"):
        recipe_settings("brats20", sise=3)


# ---------------------------------------------------------------- BraTS

# The release's own: stored left–posterior–superior, 1 mm.
BRATS = np.array([[-1.0, 0, 0, 0], [0, -1, 0, 239], [0, 0, 1, 0], [0, 0, 0, 1]])
MODALITIES = ("t1", "t1ce", "t2", "flair")


def write_brats(
    folder: Path, case: str, volumes: dict[str, np.ndarray], *, seg: str = "", end: str = ".nii.gz"
) -> None:
    for channel, voxels in volumes.items():
        name = seg if seg and channel == "seg" else f"{case}_{channel}{end}"
        save_volume(folder / case / name, voxels, BRATS)


def draw_brats(random: np.random.Generator, *shape: int) -> dict[str, np.ndarray]:
    """Volumes with 0 and 255 in each, so that gray levels are the values themselves."""
    drawn = {name: random.integers(60, 250, shape).astype(np.int16) for name in MODALITIES}
    for voxels in drawn.values():
        voxels[0, 0, :], voxels[1, 0, :] = 0, 255
    return {**drawn, "seg": random.choice([0, 1, 2, 4], shape).astype(np.uint8)}


def test_brats20_at_its_true_size(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    source = tmp_path / "MICCAI_BraTS2020_TrainingData"
    drawn = draw_brats(random, 240, 240, 4)
    # 15 % of 240 × 240 pixels are 8640: slice 1 has just as many above 50 (half in one modality, half in another),
    # slice 2 one less; slice 0 is dark.
    for name in MODALITIES:
        drawn[name][:, :, 0], drawn[name][:, :, 1:3] = 0, 50
    bright = random.permutation(240 * 240)[:8640]
    for slice_, lit in ((1, bright), (2, bright[:-1])):
        for name, part in (("t1", lit[:4320]), ("flair", lit[4320:])):
            plane = np.full(240 * 240, 50, np.int16)
            plane[part] = 51
            drawn[name][:, :, slice_] = plane.reshape(240, 240)
    stored = drawn | {"t2": drawn["t2"] * 4 + 7}  # lowest and highest value become 0 and 255, wherever they are
    write_brats(source, "BraTS20_Training_355", stored, seg="W39_1998.09.19_Segm.nii")
    write_brats(source, "BraTS20_Training_001", draw_brats(random, 240, 240, 1), end=".nii")
    other = draw_brats(random, 240, 240, 1)
    del other["seg"]
    write_brats(tmp_path / "MICCAI_BraTS2020_ValidationData", "BraTS20_Validation_001", other)

    cohort = prepare("brats20", tmp_path, tmp_path / "c", holdout=1, near_duplicates=0)
    assert cohort.channels == ("t1", "t1ce", "t2", "flair", "mask")
    assert set(subjects_of(cohort).values()) == {"BraTS20_Training_001", "BraTS20_Training_355"}
    rows = next(rows for path, rows in rows_of(cohort).items() if "355" in path)
    assert cohort.numbers("slice")[rows].tolist() == [1, 3]
    for row, index in zip(rows, (1, 3), strict=True):
        expected = np.zeros((5, 256, 256), np.uint8)
        for channel, name in enumerate(MODALITIES):
            expected[channel, 8:248, 8:248] = drawn[name][:, :, index].T  # rows go back from the front, as stored
        for label, level in ((1, 51), (2, 102), (4, 204)):
            expected[4, 8:248, 8:248][label == drawn["seg"][:, :, index].T] = level
        np.testing.assert_array_equal(cohort.images[row], expected)
        record = record_of(cohort, row)
        assert record["source_size"] == [240, 240]
        assert (record["scale"], record["offset"]) == ([1, 1], [-8, -8])
        # Column c is voxel c − 8 from the right, row r is voxel r − 8 from the front.
        affine = np.array([[-1.0, 0, 0, 8], [0, -1, 0, 247], [0, 0, 1, index], [0, 0, 0, 1]])
        np.testing.assert_allclose(np.reshape(record["affine"], (4, 4)), affine, atol=1e-9)
    assert Counter(cohort.column("role").tolist()).keys() == {"train", "holdout"}


def test_brats21_leaves_the_validation_set_out_and_draws_whole_subjects(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for number in range(7):
        place = tmp_path / "RSNA_ASNR_MICCAI_BraTS2021_TrainingData_16July2021"
        write_brats(place, f"BraTS2021_{number:05d}", draw_brats(random, 12, 10, 3))
    other = draw_brats(random, 12, 10, 3)
    del other["seg"]
    write_brats(tmp_path / "RSNA_ASNR_MICCAI_BraTS2021_ValidationData", "BraTS2021_00001", other)
    drawn = [prepare("brats21", tmp_path, tmp_path / f"c{seed}", size=16, holdout=3, seed=seed) for seed in (0, 1)]
    for cohort in drawn:
        assert cohort.images.shape == (21, 5, 16, 16)
        assert [len(cohort.rows(role)) for role in ("train", "holdout")] == [12, 9]
        held = set(cohort.column("subject")[cohort.rows("holdout")])
        assert len(held) == 3
        assert not held & set(cohort.column("subject")[cohort.rows("train")])
    assert drawn[0].column("role").tolist() != drawn[1].column("role").tolist()
    again = prepare("brats21", tmp_path, tmp_path / "again", size=16, holdout=3)
    assert again.header.content == drawn[0].header.content


def test_a_label_that_brats_does_not_know_is_refused(tmp_path: Path) -> None:
    drawn = draw_brats(np.random.default_rng(0), 8, 8, 2)
    for case in ("BraTS20_Training_001", "BraTS20_Training_002"):
        write_brats(tmp_path / "s", case, drawn)
    drawn["seg"][0, 0, 0] = 3
    write_brats(tmp_path / "s", "BraTS20_Training_003", drawn)
    refuse("brats20", tmp_path / "s", tmp_path / "c", PictureError, "003_seg.nii.gz has label 3", size=8, holdout=1)


# ---------------------------------------------------------------- pictures in class folders


def write_chest(source: Path) -> dict[str, tuple[str, np.ndarray]]:
    """Patient and pixels of each path of a small Kaggle chest_xray."""
    random = np.random.default_rng(0)
    patients = {
        "train/PNEUMONIA/person123_bacteria_4.jpeg": "person123",
        "train/PNEUMONIA/person123_virus_5.jpeg": "person123",
        "test/PNEUMONIA/person1_virus_6.jpeg": "person1",
        "val/PNEUMONIA/person1946_bacteria_4874.jpeg": "person1946",
        "train/NORMAL/IM-0115-0001.jpeg": "IM-0115",
        "train/NORMAL/IM-0115-0001-0002.jpeg": "IM-0115",
        "train/NORMAL/NORMAL2-IM-1427-0001.jpeg": "IM-1427",
        "test/NORMAL/NORMAL2-IM-0013-0001.jpeg": "IM-0013",
    }
    return {name: (patient, save(source / name, noise(random, 30, 40))) for name, patient in patients.items()}


def test_chest_xrays_are_stretched_and_patients_come_from_file_names(tmp_path: Path) -> None:
    source = tmp_path / "chest_xray"
    written = write_chest(source)
    gray = noise(np.random.default_rng(9), 50, 20)
    color = save(source / "train" / "NORMAL" / "IM-0200-0001.jpeg", np.dstack([gray] * 3))  # some are gray in colour
    (source / "train" / "NORMAL" / ".DS_Store").write_bytes(b"x")
    written["train/NORMAL/IM-0200-0001.jpeg"] = ("IM-0200", color[..., 1])
    cohort = prepare("cxr-pneumonia", source, tmp_path / "c")
    assert cohort.images.shape == (9, 1, 256, 256)
    assert subjects_of(cohort) == {name: patient for name, (patient, _) in written.items()}
    for name, (row,) in rows_of(cohort).items():
        pixels = written[name][1]
        assert_resized(cohort.images[row, 0], pixels, 256, 256)
        assert cohort.column("label")[row] == name.split("/")[1]
        # Outer edges stay: the middle of the first stored pixel lies half a stored pixel inside.
        record, (height, width) = record_of(cohort, row), pixels.shape
        assert record["source_size"] == [height, width]
        np.testing.assert_allclose(record["scale"], [height / 256, width / 256])
        np.testing.assert_allclose(record["offset"], [(height / 256 - 1) / 2, (width / 256 - 1) / 2])
        assert record["affine"] == []


def test_the_releases_nested_copy_of_all_chest_xrays_is_taken_once(tmp_path: Path) -> None:
    for inner in ("chest_xray", "chest_xray/chest_xray", "chest_xray/__MACOSX/chest_xray"):
        written = write_chest(tmp_path / "s" / inner)
    for source in (tmp_path / "s", tmp_path / "s" / "chest_xray"):
        cohort = prepare("cxr-pneumonia", source, tmp_path / source.name / "c", size=32)
        assert len(cohort) == len(written)
        assert any("8 pictures lie in a nested copy" in note for note in cohort.header.content["notes"])


def test_equal_names_in_other_folders_are_no_nested_copy(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for name in ("NORMAL/IM-0001-0001.png", "site-b/NORMAL/IM-0001-0001.png", "site-b/NORMAL/IM-0002-0001.png"):
        save(tmp_path / "s" / name, noise(random, 16, 16))
    assert len(prepare("cxr-pneumonia", tmp_path / "s", tmp_path / "c", size=16)) == 3


def test_chest_xrays_with_the_published_split(tmp_path: Path) -> None:
    write_chest(tmp_path / "chest_xray")
    cohort = prepare("cxr-pneumonia", tmp_path / "chest_xray", tmp_path / "c", size=32, split="keep")
    for name, (row,) in rows_of(cohort).items():
        assert cohort.column("role")[row] == ("train" if name.startswith("train/") else "holdout")


def test_the_small_set_of_1300_chest_xrays(tmp_path: Path) -> None:
    for label, count, pattern in (("NORMAL", 600, "IM-{:04d}-0001"), ("PNEUMONIA", 1400, "person{}_virus_1")):
        (tmp_path / "train" / label).mkdir(parents=True)
        for number in range(count):
            (tmp_path / "train" / label / f"{pattern.format(number)}.jpeg").touch()
    counts, drawn = draw_planned(tmp_path, "cxr-pneumonia", 0, limit=1300)
    assert counts["NORMAL", "train"] + counts["PNEUMONIA", "train"] == 1300
    # Of 2000 patients 400 are held out; 1300 of 1600 is the share that stays of both: 325.
    assert counts["NORMAL", "holdout"] + counts["PNEUMONIA", "holdout"] == 325
    assert draw_planned(tmp_path, "cxr-pneumonia", 0, limit=1300)[1] == drawn
    assert draw_planned(tmp_path, "cxr-pneumonia", 1, limit=1300)[1] != drawn


def test_nih_names_are_patients_too(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for name in ("00000013_005.png", "00000013_006.png", "00000014_000.png"):
        save(tmp_path / "s" / "NORMAL" / name, noise(random, 16, 16))
    cohort = prepare("cxr-pneumonia", tmp_path / "s", tmp_path / "c", size=16)
    assert sorted(subjects_of(cohort).values()) == ["00000013", "00000013", "00000014"]


BRAIN_FORMS = {
    "one": {"glioma_tumor": "gg ({}).jpg", "meningioma_tumor": "m ({}).jpg", "no_tumor": "image({}).jpg",
            "pituitary_tumor": "p ({}).jpg"},
    "other": {"glioma": "Tr-gl_00{}.jpg", "meningioma": "Tr-me_00{}.jpg", "notumor": "Tr-no_00{}.jpg",
              "pituitary": "Tr-pi_00{}.jpg"},
}  # fmt: skip


@pytest.mark.parametrize("form", sorted(BRAIN_FORMS))
def test_brain_tumours_in_both_forms(tmp_path: Path, form: str) -> None:
    random = np.random.default_rng(0)
    written = {}
    for label, pattern in BRAIN_FORMS[form].items():
        for index in range(10):
            split = "Training" if index < 7 else "Testing"
            name = f"{split}/{label}/{pattern.format(10 + index)}"
            written[name] = save(tmp_path / "s" / name, np.dstack([noise(random, 128, 64)] * 3))  # gray saved in colour
    cohort = prepare("brain-tumor-mri", tmp_path / "s", tmp_path / "c")
    assert cohort.images.shape == (40, 1, 256, 256)
    for name, (row,) in rows_of(cohort).items():
        stored = cohort.images[row, 0]
        assert not stored[:, :64].any()
        assert not stored[:, 192:].any()
        assert_resized(stored[:, 64:192], written[name][..., 0], 256, 128)
        record = record_of(cohort, row)
        assert (record["source_size"], record["scale"]) == ([128, 64], [0.5, 0.5])
        # The first source pixel's middle is stored at row 0.5, column 64.5.
        np.testing.assert_allclose(record["offset"], [-0.25, -0.25 - 32])
    # A fifth of each class for train: 2 of 10.
    assert role_counts(cohort) == {
        (label, role): count for label in BRAIN_FORMS[form] for role, count in (("train", 2), ("holdout", 8))
    }
    assert any("each file is taken as a patient" in note for note in cohort.header.content["notes"])


def test_blood_smears_without_their_segmented_twins(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    names = {"Benign": "WBC-Benign-{:03d}.jpg", "Early": "WBC-Malignant-Early-{:03d}.jpg",
             "Pre": "WBC-Malignant-Pre-{:03d}.jpg", "Pro": "WBC-Malignant-Pro-{:03d}.jpg"}  # fmt: skip
    written = {}
    for label, pattern in names.items():
        for index in range(1, 6):
            inside = f"{label}/{pattern.format(index)}"
            written[f"Original/{inside}"] = save(tmp_path / "s" / "Original" / inside, noise(random, 56, 56, 3))
            save(tmp_path / "s" / "Segmented" / inside, noise(random, 56, 56, 3))
    cohort = prepare("all-leukemia", tmp_path / "s", tmp_path / "c", size=64)
    assert recipe_settings("all-leukemia").size == 256
    assert cohort.channels == ("red", "green", "blue")
    assert rows_of(cohort).keys() == written.keys()
    for name, (row,) in rows_of(cohort).items():
        for channel in range(3):
            assert_resized(cohort.images[row, channel], written[name][..., channel], 64, 64)
    assert role_counts(cohort) == {(name, role): n for name in names for role, n in (("train", 1), ("holdout", 4))}
    # Who gives the twins gets the twins.
    assert len(prepare("all-leukemia", tmp_path / "s" / "Segmented", tmp_path / "twins", size=64)) == 20


def write_covid(source: Path, counts: dict[str, int], *, side: int = 32) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    names = {"COVID": "Covid ({}).png", "non-COVID": "Non-Covid ({}).png"}
    return {
        name: save(source / name, noise(random, side, side, 3))
        for label, count in counts.items()
        for name in (f"{label}/{names[label].format(index)}" for index in range(1, count + 1))
    }


def test_covid_slices(tmp_path: Path) -> None:
    written = write_covid(tmp_path / "s", {"COVID": 15, "non-COVID": 10})
    cohort = prepare("sars-cov-2-ct", tmp_path / "s", tmp_path / "c", size=32)
    for name, (row,) in rows_of(cohort).items():
        np.testing.assert_allclose(cohort.images[row, 0], luma(written[name]), rtol=0, atol=0.5 + 1e-9)
        assert cohort.column("label")[row] == name.split("/")[0]
    assert role_counts(cohort) == {
        ("COVID", "train"): 3, ("COVID", "holdout"): 12, ("non-COVID", "train"): 2, ("non-COVID", "holdout"): 8,
    }  # fmt: skip


def test_near_duplicates_are_never_on_both_sides(tmp_path: Path) -> None:
    written = write_covid(tmp_path / "s", {"COVID": 12, "non-COVID": 12})
    random = np.random.default_rng(1)
    twins = {}
    for number, (name, pixels) in enumerate(written.items()):
        twin = f"{name.split('/')[0]}/copy of {number}.png"
        changed = np.clip(pixels.astype(np.int64) + random.integers(-3, 4, pixels.shape), 0, 255).astype(np.uint8)
        # Every other twin is seen in a mirror.
        save(tmp_path / "s" / twin, changed[:, ::-1] if number % 2 else changed)
        twins[name] = twin
    for seed in range(3):
        cohort = prepare("sars-cov-2-ct", tmp_path / "s", tmp_path / f"c{seed}", size=32, seed=seed)
        rows, subjects, roles = rows_of(cohort), cohort.column("subject"), cohort.column("role")
        for name, twin in twins.items():
            a, b = rows[name][0], rows[twin][0]
            assert subjects[a] == subjects[b]
            assert roles[a] == roles[b]
        assert cohort.header.content["leaks"]["merged_subjects"] == 24
        # Of 12 pairs a class, 80 % are 10 (9.6).
        assert role_counts(cohort)["COVID", "holdout"] == role_counts(cohort)["non-COVID", "holdout"] == 20


@settings(max_examples=20, deadline=None)
@given(
    counts=st.lists(st.integers(1, 12), min_size=2, max_size=2).filter(lambda counts: sum(counts) > 2),
    seed=st.integers(0, 10**6),
)
def test_each_class_gives_its_own_four_fifths(counts: list[int], seed: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for label, count in zip(("COVID", "non-COVID"), counts, strict=True):
            (Path(folder) / label).mkdir()
            for index in range(count):
                (Path(folder) / label / f"{index}.png").touch()
        draft = plan_cohort(source=Path(folder), settings=recipe_settings("sars-cov-2-ct"), seed=seed)
        labels = np.asarray([item.label for item in draft.plan.items])
        held = draft.roles == "holdout"
        expected = [round(0.8 * count) for count in counts]
        if 0 < sum(expected) < sum(counts):
            assert [int(held[labels == label].sum()) for label in ("COVID", "non-COVID")] == expected
        assert 0 < held.sum() < len(held)


def test_16_bit_pictures_keep_their_bits(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    written = {f"p{index}.png": random.integers(0, 2**16, (12, 12), dtype=np.uint16) for index in range(4)}
    for name, pixels in written.items():
        save(tmp_path / "s" / name, pixels)
    kept = prepare("folder", tmp_path / "s", tmp_path / "kept")
    eight = prepare("folder", tmp_path / "s", tmp_path / "eight", depth="8")
    assert [kept.dtype.name, eight.dtype.name] == ["uint16", "uint8"]
    for name, (row,) in rows_of(kept).items():
        np.testing.assert_array_equal(kept.images[row, 0], written[name])
        # 255 and 65,535 are both white.
        np.testing.assert_array_equal(eight.images[row, 0], np.rint(written[name] / 65535 * 255))


# ---------------------------------------------------------------- PI-CAI

# T2W: 0.25 × 0.8 × 3.6 mm, stored left–posterior–superior as ITK does.
T2W_SHAPE, T2W_STEP, T2W_ORIGIN = (640, 40, 10), (0.25, 0.8, 3.6), (-80.0, -12.0, 5.0)
ADC_SHAPE, ADC_STEP, ADC_ORIGIN = (50, 12, 8), (2.0, 2.5, 3.0), (-49.0, -14.0, 9.0)
RAMPS = {"t2w": (100.0, 2.0, 3.0, 5.0), "adc": (900.0, 4.0, -1.0, 2.0), "hbv": (400.0, -1.0, 2.0, 1.0)}


def ramp(name: str, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    """A linear function of RAS millimetres, on the grid that x, y and z span."""
    base, by_x, by_y, by_z = RAMPS[name]
    return base + by_x * x[:, None, None] + by_y * y[None, :, None] + by_z * z[None, None, :]


def ras_centers(shape: Sequence[int], step: Sequence[float], origin: Sequence[float]) -> list[np.ndarray]:
    """RAS millimetres of the voxel centres along each stored axis (left, posterior, superior)."""
    signs = (-1, -1, 1)
    return [
        sign * (start + width * np.arange(side))
        for sign, start, width, side in zip(signs, origin, step, shape, strict=True)
    ]


def write_mha(path: Path, name: str, shape: Sequence[int], step: Sequence[float], origin: Sequence[float]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    voxels = ramp(name, *ras_centers(shape, step, origin)).astype(np.float32)
    image = sitk.GetImageFromArray(np.ascontiguousarray(voxels.transpose(2, 1, 0)))
    image.SetSpacing(step)
    image.SetOrigin(origin)
    sitk.WriteImage(image, str(path), useCompression=True)


def write_case(root: Path, patient: int, study: int, *, small: bool = False) -> str:
    """Images of one case as the release's folds hold them; gives PATIENT_STUDY."""
    case = f"{patient}_{study}"
    shape = (24, 20, 8) if small else T2W_SHAPE
    place = root / "picai_public_images_fold0" / str(patient)
    origin = (T2W_ORIGIN[0] + patient % 10, *T2W_ORIGIN[1:])
    for name, other in (("t2w", "t2w"), ("cor", "t2w"), ("sag", "t2w")):
        write_mha(place / f"{case}_{name}.mha", other, shape, T2W_STEP, origin)
    for name in ("adc", "hbv"):
        write_mha(place / f"{case}_{name}.mha", name, ADC_SHAPE, ADC_STEP, ADC_ORIGIN)
    return case


def write_labels(
    root: Path, case: str, place: str, marked: dict[int, int], *, label: int = 1, shape: Sequence[int] = T2W_SHAPE
) -> None:
    """A mask on the grid of T2W: in these stored slices this many voxels along x, and 10 along y."""
    voxels = np.zeros(shape, np.uint8)
    for slice_, count in marked.items():
        voxels[5 : 5 + count, 5:15, slice_] = label
    affine = np.diag([-1.0, -1, 1, 1]) @ np.diag([*T2W_STEP, 1.0])
    patient = int(case.split("_")[0])
    affine[:3, 3] = -(T2W_ORIGIN[0] + patient % 10), -T2W_ORIGIN[1], T2W_ORIGIN[2]
    save_volume(root / "picai_labels" / place / f"{case}.nii.gz", voxels, affine)


ORGAN = "anatomical_delineations/whole_gland/AI/Bosma22b"
LESION = "csPCa_lesion_delineations/human_expert"


def expected_prostate(name: str, x: np.ndarray, y: np.ndarray, z: np.ndarray, index: int) -> np.ndarray:
    """One modality's slice (300, 300) of 8 bits, by hand: x, y, z are the centres of the cropped grid."""
    t2w = (T2W_SHAPE, T2W_STEP, T2W_ORIGIN)
    shape, step, origin = t2w if name == "t2w" else (ADC_SHAPE, ADC_STEP, ADC_ORIGIN)
    inside, clipped = [], []
    for centers, known, width in zip((x, y, z), ras_centers(shape, step, origin), step, strict=True):
        low, high = known.min(), known.max()
        inside.append((centers > low - width / 2) & (centers < high + width / 2))
        clipped.append(np.clip(centers, low, high))  # beyond the outermost centres their values go on
    volume = ramp(name, *clipped)
    volume[~(inside[0][:, None, None] & inside[1][None, :, None] & inside[2][None, None, :])] = 0
    darkest, brightest = np.percentile(volume, [0.5, 99.5])
    levels: np.ndarray = np.rint(np.clip((volume - darkest) * 255 / (brightest - darkest), 0, 255))
    return levels[::-1, ::-1, index].T  # front up, the patient's right on the left


def test_prostates_are_resampled_cropped_and_enlarged(tmp_path: Path) -> None:
    ill = write_case(tmp_path, 10000, 1000000)
    well = write_case(tmp_path, 10010, 1000010)
    for case in (ill, well):
        write_labels(tmp_path, case, ORGAN, dict.fromkeys(range(2, 9), 200))
    write_labels(tmp_path, ill, f"{LESION}/resampled", {3: 20, 6: 60, 7: 30}, label=3)
    write_labels(tmp_path, well, f"{LESION}/resampled", {})
    cohort = prepare("pi-cai", tmp_path, tmp_path / "c", holdout=1, near_duplicates=0)
    assert cohort.images.shape == (2, 3, 512, 512)
    assert cohort.channels == ("t2w", "adc", "dwi")
    # 160 × 32 × 36 mm are 320 × 64 × 12 voxels of 0.5 × 0.5 × 3 mm. Of 320, the middle 300 stay; 64 and 12 are
    # padded to 300 and 30, 118 and 9 voxels on each side.
    lowest = [centers.min() - step / 2 for centers, step in zip(
        ras_centers(T2W_SHAPE, T2W_STEP, T2W_ORIGIN), T2W_STEP, strict=True
    )]  # fmt: skip
    x = lowest[0] + 0.5 * (np.arange(300) + 10 + 0.5)
    y = lowest[1] + 0.5 * (np.arange(300) - 118 + 0.5)
    z = lowest[2] + 3.0 * (np.arange(30) - 9 + 0.5)
    # New slice m has its centre 3 m + 1.5 mm above the lowest face, in old slice ⌊(3 m + 1.5) / 3.6⌋: old slices
    # 2 to 8 are new slices 2 to 10, whose median is 6; old slice 6 is new slice 7.
    for case, label, index in ((ill, "csPCa", 9 + 7), (well, "negative", 9 + 6)):
        (row,) = next(rows for path, rows in rows_of(cohort).items() if case in path)
        assert cohort.column("label")[row] == label
        assert cohort.numbers("slice")[row] == index
        for channel, name in enumerate(("t2w", "adc", "hbv")):
            level = expected_prostate(name, x, y, z, index)
            weights = keys_weights(300, 512)
            exact = np.clip(weights @ level @ weights.T, 0, 255)
            off = np.abs(cohort.images[row, channel].astype(np.float64) - exact)
            # A level near a half may be rounded the other way in float32.
            assert off.max() <= 2
            assert (off > 0.5 + 1e-3).mean() < 1e-3
        affine = np.reshape(record_of(cohort, row)["affine"], (4, 4))
        for column, line in ((0, 0), (511, 200)):
            place = [299 - ((pixel + 0.5) * 300 / 512 - 0.5) for pixel in (column, line)]
            world = [lowest[0] + 0.5 * (place[0] + 10.5), lowest[1] + 0.5 * (place[1] - 117.5), z[index], 1]
            np.testing.assert_allclose(affine @ [column, line, 0, 1], world, atol=1e-4)


def test_prostates_in_the_whole_tree_of_labels(tmp_path: Path) -> None:
    """Other readings of the same cases lie beside those that are taken; two studies are one patient."""
    small = (24, 20, 8)
    cases = [write_case(tmp_path, *case, small=True) for case in ((10000, 1000000), (10000, 1000001), (10010, 1000010))]
    for case in cases:
        for place in (ORGAN, ORGAN.replace("Bosma22b", "Guerbet23")):
            write_labels(tmp_path, case, place, dict.fromkeys(range(2, 6 if "Bosma" in place else 3), 5), shape=small)
        for place in ("Yuan23", "HeviAI23"):
            write_labels(tmp_path, case, f"anatomical_delineations/zonal_pz_tz/AI/{place}", {0: 9}, shape=small)
        write_labels(tmp_path, case, "csPCa_lesion_delineations/AI/Bosma22a", {0: 9}, shape=small)
    for case in cases[:2]:
        write_labels(tmp_path, case, f"{LESION}/original", {0: 9}, shape=small)
        write_labels(tmp_path, case, f"{LESION}/resampled", {}, shape=small)
    write_labels(tmp_path, cases[2], f"{LESION}/Pooch25", {5: 9}, shape=small)
    cohort = prepare("pi-cai", tmp_path, tmp_path / "c", crop=(16, 16, 6), size=16, holdout=1, near_duplicates=0)
    assert sorted(subjects_of(cohort).values()) == ["10000", "10000", "10010"]
    # 28.8 mm are 10 slices of 3 mm, of which 2 to 7 stay. Old slices 2 to 5 are new 2, 3 (both in 2), 4, 5 and 6:
    # the median 4 is slice 2 of the crop. Old slice 5 is new slice 6 (19.5 mm), slice 4 of the crop.
    found = dict(zip(cohort.column("label").tolist(), cohort.numbers("slice").tolist(), strict=True))
    assert found == {"negative": 2, "csPCa": 4}
    assert any("left out" in note for note in cohort.header.content["notes"])


def test_a_prostate_without_masks_is_refused_or_skipped(tmp_path: Path) -> None:
    small = (24, 20, 8)
    cases = [write_case(tmp_path, patient, 1000000, small=True) for patient in (10001, 10002, 10003)]
    for case in cases[:2]:
        write_labels(tmp_path, case, ORGAN, {3: 5}, shape=small)
        write_labels(tmp_path, case, f"{LESION}/resampled", {}, shape=small)
    options: dict[str, Any] = {"crop": (16, 16, 6), "size": 16, "near_duplicates": 0}
    refuse("pi-cai", tmp_path, tmp_path / "c", PictureError, "10003_1000000.*no lesion mask", **options)
    cohort = prepare("pi-cai", tmp_path, tmp_path / "d", on_bad_file="skip", **options)
    assert (len(cohort), cohort.header.content["skipped"]) == (2, 1)


# ---------------------------------------------------------------- CheXpert

FINDINGS = (
    "No Finding", "Enlarged Cardiomediastinum", "Cardiomegaly", "Lung Opacity", "Lung Lesion", "Edema",
    "Consolidation", "Pneumonia", "Atelectasis", "Pneumothorax", "Pleural Effusion", "Pleural Other", "Fracture",
    "Support Devices",
)  # fmt: skip
COLUMNS = ("Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", *FINDINGS)


def chexpert_row(path: str, *, view: str = "Frontal", beam: str = "AP", **marks: str) -> list[str]:
    named = {name.replace("_", " "): mark for name, mark in marks.items()}
    return [f"CheXpert-v1.0-small/{path}", "Female", "68", view, beam, *(named.get(name, "") for name in FINDINGS)]


def frontal(number: int, *, split: str = "train") -> str:
    return f"{split}/patient{number:05d}/study1/view1_frontal.jpg"


def test_chexpert_takes_frontal_views_with_exactly_one_class(tmp_path: Path) -> None:
    root = tmp_path / "CheXpert-v1.0-small"
    taken = {
        frontal(1): chexpert_row(frontal(1), No_Finding="1.0", Support_Devices="1.0"),
        frontal(2): chexpert_row(frontal(2), Cardiomegaly="1.0", Pneumonia="0.0", Edema="-1.0"),
        "train/patient00002/study2/view1_frontal.jpg": chexpert_row(
            "train/patient00002/study2/view1_frontal.jpg", Pleural_Effusion="1.0", Lung_Opacity="1.0"
        ),
        frontal(64541, split="valid"): chexpert_row(frontal(64541, split="valid"), Pneumonia="1.0"),
    }
    left = [
        chexpert_row(frontal(3), Cardiomegaly="1.0", Pneumonia="1.0"),  # two of the classes
        chexpert_row(frontal(4), Cardiomegaly="1.0", Pneumonia="-1.0"),  # one of them uncertain
        chexpert_row(frontal(5), Pneumonia="-1.0"),
        chexpert_row(frontal(6), Edema="1.0"),  # none of them
        chexpert_row(frontal(7), beam="PA", Pneumonia="1.0"),
        chexpert_row(frontal(8), view="Lateral", beam="", Pneumonia="1.0"),
    ]
    rows = list(taken.values())
    write_table(root / "train.csv", [COLUMNS, *rows[:3], *left])
    write_table(root / "valid.csv", [COLUMNS, rows[3]])
    random, written = np.random.default_rng(0), {}
    for name in taken:
        pixels = np.zeros((60, 50), np.uint8)
        pixels[8:40, 8:24] = noise(random, 32, 16)
        # JPEG keeps black blocks of 8 × 8 black; the border is 8 pixels above and left, 20 below and 26 right.
        written[name] = save(root / name, pixels)
    for number, source in enumerate((root, tmp_path)):
        cohort = prepare("chexpert", source, tmp_path / f"c{number}", holdout=0.5)
        start = "" if source == root else "CheXpert-v1.0-small/"
        rows_there = rows_of(cohort)
        assert rows_there.keys() == {start + name for name in taken}
        assert sorted(set(subjects_of(cohort).values())) == ["patient00001", "patient00002", "patient64541"]
        labels = [cohort.column("label")[rows_there[start + name][0]] for name in taken]
        assert labels == ["No Finding", "Cardiomegaly", "Pleural Effusion", "Pneumonia"]
    for name, pixels in written.items():
        (row,) = rows_there["CheXpert-v1.0-small/" + name]
        lit_rows, lit_columns = np.nonzero(pixels)
        top, bottom, left_, right = lit_rows.min(), lit_rows.max() + 1, lit_columns.min(), lit_columns.max() + 1
        height, width = int(bottom - top), int(right - left_)
        longest = max(height, width)
        tall, wide = round(height * 512 / longest), round(width * 512 / longest)
        above, before = (512 - tall) // 2, (512 - wide) // 2
        stored = cohort.images[row, 0].copy()
        assert_resized(
            stored[above : above + tall, before : before + wide], pixels[top:bottom, left_:right], tall, wide
        )
        stored[above : above + tall, before : before + wide] = 0
        assert not stored.any()
        # Stored pixel (above, before) is the crop's outermost: half a stored pixel within its edge.
        record = record_of(cohort, row)
        assert record["source_size"] == [60, 50]
        for scale, offset, begin, side, new, pad in zip(
            record["scale"], record["offset"], (top, left_), (height, width), (tall, wide), (above, before), strict=True
        ):
            assert scale == pytest.approx(side / new)
            assert scale * pad + offset == pytest.approx(begin - 0.5 + 0.5 * side / new)


def test_chexpert_published_roles_and_other_classes(tmp_path: Path) -> None:
    root, random = tmp_path / "CheXpert-v1.0-small", np.random.default_rng(0)
    rows = [chexpert_row(frontal(number), Edema="1.0") for number in (1, 2)]
    held = chexpert_row(frontal(3, split="valid"), Edema="1.0", Pneumonia="1.0")
    write_table(root / "train.csv", [COLUMNS, *rows])
    write_table(root / "valid.csv", [COLUMNS, held])
    for row in (*rows, held):
        save(tmp_path / row[0], noise(random, 20, 20))
    cohort = prepare("chexpert", root, tmp_path / "c", size=20, classes=("Edema",), split="keep")
    assert role_counts(cohort) == {("Edema", "train"): 2, ("Edema", "holdout"): 1}
    refuse("chexpert", root, tmp_path / "d", SettingsError, "--classes: Oedema not found", classes=("Oedema",))
    refuse("chexpert", root, tmp_path / "e", InputError, "none of the 3 rows", classes=("Fracture",))


def draw_planned(source: Path, recipe: str, seed: int, **changes: Any) -> tuple[dict[tuple[str, str], int], list[str]]:
    draft = plan_cohort(source=source, settings=recipe_settings(recipe, **changes), seed=seed)
    labels = [item.label for item in draft.plan.items]
    return dict(Counter(zip(labels, draft.roles.tolist(), strict=True))), [item.source for item in draft.plan.items]


def test_chexpert_400_balanced_are_100_a_class(tmp_path: Path) -> None:
    counts = {"No_Finding": 300, "Cardiomegaly": 180, "Pleural_Effusion": 400, "Pneumonia": 150}
    names = [name for name, count in counts.items() for _ in range(count)]
    rows = [chexpert_row(frontal(number), **{name: "1.0"}) for number, name in enumerate(names)]
    write_table(tmp_path / "train.csv", [COLUMNS, *rows])
    first, drawn = draw_planned(tmp_path, "chexpert", 0, limit=400, balance=True)
    classes = [name.replace("_", " ") for name in counts]
    assert [first[name, "train"] for name in classes] == [100] * 4
    # A fifth of 1030 are held out: 206, against 824 for train of which 400 stay: 100 of them, 25 a class.
    assert [first[name, "holdout"] for name in classes] == [25] * 4
    assert draw_planned(tmp_path, "chexpert", 0, limit=400, balance=True)[1] == drawn
    assert draw_planned(tmp_path, "chexpert", 1, limit=400, balance=True)[1] != drawn


# ---------------------------------------------------------------- PatchCamelyon


def write_patches(folder: Path, split: str, count: int, seed: int, *, meta: bool = True) -> np.ndarray:
    """The three files of one split, named as the release does; labels alternate, two patches a slide."""
    folder.mkdir(parents=True, exist_ok=True)
    patches = noise(np.random.default_rng(seed), count, 96, 96, 3)
    start = folder / f"camelyonpatch_level_2_split_{split}"
    with h5py.File(f"{start}_x.h5", "w") as file:
        file.create_dataset("x", data=patches, chunks=(1, 96, 96, 3), compression="gzip", compression_opts=1)
    with h5py.File(f"{start}_y.h5", "w") as file:
        file.create_dataset("y", data=(np.arange(count) % 2).astype(np.uint8).reshape(count, 1, 1, 1))
    if meta:
        rows = [
            (row, 100, 200, bool(row % 2), bool(row % 2), f"camelyon16_{split}_normal_{row // 2:03d}")
            for row in range(count)
        ]
        write_table(
            Path(f"{start}_meta.csv"), [("", "coord_y", "coord_x", "tumor_patch", "center_tumor_patch", "wsi"), *rows]
        )
    return patches


def test_patches_are_enlarged_value_by_value(tmp_path: Path) -> None:
    written = {
        split: write_patches(tmp_path / "s", split, 4, seed) for seed, split in enumerate(("train", "valid", "test"))
    }
    cohort = prepare("pcam", tmp_path / "s", tmp_path / "c", split="keep")
    assert cohort.images.shape == (12, 3, 512, 512)
    assert cohort.channels == ("red", "green", "blue")
    subjects = subjects_of(cohort)
    for name, (row,) in rows_of(cohort).items():
        split, index = name.split("_")[4], int(name.split("[")[1][:-1])
        assert cohort.column("label")[row] == str(index % 2)
        assert cohort.column("role")[row] == ("train" if split == "train" else "holdout")
        assert subjects[name] == f"camelyon16_{split}_normal_{index // 2:03d}"
        for channel in range(3):
            assert_resized(cohort.images[row, channel], written[split][index, ..., channel], 512, 512)
        record = record_of(cohort, row)
        assert record["source_size"] == [96, 96]
        assert record["scale"] == [96 / 512] * 2


def test_patches_without_slides_are_patients_of_their_own(tmp_path: Path) -> None:
    write_patches(tmp_path / "s", "train", 10, 0, meta=False)
    cohort = prepare("pcam", tmp_path / "s", tmp_path / "c", size=96)
    assert len(set(cohort.column("subject").tolist())) == len(cohort)
    assert any("each patch is taken as a patient" in note for note in cohort.header.content["notes"])


def test_patches_in_the_kaggle_form(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    names = [f"{number:040x}" for number in range(12)]
    written = {name: noise(random, 96, 96, 3) for name in names}
    (tmp_path / "s" / "train").mkdir(parents=True)
    (tmp_path / "s" / "test").mkdir()
    for name, pixels in written.items():
        tifffile.imwrite(tmp_path / "s" / "train" / f"{name}.tif", pixels, photometric="rgb")
    tifffile.imwrite(tmp_path / "s" / "test" / f"{99:040x}.tif", written[names[0]], photometric="rgb")
    write_table(tmp_path / "s" / "sample_submission.csv", [("id", "label"), (f"{99:040x}", 0)])
    write_table(
        tmp_path / "s" / "train_labels.csv", [("id", "label"), *((name, i % 2) for i, name in enumerate(names))]
    )
    cohort = prepare("pcam", tmp_path / "s", tmp_path / "c", size=96, balance=False)
    assert rows_of(cohort).keys() == {f"train/{name}.tif" for name in names}
    for index, name in enumerate(names):
        (row,) = rows_of(cohort)[f"train/{name}.tif"]
        np.testing.assert_array_equal(cohort.images[row], written[name].transpose(2, 0, 1))
        assert cohort.column("label")[row] == str(index % 2)


def test_200_patches_are_drawn_by_default(tmp_path: Path) -> None:
    rows = [(f"{number:040x}", int(number % 5 == 0)) for number in range(1500)]
    write_table(tmp_path / "train_labels.csv", [("id", "label"), *rows])
    counts, drawn = draw_planned(tmp_path, "pcam", 0)
    assert counts == {("0", "train"): 100, ("1", "train"): 100, ("0", "holdout"): 25, ("1", "holdout"): 25}
    assert draw_planned(tmp_path, "pcam", 0)[1] == drawn
    assert draw_planned(tmp_path, "pcam", 1)[1] != drawn
    # Without balance, a fifth of the 200 (and of the 50) bear label 1, as in the table, give or take the draw's own.
    plain, _ = draw_planned(tmp_path, "pcam", 0, balance=False)
    assert plain["0", "train"] + plain["1", "train"] == 200
    assert plain["0", "holdout"] + plain["1", "holdout"] == 50
    assert 35 <= plain["1", "train"] <= 45


@settings(max_examples=15, deadline=None)
@given(few=st.integers(4, 30), many=st.integers(30, 60), limit=st.integers(2, 80), seed=st.integers(0, 99))
def test_balanced_draws_are_equal_whatever_the_limit(few: int, many: int, limit: int, seed: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        rows = [(f"{number:040x}", int(number < few)) for number in range(few + many)]
        write_table(Path(folder) / "train_labels.csv", [("id", "label"), *rows])
        draft = plan_cohort(source=Path(folder), settings=recipe_settings("pcam"), seed=seed)
        there = Counter(item.label for item, role in zip(draft.plan.items, draft.roles, strict=True) if role == "train")
        assert there["0"] == there["1"] <= few
        counts, _ = draw_planned(Path(folder), "pcam", seed, limit=limit)
        assert counts["0", "train"] == counts["1", "train"] == min(limit // 2, there["1"])


def test_damaged_patches_are_refused_in_one_line(tmp_path: Path) -> None:
    write_patches(tmp_path / "s", "train", 4, 0)
    start = str(tmp_path / "s" / "camelyonpatch_level_2_split_train")
    labels, table, images = (Path(start + end) for end in ("_y.h5", "_meta.csv", "_x.h5"))
    whole = labels.read_bytes()
    with h5py.File(labels, "w") as file:
        file.create_dataset("y", shape=(10**12, 1, 1, 1), dtype="u1", chunks=(1024, 1, 1, 1))  # announced, not there
    refuse("pcam", tmp_path / "s", tmp_path / "c", InputError, "_y.h5 holds 1000000000000 labels for 4 images")
    with h5py.File(labels, "w") as file:
        file.create_dataset("y", data=[b"no"] * 4)
    refuse("pcam", tmp_path / "s", tmp_path / "c", InputError, "_y.h5 holds no labels that can be read")
    labels.write_bytes(whole)
    slides = table.read_bytes()
    table.write_bytes(b"wsi\n\xff\xfe\n")
    refuse("pcam", tmp_path / "s", tmp_path / "c", InputError, "_meta.csv cannot be read as CSV")
    table.write_bytes(slides)
    with h5py.File(images, "w") as file:
        file.create_dataset("x", shape=(10**12, 96, 96, 3), dtype="u1", chunks=(1, 96, 96, 3))
    refuse("pcam", tmp_path / "s", tmp_path / "c", InputError, "announces 1000000000000 images, more than it can hold")
    with h5py.File(images, "w") as file:
        file.create_dataset("x", data=h5py.Empty("u1"))
    refuse("pcam", tmp_path / "s", tmp_path / "c", InputError, r"holds \(\) images")
    images.write_bytes(b"no HDF5")
    refuse("pcam", tmp_path / "s", tmp_path / "c", PictureError, "_x.h5 cannot be read as HDF5")


# ---------------------------------------------------------------- Medical Segmentation Decathlon


def write_task(folder: Path, *, modality: dict[str, str], labels: dict[str, str], names: Sequence[str]) -> None:
    """dataset.json as the release writes it; imagesTs is listed by name alone."""
    task = {
        "name": folder.name, "description": "", "reference": "", "licence": "CC-BY-SA 4.0", "release": "1.0",
        "tensorImageSize": "4D" if len(modality) > 1 else "3D", "modality": modality, "labels": labels,
        "numTraining": len(names), "numTest": 1,
        "training": [{"image": f"./imagesTr/{name}.nii.gz", "label": f"./labelsTr/{name}.nii.gz"} for name in names],
        "test": ["./imagesTs/other.nii.gz"],
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "dataset.json").write_text(json.dumps(task))


def test_a_task_with_four_modalities_in_one_file(tmp_path: Path) -> None:
    random, root = np.random.default_rng(0), tmp_path / "Task01_BrainTumour"
    modality = {"0": "FLAIR", "1": "T1w", "2": "t1gd", "3": "T2w"}
    labels = {"0": "background", "1": "edema", "2": "non-enhancing tumor", "3": "enhancing tumour"}
    names = ["BRATS_001", "BRATS_002", "BRATS_010"]
    write_task(root, modality=modality, labels=labels, names=names)
    written = {}
    for name in names:
        image = random.integers(0, 2000, (14, 12, 3, 4)).astype(np.float32)
        label = random.integers(0, 4, (14, 12, 3)).astype(np.uint8)
        save_volume(root / "imagesTr" / f"{name}.nii.gz", image, np.eye(4))
        save_volume(root / "labelsTr" / f"{name}.nii.gz", label, np.eye(4))
        (root / "imagesTr" / f"._{name}.nii.gz").write_bytes(b"x")
        written[name] = image, label
    save_volume(root / "imagesTs" / "other.nii.gz", written["BRATS_001"][0], np.eye(4))
    cohort = prepare("msd", root, tmp_path / "c", size=16)
    assert cohort.channels == ("flair", "t1w", "t1gd", "t2w", "mask")
    assert cohort.images.shape == (9, 5, 16, 16)
    # 255 gray levels among 3 labels: 85 each.
    assert cohort.header.content["mask_names"] == {"edema": 85, "non-enhancing tumor": 170, "enhancing tumour": 255}
    for name, (image, label) in written.items():
        rows = rows_of(cohort)[f"imagesTr/{name}.nii.gz"]
        assert cohort.numbers("slice")[rows].tolist() == [0, 1, 2]
        for index, row in enumerate(rows):
            expected = np.zeros((5, 16, 16), np.uint8)
            for channel in range(4):
                volume = image[..., channel].astype(np.float64)
                low, high = np.percentile(volume, [0.5, 99.5])
                levels = np.rint(np.clip((volume - low) * (255 / (high - low)), 0, 255))
                # Voxel 0 is the patient's left and back: the last column and row. 12 × 14 pixels in 16 × 16.
                expected[channel, 2:14, 1:15] = levels[::-1, ::-1, index].T
            expected[4, 2:14, 1:15] = 85 * label[::-1, ::-1, index].T
            np.testing.assert_array_equal(cohort.images[row], expected)
    assert set(subjects_of(cohort).values()) == set(names)


def test_a_task_with_one_modality(tmp_path: Path) -> None:
    random, root = np.random.default_rng(0), tmp_path / "Task09_Spleen"
    names = [f"spleen_{number}" for number in (2, 10, 38)]
    write_task(root, modality={"0": "CT"}, labels={"0": "background", "1": "spleen"}, names=names)
    written = {}
    for name in names:
        written[name] = random.integers(-1000, 1000, (10, 10, 2)).astype(np.int16)
        save_volume(root / "imagesTr" / f"{name}.nii.gz", written[name], np.eye(4))
        save_volume(root / "labelsTr" / f"{name}.nii.gz", (written[name] > 500).astype(np.uint8), np.eye(4))
    cohort = prepare("msd", root, tmp_path / "c", size=10)
    assert (cohort.channels, cohort.header.content["mask_names"]) == (("ct", "mask"), {"spleen": 255})
    for name, voxels in written.items():
        for index, row in enumerate(rows_of(cohort)[f"imagesTr/{name}.nii.gz"]):
            np.testing.assert_array_equal(cohort.images[row, 1], 255 * (voxels[::-1, ::-1, index].T > 500))
    refuse(
        "msd", root, tmp_path / "d", SettingsError, "no image of class ill; there are none", size=10, classes=("ill",)
    )
    bare = prepare("msd", root, tmp_path / "bare", size=10, channels=("ct",))
    assert (bare.channels, bare.header.content["mask_names"]) == (("ct",), {})


def test_modalities_of_one_name_are_told_apart(tmp_path: Path) -> None:
    random, root = np.random.default_rng(0), tmp_path / "Task11_Own"
    write_task(root, modality={"0": "MRI", "1": "MRI", "2": "mask"}, labels={"0": "none", "1": "it"}, names=["a", "b"])
    for name in ("a", "b"):
        image = random.integers(0, 200, (8, 8, 1, 3)).astype(np.float32)
        image[0, 0], image[0, 1] = 0, 255
        save_volume(root / "imagesTr" / f"{name}.nii.gz", image, np.eye(4))
        save_volume(root / "labelsTr" / f"{name}.nii.gz", (image[..., 0] > 100).astype(np.uint8), np.eye(4))
    cohort = prepare("msd", root, tmp_path / "c", size=8, percentiles=(0, 100))
    assert cohort.channels == ("mri", "mri-1", "mask-2", "mask")
    (row,) = rows_of(cohort)["imagesTr/b.nii.gz"]
    np.testing.assert_array_equal(cohort.images[row, :3], image[::-1, ::-1, 0].T)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "is no task of the Decathlon"),
        ('{"modality": {"²": "CT"}, "labels": {"1": "x"}, "training": []}', "is no task of the Decathlon"),
        ('{"modality": {"0": "CT"}, "labels": {"1": "x"}, "training": []}', "lists no training images"),
        (
            '{"modality": {"0": "CT"}, "labels": {"1": "x"}, "training": [{"image": "../a.nii", "label": "b.nii"}]}',
            "leads out of its folder",
        ),
    ],
)
def test_damaged_tasks_are_refused_in_one_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "dataset.json").write_text(text)
    refuse("msd", tmp_path / "s", tmp_path / "c", InputError, message)


# ---------------------------------------------------------------- where a slice lies

# Turned by 20° about one axis and 10° about another, 1 × 1 × 4 mm, shifted; stored left–anterior–superior.
_A, _B = np.deg2rad(20), np.deg2rad(10)
OBLIQUE = np.eye(4)
OBLIQUE[:3, :3] = (
    np.array([[np.cos(_A), -np.sin(_A), 0], [np.sin(_A), np.cos(_A), 0], [0, 0, 1]])
    @ np.array([[1, 0, 0], [0, np.cos(_B), -np.sin(_B)], [0, np.sin(_B), np.cos(_B)]])
    @ np.diag([-1.0, 1, 4])
)
OBLIQUE[:3, 3] = 40, -30, 12


@pytest.mark.parametrize("axis", ["axial", "coronal", "sagittal"])
def test_a_stored_slice_can_be_put_back_into_its_volume(tmp_path: Path, axis: str) -> None:
    affine = OBLIQUE.copy()
    if axis != "axial":
        affine[:3, 2] /= 4  # square pixels in every plane
    marks, random = {"a": (3, 8, 2), "b": (9, 1, 4)}, np.random.default_rng(0)
    for name, mark in marks.items():
        voxels = random.integers(100, 200, (12, 10, 6)).astype(np.int16)
        voxels[mark] = 1000
        save_volume(tmp_path / "s" / f"{name}_t1.nii.gz", voxels, affine)
    cohort = prepare("nifti", tmp_path / "s", tmp_path / "c", size=16, axis=axis, least_content=0, percentiles=(0, 100))
    for name, mark in marks.items():
        rows = rows_of(cohort)[f"{name}_t1.nii.gz"]
        (row,) = (row for row in rows if cohort.images[row].max() == 255)
        back = nib.Nifti1Image(cohort.images[row, 0].T[..., None], np.reshape(record_of(cohort, row)["affine"], (4, 4)))
        nib.save(back, tmp_path / "back.nii.gz")
        read = nib.load(tmp_path / "back.nii.gz")
        (found,) = np.argwhere(np.asarray(read.dataobj) == 255)
        np.testing.assert_allclose(read.affine @ [*found, 1], affine @ [*mark, 1], atol=1e-4)


def test_pixels_made_square_keep_their_place(tmp_path: Path) -> None:
    """2 × 1 mm become 1 × 1 mm: 10 columns of voxels are 20 columns of pixels, 12 rows stay."""
    affine = np.array([[2.0, 0, 0, -7], [0, 1, 0, 3], [0, 0, 5, 100], [0, 0, 0, 1]])
    random = np.random.default_rng(0)
    for name in ("a", "b"):
        voxels = random.integers(0, 255, (10, 12, 2)).astype(np.uint8)
        save_volume(tmp_path / "s" / f"{name}_t1.nii.gz", voxels, affine)
    cohort = prepare("nifti", tmp_path / "s", tmp_path / "c", size=24, percentiles=(0, 100), content_above=0)
    voxels = voxels.astype(np.float64)
    levels = np.rint((voxels - voxels.min()) * 255 / (voxels.max() - voxels.min())).astype(np.uint8)
    for index, row in enumerate(rows_of(cohort)["b_t1.nii.gz"]):
        stored, record = cohort.images[row, 0], record_of(cohort, row)
        assert_resized(stored[6:18, 2:22], levels[::-1, ::-1, index].T, 12, 20)
        assert (record["source_size"], record["scale"]) == ([12, 10], [1.0, 0.5])
        np.testing.assert_allclose(record["offset"], [-6, -0.25 - 1])
        # Pixel (column 2, row 6) is the right half of the rightmost, foremost voxel, whose middle is at (11, 14).
        world = np.reshape(record["affine"], (4, 4)) @ [2, 6, 0, 1]
        np.testing.assert_allclose(world, [11 + 0.5, 14, 100 + 5 * index, 1])
        # One pixel to the right is 1 mm to the left; one down, 1 mm back.
        np.testing.assert_allclose(np.reshape(record["affine"], (4, 4))[:3, :2], [[-1, 0], [0, -1], [0, 0]])


def test_volumes_of_16_bits(tmp_path: Path) -> None:
    random, written = np.random.default_rng(0), {}
    for name in ("a", "b", "c"):
        voxels = random.integers(-500, 30000, (8, 8, 2)).astype(np.int16)
        labels = random.choice([0, 1, 2, 4], (8, 8, 2)).astype(np.uint8)
        save_volume(tmp_path / "s" / f"{name}_t1.nii.gz", voxels, np.eye(4))
        save_volume(tmp_path / "s" / f"{name}_seg.nii.gz", labels, np.eye(4))
        written[name] = voxels, labels
    cohort = prepare("nifti", tmp_path / "s", tmp_path / "c", size=8, depth="16", percentiles=(0, 100))
    assert cohort.dtype == np.uint16
    for name, (voxels, labels) in written.items():
        low, high = float(voxels.min()), float(voxels.max())
        levels = np.rint((voxels - low) * (65535 / (high - low)))
        rows = next(rows for path, rows in rows_of(cohort).items() if path.startswith(f"{name}_"))
        for index, row in enumerate(rows):
            np.testing.assert_array_equal(cohort.images[row, 0], levels[::-1, ::-1, index].T)
            np.testing.assert_array_equal(cohort.images[row, 1], labels[::-1, ::-1, index].T * 51.0 * 257)
