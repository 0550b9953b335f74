"""Every knob of teaching a text-to-image model a concept, and of drawing from it. No torch here."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from unalike.generators.diffusion.settings import SamplerName
from unalike.generators.settings import DrawSettings, Precision, TrainingSettings, require


@dataclass(frozen=True)
class InversionSettings(TrainingSettings):
    """Settings of textual inversion (Gal et al. 2023), or of LoRA (Hu et al. 2022) on the same base.

    The defaults are those of de Wilde et al. (2023): 64 vectors, learning rate 0.005 throughout, 50,000 updates of one
    image.
    """

    steps: int = 50_000
    """Training updates, each on one batch (count)."""

    batch_size: int = 1
    """Images of one update, over all processes and their accumulated parts (count)."""

    learning_rate: float = 5e-3
    """Step size of AdamW (per update). LoRA wants about 1e-4."""

    warmup: int = 0
    """Updates over which the learning rate rises from 0 (count)."""

    decay: Literal["linear", "constant"] = "constant"
    """What the learning rate does after the warm-up: fall to 0 at the last update, or stay."""

    ema_decays: tuple[float, ...] = (0.0,)
    """Shares of the averages of what is learned kept at each update; 0 keeps the last values (0 to below 1)."""

    base: str = ""
    """Stable Diffusion 1.x or 2.x: a diffusers folder, a single safetensors file, or a name on the hub."""

    base_config: str = ""
    """For a base in a single file, which says nothing of its layout: a diffusers folder of the same kind (weights are
    not read from it), or its name on the hub."""

    token: str = ""
    """What prompts call the concept; default the cohort's folder name. With --condition label each class is its own."""

    method: Literal["embedding", "lora"] = "embedding"
    """What is learned: vectors of a new token, all else frozen; or low-rank additions to the attention of the U-Net."""

    vectors: int = 64
    """Vectors of each token, at most as many as the encoder has room for (count)."""

    initialize: str = ""
    """Words whose vectors the new ones begin with, over and over; without, noise like the encoder's own vectors."""

    template: str = "{}"
    """Prompt of the training images, {} standing for the token."""

    condition: Literal["", "label"] = ""
    """label: learn one token for each class of the cohort."""

    rank: int = 4
    """Rank of the additions of LoRA (count)."""

    resolution: int = 0
    """Side that images are brought to, a multiple of 8; 0 as the base was trained (pixels)."""

    gradient_checkpointing: bool = False
    """Compute features twice instead of keeping them: less memory, about 1.7 times the time."""

    private_noise: float = 0.0
    """Noise multiplier of differentially private training: each patient's gradient is clipped to private_clip, and
    noise of this multiple of it is added (Abadi et al. 2016); 0 trains without privacy."""

    private_clip: float = 1.0
    """Largest norm of one patient's gradient, with private_noise (loss per unit of weight)."""

    def __post_init__(self) -> None:
        """Refuse values that make no sense, naming the setting."""
        super().__post_init__()
        for name in ("vectors", "rank"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        require(self.template.count("{}") == 1, "template", self.template, "a text with one {} for the token")
        fits = self.resolution >= 0 and self.resolution % 8 == 0
        require(fits, "resolution", self.resolution, "a multiple of 8")
        require(0 <= self.private_noise < math.inf, "private_noise", self.private_noise, "0 or more")
        require(0 < self.private_clip < math.inf, "private_clip", self.private_clip, "a number above 0")
        fits = not self.private_noise or self.accumulate == 1
        require(fits, "accumulate", self.accumulate, "1 with private_noise, where each patient is worked on alone")
        fits = not (self.token and self.condition)
        require(fits, "token", self.token, "none with condition label: each class is its own token")
        fits = self.method == "embedding" or not (self.private_noise or self.initialize)
        require(fits, "method", self.method, "embedding with private_noise or initialize")


@dataclass(frozen=True)
class InversionDrawSettings(DrawSettings):
    """How samples are drawn from a base with learned concepts. Defaults as de Wilde et al. (2023)."""

    steps: int = 100
    """Denoising steps (count)."""

    sampler: SamplerName = "euler-a"
    """One of unalike's samplers for diffusion."""

    guidance: float = 2.0
    """Weight of classifier-free guidance (Ho and Salimans 2021): 1 is the conditional model."""

    prompt: str = ""
    """What to draw, concepts composed with AND, each with a weight: "0.25*<healthy> AND 0.75*<ill>"; default the run's
    own token, or each class as often as the cohort has it."""

    morph: tuple[str, ...] = ()
    """Two prompts between which the samples lie, all from the noise of one seed."""

    label: str = ""
    """Class to draw, of a run that learned one token for each."""

    strength: float = 1.0
    """How much of the way from noise a given image goes again: near 0 it stays, at 1 nothing of it does (share)."""

    base: str = ""
    """Where the base is now, if not where it was at training."""

    base_config: str = ""
    """Where the layout of a base in a single file is now, if not where it was at training."""

    embeddings: tuple[str, ...] = ()
    """Files of further concepts that prompts may name."""

    ema_decay: float = 0.0
    """Average to draw from, one of the run's ema_decays; 0 the one that was kept as the model."""

    precision: Precision = "auto"
    """Number format inside the networks: auto takes bfloat16 where the processor has it in hardware."""

    def __post_init__(self) -> None:
        """Refuse values that make no sense, naming the setting."""
        super().__post_init__()
        require(self.steps >= 1, "steps", self.steps, "at least 1")
        require(0 <= self.guidance < math.inf, "guidance", self.guidance, "0 or more")
        require(0 < self.strength <= 1, "strength", self.strength, "a share above 0, at most 1")
        require(len(self.morph) in (0, 2), "morph", self.morph, "two prompts")
        fits = sum(map(bool, (self.prompt, self.morph, self.label))) <= 1
        require(fits, "prompt", self.prompt, "only one of prompt, morph and label")
