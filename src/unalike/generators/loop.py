"""The training loop that diffusion and autoencoders share: updates, weight averages, checkpoints, log, resuming.

A `Task` says what is learned. Every random number of update n comes from a stream keyed by n, so that a resumed
training equals an uninterrupted one weight for weight (on a CPU, with as many threads). Several processes, or parts
that are worked on one after the other (``accumulate``), share one batch: its gradient is the same but for the order
in which it is added up.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

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
from unalike.generators.settings import TrainingSettings
from unalike.records import IntArray
from unalike.seeds import generator_for, seed_for

Batch = TypeVar("Batch")
READ_AHEAD = 3  # batches


class Task(Protocol[Batch]):
    """What is learned: a network, its batches, and their loss."""

    @property
    def name(self) -> str:
        """What is trained, as the progress bar calls it."""

    @property
    def network(self) -> nn.Module:
        """The network, on the device it is trained on."""

    def batch(self, n: int, part: slice) -> Batch:
        """What update ``n`` needs for these places of its batch, in memory; called from another thread."""

    def loss(self, network: nn.Module, batch: Batch) -> torch.Tensor:
        """Mean loss of a batch; ``network`` is the task's own, perhaps wrapped or compiled."""


class Training(Generic[Batch]):
    """All that an update changes: weights, optimizer, weight averages, and how far it is."""

    def __init__(
        self,
        task: Task[Batch],
        settings: TrainingSettings,
        *,
        out: Path,
        seed: int,
        identity: str,
        processes: Processes,
        checkpoints: str,
    ) -> None:
        """State before the first update, or that of the newest checkpoint in ``out``/``checkpoints``.

        ``identity`` names cohort and settings; a checkpoint of another one is refused with `FolderError`.
        """
        parts = processes.count * settings.accumulate
        if settings.batch_size % parts:
            raise SettingsError(
                f"batch_size = {settings.batch_size} cannot be shared by {processes.count} processes with "
                f"{settings.accumulate} parts each: give a multiple of {parts}."
            )
        self.task, self.settings, self.out, self.seed, self.identity = task, settings, out, seed, identity
        self.processes, self.place, self.checkpoints = processes, processes.place, checkpoints
        self.network = task.network.to(self.place).train()
        self.names = [name for name, _ in self.network.named_parameters()]
        self.weights: list[torch.Tensor] = list(self.network.parameters())
        self.averages = {decay: [weight.detach().clone() for weight in self.weights] for decay in settings.ema_decays}
        self.optimizer = torch.optim.AdamW(
            self.weights, lr=settings.learning_rate, weight_decay=settings.weight_decay, fused=True
        )
        self.step = 0
        self.seconds = 0.0
        if processes.main:
            clear_halves(out / checkpoints)
        kept = load_newest_checkpoint(out, identity=identity, room=checkpoints)
        if kept is not None:
            self.restore(kept)
        processes.wait()

    def run(self, *, every: int = 0, look: Callable[[], bool] | None = None) -> bool:
        """Train to the last update; gives whether it got there.

        With ``every``, ``look`` is called after so many updates each (in all processes) and ends the training by
        giving False. Ctrl-C leaves a checkpoint and raises on.

        Raises `NonFiniteLossError` if training diverges, the last good checkpoint then stays, and `RunError` if a
        checkpoint cannot be written.
        """
        settings = self.settings
        wrapped: Any = torch.compile(self.network) if settings.compile else self.network
        wrapped = self.processes.accelerator.prepare_model(wrapped, device_placement=False)
        # (loss, norm of the gradient) of each update since the last look; they stay on the device until then.
        unseen: list[torch.Tensor] = []
        began = noted = saved = time.monotonic()
        seconds_before, told, going = self.seconds, "", True
        text = f", resumed at step {self.step} of {settings.steps}" if self.step else ""
        batches = read_ahead(self._batches(), depth=READ_AHEAD)
        with self._progress(text) as progress:
            try:
                while going and self.step < settings.steps:
                    loss, norm = self._gradient(wrapped, next(batches))
                    with hold_interrupts():
                        self.update()
                        unseen.append(torch.stack([loss, norm]))
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
        return show_progress(f"train {self.task.name}{text}", total=self.settings.steps - self.step, unit="steps")

    def _batches(self) -> Iterator[list[Batch]]:
        """The parts of this process, update by update."""
        settings, processes = self.settings, self.processes
        size = settings.batch_size // (processes.count * settings.accumulate)
        first = processes.rank * settings.accumulate * size
        slices = [slice(first + k * size, first + (k + 1) * size) for k in range(settings.accumulate)]
        for n in range(self.step, settings.steps):
            yield [self.task.batch(n, part) for part in slices]

    def _gradient(self, network: Any, parts: Sequence[Batch]) -> tuple[torch.Tensor, torch.Tensor]:
        """∇_θ of the mean loss over all parts and processes; gives the loss and the norm of the gradient."""
        self.optimizer.zero_grad(set_to_none=True)
        accelerator = self.processes.accelerator
        total = torch.zeros((), device=self.place)
        # What a layer draws by itself (dropout) is keyed by the update and the process as well.
        with torch.random.fork_rng(devices=[self.place] if self.place.type == "cuda" else []):
            torch.manual_seed(seed_for(self.seed, "layers", self.step * self.processes.count + self.processes.rank))
            for index, part in enumerate(parts):
                last = index == len(parts) - 1
                with contextlib.nullcontext() if last else accelerator.no_sync(network):
                    loss = self.task.loss(network, part) / len(parts)
                    accelerator.backward(loss)
                total += loss.detach()
        norm = torch.nn.utils.clip_grad_norm_(self.weights, self.settings.gradient_clip)
        return total, norm

    def update(self) -> None:
        """One AdamW step from the gradients at hand, then one step of each weight average."""
        rate = learning_rate(self.settings, self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        # A fixed decay would keep the noise of the first weights for long; see Karras et al. (2020), appendix.
        warm = (1 + self.step) / (10 + self.step)
        for decay, average in self.averages.items():
            get_ema_multi_avg_fn(min(decay, warm))(average, self.weights, None)  # type: ignore[no-untyped-call]
        self.step += 1

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
        # (updates, 2), the one wait for the device
        numbers = self.processes.average(torch.stack(unseen)).tolist()
        first = self.step - len(numbers)
        for n, (loss, norm) in enumerate(numbers, start=first):
            if not (math.isfinite(loss) and math.isfinite(norm)):
                raise NonFiniteLossError(
                    f"training diverged at step {n + 1}: loss {loss}, gradient norm {norm}, learning rate "
                    f"{learning_rate(self.settings, n):.2g}. The last good checkpoint stays in "
                    f"{self.out / self.checkpoints}. Train again with a smaller learning_rate, into another folder."
                )
        loss = float(np.mean([loss for loss, _ in numbers]))
        speed = len(numbers) * self.settings.batch_size / max(seconds, 1e-9)
        entry = {
            "step": self.step,
            "loss": loss,
            "gradient_norm": float(np.mean([norm for _, norm in numbers])),
            "images_per_second": round(speed, 1),
            "learning_rate": learning_rate(self.settings, self.step - 1),
            "seconds": round(self.seconds, 2),
        }
        if self.processes.main:
            append_log(self.out, ({} if self.checkpoints == "checkpoints" else {"of": self.task.name}) | entry)
        return f"loss {loss:.4f}, {speed:.0f} images/s"

    def save(self) -> None:
        """Write a checkpoint, in the main process."""
        if self.processes.main:
            save_checkpoint(
                self.out, self.checkpoint(), identity=self.identity, room=self.checkpoints, keep=self.settings.keep
            )

    def checkpoint(self) -> Checkpoint:
        """The state as tensors with names: weights, averages, and both moments of the optimizer."""
        tensors = {}
        for index, (name, weight) in enumerate(zip(self.names, self.weights, strict=True)):
            moments = self.optimizer.state.get(weight, {})
            tensors[f"weights/{name}"] = weight.detach()
            for decay, average in self.averages.items():
                tensors[f"average-{decay}/{name}"] = average[index]
            for moment in ("exp_avg", "exp_avg_sq"):
                tensors[f"{moment}/{name}"] = moments.get(moment, torch.zeros_like(weight))
        return Checkpoint(self.step, self.seconds, tensors)

    @torch.no_grad()
    def restore(self, kept: Checkpoint) -> None:
        """Go back to ``kept``."""
        for index, (name, weight) in enumerate(zip(self.names, self.weights, strict=True)):
            weight.copy_(kept.tensors[f"weights/{name}"])
            for decay, average in self.averages.items():
                average[index].copy_(kept.tensors[f"average-{decay}/{name}"])
            self.optimizer.state[weight] = {
                "step": torch.tensor(float(kept.step), device=weight.device),
                **{
                    moment: torch.zeros_like(weight).copy_(kept.tensors[f"{moment}/{name}"])
                    for moment in ("exp_avg", "exp_avg_sq")
                },
            }
        self.step, self.seconds = kept.step, kept.seconds

    def averaged(self, decay: float) -> dict[str, torch.Tensor]:
        """The weight average with this decay, by the names of the network's weights."""
        return dict(zip(self.names, self.averages[decay], strict=True))


class _Silent:
    """Progress of a process that does not talk."""

    def advance(self, count: int = 1, text: str = "") -> None:
        """Say nothing."""


@contextlib.contextmanager
def using(network: nn.Module, weights: dict[str, torch.Tensor]) -> Iterator[nn.Module]:
    """The network with other weights, ready to draw; afterwards it is as it was."""
    training = network.training
    held = {name: weight.detach().clone() for name, weight in network.named_parameters()}
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
        weight.copy_(weights[name])


def learning_rate(settings: TrainingSettings, n: int) -> float:
    """Learning rate of update n (from 0): a linear rise in the warm-up, then a linear fall to 0, or none."""
    rise = min(1.0, (n + 1) / settings.warmup) if settings.warmup else 1.0
    fall = 1 - n / settings.steps if settings.decay == "linear" else 1.0
    return settings.learning_rate * rise * fall


def batch_positions(n: int, count: int, batch_size: int, seed: int) -> IntArray:
    """Positions (batch_size,) among ``count`` images of batch n, the n-th piece of endless shuffles.

    Each epoch is a permutation of its own stream, so a batch is known without those before it.
    """
    places = np.arange(n * batch_size, (n + 1) * batch_size)
    epochs, within = np.divmod(places, count)
    orders = {e: generator_for(seed, "order", int(e)).permutation(count) for e in np.unique(epochs)}
    return np.array([orders[e][place] for e, place in zip(epochs, within, strict=True)], dtype=np.int64)
