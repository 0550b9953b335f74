"""The best match seen channel by channel, and where either image shows something: exact, for each pair."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from unalike.audit.search import Comparison
from unalike.cohort.duplicates import correlate_within
from unalike.records import FloatArray
from unalike.similarity.correlation import correlate

# Pairs read together.
AT_ONCE = 256
FOREGROUND, WORST = "similarity_foreground", "similarity_worst_channel"


def correlate_by_channel(copied: Comparison, channels: Sequence[int]) -> dict[str, FloatArray]:
    """Columns (n,) of the correlation of each query with its best match.

    ``similarity_foreground`` over the pixels where either is brighter than 10 of 255, all channels together; with
    several channels also ``similarity_NAME`` of each, and the lowest of them, ``similarity_worst_channel``: a copy is
    alike in all. NaN where undefined (a constant image or channel, no match).
    """
    rows, queries = copied.best_rows[:, 0], copied.queries
    names = [copied.references.folder.channels[index] for index in channels]
    count = len(rows)
    foreground = np.full(count, np.nan)
    single = np.full((len(channels), count), np.nan)
    known = np.flatnonzero(rows >= 0)
    for begin in range(0, len(known), AT_ONCE):
        part = known[begin : begin + AT_ONCE]
        left = queries.folder.read(queries.rows[part])[:, list(channels)]
        right = copied.references.folder.read(rows[part])[:, list(channels)]
        for place, a, b in zip(part.tolist(), left, right, strict=True):
            foreground[place] = correlate_within(a, b)
            for number in range(len(channels) if len(channels) > 1 else 0):
                single[number, place] = correlate(a[None, number : number + 1], b[None, number : number + 1])[0, 0]
    columns = {FOREGROUND: foreground}
    if len(channels) > 1:
        columns |= {f"similarity_{name}": values for name, values in zip(names, single, strict=True)}
        columns[WORST] = np.where(np.isnan(single).all(axis=0), np.nan, np.fmin.reduce(single))
    return columns
