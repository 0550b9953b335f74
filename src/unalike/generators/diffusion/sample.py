"""Sampling: Algorithm 2 of Ho et al. (2020), or DDIM (Song, Meng and Ermon 2021), which needs fewer steps.

Each sample has a `torch.Generator` of its own whose seed is the sample's number, for the first noise and,
under DDPM, for the noise of each step. The network always works on `GROUP` images, the last group being
filled up: the kernels of a CPU round differently for other batch shapes (seen: 5 of 160,000 pixels off by one
in float32), and so no batch size and no neighbour changes a sample by one bit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DDIMScheduler, DDPMScheduler, UNet2DModel
from diffusers.utils.torch_utils import randn_tensor

from unalike import devices, folders
from unalike.errors import FolderError, SettingsError
from unalike.generators.data import PixelScale
from unalike.generators.diffusion.network import compute_in, place_network, resolve_precision
from unalike.generators.diffusion.settings import SampleSettings
from unalike.records import Pixels

# Images the network works on at once. Part of what a sample is: changing it changes last bits.
GROUP = {"cpu": 8}  # elsewhere 64


class DiffusionSampler:
    """Draws from a trained network with a sampler of diffusers."""

    def __init__(
        self,
        network: Any,
        scheduler: Any,
        *,
        scale: PixelScale,
        settings: SampleSettings,
        place: torch.device,
    ) -> None:
        """``network`` is a `UNet2DModel`, ``scheduler`` a DDIM or DDPM one of diffusers."""
        timesteps = int(scheduler.config.num_train_timesteps)
        if timesteps % settings.steps:
            fits = [n for n in range(1, timesteps + 1) if timesteps % n == 0]
            near = sorted(sorted(fits, key=lambda n: abs(n - settings.steps))[:4])
            raise SettingsError(
                f"steps = {settings.steps} does not divide the {timesteps} time steps of the run. "
                f"Near it do: {', '.join(map(str, near))}."
            )
        self.network = place_network(network, place).train(False)
        self.scheduler, self.scale, self.settings, self.place = scheduler, scale, settings, place
        self.precision = resolve_precision(settings.precision, place)

    def draw(self, seeds: Sequence[int]) -> Pixels:
        """Pixels (len(seeds), C, H, W), one sample for each seed."""
        size = GROUP.get(self.place.type, 64)
        groups = [list(seeds[begin : begin + size]) for begin in range(0, len(seeds), size)]
        drawn = [self._denoise(group + group[-1:] * (size - len(group)))[: len(group)] for group in groups]
        return self.scale.from_unit(np.concatenate(drawn))

    @torch.inference_mode()
    def _denoise(self, seeds: Sequence[int]) -> Any:
        """Numbers in about [−1, 1], (len(seeds), C, H, W) float32."""
        # Generators of the CPU on any device: the same seed is the same noise everywhere.
        streams = [torch.Generator().manual_seed(seed) for seed in seeds]
        config = self.network.config
        shape = (len(seeds), config.in_channels, *config.sample_size)
        x_t = randn_tensor(shape, generator=streams, device=self.place)
        self.scheduler.set_timesteps(self.settings.steps)
        for t in self.scheduler.timesteps:
            with compute_in(self.precision, self.place):
                predicted = self.network(x_t, t).sample
            x_t = self.scheduler.step(predicted.float(), t, x_t, generator=streams).prev_sample
        return x_t.cpu().numpy()


def open_diffusion(run: Path, *, content: Mapping[str, Any], settings: SampleSettings, device: str) -> DiffusionSampler:
    """Sampler of the network in ``run``.

    Raises `SettingsError` if the number of sampling steps does not divide the run's time steps, and
    `FolderError` if the model cannot be read.
    """
    model = run / folders.MODEL
    kind = {"ddim": DDIMScheduler, "ddpm": DDPMScheduler}[settings.sampler]
    try:
        network = UNet2DModel.from_pretrained(
            model / "unet", use_safetensors=True, local_files_only=True, low_cpu_mem_usage=False
        )
        scheduler = kind.from_pretrained(model / "scheduler", local_files_only=True)
    except (OSError, ValueError) as error:
        raise FolderError(f"{model} cannot be read ({error}). Train the run again.") from error
    place = devices.pick_device(device)
    scale = PixelScale.from_content(content)
    return DiffusionSampler(network, scheduler, scale=scale, settings=settings, place=place)
