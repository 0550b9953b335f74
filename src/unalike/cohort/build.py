"""`prepare_cohort`: run a recipe over a source and write a cohort."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import hmac
import os
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from unalike import folders
from unalike.cohort import recipes
from unalike.cohort.recipes import BadFile, Item, Loaded, Plan
from unalike.cohort.settings import PrepareSettings
from unalike.cohort.split import draw_holdout
from unalike.cohort.store import ImageFolder, ImageWriter, open_images
from unalike.engine import map_in_order, show_progress
from unalike.errors import InputError, PictureError, SettingsError
from unalike.images.pictures import channel_names
from unalike.records import TextArray


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
    """Read a folder of pictures or volumes, split it by subject, and write a cohort to ``out``.

    ``key`` (any bytes) makes the pseudonyms; by default a new random one is drawn and kept in the cohort's
    ``private/`` folder. Pass the key of another cohort to give its patients the same pseudonyms. ``scheduler`` is
    the address of a Dask scheduler that shares the file system; otherwise ``workers`` threads read.

    Returns the opened cohort; what was assumed, skipped or found leaking is in ``header.content`` (``notes``,
    ``skipped``, ``leaks``). Raises an `InputError`, and leaves nothing behind, for sources, files or settings that
    cannot be used.
    """
    source, out = Path(source), Path(out)
    settings = settings or PrepareSettings()
    plan, roles = plan_cohort(source=source, settings=settings, seed=seed)
    with folders.new_folder(out, kind="cohort", settings=asdict(settings)):
        key = secrets.token_bytes(32) if key is None else key
        content, digest = _write_images(plan, roles, out, settings, key, workers, scheduler)
        folders.finish_folder(
            out,
            kind="cohort",
            settings=asdict(settings),
            seed=seed,
            inputs={"source": digest},
            content=content,
        )
    return open_images(out)


def plan_cohort(*, source: Path, settings: PrepareSettings, seed: int) -> tuple[Plan, TextArray]:
    """What would be prepared: the recipe's plan and the role of each item. Raises as `prepare_cohort` does."""
    settings.check()
    if seed < 0:
        raise SettingsError(f"--seed {seed}: give a whole number from 0 on.")
    planner, _ = recipes.find_recipe(settings.recipe)
    plan = planner(source, settings)
    return plan, _plan_roles(plan, settings, seed)


def describe_shared_subjects(plan: Plan, roles: TextArray) -> list[str]:
    """A warning if subjects stand on both sides of the planned split; nothing has to be read for it."""
    train, held = (
        {item.subject for item, own in zip(plan.items, roles, strict=True) if own == role}
        for role in ("train", "holdout")
    )
    shared = held & train
    if not shared:
        return []
    return [
        f"LEAK: {len(shared)} of the {len(held)} holdout patients also occur in train. See below for what it means."
    ]


def _plan_roles(plan: Plan, settings: PrepareSettings, seed: int) -> TextArray:
    """Role of each item: drawn by subject, or as the source's own folders say."""
    subjects = np.asarray([item.subject for item in plan.items], dtype=np.str_)
    if settings.split == "redraw":
        return draw_holdout(subjects, share=settings.holdout, seed=seed)
    roles = np.asarray([item.published for item in plan.items], dtype=np.str_)
    if (roles == "").any():
        name = plan.items[int(np.flatnonzero(roles == "")[0])].source
        raise SettingsError(f"--split keep: {name} lies in no train or test folder. Use --split redraw.")
    return roles


def _write_images(
    plan: Plan,
    roles: TextArray,
    out: Path,
    settings: PrepareSettings,
    key: bytes,
    workers: int | None,
    scheduler: str | None,
) -> tuple[dict[str, Any], str]:
    writer: ImageWriter | None = None
    skipped: list[BadFile] = []
    pairs: list[tuple[Item, str]] = []  # (item, role) of each image written
    aspects: list[float] = []
    first = plan.items[0]  # the item that sets channels, size and depth
    hasher = hashlib.sha256()
    for item, role, loaded in _load_all(plan, roles, settings, workers, scheduler):
        if isinstance(loaded, BadFile):
            skipped.append(loaded)
            continue
        if writer is not None:
            odd = _find_odd(loaded, writer, item, first)
            if odd and settings.on_bad_file == "error":
                raise PictureError(odd)
            if odd:
                skipped.append(BadFile(item.source, odd))
                continue
        hasher.update(loaded.digest.encode())
        aspects.append(loaded.aspect)
        for image, index in zip(loaded.images, loaded.slices, strict=True):
            if writer is None:
                channels = plan.channels or channel_names(len(image))
                writer = ImageWriter(
                    out, channels=channels, height=image.shape[1], width=image.shape[2], dtype=image.dtype
                )
                first = item
            writer.append(
                image,
                {
                    "subject": pseudonym(key, "subject", item.subject),
                    "source": pseudonym(key, "source", item.source),
                    "slice": index,
                    "label": item.label,
                    "role": role,
                },
            )
            pairs.append((item, role))
    if writer is None:
        raise InputError(_nothing_left(plan, skipped, settings))
    content = writer.close()
    leaks = _find_leaks(pairs, writer.columns["digest"])
    _check_roles(pairs, settings)
    _write_private(out, key, plan, skipped)
    return content | {
        "notes": [*_leak_notes(leaks), *plan.notes, *_split_notes(plan, settings)],
        "leaks": leaks,
        "skipped": len(skipped),
        "items": len(plan.items),
        "aspect_ratios": [min(aspects), max(aspects)],
    }, hasher.hexdigest()


def _load_one(indexed: Item, plan: Plan, settings: PrepareSettings) -> Loaded | BadFile:
    _, load = recipes.find_recipe(settings.recipe)
    try:
        return load(indexed, plan, settings)
    except (PictureError, OSError) as error:
        return BadFile(source=indexed.source, reason=str(error))


def _load_all(
    plan: Plan, roles: TextArray, settings: PrepareSettings, workers: int | None, scheduler: str | None
) -> Iterator[tuple[Item, str, Loaded | BadFile]]:
    # The workers need the plan's channels and scale, not its thousands of items.
    load = functools.partial(_load_one, plan=replace(plan, items=()), settings=settings)
    with (
        contextlib.closing(map_in_order(load, plan.items, workers=workers, scheduler=scheduler)) as loaded,
        show_progress("Preparing", total=len(plan.items), unit="items") as progress,
    ):
        for item, role, result in zip(plan.items, roles, loaded, strict=True):
            if isinstance(result, BadFile) and settings.on_bad_file == "error":
                raise PictureError(result.reason)
            yield item, str(role), result
            progress.advance()


def _find_odd(loaded: Loaded, writer: ImageWriter, item: Item, first: Item) -> str:
    """What is wrong with an item whose images do not fit those of the ``first``; "" if they do."""
    channels, height, width = len(writer.channels), writer.height, writer.width
    for image in loaded.images:
        if image.shape[0] != channels:
            return (
                f"{item.source} has {image.shape[0]} channels, {first.source} has {channels}. Pass --color gray or rgb."
            )
        if image.shape[1:] != (height, width):
            return (
                f"{item.source} is {image.shape[2]}×{image.shape[1]}, {first.source} is {width}×{height}. Pass --size."
            )
        if image.dtype != writer.dtype:
            return (
                f"{item.source} has {image.dtype.itemsize * 8} bits, {first.source} has {writer.dtype.itemsize * 8}. "
                "Pass --depth 8 or 16."
            )
    return ""


def _nothing_left(plan: Plan, skipped: Sequence[BadFile], settings: PrepareSettings) -> str:
    if len(skipped) == len(plan.items):
        return f"none of the {len(skipped)} files could be read; the first: {skipped[0].reason}"
    return (
        f"no slice has {settings.least_content:.0%} of its pixels above {settings.content_above}. "
        "Lower --least-content or --content-above."
    )


def _check_roles(pairs: Sequence[tuple[Item, str]], settings: PrepareSettings) -> None:
    roles = {role for _, role in pairs}
    if "train" not in roles:
        raise InputError("no image is left for training. Lower --holdout or add subjects.")
    if "holdout" not in roles and settings.holdout > 0:
        raise InputError("no holdout image is left. Raise --holdout, add subjects, or pass --holdout 0.")


def pseudonym(key: bytes, purpose: str, text: str) -> str:
    """Keyed pseudonym of an identifier: 12 hexadecimal digits of HMAC-SHA256, which only the key can link."""
    return purpose[0] + hmac.new(key, f"{purpose}\0{text}".encode(), hashlib.sha256).hexdigest()[:12]


def _find_leaks(pairs: Sequence[tuple[Item, str]], digests: Sequence[str]) -> dict[str, int]:
    """Subjects and pixel-identical images that stand on both sides."""
    seen = {item.subject for item, role in pairs if role == "train"}
    held = {item.subject for item, role in pairs if role == "holdout"}
    train_digests = {digest for (_, role), digest in zip(pairs, digests, strict=True) if role == "train"}
    twins = [
        digest
        for (_, role), digest in zip(pairs, digests, strict=True)
        if role == "holdout" and digest in train_digests
    ]
    return {
        "shared_subjects": len(seen & held),
        "holdout_subjects": len(held),
        "shared_holdout_images": sum(role == "holdout" and item.subject in seen for item, role in pairs),
        "holdout_images": sum(role == "holdout" for _, role in pairs),
        "identical_holdout_images": len(twins),
        "redundant_images": len(digests) - len(set(digests)),
    }


def _leak_notes(leaks: dict[str, int]) -> list[str]:
    notes = []
    if leaks["shared_subjects"]:
        notes.append(
            f"LEAK: {leaks['shared_subjects']} of the {leaks['holdout_subjects']} holdout patients also occur in train "
            f"({leaks['shared_holdout_images']} of {leaks['holdout_images']} holdout images). An audit leaves these "
            "patients out of its holdout; use --split redraw to split by patient."
        )
    if leaks["identical_holdout_images"]:
        notes.append(
            f"LEAK: {leaks['identical_holdout_images']} holdout images are pixel-identical to a train image. "
            "An audit leaves them out of its holdout."
        )
    if leaks["redundant_images"]:
        notes.append(f"{leaks['redundant_images']} images are pixel-identical copies of another image.")
    return notes


def _split_notes(plan: Plan, settings: PrepareSettings) -> list[str]:
    if settings.split == "redraw" and settings.holdout == 0:
        return ["No holdout: an audit against this cohort alone cannot be calibrated."]
    if settings.split == "redraw" and any(item.published for item in plan.items):
        return ["The train and test folders of the source were ignored; roles were redrawn by subject."]
    return []


def _write_private(out: Path, key: bytes, plan: Plan, skipped: Sequence[BadFile]) -> None:
    """What names patients: the key, and which pseudonym is whom. Readable by the owner alone."""
    private = out / folders.PRIVATE
    private.mkdir(mode=0o700)
    table = {
        "source": [pseudonym(key, "source", item.source) for item in plan.items],
        "path": [item.source for item in plan.items],
        "subject": [pseudonym(key, "subject", item.subject) for item in plan.items],
        "identifier": [item.subject for item in plan.items],
    }
    pq.write_table(pa.table(table), private / folders.SOURCES)
    with os.fdopen(os.open(private / folders.KEY, os.O_WRONLY | os.O_CREAT, 0o600), "wb") as stream:
        stream.write(key)
    folders.write_json(private / folders.SKIPPED, [vars(bad) for bad in skipped])
    for path in private.iterdir():
        path.chmod(0o600)
