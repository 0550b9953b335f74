"""What readers have in common: items of a plan, images made from them, and the walk through a source."""

from __future__ import annotations

import contextlib
import functools
import os
import re
import stat
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
_LONGEST_PATH = 4096  # bytes; where a link of an archive leads to is no longer


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
    attributes: Mapping[str, str] = field(default_factory=dict)  # of all its images: name → value


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
    """One image (C, H, W), and what only its reader can say of it: fields of its record.

    Its ``attributes`` come on top of the item's.
    """

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

    def __post_init__(self) -> None:
        """Bring the reason to one line that any file can hold: it names files, which may be called anything."""
        object.__setattr__(self, "reason", _as_text(" ".join(self.reason.split())))


def walk_files(source: Path, suffixes: frozenset[str] | tuple[str, ...] | None = None) -> tuple[list[Path], list[str]]:
    """Files below ``source`` with these suffixes (None: all), sorted by path, and notes on what was left out.

    Links to folders are followed after all real folders were searched, each folder once and never one that holds the
    source, so that a loop of links ends and the same files have the same names wherever they are listed. Hidden files,
    macOS resource forks, folders made by unalike, and what is no file (a pipe would be waited for without end) are
    left out; a link that leads nowhere stays, to be reported when it is read.

    Raises `InputError` if there is no such folder, or one below it cannot be listed, and `NoSuchFiles` if there is
    nothing in it.
    """
    _check_source(source)
    walk = _Walk(source)
    walk.search()
    wanted = [path for path in walk.files if suffixes is None or path.name.lower().endswith(tuple(suffixes))]
    if not wanted:
        wanted_text = ", ".join(sorted(suffixes)) + " file" if suffixes else "file"
        raise NoSuchFiles(f"{source} holds no {wanted_text}. Check the path and --recipe.")
    notes = []
    if walk.twice:
        notes.append(f"{walk.twice} folders that symbolic links reach a second time were taken once.")
    if walk.special:
        notes.append(f"{walk.special} pipes, sockets or devices were left out.")
    return sorted(wanted), notes


class _Walk:
    """The search through one source: real folders first, then those that only links lead to."""

    def __init__(self, source: Path) -> None:
        self.source = source
        self.files: list[Path] = []
        self.twice = self.special = 0
        above = source.resolve().parents
        self._seen = {_identity(place) for place in above}  # a link to one of them would lead out of the source
        self._links: list[Path] = []

    def search(self) -> None:
        """Fill `files`, and count what was left out."""
        self._folders_below(self.source)
        while self._links:
            links, self._links = sorted(self._links), []
            for link in links:
                self._folders_below(link)

    def _folders_below(self, top: Path) -> None:
        waiting = [top]
        while waiting:
            place = waiting.pop()
            identity = _identity(place)
            if identity in self._seen or (place != self.source and folders.is_ours(place)):
                self.twice += identity in self._seen
                continue
            self._seen.add(identity)
            waiting += sorted(self._look_into(place), reverse=True)

    def _look_into(self, place: Path) -> list[Path]:
        """Note the files of one folder, and give the real folders in it."""
        inner = []
        try:
            with os.scandir(place) as listed:
                for entry in listed:
                    if entry.name.startswith(".") or entry.name == "__MACOSX":
                        continue
                    if entry.is_dir(follow_symlinks=False):
                        inner.append(place / entry.name)
                    elif entry.is_symlink() and _leads_to_folder(entry):
                        self._links.append(place / entry.name)
                    elif _is_special(entry):
                        self.special += 1
                    else:
                        self.files.append(place / entry.name)
        except OSError as error:
            raise InputError(
                f"{place} cannot be listed ({error.strerror}). Change its permissions, or move it out of the source."
            ) from error
        return inner


def _identity(place: Path) -> tuple[int, int]:
    found = place.stat()
    return found.st_dev, found.st_ino


def _leads_to_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _is_special(entry: os.DirEntry[str]) -> bool:
    """Whether an entry is something else than a file or a link that leads nowhere."""
    try:
        return not entry.is_file() and (not entry.is_symlink() or Path(entry.path).exists())
    except OSError:
        return False


def _check_source(source: Path) -> None:
    if source.is_dir():
        return
    if not source.exists():
        raise InputError(f"{source} does not exist. Check the path.")
    climbing = _climbing_entry(source) if source.is_file() else None
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
    found: str | None = None
    # Damaged archives raise whatever their decompressor likes; what was seen until then is what can be said.
    with contextlib.suppress(Exception):
        if zipfile.is_zipfile(source):
            found = ""
            with zipfile.ZipFile(source) as archive:
                found = next(filter(None, map(functools.partial(_climb_of_zip, archive), archive.infolist())), "")
        elif tarfile.is_tarfile(source):
            found = ""
            with tarfile.open(source) as tar:
                found = next(filter(None, map(_climb_of_tar, tar)), "")
    return found


def _climb_of_zip(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> str:
    """The entry's name if it climbs out; a symbolic link is an entry whose content is where it leads."""
    is_link = stat.S_ISLNK(entry.external_attr >> 16)
    target = ""
    if is_link and entry.file_size <= _LONGEST_PATH:
        target = archive.read(entry).decode("utf-8", "replace")
    if is_link and entry.file_size > _LONGEST_PATH:
        return entry.filename
    return entry.filename if _climbs(entry.filename) or _climbs(target, beside=entry.filename) else ""


def _climb_of_tar(entry: tarfile.TarInfo) -> str:
    beside = entry.name if entry.issym() else ""  # a hard link is named from the top
    out = _climbs(entry.name) or (bool(entry.linkname) and _climbs(entry.linkname, beside=beside))
    return entry.name if out else ""


def _climbs(name: str, *, beside: str = "") -> bool:
    """Whether a path, taken from the folder of ``beside``, leads out of the archive's own folder."""
    name = name.replace("\\", "/")
    if name.startswith("/") or re.match(r"^[A-Za-z]:", name):
        return True
    depth = len([part for part in PurePosixPath(beside.replace("\\", "/")).parent.parts if part != "."])
    for part in PurePosixPath(name).parts:
        depth += -1 if part == ".." else 1
        if depth < 0:
            return True
    return False


def name_below(path: Path, source: Path) -> str:
    """Path below the source as text on one line that any file can hold, also where a file name is not UTF-8."""
    return _as_text(path.relative_to(source).as_posix())


def _as_text(name: str) -> str:
    """What is no text in a name, and what would move the cursor of a terminal, as backslash and number."""
    text = name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]", lambda found: repr(found[0])[1:-1], text)


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
