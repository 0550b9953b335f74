"""Tasks of the Medical Segmentation Decathlon: dataset.json says what the files are."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from unalike.cohort.plan import (
    ASSUMED,
    Item,
    Plan,
    choose_classes,
    compile_pattern,
    match_pattern,
    name_below,
    walk_files,
)
from unalike.cohort.readers.volumes import choose_channels, common_scale, planned_extent, spread_labels
from unalike.cohort.recipes import Layout
from unalike.cohort.settings import PrepareSettings
from unalike.errors import InputError, PictureError, SettingsError
from unalike.images import volumes
from unalike.records import MASK

FILE = "dataset.json"


def plan_items(source: Path, layout: Layout, settings: PrepareSettings) -> Plan:
    """One item for each pair of the task's training list."""
    if settings.size is None:
        raise SettingsError(f"--recipe {settings.recipe} needs --size, the height and width of the slices in pixels.")
    files, notes = walk_files(source, (FILE,))
    if len(files) > 1:
        raise InputError(f"{source} holds {len(files)} tasks; give the folder of one.")
    task = _read_task(files[0])
    modalities = _name_channels(task["modality"])
    labels = {str(name): int(value) for value, name in task["labels"].items() if int(value)}
    channels = choose_channels(settings.channels, {*modalities, MASK}, layout)
    if not settings.channels:  # in the order of the file
        channels = (*sorted(modalities, key=modalities.__getitem__), MASK)
    pattern = compile_pattern(settings.subject_pattern, "--subject-pattern")
    items = []
    for entry in task["training"]:
        image, label = (_locate(files[0], entry[key]) for key in ("image", "label"))
        inside = name_below(image, source)
        subject = re.sub(r"\.nii(\.gz)?$", "", image.name)
        items.append(
            Item(
                source=inside,
                subject=match_pattern(pattern, inside, "--subject-pattern") if pattern else subject,
                files=tuple((name, label if name == MASK else image) for name in channels),
                detail={name: index for name, index in modalities.items() if len(modalities) > 1},
            )
        )
    if not items:
        raise InputError(f"{files[0]} lists no training images. Get the task again.")
    items = choose_classes(items, settings)
    if pattern is None:
        notes.append(ASSUMED.format(what="scan (named by its file)"))
    scale = spread_labels(settings, max(labels.values(), default=0)) if MASK in channels else 0
    return Plan(
        items=tuple(sorted(items, key=lambda item: item.source)),
        channels=channels,
        notes=tuple(notes),
        scale=common_scale((_extent(item, len(modalities) > 1, settings) for item in items), settings),
        unit="volumes",
        mask_scale=scale,
        mask_names={name: value * scale for name, value in labels.items()} if scale else {},
    )


def _read_task(file: Path) -> Mapping[str, Any]:
    try:
        task = json.loads(file.read_text(encoding="utf-8-sig"))
        complete = all(isinstance(task[key], dict) for key in ("modality", "labels")) and isinstance(
            task["training"], list
        )
        whole = complete and all(re.fullmatch("[0-9]{1,9}", key) for key in (*task["modality"], *task["labels"]))
        listed = whole and all(isinstance(entry[key], str) for entry in task["training"] for key in ("image", "label"))
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"{file} is no task of the Decathlon ({error}). Get it again.") from error
    if not listed or not task["modality"]:
        raise InputError(
            f"{file} is no task of the Decathlon (modality, labels and training are needed). Get it again."
        )
    return dict(task)


def _name_channels(modality: Mapping[str, Any]) -> dict[str, int]:
    """Index of each modality by a name of its own: of several with one name, all but the first get their index."""
    names: dict[str, int] = {}
    for index, name in sorted((int(index), _clean(str(name))) for index, name in modality.items()):
        names[f"{name}-{index}" if name in {*names, MASK} else name] = index
    return names


def _clean(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "image"


def _locate(file: Path, entry: str) -> Path:
    path = PurePosixPath(entry)
    if path.is_absolute() or ".." in path.parts:
        raise InputError(f"{file} lists {entry}, which leads out of its folder. Mend it.")
    if not entry.isprintable():  # half a character, or what ends a path
        raise InputError(f"{file} lists {entry!r}, which is no path. Mend it.")
    return file.parent / path


def _extent(item: Item, several: bool, settings: PrepareSettings) -> Any:
    try:
        shape, spacing = volumes.read_extent(item.files[0][1], component=0 if several else None)
    except PictureError:
        return None
    return planned_extent(shape, spacing, settings)
