"""Runs of several generators side by side: the papers' table 2 (Akbar et al. 2025), with yardsticks and intervals.

    python benchmarks/side_by_side.py COHORT RUN [RUN ...] --out FOLDER

Draws from each finished run, with its kind's default settings, into FOLDER/<name of the run>/samples, audits the
samples into FOLDER/<name of the run>/audit (internal: it shows patients), and prints and writes FOLDER/table.md. What
is finished is kept, so the same command goes on where it was interrupted.

"Holdout" are the cohort's held-out images in place of samples: what a generator as good as reality, which copies
nobody, would come to. Fréchet distances are to all train images of the cohort, on its own features, corrected for the
number of images (`frechet_estimate`): they compare within one table, not with anybody's FID. A small one says nothing
of copying: train images drawn again as they are have none. The time for 1,000 samples is that of the whole drawing,
opening the model and writing included, so it is fair for many samples only.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from unalike import folders
from unalike.audit.diversity import measure_diversity
from unalike.audit.run import audit_samples
from unalike.audit.search import compare_sets
from unalike.cohort.roles import ImageSet
from unalike.cohort.store import ImageFolder, open_images
from unalike.devices import pick_device
from unalike.errors import FolderError, InputError, SettingsError, UnalikeError
from unalike.fidelity.features import embed_cached
from unalike.fidelity.frechet import FEWEST_SUBJECTS, frechet_estimate
from unalike.fidelity.own import CohortFeatures, open_own_features
from unalike.folders import Header
from unalike.records import MASK, Estimate, FloatArray, TextArray, estimate_from_json
from unalike.runs.families import read_run
from unalike.runs.sample import PARTS, check_order, draw_samples, open_run_cohort
from unalike.seeds import generator_for
from unalike.stats.intervals import estimate_mean

PER = 1000  # samples whose time is told
SEED = 0
TIME, TABLE = "time.json", "table.md"
NONE = "–"
HEADS = (
    "generator",
    "weights",
    "training, s",
    f"s for {PER:,} samples",
    "Fréchet distance to train",
    "flagged",
    "copy rate at most",
    "mean highest correlation with train",
    "new patients'",
    "diversity: alike",
)
# Facts of table 2 and section 2.4, chest x-rays, one channel.
PAPER = (
    "Akbar et al. (Mach. Learn.: Sci. Technol. 6, 015022, 2025), table 2, chest x-rays, 1,000 samples, FID and mean "
    "highest correlation with train: of 5,216 images diffusion 53.8 and 0.853, StyleGAN 33.1 and 0.844; of 1,300 "
    "images diffusion 57.5 and 0.879, StyleGAN 54.7 and 0.838. (Weights: 31.1 million; 28.5 million, and 28.9 million "
    "of a discriminator.) Theirs have no intervals, and the table no new patients' correlation; images, sizes, "
    "features and correction are others. Compare the directions, not the values."
)


@dataclass(frozen=True)
class Real:
    """What every run is held against: the cohort, its features, and those of its train images."""

    cohort: ImageFolder
    features: CohortFeatures
    vectors: FloatArray
    subjects: TextArray

    def distance(self, vectors: FloatArray, subjects: TextArray) -> Estimate:
        """To the train images, with an interval over subjects."""
        return frechet_estimate(vectors, self.vectors, subjects_a=subjects, subjects_b=self.subjects, seed=SEED)


def check(cohort: ImageFolder, runs: Sequence[Path], out: Path, count: int) -> dict[str, Header]:
    """The runs' headers by name; refuses what would be refused after hours."""
    names = [run.resolve().name for run in runs]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise SettingsError(
            f"two runs are called {twice[0]}, and share a folder in {out}. Rename one, or leave it out."
        )
    if count < FEWEST_SUBJECTS:
        raise SettingsError(f"--count {count}: a distance needs at least {FEWEST_SUBJECTS} samples. Give 1000.")
    if not len(cohort.rows("holdout")):
        raise InputError(f"{cohort.path} has no holdout images, so no yardstick. Prepare it with --holdout 0.2.")
    headers = {name: read_run(run) for name, run in zip(names, runs, strict=True)}
    for (name, header), run in zip(headers.items(), runs, strict=True):
        open_run_cohort(cohort.path, header)
        samples, wanted = out / name / "samples", {"run": folders.digest_of(run, kind="run"), "count": count}
        if folders.kind_of(samples) == "samples":
            found = folders.read_header(samples, kind="samples")
            if {"run": found.inputs.get("run"), "count": found.content.get("images")} != wanted:
                raise FolderError(f"{samples} are other samples (of another run, or count). Choose another --out.")
        else:
            check_order(header=header, out=samples, count=count, first_seed=0, given=None, guard=None, rejected=None)
    return headers


def draw(run: Path, place: Path, count: int, device: str) -> None:
    """Samples of a run, and beside them how long they took."""
    samples = place / "samples"
    if folders.kind_of(samples) == "samples":
        return
    kept = count_kept(samples)
    began = time.perf_counter()
    draw_samples(run=run, out=samples, count=count, device=device)
    seconds = time.perf_counter() - began
    told = {"seconds": seconds, "drawn": count - kept, "device": name_device(device)}
    folders.write_json(place / TIME, told | {"samples": folders.digest_of(samples, kind="samples")})


def count_kept(samples: Path) -> int:
    """Samples that an interrupted drawing left; a damaged file of them is drawn again."""
    kept = 0
    for part in (samples / PARTS).glob("*.npy"):
        with contextlib.suppress(OSError, ValueError, EOFError):
            kept += len(np.load(part, mmap_mode="r", allow_pickle=False))
    return kept


def name_device(device: str) -> str:
    place, threads = pick_device(device), torch.get_num_threads()
    if place.type == "cuda":
        return torch.cuda.get_device_name(place)
    return f"{place}, {threads} thread{'' if threads == 1 else 's'}"


def tell_time(place: Path, count: int) -> tuple[str, str]:
    """Seconds for `PER` samples, and how they were measured, in words."""
    samples = folders.digest_of(place / "samples", kind="samples")
    told = folders.read_json(place / TIME) if (place / TIME).is_file() else {}
    drawn = told.get("drawn", 0)
    if told.get("samples") != samples or drawn == 0:
        return NONE, "the drawing was interrupted, and its time is not known"
    sitting = "in one go" if drawn == count else f"RESUMED: time is that of the last {drawn:,}, of {count:,}"
    return seconds_of(told["seconds"] * PER / drawn), f"{drawn:,} samples in {told['seconds']:.3g} s, {sitting}"


def audit(place: Path, cohort: ImageFolder, name: str, device: str) -> Mapping[str, Any]:
    """The content of the audit of these samples."""
    samples, out = place / "samples", place / "audit"
    if folders.kind_of(out) != "audit":
        audit_samples(synthetic=samples, against=cohort.path, out=out, name=name, seed=SEED, device=device)
    header = folders.read_header(out, kind="audit")
    if header.inputs != {"synthetic": folders.digest_of(samples, kind="samples"), "cohort": cohort.digest}:
        raise FolderError(f"{out} is the audit of other images than {samples}. Remove it, or choose another --out.")
    return header.content


def row_of_run(name: str, header: Header, place: Path, real: Real, device: str) -> tuple[list[str], str]:
    """A line of the table, and what must be said of it below."""
    about, samples = header.content, open_images(place / "samples", kind="samples")
    content = audit(place, real.cohort, name, device)
    estimates, total = content["estimates"], content["counts"]["synthetic"]
    highest = {pair: estimate_from_json(entry) for pair, entry in estimates["mean_highest_correlation"].items()}
    vectors = embed_cached(real.features, samples, np.arange(len(samples)), None)
    took, sitting = tell_time(place, total)
    cells = [
        f"{name} ({name_kind(about, samples.header.settings)})",
        f"{about['parameters']:,}",
        seconds_of(training_seconds(about)),
        took,
        distance_text(real.distance(vectors, samples.column("subject"))),
        f"{content['flagged']:,} of {total:,}",
        copy_rate(estimates),
        str(highest["synthetic-train"]),
        str(highest["holdout-train"]),
        share_text(estimate_from_json(content["diversity"]["alike"])),
    ]
    notes = [content["verdict"]["headline"], *more_of(about)]
    return cells, f"- **{name}**: {' '.join(notes)} Drawn: {sitting}{on_device(place)}."


def name_kind(about: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    """The kind of generator, and how it is drawn from where time goes by that."""
    steps = f", {settings['steps']} steps of {settings['sampler']}" if "sampler" in settings else ""
    return f"{about['generator']}{steps}"


def training_seconds(about: Mapping[str, Any]) -> float:
    """Of all that was trained, an autoencoder of latents too; NaN for what is fitted, or was trained elsewhere."""
    return float(about.get("seconds", math.nan)) + float((about.get("autoencoder") or {}).get("seconds", 0.0))


def more_of(about: Mapping[str, Any]) -> list[str]:
    """What the columns leave out of a run."""
    notes = []
    if about.get("subjects") is not None:
        notes.append(
            f"Trained on {about['subjects']} patients only: all others count as new, but in the Fréchet distance."
        )
    if about.get("holds_training_images"):
        notes.append("Its weights are training images.")
    if "discriminator_parameters" in about:
        notes.append(f"Its discriminator has {about['discriminator_parameters']:,} weights more.")
    if about.get("autoencoder"):
        notes.append(f"Its autoencoder has {about['autoencoder']['parameters']:,} weights more.")
    return notes


def on_device(place: Path) -> str:
    return f" ({folders.read_json(place / TIME)['device']})" if (place / TIME).is_file() else ""


def row_of_holdout(real: Real, device: torch.device) -> list[str]:
    """The yardstick: held-out images in place of samples. Who is a copy is judged by them, so they are not flagged."""
    cohort = real.cohort
    holdout, train = (ImageSet(cohort, cohort.rows(role)) for role in ("holdout", "train"))
    # As an audit chooses them.
    channels = [index for index, name in enumerate(cohort.channels) if name != MASK] or [0]
    found = compare_sets(
        holdout, train, best=1, channels=channels, device=device, title="Comparing holdout → train", mean=False
    )
    closest = estimate_mean(found.highest, holdout.subjects, random=generator_for(SEED, "highest holdout-train"))
    diversity = measure_diversity(holdout, train, channels=channels, seed=SEED, device=device)
    vectors = embed_cached(real.features, cohort, holdout.rows, cohort.path / folders.INDEX)
    distance = real.distance(vectors, holdout.subjects)
    name = "holdout (new patients)"
    return [
        *(name, NONE, NONE, NONE, distance_text(distance), NONE, NONE),
        *(str(closest), NONE, share_text(diversity.alike)),
    ]


def copy_rate(estimates: Mapping[str, Any]) -> str:
    """The upper bound alone; without a measured power there is none."""
    if "copy_rate_at_most" not in estimates:
        return "unknown"
    high = estimate_from_json(estimates["copy_rate_at_most"]).high
    return "undefined" if math.isnan(high) else f"{high:.1%}"


def seconds_of(seconds: float) -> str:
    if math.isnan(seconds):
        return NONE
    return f"{seconds:,.0f}" if seconds >= 10 else f"{seconds:.2g}"


def distance_text(found: Estimate) -> str:
    """Three digits: features have no unit, so distances may be of any size."""
    if math.isnan(found.value):
        return "undefined"
    return f"{found.value:.3g} ({found.low:.3g} to {found.high:.3g})"


def share_text(found: Estimate) -> str:
    if math.isnan(found.value):
        return "undefined"
    return f"{found.value:.0%} ({found.low:.0%} to {found.high:.0%})"


def compare(cohort: ImageFolder, runs: Sequence[Path], out: Path, count: int, device: str) -> str:
    """The table, as Markdown."""
    headers, place = check(cohort, runs, out, count), pick_device(device)
    # First of all: nothing else should be at work while the drawing is timed.
    for name, run in zip(headers, runs, strict=True):
        (out / name).mkdir(parents=True, exist_ok=True)
        draw(run, out / name, count, device)
    features = open_own_features(cohort, device=place)
    rows = cohort.rows("train")
    vectors = embed_cached(features, cohort, rows, cohort.path / folders.INDEX)
    real = Real(cohort, features, vectors, cohort.column("subject")[rows])
    told = [row_of_run(name, header, out / name, real, device) for name, header in headers.items()]
    lines = [row_of_holdout(real, place), *(cells for cells, _ in told)]
    return "\n".join(
        [
            f"# {cohort.path.resolve().name}: {describe(cohort)}",
            "",
            *("| " + " | ".join(cells) + " |" for cells in (HEADS, ["---"] * len(HEADS), *lines)),
            "",
            *(note for _, note in told),
            "",
            "Intervals of 95 %, over patients or samples. *Alike*: share of samples closer to another sample than 95 % "
            "of train patients come to one another; about 5 % is expected. A small Fréchet distance says nothing of "
            "copying: train images drawn again as they are have none. So read it beside the flags.",
            "",
            PAPER,
            "",
        ]
    )


def describe(cohort: ImageFolder) -> str:
    """Images and patients of both roles."""
    told = []
    for role in ("train", "holdout"):
        rows = cohort.rows(role)
        told.append(f"{len(rows):,} {role} images of {len(np.unique(cohort.column('subject')[rows])):,} patients")
    height, width = cohort.size
    return f"{', '.join(told)}, {len(cohort.channels)}×{height}×{width}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cohort", type=Path)
    parser.add_argument("runs", type=Path, nargs="+", metavar="run")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--count", type=int, default=PER)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    options = parser.parse_args()
    try:
        table = compare(open_images(options.cohort), options.runs, options.out, options.count, options.device)
    except UnalikeError as error:
        raise SystemExit(f"error: {error}") from error
    (options.out / TABLE).write_text(table, encoding="utf-8")
    print(table)
    print(f"table: {options.out / TABLE}")


if __name__ == "__main__":
    main()
