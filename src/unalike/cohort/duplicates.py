"""Pictures that several rows of a cohort share: exact duplicates, near ones and mirrored ones, found and listed.

Exact duplicates have equal pixels. Near duplicates are found by the exact correlation of all pairs of different
subjects, once what shows nothing of a patient is taken out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from unalike.engine import show_progress
from unalike.images.contact import draw_pairs
from unalike.images.geometry import Placement
from unalike.records import MASK, IntArray, Pixels, TextArray

DRAWN_PAIRS = 48
# Gray levels (of 255) that count as black where two pictures are compared within what they show.
DARK = 10
# Pixels whose background is leveled at once: few enough for the cache.
AT_ONCE = 2**21
# What float64 may take from a correlation of 1.
ROUNDING = 1e-12
# Pairs whose images are read together to be confirmed.
CONFIRMED_AT_ONCE = 64
FLIPS = {
    "none": np.s_[:],
    "left-right": np.s_[:, :, ::-1],
    "up-down": np.s_[:, ::-1],
    "both": np.s_[:, ::-1, ::-1],
}
# More pairs than this are counted and used, but not listed.
MOST_LISTED = 100_000

SCHEMA = pa.schema(
    [
        ("first", pa.int64()),  # rows of the cohort
        ("second", pa.int64()),
        ("kind", pa.string()),  # exact, near, or mirrored
        ("mirror", pa.string()),  # none, left-right, up-down, both
        ("similarity", pa.float64()),
        ("same_subject", pa.bool_()),  # by the names of the source
        ("same_label", pa.bool_()),
        ("same_role", pa.bool_()),  # before anything is dropped
    ]
)


@dataclass(frozen=True)
class Duplicates:
    """Pairs of rows that show the same picture: each exact one with the first of its kind, and near ones.

    ``found`` counts all; arrays hold at most `MOST_LISTED` near ones, in order of rows. ``group`` (N,) is the lowest
    row to which a row is connected by pairs.
    """

    first: IntArray
    second: IntArray
    kind: TextArray
    mirror: TextArray
    similarity: np.ndarray[Any, np.dtype[np.float64]]
    found: int
    group: IntArray

    def among(self, kept: IntArray) -> Duplicates:
        """Those of which both rows are ``kept`` (ascending), with their new numbers."""
        both = np.isin(self.first, kept) & np.isin(self.second, kept)
        _, lowest, number = np.unique(self.group[kept], return_index=True, return_inverse=True)
        return Duplicates(
            first=np.searchsorted(kept, self.first[both]),
            second=np.searchsorted(kept, self.second[both]),
            kind=self.kind[both],
            mirror=self.mirror[both],
            similarity=self.similarity[both],
            found=self.found - int((~both).sum()),
            group=lowest[number].astype(np.int64),
        )


class Union:
    """Disjoint sets of rows, each known by its lowest."""

    def __init__(self, count: int) -> None:
        """Each row alone."""
        self.parent = list(range(count))

    def find(self, row: int) -> int:
        """Lowest row of the set that holds ``row``."""
        while self.parent[row] != row:
            self.parent[row] = self.parent[self.parent[row]]
            row = self.parent[row]
        return row

    def join(self, a: int, b: int) -> None:
        """Make one set of two."""
        a, b = self.find(a), self.find(b)
        self.parent[max(a, b)] = min(a, b)


@dataclass(frozen=True)
class Background:
    """What shows nothing of a patient, and must not make two of them alike: our padding, and the zeros of volumes.

    ``frames`` (N, 4) are first and end row and column of what is not padding, ``sums`` (N, C) the sums of all
    pixels, ``masked`` (N,) tells slices of volumes, whose air, or what brain extraction took away, is exactly 0.
    """

    frames: IntArray
    sums: IntArray
    masked: NDArray[np.bool_]

    @classmethod
    def of(cls, columns: Mapping[str, Sequence[Any]], height: int, width: int) -> Background:
        """From the columns of records, of images that are ``height`` × ``width``."""
        known: dict[tuple[float, ...], tuple[int, int, int, int]] = {}
        frames = []
        for source, scale, offset in zip(*(columns[name] for name in ("source_size", "scale", "offset")), strict=True):
            key = (*source, *scale, *offset)
            if key not in known:
                known[key] = Placement(tuple(source), tuple(scale), tuple(offset)).frame(height, width)
            frames.append(known[key])
        placed = np.asarray(frames, dtype=np.int64).reshape(-1, 4)
        sums = np.asarray(columns["sums"], dtype=np.int64).reshape(len(placed), -1 if len(placed) else 0)
        masked = np.asarray([bool(affine) for affine in columns["affine"]], dtype=np.bool_)
        return cls(frames=placed, sums=sums, masked=masked)

    def level(self, pixels: Pixels, rows: IntArray, *, channels: slice | list[int]) -> Pixels:
        """These ``channels`` of images (n, C, H, W) of these rows with background at the mean of the rest, in place.

        At the mean it adds nothing to a correlation.
        """
        whole = (0, pixels.shape[2], 0, pixels.shape[3])
        step = max(AT_ONCE // max(int(np.prod(pixels.shape[1:])), 1), 1)
        for begin in range(0, len(rows), step):
            images, some = pixels[begin : begin + step], rows[begin : begin + step]
            sums = self.sums[some][:, channels]
            if self.masked[some].all():
                _level_zeros(images, sums)
                continue
            for image, own, row in zip(images, sums, some.tolist(), strict=True):
                if self.masked[row]:
                    _level_zeros(image[None], own[None])
                elif tuple(self.frames[row]) != whole:
                    _level_padding(image, own, *self.frames[row].tolist())
        return pixels


def _level_padding(image: Pixels, sums: IntArray, top: int, bottom: int, left: int, right: int) -> None:
    """Put what is outside the frame at the mean of what is inside; padding is 0 and adds nothing to ``sums``."""
    area = max((bottom - top) * (right - left), 1)
    levels = np.rint(sums / area).astype(image.dtype)[:, None, None]
    image[:, :top], image[:, bottom:], image[:, :, :left], image[:, :, right:] = levels, levels, levels, levels


def _level_zeros(images: Pixels, sums: IntArray) -> None:
    """Put zeros of images (n, C, H, W) at the mean of the other pixels of their channel; ``sums`` (n, C)."""
    zeros = images == 0
    lit = np.asarray([[plane.size - np.count_nonzero(plane) for plane in image] for image in zeros])
    levels = np.rint(sums / np.maximum(lit, 1)).astype(images.dtype)
    np.maximum(images, zeros.view(np.uint8) * levels[:, :, None, None], out=images)


def find_duplicates(
    *,
    digests: Sequence[str],
    subjects: TextArray,
    channels: Sequence[str],
    read: Callable[[IntArray], Pixels],
    background: Background,
    at_least: float,
    workers: int | None = None,
) -> Duplicates:
    """Exact duplicates among all images, and near or mirrored ones (correlation ``at_least``) of different subjects.

    ``read(rows)`` gives pixels (a fresh array) of ascending rows. ``background`` is taken out, or what all images
    share would make everybody alike. A pair must also correlate where either shows something (`correlate_within`).
    Masks do not count. ``at_least`` 0 leaves near duplicates out.
    """

    compared = [index for index, name in enumerate(channels) if name != MASK]
    run = slice(compared[0], compared[-1] + 1)
    chosen = run if compared == list(range(len(channels)))[run] else compared  # a slice is no copy

    def read_seen(rows: IntArray) -> Pixels:
        return read(rows)[:, chosen]

    def read_leveled(rows: IntArray) -> Pixels:
        return background.level(read_seen(rows), rows, channels=chosen)

    union = Union(len(digests))
    pairs: list[tuple[int, int, str, str, float]] = []
    seen: dict[str, int] = {}
    for row, digest in enumerate(digests):
        lowest = seen.setdefault(digest, row)
        if lowest != row:
            union.join(lowest, row)
            pairs.append((lowest, row, "exact", "none", 1.0))
    found = len(pairs)
    if at_least:
        originals = np.asarray(sorted(seen.values()), dtype=np.int64)
        for first, second, similarity, mirror in _find_near(
            originals, subjects, read_seen, read_leveled, at_least, workers
        ):
            union.join(first, second)
            found += 1
            if len(pairs) < MOST_LISTED:
                pairs.append((first, second, "near" if mirror == "none" else "mirrored", mirror, similarity))
    pairs.sort()
    columns = list(zip(*pairs, strict=True)) or [(), (), (), (), ()]
    return Duplicates(
        first=np.asarray(columns[0], dtype=np.int64),
        second=np.asarray(columns[1], dtype=np.int64),
        kind=np.asarray(columns[2], dtype=np.str_),
        mirror=np.asarray(columns[3], dtype=np.str_),
        similarity=np.asarray(columns[4], dtype=np.float64),
        found=found,
        group=np.asarray([union.find(row) for row in range(len(digests))], dtype=np.int64),
    )


def correlate_within(a: Pixels, b: Pixels) -> float:
    """Correlation of two images (C, H, W) where either is brighter than `DARK`; 0 where that is undefined.

    Sums are of integers, hence exact.
    """
    dark = DARK * (257 if a.dtype == np.uint16 else 1)
    lit = (a > dark) | (b > dark)
    x, y = a[lit].astype(np.int64), b[lit].astype(np.int64)
    count, sum_x, sum_y = len(x), int(x.sum()), int(y.sum())
    spread = (count * int(x @ x) - sum_x**2) * (count * int(y @ y) - sum_y**2)
    return (count * int(x @ y) - sum_x * sum_y) / math.sqrt(spread) if spread > 0 else 0.0


def _find_near(
    rows: IntArray,
    subjects: TextArray,
    read: Callable[[IntArray], Pixels],
    read_leveled: Callable[[IntArray], Pixels],
    at_least: float,
    workers: int | None,
) -> Iterator[tuple[int, int, float, str]]:
    """Near and mirrored pairs among ``rows``, which are no exact duplicates of each other."""
    if len(rows) < 2:
        return
    from unalike.similarity.pairs import find_pairs

    _, groups = np.unique(subjects[rows], return_inverse=True)
    with show_progress("Looking for duplicates", total=2 * len(rows), unit="images") as progress:
        for chunk in find_pairs(
            count=len(rows),
            read=lambda wanted: read_leveled(rows[wanted]),
            at_least=at_least,
            groups=groups.astype(np.int64),
            workers=workers,
            progress=progress,
        ):
            for begin in range(0, len(chunk.first), CONFIRMED_AT_ONCE):
                part = slice(begin, begin + CONFIRMED_AT_ONCE)
                first, second = rows[chunk.first[part]], rows[chunk.second[part]]
                wanted = np.unique(np.concatenate([first, second]))
                images = dict(zip(wanted.tolist(), read(wanted), strict=True))
                for a, b, similarity, mirror in zip(
                    first.tolist(), second.tolist(), chunk.similarity[part].tolist(), chunk.mirror[part], strict=True
                ):
                    if correlate_within(images[a], images[b][FLIPS[str(mirror)]]) >= 2 * at_least - 1 - ROUNDING:
                        yield a, b, similarity, str(mirror)


def tabulate_duplicates(
    duplicates: Duplicates, *, subjects: TextArray, labels: TextArray, roles: TextArray
) -> pa.Table:
    """The pairs as a table of `SCHEMA`."""
    first, second = duplicates.first, duplicates.second
    return pa.table(
        {
            "first": first,
            "second": second,
            "kind": duplicates.kind.tolist(),
            "mirror": duplicates.mirror.tolist(),
            "similarity": duplicates.similarity,
            **{
                f"same_{name}": values[first] == values[second]
                for name, values in (("subject", subjects), ("label", labels), ("role", roles))
            },
        },
        schema=SCHEMA,
    )


def keep_pairs(table: pa.Table, kept: IntArray) -> pa.Table:
    """Pairs of rows that both are ``kept`` (ascending), with their new numbers."""
    first, second = (np.asarray(table[side].to_numpy(), dtype=np.int64) for side in ("first", "second"))
    both = np.isin(first, kept) & np.isin(second, kept)
    rest = table.filter(pa.array(both))
    for name, values in (("first", first), ("second", second)):
        place = rest.schema.get_field_index(name)
        rest = rest.set_column(place, name, pa.array(np.searchsorted(kept, values[both])))
    return rest


def draw_duplicates(
    table: pa.Table, *, channels: Sequence[str], read: Callable[[IntArray], Pixels], path: Path
) -> bool:
    """Draw some pairs side by side to ``path`` (PNG): the least alike of each kind first; False if there is none.

    Without pairs, a picture that was drawn there before goes, since it is no longer true.
    The picture shows patients: it is internal, as the cohort is.
    """
    rows = table.to_pylist()
    shown = []
    for kind in ("mirrored", "near", "exact"):
        of_kind = sorted((row for row in rows if row["kind"] == kind), key=lambda row: row["similarity"])
        shown += of_kind[: DRAWN_PAIRS // 2 if kind == "near" else DRAWN_PAIRS // 4]
    if not shown:
        path.unlink(missing_ok=True)
        return False
    pairs = []
    for row in shown:
        a, b = (read(np.asarray([row[side]], dtype=np.int64))[0] for side in ("first", "second"))
        where = "" if row["same_role"] else ", other role"
        kind = f"{row['kind']} ({row['mirror']})" if row["kind"] == "mirrored" else row["kind"]
        what = "" if row["same_label"] else ", other class"
        pairs.append((f"{kind}, r = {row['similarity']:.3f}{where}{what}", a, b))
    draw_pairs(pairs, channels=channels).save(path, format="PNG")
    return True
