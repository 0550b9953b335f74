"""The eight networks are torchvision's, train a step, and take torchvision's files of weights."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from unalike.errors import FolderError, InputError, SettingsError
from unalike.vision.names import NETWORKS
from unalike.vision.networks import (
    IMAGENET_DEVIATION,
    IMAGENET_MEAN,
    build_network,
    find_head,
    find_imagenet,
    first_convolution,
    imagenet_scaling,
    load_imagenet,
    smallest_side,
)

SMALL = ("resnet18", "densenet121", "mobilenet_v2", "googlenet")  # others have more than 10 million numbers


def draw(name: str, count: int = 2, channels: int = 3) -> torch.Tensor:
    side = max(33, smallest_side(name))
    return torch.rand(count, channels, side, side, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", NETWORKS)
def test_numbers_of_parameters_are_those_that_torchvision_publishes(name: str) -> None:
    from torchvision.models import get_model_weights

    with torch.device("meta"):
        network = build_network(name, classes=1000, channels=3, seed=0)
    published = next(iter(get_model_weights(name))).meta["num_params"]
    assert sum(parameter.numel() for parameter in network.parameters()) == published


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_trains_a_step_at_its_smallest_side_and_predicts_one_image(name: str) -> None:
    side = smallest_side(name)
    network = build_network(name, classes=4, channels=1, seed=0)
    images = torch.rand(2, 1, side, side, generator=torch.Generator().manual_seed(0))
    first = network.get_submodule(first_convolution(network)).weight
    before = first.detach().clone()
    loss = nn.functional.cross_entropy(network.train(True)(images), torch.tensor([0, 3]))
    loss.backward()
    torch.optim.SGD(network.parameters(), lr=0.1).step()
    assert torch.isfinite(loss)
    assert network.get_submodule(find_head(network)).out_features == 4
    assert first.shape[1] == 1
    # At one pixel batch normalization of two images may leave nothing to learn from; the head learns all the same.
    assert side < 16 or not torch.equal(first, before)
    with torch.no_grad():
        assert network.train(False)(images[:1]).shape == (1, 4)


@pytest.mark.parametrize("name", [name for name in NETWORKS if smallest_side(name) > 1])
def test_one_pixel_less_is_too_small(name: str) -> None:
    side = smallest_side(name) - 1
    with torch.device("meta"):
        network = build_network(name, classes=2, channels=3, seed=0).train(False)
    with pytest.raises((RuntimeError, ValueError)):
        network(torch.zeros(1, 3, side, side, device="meta"))
    assert network(torch.zeros(1, 3, side + 1, side + 1, device="meta")).shape == (1, 2)


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_weights_are_drawn_from_the_seed_alone(channels: int) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = build_network("resnet18", classes=2, channels=channels, seed=0).state_dict()
    assert torch.equal(torch.rand(3), expected)
    again = build_network("resnet18", classes=2, channels=channels, seed=0).state_dict()
    other = build_network("resnet18", classes=2, channels=channels, seed=1).state_dict()
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["conv1.weight"], other["conv1.weight"])
    assert not torch.equal(first["fc.weight"], other["fc.weight"])


@pytest.mark.parametrize("name", ["resnet18", "densenet121"])
def test_what_the_first_convolution_gives_varies_as_much_with_any_number_of_channels(name: str) -> None:
    spread = []
    for channels in (1, 3, 7):
        network = build_network(name, classes=2, channels=channels, seed=0)
        layer = network.get_submodule(first_convolution(network))
        noise = torch.randn(8, channels, 64, 64, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            spread.append(float(layer(noise).std()))
    assert spread == pytest.approx([spread[1]] * 3, rel=0.1)


@pytest.mark.parametrize("name", SMALL)
def test_a_network_is_saved_and_loaded_as_safetensors(name: str, tmp_path: Path) -> None:
    network = build_network(name, classes=3, channels=2, seed=0).train(False)
    save_file(network.state_dict(), tmp_path / "network.safetensors")
    other = build_network(name, classes=3, channels=2, seed=1).train(False)
    images = draw(name, channels=2)
    with torch.no_grad():
        assert not torch.equal(other(images), network(images))
        other.load_state_dict(load_file(tmp_path / "network.safetensors"))
        assert torch.equal(other(images), network(images))


def published(name: str, **options: Any) -> nn.Module:
    """torchvision's own network of 1000 classes, with numbers that batch normalization may have learned."""
    from torchvision import models

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        network: nn.Module = getattr(models, name)(weights=None, **options)
        for key, tensor in network.state_dict().items():
            if key.endswith(("running_mean", "running_var")):
                tensor.copy_(torch.rand_like(tensor) + 0.1)
    return network.train(False)


@pytest.mark.parametrize("name", SMALL)
def test_weights_in_torchvisions_file_give_torchvisions_features(name: str, tmp_path: Path) -> None:
    options = {"init_weights": False, "transform_input": True} if name == "googlenet" else {}
    reference = published(name, **options)
    torch.save(reference.state_dict(), tmp_path / f"{name}-0123abcd.pth")
    network = build_network(name, classes=5, channels=3, seed=0).train(False)
    drawn = network.get_submodule(find_head(network)).weight.clone()
    assert load_imagenet(network, name, tmp_path) == tmp_path / f"{name}-0123abcd.pth"
    assert torch.equal(network.get_submodule(find_head(network)).weight, drawn)
    for each in (network, reference):
        parent, _, last = find_head(each).rpartition(".")
        setattr(each.get_submodule(parent), last, nn.Identity())
    images = draw(name)
    mean, deviation = (torch.tensor(values)[:, None, None] for values in imagenet_scaling(name, 3))
    usual, spread = (torch.tensor(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_DEVIATION))
    with torch.no_grad():
        expected = reference((images - usual) / spread)  # torchvision's GoogLeNet scales anew inside
        found = network((images - mean) / deviation)
    assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()


def test_densenets_file_with_its_former_names_is_read(tmp_path: Path) -> None:
    weights = build_network("densenet121", classes=1000, channels=3, seed=1).state_dict()
    former = {
        key.replace("norm1.", "norm.1.").replace("norm2.", "norm.2.").replace("conv2.", "conv.2.")
        if "denselayer" in key
        else key: tensor
        for key, tensor in weights.items()
        if not key.endswith("num_batches_tracked")
    }
    assert "features.denseblock1.denselayer1.norm.1.weight" in former
    torch.save(former, tmp_path / "densenet121-a639ec97.pth", _use_new_zipfile_serialization=False)
    network = build_network("densenet121", classes=2, channels=3, seed=0)
    load_imagenet(network, "densenet121", tmp_path)
    found = network.state_dict()
    assert all(torch.equal(found[key], weights[key]) for key in weights if not key.startswith("classifier"))


def test_one_channel_gives_what_it_gives_as_grey_in_three_colours(tmp_path: Path) -> None:
    save_file(published("resnet18").state_dict(), tmp_path / "resnet18.safetensors")
    grey, colours, several = (
        build_network("resnet18", classes=2, channels=channels, seed=0).train(False) for channels in (1, 3, 5)
    )
    for network in (grey, colours, several):
        load_imagenet(network, "resnet18", tmp_path)
        network.fc = nn.Identity()
    images = draw("resnet18", channels=1)
    with torch.no_grad():
        expected = colours(images.repeat(1, 3, 1, 1))
        assert torch.allclose(grey(images), expected, atol=1e-5)
        assert torch.allclose(several(images.repeat(1, 5, 1, 1)), expected, atol=1e-5)


def test_the_file_is_found_by_torchvisions_name(tmp_path: Path) -> None:
    with pytest.raises(FolderError, match=r"nowhere is no folder\..*resnet18"):
        find_imagenet("resnet18", tmp_path / "nowhere")
    for other in ("vgg16_bn-6c64b313.pth", "resnet18-x.txt", "wide_resnet18-1.pth", "resnet50-0676ba61.pth"):
        (tmp_path / other).touch()
    for name in ("resnet18", "vgg16"):
        with pytest.raises(FolderError, match=rf"holds no weights for {name}\. Put torchvision's file {name}-….pth"):
            find_imagenet(name, tmp_path)
    assert find_imagenet("resnet50", tmp_path).name == "resnet50-0676ba61.pth"
    (tmp_path / "resnet50-11ad3fa6.pth").touch()
    with pytest.raises(FolderError, match=r"several .*\(resnet50-0676ba61\.pth, resnet50-11ad3fa6\.pth\)"):
        find_imagenet("resnet50", tmp_path)
    (tmp_path / "alexnet-owt-7be5be79.pth").touch()
    assert find_imagenet("alexnet", tmp_path).name == "alexnet-owt-7be5be79.pth"


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    weights = build_network("mobilenet_v2", classes=2, channels=3, seed=0).state_dict()
    save_file(weights, tmp_path / "resnet18-1.safetensors")
    network = build_network("resnet18", classes=2, channels=1, seed=0)
    with pytest.raises(InputError, match=r"resnet18-1\.safetensors holds no conv1\.weight, .* 64 × 1 × 7 × 7\."):
        load_imagenet(network, "resnet18", tmp_path)


def test_settings_that_make_no_sense() -> None:
    for call in (smallest_side, lambda name: build_network(name, classes=2, channels=3, seed=0)):
        with pytest.raises(SettingsError, match=r"no network resnet19\. Choose one of resnet18, .*googlenet"):
            call("resnet19")
    for classes, channels in ((0, 3), (2, 0)):
        with pytest.raises(SettingsError, match="give 1 or more"):
            build_network("resnet18", classes=classes, channels=channels, seed=0)


def test_scaling_of_other_numbers_of_channels() -> None:
    assert imagenet_scaling("vgg16", 3) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    mean, deviation = imagenet_scaling("vgg16", 2)
    assert mean == pytest.approx((0.449, 0.449))
    assert deviation == pytest.approx((0.226, 0.226))
    assert imagenet_scaling("googlenet", 1) == ((0.5,), (0.5,))


def test_names_need_no_torch() -> None:
    code = "import sys, unalike.vision.networks as n; n.smallest_side('vgg16'); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": "src"})
