"""What images are compared by when two sets are compared: vectors of the cohort's own autoencoder, and band powers.

A network that was trained on photographs knows nothing of contrast agents and field strengths, and would have to be
downloaded. The autoencoder of the train images (``similarity.embedding``) knows what these images are made of, offline,
and with all channels at once. Its vectors are taken here before they are made of unit length, because their length
tells something of contrast. A few numbers cannot draw fine detail again, so they hardly tell of noise and blur; beside
them stand, of each channel, its brightness and its power in octaves of spatial frequency at full resolution.

Each block is divided by one number, the root of its total variance over the train images: both count alike, and within
a block nothing is weighted. Powers are logarithms: where fine detail is missing they move by many times what images
differ in, and blur outweighs all else. Vectors are in no common unit: distances compare only within one
`Features.digest`.

Measured on slices of the phantom, 2026-11-21 (64 × 64; 1,500 train slices of 750 subjects; as a share of the total
variance; by the autoencoder alone in brackets): 1,500 holdout slices are 0.011 (0.008) from train. They are, once
blurred by σ = 0.7: 10.3 (0.013), by 1.5: 35 (0.052); with noise of deviation 5: 0.019 (0.009), of 15: 0.32 (0.030);
with 0.9 of the contrast: 0.19 (0.009); 20 brighter: 0.91 (1.34); ten of them in place of all: 0.51 (0.36). Noise of 5
hardly stands out. With few holdout subjects little does but blur: 40 are 0.17 away by their number alone, and 0.47 with
noise of 15.

Train images are those that the autoencoder learned; it may describe images of held-out subjects a little less well, and
so set both real sets a little apart.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import torch

from unalike import folders
from unalike.cohort.store import ImageFolder
from unalike.engine import Progress, show_progress
from unalike.errors import InputError, PictureError
from unalike.fidelity.features import FORMAT, embed_rows, find_place, keep_table, load_table, name_set
from unalike.records import MASK, FloatArray, IntArray, Pixels
from unalike.similarity.embedding.network import shrink
from unalike.similarity.embedding.settings import HALVINGS, EmbeddingSettings
from unalike.similarity.embedding.space import Embedding
from unalike.similarity.embedding.train import cached_embedding

SETTINGS = EmbeddingSettings(kind="autoencoder")
AT_ONCE = 256  # images in the network together
MOST_BANDS = 8
TAPERED = 0.25  # of each side at either end, where images are faded out: the transform holds them for periodic
FLOOR = (1 / 255) ** 2  # power, full brightness being 1: what is fainter than one grey level of 8 bits counts as empty


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


@dataclass(frozen=True, eq=False)
class CohortFeatures:
    """`Features` of two blocks: the autoencoder's vectors, and `describe_bands` of the same channels.

    ``size`` is the height and width of the cohort's images (pixels). ``scales`` are what each block is divided by: the
    root of its total variance over the train images.
    """

    autoencoder: AutoencoderFeatures
    size: tuple[int, int]
    scales: tuple[float, float] = (1.0, 1.0)

    @property
    def name(self) -> str:
        """What a report calls these features."""
        return f"autoencoder and frequency bands of the cohort ({self.digest[:8]})"

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the autoencoder's digest, and how bands are made and both are scaled."""
        told = [FORMAT, self.autoencoder.digest, self.size, self.scales, MOST_BANDS, TAPERED, FLOOR]
        return hashlib.sha256(json.dumps(told).encode()).hexdigest()

    def embed(self, images: Pixels) -> FloatArray:
        """Vectors (n, D + B) of images (n, C, H, W) with all channels of the cohort, in its pixel type and size.

        Pixels brighter than the brightest in training count as that. What an image becomes does not depend on the
        others, but for rounding in the network. Raises `PictureError` for another depth or size, or missing channels.
        """
        if images.shape[2:] != self.size:
            raise PictureError(
                f"images are {images.shape[2:]} pixels, the features were learned on {self.size}. Prepare them alike."
            )
        learned = self.autoencoder.embed(images)
        space = self.autoencoder.space
        bands = describe_bands(images[:, list(space.channels)], highest=space.highest)
        return self.weigh(np.concatenate([learned, bands], axis=1))

    def weigh(self, plain: FloatArray) -> FloatArray:
        """Vectors (n, D + B) of both blocks before they are divided, divided by the scales."""
        dimension = self.autoencoder.space.settings.dimension
        weighed: FloatArray = plain / np.repeat(self.scales, (dimension, plain.shape[1] - dimension))
        return weighed


def describe_bands(images: Pixels, *, highest: int) -> FloatArray:
    """Brightness and power by spatial frequency of images (n, C, H, W): (n, C · (2 + K)), channel by channel.

    Of each channel the natural logs of its squared mean, of its variance, and of its `band_powers`, coarse to fine;
    full brightness, the pixel value ``highest``, is 1 and what is brighter too. A gain so adds one and the same to all.
    `FLOOR` is added before the log: a constant image has finite numbers. Each image by itself, whatever the others.
    """
    found = []
    for image in images:
        unit = np.minimum(image / highest, 1)
        squares = np.stack([unit.mean(axis=(1, 2)) ** 2, unit.var(axis=(1, 2))], axis=1)
        found.append(np.concatenate([squares, band_powers(unit)], axis=1))
    channels, height, width = images.shape[1:]
    powers = np.reshape(found, (len(images), channels * (2 + count_bands(height, width))))
    return np.asarray(np.log(powers + FLOOR))


def count_bands(height: int, width: int) -> int:
    """Number of bands K of images of this size (pixels), 1 to `MOST_BANDS`: 6 for 64 × 64, 8 from 256 × 256 on."""
    return min(MOST_BANDS, max(1, min(height, width).bit_length() - 1))


def band_powers(image: FloatArray) -> FloatArray:
    """Power (C, K) of each channel of an image (C, H, W) in K octaves of spatial frequency, in its unit squared.

    The last band holds what lies beyond 1/2 cycle a pixel (diagonals), the one before 1/4 to 1/2, the one before 1/8 to
    1/4, each with its upper end; the first all that is below. The image is weighted with a taper w, once its weighted
    mean μ is taken away, so that a bright side does not meet a dark one where the transform goes round. The powers sum
    to Σ w²(x − μ)² / Σ w², the variance but for the taper (Parseval).
    """
    height, width = image.shape[1:]
    taper, band = _grid(height, width)
    mean = (taper * image).sum(axis=(1, 2), keepdims=True) / taper.sum()
    spectra = np.abs(np.fft.rfft2(taper * (image - mean))) ** 2 / (height * width * (taper**2).sum())
    # Of two opposite frequencies of a real image the transform gives one; the first column has both, and of an even
    # width the last one.
    spectra[:, :, 1 : (width + 1) // 2] *= 2
    count = count_bands(height, width)
    return np.stack([np.bincount(band, weights=power.ravel(), minlength=count) for power in spectra])


@lru_cache(maxsize=4)
def _grid(height: int, width: int) -> tuple[FloatArray, IntArray]:
    """The taper (height, width), and the band of each number of the transform, flattened: the same for all images."""
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None, :])
    band = np.searchsorted(2.0 ** np.arange(1 - count_bands(height, width), 0), frequency.ravel())
    return np.outer(_fade(height), _fade(width)), band


def _fade(size: int) -> FloatArray:
    """Weights (size,) that rise from about 0 to 1 over the first `TAPERED` of the side, as a sine squared, and fall."""
    inward = (np.arange(size) + 0.5) / size
    inside: FloatArray = np.minimum(1, np.minimum(inward, 1 - inward) / TAPERED)
    return np.asarray(np.sin(np.pi / 2 * inside) ** 2)


def open_cohort_features(
    cohort: ImageFolder,
    *,
    rows: IntArray,
    seed: int,
    device: torch.device,
    side: int | None = None,
    progress: Progress | None = None,
) -> CohortFeatures:
    """The features of the cohort's own autoencoder, trained on its train images ``rows``, on ``device``, and of bands.

    All channels count but the mask (where there is nothing else, the mask). ``side`` is the height and width to which
    images are averaged for the autoencoder, a multiple of 16 in pixels (None: that of `SETTINGS`, 64). Training takes
    minutes and is told to ``progress``; the space is kept under the cohort's ``index/``, where an audit finds the same
    one by the same rows and seed, and so are the features of these images. The order of rows does not matter.

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
    return _find_scales(CohortFeatures(AutoencoderFeatures(space), cohort.size), cohort, wanted)


def open_own_features(cohort: ImageFolder, *, device: torch.device) -> CohortFeatures:
    """The features of all train images of a cohort, the same for every run on it: `open_cohort_features` with progress.

    The autoencoder sees images of at most 64 pixels a side, smaller ones at about their own size. Raises what
    `open_cohort_features` raises.
    """
    unit = 2**HALVINGS
    side = min(SETTINGS.side, max(unit, max(cohort.size) // unit * unit))
    with show_progress("learn features for the Fréchet distance", total=SETTINGS.steps, unit="steps") as progress:
        return open_cohort_features(
            cohort, rows=cohort.rows("train"), seed=0, device=device, side=side, progress=progress
        )


def _find_scales(plain: CohortFeatures, cohort: ImageFolder, rows: IntArray) -> CohortFeatures:
    """These features with the scales that the train images ``rows`` give, read from the cohort's ``index/`` or kept.

    To know them is to make the features of all these images, so those are kept as `embed_cached` would.
    """
    digests, first = np.unique(cohort.column("digest")[rows], return_index=True)
    cache = cohort.path / folders.INDEX
    key = name_set(plain.digest, digests.tolist())
    kept = cache / f"scales-{key[:32]}.safetensors"
    found = load_table(kept, key, 2)
    if found is not None:
        return dataclasses.replace(plain, scales=(float(found[0]), float(found[1])))
    table = embed_rows(plain, cohort, rows[first])
    dimension = plain.autoencoder.space.settings.dimension
    scales = (_spread(table[:, :dimension]), _spread(table[:, dimension:]))
    keep_table(kept, key, np.array(scales))
    features = dataclasses.replace(plain, scales=scales)
    place, key = find_place(cache, features, digests)
    keep_table(place, key, features.weigh(table))
    return features


def _spread(table: FloatArray) -> float:
    """Root of the total variance of vectors (n, D), or 1 where they do not differ.

    Three digits serve as well as all, and are the same where the network is rounded otherwise, but for rare luck.
    """
    return float(f"{np.sqrt(table.var(axis=0).sum()):.2e}") or 1.0
