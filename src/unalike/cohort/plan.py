"""What readers have in common: items of a plan, images made from them, and the walk through a source."""

from __future__ import annotations

import os
import re
import tarfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from unalike import folders
from unalike.cohort.settings import PrepareSettings
from unalike.errors import InputError, SettingsError
from unalike.records import Pixels

TRAIN_NAMES = frozenset({"train", "training"})
HELD_NAMES = frozenset({"test", "testing", "val", "valid", "validation"})


class NoSuchFiles(InputError):  # noqa: N818 - says what happened
    """A source holds none of the files that a layout is about: the recipe's next layout may fit."""


@dataclass(frozen=True)
class Item:
    """What is loaded at once: a picture, the volumes of one scan, a patch of an array.

    ``published`` is the role that a train or test folder of the source gives, or "".
    """

    source: str  # path below the source folder
    subject: str
    label: str = ""
    published: str = ""
    files: tuple[tuple[str, Path], ...] = ()  # (channel, file); the mask last
    detail: Any = None  # what only this item's reader understands


@dataclass(frozen=True)
class Plan:
    """All items of a source, what each channel is called, and what was assumed on the way."""

    items: tuple[Item, ...]
    channels: tuple[str, ...] = ()  # empty: known from the first picture
    notes: tuple[str, ...] = ()
    scale: float = 1.0  # stored pixels per pixel of volumes; see `readers.volumes`
    unit: str = "pictures"
    mask_scale: int = 0  # gray levels per label
    mask_names: Mapping[str, int] = field(default_factory=dict)  # what a label is called, where that is known
    labels_by_lesion: tuple[str, str] = ("no lesion", "lesion")


@dataclass(frozen=True)
class MadeImage:
    """One image (C, H, W), and what only its reader can say of it: fields of its record."""

    pixels: Pixels
    record: Mapping[str, Any]


@dataclass(frozen=True)
class Loaded:
    """Images of one item and the digest of the files' bytes; ``remarks`` are counted over the cohort."""

    images: tuple[MadeImage, ...]
    digest: str
    aspect: float = 1.0  # width by height of the source, before it was fitted
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True)
class BadFile:
    """An item that could not be loaded, and why (a `PictureError`'s words)."""

    source: str
    reason: str


def walk_files(source: Path, suffixes: frozenset[str] | tuple[str, ...] | None = None) -> tuple[list[Path], list[str]]:
    """Files below ``source`` with these suffixes (None: all), sorted by path, and notes on what was left out.

    Links to folders are followed, each folder once, so that a loop of links ends. Hidden files, macOS resource
    forks and folders made by unalike are left out; a link that leads nowhere stays, to be reported when it is read.

    Raises `InputError` if there is no such folder, `NoSuchFiles` if there is nothing in it.
    """
    _check_source(source)
    found: list[Path] = []
    seen: set[tuple[int, int]] = set()
    twice = 0
    for parent, inner, names in os.walk(source, followlinks=True):
        place = Path(parent)
        identity = place.stat().st_dev, place.stat().st_ino
        if identity in seen or (parent != str(source) and folders.is_ours(place)):
            twice += identity in seen
            inner.clear()
            continue
        seen.add(identity)
        inner[:] = [name for name in inner if not name.startswith(".") and name != "__MACOSX"]
        wanted = [name for name in names if suffixes is None or name.lower().endswith(tuple(suffixes))]
        found += [place / name for name in wanted if not name.startswith(".")]
    if not found:
        wanted_text = ", ".join(sorted(suffixes)) + " file" if suffixes else "file"
        raise NoSuchFiles(f"{source} holds no {wanted_text}. Check the path and --recipe.")
    notes = [f"{twice} folders that symbolic links reach a second time were taken once."] if twice else []
    return sorted(found), notes


def _check_source(source: Path) -> None:
    if source.is_dir():
        return
    if not source.exists():
        raise InputError(f"{source} does not exist. Check the path.")
    climbing = _climbing_entry(source)
    if climbing:
        raise InputError(
            f"{source} is an archive with an entry that climbs out of its folder ({climbing}). Do not unpack it; "
            "get it again from its makers."
        )
    if climbing is not None:
        raise InputError(f"{source} is an archive. Unpack it and give the folder.")
    raise InputError(f"{source} is a file; give the folder that holds the images.")


def _climbing_entry(source: Path) -> str | None:
    """An entry of an archive that would be written outside its folder; "" if none, None if it is no archive."""
    try:
        if zipfile.is_zipfile(source):
            with zipfile.ZipFile(source) as archive:
                names = archive.namelist()
        elif tarfile.is_tarfile(source):
            with tarfile.open(source) as tar:
                names = [name for entry in tar for name in (entry.name, entry.linkname) if name]
        else:
            return None
    except (OSError, tarfile.TarError, zipfile.BadZipFile):
        return None
    for name in names:
        path = PurePosixPath(name.replace("\\", "/"))
        if path.is_absolute() or ".." in path.parts or re.match(r"^[A-Za-z]:", name):
            return name
    return ""


def name_below(path: Path, source: Path) -> str:
    """Path below the source as text that any file can hold, also where a file name is not UTF-8."""
    return os.fsencode(path.relative_to(source).as_posix()).decode("utf-8", "backslashreplace")


def compile_pattern(pattern: str | None, option: str) -> re.Pattern[str] | None:
    """A user's regular expression; a `SettingsError` names the option if it is none."""
    if pattern is None:
        return None
    try:
        return re.compile(pattern)
    except re.error as error:
        raise SettingsError(f"{option} {pattern!r} is no regular expression ({error}).") from error


def match_pattern(pattern: re.Pattern[str], text: str, option: str) -> str:
    """First group (or whole match) of ``pattern`` in ``text``; a `SettingsError` if there is none."""
    found = pattern.search(text)
    group = (found.group(1) if pattern.groups else found.group(0)) if found else ""
    if not group:
        raise SettingsError(f"{option} {pattern.pattern!r} does not match {text}. Change the pattern.")
    return group


def published_role(parts: tuple[str, ...]) -> str:
    """Role that a train or test folder among ``parts`` of a path gives, or ""."""
    for part in parts:
        if part.lower() in TRAIN_NAMES:
            return "train"
        if part.lower() in HELD_NAMES:
            return "holdout"
    return ""


ASSUMED = (
    "Assumption: each {what} is taken as a patient of its own, because no --subject-pattern was given. "
    "If patients have several, intervals are too narrow and the split may leak."
)


def choose_classes(items: list[Item], settings: PrepareSettings) -> list[Item]:
    """Items of the classes that ``--classes`` names. Raises `SettingsError` for a class that nobody has."""
    if not settings.classes:
        return items
    there = {item.label for item in items}
    unknown = [name for name in settings.classes if name not in there]
    if unknown:
        known = ", ".join(sorted(there - {""})) or "none"
        raise SettingsError(f"--classes: no image of class {', '.join(unknown)}; there are {known}.")
    return [item for item in items if item.label in settings.classes]
