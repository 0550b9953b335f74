"""Training a generator against a discriminator on a cohort's train images, into a run folder.

Each update is one step of the generator and one of the discriminator, with the penalties at every few updates only
(lazy regularization, Karras et al. 2020, appendix B). See `unalike.generators.loop` for resuming and several processes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from unalike import folders
from unalike.devices import compute_in, resolve_precision
from unalike.engine import tell
from unalike.errors import SettingsError
from unalike.generators.data import TrainImages, refuse_single_patients
from unalike.generators.descent import WeightAverages, optimizer_state, restore_optimizer
from unalike.generators.loop import Training, batch_positions
from unalike.generators.processes import Processes
from unalike.generators.stylegan.augment import adapt_strength, apply_transforms, draw_transforms
from unalike.generators.stylegan.losses import (
    discriminator_loss,
    follow_path_length,
    generator_loss,
    path_lengths,
    r1_penalty,
)
from unalike.generators.stylegan.model import StyleganModel, one_hot, save_model
from unalike.generators.stylegan.network import (
    Discriminator,
    Generator,
    build_networks,
    choose_shape,
    count_parameters,
    describe_size,
)
from unalike.generators.stylegan.sample import StyleganSampler
from unalike.generators.stylegan.settings import StyleganDrawSettings, StyleganSettings
from unalike.generators.watching import Draw, Watcher, train_watched
from unalike.records import MASK
from unalike.seeds import generator_for, seed_for

ADAPT_EVERY = 4  # updates between two changes of the augmentation's strength ("Limited Data", section 3.1)
BETAS = (0.0, 0.99)
EPSILON = 1e-8
# Samples that vary less than this share of the training images are alike: a generator that draws one picture.
ALIKE = 0.2
SETTLED = 0.25  # share of the updates before which samples may well be alike: every generator begins with one picture


def train_stylegan(
    images: TrainImages,
    *,
    out: Path,
    settings: StyleganSettings,
    seed: int,
    processes: Processes,
    identity: str,
    watcher: Watcher | None = None,
) -> dict[str, Any]:
    """Train on ``images``, resuming from the newest checkpoint in ``out``; write ``out``/model.

    Returns what the run's header says about it. Ctrl-C leaves a checkpoint and raises on. With a ``watcher`` the
    model is that of the update it finds best.

    Raises `SettingsError` if the image size does not fit the networks, there are fewer images than a batch, or labels
    that were asked for are missing; `RunError` if a checkpoint cannot be written or nothing is left within the
    watcher's budget, and `NonFiniteLossError` if training diverges; the last good checkpoint then stays.
    """
    if len(images) < settings.batch_size:
        raise SettingsError(
            f"{len(images)} training images are fewer than a batch of {settings.batch_size}. Give a smaller "
            "--batch-size, or more subjects."
        )
    labels = _labels_of(images, settings)
    classes = tuple(sorted(set(labels)))
    height, width = images.cohort.size
    channels = len(images.cohort.channels)
    shape = choose_shape(settings, channels=channels, height=height, width=width, classes=len(classes))
    parameters = count_parameters(shape)
    if processes.main:
        tell(describe_size(settings, shape, parameters=parameters))
    generator, discriminator = build_networks(shape, seed=seed_for(seed, "weights"))
    learner = Adversaries(
        images, settings, generator, discriminator, labels=labels, classes=classes, seed=seed, processes=processes
    )
    training = Training(
        learner, settings, out=out, identity=identity, processes=processes, checkpoints=folders.CHECKPOINTS
    )
    averages, chosen = train_watched(training, watcher, open_draw=learner.open_draw)
    if processes.main:
        save_model(averages, shape=shape, labels=classes, place=out / folders.MODEL)
    processes.wait()
    return {
        "parameters": parameters[0],
        "discriminator_parameters": parameters[1],
        "precision": learner.precision,
        "device": str(processes.place),
        "processes": processes.count,
        "seconds": round(training.seconds, 1),
        "ema_decays": list(settings.ema_decays),
        "label_counts": {name: labels.count(name) for name in classes},
        "augment_strength": learner.strength,
        "diversity": learner.diversity,
        "holds_training_images": False,
        **chosen,
    }


def _labels_of(images: TrainImages, settings: StyleganSettings) -> list[str]:
    """The class of each training image; none without ``condition``."""
    if not settings.condition:
        return []
    labels: list[str] = images.cohort.column("label")[images.rows].tolist()
    if len(set(labels)) < 2 or "" in labels:
        raise SettingsError(
            "condition = 'label': the training images have no classes, or but one. Prepare the cohort with --labels."
        )
    refuse_single_patients(labels, images.cohort.column("subject")[images.rows].tolist())
    return labels


@dataclass(frozen=True)
class RealBatch:
    """A part of a batch in memory: ``images`` (b, C, H, W) in [−1, 1], and ``label`` (b, classes) where there are any.

    ``other`` (b, classes) are classes for generated images, drawn as often as they occur.
    """

    images: torch.Tensor
    label: torch.Tensor | None
    other: torch.Tensor | None
    part: slice


class Adversaries:
    """Generator and discriminator on their way; see `unalike.generators.loop.Learner`."""

    name = "stylegan"
    numbers = ("loss", "discriminator_loss", "real_sign", "diversity", "augment", "r1", "path_length")

    def __init__(
        self,
        images: TrainImages,
        settings: StyleganSettings,
        generator: Generator,
        discriminator: Discriminator,
        *,
        labels: Sequence[str],
        classes: Sequence[str],
        seed: int,
        processes: Processes,
    ) -> None:
        """State before the first update. ``labels`` are those of the images, of ``classes``; none without classes."""
        self.images, self.settings, self.seed, self.processes = images, settings, seed, processes
        self.place = processes.place
        self.precision = resolve_precision(settings.precision, self.place)
        self.generator, self.discriminator = generator.to(self.place), discriminator.to(self.place)
        self.classes = tuple(classes)
        self.targets = [self.classes.index(label) for label in labels]
        self.masks = [k for k, name in enumerate(images.scale.channels) if name == MASK]
        self.weights = {
            "generator/": dict(generator.named_parameters()),
            "discriminator/": dict(discriminator.named_parameters()),
        }
        self.averages = WeightAverages(self.weights["generator/"], settings.ema_decays)
        self.every = {
            "generator/": settings.path_every if settings.path_weight else 0,
            "discriminator/": settings.r1_every if settings.gamma else 0,
        }
        self.optimizers = {name: self._open_optimizer(name) for name in self.weights}
        # [mean path length, last R1, mean path length at the last penalty]
        self.penalties = torch.zeros(3, device=self.place)
        self.strength = settings.augment_strength if settings.augment != "none" else 0.0
        self.signs = torch.zeros((), device=self.place)
        self.diversity, self.told = 0.0, False
        self.compiled: tuple[Any, Any] | None = None

    def _open_optimizer(self, name: str) -> torch.optim.Optimizer:
        """Adam, its constants corrected for the steps that penalties take (Karras et al. 2020, appendix B)."""
        every = self.every[name]
        share = every / (every + 1) if every else 1.0
        return torch.optim.Adam(
            list(self.weights[name].values()),
            lr=self.settings.learning_rate * share,
            betas=(BETAS[0] ** share, BETAS[1] ** share),
            eps=EPSILON,
            fused=True,
        )

    @property
    def network(self) -> nn.Module:
        """The generator."""
        return self.generator

    def batch(self, n: int, part: slice) -> RealBatch:
        """Real images of update ``n``, by NumPy alone: read in another thread (see `DiffusionTask.batch`)."""
        size, count = self.settings.batch_size, len(self.images)
        positions = batch_positions(n, count, size, self.seed)[part]
        images = torch.from_numpy(self.images.scale.to_unit(self.images.read(positions)))
        label, other = None, None
        if self.classes:
            drawn = generator_for(self.seed, "labels", n).integers(count, size=size)[part]
            label = one_hot([self.targets[k] for k in positions], len(self.classes))
            other = one_hot([self.targets[k] for k in drawn], len(self.classes))
        return RealBatch(images, label, other, part)

    def prepare(self, n: int, parts: Sequence[RealBatch]) -> Callable[[], torch.Tensor]:
        """One step changes one network before the other is asked: all of it must be done once it is begun."""
        return lambda: self.update(n, [self._place(part) for part in parts])

    def _place(self, batch: RealBatch) -> RealBatch:
        moved = [
            None if tensor is None else tensor.to(self.place, non_blocking=True)
            for tensor in (batch.images, batch.label, batch.other)
        ]
        assert moved[0] is not None  # noqa: S101
        return RealBatch(moved[0], moved[1], moved[2], batch.part)

    def update(self, n: int, parts: Sequence[RealBatch]) -> torch.Tensor:
        """A step of the generator, one of the discriminator, and their penalties where they are due."""
        if self.compiled is None:
            compile_: Any = torch.compile if self.settings.compile else (lambda work: work)
            # What is differentiated twice cannot be compiled.
            self.compiled = compile_(self.generator.synthesize), compile_(self.discriminator)
        loss = self._step("generator/", [self._fool(n, part) for part in parts])
        if self.every["generator/"] and n % self.every["generator/"] == 0:
            (lengths,) = self._step("generator/", [self._straighten(n, part) for part in parts])
            self.penalties[0] = follow_path_length(self.penalties[0], lengths)
            self.penalties[2] = lengths
        told = self._step("discriminator/", [self._judge(n, part) for part in parts])
        if self.every["discriminator/"] and n % self.every["discriminator/"] == 0:
            (self.penalties[1],) = self._step("discriminator/", [self._smooth(n, part) for part in parts])
        self.averages.follow(n)
        strength = torch.tensor([self.strength], device=self.place)
        self._adapt(n, told[1])
        return torch.cat([loss, told, strength, self.penalties[1:]])

    def _step(self, name: str, works: Sequence[Callable[[], tuple[torch.Tensor, torch.Tensor]]]) -> torch.Tensor:
        """One step of Adam on the mean loss of all parts and processes; gives the mean of what the works tell.

        A work gives its loss, and what is to be told of it.
        """
        weights = list(self.weights[name].values())
        for other in self.weights:
            for weight in self.weights[other].values():
                weight.requires_grad_(other == name)
        self.optimizers[name].zero_grad(set_to_none=True)
        told = []
        for work in works:
            loss, said = work()
            (loss / len(works)).backward()  # type: ignore[no-untyped-call]
            told.append(said.detach())
        # A bias has no part in a penalty. Adam would pass it over and count fewer steps of it than `restore` does.
        gradients = [torch.zeros_like(weight) if weight.grad is None else weight.grad for weight in weights]
        for weight, gradient in zip(weights, gradients, strict=True):
            weight.grad = gradient
        if self.processes.count > 1:
            flat = self.processes.average(torch.cat([gradient.flatten() for gradient in gradients]))
            parts = torch.split(flat, [weight.numel() for weight in weights])
            for weight, part in zip(weights, parts, strict=True):
                weight.grad = part.view_as(weight).clone()
        self.optimizers[name].step()
        return self.processes.average(torch.stack(told).mean(dim=0))

    def _fool(self, n: int, part: RealBatch) -> Callable[[], tuple[torch.Tensor, torch.Tensor]]:
        """The generator's loss on images that it draws."""

        def work() -> tuple[torch.Tensor, torch.Tensor]:
            images = self._draw(n, part, "generator")
            loss = generator_loss(self._ask(images, n, part, "generator", label=part.other))
            return loss, loss[None]

        return work

    def _judge(self, n: int, part: RealBatch) -> Callable[[], tuple[torch.Tensor, torch.Tensor]]:
        """The discriminator's loss; told are loss, mean sign on real images, and how varied the drawn ones are."""

        def work() -> tuple[torch.Tensor, torch.Tensor]:
            with torch.no_grad():
                drawn = self._draw(n, part, "discriminator")
            fake = self._ask(drawn, n, part, "fake", label=part.other)
            real = self._ask(part.images, n, part, "real", label=part.label)
            loss = discriminator_loss(real, fake)
            varied = (drawn.var(dim=0, unbiased=False).mean() + EPSILON) / (
                part.images.var(dim=0, unbiased=False).mean() + EPSILON
            )
            return loss, torch.stack([loss.detach(), real.detach().sign().mean(), varied])

        return work

    def _smooth(self, n: int, part: RealBatch) -> Callable[[], tuple[torch.Tensor, torch.Tensor]]:
        """γ/2 E‖∇D(x)‖² at images x as the discriminator sees them, in float32, times the updates without it."""

        def work() -> tuple[torch.Tensor, torch.Tensor]:
            seen = self._change(part.images, n, part, "real")
            penalty = r1_penalty(self.discriminator, seen, part.label)
            return penalty * (self.settings.gamma / 2 * self.settings.r1_every), penalty[None]

        return work

    def _straighten(self, n: int, part: RealBatch) -> Callable[[], tuple[torch.Tensor, torch.Tensor]]:
        """(‖Jᵀy‖ − a)² on every other image, in float32, times the updates that went without it."""

        def work() -> tuple[torch.Tensor, torch.Tensor]:
            ws, noise = self._styles(n, part, "path")
            ws, noise = ws[::2], noise[::2]
            images = self.generator.synthesize(ws, noise)
            y = self._normal("path-noise", n, (*images.shape[1:],), part)[::2]
            lengths = path_lengths(images, ws, y)
            penalty = (lengths - self.penalties[0]).square().mean()
            return penalty * (self.settings.path_weight * self.settings.path_every), lengths.detach().mean()[None]

        return work

    def _styles(self, n: int, part: RealBatch, purpose: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Styles (b, layers, latent), some of two latents, and the noise of all layers (b, noise_count)."""
        shape = self.generator.shape
        z = self._normal(f"latents-{purpose}", n, (2, shape.latent), part)
        w = torch.stack([self.generator.mapping(z[:, k], part.other) for k in range(2)])
        random = generator_for(self.seed, f"mixing-{purpose}", n).random((self.settings.batch_size, 2))[part.part]
        # From layer `cut` on the second latent decides.
        mixed = random[:, 0] < self.settings.mixing
        cut = np.where(mixed, 1 + np.floor(random[:, 1] * (shape.layers - 1)), shape.layers)
        second = torch.from_numpy(np.arange(shape.layers) >= cut[:, None]).to(self.place)
        ws = torch.where(second[:, :, None], w[1][:, None], w[0][:, None])
        return ws, self._normal(f"noise-{purpose}", n, (shape.noise_count,), part)

    def _draw(self, n: int, part: RealBatch, purpose: str) -> torch.Tensor:
        """Images (b, C, H, W) of the generator as it is."""
        ws, noise = self._styles(n, part, purpose)
        assert self.compiled is not None  # noqa: S101
        with compute_in(self.precision, self.place):
            images: torch.Tensor = self.compiled[0](ws, noise)
        return images

    def _ask(
        self, images: torch.Tensor, n: int, part: RealBatch, purpose: str, *, label: torch.Tensor | None
    ) -> torch.Tensor:
        """What the discriminator says of these images (b,), which it sees changed."""
        assert self.compiled is not None  # noqa: S101
        with compute_in(self.precision, self.place):
            said: torch.Tensor = self.compiled[1](self._change(images, n, part, purpose), label)
        return said

    def _change(self, images: torch.Tensor, n: int, part: RealBatch, purpose: str) -> torch.Tensor:
        """The images as the discriminator sees them; alike for the same ``purpose`` of the same update."""
        if self.strength == 0:
            return images
        height, width = self.images.cohort.size
        random = generator_for(self.seed, f"changes-{purpose}", n)
        drawn = draw_transforms(self.settings.batch_size, strength=self.strength, random=random, square=height == width)
        return apply_transforms(images, drawn[part.part], masks=self.masks)

    def _normal(self, purpose: str, n: int, shape: tuple[int, ...], part: RealBatch) -> torch.Tensor:
        """(b, *shape) from N(0, 1): the part's share of what is drawn for the whole batch."""
        stream = torch.Generator(self.place).manual_seed(seed_for(self.seed, purpose, n))
        size = (self.settings.batch_size, *shape)
        return torch.randn(size, generator=stream, device=self.place)[part.part]

    def _adapt(self, n: int, sign: torch.Tensor) -> None:
        """Every few updates, a stronger or weaker augmentation; ``sign`` is the mean of sign(D(x)) of this update."""
        self.signs = self.signs + sign
        if (n + 1) % ADAPT_EVERY:
            return
        if self.settings.augment == "adaptive":
            self.strength = adapt_strength(
                self.strength,
                float(self.signs) / ADAPT_EVERY,
                images=ADAPT_EVERY * self.settings.batch_size,
                target=self.settings.augment_target,
                kimg=self.settings.augment_kimg,
            )
        self.signs = torch.zeros_like(self.signs)

    def rate(self, n: int) -> float:
        """The learning rate, always the same."""
        del n
        return self.settings.learning_rate

    def watch(self, entry: Mapping[str, Any]) -> str:
        """Say when the generator draws one picture over and over."""
        self.diversity = float(entry["diversity"])
        alike = self.diversity < ALIKE
        if alike and not self.told and entry["step"] >= SETTLED * self.settings.steps and self.processes.main:
            tell(
                f"The samples are alike at step {entry['step']}: they vary {self.diversity:.0%} as much as the "
                "training images (mode collapse). More --gamma, more subjects or a smaller --learning-rate may help."
            )
            self.told = True
        return "samples alike" if alike else ""

    def averaged(self, decay: float) -> dict[str, torch.Tensor]:
        """The generator's weight average with this decay."""
        return self.averages.named(decay)

    def state(self) -> dict[str, torch.Tensor]:
        """Both networks, both optimizers, the averages, and what the penalties and the augmentation have come to."""
        tensors = self.averages.state()
        for name, optimizer in self.optimizers.items():
            tensors |= optimizer_state(optimizer, self.weights[name], prefix=name)
        strength = torch.tensor([self.strength, self.diversity], dtype=torch.float64)
        return tensors | {"penalties": self.penalties.clone(), "signs": self.signs, "strength": strength}

    def restore(self, tensors: Mapping[str, torch.Tensor], step: int) -> None:
        """Go back to a `state`."""
        self.averages.restore(tensors)
        for name, optimizer in self.optimizers.items():
            every = self.every[name]
            taken = step + (-(-step // every) if every else 0)
            restore_optimizer(optimizer, self.weights[name], tensors, step=taken, prefix=name)
        self.penalties = tensors["penalties"].to(self.place)
        self.signs = tensors["signs"].to(self.place)
        self.strength, self.diversity = tensors["strength"].tolist()

    def open_draw(self, steps: int) -> Draw:
        """Draws from the generator as it is; there are no ``steps``."""
        del steps
        model = StyleganModel(
            network=self.generator,
            labels=self.classes,
            scale=self.images.scale,
            place=self.place,
            precision=self.precision,
        )
        counts = {name: self.targets.count(index) for index, name in enumerate(self.classes)}
        return StyleganSampler(model, StyleganDrawSettings(), label_counts=counts).draw
