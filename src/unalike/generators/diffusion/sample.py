"""Sampling: from noise, given images, or between two noises, with the samplers of ``samplers``.

Each sample has a `torch.Generator` of its own whose seed is the sample's number, for the first noise and, under
ancestral samplers, for the noise of each step. The network always works on `GROUP` images, the last group being
filled up: the kernels of a CPU round differently for other batch shapes (seen: 5 of 160,000 pixels off by one
in float32), and so no batch size and no neighbour changes a sample by one bit.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from unalike import folders
from unalike.errors import SettingsError
from unalike.generators.diffusion.conditions import Asked, ask, ask_each
from unalike.generators.diffusion.model import DiffusionModel, open_model
from unalike.generators.diffusion.samplers import SAMPLERS, Known, make_scheduler, run_sampler, slerp
from unalike.generators.diffusion.settings import SampleSettings
from unalike.records import MASK, Pixels
from unalike.seeds import generator_for

# Images the network works on at once. Part of what a sample is: changing it changes last bits.
GROUP = {"cpu": 8}  # elsewhere 64


@dataclass(frozen=True)
class Given:
    """What samples are made from besides noise; sample number s takes entry s modulo n.

    ``images`` (n, C, H, W) are changed (image to image) or, where ``keep`` (n, 1, H, W) is true, kept bit for bit
    (inpainting). ``masks`` (n, 1, H, W) are for a network that is given a mask, pixels as in the cohort. ``ends`` are
    the seeds between whose noises samples 0 to ``count`` − 1 lie.
    """

    images: Pixels | None = None
    keep: npt.NDArray[np.bool_] | None = None
    masks: Pixels | None = None
    ends: tuple[int, int] | None = None
    count: int = 0


class DiffusionSampler:
    """Draws from a trained network."""

    def __init__(
        self,
        model: DiffusionModel,
        settings: SampleSettings,
        *,
        given: Given | None = None,
        label_counts: Mapping[str, int] | None = None,
        guidable: bool = True,
    ) -> None:
        """``label_counts`` are those of the training images; samples of no given label are drawn in proportion.

        ``guidable``: the network was also trained without labels, which guidance needs.

        Raises `SettingsError` if the settings do not fit the model: steps, sampler, label, attributes, given images.
        """
        self.model, self.settings, self.given = model, settings, given or Given()
        self.precision = model.precision
        self.attributes = dict(entry.split("=", 1) for entry in settings.attributes)
        self.labels = [label for label, count in (label_counts or {}).items() if count]
        self.shares = np.array([(label_counts or {})[label] for label in self.labels], dtype=np.float64)
        make_scheduler(settings.sampler, model.scheduler, settings.steps)  # says what does not fit
        ask(model.conditions, count=1, label=settings.label, attributes=self.attributes)
        if settings.guidance != 1 and not guidable:
            raise SettingsError(
                f"guidance = {settings.guidance}: this network was never trained without labels. Leave it at 1."
            )
        self._check()

    def _check(self) -> None:
        """Refuse what cannot be drawn together."""
        conditions, given, settings = self.model.conditions, self.given, self.settings
        asking = bool(conditions.labels or conditions.attributes)
        if settings.guidance != 1 and not asking:
            raise SettingsError(
                f"guidance = {settings.guidance}: this run was trained without labels and attributes. Leave it at 1."
            )
        if conditions.mask != (given.masks is not None):
            raise SettingsError(
                "this run draws images for masks: give --masks FOLDER."
                if conditions.mask
                else "--masks: this run was not trained with --condition mask. Leave it out."
            )
        partly = given.images is not None and given.keep is None
        if partly and settings.strength == 1:
            raise SettingsError(
                "--images without --strength, --box or --redraw: nothing of them would be left. Give one of these."
            )
        if settings.strength != 1 and not partly:
            raise SettingsError(
                f"strength = {settings.strength} is for --images that are changed as a whole. Leave it out."
            )
        if given.ends is None:
            return
        if SAMPLERS[settings.sampler].fresh_noise:
            raise SettingsError(
                f"--interpolate needs a sampler without fresh noise; {settings.sampler} has it. Use ddim."
            )
        if conditions.labels and not settings.label:
            raise SettingsError(
                f"--interpolate needs one --label for all images. There are: {', '.join(conditions.labels)}."
            )

    def draw(self, seeds: Sequence[int]) -> Pixels:
        """Pixels (len(seeds), C, H, W), one sample for each seed."""
        size = GROUP.get(self.model.place.type, 64)
        groups = [list(seeds[begin : begin + size]) for begin in range(0, len(seeds), size)]
        drawn = [self._denoise(group + group[-1:] * (size - len(group)))[: len(group)] for group in groups]
        return np.concatenate(drawn)

    def describe(self, seed: int) -> dict[str, Any]:
        """What the record of a sample says of it: label and attributes that it was drawn with."""
        about: dict[str, Any] = {"label": self._label(seed)} if self.model.conditions.labels else {}
        return about | ({"attributes": dict(self.attributes)} if self.attributes else {})

    def _label(self, seed: int) -> str:
        """The class of a sample: the one asked for, or one drawn in the proportions of the training images."""
        if self.settings.label or not self.labels:
            return self.settings.label
        shares = self.shares / self.shares.sum()
        return str(generator_for(seed, "label").choice(self.labels, p=shares))

    def _pick(self, stack: npt.NDArray[Any], seeds: Sequence[int]) -> npt.NDArray[Any]:
        """The entries of given images that belong to these samples."""
        return stack[[seed % len(stack) for seed in seeds]]

    @torch.inference_mode()
    def _denoise(self, seeds: Sequence[int]) -> Pixels:
        """Pixels (len(seeds), C, H, W)."""
        model, settings = self.model, self.settings
        # Generators of the CPU on any device: the same seed is the same noise everywhere.
        streams = [torch.Generator().manual_seed(seed) for seed in seeds]
        images = None if self.given.images is None else self._pick(self.given.images, seeds)
        start = None if images is None else model.encode(images)
        keep = None if self.given.keep is None else self._pick(self.given.keep, seeds)
        known = None if start is None or keep is None else Known(start, shrink_keep(keep, model.shape).to(model.place))
        mask = None if self.given.masks is None else self._mask(seeds)
        x_0 = run_sampler(
            Guided(model, self._asked(seeds, mask), settings.guidance),
            name=settings.sampler,
            trained=model.scheduler,
            steps=settings.steps,
            noise=self._noise(seeds, streams).to(model.place),
            streams=streams,
            known=known,
            start=None if known is not None else start,
            strength=settings.strength if known is None and start is not None else 1.0,
        )
        pixels = model.decode(x_0, mask)
        if images is not None and keep is not None:
            pixels = np.where(keep, images, pixels)
        return pixels

    def _noise(self, seeds: Sequence[int], streams: Sequence[torch.Generator]) -> torch.Tensor:
        """First noise (B, C', h, w) on the CPU."""
        shape = self.model.shape
        if self.given.ends is None:
            return torch.stack([torch.randn(shape, generator=stream) for stream in streams])
        a, b = (torch.randn(shape, generator=torch.Generator().manual_seed(end)) for end in self.given.ends)
        last = max(self.given.count - 1, 1)
        return torch.stack([slerp(a, b, seed / last) for seed in seeds])

    def _mask(self, seeds: Sequence[int]) -> torch.Tensor:
        """Masks (B, 1, H, W) in [−1, 1]."""
        assert self.given.masks is not None  # noqa: S101
        scale, masks = self.model.scale, self._pick(self.given.masks, seeds)
        whole = np.zeros((len(masks), len(scale.channels), *masks.shape[2:]), scale.dtype)
        whole[:, scale.channels.index(MASK)] = masks[:, 0]
        mask = self.model.mask_of(whole)
        assert mask is not None  # noqa: S101
        return mask

    def _asked(self, seeds: Sequence[int], mask: torch.Tensor | None) -> Asked | None:
        conditions = self.model.conditions
        if not (conditions.vector or conditions.mask):
            return None
        labels = [self._label(seed) for seed in seeds]
        asked = ask_each(conditions, labels, [self.attributes] * len(seeds)).to(self.model.place)
        return dataclasses.replace(asked, mask=mask)


@dataclass(frozen=True)
class Guided:
    """f(x_t, t) with classifier-free guidance: f(∅) + w (f(c) − f(∅)) (Ho and Salimans 2021, equation 6, w here being
    their 1 + w). Weight 1 asks the conditional network alone, bit for bit."""

    model: DiffusionModel
    asked: Asked | None
    weight: float

    def __call__(self, x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """What the network predicts of x_t (B, C', h, w) at time t."""
        if self.asked is None or self.weight == 1:
            return self.model.predict(x_t, t, self.asked)
        if self.weight == 0:
            return self.model.predict(x_t, t, self.asked.none())
        both = self.model.predict(torch.cat([x_t, x_t]), t, self.asked.cat(self.asked.none()))
        conditional, unconditional = both.chunk(2)
        guided = unconditional + self.weight * (conditional - unconditional)
        channels = x_t.shape[1]  # a learned variance, behind them, is the conditional network's
        return torch.cat([guided[:, :channels], conditional[:, channels:]], dim=1)


def shrink_keep(keep: npt.NDArray[np.bool_], shape: tuple[int, int, int]) -> torch.Tensor:
    """``keep`` (B, 1, H, W) at the size of what is diffused: kept only where all pixels are."""
    height, width = shape[1:]
    blocks = keep.reshape(len(keep), 1, height, keep.shape[2] // height, width, keep.shape[3] // width)
    return torch.from_numpy(blocks.all(axis=(3, 5)))


def open_diffusion(
    run: Path,
    *,
    content: Mapping[str, Any],
    settings: SampleSettings,
    device: str,
    given: Given | None = None,
) -> DiffusionSampler:
    """Sampler of the network in ``run``.

    Raises `SettingsError` if the settings do not fit the run, and `FolderError` if the model cannot be read.
    """
    model = open_model(
        run / folders.MODEL,
        content=content,
        device=device,
        precision=settings.precision,
        decay=settings.ema_decay or None,
    )
    return DiffusionSampler(
        model,
        settings,
        given=given,
        label_counts=content.get("label_counts"),
        guidable=content.get("guidable", True),
    )
