"""Pictures: one file an item, its class and patient from its path."""

from __future__ import annotations

import filecmp
import hashlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from unalike.cohort.plan import (
    ASSUMED,
    Item,
    Loaded,
    MadeImage,
    NoSuchFiles,
    Plan,
    choose_classes,
    compile_pattern,
    match_pattern,
    name_below,
    published_role,
    walk_files,
)
from unalike.cohort.recipes import Layout
from unalike.cohort.settings import PrepareSettings
from unalike.errors import PictureError
from unalike.images import geometry, pictures
from unalike.images.geometry import Placement
from unalike.records import Pixels


def plan_items(source: Path, layout: Layout, settings: PrepareSettings) -> Plan:
    """Pictures that the layout's patterns take; without patterns all, with the innermost class folder as label."""
    chosen = compile_pattern(settings.subject_pattern, "--subject-pattern")
    files, notes = walk_files(source, pictures.SUFFIXES)
    items, named = [], False
    for path in files:
        inside = name_below(path, source)
        item = _match_layout(path, inside, layout)
        if item is None:
            continue
        if chosen:
            item = replace(item, subject=match_pattern(chosen, inside, "--subject-pattern"))
        named = named or bool(item.subject)
        items.append(replace(item, subject=item.subject or inside))
    if not items:
        raise NoSuchFiles(f"none of the {len(files)} pictures of {source} lies where the recipe expects them.")
    if len(items) < len(files):
        notes.append(
            f"{len(files) - len(items)} of {len(files)} pictures lie elsewhere than the recipe says: left out."
        )
    if layout.files:
        items, more = _leave_out_nested(items)
        notes += more
        items = items if settings.labels is not False else _without_labels(items)
    else:
        items, more = _choose_labels(items, settings.labels, named=named)
        notes += more
    if not named:
        notes.append(ASSUMED.format(what="file"))
    return Plan(items=tuple(choose_classes(items, settings)), notes=tuple(notes))


def _match_layout(path: Path, inside: str, layout: Layout) -> Item | None:
    """The item of a picture, with subject "" where no pattern names one; None if the layout leaves it out."""
    if layout.exclude and layout.exclude.search(inside):
        return None
    parents = tuple(inside.split("/")[:-1])
    item = Item(source=inside, subject="", published=published_role(parents), files=(("picture", path),))
    if not layout.files:
        classes = [part for part in parents if not published_role((part,))]
        return replace(item, label=classes[-1] if classes else "")
    for entry in layout.files:
        found = entry.pattern.search(inside)
        if found:
            groups = found.groupdict()
            return replace(item, subject=groups.get("subject") or "", label=groups.get("label") or "")
    return None


def _leave_out_nested(items: list[Item]) -> tuple[list[Item], list[str]]:
    """Leave out what a folder within the source holds a second time, as chest_xray/chest_xray/ of that release does.

    A copy has the path of another picture but for one folder more, and the same bytes.
    """
    files = {item.source: item.files[0][1] for item in items}
    kept = [item for item in items if not any(_same_bytes(files, item.source, other) for other in _shorter(item))]
    if len(kept) == len(items):
        return items, []
    return kept, [f"{len(items) - len(kept)} pictures lie in a nested copy of the source's folders: taken once."]


def _shorter(item: Item) -> list[str]:
    """The item's path without one of its folders, in each way."""
    parts = item.source.split("/")
    return ["/".join(parts[:index] + parts[index + 1 :]) for index in range(len(parts) - 1)]


def _same_bytes(files: Mapping[str, Path], one: str, other: str) -> bool:
    if other not in files:
        return False
    try:
        return filecmp.cmp(files[one], files[other], shallow=False)
    except OSError:  # said when it is read
        return False


def _without_labels(items: list[Item]) -> list[Item]:
    return [replace(item, label="") for item in items]


def _choose_labels(items: list[Item], wanted: bool | None, *, named: bool) -> tuple[list[Item], list[str]]:
    """Folder names as classes: if wanted, or if they cannot name patients (one folder a patient is a common layout).

    They cannot where several patients have each (``named``: a pattern says who is whom), or where no pattern tells but
    each stands among the train and the test folders.
    """
    labels = {item.label for item in items} - {""}
    if wanted or not labels:
        return items, []
    if wanted is None:
        owners = {(item.label, item.subject if named else item.published) for item in items} - {("", "")}
        shared = Counter(label for label, owner in owners if label and owner)
        if all(shared[label] > 1 for label in labels):
            return items, [f"{len(labels)} folder names are the classes. If they name patients, pass --no-labels."]
        why = "some belong to one patient and may name them" if named else "they may name patients"
        note = f"The folder names were not taken as classes, because {why}. If they are classes, pass --labels."
        return _without_labels(items), [note]
    return _without_labels(items), []


def load_item(item: Item, _: Plan, settings: PrepareSettings) -> Loaded:
    """Read one picture and bring it to colour, depth and size."""
    path = item.files[0][1]
    pixels = pictures.read_picture(path, color=settings.color)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return Loaded(
        images=(make_picture(pixels, item, settings),), digest=digest, aspect=pixels.shape[2] / pixels.shape[1]
    )


def make_picture(pixels: Pixels, item: Item, settings: PrepareSettings) -> MadeImage:
    """Bring pixels (C, H, W) to the borders, depth and size of the settings."""
    place = Placement.of(pixels.shape[1:])
    if settings.crop_borders:
        content = geometry.find_content(pixels)
        if content is None:
            raise PictureError(f"{item.source} is black all over. Remove the file or pass --on-bad-file skip.")
        pixels = pixels[:, content[0], content[1]]
        place = place.cropped(content[0].start, content[1].start)
    if settings.depth != "auto":
        pixels = pictures.change_depth(pixels, int(settings.depth))
    if settings.size is not None:
        place = place.fitted(pixels.shape[1:], settings.size, fit=settings.fit)
        pixels = np.stack([geometry.fit_plane(plane, settings.size, fit=settings.fit) for plane in pixels])
    return MadeImage(np.ascontiguousarray(pixels), {"slice": -1, "label": item.label} | place.as_record())
