"""Local copies: the part of a query, as large as a lesion, that some reference holds at about the same place.

A lesion copied into another brain changes the correlation of whole images little, so windows are compared. Two things
make windows of different patients alike, and would hide a copy:

* What is common to all: smooth tissue, the rim of the skull. So a window is compared after an image blurred by a
  twelfth of its side is taken off, each pixel's rest d saturated as d / (|d| + sd/2), and a window counts only where
  nearly all of it has structure.
* Some windows are alike in every patient. So the best similarity s of a window counts by how far it stands out from
  what the same window reaches with the other references, the score

      z = (F(s) − m) / max(q − m, 0.1),    F = artanh (Fisher's transformation),

  where m and q are the median and the 95 % quantile, over all references, of F of the window's best similarity there.

Steps: windows are sampled at every f-th pixel (about twelve samples along a side) and multiplied, as int8, with those
of each reference around the same place; the best few by score are compared again at shifts of single pixels, with all
pixels. What is reported is exact: integer sums, float64 only in the last line. All queries are treated alike, whatever
else is searched with them, so that scores of holdout images calibrate those of others.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.ndimage
import torch

from unalike.engine import Progress
from unalike.errors import SettingsError
from unalike.records import FloatArray, IntArray, Pixels, TextArray
from unalike.similarity.correlation import Block, _parts
from unalike.similarity.pairs import FLIPPED, MIRRORS, Mirror
from unalike.similarity.products import Product, pick_product

Int8Array = npt.NDArray[np.int8]
BoolArray = npt.NDArray[np.bool_]

SMALLEST_WINDOW = 3
SAMPLES = 12  # along a side of a window, about, in the search
SATURATION = 0.5  # of the image's standard deviation of details: rests beyond it count about alike
# A pixel has structure if details around it (sd of two samples) are this share of the image's, and a window
# if this share of its pixels has.
STRUCTURE = 0.2
STRUCTURED = 0.95
# Fisher's transformation of similarities, counted in bins; what is below the lowest one counts as in it.
LOWEST, HIGHEST, BINS = -0.5, 4.0, 144
MOST = 0.999  # of a similarity, before F is taken: F(1) is infinite
OUTSTANDING = 0.95  # the quantile q
LEAST_SPREAD = 0.1
FEWEST_REFERENCES = 20  # with fewer, nothing is known of the other references: the score is F(s)
# What is compared again of each query: so many windows with one reference, and so many in all for each match asked for.
KEPT_WINDOWS, KEPT = 4, 32
REFERENCES_AT_ONCE = 64
PRODUCTS_AT_ONCE = 2**23
UNDEFINED = -2.0  # below every similarity


@dataclass(frozen=True)
class LocalMatches:
    """Best local matches of each query, by descending score, each with another reference; ties to the lower one.

    ``scores`` (Q, k) say how far the match stands out; ``similarities`` (Q, k), in [−1, 1], are the correlations of the
    two windows' details; ``references`` (Q, k) are indices. ``query_windows`` and ``reference_windows`` (Q, k, 2) are
    (top, left) in pixels, both in the images as given, and ``mirrors`` (Q, k) tells how the reference is flipped
    before it is compared. NaN, −1 and "none" where there is no match: queries without structure.
    """

    scores: FloatArray
    similarities: FloatArray
    references: IntArray
    query_windows: IntArray
    reference_windows: IntArray
    mirrors: TextArray
    window: int

    @property
    def highest(self) -> FloatArray:
        """Score (Q,) of the best match: what is calibrated with holdout images."""
        best: FloatArray = self.scores[:, 0]
        return best


def default_window(shape: tuple[int, int]) -> int:
    """Three sixteenths of the shorter side, in pixels, a multiple of 4: a window fits inside a lesion of a quarter."""
    return max(min(shape) * 3 // 64 * 4, min(4, *shape))


def find_local_matches(
    *,
    queries: Pixels,
    references: Iterable[Block],
    window: int | None = None,
    stride: int | None = None,
    reach: int | None = -1,
    windows: Sequence[IntArray] | None = None,
    best: int = 1,
    channels: Sequence[int] | None = None,
    mirrors: Sequence[Mirror] = ("none",),
    detail: bool = True,
    progress: Progress | None = None,
) -> LocalMatches:
    """Find the windows of each query that a reference holds within ``reach`` pixels of the same place.

    ``queries`` (Q, C, H, W) uint8 or uint16; ``references`` of the same shape come in ascending order and are read
    once. ``window`` is the side in pixels (None: `default_window`); windows of a query lie every ``stride`` pixels
    (None: a third of ``window``) or where ``windows`` says, (top, left) pairs (n, 2) a query. ``reach`` None searches
    everywhere, −1 within a sixteenth of the shorter side. All chosen ``channels`` (None: all) are correlated together.
    Without ``detail``, pixels are compared as they are, scaled to 8 bits. ``progress`` advances by 1 a reference.

    Memory: about 1.5 KiB, and ``best`` windows of pixels, for each window of each query. Raises `SettingsError` if a
    setting does not fit the images.
    """
    height, width = queries.shape[2:]
    side = default_window((height, width)) if window is None else window
    step = max(side // 3, 1) if stride is None else stride
    far = min(height, width) // 16 if reach == -1 else max(height, width) if reach is None else reach
    _check(side, step, far, best, mirrors, (height, width))
    shape = _Shape(height, width, side, max(side // SAMPLES, 1), far, channels, detail)
    search = _Search(queries, _places(windows, len(queries), shape, step), shape, best, mirrors)
    for part in _parts(references, REFERENCES_AT_ONCE):
        search.compare(part)
        if progress:
            progress.advance(len(part.pixels))
    return search.finish(len(queries))


def windows_of_mask(masks: Pixels, *, window: int) -> list[IntArray]:
    """Windows on the largest connected part of each mask (n, H, W): (top, left) pairs (k, 2), for `find_local_matches`.

    One window around the middle of the part's bounding box, moved into the image; where the box is larger than that,
    windows half a side apart that cover it. None, (0, 2), for an empty mask.
    """
    placed = []
    for mask in masks:
        labels, count = scipy.ndimage.label(mask)
        if not count:
            placed.append(np.zeros((0, 2), np.int64))
            continue
        largest = int(np.bincount(labels.ravel())[1:].argmax()) + 1
        box = scipy.ndimage.find_objects(labels)[largest - 1]
        tops, lefts = (_cover(side.start, side.stop, size, window) for side, size in zip(box, mask.shape, strict=True))
        placed.append(np.stack(np.meshgrid(tops, lefts, indexing="ij"), axis=-1).reshape(-1, 2).astype(np.int64))
    return placed


def make_details(
    images: Pixels, *, window: int, channels: Sequence[int] | None = None, detail: bool = True
) -> tuple[Int8Array, BoolArray]:
    """What windows are compared by: details (n, C, H, W), −127 to 127, and which pixels (n, H, W) have structure.

    A pixel has structure if it has in one of the channels. Each image is its own measure: nothing depends on others.
    """
    if images.dtype not in (np.uint8, np.uint16):
        raise TypeError(f"images are {images.dtype}, but uint8 or uint16 is needed")
    chosen = images if channels is None else images[:, list(channels)]
    factor = max(window // SAMPLES, 1)
    details = np.zeros(chosen.shape, np.int8)
    structure = np.zeros((len(chosen), *chosen.shape[2:]), np.bool_)
    for number, image in enumerate(chosen):
        for channel, pixels in enumerate(image):
            details[number, channel], here = _details(pixels, factor, detail)
            structure[number] |= here
    return details, structure


def _details(pixels: Pixels, factor: int, detail: bool) -> tuple[Int8Array, BoolArray]:
    """Details of one channel (H, W), and where it has structure."""
    low, high = int(pixels.min()), int(pixels.max())
    if low >= high:
        return np.zeros(pixels.shape, np.int8), np.zeros(pixels.shape, np.bool_)
    # Scaled first, so that a constant added to an image or a factor changes nothing but the last bits.
    scaled = (pixels.astype(np.float32) - low) / (high - low)
    smooth = scipy.ndimage.uniform_filter(scaled, factor, mode="nearest") if factor > 1 else scaled
    rest = smooth - scipy.ndimage.gaussian_filter(smooth, factor, mode="nearest")
    spread = float(np.sqrt(np.square(rest, dtype=np.float64).mean()))
    if spread == 0.0:
        return np.zeros(pixels.shape, np.int8), np.zeros(pixels.shape, np.bool_)
    energy = scipy.ndimage.gaussian_filter(np.square(rest), 2 * factor, mode="nearest")
    shown = rest / (np.abs(rest) + np.float32(SATURATION * spread)) if detail else 2 * smooth - 1
    return np.rint(127 * shown).astype(np.int8), energy > (STRUCTURE * spread) ** 2


def _check(window: int, stride: int, reach: int, best: int, mirrors: Sequence[Mirror], shape: tuple[int, int]) -> None:
    if not SMALLEST_WINDOW <= window <= min(shape):
        raise SettingsError(
            f"window {window}: give {SMALLEST_WINDOW} to {min(shape)} pixels, the images' shorter side."
        )
    if stride < 1 or reach < 0 or best < 1:
        raise SettingsError(f"stride {stride}, reach {reach}, best {best}: give at least 1, 0 and 1.")
    unknown = [mirror for mirror in mirrors if mirror not in MIRRORS]
    if unknown or not mirrors:
        raise SettingsError(f"mirrors {unknown or 'missing'}: choose from {', '.join(MIRRORS)}.")


def _cover(start: int, stop: int, size: int, window: int) -> IntArray:
    """Positions of windows, inside ``size``, that cover ``start`` to ``stop``."""
    last = max(size - window, 0)
    if stop - start <= window:
        return np.array([min(max((start + stop - window) // 2, 0), last)])
    steps = -(-(stop - start - window) // max(window // 2, 1))
    return np.unique(np.linspace(start, stop - window, steps + 1).round().astype(np.int64).clip(0, last))


@dataclass(frozen=True)
class _Shape:
    """Images' sides, the window's side, the pixels between samples, how far to search, and what to compare."""

    height: int
    width: int
    window: int
    factor: int
    reach: int
    channels: Sequence[int] | None
    detail: bool

    @property
    def cells(self) -> tuple[int, int]:
        """Places of a sampled window, down and across: every ``factor`` pixels."""
        down, across = ((side - self.window) // self.factor + 1 for side in (self.height, self.width))
        return down, across

    def details(self, images: Pixels) -> tuple[Int8Array, BoolArray]:
        """`make_details` of these images."""
        if images.shape[2:] != (self.height, self.width):
            raise ValueError(f"images {images.shape[2:]} searched for {(self.height, self.width)}")
        return make_details(images, window=self.window, channels=self.channels, detail=self.detail)

    def around(self, place: int, cells: int) -> slice:
        """Cells within reach of a pixel; the nearest one if none is."""
        low, high = -((self.reach - place) // self.factor), (place + self.reach) // self.factor
        nearest = min((place + self.factor // 2) // self.factor, cells - 1)
        return slice(max(min(low, nearest), 0), min(max(high, nearest), cells - 1) + 1)


def _places(windows: Sequence[IntArray] | None, count: int, shape: _Shape, stride: int) -> IntArray:
    """Rows (query, top, left) of all windows, sorted by place, so that those at one place are multiplied together."""
    last = shape.height - shape.window, shape.width - shape.window
    if windows is None:
        axes = [np.arange(count), *(np.unique([*range(0, side + 1, stride), side]) for side in last)]
        rows = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
    else:
        if len(windows) != count:
            raise ValueError(f"windows of {len(windows)} queries for {count}")
        placed = [np.asarray(part, np.int64).reshape(-1, 2) for part in windows]
        owner = np.repeat(np.arange(count), [len(part) for part in placed])
        rows = np.column_stack([owner, np.concatenate([np.zeros((0, 2), np.int64), *placed])])
        if len(rows) and (rows.min() < 0 or (rows[:, 1:] > last).any()):
            raise SettingsError(f"windows reach beyond the images: give places from (0, 0) to {last}.")
    order = np.lexsort((rows[:, 0], rows[:, 2], rows[:, 1]))
    return np.asarray(rows[order], dtype=np.int64)


def _box_sums(values: npt.NDArray[Any], window: int) -> IntArray:
    """Sums (n, H − window + 1, W − window + 1) over windows of (n, H, W), as integers."""
    total = np.pad(values.astype(np.int64), ((0, 0), (1, 0), (1, 0))).cumsum(axis=1).cumsum(axis=2)
    rows = total[:, window:] - total[:, :-window]
    return np.asarray(rows[:, :, window:] - rows[:, :, :-window], dtype=np.int64)


class _References:
    """A few references made ready: sampled windows to multiply with, what scales them, and all details."""

    def __init__(self, images: Pixels, shape: _Shape) -> None:
        details, structure = shape.details(images)
        factor = shape.factor
        samples = np.ascontiguousarray(details[:, :, ::factor, ::factor])
        side = -(-shape.window // factor)
        down, across = shape.cells
        # As many samples as the grid has may be more places than whole windows have.
        windows = np.lib.stride_tricks.sliding_window_view(samples, (side, side), axis=(2, 3))[:, :, :down, :across]
        self.windows = windows.transpose(0, 2, 3, 1, 4, 5)
        count = side * side * details.shape[1]
        wide = samples.astype(np.int64)
        sums = _box_sums(wide.sum(axis=1), side)[:, :down, :across]
        squares = _box_sums(np.square(wide).sum(axis=1), side)[:, :down, :across]
        spread = squares - sums * sums / count
        enough = _box_sums(structure, shape.window)[:, ::factor, ::factor] >= STRUCTURED * shape.window**2
        self.defined = enough & (spread > 0)
        self.scale = np.where(self.defined, 1 / np.sqrt(np.where(spread > 0, spread, 1.0)), 0.0).astype(np.float32)
        edge = factor  # room for the shifts of the last step
        self.padded = np.pad(details, ((0, 0), (0, 0), (edge, edge), (edge, edge)))

    def around(self, rows: slice, columns: slice) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Windows (n·cells, D) int8 of a neighbourhood, their scale, and what is added to undefined ones."""
        near = np.ascontiguousarray(self.windows[:, rows, columns])
        flat = torch.from_numpy(near.reshape(-1, int(np.prod(near.shape[3:]))))
        scale = torch.from_numpy(np.ascontiguousarray(self.scale[:, rows, columns]).reshape(-1))
        lacking = np.where(self.defined[:, rows, columns], 0.0, UNDEFINED).astype(np.float32)
        return flat, scale, torch.from_numpy(lacking.reshape(-1))


class _Search:
    """Windows of all queries, the best references of each so far, and how all references compare with it."""

    def __init__(self, queries: Pixels, places: IntArray, shape: _Shape, best: int, mirrors: Sequence[Mirror]) -> None:
        self.shape, self.best = shape, best
        self.mirrors = [index for index, mirror in enumerate(MIRRORS) if mirror in mirrors]
        self.product: Product = pick_product(torch.device("cpu"))
        self.details, structure = shape.details(queries)
        owner, top, left = places.T
        enough = _box_sums(structure, shape.window)[owner, top, left] >= STRUCTURED * shape.window**2
        self.places = places[enough]
        self.samples, self.norms = self._sample()
        defined = self.norms > 0
        self.places, self.samples, self.norms = self.places[defined], self.samples[defined], self.norms[defined]
        changes = (np.diff(self.places[:, 1:], axis=0) != 0).any(axis=1).nonzero()[0] + 1
        self.groups = np.split(np.arange(len(self.places)), changes) if len(self.places) else []
        count, side = len(self.places), shape.window + 2 * shape.factor
        self.values = np.full((count, best), UNDEFINED, np.float32)
        self.found = np.full((count, best, 4), -1, np.int64)  # reference, mirror, top, left
        self.crops = np.zeros((count, best, self.details.shape[1], side, side), np.int8)
        self.counts = np.zeros((count, BINS), np.int32)

    def _sample(self) -> tuple[Int8Array, FloatArray]:
        """Sampled windows of the queries (n, D), centred and scaled to int8, and their norms, 0 if constant."""
        sides = np.arange(0, self.shape.window, self.shape.factor)
        size = len(sides) ** 2 * self.details.shape[1]
        samples, norms = np.zeros((len(self.places), size), np.int8), np.zeros(len(self.places))
        for begin in range(0, len(self.places), 1024):
            owner, top, left = self.places[begin : begin + 1024].T
            rows, columns = top[:, None, None] + sides[:, None], left[:, None, None] + sides
            values = self.details[owner[:, None, None], :, rows, columns].astype(np.float64)
            flat = values.transpose(0, 3, 1, 2).reshape(len(owner), size)
            flat -= flat.mean(axis=1, keepdims=True)
            whole = np.rint(flat * (127 / np.maximum(np.abs(flat).max(axis=1, keepdims=True), 1e-9)))
            samples[begin : begin + 1024] = np.where(np.ptp(values, axis=(1, 2, 3))[:, None] > 0, whole, 0)
            norms[begin : begin + 1024] = np.sqrt(np.square(samples[begin : begin + 1024].astype(np.int64)).sum(axis=1))
        return samples, norms

    def compare(self, block: Block) -> None:
        """Take in references that follow those before."""
        flipped = [_References(np.flip(block.pixels, FLIPPED[mirror]), self.shape) for mirror in self.mirrors]
        down, across = self.shape.cells
        for group in self.groups:
            _, top, left = self.places[group[0]]
            rows, columns = self.shape.around(int(top), down), self.shape.around(int(left), across)
            cells = (rows.stop - rows.start) * (columns.stop - columns.start)
            near = [references.around(rows, columns) for references in flipped]
            size = max(PRODUCTS_AT_ONCE // (cells * len(block.pixels)), 1)
            for begin in range(0, len(group), size):
                part = group[begin : begin + size]
                self._take(part, block.first, flipped, *self._best_cells(part, near, cells), rows, columns)

    def _best_cells(
        self, part: IntArray, near: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]], cells: int
    ) -> tuple[npt.NDArray[np.float32], IntArray]:
        """The best similarity (windows, n) of some windows with each reference, and its mirror and cell as a number."""
        samples = torch.from_numpy(self.samples[part])
        norms = torch.from_numpy((1 / self.norms[part]).astype(np.float32))[:, None, None]
        values: torch.Tensor | None = None
        codes = torch.zeros(0)
        for number, (windows, scale, lacking) in enumerate(near):
            products = self.product(samples, windows).to(torch.float32).mul_(scale).view(len(part), -1, cells)
            here, cell = products.mul_(norms).add_(lacking.view(1, -1, cells)).max(dim=2)
            cell += number * cells
            if values is None:
                values, codes = here, cell
            else:
                better = here > values
                values, codes = here.where(better, values), cell.where(better, codes)
        assert values is not None  # noqa: S101 - for the type checker: there is a mirror
        return values.clamp_(max=1.0).numpy(), codes.numpy()

    def _take(
        self,
        part: IntArray,
        first: int,
        flipped: list[_References],
        values: npt.NDArray[np.float32],
        codes: IntArray,
        rows: slice,
        columns: slice,
    ) -> None:
        """Count the similarities of some windows with each reference, and keep the best ones."""
        defined = values > -1.5
        bins = ((_fisher(values) - LOWEST) * (BINS / (HIGHEST - LOWEST))).clip(0, BINS - 1).astype(np.int64)
        which = np.broadcast_to(np.arange(len(part))[:, None], bins.shape)
        counted = np.bincount((which * BINS + bins)[defined], minlength=len(part) * BINS)
        self.counts[part] += counted.reshape(len(part), BINS).astype(np.int32)
        across = columns.stop - columns.start
        cells = (rows.stop - rows.start) * across
        for _ in range(min(self.best, values.shape[1])):
            # The first of equals is the lowest reference; only a better one takes the place of what was before.
            chosen = values.argmax(axis=1)
            value = values[np.arange(len(part)), chosen]
            better = np.flatnonzero((value > self.values[part, -1]) & (value > -1.5))
            if not len(better):
                return
            mirror, cell = np.divmod(codes[better, chosen[better]], cells)
            top = (rows.start + cell // across) * self.shape.factor
            left = (columns.start + cell % across) * self.shape.factor
            for number, references in enumerate(flipped):
                this = mirror == number
                picked = better[this]
                crops = self._crops(references.padded, chosen[picked], top[this], left[this])
                found = np.column_stack(
                    [first + chosen[picked], np.full(len(picked), self.mirrors[number]), top[this], left[this]]
                )
                self._insert(part[picked], value[picked], found, crops)
            values[np.arange(len(part)), chosen] = UNDEFINED

    def _crops(self, padded: Int8Array, chosen: IntArray, top: IntArray, left: IntArray) -> Int8Array:
        side = np.arange(self.crops.shape[-1])
        rows, columns = top[:, None, None] + side[:, None], left[:, None, None] + side
        return padded[chosen[:, None, None], :, rows, columns].transpose(0, 3, 1, 2)

    def _insert(self, rows: IntArray, values: npt.NDArray[np.float32], found: IntArray, crops: Int8Array) -> None:
        """Replace the last of the best, and sort; a stable sort keeps the lower reference first among equals."""
        self.values[rows, -1], self.found[rows, -1], self.crops[rows, -1] = values, found, crops
        if self.best > 1:
            order = np.argsort(-self.values[rows], axis=1, kind="stable")
            line = rows[:, None]
            self.values[rows] = self.values[line, order]
            self.found[rows], self.crops[rows] = self.found[line, order], self.crops[line, order]

    def _background(self) -> tuple[FloatArray, FloatArray]:
        """What F of a similarity is compared with, for each window: the median m, and q − m; 0 and 1 with few."""
        cumulated = self.counts.cumsum(axis=1)
        total = cumulated[:, -1]
        found = [self._quantile(cumulated, share * total) for share in (0.5, OUTSTANDING)]
        few = total < FEWEST_REFERENCES
        return np.where(few, 0.0, found[0]), np.where(few, 1.0, np.maximum(found[1] - found[0], LEAST_SPREAD))

    def _quantile(self, cumulated: IntArray, target: FloatArray) -> FloatArray:
        """Where the counts reach ``target``, between a bin's ends in proportion to its count."""
        place = np.minimum((cumulated < target[:, None]).sum(axis=1), BINS - 1)
        line = np.arange(len(place))
        inside = self.counts[line, place]
        share = (target - (cumulated[line, place] - inside)) / np.maximum(inside, 1)
        return np.asarray(LOWEST + (place + share) * ((HIGHEST - LOWEST) / BINS), dtype=np.float64)

    def finish(self, count: int) -> LocalMatches:
        """Compare the best windows of each query again, pixel by pixel, and sort them."""
        middle, spread = self._background()
        window = np.repeat(np.arange(len(self.places)), self.best)
        slot = np.tile(np.arange(self.best), len(self.places))
        values = self.values[window, slot]
        defined = values > -1.5
        window, slot, values = window[defined], slot[defined], values[defined]
        scores = (_fisher(values) - middle[window]) / spread[window]
        owner, reference = self.places[window, 0], self.found[window, slot, 0]
        order = np.lexsort((window, -scores, reference, owner))
        order = order[_rank(owner[order], reference[order]) < KEPT_WINDOWS]
        order = order[np.lexsort((window[order], reference[order], -scores[order], owner[order]))]
        order = order[_rank(owner[order]) < KEPT * self.best]
        window, slot = window[order], slot[order]
        similarities, places = self._refine(window, slot)
        scores = (_fisher(similarities) - middle[window]) / spread[window]
        return self._matches(count, window, self.found[window, slot], scores, similarities, places)

    def _refine(self, window: IntArray, slot: IntArray) -> tuple[FloatArray, IntArray]:
        """Correlation of whole windows at the best shift of less than a sample: (n,), and (top, left) there (n, 2)."""
        shape, side = self.shape, self.shape.window
        best, places = np.full(len(window), UNDEFINED), np.zeros((len(window), 2), np.int64)
        last = np.array([shape.height - side, shape.width - side])
        shifts = range(1 - shape.factor, shape.factor)
        for begin in range(0, len(window), 256):
            part = slice(begin, begin + 256)
            owner, top, left = self.places[window[part]].T
            offset = np.arange(side)
            rows, columns = top[:, None, None] + offset[:, None], left[:, None, None] + offset
            ours = self.details[owner[:, None, None], :, rows, columns].transpose(0, 3, 1, 2)
            crops, found = self.crops[window[part], slot[part]], self.found[window[part], slot[part], 2:]
            for down in shifts:
                for across in shifts:
                    place = found + np.array([down, across])
                    begins = shape.factor + down, shape.factor + across
                    theirs = crops[:, :, begins[0] : begins[0] + side, begins[1] : begins[1] + side]
                    here = _correlate(ours, theirs)
                    inside = ((place >= 0) & (place <= last)).all(axis=1)
                    better = inside & (here > best[part])
                    best[part][better], places[part][better] = here[better], place[better]
        return best, places

    def _matches(
        self, count: int, window: IntArray, found: IntArray, scores: FloatArray, values: FloatArray, places: IntArray
    ) -> LocalMatches:
        """The best window of each query with each reference, and of these the best ones."""
        owner, reference = self.places[window, 0], found[:, 0]
        order = np.lexsort((window, -scores, reference, owner))
        order = order[(_rank(owner[order], reference[order]) == 0) & (values[order] > UNDEFINED)]
        order = order[np.lexsort((reference[order], -scores[order], owner[order]))]
        rank = _rank(owner[order])
        order, rank = order[rank < self.best], rank[rank < self.best]
        at = owner[order], rank
        result = LocalMatches(
            scores=np.full((count, self.best), np.nan),
            similarities=np.full((count, self.best), np.nan),
            references=np.full((count, self.best), -1, np.int64),
            query_windows=np.full((count, self.best, 2), -1, np.int64),
            reference_windows=np.full((count, self.best, 2), -1, np.int64),
            mirrors=np.full((count, self.best), "none", dtype="<U10"),
            window=self.shape.window,
        )
        mirror = found[order, 1]
        result.scores[at], result.similarities[at], result.references[at] = (
            scores[order],
            values[order],
            reference[order],
        )
        result.query_windows[at] = self.places[window[order], 1:]
        last = np.array([self.shape.height - self.shape.window, self.shape.width - self.shape.window])
        turned = np.array([[axis in FLIPPED[number] for axis in (2, 3)] for number in range(len(MIRRORS))])[mirror]
        result.reference_windows[at] = np.where(turned, last - places[order], places[order])
        result.mirrors[at] = np.array(MIRRORS)[mirror]
        return result


def _rank(*keys: IntArray) -> IntArray:
    """How many entries before each one have the same keys, which are sorted."""
    count = len(keys[0])
    begins = np.ones(count, np.bool_)
    begins[1:] = np.any([key[1:] != key[:-1] for key in keys], axis=0)
    line = np.arange(count)
    return line - np.maximum.accumulate(np.where(begins, line, 0))


def _fisher(similarities: npt.NDArray[Any]) -> FloatArray:
    return np.asarray(np.arctanh(similarities.astype(np.float64).clip(-MOST, MOST)))


def _correlate(a: Int8Array, b: Int8Array) -> FloatArray:
    """Pearson's r of each window of ``a`` (n, C, w, w) with that of ``b``: sums are integers below 2⁵³, so exact."""
    left, right = (windows.reshape(len(windows), -1).astype(np.float64) for windows in (a, b))
    size = left.shape[1]
    first, second = left.sum(axis=1), right.sum(axis=1)
    covariance = size * np.einsum("nd,nd->n", left, right) - first * second
    spreads = [size * np.einsum("nd,nd->n", x, x) - total * total for x, total in ((left, first), (right, second))]
    both = spreads[0] * spreads[1]
    return np.where(both > 0, covariance / np.sqrt(np.where(both > 0, both, 1.0)), UNDEFINED).clip(UNDEFINED, 1.0)
