"""Features of networks trained elsewhere are those that others compute; channels, depth and weights are told apart."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from scipy import ndimage
from torch import nn

from unalike import folders
from unalike.cohort.store import ImageFolder, ImageWriter, open_images
from unalike.errors import InputError, PictureError, SettingsError
from unalike.fidelity import pretrained
from unalike.fidelity.features import Features, embed_cached
from unalike.fidelity.pretrained import (
    FEATURES,
    INCEPTION_URL,
    Backbone,
    Head,
    PretrainedFeatures,
    open_backbone,
    open_features,
)

CPU = torch.device("cpu")


def make(out: Path, images: np.ndarray, *, channels: Sequence[str], roles: str = "train") -> ImageFolder:
    """A cohort of these images (n, C, H, W), a subject each."""
    folders.begin_folder(out, kind="cohort", settings={})
    writer = ImageWriter(out, channels=channels, height=images.shape[2], width=images.shape[3], dtype=images.dtype)
    for number, image in enumerate(images):
        role = "holdout" if roles == "last held out" and number == len(images) - 1 else "train"
        writer.append(image, {"subject": f"s{number}", "source": f"f{number}", "slice": 0, "role": role})
    folders.finish_folder(out, kind="cohort", settings={}, seed=0, inputs={}, content=writer.close())
    return open_images(out)


def draw(count: int, channels: int, *, side: int = 24, dtype: Any = np.uint8) -> np.ndarray:
    return np.random.default_rng(0).integers(0, np.iinfo(dtype).max, (count, channels, side, side), dtype=dtype)


def randomize(network: nn.Module) -> dict[str, torch.Tensor]:
    """Weights as a trained network may have them: batch normalization has seen something."""
    random = torch.Generator().manual_seed(0)
    state = network.state_dict()
    for key, tensor in state.items():
        if key.endswith("running_mean"):
            tensor.copy_(torch.randn(tensor.shape, generator=random) * 0.1)
        elif key.endswith("running_var"):
            tensor.copy_(torch.rand(tensor.shape, generator=random) * 0.2 + 0.05)
    return state


class Moments(nn.Module):
    """A network that is known: mean and mean square of the three colours."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.cat([images.mean(dim=(2, 3)), (images**2).mean(dim=(2, 3))], dim=1)


HEAD = Head(np.array([[0.01, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0.0]]), np.array([0.0, 1.0]))
KNOWN = Backbone("known", Moments(), lambda images: images, "none", "abc", HEAD)


def known(
    channels: tuple[int, ...] = (0,), *, dtype: str = "uint8", highest: int = 255, **change: Any
) -> PretrainedFeatures:
    return PretrainedFeatures(dataclasses.replace(KNOWN, **change), channels, dtype, highest, CPU)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Callable[..., PretrainedFeatures]:
    """`open_features` with a network that is known in place of resnet18."""

    def open_known(cohort: ImageFolder) -> PretrainedFeatures:
        monkeypatch.setattr(pretrained, "open_backbone", lambda name, *, weights: KNOWN)
        found = open_features("resnet18", cohort=cohort, weights="x.pth", fetch=False, device=CPU)
        assert isinstance(found, PretrainedFeatures)
        return found

    return open_known


# Channels, depth, batches


def test_one_channel_is_seen_three_times() -> None:
    images = draw(5, 1)
    found = known().embed(images)
    grey = images[:, 0].astype(np.float64)
    mean, square = grey.mean(axis=(1, 2)), (grey**2).mean(axis=(1, 2))
    assert found == pytest.approx(np.stack([mean] * 3 + [square] * 3, axis=1), rel=1e-6)
    assert found.dtype == np.float64


def test_three_channels_are_seen_as_they_are() -> None:
    images = draw(5, 3)
    assert known((0, 1, 2)).embed(images)[:, :3] == pytest.approx(images.mean(axis=(2, 3)), rel=1e-6)


def test_other_numbers_of_channels_are_seen_each_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    images = draw(5, 4)
    features = known((0, 2))
    found = features.embed(images)
    assert found == pytest.approx(np.concatenate([known((place,)).embed(images) for place in (0, 2)], axis=1))
    assert features.name == f"known, per channel ({features.digest[:8]})"
    assert known((0, 1, 2)).name.startswith("known (")
    alone = [known((place,)).probabilities(images) for place in (0, 2)]
    assert features.probabilities(images) == pytest.approx((alone[0] + alone[1]) / 2)
    monkeypatch.setattr(pretrained, "AT_ONCE", 1)
    assert features.embed(images) == pytest.approx(found, rel=1e-6)
    assert features.embed(images[:0]).shape == (0, 12)


def test_the_mask_is_left_out(tmp_path: Path, opened: Callable[..., PretrainedFeatures]) -> None:
    channels = ("t1", "t2", "mask", "flair")
    assert opened(make(tmp_path / "a", draw(2, 4), channels=channels)).channels == (0, 1, 3)
    assert opened(make(tmp_path / "b", draw(2, 1), channels=("mask",))).channels == (0,)


def test_deep_images_are_scaled_by_the_train_images_and_not_rounded(
    tmp_path: Path, opened: Callable[..., PretrainedFeatures]
) -> None:
    images = np.full((3, 1, 4, 4), 1000, np.uint16)
    images[0], images[1, 0, 0, 0], images[2] = 3, 2000, 60_000
    features = opened(make(tmp_path / "deep", images, channels=("ct",), roles="last held out"))
    assert features.highest == 2000
    found = features.embed(images)[:, 0]
    assert found[0] == pytest.approx(3 * 255 / 2000, rel=1e-6)
    assert found[2] == 255  # brighter than the brightest counts as that
    assert opened(make(tmp_path / "dark", np.zeros_like(images), channels=("ct",))).embed(images * 0).max() == 0


def test_probabilities_are_the_softmax_of_the_scores() -> None:
    images = draw(3, 1)
    scores = np.stack([0.01 * images.mean(axis=(1, 2, 3)), np.ones(3)], axis=1)
    expected = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    assert known().probabilities(images) == pytest.approx(expected, rel=1e-6)
    huge = Head(HEAD.weight * 1e6, HEAD.bias)
    assert known(head=huge).probabilities(images) == pytest.approx(np.array([[1.0, 0.0]] * 3))
    assert known().has_classes
    assert not known(head=None).has_classes
    with pytest.raises(SettingsError, match=r"known has no classes\. Choose --features inception"):
        known(head=None).probabilities(images)


def test_whatever_changes_a_vector_changes_the_digest() -> None:
    others = [
        known(),
        known((1,)),
        known(dtype="uint16"),
        known(highest=254),
        known(weights_digest="abd"),
        known(preparation="some"),
    ]
    assert len({each.digest for each in others}) == len(others)
    assert known().digest == known(title="another").digest


def test_one_pixel_changed_is_another_vector_and_none_changed_the_same(tmp_path: Path) -> None:
    images, cache = draw(4, 1), tmp_path / "cache"
    cohort = make(tmp_path / "a", images, channels=("t1",))
    first = embed_cached(known(), cohort, np.arange(4), cache)
    changed = images.copy()
    changed[2, 0, 5, 5] ^= 1
    other = embed_cached(known(), make(tmp_path / "b", changed, channels=("t1",)), np.arange(4), cache)
    assert (first != other).any(axis=1).tolist() == [False, False, True, False]
    assert len(list(cache.iterdir())) == 2
    (cache / sorted(cache.iterdir())[0].name).write_bytes(b"damaged")
    assert (embed_cached(known(), cohort, np.arange(4), cache) == first).all()


def test_images_that_do_not_fit() -> None:
    with pytest.raises(PictureError, match=r"\(2, 1, 24, 24\) of uint16 is not a set of uint8 images"):
        known().embed(draw(2, 1).astype(np.uint16))
    with pytest.raises(PictureError, match="images have 1 channels, channel 2 is needed"):
        known((0, 2)).embed(draw(2, 1))
    with pytest.raises(PictureError, match="is not a set"):
        known().embed(draw(2, 1)[0])


# Inception-v3


@pytest.fixture(scope="module")
def inception_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = pretrained._Inception()
    path = tmp_path_factory.mktemp("inception") / "weights-inception-2015-12-05-6726825d.pth"
    torch.save(randomize(network), path, _use_new_zipfile_serialization=False)
    return path


@pytest.fixture(scope="module")
def inception(inception_file: Path) -> Backbone:
    backbone = open_backbone("inception", weights=inception_file)
    backbone.network.train(False)
    return backbone


def test_inception_gives_what_torch_fidelity_gives(inception: Backbone, inception_file: Path) -> None:
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    reference = FeatureExtractorInceptionV3("x", ["2048", "logits_unbiased"], str(inception_file))
    images = draw(3, 3, side=40)
    with torch.no_grad():
        vectors, scores = reference(torch.from_numpy(images))
    features = PretrainedFeatures(inception, (0, 1, 2), "uint8", 255, CPU)
    found = features.embed(images)
    assert found.shape == (3, 2048)
    scale = float(vectors.abs().max())
    assert float(vectors.std(dim=0).max()) > 1e-3 * scale  # images differ
    assert found == pytest.approx(vectors.numpy(), abs=1e-5 * scale)
    expected = scores.double().softmax(dim=1).numpy()
    assert features.probabilities_of(found) == pytest.approx(expected, rel=1e-3)
    assert features.probabilities_of(found).shape == (3, 1008)


def test_weights_of_another_network_are_no_inception(tmp_path: Path) -> None:
    save_file({"conv1.weight": torch.zeros(3)}, tmp_path / "x.safetensors")
    with pytest.raises(InputError, match=r"x\.safetensors holds no Conv2d_1a_3x3\.conv\.weight, .* 32 × 3 × 3 × 3\."):
        open_backbone("inception", weights=tmp_path / "x.safetensors")


# torchvision's networks


@pytest.fixture(scope="module")
def resnet_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from torchvision.models import resnet18

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        state = randomize(resnet18(num_classes=7))
    path = tmp_path_factory.mktemp("weights") / "resnet18-f37072fd.pth"
    torch.save(state, path)
    return path


def test_resnet_gives_what_torchvision_gives(resnet_file: Path, tmp_path: Path) -> None:
    from torchvision.models import resnet18
    from torchvision.transforms.v2 import functional as transforms

    images = draw(3, 3, side=40)
    cohort = make(tmp_path / "cohort", images, channels=("r", "g", "b"))
    features = open_features("resnet18", cohort=cohort, weights=resnet_file.parent, fetch=False, device=CPU)
    assert isinstance(features, PretrainedFeatures)
    assert features.has_classes
    reference = resnet18(num_classes=7).train(False)
    reference.load_state_dict(torch.load(resnet_file))
    pixels = transforms.resize(torch.from_numpy(images).float() / 255, [224, 224], antialias=True)
    pixels = transforms.normalize(pixels, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    with torch.no_grad():
        scores = reference(pixels)
        vectors = nn.Sequential(*list(reference.children())[:-1])(pixels).flatten(1)
    found = features.embed(images)
    assert found.shape == (3, 512)
    assert found == pytest.approx(vectors.numpy(), abs=1e-5 * float(vectors.abs().max()))
    assert features.probabilities(images) == pytest.approx(scores.softmax(dim=1).numpy(), rel=1e-3, abs=1e-6)
    again: Features = open_features("resnet18", cohort=cohort, weights=str(resnet_file), fetch=False, device=CPU)
    assert again.digest == features.digest
    assert features.name == f"resnet18 (ImageNet) ({features.digest[:8]})"


def test_a_vector_does_not_depend_on_the_others(resnet_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = open_backbone("resnet18", weights=resnet_file)
    backbone.network.train(False)
    features, images = PretrainedFeatures(backbone, (0, 1), "uint8", 255, CPU), draw(4, 2)
    whole = features.embed(images)
    assert whole.shape == (4, 1024)
    order = np.random.default_rng(0).permutation(4)
    monkeypatch.setattr(pretrained, "AT_ONCE", 6)  # three images of two channels
    assert features.embed(images[order]) == pytest.approx(whole[order], abs=1e-5 * np.abs(whole).max())


def test_without_its_head_a_network_has_no_classes(resnet_file: Path, tmp_path: Path) -> None:
    state = torch.load(resnet_file)
    head = {key: state.pop(key) for key in ("fc.weight", "fc.bias")}
    save_file(state, tmp_path / "x.safetensors")
    assert open_backbone("resnet18", weights=tmp_path / "x.safetensors").head is None
    save_file(state | {"fc.weight": torch.zeros(7, 9), "fc.bias": head["fc.bias"]}, tmp_path / "x.safetensors")
    with pytest.raises(InputError, match=r"x\.safetensors holds fc\.weight as 7 × 9, not K × 512\."):
        open_backbone("resnet18", weights=tmp_path / "x.safetensors")


# RadImageNet


def test_all_layouts_of_radimagenets_weights_give_the_same(tmp_path: Path) -> None:
    from torchvision.models import resnet50

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = resnet50(num_classes=2).train(False)
    state = randomize(network)
    row = nn.Sequential(*list(network.children())[:9])
    published = {f"backbone.{key}": tensor for key, tensor in row.state_dict().items()}
    assert "backbone.0.weight" in published
    torch.save(published, tmp_path / "ResNet50.pt")
    save_file({f"module.{key}": tensor for key, tensor in state.items()}, tmp_path / "ours.safetensors")
    images = torch.from_numpy(draw(2, 3)).float()
    found = []
    for name in ("ResNet50.pt", "ours.safetensors"):
        backbone = open_backbone("radimagenet", weights=tmp_path / name)
        backbone.network.train(False)
        with torch.no_grad():
            prepared = backbone.prepare(images)
            found.append(backbone.network(prepared[:, :, ::4, ::4]))
    with torch.no_grad():
        assert torch.allclose(found[0], row(prepared[:, :, ::4, ::4]).flatten(1), rtol=1e-5)
    assert torch.equal(found[0], found[1])
    # From −1 to 1, each pixel between its nearest four: their middles lie at halves.
    places = (np.arange(224) + 0.5) * 24 / 224 - 0.5
    grid = np.meshgrid(places, places, indexing="ij")
    expected = ndimage.map_coordinates(images[1, 2].double().numpy() / 127.5 - 1, grid, order=1, mode="nearest")
    assert prepared[1, 2].numpy() == pytest.approx(expected, abs=1e-5)
    save_file({"backbone.9.weight": torch.zeros(1)}, tmp_path / "x.safetensors")
    with pytest.raises(InputError, match=r"holds no conv1\.weight"):
        open_backbone("radimagenet", weights=tmp_path / "x.safetensors")


# DINOv2

# Names in the files that were published, and those of a later transformers.
RENAMED = {
    "attention.q_proj": "attention.attention.query",
    "attention.k_proj": "attention.attention.key",
    "attention.v_proj": "attention.attention.value",
    "attention.o_proj": "attention.output.dense",
}


@pytest.fixture(scope="module")
def dinov2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import Dinov2Config, Dinov2Model

    folder = tmp_path_factory.mktemp("dinov2")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = Dinov2Config(hidden_size=32, num_attention_heads=2, num_hidden_layers=2, image_size=70, patch_size=14)
        Dinov2Model(config).save_pretrained(folder)
    state = load_file(folder / "model.safetensors")
    for new, old in RENAMED.items():
        state = {key.replace(new, old): tensor for key, tensor in state.items()}
    assert "encoder.layer.1.attention.attention.query.weight" in state
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_dinov2_gives_its_class_token(dinov2: Path, tmp_path: Path) -> None:
    from torchvision.transforms.v2 import InterpolationMode
    from torchvision.transforms.v2 import functional as transforms
    from transformers import Dinov2Model

    images = draw(2, 3)
    cohort = make(tmp_path / "cohort", images, channels=("r", "g", "b"))
    features = open_features("dinov2", cohort=cohort, weights=dinov2, fetch=False, device=CPU)
    pixels = torch.from_numpy(images).float() / 255
    pixels = transforms.resize(pixels, [224, 224], interpolation=InterpolationMode.BICUBIC, antialias=True)
    pixels = transforms.normalize(pixels, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    with torch.no_grad():
        expected = Dinov2Model.from_pretrained(dinov2)(pixels).pooler_output
    assert features.embed(images) == pytest.approx(expected.numpy(), abs=1e-4)
    assert isinstance(features, PretrainedFeatures)
    assert not features.has_classes


def test_folders_that_hold_no_dinov2(dinov2: Path, tmp_path: Path) -> None:
    def refusal() -> str:
        with pytest.raises(InputError) as caught:
            open_backbone("dinov2", weights=tmp_path)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "config.json does not exist" in refusal()
    config = json.loads((dinov2 / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x02")
    assert "model.safetensors does not exist" in refusal()
    weights = (dinov2 / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(weights[:-10])
    assert "model.safetensors cannot be read" in refusal()
    (tmp_path / "model.safetensors").write_bytes(weights)
    for change, said in (
        ({"num_hidden_layers": 3}, "does not fit its config.json (encoder.layer.2."),
        ({"hidden_size": 48}, ""),
        ({"model_type": "vit"}, "kind 'vit', not dinov2"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(config | change))
        assert said in refusal()
    (tmp_path / "config.json").write_text("[")
    assert "config.json cannot be read" in refusal()
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "adapter_config.json").write_text("{}")
    assert "holds an adapter" in refusal()


# By name


@pytest.fixture
def cohort(tmp_path: Path) -> ImageFolder:
    return make(tmp_path / "cohort", draw(4, 1), channels=("t1",))


def test_unknown_names_and_missing_weights(cohort: ImageFolder, tmp_path: Path) -> None:
    def refusal(name: str, weights: str = "", *, fetch: bool = False) -> str:
        with pytest.raises(InputError) as caught:
            open_features(name, cohort=cohort, weights=weights or None, fetch=fetch, device=CPU)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert refusal("resnet51").startswith("there are no features resnet51. Choose one of own, inception, ")
    for name in ("inception", "vgg16"):
        assert refusal(name) == f"--features {name} needs weights. Give them with --weights FILE, or --fetch-weights."
    assert "config.json, model.safetensors) with --weights FOLDER." in refusal("dinov2", fetch=True)
    assert "ResNet50.pt with --weights FILE." in refusal("radimagenet", fetch=True)
    assert "nowhere.pth does not exist" in refusal("inception", str(tmp_path / "nowhere.pth"))
    assert "holds no weights for vgg16" in refusal("vgg16", str(tmp_path))


@pytest.mark.parametrize(
    ("name", "url"),
    [("inception", INCEPTION_URL), ("resnet50", "https://download.pytorch.org/models/resnet50-0676ba61.pth")],
)
def test_weights_are_fetched_from_their_page_only_if_none_are_given(
    name: str, url: str, cohort: ImageFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr(pretrained, "fetch_weights", lambda url: asked.append(url) or tmp_path / "fetched.pth")
    for weights in (None, str(tmp_path / "given.pth")):
        named = "fetched" if weights is None else "given"
        with pytest.raises(InputError, match=rf"{named}\.pth does not exist"):
            open_features(name, cohort=cohort, weights=weights, fetch=True, device=CPU)
    assert asked == [url]


def test_own_features_need_no_weights(cohort: ImageFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrained, "open_own_features", lambda cohort, *, device: known())
    assert open_features("own", cohort=cohort, weights=None, fetch=False, device=CPU).name.startswith("known")
    assert FEATURES[:4] == ("own", "inception", "radimagenet", "dinov2")


def test_deep_images_need_train_images(tmp_path: Path, opened: Callable[..., PretrainedFeatures]) -> None:
    images = draw(1, 1, dtype=np.uint16)
    with pytest.raises(InputError, match="has no train images"):
        opened(make(tmp_path / "held", images, channels=("ct",), roles="last held out"))
