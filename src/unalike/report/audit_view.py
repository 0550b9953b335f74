"""An audit as its template shows it: figures drawn, pairs turned into pictures, statistics put into words."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from markupsafe import Markup
from matplotlib.figure import Figure

from unalike import folders
from unalike.records import Estimate
from unalike.report import figures, pictures
from unalike.report.pictures import Picture
from unalike.report.poses import AS_IT_IS
from unalike.report.read import COMPARISONS, Audit, Pairs
from unalike.report.statistics import PER_COMPARISON, STATISTICS, Statistic

# Statistics that mean nothing where nothing could be flagged.
NEED_FLAGS = (
    "flagged_share",
    "exposed_subjects",
    "exposed_subjects_in_the_long_run",
    "further_subjects_if_doubled",
)
ICONS = {"copies found": "copies", "no copies found": "clear"}
DISTRIBUTIONS = {
    "highest-correlations": ("synthetic-train", "holdout-train"),
    "highest-correlations-with-holdout": ("synthetic-train", "synthetic-holdout"),
}


@dataclass(frozen=True)
class ChannelView:
    """One channel of a pair, drawn."""

    name: str
    compared: bool
    synthetic: Picture
    train: Picture
    difference: Picture
    scatter: Picture
    before: Picture | None
    after: Picture | None


@dataclass(frozen=True)
class PairView:
    """One pair and what is said of it."""

    synthetic_index: int
    train_index: int
    seed: int
    subject: str
    synthetic_label: str
    train_label: str
    similarity: float
    correlation: float
    measure: str
    pose: str
    turned: bool
    p_value: float
    q_value: float
    flagged: bool
    channels: tuple[ChannelView, ...]


@dataclass(frozen=True)
class StatisticView:
    """A statistic of the whole set with its values: comparison (empty if there is only one), estimate, or why none."""

    statistic: Statistic
    values: tuple[tuple[str, Estimate | None], ...]
    absent: str


@dataclass(frozen=True)
class AuditView:
    """One audit as the template shows it."""

    audit: Audit
    anchor: str
    icon: str
    figures: dict[str, Markup]
    pairs: tuple[PairView, ...]
    statistics: tuple[StatisticView, ...]
    spoke: tuple[tuple[str, int], ...]
    turned: int
    reduced: bool


def view_audit(audit: Audit, number: int, *, budget: int, most: int | None = None) -> AuditView:
    """All that the page shows of the audit with this number; ``budget`` bounds the characters of its pictures' data.

    Its figures are kept in its folder. ``most`` bounds the pairs, where a desk shows all of them.
    """
    anchor = f"audit-{number}"
    return AuditView(
        audit=audit,
        anchor=anchor,
        icon=ICONS.get(audit.content["verdict"]["decision"], "unclear"),
        figures=_draw_figures(audit, audit.folder / folders.FIGURES, anchor=anchor),
        pairs=_view_pairs(audit, budget=budget, most=most),
        statistics=tuple(_view_statistic(audit, statistic) for statistic in STATISTICS if _was_made(audit, statistic)),
        spoke=tuple(Counter(audit.queries.measure[_told(audit)].tolist()).most_common()),
        turned=int((audit.queries.pose[_told(audit)] != AS_IT_IS).sum()),
        reduced=max(audit.size) > pictures.LARGEST_SIDE,
    )


def _told(audit: Audit) -> npt.NDArray[np.bool_]:
    """Flagged images of which the audit tells the measure and the pose."""
    told: npt.NDArray[np.bool_] = audit.queries.flagged & (audit.queries.measure != "")
    return told


def _was_made(audit: Audit, statistic: Statistic) -> bool:
    """Older audits made fewer statistics; the newer ones all made distance ratios."""
    old = ("mean_highest_correlation", "mean_correlation", "excess_over_holdout", "flagged_share", "exposed_subjects")
    return statistic.key in old or bool(audit.per_comparison["distance_ratio"])


def _view_statistic(audit: Audit, statistic: Statistic) -> StatisticView:
    counts = audit.content["counts"]
    absent = "no holdout" if not counts["holdout"] else "not measured"
    if statistic.key in PER_COMPARISON:
        found = audit.per_comparison[statistic.key]
        names = [name for name in COMPARISONS if name in found or statistic.key != "distance_ratio"]
        return StatisticView(statistic, tuple((name, found.get(name)) for name in names), absent)
    judged = audit.can_flag or statistic.key not in NEED_FLAGS
    if not judged:
        absent = "undefined: too few holdout subjects" if counts["holdout"] else "undefined: no holdout"
    elif statistic.key in ("exposed_subjects_in_the_long_run", "further_subjects_if_doubled"):
        absent = "undefined: nobody is exposed so far"
    elif statistic.key == "copy_rate_at_most" and counts["holdout"]:
        absent = "undefined: the power was not measured"
    estimate = audit.estimates.get(statistic.key)
    if statistic.key == "exposed_subjects":
        exposed, total = float(audit.content["exposed_subjects"]), int(counts["train_subjects"])
        estimate = Estimate(exposed, math.nan, math.nan, total, "count in this sample")
    return StatisticView(statistic, (("", estimate if judged else None),), absent)


def _draw_figures(audit: Audit, directory: Path, *, anchor: str) -> dict[str, Markup]:
    """Write the audit's figures and return those that the page shows, by name."""
    directory.mkdir(exist_ok=True)
    drawn = {}

    def keep(name: str, figure: Figure, label: str) -> None:
        svg = figures.save_figure(figure, directory / name)
        drawn[name] = Markup(figures.inline_svg(svg, prefix=f"{anchor}-{name}", label=label))  # noqa: S704

    bins = figures.choose_bins(list(audit.highest.values()))
    for name, wanted in DISTRIBUTIONS.items():
        comparisons = [comparison for comparison in wanted if comparison in audit.highest]
        # With nothing to set it against, the second figure would repeat the first.
        if comparisons and (name == "highest-correlations" or len(comparisons) > 1):
            figure = figures.draw_distribution(audit, comparisons, bins=bins)
            keep(name, figure, f"Histogram of highest correlations: {', '.join(comparisons)}")
    subjects = int(audit.content["calibration"]["holdout_subjects"])
    if subjects and np.isfinite(audit.queries.p_value).any():
        keep("p-values", figures.draw_p_values(audit.queries.p_value, subjects=subjects), "Histogram of p-values")
    if audit.power:
        label = "Shares of planted copies and of changed holdout images caught, by change"
        keep("power", figures.draw_power(audit.power), label)
    if audit.pairs:
        channel = audit.channels.index(audit.compared[0])
        figures.save_figure(figures.draw_pairs(audit.pairs, channel=channel), directory / "closest-pairs")
    return drawn


def _view_pairs(audit: Audit, *, budget: int, most: int | None) -> tuple[PairView, ...]:
    """Draw pairs, in their order, until the page's share of picture data is used up."""
    pairs = audit.pairs
    if pairs is None:
        return ()
    names, compared = audit.channels, audit.compared
    windows = [
        pictures.show_window(pairs.synthetic[:, channel], pairs.train[:, channel], compared=name in compared)
        for channel, name in enumerate(names)
    ]
    views: list[PairView] = []
    for row in range(len(pairs))[:most]:
        channels = tuple(
            _view_channel(pairs, row, channel, name=name, compared=name in compared, window=windows[channel])
            for channel, name in enumerate(names)
        )
        budget -= sum(_weight(channel) for channel in channels)
        if budget < 0 and views:
            break
        views.append(_view_pair(pairs, row, channels))
    return tuple(views)


def _view_pair(pairs: Pairs, row: int, channels: tuple[ChannelView, ...]) -> PairView:
    return PairView(
        synthetic_index=int(pairs.synthetic_index[row]),
        train_index=int(pairs.train_index[row]),
        seed=int(pairs.seed[row]),
        subject=str(pairs.train_subject[row]),
        synthetic_label=str(pairs.synthetic_label[row]),
        train_label=str(pairs.train_label[row]),
        similarity=float(pairs.similarity[row]),
        correlation=float(pairs.correlation[row]),
        measure=str(pairs.measure[row]),
        pose=str(pairs.pose[row]),
        turned=str(pairs.pose[row]) != AS_IT_IS,
        p_value=float(pairs.p_value[row]),
        q_value=float(pairs.q_value[row]),
        flagged=bool(pairs.flagged[row]),
        channels=channels,
    )


def _view_channel(
    pairs: Pairs, row: int, channel: int, *, name: str, compared: bool, window: pictures.Window
) -> ChannelView:
    synthetic, train = pairs.synthetic[row, channel], pairs.train[row, channel]
    before, after = (
        pictures.draw_picture(pairs.neighbours[row, side, channel], window=window)
        if pairs.neighbour_valid[row, side]
        else None
        for side in (0, 1)
    )
    return ChannelView(
        name=name,
        compared=compared,
        synthetic=pictures.draw_picture(synthetic, window=window),
        train=pictures.draw_picture(train, window=window),
        difference=pictures.draw_difference(synthetic, train, window=window, full=figures.DIFFERENCE_FULL),
        scatter=pictures.draw_scatter(synthetic, train, window=window),
        before=before,
        after=after,
    )


def weigh_pairs(view: AuditView) -> int:
    """Characters of picture data in all pairs that the page shows."""
    return sum(_weight(channel) for pair in view.pairs for channel in pair.channels)


def _weight(view: ChannelView) -> int:
    drawn = (view.synthetic, view.train, view.difference, view.scatter, view.before, view.after)
    return sum(len(picture.uri) for picture in drawn if picture is not None)
