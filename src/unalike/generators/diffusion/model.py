"""A trained (or half-trained) diffusion model as those see it who draw from it or ask for its loss; its files.

``model/`` is a folder of plain diffusers: ``unet/`` and ``scheduler/``, with ``vqvae/`` where latents are diffused
(`LDMPipeline`), else loadable by `DDPMPipeline`. Further weight averages lie beside it as ``unet-0.9999/``, and
``conditioner.safetensors`` where attributes condition the network.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DDPMPipeline, DDPMScheduler, LDMPipeline, UNet2DModel
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from unalike import devices
from unalike.devices import compute_in, resolve_precision
from unalike.errors import FolderError
from unalike.generators.data import PixelScale
from unalike.generators.diffusion.autoencoder import LatentCodec, open_codec
from unalike.generators.diffusion.conditions import Asked, Conditioner, Conditions, ask
from unalike.generators.diffusion.network import (
    Denoiser,
    fold_conditions,
    place_network,
)
from unalike.generators.settings import Precision
from unalike.records import MASK, Pixels

CONDITIONER = "conditioner.safetensors"


@dataclass(frozen=True)
class DiffusionModel:
    """A network with all that is needed to use it.

    What is diffused, x, has shape (B, C', h, w): the pixels of all channels but a mask that is asked for, in [−1, 1],
    or their latents.
    """

    network: Denoiser
    scheduler: Any
    conditions: Conditions
    codec: LatentCodec | None
    scale: PixelScale
    place: torch.device
    precision: str

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C', h, w) of what is diffused."""
        config = self.network.unet.config
        height, width = config.sample_size if isinstance(config.sample_size, Sequence) else (config.sample_size,) * 2
        return int(config.in_channels) - self.conditions.mask, int(height), int(width)

    def predict(self, x_t: torch.Tensor, t: torch.Tensor, asked: Asked | None) -> torch.Tensor:
        """What the network predicts, float32."""
        with compute_in(self.precision, self.place):
            return self.network(x_t, t, asked).float()  # type: ignore[no-any-return]

    @property
    def drawn(self) -> list[int]:
        """Positions of the channels that the network draws: all but a mask that it is given."""
        return drawn_channels(self.scale, self.conditions)

    def encode(self, images: Pixels) -> torch.Tensor:
        """x_0 of images (B, C, H, W) with all channels, on the model's device."""
        x_0 = torch.from_numpy(self.scale.to_unit(images)[:, self.drawn]).to(self.place)
        return x_0 if self.codec is None else self.codec.encode(x_0)

    def mask_of(self, images: Pixels) -> torch.Tensor | None:
        """The mask (B, 1, H, W) in [−1, 1] of images (B, C, H, W), if the network is given one."""
        if not self.conditions.mask:
            return None
        place = self.scale.channels.index(MASK)
        return torch.from_numpy(self.scale.to_unit(images)[:, place : place + 1]).to(self.place)

    def ask_nothing(self, images: Pixels) -> Asked | None:
        """What a network with conditions is told of images (B, C, H, W) when none is asked for; their mask stays."""
        if not (self.conditions.vector or self.conditions.mask):
            return None
        asked = ask(self.conditions, count=len(images), label=None, attributes={}).to(self.place)
        return dataclasses.replace(asked, mask=self.mask_of(images))

    def decode(self, x_0: torch.Tensor, mask: torch.Tensor | None = None) -> Pixels:
        """Pixels (B, C, H, W) with all channels of x_0, ``mask`` (B, 1, H, W) in its place."""
        x_0 = x_0 if self.codec is None else self.codec.decode(x_0)
        values = x_0.float().cpu().numpy()
        if mask is not None:
            values = np.insert(values, self.scale.channels.index(MASK), mask[:, 0].cpu().numpy(), axis=1)
        return self.scale.from_unit(values)


def drawn_channels(scale: PixelScale, conditions: Conditions) -> list[int]:
    """Positions of the channels that a network draws: all but a mask that it is given."""
    return [n for n, name in enumerate(scale.channels) if not (conditions.mask and name == MASK)]


def save_model(
    network: Denoiser,
    averages: Mapping[float, Mapping[str, torch.Tensor]],
    *,
    scheduler: Any,
    conditions: Conditions,
    codec: LatentCodec | None,
    place: Path,
) -> None:
    """Write the folder ``model/`` with the first of the weight averages as ``unet``; whole or not at all."""
    temporary = place.with_suffix(".partial")
    shutil.rmtree(temporary, ignore_errors=True)
    place_network(network, torch.device("cpu")).train(False)
    for index, (decay, average) in enumerate(averages.items()):
        network.load_state_dict({name: tensor.detach().cpu() for name, tensor in average.items()})
        unet, conditioner = fold_conditions(network, conditions)
        suffix = f"-{decay}" if index else ""
        if index:
            unet.save_pretrained(temporary / f"unet{suffix}", safe_serialization=True)
        elif codec is None:
            DDPMPipeline(unet=unet, scheduler=scheduler).save_pretrained(temporary, safe_serialization=True)
        else:
            pipeline = LDMPipeline(vqvae=codec.autoencoder.to("cpu"), unet=unet, scheduler=scheduler)
            pipeline.save_pretrained(temporary, safe_serialization=True)
        if conditioner is not None:
            weights = {name: tensor.contiguous() for name, tensor in conditioner.state_dict().items()}
            save_file(weights, temporary / CONDITIONER.replace(".", f"{suffix}."))
    shutil.rmtree(place, ignore_errors=True)
    temporary.rename(place)


def open_model(
    place: Path, *, content: Mapping[str, Any], device: str, precision: Precision, decay: float | None = None
) -> DiffusionModel:
    """The model in the folder ``place``; ``content`` is that of the run's header.

    ``decay`` picks a weight average (None: the one samples are drawn from). Raises `FolderError` if the model cannot
    be read or has no such average.
    """
    suffix = ""
    if decay is not None:
        there = [float(entry) for entry in content.get("ema_decays", [])]
        if decay not in there:
            raise FolderError(
                f"{place} has no weight average of decay {decay}. There are: {', '.join(map(str, there))}."
            )
        suffix = "" if decay == there[0] else f"-{decay}"
    conditions = Conditions.from_content(content.get("conditions"))
    try:
        unet = UNet2DModel.from_pretrained(
            place / f"unet{suffix}", use_safetensors=True, local_files_only=True, low_cpu_mem_usage=False
        )
        scheduler = DDPMScheduler.from_pretrained(place / "scheduler", local_files_only=True)
        conditioner = None
        if conditions.attributes:
            conditioner = Conditioner(conditions, unet.time_embedding.linear_2.out_features)
            conditioner.load_state_dict(load_file(place / CONDITIONER.replace(".", f"{suffix}.")))
        codec = open_codec(place / "vqvae") if (place / "vqvae").is_dir() else None
    except (OSError, ValueError, RuntimeError, json.JSONDecodeError, SafetensorError) as error:
        said = " ".join(str(error).split())[:200]
        raise FolderError(f"{place} cannot be read ({said}). Train the run again.") from error
    where = devices.pick_device(device)
    network: Denoiser = place_network(Denoiser(unet, conditioner), where).train(False)
    return DiffusionModel(
        network=network,
        scheduler=scheduler,
        conditions=conditions,
        codec=None if codec is None else codec.to(where),
        scale=PixelScale.from_content(content),
        place=where,
        precision=resolve_precision(precision, where),
    )
