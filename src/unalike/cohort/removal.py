"""Remove a patient from a cohort on request, and say what was made with them.

The cohort is written anew into a hidden folder beside it, and two renames exchange them. Whatever interrupts that, the
same call brings it to its end: until the second rename the old cohort is what counts, afterwards the new one.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from unalike import folders
from unalike.cohort.duplicates import keep_pairs
from unalike.cohort.split import select_train_rows
from unalike.cohort.store import ImageFolder, ImageWriter, digest_content, open_images
from unalike.engine import show_progress
from unalike.errors import FolderError, InputError
from unalike.folders import Header
from unalike.records import IntArray

_BEGUN = "unfinished"
_REMOVED = "Subjects were removed"


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
    ended: bool = False
    """An earlier removal was interrupted when all was done but for deleting the old images: they are deleted now."""


def drop_subject(
    *, cohort: str | Path, subjects: Sequence[str], search: str | Path | None = None, dry_run: bool = False
) -> Removal:
    """Remove all images and private entries of ``subjects`` (identifiers of the source, or pseudonyms).

    The cohort is written anew beside the old one, which then goes: pictures of it (contact sheets) go with it. Folders
    below ``search`` (default: the cohort's parent) that were made from it, or are copies of it, are listed, not
    touched; so are those made from it before an earlier removal. A dry run changes nothing.

    Raises `InputError` if a subject is not in the cohort, no train image would be left, or there is no folder
    ``search``.
    """
    path = Path(cohort).resolve()  # of a link, what it leads to is written anew
    if isinstance(subjects, str) or not subjects:
        raise InputError("no subject is named. Give identifiers as the source names them, or pseudonyms.")
    if search is not None and not Path(search).is_dir():
        raise InputError(f"{search} is no folder, so nothing can be looked for below it. Check --search.")
    ended = _is_ended(path)
    opened = open_images(_mend_swap(path, dry_run=dry_run))
    searched = Path(search) if search is not None else path.parent
    try:
        gone = _find_pseudonyms(opened, subjects)
    except InputError:
        if not ended or dry_run:
            raise
        # What the interrupted call would have told: folders that name the cohort as it was before.
        return Removal(0, 0, len(opened), searched, tuple(_find_made_from(opened, searched, set())), ended=True)
    column = opened.column("subject")
    kept = np.flatnonzero(~np.isin(column, sorted(gone))).astype(np.int64)
    if "train" not in set(opened.column("role")[kept].tolist()):
        raise InputError(f"{path} would have no train image left. Remove the whole cohort instead.")
    removal = Removal(
        subjects=len(gone),
        images=len(opened) - len(kept),
        left=len(kept),
        searched=searched,
        made_from=tuple(_find_made_from(opened, searched, gone)),
        ended=ended and not dry_run,
    )
    if not dry_run:
        _rewrite(opened, path, kept, gone)
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


@dataclass(frozen=True)
class _Search:
    """What is looked for: the cohort as it is, and digests by which older folders name it."""

    opened: ImageFolder
    gone: set[str]

    @property
    def before(self) -> set[str]:
        """Digests of the cohort before removals of other subjects: what was made then may have seen these too."""
        return {str(entry.get("cohort_before")) for entry in self.opened.header.content.get("removals", [])}


def _find_made_from(opened: ImageFolder, search: Path, gone: set[str]) -> Iterator[MadeFrom]:
    """Copies of the cohort, and folders whose inputs lead back to it, nearest first."""
    wanted = _Search(opened, gone)
    headers = list(_headers_below(search))
    known = {opened.digest} | wanted.before
    clean: set[str] = set()  # digests of runs that did not see the subjects
    told: set[Path] = {opened.path}
    for path, header in headers:
        if header.kind == "cohort" and path.resolve() != opened.path and _digest(path, header) in known:
            told.add(path)
            yield MadeFrom(path=path, kind="cohort", what="a copy of this cohort: remove these subjects there too")
    while True:
        fresh = [(path, header) for path, header in headers if path not in told and known & set(header.inputs.values())]
        if not fresh:
            return
        # What runs saw is known before what is said of their samples.
        for path, header in sorted(fresh, key=lambda entry: entry[1].kind != "run"):
            told.add(path)
            digest = _digest(path, header)
            known.add(digest)
            what, saw = _what_it_means(wanted, header, clean)
            if not saw:
                clean.add(digest)
            yield MadeFrom(path=path, kind=header.kind, what=what)


def _digest(path: Path, header: Header) -> str:
    with contextlib.suppress(OSError):
        return folders.digest_of(path, kind=header.kind) if header.path.is_file() else _begun(path)
    return ""


def _begun(path: Path) -> str:
    return f"unfinished {path}"


def _headers_below(search: Path) -> Iterator[tuple[Path, Header]]:
    """Headers of all folders of ours; of unfinished ones what their marker tells, with ``content`` unfinished."""
    for parent, inner, _ in os.walk(search):
        place = Path(parent)
        kind = folders.kind_of(place)
        hidden = {folders.IMAGES, folders.PRIVATE, folders.CHECKPOINTS}
        inner[:] = sorted(name for name in inner if name not in hidden and not name.endswith(".unalike"))
        with contextlib.suppress(FolderError, AttributeError):  # of another schema, or damaged
            if kind is not None:
                yield place, folders.read_header(place, kind=kind)
            elif (place / folders.UNFINISHED).is_file():
                begun = folders.read_json(place / folders.UNFINISHED)
                settings = begun.get("settings") or {}
                inputs = {name: value for name, value in settings.items() if isinstance(value, str)}
                yield (
                    place,
                    Header(
                        kind=str(begun.get("kind")), settings=settings, seed=0, inputs=inputs, content={_BEGUN: True}
                    ),
                )


def _what_it_means(wanted: _Search, header: Header, clean: set[str]) -> tuple[str, bool]:
    """What a folder has of the subjects, in words, and whether it (or what it was drawn from) may have any of them."""
    if header.content.get(_BEGUN):
        return "unfinished, begun on this cohort or a run of it: remove it and begin again", True
    if header.kind == "run":
        return _what_a_run_saw(wanted, header)
    if header.kind == "samples":
        if header.inputs.get("run") in clean:
            return "drawn from a run that was not trained on these subjects", False
        holds = " and copies of their images" if header.content.get("holds_training_images") else ""
        return f"drawn from a run that may have seen these subjects{holds}: draw them again from one without", True
    if header.kind == "audit":
        return "compared with the cohort, and may show these subjects: make it again", True
    return "made from the above: make it again", True


def _what_a_run_saw(wanted: _Search, header: Header) -> tuple[str, bool]:
    opened, gone = wanted.opened, wanted.gone
    older = opened.digest not in header.inputs.values()
    if older and header.content.get("subjects") is not None:
        # Whom it drew depends on subjects who are not there any more.
        return "trained on some subjects of this cohort before a removal, perhaps on these: train it again", True
    seen = gone & set(opened.column("subject")[_rows_seen(opened, header)].tolist())
    if not seen:
        return "trained on this cohort, but not on these subjects", False
    if header.content.get("holds_training_images"):
        return f"trained on {len(seen)} of these subjects, whose images it holds: remove it and train again", True
    return f"trained on {len(seen)} of these subjects: train it again without them", True


def _rows_seen(opened: ImageFolder, header: Header) -> IntArray:
    """Rows that a run was trained on; all of train where it does not say."""
    subjects, seed = (header.content.get(name) for name in ("subjects", "subject_seed"))
    if not isinstance(subjects, int) or not isinstance(seed, int):
        return opened.rows("train")
    return select_train_rows(opened, subjects=subjects, seed=seed)


def _rewrite(opened: ImageFolder, path: Path, kept: IntArray, gone: set[str]) -> None:
    """Write the cohort anew without the others, then put it in the old one's place."""
    fresh, old = folders.places_beside(path)
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
        content = dict(opened.header.content) | writer.close() | _count_anew(opened, writer.columns, kept, gone)
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
    _remove(old)


def _is_ended(path: Path) -> bool:
    """Whether an interrupted exchange had come so far that only the old cohort was left to be removed."""
    return folders.places_beside(path)[1].is_dir() and folders.kind_of(path) == "cohort"


def _mend_swap(path: Path, *, dry_run: bool) -> Path:
    """Undo an interrupted exchange before its last rename, or end it after; gives where the cohort is now.

    Undone, because the same call then does all of it again and tells again what was made with the subjects.
    """
    fresh, old = folders.places_beside(path)
    if folders.kind_of(old) == "cohort" and not path.exists():
        if dry_run:
            return old
        old.rename(path)
    elif old.is_dir() and not dry_run:
        _remove(old)
    begun_again = (fresh / folders.UNFINISHED).is_file()  # by whoever writes there next
    if fresh.is_dir() and not begun_again and not dry_run:
        _remove(fresh)
    return path


def _remove(folder: Path) -> None:
    """Remove a cohort so that an interrupted removal leaves no header without its images."""
    (folder / folders.HEADERS["cohort"]).unlink(missing_ok=True)
    shutil.rmtree(folder)


def _count_anew(
    opened: ImageFolder, columns: Mapping[str, Sequence[Any]], kept: IntArray, gone: set[str]
) -> dict[str, Any]:
    """What the header says of the removal; counts of leaks and notes are those of the preparation."""
    before = list(opened.header.content.get("removals", []))
    entry = {
        "on": datetime.now(UTC).isoformat(timespec="seconds"),
        "subjects": len(gone),
        "images": len(opened) - len(kept),
        "cohort_before": opened.digest,
    }
    notes = [note for note in opened.header.content.get("notes", []) if not note.startswith(_REMOVED)]
    told = f"{_REMOVED} from this cohort {len(before) + 1} times. What follows was said when it was prepared."
    counts: dict[str, Any] = {"removals": [*before, entry], "notes": [told, *notes]}
    if "content_digest" in opened.header.content:
        counts["content_digest"] = digest_content(columns, opened.column("subject")[kept])
    return counts


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
        rest = [_without(bad, names) for bad in folders.read_json(skipped) if bad.get("source") not in names]
        folders.write_json(fresh / folders.PRIVATE / folders.SKIPPED, rest)
    for file in (fresh / folders.PRIVATE).iterdir():
        file.chmod(0o600)


def _without(bad: Mapping[str, str], names: set[str]) -> dict[str, str]:
    """A skipped file's entry; why it was skipped may name another file, which it did not fit."""
    reason = str(bad.get("reason", ""))
    for name in sorted(names, key=len, reverse=True):
        reason = reason.replace(name, "a file since removed")
    return {**bad, "reason": reason}
