"""Search all pairs between two image sets, streaming both from disk."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from unalike.audit.blocks import Arrays, Part, SharedSet, current_workshop, cut
from unalike.cohort.roles import ImageSet
from unalike.cohort.store import iterate_blocks
from unalike.engine import Progress, read_ahead
from unalike.records import FloatArray, IntArray
from unalike.similarity.correlation import Block, SearchResult, find_matches

# Queries of one block, at most: so many images, and so much memory. Each block is a pass over the references, whose
# reading and preparing counts little beside so many products; where others share the work, blocks are smaller.
QUERIES, QUERIES_ELSEWHERE = 4096, 512
QUERY_BYTES = 2**30


@dataclass(frozen=True)
class Comparison:
    """Matches of every query image among the references; ``references`` are rows of the reference folder."""

    queries: ImageSet
    references: ImageSet
    result: SearchResult

    @property
    def highest(self) -> FloatArray:
        """Highest similarity (Q,) of each query; NaN where undefined."""
        return self.result.highest

    @property
    def best_rows(self) -> IntArray:
        """Row (Q, k) in the reference folder of each match; −1 where there is none."""
        positions = self.result.references
        rows = np.append(self.references.rows, -1)  # position −1 reads the last entry
        return rows[positions]


def compare_sets(
    queries: ImageSet,
    references: ImageSet,
    *,
    best: int,
    channels: Sequence[int],
    device: torch.device,
    title: str,
    mean: bool = True,
) -> Comparison:
    """Find the ``best`` references of every query, and unless told otherwise its ``mean`` similarity with all.

    Queries are cut into blocks, each of which is a pass over all references (see `blocks`): the same to the last bit
    however they are cut.
    """
    folder = queries.folder
    image_bytes = int(np.prod(folder.images.shape[1:])) * folder.dtype.itemsize
    with current_workshop(device) as workshop:
        most = QUERIES_ELSEWHERE if workshop.elsewhere else QUERIES
        parts = cut(len(queries), max(1, min(most, QUERY_BYTES // image_bytes)))
        found = workshop.collect(
            compare_part,
            (queries, references),
            parts,
            title=title,
            units=len(references),
            best=best,
            channels=list(channels),
            mean=mean,
        )
    return Comparison(queries, references, _join(found, best))


def compare_part(
    sets: tuple[SharedSet, ...],
    part: Part,
    *,
    device: torch.device,
    progress: Progress,
    best: int,
    channels: list[int],
    mean: bool,
) -> Arrays:
    """A run of the first set's images against all of the second: the fields of a `SearchResult`."""
    queries, references = (images.open() for images in sets)
    begin, end = part
    found = find_matches(
        queries=queries.folder.read(queries.rows[begin:end]),
        references=watch_blocks(reference_blocks(references), progress),
        best=best,
        channels=channels,
        mean=mean,
        device=device,
    )
    return {"references": found.references, "similarities": found.similarities, "mean": found.mean}


def reference_blocks(references: ImageSet) -> Iterator[Block]:
    """The references in order, a chunk at a time, read ahead, with the sums from the records."""
    folder = references.folder
    sums, squares = (folder.numbers(name)[references.rows] for name in ("sums", "squares"))
    for first, pixels in read_ahead(iterate_blocks(folder, references.rows)):
        part = slice(first, first + len(pixels))
        yield Block(first, pixels, sums[part], squares[part])


def watch_blocks(blocks: Iterator[Block], progress: Progress) -> Iterator[Block]:
    """The same blocks, telling ``progress`` how many images went by."""
    for block in blocks:
        yield block
        progress.advance(len(block.pixels))


def _join(blocks: list[Arrays], best: int) -> SearchResult:
    if not blocks:
        return SearchResult(np.empty((0, best), np.int64), np.empty((0, best)), np.empty(0))
    references, similarities, mean = (
        np.concatenate([block[name] for block in blocks]) for name in ("references", "similarities", "mean")
    )
    return SearchResult(references, similarities, mean)
