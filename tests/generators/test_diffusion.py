"""Diffusion: exact resuming, samples that depend on their seed alone, and a model that diffusers loads."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from unalike import folders
from unalike.cohort.store import open_images
from unalike.errors import FolderError, NonFiniteLossError, SettingsError
from unalike.generators import loop
from unalike.generators.checkpoints import (
    Checkpoint,
    hold_interrupts,
    load_newest_checkpoint,
    save_checkpoint,
)
from unalike.generators.data import TrainImages, open_train_images
from unalike.generators.descent import Descent
from unalike.generators.diffusion.network import build_network
from unalike.generators.diffusion.settings import DiffusionSettings
from unalike.runs.sample import draw_samples
from unalike.runs.train import train_generator

MakeCohort = Callable[..., Path]

# A network of a few thousand weights: what is tested here does not depend on its size.
TINY: dict[str, Any] = {
    "steps": 6,
    "base_channels": 8,
    "channel_multipliers": (1, 2),
    "batch_size": 4,
    "warmup": 2,
    "log_every": 2,
    "timesteps": 100,
    "precision": "float32",
}


def _train(cohort: Path, out: Path, **settings: Any) -> Path:
    return train_generator(kind="diffusion", cohort=cohort, out=out, settings=TINY | settings, device="cpu")


def _draw(run: Path, out: Path, count: int, *, first_seed: int = 0, **settings: Any) -> np.ndarray:
    order = {"steps": 10, "precision": "float32"} | settings
    draw_samples(run=run, out=out, count=count, first_seed=first_seed, settings=order, device="cpu")
    samples = open_images(out, kind="samples")
    return samples.read(samples.rows("synthetic"))


def _last_state(run: Path) -> dict[str, torch.Tensor]:
    return load_file(sorted((run / "checkpoints").iterdir())[-1] / "state.safetensors")


def _stop_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Ctrl-C as it comes from a terminal, in the middle of update ``step`` (from 1)."""
    update = Descent.update

    def stopping(self: Descent[Any], n: int) -> None:
        if n == step - 1:
            os.kill(os.getpid(), signal.SIGINT)
        update(self, n)

    monkeypatch.setattr(Descent, "update", stopping)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_resumed_training_equals_an_uninterrupted_one(
    make_cohort: MakeCohort, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    cohort = make_cohort()
    whole = _train(cohort, tmp_path / "whole", precision=precision)
    with monkeypatch.context() as patch:
        _stop_at(patch, 3)
        with pytest.raises(KeyboardInterrupt):
            _train(cohort, tmp_path / "pieces", precision=precision)
    assert [path.name for path in (tmp_path / "pieces" / "checkpoints").iterdir()] == ["step-00000003"]
    told: list[str] = []
    show = loop.show_progress
    monkeypatch.setattr(loop, "show_progress", lambda text, **rest: told.append(text) or show(text, **rest))
    pieces = _train(cohort, tmp_path / "pieces", precision=precision)
    assert told == ["train diffusion, resumed at step 3 of 6"]
    # Weights, weight average and both moments of the optimizer, to the last bit.
    expected, found = _last_state(whole), _last_state(pieces)
    assert {name.split("/")[0] for name in expected} == {"weights", "average-0.995", "exp_avg", "exp_avg_sq"}
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        assert torch.equal(tensor, found[name]), name
    a, b = (folders.read_header(run, kind="run").content["model_digest"] for run in (whole, pieces))
    assert a == b


def test_settings_change_what_is_learnt_and_seeds_reproduce(make_cohort: MakeCohort, tmp_path: Path) -> None:
    cohort = make_cohort()
    digests = []
    for index, seed in enumerate((0, 0, 1)):
        run = train_generator(
            kind="diffusion", cohort=cohort, out=tmp_path / str(index), settings=TINY, seed=seed, device="cpu"
        )
        digests.append(folders.read_header(run, kind="run").content["model_digest"])
    assert digests[0] == digests[1] != digests[2]


def test_the_log_tells_how_it_went(make_cohort: MakeCohort, tmp_path: Path) -> None:
    run = _train(make_cohort(), tmp_path / "run")
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4, 6]
    for line in lines:
        assert line["loss"] > 0
        assert line["images_per_second"] > 0
        assert line["seconds"] > 0
    assert lines[0]["learning_rate"] == pytest.approx(2e-3 * 5 / 6)  # warm-up over, one sixth of the way down
    assert not list(run.rglob("*.pt"))
    assert not list(run.rglob("*.bin"))
    assert not list(run.rglob("*.pkl"))


def test_two_newest_checkpoints_stay(make_cohort: MakeCohort, tmp_path: Path) -> None:
    run = _train(make_cohort(), tmp_path / "run", checkpoint_every=0)
    assert [path.name for path in sorted((run / "checkpoints").iterdir())] == [
        "step-00000005",
        "step-00000006",
    ]


def test_a_damaged_checkpoint_is_passed_over(tmp_path: Path) -> None:
    for step in (1, 2):
        kept = Checkpoint(step, 0.5, {"weights/a": torch.full((2,), float(step))})
        save_checkpoint(tmp_path, kept, identity="x", room="checkpoints", keep=2)
    (tmp_path / "checkpoints" / "step-00000002" / "state.safetensors").write_bytes(b"not one")
    found = load_newest_checkpoint(tmp_path, identity="x", room="checkpoints")
    assert found is not None
    assert found.step == 1
    assert found.tensors["weights/a"].tolist() == [1.0, 1.0]
    assert load_newest_checkpoint(tmp_path / "elsewhere", identity="x", room="checkpoints") is None
    with pytest.raises(FolderError, match="another cohort"):
        load_newest_checkpoint(tmp_path, identity="y", room="checkpoints")


def test_ctrl_c_waits_for_the_end_of_an_update() -> None:
    finished = []

    def update() -> None:
        with hold_interrupts():
            os.kill(os.getpid(), signal.SIGINT)
            finished.append(True)

    with pytest.raises(KeyboardInterrupt):
        update()
    assert finished


def test_divergence_names_step_and_learning_rate(
    make_cohort: MakeCohort, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = TrainImages.read
    calls = []

    def poisoned(self: TrainImages, positions: Any) -> Any:
        calls.append(1)
        pixels = read(self, positions).astype(np.float32)
        return pixels * np.nan if len(calls) == 4 else pixels

    monkeypatch.setattr(TrainImages, "read", poisoned)
    with pytest.raises(NonFiniteLossError, match=r"step 4: loss nan.*learning rate 0\.001"):
        _train(make_cohort(), tmp_path / "run", checkpoint_every=0)
    assert sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())[-1] == "step-00000003"
    assert all(tensor.isfinite().all() for tensor in _last_state(tmp_path / "run").values())


def test_sizes_that_cannot_be_halved_are_refused(make_cohort: MakeCohort, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"10 × 8 pixels.*multiples of 4 do fit.*12 × 8"):
        _train(make_cohort(size=(10, 8)), tmp_path / "run", channel_multipliers=(1, 2, 2))
    assert not (tmp_path / "run").exists()  # free for a corrected command


def test_each_epoch_sees_each_image_once() -> None:
    positions = np.concatenate([loop.batch_positions(n, 10, 4, seed=1) for n in range(5)])
    assert sorted(positions[:10]) == sorted(positions[10:]) == list(range(10))
    assert positions[:10].tolist() != positions[10:].tolist()
    # Fewer images than a batch: the batch goes through several epochs.
    assert sorted(loop.batch_positions(0, 3, 6, seed=1)) == [0, 0, 1, 1, 2, 2]


def test_only_chosen_train_images_are_read(make_cohort: MakeCohort) -> None:
    cohort = open_images(make_cohort(subjects=6, holdout=2))  # holdout images are white
    images = open_train_images(cohort, subjects=2, seed=0)
    assert len(images) == 4
    assert len(set(cohort.column("subject")[images.rows])) == 2
    assert (images.read_all().min(axis=(1, 2, 3)) < 255).all()
    np.testing.assert_array_equal(images.read(np.array([2, 0])), cohort.read(images.rows[[2, 0]]))


def test_large_cohorts_are_read_batch_by_batch(
    make_cohort: MakeCohort, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cohort = make_cohort()
    held = _train(cohort, tmp_path / "held")
    monkeypatch.setattr("unalike.generators.data.HELD_BYTES", 0)
    read = _train(cohort, tmp_path / "read")
    a, b = (folders.read_header(run, kind="run").content["model_digest"] for run in (held, read))
    assert a == b


@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_batch_size_changes_no_bit(make_cohort: MakeCohort, tmp_path: Path, sampler: str, precision: str) -> None:
    run = _train(make_cohort(size=(16, 16)), tmp_path / "run", base_channels=16)
    drawn = {
        size: _draw(run, tmp_path / f"s{size}", 33, sampler=sampler, precision=precision, batch_size=size)
        for size in (1, 5, 32)
    }
    np.testing.assert_array_equal(drawn[1], drawn[5])
    np.testing.assert_array_equal(drawn[1], drawn[32])
    alone = _draw(run, tmp_path / "alone", 1, first_seed=20, sampler=sampler, precision=precision)
    np.testing.assert_array_equal(alone[0], drawn[1][20])
    assert len(np.unique(drawn[1].reshape(33, -1), axis=0)) == 33


@pytest.mark.parametrize("channels", [("t1",), ("t1", "t2", "flair"), ("a", "b", "c", "d", "e")])
@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
def test_diffusers_draws_the_same_sample(
    make_cohort: MakeCohort, tmp_path: Path, channels: tuple[str, ...], prediction: str
) -> None:
    run = _train(make_cohort(channels=channels, size=(8, 12)), tmp_path / "run", prediction=prediction, steps=2)
    ours = _draw(run, tmp_path / "samples", 1, first_seed=11, sampler="ddpm")
    pipeline = diffusers.DDPMPipeline.from_pretrained(run / "model", low_cpu_mem_usage=False)
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(
        generator=torch.Generator().manual_seed(11),
        num_inference_steps=10,
        output_type="np",
        return_dict=False,
    )[0]
    # One grey level: their network works on one image at a time, ours on a group.
    difference = theirs[0].transpose(2, 0, 1) * 255 - ours[0].astype(float)
    assert np.abs(difference).max() <= 1.0


def test_the_model_is_the_weight_average(make_cohort: MakeCohort, tmp_path: Path) -> None:
    run = _train(make_cohort(), tmp_path / "run")
    state = _last_state(run)
    model = load_file(run / "model" / "unet" / "diffusion_pytorch_model.safetensors")
    for name, tensor in model.items():
        assert torch.equal(tensor, state[f"average-0.995/unet.{name}"])
    assert not all(torch.equal(tensor, state[f"weights/unet.{name}"]) for name, tensor in model.items())


def test_sixteen_bits_and_masks(make_cohort: MakeCohort, tmp_path: Path) -> None:
    cohort = make_cohort(channels=("t1", "mask"), dtype=np.uint16)
    run = _train(cohort, tmp_path / "run")
    content = folders.read_header(run, kind="run").content
    assert 3900 < content["highest"] < 4000  # of the training images, not of 16 bits, and not of the white holdout
    drawn = _draw(run, tmp_path / "samples", 6)
    assert drawn.dtype == np.uint16
    assert drawn.max() <= content["highest"]
    assert len(np.unique(drawn[:, 0])) > 50
    assert set(np.unique(drawn[:, 1])) <= {0, 50, 120}


def test_sampling_steps_must_divide_the_time_steps(make_cohort: MakeCohort, tmp_path: Path) -> None:
    run = _train(make_cohort(), tmp_path / "run")
    with pytest.raises(SettingsError, match=r"steps = 30 does not divide the 100 time steps.*20, 25"):
        _draw(run, tmp_path / "samples", 1, steps=30)
    assert not (tmp_path / "samples").exists()


def test_a_run_is_unfinished_until_it_is_done(
    make_cohort: MakeCohort, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cohort = make_cohort()
    with monkeypatch.context() as patch:
        _stop_at(patch, 2)
        with pytest.raises(KeyboardInterrupt):
            _train(cohort, tmp_path / "run")
    with pytest.raises(FolderError, match="unfinished"):
        _draw(tmp_path / "run", tmp_path / "samples", 1)
    with pytest.raises(FolderError, match="other settings"):
        _train(cohort, tmp_path / "run", steps=7)


def test_building_leaves_the_global_stream_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    settings = DiffusionSettings(base_channels=8, channel_multipliers=(1, 2))
    first = build_network(settings, channels=1, height=8, width=8, seed=5)
    assert torch.equal(torch.rand(1), expected)
    second = build_network(settings, channels=1, height=8, width=8, seed=5)
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)


def test_it_learns_one_image(make_cohort: MakeCohort, tmp_path: Path) -> None:
    rows, columns = np.mgrid[:8, :8]
    image = (128 + 100 * np.sin(rows) * np.cos(columns)).astype(np.uint8)
    cohort = make_cohort(subjects=2, slices=1, holdout=1, pixels=np.broadcast_to(image, (2, 1, 8, 8)))
    run = _train(cohort, tmp_path / "run", steps=200, base_channels=16, batch_size=8)
    drawn = _draw(run, tmp_path / "samples", 4)
    for sample in drawn:
        assert np.corrcoef(sample.ravel(), image.ravel())[0, 1] > 0.95
