"""Search all pairs between two image sets, streaming both from disk."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from unalike.audit.sets import ImageSet
from unalike.cohort.store import iterate_blocks
from unalike.engine import Progress, read_ahead, show_progress
from unalike.records import FloatArray, IntArray
from unalike.similarity.correlation import Block, SearchResult, find_matches

# Queries held in memory at once; more of them cost another pass over the references.
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
    """Find the ``best`` references of every query, and unless told otherwise its ``mean`` similarity with all."""
    folder = queries.folder
    image_bytes = int(np.prod(folder.images.shape[1:])) * folder.dtype.itemsize
    group = max(1, QUERY_BYTES // image_bytes)
    results = []
    passes = range(0, len(queries), group)
    with show_progress(title, total=len(passes) * len(references), unit="images") as progress:
        for begin in passes:
            blocks = watch_blocks(reference_blocks(references), progress)
            results.append(
                find_matches(
                    queries=folder.read(queries.rows[begin : begin + group]),
                    references=blocks,
                    best=best,
                    channels=channels,
                    mean=mean,
                    device=device,
                )
            )
    return Comparison(queries, references, _join(results, best))


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


def _join(results: list[SearchResult], best: int) -> SearchResult:
    if not results:
        return SearchResult(np.empty((0, best), np.int64), np.empty((0, best)), np.empty(0))
    return SearchResult(
        references=np.concatenate([result.references for result in results]),
        similarities=np.concatenate([result.similarities for result in results]),
        mean=np.concatenate([result.mean for result in results]),
    )
