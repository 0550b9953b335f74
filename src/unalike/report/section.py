"""A part of a page that is not an audit: words, tables that can be copied, and figures."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup, escape
from matplotlib.figure import Figure
from PIL import Image

from unalike.report import figures
from unalike.report.pictures import Picture
from unalike.report.tables import Table


@dataclass(frozen=True)
class FigureView:
    """A figure of numbers, drawn as SVG, with what it shows."""

    svg: Markup
    caption: str


@dataclass(frozen=True)
class PictureView:
    """A picture in which patients may be seen, with what it shows: for internal pages alone."""

    picture: Picture
    caption: str


@dataclass(frozen=True)
class Section:
    """One folder's part of the page, in the order in which it is shown."""

    anchor: str
    kicker: str
    heading: str
    warnings: tuple[str, ...] = ()
    lead: tuple[str, ...] = ()
    tables: tuple[Table, ...] = ()
    figures: tuple[FigureView, ...] = ()
    pictures: tuple[PictureView, ...] = ()
    notes: tuple[str, ...] = ()


def read_picture_file(path: Path) -> Picture:
    """A PNG of ours as picture data for a page. Raises OSError if it cannot be read."""
    with Image.open(path) as picture:
        width, height = picture.size
    return Picture("data:image/png;base64," + base64.b64encode(path.read_bytes()).decode(), width, height)


def keep_figure(figure: Figure, place: Path, *, anchor: str, caption: str) -> FigureView:
    """Save a figure as PNG and SVG at ``place`` (without suffix), and take it into the page."""
    place.parent.mkdir(exist_ok=True)
    svg = figures.save_figure(figure, place)
    inlined = figures.inline_svg(svg, prefix=f"{anchor}-{place.name}", label=escape(caption))
    return FigureView(Markup(inlined), caption)  # noqa: S704 - drawn here, labels escaped by Matplotlib
