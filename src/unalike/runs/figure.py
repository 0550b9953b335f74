"""The picture of a watched training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

SYNTHETIC, HOLDOUT, OTHER = "#c2410c", "#0067b0", "#5b6570"


def draw_watch(lines: Sequence[Mapping[str, Any]], *, budget: float, place: Path) -> None:
    """Draw copy rate, highest correlations and Fréchet distance against the updates into the PNG ``place``."""
    figure = Figure(figsize=(9, 3), layout="constrained")
    copies, correlations, distances = figure.subplots(1, 3)
    steps = [line["step"] for line in lines]
    _band(copies, steps, lines)
    level = lines[-1]["level"]
    copies.axhline(level + budget * (1 - level), color=OTHER, linestyle=":", label=f"budget: {budget:g} beyond that")
    copies.set(title="Share flagged as copies", ylim=(-0.03, 1.03))
    correlations.plot(steps, [line["highest_train"] for line in lines], "o-", color=SYNTHETIC, label="train")
    correlations.plot(
        steps, [line["highest_holdout"] for line in lines], "s--", color=HOLDOUT, label="as many holdout images"
    )
    correlations.set(title="Mean highest correlation")
    distances.plot(steps, [line["frechet_train"] for line in lines], "o-", color=SYNTHETIC, label="samples, train")
    distances.axhline(lines[-1]["frechet_holdout_train"], color=HOLDOUT, linestyle="--", label="holdout, train")
    distances.set(title="Fréchet distance", yscale="log")
    best = [line["step"] for line in lines if line["best"]]
    for axes in (copies, correlations, distances):
        axes.set_xlabel("updates")
        if best:
            axes.axvline(best[-1], color=OTHER, linewidth=0.8, label="chosen")
        axes.legend(fontsize=7, frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
    temporary = place.with_suffix(".partial")
    figure.savefig(temporary, dpi=150, format="png", metadata={"Software": None})
    temporary.replace(place)


def _band(axes: Axes, steps: Sequence[int], lines: Sequence[Mapping[str, Any]]) -> None:
    """The flagged share with its interval, and the level at which it would be false alarms."""
    low, high = ([line[f"flagged_{side}"] for line in lines] for side in ("low", "high"))
    axes.fill_between(steps, low, high, color=SYNTHETIC, alpha=0.2, linewidth=0)
    axes.plot(steps, [line["flagged_share"] for line in lines], "o-", color=SYNTHETIC, label="samples")
    axes.axhline(lines[-1]["level"], color=HOLDOUT, linestyle="--", label="of new patients, at most")
