"""Are the samples as varied as patients are? A number that notices a generator that draws one picture.

A generator can collapse: its samples look alike, though none is a copy of a patient, and then a copy rate says little.
So each of m samples is held against the other samples, each of m training images of m different subjects against the
others of these, and the samples are called alike if many of them come closer to one another than patients do.

The similarity is the audit's exact correlation of plain pixels (`similarity.correlation`), of each image with *other
images of its own set* only. Both sets hold equally many images, because the more there are, the closer the closest
is. The training images are the yardstick, and no holdout is needed.

A constant image has no correlation. Here two of them are alike (1), and one among others is alike to none (0): a
generator that draws black pictures only has collapsed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from unalike.audit.blocks import cut
from unalike.audit.search import QUERY_BYTES, reference_blocks
from unalike.cohort import roles
from unalike.cohort.roles import ImageSet
from unalike.cohort.store import iterate_blocks
from unalike.records import Estimate, FloatArray, IntArray, Pixels
from unalike.seeds import generator_for
from unalike.similarity.correlation import Block, find_matches
from unalike.stats.intervals import REPETITIONS, estimate_mean, estimate_share

DiversityVerdict = Literal["alike", "varied", "cannot tell"]

# Images of each set, at most: the interval for a share of so many is about 6 % wide, and more would tell no more.
MOST_IMAGES = 1000
# Of fewer, the 95 % quantile is next to the highest value of all, too uncertain to be anybody's yardstick.
LEAST_IMAGES = 20
# How close two patients come at most, but for the closest twentieth. So about 5 % of varied samples come closer.
QUANTILE = 0.95
# Five times what is expected of samples as varied as patients, because the threshold is an estimate too, and the
# interval does not know: simulated, as varied samples were called alike in 1 to 2 % of all cases with 20 images, in
# 0.5 % with 30, in 0.1 % with 50. And a set of which a quarter are twins shows far fewer pictures than it counts.
MOST_ALIKE = 0.25


@dataclass(frozen=True)
class Diversity:
    """How varied samples are beside as many (``m``) training images of different subjects.

    ``samples_mean`` and ``train_mean`` are mean highest correlations, in [−1, 1], with another image of the same set.
    ``alike`` is the share of samples that come closer to another sample than 95 % of the training images come to
    another of these; about 5 % is expected. ``spread`` is the total pixel variance of the samples over that of the
    training images, from 0 on: 1 is as varied. NaN where undefined: with one image, or training images that are equal.
    """

    m: int
    samples_mean: Estimate
    train_mean: Estimate
    alike: Estimate
    spread: Estimate
    verdict: DiversityVerdict

    def warnings(self) -> list[str]:
        """What must be read first, if anything."""
        if self.verdict != "alike":
            return []
        return [
            f"The samples are alike: {self.alike.value:.0%} ({self.alike.low:.0%} to {self.alike.high:.0%}) of "
            f"{self.m} come closer to another sample than 95% of training patients come to another patient, where "
            "about 5% is expected. That is mode collapse, blur, or a few training images drawn again and again: a "
            "copy rate of 0 says little about a generator that draws one picture."
        ]


def measure_diversity(
    samples: ImageSet, train: ImageSet, *, channels: Sequence[int], seed: int, device: torch.device
) -> Diversity:
    """Compare how varied ``samples`` and ``train`` are, in these ``channels``.

    One image each of m subjects is taken of both (a sample is a subject of its own, the slices of a synthetic volume
    are one), m the smaller number of subjects, at most `MOST_IMAGES`; who and which is drawn with ``seed``.
    """
    m = count_images(len(np.unique(samples.subjects)), len(np.unique(train.subjects)))
    sets = {
        name: pick_one_each(images, m, generator_for(seed, f"diversity {name}"))
        for name, images in (("samples", samples), ("train", train))
    }
    highest = {name: highest_in_set(images, channels=channels, device=device) for name, images in sets.items()}
    means = {
        name: estimate_mean(values, images_as_groups(m), random=generator_for(seed, f"diversity mean {name}"))
        for name, values in highest.items()
    }
    alike = share_alike(highest["samples"], threshold_of(highest["train"]))
    drawn, real = (_squared_distances(images, channels) for images in sets.values())
    return Diversity(
        m=m,
        samples_mean=means["samples"],
        train_mean=means["train"],
        alike=alike,
        spread=estimate_spread(drawn, real, random=generator_for(seed, "diversity spread")),
        verdict=judge_diversity(alike, m),
    )


def count_images(samples: int, subjects: int) -> int:
    """How many images of each set are compared: m."""
    return min(samples, subjects, MOST_IMAGES)


def pick_one_each(images: ImageSet, count: int, random: np.random.Generator) -> ImageSet:
    """One image each of ``count`` different subjects, all drawn at random, in ascending order of rows."""
    return ImageSet(images.folder, np.sort(images.rows[roles.pick_one_each(images.subjects, count, random)]))


def images_as_groups(count: int) -> np.ndarray[tuple[int], np.dtype[np.str_]]:
    """Names (count,) that make each image a unit of its own for the bootstrap."""
    return np.arange(count).astype(np.str_)


def highest_in_set(images: ImageSet, *, channels: Sequence[int], device: torch.device) -> FloatArray:
    """Highest correlation (n,) of each image with another of the set, streamed from disk; never NaN for n > 1.

    Not kept in blocks as the audit's searches are: at most `MOST_IMAGES` squared pairs are worked out in a moment.
    """
    folder, highest = images.folder, np.empty(len(images))
    image_bytes = int(np.prod(folder.images.shape[1:])) * folder.dtype.itemsize
    for begin, end in cut(len(images), max(1, QUERY_BYTES // image_bytes)):
        found = find_matches(
            queries=folder.read(images.rows[begin:end]),
            references=reference_blocks(images),
            best=2,
            channels=channels,
            mean=False,
            device=device,
        )
        highest[begin:end] = _with_others(np.arange(begin, end), found.references, found.similarities)
    return _settle_constant(highest)


def highest_among(images: Pixels, *, channels: Sequence[int] | None = None) -> FloatArray:
    """Highest correlation (n,) of each of ``images`` (n, C, H, W) with another of them; never NaN for n > 1."""
    found = find_matches(queries=images, references=[Block(0, images)], best=2, channels=channels, mean=False)
    return _settle_constant(_with_others(np.arange(len(images)), found.references, found.similarities))


def _with_others(own: IntArray, references: IntArray, similarities: FloatArray) -> FloatArray:
    """Of the two best matches (n, 2) of each image in its own set, the best that is not itself; NaN if it is constant.

    An image that is not constant correlates with itself, so it has a first match: only a constant image has none.
    """
    other = (references >= 0) & (references != own[:, None])
    highest: FloatArray = np.where(other, similarities, -np.inf).max(axis=1)
    highest[np.isneginf(highest)] = 0.0  # all others are constant
    highest[np.isnan(similarities[:, 0])] = math.nan
    return highest


def _settle_constant(highest: FloatArray) -> FloatArray:
    """Constant images, NaN here, are alike to one another (1), and one alone is alike to nobody (0)."""
    if len(highest) < 2:
        return np.full(len(highest), math.nan)
    constant = np.isnan(highest)
    settled: FloatArray = np.where(constant, float(constant.sum() > 1), highest)
    return settled


def threshold_of(train: FloatArray) -> float:
    """How close two patients come, but for the closest twentieth, from the highest correlations (n,) of train."""
    return float(np.quantile(train, QUANTILE))


def share_alike(samples: FloatArray, threshold: float) -> Estimate:
    """Share of the samples' highest correlations (n,) above ``threshold``; undefined if that is.

    A correlation of 1 counts always: nothing exceeds a threshold of 1, which equal (or constant) images in train make.
    """
    if math.isnan(threshold):
        return estimate_share(0, 0)
    return estimate_share(int(((samples > threshold) | (samples >= 1.0)).sum()), len(samples))


def judge_diversity(alike: Estimate, m: int) -> DiversityVerdict:
    """``alike`` if the share's whole interval lies above `MOST_ALIKE`; nothing is told from too few images."""
    if m < LEAST_IMAGES:
        return "cannot tell"
    return "alike" if alike.low > MOST_ALIKE else "varied"


def _squared_distances(images: ImageSet, channels: Sequence[int]) -> FloatArray:
    """Squared distance (n,) of each image from the mean image, over all pixels of the channels, in grey levels²."""
    chosen = list(channels)
    shape = (len(chosen), *images.folder.size)
    total = np.zeros(shape, dtype=np.int64)  # integers: the mean does not depend on the order
    for _, pixels in iterate_blocks(images.folder, images.rows):
        for image in pixels:
            total += image[chosen]
    mean = total / max(len(images), 1)
    return np.asarray(
        [
            np.square(image[chosen] - mean).sum()
            for _, pixels in iterate_blocks(images.folder, images.rows)
            for image in pixels
        ],
        dtype=np.float64,
    )


def estimate_spread(samples: FloatArray, train: FloatArray, *, random: np.random.Generator) -> Estimate:
    """Total variance of ``samples`` over that of ``train``, from squared distances (n,) to each one's mean image.

    Equally many of both. Percentile interval; images of both sides are resampled independently, around the mean image
    as it is: that of a resample lies off it by 1/n of the variance on average, on both sides alike, which cancels in
    the ratio. Undefined if the training images are all equal. (Davison & Hinkley 1997, 2.3.)
    """
    method = "bootstrap of subjects, both sides"
    n = min(len(samples), len(train))
    below = float(train.sum())
    if n < 2 or below == 0.0:
        return Estimate(math.nan, math.nan, math.nan, n, method)
    value = float(samples.mean() / train.mean())
    sums = [
        random.multinomial(len(side), np.full(len(side), 1 / len(side)), size=REPETITIONS) @ side / len(side)
        for side in (samples, train)
    ]
    # A resample may hold none but images that are equal to the mean.
    ratios = sums[0][sums[1] > 0] / sums[1][sums[1] > 0]
    low, high = (float(end) for end in np.quantile(ratios, [0.025, 0.975]))
    return Estimate(value, low, high, n, method)
