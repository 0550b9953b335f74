"""`inspect_folder`: what a folder of ours holds, in words and pictures, and what is in files of textual inversion."""

from __future__ import annotations

import contextlib
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from unalike import folders
from unalike.cohort.store import ImageFolder, open_images, verify_images
from unalike.engine import show_progress
from unalike.errors import FolderError, InputError
from unalike.generators.inversion.embedding import SUFFIXES, read_embedding
from unalike.images.contact import draw_contact_sheet
from unalike.records import IntArray
from unalike.report.read import Power, damaged, read_estimates, read_power
from unalike.report.statistics import brief_lines
from unalike.report.words import format_estimate, format_percent

_PER_ROW, _ROWS = 8, 6
_LEVELS = 256
_VALUES = 10  # values of an attribute that are listed
_BARS = "▁▂▃▄▅▆▇█"


def inspect_folder(folder: str | Path, *, pictures: str | Path | None = None) -> dict[str, Any]:
    """Facts about a cohort, samples, run, audit or demo folder, ready to print or to turn into JSON.

    A file of textual inversion, or a folder of such files, is listed too: ``embeddings`` has a row for each.

    For cohorts and samples every image is compared with its digest, and a contact sheet of each role and class and a
    histogram (PNG) are written to the folder ``pictures``, by default the folder itself. They show patients where the
    images do.

    Raises `FolderError` if the folder is none of ours, unfinished, or damaged; `InputError` if a file is no embedding.
    """
    folder = Path(folder)
    files = _embedding_files(folder)
    if files:
        return _describe_embeddings(files)
    kind = folders.kind_of(folder) if folder.is_dir() else None
    if kind is None:
        folders.read_header(folder, kind="cohort")  # raises: missing, unfinished, or not ours
        raise FolderError(f"{folder} is not a folder of unalike.")
    header = folders.read_header(folder, kind=kind)
    facts: dict[str, Any] = {
        "kind": kind,
        "made_by": header.made_by,
        "created": header.created,
        "seed": header.seed,
    }
    if kind in {"cohort", "samples"}:
        facts |= _describe_images(open_images(folder, kind=kind), Path(pictures) if pictures else folder)
    elif kind == "audit":
        facts |= _describe_audit(header)
    elif kind in {"fidelity", "utility", "explain"}:
        # Tables have their own files, and a page.
        wanted = ("name", "audit", "task", "features", "counts", "images", "classes", "flagged", "warnings", "notes")
        facts |= {name: header.content[name] for name in wanted if header.content.get(name) not in (None, [], {})}
    else:
        facts |= {name: value for name, value in header.content.items() if value not in (None, [], {})}
    facts["settings"] = {name: value for name, value in header.settings.items() if value not in (None, [], "")}
    facts["inputs"] = dict(header.inputs)
    return facts


def _embedding_files(place: Path) -> list[Path]:
    """Files that may hold embeddings: ``place`` itself, or those in a folder that is not ours."""
    if place.is_file():
        return [place]
    if not place.is_dir() or folders.is_ours(place):
        return []
    return sorted(entry for entry in place.iterdir() if entry.suffix in SUFFIXES and entry.is_file())


def _describe_embeddings(files: list[Path]) -> dict[str, Any]:
    """A row an embedding, and why the other files were not read; raises `InputError` if none was."""
    rows: list[dict[str, Any]] = []
    refused: list[str] = []
    for path in files:
        try:
            found = read_embedding(path)
        except InputError as error:
            refused.append(str(error))
            continue
        count, dimension = found.vectors.shape
        rows.append(
            {
                "token": found.token,
                "vectors": count,
                "dimension": dimension,
                "steps": found.steps,
                "base": found.base,
                "base_name": found.base_name,
                "cohort": found.cohort,
                "file": path.name,
                "bytes": path.stat().st_size,
            }
        )
    if not rows:
        raise InputError(refused[0])
    return {"kind": "embeddings", "embeddings": rows} | ({"refused": refused} if refused else {})


def _describe_audit(header: folders.Header) -> dict[str, Any]:
    """Verdict, statistics of the whole set, and what share of planted copies was caught after each change."""
    content = header.content
    with damaged(header.path):
        facts: dict[str, Any] = {
            "verdict": f"{content['verdict']['decision']}. {content['verdict']['headline']}",
            "warnings": content["verdict"]["warnings"],
            "counts": content["counts"],
            "flagged": content["flagged"],
            "exposed_subjects": content["exposed_subjects"],
            "measures": [f"{row['name']} (weight {row['weight']:g})" for row in content.get("measures") or []],
            "statistics": [f"{name}: {value}" for name, value in brief_lines(read_estimates(content["estimates"]))],
            "power": [_describe_power(read_power(row)) for row in content.get("power") or []],
        }
    return {name: value for name, value in facts.items() if name == "warnings" or value != []}


def _describe_power(row: Power) -> str:
    """One change in a line: planted copies caught, changed holdout images caught too, and each measure alone."""
    shares = [
        f"{'undefined' if estimate is None else format_estimate(estimate, 'share')} {what}"
        for estimate, what in ((row.planted, "caught"), (row.sham, "of holdout images changed alike"))
    ]
    alone = [f"{name} {format_percent(share, 0)}" for name, share in row.by_measure.items()]
    return f"{row.change}: {', '.join(shares)}" + (f" (alone: {', '.join(alone)})" if alone else "")


def _describe_images(images: ImageFolder, pictures: Path) -> dict[str, Any]:
    roles = images.column("role")
    subjects = images.column("subject")
    labels = images.column("label")
    content = images.header.content
    facts: dict[str, Any] = {
        "images": len(images),
        "size": f"{images.size[1]}×{images.size[0]} pixels, {images.dtype}",
        "channels": list(images.channels),
        "images_per_role": {str(role): int((roles == role).sum()) for role in np.unique(roles)},
        "subjects_per_role": {str(role): len(np.unique(subjects[roles == role])) for role in np.unique(roles)},
    }
    if set(labels.tolist()) != {""}:
        facts["images_per_class"] = dict(sorted(Counter(labels.tolist()).items()))
        pairs = Counter(zip(roles.tolist(), labels.tolist(), strict=True))
        facts["images_per_role_and_class"] = {f"{role} {label}": pairs[role, label] for role, label in sorted(pairs)}
    attributes = _describe_attributes(images)
    if attributes:
        facts["attributes"] = attributes
    spacing = _describe_spacing(images)
    if spacing:
        facts["spacing"] = spacing
    remains = [str(place) for place in folders.places_beside(images.path.resolve()) if place.is_dir()]
    if remains:
        facts["warning"] = f"a removal of patients was interrupted; images are left in {', '.join(remains)}: repeat it"
    counts = _count_levels(images)
    facts["gray_levels"] = _describe_levels(images, counts)
    facts["histogram"] = {name: row.tolist() for name, row in zip(images.channels, counts, strict=True)}
    for name in ("mask_names", "leaks", "leaks_left", "removals", "skipped", "notes"):
        if content.get(name):
            facts[name] = content[name]
    facts["contact_sheets"] = _draw_sheets(images, pictures / folders.CONTACT_SHEETS)
    facts["histogram_picture"] = str(_draw_histogram(images, counts, pictures / folders.HISTOGRAM))
    if (images.path / folders.DUPLICATES_SHEET).is_file():
        facts["duplicates_picture"] = str(images.path / folders.DUPLICATES_SHEET)
    return facts


def _describe_attributes(images: ImageFolder) -> dict[str, str]:
    """Of each attribute, how many images have it, and its range (numbers) or values, the most frequent first."""
    values: dict[str, list[str]] = {}
    for row in images.attributes():
        for name, value in row.items():
            values.setdefault(name, []).append(value)
    return {
        name: f"({len(given)} of {len(images)} images: {_describe_values(given)})"
        for name, given in sorted(values.items())
    }


def _describe_values(given: list[str]) -> str:
    try:
        numbers = np.asarray(given, dtype=np.float64)
    except ValueError:  # some are words
        numbers = np.asarray([np.nan])
    if np.isfinite(numbers).all():
        low, high = numbers.min(), numbers.max()
        return f"{low:g}" if low == high else f"{low:g} to {high:g}"
    counts = sorted(Counter(given).items(), key=lambda entry: (-entry[1], entry[0]))
    listed = ", ".join(f"{value} {count}" for value, count in counts[:_VALUES])
    return listed if len(counts) <= _VALUES else f"{listed}, and {len(counts) - _VALUES} other values"


def _describe_spacing(images: ImageFolder) -> str:
    """Size of a stored pixel in millimetres, where images are slices in space."""
    affines = [row for row in images.records["affine"].to_pylist() if row]
    if not affines:
        return ""
    steps = np.linalg.norm(np.asarray(affines).reshape(-1, 4, 4)[:, :3, :3], axis=1)  # (n, 3): column, row, slice
    low, high = steps.min(axis=0), steps.max(axis=0)
    parts = [f"{a:.3g}" if np.isclose(a, b) else f"{a:.3g} to {b:.3g}" for a, b in zip(low, high, strict=True)]
    return f"{parts[1]} × {parts[0]} mm a pixel (rows × columns), slices {parts[2]} mm apart"


def _count_levels(images: ImageFolder) -> IntArray:
    """Histogram (C, 256) of each channel; every image is verified on the way."""
    counts = np.zeros((len(images.channels), _LEVELS), np.int64)
    with show_progress("Verifying", total=len(images), unit="images") as progress:
        for block in verify_images(images):
            for channel in range(block.shape[1]):
                plane = block[:, channel]
                levels = (plane >> 8).astype(np.uint8) if plane.dtype == np.uint16 else plane
                counts[channel] += np.bincount(levels.ravel(), minlength=_LEVELS)
            progress.advance(len(block))
    return counts


def _describe_levels(images: ImageFolder, counts: IntArray) -> dict[str, str]:
    """A small histogram, and mean and standard deviation of each channel, from the exact sums in the records."""
    pixels = len(images) * images.size[0] * images.size[1]
    sums, squares = (images.numbers(name).sum(axis=0).astype(float) for name in ("sums", "squares"))
    spread = np.sqrt(np.maximum(squares / pixels - (sums / pixels) ** 2, 0))
    return {
        name: f"{_draw_bars(row)} mean {mean:.1f}, standard deviation {deviation:.1f}"
        for name, row, mean, deviation in zip(images.channels, counts, sums / pixels, spread, strict=True)
    }


def _draw_bars(counts: IntArray) -> str:
    """32 bars of text, from black to white; heights are square roots, so that few bright pixels still show."""
    heights = np.sqrt(counts.reshape(32, -1).sum(axis=1))
    return "".join(_BARS[int(height)] for height in np.ceil(heights / heights.max() * (len(_BARS) - 1)))


def _draw_histogram(images: ImageFolder, counts: IntArray, path: Path) -> Path:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.2), layout="constrained")
    axes = figure.add_subplot()
    scale = 257 if images.dtype == np.uint16 else 1
    for name, row in zip(images.channels, counts, strict=True):
        axes.step(np.arange(_LEVELS) * scale, np.maximum(row, 0.5) / row.sum(), where="mid", label=name, linewidth=1)
    axes.set(yscale="log", xlabel="gray level", ylabel="share of pixels")
    axes.legend(frameon=False)
    with _explaining(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=150)
    return path


def _draw_sheets(images: ImageFolder, out: Path) -> list[str]:
    """One sheet a role and class: images of evenly spread subjects, the middle one of each."""
    roles, labels, subjects = (images.column(name) for name in ("role", "label", "subject"))
    drawn = []
    with _explaining(out):
        out.mkdir(parents=True, exist_ok=True)
        for role in np.unique(roles):
            for label in np.unique(labels[roles == role]):
                here = np.flatnonzero((roles == role) & (labels == label))
                _, first = np.unique(subjects[here], return_index=True)
                firsts = _spread(here[np.sort(first)])
                rows = np.asarray([_middle(here[subjects[here] == subjects[row]]) for row in firsts])
                title = f"{role} {label}".strip() + f": {len(here)} images of {len(first)} subjects"
                parts = [rows[begin : begin + _PER_ROW] for begin in range(0, len(rows), _PER_ROW)]
                strips = [(title if not place else "", images.read(part)) for place, part in enumerate(parts)]
                path = out / f"{_file_name(role, label)}.png"
                draw_contact_sheet(strips, channels=images.channels).save(path)
                drawn.append(str(path))
    return drawn


def _file_name(role: str, label: str) -> str:
    return re.sub(r"[^\w-]+", "-", f"{role}-{label}").strip("-")


def _spread(rows: IntArray) -> IntArray:
    most = _PER_ROW * _ROWS
    spread: IntArray = rows[np.unique(np.linspace(0, len(rows) - 1, min(most, len(rows))).astype(int))]
    return spread


def _middle(rows: IntArray) -> int:
    return int(rows[len(rows) // 2])


@contextlib.contextmanager
def _explaining(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise FolderError(f"{path} cannot be written ({reason}). Choose another --pictures folder.") from error
