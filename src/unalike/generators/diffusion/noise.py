"""How noise grows with time, what the network is asked to predict, and the loss. Tensors only; no network here.

Symbols are those of Ho, Jain and Abbeel (2020), time counted from 0 as diffusers does: t = 0 … T − 1,
x_t = √ᾱ_t x₀ + √(1 − ᾱ_t) ε, and ᾱ before t = 0 is 1. Images are float32 (B, C, H, W) in [−1, 1], times int64 (B,);
numbers that belong to a time have shape (B, 1, 1, 1), so that they multiply images. SNR = ᾱ / (1 − ᾱ).

The variance is computed from ᾱ in float32 the way diffusers does: what is trained is what is sampled from.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler
from torch import Tensor

from unalike.errors import SettingsError

Prediction = Literal["epsilon", "sample", "v_prediction"]
Schedule = Literal["linear", "squaredcos_cap_v2"]

# Half the distance of two of 256 grey levels in [−1, 1].
HALF_LEVEL = 1 / 255
# Further out than any image: stands for infinity, whose gradient would not be a number.
FAR = 1000.0
# Deviations from the mean up to which torch's log Φ has a gradient in float32 (there to 0.2 %, at 10⁵ nonsense).
STEEP = 300.0


def build_scheduler(
    *,
    schedule: Schedule,
    timesteps: int,
    prediction: Prediction,
    zero_terminal_snr: bool = False,
    learned_variance: bool = False,
) -> DDPMScheduler:
    """The `DDPMScheduler` of ``timesteps`` noise levels T (2 or more): adds noise in training, removes it in sampling.

    ``linear`` is the schedule of Ho et al. (2020), β from 1e-4 to 0.02 at T = 1000, times 1000 / T at another T, so
    that as much noise is added in all (Nichol and Dhariwal 2021, improved-diffusion), and never above 0.999;
    ``squaredcos_cap_v2`` is the cosine of the latter paper. ``zero_terminal_snr`` shifts √ᾱ so that nothing of the
    image is left at the last time (Lin et al. 2024, algorithm 1). With ``learned_variance`` the network gives 2C
    channels, see `split_variance`.

    Time steps are spaced "trailing", so that few-step sampling begins where training ends, at pure noise
    (Lin et al. 2024, table 2).

    Raises `SettingsError` for ``zero_terminal_snr`` with ``epsilon``: of pure noise, the noise says nothing.
    """
    if zero_terminal_snr and prediction == "epsilon":
        raise SettingsError(
            "zero_terminal_snr = True does not go with prediction = 'epsilon': at the last time the noise says nothing "
            "of the image. Give prediction = 'v_prediction' or 'sample', or zero_terminal_snr = False."
        )
    scale = 1000 / timesteps
    betas = {"beta_start": 1e-4 * scale, "beta_end": min(0.02 * scale, 0.999)} if schedule == "linear" else {}
    return DDPMScheduler(
        num_train_timesteps=timesteps,
        beta_schedule=schedule,
        prediction_type=prediction,
        timestep_spacing="trailing",
        clip_sample=True,
        rescale_betas_zero_snr=zero_terminal_snr,
        variance_type="learned_range" if learned_variance else "fixed_small",
        **betas,
    )


def alpha_bars(scheduler: DDPMScheduler, t: Tensor) -> Tensor:
    """ᾱ_t (B, 1, 1, 1), float32 in [0, 1], of times (B,), where ``t`` is."""
    found: Tensor = scheduler.alphas_cumprod.to(t.device)[t]
    return found.reshape(-1, 1, 1, 1)


def add_noise(x_0: Tensor, epsilon: Tensor, t: Tensor, scheduler: DDPMScheduler) -> Tensor:
    """x_t = √ᾱ_t x₀ + √(1 − ᾱ_t) ε (B, C, H, W) (Ho et al. 2020, equation 4)."""
    alpha_bar = alpha_bars(scheduler, t)
    return alpha_bar.sqrt() * x_0 + (1 - alpha_bar).sqrt() * epsilon


def target_of(prediction: Prediction, x_0: Tensor, epsilon: Tensor, alpha_bar: Tensor) -> Tensor:
    """What the network should say (B, C, H, W): ε, x₀, or v = √ᾱ ε − √(1 − ᾱ) x₀ (Salimans and Ho 2022, appendix D)."""
    if prediction == "epsilon":
        return epsilon
    if prediction == "sample":
        return x_0
    return alpha_bar.sqrt() * epsilon - (1 - alpha_bar).sqrt() * x_0


def to_clean(predicted: Tensor, x_t: Tensor, alpha_bar: Tensor, prediction: Prediction) -> Tensor:
    """The image x̂₀ (B, C, H, W) in what the network says of x_t. Of ``epsilon`` it is undefined at ᾱ = 0."""
    if prediction == "epsilon":
        return (x_t - (1 - alpha_bar).sqrt() * predicted) / alpha_bar.sqrt()
    if prediction == "sample":
        return predicted
    return alpha_bar.sqrt() * x_t - (1 - alpha_bar).sqrt() * predicted


def to_noise(predicted: Tensor, x_t: Tensor, alpha_bar: Tensor, prediction: Prediction) -> Tensor:
    """The noise ε̂ (B, C, H, W) in what the network says of x_t. Of ``sample`` it is undefined at ᾱ = 1."""
    if prediction == "epsilon":
        return predicted
    if prediction == "sample":
        return (x_t - alpha_bar.sqrt() * predicted) / (1 - alpha_bar).sqrt()
    return alpha_bar.sqrt() * predicted + (1 - alpha_bar).sqrt() * x_t


def loss_weights(alpha_bar: Tensor, prediction: Prediction, gamma: float) -> Tensor:
    """Weights (B,) of the squared errors: min-SNR-γ (Hang et al. 2023); all ones if ``gamma`` is 0.

    min(SNR, γ) weighs the error of x̂₀. The same error is that of ε̂ times 1 / SNR, and that of v̂ times 1 / (SNR + 1),
    so their weights are min(SNR, γ) / SNR and min(SNR, γ) / (SNR + 1). At SNR = 0 the weight of x₀ and v is 0: the
    last time of a schedule with zero terminal SNR is then not learned.
    """
    signal = alpha_bar.flatten()
    noise = 1 - signal
    if gamma == 0:
        return torch.ones_like(signal)
    # Written in ᾱ, so that no infinity is divided by another: SNR / (SNR + 1) = ᾱ and 1 / (SNR + 1) = 1 − ᾱ.
    if prediction == "epsilon":
        return (gamma * noise / signal).clamp(max=1)
    if prediction == "sample":
        return (signal / noise).clamp(max=gamma)
    return torch.minimum(signal, gamma * noise)


def split_variance(output: Tensor, channels: int) -> tuple[Tensor, Tensor]:
    """The prediction and v, both (B, channels, H, W), of what a network with learned variance gives.

    Raises ValueError if ``output`` has other than 2 · ``channels`` channels.
    """
    if output.shape[1] != 2 * channels:
        raise ValueError(f"a learned variance takes {2 * channels} channels, not {output.shape[1]}")
    return output[:, :channels], output[:, channels:]


def posterior_mean(x_0: Tensor, x_t: Tensor, t: Tensor, scheduler: DDPMScheduler) -> Tensor:
    """Mean (B, C, H, W) of q(x_{t−1} | x_t, x₀) (Ho et al. 2020, equation 7); at t = 0 it is x₀."""
    alpha_bar, before, beta = _levels(scheduler, t)
    of_clean = before.sqrt() * beta / (1 - alpha_bar)
    of_noisy = (1 - beta).sqrt() * (1 - before) / (1 - alpha_bar)
    return of_clean * x_0 + of_noisy * x_t


def log_variance_range(scheduler: DDPMScheduler, t: Tensor) -> tuple[Tensor, Tensor]:
    """log β̃_t and log β_t, both (B, 1, 1, 1): the least and largest variance of x_{t−1} given x_t.

    β̃_t, equation 7 of Ho et al. (2020), is 0 at t = 0, so β̃₁ is taken there (improved-diffusion does the same);
    sampling adds no noise at that time.
    """
    alpha_bar, before, beta = _levels(scheduler, t.clamp(min=1))
    smallest = (1 - before) / (1 - alpha_bar) * beta
    return smallest.log(), _levels(scheduler, t)[2].log()


def learned_log_variance(v: Tensor, t: Tensor, scheduler: DDPMScheduler) -> Tensor:
    """v′ log β_t + (1 − v′) log β̃_t (B, C, H, W), v′ = (v + 1) / 2 (Nichol and Dhariwal 2021, equation 15)."""
    smallest, largest = log_variance_range(scheduler, t)
    share = (v + 1) / 2
    return share * largest + (1 - share) * smallest


def gaussian_kl(mean_q: Tensor, log_variance_q: Tensor, mean_p: Tensor, log_variance_p: Tensor) -> Tensor:
    """KL(q ‖ p) of two Gaussians, for each number on its own (nats, shape of the arguments together)."""
    ratio = log_variance_q - log_variance_p
    return 0.5 * (ratio.exp() - 1 - ratio + (mean_q - mean_p).square() * (-log_variance_p).exp())


def discretized_log_likelihood(x_0: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """Log probability (nats, shape of ``x_0``) that a Gaussian rounds to x₀, one of 256 levels of [−1, 1].

    Ho et al. (2020), equation 13: the lowest and highest level take all that lies beyond them.
    """
    lower = torch.where(x_0 < -0.999, -FAR, x_0 - HALF_LEVEL) - mean
    upper = torch.where(x_0 > 0.999, FAR, x_0 + HALF_LEVEL) - mean
    # Seen from the other side where it lies above the mean: the logarithm of small tails is exact, that of 1 is not.
    above = lower + upper > 0
    lower, upper = torch.where(above, -upper, lower), torch.where(above, -lower, upper)
    narrow = (-0.5 * log_variance).exp()
    log_lower: Tensor = torch.special.log_ndtr((lower * narrow).clamp(-STEEP, STEEP))
    log_upper: Tensor = torch.special.log_ndtr((upper * narrow).clamp(-STEEP, STEEP))
    # log(Φ(upper) − Φ(lower)), exact far into the tails, so that a mean far off still has a gradient. The two meet in
    # float32 only beyond STEEP, or at deviations thousands of times the range of images; held apart, none is infinite.
    return log_upper + torch.log1p(-(log_lower - log_upper).clamp(max=-1e-6).exp())


def variational_bound(
    predicted: Tensor,
    v: Tensor,
    *,
    x_0: Tensor,
    x_t: Tensor,
    t: Tensor,
    scheduler: DDPMScheduler,
    prediction: Prediction,
) -> Tensor:
    """The term L_t of the variational bound for each image (B,), in bits per dimension.

    For t > 0 the KL divergence of p(x_{t−1} | x_t) from q(x_{t−1} | x_t, x₀), for t = 0 −log p(x₀ | x₁) on 256 levels
    (Nichol and Dhariwal 2021, equations 4 to 6). The mean of p is held fixed, so that only ``v`` learns from it
    (section 3.1 there). x̂₀ is clipped to [−1, 1], as it is in sampling.
    """
    fixed = to_clean(predicted.detach(), x_t, alpha_bars(scheduler, t), prediction).clamp(-1, 1)
    mean_p = posterior_mean(fixed, x_t, t, scheduler)
    log_variance_p = learned_log_variance(v, t, scheduler)
    mean_q = posterior_mean(x_0, x_t, t, scheduler)
    divergence = gaussian_kl(mean_q, log_variance_range(scheduler, t)[0], mean_p, log_variance_p)
    surprise = -discretized_log_likelihood(x_0, mean_p, log_variance_p)
    nats = torch.where(t > 0, divergence.mean(dim=(1, 2, 3)), surprise.mean(dim=(1, 2, 3)))
    return nats / math.log(2)


def diffusion_loss(
    output: Tensor,
    *,
    x_0: Tensor,
    epsilon: Tensor,
    x_t: Tensor,
    t: Tensor,
    scheduler: DDPMScheduler,
    gamma: float,
    channels: int | None = None,
) -> Tensor:
    """Loss of each image (B,), float32: the squared error, a mean over C, H and W, times `loss_weights`.

    With a learned variance (the scheduler says so) ``output`` has 2C channels, C being ``channels`` or else those of
    ``x_0``, and T / 1000 · `variational_bound` is added: L_hybrid of Nichol and Dhariwal (2021), equation 16, whose
    λ = 0.001 is for the sum over T times.
    """
    prediction: Prediction = scheduler.config.prediction_type
    predicted, alpha_bar = output.float(), alpha_bars(scheduler, t)
    learned = scheduler.config.variance_type == "learned_range"
    if learned:
        predicted, v = split_variance(predicted, x_0.shape[1] if channels is None else channels)
    target = target_of(prediction, x_0, epsilon, alpha_bar)
    errors = F.mse_loss(predicted, target, reduction="none").mean(dim=(1, 2, 3))
    loss = loss_weights(alpha_bar, prediction, gamma) * errors
    if learned:
        bound = variational_bound(predicted, v, x_0=x_0, x_t=x_t, t=t, scheduler=scheduler, prediction=prediction)
        loss = loss + scheduler.config.num_train_timesteps / 1000 * bound
    return loss


def _levels(scheduler: DDPMScheduler, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """ᾱ_t, ᾱ_{t−1} and β_t = 1 − ᾱ_t / ᾱ_{t−1}, each (B, 1, 1, 1)."""
    alpha_bar = alpha_bars(scheduler, t)
    before = torch.where(t.reshape(-1, 1, 1, 1) > 0, alpha_bars(scheduler, (t - 1).clamp(min=0)), 1.0)
    return alpha_bar, before, 1 - alpha_bar / before
