from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from unalike.errors import InputError
from unalike.utility import crossval
from unalike.utility.crossval import (
    REAL,
    SYNTHETIC,
    HeldOut,
    Source,
    differences,
    number_subjects,
    split_folds,
    table_row,
    train_fold,
)
from unalike.utility.settings import UtilitySettings
from unalike.utility.training import CellResult, Frame, Labelled, Recipe

SIDE = 6


def labelled(truth: np.ndarray, subjects: np.ndarray, *, seed: int = 0) -> Labelled:
    pixels = np.random.default_rng(seed).integers(0, 255, (len(truth), 1, SIDE, SIDE)).astype(np.uint8)
    return Labelled(pixels, truth.astype(np.int64), subjects.astype(str))


def unequal() -> Labelled:
    """60 subjects of one to three images, a quarter of them of the second class."""
    owner = np.repeat(np.arange(60), 1 + np.arange(60) % 3)
    return labelled((owner % 4 == 0).astype(np.int64), owner)


def test_folds_are_whole_subjects_hold_each_image_once_and_classes_in_proportion():
    images = unequal()
    folds = split_folds(Source(REAL, images, Path("cohort")), classes=("a", "b"), folds=5, seed=0)
    assert sorted(np.concatenate(folds).tolist()) == list(range(len(images)))
    owners = [set(images.subjects[rows].tolist()) for rows in folds]
    assert sum(map(len, owners)) == len(set.union(*owners)) == 60
    for rows in folds:
        assert images.truth[rows].mean() == pytest.approx(images.truth.mean(), abs=0.08)


def test_folds_depend_on_the_seed_and_not_on_what_subjects_are_called():
    images = unequal()
    names = np.random.default_rng(1).permutation(1000)[np.unique(images.subjects, return_inverse=True)[1]]
    renamed = Labelled(images.pixels, images.truth, names.astype(str))
    first, other_names, other_seed = (
        split_folds(Source(REAL, each, Path("cohort")), classes=("a", "b"), folds=4, seed=seed)
        for each, seed in ((images, 0), (renamed, 0), (images, 1))
    )
    assert all(map(np.array_equal, first, other_names))
    assert not all(map(np.array_equal, first, other_seed))


def test_subjects_are_numbered_as_they_appear():
    assert number_subjects(np.array(["z", "b", "z", "a", "b"])).tolist() == [0, 1, 0, 2, 1]


def test_class_of_fewer_subjects_than_folds_is_refused_though_it_has_many_images():
    images = labelled(np.repeat([0, 1], [20, 20]), np.concatenate([np.arange(20), np.full(20, 99)]))
    with pytest.raises(InputError, match=r"cohort \(real\): class 'b' has 1 subjects, fewer than the 5 folds"):
        split_folds(Source(REAL, images, Path("cohort")), classes=("a", "b"), folds=5, seed=0)


def planted(first: list[float], second: list[float], *, leaked: list[float] | None = None) -> list[CellResult]:
    """Two folds with these probabilities of the second class."""
    cells = []
    for index, column in enumerate((first, second)):
        numbers: dict[str, Any] = dict.fromkeys(crossval._TRAINED, float(index + 1))
        numbers |= {f"test_{name}": 0.25 * index for name in crossval.MEASURES} | {"side": SIDE, "numbers": "float32"}
        found = {"test": np.stack([1 - np.array(column), column], axis=1)}
        if leaked is not None:
            found["leaked"] = np.stack([1 - np.array(leaked), leaked], axis=1)
        cells.append(CellResult(numbers, found))
    return cells


def test_row_is_the_mean_over_folds():
    tested = HeldOut(
        labelled(np.array([0, 0, 1, 1]), np.arange(4)), labelled(np.array([], int), np.array([], dtype=str))
    )
    row = table_row(planted([0.1, 0.2, 0.8, 0.9], [0.1, 0.6, 0.8, 0.4]), tested, seed=0)
    assert row["test_accuracy"].value == pytest.approx((1 + 0.5) / 2)
    assert row["auc"].value == pytest.approx((1 + 0.75) / 2)
    assert row["confusion"] == [[1.5, 0.5], [0.5, 1.5]]
    assert (row["train_loss"], row["train_loss_each"]) == (1.5, [1, 2])
    assert row["precision_each"] == [0, 0.25]
    assert row["test_accuracy"].n == 4
    assert row["accuracy_with_leaks"] is None
    assert row["folds"] == 2


def test_leaked_images_count_only_in_the_figure_that_says_so():
    tested = HeldOut(labelled(np.array([0, 1]), np.arange(2)), labelled(np.array([0, 1, 1, 1]), np.arange(5, 9)))
    row = table_row(planted([0.9, 0.2], [0.9, 0.2], leaked=[0.1, 0.9, 0.9, 0.9]), tested, seed=0)
    assert row["test_accuracy"].value == 0
    assert row["accuracy_with_leaks"].value == pytest.approx(4 / 6)
    assert row["accuracy_with_leaks"].n == 6
    assert np.sum(row["confusion"]) == 2


def test_differences_are_first_minus_second_of_each_network_and_only_of_sources_that_are_there():
    tested = HeldOut(
        labelled(np.array([0, 0, 1, 1]), np.arange(4)), labelled(np.array([], int), np.array([], dtype=str))
    )
    good, poor = (
        planted([0.1, 0.2, 0.8, 0.9], [0.1, 0.2, 0.8, 0.9]),
        planted([0.9, 0.2, 0.8, 0.1], [0.1, 0.2, 0.8, 0.9]),
    )
    found = differences({("one", SYNTHETIC): poor, ("one", REAL): good, ("two", SYNTHETIC): good}, tested, seed=0)
    assert [(each["network"], each["first"], each["second"]) for each in found] == [("one", "synthetic", "real")]
    assert found[0]["accuracy"].value == pytest.approx(-0.25)
    assert found[0]["accuracy"].high <= 0


def test_fold_is_trained_on_other_subjects_than_tell_when_to_stop(monkeypatch: pytest.MonkeyPatch):
    seen: dict[str, Any] = {}

    def build(name: str, *, classes: int, channels: int, seed: int) -> nn.Module:
        seen.setdefault("weights", []).append(seed)
        return nn.Sequential(nn.Flatten(), nn.Linear(SIDE**2, classes))

    def watch(classifier: Any, train: Labelled, validation: Labelled, recipe: Recipe, **named: Any) -> dict[str, Any]:
        seen.update(train=train, validation=validation, recipe=recipe, mean=classifier.mean)
        seen.setdefault("seeds", []).append(named["seed"])
        return {}

    monkeypatch.setattr("unalike.vision.networks.build_network", build)
    monkeypatch.setattr("unalike.vision.networks.smallest_side", lambda name: 1)
    monkeypatch.setattr(crossval, "train_with_stopping", watch)
    images = unequal()
    settings = UtilitySettings(precision="float32")
    frame = Frame(("a", "b"), (0,), (SIDE, SIDE), 255, settings, 0, torch.device("cpu"))
    tested = HeldOut(labelled(np.array([0, 1]), np.arange(2)), labelled(np.array([1]), np.arange(1)))
    for name, augment in ((SYNTHETIC, False), (REAL, True)):
        source = Source(name, images, Path("cohort"), augment)
        rows = split_folds(source, classes=("a", "b"), folds=3, seed=0)[1]
        result = train_fold(
            source, 1, rows, tested, network="resnet18", recipe=Recipe(1e-3, 0, 8), frame=frame, say=lambda text: None
        )
        assert not set(seen["train"].subjects) & set(seen["validation"].subjects)
        assert len(seen["train"]) + len(seen["validation"]) == len(images)
        assert seen["mean"] == pytest.approx([seen["train"].pixels.mean() / 255])
        assert seen["recipe"].augment is augment
        assert result.probabilities["test"].shape == (2, 2)
        assert result.probabilities["leaked"].shape == (1, 2)
    # The same weights and the same streams whatever the source: what differs is the images.
    assert len(set(seen["weights"])) == len(set(seen["seeds"])) == 1
