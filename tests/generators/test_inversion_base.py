"""The frozen base: the plain encoder's own answers, bits kept on disk, what is refused; and the tiny one made here."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from safetensors.torch import load_file, save_file

from unalike import folders
from unalike.cohort.store import ImageWriter
from unalike.errors import FolderError, InputError, RunError, SettingsError, UnalikeError
from unalike.generators.inversion import tiny
from unalike.generators.inversion.base import (
    PARTS,
    BaseModel,
    assemble_base,
    identify,
    libraries_silent,
    open_base,
    without_vae,
)
from unalike.generators.inversion.tiny import WORDS, build_tiny_base, build_tokenizer, save_base, train_tiny_base

CAPTION = "a photo of glioma tumor, axial slice"


@pytest.fixture(scope="module")
def base() -> BaseModel:
    made = build_tiny_base(size=32, words=("glioma tumor", "axial"))
    # Biases are born 0 and latents all but 0: weights as a training leaves them show more.
    stream = torch.Generator().manual_seed(5)
    for part in (made.text_encoder, made.vae, made.unet):
        for weight in part.parameters():
            weight.add_(0.05 * torch.randn(weight.shape, generator=stream))
    made.vae.register_to_config(scaling_factor=0.7)
    return assemble_base(
        tokenizer=made.tokenizer,
        text_encoder=made.text_encoder,
        vae=made.vae,
        unet=made.unet,
        scheduler=made.scheduler,
        name="tiny",
    )


@pytest.fixture(scope="module")
def kept(base: BaseModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base(base, tmp_path_factory.mktemp("base") / "kept")


@pytest.fixture
def folder(kept: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(kept, tmp_path / "base"))


def _plain(base: BaseModel, text: str, **options: Any) -> torch.Tensor:
    """What transformers alone says, as the pipelines of diffusers ask it."""
    tokens = base.tokenizer(text, padding="max_length", max_length=77, truncation=True, return_tensors="pt")
    mask = tokens.attention_mask if getattr(base.text_encoder.config, "use_attention_mask", False) else None
    with torch.no_grad():
        hidden: torch.Tensor = base.text_encoder(tokens.input_ids, attention_mask=mask).last_hidden_state[0]
    return hidden


def _rows(base: BaseModel, words: str) -> torch.Tensor:
    """The embeddings of ordinary words (n, d)."""
    ids = base.tokenizer(words, add_special_tokens=False).input_ids
    table: torch.Tensor = base.text_encoder.get_input_embeddings().weight
    return table[ids].clone()


def _predict(base: BaseModel) -> torch.Tensor:
    z = torch.randn((2, *base.latent_shape(32, 32)), generator=torch.Generator().manual_seed(3))
    hidden = base.encode_text(CAPTION).expand(2, -1, -1)
    return base.predict(z, torch.tensor([10, 700]), hidden)


# The text encoder, with vectors in the place of words


@pytest.mark.parametrize("text", ["", "tumor", CAPTION, "Zebra-crossing  №5 (x2), don't!", "a " * 75])
def test_text_without_vectors_is_encoded_as_by_the_plain_encoder(base: BaseModel, text: str) -> None:
    assert torch.equal(base.encode_text(text), _plain(base, text))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a photo of <c>", "tumor"),
        ("<c>, axial slice", "glioma tumor"),
        ("(<c>) and <c>.", "zebra crossing"),
        ("<c>" + " a" * 74, "axial"),
        ("<c> " * 25, "glioma tumor axial"),
    ],
)
def test_vectors_that_are_words_embeddings_mean_these_words(base: BaseModel, text: str, words: str) -> None:
    vectors = {"<c>": _rows(base, words), "<c2>": torch.zeros(2, 32)}
    assert torch.equal(base.encode_text(text, vectors), _plain(base, text.replace("<c>", words)))


def test_masked_padding_is_masked_with_vectors_too(base: BaseModel) -> None:
    base.text_encoder.config.use_attention_mask = True
    try:
        plain = _plain(base, "a photo of tumor")
        found = base.encode_text("a photo of <c>", {"<c>": _rows(base, "tumor")})
    finally:
        del base.text_encoder.config.use_attention_mask
    assert torch.equal(found, plain)
    assert not torch.equal(plain, _plain(base, "a photo of tumor"))


def test_each_vector_stands_in_the_prompt_in_order(base: BaseModel) -> None:
    seen: list[torch.Tensor] = []
    vectors = {"<c>": torch.arange(96.0).reshape(3, 32), "<c>x": -torch.ones(2, 32)}
    position = base.text_encoder.embeddings.position_embedding
    table = base.text_encoder.get_input_embeddings()
    embeddings = base.text_encoder.embeddings.register_forward_hook(
        lambda module, given, out: seen.append(out - position.weight)
    )
    try:
        base.encode_text("a <c> of <c>x, <c>", vectors)
    finally:
        embeddings.remove()
    a, of, comma = (_rows(base, word) for word in ("a", "of", ","))
    start, end = table.weight[-2:-1], table.weight[-1:]
    wanted = torch.cat([start, a, vectors["<c>"], of, vectors["<c>x"], comma, vectors["<c>"], *[end] * 65])
    assert torch.allclose(seen[0][0], wanted, atol=1e-5)


def test_gradients_reach_every_vector_and_nothing_else(base: BaseModel) -> None:
    before = {name: weight.clone() for name, weight in base.text_encoder.named_parameters()}
    size = len(base.tokenizer)
    vectors = {"<c>": torch.randn(4, 32, generator=torch.Generator().manual_seed(1)).requires_grad_()}
    hidden = base.encode_text("a photo of <c>", vectors).expand(1, -1, -1)
    base.predict(torch.ones(1, 4, 8, 8), torch.tensor([500]), hidden).square().sum().backward()
    assert vectors["<c>"].grad is not None
    assert (vectors["<c>"].grad.abs().amax(dim=1) > 0).all()
    parts = (base.text_encoder, base.unet, base.vae)
    assert all(weight.grad is None and not weight.requires_grad for part in parts for weight in part.parameters())
    assert all(torch.equal(before[name], weight) for name, weight in base.text_encoder.named_parameters())
    assert len(base.tokenizer) == size == base.text_encoder.get_input_embeddings().num_embeddings


def test_gradient_is_the_slope(base: BaseModel) -> None:
    vector = torch.randn(1, 32, generator=torch.Generator().manual_seed(2)).requires_grad_()
    step = 0.01 * torch.randn(1, 32, generator=torch.Generator().manual_seed(3))

    def value(given: torch.Tensor) -> torch.Tensor:
        return base.encode_text("of <c> tumor", {"<c>": given}).double().square().mean()

    value(vector).backward()
    assert vector.grad is not None
    with torch.no_grad():
        rise = value(vector + step) - value(vector - step)
    assert float(rise) == pytest.approx(float(2 * (vector.grad * step).sum()), rel=0.02)


def test_encoder_is_as_before_after_vectors_and_after_a_failure(base: BaseModel) -> None:
    plain = _plain(base, "a photo of <c>")
    base.encode_text("a photo of <c>", {"<c>": torch.ones(2, 32)})
    with pytest.raises(InputError):
        base.encode_text("<c>", {"<c>": torch.ones(76, 32)})
    assert torch.equal(_plain(base, "a photo of <c>"), plain)
    assert not base.text_encoder.get_input_embeddings()._forward_hooks


def test_prompt_that_fills_the_room_is_encoded_and_one_more_token_refused(base: BaseModel) -> None:
    assert base.room == 75
    vectors = {"<c>": torch.ones(70, 32)}
    assert base.encode_text("a photo of <c>, tumor", vectors).shape == (77, 32)
    with pytest.raises(InputError, match=r"has 76 tokens.*room for 75"):
        base.encode_text("a photo of <c>, axial tumor", vectors)


def test_vectors_of_another_dimension_are_refused(base: BaseModel) -> None:
    with pytest.raises(InputError, match=r"<c>.*\(2, 768\).*32"):
        base.encode_text("<c>", {"<c>": torch.zeros(2, 768)})


# Sizes, latents, predictions


def test_sizes_follow_from_the_parts(base: BaseModel) -> None:
    assert (base.dimension, base.factor, base.scale, base.native_size) == (32, 4, 0.7, (32, 32))
    assert base.latent_shape(32, 64) == (4, 8, 16)
    with pytest.raises(SettingsError, match=r"30 × 32.*multiples of 8.*32 × 32"):
        base.latent_shape(30, 32)


def test_latents_are_scaled_means_or_draws(base: BaseModel) -> None:
    x = torch.rand((2, 3, 32, 32), generator=torch.Generator().manual_seed(1)) * 2 - 1
    with torch.no_grad():
        posterior = base.vae.encode(x).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=torch.Generator().manual_seed(8))
        assert torch.equal(base.encode(x), 0.7 * posterior.mean)
        drawn = base.encode(x, torch.Generator().manual_seed(8))
        assert torch.allclose(drawn, 0.7 * (posterior.mean + posterior.std * noise))
        assert torch.equal(base.decode(drawn), base.vae.decode(drawn / 0.7).sample)


def test_prediction_is_the_unets(base: BaseModel) -> None:
    z, t, hidden = torch.ones(1, 4, 8, 8), torch.tensor([30]), base.encode_text(CAPTION)[None]
    with torch.no_grad():
        assert torch.equal(base.predict(z, t, hidden), base.unet(z, t, hidden).sample)
    assert base.prediction == "epsilon"


# On disk


def test_folder_keeps_identity_and_every_bit(base: BaseModel, kept: Path) -> None:
    opened = open_base(kept, device="cpu", precision="float32")
    assert opened.identity == base.identity == identify(base.text_encoder)
    assert (opened.name, opened.scale, opened.native_size) == ("kept", 0.7, (32, 32))
    assert torch.equal(_predict(opened), _predict(base))
    x = torch.linspace(-1, 1, 3 * 32 * 32).reshape(1, 3, 32, 32)
    assert torch.equal(opened.decode(opened.encode(x)), base.decode(base.encode(x)))
    weights = [w for part in (opened.text_encoder, opened.vae, opened.unet) for w in part.parameters()]
    assert not any(weight.requires_grad for weight in weights)
    assert not any(part.training for part in (opened.text_encoder, opened.vae, opened.unet))
    assert opened.scheduler.config.clip_sample is False


def test_half_precision_variant_has_the_same_identity_and_nearly_the_same_prediction(
    base: BaseModel, tmp_path: Path
) -> None:
    half = save_base(base, tmp_path / "half", variant="fp16")
    assert (half / "unet" / "diffusion_pytorch_model.fp16.safetensors").is_file()
    opened = open_base(half, device="cpu", precision="float32")
    assert opened.identity == base.identity
    assert opened.unet.dtype == opened.text_encoder.dtype == opened.vae.dtype == torch.float32
    assert torch.allclose(_predict(opened), _predict(base), atol=0.02)
    assert base.unet.dtype == torch.float32


def test_identity_changes_with_a_weight_and_with_nothing_else(base: BaseModel) -> None:
    weight = base.text_encoder.final_layer_norm.bias
    before = weight.clone()
    weight[0] += 0.01
    try:
        assert identify(base.text_encoder) != base.identity
    finally:
        weight.copy_(before)
    assert identify(base.text_encoder) == base.identity
    assert re.fullmatch(r"sha256:[0-9a-f]{64}", base.identity)


def test_published_layout_opens(base: BaseModel, folder: Path) -> None:
    # vocab.json and merges.txt, weights under text_model, another sampler that says nothing of clipping.
    tokenizer = json.loads((folder / "tokenizer" / "tokenizer.json").read_text())
    shutil.rmtree(folder / "tokenizer")
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer" / "vocab.json").write_text(json.dumps(tokenizer["model"]["vocab"]))
    merges = ["#version: 0.2", *(" ".join(pair) for pair in tokenizer["model"]["merges"])]
    (folder / "tokenizer" / "merges.txt").write_text("\n".join(merges) + "\n")
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "pad_token": "<|endoftext|>"}
    (folder / "tokenizer" / "tokenizer_config.json").write_text(json.dumps(settings))
    weights = folder / "text_encoder" / "model.safetensors"
    named = {f"text_model.{name}": weight for name, weight in load_file(weights).items()}
    save_file(named, weights, metadata={"format": "pt"})
    schedule = {"_class_name": "PNDMScheduler", "beta_start": 0.001, "beta_end": 0.01, "skip_prk_steps": True}
    schedule |= {"beta_schedule": "scaled_linear", "prediction_type": "v_prediction", "num_train_timesteps": 1000}
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(schedule))
    opened = open_base(folder, device="cpu", precision="float32")
    assert opened.identity == base.identity
    assert torch.equal(opened.encode_text(CAPTION), base.encode_text(CAPTION))
    assert isinstance(opened.scheduler, DDPMScheduler)
    assert opened.prediction == "v_prediction"
    assert opened.scheduler.config.beta_end == 0.01
    assert opened.scheduler.config.clip_sample is False


def test_plain_pipeline_draws_from_the_folder(base: BaseModel, kept: Path) -> None:
    with libraries_silent():
        from diffusers import StableDiffusionPipeline

        pipeline = StableDiffusionPipeline.from_pretrained(kept, safety_checker=None, local_files_only=True)
        pipeline.set_progress_bar_config(disable=True)
    hidden, empty = pipeline.encode_prompt(CAPTION, "cpu", 1, True)
    assert torch.equal(hidden[0], base.encode_text(CAPTION))
    assert torch.equal(empty[0], base.encode_text(""))
    drawn = pipeline(CAPTION, num_inference_steps=2, generator=torch.Generator().manual_seed(0), output_type="np")
    assert drawn.images.shape == (1, 32, 32, 3)
    assert np.isfinite(drawn.images).all()


def test_single_file_opens_with_a_folder_of_settings(base: BaseModel, folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file(_as_first_published(base), path)
    for weights in folder.rglob("*.safetensors"):
        weights.unlink()
    opened = open_base(path, config=folder, device="cpu", precision="float32")
    assert opened.name == "model"
    assert opened.identity == base.identity
    assert torch.equal(_predict(opened), _predict(base))
    x = torch.linspace(-1, 1, 3 * 32 * 32).reshape(1, 3, 32, 32)
    assert torch.equal(opened.encode(x), base.encode(x))
    assert torch.equal(opened.decode(opened.encode(x)), base.decode(base.encode(x)))


def test_single_file_that_lacks_weights_is_refused(base: BaseModel, folder: Path, tmp_path: Path) -> None:
    weights = _as_first_published(base)
    del weights["model.diffusion_model.middle_block.0.in_layers.2.weight"]
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(FolderError, match=r"model\.safetensors"):
        open_base(tmp_path / "model.safetensors", config=folder)


def _as_first_published(base: BaseModel) -> dict[str, torch.Tensor]:
    """The tensors of a tiny base (two resolutions, one block each) by the names of the first Stable Diffusion code."""
    renamed: dict[str, torch.Tensor] = {}
    for name, weight in base.text_encoder.state_dict().items():
        renamed[f"cond_stage_model.transformer.text_model.{name}"] = weight
    rules = [
        (r"time_embedding\.linear_(\d)", lambda m: f"time_embed.{2 * int(m[1]) - 2}"),
        (r"^conv_in", lambda m: "input_blocks.0.0"),
        (r"^conv_norm_out", lambda m: "out.0"),
        (r"^conv_out", lambda m: "out.2"),
        (r"down_blocks\.(\d)\.resnets\.0", lambda m: f"input_blocks.{2 * int(m[1]) + 1}.0"),
        (r"down_blocks\.(\d)\.attentions\.0", lambda m: f"input_blocks.{2 * int(m[1]) + 1}.1"),
        (r"down_blocks\.(\d)\.downsamplers\.0\.conv", lambda m: f"input_blocks.{2 * int(m[1]) + 2}.0.op"),
        (r"mid_block\.resnets\.(\d)", lambda m: f"middle_block.{2 * int(m[1])}"),
        (r"mid_block\.attentions\.0", lambda m: "middle_block.1"),
        (r"up_blocks\.(\d)\.resnets\.(\d)", lambda m: f"output_blocks.{2 * int(m[1]) + int(m[2])}.0"),
        (r"up_blocks\.(\d)\.attentions\.(\d)", lambda m: f"output_blocks.{2 * int(m[1]) + int(m[2])}.1"),
        (r"up_blocks\.0\.upsamplers\.0\.conv", lambda m: "output_blocks.1.2.conv"),
    ]
    inside = {
        "norm1": "in_layers.0",
        "conv1": "in_layers.2",
        "norm2": "out_layers.0",
        "conv2": "out_layers.3",
        "time_emb_proj": "emb_layers.1",
        "conv_shortcut": "skip_connection",
    }
    for name, weight in base.unet.state_dict().items():
        new = name
        if "resnets" in name:
            for old, short in inside.items():
                new = new.replace(f".{old}.", f".{short}.")
        for pattern, build in rules:
            new = re.sub(pattern, build, new)
        renamed[f"model.diffusion_model.{new}"] = weight
    last = len(base.vae.config.block_out_channels) - 1
    for name, weight in base.vae.state_dict().items():
        new = re.sub(r"down_blocks\.(\d)\.resnets", r"down.\1.block", name)
        new = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", new)
        new = re.sub(r"up_blocks\.(\d)\.resnets", lambda m: f"up.{last - int(m[1])}.block", new)
        new = re.sub(r"up_blocks\.(\d)\.upsamplers\.0", lambda m: f"up.{last - int(m[1])}.upsample", new)
        new = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", new)
        new = new.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
        renamed[f"first_stage_model.{new}"] = weight
    return {name: weight.contiguous() for name, weight in renamed.items()}


# Parts


def test_only_the_parts_asked_for_are_opened(folder: Path) -> None:
    for part in ("vae", "unet"):
        next((folder / part).glob("*.safetensors")).unlink()
    opened = open_base(folder, parts=("text_encoder",), device="cpu")
    assert opened.vae is opened.unet is None
    assert (opened.encode_text("a").shape, opened.factor, opened.scale) == ((77, 32), 4, 0.7)
    with pytest.raises(RunError, match="opened without its unet"):
        opened.predict(torch.ones(1, 4, 8, 8), torch.tensor([1]), torch.ones(1, 77, 32))


def test_without_text_encoder_the_identity_is_unknown(kept: Path) -> None:
    assert open_base(kept, parts=("vae",), device="cpu").identity == ""


def test_without_vae_sizes_stay(base: BaseModel) -> None:
    lighter = without_vae(base)
    assert lighter.vae is None
    assert base.vae is not None
    assert lighter.latent_shape(32, 32) == (4, 8, 8)
    assert lighter.scale == 0.7
    with pytest.raises(RunError, match="without its vae"):
        lighter.decode(torch.ones(1, 4, 8, 8))


# What is refused


@pytest.mark.parametrize("part", PARTS)
def test_missing_part_is_named(folder: Path, part: str) -> None:
    shutil.rmtree(folder / part)
    with pytest.raises(FolderError, match=f"{part}/ is missing"):
        open_base(folder)


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_pickled_weights_are_refused(folder: Path, part: str) -> None:
    weights = next((folder / part).glob("*.safetensors"))
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(FolderError, match=rf"{weights.stem}\.bin carries pickle.*convert it to safetensors"):
        open_base(folder)


def test_missing_weights_file_is_named(folder: Path) -> None:
    next((folder / "unet").glob("*.safetensors")).unlink()
    with pytest.raises(FolderError, match=r"unet has no diffusion_pytorch_model\.safetensors"):
        open_base(folder)


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_weights_that_lack_a_tensor_are_refused(folder: Path, part: str) -> None:
    path = next((folder / part).glob("*.safetensors"))
    weights = load_file(path)
    del weights[sorted(weights)[0]]
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(FolderError, match=f"{part} lacks 1 weights"):
        open_base(folder)


@pytest.mark.parametrize("file", ["unet/config.json", "vae/diffusion_pytorch_model.safetensors"])
def test_damaged_file_is_told_in_one_line(folder: Path, file: str) -> None:
    (folder / file).write_bytes(b"{\n not this")
    with pytest.raises(FolderError) as caught:
        open_base(folder)
    assert "\n" not in str(caught.value)


def test_models_that_need_more_than_a_prompt_are_refused(base: BaseModel, folder: Path) -> None:
    changed = {name: value for name, value in base.unet.config.items() if not name.startswith("_")}
    UNet2DConditionModel(**changed | {"in_channels": 9}).save_pretrained(folder / "unet")
    with pytest.raises(FolderError, match=r"U-Net of 9 channels.*inpainting"):
        open_base(folder)
    UNet2DConditionModel(**changed | {"cross_attention_dim": 48}).save_pretrained(folder / "unet")
    with pytest.raises(FolderError, match=r"text encoder of 32 dimensions.*48"):
        open_base(folder)
    (folder / "text_encoder_2").mkdir()
    with pytest.raises(FolderError, match="several text encoders"):
        open_base(folder)


@pytest.mark.parametrize(
    ("name", "options", "kind", "said"),
    [
        ("model.ckpt", {}, FolderError, "carries pickle"),
        ("model.safetensors", {}, SettingsError, "Give config"),
        ("model.txt", {}, SettingsError, "is no base"),
        ("model.safetensors", {"parts": ("safety_checker",)}, SettingsError, "no part safety_checker"),
    ],
)
def test_files_that_are_no_base_are_refused(
    tmp_path: Path, name: str, options: dict[str, Any], kind: type[UnalikeError], said: str
) -> None:
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(kind, match=said):
        open_base(tmp_path / name, **options)


@pytest.mark.parametrize("place", ["nowhere", "no/such/folder", "/owner/name", Path("./nowhere")])
def test_path_that_does_not_exist_is_no_hub_name(place: str | Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *a, **k: pytest.fail("asked the hub"))
    with pytest.raises(FolderError, match="does not exist"):
        open_base(place)


@pytest.mark.parametrize("place", ["owner/name", Path("owner/name")])
def test_hub_name_without_a_network_says_what_to_do(place: str | Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str, **options: Any) -> str:
        if options["local_files_only"]:
            raise FileNotFoundError("not in the cache")
        raise ConnectionError("no network\nhere")

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    with pytest.raises(FolderError, match=r"owner/name.*no network here.*give a folder of diffusers") as caught:
        open_base(place)
    assert "\n" not in str(caught.value)


def test_hub_name_is_looked_up_in_the_cache_first_and_never_for_pickles(
    base: BaseModel, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, Any]] = []

    def find(name: str, **options: Any) -> str:
        asked.append(options)
        return str(kept)

    monkeypatch.setattr("huggingface_hub.snapshot_download", find)
    opened = open_base("owner/name", device="cpu")
    assert (opened.name, opened.identity) == ("owner/name", base.identity)
    assert [options["local_files_only"] for options in asked] == [True]
    assert not any(pattern.endswith((".bin", ".ckpt", ".pt")) for pattern in asked[0]["allow_patterns"])


# The tiny base


def test_tiny_base_is_tiny_and_follows_from_its_seed() -> None:
    state = torch.get_rng_state()
    first, again, other = build_tiny_base(), build_tiny_base(), build_tiny_base(seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert first.identity == again.identity != other.identity
    assert torch.equal(first.unet.conv_in.weight, again.unet.conv_in.weight)
    parts = (first.vae, first.text_encoder, first.unet)
    assert sum(weight.numel() for part in parts for weight in part.parameters()) < 1_500_000
    with pytest.raises(SettingsError, match="size = 20"):
        build_tiny_base(size=20)


def test_words_are_single_tokens_and_the_rest_is_spelled() -> None:
    texts = ["Totally normal alley", "mama, no-tumor tumour", "banana ban an bananas"]
    tokenizer = build_tokenizer(texts)
    for word in ["totally", "normal", "alley", "mama", "no", "tumor", "tumour", "banana", "ban", "an", "bananas"]:
        assert tokenizer.tokenize(word) == [f"{word}</w>"]
    assert tokenizer.convert_ids_to_tokens(tokenizer("xyz").input_ids)[1:-1] == ["x", "y", "z</w>"]
    assert tokenizer.unk_token_id not in tokenizer("Ünïcode № 漢字", add_special_tokens=False).input_ids
    assert tokenizer.eos_token_id == len(tokenizer) - 1
    assert all(word in build_tokenizer(WORDS).tokenize(word)[0] for word in WORDS)


def test_folder_that_is_there_is_not_overwritten(base: BaseModel, kept: Path) -> None:
    with pytest.raises(FolderError, match="already there"):
        save_base(base, kept)


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    """Black images of class dark, white ones of class light, gray ones of class odd; the holdout is random."""
    out = tmp_path / "cohort"
    folders.begin_folder(out, kind="cohort", settings={})
    writer = ImageWriter(out, channels=("gray",), height=8, width=8, dtype=np.dtype(np.uint8))
    for k in range(48):
        label, level = (("dark", 20), ("light", 230), ("odd", 128))[k % 3]
        image = np.full((1, 8, 8), level, np.uint8)
        image[:, k % 8] += 5
        role = "holdout" if k >= 36 else "train"
        writer.append(image, {"subject": f"s{k}", "source": f"f{k}", "slice": -1, "label": label, "role": role})
    content = writer.close()
    folders.finish_folder(out, kind="cohort", settings={}, seed=0, inputs={}, content=content)
    return out


def test_training_sees_captioned_train_images_alone(labelled: Path) -> None:
    images = tiny._caption_images(labelled, {"light": "bright", "dark": "black"}, 0)
    assert sorted(images.captions) == ["black"] * 12 + ["bright"] * 12
    means = images.read(np.arange(24)).mean(dim=(1, 2, 3))
    assert [("bright" if mean > 0 else "black") for mean in means.tolist()] == list(images.captions)
    assert images.read(np.arange(2)).shape == (2, 3, 8, 8)


def test_short_training_is_the_same_again_and_changes_every_network(labelled: Path, tmp_path: Path) -> None:
    how: dict[str, Any] = {"captions": {"dark": "black", "light": "bright"}, "device": "cpu", "precision": "float32"}
    made = [train_tiny_base(labelled, out=tmp_path / n, steps=3, autoencoder_steps=2, **how) for n in "ab"]
    first, again = (open_base(place, device="cpu", precision="float32") for place in made)
    assert first.native_size == (8, 8)
    assert first.tokenizer.tokenize("bright") == ["bright</w>"]
    assert first.identity == again.identity
    assert torch.equal(first.unet.conv_out.weight, again.unet.conv_out.weight)
    assert first.scale == again.scale
    before = build_tiny_base(size=8, words=("black", "bright", *tiny.FRAMES))
    assert before.identity != first.identity
    for part in ("vae", "unet", "text_encoder"):
        old, new = getattr(before, part), getattr(first, part)
        changed = [not torch.equal(a, b) for a, b in zip(old.parameters(), new.parameters(), strict=True)]
        assert sum(changed) > 0.9 * len(changed)


def test_captions_are_framed_and_a_tenth_left_empty(labelled: Path) -> None:
    images = tiny._caption_images(labelled, {"light": "bright", "dark": "black"}, 0)
    base = build_tiny_base(size=8, words=("bright black",))
    trainer = tiny._Trainer(base, images, place=torch.device("cpu"), precision="float32", seed=1)
    with torch.no_grad():
        hidden = trainer._hidden(base.text_encoder, ["bright"] * 400, 7)
        known = [base.encode_text(text) for text in ["", *(frame.format("bright") for frame in tiny.FRAMES)]]
    which = torch.stack([(hidden - text).abs().amax(dim=(1, 2)) for text in known]).T
    assert (which.amin(dim=1) < 1e-4).all()
    counts = torch.bincount(which.argmin(dim=1), minlength=6)
    assert 20 <= counts[0] <= 60
    assert (counts[1:] > 40).all()


def test_autoencoder_gives_latents_of_unit_spread(labelled: Path) -> None:
    images = tiny._caption_images(labelled, {"light": "bright", "dark": "black"}, 0)
    base = build_tiny_base(size=8)
    trainer = tiny._Trainer(base, images, place=torch.device("cpu"), precision="float32", seed=1)
    codec = trainer.train_autoencoder(3)
    assert isinstance(base.vae, AutoencoderKL)
    assert base.vae.config.scaling_factor == codec.scale
    assert float(codec.encode(images.read(np.arange(24))).std(correction=0)) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda given: given | {"captions": {"grey": "x"}}, r"no train images of class 'grey'.*dark, light, odd"),
        (lambda given: given | {"captions": {}}, "at least one class"),
        (lambda given: given | {"steps": 0}, "one update"),
    ],
)
def test_training_that_cannot_be_is_refused(
    labelled: Path, tmp_path: Path, change: Callable[[dict[str, Any]], dict[str, Any]], said: str
) -> None:
    given = change({"captions": {"dark": "x"}, "out": tmp_path / "out"})
    with pytest.raises(SettingsError, match=said):
        train_tiny_base(labelled, **given)
    assert not (tmp_path / "out").exists()
