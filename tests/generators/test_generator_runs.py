"""The door: kinds, settings, folders, and samples that resume."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from unalike import folders
from unalike.cohort.store import open_images
from unalike.errors import FolderError, SettingsError
from unalike.generators.controls.gaussian import GaussianSettings
from unalike.generators.controls.memorizer import MemorizerSampler
from unalike.generators.data import PixelScale, nearest_level, settle_seams
from unalike.generators.diffusion.settings import DiffusionSettings, SampleSettings
from unalike.generators.settings import resolve_settings
from unalike.runs import sample as runs
from unalike.runs.sample import draw_samples
from unalike.runs.train import train_generator

MakeCohort = Callable[..., Path]


def test_unknown_kind_lists_the_kinds(make_cohort: MakeCohort, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"'gan'.*diffusion, stylegan, inversion, gaussian, memorizer"):
        train_generator(kind="gan", cohort=make_cohort(), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"stepz": 3}, "unknown setting stepz. There are: steps"),
        ({"steps": 2.5}, "steps = 2.5: give a whole number"),
        ({"steps": True}, "whole number"),
        ({"steps": 0}, "steps = 0: give at least 1"),
        ({"ema_decays": [1.0]}, "ema_decays"),
        ({"learning_rate": float("nan")}, "learning_rate = nan"),
        ({"prediction": "noise"}, "epsilon, sample, v_prediction"),
        ({"base_channels": 20}, "multiple of 8"),
        ({"channel_multipliers": [0]}, "channel_multipliers"),
        ({"accumulate": 3}, "divides batch_size"),
        ({"zero_terminal_snr": True, "min_snr": 5}, "min_snr"),
        ({"compile": 1}, "compile = 1: give true or false"),
    ],
)
def test_settings_are_refused_by_name(given: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        resolve_settings(DiffusionSettings, given)


def test_settings_come_as_dataclass_or_mapping() -> None:
    assert resolve_settings(DiffusionSettings, None) == DiffusionSettings()
    assert resolve_settings(DiffusionSettings, {"channel_multipliers": [1, 2], "weight_decay": 0}) == (
        DiffusionSettings(channel_multipliers=(1, 2), weight_decay=0.0)
    )
    given = SampleSettings(steps=10)
    assert resolve_settings(SampleSettings, given) is given
    with pytest.raises(SettingsError, match="GaussianSettings"):
        resolve_settings(DiffusionSettings, GaussianSettings())  # type: ignore[arg-type]


def test_settings_do_not_import_torch() -> None:
    code = (
        "import sys, unalike.generators.diffusion.settings, unalike.generators.controls.gaussian, "
        "unalike.generators.controls.memorizer, unalike.runs.sample; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | {"PYTHONPATH": "src"})


def test_headers_tell_where_everything_is_from(make_cohort: MakeCohort, tmp_path: Path) -> None:
    cohort = make_cohort(subjects=7, holdout=2)
    run = train_generator(kind="gaussian", cohort=cohort, out=tmp_path / "run", subjects=4, seed=3)
    samples = open_images(draw_samples(run=run, out=tmp_path / "samples", count=5, first_seed=40), kind="samples")
    header = folders.read_header(run, kind="run")
    assert header.inputs == {"cohort": open_images(cohort).digest}
    assert (header.seed, header.content["subject_seed"], header.content["train_images"]) == (3, 3, 8)
    assert samples.header.inputs == {
        "run": folders.digest_of(run, kind="run"),
        "cohort": header.inputs["cohort"],
    }
    assert samples.header.content["generator"] == "gaussian"
    assert (samples.header.content["subjects"], samples.header.content["subject_seed"]) == (4, 3)
    assert samples.column("subject").tolist() == [f"sample-{seed:06d}" for seed in range(40, 45)]
    assert set(samples.column("role")) == {"synthetic"}
    assert samples.numbers("seed").tolist() == [40, 41, 42, 43, 44]
    assert not (tmp_path / "samples" / runs.PARTS).exists()
    assert not (tmp_path / "samples" / folders.UNFINISHED).exists()


def test_interrupted_drawing_resumes_to_the_same_pixels(
    make_cohort: MakeCohort, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = train_generator(kind="memorizer", cohort=make_cohort(), out=tmp_path / "run")
    order = {"run": run, "count": 10, "settings": {"batch_size": 3}}
    whole = open_images(draw_samples(out=tmp_path / "whole", **order), kind="samples")
    draw, drawn = MemorizerSampler.draw, []

    def draw_twice(self: MemorizerSampler, seeds: Any) -> Any:
        if len(drawn) == 2:
            raise KeyboardInterrupt
        drawn.append(list(seeds))
        return draw(self, seeds)

    monkeypatch.setattr(MemorizerSampler, "draw", draw_twice)
    with pytest.raises(KeyboardInterrupt):
        draw_samples(out=tmp_path / "pieces", **order)
    with pytest.raises(FolderError, match="unfinished"):
        open_images(tmp_path / "pieces", kind="samples")
    with pytest.raises(FolderError, match="other settings"):
        draw_samples(out=tmp_path / "pieces", **(order | {"count": 11}))

    def note(self: MemorizerSampler, seeds: Any) -> Any:
        drawn.append(list(seeds))
        return draw(self, seeds)

    monkeypatch.setattr(MemorizerSampler, "draw", note)
    pieces = open_images(draw_samples(out=tmp_path / "pieces", **order), kind="samples")
    assert drawn == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9]]  # nothing twice
    assert pieces.header.content["images_digest"] == whole.header.content["images_digest"]
    np.testing.assert_array_equal(pieces.images[:], whole.images[:])


def test_a_changed_model_is_refused(make_cohort: MakeCohort, tmp_path: Path) -> None:
    run = train_generator(kind="memorizer", cohort=make_cohort(), out=tmp_path / "run")
    (run / "model" / "memorizer.json").write_text(json.dumps({"noise": 0}))
    with pytest.raises(FolderError, match="not the model"):
        draw_samples(run=run, out=tmp_path / "samples", count=1)


@pytest.mark.parametrize("wrong", [{"count": 0}, {"first_seed": -1}, {"settings": {"batch_size": 0}}])
def test_senseless_orders_are_refused(make_cohort: MakeCohort, tmp_path: Path, wrong: dict[str, Any]) -> None:
    run = train_generator(kind="memorizer", cohort=make_cohort(), out=tmp_path / "run")
    with pytest.raises(SettingsError, match=r"count|first-seed|batch_size"):
        draw_samples(**({"run": run, "out": tmp_path / "samples", "count": 2} | wrong))
    assert not (tmp_path / "samples").exists()


def test_too_many_subjects_or_none_to_train_on(make_cohort: MakeCohort, tmp_path: Path) -> None:
    cohort = make_cohort(subjects=3, holdout=1)
    with pytest.raises(SettingsError, match="give 1 to 2"):
        train_generator(kind="memorizer", cohort=cohort, out=tmp_path / "run", subjects=3)


def test_scales_are_inverse_and_levels_nearest() -> None:
    for dtype, highest in (("uint8", 255), ("uint16", 4095), ("uint16", 65535)):
        scale = PixelScale(("t1",), dtype, highest, {})
        pixels = np.linspace(0, highest, 1000).astype(dtype).reshape(10, 1, 10, 10)
        unit = scale.to_unit(pixels)
        assert (unit.min(), unit.max()) == (-1, 1)
        np.testing.assert_array_equal(scale.from_unit(unit), pixels)
        assert scale.from_unit(np.full((1, 1, 1, 1), 9.0)).item() == highest
    assert nearest_level(np.array([-9, 24, 26, 90, 999.0]), np.array([0, 50, 120])).tolist() == [
        0,
        0,
        50,
        120,
        120,
    ]


def test_a_damaged_part_is_drawn_again(
    make_cohort: MakeCohort, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = train_generator(kind="memorizer", cohort=make_cohort(), out=tmp_path / "run")
    order = {"run": run, "count": 6, "settings": {"batch_size": 3}}
    whole = open_images(draw_samples(out=tmp_path / "whole", **order), kind="samples")

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("unalike.runs.sample.Drawing.assemble", stop)
        with pytest.raises(KeyboardInterrupt):
            draw_samples(out=tmp_path / "pieces", **order)
    part = sorted((tmp_path / "pieces" / "parts").iterdir())[0]
    part.write_bytes(part.read_bytes()[:50])
    pieces = open_images(draw_samples(out=tmp_path / "pieces", **order), kind="samples")
    assert pieces.header.content["images_digest"] == whole.header.content["images_digest"]


def test_a_soft_edge_between_two_classes_draws_no_third() -> None:
    levels = np.array([0, 127, 254])
    thin = np.tile(np.array([0, 0, 0, 100.0, 254, 254, 254]), (2, 7, 1))
    assert (nearest_level(thin, levels) == 127).any()
    assert np.unique(settle_seams(nearest_level(thin, levels), thin)).tolist() == [0, 254]
    assert (settle_seams(nearest_level(thin, levels), thin)[:, :, 3] == 0).all()  # 100 is nearer to 0


def test_a_class_that_is_there_stays() -> None:
    levels = np.array([0, 127, 254])
    masks = np.zeros((3, 9, 9))
    masks[0, :, 3:5], masks[0, :, 5:] = 127, 254  # two pixels wide between the others
    masks[1, 4, 4] = 127  # a pixel of its own: nothing higher beside it
    masks[2, :, 4:] = 254
    assert np.array_equal(settle_seams(nearest_level(masks, levels), masks), masks)
    for mask in masks:  # and each by itself
        assert np.array_equal(settle_seams(nearest_level(mask[None], levels), mask[None])[0], mask)
