"""The U-Net, the noise schedule, and where and how they compute. Both are plain diffusers objects."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch
from diffusers import DDPMScheduler, UNet2DModel

from unalike import devices
from unalike.errors import SettingsError
from unalike.generators.diffusion.settings import NORM_GROUPS, DiffusionSettings, Precision


def build_network(settings: DiffusionSettings, *, channels: int, height: int, width: int, seed: int) -> Any:
    """A `UNet2DModel` with ``channels`` in and out, initialised from ``seed``, on the CPU in float32.

    No attention: at 32 × 32 the lowest resolution already sees the whole image, and attention there costs a tenth
    of the time.

    Raises `SettingsError` if the down-sampling does not divide height and width.
    """
    levels = len(settings.channel_multipliers)
    factor = 2 ** (levels - 1)
    if height % factor or width % factor:
        larger = f"{-(-height // factor) * factor} × {-(-width // factor) * factor}"
        raise SettingsError(
            f"images of {height} × {width} pixels cannot be halved {levels - 1} times. Heights and widths "
            f"that are multiples of {factor} do fit: prepare the cohort at {larger}, or give fewer "
            "channel_multipliers."
        )
    # The global stream of torch is seeded for the initial weights alone, and left as it was.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return UNet2DModel(
            sample_size=(height, width),
            in_channels=channels,
            out_channels=channels,
            block_out_channels=tuple(settings.base_channels * m for m in settings.channel_multipliers),
            layers_per_block=settings.layers_per_block,
            down_block_types=("DownBlock2D",) * levels,
            up_block_types=("UpBlock2D",) * levels,
            add_attention=False,
            norm_num_groups=NORM_GROUPS,
        )


def build_scheduler(settings: DiffusionSettings) -> Any:
    """The `DDPMScheduler` of these settings: adds noise in training, removes it in sampling.

    Time steps are spaced "trailing", so that few-step sampling begins where training ends, at pure noise
    (Lin et al. 2024, table 2).
    """
    return DDPMScheduler(
        num_train_timesteps=settings.timesteps,
        beta_schedule=settings.schedule,
        prediction_type=settings.prediction,
        timestep_spacing="trailing",
        clip_sample=True,
    )


def place_network(network: Any, device: torch.device) -> Any:
    """Move the network to ``device`` in the memory layout that is fastest there.

    Measured on 2 AMD EPYC cores, 5 × 32 × 32, batch 16, bfloat16: 115 to 125 images/s contiguous, 107
    channels last (group norm has no quick path there). On CUDA, tensor cores want channels last.
    """
    return network.to(device, memory_format=torch.channels_last if device.type == "cuda" else torch.contiguous_format)


def resolve_precision(precision: Precision, device: torch.device) -> str:
    """``float32`` or ``bfloat16``: what ``precision`` means on ``device``."""
    if precision == "auto":
        return "bfloat16" if devices.has_bfloat16(device) else "float32"
    return precision


def compute_in(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    """Context in which the network computes in ``precision`` (``float32`` or ``bfloat16``)."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")
