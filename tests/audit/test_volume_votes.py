"""Slices of one volume vote for one subject."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image
from tests.conftest import draw_person

from unalike.audit.run import audit_samples
from unalike.audit.settings import AuditSettings


def write_volumes(out: Path, volumes: list[np.ndarray], prefix: str) -> None:
    out.mkdir(exist_ok=True)
    for index, volume in enumerate(volumes):
        for place, image in enumerate(volume):
            Image.fromarray(image).save(out / f"{prefix}{index:02d}_{place}.png")


def worn(volume: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Some noise."""
    return np.clip(volume + random.normal(0, 10, volume.shape), 0, 255).astype(np.uint8)


def test_slices_of_copied_volumes_vote_for_their_patient(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    people = [draw_person(random, images=4) for _ in range(90)]
    write_volumes(tmp_path / "train", people[:30], "p")
    write_volumes(tmp_path / "holdout", people[30:], "q")
    fakes = [worn(volume, random) for volume in people[:2]] + [draw_person(random, images=4) for _ in range(2)]
    write_volumes(tmp_path / "fakes", fakes, "v")
    options = {"synthetic": tmp_path / "fakes", "train": tmp_path / "train", "holdout": tmp_path / "holdout"}
    settings = AuditSettings(planted=0, level=0.1, subject_pattern=r"([pq]\d+)_", volume_pattern=r"(v\d+)_")
    result = audit_samples(out=tmp_path / "audit", settings=settings, **options)
    assert [vote.slices for vote in result.volumes] == [4] * 4
    flagged = [vote for vote in result.volumes if vote.flagged]
    assert len(flagged) == 2
    assert all(vote.agreement >= 0.5 for vote in flagged)
    assert len({vote.subject for vote in flagged}) == 2
    assert result.verdict.decision == "copies found"
    assert "2 of 4 synthetic volumes are flagged" in result.verdict.headline


def test_without_volumes_nobody_votes(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for name in ("train", "holdout", "fakes"):
        write_volumes(tmp_path / name, [draw_person(random) for _ in range(25)], name)
    options = {"synthetic": tmp_path / "fakes", "train": tmp_path / "train", "holdout": tmp_path / "holdout"}
    result = audit_samples(out=tmp_path / "audit", settings=AuditSettings(planted=0), **options)
    assert result.volumes == ()
