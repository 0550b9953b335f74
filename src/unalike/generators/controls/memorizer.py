"""A generator that copies: training images, faintly changed. The positive control of every audit.

**Its model is the training images themselves**, and every sample shows a training patient. Neither the run
nor its samples may be shared with anyone who may not see the patients.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy.ndimage
from safetensors.numpy import load_file, save_file

from unalike import folders
from unalike.errors import SettingsError
from unalike.generators.data import PixelScale, TrainImages, refuse_single_patients
from unalike.generators.settings import DrawSettings, require
from unalike.records import MASK, Pixels
from unalike.seeds import generator_for

IMAGES = "training-images.safetensors"
DESCRIPTION = "memorizer.json"


@dataclass(frozen=True)
class MemorizerSettings:
    """Settings of the memorizing control. With all three at 0 each sample is exactly a training image."""

    noise: float = 4.0
    """Standard deviation of the noise added to each pixel (grey levels of 255)."""

    blend: float = 0.05
    """Share of another training image mixed in (0 to 1)."""

    shift: float = 0.25
    """Largest shift along each axis, drawn uniformly (pixels)."""

    def __post_init__(self) -> None:
        """Refuse what is no noise, share or distance."""
        require(self.noise >= 0, "noise", self.noise, "0 or more grey levels")
        require(0 <= self.blend <= 1, "blend", self.blend, "a share from 0 to 1")
        require(self.shift >= 0, "shift", self.shift, "0 or more pixels")


def train_memorizer(
    images: TrainImages, *, out: Path, settings: MemorizerSettings, seed: int, device: str
) -> dict[str, Any]:
    """Copy the training images to ``out``/model; returns what the run's header says about it."""
    del seed, device
    pixels = images.read_all()
    place = out / folders.MODEL
    place.mkdir(exist_ok=True)
    save_file({"images": np.ascontiguousarray(pixels)}, place / IMAGES)
    labels = _labels_of(images)
    folders.write_json(place / DESCRIPTION, {"holds_training_images": True, "labels": labels, **asdict(settings)})
    return {"parameters": int(pixels.size), "holds_training_images": True}


def _labels_of(images: TrainImages) -> list[str]:
    """Class of each training image; none at all where a class would name a single patient."""
    labels = images.cohort.column("label")[images.rows].tolist()
    try:
        refuse_single_patients(labels, images.cohort.column("subject")[images.rows].tolist())
    except SettingsError:
        return []
    return [str(label) for label in labels] if any(labels) else []


@dataclass(frozen=True)
class MemorizerSampler:
    """Draws training images (N, C, H, W), faintly changed; each sample from its own stream."""

    images: Pixels
    scale: PixelScale
    settings: MemorizerSettings
    labels: Sequence[str] = ()

    def describe(self, seed: int) -> dict[str, Any]:
        """A sample has the class of the image that it shows."""
        return {"label": self.labels[self.copied(seed)]} if self.labels else {}

    def draw(self, seeds: Sequence[int]) -> Pixels:
        """Pixels (len(seeds), C, H, W)."""
        return np.concatenate([self._draw_one(seed) for seed in seeds])

    def copied(self, seed: int) -> int:
        """Which training image (its position among them) the sample of this seed shows."""
        return int(generator_for(seed, "memorizer-sample").integers(len(self.images)))

    def _draw_one(self, seed: int) -> Pixels:
        # Everything is drawn whatever the settings, so that one of them changes no other's numbers.
        rng = generator_for(seed, "memorizer-sample")
        copied, mixed = rng.integers(len(self.images)), rng.integers(len(self.images))
        shift = rng.uniform(-1, 1, size=2) * self.settings.shift
        noise = rng.standard_normal(self.images.shape[1:]) * (self.settings.noise * self.scale.highest / 255)
        noise[[name == MASK for name in self.scale.channels]] = 0  # classes are not bright or dark
        image = (1 - self.settings.blend) * self.images[copied] + self.settings.blend * self.images[mixed]
        if shift.any():
            image = scipy.ndimage.shift(image, (0, *shift), order=1, mode="nearest")
        return self.scale.from_grey((image + noise)[None])


def open_memorizer(run: Path, *, content: Mapping[str, Any], settings: DrawSettings, device: str) -> MemorizerSampler:
    """Sampler of the images in ``run``."""
    del settings, device
    described = folders.read_json(run / folders.MODEL / DESCRIPTION)
    described.pop("holds_training_images")
    labels = described.pop("labels", [])
    images = load_file(run / folders.MODEL / IMAGES)["images"]
    return MemorizerSampler(images, PixelScale.from_content(content), MemorizerSettings(**described), labels)
