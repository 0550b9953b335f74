"""A utility folder as a part of the page, and as tables in files laid out as the papers' are."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from unalike import folders
from unalike.errors import FolderError
from unalike.folders import Header
from unalike.records import Estimate, estimate_from_json
from unalike.report.figures import INK, STYLES
from unalike.report.section import FigureView, PictureView, Section, keep_figure, read_picture_file
from unalike.report.tables import Cell, Column, Kind, Table, plain_number, write_estimate
from unalike.report.words import format_count, format_number
from unalike.vision.names import NETWORK_NAMES, NETWORKS

_SOURCE_NAMES = {
    "synthetic": "synthetic",
    "real": "real",
    "real-augmented": "real, augmented",
    "augmented": "real, augmented",
    "both": "synthetic and real",
}
_TESTED: tuple[tuple[str, str, Kind], ...] = (
    ("test_accuracy", "test accuracy", "share"),
    ("precision", "precision", "share"),
    ("recall", "recall", "share"),
    ("f1", "F1", "share"),
    ("auc", "AUC", "number"),
)


def view_utility(folder: Path, *, anchor: str) -> Section:
    """The section of one folder; its figures are kept in the folder's ``figures/``.

    Raises `FolderError` if the folder is no finished one or is damaged.
    """
    header = folders.read_header(folder, kind="utility")
    try:
        content = header.content
        segment = content["task"] == "segment"
        drawn = [] if segment else list(_classification_figures(header, folder / folders.FIGURES, anchor))
        pictures = []
        if segment and (shown := folder / folders.FIGURES / "segmentation-internal.png").is_file():
            pictures.append(
                PictureView(read_picture_file(shown), "Holdout images: truth, and what each training finds.")
            )
        return Section(
            anchor=anchor,
            kicker="What are these images worth to train on?",
            heading=f"Utility of {content['name']}",
            warnings=tuple(content["warnings"]),
            lead=tuple(_say_segmentation(content) if segment else _say_classification(content)),
            tables=tabulate_utility(header),
            figures=tuple(drawn),
            pictures=tuple(pictures),
            notes=tuple(content["notes"]),
        )
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise FolderError(
            f"{header.path} lacks something a report needs ({error!r}). Make the folder again."
        ) from error


def tabulate_utility(header: Header) -> tuple[Table, ...]:
    """Tables of a classification or a segmentation; those that have rows."""
    content = header.content
    if content["task"] == "segment":
        tables: tuple[Table, ...] = (_segmentation_table(content), _segmentation_differences(content))
    else:
        tables = (
            _network_table(content),
            _difference_table(content),
            _mixing_table(content),
            _tuned_table(content),
            *_confusions(content),
        )
    return tuple(table for table in tables if table.rows)


def utility_of(header: Header, source: str = "synthetic") -> tuple[str, Estimate] | None:
    """The one number for which a utility stands, and its name: accuracy of the first network, or mean Dice; or None."""
    content = header.content
    for row in content["table"]:
        if row["source"] == source:
            if content["task"] == "segment":
                return "mean Dice", estimate_from_json(row["dice"]["mean"])
            return f"accuracy of {_network(row['network'])}", estimate_from_json(row["test_accuracy"])
    return None


def _network(name: str) -> str:
    return NETWORK_NAMES.get(name, name)


def _source(name: str) -> str:
    return _SOURCE_NAMES.get(name, name)


def _estimate(entry: Mapping[str, Any] | None) -> Cell:
    return "not measured" if entry is None else estimate_from_json(entry)


def _bare(value: float | None) -> Estimate:
    return plain_number(math.nan if value is None else float(value))


# Classification


def _say_classification(content: Mapping[str, Any]) -> Iterator[str]:
    counts = content["counts"]
    yield (
        f"Trained on {format_count(counts['synthetic']['images'])} samples, or on the "
        f"{format_count(counts['train']['images'])} real images of {format_count(counts['train']['subjects'])} "
        f"subjects that the generator saw; tested on {format_count(counts['holdout']['images'])} images of "
        f"{format_count(counts['holdout']['subjects'])} subjects that neither saw."
    )
    for entry in content["differences"]:
        if (entry["first"], entry["second"]) != ("synthetic", "real"):
            continue
        found = estimate_from_json(entry["accuracy"])
        if math.isnan(found.low):
            continue
        name = f"{_network(entry['network'])}: training on samples instead of real images changes the accuracy by"
        points = f"{100 * found.value:+.1f} points ({100 * found.low:+.1f} to {100 * found.high:+.1f})".replace(
            "-", "−"
        )
        verdict = "worse" if found.high < 0 else "better" if found.low > 0 else "cannot be told apart"
        yield f"{name} {points}: {verdict}."


def _network_table(content: Mapping[str, Any]) -> Table:
    plain: tuple[tuple[str, str, Kind], ...] = (
        ("train_loss", "train loss", "measure"),
        ("validation_loss", "val loss", "measure"),
        ("train_accuracy", "train accuracy", "share"),
        ("validation_accuracy", "val accuracy", "share"),
    )
    leaks = any(row["accuracy_with_leaks"] is not None for row in content["table"])
    columns = [Column("network"), Column("trained on"), Column("begun from")]
    columns += [Column(name, kind) for _, name, kind in plain]
    columns += [Column("test loss", "measure"), *(Column(name, kind) for _, name, kind in _TESTED)]
    columns += [Column("test accuracy with leaks", "share")] if leaks else []
    rows = []
    for row in content["table"]:
        cells: list[Cell] = [_network(row["network"]), _source(row["source"]), f"{row['weights']} weights"]
        cells += [_bare(row[key]) for key, _, _ in plain]
        cells += [_estimate(row["test_loss"]), *(_estimate(row[key]) for key, _, _ in _TESTED)]
        cells += [_estimate(row["accuracy_with_leaks"])] if leaks else []
        rows.append(tuple(cells))
    run = {row["network"] for row in content["table"]}
    missing = ", ".join(_network(name) for name in NETWORKS if name not in run)
    notes = [
        "Means over folds; in brackets 95 % intervals over test subjects. Precision, recall and F1 are means over "
        "classes, AUC of one class against the rest."
    ]
    notes += [f"Not run: {missing}."] if missing else []
    if leaks:
        notes.append(
            "With leaks: images of the holdout counted in whose subject, or the very picture, is in train too, as a "
            "careless split would."
        )
    title = f"Classifiers tested on real images, {content['name']}"
    return Table("classifiers", title, tuple(columns), tuple(rows), tuple(notes))


def _difference_table(content: Mapping[str, Any]) -> Table:
    measures: tuple[tuple[str, str, Kind], ...] = (
        ("accuracy", "accuracy", "share"),
        ("f1", "F1", "share"),
        ("auc", "AUC", "number"),
    )
    rows = tuple(
        (
            _network(entry["network"]),
            f"{_source(entry['first'])} − {_source(entry['second'])}",
            *(_estimate(entry[key]) for key, _, _ in measures),
        )
        for entry in content["differences"]
    )
    columns = (Column("network"), Column("difference"), *(Column(name, kind) for _, name, kind in measures))
    notes = ("Paired over the same test subjects.",)
    return Table("differences", f"Paired differences, {content['name']}", columns, rows, notes)


def _mixing_table(content: Mapping[str, Any]) -> Table:
    mixing = content["mixing"]
    columns = (
        Column("real images"),
        Column("synthetic images"),
        Column("augmentation"),
        Column("AUC, mean ± deviation over trainings"),
        Column("AUC, interval over test subjects", "number"),
        Column("minus real alone", "number"),
        Column("accuracy", "share"),
    )
    if not mixing:
        return Table("mixing", "", columns, ())
    rows = []
    for row in mixing["rows"]:
        deviation = "" if row["auc_deviation"] is None else f" ± {row['auc_deviation']:.3f}"
        rows.append(
            (
                format_count(row["real"]),
                format_count(row["synthetic"]),
                "yes" if row["augmentation"] else "no",
                f"{format_number(row['auc_mean'])}{deviation}",
                _estimate(row["auc"]),
                "" if row["difference"] is None else estimate_from_json(row["difference"]),
                _estimate(row["accuracy"]),
            )
        )
    repetitions = mixing["rows"][0]["repetitions"] if mixing["rows"] else 0
    notes = (
        f"{_network(mixing['network'])}, {repetitions} trainings of each proportion; the best checkpoint by the AUC on "
        f"{format_count(mixing['validation_images'])} real images of {format_count(mixing['validation_subjects'])} "
        "train subjects held apart.",
        *mixing["notes"],
    )
    return Table("mixing", f"Mixing real and synthetic images, {content['name']}", columns, tuple(rows), notes)


def _tuned_table(content: Mapping[str, Any]) -> Table:
    """What a search of hyper-parameters chose; no row where none was asked for."""
    rows: list[tuple[Cell, ...]] = []
    for row in content["tuned"]:
        chosen = [_bare(row[name]) for name in ("learning_rate", "weight_decay", "batch_size")]
        rows.append((_network(row["network"]), _source(row["source"]), *chosen, format_count(len(row["trials"]))))
    columns = (
        Column("network"),
        Column("trained on"),
        Column("learning rate", "measure"),
        Column("weight decay", "measure"),
        Column("batch size", "measure"),
        Column("trials"),
    )
    notes = ("Chosen by the loss on the part of the training images that was left out first; never by test images.",)
    return Table("tuned", f"Hyper-parameters chosen, {content['name']}", columns, tuple(rows), notes)


def _confusions(content: Mapping[str, Any]) -> Iterator[Table]:
    classes = content["classes"]
    for row in content["table"]:
        name = f"confusion-{row['network']}-{row['source']}"
        title = f"Confusion matrix: {_network(row['network'])} trained on {_source(row['source'])} images"
        columns = (Column("true class"), *(Column(f"told {each}", "measure") for each in classes))
        rows = tuple(
            (each, *(_bare(count) for count in line)) for each, line in zip(classes, row["confusion"], strict=True)
        )
        yield Table(name, title, columns, rows, ("Test images; mean over folds.",))


def _classification_figures(header: Header, place: Path, anchor: str) -> Iterator[FigureView]:
    content = header.content
    if content["table"]:
        caption = "Accuracy on real test images, with intervals over test subjects."
        yield keep_figure(_draw_accuracy(content), place / "accuracy", anchor=anchor, caption=caption)
    if content["mixing"] and content["mixing"]["rows"]:
        caption = "AUC on real test images by number of synthetic images, a line for each number of real ones."
        yield keep_figure(_draw_curve(content["mixing"]), place / "mixing", anchor=anchor, caption=caption)


def _draw_accuracy(content: Mapping[str, Any]) -> Figure:
    networks = list(dict.fromkeys(row["network"] for row in content["table"]))
    sources = list(dict.fromkeys(row["source"] for row in content["table"]))
    figure = Figure(figsize=(4.6, 1.0 + 0.55 * len(networks)), layout="constrained")
    axes = figure.subplots()
    looks = [("o", "synthetic-train"), ("s", "holdout-train"), ("^", "synthetic-holdout"), ("D", "holdout-train")]
    for at, source in enumerate(sources):
        marker, style = looks[at % len(looks)]
        rows = [row for row in content["table"] if row["source"] == source]
        found = [estimate_from_json(row["test_accuracy"]) for row in rows]
        heights = [networks.index(row["network"]) + 0.22 * (at - (len(sources) - 1) / 2) for row in rows]
        values = [100 * each.value for each in found]
        reach = [[100 * (e.value - e.low) for e in found], [100 * (e.high - e.value) for e in found]]
        axes.errorbar(
            values, heights, xerr=reach, fmt=marker, color=STYLES[style].colour, capsize=2, markersize=5,
            label=_source(source),
        )  # fmt: skip
    axes.set_yticks(range(len(networks)), [_network(name) for name in networks])
    axes.set_ylim(len(networks) - 0.5, -0.5)
    axes.set_xlabel("accuracy on real test images, %", color=INK)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper center", ncols=3, frameon=False, fontsize=8, title="trained on")
    return figure


def _draw_curve(mixing: Mapping[str, Any]) -> Figure:
    figure = Figure(figsize=(4.6, 2.9), layout="constrained")
    axes = figure.subplots()
    rows = [row for row in mixing["rows"] if row["augmentation"]]
    for at, real in enumerate(sorted({row["real"] for row in rows})):
        line = sorted((row for row in rows if row["real"] == real), key=lambda row: row["synthetic"])
        across = [row["synthetic"] for row in line]
        means = np.array([row["auc_mean"] if row["auc_mean"] is not None else math.nan for row in line], dtype=float)
        spread = np.array([row["auc_deviation"] or 0.0 for row in line], dtype=float)
        axes.errorbar(
            across, means, yerr=spread, marker="os^Dv"[at % 5], color=list(STYLES.values())[at % 3].colour, capsize=2,
            linestyle=("-", "--", ":")[at % 3], label=f"{format_count(real)} real",
        )  # fmt: skip
    axes.set_xscale("symlog", linthresh=max(1, min([row["synthetic"] for row in rows if row["synthetic"]], default=1)))
    axes.set_xlabel("synthetic images", color=INK)
    axes.set_ylabel("AUC ± deviation", color=INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    return figure


# Segmentation


def _say_segmentation(content: Mapping[str, Any]) -> Iterator[str]:
    images, subjects = content["counts"]["images"], content["counts"]["subjects"]
    yield (
        f"Trained on {format_count(images['synthetic'])} samples with masks, or on the "
        f"{format_count(images['train'])} real pairs of {format_count(subjects['train'])} subjects "
        f"that the generator saw; tested on {format_count(images['holdout'])} images of "
        f"{format_count(subjects['holdout'])} subjects that neither saw."
    )
    for entry in content["differences"]:
        if (entry["source"], entry["minus"]) != ("synthetic", "real"):
            continue
        found = estimate_from_json(entry["dice"]["mean"])
        if math.isnan(found.low):
            continue
        verdict = "worse" if found.high < 0 else "better" if found.low > 0 else "cannot be told apart"
        yield (
            "Training on samples instead of real pairs changes the mean Dice by "
            f"{write_estimate(found, 'number')}: {verdict}."
        )
    yield "A Dice that samples share with real images is no good news by itself: copies train as well as patients do."


def _parts(content: Mapping[str, Any]) -> list[str]:
    """Labels and their mean, as keys of what is told for each."""
    return [*(str(label["name"]) for label in content["labels"]), "mean"]


def _segmentation_table(content: Mapping[str, Any]) -> Table:
    parts = _parts(content)
    leaks = any(row["dice_with_leaks"] is not None for row in content["table"])
    columns = [Column("trained on"), Column("images")]
    columns += [Column(f"Dice, {part}", "number") for part in parts]
    columns += [Column(f"HD95, {part}, {content['unit']}", "measure") for part in parts]
    columns += [Column("mean Dice with leaks", "number")] if leaks else []
    rows = []
    for row in content["table"]:
        cells: list[Cell] = [str(row["title"]), format_count(row["images"])]
        cells += [_estimate(row[measure].get(part)) for measure in ("dice", "hd95") for part in parts]
        cells += [_estimate((row["dice_with_leaks"] or {}).get("mean"))] if leaks else []
        rows.append(tuple(cells))
    notes = ("Holdout subjects; slices of a subject count together. In brackets 95 % intervals over subjects.",)
    title = f"Segmentation tested on real images, {content['name']}"
    return Table("segmentation", title, tuple(columns), tuple(rows), notes)


def _segmentation_differences(content: Mapping[str, Any]) -> Table:
    parts = _parts(content)
    rows = tuple(
        (
            f"{_source(entry['source'])} − {_source(entry['minus'])}",
            *(_estimate(entry[measure].get(part)) for measure in ("dice", "hd95") for part in parts),
        )
        for entry in content["differences"]
    )
    columns = (
        Column("difference"),
        *(Column(f"Dice, {part}", "number") for part in parts),
        *(Column(f"HD95, {part}, {content['unit']}", "measure") for part in parts),
    )
    notes = ("Paired over the same test subjects.",)
    return Table("differences", f"Paired differences, {content['name']}", columns, rows, notes)
