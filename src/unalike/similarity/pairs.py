"""All pairs of images in a set that are alike, as they are or mirrored: exact, streaming, most never multiplied out.

Centred and scaled to length 1, images are unit vectors whose inner product is Pearson's r, and

    r(a, b) ≥ t   ⇔   ‖a − b‖ ≤ τ = √(2 − 2t).

Averaging over blocks that lie symmetrically to both middle lines, then adding and subtracting what a flip swaps, is an
orthonormal projection P onto four parts: even or odd from top to bottom, even or odd from left to right. A flip F
only changes the signs of parts. With the norm of what is left out, x = (Pa, ‖a − Pa‖) is a unit vector again, and by
Cauchy and Schwarz r(a, F b) ≤ ⟨x_a, F x_b⟩; with the norms of the three odd parts in their place, y = (even part,
norms) bounds all four flips at once: r(a, F b) ≤ ⟨y_a, y_b⟩. Both bounds are inner products of unit vectors, hence
distances, which do not change when a vector that no flip changes, here a typical image, is taken from all. Rounded to
int8 with known errors e = ‖x − s·q‖, the triangle inequality leaves as possible pairs those with

    s·‖q_a − q_b‖ ≤ τ + e_a + e_b   ⇔   ⟨q_a, q_b⟩ ≥ h_a + h_b − g_a·g_b,   g = (τ/2 + e)/s,   h = (‖q‖² − g²)/2,

an integer matrix product of about 300 numbers an image (y), and of about 1,300 (x) for the few pairs it lets through.
What passes both is read again and multiplied out in full, so the answer is what `correlate` gives, to the last bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch

from unalike.engine import Progress, map_in_order
from unalike.errors import SettingsError
from unalike.images.moments import sum_squares
from unalike.records import FloatArray, IntArray, Pixels, TextArray
from unalike.similarity.correlation import Block, _Images, _prepare, _similarities, single_threaded_torch
from unalike.similarity.products import Product, pick_product
from unalike.similarity.pruning import AREA, BLOCK, _block_sums

Places = torch.Tensor | slice  # of images in the index
Mirror = Literal["none", "left-right", "up-down", "both"]
MIRRORS: tuple[Mirror, ...] = get_args(Mirror)
# Axes of (n, C, H, W) that each mirror reverses.
FLIPPED = ((), (3,), (2,), (2, 3))
# What each mirror does to the parts: even in both, odd from left to right, odd from top to bottom, odd in both.
SIGNS = ((1, 1, 1, 1), (1, -1, 1, -1), (1, 1, -1, -1), (1, -1, -1, 1))

# Block means of an image over all channels, and along half a side: more tell little more about whole images.
NUMBERS = 1_280
LARGEST_HALF = 16
# Images compared with how many others at once: tables of 2 MiB, which memory freed by the last ones holds.
TILE_ROWS, TILE_COLUMNS = 512, 1_024
# Bytes of pixels read at once, as a cohort's chunks are, and images at most; bytes kept of the first images of pairs.
READ_BYTES, READ_IMAGES = 2**24, 512
KEPT_BYTES = 2**27
# Pixels averaged at once: their float64 copy stays in the cache.
AT_ONCE = 2**18
AT_ONCE_IN_FOURS = 2**21
# Runs of neighbouring images that tell what a typical image is: few chunks on disk, from all over the set.
SAMPLE_RUNS, RUN_IMAGES = 16, 16
# Possible pairs that wait to be read together. More than `DENSE_PAIRS` that are a 16th of a tile are multiplied out
# at once, the tile whole: products of whole blocks are some thirty times cheaper a pair than of picked ones.
WAITING_PAIRS = 2**18
DENSE_PAIRS = 2**12
DENSE_SHARE = 1 / 16
# First images multiplied out together, as in `correlation`.
PICKED_ROWS = 16
# Pairs found that are handed out together, about.
CHUNK_PAIRS = 2**18
# The smallest step of rounding to int8: finer ones gain nothing, and g² stays far below 2³¹.
SMALLEST_STEP = 2e-4
# What float64 may do to a correlation, far above it.
ROUNDING = 2.0**-40


@dataclass(frozen=True)
class Pairs:
    """Pairs of alike images: arrays (n,) sorted by ``first``, then ``second``; each pair once, ``first`` < ``second``.

    ``similarity`` is in [−1, 1]. ``mirror`` tells how one of the two is flipped to reach it; of several mirrors it
    is the one of highest similarity, the first of `MIRRORS` on ties.
    """

    first: IntArray
    second: IntArray
    similarity: FloatArray
    mirror: TextArray


def find_pairs(
    *,
    count: int,
    read: Callable[[IntArray], Pixels],
    at_least: float,
    groups: IntArray | None = None,
    mirrors: Sequence[Mirror] = ("none", "left-right", "up-down", "both"),
    channels: Sequence[int] | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Iterator[Pairs]:
    """Find all pairs among ``count`` images whose correlation, in one of the ``mirrors``, is ``at_least`` that.

    ``read(rows)`` gives the pixels (n, C, H, W), uint8 or uint16, of ascending rows; it is asked for at most
    128 MiB at a time. ``groups`` (count,) name the patient of each image: pairs within a group are skipped. Of the
    channels, ``channels`` picks indices (None: all). Constant images have no correlation and pair with nobody.

    Pairs come in parts that are never empty, by ascending blocks of first images; a block with very many pairs comes
    in several parts. ``progress`` advances by 2 an image in all: once when it is averaged, once when it is compared.
    Raises `SettingsError` if ``at_least`` is not in (0, 1] or a mirror is unknown.
    """
    if not 0 < at_least <= 1:
        raise SettingsError(f"similarity {at_least}: give a number above 0 and at most 1.")
    unknown = [mirror for mirror in mirrors if mirror not in MIRRORS]
    if unknown or not mirrors:
        raise SettingsError(f"mirrors {unknown or 'missing'}: choose from {', '.join(MIRRORS)}.")
    if groups is not None and len(groups) != count:
        raise ValueError(f"{len(groups)} groups for {count} images")
    chosen = [index for index, mirror in enumerate(MIRRORS) if mirror in mirrors]
    source = _Source(count, read, channels)
    return _find(source, _Search(source, at_least, groups, chosen), progress or Progress(), workers)


def _find(source: _Source, search: _Search, progress: Progress, workers: int | None) -> Iterator[Pairs]:
    if source.count < 2:
        progress.advance(2 * source.count)
        return
    index = _make_index(source, search.at_least, progress, workers)
    search.begin(index)
    rows = max(min(TILE_ROWS, KEPT_BYTES // source.image_bytes), 1)
    for begin in range(0, len(index.rows), rows):
        end = min(begin + rows, len(index.rows))
        for other in range(begin, len(index.rows), TILE_COLUMNS):
            search.compare(slice(begin, end), slice(other, min(other + TILE_COLUMNS, len(index.rows))))
            if search.found_pairs >= CHUNK_PAIRS:
                yield search.take()
        search.multiply_waiting()
        if search.found_pairs:
            yield search.take()
        progress.advance(end - begin)
    progress.advance(source.count - len(index.rows))


class _Source:
    """Where pixels come from, and their shape once the first image is read."""

    def __init__(self, count: int, read: Callable[[IntArray], Pixels], channels: Sequence[int] | None) -> None:
        self.count, self.read, self.channels = count, read, channels
        self.shape: tuple[int, int, int] = (0, 0, 0)
        self.image_bytes = 1

    def measure(self) -> None:
        """Read one image, to know how many to read at once."""
        first = self.pixels(np.zeros(1, np.int64))
        if first.dtype not in (np.uint8, np.uint16):
            raise TypeError(f"images are {first.dtype}, but uint8 or uint16 is needed")
        self.shape = (first.shape[1], first.shape[2], first.shape[3])
        self.image_bytes = max(first.nbytes, 1)

    def pixels(self, rows: IntArray) -> Pixels:
        """Pixels (n, C, H, W) of the chosen channels."""
        images = self.read(rows)
        return images if self.channels is None else images[:, list(self.channels)]

    def parts(self, rows: IntArray) -> Iterator[IntArray]:
        """The same rows, as many at once as are read together."""
        size = max(min(READ_BYTES // self.image_bytes, READ_IMAGES), 1)
        for begin in range(0, len(rows), size):
            yield rows[begin : begin + size]

    def load(self, rows: IntArray) -> _Images:
        """Images ready for the integer product."""
        return _prepare(Block(0, self.pixels(rows)), channels=None, device=torch.device("cpu"))


@dataclass(frozen=True)
class _Projection:
    """P of the images (n,) that are not constant, which ``defined`` (N,) tells from the others; float64, unit length.

    ``parts`` are the even part and the three odd ones, (n, C·blocks); ``rest`` (n, C) is the norm of what they leave
    out of each channel, and ``norms`` (n, 3·C) are those of the odd parts.
    """

    defined: torch.Tensor
    parts: tuple[torch.Tensor, ...]
    rest: torch.Tensor
    norms: torch.Tensor

    @property
    def even(self) -> torch.Tensor:
        """What no flip changes: (n, C + C·blocks)."""
        return torch.cat([self.rest, self.parts[0]], dim=1)


class _Projector:
    """Projects images (n, C, H, W) onto symmetrically laid block means."""

    def __init__(self, shape: tuple[int, int, int]) -> None:
        channels, height, width = shape
        half = max(min(int((NUMBERS / max(channels, 1)) ** 0.5) // 2, LARGEST_HALF), 1)
        self.pixels = channels * height * width
        self.rows, self.columns = _fold(height, half), _fold(width, half)
        self.halves = len(self.rows) // 2, len(self.columns) // 2
        area = self.rows.abs().sum(dim=1)[:, None] * self.columns.abs().sum(dim=1)
        # The middle line of an odd side has no odd part.
        self.weight = area.clamp(min=1).rsqrt() * (area > 0)
        # Only what is even in both is not free of the mean.
        self.area = area.clone()
        self.area[self.halves[0] :] = 0
        self.area[:, self.halves[1] :] = 0

    def project(self, images: Pixels) -> _Projection:
        """Project; pixels are added up a few images at a time, which all else waits for: few steps, since threads wait.

        All sums are of integers below 2⁵³, hence exact (Σa² of 16 bits: up to 2²¹ pixels; beyond, to 1 in 2⁵²/D).
        """
        in_fours = self.in_fours(images)
        sum_up = self._sum_up_in_fours if in_fours else self._sum_up
        step = max((AT_ONCE_IN_FOURS if in_fours else AT_ONCE) // max(self.pixels, 1), 1)
        steps = [sum_up(images[begin : begin + step]) for begin in range(0, len(images), step)]
        coarse, sums, squares = (torch.cat(column) for column in zip(*steps, strict=True))
        if in_fours:
            coarse = self.rows[:, ::BLOCK] @ (coarse.to(torch.float64) @ self.columns[:, ::BLOCK].T)
        each = self.pixels // sums.shape[1]
        # Less the rounded mean m, Σ(a − m)² is at most twice Σ(a − ā)², so that nothing cancels below.
        middle = (sums.sum(dim=1) / self.pixels).round()[:, None]
        squares = squares - 2 * middle * sums + each * middle**2
        sums = sums - each * middle
        coarse = coarse - middle[:, :, None, None] * self.area
        mean = sums.sum(dim=1) / self.pixels
        coarse = (coarse - mean[:, None, None, None] * self.area) * self.weight
        # Of each channel: Σ(a − ā)² = Σa² − 2ā·Σa + (D/C)·ā².
        spread = squares - 2 * mean[:, None] * sums + each * mean[:, None] ** 2
        defined = squares.sum(dim=1) > 0
        norm = spread.sum(dim=1)[defined].sqrt()
        coarse, spread = coarse[defined] / norm[:, None, None, None], spread[defined] / norm[:, None] ** 2
        height, width = self.halves
        top, bottom = coarse[:, :, :height], coarse[:, :, height:]
        parts = [top[..., :width], top[..., width:], bottom[..., :width], bottom[..., width:]]
        energy = torch.stack([part.square().sum(dim=(2, 3)) for part in parts])
        return _Projection(
            defined=defined,
            parts=tuple(part.flatten(1) for part in parts),
            rest=(spread - energy.sum(dim=0)).clamp(min=0).sqrt(),
            norms=torch.cat(list(energy[1:].sqrt()), dim=1),
        )

    def _sum_up(self, images: Pixels) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Folded sums of blocks (n, C, rows, columns), Σa and Σa² (n, C)."""
        pixels = torch.from_numpy(images.astype(np.float64))
        flat = pixels.flatten(2)
        coarse = self.rows @ (pixels @ self.columns.T)
        return coarse, flat.sum(dim=2), torch.linalg.vecdot(flat, flat)

    def in_fours(self, images: Pixels) -> bool:
        """Whether blocks of the projection are made of whole blocks of 4 × 4 pixels, which are added up much faster."""
        height, width = images.shape[2:]
        if images.dtype != np.uint8 or height % BLOCK or width % 8:
            return False
        return all(
            bool((matrix.reshape(len(matrix), -1, BLOCK) == matrix[:, ::BLOCK, None]).all())
            for matrix in (self.rows, self.columns)
        )

    def _sum_up_in_fours(self, images: Pixels) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Sums of 4 × 4 blocks (n, C, H/4, W/4), Σa and Σa² (n, C) of 8-bit images."""
        count, channels, height, width = images.shape
        squares = sum_squares(images)
        fours = _block_sums(np.ascontiguousarray(images)).add_(128 * AREA)
        fours = fours.reshape(count, channels, height // BLOCK, width // BLOCK)
        sums = fours.sum(dim=(2, 3), dtype=torch.float64)
        return fours, sums, torch.from_numpy(squares.astype(np.float64))


def _fold(side: int, half: int) -> torch.Tensor:
    """Matrix (2·blocks, side) of 0, 1, −1 whose rows add up a block and its mirror image, then subtract it."""
    place = torch.arange(side)
    mirrored = side - 1 - place
    lines = -(-side // 2)
    blocks = min(half, lines)
    block = torch.minimum(place, mirrored) * blocks // max(lines, 1)
    even = (block == torch.arange(blocks)[:, None]).to(torch.float64)
    return torch.cat([even, even * torch.sign(mirrored - place)])


@dataclass(frozen=True)
class _Level:
    """Rounded vectors, as int8 matrices (n, …) of their parts, and h and g (n,) float64 of the module's inequality."""

    codes: tuple[torch.Tensor, ...]
    h: torch.Tensor
    g: torch.Tensor

    def products(self, rows: Places, columns: Places, product: Product) -> list[torch.Tensor]:
        """⟨q_a, q_b⟩ (rows, columns) of each part."""
        return [product(code[rows], code[columns]) for code in self.codes]

    def least(self, rows: Places, columns: Places) -> tuple[torch.Tensor, torch.Tensor]:
        """Integers (rows, 1) and (columns,) whose sum ⟨q_a, q_b⟩ reaches where a pair is possible."""
        left = self.h[rows] - self.g[rows] * self.g[columns].max()
        return left.floor().to(torch.int32)[:, None], self.h[columns].floor().to(torch.int32)


@dataclass(frozen=True)
class _Index:
    """What is kept of all images that are not constant: their rows (n,), and both bounds."""

    rows: IntArray
    flipped: _Level  # y: one part, for all mirrors at once
    signed: _Level  # x: the four parts, the norm of the rest beside the even one


def _make_index(source: _Source, at_least: float, progress: Progress, workers: int | None) -> _Index:
    source.measure()
    projector = _Projector(source.shape)
    typical, norms, step = _sample(source, projector)
    # Norms of what is left out are roots, which magnify rounding.
    allowance = (source.shape[0] * (projector.pixels + 2**14) * 2.0**-50) ** 0.5
    near = (2 - 2 * at_least + ROUNDING) ** 0.5 / 2 + allowance

    def make_part(rows: IntArray) -> tuple[IntArray, list[_Level]]:
        images = projector.project(source.pixels(rows))
        even = images.even - typical
        vectors = (torch.cat([images.norms - norms, even], dim=1),), (even, *images.parts[1:])
        return rows[images.defined.numpy()], [_round(parts, step, near) for parts in vectors]

    defined, levels = [], []
    # The steps are small: threads that do whole parts beat threads that share each step.
    with single_threaded_torch() as threads:
        parts = list(source.parts(np.arange(source.count)))
        for rows, (found, level) in zip(parts, map_in_order(make_part, parts, workers=workers or threads), strict=True):
            defined.append(found)
            levels.append(level)
            progress.advance(len(rows))
    flipped, signed = (_join([pair[level] for pair in levels]) for level in (0, 1))
    return _Index(np.concatenate(defined), flipped, signed)


def _sample(source: _Source, projector: _Projector) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Mean `_Projection.even` and ``norms`` of a sample, which no flip changes, and a step for rounding to int8."""
    runs = min(max(source.count // 256, 4), SAMPLE_RUNS)  # of a small set, few: they are read once more
    starts = np.linspace(0, max(source.count - RUN_IMAGES, 0), runs).astype(np.int64)
    rows = np.unique((starts[:, None] + np.arange(RUN_IMAGES)).clip(max=source.count - 1))
    rows = rows[:: -(-len(rows) * source.image_bytes // KEPT_BYTES)]
    images = projector.project(source.pixels(rows))
    if not len(images.rest):
        return torch.zeros(images.even.shape[1]), torch.zeros(images.norms.shape[1]), 1 / 127
    typical, norms = images.even.mean(dim=0), images.norms.mean(dim=0)
    numbers = torch.cat([images.even - typical, images.norms - norms, *images.parts[1:]], dim=1)
    # A smaller step rounds better and cuts off more; whichever is chosen, e tells what it did.
    steps = [max(float(numbers.abs().max()) / 127 * 2 ** (-power / 2), SMALLEST_STEP) for power in range(12)]
    return typical, norms, min(steps, key=lambda step: float((numbers - step * _codes(numbers, step)).square().sum()))


def _codes(numbers: torch.Tensor, step: float) -> torch.Tensor:
    return (numbers / step).round_().clamp_(-127, 127)


def _round(parts: tuple[torch.Tensor, ...], step: float, near: float) -> _Level:
    """Round to int8. ``near`` is half the distance τ and what float64 may add to it."""
    codes = [_codes(part, step) for part in parts]
    squares = torch.stack([code.square().sum(dim=1) for code in codes]).sum(dim=0)
    errors = [(part - step * code).square().sum(dim=1) for part, code in zip(parts, codes, strict=True)]
    g = (near + torch.stack(errors).sum(dim=0).sqrt()) / step
    # torch._int_mm takes the transpose of a matrix of one column for something else; a column of zeros changes nothing.
    padded = [torch.nn.functional.pad(code, (0, int(code.shape[1] == 1))) for code in codes]
    return _Level(tuple(code.to(torch.int8) for code in padded), (squares - g.square()) / 2, g)


def _join(levels: list[_Level]) -> _Level:
    codes = zip(*(level.codes for level in levels), strict=True)
    return _Level(
        codes=tuple(torch.cat(part) for part in codes),
        h=torch.cat([level.h for level in levels]),
        g=torch.cat([level.g for level in levels]),
    )


@dataclass(frozen=True)
class _Loaded:
    """Images in memory, and their places in the index, ascending."""

    places: IntArray
    images: _Images

    def pick(self, places: IntArray) -> _Images:
        """Some of them."""
        if len(places) == len(self.places):
            return self.images
        chosen = torch.from_numpy(np.searchsorted(self.places, places))
        planes = tuple(plane[chosen] for plane in self.images.planes)
        return _Images(planes, self.images.sums[chosen], self.images.spread[chosen])


class _Search:
    """Compares blocks of images; keeps possible pairs until they are read, and pairs found until they are taken."""

    def __init__(self, source: _Source, at_least: float, groups: IntArray | None, mirrors: list[int]) -> None:
        self.source, self.at_least, self.mirrors = source, at_least, mirrors
        self.given_groups = groups
        self.product = pick_product(torch.device("cpu"))
        self.waiting: list[tuple[IntArray, IntArray, int]] = []  # places of first and second images, mirror
        self.found: list[tuple[IntArray, IntArray, FloatArray, int]] = []  # and the similarity
        self.waiting_pairs = self.found_pairs = self.multiplied = 0
        self.kept: _Loaded | None = None

    def begin(self, index: _Index) -> None:
        """Take the index of the images to search."""
        self.index = index
        self.groups: torch.Tensor | None = None
        if self.given_groups is not None:
            self.groups = torch.from_numpy(np.asarray(self.given_groups, dtype=np.int64)[index.rows])

    def compare(self, rows: slice, columns: slice) -> None:
        """Find the possible pairs of two runs of places in the index; multiply out at once if they are very many."""
        level = self.index.flipped
        left, right = level.least(rows, columns)
        bound = level.products(rows, columns, self.product)[0].sub_(right)
        near = (bound.amax(dim=1) >= left[:, 0]).nonzero()[:, 0]
        if not len(near):
            return
        possible = bound[near] >= left[near]
        firsts, seconds = near + rows.start, torch.arange(columns.start, columns.stop)
        possible &= self._comparable(firsts, seconds)
        firsts, seconds = firsts[possible.any(dim=1)], seconds[possible.any(dim=0)]
        if len(firsts):
            self._compare_signed(firsts, seconds)

    def _comparable(self, firsts: torch.Tensor, seconds: torch.Tensor) -> torch.Tensor:
        """Whether the pair counts (rows, columns): each once, and of two groups."""
        different = firsts[:, None] < seconds
        if self.groups is not None:
            different &= self.groups[firsts][:, None] != self.groups[seconds]
        return different

    def _compare_signed(self, firsts: torch.Tensor, seconds: torch.Tensor) -> None:
        bounds = self._signed_bounds(firsts, seconds)
        near = torch.stack([bound.amax(dim=1) >= 0 for bound in bounds]).any(dim=0).nonzero()[:, 0]
        if not len(near):
            return
        firsts = firsts[near]
        comparable = self._comparable(firsts, seconds)
        possible = [(bound[near] >= 0).logical_and_(comparable) for bound in bounds]
        pairs = sum(int(mask.count_nonzero()) for mask in possible)
        if pairs > max(DENSE_PAIRS, DENSE_SHARE * comparable.numel() * len(self.mirrors)):
            self._multiply_all(firsts, seconds, possible)
            return
        for mirror, mask in zip(self.mirrors, possible, strict=True):
            row, column = mask.nonzero(as_tuple=True)
            if len(row):
                self.waiting.append((firsts[row].numpy(), seconds[column].numpy(), mirror))
        self.waiting_pairs += pairs
        if self.waiting_pairs >= WAITING_PAIRS:
            self.multiply_waiting()

    def _signed_bounds(self, firsts: torch.Tensor, seconds: torch.Tensor) -> list[torch.Tensor]:
        """⟨q_a, F q_b⟩ less what a possible pair needs, (firsts, seconds) int32, for each mirror."""
        level = self.index.signed
        left, right = level.least(firsts, seconds)
        even, across, down, both = level.products(firsts, seconds, self.product)
        even -= right
        even -= left
        # What is odd in both changes its sign if one of the two odd ones does: even ± across ± (down ± both).
        signs = [SIGNS[mirror][1:3] for mirror in self.mirrors]
        evens, odds = (
            {sign: torch.add(part, other, alpha=sign) for sign in {sign for sign, _ in signs}}
            for part, other in ((even, across), (down, both))
        )
        return [torch.add(evens[sign], odds[sign], alpha=turned) for sign, turned in signs]

    def _multiply_all(self, firsts: torch.Tensor, seconds: torch.Tensor, possible: list[torch.Tensor]) -> None:
        """Multiply out all pairs of images of which one or more are possible."""
        some = torch.stack(possible).any(dim=0)
        lefts, rights = firsts[some.any(dim=1)].numpy(), seconds[some.any(dim=0)].numpy()
        left = self._load_firsts(lefts)
        for part in self.source.parts(rights):
            right = _Loaded(part, self.source.load(self.index.rows[part]))
            for mirror, mask in zip(self.mirrors, possible, strict=True):
                if mask.any():
                    self._multiply(left, right, lefts, part, mirror)

    def multiply_waiting(self) -> None:
        """Read and multiply out the possible pairs, second images in ascending order, a few first ones at a time."""
        if not self.waiting:
            return
        first, second = (np.concatenate([entry[side] for entry in self.waiting]) for side in (0, 1))
        mirrors = np.repeat([mirror for _, _, mirror in self.waiting], [len(entry[0]) for entry in self.waiting])
        self.waiting, self.waiting_pairs = [], 0
        left = self._load_firsts(np.unique(first))
        for part in self.source.parts(np.unique(second)):
            right = _Loaded(part, self.source.load(self.index.rows[part]))
            inside = (second >= part[0]) & (second <= part[-1])
            for mirror in self.mirrors:
                chosen = inside & (mirrors == mirror)
                for lefts, rights in _groups_of_pairs(first[chosen], second[chosen]):
                    self._multiply(left, right, lefts, rights, mirror)

    def _load_firsts(self, places: IntArray) -> _Loaded:
        """Read the first images, unless the last ones read were the same."""
        if self.kept is None or not np.array_equal(self.kept.places, places):
            self.kept = None  # before others are read, so that not both are in memory
            self.kept = _Loaded(places, self.source.load(self.index.rows[places]))
        return self.kept

    def _multiply(self, left: _Loaded, right: _Loaded, lefts: IntArray, rights: IntArray, mirror: int) -> None:
        """Multiply out some loaded images, the left ones mirrored, and keep what is alike."""
        images = _flip(left.pick(lefts), self.source.shape, mirror)
        similarities = _similarities(images, right.pick(rights), self.product)
        self.multiplied += similarities.numel()
        alike = similarities >= self.at_least  # NaN is not
        if not alike.any():
            return
        alike &= self._comparable(torch.from_numpy(lefts), torch.from_numpy(rights))
        row, column = (place.numpy() for place in alike.nonzero(as_tuple=True))
        if len(row):
            self.found.append((lefts[row], rights[column], similarities[alike].numpy(), mirror))
            self.found_pairs += len(row)

    def take(self) -> Pairs:
        """Hand out what was found, the best mirror of each pair, and forget it.

        All mirrors of a pair are multiplied out before, because a pair waits in all its mirrors or in none.
        """
        places, others = (np.concatenate([entry[side] for entry in self.found]) for side in (0, 1))
        similarity = np.concatenate([entry[2] for entry in self.found])
        mirror = np.repeat([entry[3] for entry in self.found], [len(entry[0]) for entry in self.found])
        self.found, self.found_pairs = [], 0
        order = np.lexsort((mirror, -similarity, others, places))
        places, others = places[order], others[order]
        best = np.ones(len(order), dtype=bool)
        best[1:] = (places[1:] != places[:-1]) | (others[1:] != others[:-1])
        order = order[best]
        return Pairs(
            first=self.index.rows[places[best]],
            second=self.index.rows[others[best]],
            similarity=similarity[order],
            mirror=np.array(MIRRORS)[mirror[order]],
        )


def _groups_of_pairs(first: IntArray, second: IntArray) -> Iterator[tuple[IntArray, IntArray]]:
    """Runs of `PICKED_ROWS` first images with all second images that one of them pairs with, both ascending."""
    order = np.argsort(first, kind="stable")
    first, second = first[order], second[order]
    distinct = np.unique(first)
    for begin in range(0, len(distinct), PICKED_ROWS):
        part = distinct[begin : begin + PICKED_ROWS]
        low, high = np.searchsorted(first, part[0], "left"), np.searchsorted(first, part[-1], "right")
        yield part, np.unique(second[low:high])


def _flip(images: _Images, shape: tuple[int, int, int], mirror: int) -> _Images:
    """The same images mirrored: their moments do not change."""
    if not FLIPPED[mirror]:
        return images
    planes = (plane.view(-1, *shape).flip(FLIPPED[mirror]).view(plane.shape) for plane in images.planes)
    return _Images(tuple(planes), images.sums, images.spread)
