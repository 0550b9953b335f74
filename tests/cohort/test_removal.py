"""A patient who is removed is gone everywhere in the cohort, and what was made with them is told."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from tests.conftest import draw_person

from unalike import folders
from unalike.cli import run
from unalike.cohort import removal
from unalike.cohort.build import prepare_cohort
from unalike.cohort.removal import drop_subject
from unalike.cohort.settings import PrepareSettings
from unalike.cohort.split import select_train_rows
from unalike.cohort.store import ImageFolder, open_images, verify_images
from unalike.errors import FolderError, InputError
from unalike.runs.sample import draw_samples
from unalike.runs.train import train_generator

KEY = b"a key of the tests"
PATTERN = r"(p\d+)_"


@pytest.fixture
def cohort(make_pictures: Callable[..., Path], tmp_path: Path) -> ImageFolder:
    """Eight subjects of two pictures; the last two pictures are copies of those of p0006, under their own name."""
    source = make_pictures(subjects=8)
    for index in range(2):
        shutil.copy(source / f"p0006_{index}.png", source / f"p0007_{index}.png")
    settings = PrepareSettings(subject_pattern=PATTERN, holdout=0.25, on_leak="report")
    return prepare_cohort(source=source, out=tmp_path / "work" / "c", settings=settings, key=KEY)


def subject_of(cohort: ImageFolder, identifier: str) -> str:
    table = pq.read_table(cohort.path / "private" / "sources.parquet").to_pydict()
    return str(table["subject"][table["identifier"].index(identifier)])


def of_role(cohort: ImageFolder, role: str) -> list[str]:
    """Identifiers of the subjects with this role, without the two that share pictures."""
    table = pq.read_table(cohort.path / "private" / "sources.parquet").to_pydict()
    known = dict(zip(table["subject"], table["identifier"], strict=True))
    names = {known[name] for name in cohort.column("subject")[cohort.rows(role)]}
    return sorted(names - {"p0006", "p0007"})


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def whole_text(folder: Path) -> bytes:
    """All that a folder holds: bytes of its files, names, and the text of its tables, which are compressed."""
    parts = [*snapshot(folder), *(data for data in snapshot(folder).values())]
    parts += [str(pq.read_table(path).to_pydict()) for path in folder.rglob("*.parquet")]
    return b"\n".join(part.encode() if isinstance(part, str) else part for part in parts)


@pytest.mark.parametrize("by", ["identifier", "pseudonym"])
def test_nothing_of_the_subject_is_left(cohort: ImageFolder, by: str) -> None:
    name = subject_of(cohort, "p0002")
    rows = np.flatnonzero(cohort.column("subject") == name)
    traces = [name, "p0002", *cohort.column("digest")[rows], *cohort.column("source")[rows]]
    pixels = [image.tobytes() for image in cohort.read(rows.astype(np.int64))]
    kept = np.setdiff1d(np.arange(16), rows)
    images, records, before = cohort.read(kept), cohort.records.take(kept).to_pylist(), cohort.digest
    assert all(trace.encode() in whole_text(cohort.path) for trace in traces)
    assert all(image in whole_text(cohort.path) for image in pixels)

    result = drop_subject(cohort=cohort.path, subjects=["p0002" if by == "identifier" else name])

    assert (result.subjects, result.images, result.left, result.made_from) == (1, 2, 14, ())
    text = whole_text(cohort.path)
    assert not [trace for trace in traces if trace.encode() in text]
    assert not any(image in text for image in pixels)
    after = open_images(cohort.path)
    np.testing.assert_array_equal(np.concatenate(list(verify_images(after))), images)
    assert after.records.to_pylist() == records
    (entry,) = after.header.content["removals"]
    assert (entry["subjects"], entry["images"], entry["cohort_before"]) == (1, 2, before)
    assert after.header.content["images"] == 14
    assert after.header.inputs == cohort.header.inputs
    assert sorted(path.name for path in cohort.path.parent.iterdir()) == ["c"]
    private = cohort.path / "private"
    assert (private / "key").read_bytes() == KEY
    assert all(path.stat().st_mode & 0o077 == 0 for path in (private, *private.iterdir()))


def test_the_content_is_that_of_a_cohort_without_the_subject(cohort: ImageFolder, tmp_path: Path) -> None:
    """Digest of images, roles and owners: as if the subject had been dropped and the others counted anew."""
    last, first = of_role(cohort, "train")[-1], of_role(cohort, "train")[0]
    shutil.copytree(cohort.path, tmp_path / "elsewhere" / "c")
    drop_subject(cohort=cohort.path, subjects=[last])
    one = open_images(cohort.path).header.content["content_digest"]
    drop_subject(cohort=cohort.path, subjects=[first])
    both = open_images(cohort.path).header.content["content_digest"]
    drop_subject(cohort=tmp_path / "elsewhere" / "c", subjects=[first, last])
    assert open_images(tmp_path / "elsewhere" / "c").header.content["content_digest"] == both
    assert len({cohort.header.content["content_digest"], one, both}) == 3


def test_pairs_of_duplicates_bear_the_new_row_numbers(cohort: ImageFolder) -> None:
    path = cohort.path / folders.DUPLICATES
    pairs = pq.read_table(path).to_pydict()
    assert list(zip(pairs["first"], pairs["second"], strict=True)) == [(12, 14), (13, 15)]
    drop_subject(cohort=cohort.path, subjects=["p0000", "p0003"])
    after = pq.read_table(path).to_pydict()
    assert list(zip(after["first"], after["second"], strict=True)) == [(8, 10), (9, 11)]
    assert after["kind"] == ["exact", "exact"]
    drop_subject(cohort=cohort.path, subjects=["p0007"])
    assert pq.read_table(path).num_rows == 0
    assert len(open_images(cohort.path).header.content["removals"]) == 2


def test_subjects_that_are_not_there(cohort: ImageFolder, tmp_path: Path) -> None:
    before = snapshot(cohort.path)
    for subjects, message in (
        (["p0001", "Mueller"], "holds no subject Mueller. Give an identifier"),
        ([], "no subject is named"),
        ("p0001", "no subject is named"),
        ([*of_role(cohort, "train"), "p0006", "p0007"], "no train image left"),
    ):
        with pytest.raises(InputError, match=message) as caught:
            drop_subject(cohort=cohort.path, subjects=subjects)
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="nowhere is no folder"):
        drop_subject(cohort=cohort.path, subjects=["p0001"], search=tmp_path / "nowhere")
    with pytest.raises(FolderError, match="does not exist"):
        drop_subject(cohort=tmp_path / "none", subjects=["p0001"])
    assert snapshot(cohort.path) == before


def test_a_subject_gone_cannot_be_removed_twice(cohort: ImageFolder) -> None:
    drop_subject(cohort=cohort.path, subjects=["p0001"])
    with pytest.raises(InputError, match="holds no subject p0001"):
        drop_subject(cohort=cohort.path, subjects=["p0001"])


def test_merged_subjects_go_together(make_pictures: Callable[..., Path], tmp_path: Path) -> None:
    """Who shares a picture is one subject: either identifier removes both, and both identifiers."""
    source = make_pictures(subjects=8)
    shutil.copy(source / "p0006_0.png", source / "p0007_0.png")
    settings = PrepareSettings(subject_pattern=PATTERN, holdout=0.25)
    cohort = prepare_cohort(source=source, out=tmp_path / "c", settings=settings, key=KEY)
    assert drop_subject(cohort=cohort.path, subjects=["p0007"]).images == 4
    text = whole_text(cohort.path)
    assert b"p0006" not in text
    assert b"p0007" not in text


def test_skipped_files_of_the_subject_are_forgotten(make_pictures: Callable[..., Path], tmp_path: Path) -> None:
    source = make_pictures(subjects=6)
    (source / "p0003_1.png").write_text("no picture")
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(source / "p0004_0.png")  # does not fit the first, p0000_0
    settings = PrepareSettings(subject_pattern=PATTERN, on_bad_file="skip", holdout=0.34)
    cohort = prepare_cohort(source=source, out=tmp_path / "c", settings=settings)
    drop_subject(cohort=cohort.path, subjects=["p0003", "p0000"])
    (left,) = folders.read_json(cohort.path / "private" / "skipped.json")
    assert left["source"] == "p0004_0.png"
    assert "a file since removed" in left["reason"]
    text = whole_text(cohort.path)
    assert b"p0000" not in text
    assert b"p0003" not in text


def test_what_was_made_from_the_cohort_is_told(cohort: ImageFolder) -> None:
    """Runs that saw the subject, one that did not, samples of each, an audit, a copy, and an interrupted run."""
    place = cohort.path.parent
    seen = set(cohort.column("subject")[select_train_rows(cohort, subjects=2, seed=0)])
    name = next(name for name in of_role(cohort, "train") if subject_of(cohort, name) not in seen)
    for kind, subjects in (("memorizer", None), ("gaussian", 2)):
        train_generator(kind=kind, cohort=cohort.path, out=place / kind, subjects=subjects)
        draw_samples(run=place / kind, out=place / "drawn" / kind, count=2)
    inputs = {"synthetic": "0", "cohort": cohort.digest}
    for out, kind in (("audit", "audit"), ("audit/deeper", "audit")):
        (place / out).mkdir()
        folders.finish_folder(place / out, kind=kind, settings={}, seed=0, inputs=inputs, content={})
    folders.begin_folder(place / "begun", kind="run", settings={"cohort": cohort.digest})
    shutil.copytree(cohort.path, place / "backup")
    (place / "foreign").mkdir()
    (place / "foreign" / "run.json").write_text("{}")

    told = drop_subject(cohort=cohort.path, subjects=[name], dry_run=True).made_from
    what = {str(made.path.relative_to(place)): (made.kind, made.what) for made in told}

    assert what == {
        "backup": ("cohort", "a copy of this cohort: remove these subjects there too"),
        "memorizer": ("run", "trained on 1 of these subjects, whose images it holds: remove it and train again"),
        "gaussian": ("run", "trained on this cohort, but not on these subjects"),
        "drawn/memorizer": (
            "samples",
            "drawn from a run that may have seen these subjects and copies of their images: draw them again from one "
            "without",
        ),
        "drawn/gaussian": ("samples", "drawn from a run that was not trained on these subjects"),
        "audit": ("audit", "compared with the cohort, and may show these subjects: make it again"),
        "audit/deeper": ("audit", "compared with the cohort, and may show these subjects: make it again"),
        "begun": ("run", "unfinished, begun on this cohort or a run of it: remove it and begin again"),
    }
    assert not drop_subject(cohort=cohort.path, subjects=[name], search=place / "foreign", dry_run=True).made_from
    folders._unlock(place / "begun")


def test_a_holdout_subject_was_seen_by_no_run(cohort: ImageFolder) -> None:
    train_generator(kind="gaussian", cohort=cohort.path, out=cohort.path.parent / "run")
    (name, *_) = of_role(cohort, "holdout")
    (made,) = drop_subject(cohort=cohort.path, subjects=[name]).made_from
    assert made.what == "trained on this cohort, but not on these subjects"


def test_runs_from_before_an_earlier_removal_are_told_too(cohort: ImageFolder) -> None:
    place = cohort.path.parent
    train_generator(kind="gaussian", cohort=cohort.path, out=place / "all")
    train_generator(kind="gaussian", cohort=cohort.path, out=place / "some", subjects=2)
    first, second = of_role(cohort, "train")[:2]
    drop_subject(cohort=cohort.path, subjects=[first])
    told = drop_subject(cohort=cohort.path, subjects=[second]).made_from
    assert {made.path.name: made.what for made in told} == {
        "all": "trained on 1 of these subjects: train it again without them",
        "some": "trained on some subjects of this cohort before a removal, perhaps on these: train it again",
    }


def test_a_dry_run_changes_nothing(cohort: ImageFolder) -> None:
    before = snapshot(cohort.path.parent)
    result = drop_subject(cohort=cohort.path, subjects=["p0001", "p0002"], dry_run=True)
    assert (result.subjects, result.images, result.left) == (2, 4, 12)
    assert snapshot(cohort.path.parent) == before


@pytest.mark.parametrize("at", ["copying", "first rename", "second rename", "removing"])
def test_an_interrupted_removal_is_brought_to_its_end(
    cohort: ImageFolder, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    """Whenever it stops, the cohort or its backup is whole, and the next call repairs."""
    path, rename, done = cohort.path, Path.rename, []

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    def rename_once(one: Path, other: Path) -> Path:
        done.append(one)
        if len(done) == {"first rename": 1, "second rename": 2}[at]:
            raise KeyboardInterrupt
        return rename(one, other)

    with monkeypatch.context() as patch:
        if at == "copying":
            patch.setattr(removal, "_copy_rest", interrupt)
        elif at == "removing":
            patch.setattr(removal, "_remove", interrupt)
        else:
            patch.setattr(Path, "rename", rename_once)
        with pytest.raises(KeyboardInterrupt):
            drop_subject(cohort=path, subjects=["p0001"])
    assert path.exists() == (at != "second rename")
    state = snapshot(path.parent)
    name = "p0002" if at == "removing" else "p0001"
    assert drop_subject(cohort=path, subjects=[name], dry_run=True).images == 2
    assert snapshot(path.parent) == state
    drop_subject(cohort=path, subjects=[name])
    after = open_images(path)
    assert sum(len(block) for block in verify_images(after)) == (12 if at == "removing" else 14)
    assert b"p0001" not in whole_text(path.parent)
    assert [entry.name for entry in path.parent.iterdir()] == ["c"]


def test_a_backup_of_the_users_own_stays(cohort: ImageFolder) -> None:
    """Folders beside the cohort that look like leftovers belong to somebody."""
    for suffix in (".before", ".without", "-old"):
        shutil.copytree(cohort.path, cohort.path.with_name(f"c{suffix}"))
    before = snapshot(cohort.path)
    result = drop_subject(cohort=cohort.path, subjects=["p0001"])
    assert sorted(made.path.name for made in result.made_from) == ["c-old", "c.before", "c.without"]
    assert all(snapshot(made.path) == before for made in result.made_from)


def test_a_link_to_a_cohort_is_followed(cohort: ImageFolder, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(cohort.path, target_is_directory=True)
    drop_subject(cohort=tmp_path / "link", subjects=["p0001"])
    assert (tmp_path / "link").is_symlink()
    assert len(open_images(tmp_path / "link")) == len(open_images(cohort.path)) == 14
    assert b"p0001" not in whole_text(cohort.path.parent)


def test_on_the_command_line(cohort: ImageFolder, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["cohort", "drop", str(cohort.path), "--subject", "p0001", "p0002"]
    before = snapshot(cohort.path)
    assert run([*command, "--dry-run", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["subjects"], told["images"], told["left"], told["made_from"]) == (2, 4, 12, [])
    assert snapshot(cohort.path) == before
    assert run([*command, "--dry-run"]) == 0
    assert "4 images of 2 subjects would be removed; 12 images are left." in capsys.readouterr().out
    train_generator(kind="gaussian", cohort=cohort.path, out=cohort.path.parent / "run")
    assert run(command) == 0
    printed = capsys.readouterr().out.splitlines()
    assert "4 images of 2 subjects removed" in printed[0]
    assert "run: run, trained on" in printed[1]
    assert run(command) == 2
    assert "holds no subject p0001" in capsys.readouterr().err
    assert run(["cohort", "drop", str(cohort.path), "--subject", "p0003", "--search", "nowhere", "--json"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "nowhere is no folder" in captured.err


def test_cohorts_without_a_private_part(tmp_path: Path) -> None:
    """A cohort whose names nobody knows any more: pseudonyms do."""
    from unalike.cohort.store import ImageWriter

    out = tmp_path / "c"
    folders.begin_folder(out, kind="cohort", settings={})
    writer = ImageWriter(out, channels=("a",), height=24, width=24, dtype=np.dtype(np.uint8))
    for index, image in enumerate(draw_person(np.random.default_rng(0), images=4)):
        writer.append(image[None], {"subject": f"s{index}", "source": "x", "role": "train"})
    folders.finish_folder(out, kind="cohort", settings={}, seed=0, inputs={}, content=writer.close())
    drop_subject(cohort=out, subjects=["s1"])
    assert open_images(out).column("subject").tolist() == ["s0", "s2", "s3"]


def test_a_removal_cut_short_at_its_very_end_is_ended_and_told(
    cohort: ImageFolder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """All done but for deleting the old images: inspect warns, and the same call ends it and tells what is affected."""
    work = cohort.path.parent
    train_generator(kind="gaussian", cohort=cohort.path, out=work / "run")
    with monkeypatch.context() as patch:
        patch.setattr(removal, "_remove", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            drop_subject(cohort=cohort.path, subjects=["p0002"])
    assert "p0002" not in pq.read_table(cohort.path / "private" / "sources.parquet").to_pydict()["identifier"]
    assert run(["inspect", str(cohort.path)]) == 0
    assert "a removal of patients was interrupted" in capsys.readouterr().out
    assert run(["cohort", "drop", str(cohort.path), "--subject", "p0002"]) == 0
    told = capsys.readouterr().out
    assert "an interrupted removal is complete now" in told
    assert str(work / "run") in told
    assert [path.name for path in work.iterdir() if path.name.startswith(".")] == []
    with pytest.raises(InputError, match="holds no subject p0002"):
        drop_subject(cohort=cohort.path, subjects=["p0002"])


def test_notes_of_the_preparation_are_said_to_be_that(cohort: ImageFolder) -> None:
    for subject in ("p0001", "p0002"):
        drop_subject(cohort=cohort.path, subjects=[subject])
    notes = open_images(cohort.path).header.content["notes"]
    assert notes[0].startswith("Subjects were removed from this cohort 2 times")
    assert not any(note.startswith("Subjects were removed") for note in notes[1:])
