"""Roles and subsets, always whole subjects."""

from __future__ import annotations

import numpy as np

from unalike.cohort.store import ImageFolder
from unalike.errors import SettingsError
from unalike.records import IntArray, TextArray
from unalike.seeds import generator_for


def draw_holdout(subjects: TextArray, *, share: float, seed: int) -> TextArray:
    """Role of each image when a ``share`` (0 to 1) of the subjects is held out, drawn with ``seed``.

    ``subjects`` are the original identifiers, so that the draw does not depend on the pseudonym key.
    Any positive share of at least two subjects gives at least one holdout and one train subject.

    Raises `SettingsError` if the share leaves no train subject or the cohort has too few subjects.
    """
    if not 0 <= share < 1:
        raise SettingsError(f"--holdout {share}: give a share of the subjects from 0 to below 1, such as 0.2.")
    names = np.unique(subjects)
    count = round(share * len(names))
    if share > 0:
        if len(names) < 2:
            raise SettingsError(
                f"--holdout {share}: there is only {len(names)} subject, so none can be held out. "
                "Give more subjects, or --holdout 0 (the audit will then say that it cannot tell)."
            )
        count = min(max(count, 1), len(names) - 1)
    held_out = generator_for(seed, "holdout").permutation(names)[:count]
    return np.where(np.isin(subjects, held_out), "holdout", "train").astype(np.str_)


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
