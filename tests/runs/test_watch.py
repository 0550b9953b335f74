"""Watching a training: what a look says of known samples, which weights are kept, and who is not named."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.conftest import draw_person

from unalike import folders
from unalike.cli import run as run_command
from unalike.cohort.store import ImageWriter, open_images
from unalike.errors import RunError, SettingsError
from unalike.fidelity import own
from unalike.generators import watching
from unalike.generators.checkpoints import load_newest_checkpoint
from unalike.generators.data import open_train_images
from unalike.runs.settings import WatchSettings
from unalike.runs.train import train_generator
from unalike.runs.watch import SAID, LiveWatcher, read_watch, write_watch

SIZE = 16  # pixels a side
TINY: dict[str, Any] = {
    "steps": 8,
    "base_channels": 8,
    "channel_multipliers": (1, 2),
    "batch_size": 4,
    "warmup": 2,
    "log_every": 2,
    "timesteps": 100,
    "precision": "float32",
}
LOOKS = WatchSettings(every=2, samples=8, steps=2)
JUDGE = LiveWatcher.judge
PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(autouse=True, scope="module")
def quick_features() -> Iterator[None]:
    """Features that are learned in a moment: what a look does with them does not depend on how good they are."""
    with pytest.MonkeyPatch.context() as patch:
        small = dataclasses.replace(own.SETTINGS, steps=20, width=8, dimension=8, batch=32)
        patch.setattr(own, "SETTINGS", small)
        yield


@pytest.fixture(autouse=True)
def no_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    """The picture takes longer than all else; `watched` is made before this, and has one."""
    monkeypatch.setattr("unalike.runs.watch.draw_watch", lambda *_, **__: None)


def write_cohort(out: Path, *, train: int, holdout: int, images: int = 1, mask: bool = False) -> Path:
    """A cohort of people, the last ones held out, whose pseudonyms are found wherever they are written."""
    random = np.random.default_rng(3)
    channels = ("t1", "mask") if mask else ("t1",)
    folders.begin_folder(out, kind="cohort", settings={})
    writer = ImageWriter(out, channels=channels, height=SIZE, width=SIZE, dtype=np.dtype(np.uint8))
    for subject in range(train + holdout):
        role = "train" if subject < train else "holdout"
        for index, image in enumerate(draw_person(random, images=images, size=SIZE)):
            both = np.stack([image, np.where(image > 128, 200, 0)]).astype(np.uint8)
            record = {"subject": f"pseudonym-{subject:03d}", "source": f"origin-{subject:03d}", "slice": index}
            writer.append(both[: len(channels)], record | {"role": role})
    folders.finish_folder(out, kind="cohort", settings={}, seed=0, inputs={}, content=writer.close())
    return out


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """50 subjects in train and 50 in holdout, an image each."""
    return write_cohort(tmp_path_factory.mktemp("house") / "cohort", train=50, holdout=50)


def open_watcher(cohort: Path, out: Path, *, subjects: int | None = None, **settings: Any) -> LiveWatcher:
    out.mkdir(exist_ok=True)
    images = open_train_images(open_images(cohort), subjects=subjects, seed=0)
    wanted = dataclasses.replace(LOOKS, **settings)
    return LiveWatcher(images, out=out, settings=wanted, seed=0, place=torch.device("cpu"))


@pytest.fixture(scope="module")
def watcher(cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> LiveWatcher:
    return open_watcher(cohort, tmp_path_factory.mktemp("looks"))


def read_role(cohort: Path, role: str) -> np.ndarray:
    opened = open_images(cohort)
    return opened.read(opened.rows(role))


def one_line(error: pytest.ExceptionInfo[BaseException]) -> None:
    assert len(str(error.value).splitlines()) == 1


# What a look says


def test_samples_that_are_the_training_images(watcher: LiveWatcher, cohort: Path) -> None:
    line = watcher.judge(read_role(cohort, "train"))
    assert (line["samples"], line["flagged"], line["flagged_share"], line["copy_rate"]) == (50, 50, 1, 1)
    assert not line["within_budget"]
    assert line["highest_train"] == 1
    assert line["highest_holdout"] < 0.8
    assert abs(line["frechet_train"]) < 1e-6 * line["frechet_holdout_train"]


def test_samples_that_are_the_holdout_images(watcher: LiveWatcher, cohort: Path) -> None:
    line = watcher.judge(read_role(cohort, "holdout"))
    # The level is 0.05, the standard deviation of a share of 50 images 0.03.
    assert line["flagged_share"] <= 0.15
    assert line["within_budget"]
    assert line["highest_holdout"] == 1
    assert line["highest_train"] < 0.8
    assert line["frechet_train"] == pytest.approx(line["frechet_holdout_train"], rel=1e-9)


def test_samples_that_are_half_copies_half_new(watcher: LiveWatcher, cohort: Path) -> None:
    random = np.random.default_rng(11)
    new = np.stack([draw_person(random, size=SIZE) for _ in range(50)])
    line = watcher.judge(np.concatenate([read_role(cohort, "train"), new]))
    assert line["flagged_share"] == line["flagged"] / 100
    assert 0.5 <= line["flagged_share"] <= 0.6
    assert line["flagged_low"] < line["flagged_share"] < line["flagged_high"]
    # Where nothing is copied a share of 0.05 is flagged: (0.5 − 0.05) / 0.95 are copies beyond that.
    assert line["copy_rate"] == pytest.approx((line["flagged_share"] - 0.05) / 0.95)
    assert not line["within_budget"]


def test_constant_samples_are_no_copies_and_have_no_correlation(watcher: LiveWatcher) -> None:
    line = watcher.judge(np.full((3, 1, SIZE, SIZE), 7, np.uint8))
    assert line["flagged"] == 0
    assert np.isnan(line["highest_train"])
    assert np.isnan(line["highest_holdout"])


def test_both_roles_are_compared_with_as_many_images(cohort: Path, tmp_path: Path) -> None:
    watcher = open_watcher(cohort, tmp_path, subjects=12)
    train, others = watcher._alike("train"), watcher._alike("holdout")
    assert len(train) == len(others) == 12
    np.testing.assert_array_equal(train, watcher.images.rows)
    assert len(watcher.index.holdout) == 88  # the subjects of the train role that this run does not see, too
    assert np.isin(others, watcher.index.holdout).all()
    assert len(set(others.tolist())) == 12
    np.testing.assert_array_equal(others, watcher._alike("holdout"))


def test_samples_of_one_picture_are_alike_and_it_is_told(
    cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    monkeypatch.setattr("unalike.runs.watch.tell", told.append)
    watcher = open_watcher(cohort, tmp_path / "out", samples=60)
    random = np.random.default_rng(5)
    one = draw_person(random, size=SIZE)[None].astype(int)
    noise = random.integers(-2, 3, (60, 1, SIZE, SIZE))
    shown = {
        2: np.clip(np.repeat(one, 60, axis=0) + noise, 0, 255).astype(np.uint8),
        4: np.stack([draw_person(random, size=SIZE) for _ in range(60)]),
    }
    for step, samples in shown.items():
        watcher.record(watcher.look(lambda _, drawn=samples: drawn, step=step))
    lines = [json.loads(line) for line in (watcher.out / "watch.jsonl").read_text().splitlines()]
    assert lines[0]["alike"] == 1
    assert lines[1]["alike"] < 0.25
    looks = [text for text in told if text.startswith("step ")]
    assert "; alike 100 %" in looks[0]
    assert "alike" not in looks[1]
    assert list(watcher.thresholds) == [50]  # once, with as many images as there are subjects


def test_training_images_are_as_varied_as_training_images(watcher: LiveWatcher, cohort: Path) -> None:
    train = read_role(cohort, "train")
    assert 0.02 <= watcher.judge(train)["alike"] <= 0.06
    assert watcher.judge(np.full((3, 1, SIZE, SIZE), 7, np.uint8))["alike"] == 1


@pytest.mark.parametrize(("samples", "alike", "said"), [(50, 0.62, "; alike 62 %"), (50, 0.3, ""), (19, 1.0, "")])
def test_alike_is_said_only_where_it_is_sure(watcher: LiveWatcher, samples: int, alike: float, said: str) -> None:
    assert watcher._tell_alike({"samples": samples, "alike": alike}) == said
    assert watcher._tell_alike({"samples": 1, "alike": np.nan}) == ""


def test_the_level_is_raised_to_what_the_holdout_can_give(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, watcher: LiveWatcher
) -> None:
    told: list[str] = []
    monkeypatch.setattr("unalike.runs.watch.tell", told.append)
    few = open_watcher(write_cohort(tmp_path / "cohort", train=6, holdout=4), tmp_path / "out")
    assert few.level == 1 / 5
    assert told[-1] == "4 holdout subjects: copies are watched for at level 0.2."
    assert watcher.level == 0.05


def test_without_holdout_subjects_nothing_is_trained(tmp_path: Path) -> None:
    cohort = write_cohort(tmp_path / "cohort", train=4, holdout=0)
    with pytest.raises(SettingsError, match=r"no holdout subjects.*--holdout") as error:
        train_generator(kind="diffusion", cohort=cohort, out=tmp_path / "run", settings=TINY, watch=LOOKS)
    one_line(error)
    assert not (tmp_path / "run").exists()
    # Subjects of the train role that the run does not see are as good.
    watcher = open_watcher(cohort, tmp_path / "out", subjects=2)
    assert watcher.level == 1 / 3


def test_each_look_asks_for_the_same_noises(watcher: LiveWatcher, cohort: Path) -> None:
    asked: list[list[int]] = []

    def draw(seeds: Sequence[int]) -> np.ndarray:
        asked.append(list(seeds))
        return read_role(cohort, "holdout")[: len(seeds)]

    for step in (2, 4):
        assert watcher.look(draw, step=step).line["step"] == step
    assert asked[0] == asked[1]
    assert len(set(asked[0])) == LOOKS.samples


# What is written


def test_a_damaged_line_is_passed_over(tmp_path: Path) -> None:
    said = dict.fromkeys(SAID, 1.0)
    write_watch(
        tmp_path, {4: said | {"step": 4, "frechet_train": float("nan")}, 2: said | {"step": 2, "frechet_train": 1.5}}
    )
    place = tmp_path / "watch.jsonl"
    lines = place.read_bytes().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [2, 4]
    place.write_bytes(
        b"\n".join([lines[0], b"\xff\x00", b"7", b'{"step": null}', b'{"step": 3}', b"", lines[1], b'{"step": 6, "fre'])
    )
    found = read_watch(tmp_path)
    assert list(found) == [2, 4]
    assert found[2]["frechet_train"] == 1.5
    assert np.isnan(found[4]["frechet_train"])
    assert read_watch(tmp_path / "elsewhere") == {}


@pytest.fixture(scope="module")
def watched(cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 8 updates, looked at four times."""
    out = tmp_path_factory.mktemp("watched") / "run"
    return train_generator(kind="diffusion", cohort=cohort, out=out, settings=TINY, watch=LOOKS, device="cpu")


def test_a_run_keeps_its_lines_and_their_picture(watched: Path) -> None:
    lines = [json.loads(line) for line in (watched / "watch.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4, 6, 8]
    assert {line["samples"] for line in lines} == {8}
    picture = (watched / "watch.png").read_bytes()
    assert picture.startswith(PNG)
    assert not list(watched.glob("*.partial"))
    header = folders.read_header(watched, kind="run")
    assert header.settings["watch"]["every"] == 2
    assert header.content["chosen_step"] in (2, 4, 6, 8)


def test_nothing_in_the_run_names_anybody(watched: Path, cohort: Path) -> None:
    names = [b"pseudonym-", b"origin-", str(cohort).encode(), cohort.parent.name.encode()]
    assert any(b"pseudonym-" in file.read_bytes() for file in cohort.rglob("*.parquet"))  # they can be found
    for file in watched.rglob("*"):
        if file.is_file():
            data = file.read_bytes()
            assert not [name for name in names if name in data], file


# Which weights are kept


def script(monkeypatch: pytest.MonkeyPatch, distances: dict[int, float], beyond: Sequence[int] = ()) -> list[int]:
    """Let looks at these steps say these Fréchet distances, and that those ``beyond`` are beyond the budget."""
    asked: list[int] = []
    steps = iter(distances)

    def scripted(self: LiveWatcher, samples: np.ndarray) -> dict[str, Any]:
        step = next(steps)
        asked.append(step)
        return JUDGE(self, samples) | {"frechet_train": distances[step], "within_budget": step not in beyond}

    monkeypatch.setattr(LiveWatcher, "judge", scripted)
    return asked


def train(cohort: Path, out: Path, watch: WatchSettings | None = None, **settings: Any) -> Path:
    given = TINY | settings
    return train_generator(kind="diffusion", cohort=cohort, out=out, settings=given, watch=watch, device="cpu")


def model_digest(run: Path) -> str:
    return str(folders.read_header(run, kind="run").content["model_digest"])


def test_the_best_are_the_smallest_distance_within_the_budget(
    cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script(monkeypatch, {2: 9.0, 4: 5.0, 6: 1.0, 8: 7.0}, beyond=[6])
    run = train(cohort, tmp_path / "run", LOOKS)
    content = folders.read_header(run, kind="run").content
    assert (content["chosen_step"], content["within_budget"]) == (4, True)
    assert [line["best"] for line in read_watch(run).values()] == [True, True, False, False]
    best = sorted((run / watching.BEST).iterdir())
    assert [place.name for place in best] == ["step-00000004"]


def test_watching_does_not_change_what_is_learned(
    cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = train(cohort, tmp_path / "plain", steps=4)
    script(monkeypatch, {2: 9.0, 4: 1.0})
    watched = train(cohort, tmp_path / "watched", LOOKS, steps=4)
    assert folders.read_header(watched, kind="run").content["chosen_step"] == 4
    assert model_digest(watched) == model_digest(plain)


def test_without_weights_within_the_budget_the_last_are_kept_and_it_is_told(
    cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = train(cohort, tmp_path / "plain", steps=4)
    script(monkeypatch, {2: 9.0, 4: 1.0}, beyond=[2, 4])
    watched = train(cohort, tmp_path / "watched", LOOKS, steps=4)
    content = folders.read_header(watched, kind="run").content
    assert (content["chosen_step"], content["within_budget"]) == (4, False)
    assert model_digest(watched) == model_digest(plain)


@pytest.mark.parametrize("beyond", [[4, 6, 8], [2, 4, 6, 8]])
def test_a_strict_watcher_ends_the_training(
    cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, beyond: list[int]
) -> None:
    asked = script(monkeypatch, {2: 9.0, 4: 5.0, 6: 3.0, 8: 1.0}, beyond=beyond)
    strict = dataclasses.replace(LOOKS, stop=True)
    if beyond[0] == 2:
        with pytest.raises(RunError, match=r"no weights of .* within the budget.*step 2 on") as error:
            train(cohort, tmp_path / "run", strict)
        one_line(error)
        assert folders.kind_of(tmp_path / "run") is None
        with pytest.raises(RunError):  # nor does the same command train on
            train(cohort, tmp_path / "run", strict)
    else:
        run = train(cohort, tmp_path / "run", strict)
        assert folders.read_header(run, kind="run").content["chosen_step"] == 2
    assert asked == list(range(2, beyond[0] + 1, 2))


def test_an_interrupted_look_is_looked_at_again(cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = train(cohort, tmp_path / "whole", LOOKS, steps=4)
    calls: list[int] = []

    def interrupted(self: LiveWatcher, samples: np.ndarray) -> dict[str, Any]:
        calls.append(len(samples))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return JUDGE(self, samples)

    monkeypatch.setattr(LiveWatcher, "judge", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(cohort, tmp_path / "pieces", LOOKS, steps=4)
    assert list(read_watch(tmp_path / "pieces")) == [2]
    pieces = train(cohort, tmp_path / "pieces", LOOKS, steps=4)
    assert len(calls) == 3
    assert read_watch(pieces) == read_watch(whole)
    assert model_digest(pieces) == model_digest(whole)


def test_a_look_between_best_weights_and_their_line_is_repeated(
    cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script(monkeypatch, {2: 5.0, 4: 1.0})
    record = LiveWatcher.record

    def interrupted(self: LiveWatcher, glance: watching.Glance) -> None:
        if glance.line["step"] == 4:
            raise KeyboardInterrupt
        record(self, glance)

    with monkeypatch.context() as patch:
        patch.setattr(LiveWatcher, "record", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(cohort, tmp_path / "run", LOOKS, steps=4)
    script(monkeypatch, {4: 1.0})
    run = train(cohort, tmp_path / "run", LOOKS, steps=4)
    assert folders.read_header(run, kind="run").content["chosen_step"] == 4


def test_all_weight_averages_of_the_best_update_are_kept(
    cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = train(cohort, tmp_path / "plain", ema_decays=(0.5, 0.9), decay="constant", steps=4)
    script(monkeypatch, {4: 1.0, 8: 2.0})
    rare = dataclasses.replace(LOOKS, every=4)
    watched = train(cohort, tmp_path / "watched", rare, ema_decays=(0.5, 0.9), decay="constant")
    assert folders.read_header(watched, kind="run").content["chosen_step"] == 4
    assert model_digest(watched) == model_digest(plain)
    assert load_newest_checkpoint(plain, identity="", room=watching.BEST) is None


def test_a_run_that_is_given_masks_can_be_watched(tmp_path: Path) -> None:
    cohort = write_cohort(tmp_path / "cohort", train=6, holdout=4, mask=True)
    run = train(cohort, tmp_path / "run", LOOKS, condition=("mask",), steps=2)
    assert list(read_watch(run)) == [2]


def test_a_training_that_learns_a_patient_by_heart_stops_and_keeps_weights_from_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cohort = write_cohort(tmp_path / "cohort", train=8, holdout=40)
    # Every batch is the first patient, again and again.
    place = "unalike.generators.diffusion.train.batch_positions"
    monkeypatch.setattr(place, lambda n, count, batch_size, seed: np.zeros(batch_size, np.int64))
    strict = WatchSettings(every=40, samples=16, steps=5, budget=0.4, stop=True)
    settings = {"steps": 400, "base_channels": 16, "learning_rate": 4e-3, "ema_decays": (0.9,), "decay": "constant"}
    run = train(cohort, tmp_path / "run", strict, **settings)
    lines = list(read_watch(run).values())
    assert [line["within_budget"] for line in lines] == [True] * (len(lines) - 1) + [False]
    assert lines[-1]["step"] < 400
    assert lines[-1]["highest_train"] > max(0.5, lines[-1]["highest_holdout"])
    assert folders.read_header(run, kind="run").content["chosen_step"] in [line["step"] for line in lines[:-1]]


# What is refused


def test_stopping_needs_looks(cohort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    assert run_command(["train", "diffusion", str(cohort), "--out", str(out), "--stop-on-memorization"]) == 2
    assert "give --watch-every" in capsys.readouterr().err
    assert not out.exists()


def test_only_what_is_trained_step_by_step_is_watched(
    cohort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert run_command(["train", "gaussian", str(cohort), "--out", str(out), "--watch-every", "5"]) == 2
    assert "--watch-every" in capsys.readouterr().err
    with pytest.raises(SettingsError, match="gaussian is not trained step by step"):
        train_generator(kind="gaussian", cohort=cohort, out=out, watch=LOOKS)
    assert not out.exists()


@pytest.mark.parametrize(
    ("given", "said"),
    [({"every": 0}, "watch_every"), ({"level": 1.0}, "watch_level"), ({"budget": 1.0}, "copy_budget")],
)
def test_senseless_settings_are_refused_by_name(given: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        WatchSettings(**given)
