"""`measure_utility`: what synthetic images are worth to train on, from folders to a folder."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from unalike import folders
from unalike.cohort.roles import Roles, open_roles
from unalike.devices import pick_device
from unalike.errors import InputError, SettingsError
from unalike.folders import Header
from unalike.utility.settings import UtilitySettings


def measure_utility(
    *,
    synthetic: str | Path,
    out: str | Path,
    against: str | Path | None = None,
    train: str | Path | None = None,
    holdout: str | Path | None = None,
    settings: UtilitySettings | None = None,
    name: str | None = None,
    seed: int = 0,
    device: str = "auto",
) -> Header:
    """Train classifiers or segmenters on synthetic images, test them on holdout subjects, against training on real.

    The real images are given as in `audit_samples`. Training on real images takes the very images that the generator
    saw, and nobody who is tested was seen by the generator or in any training. Writes the folder ``out`` and gives its
    header, whose ``content`` `unalike.utility.classify` or `unalike.utility.segment` describes. Interrupted, the same
    call goes on with the training it was at. The folder keeps models trained on patients and, of segmentation, pictures
    of patients: it is internal.

    Raises an `InputError` if the folders cannot be read or do not fit each other or the task (classes or masks are
    missing, fewer images than folds …), and leaves nothing behind; `SettingsError` for a setting that makes no sense.
    """
    settings, out = settings or UtilitySettings(), Path(out)
    settings.check()
    if seed < 0:
        raise SettingsError(f"--seed {seed}: give a whole number from 0 on.")
    where = pick_device(device)
    paths = [Path(path) if path is not None else None for path in (against, train, holdout)]
    with open_roles(
        synthetic=Path(synthetic), against=paths[0], train=paths[1], holdout=paths[2], settings=settings, labels=True
    ) as roles:
        _check_roles(roles)
        kept = asdict(settings) | {"weights": Path(settings.weights).name}  # a path may name its user
        identity = kept | {"inputs": roles.inputs, "seed": seed}
        folders.begin_folder(out, kind="utility", settings=identity, resumable=True)
        try:
            if settings.task == "classify":
                from unalike.utility.classify import run_classification as measure
            else:
                from unalike.utility.segment import run_segmentation as measure
            content = measure(roles, out, settings=settings, seed=seed, device=where)
        except InputError:
            # What cannot be trained on is found before the first cell.
            folders.give_up_folder(out, nothing_made=lambda: not any(out.rglob("cells/*")))
            raise
        content |= {"name": name or Path(synthetic).name, "task": settings.task, "warnings": roles.warnings}
        return folders.finish_folder(
            out, kind="utility", settings=kept, seed=seed, inputs=roles.inputs, content=content
        )


def _check_roles(roles: Roles) -> None:
    if len(roles.holdout) == 0:
        raise InputError(
            f"{roles.train.folder.path} has no holdout to test on. Prepare it with --holdout 0.2, or give --holdout."
        )
    for name, images in (("synthetic", roles.synthetic), ("train", roles.train)):
        if len(images) < 2:
            raise InputError(f"{images.folder.path} has {len(images)} {name} images. Training needs at least 2.")
