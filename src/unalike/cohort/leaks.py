"""Duplicates and subjects that stand on both sides: found, said with their consequence, and dealt with.

The same picture under two names is two subjects to whoever believes the names. If one is in train and the other in
holdout, the audit's yardstick (how close do people come whom the generator never saw?) is bent, and so is every test
on "unseen" patients. Found are exact duplicates (equal pixels), near duplicates (exact correlation of all pairs of
different subjects) and mirrored ones.
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

from unalike.cohort.settings import PrepareSettings
from unalike.engine import show_progress
from unalike.errors import InputError
from unalike.images.contact import draw_pairs
from unalike.images.geometry import Placement
from unalike.records import MASK, IntArray, Pixels, TextArray

DRAWN_PAIRS = 48
# Gray levels (of 255) that count as black where two pictures are compared within what they show.
DARK = 10
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


class _Union:
    """Disjoint sets of rows, each known by its lowest."""

    def __init__(self, count: int) -> None:
        self.parent = list(range(count))

    def find(self, row: int) -> int:
        while self.parent[row] != row:
            self.parent[row] = self.parent[self.parent[row]]
            row = self.parent[row]
        return row

    def join(self, a: int, b: int) -> None:
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
        height, width = pixels.shape[2:]
        whole = (0, height, 0, width)
        for image, row in zip(pixels, rows.tolist(), strict=True):
            sums = self.sums[row, channels]
            if self.masked[row]:
                _level_zeros(image, sums)
            elif tuple(self.frames[row]) != whole:
                _level_padding(image, sums, *self.frames[row].tolist())
        return pixels


def _level_padding(image: Pixels, sums: IntArray, top: int, bottom: int, left: int, right: int) -> None:
    """Put what is outside the frame at the mean of what is inside; padding is 0 and adds nothing to ``sums``."""
    area = max((bottom - top) * (right - left), 1)
    levels = np.rint(sums / area).astype(image.dtype)[:, None, None]
    image[:, :top], image[:, bottom:], image[:, :, :left], image[:, :, right:] = levels, levels, levels, levels


def _level_zeros(image: Pixels, sums: IntArray) -> None:
    """Put zeros at the mean of the other pixels of their channel."""
    zeros = image == 0
    lit = np.asarray([plane.size - np.count_nonzero(plane) for plane in zeros])
    levels = np.rint(sums / np.maximum(lit, 1)).astype(image.dtype)
    np.maximum(image, zeros.view(np.uint8) * levels[:, None, None], out=image)


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

    union = _Union(len(digests))
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


def count_leaks(duplicates: Duplicates, *, subjects: TextArray, labels: TextArray, roles: TextArray) -> dict[str, int]:
    """How many subjects and images stand on both sides or in two classes, by the names of the source.

    Where not all pairs are listed, those across roles and classes are at least that many: of each group of duplicates
    that bears two roles, one pair must.
    """
    train, held = (set(subjects[roles == role].tolist()) for role in ("train", "holdout"))
    shared = train & held
    first, second, kind = duplicates.first, duplicates.second, duplicates.kind
    across = roles[first] != roles[second]
    return {
        "shared_subjects": len(shared),
        "holdout_subjects": len(held),
        "shared_holdout_images": int(np.isin(subjects[roles == "holdout"], sorted(shared)).sum()),
        "holdout_images": int((roles == "holdout").sum()),
        "redundant_images": int((kind == "exact").sum()),
        "near_pairs": int((kind == "near").sum()),
        "mirrored_pairs": int((kind == "mirrored").sum()),
        "pairs_across_roles": max(int(across.sum()), _groups_across(duplicates, roles)),
        "exact_pairs_across_roles": int((across & (kind == "exact")).sum()),
        "pairs_across_classes": max(int((labels[first] != labels[second]).sum()), _groups_across(duplicates, labels)),
        "pairs_across_subjects": int((subjects[first] != subjects[second]).sum()),
        "pairs_not_listed": duplicates.found - len(first),
    }


def _groups_across(duplicates: Duplicates, values: TextArray) -> int:
    """Groups of duplicates that bear several of the ``values`` (N,); 0 where all pairs are listed to be counted."""
    if duplicates.found == len(duplicates.first):
        return 0
    pairs = np.unique(np.stack([duplicates.group, np.unique(values, return_inverse=True)[1]]), axis=1)
    return int((np.unique(pairs[0], return_counts=True)[1] > 1).sum())


def refuse_leaks(leaks: dict[str, int], *, naming: str) -> None:
    """Raise an `InputError` that says what leaks; ``naming`` tells of one pair."""
    wrong = [
        f"{leaks[key]} {what}"
        for key, what in (
            ("shared_subjects", "subjects stand in train and holdout"),
            ("pairs_across_roles", "pairs of duplicates stand in train and holdout"),
            ("pairs_across_classes", "pairs of duplicates bear different classes"),
        )
        if leaks[key]
    ]
    if wrong:
        raise InputError(
            f"{', '.join(wrong)}{naming}. Mend the source, or pass --on-leak merge-subjects, drop or report."
        )


def merge_subjects(duplicates: Duplicates, subjects: TextArray) -> TextArray:
    """Subjects (N,) after those who share a picture became one, named as the first of them."""
    names, number = np.unique(subjects, return_inverse=True)
    # Numbers in order of first appearance, so that a merged subject bears the name that comes first.
    _, first = np.unique(number, return_index=True)
    rank = np.argsort(np.argsort(first))
    union = _Union(len(names))
    for row, lowest in enumerate(duplicates.group.tolist()):
        union.join(int(rank[number[row]]), int(rank[number[lowest]]))
    by_rank = names[np.argsort(first)]
    merged: TextArray = by_rank[[union.find(int(rank[one])) for one in number]]
    return merged


def rows_to_drop(duplicates: Duplicates, *, subjects: TextArray, labels: TextArray, roles: TextArray) -> IntArray:
    """Rows that ``--on-leak drop`` takes away.

    Of each group of duplicates all but the first; all of a group that bears several classes, since nobody knows
    which is right; and the holdout images of subjects who are in train, too.
    """
    group = duplicates.group
    members: dict[int, list[int]] = {}
    for row, lowest in enumerate(group.tolist()):
        members.setdefault(lowest, []).append(row)
    dropped: set[int] = set()
    for rows in members.values():
        if len(rows) > 1:
            dropped.update(rows if len(set(labels[rows].tolist())) > 1 else rows[1:])
    left = np.asarray([row not in dropped for row in range(len(group))])
    train = set(subjects[left & (roles == "train")].tolist())
    dropped.update(row for row in np.flatnonzero(left & (roles == "holdout")).tolist() if subjects[row] in train)
    return np.asarray(sorted(dropped), dtype=np.int64)


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


def describe_leaks(leaks: dict[str, int], settings: PrepareSettings) -> list[str]:
    """What was found and what it means, gravest first."""
    notes = []
    dropped = settings.on_leak == "drop"
    if leaks["shared_subjects"]:
        done = (
            "Their holdout images were dropped."
            if dropped
            else ("An audit leaves these patients out of its holdout; use --split redraw to split by patient.")
        )
        notes.append(
            f"LEAK: {leaks['shared_subjects']} of the {leaks['holdout_subjects']} holdout patients also occur in train "
            f"({leaks['shared_holdout_images']} of {leaks['holdout_images']} holdout images): whatever is tested on "
            f"them looks better than it is. {done}"
        )
    # A split that was drawn anew is mended already, unless nothing was to be done.
    if leaks["pairs_across_roles"] and (settings.split == "keep" or settings.on_leak == "report"):
        done = {
            "merge-subjects": "Their subjects were made one, so an audit leaves them out of its holdout.",
            "drop": "Only the first of each was kept.",
        }.get(settings.on_leak, "Pixel-identical ones an audit leaves out of its holdout; the others stay.")
        notes.append(
            f"LEAK: {leaks['pairs_across_roles']} pairs of duplicates stand in train and holdout, "
            f"{leaks['exact_pairs_across_roles']} of them pixel-identical: what the generator saw would pass for new "
            f"patients. {done}"
        )
    if leaks["pairs_across_classes"]:
        done = "They were dropped." if dropped else "Pass --on-leak drop to take them away."
        notes.append(
            f"{leaks['pairs_across_classes']} pairs of duplicates bear different classes: no classifier can be right "
            f"on both. {done}"
        )
    if leaks["redundant_images"]:
        done = "They were dropped." if dropped else "They count twice in every average; generators memorize them first."
        notes.append(f"{leaks['redundant_images']} images are pixel-identical copies of another image. {done}")
    if leaks["near_pairs"] or leaks["mirrored_pairs"]:
        done = "All but the first of each group were dropped." if dropped else "See duplicates.png."
        notes.append(
            f"{leaks['near_pairs']} pairs of near duplicates (correlation of at least {settings.near_duplicates:g}) "
            f"and {leaks['mirrored_pairs']} mirrored ones under different subjects. {done}"
        )
    if leaks["pairs_not_listed"]:
        notes.append(f"{leaks['pairs_not_listed']} more pairs of duplicates are not listed.")
    return notes
