"""Does textual inversion teach a base a class it has not seen? The papers' tables in small.

    python benchmarks/inversion_study.py COHORT --base BASE --all ALL --label NAME --out FOLDER

``COHORT`` holds one class that the base was not trained on, ``ALL`` all classes with that one among them. For each
number of vectors, and of patients, a concept is learned; told are the denoising loss on holdout images of the class
(against no prompt and against the vectors before training), what a classifier trained on real images of ``ALL`` says of
the samples, and their Fréchet distance to the train images on the cohort's own features. Interrupted, the same command
goes on.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch

from unalike import folders
from unalike.cohort.store import ImageFolder, open_images
from unalike.fidelity.features import embed_cached
from unalike.fidelity.frechet import frechet_estimate
from unalike.fidelity.own import open_own_features
from unalike.generators.diffusion.noise import add_noise, alpha_bars, target_of
from unalike.generators.inversion.model import InversionModel, open_model
from unalike.runs.families import read_run
from unalike.runs.sample import draw_samples
from unalike.runs.train import train_generator
from unalike.stats.intervals import estimate_share

TIMES = (0.1, 0.3, 0.5, 0.7)  # shares of the base's noise levels
COMPONENTS, RIDGE = 100, 10.0


class Classifier:
    """Ridge regression on the principal components of real train images, one class against the others."""

    def __init__(self, cohort: ImageFolder) -> None:
        rows = cohort.rows("train")
        labels = cohort.column("label")[rows]
        self.classes = sorted(set(labels))
        x = self.load(cohort, rows)
        self.mean = x.mean(axis=0)
        self.directions = np.linalg.svd(x - self.mean, full_matrices=False)[2][:COMPONENTS].T
        y = np.array([[label == name for name in self.classes] for label in labels], float)
        x = (x - self.mean) @ self.directions
        self.scale = x.std(axis=0)
        whole = np.hstack([x / self.scale, np.ones((len(x), 1))])
        penalty = RIDGE * np.eye(whole.shape[1])
        penalty[-1, -1] = 0
        self.weights = np.linalg.solve(whole.T @ whole + penalty, whole.T @ y)

    @staticmethod
    def load(images: ImageFolder, rows: Any) -> np.ndarray:
        pixels = images.read(rows).reshape(len(rows), -1).astype(np.float64)
        return (pixels - pixels.mean(axis=1, keepdims=True)) / (pixels.std(axis=1, keepdims=True) + 1e-9)

    def score(self, images: ImageFolder, rows: Any, label: str) -> np.ndarray:
        """How much these images (n,) look like class ``label``: about 0 for others, 1 for it."""
        x = (self.load(images, rows) - self.mean) @ self.directions / self.scale
        return (np.hstack([x, np.ones((len(x), 1))]) @ self.weights)[:, self.classes.index(label)]

    def share(self, images: ImageFolder, rows: Any, label: str) -> Any:
        """Share of these images that are told to be of class ``label``, with its interval."""
        x = (self.load(images, rows) - self.mean) @ self.directions / self.scale
        said = (np.hstack([x, np.ones((len(x), 1))]) @ self.weights).argmax(axis=1)
        return estimate_share(int((said == self.classes.index(label)).sum()), len(rows))


@torch.no_grad()
def holdout_losses(model: InversionModel, cohort: ImageFolder, hidden: torch.Tensor) -> np.ndarray:
    """The denoising loss (n,) of each holdout image given a prompt, over the same noises."""
    latents = model.encode(cohort.read(cohort.rows("holdout")))
    levels = int(model.base.scheduler.config.num_train_timesteps)
    found = np.zeros(len(latents))
    for index, share in enumerate(TIMES):
        stream = torch.Generator().manual_seed(index)
        epsilon = torch.randn(latents.shape[1:], generator=stream).expand_as(latents)
        for begin in range(0, len(latents), 64):
            z, e = latents[begin : begin + 64], epsilon[begin : begin + 64]
            t = torch.full((len(z),), int(share * levels))
            predicted = model.base.predict(add_noise(z, e, t, model.base.scheduler), t, hidden.expand(len(z), -1, -1))
            scheduler = model.base.scheduler
            wanted = target_of(scheduler.config.prediction_type, z, e, alpha_bars(scheduler, t))
            found[begin : begin + 64] += (predicted - wanted).square().mean(dim=(1, 2, 3)).numpy() / len(TIMES)
    return found


def spread(values: np.ndarray) -> str:
    half = 1.96 * values.std(ddof=1) / np.sqrt(len(values))
    return f"{values.mean():+.1%} ({values.mean() - half:+.1%} to {values.mean() + half:+.1%})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cohort", type=Path)
    parser.add_argument("--base", required=True)
    parser.add_argument("--all", type=Path, required=True)
    parser.add_argument("--label", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--vectors", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--subjects", type=int, nargs="+", default=[10, 50])
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--count", type=int, default=96)
    parser.add_argument("--method", nargs="+", default=["embedding", "lora"])
    options = parser.parse_args()
    cohort, everything = open_images(options.cohort), open_images(options.all)
    classifier = Classifier(everything)
    features = open_own_features(cohort, device=torch.device("cpu"))
    real = embed_cached(features, cohort, cohort.rows("train"), None)
    owners = cohort.column("subject")[cohort.rows("train")]
    most = max(options.vectors)
    plans = [("embedding", n, None) for n in options.vectors] + [("embedding", most, s) for s in options.subjects]
    plans += [("lora", 0, None)] if "lora" in options.method else []
    holdout = classifier.share(cohort, cohort.rows("holdout"), options.label)
    print(f"real holdout images told to be {options.label}: {holdout}")
    print(print("| learned | patients | loss, no prompt | loss, before | told to be the class | Fréchet distance |"))
    print("| --- | --- | --- | --- | --- | --- |")
    # A concept that has seen one batch is the one before training.
    plans = [("embedding", most, None, 1)] + [(*plan, options.steps) for plan in plans]
    for method, vectors, subjects, steps in plans:
        name = f"{method}-{vectors}-{subjects or 'all'}-{steps}"
        run, samples = options.out / f"run-{name}", options.out / f"samples-{name}"
        rate = 5e-3 if method == "embedding" else 5e-4
        if folders.kind_of(run) is None:
            settings = {"base": options.base, "steps": steps, "batch_size": 8, "learning_rate": rate}
            settings |= {"vectors": vectors or 1, "method": method, "token": "concept", "checkpoint_every": 30.0}
            train_generator(kind="inversion", cohort=options.cohort, out=run, settings=settings, subjects=subjects)
        if folders.kind_of(samples) is None:
            draw_samples(run=run, out=samples, count=options.count, settings={"steps": 50})
        content = read_run(run).content
        model = open_model(run / folders.MODEL, content=content, device="cpu", precision="auto")
        prompt = next(iter(model.prompts))
        after = holdout_losses(model, cohort, model.base.encode_text(prompt, dict(model.learned)))
        plain = open_model(
            run / folders.MODEL, content=content | {"method": "none", "tokens": []}, device="cpu", precision="auto"
        )
        nothing = holdout_losses(plain, cohort, plain.base.encode_text("", {}))
        before = "–"
        if method == "embedding":
            from unalike.generators.inversion.concept import begin_vectors

            first = begin_vectors(plain.base, ["<concept>"], count=vectors, words="", seed=0)
            begun = holdout_losses(plain, cohort, plain.base.encode_text("<concept>", first))
            before = spread(after / begun - 1)
        drawn = open_images(samples, kind="samples")
        told = classifier.share(drawn, np.arange(len(drawn)), options.label)
        seen = embed_cached(features, drawn, np.arange(len(drawn)), None)
        distance = frechet_estimate(seen, real, subjects_a=drawn.column("subject"), subjects_b=owners, seed=0)
        learned = f"{vectors} vectors" if method == "embedding" else "LoRA of rank 4"
        learned += " (before)" if steps == 1 else ""
        print(
            f"| {learned} | {subjects or 'all'} | {spread(after / nothing - 1)} | {before} | {told} | {distance} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
