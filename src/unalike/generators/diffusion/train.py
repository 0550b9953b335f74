"""Training: Algorithm 1 of Ho, Jain and Abbeel, "Denoising Diffusion Probabilistic Models" (2020)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from unalike import folders
from unalike.devices import compute_in, resolve_precision
from unalike.engine import tell
from unalike.errors import SettingsError
from unalike.generators.data import TrainImages, refuse_single_patients
from unalike.generators.descent import Descent
from unalike.generators.diffusion.augment import Changes, apply_changes, draw_changes
from unalike.generators.diffusion.autoencoder import LatentCodec, latent_size, train_autoencoder
from unalike.generators.diffusion.conditions import LABEL, Asked, Conditions, ask_each, find_conditions, hide_conditions
from unalike.generators.diffusion.model import DiffusionModel, drawn_channels, save_model
from unalike.generators.diffusion.network import (
    Denoiser,
    build_network,
    choose_shape,
    describe_size,
    place_network,
)
from unalike.generators.diffusion.noise import add_noise, build_scheduler, diffusion_loss
from unalike.generators.diffusion.sample import DiffusionSampler, Given
from unalike.generators.diffusion.settings import DiffusionSettings, SampleSettings
from unalike.generators.loop import Training, batch_positions
from unalike.generators.processes import Processes
from unalike.generators.watching import Draw, Watcher, train_watched
from unalike.records import MASK
from unalike.seeds import generator_for, seed_for

AT_ONCE = 256  # images encoded at once, or whose masks are used


def train_diffusion(
    images: TrainImages,
    *,
    out: Path,
    settings: DiffusionSettings,
    seed: int,
    processes: Processes,
    identity: str,
    watcher: Watcher | None = None,
) -> dict[str, Any]:
    """Train on ``images``, resuming from the newest checkpoint in ``out``; write ``out``/model.

    Returns what the run's header says about it. Ctrl-C leaves a checkpoint and raises on. With a ``watcher`` the
    model is that of the update it finds best.

    Raises `SettingsError` if the image size does not fit the network or the conditions the images; `RunError` if
    a checkpoint cannot be written or nothing is left within the watcher's budget, and `NonFiniteLossError` if
    training diverges; the last good checkpoint then stays.
    """
    conditions = conditions_of(images, settings)
    drawn = drawn_channels(images.scale, conditions)
    height, width = images.cohort.size
    codec: LatentCodec | None = None
    about_codec: dict[str, Any] = {}
    if settings.latent:
        latents = latent_size(height, width)
        choose_shape(settings, height=latents[0], width=latents[1])  # says now what does not fit
        codec, about_codec = train_autoencoder(
            images, drawn, out=out, settings=settings, seed=seed, processes=processes, identity=identity
        )
        height, width = latents
    network = build_network(
        settings,
        channels=settings.latent or len(drawn),
        height=height,
        width=width,
        seed=seed_for(seed, "weights"),
        conditions=conditions,
    )
    parameters = sum(weight.numel() for weight in network.parameters())
    if processes.main:
        size = {"channels": settings.latent or len(drawn), "height": height, "width": width}
        tell(describe_size(settings, **size, parameters=parameters))
    task = DiffusionTask(
        images=images,
        settings=settings,
        conditions=conditions,
        codec=codec,
        scheduler=scheduler_of(settings),
        network=place_network(network, processes.place),
        place=processes.place,
        precision=resolve_precision(settings.precision, processes.place),
        seed=seed,
    )
    training = Training(
        Descent(task, settings, seed=seed, processes=processes),
        settings,
        out=out,
        identity=identity,
        processes=processes,
        checkpoints=folders.CHECKPOINTS,
    )
    if watcher is not None:
        task.open_draw(watcher.steps)  # says now what does not fit
    averages, chosen = train_watched(training, watcher, open_draw=task.open_draw)
    if processes.main:
        place = out / folders.MODEL
        save_model(network, averages, scheduler=task.scheduler, conditions=conditions, codec=codec, place=place)
    processes.wait()
    return {
        "parameters": parameters,
        "precision": task.precision,
        "device": str(processes.place),
        "processes": processes.count,
        "seconds": round(training.seconds, 1),
        "ema_decays": list(settings.ema_decays),
        "conditions": conditions.to_content(),
        "label_counts": count_labels(images, conditions),
        "guidable": settings.condition_dropout > 0,
        "holds_training_images": False,
        **about_codec,
        **chosen,
    }


def scheduler_of(settings: DiffusionSettings) -> Any:
    """The noise schedule of these settings."""
    return build_scheduler(
        schedule=settings.schedule,
        timesteps=settings.timesteps,
        prediction=settings.prediction,
        zero_terminal_snr=settings.zero_terminal_snr,
        learned_variance=settings.learned_variance,
    )


def conditions_of(images: TrainImages, settings: DiffusionSettings) -> Conditions:
    """What the network can be asked for, from the records of the training images."""
    plain = [name for name in settings.condition if name not in (LABEL, MASK)]
    attributes = images.attributes() if plain else []
    conditions = find_conditions(
        settings.condition,
        labels=images.cohort.column("label")[images.rows].tolist(),
        attributes=attributes,
        mask=MASK in images.scale.channels and len(images.scale.channels) > 1,
        augment=settings.augment > 0,
    )
    labels = images.cohort.column("label")[images.rows].tolist()
    subjects = images.cohort.column("subject")[images.rows].tolist()
    if conditions.labels:
        refuse_single_patients(labels, subjects)
    refuse_single_values(conditions, attributes or [{}] * len(images), subjects)
    return conditions


def refuse_single_values(
    conditions: Conditions, attributes: Sequence[Mapping[str, str]], subjects: Sequence[str]
) -> None:
    """Raise `SettingsError` if a value that samples could be asked for is one subject's alone.

    ``attributes`` and ``subjects`` are those of the training images, an entry each. Numbers are left: they are asked
    for on a scale that all patients share.
    """
    for attribute in conditions.attributes:
        for value in attribute.values:
            pairs = zip(subjects, attributes, strict=True)
            owners = {subject for subject, entry in pairs if entry.get(attribute.name) == value}
            if len(owners) == 1:
                raise SettingsError(
                    f"value '{value}' of attribute '{attribute.name}' belongs to one patient: asking for it would be "
                    "asking for that patient. Merge rare values in the cohort, or leave the attribute out."
                )


def count_labels(images: TrainImages, conditions: Conditions) -> dict[str, int]:
    """How many training images there are of each class that can be asked for."""
    labels = images.cohort.column("label")[images.rows].tolist()
    return {label: labels.count(label) for label in conditions.labels}


@dataclass(frozen=True)
class DiffusionBatch:
    """A part of a batch in memory: ``images`` (b, C, H, W) in [−1, 1], all channels, or None where their ``latents``
    (b, c, h, w) are known and no mask is needed; what is done to them, what they are, and their times ``t`` (b,)."""

    images: torch.Tensor | None
    latents: torch.Tensor | None
    changes: Changes | None
    asked: Asked | None
    t: torch.Tensor
    n: int
    part: slice


@dataclass
class DiffusionTask:
    """What update n works on, and its loss."""

    images: TrainImages
    settings: DiffusionSettings
    conditions: Conditions
    codec: LatentCodec | None
    scheduler: Any
    network: Denoiser
    place: torch.device
    precision: str
    seed: int
    name: str = "diffusion"

    def __post_init__(self) -> None:
        """Look up what all batches need: what each image is, and, unless images are changed, its latent."""
        rows, cohort = self.images.rows, self.images.cohort
        self.drawn = drawn_channels(self.images.scale, self.conditions)
        self.labels: Sequence[str] = cohort.column("label")[rows].tolist()
        self.attributes = self.images.attributes() if self.conditions.attributes else [{}] * len(rows)
        self.latents = self._encode_all() if self.codec is not None and not self.settings.augment else None

    def _encode_all(self) -> npt.NDArray[np.float32]:
        """Latents (N, c, h, w) of all training images."""
        assert self.codec is not None  # noqa: S101
        places = np.arange(len(self.images))
        parts = []
        for begin in range(0, len(places), AT_ONCE):
            images = torch.from_numpy(self._read(places[begin : begin + AT_ONCE]))
            parts.append(self.codec.encode(images[:, self.drawn].to(self.place)).cpu().numpy())
        return np.concatenate(parts)

    def _read(self, positions: Any) -> npt.NDArray[np.float32]:
        """All channels (b, C, H, W) in [−1, 1] of these training images."""
        return self.images.scale.to_unit(self.images.read(positions))

    def batch(self, n: int, part: slice) -> DiffusionBatch:
        """x₀ ~ q(x₀), t ~ Uniform({0 … T−1}); every number is the global batch's, of which this is a part.

        Read in another thread, and by NumPy alone: an operation of torch there would wake a second team of threads,
        which waits busily between batches on the cores that train (seen: a fifth of the speed).
        """
        size = self.settings.batch_size
        positions = batch_positions(n, len(self.images), size, self.seed)[part]
        changes: Changes | None = None
        if self.settings.augment:
            random = generator_for(self.seed, "changes", n)
            changes = draw_changes(size, probability=self.settings.augment, random=random)
            changes = Changes(changes.matrices[part], changes.labels[part])
        latents = None if self.latents is None else torch.from_numpy(self.latents[positions])
        images = torch.from_numpy(self._read(positions)) if latents is None or self.conditions.mask else None
        t = generator_for(self.seed, "times", n).integers(self.settings.timesteps, size=size)[part]
        asked = self._asked(n, part, positions, changes)
        return DiffusionBatch(images, latents, changes, asked, torch.from_numpy(t), n, part)

    def _asked(self, n: int, part: slice, positions: Any, changes: Changes | None) -> Asked | None:
        """What these images are, but for their mask; for some hidden, so that the network learns to do without."""
        if not (self.conditions.vector or self.conditions.mask):
            return None
        labels = [self.labels[k] for k in positions]
        asked = ask_each(self.conditions, labels, [self.attributes[k] for k in positions])
        if self.settings.condition_dropout:
            # Whether an image loses its condition must not depend on how the batch is shared.
            lost = generator_for(self.seed, "hidden", n).random(self.settings.batch_size)[part]
            asked = hide_conditions(asked, lost < self.settings.condition_dropout)
        return asked if changes is None else dataclasses.replace(asked, augment=changes.labels)

    def _take_in(self, batch: DiffusionBatch) -> tuple[torch.Tensor, Asked | None]:
        """x_0 of a batch, and what its images are, on the device; images are changed and encoded there."""
        images = None if batch.images is None else batch.images.to(self.place, non_blocking=True)
        channels = self.images.scale.channels
        if images is not None and batch.changes is not None:
            nearest = [k for k, name in enumerate(channels) if name == MASK]
            images = apply_changes(images, batch.changes, nearest=nearest)
        if batch.latents is not None:
            x_0 = batch.latents.to(self.place, non_blocking=True)
        else:
            assert images is not None  # noqa: S101
            x_0 = images[:, self.drawn]
            x_0 = x_0 if self.codec is None else self.codec.encode(x_0)
        asked = None if batch.asked is None else batch.asked.to(self.place)
        if asked is not None and images is not None and self.conditions.mask:
            place = channels.index(MASK)
            asked = dataclasses.replace(asked, mask=images[:, place : place + 1])
        return x_0, asked

    def loss(self, network: nn.Module, batch: DiffusionBatch) -> torch.Tensor:
        """E ‖target − f_θ(√ᾱ_t x₀ + √(1 − ᾱ_t) ε, t)‖², ε ~ N(0, I), a mean over the part's images."""
        x_0, asked = self._take_in(batch)
        t = batch.t.to(self.place, non_blocking=True)
        stream = torch.Generator(self.place).manual_seed(seed_for(self.seed, "noise", batch.n))
        shape = (self.settings.batch_size, *x_0.shape[1:])
        epsilon = torch.randn(shape, generator=stream, device=self.place)[batch.part]
        x_t = add_noise(x_0, epsilon, t, self.scheduler)
        with compute_in(self.precision, self.place):
            output = network(x_t, t, asked)
        return diffusion_loss(
            output, x_0=x_0, epsilon=epsilon, x_t=x_t, t=t, scheduler=self.scheduler, gamma=self.settings.min_snr
        ).mean()

    def open_draw(self, steps: int) -> Draw:
        """Draws from the network as it is, in so many steps."""
        counts = count_labels(self.images, self.conditions)
        settings = SampleSettings(steps=steps, sampler="dpm++")
        return DiffusionSampler(self.model, settings, given=self._masks(), label_counts=counts).draw

    def _masks(self) -> Given | None:
        """Masks of training images, for a network that draws nothing without one; at most `AT_ONCE`."""
        if not self.conditions.mask:
            return None
        positions = np.unique(np.linspace(0, len(self.images) - 1, AT_ONCE).astype(np.int64))
        place = self.images.scale.channels.index(MASK)
        return Given(masks=self.images.read(positions)[:, place : place + 1])

    @property
    def model(self) -> DiffusionModel:
        """The network as it is now, for those who draw from it."""
        return DiffusionModel(
            network=self.network,
            scheduler=self.scheduler,
            conditions=self.conditions,
            codec=self.codec,
            scale=self.images.scale,
            place=self.place,
            precision=self.precision,
        )
