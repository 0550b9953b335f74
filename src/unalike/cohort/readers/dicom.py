"""DICOM: the files of one series make one item; or all series of a study that share a frame of reference."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from pydicom import dcmread
from pydicom.multival import MultiValue

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
from unalike.cohort.readers.attributes import HEADER_FIELDS, LONGEST, clean_value
from unalike.cohort.readers.pictures import make_picture
from unalike.cohort.readers.volumes import (
    Scan,
    bring_to_one_grid,
    common_scale,
    cut_images,
    planned_extent,
    spread_labels,
)
from unalike.cohort.recipes import Layout
from unalike.cohort.settings import PrepareSettings
from unalike.errors import InputError, PictureError, SettingsError
from unalike.images import dicom, pictures, volumes
from unalike.images.dicom import DicomPixels, Series
from unalike.images.quiet import QUIET
from unalike.records import MASK, Pixels

IMAGE = "image"
# A file of this name is meant to be DICOM. Most DICOM files have none, so what else lies there is not known by name.
SUFFIXES = frozenset({".dcm", ".dicom", ".dic", ".ima"})

_CHOOSE = "Take others with --channel-pattern, or pass --on-bad-file skip."


def plan_items(source: Path, _: Layout, settings: PrepareSettings) -> Plan:
    """One item a series, or a study whose series' descriptions ``--channel-pattern`` tells apart.

    Series that cannot be used, and damaged files, stay as items, so that they are said when they are read. Files
    without pixels (reports, indexes, and anything else that only lies there) are left out with a note.
    """
    if settings.size is None:
        raise SettingsError(f"--recipe {settings.recipe} needs --size, the height and width of the images in pixels.")
    files, notes = walk_files(source)
    found, unusable = dicom.scan_dicom(files)
    damaged = [(path, reason) for path, reason in unusable if _is_damaged(path, reason)]
    if not found and not damaged:
        raise NoSuchFiles(f"{source} holds no DICOM series{_say_first(unusable)}. Check the path and --recipe.")
    if len(unusable) > len(damaged):
        notes.append(f"{len(unusable) - len(damaged)} of {len(files)} files are no DICOM images: left out.")
    wanted = [series for series in found if not dicom.refuse_reason(series, derived=settings.derived)]
    if not wanted and not damaged:
        raise InputError(
            f"all {len(found)} series are refused; the first: {dicom.refuse_reason(found[0], derived=False)} "
            "Pass --derived to take them."
        )
    if len(wanted) < len(found):
        notes.append(
            f"{len(found) - len(wanted)} derived or localizer series were left out. Pass --derived to take them."
        )
    items, channels = _make_items(wanted, source, settings)
    taken = [series for item in items for series in item.detail.values()]
    if len(wanted) > len(taken):
        notes.append(f"{len(wanted) - len(taken)} series were left out, because no channel is taken from them.")
    if settings.subject_pattern is None and any(not series.patient for series in wanted):
        notes.append("Some series have no PatientID: each of their studies is taken as a patient of its own.")
    extents = [planned_extent(one.shape, one.spacing, settings) for one in taken if one.stacked and not one.problem]
    items += [_damaged_item(path, reason, source) for path, reason in damaged]
    return Plan(
        items=tuple(sorted(items, key=lambda item: item.source)),
        channels=channels,
        notes=tuple(notes),
        scale=common_scale(extents, settings),
        unit="series",
        mask_scale=spread_labels(settings, max(settings.mask_labels, default=0)) if MASK in channels else 0,
    )


def _is_damaged(path: Path, reason: str) -> bool:
    """Whether a file that holds no usable image should: it is DICOM, or named so, and not one without pixels."""
    harmless = "holds no pixels" in reason or "is a DICOMDIR" in reason
    foreign = "is not DICOM" in reason and path.suffix.lower() not in SUFFIXES
    return not harmless and not foreign


def _say_first(unusable: Sequence[tuple[Path, str]]) -> str:
    """The first reason as a clause, where files are DICOM but of another kind."""
    first = next((reason for _, reason in unusable if "is not DICOM" not in reason), "")
    return f" ({first.rpartition('. ')[0]})" if first else ""


def _damaged_item(path: Path, reason: str, source: Path) -> Item:
    inside = name_below(path, source)
    return Item(source=inside, subject=inside, files=((IMAGE, path),), detail=reason)


def _make_items(
    wanted: Sequence[Series], source: Path, settings: PrepareSettings
) -> tuple[list[Item], tuple[str, ...]]:
    pattern = compile_pattern(settings.subject_pattern, "--subject-pattern")
    by_channel = compile_pattern(settings.channel_pattern, "--channel-pattern")
    groups: dict[tuple[str, ...], dict[str, Series]] = {}
    doubled: dict[tuple[str, ...], str] = {}
    others: set[str] = set()  # channels that were not asked for
    for series in wanted:
        # The patient is named too: some de-identified data sets give all studies one UID.
        channel, group = IMAGE, (series.patient, series.study, series.uid or str(series.files[0]))
        if by_channel:
            named = by_channel.search(series.description)
            text = (named.group(1) if by_channel.groups else named.group(0)) if named else ""
            if not text:
                continue
            channel = text.lower()
            # Where no frame of reference is given, positions of two series cannot be compared.
            group = (series.patient, series.study, series.frame_of_reference or f"alone {group[-1]}")
        if settings.channels and channel not in settings.channels:
            others.add(channel)
            continue
        if channel in groups.setdefault(group, {}):
            one, other = (name_below(each.files[0], source) for each in (series, groups[group][channel]))
            doubled[group] = (
                f"{one} and {other} begin two series of one study that are both {channel}. Tell them apart with "
                "--channel-pattern, or pass --on-bad-file skip."
            )
            continue
        groups[group][channel] = series
    if by_channel and wanted and not (groups or others):
        raise SettingsError(f"--channel-pattern {settings.channel_pattern!r} matches no series description.")
    found = sorted(others | {channel for series in groups.values() for channel in series})
    unknown = [name for name in settings.channels if name not in found]
    if unknown:
        raise SettingsError(f"--channels: {', '.join(unknown)} not found; there are {', '.join(found)}.")
    channels = tuple(sorted(settings.channels or found, key=lambda name: name == MASK))
    if set(channels) == {MASK}:
        raise SettingsError("--channel-pattern: a mask alone has nothing to compare. Add an image channel.")
    items = [
        _make_item(series, channels, source, pattern, problem=doubled.get(group, ""))
        for group, series in groups.items()
    ]
    return items, channels if by_channel else ()


def _make_item(
    group: Mapping[str, Series], channels: Sequence[str], source: Path, pattern: Any, *, problem: str
) -> Item:
    chosen = {channel: group[channel] for channel in channels if channel in group}
    first = next(iter(chosen.values()))
    inside = name_below(first.files[0], source)
    if problem:
        chosen = {channel: replace(series, problem=problem) for channel, series in chosen.items()}
    return Item(
        source=inside,
        subject=match_pattern(pattern, inside, "--subject-pattern") if pattern else _patient(first, inside),
        files=tuple((channel, path) for channel, series in chosen.items() for path in series.files),
        detail=chosen,
    )


def _patient(series: Series, inside: str) -> str:
    """Whose a series is; without a PatientID the study's or the series' UID, or the file's own name."""
    return series.patient or series.study or series.uid or inside


def load_item(item: Item, plan: Plan, settings: PrepareSettings) -> Loaded:
    """Read a series, or the series of a study as channels; stacks are sliced, single frames are pictures."""
    if isinstance(item.detail, str):
        raise PictureError(item.detail)
    chosen: Mapping[str, Series] = item.detail
    missing = [channel for channel in plan.channels if channel not in chosen]
    if missing:
        raise PictureError(
            f"{item.source}: its study has no {', '.join(missing)} series that shares its frame of reference. "
            "Add it or pass --on-bad-file skip."
        )
    for series in chosen.values():
        if series.problem:
            raise PictureError(series.problem)
    read = {
        name: dicom.read_series(series, window=None if name == MASK else settings.window)
        for name, series in chosen.items()
    }
    digest = hashlib.sha256("".join(pixels.digest for pixels in read.values()).encode()).hexdigest()
    stacks = {name: pixels.volume for name, pixels in read.items() if pixels.volume is not None}
    if not stacks:
        images = _frames(read, item, next(iter(chosen.values())), settings)
    elif len(stacks) < len(read):
        raise PictureError(f"{item.source}: some of the study's series are stacks and some are not. {_CHOOSE}")
    else:
        names = {name: series.files[0] for name, series in chosen.items()}
        first = next(iter(stacks))
        gridded = bring_to_one_grid(stacks, first, names, settings)
        scan = Scan(
            item,
            gridded,
            {name: path.name for name, path in names.items()},
            windowed=all(pixels.windowed for name, pixels in read.items() if name != MASK),
        )
        said = _read_attributes([next(iter(names.values()))], 1, settings)[0]  # those of the first channel
        images = tuple(
            replace(image, record=dict(image.record) | {"attributes": said | dict(image.record["attributes"])})
            for image in cut_images(scan, replace(plan, channels=tuple(stacks)), settings)
        )
    remarks = [
        *(["burned-in"] if any(series.burned_in == "YES" for series in chosen.values()) else []),
        *(["head"] if any(series.head and not series.defaced for series in chosen.values()) else []),
    ]
    return Loaded(images=images, digest=digest, remarks=tuple(remarks))


def _frames(
    read: Mapping[str, DicomPixels], item: Item, series: Series, settings: PrepareSettings
) -> tuple[MadeImage, ...]:
    """Frames without positions, each a picture with the attributes of its own file: a series may hold several views."""
    if len(read) > 1:
        raise PictureError(f"{item.source}: series without positions cannot be channels of one image. {_CHOOSE}")
    levels = _frame_levels(next(iter(read.values())), settings)
    said = _read_attributes(series.files, len(levels), settings)
    made = []
    for number, (frame, attributes) in enumerate(zip(levels, said, strict=True)):
        image = make_picture(pictures.convert_color(frame, settings.color), item, settings)
        place = {"slice": number if len(levels) > 1 else -1, "attributes": attributes}
        made.append(replace(image, record=dict(image.record) | place))
    return tuple(made)


def _frame_levels(pixels: DicomPixels, settings: PrepareSettings) -> Pixels:
    """Frames (n, C, H, W) as gray levels, with 8 bits, or 16 if asked for, as the slices of volumes have them.

    8 stored bits are gray levels already. More rarely fill 16, and rescaled values have no range: the percentiles of
    the whole series become black and white.
    """
    deep = settings.depth == "16"
    frames: Pixels = pixels.frames
    if pixels.windowed:
        top = 65535 if deep else 255
        return np.rint(np.clip(frames, 0, 255) * (top / 255)).astype(np.uint16 if deep else np.uint8)
    if frames.dtype == np.uint8:
        return pictures.change_depth(frames, 16 if deep else 8)
    return volumes.scale_intensity(frames, percentiles=settings.percentiles, bits=16 if deep else 8)


def _read_attributes(files: Sequence[Path], frames: int, settings: PrepareSettings) -> list[dict[str, str]]:
    """Those of `HEADER_FIELDS` that are wanted and there, for each of the ``frames`` of these files.

    An age that is no number with a unit of DICOM (PS3.5, 6.2) is left out. Raises `PictureError` if a file cannot be
    read.
    """
    wanted = [name for name in settings.attributes if name in HEADER_FIELDS]
    if not wanted:
        return [{}] * frames
    said: list[dict[str, str]] = []
    for path in files:
        try:
            with QUIET:
                # It was found to be DICOM before, perhaps without the preamble.
                dataset = dcmread(path, stop_before_pixels=True, force=True, specific_tags=[*wanted, "NumberOfFrames"])
                own = {name: _as_attribute(name, dataset.get(name)) for name in wanted}
                count = int(dataset.get("NumberOfFrames") or 1)
        except Exception as error:  # damaged values raise whatever they meet first
            told = " ".join(str(error).split())[:200] or type(error).__name__
            raise PictureError(
                f"{path} cannot be read ({told}). Remove the file or pass --on-bad-file skip."
            ) from error
        said += [{name: value for name, value in own.items() if value}] * count
    return said


def _as_attribute(name: str, value: Any) -> str:
    """A header field as text, "" if it is missing or an age that is none."""
    first = value[0] if isinstance(value, MultiValue) and value else value
    text = clean_value(name, "" if first is None else str(first))[:LONGEST]
    return "" if name == "PatientAge" and not re.fullmatch(r"\d+(\.\d+)?", text) else text
