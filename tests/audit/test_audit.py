"""The whole audit in worlds whose answer is known in advance."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from tests.conftest import draw_person

from unalike import folders
from unalike.audit import evidence as evidence_room
from unalike.audit.changes import change_images
from unalike.audit.run import AuditResult, audit_samples
from unalike.audit.settings import AuditSettings
from unalike.cohort.build import prepare_cohort
from unalike.cohort.settings import PrepareSettings
from unalike.cohort.store import ImageFolder, ImageWriter, open_images
from unalike.errors import FolderError, InputError, SettingsError
from unalike.similarity.correlation import correlate
from unalike.similarity.embedding.settings import EmbeddingSettings
from unalike.similarity.ssim import ssim_pairs

PATTERN = r"(p\d+)_"
QUICK = AuditSettings(planted=16)


def audit(tmp_path: Path, synthetic: Path, **options: object) -> AuditResult:
    options = {"settings": QUICK} | options
    return audit_samples(synthetic=synthetic, out=tmp_path / "audit", **options)


@pytest.fixture
def cohort(make_pictures: Callable[..., Path], tmp_path: Path) -> ImageFolder:
    """60 subjects with 3 images each, a third of them held out."""
    source = make_pictures(subjects=60, images=3)
    settings = PrepareSettings(subject_pattern=PATTERN, holdout=1 / 3)
    return prepare_cohort(source=source, out=tmp_path / "cohort", settings=settings)


def write_samples(out: Path, images: np.ndarray, cohort: ImageFolder, **content: object) -> Path:
    """A samples folder with these images (n, C, H, W), as a generator of ours would have made it."""
    folders.begin_folder(out, kind="samples", settings={})
    height, width = images.shape[2:]
    writer = ImageWriter(out, channels=cohort.channels, height=height, width=width, dtype=images.dtype)
    for seed, image in enumerate(images):
        writer.append(image, {"subject": f"sample-{seed:06d}", "source": "run", "role": "synthetic", "seed": seed})
    folders.finish_folder(
        out,
        kind="samples",
        settings={},
        seed=0,
        inputs={"cohort": cohort.digest},
        content=writer.close() | {"subjects": None, "subject_seed": 0} | content,
    )
    return out


def new_people(count: int, seed: int = 99) -> np.ndarray:
    random = np.random.default_rng(seed)
    return np.concatenate([draw_person(random) for _ in range(count)])[:, None]


def noisy(images: np.ndarray) -> np.ndarray:
    """The same images with slight noise."""
    changed = images.astype(int) + np.random.default_rng(0).integers(-6, 7, images.shape)
    return np.clip(changed, 0, 255).astype(np.uint8)


def test_synthetic_equal_to_train_is_all_copies(cohort: ImageFolder, tmp_path: Path) -> None:
    synthetic = write_samples(tmp_path / "s", cohort.read(cohort.rows("train")), cohort)
    result = audit(tmp_path, synthetic, against=cohort.path)
    assert result.verdict.decision == "copies found"
    assert (result.flagged, result.counts["synthetic"]) == (120, 120)
    assert result.estimates["mean_highest_correlation"]["synthetic-train"].value == 1.0
    assert result.exposed_subjects == 40
    table = pq.read_table(tmp_path / "audit" / folders.MATCHES)
    best = table.filter((np.array(table["comparison"]) == "synthetic-train") & (np.array(table["rank"]) == 1))
    assert best["reference"].to_pylist() == cohort.rows("train").tolist()
    assert set(best["similarity"].to_pylist()) == {1.0}


def test_a_second_holdout_looks_like_the_holdout(cohort: ImageFolder, tmp_path: Path) -> None:
    synthetic = write_samples(tmp_path / "s", new_people(100), cohort)
    result = audit(tmp_path, synthetic, against=cohort.path)
    assert result.flagged == 0
    # Innocent images may lie beyond every holdout image by chance; then 20 holdout subjects cannot clear them.
    assert result.verdict.decision == ("cannot tell" if result.beyond_holdout else "no copies found")
    few = write_samples(tmp_path / "few", new_people(8, seed=1), cohort)
    cleared = audit_samples(synthetic=few, against=cohort.path, out=tmp_path / "audit2", settings=QUICK)
    assert (cleared.beyond_holdout, cleared.verdict.decision) == (0, "no copies found")
    excess = result.estimates["excess_over_holdout"]
    assert excess.low < 0 < excess.high
    p_values = np.array(pq.read_table(tmp_path / "audit" / folders.QUERIES)["p_value"])
    # Three images a subject make the p-values larger than uniform ones would be, never smaller.
    assert 0.4 < p_values.mean() < 0.75
    assert all((p_values <= level).mean() <= level + 0.05 for level in (0.05, 0.1, 0.2, 0.5))


def test_planted_copies_are_found_and_the_patients_named(cohort: ImageFolder, tmp_path: Path) -> None:
    rows = cohort.rows("train")[[0, 1, 30, 60]]
    copies = np.clip(cohort.read(rows).astype(int) + np.random.default_rng(0).integers(-9, 10, (4, 1, 24, 24)), 0, 255)
    synthetic = write_samples(tmp_path / "s", np.concatenate([copies.astype(np.uint8), new_people(2)]), cohort)
    result = audit(tmp_path, synthetic, against=cohort.path, settings=AuditSettings(planted=16, level=0.1))
    assert result.flagged == 4
    # At 0.05, 20 holdout subjects cannot certify four of six; but so many beyond the holdout are not innocent either.
    strict = audit_samples(synthetic=synthetic, against=cohort.path, out=tmp_path / "strict", settings=QUICK)
    assert (strict.flagged, strict.beyond_holdout, strict.verdict.decision) == (0, 4, "cannot tell")
    assert "cannot certify which" in strict.verdict.headline
    queries = pq.read_table(tmp_path / "audit" / folders.QUERIES)
    assert queries["flagged"].to_pylist() == [True] * 4 + [False] * 2
    exposure = pq.read_table(tmp_path / "audit" / folders.EXPOSURE)
    subjects = cohort.column("subject")[rows]
    assert set(exposure["subject"].to_pylist()) == set(subjects)
    assert exposure["copies"].to_pylist() == [2, 1, 1]
    assert exposure["images"].to_pylist()[0] in {1, 2}  # the two images of one person are alike


def test_similarities_equal_the_reference(cohort: ImageFolder, tmp_path: Path) -> None:
    images = new_people(7)
    audit(tmp_path, write_samples(tmp_path / "s", images, cohort), against=cohort.path)
    table = pq.read_table(tmp_path / "audit" / folders.MATCHES)
    for name, role in (("synthetic-train", "train"), ("synthetic-holdout", "holdout")):
        rows = cohort.rows(role)
        everything = correlate(images, cohort.read(rows))
        found = table.filter(np.array(table["comparison"]) == name)
        similarities = np.array(found["similarity"]).reshape(7, 5)
        np.testing.assert_array_equal(similarities, -np.sort(-everything, axis=1)[:, :5])
        np.testing.assert_array_equal(
            np.array(found["reference"]).reshape(7, 5), rows[np.argsort(-everything, axis=1)[:, :5]]
        )


def test_subjects_that_a_run_did_not_see_are_held_out(cohort: ImageFolder, tmp_path: Path) -> None:
    synthetic = write_samples(tmp_path / "s", new_people(20), cohort, subjects=5, subject_seed=3)
    result = audit(tmp_path, synthetic, against=cohort.path)
    assert (result.counts["train_subjects"], result.counts["holdout_subjects"]) == (5, 55)
    assert (result.counts["train"], result.counts["holdout"]) == (15, 165)


def test_without_holdout_nothing_is_claimed(make_pictures: Callable[..., Path], tmp_path: Path) -> None:
    settings = PrepareSettings(subject_pattern=PATTERN, holdout=0.0)
    cohort = prepare_cohort(source=make_pictures(), out=tmp_path / "cohort", settings=settings)
    images = cohort.read(cohort.rows("train"))
    synthetic = write_samples(tmp_path / "s", noisy(images), cohort)
    result = audit(tmp_path, synthetic, against=cohort.path)
    assert result.verdict.decision == "cannot tell"
    assert result.verdict.warnings[0].startswith("UNCALIBRATED")
    assert result.flagged == 0
    assert "holdout-train" not in result.estimates["mean_highest_correlation"]
    assert result.estimates["mean_highest_correlation"]["synthetic-train"].value > 0.98
    # Pixel-identical images are copies whatever the holdout.
    same = write_samples(tmp_path / "same", images[:3], cohort)
    identical = audit_samples(synthetic=same, against=cohort.path, out=tmp_path / "audit2", settings=QUICK)
    assert (identical.verdict.decision, identical.flagged) == ("copies found", 3)
    assert "3 of them pixel for pixel" in identical.verdict.headline


def test_too_few_holdout_subjects_are_said_first(make_pictures: Callable[..., Path], tmp_path: Path) -> None:
    settings = PrepareSettings(subject_pattern=PATTERN, holdout=0.3)
    cohort = prepare_cohort(source=make_pictures(subjects=30), out=tmp_path / "cohort", settings=settings)
    synthetic = write_samples(tmp_path / "s", noisy(cohort.read(cohort.rows("train"))), cohort)
    result = audit(tmp_path, synthetic, against=cohort.path)
    assert result.verdict.decision == "cannot tell"
    assert "9 holdout subjects cannot certify any copy" in result.verdict.headline
    assert "at least 19 are needed" in result.verdict.headline
    assert result.verdict.warnings[0].startswith("9 holdout subjects cannot certify a single copy")
    assert result.beyond_holdout == result.counts["synthetic"]


def test_patients_on_both_sides_leave_the_holdout_and_are_said(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for split in ("train", "test"):
        (tmp_path / "x" / split).mkdir(parents=True)
    for subject in range(40):
        for index, image in enumerate(draw_person(random, images=2)):
            split = "test" if subject < 20 and (index or subject > 4) else "train"
            Image.fromarray(image).save(tmp_path / "x" / split / f"p{subject}_{index}.png")
    settings = PrepareSettings(subject_pattern=PATTERN, split="keep")
    cohort = prepare_cohort(source=tmp_path / "x", out=tmp_path / "cohort", settings=settings)
    assert cohort.header.content["leaks"]["shared_subjects"] == 5
    result = audit(tmp_path, write_samples(tmp_path / "s", new_people(9), cohort), against=cohort.path)
    assert result.counts["holdout_subjects"] == 15
    assert any("5 of 20 holdout patients also occur in train" in warning for warning in result.verdict.warnings)


def test_constant_images_are_undefined_never_nan(cohort: ImageFolder, tmp_path: Path) -> None:
    images = np.concatenate([new_people(5), np.full((2, 1, 24, 24), 7, np.uint8)])
    result = audit(tmp_path, write_samples(tmp_path / "s", images, cohort), against=cohort.path)
    assert result.counts["undefined"] == 2
    assert any("2 synthetic images are constant" in warning for warning in result.verdict.warnings)
    text = (tmp_path / "audit" / "audit.json").read_text()
    assert "NaN" not in text
    json.loads(text)
    only = write_samples(tmp_path / "only", images[5:], cohort)
    nothing = audit_samples(synthetic=only, against=cohort.path, out=tmp_path / "audit2", settings=QUICK)
    assert (nothing.flagged, nothing.verdict.decision) == (0, "cannot tell")
    assert str(nothing.estimates["mean_highest_correlation"]["synthetic-train"]) == "undefined"


def test_three_channels_with_the_mask_left_out(tmp_path: Path) -> None:
    """Copies of the mask alone are no copies; copies of the images with another mask are."""
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (60, 3, 6, 6)).astype(np.uint8)
    folders.begin_folder(tmp_path / "c", kind="cohort", settings={})
    writer = ImageWriter(tmp_path / "c", channels=["t1", "t2", "mask"], height=6, width=6, dtype=np.dtype(np.uint8))
    for index, image in enumerate(images):
        role = "train" if index < 30 else "holdout"
        writer.append(image, {"subject": f"s{index}", "source": f"s{index}", "role": role})
    folders.finish_folder(tmp_path / "c", kind="cohort", settings={}, seed=0, inputs={}, content=writer.close())
    cohort = open_images(tmp_path / "c")
    same_mask = np.concatenate([random.integers(0, 256, (1, 2, 6, 6)).astype(np.uint8), images[:1, 2:]], axis=1)
    same_images = np.concatenate([images[:1, :2], same_mask[:, 2:] ^ np.uint8(255)], axis=1)
    synthetic = write_samples(tmp_path / "s", np.concatenate([same_mask, same_images]), cohort)
    result = audit(tmp_path, synthetic, against=cohort.path)
    highest = np.array(pq.read_table(tmp_path / "audit" / folders.QUERIES)["similarity"])
    assert highest[1] == 1.0
    by_hand = max(
        np.corrcoef(same_mask[0, :2].ravel().astype(float), other[:2].ravel().astype(float))[0, 1]
        for other in images[:30]
    )
    assert highest[0] == pytest.approx(by_hand, abs=1e-12)
    assert folders.read_header(tmp_path / "audit", kind="audit").content["channels"]["compared"] == ["t1", "t2"]
    # Channel by channel, and the worst; the second one's match is its original, equal in both.
    table = pq.read_table(tmp_path / "audit" / folders.QUERIES)
    row = pq.read_table(tmp_path / "audit" / folders.MATCHES)["reference"][0].as_py()
    by_channel = [
        np.corrcoef(same_mask[0, index].ravel().astype(float), images[row, index].ravel().astype(float))[0, 1]
        for index in (0, 1)
    ]
    found = [table[f"similarity_{name}"].to_pylist() for name in ("t1", "t2", "worst_channel", "foreground")]
    assert [values[0] for values in found[:3]] == pytest.approx([*by_channel, min(by_channel)], abs=1e-12)
    assert [values[1] for values in found] == [1.0] * 4
    masked = audit_samples(
        synthetic=synthetic,
        against=cohort.path,
        out=tmp_path / "m",
        settings=AuditSettings(planted=0, channels=("mask",)),
    )
    assert masked.estimates["mean_highest_correlation"]["synthetic-train"].value > 0.5
    assert result.path == tmp_path / "audit"


def test_plain_folders_from_any_generator(make_pictures: Callable[..., Path], tmp_path: Path) -> None:
    train = make_pictures("train", subjects=30, images=2, seed=1)
    holdout = make_pictures("holdout", subjects=25, images=2, seed=2)
    fakes = tmp_path / "fakes"
    fakes.mkdir()
    for index, path in enumerate(sorted(train.iterdir())[:10]):
        Image.open(path).save(fakes / f"{index}.png")
    options = {"train": train, "holdout": holdout, "settings": AuditSettings(planted=8, subject_pattern=PATTERN)}
    result = audit(tmp_path, fakes, **options)
    assert (result.flagged, result.exposed_subjects) == (10, 5)
    assert (result.counts["train_subjects"], result.counts["holdout_subjects"]) == (30, 25)
    uncalibrated = audit_samples(synthetic=fakes, train=train, out=tmp_path / "u", settings=QUICK)
    assert uncalibrated.verdict.decision == "copies found"  # pixel for pixel, which needs no holdout
    assert uncalibrated.verdict.warnings[0].startswith("UNCALIBRATED")
    assert any("Each file is taken as a patient" in warning for warning in uncalibrated.verdict.warnings)


def test_plain_folders_that_share_a_patient(make_pictures: Callable[..., Path], tmp_path: Path) -> None:
    train, holdout = make_pictures("train", seed=1), make_pictures("holdout", seed=2)
    for path in sorted(train.iterdir())[:1]:
        Image.open(path).rotate(90).save(holdout / path.name)
    settings = AuditSettings(planted=0, subject_pattern=PATTERN)
    result = audit(tmp_path, train, train=train, holdout=holdout, settings=settings)
    assert result.counts["holdout_subjects"] == 30
    assert any("1 of 31 holdout patients also occur in train" in warning for warning in result.verdict.warnings)


def test_pictures_against_a_cohort_are_brought_to_its_size(
    cohort: ImageFolder, make_pictures: Callable[..., Path], tmp_path: Path
) -> None:
    result = audit(tmp_path, make_pictures("large", subjects=5, size=48, seed=7), against=cohort.path)
    assert result.counts["synthetic"] == 10


def test_evidence_shows_the_pairs_and_the_neighbouring_slices(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    folders.begin_folder(tmp_path / "c", kind="cohort", settings={})
    writer = ImageWriter(tmp_path / "c", channels=["t1"], height=8, width=8, dtype=np.dtype(np.uint8))
    images = random.integers(0, 256, (30, 4, 1, 8, 8)).astype(np.uint8)  # 30 volumes of 4 slices, every second kept
    for case, volume in enumerate(images):
        for index, image in enumerate(volume):
            role = "train" if case < 10 else "holdout"
            writer.append(image, {"subject": f"s{case}", "source": f"v{case}", "slice": 2 * index, "role": role})
    folders.finish_folder(tmp_path / "c", kind="cohort", settings={}, seed=0, inputs={}, content=writer.close())
    cohort = open_images(tmp_path / "c")
    synthetic = write_samples(tmp_path / "s", images[2, [1, 0]], cohort)
    audit(tmp_path, synthetic, against=cohort.path)
    evidence = np.load(tmp_path / "audit" / folders.EVIDENCE, allow_pickle=False)
    order = np.argsort(evidence["synthetic_index"])
    found = {name: evidence[name][order] for name in ("train", "neighbour_valid", "neighbours")}
    np.testing.assert_array_equal(found["train"], images[2, [1, 0]])
    np.testing.assert_array_equal(found["neighbour_valid"], [[True, True], [False, True]])
    np.testing.assert_array_equal(found["neighbours"][0], images[2, [0, 2]])
    np.testing.assert_array_equal(found["neighbours"][1, 1], images[2, 1])


def test_power_knows_what_each_measure_finds_and_misses(cohort: ImageFolder, tmp_path: Path) -> None:
    synthetic = write_samples(tmp_path / "s", new_people(20), cohort)
    result = audit(tmp_path, synthetic, against=cohort.path)
    rows = {row.change: row for row in result.power}
    assert rows["none"].planted.value == 1.0
    assert rows["noise, sd 5 of 255"].planted.value == 1.0
    assert rows["mirror image"].planted.value == 1.0
    assert rows["shift, 1 pixel"].planted.value > 0.8
    assert rows["noise, sd 40 of 255"].planted.value < 0.8
    assert set(rows["none"].by_measure) == {"raw", "whitened", "equalized"}
    assert rows["none"].by_measure["equalized"] == 1.0
    assert all(row.sham.value <= 0.2 for row in result.power)
    unmeasured = audit_samples(
        synthetic=synthetic, against=cohort.path, out=tmp_path / "b", settings=AuditSettings(planted=0)
    )
    assert unmeasured.verdict.decision == "cannot tell"


def test_the_same_seed_gives_the_same_audit(cohort: ImageFolder, tmp_path: Path) -> None:
    synthetic = write_samples(tmp_path / "s", new_people(20), cohort)
    options = {"synthetic": synthetic, "against": cohort.path, "settings": QUICK}
    one, two = (audit_samples(out=tmp_path / name, **options) for name in ("a", "b"))
    assert one.estimates == two.estimates
    assert one.power == two.power
    contents = [folders.read_header(result.path, kind="audit").content for result in (one, two)]
    assert contents[0]["tables"] == contents[1]["tables"]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({}, SettingsError, "give --against COHORT"),
        ({"against": "c", "train": "t"}, SettingsError, "Drop one"),
        ({"against": "nowhere"}, FolderError, "nowhere does not exist"),
        ({"settings": AuditSettings(level=0.0)}, SettingsError, "--level"),
    ],
)
def test_calls_that_make_no_sense(
    tmp_path: Path, options: dict[str, object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        audit(tmp_path, tmp_path / "s", **options)
    assert not (tmp_path / "audit").exists()


def test_roles_that_do_not_fit(cohort: ImageFolder, make_pictures: Callable[..., Path], tmp_path: Path) -> None:
    small = write_samples(tmp_path / "s", np.zeros((2, 1, 8, 8), np.uint8), cohort)
    with pytest.raises(InputError, match=r"8×8 uint8 images, train has 24×24"):
        audit(tmp_path, small, against=cohort.path)
    good = write_samples(tmp_path / "g", new_people(2), cohort)
    with pytest.raises(SettingsError, match="--channels t9: there are gray"):
        audit(tmp_path, good, against=cohort.path, settings=AuditSettings(channels=("t9",)))
    mixed = make_pictures("mixed", seed=4)
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(mixed / "z.png")
    with pytest.raises(InputError, match=r"Pass --size"):
        audit(tmp_path, mixed, train=mixed)
    assert not (tmp_path / "audit").exists()


def test_an_unfinished_samples_folder_is_refused(cohort: ImageFolder, tmp_path: Path) -> None:
    folders.begin_folder(tmp_path / "half", kind="samples", settings={})
    with pytest.raises(FolderError, match="unfinished"):
        audit(tmp_path, tmp_path / "half", against=cohort.path)


def test_samples_of_another_cohort_are_doubted(cohort: ImageFolder, tmp_path: Path) -> None:
    synthetic = write_samples(tmp_path / "s", new_people(5), cohort)
    document = json.loads((synthetic / "samples.json").read_text())
    document["inputs"]["cohort"] = "0" * 64
    (synthetic / "samples.json").write_text(json.dumps(document))
    result = audit(tmp_path, synthetic, against=cohort.path)
    assert any("not made from this cohort" in warning for warning in result.verdict.warnings)


def test_one_identical_image_among_new_ones_is_found(cohort: ImageFolder, tmp_path: Path) -> None:
    """20 holdout subjects cannot certify one of 32 by statistics; equal pixels need none."""
    images = np.concatenate([new_people(31), cohort.read(cohort.rows("train")[:1])])
    result = audit(tmp_path, write_samples(tmp_path / "s", images, cohort), against=cohort.path)
    assert (result.verdict.decision, result.flagged, result.exposed_subjects) == ("copies found", 1, 1)


def test_one_near_copy_that_cannot_be_certified_is_not_cleared(cohort: ImageFolder, tmp_path: Path) -> None:
    images = np.concatenate([new_people(31), noisy(cohort.read(cohort.rows("train")[:1]))])
    result = audit(tmp_path, write_samples(tmp_path / "s", images, cohort), against=cohort.path)
    assert (result.verdict.decision, result.flagged) == ("cannot tell", 0)
    assert result.beyond_holdout >= 1


def test_pictures_of_another_shape_are_doubted(make_pictures: Callable[..., Path], tmp_path: Path) -> None:
    train, holdout, fakes = (make_pictures(name, seed=seed) for seed, name in enumerate(("t", "h", "f")))
    for path in fakes.iterdir():
        Image.open(path).resize((40, 24)).save(path)
    settings = AuditSettings(planted=0, size=24)
    result = audit(tmp_path, fakes, train=train, holdout=holdout, settings=settings)
    assert any("1.67 to 1.67 times as wide as high" in warning for warning in result.verdict.warnings)


def test_what_the_audit_is_blind_to_is_said_first(cohort: ImageFolder, tmp_path: Path) -> None:
    result = audit(tmp_path, write_samples(tmp_path / "s", new_people(20), cohort), against=cohort.path)
    missed = [row.change for row in result.power if row.planted.value < 0.5]
    said = [warning for warning in result.verdict.warnings if warning.startswith("Blind to copies")]
    assert len(said) == bool(missed)
    assert all(change in said[0] for change in missed)


@pytest.mark.parametrize("change", ["mirror image", "shift, 2 pixels", "turn, 3 degrees", "blur, sd 1 pixel"])
def test_a_changed_copy_is_found_and_its_patient_named(cohort: ImageFolder, tmp_path: Path, change: str) -> None:
    rows = cohort.rows("train")[[0, 33, 60]]
    copies = change_images(cohort.read(rows), change, seed=1)
    synthetic = write_samples(tmp_path / "s", np.concatenate([copies, new_people(3)]), cohort)
    settings = AuditSettings(planted=0, level=0.2)
    result = audit(tmp_path, synthetic, against=cohort.path, settings=settings)
    queries = pq.read_table(tmp_path / "audit" / folders.QUERIES).to_pylist()
    assert [query["flagged"] for query in queries[:3]] == [True] * 3
    subjects = cohort.column("subject")
    assert [query["reference_subject"] for query in queries[:3]] == subjects[rows].tolist()
    assert {query["measure"] for query in queries} <= {"raw", "whitened", "equalized"}
    if change == "mirror image":
        assert {query["pose"] for query in queries[:3]} == {"left-right"}
    assert result.exposed_subjects >= 3


def test_whole_set_statistics_of_copies_and_of_new_people(cohort: ImageFolder, tmp_path: Path) -> None:
    train = cohort.read(cohort.rows("train"))
    copies = audit(tmp_path, write_samples(tmp_path / "s", train, cohort), against=cohort.path)
    people = audit_samples(
        synthetic=write_samples(tmp_path / "n", new_people(60), cohort),
        against=cohort.path,
        out=tmp_path / "audit2",
        settings=QUICK,
    )
    assert copies.estimates["distance_ratio"]["synthetic-train"].value < 1e-9
    ratio = people.estimates["distance_ratio"]
    assert ratio["synthetic-train"].low < ratio["holdout-train"].value < ratio["synthetic-train"].high
    assert copies.estimates["closer_to_train_share"].value > 0.6  # half of train was left out for the same size: 0.75
    share = people.estimates["closer_to_train_share"]
    assert share.low < 0.6
    assert share.high > 0.4
    assert people.estimates["copy_rate_at_most"].high < 0.4
    assert copies.estimates["copy_rate_at_most"].high == 1.0
    # Everybody was seen three times, so nobody is missing.
    assert copies.estimates["exposed_subjects_in_the_long_run"].value == 40
    assert copies.estimates["further_subjects_if_doubled"].value == 0
    assert "exposed_subjects_in_the_long_run" not in people.estimates


def test_matches_by_other_measures(cohort: ImageFolder, tmp_path: Path) -> None:
    rows = cohort.rows("train")[:4]
    synthetic = write_samples(tmp_path / "s", noisy(cohort.read(rows)), cohort)
    names = ("ssim", "mutual-information", "normalized-mutual-information")
    for exhaustive in (False, True):
        settings = AuditSettings(planted=0, rerank=names, exhaustive=exhaustive)
        out = tmp_path / f"audit-{exhaustive}"
        audit_samples(synthetic=synthetic, against=cohort.path, out=out, settings=settings)
        table = pq.read_table(out / folders.RERANKED)
        for name in names:
            best = table.filter((np.array(table["measure"]) == name) & (np.array(table["rank"]) == 1))
            assert best["reference"].to_pylist() == rows.tolist()
            first = np.array(best["similarity"])[0]
            if name == "ssim":
                by_hand = ssim_pairs(noisy(cohort.read(rows))[:1], cohort.read(rows[:1]))[0]
                assert first == pytest.approx(by_hand, abs=1e-12)
    with pytest.raises(SettingsError, match="--exhaustive"):
        AuditSettings(exhaustive=True).check()


def test_learned_spaces_and_patches_count_as_evidence(
    cohort: ImageFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        evidence_room, "EmbeddingSettings", functools.partial(EmbeddingSettings, steps=3, side=32, width=8)
    )
    images = np.concatenate([cohort.read(cohort.rows("train")[:3]), new_people(3)])
    settings = AuditSettings(planted=0, learned=("contrastive", "autoencoder"), local=True)
    result = audit(tmp_path, write_samples(tmp_path / "s", images, cohort), against=cohort.path, settings=settings)
    names = ["raw", "whitened", "equalized", "autoencoder", "contrastive", "local"]
    assert [measure.name for measure in result.measures] == names
    queries = pq.read_table(tmp_path / "audit" / folders.QUERIES)
    assert set(queries.column_names) >= {f"p_{name}" for name in names}
    local = np.array(queries["score_local"])
    assert local[:3].min() > local[3:].max()
    assert result.flagged >= 3


def test_a_changed_table_is_not_reported(cohort: ImageFolder, tmp_path: Path) -> None:
    from unalike.report import write_report

    audit(tmp_path, write_samples(tmp_path / "s", new_people(3), cohort), against=cohort.path)
    assert write_report(tmp_path / "audit").is_file()
    with (tmp_path / "audit" / folders.EXPOSURE).open("ab") as stream:
        stream.write(b"x")
    with pytest.raises(FolderError, match="was changed since the audit"):
        write_report(tmp_path / "audit")
