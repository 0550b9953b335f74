"""Every knob of StyleGAN training and sampling, with its unit. No torch here: the command line reads it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from unalike.generators.settings import DrawSettings, LoopSettings, Precision, require

Size = Literal["tiny", "small", "medium", "large"]


@dataclass(frozen=True)
class SizePreset:
    """What a size stands for: features at side r are capacity / r, at most max_features."""

    capacity: int
    max_features: int
    latent: int
    mapping_layers: int


# small, medium and large are those of Akbar et al. (2025, section 2.4).
SIZES: dict[Size, SizePreset] = {
    "tiny": SizePreset(1_024, 64, 128, 2),
    "small": SizePreset(16_768, 256, 512, 8),
    "medium": SizePreset(32_768, 512, 512, 8),
    "large": SizePreset(64_786, 1_024, 512, 8),
}


@dataclass(frozen=True)
class StyleganSettings(LoopSettings):
    """Settings of a StyleGAN training (Karras et al. 2020; symbols as there)."""

    steps: int = 4000
    """Training updates of both networks, each on one batch (count)."""

    learning_rate: float = 2e-3
    """Step size of Adam, of both networks (per update)."""

    ema_decays: tuple[float, ...] = (0.999,)
    """Shares of the generator's weight averages kept at each update (0 to below 1); (1 + n) / (10 + n) at update n
    while that is less. At 16 images a batch 0.999 has a half-life of 11,000 images. Samples are drawn from the first,
    or from the one that watching finds best; all are kept."""

    size: Size = "tiny"
    """Networks: tiny for small images on a laptop; small, medium and large are those of Akbar et al. (2025)."""

    capacity: int = 0
    """Features of a layer of side r are capacity / r; 0 as the size says (count times pixels)."""

    max_features: int = 0
    """At most so many features; 0 as the size says (count)."""

    latent: int = 0
    """Dimension of z and w; 0 as the size says (count)."""

    mapping_layers: int = 0
    """Layers of the mapping network from z to w; 0 as the size says (count)."""

    condition: Literal["", "label"] = ""
    """What samples can be asked for: label, the class, or nothing."""

    gamma: float = 5.0
    """Weight γ of the R1 penalty, γ/2 E‖∇D(x)‖² on real images (Mescheder et al. 2018)."""

    r1_every: int = 16
    """Updates between two R1 penalties, which then weigh as much more (count); 0 for none."""

    path_weight: float = 2.0
    """Weight of the path length penalty E(‖Jᵀy‖ − a)²; 0 for none."""

    path_every: int = 4
    """Updates between two path length penalties, which then weigh as much more (count)."""

    mixing: float = 0.9
    """Share of generated images whose layers take their styles from two latents, from a random layer on."""

    augment: Literal["adaptive", "fixed", "none"] = "adaptive"
    """Changes of all images the discriminator sees, with a probability p that adapts itself to its overfitting, with a
    fixed one, or none (Karras et al. 2020, "Limited Data")."""

    augment_strength: float = 0.0
    """The probability p of each change: where it starts, or stays if fixed (0 to 0.8)."""

    augment_target: float = 0.6
    """Mean sign of the discriminator on real images that the adaptive strength aims at (0 to below 1)."""

    augment_kimg: float = 100.0
    """Thousands of images over which the adaptive strength could rise from 0 to 1."""

    def __post_init__(self) -> None:
        """Refuse values that make no sense, naming the setting."""
        super().__post_init__()
        for name in ("capacity", "max_features", "latent", "mapping_layers", "r1_every"):
            require(getattr(self, name) >= 0, name, getattr(self, name), "0 or more")
        require(self.path_every >= 1, "path_every", self.path_every, "at least 1")
        for name in ("gamma", "path_weight"):
            require(0 <= getattr(self, name) < float("inf"), name, getattr(self, name), "0 or more")
        require(0 <= self.mixing <= 1, "mixing", self.mixing, "a share from 0 to 1")
        # From 0.85 on, changes leak into what is generated (section 3.2 of "Limited Data").
        fits = 0 <= self.augment_strength <= 0.8
        require(fits, "augment_strength", self.augment_strength, "a probability from 0 to 0.8")
        fits = self.augment != "none" or self.augment_strength == 0
        require(fits, "augment_strength", self.augment_strength, "0 with augment none")
        require(0 <= self.augment_target < 1, "augment_target", self.augment_target, "a share from 0 to below 1")
        require(0 < self.augment_kimg < float("inf"), "augment_kimg", self.augment_kimg, "a number above 0")

    def resolve_size(self) -> SizePreset:
        """The size with what is given beside it."""
        plain = SIZES[self.size]
        return SizePreset(
            capacity=self.capacity or plain.capacity,
            max_features=self.max_features or plain.max_features,
            latent=self.latent or plain.latent,
            mapping_layers=self.mapping_layers or plain.mapping_layers,
        )


# Akbar et al. (2025, section 2.2): batches of 16, gamma 10, "25 000 iterations", which are thousands of images in the
# code they name. The rest is what "Limited Data" says of its configuration for 256 × 256.
PRESETS = {
    "akbar2025": StyleganSettings(
        steps=1_562_500,
        size="medium",
        gamma=10.0,
        learning_rate=2.5e-3,
        ema_decays=(0.998,),
        augment_kimg=500.0,
    )
}


@dataclass(frozen=True)
class StyleganDrawSettings(DrawSettings):
    """How samples are drawn from a StyleGAN run."""

    truncation: float = 1.0
    """ψ of the truncation trick, w' = mean + ψ (w − mean): below 1 samples are more typical and less varied."""

    label: str = ""
    """Class to draw, of a run conditioned on labels; each sample's own, in the cohort's proportions, if not given."""

    ema_decay: float = 0.0
    """Weight average to draw from, one of the run's ema_decays; 0 the one that was kept as the model."""

    precision: Precision = "auto"
    """Number format inside the network: auto takes bfloat16 where the processor has it in hardware."""

    def __post_init__(self) -> None:
        """Refuse values that make no sense, naming the setting."""
        super().__post_init__()
        require(0 <= self.truncation <= 2, "truncation", self.truncation, "a number from 0 to 2")
        require(0 <= self.ema_decay < 1, "ema_decay", self.ema_decay, "a share from 0 to below 1")


@dataclass(frozen=True)
class ProjectionSettings:
    """How images are projected: the search for the styles that draw them (Karras et al. 2020, appendix D)."""

    steps: int = 200
    """Updates of the styles (count)."""

    learning_rate: float = 0.1
    """Largest step size of Adam, between its rise and its fall (per update)."""

    batch_size: int = 16
    """Images worked on at once; another number rounds differently (images)."""

    starts: int = 256
    """Drawn styles among which, beside the mean style, the nearest to the image is where the search starts, of each
    class if there are classes; 0 for the mean style alone (count)."""

    space: Literal["w+", "w"] = "w+"
    """A style of each layer's own (Abdal et al. 2019), or one for all: what the generator itself uses."""

    def __post_init__(self) -> None:
        """Refuse values that make no sense, naming the setting."""
        for name in ("steps", "batch_size"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        require(self.starts >= 0, "starts", self.starts, "0 or more")
        require(0 < self.learning_rate < float("inf"), "learning_rate", self.learning_rate, "a number above 0")
        require(self.space in ("w+", "w"), "space", self.space, "w+ or w")
