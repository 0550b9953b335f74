"""Recipes: how the files of one data set become a cohort. Each is a short TOML file in this folder.

A recipe says in words what it expects and does (``title``, ``expects``, ``does``, ``reference``), gives defaults
for the options of ``prepare`` (``[settings]``), and has one or more ``[[layout]]``: a reader and the patterns by
which it understands paths. The first layout that finds files is taken. Users add their own by giving a TOML file
in place of a name; docs/recipes.md lists every key.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, Literal, get_args

from unalike.cohort.settings import PrepareSettings
from unalike.errors import SettingsError

Reader = Literal["pictures", "volumes", "decathlon", "dicom", "table", "hdf5"]


@dataclass(frozen=True)
class FilePattern:
    """A regular expression over the path below SOURCE; its named groups (or ``channel``) say what the file is."""

    pattern: re.Pattern[str]
    channel: str = ""


@dataclass(frozen=True)
class Layout:
    """One way in which the files of a data set may lie, and who reads them."""

    reader: Reader
    files: tuple[FilePattern, ...] = ()
    """Tried in turn. Named groups: subject, scan, channel, label. Files that match none are left out."""
    labels_by_lesion: tuple[str, str] = ("no lesion", "lesion")
    """Volumes whose slice the lesion chooses: classes without and with one."""
    exclude: re.Pattern[str] | None = None
    """Files whose path matches are left out."""
    guides: tuple[str, ...] = ()
    """Volumes: channels that only choose the slice (``organ``, ``lesion``) and are not stored."""
    table: str = ""
    """Table: name pattern of the CSV files, such as ``train.csv``."""
    path: str = ""
    """Table: path of a picture, with columns in braces: ``{Path}``."""
    subject: re.Pattern[str] | None = None
    """Table, HDF5: over that path (or, HDF5, the metadata's column ``subject_column``), the patient."""
    where: Mapping[str, str] = field(default_factory=dict)
    """Table: rows to take, column = value."""
    label_column: str = ""
    """Table: the column that holds the class."""
    label_columns: tuple[str, ...] = ()
    """Table: one column a class; rows with exactly one of the chosen classes are taken."""
    images: str = ""
    """HDF5: dataset of the images (N, H, W, C)."""
    labels: str = ""
    """HDF5: dataset of the labels, in a file named like that of the images with ``_y`` for ``_x``."""
    subject_column: str = ""
    """HDF5: column of the metadata table beside it that names the patient."""


@dataclass(frozen=True)
class Recipe:
    """A recipe, read and checked."""

    name: str
    title: str
    expects: str
    does: str
    reference: str
    settings: Mapping[str, Any]
    layouts: tuple[Layout, ...]


def list_recipes() -> tuple[Recipe, ...]:
    """All recipes that come with unalike: the general ones first, then by name."""
    found = [path.name.removesuffix(".toml") for path in resources.files(__name__).iterdir()]
    names = sorted(name for name in found if not name.startswith("_"))
    general = ("folder", "nifti", "dicom")
    return tuple(find_recipe(name) for name in (*general, *(name for name in names if name not in general)))


@cache
def find_recipe(name: str) -> Recipe:
    """The recipe of this name, or read from this TOML file.

    Raises `SettingsError` for an unknown name, listing the known ones, and for a file that is no recipe.
    """
    if name.endswith(".toml"):
        path = Path(name)
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise SettingsError(f"--recipe {name} cannot be read ({error}). Check the path.") from error
        return _parse(path.stem, name, text)
    file = resources.files(__name__).joinpath(f"{name}.toml")
    if not re.fullmatch(r"[a-z0-9-]+", name) or not file.is_file():
        names = sorted(path.name.removesuffix(".toml") for path in resources.files(__name__).iterdir())
        known = ", ".join(name for name in names if not name.startswith("_"))
        raise SettingsError(f"--recipe {name} is unknown. Use one of: {known}; or give your own as FILE.toml.")
    return _parse(name, f"{name}.toml", file.read_text(encoding="utf-8"))


def recipe_settings(recipe: str = "folder", **changes: Any) -> PrepareSettings:
    """Settings of a recipe, with ``changes`` (fields of `PrepareSettings`) over them.

    Raises `SettingsError` for an unknown recipe or field.
    """
    known = {entry.name for entry in fields(PrepareSettings)}
    unknown = sorted(set(changes) - known)
    if unknown:
        raise SettingsError(f"{', '.join(unknown)}: no setting of prepare. Use some of: {', '.join(sorted(known))}.")
    return PrepareSettings(**{"recipe": recipe, **find_recipe(recipe).settings, **changes})


def _parse(name: str, file: str, text: str) -> Recipe:
    try:
        document = tomllib.loads(text)
    except ValueError as error:
        raise SettingsError(f"{file} is no TOML file ({error}). Mend it.") from error
    try:
        layouts = tuple(_parse_layout(entry) for entry in document.pop("layout", []))
        recipe = Recipe(name=name, settings=_parse_settings(document.pop("settings", {})), layouts=layouts, **document)
    except (TypeError, ValueError, KeyError, AttributeError, re.error, SettingsError) as error:
        raise SettingsError(f"{file} is no recipe ({error}). docs/recipes.md lists the keys.") from error
    if not layouts or not all(isinstance(value, str) for value in document.values()):
        raise SettingsError(
            f"{file} is no recipe (no [[layout]], or a text is no text). docs/recipes.md lists the keys."
        )
    return recipe


def _parse_settings(table: Mapping[str, Any]) -> dict[str, Any]:
    known = {entry.name for entry in fields(PrepareSettings)} - {"recipe"}
    unknown = sorted(set(table) - known)
    if unknown:
        raise ValueError(f"{', '.join(unknown)} is no setting of prepare")
    settings: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in table.items()}
    PrepareSettings(**settings).check()
    return settings


def _parse_layout(entry: Mapping[str, Any]) -> Layout:
    values = dict(entry)
    if values["reader"] not in get_args(Reader):
        raise ValueError(f"reader {values['reader']!r} is none of {', '.join(get_args(Reader))}")
    unknown = sorted(set(values) - {entry.name for entry in fields(Layout)})
    if unknown:
        raise ValueError(f"{', '.join(unknown)} is no key of a layout")
    if not isinstance(values.get("files", []), list):
        raise ValueError("files is no list")
    if not all(isinstance(value, str) for value in values.get("where", {}).values()):
        raise ValueError("where holds a value that is no text")
    files = [{"pattern": one} if isinstance(one, str) else one for one in values.pop("files", [])]
    values["files"] = tuple(
        FilePattern(pattern=re.compile(one["pattern"], re.IGNORECASE), channel=one.get("channel", "")) for one in files
    )
    for key in ("exclude", "subject"):
        if key in values:
            values[key] = re.compile(values[key], re.IGNORECASE)
    for key in ("guides", "label_columns", "labels_by_lesion"):
        if key in values:
            values[key] = tuple(values[key])
    return Layout(**values)
