"""Poses: what a match was found in is undone, so that both pictures lie alike."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from unalike.report.poses import AS_IT_IS, POSE_NAMES, lay_like_query
from unalike.similarity.gallery import POSES, Pose

PICTURE = np.arange(9, dtype=np.uint8).reshape(1, 3, 3)


def test_poses_by_hand() -> None:
    """A query turned by a quarter matches: [[6, 3, 0], …] is the query of which [[0, 1, 2], …] is the turned form."""
    assert lay_like_query(PICTURE, AS_IT_IS)[0].tolist() == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    assert lay_like_query(PICTURE, "left-right")[0].tolist() == [[2, 1, 0], [5, 4, 3], [8, 7, 6]]
    assert lay_like_query(PICTURE, "diagonal")[0].tolist() == [[0, 3, 6], [1, 4, 7], [2, 5, 8]]
    assert lay_like_query(PICTURE, "quarter turn")[0].tolist() == [[2, 5, 8], [1, 4, 7], [0, 3, 6]]


def test_poses_are_those_of_the_search() -> None:
    assert tuple(pose.name for pose in POSES) == POSE_NAMES


@pytest.mark.parametrize("pose", POSES, ids=[pose.name for pose in POSES])
def test_what_the_search_turned_is_turned_back(pose: Pose) -> None:
    query = np.random.default_rng(0).integers(0, 256, (2, 3, 5, 5), dtype=np.uint8)
    matched = pose.apply(torch.from_numpy(query)).numpy()
    np.testing.assert_array_equal(lay_like_query(matched, pose.name), query)


def test_flips_keep_pictures_that_are_not_square_and_turns_refuse_them() -> None:
    wide = np.zeros((2, 3, 4), dtype=np.uint8)
    assert lay_like_query(wide, "half turn").shape == wide.shape
    with pytest.raises(ValueError, match="square"):
        lay_like_query(wide, "quarter turn")
    with pytest.raises(ValueError, match="not a pose"):
        lay_like_query(PICTURE, "sideways")
