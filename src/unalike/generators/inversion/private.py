"""Differentially private learning of a concept: what is learned hardly depends on any one patient.

DP-SGD (Abadi et al. 2016) with patients as the unit, not images: each patient takes part in an update with the same
small probability, independently, with one image; its gradient is clipped, the sum gets normal noise. Whatever is made
of the vectors afterwards, samples and releases included, stays as private. An embedding is small enough for it: the
norm of the noise grows with the root of the number of weights.
"""

from __future__ import annotations

import secrets
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from unalike.errors import SettingsError
from unalike.generators.descent import Descent
from unalike.generators.inversion.settings import InversionSettings
from unalike.generators.processes import Processes
from unalike.seeds import generator_for, seed_for

DELTA_SHARE = 0.1  # δ, the chance that the promise fails, is this over the number of patients


class PrivateDescent(Descent[Any]):
    """`Descent` whose gradient is private; its task is an `InversionTask`."""

    def __init__(self, task: Any, settings: InversionSettings, *, seed: int, processes: Processes) -> None:
        """State before the first update. Raises `SettingsError` for several processes."""
        if processes.count > 1:
            raise SettingsError("private_noise works in one process: leave accelerate launch out.")
        super().__init__(task, settings, seed=seed, processes=processes)
        self.private = settings
        self.work: Any = task
        self.secret = draw_secret()

    def batch(self, n: int, part: slice) -> Any:
        """One image of each patient who takes part in update ``n``; there is but one part."""
        del part
        random = generator_for(self.secret, "patients", n)
        subjects = len(self.work.subjects)
        there = np.flatnonzero(random.random(subjects) < sampling_rate(self.private, subjects=subjects))
        positions = [int(random.choice(np.flatnonzero(self.work.owners == subject))) for subject in there]
        t = random.integers(self.work.levels, size=len(positions))
        return [self.work.take([k], t[i : i + 1], n, slice(i, i + 1)) for i, k in enumerate(positions)]

    def _gradient(self, n: int, parts: Sequence[Any]) -> tuple[torch.Tensor, torch.Tensor]:
        """Σ_i clip(∇_i, C) + N(0, (σ C)²), over the expected number of patients; gives mean loss and the norm."""
        weights, settings = list(self.weights.values()), self.private
        total = [torch.zeros_like(weight) for weight in weights]
        losses = [torch.zeros((), device=self.place)]
        for image in parts[0]:
            number = n * 2**20 + image.part.start
            stream = torch.Generator(self.place).manual_seed(seed_for(self.secret, "noise", number))
            epsilon = torch.randn(image.latents.shape, generator=stream, device=self.place)
            loss = self.work.errors(self.network, image, epsilon).sum()
            gradients = torch.autograd.grad(loss, weights)
            norm = torch.stack([gradient.square().sum() for gradient in gradients]).sum().sqrt()
            share = (settings.private_clip / norm.clamp(min=settings.private_clip)).nan_to_num()
            for sum_, gradient in zip(total, gradients, strict=True):
                sum_ += share * gradient
            losses.append(loss.detach())
        stream = torch.Generator(self.place).manual_seed(seed_for(self.secret, "private", n))
        for weight, sum_ in zip(weights, total, strict=True):
            noise = torch.randn(sum_.shape, generator=stream, device=self.place)
            weight.grad = (sum_ + settings.private_noise * settings.private_clip * noise) / settings.batch_size
        norms = torch.stack([weight.grad.square().sum() for weight in weights if weight.grad is not None])
        return torch.stack(losses).sum() / max(1, len(parts[0])), norms.sum().sqrt()

    def state(self) -> dict[str, torch.Tensor]:
        """`Descent.state`, and the secret, so that a resumed training draws the same noise and no new one."""
        return super().state() | {"secret": torch.tensor([self.secret])}

    def restore(self, tensors: Mapping[str, torch.Tensor], step: int) -> None:
        """Go back to a `state`."""
        super().restore(tensors, step)
        self.secret = int(tensors["secret"])


def draw_secret() -> int:
    """A number that nobody knows: whoever knew the noise, or who took part when, could take it out again.

    So this alone of all randomness does not follow from the seed. It lies in the checkpoints, which do not outlive the
    training.
    """
    return secrets.randbits(62)


def sampling_rate(settings: InversionSettings, *, subjects: int) -> float:
    """The probability with which a patient takes part in an update: batch_size over patients.

    Raises `SettingsError` if there are fewer patients than that.
    """
    if settings.batch_size > subjects:
        raise SettingsError(f"batch_size = {settings.batch_size}: with private_noise at most the {subjects} patients.")
    return settings.batch_size / subjects


def account(settings: InversionSettings, *, subjects: int) -> dict[str, Any]:
    """(ε, δ) of the whole training for one patient, by Opacus's accountant of Rényi differential privacy."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about optional parts of Opacus
        from opacus.accountants import RDPAccountant  # type: ignore[import-untyped]

        accountant: Any = RDPAccountant()
        rate, delta = sampling_rate(settings, subjects=subjects), DELTA_SHARE / subjects
        accountant.history = [(settings.private_noise, rate, settings.steps)]
        epsilon = float(accountant.get_epsilon(delta=delta))
    return {
        "epsilon": epsilon,
        "delta": delta,
        "unit": "patient",
        "sampling_rate": rate,
        "noise_multiplier": settings.private_noise,
        "clip": settings.private_clip,
        "steps": settings.steps,
    }
