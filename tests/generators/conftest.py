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
        pixels: np.ndarray | None = None,
        labels: Sequence[str] = (),
    ) -> Path:
        """Random images; the last ``holdout`` subjects are held out, and their images are all white."""
        out = tmp_path / "cohort"
        folders.begin_folder(out, kind="cohort", settings={})
        dtype = np.dtype(dtype)
        writer = ImageWriter(out, channels=channels, height=size[0], width=size[1], dtype=dtype)
        rng = np.random.default_rng(7)
        highest = 255 if dtype == np.uint8 else 4000
        for subject in range(subjects):
            held = subject >= subjects - holdout
            for index in range(slices):
                image = rng.integers(0, highest, size=(len(channels), *size)).astype(dtype)
                if "mask" in channels:
                    image[list(channels).index("mask")] = rng.choice([0, 50, 120], size=size)
                if held:
                    image[:] = np.iinfo(dtype).max
                if pixels is not None:
                    image = pixels[subject * slices + index]
                role = "holdout" if held else "train"
                record = {"subject": f"s{subject}", "source": f"f{subject}", "slice": index, "role": role}
                record |= {"label": labels[subject % len(labels)]} if labels else {}
                writer.append(image, record)
        content = writer.close()
        folders.finish_folder(out, kind="cohort", settings={}, seed=0, inputs={}, content=content)
        return out

    return make
