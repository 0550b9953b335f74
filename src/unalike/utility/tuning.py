"""A search for learning rate, weight decay and batch size by Optuna's tree-structured Parzen estimator.

What is minimized is the loss on the first fold's left out part of the training images: test images are never asked.
Each trial is a cell on disk; a fresh study is told what the trials before gave, and each trial draws from a stream of
its own, so an interrupted search ends where it would have ended uninterrupted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from time import perf_counter
from typing import Any

import numpy as np

from unalike.errors import NonFiniteLossError
from unalike.records import IntArray
from unalike.seeds import seed_for
from unalike.utility.crossval import Source
from unalike.utility.training import CellResult, Frame, Recipe, Say, open_classifier, train_with_stopping

LEARNING_RATES = (1e-5, 1e-2)  # searched evenly in the logarithm, as is the weight decay
WEIGHT_DECAYS = (1e-5, 1e-1)
BATCH_SIZES = (16, 32, 64)

_NAMES = ("learning_rate", "weight_decay", "batch_size")

Keep = Callable[[str, Callable[[Say], CellResult]], CellResult]


@dataclass(frozen=True, eq=False)
class Search:
    """Of which network on which source, and the images (rows) left out in its first fold."""

    source: Source
    rows: IntArray
    network: str
    frame: Frame


def tune_recipe(search: Search, given: Recipe, *, keep: Keep) -> tuple[Recipe, dict[str, Any]]:
    """The best of ``tune`` trials, and ``learning_rate``, ``weight_decay``, ``batch_size`` and all ``trials`` as JSON.

    ``given`` is the first trial: by the loss it is judged by, the search never ends worse than it began. A trial that
    diverges has no loss (None). ``keep(name, work)`` gives the finished cell of this name or has it worked out.

    Raises `NonFiniteLossError` if every trial diverged.
    """
    trials: list[dict[str, Any]] = []
    for number in range(search.frame.settings.tune):
        recipe = _propose(trials, search.frame.seed) if trials else given
        name = f"{search.network}-{search.source.name}-trial{number}"
        trials.append(keep(name, partial(_try, search, recipe)).numbers)
    ended = [trial for trial in trials if trial["validation_loss"] is not None]
    if not ended:
        raise NonFiniteLossError(f"{search.network}: all trials of the search diverged. Try a lower --learning-rate.")
    best = min(ended, key=lambda trial: float(trial["validation_loss"]))
    chosen = {name: best[name] for name in _NAMES}
    return Recipe(**chosen), {**chosen, "trials": trials}


def _propose(trials: Sequence[Mapping[str, Any]], seed: int) -> Recipe:
    """What the sampler wants to try after these trials, which depends on nothing else but the seed."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    spaces = (
        optuna.distributions.FloatDistribution(*LEARNING_RATES, log=True),
        optuna.distributions.FloatDistribution(*WEIGHT_DECAYS, log=True),
        optuna.distributions.CategoricalDistribution(BATCH_SIZES),
    )
    space: dict[str, Any] = dict(zip(_NAMES, spaces, strict=True))
    sampler = optuna.samplers.TPESampler(seed=seed_for(seed, "utility search", len(trials)) % 2**32)
    study = optuna.create_study(direction="minimize", sampler=sampler)
    for trial in trials:
        if trial["validation_loss"] is None or not _inside(trial):
            continue  # the values given may lie outside of what is searched
        params = {name: trial[name] for name in _NAMES}
        loss = float(trial["validation_loss"])
        study.add_trial(optuna.trial.create_trial(params=params, distributions=space, value=loss))
    return Recipe(**study.ask(space).params)


def _inside(trial: Mapping[str, Any]) -> bool:
    return (
        LEARNING_RATES[0] <= trial["learning_rate"] <= LEARNING_RATES[1]
        and WEIGHT_DECAYS[0] <= trial["weight_decay"] <= WEIGHT_DECAYS[1]
        and trial["batch_size"] in BATCH_SIZES
    )


def _try(search: Search, recipe: Recipe, say: Say) -> CellResult:
    """Train with ``recipe`` as the first fold will be; the loss of its left out part is what counts."""
    began, frame, images = perf_counter(), search.frame, search.source.images
    others = np.setdiff1d(np.arange(len(images)), search.rows)
    train, validation = images.take(others), images.take(search.rows)
    classifier = open_classifier(frame, search.network, train, seed=seed_for(frame.seed, "utility weights", 0))
    used = replace(recipe, augment=search.source.augment)
    seed = seed_for(frame.seed, "utility fold", 0)
    numbers: dict[str, Any] = {name: getattr(recipe, name) for name in _NAMES}
    try:
        found = train_with_stopping(classifier, train, validation, used, frame=frame, seed=seed, say=say)
    except NonFiniteLossError:
        found = {"validation_loss": None, "validation_accuracy": None, "epochs": None}
    kept = {name: found[name] for name in ("validation_loss", "validation_accuracy", "epochs")}
    return CellResult(numbers | kept | {"seconds": round(perf_counter() - began, 2)})
