"""The statistics of a whole set: their names, what each says and what it does not, for pages and printed lines."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from unalike.records import Estimate
from unalike.report.words import Kind, format_estimate


@dataclass(frozen=True)
class Statistic:
    """One statistic: its key among an audit's estimates, and its meaning in a sentence each way.

    ``brief`` says whether it is among the printed lines of the command.
    """

    key: str
    label: str
    kind: Kind
    says: str
    says_not: str
    brief: bool = True


STATISTICS = (
    Statistic(
        "mean_highest_correlation",
        "Mean highest correlation",
        "correlation",
        "How alike the one most similar image is, on average (Akbar et al. 2025, table 2). "
        "The holdout is the yardstick: so alike are new patients.",
        "That anyone was copied: smooth images are more alike than sharp ones, whoever they show.",
    ),
    Statistic(
        "mean_correlation",
        "Mean correlation",
        "correlation",
        "How alike images are to all others, on average: the level that common anatomy gives.",
        "Anything about single images or patients.",
        brief=False,
    ),
    Statistic(
        "excess_over_holdout",
        "Excess over holdout",
        "correlation",
        "How much closer to train synthetic images come than new patients do, in mean highest correlation.",
        "That anyone was copied: a smooth generator has an excess too.",
    ),
    Statistic(
        "distance_ratio",
        "Distance ratio, nearest to second-nearest subject",
        "correlation",
        "The distance, 1 − correlation, to the nearest subject over that to the second-nearest, on average: "
        "near 0 for copies of one patient each, near 1 for strangers.",
        "How many are copies: an average hides a few among many images, and patients who look alike raise it even for "
        "copies.",
    ),
    Statistic(
        "closer_to_train_share",
        "Closer to train than to a holdout of the same size",
        "share",
        "One half is expected of a generator that learned nothing but the population.",
        "That anyone was copied: it is a property of the whole set, and a generator that fits its training set closely "
        "lies above one half without repeating a patient.",
    ),
    Statistic(
        "flagged_share",
        "Flagged as copies",
        "share",
        "Share of images that stand out as one training patient's more than new patients' images explain.",
        "How many copies were changed in ways to which this audit is blind.",
        brief=False,
    ),
    Statistic(
        "copy_rate_at_most",
        "Copies among all that it would draw",
        "bound",
        "No larger share of copies goes with what was found, allowing for plain copies that are missed.",
        "Anything about copies that are changed by more than slight noise; "
        "how often those are missed stands under “What this audit would have caught”.",
    ),
    Statistic(
        "exposed_subjects",
        "Training subjects exposed in this sample",
        "count",
        "So many training patients have at least one flagged image.",
        "How many a larger sample would expose.",
        brief=False,
    ),
    Statistic(
        "exposed_subjects_in_the_long_run",
        "Exposed in the long run",
        "count",
        "At least so many would be exposed if images were drawn without end, "
        "judged by how many subjects were copied once or twice so far (Chao1).",
        "Who they are, nor how soon. A false alarm mostly looks like a subject copied once, and raises it.",
    ),
    Statistic(
        "further_subjects_if_doubled",
        "Further subjects if the sample is doubled",
        "count",
        "So many more subjects are to be expected if as many images are drawn again (Chao et al. 2014).",
        "What one further sample brings: that scatters around the expected number.",
    ),
)
PER_COMPARISON = ("mean_highest_correlation", "mean_correlation", "distance_ratio")


def brief_lines(estimates: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Name and value in words of the statistics that were made, for printing.

    ``estimates`` holds an `Estimate` for each key, or a mapping of them by comparison; what is absent is left out.
    """
    for statistic in STATISTICS:
        found = estimates.get(statistic.key)
        if found is None or not statistic.brief:
            continue
        label = statistic.label[0].lower() + statistic.label[1:]
        if isinstance(found, Estimate):
            yield label, format_estimate(found, statistic.kind)
            continue
        for comparison, estimate in found.items():
            yield f"{label}, {comparison.replace('-', ' → ')}", format_estimate(estimate, statistic.kind)
