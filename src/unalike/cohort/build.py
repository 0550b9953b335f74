"""`prepare_cohort`: run a recipe over a source and write a cohort."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import secrets
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from unalike import folders
from unalike.cohort import leaks
from unalike.cohort.draft import Draft, plan_cohort
from unalike.cohort.duplicates import (
    Background,
    Duplicates,
    draw_duplicates,
    find_duplicates,
    tabulate_duplicates,
)
from unalike.cohort.journal import Journal, holds_finished_items
from unalike.cohort.plan import BadFile, Item, Loaded, MadeImage, Plan
from unalike.cohort.private import pseudonym, write_private
from unalike.cohort.readers import load_item
from unalike.cohort.recipes import Reader, find_recipe
from unalike.cohort.settings import PrepareSettings
from unalike.cohort.split import draw_holdout
from unalike.cohort.store import ImageFolder, ImageWriter, describe_pixels, digest_content, open_images, read_stored
from unalike.engine import map_in_order, show_progress
from unalike.errors import FolderError, InputError, PictureError
from unalike.images.pictures import channel_names
from unalike.records import Pixels, TextArray

# Settings that decide what happens once all is read: with others an interrupted preparation goes on all the same.
_LATE = frozenset({"on_bad_file", "on_leak", "near_duplicates", "holdout", "split", "stratify"})

# What is known only when all is read: whom a picture belongs to may depend on its duplicates.
_UNSETTLED = {"subject": "", "source": "", "role": ""}

# What of the leaks that were found may still be there once they are dealt with.
_LEFT = ("shared_subjects", "holdout_subjects", "pairs_across_roles", "pairs_across_classes")

_REMARKS = {
    "face": "{count} of {total} scans seem to show a face (a whole-head field of view with tissue in its front lower "
    "part, and background that no brain extraction has set to one value). Deface them before sharing anything.",
    "head": "{count} of {total} series are of the head, and no tag says that faces were removed "
    "(RecognizableVisualFeatures, or the de-identification method). Deface them before sharing anything.",
    "burned-in": "{count} of {total} series say that names may be burned into their pixels (BurnedInAnnotation). "
    "Look at them, and take them out or paint them over.",
}


class _MisfitError(PictureError):
    """Most images do not fit the first."""


def prepare_cohort(
    *,
    source: str | Path,
    out: str | Path,
    settings: PrepareSettings | None = None,
    seed: int = 0,
    key: bytes | None = None,
    workers: int | None = None,
    scheduler: str | None = None,
) -> ImageFolder:
    """Read a folder of pictures or volumes, find duplicates, split it by subject, and write a cohort to ``out``.

    ``settings`` come from `recipe_settings`. ``key`` (any bytes) makes the pseudonyms; by default a new random one is
    drawn and kept in the cohort's ``private/`` folder. Pass the key of another cohort to give its patients the same
    pseudonyms. ``scheduler`` is the address of a Dask scheduler that shares the file system; otherwise ``workers``
    threads read. An interrupted preparation goes on where it was when it is called again.

    Returns the opened cohort; what was assumed, skipped or found leaking is in ``header.content`` (``notes``,
    ``skipped``, ``leaks``). Raises an `InputError` for sources, files or settings that cannot be used.
    """
    source, out = Path(source), Path(out)
    settings = settings or PrepareSettings()
    draft = plan_cohort(source=source, settings=settings, seed=seed)
    stored = _stored_settings(settings)
    early = {name: value for name, value in stored.items() if name not in _LATE}
    folders.begin_folder(out, kind="cohort", settings=early, resumable=True)
    try:
        prepared = _Preparation(out, draft, settings, seed)
        prepared.load(workers, scheduler)
        content = prepared.finish(secrets.token_bytes(32) if key is None else key, workers)
    except BaseException as error:
        useless = isinstance(error, _MisfitError)  # no command goes on from here
        if folders.give_up_folder(out, nothing_made=lambda: useless or not holds_finished_items(out)):
            raise
        if isinstance(error, InputError) and not isinstance(error, FolderError):
            raise type(error)(f"{error} What was read so far stays in {out}: repeat the command to go on.") from error
        raise
    digest = content.pop("source_digest")
    folders.finish_folder(out, kind="cohort", settings=stored, seed=seed, inputs={"source": digest}, content=content)
    return open_images(out)


def _stored_settings(settings: PrepareSettings) -> dict[str, Any]:
    """Settings for the header; of a user's own recipe or table only the name, since its path may tell of people."""
    table = None if settings.attributes_table is None else Path(settings.attributes_table).name
    return asdict(settings) | {"recipe": find_recipe(settings.recipe).name, "attributes_table": table}


def _load_one(item: Item, *, plan: Plan, settings: PrepareSettings, reader: Reader) -> Loaded | BadFile:
    """Load one item and describe its images, in a worker."""
    try:
        loaded = load_item(item, plan=plan, settings=settings, reader=reader)
    except (PictureError, OSError) as error:
        return BadFile(source=item.source, reason=str(error))
    return replace(loaded, images=tuple(_describe_image(image, item) for image in loaded.images))


def _describe_image(image: MadeImage, item: Item) -> MadeImage:
    """An image with what its pixels and its item say of it in its record."""
    record = describe_pixels(image.pixels) | dict(image.record)
    attributes = dict(item.attributes) | dict(record.get("attributes", {}))
    return replace(image, record=record | {"attributes": attributes})


class _Preparation:
    """One cohort in the making."""

    def __init__(self, out: Path, draft: Draft, settings: PrepareSettings, seed: int) -> None:
        self.out, self.draft, self.settings, self.seed = out, draft, settings, seed
        self.plan = draft.plan
        self.writer: ImageWriter | None = None
        self.owners: list[int] = []  # item of each image
        self.skipped: list[BadFile] = []
        self.digests: list[str] = []
        self.aspects: list[float] = []
        self.remarks: Counter[str] = Counter()
        self.misfits = 0  # items skipped because they do not fit the first
        self.first = self.plan.items[0]  # the item that sets channels, size and depth
        self.journal = Journal(out, plan_digest=draft.digest)

    def load(self, workers: int | None, scheduler: str | None) -> None:
        """Read all items, but for those that an interrupted preparation has read."""
        done = self._resume()
        try:
            with show_progress("Preparing", total=len(self.plan.items), unit=self.plan.unit) as progress:
                progress.advance(done)
                for number, loaded in enumerate(self._map(done, workers, scheduler), start=done):
                    self._take(number, loaded)
                    progress.advance()
            if self.writer is not None:
                self.writer.flush()
                self.journal.catch_up(self.writer.written)
        finally:
            self.journal.close(remove=False)

    def _map(self, done: int, workers: int | None, scheduler: str | None) -> Iterator[Loaded | BadFile]:
        # The workers need the plan's channels and scale, not its thousands of items.
        load = functools.partial(
            _load_one, plan=replace(self.plan, items=()), settings=self.settings, reader=self.draft.reader
        )
        items = self.plan.items[done:]
        with contextlib.closing(map_in_order(load, items, workers=workers, scheduler=scheduler)) as loaded:
            yield from loaded

    def _resume(self) -> int:
        """Take in what the journal holds; gives the number of items that need not be read again."""
        entries, self.journal.entries = self.journal.entries, []
        for number, entry in enumerate(entries):
            if "bad" in entry:
                self._refuse(number, entry["bad"], misfit=entry["misfit"])
            else:
                self._note(number, entry)
        if self.owners:
            self.first = self.plan.items[self.owners[0]]
            records = [_UNSETTLED | record for entry in entries for record in entry.get("records", ())]
            channels = entries[self.owners[0]]["channels"]
            self.writer = ImageWriter.resume(self.out, channels=channels, records=records)
        return len(entries)

    def _take(self, number: int, loaded: Loaded | BadFile) -> None:
        item = self.plan.items[number]
        odd = self._begin_or_compare(loaded, item) if isinstance(loaded, Loaded) else ""
        if odd:
            loaded = BadFile(item.source, odd)
        if isinstance(loaded, BadFile):
            self._refuse(number, loaded.reason, misfit=bool(odd))
            entry: dict[str, Any] = {"bad": loaded.reason, "misfit": bool(odd)}
        else:
            entry = {
                "digest": loaded.digest,
                "aspect": loaded.aspect,
                "remarks": list(loaded.remarks),
                "records": [dict(image.record) for image in loaded.images],
                "channels": list(self.writer.channels) if self.writer else [],
            }
            self._note(number, entry)
            for image in loaded.images:
                assert self.writer is not None  # noqa: S101 - made by the first image
                self.writer.append(image.pixels, _UNSETTLED | dict(image.record))
        self.journal.add(entry, images=len(self.owners), written=self.writer.written if self.writer else 0)

    def _refuse(self, number: int, reason: str, *, misfit: bool) -> None:
        if self.settings.on_bad_file == "error":
            raise PictureError(reason)
        self.skipped.append(BadFile(self.plan.items[number].source, reason))
        self.misfits += misfit

    def _check_misfits(self) -> None:
        """Where most images do not fit the first, the first is the odd one: nobody wants a cohort of the rest."""
        if self.misfits > len(self.digests):
            raise _MisfitError(
                f"{self.misfits} of the {self.misfits + len(self.digests)} items that could be read do not fit the "
                f"first, {self.first.source}. Pass --size, --color or --depth so that all are alike, or take it away."
            )

    def _note(self, number: int, entry: Mapping[str, Any]) -> None:
        self.owners += [number] * len(entry["records"])
        self.digests.append(entry["digest"])
        self.aspects.append(entry["aspect"])
        self.remarks.update(entry["remarks"])

    def _begin_or_compare(self, loaded: Loaded, item: Item) -> str:
        """Begin the array with the first image; afterwards say what does not fit it, "" if all does."""
        for image in loaded.images:
            pixels = image.pixels
            if self.writer is None:
                channels = self.plan.channels or channel_names(len(pixels))
                _, height, width = pixels.shape
                self.writer = ImageWriter(self.out, channels=channels, height=height, width=width, dtype=pixels.dtype)
                self.first = item
            odd = _describe_misfit(pixels, self.writer, item.source, self.first.source)
            if odd:
                return odd
        return ""

    def finish(self, key: bytes, workers: int | None) -> dict[str, Any]:
        """Find duplicates, settle roles and subjects, write records and the private part; gives the content."""
        if self.writer is None:
            raise InputError(_nothing_left(self.plan, self.skipped, self.settings))
        self._check_misfits()
        self.writer.flush()
        subjects, roles, labels = self._columns()
        duplicates = find_duplicates(
            digests=self.writer.columns["digest"],
            subjects=subjects,
            channels=self.writer.channels,
            read=read_stored(self.out / folders.IMAGES),
            background=Background.of(self.writer.columns, self.writer.height, self.writer.width),
            at_least=self.settings.near_duplicates,
            workers=workers,
        )
        merged, final = self._settle(duplicates, subjects, roles, labels)
        counts = leaks.count_leaks(duplicates, subjects=subjects, labels=labels, roles=final)
        counts["merged_subjects"] = len(set(subjects.tolist())) - len(set(merged.tolist()))
        counts["largest_merge"] = _largest_merge(subjects, merged)
        self._fill_columns(key, merged, final, labels)
        kept = np.arange(len(final), dtype=np.int64)
        if self.settings.on_leak == "drop":
            kept = np.setdiff1d(kept, leaks.rows_to_drop(duplicates, subjects=subjects, labels=labels, roles=final))
        counts["dropped_images"] = len(final) - len(kept)
        _check_roles(final[kept], self.settings)
        if len(kept) < len(final):
            self.journal.close(remove=True)  # it speaks of what is rewritten now
            self.writer.keep(kept)
        content = self.writer.close()
        rest = duplicates.among(kept)
        table = tabulate_duplicates(rest, subjects=subjects[kept], labels=labels[kept], roles=final[kept])
        left = leaks.count_leaks(rest, subjects=merged[kept], labels=labels[kept], roles=final[kept])
        pq.write_table(table, self.out / folders.DUPLICATES)
        self._draw_duplicates(table)
        names = dict(zip(subjects[kept].tolist(), merged[kept].tolist(), strict=True))
        write_private(self.out, key, self.plan, self.skipped, names, set(self.writer.columns["source"]))
        self.journal.close(remove=True)
        return content | self._describe(counts, merged[kept]) | {"leaks_left": {name: left[name] for name in _LEFT}}

    def _draw_duplicates(self, table: pa.Table) -> None:
        assert self.writer is not None  # noqa: S101
        draw_duplicates(
            table,
            channels=self.writer.channels,
            read=read_stored(self.out / folders.IMAGES),
            path=self.out / folders.DUPLICATES_SHEET,
        )

    def _settle(
        self, duplicates: Duplicates, subjects: TextArray, roles: TextArray, labels: TextArray
    ) -> tuple[TextArray, TextArray]:
        """Subjects and roles as they shall be, given who shares a picture with whom."""
        settings = self.settings
        if settings.on_leak == "error":
            named = {"subjects": subjects, "labels": labels, "roles": roles}
            table = tabulate_duplicates(duplicates, **named)
            leaks.refuse_leaks(leaks.count_leaks(duplicates, **named), naming=self._name_pair(table))
        if settings.on_leak != "merge-subjects":
            return subjects, roles
        merged = leaks.merge_subjects(duplicates, subjects)
        left, before = len(set(merged.tolist())), len(set(subjects.tolist()))
        if left == before or settings.split == "keep":
            return merged, roles
        if left < 2 and settings.holdout > 0:
            raise InputError(
                f"all {before} subjects share pictures with one another, so they count as one and none can be held "
                "out. Raise --near-duplicates, or pass --on-leak report."
            )
        strata = labels if settings.stratify else None
        return merged, draw_holdout(merged, share=settings.holdout, seed=self.seed, strata=strata)

    def _columns(self) -> tuple[TextArray, TextArray, TextArray]:
        """Subject, role and class of each image, by the names of the source."""
        items = [self.plan.items[owner] for owner in self.owners]
        labels = self.writer.columns["label"] if self.writer else []
        return (
            np.asarray([item.subject for item in items], dtype=np.str_),
            self.draft.roles[self.owners],
            np.asarray(labels, dtype=np.str_),
        )

    def _fill_columns(self, key: bytes, subjects: TextArray, roles: TextArray, labels: TextArray) -> None:
        assert self.writer is not None  # noqa: S101
        known = functools.cache(functools.partial(pseudonym, key))
        columns = self.writer.columns
        columns["subject"] = [known("subject", name) for name in subjects.tolist()]
        columns["source"] = [known("source", self.plan.items[owner].source) for owner in self.owners]
        columns["role"] = roles.tolist()
        columns["label"] = labels.tolist()

    def _name_pair(self, table: pa.Table) -> str:
        for pair in table.to_pylist():
            if not (pair["same_subject"] and pair["same_role"] and pair["same_label"]):
                a, b = (self.plan.items[self.owners[pair[side]]].source for side in ("first", "second"))
                return f" (such as {a} and {b}, correlation {pair['similarity']:.3f})"
        return ""

    def _describe(self, counts: dict[str, int], subjects: TextArray) -> dict[str, Any]:
        remarks = [
            _REMARKS[name].format(count=count, total=len(self.digests)) for name, count in sorted(self.remarks.items())
        ]
        assert self.writer is not None  # noqa: S101
        deeper = 257 if self.writer.dtype == np.uint16 else 1
        return {
            "notes": [
                *leaks.describe_leaks(counts, self.settings),
                *_merge_notes(counts, self.settings),
                *remarks,
                *self.plan.notes,
                *_split_notes(self.plan, self.settings),
            ],
            "leaks": counts,
            "skipped": len(self.skipped),
            "items": len(self.plan.items),
            "aspect_ratios": [min(self.aspects), max(self.aspects)],
            "mask_names": {name: level * deeper for name, level in self.plan.mask_names.items()},
            "content_digest": digest_content(self.writer.columns, subjects),
            "source_digest": hashlib.sha256("".join(self.digests).encode()).hexdigest(),
        }


def _describe_misfit(image: Pixels, writer: ImageWriter, name: str, first: str) -> str:
    """What is wrong with an image that does not fit those of the ``first`` item; "" if it does."""
    channels, height, width = len(writer.channels), writer.height, writer.width
    if image.shape[0] != channels:
        return f"{name} has {image.shape[0]} channels, {first} has {channels}. Pass --color gray or rgb."
    if image.shape[1:] != (height, width):
        return f"{name} is {image.shape[1]} × {image.shape[2]}, {first} is {height} × {width}. Pass --size."
    if image.dtype != writer.dtype:
        bits, wanted = (8 * dtype.itemsize for dtype in (image.dtype, writer.dtype))
        return f"{name} has {bits} bits, {first} has {wanted}. Pass --depth 8 or 16."
    return ""


def _nothing_left(plan: Plan, skipped: Sequence[BadFile], settings: PrepareSettings) -> str:
    if len(skipped) == len(plan.items):
        return f"none of the {len(skipped)} files could be read; the first: {skipped[0].reason}"
    return (
        f"no slice has {settings.least_content:.0%} of its pixels above {settings.content_above}. "
        "Lower --least-content or --content-above."
    )


def _largest_merge(subjects: TextArray, merged: TextArray) -> int:
    """Subjects in the largest group that became one; 0 if none did."""
    members = Counter(name for _, name in set(zip(subjects.tolist(), merged.tolist(), strict=True)))
    largest = max(members.values())
    return largest if largest > 1 else 0


def _merge_notes(counts: Mapping[str, int], settings: PrepareSettings) -> list[str]:
    if not counts["merged_subjects"]:
        return []
    kept = "; the published roles stay" if settings.split == "keep" else ", so that none of them stands on both sides"
    return [
        f"{counts['merged_subjects']} subjects were merged into others with whom they share a picture that was found"
        f"{kept} (the largest group: {counts['largest_merge']} subjects merged). Pass --on-leak report to keep them "
        "apart, or a higher --near-duplicates if images of different patients are this much alike."
    ]


def _check_roles(roles: TextArray, settings: PrepareSettings) -> None:
    there = set(roles.tolist())
    if "train" not in there:
        raise InputError("no image is left for training. Lower --holdout, raise --near-duplicates, or add subjects.")
    if "holdout" not in there and settings.holdout > 0:
        raise InputError(
            "no holdout image is left. Raise --holdout or --near-duplicates, add subjects, or pass --holdout 0."
        )


def _split_notes(plan: Plan, settings: PrepareSettings) -> list[str]:
    if settings.split == "redraw" and settings.holdout == 0:
        return ["No holdout: an audit against this cohort alone cannot be calibrated."]
    if settings.split == "redraw" and any(item.published for item in plan.items):
        return ["The train and test folders of the source were ignored; roles were redrawn by subject."]
    return []
