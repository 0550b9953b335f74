"""Membership: statistics against their definitions, and worlds in which the answer is known."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unalike import folders
from unalike.audit.membership import (
    LossModel,
    auc_of,
    audit_membership,
    estimate_auc,
    fit_difficulty,
    image_statistics,
    least_auc,
    measure_membership,
    permutation_p_value,
    split_auc,
    split_members,
    true_positive_rate,
)
from unalike.audit.membership_settings import MembershipSettings
from unalike.cli import run as run_command
from unalike.cohort.build import prepare_cohort
from unalike.cohort.roles import ImageSet
from unalike.cohort.settings import PrepareSettings
from unalike.cohort.store import ImageFolder
from unalike.errors import FolderError, InputError, SettingsError
from unalike.generators.losses import open_loss_model
from unalike.runs.train import train_generator

QUICK = MembershipSettings(splits=40, permutations=400)
PATTERN = r"(p\d+)_"


def stream(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


class Told:
    """A model whose loss is what a function says of each image's mean."""

    name = "told"

    def __init__(self, say: Callable[[np.ndarray], np.ndarray], levels: tuple[str, ...] = ("one",)) -> None:
        self.say, self.levels = say, levels

    def losses(self, images: np.ndarray, *, seed: int) -> np.ndarray:
        return self.say(images)


def hashed(images: np.ndarray) -> np.ndarray:
    """A number from 0 to 1 for each image that has nothing to do with what it shows."""
    weights = np.random.default_rng(5).random(images[0].size) * 1e3
    return (images.reshape(len(images), -1) @ weights % 1)[:, None]


@pytest.fixture
def cohort(make_pictures: Callable[..., Path], tmp_path: Path) -> ImageFolder:
    """60 subjects with 2 images each, half of them held out."""
    source = make_pictures(subjects=60, images=2)
    return prepare_cohort(
        source=source, out=tmp_path / "cohort", settings=PrepareSettings(subject_pattern=PATTERN, holdout=0.5)
    )


def sides(cohort: ImageFolder) -> dict[str, ImageSet]:
    return {role: ImageSet(cohort, cohort.rows(role)) for role in ("train", "holdout")}


# Statistics


def test_the_area_by_hand() -> None:
    scores, member = np.array([3.0, 1.0, 2.0, 1.0]), np.array([True, True, False, False])
    assert auc_of(scores, member) == (1 + 1 + 0 + 0.5) / 4
    assert math.isnan(auc_of(scores, np.ones(4, bool)))


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 6), st.booleans()), min_size=4, max_size=25))
def test_the_area_and_its_interval_on_any_scores(rows: list[tuple[int, bool]]) -> None:
    scores, member = np.array([row[0] for row in rows], float), np.array([row[1] for row in rows])
    if min(member.sum(), (~member).sum()) < 2:
        assert math.isnan(estimate_auc(scores, member, random=stream()).low)
        return
    pairs = [np.sign(a - b) / 2 + 0.5 for a, b in itertools.product(scores[member], scores[~member])]
    found = estimate_auc(scores, member, random=stream())
    assert found.value == pytest.approx(np.mean(pairs))
    assert 0 <= found.low <= found.value <= found.high <= 1
    mirrored = estimate_auc(-scores, member, random=stream())
    assert mirrored.value == pytest.approx(1 - found.value)


def test_an_interval_has_a_width_where_the_sides_do_not_overlap() -> None:
    """Newcombe 2006, method 5: 1 − θ = 1.96 · standard error at θ."""
    member = np.repeat([True, False], 10)
    found = estimate_auc(np.repeat([1.0, 0.0], 10), member, random=stream())
    assert (found.value, found.high) == (1.0, 1.0)
    theta, size = found.low, 9.0
    variance = theta * (1 - theta) * (1 + size * (1 - theta) / (2 - theta) + size * theta / (1 + theta)) / 100
    assert 1 - theta == pytest.approx(1.959964 * math.sqrt(variance), rel=1e-4)


def test_the_interval_covers_the_true_area() -> None:
    """Normal scores one standard deviation apart: AUC = Φ(1 / √2) = 0.760."""
    member, hits = np.repeat([True, False], [25, 40]), 0
    for seed in range(60):
        scores = stream(seed).normal(size=65) + member
        found = estimate_auc(scores, member, random=stream(seed))
        hits += found.low <= 0.7602 <= found.high
    assert hits >= 53  # 95 % of 60 is 57; 53 or fewer has a chance below 0.05


def test_the_permutation_p_value_equals_all_permutations() -> None:
    scores, member = np.array([5.0, 4, 1, 3, 2, 0]), np.array([1, 1, 0, 1, 0, 0], bool)
    ways = [auc_of(scores, np.isin(np.arange(6), way)) for way in itertools.combinations(range(6), 3)]
    exact = np.mean([area >= auc_of(scores, member) for area in ways])
    assert exact == 1 / 20
    assert permutation_p_value(scores, member, count=4000, random=stream()) == pytest.approx(exact, abs=0.015)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 400), st.integers(1, 60), st.sampled_from([0.1, 0.01]), st.integers(0, 99))
def test_no_more_false_positives_than_promised(others: int, members: int, rate: float, seed: int) -> None:
    scores = stream(seed).integers(0, 30, others + members).astype(float)
    member = np.arange(others + members) < members
    found = true_positive_rate(scores, member, rate=rate)
    if others + 1 < 1 / rate - 1e-9:
        assert math.isnan(found.value)
        assert f"cannot be resolved with {others} non-member" in found.method
        return
    hits = round(found.value * members)
    threshold = np.sort(scores[~member])[::-1][math.floor(rate * (others + 1) + 1e-9) - 1]
    assert hits == (scores[member] > threshold).sum()
    assert (scores[~member] > threshold).mean() <= rate


def test_true_positives_by_hand() -> None:
    scores = np.concatenate([[99.5, 98.5, 97.5], np.arange(100.0)])
    member = np.arange(103) < 3
    assert true_positive_rate(scores, member, rate=0.01).value == 1 / 3  # k = 1: above the highest, 99
    assert true_positive_rate(scores, member, rate=0.02).value == 2 / 3  # k = 2: above 98
    assert "999 are needed" in true_positive_rate(scores, member, rate=0.001).method


def test_the_least_area_falls_with_the_number_of_subjects() -> None:
    found = [least_auc(n, n, level=0.05) for n in (10, 40, 200, 1000)]
    assert found == sorted(found, reverse=True)
    assert 0.5 < found[-1] < 0.56 < found[0] < 1
    assert math.isnan(least_auc(1, 500, level=0.05))
    assert math.isnan(least_auc(2, 2, level=0.05))  # six labellings: no p-value below 1/6


def test_the_least_area_shows_as_often_as_said() -> None:
    """Normal scores whose AUC is the least one: the verdict's condition holds in about 80 % of worlds."""
    from scipy.stats import norm

    area = least_auc(30, 30, level=0.05)
    member, shows = np.repeat([True, False], 30), []
    for seed in range(60):
        scores = stream(seed).normal(size=60) + member * math.sqrt(2) * norm.ppf(area)
        shows.append(
            estimate_auc(scores, member, random=stream(seed)).low > 0.5
            and permutation_p_value(scores, member, count=200, random=stream(seed)) <= 0.05
        )
    assert 0.65 < np.mean(shows) < 0.95


def test_halves_of_one_side_are_alike() -> None:
    found = split_auc(stream().normal(size=80), count=300, random=stream(1))
    assert abs(found.value - 0.5) < 0.02
    assert 0.3 < found.low < 0.42
    assert 0.58 < found.high < 0.7
    assert math.isnan(split_auc(np.zeros(3), count=5, random=stream()).value)


# Difficulty


def test_a_difficulty_that_follows_from_the_features_is_taken_out() -> None:
    random = stream()
    features = random.normal(size=(300, 4))
    losses = features @ [[1.0], [2.0], [0], [-1]] + 7
    subjects = np.repeat(np.arange(100), 3).astype(str)
    member = np.repeat(np.arange(100) < 50, 3)
    losses[member] -= 0.5
    predicted = fit_difficulty(losses, features, subjects, member=member, random=random)
    residual = (losses - predicted)[:, 0]
    assert residual[member].mean() == pytest.approx(-0.5, abs=0.05)
    assert residual[~member].mean() == pytest.approx(0, abs=0.05)
    assert residual[~member].std() < 0.1 * losses.std()


def test_features_that_do_not_help_change_nothing_but_the_mean() -> None:
    features, losses = stream().normal(size=(80, 9)), stream(1).standard_t(2, size=(80, 1))
    member = np.arange(80) < 40
    predicted = fit_difficulty(losses, features, np.arange(80).astype(str), member=member, random=stream(2))
    assert len(np.unique(predicted)) == 5  # one mean a fold
    assert predicted.mean() == pytest.approx(losses[~member].mean())


def test_members_drawn_by_chance_rarely_show() -> None:
    """Both sides of one kind, the difficulty fitted to one of them: p-values stay what they promise."""
    features = stream(9).normal(size=(90, 6))
    losses = features @ stream(8).normal(size=(6, 1)) + stream(7).normal(size=(90, 1))
    subjects, low = np.arange(90).astype(str), 0
    for seed in range(100):
        member = np.isin(np.arange(90), stream(seed).permutation(90)[:40])
        predicted = fit_difficulty(losses, features, subjects, member=member, random=stream(seed))
        scores = (predicted - losses)[:, 0]
        low += permutation_p_value(scores, member, count=100, random=stream(seed)) <= 0.05
    assert low <= 10  # 11 or more of 100 has a chance of about 0.01


def test_no_image_takes_part_in_its_own_difficulty() -> None:
    """Another loss of one non-member changes every prediction but those of its fold; a member's changes none."""
    features, subjects = stream().normal(size=(60, 3)), np.arange(60).astype(str)
    member = np.arange(60) < 20
    losses = stream(1).normal(size=(60, 1))

    def predict(row: int) -> np.ndarray:
        changed = losses.copy()
        changed[row] += 100
        return fit_difficulty(changed, features, subjects, member=member, random=stream(2))

    before = fit_difficulty(losses, features, subjects, member=member, random=stream(2))
    np.testing.assert_array_equal(predict(3), before)
    assert predict(40)[40] == before[40]
    assert (predict(40) != before).sum() == 60 - 4 - 8


def test_image_statistics_by_hand() -> None:
    flat = np.full((1, 1, 8, 8), 51, np.uint8)
    edge = flat.copy()
    edge[..., 4:] = 0
    found = image_statistics(np.concatenate([flat, edge]), highest=255)
    assert found[:, 0] == pytest.approx([0.2, 0.1])
    assert found[:, 1].tolist() == [0, 0.5]
    assert found[:, 2] == pytest.approx(np.log([1e-4, 0.2 / 7 + 1e-4]))
    assert np.isfinite(found).all()


# Worlds


def test_a_model_that_knows_its_images_shows(cohort: ImageFolder) -> None:
    groups = sides(cohort)
    known = groups["train"].folder.read(groups["train"].rows)

    def say(images: np.ndarray) -> np.ndarray:
        same = (images[:, None] == known[None]).all(axis=(2, 3, 4)).any(axis=1)
        return hashed(images) - 2.0 * same[:, None]

    result = measure_membership(model=Told(say), settings=QUICK, **groups)
    assert result.decision == "membership shows"
    assert result.auc.value > 0.98
    assert result.p_value == 1 / 401
    assert result.counts == {"member_subjects": 30, "other_subjects": 30, "member_images": 60, "other_images": 60}
    halves = {control.name: control.auc for control in result.controls}
    for name in ("members against members", "non-members against non-members"):
        assert abs(halves[name].value - 0.5) < 0.05
        assert halves[name].low < 0.5 < halves[name].high
    assert math.isnan(result.true_positives["0.01"].value)
    assert "cannot be resolved with 30 non-members; 99 are needed" in result.true_positives["0.01"].method


def test_a_model_that_never_saw_them_does_not(cohort: ImageFolder) -> None:
    result = measure_membership(model=Told(hashed), settings=QUICK, **sides(cohort))
    assert result.decision == "membership does not show"
    assert result.auc.low < 0.5 < result.auc.high
    assert f"at least {result.least_auc:.2f}" in result.headline
    assert 0.6 < result.least_auc < 0.8


def test_levels_are_told_apart_and_a_constant_one_is_no_error(cohort: ImageFolder) -> None:
    groups = sides(cohort)
    dim = np.median(groups["train"].folder.read(groups["train"].rows).mean(axis=(1, 2, 3)))

    def say(images: np.ndarray) -> np.ndarray:
        return np.hstack([np.full((len(images), 1), 3.0), (images.mean(axis=(1, 2, 3)) > dim)[:, None]])

    model = Told(say, ("constant", "bright"))
    result = measure_membership(model=model, settings=MembershipSettings(difficulty="none", splits=5), **groups)
    assert [entry.level for entry in result.levels] == ["constant", "bright"]
    assert result.levels[0].auc.value == 0.5
    assert result.levels[0].member_loss == 3.0
    assert result.difficulty == "none"


def test_a_reference_takes_out_what_is_hard_for_anybody(cohort: ImageFolder) -> None:
    groups = sides(cohort)
    known = groups["train"].folder.read(groups["train"].rows)

    def hard(images: np.ndarray) -> np.ndarray:
        return 50 * hashed(images)

    def say(images: np.ndarray) -> np.ndarray:
        return hard(images) - (images[:, None] == known[None]).all(axis=(2, 3, 4)).any(axis=1)[:, None]

    plain = MembershipSettings(difficulty="none", splits=5)
    alone = measure_membership(model=Told(say), settings=plain, **groups)
    calibrated = measure_membership(model=Told(say), reference=Told(hard), settings=plain, **groups)
    assert alone.auc.value < 0.7
    assert calibrated.auc.value == 1.0
    assert calibrated.difficulty == "loss under the reference run"
    with pytest.raises(InputError, match="other loss levels"):
        measure_membership(model=Told(say), reference=Told(hard, ("other",)), **groups)


def test_sides_that_differ_in_themselves_are_found_out(cohort: ImageFolder) -> None:
    """Members are the brighter half: image statistics alone tell, so the model's loss proves nothing."""
    bright = cohort.read(np.arange(len(cohort))).mean(axis=(1, 2, 3))
    names = cohort.column("subject")
    brightest = sorted(np.unique(names), key=lambda name: -bright[names == name].mean())[:30]
    members = np.isin(names, brightest)
    groups = {"train": ImageSet(cohort, np.flatnonzero(members)), "holdout": ImageSet(cohort, np.flatnonzero(~members))}
    model = Told(lambda images: -images.mean(axis=(1, 2, 3))[:, None])
    result = measure_membership(model=model, settings=QUICK, **groups)
    blind = next(control for control in result.controls if control.name == "difficulty alone")
    assert blind.auc.value > 0.95
    assert result.decision != "membership shows"
    assert any("not of one kind" in warning for warning in result.warnings)


def test_members_explained_worse_are_a_warning(cohort: ImageFolder) -> None:
    groups = sides(cohort)
    known = groups["train"].folder.read(groups["train"].rows)

    def say(images: np.ndarray) -> np.ndarray:
        return hashed(images) + 2.0 * (images[:, None] == known[None]).all(axis=(2, 3, 4)).any(axis=1)[:, None]

    result = measure_membership(model=Told(say), settings=QUICK, **groups)
    assert result.decision == "membership does not show"
    assert any("explained worse" in warning for warning in result.warnings)


def test_one_subject_cannot_tell(cohort: ImageFolder) -> None:
    groups = sides(cohort)
    one = groups["holdout"].subjects[0]
    rows = groups["holdout"].rows[groups["holdout"].subjects == one]
    groups["holdout"] = ImageSet(cohort, rows)
    result = measure_membership(model=Told(hashed), settings=QUICK, **groups)
    assert result.decision == "cannot tell"
    assert "at least 2 members and 2 non-members" in result.headline
    assert any("too few to fit" in warning for warning in result.warnings)
    with pytest.raises(InputError, match="on both sides: 30 subjects"):
        measure_membership(model=Told(hashed), train=groups["train"], holdout=groups["train"])
    with pytest.raises(InputError, match="did not see"):
        measure_membership(model=Told(hashed), train=groups["train"], holdout=ImageSet(cohort, rows[:0]))


@pytest.mark.parametrize(("value", "match"), [(np.nan, "not finite"), (None, "shape")])
def test_a_broken_loss_is_refused(cohort: ImageFolder, value: float | None, match: str) -> None:
    shape = 2 if value is None else 1
    model: LossModel = Told(lambda images: np.full((len(images), shape), value or 0.0))
    with pytest.raises(InputError, match=match):
        measure_membership(model=model, **sides(cohort))


def test_settings_that_make_no_sense() -> None:
    for wrong in ({"level": 0}, {"images_per_subject": 0}, {"subjects": 0}, {"difficulty": "x"}, {"splits": 0}):
        with pytest.raises(SettingsError, match=f"--{next(iter(wrong)).replace('_', '-')}"):
            MembershipSettings(**wrong).check()


def test_fewer_images_and_subjects(cohort: ImageFolder) -> None:
    few = MembershipSettings(subjects=25, images_per_subject=1, splits=5)
    result = measure_membership(model=Told(hashed), settings=few, **sides(cohort))
    assert list(result.counts.values()) == [25] * 4


# Runs


def test_of_a_run_on_few_subjects_the_others_are_non_members(cohort: ImageFolder, tmp_path: Path) -> None:
    run = train_generator(kind="memorizer", cohort=cohort.path, out=tmp_path / "run", subjects=8)
    train, others, notes = split_members(cohort, run=run)
    assert len(np.unique(train.subjects)) == 8
    assert len(np.unique(others.subjects)) == 52
    assert not set(train.subjects) & set(others.subjects)
    assert notes == []
    other = train_generator(kind="memorizer", cohort=cohort.path, out=tmp_path / "other", subjects=6, seed=1)
    kept, rest, notes = split_members(cohort, run=run, reference=other)
    assert len(np.unique(kept.subjects)) + len(np.unique(rest.subjects)) == 54
    assert notes == ["Left out, as the reference run saw them: 6 subjects."]
    with pytest.raises(InputError, match="every subject the run saw"):
        split_members(cohort, run=run, reference=run)
    gaussian = train_generator(kind="gaussian", cohort=cohort.path, out=tmp_path / "gaussian")
    with pytest.raises(InputError, match="has generator gaussian"):
        split_members(cohort, run=run, reference=gaussian)


def test_a_non_member_with_a_members_image_is_left_out(cohort: ImageFolder, tmp_path: Path) -> None:
    run = train_generator(kind="memorizer", cohort=cohort.path, out=tmp_path / "run")
    digests = cohort.column("digest")
    twin = cohort.rows("holdout")[3]
    digests[twin] = digests[cohort.rows("train")[0]]
    number = cohort.records.column_names.index("digest")
    twins = replace(cohort, records=cohort.records.set_column(number, "digest", pa.array(digests.tolist())))
    train, others, notes = split_members(twins, run=run)
    assert (len(train), len(others)) == (60, 58)
    assert cohort.column("subject")[twin] not in others.subjects
    assert notes == ["Left out, as they also have images among the members': 1 non-member."]


def test_a_reference_run_of_other_subjects(cohort: ImageFolder, tmp_path: Path) -> None:
    runs = [
        train_generator(kind="memorizer", cohort=cohort.path, out=tmp_path / f"run{seed}", subjects=8, seed=seed)
        for seed in (0, 1)
    ]
    models = [open_loss_model(run) for run in runs]
    result = audit_membership(
        run=runs[0],
        model=models[0],
        against=cohort.path,
        out=tmp_path / "m",
        reference=runs[1],
        reference_model=models[1],
        settings=QUICK,
    )
    assert (result.decision, result.auc.value) == ("membership shows", 1.0)
    assert result.counts["member_subjects"] + result.counts["other_subjects"] == 52
    assert set(folders.read_header(tmp_path / "m", kind="membership").inputs) == {"run", "cohort", "reference"}
    with pytest.raises(SettingsError, match="both its run and its losses"):
        audit_membership(run=runs[0], model=models[0], against=cohort.path, out=tmp_path / "n", reference=runs[1])


def test_a_run_of_another_cohort_is_refused(
    cohort: ImageFolder, make_pictures: Callable[..., Path], tmp_path: Path
) -> None:
    run = train_generator(kind="memorizer", cohort=cohort.path, out=tmp_path / "run")
    source = make_pictures("others", subjects=6, seed=1)
    other = prepare_cohort(source=source, out=tmp_path / "c2", settings=PrepareSettings(subject_pattern=PATTERN))
    with pytest.raises(InputError, match="was not trained on") as refused:
        audit_membership(run=run, model=open_loss_model(run), against=other.path, out=tmp_path / "m")
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "m").exists()


def test_a_failure_leaves_nothing_behind(cohort: ImageFolder, tmp_path: Path) -> None:
    run = train_generator(kind="memorizer", cohort=cohort.path, out=tmp_path / "run")

    def stop(images: np.ndarray) -> np.ndarray:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        audit_membership(run=run, model=Told(stop), against=cohort.path, out=tmp_path / "m")
    assert not (tmp_path / "m").exists()


def test_the_memorizer_is_found_out_and_the_folder_is_repeatable(cohort: ImageFolder, tmp_path: Path) -> None:
    run = train_generator(kind="memorizer", cohort=cohort.path, out=tmp_path / "run", subjects=20)
    for name in ("one", "two"):
        result = audit_membership(
            run=run, model=open_loss_model(run), against=cohort.path, out=tmp_path / name, settings=QUICK, seed=2
        )
    assert (result.decision, result.auc.value) == ("membership shows", 1.0)
    one, two = tmp_path / "one", tmp_path / "two"
    files = ("subjects.parquet", "figures/roc.svg", "figures/scores.png")
    assert all((one / name).read_bytes() == (two / name).read_bytes() for name in files)
    header = folders.read_header(one, kind="membership")
    assert header.content["decision"] == "membership shows"
    assert header.content["internal"] is True
    assert set(header.inputs) == {"run", "cohort"}
    assert "scores" not in header.content
    table = pq.read_table(one / "subjects.parquet")
    roles = np.array(table["role"].to_pylist())
    assert dict(zip(*np.unique(roles, return_counts=True), strict=True)) == {"member": 20, "other": 40}
    scores = np.array(table["score"])
    assert scores[roles == "member"].min() > scores[roles == "other"].max()
    with pytest.raises(FolderError, match="exists already"):
        audit_membership(run=run, model=open_loss_model(run), against=cohort.path, out=one)


def test_the_command_line(cohort: ImageFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = train_generator(kind="gaussian", cohort=cohort.path, out=tmp_path / "run", subjects=12)
    arguments = ["membership", str(run), "--against", str(cohort.path), "--out", str(tmp_path / "m")]
    assert run_command([*arguments, "--dry-run"]) == 0
    assert not (tmp_path / "m").exists()
    assert "images_per_subject=8" in capsys.readouterr().out
    assert run_command([*arguments, "--splits", "5", "--permutations", "50"]) == 0
    told = capsys.readouterr().out
    assert told.lower().startswith(("membership", "cannot tell"))
    assert "12 members, 48 non-members" in told
    assert "cannot be resolved" in told
    assert run_command(["inspect", str(tmp_path / "m")]) == 0
    capsys.readouterr()
    again = [*arguments[:-1], str(tmp_path / "m2"), "--splits", "5", "--permutations", "50", "--json"]
    assert run_command(again) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["counts"]["member_subjects"] == 12
    assert document["true_positives"]["0.001"]["value"] is None
    assert run_command([*arguments[:-1], str(tmp_path / "m3"), "--reference", str(run)]) == 2
    assert "every subject the run saw" in capsys.readouterr().err
    assert not (tmp_path / "m3").exists()
