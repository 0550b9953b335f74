"""An explain folder as a part of the page: of classifiers numbers and heat maps, of an audit its evidence sheets."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from unalike import folders
from unalike.errors import FolderError
from unalike.folders import Header
from unalike.records import estimate_from_json
from unalike.report.section import PictureView, Section, read_picture_file
from unalike.report.tables import Cell, Column, Table, plain_number
from unalike.report.words import format_count

PICTURE_BYTES = 4_000_000  # of PNG files taken into a page
# Numbers of an explanation, as tables call them; others are shown by their own names.
_NAMES = {
    "probability": "probability of the class explained",
    "superpixels": "superpixels",
    "fit": "fit of LIME's linear model (R²)",
    "largest_weight": "largest weight of a superpixel",
    "top_share": "share of all weight in the top superpixels",
    "stability_rank": "stability: rank correlation of repetitions",
    "stability_top": "stability: overlap of top superpixels of repetitions",
    "top_by_chance": "overlap of top superpixels by chance",
    "lime_gradcam_rank": "LIME against Grad-CAM: rank correlation",
    "lime_iou": "LIME on the lesion: overlap (IoU)",
    "lime_pointing": "LIME on the lesion: pointing game",
    "lime_inside": "LIME on the lesion: share of positive weight",
    "lime_iou_gain": "LIME on the lesion: overlap beyond chance",
    "lime_pointing_gain": "LIME on the lesion: pointing beyond chance",
    "lime_inside_gain": "LIME on the lesion: weight beyond chance",
    "gradcam_iou": "Grad-CAM on the lesion: overlap (IoU)",
    "gradcam_pointing": "Grad-CAM on the lesion: pointing game",
    "gradcam_inside": "Grad-CAM on the lesion: share of heat",
    "gradcam_iou_gain": "Grad-CAM on the lesion: overlap beyond chance",
    "gradcam_pointing_gain": "Grad-CAM on the lesion: pointing beyond chance",
    "gradcam_inside_gain": "Grad-CAM on the lesion: heat beyond chance",
    "deletion": "deletion: area under the probability, superpixels hidden in order of weight",
    "insertion": "insertion: area under the probability, superpixels shown in order of weight",
    "deletion_gain": "deletion: area below that of random orders",
    "insertion_gain": "insertion: area above that of random orders",
    "lesion_area": "lesion: share of the image",
    "iou_by_chance": "overlap with the lesion by chance (IoU)",
    "agreement_rank": "two classifiers: rank correlation of LIME weights",
    "agreement_top": "two classifiers: overlap of top superpixels",
    "agreement_gradcam": "two classifiers: rank correlation of Grad-CAM",
}


def view_explain(folder: Path, *, anchor: str) -> Section:
    """The section of one folder, with as many of its pictures as a page holds; all of them are internal.

    Raises `FolderError` if the folder is no finished one or is damaged.
    """
    header = folders.read_header(folder, kind="explain")
    evidence = "sheets" in header.content
    try:
        return Section(
            anchor=anchor,
            kicker="What speaks for each copy?" if evidence else "What did the classifiers look at?",
            heading=f"Evidence of {header.content['audit']}" if evidence else "What classifiers looked at",
            lead=tuple(_say(header.content)),
            tables=tabulate_explain(header),
            pictures=tuple(_pictures(folder / folders.FIGURES, "sheet" if evidence else "explanation")),
            notes=tuple(header.content["notes"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise FolderError(
            f"{header.path} lacks something a report needs ({error!r}). Make the folder again."
        ) from error


def tabulate_explain(header: Header) -> tuple[Table, ...]:
    """Numbers of classifiers' explanations, or of each evidence sheet."""
    content = header.content
    if "sheets" in content:
        return (_sheet_table(content),)
    return tuple(table for table in (_number_table(content), _agreement_table(content)) if table.rows)


def _say(content: Mapping[str, Any]) -> Iterator[str]:
    if "sheets" in content:
        yield f"{format_count(content['flagged'])} samples are flagged; {format_count(len(content['sheets']))} sheets."
        return
    for role, kinds in content["images"].items():
        told = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
        yield f"{role} images explained: {told}."
    yield (
        "LIME hides superpixels and asks what that changes; a weight says how much a superpixel speaks for the class. "
        "Where repetitions disagree (low stability), single maps mean little."
    )


def _number_table(content: Mapping[str, Any]) -> Table:
    cells: dict[tuple[str, str], Mapping[str, Any]] = {
        (role, model): numbers for role, models in content["numbers"].items() for model, numbers in models.items()
    }
    measures = dict.fromkeys(name for numbers in cells.values() for name in numbers)
    defined = [
        name for name in measures if any(numbers.get(name, {}).get("value") is not None for numbers in cells.values())
    ]
    return Table(
        name="explanations",
        title="What classifiers looked at, in numbers",
        columns=(
            Column("number"),
            *(Column(f"{role} images, trained on {model}", "number") for role, model in cells),
        ),
        rows=tuple(
            (_NAMES.get(name, name.replace("_", " ")), *(_cell(numbers.get(name)) for numbers in cells.values()))
            for name in defined
        ),
        notes=("Means over images; in brackets 95 % intervals over subjects.",),
    )


def _agreement_table(content: Mapping[str, Any]) -> Table:
    roles = list(content["agreement"])
    measures = dict.fromkeys(name for numbers in content["agreement"].values() for name in numbers)
    rows = tuple(
        (_NAMES.get(name, name), *(_cell(content["agreement"][role].get(name)) for role in roles))
        for name in measures
        if any((content["agreement"][role].get(name) or {}).get("value") is not None for role in roles)
    )
    columns = (Column("number"), *(Column(f"{role} images", "number") for role in roles))
    title = "Do classifiers trained on synthetic and on real images look at the same?"
    return Table("agreement", title, columns, rows, ("The same images and superpixels for both.",))


def _sheet_table(content: Mapping[str, Any]) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for at, sheet in enumerate(content["sheets"]):
        numbers = [sheet[name] for name in ("p_value", "q_value", "similarity", "r")]
        found = [plain_number(math.nan if value is None else float(value)) for value in numbers]
        half = f"{sheet['half_of_r_in_tiles']} of {sheet['tiles']} tiles"
        rows.append((str(at), str(sheet["query"]), *found, half, str(sheet["measure"]), str(sheet["pose"])))
    columns = (
        Column("sheet"),
        Column("sample"),
        Column("p", "measure"),
        Column("q", "measure"),
        Column("highest correlation", "number"),
        Column("correlation as laid over", "number"),
        Column("half of it lies in"),
        Column("measure"),
        Column("pose"),
    )
    return Table("sheets", "Evidence sheets", columns, tuple(rows))


def _cell(entry: Mapping[str, Any] | None) -> Cell:
    return "not measured" if entry is None else estimate_from_json(entry)


def _pictures(room: Path, what: str) -> Iterator[PictureView]:
    left = PICTURE_BYTES
    for path in sorted(room.glob("[0-9]*-internal.png")):
        left -= path.stat().st_size
        if left < 0:
            return
        yield PictureView(read_picture_file(path), f"{what} {int(path.name[:4])}")
