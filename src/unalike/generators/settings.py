"""How a generator's settings are given: frozen dataclasses; an unknown name is refused, never ignored."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from unalike.errors import SettingsError

Settings = TypeVar("Settings")
Precision = Literal["auto", "float32", "bfloat16"]


@dataclass(frozen=True)
class DrawSettings:
    """How samples are drawn, whatever the generator."""

    batch_size: int = 64
    """Samples drawn and kept together, so that an interrupted drawing loses at most these (images). Changes
    no pixel."""

    def __post_init__(self) -> None:
        """Refuse an empty batch."""
        require(self.batch_size >= 1, "batch_size", self.batch_size, "at least 1 image")


@dataclass(frozen=True)
class LoopSettings:
    """What every training has, whatever is learned and how."""

    steps: int = 800
    """Training updates, each on one batch (count)."""

    batch_size: int = 16
    """Images of one update, over all processes and their accumulated parts (count)."""

    accumulate: int = 1
    """Parts that a batch is worked on in, one after the other: the same update in less memory (count)."""

    learning_rate: float = 2e-3
    """Largest step size of AdamW, reached after the warm-up (per update)."""

    ema_decays: tuple[float, ...] = (0.995,)
    """Shares of the weight averages kept at each update (0 to below 1); (1 + n) / (10 + n) at update n while that is
    less. Samples are drawn from the first, or from the one that watching finds best; all are kept."""

    precision: Precision = "auto"
    """Number format inside the network: auto takes bfloat16 where the processor has it in hardware. Weights
    and optimizer are always float32."""

    compile: bool = False
    """Compile the network with torch.compile: minutes at the start, faster afterwards where a GPU is at hand."""

    checkpoint_every: float = 120.0
    """Time between checkpoints; 0 writes one after each update (seconds)."""

    keep: int = 2
    """Newest checkpoints that stay (count)."""

    log_every: int = 20
    """Updates between two lines of log.jsonl, and between two checks that the loss is finite (count)."""

    def __post_init__(self) -> None:
        """Refuse values that make no sense, naming the setting."""
        for name in ("steps", "batch_size", "accumulate", "log_every", "keep"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        require(0 < self.learning_rate < math.inf, "learning_rate", self.learning_rate, "a number above 0")
        require(0 <= self.checkpoint_every < math.inf, "checkpoint_every", self.checkpoint_every, "0 or more")
        decays = self.ema_decays
        fits = len(decays) == len(set(decays)) > 0 and all(0 <= decay < 1 for decay in decays)
        require(fits, "ema_decays", decays, "at least one share from 0 to below 1, each once")
        fits = self.batch_size % self.accumulate == 0
        require(fits, "accumulate", self.accumulate, f"a number that divides batch_size ({self.batch_size})")


@dataclass(frozen=True)
class TrainingSettings(LoopSettings):
    """How one network is trained by AdamW, whatever it is."""

    warmup: int = 50
    """Updates over which the learning rate rises from 0 (count)."""

    decay: Literal["linear", "constant"] = "linear"
    """What the learning rate does after the warm-up: fall to 0 at the last update, or stay."""

    weight_decay: float = 0.01
    """Decoupled weight decay of AdamW (share of a weight, times the learning rate, per update)."""

    gradient_clip: float = 1.0
    """Largest norm of the gradient over all weights; a longer one is shortened (loss per unit of weight)."""

    def __post_init__(self) -> None:
        """Refuse values that make no sense, naming the setting."""
        super().__post_init__()
        require(0 < self.gradient_clip < math.inf, "gradient_clip", self.gradient_clip, "a number above 0")
        for name in ("warmup", "weight_decay"):
            require(0 <= getattr(self, name) < math.inf, name, getattr(self, name), "0 or more")


def require(fits: bool, name: str, value: object, wanted: str) -> None:
    """Raise a `SettingsError` that names the setting unless it ``fits``."""
    if not fits:
        raise SettingsError(f"{name} = {value!r}: give {wanted}.")


def resolve_settings(kind: type[Settings], given: Settings | Mapping[str, Any] | None) -> Settings:
    """Settings of this ``kind`` from an instance, a mapping as TOML or JSON gives it, or None for defaults.

    Raises `SettingsError` for an unknown name, a value of another type, or one out of range.
    """
    if given is None:
        return kind()
    if isinstance(given, kind):
        return given
    if not isinstance(given, Mapping):
        raise SettingsError(f"{type(given).__name__} are not settings of this generator. Give {kind.__name__}.")
    types = get_type_hints(kind)
    names = [entry.name for entry in dataclasses.fields(kind)]  # type: ignore[arg-type]
    unknown = sorted(set(given) - set(names))
    if unknown:
        raise SettingsError(f"unknown setting {', '.join(unknown)}. There are: {', '.join(names)}.")
    return kind(**{name: _fitted(name, value, types[name]) for name, value in given.items()})


def _fitted(name: str, value: Any, wanted: Any) -> Any:
    """``value`` as the annotated type: text stays text, 3 may be a float, a list may be a tuple."""
    if get_origin(wanted) is Literal:
        require(value in get_args(wanted), name, value, "one of " + ", ".join(map(str, get_args(wanted))))
        return value
    if get_origin(wanted) is tuple:
        require(isinstance(value, list | tuple), name, value, "a list")
        return tuple(_fitted(name, entry, get_args(wanted)[0]) for entry in value)
    if wanted in (bool, str):
        require(isinstance(value, wanted), name, value, "true or false" if wanted is bool else "text")
        return value
    if wanted is float:
        number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        require(number, name, value, "a number")
        return float(value)
    require(isinstance(value, int) and not isinstance(value, bool), name, value, "a whole number")
    return value
