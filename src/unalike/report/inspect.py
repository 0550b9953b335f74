"""`inspect_folder`: what a folder of ours holds, in words and one picture."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from unalike import folders
from unalike.cohort.store import ImageFolder, open_images, verify_images
from unalike.errors import FolderError
from unalike.images.contact import draw_contact_sheet
from unalike.records import IntArray

_PER_ROW = 8


def inspect_folder(folder: str | Path, *, sheet: str | Path | None = None) -> dict[str, Any]:
    """Facts about a cohort, samples, run, audit or demo folder, ready to print or to turn into JSON.

    For cohorts and samples a contact sheet (PNG) is written to ``sheet``, by default into the folder.

    Raises `FolderError` if the folder is none of ours or unfinished.
    """
    folder = Path(folder)
    kind = folders.kind_of(folder) if folder.is_dir() else None
    if kind is None:
        folders.read_header(folder, kind="cohort")  # raises: missing, unfinished, or not ours
        raise FolderError(f"{folder} is not a folder of unalike.")
    header = folders.read_header(folder, kind=kind)
    facts: dict[str, Any] = {
        "kind": kind,
        "made_by": header.made_by,
        "created": header.created,
        "seed": header.seed,
    }
    if kind in {"cohort", "samples"}:
        opened = open_images(folder, kind=kind)
        verify_images(opened)
        facts |= _describe_images(opened, Path(sheet) if sheet else None)
    elif kind == "audit":
        content = header.content
        facts |= {
            "verdict": f"{content['verdict']['decision']}. {content['verdict']['headline']}",
            "warnings": content["verdict"]["warnings"],
            "counts": content["counts"],
            "flagged": content["flagged"],
        }
    else:
        facts |= {name: value for name, value in header.content.items() if value not in (None, [], {})}
    facts["settings"] = {name: value for name, value in header.settings.items() if value not in (None, [], "")}
    facts["inputs"] = dict(header.inputs)
    return facts


def _describe_images(images: ImageFolder, sheet: Path | None) -> dict[str, Any]:
    roles = images.column("role")
    subjects = images.column("subject")
    labels = Counter(images.column("label").tolist())
    facts: dict[str, Any] = {
        "images": len(images),
        "size": f"{images.size[1]}×{images.size[0]} pixels, {images.dtype}",
        "channels": list(images.channels),
        "images_per_role": {str(role): int((roles == role).sum()) for role in np.unique(roles)},
        "subjects_per_role": {str(role): len(np.unique(subjects[roles == role])) for role in np.unique(roles)},
    }
    if set(labels) != {""}:
        facts["images_per_class"] = dict(sorted(labels.items()))
    facts["gray_levels"] = _describe_levels(images)
    notes = images.header.content.get("notes", [])
    if notes:
        facts["notes"] = notes
    facts["contact_sheet"] = str(_draw_sheet(images, sheet or images.path / folders.CONTACT_SHEET))
    return facts


def _describe_levels(images: ImageFolder) -> dict[str, str]:
    """Mean and standard deviation of each channel, from the exact sums in the records."""
    pixels = len(images) * images.size[0] * images.size[1]
    sums, squares = (images.numbers(name).sum(axis=0).astype(float) for name in ("sums", "squares"))
    spread = np.sqrt(np.maximum(squares / pixels - (sums / pixels) ** 2, 0))
    return {
        name: f"mean {mean:.1f}, standard deviation {deviation:.1f}"
        for name, mean, deviation in zip(images.channels, sums / pixels, spread, strict=True)
    }


def _draw_sheet(images: ImageFolder, path: Path) -> Path:
    """One row per role and class: first images of evenly spread subjects."""
    roles, labels, subjects = (images.column(name) for name in ("role", "label", "subject"))
    rows = []
    for role in np.unique(roles):
        for label in np.unique(labels[roles == role]):
            here = np.flatnonzero((roles == role) & (labels == label))
            _, first = np.unique(subjects[here], return_index=True)
            firsts = here[np.sort(first)]
            middle = [_middle(here[subjects[here] == subjects[row]]) for row in _spread(firsts)]
            title = f"{role} {label}".strip() + f": {len(here)} images of {len(firsts)} subjects"
            rows.append((title, images.read(np.asarray(middle))))
    try:
        draw_contact_sheet(rows, channels=images.channels).save(path)
    except OSError as error:
        raise FolderError(f"{path} cannot be written ({error.strerror or error}). Choose another --sheet.") from error
    return path


def _spread(rows: IntArray) -> IntArray:
    spread: IntArray = rows[np.unique(np.linspace(0, len(rows) - 1, min(_PER_ROW, len(rows))).astype(int))]
    return spread


def _middle(rows: IntArray) -> int:
    return int(rows[len(rows) // 2])
