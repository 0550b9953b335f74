"""Attributes of subjects and scans (age, sex, view, place of a slice): from tables, DICOM headers and geometry.

What names a person must not come in: names of columns are checked in `PrepareSettings.check`, values here. Ages above
89 become "90", as the safe harbour of HIPAA asks (45 CFR 164.514(b)(2)(i)(C)).
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

from unalike.cohort.plan import Item, Plan
from unalike.cohort.recipes import Reader
from unalike.cohort.settings import PrepareSettings
from unalike.errors import InputError, SettingsError

POSITION = "position"
HEADER_FIELDS = ("PatientAge", "PatientSex", "ViewPosition", "BodyPartExamined", "Modality", "Manufacturer")
LONGEST = 64  # characters of a value
OLDEST = 89  # years; who is older is 90

_MISSING = frozenset({"", "nan", "na", "n/a", "null"})
_SLICED: frozenset[Reader] = frozenset({"volumes", "decathlon", "dicom"})
_AGE = re.compile(r"(?:^|[^a-z])(?:patient|subject)?age(?:$|[^a-z]|at|in|years?|months?|weeks?|days?)")
# Units in a year: of DICOM's age strings (PS3.5, section 6.2: 018M), and as a column's name may say.
_PER_YEAR = {"y": 1.0, "m": 12.0, "w": 365.25 / 7, "d": 365.25}
_UNIT = re.compile(r"(?:^|[^a-z])(?:age)?(?:in)?(month|week|day)s?(?:$|[^a-z])")


def refuse_reason(reader: Reader, settings: PrepareSettings) -> str:
    """Why a layout of this reader has not all of ``settings.attributes``: one line, "" if it may."""
    odd = [name for name in settings.attributes if name not in _own_names(reader)]
    if not odd or reader == "table" or settings.attributes_table is not None:
        return ""
    if reader == "dicom":
        return (
            f"--attributes {odd[0]}: of DICOM headers only {', '.join(_own_names(reader))} are taken. "
            "Use some of these, or add --attributes-table."
        )
    own = " only position of its own" if reader in _SLICED else " none of its own"
    return (
        f"--attributes {odd[0]}: recipe {settings.recipe} has{own}; dicom and recipes with a table of pictures (such "
        "as chexpert) have others. Add --attributes-table."
    )


def _own_names(reader: Reader) -> tuple[str, ...]:
    """Attributes that a reader finds in the images' own files."""
    return (*(HEADER_FIELDS if reader == "dicom" else ()), *((POSITION,) if reader in _SLICED else ()))


def add_attributes(plan: Plan, reader: Reader, settings: PrepareSettings) -> Plan:
    """The plan with the columns of ``settings.attributes_table``, if there is one, as attributes of its items.

    Raises `InputError` if the table cannot be read, names nothing of the plan or something twice in different ways, and
    `SettingsError` if a column is missing or holds the patients' or files' names.
    """
    wanted = [name for name in settings.attributes if name not in _own_names(reader)]
    if settings.attributes_table is not None and wanted:
        rows = _read_table(Path(settings.attributes_table), wanted)
        items = tuple(replace(item, attributes=_find_row(item, rows)) for item in plan.items)
        without = sum(not _keys(item) & rows.keys() for item in items)
        if without == len(items):
            raise InputError(
                f"the first column of {settings.attributes_table} holds no patient, path or file name of the source. "
                "Check it, or --subject-pattern."
            )
        notes = [f"{without} of {len(items)} {plan.unit} have no row in the table of attributes."] if without else []
        plan = replace(plan, items=items, notes=(*plan.notes, *notes))
    _refuse_names(plan.items, wanted)
    return plan


def _keys(item: Item) -> set[str]:
    """How the first column of a table may name an item: patient, path below the source, or name of its first file."""
    return {item.subject, item.source, PurePosixPath(item.source).name}


def _find_row(item: Item, rows: Mapping[str, dict[str, str]]) -> dict[str, str]:
    """What a table says of an item; of the file before the patient."""
    keys = (item.source, PurePosixPath(item.source).name, item.subject)
    return next((rows[key] for key in keys if key in rows), {})


def _read_table(table: Path, wanted: Sequence[str]) -> dict[str, dict[str, str]]:
    """The wanted columns of each row, by its first column."""
    rows: dict[str, dict[str, str]] = {}
    for number, row in read_rows(table):
        values = take_columns(row, number, wanted, table)
        first = next(iter(row))
        if first in wanted:
            raise SettingsError(f"--attributes {first}: the first column of {table} says whose a row is. Leave it out.")
        key = row[first].strip()
        if key and rows.setdefault(key, values) != values:
            raise InputError(f"{table}, line {number}: {key} stands there twice, with other values. Mend the table.")
    return rows


def read_rows(table: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Line number and columns of each row of a CSV file. Raises `InputError` if it cannot be read."""
    try:
        with table.open(newline="", encoding="utf-8-sig") as stream:
            for number, row in enumerate(csv.DictReader(stream), start=2):
                yield number, {key: value or "" for key, value in row.items() if isinstance(key, str)}
    except (OSError, ValueError, csv.Error) as error:
        raise InputError(f"{table} cannot be read as CSV ({error}). Get it again.") from error


def take_columns(row: Mapping[str, str], number: int, wanted: Iterable[str], table: Path) -> dict[str, str]:
    """Attributes that a row of ``table`` (line ``number``) has: clean text, without what is missing.

    Raises `SettingsError` if the table has no such column, or a value is longer than `LONGEST` characters: free text
    may name people.
    """
    taken = {}
    for name in wanted:
        if name not in row:
            raise SettingsError(f"--attributes {name}: {table} has no such column; there are {', '.join(row)}.")
        value = clean_value(name, row[name])
        if len(value) > LONGEST:
            raise SettingsError(
                f"--attributes {name}: {table}, line {number}, holds more than {LONGEST} characters, and free text may "
                "name people. Leave it out."
            )
        if value:
            taken[name] = value
    return taken


def clean_value(name: str, text: str) -> str:
    """A value on one printable line, "" if it is missing; of an age (as its name says) at most 90 years.

    Ages as DICOM writes them become years: 058Y is 58, 018M is 1.5.
    """
    value = "".join(letter for letter in " ".join(text.split()) if letter.isprintable())
    if value.lower() in _MISSING:
        return ""
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()
    return _bound_age(value, words) if _AGE.search(words) else value


def _bound_age(value: str, words: str) -> str:
    coded = re.fullmatch(r"(\d{1,3})([YMWD])", value, re.IGNORECASE)
    if coded:
        years = int(coded[1]) / _PER_YEAR[coded[2].lower()]
        return f"{90 if years > OLDEST else round(years, 2):g}"
    unit = _UNIT.search(words)
    per_year = _PER_YEAR[unit[1][0]] if unit else 1.0
    numbers = [float(found) for found in re.findall(r"\d+(?:\.\d+)?", value)]
    return f"{90 * per_year:g}" if max(numbers, default=0.0) > OLDEST * per_year else value


def _refuse_names(items: Sequence[Item], wanted: Iterable[str]) -> None:
    """Refuse a column that holds what the patients or their files are called, whatever it is called itself."""
    naming: tuple[Callable[[Item], str], ...] = (
        lambda item: item.subject,
        lambda item: item.source,
        lambda item: PurePosixPath(item.source).name,
        lambda item: PurePosixPath(item.source).stem,
    )
    for name in wanted:
        having = [item for item in items if name in item.attributes]
        if having and any(all(item.attributes[name] == own(item) for item in having) for own in naming):
            raise SettingsError(
                f"--attributes {name}: the column holds what patients or files are called. Leave it out."
            )


def place_slice(row: int, depth: int, settings: PrepareSettings) -> dict[str, str]:
    """The attribute `POSITION` of slice ``row`` of ``depth``, if it is wanted: "0.000" for the first, "1.000" the last.

    A single slice is in the middle.
    """
    if POSITION not in settings.attributes:
        return {}
    return {POSITION: f"{row / (depth - 1) if depth > 1 else 0.5:.3f}"}
