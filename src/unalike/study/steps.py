"""How many denoising steps samples need, and of which sampler: a comparison on a run of one's own.

The same noises are drawn by each sampler in each number of steps, and by a reference in all the time steps the run was
trained with. Each set is held against the cohort's train images by the Fréchet distance of the cohort's own features;
holdout images held against them say what two sets of real patients come to.

All sets begin at the same noises, are of one size, and meet the same train images, so their distances err together: two
of them differ more surely than their intervals, each for itself, show. The holdout is a set of another size, of which
the correction for it may leave another rest.
"""

from __future__ import annotations

import contextlib
import math
import shutil
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from unalike import folders
from unalike.cohort.store import ImageFolder
from unalike.engine import Progress, show_progress
from unalike.errors import FolderError, SettingsError
from unalike.fidelity.features import Features, embed_cached
from unalike.fidelity.frechet import FEWEST_SUBJECTS, frechet_estimate
from unalike.fidelity.own import open_own_features
from unalike.folders import Header
from unalike.generators.diffusion.model import open_model
from unalike.generators.diffusion.sample import GROUP, DiffusionSampler
from unalike.generators.diffusion.samplers import count_calls
from unalike.generators.diffusion.settings import SampleSettings
from unalike.generators.settings import resolve_settings
from unalike.records import Estimate, FloatArray, IntArray, TextArray, estimate_from_json
from unalike.runs.families import check_seed
from unalike.runs.sample import PARTS, open_run_cohort
from unalike.seeds import seed_for

PICTURE = "steps.png"
SAMPLERS = ("ddim", "dpm++", "euler", "heun")
STEPS = (5, 10, 20, 50)
REFERENCE = ("ddpm", 0)
PER = 1000  # samples whose time is told

COLOURS = ("#c2410c", "#6d28d9", "#0b7a53", "#b45309", "#be185d", "#1c2024")
MARKERS = ("o", "s", "^", "D", "v", "P")
HOLDOUT, OTHER = "#0067b0", "#5b6570"


@dataclass(frozen=True)
class Cell:
    """One way to draw."""

    sampler: str
    steps: int

    @property
    def name(self) -> str:
        """What the progress bar and error messages call it."""
        return f"{self.sampler}, {self.steps} steps"

    @property
    def calls(self) -> int:
        """Network calls of a sample (count)."""
        return count_calls(self.sampler, self.steps)


@dataclass(frozen=True)
class MeasuredCell:
    """What came of one way to draw.

    ``frechet`` is the distance of the samples to the cohort's train images, ``calls`` counts the network calls of a
    sample, ``seconds`` is the time for `PER` samples.
    """

    sampler: str
    steps: int
    calls: int
    frechet: Estimate
    seconds: float


@dataclass(frozen=True)
class StepsComparison:
    """The content of a finished comparison: every sampler in every number of steps, the reference, and the yardstick:
    the Fréchet distance of the cohort's holdout images to its train images."""

    cells: tuple[MeasuredCell, ...]
    reference: MeasuredCell
    yardstick: Estimate

    def table(self) -> str:
        """The table as text."""
        lines = [f"{'sampler':10}{'steps':>6}{'calls':>7}{f'time for {PER:,}':>16}   Fréchet distance to train"]
        lines += [_line(cell) for cell in self.cells]
        lines.append(_line(self.reference) + "   reference")
        return "\n".join([*lines, f"{'holdout':39}   {_number(self.yardstick)}"])


@dataclass(frozen=True)
class StepsPlan:
    """A comparison that has been checked: what will be drawn, from which model, held against which images."""

    run: Header
    run_digest: str
    cohort: ImageFolder
    cells: tuple[Cell, ...]
    reference: Cell
    samplers: Mapping[Cell, DiffusionSampler]
    count: int
    seed: int

    @property
    def settings(self) -> dict[str, Any]:
        """What the header keeps as settings."""
        return {
            "samplers": list(dict.fromkeys(cell.sampler for cell in self.cells)),
            "steps": list(dict.fromkeys(cell.steps for cell in self.cells)),
            "reference_sampler": self.reference.sampler,
            "reference_steps": self.reference.steps,
            "count": self.count,
        }

    @property
    def any_sampler(self) -> DiffusionSampler:
        """One of the samplers: all have the same model."""
        return self.samplers[self.reference]


def plan_steps(
    *,
    run: str | Path,
    against: str | Path,
    samplers: Sequence[str] = SAMPLERS,
    steps: Sequence[int] = STEPS,
    reference: tuple[str, int] = REFERENCE,
    count: int = 200,
    seed: int = 0,
    device: str = "auto",
) -> StepsPlan:
    """Check everything `compare_steps` will be asked to draw, and open run and cohort; nothing is drawn or written.

    Raises as `compare_steps` does, but for its ``out``.
    """
    run = Path(run)
    _check(samplers, steps, count, seed)
    header = folders.read_header(run, kind="run")
    if header.content["generator"] != "diffusion":
        raise SettingsError(f"{run} is a {header.content['generator']}: only diffusion is drawn in steps. Give one.")
    cohort = open_run_cohort(Path(against), header)
    if folders.digest_tree(run / folders.MODEL) != header.content["model_digest"]:
        raise FolderError(f"{run / folders.MODEL} is not the model that {header.path.name} describes. Train it again.")
    model = open_model(run / folders.MODEL, content=header.content, device=device, precision="auto")
    if model.conditions.mask:
        raise SettingsError(
            f"{run} draws images for masks; steps are compared without. Give a run without --condition mask."
        )
    name, asked = reference
    last = Cell(name, asked or int(model.scheduler.config.num_train_timesteps))
    cells = tuple(Cell(sampler, number) for sampler in samplers for number in steps)
    opened: dict[Cell, DiffusionSampler] = {}
    for cell in (*cells, last):
        settings = resolve_settings(SampleSettings, {"sampler": cell.sampler, "steps": cell.steps})
        opened[cell] = DiffusionSampler(model, settings, label_counts=header.content.get("label_counts"))
    digest = folders.digest_of(run, kind="run")
    return StepsPlan(header, digest, cohort, cells, last, opened, count, seed)


def _check(samplers: Sequence[str], steps: Sequence[int], count: int, seed: int) -> None:
    """Refuse a grid that makes no sense, and what `frechet_estimate` could say nothing about."""
    for flag, given in (("samplers", samplers), ("steps", steps)):
        if not given or len(set(given)) != len(given):
            raise SettingsError(f"--{flag} {' '.join(map(str, given))}: give at least one, each once.")
    if count < FEWEST_SUBJECTS:
        raise SettingsError(f"--count {count}: a distance needs at least {FEWEST_SUBJECTS} samples. Give 100 or more.")
    check_seed("seed", seed)


def compare_steps(
    *,
    run: str | Path,
    against: str | Path,
    out: str | Path,
    samplers: Sequence[str] = SAMPLERS,
    steps: Sequence[int] = STEPS,
    reference: tuple[str, int] = REFERENCE,
    count: int = 200,
    seed: int = 0,
    device: str = "auto",
) -> Path:
    """Draw ``count`` samples by each of ``samplers`` in each number of ``steps``, measure, and write a folder.

    ``run`` is a diffusion run, ``against`` the cohort it was trained on. ``reference`` is a sampler and its steps; 0
    are all time steps the run was trained with. Every cell draws the same seeds, which follow from ``seed``. The
    Fréchet distance to the cohort's train images has an interval (`frechet_estimate`; each sample is a subject), and
    so has that of the holdout images, undefined with fewer than three subjects. Its features are those of
    `open_own_features`, learned at the first use and kept with the cohort. Time is that of the median group of
    samples the network works on at once, times the groups of `PER` samples.

    The folder ``out``, which is returned, holds ``steps.json`` with the table and ``steps.png``. Samples are not kept.
    Interrupted, the same call keeps the cells that were finished, with the time they took.

    Raises `SettingsError` for settings that do not fit the run, such as more steps than it was trained with, before
    anything is drawn; `InputError` for another cohort; `FolderError` if a folder is missing, was changed, or ``out``
    is taken; and what `open_own_features` raises.
    """
    plan = plan_steps(
        run=run,
        against=against,
        samplers=samplers,
        steps=steps,
        reference=reference,
        count=count,
        seed=seed,
        device=device,
    )
    return compare_planned(plan, out=out)


def compare_planned(plan: StepsPlan, *, out: str | Path) -> Path:
    """Carry out a plan into the folder ``out``; see `compare_steps`."""
    out = Path(out)
    model = plan.any_sampler.model
    inputs = {"run": plan.run_digest, "cohort": plan.cohort.digest}
    # Times of another device are others: a comparison is not continued there.
    identity = plan.settings | {"seed": plan.seed, "device": str(model.place)} | inputs
    folders.begin_folder(out, kind="steps", settings=identity, resumable=True)
    cohort = plan.cohort
    study = _Study(plan, out / PARTS, open_own_features(cohort, device=model.place))
    found = study.run()
    draw_steps(found, place=out / PICTURE)
    shutil.rmtree(out / PARTS)
    folders.finish_folder(
        out,
        kind="steps",
        settings=plan.settings,
        seed=plan.seed,
        inputs=inputs,
        content={
            "cells": found.cells,
            "reference": found.reference,
            "yardstick": found.yardstick,
            "features": study.features.name,
            "time_for": PER,
            "first_seed": study.seeds.start,
            "timesteps": int(model.scheduler.config.num_train_timesteps),
            "device": str(model.place),
            "precision": model.precision,
            "train_images": len(cohort.rows("train")),
            "holdout_images": len(cohort.rows("holdout")),
        },
    )
    return out


class _Study:
    """A comparison at work: cell after cell is drawn and measured, and kept under ``parts``."""

    def __init__(self, plan: StepsPlan, parts: Path, features: Features) -> None:
        self.plan, self.parts, self.features = plan, parts, features
        first = seed_for(plan.seed, "steps") % 2**40
        self.seeds = range(first, first + plan.count)
        self.size = GROUP.get(plan.any_sampler.model.place.type, 64)
        self.train = self._real("train")

    def run(self) -> StepsComparison:
        """Measure what is left to measure."""
        plan = self.plan
        self.parts.mkdir(exist_ok=True)
        # The cheapest first; a reference that is in the grid, too, is drawn once.
        cells = sorted(plan.samplers, key=lambda cell: cell.calls)
        known = {cell: found for cell in cells if (found := self._kept(cell)) is not None}
        left = [cell for cell in cells if cell not in known]
        groups = math.ceil(plan.count / self.size)
        with show_progress(
            "compare", total=groups * sum(cell.calls for cell in left), unit="network calls"
        ) as progress:
            if left:
                # The first kernels of a process are slower. Any run can be drawn so, with any conditions.
                warm = SampleSettings(steps=1, sampler="euler")
                counts = plan.run.content.get("label_counts")
                DiffusionSampler(plan.any_sampler.model, warm, label_counts=counts).draw(self.seeds[:1])
            for cell in left:
                known[cell] = self._measure(cell, progress)
        yardstick = self._distance(*self._real("holdout"))
        return StepsComparison(tuple(known[cell] for cell in plan.cells), known[plan.reference], yardstick)

    def _measure(self, cell: Cell, progress: Progress) -> MeasuredCell:
        """Draw a cell group by group, measure it, and keep what was found."""
        sampler, vectors, times = self.plan.samplers[cell], [], []
        for begin in range(0, len(self.seeds), self.size):
            began = time.perf_counter()
            pixels = sampler.draw(self.seeds[begin : begin + self.size])
            times.append(time.perf_counter() - began)
            vectors.append(self.features.embed(pixels))
            progress.advance(cell.calls, cell.name)
        # Each sample was drawn by itself: a subject of its own.
        subjects = np.array([f"sample-{seed}" for seed in self.seeds])
        distance = self._distance(np.concatenate(vectors), subjects)
        # The last group is filled up, so it took as long as the others.
        seconds = statistics.median(times) * math.ceil(PER / self.size)
        found = MeasuredCell(cell.sampler, cell.steps, cell.calls, distance, seconds)
        folders.write_json(self._place(cell), found)
        return found

    def _place(self, cell: Cell) -> Path:
        return self.parts / f"{cell.sampler}-{cell.steps:06d}.json"

    def _kept(self, cell: Cell) -> MeasuredCell | None:
        """What an interrupted comparison found; a damaged file is measured again."""
        with contextlib.suppress(FolderError, ValueError, KeyError, TypeError):
            return _read_cell(folders.read_json(self._place(cell)))
        return None

    def _real(self, role: str) -> tuple[FloatArray, TextArray]:
        """Features and subjects of the cohort's images of one role."""
        cohort = self.plan.cohort
        rows: IntArray = cohort.rows(role)
        vectors = embed_cached(self.features, cohort, rows, cohort.path / folders.INDEX)
        return vectors, cohort.column("subject")[rows]

    def _distance(self, vectors: FloatArray, subjects: TextArray) -> Estimate:
        """To the train images, with an interval over subjects."""
        train, others = self.train
        return frechet_estimate(vectors, train, subjects_a=subjects, subjects_b=others, seed=self.plan.seed)


def read_steps(folder: str | Path) -> StepsComparison:
    """The comparison that `compare_steps` wrote.

    Raises `FolderError` if the folder is no finished comparison.
    """
    header = folders.read_header(Path(folder), kind="steps")
    try:
        return StepsComparison(
            tuple(_read_cell(entry) for entry in header.content["cells"]),
            _read_cell(header.content["reference"]),
            estimate_from_json(header.content["yardstick"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise FolderError(f"{header.path} is damaged ({error!r}). Make the folder again.") from error


def _read_cell(entry: Mapping[str, Any]) -> MeasuredCell:
    return MeasuredCell(
        str(entry["sampler"]),
        int(entry["steps"]),
        int(entry["calls"]),
        estimate_from_json(entry["frechet"]),
        float(entry["seconds"]),
    )


def _line(cell: MeasuredCell) -> str:
    took = f"{cell.seconds:,.0f} s" if cell.seconds >= 10 else f"{cell.seconds:.2g} s"
    return f"{cell.sampler:10}{cell.steps:>6}{cell.calls:>7}{took:>16}   {_number(cell.frechet)}"


def _number(found: Estimate) -> str:
    """Three digits: features have no unit, so distances may be of any size."""
    if math.isnan(found.value):
        return "undefined"
    return f"{found.value:.3g} ({found.low:.3g} to {found.high:.3g})"


def draw_steps(found: StepsComparison, *, place: Path) -> None:
    """Draw Fréchet distance and time against the steps into the PNG ``place``."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    distances, times = figure.subplots(1, 2)
    names = list(dict.fromkeys(cell.sampler for cell in found.cells))
    for index, name in enumerate(names):
        cells = sorted((cell for cell in found.cells if cell.sampler == name), key=lambda cell: cell.steps)
        steps = [cell.steps for cell in cells]
        look: dict[str, Any] = {"color": COLOURS[index % len(COLOURS)], "marker": MARKERS[index % len(MARKERS)]}
        low, high = ([getattr(cell.frechet, side) for cell in cells] for side in ("low", "high"))
        distances.fill_between(steps, low, high, color=look["color"], alpha=0.10, linewidth=0)
        distances.plot(steps, [cell.frechet.value for cell in cells], label=name, **look)
        times.plot(steps, [cell.seconds for cell in cells], label=name, **look)
    last = found.reference
    _level(distances, last.frechet, OTHER, ":", f"{last.sampler}, {last.steps} steps")
    times.axhline(last.seconds, color=OTHER, linestyle=":", label=f"{last.sampler}, {last.steps} steps")
    _level(distances, found.yardstick, HOLDOUT, "--", "holdout images")
    # Distances span powers of ten, and may be 0. Linear as far as the reference reaches: within, nothing can be told.
    reach = [entry.high for entry in (last.frechet, *(cell.frechet for cell in found.cells)) if entry.high > 0]
    distances.set_yscale("symlog", linthresh=reach[0] if reach else 1.0)
    distances.set_ylim(0, 1.2 * max(reach, default=1.0))
    distances.set_title("Fréchet distance to train images", fontsize=10)
    took = [cell.seconds for cell in (*found.cells, last)]
    times.set_yscale("log")
    times.set_ylim(min(took) / 2, max(took) * 2)
    times.set_title(f"seconds for {PER:,} samples", fontsize=10)
    for axes in (distances, times):
        _dress(axes, sorted({cell.steps for cell in found.cells}))
    handles, labels = distances.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", fontsize=8, frameon=False)
    temporary = place.with_suffix(".partial")
    figure.savefig(temporary, dpi=150, format="png", metadata={"Software": None})
    temporary.replace(place)


def _level(axes: Axes, found: Estimate, colour: str, line: str, label: str) -> None:
    """A horizontal line with its interval; nothing for what is undefined."""
    if math.isnan(found.value):
        return
    axes.axhspan(found.low, found.high, color=colour, alpha=0.08, linewidth=0)
    axes.axhline(found.value, color=colour, linestyle=line, label=label)


def _dress(axes: Axes, steps: Sequence[int]) -> None:
    axes.set_xscale("log")
    axes.set_xticks(steps, [str(number) for number in steps])
    axes.set_xticks([], minor=True)
    axes.set_xlim(steps[0] / 1.2, steps[-1] * 1.2)
    axes.set_xlabel("denoising steps")
    axes.spines[["top", "right"]].set_visible(False)
