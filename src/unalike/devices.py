"""Which processor torch works on, and what it can do."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch

from unalike.errors import SettingsError


def pick_device(name: str = "auto") -> torch.device:
    """Device for ``name``: ``auto`` (CUDA if there is one, else CPU), ``cpu``, ``cuda`` or ``cuda:1``."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise SettingsError(f"--device {name} is unknown. Use auto, cpu, cuda or cuda:N.") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise SettingsError(f"--device {name}: torch sees no CUDA device here. Use --device cpu.")
    return device


def has_bfloat16(device: torch.device) -> bool:
    """Whether matrix products in bfloat16 run in hardware (and are worth it) on ``device``."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def resolve_precision(precision: str, device: torch.device) -> str:
    """``float32`` or ``bfloat16``: what ``precision`` (one of these, or ``auto``) means on ``device``."""
    if precision == "auto":
        return "bfloat16" if has_bfloat16(device) else "float32"
    return precision


def compute_in(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    """Context in which the network computes in ``precision`` (``float32`` or ``bfloat16``)."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")
