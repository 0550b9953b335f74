"""Cohorts small enough to check by hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from unalike import folders
from unalike.cohort.store import ImageWriter

MakeCohort = Callable[..., Path]


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNALIKE_PROGRESS", "off")


@pytest.fixture
def make_cohort(tmp_path: Path) -> MakeCohort:
    def make(
        *,
        channels: Sequence[str] = ("t1",),
        subjects: int = 6,
        slices: int = 2,
        holdout: int = 2,
        size: tuple[int, int] = (8, 8),
        dtype: Any = np.uint8,
    ) -> Path:
        """Random images; the last ``holdout`` subjects are held out. A mask has the levels 0, 50 and 120."""
        out = tmp_path / "cohort"
        folders.begin_folder(out, kind="cohort", settings={})
        dtype = np.dtype(dtype)
        writer = ImageWriter(out, channels=channels, height=size[0], width=size[1], dtype=dtype)
        rng = np.random.default_rng(7)
        for subject in range(subjects):
            for index in range(slices):
                image = rng.integers(0, 255 if dtype == np.uint8 else 4000, size=(len(channels), *size)).astype(dtype)
                if "mask" in channels:
                    image[list(channels).index("mask")] = rng.choice([0, 50, 120], size=size)
                role = "holdout" if subject >= subjects - holdout else "train"
                record = {"subject": f"s{subject}", "source": f"f{subject}", "slice": index, "role": role}
                writer.append(image, record)
        content = writer.close()
        folders.finish_folder(out, kind="cohort", settings={}, seed=0, inputs={}, content=content)
        return out

    return make
