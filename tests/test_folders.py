"""Headers are written last and atomically, and nothing unfinished or foreign is trusted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from unalike import folders
from unalike.errors import FolderError
from unalike.records import Estimate, as_json, estimate_from_json


def finish(out: Path) -> None:
    folders.finish_folder(out, kind="run", settings={"a": 1}, seed=3, inputs={"cohort": "x"}, content={"n": 2})


def test_a_finished_folder_reads_back(tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert folders.begin_folder(out, kind="run", settings={"a": 1}) is False
    assert (out / folders.UNFINISHED).is_file()
    finish(out)
    header = folders.read_header(out, kind="run")
    assert (header.seed, header.settings, header.inputs, header.content) == (
        3,
        {"a": 1},
        {"cohort": "x"},
        {"n": 2},
    )
    assert header.made_by.startswith("unalike ")
    assert not (out / folders.UNFINISHED).exists()
    assert json.loads((out / "run.json").read_text())["kind"] == "run"
    assert folders.kind_of(out) == "run"


def test_an_unfinished_folder_is_refused_and_may_be_resumed_or_rebuilt(tmp_path: Path) -> None:
    out = tmp_path / "run"
    folders.begin_folder(out, kind="run", settings={"a": 1})
    (out / "half").write_text("x")
    with pytest.raises(FolderError, match="unfinished"):
        folders.read_header(out, kind="run")
    assert folders.begin_folder(out, kind="run", settings={"a": 1}, resumable=True) is True
    assert (out / "half").exists()
    with pytest.raises(FolderError, match="other settings"):
        folders.begin_folder(out, kind="run", settings={"a": 2}, resumable=True)
    assert folders.begin_folder(out, kind="run", settings={"a": 2}) is False
    assert not (out / "half").exists()


def test_folders_of_others_are_never_touched(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(FolderError, match="not empty"):
        folders.begin_folder(tmp_path, kind="run", settings={})
    assert (tmp_path / "thesis.txt").exists()
    with pytest.raises(FolderError, match="is a file"):
        folders.begin_folder(tmp_path / "thesis.txt", kind="run", settings={})


def test_finished_folders_are_not_overwritten(tmp_path: Path) -> None:
    out = tmp_path / "run"
    folders.begin_folder(out, kind="run", settings={})
    finish(out)
    with pytest.raises(FolderError, match="exists already"):
        folders.begin_folder(out, kind="run", settings={})


def test_a_failing_stage_leaves_nothing(tmp_path: Path) -> None:
    out = tmp_path / "new"

    def fail() -> None:
        with folders.new_folder(out, kind="audit", settings={}):
            (out / "half").mkdir()
            (out / "half" / "x").write_text("x")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert not out.exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be read as JSON"),
        ('{"kind": "audit", "schema": 1}', "not the header of a run"),
        ('{"kind": "run", "schema": 99}', "schema 99"),
        ('{"kind": "run", "schema": 1, "surprise": 1}', "damaged"),
    ],
)
def test_damaged_headers_are_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(FolderError, match=message):
        folders.read_header(tmp_path, kind="run")


def test_the_wrong_kind_is_named(tmp_path: Path) -> None:
    folders.begin_folder(tmp_path / "run", kind="run", settings={})
    finish(tmp_path / "run")
    with pytest.raises(FolderError, match="is a folder of kind run"):
        folders.read_header(tmp_path / "run", kind="cohort")
    with pytest.raises(FolderError, match="does not exist"):
        folders.read_header(tmp_path / "nowhere", kind="cohort")


def test_undefined_numbers_are_null_in_json() -> None:
    estimate = Estimate(float("nan"), float("nan"), float("inf"), 0, "none")
    document = as_json({"e": estimate})
    assert document["e"]["value"] is None
    assert document["e"]["high"] is None
    assert str(estimate_from_json(document["e"])) == "undefined"


def test_a_folder_that_was_not_yet_marked_is_free(tmp_path: Path) -> None:
    out = tmp_path / "run"
    out.mkdir()
    (out / folders.LOCK).touch()
    (out / "unfinished.json.partial").write_text("{")
    assert not folders.begin_folder(out, kind="run", settings={})
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "unfinished.json.partial").touch()
    (tmp_path / "other" / "mine.txt").touch()
    with pytest.raises(FolderError, match="not empty"):
        folders.begin_folder(tmp_path / "other", kind="run", settings={})
