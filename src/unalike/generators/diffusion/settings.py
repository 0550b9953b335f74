"""Every knob of diffusion training and sampling, with its unit. No torch here: the command line reads it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from unalike.generators.settings import DrawSettings, require

Precision = Literal["auto", "float32", "bfloat16"]
NORM_GROUPS = 8


@dataclass(frozen=True)
class DiffusionSettings:
    """Settings of a diffusion training (Ho et al. 2020; symbols as there)."""

    steps: int = 800
    """Training updates, each on one batch (count). 800 take 2 to 3 minutes on 2 cores at 32 × 32: enough to learn
    8 images by heart, and to draw a few hundred roughly."""

    batch_size: int = 16
    """Images of one update (count)."""

    learning_rate: float = 2e-3
    """Largest step size of AdamW, reached after the warm-up (per update); falls linearly to 0 at the end."""

    warmup: int = 50
    """Updates over which the learning rate rises from 0 (count)."""

    weight_decay: float = 0.01
    """Decoupled weight decay of AdamW (share of a weight, times the learning rate, per update)."""

    ema_decay: float = 0.995
    """Share of the weight average kept at each update (0 to below 1); (1 + n) / (10 + n) at update n while
    that is less. Samples are drawn from the average."""

    gradient_clip: float = 1.0
    """Largest norm of the gradient over all weights; a longer one is shortened (loss per unit of weight)."""

    prediction: Literal["epsilon", "sample", "v_prediction"] = "v_prediction"
    """What the network predicts: the noise, the image, or the velocity of Salimans and Ho (2022)."""

    schedule: Literal["squaredcos_cap_v2", "linear"] = "squaredcos_cap_v2"
    """How noise grows with time: by a cosine (Nichol and Dhariwal 2021), or linear in the variance."""

    timesteps: int = 1000
    """Noise levels T (count)."""

    base_channels: int = 32
    """Channels of the U-Net at full resolution, a multiple of 8 (count)."""

    channel_multipliers: tuple[int, ...] = (1, 2, 4, 4)
    """Channels of each resolution in units of base_channels; each further entry halves the image (count)."""

    layers_per_block: int = 1
    """Residual layers at each resolution on the way down; one more on the way up (count)."""

    precision: Precision = "auto"
    """Number format inside the network: auto takes bfloat16 where the processor has it in hardware. Weights
    and optimizer are always float32."""

    checkpoint_every: float = 120.0
    """Time between checkpoints; 0 writes one after each update (seconds)."""

    log_every: int = 20
    """Updates between two lines of log.jsonl, and between two checks that the loss is finite (count)."""

    def __post_init__(self) -> None:
        """Refuse values that make no sense, naming the setting."""
        for name in ("steps", "batch_size", "layers_per_block", "log_every"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        for name in ("learning_rate", "gradient_clip"):
            require(getattr(self, name) > 0, name, getattr(self, name), "a number above 0")
        for name in ("warmup", "weight_decay", "checkpoint_every"):
            require(getattr(self, name) >= 0, name, getattr(self, name), "0 or more")
        require(0 <= self.ema_decay < 1, "ema_decay", self.ema_decay, "a share from 0 to below 1")
        require(self.timesteps >= 2, "timesteps", self.timesteps, "at least 2")
        fits = self.base_channels > 0 and self.base_channels % NORM_GROUPS == 0
        require(fits, "base_channels", self.base_channels, f"a multiple of {NORM_GROUPS}")
        multipliers = self.channel_multipliers
        fits = len(multipliers) > 0 and min(multipliers) >= 1
        require(fits, "channel_multipliers", multipliers, "at least one whole number, each at least 1")


@dataclass(frozen=True)
class SampleSettings(DrawSettings):
    """How samples are drawn from a diffusion run."""

    steps: int = 50
    """Denoising steps; must divide the run's timesteps (count)."""

    sampler: Literal["ddim", "ddpm"] = "ddim"
    """ddim: deterministic given the first noise (Song et al. 2021). ddpm: fresh noise at each step
    (Ho et al. 2020)."""

    precision: Precision = "auto"
    """Number format inside the network: auto takes bfloat16 where the processor has it in hardware."""

    def __post_init__(self) -> None:
        """Refuse values that make no sense, naming the setting."""
        super().__post_init__()
        require(self.steps >= 1, "steps", self.steps, "at least 1")
