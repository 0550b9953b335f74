"""`explain_predictions`: why classifiers trained on synthetic and on real images decide as they do."""

from __future__ import annotations

import contextlib
import itertools
import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from unalike import folders
from unalike.cohort.roles import ImageSet, open_roles
from unalike.cohort.store import open_images
from unalike.devices import pick_device
from unalike.engine import show_progress
from unalike.errors import InputError, SettingsError
from unalike.explain import agreement, pictures
from unalike.explain.choose import Chosen, choose_images
from unalike.explain.gradcam import explain_by_gradcam
from unalike.explain.lime import BoolArray, explain_by_lime, find_superpixels, hide_partly
from unalike.explain.settings import ExplainSettings
from unalike.records import MASK, Estimate, FloatArray, IntArray, Pixels, as_json
from unalike.seeds import generator_for, seed_for
from unalike.stats.intervals import estimate_mean
from unalike.utility.classifier import Classifier
from unalike.utility.models import load_classifier

MODELS = "models"
SOURCES = ("synthetic", "real")
MAPS, EXPLAINED, PARTS = "maps.safetensors", "explained.parquet", "parts"
ABOUT = ("image", "role", "row", "subject", "kind", "class", "predicted", "explained", "model")
"""Columns of the table that say which explanation it is; all others are numbers."""
AGREEMENT = ("agreement_rank", "agreement_top", "agreement_gradcam")
"""Numbers that two models have together: the same in the rows of both."""


@dataclass(frozen=True)
class _Task:
    """One image to explain: where it comes from and why it was chosen."""

    number: int
    role: str
    images: ImageSet
    chosen: Chosen

    @property
    def row(self) -> int:
        return int(self.images.rows[self.chosen.place])


@dataclass(frozen=True, eq=False)
class _Job:
    """What is the same for all images. ``mask`` is the index of the cohort's mask channel, if there is one."""

    models: Mapping[str, Classifier]
    mask: int | None
    settings: ExplainSettings
    seed: int
    out: Path

    @property
    def classes(self) -> tuple[str, ...]:
        return next(iter(self.models.values())).classes


def explain_predictions(
    *,
    utility: Path,
    synthetic: Path | None,
    against: Path,
    out: Path,
    settings: ExplainSettings | None = None,
    seed: int = 0,
    device: str = "auto",
) -> Path:
    """Explain decisions of the classifiers kept in ``utility`` by LIME and Grad-CAM, and say how far to trust that.

    Images come from the holdout of the cohort ``against`` and from ``synthetic`` (samples; None leaves them out). The
    classifier trained on synthetic images chooses them, and the class that it predicts is the one explained, for both
    classifiers. Superpixels are found once for an image; each classifier's random numbers are its own, so that what two
    have in common by chance is no agreement.

    The folder ``out`` holds ``explained.parquet`` (a row an image and model: `ABOUT`, then the numbers of
    `agreement` and the weights of the superpixels), ``maps.safetensors`` (``segments`` (n, H, W), ``lime`` and
    ``gradcam`` (n, models, H, W)) and ``figures/``: ``NNNN.png`` shows smoothed heat alone, ``NNNN-internal.png`` the
    image beneath it. The folder as a whole is internal; only figures without "internal" in their names may be shown.
    The header's content has ``numbers`` and ``by_class`` (role → model (→ class) → Estimate), ``agreement`` (role →
    Estimate), ``images`` (role → kind → count), ``models``, ``classes``, ``notes``, ``tables`` (digests).

    An interrupted call goes on with the next image. Raises an `InputError` if nothing was kept to explain, the images
    do not fit, or no image has a class that the classifiers know.
    """
    settings = settings or ExplainSettings()
    settings.check()
    if seed < 0:
        raise SettingsError(f"--seed {seed}: give a whole number from 0 on.")
    header = folders.read_header(utility, kind="utility")
    models = _load_models(utility, settings.network, pick_device(device))
    with _open_sets(synthetic, against, settings) as (sets, inputs, notes):
        _check_fit(sets["holdout"], models, utility)
        if header.inputs.get("cohort") == inputs.get("cohort"):
            # Exactly those that were tested: no patient whom the run saw, nobody left out.
            tested = header.content.get("predictions", {}).get("rows", sets["holdout"].rows)
            sets["holdout"] = ImageSet(sets["holdout"].folder, np.asarray(tested, dtype=np.int64))
        else:
            notes.append("These classifiers were not measured on this cohort, or it has changed: the images explained "
                         "may be ones that they were trained on.")  # fmt: skip
        channels = sets["holdout"].folder.channels
        mask = channels.index(MASK) if MASK in channels else None
        job = _Job(models, mask, settings, seed, out)
        tasks = _choose(job, sets)
        inputs["utility"] = folders.digest_of(utility, kind="utility")
        marked = asdict(settings) | {"seed": seed, "inputs": inputs}
        folders.begin_folder(out, kind="explain", settings=marked, resumable=True)
        for name in (PARTS, folders.FIGURES):
            (out / name).mkdir(exist_ok=True)
        with show_progress("Explaining", total=len(tasks), unit="images") as progress:
            for task in tasks:
                if not _is_whole(_part(out, task)):
                    _explain_image(task, job)
                progress.advance()
        return _finish(job, tasks, inputs, notes)


def _load_models(utility: Path, network: str, device: torch.device) -> dict[str, Classifier]:
    """The kept classifiers of one network, by what they were trained on, synthetic first."""
    room = utility / MODELS
    kept = {path.name for path in room.iterdir() if path.is_dir()} if room.is_dir() else set()
    names = {name.removesuffix(f"-{source}") for name in kept for source in SOURCES if name.endswith(f"-{source}")}
    if network and network not in names:
        raise SettingsError(f"--network {network}: {room} keeps {', '.join(sorted(names)) or 'none'}.")
    if not names:
        raise InputError(f"{room} keeps no classifier. Run `unalike utility --task classify` first.")
    both = [name for name in sorted(names) if all(f"{name}-{source}" in kept for source in SOURCES)]
    chosen = network or (both or sorted(names))[0]
    found = {
        source: load_classifier(room / f"{chosen}-{source}", device=device)
        for source in SOURCES
        if f"{chosen}-{source}" in kept
    }
    if len({(model.classes, model.channels) for model in found.values()}) > 1:
        raise InputError(f"{room} keeps classifiers of {chosen} with different classes or channels. Run utility again.")
    return found


@contextlib.contextmanager
def _open_sets(
    synthetic: Path | None, against: Path, settings: ExplainSettings
) -> Iterator[tuple[dict[str, ImageSet], dict[str, str], list[str]]]:
    """Images by role, digests of what they came from, and warnings."""
    if synthetic is None:
        cohort = open_images(against)
        yield {"holdout": ImageSet(cohort, cohort.rows("holdout"))}, {"cohort": cohort.digest}, []
        return
    with open_roles(
        synthetic=synthetic, against=against, train=None, holdout=None, settings=settings, labels=True
    ) as roles:
        yield {"holdout": roles.holdout, "synthetic": roles.synthetic}, dict(roles.inputs), list(roles.warnings)


def _check_fit(holdout: ImageSet, models: Mapping[str, Classifier], utility: Path) -> None:
    if len(holdout) == 0:
        raise InputError(f"{holdout.folder.path} has no holdout images to explain. Prepare it with --holdout.")
    needed = max(max(model.channels) for model in models.values())
    if needed >= len(holdout.folder.channels):
        raise InputError(
            f"{holdout.folder.path} has {len(holdout.folder.channels)} channels, the classifiers in {utility} look at "
            f"channel {needed + 1}. Give the cohort that they were measured on."
        )


def _choose(job: _Job, sets: Mapping[str, ImageSet]) -> list[_Task]:
    """Images of each role, chosen by the first model's predictions."""
    judge = next(iter(job.models.values()))
    numbers = itertools.count()
    tasks = []
    for role, images in sets.items():
        truth = np.asarray([_index_of(label, job.classes) for label in images.labels.tolist()], dtype=np.int64)
        known = np.flatnonzero(truth >= 0)
        probabilities = np.zeros((len(images), len(job.classes)))
        for part in np.array_split(known, max(1, len(known) // 256)):
            probabilities[part] = judge.predict(images.folder.read(images.rows[part]))
        chosen = choose_images(
            probabilities, truth, images.subjects, each=job.settings.each, seed=job.seed, purpose=role
        )
        tasks += [_Task(next(numbers), role, images, each) for each in chosen]
    if not tasks:
        folder = sets["holdout"].folder.path
        raise InputError(f"no image of {folder} has a class that the classifiers know: {', '.join(job.classes)}.")
    return tasks


def _index_of(label: str, classes: tuple[str, ...]) -> int:
    return classes.index(label) if label in classes else -1


def _part(out: Path, task: _Task) -> Path:
    return out / PARTS / f"{task.number:05d}.safetensors"


def _is_whole(part: Path) -> bool:
    """Whether an image's part is there and can be read; a damaged one is made again."""
    try:
        with safe_open(part, framework="np") as stream:
            json.loads(stream.metadata()["rows"])
            return all(stream.get_tensor(name) is not None for name in ("segments", "lime", "gradcam"))
    except (OSError, SafetensorError, ValueError, KeyError, TypeError):
        return False


def _explain_image(task: _Task, job: _Job) -> None:
    """Explain one image by all models and write its part: maps as tensors, numbers as JSON in the file's head."""
    image = task.images.folder.read(np.asarray([task.row]))[0]
    first = next(iter(job.models.values()))
    segments = find_superpixels(image[list(first.channels)], job.settings.segments)
    target = task.chosen.predicted
    repeated = {name: _repeat_lime(task, job, name, image, segments) for name in job.models}
    weights = {name: parts.mean(axis=0) for name, (parts, _) in repeated.items()}
    grads = {
        name: explain_by_gradcam(model, image[None], np.asarray([target]))[0] for name, model in job.models.items()
    }
    lesion = image[job.mask] > 0 if job.mask is not None else np.zeros(segments.shape, dtype=np.bool_)
    shared = _agree([*weights.values()], [*grads.values()], segments, job.settings.top)
    rows = []
    for name, model in job.models.items():
        parts, fit = repeated[name]
        about = (
            task.number,
            task.role,
            task.row,
            str(task.images.subjects[task.chosen.place]),
            task.chosen.kind,
            job.classes[task.chosen.truth],
            job.classes[int(model.predict(image[None])[0].argmax())],
            job.classes[target],
            name,
        )
        view = hide_partly(model, image, segments, hidden=job.settings.hidden)
        faithful = agreement.measure_faithfulness(
            view, weights[name], target=target, seed=seed_for(job.seed, f"faithfulness {name}", task.number)
        )
        numbers = (
            {
                "probability": float(model.predict(image[None])[0, target]),
                "superpixels": float(len(weights[name])),
                "fit": fit,
            }
            | _describe(parts, grads[name], segments, lesion, job.settings.top)
            | asdict(faithful)
        )
        rows.append(dict(zip(ABOUT, about, strict=True)) | numbers | shared | {"weights": weights[name].tolist()})
    _draw(task, job, image, segments, lesion, weights, grads)
    maps = {
        "segments": segments.astype(np.int32),
        "lime": np.stack([each[segments] for each in weights.values()]).astype(np.float32),
        "gradcam": np.stack([*grads.values()]).astype(np.float32),
    }
    path = _part(job.out, task)
    partial = path.with_name(path.name + ".partial")
    save_file(maps, partial, metadata={"rows": json.dumps(as_json(rows))})
    partial.replace(path)


def _repeat_lime(task: _Task, job: _Job, name: str, image: Pixels, segments: IntArray) -> tuple[FloatArray, float]:
    """Weights (repetitions, S) by one model, and the mean R² of the fits."""
    settings = job.settings
    found = [
        explain_by_lime(
            job.models[name],
            image,
            target=task.chosen.predicted,
            segments=segments,
            samples=settings.samples,
            seed=seed_for(job.seed, f"explain {name} {task.role} {task.row}", repetition),
            hidden=settings.hidden,
        )
        for repetition in range(settings.repetitions)
    ]
    return np.stack([each.weights for each in found]), agreement.mean_of([each.fit for each in found])


def _describe(
    repeated: FloatArray, grad: FloatArray, segments: IntArray, lesion: BoolArray, top: int
) -> dict[str, float]:
    """Numbers of one model's explanation of one image. Gains are what exceeds chance."""
    weights = repeated.mean(axis=0)
    stable = agreement.measure_stability(repeated, top)
    found = {
        "largest_weight": float(np.abs(weights).max()),
        "top_share": agreement.share_of_top(weights, top),
        "stability_rank": stable.rank,
        "stability_top": stable.top,
        "top_by_chance": agreement.chance_of_top(len(weights), top),
        "lime_gradcam_rank": agreement.correlate_ranks(weights, agreement.average_in_segments(grad, segments)),
    }
    for name, heat in (("lime", weights[segments]), ("gradcam", grad)):
        overlap = agreement.measure_overlap(heat, lesion)
        found |= {
            f"{name}_iou": overlap.iou,
            f"{name}_pointing": overlap.pointing,
            f"{name}_inside": overlap.inside,
            f"{name}_iou_gain": overlap.iou - overlap.iou_chance,
            f"{name}_pointing_gain": overlap.pointing - overlap.area,
            f"{name}_inside_gain": overlap.inside - overlap.area,
            "lesion_area": overlap.area,
            "iou_by_chance": overlap.iou_chance,
        }
    return found


def _agree(weights: list[FloatArray], grads: list[FloatArray], segments: IntArray, top: int) -> dict[str, float]:
    """What the two models have in common on one image; undefined for one model alone."""
    if len(weights) < 2:
        return dict.fromkeys(AGREEMENT, agreement.UNDEFINED)
    averaged = [agreement.average_in_segments(grad, segments) for grad in grads]
    values = (
        agreement.correlate_ranks(weights[0], weights[1]),
        agreement.overlap_of_top(weights[0], weights[1], top),
        agreement.correlate_ranks(averaged[0], averaged[1]),
    )
    return dict(zip(AGREEMENT, values, strict=True))


def _draw(
    task: _Task,
    job: _Job,
    image: Pixels,
    segments: IntArray,
    lesion: BoolArray,
    weights: Mapping[str, FloatArray],
    grads: Mapping[str, FloatArray],
) -> None:
    """Two pictures of one image: heat alone, and over the image with superpixels and the lesion's border."""
    title = f"{task.role}, {task.chosen.kind}: class {job.classes[task.chosen.truth]}"
    title += f", asked why {job.classes[task.chosen.predicted]}"
    heats = [
        (f"{method}, by {name}", heat)
        for name in job.models
        for method, heat in (
            (f"LIME, most {np.abs(weights[name]).max():.2f}", weights[name][segments]),
            ("Grad-CAM", grads[name]),
        )
    ]
    room = job.out / folders.FIGURES
    bare = [(text, pictures.colour_heat(pictures.smooth_heat(heat))) for text, heat in heats]
    pictures.draw_panel(title, bare, room / f"{task.number:04d}.png")
    grey = pictures.draw_grey(image, next(iter(job.models.values())).channels)
    image_itself = pictures.colour_heat(np.zeros_like(grey), grey)
    over = [("image", pictures.outline(image_itself, lesion))]
    over += [(text, pictures.outline(pictures.colour_heat(heat, grey), lesion)) for text, heat in heats]
    pictures.draw_panel(title, over, room / f"{task.number:04d}-internal.png")


def _finish(job: _Job, tasks: list[_Task], inputs: Mapping[str, str], notes: list[str]) -> Path:
    """Join the parts, estimate, write the header and remove the parts."""
    out = job.out
    rows: list[dict[str, Any]] = []
    maps: dict[str, list[Any]] = {"segments": [], "lime": [], "gradcam": []}
    for task in tasks:
        with safe_open(_part(out, task), framework="np") as part:
            rows += json.loads(part.metadata()["rows"])
            for name, found in maps.items():
                found.append(part.get_tensor(name))
    save_file({name: np.stack(found) for name, found in maps.items()}, out / MAPS)
    pq.write_table(pa.Table.from_pylist(rows), out / EXPLAINED)
    if job.mask is None:
        notes.append("The cohort has no mask channel: whether explanations lie on the lesion was not measured.")
    missing = [source for source in SOURCES if source not in job.models]
    if missing:
        notes.append(f"No classifier trained on {missing[0]} images was kept: agreement of two was not measured.")
    content = {
        "internal": True,
        "models": [{"source": source, "name": model.name} for source, model in job.models.items()],
        "classes": list(job.classes),
        "images": _count(tasks),
        **_summarize(rows, job.seed),
        "notes": notes,
        "tables": {name: folders.digest_file(out / name) for name in (MAPS, EXPLAINED)},
    }
    shutil.rmtree(out / PARTS)
    folders.finish_folder(
        out, kind="explain", settings=asdict(job.settings), seed=job.seed, inputs=inputs, content=content
    )
    return out


def _count(tasks: list[_Task]) -> dict[str, dict[str, int]]:
    counts: dict[str, dict[str, int]] = {}
    for task in tasks:
        of_role = counts.setdefault(task.role, {})
        of_role[task.chosen.kind] = of_role.get(task.chosen.kind, 0) + 1
    return counts


def _summarize(rows: list[dict[str, Any]], seed: int) -> dict[str, Any]:
    """Means of all numbers over images, with intervals from resampled subjects, by role, model and class."""
    measures = [name for name in rows[0] if name not in (*ABOUT, *AGREEMENT, "weights")]
    numbers: dict[str, Any] = {}
    by_class: dict[str, Any] = {}
    together: dict[str, Any] = {}
    first = rows[0]["model"]
    for role in dict.fromkeys(row["role"] for row in rows):
        of_role = [row for row in rows if row["role"] == role]
        together[role] = _estimate([row for row in of_role if row["model"] == first], list(AGREEMENT), seed)
        for model in dict.fromkeys(row["model"] for row in of_role):
            of_model = [row for row in of_role if row["model"] == model]
            numbers.setdefault(role, {})[model] = _estimate(of_model, measures, seed)
            by_class.setdefault(role, {})[model] = {
                label: _estimate([row for row in of_model if row["class"] == label], measures, seed)
                for label in dict.fromkeys(row["class"] for row in of_model)
            }
    return {"numbers": numbers, "by_class": by_class, "agreement": together}


def _estimate(rows: list[dict[str, Any]], measures: list[str], seed: int) -> dict[str, Estimate]:
    subjects = np.asarray([row["subject"] for row in rows], dtype=np.str_)
    return {
        name: estimate_mean(
            np.asarray([np.nan if row[name] is None else row[name] for row in rows], dtype=np.float64),
            subjects,
            random=generator_for(seed, f"explain {name}"),
        )
        for name in measures
    }
