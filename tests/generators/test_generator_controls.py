"""The two generators whose answers are known beforehand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from unalike import folders
from unalike.cohort.split import select_train_rows
from unalike.cohort.store import open_images
from unalike.errors import SettingsError
from unalike.generators.controls import gaussian
from unalike.runs.sample import draw_samples
from unalike.runs.train import train_generator

MakeCohort = Callable[..., Path]


def _samples(path: Path) -> np.ndarray:
    samples = open_images(path, kind="samples")
    return samples.read(samples.rows("synthetic"))


@pytest.mark.parametrize("shape", [(40, 1, 4, 5), (12, 2, 6, 6)])  # N > D and N < D
def test_components_are_the_eigenvectors_of_the_covariance(shape: tuple[int, ...]) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, size=shape).astype(np.uint8)
    model = gaussian.fit_gaussian(pixels, components=3)
    covariance = np.cov(pixels.reshape(len(pixels), -1).T)
    eigenvalues = np.linalg.eigvalsh(covariance)[::-1][:3]
    scaled = model.scaled_components.reshape(3, -1)
    np.testing.assert_allclose(model.mean.ravel(), pixels.reshape(len(pixels), -1).mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose((scaled**2).sum(axis=1), eigenvalues, rtol=1e-3)
    np.testing.assert_allclose(covariance @ scaled.T, scaled.T * eigenvalues, rtol=2e-3, atol=2.0)


def test_lanczos_finds_the_same_components(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, size=(30, 1, 8, 8)).astype(np.uint8)
    dense = gaussian.fit_gaussian(pixels, components=4)
    monkeypatch.setattr(gaussian, "LARGEST_DENSE", 10)
    lanczos = gaussian.fit_gaussian(pixels, components=4)
    for a, b in zip(dense.scaled_components, lanczos.scaled_components, strict=True):
        np.testing.assert_allclose(np.outer(a, a), np.outer(b, b), rtol=1e-2, atol=0.5)


def test_samples_have_the_mean_and_covariance_of_the_model() -> None:
    pixels = np.random.default_rng(1).integers(0, 255, size=(60, 1, 4, 4)).astype(np.uint8)
    model = gaussian.fit_gaussian(pixels, components=5)
    rng = np.random.default_rng(2)
    drawn = np.stack([model.draw(rng).ravel() for _ in range(20_000)])
    # Closed form: components, plus the leftovers' stationary field scaled by its deviation at each pixel.
    scaled = model.scaled_components.reshape(5, -1)
    correlation = np.fft.ifft2(model.spectrum[0].astype(float) ** 2).real
    rows, columns = np.divmod(np.arange(16), 4)
    stationary = correlation[np.subtract.outer(rows, rows) % 4, np.subtract.outer(columns, columns) % 4]
    closed = scaled.T @ scaled + np.outer(model.leftover, model.leftover) * stationary
    np.testing.assert_allclose(drawn.mean(axis=0), model.mean.ravel(), atol=3.0)
    np.testing.assert_allclose(np.cov(drawn.T), closed, atol=0.05 * closed.max())
    # At each pixel the variance is that of the training images.
    variance = pixels.reshape(60, -1).astype(float).var(axis=0, ddof=1)
    np.testing.assert_allclose(np.diag(closed), variance, rtol=1e-3)


def test_components_stay_below_a_quarter_of_the_images() -> None:
    pixels = np.random.default_rng(0).integers(0, 255, size=(16, 1, 8, 8)).astype(np.uint8)
    assert len(gaussian.fit_gaussian(pixels, components=64).scaled_components) == 4
    with pytest.raises(SettingsError, match="at least 4 training images, there are 3"):
        gaussian.fit_gaussian(pixels[:3], components=64)


def test_identical_images_give_that_image() -> None:
    pixels = np.full((8, 1, 4, 4), 90, dtype=np.uint8)
    drawn = gaussian.fit_gaussian(pixels, components=2).draw(np.random.default_rng(0))
    np.testing.assert_allclose(drawn, 90, atol=1e-3)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_memorizer_without_change_returns_training_images(make_cohort: MakeCohort, tmp_path: Path, dtype: type) -> None:
    cohort = make_cohort(channels=("t1", "mask"), dtype=dtype, subjects=9, holdout=3)
    run = train_generator(
        kind="memorizer",
        cohort=cohort,
        out=tmp_path / "run",
        subjects=3,
        seed=5,
        settings={"noise": 0, "blend": 0, "shift": 0},
    )
    drawn = _samples(draw_samples(run=run, out=tmp_path / "samples", count=60))
    opened = open_images(cohort)
    chosen = opened.read(select_train_rows(opened, subjects=3, seed=5))
    # Every chosen training image appears, and nothing else: no holdout image, no other subject.
    assert {image.tobytes() for image in drawn} == {image.tobytes() for image in chosen}
    header = folders.read_header(run, kind="run")
    assert header.content["holds_training_images"] is True
    marked = folders.read_header(tmp_path / "samples", kind="samples")
    assert marked.content["holds_training_images"] is True
    assert header.content["subjects"] == 3
    assert header.content["train_images"] == 6


@pytest.mark.parametrize(("labels", "shared"), [(("a", "b"), True), (("a", "a", "a", "only one"), False)])
def test_memorizer_tells_the_class_of_what_it_copies(
    make_cohort: MakeCohort, tmp_path: Path, labels: tuple[str, ...], shared: bool
) -> None:
    cohort = open_images(make_cohort(labels=labels))
    settings = {"noise": 0, "blend": 0, "shift": 0}
    run = train_generator(kind="memorizer", cohort=cohort.path, out=tmp_path / "run", settings=settings)
    drawn = open_images(draw_samples(run=run, out=tmp_path / "samples", count=12), kind="samples")
    of = dict(zip(cohort.column("digest"), cohort.column("label"), strict=True))
    # A class that is one patient's alone would name them.
    assert drawn.column("label").tolist() == [of[digest] if shared else "" for digest in drawn.column("digest")]


def test_memorizer_changes_by_the_noise_asked_for(make_cohort: MakeCohort, tmp_path: Path) -> None:
    flat = np.full((12, 1, 32, 32), 128, dtype=np.uint8)
    cohort = make_cohort(pixels=flat, size=(32, 32))
    run = train_generator(kind="memorizer", cohort=cohort, out=tmp_path / "run", settings={"noise": 6.0})
    drawn = _samples(draw_samples(run=run, out=tmp_path / "samples", count=20)).astype(float)
    assert drawn.std() == pytest.approx(6.0, rel=0.03)
    assert drawn.mean() == pytest.approx(128, abs=0.2)


def test_a_mask_keeps_its_levels(make_cohort: MakeCohort, tmp_path: Path) -> None:
    cohort = make_cohort(channels=("t1", "mask"), subjects=8)
    for kind in ("gaussian", "memorizer"):
        run = train_generator(kind=kind, cohort=cohort, out=tmp_path / kind)
        assert folders.read_header(run, kind="run").content["levels"] == {"mask": [0, 50, 120]}
        drawn = _samples(draw_samples(run=run, out=tmp_path / f"{kind}-samples", count=9))
        assert set(np.unique(drawn[:, 1])) <= {0, 50, 120}


@pytest.mark.parametrize("kind", ["gaussian", "memorizer"])
def test_a_sample_depends_on_its_seed_alone(make_cohort: MakeCohort, tmp_path: Path, kind: str) -> None:
    run = train_generator(kind=kind, cohort=make_cohort(), out=tmp_path / "run")
    whole = _samples(draw_samples(run=run, out=tmp_path / "a", count=10, settings={"batch_size": 10}))
    pieces = _samples(draw_samples(run=run, out=tmp_path / "b", count=10, settings={"batch_size": 3}))
    alone = _samples(draw_samples(run=run, out=tmp_path / "c", count=1, first_seed=7))
    np.testing.assert_array_equal(whole, pieces)
    np.testing.assert_array_equal(whole[7:8], alone)
    assert len(np.unique(whole.reshape(10, -1), axis=0)) == 10
