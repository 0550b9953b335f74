"""Figures and pictures: kept on disk, the same each time, and true to the pixels."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import matplotlib as mpl
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from unalike.records import Estimate
from unalike.report import write_report
from unalike.report.figures import INK, STYLES, choose_bins, count_p_values, draw_p_values, draw_power, inline_svg
from unalike.report.pictures import Picture, draw_difference, draw_picture, draw_scatter, show_window
from unalike.report.read import Power

MakeAudit = Callable[..., Path]
SHAREABLE = ("highest-correlations", "highest-correlations-with-holdout", "p-values", "power")
FIGURES = (*SHAREABLE, "closest-pairs")
WHOLE = (0.0, 255.0)


def decode(picture: Picture) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(picture.uri.partition(",")[2])))


def test_figures_are_kept_and_the_same_each_time(make_audit: MakeAudit) -> None:
    folder = make_audit()
    write_report(folder)
    names = [f"{name}{suffix}" for name in FIGURES for suffix in (".png", ".svg")]
    first = {name: (folder / "figures" / name).read_bytes() for name in names}
    write_report(folder)
    assert {name: (folder / "figures" / name).read_bytes() for name in names} == first
    for name in names:
        if name.endswith(".svg"):
            ElementTree.fromstring(first[name])


def test_a_shareable_report_draws_no_pairs(make_audit: MakeAudit) -> None:
    folder = make_audit()
    write_report(folder, shareable=True)
    assert sorted(path.stem for path in (folder / "figures").glob("*.svg")) == sorted(SHAREABLE)


def test_drawing_leaves_matplotlib_as_it_was(make_audit: MakeAudit) -> None:
    before = dict(mpl.rcParams)
    write_report(make_audit(name="名前 with letters that the font lacks"))
    assert dict(mpl.rcParams) == before


def test_inlined_figures_take_the_colours_of_the_page(make_audit: MakeAudit) -> None:
    html = write_report(make_audit()).read_text(encoding="utf-8")
    figure = html[html.index("<svg role") if "<svg role" in html else html.index('role="img"') :]
    figure = figure[: figure.index("</svg>")]
    assert "currentColor" in figure
    assert "var(--synthetic-train)" in figure
    assert INK not in figure
    assert not [style for style in STYLES.values() if style.colour in figure]


def test_inlined_figures_have_their_own_ids() -> None:
    svg = '<?xml version="1.0"?><svg xmlns="http://w" width="9"><style>*{}</style><path id="a"/>'
    svg += '<use xlink:href="#a" clip-path="url(#b)"/></svg>'
    inlined = inline_svg(svg, prefix="p", label="l")
    assert inlined == ('<svg role="img" aria-label="l"><path id="p-a"/><use href="#p-a" clip-path="url(#p-b)"/></svg>')


def test_bins_hold_everything_that_is_defined() -> None:
    bins = choose_bins([np.array([0.62, np.nan]), np.array([0.999])])
    assert bins[0] == pytest.approx(0.6)
    assert bins[-1] == pytest.approx(1.0)
    assert np.diff(choose_bins([np.array([1.0])])).min() > 0
    assert np.diff(choose_bins([np.array([np.nan])])).min() > 0


def test_window_is_the_whole_range_for_compared_bytes_only() -> None:
    low = np.full((2, 4, 4), 3, dtype=np.uint8)
    assert show_window(low, low, compared=True) == WHOLE
    assert show_window(low, low + 1, compared=False) == (0.0, 4.0)
    assert show_window(low.astype(np.uint16), compared=True) == (0.0, 3.0)
    assert show_window(np.zeros((1, 2, 2), dtype=np.uint16), compared=True) == (0.0, 1.0)


def test_differences_are_signed_and_share_one_scale() -> None:
    train = np.full((1, 4), 100, dtype=np.uint8)
    synthetic = np.array([[100, 164, 36, 255]], dtype=np.uint8)
    drawn = np.asarray(decode(draw_difference(synthetic, train, window=WHOLE, full=64 / 255)).convert("RGB"))
    equal, brighter, darker, beyond = drawn[0]
    assert equal.tolist() == [0, 0, 0]
    assert brighter.tolist() == beyond.tolist() == [255, 176, 46]
    assert darker.tolist() == [77, 163, 255]


def test_scatter_of_equal_images_is_the_diagonal() -> None:
    image = np.arange(256, dtype=np.uint8).reshape(16, 16)
    drawn = np.asarray(decode(draw_scatter(image, image, window=WHOLE)))[..., 3] > 0
    assert (drawn == np.eye(len(drawn), dtype=bool)[::-1]).all()


def test_large_pictures_are_averaged() -> None:
    board = np.indices((512, 512)).sum(axis=0).astype(np.uint8) % 2 * 254
    drawn = draw_picture(board, window=WHOLE)
    assert (drawn.width, drawn.height) == (256, 256)
    assert (np.asarray(decode(drawn)) == 127).all()


def test_p_values_fall_into_bins_that_hold_their_upper_end() -> None:
    """By hand: 99 subjects, 20 bins of five steps each."""
    p_values = np.array([0.01, 0.05, 0.06, 1.0, np.nan])
    shares = count_p_values(p_values, subjects=99)
    assert len(shares) == 20
    assert shares[[0, 1, 19]].tolist() == [0.5, 0.25, 0.25]
    assert count_p_values(np.array([np.nan]), subjects=99).tolist() == [0.0] * 20


@pytest.mark.parametrize(
    ("subjects", "bins"), [(1, 2), (4, 5), (8, 9), (12, 13), (22, 23), (32, 11), (39, 20), (1000, 20)]
)
def test_few_subjects_make_fewer_bins(subjects: int, bins: int) -> None:
    assert len(count_p_values(np.array([1.0]), subjects=subjects)) == bins


@given(st.integers(1, 38))
def test_p_values_of_nobody_are_flat(subjects: int) -> None:
    """All values that P subjects with an image each allow, once each, fill all bins alike."""
    steps = subjects + 1
    shares = count_p_values(np.arange(1, steps + 1) / steps, subjects=subjects)
    np.testing.assert_allclose(shares, 1 / len(shares), rtol=1e-12)


def test_power_figure_shows_each_share_where_it_is() -> None:
    rows = [
        Power("none", Estimate(0.75, 0.5, 1.0, 4, "m"), Estimate(0.25, 0.0, 0.5, 4, "m"), {}),
        Power("blur $", Estimate(float("nan"), float("nan"), float("nan"), 0, "m"), None, {}),
    ]
    (axes,) = draw_power(rows).axes
    planted, sham = axes.lines
    assert np.asarray(planted.get_xdata()).tolist() == [75.0]
    assert np.asarray(sham.get_xdata()).tolist() == [25.0]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["none", "blur $"]
    # The first change stands on top, its planted copies above its sham ones.
    assert axes.yaxis_inverted()
    assert np.asarray(planted.get_ydata())[0] < np.asarray(sham.get_ydata())[0]


def test_p_value_figure_has_the_level_of_nobody() -> None:
    (axes,) = draw_p_values(np.array([0.1, 0.9]), subjects=9).axes
    assert np.asarray(axes.lines[0].get_ydata()).tolist() == [10.0, 10.0]
