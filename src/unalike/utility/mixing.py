"""Table 4 of de Wilde et al. 2023: real and synthetic images in any proportion, and what they are worth together.

A fifth of the real training subjects, in the classes' proportions, is held apart for all proportions and repetitions:
its AUC picks the checkpoint. The other four fifths are what real images are drawn from. In one repetition the draws of
all proportions are nested (200 real images are among the 400) and weights begin alike, so that rows differ by what they
are trained on. Each proportion is trained with traditional augmentation; real images alone also without.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np

from unalike.errors import InputError
from unalike.records import IntArray
from unalike.seeds import generator_for, seed_for
from unalike.utility.crossval import TEST, HeldOut, Source, split_folds, stack_predictions
from unalike.utility.scores import MEASURES, compare, measure, score
from unalike.utility.training import CellResult, Frame, Labelled, Recipe, Say, open_classifier, train_with_checks

HELD_APART = 5  # one part in so many of the real training subjects picks the checkpoint
LEARNING_RATE = 1e-4
BATCH_SIZE = 32


@dataclass(frozen=True, eq=False)
class Mixing:
    """What proportions draw from: ``real`` and ``synthetic``, and real images of other subjects for ``validation``."""

    real: Labelled
    synthetic: Labelled
    validation: Labelled
    frame: Frame


@dataclass(frozen=True)
class Mixture:
    """So many real and synthetic images, with or without traditional augmentation."""

    real: int
    synthetic: int
    augment: bool

    @property
    def name(self) -> str:
        """Name of the proportion in names of files."""
        return f"{self.real}-{self.synthetic}" + ("" if self.augment else "-plain")


def prepare_mixing(synthetic: Source, real: Source, *, frame: Frame) -> Mixing:
    """Hold a fifth of the real training subjects apart.

    Raises `InputError` if a class has too few subjects for that.
    """
    parts = split_folds(
        real,
        classes=frame.classes,
        folds=HELD_APART,
        seed=seed_for(frame.seed, "mixing validation"),
        option="",
    )
    rest = np.sort(np.concatenate(parts[1:]))
    return Mixing(real.images.take(rest), synthetic.images, real.images.take(parts[0]), frame)


def list_mixtures(mixing: Mixing, asked: Sequence[tuple[int | None, int | None]]) -> list[Mixture]:
    """The rows to train: each proportion with augmentation, real images alone also without.

    None stands for all there are. Raises `InputError` if more is asked for than there is, or fewer images than classes.
    """
    found: list[Mixture] = []
    for real, synthetic in asked:
        counts = {}
        for name, wanted, images in (("real", real, mixing.real), ("synthetic", synthetic, mixing.synthetic)):
            counts[name] = len(images) if wanted is None else wanted
            if counts[name] > len(images):
                apart = f" ({len(mixing.validation)} more pick the checkpoint)" if name == "real" else ""
                raise InputError(
                    f"--mix asks for {counts[name]} {name} images, there are {len(images)}{apart}. "
                    "Ask for fewer, or write all."
                )
            if 0 < counts[name] < len(mixing.frame.classes):
                raise InputError(f"--mix asks for {counts[name]} {name} images, fewer than classes. Ask for more.")
        found.append(Mixture(counts["real"], counts["synthetic"], augment=True))
        if counts["synthetic"] == 0:
            found.append(Mixture(counts["real"], 0, augment=False))
    return list(dict.fromkeys(found))


def draw_stratified(truth: IntArray, count: int, *, random: np.random.Generator) -> IntArray:
    """Positions (ascending) of ``count`` of the images, classes in proportion and none empty.

    Each class gets its share rounded down, at least one; what is left goes to the largest remainders, the first of
    equals. Draws from equal streams are nested as far as the shares are.
    """
    classes = np.unique(truth)
    sizes = np.array([(truth == one).sum() for one in classes])
    shares = count * sizes / len(truth)
    taken = np.maximum(np.floor(shares).astype(np.int64), 1 if count else 0)
    while (short := count - int(taken.sum())) != 0:
        # Who is furthest from his share gives or gets one.
        gap = (
            np.where(taken < sizes, shares - taken, -np.inf)
            if short > 0
            else np.where(taken > 1, taken - shares, -np.inf)
        )
        taken[int(gap.argmax())] += 1 if short > 0 else -1
    drawn = [
        random.permutation(np.flatnonzero(truth == one))[:number]
        for one, number in zip(classes, taken.tolist(), strict=True)
    ]
    return np.sort(np.concatenate(drawn)).astype(np.int64)


def train_mixture(mixing: Mixing, mixture: Mixture, repetition: int, tested: HeldOut, say: Say) -> CellResult:
    """Train the first of the networks once on images drawn for this repetition, and test it.

    Adam with learning rate 1e-4, ``mix_batches`` batches of 32 (de Wilde et al. 2023, 3.2).
    """
    began, frame = perf_counter(), mixing.frame
    train = _draw(mixing, mixture, repetition)
    classifier = open_classifier(
        frame, frame.settings.chosen_networks[0], train, seed=seed_for(frame.seed, "mixing weights", repetition)
    )
    recipe = Recipe(LEARNING_RATE, 0.0, BATCH_SIZE, augment=mixture.augment)
    seed = seed_for(frame.seed, "mixing training", repetition)
    numbers = train_with_checks(classifier, train, mixing.validation, recipe, frame=frame, seed=seed, say=say)
    probabilities = classifier.predict(tested.honest.pixels)
    numbers |= {
        "seconds": round(perf_counter() - began, 2),
        **{f"test_{name}": value for name, value in measure(probabilities, tested.honest.truth).items()},
    }
    return CellResult(numbers, {TEST: probabilities})


def _draw(mixing: Mixing, mixture: Mixture, repetition: int) -> Labelled:
    parts = []
    for name, images, count in (
        ("real", mixing.real, mixture.real),
        ("synthetic", mixing.synthetic, mixture.synthetic),
    ):
        random = generator_for(mixing.frame.seed, f"mixing {name}", repetition)
        if count:
            parts.append(images.take(draw_stratified(images.truth, count, random=random)))
    return parts[0] if len(parts) == 1 else parts[0].join(parts[1])


def mixing_table(finished: Mapping[Mixture, Sequence[CellResult]], mixing: Mixing, tested: HeldOut) -> dict[str, Any]:
    """Tables from the finished repetitions of each proportion.

    * ``rows``: ``real``, ``synthetic`` (images), ``augmentation``, ``repetitions``; each of `MEASURES` as an
      `Estimate`: the mean over repetitions with an interval over test subjects; ``auc_mean`` and ``auc_deviation``
      (over repetitions, n − 1) and ``auc_each``; ``difference``: the AUC minus that of ``against``, paired over test
      subjects. ``against`` is as many real images alone, with augmentation (where there are none, the most real images
      trained alone); both None where that was not trained, and for that row itself.
    * ``curve``: for each number of real images, ascending, the rows with augmentation by number of synthetic ones:
      ``real``, ``synthetic`` and ``auc`` (lists).
    * ``network``, ``validation_images``, ``validation_subjects``, ``pool`` (real images to draw from) and ``notes``.
    """
    honest, seed = tested.honest, mixing.frame.seed
    stacks = {mixture: stack_predictions(cells) for mixture, cells in finished.items()}
    rows = []
    for mixture, cells in finished.items():
        random = generator_for(seed, "utility resamples")
        areas = [float("nan") if one.numbers["test_auc"] is None else one.numbers["test_auc"] for one in cells]
        baseline = _baseline(mixture, list(stacks))
        difference = None
        if baseline is not None:
            again = generator_for(seed, "utility resamples")
            difference = compare(stacks[mixture], stacks[baseline], honest.truth, honest.subjects, random=again)["auc"]
        found = score(stacks[mixture], honest.truth, honest.subjects, random=random)
        rows.append(
            {
                "real": mixture.real,
                "synthetic": mixture.synthetic,
                "augmentation": mixture.augment,
                "repetitions": len(cells),
                **{name: found[name] for name in MEASURES},
                "auc_mean": float(np.mean(areas)),
                "auc_deviation": float(np.std(areas, ddof=1)) if len(areas) > 1 else math.nan,
                "auc_each": areas,
                "difference": difference,
                "against": None if baseline is None else {"real": baseline.real, "synthetic": 0},
                "seconds": float(np.mean([one.numbers["seconds"] for one in cells])),
            }
        )
    return {
        "network": mixing.frame.settings.chosen_networks[0],
        "rows": rows,
        "curve": _curve(rows),
        "pool": len(mixing.real),
        "validation_images": len(mixing.validation),
        "validation_subjects": len(np.unique(mixing.validation.subjects)),
        "notes": [
            f"One part in {HELD_APART} of the real training subjects picks the checkpoint, in every row: rows without "
            "real images saw that many real ones there, though not in training."
        ],
    }


def _baseline(mixture: Mixture, trained: Sequence[Mixture]) -> Mixture | None:
    """Traditional augmentation alone: what a row is compared with."""
    alone = [one for one in trained if one.synthetic == 0 and one.augment]
    fitting = [one for one in alone if one.real == mixture.real] if mixture.real else alone
    best = max(fitting, key=lambda one: one.real, default=None)
    return None if best == mixture else best


def _curve(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    curves = []
    for real in sorted({row["real"] for row in rows}):
        line = sorted(
            (row for row in rows if row["real"] == real and row["augmentation"]), key=lambda r: r["synthetic"]
        )
        curves.append(
            {"real": real, "synthetic": [row["synthetic"] for row in line], "auc": [row["auc"] for row in line]}
        )
    return curves
