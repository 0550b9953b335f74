"""Input that makes no sense, or little, to an audit; and failures of comparable software that must not be ours."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from tests.audit.test_audit import QUICK, audit, cohort, new_people, noisy, write_samples  # noqa: F401 - a fixture
from tests.conftest import draw_person

from unalike import folders
from unalike.audit.run import audit_samples
from unalike.audit.settings import AuditSettings
from unalike.cohort.store import ImageFolder, ImageWriter, open_images
from unalike.errors import InputError


def write_cohort(out: Path, images: np.ndarray, subjects: list[str], roles: list[str]) -> ImageFolder:
    folders.begin_folder(out, kind="cohort", settings={})
    _, channels, height, width = images.shape
    names = [f"c{index}" for index in range(channels)]
    writer = ImageWriter(out, channels=names, height=height, width=width, dtype=images.dtype)
    for image, subject, role in zip(images, subjects, roles, strict=True):
        writer.append(image, {"subject": subject, "source": subject, "role": role})
    folders.finish_folder(out, kind="cohort", settings={}, seed=0, inputs={}, content=writer.close())
    return open_images(out)


def test_no_samples(cohort: ImageFolder, tmp_path: Path) -> None:  # noqa: F811
    empty = write_samples(tmp_path / "s", np.zeros((0, 1, 24, 24), np.uint8), cohort)
    with pytest.raises(InputError, match="holds no synthetic images"):
        audit(tmp_path, empty, against=cohort.path)
    assert not (tmp_path / "audit").exists()


def test_other_channels_are_named_with_the_next_step(cohort: ImageFolder, tmp_path: Path) -> None:  # noqa: F811
    other = write_cohort(tmp_path / "o", np.zeros((3, 2, 24, 24), np.uint8), ["a", "b", "c"], ["train"] * 3)
    with pytest.raises(InputError, match=r"channels c0, c1, train has gray. Prepare both"):
        audit(tmp_path, other.path, train=cohort.path)


def test_one_holdout_subject_cannot_tell(tmp_path: Path) -> None:
    people = new_people(30)
    small = write_cohort(
        tmp_path / "c", people[:12], [f"s{i}" for i in range(11)] + ["s11"], ["train"] * 11 + ["holdout"]
    )
    result = audit(tmp_path, write_samples(tmp_path / "s", noisy(people[:4]), small), against=small.path)
    assert (result.verdict.decision, result.flagged) == ("cannot tell", 0)
    assert "1 holdout subject cannot certify any copy" in result.verdict.headline
    json.loads((tmp_path / "audit" / "audit.json").read_text())


def test_samples_that_are_all_the_same_image(cohort: ImageFolder, tmp_path: Path) -> None:  # noqa: F811
    """Collapsed to one stranger: that is no copy; collapsed to one patient: all are."""
    stranger = np.repeat(new_people(1, seed=5), 12, axis=0)
    result = audit(tmp_path, write_samples(tmp_path / "s", stranger, cohort), against=cohort.path)
    table = pq.read_table(tmp_path / "audit" / folders.QUERIES)
    assert len(set(table["p_value"].to_pylist())) == 1
    assert result.exposed_subjects <= 1
    patient = np.repeat(noisy(cohort.read(cohort.rows("train")[:1])), 30, axis=0)
    copied = audit_samples(
        synthetic=write_samples(tmp_path / "p", patient, cohort),
        against=cohort.path,
        out=tmp_path / "audit2",
        settings=QUICK,
    )
    assert (copied.verdict.decision, copied.flagged, copied.exposed_subjects) == ("copies found", 30, 1)


def test_constant_images_on_all_sides(tmp_path: Path) -> None:
    images = np.full((40, 1, 16, 16), 7, np.uint8)
    roles = ["train"] * 20 + ["holdout"] * 20
    flat = write_cohort(tmp_path / "c", images, [f"s{i}" for i in range(40)], roles)
    samples = write_samples(tmp_path / "s", np.concatenate([images[:2], new_people(1)[:, :, :16, :16]]), flat)
    result = audit(tmp_path, samples, against=flat.path)
    # Equal digests are equal pixels, but a constant image shows nobody.
    assert (result.verdict.decision, result.flagged) == ("cannot tell", 0)
    assert "NaN" not in (tmp_path / "audit" / "audit.json").read_text()


def test_extreme_pixels(tmp_path: Path) -> None:
    """Black, white, checkerboards and single bright pixels beside ordinary images."""
    random = np.random.default_rng(0)
    board = (np.indices((16, 16)).sum(axis=0) % 2 * 255).astype(np.uint8)
    point = np.zeros((16, 16), np.uint8)
    point[3, 4] = 255
    odd = np.stack([board, 255 - board, point, np.full((16, 16), 255, np.uint8)])[:, None]
    people = np.concatenate([draw_person(random, size=16) for _ in range(56)])[:, None]
    images = np.concatenate([odd, people])
    mixed = write_cohort(tmp_path / "c", images, [f"s{i}" for i in range(60)], ["train"] * 30 + ["holdout"] * 30)
    result = audit(tmp_path, write_samples(tmp_path / "s", images[:6], mixed), against=mixed.path)
    assert result.flagged == 5  # pixel for pixel, but for the white one, which is undefined
    assert result.counts["undefined"] == 1


def test_the_reference_is_never_thinned_out(tmp_path: Path) -> None:
    """A subject with very many images, and a copy of the last image of the last one."""
    random = np.random.default_rng(0)
    many = draw_person(random, images=700)[:, None]
    others = new_people(50)
    images = np.concatenate([many, others])
    subjects = ["many"] * 700 + [f"s{i}" for i in range(50)]
    large = write_cohort(tmp_path / "c", images, subjects, ["train"] * 725 + ["holdout"] * 25)
    copies = write_samples(tmp_path / "s", noisy(images[[699, 724]]), large)
    settings = AuditSettings(planted=0, level=0.2)
    result = audit(tmp_path, copies, against=large.path, settings=settings)
    assert result.flagged == 2
    assert pq.read_table(tmp_path / "audit" / folders.QUERIES)["reference_subject"].to_pylist() == ["many", "s24"]


def test_a_threshold_learned_from_the_wrong_side_would_flag_everybody(cohort: ImageFolder, tmp_path: Path) -> None:  # noqa: F811
    """Images of the holdout itself, as synthetic ones, are not copies of train."""
    held = write_samples(tmp_path / "s", noisy(cohort.read(cohort.rows("holdout"))), cohort)
    result = audit(tmp_path, held, against=cohort.path)
    assert result.flagged == 0
    assert result.estimates["closer_to_train_share"].high < 0.5
