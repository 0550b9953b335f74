"""Every knob of a learned space, with its unit. No torch here: the command line reads it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from unalike.errors import SettingsError

Kind = Literal["autoencoder", "contrastive"]
KINDS: tuple[Kind, ...] = get_args(Kind)
HALVINGS = 4  # of the image, in the network
GROUPS = 8  # of channels that are normalised together
# Whole numbers and their ranges. The upper ends bound the memory that a file's header can ask for.
_RANGES = {
    "dimension": (2, 4096),
    "side": (16, 512),
    "width": (GROUPS, 256),
    "steps": (1, 10**7),
    "batch": (2, 2**16),
    "most_images": (2, 10**7),
}


@dataclass(frozen=True)
class EmbeddingSettings:
    """Settings of a learned space and of its training."""

    kind: Kind = "contrastive"
    """contrastive: two changed views of an image lie near, images of other subjects far (Chen et al. 2020, SimCLR;
    for copies of patients Dar et al. 2023). autoencoder: numbers from which the image can be drawn again."""

    dimension: int = 128
    """Numbers that stand for an image (count)."""

    side: int = 64
    """Height and width to which images are averaged for the network, a multiple of 16 (pixels)."""

    width: int = 24
    """Channels after the first layer, a multiple of 8; later layers have two and four times as many (count)."""

    steps: int = 400
    """Training updates, each on one batch (count). 400 take about 2 minutes on 2 cores, however many images."""

    batch: int = 96
    """Images of one update, fewer where there are fewer (count); contrastive: two views of each."""

    learning_rate: float = 4e-3
    """Largest step size of AdamW, reached after a tenth of the training (per update); falls to 0 at its end."""

    temperature: float = 0.1
    """Contrastive: by what cosines are divided before the softmax; lower heeds the nearest others more (above 0)."""

    most_images: int = 20_000
    """Images trained on; of more, this many are drawn (count)."""

    def __post_init__(self) -> None:
        """Refuse values that make no sense, naming the setting."""
        self.check()

    def check(self) -> None:
        """Raise `SettingsError` for a value of another type or out of range."""
        _require(self.kind in KINDS, "kind", self.kind, "one of " + ", ".join(KINDS))
        for name, (low, high) in _RANGES.items():
            value = getattr(self, name)
            whole = isinstance(value, int) and not isinstance(value, bool)
            _require(whole and low <= value <= high, name, value, f"a whole number from {low} to {high}")
        for name, unit in (("side", 2**HALVINGS), ("width", GROUPS)):
            _require(getattr(self, name) % unit == 0, name, getattr(self, name), f"a multiple of {unit}")
        for name in ("learning_rate", "temperature"):
            value = getattr(self, name)
            number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
            _require(number and value > 0, name, value, "a number above 0")


def settings_from_json(entry: Mapping[str, Any]) -> EmbeddingSettings:
    """Read back settings written by `unalike.records.as_json`.

    Raises `SettingsError` if a setting is missing, unknown, or makes no sense.
    """
    names = {field.name for field in dataclasses.fields(EmbeddingSettings)}
    if set(entry) != names:
        raise SettingsError(
            f"settings differ in {', '.join(sorted(set(entry) ^ names))}. Give exactly those there are."
        )
    return EmbeddingSettings(**entry)


def _require(fits: bool, name: str, value: object, wanted: str) -> None:
    if not fits:
        raise SettingsError(f"{name} = {value!r}: give {wanted}.")
