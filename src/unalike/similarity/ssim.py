"""Structural similarity (SSIM) between images: of given pairs in float64, and the best matches among all pairs.

    SSIM(a, b) = mean over windows of (2·μa·μb + C1)·(2·σab + C2) / ((μa² + μb² + C1)·(σa² + σb² + C2))

Wang, Bovik, Sheikh, Simoncelli: Image quality assessment: from error visibility to structural similarity, IEEE
Transactions on Image Processing 13 (2004), equation 13: windows of 11 × 11 pixels weighted by a Gaussian of 1.5 pixels,
C1 = (0.01·L)² and C2 = (0.03·L)², where L is 255 or 65,535. Only windows that lie within the image count. The mean over
channels is taken. A constant image has a similarity, unlike a correlation, because C1 and C2 are positive.

The search computes what belongs to one image (μ and σ²) once; a pair needs one more filter, that of a·b. It runs as
two products with a small banded matrix, for many references at once, strip by strip, so that all of it stays in the
cache. It is done in float32; whatever comes within `MARGIN` of the best is computed again in float64.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch

from unalike.engine import Progress
from unalike.errors import InputError, SettingsError
from unalike.records import FloatArray, Pixels
from unalike.similarity.correlation import Block, SearchResult, single_threaded_torch

WINDOW = 11
SIGMA = 1.5
K1, K2 = 0.01, 0.03
# Twice this is how far below the best a float32 similarity may lie and still be computed again in float64.
MARGIN = 2e-4
# Pixels of float64 computed at once: few enough for the cache.
PIXELS_AT_ONCE = 2**17
# Pixels of pairs copied together to be computed again: 8 MiB of 16 bits for each side.
COPIED_PIXELS = 2**22
# Float32 numbers kept of the queries, and of the references, at most: 128 MiB each.
KEPT_NUMBERS = 2**25
# Numbers kept of each pixel of an image: itself and what `_Images` says.
FIELDS = 5


@dataclass(frozen=True)
class _Images:
    """Images ready for the search, pixels in units of the full range; all float32 tensors, the image last.

    ``pixels`` (C, H, W, n) less the mean of their image, which leaves covariances as they are and rounds them less.
    The others (C, H − 10, W − 10, n): ``shifted``, the windows' means of those; ``means``, the windows' means;
    ``light``, (μ² + C1/2)/2; ``contrast``, (σ² + C2/2)/2.
    """

    pixels: torch.Tensor
    shifted: torch.Tensor
    means: torch.Tensor
    light: torch.Tensor
    contrast: torch.Tensor

    def strip(self, channel: int, begin: int, end: int) -> _Images:
        """Windows that begin in some rows of one channel, and their pixels: (rows, W, n) each."""
        rest = (field[channel, begin:end] for field in (self.shifted, self.means, self.light, self.contrast))
        return _Images(self.pixels[channel, begin : end + WINDOW - 1], *rest)

    def image(self, index: int) -> _Images:
        """One image of a strip: (rows, W, 1) each, which broadcasts over the references."""
        part = slice(index, index + 1)
        fields = (self.pixels, self.shifted, self.means, self.light, self.contrast)
        return _Images(*(field[..., part] for field in fields))


class Ranking:
    """Best matches so far of each query, among references that come in ascending order."""

    def __init__(self, count: int, best: int) -> None:
        """Of ``count`` queries, the ``best`` (1 or more) of each; nothing is found yet."""
        if best < 1:
            raise SettingsError(f"best {best}: give 1 or more.")
        self.best = best
        self.values = np.full((count, best), np.nan)
        self.references = np.full((count, best), -1, np.int64)

    def merge(self, values: FloatArray, first: int, rows: slice = slice(None)) -> None:
        """Take in the similarities (rows, m) with references ``first``, …; NaN is never a match."""
        old = self.values[rows]
        # Strictly better only: a tie keeps the lower index. NaN is never better, but anything is better than none.
        worst = np.where(np.isnan(old[:, -1:]), -np.inf, old[:, -1:])
        better = np.flatnonzero((values > worst).any(axis=1))
        if not len(better):
            return
        here = np.broadcast_to(np.arange(first, first + values.shape[1]), (len(better), values.shape[1]))
        joint = np.concatenate([old[better], values[better]], axis=1)
        indices = np.concatenate([self.references[rows][better], here], axis=1)
        # NaN sorts last, and a stable sort keeps the lower index first among equals.
        order = np.argsort(-joint, axis=1, kind="stable")[:, : self.best]
        chosen = np.take_along_axis(joint, order, axis=1)
        places = better + (rows.start or 0)
        self.values[places] = chosen
        self.references[places] = np.where(np.isnan(chosen), -1, np.take_along_axis(indices, order, axis=1))

    def result(self) -> SearchResult:
        """What was found; the mean is not kept."""
        return SearchResult(self.references, self.values, np.full(len(self.values), np.nan))


def ssim_pairs(a: Pixels, b: Pixels, *, device: torch.device | None = None) -> FloatArray:
    """Mean SSIM (n,) of image ``a[i]`` with ``b[i]``, both (n, C, H, W) uint8 or uint16: in [−1, 1], 1 if equal.

    Equals ``skimage.metrics.structural_similarity`` with ``data_range`` 255 or 65,535, ``gaussian_weights=True``,
    ``sigma=1.5`` and ``use_sample_covariance=False``, averaged over channels, to 10⁻⁹. The value of a pair is the same
    to the last bit whatever is computed beside it. Raises `SettingsError` where H or W is below 11 and `InputError`
    where the images do not fit each other.
    """
    check_alike(a, b)
    check_window(a)
    if len(a) != len(b):
        raise InputError(f"{len(a)} images cannot be paired with {len(b)}. Give as many of both.")
    device = device or torch.device("cpu")
    similarities = np.empty(len(a))
    step = max(PIXELS_AT_ONCE // max(int(np.prod(a.shape[1:])), 1), 1)
    for begin in range(0, len(a), step):
        part = slice(begin, begin + step)
        similarities[part] = _ssim(_unit_range(a[part], device), _unit_range(b[part], device)).cpu().numpy()
    return similarities


def find_by_ssim(
    *,
    queries: Pixels,
    references: Iterable[Block],
    best: int = 1,
    device: torch.device | None = None,
    channels: Sequence[int] | None = None,
    progress: Progress | None = None,
) -> SearchResult:
    """Search all references for the ``best`` matches of each query by mean SSIM (Wang et al. 2004).

    ``queries`` (Q, C, H, W) uint8 or uint16; ``references`` come in ascending order of ``first``, so that they never
    need to be in memory together. Ties go to the lower index; ``mean`` is NaN. ``progress`` counts references. Beside
    the queries and a block, less than 512 MiB are held.

    All pairs are compared in float32, and those that may be among the best are computed again by `ssim_pairs`: the
    similarities given are its own to the last bit. A better match could only be missed where float32 errs by more
    than `MARGIN`, four times the largest error seen (in flat halves, one black and one white; anatomy errs by a third
    of that). Where a great many pairs are that close to the best (thousands of empty slices), computing them again
    takes most of the time.

    Raises `SettingsError` where H or W is below 11 and `InputError` where images do not fit each other.
    """
    device = device or torch.device("cpu")
    queries = pick_channels(queries, channels)
    check_window(queries)
    ranking = Ranking(len(queries), best)
    held = max(KEPT_NUMBERS // max(FIELDS * int(np.prod(queries.shape[1:])), 1), 1)
    parts = [slice(begin, begin + held) for begin in range(0, len(queries), held)]
    # Queries that fit into memory are prepared once.
    kept = _prepare(queries, device, together=False) if len(parts) == 1 else None
    with single_threaded_torch() as threads, _full_float32(), ThreadPoolExecutor(threads) as pool:
        # A graphics card is busy with what one thread tells it, and each has memory of its own.
        shares = threads if device.type == "cpu" else 1
        for block in split_blocks(references, held, channels):
            check_alike(queries, block.pixels)
            tiles = _tiles(block.pixels, device)
            for part in parts:
                compared = _compare(kept or _prepare(queries[part], device, together=False), tiles, pool, shares)
                _settle(ranking, compared, queries, block, part, device)
            if progress:
                progress.advance(len(block.pixels))
    return ranking.result()


@contextmanager
def _full_float32() -> Iterator[None]:
    """Products on a graphics card keep all bits of float32: with TF32 they would keep 10, and `MARGIN` not hold."""
    tf32 = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = tf32


def split_blocks(blocks: Iterable[Block], size: int, channels: Sequence[int] | None) -> Iterator[Block]:
    """The same images in runs of at most ``size``, with the chosen channels only."""
    for block in blocks:
        for begin in range(0, len(block.pixels), size):
            yield Block(block.first + begin, pick_channels(block.pixels[begin : begin + size], channels))


def pick_channels(images: Pixels, channels: Sequence[int] | None) -> Pixels:
    """The chosen channels (None: all) of images (n, C, H, W)."""
    return images if channels is None else images[:, list(channels)]


def check_alike(a: Pixels, b: Pixels) -> None:
    """Raise `InputError` unless both are (n, C, H, W) of one size, and both uint8 or both uint16."""
    kinds = [f"{'×'.join(map(str, images.shape[1:]))} {images.dtype}" for images in (a, b)]
    if kinds[0] != kinds[1]:
        raise InputError(f"images of {kinds[0]} cannot be compared with {kinds[1]}. Give both the same size and depth.")
    if a.ndim != 4 or a.dtype not in (np.uint8, np.uint16):
        raise InputError(f"images of {kinds[0]} cannot be compared. Give (n, C, H, W) of uint8 or uint16.")


def check_window(images: Pixels) -> None:
    """Raise `SettingsError` for images that hold no window."""
    check_alike(images, images)
    height, width = images.shape[2:]
    if min(height, width) < WINDOW:
        raise SettingsError(
            f"SSIM needs images of {WINDOW} × {WINDOW} pixels or more, these have {height} × {width}. "
            "Prepare larger images or compare by correlation."
        )


def _unit_range(images: Pixels, device: torch.device) -> torch.Tensor:
    """Images as float64 in [0, 1] of the full range of their depth."""
    top = float(np.iinfo(images.dtype).max)
    return torch.from_numpy(images.astype(np.float64)).to(device).div_(top)


def _weights() -> FloatArray:
    """The window's 11 weights along one side; their sum is 1."""
    offsets = np.arange(WINDOW) - WINDOW // 2
    weights = np.exp(-0.5 * (offsets / SIGMA) ** 2)
    shares: FloatArray = weights / weights.sum()
    return shares


def _blur(images: torch.Tensor) -> torch.Tensor:
    """Weighted means of all windows: (…, H, W) float64 to (…, H − 10, W − 10).

    Only additions and multiplications, each rounded on its own, so that a pixel's result depends on nothing beside it.
    """
    weights, middle = _weights().tolist(), WINDOW // 2
    for side in (-2, -1):
        size = images.shape[side] - WINDOW + 1
        total = images.narrow(side, middle, size) * weights[middle]
        for step in range(middle):
            ends = images.narrow(side, step, size) + images.narrow(side, WINDOW - 1 - step, size)
            total += ends.mul_(weights[step])
        images = total
    return images


def _ssim(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Mean SSIM (n,) of images (n, C, H, W) float64 in [0, 1]."""
    mean_a, mean_b = _blur(a), _blur(b)
    squares = mean_a * mean_a + mean_b * mean_b
    products = mean_a * mean_b
    spread = _blur(a * a) + _blur(b * b) - squares
    covariance = _blur(a * b) - products
    local = (2 * products + K1**2) * (2 * covariance + K2**2)
    local /= (squares + K1**2) * (spread + K2**2)
    # Added up as integers, because integer sums do not depend on their order: none is above 1, the sum fits int64.
    windows = int(np.prod(local.shape[1:]))
    unit = 2.0 ** (62 - windows.bit_length())
    total = local.mul_(unit).round_().to(torch.int64).sum(dim=(1, 2, 3))
    return (total.to(torch.float64) / (unit * windows)).clamp_(-1.0, 1.0)


def _prepare(images: Pixels, device: torch.device, *, together: bool) -> _Images:
    """What belongs to each image alone, computed in float64 and kept in float32.

    ``together``: pixels at one place lie side by side, as references are read; else those of one image, as queries.
    """
    count, channels, height, width = images.shape

    def reserve(*shape: int) -> torch.Tensor:
        if together:
            return torch.empty((*shape, count), device=device)
        return torch.empty((count, *shape), device=device).permute(1, 2, 3, 0)

    pixels = reserve(channels, height, width)
    shifted, means, light, contrast = (reserve(channels, height - WINDOW + 1, width - WINDOW + 1) for _ in range(4))
    step = max(PIXELS_AT_ONCE // max(channels * height * width, 1), 1)
    for begin in range(0, count, step):
        part = slice(begin, begin + step)
        values = _unit_range(images[part], device)
        offset = values.mean(dim=(2, 3), keepdim=True)
        mean, variance = _blur(values), _blur((values - offset) ** 2)
        variance -= (mean - offset) ** 2
        pixels[..., part] = (values - offset).permute(1, 2, 3, 0)
        shifted[..., part] = (mean - offset).permute(1, 2, 3, 0)
        means[..., part] = mean.permute(1, 2, 3, 0)
        light[..., part] = (mean**2 + K1**2 / 2).div_(2).permute(1, 2, 3, 0)
        contrast[..., part] = (variance + K2**2 / 2).div_(2).permute(1, 2, 3, 0)
    return _Images(pixels, shifted, means, light, contrast)


def _steps(width: int, device: torch.device) -> tuple[int, int]:
    """Rows of windows, and references, computed at once: what the second-level cache holds, or what fills a card."""
    if device.type == "cpu":
        return 16, min(max(2**19 // (16 * width), 64), 256)
    return 64, min(max(2**24 // (64 * width), 32), 1024)


def _tiles(images: Pixels, device: torch.device) -> list[_Images]:
    """References prepared in runs that are compared at once."""
    size = _steps(images.shape[3], device)[1]
    return [_prepare(images[begin : begin + size], device, together=True) for begin in range(0, len(images), size)]


def _compare(queries: _Images, tiles: list[_Images], pool: ThreadPoolExecutor, workers: int) -> FloatArray:
    """Mean SSIM (Q, n) of all queries with all references of the tiles, from float32."""
    shares = np.array_split(np.arange(queries.pixels.shape[3]), workers)
    running = [[pool.submit(_compare_tile, queries, tile, share) for share in shares] for tile in tiles]
    columns = [np.concatenate([part.result() for part in parts]) for parts in running]
    return np.concatenate(columns, axis=1)


def _compare_tile(queries: _Images, references: _Images, share: np.typing.NDArray[np.int64]) -> FloatArray:
    """Mean SSIM of a share of the queries with one tile of references."""
    channels, height, width, count = references.means.shape
    device = references.means.device
    worker = _Worker(references.pixels.shape[2], count, device)
    total = torch.zeros((len(share), count), dtype=torch.float64, device=device)
    for channel in range(channels):
        for begin in range(0, height, worker.rows):
            # A strip of the references stays in the cache while all queries pass by.
            strips = [images.strip(channel, begin, begin + worker.rows) for images in (queries, references)]
            for row, index in enumerate(share.tolist()):
                total[row] += worker.compare(strips[0].image(index), strips[1])
    return total.div_(channels * height * width).cpu().numpy()


class _Worker:
    """Compares one query with a tile of references, a strip at a time, in memory of its own."""

    def __init__(self, width: int, count: int, device: torch.device) -> None:
        self.rows = _steps(width, device)[0]
        band = np.zeros((self.rows, self.rows + WINDOW - 1), np.float32)
        for row in range(self.rows):
            band[row, row : row + WINDOW] = _weights()
        self.band = torch.from_numpy(band).to(device)
        self.products = torch.empty((self.rows + WINDOW - 1, width, count), device=device)
        self.columns = torch.empty((self.rows, width, count), device=device)
        windows = (self.rows, width - WINDOW + 1, count)
        self.covariance, self.other, self.spread = (torch.empty(windows, device=device) for _ in range(3))

    def compare(self, query: _Images, references: _Images) -> torch.Tensor:
        """Sum (n,) of the local similarities of a strip: those of the query (…, 1) with those of the references."""
        rows = references.means.shape[0]
        # cov + C2/2, times μa·μb + C1/2, by half of each sum of the denominator: both twos of the formula cancel.
        local = self._covary(query, references).add_(K2**2 / 2)
        local.mul_(torch.mul(query.means, references.means, out=self.other[:rows]).add_(K1**2 / 2))
        below = torch.add(query.light, references.light, out=self.other[:rows])
        below.mul_(torch.add(query.contrast, references.contrast, out=self.spread[:rows]))
        return local.div_(below).sum(dim=(0, 1))

    def _covary(self, query: _Images, references: _Images) -> torch.Tensor:
        """Windows' covariances (rows, W − 10, n): a·b blurred by a banded matrix along columns, then along rows."""
        rows, width, count = references.means.shape
        high = rows + WINDOW - 1
        products = torch.mul(query.pixels, references.pixels, out=self.products[:high])
        columns = self.columns[:rows]
        torch.mm(self.band[:rows, :high], products.view(high, -1), out=columns.view(rows, -1))
        means = torch.mul(query.shifted, references.shifted, out=self.other[:rows])
        for begin in range(0, width, self.rows):
            size = min(self.rows, width - begin)
            # The product wants memory without gaps to write to.
            blurred = self.spread.view(-1)[: rows * size * count].view(rows, size, count)
            band = self.band[:size, : size + WINDOW - 1].expand(rows, -1, -1)
            torch.bmm(band, columns[:, begin : begin + size + WINDOW - 1], out=blurred)
            part = slice(begin, begin + size)
            torch.sub(blurred, means[:, part], out=self.covariance[:rows, part])
        return self.covariance[:rows]


def _settle(
    ranking: Ranking, compared: FloatArray, queries: Pixels, block: Block, part: slice, device: torch.device
) -> None:
    """Compute again, in float64, every pair of ``part`` of the queries that may be among the best; rank those."""
    old = np.nan_to_num(ranking.values[part], nan=-np.inf)
    joint = np.concatenate([old, compared], axis=1)
    # The k-th best so far: exact values of earlier references, float32 values of these.
    needed = -np.partition(-joint, ranking.best - 1, axis=1)[:, ranking.best - 1]
    rows, columns = np.nonzero(compared >= needed[:, None] - 2 * MARGIN)
    exact = np.full(compared.shape, np.nan)
    step = max(COPIED_PIXELS // int(np.prod(queries.shape[1:])), 1)
    for begin in range(0, len(rows), step):
        row, column = rows[begin : begin + step], columns[begin : begin + step]
        exact[row, column] = ssim_pairs(queries[part][row], block.pixels[column], device=device)
    ranking.merge(exact, block.first, part)
