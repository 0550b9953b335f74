"""The autoencoder of latent diffusion: closed forms of loss and scale, bits no neighbour changes, exact resuming."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, LDMPipeline, UNet2DModel
from safetensors.torch import load_file
from torch.distributions import Normal, kl_divergence

from unalike.cohort.store import open_images
from unalike.errors import FolderError, SettingsError
from unalike.generators.data import TrainImages, open_train_images
from unalike.generators.diffusion import autoencoder as module
from unalike.generators.diffusion.autoencoder import (
    CHECKPOINTS,
    EMA_DECAY,
    FACTOR,
    GROUP,
    KL_WEIGHT,
    AutoencoderTask,
    LatentCodec,
    Reconstruction,
    autoencoder_loss,
    build_autoencoder,
    latent_size,
    measure_scale,
    open_codec,
    reconstruction_error,
    train_autoencoder,
)
from unalike.generators.diffusion.settings import DiffusionSettings
from unalike.generators.processes import join_processes

MakeCohort = Callable[..., Path]
CPU = torch.device("cpu")


class Stub:
    """An "autoencoder" whose latents are the images, ``shift`` higher; decoding gives them back unchanged."""

    device = CPU

    def __init__(self, shift: float = 0.0) -> None:
        self.shift = shift

    def encode(self, x: torch.Tensor) -> Any:
        return SimpleNamespace(latent_dist=SimpleNamespace(mean=x + self.shift))

    def decode(self, z: torch.Tensor) -> Any:
        return SimpleNamespace(sample=z)


def _open(cohort: Path) -> TrainImages:
    return open_train_images(open_images(cohort), subjects=None, seed=0)


def _task(images: TrainImages, *, drawn: tuple[int, ...] = (0,), precision: str = "float32") -> AutoencoderTask:
    network = Reconstruction(build_autoencoder(channels=len(drawn), latent_channels=2, seed=3))
    return AutoencoderTask(
        images=images,
        drawn=drawn,
        network=network,
        latent_channels=2,
        batch_size=4,
        place=CPU,
        precision=precision,
        seed=5,
    )


def _train(
    images: TrainImages, out: Path, *, drawn: tuple[int, ...] = (0,), **settings: Any
) -> tuple[LatentCodec, Any]:
    out.mkdir(exist_ok=True)
    given: dict[str, Any] = {"latent": 2, "autoencoder_steps": 4, "batch_size": 4, "precision": "float32"}
    return train_autoencoder(
        images,
        drawn,
        out=out,
        settings=DiffusionSettings(**given | settings),
        seed=1,
        processes=join_processes("cpu"),
        identity="whose it is",
    )


def _images(count: int, channels: int = 1, size: tuple[int, int] = (8, 8), seed: int = 0) -> torch.Tensor:
    return 2 * torch.rand(count, channels, *size, generator=torch.Generator().manual_seed(seed)) - 1


def _codec(channels: int = 1, latent_channels: int = 2, scale: float = 3.0) -> LatentCodec:
    autoencoder = build_autoencoder(channels=channels, latent_channels=latent_channels, seed=11)
    return LatentCodec(autoencoder.train(False), scale)


def _smooth(count: int, side: int) -> np.ndarray:
    """Images (count, 1, side, side) of one blob each, somewhere."""
    random = np.random.default_rng(2)
    at = np.arange(side)
    rows, columns = random.uniform(0, side, (2, count, 1))
    bell = lambda centre: np.exp(-(((at - centre) / (side / 3)) ** 2))  # noqa: E731
    return np.rint(220 * bell(rows)[:, None, :, None] * bell(columns)[:, None, None, :]).astype(np.uint8)


def test_a_perfect_reconstruction_by_the_prior_costs_nothing() -> None:
    x, nothing = _images(2), torch.zeros(2, 3, 2, 2)
    assert autoencoder_loss(x, x, mean=nothing, log_variance=nothing).item() == 0


def test_an_error_costs_its_size_and_its_square() -> None:
    x, nothing = torch.zeros(2, 1, 8, 8), torch.zeros(2, 3, 2, 2)
    assert autoencoder_loss(x, x - 0.5, mean=nothing, log_variance=nothing).item() == 0.5 + 0.25


def test_the_latent_costs_its_divergence_shared_out_over_the_image() -> None:
    x = torch.zeros(2, 3, 8, 8)
    mean, log_variance = 500 * _images(2, 4, (2, 2)), 3 * _images(2, 4, (2, 2), seed=1)
    apart = kl_divergence(Normal(mean, torch.exp(log_variance / 2)), Normal(0.0, 1.0)).sum() / (2 * 3 * 8 * 8)
    loss = autoencoder_loss(x, x, mean=mean, log_variance=log_variance)
    torch.testing.assert_close(loss, KL_WEIGHT * apart)
    assert loss > 0.001


def test_the_loss_is_float32_whatever_the_reconstruction() -> None:
    x, nothing = torch.zeros(1, 1, 8, 8), torch.zeros(1, 2, 2, 2)
    assert autoencoder_loss(x, x.bfloat16(), mean=nothing, log_variance=nothing).dtype == torch.float32


def test_the_scale_is_one_over_the_standard_deviation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "READ_AT_ONCE", 5)
    values = np.arange(13, dtype=np.float32)  # of 13 images; neither 5 nor the codec's group divides 13
    scale = measure_scale(Stub(), lambda at: torch.from_numpy(values[at]).view(-1, 1, 1, 1), 13)
    assert scale == pytest.approx(1 / np.sqrt((13**2 - 1) / 12), rel=1e-12)


def test_the_scale_sums_without_losing_small_variation_on_large_values(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "READ_AT_ONCE", 3)
    x = _images(10, 2) / 8
    wanted = 1 / (x + 4096.0).double().numpy().std()
    assert measure_scale(Stub(shift=4096.0), lambda at: x[at], 10) == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize("value", [0.25, float("nan")])
def test_latents_that_say_nothing_are_refused(value: float) -> None:
    with pytest.raises(SettingsError, match="autoencoder_steps"):
        measure_scale(Stub(), lambda at: torch.full((len(at), 1, 2, 2), value), 3)


def test_a_reconstruction_off_by_one_grey_level_has_an_error_of_one() -> None:
    assert reconstruction_error(LatentCodec(Stub(shift=1 / 127.5), 1.0), _images(3) / 2) == pytest.approx(1, rel=1e-5)


def test_what_lies_beyond_white_is_no_error() -> None:
    assert reconstruction_error(LatentCodec(Stub(shift=0.5), 1.0), torch.ones(3, 1, 4, 4)) == 0


def test_encoding_is_the_scaled_mean_and_decoding_takes_the_scale_back() -> None:
    codec, x = _codec(channels=3), _images(GROUP, 3, (8, 12))
    with torch.no_grad():
        mean = codec.autoencoder.encode(x).latent_dist.mean
        back = codec.autoencoder.decode(mean).sample
    z = codec.encode(x)
    assert z.shape == (GROUP, 2, 8 // FACTOR, 12 // FACTOR)
    torch.testing.assert_close(z, 3 * mean)
    torch.testing.assert_close(codec.decode(z), back, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("way", ["encode", "decode"])
def test_no_neighbour_changes_a_bit(way: str) -> None:
    codec = _codec()
    values = _images(2 * GROUP + 3) if way == "encode" else _images(2 * GROUP + 3, 2, (3, 2))
    work = getattr(codec, way)
    together = work(values)
    assert len(together) == len(values)
    for index in (0, 5, GROUP, len(values) - 1):
        assert torch.equal(work(values[index : index + 1])[0], together[index])
    order = torch.randperm(len(values), generator=torch.Generator().manual_seed(0))
    assert torch.equal(work(values[order]), together[order])


def test_latents_can_be_learned_from() -> None:
    codec = _codec()
    z = codec.encode(_images(1).requires_grad_())
    assert not z.requires_grad
    assert not z.is_inference()
    assert z.dtype == torch.float32


def test_the_codec_computes_in_float32_inside_bfloat16() -> None:
    codec, x = _codec(), _images(2)
    with torch.autocast("cpu", torch.bfloat16):
        z = codec.encode(x)
    assert torch.equal(z, codec.encode(x))


def test_weights_follow_their_seed_and_leave_the_global_stream_alone() -> None:
    before = torch.random.get_rng_state()
    weights = [build_autoencoder(channels=1, latent_channels=2, seed=seed).state_dict() for seed in (4, 4, 5)]
    assert torch.equal(torch.random.get_rng_state(), before)
    name = "encoder.conv_in.weight"
    assert all(torch.equal(one, weights[1][key]) for key, one in weights[0].items())
    assert not torch.equal(weights[0][name], weights[2][name])


def test_there_is_no_attention() -> None:
    autoencoder = build_autoencoder(channels=1, latent_channels=2, seed=0)
    assert not [name for name, _ in autoencoder.named_parameters() if "attention" in name]


def test_the_parts_of_a_batch_make_up_the_whole(make_cohort: MakeCohort) -> None:
    task = _task(_open(make_cohort(size=(8, 12))))
    whole, parts = task.batch(1, slice(0, 4)), [task.batch(1, slice(0, 2)), task.batch(1, slice(2, 4))]
    assert whole.noise.shape == (4, 2, 2, 3)
    assert torch.equal(torch.cat([part.x for part in parts]), whole.x)
    assert torch.equal(torch.cat([part.noise for part in parts]), whole.noise)
    losses = [task.loss(task.network, part) for part in parts]
    torch.testing.assert_close((losses[0] + losses[1]) / 2, task.loss(task.network, whole))


def test_each_update_has_noise_of_its_own_and_the_same_again(make_cohort: MakeCohort) -> None:
    task = _task(_open(make_cohort()))
    assert torch.equal(task.batch(3, slice(0, 4)).noise, task.batch(3, slice(0, 4)).noise)
    assert not torch.equal(task.batch(3, slice(0, 4)).noise, task.batch(4, slice(0, 4)).noise)


def test_noise_enters_with_the_deviation_of_the_posterior(make_cohort: MakeCohort) -> None:
    task = _task(_open(make_cohort()))
    batch = task.batch(0, slice(0, 2))
    network: Any = task.network
    with torch.no_grad():
        posterior = network.autoencoder.encode(batch.x).latent_dist
        wanted = network.autoencoder.decode(posterior.mean + posterior.std * batch.noise).sample
        drawn, mean, log_variance = network(batch.x, batch.noise)
    torch.testing.assert_close(drawn, wanted, rtol=1e-4, atol=1e-5)
    assert torch.equal(mean, posterior.mean)
    assert torch.equal(log_variance, posterior.logvar)
    assert posterior.std.min() > 0.1


def test_an_epoch_holds_each_train_image_once_and_the_drawn_channels_alone(make_cohort: MakeCohort) -> None:
    images = _open(make_cohort(channels=("t1", "t2", "mask")))
    task = _task(images, drawn=(0, 2))
    epoch = torch.cat([task.batch(n, slice(0, 4)).x for n in range(2)])
    wanted = torch.from_numpy(images.scale.to_unit(images.read_all()))[:, [0, 2]]
    key = lambda x: tuple(x.flatten().tolist())  # noqa: E731
    assert sorted(map(key, epoch)) == sorted(map(key, wanted))


def test_the_loss_in_bfloat16_is_nearly_that_in_float32(make_cohort: MakeCohort) -> None:
    images = _open(make_cohort())
    exact, rough = (_task(images, precision=precision) for precision in ("float32", "bfloat16"))
    batch = exact.batch(0, slice(0, 4))
    losses = [task.loss(task.network, batch) for task in (exact, rough)]
    assert losses[1].dtype == torch.float32
    assert losses[0] != losses[1]
    torch.testing.assert_close(losses[0], losses[1], rtol=0.02, atol=0)


def test_it_learns(make_cohort: MakeCohort, tmp_path: Path) -> None:
    images = _open(make_cohort(pixels=_smooth(12, 8)))
    plain = images.read_all().std()
    codec, about = _train(images, tmp_path / "run", autoencoder_steps=120)
    said = about["autoencoder"]
    assert said["reconstruction_rmse"] < plain / 2
    x = torch.from_numpy(images.scale.to_unit(images.read_all()))
    assert said["reconstruction_rmse"] == reconstruction_error(codec, x)
    assert said["parameters"] == sum(weight.numel() for weight in codec.autoencoder.parameters())
    # All latents together have a standard deviation of 1, as diffusion wants them.
    assert codec.encode(x).double().std(correction=0).item() == pytest.approx(1, rel=1e-5)
    assert said["scale"] == codec.scale == codec.autoencoder.config.scaling_factor


def test_a_resumed_training_equals_an_uninterrupted_one(
    make_cohort: MakeCohort, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = _open(make_cohort())
    whole, about = _train(images, tmp_path / "whole", accumulate=2)
    positions = module.batch_positions

    def stopping(n: int, *rest: Any) -> Any:
        if n == 2:
            raise KeyboardInterrupt
        return positions(n, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(module, "batch_positions", stopping)
        with pytest.raises(KeyboardInterrupt):
            _train(images, tmp_path / "parts", accumulate=2)
    assert [place.name for place in (tmp_path / "parts" / CHECKPOINTS).iterdir()] == ["step-00000002"]
    resumed, said = _train(images, tmp_path / "parts", accumulate=2)
    for name, weight in whole.autoencoder.state_dict().items():
        assert torch.equal(resumed.autoencoder.state_dict()[name], weight), name
    for name in ("scale", "reconstruction_rmse"):
        assert said["autoencoder"][name] == about["autoencoder"][name]


def test_a_finished_training_is_taken_up_without_another_update(make_cohort: MakeCohort, tmp_path: Path) -> None:
    images = _open(make_cohort())
    first, about = _train(images, tmp_path / "run")
    log = (tmp_path / "run" / "log.jsonl").read_bytes()
    again, said = _train(images, tmp_path / "run")
    assert (tmp_path / "run" / "log.jsonl").read_bytes() == log
    assert said == about
    assert again.scale == first.scale


def test_the_codec_holds_the_weight_average(make_cohort: MakeCohort, tmp_path: Path) -> None:
    codec, _ = _train(_open(make_cohort()), tmp_path / "run")
    state = load_file(tmp_path / "run" / CHECKPOINTS / "step-00000004" / "state.safetensors")
    moved = 0
    for name, weight in codec.autoencoder.named_parameters():
        assert torch.equal(weight, state[f"average-{EMA_DECAY}/autoencoder.{name}"]), name
        moved += not torch.equal(weight, state[f"weights/autoencoder.{name}"])
        assert not weight.requires_grad
    assert moved > 0


def test_a_checkpoint_of_other_settings_is_refused(make_cohort: MakeCohort, tmp_path: Path) -> None:
    images = _open(make_cohort())
    _train(images, tmp_path / "run", autoencoder_steps=1)
    place = next((tmp_path / "run" / CHECKPOINTS).iterdir()) / "state.json"
    place.write_text(place.read_text().replace("whose it is", "whose it was"))
    with pytest.raises(FolderError, match="another cohort"):
        _train(images, tmp_path / "run", autoencoder_steps=1)


@pytest.mark.parametrize(("size", "fitting"), [((30, 32), "28 × 32 or 32 × 32"), ((3, 5), "4 × 4 or 4 × 8")])
def test_sizes_that_do_not_fit_are_refused_naming_those_that_do(size: tuple[int, int], fitting: str) -> None:
    with pytest.raises(SettingsError, match=f"multiples of 4. Prepare the cohort at {fitting}"):
        latent_size(*size)


def test_training_refuses_such_images_before_it_writes_anything(make_cohort: MakeCohort, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="8 × 10 pixels"):
        _train(_open(make_cohort(size=(8, 10))), tmp_path / "run")
    assert list((tmp_path / "run").iterdir()) == []


def test_a_saved_codec_comes_back_bit_for_bit(tmp_path: Path) -> None:
    codec, x = _codec(channels=2), _images(3, 2)
    codec.autoencoder.register_to_config(scaling_factor=codec.scale)
    codec.autoencoder.save_pretrained(tmp_path / "vqvae", safe_serialization=True)
    opened = open_codec(tmp_path / "vqvae")
    assert opened.scale == codec.scale
    assert not opened.autoencoder.training
    z = codec.encode(x)
    assert torch.equal(opened.encode(x), z)
    assert torch.equal(opened.to(CPU).decode(z), codec.decode(z))


@pytest.mark.parametrize("harm", ["cut", "not json", "no weights", "gone"])
def test_a_folder_that_cannot_be_read_is_refused(tmp_path: Path, harm: str) -> None:
    place = tmp_path / "vqvae"
    _codec().autoencoder.save_pretrained(place, safe_serialization=True)
    weights = place / "diffusion_pytorch_model.safetensors"
    if harm == "cut":
        weights.write_bytes(weights.read_bytes()[:1000])
    elif harm == "not json":
        (place / "config.json").write_text("{")
    elif harm == "no weights":
        weights.unlink()
    else:
        place = tmp_path / "elsewhere"
    with pytest.raises(FolderError, match=f"{place} cannot be read"):
        open_codec(place)


def test_the_pipeline_of_diffusers_draws_with_it(tmp_path: Path) -> None:
    codec = _codec(latent_channels=2, scale=0.37)
    codec.autoencoder.register_to_config(scaling_factor=codec.scale)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        unet = UNet2DModel(
            sample_size=4,
            in_channels=2,
            out_channels=2,
            block_out_channels=(8, 8),
            down_block_types=("DownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "UpBlock2D"),
            layers_per_block=1,
            norm_num_groups=4,
            add_attention=False,
        ).train(False)
    scheduler = DDIMScheduler(clip_sample=False)
    LDMPipeline(vqvae=codec.autoencoder, unet=unet, scheduler=scheduler).save_pretrained(tmp_path / "model")
    pipeline: Any = LDMPipeline.from_pretrained(tmp_path / "model", local_files_only=True, low_cpu_mem_usage=False)
    pipeline.set_progress_bar_config(disable=True)
    drawn = pipeline(
        batch_size=3, num_inference_steps=2, generator=torch.Generator().manual_seed(9), output_type="numpy"
    ).images

    z = torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(9))
    scheduler.set_timesteps(2)
    with torch.no_grad():
        for t in scheduler.timesteps:
            z = scheduler.step(unet(z, t).sample, t, z).prev_sample
    ours = open_codec(tmp_path / "model" / "vqvae").decode(z)
    assert ours.shape == (3, 1, 16, 16)
    np.testing.assert_allclose(drawn, (ours / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy(), atol=1e-5)
    assert drawn.std() > 0.01
