"""Losses of runs: the Gaussian density against its definition, distances by hand, and noise that all images share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from scipy.stats import multivariate_normal
from tests.generators.test_diffusion import TINY

from unalike import folders
from unalike.cohort.store import open_images
from unalike.errors import FolderError, InputError
from unalike.generators.controls.gaussian import GaussianModel
from unalike.generators.losses import (
    LEAST_POWER,
    LEAST_SPREAD,
    DiffusionLosses,
    GaussianLosses,
    MemorizerLosses,
    open_loss_model,
)
from unalike.runs.train import train_generator

MakeCohort = Callable[..., Path]


def dense_covariance(model: GaussianModel) -> np.ndarray:
    """W Wᵀ + S C S written out, the circulant C from the correlation it has with each pixel."""
    channels, height, width = model.mean.shape
    size = channels * height * width
    power = np.maximum(model.spectrum.astype(float) ** 2, LEAST_POWER)
    covariance = np.zeros((channels, height, width, channels, height, width))
    for c in range(channels):
        lag = np.fft.ifft2(power[c]).real
        for i in range(height):
            for j in range(width):
                covariance[c, i, j, c] = np.roll(lag, (i, j), axis=(0, 1))
    spread = np.maximum(model.leftover.astype(float), LEAST_SPREAD).reshape(-1)
    w = model.scaled_components.reshape(len(model.scaled_components), -1).astype(float)
    return covariance.reshape(size, size) * np.outer(spread, spread) + w.T @ w


def test_the_gaussian_loss_is_the_density_written_out() -> None:
    random = np.random.default_rng(0)
    shape = (2, 4, 5)
    # A spectrum is symmetric, as that of real fields; one frequency and one pixel lie below the floors.
    spectrum = np.sqrt(np.abs(np.fft.fft2(random.normal(size=shape))) ** 2 / 20).astype(np.float32)
    spectrum[:, 0, 0] = 0
    leftover = random.uniform(3, 9, shape).astype(np.float32)
    leftover[0, 1, 2] = 0
    model = GaussianModel(
        random.uniform(50, 90, shape).astype(np.float32),
        random.normal(0, 12, (3, *shape)).astype(np.float32),
        leftover,
        spectrum,
    )
    images = random.integers(0, 256, (6, *shape), dtype=np.uint8)
    found = GaussianLosses(model).losses(images, seed=0)
    density = multivariate_normal(model.mean.reshape(-1), dense_covariance(model))
    assert found.shape == (6, 1)
    np.testing.assert_allclose(found[:, 0], -density.logpdf(images.reshape(6, -1)) / 40, rtol=1e-8)


def test_the_distance_to_the_nearest_kept_image_by_hand() -> None:
    kept = np.array([[[[0, 0], [0, 0]]], [[[10, 10], [10, 10]]]], np.uint8)
    asked = np.array([[[[0, 0], [0, 0]]], [[[10, 10], [10, 14]]], [[[3, 3], [3, 3]]]], np.uint8)
    found = MemorizerLosses(kept, highest=255).losses(asked, seed=0)
    assert found[:, 0].tolist() == [0.0, 2.0, 3.0]
    deep = MemorizerLosses(kept.astype(np.uint16), highest=510).losses(asked.astype(np.uint16), seed=0)
    assert deep[:, 0].tolist() == [0.0, 1.0, 1.5]


class Knows:
    """A model that answers with what it is told to predict, wrong by ``wrong``."""

    shape, place = (1, 4, 4), torch.device("cpu")

    def __init__(self, x_0: torch.Tensor, scheduler: Any, wrong: float) -> None:
        self.x_0, self.scheduler, self.wrong = x_0, scheduler, wrong

    def encode(self, images: np.ndarray) -> torch.Tensor:
        return self.x_0

    def ask_nothing(self, images: np.ndarray) -> None:
        return None

    def predict(self, x_t: torch.Tensor, t: torch.Tensor, asked: None) -> torch.Tensor:
        kept = float(self.scheduler.alphas_cumprod[t[0]])
        epsilon = (x_t - kept**0.5 * self.x_0) / (1 - kept) ** 0.5
        kind = self.scheduler.config.prediction_type
        # The error of the noise is ``wrong`` whatever is predicted.
        epsilon = epsilon + self.wrong
        x_0 = (x_t - (1 - kept) ** 0.5 * epsilon) / kept**0.5
        answer = {"epsilon": epsilon, "sample": x_0, "v_prediction": kept**0.5 * epsilon - (1 - kept) ** 0.5 * x_0}
        return answer[kind]


@pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction"])
def test_the_error_of_the_noise_is_the_same_whatever_the_network_predicts(kind: str) -> None:
    images = np.full((16, 1, 4, 4), 255, np.uint8)
    scheduler = DDPMScheduler(num_train_timesteps=100, prediction_type=kind)
    model: Any = Knows(torch.ones(16, 1, 4, 4), scheduler, wrong=0.5)
    found = DiffusionLosses(model, times=(5, 20, 60), draws=2).losses(images, seed=0)
    np.testing.assert_allclose(found, np.log(0.25), rtol=1e-3)


@pytest.fixture
def run(make_cohort: MakeCohort, tmp_path: Path) -> Path:
    return train_generator(kind="diffusion", cohort=make_cohort(), out=tmp_path / "run", settings=TINY, device="cpu")


def test_a_diffusion_loss_depends_on_the_image_and_the_seed_alone(run: Path, tmp_path: Path) -> None:
    cohort = open_images(tmp_path / "cohort")
    images = cohort.read(np.arange(len(cohort)))
    model = open_loss_model(run, device="cpu")
    assert model.levels == tuple(f"t = {t}" for t in (2, 5, 10, 15, 20, 30, 45, 70))
    whole = model.losses(images, seed=3)
    assert whole.shape == (12, 8)
    assert np.isfinite(whole).all()
    np.testing.assert_array_equal(model.losses(images[4:7], seed=3), whole[4:7])
    np.testing.assert_array_equal(open_loss_model(run, device="cpu").losses(images, seed=3), whole)
    assert (model.losses(images, seed=4) != whole).all()


def test_what_has_no_loss_is_refused_in_one_line(run: Path, make_cohort: MakeCohort, tmp_path: Path) -> None:
    with pytest.raises(FolderError, match="kind cohort"):
        open_loss_model(tmp_path / "cohort")
    other = tmp_path / "other"
    folders.begin_folder(other, kind="run", settings={})
    folders.finish_folder(other, kind="run", settings={}, seed=0, inputs={}, content={"generator": "gan"})
    with pytest.raises(InputError, match="a run of gan, which has no loss") as refused:
        open_loss_model(other)
    assert "\n" not in str(refused.value)
    weights = next((run / folders.MODEL).rglob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(FolderError, match="not the model that"):
        open_loss_model(run)


def test_the_controls_explain_what_they_saw_best(make_cohort: MakeCohort, tmp_path: Path) -> None:
    cohort = make_cohort(subjects=8, slices=4)
    opened = open_images(cohort)
    train, holdout = (opened.read(opened.rows(role)) for role in ("train", "holdout"))
    for kind in ("gaussian", "memorizer"):
        model = open_loss_model(train_generator(kind=kind, cohort=cohort, out=tmp_path / kind))
        assert model.name == kind
        assert model.losses(train, seed=0).max() < model.losses(holdout, seed=0).min()
