"""Patches in HDF5 files: images (N, H, W, C) in one file, labels and a table of their slides beside it."""

from __future__ import annotations

import csv
import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from unalike.cohort.plan import (
    ASSUMED,
    Item,
    Loaded,
    NoSuchFiles,
    Plan,
    choose_classes,
    name_below,
    published_role,
    walk_files,
)
from unalike.cohort.readers.pictures import make_picture
from unalike.cohort.recipes import Layout
from unalike.cohort.settings import PrepareSettings
from unalike.errors import InputError, PictureError
from unalike.images import pictures

_COLORS = {"gray": 1, "rgb": 3}
_MOST_INFLATED = 1032  # deflate makes of one byte at most this many (zlib's technical notes)


def plan_items(source: Path, layout: Layout, settings: PrepareSettings) -> Plan:
    """One item a patch. The patient is the slide, where a metadata table names it."""
    files, notes = walk_files(source, (".h5", ".hdf5"))
    wanted = [path for path in files if any(entry.pattern.search(name_below(path, source)) for entry in layout.files)]
    if not wanted:
        raise NoSuchFiles(f"{source} holds no HDF5 file that the recipe knows.")
    items: list[Item] = []
    named = True
    for path in wanted:
        inside = name_below(path, source)
        count = _count_images(path, layout)
        labels = _read_labels(path, count, layout)
        slides = _read_slides(path, count, layout)
        named = named and slides is not None
        role = published_role((*Path(inside).parts[:-1], *path.stem.split("_")))
        items += [
            Item(
                source=f"{inside}[{row}]",
                subject=slides[row] if slides else f"{inside}[{row}]",
                label=str(labels[row]) if settings.labels is not False else "",
                published=role,
                files=(("picture", path),),
                detail=(layout.images, row),
            )
            for row in range(count)
        ]
    if not named:
        notes.append(ASSUMED.format(what="patch"))
    return Plan(items=tuple(choose_classes(items, settings)), notes=tuple(notes))


def _open(path: Path) -> Any:
    import h5py

    try:
        return h5py.File(path, "r")
    except OSError as error:
        raise _unreadable(path, error) from error


def _dataset(file: Any, path: Path, name: str) -> Any:
    """A dataset of the file itself: one that lies in other files could bring in anything that this machine holds."""
    import h5py

    try:
        link = file.get(name, getlink=True)
        dataset = None if isinstance(link, h5py.ExternalLink) else file.get(name)
        inside = dataset is None or not (getattr(dataset, "external", None) or getattr(dataset, "is_virtual", False))
    except Exception as error:  # damaged files raise whatever they meet first
        raise _unreadable(path, error) from error
    if isinstance(link, h5py.ExternalLink) or not inside:
        raise InputError(f"{path} does not hold its dataset {name!r}, which lies in another file. Get it again.")
    if not isinstance(dataset, h5py.Dataset):
        raise InputError(f"{path} holds no dataset {name!r}. Check --recipe.")
    return dataset


def _unreadable(path: Path, error: Exception) -> PictureError:
    said = " ".join(str(error).split())[:200] or type(error).__name__
    return PictureError(f"{path} cannot be read as HDF5 ({said}). Get it again.")


def _count_images(path: Path, layout: Layout) -> int:
    with _open(path) as file:
        dataset = _dataset(file, path, layout.images)
        try:
            shape: tuple[int, ...] = dataset.shape or ()
            size = (dataset.size or 0) * dataset.dtype.itemsize
        except TypeError as error:  # of a kind of value that NumPy has not
            raise _unreadable(path, error) from error
    if len(shape) != 4 or shape[3] not in _COLORS.values():
        raise InputError(f"{path} holds {shape} images, but (N, H, W, 1 or 3) are needed. Check --recipe.")
    if shape[1] * shape[2] > pictures.LARGEST_PICTURE:
        raise InputError(f"{path} announces {shape[2]}×{shape[1]} pixels an image. Get it again.")
    if size > path.stat().st_size * _MOST_INFLATED:
        raise InputError(f"{path} announces {shape[0]} images, more than it can hold. Get it again.")
    return int(shape[0])


def _read_labels(path: Path, count: int, layout: Layout) -> np.ndarray[Any, Any]:
    beside = path.with_name(path.name.replace("_x.", "_y."))
    if not layout.labels or beside == path or not beside.is_file():
        raise InputError(f"{path} has no labels beside it ({beside.name}). Get them too.")
    with _open(beside) as file:
        dataset = _dataset(file, beside, layout.labels)
        if dataset.size != count:
            raise InputError(f"{beside} holds {dataset.size} labels for {count} images. Get it again.")
        try:
            if dataset.dtype.kind not in "biuf":
                raise ValueError(f"{dataset.dtype} is no number")
            return np.asarray(dataset).reshape(-1).astype(np.int64)
        except (OSError, RuntimeError, TypeError, ValueError) as error:
            raise InputError(f"{beside} holds no labels that can be read ({error}). Get it again.") from error


def _read_slides(path: Path, count: int, layout: Layout) -> list[str] | None:
    """The slide of each patch, or None if no table tells."""
    table = path.with_name(path.name.replace("_x.h5", "_meta.csv"))
    if not layout.subject_column or not table.is_file():
        return None
    try:
        with table.open(newline="", encoding="utf-8-sig") as stream:
            slides = [row.get(layout.subject_column) or "" for row in csv.DictReader(stream)]
    except (OSError, ValueError, csv.Error) as error:
        raise InputError(f"{table} cannot be read as CSV ({error}). Get it again.") from error
    if len(slides) != count or not all(slides):
        raise InputError(f"{table} names {len(slides)} slides for {count} images. Get it again.")
    return slides


def load_item(item: Item, _: Plan, settings: PrepareSettings) -> Loaded:
    """Read one patch and bring it to colour, depth and size."""
    path = item.files[0][1]
    name, row = item.detail
    try:
        with _open(path) as file:
            patch = np.asarray(file[name][row])
    except PictureError:
        raise
    except Exception as error:  # damaged files raise whatever they meet first
        said = " ".join(str(error).split())[:200] or type(error).__name__
        raise PictureError(f"{item.source} cannot be read ({said}). Get {path} again.") from error
    if patch.dtype not in (np.uint8, np.uint16):
        raise PictureError(f"{item.source} holds {patch.dtype} pixels, but 8 or 16 unsigned bits are needed.")
    pixels = pictures.convert_color(np.ascontiguousarray(patch.transpose(2, 0, 1)), settings.color)
    digest = hashlib.sha256(patch.tobytes()).hexdigest()
    return Loaded(images=(make_picture(pixels, item, settings),), digest=digest)
