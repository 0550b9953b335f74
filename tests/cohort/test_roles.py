from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from unalike.cohort.roles import open_roles
from unalike.cohort.settings import PictureSettings
from unalike.errors import InputError

MakePictures = Callable[..., Path]
PATTERN = PictureSettings(subject_pattern=r"(p\d+)_")


def opened(folder: Path, holdout: Path, settings: PictureSettings) -> tuple[list[str], dict[str, str]]:
    with open_roles(synthetic=folder, against=None, train=folder, holdout=holdout, settings=settings) as roles:
        return [*roles.train.subjects, *roles.holdout.subjects], dict(roles.inputs)


@pytest.mark.parametrize("settings", [PATTERN, PictureSettings()])
def test_plain_folders_are_the_same_each_time(make_pictures: MakePictures, settings: PictureSettings) -> None:
    train, holdout = make_pictures("train", subjects=4), make_pictures("holdout", subjects=3, seed=1)
    first, second = (opened(train, holdout, settings) for _ in range(2))
    assert first == second


def test_other_pictures_of_the_same_names_have_other_pseudonyms(make_pictures: MakePictures) -> None:
    train, holdout = make_pictures("train", subjects=4), make_pictures("holdout", subjects=3, seed=1)
    before, inputs = opened(train, holdout, PATTERN)
    file = next(train.glob("*.png"))
    file.write_bytes(file.read_bytes() + b"\0")
    after, others = opened(train, holdout, PATTERN)
    assert not set(before) & set(after)
    assert inputs == others  # the pixels are the same


def test_a_patient_in_both_folders_is_seen_with_a_pattern_alone(make_pictures: MakePictures) -> None:
    train = make_pictures("train", subjects=4)
    with open_roles(synthetic=train, against=None, train=train, holdout=train, settings=PATTERN) as roles:
        assert len(roles.holdout) == 0
        assert np.array_equal(roles.left_out.digests, roles.train.digests)
    other = make_pictures("other", subjects=4)
    for picture in other.iterdir():
        picture.rename(other / f"x{picture.name}")
    with open_roles(synthetic=train, against=None, train=train, holdout=other, settings=PictureSettings()) as roles:
        assert not set(roles.train.subjects) & set(roles.left_out.subjects)


def test_errors_name_what_was_given(make_pictures: MakePictures) -> None:
    train, small = make_pictures("train", subjects=3), make_pictures("small", subjects=2, size=12)
    with (
        pytest.raises(InputError, match="small") as raised,
        open_roles(
            synthetic=train, against=None, train=train, holdout=None, settings=PictureSettings(size=24)
        ) as roles,
    ):
        raise InputError(f"{roles.synthetic.folder.path} and {small} do not fit.")
    assert str(raised.value) == f"{train} and {small} do not fit."
