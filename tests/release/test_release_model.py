"""Weights leave only after they were asked who was in their training set."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.conftest import draw_person

from unalike import folders
from unalike.audit.membership_settings import MembershipSettings
from unalike.cli import run as run_command
from unalike.cohort.build import prepare_cohort
from unalike.cohort.settings import PrepareSettings
from unalike.cohort.store import ImageFolder, digest_pixels
from unalike.errors import InputError
from unalike.release.model import release_model
from unalike.release.run import Override
from unalike.runs.train import train_generator

QUICK = MembershipSettings(splits=20, permutations=200)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cohort of 300 subjects, half held out, and a run of each control."""
    place = tmp_path_factory.mktemp("models")
    pictures = place / "pictures"
    pictures.mkdir()
    random = np.random.default_rng(0)
    for subject in range(300):
        Image.fromarray(draw_person(random, size=12)[0]).save(pictures / f"patient{subject:03d}.png")
    settings = PrepareSettings(subject_pattern=r"(patient\d+)", holdout=0.5, near_duplicates=0.0)
    prepare_cohort(source=pictures, out=place / "cohort", settings=settings)
    for kind in ("gaussian", "memorizer"):
        train_generator(kind=kind, cohort=place / "cohort", out=place / kind)
    return place


class Forgetful:
    """A model that treats all images alike."""

    name, levels = "forgetful", ("loss",)

    def losses(self, images: np.ndarray, *, seed: int) -> np.ndarray:
        digests = [int(digest_pixels(image)[:8], 16) for image in images]
        return np.asarray([[np.random.default_rng(digest).normal()] for digest in digests])


class Remembering(Forgetful):
    """A model that knows its training images."""

    def __init__(self, cohort: ImageFolder) -> None:
        self.known = set(cohort.column("digest")[cohort.rows("train")].tolist())

    def losses(self, images: np.ndarray, *, seed: int) -> np.ndarray:
        known = np.asarray([[digest_pixels(image) in self.known] for image in images])
        return super().losses(images, seed=seed) - 3.0 * known


def test_a_model_that_forgets_leaves_with_its_card(world: Path, tmp_path: Path) -> None:
    found = release_model(
        run=world / "gaussian", against=world / "cohort", out=tmp_path / "out", model=Forgetful(), settings=QUICK
    )
    assert found.decision == "RELEASE", found.reasons
    bundle = found.bundle
    assert bundle is not None
    assert folders.digest_tree(bundle / "model") == folders.digest_tree(world / "gaussian" / "model")
    card = json.loads((bundle / "card.json").read_text())
    assert card["membership"]["decision"] == "membership does not show"
    assert "Akbar" in (bundle / "README.md").read_text()
    subprocess.run(["sha256sum", "-c", "--quiet", "checksums.sha256"], cwd=bundle, check=True)
    assert not any("subjects.parquet" in path.name for path in bundle.rglob("*"))


def test_a_model_that_remembers_is_held_and_an_override_says_so(world: Path, tmp_path: Path) -> None:
    from unalike.cohort.store import open_images

    model = Remembering(open_images(world / "cohort"))
    options = {"run": world / "gaussian", "against": world / "cohort", "model": model, "settings": QUICK}
    held = release_model(out=tmp_path / "held", **options)
    assert (held.decision, held.bundle) == ("HELD", None)
    assert not (tmp_path / "held" / "bundle").exists()
    why = "partner of the same hospital"
    forced = release_model(out=tmp_path / "forced", override=Override(why, "A. Berg"), **options)
    assert forced.decision == "HELD"
    assert why in (forced.bundle / "README.md").read_text()
    assert json.loads((forced.bundle / "card.json").read_text())["override"]["reason"] == why


def test_the_memorizer_is_released_by_nobody(world: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="keeps training images"):
        release_model(
            run=world / "memorizer",
            against=world / "cohort",
            out=tmp_path / "out",
            model=Forgetful(),
            override=Override("please"),
        )
    assert not (tmp_path / "out").exists()


def test_the_command_says_what_the_papers_say_first(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(world / "gaussian"), "--against", str(world / "cohort"), "--out", str(tmp_path / "out")]
    code = run_command(["release-model", *arguments, "--permutations", "100", "--splits", "10"])
    captured = capsys.readouterr()
    assert captured.err.startswith("Before you share a model")
    header = folders.read_header(tmp_path / "out", kind="model-release")
    assert code == (0 if header.content["decision"] == "RELEASE" else 3)
