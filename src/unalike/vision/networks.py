"""Eight classification networks by torchvision's names, for any number of channels and classes.

They are the networks of Nafi et al. 2024, table 2. torch and torchvision are imported only when a network is built.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from unalike.errors import FolderError, InputError, SettingsError
from unalike.seeds import seed_for
from unalike.vision.names import NETWORKS

if TYPE_CHECKING:
    import torch
    from torch import nn

SUFFIXES = (".pth", ".pt", ".safetensors")  # of files of weights
IMAGENET_MEAN = (0.485, 0.456, 0.406)  # of red, green and blue, black being 0 and white 1
IMAGENET_DEVIATION = (0.229, 0.224, 0.225)

# Found by trying every side: one less and pooling leaves nothing.
_SMALLEST = {
    "resnet18": 1,
    "resnet50": 1,
    "vgg16": 32,
    "vgg19": 32,
    "alexnet": 63,
    "densenet121": 29,
    "mobilenet_v2": 1,
    "googlenet": 15,
}
# Additional heads of GoogLeNet that help in its training; we build it without them.
_SIDE_HEADS = ("aux1", "aux2")
# "norm.1" and the like: how torchvision's file for DenseNet names what the network calls "norm1".
_FORMER = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12])\.")


def build_network(name: str, *, classes: int, channels: int, seed: int) -> nn.Module:
    """A network for images (n, channels, H, W) that gives scores (n, classes), with random weights, ready to train.

    ``name`` is one of `NETWORKS`; H and W are `smallest_side` or more. Weights are drawn as torchvision draws them,
    from the stream "weights of NAME" of ``seed`` alone; torch's global stream stays as it was. For another number of
    channels C than three the first convolution is a new one, with torchvision's standard deviation times √(3/C), so
    that what it gives varies as much. GoogLeNet comes without the two heads that only help to train it.

    A batch of one image is fine when the network predicts. In training batch normalization needs two or more, so drop
    a last batch of one. Raises `SettingsError` for an unknown name, and fewer than one class or channel.
    """
    _check_name(name)
    if classes < 1 or channels < 1:
        raise SettingsError(f"{name} for {classes} classes and {channels} channels: give 1 or more of each.")
    import torch
    from torchvision import models

    options = {"aux_logits": False, "init_weights": True} if name == "googlenet" else {}
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed_for(seed, f"weights of {name}"))
        network: nn.Module = getattr(models, name)(weights=None, num_classes=classes, **options)
        if channels != 3:
            _change_channels(network, channels)
    return network


def smallest_side(name: str) -> int:
    """The least height and width (pixels) of images that a network of this name takes, in training and after it.

    Raises `SettingsError` for an unknown name.
    """
    _check_name(name)
    return _SMALLEST[name]


def imagenet_scaling(name: str, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation, each (channels,), that torchvision's ImageNet weights expect images to be scaled with.

    Images are 0 (black) to 1 (white) before; the mean is taken away, then the deviation divided by. For another number
    of channels than three they are the averages over the colours. GoogLeNet's were trained on −1 to 1: torchvision
    undoes the usual scaling inside that network, `build_network` builds it without this.

    Raises `SettingsError` for an unknown name.
    """
    _check_name(name)
    if name == "googlenet":
        return (0.5,) * channels, (0.5,) * channels
    if channels == 3:
        return IMAGENET_MEAN, IMAGENET_DEVIATION
    return (sum(IMAGENET_MEAN) / 3,) * channels, (sum(IMAGENET_DEVIATION) / 3,) * channels


def load_imagenet(network: nn.Module, name: str, folder: str | Path) -> Path:
    """Give a network of `build_network` the ImageNet weights that lie in ``folder``, all but those of its head.

    The file is the one that torchvision names so: ``resnet18-f37072fd.pth``, ``resnet18.safetensors`` … For C channels
    other than three the first convolution gets the mean over the three colours times 3/C for each: an image of one
    channel gives what it gives repeated in three. Scale images as `imagenet_scaling` says. Gives the file's path.

    Raises `SettingsError` for an unknown name, `FolderError` if there is no such folder or file or there are several,
    and what `read_weights` and `load_weights` raise.
    """
    from unalike.vision.weights import load_weights

    path = find_imagenet(name, folder)
    weights = read_published(path)
    first = f"{first_convolution(network)}.weight"
    _spread_colours(weights, first, dict(network.named_parameters())[first].shape[1])
    load_weights(network, weights, path=path, skip=(find_head(network),))
    return path


def read_published(path: str | Path) -> dict[str, torch.Tensor]:
    """Weights from a file as torchvision publishes them, by the names that networks of `build_network` have.

    Raises what `read_weights` raises.
    """
    from unalike.vision.weights import plain_names, read_weights

    weights = {_FORMER.sub(r"\1\2.", key): tensor for key, tensor in plain_names(read_weights(path)).items()}
    return {key: tensor for key, tensor in weights.items() if key.partition(".")[0] not in _SIDE_HEADS}


def find_imagenet(name: str, folder: str | Path) -> Path:
    """The file of weights for the network of this name in a folder, named as torchvision names it.

    Raises `SettingsError` for an unknown name, `FolderError` if there is no such folder or file, or there are several.
    """
    _check_name(name)
    folder = Path(folder)
    if not folder.is_dir():
        raise FolderError(f"{folder} is no folder. Give the folder that holds torchvision's weights ({name}-….pth).")
    named = re.compile(rf"{name}(-.*)?")
    found = sorted(file for file in folder.iterdir() if file.suffix in SUFFIXES and named.fullmatch(file.stem))
    if not found:
        raise FolderError(f"{folder} holds no weights for {name}. Put torchvision's file {name}-….pth there.")
    if len(found) > 1:
        listed = ", ".join(file.name for file in found)
        raise FolderError(f"{folder} holds several weights for {name} ({listed}). Leave one of them there.")
    return found[0]


def find_head(network: nn.Module) -> str:
    """Name of the layer that turns features into scores, the last linear one. Raises `InputError` if there is none."""
    from torch import nn

    names: list[str] = [name for name, layer in network.named_modules() if isinstance(layer, nn.Linear)]
    if not names:
        raise InputError("the network has no linear layer. Build it with build_network.")
    return names[-1]


def first_convolution(network: nn.Module) -> str:
    """Name of the layer that sees the image. Raises `InputError` if there is none."""
    from torch import nn

    names: list[str] = [name for name, layer in network.named_modules() if isinstance(layer, nn.Conv2d)]
    if not names:
        raise InputError("the network has no convolution. Build it with build_network.")
    return names[0]


def _check_name(name: str) -> None:
    if name not in NETWORKS:
        raise SettingsError(f"there is no network {name}. Choose one of {', '.join(NETWORKS)}.")


def _change_channels(network: nn.Module, channels: int) -> None:
    """Another first convolution, for so many channels, drawn from torch's global stream."""
    import torch
    from torch import nn

    layer = network.get_submodule(first_convolution(network))
    assert isinstance(layer, nn.Conv2d)  # noqa: S101 - for mypy
    with torch.no_grad():
        drawn = torch.randn(layer.out_channels, channels, *layer.kernel_size)
        layer.weight = nn.Parameter(drawn * layer.weight.std() * (layer.in_channels / channels) ** 0.5)
    layer.in_channels = channels


def _spread_colours(weights: dict[str, torch.Tensor], key: str, channels: int) -> None:
    """Weights (O, 3, h, w) of the first convolution, in place, for another number of channels."""
    colours = weights.get(key)
    if channels != 3 and colours is not None and colours.ndim == 4 and colours.shape[1] == 3:
        weights[key] = (colours.sum(dim=1, keepdim=True) / channels).repeat(1, channels, 1, 1)
