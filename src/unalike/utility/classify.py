"""The whole measurement for classification: every training a cell on disk, then tables from the cells.

A cell is a training of one network on one source in one fold, one trial of the search, or one repetition of a
proportion. It is written when it is finished; what is finished is never computed again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from unalike import folders
from unalike.cohort.roles import ImageSet, Roles, choose_channels
from unalike.engine import Progress, show_progress
from unalike.errors import FolderError, InputError, RunError
from unalike.records import IntArray, as_json
from unalike.utility.crossval import (
    AUGMENTED,
    REAL,
    SYNTHETIC,
    HeldOut,
    Source,
    differences,
    number_subjects,
    split_folds,
    table_row,
    train_fold,
)
from unalike.utility.mixing import Mixing, Mixture, list_mixtures, mixing_table, prepare_mixing, train_mixture
from unalike.utility.settings import UtilitySettings
from unalike.utility.training import CellResult, Frame, Labelled, Recipe, Say
from unalike.utility.tuning import Search, tune_recipe
from unalike.vision.networks import find_imagenet

CELLS = "cells"
MODELS = "models"

Work = Callable[[Say], CellResult]


def run_classification(
    roles: Roles, out: Path, *, settings: UtilitySettings, seed: int, device: torch.device
) -> dict[str, Any]:
    """Train classifiers on synthetic and on real images, test both on the holdout; go on after an interruption.

    ``out`` exists; ``out``/cells gets a JSON file a training (and probabilities as .npy), ``out``/models the model of
    the first fold of each network on each source. A network that fails (memory, divergence) is noted in ``notes``, the
    others go on, and the same command tries it again.

    Returns what ``utility.json`` says (intervals are over test subjects):

    * ``classes``: names, in the order of outputs and of the confusion matrices
    * ``counts``: for synthetic, train, holdout and left_out: ``images``, ``subjects`` and images of each class
    * ``table``: a row a network and source (synthetic, real, real-augmented): ``network``, ``source``, ``weights``
      (random or imagenet), ``recipe``, and what `table_row` gives: ``train_loss``, ``validation_loss``, ``test_loss``,
      ``train_accuracy``, ``validation_accuracy``, ``test_accuracy``, ``precision``, ``recall``, ``f1``, ``auc``
      (those of the test as `Estimate`), ``confusion``, ``accuracy_with_leaks``
    * ``differences``: paired, a row a network and pair of sources: ``network``, ``first``, ``second``, `MEASURES`
    * ``mixing``: None without ``--mix``, else what `mixing_table` gives
    * ``tuned``: a row a network and source with the values chosen and all trials; empty without ``--tune``
    * ``predictions``: ``rows`` (of the holdout's folder), ``truth``, and ``files``: for each network and source the
      .npy files (n, K) of its folds, relative to ``out``
    * ``models``: a row a network and source: ``network``, ``source``, ``folder``, relative to ``out``
    * ``failed``: a row for what failed: ``cell``, ``reason``; ``notes``: sentences that belong beside the tables

    Raises `InputError` in one line if classes are unknown, too few or not the same everywhere, or there are fewer
    subjects than folds; `FolderError` if ``out`` holds cells of other images or settings; `RunError` if nothing at all
    could be trained.
    """
    sources, tested, frame = _gather(roles, settings, seed, device)
    folds = {
        source.name: split_folds(source, classes=frame.classes, folds=settings.folds, seed=seed) for source in sources
    }
    for network in settings.chosen_networks if settings.weights else ():
        find_imagenet(network, settings.weights)  # says now what is missing, not hours later
    mixing = prepare_mixing(sources[0], sources[1], frame=frame) if settings.mix else None
    mixtures = list_mixtures(mixing, settings.mixtures) if mixing else []
    store = _Cells(out, _identity(frame, sources, tested))
    jobs = len(settings.chosen_networks) * len(sources) * (settings.folds + settings.tune)
    jobs += len(mixtures) * settings.repetitions
    failures: list[dict[str, str]] = []
    finished: dict[tuple[str, str], list[CellResult]] = {}
    recipes: dict[tuple[str, str], Recipe] = {}
    tuned: list[dict[str, Any]] = []
    with show_progress("utility", total=max(1, jobs - store.count()), unit="trainings") as progress:
        worker = _Worker(store, progress)
        for network in settings.chosen_networks:
            for source in sources:
                with _noting(failures, f"{network}-{source.name}", device):
                    recipe = Recipe(settings.learning_rate, settings.weight_decay, settings.batch_size)
                    if settings.tune:
                        search = Search(source, folds[source.name][0], network, frame)
                        recipe, about = tune_recipe(search, recipe, keep=worker.run)
                        tuned.append({"network": network, "source": source.name, **about})
                    recipes[network, source.name] = recipe
                    finished[network, source.name] = [
                        worker.train(source, fold, rows, tested, network=network, recipe=recipe, frame=frame)
                        for fold, rows in enumerate(folds[source.name])
                    ]
        mixed = _train_mixtures(worker, mixing, mixtures, tested, failures) if mixing else {}
    if not finished and not mixed:
        raise RunError(f"nothing could be trained: {failures[0]['reason']}")
    return {
        "task": "classify",
        "classes": list(frame.classes),
        "counts": _counts(roles, frame.classes),
        "table": [
            {
                "network": network,
                "source": source,
                "weights": "imagenet" if settings.weights else "random",
                "recipe": recipes[network, source],
                **table_row(cells, tested, seed=seed),
            }
            for (network, source), cells in finished.items()
        ],
        "differences": differences(finished, tested, seed=seed),
        "mixing": mixing_table(mixed, mixing, tested) if mixing else None,
        "tuned": tuned,
        "predictions": {
            "rows": roles.holdout.rows.tolist(),
            "truth": tested.honest.truth.tolist(),
            "files": [
                {
                    "network": network,
                    "source": source,
                    "files": [f"{CELLS}/{network}-{source}-fold{fold}.test.npy" for fold in range(len(cells))],
                }
                for (network, source), cells in finished.items()
            ],
        },
        "models": [
            {"network": network, "source": source, "folder": f"{MODELS}/{network}-{source}"}
            for network, source in finished
        ],
        "failed": failures,
        "notes": _notes(settings, tested, failures),
    }


def _train_mixtures(
    worker: _Worker, mixing: Mixing, mixtures: Sequence[Mixture], tested: HeldOut, failures: list[dict[str, str]]
) -> dict[Mixture, list[CellResult]]:
    mixed: dict[Mixture, list[CellResult]] = {}
    for mixture in mixtures:
        with _noting(failures, f"mix-{mixture.name}", mixing.frame.device):
            mixed[mixture] = [
                worker.run(f"mix-{mixture.name}-{number}", partial(train_mixture, mixing, mixture, number, tested))
                for number in range(mixing.frame.settings.repetitions)
            ]
    return mixed


class _CannotWriteError(RunError):
    """No fault of a network's: nothing can go on."""


@dataclass(frozen=True)
class _Cells:
    """Finished trainings in ``out``/cells, of one set of images and settings."""

    out: Path
    identity: str

    def count(self) -> int:
        """Cells that look finished: the time left is told for the others."""
        return sum(1 for _ in (self.out / CELLS).glob("*.json"))

    def load(self, name: str) -> CellResult | None:
        """The finished cell, or None. What is damaged counts as not finished."""
        file = self.out / CELLS / f"{name}.json"
        if not file.is_file():
            return None
        try:
            told = folders.read_json(file)
            identity, numbers, shapes = told["identity"], told["numbers"], told["probabilities"]
            arrays = {
                key: np.load(self.out / CELLS / f"{name}.{key}.npy", allow_pickle=False).astype(np.float64)
                for key in shapes
            }
        except (FolderError, OSError, ValueError, KeyError, TypeError):
            return None
        if identity != self.identity:
            raise FolderError(f"{file} is of other images, settings or another seed. Write to another folder.")
        if any(list(array.shape) != shapes[key] for key, array in arrays.items()) or told.get("keys") != sorted(
            numbers
        ):
            return None
        return CellResult(numbers, arrays)

    def save(self, name: str, result: CellResult) -> None:
        """Write arrays, then the JSON that makes the cell a finished one."""
        place = self.out / CELLS
        try:
            place.mkdir(exist_ok=True)
            for key, array in result.probabilities.items():
                partial = place / f"{name}.{key}.npy.partial"
                with partial.open("wb") as stream:
                    np.save(stream, array, allow_pickle=False)
                partial.replace(place / f"{name}.{key}.npy")
            shapes = {key: list(array.shape) for key, array in result.probabilities.items()}
            about = {"identity": self.identity, "numbers": result.numbers, "probabilities": shapes}
            about["keys"] = sorted(result.numbers)  # a file that lost one is damaged
            folders.write_json(place / f"{name}.json", about)
        except OSError as error:
            raise _CannotWriteError(
                f"{place} cannot be written ({error.strerror}). Make room, then repeat the command."
            ) from error


@dataclass(frozen=True)
class _Worker:
    """Does a cell unless it is done, and tells."""

    store: _Cells
    progress: Progress

    def run(self, name: str, work: Work) -> CellResult:
        result = self.store.load(name)
        if result is not None:
            return result
        self.store.save(name, work(lambda text: self.progress.advance(0, f"{name}: {text}")))
        self.progress.advance(1, name)
        result = self.store.load(name)  # as a resumed command will see it
        if result is None:
            raise _CannotWriteError(f"{self.store.out / CELLS / name} cannot be read again. Check the disk.")
        return result

    def train(
        self,
        source: Source,
        fold: int,
        rows: IntArray,
        tested: HeldOut,
        *,
        network: str,
        recipe: Recipe,
        frame: Frame,
    ) -> CellResult:
        def work(say: Say) -> CellResult:
            keep = self.store.out / MODELS / f"{network}-{source.name}" if fold == 0 else None
            return train_fold(
                source, fold, rows, tested, network=network, recipe=recipe, frame=frame, say=say, keep=keep
            )

        return self.run(f"{network}-{source.name}-fold{fold}", work)


@contextmanager
def _noting(failures: list[dict[str, str]], cell: str, device: torch.device) -> Iterator[None]:
    """Note what makes one network fail; what the user must change is still raised."""
    try:
        yield
    except _CannotWriteError:
        raise
    except (RunError, RuntimeError, MemoryError) as error:
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        failures.append({"cell": cell, "reason": said})
        if device.type == "cuda":
            torch.cuda.empty_cache()


def _gather(
    roles: Roles, settings: UtilitySettings, seed: int, device: torch.device
) -> tuple[list[Source], HeldOut, Frame]:
    """Images into memory, classes checked."""
    classes = _classes(roles)
    channels = tuple(choose_channels(roles, ()))
    train, synthetic, honest = (_labelled(images, classes) for images in (roles.train, roles.synthetic, roles.holdout))
    known = np.isin(roles.left_out.labels, classes)
    leaked = _labelled(ImageSet(roles.left_out.folder, roles.left_out.rows[known]), classes)
    pixels = train.pixels[:, list(channels)]
    frame = Frame(
        classes=classes,
        channels=channels,
        size=roles.train.folder.size,
        highest=255 if pixels.dtype == np.uint8 else max(1, int(pixels.max())),
        settings=settings,
        seed=seed,
        device=device,
    )
    sources = [
        Source(SYNTHETIC, synthetic, roles.synthetic.folder.path),
        Source(REAL, train, roles.train.folder.path),
    ]
    if settings.augment:
        sources.append(Source(AUGMENTED, train, roles.train.folder.path, augment=True))
    return sources, HeldOut(honest, leaked), frame


def _classes(roles: Roles) -> tuple[str, ...]:
    """Names of the classes, the same in train, synthetic and holdout; `InputError` otherwise."""
    named = (("train", roles.train), ("synthetic", roles.synthetic), ("holdout", roles.holdout))
    for role, images in named:
        place = images.folder.path
        if len(images) == 0:
            raise InputError(f"{place} has no {role} images to test on. Give --holdout, or a cohort with a holdout.")
        unknown = int((images.labels == "").sum())
        if unknown:
            raise InputError(f"{place} ({role}): {unknown} of {len(images)} images have no class. {_FOR_LABELS[role]}")
    found = {role: set(images.labels.tolist()) for role, images in named}
    every = sorted(set().union(*found.values()))
    for role, images in named:
        missing = [name for name in every if name not in found[role]]
        if missing:
            others = "; ".join(other for other in found if missing[0] in found[other])
            raise InputError(
                f"{images.folder.path}: class '{missing[0]}' is missing in {role}, though {others} has it. "
                "Add images of it, or leave the class out of all folders."
            )
    if len(every) < 2:
        raise InputError(
            f"{roles.train.folder.path}: all images are of one class, '{every[0]}'. Give images of two classes or more."
        )
    return tuple(every)


_FOR_LABELS = {
    "train": "Prepare the cohort with --labels, or give folders with a folder a class.",
    "synthetic": "Draw them from a run trained with --condition label, or give a folder with a folder a class.",
    "holdout": "Prepare the cohort with --labels, or give folders with a folder a class.",
}


def _labelled(images: ImageSet, classes: Sequence[str]) -> Labelled:
    number = {name: index for index, name in enumerate(classes)}
    truth = np.array([number[label] for label in images.labels.tolist()], dtype=np.int64)
    return Labelled(images.folder.read(images.rows), truth, images.subjects)


def _identity(frame: Frame, sources: Sequence[Source], tested: HeldOut) -> str:
    """Digest of all that decides a cell: images, classes, who belongs to whom, settings, seed. Not the device."""
    settings = dict(as_json(frame.settings))
    if frame.settings.weights:
        # Not where the files lie but what is in them.
        files = [find_imagenet(network, frame.settings.weights) for network in frame.settings.chosen_networks]
        settings["weights"] = [folders.digest_file(file) for file in files]
    told = {"settings": settings, "seed": frame.seed, "classes": frame.classes}
    hasher = hashlib.sha256(json.dumps(told, sort_keys=True).encode())
    for images in (*(source.images for source in sources[:2]), tested.honest, tested.leaked):
        hasher.update(np.ascontiguousarray(images.pixels).data)
        hasher.update(images.truth.tobytes() + number_subjects(images.subjects).tobytes())
    return hasher.hexdigest()


def _counts(roles: Roles, classes: Sequence[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for role in ("synthetic", "train", "holdout", "left_out"):
        images: ImageSet = getattr(roles, role)
        labels = images.labels
        found[role] = {
            "images": len(images),
            "subjects": len(np.unique(images.subjects)),
            "classes": {name: int((labels == name).sum()) for name in classes},
        }
    return found


def _notes(settings: UtilitySettings, tested: HeldOut, failures: Sequence[dict[str, str]]) -> list[str]:
    notes = []
    if not settings.weights:
        notes.append("Networks began from random weights, not ImageNet's: no folder of weights was given (--weights).")
    if len(tested.leaked):
        notes.append(
            f"{len(tested.leaked)} test images were left out because their patient or the very picture is in train. "
            "'With leaks' counts them too, as tests that did not look would; it is no measure of how good a model is."
        )
    if len(np.unique(tested.honest.subjects)) < 2:
        notes.append("The test images are of one subject: there is no interval.")
    notes += [f"{failure['cell']} was not finished: {failure['reason']}" for failure in failures]
    return notes
