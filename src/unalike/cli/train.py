"""``unalike train KIND``: train a generator on a cohort's train role."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, Parameter

from unalike.cli.output import Device, DryRun, Json, Seed, print_json, show_settings
from unalike.engine import is_first_process
from unalike.errors import SettingsError
from unalike.generators.controls.gaussian import GaussianSettings
from unalike.generators.controls.memorizer import MemorizerSettings
from unalike.generators.diffusion.settings import PRESETS, DiffusionSettings
from unalike.generators.inversion.settings import InversionSettings
from unalike.generators.stylegan.settings import PRESETS as STYLEGAN_PRESETS
from unalike.generators.stylegan.settings import StyleganSettings
from unalike.generators.trackers import TrackerSettings, check_trackers
from unalike.records import MASK
from unalike.runs.settings import WatchSettings

if TYPE_CHECKING:
    from unalike.cohort.store import ImageFolder

train = App(name="train", help="Train a generator on a cohort's train role; an interrupted run resumes.")

Subjects = Annotated[int | None, Parameter(help="Use this many train subjects, drawn with --seed (default: all).")]


@dataclass(frozen=True)
class Watching:
    """How a training is watched for copies, as a user says it; what is not given is as `WatchSettings` has it."""

    watch_every: int = 0
    """Updates between two looks for copies among samples drawn on the way; 0 does not look."""

    watch_samples: int | None = None
    """Samples drawn at each look (default 200)."""

    watch_steps: int | None = None
    """Denoising steps they are drawn in, of diffusion and inversion (default 20)."""

    watch_level: float | None = None
    """p-value up to which a sample counts as a copy (default 0.05)."""

    copy_budget: float | None = None
    """Largest share of copies, beyond false alarms, of weights that may become the model (default 0.05). The best of
    these, by Fréchet distance, does."""

    stop_on_memorization: Annotated[bool, Parameter(negative="")] = False
    """End the training at the first look beyond the budget."""


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
    watch: WatchSettings | None = None,
    trackers: TrackerSettings | None = None,
) -> None:
    from unalike.cohort.split import select_train_rows
    from unalike.cohort.store import open_images
    from unalike.runs.train import train_generator

    if trackers is not None:
        check_trackers(trackers)
    opened = open_images(cohort)
    images = len(select_train_rows(opened, subjects=subjects, seed=seed))
    show_settings(settings, dry_run=dry_run, json_out=json)
    if dry_run:
        if isinstance(settings, DiffusionSettings | StyleganSettings):
            _tell_size(settings, opened)
        return
    run = train_generator(
        kind=kind,
        cohort=cohort,
        out=out,
        settings=settings,
        subjects=subjects,
        seed=seed,
        device=device,
        watch=watch,
        trackers=trackers,
    )
    if not is_first_process():
        return
    if json:
        print_json({"run": run, "generator": kind, "train_images": images})
    else:
        print(f"{run}: {kind} trained on {images} images. Next: unalike sample {run} --count 128 --out …")


def _tell_size(settings: DiffusionSettings | StyleganSettings, cohort: ImageFolder) -> None:
    """The number of weights beside the paper's; refuses images that do not fit the network."""
    print(_describe_size(settings, cohort), file=sys.stderr)


def _describe_size(settings: DiffusionSettings | StyleganSettings, cohort: ImageFolder) -> str:
    channels, (height, width) = len(cohort.channels), cohort.size
    if isinstance(settings, StyleganSettings):
        from unalike.generators.stylegan import network

        shape = network.choose_shape(settings, channels=channels, height=height, width=width)
        return network.describe_size(settings, shape, parameters=network.count_parameters(shape))
    from unalike.generators.diffusion.autoencoder import latent_size
    from unalike.generators.diffusion.network import count_parameters, describe_size

    height, width = latent_size(height, width) if settings.latent else (height, width)
    size = {"channels": settings.latent or channels - (MASK in settings.condition), "height": height, "width": width}
    return describe_size(settings, **size, parameters=count_parameters(settings, **size))


def _check_preset(preset: str, presets: Mapping[str, Any]) -> None:
    if preset not in ("", *presets):
        raise SettingsError(f"--preset {preset} is unknown. There are: {', '.join(presets)}.")


def _watch(given: Watching) -> WatchSettings | None:
    """How the training is watched; None where it is not."""
    names = {"watch_samples": "samples", "watch_steps": "steps", "watch_level": "level", "copy_budget": "budget"}
    wanted = {names[name]: value for name, value in asdict(given).items() if name in names and value is not None}
    if given.watch_every:
        return WatchSettings(every=given.watch_every, stop=given.stop_on_memorization, **wanted)
    if given.stop_on_memorization:
        raise SettingsError("--stop-on-memorization needs looks to go by: give --watch-every.")
    if wanted:
        raise SettingsError("--watch-samples, --watch-steps, --watch-level and --copy-budget need --watch-every.")
    return None


@train.command
def diffusion(
    cohort: Path,
    *,
    out: Path,
    preset: str = "",
    settings: Annotated[DiffusionSettings, Parameter(name="*", consume_multiple=True)] = DiffusionSettings(),  # noqa: B008 - frozen
    subjects: Subjects = None,
    watching: Annotated[Watching, Parameter(name="*")] = Watching(),
    trackers: Annotated[TrackerSettings, Parameter(name="*", negative="")] = TrackerSettings(),  # noqa: B008 - frozen
    seed: Seed = 0,
    device: Device = "auto",
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Train a denoising diffusion model (Ho et al. 2020) with as many channels as the cohort has.

    Several processes, on one machine or more: accelerate launch --multi_gpu -m unalike train diffusion …

    Parameters
    ----------
    cohort
        Cohort folder.
    out
        Run folder to write, or to resume.
    preset
        Settings to begin with instead of the defaults; flags win. akbar2025: the paper's.
    """
    _check_preset(preset, PRESETS)
    watch = _watch(watching)
    _train("diffusion", cohort, out, settings, subjects, seed, device, dry_run, json, watch, trackers)


@train.command
def stylegan(
    cohort: Path,
    *,
    out: Path,
    preset: str = "",
    settings: Annotated[StyleganSettings, Parameter(name="*", consume_multiple=True)] = StyleganSettings(),  # noqa: B008 - frozen
    subjects: Subjects = None,
    watching: Annotated[Watching, Parameter(name="*")] = Watching(),
    trackers: Annotated[TrackerSettings, Parameter(name="*", negative="")] = TrackerSettings(),  # noqa: B008 - frozen
    seed: Seed = 0,
    device: Device = "auto",
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Train a StyleGAN (Karras et al. 2020) with as many channels as the cohort has.

    Several processes, on one machine or more: accelerate launch --multi_gpu -m unalike train stylegan …

    Parameters
    ----------
    cohort
        Cohort folder.
    out
        Run folder to write, or to resume.
    preset
        Settings to begin with instead of the defaults; flags win. akbar2025: the paper's.
    """
    _check_preset(preset, STYLEGAN_PRESETS)
    if watching.watch_steps is not None:
        raise SettingsError("--watch-steps: a StyleGAN draws in one step. Leave it out.")
    watch = _watch(watching)
    _train("stylegan", cohort, out, settings, subjects, seed, device, dry_run, json, watch, trackers)


@train.command
def inversion(
    cohort: Path,
    *,
    out: Path,
    settings: Annotated[InversionSettings, Parameter(name="*", consume_multiple=True)] = InversionSettings(),  # noqa: B008 - frozen
    subjects: Subjects = None,
    watching: Annotated[Watching, Parameter(name="*")] = Watching(),
    trackers: Annotated[TrackerSettings, Parameter(name="*", negative="")] = TrackerSettings(),  # noqa: B008 - frozen
    seed: Seed = 0,
    device: Device = "auto",
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Teach a Stable Diffusion base a concept: textual inversion (Gal et al. 2023), or LoRA on the same base.

    The defaults are those of de Wilde et al. (2023).

    Parameters
    ----------
    cohort
        Cohort folder.
    out
        Run folder to write, or to resume.
    """
    watch = _watch(watching)
    if watch is not None and settings.private_noise:
        raise SettingsError("--watch-every: a choice among looks at patients is not private. Leave it or privacy out.")
    _train("inversion", cohort, out, settings, subjects, seed, device, dry_run, json, watch, trackers)


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
