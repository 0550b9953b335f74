"""How varied one set of images is: structural similarity among random pairs, to the nearest, and the Vendi score.

Nothing here has a right value: all of it depends on the number of images, and patients differ as much as they do. So
every number of samples stands beside that of holdout and of train, from *equally many* images, one of each subject
(`pick_one_each`), as `audit.diversity` does it with correlations.

* `multiscale_estimate`: mean MS-SSIM of random pairs (Wang, Simoncelli & Bovik, "Multiscale structural similarity for
  image quality assessment", 2003, equation 7), as Odena et al. 2017 used it: higher is less varied.
* `measure_nearest`: highest SSIM of each image with another of its set, compared by a divergence of histograms (Pan et
  al., "2D medical image synthesis using transformer-based denoising diffusion probabilistic model", 2023), and what
  that leaves out: of samples with train, beside that of holdout with train.
* `vendi_score`: the effective number of different images (Friedman & Dieng, "The Vendi score", 2023, definition 3.1).

A mask is no picture: the caller leaves it out of the channels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy.special import entr
from scipy.stats import norm
from scipy.stats import t as student
from torch.nn import functional as F

from unalike.cohort.roles import pick_one_each
from unalike.errors import InputError, SettingsError
from unalike.records import Estimate, FloatArray, IntArray, Pixels, TextArray
from unalike.seeds import generator_for, seed_for
from unalike.similarity.correlation import Block
from unalike.similarity.ssim import K1, K2, SIGMA, WINDOW, check_alike, check_window, find_by_ssim

# Of the five scales, fine to coarse (Wang et al. 2003, section 3.2); of fewer, the first ones divided by their sum.
SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
PAIRS = 1000  # of a set, about; all pairs where there are fewer
PAIRS_AT_ONCE = 64
PIXELS_AT_ONCE = 2**20  # of float64 on either side
# Of equal width from 0 to 1: with hundreds of images some dozens in each. Below 0 counts as the first.
BINS = 20
SMOOTHING = 0.5  # images added to each bin, so that Kullback & Leibler's divergence is finite (Jeffreys)
RESAMPLES = 1000
MOST_VENDI = 500  # images of a part: the eigenvalues of 100 such take seconds
VENDI_PARTS = 100


@dataclass(frozen=True)
class Divergence:
    """How far one distribution lies from another, in bits, from histograms of `BINS` bins.

    ``kullback_leibler`` is Σ p log(p/q) ≥ 0 of the first relative to the second, with `SMOOTHING`;
    ``jensen_shannon`` is symmetric and between 0 (equal) and 1 (no bin in common), without.
    """

    kullback_leibler: Estimate
    jensen_shannon: Estimate


@dataclass(frozen=True)
class NearestSimilarities:
    """Highest SSIM (m,) of each image: with another of its own set, and with a train image.

    ``drawn`` is samples' within relative to train's within, ``yardstick`` holdout's within relative to train's;
    ``to_train`` is samples' with train relative to holdout's with train. A divergence does not tell which side is
    higher: copies and blur bring samples nearer to train than holdout is, noise takes them away. The means tell.
    """

    synthetic: FloatArray
    holdout: FloatArray
    train: FloatArray
    synthetic_to_train: FloatArray
    holdout_to_train: FloatArray
    drawn: Divergence
    yardstick: Divergence
    to_train: Divergence


# Multiscale SSIM of random pairs


def count_scales(height: int, width: int) -> int:
    """Number of scales of images of this size (pixels): halved again while 11 × 11 fit, 5 from 176 pixels on.

    Raises `SettingsError` below 11.
    """
    check_window(np.empty((0, 1, height, width), np.uint8))
    return min(len(SCALE_WEIGHTS), (min(height, width) // WINDOW).bit_length())


def multiscale_name(height: int, width: int) -> str:
    """What a report calls MS-SSIM of images of this size: values of different numbers of scales do not compare."""
    scales = count_scales(height, width)
    return f"MS-SSIM ({scales} scale{'s' if scales > 1 else ''})"


def multiscale_ssim(a: Pixels, b: Pixels, *, device: torch.device | None = None) -> FloatArray:
    """MS-SSIM (n,) of image ``a[i]`` with ``b[i]``, both (n, C, H, W) uint8 or uint16: in [0, 1], 1 if equal.

    Π over scales of (mean contrast and structure)^w, at the coarsest of (mean SSIM)^w, with windows as in
    `similarity.ssim`; from scale to scale images are averaged over 2 × 2 pixels (an odd last row or column is left
    out). A negative mean counts as 0. Each channel by itself, then their mean. At the coarsest scale, where few windows
    lie within the image, the border is mirrored and windows lie around all pixels: not as Wang et al. had it, but of
    one channel this is torchmetrics' ``multiscale_structural_similarity_index_measure`` with ``data_range`` 255 or
    65,535, and ``betas`` of as many scales. In float64.

    Raises `SettingsError` where H or W is below 11 and `InputError` where the images do not fit each other.
    """
    check_alike(a, b)
    if len(a) != len(b):
        raise InputError(f"{len(a)} images cannot be paired with {len(b)}. Give as many of both.")
    count, channels, height, width = a.shape
    shares = np.array(SCALE_WEIGHTS[: count_scales(height, width)])
    shares /= shares.sum()
    device, top = device or torch.device("cpu"), float(np.iinfo(a.dtype).max)
    found = np.empty(count)
    step = max(PIXELS_AT_ONCE // max(channels * height * width, 1), 1)
    for begin in range(0, count, step):
        part = slice(begin, begin + step)
        sides = (torch.from_numpy(images[part].astype(np.float64) / top).to(device) for images in (a, b))
        one, two = (side.reshape(-1, 1, height, width) for side in sides)
        found[part] = _multiscale(one, two, shares.tolist()).reshape(-1, channels).mean(dim=1).cpu().numpy()
    return found


def multiscale_estimate(
    images: Pixels, *, seed: int, confidence: float = 0.95, device: torch.device | None = None
) -> Estimate:
    """Mean MS-SSIM of two different ``images`` (m, C, H, W) of m subjects, with an interval by subjects.

    Over all pairs, or over about `PAIRS` random ones of which each image has equally many. The standard error is the
    jackknife that leaves out a subject with all of its pairs; it errs upwards, by up to twofold in variance where
    single pairs differ more than images do. The interval is value ± it · Student's t. Simulated with similarities
    exp(−|x − y|²/D) of normal x and y (D from 1 to 16, 10 to 1,000 subjects; 600 repetitions): it held the truth in 94
    to 99 %.

    ``n`` is m. Fewer than 2 images: undefined; 2: a value, no interval. Raises what `multiscale_ssim` raises.
    """
    count = len(images)
    pairs = _random_pairs(count, generator_for(seed, "variety pairs"))
    values = np.empty(len(pairs))
    for begin in range(0, len(pairs), PAIRS_AT_ONCE):  # to pick images is to copy them
        part = slice(begin, begin + PAIRS_AT_ONCE)
        values[part] = multiscale_ssim(images[pairs[part, 0]], images[pairs[part, 1]], device=device)
    return _pairs_estimate(values, pairs, count, confidence)


def _random_pairs(count: int, random: np.random.Generator) -> IntArray:
    """Pairs (p, 2) of numbers below ``count``, none twice: all, or about `PAIRS` in which each occurs equally often."""
    if count * (count - 1) <= 2 * PAIRS:
        return np.stack(np.triu_indices(count, 1), axis=1).astype(np.int64)
    order = random.permutation(count)
    # On a circle in random order, each with the next few.
    steps = range(1, math.ceil(PAIRS / count) + 1)
    return np.concatenate([np.stack([order, np.roll(order, -step)], axis=1) for step in steps]).astype(np.int64)


def _pairs_estimate(values: FloatArray, pairs: IntArray, count: int, confidence: float) -> Estimate:
    method = "jackknife of subjects"
    if count < 2:
        return Estimate(math.nan, math.nan, math.nan, count, method, confidence)
    value = float(values.mean())
    if count == 2:
        return Estimate(value, math.nan, math.nan, count, method, confidence)
    sums, often = (
        sum(np.bincount(pairs[:, side], weights=weights, minlength=count) for side in (0, 1))
        for weights in (values, np.ones(len(values)))
    )
    left = (values.sum() - sums) / (len(values) - often)
    error = math.sqrt((count - 1) / count * float(((left - left.mean()) ** 2).sum()))
    half = float(student.isf((1 - confidence) / 2, count - 1)) * error
    return Estimate(value, value - half, value + half, count, method, confidence)


def _multiscale(a: torch.Tensor, b: torch.Tensor, shares: list[float]) -> torch.Tensor:
    """MS-SSIM (n,) of images (n, 1, H, W) float64 in [0, 1], with the weight of each scale."""
    result = torch.ones(len(a), dtype=a.dtype, device=a.device)
    for scale, share in enumerate(shares):
        if scale:
            a, b = F.avg_pool2d(a, 2), F.avg_pool2d(b, 2)
        if scale < len(shares) - 1:
            local = _components(a, b)[1]
        else:
            light, contrast = _components(*(F.pad(side, [WINDOW // 2] * 4, mode="reflect") for side in (a, b)))
            local = light * contrast
        result *= local.mean(dim=(1, 2, 3)).clamp_(min=0) ** share
    return result


def _components(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Luminance, and contrast and structure together, of all windows (n, 1, H − 10, W − 10)."""
    mean_a, mean_b = _window_means(a), _window_means(b)
    squares, products = mean_a**2 + mean_b**2, mean_a * mean_b
    spread = _window_means(a * a + b * b) - squares
    covariance = _window_means(a * b) - products
    return (2 * products + K1**2) / (squares + K1**2), (2 * covariance + K2**2) / (spread + K2**2)


def _window_means(images: torch.Tensor) -> torch.Tensor:
    offsets = torch.arange(WINDOW, dtype=images.dtype, device=images.device) - WINDOW // 2
    weights = torch.exp(-0.5 * (offsets / SIGMA) ** 2)
    weights /= weights.sum()
    return F.conv2d(F.conv2d(images, weights.view(1, 1, -1, 1)), weights.view(1, 1, 1, -1))


# SSIM with the nearest


def nearest_within(images: Pixels, *, device: torch.device | None = None) -> FloatArray:
    """Highest SSIM (m,) of each of ``images`` (m, C, H, W) with another of them, in [−1, 1]; NaN for one alone.

    Raises `SettingsError` where H or W is below 11.
    """
    found = find_by_ssim(queries=images, references=[Block(0, images)], best=2, device=device)
    others = (found.references >= 0) & (found.references != np.arange(len(images))[:, None])
    highest: FloatArray = np.where(others, found.similarities, -np.inf).max(axis=1)
    return np.where(np.isneginf(highest), math.nan, highest)


def nearest_across(images: Pixels, references: Pixels, *, device: torch.device | None = None) -> FloatArray:
    """Highest SSIM (m,) of each of ``images`` (m, C, H, W) with any of ``references`` (r, C, H, W); NaN without any.

    Raises `SettingsError` where H or W is below 11 and `InputError` where images do not fit each other.
    """
    found = find_by_ssim(queries=images, references=[Block(0, references)], best=1, device=device)
    return found.similarities[:, 0]


def measure_nearest(
    synthetic: Pixels,
    holdout: Pixels,
    train: Pixels,
    *,
    seed: int,
    confidence: float = 0.95,
    device: torch.device | None = None,
) -> NearestSimilarities:
    """SSIM of nearest images within and across sets of equally many images (m, C, H, W), one of each subject.

    The more images there are, the closer the closest is; so sets of different size are refused. A set without images
    leaves all that needs it undefined. 5 m² SSIMs: the caller takes some hundred images.

    Raises `InputError` for sets of different size or images that do not fit, `SettingsError` for images below 11
    pixels.
    """
    sizes = {len(images) for images in (synthetic, holdout, train) if len(images)}
    if len(sizes) > 1:
        raise InputError(f"sets of {sorted(sizes)} images do not compare. Take equally many, one of each subject.")
    within = [nearest_within(images, device=device) for images in (synthetic, holdout, train)]
    across = [nearest_across(images, train, device=device) for images in (synthetic, holdout)]
    pairs = {"drawn": (within[0], within[2]), "yardstick": (within[1], within[2]), "to_train": (across[0], across[1])}
    found = {
        name: nearest_divergence(*pair, seed=seed_for(seed, f"variety {name}"), confidence=confidence)
        for name, pair in pairs.items()
    }
    return NearestSimilarities(
        synthetic=within[0],
        holdout=within[1],
        train=within[2],
        synthetic_to_train=across[0],
        holdout_to_train=across[1],
        **found,
    )


def nearest_divergence(a: FloatArray, b: FloatArray, *, seed: int, confidence: float = 0.95) -> Divergence:
    """Divergence of similarities ``a`` (n,) from ``b`` (m,), each of one subject, in bits; NaN are left out.

    Histograms of `BINS` bins of equal width over [0, 1]. Two samples of one distribution are some way apart too (in a
    simulation 30 images of either side 0.36 bits by Kullback & Leibler and 0.17 by Jensen & Shannon, 100 images 0.16
    and 0.05), so the value stands beside a yardstick of equally many images. The interval is value ± z · deviation over
    resampled images of both sides, whose nearest images stay what they are; its low bound is lower by as much as
    resampling adds, which is not all: with 30 images it held the truth of Jensen & Shannon's in 91 %, else in 96 to
    100 % (300 repetitions). ``n`` is the smaller number of images; fewer than 2 on a side: undefined.
    """
    counts = [_histogram(values) for values in (a, b)]
    n = int(min(count.sum() for count in counts))
    if n < 2:
        undefined = Estimate(math.nan, math.nan, math.nan, n, "bootstrap of images, both sides", confidence)
        return Divergence(undefined, undefined)
    random = generator_for(seed, "variety divergence")
    drawn = [
        random.multinomial(int(count.sum()), count / count.sum(), size=RESAMPLES).astype(np.float64) for count in counts
    ]
    kinds = ((_kullback_leibler, math.inf), (_jensen_shannon, 1.0))
    estimates = [
        _divergence_estimate(float(kind(*counts)), kind(*drawn), n, confidence, highest) for kind, highest in kinds
    ]
    return Divergence(*estimates)


def _histogram(values: FloatArray) -> FloatArray:
    defined = values[~np.isnan(values)]
    counts, _ = np.histogram(np.clip(defined, 0, 1), bins=BINS, range=(0, 1))
    return counts.astype(np.float64)


def _shares(counts: FloatArray) -> FloatArray:
    shares: FloatArray = counts / counts.sum(axis=-1, keepdims=True)
    return shares


def _kullback_leibler(a: FloatArray, b: FloatArray) -> FloatArray:
    """Of counts (…, bins), smoothed, in bits; (…)."""
    p, q = _shares(a + SMOOTHING), _shares(b + SMOOTHING)
    return np.asarray((p * np.log2(p / q)).sum(axis=-1))


def _jensen_shannon(a: FloatArray, b: FloatArray) -> FloatArray:
    """Of counts (…, bins), in bits; (…). The entropy of the mean less the mean entropy."""
    p, q = _shares(a), _shares(b)
    nats = entr((p + q) / 2).sum(axis=-1) - (entr(p).sum(axis=-1) + entr(q).sum(axis=-1)) / 2
    return np.asarray(np.maximum(nats / math.log(2), 0))


def _divergence_estimate(value: float, replicates: FloatArray, n: int, confidence: float, highest: float) -> Estimate:
    half = float(norm.isf((1 - confidence) / 2) * replicates.std(ddof=1))
    added = max(float(replicates.mean()) - value, 0.0)
    low, high = max(value - half - added, 0.0), min(value + half, highest)
    return Estimate(value, low, high, n, "bootstrap of images, both sides", confidence)


# Vendi score


def vendi_score(features: FloatArray) -> float:
    """Effective number of different images among ``features`` (n, D): between 1 (all equal) and n (all orthogonal).

    exp(−Σ λ ln λ) over the eigenvalues of K/n, K the cosines of all pairs of feature vectors. Worked out from the
    D × D products of columns where D < n: the other eigenvalues are 0. It grows with n: compare equal n only.

    Raises `InputError` without images, for features that are not finite, or a vector of length 0, which has no cosine.
    """
    table = np.asarray(features, dtype=np.float64)
    if table.ndim != 2 or not table.size:
        raise InputError(f"features {table.shape} are no set of vectors. Give (n, D), a row for each image.")
    lengths = np.linalg.norm(table, axis=1)
    if not np.isfinite(lengths).all() or not lengths.all():
        raise InputError("a feature vector is not finite or of length 0. Check the images and the features.")
    unit = table / lengths[:, None]
    side = unit.T @ unit if unit.shape[1] < len(unit) else unit @ unit.T
    eigenvalues = np.linalg.eigvalsh(side / len(unit))
    return float(np.exp(entr(np.clip(eigenvalues, 0, 1)).sum()))


def count_vendi(*subjects: int) -> int:
    """How many images each Vendi score is of: half the smallest number of ``subjects``, at most `MOST_VENDI`."""
    return min(min(subjects) // 2, MOST_VENDI)


def vendi_estimate(
    features: FloatArray, *, subjects: TextArray, size: int, seed: int, confidence: float = 0.95
) -> Estimate:
    """Expected Vendi score of ``size`` images of different subjects, from ``features`` (n, D) of ``subjects`` (n,).

    The mean over `VENDI_PARTS` random parts of ``size`` subjects, one random image each. Sets compare at the same
    ``size``, at most half of the subjects of each (`count_vendi`). The standard error is that of the jackknife leaving
    out all others of S subjects: deviation over parts · √(size/(S − size)) (Shao & Wu 1989); which image stands for a
    subject adds to it. The interval is value ± z · it, between 1 and ``size``. Simulated
    (normal features of 4 and 32 dimensions, 20 to 200 subjects of 1 or 3 images; 200 repetitions): it held the score
    expected of ``size`` new subjects in 94 to 99.5 %.

    ``n`` is S. Fewer than 2 · ``size`` subjects: undefined. Raises `SettingsError` for a ``size`` below 2, `InputError`
    as `vendi_score` and where there is not one subject for each image.
    """
    method = f"parts of {size} subjects"
    if size < 2:
        raise SettingsError(f"size = {size}: a Vendi score needs at least 2 images. Add subjects or leave it out.")
    if np.shape(subjects) != (len(features),):
        raise InputError(f"{len(features)} images have subjects {np.shape(subjects)}. Give one for each image.")
    count = len(np.unique(subjects))
    if count < 2 * size:
        return Estimate(math.nan, math.nan, math.nan, count, method, confidence)
    parts = [pick_one_each(subjects, size, generator_for(seed, "variety vendi", index)) for index in range(VENDI_PARTS)]
    scores = np.array([vendi_score(features[rows]) for rows in parts])
    value = float(scores.mean())
    half = float(norm.isf((1 - confidence) / 2) * scores.std(ddof=1)) * math.sqrt(size / (count - size))
    return Estimate(value, max(value - half, 1.0), min(value + half, float(size)), count, method, confidence)
