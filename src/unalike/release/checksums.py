"""checksums.sha256: the SHA-256 of every file of a bundle, in the form that ``sha256sum -c`` reads."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path

from unalike import folders
from unalike.engine import show_progress
from unalike.errors import FolderError

CHECKSUMS = "checksums.sha256"
# Two spaces: read as bytes without conversion. No control characters, no backslash, which sha256sum escapes.
_LINE = re.compile(r"([0-9a-f]{64})  ([^\x00-\x1f\x7f\\]+)")


def write_checksums(bundle: Path) -> Path:
    """Write checksums.sha256 of every other file of ``bundle``, by relative POSIX path, sorted; gives its path.

    Raises `FolderError` if something in the bundle is no plain file or folder, or has a name that a line cannot hold.
    """
    names = []
    for name, problem in walk_files(bundle):
        if problem or not _LINE.fullmatch(f"{'0' * 64}  {name}"):
            raise FolderError(f"{bundle / name} {problem or 'has a name that does not travel'}. Remove or rename it.")
        if name != CHECKSUMS:
            names.append(name)
    with show_progress("Checksums", total=len(names), unit="files") as progress:
        digests = {}
        for name in sorted(names):
            digests[name] = folders.digest_file(bundle / name)
            progress.advance()
    path = bundle / CHECKSUMS
    path.write_text(as_lines(digests), encoding="utf-8", newline="\n")
    return path


def as_lines(digests: Mapping[str, str]) -> str:
    """The text of the file: one line a name, sorted."""
    return "".join(f"{digests[name]}  {name}\n" for name in sorted(digests))


def read_lines(text: str) -> dict[str, str] | None:
    """Name → digest; None unless the text is just what `as_lines` writes, and no name leads out of the bundle."""
    digests: dict[str, str] = {}
    for line in text.split("\n")[:-1]:
        found = _LINE.fullmatch(line)
        if found is None:
            return None
        parts = found[2].split("/")
        if any(part in {"", ".", ".."} for part in parts):
            return None
        digests[found[2]] = found[1]
    return digests if as_lines(digests) == text else None


def walk_files(bundle: Path) -> Iterator[tuple[str, str]]:
    """Every entry that is no folder, as (relative POSIX path, problem); the problem is "" for a plain file.

    Links are never followed, so nothing outside the bundle is looked at.
    """
    waiting = [""]
    while waiting:
        folder = waiting.pop()
        with os.scandir(bundle / folder) as entries:
            for entry in sorted(entries, key=lambda each: each.name):
                name = f"{folder}/{entry.name}".lstrip("/")
                mode = entry.stat(follow_symlinks=False).st_mode
                if stat.S_ISDIR(mode):
                    waiting.append(name)
                elif stat.S_ISREG(mode):
                    yield name, ""
                else:
                    yield name, "is a link" if stat.S_ISLNK(mode) else "is no plain file"
