"""DICOM: the files of one series make one item; or all series of a study that share a frame of reference."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from unalike.cohort.plan import (
    Item,
    Loaded,
    MadeImage,
    NoSuchFiles,
    Plan,
    compile_pattern,
    match_pattern,
    name_below,
    walk_files,
)
from unalike.cohort.readers.pictures import make_picture
from unalike.cohort.readers.volumes import Scan, bring_to_one_grid, common_scale, cut_images, planned_extent
from unalike.cohort.recipes import Layout
from unalike.cohort.settings import PrepareSettings
from unalike.errors import InputError, PictureError, SettingsError
from unalike.images import dicom, pictures, volumes
from unalike.images.dicom import DicomPixels, Series

IMAGE = "image"


def plan_items(source: Path, _: Layout, settings: PrepareSettings) -> Plan:
    """One item a series, or a study whose series' descriptions ``--channel-pattern`` tells apart.

    Series that cannot be used stay as items, so that they are said when they are read.
    """
    if settings.size is None:
        raise SettingsError(f"--recipe {settings.recipe} needs --size, the height and width of the images in pixels.")
    files, notes = walk_files(source)
    found, foreign = dicom.scan_dicom(files)
    if not found:
        raise NoSuchFiles(f"{source} holds no DICOM series. Check the path and --recipe.")
    if foreign:
        notes.append(f"{len(foreign)} of {len(files)} files are no DICOM images: left out.")
    wanted = []
    for series in found:
        refused = dicom.refuse_reason(series, derived=settings.derived)
        if not refused:
            wanted.append(series)
    if not wanted:
        raise InputError(
            f"all {len(found)} series are refused; the first: {dicom.refuse_reason(found[0], derived=False)}"
        )
    if len(wanted) < len(found):
        notes.append(
            f"{len(found) - len(wanted)} derived or localizer series were left out. Pass --derived to take them."
        )
    items, channels = _make_items(wanted, source, settings)
    if settings.subject_pattern is None and any(not series.patient for series in wanted):
        notes.append("Some series have no PatientID: each of their studies is taken as a patient of its own.")
    extents = [planned_extent(series.shape, series.spacing, settings) for series in wanted if not series.problem]
    return Plan(
        items=tuple(items), channels=channels, notes=tuple(notes), scale=common_scale(extents, settings), unit="series"
    )


def _make_items(
    wanted: Sequence[Series], source: Path, settings: PrepareSettings
) -> tuple[list[Item], tuple[str, ...]]:
    pattern = compile_pattern(settings.subject_pattern, "--subject-pattern")
    by_channel = compile_pattern(settings.channel_pattern, "--channel-pattern")
    groups: dict[tuple[str, str], dict[str, Series]] = {}
    for series in wanted:
        channel, group = IMAGE, (series.study, series.uid or str(series.files[0]))
        if by_channel:
            named = by_channel.search(series.description)
            if not named:
                continue
            channel = (named.group(1) if by_channel.groups else named.group(0)).lower()
            group = (series.study, series.frame_of_reference)
        if channel in groups.setdefault(group, {}):
            one, other = (name_below(each.files[0], source) for each in (series, groups[group][channel]))
            raise InputError(
                f"{one} and {other} begin two series of one study that are both {channel}. Tell them apart with "
                "--channel-pattern."
            )
        groups[group][channel] = series
    if not groups:
        raise SettingsError(f"--channel-pattern {settings.channel_pattern!r} matches no series description.")
    found = sorted({channel for series in groups.values() for channel in series})
    unknown = [name for name in settings.channels if name not in found]
    if unknown:
        raise SettingsError(f"--channels: {', '.join(unknown)} not found; there are {', '.join(found)}.")
    channels = settings.channels or tuple(found)
    items = [_make_item(series, channels, source, pattern) for series in groups.values() if set(series) & set(channels)]
    return sorted(items, key=lambda item: item.source), channels if by_channel else ()


def _make_item(group: Mapping[str, Series], channels: Sequence[str], source: Path, pattern: Any) -> Item:
    chosen = {channel: group[channel] for channel in channels if channel in group}
    first = next(iter(chosen.values()))
    inside = name_below(first.files[0], source)
    subject = first.patient or first.study
    return Item(
        source=inside,
        subject=match_pattern(pattern, inside, "--subject-pattern") if pattern else subject,
        files=tuple((channel, path) for channel, series in chosen.items() for path in series.files),
        detail=chosen,
    )


def load_item(item: Item, plan: Plan, settings: PrepareSettings) -> Loaded:
    """Read a series, or the series of a study as channels; stacks are sliced, single frames are pictures."""
    chosen: Mapping[str, Series] = item.detail
    missing = [channel for channel in plan.channels if channel not in chosen]
    if missing:
        raise PictureError(
            f"{item.source}: its study has no {', '.join(missing)} series that shares its frame of reference."
        )
    for series in chosen.values():
        if series.problem:
            raise PictureError(series.problem)
    read = {name: dicom.read_series(series, window=settings.window) for name, series in chosen.items()}
    digest = hashlib.sha256("".join(pixels.digest for pixels in read.values()).encode()).hexdigest()
    stacks = {name: pixels.volume for name, pixels in read.items() if pixels.volume is not None}
    if not stacks:
        images = _frames(read, item, settings)
    elif len(stacks) < len(read):
        raise PictureError(f"{item.source}: some of the study's series are stacks and some are not.")
    else:
        names = {name: series.files[0] for name, series in chosen.items()}
        first = next(iter(stacks))
        gridded = bring_to_one_grid(stacks, first, names, settings)
        scan = Scan(
            item,
            gridded,
            {name: path.name for name, path in names.items()},
            windowed=all(pixels.windowed for pixels in read.values()),
        )
        images = cut_images(scan, replace(plan, channels=tuple(stacks)), settings)
    remarks = [
        *(["burned-in"] if any(series.burned_in == "YES" for series in chosen.values()) else []),
        *(["head"] if any(series.head and not series.defaced for series in chosen.values()) else []),
    ]
    return Loaded(images=images, digest=digest, remarks=tuple(remarks))


def _frames(read: Mapping[str, DicomPixels], item: Item, settings: PrepareSettings) -> tuple[MadeImage, ...]:
    """Frames without positions, each a picture."""
    if len(read) > 1:
        raise PictureError(f"{item.source}: series without positions cannot be channels of one image.")
    pixels = next(iter(read.values()))
    frames = pixels.frames
    if frames.dtype not in (np.uint8, np.uint16):
        if pixels.windowed:
            frames = np.rint(np.clip(frames, 0, 255)).astype(np.uint8)
        else:
            frames = volumes.scale_intensity(frames, percentiles=settings.percentiles)
    made = []
    for number, frame in enumerate(frames):
        # Stored bits rarely fill 16: gray levels between percentiles, as for volumes.
        if frame.dtype == np.uint16 and settings.depth != "16":
            frame = volumes.scale_intensity(frame, percentiles=settings.percentiles)
        image = make_picture(pictures.convert_color(frame, settings.color), item, settings)
        made.append(replace(image, record=dict(image.record) | {"slice": number if len(frames) > 1 else -1}))
    return tuple(made)
