"""Figures of a report: drawn once with Matplotlib, kept as PNG and SVG, and inlined into the page.

In the file a figure is dark ink on white paper. In the page its ink becomes ``currentColor`` and its series
take the page's own colours, so that it reads in light and dark. Series differ in line and fill too.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from unalike.records import FloatArray
from unalike.report.pictures import SCATTER_COLOUR, Window, count_pixels, difference_palette, show_window
from unalike.report.read import Audit, Pairs, Power
from unalike.report.words import format_number

INK, PAPER = "#1c2024", "#ffffff"
BINS = 40
# Bins of p-values, and the fewest that still show a shape.
P_BINS, LEAST_P_BINS = 20, 5
# Dots per inch of the PNG.
DOTS = 200
# Pairs in the figure made for a paper; the page shows all of them.
PAIRS_DRAWN = 6
# Share of the pixel range that takes full colour in a difference picture.
DIFFERENCE_FULL = 0.25


@dataclass(frozen=True)
class Style:
    """How one comparison is drawn, the same in every figure."""

    label: str
    colour: str
    line: str
    fill: float


STYLES = {
    "synthetic-train": Style("synthetic → train", "#c2410c", "-", 0.30),
    "holdout-train": Style("holdout → train", "#0067b0", "--", 0.0),
    "synthetic-holdout": Style("synthetic → holdout", "#0b7a53", ":", 0.0),
}


def choose_bins(series: Sequence[FloatArray]) -> FloatArray:
    """Cut the range of all series into common bins, so that their shares can be compared by height."""
    values = np.concatenate([values[np.isfinite(values)] for values in series]) if series else np.empty(0)
    if not values.size:
        return np.linspace(-1.0, 1.0, BINS + 1)
    low = np.floor(values.min() * 20) / 20
    high = min(1.0, np.ceil(values.max() * 20) / 20)
    return np.linspace(low if low < high else high - 0.05, high, BINS + 1)


def draw_distribution(audit: Audit, comparisons: Sequence[str], *, bins: FloatArray) -> Figure:
    """Overlay how close the images of some comparisons come to their best match (Akbar et al., figure 3)."""
    figure = Figure(figsize=(4.6, 2.9), layout="constrained")
    axes = figure.subplots()
    first, *others = comparisons
    _draw_shares(axes, audit.highest[first], bins, STYLES[first], counted=True)
    if "holdout-train" in others:
        _mark_highest_holdout(axes, audit.highest_holdout)
    for name in others:
        _draw_shares(axes, audit.highest[name], bins, STYLES[name], counted=True)
    _dress(axes, bins)
    axes.set_ylabel("share of images, %", color=INK)
    _draw_legend(figure)
    return figure


def count_p_values(p_values: FloatArray, *, subjects: int) -> FloatArray:
    """Shares (bins,) of the defined p-values in bins of equal width from 0 to 1; each bin holds its upper end.

    By P subjects with one image each, p is a multiple of 1/(P + 1). For a small P the number of bins divides P + 1, so
    that equally many values fall into each and nothing but chance makes bars differ.
    """
    steps = subjects + 1
    bins = P_BINS
    if steps < 2 * P_BINS:
        bins = max(count for count in range(1, P_BINS + 1) if steps % count == 0)
        bins = bins if bins >= LEAST_P_BINS else steps
    values = p_values[np.isfinite(p_values)]
    # An upper end that rounding pushed out a little still belongs to its bin.
    places = np.clip(np.ceil(values * bins - 1e-9).astype(np.int64) - 1, 0, bins - 1)
    shares: FloatArray = np.bincount(places, minlength=bins) / max(1, values.size)
    return shares


def draw_p_values(p_values: FloatArray, *, subjects: int) -> Figure:
    """Draw how often p-values of synthetic images (n,) occur: flat if nothing was copied, high at 0 for copies."""
    figure = Figure(figsize=(4.6, 2.9), layout="constrained")
    axes = figure.subplots()
    shares = 100.0 * count_p_values(p_values, subjects=subjects)
    edges = np.linspace(0.0, 1.0, len(shares) + 1)
    style = STYLES["synthetic-train"]
    axes.stairs(shares, edges, fill=True, color=style.colour, alpha=style.fill, linewidth=0)
    label = f"synthetic images (n = {int(np.isfinite(p_values).sum()):,})"
    axes.stairs(shares, edges, color=style.colour, linewidth=1.6, label=label)
    axes.axhline(100.0 / len(shares), color=INK, linewidth=1.0, linestyle=(0, (1, 2)), label="if nothing is copied")
    _dress(axes, edges, label=False)
    axes.set_xlabel("p-value of an image", color=INK)
    axes.set_ylabel("share of images, %", color=INK)
    _draw_legend(figure)
    return figure


def draw_power(rows: Sequence[Power]) -> Figure:
    """Draw for each change the share of planted copies caught above that of changed holdout images, with intervals."""
    figure = Figure(figsize=(7.2, 1.0 + 0.32 * len(rows)), layout="constrained")
    axes = figure.subplots()
    places = np.arange(len(rows))
    for name, label, shift in (("planted", "planted copies", -0.19), ("sham", "holdout images changed alike", 0.19)):
        style = STYLES["synthetic-train" if name == "planted" else "holdout-train"]
        shown = [(place, estimate) for place, row in enumerate(rows) if (estimate := getattr(row, name)) is not None]
        shown = [(place, estimate) for place, estimate in shown if np.isfinite(estimate.value)]
        where = places[[place for place, _ in shown]] + shift
        values = np.asarray([100.0 * estimate.value for _, estimate in shown])
        ends = np.asarray([(100.0 * estimate.low, 100.0 * estimate.high) for _, estimate in shown]).reshape(-1, 2)
        axes.barh(where, values, height=0.36, color=style.colour, alpha=0.35, linewidth=0)
        axes.hlines(where, ends[:, 0], ends[:, 1], color=style.colour, linewidth=1.6)
        marker = "o" if name == "planted" else "s"
        axes.plot(values, where, marker, color=style.colour, markersize=4.5, label=label, clip_on=False)
    axes.set_yticks(places, [row.change for row in rows], parse_math=False)
    axes.set(xlim=(0, 100), ylim=(len(rows) - 0.4, -0.6))
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(INK)
    axes.tick_params(colors=INK, labelsize=9)
    axes.tick_params(axis="y", length=0, pad=7)
    axes.set_xlabel("share caught, %", color=INK)
    _draw_legend(figure)
    return figure


def draw_comparison(audits: Sequence[Audit], *, bins: FloatArray) -> Figure:
    """Draw one row for each audit on common bins: synthetic → train over holdout → train."""
    figure = Figure(figsize=(4.6, 0.9 + 0.85 * len(audits)), layout="constrained")
    rows = figure.subplots(len(audits), 1, sharex=True, squeeze=False)[:, 0]
    for axes, audit in zip(rows, audits, strict=True):
        for name in ("synthetic-train", "holdout-train"):
            if name in audit.highest:
                _draw_shares(axes, audit.highest[name], bins, STYLES[name])
        _mark_highest_holdout(axes, audit.highest_holdout)
        _dress(axes, bins, label=axes is rows[-1])
        axes.set_yticks([])
        axes.set_title(audit.name, loc="left", fontsize=9.5, color=INK, parse_math=False, pad=3)
    _draw_legend(figure)
    return figure


def _draw_legend(figure: Figure) -> None:
    """Put one legend above all axes, each series once."""
    entries: dict[str, Artist] = {}
    for axes in figure.axes:
        handles, labels = axes.get_legend_handles_labels()
        entries |= dict(zip(labels, handles, strict=True))
    figure.legend(
        list(entries.values()),
        list(entries),
        loc="outside upper left",
        ncols=2,
        frameon=False,
        labelcolor=INK,
        fontsize=9,
        handlelength=1.8,
    )


def _draw_shares(axes: Axes, values: FloatArray, bins: FloatArray, style: Style, *, counted: bool = False) -> None:
    values = values[np.isfinite(values)]
    counts, _ = np.histogram(np.clip(values, bins[0], bins[-1]), bins)
    shares = 100.0 * counts / max(1, values.size)
    if style.fill:
        axes.stairs(shares, bins, fill=True, color=style.colour, alpha=style.fill, linewidth=0)
    label = f"{style.label} (n = {values.size:,})" if counted else style.label
    axes.stairs(shares, bins, color=style.colour, linestyle=style.line, linewidth=1.6, label=label)


def _mark_highest_holdout(axes: Axes, value: float) -> None:
    if np.isfinite(value):
        axes.axvline(value, color=INK, linewidth=1.0, linestyle=(0, (1, 2)), label="closest holdout image")


def _dress(axes: Axes, bins: FloatArray, *, label: bool = True) -> None:
    axes.set_xlim(bins[0], bins[-1])
    axes.set_ylim(bottom=0)
    axes.margins(y=0.08)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(INK)
    axes.tick_params(colors=INK, labelsize=9)
    if label:
        axes.set_xlabel("highest correlation of an image", color=INK)


def draw_pairs(pairs: Pairs, *, channel: int) -> Figure:
    """Draw one compared channel of the closest pairs, for a paper (Akbar et al., figure 2)."""
    shown = range(min(PAIRS_DRAWN, len(pairs)))
    figure = Figure(figsize=(7.2, 0.4 + 1.75 * len(shown)), layout="constrained")
    grid = figure.subplots(len(shown), 4, squeeze=False)
    window = show_window(pairs.synthetic[:, channel], pairs.train[:, channel], compared=True)
    colours = mpl.colors.ListedColormap(difference_palette() / 255.0)
    full = DIFFERENCE_FULL * (window[1] - window[0])
    for row, axes in zip(shown, grid, strict=True):
        synthetic, train = pairs.synthetic[row, channel], pairs.train[row, channel]
        for place, pixels in zip(axes[:2], (synthetic, train), strict=True):
            place.imshow(pixels, cmap="gray", vmin=window[0], vmax=window[1], interpolation="nearest")
        signed = synthetic.astype(np.float64) - train.astype(np.float64)
        axes[2].imshow(signed, cmap=colours, vmin=-full, vmax=full, interpolation="nearest")
        _draw_density(axes[3], count_pixels(synthetic, train, window=window), window)
        axes[0].set_ylabel(f"r = {format_number(pairs.correlation[row])}", color=INK, fontsize=9)
        for place in axes:
            place.set_box_aspect(synthetic.shape[0] / synthetic.shape[1])
            place.set_xticks([])
            place.set_yticks([])
    titles = ("synthetic", "training image", f"difference, ±{full:.0f}", "pixel values")
    for place, text in zip(grid[0], titles, strict=True):
        place.set_title(text, fontsize=9, color=INK)
    return figure


def _draw_density(axes: Axes, counts: FloatArray, window: Window) -> None:
    light_to_full = mpl.colors.LinearSegmentedColormap.from_list(
        "density", [(0.8, 0.88, 0.96), tuple(part / 255 for part in SCATTER_COLOUR)]
    )
    density = np.log1p(np.where(counts > 0, counts, np.nan))
    axes.imshow(density, cmap=light_to_full, extent=(*window, *window), interpolation="nearest", aspect="auto")
    axes.plot(window, window, color=INK, linewidth=0.6)


def save_figure(figure: Figure, path: Path) -> str:
    """Write ``path`` as .png and .svg, the same bytes each time, and return the SVG."""
    stream = io.StringIO()
    # Fixed salt, no date, no program name: what has not changed does not look changed.
    with warnings.catch_warnings(), mpl.rc_context({"svg.hashsalt": "unalike", "svg.fonttype": "none"}):
        # A name in a script that Matplotlib's font lacks shows boxes in the PNG; that is no reason to fail.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font", category=UserWarning)
        figure.savefig(path.with_suffix(".png"), format="png", dpi=DOTS, metadata={"Software": None})
        # The layout is found; finding it again for the SVG would take as long as drawing.
        figure.set_layout_engine("none")
        nothing: Mapping[str, None] = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(stream, format="svg", metadata=nothing)
    path.with_suffix(".svg").write_text(stream.getvalue(), encoding="utf-8")
    return stream.getvalue()


def inline_svg(svg: str, *, prefix: str, label: str) -> str:
    """Make a figure part of the page: page colours and font, own ids, no namespaces (HTML needs none).

    ``label`` must be escaped text; it becomes the figure's accessible name.
    """
    head, _, body = svg[svg.index("<svg") :].partition(">")
    head = re.sub(r' (xmlns(:\w+)?|version|width|height)="[^"]*"', "", head)
    body = re.sub(r"<style.*?</style>", "", body, flags=re.DOTALL)
    svg = f'{head} role="img" aria-label="{label}">{body}'.replace("xlink:href", "href")
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{prefix}-", svg)
    svg = re.sub(r"font-family: [^;\"]*", "font-family: inherit", svg)
    svg = svg.replace(INK, "currentColor").replace(PAPER, "none")
    for name, style in STYLES.items():
        svg = svg.replace(style.colour, f"var(--{name})")
    return svg
