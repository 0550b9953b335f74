"""`run_study`: run the cells of a study, each as a process of its own, so that none can take another with it.

A cell is the command that a user would type, with a log of its own. What is finished is never done again; what was
interrupted goes on, because the commands do. Processes are started and waited for by one thread.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import fnmatch
import importlib
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Literal

from unalike import folders
from unalike.engine import Progress, show_progress, tell
from unalike.errors import FolderError, RunError, SettingsError
from unalike.study.cells import PHANTOM_KEY, PHANTOM_KEY_BYTES, ROOMS, Cell, plan_cells
from unalike.study.plan import NETWORKS, read_study
from unalike.study.study_settings import Study, suggest

LOGS = "logs"
STATE = "cells.json"
COPY = "study.toml"
LAYOUT = "layout"
State = Literal["done", "failed", "not run"]
# Which commands are told on what to work. What is told so changes no result and no folder's name.
_TAKE_DEVICE = frozenset(
    {"train", "sample", "audit", "fidelity", "utility", "explain", "sweep", "membership", "steps", "latent"}
)
_TAKE_SCHEDULER = frozenset({"prepare", "audit"})
_WITH_PAGE = frozenset({"audit", "fidelity", "utility", "explain"})
# What a header calls the folder that a stage made.
_INPUTS = {
    "cohort": ("cohort",),
    "run": ("run",),
    "samples": ("synthetic", "samples"),
    "audit": ("audit",),
    "utility": ("utility",),
}
_MARK: Mapping[str, Any] = {}  # any study may go on in the folder of another: cells never meet
_LEFT_OUT = "left out by --only"
_POLL = 0.05  # seconds between two looks at the processes
_PATIENCE = 120.0  # seconds that interrupted processes have to end by themselves
_HASHED = re.compile(r".+-[0-9a-f]{8}")
_SET_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG


@dataclass(frozen=True)
class Done:
    """What became of a cell: ``reason`` says why it is not done, ``seconds`` how long it took in all."""

    cell: Cell
    state: State
    reason: str = ""
    seconds: float = 0.0


@dataclass(frozen=True)
class StudyResult:
    """A study's folder and what became of each cell, in the plan's order.

    ``leftovers`` are folders that no cell names (of earlier versions of the study), ``files`` the tables, figures and
    pages that were written.
    """

    path: Path
    title: str
    layout: str
    cells: tuple[Done, ...]
    note: str = ""
    leftovers: tuple[Path, ...] = ()
    files: tuple[Path, ...] = ()

    @property
    def failed(self) -> tuple[Done, ...]:
        """What failed, without what could not be run for that."""
        return tuple(done for done in self.cells if done.state == "failed")

    def find(
        self,
        stage: str,
        *,
        cohort: str | None = None,
        generator: str | None = None,
        subjects: int | str | None = None,
        **varied: Any,
    ) -> list[Done]:
        """Cells of a stage, finished or not, in the plan's order; what is not given may be anything.

        ``subjects`` is a number, or 0 or "all". ``varied`` are values of the settings that vary; a training with the
        plain settings has none of them, and stands before those that vary.
        """
        wanted = 0 if subjects == "all" else subjects

        def fits(about: Mapping[str, Any]) -> bool:
            return (
                cohort in (None, about.get("cohort"))
                and generator in (None, about.get("generator"))
                and (wanted is None or about.get("subjects") == wanted)
                and all(about.get("varied", {}).get(name) == value for name, value in varied.items())
            )

        return [done for done in self.cells if done.cell.stage == stage and fits(done.cell.about)]

    def describe(self) -> str:
        """The end of a study as text: how much is done, what failed and why, what is left over."""
        finished = sum(done.state == "done" for done in self.cells)
        lines = [f"{self.title}: {finished} of {len(self.cells)} cells done"]
        for done in self.cells:
            if done.state != "done" and done.reason != _LEFT_OUT:
                lines.append(f"{done.state}: {done.cell.name}: {done.reason}")
        if self.leftovers:
            listed = ", ".join(_relative(path, self.path) for path in self.leftovers)
            lines.append(f"left by earlier versions of the study: {listed}. Remove them if they are not wanted.")
        return "\n".join(lines)


@dataclass(frozen=True)
class _Options:
    """How cells are run; ``devices`` are the graphics cards at hand, by number or name."""

    workers: int = 1
    scheduler: str | None = None
    device: str = "auto"
    trackers: tuple[str, ...] = ()
    devices: tuple[str, ...] = ()

    @property
    def cores(self) -> int:
        """Cores for each of the processes at work."""
        return max(1, (os.cpu_count() or 1) // self.workers)

    def devices_of(self, slot: int) -> tuple[str, ...]:
        """Graphics cards of the process in this place among ``workers``; none where there are fewer cards."""
        each = len(self.devices) // self.workers
        return self.devices[slot * each : (slot + 1) * each]


def run_study(
    file: str | Path,
    *,
    out: str | Path,
    data: Mapping[str, str | Path] | None = None,
    workers: int = 1,
    scheduler: str | None = None,
    device: str = "auto",
    dry_run: bool = False,
    only: str | None = None,
    seed: int | None = None,
    trackers: Sequence[str] = (),
) -> StudyResult:
    """Run a study file into ``out``; the same call after an interruption, or with a changed file, does what is missing.

    ``data`` says where data sets are. ``workers`` cells run at once. ``scheduler`` is a Dask scheduler for those that
    pass over data. ``only`` is a pattern of names of cells (``audit:*``), which are run with all they need. With
    ``dry_run`` nothing is written or started. ``trackers`` are handed to trainings. A cell that fails ends no other;
    it is in the result's ``failed``.

    Raises `SettingsError` listing all that is wrong with the file, `FolderError` if ``out`` is somebody else's or a
    study is running there, and `RunError` if the study itself cannot write there.
    """
    if workers < 1:
        raise SettingsError(f"--workers {workers}: give 1 or more.")
    _check_scheduler(scheduler)
    study = read_study(file, data, seed=seed)
    out = Path(out)
    cells = plan_cells(study, out)
    chosen = _choose(cells, only)
    if dry_run:
        return _result(study, out, cells, {}, _read_state(out))
    try:
        _open(out)
        options = _Options(workers, scheduler, device, tuple(trackers), _visible_devices(device))
        runner = _Runner(out.resolve(), [cell for cell in cells if cell.name in chosen], options)
        runner.run()
        result = _with_layout(_result(study, out, cells, runner.ended, runner.state))
        _finish(study, result)
    except OSError as error:
        raise RunError(
            f"the study cannot write to {out} ({error.strerror or error}). What is finished stays: make room and "
            "repeat the command to go on."
        ) from error
    return result


def list_commands(
    file: str | Path,
    *,
    out: str | Path,
    data: Mapping[str, str | Path] | None = None,
    device: str = "auto",
    scheduler: str | None = None,
    only: str | None = None,
    seed: int | None = None,
) -> tuple[str, ...]:
    """The commands of a study in order, as one would type them; those that are done already stand behind a #."""
    cells = plan_cells(read_study(file, data, seed=seed), out)
    chosen = _choose(cells, only)
    options = _Options(scheduler=scheduler, device=device)
    lines = []
    if any("--key" in cell.argv for cell in cells if cell.name in chosen):
        lines.append("# --key FILE is written by the study; typed by hand, leave it out")
    for cell in cells:
        if cell.name not in chosen:
            continue
        if not cell.argv:
            lines.append(f"# {cell.name} is {cell.out}")
            continue
        line = shlex.join(["unalike", *cell.argv, *_told(cell, options)])
        lines.append(f"# done: {line}" if _is_done(cell) else line)
    return tuple(dict.fromkeys(lines))


def _check_scheduler(address: str | None) -> None:
    """Raise `SettingsError` for a scheduler that does not answer: every cell that needs it would fail."""
    if address is None:
        return
    host, _, port = address.rpartition("://")[2].rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except (OSError, ValueError, OverflowError) as error:
        raise SettingsError(f"--scheduler {address} does not answer ({error}). Start it: dask scheduler.") from error


def _choose(cells: Sequence[Cell], only: str | None) -> set[str]:
    """Names of the cells that fit the pattern, and of all they need."""
    by_name = {cell.name: cell for cell in cells}
    waiting = [name for name in by_name if only is None or fnmatch.fnmatchcase(name, only)]
    if only is not None and not waiting:
        raise SettingsError(f"--only {only}: no cell has such a name; {suggest(only, by_name)}")
    chosen: set[str] = set()
    while waiting:
        name = waiting.pop()
        if name not in chosen:
            chosen.add(name)
            waiting += by_name[name].needs
    return chosen


def _visible_devices(device: str) -> tuple[str, ...]:
    """Graphics cards that processes could share out among them."""
    if device not in ("auto", "cuda"):
        return ()
    import torch

    count = torch.cuda.device_count()
    named = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return tuple(named[:count] if named else map(str, range(count)))


# The study's own folder


def _open(out: Path) -> None:
    """Take ``out`` for this process; a finished study is opened again."""
    marker = out / folders.UNFINISHED
    if folders.kind_of(out) == "study" and not marker.exists():
        folders.write_json(marker, {"kind": "study", "settings": _MARK})
    folders.begin_folder(out, kind="study", settings=_MARK, resumable=True)
    (out / folders.HEADERS["study"]).unlink(missing_ok=True)
    (out / LOGS).mkdir(exist_ok=True)
    (out / PHANTOM_KEY).write_bytes(PHANTOM_KEY_BYTES)


def _read_state(out: Path) -> dict[str, dict[str, Any]]:
    """What is remembered of each folder; nothing where that is damaged: the folders themselves say what is done."""
    try:
        document = folders.read_json(out / STATE)
    except FolderError:
        return {}
    entries = document.items() if isinstance(document, dict) else ()
    return {name: entry for name, entry in entries if isinstance(entry, dict)}


def _result(
    study: Study,
    out: Path,
    cells: Sequence[Cell],
    ended: Mapping[str, Done],
    state: Mapping[str, Mapping[str, Any]],
) -> StudyResult:
    """What is known of all cells, those that were not to be run included."""
    found = []
    for cell in cells:
        if cell.name in ended:
            found.append(ended[cell.name])
            continue
        seconds = float(state.get(_relative(cell.out, out), {}).get("seconds", 0.0))
        finished = _is_done(cell) and not _why_stale(cell, {one.name: one for one in cells})
        found.append(Done(cell, "done" if finished else "not run", "" if finished else _LEFT_OUT, seconds))
    leftovers = _leftovers(out, cells)
    return StudyResult(out, study.title, study.layout, tuple(found), study.note, leftovers)


def _leftovers(out: Path, cells: Sequence[Cell]) -> tuple[Path, ...]:
    """Folders of cells that this study has not."""
    wanted = {cell.out for cell in cells}
    rooms = [out.resolve() / room for room in ROOMS.values()]
    found = [path for room in rooms if room.is_dir() for path in sorted(room.iterdir())]
    return tuple(path for path in found if path.is_dir() and path not in wanted and _HASHED.fullmatch(path.name))


def _with_layout(result: StudyResult) -> StudyResult:
    """Write tables, figures and the page; where that fails, it is one failure more."""
    if not any(done.state == "done" for done in result.cells):
        return result
    try:
        layouts = importlib.import_module("unalike.study.layouts")
        files = tuple(Path(path) for path in layouts.write_results(result, result.path))
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        cell = Cell(f"{LAYOUT}:{result.layout or 'generic'}", LAYOUT, (), result.path)
        cells = (*result.cells, Done(cell, "failed", reason))
        return dataclasses.replace(result, cells=cells)
    return dataclasses.replace(result, files=files)


def _finish(study: Study, result: StudyResult) -> None:
    out = result.path
    files = [_relative(path, out) for path in result.files]
    temporary = out / f"{COPY}.partial"
    shutil.copyfile(study.file, temporary)
    temporary.replace(out / COPY)
    folders.finish_folder(
        out,
        kind="study",
        settings={"title": study.title, "layout": study.layout, "note": study.note},
        seed=study.seed,
        inputs={"study": folders.digest_file(study.file)},
        content={
            "cells": [
                {
                    "name": done.cell.name,
                    "stage": done.cell.stage,
                    "out": _relative(done.cell.out, out),
                    "about": done.cell.about,
                    "state": done.state,
                    "reason": done.reason,
                    "seconds": round(done.seconds, 1),
                }
                for done in result.cells
            ],
            "tables": [name for name in files if name.startswith("tables/")],
            "figures": [name for name in files if name.startswith("figures/")],
            "pages": [name for name in files if not name.startswith(("tables/", "figures/"))],
        },
    )


def _relative(path: Path, out: Path) -> str:
    place, path = out.resolve(), path.resolve()
    return path.relative_to(place).as_posix() if path.is_relative_to(place) else str(path)


# What is done


def _mark_of(cell: Cell) -> Path:
    """Beside a folder that has no header: it is whole."""
    return cell.out.with_name(f"{cell.out.name}.done")


def _is_done(cell: Cell) -> bool:
    if cell.kind:
        return folders.kind_of(cell.out) == cell.kind
    return _mark_of(cell).is_file() and cell.out.exists()


def _lacks_page(cell: Cell) -> bool:
    """Whether its command ended between the folder and its page."""
    return cell.kind in _WITH_PAGE and not (cell.out / folders.REPORT).is_file()


def _why_stale(cell: Cell, cells: Mapping[str, Cell]) -> str:
    """Why a finished folder cannot be taken: what it was made from has been made anew; "" where it can."""
    if not cell.kind or not cell.argv:
        return ""
    try:
        inputs = folders.read_header(cell.out, kind=cell.kind).inputs
    except FolderError as error:
        return str(error)
    for name in cell.needs:
        needed = cells[name]
        if not needed.kind or needed.out == cell.out or folders.kind_of(needed.out) != needed.kind:
            continue
        said = {inputs[key] for key in _INPUTS.get(needed.stage, ()) if key in inputs}
        if said and folders.digest_of(needed.out, kind=needed.kind) not in said:
            return f"{cell.out} was made from an earlier {name}. Remove it and repeat the command."
    return ""


# The processes


def _told(cell: Cell, options: _Options) -> list[str]:
    """What a command is told beyond what decides its result."""
    verb, words = cell.argv[0], []
    if verb in _TAKE_DEVICE and options.device != "auto" and "--device" not in cell.argv:
        words += ["--device", options.device]
    if verb in _TAKE_SCHEDULER and options.scheduler is not None and "--scheduler" not in cell.argv:
        words += ["--scheduler", options.scheduler]
    if verb == "prepare" and options.workers > 1 and options.scheduler is None and "--workers" not in cell.argv:
        words += ["--workers", str(options.cores)]
    if verb == "train" and cell.argv[1] in NETWORKS:
        words += [word for tracker in options.trackers for word in ("--tracker", tracker)]
    return words


def _command(cell: Cell, options: _Options, slot: int) -> list[str]:
    """The process of a cell: the command line, behind Accelerate's launcher where a training has several cards."""
    words = ["-m", "unalike", *cell.argv, *_told(cell, options)]
    if _is_done(cell) and _lacks_page(cell):
        words = ["-m", "unalike", "report", str(cell.out)]
    cards = len(options.devices_of(slot))
    if cell.argv[0] == "train" and cell.argv[1] in NETWORKS and cards > 1:
        launch = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", str(cards)]
        # Port 0: any that is free, as another training may be running.
        words = [*launch, "--num_machines", "1", "--mixed_precision", "no", "--main_process_port", "0", *words]
    if cell.stage != "command":
        words.append("--json")
    return [sys.executable, *words]


def _environment(options: _Options, slot: int) -> dict[str, str]:
    environment = dict(os.environ)
    environment.setdefault("OMP_NUM_THREADS", str(options.cores))
    if options.devices_of(slot):
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(options.devices_of(slot))
    return environment


def _prepare_child() -> Callable[[], None]:
    """What a process does before it becomes a command: take Ctrl-C as usual, and not outlive a killed study."""
    parent = os.getpid()
    libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None

    def prepare() -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell's background jobs ignore it, and so would their children
        if libc is not None:
            libc.prctl(_SET_DEATH_SIGNAL, signal.SIGTERM)
            if os.getppid() != parent:
                os._exit(1)

    return prepare


@dataclass
class _Running:
    """A process at work; ``logged`` is how long its log was before."""

    cell: Cell
    process: subprocess.Popen[bytes]
    log: Path
    logged: int
    slot: int
    began: float = field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.began


class _Runner:
    """Runs cells in order, as many at once as there may be, and remembers what became of them."""

    def __init__(self, out: Path, cells: Sequence[Cell], options: _Options) -> None:
        self.out, self.options = out, options
        self.cells = {cell.name: cell for cell in cells}
        self.state = _read_state(out)
        self.ended: dict[str, Done] = {}
        self.running: list[_Running] = []
        self.prepare_child = _prepare_child()
        self.progress = Progress()

    def run(self) -> None:
        """Run all cells; an interruption is handed on to the processes, which are waited for."""
        # Elsewhere than on a terminal a line for each cell that has ended says it all.
        bar = show_progress("study", total=len(self.cells), unit="cells") if sys.stderr.isatty() else None
        with _terminated_as_interrupted(), bar or contextlib.nullcontext(self.progress) as self.progress:
            try:
                while len(self.ended) < len(self.cells):
                    self._settle()
                    self._start_ready()
                    self._look()
            except BaseException as error:
                self._stop()
                if not isinstance(error, KeyboardInterrupt):
                    raise
                finished = sum(done.state == "done" for done in self.ended.values())
                told = f"{finished} of {len(self.cells)} cells are done. Repeat the command to go on."
                raise KeyboardInterrupt(told) from error

    def _settle(self) -> None:
        """End cells that need no process: done before, or without what they need. Cells stand after what they need."""
        busy = {running.cell.name for running in self.running}
        for cell in self.cells.values():
            if cell.name in self.ended or cell.name in busy:
                continue
            missing = [name for name in cell.needs if name in self.ended and self.ended[name].state != "done"]
            if not cell.argv and not _is_done(cell):
                self._end(Done(cell, "failed", f"{cell.out} is gone. Give the cohort's folder."))
            elif missing:
                self._end(Done(cell, "not run", f"needs {', '.join(missing)}", self._seconds_before(cell)))
            elif _is_done(cell) and all(name in self.ended for name in cell.needs):
                why = _why_stale(cell, self.cells)
                if why:
                    self._end(Done(cell, "failed", why, self._seconds_before(cell)))
                elif not _lacks_page(cell):
                    self._end(Done(cell, "done", "", self._seconds_before(cell)))

    def _start_ready(self) -> None:
        busy = {running.cell.out for running in self.running}
        for cell in self.cells.values():
            if len(self.running) >= self.options.workers:
                return
            ready = all(name in self.ended and self.ended[name].state == "done" for name in cell.needs)
            if cell.name not in self.ended and cell.out not in busy and ready:
                busy.add(cell.out)
                self._start(cell)

    def _start(self, cell: Cell) -> None:
        slot = min(set(range(self.options.workers)) - {running.slot for running in self.running})
        log = self.out / LOGS / f"{cell.stage}-{cell.out.name}.log"
        try:
            self._clear(cell)
            command = _command(cell, self.options, slot)
            with log.open("ab") as stderr, self._stdout(cell, log, stderr) as stdout:
                shown = shlex.join(["unalike", *command[command.index("unalike") + 1 :]])
                stderr.write(f"$ {shown}\n".encode())
                stderr.flush()
                logged = stderr.tell()
                process = subprocess.Popen(  # noqa: S603 - our own program
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=stdout,
                    stderr=stderr,
                    env=_environment(self.options, slot),
                    start_new_session=True,  # Ctrl-C reaches this process alone, which hands it on
                    preexec_fn=self.prepare_child,
                )
        except OSError as error:
            reason = f"cannot be started ({error.strerror or error})"
            self._end(Done(cell, "failed", reason, self._seconds_before(cell)))
            return
        self.running.append(_Running(cell, process, log, logged, slot))

    @staticmethod
    def _clear(cell: Cell) -> None:
        """Make room for what a command makes; a folder without a header of ours may be half made, and goes."""
        cell.out.parent.mkdir(parents=True, exist_ok=True)
        if cell.kind:
            return
        _mark_of(cell).unlink(missing_ok=True)
        if cell.out.is_dir():
            shutil.rmtree(cell.out)
        cell.out.unlink(missing_ok=True)
        if any(word.startswith(f"{cell.out}/") for word in cell.argv):
            cell.out.mkdir()

    @staticmethod
    @contextlib.contextmanager
    def _stdout(cell: Cell, log: Path, stderr: IO[bytes]) -> Iterator[IO[bytes]]:
        """Where a command prints: a file of its own for its JSON, else the log."""
        if cell.stage == "command" and "--json" not in cell.argv:
            yield stderr
            return
        with log.with_suffix(".json.partial").open("wb") as stream:
            yield stream

    def _look(self) -> None:
        """Take what has ended; wait a little where nothing has."""
        for running in list(self.running):
            if running.process.poll() is not None:
                self.running.remove(running)
                self._take(running)
                return
        if self.running:
            time.sleep(_POLL)
            self.progress.advance(0, self._doing())

    def _take(self, running: _Running) -> None:
        cell, code = running.cell, running.process.returncode
        seconds = self._seconds_before(cell) + running.seconds
        if code == 0 and not cell.kind and cell.out.exists():
            _mark_of(cell).touch()
        printed = running.log.with_suffix(".json.partial")
        if code == 0 and _is_done(cell):
            if printed.is_file():
                printed.replace(running.log.with_suffix(".json"))
            self._end(Done(cell, "done", "", seconds), running)
            return
        printed.unlink(missing_ok=True)
        reason = _reason(code, running.log, running.logged)
        self._end(Done(cell, "failed", f"{reason} (log: {_relative(running.log, self.out)})", seconds), running)

    def _end(self, done: Done, running: _Running | None = None) -> None:
        self.ended[done.cell.name] = done
        if running is not None or done.state != "done":
            tell(self._line(done, running))
        self.state[_relative(done.cell.out, self.out)] = {
            "name": done.cell.name,
            "stage": done.cell.stage,
            "state": done.state,
            "reason": done.reason,
            "seconds": done.seconds,
        }
        if running is not None:
            with contextlib.suppress(OSError):  # the disk is full: that shall end no other cell
                folders.write_json(self.out / STATE, self.state)
        self.progress.advance(1, self._doing())

    def _seconds_before(self, cell: Cell) -> float:
        seconds = self.state.get(_relative(cell.out, self.out), {}).get("seconds", 0.0)
        return float(seconds) if isinstance(seconds, int | float) else 0.0

    def _line(self, done: Done, running: _Running | None) -> str:
        """One line of what has become of a cell, and how long all others may take yet."""
        told = [f"{done.state}: {done.cell.name}" + (f": {done.reason}" if done.reason else "")]
        if running is not None:
            told.append(f"{running.seconds:.0f} s")
        told.append(f"{len(self.ended)} of {len(self.cells)} cells")
        return ", ".join([*told, *self._time_left()])

    def _doing(self) -> str:
        """What is running."""
        return ", ".join([*(running.cell.name for running in self.running), *self._time_left()])

    def _time_left(self) -> list[str]:
        left = self._seconds_left()
        return [] if left is None else [f"about {max(1, round(left / 60))} min left"]

    def _seconds_left(self) -> float | None:
        """Judged by finished cells of the same stage; None before there is any, and at the end."""
        taken: dict[str, list[float]] = {}
        for done in self.ended.values():
            if done.state == "done" and done.seconds:
                taken.setdefault(done.cell.stage, []).append(done.seconds)
        if not taken or len(self.ended) == len(self.cells):
            return None
        means = {stage: sum(seconds) / len(seconds) for stage, seconds in taken.items()}
        other = sum(means.values()) / len(means)
        ahead = [cell for cell in self.cells.values() if cell.name not in self.ended]
        total = sum(means.get(cell.stage, other) for cell in ahead)
        spent = sum(min(running.seconds, means.get(running.cell.stage, other)) for running in self.running)
        return max(0.0, total - spent) / self.options.workers

    def _stop(self) -> None:
        """Interrupt all processes and wait for them; they keep what they have made."""
        for running in self.running:
            _signal(running.process, signal.SIGINT)
        deadline = time.monotonic() + _PATIENCE
        try:
            for running in self.running:
                running.process.wait(timeout=max(0.0, deadline - time.monotonic()))
        except (subprocess.TimeoutExpired, KeyboardInterrupt):
            for running in self.running:
                _signal(running.process, signal.SIGKILL)
                running.process.wait()
        self.running.clear()


def _signal(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    """To a process and all it has started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)


def _reason(code: int, log: Path, logged: int) -> str:
    """Why a command ended: the line that unalike says, the last line there is, or the signal."""
    if code < 0:
        memory = ", perhaps for want of memory" if -code == signal.SIGKILL else ""
        return f"killed by signal {-code}{memory}"
    try:
        with log.open("rb") as stream:
            stream.seek(logged)
            lines = [line.strip() for line in stream.read().decode(errors="replace").splitlines()]
    except OSError as error:
        return f"ended with code {code}; its log cannot be read ({error.strerror or error})"
    said = [line for line in lines if line.startswith("unalike: ")] or [line for line in lines if line]
    if code == 0:
        return "it ended without what it was to write"
    return said[-1].removeprefix("unalike: ") if said else f"ended with code {code} and said nothing"


@contextlib.contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """Let SIGTERM end this process as Ctrl-C does; only the main thread may say so."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
