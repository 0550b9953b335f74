"""Training survives: full disks, checkpoints of others, shared batches, several averages, and being watched."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from unalike import folders
from unalike.cohort.store import ImageWriter, open_images
from unalike.errors import FolderError, NonFiniteLossError, RunError, UnalikeError
from unalike.generators import checkpoints, loop
from unalike.generators.checkpoints import Checkpoint, load_newest_checkpoint, save_checkpoint
from unalike.generators.data import TrainImages, open_train_images
from unalike.generators.descent import Descent
from unalike.generators.diffusion import train as diffusion
from unalike.generators.diffusion.settings import DiffusionSettings
from unalike.generators.processes import Processes, join_processes
from unalike.generators.watching import Draw, Glance
from unalike.runs.train import train_generator

MakeCohort = Callable[..., Path]
State = dict[str, torch.Tensor]

TINY: dict[str, Any] = {
    "steps": 6,
    "base_channels": 8,
    "channel_multipliers": (1, 2),
    "batch_size": 4,
    "warmup": 2,
    "log_every": 1,
    "timesteps": 100,
    "precision": "float32",
    "checkpoint_every": 0,
}


def _train(cohort: Path, out: Path, **settings: Any) -> Path:
    return train_generator(kind="diffusion", cohort=cohort, out=out, settings=TINY | settings, device="cpu")


def _names(run: Path, room: str = "checkpoints") -> list[str]:
    return sorted(path.name for path in (run / room).iterdir())


def _last_state(run: Path) -> State:
    return load_file(run / "checkpoints" / _names(run)[-1] / "state.safetensors")


def _losses(run: Path) -> list[float]:
    """Loss after each update; of a step that stands there twice the last line counts."""
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    by_step = {line["step"]: line["loss"] for line in lines}
    return [loss for _, loss in sorted(by_step.items())]


def _model_digest(run: Path) -> str:
    return str(folders.read_header(run, kind="run").content["model_digest"])


def _same(a: State, b: State) -> bool:
    return a.keys() == b.keys() and all(torch.equal(tensor, b[name]) for name, tensor in a.items())


def _interrupt_before(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """The process goes away after so many updates and their checkpoints, without a word."""
    gradient = Descent._gradient

    def stopping(self: Descent[Any], n: int, parts: Any) -> Any:
        if n == step:
            raise _Gone
        return gradient(self, n, parts)

    monkeypatch.setattr(Descent, "_gradient", stopping)


class _Gone(BaseException):
    pass


def _one_line(error: UnalikeError) -> str:
    text = str(error)
    assert "\n" not in text
    return text


@pytest.fixture
def make_labelled(tmp_path: Path) -> Callable[[], Path]:
    def make() -> Path:
        out = tmp_path / "labelled"
        folders.begin_folder(out, kind="cohort", settings={})
        writer = ImageWriter(out, channels=("t1",), height=8, width=8, dtype=np.dtype(np.uint8))
        random = np.random.default_rng(7)
        for subject in range(8):
            record = {"subject": f"s{subject}", "source": f"f{subject}", "slice": 0, "label": "ab"[subject % 2]}
            role = "holdout" if subject >= 6 else "train"
            writer.append(random.integers(0, 255, (1, 8, 8)).astype(np.uint8), record | {"role": role})
        folders.finish_folder(out, kind="cohort", settings={}, seed=0, inputs={}, content=writer.close())
        return out

    return make


# A full disk


@pytest.mark.parametrize("room_for", [0, 100, 20_000])
def test_a_full_disk_keeps_earlier_checkpoints_and_the_same_command_goes_on(
    make_cohort: MakeCohort, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room_for: int
) -> None:
    cohort = make_cohort()
    whole = _train(cohort, tmp_path / "whole")
    save_file = checkpoints.save_file

    def full(tensors: State, place: Path) -> None:
        if "step-00000004" in str(place):
            save_file(tensors, place)
            os.truncate(place, room_for)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(place))
        save_file(tensors, place)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "save_file", full)
        with pytest.raises(RunError, match=r"step-00000004 cannot be written \(No space left.*make room") as caught:
            _train(cohort, tmp_path / "pieces")
    _one_line(caught.value)
    assert _names(tmp_path / "pieces") == ["step-00000002", "step-00000003"]
    pieces = _train(cohort, tmp_path / "pieces")
    assert _same(_last_state(pieces), _last_state(whole))
    assert _model_digest(pieces) == _model_digest(whole)


# Checkpoints on disk


def test_checkpoints_of_others_are_refused_in_one_line(make_cohort: MakeCohort, tmp_path: Path) -> None:
    cohort = make_cohort()
    theirs = _train(cohort, tmp_path / "theirs", steps=2, learning_rate=1e-3)
    other = make_cohort_elsewhere(cohort, tmp_path / "other")
    for number, (of, about) in enumerate([(cohort, "other settings"), (other, "another cohort")]):
        out = tmp_path / f"mine{number}"
        settings = {"steps": 2} if of is cohort else {"steps": 2, "learning_rate": 1e-3}
        with pytest.MonkeyPatch.context() as patch:
            _interrupt_before(patch, 1)
            with pytest.raises(_Gone):
                _train(of, out, **settings)
        shutil.rmtree(out / "checkpoints")
        shutil.copytree(theirs / "checkpoints", out / "checkpoints")
        with pytest.raises(FolderError, match=rf"step-00000002 is a checkpoint of.*{about}.*another folder") as caught:
            _train(of, out, **settings)
        _one_line(caught.value)


def make_cohort_elsewhere(cohort: Path, out: Path) -> Path:
    """The same cohort but for its seed, so that it has another digest."""
    shutil.copytree(cohort, out)
    header = json.loads((out / "cohort.json").read_text())
    (out / "cohort.json").write_text(json.dumps(header | {"seed": 1}))
    return out


def test_a_checkpoint_of_another_format_is_refused_in_one_line(tmp_path: Path) -> None:
    kept = Checkpoint(3, 0.0, {"weights/a": torch.zeros(2)})
    place = save_checkpoint(tmp_path, kept, identity="x", room="checkpoints", keep=2)
    about = json.loads((place / "state.json").read_text())
    (place / "state.json").write_text(json.dumps(about | {"format": 1}))
    with pytest.raises(FolderError, match=r"step-00000003 is a checkpoint of format 1, .*another folder") as caught:
        load_newest_checkpoint(tmp_path, identity="x", room="checkpoints")
    _one_line(caught.value)


def test_a_damaged_later_checkpoint_never_displaces_a_good_one(tmp_path: Path) -> None:
    for step in (5, 9):
        kept = Checkpoint(step, 0.0, {"weights/a": torch.full((2,), float(step))})
        save_checkpoint(tmp_path, kept, identity="x", room="checkpoints", keep=2)
    (tmp_path / "checkpoints" / "step-00000009" / "state.safetensors").write_bytes(b"")
    kept = Checkpoint(6, 0.0, {"weights/a": torch.full((2,), 6.0)})
    save_checkpoint(tmp_path, kept, identity="x", room="checkpoints", keep=1)
    found = load_newest_checkpoint(tmp_path, identity="x", room="checkpoints")
    assert found is not None
    assert found.step == 6
    assert _names(tmp_path) == ["step-00000006"]


def test_what_a_killed_process_left_half_written_goes_with_the_next_checkpoint(tmp_path: Path) -> None:
    left = tmp_path / "checkpoints" / "step-00000007.partial"
    left.mkdir(parents=True)
    (left / "state.safetensors").write_bytes(b"half")
    kept = Checkpoint(2, 0.0, {"weights/a": torch.zeros(2)})
    save_checkpoint(tmp_path, kept, identity="x", room="checkpoints", keep=2)
    assert _names(tmp_path) == ["step-00000002"]


def test_as_many_checkpoints_stay_as_are_asked_for(make_cohort: MakeCohort, tmp_path: Path) -> None:
    run = _train(make_cohort(), tmp_path / "run", keep=3, steps=5)
    assert _names(run) == ["step-00000003", "step-00000004", "step-00000005"]


# Divergence


@pytest.mark.parametrize("log_every", [1, 4])
def test_divergence_in_one_part_of_a_batch_names_step_and_learning_rate(
    make_cohort: MakeCohort, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log_every: int
) -> None:
    read, calls = TrainImages.read, []

    def poisoned(self: TrainImages, positions: Any) -> Any:
        calls.append(1)
        pixels = read(self, positions).astype(np.float32)
        return pixels * np.nan if len(calls) == 6 else pixels  # second part of update 3

    monkeypatch.setattr(TrainImages, "read", poisoned)
    # lr of update 3 of 6: warm-up over, a third of the way down.
    with pytest.raises(NonFiniteLossError, match=r"step 3: loss nan.*learning rate 0\.0013\b") as caught:
        _train(make_cohort(), tmp_path / "run", accumulate=2, log_every=log_every)
    _one_line(caught.value)
    assert _names(tmp_path / "run")[-1] == "step-00000002"
    assert all(tensor.isfinite().all() for tensor in _last_state(tmp_path / "run").values())


class _TwoInName(Processes):
    """One process that takes itself for the first of two."""

    count = 2
    rank = 0

    def wait(self) -> None:
        pass

    def agree(self, value: bool) -> bool:
        return value

    def average(self, numbers: torch.Tensor) -> torch.Tensor:
        return numbers


def test_ctrl_c_after_divergence_keeps_the_last_good_checkpoint_among_several_processes(
    make_cohort: MakeCohort, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = join_processes("cpu")
    images = open_train_images(open_images(make_cohort()), subjects=None, seed=0)
    gradient, update = Descent._gradient, Descent.update

    def poisoned(self: Descent[Any], n: int, parts: Any) -> Any:
        loss, norm = gradient(self, n, parts)
        return (loss * torch.nan, norm) if n == 1 else (loss, norm)

    def stopping(self: Descent[Any], n: int) -> None:
        if n == 1:
            os.kill(os.getpid(), signal.SIGINT)
        update(self, n)

    monkeypatch.setattr(Descent, "_gradient", poisoned)
    monkeypatch.setattr(Descent, "update", stopping)
    settings = DiffusionSettings(**TINY | {"log_every": 5})
    (tmp_path / "run").mkdir()
    with pytest.raises(KeyboardInterrupt):
        diffusion.train_diffusion(
            images,
            out=tmp_path / "run",
            settings=settings,
            seed=0,
            processes=_TwoInName(one.accelerator, one.place),
            identity="x",
        )
    assert _names(tmp_path / "run") == ["step-00000001"]


# Shared batches, averages


def test_accumulated_parts_make_the_same_updates(make_cohort: MakeCohort, tmp_path: Path) -> None:
    cohort = make_cohort()
    # With 8 channels each is normalized alone: the bias before has no gradient but rounding, which Adam makes large.
    settings = {"base_channels": 16, "keep": 10}
    runs = {parts: _train(cohort, tmp_path / str(parts), accumulate=parts, **settings) for parts in (1, 2, 4)}
    assert len(_losses(runs[1])) == TINY["steps"]
    for parts in (2, 4):
        np.testing.assert_allclose(_losses(runs[parts]), _losses(runs[1]), rtol=1e-6)
        # The gradient itself, as the first update keeps it.
        gradients = [_joined(run, "exp_avg/", step=1) for run in (runs[parts], runs[1])]
        torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-7)
        # Adam divides by the size of the gradient, so that of a weight with next to none rounding becomes visible.
        found, expected = (_joined(run, "weights/", step=TINY["steps"]) for run in (runs[parts], runs[1]))
        assert (found - expected).norm() < 1e-5 * expected.norm()
        assert (found - expected).abs().quantile(0.999) < 1e-5


def _joined(run: Path, kind: str, *, step: int) -> torch.Tensor:
    """All tensors of a kind in the checkpoint of this update, in one row."""
    state = load_file(run / "checkpoints" / f"step-{step:08d}" / "state.safetensors")
    return torch.cat([tensor.ravel() for name, tensor in sorted(state.items()) if name.startswith(kind)])


def test_each_weight_average_follows_its_closed_form(
    make_cohort: MakeCohort, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first: list[State] = []
    update = Descent.update

    def watching(self: Descent[Any], n: int) -> None:
        if not first:
            first.append({name: w.detach().clone() for name, w in self.network.named_parameters()})
        update(self, n)

    monkeypatch.setattr(Descent, "update", watching)
    decays = (0.9, 0.15, 0.0)
    run = _train(make_cohort(), tmp_path / "run", steps=3, keep=3, ema_decays=decays)
    states = [load_file(run / "checkpoints" / name / "state.safetensors") for name in _names(run)]
    for decay in decays:
        for name, begin in first[0].items():
            expected = begin.double()
            for n, state in enumerate(states):
                share = min(decay, (1 + n) / (10 + n))
                expected = share * expected + (1 - share) * state[f"weights/{name}"].double()
                found = state[f"average-{decay}/{name}"].double()
                torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)
    # An average without memory is the weights.
    assert all(torch.equal(states[-1][f"average-0.0/{n}"], states[-1][f"weights/{n}"]) for n in first[0])


# Everything random at once

RANDOM: dict[str, Any] = {"dropout": 0.3, "augment": 0.5, "condition": ("label",), "condition_dropout": 0.5}


@pytest.mark.parametrize("accumulate", [1, 2])
def test_dropout_changes_and_hidden_conditions_resume_bit_for_bit(
    make_labelled: Callable[[], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, accumulate: int
) -> None:
    cohort = make_labelled()
    settings = RANDOM | {"accumulate": accumulate, "steps": 5}
    whole = _train(cohort, tmp_path / "whole", **settings)
    for step in (1, 4):
        with monkeypatch.context() as patch:
            _interrupt_before(patch, step)
            with pytest.raises(_Gone):
                _train(cohort, tmp_path / "pieces", **settings)
    pieces = _train(cohort, tmp_path / "pieces", **settings)
    assert _same(_last_state(pieces), _last_state(whole))
    assert _model_digest(pieces) == _model_digest(whole)
    assert _losses(pieces) == _losses(whole)


def test_which_images_lose_their_condition_does_not_depend_on_parts(
    make_labelled: Callable[[], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hide = diffusion.hide_conditions
    lost: dict[int, list[bool]] = {}
    cohort = make_labelled()
    for parts in (1, 2, 4):
        seen: list[bool] = []

        def watching(asked: Any, hidden: Any, seen: list[bool] = seen) -> Any:
            seen.extend(hidden.tolist())
            return hide(asked, hidden)

        monkeypatch.setattr(diffusion, "hide_conditions", watching)
        _train(cohort, tmp_path / str(parts), **RANDOM, accumulate=parts)
        lost[parts] = seen
    assert lost[1] == lost[2] == lost[4]
    assert 0 < sum(lost[1]) < len(lost[1]) == TINY["steps"] * TINY["batch_size"]


# Being watched


@dataclass
class StubWatcher:
    """Looks every two updates and finds best, or stops, at the steps it was told; remembers like a file would."""

    best_at: Sequence[int] = ()
    stop_at: int = 0
    strict: bool = False
    every: int = 2
    steps: int = 2
    seen_at: list[int] = field(default_factory=list)
    samples: list[np.ndarray] = field(default_factory=list)
    gone_at: int = 0  # the process goes away in the middle of this look

    @property
    def stopped(self) -> bool:
        return self.stop_at in self.seen_at

    def look(self, draw: Draw, *, step: int) -> Glance:
        self.samples.append(draw([1, 2]))
        return Glance({"step": step}, best=step in self.best_at, stop=step == self.stop_at)

    def record(self, glance: Glance) -> None:
        if glance.line["step"] == self.gone_at:
            raise _Gone
        self.seen_at.append(glance.line["step"])

    def seen(self, step: int) -> bool:
        return step in self.seen_at


def _watched(cohort: Path, out: Path, watcher: StubWatcher | None, **settings: Any) -> dict[str, Any]:
    out.mkdir(exist_ok=True)
    return diffusion.train_diffusion(
        open_train_images(open_images(cohort), subjects=None, seed=0),
        out=out,
        settings=DiffusionSettings(**TINY | {"keep": 10} | settings),
        seed=0,
        processes=join_processes("cpu"),
        identity="x",
        watcher=watcher,
    )


def _average_at(run: Path, step: int, decay: float = 0.995) -> State:
    state = load_file(run / "checkpoints" / f"step-{step:08d}" / "state.safetensors")
    mark = f"average-{decay}/unet."
    return {name.removeprefix(mark): tensor for name, tensor in state.items() if name.startswith(mark)}


def _model(run: Path, suffix: str = "") -> State:
    return load_file(run / "model" / f"unet{suffix}" / "diffusion_pytorch_model.safetensors")


def test_the_model_is_the_average_of_the_update_found_best(make_cohort: MakeCohort, tmp_path: Path) -> None:
    watcher = StubWatcher(best_at=(2, 4))
    about = _watched(make_cohort(), tmp_path / "run", watcher, ema_decays=(0.9, 0.5))
    assert watcher.seen_at == [2, 4, 6]
    assert (about["chosen_step"], about["within_budget"]) == (4, True)
    assert _same(_model(tmp_path / "run"), _average_at(tmp_path / "run", 4, 0.9))
    assert _same(_model(tmp_path / "run", "-0.5"), _average_at(tmp_path / "run", 4, 0.5))
    assert _names(tmp_path / "run", "best") == ["step-00000004"]


def test_looking_changes_no_weight(make_cohort: MakeCohort, tmp_path: Path) -> None:
    cohort = make_cohort()
    _watched(cohort, tmp_path / "unwatched", None, dropout=0.3)
    _watched(cohort, tmp_path / "watched", StubWatcher(), dropout=0.3)
    assert _same(_last_state(tmp_path / "watched"), _last_state(tmp_path / "unwatched"))


def test_a_watcher_can_end_the_training_and_it_stays_ended(make_cohort: MakeCohort, tmp_path: Path) -> None:
    cohort = make_cohort()
    watcher = StubWatcher(best_at=(2,), stop_at=4, strict=True)
    for _ in range(2):
        about = _watched(cohort, tmp_path / "run", watcher)
        assert (about["chosen_step"], about["within_budget"]) == (2, True)
        assert watcher.seen_at == [2, 4]
        assert _names(tmp_path / "run")[-1] == "step-00000004"


@pytest.mark.parametrize("gone_at", [2, 4, 6])
def test_an_interrupted_look_is_repeated(make_cohort: MakeCohort, tmp_path: Path, gone_at: int) -> None:
    cohort = make_cohort()
    straight, watcher = StubWatcher(best_at=(2, 4)), StubWatcher(best_at=(2, 4), gone_at=gone_at)
    _watched(cohort, tmp_path / "whole", straight)
    with pytest.raises(_Gone):
        _watched(cohort, tmp_path / "pieces", watcher)
    watcher.gone_at = 0
    about = _watched(cohort, tmp_path / "pieces", watcher)
    assert about["chosen_step"] == 4
    assert watcher.seen_at == [2, 4, 6]
    assert _same(_model(tmp_path / "pieces"), _model(tmp_path / "whole"))
    assert _same(_last_state(tmp_path / "pieces"), _last_state(tmp_path / "whole"))
    # The repeated look saw what the interrupted one had seen.
    again = [2, 4, 6].index(gone_at)
    np.testing.assert_array_equal(watcher.samples[again], watcher.samples[again + 1])
    np.testing.assert_array_equal(watcher.samples[-1], straight.samples[-1])


def test_nothing_within_the_budget_is_an_error_if_strict(make_cohort: MakeCohort, tmp_path: Path) -> None:
    cohort = make_cohort()
    with pytest.raises(RunError, match=r"no weights of .* were within the budget") as caught:
        _watched(cohort, tmp_path / "strict", StubWatcher(stop_at=2, strict=True))
    _one_line(caught.value)
    assert not (tmp_path / "strict" / "model").exists()
    about = _watched(cohort, tmp_path / "lenient", StubWatcher())
    assert (about["chosen_step"], about["within_budget"]) == (6, False)
    assert _same(_model(tmp_path / "lenient"), _average_at(tmp_path / "lenient", 6))


def test_ctrl_c_while_a_look_gives_the_weights_back_tears_none(
    make_cohort: MakeCohort, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cohort = make_cohort()
    _watched(cohort, tmp_path / "whole", StubWatcher())
    put, calls = loop._set, []

    def stopping(network: Any, weights: State) -> None:
        calls.append(1)
        if len(calls) == 2:  # after the first look: half the weights are back
            names = list(weights)
            some = {name: weights[name] for name in names[: len(names) // 2]}
            with torch.no_grad():
                for name, weight in network.named_parameters():
                    if name in some:
                        weight.copy_(some[name])
            os.kill(os.getpid(), signal.SIGINT)
        put(network, weights)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "_set", stopping)
        with pytest.raises(KeyboardInterrupt):
            _watched(cohort, tmp_path / "pieces", StubWatcher())
    assert _names(tmp_path / "pieces") == ["step-00000001", "step-00000002"]
    _watched(cohort, tmp_path / "pieces", StubWatcher())
    assert _same(_last_state(tmp_path / "pieces"), _last_state(tmp_path / "whole"))
