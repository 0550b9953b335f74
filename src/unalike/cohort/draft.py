"""What would be prepared: a recipe's plan, drawn roles, and who loads; from file names and headers alone."""

from __future__ import annotations

import contextlib
import hashlib
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from unalike.cohort.plan import Plan
from unalike.cohort.readers import plan_source
from unalike.cohort.recipes import Reader
from unalike.cohort.settings import PrepareSettings
from unalike.cohort.split import draw_holdout, draw_limited
from unalike.errors import SettingsError
from unalike.records import TextArray


@dataclass(frozen=True)
class Draft:
    """What would be prepared: the items, the role of each, and who loads them."""

    plan: Plan
    roles: TextArray
    reader: Reader
    digest: str

    def summarize(self) -> dict[str, Any]:
        """Items, subjects and classes of each role, and the plan's notes, for a dry run."""
        roles = {}
        for role in sorted(set(self.roles.tolist())):
            items = [item for item, own in zip(self.plan.items, self.roles, strict=True) if own == role]
            roles[role] = {
                self.plan.unit: len(items),
                "subjects": len({item.subject for item in items}),
                "classes": dict(sorted(Counter(item.label for item in items if item.label).items())),
            }
        return {"roles": roles, "channels": list(self.plan.channels), "notes": list(self.plan.notes)}

    def describe_shared_subjects(self) -> list[str]:
        """A warning if subjects stand on both sides of the planned split; nothing has to be read for it."""
        train, held = (
            {item.subject for item, own in zip(self.plan.items, self.roles, strict=True) if own == role}
            for role in ("train", "holdout")
        )
        shared = held & train
        if not shared:
            return []
        return [
            f"LEAK: {len(shared)} of the {len(held)} holdout patients also occur in train. See below for what it means."
        ]


def plan_cohort(*, source: Path, settings: PrepareSettings, seed: int) -> Draft:
    """What would be prepared. Raises as `prepare_cohort` does, as far as file names and headers tell."""
    settings.check()
    if seed < 0:
        raise SettingsError(f"--seed {seed}: give a whole number from 0 on.")
    plan, reader = plan_source(source, settings)
    roles = _plan_roles(plan, settings, seed)
    if settings.limit is not None or settings.balance:
        rows = draw_limited(
            np.asarray([item.label for item in plan.items], dtype=np.str_),
            roles,
            limit=settings.limit,
            balance=settings.balance,
            shrink_holdout=settings.split == "redraw" and settings.holdout < 1,
            seed=seed,
        )
        plan, roles = replace(plan, items=tuple(plan.items[row] for row in rows)), roles[rows]
    return Draft(plan=plan, roles=roles, reader=reader, digest=_digest_plan(plan))


def _plan_roles(plan: Plan, settings: PrepareSettings, seed: int) -> TextArray:
    """Role of each item: drawn by subject, or as the source's own folders say."""
    subjects = np.asarray([item.subject for item in plan.items], dtype=np.str_)
    if settings.split == "redraw":
        labels = np.asarray([item.label for item in plan.items], dtype=np.str_)
        strata = labels if settings.stratify else None
        return draw_holdout(subjects, share=settings.holdout, seed=seed, strata=strata)
    roles = np.asarray([item.published for item in plan.items], dtype=np.str_)
    if (roles == "").any():
        name = plan.items[int(np.flatnonzero(roles == "")[0])].source
        raise SettingsError(f"--split keep: {name} lies in no train or test folder. Use --split redraw.")
    return roles


def _digest_plan(plan: Plan) -> str:
    """What an interrupted preparation must find again to go on: the same items from unchanged files."""
    hasher = hashlib.sha256(f"{plan.channels} {plan.scale} {plan.mask_scale}".encode())
    for item in plan.items:
        hasher.update(f"\0{item.source}\0{item.subject}\0{item.label}".encode())
        if item.attributes:  # of a table, which is none of the item's files
            hasher.update(f"\0{sorted(item.attributes.items())}".encode())
        for channel, path in item.files:
            with contextlib.suppress(OSError):  # said when it is read
                status = path.stat()
                hasher.update(f"\0{channel}\0{status.st_size}\0{status.st_mtime_ns}".encode())
    return hasher.hexdigest()
