"""Sweeps: the grid, what is refused at once, numbers known from the parts, resuming cell by cell, cells that fail."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cyclopts import App
from tests.conftest import draw_person

from unalike import folders
from unalike.audit.diversity import highest_among, images_as_groups, share_alike
from unalike.audit.index import CopyIndex
from unalike.cli.sweep import sweep as sweep_command
from unalike.cohort.split import select_train_rows
from unalike.cohort.store import ImageWriter, open_images
from unalike.errors import FolderError, NonFiniteLossError, RunError, SettingsError
from unalike.fidelity import own
from unalike.fidelity.frechet import frechet_estimate
from unalike.fidelity.own import open_own_features
from unalike.generators.controls.gaussian import GaussianSampler
from unalike.records import Estimate, Pixels
from unalike.runs.sample import draw_samples
from unalike.runs.train import train_generator
from unalike.study import sweep
from unalike.study.sweep import (
    Cell,
    Measured,
    Row,
    Sweep,
    draw_sweep,
    plan_sweep,
    read_sweep,
    sweep_generator,
)

SIZE = 16  # pixels a side
COUNT = 24
TRAIN, HELD = 36, 20
GRID: dict[str, Any] = {
    "train": ["components=2,6", "subjects=12,all"],
    "sample": ["batch_size=10,24"],
    "count": COUNT,
    "device": "cpu",
}
SMALL: dict[str, Any] = {"train": ["components=2,6"], "sample": [], "count": 6, "device": "cpu"}


def write_cohort(out: Path, *, train: int = TRAIN, holdout: int = HELD) -> Path:
    """People with an image each, the last ones held out."""
    random = np.random.default_rng(3)
    folders.begin_folder(out, kind="cohort", settings={})
    writer = ImageWriter(out, channels=("t1",), height=SIZE, width=SIZE, dtype=np.dtype(np.uint8))
    for subject in range(train + holdout):
        record = {"subject": f"pseudonym-{subject:03d}", "source": f"origin-{subject:03d}"}
        writer.append(
            draw_person(random, size=SIZE)[0][None], record | {"role": "train" if subject < train else "holdout"}
        )
    folders.finish_folder(out, kind="cohort", settings={}, seed=0, inputs={}, content=writer.close())
    return out


@pytest.fixture(autouse=True, scope="module")
def quick() -> Iterator[None]:
    """Features and intervals that are made in a moment."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(own, "SETTINGS", dataclasses.replace(own.SETTINGS, steps=5, width=8, dimension=4))
        patch.setattr(sweep, "frechet_estimate", few_resamples)
        patch.setattr(sweep, "PLANTED", 8)
        yield


def few_resamples(*given: Any, **named: Any) -> Estimate:
    return frechet_estimate(*given, **named, resamples=10)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cohort(tmp_path_factory.mktemp("house") / "cohort")


@pytest.fixture(scope="module")
def whole(cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sweep_generator(kind="gaussian", cohort=cohort, out=tmp_path_factory.mktemp("whole") / "s", **GRID)


@pytest.fixture
def no_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep, "draw_sweep", lambda found, *, place: None)


def numbers(found: Estimate) -> tuple[float, float, float]:
    return found.value, found.low, found.high


def without_time(found: Sweep) -> list[Row]:
    return [
        dataclasses.replace(row, found=row.found and dataclasses.replace(row.found, seconds=0.0, training_seconds=0.0))
        for row in found.rows
    ]


# The plan


def test_the_grid_goes_run_by_run_and_the_last_name_varies_fastest(cohort: Path) -> None:
    plan = plan_sweep(
        kind="diffusion",
        cohort=cohort,
        train=["learning-rate=0.1,0.2", "subjects=3,all"],
        sample={"steps": [20, 50], "guidance": [1, 2.5]},
    )
    runs = [(0.1, 3), (0.1, None), (0.2, 3), (0.2, None)]
    assert [tuple(train.values()) for train in plan.runs] == runs
    draws = [(20, 1), (20, 2.5), (50, 1), (50, 2.5)]
    cells = [(tuple(cell.train.values()), tuple(cell.sample.values())) for cell in plan.cells]
    assert cells == [(run, draw) for run in runs for draw in draws]


def test_words_are_read_as_the_settings_types(cohort: Path) -> None:
    plan = plan_sweep(
        kind="diffusion",
        cohort=cohort,
        train=["ema_decays=0.9+0.99,0.5", "size=tiny,small", "compile=true,False"],
        fixed=["channel_multipliers=1,2", "subjects=all"],
        sample={"attributes": [("age=60", "sex=f")], "label": "a,b"},
    )
    assert plan.train == {"ema_decays": [(0.9, 0.99), (0.5,)], "size": ["tiny", "small"], "compile": [True, False]}
    assert plan.fixed == {"channel_multipliers": (1, 2), "subjects": None}
    assert plan.sample == {"attributes": [("age=60", "sex=f")], "label": ["a", "b"]}


def test_a_name_given_again_adds_values(cohort: Path) -> None:
    plan = plan_sweep(kind="gaussian", cohort=cohort, train=["components=1", "components=2,3"])
    assert plan.train == {"components": [1, 2, 3]}


def test_all_that_is_wrong_is_listed_at_once(cohort: Path) -> None:
    with pytest.raises(SettingsError) as refused:
        plan_sweep(
            kind="diffusion",
            cohort=cohort,
            train=["vectors=1,2", "steps=many,0", "subjects=3,99,few", "broken", "learning_rate=0.1,0.1"],
            fixed=["batch_size=8", "accumulate=3", "size=huge", "steps=5", "batch_size=9"],
            sample=["stepz=5", "guidance=-1,1"],
            count=2,
        )
    said = str(refused.value)
    assert "\n" not in said
    for problem in (
        "--train vectors: unknown. A diffusion has: steps,",
        "--train steps = 'many': give a whole number.",
        "--train steps = 0: give at least 1.",
        "--train subjects = 99: give 1 to 36, or all.",
        "--train subjects = 'few'",
        "--train broken: give NAME=VALUE.",
        "--train learning_rate=0.1,0.1: give at least one value, each once.",
        "--set accumulate = 3: give a number that divides batch_size (8).",
        "--set size = 'huge': give one of tiny",
        "--set steps: varied by --train as well.",
        "--set batch_size: given twice.",
        "--sample stepz: unknown.",
        "--sample guidance = -1.0: give 0 or more.",
        "--count 2: a distance needs at least 3",
    ):
        assert said.count(problem) == 1, problem


def test_values_that_fit_only_together_are_not_refused(cohort: Path) -> None:
    plan = plan_sweep(kind="inversion", cohort=cohort, train={"accumulate": [2, 4]}, fixed={"batch_size": 8})
    assert len(plan.runs) == 2
    with pytest.raises(SettingsError, match=r"^--train accumulate = 4: .* batch_size \(6\)\.$"):
        plan_sweep(kind="inversion", cohort=cohort, train={"accumulate": [2, 4], "batch_size": [8, 6]})


def test_samples_that_are_no_independent_draws_are_refused(cohort: Path) -> None:
    with pytest.raises(SettingsError, match=r"--sample morph: .* no independent draws"):
        plan_sweep(kind="inversion", cohort=cohort, sample=["morph=a+b"])


@pytest.mark.parametrize("flag", ["train", "fixed"])
def test_a_run_that_needs_masks_is_refused(cohort: Path, flag: str) -> None:
    with pytest.raises(SettingsError, match="condition mask"):
        plan_sweep(kind="diffusion", cohort=cohort, **{flag: ["condition=mask"]})  # type: ignore[arg-type]


def test_what_is_refused_is_refused_before_anything_is_trained(
    cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep, "train_generator", lambda **_: pytest.fail("trained"))
    for wrong in ({"train": ["components=0"]}, {"kind": "magic"}, {"seed": -1}, {"device": "abacus"}):
        with pytest.raises(SettingsError):
            sweep_generator(**({"kind": "gaussian", "cohort": cohort, "out": tmp_path / "s"} | SMALL | wrong))
    assert not (tmp_path / "s").exists()


# The numbers


def test_the_numbers_of_a_cell_are_those_of_its_parts(cohort: Path, whole: Path, tmp_path: Path) -> None:
    row = read_sweep(whole).rows[4]
    assert (dict(row.cell.train), dict(row.cell.sample)) == ({"components": 6, "subjects": 12}, {"batch_size": 10})
    made = row.found
    assert made is not None
    first = folders.read_header(whole, kind="sweep").content["first_seed"]
    run = train_generator(
        kind="gaussian", cohort=cohort, out=tmp_path / "run", settings={"components": 6}, subjects=12, device="cpu"
    )
    drawn = open_images(draw_samples(run=run, out=tmp_path / "d", count=COUNT, first_seed=first), kind="samples")
    samples = drawn.read(np.arange(COUNT))
    opened = open_images(cohort)
    seen = select_train_rows(opened, subjects=12, seed=0)
    own = open_own_features(opened, device=torch.device("cpu"))
    train, owners = (opened.read(opened.rows("train")), opened.column("subject")[opened.rows("train")])
    direct = few_resamples(
        own.embed(samples), own.embed(train), subjects_a=images_as_groups(COUNT), subjects_b=owners, seed=0
    )
    assert numbers(made.frechet) == pytest.approx(numbers(direct), rel=1e-6)  # batches round differently
    index = CopyIndex.open(opened, train_rows=seen)
    flagged = index.query(samples, level=0.05).flagged
    assert (made.copies.value, made.copies.n) == (flagged.mean(), COUNT)
    # All but the run's own twelve: nobody else was seen.
    assert made.holdout_subjects == TRAIN + HELD - 12
    flat = [images.reshape(len(images), -1).astype(float) for images in (samples, opened.read(seen))]
    correlations = np.corrcoef(*flat)[:COUNT, COUNT:]
    assert made.highest.value == pytest.approx(correlations.max(axis=1).mean(), abs=1e-12)
    assert made.highest.low < made.highest.value < made.highest.high
    random = np.random.default_rng(0)
    assert made.alike.n == COUNT
    among = highest_among(samples)
    shares = [
        share_alike(among, float(np.quantile(highest_among(train[random.permutation(TRAIN)[:COUNT]]), 0.95))).value
        for _ in range(20)
    ]
    assert min(shares) <= made.alike.value <= max(shares)
    assert made.seconds > 0
    assert made.training_seconds > 0


def test_cells_differ_in_what_varies_alone(whole: Path) -> None:
    found = without_time(read_sweep(whole))
    assert len(found) == 8
    for one, other in zip(found[::2], found[1::2], strict=True):
        assert one.run == other.run
        assert one.found is not None
        assert other.found is not None
        # The batch size changes no pixel, only rounding in the features.
        assert dataclasses.replace(one.found, frechet=other.found.frechet) == other.found
        assert numbers(one.found.frechet) == pytest.approx(numbers(other.found.frechet), rel=1e-6)
    assert len({row.run for row in found}) == 4
    distances = [row.found.frechet.value for row in found[::2] if row.found]
    assert len(set(distances)) == 4


def test_a_memorizer_copies_and_the_power_says_it_would_be_seen(cohort: Path, tmp_path: Path, no_picture: None) -> None:
    given: dict[str, Any] = {"count": 20, "device": "cpu"}
    out = sweep_generator(kind="memorizer", cohort=cohort, out=tmp_path / "m", train=["subjects=3,all"], **given)
    few, everybody = (row.found for row in read_sweep(out).rows)
    assert few is not None
    assert everybody is not None
    assert everybody.copies.value == 1
    assert everybody.power.value > 0.5
    assert everybody.highest.value > 0.9 > everybody.highest_holdout.value
    # Three pictures drawn over and over are alike.
    assert few.alike.value == 1


def test_without_enough_holdout_subjects_no_share_of_copies_is_told(tmp_path: Path, no_picture: None) -> None:
    small = write_cohort(tmp_path / "cohort", train=12, holdout=0)
    found = read_sweep(sweep_generator(kind="gaussian", cohort=small, out=tmp_path / "s", **SMALL))
    assert all(row.found and math.isnan(row.found.copies.value) for row in found.rows)
    assert all(row.found and math.isnan(row.found.highest_holdout.value) for row in found.rows)
    assert math.isnan(found.yardstick.value)
    assert "undefined" in found.table()


# The folder


def test_the_folder_is_complete_and_says_the_same_in_every_form(cohort: Path, whole: Path) -> None:
    names = ["runs", "sweep.csv", "sweep.json", "sweep.md", "sweep.png", "sweep.tex"]
    assert sorted(path.name for path in whole.iterdir()) == names
    header = folders.read_header(whole, kind="sweep")
    assert header.inputs == {"cohort": folders.digest_of(cohort, kind="cohort")}
    assert header.settings["train"] == {"components": [2, 6], "subjects": [12, None]}
    found = read_sweep(whole)
    assert (whole / "sweep.md").read_text() == found.table() + "\n"
    lines = found.table().splitlines()
    assert lines[0].startswith("| components | subjects | batch_size | Fréchet distance | copies |")
    assert len([line for line in lines if line.startswith("|")]) == 2 + 8 + 1
    rows = list(csv.DictReader((whole / "sweep.csv").read_text().splitlines()))
    assert [row["subjects"] for row in rows] == ["12", "12", "all", "all"] * 2
    assert [float(row["frechet_high"]) for row in rows] == [row.found.frechet.high for row in found.rows if row.found]
    assert (whole / "sweep.tex").read_text().count(r" \\") == 1 + 8 + 1
    assert (whole / "sweep.png").read_bytes().startswith(b"\x89PNG")
    for row in found.rows:
        assert folders.kind_of(whole / row.run) == "run"
    with pytest.raises(FolderError, match="exists already"):
        sweep_generator(kind="gaussian", cohort=cohort, out=whole, **GRID)
    assert "pseudonym" not in "".join((whole / name).read_text() for name in names[1:] if name != "sweep.png")


def test_an_interrupted_sweep_goes_on_and_keeps_its_cells_to_the_byte(
    cohort: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_picture: None
) -> None:
    out, draw = tmp_path / "pieces", GaussianSampler.draw
    sizes: list[int] = []

    def interrupted(self: GaussianSampler, seeds: Sequence[int]) -> Pixels:
        sizes.append(len(seeds))
        if len(sizes) == limit:
            raise KeyboardInterrupt
        return draw(self, seeds)

    def parts() -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in (out / "parts").iterdir()}

    monkeypatch.setattr(GaussianSampler, "draw", interrupted)
    limit = 6  # groups of 10, 10, 4 and 24 are the first run's two cells; then the second group of the second run
    with pytest.raises(KeyboardInterrupt):
        sweep_generator(kind="gaussian", cohort=cohort, out=out, **GRID)
    kept = parts()
    first, second = ("001-components-2-subjects-12", "002-components-2-subjects-all")
    assert sorted(kept) == [f"{first}.0001.json", f"{first}.0002.json", f"{first}.json", f"{second}.json"]
    runs = {run: folders.digest_of(out / "runs" / run, kind="run") for run in (first, second)}
    assert folders.kind_of(out) is None
    with pytest.raises(FolderError, match="other settings"):
        sweep_generator(kind="gaussian", cohort=cohort, out=out, **(GRID | {"count": COUNT + 1}))
    sizes.clear()
    limit = 5  # the second run's two cells, and on
    with pytest.raises(KeyboardInterrupt):
        sweep_generator(kind="gaussian", cohort=cohort, out=out, **GRID)
    assert {name: parts()[name] for name in kept} == kept
    (out / "parts" / f"{first}.0001.json").write_text("{")  # damaged: measured again
    sizes.clear()
    limit = 0
    sweep_generator(kind="gaussian", cohort=cohort, out=out, **GRID)
    assert sizes == [10, 10, 4, *[10, 10, 4, 24] * 2]
    assert without_time(read_sweep(out)) == without_time(read_sweep(whole))
    assert runs == {run: folders.digest_of(out / "runs" / run, kind="run") for run in runs}
    kept_row = read_sweep(out).rows[1].found
    assert kept_row is not None
    assert kept_row.seconds == json.loads(kept[f"{first}.0002.json"])["seconds"]


def test_a_run_or_cell_that_fails_is_listed_and_stops_no_other(
    cohort: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_picture: None
) -> None:
    draw = GaussianSampler.draw

    def diverging(**given: Any) -> Path:
        if given["settings"] == {"components": 6}:
            raise NonFiniteLossError("the loss is not a number.")
        return train_generator(**given)

    def exhausted(self: GaussianSampler, seeds: Sequence[int]) -> Pixels:
        if len(seeds) == COUNT and len(self.model.scaled_components) == 2:
            raise torch.OutOfMemoryError
        return draw(self, seeds)

    monkeypatch.setattr(sweep, "train_generator", diverging)
    monkeypatch.setattr(GaussianSampler, "draw", exhausted)
    out = sweep_generator(kind="gaussian", cohort=cohort, out=tmp_path / "s", **GRID)
    rows = without_time(read_sweep(out))
    known = without_time(read_sweep(whole))
    assert [row.failed for row in rows] == ["", "OutOfMemoryError"] * 2 + ["the loss is not a number."] * 4
    assert [row.found for row in rows] == [known[0].found, None, known[2].found, *[None] * 5]
    text = (out / "sweep.md").read_text()
    assert "Failed: components=6, subjects=all (2 cells): the loss is not a number." in text
    assert "Failed: components=2, subjects=12; batch_size=24: OutOfMemoryError" in text
    assert [row["failed"] for row in csv.DictReader((out / "sweep.csv").read_text().splitlines())][4:] == [
        "the loss is not a number."
    ] * 4


def test_where_nothing_could_be_measured_the_reason_is_told(
    cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SettingsError, match="no cell could be trained: base = '': give --base"):
        sweep_generator(kind="inversion", cohort=cohort, out=tmp_path / "s", count=3, device="cpu")
    assert not (tmp_path / "s").exists()  # free for a corrected command

    def exhausted(self: GaussianSampler, seeds: Sequence[int]) -> Pixels:
        raise RunError("no room.")

    monkeypatch.setattr(GaussianSampler, "draw", exhausted)
    with pytest.raises(RunError, match=r"could be measured: no room\.$"):
        sweep_generator(kind="gaussian", cohort=cohort, out=tmp_path / "s", **SMALL)
    assert len(list((tmp_path / "s" / "runs").iterdir())) == 2


def test_another_kind_of_folder_is_no_sweep(cohort: Path, whole: Path, tmp_path: Path) -> None:
    with pytest.raises(FolderError, match="kind sweep"):
        read_sweep(cohort)


# The command


def test_the_command_prints_plan_table_or_json(
    cohort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], no_picture: None
) -> None:
    app = App()
    app.command(sweep_command)
    words = f"sweep gaussian {cohort} --train components=2,6 --train subjects=12 --sample batch_size=5,6".split()
    given = [*words, "--count", "6", "--device", "cpu", "--out"]
    before = sorted(path for path in tmp_path.rglob("*"))
    app([*given, str(tmp_path / "s"), "--dry-run"], result_action="return_value")
    told = capsys.readouterr().out
    assert "train 002-components-6-subjects-12: components=6, subjects=12" in told
    assert "2 runs, 4 cells" in told
    app([*given, str(tmp_path / "s"), "--dry-run", "--json"], result_action="return_value")
    planned = json.loads(capsys.readouterr().out)
    assert planned["cells"][1] == {"train": {"components": 2, "subjects": 12}, "sample": {"batch_size": 6}}
    assert sorted(path for path in tmp_path.rglob("*")) == before
    app([*given, str(tmp_path / "s"), "--json"], result_action="return_value")
    made = json.loads(capsys.readouterr().out)
    assert made["sweep"] == str(tmp_path / "s")
    assert [row["cell"]["sample"]["batch_size"] for row in made["rows"]] == [5, 6, 5, 6]
    fixed = f"sweep gaussian {cohort} --set components=2 --count 6 --device cpu --out {tmp_path / 't'}".split()
    app(fixed, result_action="return_value")
    assert "| Fréchet distance | copies | power |" in capsys.readouterr().out


# What is shown


def row_of(value: float, train: dict[str, Any], sample: dict[str, Any]) -> Row:
    sure = Estimate(value, value / 2, value * 2, 9, "planted")
    made = Measured(sure, sure, sure, sure, sure, sure, 30, 12.0, math.nan)
    return Row(Cell(train, sample), "runs/001", made if value else None, "" if value else "it diverged")


def test_text_is_escaped_and_equal_names_are_told_apart() -> None:
    prompt = "0.5*<a_b> | 5 % & $x^2$"
    rows = tuple(row_of(value, {"steps": 9, "compile": True}, {"steps": 5, "prompt": prompt}) for value in (0.25, 0.0))
    found = Sweep("inversion", 9, rows, Estimate(math.nan, math.nan, math.nan, 0, "none"))
    lines = found.table().splitlines()
    assert lines[0].startswith("| training steps | compile | sampling steps | prompt |")
    assert lines[2].startswith(r"| 9 | true | 5 | 0.5*\<a_b> \| 5 % & $x^2$ | 0.25 (0.125 to 0.5) | 25% (12% to 50%) |")
    assert lines[2].endswith("| 12 | unknown |")
    assert lines[3].endswith("| failed |  |  |  |  |  |  |  |")
    assert r"9 & true & 5 & 0.5*<a\_b> | 5 \% \& \$x\textasciicircum{}2\$ & 0.25 (0.125 to 0.5)" in found.tex()


@pytest.mark.parametrize("values", [(0.5, 0.25, 0.0, 1e-9), (0.0, 0.0, 0.0, 0.0)])
def test_text_failures_and_zeros_can_be_drawn(tmp_path: Path, values: tuple[float, ...]) -> None:
    cells = [({"size": size}, {"prompt": text}) for size in ("$tiny", "x_y$") for text in ("<a>$", "b")]
    rows = tuple(row_of(value, *cell) for value, cell in zip(values, cells, strict=True))
    draw_sweep(Sweep("inversion", 9, rows, Estimate(0.0, 0.0, 0.0, 9, "none")), place=tmp_path / "two.png")
    alone = Sweep("gaussian", 9, (row_of(0.5, {}, {}),), Estimate(math.nan, math.nan, math.nan, 0, "none"))
    draw_sweep(alone, place=tmp_path / "one.png")
    for name in ("one", "two"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
