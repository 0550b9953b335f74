"""Teaching a frozen text-to-image base a concept on a cohort's train images, into a run folder.

Latents are computed once; the base's autoencoder then leaves memory until samples are drawn. The loss is the base's own
(noise or velocity prediction at a random noise level); see `unalike.generators.descent` for the update.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from unalike import folders
from unalike.engine import Progress, show_progress, tell
from unalike.errors import SettingsError
from unalike.generators.data import TrainImages, refuse_single_patients
from unalike.generators.descent import Descent
from unalike.generators.diffusion.noise import add_noise, alpha_bars, target_of
from unalike.generators.inversion.base import BaseModel, open_base, without_vae
from unalike.generators.inversion.concept import Additions, Concept, begin_vectors
from unalike.generators.inversion.model import InversionModel, save_model
from unalike.generators.inversion.pixels import ChannelMapping, choose_mapping, resize_to
from unalike.generators.inversion.private import PrivateDescent, account
from unalike.generators.inversion.sample import InversionSampler
from unalike.generators.inversion.settings import InversionDrawSettings, InversionSettings
from unalike.generators.loop import Training, batch_positions
from unalike.generators.processes import Processes
from unalike.generators.watching import Draw, Watcher, train_watched
from unalike.records import FloatArray
from unalike.seeds import generator_for, seed_for

AT_ONCE = 2**18  # pixels encoded at once, one image of 512 × 512: more would set the peak of memory


def train_inversion(
    images: TrainImages,
    *,
    out: Path,
    settings: InversionSettings,
    seed: int,
    processes: Processes,
    identity: str,
    watcher: Watcher | None = None,
) -> dict[str, Any]:
    """Learn a concept from ``images``, resuming from the newest checkpoint in ``out``; write ``out``/model.

    Returns what the run's header says about it. Ctrl-C leaves a checkpoint and raises on. With a ``watcher`` the
    model is that of the update it finds best.

    Raises `SettingsError` for a base, token or number of vectors that does not fit, or channels that are no colours;
    `FolderError` if the base cannot be read; `RunError` and `NonFiniteLossError` as `Training.run`.
    """
    if settings.private_noise and watcher is not None:
        raise SettingsError("watch: a choice among looks at patients is not private. Leave it or private_noise out.")
    if not settings.base:
        raise SettingsError("base = '': give --base, a folder with Stable Diffusion 1.x or 2.x in diffusers format.")
    mapping = choose_mapping(images.scale.channels, images.scale.levels)
    refuse_left_out(mapping)
    labels, names = name_tokens(images, settings)
    config = settings.base_config or None
    base = open_base(settings.base, device=str(processes.place), precision=settings.precision, config=config)
    side = settings.resolution or max(base.native_size)
    base.latent_shape(side, side)  # says now what sampling would say after the training
    latents = encode_all(images, base, mapping, side=side, processes=processes)
    if watcher is None:
        base = without_vae(base)
    if settings.gradient_checkpointing:
        base.unet.enable_gradient_checkpointing()
    prompts = [settings.template.replace("{}", name) for name in names]
    network: Concept | Additions
    if settings.method == "lora":
        network = Additions(base, rank=settings.rank, prompts=prompts, seed=seed)
    else:
        count, words = settings.vectors, settings.initialize
        network = Concept(base, begin_vectors(base, names, count=count, words=words, seed=seed), prompts)
    task = InversionTask(images, latents, settings, base, network, mapping, labels, side, seed)
    learned = sum(weight.numel() for weight in network.parameters() if weight.requires_grad)
    if processes.main:
        tell(describe_size(settings, base, names=names, learned=learned, mapping=mapping))
    descent = PrivateDescent if settings.private_noise else Descent
    learner = descent(task, settings, seed=seed, processes=processes)
    training = Training(
        learner, settings, out=out, identity=identity, processes=processes, checkpoints=folders.CHECKPOINTS
    )
    averages, chosen = train_watched(training, watcher, open_draw=task.open_draw)
    if processes.main:
        save_model(network, averages, cohort=images.cohort.digest, steps=settings.steps, place=out / folders.MODEL)
    processes.wait()
    about: dict[str, Any] = {
        "parameters": learned,
        "precision": base.precision,
        "device": str(processes.place),
        "processes": processes.count,
        "seconds": round(training.seconds, 1),
        "ema_decays": list(settings.ema_decays),
        "base": settings.base,
        "base_config": settings.base_config,
        "base_identity": base.identity,
        "method": settings.method,
        "tokens": list(names),
        "prompts": prompts,
        "resolution": task.side,
        "label_counts": {name: labels.count(index) for index, name in enumerate(sorted_labels(images, settings))},
        "holds_training_images": False,
        **chosen,
    }
    if settings.private_noise:
        if processes.main:
            shutil.rmtree(out / folders.CHECKPOINTS)  # they hold what the noise was
        about["privacy"] = account(settings, subjects=len(task.subjects))
    if processes.place.type == "cuda":
        about["peak_bytes"] = int(torch.cuda.max_memory_allocated(processes.place))
        tell(f"peak memory of the graphics card: {about['peak_bytes'] / 2**30:.2f} GiB")
    return about


@torch.no_grad()
def encode_all(
    images: TrainImages, base: BaseModel, mapping: ChannelMapping, *, side: int, processes: Processes
) -> FloatArray:
    """Latents (N, c, h, w), the posterior's mean, of all training images at ``side`` pixels."""
    parts = []
    quiet = contextlib.nullcontext(Progress())
    with show_progress("encode", total=len(images), unit="images") if processes.main else quiet as progress:
        count = max(1, AT_ONCE // side**2)
        for begin in range(0, len(images), count):
            pixels = images.read(np.arange(begin, min(begin + count, len(images))))
            rgb = resize_to(mapping.to_rgb(images.scale.to_unit(pixels)), side, side)
            parts.append(base.encode(torch.from_numpy(rgb).to(base.place)).float().cpu().numpy())
            progress.advance(len(pixels))
    return np.concatenate(parts)


def refuse_left_out(mapping: ChannelMapping) -> None:
    """Raise `SettingsError` for channels that would not be drawn: samples have a cohort's channels, or none can hold
    them against it."""
    left = [name for name in mapping.channels if name not in mapping.drawn]
    if left:
        raise SettingsError(
            f"channels {', '.join(left)} would be left out: a text-to-image base draws three channels at most, and no "
            "mask. Prepare the cohort without them."
        )


def sorted_labels(images: TrainImages, settings: InversionSettings) -> list[str]:
    """The classes that are learned apart; none without ``condition``."""
    return sorted(set(images.cohort.column("label")[images.rows].tolist())) if settings.condition else []


def name_tokens(images: TrainImages, settings: InversionSettings) -> tuple[list[int], list[str]]:
    """Which token each training image belongs to, and what the tokens are called.

    Raises `SettingsError` for classes that are missing or one patient's alone.
    """
    if not settings.condition:
        word = settings.token or f"<{images.cohort.path.resolve().name}>"
        return [0] * len(images), [word if settings.method == "lora" else in_brackets(word)]
    labels: list[str] = images.cohort.column("label")[images.rows].tolist()
    classes = sorted(set(labels))
    if len(classes) < 2 or "" in classes:
        raise SettingsError(
            "condition = 'label': the training images have no classes, or but one. Prepare the cohort with --labels."
        )
    refuse_single_patients(labels, images.cohort.column("subject")[images.rows].tolist())
    names = classes if settings.method == "lora" else [in_brackets(name) for name in classes]
    for name in names:
        if names.count(name) > 1:
            raise SettingsError(f"several classes would be called {name}. Give them names that differ without blanks.")
    return [classes.index(label) for label in labels], names


def in_brackets(word: str) -> str:
    """<word>, without blanks: how prompts call a learned concept.

    Raises `SettingsError` for a word that cannot name a token and its file.
    """
    plain = "-".join(word.strip("<> ").split())
    if plain in ("", ".", "..") or any(sign in "<>/\\" or not sign.isprintable() for sign in plain):
        raise SettingsError(f"token {word!r} cannot be the name of a file. Give one without /, \\, < and >.")
    return f"<{plain}>"


def describe_size(
    settings: InversionSettings, base: BaseModel, *, names: Sequence[str], learned: int, mapping: ChannelMapping
) -> str:
    """What is learned, and of what."""
    what = (
        f"{len(names)} × {settings.vectors} vectors of {base.dimension}" if settings.method == "embedding" else "LoRA"
    )
    return f"learning {', '.join(names)}: {what}, {learned:,} numbers, on {base.name}. {mapping.describe()}"


@dataclass(frozen=True)
class LatentBatch:
    """A part of a batch in memory: ``latents`` (b, c, h, w), the prompt of each, their times ``t`` (b,)."""

    latents: torch.Tensor
    which: list[int]
    t: torch.Tensor
    n: int
    part: slice


@dataclass
class InversionTask:
    """What update n works on, and its loss; see `unalike.generators.descent.Task`."""

    images: TrainImages
    latents: FloatArray
    settings: InversionSettings
    base: BaseModel
    network: Concept | Additions
    mapping: ChannelMapping
    labels: Sequence[int]
    side: int
    seed: int
    name: str = "inversion"

    def __post_init__(self) -> None:
        """Look up whose each image is."""
        names = self.images.cohort.column("subject")[self.images.rows].tolist()
        self.subjects = sorted(set(names))
        self.owners = np.array([self.subjects.index(name) for name in names])

    def batch(self, n: int, part: slice) -> LatentBatch:
        """z₀, t ~ Uniform({0 … T−1}); every number is the global batch's, of which this is a part. NumPy alone."""
        size = self.settings.batch_size
        positions = batch_positions(n, len(self.images), size, self.seed)[part]
        t = generator_for(self.seed, "times", n).integers(self.levels, size=size)[part]
        return self.take(positions, t, n, part)

    def take(self, positions: Any, t: Any, n: int, part: slice) -> LatentBatch:
        """These images at these times."""
        which = [self.labels[k] for k in positions]
        return LatentBatch(torch.from_numpy(self.latents[positions]), which, torch.from_numpy(t), n, part)

    @property
    def levels(self) -> int:
        """Noise levels of the base."""
        return int(self.base.scheduler.config.num_train_timesteps)

    def loss(self, network: nn.Module, batch: LatentBatch) -> torch.Tensor:
        """E ‖target − f(√ᾱ_t z₀ + √(1 − ᾱ_t) ε, t, prompt)‖², ε ~ N(0, I), a mean over the part's images."""
        stream = torch.Generator(self.base.place).manual_seed(seed_for(self.seed, "noise", batch.n))
        shape = (self.settings.batch_size, *batch.latents.shape[1:])
        epsilon = torch.randn(shape, generator=stream, device=self.base.place)[batch.part]
        return self.errors(network, batch, epsilon).mean()

    def errors(self, network: nn.Module, batch: LatentBatch, epsilon: torch.Tensor) -> torch.Tensor:
        """The loss of each image (b,) with noise ``epsilon`` (b, c, h, w)."""
        z_0 = batch.latents.to(self.base.place, non_blocking=True)
        t = batch.t.to(self.base.place, non_blocking=True)
        z_t = add_noise(z_0, epsilon, t, self.base.scheduler)
        scheduler = self.base.scheduler
        target = target_of(scheduler.config.prediction_type, z_0, epsilon, alpha_bars(scheduler, t))
        predicted: torch.Tensor = network(z_t, t, batch.which).float()
        return (predicted - target).square().mean(dim=(1, 2, 3))

    def open_draw(self, steps: int) -> Draw:
        """Draws from the concept as it is, in so many steps."""
        settings = InversionDrawSettings(steps=steps, sampler="dpm++")
        return InversionSampler(self.model, settings).draw

    @property
    def model(self) -> InversionModel:
        """The base and what is learned, as they are now, for those who draw from them."""
        counts = {prompt: self.labels.count(index) for index, prompt in enumerate(self.network.prompts)}
        return InversionModel(
            base=self.base,
            learned={name: vectors.detach() for name, vectors in self.network.learned().items()},
            prompts=counts,
            labels=dict(zip(sorted_labels(self.images, self.settings), self.network.prompts, strict=False)),
            scale=self.images.scale,
            mapping=self.mapping,
            size=self.images.cohort.size,
            side=self.side,
        )
