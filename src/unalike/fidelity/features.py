"""Features of images, and the files that keep them: whatever turns an image into a vector, asked once for each image.

Two sets of images are compared by `Features`: those of the cohort itself (``fidelity.own``), which need no file of
anybody, or those of a network that was trained elsewhere (``fidelity.pretrained``).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from unalike.cohort.store import ImageFolder, iterate_blocks
from unalike.records import FloatArray, IntArray, Pixels, TextArray

FORMAT = 1  # changes whenever the same weights and images give other features, or the file means something else
HEADER = "unalike"  # key of the JSON text in the file's metadata
TABLE = "features"
AT_ONCE = 256  # images read together


class Features(Protocol):
    """Turns images into vectors, each image by itself."""

    @property
    def name(self) -> str:
        """What a report calls these features."""

    @property
    def digest(self) -> str:
        """SHA-256, as hexadecimal text, of all that a vector depends on beside the image."""

    def embed(self, images: Pixels) -> FloatArray:
        """Vectors (n, D) of images (n, C, H, W) with all channels of the cohort."""


def embed_cached(features: Features, folder: ImageFolder, rows: IntArray, cache: Path | None) -> FloatArray:
    """Features (len(rows), D) of these images, read from the folder ``cache`` where they are there, else kept there.

    One file holds the features of one set of images, ``features-<key>.safetensors``; the key is of the features'
    digest and the images' digests, so that neither order nor repetition of rows matters, nor which folder they lie
    in. It is as internal as the images. A damaged file is replaced; without a ``cache``, or where it cannot be
    written, features are made all the same.

    Raises what ``features.embed`` raises.
    """
    if len(rows) == 0:
        return features.embed(folder.read(rows))
    digests, first, place_of = np.unique(folder.column("digest")[rows], return_index=True, return_inverse=True)
    place, key = find_place(cache, features, digests)
    table = load_table(place, key, len(digests))
    if table is None:
        table = embed_rows(features, folder, np.asarray(rows)[first])
        keep_table(place, key, table)
    found: FloatArray = table[place_of]
    return found


def find_place(cache: Path | None, features: Features, images: TextArray) -> tuple[Path | None, str]:
    """File and key of the features of images with these digests (ascending)."""
    key = name_set(features.digest, images.tolist())
    return None if cache is None else cache / f"features-{key[:32]}.safetensors", key


def name_set(features: str, images: Sequence[str]) -> str:
    """SHA-256 of the features with the digest ``features`` of images with these digests (ascending)."""
    return hashlib.sha256(json.dumps([FORMAT, features, images]).encode()).hexdigest()


def embed_rows(features: Features, folder: ImageFolder, rows: IntArray) -> FloatArray:
    """Features of different rows in any order; the folder is read in its own order, block by block."""
    order = np.argsort(rows)
    parts = [
        features.embed(pixels[begin : begin + AT_ONCE])
        for _, pixels in iterate_blocks(folder, rows[order])
        for begin in range(0, len(pixels), AT_ONCE)
    ]
    table: FloatArray = np.concatenate(parts)[np.argsort(order)]
    return table


def load_table(place: Path | None, key: str, count: int) -> FloatArray | None:
    """The table (count, …) that `keep_table` wrote, or None if it is missing, damaged, or of another key."""
    if place is None:
        return None
    try:
        with safe_open(place, framework="numpy") as stream:
            header = json.loads((stream.metadata() or {})[HEADER])
            table = stream.get_tensor(TABLE)
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, AttributeError):
        return None
    if header != {"key": key, "digest": table_digest(table)} or table.dtype != np.float64 or len(table) != count:
        return None
    return np.asarray(table)


def keep_table(place: Path | None, key: str, table: FloatArray) -> None:
    """Write the file, whole or not at all; a cache that cannot be written costs time, nothing else."""
    if place is None:
        return
    table = np.ascontiguousarray(table)
    data = save({TABLE: table}, metadata={HEADER: json.dumps({"key": key, "digest": table_digest(table)})})
    # A name of its own: two processes may write the same file.
    partial = place.with_name(f"{place.name}.{secrets.token_hex(4)}.partial")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(place)
    except OSError:
        pass
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def table_digest(table: FloatArray) -> str:
    """SHA-256 of an array's numbers, shape and type."""
    return hashlib.sha256(f"{table.shape}{table.dtype.str}".encode() + table.tobytes()).hexdigest()
