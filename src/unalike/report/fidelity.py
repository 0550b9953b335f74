"""A fidelity folder as a part of the page, and as tables in files."""

from __future__ import annotations

import math
from pathlib import Path

from matplotlib.figure import Figure

from unalike import folders
from unalike.fidelity.result import COMPARISONS, HOLDOUT, SYNTHETIC, TRAIN, FidelityResult, read_fidelity
from unalike.records import Estimate
from unalike.report.figures import INK, STYLES
from unalike.report.section import FigureView, Section, keep_figure
from unalike.report.tables import Cell, Column, Kind, Table, write_estimate
from unalike.report.words import format_count

# Measure → what a table calls it, how its numbers are written, and where good values are.
PAIRED: dict[str, tuple[str, Kind, str]] = {
    "frechet": ("Fréchet distance, corrected for size", "measure", "low"),
    "frechet_infinite": ("Fréchet distance, extrapolated to endless sets", "measure", "low"),
    "frechet_plain": ("Fréchet distance, as others report it", "measure", "low"),
    "kernel": ("kernel distance, unbiased", "measure", "low"),
    "kernel_blocks": ("kernel distance, by blocks as others report it", "measure", "low"),
    "precision": ("precision", "share", "high"),
    "recall": ("recall", "share", "high"),
    "density": ("density", "number", "near 1"),
    "coverage": ("coverage", "share", "high"),
}
SETS = (SYNTHETIC, HOLDOUT, TRAIN)
NONE = "not measured"


def view_fidelity(folder: Path, *, anchor: str) -> Section:
    """The section of one folder; its figure is kept in the folder's ``figures/``.

    Raises `FolderError` if the folder is no finished one or is damaged.
    """
    found = read_fidelity(folder)
    drawn: list[FigureView] = []
    figure = _draw_distances(found)
    if figure is not None:
        caption = f"Fréchet distances with intervals ({found.features}); a holdout's is what new patients have."
        drawn.append(keep_figure(figure, folder / folders.FIGURES / "distances", anchor=anchor, caption=caption))
    return Section(
        anchor=anchor,
        kicker="How well do these images resemble the real ones as a set?",
        heading=f"Fidelity of {found.name}",
        warnings=found.warnings,
        lead=(_say_distance(found), _say_counts(found)),
        tables=tabulate_fidelity(found),
        figures=tuple(drawn),
        notes=found.notes,
    )


def tabulate_fidelity(found: FidelityResult) -> tuple[Table, ...]:
    """Tables of pairs of sets, of each set by itself, and by class; those that have rows."""
    return tuple(table for table in (_pair_table(found), _set_table(found), _class_table(found)) if table.rows)


def _say_distance(found: FidelityResult) -> str:
    ours, theirs = (found.find("frechet", f"{of}-{TRAIN}") for of in (SYNTHETIC, HOLDOUT))
    if ours is None or math.isnan(ours.value):
        return "The Fréchet distance of the samples to train images is undefined: too few subjects."
    text = f"By {found.features}, samples are at Fréchet distance {write_estimate(ours, 'measure')} from train images"
    if theirs is None or math.isnan(theirs.value):
        return f"{text}; without a holdout there is nothing to hold that against."
    text += f", holdout patients at {write_estimate(theirs, 'measure')}."
    if ours.low > theirs.high:
        return f"{text} Samples resemble the train images less well than other patients do."
    if ours.high < theirs.low:
        return f"{text} Samples are closer than other patients are: look for copies before calling that good."
    return f"{text} By this measure samples cannot be told from other patients."


def _say_counts(found: FidelityResult) -> str:
    parts = [
        f"{format_count(count['images'])} {role} images of {format_count(count['subjects'])} subjects"
        for role, count in found.counts.items()
    ]
    return "; ".join(parts) + ". Each sample counts as a subject of its own."


def _pair_table(found: FidelityResult) -> Table:
    pairs = [f"{of}-{to}" for of, to in COMPARISONS]
    known = list(PAIRED) + [each.measure for each in found.scores if each.compared in pairs and not each.label]
    made = {
        measure: PAIRED.get(measure, (f"{measure} images", "share", "high"))
        for measure in dict.fromkeys(known)
        if any(found.find(measure, pair) for pair in pairs)
    }
    return Table(
        name="fidelity",
        title=f"Fidelity of {found.name}",
        columns=(Column("measure"), *(Column(f"{of} → {to}") for of, to in COMPARISONS), Column("good is")),
        rows=tuple(
            (name, *(_cell(found, measure, f"{of}-{to}") for of, to in COMPARISONS), good)
            for measure, (name, _, good) in made.items()
        ),
        row_kinds=tuple(kind for _, kind, _ in made.values()),
        notes=(
            f"Features: {found.features}. Numbers compare only where the features are the same. In brackets 95 % "
            "intervals over subjects.",
            "Precision: share of the first set within reach of the second; recall: the other way round. Recall and "
            "coverage grow with the number of images; where a number stands beside them, both sets have so many.",
        ),
    )


def _set_table(found: FidelityResult) -> Table:
    measures = [each.measure for each in found.scores if each.compared in SETS and not each.label]
    rows = tuple((measure, *(_cell(found, measure, each) for each in SETS)) for measure in dict.fromkeys(measures))
    return Table(
        name="variety",
        title=f"Variety within each set, {found.name}",
        columns=(Column("measure"), *(Column(each, "measure") for each in SETS)),
        rows=rows,
        notes=("Of equally many images on all sides. MS-SSIM: lower is more varied; Vendi score: higher is.",),
    )


def _class_table(found: FidelityResult) -> Table:
    labels = list(dict.fromkeys(each.label for each in found.scores if each.label))
    wanted: tuple[tuple[str, str, Kind], ...] = (
        ("frechet", f"{SYNTHETIC}-{TRAIN}", "measure"),
        ("frechet", f"{HOLDOUT}-{TRAIN}", "measure"),
        ("kernel", f"{SYNTHETIC}-{TRAIN}", "measure"),
        ("precision", f"{SYNTHETIC}-{TRAIN}", "share"),
        ("recall", f"{SYNTHETIC}-{TRAIN}", "share"),
    )
    columns = tuple(
        Column(f"{PAIRED[measure][0].split(',')[0]}, {compared.replace('-', ' → ')}", kind)
        for measure, compared, kind in wanted
    )
    rows = tuple(
        (label, *(_found_or_none(found.find(measure, compared, label)) for measure, compared, _ in wanted))
        for label in labels
    )
    return Table(
        "classes", f"By class, {found.name}", (Column("class"), *columns), rows, (f"Features: {found.features}.",)
    )


def _cell(found: FidelityResult, measure: str, compared: str) -> Cell:
    return _found_or_none(found.find(measure, compared))


def _found_or_none(found: Estimate | None) -> Cell:
    return NONE if found is None else found


def _draw_distances(found: FidelityResult) -> Figure | None:
    """Fréchet distances of samples and holdout to train, of all images and of each class, as points with intervals."""
    labels = ["", *dict.fromkeys(each.label for each in found.scores if each.label)]
    figure = Figure(figsize=(4.6, 0.9 + 0.45 * len(labels)), layout="constrained")
    axes = figure.subplots()
    drawn = 0
    for move, of in ((-0.12, SYNTHETIC), (0.12, HOLDOUT)):
        style = STYLES[f"{of}-{TRAIN}"]
        named = False
        for row, label in enumerate(labels):
            value = found.find("frechet", f"{of}-{TRAIN}", label)
            if value is None or math.isnan(value.value):
                continue
            reach = [[max(value.value - value.low, 0)], [max(value.high - value.value, 0)]]
            axes.errorbar(
                [value.value], [row + move], xerr=reach, fmt="o" if of == SYNTHETIC else "s", color=style.colour,
                capsize=2, markersize=5, label=None if named else style.label,
            )  # fmt: skip
            named, drawn = True, drawn + 1
    if not drawn:
        return None
    axes.set_yticks(range(len(labels)), [label or "all" for label in labels])
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.set_xlim(left=0)
    axes.set_xlabel("Fréchet distance", color=INK)
    axes.spines[["top", "right"]].set_visible(False)
    for text in axes.get_yticklabels():
        text.set_parse_math(False)
    figure.legend(loc="outside upper center", ncols=2, frameon=False, fontsize=8)
    return figure
