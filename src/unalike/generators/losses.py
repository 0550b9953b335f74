"""How badly a run explains an image: the number that a membership test asks a model for.

A model is fitted to make a loss small on its training images, so the loss of an image says something about whether it
was among them (Yeom et al. 2018). For diffusion it is the denoising error at several noise levels (Matsumoto, Miura
and Yanai 2023; Carlini et al. 2023, section 5); for a StyleGAN how far the nearest image that it can draw is away; for
the Gaussian control the negative log-likelihood; for the memorizer the distance to the nearest image it keeps.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import scipy.linalg
import torch

from unalike import folders
from unalike.errors import FolderError, InputError
from unalike.generators.controls.gaussian import GaussianModel, open_gaussian
from unalike.generators.controls.memorizer import open_memorizer
from unalike.generators.data import PixelScale
from unalike.generators.diffusion.model import DiffusionModel, open_model
from unalike.generators.diffusion.noise import alpha_bars, to_noise
from unalike.generators.settings import DrawSettings
from unalike.generators.stylegan.model import StyleganModel
from unalike.generators.stylegan.model import open_model as open_stylegan
from unalike.generators.stylegan.project import project_images
from unalike.generators.stylegan.settings import ProjectionSettings
from unalike.records import FloatArray, Pixels
from unalike.seeds import generator_for

# Shares of the run's noise levels. Little noise hides nothing and much noise hides everything: what was learned by
# heart shows in between (Carlini et al. 2023, figure 8, find t = 100 of 1000 best).
TIME_SHARES = (0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.45, 0.7)
DRAWS = 4
# Images the network works on at once. Part of what a loss is, as in `sample`: another batch shape rounds differently.
GROUP = 16
# Floors of the Gaussian control: a pixel that never varies, or a frequency without power, would make one grey level
# of difference infinitely unlikely.
LEAST_SPREAD = 1.0  # grey levels
LEAST_POWER = 0.01  # of a mean power of 1
LEAST_ERROR = 1e-12


class Losses(Protocol):
    """What a run says of images: a name, the names of its loss levels, and the losses."""

    @property
    def name(self) -> str:
        """Kind of the run."""

    @property
    def levels(self) -> tuple[str, ...]:
        """What each column of the losses is."""

    def losses(self, images: Pixels, *, seed: int) -> FloatArray:
        """Losses (n, levels) of images (n, C, H, W); the smaller, the better the run explains the image."""


@dataclass(frozen=True)
class DiffusionLosses:
    """Denoising error of the network that samples are drawn from (the weight average).

    Level l is a time step t, draw d a noise ε of its own stream: all images meet the same noise. The loss is
    log(mean over draws and pixels of (ε − ε̂)²), ε̂ being the noise the network sees in √ᾱ_t x₀ + √(1 − ᾱ_t) ε; of a
    network that predicts images or velocities it is computed from its prediction.
    """

    model: DiffusionModel
    times: tuple[int, ...]
    draws: int = DRAWS
    name: str = "diffusion"

    @property
    def levels(self) -> tuple[str, ...]:
        """The time steps."""
        return tuple(f"t = {t}" for t in self.times)

    def losses(self, images: Pixels, *, seed: int) -> FloatArray:
        """Log mean squared errors (n, levels) of images (n, C, H, W); an image's loss depends on it and ``seed``."""
        found = np.empty((len(images), len(self.times)))
        noise = self._draw_noise(self.model.shape, seed)
        for begin in range(0, len(images), GROUP):
            group = images[begin : begin + GROUP]
            filled = np.concatenate([group, np.repeat(group[-1:], GROUP - len(group), axis=0)])
            found[begin : begin + len(group)] = self._errors(filled, noise)[: len(group)]
        return np.log(np.maximum(found, LEAST_ERROR))

    def _draw_noise(self, shape: tuple[int, ...], seed: int) -> torch.Tensor:
        """(levels, draws, C, H, W) float32, each from its own stream."""
        count = len(self.times) * self.draws
        drawn = [generator_for(seed, "loss-noise", n).standard_normal(shape, dtype=np.float32) for n in range(count)]
        stacked = np.stack(drawn).reshape(len(self.times), self.draws, *shape)
        return torch.from_numpy(stacked).to(self.model.place)

    @torch.inference_mode()
    def _errors(self, images: Pixels, noise: torch.Tensor) -> FloatArray:
        """Mean squared error of the noise (GROUP, levels). A network with conditions is asked for none but a mask."""
        model = self.model
        x_0, asked = model.encode(images), model.ask_nothing(images)
        found = np.zeros((len(images), len(self.times)))
        for level, time in enumerate(self.times):
            t = torch.full((len(images),), time, device=model.place)
            alpha_bar = alpha_bars(model.scheduler, t)
            for epsilon in noise[level]:
                x_t = alpha_bar.sqrt() * x_0 + (1 - alpha_bar).sqrt() * epsilon
                predicted = model.predict(x_t, t, asked)[:, : x_0.shape[1]]  # behind it a learned variance
                error = epsilon - to_noise(predicted, x_t, alpha_bar, model.scheduler.config.prediction_type)
                found[:, level] += error.square().mean(dim=(1, 2, 3)).cpu().numpy() / self.draws
        return found


@dataclass(frozen=True)
class StyleganLosses:
    """How badly the generator reproduces an image: log of the squared distance to its projection (`project_images`).

    Into W, one style for all layers as the generator itself uses, and into W+, a style of each layer's own. A distance
    is the root mean squared difference in grey levels of 255, here after ``steps`` updates from the nearest start.
    """

    model: StyleganModel
    steps: int = 100
    name: str = "stylegan"
    levels: tuple[str, ...] = ("projected into W", "projected into W+")

    def losses(self, images: Pixels, *, seed: int) -> FloatArray:
        """Log squared distances (n, 2) of images (n, C, H, W); an image's loss depends on it and ``seed``."""
        settings = (ProjectionSettings(steps=self.steps, space="w"), ProjectionSettings(steps=self.steps, space="w+"))
        found = [project_images(self.model, images, settings=each, seed=seed).distances for each in settings]
        return np.log(np.maximum(np.square(np.stack(found, axis=1)), LEAST_ERROR))


@dataclass(frozen=True)
class GaussianLosses:
    """Negative log-likelihood of the Gaussian control, in nats per pixel.

    Its density is N(m, W Wᵀ + S C S) with the scaled components W (D, K), the diagonal S of the leftover's standard
    deviations and the circulant C of its spectrum (see ``controls.gaussian``). S and the spectrum are kept above
    `LEAST_SPREAD` and `LEAST_POWER`, without which the density is not defined. N⁻¹ = S⁻¹ C⁻¹ S⁻¹ is a Fourier
    transform; the components enter by the Woodbury identity.
    """

    model: GaussianModel
    name: str = "gaussian"
    levels: tuple[str, ...] = ("negative log-likelihood",)
    spread: FloatArray = field(init=False, repr=False)
    root: FloatArray = field(init=False, repr=False)
    components: FloatArray = field(init=False, repr=False)
    factor: FloatArray = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Work out what all images share: the whitened components and the factor of I + Wᵀ N⁻¹ W."""
        model = self.model
        set_field = object.__setattr__  # frozen: these four follow from the model
        set_field(self, "spread", np.maximum(model.leftover.astype(np.float64), LEAST_SPREAD))
        set_field(self, "root", np.sqrt(np.maximum(model.spectrum.astype(np.float64) ** 2, LEAST_POWER)))
        white = self._whiten(model.scaled_components.astype(np.float64))
        set_field(self, "components", white)  # (K, D)
        set_field(self, "factor", scipy.linalg.cholesky(np.eye(len(white)) + white @ white.T, lower=True))

    def _whiten(self, values: FloatArray) -> FloatArray:
        """C^−½ S⁻¹ v for each v (n, C, H, W), as rows (n, D)."""
        turned: FloatArray = np.fft.ifft2(np.fft.fft2(values / self.spread) / self.root).real
        return turned.reshape(len(values), -1)

    def losses(self, images: Pixels, *, seed: int) -> FloatArray:
        """Negative log-likelihoods (n, 1) of images (n, C, H, W), nats per pixel; ``seed`` changes nothing."""
        del seed
        y = self._whiten(images.astype(np.float64) - self.model.mean)  # (n, D)
        inner = scipy.linalg.solve_triangular(self.factor, self.components @ y.T, lower=True)  # (K, n)
        squared = np.square(y).sum(axis=1) - np.square(inner).sum(axis=0)
        # log|Σ| = log|N| + log|I + Wᵀ N⁻¹ W|
        log_determinant = 2 * (np.log(self.spread).sum() + np.log(self.root).sum() + np.log(np.diag(self.factor)).sum())
        D = y.shape[1]  # noqa: N806 - the number of pixels, as above
        total = 0.5 * (squared + log_determinant + D * np.log(2 * np.pi))
        return np.asarray(total / D)[:, None]


@dataclass(frozen=True)
class MemorizerLosses:
    """Distance to the nearest image that the memorizer keeps: root mean squared difference, in grey levels of 255."""

    images: Pixels
    highest: int
    name: str = "memorizer"
    levels: tuple[str, ...] = ("distance to the nearest kept image",)

    def losses(self, images: Pixels, *, seed: int) -> FloatArray:
        """Distances (n, 1) of images (n, C, H, W), 0 for a kept image; ``seed`` changes nothing."""
        del seed
        # Whole numbers below 2⁵³ in float64: differences of squares are exact, and a kept image has distance 0.
        queries = images.reshape(len(images), -1).astype(np.float64)
        nearest = np.full(len(queries), np.inf)
        for begin in range(0, len(self.images), 512):
            kept = self.images[begin : begin + 512].reshape(-1, queries.shape[1]).astype(np.float64)
            squares = np.square(queries).sum(axis=1)[:, None] + np.square(kept).sum(axis=1) - 2 * queries @ kept.T
            nearest = np.minimum(nearest, squares.min(axis=1))
        return np.asarray(np.sqrt(nearest / queries.shape[1]) * (255 / self.highest))[:, None]


def open_loss_model(run: str | Path, *, device: str = "auto") -> Losses:
    """The losses of a finished run: an object with ``name``, ``levels`` and ``losses(images, seed=…)``.

    Raises `FolderError` if ``run`` is no finished run or its model was changed, and `InputError` if its kind of
    generator has no loss.
    """
    run = Path(run)
    header = folders.read_header(run, kind="run")
    content = header.content
    kind = str(content.get("generator"))
    if kind not in _OPENERS:
        raise InputError(
            f"{run} is a run of {kind}, which has no loss to ask for. Give a run of {', '.join(_OPENERS)}."
        )
    if folders.digest_tree(run / folders.MODEL) != content.get("model_digest"):
        raise FolderError(f"{run / folders.MODEL} is not the model that {header.path.name} describes. Train it again.")
    try:
        return _OPENERS[kind](run, content, device)
    except (OSError, KeyError, TypeError, AttributeError) as error:
        raise FolderError(f"{run / folders.MODEL} cannot be read ({error}). Train the run again.") from error


def _open_diffusion(run: Path, content: Mapping[str, Any], device: str) -> Losses:
    model = open_model(run / folders.MODEL, content=content, device=device, precision="auto")
    steps = int(model.scheduler.config.num_train_timesteps)
    times = sorted({min(steps - 1, max(1, round(share * steps))) for share in TIME_SHARES})
    return DiffusionLosses(model, tuple(times))


def _open_stylegan(run: Path, content: Mapping[str, Any], device: str) -> Losses:
    return StyleganLosses(open_stylegan(run / folders.MODEL, content=content, device=device, precision="float32"))


def _open_gaussian(run: Path, content: Mapping[str, Any], device: str) -> Losses:
    return GaussianLosses(open_gaussian(run, content=content, settings=DrawSettings(), device=device).model)


def _open_memorizer(run: Path, content: Mapping[str, Any], device: str) -> Losses:
    sampler = open_memorizer(run, content=content, settings=DrawSettings(), device=device)
    return MemorizerLosses(sampler.images, PixelScale.from_content(content).highest)


_OPENERS = {
    "diffusion": _open_diffusion,
    "stylegan": _open_stylegan,
    "gaussian": _open_gaussian,
    "memorizer": _open_memorizer,
}
