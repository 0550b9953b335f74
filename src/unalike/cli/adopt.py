"""``unalike adopt``: a diffusers model that was trained elsewhere becomes a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from unalike.cli.output import Json, print_json


def adopt(
    model: Path,
    *,
    against: Path,
    out: Path,
    labels: Annotated[tuple[str, ...], Parameter(consume_multiple=True)] = (),
    json: Json = False,
) -> None:
    """Make a diffusers model that was trained elsewhere a run, to sample, guard and audit it like any other.

    That it was trained on this cohort's train images is your word: it cannot be checked.

    Parameters
    ----------
    model
        Folder of diffusers: unet (UNet2DModel), scheduler, and vqvae or vae (AutoencoderKL) if it diffuses latents.
        Weights as safetensors; pickles are not opened.
    against
        Cohort it was trained on, at its image size.
    out
        Run folder to write.
    labels
        Names of a class-conditional network's classes, in its order; one fewer if its last class means no label.
    """
    from unalike import folders
    from unalike.runs.adopt import adopt_model

    run = adopt_model(model=model, cohort=against, out=out, labels=labels)
    content = folders.read_header(run, kind="run").content
    if json:
        print_json({"run": run} | {name: content[name] for name in ("parameters", "train_images", "guidable")})
        return
    print(f"adopted: {content['parameters']:,} weights, taken as trained on {content['train_images']} images")
    if labels and not content["guidable"]:
        print("its table has no row for no label: leave --guidance at 1")
    print(f"{run}. Next: unalike sample {run} --count 128 --out …")
