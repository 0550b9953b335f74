"""What is learned around a frozen base: the vectors of new tokens, or low-rank additions to the U-Net's attention."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from unalike.errors import SettingsError
from unalike.generators.inversion.base import BaseModel
from unalike.seeds import seed_for

LORA_TARGETS = ("to_k", "to_q", "to_v", "to_out.0")  # the projections of every attention (Hu et al. 2022)


class Concept(nn.Module):
    """The vectors of new tokens; all else is the base's, and frozen.

    ``prompts`` are those of training, one for each token; `forward` predicts for images of these.
    """

    def __init__(self, base: BaseModel, tokens: Mapping[str, torch.Tensor], prompts: Sequence[str]) -> None:
        """``tokens`` maps each new token to its first vectors (n, d)."""
        super().__init__()
        self.names = tuple(tokens)
        self.vectors = nn.ParameterList([nn.Parameter(vectors.clone().float()) for vectors in tokens.values()])
        self.prompts = tuple(prompts)
        self.frozen = (base,)  # in a tuple: its weights are not this module's

    @property
    def base(self) -> BaseModel:
        """The frozen model."""
        return self.frozen[0]

    def learned(self) -> dict[str, torch.Tensor]:
        """The vectors (n, d) of each token."""
        return dict(zip(self.names, self.vectors, strict=True))

    def hidden(self, which: Sequence[int]) -> torch.Tensor:
        """What the text encoder says of these prompts (B, length, d'); each one is encoded once."""
        learned = self.learned()
        told = {index: self.base.encode_text(self.prompts[index], learned) for index in sorted(set(which))}
        hidden = torch.stack([told[index] for index in which])
        # Vectors of other tokens get a gradient of 0 rather than none: several processes, and an optimizer that counts
        # its steps, want one of every weight in every update.
        return hidden if len(self.vectors) == 1 else hidden + 0 * torch.stack([v.sum() for v in self.vectors]).sum()

    def forward(self, x_t: torch.Tensor, t: torch.Tensor, which: Sequence[int]) -> torch.Tensor:
        """What the base predicts of noisy latents x_t (B, c, h, w) at times t (B,) for these prompts."""
        return self.base.predict(x_t, t, self.hidden(which))


class Additions(nn.Module):
    """LoRA: the base's U-Net with trainable low-rank additions; prompts are ordinary words."""

    def __init__(self, base: BaseModel, *, rank: int, prompts: Sequence[str], seed: int) -> None:
        """Additions that change nothing yet: their second factor is 0."""
        from peft import LoraConfig

        super().__init__()
        self.names: tuple[str, ...] = ()
        self.prompts = tuple(prompts)
        config = LoraConfig(r=rank, lora_alpha=rank, target_modules=list(LORA_TARGETS), init_lora_weights="gaussian")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_for(seed, "additions"))
            base.unet.add_adapter(config)
        self.unet = base.unet
        self.frozen = (base,)
        with torch.no_grad():
            self.told = [base.encode_text(prompt, {}) for prompt in self.prompts]

    @property
    def base(self) -> BaseModel:
        """The model whose U-Net bears the additions."""
        return self.frozen[0]

    def learned(self) -> dict[str, torch.Tensor]:
        """No token is new."""
        return {}

    def forward(self, x_t: torch.Tensor, t: torch.Tensor, which: Sequence[int]) -> torch.Tensor:
        """What the U-Net with its additions predicts of x_t (B, c, h, w) at times t (B,) for these prompts."""
        return self.base.predict(x_t, t, torch.stack([self.told[index] for index in which]))


def begin_vectors(
    base: BaseModel, tokens: Sequence[str], *, count: int, words: str, seed: int
) -> dict[str, torch.Tensor]:
    """First vectors (count, d) of each token: those of ``words`` over and over, or noise of the encoder's own spread.

    Raises `SettingsError` if the encoder has no room for so many, knows the token already, or there are no such words.
    """
    if count > base.room:
        raise SettingsError(
            f"vectors = {count}: the text encoder of {base.name} has room for {base.room}. Give at most that many."
        )
    known = base.text_encoder.get_input_embeddings().weight.detach().float().cpu()
    vocabulary = base.tokenizer.get_vocab()
    for token in tokens:
        if token in vocabulary or f"{token}</w>" in vocabulary:
            raise SettingsError(f"token '{token}' is a word of {base.name} already. Give a new one, such as <{token}>.")
    first: dict[str, torch.Tensor] = {}
    for index, token in enumerate(tokens):
        if words:
            ids = base.tokenizer(words, add_special_tokens=False).input_ids
            if not ids:
                raise SettingsError(f"initialize = {words!r}: give words.")
            first[token] = known[[ids[n % len(ids)] for n in range(count)]]
        else:
            stream = torch.Generator().manual_seed(seed_for(seed, "vectors", index))
            noise = torch.randn((count, base.dimension), generator=stream)
            first[token] = known.mean(dim=0) + noise * known.std(dim=0)
    return first


def freeze(module: Any) -> None:
    """Let no gradient reach these weights."""
    for weight in module.parameters():
        weight.requires_grad_(False)
