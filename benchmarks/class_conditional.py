"""Are class-conditional samples told apart by a classifier that was trained on real images?

    python benchmarks/class_conditional.py COHORT SAMPLES

Ridge regression on the principal components of the train images, one against all others; the ridge is chosen on a
fifth of the train subjects. Prints the accuracy on real holdout images, which says how much there is to be told apart,
and on the samples, with exact intervals (holdout images of one subject count as independent: with few each, nearly so).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from unalike.cohort.store import open_images
from unalike.stats.intervals import estimate_share

COMPONENTS = 100
RIDGES = 10.0 ** np.arange(-2, 5)


def fit(x: np.ndarray, y: np.ndarray, ridge: float) -> np.ndarray:
    whole = np.hstack([x, np.ones((len(x), 1))])
    penalty = ridge * np.eye(whole.shape[1])
    penalty[-1, -1] = 0
    return np.linalg.solve(whole.T @ whole + penalty, whole.T @ y)


def predict(x: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return (np.hstack([x, np.ones((len(x), 1))]) @ weights).argmax(axis=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cohort", type=Path)
    parser.add_argument("samples", type=Path)
    options = parser.parse_args()
    cohort, samples = open_images(options.cohort), open_images(options.samples, kind="samples")
    classes = sorted(set(cohort.column("label")) - {""})

    def load(images: object, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        pixels = images.read(rows).reshape(len(rows), -1).astype(np.float64)  # type: ignore[attr-defined]
        pixels = (pixels - pixels.mean(axis=1, keepdims=True)) / (pixels.std(axis=1, keepdims=True) + 1e-9)
        labels = images.column("label")[rows]  # type: ignore[attr-defined]
        return pixels, np.array([classes.index(label) for label in labels])

    x, y = load(cohort, cohort.rows("train"))
    mean = x.mean(axis=0)
    components = np.linalg.svd(x - mean, full_matrices=False)[2][:COMPONENTS].T
    x = (x - mean) @ components
    x_scale = x.std(axis=0)
    x = x / x_scale
    subjects = np.unique(cohort.column("subject")[cohort.rows("train")], return_inverse=True)[1]
    tried = np.random.default_rng(0).random(subjects.max() + 1)[subjects] < 0.2
    targets = np.eye(len(classes))[y]
    scores = [(predict(x[tried], fit(x[~tried], targets[~tried], ridge)) == y[tried]).mean() for ridge in RIDGES]
    weights = fit(x, targets, float(RIDGES[int(np.argmax(scores))]))
    for name, (images, rows) in {
        "real holdout images": (cohort, cohort.rows("holdout")),
        "samples": (samples, np.arange(len(samples))),
    }.items():
        features, truth = load(images, rows)
        right = predict((features - mean) @ components / x_scale, weights) == truth
        print(f"{name}: {estimate_share(int(right.sum()), len(right))} of {len(right)} told right")
        for index, label in enumerate(classes):
            here = truth == index
            if here.any():
                print(f"  {label}: {right[here].mean():.3f} of {here.sum()}")


if __name__ == "__main__":
    main()
