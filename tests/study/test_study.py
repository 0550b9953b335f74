"""Running a study: what fails is alone, what was interrupted goes on, what is done stays.

Most tests let small programs stand in for the commands; the last ones run the commands themselves.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from accelerate.commands.launch import launch_command_parser

from unalike import folders
from unalike.cohort.build import prepare_cohort
from unalike.cohort.settings import PrepareSettings
from unalike.cohort.store import open_images
from unalike.errors import FolderError, RunError, SettingsError
from unalike.runs.sample import draw_samples
from unalike.study import run
from unalike.study.cells import Cell
from unalike.study.run import StudyResult, list_commands, run_study

SOURCE = """
import json, os, signal, sys, time
kind, out, inputs = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
def finish():
    os.makedirs(out, exist_ok=True)
    header = dict(kind=kind, schema=SCHEMA, made_by="", created="", settings={}, seed=0, inputs=inputs, content={})
    json.dump(header, open(f"{out}/{kind}.json", "w"))
    print('{"made": 1}')
"""
FILE = """
[study]
title = "Small"
[cohorts.pictures]
source = "pictures"
size = 24
holdout = 0.4
[generators.gaussian]
subjects = [99, 0]
[samples]
count = 12
"""
SAMPLES = ("samples:pictures/gaussian/99", "samples:pictures/gaussian/all")
RUNS = ("run:pictures/gaussian/99", "run:pictures/gaussian/all")


@pytest.fixture(autouse=True)
def layout(monkeypatch: pytest.MonkeyPatch) -> list[StudyResult]:
    """The tables are made elsewhere; here they are one file, and what they were made of is kept."""
    results: list[StudyResult] = []

    def write_results(result: StudyResult, place: Path) -> list[Path]:
        results.append(result)
        (place / "tables").mkdir(exist_ok=True)
        (place / "tables" / "one.md").write_text("a table")
        return [place / "tables" / "one.md"]

    monkeypatch.setitem(sys.modules, "unalike.study.layouts", SimpleNamespace(write_results=write_results))
    return results


@pytest.fixture
def file(tmp_path: Path, make_pictures: Callable[..., Path]) -> Path:
    make_pictures(subjects=30, images=1)
    path = tmp_path / "study.toml"
    path.write_text(FILE)
    return path


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Let small programs stand in for commands: ``scripts`` by name of cell, others just finish their folder."""

    def start(**scripts: str) -> list[str]:
        started: list[str] = []

        def command(cell: Cell, options: object, slot: int) -> list[str]:
            started.append(cell.name)
            body = scripts.get(cell.stage, "finish()") if "99" in cell.name or cell.stage == "cohort" else "finish()"
            inputs = {}
            if cell.stage == "run":
                cohort = next(Path(word) for word in cell.argv if "/cohorts/" in word)
                inputs = {"cohort": folders.digest_of(cohort, kind="cohort")}
            program = SOURCE.replace("SCHEMA", str(folders.SCHEMA)) + body
            words = [sys.executable, "-I", "-S", "-c", program, cell.kind, str(cell.out), json.dumps(inputs)]
            return [*words, "unalike", *cell.argv]

        monkeypatch.setattr(run, "_command", command)
        return started

    return start


def _states(result: StudyResult) -> dict[str, str]:
    return {done.cell.name: done.state for done in result.cells}


def test_a_failing_cell_ends_no_other_and_is_told_with_its_reason(file: Path, tmp_path: Path, pretend) -> None:
    pretend(
        run="print('noise\\nunalike: no such subjects. Take fewer.', 'more', sep='\\n', file=sys.stderr); sys.exit(2)"
    )
    result = run_study(file, out=tmp_path / "out")
    assert _states(result) == {
        "cohort:pictures": "done",
        RUNS[0]: "failed",
        SAMPLES[0]: "not run",
        RUNS[1]: "done",
        SAMPLES[1]: "done",
    }
    (failed,) = result.failed
    assert failed.reason.startswith("no such subjects. Take fewer. (log: logs/run-pictures-gaussian-99-")
    assert f"not run: {SAMPLES[0]}: needs {RUNS[0]}" in result.describe()
    content = folders.read_header(tmp_path / "out", kind="study").content
    assert [cell["state"] for cell in content["cells"]] == ["done", "failed", "not run", "done", "done"]
    assert content["tables"] == ["tables/one.md"]
    assert all(not Path(cell["out"]).is_absolute() for cell in content["cells"])
    log = next((tmp_path / "out" / "logs").glob("cohort-*.log")).read_text()
    assert log.startswith("$ unalike prepare ")
    assert json.loads(next((tmp_path / "out" / "logs").glob("cohort-*.json")).read_text()) == {"made": 1}


def test_nothing_that_is_done_is_done_again_and_what_failed_is_tried_again(file: Path, tmp_path: Path, pretend) -> None:
    pretend(run="sys.exit(1)")
    run_study(file, out=tmp_path / "out")
    started = pretend()
    assert not run_study(file, out=tmp_path / "out").failed
    assert started == [RUNS[0], SAMPLES[0]]
    started = pretend(cohort="sys.exit(1)")
    again = run_study(file, out=tmp_path / "out")
    assert started == []
    assert set(_states(again).values()) == {"done"}
    assert again.cells[0].seconds > 0  # from the first time


def test_a_killed_cell_says_so_and_is_mended_by_the_next_call(file: Path, tmp_path: Path, pretend) -> None:
    pretend(run="os.makedirs(out); os.kill(os.getpid(), 9)")
    (failed,) = run_study(file, out=tmp_path / "out").failed
    assert failed.reason.startswith("killed by signal 9, perhaps for want of memory")
    pretend()
    assert not run_study(file, out=tmp_path / "out").failed


def test_a_command_that_ends_well_and_writes_nothing_has_failed(file: Path, tmp_path: Path, pretend) -> None:
    pretend(run="pass")
    (failed,) = run_study(file, out=tmp_path / "out").failed
    assert "without what it was to write" in failed.reason


def test_only_some_cells_are_run_with_what_they_need(file: Path, tmp_path: Path, pretend) -> None:
    started = pretend()
    result = run_study(file, out=tmp_path / "out", only="samples:*/all")
    assert started == ["cohort:pictures", RUNS[1], SAMPLES[1]]
    assert _states(result)[RUNS[0]] == "not run"
    assert not result.failed
    with pytest.raises(SettingsError, match="no cell has such a name; did you mean run:pictures"):
        run_study(file, out=tmp_path / "out", only="run:pictures/gausian/all")


def test_a_changed_study_goes_on_in_its_folder_and_names_what_is_left(file: Path, tmp_path: Path, pretend) -> None:
    pretend()
    first = run_study(file, out=tmp_path / "out")
    file.write_text(FILE.replace("count = 12", "count = 13").replace("Small", "Larger"))
    started = pretend()
    second = run_study(file, out=tmp_path / "out")
    assert started == list(SAMPLES)
    assert set(second.leftovers) == {first.find("samples", subjects=n)[0].cell.out for n in (99, "all")}
    assert "left by earlier versions of the study: samples/pictures-gaussian-" in second.describe()
    file.write_text(FILE)
    started = pretend()
    assert run_study(file, out=tmp_path / "out").cells[-1].cell == first.cells[-1].cell
    assert started == []


def test_what_was_made_from_an_earlier_cohort_is_not_taken(file: Path, tmp_path: Path, pretend) -> None:
    pretend()
    cohort = run_study(file, out=tmp_path / "out").find("cohort")[0].cell.out
    header = cohort / "cohort.json"
    header.write_text(header.read_text().replace('"seed": 0', '"seed": 1'))
    result = run_study(file, out=tmp_path / "out")
    assert {done.cell.name for done in result.failed} == set(RUNS)
    assert "was made from an earlier cohort:pictures. Remove it" in result.failed[0].reason


def test_an_ended_study_stops_its_commands_and_says_how_to_go_on(file: Path, tmp_path: Path, pretend) -> None:
    waits = "signal.signal(2, lambda *_: (open(f'{out}.told', 'w').close(), sys.exit(130)))\n"
    pretend(run=waits + "os.kill(os.getppid(), signal.SIGTERM); time.sleep(60)")
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt, match=r"1 of 5 cells are done\. Repeat the command"):
        run_study(file, out=tmp_path / "out")
    assert signal.getsignal(signal.SIGTERM) == before
    assert list((tmp_path / "out" / "runs").glob("*.told"))
    assert folders.kind_of(tmp_path / "out") is None
    pretend()
    assert not run_study(file, out=tmp_path / "out").failed


def test_several_cells_run_at_once(file: Path, tmp_path: Path, pretend, monkeypatch: pytest.MonkeyPatch) -> None:
    # Each of the two waits for the other to have begun: one after the other they would never end.
    meet = (
        "open(f'{out}.here', 'w').close()\n"
        "here = lambda: [name for name in os.listdir(os.path.dirname(out)) if name.endswith('.here')]\n"
        "while len(here()) < 2: time.sleep(0.01)\n"
        "assert os.environ['OMP_NUM_THREADS'] == '2'\n"
        "finish()"
    )
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    file.write_text(FILE.replace("[99, 0]", "[99, 990]"))
    pretend(run=meet)
    assert not run_study(file, out=tmp_path / "out", workers=2).failed


def test_two_studies_in_one_folder_are_refused(file: Path, tmp_path: Path, pretend) -> None:
    pretend()
    out = tmp_path / "out"
    run_study(file, out=out)
    with (out / folders.LOCK).open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        with pytest.raises(FolderError, match="being written by another"):
            run_study(file, out=out)
    assert not run_study(file, out=out).failed


def test_a_folder_of_somebody_else_is_not_touched(file: Path, tmp_path: Path) -> None:
    with pytest.raises(FolderError, match="not empty"):
        run_study(file, out=tmp_path / "pictures")


def test_a_layout_that_fails_is_a_failure_and_no_crash(
    file: Path, tmp_path: Path, pretend, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write_results(*_: object) -> list[Path]:
        raise ValueError("no such table")

    monkeypatch.setitem(sys.modules, "unalike.study.layouts", SimpleNamespace(write_results=write_results))
    pretend()
    result = run_study(file, out=tmp_path / "out")
    assert [(done.cell.name, done.reason) for done in result.failed] == [("layout:generic", "no such table")]
    assert folders.kind_of(tmp_path / "out") == "study"


def test_a_full_disk_is_one_line(file: Path, tmp_path: Path, pretend, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend()

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(folders, "finish_folder", full)
    with pytest.raises(RunError, match=r"No space left on device.*repeat the command"):
        run_study(file, out=tmp_path / "out")
    monkeypatch.undo()


def test_a_cohort_that_is_there_is_taken_as_it_is(file: Path, tmp_path: Path, pretend) -> None:
    pretend()
    cohort = run_study(file, out=tmp_path / "first").find("cohort")[0].cell.out
    file.write_text(FILE.replace('source = "pictures"\nsize = 24\nholdout = 0.4', f"folder = '{cohort}'"))
    started = pretend()
    result = run_study(file, out=tmp_path / "out")
    assert not result.failed
    assert started == [RUNS[0], SAMPLES[0], RUNS[1], SAMPLES[1]]
    assert result.cells[0].cell.out == cohort
    assert list_commands(file, out=tmp_path / "out")[0] == f"# cohort:pictures is {cohort}"


def test_a_dry_run_writes_nothing_and_lists_the_commands(file: Path, tmp_path: Path) -> None:
    result = run_study(file, out=tmp_path / "out", dry_run=True)
    assert set(_states(result).values()) == {"not run"}
    lines = list_commands(file, out=tmp_path / "out", device="cpu", scheduler="tcp://here:1")
    assert [line.split()[1] for line in lines] == ["prepare", "train", "sample", "train", "sample"]
    assert lines[0].endswith("--scheduler tcp://here:1")
    assert lines[-1].endswith("--count 12 --device cpu")
    assert not (tmp_path / "out").exists()


def test_trainings_of_networks_share_the_cards_among_the_workers() -> None:
    options = run._Options(workers=2, devices=("0", "1", "2", "3"))
    cell = Cell("run:a/diffusion/all", "run", ("train", "diffusion", "a"), Path("b"), kind="run")
    command = run._command(cell, options, 1)
    assert command[1:6] == ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    assert command[-6:] == ["-m", "unalike", "train", "diffusion", "a", "--json"]
    understood = launch_command_parser().parse_args(command[3:])
    assert understood.module
    assert understood.training_script == "unalike"
    assert understood.training_script_args == ["train", "diffusion", "a", "--json"]
    assert run._environment(options, 1)["CUDA_VISIBLE_DEVICES"] == "2,3"
    control = Cell("run:a/gaussian/all", "run", ("train", "gaussian", "a"), Path("b"), kind="run")
    assert run._command(control, options, 0)[1:3] == ["-m", "unalike"]
    alone = run._Options(workers=2, devices=("0",))
    assert run._command(cell, alone, 0)[1:3] == ["-m", "unalike"]


def test_a_page_that_is_missing_is_made_without_the_audit(tmp_path: Path) -> None:
    cell = Cell("audit:a", "audit", ("audit", "a"), tmp_path, kind="audit")
    (tmp_path / "audit.json").touch()
    assert run._command(cell, run._Options(), 0)[1:] == ["-m", "unalike", "report", str(tmp_path), "--json"]
    (tmp_path / folders.REPORT).touch()
    assert run._command(cell, run._Options(), 0)[3] == "audit"


def test_a_folder_without_header_counts_only_when_its_command_has_ended(tmp_path: Path) -> None:
    cell = Cell("phantom:a", "phantom", ("phantom", str(tmp_path / "a-1")), tmp_path / "a-1")
    (tmp_path / "a-1").mkdir()
    (tmp_path / "a-1" / "half").touch()
    assert not run._is_done(cell)
    run._Runner._clear(cell)
    assert not (tmp_path / "a-1").exists()


def test_cells_are_found_by_what_they_are(tmp_path: Path) -> None:
    def done(name: str, **about: object) -> run.Done:
        return run.Done(Cell(name, "audit", (), tmp_path, about=about), "done")

    plain = done("a", cohort="c", generator="g", subjects=0, varied={})
    small = done("b", cohort="c", generator="g", subjects=0, varied={"size": "small"})
    few = done("c", cohort="c", generator="h", subjects=8, varied={})
    result = StudyResult(tmp_path, "", "", (plain, small, few))
    assert result.find("audit", cohort="c") == [plain, small, few]
    assert result.find("audit", generator="g", size="small") == [small]
    assert result.find("audit", subjects="all") == [plain, small]
    assert result.find("audit", subjects=8) == [few]
    assert result.find("samples") == []


DRIVER = """
import sys, types
sys.modules["unalike.study.layouts"] = types.SimpleNamespace(write_results=lambda result, place: [])
from unalike.study.run import run_study
run_study(sys.argv[1], out=sys.argv[2], device="cpu")
"""


def test_a_study_killed_in_the_middle_goes_on_to_the_same_samples(file: Path, tmp_path: Path) -> None:
    """The commands themselves: the first samples are being drawn when the study is killed, and its command with it."""
    out = tmp_path / "out"
    cohort = tmp_path / "cohort"  # starting a command takes seconds: this one is spared
    prepare_cohort(source=tmp_path / "pictures", out=cohort, settings=PrepareSettings(size=24, holdout=0.4))
    file.write_text(
        f"study.title = 'Small'\ncohorts.pictures.folder = '{cohort}'\ngenerators.gaussian.components = 4\n"
        "samples = {count = 12, batch-size = 1}\n"
    )
    driver = subprocess.Popen([sys.executable, "-c", DRIVER, str(file), str(out)], stderr=subprocess.DEVNULL)
    try:
        _wait_for(lambda: list((out / "logs").glob("samples-*.log")) if out.is_dir() else [], driver)
    finally:
        driver.send_signal(signal.SIGKILL)
        driver.wait()
    assert folders.kind_of(out) is None
    _wait_for(lambda: not _is_alive(str(out / "samples")), None)
    before = {path: path.stat().st_mtime_ns for path in out.glob("*/*/*.json") if path.name != folders.UNFINISHED}
    result = run_study(file, out=out, device="cpu")
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert set(_states(result).values()) == {"done"}
    trained, drawn = result.find("run", subjects=0)[0].cell.out, result.find("samples", subjects=0)[0].cell.out
    again = draw_samples(run=trained, out=tmp_path / "again", count=12, device="cpu")
    np.testing.assert_array_equal(_pixels(drawn), _pixels(again))


def _pixels(folder: Path) -> np.ndarray:
    opened = open_images(folder, kind="samples")
    return opened.read(np.arange(len(opened)))


def _wait_for(happened: Callable[[], object], process: subprocess.Popen[bytes] | None) -> None:
    for _ in range(3000):
        if happened():
            return
        if process is not None and process.poll() is not None:
            pytest.fail(f"ended with {process.returncode}")
        time.sleep(0.02)
    pytest.fail("it never happened")


def _is_alive(word: str) -> bool:
    """Whether some process was started with this word in its command."""
    for place in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if word in place.read_bytes().decode(errors="replace"):
                return True
        except OSError:
            continue
    return False
