"""``unalike train KIND``: train a generator on a cohort's train role."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter

from unalike.cli.output import Device, DryRun, Json, Seed, print_json, show_settings
from unalike.generators.controls.gaussian import GaussianSettings
from unalike.generators.controls.memorizer import MemorizerSettings
from unalike.generators.diffusion.settings import DiffusionSettings

train = App(name="train", help="Train a generator on a cohort's train role; an interrupted run resumes.")

Subjects = Annotated[int | None, Parameter(help="Use this many train subjects, drawn with --seed (default: all).")]


def _train(
    kind: str,
    cohort: Path,
    out: Path,
    settings: Any,
    subjects: int | None,
    seed: int,
    device: str,
    dry_run: bool,
    json: bool,
) -> None:
    from unalike.cohort.split import select_train_rows
    from unalike.cohort.store import open_images
    from unalike.generators.runs import train_generator

    opened = open_images(cohort)
    images = len(select_train_rows(opened, subjects=subjects, seed=seed))
    show_settings(settings, dry_run=dry_run, json_out=json)
    if dry_run:
        return
    run = train_generator(
        kind=kind, cohort=cohort, out=out, settings=settings, subjects=subjects, seed=seed, device=device
    )
    if json:
        print_json({"run": run, "generator": kind, "train_images": images})
    else:
        print(f"{run}: {kind} trained on {images} images. Next: unalike sample {run} --count 128 --out …")


@train.command
def diffusion(
    cohort: Path,
    *,
    out: Path,
    settings: Annotated[DiffusionSettings, Parameter(name="*")] = DiffusionSettings(),  # noqa: B008 - frozen
    subjects: Subjects = None,
    seed: Seed = 0,
    device: Device = "auto",
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Train a denoising diffusion model (Ho et al. 2020) with as many channels as the cohort has.

    Parameters
    ----------
    cohort
        Cohort folder.
    out
        Run folder to write, or to resume.
    """
    _train("diffusion", cohort, out, settings, subjects, seed, device, dry_run, json)


@train.command
def gaussian(
    cohort: Path,
    *,
    out: Path,
    settings: Annotated[GaussianSettings, Parameter(name="*")] = GaussianSettings(),  # noqa: B008 - frozen
    subjects: Subjects = None,
    seed: Seed = 0,
    device: Device = "auto",
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Fit principal components and sample them: a control that cannot hold single patients.

    Parameters
    ----------
    cohort
        Cohort folder.
    out
        Run folder to write.
    """
    _train("gaussian", cohort, out, settings, subjects, seed, device, dry_run, json)


@train.command
def memorizer(
    cohort: Path,
    *,
    out: Path,
    settings: Annotated[MemorizerSettings, Parameter(name="*")] = MemorizerSettings(),  # noqa: B008 - frozen
    subjects: Subjects = None,
    seed: Seed = 0,
    device: Device = "auto",
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Keep the training images and return them slightly changed: a control that copies everyone.

    Parameters
    ----------
    cohort
        Cohort folder.
    out
        Run folder to write; it holds training images, so treat it like the cohort.
    """
    _train("memorizer", cohort, out, settings, subjects, seed, device, dry_run, json)
