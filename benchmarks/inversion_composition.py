"""Does a composed prompt lie between its concepts? And what sampling can do, in one picture.

    python benchmarks/inversion_composition.py RUN --all ALL --from "no tumor=no_tumor" --to "glioma=glioma" --out OUT

Draws the same seeds from one prompt to the other, in steps of a quarter, and asks a classifier that was trained on real
images of ``ALL`` for its score of the second class: mean over seeds, and for how many it never fell. Also draws
``figure.png``: rows of composed samples (a seed each), a morph, and images with a redrawn box.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from inversion_study import Classifier
from unalike import folders
from unalike.cohort.store import ImageFolder, open_images
from unalike.runs.given import GivenSettings
from unalike.runs.sample import draw_samples

SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
SHOWN = 4


def draw(
    run: Path, out: Path, count: int, settings: dict[str, object], given: GivenSettings | None = None
) -> ImageFolder:
    if folders.kind_of(out) is None:
        plain = {"steps": 25, "sampler": "dpm++"}
        draw_samples(run=run, out=out, count=count, settings=plain | settings, given=given)
    return open_images(out, kind="samples")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--all", type=Path, required=True)
    parser.add_argument("--from", dest="first", required=True)
    parser.add_argument("--to", dest="second", required=True)
    parser.add_argument("--count", type=int, default=48)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    (first, _), (second, label) = (text.split("=") for text in (options.first, options.second))
    classifier = Classifier(open_images(options.all))
    sets = []
    for share in SHARES:
        prompt = " AND ".join(f"{w}*{text}" for w, text in ((1 - share, first), (share, second)) if w)
        sets.append(draw(options.run, options.out / f"share-{share}", options.count, {"prompt": prompt}))
    rows = np.arange(options.count)
    scores = np.stack([classifier.score(images, rows, label) for images in sets])
    for share, values in zip(SHARES, scores, strict=True):
        half = 1.96 * values.std(ddof=1) / np.sqrt(len(values))
        print(f"{share:.2f} of {second}: score {values.mean():.3f} ± {half:.3f}")
    rising = int((np.diff(scores, axis=0) > -0.02).all(axis=0).sum())
    print(f"never falling by more than 0.02 in {rising} of {options.count} seeds")
    morph = draw(options.run, options.out / "morph", 8, {"morph": (first, second)})
    given = GivenSettings(images=options.out / "share-0.0", box=(8, 8, 14, 14))
    redrawn = draw(options.run, options.out / "redrawn", 8, {"prompt": second}, given)
    before, after = sets[0].read(np.arange(8)), redrawn.read(np.arange(8))
    outside = np.ones(before.shape[2:], bool)
    outside[8:22, 8:22] = False
    print(f"redrawn: {int((before != after)[..., outside].sum())} pixels changed outside the box")
    composed = [np.concatenate([s.read(np.array([n]))[0, 0] for s in sets], axis=1) for n in range(SHOWN)]
    lines = [np.concatenate(list(images[:, 0]), axis=1) for images in (morph.read(np.arange(8)), before, after)]
    width = max(line.shape[1] for line in [*composed, *lines])
    padded = [np.pad(line, ((0, 4), (0, width - line.shape[1])), constant_values=255) for line in [*composed, *lines]]
    sheet = np.concatenate(padded)
    Image.fromarray(sheet).resize((2 * sheet.shape[1], 2 * sheet.shape[0]), 0).save(options.out / "figure.png")


if __name__ == "__main__":
    main()
