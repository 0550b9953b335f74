"""How a generator's settings are given: frozen dataclasses; an unknown name is refused, never ignored."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from unalike.errors import SettingsError

Settings = TypeVar("Settings")


@dataclass(frozen=True)
class DrawSettings:
    """How samples are drawn, whatever the generator."""

    batch_size: int = 64
    """Samples drawn and kept together, so that an interrupted drawing loses at most these (images). Changes
    no pixel."""

    def __post_init__(self) -> None:
        """Refuse an empty batch."""
        require(self.batch_size >= 1, "batch_size", self.batch_size, "at least 1 image")


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
        require(isinstance(value, list | tuple) and len(value) > 0, name, value, "a list of whole numbers")
        return tuple(_fitted(name, entry, get_args(wanted)[0]) for entry in value)
    if wanted is float:
        number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        require(number, name, value, "a number")
        return float(value)
    require(isinstance(value, int) and not isinstance(value, bool), name, value, "a whole number")
    return value
