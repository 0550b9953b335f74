"""A trained (or half-trained) generator as those see it who draw from it; its files.

``model/`` holds ``generator.safetensors`` and ``stylegan.json`` (shape, classes); further weight averages lie beside as
``generator-0.9999.safetensors``. The discriminator, which has seen patients and draws nothing, stays in the run's
checkpoints.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from unalike import devices, folders
from unalike.devices import compute_in, resolve_precision
from unalike.errors import FolderError
from unalike.generators.data import PixelScale
from unalike.generators.settings import Precision
from unalike.generators.stylegan.network import Generator, NetworkShape
from unalike.records import Pixels
from unalike.seeds import generator_for

DESCRIPTION = "stylegan.json"
WEIGHTS = "generator.safetensors"
CENTRE_DRAWS = 4096  # latents whose mean style is the centre of truncation
CENTRE = "centre"


@dataclass(frozen=True)
class StyleganModel:
    """A generator with all that is needed to use it. ``labels`` names its classes, if it has any."""

    network: Generator
    labels: tuple[str, ...]
    scale: PixelScale
    place: torch.device
    precision: str

    @property
    def shape(self) -> NetworkShape:
        """What the network is made of."""
        return self.network.shape

    def one_hot(self, labels: Sequence[str]) -> torch.Tensor | None:
        """(n, classes) of these classes, on the device; None where there are none."""
        if not self.labels:
            return None
        return one_hot([self.labels.index(label) for label in labels], len(self.labels)).to(self.place)

    def centres(self) -> torch.Tensor:
        """The mean style (classes or 1, latent), over `CENTRE_DRAWS` latents that are always the same."""
        z = torch.from_numpy(generator_for(0, CENTRE).standard_normal((CENTRE_DRAWS, self.shape.latent), np.float32))
        means = []
        for index in range(max(1, len(self.labels))):
            label = one_hot([index], len(self.labels)).to(self.place) if self.labels else None
            parts = [
                self.network.mapping(part.to(self.place), None if label is None else label.expand(len(part), -1))
                for part in torch.split(z, 512)
            ]
            means.append(torch.cat(parts).mean(dim=0))
        return torch.stack(means)

    def synthesize(self, ws: torch.Tensor, noise: torch.Tensor | None) -> torch.Tensor:
        """Images (B, C, H, W), float32, of styles (B, layers, latent); see `Generator.synthesize`."""
        with compute_in(self.precision, self.place):
            return self.network.synthesize(ws, noise)

    def decode(self, images: torch.Tensor) -> Pixels:
        """Pixels (B, C, H, W) of what the network draws."""
        return self.scale.from_unit(images.detach().float().cpu().numpy())

    def encode(self, images: Pixels) -> torch.Tensor:
        """What the network would draw of these pixels (B, C, H, W): numbers in [−1, 1] on the device."""
        return torch.from_numpy(self.scale.to_unit(images)).to(self.place)


def one_hot(indices: Sequence[int], classes: int) -> torch.Tensor:
    """(n, classes), float32."""
    rows = np.zeros((len(indices), classes), np.float32)
    rows[np.arange(len(indices)), list(indices)] = 1
    return torch.from_numpy(rows)


def save_model(
    averages: Mapping[float, Mapping[str, torch.Tensor]], *, shape: NetworkShape, labels: Sequence[str], place: Path
) -> None:
    """Write the folder ``model/`` with the first of the weight averages as the model; whole or not at all."""
    temporary = place.with_suffix(".partial")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    for index, (decay, average) in enumerate(averages.items()):
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in average.items()}
        save_file(tensors, temporary / _weights(decay if index else None))
    folders.write_json(temporary / DESCRIPTION, {"shape": dataclasses.asdict(shape), "labels": list(labels)})
    shutil.rmtree(place, ignore_errors=True)
    temporary.rename(place)


def _weights(decay: float | None) -> str:
    return WEIGHTS if decay is None else WEIGHTS.replace(".", f"-{decay}.", 1)


def load_generator(place: str | Path, *, decay: float | None = None) -> Generator:
    """The generator in the folder ``place`` (a run's ``model/``), on the CPU, for inference.

    ``decay`` picks a further weight average. Raises `FolderError` if it cannot be read.
    """
    place = Path(place)
    try:
        shape = _read_shape(folders.read_json(place / DESCRIPTION)["shape"])
        with torch.device("meta"):
            network = Generator(shape)
        network.load_state_dict(load_file(place / _weights(decay)), assign=True)
    except (OSError, KeyError, TypeError, ValueError, OverflowError, RuntimeError, SafetensorError) as error:
        said = " ".join(str(error).split())[:200]
        raise FolderError(f"{place} cannot be read as a StyleGAN ({said}). Train the run again.") from error
    return network.train(False)


def _read_shape(entry: Mapping[str, Any]) -> NetworkShape:
    height, width = entry["base"]
    features = tuple(int(n) for n in entry["features"])
    numbers = {name: int(entry[name]) for name in ("channels", "latent", "mapping_layers", "classes")}
    sides = (height, width, *features, numbers["channels"], numbers["latent"])
    depths = (numbers["mapping_layers"], numbers["classes"])
    if not (0 < len(features) <= 16 and all(0 < n <= 2**14 for n in sides) and all(0 <= n <= 2**14 for n in depths)):
        raise ValueError("its shape makes no sense")
    return NetworkShape(base=(int(height), int(width)), features=features, **numbers)


def open_model(
    place: Path, *, content: Mapping[str, Any], device: str, precision: Precision, decay: float | None = None
) -> StyleganModel:
    """The model in the folder ``place``; ``content`` is that of the run's header.

    ``decay`` picks a weight average (None: the one samples are drawn from). Raises `FolderError` if the model cannot
    be read or has no such average.
    """
    if decay is not None:
        there = [float(entry) for entry in content.get("ema_decays", [])]
        if decay not in there:
            raise FolderError(
                f"{place} has no weight average of decay {decay}. There are: {', '.join(map(str, there))}."
            )
        decay = None if decay == there[0] else decay
    where = devices.pick_device(device)
    network = load_generator(place, decay=decay).to(where)
    return StyleganModel(
        network=network,
        labels=tuple(content.get("label_counts", {})),
        scale=PixelScale.from_content(content),
        place=where,
        precision=resolve_precision(precision, where),
    )
