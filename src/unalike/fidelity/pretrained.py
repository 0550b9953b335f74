"""Features of networks that were trained elsewhere: the Inception-v3 of the FID, torchvision's, RadImageNet, DINOv2.

Each sees images as it did when it was trained, but for three things. An image is never cropped: all of it is brought to
the network's size. Networks of three colours see one channel three times; of other numbers than one and three each
channel by itself, and the vectors stand side by side. Pixels are floating-point numbers from 0 to 255, whatever their
depth; 16-bit pixels are divided by the highest one among the cohort's train images, and not rounded to 8 bits.

Weights are files that the user gives, or has fetched from their authors' page; they are never loaded as a pickle.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from unalike.cohort.store import ImageFolder, iterate_blocks
from unalike.errors import InputError, PictureError, SettingsError
from unalike.fidelity.features import Features
from unalike.fidelity.own import open_own_features
from unalike.records import MASK, FloatArray, Pixels
from unalike.vision.fetch import digest_file, fetch_weights
from unalike.vision.names import NETWORKS
from unalike.vision.networks import (
    IMAGENET_DEVIATION,
    IMAGENET_MEAN,
    build_network,
    find_head,
    find_imagenet,
    imagenet_scaling,
    read_published,
)
from unalike.vision.weights import load_weights, read_weights

OWN = "own"
FEATURES = (OWN, "inception", "radimagenet", "dinov2", *NETWORKS)
"""Names that `open_features` takes."""

FORMAT = 1  # changes whenever the same weights and images give other features
AT_ONCE = 16  # images in the network together
SIDE = 224  # pixels, but for Inception-v3
INCEPTION_SIDE = 299
# The weights of Heusel et al.'s FID, converted from TensorFlow (Apache 2.0), as torch-fidelity publishes them.
INCEPTION_URL = (
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth"
)
# Places of ResNet-50's layers in the row that RadImageNet's files make of them.
_RADIMAGENET = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}

Prepare = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True, eq=False)
class Head:
    """The layer behind the features: ``weight`` (K, D) and ``bias`` (K,) turn a vector into scores of K classes."""

    weight: FloatArray
    bias: FloatArray

    def probabilities(self, vectors: FloatArray) -> FloatArray:
        """Softmax of the scores of vectors (n, D): (n, K), in double precision."""
        scores = vectors @ self.weight.T + self.bias
        risen = np.exp(scores - scores.max(axis=1, keepdims=True))
        return np.asarray(risen / risen.sum(axis=1, keepdims=True))


@dataclass(frozen=True, eq=False)
class Backbone:
    """A network without its head, with what is done to images before: ``prepare`` takes and gives (n, 3, H, W) floats.

    Pixels are 0 to 255 before. ``preparation`` says in words what ``prepare`` does, and enters the digest; so does
    ``weights_digest``, the SHA-256 of the file of weights. ``head`` is None where there are no classes.
    """

    title: str
    network: nn.Module = field(repr=False)
    prepare: Prepare = field(repr=False)
    preparation: str
    weights_digest: str
    head: Head | None = field(default=None, repr=False)


@dataclass(frozen=True, eq=False)
class PretrainedFeatures:
    """`Features` of a `Backbone`, of the channels with these indices; the pixel value ``highest`` becomes 255."""

    backbone: Backbone
    channels: tuple[int, ...]
    dtype: str
    highest: int
    device: torch.device

    @property
    def name(self) -> str:
        """What a report calls these features."""
        apart = ", per channel" if self.groups > 1 else ""
        return f"{self.backbone.title}{apart} ({self.digest[:8]})"

    @property
    def groups(self) -> int:
        """How many vectors stand side by side: one, or with other numbers of channels than one and three one each."""
        return 1 if len(self.channels) in (1, 3) else len(self.channels)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the weights' digest, what is done to images before, the channels, and how pixels are scaled."""
        told = [
            FORMAT,
            self.backbone.weights_digest,
            self.backbone.preparation,
            self.channels,
            self.dtype,
            self.highest,
        ]
        return hashlib.sha256(json.dumps(told).encode()).hexdigest()

    @property
    def has_classes(self) -> bool:
        """Whether there are probabilities of classes."""
        return self.backbone.head is not None

    @torch.no_grad()
    def embed(self, images: Pixels) -> FloatArray:
        """Vectors (n, D) of images (n, C, H, W) with all channels of the cohort, in its pixel type.

        Pixels brighter than the brightest train pixel count as that. What an image becomes does not depend on the
        others, but for rounding. Raises `PictureError` for another depth or missing channels.
        """
        if images.ndim != 4 or images.dtype.name != self.dtype or 0 in images.shape[2:]:
            raise PictureError(
                f"an array {images.shape} of {images.dtype} is not a set of {self.dtype} images. Prepare them alike."
            )
        if images.shape[1] <= max(self.channels):
            raise PictureError(
                f"images have {images.shape[1]} channels, channel {max(self.channels)} is needed. Prepare them alike."
            )
        if not len(images):
            return self.embed(np.zeros((1, *images.shape[1:]), images.dtype))[:0]
        step = max(1, AT_ONCE // self.groups)
        return np.concatenate([self._embed(images[begin : begin + step]) for begin in range(0, len(images), step)])

    def _embed(self, images: Pixels) -> FloatArray:
        count, _, height, width = images.shape
        chosen = torch.from_numpy(np.ascontiguousarray(images[:, list(self.channels)]).astype(np.float32))
        grey = (chosen.to(self.device) * (255 / self.highest)).clamp_(max=255)
        if len(self.channels) != 3:
            grey = grey.reshape(-1, 1, height, width).expand(-1, 3, -1, -1)
        found = self.backbone.network(self.backbone.prepare(grey))
        return np.asarray(found.double().cpu().numpy().reshape(count, -1))

    def probabilities_of(self, vectors: FloatArray) -> FloatArray:
        """Probabilities (n, K) of the network's classes from vectors (n, D) of `embed`; the mean over channels apart.

        Raises `SettingsError` if there are no classes.
        """
        head = self.backbone.head
        if head is None:
            raise SettingsError(f"{self.backbone.title} has no classes. Choose --features inception.")
        apart = vectors.reshape(len(vectors) * self.groups, -1)
        return np.asarray(head.probabilities(apart).reshape(len(vectors), self.groups, -1).mean(axis=1))

    def probabilities(self, images: Pixels) -> FloatArray:
        """Probabilities (n, K) of the network's classes for images (n, C, H, W): `probabilities_of` their vectors."""
        return self.probabilities_of(self.embed(images))


def open_features(
    name: str, *, cohort: ImageFolder, weights: str | Path | None, fetch: bool, device: torch.device
) -> Features:
    """Features by name, one of `FEATURES`, for the images of a cohort and samples of its kind.

    ``own`` are those of `open_own_features`. All others need ``weights``: a file (.safetensors, or of torch, old or
    new); for torchvision's networks also a folder of such files, for ``dinov2`` a folder with ``config.json`` and
    ``model.safetensors`` as transformers writes them. ``fetch`` fetches the file from its authors' page if none is
    given: for ``inception`` and torchvision's networks (the first version of their ImageNet weights). The mask is left
    out. Of 16-bit images the cohort's train images are read once, for their highest pixel value.

    Raises `SettingsError` for an unknown name, missing weights, and weights that cannot be fetched; `InputError` if the
    file cannot be read or is of another network, and what `fetch_weights` and `open_own_features` raise.
    """
    if name not in FEATURES:
        raise SettingsError(f"there are no features {name}. Choose one of {', '.join(FEATURES)}.")
    if name == OWN:
        return open_own_features(cohort, device=device)
    channels = [index for index, each in enumerate(cohort.channels) if each != MASK] or [0]
    backbone = open_backbone(name, weights=_find_weights(name, weights, fetch=fetch))
    network = backbone.network.train(False).requires_grad_(False).to(device)
    return PretrainedFeatures(
        backbone=dataclasses.replace(backbone, network=network),
        channels=tuple(channels),
        dtype=cohort.dtype.name,
        highest=_highest(cohort),
        device=device,
    )


def open_backbone(name: str, *, weights: Path) -> Backbone:
    """The network behind features of this name (none for own), with weights from this file (dinov2: folder).

    Raises `InputError` if it cannot be read, or is of another network.
    """
    if name == "inception":
        return _open_inception(weights)
    if name == "radimagenet":
        return _open_radimagenet(weights)
    if name == "dinov2":
        return _open_dinov2(weights)
    return _open_torchvision(name, weights)


def _find_weights(name: str, weights: str | Path | None, *, fetch: bool) -> Path:
    """The file or folder of the weights, fetched where that was asked for and none was given."""
    if weights:
        path = Path(weights)
        return find_imagenet(name, path) if name in NETWORKS and path.is_dir() else path
    if name == "dinov2":
        raise SettingsError(
            "--features dinov2 needs weights, which cannot be fetched here. Give the folder of facebook/dinov2-small "
            "(config.json, model.safetensors) with --weights FOLDER."
        )
    if name == "radimagenet":
        raise SettingsError(
            "--features radimagenet needs weights, which cannot be fetched here. Give its authors' ResNet50.pt with "
            "--weights FILE."
        )
    if not fetch:
        raise SettingsError(f"--features {name} needs weights. Give them with --weights FILE, or --fetch-weights.")
    if name == "inception":
        return fetch_weights(INCEPTION_URL)
    from torchvision.models import get_model_weights

    return fetch_weights(next(iter(get_model_weights(name))).url)


def _highest(cohort: ImageFolder) -> int:
    """The pixel value of full brightness: 255 for 8-bit images, for others the highest of the train images."""
    if cohort.dtype == np.uint8:
        return 255
    rows = cohort.rows("train")
    if not len(rows):
        raise InputError(f"{cohort.path} has no train images. Prepare it with a smaller --holdout.")
    return max(1, *(int(block.max()) for _, block in iterate_blocks(cohort, rows)))


# torchvision's classification networks, and RadImageNet's ResNet-50


def _open_torchvision(name: str, path: Path) -> Backbone:
    mean, deviation = imagenet_scaling(name, 3)
    told = f"{name}; whole image to {SIDE} × {SIDE}, bilinear, antialiased; ImageNet's mean and deviation"
    return _cut(
        name, read_published(path), path, title=f"{name} (ImageNet)", told=told, prepare=_scaled(mean, deviation)
    )


def _open_radimagenet(path: Path) -> Backbone:
    """ResNet-50 of Mei et al. 2022, as torchvision names its layers or in the row of RadImageNet's own files.

    Their example of use brings images to −1 … 1 and to 224 pixels a side, bilinearly and without antialiasing.
    """

    def prepare(images: torch.Tensor) -> torch.Tensor:
        return F.interpolate((images - 127.5) / 127.5, (SIDE, SIDE), mode="bilinear", align_corners=False)

    found = read_weights(path)
    weights = {_as_torchvision(key): tensor for key, tensor in found.items()}
    told = f"radimagenet; whole image to {SIDE} × {SIDE}, bilinear; −1 to 1"
    return _cut("resnet50", weights, path, title="ResNet-50 (RadImageNet)", told=told, prepare=prepare)


def _as_torchvision(key: str) -> str:
    """``backbone.4.0.conv1.weight`` is ``layer1.0.conv1.weight``; other names stay."""
    key = key.removeprefix("module.")
    place, _, rest = key.removeprefix("backbone.").partition(".")
    return f"{_RADIMAGENET[place]}.{rest}" if place in _RADIMAGENET else key.removeprefix("backbone.")


def _cut(
    name: str, weights: Mapping[str, torch.Tensor], path: Path, *, title: str, told: str, prepare: Prepare
) -> Backbone:
    """One of torchvision's networks with these weights, cut before its last layer, which may be missing."""
    network = build_network(name, classes=2, channels=3, seed=0)
    last = find_head(network)
    load_weights(network, weights, path=path, skip=(last,))
    width = network.get_submodule(last).in_features
    network.set_submodule(last, nn.Identity())
    weight, bias = weights.get(f"{last}.weight"), weights.get(f"{last}.bias")
    head = None
    if weight is not None and bias is not None:
        if weight.ndim != 2 or weight.shape[1] != width or bias.shape != weight.shape[:1]:
            shape = " × ".join(map(str, weight.shape))
            raise InputError(
                f"{path} holds {last}.weight as {shape}, not K × {width}. Give a file of {name}'s weights."
            )
        head = _head(weight, bias)
    return Backbone(title, network, prepare, told, digest_file(path), head)


def _head(weight: torch.Tensor, bias: torch.Tensor) -> Head:
    return Head(weight.double().numpy().copy(), bias.double().numpy().copy())


def _scaled(mean: tuple[float, ...], deviation: tuple[float, ...], mode: str = "bilinear") -> Prepare:
    """Brings images to `SIDE`, then takes the mean away and divides by the deviation (of white as 1)."""

    def prepare(images: torch.Tensor) -> torch.Tensor:
        small = F.interpolate(images / 255, (SIDE, SIDE), mode=mode, align_corners=False, antialias=True)
        centre, spread = (torch.tensor(values, device=images.device)[:, None, None] for values in (mean, deviation))
        return (small - centre) / spread

    return prepare


# The Inception-v3 of the FID


class _Inception(nn.Module):
    """Inception-v3 of Heusel et al.'s FID: 2,048 features of prepared images (n, 3, 299, 299).

    Its blocks are torch-fidelity's. Layers have the names of torch-fidelity's file of weights (Apache 2.0, from
    pytorch-fid); ``fc`` is not applied.
    """

    def __init__(self) -> None:
        from torch_fidelity import feature_extractor_inceptionv3 as blocks

        super().__init__()
        self.Conv2d_1a_3x3 = blocks.BasicConv2d(3, 32, kernel_size=3, stride=2)
        self.Conv2d_2a_3x3 = blocks.BasicConv2d(32, 32, kernel_size=3)
        self.Conv2d_2b_3x3 = blocks.BasicConv2d(32, 64, kernel_size=3, padding=1)
        self.MaxPool_1 = nn.MaxPool2d(3, stride=2)
        self.Conv2d_3b_1x1 = blocks.BasicConv2d(64, 80, kernel_size=1)
        self.Conv2d_4a_3x3 = blocks.BasicConv2d(80, 192, kernel_size=3)
        self.MaxPool_2 = nn.MaxPool2d(3, stride=2)
        self.Mixed_5b = blocks.InceptionA(192, pool_features=32)
        self.Mixed_5c = blocks.InceptionA(256, pool_features=64)
        self.Mixed_5d = blocks.InceptionA(288, pool_features=64)
        self.Mixed_6a = blocks.InceptionB(288)
        self.Mixed_6b = blocks.InceptionC(768, channels_7x7=128)
        self.Mixed_6c = blocks.InceptionC(768, channels_7x7=160)
        self.Mixed_6d = blocks.InceptionC(768, channels_7x7=160)
        self.Mixed_6e = blocks.InceptionC(768, channels_7x7=192)
        self.Mixed_7a = blocks.InceptionD(768)
        self.Mixed_7b = blocks.InceptionE_1(1280)
        self.Mixed_7c = blocks.InceptionE_2(2048)
        self.AvgPool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(2048, 1008)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Features (n, 2048) of prepared images (n, 3, 299, 299)."""
        for name, layer in self.named_children():
            images = images if name == "fc" else layer(images)
        return images.flatten(1)


def _open_inception(path: Path) -> Backbone:
    weights = read_weights(path)
    network = _Inception()
    load_weights(network, weights, path=path)
    head = _head(
        network.fc.weight.detach(), torch.zeros(network.fc.out_features)
    )  # without bias, as IS has always been
    told = f"inception; whole image to {INCEPTION_SIDE} × {INCEPTION_SIDE} as TensorFlow 1 did; −1 to 1"
    return Backbone("Inception-v3 of the FID", network, _as_tensorflow, told, digest_file(path), head)


def _as_tensorflow(images: torch.Tensor) -> torch.Tensor:
    """Images at 299 × 299, bilinear without antialiasing and with the corners of TensorFlow 1, from −1 to 1."""
    from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x

    size = (INCEPTION_SIDE, INCEPTION_SIDE)
    found: torch.Tensor = interpolate_bilinear_2d_like_tensorflow1x(images, size=size, align_corners=False)
    return (found - 128) / 128


# DINOv2


class _ClassToken(nn.Module):
    """The vector of a Dinov2Model's class token, behind its last normalization."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Vectors (n, D) of prepared images (n, 3, 224, 224)."""
        found: torch.Tensor = self.model(images).last_hidden_state[:, 0]
        return found


def _open_dinov2(folder: Path) -> Backbone:
    """DINOv2 of Oquab et al. 2023 in transformers' format; nothing but safetensors is read."""
    from transformers import Dinov2Model

    files = [folder / "config.json", folder / "model.safetensors"]
    for file in files:
        if not file.is_file():
            raise InputError(f"{file} does not exist. Give a folder as transformers writes it, such as dinov2-small.")
    if (folder / "adapter_config.json").exists():  # transformers would load it, whatever its files are
        raise InputError(f"{folder} holds an adapter. Give the folder of the model alone.")
    try:
        kind = json.loads(files[0].read_text("utf-8")).get("model_type")
    except (OSError, ValueError, AttributeError) as error:
        raise InputError(f"{files[0]} cannot be read. Fetch the folder again.") from error
    if kind != "dinov2":
        raise InputError(f"{files[0]} describes a model of kind {str(kind)[:40]!r}, not dinov2. Give another folder.")
    try:
        loaded: Any = Dinov2Model.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, output_loading_info=True, dtype=torch.float32
        )
    except Exception as error:  # transformers and safetensors raise what they like
        raise InputError(
            f"{files[1]} cannot be read ({' '.join(str(error).split())[:200]}). Fetch it again."
        ) from error
    model, told = loaded
    missing = sorted(key for key in told["missing_keys"] if "mask_token" not in key)
    if missing or told["mismatched_keys"]:
        first = missing[0] if missing else str(next(iter(told["mismatched_keys"])))
        raise InputError(f"{files[1]} does not fit its config.json ({first}). Fetch the folder again.")
    if SIDE % model.config.patch_size:
        raise InputError(f"{files[0]} has patches of {model.config.patch_size} pixels, not 14. Give another folder.")
    digest = hashlib.sha256("".join(map(digest_file, files)).encode()).hexdigest()
    preparation = f"dinov2; whole image to {SIDE} × {SIDE}, bicubic, antialiased; ImageNet's mean and deviation"
    prepare = _scaled(IMAGENET_MEAN, IMAGENET_DEVIATION, mode="bicubic")
    return Backbone("DINOv2", _ClassToken(model), prepare, preparation, digest)
