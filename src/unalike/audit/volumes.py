"""Slices of one volume vote: is a synthetic volume a copy of one patient's?

The evidence of a volume is the mean of its slices' in each measure; holdout volumes are treated alike, and calibrate.
Whose it is, is what most slices point at. That they agree is no evidence by itself: neighbouring slices of one person
agree on whoever looks like them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from unalike.audit.calibrate import p_values_of
from unalike.audit.evidence import Evidence
from unalike.cohort.roles import ImageSet
from unalike.records import FloatArray, IntArray, TextArray
from unalike.stats.conformal import benjamini_hochberg


@dataclass(frozen=True)
class VolumeVote:
    """One synthetic volume: how many slices, whom most of them point at, the share that does, and what it means."""

    volume: str
    slices: int
    subject: str
    agreement: float
    p_value: float
    q_value: float
    flagged: bool


def vote_by_volume(
    evidence: Evidence, *, synthetic: ImageSet, holdout: ImageSet, against: Evidence, owners: TextArray, level: float
) -> list[VolumeVote]:
    """Let the slices of each synthetic volume vote; none if no synthetic subject has two images.

    ``evidence`` and ``against`` are those of the slices of ``synthetic`` (its subjects are the volumes) and of
    ``holdout``; ``owners`` names the subject of each row of the train folder.
    """
    names, volumes = np.unique(synthetic.subjects, return_inverse=True)
    if len(names) == len(volumes):
        return []
    voted, subjects, shares = _vote(evidence, volumes, len(names), owners)
    # Pictures that are no slices of one file count as one volume of their subject.
    sliced = holdout.folder.numbers("slice")[holdout.rows] >= 0
    sources = np.where(sliced, holdout.folder.column("source")[holdout.rows], holdout.subjects)
    held_names, held = np.unique(sources, return_inverse=True)
    patients = np.empty(len(held_names), dtype=holdout.subjects.dtype)
    patients[held] = holdout.subjects
    chosen = _thin_out(held, int(np.median(np.bincount(volumes))))
    calibrating, _, _ = _vote(against.part(chosen), held[chosen], len(held_names), owners)
    p_values = p_values_of(voted, holdout=calibrating, subjects=patients)
    q_values = benjamini_hochberg(p_values)
    sizes = np.bincount(volumes)
    return [
        VolumeVote(
            volume=str(names[place]),
            slices=int(sizes[place]),
            subject=str(subjects[place]),
            agreement=float(shares[place]),
            p_value=float(p_values[place]),
            q_value=float(q_values[place]),
            flagged=bool(q_values[place] <= level),
        )
        for place in range(len(names))
    ]


def _vote(
    evidence: Evidence, volumes: IntArray, count: int, owners: TextArray
) -> tuple[Evidence, TextArray, FloatArray]:
    """Evidence of volumes; the subject most of each one's slices point at, and the share that does."""
    means = np.stack([_means(scores, volumes, count) for scores in evidence.scores])
    named = np.where(evidence.references >= 0, owners[evidence.references], "")
    subjects, shares = [], np.zeros(count)
    for volume in range(count):
        votes, numbers = np.unique(named[:, volumes == volume], return_counts=True)
        numbers = np.where(votes == "", 0, numbers)
        subjects.append(votes[numbers.argmax()])
        shares[volume] = numbers.max() / max(int((volumes == volume).sum()) * len(named), 1)
    voted = Evidence(
        measures=evidence.measures,
        scores=means,
        references=np.full(means.shape, -1),
        poses=np.zeros(means.shape, dtype=np.int64),
    )
    return voted, np.asarray(subjects, dtype=np.str_), shares


def _thin_out(volumes: IntArray, slices: int) -> IntArray:
    """At most so many slices of each volume, evenly spread: a mean of more slices varies less, and would not do as a
    yardstick for a mean of few."""
    kept = []
    for volume in np.unique(volumes):
        own = np.flatnonzero(volumes == volume)
        kept.append(own[np.unique(np.linspace(0, len(own) - 1, min(slices, len(own))).round().astype(np.int64))])
    return np.sort(np.concatenate(kept)) if kept else np.empty(0, np.int64)


def _means(scores: FloatArray, volumes: IntArray, count: int) -> FloatArray:
    """Mean of the defined scores of each volume; NaN where none is."""
    defined = np.isfinite(scores)
    sums = np.bincount(volumes[defined], weights=scores[defined], minlength=count)
    numbers = np.bincount(volumes[defined], minlength=count)
    means: FloatArray = np.where(numbers > 0, sums / np.maximum(numbers, 1), np.nan)
    return means
