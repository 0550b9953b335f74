"""From noise to images in a given number of steps, with the schedulers of diffusers. No folder and no network here.

A sampler asks a function, `Denoise`, what the network predicts, and takes one step after another towards less noise:

* ``ddpm``, ``ddim`` walk over time steps in the space of training, x_t = √ᾱ x₀ + √(1 − ᾱ) ε. They are given the raw
  prediction, as the pipelines of diffusers do.
* ``dpm++`` walks in the same space, ``euler``, ``euler-a`` and ``heun`` in that of Karras et al. (2022), x₀ + σ ε with
  σ = √((1 − ᾱ) / ᾱ). They are given x̂₀, clipped as in training: diffusers' own versions do not clip, and where there is
  almost only noise an error in a predicted ε is multiplied by σ.

The last four begin at the last time step with σ at most `LARGEST_SIGMA`. A cosine schedule ends at σ = 20,000, and one
rescaled to end in pure noise (Lin et al. 2024) at σ = ∞. Heun's first step from there adds the error of x̂₀ hundreds of
times over, and a step of ``euler-a`` can be NaN. The code of Lu et al. (2022) leaves these levels out too, and so do
Karras et al. (2022, table 1).

Where no x̂₀ is clipped and no level left out, ``euler`` takes the steps of ``ddim``, and ``euler-a`` those of ``ddpm``
with its small variance, in another space: they differ by rounding.

Time steps are spaced "trailing" (Lin et al. 2024, table 2): they begin where noise ends.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
)

from unalike.errors import SettingsError

Denoise = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""(noisy images (B, C, H, W) float32 as the network was trained on them, time step as a tensor of no dimension) -> what
the network predicts, (B, C, H, W), or (B, 2C, H, W) if it learned variances too."""

LARGEST_SIGMA = math.exp(5.1)
"""About 164: the code of Lu et al. (2022) bounds λ = −log σ by −5.1 for cosine schedules; the linear one of Ho et al.
(2020) ends at 157. What is left of an image there, √ᾱ x₀, is at most 0.006."""


@dataclass(frozen=True)
class Sampler:
    """One way to walk from noise to an image."""

    about: str
    """What it is, for a line of help."""

    fresh_noise: bool
    """Whether steps add noise; if not, the first noise decides the image."""

    by_sigma: bool = True
    """Whether it steps over noise levels σ, given x̂₀; if not, over time steps, given the raw prediction."""

    calls: int = 1
    """Network calls of a step; the last step takes one (count)."""


SAMPLERS: Mapping[str, Sampler] = {
    "ddpm": Sampler("ancestral sampling (Ho et al. 2020)", fresh_noise=True, by_sigma=False),
    "ddim": Sampler("deterministic, first order (Song et al. 2021)", fresh_noise=False, by_sigma=False),
    "dpm++": Sampler("DPM-Solver++, deterministic, two steps, second order (Lu et al. 2022)", fresh_noise=False),
    "euler": Sampler("deterministic, first order in sigma (Karras et al. 2022)", fresh_noise=False),
    "euler-a": Sampler("Euler steps, each followed by fresh noise (Katherine Crowson's k-diffusion)", fresh_noise=True),
    "heun": Sampler("deterministic, second order in sigma (Karras et al. 2022)", fresh_noise=False, calls=2),
}


@dataclass(frozen=True)
class Known:
    """What an image is already known to be, for inpainting."""

    image: torch.Tensor
    """(B, C, H, W) float32 in model space; read where ``keep`` is true."""

    keep: torch.Tensor
    """(B, 1, H, W) bool: true where the image is known, false where it is to be drawn."""


def make_scheduler(name: str, trained: DDPMScheduler, steps: int) -> Any:
    """The scheduler of diffusers for sampler ``name``, its time steps set, on the noise levels of ``trained``.

    Those of samplers by σ expect x̂₀ (``euler-a``, which cannot, ε̂) rather than the network's prediction.

    Raises `SettingsError` for an unknown name, for no steps or more than there are noise levels, for ``ddim`` if steps
    do not divide the time steps trained with, and for ``ddpm`` and ``ddim`` where a network that predicts noise was
    trained on levels that end in pure noise (noise says nothing of x₀ there).
    """
    sampler, levels = _sampler(name), int(trained.config.num_train_timesteps)
    if steps < 1:
        raise SettingsError(f"steps = {steps} is too few. Give at least 1.")
    if steps > levels:
        raise SettingsError(
            f"steps = {steps} is more steps than the run was trained with ({levels}). Give {levels} or fewer."
        )
    if sampler.by_sigma:
        return _scheduler_by_sigma(name, trained, steps)
    if trained.config.prediction_type == "epsilon" and trained.alphas_cumprod[-1] == 0:
        able = ", ".join(other for other in SAMPLERS if SAMPLERS[other].by_sigma)
        raise SettingsError(
            f"{name} cannot begin at zero signal with a network that predicts noise. Those samplers can that leave "
            f"that level out: {able}."
        )
    if name == "ddpm":
        scheduler = DDPMScheduler.from_config(trained.config)
        scheduler.set_timesteps(timesteps=_trailing(levels, steps))
        return scheduler
    # DDIM's step goes back by levels // steps, whatever its list of time steps says.
    if levels % steps:
        fits = [n for n in range(1, levels + 1) if levels % n == 0]
        near = sorted(sorted(fits, key=lambda n: abs(n - steps))[:4])
        raise SettingsError(
            f"steps = {steps} does not divide the {levels} time steps of the run. "
            f"Near it do: {', '.join(map(str, near))}."
        )
    # Betas, not the name of the schedule: DDIM does not know all of them.
    betas = {"trained_betas": trained.betas.tolist(), "rescale_betas_zero_snr": False}
    scheduler = DDIMScheduler.from_config(trained.config, **betas, timestep_spacing="trailing")
    scheduler.set_timesteps(steps)
    return scheduler


def _sampler(name: str) -> Sampler:
    if name not in SAMPLERS:
        raise SettingsError(f"there is no sampler {name!r}. There are: {', '.join(SAMPLERS)}.")
    return SAMPLERS[name]


def _scheduler_by_sigma(name: str, trained: DDPMScheduler, steps: int) -> Any:
    """``dpm++``, ``euler``, ``euler-a`` or ``heun`` on the levels of ``trained`` up to `LARGEST_SIGMA`."""
    levels = int((trained.alphas_cumprod >= 1 / (1 + LARGEST_SIGMA**2)).sum())
    if steps > levels:
        raise SettingsError(
            f"steps = {steps} is more than {name} finds levels of this run with a trace of the image left. "
            f"Give {levels} or fewer."
        )
    # Betas are taken as they are, so that schedules which some of these schedulers do not know by name work as well.
    betas = trained.betas[:levels].tolist()
    common = {"num_train_timesteps": levels, "trained_betas": betas, "timestep_spacing": "trailing"}
    times = _trailing(levels, steps)
    if name == "euler-a":
        scheduler = EulerAncestralDiscreteScheduler(**common, prediction_type="epsilon")
        scheduler.set_timesteps(steps)
        # This one takes no list of time steps.
        sigmas = ((1 - scheduler.alphas_cumprod) / scheduler.alphas_cumprod).sqrt()
        scheduler.timesteps = torch.tensor(times, dtype=torch.float32)
        scheduler.sigmas = torch.cat([sigmas[times], torch.zeros(1)])
        return scheduler
    kinds = {"dpm++": DPMSolverMultistepScheduler, "euler": EulerDiscreteScheduler, "heun": HeunDiscreteScheduler}
    scheduler = kinds[name](**common, prediction_type="sample")
    scheduler.set_timesteps(timesteps=times)
    return scheduler


def _trailing(levels: int, steps: int) -> list[int]:
    """Time steps from ``levels`` − 1 downwards, ``steps`` of them, equally far apart but for rounding (half to even).

    diffusers counts them in floating point and, for some numbers of steps (61 of 1000), gives one more, at t = −1.
    """
    return [round(Fraction(levels * left, steps)) - 1 for left in range(steps, 0, -1)]


def _steps_to_take(steps: int, strength: float) -> int:
    if not 0 < strength <= 1:
        raise SettingsError(f"strength = {strength} is not a share. Give a number above 0, at most 1.")
    return max(1, round(steps * strength))


def count_calls(name: str, steps: int, strength: float = 1.0) -> int:
    """How often `run_sampler` asks the network (count).

    Raises `SettingsError` for an unknown name, or a ``strength`` outside (0, 1].
    """
    calls = _sampler(name).calls
    return calls * (_steps_to_take(steps, strength) - 1) + 1


@torch.inference_mode()
def run_sampler(
    denoise: Denoise,
    *,
    name: str,
    trained: DDPMScheduler,
    steps: int,
    noise: torch.Tensor,
    streams: Sequence[torch.Generator],
    known: Known | None = None,
    start: torch.Tensor | None = None,
    strength: float = 1.0,
) -> torch.Tensor:
    """Images (B, C, H, W) float32 in model space, drawn by sampler ``name`` in ``steps`` steps.

    ``noise`` (B, C, H, W) float32 is unit normal. Noise added on the way, if `Sampler.fresh_noise`, to image i is from
    ``streams[i]`` alone, a generator of the CPU: neighbours do not matter.

    ``start`` (B, C, H, W), clean images in model space: ``noise`` is added to them, and only the last ``strength``, in
    (0, 1], of the steps are taken (rounded, one at least; SDEdit, Meng et al. 2022). Strength 1 begins at ``noise``
    alone.

    ``known``: before each call of the network, what is known replaces x_t, noised to the same level (Song et al.
    2021, section I); the result equals ``known.image`` there, bit for bit. That noise is fresh if the sampler's is. In
    deterministic samplers it is ``noise`` each time, so that the known part moves along one path as well: solvers
    of second order compare successive predictions.

    Raises `SettingsError` as `make_scheduler` does, for a ``strength`` outside (0, 1], and for one below 1 without
    ``start``.
    """
    sampler = _sampler(name)
    scheduler = make_scheduler(name, trained, steps)
    if start is None and strength < 1:
        raise SettingsError(f"strength = {strength} needs an image to start from. Give one, or strength 1.")
    skipped = sampler.calls * (steps - _steps_to_take(steps, strength))
    if sampler.by_sigma:
        scheduler.set_begin_index(skipped)
    if start is None or strength == 1:
        x_t = noise * float(scheduler.init_noise_sigma)
    else:
        x_t = _noised(start, noise, scheduler, skipped)
    for call in range(skipped, len(scheduler.timesteps)):
        if known is not None:
            epsilon = _fresh_noise(noise, streams) if sampler.fresh_noise else noise
            x_t = torch.where(known.keep, _noised(known.image, epsilon, scheduler, call), x_t)
        x_t = _step(denoise, name, trained, scheduler, call, x_t, streams)
    return x_t if known is None else torch.where(known.keep, known.image, x_t)


def _step(
    denoise: Denoise,
    name: str,
    trained: DDPMScheduler,
    scheduler: Any,
    call: int,
    x_t: torch.Tensor,
    streams: Sequence[torch.Generator],
) -> torch.Tensor:
    """What follows x_t, both (B, C, H, W) in the scheduler's space; one call of the network."""
    t, sampler = scheduler.timesteps[call], SAMPLERS[name]
    scaled = scheduler.scale_model_input(x_t, t)
    predicted = denoise(scaled, t).float()
    if not (name == "ddpm" and trained.config.variance_type in ("learned", "learned_range")):
        predicted = predicted[:, : x_t.shape[1]]
    if sampler.by_sigma:
        predicted = _clean(predicted, scaled, float(scheduler.sigmas[call]), trained)
        if name == "euler-a":
            predicted = (x_t - predicted) / float(scheduler.sigmas[call])
    chance = {"generator": list(streams)} if sampler.fresh_noise else {}
    step = scheduler.step(predicted, t, x_t, **chance)
    # The last step of DDPM is x̂₀ (Ho et al. 2020, algorithm 2), but where steps are fewer than levels, diffusers adds
    # noise to it: next to none with the small variance, visibly much with a large or a learned one.
    last = call == len(scheduler.timesteps) - 1
    following: torch.Tensor = step.pred_original_sample if name == "ddpm" and last else step.prev_sample
    return following


def _clean(predicted: torch.Tensor, x_t: torch.Tensor, sigma: float, trained: DDPMScheduler) -> torch.Tensor:
    """x̂₀ from what the network predicts of x_t = √ᾱ x₀ + √(1 − ᾱ) ε, clipped as in training; all (B, C, H, W)."""
    signal, spread = 1 / math.hypot(1, sigma), sigma / math.hypot(1, sigma)  # √ᾱ, √(1 − ᾱ)
    kind = trained.config.prediction_type
    if kind == "sample":
        clean = predicted
    elif kind == "v_prediction":  # v = √ᾱ ε − √(1 − ᾱ) x₀ (Salimans and Ho 2022)
        clean = signal * x_t - spread * predicted
    else:
        clean = (x_t - spread * predicted) / signal
    if trained.config.thresholding:
        clean = trained._threshold_sample(clean)
    elif trained.config.clip_sample:
        clean = clean.clamp(-trained.config.clip_sample_range, trained.config.clip_sample_range)
    return clean


def _noised(clean: torch.Tensor, epsilon: torch.Tensor, scheduler: Any, call: int) -> torch.Tensor:
    """Clean images (B, C, H, W) with as much of ``epsilon`` added as there is before network call ``call``."""
    if not hasattr(scheduler, "sigmas"):
        alpha_bar = float(scheduler.alphas_cumprod[scheduler.timesteps[call]])
        return math.sqrt(alpha_bar) * clean + math.sqrt(1 - alpha_bar) * epsilon
    sigma = float(scheduler.sigmas[call])
    # DPM-Solver++ works in the space of training, the others add noise to the image and scale it only for the network.
    scale = math.hypot(1, sigma) if isinstance(scheduler, DPMSolverMultistepScheduler) else 1.0
    return (clean + sigma * epsilon) / scale


def _fresh_noise(like: torch.Tensor, streams: Sequence[torch.Generator]) -> torch.Tensor:
    """Unit normal noise of the shape and place of ``like`` (B, C, H, W), image i from ``streams[i]``."""
    drawn = [torch.randn(like.shape[1:], generator=stream) for stream in streams]
    return torch.stack(drawn).to(like.device)


def slerp(a: torch.Tensor, b: torch.Tensor, share: float) -> torch.Tensor:
    """The noise that lies the ``share``, in [0, 1], of the way from ``a`` to ``b``, along the arc (Shoemake 1985).

    Unit normal noise of many pixels has a norm of about √pixels; the arc keeps it, a straight line would not. ``a`` and
    ``b`` are of one shape, such as (C, H, W). Shares 0 and 1 return them bit for bit. Vectors less than 0.06 degrees
    from parallel, or from opposite (where no arc is the shortest), are mixed linearly.

    Raises `SettingsError` for a share outside [0, 1].
    """
    if not 0 <= share <= 1:
        raise SettingsError(f"share = {share} is not between the two noises. Give a number from 0 to 1.")
    if share in (0, 1):
        return (b if share else a).clone()
    p, q = a.double().flatten(), b.double().flatten()
    norms = float(p.norm() * q.norm())
    angle = math.acos(max(-1.0, min(1.0, float(p @ q) / norms))) if norms else 0.0
    if math.sin(angle) < 1e-3:
        return (1 - share) * a + share * b
    return (math.sin((1 - share) * angle) * a + math.sin(share * angle) * b) / math.sin(angle)
