"""The leak search: is anything of a patient in a folder that is to be given away?

`search_bundle` opens every file and every stream inside it (`streams`) and looks for what it must not hold
(`needles`): pixels of the cohort's images, pseudonyms of its subjects and sources, digests of its images, and, where
the cohort still has its ``private/`` folder, original identifiers, file names and paths.

It looks for what *is* the same, bit by bit: a plane in any pose, inverted, drawn larger, with wider numbers or as
fractions, or half of it. An image that is changed, however little (JPEG, noise, other brightness, resampled), is a near
copy: that is the audit's business, not this search's. Names are found as they are written, in capitals or not, as
UTF-8, UTF-16 or Latin-1; not where they were spelled otherwise.
"""

from __future__ import annotations

import html
import json
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import quote

import numpy as np
import pyarrow.parquet as pq
import zarr

from unalike import folders
from unalike.cohort.store import ImageFolder, open_images
from unalike.errors import FolderError
from unalike.release.decoded import Stream, bound_of
from unalike.release.needles import SHORT, Found, NameNeedles, PixelNeedles
from unalike.release.streams import open_streams

What = Literal["training image", "holdout image", "pseudonym", "identifier", "path", "digest", "unsearched"]

UNMISTAKABLE = 12  # characters: longer names are found anywhere, shorter ones only where they stand alone
PLAIN = 8  # characters: shorter names are found in words only, for chance writes them into pixels
_ZARR = ("zarr.json", ".zarray")  # the headers of zarr arrays
COUNTER = 100_000  # numbers below this count something: they name nobody
_OURS = re.compile(r"sample-\d{6}(\.\w+)*")  # what synthetic images are called: of a cohort that was made of such
ORDINARY = frozenset(
    {
        "brain",
        "case",
        "channel",
        "chest",
        "data",
        "dicom",
        "file",
        "flair",
        "frame",
        "holdout",
        "image",
        "images",
        "input",
        "label",
        "labels",
        "mask",
        "masks",
        "nifti",
        "output",
        "patient",
        "patients",
        "picture",
        "sample",
        "samples",
        "scan",
        "series",
        "slice",
        "study",
        "subject",
        "subjects",
        "synthetic",
        "test",
        "testing",
        "train",
        "training",
        "valid",
        "validation",
        "volume",
    }
)


@dataclass(frozen=True)
class Leak:
    """Something that must not be in a bundle.

    ``file`` is relative to the bundle; ``where`` is the way into it ("bytes", "gzip", "zip member 2 › decoded
    picture"). ``detail`` names nobody: of names the first two characters and the length, of images how much was found.
    ``what`` is "unsearched" where something could not be opened: it may hold anything.
    """

    file: str
    where: str
    what: What
    detail: str


@dataclass(frozen=True)
class SearchResult:
    """What `search_bundle` found, and in how much: files, streams inside them, bytes of all streams.

    ``notes`` say what was not looked for, and why.
    """

    leaks: tuple[Leak, ...]
    files: int
    streams: int
    bytes_searched: int
    notes: tuple[str, ...]


def search_bundle(bundle: Path, cohort: Path) -> SearchResult:
    """Search all files below ``bundle`` for anything of the patients of ``cohort``.

    A bundle passes when ``leaks`` is empty. The cohort is read once as a whole, a block at a time; of each
    plane some hundred bytes are kept. One leak is given for each file, way and kind of find.

    Raises `FolderError` if ``bundle`` is no folder or holds no files, or ``cohort`` is no finished cohort.
    """
    bundle = Path(bundle)
    files = sorted(path for path in bundle.rglob("*") if path.is_symlink() or not path.is_dir())
    if not bundle.is_dir() or not files:
        raise FolderError(f"{bundle} holds no files to search. Name the folder of a release.")
    search = _Search(open_images(cohort))
    leaks: list[Leak] = []
    for path in files:
        name = path.relative_to(bundle).as_posix()
        leaks += search.look(name, _streams_of(path, name))
    for place in sorted({path.parent for path in files if path.name in _ZARR}):
        leaks += search.look(place.relative_to(bundle).as_posix(), _read_zarr(place))
    return SearchResult(tuple(leaks), len(files), search.streams, search.size, tuple(search.notes))


def _streams_of(path: Path, name: str) -> Iterator[Stream]:
    yield Stream("file name", name.encode("utf-8", "surrogateescape"), text=True)
    if path.is_symlink() or not path.is_file():
        yield Stream("file", problem="it is a link or no plain file: what it leads to is not searched")
        return
    try:
        data = path.read_bytes()
    except (OSError, MemoryError) as error:
        yield Stream("file", problem=f"it cannot be read ({type(error).__name__})")
        return
    for stream in open_streams(data):
        if not (stream.problem and path.name in _ZARR and stream.where == "zarr array"):  # `_read_zarr` opens it
            yield stream


def _read_zarr(place: Path) -> Iterator[Stream]:
    """The array in a zarr folder, in parts of whole chunks; nothing for a zarr group."""
    try:
        header = place / _ZARR[0]
        if header.exists() and folders.read_json(header).get("node_type") == "group":
            return
        array = zarr.open_array(place, mode="r")
        if array.nbytes > bound_of(sum(path.stat().st_size for path in place.rglob("*") if path.is_file())):
            yield Stream("zarr array", problem="more would come out than the bounds allow")
            return
        rows = array.chunks[0] if array.ndim else 1
        for begin in range(0, array.shape[0] if array.ndim else 1, rows):
            yield Stream("zarr array", values=np.asarray(array[begin : begin + rows] if array.ndim else array[...]))
    except Exception as error:  # codecs raise anything on damaged chunks
        yield Stream("zarr array", problem=f"it cannot be opened ({type(error).__name__})")


class _Search:
    """What is looked for of one cohort, and how much was looked at."""

    def __init__(self, cohort: ImageFolder) -> None:
        self.pixels = PixelNeedles(cohort)
        self.roles = ["holdout image" if role == "holdout" else "training image" for role in cohort.column("role")]
        listed = _Names(cohort)
        self.names, self.kinds = listed.names, listed.kinds
        self.table = NameNeedles(
            needle for number, name in enumerate(self.names) for needle in _spellings(name, number)
        )
        self.notes = [*self._pixel_notes(), *listed.notes]
        self.streams = self.size = 0

    def _pixel_notes(self) -> Iterator[str]:
        if self.pixels.flat:
            yield (
                f"{self.pixels.flat} of {self.pixels.planes} planes are too flat for distinctive runs of pixels: they "
                "were compared as whole planes only, in decoded pictures and arrays."
            )
        if self.pixels.plain:
            yield (
                f"{self.pixels.plain} of {self.pixels.planes} planes show so little (blank, or a small mask) that a "
                "generator may draw the same by chance: they were not looked for."
            )

    def look(self, file: str, streams: Iterable[Stream]) -> list[Leak]:
        """Leaks in the streams of one file."""
        found: dict[tuple[str, What], set[str | int]] = defaultdict(set)
        seen: set[tuple[What, str | int]] = set()
        details: dict[tuple[str, What], str] = {}
        for stream in streams:
            if stream.problem:
                details[stream.where, "unsearched"] = stream.problem
                continue
            self.streams += 1
            self.size += stream.size
            for key, who, detail in self._find(stream):
                if (key, who) in seen and key not in ("training image", "holdout image"):
                    continue  # a name that is in the file's bytes is in the text they hold
                seen.add((key, who))
                found[stream.where, key].add(who)
                details[stream.where, key] = max(details.get((stream.where, key), ""), detail)
        return [
            Leak(file, where, what, _with_count(detail, what, len(found[where, what])))
            for (where, what), detail in details.items()
        ]

    def _find(self, stream: Stream) -> Iterator[tuple[What, str | int, str]]:
        if stream.values is not None:
            yield from self._planes(self.pixels.search_values(stream.values))
            return
        yield from self._planes(self.pixels.search(stream.data))
        for number, begin, end in self.table.search(stream.data):
            name = self.names[number]
            if _stands_alone(stream, begin, end, len(name)):
                yield self.kinds[number], name, f"{name[:2]}… ({len(name)} characters)"

    def _planes(self, found: Found) -> Iterator[tuple[What, str | int, str]]:
        for plane, (some, of) in found.items():
            image = plane // self.pixels.channels
            detail = f"{some} of {of} distinctive runs of pixels" if of else "a whole plane"
            yield self.roles[image], image, detail  # type: ignore[misc]


def _with_count(detail: str, what: What, count: int) -> str:
    """One find in words, and how many others there are."""
    if count < 2:
        return detail
    return f"{count} images; of one, {detail}" if what.endswith("image") else f"{detail}, and {count - 1} more"


def _stands_alone(stream: Stream, begin: int, end: int, length: int) -> bool:
    """Whether a name is there as a word: not within a longer word or number, nor written by chance into pixels."""
    if length >= UNMISTAKABLE:
        return True
    data, wide = stream.data, 2 if end - begin >= 2 * length and b"\0" in stream.data[begin:end] else 1
    first, last = begin + (data[begin] == 0), end - 1 - (data[end - 1] == 0)
    if _same_kind(data, first, first - wide) or _same_kind(data, last, last + wide):
        return False
    if data[begin:end].isdigit() and (
        re.search(rb"\d\.\Z", data[max(0, begin - 2) : begin]) or re.match(rb"\.\d", data[end : end + 2])
    ):
        return False  # a piece of a decimal fraction, or of a version or UID
    if stream.text or length >= PLAIN or wide == 2:
        return True
    around = re.search(rb"[\t\n\r -~]*\Z", data[max(0, begin - 2 * PLAIN) : begin])
    after = re.match(rb"[\t\n\r -~]*", data[end : end + 2 * PLAIN])
    run = end - begin + len(around.group() if around else b"") + len(after.group() if after else b"")
    return run >= 2 * PLAIN


def _same_kind(data: bytes, inside: int, outside: int) -> bool:
    if not 0 <= outside < len(data):
        return False
    one, other = data[inside : inside + 1], data[outside : outside + 1]
    return (one.isdigit() and other.isdigit()) or (one.isalpha() and other.isalpha())


# --- names ------------------------------------------------------------------------------------------------------------


class _Names:
    """What a bundle must not say of a cohort: names, what each is, and notes of what was left out."""

    def __init__(self, cohort: ImageFolder) -> None:
        self.names: list[str] = []
        self.kinds: list[What] = []
        self.notes: list[str] = []
        self._common = ORDINARY | {
            word
            for text in (*set(cohort.column("label").tolist()), *cohort.channels)
            for word in (text.casefold(), *re.findall(r"[^\W\d_]+", text.casefold()))
        }
        self._left_out: set[str] = set()
        known: dict[str, What] = {}
        for column in ("subject", "source"):
            self._add(known, "pseudonym", cohort.column(column).tolist())
        self._add(known, "digest", cohort.column("digest").tolist())
        self._add_private(known, cohort.path / folders.PRIVATE)
        self._add(known, "path", [str(cohort.path.resolve())])
        self.names, self.kinds = list(known), list(known.values())
        if self._left_out:
            self.notes.append(
                f"Not looked for: {len(self._left_out)} names that are too short or too common to mean anybody (fewer "
                f"than {SHORT} characters, everyday words, counters, or file names of several subjects)."
            )

    def _add(self, known: dict[str, What], what: What, names: Iterable[str]) -> None:
        for name in dict.fromkeys(names):
            word = name.strip()
            if not word:
                continue
            counts = (word.isdecimal() and int(word) < COUNTER) or _OURS.fullmatch(word)
            if len(word) < SHORT or counts or word.casefold() in self._common:
                self._left_out.add(word)
            else:
                known.setdefault(word, what)

    def _add_private(self, known: dict[str, What], private: Path) -> None:
        try:
            columns = ("path", "identifier", "subject")
            table = pq.read_table(private / folders.SOURCES, columns=list(columns))
            paths, identifiers, subjects = (table[column].to_pylist() for column in columns)
        except FileNotFoundError:
            self.notes.append(
                "The cohort has no private/sources.parquet: original identifiers, file names and paths were not "
                "searched."
            )
            return
        except Exception as error:
            raise FolderError(f"{private / folders.SOURCES} is damaged ({error}). Restore it, or remove it.") from error
        skipped = []
        if (private / folders.SKIPPED).exists():
            skipped = [str(entry["source"]) for entry in folders.read_json(private / folders.SKIPPED)]
        self._add(known, "identifier", identifiers)
        self._add(known, "path", [*paths, *skipped])
        # Parts of a path name a patient where they are one subject's alone: "case17/t1.nii.gz" has one such part.
        whose: dict[str, set[str]] = defaultdict(set)
        for path, subject in zip([*paths, *skipped], [*subjects, *skipped], strict=True):
            for part in re.split(r"[/\\]", path):
                whose[part].add(subject)
            whose[_stem(path)].add(subject)
        several = Counter({part: len(who) for part, who in whose.items()})
        self._add(known, "path", [part for part in whose if several[part] == 1])
        self._left_out |= {part for part in whose if several[part] > 1 and part.strip() and part not in known}


def _stem(path: str) -> str:
    """The last part of a path without its suffixes (``.nii.gz`` has two)."""
    name = re.split(r"[/\\]", path)[-1]
    return re.sub(r"(\.(nii|tar|ome))?\.[A-Za-z0-9]{1,5}$", "", name, flags=re.IGNORECASE)


def _spellings(name: str, number: int) -> Iterator[tuple[bytes, int]]:
    """The bytes in which a name may be written: encodings, capitals, and how JSON, HTML and addresses spell it."""
    forms = {name}
    if not name.isascii():
        forms |= {name.lower(), name.upper(), *(unicodedata.normalize(form, name) for form in ("NFC", "NFD"))}
    if not name.replace("_", "").replace("-", "").isalnum() or not name.isascii():
        forms |= {json.dumps(form)[1:-1] for form in forms} | {html.escape(name), quote(name)}
        forms |= {name.replace("/", separator) for separator in ("\\", "\\\\", "\\/")}
    for form in forms:
        yield form.encode("utf-8", "surrogateescape"), number
    for form in (name,) if name.isascii() else (name, name.lower(), name.upper()):
        for encoding in ("utf-16-le", "utf-16-be", *(() if name.isascii() else ("latin-1",))):
            try:
                yield form.encode(encoding), number
            except UnicodeEncodeError:
                continue  # it cannot be written so
    if len(name) == 64 and re.fullmatch(r"[0-9a-f]{64}", name):
        yield bytes.fromhex(name), number
