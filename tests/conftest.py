"""Small worlds for every test: picture folders, volumes, cohorts. Nothing here touches the network."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

os.environ["UNALIKE_PROGRESS"] = "off"
# Two test processes on two cores: one thread each, or they wait for one another.
os.environ.setdefault("OMP_NUM_THREADS", "1")


def draw_person(random: np.random.Generator, *, images: int = 1, size: int = 24) -> np.ndarray:
    """Images (n, size, size) of one subject: a smooth field of their own and a little noise per image."""
    coarse = random.normal(128, 55, (6, 6))
    mix = np.stack([np.interp(np.linspace(0, 5, size), np.arange(6), row) for row in np.eye(6)], axis=1)
    field = mix @ coarse @ mix.T
    noise = random.normal(0, 8, (images, size, size))
    return np.clip(np.rint(field + noise), 0, 255).astype(np.uint8)


@pytest.fixture
def make_pictures(tmp_path: Path) -> Callable[..., Path]:
    """Write PNGs ``pNNN_i.png`` of ``subjects`` people, ``images`` each, into a new folder."""
    from PIL import Image

    def make(name: str = "pictures", *, subjects: int = 30, images: int = 2, size: int = 24, seed: int = 0) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        random = np.random.default_rng(seed)
        for subject in range(subjects):
            for index, image in enumerate(draw_person(random, images=images, size=size)):
                Image.fromarray(image).save(folder / f"p{seed}{subject:03d}_{index}.png")
        return folder

    return make


@pytest.fixture
def make_volumes(tmp_path: Path) -> Callable[..., Path]:
    """Write NIfTI volumes in the BraTS layout: t1, t2 and a label volume, 12 × 14 × 6 voxels."""
    import nibabel as nib

    def make(name: str = "volumes", *, subjects: int = 6, seed: int = 0) -> Path:
        folder = tmp_path / name
        random = np.random.default_rng(seed)
        for subject in range(subjects):
            place = folder / f"case{subject:02d}"
            place.mkdir(parents=True)
            for channel in ("t1", "t2"):
                voxels = random.integers(0, 1000, (12, 14, 6)).astype(np.int16)
                nib.save(nib.Nifti1Image(voxels, np.eye(4)), place / f"case{subject:02d}_{channel}.nii.gz")
            labels = random.choice([0, 1, 2, 4], (12, 14, 6)).astype(np.uint8)
            nib.save(nib.Nifti1Image(labels, np.eye(4)), place / f"case{subject:02d}_seg.nii.gz")
        return folder

    return make
