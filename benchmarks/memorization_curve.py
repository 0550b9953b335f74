"""How copying grows while a diffusion model is trained, by the number of patients: the papers' finding as a curve.

    python benchmarks/memorization_curve.py COHORT --out FOLDER --subjects 32 128 0 --steps 3000 --every 500

Trains one run a number of subjects (0: all) with `unalike train diffusion --watch-every`, or goes on with those that
are there, and plots what the looks saw into docs/figures/memorization-curve.png and as a table to stdout.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

import unalike
from unalike import folders
from unalike.runs.watch import read_watch

FIGURE = Path(__file__).parent.parent / "docs" / "figures" / "memorization-curve.png"
COLOURS = ("#c2410c", "#6d28d9", "#0b7a53", "#0067b0")
MARKERS = ("o", "s", "^", "D")


def train(cohort: Path, out: Path, subjects: int, options: argparse.Namespace) -> Path:
    run = out / f"{subjects or 'all'}"
    if folders.kind_of(run) == "run":
        return run
    return unalike.train_generator(
        kind="diffusion",
        cohort=cohort,
        out=run,
        settings={"steps": options.steps, "size": options.size},
        subjects=subjects or None,
        watch=unalike.WatchSettings(every=options.every, samples=options.samples),
    )


def plot(curves: Mapping[str, Sequence[Mapping[str, Any]]], place: Path) -> None:
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    copies, correlations = figure.subplots(1, 2)
    for (name, lines), colour, marker in zip(curves.items(), COLOURS, MARKERS, strict=False):
        steps = [line["step"] for line in lines]
        low, high = ([line[f"flagged_{side}"] for line in lines] for side in ("low", "high"))
        copies.fill_between(steps, low, high, color=colour, alpha=0.15, linewidth=0)
        copies.plot(steps, [line["flagged_share"] for line in lines], marker + "-", color=colour, label=name)
        correlations.plot(steps, [line["highest_train"] for line in lines], marker + "-", color=colour, label=name)
        correlations.plot(steps, [line["highest_holdout"] for line in lines], marker + ":", color=colour, alpha=0.6)
    level = max(line["level"] for lines in curves.values() for line in lines)
    copies.axhline(level, color="#5b6570", linestyle="--", linewidth=0.8, label="of new patients, at most")
    copies.set(title="Share of samples flagged as copies", ylim=(-0.03, 1.03), xlabel="updates")
    correlations.set(
        title="Mean highest correlation with train (—)\nand with as many images of others (···)", xlabel="updates"
    )
    for axes in (copies, correlations):
        axes.legend(fontsize=8, frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(place, dpi=130, metadata={"Software": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cohort", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--subjects", type=int, nargs="+", default=[32, 128, 0])
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--every", type=int, default=500)
    parser.add_argument("--samples", type=int, default=96)
    parser.add_argument("--size", default="tiny")
    parser.add_argument("--figure", type=Path, default=FIGURE)
    options = parser.parse_args()
    curves = {}
    for subjects in options.subjects:
        run = train(options.cohort, options.out, subjects, options)
        content = folders.read_header(run, kind="run").content
        lines = list(read_watch(run).values())
        curves[f"{subjects or 'all'} patients ({content['train_images']} images)"] = lines
        print(f"{subjects or 'all'} patients, {content['train_images']} images")
        for line in lines:
            power = line.get("power", float("nan"))  # looks of earlier versions did not measure it
            print(
                f"  {line['step']:6d}  {line['flagged']:4d} of {line['samples']} flagged, highest correlation "
                f"{line['highest_train']:.3f} train, {line['highest_holdout']:.3f} others, power {power:.2f}"
            )
    options.figure.parent.mkdir(exist_ok=True)
    plot(curves, options.figure)
    print(f"figure: {options.figure}")


if __name__ == "__main__":
    main()
