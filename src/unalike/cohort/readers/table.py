"""Pictures listed in a table (CSV): path, patient and class from its columns."""

from __future__ import annotations

import re
import string
from collections.abc import Mapping
from pathlib import Path

from unalike.cohort.plan import (
    ASSUMED,
    Item,
    NoSuchFiles,
    Plan,
    choose_classes,
    compile_pattern,
    match_pattern,
    name_below,
    published_role,
    walk_files,
)
from unalike.cohort.readers.attributes import read_rows, take_columns
from unalike.cohort.recipes import Layout
from unalike.cohort.settings import PrepareSettings
from unalike.errors import InputError, SettingsError


def plan_items(source: Path, layout: Layout, settings: PrepareSettings) -> Plan:
    """Rows of the layout's tables that have the wanted values and exactly one of the chosen classes."""
    chosen = compile_pattern(settings.subject_pattern, "--subject-pattern") or layout.subject
    tables = _find_tables(source, layout)
    items, rows = [], 0
    wanted = _own_attributes(layout, settings)
    unknown = [name for name in settings.classes if layout.label_columns and name not in layout.label_columns]
    if unknown:
        raise SettingsError(f"--classes: {', '.join(unknown)} not found; there are {', '.join(layout.label_columns)}.")
    for table in tables:
        for number, row in read_rows(table):
            rows += 1
            label = _label(row, layout, settings)
            if label is None or any(row.get(key, "").strip() != value for key, value in layout.where.items()):
                continue
            path = _find_picture(row, number, table, source, layout)
            inside = name_below(path, source)
            items.append(
                Item(
                    source=inside,
                    subject=match_pattern(chosen, inside, "the patient's pattern") if chosen else inside,
                    label=label if settings.labels is not False else "",
                    published=published_role((*Path(inside).parts[:-1], table.stem)),
                    files=(("picture", path),),
                    attributes=take_columns(row, number, wanted, table),
                )
            )
    names = ", ".join(name_below(table, source) for table in tables)
    if not items:
        raise InputError(f"none of the {rows} rows of {names} has the wanted view and exactly one of the classes.")
    notes = [f"{len(items)} of the {rows} rows of {names} have the wanted view and exactly one of the classes."]
    if chosen is None:
        notes.append(ASSUMED.format(what="file"))
    taken = items if layout.label_columns else choose_classes(items, settings)
    return Plan(items=tuple(taken), notes=tuple(notes))


def _find_tables(source: Path, layout: Layout) -> list[Path]:
    pattern = re.compile(layout.table, re.IGNORECASE)
    files, _ = walk_files(source, (".csv",))
    tables = [path for path in files if pattern.search(name_below(path, source))]
    if not tables:
        raise NoSuchFiles(f"{source} holds no table named as {layout.table}.")
    return tables


def _own_attributes(layout: Layout, settings: PrepareSettings) -> tuple[str, ...]:
    """Columns of the recipe's own tables that are taken; none of those that make a picture's path."""
    if settings.attributes_table is not None:
        return ()
    locating = {name for _, name, _, _ in string.Formatter().parse(layout.path) if name}
    odd = [name for name in settings.attributes if name in locating]
    if odd:
        raise SettingsError(
            f"--attributes {odd[0]}: the column names the pictures' files, not an attribute. Leave it out."
        )
    return settings.attributes


def _label(row: Mapping[str, str], layout: Layout, settings: PrepareSettings) -> str | None:
    """The class of a row; None if it has none of the chosen ones, several, or one that is uncertain."""
    if layout.label_column:
        return row.get(layout.label_column, "").strip()
    if not layout.label_columns:
        return ""
    marks = {name: _mark(row.get(name, "")) for name in settings.classes or layout.label_columns}
    found = [name for name, mark in marks.items() if mark != 0]
    return found[0] if len(found) == 1 and marks[found[0]] == 1 else None


def _mark(text: str) -> float:
    """1 present, −1 uncertain, 0 absent or not mentioned."""
    try:
        return float(text) if text.strip() else 0.0
    except ValueError:
        return -1.0


def _find_picture(row: Mapping[str, str], number: int, table: Path, source: Path, layout: Layout) -> Path:
    """Path of a row's picture, below the table or the source, with the release's own folder name or without."""
    try:
        named = Path(layout.path.format_map(row))
    except (KeyError, ValueError) as error:
        raise InputError(f"{table} has no column {error}, from which the path {layout.path} is made.") from error
    if named.is_absolute() or ".." in named.parts:
        raise InputError(f"{table}, line {number}: the path {named} leads out of the folder. Mend the table.")
    short = Path(*named.parts[1:]) if len(named.parts) > 1 else named
    places = [parent / path for path in (named, short) for parent in (table.parent, source)]
    return next((place for place in places if place.is_file()), places[0])
