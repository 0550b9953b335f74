"""A cohort's channels as red, green and blue of a text-to-image base, and back; and between their sizes. No torch.

A base was trained on colour pictures: its autoencoder takes three channels and gives three. de Wilde et al. (2023,
section 3.3.1) draw each modality of prostate MRI as one of them. Images are float32 in [−1, 1].
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from unalike.errors import SettingsError
from unalike.records import MASK

COLORS = ("red", "green", "blue")

# Which three of more channels are drawn, the first of these that there are; else the first three of the cohort.
# T1 after contrast shows what T1 shows and the enhancement, so of the four sequences of BraTS T1 is left out.
PREFERRED = (COLORS, ("t1ce", "t2", "flair"), ("t1gd", "t2", "flair"), ("t1gd", "t2w", "flair"))

Unit = npt.NDArray[np.float32]


@dataclass(frozen=True)
class ChannelMapping:
    """Which of a cohort's ``channels`` is drawn as red, green and blue; as JSON in the run's header.

    ``sources`` are positions in ``channels``. Several colours may have one source, and a channel may have no colour.
    """

    channels: tuple[str, ...]
    sources: tuple[int, int, int]

    @property
    def drawn(self) -> tuple[str, ...]:
        """The channels that come back from `from_rgb`, in the cohort's order: 1 to 3."""
        return tuple(self.channels[source] for source in sorted(set(self.sources)))

    def to_rgb(self, unit: Unit) -> Unit:
        """Images (n, 3, H, W) from a cohort's (n, C, H, W), all C channels in its order; values stay as they are.

        Raises ValueError for another number of channels.
        """
        if unit.shape[1] != len(self.channels):
            raise ValueError(f"{unit.shape[1]} channels, not the {len(self.channels)} of the cohort")
        return unit[:, list(self.sources)]

    def from_rgb(self, rgb: Unit) -> Unit:
        """Images (n, C′, H, W) of the `drawn` channels from colours (n, 3, H, W); nothing is clipped.

        A channel of several colours is their mean. What `to_rgb` gave comes back bit for bit.

        Raises ValueError for other than three colours.
        """
        if rgb.shape[1] != len(COLORS):
            raise ValueError(f"{rgb.shape[1]} colours, not 3")
        places = [np.flatnonzero(np.equal(self.sources, source)) for source in sorted(set(self.sources))]
        # In float64 three times a float32 is exact, so equal colours have exactly their value as mean.
        planes = [rgb[:, place].mean(axis=1, dtype=np.float64).astype(np.float32) for place in places]
        return np.stack(planes, axis=1)

    def describe(self) -> str:
        """One line: which channel is which colour, what is left out, and how to choose others."""
        names = [self.channels[source] for source in self.sources]
        if tuple(names) == COLORS:
            text = "red, green and blue as they are"
        else:
            shown = {name: [color for color, of in zip(COLORS, names, strict=True) if of == name] for name in names}
            text = ", ".join(f"{name} in {_listed(colors)}" for name, colors in shown.items())
        left = [name for name in self.channels if name not in names and name != MASK]
        if left:
            text += (
                f"; {_listed(left)} left out, as there are three colours: --rgb {' '.join(dict.fromkeys(names))} is "
                "what was chosen, name others there"
            )
        if MASK in self.channels:
            text += f"; {MASK} left out, as a text-to-image base draws no mask"
        return text


def choose_mapping(channels: Sequence[str], levels: Collection[str], *, rgb: Sequence[str] = ()) -> ChannelMapping:
    """How a cohort's ``channels`` become colours; those in ``levels`` (and ``mask``) are masks and never mapped.

    ``levels`` is `PixelScale.levels`: the names of channels that hold classes. ``rgb`` names one to three channels to
    draw; without it these are all, or of more than three those in `PREFERRED`. One channel is all three colours, two
    are (first, second, first), three are one colour each in the cohort's order (in that of ``rgb``), and channels
    named red, green and blue keep their colours.

    Raises `SettingsError` if there is nothing but masks, or ``rgb`` names a mask, more than three channels or one that
    there is not.
    """
    images = [name for name in channels if name != MASK and name not in levels]
    if not images:
        raise SettingsError(
            "the cohort has no channel but masks, and a text-to-image base draws no mask. Prepare it with images."
        )
    names = _check_asked(list(rgb), images) if rgb else _choose(images)
    red, green, blue = {1: (0, 0, 0), 2: (0, 1, 0), 3: (0, 1, 2)}[len(names)]
    positions = [list(channels).index(name) for name in names]
    return ChannelMapping(tuple(channels), (positions[red], positions[green], positions[blue]))


def _choose(images: list[str]) -> list[str]:
    """One to three of the channels, in the order of the colours."""
    if len(images) >= 3:
        # Of three channels only red, green and blue have an order of their own.
        for names in PREFERRED if len(images) > 3 else PREFERRED[:1]:
            if set(names) <= set(images):
                return list(names)
    return images[:3]


def _check_asked(rgb: list[str], images: list[str]) -> list[str]:
    """The channels that ``rgb`` asks for. Raises `SettingsError` if they cannot be drawn."""
    if len(rgb) > len(COLORS):
        raise SettingsError(f"rgb = {' '.join(rgb)}: there are three colours. Give at most three channels.")
    for name in rgb:
        if name not in images:
            nearest = difflib.get_close_matches(name, images, n=1)
            hint = f"did you mean {nearest[0]}? " if nearest else ""
            raise SettingsError(f"rgb = {name}: no image channel of the cohort; {hint}There are: {', '.join(images)}.")
    return rgb


def _listed(names: Sequence[str]) -> str:
    """Names as a sentence lists them."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def resize_to(images: Unit, height: int, width: int) -> Unit:
    """Images (n, C, H, W) at another size (n, C, height, width), clipped to [−1, 1]; at their own size untouched.

    Each axis on its own, outer edges staying where they are: down by the mean over the area that a new pixel covers,
    in parts where it covers parts; up by cubic convolution (Keys 1981, a = −1/2), which at the border repeats the
    outermost pixel. Computed image by image in float64, so that an image comes out the same in any batch.

    Raises `SettingsError` for a size below 1.
    """
    if height < 1 or width < 1:
        raise SettingsError(f"size = {height} × {width}: give at least 1 pixel a side.")
    if images.shape[2:] == (height, width):
        return images
    rows, columns = _weights(images.shape[2], height), _weights(images.shape[3], width).T
    resized = np.empty((*images.shape[:2], height, width), dtype=np.float32)
    for image, target in zip(images, resized, strict=True):
        target[:] = np.clip(rows @ image @ columns, -1, 1)
    return resized


def _weights(old: int, new: int) -> npt.NDArray[np.float64]:
    """Weights (new, old) with which old pixels enter new ones; each row sums to 1, and equal sizes are the identity."""
    step = old / new
    if step > 1:
        edges = np.arange(new + 1)[:, None] * old / new
        pixels = np.arange(old)
        covered = np.minimum(edges[1:], pixels + 1) - np.maximum(edges[:-1], pixels)
        shares: npt.NDArray[np.float64] = np.clip(covered, 0, None) / step
        return shares
    weights = np.zeros((new, old))
    centers = (np.arange(new) + 0.5) * step - 0.5
    for tap in range(-1, 3):
        pixels = np.floor(centers).astype(np.int64) + tap
        np.add.at(weights, (np.arange(new), np.clip(pixels, 0, old - 1)), _keys(np.abs(centers - pixels)))
    return weights


def _keys(distance: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The kernel of cubic convolution at distances of 0 to 2 pixels (Keys 1981, a = −1/2)."""
    near = (1.5 * distance - 2.5) * distance**2 + 1
    far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
    kernel: npt.NDArray[np.float64] = np.where(distance <= 1, near, far)
    return kernel
