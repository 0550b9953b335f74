"""One picture of many: contact sheets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

_GAP = 4
_HEAD = 16


def to_gray8(plane: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """One plane as 8-bit gray for the eye."""
    return np.rint(plane / 257).astype(np.uint8) if plane.dtype == np.uint16 else plane.astype(np.uint8)


def flatten_channels(image: npt.NDArray[Any], channels: Sequence[str]) -> Image.Image:
    """One image (C, H, W) as a picture: colour where the channels are red, green, blue, else one below the other."""
    planes = [to_gray8(plane) for plane in image]
    if tuple(channels) == ("red", "green", "blue"):
        return Image.fromarray(np.stack(planes, axis=-1))
    return Image.fromarray(np.concatenate(planes, axis=0)).convert("RGB")


def draw_contact_sheet(
    rows: Sequence[tuple[str, npt.NDArray[Any]]], *, channels: Sequence[str], cell: int = 96
) -> Image.Image:
    """Draw titled rows of images (n, C, H, W): enlarged to about ``cell`` pixels, shrunk to twice that at most."""
    strips = []
    for title, images in rows:
        tiles = [flatten_channels(image, channels) for image in images]
        sized = [_fit_tile(tile, cell) for tile in tiles]
        width = sum(tile.width + _GAP for tile in sized) + _GAP
        strip = Image.new("RGB", (max(width, 240), _HEAD + (sized[0].height if sized else 0) + _GAP), "white")
        ImageDraw.Draw(strip).text((_GAP, 1), title, fill="black")
        left = _GAP
        for tile in sized:
            strip.paste(tile, (left, _HEAD))
            left += tile.width + _GAP
        strips.append(strip)
    sheet = Image.new("RGB", (max(s.width for s in strips), sum(s.height for s in strips)), "white")
    top = 0
    for strip in strips:
        sheet.paste(strip, (0, top))
        top += strip.height
    return sheet


def _fit_tile(tile: Image.Image, cell: int) -> Image.Image:
    if tile.width > 2 * cell:
        return tile.resize((2 * cell, max(1, round(tile.height * 2 * cell / tile.width))), Image.Resampling.BOX)
    step = max(1, round(cell / tile.width))
    return tile.resize((tile.width * step, tile.height * step), Image.Resampling.NEAREST)


def draw_pairs(
    pairs: Sequence[tuple[str, npt.NDArray[Any], npt.NDArray[Any]]],
    *,
    channels: Sequence[str],
    cell: int = 128,
    per_row: int = 4,
) -> Image.Image:
    """Draw titled pairs of images (C, H, W) side by side, several pairs a row, each image ``cell`` pixels wide."""
    tiles = []
    for title, *images in pairs:
        drawn = [flatten_channels(image, channels) for image in images]
        sized = [tile.resize((cell, max(1, tile.height * cell // tile.width))) for tile in drawn]
        pair = Image.new("RGB", (2 * cell + 3 * _GAP, _HEAD + sized[0].height + _GAP), "white")
        ImageDraw.Draw(pair).text((_GAP, 1), title, fill="black")
        for place, tile in enumerate(sized):
            pair.paste(tile, (_GAP + place * (cell + _GAP), _HEAD))
        tiles.append(pair)
    width, height = tiles[0].size
    rows = -(-len(tiles) // per_row)
    sheet = Image.new("RGB", (width * min(per_row, len(tiles)), height * rows), "white")
    for number, tile in enumerate(tiles):
        sheet.paste(tile, (number % per_row * width, number // per_row * height))
    return sheet
