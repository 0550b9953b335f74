"""A network that learns masks: which pixel values are labels, its plan, its training, and how it is kept.

Two presets, both of MONAI's networks and trained with MONAI's Dice and cross-entropy loss, added:

* ``unet``: U-Net (Ronneberger et al. 2015) with residual units (Kerfoot et al. 2019), AdamW at a constant rate, stopped
  when the validation part has not improved for a while;
* ``nnunet``: what nnU-Net (Isensee et al. 2021) plans for 2-D images of this size, with deep supervision, instance
  normalization, leaky ReLU, and SGD with Nesterov momentum whose rate falls as a polynomial.

The image is the patch. Both see images standardized one by one, which leaves nothing to be learned from brightness that
differs between synthetic and real images as a whole.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.losses import DiceCELoss
from monai.networks.nets import DynUNet, UNet
from safetensors import SafetensorError
from safetensors.torch import load_model, save_model
from torch import nn
from torch.nn import functional as F

from unalike import folders
from unalike.cohort.roles import ImageSet
from unalike.devices import compute_in, resolve_precision
from unalike.engine import read_ahead, show_progress
from unalike.errors import FolderError, InputError, NonFiniteLossError
from unalike.records import IntArray, Pixels, TextArray
from unalike.seeds import generator_for, seed_for
from unalike.utility.overlap import Classes, count_pixels, dice_of
from unalike.utility.settings import UtilitySettings

MOST_LABELS = 16  # more values than these in a mask without names are grey levels, not labels
AT_ONCE = 64  # images in the network together, without gradients
CHECKS = 20  # so often on the way the validation part is measured
HELD_BYTES = 2**30  # images are kept in memory up to here, else read again for each batch
LEAST_SIDE = 16  # smaller images are padded to this: two halvings leave 4 pixels a side
LEAST_HALVINGS = 2
MOST_VALIDATION = 1000  # images that a check looks at

WEIGHTS = "model.safetensors"
ABOUT = "model.json"
FORMAT = 1


@dataclass(frozen=True)
class Labels:
    """What a mask's pixel values mean: ``values`` (K,) ascending, without 0, and their ``names``.

    In a class map 0 is background and k + 1 the k-th of these.
    """

    names: tuple[str, ...]
    values: tuple[int, ...]

    def __len__(self) -> int:
        """Number of labels, without the background."""
        return len(self.values)

    def classes(self, masks: Pixels) -> Classes:
        """Class map (…) of mask pixels (…): each pixel goes to the nearest of 0 and ``values``, a tie to the lower."""
        levels = np.asarray([0, *self.values], dtype=np.float64)
        found: Classes = np.searchsorted((levels[1:] + levels[:-1]) / 2, masks).astype(np.uint8)
        return found

    def count_far(self, masks: Pixels) -> tuple[int, int]:
        """How many pixels are far from 0 and every value, and how many are not background (far ones among them).

        Far is more than a quarter of the smallest gap between levels: what a generator drew there is grey, no label.
        """
        levels = np.asarray([0, *self.values], dtype=np.float64)
        classes = self.classes(masks)
        far = np.abs(masks - levels[classes]) > np.diff(levels).min() / 4
        return int(far.sum()), int((far | (classes > 0)).sum())


def find_labels(names: Mapping[str, int] | None, values: Sequence[int], *, where: str) -> Labels:
    """The labels of a cohort: those its header names (name → pixel value), else the values of its train masks.

    ``values`` are the distinct pixel values of the train masks, ``where`` what an error calls the cohort.

    Raises `InputError` if no train mask shows a label, or masks are grey (more than `MOST_LABELS` values).
    """
    there = sorted({int(value) for value in values} - {0})
    if not there:
        raise InputError(f"{where}: no train image has a label in its mask. Prepare the cohort with its label volumes.")
    named = sorted((int(value), str(name)) for name, value in (names or {}).items() if int(value) != 0)
    if named:
        return Labels(tuple(name for _, name in named), tuple(value for value, _ in named))
    if len(there) > MOST_LABELS:
        raise InputError(
            f"{where}: its masks have {len(there)} values, labels would be {MOST_LABELS} at most. Prepare it with "
            "label volumes, or with --mask-labels."
        )
    return Labels(tuple(str(value) for value in there), tuple(there))


@dataclass(frozen=True)
class Pairs:
    """``count`` images with their masks; ``read`` gives those at some places, in order.

    As images (n, C, H, W), the channels a network sees, and class maps (n, H, W).
    """

    count: int
    read: Callable[[IntArray], tuple[Pixels, Classes]]

    def at(self, places: IntArray) -> Pairs:
        """Only these, numbered anew."""
        return Pairs(len(places), lambda some: self.read(places[some]))


def pairs_of_arrays(images: Pixels, classes: Classes) -> Pairs:
    """Pairs in memory: images (n, C, H, W) and class maps (n, H, W)."""
    return Pairs(len(images), lambda places: (images[places], classes[places]))


def pairs_of_images(sets: Sequence[ImageSet], labels: Labels, *, channels: Sequence[int], mask: int) -> Pairs:
    """The images of these sets, one set after the other: ``channels`` to be seen, channel ``mask`` to be found."""
    held = [
        each.folder.read(each.rows) if len(each) * _bytes_of(each) <= HELD_BYTES // len(sets) else None for each in sets
    ]
    edges = np.cumsum([0, *map(len, sets)])

    def read(places: IntArray) -> tuple[Pixels, Classes]:
        first = sets[0].folder
        pixels = np.empty((len(places), len(first.channels), *first.size), first.dtype)
        for one, kept, begin, end in zip(sets, held, edges[:-1], edges[1:], strict=True):
            here = (places >= begin) & (places < end)
            inside = places[here] - begin
            pixels[here] = one.folder.read(one.rows[inside]) if kept is None else kept[inside]
        return pixels[:, list(channels)], labels.classes(pixels[:, mask])

    return Pairs(int(edges[-1]), read)


def _bytes_of(images: ImageSet) -> int:
    folder = images.folder
    return len(folder.channels) * int(np.prod(folder.size)) * folder.dtype.itemsize


def hold_apart(subjects: TextArray, *, parts: int, seed: int) -> tuple[IntArray, IntArray]:
    """Places of images to learn from, and of those that choose the checkpoint: one in ``parts`` of the subjects.

    ``subjects`` (n,) names whose each image is; none is on both sides. Synthetic images, each a subject of its own, are
    so divided at random. At most about `MOST_VALIDATION` images choose (but one subject's at least); the other
    subjects all learn.

    Raises `InputError` with fewer than two subjects.
    """
    names, counts = np.unique(subjects, return_counts=True)
    if len(names) < 2:
        raise InputError(f"{len(names)} subject to learn from: at least 2 are needed, one to choose the checkpoint.")
    order = generator_for(seed, "segmentation validation").permutation(len(names))
    some = order[: min(max(1, round(len(names) / parts)), len(names) - 1)]
    few = max(1, int((np.cumsum(counts[some]) <= MOST_VALIDATION).sum()))
    apart = np.isin(subjects, names[some[:few]])
    return np.flatnonzero(~apart).astype(np.int64), np.flatnonzero(apart).astype(np.int64)


@dataclass(frozen=True)
class Plan:
    """A network as it is planned from the size of the images; all that is needed to build it again."""

    preset: str
    channels: int
    classes: int
    halvings: int
    """How often height and width are halved on the way down."""

    @classmethod
    def of(cls, preset: str, *, channels: int, classes: int, size: tuple[int, int]) -> Plan:
        """For images of ``size`` (H, W): halve while the smaller side keeps 4 pixels, as nnU-Net does.

        At most 4 times in a U-Net and 7 times in nnU-Net's, and at least twice (smaller images are padded).
        """
        most = 4 if preset == "unet" else 7
        return cls(preset, channels, classes, max(LEAST_HALVINGS, min(most, int(math.log2(max(min(size), 4) / 4)))))

    def build(self) -> nn.Module:
        """The network with fresh weights: (n, ``channels``, H, W) to scores (n, ``classes``, H, W).

        In training ``nnunet`` gives (n, heads, classes, H, W), the full resolution first.
        """
        if self.preset == "unet":
            network: nn.Module = UNet(
                spatial_dims=2,
                in_channels=self.channels,
                out_channels=self.classes,
                channels=[32 * 2**level for level in range(self.halvings + 1)],
                strides=[2] * self.halvings,
                num_res_units=2,
            )
            return network
        strides = [1] + [2] * self.halvings
        deep: nn.Module = DynUNet(
            spatial_dims=2,
            in_channels=self.channels,
            out_channels=self.classes,
            kernel_size=[3] * len(strides),
            strides=strides,
            upsample_kernel_size=strides[1:],
            filters=[min(32 * 2**level, 512) for level in range(len(strides))],
            norm_name=("INSTANCE", {"affine": True}),
            act_name=("leakyrelu", {"inplace": True, "negative_slope": 0.01}),
            deep_supervision=True,
            deep_supr_num=max(1, self.halvings - 1),  # all resolutions but the two lowest
        )
        return deep

    @property
    def multiple(self) -> int:
        """Height and width inside the network are multiples of this."""
        return int(2**self.halvings)


@dataclass(frozen=True, eq=False)
class Segmenter:
    """A network that finds labels in images, with all that stands between it and an image."""

    plan: Plan
    labels: Labels
    network: nn.Module = field(repr=False)
    precision: str = "float32"

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.network.parameters()).device

    def prepare(self, images: Pixels) -> torch.Tensor:
        """Images (n, C, H, W) as float32 on the device, each channel of each with mean 0 and deviation 1."""
        values = torch.from_numpy(np.ascontiguousarray(images).astype(np.float32)).to(self.device)
        deviation, mean = torch.std_mean(values, dim=(2, 3), keepdim=True, correction=0)
        return (values - mean) / deviation.clamp(min=1.0)  # a flat image stays flat

    def scores(self, prepared: torch.Tensor) -> torch.Tensor:
        """Scores (…, classes, H, W) of prepared images, float32; padded to what the network takes, and cropped back."""
        height, width = prepared.shape[2:]
        top, bottom = _margins(height, self.plan.multiple)
        left, right = _margins(width, self.plan.multiple)
        padded = F.pad(prepared, (left, right, top, bottom), mode="replicate")
        with compute_in(self.precision, prepared.device):
            found: torch.Tensor = self.network(padded)
        return found.float()[..., top : top + height, left : left + width]

    @torch.no_grad()
    def predict(self, images: Pixels) -> Classes:
        """Class maps (n, H, W) of images (n, C, H, W), each image by itself."""
        self.network.train(False)
        found = np.empty((len(images), *images.shape[2:]), dtype=np.uint8)
        for begin in range(0, len(images), AT_ONCE):
            part = slice(begin, begin + AT_ONCE)
            found[part] = self.scores(self.prepare(images[part])).argmax(dim=1).to(torch.uint8).cpu().numpy()
        return found

    def save(self, folder: Path, *, about: Mapping[str, Any]) -> None:
        """Write weights (safetensors) and what they are (JSON, with ``about``), the latter last."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ABOUT).unlink(missing_ok=True)
        partial = folder / f"{WEIGHTS}.partial"
        save_model(self.network, str(partial))  # as DynUNet holds its layers under two names each
        partial.replace(folder / WEIGHTS)
        known = {"format": FORMAT, "plan": self.plan, "labels": self.labels, "precision": self.precision}
        folders.write_json(folder / ABOUT, {**known, "about": about})


def load_segmenter(folder: Path, device: torch.device) -> Segmenter:
    """Read back what `Segmenter.save` wrote. Raises `FolderError` if it is damaged or of another format."""
    known = folders.read_json(folder / ABOUT)
    try:
        if known["format"] != FORMAT:
            raise FolderError(f"{folder} has format {known['format']!r}, this version reads {FORMAT}. Make it again.")
        plan = Plan(**known["plan"])
        labels = Labels(tuple(known["labels"]["names"]), tuple(known["labels"]["values"]))
        network = plan.build()
        load_model(network, folder / WEIGHTS)
        precision = resolve_precision(str(known["precision"]), device)
    except (OSError, SafetensorError, KeyError, TypeError, RuntimeError) as error:
        raise FolderError(f"{folder} is damaged ({type(error).__name__}). Make the folder again.") from error
    return Segmenter(plan, labels, network.to(device).train(False), precision)


def _margins(length: int, multiple: int) -> tuple[int, int]:
    """Pixels to add before and after, so that a side is a multiple of ``multiple`` and of some size."""
    missing = max(LEAST_SIDE, -(-length // multiple) * multiple) - length
    return missing // 2, missing - missing // 2


@dataclass(frozen=True)
class Augmentation:
    """How far images are changed in training. Each change befalls an image with chance ``chance``.

    Nothing is mirrored. Left and right are told apart by anatomy (heart, liver) and by labels (left and right kidney),
    and a mirrored image then teaches what no patient shows.
    """

    chance: float
    turn: float
    """Degrees, either way."""
    scale: float
    """Powers of two, larger or smaller."""
    shift: float
    """Of the image's sides, either way."""
    contrast: tuple[float, float]
    """Factor about the image's mean."""
    brightness: float
    """Added, in standard deviations of the image, either way."""
    gamma: tuple[float, float]
    """Exponent of intensities between the image's lowest and highest."""
    noise: float
    """Highest standard deviation of Gaussian noise, in those of the image."""


MILD = Augmentation(0.5, 15.0, 0.25, 0.1, (0.75, 1.25), 0.25, (0.8, 1.25), 0.1)
"""For ``unet``."""
STRONG = Augmentation(0.2, 180.0, 0.5, 0.0, (0.65, 1.5), 0.3, (0.7, 1.5), 0.3)
"""For ``nnunet``: ranges of Isensee et al. 2021, supplement, without its blur, coarse images and mirrors."""


def augment(
    images: torch.Tensor, classes: torch.Tensor, how: Augmentation, random: np.random.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Prepared images (n, C, H, W) and class maps (n, H, W), changed alike in place and images in intensity too.

    Images are interpolated bilinearly, class maps take the nearest pixel; what comes in from outside repeats the
    border.
    """
    n, (height, width), device = len(images), images.shape[2:], images.device

    def draw(low: float, high: float, otherwise: float) -> torch.Tensor:
        values, coins = random.uniform(low, high, n), random.random(n)
        chosen = np.where(coins < how.chance, values, otherwise).astype(np.float32)
        return torch.from_numpy(chosen).to(device)[:, None, None, None]

    angle = torch.deg2rad(draw(-how.turn, how.turn, 0)).view(n)
    zoom = torch.exp2(draw(-how.scale, how.scale, 0)).view(n)
    right, down = (2 * draw(-how.shift, how.shift, 0).view(n) for _ in range(2))  # a side is 2 units long
    cosine, sine = torch.cos(angle) / zoom, torch.sin(angle) / zoom
    # Turned in pixels, not in sides: an image that is not square must not be sheared.
    rows = [
        torch.stack([cosine, sine * height / width, right], 1),
        torch.stack([-sine * width / height, cosine, down], 1),
    ]
    grid = F.affine_grid(torch.stack(rows, dim=1), [n, 1, height, width], align_corners=False)
    moved = F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)
    followed = F.grid_sample(classes[:, None].float(), grid, mode="nearest", padding_mode="border", align_corners=False)

    mean = moved.mean(dim=(2, 3), keepdim=True)
    lowest, highest = moved.amin(dim=(2, 3), keepdim=True), moved.amax(dim=(2, 3), keepdim=True)
    reach = (highest - lowest).clamp(min=1e-6)
    shaped = ((moved - lowest) / reach).clamp(0, 1) ** draw(*how.gamma, 1) * reach + lowest
    shaped = (shaped - mean) * draw(*how.contrast, 1) + mean + draw(-how.brightness, how.brightness, 0)
    grain = torch.from_numpy(random.standard_normal(tuple(images.shape), dtype=np.float32)).to(device)
    return shaped + grain * draw(0, how.noise, 0), followed[:, 0].round().long()


@dataclass(frozen=True)
class Trained:
    """A trained network: its best checkpoint by ``validation`` (mean Dice), taken after ``update`` of ``updates``."""

    segmenter: Segmenter
    validation: float
    update: int
    updates: int


def train_segmenter(
    learn: Pairs,
    choose: Pairs,
    *,
    labels: Labels,
    settings: UtilitySettings,
    seed: int,
    device: torch.device,
    augmented: bool = False,
    name: str = "segmentation",
) -> Trained:
    """Train on the pairs ``learn``; the checkpoint with the highest mean Dice on the pairs ``choose`` is kept.

    Every random number comes from streams of ``seed`` that do not know what is trained on, so two trainings differ only
    in their images. ``name`` stands in messages.

    Raises `NonFiniteLossError` if training diverges.
    """
    images, _ = learn.read(np.zeros(1, dtype=np.int64))
    plan = Plan.of(
        settings.segment_preset,
        channels=images.shape[1],
        classes=len(labels) + 1,
        size=(images.shape[2], images.shape[3]),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_for(seed, "segmentation weights"))
        network = plan.build().to(device)
    segmenter = Segmenter(plan, labels, network, resolve_precision(settings.precision, device))
    optimizer, schedule = _descent(network, settings)
    total = settings.segment_updates
    every = max(1, total // CHECKS)
    best = Trained(segmenter, -1.0, 0, 0)
    kept: dict[str, torch.Tensor] = {}
    losses: list[torch.Tensor] = []
    n, checked = 0, 0
    with show_progress(f"train segmentation, {name}", total=total, unit="updates") as progress:
        for n, batch in enumerate(read_ahead(_batches(learn, settings.batch_size, total, seed)), start=1):
            losses.append(_update(segmenter, optimizer, batch, _changes(settings, augmented), (seed, n)))
            schedule.step()
            if n % every == 0 or n == total:
                _check_losses(losses, n, name)
                losses, checked = [], checked + 1
                found = validation_dice(segmenter, choose)
                if found > best.validation:
                    best, checked = Trained(segmenter, found, n, n), 0
                    kept = {key: value.detach().clone() for key, value in network.state_dict().items()}
                if checked >= settings.patience and plan.preset == "unet":  # nnU-Net always goes to the end of its fall
                    break
            progress.advance(1)
    network.load_state_dict(kept)
    return Trained(segmenter, best.validation, best.update, n)


def _descent(
    network: nn.Module, settings: UtilitySettings
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """Optimizer and learning rate of the preset."""
    if settings.segment_preset == "unet":
        adam = torch.optim.AdamW(network.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay)
        return adam, torch.optim.lr_scheduler.LambdaLR(adam, lambda _: 1.0)
    # Isensee et al. 2021, methods: rate 0.01 · (1 − n/N)^0.9, Nesterov momentum 0.99, weight decay 3e-5.
    sgd = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.99, nesterov=True, weight_decay=3e-5)
    total = settings.segment_updates
    return sgd, torch.optim.lr_scheduler.LambdaLR(sgd, lambda n: (1 - min(n, total - 1) / total) ** 0.9)


def _changes(settings: UtilitySettings, augmented: bool) -> Augmentation | None:
    if not augmented:
        return None
    return MILD if settings.segment_preset == "unet" else STRONG


def _batches(pairs: Pairs, size: int, updates: int, seed: int) -> Iterator[tuple[Pixels, Classes]]:
    """Batches of ``size``, passing over all pairs in a new order each time; an order is keyed by its pass."""

    @functools.lru_cache(maxsize=2)
    def order(number: int) -> IntArray:
        return generator_for(seed, "segmentation order", number).permutation(pairs.count)

    for n in range(updates):
        places = np.arange(n * size, (n + 1) * size)
        yield pairs.read(np.array([order(int(at) // pairs.count)[at % pairs.count] for at in places], dtype=np.int64))


def _update(
    segmenter: Segmenter,
    optimizer: torch.optim.Optimizer,
    batch: tuple[Pixels, Classes],
    how: Augmentation | None,
    key: tuple[int, int],
) -> torch.Tensor:
    """One step down the loss of a batch; gives the loss, on the device. ``key`` is seed and number of the update."""
    segmenter.network.train(True)
    images, classes = segmenter.prepare(batch[0]), torch.from_numpy(batch[1]).to(segmenter.device).long()
    if how is not None:
        images, classes = augment(images, classes, how, generator_for(key[0], "segmentation changes", key[1]))
    optimizer.zero_grad(set_to_none=True)
    loss = loss_of(segmenter.scores(images), classes)
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(segmenter.network.parameters(), 12.0)  # nnU-Net's bound
    optimizer.step()
    return loss.detach()


def loss_of(scores: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """Dice loss of the labels plus cross-entropy, of scores (n, K + 1, H, W) and class maps (n, H, W).

    Dice sums over the batch, so that images without a label do not count as missed. With deep supervision, scores (n,
    heads, K + 1, H, W): a weighted mean in which every coarser head has half the weight of the one before.
    """
    measure = DiceCELoss(include_background=False, to_onehot_y=True, softmax=True, batch=True)
    heads = scores.unbind(dim=1) if scores.ndim == 5 else (scores,)
    weights = [0.5**level for level in range(len(heads))]
    losses = [weight * measure(head, classes[:, None]) for weight, head in zip(weights, heads, strict=True)]
    return torch.stack(losses).sum() / sum(weights)


def _check_losses(losses: Sequence[torch.Tensor], n: int, name: str) -> None:
    worst = torch.stack(list(losses)).sum()
    if not bool(torch.isfinite(worst)):
        raise NonFiniteLossError(
            f"the loss of segmentation from {name} images is {float(worst)} by update {n}. Try a lower --learning-rate."
        )


def validation_dice(segmenter: Segmenter, pairs: Pairs) -> float:
    """Dice of all pairs together, pixels summed over images, its mean over the labels there are; 0 without any."""
    labels = len(segmenter.labels)
    counts = np.zeros((3, labels), dtype=np.int64)
    for begin in range(0, pairs.count, AT_ONCE):
        images, classes = pairs.read(np.arange(begin, min(begin + AT_ONCE, pairs.count), dtype=np.int64))
        counts += count_pixels(classes, segmenter.predict(images), labels=labels).sum(axis=1)
    dice = dice_of(counts)
    return float(np.nanmean(dice)) if np.isfinite(dice).any() else 0.0
