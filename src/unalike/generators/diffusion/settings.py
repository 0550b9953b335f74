"""Every knob of diffusion training and sampling, with its unit. No torch here: the command line reads it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from unalike.generators.settings import DrawSettings, Precision, TrainingSettings, require

Size = Literal["tiny", "small", "medium", "large"]
Prediction = Literal["epsilon", "sample", "v_prediction"]
Schedule = Literal["squaredcos_cap_v2", "linear"]
SamplerName = Literal["ddim", "ddpm", "dpm++", "euler", "euler-a", "heun"]
NORM_GROUPS = 8
BASE_CHANNELS = {"tiny": 32, "small": 32, "medium": 64, "large": 96}


@dataclass(frozen=True)
class DiffusionSettings(TrainingSettings):
    """Settings of a diffusion training (Ho et al. 2020; symbols as there).

    The defaults learn 8 images by heart, and draw a few hundred roughly, within minutes on 2 cores at 32 × 32.
    """

    size: Size = "tiny"
    """Network: tiny for small images on a laptop; small, medium and large are the papers' (32, 64 and 96 channels,
    three residual blocks at each resolution, attention at 16 and 8 pixels a side)."""

    base_channels: int = 0
    """Channels of the U-Net at full resolution, a multiple of 8; 0 as the size says (count)."""

    channel_multipliers: tuple[int, ...] = ()
    """Channels of each resolution in units of base_channels; each further entry halves the image; none: as the size
    and the image say (count)."""

    residual_blocks: int = 0
    """Residual blocks at each resolution on the way down; one more on the way up; 0 as the size says (count)."""

    attention: tuple[int, ...] = ()
    """Sides at which the network has self-attention; none: as the size says (pixels)."""

    dropout: float = 0.0
    """Share of values left out at random in each residual block while training (0 to below 1)."""

    prediction: Prediction = "v_prediction"
    """What the network predicts: the noise, the image, or the velocity of Salimans and Ho (2022)."""

    schedule: Schedule = "squaredcos_cap_v2"
    """How noise grows with time: by a cosine (Nichol and Dhariwal 2021), or linear in the variance."""

    timesteps: int = 1000
    """Noise levels T (count)."""

    zero_terminal_snr: bool = False
    """Let the last noise level hold no signal at all (Lin et al. 2024)."""

    min_snr: float = 0.0
    """γ of min-SNR-γ weights (Hang et al. 2023, who use 5); 0 weighs all noise levels alike."""

    learned_variance: bool = False
    """Learn the variance of each step as well (Nichol and Dhariwal 2021)."""

    condition: tuple[str, ...] = ()
    """What samples can be asked for: label, mask, or attributes of the records such as age."""

    condition_dropout: float = 0.1
    """Share of training images whose label and attributes are hidden, for classifier-free guidance (0 to below 1)."""

    augment: float = 0.0
    """Probability of each change (mirrored, turned, scaled, moved) of a training image. The network is told, so that
    samples are not changed (Karras et al. 2022); 0 changes nothing."""

    latent: int = 0
    """Channels of a latent space, four times smaller a side, in which to diffuse; 0 diffuses pixels (count)."""

    autoencoder_steps: int = 2000
    """Updates of the autoencoder that makes the latent space (count)."""

    def __post_init__(self) -> None:
        """Refuse values that make no sense, naming the setting."""
        super().__post_init__()
        require(self.timesteps >= 2, "timesteps", self.timesteps, "at least 2")
        for name in ("base_channels", "residual_blocks", "min_snr", "latent"):
            require(getattr(self, name) >= 0, name, getattr(self, name), "0 or more")
        require(
            self.base_channels % NORM_GROUPS == 0, "base_channels", self.base_channels, f"a multiple of {NORM_GROUPS}"
        )
        multipliers = self.channel_multipliers
        require(all(m >= 1 for m in multipliers), "channel_multipliers", multipliers, "whole numbers of at least 1")
        for name in ("dropout", "condition_dropout"):
            require(0 <= getattr(self, name) < 1, name, getattr(self, name), "a share from 0 to below 1")
        require(0 <= self.augment < 1, "augment", self.augment, "a probability from 0 to below 1")
        require(self.autoencoder_steps >= 1, "autoencoder_steps", self.autoencoder_steps, "at least 1")
        fits = not (self.zero_terminal_snr and self.min_snr)
        require(fits, "min_snr", self.min_snr, "0 with zero_terminal_snr: it gives the last noise level no weight")
        fits = len(self.condition) == len(set(self.condition)) and all(self.condition)
        require(fits, "condition", self.condition, "names, each once")


# What Akbar et al. (2025, sections 2.2 and 2.4) say of their diffusion model; the rest is the default of the code they
# name, improved-diffusion: 7,800 × 1,000 images in batches of 12, learning rate 1e-4, weight average 0.9999.
PRESETS = {
    "akbar2025": DiffusionSettings(
        steps=650_000,
        batch_size=12,
        learning_rate=1e-4,
        warmup=0,
        decay="constant",
        weight_decay=0.0,
        ema_decays=(0.9999,),
        size="medium",
        prediction="epsilon",
        schedule="linear",
        timesteps=4000,
    )
}


@dataclass(frozen=True)
class SampleSettings(DrawSettings):
    """How samples are drawn from a diffusion run."""

    steps: int = 50
    """Denoising steps (count)."""

    sampler: SamplerName = "ddim"
    """ddim: deterministic given the first noise (Song et al. 2021). ddpm: fresh noise at each step
    (Ho et al. 2020). dpm++: DPM-Solver++ (Lu et al. 2022). euler, euler-a (ancestral), heun: Karras et al. (2022)."""

    label: str = ""
    """Class to draw, of a run conditioned on labels; each sample's own, in the cohort's proportions, if not given."""

    attributes: tuple[str, ...] = ()
    """Attributes to draw, as name=value, of a run conditioned on them."""

    guidance: float = 1.0
    """Weight of classifier-free guidance (Ho and Salimans 2021): 1 is the conditional model, 0 the unconditional one,
    more exaggerates the condition."""

    strength: float = 1.0
    """How much of the way from noise a given image goes again: near 0 it stays, at 1 nothing of it does (share)."""

    ema_decay: float = 0.0
    """Weight average to draw from, one of the run's ema_decays; 0 the one that was kept as the model."""

    precision: Precision = "auto"
    """Number format inside the network: auto takes bfloat16 where the processor has it in hardware."""

    def __post_init__(self) -> None:
        """Refuse values that make no sense, naming the setting."""
        super().__post_init__()
        require(self.steps >= 1, "steps", self.steps, "at least 1")
        require(0 <= self.guidance < math.inf, "guidance", self.guidance, "0 or more")
        require(0 < self.strength <= 1, "strength", self.strength, "a share above 0, at most 1")
        require(0 <= self.ema_decay < 1, "ema_decay", self.ema_decay, "a share from 0 to below 1")
        require(all("=" in entry for entry in self.attributes), "attributes", self.attributes, "name=value pairs")
