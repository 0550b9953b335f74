"""What images are compared by when two sets are compared: vectors of the cohort's own autoencoder.

A network that was trained on photographs knows nothing of contrast agents and field strengths, and would have to be
downloaded. The autoencoder of the train images (``similarity.embedding``) knows what these images are made of, offline,
and with all channels at once. Its vectors are taken here before they are made of unit length, because their length
tells something of contrast. They are in no common unit: distances compare only within one `Features.digest`.

What it sees, of 64 × 64 slices of the phantom: a tenth less contrast, more brightness, few images in place of many.
What it hardly sees: noise and blur (a few numbers cannot draw fine detail again and need not tell of it), and the
contrast of images that fill the whole field, because its layers normalise each image.

Train images are those that the autoencoder learned; it may describe images of held-out subjects a little less well, and
so set both real sets a little apart.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from unalike import folders
from unalike.cohort.store import ImageFolder, iterate_blocks
from unalike.engine import Progress
from unalike.errors import InputError, PictureError
from unalike.records import MASK, FloatArray, IntArray, Pixels
from unalike.similarity.embedding.network import shrink
from unalike.similarity.embedding.settings import EmbeddingSettings
from unalike.similarity.embedding.space import Embedding
from unalike.similarity.embedding.train import cached_embedding

FORMAT = 1  # changes whenever the same weights and images give other features, or the file means something else
HEADER = "unalike"  # key of the JSON text in the file's metadata
TABLE = "features"
SETTINGS = EmbeddingSettings(kind="autoencoder")
AT_ONCE = 256  # images in the network together


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


@dataclass(frozen=True, eq=False)
class AutoencoderFeatures:
    """`Features` from the encoder of a learned space: its vectors less their mean in training, of any length."""

    space: Embedding

    @property
    def name(self) -> str:
        """What a report calls these features."""
        return f"autoencoder of the cohort ({self.digest[:8]})"

    @cached_property
    def digest(self) -> str:
        """SHA-256 of weights, channels, and how pixels are scaled."""
        space = self.space
        told = [FORMAT, space.digest, list(space.channels), space.dtype, space.highest, space.settings.side]
        return hashlib.sha256(json.dumps(told).encode()).hexdigest()

    @torch.no_grad()
    def embed(self, images: Pixels) -> FloatArray:
        """Vectors (n, D) of images (n, C, H, W) with all channels of the cohort, in its pixel type.

        Pixels brighter than the brightest in training count as that. What an image becomes does not depend on the
        others, but for rounding. Raises `PictureError` for another depth, shape, or missing channels.
        """
        space = self.space
        if images.dtype.name != space.dtype:
            raise PictureError(
                f"images are {images.dtype.name}, the features were learned on {space.dtype}. Prepare them alike."
            )
        vectors = np.empty((len(images), space.settings.dimension))
        for begin in range(0, len(images), AT_ONCE):
            part = slice(begin, begin + AT_ONCE)
            small = shrink(images[part], channels=space.channels, side=space.settings.side, highest=space.highest)
            # What `Embedding.embed` does, without making lengths 1.
            found = space.encoder(small.clamp_(max=1).to(space.encoder.centre.device)) - space.encoder.centre
            vectors[part] = found.cpu().numpy()
        return vectors


def open_cohort_features(
    cohort: ImageFolder,
    *,
    rows: IntArray,
    seed: int,
    device: torch.device,
    side: int | None = None,
    progress: Progress | None = None,
) -> AutoencoderFeatures:
    """The features of the cohort's own autoencoder, trained on its train images ``rows``, on ``device``.

    All channels count but the mask (where there is nothing else, the mask). ``side`` is the height and width to which
    images are averaged, a multiple of 16 in pixels (None: that of `SETTINGS`, 64). Training takes minutes and is told
    to ``progress``; the space is kept under the cohort's ``index/``, where an audit finds the same one by the same
    rows and seed. The order of rows does not matter.

    Raises `InputError` if a row is not of the train role or there are fewer than two, `SettingsError` for another
    ``side``, `PictureError` and `NonFiniteLossError` as `train_embedding`.
    """
    wanted = np.unique(rows).astype(np.int64)
    others = np.setdiff1d(wanted, cohort.rows("train"))
    if len(others):
        raise InputError(f"row {others[0]} of {cohort.path} is no train image. Learn features from train rows only.")
    settings = SETTINGS if side is None else dataclasses.replace(SETTINGS, side=side)
    channels = [index for index, name in enumerate(cohort.channels) if name != MASK] or [0]
    _, subjects = np.unique(cohort.column("subject")[wanted], return_inverse=True)
    space = cached_embedding(
        cache=cohort.path / folders.INDEX,
        digests=cohort.column("digest")[wanted].tolist(),
        read=cohort.read,
        rows=wanted,
        channels=channels,
        settings=settings,
        seed=seed,
        device=device,
        subjects=subjects.astype(np.int64),
        progress=progress,
    )
    return AutoencoderFeatures(space)


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
    key = _key(features.digest, digests.tolist())
    place = None if cache is None else cache / f"features-{key[:32]}.safetensors"
    table = None if place is None else _load(place, key, len(digests))
    if table is None:
        table = _embed_rows(features, folder, np.asarray(rows)[first])
        if place is not None:
            _keep(place, key, table)
    found: FloatArray = table[place_of]
    return found


def _key(features: str, images: Sequence[str]) -> str:
    return hashlib.sha256(json.dumps([FORMAT, features, images]).encode()).hexdigest()


def _embed_rows(features: Features, folder: ImageFolder, rows: IntArray) -> FloatArray:
    """Features of different rows in any order; the folder is read in its own order, block by block."""
    order = np.argsort(rows)
    parts = [
        features.embed(pixels[begin : begin + AT_ONCE])
        for _, pixels in iterate_blocks(folder, rows[order])
        for begin in range(0, len(pixels), AT_ONCE)
    ]
    table: FloatArray = np.concatenate(parts)[np.argsort(order)]
    return table


def _load(place: Path, key: str, count: int) -> FloatArray | None:
    """The table (count, D) that `_keep` wrote, or None if it is missing, damaged, or of another key."""
    try:
        with safe_open(place, framework="numpy") as stream:
            header = json.loads((stream.metadata() or {})[HEADER])
            table = stream.get_tensor(TABLE)
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, AttributeError):
        return None
    if header != {"key": key, "digest": _digest(table)} or table.dtype != np.float64 or len(table) != count:
        return None
    return np.asarray(table)


def _keep(place: Path, key: str, table: FloatArray) -> None:
    """Write the file, whole or not at all; a cache that cannot be written costs time, nothing else."""
    table = np.ascontiguousarray(table)
    data = save({TABLE: table}, metadata={HEADER: json.dumps({"key": key, "digest": _digest(table)})})
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


def _digest(table: FloatArray) -> str:
    return hashlib.sha256(f"{table.shape}{table.dtype.str}".encode() + table.tobytes()).hexdigest()
