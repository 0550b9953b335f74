"""What `measure_utility` can be told."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from unalike.cohort.settings import PictureSettings
from unalike.errors import SettingsError
from unalike.vision.names import NETWORKS

ALL = "all"
_MIX = re.compile(r"(\d+|all):(\d+|all)")


@dataclass(frozen=True)
class UtilitySettings(PictureSettings):
    """Everything that decides a measurement of utility; saved in its header."""

    task: Literal["classify", "segment"] = "classify"
    """classify: a class for each image; segment: a mask (channel mask) for each image."""

    networks: tuple[str, ...] = ("resnet18",)
    """Classification: resnet18, resnet50, vgg16, vgg19, alexnet, densenet121, mobilenet_v2, googlenet, or all."""

    weights: str = ""
    """Folder of torchvision's ImageNet weights (files as torchvision names them, .pth or .safetensors). Without it
    networks begin from random weights, which is said in the table."""

    side: int = 0
    """Height and width (pixels) to which images are brought for the network; 0 is 224 with ImageNet weights, else the
    images' own size, and never less than the network takes."""

    folds: int = 5
    """Parts of the training images, by subject; each in turn tells when to stop."""

    epochs: int = 50
    """At most so many passes over the training images."""

    patience: int = 5
    """Training stops when the loss on the part left out has not fallen for so many epochs."""

    learning_rate: float = 3e-4
    """Of AdamW."""

    weight_decay: float = 0.01
    """Of AdamW."""

    batch_size: int = 32
    """Images in an update."""

    augment: bool = True
    """Also train on real images with traditional augmentation: mirroring, moving, turning, scaling, noise, contrast."""

    tune: int = 0
    """Trials of Optuna's search for learning rate, weight decay and batch size, by the loss on the first fold's left
    out part; 0 takes the values above."""

    mix: tuple[str, ...] = ()
    """Classification: real:synthetic images to train on, such as 200:0 0:200 0:2000 200:200 200:2000 (all for all
    there are), each with the first of the networks."""

    mix_batches: int = 6250
    """With --mix: updates of Adam (learning rate 1e-4, batches of 32)."""

    mix_checks: int = 20
    """With --mix: so often on the way the validation AUC is measured; the best checkpoint is tested."""

    repetitions: int = 10
    """With --mix: trainings of each proportion, each with images, order and weights of its own."""

    segment_updates: int = 2000
    """Segmentation: updates of AdamW at most."""

    segment_preset: Literal["unet", "nnunet"] = "unet"
    """Segmentation: MONAI's U-Net with residual units, or one planned as nnU-Net does, with deep supervision."""

    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Number format inside networks; auto takes bfloat16 where the machine has it in hardware."""

    @property
    def chosen_networks(self) -> tuple[str, ...]:
        """Names of the networks, in the order asked for; the eight for ``all``."""
        return NETWORKS if ALL in self.networks else tuple(dict.fromkeys(self.networks))

    @property
    def mixtures(self) -> tuple[tuple[int | None, int | None], ...]:
        """Numbers of real and synthetic images of each proportion; None for all there are."""
        pairs = (part.split(":") for part in self.mix)
        return tuple(
            (None if real == ALL else int(real), None if synthetic == ALL else int(synthetic))
            for real, synthetic in pairs
        )

    def check(self) -> None:
        """Raise `SettingsError` for a value that makes no sense."""
        unknown = [name for name in self.networks if name not in (*NETWORKS, ALL)]
        if unknown or not self.networks:
            raise SettingsError(f"--networks {' '.join(unknown)}: there are {', '.join(NETWORKS)}, all.")
        for part in self.mix:
            if not _MIX.fullmatch(part) or part in {"0:0"}:
                raise SettingsError(f"--mix {part}: give real:synthetic, such as 200:2000, 0:all.")
        for name in ("folds", "epochs", "patience", "batch_size", "mix_batches", "mix_checks", "repetitions"):
            least = 2 if name in {"folds", "batch_size"} else 1
            if getattr(self, name) < least:
                raise SettingsError(f"--{name.replace('_', '-')} {getattr(self, name)}: give {least} or more.")
        if self.segment_updates < 1:
            raise SettingsError(f"--segment-updates {self.segment_updates}: give 1 or more.")
        if self.tune < 0 or self.side < 0:
            raise SettingsError("--tune and --side cannot be negative.")
        if self.learning_rate <= 0 or self.weight_decay < 0:
            raise SettingsError("--learning-rate must be above 0 and --weight-decay not below it.")
