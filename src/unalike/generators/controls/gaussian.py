"""A smooth generator that cannot copy a patient: probabilistic principal components.

After Tipping and Bishop (1999). A sample is

    x = m + Σₖ zₖ √λₖ uₖ + s ⊙ n,    zₖ ~ N(0, 1)

with the mean image m, the K leading eigenvectors uₖ and eigenvalues λₖ of the covariance of the training
images (all channels jointly), and what they leave over: per pixel its standard deviation s, times a
stationary field n of unit variance that has the mean power spectrum of the leftovers. White noise in its
place has the right variance but no texture; with the spectrum, the mean step between neighbouring pixels was
19.5 grey levels against 16.3 of the images (800 brain slices of 32 × 32). Samples look like
grainy, ghostly heads: nobody's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.linalg
import scipy.sparse.linalg
from safetensors.numpy import load_file, save_file

from unalike import folders
from unalike.errors import SettingsError
from unalike.generators.data import PixelScale, TrainImages
from unalike.generators.settings import DrawSettings, require
from unalike.records import Pixels
from unalike.seeds import generator_for

WEIGHTS = "components.safetensors"
DESCRIPTION = "components.json"
IMAGES_PER_COMPONENT = 4
LARGEST_DENSE = 4096  # images or pixels, the smaller of the two; beyond it the eigenvectors are found by Lanczos
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class GaussianSettings:
    """Settings of the Gaussian control."""

    components: int = 64
    """Principal components, at most a quarter of the training images (count). With as many components as
    images the model would span every training image; with a quarter, none has a direction of its own."""

    def __post_init__(self) -> None:
        """Refuse a model without components."""
        require(self.components >= 1, "components", self.components, "at least 1")


@dataclass(frozen=True)
class GaussianModel:
    """The fitted model, in grey levels: m (C, H, W), √λₖ uₖ (K, C, H, W), s and √spectrum (C, H, W)."""

    mean: Floats
    scaled_components: Floats
    leftover: Floats
    spectrum: Floats

    def draw(self, rng: np.random.Generator) -> Floats:
        """One image (C, H, W) in grey levels, neither clipped nor rounded."""
        z = rng.standard_normal(len(self.scaled_components), dtype=np.float32)
        white = rng.standard_normal(self.mean.shape, dtype=np.float32)
        n = np.fft.ifft2(np.fft.fft2(white) * self.spectrum).real
        drawn = self.mean + np.tensordot(z, self.scaled_components, axes=1) + self.leftover * n
        return drawn.astype(np.float32)


def fit_gaussian(pixels: Pixels, *, components: int) -> GaussianModel:
    """Fit to images (N, C, H, W); the number of components is at most N // 4.

    The eigenvectors come from whichever of X Xᵀ (N × N) and XᵀX (D × D) is smaller. Needs about 12 N·C·H·W
    bytes.

    Raises `SettingsError` for fewer than four images.
    """
    count, shape = len(pixels), pixels.shape[1:]
    if count < IMAGES_PER_COMPONENT:
        raise SettingsError(
            f"the gaussian control needs at least {IMAGES_PER_COMPONENT} training images, there are {count}. "
            "Train it on more subjects."
        )
    X = pixels.reshape(count, -1).astype(np.float32)  # noqa: N806 - (N, D), the paper's symbol
    mean = X.mean(axis=0, dtype=np.float64).astype(np.float32)
    np.subtract(X, mean, out=X)
    K = max(1, min(components, count // IMAGES_PER_COMPONENT, X.shape[1]))  # noqa: N806
    u, variances = _principal_directions(X, K)
    # The leftovers, image by image: their variance at each pixel and their power at each frequency.
    np.subtract(X, (X @ u.T) @ u, out=X)
    variance = np.einsum("nd,nd->d", X, X, dtype=np.float64) / (count - 1)
    power = np.zeros(shape)
    for image in X.reshape(count, *shape):
        power += np.abs(np.fft.fft2(image)) ** 2
    power[:, 0, 0] = 0  # brightness as a whole is the components' business
    total = power.mean(axis=(1, 2), keepdims=True)
    spectrum = np.sqrt(np.divide(power, total, out=np.ones_like(power), where=total > 0))
    return GaussianModel(
        mean.reshape(shape),
        (u * np.sqrt(variances)[:, None]).reshape(K, *shape).astype(np.float32),
        np.sqrt(variance).reshape(shape).astype(np.float32),
        spectrum.astype(np.float32),
    )


def _principal_directions(X: Floats, K: int) -> tuple[Floats, Floats]:  # noqa: N803 - the paper's symbols
    """The K leading eigenvectors (K, D) of the covariance of centred X (N, D), and their variances (K,)."""
    count, pixels = X.shape
    if min(X.shape) > LARGEST_DENSE:
        # A fixed start makes Lanczos repeatable.
        _, singular, u = scipy.sparse.linalg.svds(X, k=K, v0=np.ones(min(X.shape), np.float32))
        return u[::-1].astype(np.float32), (singular[::-1] ** 2 / (count - 1)).astype(np.float32)
    gram = (X @ X.T if count <= pixels else X.T @ X).astype(np.float64)
    eigenvalues, vectors = scipy.linalg.eigh(gram, subset_by_index=[len(gram) - K, len(gram) - 1])
    eigenvalues, vectors = np.maximum(eigenvalues[::-1], 0), vectors[:, ::-1]  # largest first
    u = vectors.T @ X if count <= pixels else vectors.T  # X Xᵀ a = λ a  ⇒  XᵀX (Xᵀa) = λ (Xᵀa)
    length = np.linalg.norm(u, axis=1, keepdims=True)
    u = np.divide(u, length, out=np.zeros_like(u), where=length > 0)
    return u.astype(np.float32), (eigenvalues / (count - 1)).astype(np.float32)


def train_gaussian(
    images: TrainImages, *, out: Path, settings: GaussianSettings, seed: int, device: str
) -> dict[str, Any]:
    """Fit the model and write it to ``out``/model; returns what the run's header says about it.

    Raises `SettingsError` for fewer than four training images.
    """
    del seed, device  # nothing is drawn, and NumPy is quick enough
    model = fit_gaussian(images.read_all(), components=settings.components)
    place = out / folders.MODEL
    place.mkdir(exist_ok=True)
    tensors = {name: np.ascontiguousarray(tensor) for name, tensor in vars(model).items()}
    save_file(tensors, place / WEIGHTS)
    components = len(model.scaled_components)
    folders.write_json(place / DESCRIPTION, {"components": components, "unit": "grey levels"})
    return {
        "components": components,
        "parameters": sum(tensor.size for tensor in tensors.values()),
        "holds_training_images": False,
    }


@dataclass(frozen=True)
class GaussianSampler:
    """Draws from a fitted model; each sample from its own stream."""

    model: GaussianModel
    scale: PixelScale

    def describe(self, seed: int) -> dict[str, Any]:
        """Nothing is known of a sample but its seed."""
        del seed
        return {}

    def draw(self, seeds: Sequence[int]) -> Pixels:
        """Pixels (len(seeds), C, H, W)."""
        # One at a time: a product of another shape may round differently, and batches must not change a
        # pixel.
        drawn = [self.model.draw(generator_for(seed, "gaussian-sample")) for seed in seeds]
        return self.scale.from_grey(np.stack(drawn))


def open_gaussian(run: Path, *, content: Mapping[str, Any], settings: DrawSettings, device: str) -> GaussianSampler:
    """Sampler of the model in ``run``."""
    del settings, device
    return GaussianSampler(GaussianModel(**load_file(run / folders.MODEL / WEIGHTS)), PixelScale.from_content(content))
