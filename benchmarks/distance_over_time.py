"""How near to real images several trainings came, against the time they took.

    python benchmarks/distance_over_time.py RUN [RUN ...] --out figure.png

Each run was trained with ``--watch-every``: Fréchet distance of samples to the train images, at each look, against the
seconds of training (looks not counted), and the distance of holdout images to the train images.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from unalike.runs.families import read_run


def read_lines(path: Path) -> dict[int, dict[str, float]]:
    """The last line of each step."""
    lines = (json.loads(line) for line in path.read_text().splitlines())
    return {line["step"]: line for line in lines if "of" not in line}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    with mpl.rc_context({"figure.dpi": 150}):
        figure = Figure(figsize=(6, 4), layout="constrained")
        axes = figure.subplots()
        for run in options.runs:
            content = read_run(run).content
            times, looks = read_lines(run / "log.jsonl"), read_lines(run / "watch.jsonl")
            steps = sorted(set(times) & set(looks))
            minutes = [times[step]["seconds"] / 60 for step in steps]
            axes.plot(minutes, [looks[step]["frechet_train"] for step in steps], "o-", label=content["generator"])
            axes.axhline(looks[steps[-1]]["frechet_holdout_train"], color="0.5", linestyle=":")
            for step, minute in zip(steps, minutes, strict=True):
                print(f"{run.name}: {step} updates, {minute:.1f} min, {looks[step]['frechet_train']:.3f}")
        axes.set(xlabel="minutes of training", ylabel="Fréchet distance to train images", yscale="log")
        axes.plot([], [], ":", color="0.5", label="holdout images")
        axes.legend()
        figure.savefig(options.out)


if __name__ == "__main__":
    main()
