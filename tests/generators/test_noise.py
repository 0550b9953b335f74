"""Noise, targets and losses of diffusion against closed forms, diffusers and torch.distributions."""

from __future__ import annotations

import math
from typing import Any, get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from unalike.errors import SettingsError
from unalike.generators.diffusion.noise import (
    Prediction,
    add_noise,
    alpha_bars,
    build_scheduler,
    diffusion_loss,
    discretized_log_likelihood,
    gaussian_kl,
    learned_log_variance,
    log_variance_range,
    loss_weights,
    posterior_mean,
    split_variance,
    target_of,
    to_clean,
    to_noise,
    variational_bound,
)

PREDICTIONS: tuple[Prediction, ...] = get_args(Prediction)
SCHEDULES = ("linear", "squaredcos_cap_v2")
each_prediction = pytest.mark.parametrize("prediction", PREDICTIONS)
each_schedule = pytest.mark.parametrize("schedule", SCHEDULES)


def _build(**settings: Any) -> Any:
    given = {"schedule": "squaredcos_cap_v2", "timesteps": 1000, "prediction": "v_prediction"} | settings
    return build_scheduler(**given)


def _stream(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _noise(count: int, channels: int = 2, seed: int = 0) -> Tensor:
    return torch.randn(count, channels, 4, 5, generator=_stream(seed))


def _images(count: int, channels: int = 2, seed: int = 1) -> Tensor:
    levels = torch.randint(256, (count, channels, 4, 5), generator=_stream(seed))
    return levels.float() / 127.5 - 1


def _fields(x: Tensor, alpha_bar: float | Tensor) -> Tensor:
    return torch.as_tensor(alpha_bar, dtype=x.dtype).reshape(-1, 1, 1, 1).expand(len(x), 1, 1, 1)


# Schedules


def test_linear_is_the_schedule_of_ho_at_1000_steps() -> None:
    betas = _build(schedule="linear").betas
    torch.testing.assert_close(betas, torch.linspace(1e-4, 0.02, 1000))


def test_linear_adds_as_much_noise_at_any_number_of_steps() -> None:
    # ln ᾱ_T = Σ ln(1 − β) ≈ −Σβ = −10.05 at any T; the error is of the order of Σβ² / 2.
    ends = {T: float(_build(schedule="linear", timesteps=T).alphas_cumprod[-1].log()) for T in (500, 1000, 4000)}
    assert ends[4000] == pytest.approx(ends[1000], abs=0.1)
    assert ends[500] == pytest.approx(ends[1000], abs=0.2)
    assert ends[4000] == pytest.approx(-10.05, abs=0.05)


@pytest.mark.parametrize("timesteps", [2, 10, 20, 21])
def test_linear_of_few_steps_has_betas_below_1(timesteps: int) -> None:
    scheduler = _build(schedule="linear", timesteps=timesteps)
    assert float(scheduler.betas.max()) == pytest.approx(min(20 / timesteps, 0.999))
    assert float(scheduler.alphas_cumprod.min()) > 0


def test_cosine_is_the_curve_of_nichol_and_dhariwal() -> None:
    scheduler = _build()
    t = torch.arange(1, 1000)  # the last β is capped at 0.999
    curve = torch.cos((t.double() / 1000 + 0.008) / 1.008 * math.pi / 2) ** 2
    start = math.cos(0.008 / 1.008 * math.pi / 2) ** 2
    torch.testing.assert_close(scheduler.alphas_cumprod[t - 1].double(), curve / start, rtol=1e-4, atol=1e-7)


@each_schedule
@pytest.mark.parametrize("timesteps", [10, 1000])
@pytest.mark.parametrize("prediction", ["sample", "v_prediction"])
def test_zero_terminal_snr_leaves_nothing_at_the_end_and_the_beginning_as_it_was(
    schedule: str, timesteps: int, prediction: str
) -> None:
    settings = {"schedule": schedule, "timesteps": timesteps, "prediction": prediction}
    plain, shifted = _build(**settings), _build(**settings, zero_terminal_snr=True)
    assert float(plain.alphas_cumprod[-1]) > 0
    assert float(shifted.alphas_cumprod[-1]) == 0
    torch.testing.assert_close(shifted.alphas_cumprod[0].sqrt(), plain.alphas_cumprod[0].sqrt())
    # Algorithm 1 of Lin et al.: a linear map of √ᾱ
    root, last = plain.alphas_cumprod.double().sqrt(), plain.alphas_cumprod[-1].double().sqrt()
    expected = (root - last) * root[0] / (root[0] - last)
    torch.testing.assert_close(shifted.alphas_cumprod.double().sqrt(), expected, rtol=1e-3, atol=1e-5)


def test_zero_terminal_snr_is_refused_when_noise_is_predicted() -> None:
    with pytest.raises(SettingsError, match="zero_terminal_snr") as caught:
        _build(prediction="epsilon", zero_terminal_snr=True)
    assert "\n" not in str(caught.value)


def test_the_scheduler_says_what_it_was_built_for() -> None:
    plain, learned = _build(), _build(prediction="sample", learned_variance=True)
    assert plain.config.variance_type == "fixed_small"
    assert learned.config.variance_type == "learned_range"
    assert learned.config.prediction_type == "sample"
    assert plain.config.timestep_spacing == "trailing"
    assert plain.config.clip_sample is True


# Noise and targets


@each_schedule
def test_noise_and_velocity_are_those_of_diffusers(schedule: str) -> None:
    scheduler = _build(schedule=schedule)
    t = torch.tensor([0, 1, 17, 500, 998, 999])
    x_0, epsilon = _images(6), _noise(6)
    torch.testing.assert_close(add_noise(x_0, epsilon, t, scheduler), scheduler.add_noise(x_0, epsilon, t))
    velocity = target_of("v_prediction", x_0, epsilon, alpha_bars(scheduler, t))
    torch.testing.assert_close(velocity, scheduler.get_velocity(x_0, epsilon, t))


def test_noise_is_the_mixture_by_hand() -> None:
    scheduler = _build(timesteps=10)
    scheduler.alphas_cumprod = torch.full((10,), 0.64)
    x_t = add_noise(torch.full((1, 1, 1, 1), 0.5), torch.full((1, 1, 1, 1), 2.0), torch.tensor([3]), scheduler)
    assert float(x_t) == pytest.approx(0.8 * 0.5 + 0.6 * 2)


def test_alpha_bars_are_looked_up_for_each_image() -> None:
    scheduler = _build()
    found = alpha_bars(scheduler, torch.tensor([5, 0, 999]))
    assert found.shape == (3, 1, 1, 1)
    assert found.flatten().tolist() == [float(scheduler.alphas_cumprod[t]) for t in (5, 0, 999)]


@each_prediction
@given(alpha_bar=st.floats(0.01, 0.99), seed=st.integers(0, 1000))
@settings(max_examples=20, deadline=None)
def test_image_and_noise_come_back_from_a_perfect_prediction(
    prediction: Prediction, alpha_bar: float, seed: int
) -> None:
    x_0, epsilon = _images(2, seed=seed).double(), _noise(2, seed=seed + 1).double()
    level = _fields(x_0, alpha_bar)
    x_t = level.sqrt() * x_0 + (1 - level).sqrt() * epsilon
    predicted = target_of(prediction, x_0, epsilon, level)
    torch.testing.assert_close(to_clean(predicted, x_t, level, prediction), x_0)
    torch.testing.assert_close(to_noise(predicted, x_t, level, prediction), epsilon)


@each_prediction
@given(alpha_bar=st.floats(0.01, 0.99), seed=st.integers(0, 1000))
@settings(max_examples=20, deadline=None)
def test_any_prediction_splits_the_noisy_image(prediction: Prediction, alpha_bar: float, seed: int) -> None:
    x_t, predicted = _noise(2, seed=seed).double(), _noise(2, seed=seed + 1).double()
    level = _fields(x_t, alpha_bar)
    clean, noise = (turn(predicted, x_t, level, prediction) for turn in (to_clean, to_noise))
    torch.testing.assert_close(level.sqrt() * clean + (1 - level).sqrt() * noise, x_t)


@pytest.mark.parametrize("prediction", ["sample", "v_prediction"])
def test_pure_noise_still_gives_image_and_noise(prediction: Prediction) -> None:
    x_0, epsilon = _images(3), _noise(3)
    nothing = _fields(x_0, 0.0)
    predicted = target_of(prediction, x_0, epsilon, nothing)
    torch.testing.assert_close(to_clean(predicted, epsilon, nothing, prediction), x_0)
    torch.testing.assert_close(to_noise(predicted, epsilon, nothing, prediction), epsilon)


# Weights


def test_weights_by_hand() -> None:
    alpha_bar = torch.tensor([0.5, 0.9]).reshape(2, 1, 1, 1)  # SNR 1 and 9
    torch.testing.assert_close(loss_weights(alpha_bar, "sample", 5.0), torch.tensor([1.0, 5.0]))
    torch.testing.assert_close(loss_weights(alpha_bar, "epsilon", 5.0), torch.tensor([1.0, 5 / 9]))
    torch.testing.assert_close(loss_weights(alpha_bar, "v_prediction", 5.0), torch.tensor([0.5, 0.5]))


@each_prediction
def test_gamma_0_weighs_all_alike(prediction: Prediction) -> None:
    alpha_bar = torch.tensor([0.0, 0.3, 1.0]).reshape(3, 1, 1, 1)
    assert loss_weights(alpha_bar, prediction, 0.0).tolist() == [1, 1, 1]


@each_prediction
def test_weights_without_signal_and_without_noise_are_numbers(prediction: Prediction) -> None:
    alpha_bar = torch.tensor([0.0, 1.0]).reshape(2, 1, 1, 1)
    expected = {"sample": [0.0, 5.0], "v_prediction": [0.0, 0.0], "epsilon": [1.0, 0.0]}
    assert loss_weights(alpha_bar, prediction, 5.0).tolist() == expected[prediction]


@each_prediction
@given(alpha_bar=st.floats(0.01, 0.99), gamma=st.floats(0.1, 20), seed=st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_weighted_error_of_any_prediction_is_the_weighted_error_of_the_image(
    prediction: Prediction, alpha_bar: float, gamma: float, seed: int
) -> None:
    x_0, epsilon, predicted = (_noise(2, seed=seed + n).double() for n in range(3))
    level = _fields(x_0, alpha_bar)
    x_t = level.sqrt() * x_0 + (1 - level).sqrt() * epsilon
    error = (predicted - target_of(prediction, x_0, epsilon, level)).square().mean(dim=(1, 2, 3))
    clean_error = (to_clean(predicted, x_t, level, prediction) - x_0).square().mean(dim=(1, 2, 3))
    snr = alpha_bar / (1 - alpha_bar)
    torch.testing.assert_close(loss_weights(level, prediction, gamma) * error, min(snr, gamma) * clean_error)


# Learned variance


def test_output_is_split_into_prediction_and_variance() -> None:
    output = torch.arange(6.0).reshape(1, 6, 1, 1)
    predicted, v = split_variance(output, 3)
    assert predicted.flatten().tolist() == [0, 1, 2]
    assert v.flatten().tolist() == [3, 4, 5]


@pytest.mark.parametrize("channels", [2, 4])
def test_output_of_other_channels_is_refused(channels: int) -> None:
    with pytest.raises(ValueError, match="6"):
        split_variance(torch.zeros(1, 6, 1, 1), channels)


@each_schedule
@pytest.mark.parametrize("zero_terminal_snr", [False, True])
def test_learned_variance_is_that_of_diffusers(schedule: str, zero_terminal_snr: bool) -> None:
    scheduler = _build(schedule=schedule, learned_variance=True, zero_terminal_snr=zero_terminal_snr)
    v = _noise(1)
    for t in (1, 2, 100, 998, 999):
        found = learned_log_variance(v, torch.tensor([t]), scheduler)
        torch.testing.assert_close(found, scheduler._get_variance(t, predicted_variance=v))


def test_variance_at_the_first_time_lies_between_the_first_beta_and_the_posterior_variance_of_the_second() -> None:
    scheduler = _build(schedule="linear", learned_variance=True)
    beta = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)[:2]
    posterior = beta[0] / (1 - (1 - beta[0]) * (1 - beta[1])) * beta[1]
    smallest, largest = log_variance_range(scheduler, torch.tensor([0]))
    assert float(largest) == pytest.approx(math.log(1e-4), abs=2e-3)
    assert float(smallest) == pytest.approx(float(posterior.log()), abs=2e-3)


@each_schedule
@pytest.mark.parametrize("timesteps", [2, 50, 1000, 4000])
@pytest.mark.parametrize("zero_terminal_snr", [False, True])
def test_variance_range_is_finite_and_in_order(schedule: str, timesteps: int, zero_terminal_snr: bool) -> None:
    scheduler = _build(schedule=schedule, timesteps=timesteps, zero_terminal_snr=zero_terminal_snr)
    smallest, largest = log_variance_range(scheduler, torch.arange(timesteps))
    assert bool(torch.isfinite(smallest).all())
    assert bool((smallest <= largest).all())
    assert bool((largest <= 0).all())


def test_mean_of_the_step_back_is_that_of_bayes() -> None:
    # q(x_{t−1} | x_t, x₀) ∝ q(x_t | x_{t−1}) q(x_{t−1} | x₀): precisions add, means are weighted by them.
    scheduler = _build(timesteps=50)
    t = torch.tensor([1, 20, 49])
    before = scheduler.alphas_cumprod[t - 1].double()
    beta = scheduler.betas[t].double()
    x_0, x_t = _images(3), _noise(3)
    likelihood, prior = (1 - beta) / beta, 1 / (1 - before)
    clean = (before.sqrt() * prior).reshape(-1, 1, 1, 1) * x_0
    noisy = ((1 - beta).sqrt() / beta).reshape(-1, 1, 1, 1) * x_t
    expected = (clean + noisy) / (likelihood + prior).reshape(-1, 1, 1, 1)
    found = posterior_mean(x_0, x_t, t, scheduler)
    torch.testing.assert_close(found.double(), expected, rtol=1e-3, atol=1e-4)
    smallest = log_variance_range(scheduler, t)[0].flatten().double()
    torch.testing.assert_close(smallest, -(likelihood + prior).log(), rtol=1e-3, atol=1e-3)


def test_mean_of_the_last_step_back_is_the_image() -> None:
    x_0 = _images(1)
    torch.testing.assert_close(posterior_mean(x_0, _noise(1), torch.tensor([0]), _build()), x_0)


# The bound


def test_divergence_of_equal_gaussians_is_0() -> None:
    mean, log_variance = _noise(3), _noise(3, seed=1)
    torch.testing.assert_close(gaussian_kl(mean, log_variance, mean, log_variance), torch.zeros_like(mean))


def test_divergence_is_that_of_torch() -> None:
    a, b, c, d = (_noise(3, seed=n).double() for n in range(4))
    expected = kl_divergence(Normal(a, (b / 2).exp()), Normal(c, (d / 2).exp()))
    torch.testing.assert_close(gaussian_kl(a, b, c, d), expected)


@given(mean=st.floats(-1, 1), deviation=st.floats(1e-3, 3))
@settings(max_examples=50, deadline=None)
def test_probabilities_of_all_grey_levels_add_up_to_1(mean: float, deviation: float) -> None:
    levels = torch.arange(256).double() / 127.5 - 1
    log_variance = torch.full_like(levels, 2 * math.log(deviation))
    total = discretized_log_likelihood(levels, torch.full_like(levels, mean), log_variance).exp().sum()
    assert float(total) == pytest.approx(1, abs=1e-5)


def test_probability_of_a_grey_level_is_that_of_its_interval() -> None:
    levels = torch.tensor([0, 1, 100, 130, 254, 255]).double() / 127.5 - 1
    gaussian = Normal(torch.tensor(0.1).double(), torch.tensor(0.4).double())
    below, above = gaussian.cdf(levels - 1 / 255), gaussian.cdf(levels + 1 / 255)
    below[0], above[-1] = 0, 1
    found = discretized_log_likelihood(levels, torch.full_like(levels, 0.1), torch.full_like(levels, 2 * math.log(0.4)))
    torch.testing.assert_close(found.exp(), above - below)


@pytest.mark.parametrize("deviation", [1e-4, 1e-2, 1.0, 1e5])
def test_probabilities_and_their_gradients_are_numbers_however_far_off_the_mean_is(deviation: float) -> None:
    levels = (torch.arange(256) / 127.5 - 1).repeat(3)
    mean = torch.tensor([-1.0, 0.0, 1.0]).repeat_interleave(256)
    log_variance = torch.full_like(levels, 2 * math.log(deviation)).requires_grad_()
    found = discretized_log_likelihood(levels, mean, log_variance)
    found.sum().backward()
    assert log_variance.grad is not None
    assert bool(torch.isfinite(found).all())
    assert bool(torch.isfinite(log_variance.grad).all())


def test_a_mean_far_off_asks_for_more_variance() -> None:
    log_variance = torch.tensor([2 * math.log(0.01)], requires_grad=True)
    discretized_log_likelihood(torch.tensor([0.5]), torch.tensor([-0.5]), log_variance).sum().backward()
    # log p ≈ −z²/2 with z = 100, so d log p / d log σ² ≈ z²/2
    assert log_variance.grad is not None
    assert float(log_variance.grad) == pytest.approx(5000, rel=0.05)


def _perfect(scheduler: Any, t: Tensor, channels: int = 1) -> tuple[Tensor, dict[str, Tensor]]:
    """What a network that knows x₀ and ε says, and what the loss asks for beside it."""
    x_0, epsilon = _images(len(t), channels), _noise(len(t), channels)
    x_t = add_noise(x_0, epsilon, t, scheduler)
    target = target_of(scheduler.config.prediction_type, x_0, epsilon, alpha_bars(scheduler, t))
    return target, {"x_0": x_0, "epsilon": epsilon, "x_t": x_t, "t": t}


def _bound(predicted: Tensor, v: Tensor, scheduler: Any, asked: dict[str, Tensor]) -> Tensor:
    rest = {name: asked[name] for name in ("x_0", "x_t", "t")}
    kind = scheduler.config.prediction_type
    return variational_bound(predicted, v, **rest, scheduler=scheduler, prediction=kind)


@each_prediction
def test_bound_of_a_perfect_model_is_what_rounding_to_grey_levels_costs(prediction: Prediction) -> None:
    scheduler = _build(schedule="linear", prediction=prediction, learned_variance=True)
    _, asked = _perfect(scheduler, torch.arange(1000))
    asked["x_0"] = asked["x_0"].clamp(-0.9, 0.9)  # no level at an edge, whose probability is larger
    asked["x_t"] = add_noise(asked["x_0"], asked["epsilon"], asked["t"], scheduler)
    predicted = target_of(prediction, asked["x_0"], asked["epsilon"], alpha_bars(scheduler, asked["t"]))
    terms = _bound(predicted, -torch.ones_like(predicted), scheduler, asked)
    assert float(terms[1:].sum()) < 0.01
    # t = 0: a Gaussian of variance β̃₁ about x₀ itself
    deviation = math.exp(float(log_variance_range(scheduler, torch.tensor([0]))[0]) / 2)
    cost = -math.log2(math.erf(1 / 255 / deviation / math.sqrt(2)))
    assert float(terms[0]) == pytest.approx(cost, rel=1e-2)


@each_prediction
def test_bound_is_the_divergence_of_the_two_steps_back(prediction: Prediction) -> None:
    scheduler = _build(timesteps=100, prediction=prediction, learned_variance=True)
    t = torch.tensor([1, 40, 90])
    target, asked = _perfect(scheduler, t)
    predicted, v = target + 0.1 * _noise(3, 1, seed=5), _noise(3, 1, seed=6).clamp(-1, 1)
    found = _bound(predicted, v, scheduler, asked)
    for n, time in enumerate(t.tolist()):
        # The mean of diffusers' step back is that step less its noise, which we draw again.
        noise = torch.randn(1, 1, 4, 5, generator=_stream(3))
        deviation = (scheduler._get_variance(time, predicted_variance=v[n : n + 1]) / 2).exp()
        both = torch.cat([predicted[n : n + 1], v[n : n + 1]], dim=1)
        step = scheduler.step(both, time, asked["x_t"][n : n + 1], generator=_stream(3))
        mean = step.prev_sample - deviation * noise
        alpha_bar, before = scheduler.alphas_cumprod[time], scheduler.alphas_cumprod[time - 1]
        beta = 1 - alpha_bar / before
        true_mean = (before.sqrt() * beta * asked["x_0"][n] + (1 - beta).sqrt() * (1 - before) * asked["x_t"][n]) / (
            1 - alpha_bar
        )
        true_deviation = ((1 - before) / (1 - alpha_bar) * beta).sqrt()
        expected = kl_divergence(Normal(true_mean, true_deviation), Normal(mean[0], deviation[0])).mean()
        assert float(found[n]) == pytest.approx(float(expected) / math.log(2), rel=1e-2)


def test_only_the_variance_learns_from_the_bound() -> None:
    scheduler = _build(timesteps=100, learned_variance=True)
    target, asked = _perfect(scheduler, torch.tensor([0, 1, 50, 99]))
    predicted = (target + 0.1).requires_grad_()
    v = torch.zeros_like(target).requires_grad_()
    _bound(predicted, v, scheduler, asked).sum().backward()
    assert predicted.grad is None
    assert v.grad is not None
    assert bool((v.grad.abs().amax(dim=(1, 2, 3)) > 0).all())


@pytest.mark.parametrize("t", [1, 20])
def test_the_bound_is_least_at_the_variance_that_the_error_asks_for(t: int) -> None:
    # d KL / d log σ² = 0 at σ² = β̃ + error²
    scheduler = _build(timesteps=100, prediction="sample", learned_variance=True)
    _, asked = _perfect(scheduler, torch.tensor([t]))
    asked["x_0"] = asked["x_0"] * 0.5
    smallest, largest = (float(bound) for bound in log_variance_range(scheduler, torch.tensor([t])))
    wanted = math.exp(smallest + 0.3 * (largest - smallest))
    one = torch.ones_like(asked["x_0"])
    slope = float(posterior_mean(one, 0 * one, asked["t"], scheduler).mean())  # of the mean, by x̂₀
    predicted = asked["x_0"] + math.sqrt(wanted - math.exp(smallest)) / slope
    v = torch.full_like(one, 2 * 0.3 - 1).requires_grad_()
    _bound(predicted, v, scheduler, asked).sum().backward()
    away = torch.full_like(one, -0.9).requires_grad_()
    _bound(predicted, away, scheduler, asked).sum().backward()
    assert v.grad is not None
    assert away.grad is not None
    assert float(v.grad.abs().max()) < 0.02 * float(away.grad.abs().max())


# The loss


@each_prediction
def test_loss_is_the_mean_squared_error_of_each_image(prediction: Prediction) -> None:
    scheduler = _build(prediction=prediction)
    target, asked = _perfect(scheduler, torch.tensor([0, 500, 999]), channels=2)
    off = torch.tensor([0.0, 0.5, 2.0]).reshape(3, 1, 1, 1)
    found = diffusion_loss(target + off, **asked, scheduler=scheduler, gamma=0.0)
    torch.testing.assert_close(found, torch.tensor([0.0, 0.25, 4.0]))


@each_prediction
def test_loss_is_weighted_by_min_snr(prediction: Prediction) -> None:
    scheduler = _build(prediction=prediction)
    t = torch.tensor([3, 500, 900])
    target, asked = _perfect(scheduler, t)
    found = diffusion_loss(target + 1, **asked, scheduler=scheduler, gamma=5.0)
    torch.testing.assert_close(found, loss_weights(alpha_bars(scheduler, t), prediction, 5.0))


@pytest.mark.parametrize("timesteps", [100, 1000])
@pytest.mark.parametrize("channels", [None, 2])
def test_learned_variance_adds_the_bound_for_a_thousand_steps(timesteps: int, channels: int | None) -> None:
    scheduler = _build(timesteps=timesteps, learned_variance=True)
    target, asked = _perfect(scheduler, torch.tensor([0, 1, timesteps - 1]), channels=2)
    predicted, v = target + 0.5, _noise(3, seed=8)
    output = torch.cat([predicted, v], dim=1)
    found = diffusion_loss(output, **asked, scheduler=scheduler, gamma=0.0, channels=channels)
    expected = 0.25 + timesteps / 1000 * _bound(predicted, v, scheduler, asked)
    torch.testing.assert_close(found, expected)


def test_loss_refuses_other_channels_than_it_is_told_of() -> None:
    scheduler = _build(learned_variance=True)
    _, asked = _perfect(scheduler, torch.tensor([5]), channels=2)
    with pytest.raises(ValueError, match="6 channels, not 4"):
        diffusion_loss(_noise(1, 4), **asked, scheduler=scheduler, gamma=0.0, channels=3)


def test_the_prediction_learns_from_the_squared_error_alone() -> None:
    target, asked = _perfect(_build(), torch.tensor([0, 1, 999]), channels=2)
    plain = (target + 0.3).requires_grad_()
    both = torch.cat([target + 0.3, torch.zeros_like(target)], dim=1).requires_grad_()
    diffusion_loss(plain, **asked, scheduler=_build(), gamma=5.0).sum().backward()
    diffusion_loss(both, **asked, scheduler=_build(learned_variance=True), gamma=5.0).sum().backward()
    assert plain.grad is not None
    assert both.grad is not None
    torch.testing.assert_close(both.grad[:, :2], plain.grad)
    assert bool((both.grad[:, 2:] != 0).any())


@pytest.mark.parametrize("learned_variance", [False, True])
def test_loss_of_a_half_precision_output_is_float32(learned_variance: bool) -> None:
    scheduler = _build(learned_variance=learned_variance)
    _, asked = _perfect(scheduler, torch.tensor([0, 999]), channels=2)
    output = _noise(2, 4 if learned_variance else 2, seed=4).bfloat16()
    found = diffusion_loss(output, **asked, scheduler=scheduler, gamma=5.0)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, diffusion_loss(output.float(), **asked, scheduler=scheduler, gamma=5.0))


def test_everything_is_computed_where_the_images_are() -> None:
    # Tensors of the device "meta" have no values, but refuse to meet those of another device.
    scheduler = _build(learned_variance=True)
    _, asked = _perfect(scheduler, torch.tensor([0, 999]), channels=2)
    away = {name: value.to("meta") for name, value in asked.items()}
    found = diffusion_loss(torch.zeros(2, 4, 4, 5, device="meta"), **away, scheduler=scheduler, gamma=5.0)
    assert found.shape == (2,)
    assert found.device.type == "meta"


@given(
    schedule=st.sampled_from(SCHEDULES),
    prediction=st.sampled_from(PREDICTIONS),
    timesteps=st.sampled_from([2, 10, 100, 1000]),
    zero_terminal_snr=st.booleans(),
    learned_variance=st.booleans(),
    gamma=st.sampled_from([0.0, 1.0, 5.0]),
    seed=st.integers(0, 1000),
)
@settings(max_examples=80, deadline=None)
def test_losses_and_gradients_are_numbers_at_every_time(
    schedule: str,
    prediction: Prediction,
    timesteps: int,
    zero_terminal_snr: bool,
    learned_variance: bool,
    gamma: float,
    seed: int,
) -> None:
    scheduler = _build(
        schedule=schedule,
        prediction=prediction,
        timesteps=timesteps,
        zero_terminal_snr=zero_terminal_snr and prediction != "epsilon",
        learned_variance=learned_variance,
    )
    t = torch.tensor([0, 1, timesteps // 2, timesteps - 1])
    _, asked = _perfect(scheduler, t)
    output = _noise(4, 2 if learned_variance else 1, seed=seed).requires_grad_()
    loss = diffusion_loss(output, **asked, scheduler=scheduler, gamma=gamma)
    loss.sum().backward()
    assert output.grad is not None
    assert bool(torch.isfinite(loss).all())
    assert bool((loss >= 0).all())
    assert bool(torch.isfinite(output.grad).all())
