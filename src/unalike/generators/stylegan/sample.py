"""Sampling: latent and noise of each sample from its own seed, one pass through the generator.

The network always works on `GROUP` images, the last group being filled up, so that neither batch size nor neighbours
change a sample by one bit (kernels round differently for other batch shapes).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from unalike import folders
from unalike.errors import SettingsError
from unalike.generators.stylegan.model import StyleganModel, open_model
from unalike.generators.stylegan.settings import StyleganDrawSettings
from unalike.records import Pixels
from unalike.seeds import generator_for

# Images the network works on at once. Part of what a sample is: changing it changes last bits.
GROUP = {"cpu": 8}  # elsewhere 64


class StyleganSampler:
    """Draws from a trained generator."""

    def __init__(
        self,
        model: StyleganModel,
        settings: StyleganDrawSettings,
        *,
        label_counts: Mapping[str, int] | None = None,
    ) -> None:
        """``label_counts`` are those of the training images; samples of no given label are drawn in proportion.

        Raises `SettingsError` for a label that the model does not know.
        """
        self.model, self.settings = model, settings
        if settings.label and not model.labels:
            raise SettingsError(f"--label {settings.label}: this run was trained without labels. Leave it out.")
        if settings.label and settings.label not in model.labels:
            raise SettingsError(f"--label {settings.label} is unknown. There are: {', '.join(model.labels)}.")
        counts = np.array([(label_counts or {}).get(label, 1) for label in model.labels], dtype=np.float64)
        self.shares = counts / counts.sum() if len(counts) else counts
        with torch.inference_mode():
            self.centres = model.centres() if settings.truncation != 1 else None

    @property
    def precision(self) -> str:
        """Number format inside the network."""
        return self.model.precision

    def draw(self, seeds: Sequence[int]) -> Pixels:
        """Pixels (len(seeds), C, H, W), one sample for each seed."""
        size = GROUP.get(self.model.place.type, 64)
        groups = [list(seeds[begin : begin + size]) for begin in range(0, len(seeds), size)]
        drawn = [self._generate(group + group[-1:] * (size - len(group)))[: len(group)] for group in groups]
        return np.concatenate(drawn)

    def describe(self, seed: int) -> dict[str, Any]:
        """What the record of a sample says of it: the label that it was drawn with."""
        return {"label": self.label_of(seed)} if self.model.labels else {}

    def label_of(self, seed: int) -> str:
        """The class of a sample: the one asked for, or one drawn in the proportions of the training images."""
        if self.settings.label or not self.model.labels:
            return self.settings.label
        return str(generator_for(seed, "label").choice(self.model.labels, p=self.shares))

    @torch.inference_mode()
    def _generate(self, seeds: Sequence[int]) -> Pixels:
        return self.model.decode(self.model.synthesize(self.styles(seeds), self.noise(seeds)))

    def styles(self, seeds: Sequence[int]) -> torch.Tensor:
        """Styles (n, layers, latent) of these samples, truncated."""
        model = self.model
        z = torch.stack([draw_normal(seed, "latent", model.shape.latent) for seed in seeds])
        labels = [self.label_of(seed) for seed in seeds]
        w: torch.Tensor = model.network.mapping(z.to(model.place), model.one_hot(labels))
        if self.centres is not None:
            rows = [model.labels.index(label) if model.labels else 0 for label in labels]
            w = self.centres[rows].lerp(w, self.settings.truncation)
        return w[:, None].expand(-1, model.shape.layers, -1)

    def noise(self, seeds: Sequence[int]) -> torch.Tensor:
        """Noise (n, noise_count) of all layers of these samples."""
        drawn = torch.stack([draw_normal(seed, "noise", self.model.shape.noise_count) for seed in seeds])
        return drawn.to(self.model.place)


def draw_normal(seed: int, purpose: str, count: int) -> torch.Tensor:
    """(count,) from N(0, 1), float32: drawn on the CPU, so that a seed is the same sample on any device."""
    return torch.from_numpy(generator_for(seed, f"stylegan-{purpose}").standard_normal(count, np.float32))


def open_stylegan(
    run: Path, *, content: Mapping[str, Any], settings: StyleganDrawSettings, device: str
) -> StyleganSampler:
    """Sampler of the generator in ``run``.

    Raises `SettingsError` if the settings do not fit the run, and `FolderError` if the model cannot be read.
    """
    model = open_model(
        run / folders.MODEL,
        content=content,
        device=device,
        precision=settings.precision,
        decay=settings.ema_decay or None,
    )
    return StyleganSampler(model, settings, label_counts=content.get("label_counts"))
