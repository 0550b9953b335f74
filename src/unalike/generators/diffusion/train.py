"""Training: Algorithm 1 of Ho, Jain and Abbeel, "Denoising Diffusion Probabilistic Models" (2020).

Every random number of update n comes from a stream keyed by n, so that a resumed training equals an
uninterrupted one weight for weight (on a CPU, with as many threads).
"""

from __future__ import annotations

import math
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import DDPMPipeline
from torch.optim.swa_utils import get_ema_multi_avg_fn

from unalike import devices, folders
from unalike.engine import show_progress
from unalike.errors import NonFiniteLossError
from unalike.generators.checkpoints import (
    Checkpoint,
    append_log,
    hold_interrupts,
    load_newest_checkpoint,
    save_checkpoint,
)
from unalike.generators.data import TrainImages
from unalike.generators.diffusion.network import (
    build_network,
    build_scheduler,
    compute_in,
    place_network,
    resolve_precision,
)
from unalike.generators.diffusion.settings import DiffusionSettings
from unalike.records import IntArray
from unalike.seeds import generator_for, seed_for


def train_diffusion(
    images: TrainImages, *, out: Path, settings: DiffusionSettings, seed: int, device: str
) -> dict[str, Any]:
    """Train on ``images``, resuming from the newest checkpoint in ``out``; write ``out``/model.

    Returns what the run's header says about it. Ctrl-C leaves a checkpoint and raises on.

    Raises `SettingsError` if the image size does not fit the network, and `NonFiniteLossError` if training
    diverges; the last good checkpoint then stays.
    """
    place = devices.pick_device(device)
    precision = resolve_precision(settings.precision, place)
    scheduler = build_scheduler(settings)
    state = TrainState(images, settings, seed=seed, place=place)
    kept = load_newest_checkpoint(out)
    if kept is not None:
        state.restore(kept)
    # (loss, norm of the gradient) of each update since the last look; they stay on the device until then.
    unseen: list[torch.Tensor] = []
    began = looked = saved = time.monotonic()
    seconds_before = state.seconds
    text = f", resumed at step {state.step} of {settings.steps}" if state.step else ""
    with show_progress(f"train diffusion{text}", total=settings.steps - state.step, unit="steps") as progress:
        told = ""
        try:
            while state.step < settings.steps:
                n = state.step
                # x₀ ~ q(x₀), t ~ Uniform({0 … T−1}), ε ~ N(0, I)
                positions = batch_positions(n, len(images), settings.batch_size, seed)
                x_0 = torch.from_numpy(images.scale.to_unit(images.read(positions))).to(place)  # (B, C, H, W)
                stream = torch.Generator(place).manual_seed(seed_for(seed, "noise", n))
                t = torch.randint(settings.timesteps, (len(x_0),), generator=stream, device=place)
                epsilon = torch.randn(x_0.shape, generator=stream, device=place)

                # x_t = √ᾱ_t x₀ + √(1 − ᾱ_t) ε, and what the network should say of it
                x_t = scheduler.add_noise(x_0, epsilon, t)
                if settings.prediction == "v_prediction":
                    target = scheduler.get_velocity(x_0, epsilon, t)  # v = √ᾱ_t ε − √(1 − ᾱ_t) x₀
                else:
                    target = epsilon if settings.prediction == "epsilon" else x_0

                # ∇_θ ‖target − f_θ(x_t, t)‖²
                with compute_in(precision, place):
                    predicted = state.network(x_t, t).sample
                loss = F.mse_loss(predicted.float(), target)
                state.optimizer.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]
                norm = torch.nn.utils.clip_grad_norm_(state.weights, settings.gradient_clip)

                # AdamW step at this update's learning rate, then the weight average
                with hold_interrupts():
                    state.update(learning_rate(settings, n))
                    unseen.append(torch.stack([loss.detach(), norm]))

                now = time.monotonic()
                state.seconds = seconds_before + now - began
                finished = state.step == settings.steps
                save = finished or now - saved >= settings.checkpoint_every
                if save or len(unseen) >= settings.log_every:
                    told = state.look(unseen, out, now - looked)
                    unseen, looked = [], now
                if save:
                    save_checkpoint(out, state.checkpoint())
                    saved = time.monotonic()
                progress.advance(1, told)
        except KeyboardInterrupt:
            # Whatever was going on, the weights are those after a whole number of updates.
            if unseen:
                state.look(unseen, out, time.monotonic() - looked)
            save_checkpoint(out, state.checkpoint())
            raise
    save_pipeline(state, scheduler, out / folders.MODEL)
    return {
        "parameters": sum(weight.numel() for weight in state.weights),
        "precision": precision,
        "device": str(place),
        "seconds": round(state.seconds, 1),
        "holds_training_images": False,
    }


class TrainState:
    """All that an update changes: weights, optimizer, weight average, and how far it is."""

    def __init__(self, images: TrainImages, settings: DiffusionSettings, *, seed: int, place: torch.device) -> None:
        """State before the first update."""
        height, width = images.cohort.size
        network = build_network(
            settings,
            channels=len(images.scale.channels),
            height=height,
            width=width,
            seed=seed_for(seed, "weights"),
        )
        self.settings = settings
        self.network = place_network(network, place).train()
        self.names = [name for name, _ in self.network.named_parameters()]
        self.weights: list[torch.Tensor] = list(self.network.parameters())
        self.average = [weight.detach().clone() for weight in self.weights]
        self.optimizer = torch.optim.AdamW(
            self.weights, lr=settings.learning_rate, weight_decay=settings.weight_decay, fused=True
        )
        self.step = 0
        self.seconds = 0.0

    def update(self, rate: float) -> None:
        """One AdamW step from the gradients at hand, then one step of the weight average."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        decay = min(self.settings.ema_decay, (1 + self.step) / (10 + self.step))
        get_ema_multi_avg_fn(decay)(self.average, self.weights, None)  # type: ignore[no-untyped-call]
        self.step += 1

    def look(self, unseen: list[torch.Tensor], out: Path, seconds: float) -> str:
        """Log the updates since the last look; returns the text beside the progress bar.

        Raises `NonFiniteLossError` naming the first update whose loss or gradient is not finite.
        """
        numbers = torch.stack(unseen).tolist()  # (updates, 2), the one wait for the device
        first = self.step - len(numbers)
        for n, (loss, norm) in enumerate(numbers, start=first):
            if not (math.isfinite(loss) and math.isfinite(norm)):
                rate = learning_rate(self.settings, n)
                raise NonFiniteLossError(
                    f"training diverged at step {n + 1}: loss {loss}, gradient norm {norm}, learning rate "
                    f"{rate:.2g}. The last good checkpoint stays in {out / folders.CHECKPOINTS}. "
                    "Train again with a smaller learning_rate, into another folder."
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
        append_log(out, entry)
        return f"loss {loss:.4f}, {speed:.0f} images/s"

    def checkpoint(self) -> Checkpoint:
        """The state as tensors with names: weights, average, and both moments of the optimizer."""
        tensors = {}
        for name, weight, average in zip(self.names, self.weights, self.average, strict=True):
            moments = self.optimizer.state.get(weight, {})
            tensors[f"weights/{name}"], tensors[f"average/{name}"] = weight.detach(), average
            for moment in ("exp_avg", "exp_avg_sq"):
                tensors[f"{moment}/{name}"] = moments.get(moment, torch.zeros_like(weight))
        return Checkpoint(self.step, self.seconds, tensors)

    @torch.no_grad()
    def restore(self, kept: Checkpoint) -> None:
        """Go back to ``kept``."""
        for name, weight, average in zip(self.names, self.weights, self.average, strict=True):
            weight.copy_(kept.tensors[f"weights/{name}"])
            average.copy_(kept.tensors[f"average/{name}"])
            self.optimizer.state[weight] = {
                "step": torch.tensor(float(kept.step), device=weight.device),
                **{
                    moment: torch.zeros_like(weight).copy_(kept.tensors[f"{moment}/{name}"])
                    for moment in ("exp_avg", "exp_avg_sq")
                },
            }
        self.step, self.seconds = kept.step, kept.seconds


def learning_rate(settings: DiffusionSettings, n: int) -> float:
    """Learning rate of update n (from 0): a linear rise in the warm-up times a linear fall to 0."""
    rise = min(1.0, (n + 1) / settings.warmup) if settings.warmup else 1.0
    return settings.learning_rate * rise * (1 - n / settings.steps)


def batch_positions(n: int, count: int, batch_size: int, seed: int) -> IntArray:
    """Positions (batch_size,) among ``count`` images of batch n, the n-th piece of endless shuffles.

    Each epoch is a permutation of its own stream, so a batch is known without those before it.
    """
    places = np.arange(n * batch_size, (n + 1) * batch_size)
    epochs, within = np.divmod(places, count)
    orders = {e: generator_for(seed, "order", int(e)).permutation(count) for e in np.unique(epochs)}
    return np.array([orders[e][place] for e, place in zip(epochs, within, strict=True)], dtype=np.int64)


def save_pipeline(state: TrainState, scheduler: Any, place: Path) -> None:
    """Write a folder that ``diffusers.DDPMPipeline.from_pretrained`` loads, holding the weight average."""
    with torch.no_grad():
        for weight, average in zip(state.weights, state.average, strict=True):
            weight.copy_(average)
    temporary = place.with_suffix(".partial")
    shutil.rmtree(temporary, ignore_errors=True)
    network = state.network.to(memory_format=torch.contiguous_format).train(False)
    DDPMPipeline(unet=network, scheduler=scheduler).save_pretrained(temporary, safe_serialization=True)
    shutil.rmtree(place, ignore_errors=True)
    temporary.rename(place)
