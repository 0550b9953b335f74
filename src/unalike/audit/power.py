"""How many copies would have been caught: planted copies, and their mirror, sham copies.

Training images with a known change (planted copies) and holdout images of other patients with the same change
(sham copies) are asked the question that the synthetic images are asked. The first give the sensitivity to each
kind of copy, the second the false alarms that the change alone causes. Caught means: closer to train than every
unchanged image of the (other) holdout subjects, the strictest that the holdout can certify.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from scipy import ndimage

from unalike.audit.search import Comparison, reference_blocks, watch_blocks
from unalike.audit.sets import ImageSet
from unalike.engine import show_progress
from unalike.records import Estimate, FloatArray, IntArray, Pixels, TextArray
from unalike.seeds import generator_for
from unalike.similarity.correlation import find_matches
from unalike.stats.intervals import estimate_share

# Works on one image (C, H, W) as float64 in units of 0–255, channels changed alike.
Change = Callable[[Pixels, np.random.Generator], Pixels]


@dataclass(frozen=True)
class PowerRow:
    """Share of planted copies caught, and of equally changed holdout images falsely caught."""

    change: str
    planted: Estimate
    sham: Estimate


def _jpeg(image: Pixels, _: np.random.Generator) -> Pixels:
    planes = []
    for plane in image:
        stream = io.BytesIO()
        Image.fromarray(np.rint(np.clip(plane, 0, 255)).astype(np.uint8)).save(stream, "JPEG", quality=50)
        planes.append(np.asarray(Image.open(stream), dtype=np.float64))
    return np.stack(planes)


CHANGES: dict[str, Change] = {
    "none": lambda image, _: image,
    "noise, sd 5 of 255": lambda image, random: image + random.normal(0, 5, image.shape),
    "noise, sd 15 of 255": lambda image, random: image + random.normal(0, 15, image.shape),
    "blur, sd 1 pixel": lambda image, _: ndimage.gaussian_filter(image, (0, 1, 1), mode="nearest"),
    "gamma 0.7": lambda image, _: 255 * (image / 255) ** 0.7,
    "JPEG, quality 50": _jpeg,
    "shift, 1 pixel": lambda image, _: ndimage.shift(image, (0, 0, 1), order=1, mode="nearest"),
    "turn, 3 degrees": lambda image, _: ndimage.rotate(image, 3, axes=(1, 2), reshape=False, order=1, mode="nearest"),
    "mirror image": lambda image, _: image[:, :, ::-1],
}


def measure_power(
    *,
    train: ImageSet,
    holdout: Comparison,
    count: int,
    channels: Sequence[int],
    seed: int,
    device: torch.device,
) -> list[PowerRow]:
    """Plant ``count`` copies of each kind (from as many subjects, where there are) and count those caught.

    ``holdout`` is the comparison of the holdout with train. A sham copy is held against the *other* holdout
    subjects only, as a new patient would be. All kinds go through one pass over the train images.
    """
    chosen = [pick_one_per_subject(images, count, seed) for images in (train, holdout.queries)]
    originals = [
        images.folder.read(images.rows[rows]) for images, rows in zip((train, holdout.queries), chosen, strict=True)
    ]
    limits = highest_of_others(holdout.highest, holdout.queries.subjects)
    thresholds = [np.full(len(chosen[0]), limits.max()), limits[chosen[1]]]
    queries = [change_images(images, change, seed) for images in originals for change in CHANGES]
    with show_progress("Measuring power", total=len(train), unit="images") as progress:
        found = find_matches(
            queries=np.concatenate(queries),
            references=watch_blocks(reference_blocks(train), progress),
            channels=channels,
            mean=False,
            device=device,
        )
    highest = np.split(found.highest, np.cumsum([len(batch) for batch in queries])[:-1])
    planted, sham = (
        [_share_above(values, threshold) for values in part]
        for part, threshold in zip((highest[: len(CHANGES)], highest[len(CHANGES) :]), thresholds, strict=True)
    )
    return [PowerRow(*row) for row in zip(CHANGES, planted, sham, strict=True)]


def _share_above(values: FloatArray, threshold: FloatArray) -> Estimate:
    with np.errstate(invalid="ignore"):
        return estimate_share(int((values > threshold).sum()), len(values))


def pick_one_per_subject(images: ImageSet, count: int, seed: int) -> IntArray:
    """Positions in ``images`` of one image each of ``count`` subjects; further images when subjects run out."""
    shuffled = generator_for(seed, "planted-sources").permutation(len(images))
    _, first = np.unique(images.subjects[shuffled], return_index=True)
    spread = shuffled[np.sort(first)]
    rest = shuffled[~np.isin(shuffled, spread)]
    chosen: IntArray = np.concatenate([spread, rest])[:count].astype(np.int64)
    return chosen


def highest_of_others(highest: FloatArray, subjects: TextArray) -> FloatArray:
    """For each holdout image (m,), the highest similarity among the other subjects' images."""
    known = np.where(np.isfinite(highest), highest, -np.inf)
    names, index = np.unique(subjects, return_inverse=True)
    tops = np.full(len(names), -np.inf)
    np.maximum.at(tops, index, known)
    order = np.sort(tops)
    second = order[-2] if len(order) > 1 else -np.inf
    return np.where(tops[index] == order[-1], second, order[-1])


def change_images(images: Pixels, change: str, seed: int) -> Pixels:
    """Apply one of `CHANGES` to images (n, C, H, W) of 8 or 16 bits; the depth stays."""
    unit = np.iinfo(images.dtype).max / 255
    changed = np.empty_like(images)
    for index, image in enumerate(images):
        random = generator_for(seed, change, index)
        result = CHANGES[change](image / unit, random) * unit
        changed[index] = np.rint(np.clip(result, 0, np.iinfo(images.dtype).max))
    return changed
