"""A world with a planted cue: a bright square in one class, and blots as bright in both."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from unalike.utility.classifier import Classifier

SIDE, SQUARE, BLOT, BLOTS = 32, 8, 4, 9


def draw_squares(count: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Images (n, 1, 32, 32), classes (n,) and where the squares are (n, 32, 32)."""
    random = np.random.default_rng(seed)
    images = np.kron(random.normal(90, 25, (count, 8, 8)), np.ones((4, 4))) + random.normal(0, 6, (count, SIDE, SIDE))
    truth = np.arange(count) % 2
    for image in images:
        for top, left in random.integers(0, SIDE - BLOT, (BLOTS, 2)):
            image[top : top + BLOT, left : left + BLOT] = 235 + random.normal(0, 5, (BLOT, BLOT))
    squares = np.zeros((count, SIDE, SIDE), dtype=bool)
    for place in np.flatnonzero(truth):
        top, left = random.integers(0, SIDE - SQUARE, 2)
        squares[place, top : top + SQUARE, left : left + SQUARE] = True
    images[squares] = 235 + random.normal(0, 5, squares.sum())
    return np.clip(np.rint(images), 0, 255).astype(np.uint8)[:, None], truth, squares


def build_network(seed: int) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(8, 16, 3, padding=1),
            nn.ReLU(),
            nn.AdaptiveMaxPool2d(1),
            nn.Flatten(),
            nn.Linear(16, 2),
        )


def wrap(network: nn.Module, **options: object) -> Classifier:
    given: dict[str, object] = {
        "name": "tiny",
        "classes": ("plain", "square"),
        "channels": (0,),
        "side": SIDE,
        "highest": 255,
        "mean": (0.4,),
        "deviation": (0.2,),
        "network": network,
    }
    return Classifier(**(given | options))


def train(seed: int) -> Classifier:
    images, truth, _ = draw_squares(256, seed=100 + seed)
    classifier = wrap(build_network(seed))
    prepared, classes = classifier.prepare(images), torch.from_numpy(truth)
    optimizer = torch.optim.Adam(classifier.network.parameters(), lr=0.02)
    for update in range(64):
        part = slice(update % 8 * 32, update % 8 * 32 + 32)
        optimizer.zero_grad()
        nn.functional.cross_entropy(classifier.logits(prepared[part]), classes[part]).backward()
        optimizer.step()
    return classifier


@pytest.fixture(scope="session")
def trained() -> Classifier:
    """A classifier that has learnt the square."""
    return train(0)


@pytest.fixture(scope="session")
def untrained() -> Callable[[int], Classifier]:
    """Classifiers with random weights, by seed."""
    return lambda seed: wrap(build_network(1000 + seed))
