"""Guarded sampling: copies are rejected, the others are who they would have been, and how many were is told."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.conftest import draw_person

from unalike import folders
from unalike.audit.index import CopyIndex
from unalike.cli import run as run_command
from unalike.cohort.split import select_train_rows
from unalike.cohort.store import ImageFolder, ImageWriter, open_images
from unalike.errors import FolderError, InputError, RunError, SettingsError
from unalike.generators.controls.gaussian import GaussianSampler
from unalike.runs.guard import Guard, Tally
from unalike.runs.sample import PARTS, draw_samples
from unalike.runs.settings import GuardSettings
from unalike.runs.train import train_generator

SIZE = 16  # pixels a side
LEVEL = 0.2  # at which a run that copies nobody still has some samples rejected


def write_cohort(out: Path, *, train: int, holdout: int, seed: int = 3) -> Path:
    """A cohort of people with an image each, the last ones held out."""
    random = np.random.default_rng(seed)
    folders.begin_folder(out, kind="cohort", settings={})
    writer = ImageWriter(out, channels=("t1",), height=SIZE, width=SIZE, dtype=np.dtype(np.uint8))
    for subject in range(train + holdout):
        record = {"subject": f"pseudonym-{subject:03d}", "source": f"origin-{subject:03d}"}
        writer.append(draw_person(random, size=SIZE), record | {"role": "train" if subject < train else "holdout"})
    folders.finish_folder(out, kind="cohort", settings={}, seed=0, inputs={}, content=writer.close())
    return out


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cohort of 60 train and 60 holdout subjects, a run that copies and one that cannot."""
    house = tmp_path_factory.mktemp("house")
    cohort = write_cohort(house / "cohort", train=60, holdout=60)
    for kind in ("memorizer", "gaussian"):
        train_generator(kind=kind, cohort=cohort, out=house / kind)
    return house


Draw = Callable[..., ImageFolder]


@pytest.fixture
def draw(house: Path, tmp_path: Path) -> Draw:
    """Draw samples of a run into a folder of this test."""

    def draw(kind: str = "gaussian", name: str = "samples", *, guard: bool = True, **order: Any) -> ImageFolder:
        given = {"count": 12, "guard_settings": GuardSettings(level=LEVEL)} | order
        guarded = {"guard": house / "cohort"} if guard else {}
        return open_images(draw_samples(run=house / kind, out=tmp_path / name, **guarded | given), kind="samples")

    return draw


def read_rejections(samples: ImageFolder) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = json.loads((samples.path / "rejected.json").read_text())
    return entries


def one_line(error: pytest.ExceptionInfo[BaseException]) -> None:
    assert len(str(error.value).splitlines()) == 1


# What is kept


def test_a_run_that_copies_everybody_is_given_up_early(house: Path, draw: Draw, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"(\d+) of \1 samples \(100\.0%, .* look like copies: 64 others") as error:
        draw("memorizer", count=64, settings={"batch_size": 16})
    one_line(error)
    drawn = int(str(error.value).split(" of ")[1].split()[0])
    assert 16 <= drawn <= 64  # of 640
    assert not (tmp_path / "samples").exists()  # what was drawn shows patients


def test_giving_up_is_exit_code_1(house: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "samples"
    order = ["sample", str(house / "memorizer"), "--count", "64", "--out", str(out), "--guard", str(house / "cohort")]
    assert run_command(order) == 1
    assert "look like copies" in capsys.readouterr().err
    assert not (out / "samples.json").exists()


def test_a_run_that_copies_nobody_loses_about_the_level(house: Path, draw: Draw) -> None:
    samples = draw(count=100)
    assert len(samples) == 100
    told = samples.header.content["guard"]
    assert (told["level"], told["holdout_subjects"]) == (LEVEL, 60)
    assert told["drawn"] == 100 + told["rejected"]
    # The standard deviation of a share of 120 at this level is 0.04, of the calibration by 60 subjects 0.05.
    assert 0.05 < told["rejected"] / told["drawn"] < 0.4
    assert told["rejected_share"]["value"] == told["rejected"] / told["drawn"]
    assert told["rejected_share"]["low"] < told["rejected_share"]["value"] < told["rejected_share"]["high"]


def test_kept_and_rejected_are_those_that_the_index_tells_apart(house: Path, draw: Draw) -> None:
    samples = draw(count=30)
    kept = samples.numbers("seed").tolist()
    rejections = read_rejections(samples)
    drawn = kept[-1] + 1
    plain = draw(name="plain", guard=False, count=drawn)
    pixels = plain.read(plain.rows("synthetic"))
    found = CopyIndex.open(house / "cohort").query(pixels, level=LEVEL)
    assert kept == np.flatnonzero(~found.flagged)[:30].tolist()
    assert [entry["seed"] for entry in rejections] == np.flatnonzero(found.flagged).tolist()
    assert rejections  # or this test says nothing
    np.testing.assert_array_equal(samples.read(samples.rows("synthetic")), pixels[kept])
    for entry in rejections:
        assert entry["p_value"] == found.p_values[entry["seed"]] <= LEVEL
        assert entry["similarity"] == found.similarities[entry["seed"]]
        assert entry["reason"] == "looks like a copy"


def test_the_batch_size_changes_nobody(draw: Draw) -> None:
    drawn = [draw(name=f"by-{size}", count=10, settings={"batch_size": size}) for size in (2, 7, 64)]
    digests = {samples.header.content["images_digest"] for samples in drawn}
    seeds = {tuple(samples.numbers("seed").tolist()) for samples in drawn}
    rejected = {json.dumps(read_rejections(samples)) for samples in drawn}
    told = {json.dumps(samples.header.content["guard"]) for samples in drawn}
    assert len(digests) == len(seeds) == len(rejected) == len(told) == 1


def test_seeds_go_on_from_the_first(draw: Draw) -> None:
    samples = draw(count=5, first_seed=1000)
    seeds = [*samples.numbers("seed").tolist(), *(entry["seed"] for entry in read_rejections(samples))]
    assert sorted(seeds) == list(range(1000, 1000 + len(seeds)))


def test_nothing_in_the_folder_names_anybody(house: Path, draw: Draw) -> None:
    samples = draw(count=20)
    names = [b"pseudonym-", b"origin-", str(house).encode()]
    for file in samples.path.rglob("*"):
        if file.is_file():
            data = file.read_bytes()
            assert not [name for name in names if name in data], file


def test_subjects_that_the_run_did_not_see_count_as_unseen(house: Path, draw: Draw, tmp_path: Path) -> None:
    run = train_generator(kind="memorizer", cohort=house / "cohort", out=tmp_path / "run", subjects=20, seed=5)
    with pytest.raises(RunError):
        draw_samples(run=run, out=tmp_path / "own", count=20, guard=house / "cohort")
    rows = select_train_rows(open_images(house / "cohort"), subjects=20, seed=5)
    assert CopyIndex.open(house / "cohort", train_rows=rows).smallest_p == 1 / 101


# After an interruption


def test_an_interrupted_drawing_resumes_to_the_same_folder(draw: Draw, monkeypatch: pytest.MonkeyPatch) -> None:
    order = {"count": 12, "settings": {"batch_size": 4}}
    whole = draw(name="whole", **order)
    plain, drawn = GaussianSampler.draw, []

    def stopping(self: GaussianSampler, seeds: Sequence[int]) -> Any:
        drawn.append(seeds[0])
        if len(drawn) == 3:
            raise KeyboardInterrupt
        return plain(self, seeds)

    monkeypatch.setattr(GaussianSampler, "draw", stopping)
    with pytest.raises(KeyboardInterrupt):
        draw(name="pieces", **order)
    pieces = draw(name="pieces", **order)
    assert drawn[:4] == [0, 4, 8, 8]  # nothing twice but what was not finished
    assert pieces.header.content["images_digest"] == whole.header.content["images_digest"]
    assert pieces.header.content["guard"] == whole.header.content["guard"]
    assert read_rejections(pieces) == read_rejections(whole)
    assert not (pieces.path / PARTS).exists()


def test_a_drawing_is_not_resumed_without_its_guard(draw: Draw, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("unalike.runs.sample.Drawing.assemble", stop)
        with pytest.raises(KeyboardInterrupt):
            draw()
    with pytest.raises(FolderError, match="other settings"):
        draw(guard=False)
    with pytest.raises(FolderError, match="other settings"):
        draw(guard_settings=GuardSettings(level=0.3))
    assert len(draw()) == 12


# What is rejected


def test_rejected_samples_go_into_a_folder_that_says_so(draw: Draw, tmp_path: Path) -> None:
    samples = draw(count=30, rejected=tmp_path / "rejected")
    turned_away = open_images(tmp_path / "rejected", kind="samples")
    seeds = [entry["seed"] for entry in read_rejections(samples)]
    assert turned_away.numbers("seed").tolist() == seeds
    content = turned_away.header.content
    assert content["rejected"] is content["holds_training_images"] is True
    assert "rejected" not in samples.header.content
    assert samples.header.content["holds_training_images"] is False
    plain = draw(name="plain", guard=False, count=seeds[-1] + 1)
    np.testing.assert_array_equal(turned_away.images[:], plain.images[:][seeds])


def test_where_nothing_was_rejected_there_is_no_such_folder(
    draw: Draw, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from unalike.runs import guard as guard_module

    look = Guard.look

    def merciful(self: Guard, samples: np.ndarray) -> Any:
        found = look(self, samples)
        found.flagged[:] = False
        return found

    monkeypatch.setattr(guard_module.Guard, "look", merciful)
    samples = draw(rejected=tmp_path / "rejected")
    assert samples.header.content["guard"]["rejected"] == 0
    assert read_rejections(samples) == []
    assert not (tmp_path / "rejected").exists()


def test_the_command_tells_how_many(house: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    order = ["sample", str(house / "gaussian"), "--count", "20", "--guard", str(house / "cohort")]
    order += ["--guard-level", str(LEVEL)]
    assert run_command([*order, "--out", str(tmp_path / "a")]) == 0
    told = folders.read_header(tmp_path / "a", kind="samples").content["guard"]
    said = f"guard: {told['rejected']} of {told['drawn']} samples looked like copies and were rejected"
    assert capsys.readouterr().out.splitlines()[0] == said
    assert run_command([*order, "--out", str(tmp_path / "b"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["guard"] == told


# Counting


class Found:
    """As much of findings as a tally reads."""

    def __init__(self, flagged: Sequence[bool]) -> None:
        self.flagged = np.array(flagged)
        self.identical = np.zeros(len(flagged), bool)
        self.p_values = np.where(self.flagged, 0.01, 0.5)
        self.similarities = np.full(len(flagged), 0.9)
        self.spoke = np.array(["whitened"] * len(flagged))


def test_a_tally_stops_at_the_last_sample_wanted() -> None:
    tally = Tally(wanted=3, limit=30)
    tally.add([5, 6], Found([True, False]))
    assert not tally.done
    tally.add([7, 8, 9, 10], Found([False, True, False, True]))
    assert tally.done
    assert (tally.kept, tally.drawn) == ([6, 7, 9], 5)  # sample 10 was never asked for
    assert [entry["seed"] for entry in tally.rejections] == [5, 8]
    assert tally.rejections[0]["reason"] == "looks like a copy"


def test_a_tally_tells_identical_images() -> None:
    tally, found = Tally(wanted=1, limit=10), Found([True])
    found.identical[:] = True
    tally.add([3], found)
    assert tally.rejections[0]["reason"] == "pixel-identical to a training image"


def test_a_tally_gives_up_when_the_rate_cannot_be_enough() -> None:
    # If none of n is kept the share is at most 1 − 0.025^(1/n), which is below a tenth from n = 36 on.
    tally = Tally(wanted=100, limit=1000)
    tally.add(range(35), Found([True] * 35))
    tally.give_up_in_time()
    tally.add(range(35, 36), Found([True]))
    with pytest.raises(RunError, match=r"36 of 36 samples \(100\.0%, 90\.3% to 100\.0%\)"):
        tally.give_up_in_time()


def test_a_tally_gives_up_at_the_limit() -> None:
    tally = Tally(wanted=5, limit=8)
    tally.add(range(8), Found([True, False] * 4))
    with pytest.raises(RunError, match="4 of 8 samples"):
        tally.give_up_in_time()
    tally = Tally(wanted=4, limit=8)
    tally.add(range(8), Found([True, False] * 4))
    tally.give_up_in_time()


# What is refused


def test_a_guard_of_another_cohort_is_refused(house: Path, tmp_path: Path) -> None:
    other = write_cohort(tmp_path / "other", train=8, holdout=30, seed=9)
    with pytest.raises(InputError, match="is not the cohort that") as error:
        draw_samples(run=house / "gaussian", out=tmp_path / "refused", count=2, guard=other)
    one_line(error)
    assert not (tmp_path / "refused").exists()


@pytest.mark.parametrize("place", ["nowhere", "gaussian"])
def test_a_guard_is_a_cohort(house: Path, tmp_path: Path, place: str, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "samples"
    with pytest.raises(FolderError, match=place) as error:
        draw_samples(run=house / "gaussian", out=out, count=2, guard=house / place)
    one_line(error)
    order = ["sample", str(house / "gaussian"), "--count", "2", "--out", str(out), "--guard", str(house / place)]
    assert run_command(order) == 2
    assert place in capsys.readouterr().err
    assert not out.exists()


def test_a_level_below_the_smallest_p_value_is_refused_and_the_folder_is_free(draw: Draw, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"--guard-level 0.01 rejects no image.*60 subjects.*below 0.0164") as error:
        draw(guard_settings=GuardSettings(level=0.01))
    one_line(error)
    assert not (tmp_path / "samples").exists()
    assert len(draw()) == 12


def test_rejected_samples_need_a_guard_and_a_folder_of_their_own(draw: Draw, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="give --guard COHORT"):
        draw(guard=False, rejected=tmp_path / "rejected")
    with pytest.raises(SettingsError, match="is --out as well"):
        draw(rejected=tmp_path / "samples")
    assert not (tmp_path / "samples").exists()


@pytest.mark.parametrize(("given", "said"), [({"level": 0.0}, "guard_level"), ({"patience": 0}, "guard_patience")])
def test_senseless_settings_are_refused_by_name(given: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        GuardSettings(**given)
