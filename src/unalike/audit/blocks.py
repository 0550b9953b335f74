"""The work of an audit in blocks: each is kept as soon as it is done, and may be done by another process.

A block is a run of query images against all references. It depends on nothing but its images and its options, which
name its file, so that an interrupted audit finds its blocks again and one with other inputs does not. A process that
works on blocks opens the folders itself: only paths, digests and numbers travel.

What is compared exactly is the same to the last bit wherever it was computed. What is computed in floating point
(`evidence`) is cut into the same blocks always and rounded, so that the number of processes does not matter.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import os
import shutil
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from unalike import folders
from unalike.audit.changes import CHANGES, change_images
from unalike.audit.evidence import AT_ONCE, Evidence, Examiner, measures_of
from unalike.audit.power import pick_one_per_subject
from unalike.audit.settings import AuditSettings
from unalike.cohort.roles import ImageSet
from unalike.cohort.store import digest_pixels, open_images
from unalike.devices import pick_device
from unalike.engine import Progress, map_in_order, show_progress, tell
from unalike.errors import FolderError, SettingsError
from unalike.records import IntArray, Pixels, as_json

# Raised whenever blocks of an older version would no longer be what this one computes.
VERSION = 1
FOLDER = "blocks"
CHECKSUM_BYTES = 32

Arrays = dict[str, npt.NDArray[Any]]
# Called as work(sets, (begin, end), device=…, progress=…, **options); gives named arrays.
Work = Callable[..., Arrays]
Part = tuple[int, int]


@dataclass(frozen=True)
class SharedSet:
    """What a process needs to open an `ImageSet` by itself; ``content`` names its images, subjects and rows."""

    content: str
    folder: Path
    kind: str
    digest: str
    rows: Path | None  # file with the rows; None if no other process needs them

    def open(self) -> ImageSet:
        """The set, opened once per process.

        Raises `FolderError` if the folder is not there, or not the one that the audit began with.
        """
        with _opening:
            if self not in _sets:
                while len(_sets) >= _MOST_SETS:
                    _sets.pop(next(iter(_sets)))
                _sets[self] = self._open()
            return _sets[self]

    def _open(self) -> ImageSet:
        step = "Workers must see the same files: check --scheduler."
        try:
            images = open_images(self.folder, kind=self.kind)
        except FolderError as error:
            raise FolderError(f"{error} {step}") from error
        if images.digest != self.digest:
            raise FolderError(f"{self.folder} has changed since the audit began. Repeat the command.")
        try:
            rows = np.load(str(self.rows), allow_pickle=False)
        except (OSError, ValueError) as error:
            raise FolderError(f"{self.rows} cannot be read by a worker ({error}). {step}") from error
        return ImageSet(images, rows)


# Sets and the examiner of this process: a worker gets many blocks of the same.
_MOST_SETS = 8
_sets: dict[SharedSet, ImageSet] = {}
_examiners: dict[tuple[SharedSet, str], Examiner] = {}
_opening = threading.RLock()


def digest_set(images: ImageSet) -> str:
    """SHA-256 of pixels, rows and who belongs to whom; pseudonyms, which may be drawn anew each time, do not count."""
    _, first, number = np.unique(images.subjects, return_index=True, return_inverse=True)
    order = np.argsort(np.argsort(first))[number]  # subjects by first appearance
    folder = images.folder
    hasher = hashlib.sha256(json.dumps([folder.channels, folder.size, folder.dtype.name, len(images)]).encode())
    hasher.update("".join(images.digests.tolist()).encode())
    for numbers in (images.rows, order):
        hasher.update(numbers.astype("<i8").tobytes())
    return hasher.hexdigest()


def cut(count: int, size: int) -> list[Part]:
    """Runs (begin, end) of at most ``size`` that make up ``count``."""
    return [(begin, min(begin + size, count)) for begin in range(0, count, size)]


@dataclass(frozen=True)
class _Task:
    """What makes blocks, and may be sent to another process to do so."""

    work: Work
    sets: tuple[SharedSet, ...]
    device: str
    options: Mapping[str, Any]
    threads: int = 0  # of torch, where it is called from several threads; 0 leaves them

    def __call__(self, part: Part, progress: Progress | None = None) -> Arrays:
        if self.threads:
            torch.set_num_threads(self.threads)
        options = {"device": pick_device(self.device), "progress": progress or Progress()} | dict(self.options)
        return self.work(self.sets, part, **options)


@dataclass(frozen=True)
class Workshop:
    """Where blocks are worked on, and the folder that keeps them (None keeps nothing).

    ``scheduler`` is the address of a Dask scheduler whose workers share the file system; otherwise ``workers``
    threads work on a block each, or, without either, one block is worked on at a time. ``device`` is what the user
    asked for: each worker picks its own.
    """

    folder: Path | None = None
    device: str = "cpu"
    scheduler: str | None = None
    workers: int | None = None
    shared: dict[int, tuple[ImageSet, SharedSet]] = field(default_factory=dict)  # by identity: digests take time

    @property
    def elsewhere(self) -> bool:
        """Whether other processes do the work."""
        return self.scheduler is not None

    def collect(
        self,
        work: Work,
        sets: Sequence[ImageSet],
        parts: Sequence[Part],
        *,
        title: str,
        unit: str = "images",
        units: int | None = None,
        **options: Any,
    ) -> list[Arrays]:
        """What ``work`` makes of each part, in order: from the folder where it is there, else worked out and kept.

        A part counts as so many ``units``, by default its length. ``options`` must be fit for JSON.

        Raises `FolderError` if a block cannot be kept.
        """
        lengths = {part: part[1] - part[0] if units is None else units for part in parts}
        shared = tuple(self.share(images) for images in sets)
        names = {part: _name_block(work, shared, options, part) for part in parts}
        found = {part: block for part, name in names.items() if (block := self._load(name))}
        if found:
            tell(f"{title}: {len(found)} of {len(parts)} blocks were found and are not computed again.")
        missing = {part: lengths[part] for part in parts if part not in found}
        task = _Task(work, shared, self.device, options)
        with show_progress(title, total=sum(lengths.values()), unit=unit) as progress:
            progress.advance(sum(lengths[part] for part in found))
            with contextlib.closing(self._work(task, missing, progress)) as made:
                for part, block in zip(missing, made, strict=True):
                    self._save(names[part], block)
                    found[part] = block
        return [found[part] for part in parts]

    def _work(self, task: _Task, parts: Mapping[Part, int], progress: Progress) -> Generator[Arrays, None, None]:
        """Blocks in order, made here or elsewhere; each part counts so much."""
        if not parts or not (self.scheduler or self.workers):
            for part in parts:
                yield task(part, progress)
            return
        threads = torch.get_num_threads()
        if self.workers:
            task = replace(task, threads=max(threads // self.workers, 1))
        try:
            with contextlib.closing(
                map_in_order(task, parts, workers=self.workers, scheduler=self.scheduler)
            ) as blocks:
                for part, block in zip(parts, blocks, strict=True):
                    yield block
                    progress.advance(parts[part])
        finally:
            torch.set_num_threads(threads)

    def share(self, images: ImageSet) -> SharedSet:
        """How other processes open this set; this one has it already."""
        if id(images) not in self.shared:
            content = digest_set(images)
            rows = None
            if self.elsewhere and self.folder is not None:
                rows = self.folder.resolve() / f"rows-{content[:32]}.npy"
                stream = io.BytesIO()
                np.save(stream, images.rows, allow_pickle=False)
                self._write(rows, stream.getvalue())
            folder = images.folder
            entry = SharedSet(content, folder.path.resolve(), folder.header.kind, folder.digest, rows)
            self.shared[id(images)] = images, entry
        shared = self.shared[id(images)][1]
        _sets[shared] = images
        return shared

    def _load(self, name: str) -> Arrays | None:
        """A block that was kept; None if there is none, or none that is whole."""
        if self.folder is None:
            return None
        try:
            stored = (self.folder / name).read_bytes()
        except OSError:
            return None
        data, checksum = stored[:-CHECKSUM_BYTES], stored[-CHECKSUM_BYTES:]
        if hashlib.sha256(data).digest() != checksum:
            return None
        with np.load(io.BytesIO(data), allow_pickle=False) as block:
            return dict(block)

    def _save(self, name: str, block: Arrays) -> None:
        if self.folder is None:
            return
        stream = io.BytesIO()
        np.savez(stream, **block)  # type: ignore[arg-type]
        data = stream.getvalue()
        self._write(self.folder / name, data + hashlib.sha256(data).digest())

    def _write(self, path: Path, data: bytes) -> None:
        """Write a file so that it is either whole or not there."""
        partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
        try:
            path.parent.mkdir(exist_ok=True)
            partial.write_bytes(data)
            partial.replace(path)
        except OSError as error:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            reason, step = ("the disk is full", "Free some space") if full else (error.strerror, "Make it writable")
            raise FolderError(
                f"{path.parent} cannot keep what was computed ({reason}). {step} and repeat the command: it goes on "
                "from there."
            ) from error

    def count_blocks(self) -> int:
        """Blocks in the folder, of whatever inputs."""
        return sum(1 for _ in self.folder.glob("*.npz")) if self.folder is not None else 0

    def remove_blocks(self) -> None:
        """Remove the folder: the audit is done."""
        if self.folder is not None and self.folder.is_dir():
            shutil.rmtree(self.folder)

    def close(self) -> None:
        """Forget what this process holds open."""
        for _, shared in self.shared.values():
            _sets.pop(shared, None)
        self.shared.clear()
        _examiners.clear()


def _name_block(work: Work, sets: tuple[SharedSet, ...], options: Mapping[str, Any], part: Part) -> str:
    """File of a block: named by everything that it depends on."""
    name = getattr(work, "__name__", "work")
    depends = [VERSION, folders.made_by(), name, [images.content for images in sets], as_json(options), part]
    return f"{hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()}.npz"


@contextlib.contextmanager
def open_workshop(
    out: Path, *, settings: AuditSettings, device: str, scheduler: str | None, workers: int | None
) -> Iterator[Workshop]:
    """Begin the audit folder ``out``, or go on with it; what fails before the first block is kept leaves nothing.

    Raises `FolderError` if ``out`` is another folder, or was begun with other settings.
    """
    if workers is not None and workers < 1:
        raise SettingsError(f"--workers {workers}: give 1 or more.")
    if workers is not None and scheduler is not None:
        raise SettingsError("--workers work in this process, those of --scheduler elsewhere. Drop one.")
    folders.begin_folder(out, kind="audit", settings=asdict(settings), resumable=True)
    workshop = Workshop(out / FOLDER, device, scheduler, workers)
    try:
        with use_workshop(workshop):
            yield workshop
    except BaseException as error:
        if folders.give_up_folder(out, nothing_made=lambda: workshop.count_blocks() == 0):
            raise
        if isinstance(error, KeyboardInterrupt):
            raise KeyboardInterrupt(f"what was computed stays in {out}: repeat the command to go on.") from error
        raise


_current: ContextVar[Workshop | None] = ContextVar("workshop", default=None)


@contextlib.contextmanager
def use_workshop(workshop: Workshop) -> Iterator[Workshop]:
    """Whatever is compared in this context is worked on in ``workshop``."""
    before = _current.set(workshop)
    try:
        yield workshop
    finally:
        _current.reset(before)
        workshop.close()


@contextlib.contextmanager
def current_workshop(device: torch.device) -> Iterator[Workshop]:
    """The workshop of the context; without one, this process, which keeps nothing."""
    workshop = _current.get()
    if workshop is not None:
        yield workshop
    else:
        with use_workshop(Workshop(device=str(device))) as own:
            yield own


class BlockExaminer(Examiner):
    """An examiner that works block by block in a workshop; the train images are held by whoever works."""

    def __init__(
        self, train: ImageSet, *, channels: Sequence[int], settings: AuditSettings, seed: int, workshop: Workshop
    ) -> None:
        """Nothing is looked at before the first image is examined."""
        self.train, self.channels, self.settings = train, list(channels), settings
        self.measures = measures_of(settings)
        self.workshop = workshop
        # Of the settings only what the evidence depends on.
        self.options: dict[str, Any] = {
            "channels": self.channels,
            "learned": sorted(settings.learned),
            "local": settings.local,
            "seed": seed,
        }
        self.planted: dict[str, Evidence] = {}
        if workshop.elsewhere and settings.learned:
            self._here()  # keeps the learned spaces beside the cohort, where workers find them

    def examine_set(self, images: ImageSet, title: str) -> Evidence:
        """The evidence of all images of a set."""
        parts = cut(len(images), AT_ONCE)
        blocks = self.workshop.collect(examine_part, (self.train, images), parts, title=title, **self.options)
        return self._join([self._evidence(block) for block in blocks])

    def examine_planted(self, images: ImageSet, *, count: int) -> None:
        """Examine what `power.measure_power` is going to ask for: some images of a set under each change."""
        blocks = self.workshop.collect(
            examine_planted_part,
            (self.train, images),
            cut(len(CHANGES), 1),
            title="Examining changed images",
            unit="changes",
            count=count,
            **self.options,
        )
        self.planted |= {bytes(block["digest"]).decode(): self._evidence(block) for block in blocks}

    def examine(self, blocks: Iterable[Pixels]) -> Evidence:
        """The evidence of images that come in blocks (n, C, H, W): what `examine_planted` knows, else made here."""
        found = []
        for block in blocks:
            known = self.planted.get(digest_pixels(block))
            found.append(self._here().examine([block]) if known is None else known)
        return self._join(found)

    def _here(self) -> Examiner:
        shared = self.workshop.share(self.train)
        return _examiner_of(shared, device=pick_device(self.workshop.device), **self.options)

    def _evidence(self, block: Arrays) -> Evidence:
        return Evidence(self.measures, *(block[name] for name in ("scores", "references", "poses")))

    def _join(self, parts: list[Evidence]) -> Evidence:
        nothing = np.empty((len(self.measures), 0), dtype=np.int64)
        parts = [Evidence(self.measures, nothing.astype(np.float64), nothing, nothing), *parts]
        columns = zip(*((part.scores, part.references, part.poses) for part in parts), strict=True)
        return Evidence(self.measures, *(np.concatenate(column, axis=1) for column in columns))


def examine_part(
    sets: tuple[SharedSet, ...], part: Part, *, device: torch.device, progress: Progress, **options: Any
) -> Arrays:
    """The evidence of a run of images of the second set, against the first."""
    train, images = sets
    examiner = _examiner_of(train, device=device, **options)
    opened, (begin, end) = images.open(), part
    made = _examine(examiner, opened.folder.read(opened.rows[begin:end]))
    progress.advance(end - begin)
    return made


def examine_planted_part(
    sets: tuple[SharedSet, ...],
    part: Part,
    *,
    device: torch.device,
    progress: Progress,
    count: int,
    seed: int,
    **options: Any,
) -> Arrays:
    """The evidence of ``count`` images of the second set under the change of this number, and their digest."""
    train, images = sets
    examiner = _examiner_of(train, device=device, seed=seed, **options)
    opened = images.open()
    chosen: IntArray = opened.rows[pick_one_per_subject(opened, count, seed)]
    changed = change_images(opened.folder.read(chosen), list(CHANGES)[part[0]], seed)
    made = _examine(examiner, changed) | {"digest": np.frombuffer(digest_pixels(changed).encode(), np.uint8)}
    progress.advance()
    return made


def _examine(examiner: Examiner, pixels: Pixels) -> Arrays:
    evidence = examiner.examine([pixels])
    return {"scores": evidence.scores, "references": evidence.references, "poses": evidence.poses}


def _examiner_of(
    train: SharedSet, *, device: torch.device, channels: list[int], learned: list[str], local: bool, seed: int
) -> Examiner:
    """The examiner of this process: made once, of the same train images and options."""
    key = train, json.dumps([channels, learned, local, seed, str(device)])
    with _opening:
        if key not in _examiners:
            _examiners.clear()  # one at a time: it holds all train images
            settings = replace(AuditSettings(), learned=tuple(learned), local=local)  # type: ignore[arg-type]
            _examiners[key] = Examiner(train.open(), channels=channels, settings=settings, seed=seed, device=device)
        return _examiners[key]
