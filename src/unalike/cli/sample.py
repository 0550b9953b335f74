"""``unalike sample``: draw synthetic images from a run."""

from __future__ import annotations

from dataclasses import asdict, fields
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from unalike.cli.output import Device, DryRun, Json, print_json, show_settings
from unalike.engine import is_first_process
from unalike.errors import SettingsError
from unalike.generators.diffusion.settings import SampleSettings
from unalike.runs.given import GivenSettings
from unalike.runs.settings import GuardSettings


def sample(
    run: Path,
    *,
    count: int,
    out: Path,
    first_seed: int = 0,
    settings: Annotated[SampleSettings, Parameter(name="*", consume_multiple=True)] = SampleSettings(),  # noqa: B008 - frozen
    truncation: float = 1.0,
    given: Annotated[GivenSettings, Parameter(name="*")] = GivenSettings(),  # noqa: B008 - frozen
    guard: Path | None = None,
    guard_level: float = 0.05,
    guard_patience: int = 10,
    rejected: Path | None = None,
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
    truncation
        Of a StyleGAN: below 1, samples are more typical and less varied (0 to 2).
    guard
        Cohort the run was trained on: samples that look like copies are rejected, and the next seeds drawn instead.
    guard_level
        p-value up to which a sample is rejected; so large a share of images that are no copies is, too.
    guard_patience
        At most so many samples are drawn for each that is wanted.
    rejected
        Samples folder for what the guard rejects, to audit it. It shows patients: keep it inside.
    """
    from unalike import folders
    from unalike.runs.families import read_run
    from unalike.runs.sample import check_order, draw_samples

    header = read_run(run)
    generator = str(header.content["generator"])
    wanted = _fit_settings(settings, truncation, generator=generator)
    guarding = GuardSettings(level=guard_level, patience=guard_patience)
    if guard is None and guarding != GuardSettings():
        raise SettingsError("--guard-level and --guard-patience are a guard's: give --guard COHORT.")
    from_given = None if given == GivenSettings() else given
    check_order(
        header=header, out=out, count=count, first_seed=first_seed, given=from_given, guard=guard, rejected=rejected
    )
    show_settings(wanted, dry_run=dry_run, json_out=json)
    if dry_run:
        return
    samples = draw_samples(
        run=run,
        out=out,
        count=count,
        first_seed=first_seed,
        settings=wanted,
        device=device,
        given=from_given,
        guard=guard,
        guard_settings=guarding,
        rejected=rejected,
    )
    if not is_first_process():
        return
    told = folders.read_header(samples, kind="samples").content.get("guard")
    if json:
        print_json({"samples": samples, "count": count, "generator": generator} | ({"guard": told} if told else {}))
        return
    if told:
        print(f"guard: {told['rejected']} of {told['drawn']} samples looked like copies and were rejected")
    print(f"{samples}: {count} images. Next: unalike audit {samples} --against COHORT --out …")


def _fit_settings(settings: SampleSettings, truncation: float, *, generator: str) -> Any:
    """The settings that this kind of generator has; one that it has not is refused."""
    from unalike.runs.families import find_family

    kind = find_family(generator).draw_settings
    known = {field.name for field in fields(kind)}
    plain = asdict(SampleSettings()) | {"truncation": 1.0}
    given = asdict(settings) | {"truncation": truncation}
    alien = [name for name, value in given.items() if name not in known and value != plain[name]]
    if alien:
        names = ", ".join(f"--{name.replace('_', '-')}" for name in alien)
        raise SettingsError(f"{names}: not for this run, which is a {generator}. Leave it out.")
    return kind(**{name: value for name, value in given.items() if name in known})
