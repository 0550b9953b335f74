"""How good predicted probabilities are, with intervals from resampled test subjects. NumPy alone.

All measures are weighted counts of images, so a resample of subjects is a vector of weights, and all 2,000 resamples
are worked on together: confusion matrices and losses are summed once a subject, and one matrix product gives those of
every resample. For the area under the curve images are sorted once; in each resample the weights of one class are then
accumulated along that order (the Mann–Whitney count with ties as halves), which is linear in the images.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from unalike.records import Estimate, FloatArray, IntArray, TextArray
from unalike.stats.intervals import REPETITIONS, estimate_share

MEASURES = ("accuracy", "precision", "recall", "f1", "auc", "loss")
METHOD = "bootstrap of test subjects"
_SMALLEST = float(np.finfo(np.float64).eps)  # probabilities below count as this in the loss, as in scikit-learn
_VALUES = 2**17  # weights worked on at once in the area under the curve: they stay in the cache


def confusion_matrix(probabilities: FloatArray, truth: IntArray) -> IntArray:
    """Images (K, K) by true class (rows) and most probable class (columns, the first of equal ones)."""
    classes = probabilities.shape[1]
    cells = truth * classes + probabilities.argmax(axis=1)
    return np.bincount(cells, minlength=classes**2).reshape(classes, classes).astype(np.int64)


def cross_entropy(probabilities: FloatArray, truth: IntArray) -> FloatArray:
    """Loss (n,) of each image in nats: minus the logarithm of the true class's probability."""
    given = probabilities[np.arange(len(truth)), truth]
    losses: FloatArray = -np.log(np.clip(given, _SMALLEST, 1.0))
    return losses


def area_under_curve(probabilities: FloatArray, truth: IntArray) -> float:
    """Area under the ROC curve: of the second class if there are two, else the mean of each against the rest.

    NaN if a class is absent from ``truth``.
    """
    return measure(probabilities, truth)["auc"]


def measure(probabilities: FloatArray, truth: IntArray) -> dict[str, float]:
    """All of `MEASURES` for ``probabilities`` (n, K) of images whose classes are ``truth`` (n,), 0 to K − 1.

    ``precision``, ``recall`` and ``f1`` are means over all K classes; one that is never predicted, or absent, counts 0
    (scikit-learn's ``zero_division=0``). ``auc`` is NaN if a class is absent; ``loss`` is in nats.
    """
    each = _all_measures(probabilities[None], truth, np.arange(len(truth)), np.ones((1, len(truth)), np.int64))
    return {name: float(values[0]) for name, values in each.items()}


def score(
    probabilities: FloatArray,
    truth: IntArray,
    subjects: TextArray,
    *,
    random: np.random.Generator,
    confidence: float = 0.95,
) -> dict[str, Estimate]:
    """`measure`, with intervals from resampled test subjects.

    ``probabilities`` are (n, K), or (m, n, K) from m models (folds, repetitions), whose measures are averaged: in each
    resample too, so that the interval tells how sure the mean of these models is for other subjects. ``subjects`` (n,)
    names each image's; they are drawn with replacement, 2,000 times (Davison & Hinkley 1997, 3.8), and the interval is
    that of percentiles. Resamples without an image of some class say nothing of precision, recall, F1 and AUC and are
    left out there. With one subject there is a value but no interval. Where all images are right, or all are wrong,
    resamples know no doubt: the accuracy's interval is then the exact one of so many subjects (Clopper & Pearson 1934).
    """
    drawn = _draw(subjects, random)
    found = _observe(_models(probabilities), truth, drawn)
    estimates = {name: _estimate(found[name], drawn.count, confidence) for name in MEASURES}
    if estimates["accuracy"].value in {0.0, 1.0}:
        right = round(estimates["accuracy"].value) * drawn.count
        estimates["accuracy"] = estimate_share(right, drawn.count, confidence=confidence)
    return estimates


def compare(
    first: FloatArray,
    second: FloatArray,
    truth: IntArray,
    subjects: TextArray,
    *,
    random: np.random.Generator,
    confidence: float = 0.95,
) -> dict[str, Estimate]:
    """Each measure of ``first`` minus that of ``second``, on the same test images and in the same resamples.

    Shapes as in `score`; the two may be of different numbers of models. Paired: what makes a subject hard for both
    cancels out.
    """
    drawn = _draw(subjects, random)
    one, two = (_observe(_models(each), truth, drawn) for each in (first, second))
    return {name: _estimate(one[name] - two[name], drawn.count, confidence, paired=True) for name in MEASURES}


@dataclass(frozen=True)
class _Draw:
    """Whose each image is (n,), and how often each subject counts: all once, then in each resample (1 + R, S)."""

    owner: IntArray
    times: IntArray

    @property
    def count(self) -> int:
        return int(self.times.shape[1])


def _draw(subjects: TextArray, random: np.random.Generator) -> _Draw:
    names, owner = np.unique(subjects, return_inverse=True)
    count = len(names)
    drawn = random.multinomial(count, np.full(count, 1 / count), size=REPETITIONS)
    return _Draw(owner.astype(np.int64), np.concatenate([np.ones((1, count), np.int64), drawn]))


def _models(probabilities: FloatArray) -> FloatArray:
    return probabilities[None] if probabilities.ndim == 2 else probabilities


def _observe(models: FloatArray, truth: IntArray, drawn: _Draw) -> dict[str, FloatArray]:
    """Each measure (1 + R,): of the images as they are, then of each resample."""
    return _all_measures(models, truth, drawn.owner, drawn.times)


def _all_measures(models: FloatArray, truth: IntArray, owner: IntArray, times: IntArray) -> dict[str, FloatArray]:
    found = [_counted(model, truth, owner, times) for model in models]
    mean = {name: np.mean([each[name] for each in found], axis=0) for name in found[0]}
    return mean | {"auc": _areas(models, truth, owner, times)}


def _counted(model: FloatArray, truth: IntArray, owner: IntArray, times: IntArray) -> dict[str, FloatArray]:
    """What follows from counts and sums of each subject's images, (R,) each."""
    classes, subjects = model.shape[1], times.shape[1]
    cell = truth * classes + model.argmax(axis=1)
    sums = np.zeros((subjects, classes**2 + 1))
    np.add.at(sums, (owner, cell), 1)
    np.add.at(sums, (owner, np.full(len(truth), classes**2)), cross_entropy(model, truth))
    totals: FloatArray = (times @ sums).astype(np.float64)
    matrix = totals[:, :-1].reshape(-1, classes, classes)
    images = matrix.sum(axis=(1, 2))
    right: FloatArray = matrix.diagonal(axis1=1, axis2=2).astype(np.float64)
    true: FloatArray = matrix.sum(axis=2)
    said: FloatArray = matrix.sum(axis=1)
    whole = (true > 0).all(axis=1) | (np.arange(len(true)) == 0)  # the images as they are: absent classes count 0
    return {
        "accuracy": right.sum(axis=1) / images,
        "precision": np.where(whole, _ratio(right, said).mean(axis=1), np.nan),
        "recall": np.where(whole, _ratio(right, true).mean(axis=1), np.nan),
        "f1": np.where(whole, _ratio(2 * right, true + said).mean(axis=1), np.nan),
        "loss": totals[:, -1] / images,
    }


def _ratio(above: FloatArray, below: FloatArray) -> FloatArray:
    """Quotient, 0 where there is nothing to divide by."""
    found: FloatArray = np.divide(above, below, out=np.zeros(above.shape), where=below > 0)
    return found


def _areas(models: FloatArray, truth: IntArray, owner: IntArray, times: IntArray) -> FloatArray:
    """AUC (R,) in each resample, the mean over models; NaN where a class has no image."""
    classes = models.shape[2]
    asked = [1] if classes == 2 else list(range(classes))
    orders = [_Order.of(model[:, one], truth == one) for model in models for one in asked]
    step = max(16, _VALUES // max(1, len(truth)))
    parts = []
    for begin in range(0, len(times), step):
        weights = times[begin : begin + step].T[owner].astype(np.float64)
        parts.append(np.mean([order.area(weights) for order in orders], axis=0))
    return np.concatenate(parts)


@dataclass(frozen=True)
class _Order:
    """Images of one class and all others, these sorted by value: ``below`` (``reached``) of them lie below (at most at)
    each of the class.
    """

    own: IntArray
    others: IntArray
    below: IntArray
    reached: IntArray

    @classmethod
    def of(cls, values: FloatArray, positive: np.typing.NDArray[np.bool_]) -> _Order:
        own, others = np.flatnonzero(positive), np.flatnonzero(~positive)
        others = others[np.argsort(values[others], kind="stable")]
        below, reached = (np.searchsorted(values[others], values[own], side=side) for side in ("left", "right"))
        return cls(own, others, below.astype(np.int64), reached.astype(np.int64))

    def area(self, weights: FloatArray) -> FloatArray:
        """Share (r,) of pairs in which the class has the higher value, ties half, of images with ``weights`` (n, r)."""
        passed = np.zeros((len(self.others) + 1, weights.shape[1]))
        np.cumsum(weights[self.others], axis=0, out=passed[1:])
        mine = weights[self.own]
        wins = np.einsum("ir,ir->r", mine, passed[self.below])
        if not np.array_equal(self.below, self.reached):  # ties count half
            wins = (wins + np.einsum("ir,ir->r", mine, passed[self.reached])) / 2
        pairs = mine.sum(axis=0) * passed[-1]
        found: FloatArray = np.divide(wins, pairs, out=np.full(len(pairs), np.nan), where=pairs > 0)
        return found


def _estimate(found: FloatArray, subjects: int, confidence: float, *, paired: bool = False) -> Estimate:
    """The first entry, with percentiles of the others."""
    method = f"{METHOD}, paired" if paired else METHOD
    value, replicates = float(found[0]), found[1:][np.isfinite(found[1:])]
    if subjects < 2 or len(replicates) == 0 or math.isnan(value):
        return Estimate(value, math.nan, math.nan, subjects, method, confidence)
    tail = (1 - confidence) / 2
    low, high = np.quantile(replicates, [tail, 1 - tail])
    return Estimate(value, float(low), float(high), subjects, method, confidence)
