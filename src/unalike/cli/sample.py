"""``unalike sample``: draw synthetic images from a run."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from unalike.cli.output import Device, DryRun, Json, print_json, show_settings
from unalike.engine import is_first_process
from unalike.errors import SettingsError
from unalike.generators.diffusion.settings import SamplerName
from unalike.generators.settings import Precision
from unalike.runs.given import GivenSettings
from unalike.runs.settings import GuardSettings


@dataclass(frozen=True)
class SampleOptions:
    """How samples are drawn; what is not given is as the kind of generator has it."""

    batch_size: int | None = None
    """Samples drawn and kept together, so that an interrupted drawing loses at most these; changes no pixel. Default
    64."""

    steps: int | None = None
    """Denoising steps, of diffusion and inversion (default 50 and 100)."""

    sampler: SamplerName | None = None
    """ddim: deterministic given the first noise (Song et al. 2021). ddpm: fresh noise at each step (Ho et al. 2020).
    dpm++: DPM-Solver++ (Lu et al. 2022). euler, euler-a (ancestral), heun: Karras et al. (2022). Default ddim for
    diffusion, euler-a for inversion."""

    label: str | None = None
    """Class to draw, of a run with classes; by default each sample's own, in the cohort's proportions."""

    attributes: tuple[str, ...] | None = None
    """Attributes to draw, as name=value, of a diffusion run conditioned on them."""

    guidance: float | None = None
    """Weight of classifier-free guidance (Ho and Salimans 2021): 1 is the conditional model, 0 the unconditional one,
    more exaggerates the condition. Default 1 for diffusion, 2 for inversion."""

    strength: float | None = None
    """How much of the way from noise a given image goes again: near 0 it stays, at 1 nothing of it does. Default 1."""

    truncation: float | None = None
    """Of a StyleGAN: below 1, samples are more typical and less varied (0 to 2). Default 1."""

    prompt: str | None = None
    """Of inversion, what to draw: concepts composed with AND, each with a weight, as in
    "0.25*<healthy> AND 0.75*<ill>". Default the run's own token, or each class as often as the cohort has it."""

    morph: tuple[str, str] | None = None
    """Of inversion, two prompts between which the samples lie, all from one noise."""

    embeddings: tuple[str, ...] | None = None
    """Of inversion, files of further concepts that prompts may name."""

    base: str | None = None
    """Of inversion, where the base is now, if not where it was at training."""

    base_config: str | None = None
    """Of inversion, where the layout of a base in a single file is now."""

    ema_decay: float | None = None
    """Weight average to draw from, one of the run's ema_decays; default the one that was kept as the model."""

    precision: Precision | None = None
    """Number format inside the network: auto, the default, takes bfloat16 where the processor has it in hardware."""


def sample(
    run: Path,
    *,
    count: int,
    out: Path,
    first_seed: int = 0,
    options: Annotated[SampleOptions, Parameter(name="*", consume_multiple=True)] = SampleOptions(),
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
    wanted = _fit_settings(options, generator=generator)
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


def _fit_settings(options: SampleOptions, *, generator: str) -> Any:
    """The settings of this kind of generator; an option that it has not is refused."""
    from unalike.runs.families import find_family

    kind = find_family(generator).draw_settings
    known = {field.name for field in fields(kind)}
    given = {name: value for name, value in asdict(options).items() if value is not None}
    alien = [f"--{name.replace('_', '-')}" for name in given if name not in known]
    if alien:
        raise SettingsError(f"{', '.join(alien)}: not for a run of {generator}. Leave it out.")
    return kind(**given)
