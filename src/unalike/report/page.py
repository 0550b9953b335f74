"""Put a report together: read folders, draw, render, write one self-contained HTML file."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import jinja2
from markupsafe import Markup

from unalike import folders
from unalike.errors import FolderError, SettingsError
from unalike.records import FloatArray
from unalike.report import figures, pictures
from unalike.report.audit_view import AuditView, view_audit, weigh_pairs
from unalike.report.desk import Desk, make_desk
from unalike.report.explain import view_explain
from unalike.report.fidelity import view_fidelity
from unalike.report.frontier import find_points, view_frontier
from unalike.report.read import COMPARISONS, Audit, read_audit
from unalike.report.section import Section
from unalike.report.tables import write_tables
from unalike.report.utility import view_utility
from unalike.report.words import (
    describe_diversity,
    format_count,
    format_number,
    format_percent,
    format_probability,
    format_value,
)

# Characters of picture data in a page, in all: with a desk it stays below 25 MB.
PICTURE_BUDGET = 20_000_000
# Those of pairs that stand in the page without a desk: it must open on a phone and pass through a hospital's mail.
STILL_BUDGET = 6_500_000
STRIP = 5
OPEN_PAIRS, OPEN_SUBJECTS = 6, 10


# Folders that are a section of a page, and how it is made.
_SECTIONS: dict[str, Callable[..., Section]] = {
    "fidelity": view_fidelity,
    "utility": view_utility,
    "explain": view_explain,
}


def write_report(
    source: str | Path | Sequence[str | Path],
    *,
    out: Path | None = None,
    title: str | None = None,
    shareable: bool = False,
) -> Path:
    """Write one self-contained HTML page about audits, measurements of fidelity and of utility, and explanations.

    An internal page about one audit that kept pairs has the evidence desk, on which a steward decides on each of them;
    it is the only page with a script.

    Figures are also kept as PNG and SVG in each folder's ``figures/``, tables as Markdown, LaTeX and CSV beside its
    header; what compares several folders beside the page.

    Parameters
    ----------
    source
        A folder, or several: audits are compared, and where an audit and a utility speak of the same samples, privacy
        is held against utility.
    out
        The page; for one folder by default ``report.html`` (``report-shareable.html``) in it.
    title
        Heading of the page; by default the name of what was audited or measured.
    shareable
        Leave out every picture, every pair and every pseudonym. Such a page never opens the evidence.

    Returns
    -------
    Path
        The page that was written.

    Raises
    ------
    FolderError
        A folder is none of these or unfinished, a part of it is missing or damaged, or the page cannot be written.
    SettingsError
        No folder was given, or several without ``out``.
    """
    sources = [Path(source)] if isinstance(source, str | Path) else [Path(folder) for folder in source]
    if not sources:
        raise SettingsError("No folder was given. Name at least one audit, fidelity, utility or explain folder.")
    if out is None and len(sources) > 1:
        raise SettingsError("A comparison belongs to none of its folders: say where it goes (--out).")
    out = Path(out) if out is not None else sources[0] / _page_name(shareable)
    measured = [folder for folder in sources if folders.kind_of(folder) in _SECTIONS]
    audits = [read_audit(folder, shareable=shareable) for folder in sources if folder not in measured]
    try:
        budget = STILL_BUDGET // max(1, len(audits))
        with_desk = len(audits) == 1 and bool(audits[0].pairs)
        most = OPEN_PAIRS if with_desk else None
        views = [view_audit(each, number, budget=budget, most=most) for number, each in enumerate(audits, 1)]
        desk = make_desk(audits[0], budget=PICTURE_BUDGET - weigh_pairs(views[0])) if with_desk else None
        sections = [_view_section(folder, number, shareable) for number, folder in enumerate(measured, 1)]
        out.parent.mkdir(parents=True, exist_ok=True)
        utilities = [
            folders.read_header(each, kind="utility") for each in measured if folders.kind_of(each) == "utility"
        ]
        frontier = view_frontier(find_points(audits, utilities), out.parent / folders.FIGURES)
        if frontier is not None:
            sections.insert(0, frontier)
            write_tables(frontier.tables, out.parent)
        overview = _draw_overview(audits, out.parent / folders.FIGURES) if len(audits) > 1 else None
        html = _render(views, sections, title=title, shareable=shareable, overview=overview, desk=desk)
        _write_text(out, html)
    except OSError as error:
        place = error.filename or out
        raise FolderError(f"{place} cannot be written ({error.strerror or error}). Choose another --out.") from error
    return out


def _view_section(folder: Path, number: int, shareable: bool) -> Section:
    section = _SECTIONS[str(folders.kind_of(folder))](folder, anchor=f"part-{number}")
    write_tables(section.tables, folder)
    return replace(section, pictures=()) if shareable else section


def _page_name(shareable: bool) -> str:
    """Two names, so that the page for others is never mistaken for the one with patients in it."""
    page = Path(folders.REPORT)
    return f"{page.stem}-shareable{page.suffix}" if shareable else page.name


def _write_text(path: Path, text: str) -> None:
    temporary = path.with_name(path.name + ".partial")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def _draw_overview(audits: Sequence[Audit], directory: Path) -> Markup:
    directory.mkdir(exist_ok=True)
    wanted = ("synthetic-train", "holdout-train")
    series: list[FloatArray] = [each.highest[name] for each in audits for name in wanted if name in each.highest]
    figure = figures.draw_comparison(audits, bins=figures.choose_bins(series))
    svg = figures.save_figure(figure, directory / "comparison")
    label = "Histograms of highest correlations, one row for each audit"
    return Markup(figures.inline_svg(svg, prefix="comparison", label=label))  # noqa: S704


@functools.cache
def page_environment(*before: str) -> jinja2.Environment:
    """The report's templates, look and ways to write numbers; templates of the packages ``before`` go first."""
    environment = jinja2.Environment(
        loader=jinja2.ChoiceLoader([jinja2.PackageLoader(name) for name in (*before, "unalike.report")]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": format_number,
        "percent": format_percent,
        "count": format_count,
        "probability": format_probability,
        "as_kind": format_value,
    }
    return environment


def _render(
    views: Sequence[AuditView],
    sections: Sequence[Section],
    *,
    title: str | None,
    shareable: bool,
    overview: Markup | None,
    desk: Desk | None,
) -> str:
    # Only an audit that says so of itself (a procedural cohort) has no patients in its pictures.
    patients = any(view.audit.content.get("internal", True) for view in views) or any(
        section.pictures for section in sections
    )
    try:
        return (
            page_environment()
            .get_template("page.html.j2")
            .render(
                views=views,
                sections=sections,
                title=title or _default_title(views, sections),
                kicker="Are these synthetic images copies of patients?" if views else sections[0].kicker,
                shareable=shareable,
                internal=not shareable and patients,
                overview=overview,
                desk=desk,
                comparisons=COMPARISONS,
                difference_full=figures.DIFFERENCE_FULL,
                largest_side=pictures.LARGEST_SIDE,
                open_pairs=OPEN_PAIRS,
                open_subjects=OPEN_SUBJECTS,
                strip=STRIP,
                made_by=folders.made_by(),
                describe_diversity=describe_diversity,
            )
        )
    except (jinja2.UndefinedError, KeyError, TypeError) as error:
        damaged = ", ".join([str(view.audit.header.path) for view in views] + [section.heading for section in sections])
        raise FolderError(f"{damaged} lacks something a report needs ({error}). Run the audit again.") from error


def _default_title(views: Sequence[AuditView], sections: Sequence[Section]) -> str:
    if len(views) == 1:
        return views[0].audit.name
    return f"Comparison of {len(views)} audits" if views else sections[0].heading
