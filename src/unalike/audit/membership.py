"""Was this patient in the training set? Asked of the model itself, through its loss.

A model explains images it was trained on better than others of their kind (Yeom et al. 2018; for diffusion Matsumoto
et al. 2023 and Carlini et al. 2023, section 5). How hard an image is to explain for anybody has to be taken out first
(difficulty calibration: Watson et al. 2022): by the loss under a reference model that saw neither set, or by what the
image's own statistics predict. What remains is a score, compared between members (the subjects the run saw) and
non-members. Subjects are the unit throughout, as an attacker asks about a patient.

A high score may also mean that the two sets differ in themselves. So the same statistic is measured where the answer
is known (members against members, non-members against non-members) and without the model (the difficulty alone, a
"blind baseline": Das, Zhang and Tramèr 2024).
"""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import matplotlib as mpl
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import scipy.ndimage
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.stats import norm, rankdata

from unalike import folders
from unalike.audit.membership_settings import MembershipSettings
from unalike.audit.verdict import count_of
from unalike.cohort.roles import ImageSet
from unalike.cohort.split import select_train_rows
from unalike.cohort.store import ImageFolder, open_images
from unalike.engine import show_progress
from unalike.errors import InputError, SettingsError
from unalike.folders import Header
from unalike.records import Estimate, FloatArray, IntArray, Pixels, TextArray, as_json
from unalike.seeds import generator_for
from unalike.stats.intervals import estimate_share

SUBJECTS = "subjects.parquet"
BLOCK = 64  # images read and scored at a time, or fewer where they are large
BLOCK_VALUES = 1 << 22
FOLDS = 5
LEAST_TO_FIT = 20  # non-member subjects below which no difficulty is fitted
RIDGE = 1.0  # penalty on standardized features
SCALES = (1.0, 2.0, 4.0)  # of the local variance, pixels
RATES = (0.01, 0.001)  # false-positive rates at which the true-positive rate is told
RESAMPLES = 2000
POWER = 0.8
SHIFTED = 0.01  # a control this unlikely by chance is worth a warning
INK, MEMBER, OTHER = "#1c2024", "#c2410c", "#0067b0"

Decision = Literal["membership shows", "membership does not show", "cannot tell"]


class LossModel(Protocol):
    """Anything that has a loss. The generators offer it for their runs; a user may bring another."""

    @property
    def name(self) -> str:
        """What the model is called."""

    @property
    def levels(self) -> tuple[str, ...]:
        """What each column of the losses is."""

    def losses(self, images: Pixels, *, seed: int) -> FloatArray:
        """Losses (n, levels) of images (n, C, H, W); small where the model explains an image well.

        What is random follows from ``seed`` and is the same for all images.
        """


@dataclass(frozen=True)
class LevelResult:
    """What one loss level shows alone: its AUC, and the mean loss over images of each side."""

    level: str
    auc: Estimate
    member_loss: float
    other_loss: float


@dataclass(frozen=True)
class NullControl:
    """The same statistic where the model plays no part.

    Of random halves of one side, ``auc`` is the mean area with the range of the middle 95 %, and ``p_value`` is NaN. Of
    the difficulty alone it is the area with its interval, and ``p_value`` is two-sided.
    """

    name: str
    auc: Estimate
    p_value: float


@dataclass(frozen=True)
class SubjectScores:
    """One row a subject: pseudonym, whether the run saw it, number of images, and scores.

    ``scores`` (n,) is the mean of ``by_level`` (n, levels), in standard deviations of the non-members' images;
    ``blind`` (n,) is the score that the difficulty alone gives.
    """

    subjects: TextArray
    member: np.ndarray[Any, np.dtype[np.bool_]]
    images: IntArray
    scores: FloatArray
    by_level: FloatArray
    blind: FloatArray


@dataclass(frozen=True)
class MembershipResult:
    """What a membership test found. The same stands in the folder's header (``membership.json``) but the scores.

    ``auc`` is the chance that a random member scores above a random non-member; ``true_positives`` maps a
    false-positive rate to the share of members found at it; ``least_auc`` is the smallest AUC that would have shown
    with probability 0.8 (NaN: none would).
    """

    name: str
    decision: Decision
    headline: str
    warnings: tuple[str, ...]
    auc: Estimate
    p_value: float
    least_auc: float
    true_positives: Mapping[str, Estimate]
    levels: tuple[LevelResult, ...]
    controls: tuple[NullControl, ...]
    difficulty: str
    counts: Mapping[str, int]
    scores: SubjectScores


def audit_membership(
    *,
    run: str | Path,
    model: LossModel,
    against: str | Path,
    out: str | Path,
    reference: str | Path | None = None,
    reference_model: LossModel | None = None,
    settings: MembershipSettings | None = None,
    seed: int = 0,
) -> MembershipResult:
    """Ask the losses of ``run`` who was in its training set, and write the folder ``out``.

    ``model`` and ``reference_model`` are the losses of the runs ``run`` and ``reference`` (generators offer them).
    ``against`` is the cohort the run was trained on: subjects it saw are members, all others are not. Subjects that a
    reference run of the same cohort saw are left out on both sides. ``out`` names patients by their pseudonyms and
    says how recognizable each is: it is internal.

    Raises an `InputError`, and leaves nothing behind, if the folders cannot be read or do not fit each other.
    """
    settings = settings or MembershipSettings()
    settings.check()
    if seed < 0:
        raise SettingsError(f"--seed {seed}: give a whole number from 0 on.")
    if (reference is None) != (reference_model is None):
        raise SettingsError("a reference needs both its run and its losses. Give --reference RUN.")
    cohort, out = open_images(against), Path(out)
    train, holdout, notes = split_members(cohort, run=Path(run), reference=Path(reference) if reference else None)
    inputs = {"run": folders.digest_of(Path(run), kind="run"), "cohort": cohort.digest}
    if reference is not None:
        inputs["reference"] = folders.digest_of(Path(reference), kind="run")
    with folders.new_folder(out, kind="membership", settings=asdict(settings)):
        result = measure_membership(
            model=model,
            train=train,
            holdout=holdout,
            reference=reference_model,
            settings=settings,
            seed=seed,
            notes=notes,
        )
        _write(result, out, settings, seed, inputs)
    return result


def split_members(
    cohort: ImageFolder, *, run: Path, reference: Path | None = None
) -> tuple[ImageSet, ImageSet, list[str]]:
    """Images of the subjects that ``run`` saw, those of all other subjects, and what must be said first.

    Train subjects whom the run never saw are non-members as well as the holdout is. A non-member with an image that
    is pixel-identical to one of a member is left out, and so are subjects that ``reference`` saw.

    Raises `InputError` if ``run`` was not trained on this cohort, or a reference does not fit or leaves no member.
    """
    header = folders.read_header(run, kind="run")
    if header.inputs.get("cohort") != cohort.digest:
        raise InputError(
            f"{run} was not trained on {cohort.path} (or it has changed since), so who was a member is unknown. "
            "Give the cohort it was trained on."
        )
    seen = _rows_seen(cohort, header)
    every = np.sort(np.concatenate([cohort.rows("train"), cohort.rows("holdout")]))
    others = np.setdiff1d(every, seen)
    notes: list[str] = []
    digests, subjects = cohort.column("digest"), cohort.column("subject")
    shared = np.isin(subjects[others], subjects[seen])
    twins = np.unique(subjects[others][np.isin(digests[others], digests[seen]) & ~shared])
    if shared.any() or len(twins):
        number = len(np.unique(subjects[others][shared])) + len(twins)
        notes.append(f"Left out, as they also have images among the members': {count_of(number, 'non-member')}.")
    others = others[~shared & ~np.isin(subjects[others], twins)]
    if reference is not None:
        seen, others = _leave_out_reference(cohort, header, reference, seen, others, notes)
    return ImageSet(cohort, seen), ImageSet(cohort, others), notes


def _rows_seen(cohort: ImageFolder, header: Header) -> IntArray:
    seed = int(header.content.get("subject_seed", 0))
    return select_train_rows(cohort, subjects=header.content.get("subjects"), seed=seed)


def _leave_out_reference(
    cohort: ImageFolder, header: Header, reference: Path, seen: IntArray, others: IntArray, notes: list[str]
) -> tuple[IntArray, IntArray]:
    """Without whom the reference saw: it would take their membership out with their difficulty, or add its own."""
    other = folders.read_header(reference, kind="run")
    for name in ("generator", "channels", "height", "width", "dtype"):
        if other.content.get(name) != header.content.get(name):
            raise InputError(
                f"{reference} has {name} {other.content.get(name)}, the run has {header.content.get(name)}. "
                "Train the reference alike, on other subjects."
            )
    if other.inputs.get("cohort") != cohort.digest:
        notes.append("The reference run saw another cohort: it is taken on trust that none of these patients is in it.")
        return seen, others
    subjects = cohort.column("subject")
    known = np.unique(subjects[_rows_seen(cohort, other)])
    kept, rest = (rows[~np.isin(subjects[rows], known)] for rows in (seen, others))
    if len(kept) == 0 or len(rest) == 0:
        side = "subject the run saw" if len(kept) == 0 else "other subject"
        raise InputError(
            f"{reference} was trained on every {side}. Train the reference on other subjects (--subjects, --seed)."
        )
    if len(kept) < len(seen) or len(rest) < len(others):
        notes.append(f"Left out, as the reference run saw them: {count_of(len(known), 'subject')}.")
    return kept, rest


def measure_membership(
    *,
    model: LossModel,
    train: ImageSet,
    holdout: ImageSet,
    reference: LossModel | None = None,
    settings: MembershipSettings | None = None,
    seed: int = 0,
    notes: Sequence[str] = (),
) -> MembershipResult:
    """Compare how well ``model`` explains the images of members (``train``) and of non-members (``holdout``).

    The score of an image is −(loss − difficulty), in standard deviations of the non-members' images, averaged over the
    model's levels with equal weights; a subject's score is the mean over its images. The difficulty is the loss under
    ``reference``, or a ridge regression of the loss on image statistics, fitted to non-members by cross-fitting over
    subjects, or nothing. ``notes`` are passed on among the warnings.

    Raises `SettingsError` for settings that make no sense and `InputError` if a side has no image, the levels of model
    and reference differ, a subject is on both sides, or a loss is not finite.
    """
    settings = settings or MembershipSettings()
    settings.check()
    if len(train) == 0 or len(holdout) == 0:
        side = "the run saw" if len(train) == 0 else "the run did not see"
        raise InputError(f"{train.folder.path} has no subject that {side}. Prepare it with --holdout 0.2 and train.")
    if reference is not None and reference.levels != model.levels:
        raise InputError("the reference run has other loss levels than the run. Train the reference alike.")
    said = list(notes)
    chosen = [ImageSet(images.folder, _choose_rows(images, settings, seed)) for images in (train, holdout)]
    subjects = np.concatenate([images.subjects for images in chosen])
    member = np.repeat([True, False], [len(images) for images in chosen])
    both = np.intersect1d(subjects[member], subjects[~member])
    if len(both):
        raise InputError(f"on both sides: {count_of(len(both), 'subject')}, such as {both[0]}. Take them out of one.")
    gathered = _gather(chosen, model, reference, seed)
    difficulty, how = _find_difficulty(gathered, subjects, member, settings, seed, said)
    by_level = _standardize(difficulty - gathered.losses, member)
    table = _by_subject(subjects, member, by_level, _standardize(-difficulty, member).mean(axis=1))
    return _conclude(model, table, gathered.losses, member, how, settings, seed, said)


def _choose_rows(images: ImageSet, settings: MembershipSettings, seed: int) -> IntArray:
    """Rows of at most so many images of at most so many subjects, ascending."""
    names = np.unique(images.subjects)
    if settings.subjects is not None and settings.subjects < len(names):
        # In order of first appearance, as pseudonyms depend on the key.
        first = np.sort(np.unique(images.subjects, return_index=True)[1])
        names = generator_for(seed, "membership-subjects").permutation(images.subjects[first])[: settings.subjects]
    order = generator_for(seed, "membership-images").permutation(len(images.folder))
    rows = images.rows[np.isin(images.subjects, names)]
    rows = rows[np.argsort(order[rows], kind="stable")]
    owners = images.folder.column("subject")[rows]
    by_owner = np.argsort(owners, kind="stable")
    sorted_owners = owners[by_owner]
    place = np.arange(len(rows)) - np.searchsorted(sorted_owners, sorted_owners)
    return np.sort(rows[by_owner[place < settings.images_per_subject]])


@dataclass(frozen=True)
class _Gathered:
    """Losses (n, levels), the reference's or None, and image statistics (n, features)."""

    losses: FloatArray
    reference: FloatArray | None
    features: FloatArray


def _gather(sides: Sequence[ImageSet], model: LossModel, reference: LossModel | None, seed: int) -> _Gathered:
    """One pass over the images of all sides, in their order."""
    models = [model] if reference is None else [model, reference]
    losses: list[list[FloatArray]] = [[] for _ in models]
    features = []
    with show_progress(f"losses of {model.name}", total=sum(map(len, sides)), unit="images") as progress:
        for pixels in _read_blocks(sides):
            for found, asked in zip(losses, models, strict=True):
                found.append(_ask(asked, pixels, seed))
            features.append(image_statistics(pixels, highest=float(np.iinfo(pixels.dtype).max)))
            progress.advance(len(pixels))
    joined = [np.concatenate(found) for found in losses]
    return _Gathered(joined[0], joined[1] if reference is not None else None, np.concatenate(features))


def _read_blocks(sides: Sequence[ImageSet]) -> Iterator[Pixels]:
    for images in sides:
        folder = images.folder
        block = max(1, min(BLOCK, BLOCK_VALUES // (len(folder.channels) * math.prod(folder.size))))
        for begin in range(0, len(images), block):
            yield folder.read(images.rows[begin : begin + block])


def _ask(model: LossModel, pixels: Pixels, seed: int) -> FloatArray:
    losses = np.asarray(model.losses(pixels, seed=seed), dtype=np.float64)
    if losses.shape != (len(pixels), len(model.levels)):
        raise InputError(f"the losses of {model.name} have shape {losses.shape}, not one per image and level.")
    if not np.isfinite(losses).all():
        raise InputError(f"a loss of {model.name} is not finite: the model cannot be judged. Train it again.")
    return losses


def image_statistics(images: Pixels, *, highest: float) -> FloatArray:
    """Statistics (n, features) of images (n, C, H, W) that say how hard each is to explain, for any model.

    Mean, share of zeros, log of the mean step between neighbouring pixels, and log of the mean local variance at each
    of `SCALES` with its spread over the image; pixel values are divided by ``highest`` first.
    """
    values = images.astype(np.float64) / highest
    axes = (1, 2, 3)
    steps = np.abs(np.diff(values, axis=2)).mean(axis=axes) + np.abs(np.diff(values, axis=3)).mean(axis=axes)
    columns = [values.mean(axis=axes), (images == 0).mean(axis=axes), np.log(steps + 1e-4)]
    for scale in SCALES:
        sigma = (0, 0, scale, scale)
        mean = scipy.ndimage.gaussian_filter(values, sigma, mode="nearest")
        square = scipy.ndimage.gaussian_filter(values**2, sigma, mode="nearest")
        variance = np.maximum(square - mean**2, 0)
        columns += [np.log(variance.mean(axis=axes) + 1e-6), np.log(variance + 1e-6).mean(axis=axes)]
    return np.stack(columns, axis=1)


def _find_difficulty(
    gathered: _Gathered,
    subjects: TextArray,
    member: np.ndarray[Any, np.dtype[np.bool_]],
    settings: MembershipSettings,
    seed: int,
    notes: list[str],
) -> tuple[FloatArray, str]:
    """Difficulty (n, levels) in the unit of the losses, and where it comes from."""
    if gathered.reference is not None:
        return gathered.reference, "loss under the reference run"
    if settings.difficulty == "none":
        return np.zeros_like(gathered.losses), "none"
    others = len(np.unique(subjects[~member]))
    if others < LEAST_TO_FIT:
        notes.append(
            f"{count_of(others, 'non-member')} are too few to fit the difficulty of images ({LEAST_TO_FIT} are "
            "needed): losses are compared as they are."
        )
        return np.zeros_like(gathered.losses), "none"
    random = generator_for(seed, "membership-folds")
    return (
        fit_difficulty(gathered.losses, gathered.features, subjects, member=member, random=random),
        f"ridge regression on {gathered.features.shape[1]} image statistics, cross-fitted over subjects",
    )


def fit_difficulty(
    losses: FloatArray,
    features: FloatArray,
    subjects: TextArray,
    *,
    member: np.ndarray[Any, np.dtype[np.bool_]],
    random: np.random.Generator,
) -> FloatArray:
    """What ``features`` (n, F) predict of ``losses`` (n, levels), fitted to images that are no ``member`` (n,).

    Subjects of both sides are dealt to `FOLDS` folds; an image is predicted by the fit to the non-members of the other
    folds. So no image takes part in its own prediction, and both sides are predicted by the same fits. A level that the
    features do not help to predict, as the non-members' own residuals tell, gets the mean instead: heavy-tailed losses
    would only gain noise.
    """
    names, index = _number_subjects(subjects)
    folds = np.empty(len(names), dtype=np.int64)
    inside = np.zeros(len(names), dtype=bool)
    inside[index[member]] = True
    for side in (inside, ~inside):
        folds[side] = random.permutation(np.arange(side.sum()) % FOLDS)
    fold = folds[index]
    predicted, constant = np.empty_like(losses), np.empty_like(losses)
    for number in range(FOLDS):
        fitted, wanted = ~member & (fold != number), fold == number
        mean, spread = features[fitted].mean(axis=0), features[fitted].std(axis=0)
        X = (features - mean) / np.where(spread > 0, spread, 1)  # noqa: N806 - the usual symbol
        # An image unlike all that were fitted is not extrapolated to without bound.
        X = np.clip(X, -4, 4)  # noqa: N806
        level = losses[fitted].mean(axis=0)
        normal = X[fitted].T @ X[fitted] + RIDGE * np.eye(X.shape[1])
        weights = np.linalg.solve(normal, X[fitted].T @ (losses[fitted] - level))
        predicted[wanted], constant[wanted] = X[wanted] @ weights + level, level
    left, before = (np.square((losses - guess)[~member]).sum(axis=0) for guess in (predicted, constant))
    return np.where(left < before, predicted, constant)


def _standardize(values: FloatArray, member: np.ndarray[Any, np.dtype[np.bool_]]) -> FloatArray:
    """Values (n, levels) in standard deviations of the non-members' images; all alike: 0 there."""
    mean, spread = values[~member].mean(axis=0), values[~member].std(axis=0)
    least = 1e-9 * (np.abs(values).max(axis=0) + 1)
    overall = values.std(axis=0)
    unit = np.where(spread > least, spread, np.where(overall > least, overall, 1))
    return np.asarray((values - mean) / unit)


def _by_subject(
    subjects: TextArray,
    member: np.ndarray[Any, np.dtype[np.bool_]],
    by_level: FloatArray,
    blind: FloatArray,
) -> SubjectScores:
    names, index = _number_subjects(subjects)
    count = np.bincount(index)
    inside = np.zeros(len(names), dtype=bool)
    inside[index[member]] = True

    def mean(values: FloatArray) -> FloatArray:
        return np.bincount(index, weights=values, minlength=len(names)) / count

    levels = np.stack([mean(column) for column in by_level.T], axis=1)
    return SubjectScores(names, inside, count.astype(np.int64), levels.mean(axis=1), levels, mean(blind))


def _number_subjects(subjects: TextArray) -> tuple[TextArray, IntArray]:
    """Names by first appearance, and each image's place among them: pseudonyms and their order depend on the key."""
    names, first, index = np.unique(subjects, return_index=True, return_inverse=True)
    order = np.argsort(first)
    return names[order].astype(np.str_), np.argsort(order)[index].astype(np.int64)


def _conclude(
    model: LossModel,
    table: SubjectScores,
    losses: FloatArray,
    member: np.ndarray[Any, np.dtype[np.bool_]],
    how: str,
    settings: MembershipSettings,
    seed: int,
    notes: list[str],
) -> MembershipResult:
    auc = estimate_auc(table.scores, table.member, random=generator_for(seed, "membership-bootstrap"))
    p_value = permutation_p_value(
        table.scores, table.member, count=settings.permutations, random=generator_for(seed, "membership-permutation")
    )
    members, others = int(table.member.sum()), int((~table.member).sum())
    least = least_auc(members, others, level=settings.level)
    controls = _control(table, settings, seed, blind=how != "none")
    source = "the reference run" if "reference" in how else "image statistics"
    notes += [
        f"Without the model, from {source} alone, members differ from non-members (AUC {control.auc}, "
        f"p = {control.p_value:.2g}): the two sets are not of one kind."
        for control in controls
        if control.name == "difficulty alone" and control.p_value <= SHIFTED
    ]
    if auc.high < 0.5:
        notes.append(
            "Members are explained worse than non-members: the two sets are not of one kind, or not who we think."
        )
    decision, headline = _decide(auc, p_value, least, controls, settings)
    return MembershipResult(
        name=model.name,
        decision=decision,
        headline=headline,
        warnings=tuple(notes),
        auc=auc,
        p_value=p_value,
        least_auc=least,
        true_positives={f"{rate:g}": true_positive_rate(table.scores, table.member, rate=rate) for rate in RATES},
        levels=_per_level(model, table, losses, member, seed),
        controls=controls,
        difficulty=how,
        counts={
            "member_subjects": members,
            "other_subjects": others,
            "member_images": int(member.sum()),
            "other_images": int((~member).sum()),
        },
        scores=table,
    )


def _per_level(
    model: LossModel,
    table: SubjectScores,
    losses: FloatArray,
    member: np.ndarray[Any, np.dtype[np.bool_]],
    seed: int,
) -> tuple[LevelResult, ...]:
    return tuple(
        LevelResult(
            level=level,
            auc=estimate_auc(
                table.by_level[:, number], table.member, random=generator_for(seed, "membership-level", number)
            ),
            member_loss=float(losses[member, number].mean()),
            other_loss=float(losses[~member, number].mean()),
        )
        for number, level in enumerate(model.levels)
    )


def _control(table: SubjectScores, settings: MembershipSettings, seed: int, *, blind: bool) -> tuple[NullControl, ...]:
    """Random halves of each side, and the difficulty alone."""
    found = []
    for name, side in (("members against members", table.member), ("non-members against non-members", ~table.member)):
        random = generator_for(seed, name)
        found.append(NullControl(name, split_auc(table.scores[side], count=settings.splits, random=random), math.nan))
    if blind:
        auc = estimate_auc(table.blind, table.member, random=generator_for(seed, "membership-blind"))
        random = generator_for(seed, "membership-blind-permutation")
        permuted = [
            permutation_p_value(sign * table.blind, table.member, count=settings.permutations, random=random)
            for sign in (1, -1)
        ]
        found.append(NullControl("difficulty alone", auc, min(1.0, 2 * min(permuted))))
    return tuple(found)


def _decide(
    auc: Estimate,
    p_value: float,
    least: float,
    controls: Sequence[NullControl],
    settings: MembershipSettings,
) -> tuple[Decision, str]:
    blind = next((control for control in controls if control.name == "difficulty alone"), None)
    if math.isnan(auc.low):
        return "cannot tell", "cannot tell (at least 2 members and 2 non-members are needed for an interval)."
    told = f"AUC {auc}, p = {p_value:.2g}"
    if auc.low > 0.5 and p_value <= settings.level:
        if blind and blind.p_value <= SHIFTED and abs(blind.auc.value - 0.5) >= auc.value - 0.5:
            return "cannot tell", (
                f"cannot tell (the model tells members from non-members, {told}, but so does the difficulty without "
                f"it, AUC {blind.auc}). Compare sets of one kind."
            )
        return "membership shows", f"membership shows: the model's loss tells members from non-members ({told})."
    if math.isnan(least):
        return "cannot tell", (
            f"cannot tell ({told}; so few subjects could not have shown even an AUC of 1). Score more subjects."
        )
    return "membership does not show", (
        f"membership does not show ({told}; would have shown an AUC of at least {least:.2f}, with probability "
        f"{POWER:g})."
    )


def auc_of(scores: FloatArray, member: np.ndarray[Any, np.dtype[np.bool_]]) -> float:
    """Chance that a random member scores above a random non-member, ties counting half; NaN without both."""
    m, n = int(member.sum()), int((~member).sum())
    if m == 0 or n == 0:
        return math.nan
    return float((rankdata(scores)[member].sum() - m * (m + 1) / 2) / (m * n))


def estimate_auc(
    scores: FloatArray,
    member: np.ndarray[Any, np.dtype[np.bool_]],
    *,
    random: np.random.Generator,
    confidence: float = 0.95,
) -> Estimate:
    """Area under the ROC curve of subjects' ``scores`` (n,) with its interval.

    The interval covers the percentile interval of resampled subjects (each side of its own) and Newcombe's score
    interval (2006, method 5), as the bootstrap alone has no width where the two sides do not overlap. With fewer than
    2 subjects on a side there is no interval. ``n`` is the size of the smaller side.
    """
    m, n = int(member.sum()), int((~member).sum())
    method = "bootstrap of subjects, not narrower than Newcombe 2006"
    value = auc_of(scores, member)
    if min(m, n) < 2:
        return Estimate(value, math.nan, math.nan, min(m, n), method, confidence)
    tail = (1 - confidence) / 2
    low, high = np.quantile(_resample_auc(scores, member, random), [tail, 1 - tail])
    bounds = _newcombe(value, m, n, float(norm.ppf(1 - tail)))
    return Estimate(value, min(float(low), bounds[0]), max(float(high), bounds[1]), min(m, n), method, confidence)


def _resample_auc(
    scores: FloatArray, member: np.ndarray[Any, np.dtype[np.bool_]], random: np.random.Generator
) -> FloatArray:
    """Areas (RESAMPLES,) when the subjects of each side are drawn with replacement."""
    values, place = np.unique(scores, return_inverse=True)
    sides = [np.bincount(place[side], minlength=len(values)) for side in (member, ~member)]
    m, n = (int(side.sum()) for side in sides)
    found = []
    step = max(1, 2_000_000 // len(values))  # a few ten megabytes at a time
    for begin in range(0, RESAMPLES, step):
        size = min(step, RESAMPLES - begin)
        inside, outside = (random.multinomial(side.sum(), side / side.sum(), size=size) for side in sides)
        below = np.cumsum(outside, axis=1) - 0.5 * outside
        found.append((inside * below).sum(axis=1) / (m * n))
    return np.concatenate(found)


def _spread_of_auc(auc: float, m: int, n: int) -> float:
    """Standard error of an area (Hanley and McNeil 1982, with the equal sizes of Newcombe 2006, method 5)."""
    size = (m + n) / 2 - 1
    terms = 1 + size * (1 - auc) / (2 - auc) + size * auc / (1 + auc)
    return math.sqrt(max(auc * (1 - auc) * terms, 0) / (m * n))


def _newcombe(value: float, m: int, n: int, z: float) -> tuple[float, float]:
    """All areas from which ``value`` is at most z standard errors away (the ends, by bisection)."""

    def end(far: float) -> float:
        near = value
        for _ in range(60):
            middle = (near + far) / 2
            if abs(middle - value) <= z * _spread_of_auc(middle, m, n):
                near = middle
            else:
                far = middle
        return near

    return end(0.0), end(1.0)


def least_auc(members: int, others: int, *, level: float, confidence: float = 0.95) -> float:
    """Smallest area that shows with probability `POWER`: its interval lies above 0.5 and p ≤ ``level``.

    From the normal approximation with Hanley and McNeil's standard error. NaN if none would, for instance because the
    labels of so few subjects can be permuted in too few ways.
    """
    if min(members, others) < 2 or 1 / math.comb(members + others, members) > level:
        return math.nan
    critical = max(float(norm.ppf((1 + confidence) / 2)), float(norm.ppf(1 - level)))
    null = math.sqrt((members + others + 1) / (12 * members * others))
    for auc in np.arange(0.505, 1.0, 0.005):
        spread = _spread_of_auc(float(auc), members, others)
        if auc - 0.5 >= critical * max(null, spread) + float(norm.ppf(POWER)) * spread:
            return round(float(auc), 3)
    return math.nan


def permutation_p_value(
    scores: FloatArray,
    member: np.ndarray[Any, np.dtype[np.bool_]],
    *,
    count: int,
    random: np.random.Generator,
) -> float:
    """Chance of so high an area if members were drawn at random among the subjects: (1 + hits) / (1 + ``count``)."""
    ranks, m = rankdata(scores), int(member.sum())
    observed = ranks[member].sum() - 1e-9
    step = max(1, 2_000_000 // len(ranks))
    hits = 0
    for begin in range(0, count, step):
        size = min(step, count - begin)
        drawn = random.permuted(np.broadcast_to(ranks, (size, len(ranks))).copy(), axis=1)[:, :m]
        hits += int((drawn.sum(axis=1) >= observed).sum())
    return (1 + hits) / (1 + count)


def split_auc(scores: FloatArray, *, count: int, random: np.random.Generator) -> Estimate:
    """Mean area over ``count`` random halvings of one side, and the range of the middle 95 % of them.

    Each halving asks a question whose answer is 0.5: the range is how far chance alone leads from it.
    """
    method = f"range over {count} random halves"
    n = len(scores)
    if n < 4:
        return Estimate(math.nan, math.nan, math.nan, n, method)
    half = np.zeros(n, dtype=bool)
    half[: n // 2] = True
    areas = [auc_of(scores, random.permutation(half)) for _ in range(count)]
    low, high = np.quantile(areas, [0.025, 0.975])
    return Estimate(float(np.mean(areas)), float(low), float(high), n, method)


def true_positive_rate(scores: FloatArray, member: np.ndarray[Any, np.dtype[np.bool_]], *, rate: float) -> Estimate:
    """Share of members above a threshold that at most the share ``rate`` of non-members passes (Carlini et al. 2022).

    The threshold is the k-th highest of the n non-members' scores, k = ⌊rate · (n + 1)⌋: one more non-member would
    pass it with probability at most ``rate``, whatever the distribution. With fewer than 1 / ``rate`` − 1 non-members
    it cannot be resolved and the value is NaN. The interval is that of a share at this threshold.
    """
    others = np.sort(scores[~member])[::-1]
    k = math.floor(rate * (len(others) + 1) + 1e-9)
    m = int(member.sum())
    if k < 1:
        needed = math.ceil(1 / rate - 1 - 1e-9)
        told = f"cannot be resolved with {count_of(len(others), 'non-member')}; {needed} are needed"
        return Estimate(math.nan, math.nan, math.nan, len(others), told)
    return estimate_share(int((scores[member] > others[k - 1]).sum()), m)


def _write(
    result: MembershipResult, out: Path, settings: MembershipSettings, seed: int, inputs: Mapping[str, str]
) -> None:
    table = result.scores
    columns: dict[str, Any] = {
        "subject": table.subjects.tolist(),
        "role": np.where(table.member, "member", "other").tolist(),
        "images": table.images.astype(np.int32),
        "score": table.scores,
        "difficulty_alone": table.blind,
    }
    columns |= {f"score {entry.level}": table.by_level[:, n] for n, entry in enumerate(result.levels)}
    pq.write_table(pa.table(columns), out / SUBJECTS)
    (out / folders.FIGURES).mkdir()
    _save_figure(draw_roc(result), out / folders.FIGURES / "roc")
    _save_figure(draw_scores(result), out / folders.FIGURES / "scores")
    content = summary_of(result) | {"internal": True, "tables": {SUBJECTS: folders.digest_file(out / SUBJECTS)}}
    folders.finish_folder(out, kind="membership", settings=asdict(settings), seed=seed, inputs=inputs, content=content)


def summary_of(result: MembershipResult) -> dict[str, Any]:
    """The result as JSON, without the scores of single subjects."""
    document: dict[str, Any] = as_json(result)
    document.pop("scores")
    return document


def draw_roc(result: MembershipResult) -> Figure:
    """True-positive against false-positive rate of subjects, both on logarithmic axes (Carlini et al. 2022)."""
    table = result.scores
    members, others = int(table.member.sum()), int((~table.member).sum())
    thresholds = np.unique(table.scores)
    inside, outside = (
        1 - np.searchsorted(np.sort(table.scores[side]), thresholds, side="left") / side.sum()
        for side in (table.member, ~table.member)
    )
    # Log axes have no 0: what no non-member passes is drawn at half the smallest rate there is.
    x, y = (np.maximum(part[::-1], 0.5 / size) for part, size in ((outside, others), (inside, members)))
    figure, axes = _new_figure()
    axes.step(x, y, where="post", color=MEMBER, linewidth=1.6, label=f"AUC {result.auc}")
    lowest = min(0.5 / others, 0.5 / members)
    axes.plot([lowest, 1], [lowest, 1], color=INK, linewidth=0.8, linestyle=(0, (1, 2)), label="no membership")
    axes.set(xscale="log", yscale="log", xlim=(0.5 / others, 1.05), ylim=(0.5 / members, 1.15))
    axes.set_xlabel("share of non-members taken for members", color=INK)
    axes.set_ylabel("share of members found", color=INK)
    axes.legend(frameon=False, fontsize=9, labelcolor=INK)
    return figure


def draw_scores(result: MembershipResult) -> Figure:
    """Histogram of subjects' scores, members over non-members."""
    table = result.scores
    low, high = float(table.scores.min()), float(table.scores.max())
    bins = np.linspace(low, high if high > low else low + 1, 31)
    figure, axes = _new_figure()
    for side, name, colour, line in (
        (table.member, "members", MEMBER, "-"),
        (~table.member, "non-members", OTHER, "--"),
    ):
        shares = 100 * np.histogram(table.scores[side], bins)[0] / max(1, side.sum())
        axes.stairs(shares, bins, color=colour, linestyle=line, linewidth=1.6, label=f"{name} (n = {side.sum():,})")
    axes.set_xlabel("score (the higher, the more like a member)", color=INK)
    axes.set_ylabel("share of subjects, %", color=INK)
    axes.legend(frameon=False, fontsize=9, labelcolor=INK)
    return figure


def _new_figure() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(4.6, 3.4), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=INK, labelsize=9)
    return figure, axes


def _save_figure(figure: Figure, place: Path) -> None:
    """Write .png and .svg, the same bytes each time."""
    with _repeatable():
        figure.savefig(place.with_suffix(".png"), format="png", dpi=200, metadata={"Software": None})
        nothing: Mapping[str, None] = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(place.with_suffix(".svg"), format="svg", metadata=nothing)


@contextlib.contextmanager
def _repeatable() -> Iterator[None]:
    with warnings.catch_warnings(), mpl.rc_context({"svg.hashsalt": "unalike", "svg.fonttype": "none"}):
        warnings.filterwarnings("ignore", message="Glyph .* missing from font", category=UserWarning)
        yield
