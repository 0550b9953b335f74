"""Training of a learned space, by reconstruction or by contrast.

Contrast: two random views of each image of a batch; a view is to be nearer to the other view of its image than to
views of other subjects' images. The loss is NT-Xent of Chen et al., "A Simple Framework for Contrastive Learning of
Visual Representations" (2020), equation 1, with one change: images of the same subject are not among the others, as
neighbouring slices would be pushed apart. Such a space finds copies of patients that are mirrored, turned or of
another contrast (Dar et al., "Unconditional Latent Diffusion Models Memorize Patient Imaging Data", 2023).

Every random number of update n comes from a stream keyed by n. On a CPU, with as many threads, the same seed gives
the same weights.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from unalike.engine import Progress
from unalike.errors import FolderError, InputError, NonFiniteLossError, SettingsError
from unalike.records import IntArray, Pixels, as_json
from unalike.seeds import generator_for, seed_for
from unalike.similarity.embedding.network import Decoder, Encoder, build_networks, shrink
from unalike.similarity.embedding.settings import EmbeddingSettings
from unalike.similarity.embedding.space import Embedding, load_embedding, save_embedding
from unalike.similarity.embedding.views import draw_numbers, make_view

# Changes whenever the same images, settings and seed give another space.
CODE_VERSION = 1
READ_AT_ONCE = 256
WEIGHT_DECAY = 0.01
LONGEST_GRADIENT = 1.0
PARTS = 10  # of the training, whose mean losses are kept


def train_embedding(
    *,
    read: Callable[[IntArray], Pixels],
    rows: IntArray,
    channels: Sequence[int],
    settings: EmbeddingSettings,
    seed: int,
    device: torch.device,
    subjects: IntArray | None = None,
    progress: Progress | None = None,
    key: str = "",
) -> Embedding:
    """Train a space on the images ``rows``, of which ``read`` gives pixels (n, C, H, W), 8- or 16-bit.

    ``channels`` are the positions of those that count (leave out a mask). ``subjects`` (len(rows),) tells images of
    the same subject by the same number; without it every image is a subject of its own. ``progress`` is told of
    each update. All images are kept in memory as small as the network sees them, in float16.

    Raises `InputError` if there are fewer than two images or, for contrast, subjects; `PictureError` if the images do
    not fit, and `NonFiniteLossError` if the training diverges.
    """
    rows, subjects = _choose(rows, subjects, channels, settings, seed)
    small, dtype, highest = _read_small(read, rows, channels, settings.side)
    encoder, decoder = build_networks(settings, channels=len(channels), seed=seed_for(seed, "embedding weights"))
    deviation, mean = torch.std_mean(small.double(), dim=(0, 2, 3), correction=0)
    encoder.mean.copy_(mean)
    encoder.deviation.copy_(deviation.clamp(min=1e-3))
    encoder.to(device).train()
    if decoder is not None:
        decoder.to(device).train()
    state = _Training(encoder, decoder, settings, seed, torch.from_numpy(subjects).to(device))
    losses = state.run(small.to(device), progress or Progress())
    encoder.train(False).requires_grad_(False)
    if decoder is not None:
        encoder.centre.copy_(_mean_vector(encoder, small, device))
    return Embedding(
        settings=settings,
        seed=seed,
        channels=tuple(int(channel) for channel in channels),
        dtype=dtype,
        highest=highest,
        key=key,
        losses=losses,
        encoder=encoder,
    )


def _choose(
    rows: IntArray, subjects: IntArray | None, channels: Sequence[int], settings: EmbeddingSettings, seed: int
) -> tuple[IntArray, IntArray]:
    """Rows to train on and their subjects as codes, both (n,), n ≤ most_images."""
    if len(channels) == 0 or min(channels) < 0 or len(set(channels)) < len(channels):
        raise SettingsError(f"channels = {list(channels)}: give at least one position, each once.")
    codes = np.arange(len(rows)) if subjects is None else np.asarray(subjects)
    if codes.shape != rows.shape:
        raise InputError(f"{len(rows)} rows have {len(codes)} subjects. Give one for each row.")
    if len(rows) > settings.most_images:
        kept = generator_for(seed, "embedding images").choice(len(rows), settings.most_images, replace=False)
        kept.sort()
        rows, codes = rows[kept], codes[kept]
    codes = np.unique(codes, return_inverse=True)[1].astype(np.int64)
    least = len(np.unique(codes)) if settings.kind == "contrastive" else len(rows)
    if least < 2:
        unit = "subjects" if settings.kind == "contrastive" else "images"
        raise InputError(f"a learned space needs at least 2 {unit} to train on, and there are {least}. Add some.")
    return rows, codes


def _read_small(
    read: Callable[[IntArray], Pixels], rows: IntArray, channels: Sequence[int], side: int
) -> tuple[torch.Tensor, str, int]:
    """All images as (n, C, side, side) float16 from 0 to 1, the type of their pixels, and the value that became 1."""
    small = torch.empty(len(rows), len(channels), side, side, dtype=torch.float16)
    dtype, highest = "", 1
    for begin in range(0, len(rows), READ_AT_ONCE):
        images = read(rows[begin : begin + READ_AT_ONCE])
        dtype = images.dtype.name
        full = 255 if dtype == "uint8" else 65535
        small[begin : begin + READ_AT_ONCE] = shrink(images, channels=channels, side=side, highest=full)
        highest = 255 if dtype == "uint8" else max(highest, int(images[:, list(channels)].max()))
    if dtype == "uint16":
        small *= 65535 / highest  # scanners use 10 to 14 of the 16 bits
    return small, dtype, highest


@dataclasses.dataclass
class _Training:
    """What an update needs, and changes."""

    encoder: Encoder
    decoder: Decoder | None
    settings: EmbeddingSettings
    seed: int
    subjects: torch.Tensor  # (n,) int64

    def run(self, small: torch.Tensor, progress: Progress) -> tuple[float, ...]:
        """All updates on images ``small`` (n, C, side, side); mean losses of ten parts, or of each update if fewer."""
        settings = self.settings
        batch = min(settings.batch, len(small))
        networks = nn.ModuleList([self.encoder] if self.decoder is None else [self.encoder, self.decoder])
        weights = list(networks.parameters())
        optimizer = torch.optim.AdamW(weights, lr=settings.learning_rate, weight_decay=WEIGHT_DECAY, fused=True)
        losses = []
        for n in range(settings.steps):
            positions = torch.from_numpy(_batch_positions(n, len(small), batch, self.seed)).to(small.device)
            images = small[positions].float()
            loss = self.contrast(images, positions, n) if self.decoder is None else self.reconstruct(images)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(weights, LONGEST_GRADIENT)
            for group in optimizer.param_groups:
                group["lr"] = _learning_rate(settings, n)
            optimizer.step()
            losses.append(loss.item())
            if not math.isfinite(losses[-1]):
                raise NonFiniteLossError(
                    f"the training of the learned space diverged at step {n + 1}: loss {losses[-1]}. "
                    "Use a smaller learning_rate."
                )
            progress.advance(1, f"loss {losses[-1]:.4f}")
        return tuple(float(np.mean(part)) for part in np.array_split(losses, min(PARTS, len(losses))))

    def contrast(self, images: torch.Tensor, positions: torch.Tensor, n: int) -> torch.Tensor:
        """Loss of update ``n``: two views of each image are to lie near."""
        random = generator_for(self.seed, "embedding views", n)
        views = [make_view(images, draw_numbers(tuple(images.shape), random, images.device)) for _ in range(2)]
        vectors = F.normalize(self.encoder(torch.cat(views)))
        return nt_xent(vectors, self.subjects[positions], temperature=self.settings.temperature)

    def reconstruct(self, images: torch.Tensor) -> torch.Tensor:
        """Mean squared error of the standardised images drawn again."""
        assert self.decoder is not None  # noqa: S101
        return F.mse_loss(self.decoder(self.encoder(images)), self.encoder.standardise(images))


def nt_xent(vectors: torch.Tensor, subjects: torch.Tensor, *, temperature: float) -> torch.Tensor:
    """Mean of −log(e^(s_ij/τ) / Σ_k e^(s_ik/τ)) over all views i, j being the other view of the same image.

    ``vectors`` (2n, D) are of unit length, views i and i + n of the same image; s are their inner products. The sum
    runs over j and all views k of other ``subjects`` (n,) (Chen et al. 2020, equation 1, where every image is a
    subject of its own).
    """
    count = len(subjects)
    scores = vectors @ vectors.T / temperature
    codes = torch.cat([subjects, subjects])
    partners = torch.arange(2 * count, device=vectors.device).roll(count)
    left_out = codes[:, None] == codes[None, :]
    left_out[torch.arange(2 * count, device=vectors.device), partners] = False
    return F.cross_entropy(scores.masked_fill(left_out, -torch.inf), partners)


def _learning_rate(settings: EmbeddingSettings, n: int) -> float:
    """Learning rate of update n (from 0): a linear rise over a tenth of the training, then half a cosine to 0."""
    rise = max(1, settings.steps // 10)
    if n < rise:
        return settings.learning_rate * (n + 1) / rise
    return settings.learning_rate * 0.5 * (1 + math.cos(math.pi * (n - rise) / max(1, settings.steps - rise)))


def _batch_positions(n: int, count: int, batch: int, seed: int) -> IntArray:
    """Positions (batch,) among ``count`` images of batch n, the n-th piece of endless shuffles."""
    epochs, within = np.divmod(np.arange(n * batch, (n + 1) * batch), count)
    orders = {e: generator_for(seed, "embedding order", int(e)).permutation(count) for e in np.unique(epochs)}
    return np.array([orders[e][place] for e, place in zip(epochs, within, strict=True)], dtype=np.int64)


@torch.no_grad()
def _mean_vector(encoder: Encoder, small: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Mean vector (dimension,) of all images: without it, vectors of an autoencoder all point much the same way."""
    parts = [encoder(part.to(device).float()).double().sum(0) for part in torch.split(small, READ_AT_ONCE)]
    return torch.stack(parts).sum(0) / len(small)


def embedding_key(
    *,
    digests: Sequence[str],
    channels: Sequence[int],
    settings: EmbeddingSettings,
    seed: int,
    subjects: IntArray | None = None,
) -> str:
    """SHA-256, as hexadecimal text, of all that a space depends on: images, who they are of, settings, seed, code."""
    codes = [] if subjects is None else np.unique(subjects, return_inverse=True)[1].tolist()
    told = [CODE_VERSION, list(digests), codes, [int(c) for c in channels], as_json(settings), seed]
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def cached_embedding(
    *,
    cache: Path | None,
    digests: Sequence[str],
    read: Callable[[IntArray], Pixels],
    rows: IntArray,
    channels: Sequence[int],
    settings: EmbeddingSettings,
    seed: int,
    device: torch.device,
    subjects: IntArray | None = None,
    progress: Progress | None = None,
) -> Embedding:
    """The space of `train_embedding`, read from the folder ``cache`` where it is there, else trained and kept there.

    ``digests`` (len(rows),) are those of the images; with subjects, channels, settings, seed and the version of this
    code they name the file, ``embedding-<key>.safetensors``. A damaged file is replaced. Without a ``cache``, or where
    it cannot be written, the space is trained all the same. Weights trained on another device serve as well.

    Raises what `train_embedding` raises, and `InputError` if there is not one digest for each row.
    """
    if len(digests) != len(rows):
        raise InputError(f"{len(rows)} rows have {len(digests)} digests. Give one for each row.")
    key = embedding_key(digests=digests, channels=channels, settings=settings, seed=seed, subjects=subjects)
    place = None if cache is None else cache / f"embedding-{key[:32]}.safetensors"
    if place is not None and place.is_file():
        try:
            found = load_embedding(place, device=device)
            if found.key == key:
                return found
        except FolderError:
            pass  # trained anew and replaced below
    made = train_embedding(
        read=read,
        rows=rows,
        channels=channels,
        settings=settings,
        seed=seed,
        device=device,
        subjects=subjects,
        progress=progress,
        key=key,
    )
    if place is not None:
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            save_embedding(made, place)
        except (FolderError, OSError):
            pass  # a cache that cannot be written costs time, nothing else
    return made
