"""A training shown in TensorBoard, MLflow or Weights & Biases, through Hugging Face Accelerate's trackers.

A tracker gets the numbers of log.jsonl and of the looks for copies, and of the settings only numbers and words that a
setting chooses among: never text a user wrote, a path, a label or an identifier. It changes no result and is no part of
a run's identity. One that fails is told once and left; training goes on.

Whoever trains opens the trackers around the training (`tracking`); the loop starts them when it is about to make the
first update, and hands each line of its log to `send`.
"""

from __future__ import annotations

import contextlib
import importlib.util
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin, get_type_hints

from unalike.engine import tell
from unalike.errors import SettingsError

if TYPE_CHECKING:
    from unalike.generators.watching import Draw, Glance, Watcher

TrackerName = Literal["tensorboard", "mlflow", "wandb"]
Told = bool | int | float | str
FOLDER = "tracker"  # of a run, for what trackers keep on disk
_PROJECT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
# Without these Weights & Biases would send the command line, paths, code, packages, and what is printed.
_WANDB_KEEPS_TO_ITSELF: dict[str, Any] = {
    "console": "off",
    "disable_code": True,
    "disable_git": True,
    "host": "",
    "save_code": False,
    "x_disable_machine_info": True,
    "x_disable_meta": True,
    "x_disable_stats": True,
    "x_save_requirements": False,
}
# Nor does MLflow need the path of the program, who started it, or where its source lies.
_MLFLOW_KEEPS_TO_ITSELF = {
    "mlflow.source.git.branch": "",
    "mlflow.source.git.commit": "",
    "mlflow.source.git.repoURL": "",
    "mlflow.source.name": "unalike",
    "mlflow.user": "unknown",
}
# What a user has set stays: reports about the use of the libraries, and how long a silent server holds up a training.
_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "WANDB_ERROR_REPORTING": "false",
}


@dataclass(frozen=True)
class TrackerSettings:
    """Which programs a training is shown in; no part of the run's settings, and without effect on its result."""

    tracker: tuple[TrackerName, ...] = ()
    """Also show the losses in tensorboard (kept in RUN/tracker), mlflow or wandb; repeat it for several. mlflow and
    wandb talk to the server you set up for them, and to none unless named here. Losses, settings that are numbers or
    choices, and looks for copies are sent; no path, label or identifier."""

    tracker_project: str = "unalike"
    """Project (wandb) or experiment (mlflow) that the training is shown under."""

    def __post_init__(self) -> None:
        """Refuse unknown trackers, and a project that not every server takes."""
        known = get_args(TrackerName)
        for name in self.tracker:
            if name not in known:
                raise SettingsError(f"--tracker {name} is unknown. There are: {', '.join(known)}.")
        if not _PROJECT.fullmatch(self.tracker_project):
            raise SettingsError(
                f"--tracker-project {self.tracker_project!r}: give up to 100 letters, digits, dots or dashes."
            )


@dataclass
class _Tracker:
    """One of Accelerate's trackers; ``inner`` is None once it has failed."""

    name: str
    inner: Any
    place: Path

    def start(self, about: Mapping[str, Told]) -> None:
        if self.name == "wandb":  # it writes into another folder where this one is missing
            self._attempt(lambda _: self.place.mkdir(exist_ok=True))
        self._attempt(lambda inner: inner.start())
        if self.name == "wandb":  # its own counter of steps cannot begin again, as it must after an autoencoder's
            self._attempt(lambda inner: inner.tracker.define_metric("*", step_metric="step"))
        self._attempt(lambda inner: inner.store_init_configuration(dict(about)))

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        if self.name == "wandb":
            self._attempt(lambda inner: inner.log({**numbers, "step": step}))
        else:
            self._attempt(lambda inner: inner.log(dict(numbers), step=step))

    def finish(self) -> None:
        self._attempt(lambda inner: inner.finish())

    def _attempt(self, work: Callable[[Any], object]) -> None:
        """Do it, unless something failed before; a failure is told, and is the last thing of this tracker."""
        if self.inner is None:
            return
        try:
            work(self.inner)
        except Exception as error:  # whatever libraries and servers of others come up with
            said = " ".join(str(error).split())[:300] or type(error).__name__
            tell(f"--tracker {self.name} failed ({said}). Training goes on without it; log.jsonl has everything.")
            with contextlib.suppress(Exception):
                self.inner.finish()
            self.inner = None


@dataclass
class _Open:
    """The trackers of the training that this process works on."""

    trackers: list[_Tracker]
    about: Mapping[str, Told]
    started: bool = False


_OPEN: ContextVar[_Open | None] = ContextVar("trackers", default=None)


def check_trackers(wanted: TrackerSettings) -> None:
    """Raise `SettingsError` for a tracker that is not installed; imports none."""
    for name in wanted.tracker:
        if importlib.util.find_spec(name) is None:
            raise SettingsError(f"--tracker {name} is not installed: pip install {name}.")


@contextlib.contextmanager
def tracking(wanted: TrackerSettings, *, out: Path, name: str, about: Mapping[str, Told]) -> Iterator[None]:
    """Within the body, what `send` gets goes to these trackers, which are finished after it however it ends.

    For the process that writes; the others open none. ``out`` is the run folder, ``name`` what servers call the
    training, and ``about`` the settings they show (`tellable`). Nothing is started before `start_trackers`.
    """
    place = out / FOLDER
    trackers = [_Tracker(each, _build(each, wanted, place, name), place) for each in dict.fromkeys(wanted.tracker)]
    token = _OPEN.set(_Open(trackers, about))
    try:
        yield
    finally:
        opened = _OPEN.get()
        _OPEN.reset(token)
        if opened is not None and opened.started:
            for tracker in opened.trackers:
                tracker.finish()


def start_trackers() -> None:
    """Start the trackers that are open, unless they are started: the first update is about to be made."""
    opened = _OPEN.get()
    if opened is None or opened.started:
        return
    opened.started = True
    for tracker in opened.trackers:
        tracker.start(opened.about)


def send(entry: Mapping[str, Any], *, under: str) -> None:
    """Hand the finite numbers of a line to the started trackers, named ``under``/key; ``step`` says which update."""
    opened = _OPEN.get()
    if opened is None or not opened.started:
        return
    numbers = {
        f"{under}/{key}": float(value)
        for key, value in entry.items()
        if key != "step" and isinstance(value, bool | int | float) and math.isfinite(value)
    }
    for tracker in opened.trackers:
        tracker.log(numbers, int(entry["step"]))


@dataclass(frozen=True)
class ShownLooks:
    """A `Watcher` whose recorded looks are sent to the trackers, too."""

    watcher: Watcher

    @property
    def every(self) -> int:
        """Updates between two looks."""
        return self.watcher.every

    @property
    def steps(self) -> int:
        """Steps that samples are drawn in."""
        return self.watcher.steps

    @property
    def strict(self) -> bool:
        """Whether the run ends without a model where nothing is within the budget."""
        return self.watcher.strict

    @property
    def stopped(self) -> bool:
        """Whether an earlier look ended the training."""
        return self.watcher.stopped

    def look(self, draw: Draw, *, step: int) -> Glance:
        """Judge samples."""
        return self.watcher.look(draw, step=step)

    def record(self, glance: Glance) -> None:
        """Keep a look for good, and send it."""
        self.watcher.record(glance)
        send(glance.line, under="watch")

    def seen(self, step: int) -> bool:
        """Whether this update was looked at and recorded."""
        return self.watcher.seen(step)


def tellable(settings: Any) -> dict[str, Told]:
    """Of a settings dataclass what may leave the house: numbers, and words that a setting chooses among.

    Text that a user writes (a path, a prompt, names of columns) is left out by its type, whatever it says.
    """
    types = get_type_hints(type(settings))
    told: dict[str, Told] = {}
    for name, kind in types.items():
        value = getattr(settings, name)
        if isinstance(value, bool | int | float) or get_origin(kind) is Literal:
            told[name] = value
        elif get_origin(kind) is tuple and get_args(kind)[0] in (bool, int, float):
            told[name] = ", ".join(map(str, value))
    return told


def _build(tracker: str, wanted: TrackerSettings, place: Path, name: str) -> Any:
    """Accelerate's tracker of this name, not started: nothing is imported, written or sent yet."""
    from accelerate import tracking as accelerate

    for key, value in _ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    if tracker == "tensorboard":
        return accelerate.TensorBoardTracker("tensorboard", logging_dir=place)
    if tracker == "mlflow":
        return accelerate.MLflowTracker(wanted.tracker_project, run_name=name, tags=_MLFLOW_KEEPS_TO_ITSELF)
    return accelerate.WandBTracker(wanted.tracker_project, name=name, dir=str(place), settings=_WANDB_KEEPS_TO_ITSELF)
