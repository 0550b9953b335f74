"""Pixels as picture data inside the page (PNG in ``data:`` URIs), so that a report is one file."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from unalike.records import FloatArray
from unalike.report.read import Pixels

# A page shows a picture at 256 pixels at most; larger ones are reduced, which the page says.
LARGEST_SIDE = 256
# Steps each way in a difference picture: enough for the eye, and a palette of few colours packs well.
DIFFERENCE_STEPS = 32
# Brighter in the synthetic image is amber, darker is blue, told apart with any colour vision;
# zero is black like the pictures beside it.
BRIGHTER, DARKER = (255, 176, 46), (77, 163, 255)
SCATTER_BINS = 64
SCATTER_COLOUR = (47, 127, 209)

Window = tuple[float, float]


@dataclass(frozen=True)
class Picture:
    """A picture ready for ``<img>``: its data and its size in pixels."""

    uri: str
    width: int
    height: int


def show_window(*images: Pixels, compared: bool) -> Window:
    """Choose the pixel values drawn black and white, the same for every picture of a channel.

    8-bit images that were compared use their whole range. 16-bit images and masks rarely fill theirs:
    they are drawn from 0 to the largest value seen.
    """
    if images[0].dtype == np.uint8 and compared:
        return 0.0, 255.0
    return 0.0, float(max(1, *(each.max(initial=0) for each in images)))


def draw_picture(pixels: Pixels, *, window: Window) -> Picture:
    """Draw one channel in grey."""
    grey = _reduce(_scaled(pixels, window) * 255.0)
    return _encode(Image.fromarray(np.rint(grey).astype(np.uint8)))


def draw_difference(synthetic: Pixels, train: Pixels, *, window: Window, full: float) -> Picture:
    """Draw synthetic minus train, signed; those of ``full`` (a share of the window) take full colour."""
    difference = _reduce(_scaled(synthetic, window) - _scaled(train, window)) / full
    steps = np.rint(np.clip(difference, -1.0, 1.0) * DIFFERENCE_STEPS).astype(int) + DIFFERENCE_STEPS
    picture = Image.fromarray(steps.astype(np.uint8)).convert("P")
    picture.putpalette(difference_palette().tobytes())
    return _encode(picture)


def difference_palette() -> npt.NDArray[np.uint8]:
    """Colours of a difference picture from darkest to brightest, black in the middle."""
    steps = np.linspace(-1.0, 1.0, 2 * DIFFERENCE_STEPS + 1)[:, None]
    colours = np.where(steps > 0, np.asarray(BRIGHTER), np.asarray(DARKER)) * np.abs(steps)
    palette: npt.NDArray[np.uint8] = np.rint(colours).astype(np.uint8)
    return palette


def count_pixels(synthetic: Pixels, train: Pixels, *, window: Window) -> FloatArray:
    """Count pixels by value in the training image (columns) and the synthetic one (rows, brightest first)."""
    counts, _, _ = np.histogram2d(
        _scaled(synthetic, window).ravel(),
        _scaled(train, window).ravel(),
        bins=SCATTER_BINS,
        range=((0.0, 1.0), (0.0, 1.0)),
    )
    return counts[::-1].astype(np.float64)


def draw_scatter(synthetic: Pixels, train: Pixels, *, window: Window) -> Picture:
    """Draw the scatter of pixel values as density: one colour, whose opacity grows with the log of the count.

    Transparent where there is nothing, so that it reads on light and on dark paper.
    """
    counts = count_pixels(synthetic, train, window=window)
    opacity = np.where(counts > 0, 0.25 + 0.75 * np.log1p(counts) / np.log1p(counts.max()), 0.0)
    picture = np.empty((*counts.shape, 4), dtype=np.uint8)
    picture[..., :3] = SCATTER_COLOUR
    picture[..., 3] = np.rint(opacity * 255)
    return _encode(Image.fromarray(picture))


def _scaled(pixels: Pixels, window: Window) -> FloatArray:
    low, high = window
    return np.clip((pixels.astype(np.float64) - low) / (high - low), 0.0, 1.0)


def _grey(pixels: Pixels, window: Window) -> FloatArray:
    """Values from 0 (black) to 255; 8-bit pixels in their whole range are that already."""
    if pixels.dtype == np.uint8 and window == (0.0, 255.0):
        return pixels.astype(np.float64)
    return _scaled(pixels, window) * 255.0


def pack_picture(pixels: Pixels, *, window: Window, largest: int, quality: int) -> str:
    """One channel in grey, at most ``largest`` pixels a side, in base64: PNG, or WebP of a ``quality`` above 0.

    A PNG of 8-bit pixels in their whole range that need no reduction holds the very pixels.
    """
    grey = np.rint(_reduce(_grey(pixels, window), largest)).astype(np.uint8)
    stream = io.BytesIO()
    if quality:
        # Higher methods take two to four times as long, and pictures with noise become no smaller.
        Image.fromarray(grey).convert("RGB").save(stream, format="WEBP", quality=quality, method=1)
    else:
        Image.fromarray(grey).save(stream, format="PNG", compress_level=9)
    return base64.b64encode(stream.getvalue()).decode("ascii")


def reduction(shape: tuple[int, ...], largest: int) -> int:
    """By what whole number the sides of a picture are divided to be at most ``largest``."""
    return -(-max(shape) // largest)


def _reduce(values: FloatArray, largest: int = LARGEST_SIDE) -> FloatArray:
    """Average blocks of pixels until a picture is small enough to show."""
    factor = reduction(values.shape, largest)
    if factor == 1:
        return values
    return np.asarray(Image.fromarray(values.astype(np.float32)).reduce(factor), dtype=np.float64)


def _encode(picture: Image.Image) -> Picture:
    stream = io.BytesIO()
    picture.save(stream, format="PNG", optimize=True)
    data = base64.b64encode(stream.getvalue()).decode("ascii")
    return Picture(f"data:image/png;base64,{data}", *picture.size)
