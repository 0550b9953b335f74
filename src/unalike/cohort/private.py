"""What names patients: the pseudonym key, and which pseudonym is whom. It never leaves ``private/``."""

from __future__ import annotations

import functools
import hashlib
import hmac
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from unalike import folders
from unalike.cohort.plan import BadFile, Plan


def pseudonym(key: bytes, purpose: str, text: str) -> str:
    """Keyed pseudonym of an identifier: 12 hexadecimal digits of HMAC-SHA256, which only the key can link."""
    return purpose[0] + hmac.new(key, f"{purpose}\0{text}".encode(), hashlib.sha256).hexdigest()[:12]


def write_private(
    out: Path,
    key: bytes,
    plan: Plan,
    skipped: Sequence[BadFile],
    merged: Mapping[str, str],
    sources: set[str],
) -> None:
    """What names patients: the key, and which pseudonym is whom. Readable by the owner alone."""
    private = out / folders.PRIVATE
    known: Callable[[str, str], str] = functools.cache(functools.partial(pseudonym, key))
    # Only of what the cohort holds (and what is said to be skipped): dropped pictures leave no trace here.
    sources |= {known("source", bad.source) for bad in skipped}
    items = [item for item in plan.items if item.subject in merged and known("source", item.source) in sources]
    table = {
        "source": [known("source", item.source) for item in items],
        "path": [item.source for item in items],
        "subject": [known("subject", merged[item.subject]) for item in items],
        "identifier": [item.subject for item in items],
    }
    pq.write_table(pa.table(table), private / folders.SOURCES)
    with os.fdopen(os.open(private / folders.KEY, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as stream:
        stream.write(key)
    folders.write_json(private / folders.SKIPPED, [vars(bad) for bad in skipped])
    for path in private.iterdir():
        path.chmod(0o600)
