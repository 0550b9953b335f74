"""Files of weights fetched from their authors' page: once, whole, with the digest that their name bears.

Only who asks for it gets anything fetched; nothing else in this package opens a connection.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import os
import re
import secrets
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from unalike.errors import FolderError, InputError, SettingsError

MOST_BYTES = 2**31  # of a file
WAIT = 60  # seconds without a byte, after which there is no network
_NAME = re.compile(r"[\w.-]*-([0-9a-f]{8,64})\.[a-z]+")  # torch's convention: the SHA-256 begins with these digits
_CHUNK = 2**20
_INSTEAD = "Fetch the file elsewhere and give it with --weights FILE."


def fetch_weights(url: str, *, folder: Path | None = None) -> Path:
    """The file at ``url``, fetched if it is not in ``folder`` (None: `cache_folder`) yet.

    The file's name ends with the first digits of its SHA-256, as in ``resnet18-f37072fd.pth``; they are compared each
    time, and a file of another digest is deleted. It is written whole or not at all.

    Raises `SettingsError` for an address that does not begin with https:// or names no digest, `InputError` if the file
    cannot be fetched, is larger than `MOST_BYTES`, or has another digest, `FolderError` if it cannot be written.
    """
    parts = urllib.parse.urlsplit(url)
    name = parts.path.rpartition("/")[2]
    named = _NAME.fullmatch(name)
    if parts.scheme != "https" or not parts.hostname:
        raise SettingsError(f"{url} does not begin with https://. {_INSTEAD}")
    if named is None:
        raise SettingsError(f"{url} does not end with the digest of the file (NAME-0123abcd.pth). {_INSTEAD}")
    folder = cache_folder() if folder is None else folder
    path = folder / name
    try:
        if path.is_file() and digest_file(path).startswith(named[1]):
            return path
        folder.mkdir(parents=True, exist_ok=True)
        partial = folder / f"{name}.{secrets.token_hex(4)}.partial"
        try:
            _write(url, partial, named[1])
            partial.replace(path)
        finally:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)
    except OSError as error:
        raise FolderError(f"{folder} cannot be written ({error.strerror or error}). {_INSTEAD}") from error
    return path


def cache_folder() -> Path:
    """Where fetched files stay: ``unalike/weights`` in ``$XDG_CACHE_HOME`` or ``~/.cache``."""
    given = os.environ.get("XDG_CACHE_HOME", "")
    base = Path(given) if Path(given).is_absolute() else Path.home() / ".cache"
    return base / "unalike" / "weights"


def digest_file(path: Path) -> str:
    """SHA-256 of a file, as hexadecimal text."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _write(url: str, partial: Path, digits: str) -> None:
    """Write what is at ``url`` into a new file if its digest begins with these digits."""
    digest, size = hashlib.sha256(), 0
    with partial.open("xb") as stream:
        for chunk in _receive(url):
            size += len(chunk)
            if size > MOST_BYTES:
                raise InputError(f"{url} has more than {MOST_BYTES:,} bytes: refused. {_INSTEAD}")
            digest.update(chunk)
            stream.write(chunk)
        stream.flush()
        os.fsync(stream.fileno())
    if not digest.hexdigest().startswith(digits):
        found = digest.hexdigest()[: len(digits)]
        raise InputError(f"{url} has the digest {found}, not {digits}: deleted. {_INSTEAD}")


def _receive(url: str) -> Iterator[bytes]:
    """The bytes at ``url``, piece by piece; whatever goes wrong on the way is an `InputError`."""
    try:
        with open_url(url) as response:
            if not response.geturl().startswith("https://"):
                raise InputError(f"{url} leads to an address without https://: refused. {_INSTEAD}")
            while chunk := response.read(_CHUNK):
                yield chunk
    except (OSError, http.client.HTTPException, ValueError) as error:
        told = " ".join(str(getattr(error, "reason", error)).split())
        raise InputError(f"{url} cannot be fetched ({told}). {_INSTEAD}") from error


def open_url(url: str) -> AbstractContextManager[Any]:
    """A response to read from, for an address that begins with https://."""
    response: AbstractContextManager[Any] = urllib.request.urlopen(url, timeout=WAIT)  # noqa: S310 - https, checked
    return response
