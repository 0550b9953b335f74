"""Where an image's pixels come from: placements agree with what resizing, padding and cropping do."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unalike.images.geometry import Placement, find_content, fit_plane


def test_a_placement_by_hand() -> None:
    # 4 × 8 into 8 × 8: twice as wide is no change, so rows are padded by two above and below.
    place = Placement.of((4, 8)).fitted((4, 8), 8, fit="pad")
    assert (place.source, place.scale, place.offset) == ((4, 8), (1.0, 1.0), (-2.0, 0.0))
    assert place.frame(8, 8) == (2, 6, 0, 8)
    # Twice the size: the first stored pixel's centre lies a quarter of a source pixel before the source's first.
    place = Placement.of((4, 4)).fitted((4, 4), 8, fit="pad")
    assert (place.scale, place.offset) == ((0.5, 0.5), (-0.25, -0.25))
    # Cropped by one row and two columns, then twice the size.
    place = Placement.of((5, 6)).cropped(1, 2).fitted((4, 4), 8, fit="pad")
    assert (place.scale, place.offset) == ((0.5, 0.5), (0.75, 1.75))


@settings(deadline=None, max_examples=60)
@given(
    st.tuples(st.integers(6, 40), st.integers(6, 40)), st.integers(8, 48), st.sampled_from(["pad", "stretch", "crop"])
)
def test_a_ramp_shows_where_its_pixels_come_from(shape: tuple[int, int], size: int, fit: str) -> None:
    """Resizing keeps a linear ramp linear away from its edges, so gray levels tell source coordinates."""
    place = Placement.of(shape).fitted(shape, size, fit=fit)
    top, bottom, left, right = place.frame(size, size)
    for axis in (0, 1):
        ramp = np.indices(shape)[axis].astype(np.float32)
        fitted = fit_plane(ramp, size, fit=fit)
        expected = place.scale[axis] * np.arange(size) + place.offset[axis]
        seen = np.moveaxis(fitted, axis, 0)[:, (left + right) // 2 if axis == 0 else (top + bottom) // 2]
        margin = 3 * max(1.0, place.scale[axis])
        inside = (expected > margin) & (expected < shape[axis] - 1 - margin)
        np.testing.assert_allclose(seen[inside], expected[inside], atol=0.1)


@settings(deadline=None, max_examples=60)
@given(
    st.tuples(st.integers(2, 40), st.integers(2, 40)), st.integers(4, 48), st.sampled_from(["pad", "stretch", "crop"])
)
def test_the_frame_is_what_is_no_padding(shape: tuple[int, int], size: int, fit: str) -> None:
    top, bottom, left, right = Placement.of(shape).fitted(shape, size, fit=fit).frame(size, size)
    lit = fit_plane(np.full(shape, 200, np.uint8), size, fit=fit) > 0
    assert lit[top:bottom, left:right].all()
    assert lit.sum() == (bottom - top) * (right - left)


def test_black_borders_are_found() -> None:
    image = np.zeros((2, 6, 7), np.uint8)
    assert find_content(image) is None
    image[0, 2, 3] = image[1, 4, 5] = 9
    assert find_content(image) == (slice(2, 5), slice(3, 6))


@pytest.mark.parametrize("index", [0, 7])
def test_a_placement_as_a_matrix(index: int) -> None:
    place = Placement((9, 9), (2.0, 3.0), (0.5, -1.0))
    column, row, slice_, one = place.as_matrix(index) @ (4, 5, 0, 1)
    assert (column, row, slice_, one) == (3 * 4 - 1, 2 * 5 + 0.5, index, 1)
