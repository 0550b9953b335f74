"""One network trained by gradient descent: AdamW, clipped gradients, weight averages. Diffusion and autoencoders."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from unalike.generators.processes import Processes
from unalike.generators.settings import TrainingSettings
from unalike.seeds import seed_for

Batch = TypeVar("Batch")
MOMENTS = ("exp_avg", "exp_avg_sq")  # what Adam keeps of each weight


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


class Descent(Generic[Batch]):
    """A `Task` on its way; see `unalike.generators.loop.Learner`."""

    numbers = ("loss", "gradient_norm")

    def __init__(self, task: Task[Batch], settings: TrainingSettings, *, seed: int, processes: Processes) -> None:
        """State before the first update."""
        self.task, self.settings, self.seed, self.processes = task, settings, seed, processes
        self.place = processes.place
        self.network = task.network.to(self.place).train()
        # What is frozen, a base model around a few new weights, is neither trained nor kept.
        self.weights = {name: weight for name, weight in self.network.named_parameters() if weight.requires_grad}
        self.averages = WeightAverages(self.weights, settings.ema_decays)
        self.optimizer = torch.optim.AdamW(
            list(self.weights.values()), lr=settings.learning_rate, weight_decay=settings.weight_decay, fused=True
        )
        self.wrapped: Any = None

    @property
    def name(self) -> str:
        """What is trained."""
        return self.task.name

    def batch(self, n: int, part: slice) -> Batch:
        """What update ``n`` needs for these places of its batch."""
        return self.task.batch(n, part)

    def prepare(self, n: int, parts: Sequence[Batch]) -> Callable[[], torch.Tensor]:
        """The gradient of update ``n``, and the step that follows from it."""
        loss, norm = self._gradient(n, parts)

        def update() -> torch.Tensor:
            self.update(n)
            return torch.stack([loss, norm])

        return update

    def _gradient(self, n: int, parts: Sequence[Batch]) -> tuple[torch.Tensor, torch.Tensor]:
        """∇_θ of the mean loss over all parts and processes; gives the loss and the norm of the gradient."""
        if self.wrapped is None:
            compiled: Any = torch.compile(self.network) if self.settings.compile else self.network
            self.wrapped = self.processes.accelerator.prepare_model(compiled, device_placement=False)
        self.optimizer.zero_grad(set_to_none=True)
        accelerator = self.processes.accelerator
        total = torch.zeros((), device=self.place)
        # What a layer draws by itself (dropout) is keyed by the update and the process as well.
        with torch.random.fork_rng(devices=[self.place] if self.place.type == "cuda" else []):
            torch.manual_seed(seed_for(self.seed, "layers", n * self.processes.count + self.processes.rank))
            for index, part in enumerate(parts):
                last = index == len(parts) - 1
                with contextlib.nullcontext() if last else accelerator.no_sync(self.wrapped):
                    loss = self.task.loss(self.wrapped, part) / len(parts)
                    accelerator.backward(loss)
                total += loss.detach()
        norm = torch.nn.utils.clip_grad_norm_(self.weights.values(), self.settings.gradient_clip)
        return total, norm

    def update(self, n: int) -> None:
        """One AdamW step from the gradients at hand, then one step of each weight average."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate(n)
        self.optimizer.step()
        self.averages.follow(n)

    def rate(self, n: int) -> float:
        """Learning rate of update n (from 0): a linear rise in the warm-up, then a linear fall to 0, or none."""
        settings = self.settings
        rise = min(1.0, (n + 1) / settings.warmup) if settings.warmup else 1.0
        fall = 1 - n / settings.steps if settings.decay == "linear" else 1.0
        return settings.learning_rate * rise * fall

    def watch(self, entry: Mapping[str, Any]) -> str:
        """Nothing but the loss needs watching."""
        del entry
        return ""

    def averaged(self, decay: float) -> dict[str, torch.Tensor]:
        """The weight average with this decay, by the names of the network's weights."""
        return self.averages.named(decay)

    def state(self) -> dict[str, torch.Tensor]:
        """Weights, averages, and both moments of the optimizer."""
        return self.averages.state() | optimizer_state(self.optimizer, self.weights)

    def restore(self, tensors: Mapping[str, torch.Tensor], step: int) -> None:
        """Go back to a `state`."""
        self.averages.restore(tensors)
        restore_optimizer(self.optimizer, self.weights, tensors, step=step)


class WeightAverages:
    """Moving averages of weights, one for each decay; a step follows each update."""

    def __init__(self, weights: Mapping[str, torch.Tensor], decays: Sequence[float]) -> None:
        """Averages that begin at ``weights``, which they go on to follow."""
        self.weights = weights
        self.held = {decay: [weight.detach().clone() for weight in weights.values()] for decay in decays}

    def follow(self, n: int) -> None:
        """One step after update n."""
        # A fixed decay would keep the noise of the first weights for long; see Karras et al. (2020), appendix.
        warm = (1 + n) / (10 + n)
        for decay, average in self.held.items():
            step: Any = get_ema_multi_avg_fn(min(decay, warm))  # type: ignore[no-untyped-call]
            step(average, list(self.weights.values()), None)

    def named(self, decay: float) -> dict[str, torch.Tensor]:
        """The average with this decay."""
        return dict(zip(self.weights, self.held[decay], strict=True))

    def state(self) -> dict[str, torch.Tensor]:
        """All averages."""
        return {f"average-{decay}/{name}": a for decay in self.held for name, a in self.named(decay).items()}

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Go back to a `state`."""
        for decay in self.held:
            for name, average in self.named(decay).items():
                average.copy_(tensors[f"average-{decay}/{name}"])


def optimizer_state(
    optimizer: torch.optim.Optimizer, weights: Mapping[str, torch.Tensor], *, prefix: str = ""
) -> dict[str, torch.Tensor]:
    """Weights and both moments of Adam, by name."""
    tensors = {}
    for name, weight in weights.items():
        tensors[f"{prefix}weights/{name}"] = weight.detach()
        kept = optimizer.state.get(weight, {})
        for moment in MOMENTS:
            tensors[f"{prefix}{moment}/{name}"] = kept.get(moment, torch.zeros_like(weight))
    return tensors


@torch.no_grad()
def restore_optimizer(
    optimizer: torch.optim.Optimizer,
    weights: Mapping[str, torch.Tensor],
    tensors: Mapping[str, torch.Tensor],
    *,
    step: int,
    prefix: str = "",
) -> None:
    """Weights and moments as `optimizer_state` gave them, after ``step`` steps of the optimizer."""
    for name, weight in weights.items():
        weight.copy_(tensors[f"{prefix}weights/{name}"])
        optimizer.state[weight] = {
            "step": torch.tensor(float(step), device=weight.device),
            **{moment: torch.zeros_like(weight).copy_(tensors[f"{prefix}{moment}/{name}"]) for moment in MOMENTS},
        }
