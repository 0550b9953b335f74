"""Mutual information between images: of given pairs, and the best matches among all pairs; the same to the last bit.

    I(a, b) = H(a) + H(b) − H(a, b), in nats, of the joint histogram of gray levels over all pixels of all channels

(Viola and Wells: Alignment by maximization of mutual information, International Journal of Computer Vision 24 (1997);
Maes et al., IEEE Transactions on Medical Imaging 16 (1997).) With D pixels and n of them in a bin,

    D·H = D·log D − Σ n·log n

so only Σ n·log n of three histograms is needed. Counts are integers; n·log n is looked up in a table of integers in
units so small that all of int64 is used, and integer sums do not depend on their order. Hence the result is the same
whatever the block size, the number of threads, or the device.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch

from unalike.engine import Progress
from unalike.errors import InputError, SettingsError
from unalike.records import FloatArray, IntArray, Pixels
from unalike.similarity.correlation import Block, SearchResult, single_threaded_torch
from unalike.similarity.products import Product, pick_product
from unalike.similarity.ssim import Ranking, check_alike, pick_channels, split_blocks

# A gray level's bin is kept in one byte.
MOST_BINS = 256
# D·log D in units of the table is at most 2⁶⁰: sums and differences of three such stay in int64.
LARGEST_SUM = 2.0**60
# Pixels, or bins of joint histograms, counted at once: few enough for the cache.
COUNTED_AT_ONCE = 2**17
# Bytes of one-hot pixels of either side multiplied at once.
MULTIPLIED_AT_ONCE = 2**26
# Pixels of references looked at together.
BLOCK_PIXELS = 2**26


@dataclass(frozen=True)
class _Table:
    """n·log n for n = 0, …, D as integers: ``entries`` (D + 1,) int64, ``unit`` of which are 1; ``bins`` of levels."""

    entries: torch.Tensor
    unit: float
    bins: int

    @property
    def pixels(self) -> int:
        """Pixels D of an image, over all channels."""
        return len(self.entries) - 1

    def add_up(self, counts: torch.Tensor) -> torch.Tensor:
        """Σ n·log n over the last side of ``counts``."""
        found = self.entries.index_select(0, counts.reshape(-1))
        return found.view(counts.shape).sum(dim=-1)


@dataclass(frozen=True)
class _Images:
    """Bins (n, D) uint8 of the pixels, and Σ n·log n (n,) int64 of each image's own histogram."""

    codes: torch.Tensor
    sums: torch.Tensor


def mutual_information_pairs(
    a: Pixels, b: Pixels, *, bins: int = 64, normalized: bool = False, device: torch.device | None = None
) -> FloatArray:
    """Mutual information (n,) in nats of image ``a[i]`` with ``b[i]``, both (n, C, H, W) uint8 or uint16.

    Gray levels fall into ``bins`` (2 to 256) equal bins over the full range of the depth; all pixels of all channels
    count into one joint histogram. At most log(``bins``), 0 where an image lies in one bin.

    ``normalized``: 2·I/(H(a) + H(b)) in [0, 1], 1 where the bins of one image tell those of the other, and NaN where an
    image lies in one bin. Studholme's ratio (H(a) + H(b))/H(a, b) (Pattern Recognition 32 (1999)), in [1, 2], ranks
    all pairs alike: it is 2/(2 − x) of this x. This one is taken because, as with a correlation, 0 is unrelated and
    1 is the same.

    A table of 8 bytes a pixel of one image is held. Raises `SettingsError` for other ``bins`` and `InputError` where
    the images do not fit each other.
    """
    check_alike(a, b)
    if len(a) != len(b):
        raise InputError(f"{len(a)} images cannot be paired with {len(b)}. Give as many of both.")
    table = _make_table(a, bins, device or torch.device("cpu"))
    result = np.empty(len(a))
    step = max(BLOCK_PIXELS // max(table.pixels, 1), 1)
    for begin in range(0, len(a), step):
        part = slice(begin, begin + step)
        left, right = _prepare(a[part], table), _prepare(b[part], table)
        joint = _sum_histograms(left.codes, right.codes, table)
        result[part] = _information(joint, left.sums, right.sums, table, normalized)
    return result


def find_by_mutual_information(
    *,
    queries: Pixels,
    references: Iterable[Block],
    best: int = 1,
    bins: int = 64,
    normalized: bool = False,
    device: torch.device | None = None,
    channels: Sequence[int] | None = None,
    progress: Progress | None = None,
) -> SearchResult:
    """Search all references for the ``best`` matches of each query by mutual information, exactly.

    ``queries`` (Q, C, H, W) uint8 or uint16; ``references`` come in ascending order of ``first``, so that they never
    need to be in memory together. Ties go to the lower index; ``mean`` is NaN. The similarities are those of
    `mutual_information_pairs` to the last bit: nats, or with ``normalized`` in [0, 1] and NaN, never a match, where an
    image lies in one bin. ``progress`` counts references. Beside the queries, their bins (a byte a pixel), and a block,
    less than 512 MiB are held for images of up to 2²⁴ pixels.

    Raises `SettingsError` for ``bins`` outside of 2 to 256 and `InputError` where images do not fit each other.
    """
    device = device or torch.device("cpu")
    queries = pick_channels(queries, channels)
    check_alike(queries, queries)
    table = _make_table(queries, bins, device)
    ranking = Ranking(len(queries), best)
    prepared = _prepare(queries, table)
    with single_threaded_torch() as threads, ThreadPoolExecutor(threads) as pool:
        for block in split_blocks(references, max(BLOCK_PIXELS // max(table.pixels, 1), 1), channels):
            check_alike(queries, block.pixels)
            images = _prepare(block.pixels, table)
            if device.type == "cpu":
                joint = _compare_by_counting(prepared, images, table, pool, threads)
            else:
                joint = _compare_by_products(prepared, images, table, pick_product(device))
            ranking.merge(_information(joint, prepared.sums[:, None], images.sums, table, normalized), block.first)
            if progress:
                progress.advance(len(block.pixels))
    return ranking.result()


def _make_table(images: Pixels, bins: int, device: torch.device) -> _Table:
    if not 2 <= bins <= MOST_BINS:
        raise SettingsError(f"bins {bins}: give 2 to {MOST_BINS}.")
    pixels = int(np.prod(images.shape[1:]))
    counts = np.arange(pixels + 1, dtype=np.float64)
    products = counts * np.log(np.maximum(counts, 1))
    unit = LARGEST_SUM / 2.0 ** math.ceil(math.log2(max(products[-1], 1.0)))
    entries = np.rint(products * unit).astype(np.int64)
    return _Table(torch.from_numpy(entries).to(device), unit, bins)


def _prepare(images: Pixels, table: _Table) -> _Images:
    """Bins of the pixels; levels v of N fall into bin ⌊v·bins/N⌋."""
    levels = np.iinfo(images.dtype).max + 1
    # A look-up of all levels is faster than arithmetic on all pixels.
    bin_of_level = (np.arange(levels) * table.bins // levels).astype(np.uint8)
    flat = np.ascontiguousarray(bin_of_level[images]).reshape(len(images), table.pixels)
    codes = torch.from_numpy(flat).to(table.entries.device)
    sums = torch.empty(len(codes), dtype=torch.int64, device=codes.device)
    step = _at_once(table.pixels, table.bins)
    for begin in range(0, len(codes), step):
        part = codes[begin : begin + step].to(torch.int32)
        sums[begin : begin + step] = table.add_up(_count(part + _offsets(len(part), table.bins, part), table.bins))
    return _Images(codes, sums)


def _at_once(pixels: int, cells: int) -> int:
    """Images whose pixels are counted into so many cells at once."""
    return max(COUNTED_AT_ONCE // max(pixels, cells), 1)


def _offsets(count: int, cells: int, like: torch.Tensor) -> torch.Tensor:
    """Where the cells of each of ``count`` histograms begin: (count, 1)."""
    return torch.arange(count, dtype=like.dtype, device=like.device)[:, None] * cells


def _count(codes: torch.Tensor, cells: int) -> torch.Tensor:
    """Histograms (n, cells) of codes (n, D) that already point at the cells of their own histogram."""
    return torch.bincount(codes.view(-1), minlength=len(codes) * cells).view(len(codes), cells)


def _sum_histograms(a: torch.Tensor, b: torch.Tensor, table: _Table) -> torch.Tensor:
    """Σ n·log n (n,) of the joint histograms of bins ``a[i]`` and ``b[i]``, both (n, D) uint8."""
    cells = table.bins**2
    sums = torch.empty(len(a), dtype=torch.int64, device=a.device)
    step = _at_once(table.pixels, cells)
    for begin in range(0, len(a), step):
        part = slice(begin, begin + step)
        codes = a[part].to(torch.int32).mul_(table.bins).add_(b[part])
        sums[part] = table.add_up(_count(codes.add_(_offsets(len(codes), cells, codes)), cells))
    return sums


def _compare_by_counting(
    queries: _Images, references: _Images, table: _Table, pool: ThreadPoolExecutor, threads: int
) -> torch.Tensor:
    """Σ n·log n (Q, n) of all joint histograms, counted: the fastest way on a processor."""
    cells = table.bins**2
    joint = torch.empty((len(queries.codes), len(references.codes)), dtype=torch.int64)
    step = _at_once(table.pixels, cells)

    def compare(share: IntArray) -> None:
        buffer = torch.empty((step, table.pixels), dtype=torch.int32)
        for begin in range(0, len(references.codes), step):
            part = references.codes[begin : begin + step].to(torch.int32)
            part += _offsets(len(part), cells, part)
            for index in share.tolist():
                query = queries.codes[index].to(torch.int32).mul_(table.bins)
                codes = torch.add(part, query, out=buffer[: len(part)])
                joint[index, begin : begin + step] = table.add_up(_count(codes, cells))

    for running in [pool.submit(compare, share) for share in np.array_split(np.arange(len(joint)), threads)]:
        running.result()
    return joint


def _compare_by_products(queries: _Images, references: _Images, table: _Table, product: Product) -> torch.Tensor:
    """The same by exact integer products of one-hot pixels: the fastest way on a graphics card."""
    joint = torch.empty((len(queries.codes), len(references.codes)), dtype=torch.int64, device=queries.codes.device)
    step = max(MULTIPLIED_AT_ONCE // max(table.pixels * table.bins, 1), 1)
    for begin in range(0, len(references.codes), step):
        right = _one_hot(references.codes[begin : begin + step], table.bins)
        for row in range(0, len(queries.codes), step):
            left = _one_hot(queries.codes[row : row + step], table.bins)
            counts = product(left, right).to(torch.int64)
            blocks = counts.view(-1, table.bins, len(right) // table.bins, table.bins).transpose(1, 2)
            joint[row : row + step, begin : begin + step] = table.add_up(blocks.flatten(2))
    return joint


def _one_hot(codes: torch.Tensor, bins: int) -> torch.Tensor:
    """1 where a pixel falls into a bin: (n, D) to (n·bins, D) int8."""
    levels = torch.arange(bins, dtype=torch.uint8, device=codes.device)
    return (codes[:, None, :] == levels[:, None]).to(torch.int8).view(-1, codes.shape[1])


def _information(joint: torch.Tensor, a: torch.Tensor, b: torch.Tensor, table: _Table, normalized: bool) -> FloatArray:
    """Mutual information from Σ n·log n of the joint and both single histograms, which broadcast."""
    whole = table.entries[-1]
    # Clamped: rounding in the table may leave less than nothing of unrelated images.
    shared = (whole - a - b + joint).clamp_(min=0).cpu().numpy().astype(np.float64)
    if not normalized:
        nats: FloatArray = shared / (table.unit * max(table.pixels, 1))
        return nats
    own = [(whole - sums).cpu().numpy().astype(np.float64) for sums in (a, b)]
    with np.errstate(invalid="ignore", divide="ignore"):
        ratio = np.minimum(2 * shared / (own[0] + own[1]), 1.0)
    return np.where((own[0] > 0) & (own[1] > 0), ratio, np.nan)
