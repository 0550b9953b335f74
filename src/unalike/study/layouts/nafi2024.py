"""Tables 1 and 2 and figures 5 to 7 of Nafi et al. (2024), with training on real images beside training on samples.

The paper trains eight networks on samples and tests them on real images that the generator did not see. What the same
networks reach when trained on the generator's own training images is not told there; it is here, and the difference.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from unalike import folders
from unalike.records import Pixels, estimate_from_json
from unalike.report.tables import Cell, Column, Kind, Table, plain_number
from unalike.report.words import format_count
from unalike.study.layouts.generic import (
    NOT_MEASURED,
    NOT_RUN,
    Drawing,
    Model,
    Part,
    Results,
    data_title,
    draw_rows,
    draw_strips,
    examples_of,
)
from unalike.study.layouts.papers import NAFI, NAFI_TABLE_1, NAFI_TABLE_2
from unalike.vision.names import NETWORK_NAMES

KNOWN = tuple(dict.fromkeys(row.data for row in NAFI_TABLE_1))
SHOWN = 4  # explanations in figure 7 from each model
_PLAIN: tuple[tuple[str, str, Kind], ...] = (
    ("train_loss", "train loss", "measure"),
    ("validation_loss", "val loss", "measure"),
    ("train_accuracy", "train accuracy", "share"),
    ("validation_accuracy", "val accuracy", "share"),
)
_TESTED: tuple[tuple[str, str, Kind], ...] = (
    ("test_loss", "test loss", "measure"),
    ("test_accuracy", "test accuracy", "share"),
    ("precision", "precision", "share"),
    ("recall", "recall", "share"),
    ("f1", "F1", "share"),
)


def lay_out(results: Results) -> Iterator[Part]:
    """The parts of the page, in order."""
    yield Part("Table 1: data sets", tables=(tabulate_classes(results),))
    yield Part("Table 2: networks trained on samples, tested on real images", tables=(tabulate_networks(results),))
    yield Part("Figures 5 to 7", drawings=tuple(_draw(results)))


def tabulate_classes(results: Results) -> Table:
    """Table 1: images of each class in all, for the generator, held out, and generated; the paper's rows beneath."""
    rows: list[tuple[Cell, ...]] = []
    for cohort in results.cohorts():
        title, images = data_title(results, cohort, KNOWN), results.cohort(cohort)
        models = [model for model in results.models() if model.cohort == cohort]
        if images is None:
            rows.append((title, NOT_RUN, "ours", *[NOT_RUN] * 4))
        else:
            labels, roles = images.column("label"), images.column("role")
            for label in np.unique(labels).tolist():
                of_class = labels == label
                counts = [
                    int(of_class.sum()),
                    *(int((of_class & (roles == role)).sum()) for role in ("train", "holdout")),
                ]
                made = _count_generated(results, models[0], label) if models else ""
                rows.append((title, label or "all", "ours", *map(format_count, counts), made))
        rows += [
            (
                f"{cohort} ({row.data})",
                row.label,
                NAFI,
                format_count(row.total),
                format_count(row.sampled),
                format_count(row.total - row.sampled),
                format_count(row.generated),
            )
            for row in NAFI_TABLE_1
            if row.data == results.paper(cohort)
        ]
    columns = ("data", "class", "numbers", "images", "for the generator (train)", "for the test (holdout)", "generated")
    notes = (
        "Ours are split by subject, the paper's by image: where a patient has several images, the paper's test has "
        "seen some of its patients.",
        "Generated: by the first generator of the study. The paper's number for the test is what is left.",
    )
    return Table("table-1", "Table 1: the data sets", tuple(map(Column, columns)), tuple(rows), notes)


def _count_generated(results: Results, model: Model, label: str) -> str:
    samples = results.samples(model)
    if samples is None:
        return NOT_RUN
    return format_count(int((samples.column("label") == label).sum()))


def tabulate_networks(results: Results) -> Table:
    """Table 2: a row for each network and model, beside it training on real images; the paper's rows beneath."""
    rows: list[tuple[Cell, ...]] = []
    for model in results.models():
        if f"utility:{model.key}" in results.cells:
            rows += _network_rows(results, model)
    for cohort in results.cohorts():
        rows += [
            (
                NETWORK_NAMES.get(row.network, row.network),
                f"{cohort} ({row.data})",
                "diffusion",
                NAFI,
                plain_number(row.train_loss),
                plain_number(row.validation_loss),
                plain_number(row.train_accuracy / 100),
                plain_number(row.validation_accuracy / 100),
                plain_number(row.test_loss),
                plain_number(row.test_accuracy / 100),
                *map(plain_number, (row.precision, row.recall, row.f1)),
                *[""] * 4,
            )
            for row in NAFI_TABLE_2
            if row.data == results.paper(cohort)
        ]
    columns = [Column("network"), Column("data"), Column("model"), Column("numbers")]
    columns += [Column(name, kind) for _, name, kind in (*_PLAIN, *_TESTED)]
    columns += [
        Column("trained on real: test accuracy", "share"),
        Column("trained on real: F1", "share"),
        Column("synthetic − real, accuracy", "share"),
        Column("synthetic − real, F1", "share"),
    ]
    notes = (
        "Trained on samples, tested on real images of subjects that neither generator nor network saw. In brackets "
        "95 % intervals over test subjects; differences are paired over the same subjects.",
        "Precision, recall and F1 are means over classes. The paper's numbers have no intervals.",
    )
    title = "Table 2: networks trained on samples"
    return Table("table-2", title, tuple(columns), tuple(rows), notes)


def _network_rows(results: Results, model: Model) -> Iterator[tuple[Cell, ...]]:
    header, data = results.utility(model), data_title(results, model.cohort, KNOWN)
    name = f"{results.title(model)}, {model.subjects} subjects"
    if header is None:
        yield ("all", data, name, "ours", *[NOT_RUN] * 13)
        return
    table: list[Mapping[str, Any]] = header.content["table"]
    for row in table:
        if row["source"] != "synthetic" or "test_accuracy" not in row:
            continue
        real = next((r for r in table if (r["network"], r["source"]) == (row["network"], "real")), None)
        difference = next((d for d in header.content["differences"] if _is_ours(d, row["network"])), None)
        yield (
            NETWORK_NAMES.get(row["network"], row["network"]),
            data,
            name,
            "ours",
            *(plain_number(row[key]) if row[key] is not None else NOT_MEASURED for key, _, _ in _PLAIN),
            *(_estimate(row, key) for key, _, _ in _TESTED),
            *(_estimate(real, key) for key in ("test_accuracy", "f1")),
            *(_estimate(difference, key) for key in ("accuracy", "f1")),
        )


def _is_ours(entry: Mapping[str, Any], network: str) -> bool:
    return (entry["network"], entry["first"], entry["second"]) == (network, "synthetic", "real")


def _estimate(entry: Mapping[str, Any] | None, key: str) -> Cell:
    return NOT_MEASURED if entry is None or entry[key] is None else estimate_from_json(entry[key])


# Figures


def _draw(results: Results) -> Iterator[Drawing]:
    real, made = [], []
    for cohort in results.cohorts():
        images = results.cohort(cohort)
        if images is not None and len(rows := images.rows("train")):
            real.append((cohort, images.channels, examples_of(images, rows, purpose="examples")))
    for model in results.models():
        samples = results.samples(model)
        if samples is not None and len(samples):
            pixels = examples_of(samples, np.arange(len(samples)), purpose="examples")
            made.append((f"{model.cohort}\n{results.title(model)}", samples.channels, pixels))
    if real:
        yield Drawing("figure-5", draw_rows(real), "Figure 5. Training images of each data set, drawn at random.", True)
    if made:
        yield Drawing("figure-6", draw_rows(made), "Figure 6. Samples of each model, drawn at random.", True)
    explained = [
        (f"{model.cohort}\n{results.title(model)}", path)
        for model in results.models()
        if (place := results.place(f"explain:{model.key}")) is not None
        for path in sorted((place / folders.FIGURES).glob("[0-9]*-internal.png"))[:SHOWN]
    ]
    if explained:
        caption = (
            "Figure 7. What classifiers looked at (LIME, Grad-CAM): the first explanations of each model. "
            "All are in the explain folders."
        )
        yield Drawing("figure-7", _stack(explained), caption, True)


def _stack(pictures: list[tuple[str, Path]]) -> Figure:
    """Pictures from files beneath one another, each with its label."""
    read: list[tuple[str, Pixels]] = []
    for label, path in pictures:
        with Image.open(path) as picture:
            read.append((label, np.asarray(picture.convert("RGB"))))
    return draw_strips(read)
