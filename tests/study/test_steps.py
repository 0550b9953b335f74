"""Comparing samplers: distances known in closed form, a whole table, resuming cell by cell, and what is refused."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from cyclopts import App
from torch import nn

from unalike import folders
from unalike.cli.steps import steps as steps_command
from unalike.cohort.store import ImageWriter
from unalike.errors import FolderError, InputError, SettingsError
from unalike.fidelity import own
from unalike.fidelity.frechet import frechet_estimate
from unalike.generators.data import PixelScale
from unalike.generators.diffusion.conditions import Conditions
from unalike.generators.diffusion.model import DiffusionModel
from unalike.generators.diffusion.noise import build_scheduler
from unalike.generators.diffusion.sample import DiffusionSampler
from unalike.generators.diffusion.samplers import count_calls
from unalike.records import Pixels
from unalike.runs.train import train_generator
from unalike.study import steps
from unalike.study.steps import MeasuredCell, StepsComparison, compare_steps, draw_steps, read_steps

LEVELS = 60  # noise levels trained with
SPREAD = 0.25  # of all pixels, in [−1, 1]
SHIFT = 0.3  # holdout images are brighter
TINY: dict[str, Any] = {
    "steps": 2,
    "base_channels": 8,
    "channel_multipliers": (1, 2),
    "batch_size": 4,
    "timesteps": LEVELS,
    "precision": "float32",
}
FEW: dict[str, Any] = {"samplers": ("ddim", "heun"), "steps": (2, 5), "count": 9, "reference": ("ddpm", 10)}


def write_cohort(out: Path, *, train: int = 120, holdout: int = 40, seed: int = 3) -> Path:
    """Images 8 × 8 of independent normal pixels, one a subject; those held out are brighter."""
    folders.begin_folder(out, kind="cohort", settings={})
    writer = ImageWriter(out, channels=["t1"], height=8, width=8, dtype=np.dtype(np.uint8))
    drawn = np.random.default_rng(seed).normal(0, SPREAD, (train + holdout, 1, 8, 8))
    drawn[train:] += SHIFT
    for index, image in enumerate(np.rint((drawn.clip(-1, 1) + 1) * 127.5).astype(np.uint8)):
        role = "train" if index < train else "holdout"
        writer.append(image, {"subject": f"s{index}", "source": f"f{index}", "slice": 0, "role": role})
    folders.finish_folder(out, kind="cohort", settings={}, seed=0, inputs={}, content=writer.close())
    return out


@dataclass(frozen=True)
class World:
    cohort: Path
    run: Path


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    room = tmp_path_factory.mktemp("world")
    cohort = write_cohort(room / "cohort")
    return World(
        cohort, train_generator(kind="diffusion", cohort=cohort, out=room / "run", settings=TINY, device="cpu")
    )


@dataclass(frozen=True)
class FourPixels:
    """Features in which everything is known: four pixels, in [−1, 1]."""

    name: str = "four pixels"
    digest: str = "four pixels"

    def embed(self, images: Pixels) -> np.ndarray:
        return images[:, 0, ::4, ::4].reshape(len(images), 4).astype(np.float64) / 127.5 - 1


@pytest.fixture
def four_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "open_own_features", lambda cohort, **_: FourPixels())
    monkeypatch.setattr(steps, "frechet_estimate", partial(frechet_estimate, resamples=20))


@pytest.fixture
def no_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "draw_steps", lambda found, *, place: None)


class Oracle(nn.Module):
    """E[x₀ | x_t] for pixels that are normal with mean 0: the perfect network."""

    def __init__(self) -> None:
        super().__init__()
        self.scheduler = build_scheduler(schedule="squaredcos_cap_v2", timesteps=LEVELS, prediction="sample")
        self.unet = SimpleNamespace(config=SimpleNamespace(in_channels=1, sample_size=8, num_class_embeds=None))

    def forward(self, x_t: torch.Tensor, t: torch.Tensor, asked: object = None) -> torch.Tensor:
        return share_of_clean(float(self.scheduler.alphas_cumprod[int(t)])) * x_t


def share_of_clean(alpha_bar: float) -> float:
    """x̂₀ / x_t of the oracle."""
    return math.sqrt(alpha_bar) * SPREAD**2 / (alpha_bar * SPREAD**2 + 1 - alpha_bar)


def spread_of_ddim(count: int) -> float:
    """Standard deviation of what DDIM draws with the oracle in ``count`` steps: each step multiplies by a number."""
    bars = [float(bar) for bar in Oracle().scheduler.alphas_cumprod]
    times = [LEVELS * left // count - 1 for left in range(count, 0, -1)]
    product = 1.0
    for now, following in zip(times, [*times[1:], None], strict=True):
        bar, after = bars[now], 1.0 if following is None else bars[following]
        clean = share_of_clean(bar)
        noise = (1 - math.sqrt(bar) * clean) / math.sqrt(1 - bar)
        product *= math.sqrt(after) * clean + math.sqrt(1 - after) * noise
    return abs(product)


@pytest.fixture
def oracle(monkeypatch: pytest.MonkeyPatch) -> None:
    def open_oracle(place: Path, **_: object) -> DiffusionModel:
        network: Any = Oracle()
        return DiffusionModel(
            network=network,
            scheduler=network.scheduler,
            conditions=Conditions(),
            codec=None,
            scale=PixelScale(("t1",), "uint8", 255, {}),
            place=torch.device("cpu"),
            precision="float32",
        )

    monkeypatch.setattr(steps, "open_model", open_oracle)


def without_time(found: StepsComparison) -> list[MeasuredCell]:
    return [replace(cell, seconds=0.0) for cell in (*found.cells, found.reference)]


@pytest.mark.usefixtures("oracle", "four_pixels", "no_picture")
def test_with_a_perfect_network_ddim_is_as_far_off_as_computed_by_hand(world: World, tmp_path: Path) -> None:
    found = read_steps(
        compare_steps(
            run=world.run, against=world.cohort, out=tmp_path / "s", samplers=["ddim"], steps=[2, 5, 20], count=150
        )
    )
    for cell in found.cells:
        # Fréchet distance of N(0, a²) and N(0, b²) in 4 dimensions
        truth = 4 * (spread_of_ddim(cell.steps) - SPREAD) ** 2
        assert cell.frechet.low <= truth <= cell.frechet.high
    assert found.cells[0].frechet.value == pytest.approx(4 * (spread_of_ddim(2) - SPREAD) ** 2, rel=0.2)
    # The reference draws from the distribution that the train images are of.
    assert found.reference.steps == LEVELS
    assert found.reference.frechet.low == 0
    assert found.yardstick.value == pytest.approx(4 * SHIFT**2, rel=0.2)


@pytest.mark.usefixtures("oracle", "four_pixels", "no_picture")
def test_more_steps_approach_the_reference(world: World, tmp_path: Path) -> None:
    found = read_steps(
        compare_steps(run=world.run, against=world.cohort, out=tmp_path / "s", steps=(2, 6, 20), count=60)
    )
    by_name = {name: [c.frechet.value for c in found.cells if c.sampler == name] for name in steps.SAMPLERS}
    for name in ("ddim", "euler"):
        few, some, many = by_name[name]
        assert few > some > many
    # The second order is further with as many steps.
    assert by_name["heun"][1] < by_name["euler"][1]
    last = found.reference.frechet
    assert all(values[2] < max(3 * last.value, last.high) for values in by_name.values())


@pytest.mark.usefixtures("four_pixels")
def test_the_table_is_complete(world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = compare_steps(run=world.run, against=world.cohort, out=tmp_path / "s", **FEW)
    found = read_steps(out)
    cells = [("ddim", 2), ("ddim", 5), ("heun", 2), ("heun", 5)]
    assert [(cell.sampler, cell.steps) for cell in found.cells] == cells
    assert (found.reference.sampler, found.reference.steps, found.reference.calls) == ("ddpm", 10, 10)
    for cell in found.cells:
        assert cell.calls == count_calls(cell.sampler, cell.steps)
        assert cell.seconds > 0
        assert 0 <= cell.frechet.low <= cell.frechet.value <= cell.frechet.high
        assert cell.frechet.n == 9  # subjects of the smaller side: each sample is one
    assert found.yardstick.n == 40
    header = folders.read_header(out, kind="steps")
    assert header.inputs == {
        "run": folders.digest_of(world.run, kind="run"),
        "cohort": folders.digest_of(world.cohort, kind="cohort"),
    }
    assert header.settings["reference_steps"] == 10
    assert (header.content["timesteps"], header.content["train_images"]) == (LEVELS, 120)
    assert (out / "steps.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in out.iterdir()) == ["steps.json", "steps.png"]
    text = found.table().splitlines()
    assert len(text) == 1 + 4 + 1 + 1
    assert text[-2].endswith("reference")


@pytest.mark.usefixtures("four_pixels", "no_picture")
def test_what_a_cell_says_depends_on_no_other_cell(world: World, tmp_path: Path) -> None:
    whole = read_steps(compare_steps(run=world.run, against=world.cohort, out=tmp_path / "whole", **FEW))
    alone = FEW | {"samplers": ("heun",), "steps": (5,)}
    found = read_steps(compare_steps(run=world.run, against=world.cohort, out=tmp_path / "alone", **alone))
    assert without_time(found) == without_time(whole)[3:]
    other = read_steps(compare_steps(run=world.run, against=world.cohort, out=tmp_path / "seed", **alone, seed=1))
    assert without_time(other) != without_time(found)


@pytest.mark.usefixtures("four_pixels", "no_picture")
def test_a_reference_in_the_grid_is_drawn_once(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = count_draws(monkeypatch)
    grid = {"samplers": ("ddim",), "steps": (5,), "reference": ("ddim", 5), "count": 8}
    found = read_steps(compare_steps(run=world.run, against=world.cohort, out=tmp_path / "s", **grid))
    assert found.cells == (found.reference,)
    assert drawn == [("euler", 1), ("ddim", 5)]


def count_draws(monkeypatch: pytest.MonkeyPatch, *, stop_at: tuple[str, int] | None = None) -> list[tuple[str, int]]:
    """Notes the sampler and steps of each group that is drawn; interrupts before the second group of ``stop_at``."""
    drawn: list[tuple[str, int]] = []
    draw = DiffusionSampler.draw

    def noting(self: DiffusionSampler, seeds: Sequence[int]) -> Pixels:
        now = (self.settings.sampler, self.settings.steps)
        if now == stop_at and now in drawn:
            raise KeyboardInterrupt
        drawn.append(now)
        return draw(self, seeds)

    monkeypatch.setattr(DiffusionSampler, "draw", noting)
    return drawn


@pytest.mark.usefixtures("four_pixels", "no_picture")
def test_an_interrupted_comparison_goes_on_at_the_cell_it_was_at(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = read_steps(compare_steps(run=world.run, against=world.cohort, out=tmp_path / "whole", **FEW))
    out = tmp_path / "pieces"
    with monkeypatch.context() as patch:
        count_draws(patch, stop_at=("ddim", 5))
        with pytest.raises(KeyboardInterrupt):
            compare_steps(run=world.run, against=world.cohort, out=out, **FEW)
    kept = sorted(path.name for path in (out / "parts").iterdir())
    assert kept == ["ddim-000002.json", "heun-000002.json"]
    assert folders.kind_of(out) is None
    (out / "parts" / "heun-000002.json").write_text("{")  # damaged: measured again
    with pytest.raises(FolderError, match="other settings"):
        compare_steps(run=world.run, against=world.cohort, out=out, **(FEW | {"count": 10}))
    drawn = count_draws(monkeypatch)
    pieces = read_steps(compare_steps(run=world.run, against=world.cohort, out=out, **FEW))
    groups = 2  # of 9 samples
    ways = [("heun", 2), ("ddim", 5), ("heun", 5), ("ddpm", 10)]
    assert drawn == [("euler", 1), *(way for way in ways for _ in range(groups))]
    assert without_time(pieces) == without_time(whole)
    with pytest.raises(FolderError, match="exists already"):
        compare_steps(run=world.run, against=world.cohort, out=out, **FEW)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"steps": (5, LEVELS + 1)}, rf"more steps than the run was trained with \({LEVELS}\)"),
        ({"reference": ("ddpm", LEVELS + 1)}, "more steps than the run was trained with"),
        ({"samplers": ("ddim",), "steps": (7,)}, "does not divide"),
        ({"samplers": ("dpm++", "magic")}, "magic"),
        ({"samplers": ()}, "--samplers"),
        ({"steps": (5, 5)}, "each once"),
        ({"steps": (0,)}, "at least 1"),
        ({"count": 2}, "at least 3"),
        ({"seed": -1}, "--seed"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_drawn(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: dict[str, Any], said: str
) -> None:
    drawn = count_draws(monkeypatch)
    monkeypatch.setattr(steps, "open_own_features", lambda *_, **__: pytest.fail("features are learned"))
    with pytest.raises(SettingsError, match=said):
        compare_steps(run=world.run, against=world.cohort, out=tmp_path / "s", **(FEW | wrong))
    assert drawn == []
    assert not (tmp_path / "s").exists()


def test_other_runs_and_cohorts_are_refused(world: World, tmp_path: Path) -> None:
    other = write_cohort(tmp_path / "other", train=20, holdout=4, seed=4)
    with pytest.raises(InputError, match="not the cohort"):
        compare_steps(run=world.run, against=other, out=tmp_path / "s", **FEW)
    control = train_generator(kind="gaussian", cohort=other, out=tmp_path / "gaussian", device="cpu")
    with pytest.raises(SettingsError, match="only diffusion"):
        compare_steps(run=control, against=other, out=tmp_path / "s", **FEW)
    with pytest.raises(FolderError, match="kind cohort"):
        compare_steps(run=other, against=other, out=tmp_path / "s", **FEW)
    changed = shutil.copytree(world.run, tmp_path / "changed")
    with (changed / "model" / "model_index.json").open("a") as stream:
        stream.write(" ")
    with pytest.raises(FolderError, match="not the model"):
        compare_steps(run=changed, against=world.cohort, out=tmp_path / "s", **FEW)
    assert not (tmp_path / "s").exists()


def test_a_run_that_needs_masks_is_refused(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = SimpleNamespace(conditions=Conditions(mask=True))
    monkeypatch.setattr(steps, "open_model", lambda *_, **__: model)
    with pytest.raises(SettingsError, match="without --condition mask"):
        compare_steps(run=world.run, against=world.cohort, out=tmp_path / "s", **FEW)


@pytest.mark.usefixtures("four_pixels", "no_picture")
def test_a_cohort_without_holdout_has_no_yardstick(tmp_path: Path) -> None:
    cohort = write_cohort(tmp_path / "cohort", train=12, holdout=0)
    run = train_generator(kind="diffusion", cohort=cohort, out=tmp_path / "run", settings=TINY, device="cpu")
    out = compare_steps(run=run, against=cohort, out=tmp_path / "s", **FEW)
    assert math.isnan(read_steps(out).yardstick.value)
    assert read_steps(out).table().endswith("undefined")


@pytest.mark.usefixtures("no_picture")
def test_the_cohorts_own_features_are_learned_once_and_kept_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cohort = write_cohort(tmp_path / "cohort", train=12, holdout=4)
    run = train_generator(kind="diffusion", cohort=cohort, out=tmp_path / "run", settings=TINY, device="cpu")
    brief = replace(own.SETTINGS, steps=2, width=8, dimension=4)
    monkeypatch.setattr(own, "SETTINGS", brief)
    one = FEW | {"steps": (2,), "samplers": ("ddim",), "reference": ("ddim", 2)}
    first = compare_steps(run=run, against=cohort, out=tmp_path / "first", **one)
    assert len(list((cohort / "index").glob("embedding-*.safetensors"))) == 1
    second = compare_steps(run=run, against=cohort, out=tmp_path / "second", **one)
    assert without_time(read_steps(first)) == without_time(read_steps(second))
    assert "of the cohort (" in folders.read_header(second, kind="steps").content["features"]


@pytest.mark.usefixtures("four_pixels", "no_picture")
def test_the_command_prints_a_table_or_json_and_nothing_is_made_in_a_dry_run(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    app = App()
    app.command(steps_command)
    out = tmp_path / "s"
    words = f"steps {world.run} --against {world.cohort} --out {out} --samplers ddim dpm++ --steps 2 5 --count 8"
    given = [*words.split(), "--reference-sampler", "ddim", "--reference-steps", "10"]
    app([*given, "--dry-run", "--json"], result_action="return_value")
    planned = json.loads(capsys.readouterr().out)
    assert planned["samplers"] == ["ddim", "dpm++"]
    assert (planned["steps"], planned["reference_steps"]) == ([2, 5], 10)
    assert not out.exists()
    app([*given, "--json"], result_action="return_value")
    told = json.loads(capsys.readouterr().out)
    assert [(cell["sampler"], cell["steps"]) for cell in told["cells"]] == [
        ("ddim", 2),
        ("ddim", 5),
        ("dpm++", 2),
        ("dpm++", 5),
    ]
    assert told["steps"] == str(out)
    app([word.replace(str(out), str(tmp_path / "t")) for word in given], result_action="return_value")
    assert "Fréchet distance to train" in capsys.readouterr().out


def test_distances_of_zero_and_single_cells_can_be_drawn(tmp_path: Path) -> None:
    from unalike.records import Estimate

    nothing = Estimate(0.0, 0.0, 0.0, 10, "none")
    cell = MeasuredCell("ddim", 5, 5, nothing, 1.0)
    place = tmp_path / "steps.png"
    draw_steps(StepsComparison((cell,), cell, replace(nothing, value=math.nan)), place=place)
    assert place.read_bytes().startswith(b"\x89PNG")
