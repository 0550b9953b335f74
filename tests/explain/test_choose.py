"""Which images are explained."""

from __future__ import annotations

import numpy as np
import pytest

from unalike.explain.choose import choose_images, find_entropy

PROBABILITIES = np.asarray(
    [[0.99, 0.01], [0.95, 0.05], [0.6, 0.4], [0.1, 0.9], [0.3, 0.7], [0.52, 0.48], [0.97, 0.03], [0.02, 0.98]]
)
TRUTH = np.asarray([0, 0, 0, 0, 0, 0, -1, 1])
ALONE = np.asarray([f"p{place}" for place in range(8)])


def test_sure_ones_right_and_wrong_then_unsure_ones_of_each_class() -> None:
    found = choose_images(PROBABILITIES, TRUTH, ALONE, each=1, seed=0, purpose="test")
    assert [(each.place, each.kind, each.truth, each.predicted) for each in found] == [
        (0, "correct", 0, 0),
        (3, "wrong", 0, 1),
        (5, "uncertain", 0, 0),
        (7, "correct", 1, 1),
    ]


def test_nobody_is_shown_twice_of_a_class_and_kind_and_no_image_twice() -> None:
    people = np.asarray(["a", "a", "b", "c", "d", "e", "f", "g"])
    found = choose_images(PROBABILITIES, TRUTH, people, each=2, seed=0, purpose="test")
    assert [each.place for each in found if each.kind == "correct" and each.truth == 0] == [0, 2]
    assert len({each.place for each in found}) == len(found)


def test_equals_come_in_the_order_of_the_seed() -> None:
    same = np.full((50, 2), 0.5)
    people = np.arange(50).astype(str)
    orders = [
        [each.place for each in choose_images(same, np.zeros(50, int), people, each=5, seed=seed, purpose="x")]
        for seed in (0, 0, 1)
    ]
    assert orders[0] == orders[1] != orders[2]


def test_entropy_in_nats() -> None:
    assert find_entropy(np.asarray([[0.5, 0.5], [1.0, 0.0]])) == pytest.approx([np.log(2), 0.0])
