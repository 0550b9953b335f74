"""Train a generator into a run folder. The same command after an interruption goes on where it stopped."""

from __future__ import annotations

import contextlib
import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unalike import folders
from unalike.cohort.store import open_images
from unalike.errors import InputError, RunError, SettingsError
from unalike.generators.data import TrainImages, describe_training, open_train_images
from unalike.generators.settings import resolve_settings
from unalike.generators.trackers import ShownLooks, TrackerSettings, check_trackers, tellable, tracking
from unalike.records import as_json
from unalike.runs.families import Family, check_seed, find_family
from unalike.runs.settings import WatchSettings

if TYPE_CHECKING:
    from unalike.generators.processes import Processes


def train_generator(
    *,
    kind: str,
    cohort: str | Path,
    out: str | Path,
    settings: Any = None,
    subjects: int | None = None,
    seed: int = 0,
    device: str = "auto",
    watch: WatchSettings | None = None,
    trackers: TrackerSettings | None = None,
) -> Path:
    """Train a generator on the ``train`` images of a cohort and write a run folder; returns its path.

    ``kind`` is ``diffusion``, ``gaussian`` or ``memorizer``. ``settings`` is the kind's dataclass, a mapping
    of its fields, or None for the defaults. ``subjects`` trains on so many subjects, drawn with ``seed``
    (None: all). Holdout images are never learned from; with ``watch`` samples are held against them while the
    generator is trained. Interrupted, the same call resumes at the last checkpoint. ``trackers`` show the losses in
    other programs too; they are no part of the run, and a resumed training may have others.

    Under ``accelerate launch`` the processes share each batch, and the first one writes.

    Raises `SettingsError` for an unknown kind or setting, too many subjects, or images that do not fit;
    `FolderError` if the cohort is no cohort or ``out`` is taken; `NonFiniteLossError` if training diverges, and
    `RunError` if the run cannot be written or nothing is within the budget of copies.
    """
    out = Path(out)
    family = find_family(kind)
    settings = resolve_settings(family.settings, settings)
    check_seed("seed", seed)
    if watch is not None and not family.network:
        raise SettingsError(f"--watch-every: a {kind} is not trained step by step. Leave it out.")
    trackers = trackers or TrackerSettings()
    if trackers.tracker and not family.network:
        raise SettingsError(f"--tracker: a {kind} is not trained step by step. Leave it out.")
    check_trackers(trackers)
    opened = open_images(cohort)
    images = open_train_images(opened, subjects=subjects, seed=seed)
    identity = {
        "generator": kind,
        "cohort": opened.digest,
        "subjects": subjects,
        "seed": seed,
        "settings": asdict(settings),
        "watch": None if watch is None else asdict(watch),
    }
    content = {"generator": kind, **describe_training(images, subjects=subjects, seed=seed)}
    about, main = _train(family, images, out, settings, seed, device, identity, watch, trackers)
    if not main:
        return out
    folders.finish_folder(
        out,
        kind="run",
        settings=asdict(settings) | ({} if watch is None else {"watch": asdict(watch)}),
        seed=seed,
        inputs={"cohort": opened.digest},
        content=content | about | {"model_digest": folders.digest_tree(out / folders.MODEL)},
    )
    return out


def _train(
    family: Family,
    images: TrainImages,
    out: Path,
    settings: Any,
    seed: int,
    device: str,
    identity: dict[str, Any],
    watch: WatchSettings | None,
    trackers: TrackerSettings,
) -> tuple[dict[str, Any], bool]:
    """What the header says of the training, and whether this process writes it."""
    if not family.network:
        with _begun(out, identity):
            return family.train(images, out=out, settings=settings, seed=seed, device=device), True
    from safetensors import SafetensorError

    from unalike.generators.processes import join_processes
    from unalike.runs.watch import LiveWatcher

    processes = join_processes(device)
    watcher = None if watch is None else LiveWatcher(images, out=out, settings=watch, seed=seed, place=processes.place)
    name = hashlib.sha256(json.dumps(as_json(identity), sort_keys=True).encode()).hexdigest()
    shown = ShownLooks(watcher) if watcher is not None and trackers.tracker else watcher
    extra = {"processes": processes, "identity": name, "watcher": shown}
    with processes.refusing_once(), _begun(out, identity, processes), contextlib.ExitStack() as stack:
        if processes.main:
            told = _tell_trackers(identity, settings, watch)
            stack.enter_context(tracking(trackers, out=out, name=f"{identity['generator']}-{name[:8]}", about=told))
        try:
            return family.train(images, out=out, settings=settings, seed=seed, **extra), processes.main
        except (OSError, SafetensorError) as error:  # checkpoints say it themselves; this is the model, or the log
            raise RunError(
                f"training into {out} ended at the disk ({error}). Checkpoints stay: check room and permissions there "
                "and repeat the command to go on."
            ) from error


def _tell_trackers(identity: dict[str, Any], settings: Any, watch: WatchSettings | None) -> dict[str, Any]:
    """What trackers show of a training's settings."""
    told: dict[str, Any] = {"generator": identity["generator"], "seed": identity["seed"], **tellable(settings)}
    if identity["subjects"] is not None:
        told["subjects"] = identity["subjects"]
    if watch is not None:
        told |= {f"watch_{key}": value for key, value in tellable(watch).items()}
    return told


class _begun:  # noqa: N801 - a context manager that reads like a word
    """The run folder, begun or resumed by the first process; given up again if the very beginning is refused."""

    def __init__(self, out: Path, identity: dict[str, Any], processes: Processes | None = None) -> None:
        self.out, self.identity, self.processes = out, identity, processes
        self.fresh = False

    def __enter__(self) -> None:
        if self.processes is None:
            self._begin()
        else:
            self.processes.first(self._begin)

    def _begin(self) -> None:
        self.fresh = not folders.begin_folder(self.out, kind="run", settings=self.identity, resumable=True)

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, InputError) and self.fresh:
            folders.give_up_folder(self.out)
