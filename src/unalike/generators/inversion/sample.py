"""Drawing from a base with learned concepts: composed prompts, between two prompts, from given images.

Each sample has a `torch.Generator` of its own, as in `unalike.generators.diffusion.sample`, and groups of fixed size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from unalike import folders
from unalike.errors import SettingsError
from unalike.generators.diffusion.sample import Given, shrink_keep
from unalike.generators.diffusion.samplers import SAMPLERS, Known, make_scheduler, run_sampler, slerp
from unalike.generators.inversion.model import InversionModel, open_model
from unalike.generators.inversion.prompts import Concept, blend, parse_prompt
from unalike.generators.inversion.settings import InversionDrawSettings
from unalike.records import Pixels
from unalike.seeds import generator_for

GROUP = {"cpu": 4}  # images the network works on at once, elsewhere 16; part of what a sample is


class InversionSampler:
    """Draws from a base with learned concepts."""

    def __init__(
        self, model: InversionModel, settings: InversionDrawSettings, *, given: Given | None = None, count: int = 0
    ) -> None:
        """``count``: how many samples lie between two prompts (``morph``).

        Raises `SettingsError` if the settings do not fit the base: steps, sampler, label, prompt, given images.
        """
        self.model, self.settings, self.given, self.count = model, settings, given or Given(), count
        self.told: dict[str, torch.Tensor] = {}
        make_scheduler(settings.sampler, model.base.scheduler, settings.steps)  # says what does not fit
        if settings.label and settings.label not in model.labels:
            there = ", ".join(model.labels) or "none: it was trained without --condition label"
            raise SettingsError(f"--label {settings.label} is unknown. There are: {there}.")
        self.ends = [_parse(text, model) for text in settings.morph]
        self.asked = _parse(settings.prompt, model) if settings.prompt else None
        self._check()

    def _check(self) -> None:
        """Refuse what cannot be drawn together."""
        given, settings = self.given, self.settings
        partly = given.images is not None and given.keep is None
        if given.masks is not None:
            raise SettingsError("--masks: a text-to-image base draws for prompts, not for masks. Leave it out.")
        if partly and settings.strength == 1:
            raise SettingsError(
                "--images without --strength, --box or --redraw: nothing of them would be left. Give one of these."
            )
        if settings.strength != 1 and not partly:
            raise SettingsError(
                f"strength = {settings.strength} is for --images that are changed as a whole. Leave it out."
            )
        if given.ends is not None and SAMPLERS[settings.sampler].fresh_noise:
            raise SettingsError(
                f"--interpolate needs a sampler without fresh noise; {settings.sampler} has it. Use ddim."
            )

    @property
    def precision(self) -> str:
        """Number format inside the networks."""
        return self.model.base.precision

    def draw(self, seeds: Sequence[int]) -> Pixels:
        """Pixels (len(seeds), C, H, W), one sample for each seed."""
        size = GROUP.get(self.model.base.place.type, 16)
        groups = [list(seeds[begin : begin + size]) for begin in range(0, len(seeds), size)]
        drawn = [self._denoise(group + group[-1:] * (size - len(group)))[: len(group)] for group in groups]
        return np.concatenate(drawn)

    def describe(self, seed: int) -> dict[str, Any]:
        """What the record of a sample says of it: its class, where the run has classes and no prompt was given."""
        if not self.model.labels or self.asked is not None or self.ends:
            return {}
        return {"label": self._label(seed)}

    def _label(self, seed: int) -> str:
        """The class asked for, or one drawn in the proportions of the training images."""
        if self.settings.label:
            return self.settings.label
        labels = list(self.model.labels)
        counts = np.array([self.model.prompts[self.model.labels[label]] for label in labels], dtype=np.float64)
        return str(generator_for(seed, "label").choice(labels, p=counts / counts.sum()))

    def concepts(self, seed: int) -> tuple[Concept, ...]:
        """What a sample is drawn of."""
        if self.ends:
            return blend(self.ends[0], self.ends[1], seed / max(self.count - 1, 1))
        if self.asked is not None:
            return self.asked
        if self.model.labels:
            return (Concept(self.model.labels[self._label(seed)], 1.0),)
        (prompt,) = self.model.prompts
        return (Concept(prompt, 1.0),)

    @torch.inference_mode()
    def _denoise(self, seeds: Sequence[int]) -> Pixels:
        """Pixels (len(seeds), C, H, W)."""
        model, settings, given = self.model, self.settings, self.given
        streams = [torch.Generator().manual_seed(0 if self.ends else seed) for seed in seeds]
        images = None if given.images is None else _pick(given.images, seeds)
        start = None if images is None else model.encode(images)
        keep = None if given.keep is None else _pick(given.keep, seeds)
        known = None
        if start is not None and keep is not None:
            known = Known(start, shrink_keep(self._at_side(keep), model.shape).to(start.device))
        latents = run_sampler(
            Composed(model, [self.concepts(seed) for seed in seeds], settings.guidance, self._tell),
            name=settings.sampler,
            trained=model.base.scheduler,
            steps=settings.steps,
            noise=self._noise(seeds, streams).to(model.base.place),
            streams=streams,
            known=known,
            start=None if known is not None else start,
            strength=settings.strength if known is None and start is not None else 1.0,
        )
        pixels = model.decode(latents)
        if images is not None and keep is not None:
            pixels = np.where(keep, images, pixels)
        return pixels

    def _at_side(self, keep: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
        """``keep`` (B, 1, H, W) at the side that is drawn at: kept only where all pixels beneath are."""
        side = self.model.side
        edges = [np.arange(side + 1) * length / side for length in keep.shape[2:]]
        (top, left), (below, right) = (
            [np.floor(e[:-1]).astype(int) for e in edges],
            [np.ceil(e[1:]).astype(int) for e in edges],
        )
        # Redrawn pixels above and left of each place; four of these sums count those of a rectangle.
        sums = np.pad((~keep[:, 0]).cumsum(axis=1).cumsum(axis=2), ((0, 0), (1, 0), (1, 0)))

        def at(rows: npt.NDArray[np.int_], columns: npt.NDArray[np.int_]) -> npt.NDArray[np.int_]:
            return sums[:, rows[:, None], columns]

        redrawn = at(below, right) - at(top, right) - at(below, left) + at(top, left)
        kept: npt.NDArray[np.bool_] = (redrawn == 0)[:, None]
        return kept

    def _noise(self, seeds: Sequence[int], streams: Sequence[torch.Generator]) -> torch.Tensor:
        """First noise (B, c, h, w) on the CPU."""
        shape = self.model.shape
        if self.given.ends is None:
            return torch.stack([torch.randn(shape, generator=stream) for stream in streams])
        a, b = (torch.randn(shape, generator=torch.Generator().manual_seed(end)) for end in self.given.ends)
        return torch.stack([slerp(a, b, seed / max(self.given.count - 1, 1)) for seed in seeds])

    def _tell(self, text: str) -> torch.Tensor:
        """What the text encoder says of a text (length, d'), kept."""
        if text not in self.told:
            self.told[text] = self.model.base.encode_text(text, dict(self.model.learned))
        return self.told[text]


def _parse(text: str, model: InversionModel) -> tuple[Concept, ...]:
    """The concepts of a prompt that weigh anything: a weight of 0 is as if it were not there."""
    return tuple(concept for concept in parse_prompt(text, known=model.learned) if concept.weight)


def _pick(stack: npt.NDArray[Any], seeds: Sequence[int]) -> npt.NDArray[Any]:
    """The entries of given images that belong to these samples."""
    return stack[[seed % len(stack) for seed in seeds]]


@dataclass(frozen=True)
class Composed:
    """f(∅) + g Σ_i w_i (f(c_i) − f(∅)): composable diffusion (Liu et al. 2022, equation 11) with guidance g.

    One pass for each concept and one without, all of one size, so that what an image comes out as does not depend on
    how many concepts its neighbours have; a single concept of weight 1 under guidance 1 is the conditional network.
    """

    model: InversionModel
    concepts: Sequence[Sequence[Concept]]
    guidance: float
    tell: Any

    def __call__(self, x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """What the base predicts of x_t (B, c, h, w) at time t."""
        asked, most = self.concepts, max(len(asked) for asked in self.concepts)
        alone = [self.guidance == 1 and len(those) == 1 and those[0].weight == 1 for those in asked]
        told = [
            self._predict(x_t, t, [those[k].text if k < len(those) else "" for those in asked]) for k in range(most)
        ]
        if all(alone):
            return told[0]
        plain = self._predict(x_t, t, [""] * len(x_t))
        moved = torch.zeros_like(plain)
        for k, part in enumerate(told):
            weights = [those[k].weight if k < len(those) else 0.0 for those in asked]
            moved = moved + torch.tensor(weights, device=x_t.device)[:, None, None, None] * (part - plain)
        conditional = torch.tensor(alone, device=x_t.device)[:, None, None, None]
        return torch.where(conditional, told[0], plain + self.guidance * moved)

    def _predict(self, x_t: torch.Tensor, t: torch.Tensor, texts: Sequence[str]) -> torch.Tensor:
        """What the base predicts of x_t (B, c, h, w) at time t, a text for each."""
        return self.model.base.predict(x_t, t, torch.stack([self.tell(text) for text in texts]))


def open_inversion(
    run: Path,
    *,
    content: Mapping[str, Any],
    settings: InversionDrawSettings,
    device: str,
    given: Given | None = None,
    count: int = 0,
) -> InversionSampler:
    """Sampler of the concept in ``run``.

    Raises `SettingsError` if the settings do not fit the run, and `FolderError` if base or model cannot be read.
    """
    model = open_model(
        run / folders.MODEL,
        content=content,
        device=device,
        precision=settings.precision,
        base=settings.base,
        config=settings.base_config,
        decay=settings.ema_decay or None,
        embeddings=settings.embeddings,
    )
    return InversionSampler(model, settings, given=given, count=count)
