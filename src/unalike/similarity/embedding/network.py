"""The network: a few convolutions from an image to a vector, and back for the autoencoder.

Group normalisation, not batch normalisation: what an image becomes never depends on its neighbours in a batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import nn

from unalike.errors import PictureError
from unalike.records import Pixels
from unalike.similarity.embedding.settings import GROUPS, HALVINGS, EmbeddingSettings

SPATIAL_CHANNELS = 16  # kept at each place of the last layer
WAYS = 8  # to mirror and turn a square
WHOLE_FIELDS = 64  # kernels that span all of the last layer
FAINT = 0.1  # deviations of the training pixels: less contrast than that is not made full
AT_ONCE = 2**22  # pixels turned into float32 at once: 16 MiB


def area_weights(size: int, side: int) -> npt.NDArray[np.float32]:
    """Weights (side, size) that average ``size`` pixels over ``side`` equal intervals; each row sums to 1.

    A pixel counts by the share of the interval that it covers, so that every size goes to every other exactly.
    """
    edges = np.arange(side + 1) * (size / side)
    pixels = np.arange(size)
    overlap = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    weights: npt.NDArray[np.float32] = (np.maximum(overlap, 0) * (side / size)).astype(np.float32)
    return weights


def shrink(images: Pixels, *, channels: Sequence[int], side: int, highest: int) -> torch.Tensor:
    """Chosen channels of images (n, C, H, W), area-averaged to (n, len(channels), side, side) float32 from 0 to 1.

    Images that are not square become square. Raises `PictureError` for another shape, depth or missing channels.
    """
    if images.ndim != 4 or images.dtype not in (np.uint8, np.uint16) or 0 in images.shape[1:]:
        wanted = "Give 8- or 16-bit images (n, channels, height, width)."
        raise PictureError(f"an array {images.shape} of {images.dtype} is not a set of images. {wanted}")
    count, available, height, width = images.shape
    if max(channels) >= available:
        raise PictureError(f"images have {available} channels, channel {max(channels)} is needed. Prepare them alike.")
    rows = torch.from_numpy(area_weights(height, side) / np.float32(highest))
    columns = torch.from_numpy(area_weights(width, side)).T
    small = torch.empty(count, len(channels), side, side)
    step = max(1, AT_ONCE // (len(channels) * height * width))
    for begin in range(0, count, step):
        part = slice(begin, begin + step)
        small[part] = rows @ torch.from_numpy(images[part][:, list(channels)].astype(np.float32)) @ columns
    return small


class PlainFeatures(nn.Module):
    """What an autoencoder sees: standardised images (n, C, side, side) become features (n, ``count``).

    What the last layer finds is given twice: averaged over the image (what is there) and place by place (where).
    """

    def __init__(self, channels: int, settings: EmbeddingSettings) -> None:
        """Fresh weights from torch's global stream."""
        super().__init__()
        width, places = settings.width, (settings.side >> HALVINGS) ** 2
        self.layers = nn.Sequential(
            nn.Conv2d(channels, width, 5, stride=2, padding=2),
            *_normalise(width),
            nn.Conv2d(width, 2 * width, 3, stride=2, padding=1),
            *_normalise(2 * width),
            nn.Conv2d(2 * width, 4 * width, 3, stride=2, padding=1),
            *_normalise(4 * width),
            nn.Conv2d(4 * width, 4 * width, 3, stride=2, padding=1),
            *_normalise(4 * width),
        )
        self.spatial = nn.Conv2d(4 * width, SPATIAL_CHANNELS, 1)
        self.count = 4 * width + places * SPATIAL_CHANNELS

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Features (n, ``count``)."""
        found = self.layers(images)
        return torch.cat([found.mean((2, 3)), self.spatial(found).flatten(1)], dim=1)


class TurnedFeatures(nn.Module):
    """What a contrastive space sees: the same features whichever way an image is mirrored or turned by 90 degrees.

    Convolutions over the eight ways (`TurnedConvolution`), halved by averages; then one over the whole of what is
    left, so that places count, and the mean and the highest of its eight ways, which none of them changes. Each image
    is standardised by itself: brightness and contrast do not count either.
    """

    def __init__(self, channels: int, settings: EmbeddingSettings) -> None:
        """Fresh weights from torch's global stream."""
        super().__init__()
        fields, least = settings.width // WAYS, settings.side >> HALVINGS
        self.layers = nn.Sequential(
            TurnedConvolution(channels, fields, 4, first=True, stride=2, padding=1),
            TurnedNorm(fields),
            nn.AvgPool2d(2),
            TurnedConvolution(fields, 2 * fields, 3, padding=1),
            TurnedNorm(2 * fields),
            nn.AvgPool2d(2),
            TurnedConvolution(2 * fields, 4 * fields, 3, padding=1),
            TurnedNorm(4 * fields),
            nn.AvgPool2d(2),
            TurnedConvolution(4 * fields, 4 * fields, 3, padding=1),
            TurnedNorm(4 * fields),
        )
        self.whole = TurnedConvolution(4 * fields, WHOLE_FIELDS, least)
        self.count = 4 * fields + 2 * WHOLE_FIELDS

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Features (n, ``count``)."""
        deviation, mean = torch.std_mean(images, dim=(2, 3), keepdim=True, correction=0)
        found = self.layers((images - mean) / (deviation + FAINT))
        whole = F.silu(self.whole(found)).view(len(images), WHOLE_FIELDS, WAYS)
        there = found.view(len(images), -1, WAYS, *found.shape[2:]).mean((2, 3, 4))
        return torch.cat([there, whole.mean(2), whole.amax(2)], dim=1)


class TurnedConvolution(nn.Module):
    """Convolution whose kernels are each applied all eight ways.

    After Cohen and Welling, "Group Equivariant Convolutional Networks" (2016), the group p4m.

    Channels are ``fields`` × 8 ways, but for the ``first`` layer, which sees images. Mirroring or turning the input
    does the same to each output and swaps its ways; that is exact where strides and padding lie symmetrically.
    """

    def __init__(
        self, before: int, after: int, size: int, *, first: bool = False, stride: int = 1, padding: int = 0
    ) -> None:
        """Fresh weights from torch's global stream: kernels of ``size`` × ``size``."""
        super().__init__()
        self.first, self.stride, self.padding = first, stride, padding
        shape = (after, before, size, size) if first else (after, before, WAYS, size, size)
        reach = math.prod(shape[1:]) ** -0.5
        self.weight = nn.Parameter(torch.empty(shape).uniform_(-reach, reach))

    def forward(self, fields: torch.Tensor) -> torch.Tensor:
        """Fields (n, after × 8, …)."""
        # Way g sees way h of the input with the kernel for g⁻¹h, turned by g.
        kernels = [turn(self.weight if self.first else self.weight[:, :, RELATIVE[g]], g) for g in range(WAYS)]
        kernel = torch.stack(kernels, dim=1)
        size = kernel.shape[-1]
        kernel = kernel.reshape(WAYS * len(self.weight), -1, size, size)
        return F.conv2d(fields, kernel, stride=self.stride, padding=self.padding)


class TurnedNorm(nn.Module):
    """Group normalisation and SiLU; the eight ways of a field share their scale and offset."""

    def __init__(self, fields: int) -> None:
        """Scale 1 and offset 0."""
        super().__init__()
        self.groups = math.gcd(GROUPS, fields)
        self.scale, self.offset = nn.Parameter(torch.ones(fields)), nn.Parameter(torch.zeros(fields))

    def forward(self, fields: torch.Tensor) -> torch.Tensor:
        """Fields of the same shape."""
        scale, offset = (entry.repeat_interleave(WAYS) for entry in (self.scale, self.offset))
        return F.silu(F.group_norm(fields, self.groups, scale, offset))


def turn(images: torch.Tensor, way: int) -> torch.Tensor:
    """``images`` (…, H, W) in one of eight ways: 0 to 3 quarter turns, from way 4 on mirrored before."""
    mirrored = images.flip(-1) if way >= 4 else images
    return torch.rot90(mirrored, way % 4, (-2, -1))


def _relative_ways() -> list[list[int]]:
    """Entry [g][h]: the way that g is to follow, so that both together do what h does."""
    corner = torch.arange(9).view(3, 3)
    looks = [turn(corner, way).flatten().tolist() for way in range(WAYS)]
    # Way w, then g, of the picture: g⁻¹h is the w for which that is h.
    return [
        [next(w for w in range(WAYS) if turn(turn(corner, w), g).flatten().tolist() == looks[h]) for h in range(WAYS)]
        for g in range(WAYS)
    ]


RELATIVE = _relative_ways()


class Encoder(nn.Module):
    """Images (n, C, side, side) from 0 to 1 become vectors (n, dimension), not yet of unit length.

    ``mean`` and ``deviation`` (C,) are those of the training pixels; ``centre`` (dimension,) is taken from every
    vector before its length is made 1.
    """

    mean: torch.Tensor
    deviation: torch.Tensor
    centre: torch.Tensor

    def __init__(self, channels: int, settings: EmbeddingSettings) -> None:
        """Fresh weights from torch's global stream."""
        super().__init__()
        turned = settings.kind == "contrastive"
        self.features = TurnedFeatures(channels, settings) if turned else PlainFeatures(channels, settings)
        self.join = nn.Linear(self.features.count, settings.dimension)
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("deviation", torch.ones(channels))
        self.register_buffer("centre", torch.zeros(settings.dimension))

    def standardise(self, images: torch.Tensor) -> torch.Tensor:
        """Images less the mean of the training pixels, over their deviation, channel by channel."""
        return (images - self.mean[:, None, None]) / self.deviation[:, None, None]

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Vectors (n, dimension)."""
        vectors: torch.Tensor = self.join(self.features(self.standardise(images)))
        return vectors


class Decoder(nn.Module):
    """Vectors (n, dimension) become standardised images (n, C, side, side)."""

    def __init__(self, channels: int, settings: EmbeddingSettings) -> None:
        """Fresh weights from torch's global stream."""
        super().__init__()
        width, self.least = settings.width, settings.side >> HALVINGS
        self.start = nn.Linear(settings.dimension, 4 * width * self.least**2)
        widths = [4 * width, 2 * width, width, width // 2, channels]
        layers: list[nn.Module] = []
        # Each doubling draws four neighbouring pixels from one place: a quarter of the work at full size.
        for before, after in pairwise(widths):
            layers += [*_normalise(before), nn.Conv2d(before, 4 * after, 3, padding=1), nn.PixelShuffle(2)]
        self.layers = nn.Sequential(*layers)

    def forward(self, vectors: torch.Tensor) -> torch.Tensor:
        """Images (n, C, side, side)."""
        start = self.start(vectors)
        images: torch.Tensor = self.layers(start.view(len(start), -1, self.least, self.least))
        return images


def _normalise(width: int) -> tuple[nn.Module, nn.Module]:
    return nn.GroupNorm(math.gcd(GROUPS, width), width), nn.SiLU()


def build_networks(settings: EmbeddingSettings, *, channels: int, seed: int) -> tuple[Encoder, Decoder | None]:
    """Encoder, and for an autoencoder its decoder, initialised from ``seed``, on the CPU in float32."""
    # The global stream of torch is seeded for the initial weights alone, and left as it was.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder = Encoder(channels, settings)
        return encoder, Decoder(channels, settings) if settings.kind == "autoencoder" else None
