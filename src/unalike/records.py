"""Small frozen dataclasses that travel between rooms. No behaviour beyond turning into JSON."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

MASK = "mask"  # the channel whose pixels are classes, not brightness; never compared unless asked for
IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]
TextArray = npt.NDArray[np.str_]
Pixels = npt.NDArray[Any]  # uint8 or uint16 images; each function says in which shape


@dataclass(frozen=True)
class Estimate:
    """A number that carries its doubt.

    ``low`` and ``high`` bound the ``confidence`` interval; ``n`` counts the independent units it rests on
    (subjects for real images, draws for synthetic ones); ``method`` names how the interval was made.
    An undefined value is NaN here and ``null`` in JSON.
    """

    value: float
    low: float
    high: float
    n: int
    method: str
    confidence: float = 0.95

    def __str__(self) -> str:
        """Value and interval as a table shows them."""
        if math.isnan(self.value):
            return "undefined"
        if math.isnan(self.low):
            return f"{self.value:.3f}"
        return f"{self.value:.3f} ({self.low:.3f} to {self.high:.3f})"


def as_json(value: Any) -> Any:
    """Turn dataclasses, paths, arrays and non-finite floats into what ``json`` can write.

    NaN and infinities become ``None``: a report never shows "nan".
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: as_json(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): as_json(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(entry) for entry in value]
    if isinstance(value, np.ndarray):
        return as_json(value.tolist())
    if isinstance(value, np.generic):
        return as_json(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Path):
        return str(value)
    return value


def estimate_from_json(entry: Mapping[str, Any]) -> Estimate:
    """Read back an `Estimate` written by `as_json`."""
    numbers = {key: math.nan if entry[key] is None else float(entry[key]) for key in ("value", "low", "high")}
    return Estimate(**numbers, n=int(entry["n"]), method=str(entry["method"]), confidence=float(entry["confidence"]))
