from __future__ import annotations

import csv
import math
from pathlib import Path

import pytest

from unalike.records import Estimate
from unalike.report.tables import Column, Table, plain_number, write_estimate, write_tables

NAN = math.nan


def estimate(value: float, low: float = NAN, high: float = NAN) -> Estimate:
    return Estimate(value, low, high, 10, "test")


def table() -> Table:
    return Table(
        name="small",
        title="A & B",
        columns=(Column("what"), Column("share | %", "share"), Column("distance", "measure")),
        rows=(
            ("50 % of $x_1$ → y", estimate(0.5, 0.25, 0.75), estimate(12345.6)),
            ("undefined", estimate(NAN), "not measured"),
        ),
        notes=("A note.",),
    )


def test_each_form_holds_the_same_numbers() -> None:
    markdown = table().markdown().splitlines()
    assert markdown[0] == r"| what | share \| % | distance |"
    assert markdown[2] == "| 50 % of $x_1$ → y | 50.0% (25.0% to 75.0%) | 12,346 |"
    assert markdown[3] == "| undefined | undefined | not measured |"
    assert markdown[-1] == "A note."
    latex = table().latex()
    assert r"50 \% of \$x\_1\$ $\rightarrow$ y & 50.0\% (25.0\% to 75.0\%) & 12,346 \\" in latex
    assert latex.startswith("% A & B\n% A note.\n")
    rows = list(csv.DictReader(table().csv().splitlines()))
    assert rows[0]["share | % value"] == "0.5"
    assert rows[0]["share | % high"] == "0.75"
    assert rows[0]["distance value"] == "12345.6"
    assert rows[1]["share | % value"] == ""
    assert rows[1]["distance value"] == "not measured"


@pytest.mark.parametrize(
    ("found", "kind", "text"),
    [
        (estimate(-0.0312, -0.05, 0.01), "number", "−0.031 (−0.050 to 0.010)"),
        (estimate(0.000123), "measure", "0.000123"),
        (estimate(0.0), "measure", "0"),
        (estimate(NAN), "share", "undefined"),
        (plain_number(1.0), "share", "100%"),
    ],
)
def test_numbers_in_words(found: Estimate, kind: str, text: str) -> None:
    assert write_estimate(found, kind) == text  # type: ignore[arg-type]


def test_rows_may_have_kinds_of_their_own() -> None:
    mixed = Table(
        "mixed", "", (Column("a"), Column("b")), (("x", estimate(0.5)), ("y", estimate(0.5))), (), ("share", "number")
    )
    assert mixed.lines() == [["x", "50.0%"], ["y", "0.500"]]


def test_files_are_written_for_each_form(tmp_path: Path) -> None:
    written = write_tables([table()], tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["small.csv", "small.md", "small.tex"]
    assert (tmp_path / "small.md").read_text() == table().markdown()
    assert {path.name for path in written} == {"small.csv", "small.md", "small.tex"}
