from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from unalike.errors import InputError
from unalike.seeds import seed_for
from unalike.utility import mixing as module
from unalike.utility.crossval import REAL, SYNTHETIC, HeldOut, Source
from unalike.utility.mixing import (
    Mixing,
    Mixture,
    draw_stratified,
    list_mixtures,
    mixing_table,
    prepare_mixing,
    train_mixture,
)
from unalike.utility.settings import UtilitySettings
from unalike.utility.training import CellResult, Frame, Labelled, Recipe

SIDE = 6
SETTINGS = UtilitySettings(precision="float32", mix_batches=20, mix_checks=2, repetitions=2)
NOBODY = Labelled(np.empty((0, 1, SIDE, SIDE), np.uint8), np.empty(0, np.int64), np.empty(0, str))


def bright_or_dark(count: int, *, seed: int, images: int = 1) -> Labelled:
    """Class b is brighter in its left half; ``images`` each of ``count`` subjects."""
    random = np.random.default_rng(seed)
    owner = np.repeat(np.arange(count), images)
    truth = owner % 2
    pixels = random.integers(0, 100, (len(owner), 1, SIDE, SIDE))
    pixels[truth == 1, :, :, : SIDE // 2] += 100
    return Labelled(pixels.astype(np.uint8), truth, np.array([f"{seed}-{name}" for name in owner]))


def make_mixing() -> Mixing:
    frame = Frame(("a", "b"), (0,), (SIDE, SIDE), 255, SETTINGS, 0, torch.device("cpu"))
    real, synthetic = bright_or_dark(50, seed=1, images=2), bright_or_dark(60, seed=2)
    return prepare_mixing(
        Source(SYNTHETIC, synthetic, Path("samples")), Source(REAL, real, Path("cohort")), frame=frame
    )


def test_a_fifth_of_the_real_subjects_is_held_apart():
    mixing = make_mixing()
    assert len(mixing.validation) == 20
    assert len(mixing.real) == 80
    assert not set(mixing.validation.subjects) & set(mixing.real.subjects)
    assert mixing.validation.truth.mean() == 0.5
    assert len(mixing.synthetic) == 60


def test_drawn_images_are_in_proportion_exactly_so_many_and_nested():
    truth = np.repeat([0, 1, 2], [60, 30, 3])
    for count in (3, 4, 10, 31, 92, 93):
        rows = draw_stratified(truth, count, random=np.random.default_rng(0))
        assert len(np.unique(rows)) == count
        sizes = np.bincount(truth[rows], minlength=3)
        assert (sizes >= 1).all()
        assert (np.abs(sizes - count * np.array([60, 30, 3]) / 93) < 2).all()
    assert np.bincount(truth[draw_stratified(truth, 31, random=np.random.default_rng(0))]).tolist() == [20, 10, 1]
    few, many = (set(draw_stratified(truth, count, random=np.random.default_rng(0))) for count in (31, 62))
    assert few < many
    assert set(draw_stratified(truth, 31, random=np.random.default_rng(1))) != few


def test_all_stands_for_what_there_is_and_real_images_alone_have_a_plain_twin():
    found = list_mixtures(make_mixing(), [(None, 0), (0, None), (40, 20), (80, 0)])
    assert found == [
        Mixture(80, 0, augment=True),
        Mixture(80, 0, augment=False),
        Mixture(0, 60, augment=True),
        Mixture(40, 20, augment=True),
    ]
    assert len({mixture.name for mixture in found}) == 4


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ((81, 0), r"81 real images, there are 80 \(20 more pick the checkpoint\)"),
        ((0, 61), "61 synthetic images, there are 60"),
        ((1, 20), "1 real images, fewer than classes"),
    ],
)
def test_proportions_that_cannot_be_drawn_are_refused(asked: tuple[int, int], said: str):
    with pytest.raises(InputError, match=said):
        list_mixtures(make_mixing(), [asked])


def test_too_few_real_subjects_to_hold_any_apart_are_refused():
    frame = make_mixing().frame
    few = Source(REAL, bright_or_dark(8, seed=1), Path("cohort"))
    with pytest.raises(InputError, match="class 'a' has 4 subjects"):
        prepare_mixing(few, few, frame=frame)


def test_repetitions_draw_anew_and_proportions_of_one_repetition_share_their_images(monkeypatch: pytest.MonkeyPatch):
    seen: list[tuple[set[str], int, Recipe]] = []

    def build(name: str, *, classes: int, channels: int, seed: int) -> nn.Module:
        seen.append((set(), seed, Recipe(0, 0, 0)))
        return nn.Sequential(nn.Flatten(), nn.Linear(SIDE**2, classes))

    def watch(classifier: Any, train: Labelled, validation: Labelled, recipe: Recipe, **named: Any) -> dict[str, Any]:
        assert validation is mixing.validation
        seen[-1] = ({image.tobytes().hex() for image in train.pixels}, seen[-1][1], recipe)
        return {}

    mixing = make_mixing()
    monkeypatch.setattr("unalike.vision.networks.build_network", build)
    monkeypatch.setattr("unalike.vision.networks.smallest_side", lambda name: 1)
    monkeypatch.setattr(module, "train_with_checks", watch)
    tested = HeldOut(bright_or_dark(4, seed=9), NOBODY)
    for mixture, repetition in (
        (Mixture(20, 0, augment=True), 0),
        (Mixture(20, 10, augment=True), 0),
        (Mixture(40, 0, augment=False), 0),
        (Mixture(20, 0, augment=True), 1),
    ):
        train_mixture(mixing, mixture, repetition, tested, lambda text: None)
    alone, mixed, more, again = (images for images, _, _ in seen)
    assert [len(images) for images in (alone, mixed, more, again)] == [20, 30, 40, 20]
    assert alone < mixed
    assert alone < more
    assert alone != again
    assert seen[0][1] == seen[1][1] == seen[2][1] != seen[3][1]
    assert (seen[0][2].learning_rate, seen[0][2].batch_size, seen[0][2].augment) == (1e-4, 32, True)
    assert not seen[2][2].augment


def test_training_on_a_mixture_learns_and_repeats(monkeypatch: pytest.MonkeyPatch):
    def build(name: str, *, classes: int, channels: int, seed: int) -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(seed_for(seed, name))
            return nn.Sequential(nn.Flatten(), nn.Linear(SIDE**2, 32), nn.ReLU(), nn.Linear(32, classes))

    monkeypatch.setattr("unalike.vision.networks.build_network", build)
    monkeypatch.setattr("unalike.vision.networks.smallest_side", lambda name: 1)
    monkeypatch.setattr(module, "LEARNING_RATE", 1e-3)
    tested = HeldOut(bright_or_dark(40, seed=9), NOBODY)
    first, again, other = (
        train_mixture(make_mixing(), Mixture(20, 30, augment=False), repetition, tested, lambda text: None)
        for repetition in (0, 0, 1)
    )
    assert first.numbers["test_auc"] > 0.95
    assert np.array_equal(first.probabilities["test"], again.probabilities["test"])
    assert not np.array_equal(first.probabilities["test"], other.probabilities["test"])
    assert len(first.numbers["checks"]) == 2


def cells(*columns: list[float]) -> list[CellResult]:
    """Repetitions with these probabilities of the second class for images of classes 0, 0, 1, 1."""
    found = []
    for column in columns:
        second = np.array(column)
        area = np.mean([(b > a) + 0.5 * (a == b) for a in second[:2] for b in second[2:]])
        found.append(
            CellResult({"test_auc": float(area), "seconds": 1.0}, {"test": np.stack([1 - second, second], axis=1)})
        )
    return found


def test_table_tells_mean_deviation_interval_and_difference_to_augmentation_alone():
    right, half = [0.1, 0.2, 0.8, 0.9], [0.1, 0.9, 0.2, 0.95]  # areas 1 and 0.75
    finished = {
        Mixture(80, 0, augment=True): cells(half, half),
        Mixture(80, 0, augment=False): cells(half, [0.5] * 4),
        Mixture(0, 60, augment=True): cells(half, half),
        Mixture(80, 60, augment=True): cells(right, half),
    }
    pixels = np.zeros((4, 1, SIDE, SIDE), np.uint8)
    tested = HeldOut(Labelled(pixels, np.array([0, 0, 1, 1]), np.array(["p", "q", "r", "s"])), NOBODY)
    found = mixing_table(finished, make_mixing(), tested)
    alone, plain, synthetic, mixed = found["rows"]
    assert mixed["auc_each"] == [1, 0.75]
    assert (mixed["auc_mean"], mixed["auc"].value) == (0.875, 0.875)
    assert mixed["auc_deviation"] == pytest.approx(0.125 * math.sqrt(2))
    assert mixed["auc"].n == 4
    assert mixed["difference"].value == pytest.approx(0.125)
    assert mixed["against"] == {"real": 80, "synthetic": 0}
    assert plain["difference"].value == pytest.approx(0.625 - 0.75)
    assert synthetic["difference"].value == 0
    assert (alone["difference"], alone["against"]) == (None, None)
    assert [(line["real"], line["synthetic"]) for line in found["curve"]] == [(0, [60]), (80, [0, 60])]
    assert found["curve"][1]["auc"][1].value == 0.875
    assert (found["pool"], found["validation_images"], found["validation_subjects"]) == (80, 20, 10)


def test_one_repetition_has_no_deviation():
    pixels = np.zeros((4, 1, SIDE, SIDE), np.uint8)
    tested = HeldOut(Labelled(pixels, np.array([0, 0, 1, 1]), np.array(["p", "q", "r", "s"])), NOBODY)
    found = mixing_table({Mixture(0, 60, augment=True): cells([0.1, 0.2, 0.8, 0.9])}, make_mixing(), tested)
    assert math.isnan(found["rows"][0]["auc_deviation"])
    assert found["rows"][0]["difference"] is None
