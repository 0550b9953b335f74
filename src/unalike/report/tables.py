"""A table once, as Markdown, LaTeX, CSV and for the page: the same numbers everywhere, each with its interval."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from unalike.records import Estimate, as_json
from unalike.report.words import UNDEFINED, format_number, format_percent

Cell = str | Estimate
Kind = Literal["text", "share", "number", "measure"]
"""How the numbers of a column are written: in percent, with three decimals, or with three digits (of any size)."""

_SIDES = ("value", "low", "high")
_TEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"} | {
    sign: f"\\{sign}" for sign in "{}$&#%_"
}
# What pdfTeX does not set from UTF-8 alone.
_TEX |= {"−": "$-$", "→": r"$\rightarrow$", "≥": r"$\geq$", "≤": r"$\leq$", "×": r"$\times$"}
_TEX |= {"±": r"$\pm$", "²": "$^2$"}


@dataclass(frozen=True)
class Column:
    """Heading of a column and how its numbers are written."""

    name: str
    kind: Kind = "text"


@dataclass(frozen=True)
class Table:
    """Rows of cells (text, or an `Estimate`) under columns; ``notes`` are what must be read with them.

    ``name`` is that of its files, without suffix.
    Where each row has a kind of its own, not each column, ``row_kinds`` has one for each row.
    """

    name: str
    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    notes: tuple[str, ...] = ()
    row_kinds: tuple[Kind, ...] = ()

    def text(self, row: int, column: int) -> str:
        """One cell in words; an estimate with its interval."""
        cell = self.rows[row][column]
        kind = self.row_kinds[row] if self.row_kinds else self.columns[column].kind
        return cell if isinstance(cell, str) else write_estimate(cell, kind)

    def parts(self, row: int, column: int) -> tuple[str, str]:
        """One cell as value and interval, for a page that shows them beneath each other; without one ""."""
        value, _, interval = self.text(row, column).partition(" (") if self._has_interval(row, column) else ("", "", "")
        return (value, interval.removesuffix(")")) if interval else (self.text(row, column), "")

    def _has_interval(self, row: int, column: int) -> bool:
        cell = self.rows[row][column]
        return not isinstance(cell, str) and not math.isnan(cell.value) and not math.isnan(cell.low)

    def lines(self) -> list[list[str]]:
        """All rows in words, without the head."""
        return [[self.text(row, column) for column in range(len(self.columns))] for row in range(len(self.rows))]

    @property
    def head(self) -> list[str]:
        """Names of the columns."""
        return [column.name for column in self.columns]

    def markdown(self) -> str:
        """As a Markdown table with its notes beneath."""
        return as_markdown(self.head, self.lines(), notes=self.notes) + "\n"

    def latex(self) -> str:
        """As a LaTeX tabular that needs no package; title and notes are comments above."""
        return as_latex(self.head, self.lines(), notes=[line for line in (self.title, *self.notes) if line])

    def csv(self) -> str:
        """As CSV: value, low and high of numbers in columns of their own with all digits, empty where undefined."""
        numeric = [any(isinstance(row[at], Estimate) for row in self.rows) for at in range(len(self.columns))]
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        head: list[str] = []
        for column, numbers in zip(self.columns, numeric, strict=True):
            head += [f"{column.name} {side}" for side in _SIDES] if numbers else [column.name]
        writer.writerow(head)
        for row in self.rows:
            values: list[str] = []
            for cell, numbers in zip(row, numeric, strict=True):
                values += _plain(cell) if numbers else [str(cell)]
            writer.writerow(values)
        return text.getvalue()


def as_markdown(head: Sequence[str], rows: Sequence[Sequence[str]], *, notes: Sequence[str]) -> str:
    """Lines of text as a Markdown table, notes beneath."""
    lines = [head, ["---"] * len(head), *rows]
    table = ["| " + " | ".join(map(_markdown, line)) + " |" for line in lines]
    return "\n".join([*table, *([""] if notes else []), *notes])


def as_latex(head: Sequence[str], rows: Sequence[Sequence[str]], *, notes: Sequence[str]) -> str:
    """Lines of text as a LaTeX tabular, notes as comments above."""
    body = [" & ".join(map(_tex, line)) + r" \\" for line in (head, *rows)]
    begin = rf"\begin{{tabular}}{{{'l' * len(head)}}}"
    comments = [f"% {' '.join(line.split())}" for line in notes]
    return "\n".join([*comments, begin, r"\hline", body[0], r"\hline", *body[1:], r"\hline", r"\end{tabular}"]) + "\n"


def write_estimate(found: Estimate, kind: Kind) -> str:
    """A number and its interval in one line; what is undefined is called so."""
    if math.isnan(found.value):
        return UNDEFINED
    value = _write(found.value, kind)
    return value if math.isnan(found.low) else f"{value} ({_write(found.low, kind)} to {_write(found.high, kind)})"


def plain_number(value: float, *, n: int = 0, method: str = "") -> Estimate:
    """A number without an interval, as a cell."""
    return Estimate(value, math.nan, math.nan, n, method)


def write_tables(tables: Sequence[Table], folder: Path) -> list[Path]:
    """Write each table as NAME.md, NAME.tex and NAME.csv into the folder; gives the files."""
    written = []
    for table in tables:
        for suffix, text in ((".md", table.markdown()), (".tex", table.latex()), (".csv", table.csv())):
            path = folder / f"{table.name}{suffix}"
            temporary = path.with_name(path.name + ".partial")
            temporary.write_text(text, encoding="utf-8")
            temporary.replace(path)
            written.append(path)
    return written


def _write(value: float, kind: Kind) -> str:
    if kind == "share":
        return format_percent(value)
    if kind == "number":
        return format_number(value)
    # Three digits: a distance has no unit and may be of any size. Never powers of ten.
    if value == 0:
        return "0"
    if abs(value) >= 1000:
        return f"{value:,.0f}".replace("-", "−")
    digits = min(9, max(0, 2 - math.floor(math.log10(abs(value)))))
    text = f"{value:.{digits}f}"
    text = text.rstrip("0").rstrip(".") if "." in text else text
    return text.replace("-", "−") if text.strip("-0.") else "0"


def _plain(cell: Cell) -> list[str]:
    if isinstance(cell, str):
        return [cell, "", ""]
    return ["" if (number := as_json(getattr(cell, side))) is None else repr(number) for side in _SIDES]


def _markdown(text: str) -> str:
    return re.sub(r"([|<\\])", r"\\\1", " ".join(text.split()))


def _tex(text: str) -> str:
    return "".join(_TEX.get(sign, sign) for sign in " ".join(text.split()))
