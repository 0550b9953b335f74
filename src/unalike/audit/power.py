"""How many copies would have been caught: planted copies, and their mirror, sham copies.

Training images with a known change (planted copies) and holdout images of other patients with the same change
(sham copies) are asked the question that the synthetic images are asked. The first give the sensitivity to each
kind of copy, the second the false alarms that the change alone causes. Caught means: a p-value of at most
`CAUGHT_AT`, or, where so few holdout subjects allow none that small, the smallest there is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from unalike.audit.calibrate import p_values_of
from unalike.audit.changes import CHANGES, change_images
from unalike.audit.evidence import Evidence, Examiner
from unalike.cohort.roles import ImageSet
from unalike.engine import show_progress
from unalike.records import Estimate, FloatArray, IntArray, TextArray
from unalike.seeds import generator_for
from unalike.stats.conformal import smallest_p_value, subject_p_values
from unalike.stats.intervals import estimate_share

CAUGHT_AT = 0.01


@dataclass(frozen=True)
class PowerRow:
    """Share of planted copies caught, and of equally changed holdout images falsely caught.

    ``by_measure`` is the share of planted copies that each measure alone would catch.
    """

    change: str
    planted: Estimate
    sham: Estimate
    by_measure: Mapping[str, float]


def measure_power(
    *, examiner: Examiner, holdout: ImageSet, evidence: Evidence, count: int, seed: int
) -> list[PowerRow]:
    """Plant ``count`` copies of each kind (from as many subjects, where there are) and count those caught.

    ``evidence`` is that of the unchanged images of ``holdout``. A sham copy is held against the *other* holdout
    subjects only, as a new patient would be.
    """
    train, subjects = examiner.train, holdout.subjects
    chosen = [pick_one_per_subject(images, count, seed) for images in (train, holdout)]
    originals = [images.folder.read(images.rows[rows]) for images, rows in zip((train, holdout), chosen, strict=True)]
    rows = []
    with show_progress("Measuring power", total=len(CHANGES), unit="changes") as progress:
        for change in CHANGES:
            planted, sham = (examiner.examine([change_images(images, change, seed)]) for images in originals)
            rows.append(_count(change, planted, sham, evidence, subjects, subjects[chosen[1]]))
            progress.advance(text=change)
    return rows


def _count(
    change: str, planted: Evidence, sham: Evidence, holdout: Evidence, subjects: TextArray, owners: TextArray
) -> PowerRow:
    number = len(np.unique(subjects))
    found = p_values_of(planted, holdout=holdout, subjects=subjects)
    alone = [
        subject_p_values(own, holdout=held, subjects=subjects)
        for own, held in zip(planted.scores, holdout.scores, strict=True)
    ]
    names = [measure.name for measure in planted.measures]
    shares = [float(caught(values, number).mean()) if len(values) else float("nan") for values in alone]
    return PowerRow(
        change=change,
        planted=_share(caught(found, number)),
        sham=_share(caught(p_values_against_others(sham, owners, holdout, subjects), number - 1)),
        by_measure=dict(zip(names, shares, strict=True)),
    )


def p_values_against_others(
    evidence: Evidence, owners: TextArray, holdout: Evidence, subjects: TextArray
) -> FloatArray:
    """P-values (n,) of images of holdout subjects ``owners`` (n,), each by the other subjects' images."""
    p_values = np.ones(len(owners))
    for owner in np.unique(owners):
        own, others = np.flatnonzero(owners == owner), np.flatnonzero(subjects != owner)
        p_values[own] = p_values_of(evidence.part(own), holdout=holdout.part(others), subjects=subjects[others])
    return p_values


def caught(p_values: FloatArray, subjects: int) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Whether p-values by so many holdout subjects count as caught; NaN does not, nor anything without subjects."""
    limit = max(CAUGHT_AT, smallest_p_value(subjects)) * (1 + 1e-9)
    with np.errstate(invalid="ignore"):
        found: np.ndarray[tuple[int], np.dtype[np.bool_]] = (p_values <= limit) & (subjects > 0)
    return found


def _share(found: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> Estimate:
    return estimate_share(int(found.sum()), len(found))


def pick_one_per_subject(images: ImageSet, count: int, seed: int) -> IntArray:
    """Positions in ``images`` of one image each of ``count`` subjects; further images when subjects run out."""
    shuffled = generator_for(seed, "planted-sources").permutation(len(images))
    _, first = np.unique(images.subjects[shuffled], return_index=True)
    spread = shuffled[np.sort(first)]
    rest = shuffled[~np.isin(shuffled, spread)]
    chosen: IntArray = np.concatenate([spread, rest])[:count].astype(np.int64)
    return chosen
