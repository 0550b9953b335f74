"""What all layouts share: the cells of a study by what they are of, tables of any study, and pictures.

A layout makes `Part` s. Nothing here fails because of a cell: what did not run leaves `NOT_RUN` in its row, what cannot
be read is told in `Results.problems`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from unalike import folders
from unalike.cohort.store import ImageFolder, open_images
from unalike.errors import UnalikeError
from unalike.fidelity.result import FidelityResult, read_fidelity
from unalike.records import MASK, Estimate, FloatArray, IntArray, Pixels
from unalike.report.figures import DIFFERENCE_FULL, INK, STYLES
from unalike.report.pictures import count_pixels, difference_palette, show_window
from unalike.report.read import Audit, Pairs, read_audit
from unalike.report.tables import Cell, Column, Table, plain_number
from unalike.report.utility import utility_of
from unalike.report.words import format_count, format_number
from unalike.seeds import generator_for

NOT_RUN, NOT_MEASURED = "not run", "not measured"
ALL = "all"
# What a folder that is damaged, or of an older kind, may make a reader raise.
UNREADABLE = (UnalikeError, OSError, LookupError, ValueError, TypeError, AttributeError)
EXAMPLES = 8  # pictures in a row of examples
LABEL, STRIP, GAP = 1.7, 5.4, 0.08  # inches: room for a row's label, its pictures, and between rows
KIND_NAMES = {
    "diffusion": "Diffusion model",
    "stylegan": "StyleGAN",
    "inversion": "Textual inversion",
    "gaussian": "Gaussian (control)",
    "memorizer": "Memorizer (control)",
}
Read = TypeVar("Read")


@dataclass(frozen=True)
class Model:
    """What a run is of: cohort, generator (its name in the study), training subjects ("all" or a number), variation."""

    cohort: str
    generator: str
    subjects: str
    varied: tuple[tuple[str, str], ...] = ()

    @property
    def key(self) -> str:
        """As names of cells have it, behind the stage."""
        return "/".join(
            [self.cohort, self.generator, self.subjects, *(f"{name}={value}" for name, value in self.varied)]
        )

    @property
    def variation(self) -> str:
        """What is varied, in words; "" where nothing is."""
        return ", ".join(f"{name} {value}" for name, value in self.varied)


@dataclass(frozen=True)
class Drawing:
    """A figure of a part. With ``patients``, people may be seen in it: it is internal, and its file's name says so."""

    name: str
    figure: Figure
    caption: str
    patients: bool = False


@dataclass(frozen=True)
class Part:
    """A part of the page, with its tables and figures, before anything is written."""

    heading: str
    lead: tuple[str, ...] = ()
    tables: tuple[Table, ...] = ()
    drawings: tuple[Drawing, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass
class Results:
    """A study's cells, and their folders read once. ``problems`` says what could not be read."""

    result: Any  # a `StudyResult`: path, title, and cells with their state, reason, name, stage, out and about
    problems: list[str] = field(default_factory=list)
    _kept: dict[tuple[str, str], Any] = field(default_factory=dict)

    @property
    def cells(self) -> dict[str, Any]:
        """All cells by name, in the order of the plan."""
        return {str(done.cell.name): done for done in self.result.cells}

    def names(self, stage: str) -> list[str]:
        """Names of a stage's cells without the stage: of "cohort:chest" chest."""
        return [name.partition(":")[2] for name in self.cells if name.partition(":")[0] == stage]

    def models(self) -> list[Model]:
        """All models that are trained, in the order of the plan."""
        found: dict[tuple[str, str], Model] = {}
        for name in self.names("run"):
            model = read_model(name)
            # A variation that trains as the plain settings do shares their folder: one model, not two.
            found.setdefault((model.generator, str(self.cells[f"run:{name}"].cell.out)), model)
        return list(found.values())

    def cohorts(self) -> list[str]:
        """All cohorts, in the order of the plan."""
        return self.names("cohort")

    def about(self, cohort: str) -> Mapping[str, Any]:
        """What the study says of a cohort beside its settings."""
        done = self.cells.get(f"cohort:{cohort}")
        about = {} if done is None else dict(done.cell.about)
        inner = about.get("about")
        return about | dict(inner) if isinstance(inner, Mapping) else about

    def paper(self, cohort: str) -> str:
        """The data set of the paper that this cohort is; "" if it is none."""
        return str(self.about(cohort).get("paper", ""))

    def place(self, name: str) -> Path | None:
        """Folder of a finished cell; None if there is none."""
        done = self.cells.get(name)
        if done is None or done.state != "done":
            return None
        out = Path(done.cell.out)
        return out if out.is_absolute() or out.exists() else Path(self.result.path) / out

    def read(self, name: str, reader: Callable[[Path], Read]) -> Read | None:
        """What a reader makes of a finished cell's folder; None if it is not finished or cannot be read."""
        key = (name, getattr(reader, "__name__", "reader"))
        if key not in self._kept:
            place = self.place(name)
            self._kept[key] = None
            if place is not None:
                try:
                    self._kept[key] = reader(place)
                except UNREADABLE as error:
                    self.problems.append(f"{name} cannot be read: {error}")
        found: Read | None = self._kept[key]
        return found

    def cohort(self, name: str) -> ImageFolder | None:
        """A cohort, opened."""
        return self.read(f"cohort:{name}", open_images)

    def samples(self, model: Model) -> ImageFolder | None:
        """A model's samples, opened."""
        return self.read(f"samples:{model.key}", _open_samples)

    def audit(self, model: Model) -> Audit | None:
        """A model's audit, with its closest pairs."""
        return self.read(f"audit:{model.key}", _open_audit)

    def fidelity(self, model: Model) -> FidelityResult | None:
        """A model's fidelity."""
        return self.read(f"fidelity:{model.key}", read_fidelity)

    def utility(self, model: Model) -> folders.Header | None:
        """Header of a model's utility."""
        return self.read(f"utility:{model.key}", _open_utility)

    def kind(self, model: Model) -> str:
        """The kind of generator, or else its own name."""
        done = self.cells.get(f"run:{model.key}")
        return model.generator if done is None else str(done.cell.about.get("kind", model.generator))

    def size(self, model: Model) -> str:
        """Size of the network: as trained, or as the command asks for; "" if neither says so."""
        header = self.read(f"run:{model.key}", _open_run)
        if header is not None:
            return str(header.settings.get("size", ""))
        done = self.cells.get(f"run:{model.key}")
        argv = [] if done is None else list(map(str, done.cell.argv))
        if "--size" in argv[:-1]:
            return argv[argv.index("--size") + 1]
        return "medium" if "--preset" in argv else ""

    def title(self, model: Model) -> str:
        """What tables call a model: its kind, and its name where that says more, and what is varied."""
        kind = self.kind(model)
        name = KIND_NAMES.get(kind, kind)
        name += "" if model.generator == kind else f", {model.generator}"
        return name + (f", {model.variation}" if model.varied else "")

    def of_volumes(self, cohort: str) -> bool | None:
        """Whether images are slices, several of one volume; None where the cohort was not made."""
        found = self.cohort(cohort)
        if found is None:
            return None
        slices = found.numbers("slice") >= 0
        sources = found.column("source")[slices]
        return bool(len(sources) > len(np.unique(sources)))


def read_model(key: str) -> Model:
    """A `Model` from "cohort/generator/subjects" and any further "name=value"."""
    cohort, generator, subjects, *varied = [*key.split("/"), "", ""] if key.count("/") < 2 else key.split("/")
    pairs = tuple((name, value) for name, _, value in (entry.partition("=") for entry in varied) if name)
    return Model(cohort, generator, subjects or ALL, pairs)


def _open_samples(place: Path) -> ImageFolder:
    return open_images(place, kind="samples")


def _open_audit(place: Path) -> Audit:
    return read_audit(place, shareable=False)


def _open_utility(place: Path) -> folders.Header:
    return folders.read_header(place, kind="utility")


def _open_run(place: Path) -> folders.Header:
    return folders.read_header(place, kind="run")


# Cells of tables


def cell_of(found: Estimate | None, *, run: bool) -> Cell:
    """An estimate, or why there is none."""
    return NOT_RUN if not run else NOT_MEASURED if found is None else found


def bound_of(found: Estimate | None, *, run: bool) -> Cell:
    """Of a bound only its upper end says something."""
    return cell_of(None if found is None else plain_number(found.high, n=found.n, method=found.method), run=run)


def flagged_of(audit: Audit | None) -> Cell:
    """Share of flagged samples; where nothing could be flagged, no share at all."""
    if audit is None:
        return NOT_RUN
    if not audit.can_flag:
        return "cannot be told: too few holdout subjects"
    return cell_of(audit.estimates.get("flagged_share"), run=True)


def highest_of(audit: Audit | None, comparison: str) -> Cell:
    """Mean highest correlation of one comparison."""
    found = None if audit is None else audit.per_comparison["mean_highest_correlation"].get(comparison)
    return cell_of(found, run=audit is not None)


def power_of(audit: Audit | None) -> Cell:
    """Share of planted copies with slight noise that the audit catches."""
    rows = () if audit is None else [row for row in audit.power if row.change.startswith("noise")]
    return cell_of(rows[0].planted if rows else None, run=audit is not None)


def subjects_of(results: Results, model: Model) -> str:
    """Training subjects and images, as an audit counted them."""
    audit = results.audit(model)
    if audit is None:
        return model.subjects
    counts = audit.content["counts"]
    return f"{format_count(counts['train_subjects'])} ({format_count(counts['train'])} images)"


def data_title(results: Results, cohort: str, known: Sequence[str]) -> str:
    """Name of a data set, and whether it is the paper's; ``known`` are those of the paper."""
    paper = results.paper(cohort)
    return f"{cohort} ({paper})" if paper in known else f"{cohort} (not the paper's data)"


# Parts of any study


def summarize(results: Results) -> Part:
    """What was found of every model: copies, fidelity, utility."""
    rows: list[tuple[Cell, ...]] = []
    for model in results.models():
        audit, fidelity, utility = results.audit(model), results.fidelity(model), results.utility(model)
        worth = None if utility is None else utility_of(utility)
        rows.append(
            (
                model.cohort,
                results.title(model),
                subjects_of(results, model),
                NOT_RUN if audit is None else str(audit.content["verdict"]["decision"]),
                flagged_of(audit),
                highest_of(audit, "synthetic-train"),
                highest_of(audit, "holdout-train"),
                cell_of(
                    None if fidelity is None else fidelity.find("frechet", "synthetic-train"), run=fidelity is not None
                ),
                "" if worth is None else worth[0],
                cell_of(None if worth is None else worth[1], run=utility is not None),
            )
        )
    table = Table(
        "models",
        "All models of the study",
        (
            Column("data"),
            Column("model"),
            Column("training subjects"),
            Column("verdict"),
            Column("flagged as copies", "share"),
            Column("mean highest correlation", "number"),
            Column("of new patients", "number"),
            Column("Fréchet distance to train", "measure"),
            Column("utility is"),
            Column("utility", "number"),
        ),
        tuple(rows),
        (INTERVALS,),
    )
    return Part("All models", tables=(table,) if rows else ())


INTERVALS = "In brackets 95 % intervals over subjects; each sample counts as a subject of its own."


def list_failures(results: Results) -> list[str]:
    """A line for each cell that failed or did not run, with its reason: internal, as a reason may name files."""
    return [
        f"{done.cell.name}: {done.state}" + (f". {done.reason}" if done.reason else "")
        for done in results.result.cells
        if done.state != "done"
    ]


# Pictures


def pick_rows(rows: IntArray, count: int, *, purpose: str) -> IntArray:
    """Up to ``count`` of these rows, drawn at random but always the same, ascending."""
    chosen = generator_for(0, f"study {purpose}").permutation(rows)[:count]
    return np.sort(chosen).astype(np.int64)


def examples_of(images: ImageFolder, rows: IntArray, *, purpose: str, count: int = EXAMPLES) -> Pixels:
    """Pixels (n, C, H, W) of a few of these images: so many that their channels fill a row."""
    channels = 1 if _is_colour(images.channels) else len(images.channels)
    return images.read(pick_rows(rows, max(1, count // channels), purpose=purpose))


def draw_rows(rows: Sequence[tuple[str, tuple[str, ...], Pixels]]) -> Figure:
    """Draw rows of pictures: label, channels, and pixels (n, C, H, W) whose channels stand side by side."""
    return draw_strips([(label, _strip(pixels, channels)) for label, channels, pixels in rows])


def draw_strips(rows: Sequence[tuple[str, Pixels]]) -> Figure:
    """Draw pictures (H, W) of gray from 0 to 1, or (H, W, 3), beneath one another, each behind its label."""
    heights = [STRIP * strip.shape[0] / strip.shape[1] for _, strip in rows]
    width, height = LABEL + STRIP + GAP, sum(heights) + GAP * (len(rows) + 1)
    figure = Figure(figsize=(width, height))
    top = height
    for (label, strip), tall in zip(rows, heights, strict=True):
        top -= GAP + tall
        axes = figure.add_axes((LABEL / width, top / height, STRIP / width, tall / height))
        axes.imshow(strip, vmin=0, vmax=1, cmap="gray", interpolation="nearest", aspect="auto")
        _bare(axes)
        place = ((LABEL - GAP) / width, (top + tall / 2) / height)
        figure.text(*place, label, ha="right", va="center", fontsize=8, color=INK, parse_math=False)
    return figure


def _is_colour(channels: Sequence[str]) -> bool:
    return tuple(channels) == ("red", "green", "blue")


def _strip(pixels: Pixels, channels: Sequence[str]) -> FloatArray:
    """Images beside one another, gray from 0 to 1 with white seams: (H, width), or (H, width, 3) of colours."""
    scaled = np.empty(pixels.shape, dtype=np.float64)
    for channel, name in enumerate(channels):
        low, high = show_window(pixels[:, channel], compared=name != MASK)
        scaled[:, channel] = np.clip((pixels[:, channel] - low) / (high - low), 0, 1)
    if _is_colour(channels):
        tiles = [np.moveaxis(image, 0, -1) for image in scaled]
    else:
        tiles = [plane for image in scaled for plane in image]
    seam = np.ones((tiles[0].shape[0], 1, *tiles[0].shape[2:]))
    parts = [part for tile in tiles for part in (tile, seam)][:-1]
    return np.concatenate(parts, axis=1)


def _bare(axes: Axes) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)


def draw_pair_rows(rows: Sequence[tuple[str, Audit, Pairs]]) -> Figure:
    """Draw the closest pair of each audit: sample, training image, difference, pixel values, slices before and after.

    Only the first compared channel, as a page has room for no more.
    """
    titles = ["synthetic", "training image", "difference", "pixel values"]
    if any(pairs.neighbour_valid[0].any() for _, _, pairs in rows):
        titles += ["slice before", "slice after"]
    figure = Figure(figsize=(7.2, 0.3 + 1.35 * len(rows)), layout="constrained")
    grid = figure.subplots(len(rows), len(titles), squeeze=False)
    colours = mpl.colors.ListedColormap(difference_palette() / 255.0)
    for axes, (label, audit, pairs) in zip(grid, rows, strict=True):
        channel = audit.channels.index(audit.compared[0])
        synthetic, train = pairs.synthetic[0, channel], pairs.train[0, channel]
        window = show_window(synthetic, train, compared=True)
        full = DIFFERENCE_FULL * (window[1] - window[0])
        neighbours = zip(pairs.neighbours[0, :, channel], pairs.neighbour_valid[0], strict=True)
        shown = [synthetic, train, None, None, *(pixels if valid else None for pixels, valid in neighbours)]
        for place, pixels in zip(axes, shown, strict=False):
            if pixels is not None:
                place.imshow(pixels, cmap="gray", vmin=window[0], vmax=window[1], interpolation="nearest")
        signed = synthetic.astype(np.float64) - train.astype(np.float64)
        axes[2].imshow(signed, cmap=colours, vmin=-full, vmax=full, interpolation="nearest")
        counts = count_pixels(synthetic, train, window=window)
        axes[3].imshow(np.log1p(counts), cmap="Blues", extent=(*window, *window), aspect="auto")
        axes[3].plot(window, window, color=INK, linewidth=0.6)
        for place in axes:
            _bare(place)
            place.set_box_aspect(synthetic.shape[0] / synthetic.shape[1])
        told = f"{label}\nr = {format_number(pairs.correlation[0])}" + ("\nflagged" if pairs.flagged[0] else "")
        axes[0].set_ylabel(told, rotation=0, ha="right", va="center", fontsize=7, color=INK, parse_math=False)
    for place, text in zip(grid[0], titles, strict=True):
        place.set_title(text, fontsize=8, color=INK)
    return figure


def draw_plane(axes: Axes, image: Pixels | None, channel: int) -> None:
    """Draw one channel of an image (C, H, W), or all three as colours (channel −1); None leaves "not run"."""
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    if image is None:
        axes.text(0.5, 0.5, NOT_RUN, transform=axes.transAxes, ha="center", va="center", color=INK, fontsize=8)
    elif channel < 0:
        axes.imshow(np.moveaxis(image.astype(np.float64) / np.iinfo(image.dtype).max, 0, -1), interpolation="nearest")
    else:
        low, high = show_window(image[channel], compared=True)
        axes.imshow(image[channel], cmap="gray", vmin=low, vmax=high, interpolation="nearest")


def draw_panels(
    rows: Sequence[str], columns: Sequence[str], panels: Mapping[tuple[int, int], Audit], *, bins: FloatArray
) -> Figure:
    """Draw a panel for each (row, column): how close samples, and new patients, come to their best match."""
    size = (1.2 + 2.9 * len(columns), 0.8 + 1.15 * len(rows))
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(len(rows), len(columns), squeeze=False, sharex=True)
    entries: dict[str, Any] = {}
    for row, column in itertools.product(range(len(rows)), range(len(columns))):
        axes: Axes = grid[row, column]
        axes.set_yticks([])
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.set_xlim(bins[0], bins[-1])
        axes.tick_params(colors=INK, labelsize=8)
        audit = panels.get((row, column))
        if audit is None:
            axes.text(0.5, 0.5, NOT_RUN, transform=axes.transAxes, ha="center", va="center", color=INK, fontsize=8)
        else:
            _draw_series(axes, audit, bins)
            entries |= dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
        if column == 0:
            axes.set_ylabel(rows[row], rotation=0, ha="right", va="center", fontsize=8, color=INK, parse_math=False)
        if row == 0:
            axes.set_title(columns[column], fontsize=9, color=INK, parse_math=False)
    figure.supxlabel("highest correlation of an image", fontsize=9, color=INK)
    if entries:
        figure.legend(
            list(entries.values()),
            list(entries),
            loc="outside upper center",
            ncols=min(3, len(columns)),
            frameon=False,
            fontsize=8,
        )
    return figure


def _draw_series(axes: Axes, audit: Audit, bins: FloatArray) -> None:
    for name, style in STYLES.items():
        values = audit.highest.get(name, np.empty(0))
        values = values[np.isfinite(values)]
        if not values.size:
            continue
        counts, _ = np.histogram(np.clip(values, bins[0], bins[-1]), bins)
        shares = counts / values.size
        if style.fill:
            axes.stairs(shares, bins, fill=True, color=style.colour, alpha=style.fill, linewidth=0)
        axes.stairs(shares, bins, color=style.colour, linestyle=style.line, linewidth=1.4, label=style.label)
    axes.set_ylim(bottom=0)


def defined(found: Estimate | None) -> bool:
    """Whether there is a number with an interval."""
    return found is not None and math.isfinite(found.value) and math.isfinite(found.low)
