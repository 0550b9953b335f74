"""The index for live use says what an audit's measures say, is kept beside the cohort, and is never used stale."""

from __future__ import annotations

import json
import re
import runpy
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tests.conftest import draw_person

import unalike
from unalike import folders
from unalike.audit import index as index_module
from unalike.audit.evidence import MEASURES
from unalike.audit.index import WEIGHTS, CopyIndex, open_coarse, reject_copies
from unalike.cli import run
from unalike.cohort.build import prepare_cohort
from unalike.cohort.removal import drop_subject
from unalike.cohort.settings import PrepareSettings
from unalike.cohort.store import ImageFolder, ImageWriter, open_images
from unalike.errors import FolderError, InputError, RunError, SettingsError
from unalike.similarity.correlation import correlate
from unalike.similarity.gallery import Gallery
from unalike.similarity.stored import find_stored
from unalike.similarity.views import VIEWS
from unalike.stats.combine import pooled_minimum_p_values

ROOT = Path(__file__).parents[2]
STRANGERS = np.random.default_rng(77)
NEW = np.stack([draw_person(STRANGERS) for _ in range(150)])
FILE = "gallery-channels-0.safetensors"


def make(place: Path, *, subjects: int, images: int, holdout: int, seed: int) -> Path:
    """A cohort with its index."""
    (place / "pictures").mkdir()
    random = np.random.default_rng(seed)
    for subject in range(subjects):
        for number, image in enumerate(draw_person(random, images=images)):
            Image.fromarray(image).save(place / "pictures" / f"p{subject:03d}_{number}.png")
    settings = PrepareSettings(subject_pattern=r"(p\d+)_", holdout=holdout)
    prepare_cohort(source=place / "pictures", out=place / "cohort", settings=settings)
    CopyIndex.open(place / "cohort")
    return place / "cohort"


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> CopyIndex:
    """160 subjects with 2 images each, 100 of them held out."""
    return CopyIndex.open(make(tmp_path_factory.mktemp("large"), subjects=160, images=2, holdout=100, seed=0))


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """30 subjects with an image each, 20 of them held out."""
    return make(tmp_path_factory.mktemp("small"), subjects=30, images=1, holdout=20, seed=1)


@pytest.fixture
def cohort(small: Path, tmp_path: Path) -> Path:
    """A copy of the small one that a test may spoil; its index is made."""
    return Path(shutil.copytree(small, tmp_path / "cohort"))


@dataclass
class Opening:
    """One opening: the index, what was told, and how often a gallery was made."""

    index: CopyIndex
    told: list[str]
    galleries: int


@pytest.fixture
def reopen(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Opening]:
    def reopen(cohort: Path | ImageFolder, **options: Any) -> Opening:
        made: list[int] = []

        class Counted(Gallery):
            def __init__(self, images: np.ndarray, subjects: np.ndarray) -> None:
                made.append(len(images))
                super().__init__(images, subjects)

        told: list[str] = []
        with monkeypatch.context() as patch:
            patch.setattr(index_module, "Gallery", Counted)
            opened = CopyIndex.open(cohort, notice=told.append, **options)
        return Opening(opened, told, len(made))

    return reopen


def by_hand(cohort: ImageFolder, queries: np.ndarray) -> np.ndarray:
    """The p-values from the parts they are made of."""
    train, holdout = cohort.rows("train"), cohort.rows("holdout")
    subjects = cohort.column("subject")
    gallery = Gallery(cohort.read(train), subjects[train])
    return pooled_minimum_p_values(
        gallery.resemble(queries).scores,
        holdout=gallery.resemble(cohort.read(holdout)).scores,
        subjects=subjects[holdout],
        weights=WEIGHTS,
    )


def spoil(image: np.ndarray, change: str) -> np.ndarray:
    noise = np.random.default_rng(5).normal(0, 6, image.shape)
    changed = {
        "noise": image + noise,
        "brightness": 0.8 * image + 20,
        "mirror": image[..., ::-1],
        "quarter turn": np.rot90(image, axes=(-2, -1)),
        "shift": np.roll(image, 1, axis=-1),
    }[change]
    clipped: np.ndarray = np.clip(np.rint(changed), 0, 255).astype(np.uint8)
    return clipped


# What it says


def test_the_weights_are_those_of_the_audit() -> None:
    assert dict(zip(VIEWS, WEIGHTS, strict=True)) == {measure.name: measure.weight for measure in MEASURES}
    assert WEIGHTS == (0.1, 0.75, 1.0)


@pytest.mark.parametrize("change", ["noise", "brightness", "mirror", "quarter turn", "shift"])
def test_planted_copies_are_found_and_say_whose_they_are(index: CopyIndex, change: str) -> None:
    rows = index.train[[3, 50, 90]]
    found = index.query(spoil(index.folder.read(rows), change))
    assert found.can_flag
    assert found.flagged.all()
    assert not found.identical.any()
    np.testing.assert_array_equal(found.p_values, 1 / 101)
    np.testing.assert_array_equal(found.subjects, index.folder.column("subject")[rows])
    assert set(found.spoke.tolist()) <= set(VIEWS)
    assert found.share_read > 0
    if change == "mirror":
        assert found.poses.tolist() == ["left-right"] * 3


def test_identical_images_are_flagged_with_their_row(index: CopyIndex) -> None:
    rows = index.train[[0, 7]]
    found = index.query(index.folder.read(rows))
    assert found.identical.all()
    np.testing.assert_array_equal(found.similarities, 1.0)
    np.testing.assert_array_equal(found.references, rows)
    np.testing.assert_array_equal(found.nearest, rows)
    assert found.poses.tolist() == ["as it is"] * 2


def test_new_people_are_as_often_flagged_as_promised(index: CopyIndex) -> None:
    found = index.query(NEW, level=0.1)
    assert not found.identical.any()
    # Of one holdout of 100 subjects the share is off by 0.03, of 150 people by another 0.024 (standard deviations).
    assert 0.4 < found.p_values.mean() < 0.65
    assert (found.p_values <= 0.1).mean() < 0.2
    assert (found.p_values <= 0.5).mean() < 0.62
    np.testing.assert_array_equal(found.flagged, found.p_values <= 0.1)


def test_p_values_and_similarities_by_hand(index: CopyIndex) -> None:
    copies = spoil(index.folder.read(index.train[:4]), "noise")
    queries = np.concatenate([NEW[:20], copies])
    found = index.query(queries)
    np.testing.assert_array_equal(found.p_values, by_hand(index.folder, queries))
    similarities = correlate(queries, index.folder.read(index.train))
    np.testing.assert_allclose(found.similarities, similarities.max(axis=1), rtol=0, atol=1e-12)
    np.testing.assert_array_equal(found.nearest, index.train[similarities.argmax(axis=1)])


def test_constant_images_are_undefined_and_never_flagged(index: CopyIndex) -> None:
    found = index.query(np.full((1, 1, 24, 24), 9, np.uint8))
    assert np.isnan(found.p_values).all()
    assert np.isnan(found.similarities).all()
    assert found.references.tolist() == found.nearest.tolist() == [-1]
    assert found.subjects.tolist() == found.spoke.tolist() == found.poses.tolist() == [""]
    assert not found.flagged.any()


def test_no_images(index: CopyIndex) -> None:
    found = index.query(NEW[:0])
    for name in ("p_values", "flagged", "similarities", "references", "subjects", "spoke"):
        assert getattr(found, name).shape == (0,)


@settings(deadline=None, max_examples=8)
@given(chosen=st.lists(st.integers(0, len(NEW) - 1), min_size=1, max_size=3), level=st.floats(0.01, 0.99))
def test_an_image_is_judged_alone(index: CopyIndex, chosen: list[int], level: float) -> None:
    every = index.query(NEW[chosen], level=level)
    for at, place in enumerate(chosen):
        alone = index.query(NEW[place : place + 1], level=level)
        assert every.p_values[at] == alone.p_values[0]
        assert every.references[at] == alone.references[0]
        assert every.flagged[at] == alone.flagged[0] == (alone.p_values[0] <= level)


def test_views_of_an_array_are_taken(index: CopyIndex) -> None:
    mirrored = NEW[:3, :, :, ::-1]
    np.testing.assert_array_equal(index.query(mirrored).p_values, index.query(mirrored.copy()).p_values)


# Who plays which role


def test_train_subjects_who_were_not_seen_are_held_out(cohort: Path) -> None:
    opened = open_images(cohort)
    train = opened.rows("train")
    subjects = opened.column("subject")
    # In the order of the images: that of pseudonyms is another in each cohort, and one image in 25 has this p-value.
    _, first = np.unique(subjects[train], return_index=True)
    seen = train[np.isin(subjects[train], subjects[train][np.sort(first)[:6]])]
    told: list[str] = []
    index = CopyIndex.open(opened, train_rows=seen[::-1], notice=told.append)
    np.testing.assert_array_equal(index.train, seen)
    np.testing.assert_array_equal(index.holdout, np.setdiff1d(np.arange(len(opened)), seen))
    assert index.smallest_p == 1 / 25
    left = opened.read(np.setdiff1d(train, seen)[:1])
    assert index.query(spoil(left, "noise")).p_values[0] > 1 / 25
    assert index.place is not None
    assert index.place.name != FILE
    assert (cohort / folders.INDEX / FILE).is_file()


def test_holdout_subjects_who_are_in_train_are_left_out_and_it_is_said(cohort: Path) -> None:
    opened = open_images(cohort)
    told: list[str] = []
    rows = np.append(opened.rows("holdout"), opened.rows("train")[0])
    index = CopyIndex.open(opened, holdout_rows=rows, notice=told.append)
    assert told[0].startswith("1 holdout subjects")
    np.testing.assert_array_equal(index.holdout, opened.rows("holdout"))


def test_without_holdout_only_identical_images_are_flagged(cohort: Path) -> None:
    told: list[str] = []
    index = CopyIndex.open(cohort, holdout_rows=np.empty(0, np.int64), notice=told.append)
    assert any("no holdout" in line for line in told)
    images = index.folder.read(index.train[:2]).copy()
    images[1] = spoil(images[1], "noise")
    found = index.query(images)
    assert not found.can_flag
    assert found.flagged.tolist() == [True, False]
    assert found.p_values.tolist() == [1, 1]
    again = CopyIndex.open(cohort, holdout_rows=np.empty(0, np.int64))
    assert again.query(images).p_values.tolist() == [1, 1]


def test_channels_are_compared_by_name(make_volumes: Callable[..., Path], tmp_path: Path) -> None:
    settings = PrepareSettings(recipe="nifti", size=16, slices=2, holdout=2)
    cohort = prepare_cohort(source=make_volumes(), out=tmp_path / "cohort", settings=settings)
    assert len(cohort.channels) > 1
    last = cohort.channels[-1]
    index = CopyIndex.open(cohort, channels=[last])
    assert index.channels == (len(cohort.channels) - 1,)
    images = cohort.read(cohort.rows("train")[:2])
    images[0, 0] = 255 - images[0, 0]
    found = index.query(images)
    np.testing.assert_array_equal(found.similarities, 1.0)
    assert found.identical.tolist() == [False, True]  # of all channels
    with pytest.raises(SettingsError, match="channels pet are not in"):
        CopyIndex.open(cohort, channels=["pet"])


def test_images_of_16_bits_and_odd_sides(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    random = np.random.default_rng(4)
    images = np.concatenate([draw_person(random, size=26) for _ in range(30)])[:, None, :21].astype(np.uint16) * 257
    out = tmp_path / "cohort"
    folders.begin_folder(out, kind="cohort", settings={})
    writer = ImageWriter(out, channels=["gray"], height=21, width=26, dtype=np.dtype(np.uint16))
    for number, image in enumerate(images):
        role = "train" if number < 12 else "holdout"
        writer.append(image, {"subject": f"s{number:02d}", "source": f"f{number:02d}", "role": role})
    folders.finish_folder(out, kind="cohort", settings={}, seed=0, inputs={}, content=writer.close())
    brighter = images[4:5] // 2 + 9000
    for told in (1, 0):  # made, then opened
        lines: list[str] = []
        found = CopyIndex.open(out, notice=lines.append).query(brighter, level=0.1)
        assert len(lines) == told
        assert (found.flagged.tolist(), found.subjects.tolist()) == ([True], ["s04"])
        np.testing.assert_allclose(found.similarities, 1, atol=1e-6)
        assert found.share_read == 1
    assert run(["index", str(out)]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("coarse index: none for images of this size or depth")


# What does not fit


def one_line(error: pytest.ExceptionInfo[BaseException]) -> None:
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("images", "said"),
    [
        (NEW[:2, :, :16], r"images are \(1, 16, 24\) uint8, but those of .*cohort are \(1, 24, 24\)"),
        (NEW[:2].astype(np.uint16), "uint16"),
        (NEW[:2].repeat(2, axis=1), r"\(2, 24, 24\)"),
        (NEW[0], r"of shape \(1, 24, 24\)"),
        (torch.from_numpy(NEW[:2]), "a Tensor"),
    ],
)
def test_images_of_another_geometry_are_one_line(index: CopyIndex, images: Any, said: str) -> None:
    with pytest.raises(InputError, match=said) as error:
        index.query(images)
    one_line(error)


@pytest.mark.parametrize("level", [0, 1, -1, np.nan])
def test_a_level_is_a_rate(index: CopyIndex, level: float) -> None:
    with pytest.raises(SettingsError, match="between 0 and 1"):
        index.query(NEW[:1], level=level)


@pytest.mark.parametrize("rows", [[0, 9999], [-1], [[1, 2]], [0.5]])
def test_rows_are_those_of_the_cohort(cohort: Path, rows: Any) -> None:
    with pytest.raises(InputError, match="train_rows") as error:
        CopyIndex.open(cohort, train_rows=np.array(rows))
    one_line(error)
    with pytest.raises(InputError, match="holdout_rows") as error:
        CopyIndex.open(cohort, holdout_rows=np.array(rows))
    one_line(error)


def test_no_train_images(cohort: Path) -> None:
    with pytest.raises(InputError, match="no train image"):
        CopyIndex.open(cohort, train_rows=np.empty(0, np.int64))


def test_no_cohort(tmp_path: Path) -> None:
    with pytest.raises(FolderError, match="does not exist"):
        CopyIndex.open(tmp_path / "nowhere")


# What is kept


def test_it_is_made_once_and_opened_afterwards(cohort: Path, reopen: Callable[..., Opening]) -> None:
    shutil.rmtree(cohort / folders.INDEX)
    first, second = reopen(cohort), reopen(str(cohort))
    assert (first.galleries, second.galleries) == (1, 0)
    assert len(first.told) == 2
    assert all("is made" in line for line in first.told)
    assert second.told == []
    # Opened, a gallery is what it was: the same attributes, the same answers to the last bit.
    assert vars(second.index.gallery).keys() == vars(first.index.gallery).keys()
    for one, other in zip(first.index.gallery.tables, second.index.gallery.tables, strict=True):
        assert torch.equal(one, other)
    for name in ("scores", "references", "poses"):
        np.testing.assert_array_equal(getattr(first.index.known, name), getattr(second.index.known, name))
        mine = (getattr(entry.index.gallery.resemble(NEW[:9]), name) for entry in (first, second))
        np.testing.assert_array_equal(*mine)
    kinds = {path.suffix for path in (cohort / folders.INDEX).rglob("*") if path.is_file()}
    assert kinds == {".npy", ".json", ".safetensors", ""}


def flip_a_byte(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-9] ^= 1
    file.write_bytes(content)


def rewrite(file: Path, change: Callable[[dict[str, Any], dict[str, torch.Tensor]], object]) -> None:
    """Write the file with a changed header or changed arrays."""
    with safe_open(file, framework="pt") as stream:
        header = json.loads(stream.metadata()[index_module.HEADER])
    arrays = load_file(file)
    change(header, arrays)
    save_file(arrays, file, metadata={index_module.HEADER: json.dumps(header)})


DAMAGE: dict[str, Callable[[Path], object]] = {
    "empty": lambda file: file.write_bytes(b""),
    "cut short": lambda file: file.write_bytes(file.read_bytes()[:-1]),
    "a byte changed": flip_a_byte,
    "something else": lambda file: file.write_text("{}"),
    "no header": lambda file: save_file(load_file(file), file),
    "other content": lambda file: rewrite(file, lambda header, _: header.update(key="0")),
    "header without a key": lambda file: rewrite(file, lambda header, _: header.pop("key")),
    "header of other types": lambda file: rewrite(file, lambda header, _: header.update(reach="2")),
    "large reach": lambda file: rewrite(file, lambda header, _: header.update(reach=12)),
    "other poses": lambda file: rewrite(file, lambda header, _: header.update(poses=["upside down"])),
    "other checks": lambda file: rewrite(file, lambda header, _: header.update(checks={})),
    "an array missing": lambda file: rewrite(file, lambda _, arrays: arrays.pop("whitened-components")),
    "an array of another size": lambda file: rewrite(file, lambda _, arrays: arrays.update(scores=torch.zeros(3, 1))),
    "an array of another type": lambda file: rewrite(
        file, lambda _, arrays: arrays.update(scores=arrays["scores"].to(torch.int64))
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_made_again_and_it_is_said(cohort: Path, reopen: Callable[..., Opening], damage: str) -> None:
    expected = CopyIndex.open(cohort).query(NEW[:3]).p_values
    DAMAGE[damage](cohort / folders.INDEX / FILE)
    again = reopen(cohort)
    assert again.galleries == 1
    (line,) = again.told
    assert FILE in line
    assert "made again" in line
    assert len(line.splitlines()) == 1
    np.testing.assert_array_equal(again.index.query(NEW[:3]).p_values, expected)
    assert reopen(cohort).galleries == 0


def test_a_changed_cohort_is_looked_at_again_and_it_is_said(
    cohort: Path, tmp_path: Path, make_pictures: Callable[..., Path], reopen: Callable[..., Opening]
) -> None:
    other = prepare_cohort(
        source=make_pictures(subjects=12, seed=3), out=tmp_path / "other", settings=PrepareSettings(holdout=4)
    )
    shutil.copytree(cohort / folders.INDEX, other.path / folders.INDEX)
    again = reopen(other)
    assert again.galleries == 1
    assert [("other images" in line, "made again" in line) for line in again.told] == [(True, True)] * 2
    np.testing.assert_array_equal(again.index.query(NEW[:5]).p_values, by_hand(other, NEW[:5]))
    assert reopen(other).told == []


def test_other_code_makes_it_again(
    cohort: Path, reopen: Callable[..., Opening], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index_module, "_digest_code", lambda: "another version")
    assert reopen(cohort).galleries == 1


def test_after_a_removal_the_open_index_refuses_and_a_new_one_is_made(
    cohort: Path, reopen: Callable[..., Opening]
) -> None:
    before = reopen(cohort).index
    subject = str(before.subjects[before.train[0]])
    image = spoil(before.folder.read(before.train[:1]), "noise")
    assert before.query(image).subjects.tolist() == [subject]
    drop_subject(cohort=cohort, subjects=[subject])
    with pytest.raises(InputError, match="Open the index again"):
        before.query(image)
    with pytest.raises(InputError, match="Open it again"):
        CopyIndex.open(before.folder)
    again = reopen(cohort)
    assert again.galleries == 1
    assert len(again.told) == 2
    assert subject not in again.index.query(image).subjects.tolist()
    np.testing.assert_array_equal(again.index.query(image).p_values, by_hand(open_images(cohort), image))
    shutil.rmtree(cohort)
    with pytest.raises(InputError, match="Open the index again"):
        again.index.query(image)


def test_where_nothing_can_be_written_it_is_kept_in_memory(
    cohort: Path, small: Path, reopen: Callable[..., Opening]
) -> None:
    shutil.rmtree(cohort / folders.INDEX)
    (cohort / folders.INDEX).write_text("a file in the way")
    opened = reopen(cohort)
    assert opened.index.place is None
    assert sum("kept in memory" in line for line in opened.told) == 2
    expected = CopyIndex.open(small).query(NEW[:3]).p_values
    np.testing.assert_array_equal(opened.index.query(NEW[:3]).p_values, expected)
    assert [part.place for part in opened.index.summary().stored] == [None, None]


def test_a_full_disk_leaves_nothing_behind(
    cohort: Path, reopen: Callable[..., Opening], monkeypatch: pytest.MonkeyPatch
) -> None:
    (cohort / folders.INDEX / FILE).unlink()

    def full(_: object, path: Path, **__: object) -> None:
        path.write_bytes(b"some of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(index_module, "save_file", full)
    opened = reopen(cohort)
    assert opened.index.place is None
    assert "No space left on device" in opened.told[-1]
    assert not list((cohort / folders.INDEX).glob("gallery*"))


def test_the_coarse_index_can_be_shared(cohort: Path) -> None:
    told: list[str] = []
    opened = open_images(cohort)
    coarse = open_coarse(opened, channels=[0], notice=told.append)
    assert told == []
    found = find_stored(queries=NEW[:4], index=coarse, rows=opened.rows("train"))
    np.testing.assert_array_equal(found.highest, CopyIndex.open(cohort).query(NEW[:4]).similarities)


# Rejection


def sampler(images: np.ndarray, asked: list[int] | None = None) -> Callable[[int], np.ndarray]:
    """Gives these images in turn, from the first again when all are given."""
    given = [0]

    def draw(count: int) -> np.ndarray:
        if asked is not None:
            asked.append(count)
        rows = np.arange(given[0], given[0] + count) % len(images)
        given[0] += count
        fresh: np.ndarray = images[rows]
        return fresh

    return draw


def test_copies_are_rejected_and_counted(index: CopyIndex) -> None:
    copies = index.folder.read(index.train[:5])
    innocent = NEW[index.query(NEW).p_values > 0.2][:5]
    mixed = np.stack([innocent, copies], axis=1).reshape(-1, *NEW.shape[1:])
    asked: list[int] = []
    kept = reject_copies(sampler(mixed, asked), count=4, index=index)
    assert asked == [4, 2, 1]
    assert (kept.drawn, kept.rejected) == (7, 3)
    np.testing.assert_array_equal(kept.images, innocent[:4])
    np.testing.assert_array_equal(kept.p_values, index.query(innocent[:4]).p_values)


def test_a_sampler_of_copies_comes_to_an_end(index: CopyIndex) -> None:
    copies = index.folder.read(index.train)
    with pytest.raises(
        RunError, match="30 images were drawn and 30 of them look like copies: 0 of 3 are left"
    ) as error:
        reject_copies(sampler(copies), count=3, index=index)
    one_line(error)
    with pytest.raises(RunError, match="the limit of 2"):
        reject_copies(sampler(NEW), count=3, index=index, limit=2)


def test_what_cannot_be_rejected_is_refused(index: CopyIndex) -> None:
    with pytest.raises(SettingsError, match=r"100 holdout subjects, so no p-value is below 0\.0099") as error:
        reject_copies(sampler(NEW), count=3, index=index, level=0.005)
    one_line(error)
    with pytest.raises(SettingsError, match="Ask for 1 or more"):
        reject_copies(sampler(NEW), count=0, index=index)
    with pytest.raises(InputError, match="asked for 3 images and gave 2"):
        reject_copies(lambda count: NEW[: count - 1], count=3, index=index)
    with pytest.raises(InputError, match="gave a list"):
        reject_copies(lambda count: list(NEW[:count]), count=3, index=index)  # type: ignore[arg-type, return-value]


# The doors


def test_the_public_name_and_the_page(
    cohort: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert unalike.CopyIndex is CopyIndex
    monkeypatch.chdir(cohort.parent)
    page = (ROOT / "docs" / "audit.md").read_text()
    section = page.split("## Live use\n")[1].split("\n## ")[0]
    (code,) = re.findall(r"```python\n(.*?)```", section, flags=re.DOTALL)
    rows = open_images(cohort).rows("train")[:1]
    copies = open_images(cohort).read(rows)
    (cohort.parent / "page.py").write_text(code)
    runpy.run_path("page.py", init_globals={"images": copies, "draw": sampler(NEW)})
    told = capsys.readouterr().out.splitlines()
    assert told[0] == f"row {rows[0]} of the cohort: p = 0.0476"
    assert re.fullmatch(r"\d+ of \d+ images were rejected", told[1])


def test_the_command(cohort: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(cohort / folders.INDEX)
    assert run(["index", str(cohort), "--json"]) == 0
    captured = capsys.readouterr()
    assert len(captured.err.splitlines()) == 2
    told = json.loads(captured.out)
    assert (told["train_images"], told["train_subjects"]) == (10, 10)
    assert (told["holdout_images"], told["holdout_subjects"]) == (20, 20)
    assert [part["what"] for part in told["stored"]] == ["gallery", "coarse index"]
    for part in told["stored"]:
        place = Path(part["place"])
        files = [place] if place.is_file() else list(place.iterdir())
        assert part["bytes"] == sum(file.stat().st_size for file in files)
    assert run(["index", str(cohort)]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert captured.out.splitlines()[:4] == [
        "train: 10 images of 10 subjects",
        "holdout: 20 images of 20 subjects",
        f"channels: {told['channels'][0]}",
        "smallest p-value it can give: 0.0476",
    ]
    assert run(["index", str(cohort / "nowhere")]) == 2
