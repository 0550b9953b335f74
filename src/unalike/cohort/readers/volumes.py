"""Volumes: the channels of one scan make one item; its slices become images."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

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
from unalike.cohort.readers.attributes import place_slice
from unalike.cohort.recipes import Layout
from unalike.cohort.settings import PrepareSettings
from unalike.errors import InputError, PictureError, SettingsError
from unalike.images import geometry, volumes
from unalike.images.geometry import Placement
from unalike.images.pictures import change_depth
from unalike.images.volumes import Volume
from unalike.records import MASK, IntArray, Pixels

# Names under which a label volume goes; it becomes the channel "mask".
MASK_NAMES = frozenset({"seg", "mask", "label", "labels"})
FACE = "face"
_ACROSS = {"sagittal": (1, 2), "coronal": (0, 2), "axial": (0, 1)}


def plan_items(source: Path, layout: Layout, settings: PrepareSettings) -> Plan:
    """Files of one scan and different channels make one item.

    Unless ``stretch`` is asked for, all volumes share one scale (pixels per pixel of the source), chosen from the
    headers so that the largest fits ``size`` and none is enlarged: anatomy keeps its relative size between subjects.
    """
    if settings.size is None:
        raise SettingsError(f"--recipe {settings.recipe} needs --size, the height and width of the slices in pixels.")
    scans, notes = _group_files(source, layout, settings)
    channels = choose_channels(settings.channels, {name for scan in scans for name in scan.files}, layout)
    items = [
        Item(
            source=name_below(min(scan.files.values()), source),
            subject=scan.subject,
            label=scan.label,
            published=published_role(min(scan.files.values()).relative_to(source).parts[:-1]),
            files=tuple((name, scan.files[name]) for name in (*channels, *layout.guides) if name in scan.files),
        )
        for scan in scans
        if any(channel in scan.files for channel in channels)
    ]
    items = choose_classes(items, settings)
    # A recipe that says what a patient's name is needs no assumption.
    says = settings.recipe != "nifti" and all("subject" in entry.pattern.groupindex for entry in layout.files)
    if settings.subject_pattern is None and not says:
        notes.append(ASSUMED.format(what="scan (named by its file)"))
    return Plan(
        items=tuple(items),
        channels=channels,
        notes=tuple(notes),
        scale=common_scale((_extent(item.files[0][1], settings) for item in items), settings),
        unit="volumes",
        mask_scale=spread_labels(settings, max(settings.mask_labels, default=0)),
        labels_by_lesion=layout.labels_by_lesion,
    )


@dataclass
class _Found:
    """Files of one scan, as they are found."""

    subject: str
    label: str = ""
    files: dict[str, Path] = field(default_factory=dict)


def _group_files(source: Path, layout: Layout, settings: PrepareSettings) -> tuple[list[_Found], list[str]]:
    """The source's volumes by patient and scan, in order of their names, and notes."""
    subject_pattern = compile_pattern(settings.subject_pattern, "--subject-pattern")
    channel_pattern = compile_pattern(settings.channel_pattern, "--channel-pattern")
    files, notes = walk_files(source, volumes.SUFFIXES)
    scans: dict[tuple[str, str], _Found] = {}
    left_out = 0
    for path in files:
        inside = name_below(path, source)
        named = _match_layout(inside, layout)
        if named is None and not (channel_pattern and subject_pattern):
            left_out += 1
            continue
        scan, subject, channel, label = named or (inside, inside, "image", "")
        if channel_pattern and channel not in layout.guides:
            channel = _canonical(match_pattern(channel_pattern, inside, "--channel-pattern"))
        if subject_pattern:
            subject = match_pattern(subject_pattern, inside, "--subject-pattern")
            scan = scan if named and scan != named[1] else subject
        found = scans.setdefault((subject, scan), _Found(subject))
        if channel in found.files:
            raise InputError(
                f"{inside} and {name_below(found.files[channel], source)} are both the {channel} of {scan}. "
                "Tell them apart with --subject-pattern or --channel-pattern."
            )
        found.files[channel] = path
        found.label = (label or found.label) if settings.labels is not False else ""
    if not scans:
        raise NoSuchFiles(f"none of the {len(files)} volumes of {source} lies where the recipe expects them.")
    if left_out:
        notes.append(f"{left_out} of {len(files)} volumes lie elsewhere than the recipe says: left out.")
    return [scans[key] for key in sorted(scans)], notes


def _match_layout(inside: str, layout: Layout) -> tuple[str, str, str, str] | None:
    """Scan, subject, channel and class of a path by the layout's patterns; None if it is left out."""
    if layout.exclude and layout.exclude.search(inside):
        return None
    for entry in layout.files:
        found = entry.pattern.search(inside)
        if found:
            groups = found.groupdict()
            subject = groups.get("subject") or inside
            channel = entry.channel or groups.get("channel") or "image"
            return groups.get("scan") or subject, subject, _canonical(channel), groups.get("label") or ""
    return None


def _canonical(channel: str) -> str:
    channel = channel.lower()
    return MASK if channel in MASK_NAMES else "image" if channel == "images" else channel


def choose_channels(wanted: tuple[str, ...], there: set[str], layout: Layout) -> tuple[str, ...]:
    """Channels to store, the mask last; all that are ``there`` unless some are ``wanted``."""
    found, has_mask = sorted(there - {MASK} - set(layout.guides)), MASK in there
    if not found:
        raise InputError("the source holds masks alone, and so nothing to compare. Add volumes, or --channel-pattern.")
    if not wanted:
        # The paper's order where the names are the paper's.
        paper = ["t1", "t1ce", "t2", "flair"]
        ordered = [name for name in paper if name in found] + [name for name in found if name not in paper]
        return (*ordered, MASK) if has_mask else tuple(ordered)
    unknown = [name for name in wanted if name not in found and not (name == MASK and has_mask)]
    if unknown:
        names = ", ".join([*found, *([MASK] if has_mask else [])])
        raise SettingsError(f"--channels: {', '.join(unknown)} not found; there are {names}.")
    if set(wanted) == {MASK}:
        raise SettingsError("--channels: a mask alone has nothing to compare. Add an image channel.")
    return tuple(sorted(wanted, key=lambda name: name == MASK))


def spread_labels(settings: PrepareSettings, highest: int) -> int:
    """Gray levels per label: what was asked for, or as many as fit."""
    if settings.mask_scale:
        return settings.mask_scale
    if not 1 <= highest <= 255:
        raise SettingsError("--mask-scale 0 spreads labels, so it needs --mask-labels, from 1 to 255.")
    return 255 // highest


Extent = tuple[Sequence[int], Sequence[float]]


def _extent(path: Path, settings: PrepareSettings) -> Extent | None:
    """Shape and spacing after resampling and cropping, from the header; None if it cannot be read (said later)."""
    try:
        shape, spacing = volumes.read_extent(path)
    except PictureError:
        return None
    return planned_extent(shape, spacing, settings)


def planned_extent(shape: Sequence[int], spacing: Sequence[float], settings: PrepareSettings) -> Extent:
    """Shape and spacing that a volume has after resampling and cropping."""
    if settings.spacing:
        shape = [
            max(1, round(side * old / new)) for side, old, new in zip(shape, spacing, settings.spacing, strict=True)
        ]
        spacing = settings.spacing
    return settings.crop or shape, spacing


def common_scale(extents: Iterable[Extent | None], settings: PrepareSettings) -> float:
    """Stored pixels per (square) pixel of the source's slices: the largest volume fits ``size``, none is enlarged.

    A common crop makes all alike: they are enlarged, too.
    """
    if settings.fit == "stretch":
        return 1.0
    across = _ACROSS[settings.axis]
    largest = []
    for extent in extents:
        if extent is not None:
            shape, spacing = extent
            sides = [shape[index] * spacing[index] / min(spacing[i] for i in across) for index in across]
            largest.append(max(sides) if settings.fit == "pad" else min(sides))
    if not largest:
        return 1.0
    scale = (settings.size or 0) / max(largest)
    return scale if settings.crop else min(1.0, scale)


def load_item(item: Item, plan: Plan, settings: PrepareSettings) -> Loaded:
    """Read, resample, scale and slice the volumes of one scan."""
    files = dict(item.files)
    missing = [channel for channel in plan.channels if channel not in files]
    if missing:
        raise PictureError(f"{item.source}: no {', '.join(missing)} volume. Add it or pass --on-bad-file skip.")
    read: dict[str, Volume] = {}
    hasher = hashlib.sha256()
    for channel, path in item.files:
        component = item.detail.get(channel) if item.detail else None
        read[channel] = volumes.read_volume(path, component=component)
        hasher.update(read[channel].digest.encode())
    first = plan.channels[0]
    remarks = (FACE,) if volumes.shows_face(read[first]) else ()
    gridded = bring_to_one_grid(read, first, files, settings)
    images = cut_images(Scan(item, gridded, {name: path.name for name, path in files.items()}), plan, settings)
    return Loaded(images=images, digest=hasher.hexdigest(), remarks=remarks)


def bring_to_one_grid(
    read: Mapping[str, Volume], first: str, files: Mapping[str, Path], settings: PrepareSettings
) -> dict[str, Volume]:
    """Volumes on the grid of the ``first``, resampled and cropped as asked for."""
    like = reshape_volume(read[first], settings, labels=False)
    result = {first: like}
    for channel, volume in read.items():
        labels = channel not in files or _is_labels(channel, settings)
        if channel == first:
            continue
        if settings.resample_channels:
            result[channel] = volumes.resample_like(volume, like=like, labels=labels)
        elif not volumes.same_grid(volume, read[first]):
            raise PictureError(
                f"{files[channel]} lies on another grid than {files[first].name} (shape, spacing or position). "
                "Pass --resample-channels, or --on-bad-file skip."
            )
        else:
            result[channel] = reshape_volume(volume, settings, labels=labels)
    return result


def _is_labels(channel: str, settings: PrepareSettings) -> bool:
    return channel == MASK or (settings.slice_choice == "lesion" and channel in {"organ", "lesion"})


def reshape_volume(volume: Volume, settings: PrepareSettings, *, labels: bool) -> Volume:
    """Resample and crop as the settings say."""
    if settings.spacing:
        volume = volumes.resample_volume(volume, spacing=settings.spacing, labels=labels)
    return volumes.crop_volume(volume, shape=settings.crop) if settings.crop else volume


@dataclass(frozen=True)
class Scan:
    """Volumes of one item on one grid, and what each was called, for errors."""

    item: Item
    volumes: Mapping[str, Volume]
    names: Mapping[str, str]
    windowed: bool = False  # intensities are gray levels from 0 to 255 already


def cut_images(scan: Scan, plan: Plan, settings: PrepareSettings) -> tuple[MadeImage, ...]:
    """Gray levels, the chosen slices, and the final size, for one scan."""
    volume = scan.volumes[plan.channels[0]]
    stacks = [_slice(volume, _gray_levels(scan, name, plan, settings), settings) for name in plan.channels]
    spacing = volumes.slice_volume(volume, settings.axis)[1]
    label = scan.item.label
    if settings.slice_choice == "lesion":
        row, has_lesion = _choose_by_lesion(scan, settings)
        rows, label = np.array([row]), plan.labels_by_lesion[int(has_lesion)]
    else:
        rows = _choose_by_content(stacks, plan.channels, settings)
    images, placement = _fit_slices(stacks, rows, spacing, plan, settings)
    affine, about = volumes.slice_affine(volume, settings.axis), {"label": label} | placement.as_record()
    depth = len(stacks[0])
    records = (
        {"slice": row, "affine": (affine @ placement.as_matrix(row)).ravel().tolist()}
        | about
        | {"attributes": place_slice(row, depth, settings)}
        for row in rows.tolist()
    )
    return tuple(MadeImage(image, record) for image, record in zip(images, records, strict=True))


def _slice(volume: Volume, levels: Pixels, settings: PrepareSettings) -> Pixels:
    stack, _ = volumes.slice_volume(replace(volume, voxels=levels), settings.axis)
    return stack


def _gray_levels(scan: Scan, channel: str, plan: Plan, settings: PrepareSettings) -> Pixels:
    """One channel's voxels as gray levels, 8 or 16 bits."""
    voxels = scan.volumes[channel].voxels
    if channel == MASK:
        return _scale_mask(voxels, scan.names[channel], plan.mask_scale, settings)
    bits = 16 if settings.depth == "16" else 8
    if scan.windowed:
        levels: Pixels = np.rint(np.clip(voxels, 0, 255) * ((2**bits - 1) / 255))
        return levels.astype(np.uint16 if bits == 16 else np.uint8)
    return volumes.scale_intensity(voxels, percentiles=settings.percentiles, bits=16 if bits == 16 else 8)


def _scale_mask(labels: Any, name: str, scale: int, settings: PrepareSettings) -> Pixels:
    """Labels as gray levels; anything but whole labels that fit into 0–255 and the map is refused."""
    lowest, highest = float(labels.min()), int(labels.max())
    floating = not np.issubdtype(labels.dtype, np.integer)
    if lowest < 0 or (floating and (labels != np.rint(labels)).any()):
        raise PictureError(f"{name} is taken as a mask but does not hold whole labels. Check --channel-pattern.")
    if highest * scale > 255:
        raise PictureError(
            f"{name} has label {highest}, which times --mask-scale {scale} is above 255. Lower --mask-scale."
        )
    levels: Pixels = labels.astype(np.uint8)  # keeps the order in memory
    if settings.mask_labels:
        # Most of a mask is background: what is left is few.
        line = levels.ravel(order="K")
        odd = sorted(set(np.unique(line[line != 0]).tolist()) - set(settings.mask_labels))
        if odd:
            known = ", ".join(map(str, settings.mask_labels))
            raise PictureError(
                f"{name} has label {odd[0]}, which is none of {known}. Mend it, change --mask-labels, or pass "
                "--on-bad-file skip."
            )
    levels *= np.uint8(scale)
    return levels


def _choose_by_content(stacks: Sequence[Pixels], channels: tuple[str, ...], settings: PrepareSettings) -> IntArray:
    """Slices with enough content, thinned evenly to at most ``settings.slices``."""
    seen = [stack for stack, name in zip(stacks, channels, strict=True) if name != MASK]
    top = settings.content_above * (257 if seen[0].dtype == np.uint16 else 1)
    brightest = functools.reduce(np.maximum, seen)
    shares = np.asarray([np.count_nonzero(plane > top) / plane.size for plane in brightest])
    rows = np.flatnonzero(shares >= settings.least_content)
    if settings.slices is not None and len(rows) > settings.slices:
        # Middles of equal stretches: one slice is the middle one.
        places = (np.arange(settings.slices) + 0.5) * len(rows) / settings.slices
        rows = rows[places.astype(int)]
    return rows


def _choose_by_lesion(scan: Scan, settings: PrepareSettings) -> tuple[int, bool]:
    """The slice with most tumour, or without tumour the organ's median slice (de Wilde et al. 2023, 3.3.1)."""
    areas = {
        name: (_slice(scan.volumes[name], scan.volumes[name].voxels, settings) > 0).sum(axis=(1, 2))
        for name in ("lesion", "organ")
        if name in scan.volumes
    }
    if "lesion" not in areas:
        raise PictureError(f"{scan.item.source}: no lesion mask. Add it (empty without lesion) or skip the scan.")
    if areas["lesion"].any():
        return int(areas["lesion"].argmax()), True
    rows = np.flatnonzero(areas.get("organ", np.zeros(1)))
    if not len(rows):
        raise PictureError(
            f"{scan.item.source}: no lesion, and no organ mask within the crop. Add it or skip the scan."
        )
    return int(rows[(len(rows) - 1) // 2]), False


def _fit_slices(
    stacks: Sequence[Pixels],
    rows: IntArray,
    spacing: tuple[float, float],
    plan: Plan,
    settings: PrepareSettings,
) -> tuple[Pixels, Placement]:
    """Chosen slices as images (n, C, H, W): square pixels, the common scale, then padded or cropped to the size."""
    shape = stacks[0].shape[1:]
    size = settings.size or max(shape)
    inner = (size, size)
    if settings.fit != "stretch":
        height, width = (
            max(1, round(side * step / min(spacing) * plan.scale)) for side, step in zip(shape, spacing, strict=True)
        )
        inner = (height, width)
    bits = 16 if settings.depth == "16" else 8
    # Neighbours, as chosen slices mostly are, need not be copied first.
    run = len(rows) > 0 and rows[-1] - rows[0] + 1 == len(rows)
    chosen = [stack[rows[0] : rows[-1] + 1] if run else stack[rows] for stack in stacks]
    images = np.zeros((len(rows), len(stacks), size, size), np.uint16 if bits == 16 else np.uint8)
    for target, planes, channel in zip(images.swapaxes(0, 1), chosen, plan.channels, strict=True):
        planes = change_depth(planes, bits)
        if inner == shape:
            geometry.center_into(target, planes)  # all at once
            continue
        for place, plane in zip(target, planes, strict=True):
            geometry.center_into(place, geometry.resize_plane(plane, *inner, labels=channel == MASK))
    return images, Placement.of(shape).resized(shape, inner).centered(inner, (size, size))
