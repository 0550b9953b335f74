"""Diversity in worlds whose answer is known: distinct noise, one picture, two pictures, the patients themselves."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.conftest import draw_person

from unalike import folders
from unalike.audit.diversity import (
    LEAST_IMAGES,
    Diversity,
    estimate_spread,
    highest_among,
    highest_in_set,
    judge_diversity,
    measure_diversity,
    pick_one_each,
    share_alike,
    threshold_of,
)
from unalike.audit.run import AuditResult, audit_samples
from unalike.audit.settings import AuditSettings
from unalike.cli import run as run_command
from unalike.cohort.build import prepare_cohort
from unalike.cohort.phantom import PhantomSettings, make_phantom
from unalike.cohort.roles import ImageSet
from unalike.cohort.settings import PrepareSettings
from unalike.cohort.store import ImageFolder, ImageWriter, open_images
from unalike.report.words import describe_diversity
from unalike.runs.sample import draw_samples
from unalike.runs.train import train_generator
from unalike.seeds import generator_for
from unalike.similarity.correlation import correlate
from unalike.stats.intervals import estimate_share

CPU = torch.device("cpu")
QUICK = AuditSettings(planted=0, pairs=2)


def write_set(out: Path, images: np.ndarray, subjects: list[str] | None = None, kind: str = "samples") -> ImageSet:
    """A folder with these images (n, C, H, W), each of a subject of its own unless told otherwise."""
    folders.begin_folder(out, kind=kind, settings={})
    channels = ("t1", "mask")[: images.shape[1]]
    writer = ImageWriter(out, channels=channels, height=images.shape[2], width=images.shape[3], dtype=images.dtype)
    for row, image in enumerate(images):
        subject = subjects[row] if subjects else f"s{row:04d}"
        writer.append(image, {"subject": subject, "source": f"f{row}", "role": "train", "seed": row})
    folders.finish_folder(out, kind=kind, settings={}, seed=0, inputs={}, content=writer.close())
    folder = open_images(out, kind=kind)
    return ImageSet(folder, np.arange(len(images), dtype=np.int64))


def noise(count: int, seed: int, size: int = 8) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 1, size, size)).astype(np.uint8)


def people(count: int, seed: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    return np.concatenate([draw_person(random) for _ in range(count)])[:, None]


def repeated(pictures: np.ndarray, count: int, seed: int = 5) -> np.ndarray:
    """These pictures again and again, each time with a little noise."""
    many = np.resize(pictures, (count, *pictures.shape[1:])).astype(int)
    return np.clip(many + np.random.default_rng(seed).integers(-2, 3, many.shape), 0, 255).astype(np.uint8)


def measure(tmp_path: Path, samples: np.ndarray, train: np.ndarray, channels: tuple[int, ...] = (0,)) -> Diversity:
    sets = write_set(tmp_path / "samples", samples), write_set(tmp_path / "train", train, kind="cohort")
    return measure_diversity(*sets, channels=channels, seed=0, device=CPU)


# Known answers


def test_a_tiny_example_by_hand(tmp_path: Path) -> None:
    # Of centred samples (−1, 1, 0, 0), (−1, 0, 1, 0), (1, −1, 0, 0) the correlations are 1/2, −1 and −1/2.
    samples = np.array([[0, 2, 1, 1], [0, 1, 2, 1], [2, 0, 1, 1]], np.uint8).reshape(3, 1, 2, 2)
    # Of centred (−1, −1, 1, 1), (−1, 1, −1, 1), (−1, 1, 1, −1) all correlations are 0.
    train = np.array([[0, 0, 2, 2], [0, 2, 0, 2], [0, 2, 2, 0]], np.uint8).reshape(3, 1, 2, 2)
    found = measure(tmp_path, samples, train)
    assert found.m == 3
    assert found.samples_mean.value == pytest.approx((0.5 + 0.5 - 0.5) / 3, abs=1e-15)
    assert found.train_mean.value == 0.0
    assert found.alike.value == pytest.approx(2 / 3)
    # Samples: Σ(x − x̄)² of pixels 8/3, 2, 2/3, 0. Training images: 0, 8/3, 8/3, 8/3.
    assert found.spread.value == pytest.approx((8 / 3 + 2 + 2 / 3) / 8)
    assert found.verdict == "cannot tell"


def test_distinct_noise_is_varied_with_about_a_twentieth_alike(tmp_path: Path) -> None:
    found = measure(tmp_path, noise(200, 1), noise(200, 2))
    assert (found.m, found.verdict) == (200, "varied")
    assert 0.01 <= found.alike.value <= 0.10
    assert found.alike.low < 0.05 < found.alike.high
    assert found.spread.low < 1 < found.spread.high
    assert found.spread.value == pytest.approx(1, abs=0.05)
    assert found.samples_mean.value == pytest.approx(found.train_mean.value, abs=0.02)
    assert found.warnings() == []


def test_one_image_with_a_little_noise_is_wholly_alike(tmp_path: Path) -> None:
    found = measure(tmp_path, repeated(people(1, 1), 60), people(60, 2))
    assert (found.alike.value, found.verdict) == (1.0, "alike")
    assert found.samples_mean.value > 0.99 > found.train_mean.value
    assert found.spread.high < 0.05
    (warning,) = found.warnings()
    assert warning.startswith("The samples are alike: 100% (94% to 100%) of 60 ")
    assert "mode collapse" in warning
    assert "says little about a generator that draws one picture" in warning


def test_two_pictures_are_alike_though_they_differ_much(tmp_path: Path) -> None:
    one = people(1, 1)
    found = measure(tmp_path, repeated(np.concatenate([one, 255 - one]), 60), people(60, 2))
    assert (found.alike.value, found.verdict) == (1, "alike")
    # A picture and its negative: the spread alone would hardly have noticed.
    assert found.spread.value > 0.8


def test_samples_that_are_the_training_images_are_as_varied(tmp_path: Path) -> None:
    images = people(100, 2)
    found = measure(tmp_path, images, images)
    assert (found.m, found.verdict) == (100, "varied")
    # Of 100 distances five lie above their 95 % quantile, but for nearest neighbours of one another, which are equal.
    assert 0.03 <= found.alike.value <= 0.06
    assert found.samples_mean.value == found.train_mean.value
    assert found.spread.value == 1


def test_a_third_of_twins_is_alike_and_a_tenth_is_not(tmp_path: Path) -> None:
    new, twins = people(200, 1), repeated(people(1, 3), 200)
    mixed = [np.concatenate([twins[:part], new[part:]]) for part in (80, 20)]
    found = [measure(tmp_path / str(place), images, people(200, 2)) for place, images in enumerate(mixed)]
    assert [each.verdict for each in found] == ["alike", "varied"]
    assert [each.alike.value for each in found] == pytest.approx([0.4 + 0.6 * 0.05, 0.1 + 0.9 * 0.05], abs=0.04)


@pytest.mark.parametrize(("samples", "train"), [(LEAST_IMAGES - 1, 40), (40, LEAST_IMAGES - 1), (2, 40), (1, 40)])
def test_nothing_is_told_from_too_few(tmp_path: Path, samples: int, train: int) -> None:
    found = measure(tmp_path, repeated(people(1, 1), samples), people(train, 2))
    assert (found.m, found.verdict) == (min(samples, train), "cannot tell")
    assert found.warnings() == []


def test_the_verdict_needs_the_whole_interval() -> None:
    shares = [estimate_share(found, 20) for found in (9, 10)]
    assert [share.low > 0.25 for share in shares] == [False, True]
    assert [judge_diversity(share, 20) for share in shares] == ["varied", "alike"]
    assert judge_diversity(estimate_share(19, 19), 19) == "cannot tell"
    for verdict, m in (("alike", 60), ("varied", 60), ("cannot tell", 7)):
        text = describe_diversity(verdict, m=m, alike=shares[0], spread=shares[0])
        assert (f"at least {LEAST_IMAGES} samples" in text) == (verdict == "cannot tell")


# Constant images


def test_constant_images_are_alike_to_one_another_and_to_nobody_else() -> None:
    black, grey = np.zeros((1, 1, 8, 8), np.uint8), np.full((1, 1, 8, 8), 9, np.uint8)
    one = noise(1, 1)
    np.testing.assert_array_equal(highest_among(np.concatenate([black, grey])), [1, 1])
    np.testing.assert_array_equal(highest_among(np.concatenate([black, one])), [0, 0])
    np.testing.assert_array_equal(highest_among(np.concatenate([one, black, 255 - one, grey, one])), [1, 1, -1, 1, 1])
    assert np.isnan(highest_among(one)).all()
    assert highest_among(one[:0]).shape == (0,)


@pytest.mark.parametrize("blank", [0, 10])
def test_black_samples_are_alike_even_where_some_patients_are_black(tmp_path: Path, blank: int) -> None:
    train = people(60, 2)
    train[:blank] = 0
    found = measure(tmp_path, np.zeros((60, 1, 24, 24), np.uint8), train)
    assert (found.alike.value, found.samples_mean.value, found.verdict) == (1, 1, "alike")
    assert (found.spread.value, found.spread.low, found.spread.high) == (0, 0, 0)


def test_equal_training_images_leave_the_spread_undefined_and_nothing_else(tmp_path: Path) -> None:
    found = measure(tmp_path, people(30, 1), np.full((30, 1, 24, 24), 7, np.uint8))
    assert (found.train_mean.value, found.alike.value, found.verdict) == (1, 0, "varied")
    assert np.isnan([found.spread.value, found.spread.low, found.spread.high]).all()


# Held against a reference, and what must not matter


def reference(images: np.ndarray) -> np.ndarray:
    everything = correlate(images, images)
    np.fill_diagonal(everything, -np.inf)
    return everything.max(axis=1)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_the_highest_are_those_of_all_pairs_wherever_the_images_are(
    tmp_path: Path, dtype: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = people(40, 3).astype(dtype)
    images[7] = images[30]  # twins: the best two matches of a third may leave out itself
    images[33] = images[30]
    expected = reference(images)
    assert (expected == 1).sum() == 3
    np.testing.assert_array_equal(highest_among(images), expected)
    found = highest_in_set(write_set(tmp_path / "set", images), channels=[0], device=CPU)
    np.testing.assert_array_equal(found, expected)
    # Nor does it matter how many fit into memory; constant ones in different parts know of one another.
    images[[3, 20]] = 9
    parts = write_set(tmp_path / "parts", images)
    monkeypatch.setattr("unalike.audit.diversity.QUERY_BYTES", 7 * images[0].nbytes)
    found = highest_in_set(parts, channels=[0], device=CPU)
    np.testing.assert_array_equal(found, highest_among(images))
    assert (found[[3, 20]] == 1).all()


def test_large_images_that_are_searched_with_a_bound_give_the_same() -> None:
    images = noise(12, 4, size=128)
    np.testing.assert_array_equal(highest_among(images), reference(images))


def test_channels_that_are_not_compared_do_not_count(tmp_path: Path) -> None:
    samples, train = (np.concatenate([people(30, seed), noise(30, seed, 24)], axis=1) for seed in (1, 2))
    found = measure(tmp_path / "one", samples, train)
    samples[:, 1] = 0
    assert measure(tmp_path / "two", samples, train) == found


def test_one_image_of_each_subject_is_taken_of_both(tmp_path: Path) -> None:
    # Ten slices each of thirty patients: slices of one are alike, patients are not.
    random = np.random.default_rng(0)
    images = np.concatenate([draw_person(random, images=10) for _ in range(30)])[:, None]
    owners = [f"p{row // 10}" for row in range(300)]
    train = write_set(tmp_path / "train", images, owners, kind="cohort")
    chosen = pick_one_each(train, 25, generator_for(0, "test"))
    assert len(set(chosen.subjects.tolist())) == len(chosen) == 25
    assert (np.diff(chosen.rows) > 0).all()
    volumes = write_set(tmp_path / "volumes", repeated(images, 300), owners)
    found = measure_diversity(volumes, train, channels=[0], seed=0, device=CPU)
    assert (found.m, found.verdict) == (30, "varied")
    again = measure_diversity(volumes, train, channels=[0], seed=0, device=CPU)
    assert again == found
    assert measure_diversity(volumes, train, channels=[0], seed=1, device=CPU) != found


def test_at_most_so_many_images_are_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unalike.audit.diversity.MOST_IMAGES", 25)
    found = measure(tmp_path, people(60, 1), people(50, 2))
    assert (found.m, found.alike.n, found.samples_mean.n, found.spread.n) == (25, 25, 25, 25)


def test_the_interval_of_the_spread_holds_the_ratio_of_variances() -> None:
    # Vectors with independent standard normal entries; those of one side are twice as long: four times the variance.
    held = 0
    for repetition in range(40):
        random = np.random.default_rng(repetition)
        sides = [random.normal(size=(50, 6)) * scale for scale in (2, 1)]
        squares = [np.square(side - side.mean(axis=0)).sum(axis=1) for side in sides]
        found = estimate_spread(*squares, random=random)
        assert found.low < found.value < found.high
        held += found.low < 4 < found.high
    assert held >= 33  # 38 are expected of 40; fewer than 33 have a chance below 1 %


def test_the_threshold_leaves_a_twentieth_above_it() -> None:
    values = np.linspace(0, 0.5, 101)
    assert threshold_of(values) == pytest.approx(0.475)
    assert share_alike(values, threshold_of(values)).value == pytest.approx(5 / 101)
    assert share_alike(np.ones(3), 1.0).value == 1
    assert np.isnan(share_alike(np.ones(3), np.nan).value)


# The whole audit


@pytest.fixture(scope="module")
def memorized(tmp_path_factory: pytest.TempPathFactory) -> tuple[ImageFolder, Path]:
    """A phantom, a slice each of 30 subjects in train, and the samples of a run that repeats four of them."""
    house = tmp_path_factory.mktemp("house")
    make_phantom(out=house / "phantom", settings=PhantomSettings(subjects=40, size=16, slices=2), seed=3)
    settings = PrepareSettings(recipe="nifti", size=16, slices=1, holdout=0.25, depth="8")
    cohort = prepare_cohort(source=house / "phantom", out=house / "cohort", settings=settings)
    train_generator(kind="memorizer", cohort=house / "cohort", out=house / "run", subjects=4)
    draw_samples(run=house / "run", out=house / "samples", count=40)
    return cohort, house / "samples"


def without_its_run(samples: Path, out: Path, cohort: ImageFolder) -> Path:
    """The same images as if the run had been given all training subjects, as a generator that collapses is."""
    images = open_images(samples, kind="samples")
    folders.begin_folder(out, kind="samples", settings={})
    height, width = images.size
    writer = ImageWriter(out, channels=images.channels, height=height, width=width, dtype=images.dtype)
    for seed, image in enumerate(images.read(np.arange(len(images)))):
        writer.append(image, {"subject": f"sample-{seed:06d}", "source": "run", "role": "synthetic", "seed": seed})
    content = writer.close() | {"subjects": None, "subject_seed": 0}
    folders.finish_folder(out, kind="samples", settings={}, seed=0, inputs={"cohort": cohort.digest}, content=content)
    return out


def audit(samples: Path, cohort: ImageFolder, out: Path) -> AuditResult:
    return audit_samples(synthetic=samples, against=cohort.path, out=out, settings=QUICK)


def test_a_generator_of_many_that_repeats_four_subjects_is_alike(
    memorized: tuple[ImageFolder, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cohort, samples = memorized
    collapsed = without_its_run(samples, tmp_path / "collapsed", cohort)
    out = tmp_path / "audit"
    assert (
        run_command(["audit", str(collapsed), "--against", str(cohort.path), "--out", str(out), "--planted", "0"]) == 0
    )
    printed = capsys.readouterr().out.splitlines()
    content = json.loads((out / "audit.json").read_text())["content"]
    subjects = len(np.unique(cohort.column("subject")[cohort.rows("train")]))
    found = content["diversity"]
    assert set(found) == {"m", "samples_mean", "train_mean", "alike", "spread", "verdict"}
    assert (found["m"], found["verdict"]) == (min(40, subjects), "alike")
    assert found["alike"]["low"] > 0.25
    assert found["samples_mean"]["low"] > found["train_mean"]["high"]
    assert any(line.startswith("The samples are alike: ") for line in content["verdict"]["warnings"])
    (line,) = [line for line in printed if line.startswith("diversity: ")]
    assert line.startswith("diversity: The samples are alike: ")
    page = (out / "report.html").read_text()
    assert ">Diversity</h2>" in page
    assert page.count("The samples are alike") == 2  # what must be read first, and the section


def test_of_a_run_that_saw_four_subjects_nothing_is_told(memorized: tuple[ImageFolder, Path], tmp_path: Path) -> None:
    cohort, samples = memorized
    result = audit(samples, cohort, tmp_path / "audit")
    assert (result.counts["train_subjects"], result.diversity.m, result.diversity.verdict) == (4, 4, "cannot tell")
    assert not [line for line in result.verdict.warnings if "alike" in line]
