"""The images a generator may see, and the way between pixels and the numbers a model works on.

`TrainImages` is the only way from a cohort into a generator. It is made from `select_train_rows` alone, so
that a holdout image cannot be reached, by construction.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.ndimage

from unalike.cohort.split import select_train_rows
from unalike.cohort.store import ImageFolder, iterate_blocks
from unalike.errors import SettingsError
from unalike.records import MASK, IntArray, Pixels

ROUNDING = 0.5  # gray levels by which a mask that is given, and not drawn, may come back from the model's numbers
HELD_BYTES = 2 * 2**30  # training images below this stay in memory


@dataclass(frozen=True)
class TrainImages:
    """Images a generator may learn from: position 0 to len − 1 in the order of the cohort."""

    cohort: ImageFolder
    rows: IntArray
    scale: PixelScale
    held: Pixels | None = field(repr=False)

    def __len__(self) -> int:
        """Number of images."""
        return len(self.rows)

    def read(self, positions: IntArray) -> Pixels:
        """Pixels (n, C, H, W) of these positions, from memory where they are held."""
        if self.held is not None:
            return self.held[positions]
        return self.cohort.read(self.rows[positions])

    def attributes(self) -> list[dict[str, str]]:
        """Attributes of each image, in order."""
        known = self.cohort.attributes()
        return [known[row] for row in self.rows.tolist()]

    def read_all(self) -> Pixels:
        """All pixels (N, C, H, W)."""
        return self.cohort.read(self.rows) if self.held is None else self.held


def describe_training(images: TrainImages, *, subjects: int | None, seed: int) -> dict[str, Any]:
    """What a run's header says of the images it was trained on: what `PixelScale.from_content` reads, and whose."""
    cohort, scale = images.cohort, images.scale
    return {
        "channels": list(cohort.channels),
        "height": cohort.size[0],
        "width": cohort.size[1],
        "dtype": cohort.dtype.name,
        "highest": scale.highest,
        "levels": scale.levels,
        "subjects": subjects,
        "subject_seed": seed,
        "train_images": len(images),
    }


@dataclass(frozen=True)
class PixelScale:
    """How pixels of a run map to numbers and back; stored in the run's header.

    ``highest`` is the pixel value of full brightness: 255 for 8-bit images; for 16-bit ones the highest value
    in training, as scanners use 10 to 14 of the 16 bits. ``levels`` gives the values that a mask channel may
    take.
    """

    channels: tuple[str, ...]
    dtype: str
    highest: int
    levels: Mapping[str, Sequence[int]]

    @classmethod
    def from_content(cls, content: Mapping[str, Any]) -> PixelScale:
        """Read back from the ``content`` of a run's header."""
        return cls(
            tuple(content["channels"]),
            str(content["dtype"]),
            int(content["highest"]),
            dict(content["levels"]),
        )

    def to_unit(self, pixels: Pixels) -> npt.NDArray[np.float32]:
        """Numbers from −1 (zero) to 1 (``highest``), float32, same shape."""
        return pixels.astype(np.float32) * np.float32(2 / self.highest) - np.float32(1)

    def from_unit(self, values: npt.NDArray[np.floating[Any]]) -> Pixels:
        """Pixels (n, C, H, W) from numbers in [−1, 1]; see `from_grey`."""
        return self.from_grey((values.astype(np.float64) + 1) * (self.highest / 2))

    def from_grey(self, values: npt.NDArray[np.floating[Any]]) -> Pixels:
        """Pixels (n, C, H, W) from grey levels, clipped to [0, ``highest``] and rounded.

        A mask is rounded to the nearest of its levels in training, and seams between two of them are settled
        (`settle_seams`).
        """
        pixels: Pixels = np.rint(np.clip(values, 0, self.highest)).astype(self.dtype)
        for channel, levels in self.levels.items():
            index = self.channels.index(channel)
            found = nearest_level(values[:, index], np.asarray(levels))
            pixels[:, index] = settle_seams(found, values[:, index]).astype(self.dtype)
        return pixels


def settle_seams(labels: npt.NDArray[Any], values: npt.NDArray[np.floating[Any]]) -> npt.NDArray[Any]:
    """Masks (n, H, W) without the thin seams that rounding leaves where a low class meets a high one.

    ``values`` (n, H, W) are what the masks were rounded from. A soft edge from one class to another passes through all
    classes between them, which draws them as a line where they are not. So a pixel of a class between those of its
    eight neighbours goes to the lowest or the highest of these, whichever is nearer, if its class is less than two
    pixels wide there and its value is not that of its class. Of real hippocampus masks at 32 × 32 that would be 4 % of
    the pixels of the class between, of samples it is 33 %.
    """
    settled = labels.copy()
    for label in np.unique(labels)[1:-1]:
        here = labels == label
        wide = scipy.ndimage.binary_opening(here, np.ones((1, 2, 2)))
        low, high = (
            extreme(labels, size=(1, 3, 3), mode="nearest")
            for extreme in (scipy.ndimage.minimum_filter, scipy.ndimage.maximum_filter)
        )
        seam = here & ~wide & (low < label) & (label < high) & (np.abs(values - label) > ROUNDING)
        settled = np.where(seam, np.where(values - low <= high - values, low, high), settled)
    return settled


def nearest_level(values: npt.NDArray[np.floating[Any]], levels: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The entry of ``levels`` (ascending) nearest to each value; a tie goes to the lower one."""
    edges = (levels[1:] + levels[:-1]) / 2
    nearest: npt.NDArray[Any] = levels[np.searchsorted(edges, values)]
    return nearest


def open_train_images(cohort: ImageFolder, *, subjects: int | None, seed: int) -> TrainImages:
    """The ``train`` images of ``subjects`` subjects (None: all), with the scale of their pixels.

    Raises `SettingsError` if the cohort has none, or fewer subjects.
    """
    rows = select_train_rows(cohort, subjects=subjects, seed=seed)
    if len(rows) == 0:
        raise SettingsError(f"{cohort.path} has no train images. Prepare it with a smaller --holdout.")
    size = len(rows) * len(cohort.channels) * int(np.prod(cohort.size)) * cohort.dtype.itemsize
    held = cohort.read(rows) if size < HELD_BYTES else None
    masks = [name for name in cohort.channels if name == MASK]
    levels: dict[str, set[int]] = {name: set() for name in masks}
    highest = 255 if cohort.dtype == np.uint8 else 1
    # One pass over the pixels, and for 8-bit images without a mask none.
    if masks or cohort.dtype != np.uint8:
        for _, block in iterate_blocks(cohort, rows):
            highest = max(highest, int(block.max()))
            for name in masks:
                levels[name] |= set(np.unique(block[:, cohort.channels.index(name)]).tolist())
    scale = PixelScale(
        cohort.channels, cohort.dtype.name, highest, {name: sorted(found) for name, found in levels.items()}
    )
    return TrainImages(cohort=cohort, rows=rows, scale=scale, held=held)


def refuse_single_patients(labels: Sequence[str], subjects: Sequence[str]) -> None:
    """Raise `SettingsError` if a class that samples could be asked for is one subject's alone.

    ``labels`` and ``subjects`` are those of the training images, an entry each. Whoever asked for such a class (a name,
    a rare site) would ask for that patient.
    """
    owners: dict[str, set[str]] = {}
    for label, subject in zip(labels, subjects, strict=True):
        owners.setdefault(label, set()).add(subject)
    for label, those in owners.items():
        if label and len(those) == 1:
            raise SettingsError(
                f"class '{label}' belongs to one patient: asking for it would be asking for that patient. Leave the "
                "class or the condition out."
            )
