from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from unalike.errors import NonFiniteLossError
from unalike.seeds import seed_for
from unalike.utility import training
from unalike.utility.settings import UtilitySettings
from unalike.utility.training import (
    Frame,
    Labelled,
    Recipe,
    assess,
    change_images,
    open_classifier,
    train_with_checks,
    train_with_stopping,
)

SIDE = 8
SETTINGS = UtilitySettings(epochs=6, patience=2, mix_batches=12, mix_checks=3, precision="float32")
RECIPE = Recipe(learning_rate=1e-2, weight_decay=0.01, batch_size=8)


def silent(text: str) -> None:
    pass


@pytest.fixture(autouse=True)
def tiny_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    def build(name: str, *, classes: int, channels: int, seed: int) -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(seed_for(seed, name))
            return nn.Sequential(
                nn.Flatten(), nn.Linear(channels * SIDE**2, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3),
                nn.Linear(16, classes),
            )  # fmt: skip

    monkeypatch.setattr("unalike.vision.networks.build_network", build)
    monkeypatch.setattr("unalike.vision.networks.smallest_side", lambda name: 1)


def frame_of(settings: UtilitySettings = SETTINGS, *, channels: tuple[int, ...] = (0,)) -> Frame:
    return Frame(("a", "b"), channels, (SIDE, SIDE), 255, settings, 0, torch.device("cpu"))


def bright_or_dark(count: int, *, seed: int = 0, flipped: bool = False) -> Labelled:
    """Class b is brighter in its left half."""
    random = np.random.default_rng(seed)
    truth = np.arange(count) % 2
    pixels = random.integers(0, 100, (count, 1, SIDE, SIDE))
    pixels[truth == 1, :, :, : SIDE // 2] += 100
    return Labelled(pixels.astype(np.uint8), 1 - truth if flipped else truth, np.arange(count).astype(str))


def weights_of(network: nn.Module) -> list[torch.Tensor]:
    return [tensor.clone() for tensor in network.state_dict().values()]


def test_images_are_standardized_by_the_training_images_alone():
    pixels = np.zeros((2, 3, SIDE, SIDE), np.uint8)
    pixels[0, 0], pixels[1, 0] = 51, 153  # mean 0.4, deviation 0.2 of 255
    pixels[:, 2] = 255  # constant
    train = Labelled(pixels, np.array([0, 1]), np.array(["p", "q"]))
    classifier = open_classifier(frame_of(channels=(0, 2)), "resnet18", train, seed=0)
    assert classifier.mean == pytest.approx((0.4, 1.0))
    assert classifier.deviation == pytest.approx((0.2, 1.0))
    prepared = classifier.prepare(pixels)
    assert prepared[:, 0, 0, 0].tolist() == pytest.approx([-1, 1], abs=1e-5)
    assert prepared[:, 1].abs().max() < 1e-6


def test_side_is_what_was_asked_for_but_never_less_than_the_network_takes(monkeypatch: pytest.MonkeyPatch):
    train = bright_or_dark(4)
    assert open_classifier(frame_of(), "resnet18", train, seed=0).side == SIDE
    monkeypatch.setattr("unalike.vision.networks.smallest_side", lambda name: 63)
    assert open_classifier(frame_of(dataclasses.replace(SETTINGS, side=32)), "alexnet", train, seed=0).side == 63
    assert open_classifier(frame_of(dataclasses.replace(SETTINGS, side=80)), "alexnet", train, seed=0).side == 80


def test_imagenet_weights_bring_their_own_scaling_and_size(monkeypatch: pytest.MonkeyPatch):
    asked: list[Any] = []
    monkeypatch.setattr("unalike.vision.networks.load_imagenet", lambda *given: asked.append(given[1:]))
    settings = dataclasses.replace(SETTINGS, weights="folder")
    classifier = open_classifier(frame_of(settings), "resnet18", bright_or_dark(4), seed=0)
    assert asked == [("resnet18", "folder")]
    assert classifier.side == 224
    assert classifier.mean == pytest.approx([(0.485 + 0.456 + 0.406) / 3])


def test_training_learns_and_reports_its_best_weights():
    train, validation = bright_or_dark(32), bright_or_dark(16, seed=1)
    classifier = open_classifier(frame_of(), "resnet18", train, seed=0)
    found = train_with_stopping(classifier, train, validation, RECIPE, frame=frame_of(), seed=0, say=silent)
    assert found["validation_accuracy"] == 1
    assert (found["validation_loss"], found["validation_accuracy"]) == assess(classifier, validation)
    assert (found["train_loss"], found["train_accuracy"]) == assess(classifier, train)
    assert 1 <= found["best_epoch"] <= found["epochs"] <= 6


def test_training_stops_after_patience_epochs_and_goes_back_to_the_best():
    train, misleading = bright_or_dark(32), bright_or_dark(16, seed=1, flipped=True)
    settings = dataclasses.replace(SETTINGS, epochs=50)
    losses: list[float] = []
    classifier = open_classifier(frame_of(settings), "resnet18", train, seed=0)

    def hear(text: str) -> None:
        losses.append(assess(classifier, misleading)[0])

    found = train_with_stopping(classifier, train, misleading, RECIPE, frame=frame_of(settings), seed=0, say=hear)
    assert found["epochs"] == found["best_epoch"] + 2 < 50
    assert found["validation_loss"] == min(losses) == losses[found["best_epoch"] - 1]


@pytest.mark.parametrize("augment", [False, True])
def test_training_repeats_bit_for_bit_and_leaves_global_randomness_alone(augment: bool):
    recipe = dataclasses.replace(RECIPE, augment=augment)
    found = []
    torch.manual_seed(3)
    for seed in (0, 0, 1):
        classifier = open_classifier(frame_of(), "resnet18", bright_or_dark(18), seed=0)
        before, legacy = torch.get_rng_state(), np.random.get_state()[1].tolist()  # noqa: NPY002
        train_with_stopping(
            classifier, bright_or_dark(18), bright_or_dark(8, seed=1), recipe, frame=frame_of(), seed=seed, say=silent
        )
        assert torch.equal(torch.get_rng_state(), before)
        assert np.random.get_state()[1].tolist() == legacy  # noqa: NPY002
        torch.rand(1)  # another global state must not matter
        found.append(weights_of(classifier.network))
    assert all(map(torch.equal, found[0], found[1]))
    assert not all(map(torch.equal, found[0], found[2]))


def test_libraries_settings_are_as_before_afterwards_even_if_training_fails():
    cudnn = torch.backends.cudnn
    seen: list[tuple[bool, ...]] = []

    def fail() -> None:
        with training.repeatable(0, torch.device("cpu")):
            seen.append((cudnn.enabled, cudnn.deterministic, cudnn.benchmark))
            raise KeyError

    before = cudnn.enabled, cudnn.deterministic, cudnn.benchmark
    with pytest.raises(KeyError):
        fail()
    assert seen == [(True, True, False)]
    assert (cudnn.enabled, cudnn.deterministic, cudnn.benchmark) == before


def test_divergence_is_said():
    train = bright_or_dark(16)
    classifier = open_classifier(frame_of(), "resnet18", train, seed=0)
    recipe = dataclasses.replace(RECIPE, learning_rate=1e36)
    with pytest.raises(NonFiniteLossError, match=r"resnet18.*--learning-rate"):
        train_with_stopping(classifier, train, train, recipe, frame=frame_of(), seed=0, say=silent)


def test_an_epoch_sees_each_image_once_and_leaves_a_last_single_one_out():
    batches = training._epoch(12, 5, seed=0, epoch=1)
    assert [len(rows) for rows in batches] == [5, 5, 2]
    assert sorted(itertools.chain(*batches)) == list(range(12))
    assert [len(rows) for rows in training._epoch(11, 5, seed=0, epoch=1)] == [5, 5]
    assert not np.array_equal(batches[0], training._epoch(12, 5, seed=0, epoch=2)[0])


def test_endless_batches_are_of_one_size_and_use_each_image_alike():
    batches = list(itertools.islice(training._endless(6, 4, seed=0), 9))
    assert {len(rows) for rows in batches} == {4}
    assert np.bincount(np.concatenate(batches)).tolist() == [6] * 6
    assert len(next(training._endless(3, 32, seed=0))) == 32


def test_checkpoint_of_the_highest_area_is_kept(monkeypatch: pytest.MonkeyPatch):
    train, validation = bright_or_dark(32), bright_or_dark(16, seed=1)
    areas = iter([0.5, 0.9, 0.9])
    monkeypatch.setattr(training, "area_under_curve", lambda *given: next(areas, 1.0))
    chosen = open_classifier(frame_of(), "resnet18", train, seed=0)
    found = train_with_checks(chosen, train, validation, RECIPE, frame=frame_of(), seed=0, say=silent)
    assert found["best_update"] == 8  # the first of two equals
    assert [each["update"] for each in found["checks"]] == [4, 8, 12]
    shorter = frame_of(dataclasses.replace(SETTINGS, mix_batches=8, mix_checks=1))
    expected = open_classifier(shorter, "resnet18", train, seed=0)
    train_with_checks(expected, train, validation, RECIPE, frame=shorter, seed=0, say=silent)
    assert all(map(torch.equal, weights_of(chosen.network), weights_of(expected.network)))


def test_more_checks_than_updates_check_each_update():
    settings = dataclasses.replace(SETTINGS, mix_batches=2, mix_checks=9)
    train = bright_or_dark(8)
    classifier = open_classifier(frame_of(settings), "resnet18", train, seed=0)
    found = train_with_checks(classifier, train, train, RECIPE, frame=frame_of(settings), seed=0, say=silent)
    assert [each["update"] for each in found["checks"]] == [1, 2]


def test_bfloat16_learns_too():
    settings = dataclasses.replace(SETTINGS, precision="bfloat16")
    train = bright_or_dark(32)
    classifier = open_classifier(frame_of(settings), "resnet18", train, seed=0)
    found = train_with_stopping(classifier, train, train, RECIPE, frame=frame_of(settings), seed=0, say=silent)
    assert found["train_accuracy"] == 1


AMOUNTS = ("LARGEST_SHIFT", "LARGEST_SCALE", "LARGEST_TURN", "LARGEST_NOISE", "LARGEST_CONTRAST", "LARGEST_BRIGHTNESS")


def only(monkeypatch: pytest.MonkeyPatch, **kept: float) -> None:
    for name in (*AMOUNTS, "DROPPED"):
        monkeypatch.setattr(training, name, kept.get(name, 0.0))


def test_changes_of_no_amount_give_each_image_or_its_mirror(monkeypatch: pytest.MonkeyPatch):
    only(monkeypatch)
    images = torch.randn(40, 2, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    changed = change_images(images, seed=0, update=0)
    same, mirrored = ((changed - each).abs().amax(dim=(1, 2, 3)) < 1e-4 for each in (images, images.flip(3)))
    assert (same | mirrored).all()
    assert 8 < int(mirrored.sum()) < 32


def move(happens: dict[int, float]) -> tuple[torch.Tensor, torch.Tensor]:
    """An image, and what becomes of it where the changes of these numbers happen."""
    coins, far = np.zeros((1, 6), bool), np.zeros((1, 7))
    for number, amount in happens.items():
        coins[0, min(number, 3)] = True
        far[0, number] = amount
    image = torch.randn(1, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    return image[0, 0], training._move(image, training._matrices(coins, far))[0, 0]


def test_moved_turned_and_scaled_images_are_where_they_should_be(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(training, "LARGEST_TURN", math.pi / 2)
    monkeypatch.setattr(training, "LARGEST_SHIFT", 0.25)
    monkeypatch.setattr(training, "LARGEST_SCALE", 1.0)
    image, turned = move({3: 1.0})
    assert any(torch.allclose(turned, torch.rot90(image, quarter), atol=1e-4) for quarter in (1, 3))
    coins, far = np.zeros((1, 6), bool), np.zeros((1, 7))
    coins[0, 1], far[0, 0] = True, 1.0
    shifted = training._move(image[None, None], training._matrices(coins, far))[0, 0]
    assert torch.allclose(shifted[:, :-2], image[:, 2:], atol=1e-4)
    coins, far = np.zeros((1, 6), bool), np.zeros((1, 7))
    coins[0, 2], far[0, 2] = True, 1.0  # twice as large
    flat = torch.zeros(1, 1, SIDE, SIDE)
    flat[..., 2:6, 2:6] = 1
    assert (training._move(flat, training._matrices(coins, far)) > 0.4).all()


def test_noise_contrast_and_lost_channels_happen_as_often_and_far_as_said(monkeypatch: pytest.MonkeyPatch):
    images = torch.ones(400, 2, SIDE, SIDE)
    only(monkeypatch, LARGEST_NOISE=0.1)
    spread = (change_images(images, seed=0, update=0) - 1).std(dim=(1, 2, 3))
    assert 0.4 < float((spread > 1e-5).float().mean()) < 0.6
    assert 0.08 < float(spread.max()) < 0.13
    only(monkeypatch, LARGEST_CONTRAST=0.2)
    gain = change_images(images, seed=0, update=0)[:, 0, 0, 0]
    assert math.exp(-0.2) - 1e-4 < float(gain.min()) < 0.85 < 1.17 < float(gain.max()) < math.exp(0.2) + 1e-4
    only(monkeypatch, DROPPED=0.1)
    lost = (change_images(images, seed=0, update=0) == 0).all(dim=3).all(dim=2).sum(dim=1)
    assert set(lost.tolist()) == {0, 1}
    assert 0.05 < float(lost.float().mean()) < 0.15
    assert (change_images(images[:, :1], seed=0, update=0) != 0).all()  # never the only one


def test_changes_depend_on_seed_and_update_alone():
    images = torch.randn(6, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    first = change_images(images, seed=0, update=5)
    torch.rand(7)
    assert torch.equal(first, change_images(images, seed=0, update=5))
    assert not torch.equal(first, change_images(images, seed=0, update=6))
    assert not torch.equal(first, change_images(images, seed=1, update=5))
