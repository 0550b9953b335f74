"""What is said of all synthetic images together: closeness, the rate of copies, and how many patients more."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from unalike.audit.calibrate import Calibration
from unalike.audit.exposure import ExposedSubject
from unalike.audit.power import PowerRow, caught
from unalike.audit.search import Comparison, compare_sets
from unalike.audit.verdict import weakest_plain_copy
from unalike.cohort.roles import ImageSet, Roles
from unalike.records import Estimate, FloatArray
from unalike.seeds import generator_for
from unalike.stats.intervals import estimate_mean
from unalike.stats.rates import closer_share, upper_bound_of_copy_rate
from unalike.stats.richness import estimate_richness, expected_new


def whole_set_estimates(
    roles: Roles,
    comparisons: Mapping[str, Comparison],
    calibration: Calibration,
    power: Sequence[PowerRow],
    exposed: Sequence[ExposedSubject],
    channels: Sequence[int],
    seed: int,
    device: torch.device,
) -> dict[str, Any]:
    """Estimates of the whole set, each with its interval."""
    copied = comparisons["synthetic-train"]
    estimates: dict[str, Any] = {"distance_ratio": _distance_ratios(comparisons, seed)}
    if len(roles.holdout):
        estimates["closer_to_train_share"] = _closer_to_train(roles, comparisons, channels, seed, device)
    weakest = weakest_plain_copy(power)
    if weakest is not None:
        found = int(caught(calibration.p_values, calibration.holdout_subjects).sum())
        defined = int(np.isfinite(calibration.p_values).sum())
        estimates["copy_rate_at_most"] = upper_bound_of_copy_rate(found=found, n=defined, sensitivity=weakest.planted)
    counts = np.asarray([entry.copies for entry in exposed], dtype=np.int64)
    total = len(np.unique(copied.references.subjects))
    if len(counts):
        estimates["exposed_subjects_in_the_long_run"] = estimate_richness(counts, total=total)
        estimates["further_subjects_if_doubled"] = expected_new(
            counts, factor=1.0, random=generator_for(seed, "further-subjects"), total=total
        )
    return estimates


def _distance_ratios(comparisons: Mapping[str, Comparison], seed: int) -> dict[str, Estimate]:
    """Mean of (1 − r) to the nearest over that to the second-nearest subject: near 0 for copies, near 1 for strangers.

    (Of the best matches that are kept; images whose best matches are all of one subject are left out.)
    """
    return {
        name: estimate_mean(
            _ratios(comparison), comparison.queries.subjects, random=generator_for(seed, f"distance ratio {name}")
        )
        for name, comparison in comparisons.items()
        if name.endswith("-train")
    }


def _ratios(comparison: Comparison) -> FloatArray:
    rows, similarities = comparison.best_rows, comparison.result.similarities
    owners = np.append(comparison.references.folder.column("subject"), "")[rows]
    other = (owners != owners[:, :1]) & (rows >= 0)
    place = other.argmax(axis=1)
    second = np.where(other.any(axis=1), similarities[np.arange(len(rows)), place], np.nan)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios: FloatArray = (1 - similarities[:, 0]) / (1 - second)
    return np.where(np.isfinite(ratios), ratios, np.nan)


def _closer_to_train(
    roles: Roles, comparisons: Mapping[str, Comparison], channels: Sequence[int], seed: int, device: torch.device
) -> Estimate:
    """Share of synthetic images closer to train than to the holdout, both with as many images: about one half.

    The larger side is thinned out by whole subjects; this statistic alone needs it.
    """
    random = generator_for(seed, "same-size")
    sides = {}
    fewest = min(len(roles.train), len(roles.holdout))
    for name, images in (("train", roles.train), ("holdout", roles.holdout)):
        comparison = comparisons[f"synthetic-{name}"]
        if len(images) > fewest:
            comparison = compare_sets(
                roles.synthetic,
                _thin_out(images, fewest, random),
                best=1,
                channels=channels,
                device=device,
                title=f"Comparing synthetic → {name} of the same size",
                mean=False,
            )
        sides[name] = comparison.highest
    found = closer_share(
        sides["train"],
        sides["holdout"],
        roles.synthetic.subjects,
        random=generator_for(seed, "closer-to-train"),
    )
    return found if fewest > 1 else replace(found, low=math.nan, high=math.nan)


def _thin_out(images: ImageSet, count: int, random: np.random.Generator) -> ImageSet:
    """About ``count`` of the images: whole subjects in random order, the last one in part."""
    names = random.permutation(np.unique(images.subjects))
    rank = {name: place for place, name in enumerate(names.tolist())}
    order = np.argsort([rank[name] for name in images.subjects.tolist()], kind="stable")[:count]
    return ImageSet(images.folder, np.sort(images.rows[order]))
