"""Which modules make up a kind of generator."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from unalike import folders
from unalike.errors import FolderError, SettingsError
from unalike.folders import Header
from unalike.generators.settings import DrawSettings
from unalike.records import Pixels

KINDS = ("diffusion", "stylegan", "inversion", "gaussian", "memorizer")


class Sampler(Protocol):
    """What draws."""

    def draw(self, seeds: Sequence[int]) -> Pixels:
        """Pixels (len(seeds), C, H, W); a sample depends on its seed alone."""

    def describe(self, seed: int) -> dict[str, Any]:
        """What the record of a sample says beyond its seed: its label, its attributes."""


@dataclass(frozen=True)
class Family:
    """The pieces of one kind of generator.

    ``network``: it is trained step by step, by several processes if need be, and can be watched. ``given``: it can
    draw from given images.
    """

    settings: type[Any]
    draw_settings: type[Any]
    train: Callable[..., dict[str, Any]]
    open: Callable[..., Sampler]
    network: bool = False
    given: bool = False


def find_family(kind: str) -> Family:
    """The pieces of generator ``kind``; only its own modules are imported.

    Raises `SettingsError` listing the kinds if there is none of this name.
    """
    if kind == "gaussian":
        from unalike.generators.controls import gaussian

        return Family(gaussian.GaussianSettings, DrawSettings, gaussian.train_gaussian, gaussian.open_gaussian)
    if kind == "memorizer":
        from unalike.generators.controls import memorizer

        return Family(memorizer.MemorizerSettings, DrawSettings, memorizer.train_memorizer, memorizer.open_memorizer)
    if kind == "diffusion":
        from unalike.generators.diffusion import sample, train
        from unalike.generators.diffusion.settings import DiffusionSettings, SampleSettings

        return Family(
            DiffusionSettings,
            SampleSettings,
            train.train_diffusion,
            sample.open_diffusion,
            network=True,
            given=True,
        )
    if kind == "stylegan":
        from unalike.generators.stylegan import sample as stylegan
        from unalike.generators.stylegan.settings import StyleganDrawSettings, StyleganSettings
        from unalike.generators.stylegan.train import train_stylegan

        return Family(StyleganSettings, StyleganDrawSettings, train_stylegan, stylegan.open_stylegan, network=True)
    if kind == "inversion":
        from unalike.generators.inversion import sample as inversion
        from unalike.generators.inversion.settings import InversionDrawSettings, InversionSettings
        from unalike.generators.inversion.train import train_inversion

        return Family(
            InversionSettings,
            InversionDrawSettings,
            train_inversion,
            inversion.open_inversion,
            network=True,
            given=True,
        )
    raise SettingsError(f"there is no generator {kind!r}. There are: {', '.join(KINDS)}.")


def read_run(run: Path) -> Header:
    """The header of a finished run, its numbers checked.

    Raises `FolderError` if it is no finished run or its header is damaged.
    """
    header = folders.read_header(run, kind="run")
    content = header.content
    try:
        sides = (content["height"], content["width"])
        fits = (
            str(content["generator"]) in KINDS
            and all(isinstance(name, str) for name in content["channels"])
            and len(content["channels"]) > 0
            and all(isinstance(side, int) and 0 < side < 2**16 for side in sides)
            and content["dtype"] in ("uint8", "uint16")
            and 0 < int(content["highest"]) < 2**16
            and all(len(levels) > 0 for levels in content["levels"].values())
            and isinstance(content["model_digest"], str)
            and isinstance(header.inputs["cohort"], str)
        )
    except (KeyError, TypeError, ValueError, AttributeError):
        fits = False
    if not fits:
        raise FolderError(f"{header.path} is damaged: it does not describe a run. Train it again.")
    return header


def check_seed(name: str, seed: int) -> None:
    """Refuse a seed that the random streams cannot take."""
    if not 0 <= seed < 2**62:
        raise SettingsError(f"--{name.replace('_', '-')} {seed}: give a whole number from 0 to below 2 to the 62.")
