"""Grad-CAM: a net whose answer is known, every torchvision network, the planted square."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.explain.conftest import draw_squares, wrap
from torch import nn

from unalike.errors import InputError
from unalike.explain.agreement import measure_overlap
from unalike.explain.gradcam import LEAST_SIDE, explain_by_gradcam, find_layer
from unalike.utility.classifier import Classifier
from unalike.vision import networks
from unalike.vision.names import NETWORKS


def bright_net() -> nn.Sequential:
    """Class 1 scores the mean of max(pixel, 0), class 0 the opposite."""
    network = nn.Sequential(nn.Conv2d(1, 1, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1, 2))
    with torch.no_grad():
        for parameter, value in zip(network.parameters(), ([1.0], [0.0], [-1.0, 1.0], [0.0, 0.0]), strict=True):
            parameter.copy_(torch.tensor(value).reshape(parameter.shape))
    return network


def test_heat_is_the_map_times_its_mean_gradient() -> None:
    images = np.zeros((2, 1, 32, 32), np.uint8)
    images[0, 0, 5, 7], images[1, 0, 20, 30] = 255, 51
    heat = explain_by_gradcam(wrap(bright_net(), mean=(0.0,), deviation=(1.0,)), images, np.asarray([1, 1]))
    # The gradient of the score by each cell of the map is 1/1024, and the map is the picture itself.
    assert heat == pytest.approx(images[:, 0] / 255 / 1024, abs=1e-9)
    opposite = explain_by_gradcam(wrap(bright_net(), mean=(0.0,), deviation=(1.0,)), images, np.asarray([0, 0]))
    assert (opposite == 0).all()


# VGG-19 is built as VGG-16 is, and each takes a second to draw its weights.
@pytest.mark.parametrize("name", [name for name in NETWORKS if name != "vgg19"])
def test_the_layer_is_the_last_map_before_pooling_in_every_network(name: str) -> None:
    side = max(128, networks.smallest_side(name))
    network = networks.build_network(name, classes=3, channels=1, seed=0)
    classifier = wrap(network, side=side, classes=("a", "b", "c"))
    image = np.random.default_rng(0).integers(0, 255, (1, 40, 48), dtype=np.uint8)
    module = find_layer(classifier, image)
    shapes: list[torch.Size] = []
    hook = module.register_forward_hook(lambda _module, _given, output: shapes.append(output.shape))
    heat = explain_by_gradcam(classifier, image[None], np.asarray([2]))
    hook.remove()
    # All of them halve four or five times before the last map that is at least four cells wide.
    assert LEAST_SIDE <= min(shapes[0][2:]) <= side // 16
    assert not isinstance(module, nn.MaxPool2d | nn.AdaptiveAvgPool2d)
    assert heat.shape == (1, 40, 48)
    assert np.isfinite(heat).all()
    assert (heat >= 0).all()


def test_a_map_of_one_cell_shows_no_place_and_an_earlier_layer_is_taken() -> None:
    network = networks.build_network("resnet18", classes=2, channels=1, seed=0)
    image = np.random.default_rng(0).integers(0, 255, (1, 32, 32), dtype=np.uint8)
    assert find_layer(wrap(network, side=32), image) is network.layer2
    assert find_layer(wrap(network, side=128), image) is network.layer4


def test_the_square_is_hot_for_a_classifier_that_learnt_it(trained: Classifier) -> None:
    images, truth, squares = draw_squares(24, seed=9)
    shown = np.flatnonzero(truth)
    heats = explain_by_gradcam(trained, images[shown], truth[shown])
    overlaps = [measure_overlap(heat, square) for heat, square in zip(heats, squares[shown], strict=True)]
    assert np.mean([each.pointing for each in overlaps]) > 0.8
    assert np.mean([each.inside for each in overlaps]) > 0.5


def test_networks_without_maps_are_told_apart() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(1024, 2))
    with pytest.raises(InputError, match="no feature map"):
        explain_by_gradcam(wrap(network), np.zeros((1, 1, 32, 32), np.uint8), np.asarray([0]))


def test_no_images_have_no_heat(trained: Classifier) -> None:
    assert explain_by_gradcam(trained, np.empty((0, 1, 32, 32), np.uint8), np.empty(0, np.int64)).shape == (0, 32, 32)
