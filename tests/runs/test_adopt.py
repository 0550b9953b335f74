"""Models of plain diffusers become runs: the same samples, every misfit refused, and no trace of where they lay."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMPipeline,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    LDMPipeline,
    UNet2DModel,
    VQModel,
)
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from unalike import folders
from unalike.cli.adopt import adopt
from unalike.cohort.store import open_images
from unalike.errors import FolderError, InputError, SettingsError, UnalikeError
from unalike.generators.losses import open_loss_model
from unalike.runs.adopt import adopt_model
from unalike.runs.sample import draw_samples, open_run_cohort
from unalike.runs.settings import GuardSettings

MakeCohort = Callable[..., Path]
T = 10  # noise levels; all are walked, so that the spacing of time steps, which adopting changes, changes nothing
WEIGHTS = "diffusion_pytorch_model.safetensors"


def _network(**changes: Any) -> Any:
    settings = {
        "sample_size": 8,
        "in_channels": 1,
        "out_channels": 1,
        "block_out_channels": (8, 16),
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
        "layers_per_block": 1,
        "norm_num_groups": 4,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return UNet2DModel(**settings | changes)


def _autoencoder(**changes: Any) -> Any:
    settings = {
        "in_channels": 1,
        "out_channels": 1,
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "block_out_channels": (8, 8),
        "norm_num_groups": 4,
        "latent_channels": 2,
        "scaling_factor": 0.7,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        return AutoencoderKL(**settings | changes)


def _save(place: Path, *, scheduler: Any = None, autoencoder: Any = None, **changes: Any) -> Path:
    """A model as diffusers' own pipelines save it."""
    unet, scheduler = _network(**changes), scheduler or DDPMScheduler(num_train_timesteps=T)
    if autoencoder is not None:
        pipeline: Any = LDMPipeline(vqvae=autoencoder, unet=unet, scheduler=scheduler)
    else:
        kind = DDIMPipeline if isinstance(scheduler, DDIMScheduler) else DDPMPipeline
        pipeline = kind(unet=unet, scheduler=scheduler)
    pipeline.save_pretrained(place, safe_serialization=True)
    return place


def _edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def _draw(run: Path, out: Path, count: int = 1, *, first_seed: int = 11, **settings: Any) -> np.ndarray:
    order = {"steps": T, "precision": "float32"} | settings
    draw_samples(run=run, out=out, count=count, first_seed=first_seed, settings=order, device="cpu")
    samples = open_images(out, kind="samples")
    return samples.read(samples.rows("synthetic"))


def _theirs(kind: Any, place: Path, **parts: Any) -> np.ndarray:
    """What plain diffusers draws from the folder ``place``, these parts exchanged: (C, H, W), 0 to 255."""
    pipeline = kind.from_pretrained(place, low_cpu_mem_usage=False, **parts)
    pipeline.set_progress_bar_config(disable=True)
    stream = torch.Generator().manual_seed(11)
    drawn = pipeline(generator=stream, num_inference_steps=T, output_type="np").images
    return drawn[0].transpose(2, 0, 1) * 255


def _scheduler(run: Path) -> Any:
    return DDPMScheduler.from_pretrained(run / "model" / "scheduler")


def _content(run: Path) -> Any:
    return folders.read_header(run, kind="run").content


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
def test_ddpm_draws_what_plain_diffusers_draws(make_cohort: MakeCohort, tmp_path: Path, prediction: str) -> None:
    cohort = make_cohort(channels=("t1", "t2"), size=(8, 12))
    scheduler = DDPMScheduler(
        num_train_timesteps=T, beta_end=0.3, prediction_type=prediction, variance_type="fixed_large"
    )
    changes = {"in_channels": 2, "out_channels": 2, "sample_size": (8, 12)}
    model = _save(tmp_path / "model", scheduler=scheduler, **changes)
    run = adopt_model(model=model, cohort=cohort, out=tmp_path / "run")
    ours = _draw(run, tmp_path / "samples", sampler="ddpm")[0]
    for place in (model, run / "model"):
        # One grey level: their network works on one image at a time, ours on a group.
        assert np.abs(_theirs(DDPMPipeline, place) - ours).max() <= 1
    assert len(np.unique(ours)) > 20


def test_ddim_draws_what_plain_diffusers_draws(make_cohort: MakeCohort, tmp_path: Path) -> None:
    scheduler = DDIMScheduler(num_train_timesteps=T, beta_end=0.3, beta_schedule="scaled_linear")
    model = _save(tmp_path / "model", scheduler=scheduler)
    run = adopt_model(model=model, cohort=make_cohort(), out=tmp_path / "run")
    ours = _draw(run, tmp_path / "samples")[0]
    assert np.abs(_theirs(DDIMPipeline, model) - ours).max() <= 1
    assert len(np.unique(ours)) > 20


@pytest.mark.parametrize("folder", ["vqvae", "vae"])
def test_latents_are_decoded_as_plain_diffusers_does(make_cohort: MakeCohort, tmp_path: Path, folder: str) -> None:
    scheduler = DDIMScheduler(num_train_timesteps=T, beta_end=0.3, clip_sample=False)
    changes = {"in_channels": 2, "out_channels": 2}
    model = _save(tmp_path / "model", scheduler=scheduler, autoencoder=_autoencoder(), **changes)
    theirs = _theirs(LDMPipeline, model)
    (model / "vqvae").rename(model / folder)
    run = adopt_model(model=model, cohort=make_cohort(size=(16, 16)), out=tmp_path / "run")
    ours = _draw(run, tmp_path / "samples")[0]
    assert ours.shape == (1, 16, 16)
    assert np.abs(theirs - ours).max() <= 1
    adopted = DDIMScheduler.from_pretrained(run / "model" / "scheduler")
    assert np.abs(_theirs(LDMPipeline, run / "model", scheduler=adopted) - ours).max() <= 1
    assert len(np.unique(ours)) > 20


@pytest.mark.parametrize("labels", [("cat", "dog", "eel"), ("cat", "dog")])
def test_a_class_is_drawn_by_its_name(make_cohort: MakeCohort, tmp_path: Path, labels: tuple[str, ...]) -> None:
    scheduler = DDIMScheduler(num_train_timesteps=T, beta_end=0.3)
    model = _save(tmp_path / "model", scheduler=scheduler, num_class_embeds=3)
    unet = UNet2DModel.from_pretrained(model / "unet", low_cpu_mem_usage=False)
    with torch.no_grad():  # classes that can be told apart
        unet.class_embedding.weight.mul_(5)
    unet.save_pretrained(model / "unet")
    run = adopt_model(model=model, cohort=make_cohort(), out=tmp_path / "run", labels=labels)
    ours = {label: _draw(run, tmp_path / label, label=label)[0] for label in labels}
    assert np.abs(ours["cat"].astype(int) - ours["dog"]).max() > 5
    for number, label in enumerate(labels):
        x_t = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(11))
        scheduler.set_timesteps(T)
        for t in scheduler.timesteps:
            with torch.inference_mode():
                predicted = unet(x_t, t, class_labels=torch.tensor([number])).sample
            x_t = scheduler.step(predicted, t, x_t).prev_sample
        assert np.abs((x_t[0].numpy() + 1) * 127.5 - ours[label]).max() <= 1
    content = _content(run)
    assert content["guidable"] == (len(labels) == 2)
    assert content["label_counts"] == dict.fromkeys(labels, 1)
    # Without a label, each sample is of one of the classes.
    _draw(run, tmp_path / "any", 16, first_seed=0, steps=1)
    assert set(open_images(tmp_path / "any", kind="samples").column("label")) == set(labels)


def test_where_every_row_is_a_class_their_mean_stands_for_none(make_cohort: MakeCohort, tmp_path: Path) -> None:
    model = _save(tmp_path / "model", num_class_embeds=2)
    cohort = make_cohort()
    before = load_file(model / "unet" / WEIGHTS)
    padded = adopt_model(model=model, cohort=cohort, out=tmp_path / "padded", labels=("a", "b"))
    after = load_file(padded / "model" / "unet" / WEIGHTS)
    table = after.pop("class_embedding.weight")
    assert torch.equal(table[:2], before["class_embedding.weight"])
    torch.testing.assert_close(table[2], (table[0] + table[1]) / 2)
    assert all(torch.equal(after[name], before[name]) for name in after)
    kept = adopt_model(model=model, cohort=cohort, out=tmp_path / "kept", labels=("a",))
    assert len(load_file(kept / "model" / "unet" / WEIGHTS)["class_embedding.weight"]) == 2
    for run in (padded, kept):  # membership asks for no label
        losses = open_loss_model(run, device="cpu").losses(open_images(cohort).read(np.arange(3)), seed=0)
        assert np.isfinite(losses).all()


def test_the_header_is_like_that_of_our_own_runs(make_cohort: MakeCohort, tmp_path: Path) -> None:
    cohort = make_cohort(channels=("t1", "mask"), dtype=np.uint16)
    model = _save(tmp_path / "model", in_channels=2, out_channels=2)
    run = adopt_model(model=model, cohort=cohort, out=tmp_path / "run")
    header = folders.read_header(run, kind="run")
    opened = open_images(cohort)
    assert open_run_cohort(cohort, header).digest == opened.digest
    content = dict(header.content)
    train = opened.read(opened.rows("train"))
    assert content.pop("model_digest") == folders.digest_tree(run / "model")
    assert content == {
        "generator": "diffusion",
        "channels": ["t1", "mask"],
        "height": 8,
        "width": 8,
        "dtype": "uint16",
        "highest": int(train.max()),
        "levels": {"mask": [0, 50, 120]},
        "subjects": None,
        "subject_seed": 0,
        "train_images": 8,
        "trained_elsewhere": True,
        "parameters": sum(weight.numel() for weight in _network(in_channels=2, out_channels=2).parameters()),
        "ema_decays": [],
        "conditions": {"labels": [], "attributes": [], "mask": False, "augment": False},
        "label_counts": {},
        "guidable": False,
        "holds_training_images": False,
    }
    assert header.settings == {
        "model": "UNet2DModel",
        "scheduler": "DDPMScheduler",
        "autoencoder": None,
        "labels": [],
    }
    drawn = _draw(run, tmp_path / "samples", 3)
    assert drawn.dtype == np.uint16
    assert set(np.unique(drawn[:, 1])) <= {0, 50, 120}
    with pytest.raises(SettingsError, match="without labels"):
        _draw(run, tmp_path / "guided", guidance=2.0)
    with pytest.raises(UnalikeError):
        _draw(run, tmp_path / "average", ema_decay=0.9)


def test_nothing_tells_where_the_model_lay(make_cohort: MakeCohort, tmp_path: Path) -> None:
    secret = "clinic-of-st-nowhere"
    scheduler = DDIMScheduler(num_train_timesteps=T, beta_end=0.3)
    scheduler.register_to_config(_name_or_path=secret)
    changes = {"in_channels": 2, "out_channels": 2, "autoencoder": _autoencoder()}
    model = _save(tmp_path / secret / "model", scheduler=scheduler, **changes)
    for part in ("unet", "vqvae"):
        _edit(model / part / "config.json", _name_or_path=str(model), note=secret)
        weights = load_file(model / part / WEIGHTS)
        save_file(weights, model / part / WEIGHTS, metadata={"format": "pt", "from": str(model)})
    _edit(model / "model_index.json", _name_or_path=str(model))
    _edit(model / "scheduler" / "scheduler_config.json", trained_betas=[0.1] * T, beta_schedule=secret)
    (model / "README.md").write_text(secret)
    (model / "unet" / "notes.json").write_text(json.dumps(secret))
    assert secret.encode() in (model / "unet" / WEIGHTS).read_bytes()  # or the test could not fail
    run = adopt_model(model=model, cohort=make_cohort(size=(16, 16)), out=tmp_path / "run")
    files = [path for path in run.rglob("*") if path.is_file()]
    assert {path.relative_to(run).as_posix() for path in files} == {
        "run.json",
        "model/model_index.json",
        "model/scheduler/scheduler_config.json",
        "model/unet/config.json",
        f"model/unet/{WEIGHTS}",
        "model/vqvae/config.json",
        f"model/vqvae/{WEIGHTS}",
    }
    for path in files:
        assert secret.encode() not in path.read_bytes()
        assert str(tmp_path).encode() not in path.read_bytes()
    with safe_open(run / "model" / "unet" / WEIGHTS, framework="pt") as stream:
        assert stream.metadata() == {"format": "pt"}
    again = adopt_model(model=model, cohort=tmp_path / "cohort", out=tmp_path / "again")
    assert _content(again)["model_digest"] == _content(run)["model_digest"]


@pytest.mark.parametrize(
    "scheduler",
    [
        DDPMScheduler(num_train_timesteps=T, beta_schedule="squaredcos_cap_v2", clip_sample=False),
        DDPMScheduler(
            num_train_timesteps=T, beta_schedule="sigmoid", thresholding=True, dynamic_thresholding_ratio=0.9
        ),
        DDPMScheduler(num_train_timesteps=T, trained_betas=np.linspace(0.01, 0.5, T).tolist(), clip_sample_range=2.0),
        DDIMScheduler(num_train_timesteps=T, rescale_betas_zero_snr=True, prediction_type="v_prediction"),
        diffusers.PNDMScheduler(num_train_timesteps=T, beta_schedule="scaled_linear"),
        diffusers.EulerDiscreteScheduler(
            num_train_timesteps=T, rescale_betas_zero_snr=True, prediction_type="v_prediction"
        ),
        diffusers.HeunDiscreteScheduler(
            num_train_timesteps=T, beta_schedule="exp"
        ),  # a schedule that DDPM does not know
        diffusers.HeunDiscreteScheduler(num_train_timesteps=T),  # betas that are not DDPM's if none are named
        diffusers.DPMSolverMultistepScheduler(num_train_timesteps=T, prediction_type="sample"),
        diffusers.UnCLIPScheduler(num_train_timesteps=T),  # its schedule has no name in the settings
    ],
    ids=lambda scheduler: type(scheduler).__name__,
)
def test_noise_levels_stay_the_same(make_cohort: MakeCohort, tmp_path: Path, scheduler: Any) -> None:
    model = _save(tmp_path / "model")
    scheduler.save_pretrained(model / "scheduler")
    path = model / "scheduler" / "scheduler_config.json"
    defaults = ("beta_start", "beta_end")  # as older files leave out what is the default
    plain = {name: value for name, value in json.loads(path.read_text()).items() if name not in defaults}
    path.write_text(json.dumps(plain))
    run = adopt_model(model=model, cohort=make_cohort(), out=tmp_path / "run")
    found = _scheduler(run)
    torch.testing.assert_close(found.alphas_cumprod, scheduler.alphas_cumprod, rtol=1e-6, atol=1e-7)
    for name in ("prediction_type", "variance_type", "clip_sample", "thresholding", "clip_sample_range"):
        if scheduler.config.get(name) is not None:
            assert found.config[name] == scheduler.config[name]
    assert found.config.timestep_spacing == "trailing"
    assert _draw(run, tmp_path / "samples", steps=5, sampler="dpm++").shape == (1, 1, 8, 8)


def test_pixels_are_clipped_and_latents_are_not_where_nothing_is_said(make_cohort: MakeCohort, tmp_path: Path) -> None:
    euler = diffusers.EulerDiscreteScheduler(num_train_timesteps=T)
    cohort = make_cohort()
    pixels = adopt_model(model=_save(tmp_path / "p", scheduler=euler), cohort=cohort, out=tmp_path / "pixels")
    changes = {"sample_size": 4, "in_channels": 2, "out_channels": 2}
    model = _save(tmp_path / "l", scheduler=euler, autoencoder=_autoencoder(), **changes)
    latents = adopt_model(model=model, cohort=cohort, out=tmp_path / "latents")
    assert _scheduler(pixels).config.clip_sample is True
    assert _scheduler(latents).config.clip_sample is False


def test_a_learned_variance_is_known_by_the_channels(make_cohort: MakeCohort, tmp_path: Path) -> None:
    cohort = make_cohort()
    silent = _save(tmp_path / "silent", scheduler=DDIMScheduler(num_train_timesteps=T, beta_end=0.3), out_channels=2)
    run = adopt_model(model=silent, cohort=cohort, out=tmp_path / "run")
    assert _scheduler(run).config.variance_type == "learned_range"
    for sampler in ("ddpm", "ddim"):
        assert _draw(run, tmp_path / sampler, sampler=sampler).shape == (1, 1, 8, 8)
    missing = _save(tmp_path / "missing", scheduler=DDPMScheduler(num_train_timesteps=T, variance_type="learned_range"))
    with pytest.raises(FolderError, match=r"variance_type = 'learned_range', which does not fit.*'fixed_small'"):
        adopt_model(model=missing, cohort=cohort, out=tmp_path / "other")


def test_halves_shards_and_former_names_are_read(make_cohort: MakeCohort, tmp_path: Path) -> None:
    model, cohort = _save(tmp_path / "model"), make_cohort()
    plain = adopt_model(model=model, cohort=cohort, out=tmp_path / "plain")
    whole = load_file(model / "unet" / WEIGHTS)
    former = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    renamed = dict(whole)
    for new, old in former.items():
        renamed = {name.replace(f".{new}.", f".{old}."): weight for name, weight in renamed.items()}
    assert any("proj_attn" in name for name in renamed)
    (model / "unet" / WEIGHTS).unlink()
    names = sorted(renamed)
    for number, part in enumerate((names[::2], names[1::2]), start=1):
        file = model / "unet" / f"diffusion_pytorch_model-0000{number}-of-00002.safetensors"
        save_file({name: renamed[name] for name in part}, file)
    (model / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"a pickle beside safetensors stays where it is")
    shards = adopt_model(model=model, cohort=cohort, out=tmp_path / "shards")
    assert _content(shards)["model_digest"] == _content(plain)["model_digest"]
    save_file({name: weight.half() for name, weight in whole.items()}, model / "unet" / WEIGHTS)
    half = adopt_model(model=model, cohort=cohort, out=tmp_path / "half")
    written = load_file(half / "model" / "unet" / WEIGHTS)
    assert all(torch.equal(written[name], whole[name].half().float()) for name in whole)


def test_a_bare_folder_will_do_and_its_pair_of_sides(make_cohort: MakeCohort, tmp_path: Path) -> None:
    model = _save(tmp_path / "model", sample_size=(8, 8))
    (model / "model_index.json").unlink()
    run = adopt_model(model=model, cohort=make_cohort(), out=tmp_path / "run")
    assert json.loads((run / "model" / "unet" / "config.json").read_text())["sample_size"] == 8
    DDPMPipeline.from_pretrained(run / "model", low_cpu_mem_usage=False)


def test_adopting_leaves_the_global_stream_alone(make_cohort: MakeCohort, tmp_path: Path) -> None:
    changes = {"in_channels": 2, "out_channels": 2, "sample_size": 4, "dropout": 0.5}
    model, cohort = _save(tmp_path / "model", autoencoder=_autoencoder(), **changes), make_cohort()
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    adopt_model(model=model, cohort=cohort, out=tmp_path / "run")
    assert torch.equal(torch.rand(1), expected)


def test_the_guard_takes_an_adopted_run(make_cohort: MakeCohort, tmp_path: Path) -> None:
    cohort = make_cohort(size=(16, 16), subjects=9, holdout=4)
    run = adopt_model(model=_save(tmp_path / "model", sample_size=16), cohort=cohort, out=tmp_path / "run")
    draw_samples(
        run=run,
        out=tmp_path / "samples",
        count=2,
        settings={"steps": 5, "precision": "float32"},
        device="cpu",
        guard=cohort,
        guard_settings=GuardSettings(level=0.2),
    )
    assert folders.read_header(tmp_path / "samples", kind="samples").content["guard"]["holdout_subjects"] == 4


def test_folders_that_are_no_such_model(make_cohort: MakeCohort, tmp_path: Path) -> None:
    def refused(match: str) -> None:
        with pytest.raises(FolderError, match=match):
            adopt_model(model=model, cohort=cohort, out=tmp_path / "run")
        assert not (tmp_path / "run").exists()

    cohort, model = make_cohort(), tmp_path / "missing"
    refused(r"missing does not exist or is no folder.*none is downloaded")
    model.mkdir()
    refused(r"no diffusers folder of a UNet2DModel \(unet/ is missing\)")
    (model / "unet").mkdir()
    refused(r"\(scheduler/ is missing\)")
    (model / "scheduler").mkdir()
    refused(r"config.json cannot be read as JSON")
    (model / "unet" / "config.json").write_text("[]")
    refused(r"holds no settings")
    (model / "unet" / "config.json").write_text('{"_class_name": "UNet2DConditionModel"}')
    refused(r"describes a UNet2DConditionModel; only UNet2DModel can be adopted")
    (model / "unet" / "config.json").write_text('{"_class_name": "UNet2DModel", "layers_per_block": "two"}')
    refused(r"no network that diffusers can build")


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"class_embed_type": "identity"}, r"class_embed_type = 'identity'.*any but null"),
        ({"time_embedding_type": "fourier"}, r"time_embedding_type = 'fourier'.*any but \"positional\""),
        ({"in_channels": 3}, r"3 channels in and 1 out.*more than the noisy image"),
        ({"num_class_embeds": 0}, r"num_class_embeds = 0"),
        ({"sample_size": None}, r"no sample_size.*\(None\).*32 or \[32, 48\]"),
        ({"sample_size": [8, 8, 8]}, r"no sample_size"),
        ({"sample_size": 0}, r"no sample_size"),
        ({"sample_size": 7}, r"cannot draw 7 × 7"),
        ({"block_out_channels": [8, 24]}, r"weights in .*unet are not those of its config.json: .* has the shape"),
        ({"layers_per_block": 2}, r"weights in .* is missing"),
        ({"add_attention": False}, r"weights in .* is not in the network"),
    ],
)
def test_networks_that_do_not_fit(make_cohort: MakeCohort, tmp_path: Path, changes: dict[str, Any], match: str) -> None:
    model = _save(tmp_path / "model")
    _edit(model / "unet" / "config.json", **changes)
    with pytest.raises(FolderError, match=match):
        adopt_model(model=model, cohort=make_cohort(), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"_class_name": "FlowMatchEulerDiscreteScheduler"}, r"FlowMatchEulerDiscreteScheduler without betas"),
        ({"_class_name": "IPNDMScheduler"}, r"IPNDMScheduler without betas"),
        ({"_class_name": "MyScheduler"}, r"it knows no MyScheduler"),
        ({"_class_name": "UNet2DModel"}, r"it knows no UNet2DModel"),
        ({"_class_name": "CogVideoXDDIMScheduler"}, r"cannot be written as betas \(they are shifted\)"),
        ({"_class_name": "EulerDiscreteScheduler", "timestep_type": "continuous"}, r"without betas"),
        ({"prediction_type": "flow_prediction"}, r"prediction_type = 'flow_prediction'.*epsilon, sample, v_pred"),
        ({"variance_type": "guessed"}, r"variance_type = 'guessed'"),
        ({"beta_schedule": "round"}, r"no scheduler that diffusers can build"),
        ({"num_train_timesteps": 10**12}, r"num_train_timesteps is 1000000000000"),
        ({"num_train_timesteps": "many"}, r"num_train_timesteps is many"),
        ({"trained_betas": [0.1, 0.2]}, r"2 betas.*for 10 levels"),
        ({"beta_end": 7}, r"not all from 0 to 1"),
        ({"clip_sample_range": "far"}, r"clip_sample_range = 'far', which is no number"),
    ],
)
def test_schedulers_that_do_not_fit(
    make_cohort: MakeCohort, tmp_path: Path, changes: dict[str, Any], match: str
) -> None:
    model = _save(tmp_path / "model")
    _edit(model / "scheduler" / "scheduler_config.json", **changes)
    with pytest.raises(FolderError, match=match):
        adopt_model(model=model, cohort=make_cohort(), out=tmp_path / "run")


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"_class_name": "VQModel"}, r"describes a VQModel; only AutoencoderKL"),
        ({"latent_channels": 3}, r"latents of 3 channels, the network in unet/ takes 2"),
        ({"out_channels": 2}, r"1 channels in and 2 out"),
        ({"shift_factor": 0.5}, r"has shift_factor; only scaling_factor"),
        ({"scaling_factor": 0}, r"scaling_factor = 0.*above 0"),
        ({"norm_num_groups": 8}, None),  # not seen in the weights: nothing to refuse
    ],
)
def test_autoencoders_that_do_not_fit(
    make_cohort: MakeCohort, tmp_path: Path, changes: dict[str, Any], match: str | None
) -> None:
    model = _save(tmp_path / "model", autoencoder=_autoencoder(), in_channels=2, out_channels=2, sample_size=4)
    _edit(model / "vqvae" / "config.json", **changes)
    if match is None:
        adopt_model(model=model, cohort=make_cohort(), out=tmp_path / "run")
        return
    with pytest.raises(FolderError, match=match):
        adopt_model(model=model, cohort=make_cohort(), out=tmp_path / "run")


def test_another_autoencoder_is_refused_by_its_name(make_cohort: MakeCohort, tmp_path: Path) -> None:
    model = _save(tmp_path / "model", autoencoder=VQModel(in_channels=1, out_channels=1))
    with pytest.raises(FolderError, match="VQModel"):
        adopt_model(model=model, cohort=make_cohort(), out=tmp_path / "run")


@pytest.mark.parametrize("name", ["diffusion_pytorch_model.bin", "model.pt", "last.ckpt"])
def test_pickles_are_refused_unread(make_cohort: MakeCohort, tmp_path: Path, name: str) -> None:
    model = _save(tmp_path / "model")
    (model / "unet" / WEIGHTS).rename(model / "unet" / name)
    with pytest.raises(FolderError, match=r"pickled.*save_pretrained\(folder, safe_serialization=True\)"):
        adopt_model(model=model, cohort=make_cohort(), out=tmp_path / "run")
    (model / "unet" / name).unlink()
    with pytest.raises(FolderError, match=f"holds no {WEIGHTS}"):
        adopt_model(model=model, cohort=tmp_path / "cohort", out=tmp_path / "run")


def test_damaged_weights_are_refused(make_cohort: MakeCohort, tmp_path: Path) -> None:
    model, cohort = _save(tmp_path / "model"), make_cohort()
    file = model / "unet" / WEIGHTS
    whole, weights = file.read_bytes(), load_file(file)
    wrong = {
        "cannot be read": whole[: len(whole) // 2],
        "cannot be read .*header": (2**60).to_bytes(8, "little") + whole[8:],
    }
    for match, content in wrong.items():
        file.write_bytes(content)
        with pytest.raises(FolderError, match=match):
            adopt_model(model=model, cohort=cohort, out=tmp_path / "run")
    name = "conv_in.weight"
    for match, odd in (
        ("conv_in.weight holds numbers that are not finite", torch.full_like(weights[name], torch.nan)),
        ("conv_in.weight holds I64, not one of F32, F16, BF16", weights[name].long()),
    ):
        save_file(weights | {name: odd}, file)
        with pytest.raises(FolderError, match=match):
            adopt_model(model=model, cohort=cohort, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_cohorts_that_do_not_fit_name_the_size_to_prepare(make_cohort: MakeCohort, tmp_path: Path) -> None:
    def refused(model: Path, match: str) -> None:
        with pytest.raises(InputError, match=match):
            adopt_model(model=model, cohort=cohort, out=tmp_path / "run")
        assert not (tmp_path / "run").exists()

    cohort = make_cohort(size=(8, 12))
    rgb = {"in_channels": 3, "out_channels": 3}
    refused(_save(tmp_path / "rgb", **rgb), r"images of 3 channels, .*cohort has 1 \(t1\)")
    refused(_save(tmp_path / "square"), r"8 × 8 pixels, those of .* are 8 × 12. Prepare .* at 8 × 8 \(--size 8\)")
    refused(_save(tmp_path / "turned", sample_size=(12, 8)), r"12 × 8 pixels.*Prepare the cohort at 12 × 8\.")
    latent = {"in_channels": 2, "out_channels": 2, "autoencoder": _autoencoder()}
    refused(_save(tmp_path / "latent", **latent), r"16 × 16 pixels \(latents times 2\).*--size 16")


@pytest.mark.parametrize(
    ("classes", "labels", "match"),
    [
        (None, ("a",), "has no classes. Leave it out"),
        (3, (), "table of 3 classes, and 0 names"),
        (1, (), "table of 1 classes, and 0 names"),
        (3, ("a",), "table of 3 classes, and 1 names.*one fewer if the last row stands for no label"),
        (3, ("a", "b", "c", "d"), "and 4 names"),
        (3, ("a", "b", "a"), "a name of its own"),
        (3, ("a", ""), "a name of its own"),
    ],
)
def test_labels_have_to_name_the_classes(
    make_cohort: MakeCohort, tmp_path: Path, classes: int | None, labels: tuple[str, ...], match: str
) -> None:
    model = _save(tmp_path / "model", num_class_embeds=classes)
    with pytest.raises(SettingsError, match=match):
        adopt_model(model=model, cohort=make_cohort(), out=tmp_path / "run", labels=labels)
    assert not (tmp_path / "run").exists()


def test_an_interrupted_training_is_not_overwritten(make_cohort: MakeCohort, tmp_path: Path) -> None:
    model, cohort, out = _save(tmp_path / "model"), make_cohort(), tmp_path / "run"
    folders.begin_folder(out, kind="run", settings={"generator": "diffusion"}, resumable=True)
    (out / "log.jsonl").write_text("{}")
    with pytest.raises(FolderError, match="other settings"):
        adopt_model(model=model, cohort=cohort, out=out)
    assert (out / "log.jsonl").is_file()


def test_adopting_goes_on_where_it_was_interrupted(
    make_cohort: MakeCohort, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, cohort, out = _save(tmp_path / "model"), make_cohort(), tmp_path / "run"

    def interrupted(*rest: Any, **named: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("unalike.runs.adopt._write_network", interrupted)
        with pytest.raises(KeyboardInterrupt):
            adopt_model(model=model, cohort=cohort, out=out)
    with monkeypatch.context() as patch:
        patch.setattr("unalike.runs.adopt.folders.finish_folder", interrupted)
        with pytest.raises(KeyboardInterrupt):
            adopt_model(model=model, cohort=cohort, out=out)
    assert adopt_model(model=model, cohort=cohort, out=out) == out
    assert {path.name for path in out.iterdir()} == {"run.json", "model"}
    with pytest.raises(FolderError, match="and is finished"):
        adopt_model(model=model, cohort=cohort, out=out)


def test_the_verb_says_what_comes_next(
    make_cohort: MakeCohort, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, cohort = _save(tmp_path / "model", num_class_embeds=2), make_cohort()
    adopt(model, against=cohort, out=tmp_path / "run", labels=("a", "b"))
    text = capsys.readouterr().out
    assert "8 images" in text
    assert "leave --guidance at 1" in text
    assert f"unalike sample {tmp_path / 'run'}" in text
    adopt(model, against=cohort, out=tmp_path / "other", labels=("a",), json=True)
    told = json.loads(capsys.readouterr().out)
    assert told["run"] == str(tmp_path / "other")
    assert told["guidable"] is True
