"""Pearson correlation between images, over all pixels of the chosen channels: exact, all pairs, streaming.

    r(a, b) = (D·Σab − Σa·Σb) / √((D·Σa² − (Σa)²)·(D·Σb² − (Σb)²))

Every sum is an integer and is computed as one (`products`); float64 enters only in the last line, element by
element, so that the result is the same to the last bit whatever the block size, the number of threads, or the
device that multiplied. A constant image has no correlation: its similarity is NaN, "undefined" in reports,
and it is never anybody's match.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from unalike.engine import map_in_order
from unalike.images.moments import sum_pixels
from unalike.records import FloatArray, IntArray, Pixels
from unalike.similarity.products import Product, pick_product
from unalike.similarity.pruning import Coarse, bound_covariances, can_prune, coarsen

# Tiles small enough for the second-level cache do the elementwise part at the speed of arithmetic.
QUERY_TILE = 1024
REFERENCE_TILE = 256
# References multiplied out together where a bound rules pairs out: alike ones, as slices of a volume, share queries.
PRUNED_TILE = 16
# Queries copied together to be multiplied with them: few enough to stay in the third-level cache.
PICKED_QUERIES = 128
# Pixels, or `REFERENCE_TILE` images, that a thread prepares at once, and threads that do so: each is three such parts
# ahead at most.
PREPARED_PIXELS = 2**24
PREPARING_THREADS = 4
# Similarities are averaged as integers in units of 2⁻⁴⁰, because integer sums do not depend on their order.
MEAN_UNIT = 2.0**40


@dataclass(frozen=True)
class SearchResult:
    """Best matches of each query, best first, and its mean similarity with all references.

    ``references`` (Q, k) are indices, −1 where there are fewer than k; ``similarities`` (Q, k) are in [−1, 1], NaN
    where undefined; ``mean`` (Q,) averages over all references that are not constant (to 2⁻⁴¹), NaN if not asked for.
    ``share_multiplied`` is the share of pairs that were multiplied out in full; a bound ruled out the others.
    ``share_read`` is the share of the references' pixels that were read, above 1 where some were read twice.
    """

    references: IntArray
    similarities: FloatArray
    mean: FloatArray
    share_multiplied: float = 1.0
    share_read: float = 1.0

    @property
    def highest(self) -> FloatArray:
        """Similarity (Q,) with the best match: the papers' "highest correlation"."""
        best: FloatArray = self.similarities[:, 0]
        return best


@dataclass(frozen=True)
class Block:
    """A run of reference images: index of the first, pixels (n, C, H, W), and Σa, Σa² (n, C) if they are known."""

    first: int
    pixels: Pixels
    sums: IntArray | None = None
    squares: IntArray | None = None


@dataclass(frozen=True)
class _Images:
    """Images ready for the integer product: int8 planes (n, D) and the exact moments (n,) of their pixels."""

    planes: tuple[torch.Tensor, ...]  # one for 8 bits; high and low byte for 16
    sums: torch.Tensor  # int64
    spread: torch.Tensor  # float64: what `_centre` makes of Σa²; 0 for a constant image
    first: int = 0  # index of the first image
    coarse: Coarse | None = None  # for the bound, where it is used

    def part(self, part: slice) -> _Images:
        """Some of the images, to be multiplied out."""
        return _Images(tuple(plane[part] for plane in self.planes), self.sums[part], self.spread[part])

    def pick(self, rows: torch.Tensor, buffer: torch.Tensor) -> _Images:
        """Chosen 8-bit images, copied into ``buffer``: fresh memory costs several times the copying."""
        plane = torch.index_select(self.planes[0], 0, rows, out=buffer[: len(rows)])
        return _Images((plane,), self.sums[rows], self.spread[rows])


def correlate(a: Pixels, b: Pixels, *, channels: Sequence[int] | None = None) -> FloatArray:
    """Correlation of every image of ``a`` (n, C, H, W) with every image of ``b`` (m, C, H, W): (n, m) float64.

    For small sets; `find_matches` streams. ``channels`` picks channel indices (None: all).
    """
    device = torch.device("cpu")
    left, right = (_prepare(Block(0, images), channels=channels, device=device) for images in (a, b))
    return _similarities(left, right, pick_product(device)).numpy()


def find_matches(
    *,
    queries: Pixels,
    references: Iterable[Block],
    best: int = 1,
    channels: Sequence[int] | None = None,
    mean: bool = True,
    device: torch.device | None = None,
    product: Product | None = None,
) -> SearchResult:
    """Search all references for the ``best`` matches of each query, exactly.

    ``queries`` (Q, C, H, W); ``references`` come in ascending order of ``first``, so that they never need to be
    in memory together. Ties go to the lower index. Without ``mean``, pairs that a certified bound rules out are not
    multiplied out (see `pruning`): the same matches to the last bit, several times faster on large 8-bit images.
    """
    device = device or torch.device("cpu")
    product = product or pick_product(device)
    prepare = partial(_prepare, channels=channels, device=device)
    if not mean and can_prune(queries, device):
        tiles = _search_pruned(queries, references, best, partial(prepare, bound=product), product)
    else:
        tiles = [_Running(prepare(part), best) for part in _query_parts(queries, QUERY_TILE)]
        for part in _parts(references, REFERENCE_TILE):
            images = prepare(part)
            for tile in tiles:
                tile.compare(images, product, mean)
    pairs = sum(tile.pairs for tile in tiles)
    return SearchResult(
        references=np.concatenate([tile.references.cpu().numpy() for tile in tiles]),
        similarities=np.concatenate([tile.values.cpu().numpy() for tile in tiles]),
        mean=np.concatenate([tile.average() for tile in tiles]),
        share_multiplied=sum(tile.multiplied for tile in tiles) / pairs if pairs else 1.0,
    )


def _search_pruned(
    queries: Pixels,
    references: Iterable[Block],
    best: int,
    prepare: Callable[[Block], _Images],
    product: Product,
) -> list[_Running]:
    """Search with the bound. Each thread has its share of the queries, and others prepare references meanwhile.

    The steps are small and many: threads that share each of them, as torch's do, would mostly wait for each other.
    """
    pixels = max(int(np.prod(queries.shape[1:])), 1)
    size = min(max(PREPARED_PIXELS // pixels, PRUNED_TILE), REFERENCE_TILE)
    with single_threaded_torch() as threads, ThreadPoolExecutor(threads) as pool:
        share = min(max(-(-len(queries) // threads), 1), QUERY_TILE)
        tiles = [_Running(prepare(part), best) for part in _query_parts(queries, share)]
        prepared = map_in_order(prepare, _parts(references, size), workers=max(min(threads // 2, PREPARING_THREADS), 1))
        for images in prepared:
            for compared in [pool.submit(tile.compare_possible, images, product) for tile in tiles]:
                compared.result()
    return tiles


@contextmanager
def single_threaded_torch() -> Iterator[int]:
    """Threads started inside use one processor each; gives the number that torch used before."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield threads
    finally:
        torch.set_num_threads(threads)


class _Running:
    """Best matches and sums so far, of one tile of queries."""

    def __init__(self, images: _Images, best: int) -> None:
        count, device = len(images.sums), images.sums.device
        self.images, self.best = images, best
        self.values = torch.full((count, best), torch.nan, dtype=torch.float64, device=device)
        self.references = torch.full((count, best), -1, dtype=torch.int64, device=device)
        self.threshold = torch.full((count, 1), -torch.inf, dtype=torch.float64, device=device)
        self.total = torch.zeros(count, dtype=torch.int64, device=device)
        self.defined = self.pairs = self.multiplied = 0
        # NumPy asks for large pages, torch does not.
        picked = np.empty((min(count, PICKED_QUERIES), images.planes[0].shape[1]), np.int8)
        self.buffer = torch.from_numpy(picked)

    def compare(self, references: _Images, product: Product, mean: bool) -> None:
        """Take in references that follow those before."""
        similarities = _similarities(self.images, references, product)
        self.pairs += similarities.numel()
        self.multiplied += similarities.numel()
        self._merge(torch.arange(len(similarities), device=similarities.device), similarities, references.first)
        if mean:
            self.defined += int((references.spread > 0).sum())
            # NaN rounds to an arbitrary integer, so it must become 0 first.
            units = similarities.nan_to_num_(nan=0.0).mul_(MEAN_UNIT).round_()
            self.total += units.to(torch.int64).sum(dim=1)

    def compare_possible(self, references: _Images, product: Product) -> None:
        """The same, a few references at a time, with only those queries of which one of them may be a best match."""
        queries = self.images
        assert queries.coarse is not None  # noqa: S101 - for the type checker
        assert references.coarse is not None  # noqa: S101
        highest = bound_covariances(queries.coarse, references.coarse, product)
        self.pairs += highest.numel()
        defined = queries.spread > 0
        for begin in range(0, len(references.sums), PRUNED_TILE):
            part = slice(begin, begin + PRUNED_TILE)
            # No correlation is below −2, which stands for −∞ because ∞ · 0 is NaN.
            needed = self.threshold.clamp(min=-2.0) * queries.coarse.norm[:, None] * references.coarse.norm[part]
            rows = ((highest[:, part] > needed).any(dim=1) & defined).nonzero()[:, 0]
            for pick in range(0, len(rows), PICKED_QUERIES):
                chosen = rows[pick : pick + PICKED_QUERIES]
                picked = queries.pick(chosen, self.buffer)
                similarities = _similarities(picked, references.part(part), product)
                self.multiplied += similarities.numel()
                self._merge(chosen, similarities, references.first + begin)

    def _merge(self, rows: torch.Tensor, similarities: torch.Tensor, first: int) -> None:
        """Keep the best of what ``rows`` of the queries had and their similarities (n, m) with ``first``, …"""
        # Strictly better only: references come in ascending order, so a tie keeps the lower index. NaN is never better.
        better = (similarities > self.threshold[rows]).any(dim=1).nonzero()[:, 0]
        if len(better):
            self._insert(rows[better], similarities[better], first)

    def _insert(self, rows: torch.Tensor, similarities: torch.Tensor, first: int) -> None:
        values = torch.cat([self.values[rows], similarities], dim=1)
        here = torch.arange(first, first + similarities.shape[1], device=values.device)
        references = torch.cat([self.references[rows], here.expand(len(rows), -1)], dim=1)
        # A stable descending sort keeps the lower index first among equals; NaN must sort last.
        ranked = values.nan_to_num(nan=-torch.inf).sort(dim=1, descending=True, stable=True)
        order = ranked.indices[:, : self.best]
        self.values[rows] = values.gather(1, order)
        self.references[rows] = references.gather(1, order).where(~self.values[rows].isnan(), -1)
        self.threshold[rows] = ranked.values[:, self.best - 1 : self.best]

    def average(self) -> FloatArray:
        """Mean similarity of each query; NaN for a constant query, without references, and if not asked for."""
        mean = self.total.cpu().numpy() / (MEAN_UNIT * max(self.defined, 1))
        undefined = (self.images.spread == 0).cpu().numpy() | (self.defined == 0)
        return np.where(undefined, np.nan, mean)


def _query_parts(queries: Pixels, size: int) -> list[Block]:
    """Runs of at most ``size`` queries; at least one, which may be empty."""
    return [Block(begin, queries[begin : begin + size]) for begin in range(0, max(len(queries), 1), size)]


def _parts(blocks: Iterable[Block], size: int) -> Iterator[Block]:
    """The same images in runs of at most ``size``."""
    for block in blocks:
        for begin in range(0, len(block.pixels), size):
            yield _part(block, begin, begin + size)


def _part(block: Block, begin: int, end: int) -> Block:
    known = block.sums is not None and block.squares is not None
    return Block(
        first=block.first + begin,
        pixels=block.pixels[begin:end],
        sums=block.sums[begin:end] if known and block.sums is not None else None,
        squares=block.squares[begin:end] if known and block.squares is not None else None,
    )


def _prepare(
    block: Block, *, channels: Sequence[int] | None, device: torch.device, bound: Product | None = None
) -> _Images:
    """Centre pixels to int8 planes on ``device``, with exact moments, and (by the product ``bound``) block means."""
    images = block.pixels
    if images.dtype not in (np.uint8, np.uint16):
        raise TypeError(f"images are {images.dtype}, but uint8 or uint16 is needed")
    chosen = list(range(images.shape[1])) if channels is None else list(channels)
    if chosen != list(range(images.shape[1])):
        images = images[:, chosen]
    if block.sums is None or block.squares is None:
        sums, squares = (moment.sum(axis=1) for moment in sum_pixels(images))
    else:
        sums, squares = (moment[:, chosen].sum(axis=1) for moment in (block.sums, block.squares))
    flat = np.ascontiguousarray(images).reshape(len(images), int(np.prod(images.shape[1:])))
    # Flipping the top bit subtracts half the range: unsigned becomes signed, and r does not change.
    top = np.uint8(0x80)
    if flat.dtype == np.uint8:
        offset, planes = 128, [flat ^ top]
    else:
        # 256·(high − 128) + (low − 128) = a − 32,896
        offset, planes = 32_896, [(flat >> 8).astype(np.uint8) ^ top, (flat & 0xFF).astype(np.uint8) ^ top]
    pixels = flat.shape[1]
    squares = squares - 2 * offset * sums + offset * offset * pixels
    centred = torch.from_numpy(sums - offset * pixels).to(device)
    squared = torch.from_numpy(squares).to(device)
    return _Images(
        planes=tuple(torch.from_numpy(plane.view(np.int8)).to(device) for plane in planes),
        sums=centred,
        spread=_centre(squared.clone(), centred, centred, pixels, len(planes)),
        first=block.first,
        coarse=coarsen(flat.reshape(images.shape), centred, squared, bound) if bound else None,
    )


def _similarities(a: _Images, b: _Images, product: Product) -> torch.Tensor:
    """Correlations (n, m) float64 of prepared images; NaN where one is constant."""
    pixels = a.planes[0].shape[1]
    if len(a.planes) == 1:
        products = product(a.planes[0], b.planes[0]).to(torch.int64)
    else:
        high, low = a.planes
        other_high, other_low = b.planes
        mixed = product(high, other_low).to(torch.int64) + product(low, other_high)
        products = 65_536 * product(high, other_high).to(torch.int64) + 256 * mixed + product(low, other_low)
    covariance = _centre(products, a.sums[:, None], b.sums[None, :], pixels, len(a.planes))
    # √(x·x) is x in IEEE arithmetic, so an image has correlation 1 with itself, not 1 − 10⁻¹⁶.
    correlation = covariance.div_((a.spread[:, None] * b.spread[None, :]).sqrt_())
    return correlation.clamp_(-1.0, 1.0)


def _centre(
    products: torch.Tensor, sums_a: torch.Tensor, sums_b: torch.Tensor, pixels: int, planes: int
) -> torch.Tensor:
    """D·Σ(a − ā)(b − b̄) as float64 from int64 ``products`` Σab (overwritten) and the sums.

    8-bit images of up to 2²³ pixels: D·Σab − Σa·Σb is an exact integer below 2⁶². Beyond, integer means are
    subtracted first, which leaves an exact integer and a remainder below D/4 that is divided in float64.
    """
    if planes == 1 and pixels <= 2**23:
        return products.mul_(pixels).sub_(sums_a * sums_b).to(torch.float64)
    mean_a, mean_b = ((2 * sums + pixels).div(2 * pixels, rounding_mode="floor") for sums in (sums_a, sums_b))
    rest_a, rest_b = sums_a - pixels * mean_a, sums_b - pixels * mean_b
    # Σ(a − m)(b − n) = Σab − n·Σa − m·Σb + D·m·n = Σab − n·(Σa − D·m) − m·Σb
    whole = products - mean_b * rest_a - mean_a * sums_b
    return (whole.to(torch.float64) - (rest_a * rest_b).to(torch.float64) / pixels) * pixels
