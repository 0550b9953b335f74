"""The only room that knows how a folder of unalike is laid out: names, headers, digests, atomic writes.

A stage writes one folder. It begins it with `begin_folder`, which leaves a marker (`UNFINISHED`), and ends it
with `finish_folder`, which writes the header last and atomically and takes the marker away. A folder without
a header is unfinished and no stage reads it; the marker tells whose it is, so that the same command may
resume or rebuild it, and no other folder of the user is ever touched.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from unalike.errors import FolderError
from unalike.records import as_json

SCHEMA = 2
UNFINISHED = "unfinished.json"
LOCK = ".lock"
HEADERS = {
    kind: f"{kind}.json"
    for kind in (
        "cohort",
        "run",
        "samples",
        "audit",
        "fidelity",
        "utility",
        "explain",
        "demo",
        "membership",
        "steps",
        "sweep",
        "projection",
        "release",
        "model-release",
        "study",
    )
}

IMAGES = "images.zarr"
RECORDS = "records.parquet"
PRIVATE = "private"
SOURCES = "sources.parquet"
KEY = "key"
SKIPPED = "skipped.json"
JOURNAL = "journal.jsonl"
DUPLICATES = "duplicates.parquet"
LOG = "log.jsonl"
CHECKPOINTS = "checkpoints"
MODEL = "model"
MATCHES = "matches.parquet"
QUERIES = "queries.parquet"
EXPOSURE = "exposure.parquet"
RERANKED = "reranked.parquet"
EVIDENCE = "evidence.npz"
FIGURES = "figures"
REPORT = "report.html"
CONTACT_SHEETS = "contact-sheets"
DUPLICATES_SHEET = "duplicates.png"
HISTOGRAM = "histogram.png"
INDEX = "index"
WATCH = "watch.jsonl"
WATCH_PICTURE = "watch.png"
REJECTED = "rejected.json"


@dataclass(frozen=True)
class Header:
    """The JSON header of a folder.

    ``inputs`` maps a role (``cohort``, ``run``, ``train`` …) to the digest of what the folder was made from;
    ``content`` holds what only this kind of folder has to say.
    """

    kind: str
    settings: Mapping[str, Any]
    seed: int
    inputs: Mapping[str, str]
    content: Mapping[str, Any]
    made_by: str = ""
    created: str = ""
    schema: int = SCHEMA
    path: Path = field(default=Path(), compare=False)


def made_by() -> str:
    """Name and version of this program."""
    from unalike import __version__

    return f"unalike {__version__}"


def write_json(path: Path, document: Any) -> None:
    """Write JSON so that the file is either whole or not there (temporary file, fsync, rename)."""
    temporary = path.with_name(path.name + ".partial")
    with temporary.open("w", encoding="utf-8") as stream:
        json.dump(as_json(document), stream, indent=1, ensure_ascii=False, allow_nan=False)
        stream.write("\n")
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(path)


def read_json(path: Path) -> Any:
    """Read a JSON file of ours; a damaged one is a `FolderError` that names it."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FolderError(f"{path} cannot be read as JSON ({error}). Make the folder again.") from error


def digest_file(path: Path) -> str:
    """SHA-256 of a file, as hexadecimal text."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def digest_tree(folder: Path) -> str:
    """SHA-256 over the names and digests of all files in a folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    lines = [f"{path.relative_to(folder).as_posix()} {digest_file(path)}\n" for path in files]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def begin_folder(out: Path, *, kind: str, settings: Mapping[str, Any], resumable: bool = False) -> bool:
    """Make ``out`` ready to be written and mark it unfinished.

    Returns True when an interrupted folder with the same settings is there to be resumed (only with
    ``resumable``); an unfinished folder of the same kind is otherwise emptied and begun again.

    Raises `FolderError` if ``out`` is finished, belongs to somebody else, or cannot be written.
    """
    wanted = {"kind": kind, "settings": as_json(settings)}
    try:
        found = check_free(out, kind=kind)
        if found is not None:
            _lock(out)
            if resumable and found == wanted:
                return True
            if resumable:
                raise FolderError(
                    f"{out} was begun with other settings. Repeat the first command to resume it, "
                    "choose another --out, or remove the folder."
                )
            _empty_folder(out)
        out.mkdir(parents=True, exist_ok=True)
        _lock(out)
        write_json(out / UNFINISHED, wanted)
    except OSError as error:
        raise FolderError(f"{out} cannot be written ({error.strerror or error}). Choose another --out.") from error
    return False


def check_free(out: Path, *, kind: str) -> Mapping[str, Any] | None:
    """What the marker of an unfinished folder of this kind says, or None where there is nothing yet.

    For work that is long before it can write: a folder that `begin_folder` would refuse is refused now.

    Raises `FolderError` if ``out`` is a file, finished, or belongs to somebody else.
    """
    if out.exists() and not out.is_dir():
        raise FolderError(f"{out} is a file, not a folder. Choose another --out.")
    # A process that was killed before it had marked the folder leaves no more than these two.
    begun = {LOCK, f"{UNFINISHED}.partial"}
    if not out.is_dir() or all(entry.name in begun for entry in out.iterdir()):
        return None
    marker = out / UNFINISHED
    if not marker.is_file():
        if kind_of(out) == kind:
            raise FolderError(f"{out} exists already, and is finished. Choose another --out or remove it.")
        raise FolderError(f"{out} exists already and is not empty. Choose another --out or remove it.")
    found: Mapping[str, Any] = read_json(marker)
    if found.get("kind") != kind:
        raise FolderError(f"{out} is an unfinished {found.get('kind')}. Choose another --out.")
    return found


def finish_folder(
    out: Path,
    *,
    kind: str,
    settings: Mapping[str, Any],
    seed: int,
    inputs: Mapping[str, str],
    content: Mapping[str, Any],
) -> Header:
    """Write the header of ``out``, last and atomically, and take the unfinished marker away."""
    header = Header(
        kind=kind,
        settings=as_json(settings),
        seed=seed,
        inputs=dict(inputs),
        content=as_json(content),
        made_by=made_by(),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    # kind and schema first: a person who opens the file sees at once what it is.
    document = as_json(header)
    document.pop("path")
    ordered = {key: document.pop(key) for key in ("kind", "schema", "made_by", "created")} | document
    write_json(out / HEADERS[kind], ordered)
    (out / UNFINISHED).unlink(missing_ok=True)
    _unlock(out)
    return read_header(out, kind=kind)


@contextlib.contextmanager
def new_folder(out: Path, *, kind: str, settings: Mapping[str, Any]) -> Iterator[None]:
    """Begin ``out`` and, if the body fails or is interrupted, leave nothing of it behind."""
    existed = out.is_dir()
    begin_folder(out, kind=kind, settings=settings)
    try:
        yield
    except BaseException:
        _empty_folder(out)
        _unlock(out)
        if not existed:
            shutil.rmtree(out, ignore_errors=True)
        raise


_locks: dict[Path, int] = {}


def _lock(out: Path) -> None:
    """Hold ``out`` for this process until it is finished or the process ends; another writer is refused.

    Advisory (flock), so it needs a system that has it; elsewhere nothing is held.
    """
    try:
        import fcntl
    except ImportError:
        return
    place = out.resolve()
    if place in _locks:
        return
    descriptor = os.open(place / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise FolderError(f"{out} is being written by another unalike process. Wait for it.") from error
    _locks[place] = descriptor


def _unlock(out: Path) -> None:
    descriptor = _locks.pop(out.resolve(), None)
    if descriptor is not None:
        (out / LOCK).unlink(missing_ok=True)
        os.close(descriptor)


def _empty_folder(out: Path) -> None:
    for entry in out.iterdir():
        if entry.name == LOCK:
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def give_up_folder(out: Path, *, nothing_made: Callable[[], bool] | None = None) -> bool:
    """Free an unfinished folder in which nothing has been made yet, so that a corrected command may use it.

    Without ``nothing_made`` that is a folder that holds the marker alone. Gives whether it was freed.
    """
    if nothing_made is None:
        entries = {entry.name for entry in out.iterdir()}
        empty = entries <= {UNFINISHED, LOCK}
    else:
        empty = nothing_made()
    if empty:
        _empty_folder(out)
        _unlock(out)
        out.rmdir()
    return empty


def places_beside(folder: Path) -> tuple[Path, Path]:
    """Where a folder is written anew, and where the old one waits to be removed: names that nobody else gives."""
    return folder.with_name(f".{folder.name}.new.unalike"), folder.with_name(f".{folder.name}.old.unalike")


def is_ours(folder: Path) -> bool:
    """Whether unalike made this folder, finished or not."""
    return kind_of(folder) is not None or (folder / UNFINISHED).is_file()


def kind_of(folder: Path) -> str | None:
    """Kind of a finished folder of ours, or None for any other folder."""
    for kind, name in HEADERS.items():
        if (folder / name).is_file():
            return kind
    return None


def read_header(folder: Path, *, kind: str) -> Header:
    """Read and check the header of a finished folder.

    Raises `FolderError` if the folder is missing, unfinished, of another kind, or of an unknown schema.
    """
    if not folder.is_dir():
        raise FolderError(f"{folder} does not exist or is not a folder. Check the path.")
    path = folder / HEADERS[kind]
    if not path.is_file():
        other = kind_of(folder)
        if other:
            raise FolderError(f"{folder} is a folder of kind {other}, but one of kind {kind} is needed here.")
        if (folder / UNFINISHED).is_file():
            raise FolderError(f"{folder} is unfinished. Run the command that makes it again.")
        raise FolderError(f"{folder} is no {kind} folder ({path.name} is missing). Check the path.")
    document = read_json(path)
    if not isinstance(document, dict) or document.get("kind") != kind:
        raise FolderError(f"{path} is not the header of a {kind}. Make the folder again.")
    if document.get("schema") != SCHEMA:
        raise FolderError(
            f"{path} has schema {document.get('schema')!r}, this version reads {SCHEMA}. "
            "Use the version of unalike that made it, or make the folder again."
        )
    try:
        return Header(**document, path=path)
    except TypeError as error:
        raise FolderError(f"{path} is damaged ({error}). Make the folder again.") from error


def digest_of(folder: Path, *, kind: str) -> str:
    """Digest by which other headers name this folder: SHA-256 of its header, which holds those of its content."""
    return digest_file(folder / HEADERS[kind])
