"""The door to every generator: train one into a run folder, draw samples from a run into a samples folder.

Both resume: the same command after an interruption goes on where it stopped, and ends in the same pixels.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from unalike import folders
from unalike.cohort.store import ImageWriter, open_images
from unalike.engine import show_progress
from unalike.errors import FolderError, InputError, SettingsError
from unalike.folders import Header
from unalike.generators.data import PixelScale, open_train_images
from unalike.generators.settings import DrawSettings, resolve_settings
from unalike.records import Pixels

KINDS = ("diffusion", "gaussian", "memorizer")
PARTS = "parts"


class Sampler(Protocol):
    """What draws: one method."""

    def draw(self, seeds: Sequence[int]) -> Pixels:
        """Pixels (len(seeds), C, H, W); a sample depends on its seed alone."""


@dataclass(frozen=True)
class Family:
    """The pieces of one kind of generator."""

    settings: type[Any]
    draw_settings: type[Any]
    train: Callable[..., dict[str, Any]]
    open: Callable[..., Sampler]


def find_family(kind: str) -> Family:
    """The pieces of generator ``kind``; only its own modules are imported.

    Raises `SettingsError` listing the kinds if there is none of this name.
    """
    if kind == "gaussian":
        from unalike.generators.controls import gaussian

        return Family(gaussian.GaussianSettings, DrawSettings, gaussian.train_gaussian, gaussian.open_gaussian)
    if kind == "memorizer":
        from unalike.generators.controls import memorizer

        return Family(memorizer.MemorizerSettings, DrawSettings, memorizer.train_memorizer, memorizer.open_memorizer)
    if kind == "diffusion":
        from unalike.generators.diffusion import sample, train
        from unalike.generators.diffusion.settings import DiffusionSettings, SampleSettings

        return Family(DiffusionSettings, SampleSettings, train.train_diffusion, sample.open_diffusion)
    raise SettingsError(f"there is no generator {kind!r}. There are: {', '.join(KINDS)}.")


def train_generator(
    *,
    kind: str,
    cohort: str | Path,
    out: str | Path,
    settings: Any = None,
    subjects: int | None = None,
    seed: int = 0,
    device: str = "auto",
) -> Path:
    """Train a generator on the ``train`` images of a cohort and write a run folder; returns its path.

    ``kind`` is ``diffusion``, ``gaussian`` or ``memorizer``. ``settings`` is the kind's dataclass, a mapping
    of its fields, or None for the defaults. ``subjects`` trains on so many subjects, drawn with ``seed``
    (None: all). Holdout images are never read. Interrupted, the same call resumes at the last checkpoint.

    Raises `SettingsError` for an unknown kind or setting, too many subjects, or images that do not fit;
    `FolderError` if the cohort is no cohort or ``out`` is taken; `NonFiniteLossError` if training diverges.
    """
    out = Path(out)
    family = find_family(kind)
    settings = resolve_settings(family.settings, settings)
    _check_seed("seed", seed)
    opened = open_images(cohort)
    images = open_train_images(opened, subjects=subjects, seed=seed)
    identity = {
        "generator": kind,
        "cohort": opened.digest,
        "subjects": subjects,
        "seed": seed,
        "settings": asdict(settings),
    }
    resumed = folders.begin_folder(out, kind="run", settings=identity, resumable=True)
    try:
        about = family.train(images, out=out, settings=settings, seed=seed, device=device)
    except InputError:
        if not resumed:
            folders.give_up_folder(out)
        raise
    height, width = opened.size
    content = {
        "generator": kind,
        "channels": list(opened.channels),
        "height": height,
        "width": width,
        "dtype": opened.dtype.name,
        "highest": images.scale.highest,
        "levels": images.scale.levels,
        "subjects": subjects,
        "subject_seed": seed,
        "train_images": len(images),
        **about,
        "model_digest": digest_model(out),
    }
    inputs = {"cohort": opened.digest}
    folders.finish_folder(out, kind="run", settings=asdict(settings), seed=seed, inputs=inputs, content=content)
    return out


def draw_samples(
    *,
    run: str | Path,
    out: str | Path,
    count: int,
    first_seed: int = 0,
    settings: Any = None,
    device: str = "auto",
) -> Path:
    """Draw ``count`` samples of a run, from seed ``first_seed`` on, into a samples folder; returns its path.

    A sample depends on the run, its seed and the sampler alone: not on ``count`` or the batch size.
    ``settings`` is the kind's dataclass (`DrawSettings`, or `SampleSettings` for diffusion), a mapping of its
    fields, or None. Interrupted, the same call keeps the batches that were finished.

    Raises `SettingsError` for an unknown or unfitting setting; `FolderError` if the run is no finished run,
    its model was changed, or ``out`` is taken.
    """
    run, out = Path(run), Path(out)
    header = folders.read_header(run, kind="run")
    content = header.content
    family = find_family(str(content["generator"]))
    settings = resolve_settings(family.draw_settings, settings)
    _check_seed("first_seed", first_seed)
    if count < 1:
        raise SettingsError(f"--count {count}: draw at least 1 sample.")
    if digest_model(run) != content["model_digest"]:
        raise FolderError(f"{run / folders.MODEL} is not the model that {header.path.name} describes. Train it again.")
    sampler = family.open(run, content=content, settings=settings, device=device)
    digest = folders.digest_of(run, kind="run")
    identity = {"run": digest, "count": count, "first_seed": first_seed, "settings": asdict(settings)}
    folders.begin_folder(out, kind="samples", settings=identity, resumable=True)
    seeds = range(first_seed, first_seed + count)
    batches = [seeds[begin : begin + settings.batch_size] for begin in range(0, count, settings.batch_size)]
    with show_progress(f"sample {content['generator']}", total=count, unit="images") as progress:
        for batch in batches:
            _draw_part(out, sampler, batch)
            progress.advance(len(batch))
    written = _assemble(out, batches, header)
    about = {name: content[name] for name in ("generator", "subjects", "subject_seed", "holds_training_images")}
    precision = getattr(sampler, "precision", None)
    if precision is not None:
        about["precision"] = precision
    folders.finish_folder(
        out,
        kind="samples",
        settings=asdict(settings),
        seed=first_seed,
        inputs={"run": digest, "cohort": header.inputs["cohort"]},
        content={**written, **about},
    )
    return out


def _draw_part(out: Path, sampler: Sampler, seeds: Sequence[int]) -> None:
    """Draw one batch and keep it under ``out``, unless it is there from an interrupted drawing."""
    place = _part(out, seeds)
    if _is_whole(place, len(seeds)):
        return
    place.parent.mkdir(exist_ok=True)
    pixels = sampler.draw(seeds)
    temporary = place.with_suffix(".partial")
    with temporary.open("wb") as stream:
        np.save(stream, pixels, allow_pickle=False)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(place)


def _is_whole(place: Path, count: int) -> bool:
    """Whether a part is there and can be read; a damaged one is drawn again."""
    try:
        return len(np.load(place, allow_pickle=False)) == count
    except (OSError, ValueError, EOFError):
        return False


def _part(out: Path, seeds: Sequence[int]) -> Path:
    return out / PARTS / f"{seeds[0]:010d}.npy"


def _assemble(out: Path, batches: Sequence[Sequence[int]], header: Header) -> dict[str, Any]:
    """Write the parts as images and records, take the parts away, and return the content for the header."""
    scale = PixelScale.from_content(header.content)
    height, width = int(header.content["height"]), int(header.content["width"])
    writer = ImageWriter(out, channels=scale.channels, height=height, width=width, dtype=np.dtype(scale.dtype))
    for batch in batches:
        pixels = np.load(_part(out, batch), allow_pickle=False)
        for seed, image in zip(batch, pixels, strict=True):
            record = {"subject": f"sample-{seed:06d}", "source": "run", "role": "synthetic", "seed": seed}
            writer.append(image, record)
    written = writer.close()
    shutil.rmtree(out / PARTS)
    return written


def digest_model(run: Path) -> str:
    """SHA-256 over the names and digests of the files of ``run``/model."""
    model = run / folders.MODEL
    files = sorted(path for path in model.rglob("*") if path.is_file())
    lines = [f"{path.relative_to(model).as_posix()} {folders.digest_file(path)}\n" for path in files]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _check_seed(name: str, seed: int) -> None:
    if not 0 <= seed < 2**62:
        raise SettingsError(f"--{name.replace('_', '-')} {seed}: give a whole number from 0 to below 2 to the 62.")
