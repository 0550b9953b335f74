"""A finished study's tables, figures and pages, laid out as a paper has them.

``papers`` holds the papers' numbers and finds their study files; ``generic`` what all layouts share; one module a
paper. `write_results` writes everything; a part that cannot be made is told on the page, and hinders no other.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from unalike import folders
from unalike.errors import FolderError
from unalike.report.figures import save_figure
from unalike.report.page import page_environment
from unalike.report.section import FigureView, PictureView, Section, keep_figure, read_picture_file
from unalike.report.tables import write_tables
from unalike.report.words import format_count
from unalike.study.layouts import akbar2025, dewilde2023, nafi2024
from unalike.study.layouts.generic import UNREADABLE, Part, Results, list_failures, summarize
from unalike.study.layouts.papers import find_paper, list_papers

__all__ = ["find_paper", "list_papers", "write_results"]

TABLES = "tables"
LAYOUTS: dict[str, Callable[[Results], Iterator[Part]]] = {
    "akbar2025": akbar2025.lay_out,
    "nafi2024": nafi2024.lay_out,
    "dewilde2023": dewilde2023.lay_out,
}


def write_results(result: Any, place: Path) -> list[Path]:
    """Write a study's tables, figures and pages into ``place``, over earlier ones; gives the files.

    ``tables/NAME.md``, ``.tex`` and ``.csv``; ``figures/NAME.png`` and ``.svg``, where names that end in ``-internal``
    show patients; ``report.html``, which is internal, and ``report-shareable.html``, which has no picture of an image
    and no reason of a failure (it may name files).

    ``result`` is a `StudyResult`: what failed or did not run leaves "not run" in its rows.

    Raises `FolderError` if ``place`` cannot be written.
    """
    results = Results(result)
    made: list[Section] = []
    written: list[Path] = []
    try:
        for folder in (place / TABLES, place / folders.FIGURES):
            # What an earlier form of the study had would otherwise stand beside what it has now.
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
        for part in _make_parts(results):
            section, files = _keep_part(part, place, f"part-{len(made) + 1}", results)
            made.append(section)
            written += files
        for shareable in (False, True):
            written.append(_write_page(results, made, place, shareable=shareable))
    except OSError as error:
        raise FolderError(f"{error.filename or place} cannot be written ({error.strerror or error}).") from error
    return written


def _make_parts(results: Results) -> Iterator[Part]:
    """The parts of the layout and those of any study; one that cannot be made is told among the problems."""
    layout = LAYOUTS.get(results.result.layout)
    if layout is not None:
        yield from _as_far_as_possible(layout, results, results.result.layout)
    yield from _as_far_as_possible(lambda found: iter([summarize(found)]), results, "summary")


def _as_far_as_possible(make: Callable[[Results], Iterator[Part]], results: Results, name: str) -> Iterator[Part]:
    try:
        yield from make(results)
    except UNREADABLE as error:
        results.problems.append(f"the rest of the layout {name} could not be made: {error!r}")


def _keep_part(part: Part, place: Path, anchor: str, results: Results) -> tuple[Section, list[Path]]:
    """Write a part's tables and figures, and make it a section of the page."""
    tables = tuple(table for table in part.tables if table.rows)
    written = write_tables(tables, place / TABLES)
    drawn, pictures = [], []
    for drawing in part.drawings:
        where = place / folders.FIGURES / (drawing.name + ("-internal" if drawing.patients else ""))
        try:
            if drawing.patients:
                save_figure(drawing.figure, where)
                pictures.append(PictureView(read_picture_file(where.with_suffix(".png")), drawing.caption))
            else:
                drawn.append(keep_figure(drawing.figure, where, anchor=anchor, caption=drawing.caption))
        except ValueError as error:  # Matplotlib's, of a figure that has no room
            results.problems.append(f"{drawing.name} could not be drawn: {error}")
            continue
        written += [where.with_suffix(".png"), where.with_suffix(".svg")]
    views: tuple[FigureView, ...] = tuple(drawn)
    section = Section(
        anchor=anchor,
        kicker="",
        heading=part.heading,
        lead=part.lead,
        tables=tables,
        figures=views,
        pictures=tuple(pictures),
        notes=part.notes,
    )
    return section, written


def _write_page(results: Results, made: Sequence[Section], place: Path, *, shareable: bool) -> Path:
    result = results.result
    failures = list_failures(results)
    if shareable:
        failures = [line.partition(". ")[0] for line in failures]
        made = [_without_pictures(section) for section in made]
    else:
        failures += results.problems
    sections = [section for section in made if section.lead or section.tables or section.figures or section.pictures]
    if failures:
        heading = "Cells that failed or did not run"
        sections.insert(0, Section("failures", "", heading, warnings=tuple(failures)))
    page = Path(folders.REPORT)
    path = place / (f"{page.stem}-shareable{page.suffix}" if shareable else page.name)
    html = (
        page_environment("unalike.study")
        .get_template("study.html.j2")
        .render(
            title=result.title,
            note=str(getattr(result, "note", "")),
            sections=sections,
            shareable=shareable,
            done=format_count(sum(done.state == "done" for done in result.cells)),
            planned=format_count(len(result.cells)),
            made_by=folders.made_by(),
        )
    )
    temporary = path.with_name(path.name + ".partial")
    temporary.write_text(html, encoding="utf-8")
    temporary.replace(path)
    return path


def _without_pictures(section: Section) -> Section:
    return Section(
        section.anchor,
        section.kicker,
        section.heading,
        lead=section.lead,
        tables=section.tables,
        figures=section.figures,
        notes=section.notes,
    )
