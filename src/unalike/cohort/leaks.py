"""Duplicates and subjects that stand on both sides: counted, said with their consequence, and dealt with.

The same picture under two names is two subjects to whoever believes the names. If one is in train and the other in
holdout, the audit's yardstick (how close do people come whom the generator never saw?) is bent, and so is every test
on "unseen" patients.
"""

from __future__ import annotations

import numpy as np

from unalike.cohort.duplicates import Duplicates, Union
from unalike.cohort.settings import PrepareSettings
from unalike.errors import InputError
from unalike.records import IntArray, TextArray


def count_leaks(duplicates: Duplicates, *, subjects: TextArray, labels: TextArray, roles: TextArray) -> dict[str, int]:
    """How many subjects and images stand on both sides or in two classes, by the names of the source.

    Where not all pairs are listed, those across roles and classes are at least that many: of each group of duplicates
    that bears two roles, one pair must.
    """
    train, held = (set(subjects[roles == role].tolist()) for role in ("train", "holdout"))
    shared = train & held
    first, second, kind = duplicates.first, duplicates.second, duplicates.kind
    across = roles[first] != roles[second]
    return {
        "shared_subjects": len(shared),
        "holdout_subjects": len(held),
        "shared_holdout_images": int(np.isin(subjects[roles == "holdout"], sorted(shared)).sum()),
        "holdout_images": int((roles == "holdout").sum()),
        "redundant_images": int((kind == "exact").sum()),
        "near_pairs": int((kind == "near").sum()),
        "mirrored_pairs": int((kind == "mirrored").sum()),
        "pairs_across_roles": max(int(across.sum()), _groups_across(duplicates, roles)),
        "exact_pairs_across_roles": int((across & (kind == "exact")).sum()),
        "pairs_across_classes": max(int((labels[first] != labels[second]).sum()), _groups_across(duplicates, labels)),
        "pairs_across_subjects": int((subjects[first] != subjects[second]).sum()),
        "pairs_not_listed": duplicates.found - len(first),
    }


def _groups_across(duplicates: Duplicates, values: TextArray) -> int:
    """Groups of duplicates that bear several of the ``values`` (N,); 0 where all pairs are listed to be counted."""
    if duplicates.found == len(duplicates.first):
        return 0
    pairs = np.unique(np.stack([duplicates.group, np.unique(values, return_inverse=True)[1]]), axis=1)
    return int((np.unique(pairs[0], return_counts=True)[1] > 1).sum())


def refuse_leaks(leaks: dict[str, int], *, naming: str) -> None:
    """Raise an `InputError` that says what leaks; ``naming`` tells of one pair."""
    wrong = [
        f"{leaks[key]} {what}"
        for key, what in (
            ("shared_subjects", "subjects stand in train and holdout"),
            ("pairs_across_subjects", "pairs of duplicates stand under different subjects"),
            ("pairs_across_roles", "pairs of duplicates stand in train and holdout"),
            ("pairs_across_classes", "pairs of duplicates bear different classes"),
        )
        if leaks[key]
    ]
    if wrong:
        raise InputError(
            f"{', '.join(wrong)}{naming}. Mend the source, or pass --on-leak merge-subjects, drop or report."
        )


def merge_subjects(duplicates: Duplicates, subjects: TextArray) -> TextArray:
    """Subjects (N,) after those who share a picture became one, named as the first of them."""
    names, number = np.unique(subjects, return_inverse=True)
    # Numbers in order of first appearance, so that a merged subject bears the name that comes first.
    _, first = np.unique(number, return_index=True)
    rank = np.argsort(np.argsort(first))
    union = Union(len(names))
    for row, lowest in enumerate(duplicates.group.tolist()):
        union.join(int(rank[number[row]]), int(rank[number[lowest]]))
    by_rank = names[np.argsort(first)]
    merged: TextArray = by_rank[[union.find(int(rank[one])) for one in number]]
    return merged


def rows_to_drop(duplicates: Duplicates, *, subjects: TextArray, labels: TextArray, roles: TextArray) -> IntArray:
    """Rows that ``--on-leak drop`` takes away.

    Of each group of duplicates all but the first; all of a group that bears several classes, since nobody knows
    which is right; and the holdout images of subjects who are in train, too.
    """
    group = duplicates.group
    members: dict[int, list[int]] = {}
    for row, lowest in enumerate(group.tolist()):
        members.setdefault(lowest, []).append(row)
    dropped: set[int] = set()
    for rows in members.values():
        if len(rows) > 1:
            dropped.update(rows if len(set(labels[rows].tolist())) > 1 else rows[1:])
    left = np.asarray([row not in dropped for row in range(len(group))])
    train = set(subjects[left & (roles == "train")].tolist())
    dropped.update(row for row in np.flatnonzero(left & (roles == "holdout")).tolist() if subjects[row] in train)
    return np.asarray(sorted(dropped), dtype=np.int64)


def describe_leaks(leaks: dict[str, int], settings: PrepareSettings) -> list[str]:
    """What was found and what it means, gravest first."""
    notes = []
    dropped = settings.on_leak == "drop"
    if leaks["shared_subjects"]:
        done = (
            "Their holdout images were dropped."
            if dropped
            else ("An audit leaves these patients out of its holdout; use --split redraw to split by patient.")
        )
        notes.append(
            f"LEAK: {leaks['shared_subjects']} of the {leaks['holdout_subjects']} holdout patients also occur in train "
            f"({leaks['shared_holdout_images']} of {leaks['holdout_images']} holdout images): whatever is tested on "
            f"them looks better than it is. {done}"
        )
    # A split that was drawn anew is mended already, unless nothing was to be done.
    if leaks["pairs_across_roles"] and (settings.split == "keep" or settings.on_leak == "report"):
        done = {
            "merge-subjects": "They count as one patient each, whom an audit leaves out of its holdout.",
            "drop": "Only the first of each was kept.",
        }.get(settings.on_leak, "Pixel-identical ones an audit leaves out of its holdout; the others stay.")
        notes.append(
            f"LEAK: {leaks['pairs_across_roles']} pairs of duplicates stand in train and holdout, "
            f"{leaks['exact_pairs_across_roles']} of them pixel-identical: what the generator saw would pass for new "
            f"patients. {done}"
        )
    if leaks["pairs_across_classes"]:
        done = "They were dropped." if dropped else "Pass --on-leak drop to take them away."
        notes.append(
            f"{leaks['pairs_across_classes']} pairs of duplicates bear different classes: no classifier can be right "
            f"on both. {done}"
        )
    if leaks["redundant_images"]:
        done = "They were dropped." if dropped else "They count twice in every average; generators memorize them first."
        notes.append(f"{leaks['redundant_images']} images are pixel-identical copies of another image. {done}")
    if leaks["near_pairs"] or leaks["mirrored_pairs"]:
        done = "All but the first of each group were dropped." if dropped else "See duplicates.png."
        notes.append(
            f"{leaks['near_pairs']} pairs of near duplicates (correlation of at least {settings.near_duplicates:g}) "
            f"and {leaks['mirrored_pairs']} mirrored ones under different subjects. {done}"
        )
    if leaks["pairs_not_listed"]:
        notes.append(f"{leaks['pairs_not_listed']} more pairs of duplicates are not listed.")
    return notes
