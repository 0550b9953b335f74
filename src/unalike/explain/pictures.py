"""Heat maps as pictures: with the patient's image beneath (internal), and without it.

Colours tell signs apart with any colour vision: amber speaks for the class, blue against it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw
from scipy.ndimage import gaussian_filter

from unalike.explain.lime import BoolArray
from unalike.records import FloatArray, IntArray, Pixels

FOR, AGAINST, LESION = (255, 176, 46), (77, 163, 255), (80, 255, 120)
SMOOTHING = 0.06  # standard deviation by which shareable heat is smoothed, as a share of the shorter side
CELL = 192  # pixels a picture is wide, about
_GAP, _LINE = 6, 14

Colours = npt.NDArray[np.uint8]


def draw_grey(image: Pixels, channels: Sequence[int]) -> FloatArray:
    """Mean of channels of an image (C, H, W), each stretched to its range, as brightness (H, W) from 0 to 1."""
    planes = image[list(channels)].astype(np.float64)
    low, high = (bound(planes, axis=(1, 2), keepdims=True) for bound in (np.min, np.max))
    grey: FloatArray = ((planes - low) / np.where(high > low, high - low, 1.0)).mean(axis=0)
    return grey


def colour_heat(heat: FloatArray, beneath: FloatArray | None = None) -> Colours:
    """Heat (H, W) in colour (H, W, 3): full at the largest |heat|, on black or on brightness ``beneath`` (0 to 1)."""
    largest = np.abs(heat).max()
    share = (heat / largest if largest > 0 else np.zeros_like(heat))[..., None]
    colour = np.where(share > 0, np.asarray(FOR), np.asarray(AGAINST)).astype(np.float64)
    ground = np.zeros_like(colour) if beneath is None else 255.0 * beneath[..., None].repeat(3, axis=2)
    opacity = np.abs(share) if beneath is None else 0.65 * np.abs(share)
    drawn: Colours = np.rint(ground * (1 - opacity) + colour * opacity).astype(np.uint8)
    return drawn


def smooth_heat(heat: FloatArray) -> FloatArray:
    """Heat (H, W) without the outlines of superpixels: those follow the edges of the patient's picture."""
    smooth: FloatArray = gaussian_filter(heat, SMOOTHING * min(heat.shape))
    return smooth


def outline(drawn: Colours, regions: IntArray | BoolArray) -> Colours:
    """The same picture with the borders of regions (H, W) drawn in."""
    edge = np.zeros(regions.shape, dtype=np.bool_)
    edge[:, 1:] |= regions[:, 1:] != regions[:, :-1]
    edge[1:] |= regions[1:] != regions[:-1]
    lined = drawn.copy()
    lined[edge] = LESION
    return lined


def draw_panel(title: str, cells: Sequence[tuple[str, Colours]], path: Path) -> None:
    """Write a PNG: a title over titled pictures (H, W, 3) side by side, each enlarged to about `CELL` pixels."""
    tiles = [(text, _enlarge(Image.fromarray(drawn))) for text, drawn in cells]
    width = sum(tile.width + _GAP for _, tile in tiles) + _GAP
    height = max(tile.height for _, tile in tiles) + 2 * (_LINE + _GAP)
    sheet = Image.new("RGB", (max(width, 8 * len(title)), height), "white")
    pen = ImageDraw.Draw(sheet)
    pen.text((_GAP, 2), title, fill="black")
    left = _GAP
    for text, tile in tiles:
        pen.text((left, _LINE + 4), text, fill="black")
        sheet.paste(tile, (left, 2 * _LINE + _GAP))
        left += tile.width + _GAP
    sheet.save(path, optimize=True)


def _enlarge(tile: Image.Image) -> Image.Image:
    if tile.width > CELL:
        return tile.resize((CELL, max(1, round(tile.height * CELL / tile.width))), Image.Resampling.BOX)
    step = max(1, round(CELL / tile.width))
    return tile.resize((tile.width * step, tile.height * step), Image.Resampling.NEAREST)
