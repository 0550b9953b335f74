"""Images of a bundle as PNG (ISO/IEC 15948): every value as it is, 8 or 16 bits.

One grey picture a channel. Red, green and blue of 8 bits are one colour picture; of 16 bits they stay three, because
most programs (Pillow, and so our own reader) halve the depth of 16-bit colour.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from unalike import folders
from unalike.images.pictures import channel_names
from unalike.records import Pixels

if TYPE_CHECKING:
    from unalike.release.images import Unit


def is_colour(channels: Sequence[str], dtype: np.dtype[np.generic]) -> bool:
    """Whether the channels of an image make one colour picture: red, green and blue of 8 bits."""
    return tuple(channels) == channel_names(3) and dtype == np.uint8


@dataclass(frozen=True)
class PngWriter:
    """Writes PNG files into ``place``; ``note`` becomes the text chunk Description."""

    place: Path
    channels: tuple[str, ...]
    note: str

    def add(self, unit: Unit, image: Pixels) -> tuple[str, ...]:
        """Write one image (C, H, W), uint8 or uint16; gives the names of its files."""
        if is_colour(self.channels, image.dtype):
            return (self._save(unit.file("", "png"), np.ascontiguousarray(image.transpose(1, 2, 0))),)
        several = len(self.channels) > 1
        names = [unit.file(channel if several else "", "png") for channel in self.channels]
        return tuple(self._save(name, plane) for name, plane in zip(names, image, strict=True))

    def _save(self, name: str, pixels: Pixels) -> str:
        about = PngInfo()
        about.add_text("Software", folders.made_by())
        # International text (iTXt) where Latin-1 does not do: Pillow turns to it by itself.
        about.add_text("Description", self.note)
        Image.fromarray(pixels).save(self.place / name, pnginfo=about)
        return name

    def close(self) -> None:
        """Nothing waits."""
