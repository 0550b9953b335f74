"""Tables 1 to 4 and figures 2 to 6 of de Wilde et al. (2023).

Tables 1 to 3 come from sweeps whose names begin with ``table1``, ``table2`` and ``table3``; table 4 from utilities with
mixtures. Figures 2 to 6 come from samples folders that ``[[commands]]`` named ``figureN-LABEL`` draw, all from the same
seeds: a column a command in the order of the study, a row a seed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from unalike.cohort.store import ImageFolder, open_images
from unalike.records import estimate_from_json
from unalike.report.figures import INK
from unalike.report.tables import Cell, Column, Table, plain_number
from unalike.report.words import format_count, format_number
from unalike.study.layouts.generic import (
    NOT_MEASURED,
    NOT_RUN,
    Drawing,
    Model,
    Part,
    Results,
    data_title,
    draw_plane,
)
from unalike.study.layouts.papers import (
    DEWILDE,
    DEWILDE_DATA,
    DEWILDE_TABLE_1,
    DEWILDE_TABLE_2,
    DEWILDE_TABLE_3,
    DEWILDE_TABLE_4,
)
from unalike.study.sweep import ALL, Row, Sweep, read_sweep

TITLES = {
    1: "Table 1: denoising steps and guidance",
    2: "Table 2: vectors of the embedding",
    3: "Table 3: training subjects",
}
CAPTIONS = {
    2: "Figure 2. What settings of training and sampling change, from the same seeds.",
    3: "Figure 3. From healthy to ill, from the same seeds.",
    4: "Figure 4. Several findings composed in one image, from the same seeds.",
    5: "Figure 5. A finding drawn into a part of a healthy sample.",
    6: "Figure 6. The same healthy sample with a finding drawn into different places.",
}
SHOWN = 4  # rows of a figure: seeds
_FIGURE = re.compile(r"figure(\d)-(.+)")


def lay_out(results: Results) -> Iterator[Part]:
    """The parts of the page, in order."""
    for number, title in TITLES.items():
        tables = tuple(tabulate_sweep(results, number))
        if tables:
            yield Part(title, tables=tables)
    yield Part("Table 4: mixtures of real and synthetic images", tables=(tabulate_mixtures(results),))
    drawings = tuple(_draw(results))
    if drawings:
        yield Part("Figures 2 to 6", drawings=drawings)


def tabulate_sweep(results: Results, number: int) -> Iterator[Table]:
    """Table 1, 2 or 3 from each sweep of its name: what varied, Fréchet distance, copies; and the paper's distance."""
    for name in results.names("sweep"):
        if not name.startswith(f"table{number}"):
            continue
        cell = results.cells[f"sweep:{name}"].cell
        cohort = str(cell.about.get("cohort", ""))
        of_paper = results.paper(cohort) == DEWILDE_DATA
        found = results.read(f"sweep:{name}", read_sweep)
        title = f"{TITLES[number]}, {data_title(results, cohort, (DEWILDE_DATA,))}"
        varied = _varied(found)
        columns = [*map(Column, varied or ("settings",)), Column("Fréchet distance", "measure")]
        columns += [Column("flagged as copies", "share"), Column("power", "share")]
        columns += [Column("mean highest correlation", "number"), Column("of new patients", "number")]
        columns += [Column(f"FID, {DEWILDE}", "measure")] if of_paper else []
        rows: list[tuple[Cell, ...]] = []
        for row in () if found is None else found.rows:
            settings = _settings(row)
            told = [_show(settings[key]) for key in varied] or ["as given"]
            paper: list[Cell] = [_paper_cell(number, {**row.cell.train, **row.cell.sample})] if of_paper else []
            rows.append((*told, *_numbers(row), *paper))
        if found is None:
            rows.append((*[NOT_RUN] * len(columns),))
        else:
            rows.append(("new patients", *[""] * (len(varied) - 1), found.yardstick, *[""] * (5 if of_paper else 4)))
        notes = [
            "Fréchet distance to the training images on the cohort's own features, corrected for the number of images; "
            "last row: new patients' images. Flagged at p ≤ 0.05, as up to 5 % of new patients' images are.",
            "In brackets 95 % intervals. All rows draw the same seeds.",
        ]
        if of_paper:
            notes.append(f"{DEWILDE} give the Fréchet inception distance of 100 samples: compare orders, not numbers.")
        for row in () if found is None else found.rows:
            notes += [f"Failed: {row.cell.name}."] if row.failed else []
        suffix = name.removeprefix(f"table{number}")
        yield Table(f"table-{number}{suffix}", title, tuple(columns), tuple(rows), tuple(notes))


def _settings(row: Row) -> dict[str, Any]:
    """What decides a row; names that training and sampling share are told apart."""
    train, sample = row.cell.train, row.cell.sample
    told = {f"training {key}" if key in sample else key: value for key, value in train.items()}
    return told | {f"sampling {key}" if key in train else key: value for key, value in sample.items()}


def _varied(found: Sweep | None) -> list[str]:
    """Names of the settings that differ between rows."""
    settings = [] if found is None else [_settings(row) for row in found.rows]
    return [key for key in settings[0] if len({_show(each[key]) for each in settings}) > 1] if settings else []


def _numbers(row: Row) -> list[Cell]:
    if row.found is None:
        return [NOT_RUN] * 5
    made = row.found
    return [made.frechet, made.copies, made.power, made.highest, made.highest_holdout]


def _paper_cell(number: int, settings: Mapping[str, Any]) -> Cell:
    value: float | None
    if number == 1:
        value = DEWILDE_TABLE_1.get((int(settings.get("steps", 100)), float(settings.get("guidance", 2))))
    elif number == 2:
        value = DEWILDE_TABLE_2.get(int(settings.get("vectors", 0)))
    else:
        subjects = settings.get("subjects")
        value = DEWILDE_TABLE_3.get(100 if subjects in (None, ALL) else int(subjects))
    return "" if value is None else plain_number(value)


def _show(value: Any) -> str:
    return ALL if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def tabulate_mixtures(results: Results) -> Table:
    """Table 4: AUC of classifiers on mixtures, with its deviation over trainings and an interval over subjects."""
    rows: list[tuple[Cell, ...]] = []
    of_paper = any(results.paper(cohort) == DEWILDE_DATA for cohort in results.cohorts())
    for model in results.models():
        name = f"utility:{model.key}"
        if name not in results.cells:
            continue
        header = results.utility(model)
        data = data_title(results, model.cohort, (DEWILDE_DATA,))
        mixing = None if header is None else header.content.get("mixing")
        if header is None or not mixing:
            state = NOT_RUN if header is None else NOT_MEASURED
            rows.append((data, results.title(model), model.subjects, *[state] * 6, *[""] * of_paper))
            continue
        for row in mixing["rows"]:
            deviation = "" if row["auc_deviation"] is None else f" ± {row['auc_deviation']:.3f}"
            rows.append(
                (
                    data,
                    results.title(model),
                    model.subjects,
                    format_count(row["real"]),
                    format_count(row["synthetic"]),
                    "yes" if row["augmentation"] else "no",
                    f"{format_number(row['auc_mean'])}{deviation}",
                    NOT_MEASURED if row["auc"] is None else estimate_from_json(row["auc"]),
                    "" if row["difference"] is None else estimate_from_json(row["difference"]),
                    *([_paper_mixture(results, model, row)] if of_paper else []),
                )
            )
    columns = [Column("data"), Column("model"), Column("subjects of the generator"), Column("real images")]
    columns += [Column("synthetic images"), Column("augmentation"), Column("AUC, mean ± deviation over trainings")]
    columns += [Column("AUC, interval over test subjects", "number"), Column("minus real alone", "number")]
    columns += [Column(f"AUC, {DEWILDE}")] if of_paper else []
    notes = (
        "The best checkpoint by the AUC on real train subjects held apart, tested on holdout subjects. The deviation "
        "is over trainings, the interval over test subjects.",
    )
    return Table("table-4", "Table 4: classifiers on real and synthetic images", tuple(columns), tuple(rows), notes)


def _paper_mixture(results: Results, model: Model, row: Mapping[str, Any]) -> str:
    if results.paper(model.cohort) != DEWILDE_DATA or not row["augmentation"]:
        return ""
    # The paper counts cases of each class; its generators saw 100, or 10, of each of two classes.
    cases = 10 if model.subjects in ("10", "20") else 100
    for each in DEWILDE_TABLE_4:
        if (each.real, each.synthetic, each.cases) == (row["real"], row["synthetic"], cases):
            return f"{each.auc:.3f} ± {each.deviation:.3f}"
    return ""


# Figures


def _draw(results: Results) -> Iterator[Drawing]:
    found: dict[int, list[tuple[str, str]]] = {}
    for name in results.names("command"):
        match = _FIGURE.fullmatch(name)
        if match:
            found.setdefault(int(match[1]), []).append((f"command:{name}", match[2]))
    for number, columns in sorted(found.items()):
        opened = [(label, results.read(name, open_drawn)) for name, label in columns]
        if any(images is not None for _, images in opened):
            caption = CAPTIONS.get(number, f"Figure {number}.")
            yield Drawing(f"figure-{number}", draw_columns(opened), caption, patients=True)


def open_drawn(place: Path) -> ImageFolder:
    """The samples that a command drew."""
    return open_images(place, kind="samples")


def draw_columns(columns: Sequence[tuple[str, ImageFolder | None]]) -> Figure:
    """Draw the first samples of each folder, a column a folder, a row a sample and channel."""
    first = next(images for _, images in columns if images is not None)
    planes = [(seed, channel) for seed in range(min(SHOWN, len(first))) for channel in range(len(first.channels))]
    if tuple(first.channels) == ("red", "green", "blue"):
        planes = [(seed, -1) for seed in range(min(SHOWN, len(first)))]
    figure = Figure(figsize=(0.6 + 1.3 * len(columns), 0.4 + 1.3 * len(planes)), layout="constrained")
    grid = figure.subplots(len(planes), len(columns), squeeze=False)
    for at, (label, images) in enumerate(columns):
        grid[0, at].set_title(label, fontsize=8, color=INK, parse_math=False)
        pixels = None if images is None else images.read(np.arange(min(SHOWN, len(images))))
        for row, (seed, channel) in enumerate(planes):
            fits = pixels is not None and seed < len(pixels) and channel < pixels.shape[1]
            draw_plane(grid[row, at], pixels[seed] if fits and pixels is not None else None, channel)
            if at == 0 and channel >= 0 and len(first.channels) > 1:
                grid[row, 0].set_ylabel(first.channels[channel], fontsize=8, color=INK, parse_math=False)
    return figure
