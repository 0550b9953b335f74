from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn import metrics

from unalike.utility.scores import (
    MEASURES,
    area_under_curve,
    compare,
    confusion_matrix,
    cross_entropy,
    measure,
    score,
)


def _drawn(random: np.random.Generator, count: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    truth = np.concatenate([np.arange(classes), random.integers(0, classes, count - classes)])
    scores = random.normal(size=(count, classes)) + 1.5 * np.eye(classes)[truth]
    probabilities = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    return probabilities, truth.astype(np.int64)


def _each_alone(count: int) -> np.ndarray:
    return np.arange(count).astype(str)


def test_six_images_worked_out_by_hand():
    second = np.array([0.9, 0.8, 0.3, 0.6, 0.2, 0.1])
    truth = np.array([1, 1, 1, 0, 0, 0])
    probabilities = np.stack([1 - second, second], axis=1)
    found = measure(probabilities, truth)
    assert confusion_matrix(probabilities, truth).tolist() == [[2, 1], [1, 2]]
    assert found["accuracy"] == found["precision"] == found["recall"] == found["f1"] == pytest.approx(2 / 3)
    assert found["auc"] == pytest.approx(8 / 9)  # of nine pairs only (0.3, 0.6) is the wrong way round
    expected = -np.log([0.9, 0.8, 0.3, 0.4, 0.8, 0.9]).mean()
    assert found["loss"] == pytest.approx(expected)


def test_area_is_a_half_when_all_are_tied_one_when_sorted_and_mirrored_when_swapped():
    truth = np.array([0, 1, 0, 1])
    for second, expected in (([0.5] * 4, 0.5), ([0.1, 0.9, 0.2, 0.8], 1.0), ([0.9, 0.1, 0.8, 0.2], 0.0)):
        column = np.array(second)
        assert area_under_curve(np.stack([1 - column, column], axis=1), truth) == expected


def test_area_is_undefined_where_a_class_is_absent():
    assert math.isnan(area_under_curve(np.full((3, 2), 0.5), np.zeros(3, np.int64)))
    assert math.isnan(area_under_curve(np.full((3, 3), 1 / 3), np.array([0, 1, 1])))


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_scikit_learn_says_the_same(classes: int):
    random = np.random.default_rng(classes)
    probabilities, truth = _drawn(random, 60, classes)
    probabilities = np.round(probabilities, 1) + 0.01  # ties
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    said, found, every = probabilities.argmax(axis=1), measure(probabilities, truth), range(classes)
    macro = {"average": "macro", "zero_division": 0, "labels": list(every)}
    assert found["accuracy"] == pytest.approx(metrics.accuracy_score(truth, said))
    assert found["precision"] == pytest.approx(metrics.precision_score(truth, said, **macro))
    assert found["recall"] == pytest.approx(metrics.recall_score(truth, said, **macro))
    assert found["f1"] == pytest.approx(metrics.f1_score(truth, said, **macro))
    assert found["loss"] == pytest.approx(metrics.log_loss(truth, probabilities, labels=list(every)))
    asked = probabilities[:, 1] if classes == 2 else probabilities
    more = {} if classes == 2 else {"multi_class": "ovr", "average": "macro"}
    assert found["auc"] == pytest.approx(metrics.roc_auc_score(truth, asked, **more))
    assert np.array_equal(confusion_matrix(probabilities, truth), metrics.confusion_matrix(truth, said))


def test_class_that_is_never_predicted_counts_zero():
    probabilities = np.array([[0.8, 0.1, 0.1], [0.1, 0.8, 0.1], [0.8, 0.1, 0.1]])
    found = measure(probabilities, np.array([0, 1, 2]))
    assert found["precision"] == pytest.approx((0.5 + 1 + 0) / 3)
    assert found["recall"] == pytest.approx(2 / 3)
    assert found["f1"] == pytest.approx((2 / 3 + 1 + 0) / 3)


def test_loss_of_an_impossible_truth_is_finite():
    assert np.isfinite(cross_entropy(np.array([[1.0, 0.0]]), np.array([1]))).all()


def test_resamples_give_what_repeating_the_subjects_images_gives():
    random = np.random.default_rng(3)
    probabilities, truth = _drawn(random, 40, 3)
    subjects = random.integers(0, 15, 40).astype(str)
    found = score(probabilities, truth, subjects, random=np.random.default_rng(9))
    names = np.unique(subjects)
    times = np.random.default_rng(9).multinomial(len(names), np.full(len(names), 1 / len(names)), size=2000)
    slow = []
    for drawn in times[:400]:
        rows = np.concatenate([np.tile(np.flatnonzero(subjects == n), t) for n, t in zip(names, drawn, strict=True)])
        slow.append(measure(probabilities[rows], truth[rows]))
    # The first 400 of the same resamples: their quantiles are near those of all 2,000.
    for name in MEASURES:
        low, high = np.quantile([each[name] for each in slow], [0.025, 0.975])
        assert found[name].low == pytest.approx(low, abs=0.02 + 0.1 * (high - low)), name
        assert found[name].high == pytest.approx(high, abs=0.02 + 0.1 * (high - low)), name


def test_value_is_the_mean_of_the_models():
    random = np.random.default_rng(1)
    models = [_drawn(random, 50, 2)[0] for _ in range(3)]
    truth = np.arange(50) % 2
    found = score(np.stack(models), truth, _each_alone(50), random=np.random.default_rng(0))
    for name in MEASURES:
        assert found[name].value == pytest.approx(np.mean([measure(one, truth)[name] for one in models]))
        assert found[name].low <= found[name].value <= found[name].high
        assert found[name].n == 50


def test_images_of_one_subject_are_not_counted_as_independent():
    random = np.random.default_rng(2)
    probabilities, truth = _drawn(random, 30, 2)
    alone = score(probabilities, truth, _each_alone(30), random=np.random.default_rng(0))
    six_times = score(
        np.repeat(probabilities, 6, axis=0),
        np.repeat(truth, 6),
        np.repeat(_each_alone(30), 6),
        random=np.random.default_rng(0),
    )
    for name in MEASURES:
        assert six_times[name].low == pytest.approx(alone[name].low)
        assert six_times[name].high == pytest.approx(alone[name].high)


def test_interval_covers_the_truth_as_often_as_it_says():
    random = np.random.default_rng(7)
    held = {"accuracy": 0, "auc": 0}
    # Two normal classes 1.5 apart, cut in the middle; two images a subject, alike but for a coin.
    expected = {"accuracy": 0.77337, "auc": 0.85558}
    for _ in range(100):
        own = np.repeat(random.integers(0, 2, 60), 2)
        values = random.normal(size=120) + 1.5 * own
        second = 1 / (1 + np.exp(-(values - 0.75)))
        found = score(np.stack([1 - second, second], axis=1), own, np.repeat(_each_alone(60), 2), random=random)
        for name in held:
            held[name] += found[name].low <= expected[name] <= found[name].high
    assert min(held.values()) >= 87  # 95 are expected, fewer than 87 once in a thousand times


def test_difference_of_equal_models_is_exactly_nothing_and_of_others_is_paired():
    random = np.random.default_rng(5)
    first, truth = _drawn(random, 80, 3)
    mixed = 0.9 * first + 0.1 / 3
    subjects = np.repeat(_each_alone(40), 2)
    same = compare(first, first, truth, subjects, random=np.random.default_rng(0))
    assert all((each.value, each.low, each.high) == (0, 0, 0) for each in same.values())
    found = compare(first, mixed, truth, subjects, random=np.random.default_rng(0))
    alone = score(first, truth, subjects, random=np.random.default_rng(0))
    assert found["accuracy"].value == 0  # the order of classes is the same
    assert found["loss"].value == pytest.approx(measure(first, truth)["loss"] - measure(mixed, truth)["loss"])
    assert found["loss"].high - found["loss"].low < 0.5 * (alone["loss"].high - alone["loss"].low)


def test_accuracy_without_an_error_still_has_doubt():
    truth = np.arange(20) % 2
    probabilities = np.eye(2)[truth]
    found = score(probabilities, truth, np.repeat(_each_alone(10), 2), random=np.random.default_rng(0))["accuracy"]
    assert (found.value, found.high, found.n) == (1, 1, 10)
    assert found.low == pytest.approx(0.025 ** (1 / 10))
    wrong = score(1 - probabilities, truth, _each_alone(20), random=np.random.default_rng(0))["accuracy"]
    assert (wrong.value, wrong.low) == (0, 0)
    assert wrong.high == pytest.approx(1 - 0.025 ** (1 / 20))


def test_one_subject_has_a_value_and_no_interval():
    probabilities, truth = _drawn(np.random.default_rng(0), 10, 2)
    found = score(probabilities, truth, np.array(["one"] * 10), random=np.random.default_rng(0))
    assert not math.isnan(found["auc"].value)
    assert math.isnan(found["auc"].low)
    assert found["auc"].n == 1
