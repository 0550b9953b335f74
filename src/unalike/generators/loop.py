"""The training loop that all trained generators share: updates, checkpoints, log, resuming.

A `Learner` says what is learned and how an update changes it (`unalike.generators.descent` for one network). Every
random number of update n comes from a stream keyed by n, so that a resumed training equals an uninterrupted one weight
for weight (on a CPU, with as many threads). Several processes, or parts that are worked on one after the other
(``accumulate``), share one batch.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import torch
from torch import nn

from unalike.engine import read_ahead, show_progress
from unalike.errors import NonFiniteLossError, SettingsError
from unalike.generators.checkpoints import (
    Checkpoint,
    append_log,
    clear_halves,
    hold_interrupts,
    load_newest_checkpoint,
    save_checkpoint,
)
from unalike.generators.processes import Processes
from unalike.generators.settings import LoopSettings
from unalike.generators.trackers import send, start_trackers
from unalike.records import IntArray
from unalike.seeds import generator_for

Batch = TypeVar("Batch")
READ_AHEAD = 3  # batches


class Learner(Protocol[Batch]):
    """What is learned, and all that an update changes."""

    @property
    def name(self) -> str:
        """What is trained, as the progress bar calls it."""

    @property
    def network(self) -> nn.Module:
        """The network that samples are drawn from, on the device it is trained on."""

    @property
    def numbers(self) -> tuple[str, ...]:
        """What an update says of itself: the names of these numbers in the log, the loss first."""

    def batch(self, n: int, part: slice) -> Batch:
        """What update ``n`` needs for these places of its batch, in memory; called from another thread."""

    def prepare(self, n: int, parts: Sequence[Batch]) -> Callable[[], torch.Tensor]:
        """All of update ``n`` that may be interrupted without harm.

        The rest, which changes weights, is what it returns; that gives the numbers (len(numbers),), on the device.
        """

    def rate(self, n: int) -> float:
        """Learning rate of update n, for the log."""

    def watch(self, entry: Mapping[str, Any]) -> str:
        """See a line of the log, the means of `numbers` since the one before; gives a word for the progress bar."""

    def averaged(self, decay: float) -> dict[str, torch.Tensor]:
        """The weight average with this decay, by the names of the network's weights."""

    def state(self) -> dict[str, torch.Tensor]:
        """All that an update changes, by name."""

    def restore(self, tensors: Mapping[str, torch.Tensor], step: int) -> None:
        """Go back to a `state` after ``step`` updates."""


class Training(Generic[Batch]):
    """A learner's way from the first update to the last: how far it is, and what is kept of it on disk."""

    def __init__(
        self,
        learner: Learner[Batch],
        settings: LoopSettings,
        *,
        out: Path,
        identity: str,
        processes: Processes,
        checkpoints: str,
    ) -> None:
        """State before the first update, or that of the newest checkpoint in ``out``/``checkpoints``.

        ``identity`` names cohort and settings; a checkpoint of another one is refused with `FolderError`.
        """
        check_parts(settings, processes)
        self.learner, self.settings, self.out, self.identity = learner, settings, out, identity
        self.processes, self.place, self.checkpoints = processes, processes.place, checkpoints
        self.step = 0
        self.seconds = 0.0
        if processes.main:
            clear_halves(out / checkpoints)
        kept = load_newest_checkpoint(out, identity=identity, room=checkpoints)
        if kept is not None:
            learner.restore(kept.tensors, kept.step)
            self.step, self.seconds = kept.step, kept.seconds
        processes.wait()

    def run(self, *, every: int = 0, look: Callable[[], bool] | None = None) -> bool:
        """Train to the last update; gives whether it got there.

        With ``every``, ``look`` is called after so many updates each (in all processes) and ends the training by
        giving False. Ctrl-C leaves a checkpoint and raises on.

        Raises `NonFiniteLossError` if training diverges, the last good checkpoint then stays, and `RunError` if a
        checkpoint cannot be written.
        """
        settings = self.settings
        if self.processes.main:
            start_trackers()
        # The numbers of each update since the last look; they stay on the device until then.
        unseen: list[torch.Tensor] = []
        began = noted = saved = time.monotonic()
        seconds_before, told, going = self.seconds, "", True
        text = f", resumed at step {self.step} of {settings.steps}" if self.step else ""
        batches = read_ahead(self._batches(), depth=READ_AHEAD)
        with self._progress(text) as progress:
            try:
                while going and self.step < settings.steps:
                    update = self.learner.prepare(self.step, next(batches))
                    with hold_interrupts():
                        unseen.append(update())
                        self.step += 1
                    now = time.monotonic()
                    self.seconds = seconds_before + now - began
                    finished = self.step == settings.steps
                    glance = every > 0 and (self.step % every == 0 or finished)
                    noting = finished or glance or len(unseen) >= settings.log_every
                    save = finished or glance or self._agree_to_save(now - saved, noting)
                    if save or noting:
                        told = self.note(unseen, now - noted)
                        unseen, noted = [], time.monotonic()
                    if save:
                        self.save()
                        saved = time.monotonic()
                    if glance and look is not None:
                        going = look()
                        noted = time.monotonic()
                    progress.advance(1, told)
            except KeyboardInterrupt:
                # Whatever was going on, the weights are those after a whole number of updates. Other processes may
                # not have been interrupted, and are not asked.
                if unseen and self.processes.count == 1:
                    self.note(unseen, time.monotonic() - noted)
                elif unseen and not torch.stack(unseen).isfinite().all():
                    raise  # the last good checkpoint stays
                self.save()
                raise
        return going

    def _progress(self, text: str) -> Any:
        if not self.processes.main:
            return contextlib.nullcontext(_Silent())
        return show_progress(f"train {self.learner.name}{text}", total=self.settings.steps - self.step, unit="steps")

    def _batches(self) -> Iterator[list[Batch]]:
        """The parts of this process, update by update."""
        settings, processes = self.settings, self.processes
        size = settings.batch_size // (processes.count * settings.accumulate)
        first = processes.rank * settings.accumulate * size
        slices = [slice(first + k * size, first + (k + 1) * size) for k in range(settings.accumulate)]
        for n in range(self.step, settings.steps):
            yield [self.learner.batch(n, part) for part in slices]

    def _agree_to_save(self, seconds: float, noting: bool) -> bool:
        """Whether a checkpoint is due. Several processes ask one another only where they wait for each other anyway."""
        due = seconds >= self.settings.checkpoint_every
        if self.settings.checkpoint_every == 0 or self.processes.count == 1:
            return due
        return noting and self.processes.agree(due)

    def note(self, unseen: list[torch.Tensor], seconds: float) -> str:
        """Log the updates since the last note; returns the text beside the progress bar.

        Raises `NonFiniteLossError` naming the first update whose loss or gradient is not finite.
        """
        # (updates, numbers), the one wait for the device
        rows = self.processes.average(torch.stack(unseen)).tolist()
        names, first = self.learner.numbers, self.step - len(rows)
        for n, row in enumerate(rows, start=first):
            if not all(map(math.isfinite, row)):
                said = ", ".join(
                    f"{name.replace('_', ' ')} {value:.4g}" for name, value in zip(names, row, strict=True)
                )
                raise NonFiniteLossError(
                    f"training diverged at step {n + 1}: {said}, learning rate {self.learner.rate(n):.2g}. The last "
                    f"good checkpoint stays in {self.out / self.checkpoints}. Train again with a smaller "
                    "learning_rate, into another folder."
                )
        speed = len(rows) * self.settings.batch_size / max(seconds, 1e-9)
        means = dict(zip(names, np.mean(rows, axis=0).tolist(), strict=True))
        entry = {
            "step": self.step,
            **means,
            "images_per_second": round(speed, 1),
            "learning_rate": self.learner.rate(self.step - 1),
            "seconds": round(self.seconds, 2),
        }
        if self.processes.main:
            alone = self.checkpoints == "checkpoints"
            append_log(self.out, ({} if alone else {"of": self.learner.name}) | entry)
            send(entry, under="train" if alone else self.learner.name)
        word = self.learner.watch(entry)
        return f"{names[0]} {means[names[0]]:.4f}, {speed:.0f} images/s" + (f", {word}" if word else "")

    def save(self) -> None:
        """Write a checkpoint, in the main process."""
        if self.processes.main:
            kept = Checkpoint(self.step, self.seconds, self.learner.state())
            save_checkpoint(self.out, kept, identity=self.identity, room=self.checkpoints, keep=self.settings.keep)


def check_parts(settings: LoopSettings, processes: Processes) -> None:
    """Raise `SettingsError` unless the processes can share a batch in equal parts."""
    parts = processes.count * settings.accumulate
    if settings.batch_size % parts:
        raise SettingsError(
            f"batch_size = {settings.batch_size} cannot be shared by {processes.count} processes with "
            f"{settings.accumulate} parts each: give a multiple of {parts}."
        )


class _Silent:
    """Progress of a process that does not talk."""

    def advance(self, count: int = 1, text: str = "") -> None:
        """Say nothing."""


@contextlib.contextmanager
def using(network: nn.Module, weights: dict[str, torch.Tensor]) -> Iterator[nn.Module]:
    """The network with other weights, ready to draw; afterwards it is as it was."""
    training = network.training
    held = {name: weight.detach().clone() for name, weight in network.named_parameters() if name in weights}
    try:
        _set(network, weights)
        yield network.train(False)
    finally:
        with hold_interrupts():  # a checkpoint may be made of these weights next
            _set(network, held)
            network.train(training)


@torch.no_grad()
def _set(network: nn.Module, weights: dict[str, torch.Tensor]) -> None:
    for name, weight in network.named_parameters():
        if name in weights:
            weight.copy_(weights[name])


def batch_positions(n: int, count: int, batch_size: int, seed: int) -> IntArray:
    """Positions (batch_size,) among ``count`` images of batch n, the n-th piece of endless shuffles.

    Each epoch is a permutation of its own stream, so a batch is known without those before it.
    """
    places = np.arange(n * batch_size, (n + 1) * batch_size)
    epochs, within = np.divmod(places, count)
    orders = {e: generator_for(seed, "order", int(e)).permutation(count) for e in np.unique(epochs)}
    return np.array([orders[e][place] for e, place in zip(epochs, within, strict=True)], dtype=np.int64)
