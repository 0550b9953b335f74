"""`find_leaks`: duplicates within one folder of pictures or between two, before anything is prepared or trained."""

from __future__ import annotations

import functools
import hashlib
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from unalike import folders
from unalike.cohort.duplicates import Background, Duplicates, draw_duplicates, find_duplicates, tabulate_duplicates
from unalike.cohort.plan import Item, MadeImage
from unalike.cohort.readers import plan_source
from unalike.cohort.readers.pictures import make_picture
from unalike.cohort.settings import PrepareSettings
from unalike.cohort.store import ImageWriter, read_stored
from unalike.engine import map_in_order, show_progress
from unalike.errors import InputError, PictureError
from unalike.images import pictures

# Pictures of any size are compared in gray at this one: fine enough for a near duplicate to be told from a neighbour.
SIZE = 256


@dataclass(frozen=True)
class LeakReport:
    """What two folders of pictures share (or one repeats).

    ``pairs`` are dictionaries with first, second (paths below their folders), kind (exact: equal pixels; near;
    mirrored), similarity, ``folders`` (0 or 1 for each of the two) and ``across`` (one of each folder). All exact
    ones are listed, and near ones up to `duplicates.MOST_LISTED` in all; counts of near, mirrored and
    across pairs are of those listed.
    """

    images: tuple[int, ...]
    """Pictures that could be read, of each folder."""
    shared_subjects: int | None
    """Patients who are in both folders; None without a pattern that names patients."""
    shared_images: int
    """Pictures of the second folder that are duplicates of one of the first."""
    exact_pairs: int
    near_pairs: int
    mirrored_pairs: int
    across_pairs: int
    pairs: tuple[dict[str, Any], ...]
    pairs_not_listed: int
    skipped: tuple[str, ...]


def find_leaks(
    first: str | Path,
    second: str | Path | None = None,
    *,
    subject_pattern: str | None = None,
    near_duplicates: float = 0.95,
    sheet: str | Path | None = None,
    workers: int | None = None,
) -> LeakReport:
    """Compare all pictures of two folders (or of one with itself): exact, near and mirrored duplicates, and patients.

    ``subject_pattern`` is a regular expression over the path whose first group names the patient. Near duplicates are
    judged in gray at 256 × 256 pixels, padded. ``sheet`` is a PNG to draw the pairs to: it shows patients.

    Raises `InputError` if a folder holds no picture that can be read, if one folder lies in the other, or if the
    sheet cannot be written there.
    """
    settings = PrepareSettings(
        size=SIZE, color="gray", depth="8", near_duplicates=near_duplicates, subject_pattern=subject_pattern
    )
    settings.check()
    sources = [Path(first)] + ([Path(second)] if second is not None else [])
    _check_places(sources, None if sheet is None else Path(sheet))
    items: list[tuple[int, Item]] = []
    for number, source in enumerate(sources):
        plan, _ = plan_source(source, settings)
        items += [(number, item) for item in plan.items]
    with tempfile.TemporaryDirectory(prefix="unalike-") as scratch:
        read, digests, background, skipped = _read_all(items, Path(scratch), settings, workers)
        for number, source in enumerate(sources):
            if number not in {own for own, _ in read}:
                own = [reason for place, reason in skipped if place == number]
                raise InputError(f"none of the {len(own)} pictures of {source} could be read; the first: {own[0]}")
        stored = read_stored(Path(scratch) / folders.IMAGES)
        # Without a pattern, "001.png" of two folders are two patients.
        subjects = [item.subject if subject_pattern else f"{number}/{item.subject}" for number, item in read]
        named = {
            "subjects": np.asarray(subjects, dtype=np.str_),
            "labels": np.asarray([item.label for _, item in read], dtype=np.str_),
            "roles": np.asarray([str(number) for number, _ in read], dtype=np.str_),
        }
        duplicates = find_duplicates(
            digests=digests,
            subjects=named["subjects"],
            channels=("gray",),
            read=stored,
            background=background,
            at_least=near_duplicates,
        )
        table = tabulate_duplicates(duplicates, **named)
        if sheet is not None and table.num_rows:
            draw_duplicates(table, channels=("gray",), read=stored, path=Path(sheet))
    reasons = [reason for _, reason in skipped]
    return _report(table, read, duplicates, named["subjects"] if subject_pattern else None, reasons, len(sources))


def _check_places(sources: list[Path], sheet: Path | None) -> None:
    """Say before hours of reading what would be wrong in the end."""
    if len(sources) == 2:
        one, other = (source.resolve() for source in sources)
        if one.is_relative_to(other) or other.is_relative_to(one):
            raise InputError(
                f"{sources[1]} and {sources[0]} are one folder, or one lies in the other: all their pictures would be "
                "shared. Give two folders apart, or one alone."
            )
    if sheet is not None and (sheet.is_dir() or not sheet.parent.is_dir()):
        raise InputError(f"{sheet} is a folder, or lies in none. Give a PNG file in a folder that exists.")


def _load(numbered: tuple[int, Item], *, settings: PrepareSettings) -> tuple[MadeImage, str] | str:
    """The picture at the common size and the digest of its own pixels; or why it cannot be read."""
    _, item = numbered
    try:
        pixels = pictures.read_picture(item.files[0][1])
        digest = hashlib.sha256(f"{pixels.shape}{pixels.dtype.str}".encode() + pixels.tobytes()).hexdigest()
        return make_picture(pictures.convert_color(pixels, "gray"), item, settings), digest
    except (PictureError, OSError) as error:
        return str(error)


def _read_all(
    items: list[tuple[int, Item]], scratch: Path, settings: PrepareSettings, workers: int | None
) -> tuple[list[tuple[int, Item]], list[str], Background, list[tuple[int, str]]]:
    """What could be read, its digests and background; and of what could not be, the number of its folder and why."""
    writer = ImageWriter(scratch, channels=("gray",), height=SIZE, width=SIZE, dtype=np.dtype(np.uint8))
    read: list[tuple[int, Item]] = []
    digests: list[str] = []
    skipped: list[tuple[int, str]] = []
    with show_progress("Reading", total=len(items), unit="pictures") as progress:
        loaded = map_in_order(functools.partial(_load, settings=settings), items, workers=workers)
        for numbered, result in zip(items, loaded, strict=True):
            if isinstance(result, str):
                skipped.append((numbered[0], result))
            else:
                made, digest = result
                # Whose it is stands in `read`; the scratch array's records only say where padding is.
                writer.append(made.pixels, {"subject": "", "source": "", "role": ""} | dict(made.record))
                read.append(numbered)
                digests.append(digest)
            progress.advance()
    writer.flush()
    return read, digests, Background.of(writer.columns, SIZE, SIZE), skipped


def _report(
    table: pa.Table,
    read: list[tuple[int, Item]],
    duplicates: Duplicates,
    subjects: Any,
    skipped: list[str],
    sources: int,
) -> LeakReport:
    side = np.asarray([number for number, _ in read])
    group = duplicates.group
    shared = np.isin(group[side == 1], group[side == 0])
    pairs = [
        {
            "first": read[row["first"]][1].source,
            "second": read[row["second"]][1].source,
            "kind": row["kind"],
            "similarity": row["similarity"],
            "folders": (read[row["first"]][0], read[row["second"]][0]),
            "across": not row["same_role"],
        }
        for row in table.to_pylist()
    ]
    of_kind = {kind: sum(pair["kind"] == kind for pair in pairs) for kind in ("exact", "near", "mirrored")}
    both = None
    if subjects is not None and sources == 2:
        both = len(set(subjects[side == 0].tolist()) & set(subjects[side == 1].tolist()))
    return LeakReport(
        images=tuple(int((side == number).sum()) for number in range(sources)),
        shared_subjects=both,
        shared_images=int(shared.sum()),
        exact_pairs=of_kind["exact"],
        near_pairs=of_kind["near"],
        mirrored_pairs=of_kind["mirrored"],
        across_pairs=sum(pair["across"] for pair in pairs),
        pairs=tuple(pairs),
        pairs_not_listed=duplicates.found - len(pairs),
        skipped=tuple(skipped),
    )
