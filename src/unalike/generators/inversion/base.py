"""The frozen text-to-image model in which a concept is learned: any Stable Diffusion 1.x or 2.x, however it is stored.

Rombach et al., "High-Resolution Image Synthesis with Latent Diffusion Models" (2022): an autoencoder, a CLIP text
encoder, and a U-Net that sees the text by cross-attention. Textual inversion (Gal et al. 2023) changes none of their
weights: a learned concept is a few vectors that stand where the text encoder would look up a word's.

x are images (B, 3, H, W) in [−1, 1], z latents (B, c, H / factor, W / factor). Nothing that holds a pickle is read, and
no code that a model brings along is run.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from safetensors import SafetensorError

from unalike.devices import compute_in, pick_device, resolve_precision
from unalike.errors import FolderError, InputError, RunError, SettingsError

PARTS = ("tokenizer", "text_encoder", "vae", "unet", "scheduler")
WEIGHTS = {"text_encoder": "model", "vae": "diffusion_pytorch_model", "unet": "diffusion_pytorch_model"}
PICKLED = (".bin", ".ckpt", ".pt", ".pth", ".pkl")
SETTINGS_FILES = ("*.json", "*/*.json", "tokenizer/merges.txt")
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
# What libraries raise at files that they cannot make sense of.
REFUSALS = (OSError, ValueError, TypeError, RuntimeError, LookupError, AttributeError, ArithmeticError, SafetensorError)


@dataclass(frozen=True)
class BaseModel:
    """A base, frozen, on ``place``; its weights are float32, and its U-Net computes in ``precision``.

    ``identity`` is `identify` of the text encoder: what a learned vector means depends on it alone. ``vae_config``
    stays when the autoencoder goes (`without_vae`). A part that was not opened is None, and "" is the ``identity``
    without a text encoder.
    """

    tokenizer: Any
    text_encoder: Any
    vae: Any
    unet: Any
    scheduler: DDPMScheduler
    identity: str
    name: str
    place: torch.device
    precision: str
    vae_config: Mapping[str, Any]

    @property
    def dimension(self) -> int:
        """Numbers of a token vector: 768 for Stable Diffusion 1.x, 1,024 for 2.x."""
        return int(self._part("text_encoder").config.hidden_size)

    @property
    def room(self) -> int:
        """Tokens of a prompt, its start and end not counted: 75."""
        return int(self._part("tokenizer").model_max_length) - 2

    @property
    def factor(self) -> int:
        """Side of an image / side of its latent."""
        return int(2 ** (len(self.vae_config["block_out_channels"]) - 1))

    @property
    def scale(self) -> float:
        """What the autoencoder's latents are multiplied by, for a standard deviation near 1."""
        return float(self.vae_config["scaling_factor"])

    @property
    def native_size(self) -> tuple[int, int]:
        """Height and width of the images that the U-Net was trained on (pixels)."""
        size = self._part("unet").config.sample_size
        height, width = size if isinstance(size, list | tuple) else (size, size)
        return int(height) * self.factor, int(width) * self.factor

    @property
    def prediction(self) -> str:
        """What the U-Net predicts: ``epsilon``, the noise, or ``v_prediction`` (Salimans and Ho 2022)."""
        return str(self.scheduler.config.prediction_type)

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """Shape (c, h, w) of the latents of images of this size (pixels).

        Raises `SettingsError` if the latents, or what the U-Net halves them to, would not be whole.
        """
        levels = len(self._part("unet").config.block_out_channels) - 1
        step = self.factor * 2**levels
        if height < step or width < step or height % step or width % step:
            raise SettingsError(
                f"{height} × {width} pixels: {self.name} draws heights and widths that are multiples of {step}. Give "
                f"{max(round(height / step), 1) * step} × {max(round(width / step), 1) * step}."
            )
        return int(self.vae_config["latent_channels"]), height // self.factor, width // self.factor

    def encode(self, x: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
        """Latents z of images x: `scale` times the mean of q(z | x), or a draw from it by ``generator``; float32."""
        vae = self._part("vae")
        with compute_in("float32", self.place):
            posterior = vae.encode(x.to(self.place, torch.float32)).latent_dist
            z: torch.Tensor = posterior.mean if generator is None else posterior.sample(generator)
        return self.scale * z

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        """Images of latents z, float32, not clipped to [−1, 1]."""
        vae = self._part("vae")
        with compute_in("float32", self.place):
            x: torch.Tensor = vae.decode(z.to(self.place, torch.float32) / self.scale).sample
        return x

    def tokenize(self, text: str, vectors: Mapping[str, int]) -> tuple[list[int], list[tuple[str, int]]]:
        """Numbers of the tokens of ``text``, without start and end, and where vectors go.

        A token of ``vectors`` (token → how many it has) that stands in the text takes so many places; its first place
        comes back as (token, place), in order. Raises `InputError` if there are more than `room` tokens.
        """
        # The longest first, so that no token is taken for another that it begins with.
        tokens = sorted(vectors, key=len, reverse=True)
        pieces = re.split(f"({'|'.join(map(re.escape, tokens))})", text) if tokens else [text]
        ids: list[int] = []
        places: list[tuple[str, int]] = []
        for piece in pieces:
            if piece in vectors:
                places.append((piece, len(ids)))
                ids += [self.tokenizer.bos_token_id] * vectors[piece]
            elif piece.strip():
                ids += self.tokenizer(piece, add_special_tokens=False, verbose=False).input_ids
        if len(ids) > self.room:
            raise InputError(
                f"prompt '{text[:60]}{'…' * (len(text) > 60)}' has {len(ids)} tokens; the text encoder has room for "
                f"{self.room}. Shorten it, or take an embedding of fewer vectors."
            )
        return ids, places

    def encode_text(self, text: str, vectors: Mapping[str, torch.Tensor] | None = None) -> torch.Tensor:
        """What the U-Net sees of ``text``: hidden states (tokens, d), 77 × 768 for Stable Diffusion 1.x; float32.

        Each token of ``vectors`` (token → (n, `dimension`)) that stands in the text is replaced by its n vectors, at n
        places; write it once, not as ``<t> <t>_1 …``. Gradients reach the vectors. Positions, mask and padding are
        those of the plain encoder, which is left as it was, as is the tokenizer.

        Raises `InputError` if there are more tokens than `room`, or a vector has another dimension.
        """
        vectors = vectors or {}
        for token, given in vectors.items():
            if given.ndim != 2 or given.shape[1] != self.dimension:
                raise InputError(
                    f"{token} has vectors of shape {tuple(given.shape)}; {self.name} takes {self.dimension} numbers a "
                    "vector. Take an embedding that was made for this base."
                )
        ids, places = self.tokenize(text, {token: len(given) for token, given in vectors.items()})
        tokenizer, encoder = self.tokenizer, self._part("text_encoder")
        filled = [tokenizer.bos_token_id, *ids, tokenizer.eos_token_id]
        padding = self.room + 2 - len(filled)
        numbers = torch.tensor([filled + [tokenizer.pad_token_id] * padding], device=self.place)
        mask = None
        if getattr(encoder.config, "use_attention_mask", False):  # as the pipelines of diffusers do
            mask = torch.tensor([[1] * len(filled) + [0] * padding], device=self.place)

        def put_in(module: Any, arguments: Any, looked_up: torch.Tensor) -> torch.Tensor:
            del module, arguments
            rows = list(looked_up[0].unbind())
            for token, place in places:
                given = vectors[token].to(looked_up)
                rows[place + 1 : place + 1 + len(given)] = given.unbind()  # + 1: the start
            return torch.stack(rows)[None]

        # A hook rather than new rows of the embedding: nothing of the base changes, not even for a moment.
        hook = encoder.get_input_embeddings().register_forward_hook(put_in)
        try:
            with compute_in("float32", self.place):
                hidden: torch.Tensor = encoder(numbers, attention_mask=mask).last_hidden_state[0]
        finally:
            hook.remove()
        return hidden

    def predict(self, z_t: torch.Tensor, t: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        """What the U-Net predicts (`prediction`) from latents z_t at times t (B,) and texts (B, tokens, d); float32."""
        unet = self._part("unet")
        with compute_in(self.precision, self.place):
            predicted: torch.Tensor = unet(z_t, t, encoder_hidden_states=hidden).sample
        return predicted.float()

    def _part(self, name: str) -> Any:
        part = getattr(self, name)
        if part is None:
            raise RunError(f"{self.name} was opened without its {name}. Open the base with it.")
        return part


def identify(text_encoder: Any) -> str:
    """ "sha256:…" of a text encoder's weights by name, rounded to half precision.

    Half, so that a model and its fp16 variant, which mean the same by the same vectors, have one identity; and without
    the prefix ``text_model.``, which depends on the release of transformers. Weights kept in bfloat16 are coarser, and
    have an identity of their own.
    """
    known = hashlib.sha256()
    for name, weight in sorted((name.removeprefix("text_model."), w) for name, w in text_encoder.named_parameters()):
        known.update(f"{name} {tuple(weight.shape)}\n".encode())
        known.update(weight.detach().to("cpu", torch.float16).contiguous().numpy().astype("<f2").tobytes())
    return f"sha256:{known.hexdigest()}"


def without_vae(base: BaseModel) -> BaseModel:
    """The same base without its autoencoder, whose memory is free once nobody else holds it."""
    return dataclasses.replace(base, vae=None)


def open_base(
    place: str | Path,
    *,
    device: str = "auto",
    precision: str = "auto",
    parts: Collection[str] = PARTS,
    config: str | Path | None = None,
) -> BaseModel:
    """Open a base; ``place`` is one of

    * a folder of diffusers (``unet/``, ``vae/``, ``text_encoder/``, ``tokenizer/``, ``scheduler/``), weights in
      safetensors, its fp16 variant where there is no other;
    * a checkpoint in one ``.safetensors`` file; ``config`` is then a folder of diffusers, or a hub name, of the same
      kind of model, of which settings and tokenizer are taken;
    * a name on the Hugging Face hub, ``owner/name``: from its cache, else over the network, safetensors only.

    ``parts`` says which of `PARTS` are opened; tokenizer and scheduler always are. Weights are float32, frozen and on
    ``device``; the identity is told only with the text encoder. A safety checker is never opened.

    Raises `SettingsError` if ``place`` or ``parts`` make no sense, `FolderError` if something is missing, pickled,
    damaged, or no Stable Diffusion 1.x or 2.x.
    """
    unknown = sorted(set(parts) - set(PARTS))
    if unknown:
        raise SettingsError(f"a base has no part {', '.join(unknown)}. There are: {', '.join(PARTS)}.")
    on, wanted = pick_device(device), [part for part in PARTS if part in {*parts, "tokenizer", "scheduler"}]
    path = Path(place)
    if path.is_file():
        opened = _open_file(path, config, wanted)
        name = path.stem
    else:
        folder, name = _find_folder(place, wanted)
        opened = _open_folder(folder, wanted)
    return assemble_base(**opened, name=name, device=on, precision=resolve_precision(precision, on))


def assemble_base(
    *,
    tokenizer: Any,
    scheduler: DDPMScheduler,
    name: str,
    text_encoder: Any = None,
    vae: Any = None,
    unet: Any = None,
    vae_config: Mapping[str, Any] | None = None,
    device: torch.device | None = None,
    precision: str = "float32",
) -> BaseModel:
    """A `BaseModel` of these parts, which are frozen and moved to ``device`` (None: the CPU)."""
    place = device or torch.device("cpu")
    identity = "" if text_encoder is None else identify(text_encoder)
    for part in (text_encoder, vae, unet):
        if part is not None:
            part.to(place).train(False).requires_grad_(False)
    return BaseModel(
        tokenizer=tokenizer,
        text_encoder=text_encoder,
        vae=vae,
        unet=unet,
        scheduler=scheduler,
        identity=identity,
        name=name,
        place=place,
        precision=precision,
        vae_config=vae.config if vae_config is None else vae_config,
    )


@contextmanager
def libraries_silent() -> Iterator[None]:
    """No warnings and progress bars of transformers and diffusers in here; what they tell is told by us, once."""
    from diffusers.utils import logging as of_diffusers
    from transformers.utils import logging as of_transformers

    rooms: tuple[Any, ...] = (of_diffusers, of_transformers)
    before = [(room.get_verbosity(), room.is_progress_bar_enabled()) for room in rooms]
    try:
        for room in rooms:
            room.set_verbosity_error()
            room.disable_progress_bar()
        yield
    finally:
        for room, (verbosity, bars) in zip(rooms, before, strict=True):
            room.set_verbosity(verbosity)
            if bars:
                room.enable_progress_bar()


def _find_folder(place: str | Path, wanted: Collection[str]) -> tuple[Path, str]:
    """The folder that ``place`` is, or that the hub's cache holds under that name, and what to call it."""
    path = Path(place)
    if path.is_dir():
        return path, path.resolve().name
    if HUB_NAME.fullmatch(str(place)):
        return _from_hub(str(place), [part for part in wanted if part in WEIGHTS]), str(place)
    raise FolderError(
        f"{place} does not exist. Give a folder of diffusers, a .safetensors file, or a name on the Hugging Face hub "
        "(owner/name)."
    )


def _from_hub(name: str, weighty: Collection[str]) -> Path:
    """The folder in the hub's cache with all settings and the weights of these parts; fetched if they are not there."""
    from huggingface_hub import snapshot_download

    plain = [f"{part}/{WEIGHTS[part]}{end}" for part in weighty for end in (".safetensors", "-*.safetensors")]
    half = [f"{part}/{WEIGHTS[part]}.fp16*.safetensors" for part in weighty]
    folder: Path | None = None
    try:
        # First what lies here already; the fp16 variant is fetched only where there is no other.
        for files, local in ((plain, True), (half, True), (plain, False), (half, False)):
            try:
                folder = Path(snapshot_download(name, allow_patterns=[*SETTINGS_FILES, *files], local_files_only=local))
            except OSError:  # not in the cache
                if not local:
                    raise
                continue
            settled = (folder / "model_index.json").is_file()
            if settled and all(_weights_in(folder / part, part) is not None for part in weighty):
                return folder
    except Exception as error:  # huggingface_hub lets through what its network library raises
        raise FolderError(
            f"{name} is no folder here, and cannot be fetched from the Hugging Face hub ({_brief(error)}). Without a "
            "network, give a folder of diffusers that was saved elsewhere, or a .safetensors file with config."
        ) from error
    if folder is None:
        raise FolderError(f"{name} could not be fetched. Give a folder of diffusers.")
    return folder


def _weights_in(folder: Path, part: str) -> str | None:
    """ "" if ``folder`` holds the weights of this part, "fp16" if only that variant of them, None if neither."""
    stem = WEIGHTS[part]
    if any((folder / f"{stem}{end}").is_file() for end in (".safetensors", ".safetensors.index.json")):
        return ""
    if any((folder / f"{stem}{end}").is_file() for end in (".fp16.safetensors", ".safetensors.index.fp16.json")):
        return "fp16"
    return None


def _check_folder(folder: Path, wanted: Collection[str], *, weights: bool = True) -> None:
    """Raise `FolderError` naming the first thing that misses in a folder of diffusers, or is no base."""
    for part in PARTS:
        if part != "tokenizer":
            setting = folder / part / ("scheduler_config.json" if part == "scheduler" else "config.json")
            there = setting.is_file()
        else:
            there = (folder / part / "tokenizer.json").is_file() or (folder / part / "vocab.json").is_file()
        # The settings of parts that are left out are not needed, but for the autoencoder's, which say the sizes.
        if not there and (part in wanted or part == "vae"):
            raise FolderError(
                f"{folder} is no whole base: {part}/ is missing or empty. Give a folder that "
                "StableDiffusionPipeline.save_pretrained(folder) wrote."
            )
        if weights and part in WEIGHTS and part in wanted and _weights_in(folder / part, part) is None:
            _refuse_pickles(folder / part)
            raise FolderError(f"{folder / part} has no {WEIGHTS[part]}.safetensors. Save the base again.")
    if (folder / "text_encoder_2").is_dir() or (folder / "text_encoder_3").is_dir():
        raise FolderError(f"{folder} has several text encoders. Give a Stable Diffusion 1.x or 2.x, which have one.")


def _refuse_pickles(folder: Path) -> None:
    """Raise `FolderError` if there are pickled weights in ``folder``, where no others are."""
    for path in sorted(folder.iterdir()):
        if path.suffix in PICKLED:
            raise _pickled(path)


def _pickled(path: Path) -> FolderError:
    return FolderError(
        f"{path} carries pickle, which can run code and is never read: convert it to safetensors, or take the model's "
        "safetensors files."
    )


def _open_folder(folder: Path, wanted: Collection[str]) -> dict[str, Any]:
    """The parts in a folder of diffusers, on the CPU in float32, by the names that `assemble_base` gives them."""
    _check_folder(folder, wanted)
    with libraries_silent(), _refused(folder):
        from transformers import CLIPTextModel, CLIPTokenizer

        kinds = {"text_encoder": CLIPTextModel, "vae": AutoencoderKL, "unet": UNet2DConditionModel}
        opened = {
            **_open_light(folder, CLIPTokenizer),
            **{part: _open_part(kinds[part], folder / part, part) for part in wanted if part in kinds},
        }
    _check_parts(opened, folder)
    return opened


def _open_light(folder: Path, tokenizer: Any) -> dict[str, Any]:
    """Tokenizer, noise schedule and the autoencoder's settings."""
    vae_config = AutoencoderKL.load_config(folder / "vae", local_files_only=True)
    return {
        "tokenizer": tokenizer.from_pretrained(folder / "tokenizer", local_files_only=True),
        "scheduler": _plain_scheduler(DDPMScheduler.load_config(folder / "scheduler", local_files_only=True)),
        # Settings that the file does not say are those of diffusers.
        "vae_config": {"block_out_channels": (64,), "latent_channels": 4, "scaling_factor": 0.18215} | vae_config,
    }


def _plain_scheduler(config: Mapping[str, Any]) -> DDPMScheduler:
    """The same noise levels and prediction, whichever sampler the base was saved with.

    Latents have no range: what other schedulers do not say of clipping must not become DDPM's default, which clips.
    """
    return DDPMScheduler.from_config(dict(config), clip_sample=False, thresholding=False, variance_type="fixed_small")


def _open_part(kind: Any, folder: Path, part: str) -> Any:
    """One network from its folder, every weight of it from a file."""
    dtype = "dtype" if part == "text_encoder" else "torch_dtype"
    network, found = kind.from_pretrained(
        folder,
        variant=_weights_in(folder, part) or None,
        use_safetensors=True,
        local_files_only=True,
        output_loading_info=True,
        **{dtype: torch.float32},
    )
    # Libraries fill what misses with random numbers, and only warn.
    lacking = sorted({*map(str, found["missing_keys"]), *map(str, found["mismatched_keys"])})
    if lacking:
        raise FolderError(f"{folder} lacks {len(lacking)} weights, such as {lacking[0][:80]}. Save the base again.")
    return network


def _open_file(path: Path, config: str | Path | None, wanted: Collection[str]) -> dict[str, Any]:
    """The parts in a checkpoint of one file, as Stable Diffusion was first published."""
    if path.suffix in PICKLED:
        raise _pickled(path)
    if path.suffix != ".safetensors":
        raise SettingsError(f"{path} is no base. Give a folder of diffusers, or a .safetensors file.")
    if config is None:
        raise SettingsError(
            f"{path} holds weights alone. Give config: a folder of diffusers of the same kind of model (its JSON files "
            "and tokenizer/ are enough), or its hub name, such as stable-diffusion-v1-5/stable-diffusion-v1-5."
        )
    folder = Path(config) if Path(config).is_dir() else _find_folder(config, ())[0]
    _check_folder(folder, PARTS, weights=False)
    if not (folder / "model_index.json").is_file():
        raise FolderError(
            f"{folder} has no model_index.json, which a single file needs. Take it from the model's page."
        )
    with libraries_silent(), _refused(path):
        from diffusers import StableDiffusionPipeline
        from transformers import CLIPTokenizer

        pipeline = StableDiffusionPipeline.from_single_file(
            str(path),
            config=str(folder),
            local_files_only=True,
            torch_dtype=torch.float32,
            safety_checker=None,
            feature_extractor=None,
        )
        networks = {part: getattr(pipeline, part) for part in WEIGHTS if part in wanted}
        for part, network in networks.items():
            if any(weight.is_meta for weight in network.parameters()):
                raise FolderError(
                    f"{path} lacks weights of the {part} that {folder} describes. Give the fitting config."
                )
        opened = _open_light(folder, CLIPTokenizer) | {part: network.float() for part, network in networks.items()}
    _check_parts(opened, path)
    return opened


def _check_parts(opened: Mapping[str, Any], place: Path) -> None:
    """Raise `FolderError` if the parts do not fit each other, or ask for more than noise, time and text."""
    unet, text_encoder, vae_config = opened.get("unet"), opened.get("text_encoder"), opened["vae_config"]
    if any(vae_config.get(name) is not None for name in ("shift_factor", "latents_mean", "latents_std")):
        raise FolderError(f"{place} shifts its latents. Give a Stable Diffusion 1.x or 2.x, which only scale them.")
    if unet is None:
        return
    channels, text = unet.config.in_channels, unet.config.cross_attention_dim
    more = [name for name in ("addition_embed_type", "class_embed_type", "num_class_embeds") if unet.config[name]]
    if more:
        raise FolderError(f"{place} has a U-Net with {more[0]}. Give a Stable Diffusion 1.x or 2.x, which has none.")
    if channels != vae_config["latent_channels"]:
        raise FolderError(
            f"{place} has a U-Net of {channels} channels and latents of {vae_config['latent_channels']}. Give a "
            "text-to-image model, not one made for inpainting, depth or upscaling."
        )
    if text_encoder is not None and text_encoder.config.hidden_size != text:
        raise FolderError(
            f"{place} has a text encoder of {text_encoder.config.hidden_size} dimensions and a U-Net for {text}. "
            "Give parts of one model."
        )


@contextmanager
def _refused(place: Path) -> Iterator[None]:
    """Turn what libraries raise at files into a line of ours."""
    try:
        yield
    except REFUSALS as error:
        raise FolderError(f"{place} cannot be read as a base ({_brief(error)}). Save or fetch it again.") from error


def _brief(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]
