"""Training one classifier: batches, traditional augmentation, early stopping, best weights.

Every random number comes from a stream named by its purpose and the number of the epoch or update, so that a training
repeats bit for bit on one machine (the same number of threads; on a graphics card as far as its kernels do). Images
stay in memory as they are stored and are prepared batch by batch, by `Classifier.prepare`, as tested images are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from unalike.devices import resolve_precision
from unalike.errors import NonFiniteLossError
from unalike.records import FloatArray, IntArray, Pixels, TextArray
from unalike.seeds import generator_for, seed_for
from unalike.utility.classifier import Classifier
from unalike.utility.scores import area_under_curve, cross_entropy
from unalike.utility.settings import UtilitySettings
from unalike.vision import networks

IMAGENET_SIDE = 224

# Traditional augmentation. The paper names the changes, not how far they go; each falls to half of the images.
LARGEST_SHIFT = 0.1  # of the side, each way
LARGEST_SCALE = 0.15  # content between 0.85 and 1.15 times its size
LARGEST_TURN = math.radians(15)
LARGEST_NOISE = 0.1  # standard deviation, of the channel's deviation over the training images
LARGEST_CONTRAST = 0.2  # natural logarithm of the factor
LARGEST_BRIGHTNESS = 0.2  # of the channel's deviation
DROPPED = 0.1  # share of the images that lose a channel, where there are several

Say = Callable[[str], None]


@dataclass(frozen=True, eq=False)
class Labelled:
    """Images (n, C, H, W) as stored, with class (n,), 0 to K − 1, and subject (n,) of each."""

    pixels: Pixels = field(repr=False)
    truth: IntArray
    subjects: TextArray

    def __len__(self) -> int:
        """Number of images."""
        return len(self.truth)

    def take(self, rows: IntArray) -> Labelled:
        """The images at these positions, in this order."""
        return Labelled(self.pixels[rows], self.truth[rows], self.subjects[rows])

    def join(self, other: Labelled) -> Labelled:
        """These images, then those of ``other``."""
        return Labelled(
            np.concatenate([self.pixels, other.pixels]),
            np.concatenate([self.truth, other.truth]),
            np.concatenate([self.subjects, other.subjects]),
        )


@dataclass(frozen=True)
class Frame:
    """What all trainings of one measurement share.

    ``channels`` are indices of the cohort's channels, ``size`` the images' height and width (pixels), ``highest`` the
    pixel value that counts as 1.
    """

    classes: tuple[str, ...]
    channels: tuple[int, ...]
    size: tuple[int, int]
    highest: int
    settings: UtilitySettings
    seed: int
    device: torch.device


@dataclass(frozen=True)
class Recipe:
    """How one network is trained: AdamW's numbers, images a batch, and whether they are changed."""

    learning_rate: float
    weight_decay: float
    batch_size: int
    augment: bool = False


@dataclass(frozen=True)
class CellResult:
    """What a finished training leaves: ``numbers`` (JSON) and probabilities (n, K) of named sets of images."""

    numbers: dict[str, Any]
    probabilities: dict[str, FloatArray] = field(default_factory=dict)


def open_classifier(frame: Frame, name: str, train: Labelled, *, seed: int) -> Classifier:
    """A fresh network ``name`` for images like ``train``, with random weights from ``seed`` or ImageNet's.

    Mean and deviation of each channel are those of ``train`` and nothing else; with ImageNet weights they are
    ImageNet's (for other than three channels the mean of its three). Raises `InputError` if weights cannot be used.
    """
    settings, count = frame.settings, len(frame.channels)
    network = networks.build_network(name, classes=len(frame.classes), channels=count, seed=seed)
    if settings.weights:
        networks.load_imagenet(network, name, settings.weights)
        mean, deviation = networks.imagenet_scaling(name, count)
    else:
        mean, deviation = _standardize(train.pixels, frame)
    wanted = settings.side or (IMAGENET_SIDE if settings.weights else max(frame.size))
    return Classifier(
        name=name,
        classes=frame.classes,
        channels=frame.channels,
        side=max(wanted, networks.smallest_side(name)),
        highest=frame.highest,
        mean=mean,
        deviation=deviation,
        network=network.to(frame.device),
        precision=resolve_precision(settings.precision, frame.device),
    )


def _standardize(pixels: Pixels, frame: Frame) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel in units of ``highest``; a constant channel deviates by 1."""
    mean, deviation = [], []
    for channel in frame.channels:
        values = pixels[:, channel]
        centre = float(values.mean(dtype=np.float64)) / frame.highest
        spread = float(values.std(dtype=np.float64)) / frame.highest
        mean.append(centre)
        deviation.append(spread if spread > 0 else 1.0)
    return tuple(mean), tuple(deviation)


@contextmanager
def repeatable(seed: int, device: torch.device) -> Iterator[None]:
    """Dropout draws from ``seed`` within, cuDNN repeats itself, and the global random state is as before afterwards."""
    cards = [device.index or 0] if device.type == "cuda" else []
    cudnn: Any = torch.backends.cudnn
    before = cudnn.deterministic, cudnn.benchmark
    try:
        with torch.random.fork_rng(devices=cards):
            torch.manual_seed(seed_for(seed, "utility dropout"))
            cudnn.deterministic, cudnn.benchmark = True, False
            yield
    finally:
        cudnn.deterministic, cudnn.benchmark = before


def train_with_stopping(
    classifier: Classifier, train: Labelled, validation: Labelled, recipe: Recipe, *, frame: Frame, seed: int, say: Say
) -> dict[str, Any]:
    """Train by AdamW until the loss on ``validation`` has not fallen for ``patience`` epochs; best weights are kept.

    Returns epochs made, the best one (from 1), and the losses (nats) and accuracies of the best weights on both sets,
    each image unchanged. A last batch of a single image is left out: batch statistics need two.
    Raises `NonFiniteLossError` if training diverges.
    """
    settings = frame.settings
    optimizer = torch.optim.AdamW(
        classifier.network.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay
    )
    best, best_epoch, weights = math.inf, 0, _copy(classifier)
    epoch = update = 0
    with repeatable(seed, frame.device):
        while epoch < settings.epochs and epoch - best_epoch < settings.patience:
            epoch += 1
            total = torch.zeros((), device=frame.device)
            batches = _epoch(len(train), recipe.batch_size, seed=seed, epoch=epoch)
            for rows in batches:
                total += _update(classifier, optimizer, train.take(rows), recipe.augment, seed=seed, update=update)
                update += 1
            _refuse_divergence(float(total), classifier.name, epoch)
            loss, _ = assess(classifier, validation)
            _refuse_divergence(loss, classifier.name, epoch)
            say(f"epoch {epoch}, loss {float(total) / len(batches):.3f}, left out {loss:.3f}")
            if loss < best:
                best, best_epoch, weights = loss, epoch, _copy(classifier)
    classifier.network.load_state_dict(weights)
    train_loss, train_accuracy = assess(classifier, train)
    loss, accuracy = assess(classifier, validation)
    return {
        "epochs": epoch,
        "best_epoch": best_epoch,
        "train_loss": train_loss,
        "train_accuracy": train_accuracy,
        "validation_loss": loss,
        "validation_accuracy": accuracy,
    }


def train_with_checks(
    classifier: Classifier, train: Labelled, validation: Labelled, recipe: Recipe, *, frame: Frame, seed: int, say: Say
) -> dict[str, Any]:
    """Train by Adam for ``mix_batches`` updates; keep the first weights whose AUC on ``validation`` is the highest.

    The AUC is measured ``mix_checks`` times, evenly spaced, the last after the last update (de Wilde et al. 2023, 3.2).
    Batches go through the images in ever new orders; a set smaller than a batch is gone through more than once in it.
    Raises `NonFiniteLossError` if training diverges.
    """
    settings = frame.settings
    optimizer = torch.optim.Adam(classifier.network.parameters(), lr=recipe.learning_rate)
    checks = min(settings.mix_checks, settings.mix_batches)
    due = {round(settings.mix_batches * (index + 1) / checks) for index in range(checks)}
    best, best_update, weights, watched = -math.inf, 0, _copy(classifier), []
    total = torch.zeros((), device=frame.device)
    with repeatable(seed, frame.device):
        orders = _endless(len(train), recipe.batch_size, seed=seed)
        for update in range(1, settings.mix_batches + 1):
            rows = next(orders)
            total += _update(classifier, optimizer, train.take(rows), recipe.augment, seed=seed, update=update)
            if update not in due:
                continue
            _refuse_divergence(float(total), classifier.name, update)
            area = area_under_curve(classifier.predict(validation.pixels), validation.truth)
            watched.append({"update": update, "validation_auc": area})
            say(f"update {update}, AUC left out {area:.3f}")
            if area > best:
                best, best_update, weights = area, update, _copy(classifier)
    classifier.network.load_state_dict(weights)
    return {"best_update": best_update, "validation_auc": best, "checks": watched}


def assess(classifier: Classifier, images: Labelled) -> tuple[float, float]:
    """Mean loss (nats) and accuracy on ``images``."""
    found = classifier.predict(images.pixels)
    return _mean_loss(found, images.truth), float((found.argmax(axis=1) == images.truth).mean())


def _mean_loss(found: FloatArray, truth: IntArray) -> float:
    # Clipping would hide what is not a number.
    return float(cross_entropy(found, truth).mean()) if np.isfinite(found).all() else math.nan


def _refuse_divergence(loss: float, name: str, when: int) -> None:
    if not math.isfinite(loss):
        raise NonFiniteLossError(
            f"{name}: the loss is no longer a number (epoch or update {when}). Try a lower --learning-rate."
        )


def _copy(classifier: Classifier) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in classifier.network.state_dict().items()}


def _epoch(count: int, batch_size: int, *, seed: int, epoch: int) -> list[IntArray]:
    """Positions of the images of each batch: all once, in the order of this epoch."""
    order = generator_for(seed, "utility order", epoch).permutation(count).astype(np.int64)
    batches = [order[begin : begin + batch_size] for begin in range(0, count, batch_size)]
    return [rows for rows in batches if len(rows) > 1]


def _endless(count: int, batch_size: int, *, seed: int) -> Iterator[IntArray]:
    """Batches without end, all of one size, from one order after the other."""
    waiting, epoch = np.empty(0, np.int64), 0
    while True:
        while len(waiting) < batch_size:
            epoch += 1
            order = generator_for(seed, "utility order", epoch).permutation(count).astype(np.int64)
            waiting = np.concatenate([waiting, order])
        yield waiting[:batch_size]
        waiting = waiting[batch_size:]


def _update(
    classifier: Classifier,
    optimizer: torch.optim.Optimizer,
    batch: Labelled,
    augment: bool,
    *,
    seed: int,
    update: int,
) -> torch.Tensor:
    """One step; returns the batch's mean loss, detached."""
    classifier.network.train(True)
    prepared = classifier.prepare(batch.pixels)
    if augment:
        prepared = change_images(prepared, seed=seed, update=update)
    truth = torch.from_numpy(batch.truth).to(prepared.device)
    optimizer.zero_grad(set_to_none=True)
    loss = F.cross_entropy(classifier.logits(prepared), truth)
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return loss.detach()


@torch.no_grad()
def change_images(images: torch.Tensor, *, seed: int, update: int) -> torch.Tensor:
    """Traditional augmentation of standardized ``images`` (B, C, S, S): what de Wilde et al. (2023, 3.2) list.

    Mirrored left to right, moved, scaled, turned, noise added, contrast and brightness changed, each for half of the
    images and as far as the constants of this module say, evenly; of several channels one is lost (set to the mean)
    now and then. What comes in from outside repeats the border. Nothing but ``seed`` and ``update`` decides.
    """
    count, channels = images.shape[:2]
    random = generator_for(seed, "utility changes", update)
    happens = random.random((count, 6)) < 0.5
    far = 2 * random.random((count, 7)) - 1
    lost = (random.random(count) < DROPPED) & (channels > 1)
    which = random.integers(0, channels, count)
    changed = _move(images, _matrices(happens, far))

    def column(values: FloatArray) -> torch.Tensor:
        return torch.from_numpy(values.astype(np.float32)).to(images.device)[:, None, None, None]

    gain = column(np.where(happens[:, 4], np.exp(LARGEST_CONTRAST * far[:, 4]), 1))
    lift = column(np.where(happens[:, 4], LARGEST_BRIGHTNESS * far[:, 5], 0))
    noise = column(np.where(happens[:, 5], LARGEST_NOISE * np.abs(far[:, 6]), 0))
    stream = torch.Generator(images.device).manual_seed(seed_for(seed, "utility noise", update))
    changed = changed * gain + lift
    changed += noise * torch.randn(images.shape, generator=stream, device=images.device)
    gone = torch.from_numpy(np.flatnonzero(lost)).to(images.device)
    changed[gone, torch.from_numpy(which[lost]).to(images.device)] = 0
    return changed


def _matrices(happens: np.typing.NDArray[np.bool_], far: FloatArray) -> torch.Tensor:
    """For each place of a changed image the place to read from, (B, 2, 3), as torch's ``affine_grid`` wants it."""
    mirror = np.where(happens[:, 0], -1.0, 1.0)
    shift = 2 * LARGEST_SHIFT * far[:, :2] * happens[:, 1:2]  # a side is 2 units long
    zoom = 1 / np.where(happens[:, 2], 1 + LARGEST_SCALE * far[:, 2], 1)
    angle = LARGEST_TURN * far[:, 3] * happens[:, 3]
    cosine, sine = zoom * np.cos(angle), zoom * np.sin(angle)
    rows = [[mirror * cosine, mirror * sine, shift[:, 0]], [-sine, cosine, shift[:, 1]]]
    return torch.from_numpy(np.array(rows, dtype=np.float32).transpose(2, 0, 1).copy())


def _move(images: torch.Tensor, matrices: torch.Tensor) -> torch.Tensor:
    grid = F.affine_grid(matrices.to(images.device), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)
