"""Table 2 of Nafi et al. 2024: each network in k folds of its training images, tested on untouched real images.

Each fold in turn tells a training on the others when to stop. Folds are by subject and hold the classes in the images'
own proportions; a synthetic image that shares its subject with no other is a subject of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from sklearn.model_selection import StratifiedGroupKFold

from unalike.errors import InputError
from unalike.records import FloatArray, IntArray, TextArray
from unalike.seeds import generator_for, seed_for
from unalike.utility.models import save_classifier
from unalike.utility.scores import MEASURES, compare, confusion_matrix, measure, score
from unalike.utility.training import CellResult, Frame, Labelled, Recipe, Say, open_classifier, train_with_stopping

SYNTHETIC, REAL, AUGMENTED = "synthetic", "real", "real-augmented"
PAIRS = ((SYNTHETIC, REAL), (SYNTHETIC, AUGMENTED), (AUGMENTED, REAL))  # first minus second
TEST, LEAKED = "test", "leaked"  # names of predicted images: the holdout, and what was left out of it
_TRAINED = ("train_loss", "train_accuracy", "validation_loss", "validation_accuracy", "epochs", "seconds")


@dataclass(frozen=True, eq=False)
class Source:
    """What a network is trained on: images, their folder (for messages), and whether they are changed on the way."""

    name: str
    images: Labelled
    place: Path
    augment: bool = False


@dataclass(frozen=True, eq=False)
class HeldOut:
    """Real images nobody trained on, and those that were left out because their subject or picture is in train."""

    honest: Labelled
    leaked: Labelled


def split_folds(
    source: Source, *, classes: Sequence[str], folds: int, seed: int, option: str = "--folds"
) -> list[IntArray]:
    """Positions of the images of each fold (ascending): whole subjects, classes in proportion, drawn with ``seed``.

    The draw depends on the order of images and on who belongs to whom, not on names, so equal sets are split equally.
    Raises `InputError` naming the folder if a class has fewer subjects than there are folds (``option`` says how many),
    or lies in one fold alone.
    """
    images = source.images
    groups = number_subjects(images.subjects)
    for index, name in enumerate(classes):
        count = len(np.unique(groups[images.truth == index]))
        if count < folds:
            raise InputError(
                f"{source.place} ({source.name}): class '{name}' has {count} subjects, fewer than the {folds} folds. "
                f"Give more images{f' or a lower {option}' if count > 1 and option else ''}."
            )
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed_for(seed, "utility folds") % 2**32)
    found = [np.asarray(part, np.int64) for _, part in splitter.split(groups, images.truth, groups)]
    for part in found:
        if len(part) == 0 or len(np.unique(np.delete(images.truth, part))) < len(classes):
            raise InputError(
                f"{source.place} ({source.name}): a class lies with so few subjects that one fold holds all of it. "
                "Give more subjects, or leave that class out."
            )
    return found


def number_subjects(subjects: TextArray) -> IntArray:
    """Number (n,) of each image's subject, counted in order of first appearance: independent of pseudonyms."""
    _, first, number = np.unique(subjects, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[number].astype(np.int64)


def train_fold(
    source: Source,
    fold: int,
    rows: IntArray,
    tested: HeldOut,
    *,
    network: str,
    recipe: Recipe,
    frame: Frame,
    say: Say,
    keep: Path | None = None,
) -> CellResult:
    """Train ``network`` on all images of ``source`` but ``rows``, which tell when to stop; test it.

    Seeds are the same for every source: equal images give equal numbers. The model is written to ``keep`` if given.
    """
    began = perf_counter()
    others = np.setdiff1d(np.arange(len(source.images)), rows)
    train, validation = source.images.take(others), source.images.take(rows)
    classifier = open_classifier(frame, network, train, seed=seed_for(frame.seed, "utility weights", fold))
    seed = seed_for(frame.seed, "utility fold", fold)
    used = replace(recipe, augment=source.augment)
    numbers = train_with_stopping(classifier, train, validation, used, frame=frame, seed=seed, say=say)
    probabilities = {TEST: classifier.predict(tested.honest.pixels)}
    if len(tested.leaked):
        probabilities[LEAKED] = classifier.predict(tested.leaked.pixels)
    if keep is not None:
        save_classifier(classifier, keep)
    found = measure(probabilities[TEST], tested.honest.truth)
    numbers |= {
        "train_images": len(train),
        "validation_images": len(validation),
        "side": classifier.side,
        "numbers": classifier.precision,
        "seconds": round(perf_counter() - began, 2),
        **{f"test_{name}": value for name, value in found.items()},
    }
    return CellResult(numbers, probabilities)


def table_row(cells: Sequence[CellResult], tested: HeldOut, *, seed: int) -> dict[str, Any]:
    """One line of the table from the finished folds of one network on one source.

    Numbers on train and left out images are means over folds (``…_each`` has each fold's); on test images each is the
    mean over folds as an `Estimate` with an interval over test subjects. ``confusion`` (K, K) is the mean over folds of
    images by true class (rows) and predicted class. ``accuracy_with_leaks`` also counts the images that were left out
    of the holdout, None where there are none. ``side`` is the height and width (pixels) that the network saw,
    ``numbers`` their format (float32, bfloat16).
    """
    honest = tested.honest
    stacked = stack_predictions(cells)
    found = score(stacked, honest.truth, honest.subjects, random=generator_for(seed, "utility resamples"))
    row: dict[str, Any] = {"folds": len(cells), **{name: cells[0].numbers[name] for name in ("side", "numbers")}}
    for name in _TRAINED:
        each = [float(cell.numbers[name]) for cell in cells]
        row |= {name: float(np.mean(each)), f"{name}_each": each}
    for name in MEASURES:
        key = f"test_{name}" if name in {"loss", "accuracy"} else name
        row |= {key: found[name], f"{key}_each": [cell.numbers[f"test_{name}"] for cell in cells]}
    row["confusion"] = np.mean([confusion_matrix(each, honest.truth) for each in stacked], axis=0).tolist()
    row["accuracy_with_leaks"] = None
    if len(tested.leaked):
        everything = honest.join(tested.leaked)
        together = np.concatenate([stacked, stack_predictions(cells, LEAKED)], axis=1)
        random = generator_for(seed, "utility resamples", 1)
        row["accuracy_with_leaks"] = score(together, everything.truth, everything.subjects, random=random)["accuracy"]
    return row


def stack_predictions(cells: Sequence[CellResult], name: str = TEST) -> FloatArray:
    """Probabilities (m, n, K) of the same images by the model of each cell."""
    return np.stack([cell.probabilities[name] for cell in cells])


def differences(
    cells: Mapping[tuple[str, str], Sequence[CellResult]], tested: HeldOut, *, seed: int
) -> list[dict[str, Any]]:
    """For each network, paired differences (first − second) between the sources of `PAIRS` that are there.

    ``cells`` maps (network, source) to its finished folds.
    """
    honest, found = tested.honest, []
    for network in dict.fromkeys(name for name, _ in cells):
        for first, second in PAIRS:
            if (network, first) not in cells or (network, second) not in cells:
                continue
            one, two = (stack_predictions(cells[network, source]) for source in (first, second))
            random = generator_for(seed, "utility resamples")
            measures = compare(one, two, honest.truth, honest.subjects, random=random)
            found.append({"network": network, "first": first, "second": second, **measures})
    return found
