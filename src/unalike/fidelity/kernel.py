"""Kernel distance between two sets of feature vectors: unbiased at any number of images, with an interval by subjects.

The squared maximum mean discrepancy with the kernel (x·y/D + 1)³ of D dimensions: 0 if and only if means, covariances
and third moments agree. With features of an Inception network it is the KID (Bińkowski, Sutherland, Arbel & Gretton,
"Demystifying MMD GANs", 2018, section 4). Unlike a Fréchet distance it needs no correction for the size of the sets:
its mean is the truth from two subjects on, and so it may fall below 0 where nothing differs.

Features are scaled by nobody here: values compare only where the features are the same.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy.stats import t as student

from unalike.errors import InputError, SettingsError
from unalike.fidelity.sides import Side, make_sides
from unalike.records import Estimate, FloatArray, TextArray
from unalike.seeds import generator_for

BLOCK_BYTES = 2**25  # of one block of kernel values; two are held at once
METHOD = "jackknife of subjects, both sides"


@dataclass(frozen=True)
class BlockDistance:
    """Mean and deviation (n in the denominator) of the kernel distance over ``blocks`` random parts of both sets.

    Each part has ``size`` images of either set. The deviation is that of one block; it is no interval of the mean.
    """

    mean: float
    deviation: float
    blocks: int
    size: int


@dataclass(frozen=True)
class _Sums:
    """Of each subject of a side (subjects,): kernel sums with other subjects of it, with the other side; its images."""

    within: FloatArray
    across: FloatArray
    images: FloatArray

    def pairs(self) -> float:
        """How many ordered pairs of images of different subjects there are."""
        return float(self.images.sum() ** 2 - (self.images**2).sum())


def kernel_distance(a: FloatArray, b: FloatArray) -> float:
    """Unbiased MMD² of the kernel k(x, y) = (x·y/D + 1)³ between features ``a`` (n, D) and ``b`` (m, D).

    Σ k(aᵢ, aⱼ)/(n(n − 1)) + Σ k(bᵢ, bⱼ)/(m(m − 1)) over i ≠ j, less 2 Σ k(aᵢ, bⱼ)/(nm) (Gretton et al. 2012, equation
    3). Every image counts as drawn by itself; `kernel_estimate` knows of subjects. Worked on in blocks of rows: beside
    the features 2 · `BLOCK_BYTES` are held, whatever n and m. The blocks change nothing but rounding.

    Raises `InputError` if a set has fewer than two images, the dimensions differ, or a number is not finite.
    """
    sides = make_sides(a, b, np.arange(len(a)).astype(np.str_), np.arange(len(b)).astype(np.str_))
    for name, side in zip(("first", "second"), sides, strict=True):
        if side.subjects < 2:
            raise InputError(
                f"the {name} set has {side.subjects} images. A kernel distance needs at least 2; add some."
            )
    return _distance(*_sums(*sides))


def kernel_estimate(
    a: FloatArray, b: FloatArray, *, subjects_a: TextArray, subjects_b: TextArray, confidence: float = 0.95
) -> Estimate:
    """The same distance where images of one subject are one draw, with an interval over subjects.

    ``a`` (n, D) and ``b`` (m, D) belong to ``subjects_a`` (n,) and ``subjects_b`` (m,); each synthetic image drawn by
    itself is a subject of its own. Only pairs of different subjects count within a set, so the value is unbiased where
    subjects have equally many images, and equals `kernel_distance` where each has one. It may be negative.

    The standard error is the exact delete-one-subject jackknife of both sides (Efron & Stein 1981), from sums by
    subject, so nothing is drawn at random; the interval is value ± it · Student's t with the degrees of freedom of
    Welch & Satterthwaite. The jackknife errs upwards, most where the distributions are equal: there twofold in
    variance.

    Simulated (normal features of 1 to 64 dimensions, 10 to 100 subjects a side of 1 or 4 images that share half their
    variance; 400 repetitions of each): of equal distributions the interval at 95 % held 0 in 98 to 100 %, its low bound
    was above 0 in at most 0.7 %. Where means or spreads differed it held the truth in 94 to 100 % in 16 and 64
    dimensions; in 1 and 2 dimensions, where the cube of few numbers has long tails, in 77 to 99 %, and what it missed
    was above it: the low bound was above the truth in at most 1.3 %.

    ``n`` is the smaller number of subjects. Fewer than 2 subjects on a side: undefined; 2: a value, no interval. Raises
    `InputError` if features are not finite or do not fit, `SettingsError` for a ``confidence`` outside 0 to 1.
    """
    if not 0 < confidence < 1:
        raise SettingsError(f"confidence = {confidence}: give a number between 0 and 1, such as 0.95.")
    sides = make_sides(a, b, subjects_a, subjects_b)
    n = min(side.subjects for side in sides)
    if n < 2:
        return Estimate(math.nan, math.nan, math.nan, n, METHOD, confidence)
    one, two = _sums(*sides)
    value = _distance(one, two)
    if n < 3:  # with one of two left out no pair remains
        return Estimate(value, math.nan, math.nan, n, METHOD, confidence)
    half = _half_width((_jackknife_variance(one, two), _jackknife_variance(two, one)), sides, confidence)
    return Estimate(value, value - half, value + half, n, METHOD, confidence)


def block_kernel_distance(
    a: FloatArray, b: FloatArray, *, seed: int, blocks: int = 100, size: int = 1000
) -> BlockDistance:
    """`kernel_distance` as others report it: its mean and deviation over random blocks of ``size`` images a side.

    Images are drawn without putting back within a block, from ``a`` (n, D) and ``b`` (m, D) whoever their subjects
    are. A set smaller than ``size`` would be one block again and again, with a deviation of 0; then half of the smaller
    set is drawn, and ``size`` of the answer says so. The mean does not depend on the size, the deviation does.

    Raises what `kernel_distance` raises, and `SettingsError` for less than 1 block or a ``size`` below 2.
    """
    if blocks < 1 or size < 2:
        raise SettingsError(f"{blocks} blocks of {size} images: give 1 or more of 2 or more, such as 100 of 1,000.")
    smaller = min(len(a), len(b))
    size = size if size <= smaller else max(smaller // 2, min(smaller, 2))
    values = []
    for index in range(blocks):
        random = generator_for(seed, "kernel blocks", index)
        rows = [np.sort(random.permutation(len(side))[:size]) for side in (a, b)]
        values.append(kernel_distance(a[rows[0]], b[rows[1]]))
    return BlockDistance(float(np.mean(values)), float(np.std(values)), blocks, size)


def row_blocks(rows: int, columns: int, block_bytes: int) -> Iterator[slice]:
    """Runs of ``rows``, such that a float64 table of a run and all ``columns`` takes at most ``block_bytes``."""
    step = max(block_bytes // (8 * max(columns, 1)), 1)
    for begin in range(0, rows, step):
        yield slice(begin, min(begin + step, rows))


def _kernel(x: FloatArray, y: FloatArray) -> FloatArray:
    """(x·y/D + 1)³ of all rows of both; (n, m)."""
    base = x @ y.T
    base /= x.shape[1]
    base += 1
    cube = base * base
    cube *= base
    return cube


def _sums(a: Side, b: Side) -> tuple[_Sums, _Sums]:
    of_a, of_b = _sums_across(a.features, b.features)
    return _by_subject(a, of_a), _by_subject(b, of_b)


def _by_subject(side: Side, across: FloatArray) -> _Sums:
    within, outside = (_totals(side, sums) for sums in (_sums_within(side), across))
    return _Sums(within, outside, _totals(side, np.ones(len(across))))


def _totals(side: Side, values: FloatArray) -> FloatArray:
    """Sums (subjects,) of what images (n,) have."""
    return np.bincount(side.codes, weights=values, minlength=side.subjects).astype(np.float64)


def _sums_within(side: Side) -> FloatArray:
    """Of each image (n,), its kernel sum with all images of other subjects of the set."""
    sums = np.zeros(len(side.features))
    for rows in row_blocks(len(sums), len(sums), BLOCK_BYTES):
        # The kernel is symmetric: what lies left of the block was worked out above it.
        values = _kernel(side.features[rows], side.features[rows.start :])
        values[side.codes[rows, None] == side.codes[None, rows.start :]] = 0
        sums[rows] += values.sum(axis=1)
        sums[rows.stop :] += values[:, rows.stop - rows.start :].sum(axis=0)
    return sums


def _sums_across(a: FloatArray, b: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Of each image of either set, (n,) and (m,), its kernel sum with all images of the other."""
    of_a, of_b = np.zeros(len(a)), np.zeros(len(b))
    for rows in row_blocks(len(a), len(b), BLOCK_BYTES):
        values = _kernel(a[rows], b)
        of_a[rows] = values.sum(axis=1)
        of_b += values.sum(axis=0)
    return of_a, of_b


def _distance(a: _Sums, b: _Sums) -> float:
    across = a.across.sum() / (a.images.sum() * b.images.sum())
    return float(a.within.sum() / a.pairs() + b.within.sum() / b.pairs() - 2 * across)


def _jackknife_variance(side: _Sums, other: _Sums) -> float:
    """What leaving out one subject of ``side`` at a time says of the variance of the distance."""
    left, count = side.images.sum() - side.images, len(side.images)
    pairs = left**2 - ((side.images**2).sum() - side.images**2)
    # A subject's sum is in the total twice: once as its own, once in those of the others.
    within = (side.within.sum() - 2 * side.within) / pairs
    across = (side.across.sum() - side.across) / (left * other.images.sum())
    values = within - 2 * across  # what the other side adds is always the same
    return float((count - 1) / count * ((values - values.mean()) ** 2).sum())


def _half_width(variances: tuple[float, float], sides: tuple[Side, Side], confidence: float) -> float:
    total = sum(variances)
    if total == 0:
        return 0.0
    shares = [(variance / total) ** 2 / (side.subjects - 1) for variance, side in zip(variances, sides, strict=True)]
    return float(student.isf((1 - confidence) / 2, 1 / sum(shares)) * math.sqrt(total))
