"""Recipes: how a source folder becomes images.

A recipe plans first (which files make one item, whose they are) and loads later, item by item, so that
loading can run in parallel. `RECIPES` maps each name to its two functions.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from unalike import folders
from unalike.cohort.settings import PrepareSettings
from unalike.errors import InputError, PictureError, SettingsError
from unalike.images import geometry, pictures, volumes
from unalike.records import MASK

# Names under which a label volume goes; it becomes the channel "mask".
MASK_NAMES = frozenset({"seg", "mask", "label", "labels"})
# Known layouts: BraTS (subject_t1.nii.gz), its like (subject/t1.nii.gz), the Medical Segmentation Decathlon.
_BRATS = re.compile(r"(?P<subject>[^/]+)_(?P<channel>t1ce|t1gd|t1|t2|flair|seg|mask|label)\.nii(\.gz)?$", re.I)
_FOLDER_PER_SCAN = re.compile(r"(?P<subject>.+)/(?P<channel>t1ce|t1gd|t1|t2|flair|seg|mask|label)\.nii(\.gz)?$", re.I)
_DECATHLON = re.compile(r"(^|/)(?P<channel>images|labels)T[rs]/(?P<subject>[^/]+?)\.nii(\.gz)?$")
_TRAIN_NAMES = frozenset({"train", "training"})
_HELD_NAMES = frozenset({"test", "testing", "val", "valid", "validation"})


@dataclass(frozen=True)
class Item:
    """What is loaded at once: a picture, or the volumes of one scan.

    ``published`` is the role that a train or test folder of the source gives, or "".
    """

    source: str  # path below the source folder
    subject: str
    label: str
    published: str
    files: tuple[tuple[str, Path], ...]  # (channel, file); the mask last


@dataclass(frozen=True)
class Plan:
    """All items of a source, what each channel is called, and what was assumed on the way."""

    items: tuple[Item, ...]
    channels: tuple[str, ...]
    notes: tuple[str, ...]
    scale: float = 1.0  # pixels per millimetre-step of volumes; see `plan_nifti`


@dataclass(frozen=True)
class Loaded:
    """Images of one item: arrays (C, H, W), their slice indices, and the digest of the files' bytes."""

    images: tuple[npt.NDArray[Any], ...]
    slices: tuple[int, ...]
    digest: str
    aspect: float  # width by height of the source, before it was fitted


@dataclass(frozen=True)
class BadFile:
    """An item that could not be loaded, and why (a `PictureError`'s words)."""

    source: str
    reason: str


def _walk(source: Path, suffixes: tuple[str, ...] | frozenset[str]) -> list[Path]:
    """Files below ``source`` with these suffixes, sorted; hidden files and macOS resource forks left out."""
    if not source.exists():
        raise InputError(f"{source} does not exist. Check the path.")
    if not source.is_dir():
        raise InputError(f"{source} is a file; give the folder that holds the images.")
    found = [
        path
        for path in source.rglob("*")
        if path.name.lower().endswith(tuple(suffixes)) and path.is_file() and not _is_foreign(path, source)
    ]
    if not found:
        wanted = ", ".join(sorted(suffixes))
        raise InputError(f"{source} holds no {wanted} file. Check the path and --recipe.")
    return sorted(found)


def _is_foreign(path: Path, source: Path) -> bool:
    """Whether a file is hidden (".trash/x.png", "._x.png") or lies in a folder that unalike made."""
    inside = path.relative_to(source)
    if any(part.startswith(".") for part in inside.parts):
        return True
    return any(folders.is_ours(source / parent) for parent in inside.parents)


def _name(path: Path, source: Path) -> str:
    """Path below the source as text that any file can hold, also where a file name is not UTF-8."""
    return os.fsencode(path.relative_to(source).as_posix()).decode("utf-8", "backslashreplace")


def _compile(pattern: str | None, option: str) -> re.Pattern[str] | None:
    if pattern is None:
        return None
    try:
        return re.compile(pattern)
    except re.error as error:
        raise SettingsError(f"{option} {pattern!r} is no regular expression ({error}).") from error


def _named(pattern: re.Pattern[str], path: str, option: str) -> str:
    """First group (or whole match) of ``pattern`` in ``path``."""
    found = pattern.search(path)
    text = (found.group(1) if pattern.groups else found.group(0)) if found else ""
    if not text:
        raise SettingsError(f"{option} {pattern.pattern!r} does not match {path}. Change the pattern.")
    return text


def _published(parts: tuple[str, ...]) -> str:
    for part in parts:
        if part.lower() in _TRAIN_NAMES:
            return "train"
        if part.lower() in _HELD_NAMES:
            return "holdout"
    return ""


def plan_folder(source: Path, settings: PrepareSettings) -> Plan:
    """Pictures; the class is the name of the innermost sub-folder that is no train or test folder."""
    pattern = _compile(settings.subject_pattern, "--subject-pattern")
    items = []
    for path in _walk(source, pictures.SUFFIXES):
        inside = _name(path, source)
        parents = inside.split("/")[:-1]
        classes = [part for part in parents if not _published((part,))]
        items.append(
            Item(
                source=inside,
                subject=_named(pattern, inside, "--subject-pattern") if pattern else inside,
                label=classes[-1] if classes and settings.labels else "",
                published=_published(tuple(parents)),
                files=(("picture", path),),
            )
        )
    items, notes = _hide_names(items)
    if pattern is None:
        notes.append(_ASSUMED.format(what="file"))
    return Plan(items=tuple(items), channels=(), notes=tuple(notes))


def _hide_names(items: list[Item]) -> tuple[list[Item], list[str]]:
    """Take the labels away if they name patients: one folder per patient is a common layout, and no class."""
    owners: dict[str, set[str]] = {}
    for item in items:
        owners.setdefault(item.label, set()).add(item.subject)
    labels = set(owners) - {""}
    if not labels:
        return items, []
    if len(labels) > 1 and all(len(owners[label]) == 1 for label in labels):
        note = "The folder names were not taken as classes, because each belongs to one patient and may name them."
        return [replace(item, label="") for item in items], [note]
    shown = ", ".join(sorted(labels)[:6]) + (", …" if len(labels) > 6 else "")
    return items, [f"The folder names are the classes: {shown}. If they name patients, pass --no-labels."]


_ASSUMED = (
    "Assumption: each {what} is taken as a patient of its own, because no --subject-pattern was given. "
    "If patients have several, intervals are too narrow and the split may leak."
)


def load_folder(item: Item, _: Plan, settings: PrepareSettings) -> Loaded:
    """Read one picture and bring it to colour, depth and size."""
    path = item.files[0][1]
    image = pictures.read_picture(path, color=settings.color)
    aspect = image.shape[2] / image.shape[1]
    if settings.depth != "auto":
        image = pictures.change_depth(image, int(settings.depth))
    if settings.size is not None:
        image = np.stack([geometry.fit_plane(plane, settings.size, fit=settings.fit) for plane in image])
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return Loaded(images=(image,), slices=(-1,), digest=digest, aspect=aspect)


def _subject_and_channel(
    path: str, subjects: re.Pattern[str] | None, channels: re.Pattern[str] | None
) -> tuple[str, str]:
    """Scan and channel of a NIfTI path, by the user's patterns or by the two well-known layouts."""
    known = _BRATS.search(path) or _DECATHLON.search(path) or _FOLDER_PER_SCAN.search(path)
    if channels:
        channel = _named(channels, path, "--channel-pattern")
    else:
        channel = known["channel"].lower() if known else "image"
    if subjects:
        subject = _named(subjects, path, "--subject-pattern")
    else:
        subject = known["subject"] if known else re.sub(r"\.nii(\.gz)?$", "", path)
    return subject, MASK if channel in MASK_NAMES else "image" if channel == "images" else channel


def plan_nifti(source: Path, settings: PrepareSettings) -> Plan:
    """Volumes; files of one subject and different channels make one scan.

    Unless ``stretch`` is asked for, all volumes share one scale (pixels per millimetre), chosen from the headers so
    that the largest fits ``size`` and none is enlarged: anatomy keeps its relative size between subjects.
    """
    if settings.size is None:
        raise SettingsError("--recipe nifti needs --size, the height and width of the slices in pixels.")
    subject_pattern = _compile(settings.subject_pattern, "--subject-pattern")
    channel_pattern = _compile(settings.channel_pattern, "--channel-pattern")
    scans: dict[str, dict[str, Path]] = {}
    for path in _walk(source, volumes.SUFFIXES):
        inside = _name(path, source)
        subject, channel = _subject_and_channel(inside, subject_pattern, channel_pattern)
        if channel in scans.setdefault(subject, {}):
            raise InputError(
                f"{inside} and {_name(scans[subject][channel], source)} are both the {channel} of {subject}. "
                "Tell them apart with --subject-pattern or --channel-pattern."
            )
        scans[subject][channel] = path
    found = sorted({channel for files in scans.values() for channel in files} - {MASK})
    has_mask = any(MASK in files for files in scans.values())
    channels = _choose_channels(settings.channels, found, has_mask)
    items = tuple(
        Item(
            source=_name(min(files.values()), source),
            subject=subject,
            label="",
            published=_published(min(files.values()).relative_to(source).parts[:-1]),
            files=tuple((channel, files[channel]) for channel in channels if channel in files),
        )
        for subject, files in sorted(scans.items())
    )
    notes = () if subject_pattern else (_ASSUMED.format(what="scan (named by its file)"),)
    return Plan(items=items, channels=channels, notes=notes, scale=_common_scale(items, settings))


def _choose_channels(wanted: tuple[str, ...], found: list[str], has_mask: bool) -> tuple[str, ...]:
    if not wanted:
        # The paper's order where the names are the paper's.
        paper = ["t1", "t1ce", "t2", "flair"]
        ordered = [name for name in paper if name in found] + [name for name in found if name not in paper]
        return (*ordered, MASK) if has_mask else tuple(ordered)
    unknown = [name for name in wanted if name not in found and not (name == MASK and has_mask)]
    if unknown:
        there = ", ".join([*found, *([MASK] if has_mask else [])])
        raise SettingsError(f"--channels: {', '.join(unknown)} not found; there are {there}.")
    if set(wanted) == {MASK}:
        raise SettingsError("--channels: a mask alone has nothing to compare. Add an image channel.")
    return tuple(sorted(wanted, key=lambda name: name == MASK))


def _common_scale(items: tuple[Item, ...], settings: PrepareSettings) -> float:
    if settings.fit == "stretch":
        return 1.0
    across = [index for index in range(3) if index != {"sagittal": 0, "coronal": 1, "axial": 2}[settings.axis]]
    extents = []
    for item in items:
        try:
            shape, spacing = volumes.read_extent(item.files[0][1])
        except PictureError:
            continue  # reported when the volume is loaded
        sides = [shape[index] * spacing[index] / min(spacing[i] for i in across) for index in across]
        extents.append(max(sides) if settings.fit == "pad" else min(sides))
    return min(1.0, (settings.size or 0) / max(extents)) if extents else 1.0


def load_nifti(item: Item, plan: Plan, settings: PrepareSettings) -> Loaded:
    """Read, scale and slice the volumes of one scan."""
    missing = [channel for channel in plan.channels if channel not in dict(item.files)]
    if missing:
        raise PictureError(f"{item.source}: no {', '.join(missing)} volume. Add it or pass --on-bad-file skip.")
    stacks: list[npt.NDArray[np.uint8]] = []
    grids: list[volumes.Volume] = []
    spacing, hasher = (1.0, 1.0), hashlib.sha256()
    for channel, path in item.files:
        volume = volumes.read_volume(path)
        hasher.update(path.read_bytes())
        voxels = _scale_mask(volume.voxels, path, settings) if channel == MASK else None
        if voxels is None:
            voxels = volumes.scale_intensity(volume.voxels, percentiles=settings.percentiles)
        stack, spacing = volumes.slice_volume(replace(volume, voxels=voxels.astype(np.float32)), settings.axis)
        grids.append(volume)
        if not volumes.same_grid(volume, grids[0]):
            raise PictureError(
                f"{path} lies on another grid than {item.files[0][1].name} (shape, spacing or position). "
                "Resample them or pass --on-bad-file skip."
            )
        stacks.append(stack.astype(np.uint8))
    kept = _choose_slices(np.stack(stacks, axis=1), plan.channels, settings)
    images = tuple(_fit_slice(image, spacing, plan, settings) for _, image in kept)
    return Loaded(images=images, slices=tuple(index for index, _ in kept), digest=hasher.hexdigest(), aspect=1.0)


def _scale_mask(labels: npt.NDArray[np.float32], path: Path, settings: PrepareSettings) -> npt.NDArray[np.uint8]:
    """Labels as gray levels; anything but whole labels that fit into 0–255 is refused."""
    if (labels != np.rint(labels)).any() or labels.min() < 0:
        raise PictureError(f"{path} is taken as a mask but does not hold whole labels. Check --channel-pattern.")
    if labels.max() * settings.mask_scale > 255:
        raise PictureError(
            f"{path} has label {int(labels.max())}, which times --mask-scale {settings.mask_scale} is above 255. "
            "Lower --mask-scale."
        )
    return (labels * settings.mask_scale).astype(np.uint8)


def _choose_slices(
    stack: npt.NDArray[np.uint8], channels: tuple[str, ...], settings: PrepareSettings
) -> list[tuple[int, npt.NDArray[np.uint8]]]:
    """Slices (C, H, W) with enough content, thinned evenly to at most ``settings.slices``."""
    seen = stack[:, [index for index, name in enumerate(channels) if name != MASK]]
    content = (seen > settings.content_above).any(axis=1).mean(axis=(1, 2))
    rows = np.flatnonzero(content >= settings.least_content)
    if settings.slices is not None and len(rows) > settings.slices:
        # Middles of equal stretches: one slice is the middle one.
        places = (np.arange(settings.slices) + 0.5) * len(rows) / settings.slices
        rows = rows[places.astype(int)]
    return [(int(row), stack[row]) for row in rows]


def _fit_slice(
    image: npt.NDArray[np.uint8], spacing: tuple[float, float], plan: Plan, settings: PrepareSettings
) -> npt.NDArray[np.uint8]:
    """Square pixels, the common scale, then pad or crop around the middle."""
    size, planes = settings.size or max(image.shape[1:]), []
    height, width = (
        max(1, round(side * step / min(spacing) * plan.scale))
        for side, step in zip(image.shape[1:], spacing, strict=True)
    )
    for channel, plane in zip(plan.channels, image, strict=True):
        labels = channel == MASK
        if settings.fit == "stretch":
            planes.append(geometry.resize_plane(plane, size, size, labels=labels))
        else:
            planes.append(geometry.center(geometry.resize_plane(plane, height, width, labels=labels), size, size))
    return np.stack(planes)


Planner = Callable[[Path, PrepareSettings], Plan]
Loader = Callable[[Item, Plan, PrepareSettings], Loaded]
RECIPES: dict[str, tuple[Planner, Loader]] = {
    "folder": (plan_folder, load_folder),
    "nifti": (plan_nifti, load_nifti),
}


def find_recipe(name: str) -> tuple[Planner, Loader]:
    """Planner and loader of a recipe; an unknown name is a `SettingsError` that lists the known ones."""
    if name not in RECIPES:
        raise SettingsError(f"--recipe {name} is unknown. Use one of: {', '.join(sorted(RECIPES))}.")
    return RECIPES[name]
