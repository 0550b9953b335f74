"""Remove a patient from a cohort on request, and say what was made with them."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from unalike import folders
from unalike.cohort.leaks import keep_pairs
from unalike.cohort.split import select_train_rows
from unalike.cohort.store import ImageFolder, ImageWriter, open_images
from unalike.engine import show_progress
from unalike.errors import FolderError, InputError
from unalike.folders import Header
from unalike.records import IntArray


@dataclass(frozen=True)
class MadeFrom:
    """A folder that was made from the cohort, directly or through others, and what that means for the subjects."""

    path: Path
    kind: str
    what: str


@dataclass(frozen=True)
class Removal:
    """What was removed (or would be), how many images are left, and what was made with them before."""

    subjects: int
    images: int
    left: int
    searched: Path
    made_from: tuple[MadeFrom, ...]


def drop_subject(
    *, cohort: str | Path, subjects: Sequence[str], search: str | Path | None = None, dry_run: bool = False
) -> Removal:
    """Remove all images and private entries of ``subjects`` (identifiers of the source, or pseudonyms).

    The cohort is written anew beside the old one, which then goes: pictures of it (contact sheets) go with it. Folders
    below ``search`` (default: the cohort's parent) that were made from it are listed, not touched.

    Raises `InputError` if a subject is not in the cohort, or no train image would be left.
    """
    path = Path(cohort)
    _finish_swap(path)
    opened = open_images(path)
    gone = _find_pseudonyms(opened, subjects)
    column = opened.column("subject")
    kept = np.flatnonzero(~np.isin(column, sorted(gone))).astype(np.int64)
    if "train" not in set(opened.column("role")[kept].tolist()):
        raise InputError(f"{path} would have no train image left. Remove the whole cohort instead.")
    searched = Path(search) if search else path.resolve().parent
    removal = Removal(
        subjects=len(gone),
        images=len(opened) - len(kept),
        left=len(kept),
        searched=searched,
        made_from=tuple(_find_made_from(opened, searched, gone)),
    )
    if not dry_run:
        _rewrite(opened, kept, gone)
    return removal


def _find_pseudonyms(opened: ImageFolder, subjects: Sequence[str]) -> set[str]:
    """Pseudonyms of the subjects, by the cohort's private map or as they are."""
    there = set(opened.column("subject").tolist())
    private = opened.path / folders.PRIVATE / folders.SOURCES
    known: dict[str, set[str]] = {}
    if private.is_file():
        table = pq.read_table(private, columns=["identifier", "subject"]).to_pydict()
        for identifier, pseudonym in zip(table["identifier"], table["subject"], strict=True):
            known.setdefault(identifier, set()).add(pseudonym)
    found: set[str] = set()
    for subject in subjects:
        mine = (known.get(subject, set()) | {subject}) & there
        if not mine:
            raise InputError(
                f"{opened.path} holds no subject {subject}. Give an identifier as the source names it, or a pseudonym "
                "of the records."
            )
        found |= mine
    return found


def _find_made_from(opened: ImageFolder, search: Path, gone: set[str]) -> Iterator[MadeFrom]:
    """Folders whose inputs lead back to the cohort, nearest first."""
    headers = list(_headers_below(search))
    known = {opened.digest}
    told: set[Path] = set()
    while True:
        fresh = [(path, header) for path, header in headers if path not in told and known & set(header.inputs.values())]
        if not fresh:
            return
        for path, header in fresh:
            told.add(path)
            with contextlib.suppress(OSError):
                known.add(folders.digest_of(path, kind=header.kind))
            yield MadeFrom(path=path, kind=header.kind, what=_what_it_means(opened, header, gone))


def _headers_below(search: Path) -> Iterator[tuple[Path, Header]]:
    for parent, inner, _ in os.walk(search):
        place = Path(parent)
        kind = folders.kind_of(place)
        inner[:] = sorted(name for name in inner if name not in {folders.IMAGES, folders.PRIVATE, folders.CHECKPOINTS})
        if kind is not None:
            with contextlib.suppress(FolderError):  # of another schema, or damaged
                yield place, folders.read_header(place, kind=kind)


def _what_it_means(opened: ImageFolder, header: Header, gone: set[str]) -> str:
    if header.kind == "run":
        train = opened.column("subject")[_rows_seen(opened, header)]
        seen = gone & set(train.tolist())
        if not seen:
            return "trained on this cohort, but not on these subjects"
        return f"trained on {len(seen)} of these subjects: train it again without them"
    if header.kind == "samples":
        return "drawn from such a run: draw them again from a run without them"
    return "made from the above: make it again"


def _rows_seen(opened: ImageFolder, header: Header) -> IntArray:
    """Rows that a run was trained on; all of train where it does not say."""
    subjects, seed = (header.content.get(name) for name in ("subjects", "subject_seed"))
    if not isinstance(subjects, int) or not isinstance(seed, int):
        return opened.rows("train")
    return select_train_rows(opened, subjects=subjects, seed=seed)


def _rewrite(opened: ImageFolder, kept: IntArray, gone: set[str]) -> None:
    """Write the cohort anew without the others, then put it in the old one's place."""
    path = opened.path
    fresh, old = _beside(path)
    shutil.rmtree(fresh, ignore_errors=True)
    settings = dict(opened.header.settings)
    with folders.new_folder(fresh, kind="cohort", settings=settings):
        writer = ImageWriter(
            fresh, channels=opened.channels, height=opened.size[0], width=opened.size[1], dtype=opened.dtype
        )
        with show_progress("Writing", total=len(kept), unit="images") as progress:
            for begin in range(0, len(kept), writer.chunk):
                rows = kept[begin : begin + writer.chunk]
                records = opened.records.take(pa.array(rows)).to_pylist()
                for image, record in zip(opened.read(rows), records, strict=True):
                    writer.append(image, record)
                progress.advance(len(rows))
        content = dict(opened.header.content) | writer.close() | _count_anew(opened, kept, gone)
        _copy_rest(opened, fresh, kept, gone)
        folders.finish_folder(
            fresh,
            kind="cohort",
            settings=settings,
            seed=opened.header.seed,
            inputs=opened.header.inputs,
            content=content,
        )
    path.rename(old)
    fresh.rename(path)
    shutil.rmtree(old)


def _beside(path: Path) -> tuple[Path, Path]:
    return path.with_name(path.name + ".without"), path.with_name(path.name + ".before")


def _finish_swap(path: Path) -> None:
    """Bring an interrupted exchange of the old and the new cohort to its end."""
    fresh, old = _beside(path)
    if old.is_dir() and not path.exists() and folders.kind_of(fresh) == "cohort":
        fresh.rename(path)
    if old.is_dir() and folders.kind_of(path) == "cohort":
        shutil.rmtree(old)


def _count_anew(opened: ImageFolder, kept: IntArray, gone: set[str]) -> dict[str, Any]:
    """What the header says of the removal; counts of leaks and notes are those of the preparation."""
    before = list(opened.header.content.get("removals", []))
    entry = {
        "on": datetime.now(UTC).isoformat(timespec="seconds"),
        "subjects": len(gone),
        "images": len(opened) - len(kept),
        "cohort_before": opened.digest,
    }
    return {"removals": [*before, entry]}


def _copy_rest(opened: ImageFolder, fresh: Path, kept: IntArray, gone: set[str]) -> None:
    pairs = opened.path / folders.DUPLICATES
    if pairs.is_file():
        pq.write_table(keep_pairs(pq.read_table(pairs), kept), fresh / folders.DUPLICATES)
    private = opened.path / folders.PRIVATE
    if not private.is_dir():
        return
    (fresh / folders.PRIVATE).mkdir(mode=0o700)
    names: set[str] = set()
    for file in private.iterdir():
        target = fresh / folders.PRIVATE / file.name
        if file.name == folders.SOURCES:
            table = pq.read_table(file)
            theirs = np.isin(np.asarray(table["subject"].to_pylist()), sorted(gone))
            names = set(table.filter(pa.array(theirs))["path"].to_pylist())
            pq.write_table(table.filter(pa.array(~theirs)), target)
        elif file.name != folders.SKIPPED:
            shutil.copy2(file, target)
    skipped = private / folders.SKIPPED
    if skipped.is_file():
        rest = [bad for bad in folders.read_json(skipped) if bad.get("source") not in names]
        folders.write_json(fresh / folders.PRIVATE / folders.SKIPPED, rest)
    for file in (fresh / folders.PRIVATE).iterdir():
        file.chmod(0o600)
