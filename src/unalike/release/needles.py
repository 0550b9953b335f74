"""What the leak search looks for, in tables that are asked at every offset of a stream at once.

A run of values is hashed by a rolling polynomial modulo 2³² (Karp and Rabin 1987), for all offsets in a few NumPy
operations; what is in the table by its hash is then compared value by value, so chance never makes a find.

* `PixelNeedles`: of each plane of a cohort, up to `RUNS` runs of `WIDTH` pixels along rows and as many along columns,
  in both directions and inverted (which covers the eight poses), and the whole plane by digest;
* `NameNeedles`: names as bytes, of each the rarest piece is in the table.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unalike.cohort.store import ImageFolder, iterate_blocks

WIDTH = 16  # pixels of a run
RUNS = 8  # runs of a plane along rows, and along columns
DISTINCT = 10  # values a run must have, and WIDTH / 4 differences: a ramp, as in palettes, is nobody's
LEAST_RUNS = 2
BLOCK = 2**16  # values hashed at once: what the processor keeps near
OUTLINE = 32  # neighbouring pixels that differ, which a plane must have to be compared as a whole
MULTIPLIER = 0x9E3779B1
_MIX = np.uint32(0x7FEB352D)
LONG, SHORT = 8, 5  # bytes of a name's piece
UPSCALED = (1, 2, 3, 4)
STRIDES = (1, 2, 3, 4, 8)  # bytes from value to value: interleaved channels, wider numbers, pixels drawn larger

Integers = NDArray[np.int64]
Array = NDArray[Any]
Found = dict[int, tuple[int, int]]  # planes of the cohort: (runs found, runs there are); (0, 0) where all of it was


def roll(values: Array, width: int) -> NDArray[np.uint32]:
    """Hash of every run of ``width`` values of ``values`` (n,): (n − width + 1,)."""
    powers = {1: values.astype(np.uint32) * np.uint32(0x85EBCA6B) + np.uint32(0xC2B2AE35)}
    size, factor = 1, MULTIPLIER
    factors = {1: factor}
    while 2 * size <= width:
        half = powers[size]
        powers[2 * size] = half[:-size] * np.uint32(factor) + half[size:]
        size, factor = 2 * size, factor * factor % 2**32
        factors[size] = factor
    hashed, done = powers[size], size
    for part in (1, 2, 4, 8):  # widths that are no power of two
        if part & (width - size):
            count = len(values) - done - part + 1
            hashed = hashed[:count] * np.uint32(factors[part]) + powers[part][done : done + count]
            done += part
    return hashed


class Table:
    """Numbers from 0 by their hashes; several may share one."""

    def __init__(self, hashes: NDArray[np.uint32]) -> None:
        """``hashes`` (n,) of the numbers 0 to n − 1."""
        self.order = np.argsort(hashes, kind="stable")
        self.sorted = hashes[self.order]
        self.shift = np.uint32(32 - min(26, max(12, len(hashes).bit_length() + 4)))
        # Two tables of what is there at all: of random values one in a thousand gets past both, to be looked up.
        self.present, self.again = (np.zeros(2 ** (32 - int(self.shift)), np.bool_) for _ in range(2))
        self.present[self.sorted >> self.shift] = True
        self.again[(self.sorted * _MIX) >> self.shift] = True

    def find(self, hashes: NDArray[np.uint32]) -> tuple[Integers, Integers]:
        """(position in ``hashes``, number) of everything that is in the table."""
        at = np.flatnonzero(self.present[hashes >> self.shift])
        at = at[self.again[(hashes[at] * _MIX) >> self.shift]]
        wanted = hashes[at]
        first = np.searchsorted(self.sorted, wanted)
        count = np.searchsorted(self.sorted, wanted, side="right") - first
        begin = np.repeat(first - (np.cumsum(count) - count), count)
        return np.repeat(at, count), self.order[begin + np.arange(len(begin))]


# --- pixels -----------------------------------------------------------------------------------------------------------


def choose_runs(planes: Array) -> tuple[Array, Integers]:
    """Runs of pixels along rows that tell each plane from others: values (m, `WIDTH`) and whose (m,), ascending.

    ``planes`` are (n, H, W). Rows are taken from all of eight bands, so that half of a plane has half of its runs.
    """
    count, height, width = planes.shape
    if width < WIDTH:
        return np.empty((0, WIDTH), planes.dtype), np.empty(0, np.int64)
    rows = np.unique(np.linspace(0, height - 1, min(height, 2 * RUNS)).round().astype(np.int64))
    begins = np.unique(np.linspace(0, width - WIDTH, min(width - WIDTH + 1, RUNS)).round().astype(np.int64))
    values = planes[:, rows][:, :, begins[:, None] + np.arange(WIDTH)]  # (n, rows, begins, WIDTH)
    distinct = _count_distinct(values)
    likely = distinct >= DISTINCT
    varied = _count_distinct(np.diff(values[likely], axis=-1))  # modulo 2⁸ or 2¹⁶: as good to count
    distinct[~likely] = 0
    distinct[likely] *= varied >= WIDTH // 4
    best = distinct.argmax(axis=-1)  # the best run of each row
    score = np.take_along_axis(distinct, best[..., None], -1)[..., 0]
    band = rows * RUNS // height
    # The best row of each band, then the second best of each, until there are enough.
    order = np.lexsort((-score, np.broadcast_to(band, score.shape)), axis=-1)
    within = np.arange(len(rows)) - np.searchsorted(band, band)
    rank = np.empty_like(order)
    np.put_along_axis(rank, order, np.broadcast_to(within, order.shape), -1)
    chosen = np.argsort(np.where(score > 0, rank * 100 - score, 10**6), axis=-1, kind="stable")[:, :RUNS]
    plane = np.broadcast_to(np.arange(count)[:, None], chosen.shape)
    good = np.take_along_axis(score, chosen, -1) > 0
    plane, row = plane[good], chosen[good]
    return values[plane, row, best[plane, row]], plane.astype(np.int64)


def _count_distinct(values: Array) -> Integers:
    """How many values there are along the last axis."""
    ordered = np.sort(values, axis=-1)
    return np.asarray(1 + (ordered[..., 1:] != ordered[..., :-1]).sum(axis=-1), np.int64)


def is_plain(plane: Array) -> bool:
    """Whether a generator may well draw the same by chance: few values, and little outline (as of a small mask)."""
    outline = np.count_nonzero(plane[1:] != plane[:-1]) + np.count_nonzero(plane[:, 1:] != plane[:, :-1])
    return bool(outline < OUTLINE)


def poses_of(plane: Array) -> Iterator[Array]:
    """The eight mirror images and quarter turns of a plane."""
    for mirrored in (plane, plane[:, ::-1]):
        for turns in range(4):
            yield np.rot90(mirrored, turns)


class PixelNeedles:
    """All planes of a cohort (image × channel), to be found in bytes and arrays.

    ``flat`` counts planes that are compared as whole planes only; ``plain`` those that are not looked for, because a
    generator may draw the same by chance.
    """

    def __init__(self, cohort: ImageFolder) -> None:
        """Read the cohort once, block by block. Kept are the runs and a digest of each plane."""
        self.top = int(np.iinfo(cohort.dtype).max)
        self.dtype, self.size = cohort.dtype, cohort.size
        self.channels = len(cohort.channels)
        pieces, groups = [], []  # runs, and 2 · plane + (0: along rows, 1: along columns)
        self.whole: dict[bytes, list[int]] = defaultdict(list)
        sums, plain, count = set(), set(), 0
        for _, block in iterate_blocks(cohort, np.arange(len(cohort), dtype=np.int64), size=256):
            planes = block.reshape(-1, *self.size)
            for axis, turned in enumerate((planes, planes.transpose(0, 2, 1))):
                values, whose = choose_runs(turned)
                pieces.append(values)
                groups.append(2 * (whose + count) + axis)
            for number, plane in enumerate(planes, start=count):
                if is_plain(plane):
                    plain.add(number)
                    continue
                self.whole[_digest(plane)].append(number)
                sums.add(int(plane.sum(dtype=np.int64)))
            count += len(planes)
        self.planes = count
        self.runs, self.group = np.concatenate(pieces), np.concatenate(groups)
        self.totals = np.bincount(self.group, minlength=2 * count)
        flat = np.flatnonzero(self.totals.reshape(-1, 2).max(axis=1) < LEAST_RUNS)
        self.plain, self.flat = len(plain), len(set(flat.tolist()) - plain)
        area = self.size[0] * self.size[1]
        self.sums = np.array(sorted(sums | {self.top * area - one for one in sums}), np.int64)
        hashes = np.concatenate([_hash_rows(self._variant(self.runs, number)) for number in range(4)])
        self.table = Table(hashes)  # number of a needle: variant · runs + run

    def _variant(self, runs: Array, number: int) -> Array:
        """Runs as they are (0), backwards (1), inverted (2), or both (3)."""
        turned = runs[:, ::-1] if number & 1 else runs
        return self.dtype.type(self.top) - turned if number & 2 else turned

    def search(self, data: bytes) -> Found:
        """Search bytes: as pixels of the cohort's depth in either byte order, wider numbers, and float32."""
        hits: set[int] = set()
        raw = np.frombuffer(data, np.uint8)
        for begin in range(0, len(raw), BLOCK):
            part = raw[begin : begin + BLOCK + WIDTH * STRIDES[-1]]
            if self.dtype.itemsize == 1:
                self._scan(np.concatenate([part[phase::stride] for stride in STRIDES for phase in range(stride)]), hits)
                continue
            words = [part[phase : len(part) - (len(part) - phase) % 2].view("<u2") for phase in range(2)]
            parts = [one[phase::skip] for one in words for skip in (1, 2, 3, 4) for phase in range(skip)]
            little = np.concatenate(parts)
            self._scan(little, hits)
            self._scan(little.byteswap(), hits)
        for phase in range(4):
            self._scan_floats(raw[phase : len(raw) - (len(raw) - phase) % 4].view("<f4"), hits)
        return self._tally(hits)

    def search_values(self, values: Array) -> Found:
        """Search an array of numbers of any shape: along each of its last four axes, also where drawn larger."""
        hits: set[int] = set()
        found: dict[int, tuple[int, int]] = {}
        for pixels in self._as_pixels(values):
            turned = [np.moveaxis(pixels, axis, -1) for axis in range(max(0, pixels.ndim - 4), pixels.ndim)]
            lines = [
                one[..., ::step].reshape(-1) for one in turned for step in UPSCALED if one.shape[-1] >= WIDTH * step
            ]
            if lines:
                self._scan(np.concatenate(lines), hits)
            for number in self._whole_planes(pixels):
                found[number] = (0, 0)
        return self._tally(hits) | found

    def _as_pixels(self, values: Array) -> Iterator[Array]:
        """The ways in which numbers may stand for pixels of the cohort's depth."""
        if values.dtype == np.bool_:
            values = values.astype(np.uint8) * np.uint8(self.top if self.top < 256 else 1)
        if values.size == 0 or values.dtype.kind not in "iuf":
            return
        if values.dtype.kind == "f":
            if values.dtype.itemsize < 4:
                values = values.astype(np.float32)  # float16 has no room for 65,535
            with np.errstate(all="ignore"):
                for scale, offset in ((1.0, 0.0), (self.top, 0.0), (self.top / 2, self.top / 2)):
                    changed = np.rint(np.nan_to_num(values * scale + offset))
                    inside = (changed >= 0) & (changed <= self.top)
                    if inside.any():
                        yield np.where(inside, changed, 0).astype(self.dtype)
            return
        if values.dtype == self.dtype:
            yield values
        else:
            yield np.where((values >= 0) & (values <= self.top), values, 0).astype(self.dtype)
        if self.top == 255 and values.dtype.itemsize > 1:
            stretched = (values >= 0) & (values <= 65535) & (values % 257 == 0)
            if stretched.any() and int(values.max()) > 255:
                yield np.where(stretched, values // 257, 0).astype(self.dtype)

    def _scan(self, values: Array, hits: set[int]) -> None:
        for begin in range(0, len(values) - WIDTH + 1, BLOCK):
            part = values[begin : begin + BLOCK + WIDTH - 1]
            if part.min() == part.max():
                continue
            at, needle = self.table.find(roll(part, WIDTH))
            if len(at):
                variant, run = needle // len(self.runs), needle % len(self.runs)
                windows = part[at[:, None] + np.arange(WIDTH)]
                for number in range(4):
                    chosen = variant == number
                    same = (windows[chosen] == self._variant(self.runs[run[chosen]], number)).all(axis=1)
                    hits.update(run[chosen][same].tolist())

    def _scan_floats(self, values: Array, hits: set[int]) -> None:
        """Search float32 numbers, where a run of them could be pixels by their exponents."""
        for begin in range(0, len(values) - WIDTH + 1, BLOCK):
            part = np.ascontiguousarray(values[begin : begin + BLOCK + WIDTH - 1])
            upper = part.view(np.uint8)[3::4] & 0x7F
            likely = ((upper >= 0x37) & (upper <= 0x47)) | (part.view(np.uint32) == 0)
            length = 1
            while length < WIDTH:
                likely = likely[:-length] & likely[length:]
                length *= 2
            if likely.any():
                for pixels in self._as_pixels(part):
                    self._scan(pixels, hits)

    def _tally(self, hits: set[int]) -> Found:
        """Planes of which enough runs were found, of those along rows or of those along columns."""
        group, count = np.unique(self.group[np.fromiter(hits, np.int64, len(hits))], return_counts=True)
        total = self.totals[group]
        enough = (count >= LEAST_RUNS) & (2 * count >= total)
        best: dict[int, tuple[int, int]] = {}
        for one, some, of in zip(group[enough].tolist(), count[enough].tolist(), total[enough].tolist(), strict=True):
            best[one // 2] = max(best.get(one // 2, (0, 0)), (some, of))
        return best

    def _whole_planes(self, pixels: Array) -> Iterator[int]:
        """Planes of the cohort that are a plane of this array, in any pose, inverted, or drawn larger."""
        height, width = self.size
        if pixels.ndim <= 2 and pixels.shape[-1] > 1 and pixels.shape[-1] % (height * width) == 0:
            yield from self._equal(pixels.reshape(-1, height, width))  # planes as rows of a table
        last = range(max(0, pixels.ndim - 4), pixels.ndim)
        for first, second in ((a, b) for a in last for b in last if a < b):
            shape = (pixels.shape[first], pixels.shape[second])
            for step in UPSCALED:
                if shape in ((height * step, width * step), (width * step, height * step)):
                    planes = np.moveaxis(pixels, (first, second), (-2, -1))[..., ::step, ::step]
                    yield from self._equal(planes.reshape(-1, *planes.shape[-2:]))

    def _equal(self, planes: Array) -> Iterator[int]:
        likely = np.isin(planes.sum(axis=(1, 2), dtype=np.int64), self.sums)
        for plane in planes[likely]:
            for pose in poses_of(plane):
                if pose.shape == self.size:
                    for shown in (pose, self.dtype.type(self.top) - pose):
                        yield from self.whole.get(_digest(shown), ())


def _hash_rows(runs: Array) -> NDArray[np.uint32]:
    """Hash of each row (n, `WIDTH`), the one `roll` gives."""
    hashed = runs.astype(np.uint32) * np.uint32(0x85EBCA6B) + np.uint32(0xC2B2AE35)
    factor = MULTIPLIER
    while hashed.shape[1] > 1:
        hashed = hashed[:, ::2] * np.uint32(factor) + hashed[:, 1::2]
        factor = factor * factor % 2**32
    return hashed[:, 0]


def _digest(plane: Array) -> bytes:
    return hashlib.blake2b(np.ascontiguousarray(plane).tobytes(), digest_size=16).digest()


# --- names ------------------------------------------------------------------------------------------------------------


class NameNeedles:
    """Names, to be found in bytes: in capitals or not (of ASCII letters), in whatever bytes they are given as."""

    def __init__(self, needles: Iterable[tuple[bytes, int]]) -> None:
        """``needles``: bytes of at least `SHORT`, and the number of the name they stand for."""
        lowered = sorted({(needle.lower(), number) for needle, number in needles if len(needle) >= SHORT})
        self.numbers = [number for _, number in lowered]
        self.needles = [needle for needle, _ in lowered]
        long = [index for index, needle in enumerate(self.needles) if len(needle) >= LONG]
        short = [index for index, needle in enumerate(self.needles) if len(needle) < LONG]
        self.tables = [_pieces(self.needles, which, width) for which, width in ((long, LONG), (short, SHORT)) if which]

    def search(self, data: bytes) -> Iterator[tuple[int, int, int]]:
        """(number of the name, first byte, behind the last byte) of all that is there."""
        low = data.lower()
        values = np.frombuffer(low, np.uint8)
        for width, table, which, offsets in self.tables:
            for begin in range(0, len(values) - width + 1, BLOCK):
                at, entry = table.find(roll(values[begin : begin + BLOCK + width - 1], width))
                for place, index in zip((at + begin - offsets[entry]).tolist(), which[entry].tolist(), strict=True):
                    needle = self.needles[index]
                    if place >= 0 and low.startswith(needle, place):
                        yield self.numbers[index], place, place + len(needle)


def _pieces(needles: Sequence[bytes], which: list[int], width: int) -> tuple[int, Table, Integers, Integers]:
    """Of each needle the piece of ``width`` bytes that the fewest needles have, in a table, and where it begins."""
    lengths = np.array([len(needles[index]) for index in which], np.int64)
    hashes = roll(np.frombuffer(b"".join(needles[index] for index in which), np.uint8), width)
    begins = np.cumsum(lengths) - lengths
    windows = lengths - width + 1
    first = np.cumsum(windows) - windows
    owner = np.repeat(np.arange(len(which)), windows)
    within = np.arange(int(windows.sum())) - first[owner]
    own = hashes[begins[owner] + within]
    _, kind, count = np.unique(own, return_inverse=True, return_counts=True)
    order = np.lexsort((count[kind], owner))[first]  # the rarest of each
    return width, Table(own[order]), np.array(which, np.int64), within[order]
