"""Utility by segmentation: networks that learn masks from synthetic and from real images, tested on holdout subjects.

What is trained on is called a source; every source has the same network, first weights and number of updates at most.
Each is a cell: its predictions and a line about it, on disk as soon as they are there, so that an interrupted
measurement goes on with the next one. Scores are made from predictions, at the end.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from unalike import folders
from unalike.cohort.roles import ImageSet, Roles, choose_channels
from unalike.devices import resolve_precision
from unalike.engine import tell
from unalike.errors import FolderError, InputError
from unalike.records import MASK, FloatArray, IntArray, Pixels, as_json
from unalike.utility.overlap import Classes, Overlap, estimate_gains, estimate_scores, measure_overlap, spacing_of
from unalike.utility.segmentation import (
    Labels,
    Pairs,
    find_labels,
    hold_apart,
    pairs_of_images,
    train_segmenter,
)
from unalike.utility.settings import UtilitySettings

SYNTHETIC, REAL, AUGMENTED, BOTH = "synthetic", "real", "augmented", "both"
TITLES = {SYNTHETIC: "synthetic", REAL: "real", AUGMENTED: "real, augmented", BOTH: "real and synthetic"}
"""Sources, as a table calls them."""

CELLS, MODELS = "cells", "models"
PICTURE = "segmentation-internal.png"
FAR_WORTH_TELLING = 0.001  # share of drawn pixels
PICTURED = 6  # subjects in the picture
CELL_FORMAT = 1


@dataclass(frozen=True)
class _Source:
    """What a network learns from (places in ``pairs``), and what chooses its checkpoint."""

    name: str
    pairs: Pairs
    learn: IntArray
    choose: IntArray
    digests: tuple[str, ...]


def run_segmentation(
    roles: Roles, out: Path, *, settings: UtilitySettings, seed: int, device: torch.device
) -> dict[str, Any]:
    """Train on each source, test on the holdout subjects; gives what a header can hold, and writes into ``out``.

    Written are ``cells``/SOURCE.json and .npy (class maps of holdout images, then of left out ones, (n, H, W) uint8),
    ``models``/SOURCE, and ``figures``/`PICTURE`, which shows patients. A cell that is there, of the same images,
    settings and seed, is not made again.

    The content has the keys

    * ``unit``: of HD95, ``mm`` where the records tell the size of a pixel, else ``pixels``;
    * ``labels``: name, pixel ``value`` and number of images that show it in each role;
    * ``counts``: ``images`` and ``subjects`` of each role; ``far_share`` of pixels that samples drew (not background)
      which are near no label's value;
    * ``table``: a row a source: ``source``, ``title``, ``images`` learned from, ``validation`` images,
      ``validation_dice``, best ``update`` of ``updates``, ``dice`` and ``hd95`` (label's name or ``mean`` → Estimate
      over subjects), ``dice_by_image`` (label's name → mean), ``both_empty`` and ``one_empty`` (label's name → images),
      and ``dice_with_leaks`` where images were left out of the holdout (else None);
    * ``differences``: a row for each source but real: ``source``, ``title``, ``minus``, ``dice``, ``hd95``, subject by
      subject;
    * ``notes``: lines that belong under the table; ``network``: preset, precision, seed.

    Raises `InputError` without masks, without a label in them, or with fewer than 2 samples, train or holdout subjects;
    `NonFiniteLossError` if a training diverges.
    """
    _check_masks(roles)
    labels = _labels_of(roles.train)
    shown = {role: _survey(images, labels) for role, images in _by_role(roles).items()}
    far_share = _far_share(shown[SYNTHETIC])
    if not shown[SYNTHETIC].images.any():
        raise InputError(f"{roles.synthetic.folder.path}: no sample has a label in its mask. Draw samples with masks.")
    channels = choose_channels(roles, ())
    mask = roles.channels.index(MASK)

    def pairs(*sets: ImageSet) -> Pairs:
        return pairs_of_images([each for each in sets if len(each)], labels, channels=channels, mask=mask)

    test = pairs(roles.holdout, roles.left_out)
    images, truth = test.read(np.arange(test.count, dtype=np.int64))
    shared = _identity(roles, settings, labels, channels, seed, device)
    found, told = {}, {}
    for name, make in _sources(roles, pairs, settings, seed).items():
        told[name], found[name] = _cell(
            make(), images, out, identity=shared, labels=labels, settings=settings, seed=seed, device=device
        )

    holdout = len(roles.holdout)
    spacing = _spacing(roles)
    overlaps = {name: _overlap(roles, truth, classes, labels, spacing, leaks=False) for name, classes in found.items()}
    leaked = (
        {name: _overlap(roles, truth, classes, labels, spacing, leaks=True) for name, classes in found.items()}
        if len(roles.left_out)
        else {}
    )
    _draw(out, images[:holdout], truth[:holdout], {name: each[:holdout] for name, each in found.items()}, roles, labels)
    unit = overlaps[REAL].unit
    content = {
        "unit": unit,
        "labels": [
            {"name": name, "value": value, **{role: int(shown[role].images[k]) for role in shown}}
            for k, (name, value) in enumerate(zip(labels.names, labels.values, strict=True))
        ],
        "counts": {
            "images": {role: len(images) for role, images in _by_role(roles).items()},
            "subjects": {role: len(np.unique(images.subjects)) for role, images in _by_role(roles).items()},
            "far_share": far_share,
        },
        "table": [
            {"source": name, "title": TITLES[name], **told[name]}
            | _row(overlaps[name], leaked.get(name), labels.names, seed)
            for name in overlaps
        ],
        "differences": [
            {"source": name, "title": TITLES[name], "minus": REAL} | _gain(overlap, overlaps[REAL], labels.names, seed)
            for name, overlap in overlaps.items()
            if name != REAL
        ],
        "notes": _notes(unit, far_share, shown, labels, settings),
        "network": {
            "preset": settings.segment_preset,
            "precision": resolve_precision(settings.precision, device),
            "seed": seed,
        },
    }
    plain: dict[str, Any] = as_json(content)
    return plain


def _by_role(roles: Roles) -> dict[str, ImageSet]:
    return {SYNTHETIC: roles.synthetic, "train": roles.train, "holdout": roles.holdout, "left_out": roles.left_out}


def _check_masks(roles: Roles) -> None:
    for images in (roles.train, roles.synthetic, roles.holdout):
        names = images.folder.channels
        if MASK not in names:
            raise InputError(
                f"{images.folder.path} has no channel mask (it has {', '.join(names)}). Prepare a cohort with label "
                "volumes and train a generator on it, or use --task classify."
            )
        if len(names) == 1:
            raise InputError(f"{images.folder.path} has masks alone: there is no image to find them in.")
    for what, images in (("synthetic", roles.synthetic), ("train", roles.train), ("holdout", roles.holdout)):
        number = len(np.unique(images.subjects))
        if number < 2:
            unit = "images" if what == "synthetic" else "subjects"
            raise InputError(f"{number} {what} {unit} in {images.folder.path}: segmentation needs 2 or more.")


def _masks(images: ImageSet) -> Iterator[Pixels]:
    """Masks (n, H, W) of a set, some at a time."""
    place = images.folder.channels.index(MASK)
    for begin in range(0, len(images), 256):
        yield images.folder.read(images.rows[begin : begin + 256])[:, place]


def _labels_of(train: ImageSet) -> Labels:
    values = np.unique(np.concatenate([np.unique(block) for block in _masks(train)]))
    return find_labels(
        train.folder.header.content.get("mask_names"), values.tolist(), where=f"{train.folder.path} (train)"
    )


@dataclass(frozen=True, eq=False)
class _Survey:
    """Images (K,) that show each label, pixels far from every level, and pixels that are not background."""

    images: IntArray
    far: int
    marked: int


def _survey(images: ImageSet, labels: Labels) -> _Survey:
    counts, far, marked = np.zeros(len(labels), dtype=np.int64), 0, 0
    for block in _masks(images):
        classes = labels.classes(block)
        counts += [int((classes == label + 1).any(axis=(1, 2)).sum()) for label in range(len(labels))]
        away, drawn = labels.count_far(block)
        far, marked = far + away, marked + drawn
    return _Survey(counts, far, marked)


def _far_share(survey: _Survey) -> float:
    share = survey.far / survey.marked if survey.marked else 0.0
    if share > FAR_WORTH_TELLING:
        tell(f"{share:.1%} of the pixels drawn in synthetic masks are near no label's value; each goes to the nearest.")
    return share


def _sources(
    roles: Roles, pairs: Callable[..., Pairs], settings: UtilitySettings, seed: int
) -> dict[str, Callable[[], _Source]]:
    """What is trained on, by name; images are read only once a source is made."""

    def single(name: str, images: ImageSet) -> _Source:
        learn, choose = hold_apart(images.subjects, parts=settings.folds, seed=seed)
        return _Source(name, pairs(images), learn, choose, _digests(images))

    def both() -> _Source:
        # Real images choose, as they would for whoever has some; all synthetic ones are learned from.
        learn, choose = hold_apart(roles.train.subjects, parts=settings.folds, seed=seed)
        first = len(roles.synthetic)
        places = np.concatenate([np.arange(first), learn + first]).astype(np.int64)
        digests = (*_digests(roles.synthetic), *_digests(roles.train))
        return _Source(BOTH, pairs(roles.synthetic, roles.train), places, choose + first, digests)

    return {
        SYNTHETIC: lambda: single(SYNTHETIC, roles.synthetic),
        REAL: lambda: single(REAL, roles.train),
        **({AUGMENTED: lambda: single(AUGMENTED, roles.train)} if settings.augment else {}),
        BOTH: both,
    }


def _digests(images: ImageSet) -> tuple[str, ...]:
    return tuple(f"{subject} {digest}" for subject, digest in zip(images.subjects, images.digests, strict=True))


def _identity(
    roles: Roles, settings: UtilitySettings, labels: Labels, channels: Sequence[int], seed: int, device: torch.device
) -> dict[str, Any]:
    """All that decides a cell but its source."""
    named = ("segment_preset", "segment_updates", "batch_size", "learning_rate", "weight_decay", "folds", "patience")
    return {
        "format": CELL_FORMAT,
        "settings": {name: getattr(settings, name) for name in named},
        "precision": resolve_precision(settings.precision, device),
        "labels": labels,
        "channels": list(channels),
        "seed": seed,
        "tested": [*_digests(roles.holdout), *_digests(roles.left_out)],
    }


def _cell(
    source: _Source,
    images: Pixels,
    out: Path,
    *,
    identity: Mapping[str, Any],
    labels: Labels,
    settings: UtilitySettings,
    seed: int,
    device: torch.device,
) -> tuple[dict[str, Any], Classes]:
    """What is to be said of one source's training, and its class maps of ``images`` (n, C, H, W): kept ones, or new."""
    text = json.dumps(as_json({**identity, "source": source.name, "learned": source.digests}), sort_keys=True)
    whose = hashlib.sha256(text.encode()).hexdigest()
    place = out / CELLS / f"{source.name}.json"
    kept = _kept(place, whose, (len(images), *images.shape[2:]))
    if kept is not None:
        return kept
    trained = train_segmenter(
        source.pairs.at(source.learn),
        source.pairs.at(source.choose),
        labels=labels,
        settings=settings,
        seed=seed,
        device=device,
        augmented=source.name == AUGMENTED,
        name=TITLES[source.name],
    )
    about = {
        "images": len(source.learn),
        "validation": len(source.choose),
        "validation_dice": trained.validation,
        "update": trained.update,
        "updates": trained.updates,
    }
    trained.segmenter.save(out / MODELS / source.name, about={"source": source.name, **about})
    classes = trained.segmenter.predict(images)
    place.parent.mkdir(parents=True, exist_ok=True)
    partial = place.with_suffix(".npy.partial")
    with partial.open("wb") as stream:
        np.save(stream, classes, allow_pickle=False)
    partial.replace(place.with_suffix(".npy"))
    digest = folders.digest_file(place.with_suffix(".npy"))
    folders.write_json(place, {"identity": whose, "predictions": digest, "about": about})  # last: now it is whole
    return about, classes


def _kept(place: Path, whose: str, shape: tuple[int, ...]) -> tuple[dict[str, Any], Classes] | None:
    """A cell from before; None if it is missing, damaged, or of something else."""
    predictions = place.with_suffix(".npy")
    if not place.is_file() or not predictions.is_file():
        return None
    try:
        known = folders.read_json(place)
        if known["identity"] != whose or known["predictions"] != folders.digest_file(predictions):
            return None
        classes: Classes = np.load(predictions, allow_pickle=False)
    except (FolderError, OSError, ValueError, KeyError, TypeError):
        return None
    return (known["about"], classes) if classes.shape == shape else None


def _spacing(roles: Roles) -> FloatArray | None:
    """Size of a pixel in mm (n, 2) of all tested images, holdout first; None if one of them does not tell."""
    affines = [
        images.folder.records["affine"][row].as_py()
        for images in (roles.holdout, roles.left_out)
        for row in images.rows.tolist()
    ]
    return spacing_of(affines)


def _overlap(
    roles: Roles, truth: Classes, found: Classes, labels: Labels, spacing: FloatArray | None, *, leaks: bool
) -> Overlap:
    """Scores on the holdout, or with ``leaks`` on what was left out of it as well."""
    number = len(truth) if leaks else len(roles.holdout)
    subjects = np.concatenate([roles.holdout.subjects, roles.left_out.subjects])[:number]
    return measure_overlap(
        truth[:number],
        found[:number],
        subjects,
        labels=len(labels),
        spacing=None if spacing is None else spacing[:number],
    )


def _row(overlap: Overlap, leaked: Overlap | None, names: Sequence[str], seed: int) -> dict[str, Any]:
    return {
        "dice": estimate_scores(overlap.dice, overlap.subjects, names, seed=seed),
        "hd95": estimate_scores(overlap.hd95, overlap.subjects, names, seed=seed),
        "dice_by_image": {
            name: float(np.nanmean(column)) if np.isfinite(column).any() else None
            for name, column in zip(names, overlap.image_dice.T, strict=True)
        },
        "both_empty": dict(zip(names, overlap.both_empty.tolist(), strict=True)),
        "one_empty": dict(zip(names, overlap.one_empty.tolist(), strict=True)),
        "dice_with_leaks": leaked and estimate_scores(leaked.dice, leaked.subjects, names, seed=seed),
    }


def _gain(first: Overlap, second: Overlap, names: Sequence[str], seed: int) -> dict[str, Any]:
    return {
        "dice": estimate_gains(first.dice, second.dice, first.subjects, names, seed=seed),
        "hd95": estimate_gains(first.hd95, second.hd95, first.subjects, names, seed=seed),
    }


def _notes(
    unit: str, far_share: float, shown: Mapping[str, _Survey], labels: Labels, settings: UtilitySettings
) -> list[str]:
    notes = [
        "Dice pools the pixels of a subject's images; HD95 is the mean over those of its images where it is defined. "
        "Means and intervals are over holdout subjects.",
        "HD95 is in mm, from the geometry in the records."
        if unit == "mm"
        else "HD95 is in pixels: not every record tells the size of a pixel.",
        "A label missing in truth and prediction is left out; missing in one of them, it has Dice 0 and as HD95 the "
        "image's diagonal.",
        f"Each checkpoint was chosen on one in {settings.folds} subjects of its own source (with both: of the real "
        "images); no holdout image chose anything.",
    ]
    if settings.augment:
        notes.append("Augmentation does not mirror: left and right differ in anatomy and in labels.")
    if far_share > FAR_WORTH_TELLING:
        notes.append(
            f"{far_share:.1%} of the pixels that samples drew in their masks are near no label's value; each was taken "
            "for the nearest."
        )
    for role, text in ((SYNTHETIC, "sample"), ("train", "train image"), ("holdout", "holdout image")):
        missing = [name for name, number in zip(labels.names, shown[role].images, strict=True) if number == 0]
        if missing:
            notes.append(f"No {text} shows {', '.join(missing)}.")
    return notes


def _draw(
    out: Path, images: Pixels, truth: Classes, found: Mapping[str, Classes], roles: Roles, labels: Labels
) -> None:
    """A row a subject: image (its first channel), truth, and what each source's network found. It shows patients."""
    chosen = _choose_pictured(truth, roles)
    columns = {"image": np.zeros_like(truth), "truth": truth} | {TITLES[name]: maps for name, maps in found.items()}
    figure = Figure(figsize=(1.6 * len(columns), 1.65 * len(chosen) + 0.5), layout="constrained")
    grid = figure.subplots(len(chosen), len(columns), squeeze=False)
    # Okabe and Ito's colours, told apart by colour-blind readers too; used in turn.
    colours = ["#e69f00", "#56b4e9", "#009e73", "#f0e442", "#d55e00", "#cc79a7"]
    palette = ListedColormap([colours[k % len(colours)] for k in range(len(labels))])
    for row, index in enumerate(chosen):
        for axes, (title, maps) in zip(grid[row], columns.items(), strict=True):
            axes.imshow(images[index, 0], cmap="gray", interpolation="nearest")
            shown = np.ma.masked_equal(maps[index], 0)
            axes.imshow(shown, cmap=palette, vmin=0.5, vmax=len(labels) + 0.5, alpha=0.6, interpolation="nearest")
            axes.set_axis_off()
            if row == 0:
                axes.set_title(title, fontsize=8)
    patches = [Patch(color=palette(k), label=name) for k, name in enumerate(labels.names)]
    figure.legend(handles=patches, loc="outside lower right", ncols=min(len(labels), 6), fontsize=7, frameon=False)
    figure.supxlabel("holdout subjects; internal: it shows patients", fontsize=7)
    place = out / folders.FIGURES / PICTURE
    place.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(place, dpi=120)


def _choose_pictured(truth: Classes, roles: Roles) -> list[int]:
    """Of some subjects the image with most labelled pixels: none is chosen by how well anybody did."""
    subjects = roles.holdout.subjects
    names = np.unique(subjects)
    some = names[np.linspace(0, len(names) - 1, min(PICTURED, len(names))).round().astype(int)]
    marked = (truth > 0).sum(axis=(1, 2))
    return [int(rows[marked[rows].argmax()]) for rows in (np.flatnonzero(subjects == name) for name in some)]
