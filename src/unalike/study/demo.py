"""`run_demo`: watch a diffusion model copy its patients.

Procedural cohort → prepare → two control generators and the same small diffusion model trained on few subjects
and on all → sample → audit → one page that compares the four.
"""

from __future__ import annotations

import math
import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from unalike import folders
from unalike.audit.run import audit_samples
from unalike.cohort.build import prepare_cohort
from unalike.cohort.phantom import PhantomSettings, make_phantom
from unalike.cohort.settings import PrepareSettings
from unalike.cohort.store import open_images
from unalike.errors import FolderError
from unalike.generators.diffusion.settings import DiffusionSettings
from unalike.images import volumes
from unalike.records import Estimate, as_json, estimate_from_json
from unalike.report import write_report
from unalike.runs.sample import draw_samples
from unalike.runs.train import train_generator
from unalike.study.settings import DemoSettings


@dataclass(frozen=True)
class DemoRow:
    """One generator's line in the table."""

    name: str
    decision: str
    flagged: int
    samples: int
    highest_train: Estimate
    highest_holdout: Estimate


@dataclass(frozen=True)
class DemoResult:
    """Where the comparison page lies, and its table."""

    report: Path
    rows: tuple[DemoRow, ...]

    def table(self) -> str:
        """The table as text."""
        lines = [
            f"{'generator':26}{'verdict':18}{'flagged':>12}   highest correlation with train, mean:\n"
            f"{'':59}samples   new patients"
        ]
        for row in self.rows:
            flagged = f"{row.flagged} of {row.samples}"
            highest = f"{row.highest_train.value:.3f}     {row.highest_holdout.value:.3f}"
            lines.append(f"{row.name:26}{row.decision:18}{flagged:>12}   {highest}")
        return "\n".join(lines)


def run_demo(
    *, out: str | Path, settings: DemoSettings | None = None, seed: int = 0, device: str = "auto"
) -> DemoResult:
    """Run the demo into ``out``; an interrupted demo goes on where it stopped when it is called alike again."""
    settings, out = settings or DemoSettings(), Path(out)
    settings.check()
    if folders.kind_of(out) == "demo":
        header = folders.read_header(out, kind="demo")
        if (header.settings, header.seed) != (as_json(asdict(settings)), seed):
            raise FolderError(f"{out} is a demo with other settings. Choose another --out or remove it.")
        return _read(out)
    folders.begin_folder(out, kind="demo", settings=asdict(settings) | {"seed": seed}, resumable=True)
    cohort = out / "cohort"
    _once(cohort, "cohort", "Preparing the cohort", lambda: _prepare(out, cohort, settings, seed))
    audits = [_try_generator(entry, cohort, out, settings, seed, device) for entry in _generators(settings)]
    page = write_report(audits, out=out / folders.REPORT, title="Did the generators copy their patients?")
    folders.finish_folder(
        out,
        kind="demo",
        settings=asdict(settings),
        seed=seed,
        inputs={"cohort": open_images(cohort).digest},
        content={"audits": [audit.relative_to(out).as_posix() for audit in audits], "report": page.name},
    )
    return _read(out)


@dataclass(frozen=True)
class _Generator:
    """One line of the demo: what to train, on how many subjects (None: all), and what it is called."""

    name: str
    folder: str
    kind: str
    subjects: int | None = None


def _generators(settings: DemoSettings) -> tuple[_Generator, ...]:
    few = settings.few
    return (
        _Generator("gaussian", "gaussian", "gaussian"),
        _Generator("memorizer", "memorizer", "memorizer"),
        _Generator(f"diffusion, {few} subjects", f"diffusion-{few}", "diffusion", few),
        _Generator("diffusion, all subjects", "diffusion-all", "diffusion"),
    )


def _try_generator(entry: _Generator, cohort: Path, out: Path, settings: DemoSettings, seed: int, device: str) -> Path:
    """Train, sample and audit one generator; returns the audit folder."""
    run, samples, audit = (out / room / entry.folder for room in ("runs", "samples", "audits"))
    wanted = DiffusionSettings(steps=settings.steps) if entry.kind == "diffusion" else None

    def train() -> object:
        return train_generator(
            kind=entry.kind,
            cohort=cohort,
            out=run,
            settings=wanted,
            subjects=entry.subjects,
            seed=seed,
            device=device,
        )

    def examine() -> object:
        return audit_samples(synthetic=samples, against=cohort, out=audit, name=entry.name, seed=seed, device=device)

    _once(run, "run", f"Training {entry.name}", train)
    _once(
        samples,
        "samples",
        f"Sampling {entry.name}",
        lambda: draw_samples(run=run, out=samples, count=settings.count, device=device),
    )
    _once(audit, "audit", f"Auditing {entry.name}", examine)
    write_report(audit)
    return audit


def _once(folder: Path, kind: str, title: str, work: Callable[[], object]) -> None:
    """Do a stage unless its folder is finished."""
    finished = folders.kind_of(folder) == kind
    print(f"{title}: done already" if finished else title, file=sys.stderr)  # noqa: T201 - talk of a long command
    if not finished:
        work()


def _prepare(out: Path, cohort: Path, settings: DemoSettings, seed: int) -> None:
    source, recipe = settings.data, "folder"
    if source is None:
        source, recipe = out / "phantom", "nifti"
        done = out / "phantom.done"
        if not done.is_file():
            shutil.rmtree(source, ignore_errors=True)  # of an interrupted demo
            make_phantom(out=source, settings=PhantomSettings(subjects=settings.subjects, size=48, slices=8), seed=seed)
            done.touch()
    elif any(path.name.endswith(volumes.SUFFIXES) for path in source.rglob("*")):
        recipe = "nifti"
    prepare_cohort(
        source=source,
        out=cohort,
        settings=PrepareSettings(
            recipe=recipe,
            size=settings.size,
            holdout=settings.holdout,
            subject_pattern=settings.subject_pattern,
            color="gray",
            depth="8",
            # One slice a subject: few enough images that a small model can hold them all in minutes.
            slices=1,
        ),
        seed=seed,
    )


def _read(out: Path) -> DemoResult:
    header = folders.read_header(out, kind="demo")
    rows = []
    for name in header.content["audits"]:
        content = folders.read_header(out / name, kind="audit").content
        highest = {
            pair: estimate_from_json(entry) for pair, entry in content["estimates"]["mean_highest_correlation"].items()
        }
        undefined = Estimate(math.nan, math.nan, math.nan, 0, "no holdout")
        rows.append(
            DemoRow(
                name=content["name"],
                decision=content["verdict"]["decision"],
                flagged=content["flagged"],
                samples=content["counts"]["synthetic"],
                highest_train=highest["synthetic-train"],
                highest_holdout=highest.get("holdout-train", undefined),
            )
        )
    report = out / header.content["report"]
    if not report.is_file():
        raise FolderError(f"{report} is gone. Make it again: unalike report {out}/audits/* --out {report}")
    return DemoResult(report=report, rows=tuple(rows))
