"""Random views of images: what a copy may have gone through and still be a copy."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

LARGEST_ANGLE = math.radians(10)
SMALLEST_CROP = 0.8  # of the side
LARGEST_SHIFT = 0.08  # of the side, beyond what the crop leaves
GAMMA = 1.5  # exponents from its inverse to itself
CONTRAST = 0.3  # largest change of contrast (share), and
BRIGHTNESS = 0.1  # of brightness (of the full range)
NOISE = 0.05  # largest standard deviation (of the full range)


@dataclass(frozen=True)
class ViewNumbers:
    """The random numbers of one view of each of n images, float32 on the images' device."""

    places: torch.Tensor  # (n, 2, 3): from a pixel of the view to one of the image, both from −1 to 1
    gamma: torch.Tensor  # (n, 1, 1, 1), as the following
    contrast: torch.Tensor
    brightness: torch.Tensor
    blur: torch.Tensor  # 0 (sharp) to 1 (a binomial filter of 5 × 5)
    noise: torch.Tensor  # (n, C, side, side)


def draw_numbers(shape: tuple[int, ...], random: np.random.Generator, device: torch.device) -> ViewNumbers:
    """Numbers for views of images of ``shape`` (n, C, side, side), drawn on the CPU, the same for every device."""
    count = shape[0]

    def uniform(low: float, high: float) -> np.ndarray:
        return random.uniform(low, high, (count, 1, 1, 1))

    def half(values: np.ndarray) -> np.ndarray:
        return np.where(random.random((count, 1, 1, 1)) < 0.5, values, 0)

    places = draw_places(count, random)
    numbers = (
        places,
        np.exp(uniform(-math.log(GAMMA), math.log(GAMMA))),
        uniform(1 - CONTRAST, 1 + CONTRAST),
        uniform(-BRIGHTNESS, BRIGHTNESS),
        half(uniform(0, 1)),
        random.standard_normal(shape, dtype=np.float32) * half(uniform(0, NOISE)),
    )
    return ViewNumbers(*(torch.from_numpy(entry.astype(np.float32)).to(device) for entry in numbers))


def draw_places(count: int, random: np.random.Generator) -> np.ndarray:
    """Affine maps (count, 2, 3): flips of both axes, quarter turns, rotation, crop and shift."""
    angle = random.integers(0, 4, count) * (math.pi / 2) + random.uniform(-LARGEST_ANGLE, LARGEST_ANGLE, count)
    crop = random.uniform(SMALLEST_CROP, 1, count)
    flips = random.choice([-1.0, 1.0], (2, count))
    reach = 1 - crop + 2 * LARGEST_SHIFT  # places run from −1 to 1: a side is 2
    shift = random.uniform(-1, 1, (count, 2)) * reach[:, None]
    cosine, sine = crop * np.cos(angle), crop * np.sin(angle)
    rows = [np.stack([cosine * flips[0], -sine * flips[1]], 1), np.stack([sine * flips[0], cosine * flips[1]], 1)]
    return np.concatenate([np.stack(rows, 1), shift[:, :, None]], axis=2)


def make_view(images: torch.Tensor, numbers: ViewNumbers) -> torch.Tensor:
    """One view (n, C, side, side) of each image, from 0 to 1 as the images are; what lies outside repeats the edge."""
    grid = F.affine_grid(numbers.places, list(images.shape), align_corners=False)
    view = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
    view = torch.lerp(view, _blur(view), numbers.blur)
    view = view.clamp(1e-3, 1) ** numbers.gamma
    middle = view.mean((1, 2, 3), keepdim=True)
    view = (view - middle) * numbers.contrast + middle + numbers.brightness + numbers.noise
    return view.clamp(0, 1)


def _blur(images: torch.Tensor) -> torch.Tensor:
    """Binomial filter (1, 4, 6, 4, 1)/16 along both axes; the edge repeats."""
    for axis in (2, 3):
        for _ in range(2):
            # Twice (1, 2, 1)/4 by shifted copies: quicker on a CPU than a convolution of one channel.
            size = images.shape[axis]
            before = torch.cat([images.narrow(axis, 0, 1), images.narrow(axis, 0, size - 1)], dim=axis)
            after = torch.cat([images.narrow(axis, 1, size - 1), images.narrow(axis, size - 1, 1)], dim=axis)
            images = images * 0.5 + (before + after) * 0.25
    return images
