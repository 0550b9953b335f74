"""``unalike latent``: films, style mixing and projections of StyleGAN runs."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from unalike.cli.output import Device, DryRun, Json, Seed, print_json, show_settings
from unalike.generators.stylegan.settings import ProjectionSettings
from unalike.records import estimate_from_json
from unalike.runs.latent import FilmSettings, MixSettings

latent = App(name="latent", help="What a StyleGAN run knows: films between samples, style mixing, projections.")

Seeds = Annotated[tuple[int, ...], Parameter(consume_multiple=True, negative="")]


@latent.command
def film(
    run: Path,
    *,
    seeds: Seeds,
    out: Path,
    settings: Annotated[FilmSettings, Parameter(name="*")] = FilmSettings(),  # noqa: B008 - frozen
    device: Device = "auto",
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Write a film through the samples of some seeds and back to the first; the first frame is that seed's sample.

    Parameters
    ----------
    run
        Run folder of a StyleGAN.
    seeds
        Two or more seeds, in the order of the film.
    out
        File to write: .gif, .png (animated) or .webp. All channels of a frame stand in a row.
    """
    from unalike.runs.latent import plan_film, write_film

    plan = plan_film(run=run, seeds=seeds, out=out, settings=settings, device=device)
    show_settings({"seeds": list(seeds), **asdict(settings)}, dry_run=dry_run, json_out=json)
    if dry_run:
        return
    made = write_film(plan)
    if json:
        print_json({"film": made, "frames": plan.count, "seeds": list(seeds)})
    else:
        print(f"{made}: {plan.count} frames. They are samples that no audit has looked at.")


@latent.command
def mix(
    run: Path,
    *,
    rows: Seeds,
    columns: Seeds,
    out: Path,
    settings: Annotated[MixSettings, Parameter(name="*")] = MixSettings(),  # noqa: B008 - frozen
    device: Device = "auto",
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Draw a style mixing sheet: each cell has its column's styles in some layers, and its row's elsewhere.

    Parameters
    ----------
    run
        Run folder of a StyleGAN.
    rows
        Seeds of the samples in the first column.
    columns
        Seeds of the samples in the first row.
    out
        PNG to write.
    """
    from unalike.runs.latent import plan_mix, write_mix

    plan = plan_mix(run=run, rows=rows, columns=columns, out=out, settings=settings, device=device)
    named = {"layers": f"{plan.layers.start}:{plan.layers.stop}", "sides": plan.sides}
    show_settings(
        {"rows": list(rows), "columns": list(columns), **asdict(settings), **named}, dry_run=dry_run, json_out=json
    )
    if dry_run:
        return
    made = write_mix(plan)
    if json:
        print_json({"sheet": made, "rows": list(rows), "columns": list(columns), **named})
    else:
        print(
            f"{made}: {len(rows)} × {len(columns)} mixtures; layers {named['layers']} ({named['sides']}) of "
            f"{plan.sampler.model.shape.layers} are the column's. They are samples that no audit has looked at."
        )


@latent.command
def project(
    run: Path,
    *,
    images: Path,
    out: Path,
    count: int = 0,
    settings: Annotated[ProjectionSettings, Parameter(name="*")] = ProjectionSettings(),  # noqa: B008 - frozen
    seed: Seed = 0,
    device: Device = "auto",
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Find the styles with which a run comes nearest to given images, and say how near that is.

    Parameters
    ----------
    run
        Run folder of a StyleGAN.
    images
        Samples folder, folder of pictures, or cohort. What is made of a cohort shows patients: keep it inside.
    out
        Folder to write: styles.safetensors, projections.png, and the distances in projection.json.
    count
        Only the first so many images; 0 for all.
    """
    from unalike import folders
    from unalike.runs.latent import plan_projection, write_projection

    plan = plan_projection(run=run, images=images, out=out, settings=settings, count=count, seed=seed, device=device)
    show_settings({**asdict(settings), "images": len(plan.targets.images)}, dry_run=dry_run, json_out=json)
    if dry_run:
        return
    made = write_projection(plan)
    content = folders.read_header(made, kind="projection").content
    if json:
        told = {name: content[name] for name in ("images", "source", "internal", "distance", "start", "distances")}
        print_json({"projection": made, **told})
        return
    distance, start = (estimate_from_json(content[name]) for name in ("distance", "start"))
    print(f"{made}: {content['images']} images, off by {distance} gray levels of 255; from the mean style, {start}.")
    if content["internal"]:
        print(f"{made} is internal: it shows patients, or copies of them, and is no samples folder.")
