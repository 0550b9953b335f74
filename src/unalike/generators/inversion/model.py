"""A base with what was learned on it, as those see it who draw from it; its files.

``model/`` holds each token as ``NAME.safetensors`` (diffusers) and ``NAME.pt`` (AUTOMATIC1111), or the additions of
LoRA as ``pytorch_lora_weights.safetensors``. Further averages lie in folders of their decay. The base is not copied.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError

from unalike.errors import FolderError, InputError
from unalike.generators.data import PixelScale
from unalike.generators.inversion.base import BaseModel, libraries_silent, open_base
from unalike.generators.inversion.concept import Additions, Concept
from unalike.generators.inversion.embedding import Embedding, check_fits, read_embedding, write_embedding
from unalike.generators.inversion.pixels import ChannelMapping, choose_mapping, resize_to
from unalike.records import Pixels


@dataclass(frozen=True)
class InversionModel:
    """A base and the vectors of learned tokens.

    ``prompts`` maps the prompts of training to their numbers of images, ``labels`` classes to these prompts. Samples
    are drawn at ``side`` pixels and brought to ``size`` (height, width), the cohort's.
    """

    base: BaseModel
    learned: Mapping[str, torch.Tensor]
    prompts: Mapping[str, int]
    labels: Mapping[str, str]
    scale: PixelScale
    mapping: ChannelMapping
    size: tuple[int, int]
    side: int

    @property
    def shape(self) -> tuple[int, int, int]:
        """(c, h, w) of the latents."""
        return self.base.latent_shape(self.side, self.side)

    def encode(self, images: Pixels) -> torch.Tensor:
        """Latents of images (B, C, H, W) in the cohort's channels, on the device."""
        rgb = resize_to(self.mapping.to_rgb(self.scale.to_unit(images)), self.side, self.side)
        return self.base.encode(torch.from_numpy(rgb).to(self.base.place)).float()

    def decode(self, latents: torch.Tensor) -> Pixels:
        """Pixels (B, C, H, W) in the cohort's channels of latents."""
        rgb = self.base.decode(latents).float().cpu().numpy().clip(-1, 1)
        return self.scale.from_unit(self.mapping.from_rgb(resize_to(rgb, *self.size)))


def save_model(
    network: Concept | Additions,
    averages: Mapping[float, Mapping[str, torch.Tensor]],
    *,
    cohort: str,
    steps: int,
    place: Path,
) -> None:
    """Write the folder ``model/`` with the first of the averages as the model; whole or not at all."""
    temporary = place.with_suffix(".partial")
    shutil.rmtree(temporary, ignore_errors=True)
    weights = dict(network.named_parameters())
    for index, (decay, average) in enumerate(averages.items()):
        room = temporary / str(decay) if index else temporary
        room.mkdir(parents=True)
        with torch.no_grad():
            for name, tensor in average.items():
                weights[name].copy_(tensor)
        if isinstance(network, Additions):
            _save_additions(network, room)
            continue
        for token, vectors in network.learned().items():
            embedding = Embedding(
                token=token,
                vectors=vectors.detach().float().cpu().numpy(),
                base=network.base.identity,
                base_name=network.base.name,
                steps=steps,
                cohort=cohort,
            )
            for suffix in (".safetensors", ".pt"):
                write_embedding(embedding, room / f"{token.strip('<>')}{suffix}")
    shutil.rmtree(place, ignore_errors=True)
    temporary.rename(place)


def _save_additions(network: Additions, room: Path) -> None:
    with libraries_silent():
        _write_additions(network, room)


def _write_additions(network: Additions, room: Path) -> None:
    from diffusers import StableDiffusionPipeline
    from peft.utils import get_peft_model_state_dict

    layers = {name: tensor.detach().cpu() for name, tensor in get_peft_model_state_dict(network.unet).items()}
    StableDiffusionPipeline.save_lora_weights(room, unet_lora_layers=layers, safe_serialization=True)


def open_model(
    place: Path,
    *,
    content: Mapping[str, Any],
    device: str,
    precision: str,
    base: str = "",
    config: str = "",
    decay: float | None = None,
    embeddings: Sequence[str] = (),
) -> InversionModel:
    """The base and what is in the folder ``place``; ``content`` is that of the run's header.

    ``base`` and ``config`` say where the base and its layout are now, ``decay`` picks an average, ``embeddings`` are
    files of further concepts. Raises `FolderError` if base or model cannot be read, there is no such average, or the
    base is another one, and `InputError` for an embedding that does not fit.
    """
    room = place
    if decay is not None:
        there = [float(entry) for entry in content.get("ema_decays", [])]
        if decay not in there:
            raise FolderError(f"{place} has no average of decay {decay}. There are: {', '.join(map(str, there))}.")
        room = place if decay == there[0] else place / str(decay)
    try:
        layout = config or str(content.get("base_config", "")) or None
        opened = open_base(base or str(content["base"]), device=device, precision=precision, config=layout)
    except FolderError as error:
        if base:
            raise
        raise FolderError(f"{error} If the base of this run was moved, say where it is with --base.") from error
    if opened.identity != content["base_identity"]:
        raise FolderError(f"{base or content['base']} is not the base that {place.parent} was trained on. Give --base.")
    learned: dict[str, torch.Tensor] = {}
    tokens = list(content["tokens"]) if content["method"] == "embedding" else []
    for token in tokens:
        found = read_embedding(room / f"{token.strip('<>')}.safetensors")
        learned[token] = _fitted(found, opened)
    if content["method"] == "lora":
        try:
            opened.unet.load_lora_adapter(_read_additions(room), prefix="unet")
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
            said = " ".join(str(error).split())[:200]
            raise FolderError(f"{room} cannot be read ({said}). Train the run again.") from error
    for file in embeddings:
        found = read_embedding(Path(file))
        if found.token in learned:
            raise InputError(f"{file} is another {found.token}. Rename one of them.")
        learned[found.token] = _fitted(found, opened)
    scale = PixelScale.from_content(content)
    labels = list(content["label_counts"])
    prompts = list(content["prompts"])
    counts = [int(content["label_counts"][label]) for label in labels] or [1]
    return InversionModel(
        base=opened,
        learned=learned,
        prompts=dict(zip(prompts, counts, strict=True)),
        labels=dict(zip(labels, prompts, strict=True)) if labels else {},
        scale=scale,
        mapping=choose_mapping(scale.channels, scale.levels),
        size=(int(content["height"]), int(content["width"])),
        side=int(content["resolution"]),
    )


def _fitted(embedding: Embedding, base: BaseModel) -> torch.Tensor:
    check_fits(embedding, dimension=base.dimension, base=base.identity, room=base.room)
    return torch.from_numpy(np.array(embedding.vectors, np.float32)).to(base.place)


def _read_additions(room: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(room / "pytorch_lora_weights.safetensors")
