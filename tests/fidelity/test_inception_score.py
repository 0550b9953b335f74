"""The inception score has its closed forms, equals the libraries', and its interval goes by subjects."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.special import softmax

import unalike.fidelity.inception_score as score_module
from unalike.errors import InputError, SettingsError
from unalike.fidelity.inception_score import inception_score


def names(count: int, each: int = 1) -> np.ndarray:
    return np.repeat([f"subject {number:04d}" for number in range(count)], each)


def answers(count: int, classes: int = 6, *, seed: int, sure: float = 2) -> np.ndarray:
    table: np.ndarray = softmax(sure * np.random.default_rng(seed).standard_normal((count, classes)), axis=1)
    return table


# Closed forms


@pytest.mark.parametrize("classes", [1, 2, 7])
def test_sure_answers_of_all_classes_alike_give_their_number(classes: int) -> None:
    found = inception_score(np.tile(np.eye(classes), (5, 1)), subjects=names(5 * classes), seed=0)
    assert found.value == pytest.approx(classes, rel=1e-12)
    assert found.low <= found.value <= found.high <= classes
    assert found.n == 5 * classes


@pytest.mark.parametrize("row", [[1.0, 0.0, 0.0], [0.2, 0.3, 0.5], [1 / 3, 1 / 3, 1 / 3]])
def test_one_and_the_same_answer_gives_1(row: list[float]) -> None:
    found = inception_score(np.tile(row, (12, 1)), subjects=names(12), seed=0)
    assert [found.value, found.low, found.high] == pytest.approx([1, 1, 1], abs=1e-12)


def test_classes_of_unequal_size_by_hand() -> None:
    # Sure answers, three quarters of one class: the exponential of the entropy of (3/4, 1/4).
    table = np.eye(2)[[0, 0, 0, 1]]
    expected = math.exp(-0.75 * math.log(0.75) - 0.25 * math.log(0.25))
    assert inception_score(table, subjects=names(4), seed=0).value == pytest.approx(expected, rel=1e-12)


def test_half_sure_answers_by_hand() -> None:
    # p(y) = (1/2, 1/2); each image is log 2 − H(0.9, 0.1) from it.
    table = np.array([[0.9, 0.1], [0.1, 0.9]])
    entropy = -0.9 * math.log(0.9) - 0.1 * math.log(0.1)
    expected = math.exp(math.log(2) - entropy)
    assert inception_score(table, subjects=names(2), seed=0).value == pytest.approx(expected, rel=1e-12)


# Reference


def test_equals_torch_fidelity() -> None:
    from torch_fidelity.metric_isc import isc_features_to_metric  # loads torchvision, which `import unalike` prepares

    logits = 3 * np.random.default_rng(0).standard_normal((60, 10))
    theirs = isc_features_to_metric(torch.from_numpy(logits), splits=1)["inception_score_mean"]
    assert inception_score(softmax(logits, axis=1), subjects=names(60), seed=0).value == pytest.approx(theirs, rel=1e-9)


# Subjects, splits, interval


def test_images_of_one_subject_are_one_draw() -> None:
    table = answers(30, seed=2)
    once = inception_score(table, subjects=names(30), seed=0)
    copied = inception_score(table.repeat(4, axis=0), subjects=names(30, 4), seed=0)
    assert [copied.value, copied.low, copied.high] == pytest.approx([once.value, once.low, once.high])
    alone = inception_score(table.repeat(4, axis=0), subjects=names(120), seed=0)
    assert alone.high - alone.low < 0.7 * (once.high - once.low)


def test_the_interval_covers_the_score_of_endless_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(score_module, "REPETITIONS", 300)
    table = answers(200_000, seed=3)
    truth = inception_score(table, subjects=names(1, len(table)), seed=0).value
    found = [inception_score(part, subjects=names(80), seed=0) for part in table[:8000].reshape(100, 80, 6)]
    assert sum(each.low <= truth <= each.high for each in found) >= 88
    assert np.mean([each.high - each.low for each in found]) < 0.5 * truth


def test_few_images_score_too_low() -> None:
    table = answers(20_000, classes=20, seed=4, sure=6)
    scores = [
        np.mean([inception_score(part, subjects=names(1, n), seed=0).value for part in table.reshape(-1, n, 20)[:50]])
        for n in (20, 100, 400)
    ]
    assert scores[0] < 0.85 * scores[1]
    assert scores[1] < scores[2]


def test_splits_are_the_mean_over_parts() -> None:
    table = np.tile(np.eye(4), (6, 1))
    halves = inception_score(table, subjects=names(24), seed=0, splits=2)
    assert halves.value <= 4
    assert halves.value < inception_score(table, subjects=names(24), seed=0).value
    single = inception_score(table, subjects=names(24), seed=0, splits=24)
    assert single.value == pytest.approx(1)  # an image alone is its own mean
    assert math.isnan(single.low)


def test_a_seed_gives_the_same_interval() -> None:
    table = answers(40, seed=5)
    assert inception_score(table, subjects=names(40), seed=1) == inception_score(table, subjects=names(40), seed=1)
    other = inception_score(table, subjects=names(40), seed=2)
    assert other.value == inception_score(table, subjects=names(40), seed=1).value
    assert other.low != inception_score(table, subjects=names(40), seed=1).low


def test_no_image_and_one_subject() -> None:
    empty = inception_score(np.zeros((0, 3)), subjects=names(0), seed=0)
    assert math.isnan(empty.value)
    assert empty.n == 0
    one = inception_score(np.eye(3), subjects=names(1, 3), seed=0)
    assert one.value == pytest.approx(3)
    assert math.isnan(one.high)


# Bad input


@pytest.mark.parametrize(
    ("table", "said"),
    [
        (np.ones(3), "no table"),
        (np.zeros((3, 0)), "no table"),
        (np.ones((3, 2)), "not probabilities"),
        (np.array([[1.5, -0.5]] * 3), "not probabilities"),
        (np.full((3, 2), np.nan), "not probabilities"),
        (np.full((4, 2), 0.5), "Give one for each image"),
    ],
)
def test_tables_that_are_no_probabilities(table: np.ndarray, said: str) -> None:
    with pytest.raises(InputError, match=said):
        inception_score(table, subjects=names(3), seed=0)


@pytest.mark.parametrize("splits", [0, 4])
def test_splits_that_cannot_be(splits: int) -> None:
    with pytest.raises(SettingsError, match="splits ="):
        inception_score(np.eye(3), subjects=names(3), seed=0, splits=splits)


def test_a_confidence_of_nothing() -> None:
    with pytest.raises(SettingsError, match="confidence = 0"):
        inception_score(np.eye(3), subjects=names(3), seed=0, confidence=0)
