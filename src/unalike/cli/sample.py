"""``unalike sample``: draw synthetic images from a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from unalike.cli.output import Device, DryRun, Json, print_json, show_settings
from unalike.errors import SettingsError
from unalike.generators.diffusion.settings import SampleSettings
from unalike.generators.settings import DrawSettings


def sample(
    run: Path,
    *,
    count: int,
    out: Path,
    first_seed: int = 0,
    settings: Annotated[SampleSettings, Parameter(name="*")] = SampleSettings(),  # noqa: B008 - frozen
    device: Device = "auto",
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Draw synthetic images; each has a random stream of its own, so any can be drawn again alone.

    Parameters
    ----------
    run
        Run folder.
    count
        Number of images to draw.
    out
        Samples folder to write, or to resume.
    first_seed
        Seed of the first image; the others follow. --first-seed 17 --count 1 draws sample 17 again.
    """
    from unalike import folders
    from unalike.generators.runs import draw_samples

    header = folders.read_header(run, kind="run")
    wanted = _fit_settings(settings, generator=header.content["generator"])
    show_settings(wanted, dry_run=dry_run, json_out=json)
    if dry_run:
        return
    samples = draw_samples(run=run, out=out, count=count, first_seed=first_seed, settings=wanted, device=device)
    if json:
        print_json({"samples": samples, "count": count, "generator": header.content["generator"]})
    else:
        print(f"{samples}: {count} images. Next: unalike audit {samples} --against COHORT --out …")


def _fit_settings(settings: SampleSettings, *, generator: str) -> DrawSettings:
    """The settings that this generator has; one that belongs to diffusion alone is refused elsewhere."""
    if generator == "diffusion":
        return settings
    plain = DrawSettings(batch_size=settings.batch_size)
    if settings != SampleSettings(batch_size=settings.batch_size):
        raise SettingsError(f"--steps, --sampler and --precision are for diffusion; this run is a {generator}.")
    return plain
