"""Samplers on Gaussian pixels, whose best denoiser and whose way from noise are known, and against diffusers' loops."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import DDIMPipeline, DDIMScheduler, DDPMPipeline, DDPMScheduler, UNet2DModel
from hypothesis import given
from hypothesis import strategies as some

from unalike.errors import SettingsError
from unalike.generators.diffusion.samplers import (
    LARGEST_SIGMA,
    SAMPLERS,
    Denoise,
    Known,
    count_calls,
    make_scheduler,
    run_sampler,
    slerp,
)

MEAN, SPREAD = 0.3, 0.1
ALL = list(SAMPLERS)
BY_SIGMA = [name for name in ALL if SAMPLERS[name].by_sigma]
STEADY = [name for name in ALL if not SAMPLERS[name].fresh_noise]
COSINE, LINEAR = "squaredcos_cap_v2", "linear"
PREDICTIONS = ["epsilon", "sample", "v_prediction"]


def schedule(beta_schedule: str = COSINE, prediction: str = "v_prediction", **more: Any) -> DDPMScheduler:
    more = {"clip_sample": True, "timestep_spacing": "trailing", **more}
    return DDPMScheduler(beta_schedule=beta_schedule, prediction_type=prediction, **more)


def as_predicted(trained: DDPMScheduler, clean: torch.Tensor, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """What a network says whose x̂₀ is ``clean``, in double precision."""
    alpha_bar = trained.alphas_cumprod[int(t)].double()
    epsilon = (x - alpha_bar.sqrt() * clean) / (1 - alpha_bar).sqrt()
    velocity = alpha_bar.sqrt() * epsilon - (1 - alpha_bar).sqrt() * clean
    said = {"epsilon": epsilon, "sample": clean, "v_prediction": velocity}
    return said[trained.config.prediction_type].float()


def gaussian_denoiser(trained: DDPMScheduler) -> Denoise:
    """The best denoiser of pixels ~ N(MEAN, SPREAD²): E[x₀ | x_t]."""

    def denoise(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        alpha_bar, x = trained.alphas_cumprod[int(t)].double(), x.double()
        variance = alpha_bar * SPREAD**2 + 1 - alpha_bar
        clean = (alpha_bar.sqrt() * SPREAD**2 * x + (1 - alpha_bar) * MEAN) / variance
        return as_predicted(trained, clean, x, t)

    return denoise


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def draw(trained: DDPMScheduler, name: str, steps: int, noise: torch.Tensor, **more: Any) -> torch.Tensor:
    denoise = more.pop("denoise", None) or gaussian_denoiser(trained)
    seeds = more.pop("seeds", range(len(noise)))
    streams = [torch.Generator().manual_seed(1000 + seed) for seed in seeds]
    return run_sampler(denoise, name=name, trained=trained, steps=steps, noise=noise, streams=streams, **more)


class Recorder:
    """A denoiser that remembers what it was given."""

    def __init__(self, denoise: Denoise) -> None:
        self.denoise = denoise
        self.given: list[tuple[torch.Tensor, float]] = []

    def __call__(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        assert t.ndim == 0
        self.given.append((x.clone(), float(t)))
        return self.denoise(x, t)


# Known answers: Gaussian pixels


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("beta_schedule", [COSINE, LINEAR])
@pytest.mark.parametrize("name", ALL)
def test_gaussian_pixels_come_back_with_their_mean_and_spread(name: str, beta_schedule: str, prediction: str) -> None:
    trained = schedule(beta_schedule, prediction)
    drawn = draw(trained, name, 250, normal(8, 1, 32, 32))
    # 8,192 pixels: standard errors of 0.0011 and 0.0008. Steps of first order leave the spread up to 10 % low.
    assert float(drawn.mean()) == pytest.approx(MEAN, abs=0.005)
    assert 0.88 * SPREAD < float(drawn.std()) < 1.03 * SPREAD


@pytest.mark.parametrize("name", ["ddpm", "euler-a"])
def test_as_many_steps_as_levels_leave_no_error_in_the_spread(name: str) -> None:
    trained = schedule(LINEAR)
    drawn = draw(trained, name, 1000, normal(8, 1, 32, 32))
    assert float(drawn.std()) == pytest.approx(SPREAD, rel=0.04)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("beta_schedule", [COSINE, LINEAR])
@pytest.mark.parametrize("name", STEADY)
def test_deterministic_samplers_converge_to_the_exact_way(name: str, beta_schedule: str, prediction: str) -> None:
    # Standard scores stay what they are along the probability-flow ODE of a Gaussian.
    trained, noise = schedule(beta_schedule, prediction), normal(2, 1, 16, 16)
    scheduler = make_scheduler(name, trained, 10)
    alpha_bar = float(trained.alphas_cumprod[int(scheduler.timesteps[0])])
    first = noise / math.sqrt(1 + 1 / LARGEST_SIGMA**2) if name in ("euler", "heun") else noise
    score = (first - math.sqrt(alpha_bar) * MEAN) / math.sqrt(alpha_bar * SPREAD**2 + 1 - alpha_bar)
    exact = MEAN + SPREAD * score
    errors = [float((draw(trained, name, n, noise) - exact).abs().max()) / SPREAD for n in (10, 50, 250)]
    assert errors[1] < 0.45 * errors[0]
    assert errors[2] < 0.45 * errors[1]
    assert errors[2] < (0.26 if name in ("ddim", "euler") else 0.1)


@pytest.mark.parametrize("beta_schedule", [COSINE, LINEAR])
def test_second_order_samplers_are_nearer_than_first_order_ones(beta_schedule: str) -> None:
    trained, noise = schedule(beta_schedule), normal(2, 1, 16, 16)
    exact = MEAN + SPREAD * noise
    error = {name: float((draw(trained, name, 100, noise) - exact).abs().max()) for name in STEADY}
    assert max(error["heun"], error["dpm++"]) < 0.7 * min(error["ddim"], error["euler"])


def test_euler_takes_the_steps_of_ddim_and_euler_a_those_of_ddpm() -> None:
    trained, noise = schedule(LINEAR, clip_sample=False), normal(2, 3, 8, 8)
    for one, other in (("euler", "ddim"), ("euler-a", "ddpm")):
        torch.testing.assert_close(draw(trained, one, 20, noise), draw(trained, other, 20, noise), atol=2e-5, rtol=0)


@pytest.mark.parametrize("prediction", ["sample", "v_prediction"])
@pytest.mark.parametrize("name", ALL)
def test_all_samplers_work_where_training_ended_in_pure_noise(name: str, prediction: str) -> None:
    trained = schedule(LINEAR, prediction, rescale_betas_zero_snr=True)
    assert trained.alphas_cumprod[-1] == 0
    drawn = draw(trained, name, 250, normal(8, 1, 32, 32))
    assert float(drawn.mean()) == pytest.approx(MEAN, abs=0.005)
    assert 0.88 * SPREAD < float(drawn.std()) < 1.03 * SPREAD


@pytest.mark.parametrize("name", BY_SIGMA)
def test_samplers_by_sigma_leave_out_levels_of_pure_noise_for_predicted_noise(name: str) -> None:
    trained = schedule(LINEAR, "epsilon", rescale_betas_zero_snr=True)
    assert float(draw(trained, name, 50, normal(4, 1, 16, 16)).mean()) == pytest.approx(MEAN, abs=0.02)


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5, 7])
@pytest.mark.parametrize("name", BY_SIGMA)
def test_few_steps_on_a_cosine_schedule_give_the_mean_not_nan(name: str, steps: int) -> None:
    # Unbounded σ makes a step of euler-a's NaN at 3.
    drawn = draw(schedule(COSINE), name, steps, normal(4, 1, 16, 16))
    assert float(drawn.mean()) == pytest.approx(MEAN, abs=0.02)


@pytest.mark.parametrize("name", ALL)
def test_an_error_of_the_network_at_one_level_stays_small(name: str) -> None:
    # x̂₀ is off by 0.2 on the second level alone. From σ = 20,000, Heun's method would multiply that by hundreds.
    trained = schedule(COSINE, "sample", clip_sample=False)
    good = gaussian_denoiser(trained)
    second = int(make_scheduler(name, trained, 50).timesteps[1])

    def off(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return good(x, t) + (0.2 if int(t) == second else 0.0)

    noise = normal(2, 1, 8, 8)
    change = draw(trained, name, 50, noise, denoise=off) - draw(trained, name, 50, noise)
    assert float(change.abs().max()) < 0.01


@pytest.mark.parametrize("name", BY_SIGMA)
def test_samplers_by_sigma_clip_as_training_does(name: str) -> None:
    def wild(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return torch.full_like(x, 5.0)

    noise = normal(1, 1, 4, 4)
    for more, bound in (
        ({}, 1.0),
        ({"clip_sample_range": 2.0}, 2.0),
        ({"clip_sample": False}, 5.0),
        ({"thresholding": True, "sample_max_value": 1.0}, 1.0),
    ):
        drawn = draw(schedule(COSINE, "sample", **more), name, 5, noise, denoise=wild)
        torch.testing.assert_close(drawn, torch.full_like(drawn, bound), atol=1e-4, rtol=0)


# diffusers' own loops


def small_network() -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return UNet2DModel(
            sample_size=8,
            in_channels=2,
            out_channels=2,
            block_out_channels=(8, 8),
            layers_per_block=1,
            down_block_types=("DownBlock2D",) * 2,
            up_block_types=("UpBlock2D",) * 2,
            norm_num_groups=4,
        ).train(False)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize(("name", "pipeline"), [("ddpm", DDPMPipeline), ("ddim", DDIMPipeline)])
def test_samples_equal_those_of_the_pipelines_of_diffusers(name: str, pipeline: Any, prediction: str) -> None:
    network, trained = small_network(), schedule(COSINE, prediction)
    kind = DDPMScheduler if name == "ddpm" else DDIMScheduler
    theirs = pipeline(unet=network, scheduler=kind.from_config(trained.config))
    theirs.set_progress_bar_config(disable=True)
    streams = [torch.Generator().manual_seed(seed) for seed in range(2)]
    expected = theirs(batch_size=2, generator=streams, num_inference_steps=10, output_type="np").images
    streams = [torch.Generator().manual_seed(seed) for seed in range(2)]
    noise = torch.stack([torch.randn((2, 8, 8), generator=stream) for stream in streams])
    drawn = run_sampler(
        lambda x, t: network(x, t).sample, name=name, trained=trained, steps=10, noise=noise, streams=streams
    )
    pictures = (drawn / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)
    torch.testing.assert_close(pictures, torch.from_numpy(expected), atol=1e-6, rtol=0)


# Learned variance


@pytest.mark.parametrize("name", [name for name in ALL if name != "ddpm"])
def test_a_learned_variance_is_left_out(name: str) -> None:
    trained = schedule(COSINE, "epsilon", variance_type="learned_range")
    good, noise = gaussian_denoiser(trained), normal(2, 3, 4, 4)
    both = draw(trained, name, 10, noise, denoise=lambda x, t: torch.cat([good(x, t), torch.full_like(x, 9.0)], 1))
    assert both.equal(draw(trained, name, 10, noise))


@pytest.mark.parametrize(("share", "fixed"), [(-1.0, "fixed_small"), (1.0, "fixed_large")])
def test_ddpm_uses_a_learned_variance(share: float, fixed: str) -> None:
    learned, plain = (schedule(variance_type=kind) for kind in ("learned_range", fixed))
    good, noise = gaussian_denoiser(plain), normal(2, 3, 4, 4)
    drawn = draw(learned, "ddpm", 20, noise, denoise=lambda x, t: torch.cat([good(x, t), torch.full_like(x, share)], 1))
    torch.testing.assert_close(drawn, draw(plain, "ddpm", 20, noise), atol=1e-4, rtol=0)


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
def test_the_last_step_of_ddpm_adds_no_noise(variance: str) -> None:
    trained = schedule(prediction="sample", variance_type=variance)
    said: list[torch.Tensor] = []

    def denoise(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        said.append(gaussian_denoiser(trained)(x, t))
        return said[-1]

    assert draw(trained, "ddpm", 10, normal(2, 1, 8, 8), denoise=denoise).equal(said[-1])


# Randomness


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("task", ["plain", "inpainting", "image to image"])
def test_neighbours_do_not_change_a_sample(name: str, task: str) -> None:
    trained, noise, image = schedule(), normal(3, 2, 5, 7), normal(3, 2, 5, 7, seed=1)
    keep = normal(3, 1, 5, 7, seed=2) > 0

    def some_of(part: slice) -> torch.Tensor:
        more: dict[str, Any] = {"seeds": range(3)[part]}
        if task == "inpainting":
            more["known"] = Known(image[part], keep[part])
        elif task == "image to image":
            more |= {"start": image[part], "strength": 0.5}
        return draw(trained, name, 10, noise[part], **more)

    together = some_of(slice(None))
    for i in range(3):
        assert together[i : i + 1].equal(some_of(slice(i, i + 1)))
    assert together.equal(some_of(slice(None)))


@pytest.mark.parametrize("name", ALL)
def test_only_samplers_with_fresh_noise_read_the_streams(name: str) -> None:
    trained, noise, stream = schedule(), normal(1, 1, 8, 8), torch.Generator().manual_seed(0)
    before, known = stream.get_state(), Known(noise, noise > 0)
    good = gaussian_denoiser(trained)
    run_sampler(good, name=name, trained=trained, steps=5, noise=noise, streams=[stream], known=known)
    assert stream.get_state().equal(before) == (not SAMPLERS[name].fresh_noise)


@pytest.mark.parametrize("name", ALL)
def test_the_global_stream_is_left_alone(name: str) -> None:
    noise, before = normal(1, 1, 8, 8), torch.random.get_rng_state()
    draw(schedule(), name, 5, noise, known=Known(noise, noise > 0))
    assert torch.random.get_rng_state().equal(before)


# Inpainting


@pytest.mark.parametrize("name", ALL)
def test_what_is_known_comes_back_bit_for_bit(name: str) -> None:
    image, keep = normal(2, 3, 6, 6, seed=1), normal(2, 1, 6, 6, seed=2) > 0
    drawn = draw(schedule(), name, 10, normal(2, 3, 6, 6), known=Known(image, keep))
    assert drawn[keep.expand_as(drawn)].equal(image[keep.expand_as(drawn)])
    assert not (drawn == image)[~keep.expand_as(drawn)].any()


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("beta_schedule", [COSINE, LINEAR])
def test_the_network_sees_what_is_known_at_the_level_of_noise_of_its_time_step(name: str, beta_schedule: str) -> None:
    trained = schedule(beta_schedule)
    seen = Recorder(gaussian_denoiser(trained))
    image, everywhere = torch.full((1, 1, 64, 64), -0.7), torch.ones((1, 1, 64, 64), dtype=torch.bool)
    draw(trained, name, 10, normal(1, 1, 64, 64), known=Known(image, everywhere), denoise=seen)
    for x, t in seen.given:
        alpha_bar = float(trained.alphas_cumprod[int(t)])
        spread = math.sqrt(1 - alpha_bar)
        assert float(x.mean()) == pytest.approx(-0.7 * math.sqrt(alpha_bar), abs=5 * spread / 64)
        assert float(x.std()) == pytest.approx(spread, rel=0.05)


@pytest.mark.parametrize("name", STEADY)
def test_pixels_that_do_not_depend_on_what_is_known_are_drawn_as_without_it(name: str) -> None:
    trained, noise = schedule(), normal(2, 1, 8, 8)
    keep = normal(2, 1, 8, 8, seed=2) > 0
    drawn = draw(trained, name, 10, noise, known=Known(torch.zeros_like(noise), keep))
    assert drawn[~keep].equal(draw(trained, name, 10, noise)[~keep])


@pytest.mark.parametrize("name", ["ddpm", "euler-a"])
def test_what_is_known_gets_other_noise_at_each_step_of_a_stochastic_sampler(name: str) -> None:
    trained = schedule()
    seen = Recorder(gaussian_denoiser(trained))
    zero = torch.zeros((1, 1, 64, 64))
    draw(trained, name, 5, normal(1, 1, 64, 64), known=Known(zero, zero == 0), denoise=seen)
    flat = torch.stack([x.flatten() for x, _ in seen.given])
    correlation = torch.corrcoef(flat) - torch.eye(5)
    assert float(correlation.abs().max()) < 0.08  # 5 standard errors of 4,096 pixels


# Image to image


@pytest.mark.parametrize("name", ALL)
def test_at_full_strength_nothing_of_the_start_is_left(name: str) -> None:
    trained, noise = schedule(), normal(2, 1, 8, 8)
    assert draw(trained, name, 10, noise, start=-noise, strength=1.0).equal(draw(trained, name, 10, noise))


@pytest.mark.parametrize("name", ALL)
def test_at_tiny_strength_the_start_stays(name: str) -> None:
    trained = schedule(prediction="epsilon")
    start = MEAN + SPREAD * normal(2, 1, 16, 16, seed=1)
    seen = Recorder(gaussian_denoiser(trained))
    drawn = draw(trained, name, 250, normal(2, 1, 16, 16), start=start, strength=0.001, denoise=seen)
    # One step, from the lowest of 250 levels. The best guess there is off by the posterior's spread.
    alpha_bar = float(trained.alphas_cumprod[int(seen.given[0][1])])
    sigma = math.sqrt((1 - alpha_bar) / alpha_bar)
    assert sigma < 0.016
    error = float((drawn - start).square().mean().sqrt())
    assert error == pytest.approx(SPREAD * sigma / math.hypot(SPREAD, sigma), rel=0.12)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("strength", [0.1, 0.25, 0.5, 0.75])
def test_the_start_is_noised_to_the_level_that_leaves_this_share_of_steps(name: str, strength: float) -> None:
    trained, start, noise = schedule(), torch.full((1, 1, 8, 8), 0.4), normal(1, 1, 8, 8)
    seen = Recorder(gaussian_denoiser(trained))
    draw(trained, name, 20, noise, start=start, strength=strength, denoise=seen)
    x, t = seen.given[0]
    assert t == pytest.approx(1000 * strength, abs=5)
    alpha_bar = trained.alphas_cumprod[int(t)]
    expected = alpha_bar.sqrt() * start + (1 - alpha_bar).sqrt() * noise
    torch.testing.assert_close(x, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", STEADY)
def test_from_a_start_deterministic_samplers_take_the_exact_way_too(name: str) -> None:
    trained, start, noise = schedule(), torch.full((1, 1, 8, 8), 0.4), normal(1, 1, 8, 8)
    seen = Recorder(gaussian_denoiser(trained))
    drawn = draw(trained, name, 250, noise, start=start, strength=0.3, denoise=seen)
    x, t = seen.given[0]
    alpha_bar = trained.alphas_cumprod[int(t)]
    exact = MEAN + SPREAD * (x - alpha_bar.sqrt() * MEAN) / (alpha_bar * SPREAD**2 + 1 - alpha_bar).sqrt()
    torch.testing.assert_close(drawn, exact, atol=0.15 * SPREAD, rtol=0)


# Steps


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize(("steps", "strength"), [(1, 1.0), (2, 1.0), (10, 1.0), (10, 0.44), (20, 0.5), (10, 0.01)])
def test_calls_are_counted(name: str, steps: int, strength: float) -> None:
    trained, noise = schedule(), normal(1, 1, 4, 4)
    seen = Recorder(gaussian_denoiser(trained))
    draw(trained, name, steps, noise, denoise=seen, start=noise, strength=strength)
    assert len(seen.given) == count_calls(name, steps, strength)


def test_heun_asks_twice_but_at_its_last_step() -> None:
    assert [count_calls("heun", steps) for steps in (1, 2, 50)] == [1, 3, 99]
    assert [count_calls("dpm++", steps) for steps in (1, 2, 50)] == [1, 2, 50]


@pytest.mark.parametrize("name", [name for name in ALL if name != "ddim"])
@given(steps=some.integers(1, 996))
def test_time_steps_fall_evenly_from_the_last_to_above_zero(name: str, steps: int) -> None:
    # 61, 103, 121 … steps of 1000 get one time step too many, −1, from diffusers.
    times = make_scheduler(name, schedule(), steps).timesteps.long()
    last = 999 if name == "ddpm" else 995
    if name == "heun":
        times = times[::2]
    assert len(times) == steps
    assert int(times[0]) == last
    assert int(times[-1]) >= 0
    gaps = times[:-1] - times[1:]
    assert steps == 1 or (int(gaps.min()) >= 1 and int(gaps.max() - gaps.min()) <= 2)


@pytest.mark.parametrize("name", ALL)
def test_spacing_is_that_of_ddim_where_no_level_is_left_out(name: str) -> None:
    times = make_scheduler(name, schedule(LINEAR), 10).timesteps.long().unique().flip(0)
    assert times.tolist() == [999, 899, 799, 699, 599, 499, 399, 299, 199, 99]


@pytest.mark.parametrize("name", BY_SIGMA)
def test_no_level_is_noisier_than_the_largest_sigma(name: str) -> None:
    sigmas = make_scheduler(name, schedule(COSINE), 50).sigmas
    assert 0.9 * LARGEST_SIGMA < float(sigmas.max()) <= LARGEST_SIGMA * (1 + 1e-6)
    assert float(sigmas[-1]) == 0


@pytest.mark.parametrize("name", ALL)
def test_schedules_without_a_name_elsewhere_work(name: str) -> None:
    drawn = draw(schedule("laplace"), name, 50, normal(4, 1, 16, 16))
    assert float(drawn.mean()) == pytest.approx(MEAN, abs=0.02)


# What is refused


@pytest.mark.parametrize(
    ("name", "trained", "steps", "message"),
    [
        ("plms", schedule(), 10, "no sampler 'plms'. There are: ddpm, ddim, dpm\\+\\+, euler, euler-a, heun"),
        ("euler", schedule(), 0, "too few"),
        ("euler", schedule(), 1001, "more steps than the run was trained with \\(1000\\)"),
        ("ddim", schedule(), 1001, "more steps than the run was trained with \\(1000\\)"),
        ("heun", schedule(), 997, "Give 996 or fewer"),
        ("ddim", schedule(), 30, "does not divide the 1000 time steps of the run. Near it do: 10, 20, 25, 40"),
        *[
            (name, schedule(LINEAR, "epsilon", rescale_betas_zero_snr=True), 10, "dpm\\+\\+, euler, euler-a, heun")
            for name in ("ddpm", "ddim")
        ],
    ],
)
def test_what_cannot_work_is_refused(name: str, trained: DDPMScheduler, steps: int, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        make_scheduler(name, trained, steps)


def refused(call: Callable[[], object], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        call()


def test_strengths_that_make_no_sense_are_refused() -> None:
    noise = normal(1, 1, 4, 4)
    for strength in (0.0, -0.1, 1.1, math.nan):
        refused(lambda s=strength: draw(schedule(), "ddpm", 10, noise, start=noise, strength=s), "not a share")
        refused(lambda s=strength: count_calls("ddpm", 10, s), "not a share")
    refused(lambda: draw(schedule(), "ddpm", 10, noise, strength=0.5), "needs an image to start from")
    refused(lambda: count_calls("plms", 10), "no sampler")


# Between two noises


def test_slerp_returns_its_ends_bit_for_bit() -> None:
    a, b = normal(3, 16, 16), normal(3, 16, 16, seed=1)
    assert slerp(a, b, 0).equal(a)
    assert slerp(a, b, 1).equal(b)


def test_slerp_turns_evenly_from_one_axis_to_another() -> None:
    a, b = torch.tensor([[[2.0, 0.0]]]), torch.tensor([[[0.0, 2.0]]])
    for share in (0.25, 1 / 3, 0.5, 0.9):
        angle = share * math.pi / 2
        expected = torch.tensor([[[2 * math.cos(angle), 2 * math.sin(angle)]]])
        torch.testing.assert_close(slerp(a, b, share), expected)


@given(share=some.floats(0, 1), seed=some.integers(0, 100))
def test_slerp_keeps_the_norm(share: float, seed: int) -> None:
    a, b = normal(3, 16, 16, seed=seed), normal(3, 16, 16, seed=seed + 1000)
    b = b * a.norm() / b.norm()
    assert float(slerp(a, b, share).norm()) == pytest.approx(float(a.norm()), rel=1e-5)
    torch.testing.assert_close(slerp(a, b, share), slerp(b, a, 1 - share), atol=1e-5, rtol=0)


def test_slerp_of_parallel_noises_is_linear() -> None:
    a = normal(3, 16, 16)
    for b in (a, a * 1.5, a + 1e-6 * normal(3, 16, 16, seed=1), torch.zeros_like(a)):
        torch.testing.assert_close(slerp(a, b, 0.3), 0.7 * a + 0.3 * b)
    assert slerp(a, -a, 0.3).isfinite().all()


def test_slerp_refuses_a_share_outside() -> None:
    refused(lambda: slerp(normal(1, 2, 2), normal(1, 2, 2), 1.5), "not between")
