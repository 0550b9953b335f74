"""Roles and subsets, always whole subjects."""

from __future__ import annotations

import numpy as np

from unalike.cohort.store import ImageFolder
from unalike.errors import SettingsError
from unalike.records import IntArray, TextArray
from unalike.seeds import generator_for


def draw_holdout(subjects: TextArray, *, share: float, seed: int, strata: TextArray | None = None) -> TextArray:
    """Role of each image when some of the subjects are held out, drawn with ``seed``.

    ``share`` is a share of the subjects below 1, or from 1 on how many. ``subjects`` are the original identifiers, so
    that the draw does not depend on the pseudonym key. With ``strata`` (one text an image, such as its class) a share
    is drawn within each stratum; a subject belongs to the stratum of its first image. Any positive share of at least
    two subjects gives at least one holdout and one train subject.

    Raises `SettingsError` if the share leaves no train subject or the cohort has too few subjects.
    """
    names, first = np.unique(subjects, return_index=True)
    whole = share >= 1
    if not share >= 0 or (whole and share != int(share)):
        raise SettingsError(f"--holdout {share}: give a share of the subjects from 0 to below 1, or a whole number.")
    if share > 0 and len(names) < 2:
        raise SettingsError(
            f"--holdout {share}: there is only {len(names)} subject, so none can be held out. "
            "Give more subjects, or --holdout 0 (the audit will then say that it cannot tell)."
        )
    if whole and share >= len(names):
        raise SettingsError(f"--holdout {share:.0f}: there are only {len(names)} subjects. Hold out fewer.")
    order = generator_for(seed, "holdout").permutation(names)
    if strata is None or whole:
        held_out = order[: _count_held(share, len(names))]
    else:
        home = dict(zip(names.tolist(), strata[first].tolist(), strict=True))
        groups = [order[[home[name] == stratum for name in order.tolist()]] for stratum in np.unique(strata[first])]
        held_out = np.concatenate([group[: round(share * len(group))] for group in groups])
        if share > 0 and not 0 < len(held_out) < len(names):
            held_out = order[: _count_held(share, len(names))]
    return np.where(np.isin(subjects, held_out), "holdout", "train").astype(np.str_)


def _count_held(share: float, subjects: int) -> int:
    if share == 0:
        return 0
    return min(max(int(share) if share >= 1 else round(share * subjects), 1), subjects - 1)


def draw_limited(
    labels: TextArray, roles: TextArray, *, limit: int | None, balance: bool, shrink_holdout: bool, seed: int
) -> IntArray:
    """Indices of the items to keep, ascending, drawn at random with ``seed`` within each role and class.

    At most ``limit`` train items in the classes' own proportions, or equally many of each with ``balance``. With
    ``shrink_holdout`` the holdout keeps its proportion to train; otherwise only ``balance`` thins it.
    """
    train = int((roles == "train").sum())
    factor = min(1.0, limit / train) if limit is not None and train else 1.0
    kept = []
    for role in np.unique(roles):
        here = np.flatnonzero(roles == role)
        shrinks = role == "train" or shrink_holdout
        wanted = round(factor * len(here)) if shrinks else len(here)
        names, counts = np.unique(labels[here], return_counts=True)
        for name, count in zip(names, _share_out(wanted, counts, balance=balance), strict=True):
            rows = here[labels[here] == name]
            kept.append(generator_for(seed, f"limit {role} {name}").permutation(rows)[:count])
    return np.sort(np.concatenate(kept)).astype(np.int64)


def _share_out(wanted: int, counts: IntArray, *, balance: bool) -> IntArray:
    """How many of each class: equally many, or by largest remainder in proportion to ``counts``."""
    if balance:
        each = min(int(counts.min()), max(1, wanted // len(counts)))
        return np.full(len(counts), each, np.int64)
    exact = counts * (wanted / counts.sum())
    shares: IntArray = np.floor(exact).astype(np.int64)
    shares[np.argsort(shares - exact, kind="stable")[: wanted - int(shares.sum())]] += 1
    return shares


def select_train_rows(cohort: ImageFolder, *, subjects: int | None, seed: int) -> IntArray:
    """Rows of the ``train`` images of ``subjects`` subjects (None: all of them), ascending.

    The choice depends on the cohort and ``seed`` alone and is nested: 8 subjects are among the 32 of the
    same seed. Train and audit call it alike, so that samples need not carry a list of who was seen.

    Raises `SettingsError` if the cohort has fewer train subjects.
    """
    rows = cohort.rows("train")
    if subjects is None:
        return rows
    column = cohort.column("subject")[rows]
    # In order of first appearance: pseudonyms depend on the key, their order in the cohort does not.
    _, first = np.unique(column, return_index=True)
    names = column[np.sort(first)]
    if not 1 <= subjects <= len(names):
        raise SettingsError(f"--subjects {subjects}: give 1 to {len(names)}, the train subjects of the cohort.")
    chosen = generator_for(seed, "train-subjects").permutation(names)[:subjects]
    return rows[np.isin(column, chosen)]
