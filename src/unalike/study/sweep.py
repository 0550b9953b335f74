"""One kind of generator over settings: a table such as de Wilde et al. (2023) give (their tables 1 to 3).

A grid of training settings is crossed with a grid of sampling settings. Each run is trained once, each cell of the
table draws the same seeds from its run, and every cell is asked the same:

* how far its samples are from the cohort's train images (Fréchet distance of the cohort's own features), beside the
  holdout images, which are patients as well;
* how many look like copies: the share that the live index flags at p ≤ `LEVEL`, which is at most so large for images of
  new patients, and the power, the share that it flags of training images with slight noise. What a run was trained on
  is what its samples are held against; all other subjects of the cohort are its holdout;
* how high their highest correlation with a training image of the run is on average, beside that of holdout images;
* how many are alike, as `audit.diversity` has it, with as many of the cohort's train images as the yardstick;
* how long training and sampling took.

All cells begin at the same noises and meet the same real images, so they err together: two of them differ more surely
than their intervals, each for itself, show. In a large grid some cell stands out by luck.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import io
import itertools
import math
import re
import shutil
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from unalike import folders
from unalike.audit.changes import change_images
from unalike.audit.diversity import (
    MOST_IMAGES,
    count_images,
    highest_among,
    highest_in_set,
    images_as_groups,
    pick_one_each,
    share_alike,
    threshold_of,
)
from unalike.audit.index import CopyIndex
from unalike.cohort.roles import ImageSet
from unalike.cohort.split import select_train_rows
from unalike.cohort.store import ImageFolder, open_images
from unalike.devices import pick_device
from unalike.engine import show_progress, tell
from unalike.errors import FolderError, RunError, SettingsError, UnalikeError
from unalike.fidelity.features import Features, embed_cached
from unalike.fidelity.frechet import FEWEST_SUBJECTS, frechet_estimate
from unalike.fidelity.own import open_own_features
from unalike.generators.settings import resolve_settings
from unalike.records import MASK, Estimate, FloatArray, IntArray, Pixels, TextArray, as_json, estimate_from_json
from unalike.report.tables import as_latex, as_markdown
from unalike.runs.families import Sampler, check_seed, find_family, read_run
from unalike.runs.sample import PARTS
from unalike.runs.train import train_generator
from unalike.runs.watch import PLANTED, PLANTED_CHANGE
from unalike.seeds import generator_for, seed_for
from unalike.similarity.stored import find_stored
from unalike.stats.intervals import estimate_mean, estimate_share
from unalike.study.steps import COLOURS, HOLDOUT, MARKERS, PER

RUNS = "runs"
TABLES = {name: f"sweep.{name}" for name in ("md", "tex", "csv")}
PICTURE = "sweep.png"
WIDE = 30  # times the smallest distance that the largest may be in a linear figure
LEVEL = 0.05  # p-value up to which a sample counts as a copy
SUBJECTS, ALL = "subjects", "all"
# What ends a cell and not the sweep: it diverged, was refused, or has no room.
FAILURES = (UnalikeError, MemoryError, torch.OutOfMemoryError)

Given = Mapping[str, Any] | Sequence[str]


@dataclass(frozen=True)
class Cell:
    """One cell of the table: what its run is trained with, and how its samples are drawn."""

    train: Mapping[str, Any]
    sample: Mapping[str, Any]

    @property
    def name(self) -> str:
        """What progress and messages call it."""
        return _name({**self.train}) + (f"; {_name(self.sample)}" if self.sample else "")


@dataclass(frozen=True)
class Measured:
    """What came of a cell.

    ``frechet`` is the distance of the samples to the cohort's train images. ``copies`` is the share flagged at `LEVEL`,
    ``power`` the share flagged of planted copies; both are undefined if the run has too few ``holdout_subjects`` for a
    p-value so small. ``highest`` is the samples' mean highest correlation with a training image of the run,
    ``highest_holdout`` that of holdout images. ``alike`` is the share that comes closer to another sample than patients
    come to patients. ``seconds`` is the time for `PER` samples, ``training_seconds`` that of the training.
    """

    frechet: Estimate
    copies: Estimate
    power: Estimate
    highest: Estimate
    highest_holdout: Estimate
    alike: Estimate
    holdout_subjects: int
    seconds: float
    training_seconds: float


@dataclass(frozen=True)
class Row:
    """A cell, the run it was drawn from (a folder within the sweep's), and what came of it, or why it ``failed``."""

    cell: Cell
    run: str
    found: Measured | None
    failed: str = ""


@dataclass(frozen=True)
class Sweep:
    """The content of a finished sweep, in the order of the grid.

    ``yardstick`` is the Fréchet distance of the cohort's holdout images to its train images.
    """

    generator: str
    count: int
    rows: tuple[Row, ...]
    yardstick: Estimate

    def table(self) -> str:
        """The table in Markdown, with the notes that it needs."""
        head, rows = _table(self)
        return as_markdown(head, rows, notes=_notes(self))

    def tex(self) -> str:
        """The table as a LaTeX tabular that needs no package."""
        head, rows = _table(self)
        return as_latex(head, rows, notes=_notes(self))

    def csv(self) -> str:
        """The table as CSV: value, low and high of each number in a column of its own, empty where undefined."""
        names = [field.name for field in dataclasses.fields(Measured)]
        columns = [(name, side) for name in names for side in (_SIDES if name in _ESTIMATES else [""])]
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow([*_titles(self.rows), "run", *(f"{n}_{s}" if s else n for n, s in columns), "failed"])
        for row in self.rows:
            values = [_show(value) for value in _values(row.cell)]
            writer.writerow([*values, row.run, *(_plain(row.found, *column) for column in columns), row.failed])
        return text.getvalue()


_SIDES = ("value", "low", "high")
_ESTIMATES = ("frechet", "copies", "power", "highest", "highest_holdout", "alike")


# Planning


@dataclass(frozen=True)
class SweepPlan:
    """A sweep that has been checked: what will be trained on which cohort, and how it will be drawn from."""

    generator: str
    cohort: ImageFolder
    train: Mapping[str, Sequence[Any]]
    sample: Mapping[str, Sequence[Any]]
    fixed: Mapping[str, Any]
    count: int
    seed: int
    device: torch.device

    @property
    def runs(self) -> list[dict[str, Any]]:
        """What varies of each run, the last name fastest."""
        return list(_combine(self.train))

    @property
    def draws(self) -> list[dict[str, Any]]:
        """What varies of each drawing from a run, the last name fastest."""
        return list(_combine(self.sample))

    @property
    def cells(self) -> list[Cell]:
        """The grid in its order: run by run."""
        return [Cell(train, sample) for train in self.runs for sample in self.draws]

    @property
    def settings(self) -> dict[str, Any]:
        """What the header keeps as settings."""
        return {
            "generator": self.generator,
            "train": {name: list(values) for name, values in self.train.items()},
            "sample": {name: list(values) for name, values in self.sample.items()},
            "set": dict(self.fixed),
            "count": self.count,
        }

    def describe(self) -> str:
        """The plan as text: a line for each run, and how each is drawn from."""
        lines = [f"train {_run_name(at, train)}: {_name(train)}" for at, train in enumerate(self.runs)]
        lines += [f"draw {self.count} samples of each: {_name(sample)}" for sample in self.draws]
        return "\n".join([*lines, f"{len(self.runs)} runs, {len(self.cells)} cells"])


def plan_sweep(
    *,
    kind: str,
    cohort: str | Path,
    train: Given = (),
    sample: Given = (),
    fixed: Given = (),
    count: int = 200,
    seed: int = 0,
    device: str = "auto",
) -> SweepPlan:
    """Check everything `sweep_generator` will be asked to do; nothing is trained or written.

    Raises as `sweep_generator` does, but for its ``out``.
    """
    family = find_family(kind)
    place = pick_device(device)
    opened = open_images(cohort)
    problems: list[str] = []
    types, draw_types = get_type_hints(family.settings), get_type_hints(family.draw_settings)
    known = _typed(_read(fixed, "--set", problems, single=True), types, "--set", kind, problems, join=",")
    varied = _typed(_read(train, "--train", problems), types, "--train", kind, problems)
    drawn = _typed(_read(sample, "--sample", problems), draw_types, "--sample", kind, problems)
    for name in set(known) & set(varied):
        problems.append(f"--set {name}: varied by --train as well. Leave one out.")
    alone = {name: values[0] for name, values in known.items()}
    flags = dict.fromkeys(alone, "--set") | dict.fromkeys(varied, "--train")
    _check_values(family.settings, varied, alone, flags, problems)
    _check_values(family.draw_settings, drawn, {}, dict.fromkeys(drawn, "--sample"), problems)
    _check_subjects({**known, **varied}.get(SUBJECTS, ()), flags.get(SUBJECTS, ""), opened, problems)
    if any(MASK in value for value in {**known, **varied}.get("condition", ()) if isinstance(value, tuple)):
        problems.append("condition mask: such a run draws images for given masks, which a sweep has not. Leave it out.")
    if "morph" in drawn:
        problems.append("--sample morph: samples between two prompts are no independent draws. Leave it out.")
    if count < FEWEST_SUBJECTS:
        problems.append(f"--count {count}: a distance needs at least {FEWEST_SUBJECTS} samples. Give 100 or more.")
    if problems:
        raise SettingsError(" ".join(dict.fromkeys(problems)))
    check_seed("seed", seed)
    return SweepPlan(kind, opened, varied, drawn, alone, count, seed, place)


def _combine(axes: Mapping[str, Sequence[Any]]) -> Iterator[dict[str, Any]]:
    """All combinations, the last name fastest; one empty one of no names."""
    for values in itertools.product(*axes.values()):
        yield dict(zip(axes, values, strict=True))


def _read(given: Given, flag: str, problems: list[str], *, single: bool = False) -> dict[str, list[Any]]:
    """Values by name, from a mapping or from words ``NAME=VALUE,VALUE``; with ``single`` a comma divides nothing."""
    if isinstance(given, Mapping):
        return {
            name: [values] if single else values.split(",") if isinstance(values, str) else list(values)
            for name, values in given.items()
        }
    found: dict[str, list[Any]] = {}
    for word in given:
        name, divided, text = word.partition("=")
        name = name.strip().replace("-", "_")
        if not (name and divided):
            problems.append(f"{flag} {word}: give NAME=VALUE.")
        elif single and name in found:
            problems.append(f"{flag} {name}: given twice. Leave one out.")
        else:
            found.setdefault(name, []).extend([text] if single else text.split(","))
    return found


def _typed(
    given: Mapping[str, Sequence[Any]],
    types: Mapping[str, Any],
    flag: str,
    kind: str,
    problems: list[str],
    *,
    join: str = "+",
) -> dict[str, list[Any]]:
    """The values as the settings' types have them, without names that they have not; ``join`` divides a list."""
    known = [*types, *([SUBJECTS] if flag != "--sample" else [])]
    unknown = [name for name in given if name not in known]
    if unknown:
        problems.append(f"{flag} {', '.join(unknown)}: unknown. A {kind} has: {', '.join(known)}.")
    found = {
        name: [_value(value, types.get(name, int), join) for value in values]
        for name, values in given.items()
        if name in known
    }
    for name, values in found.items():
        if not values or any(value in values[:at] for at, value in enumerate(values)):
            problems.append(f"{flag} {name}={','.join(map(_show, values))}: give at least one value, each once.")
    if SUBJECTS in found:
        found[SUBJECTS] = [None if value == ALL else value for value in found[SUBJECTS]]
    return found


def _value(value: Any, wanted: Any, join: str) -> Any:
    """Text as the wanted type; as it is where it cannot be, for `resolve_settings` to refuse."""
    if not isinstance(value, str):
        return value
    if get_origin(wanted) is tuple:
        return tuple(_value(entry, get_args(wanted)[0], join) for entry in value.split(join)) if value else ()
    if wanted is bool:
        return {"true": True, "false": False}.get(value.lower(), value)
    if wanted in (int, float):
        with contextlib.suppress(ValueError):
            return wanted(value)
    return value


def _check_values(
    kind: type[Any],
    axes: Mapping[str, Sequence[Any]],
    fixed: Mapping[str, Any],
    flags: Mapping[str, str],
    problems: list[str],
) -> None:
    """Note what the settings refuse of any combination: all of it, so each refused value is taken out in turn."""
    for combination in _combine(axes):
        given = {name: value for name, value in {**fixed, **combination}.items() if name != SUBJECTS}
        refused = False
        while True:
            try:
                resolve_settings(kind, given)
            except SettingsError as error:
                name = str(error).partition(" = ")[0]
                if name in given or not refused:
                    problems.append(f"{flags.get(name, '')} {error}".strip())
                if given.pop(name, problems) is problems:
                    break
                refused = True
            else:
                break


def _check_subjects(values: Sequence[Any], flag: str, cohort: ImageFolder, problems: list[str]) -> None:
    there = len(np.unique(cohort.column("subject")[cohort.rows("train")]))
    if not there:
        problems.append(f"{cohort.path} has no train images. Prepare it with a smaller --holdout.")
    for value in values:
        if value is not None and not (type(value) is int and 1 <= value <= there):
            problems.append(f"{flag} {SUBJECTS} = {value!r}: give 1 to {there}, or {ALL}.")


# Working


def sweep_generator(
    *,
    kind: str,
    cohort: str | Path,
    out: str | Path,
    train: Given = (),
    sample: Given = (),
    fixed: Given = (),
    count: int = 200,
    seed: int = 0,
    device: str = "auto",
) -> Path:
    """Train a generator ``kind`` with all combinations of ``train``, draw from each with all of ``sample``, measure.

    ``train`` and ``sample`` map names of the kind's settings to values, ``{"vectors": [1, 8], "subjects": [9, None]}``,
    or are words as the command line gives them, ``["vectors=1,8", "subjects=9,all"]`` (a value that is itself a list
    is written with ``+``). ``subjects`` is that of `train_generator`, None for all. ``fixed`` are training settings
    that all runs have. Each cell draws ``count`` samples of the same seeds, which follow from ``seed``, as do all
    trainings.

    The folder ``out``, which is returned, holds ``sweep.json`` with the table, the table as ``sweep.md``, ``sweep.tex``
    and ``sweep.csv``, ``sweep.png``, and the runs in ``runs/``. Samples are not kept: `draw_samples` with a run, the
    settings of a cell and the header's ``first_seed`` draws them again. Interrupted, the same call keeps finished runs
    and cells, and runs go on at their last checkpoint. A run or cell that fails (it diverged, or its settings do not
    fit the cohort) is listed with the reason, and the others go on.

    Raises `SettingsError` for unknown names and refused values, all of them at once and before anything is trained;
    `FolderError` if the cohort is none or ``out`` is taken; `RunError` if not a single cell could be measured, or
    `SettingsError` if all were refused before a run was begun; and what `open_own_features` raises.
    """
    plan = plan_sweep(
        kind=kind, cohort=cohort, train=train, sample=sample, fixed=fixed, count=count, seed=seed, device=device
    )
    return sweep_planned(plan, out=out)


def sweep_planned(plan: SweepPlan, *, out: str | Path) -> Path:
    """Carry out a plan into the folder ``out``; see `sweep_generator`."""
    out = Path(out)
    inputs = {"cohort": plan.cohort.digest}
    # Times of another device are others: a sweep is not continued there.
    identity = plan.settings | {"seed": plan.seed, "device": str(plan.device)} | inputs
    folders.begin_folder(out, kind="sweep", settings=identity, resumable=True)
    study = _Study(plan, out)
    rows = study.run()
    if not any(row.found for row in rows):
        _give_up(out, rows)
    found = Sweep(plan.generator, plan.count, tuple(rows), study.yardstick())
    for name, text in (("md", found.table() + "\n"), ("tex", found.tex()), ("csv", found.csv())):
        (out / TABLES[name]).write_text(text, encoding="utf-8")
    draw_sweep(found, place=out / PICTURE)
    shutil.rmtree(out / PARTS)
    cohort = plan.cohort
    folders.finish_folder(
        out,
        kind="sweep",
        settings=plan.settings,
        seed=plan.seed,
        inputs=inputs,
        content={
            "generator": found.generator,
            "count": found.count,
            "rows": found.rows,
            "yardstick": found.yardstick,
            "features": study.features.name,
            "level": LEVEL,
            "time_for": PER,
            "first_seed": study.seeds.start,
            "device": str(plan.device),
            "train_images": len(cohort.rows("train")),
            "holdout_images": len(cohort.rows("holdout")),
        },
    )
    return out


def _give_up(out: Path, rows: Sequence[Row]) -> None:
    """Say why nothing came of it; where no run was begun, ``out`` is free for a corrected command."""
    reasons = "; ".join(dict.fromkeys(row.failed for row in rows))
    begun = (out / RUNS).is_dir() and any((out / RUNS).iterdir())
    if folders.give_up_folder(out, nothing_made=lambda: not begun):
        raise SettingsError(f"no cell could be trained: {reasons}")
    raise RunError(f"no cell of {out} could be measured: {reasons}")


class _Study:
    """A sweep at work: run after run is trained, drawn from and measured; what was measured is kept under ``parts``."""

    def __init__(self, plan: SweepPlan, out: Path) -> None:
        self.plan, self.out, self.parts = plan, out, out / PARTS
        self.family = find_family(plan.generator)
        first = seed_for(plan.seed, "sweep") % 2**40
        self.seeds = range(first, first + plan.count)
        self.features: Features = open_own_features(plan.cohort, device=plan.device)
        self.train = self._real("train")
        self.threshold: tuple[int, float] | None = None

    def run(self) -> list[Row]:
        """Train and measure what is left; the rows in the grid's order."""
        self.parts.mkdir(exist_ok=True)
        (self.out / RUNS).mkdir(exist_ok=True)
        rows = []
        for at, train in enumerate(self.plan.runs):
            name = _run_name(at, train)
            cells = [Cell(train, sample) for sample in self.plan.draws]
            found = {number: kept for number in range(len(cells)) if (kept := self._kept(name, number)) is not None}
            failed: dict[int, str] = {}
            if len(found) < len(cells):
                tell(f"run {at + 1} of {len(self.plan.runs)}: {_name(train)}")
                self._measure_run(name, cells, found, failed)
            rows += [
                Row(cell, f"{RUNS}/{name}", found.get(number), failed.get(number, ""))
                for number, cell in enumerate(cells)
            ]
        return rows

    def _measure_run(
        self, name: str, cells: Sequence[Cell], found: dict[int, Measured], failed: dict[int, str]
    ) -> None:
        """Train a run if it is not yet, and measure those of its cells that are not in ``found``."""
        try:
            seconds = self._train(name, cells[0].train)
            judge = _Judge.open(self, cells[0].train.get(SUBJECTS, self.plan.fixed.get(SUBJECTS)))
        except FAILURES as error:
            failed |= {number: _reason(error) for number in range(len(cells)) if number not in found}
            tell(f"{_name(cells[0].train)} failed: {_reason(error)}")
            return
        for number, cell in enumerate(cells):
            if number in found:
                continue
            try:
                found[number] = judge.measure(self._open(name, cell), cell, seconds)
            except FAILURES as error:
                failed[number] = _reason(error)
                tell(f"{cell.name} failed: {_reason(error)}")
            else:
                folders.write_json(self._place(name, number), found[number])

    def _train(self, name: str, train: Mapping[str, Any]) -> float:
        """Train the run, or go on with it; gives how long that took in all, in seconds, NaN if that was lost."""
        run, note = self.out / RUNS / name, self.parts / f"{name}.json"
        given = {**self.plan.fixed, **train}
        subjects = given.pop(SUBJECTS, None)
        if folders.kind_of(run) != "run":
            began = time.perf_counter()
            train_generator(
                kind=self.plan.generator,
                cohort=self.plan.cohort.path,
                out=run,
                settings=given,
                subjects=subjects,
                seed=self.plan.seed,
                device=str(self.plan.device),
            )
            folders.write_json(note, {"seconds": time.perf_counter() - began})
        # A network's own count goes on where it was interrupted.
        with contextlib.suppress(FolderError, ValueError, KeyError, TypeError):
            content = read_run(run).content
            return float(content["seconds"] if "seconds" in content else folders.read_json(note)["seconds"])
        return math.nan

    def _open(self, name: str, cell: Cell) -> Sampler:
        """The sampler of a cell.

        Raises `SettingsError` if its settings do not fit the run, and `FolderError` if the model was changed.
        """
        run = self.out / RUNS / name
        header = read_run(run)
        if folders.digest_tree(run / folders.MODEL) != header.content["model_digest"]:
            raise FolderError(
                f"{run / folders.MODEL} is not the model that {header.path.name} describes. Remove the run."
            )
        settings = resolve_settings(self.family.draw_settings, cell.sample)
        return self.family.open(run, content=header.content, settings=settings, device=str(self.plan.device))

    def batch_size(self, cell: Cell) -> int:
        """Samples drawn at once."""
        return int(resolve_settings(self.family.draw_settings, cell.sample).batch_size)

    def _place(self, name: str, number: int) -> Path:
        return self.parts / f"{name}.{number + 1:04d}.json"

    def _kept(self, name: str, number: int) -> Measured | None:
        """What an interrupted sweep found; a damaged file is measured again."""
        with contextlib.suppress(FolderError, ValueError, KeyError, TypeError):
            return _read_measured(folders.read_json(self._place(name, number)))
        return None

    def _real(self, role: str) -> tuple[FloatArray, TextArray]:
        """Features and subjects of the cohort's images of one role."""
        cohort = self.plan.cohort
        rows: IntArray = cohort.rows(role)
        vectors = embed_cached(self.features, cohort, rows, cohort.path / folders.INDEX)
        return vectors, cohort.column("subject")[rows]

    def distance(self, vectors: FloatArray, subjects: TextArray) -> Estimate:
        """To the train images, with an interval over subjects."""
        train, others = self.train
        return frechet_estimate(vectors, train, subjects_a=subjects, subjects_b=others, seed=self.plan.seed)

    def yardstick(self) -> Estimate:
        """Distance of the holdout images to the train images; undefined with fewer than three subjects."""
        return self.distance(*self._real("holdout"))

    def alike(self, samples: Pixels, channels: Sequence[int]) -> Estimate:
        """Share of the first samples that come closer to one another than as many patients' train images do."""
        if self.threshold is None:
            cohort = self.plan.cohort
            train = ImageSet(cohort, cohort.rows("train"))
            m = count_images(self.plan.count, len(np.unique(train.subjects)))
            chosen = pick_one_each(train, m, generator_for(self.plan.seed, "sweep diversity"))
            highest = highest_in_set(chosen, channels=channels, device=torch.device("cpu"))
            self.threshold = m, threshold_of(highest)
        m, threshold = self.threshold
        return share_alike(highest_among(samples[:m], channels=channels), threshold)


@dataclass(frozen=True)
class _Judge:
    """What the samples of one run are held against, and what that is worth."""

    study: _Study
    index: CopyIndex
    power: Estimate
    highest_holdout: Estimate

    @classmethod
    def open(cls, study: _Study, subjects: int | None) -> _Judge:
        """For a run on so many subjects (None: all)."""
        plan = study.plan
        rows = None if subjects is None else select_train_rows(plan.cohort, subjects=subjects, seed=plan.seed)
        index = CopyIndex.open(plan.cohort, train_rows=rows, notice=tell)
        planted = np.sort(generator_for(plan.seed, "sweep power").permutation(index.train)[:PLANTED])
        changed = change_images(plan.cohort.read(planted), PLANTED_CHANGE, 0)
        flagged = index.query(changed, level=LEVEL).flagged
        held = np.sort(generator_for(plan.seed, "sweep holdout").permutation(index.holdout)[: plan.count])
        highest = np.empty(0)
        if len(held):
            highest = find_stored(queries=plan.cohort.read(held), index=index.coarse, rows=index.train).highest
        random = generator_for(plan.seed, "sweep holdout mean")
        return cls(study, index, _share(index, flagged), estimate_mean(highest, index.subjects[held], random=random))

    def measure(self, sampler: Sampler, cell: Cell, training_seconds: float) -> Measured:
        """Draw the samples of a cell group by group, and measure them."""
        study, size = self.study, self.study.batch_size(cell)
        vectors, flagged, highest, times, first = [], [], [], [], []
        with show_progress(cell.name or "draw", total=len(study.seeds), unit="images") as progress:
            for begin in range(0, len(study.seeds), size):
                seeds = study.seeds[begin : begin + size]
                began = time.perf_counter()
                pixels = sampler.draw(seeds)
                times.append((time.perf_counter() - began) / len(seeds))
                vectors.append(study.features.embed(pixels))
                known = self.index.query(pixels, level=LEVEL)
                flagged.append(known.flagged)
                highest.append(known.similarities)
                if begin < MOST_IMAGES:
                    first.append(pixels)
                progress.advance(len(seeds))
        count = len(study.seeds)
        # Each sample was drawn by itself: a subject of its own.
        owners = images_as_groups(count)
        return Measured(
            frechet=study.distance(np.concatenate(vectors), owners),
            copies=_share(self.index, np.concatenate(flagged)),
            power=self.power,
            highest=estimate_mean(
                np.concatenate(highest), owners, random=generator_for(study.plan.seed, "sweep samples mean")
            ),
            highest_holdout=self.highest_holdout,
            alike=study.alike(np.concatenate(first), self.index.channels),
            holdout_subjects=round(1 / self.index.smallest_p) - 1,
            # The first group is slower, and others may be interrupted by other work.
            seconds=statistics.median(times) * PER,
            training_seconds=training_seconds,
        )


def _share(index: CopyIndex, flagged: Any) -> Estimate:
    """Share of the flagged (n,) of bools; undefined where the holdout is too small to flag any at `LEVEL`."""
    return estimate_share(int(flagged.sum()), len(flagged)) if index.smallest_p <= LEVEL else estimate_share(0, 0)


def _reason(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _run_name(at: int, train: Mapping[str, Any]) -> str:
    """Folder of a run: its number, and as much of its settings as a folder's name may hold."""
    told = "-".join(f"{name}-{_show(value)}" for name, value in train.items())
    return f"{at + 1:03d}-{re.sub(r'[^A-Za-z0-9.+_-]+', '_', told)}"[:64].rstrip("-.")


# Reading and showing


def read_sweep(folder: str | Path) -> Sweep:
    """The sweep that `sweep_generator` wrote.

    Raises `FolderError` if the folder is no finished sweep.
    """
    header = folders.read_header(Path(folder), kind="sweep")
    try:
        content = header.content
        rows = tuple(
            Row(
                Cell(entry["cell"]["train"], entry["cell"]["sample"]),
                str(entry["run"]),
                None if entry["found"] is None else _read_measured(entry["found"]),
                str(entry["failed"]),
            )
            for entry in content["rows"]
        )
        return Sweep(str(content["generator"]), int(content["count"]), rows, estimate_from_json(content["yardstick"]))
    except (KeyError, TypeError, ValueError) as error:
        raise FolderError(f"{header.path} is damaged ({error!r}). Make the folder again.") from error


def _read_measured(entry: Mapping[str, Any]) -> Measured:
    seconds = {
        name: math.nan if entry[name] is None else float(entry[name]) for name in ("seconds", "training_seconds")
    }
    numbers: dict[str, Any] = {name: estimate_from_json(entry[name]) for name in _ESTIMATES} | seconds
    return Measured(**numbers, holdout_subjects=int(entry["holdout_subjects"]))


def _show(value: Any) -> str:
    """A setting as the command line takes it."""
    if isinstance(value, list | tuple):
        return "+".join(map(_show, value))
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return str(value).removesuffix(".0")
    return ALL if value is None else str(value)


def _name(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={_show(value)}" for name, value in settings.items()) or "default settings"


def _titles(rows: Sequence[Row]) -> list[str]:
    """Titles of the columns of settings; a name that training and sampling share is told apart."""
    train, sample = (list(side) for side in (rows[0].cell.train, rows[0].cell.sample))
    return [f"training {name}" if name in sample else name for name in train] + [
        f"sampling {name}" if name in train else name for name in sample
    ]


def _values(cell: Cell) -> list[Any]:
    return [*cell.train.values(), *cell.sample.values()]


def _table(found: Sweep) -> tuple[list[str], list[list[str]]]:
    """Titles and rows as text, of which the last is the holdout's."""
    numbers = ["Fréchet distance", "copies", "power", "highest r", "holdout's", "alike", f"s per {PER:,}", "training s"]
    titles = _titles(found.rows)
    rows = [[*map(_show, _values(row.cell)), *_numbers(row)] for row in found.rows]
    last = ["holdout", *[""] * (len(titles) - 1)] if titles else []
    return [*titles, *numbers], [*rows, [*last, _distance(found.yardstick), *[""] * (len(numbers) - 1)]]


def _numbers(row: Row) -> list[str]:
    made = row.found
    if made is None:
        return ["failed", *[""] * 7]
    return [
        _distance(made.frechet),
        _percent(made.copies),
        _percent(made.power),
        str(made.highest),
        "undefined" if math.isnan(made.highest_holdout.value) else f"{made.highest_holdout.value:.3f}",
        _percent(made.alike),
        _time(made.seconds),
        _time(made.training_seconds),
    ]


def _notes(found: Sweep) -> list[str]:
    """What must be read with the table, and what failed and why."""
    held = sorted({row.found.holdout_subjects for row in found.rows if row.found})
    subjects = f"{held[0]}" if len(held) == 1 else f"{held[0]} to {held[-1]}"
    lines = [
        f"{found.generator}, {found.count} samples a cell, always of the same seeds. Intervals: 95 %. Fréchet distance "
        "to the cohort's train images (last row: holdout images, real patients). Copies: flagged at p ≤ "
        f"{LEVEL:g}, as up to {LEVEL:.0%} of new patients' images are; undefined with fewer than 19 subjects whom the "
        f"run did not see (here {subjects}). Power: so flagged of training images with slight noise. Highest r: mean "
        "highest correlation with a training image, beside that of holdout images. Alike: closer to another sample "
        "than 95 % of patients are to another, where 5 % is expected.",
    ]
    failed: dict[tuple[str, str], list[Cell]] = {}
    for row in found.rows:
        if row.failed:
            failed.setdefault((row.run, row.failed), []).append(row.cell)
    for (_, reason), cells in failed.items():
        name = cells[0].name if len(cells) == 1 else f"{_name(cells[0].train)} ({len(cells)} cells)"
        lines.append(f"Failed: {name}: {reason}")
    return lines


def _distance(found: Estimate) -> str:
    """Three digits: features have no unit, so distances may be of any size."""
    if math.isnan(found.value):
        return "undefined"
    return f"{found.value:.3g} ({found.low:.3g} to {found.high:.3g})"


def _percent(found: Estimate) -> str:
    if math.isnan(found.value):
        return "undefined"
    return f"{found.value:.0%} ({found.low:.0%} to {found.high:.0%})"


def _time(seconds: float) -> str:
    if math.isnan(seconds):
        return "unknown"
    return f"{seconds:,.0f}" if seconds >= 10 else f"{seconds:.2g}"


def _plain(found: Measured | None, name: str, side: str) -> Any:
    """A number of the CSV with all its digits."""
    if found is None:
        return ""
    value = getattr(found, name)
    return "" if (plain := as_json(getattr(value, side) if side else value)) is None else plain


def draw_sweep(found: Sweep, *, place: Path) -> None:
    """Draw Fréchet distance against the last setting that varies, a line for each combination of the others.

    The places are equally far from one another, in the order of the grid, as a setting need not be a number.
    """
    titles = _titles(found.rows)
    columns = list(zip(*([_show(value) for value in _values(row.cell)] for row in found.rows), strict=True))
    varied = [at for at, column in enumerate(columns) if len(set(column)) > 1]
    across = varied[-1] if varied else None
    ticks = [""] if across is None else list(dict.fromkeys(columns[across]))
    lines: dict[str, list[tuple[int, Estimate]]] = {}
    for row in found.rows:
        values = [_show(value) for value in _values(row.cell)]
        name = ", ".join(f"{titles[at]}={values[at]}" for at in varied if at != across) or found.generator
        if row.found is not None and not math.isnan(row.found.frechet.value):
            place_across = 0 if across is None else ticks.index(values[across])
            lines.setdefault(name, []).append((place_across, row.found.frechet))
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    for at, (name, points) in enumerate(lines.items()):
        _draw_line(axes, at, len(lines), name, points)
    if not math.isnan(found.yardstick.value):
        axes.axhspan(found.yardstick.low, found.yardstick.high, color=HOLDOUT, alpha=0.08, linewidth=0)
        axes.axhline(found.yardstick.value, color=HOLDOUT, linestyle="--", label="holdout images")
    reach = sorted(entry.high for points in lines.values() for _, entry in points if entry.high > 0)
    if reach and reach[-1] > WIDE * reach[0]:
        # Linear as far as the smallest reaches: within, nothing can be told, and a distance may be 0.
        axes.set_yscale("symlog", linthresh=reach[0])
    axes.set_ylim(0, 1.2 * max([*reach, 0 if math.isnan(found.yardstick.high) else found.yardstick.high]) or 1.0)
    axes.set_xticks(range(len(ticks)), ticks)
    axes.set_xlim(-0.5, len(ticks) - 0.5)
    axes.set_xlabel("" if across is None else titles[across], parse_math=False)
    axes.set_title("Fréchet distance to train images", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    for label in axes.get_xticklabels():
        label.set_parse_math(False)
    legend = figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper", fontsize=8, frameon=False)
    for label in legend.get_texts():
        label.set_parse_math(False)
    temporary = place.with_suffix(".partial")
    figure.savefig(temporary, dpi=150, format="png", metadata={"Software": None})
    temporary.replace(place)


def _draw_line(axes: Axes, at: int, count: int, name: str, points: Sequence[tuple[int, Estimate]]) -> None:
    """One line with intervals, moved aside a little so that they do not hide each other."""
    aside = 0.3 * ((at + 0.5) / count - 0.5)
    values = [entry.value for _, entry in points]
    below = [entry.value - entry.low for _, entry in points]
    above = [entry.high - entry.value for _, entry in points]
    axes.errorbar(
        [position + aside for position, _ in points],
        values,
        yerr=[below, above],
        label=name,
        color=COLOURS[at % len(COLOURS)],
        marker=MARKERS[at % len(MARKERS)],
        linestyle=("-", "--", ":", "-.")[at // len(COLOURS) % 4],
        elinewidth=0.8,
        capsize=2,
    )
