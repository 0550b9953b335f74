"""Privacy against utility: how many samples are copies, and what the same samples are worth to train on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure

from unalike.folders import Header
from unalike.records import Estimate
from unalike.report.figures import INK, STYLES
from unalike.report.read import Audit
from unalike.report.section import Section, keep_figure
from unalike.report.tables import Column, Table
from unalike.report.utility import utility_of

ANCHOR = "frontier"


@dataclass(frozen=True)
class Point:
    """One set of samples: share flagged as copies, highest share that could be, and utility, beside real images'."""

    name: str
    copies: Estimate
    measure: str
    utility: Estimate
    real: Estimate | None


def find_points(audits: Sequence[Audit], utilities: Sequence[Header]) -> list[Point]:
    """A point for each audit and utility of the same samples (equal digests), in the order of the audits."""
    points = []
    for audit in audits:
        for header in utilities:
            samples = audit.header.inputs.get("synthetic")
            if samples is None or header.inputs.get("synthetic") != samples:
                continue
            found, real = utility_of(header), utility_of(header, "real")
            if found is not None:
                copies = audit.estimates["flagged_share"]
                if not audit.can_flag:
                    copies = Estimate(math.nan, math.nan, math.nan, copies.n, copies.method)
                points.append(Point(audit.name, copies, found[0], found[1], None if real is None else real[1]))
    return points


def view_frontier(points: Sequence[Point], place: Path) -> Section | None:
    """The section with table and picture (kept in the folder ``place``); None without points."""
    if not points:
        return None
    caption = "Copy rate against utility, a point for each set of samples. Good is upper left."
    figures = []
    if any(not math.isnan(point.copies.value) for point in points):
        figures.append(keep_figure(_draw(points), place / "frontier", anchor=ANCHOR, caption=caption))
    measures = ", ".join(dict.fromkeys(point.measure for point in points))
    return Section(
        anchor=ANCHOR,
        kicker="Privacy against utility",
        heading="Privacy against utility",
        lead=(
            "A generator that hands back its patients is useful: their images are real. Utility is worth something "
            "only beside the copy rate of the same samples.",
        ),
        tables=(
            Table(
                name="frontier",
                title="Copy rate and utility of the same samples",
                columns=(
                    Column("samples"),
                    Column("flagged as copies", "share"),
                    Column(f"trained on samples: {measures}", "share"),
                    Column("trained on the real train images", "share"),
                ),
                rows=tuple(
                    (point.name, point.copies, point.utility, "not measured" if point.real is None else point.real)
                    for point in points
                ),
                notes=("In brackets 95 % intervals.",),
            ),
        ),
        figures=tuple(figures),
    )


def _draw(points: Sequence[Point]) -> Figure:
    figure = Figure(figsize=(5.2, 3.8), layout="constrained")
    axes = figure.subplots()
    colours = [style.colour for style in STYLES.values()]
    for at, point in enumerate(points):
        if math.isnan(point.copies.value) or math.isnan(point.utility.value):
            continue
        across, up = point.copies, point.utility
        axes.errorbar(
            [100 * across.value], [100 * up.value],
            xerr=_reach(across), yerr=_reach(up),
            fmt="os^Dv<>P*X"[at % 10], color=colours[at % len(colours)], capsize=2, elinewidth=0.9, label=point.name,
        )  # fmt: skip
    real = [point.real for point in points if point.real is not None and not math.isnan(point.real.value)]
    for value in sorted({100 * each.value for each in real}):
        axes.axhline(value, color=INK, linewidth=0.9, linestyle="--")
    if real:
        axes.plot([], [], color=INK, linewidth=0.9, linestyle="--", label="trained on the real train images")
    reach = max(100 * point.copies.value for point in points if not math.isnan(point.copies.value))
    axes.set_xlim(-0.03 * max(reach, 5), 1.05 * max(reach, 5))
    axes.set_xlabel("samples flagged as copies, %", color=INK)
    axes.set_ylabel(", ".join(dict.fromkeys(f"{point.measure}, %" for point in points)), color=INK, fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    legend = figure.legend(loc="outside upper left", frameon=False, fontsize=8, ncols=2 if len(points) > 2 else 1)
    for text in legend.get_texts():
        text.set_parse_math(False)
    return figure


def _reach(found: Estimate) -> list[list[float]]:
    if math.isnan(found.low):
        return [[0.0], [0.0]]
    return [[100 * max(found.value - found.low, 0)], [100 * max(found.high - found.value, 0)]]
