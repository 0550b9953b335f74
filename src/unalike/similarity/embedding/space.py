"""A learned space: images become vectors of unit length, kept in one safetensors file, searched by cosine."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from unalike.errors import FolderError, InputError, PictureError, UnalikeError
from unalike.records import FloatArray, IntArray, Pixels, as_json
from unalike.similarity.embedding.network import Encoder, build_networks, shrink
from unalike.similarity.embedding.settings import EmbeddingSettings, settings_from_json

Vectors = npt.NDArray[np.float32]

HEADER = "unalike"  # key of the JSON text in the file's metadata
FORMAT = 1
MOST_CHANNELS = 1024
# Vectors are rounded to multiples of 2⁻²⁶, finer than float32 holds most of them: products are then whole numbers of
# 2⁻⁵², and no sum of them leaves the 53 bits of a float64 where vectors are of length 1.
UNITS = 2.0**26
LONGEST = 1.001
QUERIES_AT_ONCE, REFERENCES_AT_ONCE = 256, 4096


@dataclass(frozen=True)
class Embedding:
    """A trained space.

    ``channels`` are those of an image that it looks at; ``highest`` is the pixel value of full brightness in images of
    ``dtype``; ``key`` names what it was trained from (empty: not given); ``losses`` are the mean losses of ten equal
    parts of the training, in order.
    """

    settings: EmbeddingSettings
    seed: int
    channels: tuple[int, ...]
    dtype: str
    highest: int
    key: str
    losses: tuple[float, ...]
    encoder: Encoder = field(repr=False, compare=False)

    @torch.no_grad()
    def embed(self, images: Pixels, *, batch: int = 256) -> Vectors:
        """Vectors (n, dimension) float32 of unit length for images (n, C, H, W), ``batch`` at a time.

        The images have all the channels that those in training had. What one becomes does not depend on the others,
        but for rounding.

        Raises `PictureError` if the images are of another depth than those in training, or lack a channel.
        """
        if images.dtype.name != self.dtype:
            raise PictureError(
                f"images are {images.dtype.name}, the space was trained on {self.dtype}. Prepare them alike."
            )
        if batch < 1:
            raise InputError(f"batch = {batch}: give at least 1 image.")
        place = self.encoder.centre.device
        vectors = np.empty((len(images), self.settings.dimension), dtype=np.float32)
        for begin in range(0, len(images), batch):
            part = images[begin : begin + batch]
            small = shrink(part, channels=self.channels, side=self.settings.side, highest=self.highest)
            found = self.encoder(small.clamp_(max=1).to(place)) - self.encoder.centre
            vectors[begin : begin + batch] = torch.nn.functional.normalize(found).cpu().numpy()
        return vectors

    def to(self, device: torch.device) -> Embedding:
        """This space with its network moved to ``device``."""
        self.encoder.to(device)
        return self

    @property
    def digest(self) -> str:
        """SHA-256 of all weights, as hexadecimal text."""
        return digest_weights(self.encoder.state_dict())


def digest_weights(weights: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 over names, shapes and bytes of ``weights``, in the order of their names."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        array = weights[name].detach().cpu().contiguous().numpy()
        digest.update(f"{name} {array.shape} {array.dtype.str}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def save_embedding(embedding: Embedding, path: Path) -> None:
    """Write ``embedding`` into one safetensors file with a JSON header, whole or not at all.

    Raises `FolderError` if it cannot be written.
    """
    weights = {name: tensor.cpu().contiguous() for name, tensor in embedding.encoder.state_dict().items()}
    header = {
        "format": FORMAT,
        "settings": embedding.settings,
        "digest": digest_weights(weights),
        **{name: getattr(embedding, name) for name in ("seed", "channels", "dtype", "highest", "key", "losses")},
    }
    data = save(weights, metadata={HEADER: json.dumps(as_json(header), allow_nan=False)})
    temporary: Path | None = None
    try:
        # A name of its own: two processes may write the same file.
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".partial", delete=False) as stream:
            temporary = Path(stream.name)
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)  # noqa: PTH105 - what happens is a replacement
    except OSError as error:
        raise FolderError(f"{path} cannot be written ({error.strerror or error}). Choose another folder.") from error
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)


def load_embedding(path: Path, *, device: torch.device | None = None) -> Embedding:
    """Read a space written by `save_embedding`, onto ``device`` (None: the CPU).

    Names, shapes and settings are checked before memory is taken for weights, and the weights against their digest.

    Raises `FolderError` if the file is missing, damaged, or of another kind.
    """
    try:
        with safe_open(path, framework="pt") as stream:
            embedding = _read(stream)
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, AttributeError, UnalikeError) as error:
        said = " ".join(str(error).split())[:200] or type(error).__name__
        raise FolderError(f"{path} cannot be read as a learned space ({said}). Remove the file.") from error
    return embedding if device is None else embedding.to(device)


def _read(stream: Any) -> Embedding:
    header = json.loads((stream.metadata() or {})[HEADER])
    if header["format"] != FORMAT:
        raise ValueError(f"format {header['format']!r} is unknown")
    settings = settings_from_json(header["settings"])
    channels = tuple(_whole(entry, 2**16) for entry in header["channels"])
    if not 1 <= len(channels) <= MOST_CHANNELS:
        raise ValueError(f"{len(channels)} channels")
    if header["dtype"] not in ("uint8", "uint16"):
        raise ValueError(f"pixels of {header['dtype']!r}")
    # On the meta device a network has shapes but takes no memory.
    with torch.device("meta"):
        shapes = {name: list(entry.shape) for name, entry in Encoder(len(channels), settings).state_dict().items()}
    if {name: stream.get_slice(name).get_shape() for name in stream.keys()} != shapes:  # noqa: SIM118
        raise ValueError("weights do not fit the settings")
    weights = {name: stream.get_tensor(name) for name in shapes}
    if digest_weights(weights) != header["digest"]:
        raise ValueError("weights differ from their digest")
    encoder, _ = build_networks(settings, channels=len(channels), seed=0)
    encoder.load_state_dict(weights)
    return Embedding(
        settings=settings,
        seed=_whole(header["seed"], 2**64),
        channels=channels,
        dtype=header["dtype"],
        highest=max(1, _whole(header["highest"], 2**16)),
        key=str(header["key"]),
        losses=tuple(float(loss) for loss in header["losses"]),
        encoder=encoder.train(False).requires_grad_(False),
    )


def _whole(value: object, limit: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < limit:
        raise ValueError(f"{value!r} is not a whole number from 0 to {limit - 1}")
    return value


def find_by_cosine(*, queries_vectors: Vectors, reference_vectors: Vectors, best: int) -> tuple[IntArray, FloatArray]:
    """Indices and cosines (Q, k) of the ``best`` references nearest to each query, best first; k ≤ ``best``.

    Vectors (Q, D) and (R, D) are of unit length; fewer references than ``best`` make k smaller. Vectors are rounded to
    multiples of 2⁻²⁶ and their products summed exactly, so the answer does not depend on blocks, threads or machine,
    and equal vectors have equal cosines: the lower index comes first.

    Raises `InputError` if the shapes do not fit, a number is not finite, or a vector is longer than 1.
    """
    _check(queries_vectors, reference_vectors, best)
    queries = np.rint(queries_vectors.astype(np.float64) * UNITS)
    count = min(best, len(reference_vectors))
    indices = np.zeros((len(queries), count), dtype=np.int64)
    cosines = np.full((len(queries), count), -np.inf)
    for first in range(0, len(reference_vectors), REFERENCES_AT_ONCE):
        references = np.rint(reference_vectors[first : first + REFERENCES_AT_ONCE].astype(np.float64) * UNITS).T
        own = np.arange(first, first + references.shape[1])
        for begin in range(0, len(queries), QUERIES_AT_ONCE):
            part = slice(begin, begin + QUERIES_AT_ONCE)
            products = queries[part] @ references
            # What was found before comes first: its indices are lower.
            values = np.concatenate([cosines[part], products], axis=1)
            names = np.concatenate([indices[part], np.broadcast_to(own, products.shape)], axis=1)
            _keep_best(values, names, cosines[part], indices[part])
    return indices, np.clip(cosines / UNITS**2, -1, 1)


def _keep_best(values: FloatArray, names: IntArray, cosines: FloatArray, indices: IntArray) -> None:
    """Move the highest ``values`` and their ``names`` into the rows of ``cosines`` and ``indices``, in place."""
    rows = np.arange(len(values))
    for place in range(cosines.shape[1]):
        chosen = values.argmax(axis=1)  # the first of equal ones
        cosines[:, place], indices[:, place] = values[rows, chosen], names[rows, chosen]
        values[rows, chosen] = -np.inf


def _check(queries: Vectors, references: Vectors, best: int) -> None:
    if queries.ndim != 2 or references.ndim != 2 or queries.shape[1] != references.shape[1]:
        raise InputError(f"vectors {queries.shape} and {references.shape} do not fit. Give (Q, D) and (R, D).")
    if best < 1:
        raise InputError(f"best = {best}: give at least 1.")
    for name, vectors in (("queries", queries), ("references", references)):
        lengths = np.linalg.norm(vectors.astype(np.float64), axis=1)
        if not (np.isfinite(lengths).all() and (lengths <= LONGEST).all()):
            raise InputError(f"vectors of the {name} are not of unit length. Divide each by its length.")
