"""What a training keeps on disk while it runs: checkpoints, a log, and Ctrl-C that never tears an update.

A checkpoint is a folder ``step-00000120`` of one safetensors file (weights, averages, optimizer) and one JSON
file (step, seconds, whose it is). It is written under another name and renamed when whole, so that there is no half
checkpoint. No pickle is written or read. There is no random state to keep: every random number of step n
comes from a stream keyed by n.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from unalike import folders
from unalike.engine import tell
from unalike.errors import FolderError, RunError

STATE = "state.safetensors"
PROGRESS = "state.json"
FORMAT = 2  # of a checkpoint: what its tensors are called


@dataclass(frozen=True)
class Checkpoint:
    """State of a training after ``step`` updates and ``seconds`` of work."""

    step: int
    seconds: float
    tensors: Mapping[str, torch.Tensor]


def save_checkpoint(out: Path, checkpoint: Checkpoint, *, identity: str, room: str, keep: int) -> Path:
    """Write a checkpoint into ``out``/``room``, whole or not at all, and drop all but the newest ``keep``.

    ``identity`` names what is trained on what: `load_newest_checkpoint` refuses another one. Raises `RunError` if
    it cannot be written (a full disk); those before stay.
    """
    place = out / room
    final = place / f"step-{checkpoint.step:08d}"
    temporary = final.with_suffix(".partial")
    try:
        place.mkdir(exist_ok=True)
        clear_halves(place)
        temporary.mkdir()
        save_file({name: tensor.contiguous() for name, tensor in checkpoint.tensors.items()}, temporary / STATE)
        with (temporary / STATE).open("rb") as stream:
            os.fsync(stream.fileno())
        about = {"format": FORMAT, "identity": identity, "step": checkpoint.step, "seconds": checkpoint.seconds}
        folders.write_json(temporary / PROGRESS, about)
        if final.exists():  # one that could not be read, or the same step once more
            _remove(final)
        temporary.rename(final)
        # Later ones could not be read, or this training would have gone on from them.
        found = _found(place)
        for old in [entry for entry in found if entry > final] + [entry for entry in found if entry <= final][:-keep]:
            _remove(old)
    except (OSError, SafetensorError) as error:
        clear_halves(place)
        said = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise RunError(
            f"{final} cannot be written ({said}). What was written before stays: make room, then repeat the command."
        ) from error
    return final


def clear_halves(place: Path) -> None:
    """Remove what a killed process left half written or half removed in the folder of checkpoints ``place``."""
    for left in place.glob("step-*.partial"):
        shutil.rmtree(left, ignore_errors=True)


def load_newest_checkpoint(out: Path, *, identity: str, room: str) -> Checkpoint | None:
    """The newest readable checkpoint under ``out``/``room``, on the CPU, or None; a damaged one is passed over.

    Raises `FolderError` if it belongs to another cohort, other settings, or another format.
    """
    for place in reversed(_found(out / room)):
        try:
            progress = folders.read_json(place / PROGRESS)
            tensors = load_file(place / STATE)
        except (FolderError, SafetensorError, OSError):
            tell(f"{place} is damaged: going on from the checkpoint before it, or from the start.")
            continue
        if progress.get("format") != FORMAT:
            raise FolderError(
                f"{place} is a checkpoint of format {progress.get('format')!r}, this version reads {FORMAT}. "
                "Finish with the version that wrote it, or train into another folder."
            )
        if progress.get("identity") != identity:
            raise FolderError(
                f"{place} is a checkpoint of another cohort or of other settings. Train into another folder."
            )
        return Checkpoint(int(progress["step"]), float(progress["seconds"]), tensors)
    return None


def _found(place: Path) -> list[Path]:
    return sorted(entry for entry in place.glob("step-*") if entry.suffix != ".partial")


def _remove(place: Path) -> None:
    """Remove a checkpoint so that, killed on the way, no half of one bears its name."""
    aside = place.with_suffix(".old.partial")
    place.rename(aside)
    shutil.rmtree(aside, ignore_errors=True)


def append_log(out: Path, entry: Mapping[str, Any]) -> None:
    """Append one line to ``log.jsonl``. After a resume a step may stand there twice; the last line counts."""
    with (out / folders.LOG).open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(entry) + "\n")


@contextlib.contextmanager
def hold_interrupts() -> Iterator[None]:
    """Let Ctrl-C wait until the body is done: weights, optimizer and average change together or not at all.

    Outside the main thread, where Ctrl-C never arrives, it does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    arrived: list[tuple[int, Any]] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: arrived.append((number, frame)))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if arrived and callable(before):
        before(*arrived[0])
