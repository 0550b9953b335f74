"""Precision and recall, density and coverage in worlds with obvious answers, beside definitions written out."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

import unalike.fidelity.manifold as manifold_module
from unalike.errors import InputError, SettingsError
from unalike.fidelity.manifold import Manifold, manifold_estimates, measure_manifold


def names(count: int, each: int = 1) -> np.ndarray:
    return np.repeat([f"subject {number:04d}" for number in range(count)], each)


def measure(real: np.ndarray, synthetic: np.ndarray, **options: Any) -> Manifold:
    return measure_manifold(
        real,
        synthetic,
        **{"real_subjects": names(len(real)), "synthetic_subjects": names(len(synthetic))} | options,
    )


def means(manifold: Manifold) -> dict[str, float]:
    return {name: estimate.value for name, estimate in manifold_estimates(manifold, seed=0).items()}


def by_definition(
    real: np.ndarray,
    synthetic: np.ndarray,
    real_subjects: np.ndarray,
    synthetic_subjects: np.ndarray,
    k: tuple[int, int],
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Ball by ball, from all pairs."""

    def distance(x: np.ndarray, y: np.ndarray) -> float:
        return float(np.sqrt(((x - y) ** 2).sum()))

    def radii(images: np.ndarray, subjects: np.ndarray, k: int) -> list[float]:
        return [
            sorted(distance(x, y) for y, other in zip(images, subjects, strict=True) if other != own)[k - 1]
            for x, own in zip(images, subjects, strict=True)
        ]

    of_real, of_more = (radii(real, real_subjects, each) for each in k)
    of_synthetic = radii(synthetic, synthetic_subjects, k[0])
    precision = [any(distance(s, r) <= b for r, b in zip(real, of_real, strict=True)) for s in synthetic]
    recall = [any(distance(s, r) <= b for s, b in zip(synthetic, of_synthetic, strict=True)) for r in real]
    density = [sum(distance(s, r) <= b for r, b in zip(real, of_more, strict=True)) / k[1] for s in synthetic]
    coverage = [any(distance(s, r) <= b for s in synthetic) for r, b in zip(real, of_more, strict=True)]
    return tuple(np.array(each, dtype=float) for each in (precision, recall, density, coverage))  # type: ignore[return-value]


# Worlds with an obvious answer


def test_samples_of_one_of_two_kinds_are_precise_and_recall_half() -> None:
    real = np.concatenate([np.arange(10.0), 1000 + np.arange(10.0)])[:, None]
    synthetic = np.arange(10.0)[:, None] + 0.1
    found = means(measure(real, synthetic))
    assert found["precision"] == 1
    assert found["recall"] == 0.5
    assert found["coverage"] == 0.5


def test_the_same_world_swapped_is_half_precise_and_recalls_all() -> None:
    real = np.arange(10.0)[:, None] + 0.1
    synthetic = np.concatenate([np.arange(10.0), 1000 + np.arange(10.0)])[:, None]
    found = means(measure(real, synthetic))
    assert found["precision"] == 0.5
    assert found["recall"] == 1
    assert found["coverage"] == 1


def test_the_same_world_has_the_same_answer_in_torch_fidelity() -> None:
    from torch_fidelity.metric_prc import prc_features_to_metric  # loads torchvision, which `import unalike` prepares

    random = np.random.default_rng(0)
    real, synthetic = random.standard_normal((60, 4)), 0.6 * random.standard_normal((50, 4)) + 0.5
    theirs = prc_features_to_metric(torch.from_numpy(synthetic), torch.from_numpy(real), verbose=False)
    found = means(measure(real, synthetic))
    assert found["precision"] == pytest.approx(theirs["precision"], abs=1e-6)
    assert found["recall"] == pytest.approx(theirs["recall"], abs=1e-6)
    assert abs(found["precision"] - found["recall"]) > 0.05


def test_density_by_hand() -> None:
    # Radii of 0, 1, 2, 3 with k = 1 are 1; 0.5 lies in the balls of 0 and 1, 10 in none.
    found = measure(np.arange(4.0)[:, None], np.array([[0.5], [10.0]]), density_neighbours=1)
    assert found.density.tolist() == [2, 0]
    assert found.coverage.tolist() == [1, 1, 0, 0]


def test_equal_sets_are_all_there_is() -> None:
    real = np.random.default_rng(1).standard_normal((30, 5))
    found = measure(real, real)
    assert means(found)["precision"] == means(found)["recall"] == means(found)["coverage"] == 1
    assert means(found)["density"] == pytest.approx(1 + 1 / 5)  # its own ball, and those of the five it is nearest to


def test_samples_far_away_are_nothing() -> None:
    real = np.random.default_rng(2).standard_normal((30, 5))
    found = means(measure(real, real + 100))
    assert set(found.values()) == {0}


# Definition


@pytest.mark.parametrize(("n", "m", "each"), [(25, 40, 1), (40, 25, 1), (30, 36, 3)])
def test_equals_the_definition(n: int, m: int, each: int) -> None:
    random = np.random.default_rng(n)
    real = np.repeat(random.standard_normal((n // each, 3)), each, axis=0)[:n]
    real = real + (0.1 if each > 1 else 1) * random.standard_normal(real.shape)
    synthetic = 0.8 * random.standard_normal((m, 3)) + 0.5
    subjects = (names(n // each, each)[: len(real)], names(m))
    found = measure(real, synthetic, real_subjects=subjects[0], neighbours=2, density_neighbours=4)
    expected = by_definition(real, synthetic, *subjects, (2, 4))
    for name, values in zip(("precision", "recall", "density", "coverage"), expected, strict=True):
        assert getattr(found, name).tolist() == pytest.approx(values.tolist()), name
        assert values.mean() > 0


def test_slices_of_one_patient_do_not_make_tiny_balls() -> None:
    random = np.random.default_rng(3)
    patients = random.standard_normal((12, 2))
    real = np.repeat(patients, 8, axis=0) + 1e-6 * random.standard_normal((96, 2))
    synthetic = random.standard_normal((50, 2))
    by_subject = means(measure(real, synthetic, real_subjects=names(12, 8)))
    by_image = means(measure(real, synthetic))
    assert by_image["precision"] == 0
    assert by_subject["precision"] > 0.5


@pytest.mark.parametrize("block_bytes", [1, 8 * 31 * 7, 2**26])
def test_blocks_change_nothing(block_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(4)
    real, synthetic = random.standard_normal((31, 20)), random.standard_normal((45, 20))
    synthetic[:5] = real[:5]
    expected = measure(real, synthetic)
    monkeypatch.setattr(manifold_module, "BLOCK_BYTES", block_bytes)
    found = measure(real, synthetic)
    for name in manifold_module.NAMES:
        assert (getattr(found, name) == getattr(expected, name)).all()


# Ties and rounding


@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_the_border_is_inside(offset: float) -> None:
    real = np.array([[0.0, 0], [3, 0], [0, 4]]) + offset
    synthetic = np.array([[-3.0, 0], [-3.001, 0]]) + offset
    found = measure(real, synthetic, neighbours=1, density_neighbours=1)
    assert found.precision.tolist() == [1, 0]
    assert found.coverage.tolist() == [1, 0, 0]


@pytest.mark.parametrize("dimension", [1, 64, 2048])
def test_balls_of_radius_0_hold_what_is_equal(dimension: int) -> None:
    point = 1000 * np.random.default_rng(5).standard_normal((2, dimension))
    real, synthetic = point[:1].repeat(8, axis=0), point.repeat([5, 2], axis=0)
    found = measure(real, synthetic)
    assert found.precision.tolist() == [1] * 5 + [0] * 2
    assert found.density.tolist() == [8 / 5] * 5 + [0] * 2
    assert (found.coverage == 1).all()
    assert (found.recall == 1).all()


def test_constant_features_that_differ_have_nothing_in_common() -> None:
    found = means(measure(np.zeros((8, 3)), np.ones((8, 3))))
    assert set(found.values()) == {0}


# Too few


@pytest.mark.parametrize(("real", "synthetic", "undefined"), [
    (3, 10, {"precision", "density", "coverage"}),
    (5, 10, {"density", "coverage"}),
    (6, 3, {"recall"}),
    (6, 4, set()),
    (0, 10, {"precision", "recall", "density", "coverage"}),
    (10, 0, {"precision", "recall", "density", "coverage"}),
    (0, 0, {"precision", "recall", "density", "coverage"}),
])  # fmt: skip
def test_fewer_images_than_balls_need_are_undefined(real: int, synthetic: int, undefined: set[str]) -> None:
    random = np.random.default_rng(6)
    found = means(measure(random.standard_normal((real, 2)), random.standard_normal((synthetic, 2))))
    assert {name for name, value in found.items() if math.isnan(value)} == undefined


def test_one_patient_with_nearly_all_images_is_undefined() -> None:
    points = np.random.default_rng(7).standard_normal((20, 2))
    subjects = np.array(["a"] * 18 + ["b", "c"])
    found = measure(points, points, real_subjects=subjects)
    assert np.isnan(found.precision).all()
    assert not np.isnan(found.recall).any()


# Intervals


def test_intervals_go_by_subjects_of_the_right_side() -> None:
    random = np.random.default_rng(8)
    real, synthetic = random.standard_normal((40, 2)), 1.5 * random.standard_normal((60, 2))
    found = manifold_estimates(
        measure(real, synthetic, real_subjects=names(20, 2), synthetic_subjects=names(30, 2)), seed=0, confidence=0.9
    )
    assert {name: estimate.n for name, estimate in found.items()} == {
        "precision": 30, "recall": 20, "density": 30, "coverage": 20,
    }  # fmt: skip
    for estimate in found.values():
        assert estimate.low <= estimate.value <= estimate.high
        assert estimate.confidence == 0.9
    assert found["precision"].low < found["precision"].high


def test_all_alike_is_not_certain() -> None:
    real = np.random.default_rng(9).standard_normal((20, 2))
    near, far = (manifold_estimates(measure(real, real + shift), seed=0) for shift in (0, 100))
    assert near["precision"].low == pytest.approx(0.025 ** (1 / 20))
    assert far["recall"].high == pytest.approx(1 - 0.025 ** (1 / 20))


# Bad input


@pytest.mark.parametrize(
    ("real", "synthetic", "said"),
    [
        (np.zeros((9, 2)), np.zeros((9, 3)), "do not fit"),
        (np.full((9, 2), np.inf), np.zeros((9, 2)), "real set are not all finite"),
        (np.zeros((9, 2)), np.full((9, 2), np.nan), "synthetic set are not all finite"),
        (np.zeros((8, 2)), np.zeros((9, 2)), "real set has 8 images and subjects"),
    ],
)
def test_features_that_do_not_fit(real: np.ndarray, synthetic: np.ndarray, said: str) -> None:
    with pytest.raises(InputError, match=said):
        measure(real, synthetic, real_subjects=names(9))


def test_no_neighbours() -> None:
    with pytest.raises(SettingsError, match="give 1 or more"):
        measure(np.zeros((9, 2)), np.zeros((9, 2)), neighbours=0)
