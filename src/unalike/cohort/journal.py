"""What an interrupted preparation has finished, so that the same command goes on from there.

One JSON line an item, written once all of its images are on disk. The file lies in the cohort's private folder,
because its lines speak of the source's files, and goes when the cohort is finished.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from unalike import folders
from unalike.errors import FolderError


class Journal:
    """The lines of finished items, in the order of the plan."""

    def __init__(self, out: Path, *, plan_digest: str) -> None:
        """Open or begin the journal of the folder ``out`` for the plan of this digest.

        Raises `FolderError` if the folder was begun for another plan: its source has changed.
        """
        self.path = out / folders.PRIVATE / folders.JOURNAL
        self.waiting: list[tuple[int, str]] = []  # (images that must be on disk first, line)
        self.entries: list[dict[str, Any]] = []
        self.path.parent.mkdir(mode=0o700, exist_ok=True)
        lines = self._read()
        head = {"plan": plan_digest}
        if lines and lines[0] != head:
            if any(entry.get("records") for entry in lines):
                raise FolderError(f"{out} was begun when the source had other files. Remove it and begin again.")
            lines = []  # nothing was read yet, so nothing is lost
        self.entries = lines[1:]
        self._rewrite(lines or [head])

    def _read(self) -> list[dict[str, Any]]:
        """Whole lines; the last may be cut short by what interrupted it."""
        if not self.path.is_file():
            return []
        with self.path.open(encoding="utf-8", errors="replace") as stream:
            return list(_whole_lines(stream))

    def _rewrite(self, lines: Sequence[Mapping[str, Any]]) -> None:
        partial = self.path.with_name(self.path.name + ".partial")
        with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as stream:
            stream.writelines(json.dumps(line) + "\n" for line in lines)
        partial.replace(self.path)

    def add(self, entry: Mapping[str, Any], *, images: int, written: int) -> None:
        """Note an item that is finished once ``images`` are on disk, of which ``written`` are now."""
        self.waiting.append((images, json.dumps(entry, allow_nan=False)))
        self.catch_up(written)

    def catch_up(self, written: int) -> None:
        """Write the lines of all items whose images are on disk."""
        done = [line for images, line in self.waiting if images <= written]
        if done:
            # Opened anew each time, which is once a chunk: nothing stays open when what comes next fails.
            with self.path.open("a", encoding="utf-8") as stream:
                stream.writelines(line + "\n" for line in done)
            self.waiting = self.waiting[len(done) :]

    def close(self, *, remove: bool) -> None:
        """Forget what still waits for its images, and remove the file if the cohort is finished."""
        self.waiting = []
        if remove:
            self.path.unlink(missing_ok=True)


def _whole_lines(stream: Iterable[str]) -> Iterator[dict[str, Any]]:
    """The lines up to the first that is none of ours: cut short, or torn when the machine went down."""
    for line in stream:
        try:
            entry = json.loads(line)
        except ValueError:
            return
        if not isinstance(entry, dict):
            return
        yield entry


def holds_finished_items(out: Path) -> bool:
    """Whether an unfinished cohort has anything to go on from: an image, and not bad files alone."""
    path = out / folders.PRIVATE / folders.JOURNAL
    if not path.is_file():
        return False
    with path.open(encoding="utf-8", errors="replace") as stream:
        return any(entry.get("records") for entry in _whole_lines(stream))
