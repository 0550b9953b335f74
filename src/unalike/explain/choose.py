"""Which images are explained: right and sure, wrong and sure, and unsure, of every class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from unalike.records import FloatArray, IntArray, TextArray
from unalike.seeds import generator_for

Kind = Literal["correct", "wrong", "uncertain"]
KINDS: tuple[Kind, ...] = ("correct", "wrong", "uncertain")


@dataclass(frozen=True)
class Chosen:
    """One image to explain: its ``place`` among those offered, why it was chosen, its class and the predicted one."""

    place: int
    kind: Kind
    truth: int
    predicted: int


def find_entropy(probabilities: FloatArray) -> FloatArray:
    """Entropy (n,), in nats, of probabilities (n, K)."""
    entropy: FloatArray = -(probabilities * np.log(np.clip(probabilities, 1e-300, 1.0))).sum(axis=1)
    return entropy


def choose_images(
    probabilities: FloatArray, truth: IntArray, subjects: TextArray, *, each: int, seed: int, purpose: str
) -> list[Chosen]:
    """Choose up to ``each`` images of every class and kind, from probabilities (n, K), classes and subjects (n,).

    Correct and wrong ones come by falling probability of the predicted class, uncertain ones by falling entropy;
    equals in the order of a stream named ``purpose``. No image is chosen twice, and of one subject no more than one of
    a class and kind. Images of unknown class (``truth`` −1) are never chosen.
    """
    shuffled = generator_for(seed, f"explain {purpose}").permutation(len(truth))
    predicted = probabilities.argmax(axis=1)
    sure, unsure = probabilities.max(axis=1), find_entropy(probabilities)
    chosen: list[Chosen] = []
    taken: set[int] = set()
    for label in range(probabilities.shape[1]):
        for kind in KINDS:
            fits = truth == label
            if kind != "uncertain":
                fits &= (predicted == truth) == (kind == "correct")
            order = shuffled[np.argsort(-(unsure if kind == "uncertain" else sure)[shuffled], kind="stable")]
            people: set[str] = set()
            for place in order[fits[order]].tolist():
                if len(people) == each:
                    break
                if place not in taken and subjects[place] not in people:
                    people.add(str(subjects[place]))
                    taken.add(place)
                    chosen.append(Chosen(place, kind, label, int(predicted[place])))
    return chosen
