"""The generator (mapping network and synthesis) and the discriminator; their sizes and numbers of weights.

Generator with skip outputs and discriminator with residual blocks, as configuration F of Karras et al. (2020,
"Analyzing and Improving the Image Quality of StyleGAN"). Images are (B, C, H, W), in about [−1, 1].
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from unalike.errors import SettingsError
from unalike.generators.stylegan.layers import (
    TINY,
    EqualizedConv,
    EqualizedLinear,
    leak,
    modulated_conv,
    unit_length,
    upsample,
)
from unalike.generators.stylegan.settings import StyleganSettings

GROUP = 4  # images whose variation the discriminator sees together
HALF = math.sqrt(0.5)

# What Akbar et al. (2025, section 2.4) report: (generator, discriminator) of chest x-rays, then of brain MRI.
PAPER_PARAMETERS = {
    "small": ((23_455_739, 24_086_598), (8_343_757, 7_238_214)),
    "medium": ((28_471_875, 28_863_873), (31_098_435, 28_863_873)),
    "large": ((40_260_785, 36_323_007), (105_533_217, 114_868_977)),
}


@dataclass(frozen=True)
class NetworkShape:
    """What both networks are made of; from side ``base`` the resolution is doubled with each entry of ``features``."""

    channels: int
    base: tuple[int, int]
    features: tuple[int, ...]
    latent: int
    mapping_layers: int
    classes: int = 0

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """(height, width) of each resolution."""
        return [(self.base[0] * 2**n, self.base[1] * 2**n) for n in range(len(self.features))]

    @property
    def layers(self) -> int:
        """Styles that synthesis takes: one for each convolution, and one for the last output."""
        return 2 * len(self.features)

    @property
    def noises(self) -> list[tuple[int, int]]:
        """(height, width) of the noise of each convolution."""
        return [size for n, size in enumerate(self.sizes) for _ in range(1 if n == 0 else 2)]

    @property
    def noise_count(self) -> int:
        """Numbers of noise that an image takes."""
        return sum(height * width for height, width in self.noises)


def choose_shape(
    settings: StyleganSettings, *, channels: int, height: int, width: int, classes: int = 0
) -> NetworkShape:
    """The shape for images of this size; the smallest resolution has a shorter side of 4 to 7 pixels.

    Raises `SettingsError` if the image cannot be halved down to that, naming sizes that do fit.
    """
    shorter = min(height, width)
    doublings = max(0, int(math.log2(shorter / 4))) if shorter >= 4 else 0
    factor = 2**doublings
    if shorter < 8 or height % factor or width % factor:
        larger = " × ".join(str(2 ** max(3, math.ceil(math.log2(side)))) for side in (height, width))
        raise SettingsError(
            f"images of {height} × {width} pixels cannot be halved down to a side of 4 to 7. Powers of two from 8 on "
            f"do fit: prepare the cohort at {larger} (unalike prepare --size pads what is not square)."
        )
    size = settings.resolve_size()
    base = (height // factor, width // factor)
    features = tuple(max(1, min(size.capacity // (max(base) * 2**n), size.max_features)) for n in range(doublings + 1))
    return NetworkShape(channels, base, features, size.latent, size.mapping_layers, classes)


class Mapping(nn.Module):
    """z → w: a point of the unit sphere, and the class where there are classes, to a style (Karras et al. 2019)."""

    def __init__(self, shape: NetworkShape) -> None:
        """Layers that learn a hundred times slower than the rest."""
        super().__init__()
        n = shape.latent
        self.embed = EqualizedLinear(shape.classes, n) if shape.classes else None
        sizes = [n * (2 if shape.classes else 1)] + [n] * shape.mapping_layers
        pairs = itertools.pairwise(sizes)
        self.layers = nn.Sequential(*[EqualizedLinear(i, o, rate=0.01, leaky=True) for i, o in pairs])

    def forward(self, z: torch.Tensor, label: torch.Tensor | None = None) -> torch.Tensor:
        """w (B, latent) of z (B, latent) and ``label`` (B, classes), one-hot, if there are classes."""
        x = unit_length(z.float())
        if self.embed is not None:
            assert label is not None  # noqa: S101
            x = torch.cat([x, unit_length(self.embed(label))], dim=1)
        w: torch.Tensor = self.layers(x)
        return w


class StyledConv(nn.Module):
    """A convolution modulated by a style, with noise, perhaps at twice the resolution."""

    def __init__(self, inputs: int, outputs: int, *, latent: int, up: bool) -> None:
        """From ``inputs`` to ``outputs`` features; ``up`` doubles the resolution."""
        super().__init__()
        self.style = EqualizedLinear(latent, inputs, bias=1.0)
        self.weight = nn.Parameter(torch.randn(outputs, inputs, 3, 3))
        self.noise_strength = nn.Parameter(torch.zeros(()))
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.up = up

    def forward(self, x: torch.Tensor, w: torch.Tensor, noise: torch.Tensor, *, fused: bool) -> torch.Tensor:
        """``noise`` is (B, 1, H, W) of the output; ``w`` (B, latent)."""
        x = modulated_conv(x, self.weight, self.style(w), up=self.up, fused=fused)
        x = x + (noise * self.noise_strength).to(x.dtype)
        return leak(x + self.bias[:, None, None].to(x.dtype))


class ToImage(nn.Module):
    """What a resolution adds to the image: a modulated 1 × 1 convolution, not demodulated, in float32."""

    def __init__(self, inputs: int, channels: int, *, latent: int) -> None:
        """From ``inputs`` features to ``channels``."""
        super().__init__()
        self.style = EqualizedLinear(latent, inputs, bias=1.0)
        self.weight = nn.Parameter(torch.randn(channels, inputs, 1, 1))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.scale = 1 / math.sqrt(inputs)

    def forward(self, x: torch.Tensor, w: torch.Tensor, *, fused: bool) -> torch.Tensor:
        """(B, inputs, H, W) → (B, channels, H, W)."""
        y = modulated_conv(x, self.weight, self.style(w) * self.scale, demodulate=False, fused=fused)
        return y.float() + self.bias[:, None, None]


class Generator(nn.Module):
    """Mapping and synthesis. ``fused`` convolves in groups, see `modulated_conv`."""

    def __init__(self, shape: NetworkShape) -> None:
        """Random weights; see `build_networks`."""
        super().__init__()
        self.shape = shape
        self.fused = False
        n, features = shape.latent, shape.features
        self.mapping = Mapping(shape)
        self.constant = nn.Parameter(torch.randn(features[0], *shape.base))
        first = [StyledConv(features[0], features[0], latent=n, up=False)]
        for inputs, outputs in itertools.pairwise(features):
            first += [StyledConv(inputs, outputs, latent=n, up=True), StyledConv(outputs, outputs, latent=n, up=False)]
        self.convolutions = nn.ModuleList(first)
        self.outputs = nn.ModuleList([ToImage(f, shape.channels, latent=n) for f in features])

    def forward(
        self, z: torch.Tensor, label: torch.Tensor | None = None, *, noise: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Images of latents z (B, latent), one style for all layers; see `synthesize` for ``noise``."""
        return self.synthesize(self.mapping(z, label)[:, None].expand(-1, self.shape.layers, -1), noise)

    def synthesize(self, ws: torch.Tensor, noise: torch.Tensor | None = None) -> torch.Tensor:
        """Images (B, C, H, W), float32, of styles (B, layers, latent); not clipped.

        ``noise`` (B, noise_count) is that of all layers, one after the other; without it there is none.
        """
        count = len(ws)
        sizes = self.shape.noises
        if noise is None:
            noise = ws.new_zeros(count, self.shape.noise_count)
        noises = [
            part.view(count, 1, height, width)
            for part, (height, width) in zip(torch.split(noise, [h * w for h, w in sizes], dim=1), sizes, strict=True)
        ]
        x = self.constant.expand(count, -1, -1, -1)
        image: torch.Tensor | None = None
        for n, convolution in enumerate(self.convolutions):
            x = convolution(x, ws[:, n], noises[n], fused=self.fused)
            if n % 2 == 0:  # the last of its resolution
                # The style of an output is that of the convolution after it.
                add = self.outputs[n // 2](x, ws[:, n + 1], fused=self.fused)
                image = add if image is None else upsample(image) + add
        assert image is not None  # noqa: S101
        return image


class Residual(nn.Module):
    """Two convolutions beside a shortcut, at half the resolution afterwards."""

    def __init__(self, inputs: int, outputs: int) -> None:
        """From ``inputs`` to ``outputs`` features."""
        super().__init__()
        self.first = EqualizedConv(inputs, inputs, kernel=3)
        self.second = EqualizedConv(inputs, outputs, kernel=3, down=True)
        self.shortcut = EqualizedConv(inputs, outputs, kernel=1, down=True, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, inputs, H, W) → (B, outputs, H/2, W/2)."""
        y: torch.Tensor = leak(self.second(leak(self.first(x)))) + self.shortcut(x)
        return y * HALF


class Discriminator(nn.Module):
    """How real an image looks, a number without bounds; with classes, by a projection (Miyato and Koyama 2018)."""

    def __init__(self, shape: NetworkShape) -> None:
        """Random weights; see `build_networks`."""
        super().__init__()
        self.shape = shape
        features, base = shape.features, shape.base
        self.first = EqualizedConv(shape.channels, features[-1], kernel=1)
        pairs = itertools.pairwise(reversed(features))
        self.blocks = nn.Sequential(*[Residual(inputs, outputs) for inputs, outputs in pairs])
        self.last = EqualizedConv(features[0] + 1, features[0], kernel=3)
        self.dense = EqualizedLinear(features[0] * base[0] * base[1], features[0], leaky=True)
        self.embed = EqualizedLinear(shape.classes, features[0]) if shape.classes else None
        self.judge = EqualizedLinear(features[0], features[0] if shape.classes else 1)

    def forward(self, images: torch.Tensor, label: torch.Tensor | None = None) -> torch.Tensor:
        """(B,), float32; the larger, the more real. ``label`` is (B, classes), one-hot, if there are classes."""
        x = self.blocks(leak(self.first(images)))
        with torch.autocast(x.device.type, enabled=False):
            x = add_deviation(x.float())
            x = leak(self.last(x))
            said: torch.Tensor = self.judge(self.dense(x.flatten(1)))
            if self.embed is None:
                return said[:, 0]
            assert label is not None  # noqa: S101
            said = (said * unit_length(self.embed(label))).sum(dim=1)
            judged: torch.Tensor = said / math.sqrt(self.shape.features[0])
            return judged


def add_deviation(x: torch.Tensor) -> torch.Tensor:
    """x (B, C, H, W) with one channel more: how much the images of a group differ (Karras et al. 2018, section 3).

    A group is of 4 neighbours in the batch, or of as many below that as divide it: so a batch may be shared by
    processes, in multiples of 4, without a change.
    """
    count, _, height, width = x.shape
    size = next(n for n in range(min(GROUP, count), 0, -1) if count % n == 0)
    groups = x.view(count // size, size, *x.shape[1:])
    deviation = (groups.var(dim=1, unbiased=False) + TINY).sqrt().mean(dim=(1, 2, 3))
    return torch.cat([x, deviation.repeat_interleave(size)[:, None, None, None].expand(-1, 1, height, width)], dim=1)


def build_networks(shape: NetworkShape, *, seed: int) -> tuple[Generator, Discriminator]:
    """Both networks, initialised from ``seed``, on the CPU in float32."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Generator(shape), Discriminator(shape)


def count_parameters(shape: NetworkShape) -> tuple[int, int]:
    """Weights of generator and discriminator; none is allocated."""
    with torch.device("meta"):
        networks: tuple[Any, ...] = (Generator(shape), Discriminator(shape))
    generator, discriminator = (sum(weight.numel() for weight in network.parameters()) for network in networks)
    return generator, discriminator


def describe_size(settings: StyleganSettings, shape: NetworkShape, *, parameters: tuple[int, int]) -> str:
    """The numbers of weights beside the paper's, and why they differ."""
    height, width = shape.sizes[-1]
    text = (
        f"networks: generator {parameters[0]:,} weights, discriminator {parameters[1]:,}, {shape.channels} "
        f"channel{'s' * (shape.channels != 1)}, {height} × {width}, features {', '.join(map(str, shape.features))}"
    )
    if settings.size not in PAPER_PARAMETERS:
        return text
    x_ray, brain = (f"{generator:,} + {judge:,}" for generator, judge in PAPER_PARAMETERS[settings.size])
    return (
        f"{text}. Akbar et al. (2025) report {x_ray} for x-rays (one channel) and {brain} for brains (five) at 256 × "
        "256: their discriminator is this one, their generator the alias-free one of Karras et al. (2021)."
    )
