"""`score_fidelity`: how much samples resemble the real images as a set, beside what held-out patients' images do.

A distance by itself says nothing: real images of other patients are away from the train images too. So whatever is
measured of synthetic images against train is measured of holdout images against train, the yardstick, and of synthetic
against holdout. A generator that copies is close to train and further from holdout.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch

from unalike import folders
from unalike.cohort.roles import ImageSet, Roles, choose_channels, open_roles, pick_one_each
from unalike.devices import pick_device
from unalike.engine import show_progress
from unalike.errors import FolderError, InputError, SettingsError
from unalike.fidelity.features import Features, embed_cached
from unalike.fidelity.frechet import extrapolated_frechet, frechet_distance, frechet_estimate
from unalike.fidelity.inception_score import inception_score
from unalike.fidelity.kernel import block_kernel_distance, kernel_estimate
from unalike.fidelity.manifold import manifold_estimates, measure_manifold
from unalike.fidelity.pretrained import PretrainedFeatures, open_features
from unalike.fidelity.result import (
    COMPARISONS,
    HOLDOUT,
    SYNTHETIC,
    TRAIN,
    FidelityResult,
    Score,
    read_fidelity,
    read_score,
)
from unalike.fidelity.settings import FidelitySettings
from unalike.fidelity.variety import (
    count_vendi,
    measure_nearest,
    multiscale_estimate,
    multiscale_name,
    vendi_estimate,
)
from unalike.records import Estimate, FloatArray, IntArray, Pixels, TextArray
from unalike.seeds import generator_for
from unalike.similarity.ssim import WINDOW
from unalike.stats.intervals import estimate_mean

FEWEST = 10  # subjects of a set, below which a class is not measured by itself
MANY_NUMBERS = 500  # of a vector: from here on one Fréchet distance takes seconds
PARTS = "parts"


@dataclass(frozen=True, eq=False)
class _Set:
    """Images of one role, or one class of it, with their features (n, D)."""

    images: ImageSet
    features: FloatArray

    @cached_property
    def subjects(self) -> TextArray:
        return self.images.subjects

    @property
    def people(self) -> int:
        return len(np.unique(self.subjects))

    def of_class(self, label: str) -> _Set:
        return self._only(np.flatnonzero(self.images.labels == label))

    def one_each(self, count: int, seed: int) -> _Set:
        """One image each of so many subjects, drawn at random."""
        return self._only(pick_one_each(self.subjects, count, generator_for(seed, "fidelity subjects")))

    def _only(self, kept: IntArray) -> _Set:
        return _Set(ImageSet(self.images.folder, self.images.rows[kept]), self.features[kept])


_Sets = Mapping[str, _Set]
_Task = tuple[str, Callable[[], list[Score]]]


def score_fidelity(
    *,
    synthetic: str | Path,
    out: str | Path,
    against: str | Path | None = None,
    train: str | Path | None = None,
    holdout: str | Path | None = None,
    settings: FidelitySettings | None = None,
    name: str | None = None,
    seed: int = 0,
    device: str = "auto",
) -> FidelityResult:
    """Measure how synthetic images resemble real ones, into the folder ``out``; the real images as in `audit_samples`.

    Every measure's name in the result goes with the features it was made by. Interrupted, the same call goes on with
    the measure it was at. The folder holds numbers alone, no picture and nobody's name.

    Raises an `InputError` if the folders cannot be read or do not fit each other, there are fewer than two samples, or
    the features' weights do not fit or cannot be had; `SettingsError` for a setting that makes no sense.
    """
    settings, out = settings or FidelitySettings(), Path(out)
    settings.check()
    if seed < 0:
        raise SettingsError(f"--seed {seed}: give a whole number from 0 on.")
    where = pick_device(device)
    folders.check_free(out, kind="fidelity")  # features may take minutes
    paths = [Path(path) if path is not None else None for path in (against, train, holdout)]
    with open_roles(
        synthetic=Path(synthetic), against=paths[0], train=paths[1], holdout=paths[2], settings=settings, labels=True
    ) as roles:
        _check_counts(roles)
        cohort = roles.train.folder
        features = open_features(
            settings.features,
            cohort=cohort,
            weights=settings.weights or None,
            fetch=settings.fetch_weights,
            device=where,
        )
        kept = asdict(settings) | {"weights": Path(settings.weights).name}  # a path may name its user
        identity = kept | {"inputs": roles.inputs, "seed": seed, "features_digest": features.digest}
        folders.begin_folder(out, kind="fidelity", settings=identity, resumable=True)
        (out / PARTS).mkdir(exist_ok=True)
        sets = _embed_sets(roles, features, None if against is None else cohort.path / folders.INDEX)
        notes: list[str] = []
        tasks = list(_all_tasks(sets, roles, features, settings, seed, where, notes))
        scores = tuple(_work(tasks, out / PARTS))
        counts = {role: {"images": len(each.images), "subjects": each.people} for role, each in sets.items()}
        content = {
            "name": name or Path(synthetic).name,
            "features": features.name,
            "features_digest": features.digest,
            "dimension": int(sets[TRAIN].features.shape[1]),
            "counts": counts,
            "scores": scores,
            "notes": notes,
            "warnings": roles.warnings,
        }
        shutil.rmtree(out / PARTS)
        header = folders.finish_folder(
            out, kind="fidelity", settings=kept, seed=seed, inputs=roles.inputs, content=content
        )
    return read_fidelity(header.path.parent)


def _check_counts(roles: Roles) -> None:
    for name, images in (("synthetic", roles.synthetic), ("train", roles.train)):
        if len(images) < 2:
            raise InputError(f"{images.folder.path} has {len(images)} {name} images. Fidelity needs at least 2.")


def _embed_sets(roles: Roles, features: Features, cache: Path | None) -> dict[str, _Set]:
    found = {}
    for role, images in ((SYNTHETIC, roles.synthetic), (HOLDOUT, roles.holdout), (TRAIN, roles.train)):
        vectors = embed_cached(features, images.folder, images.rows, cache)
        found[role] = _Set(images, vectors)
    return found


def _all_tasks(
    sets: _Sets,
    roles: Roles,
    features: Features,
    settings: FidelitySettings,
    seed: int,
    device: torch.device,
    notes: list[str],
) -> Iterator[_Task]:
    if len(sets[HOLDOUT].images) == 0:
        notes.append("There is no holdout, so nothing tells what a good value is. Prepare a cohort with one.")
    yield from _tasks_of(sets, "", settings, seed)
    yield from _equal_manifold_tasks(sets, seed)
    yield from _variety_tasks(sets, choose_channels(roles, ()), settings, seed, device)
    yield from _inception_tasks(sets, features, seed, notes)
    if not settings.per_class:
        return
    classes = sorted(set(sets[TRAIN].images.labels) & set(sets[SYNTHETIC].images.labels) - {""})
    missing = sorted(set(sets[TRAIN].images.labels) - set(classes) - {""})
    if missing and classes:
        notes.append(f"No samples of {', '.join(missing)}: measured over all classes only.")
    if len(classes) < 2:
        return
    for label in classes:
        part = {role: each.of_class(label) for role, each in sets.items()}
        fewest = min(part[role].people for role in (SYNTHETIC, TRAIN))
        if fewest < FEWEST:
            notes.append(f"{label}: {fewest} subjects in a set are too few to be measured by themselves.")
            continue
        yield from _tasks_of(part, label, settings, seed)


def _tasks_of(sets: _Sets, label: str, settings: FidelitySettings, seed: int) -> Iterator[_Task]:
    for of, to in COMPARISONS:
        pair = f"{of}-{to}"
        a, b = sets[of], sets[to]
        if len(a.images) < 2 or len(b.images) < 2:
            continue
        for work in (_frechet, _kernel, _manifold):
            if work is _manifold and to == HOLDOUT:
                continue  # precision among few holdout images says little beside that among train images
            run = partial(work, a, b, settings, seed)
            yield f"{label or 'all'} {pair} {work.__name__}", partial(_named, run, label, pair)


def _named(run: Callable[[], Mapping[str, Estimate]], label: str, compared: str) -> list[Score]:
    return [Score(label, measure, compared, found) for measure, found in run().items()]


def _frechet(a: _Set, b: _Set, settings: FidelitySettings, seed: int) -> dict[str, Estimate]:
    large = a.features.shape[1] > MANY_NUMBERS
    n = min(a.people, b.people)
    estimate = frechet_estimate(
        a.features,
        b.features,
        subjects_a=a.subjects,
        subjects_b=b.subjects,
        seed=seed,
        resamples=settings.resamples // (8 if large else 1),
        parts=10 if large else 40,
    )
    endless = extrapolated_frechet(
        a.features,
        b.features,
        subjects_a=a.subjects,
        subjects_b=b.subjects,
        seed=seed,
        repeats=2 if large else 10,
    )
    return {
        "frechet": estimate,
        "frechet_plain": _bare(frechet_distance(a.features, b.features), n, "as others report it, biased upwards"),
        "frechet_infinite": _bare(endless, n, "extrapolated to endless sets (Chong & Forsyth 2020)"),
    }


def _kernel(a: _Set, b: _Set, settings: FidelitySettings, seed: int) -> dict[str, Estimate]:
    del settings
    blocks = block_kernel_distance(a.features, b.features, seed=seed)
    return {
        "kernel": kernel_estimate(a.features, b.features, subjects_a=a.subjects, subjects_b=b.subjects),
        "kernel_blocks": _bare(blocks.mean, blocks.size, f"mean over {blocks.blocks} blocks, as others report it"),
    }


def _manifold(a: _Set, b: _Set, settings: FidelitySettings, seed: int) -> dict[str, Estimate]:
    del settings
    manifold = measure_manifold(b.features, a.features, real_subjects=b.subjects, synthetic_subjects=a.subjects)
    return manifold_estimates(manifold, seed=seed)


def _bare(value: float, n: int, method: str) -> Estimate:
    return Estimate(value, math.nan, math.nan, n, method)


def _equal_manifold_tasks(sets: _Sets, seed: int) -> Iterator[_Task]:
    """Recall and coverage of as many samples as there are holdout subjects: both grow with the number."""
    size = min(sets[SYNTHETIC].people, sets[HOLDOUT].people)
    if size < FEWEST:
        return
    for of in (SYNTHETIC, HOLDOUT):

        def run(of: str = of) -> list[Score]:
            chosen = sets[of].one_each(size, seed)
            found = _manifold(chosen, sets[TRAIN], FidelitySettings(), seed)
            return [
                Score("", f"{measure} of {size}", f"{of}-{TRAIN}", found[measure]) for measure in ("recall", "coverage")
            ]

        yield f"{of} manifold of {size}", run


def _variety_tasks(
    sets: _Sets, channels: list[int], settings: FidelitySettings, seed: int, device: torch.device
) -> Iterator[_Task]:
    """Of each set by itself, as many images on all sides, one a subject."""
    roles = [role for role, each in sets.items() if len(each.images)]
    size = min([settings.neighbours, *(sets[role].people for role in roles)])
    height, width = sets[TRAIN].images.folder.size
    if size >= FEWEST and min(height, width) >= WINDOW:

        def read(role: str) -> Pixels:
            if role not in roles:
                return np.empty((0, len(channels), height, width), sets[TRAIN].images.folder.dtype)
            chosen = sets[role].one_each(size, seed).images
            return chosen.folder.read(chosen.rows)[:, channels]

        for role in roles:
            name = multiscale_name(height, width)

            def scales(role: str = role, name: str = name) -> list[Score]:
                return [Score("", name, role, multiscale_estimate(read(role), seed=seed, device=device))]

            yield f"{role} ms-ssim", scales
        yield "nearest by SSIM", partial(_nearest, read, seed, device)
    vendi = count_vendi(*(sets[role].people for role in roles))
    for role in roles if vendi >= 2 else ():
        part = sets[role]

        def score(part: _Set = part, role: str = role) -> list[Score]:
            # From zero all images lie in one direction; from the mean of train images their differences count.
            centred = part.features - sets[TRAIN].features.mean(axis=0)
            found = vendi_estimate(centred, subjects=part.subjects, size=vendi, seed=seed)
            return [Score("", f"Vendi score of {vendi}", role, found)]

        yield f"{role} vendi", score


def _nearest(read: Callable[[str], Pixels], seed: int, device: torch.device) -> list[Score]:
    """How alike images of a set are to their nearest, as Pan et al. 2023 measured it, and how near train they come."""
    found = measure_nearest(read(SYNTHETIC), read(HOLDOUT), read(TRAIN), seed=seed, device=device)
    random = partial(generator_for, seed, "fidelity nearest")
    means = {
        ("highest SSIM within the set", SYNTHETIC): found.synthetic,
        ("highest SSIM within the set", HOLDOUT): found.holdout,
        ("highest SSIM within the set", TRAIN): found.train,
        ("highest SSIM with a train image", SYNTHETIC): found.synthetic_to_train,
        ("highest SSIM with a train image", HOLDOUT): found.holdout_to_train,
    }
    scores = [
        Score("", measure, role, estimate_mean(values, np.arange(len(values)).astype(str), random=random()))
        for (measure, role), values in means.items()
    ]
    for role, divergence in ((SYNTHETIC, found.drawn), (HOLDOUT, found.yardstick)):
        name = "divergence of highest SSIM within from train's"
        scores.append(Score("", f"{name}, Kullback–Leibler, bits", role, divergence.kullback_leibler))
        scores.append(Score("", f"{name}, Jensen–Shannon, bits", role, divergence.jensen_shannon))
    name = "divergence of highest SSIM with train from holdout's, Jensen–Shannon, bits"
    return [*scores, Score("", name, SYNTHETIC, found.to_train.jensen_shannon)]


def _inception_tasks(sets: _Sets, features: Features, seed: int, notes: list[str]) -> Iterator[_Task]:
    """Of each set by itself: the score of real images is what samples are held against."""
    if not isinstance(features, PretrainedFeatures) or not features.has_classes:
        notes.append("The inception score needs a network with classes: --features inception.")
        return
    for role, each in sets.items():
        if not len(each.images):
            continue

        def run(each: _Set = each, role: str = role) -> list[Score]:
            chances = features.probabilities_of(each.features)
            return [Score("", "inception score", role, inception_score(chances, subjects=each.subjects, seed=seed))]

        yield f"{role} inception score", run


def _work(tasks: list[_Task], parts: Path) -> Iterator[Score]:
    """Scores of all tasks in order; what an interrupted call finished is read again."""
    with show_progress("fidelity", total=len(tasks), unit="measures") as progress:
        for number, (name, run) in enumerate(tasks):
            place = parts / f"{number:03d}.json"
            found = _read_part(place, name)
            if found is None:
                found = run()
                folders.write_json(place, {"name": name, "scores": found})
            progress.advance(1, name)
            yield from found


def _read_part(place: Path, name: str) -> list[Score] | None:
    try:
        document = folders.read_json(place)
        return [read_score(entry) for entry in document["scores"]] if document["name"] == name else None
    except (FolderError, KeyError, TypeError, ValueError):
        return None
