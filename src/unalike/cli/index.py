"""``unalike index``: make the index of a cohort ahead, so that live use opens it at once."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from unalike.cli.output import Json, print_json


def index(
    cohort: Path,
    *,
    channels: Annotated[tuple[str, ...], Parameter(consume_multiple=True)] = (),
    json: Json = False,
) -> None:
    """Make the index by which new images are held against a cohort, or open the one it has, and say how large it is.

    It is stored in the cohort's folder and is as internal as that.

    Parameters
    ----------
    cohort
        Cohort folder.
    channels
        Channels to compare; default all but the mask.
    """
    from unalike.audit.index import CopyIndex

    opened = CopyIndex.open(cohort, channels=channels or None, notice=lambda line: print(line, file=sys.stderr))
    summary = opened.summary()
    if json:
        print_json(summary)
        return
    for role, images, subjects in (
        ("train", summary.train_images, summary.train_subjects),
        ("holdout", summary.holdout_images, summary.holdout_subjects),
    ):
        print(f"{role}: {images} images of {subjects} subjects")
    print(f"channels: {', '.join(summary.channels)}")
    print(f"smallest p-value it can give: {summary.smallest_p:.3g}")
    for part in summary.stored:
        place = part.place or (
            "in memory only" if part.bytes else "none for images of this size or depth: all are read"
        )
        print(f"{part.what}: {place}" + (f", {part.bytes / 2**20:.1f} MiB" if part.bytes else ""))
