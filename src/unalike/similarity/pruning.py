"""Which pairs need not be multiplied out: a certified bound from images averaged over 4 × 4 blocks, 1/16 of the work.

Split an image A = PA + (A − PA) into what its block means show and the rest, which is orthogonal to any block means.
The block sums of A are S = 16·u + ρ, where u is the block mean rounded to int8 and ρ what rounding left. Centred
(index c: less their mean over the blocks), they give the covariance of two images, D pixels in n = D/16 blocks:

    Σ(a − ā)(b − b̄) = 16·Σu_c u'_c + Σu_c ρ'_c + Σρ_c u'_c + Σρ_c ρ'_c/16 + Σ(A − PA)(B − PB)

The first sum is an integer matrix product of small images: Σu u' − n·ū·ū'. Cauchy and Schwarz bound each of the
others by a product of two norms. Blocks of 2 × 2 leave little but what rounding left, so of them ρ is kept as well
(four values in a byte): the second and third sum are multiplied out too, and only ρρ' and the rest are bounded:

    Σ(a − ā)(b − b̄) = 4·Σu u' + Σu ρ' + Σρ u' + Σρ ρ'/4 − ΣA·ΣB/D + Σ(A − PA)(B − PB)

A pair whose bound does not exceed what a query has found already cannot be among its best matches. The others are
multiplied out in full, so the answers are those of the dense search to the last bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from unalike.records import Pixels
from unalike.similarity.products import Product

BLOCK = 4
AREA = BLOCK * BLOCK
# Pixels of the blocks of which what rounding left is kept: 2 × 2.
EXACT_AREA = 4
# Smaller images are multiplied out about as fast as bounded.
LEAST_PIXELS = 2**13
# Pixels averaged at once: enough that starting the steps costs little beside them.
AT_ONCE = 2**21
# float64 rounds at 2⁻⁵³; the bound adds up seven products of rounded numbers. This covers all of it ten times over.
ROUNDING = 2.0**-46


@dataclass(frozen=True)
class Coarse:
    """Block means of N images, and the norms (N,) float64 that bound what they leave out."""

    means: torch.Tensor  # (N, D/16) int8: u, of pixels − 128
    mean: torch.Tensor  # 4·√n·ū
    coarse_norm: torch.Tensor  # ‖u_c‖
    left_norm: torch.Tensor  # ‖ρ_c‖
    rest_norm: torch.Tensor  # ‖A − PA‖
    norm: torch.Tensor  # √Σ(a − ā)²
    area: int = AREA  # pixels of a block
    # (N, n) int8: ρ, of blocks of 2 × 2 only. Then ``mean`` is ΣA/√D, and ``left_norm`` is ‖ρ‖, not less its mean.
    left: torch.Tensor | None = None


def can_prune(images: Pixels, device: torch.device) -> bool:
    """Whether images (N, C, H, W) have the depth and geometry that `coarsen` needs, and are worth it on ``device``."""
    _, channels, height, width = images.shape
    large = channels * height * width >= LEAST_PIXELS
    # A graphics card multiplies out faster than it picks.
    return device.type == "cpu" and images.dtype == np.uint8 and height % BLOCK == 0 and width % 8 == 0 and large


def coarsen(images: Pixels, sums: torch.Tensor, squares: torch.Tensor, product: Product) -> Coarse:
    """Average 8-bit images (N, C, H, W); ``sums`` and ``squares`` (N,) int64 are Σ and Σ² of their pixels − 128."""
    return coarsen_to(images, sums, squares, product, (BLOCK,))[0]


def coarsen_to(
    images: Pixels, sums: torch.Tensor, squares: torch.Tensor, product: Product, sides: Sequence[int]
) -> list[Coarse]:
    """The same for blocks of several ``sides``, largest first, each 8, 4 or 2 pixels; 8 needs a height of such.

    All that is said above of blocks of 16 pixels holds for blocks of any ``area``. Those of 2 × 2 come with ``left``.
    """
    pixels = int(np.prod(images.shape[1:]))
    areas = [side * side for side in sides]
    means = [torch.empty(len(images), pixels // area, dtype=torch.int8) for area in areas]
    lefts = [torch.empty_like(mean) if area == EXACT_AREA else None for mean, area in zip(means, areas, strict=True)]
    moments = [torch.empty(4, len(images), dtype=torch.int64) for _ in areas]
    step = max(AT_ONCE // pixels, 1)
    for begin in range(0, len(images), step):
        part = slice(begin, begin + step)
        twos = _lane_sums(images[part])
        fours = _join_lanes(twos)
        for side, area, mean, left, moment in zip(sides, areas, means, lefts, moments, strict=True):
            block_sums = _join_blocks(fours, images.shape, side // BLOCK) if side >= BLOCK else _as_sums(twos)
            mean[part], rounded_off, moment[:, part] = _round_means(block_sums, area, product)
            if left is not None:
                left[part] = rounded_off
    return [
        _measure(mean, left, moment.to(torch.float64), sums.to(torch.float64), squares.to(torch.float64), area)
        for mean, left, moment, area in zip(means, lefts, moments, areas, strict=True)
    ]


def _join_blocks(block_sums: torch.Tensor, shape: tuple[int, ...], factor: int) -> torch.Tensor:
    """Sums (N, D/16) over 4 × 4 blocks to sums over ``factor`` × ``factor`` of them."""
    if factor == 1:
        return block_sums
    _, channels, height, width = shape
    rows, columns = height // BLOCK // factor, width // BLOCK // factor
    return block_sums.view(-1, channels, rows, factor, columns, factor).sum(dim=(3, 5), dtype=torch.int32).flatten(1)


def _round_means(
    block_sums: torch.Tensor, area: int, product: Product
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Means u and ρ, (N, n) int8 each, of block sums S (overwritten), and Σu, Σu², Σuρ, Σρ² (4, N) int64.

    S is in −128·area … 127·area, so u in −128 … 127; ρ is in −area/2 … area/2 − 1. Both fit int8 up to an area of 256.
    """
    rounded = (block_sums + area // 2) >> (area.bit_length() - 1)
    means, left = rounded.to(torch.int8), block_sums.sub_(rounded, alpha=area).to(torch.int8)
    # The diagonals of a small integer product are the exact sums.
    one = torch.ones(1, means.shape[1], dtype=torch.int8)
    table = product(torch.cat([means, left]), torch.cat([means, left, one]))
    count = len(left)
    diagonals = [table[:count, :count], table[:count, count:-1], table[count:, count:-1]]
    return means, left, torch.stack([table[:count, -1], *(diagonal.diagonal() for diagonal in diagonals)])


def _measure(
    means: torch.Tensor,
    left: torch.Tensor | None,
    moments: torch.Tensor,
    image_sums: torch.Tensor,
    image_squares: torch.Tensor,
    area: int,
) -> Coarse:
    """Norms from exact moments, all float64."""
    total, square, mixed, left_square = moments
    blocks = means.shape[1]
    # Σρ = ΣA − area·Σu and ‖PA‖² = ΣS²/area
    squared_norms = [
        square - total**2 / blocks,
        left_square - (image_sums - area * total) ** 2 / blocks if left is None else left_square.clone(),
        image_squares - (area * square + 2 * mixed + left_square / area),
        image_squares - image_sums**2 / (area * blocks),
    ]
    coarse_norm, left_norm, rest_norm, norm = (norm.clamp_(min=0).sqrt_() for norm in squared_norms)
    mean = total * (area / blocks) ** 0.5 if left is None else image_sums / (area * blocks) ** 0.5
    return Coarse(means, mean, coarse_norm, left_norm, rest_norm, norm, area, left)


def pack_left(left: torch.Tensor) -> torch.Tensor:
    """ρ (N, n) int8 of blocks of 2 × 2, −2 … 1, four to a byte: (N, n/4) uint8."""
    words = (left + 2).view(torch.int32)
    return (words | words >> 6 | words >> 12 | words >> 18).bitwise_and_(0xFF).to(torch.uint8)


def unpack_left(packed: torch.Tensor) -> torch.Tensor:
    """What `pack_left` packed."""
    words = packed.to(torch.int32)
    return (words | words << 6 | words << 12 | words << 18).bitwise_and_(0x03030303).view(torch.int8).sub_(2)


def _block_sums(images: Pixels) -> torch.Tensor:
    """Sums of a − 128 over blocks, (N, D/16) int32, in an order of blocks that is the same for all images."""
    return _join_lanes(_lane_sums(images))


def _lane_sums(images: Pixels) -> torch.Tensor:
    """Sums over 2 × 2 pixels, four to a 64-bit word: (N, C, H/2, W/8) int64.

    Eight pixels at once: neighbouring bytes of a word are added into 16-bit lanes, two rows of them (at most 4 · 255).
    """
    words = torch.from_numpy(images).view(torch.int64)  # (N, C, H, W/8)
    pairs = words.bitwise_right_shift(8).bitwise_and_(0x00FF00FF00FF00FF).add_(words & 0x00FF00FF00FF00FF)
    return pairs[:, :, 0::2] + pairs[:, :, 1::2]


def _join_lanes(twos: torch.Tensor) -> torch.Tensor:
    """What `_block_sums` gives: two rows of lanes (at most 8 · 255: no overflow), and neighbours into 32-bit lanes."""
    rows = twos[:, :, 0::2] + twos[:, :, 1::2]
    fours = rows.bitwise_right_shift(16).bitwise_and_(0x0000FFFF0000FFFF).add_(rows & 0x0000FFFF0000FFFF)
    return fours.view(torch.int32).reshape(len(twos), -1).sub_(128 * AREA)


def _as_sums(twos: torch.Tensor) -> torch.Tensor:
    """Sums of a − 128 over 2 × 2 pixels, (N, D/4) int16, of what `_lane_sums` gives (overwritten)."""
    return twos.view(torch.int16).reshape(len(twos), -1).sub_(128 * 4)


def bound_covariances(a: Coarse, b: Coarse, product: Product) -> torch.Tensor:
    """Upper bounds (N, M) float64 of Σ(a − ā)(b − b̄). Both have ``left``, or neither."""
    products = product(a.means, b.means).to(torch.float64).mul_(a.area)
    if a.left is not None and b.left is not None:
        products += product(a.means, b.left)
        products += product(a.left, b.means)
        left = [-a.mean, a.left_norm / a.area**0.5, a.rest_norm]
        right = [b.mean, b.left_norm / b.area**0.5, b.rest_norm]
    else:
        left = [-a.mean, a.coarse_norm, a.left_norm, a.left_norm / a.area, a.rest_norm]
        right = [b.mean, b.left_norm, b.coarse_norm, b.left_norm, b.rest_norm]
    # What rounding may do to any of the terms, or to the norms that the bound is held against.
    left.append(ROUNDING * torch.stack([*left, a.norm]).norm(dim=0))
    right.append(torch.stack([*right, b.norm]).norm(dim=0))
    return products.addmm_(torch.stack(left, dim=1), torch.stack(right))
