"""A base model small enough to be made here, without any download: Stable Diffusion's parts, a thousandth of its size.

Rombach et al. (2022): an autoencoder, a text encoder, and a U-Net that sees the text by cross-attention. Textual
inversion needs such a model, frozen; the published ones are gigabytes that know photographs. This one learns a few
classes of a cohort from their captions in minutes, so that learning another class as a new token can be tried, shown
and tested anywhere. It is saved as a plain `StableDiffusionPipeline` folder.

Images are x (B, 3, H, W) in [−1, 1], latents z (B, 4, H / 4, W / 4).
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from torch import nn

from unalike.cohort.store import open_images
from unalike.devices import compute_in, pick_device, resolve_precision
from unalike.engine import show_progress, tell
from unalike.errors import FolderError, NonFiniteLossError, SettingsError
from unalike.generators.data import TrainImages, open_train_images
from unalike.generators.descent import WeightAverages
from unalike.generators.diffusion.autoencoder import (
    LatentCodec,
    Reconstruction,
    autoencoder_loss,
    measure_scale,
    reconstruction_error,
)
from unalike.generators.inversion.base import BaseModel, assemble_base, libraries_silent
from unalike.generators.loop import batch_positions
from unalike.records import IntArray
from unalike.seeds import generator_for, seed_for

VAE_CHANNELS = (16, 32, 32)  # at full, half and quarter resolution
FACTOR = 2 ** (len(VAE_CHANNELS) - 1)  # side of an image / side of its latent
LATENT_CHANNELS = 4
UNET_CHANNELS = (48, 64)
MULTIPLE = FACTOR * 2 ** (len(UNET_CHANNELS) - 1)  # of which heights and widths have to be multiples (pixels)
NORM_GROUPS = 8
WIDTH = 32  # dimension of token vectors and of the text the U-Net sees
WORD_SPREAD, POSITION_SPREAD = 0.4, 0.002  # standard deviations of the first embeddings; see `_speak_up`
POSITIONS = 77  # tokens of a prompt with its start and end, as in CLIP

# What every tiny base can say in one token a word, besides its captions.
WORDS = (
    "a",
    "an",
    "and",
    "at",
    "from",
    "in",
    "no",
    "of",
    "on",
    "the",
    "with",
    "image",
    "photo",
    "picture",
    "rendering",
    "scan",
    "slice",
    "tissue",
    "xray",
)
# Captions come in these frames, so that the model knows the sentences that inversion trains its token in.
FRAMES = ("{}", "a photo of {}", "an image of {}", "a picture of {}", "a rendering of {}")
HIDDEN_SHARE = 0.1  # images whose caption is left empty: guidance needs the model without text (Ho and Salimans 2022)

BATCH = 32  # images of one update of the U-Net; the autoencoder takes half
VAE_RATE = 2e-3
UNET_RATE = 2e-3
WARMUP = 100  # updates
EMA_DECAYS = {"autoencoder": 0.99, "model": 0.998}
MEASURED = 64  # images whose reconstruction is looked at


def build_tiny_base(*, size: int = 32, seed: int = 0, words: Sequence[str] = ()) -> BaseModel:
    """A base of random weights for images of ``size`` × ``size`` pixels, on the CPU in float32, frozen.

    ``words`` (texts; their words are taken apart) are one token each, as `WORDS` are; all other text is spelled. The
    same arguments give the same weights. The noise schedule is that of Stable Diffusion 1.x, which predicts the noise.

    Raises `SettingsError` if `MULTIPLE` does not divide ``size``.
    """
    if size < MULTIPLE or size % MULTIPLE:
        raise SettingsError(f"size = {size}: a tiny base draws multiples of {MULTIPLE} pixels, such as 32 or 64.")
    with libraries_silent():
        from transformers import CLIPTextConfig, CLIPTextModel

        tokenizer = build_tokenizer([*WORDS, *words])
        config = CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH,
            intermediate_size=2 * WIDTH,
            projection_dim=WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=POSITIONS,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        # The global stream of torch is seeded for the initial weights alone, and left as it was.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_for(seed, "tiny base"))
            text_encoder: Any = CLIPTextModel(config)
            _speak_up(text_encoder)
            vae = _build_vae()
            unet = _build_unet(size // FACTOR)
    scheduler = DDPMScheduler(
        num_train_timesteps=1000,
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        prediction_type="epsilon",
        clip_sample=False,
        steps_offset=1,
    )
    return assemble_base(
        tokenizer=tokenizer, text_encoder=text_encoder, vae=vae, unet=unet, scheduler=scheduler, name="tiny"
    )


def build_tokenizer(texts: Sequence[str]) -> Any:
    """A `CLIPTokenizer` that knows each word of ``texts`` as one token and spells all others by bytes.

    Merges are learned from the words as byte pair encoding does (Sennrich, Haddow and Birch 2016), to the end, when
    each word is one piece: then merging in the same order finds them again.
    """
    with libraries_silent():
        from tokenizers.pre_tokenizers import ByteLevel
        from transformers import CLIPTokenizer

    letters = sorted(ByteLevel.alphabet())
    vocabulary = [*letters, *(f"{letter}</w>" for letter in letters)]
    merges: Any = _learn_merges(_words_of(texts))  # annotated as text there; pairs are what it takes
    vocabulary += sorted({"".join(pair) for pair in merges})
    vocabulary += ["<|startoftext|>", "<|endoftext|>"]  # the end is the highest number, as in CLIP
    return CLIPTokenizer(
        vocab={piece: number for number, piece in enumerate(vocabulary)}, merges=merges, model_max_length=POSITIONS
    )


def _words_of(texts: Iterable[str]) -> list[str]:
    """The words of plain lower-case letters in ``texts``, each once, in order."""
    return list(dict.fromkeys(word for text in texts for word in re.findall(r"[a-z]+", text.lower())))


def _learn_merges(words: Sequence[str]) -> list[tuple[str, str]]:
    """Pairs of pieces to merge, in this order, until each word is one piece."""
    pieces = [[*word[:-1], f"{word[-1]}</w>"] for word in words]
    merges: list[tuple[str, str]] = []
    while True:
        counts = Counter(pair for word in pieces for pair in itertools.pairwise(word))
        if not counts:
            return merges
        pair = min(counts, key=lambda each: (-counts[each], each))
        merges.append(pair)
        pieces = [_merge(word, pair) for word in pieces]


def _merge(word: Sequence[str], pair: tuple[str, str]) -> list[str]:
    merged: list[str] = []
    for piece in word:
        if merged and (merged[-1], piece) == pair:
            merged[-1] += piece
        else:
            merged.append(piece)
    return merged


def _speak_up(text_encoder: Any) -> None:
    """Make words loud and positions quiet, before anything is learned.

    CLIP begins with both alike, and with 70 places of padding around a few words, what is said is next to nothing of
    what the U-Net sees; it listens only after it has been told apart (seen: 250 updates this way, not in 300 without).
    """
    embeddings = text_encoder.embeddings
    with torch.no_grad():
        embeddings.token_embedding.weight.mul_(WORD_SPREAD / embeddings.token_embedding.weight.std())
        embeddings.position_embedding.weight.mul_(POSITION_SPREAD / embeddings.position_embedding.weight.std())


def _build_vae() -> Any:
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * len(VAE_CHANNELS),
        up_block_types=("UpDecoderBlock2D",) * len(VAE_CHANNELS),
        block_out_channels=VAE_CHANNELS,
        layers_per_block=1,
        norm_num_groups=NORM_GROUPS,
        latent_channels=LATENT_CHANNELS,
        mid_block_add_attention=False,
    )


def _build_unet(side: int) -> Any:
    """The U-Net; the text is seen at the lower resolution, where it costs half the time, and says as much."""
    return UNet2DConditionModel(
        sample_size=side,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        block_out_channels=UNET_CHANNELS,
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=WIDTH,
        attention_head_dim=4,
        norm_num_groups=NORM_GROUPS,
    )


def save_base(base: BaseModel, folder: str | Path, *, variant: str | None = None) -> Path:
    """Write ``base`` as a plain `StableDiffusionPipeline` folder (safetensors), without a safety checker.

    ``variant`` "fp16" writes weights in half precision, in files named as diffusers names that variant. Returns the
    folder, which appears only once it is whole. Raises `FolderError` if it is there already or cannot be written.
    """
    folder = Path(folder)
    if folder.exists():
        raise FolderError(f"{folder} is already there. Choose another folder.")
    half = folder.with_name(folder.name + ".unfinished")
    with libraries_silent():
        from diffusers import StableDiffusionPipeline

        parts = {name: getattr(base, name) for name in ("vae", "text_encoder", "unet")}
        if variant == "fp16":
            parts = {name: _half_copy(part) for name, part in parts.items()}
        pipeline = StableDiffusionPipeline(
            **parts,
            tokenizer=base.tokenizer,
            scheduler=base.scheduler,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        try:
            pipeline.save_pretrained(half, safe_serialization=True, variant=variant)
            half.rename(folder)
        except OSError as error:
            raise FolderError(f"{folder} cannot be written ({error}). Choose another folder.") from error
    return folder


def _half_copy(part: Any) -> Any:
    """The same network in half precision, ``part`` left as it is."""
    copy = type(part)(part.config) if hasattr(part, "can_generate") else type(part).from_config(part.config)
    copy.load_state_dict(part.state_dict())
    return copy.half()


@dataclass(frozen=True)
class Captioned:
    """Training images of the captioned classes; ``captions`` has one an image. RGB is what the model works on."""

    images: TrainImages
    positions: IntArray
    captions: Sequence[str]

    def __len__(self) -> int:
        """Number of images."""
        return len(self.positions)

    def read(self, indices: IntArray) -> torch.Tensor:
        """Images (b, 3, H, W) in [−1, 1]; gray stands in all three channels."""
        x = torch.from_numpy(self.images.scale.to_unit(self.images.read(self.positions[indices])))
        return x.expand(-1, 3, -1, -1).contiguous()


def _caption_images(cohort: str | Path, captions: Mapping[str, str], seed: int) -> Captioned:
    images = open_train_images(open_images(cohort), subjects=None, seed=seed)
    channels, (height, width) = images.cohort.channels, images.cohort.size
    if len(channels) != 1 and channels != ("red", "green", "blue"):
        raise SettingsError(
            f"{cohort} has channels {', '.join(channels)}; a tiny base is trained on gray or colour images. Prepare "
            "one channel."
        )
    if height != width:
        raise SettingsError(f"{cohort} has images of {height} × {width} pixels. Prepare square ones (--size 32).")
    labels = images.cohort.column("label")[images.rows]
    there = sorted(set(labels.tolist()))
    for label in captions:
        if label not in there:
            raise SettingsError(f"{cohort} has no train images of class '{label}'. There are: {', '.join(there)}.")
    positions = np.flatnonzero(np.isin(labels, list(captions)))
    return Captioned(images, positions, [captions[label] for label in labels[positions].tolist()])


def train_tiny_base(
    cohort: str | Path,
    *,
    captions: Mapping[str, str],
    out: str | Path,
    steps: int = 4000,
    autoencoder_steps: int = 1500,
    seed: int = 0,
    device: str = "auto",
    precision: str = "auto",
) -> Path:
    """Train a tiny base on the ``train`` images of the classes in ``captions`` (class → text) and save it in ``out``.

    First the autoencoder, then the text encoder and the U-Net together, on latents that no longer change. Of the
    other classes, and of the holdout, it sees nothing. All is drawn from streams of ``seed``.

    Raises `SettingsError` if the classes or the images do not fit, `FolderError` if ``out`` is there already, and
    `NonFiniteLossError` if training diverges.
    """
    if Path(out).exists():
        raise FolderError(f"{out} is already there. Choose another folder.")
    if not captions or steps < 1 or autoencoder_steps < 1:
        raise SettingsError("a tiny base needs at least one class with a caption, and one update of each network.")
    place = pick_device(device)
    images = _caption_images(cohort, captions, seed)
    base = build_tiny_base(size=images.images.cohort.size[0], seed=seed, words=(*captions.values(), *FRAMES))
    precision = resolve_precision(precision, place)
    trainer = _Trainer(base, images, place=place, precision=precision, seed=seed_for(seed, "tiny training"))
    codec = trainer.train_autoencoder(autoencoder_steps)
    trainer.train_model(steps, codec)
    for part in (base.vae, base.text_encoder, base.unet):
        part.cpu().train(False).requires_grad_(False)
    return save_base(base, out)


@dataclass(frozen=True)
class _Trainer:
    """The two trainings of a tiny base; they change its networks in place."""

    base: BaseModel
    images: Captioned
    place: torch.device
    precision: str
    seed: int

    def train_autoencoder(self, steps: int) -> LatentCodec:
        """Train the autoencoder; its scale is measured and noted in its config."""
        vae, images, size = self.base.vae.to(self.place), self.images, BATCH // 2
        network = Reconstruction(vae)
        side = images.images.cohort.size[0] // FACTOR

        def loss(n: int) -> torch.Tensor:
            x = images.read(batch_positions(n, len(images), size, self.seed)).to(self.place)
            noise = self._noise("latent", n, (size, LATENT_CHANNELS, side, side))
            with compute_in(self.precision, self.place):
                reconstruction, mean, log_variance = network(x, noise)
            return autoencoder_loss(x, reconstruction, mean=mean, log_variance=log_variance)

        _descend(loss, [vae], steps=steps, rate=VAE_RATE, name="autoencoder")
        scale = measure_scale(vae, images.read, len(images))
        vae.register_to_config(scaling_factor=scale)
        codec = LatentCodec(vae, scale)
        looked_at = np.unique(np.linspace(0, len(images) - 1, MEASURED).astype(np.int64))
        error = reconstruction_error(codec, images.read(looked_at))
        tell(f"The autoencoder's images are {error:.1f} grey levels of 255 from the originals (root mean square).")
        return codec

    def train_model(self, steps: int, codec: LatentCodec) -> None:
        """Train text encoder and U-Net: E ‖ε − ε_θ(√ᾱ_t z + √(1 − ᾱ_t) ε, t, text)‖² (Rombach et al. 2022, eq. 3)."""
        unet, text_encoder = self.base.unet.to(self.place), self.base.text_encoder.to(self.place)
        images, scheduler = self.images, self.base.scheduler
        latents = torch.cat([codec.encode(images.read(part)) for part in np.array_split(np.arange(len(images)), 16)])

        def loss(n: int) -> torch.Tensor:
            indices = batch_positions(n, len(images), BATCH, seed_for(self.seed, "model order"))
            z = latents[torch.from_numpy(indices).to(self.place)]
            t = generator_for(self.seed, "times", n).integers(scheduler.config.num_train_timesteps, size=BATCH)
            times = torch.from_numpy(t).to(self.place)
            epsilon = self._noise("noise", n, tuple(z.shape))
            with compute_in(self.precision, self.place):
                hidden = self._hidden(text_encoder, [images.captions[k] for k in indices.tolist()], n)
                predicted = unet(scheduler.add_noise(z, epsilon, times), times, hidden).sample
            return F.mse_loss(predicted.float(), epsilon)

        _descend(loss, [unet, text_encoder], steps=steps, rate=UNET_RATE, name="model")

    def _hidden(self, text_encoder: Any, captions: Sequence[str], n: int) -> torch.Tensor:
        """What the U-Net sees of captions (B, 77, `WIDTH`), each in a frame, some left empty; update n says which."""
        random = generator_for(self.seed, "frames", n)
        frames = random.integers(len(FRAMES), size=len(captions))
        empty = random.random(len(captions)) < HIDDEN_SHARE
        framed = [
            "" if hidden else FRAMES[frame].format(caption)
            for caption, frame, hidden in zip(captions, frames, empty, strict=True)
        ]
        texts = sorted(set(framed))  # each is encoded once
        ids = self.base.tokenizer(texts, padding="max_length", max_length=POSITIONS, truncation=True).input_ids
        hidden = text_encoder(torch.tensor(ids, device=self.place)).last_hidden_state
        encoded: torch.Tensor = hidden[[texts.index(text) for text in framed]]
        return encoded

    def _noise(self, purpose: str, n: int, shape: tuple[int, ...]) -> torch.Tensor:
        stream = torch.Generator().manual_seed(seed_for(self.seed, purpose, n))
        return torch.randn(shape, generator=stream).to(self.place)


def _descend(
    loss: Callable[[int], torch.Tensor], networks: Sequence[nn.Module], *, steps: int, rate: float, name: str
) -> None:
    """AdamW on ``loss(n)`` for n = 0 … steps − 1: a linear rise, then a linear fall to 0; leaves the weights' average.

    Raises `NonFiniteLossError` if the loss is not finite.
    """
    weights = {f"{k}.{key}": weight for k, network in enumerate(networks) for key, weight in network.named_parameters()}
    for network in networks:
        network.train().requires_grad_(True)
    averages = WeightAverages(weights, (EMA_DECAYS[name],))
    optimizer = torch.optim.AdamW(list(weights.values()), lr=rate, weight_decay=0.01, fused=True)
    shown = 0.0
    with show_progress(f"Tiny base, {name}", total=steps, unit="updates") as progress:
        for n in range(steps):
            for group in optimizer.param_groups:
                group["lr"] = rate * min(1, (n + 1) / WARMUP) * (1 - n / steps)
            optimizer.zero_grad(set_to_none=True)
            value = loss(n)
            value.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(weights.values(), 1.0)
            optimizer.step()
            averages.follow(n)
            if n % 50 == 0 or n == steps - 1:
                shown = float(value.detach())
                if not np.isfinite(shown):
                    raise NonFiniteLossError(f"the {name}'s loss is {shown} at update {n}. Try another seed.")
            progress.advance(1, f"loss {shown:.4f}")
    with torch.no_grad():
        for key, average in averages.named(EMA_DECAYS[name]).items():
            weights[key].copy_(average)
    for network in networks:
        network.train(False).requires_grad_(False)
