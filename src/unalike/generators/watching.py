"""Watching a training for copies: what the loop hands out, and how the best weights are kept.

A `Watcher` is handed samples and says how they look; it never learns which generator made them. Whoever trains
(``runs``) brings one that asks the audit's live index.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from unalike.engine import tell
from unalike.errors import RunError
from unalike.generators.checkpoints import Checkpoint, load_newest_checkpoint, save_checkpoint
from unalike.generators.loop import Training, using
from unalike.records import Pixels

BEST = "best"  # the room of a run folder for the weights that were chosen

Draw = Callable[[Sequence[int]], Pixels]


@dataclass(frozen=True)
class Glance:
    """What a look at samples says: ``line`` for the log; whether these are the ``best`` weights so far, within the
    budget of copies; and whether to ``stop``."""

    line: Mapping[str, Any]
    best: bool
    stop: bool


class Watcher(Protocol):
    """What looks at samples while a generator is trained: after ``every`` updates, drawn in ``steps`` steps.

    ``strict``: the run ends without a model where nothing is within the budget.
    """

    every: int
    steps: int
    strict: bool

    @property
    def stopped(self) -> bool:
        """Whether an earlier look ended the training."""

    def look(self, draw: Draw, *, step: int) -> Glance:
        """Ask ``draw`` for samples and judge them; nothing is written yet."""

    def record(self, glance: Glance) -> None:
        """Keep a look for good: the log, the picture."""

    def seen(self, step: int) -> bool:
        """Whether this update was looked at and recorded, perhaps before an interruption."""


def train_watched(
    training: Training[Any], watcher: Watcher | None, *, open_draw: Callable[[int], Draw]
) -> tuple[dict[float, dict[str, torch.Tensor]], dict[str, Any]]:
    """Run the training to its end, or to where the ``watcher`` stops it.

    ``open_draw(steps)`` gives a function that draws from the network as it is. Gives the weight averages to keep,
    and what the run's header says of how they were chosen. Raises what `Training.run` and `Watch.best` raise.
    """
    if watcher is None:
        training.run()
        return {decay: training.learner.averaged(decay) for decay in training.settings.ema_decays}, {}
    watch = Watch(watcher, training, open_draw)
    if watch.resume():
        training.run(every=watcher.every, look=watch.look)
    return watch.best()


@dataclass
class Watch:
    """A watcher at work on a training."""

    watcher: Watcher
    training: Training[Any]
    open_draw: Callable[[int], Draw]

    def resume(self) -> bool:
        """Look where an interruption kept us from it; gives whether to go on."""
        step = self.training.step
        due = step > 0 and (step % self.watcher.every == 0 or step == self.training.settings.steps)
        if self.training.processes.agree(due and not self.watcher.seen(step)):
            return self.look()
        return not self.training.processes.agree(self.watcher.stopped)

    def look(self) -> bool:
        """Draw from the first weight average and have it judged, in the main process; gives whether to go on."""
        training, going = self.training, True
        if training.processes.main:
            average = training.learner.averaged(training.settings.ema_decays[0])
            with using(training.learner.network, average):
                glance = self.watcher.look(self.open_draw(self.watcher.steps), step=training.step)
            if glance.best:
                self._keep_best()
            self.watcher.record(glance)
            going = not glance.stop
        return training.processes.agree(going)

    def _keep_best(self) -> None:
        training = self.training
        tensors = {
            f"average-{decay}/{name}": tensor
            for decay in training.settings.ema_decays
            for name, tensor in training.learner.averaged(decay).items()
        }
        kept = Checkpoint(training.step, training.seconds, tensors)
        save_checkpoint(training.out, kept, identity=training.identity, room=BEST, keep=1)

    def best(self) -> tuple[dict[float, dict[str, torch.Tensor]], dict[str, Any]]:
        """The weight averages that were chosen, and what the run's header says of it.

        Where no look was within the budget these are the last ones; with a strict watcher that raises `RunError`.
        """
        training = self.training
        kept = load_newest_checkpoint(training.out, identity=training.identity, room=BEST)
        decays = training.settings.ema_decays
        if kept is None:
            if self.watcher.strict:
                raise RunError(
                    f"no weights of {training.out} were within the budget of copies, from the first look at step "
                    f"{self.watcher.every} on. Train on more subjects, watch more often, or raise the budget."
                )
            if training.processes.main:
                tell("No weights were within the budget of copies: the run keeps the last ones.")
            return {d: training.learner.averaged(d) for d in decays}, {
                "chosen_step": training.step,
                "within_budget": False,
            }
        names = list(training.learner.averaged(decays[0]))
        averages = {decay: {name: kept.tensors[f"average-{decay}/{name}"] for name in names} for decay in decays}
        return averages, {"chosen_step": kept.step, "within_budget": True}
