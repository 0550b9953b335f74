"""The best matches by the other measures of the papers: structural similarity and mutual information."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from unalike.audit.search import Comparison, reference_blocks, watch_blocks
from unalike.audit.settings import AuditSettings
from unalike.engine import show_progress
from unalike.records import FloatArray, IntArray, Pixels
from unalike.similarity.correlation import SearchResult
from unalike.similarity.mutual_information import find_by_mutual_information, mutual_information_pairs
from unalike.similarity.ssim import find_by_ssim, ssim_pairs

Pairs = Callable[..., FloatArray]
Search = Callable[..., SearchResult]

_MEASURES: dict[str, tuple[Pairs, Search]] = {
    "ssim": (ssim_pairs, find_by_ssim),
    "mutual-information": (mutual_information_pairs, find_by_mutual_information),
    "normalized-mutual-information": (
        partial(mutual_information_pairs, normalized=True),
        partial(find_by_mutual_information, normalized=True),
    ),
}
# Pairs measured together.
AT_ONCE = 512
# Queries of one exhaustive pass over the references.
QUERIES = 1024


def measure_again(
    copied: Comparison, settings: AuditSettings, channels: Sequence[int], device: torch.device
) -> pa.Table:
    """A row for each query, measure and rank: the matches in the order of that measure, best first.

    By default the k best matches by correlation are measured again; with ``settings.exhaustive`` all train images
    are searched.
    """
    tables = []
    for name in settings.rerank:
        pairs, search = _MEASURES[name]
        if settings.exhaustive:
            rows, values = _search_all(copied, search, settings.best, channels, device, name)
        else:
            rows, values = _measure_matches(copied, pairs, channels, device, name)
        queries, best = rows.shape
        tables.append(
            pa.table(
                {
                    "measure": [name] * rows.size,
                    "query": np.repeat(copied.queries.rows, best).astype(np.int32),
                    "rank": np.tile(np.arange(1, best + 1), queries).astype(np.int32),
                    "reference": rows.reshape(-1).astype(np.int32),
                    "similarity": values.reshape(-1),
                }
            )
        )
    return pa.concat_tables(tables)


def _measure_matches(
    copied: Comparison, pairs: Pairs, channels: Sequence[int], device: torch.device, name: str
) -> tuple[IntArray, FloatArray]:
    rows = copied.best_rows
    values = np.full(rows.shape, np.nan)
    known = np.argwhere(rows >= 0)

    def read(images: Any, wanted: IntArray) -> Pixels:
        pixels: Pixels = images.folder.read(wanted)[:, list(channels)]
        return pixels

    with show_progress(f"Measuring matches ({name})", total=len(known), unit="pairs") as progress:
        for begin in range(0, len(known), AT_ONCE):
            query, rank = known[begin : begin + AT_ONCE].T
            left = read(copied.queries, copied.queries.rows[query])
            values[query, rank] = pairs(left, read(copied.references, rows[query, rank]), device=device)
            progress.advance(len(query))
    order = np.argsort(-np.nan_to_num(values, nan=-np.inf), axis=1, kind="stable")
    return np.take_along_axis(rows, order, axis=1), np.take_along_axis(values, order, axis=1)


def _search_all(
    copied: Comparison, search: Search, best: int, channels: Sequence[int], device: torch.device, name: str
) -> tuple[IntArray, FloatArray]:
    queries, references = copied.queries, copied.references
    passes = range(0, len(queries), QUERIES)
    rows, values = [], []
    with show_progress(f"Searching ({name})", total=len(passes) * len(references), unit="images") as progress:
        for begin in passes:
            found = search(
                queries=queries.folder.read(queries.rows[begin : begin + QUERIES]),
                references=watch_blocks(reference_blocks(references), progress),
                best=best,
                channels=channels,
                device=device,
            )
            rows.append(np.append(references.rows, -1)[found.references])
            values.append(found.similarities)
    return np.concatenate(rows), np.concatenate(values)
