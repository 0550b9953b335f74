"""Looking for copies while a generator is trained: samples against train and holdout, by the audit's live index.

Each look draws the same few hundred noises from the weights as they are and writes one line to ``watch.jsonl``: the
share of samples flagged as copies, the mean highest correlation with train and with holdout images (as many of one as
of the other), the Fréchet distance to the cohort's train images, and the share of samples that are alike, closer to one
another than patients are. ``watch.png`` shows all but the last against the updates.

What a look says is internal to the house, but names and shows nobody.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from unalike import folders
from unalike.audit.changes import change_images
from unalike.audit.diversity import (
    count_images,
    highest_among,
    highest_in_set,
    judge_diversity,
    pick_one_each,
    share_alike,
    threshold_of,
)
from unalike.audit.index import CopyIndex
from unalike.cohort.roles import ImageSet
from unalike.engine import tell
from unalike.errors import SettingsError
from unalike.fidelity.features import embed_cached
from unalike.fidelity.frechet import frechet_distance
from unalike.fidelity.own import CohortFeatures, open_own_features
from unalike.generators.data import TrainImages
from unalike.generators.watching import Draw, Glance
from unalike.records import Estimate, FloatArray, IntArray, Pixels
from unalike.runs.figure import draw_watch
from unalike.runs.settings import WatchSettings
from unalike.seeds import generator_for, seed_for
from unalike.similarity.stored import find_stored
from unalike.stats.intervals import estimate_share

# What a line must say for a training to go on from it.
SAID = {"step", "level", "flagged_share", "flagged_low", "flagged_high", "within_budget", "best", "highest_train"} | {
    "highest_holdout",
    "frechet_train",
    "frechet_holdout_train",
}
PLANTED = 64  # copies planted once, to see what a look would notice
PLANTED_CHANGE = "noise, sd 15 of 255"
LEAST_POWER = 0.5


@dataclass
class LiveWatcher:
    """A `Watcher` that asks a `CopyIndex` of the images a generator is trained on, and of nobody else's."""

    images: TrainImages
    out: Path
    settings: WatchSettings
    seed: int
    place: torch.device
    lines: dict[int, dict[str, Any]] = field(init=False)
    thresholds: dict[int, float] = field(init=False, default_factory=dict)  # of alike samples, by their number

    def __post_init__(self) -> None:
        """Read what was seen before an interruption.

        Raises `SettingsError` if the training sees all subjects of the cohort: nothing could be told from anything.
        """
        self.every, self.steps, self.strict = self.settings.every, self.settings.steps, self.settings.stop
        cohort = self.images.cohort
        if not len(cohort.rows("holdout")) and len(cohort.rows("train")) == len(self.images):
            raise self._nobody()  # not only at the first look
        self.lines = read_watch(self.out)

    @property
    def stopped(self) -> bool:
        """Whether an earlier look ended the training."""
        return self.settings.stop and any(not line["within_budget"] for line in self.lines.values())

    def seen(self, step: int) -> bool:
        """Whether this update was looked at and recorded."""
        return step in self.lines

    @cached_property
    def index(self) -> CopyIndex:
        """The live index; opened at the first look, by the process that looks."""
        return CopyIndex.open(self.images.cohort, train_rows=self.images.rows, notice=tell)

    @cached_property
    def level(self) -> float:
        """The level in use: the one asked for, or the smallest p-value that the holdout can give.

        Raises `SettingsError` if there is no holdout subject: nothing could be told from anything.
        """
        smallest = self.index.smallest_p
        if smallest > 0.5:
            raise self._nobody()
        if smallest > self.settings.level:
            tell(f"{round(1 / smallest) - 1} holdout subjects: copies are watched for at level {smallest:.3g}.")
        return max(self.settings.level, smallest)

    def _nobody(self) -> SettingsError:
        return SettingsError(
            f"{self.images.cohort.path} has no holdout subjects to watch for copies with. Prepare it with --holdout."
        )

    @cached_property
    def features(self) -> CohortFeatures:
        """The cohort's own features, the same for all runs on it."""
        return open_own_features(self.images.cohort, device=self.place)

    @cached_property
    def real(self) -> tuple[FloatArray, float]:
        """Features of the cohort's train images, and the Fréchet distance of its holdout images to them."""
        cohort = self.images.cohort
        train, holdout = (
            embed_cached(self.features, cohort, cohort.rows(role), cohort.path / folders.INDEX)
            for role in ("train", "holdout")
        )
        return train, frechet_distance(holdout, train) if len(holdout) > 1 else float("nan")

    @cached_property
    def power(self) -> Estimate:
        """Share of planted copies, training images with slight noise, that a look would flag.

        Raises `SettingsError` if fewer than half are and the training is to stop on memorization: it would not. With a
        handful of subjects that is so, as none of them stands out from the others.
        """
        rows = np.sort(generator_for(0, "watch power").permutation(self.index.train)[:PLANTED])
        planted = change_images(self.images.cohort.read(rows), PLANTED_CHANGE, 0)
        found = estimate_share(int(self.index.query(planted, level=self.level).flagged.sum()), len(rows))
        if found.value < LEAST_POWER:
            told = f"of copies with slight noise of these training images only {found.value:.0%} would be noticed"
            if self.settings.stop:
                raise SettingsError(f"--stop-on-memorization: {told}. Train on more subjects, or leave it out.")
            tell(f"Watching is nearly blind here: {told}.")
        return found

    def look(self, draw: Draw, *, step: int) -> Glance:
        """Draw, judge, and compare with the looks before."""
        first = seed_for(self.seed, "watch") % 2**40
        samples = draw(range(first, first + self.settings.samples))
        line = self.judge(samples) | {"step": step}
        others = [
            entry
            for entry in self.lines.values()
            # Distances of other features, of a version before an interruption, are no comparison.
            if entry["within_budget"] and entry["step"] != step and entry.get("features") == line["features"]
        ]
        best = line["within_budget"] and all(line["frechet_train"] < entry["frechet_train"] for entry in others)
        return Glance(line | {"best": best}, best=best, stop=self.settings.stop and not line["within_budget"])

    def judge(self, samples: Pixels) -> dict[str, Any]:
        """What is known of ``samples`` (n, C, H, W): a line of ``watch.jsonl`` without its step."""
        found = self.index.query(samples, level=self.level)
        flagged = int(found.flagged.sum())
        share = estimate_share(flagged, len(samples))
        # Of images that are no copies, up to ``level`` are flagged.
        beyond = max(0.0, (share.value - self.level) / (1 - self.level))
        train, yardstick = self.real
        return {
            "samples": len(samples),
            "level": self.level,
            "power": self.power.value,
            "features": self.features.digest[:8],
            "flagged": flagged,
            "flagged_share": share.value,
            "flagged_low": share.low,
            "flagged_high": share.high,
            "copy_rate": beyond,
            "within_budget": beyond <= self.settings.budget,
            "highest_train": self._highest(samples, self._alike("train")),
            "highest_holdout": self._highest(samples, self._alike("holdout")),
            "frechet_train": frechet_distance(self.features.embed(samples), train),
            "frechet_holdout_train": yardstick,
            "alike": self._share_alike(samples).value,
        }

    def _alike(self, role: str) -> IntArray:
        """As many images of one role as of the other, drawn at random: the more there are, the closer the closest."""
        sides = {"train": self.index.train, "holdout": self.index.holdout}
        count = min(map(len, sides.values()))
        rows = sides[role]
        return np.sort(generator_for(0, f"watch {role}").permutation(rows)[:count])

    @cached_property
    def train(self) -> ImageSet:
        """The images that the generator is trained on, of whichever subjects."""
        return ImageSet(self.images.cohort, self.images.rows)

    def _count_compared(self, samples: int) -> int:
        """How many of so many samples are held against one another, and how many train images, each of one subject."""
        return count_images(samples, len(np.unique(self.train.subjects)))

    def _share_alike(self, samples: Pixels) -> Estimate:
        """Share of samples that come closer to another than train images of as many subjects come to one another."""
        m = self._count_compared(len(samples))
        if m not in self.thresholds:  # the same at every look
            chosen = pick_one_each(self.train, m, generator_for(0, "watch diversity train"))
            highest = highest_in_set(chosen, channels=self.index.channels, device=torch.device("cpu"))
            self.thresholds[m] = threshold_of(highest)
        rows = np.sort(generator_for(0, "watch diversity samples").permutation(len(samples))[:m])
        return share_alike(highest_among(samples[rows], channels=self.index.channels), self.thresholds[m])

    def _tell_alike(self, line: Mapping[str, Any]) -> str:
        """A word about samples that are alike; nothing about others."""
        m = self._count_compared(int(line["samples"]))
        if not m or not np.isfinite(line["alike"]):
            return ""
        share = estimate_share(round(line["alike"] * m), m)
        return f"; alike {100 * share.value:.0f} %" if judge_diversity(share, m) == "alike" else ""

    def _highest(self, samples: Pixels, rows: IntArray) -> float:
        """Mean over the samples of the highest correlation with the images ``rows``."""
        if len(rows) == 0:
            return float("nan")
        highest = find_stored(queries=samples, index=self.index.coarse, rows=rows).highest
        return float(np.nanmean(highest)) if np.isfinite(highest).any() else float("nan")

    def record(self, glance: Glance) -> None:
        """Write the line, tell it, and draw the picture again."""
        line = dict(glance.line)
        self.lines[int(line["step"])] = line
        write_watch(self.out, self.lines)
        draw_watch(list(self.lines.values()), budget=self.settings.budget, place=self.out / folders.WATCH_PICTURE)
        tell(
            f"step {line['step']}: {line['flagged']} of {line['samples']} samples look like copies, mean highest "
            f"correlation {line['highest_train']:.3f} with train and {line['highest_holdout']:.3f} with as many "
            f"holdout images, Fréchet distance {line['frechet_train']:.3g} (holdout: "
            f"{line['frechet_holdout_train']:.3g})"
            + self._tell_alike(line)
            + ("" if line["within_budget"] else "; beyond the budget of copies")
        )


def read_watch(out: Path) -> dict[int, dict[str, Any]]:
    """The lines of a run's ``watch.jsonl`` by their step, ascending; a line cut short is passed over."""
    lines: dict[int, dict[str, Any]] = {}
    place = out / folders.WATCH
    if place.is_file():
        for text in place.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                entry = json.loads(text)
                if entry.keys() >= SAID:
                    step = int(entry["step"])
                    lines[step] = {key: np.nan if value is None else value for key, value in entry.items()}
            except (ValueError, KeyError, TypeError, OverflowError, AttributeError):
                continue
    return dict(sorted(lines.items()))


def write_watch(out: Path, lines: Mapping[int, Mapping[str, Any]]) -> None:
    """Write ``watch.jsonl``, whole or not at all."""
    from unalike.records import as_json

    text = "".join(json.dumps(as_json(line)) + "\n" for _, line in sorted(lines.items()))
    temporary = out / f"{folders.WATCH}.partial"
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(out / folders.WATCH)
