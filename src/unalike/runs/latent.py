"""What a StyleGAN run knows between and behind its samples: films, style mixing sheets, projections of given images.

Nothing here is a samples folder: no audit looks at a film or a sheet, and a projection may show patients.

Importing this module loads no torch, so that the command line can read the settings.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import itertools
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image
from safetensors.numpy import save_file

from unalike import folders
from unalike.cohort.store import open_images
from unalike.engine import show_progress, tell
from unalike.errors import FolderError, InputError, SettingsError
from unalike.folders import Header
from unalike.generators.settings import require, resolve_settings
from unalike.images.contact import draw_contact_sheet
from unalike.records import Pixels, TextArray
from unalike.runs.families import check_seed, read_run
from unalike.runs.given import read_images
from unalike.seeds import generator_for
from unalike.stats.intervals import estimate_mean

if TYPE_CHECKING:
    import torch

    from unalike.generators.stylegan.model import StyleganModel
    from unalike.generators.stylegan.sample import StyleganSampler
    from unalike.generators.stylegan.settings import ProjectionSettings

FILMS = {".gif": "GIF", ".png": "PNG", ".webp": "WEBP"}
SHEETS = {".png": "PNG"}
FRAME_MS = 40  # milliseconds that a frame is shown: GIF counts in hundredths of a second
LONGEST_SIDE = 16_383  # pixels, of WebP; GIF's is longer
GAP = 2  # white pixels between the cells of a sheet, before it is enlarged
# Karras et al. (2019, figure 3): coarse styles belong to sides of 4 to 8 pixels, middle to 16 to 32, fine to the rest.
# The smallest side is 4 to 7 here, so that these are always two, two, and all further resolutions.
BANDS = {"coarse": (0, 16), "middle": (16, 64), "fine": (64, 2**16)}
STYLES = "styles.safetensors"
PROJECTIONS = "projections.png"
DRAWN, PER_ROW = 64, 8  # images on the contact sheet of a projection, and in one of its rows

_Gray = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class FilmSettings:
    """How a film goes from sample to sample."""

    frames: int = 24
    """Frames from one seed's sample to the next (count); 25 are shown in a second."""

    truncation: float = 1.0
    """ψ of the truncation trick, as in unalike sample: below 1 samples are more typical and less varied."""

    label: str = ""
    """Class to draw, of a run conditioned on labels; each seed's own if not given."""

    layer_noise: Literal["fixed", "none"] = "fixed"
    """Noise of the layers, the same for all frames, so that nothing flickers: fixed that of the first seed, or none."""

    space: Literal["w", "z"] = "w"
    """Where the way goes: w along straight lines between the styles, z along great circles between the latents."""

    scale: int = 4
    """Pixels along a side that one pixel becomes."""

    def __post_init__(self) -> None:
        """Refuse values that make no sense, naming the setting."""
        require(self.frames >= 1, "frames", self.frames, "at least 1")
        require(0 <= self.truncation <= 2, "truncation", self.truncation, "a number from 0 to 2")
        require(self.layer_noise in ("fixed", "none"), "layer_noise", self.layer_noise, "fixed or none")
        require(self.space in ("w", "z"), "space", self.space, "w or z")
        require(self.scale >= 1, "scale", self.scale, "at least 1")


@dataclass(frozen=True)
class MixSettings:
    """What a cell of a style mixing sheet takes from its column."""

    layers: str = "coarse"
    """Styles that are the column's: coarse (sides of 4 to 8 pixels), middle (16 to 32), fine (the rest), or layers A:B
    counted from 0, A to B - 1; all others are the row's."""

    scale: int = 4
    """Pixels along a side that one pixel becomes."""

    def __post_init__(self) -> None:
        """Refuse values that make no sense, naming the setting."""
        require(self.scale >= 1, "scale", self.scale, "at least 1")


@dataclass(frozen=True)
class Film:
    """A film that has been checked: its run is open, nothing is drawn or written."""

    sampler: StyleganSampler
    header: Header
    seeds: tuple[int, ...]
    settings: FilmSettings
    out: Path

    @property
    def count(self) -> int:
        """Number of frames."""
        return len(self.seeds) * self.settings.frames

    def draw(self) -> Pixels:
        """All frames (count, C, H, W); frame k · ``frames`` shows seed k, and the last leads back to the first.

        Frame 0 is the sample of the first seed bit for bit, unless ``layer_noise`` is none. The others have the
        noise of the first seed, so that the further key frames have their seed's styles, but not quite its pixels.
        """
        import torch

        with torch.inference_mode(), show_progress("film", total=self.count, unit="frames") as progress:
            w = _styles_along_z(self) if self.settings.space == "z" else _styles_along_w(self)
            ws = w[:, None].expand(-1, self.sampler.model.shape.layers, -1)
            noise = _filled(self.sampler, self.seeds[:1], self.sampler.noise)
            noise = torch.zeros_like(noise) if self.settings.layer_noise == "none" else noise
            parts = []
            for rows in _groups(self.count, _group_size(self.sampler)):
                drawn = self.sampler.model.synthesize(ws[rows], noise.expand(len(rows), -1).contiguous())
                parts.append(self.sampler.model.decode(drawn))
                progress.advance(min(len(rows), self.count - rows[0]))
        return np.concatenate(parts)[: self.count]


def make_film(
    *,
    run: str | Path,
    seeds: Sequence[int],
    out: str | Path,
    settings: FilmSettings | dict[str, Any] | None = None,
    device: str = "auto",
) -> Path:
    """Write a film through the samples of these seeds and back to the first; returns its path.

    ``out`` ends in .gif, .png (animated PNG) or .webp. A frame shows all channels in a row, masks as their gray levels;
    colour only where the channels are red, green and blue. See `Film.draw` for what is identical with samples.

    Interpolation goes through W unless ``settings`` say otherwise: the mapping network has unbent there what Z, where
    every direction must be equally likely, winds up, so that a straight line changes what it must and little else
    (Karras et al. 2019, section 4: shorter perceptual paths in W than in Z).

    Raises `SettingsError` for another kind of run, fewer than two seeds, an unknown label or another suffix;
    `FolderError` if the run is no finished run or ``out`` is taken.
    """
    film = plan_film(run=run, seeds=seeds, out=out, settings=settings, device=device)
    return write_film(film)


def plan_film(
    *,
    run: str | Path,
    seeds: Sequence[int],
    out: str | Path,
    settings: FilmSettings | dict[str, Any] | None = None,
    device: str = "auto",
) -> Film:
    """Check everything `make_film` will be asked for, and open the run; nothing is drawn or written."""
    settings = resolve_settings(FilmSettings, settings)
    header = _read_stylegan(Path(run))
    _check_seeds("seeds", seeds, least=2)
    out = _check_file(Path(out), Path(run), FILMS)
    _check_sides(header, columns=1, rows=1, scale=settings.scale)
    sampler = _open(Path(run), header, device, truncation=settings.truncation, label=settings.label)
    if settings.space == "z":
        _check_one_class(sampler, seeds)
    return Film(sampler, header, tuple(seeds), settings, out)


def write_film(film: Film) -> Path:
    """Draw a film and write it, whole or not at all; returns its path."""
    frames = [_enlarge(picture, film.settings.scale) for picture in _pictures_of(film.draw(), film.header)]
    options: dict[str, Any] = {"save_all": True, "append_images": frames[1:], "duration": FRAME_MS, "loop": 0}
    if film.out.suffix.lower() == ".webp":
        options |= {"lossless": True}
    return _write_picture(frames[0], film.out, FILMS[film.out.suffix.lower()], options)


@dataclass(frozen=True)
class MixedSheet:
    """The images of a style mixing sheet: those of the rows (r, C, H, W), of the columns (c, C, H, W), and ``cells``
    (r, c, C, H, W), each with its column's styles in some layers and its row's styles and noise elsewhere."""

    rows: Pixels
    columns: Pixels
    cells: Pixels


@dataclass(frozen=True)
class Mix:
    """A sheet that has been checked: its run is open, nothing is drawn or written. ``layers`` are the column's."""

    sampler: StyleganSampler
    header: Header
    rows: tuple[int, ...]
    columns: tuple[int, ...]
    layers: range
    settings: MixSettings
    out: Path

    @property
    def sides(self) -> str:
        """Sides of the resolutions that the column's layers belong to, in words."""
        return _sides(self.sampler.model, self.layers)

    def draw(self) -> MixedSheet:
        """All images of the sheet. Those of rows and columns are samples of these seeds, bit for bit."""
        import torch

        sampler, count = self.sampler, len(self.rows) * len(self.columns)
        size = _group_size(sampler)
        first, second = np.divmod(np.arange(count), len(self.columns))
        parts = []
        with torch.inference_mode(), show_progress("mixing", total=count, unit="images") as progress:
            own, others = (_filled(sampler, seeds, sampler.styles) for seeds in (self.rows, self.columns))
            noise = _filled(sampler, self.rows, sampler.noise)
            chosen = torch.zeros(own.shape[1], 1, dtype=torch.bool)
            chosen[list(self.layers)] = True
            for places in _groups(count, size):
                row, column = first[places].tolist(), second[places].tolist()
                ws = torch.where(chosen.to(own.device), others[column], own[row])
                parts.append(sampler.model.decode(sampler.model.synthesize(ws, noise[row])))
                progress.advance(min(size, count - places[0]))
        cells = np.concatenate(parts)[:count]
        return MixedSheet(
            rows=sampler.draw(self.rows),
            columns=sampler.draw(self.columns),
            cells=cells.reshape(len(self.rows), len(self.columns), *cells.shape[1:]),
        )


def make_mix(
    *,
    run: str | Path,
    rows: Sequence[int],
    columns: Sequence[int],
    out: str | Path,
    settings: MixSettings | dict[str, Any] | None = None,
    device: str = "auto",
) -> Path:
    """Write a style mixing sheet (Karras et al. 2019, figure 3) as a PNG; returns its path.

    The first column shows the samples of the seeds ``rows``, the first row those of ``columns``; each cell has the
    styles of its column in the layers of ``settings`` and those of its row elsewhere, with the noise of its row.

    Raises `SettingsError` for another kind of run, no or bad seeds, layers that there are not, or another suffix;
    `FolderError` if the run is no finished run or ``out`` is taken.
    """
    return write_mix(plan_mix(run=run, rows=rows, columns=columns, out=out, settings=settings, device=device))


def plan_mix(
    *,
    run: str | Path,
    rows: Sequence[int],
    columns: Sequence[int],
    out: str | Path,
    settings: MixSettings | dict[str, Any] | None = None,
    device: str = "auto",
) -> Mix:
    """Check everything `make_mix` will be asked for, and open the run; nothing is drawn or written."""
    settings = resolve_settings(MixSettings, settings)
    header = _read_stylegan(Path(run))
    _check_seeds("rows", rows, least=1)
    _check_seeds("columns", columns, least=1)
    out = _check_file(Path(out), Path(run), SHEETS)
    _check_sides(header, columns=len(columns) + 1, rows=len(rows) + 1, scale=settings.scale)
    sampler = _open(Path(run), header, device)
    layers = _find_layers(settings.layers, sampler.model)
    return Mix(sampler, header, tuple(rows), tuple(columns), layers, settings, out)


def write_mix(mix: Mix) -> Path:
    """Draw a sheet and write it, whole or not at all; returns its path."""
    sheet = mix.draw()
    top = [None, *_pictures_of(sheet.columns, mix.header)]
    lines = [top]
    for source, cells in zip(_pictures_of(sheet.rows, mix.header), sheet.cells, strict=True):
        lines.append([source, *_pictures_of(cells, mix.header)])
    one = lines[1][0]
    assert one is not None  # noqa: S101
    size = (len(top) * (one.width + GAP) - GAP, len(lines) * (one.height + GAP) - GAP)
    whole = Image.new(one.mode, size, "white")
    for (row, line), column in itertools.product(enumerate(lines), range(len(top))):
        cell = line[column]
        if cell is not None:
            whole.paste(cell, (column * (one.width + GAP), row * (one.height + GAP)))
    return _write_picture(_enlarge(whole, mix.settings.scale), mix.out, "PNG", {})


@dataclass(frozen=True)
class Targets:
    """Images (n, C, H, W) to project, and whose each is (n,). ``internal``: they show, or may copy, patients."""

    images: Pixels
    groups: TextArray
    source: str
    digest: str
    internal: bool


@dataclass(frozen=True)
class ProjectionPlan:
    """A projection that has been checked: run and images are open, nothing is computed or written."""

    model: StyleganModel
    header: Header
    targets: Targets
    settings: ProjectionSettings
    seed: int
    out: Path


def project_folder(
    *,
    run: str | Path,
    images: str | Path,
    out: str | Path,
    settings: ProjectionSettings | dict[str, Any] | None = None,
    count: int = 0,
    seed: int = 0,
    device: str = "auto",
) -> Path:
    """Find the styles with which a run comes nearest to given images, and write a projection folder; returns its path.

    ``images`` is a samples folder, a folder of pictures, or a cohort; ``count`` takes only the first of its images
    (0: all). What is made of a cohort, or of samples that hold training images, shows patients: its header says
    ``internal``. No other verb takes a projection folder for samples.

    The folder holds ``styles.safetensors`` (styles: (n, layers, latent), float32, to be drawn without layer noise),
    ``projections.png`` (the first images above what the run makes of them) and the header, with all distances in gray
    levels of 255 and their mean with its interval (subjects are resampled).

    Raises `SettingsError` for another kind of run or a bad setting, `InputError` for images that do not fit the run,
    `FolderError` if the run is no finished run or ``out`` is taken.
    """
    return write_projection(
        plan_projection(run=run, images=images, out=out, settings=settings, count=count, seed=seed, device=device)
    )


def plan_projection(
    *,
    run: str | Path,
    images: str | Path,
    out: str | Path,
    settings: ProjectionSettings | dict[str, Any] | None = None,
    count: int = 0,
    seed: int = 0,
    device: str = "auto",
) -> ProjectionPlan:
    """Check everything `project_folder` will be asked for, open the run and read the images; nothing is written."""
    from unalike.generators.stylegan.settings import ProjectionSettings

    settings = resolve_settings(ProjectionSettings, settings)
    header = _read_stylegan(Path(run))
    check_seed("seed", seed)
    require(count >= 0, "count", count, "0 (all) or more")
    out = Path(out)
    for place in (Path(run), Path(images)):
        _refuse_inside(out, place)
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not (out / folders.UNFINISHED).is_file())):
        raise FolderError(f"{out} exists already and is not empty. Choose another --out or remove it.")
    targets = _read_targets(Path(images), header, count)
    return ProjectionPlan(_open(Path(run), header, device).model, header, targets, settings, seed, out)


def write_projection(plan: ProjectionPlan) -> Path:
    """Project the images of a plan and write the folder; what fails leaves nothing behind. Returns its path."""
    from unalike.generators.stylegan.project import project_images

    targets, header = plan.targets, plan.header
    inputs = {"run": folders.digest_of(header.path.parent, kind="run"), targets.source: targets.digest}
    count = len(targets.images)
    if targets.internal:
        tell(f"{plan.out} will show patients, or copies of them: keep it inside, and give nothing of it away.")
    with folders.new_folder(plan.out, kind="projection", settings=inputs | asdict(plan.settings)):
        with show_progress("projection", total=count, unit="images") as progress:
            found = project_images(
                plan.model, targets.images, settings=plan.settings, seed=plan.seed, progress=progress.advance
            )
        random = generator_for(plan.seed, "projection-interval")
        content = {
            "internal": targets.internal,
            "source": targets.source,
            "images": count,
            **{name: header.content[name] for name in ("channels", "height", "width", "dtype")},
            "layers": found.styles.shape[1],
            "latent": found.styles.shape[2],
            "distance": estimate_mean(found.distances, targets.groups, random=random),
            "start": estimate_mean(found.start, targets.groups, random=random),
            "distances": found.distances,
            "starts": found.start,
        }
        save_file({"styles": np.ascontiguousarray(found.styles, np.float32)}, plan.out / STYLES)
        sheet = _draw_projections(targets.images, found.images, header)
        sheet.save(plan.out / PROJECTIONS, format="PNG")
        folders.finish_folder(
            plan.out,
            kind="projection",
            settings=asdict(plan.settings) | {"count": count},
            seed=plan.seed,
            inputs=inputs,
            content=content | {"styles_digest": folders.digest_file(plan.out / STYLES)},
        )
    return plan.out


def _read_stylegan(run: Path) -> Header:
    """The header of a StyleGAN run whose model is as it was left."""
    header = read_run(run)
    kind = header.content["generator"]
    if kind != "stylegan":
        raise SettingsError(f"{run} is a {kind} run; films, mixing and projections need stylegan: train one.")
    if folders.digest_tree(run / folders.MODEL) != header.content["model_digest"]:
        raise FolderError(f"{run / folders.MODEL} is not the model that {header.path.name} describes. Train it again.")
    return header


def _open(run: Path, header: Header, device: str, *, truncation: float = 1.0, label: str = "") -> StyleganSampler:
    from unalike.generators.stylegan.sample import open_stylegan
    from unalike.generators.stylegan.settings import StyleganDrawSettings

    settings = StyleganDrawSettings(truncation=truncation, label=label)
    return open_stylegan(run, content=header.content, settings=settings, device=device)


def _check_seeds(name: str, seeds: Sequence[int], *, least: int) -> None:
    if len(seeds) < least:
        raise SettingsError(f"--{name}: give at least {least}, such as --{name} 3 17 25.")
    for seed in seeds:
        check_seed(name, seed)


def _check_file(out: Path, run: Path, suffixes: dict[str, str]) -> Path:
    """``out``, which is to be written: of a known suffix, free, and not in the run."""
    if out.suffix.lower() not in suffixes:
        raise SettingsError(f"--out {out}: give a name that ends in {' or '.join(suffixes)}.")
    _refuse_inside(out, run)
    if out.exists():
        raise FolderError(f"{out} exists already. Choose another --out or remove it.")
    return out


def _refuse_inside(out: Path, place: Path) -> None:
    if out.resolve().is_relative_to(place.resolve()):
        raise SettingsError(f"{out} lies in {place}. Choose an --out beside it.")


def _check_sides(header: Header, *, columns: int, rows: int, scale: int) -> None:
    """Refuse a picture that no file could hold."""
    content = header.content
    across = 1 if _is_colour(content["channels"]) else len(content["channels"])
    width = columns * (across * int(content["width"]) + GAP) * scale
    height = rows * (int(content["height"]) + GAP) * scale
    if max(width, height) > LONGEST_SIDE:
        raise SettingsError(
            f"--scale {scale}: a picture of {width} × {height} pixels is too large, {LONGEST_SIDE:,} a side is the "
            "limit. Give less."
        )


def _check_one_class(sampler: StyleganSampler, seeds: Sequence[int]) -> None:
    classes = sorted({sampler.label_of(seed) for seed in seeds})
    if len(classes) > 1:
        raise SettingsError(
            f"--space z: these seeds have the classes {', '.join(classes)}, and no way in Z leads from one to another. "
            "Give --label or --space w."
        )


# The network works on groups of a fixed size, the last filled up, as in the sampler: other shapes round otherwise.


def _group_size(sampler: StyleganSampler) -> int:
    from unalike.generators.stylegan.sample import GROUP

    return GROUP.get(sampler.model.place.type, 64)


def _groups(count: int, size: int) -> Iterator[list[int]]:
    """Positions 0 to ``count`` − 1 in groups of ``size``, the last one filled up with the last position."""
    for begin in range(0, count, size):
        yield [min(place, count - 1) for place in range(begin, begin + size)]


def _filled(sampler: StyleganSampler, seeds: Sequence[int], of: Any) -> torch.Tensor:
    """What ``of`` (styles or noise of the sampler) gives for these seeds (len(seeds), …)."""
    import torch

    parts = [of([seeds[place] for place in rows]) for rows in _groups(len(seeds), _group_size(sampler))]
    return torch.cat(parts)[: len(seeds)]


def _along(count: int, frames: int) -> tuple[list[int], list[int], list[float]]:
    """Of each frame: the key before it, the key after it, and how far it is on the way (0 to below 1)."""
    places = [divmod(frame, frames) for frame in range(count * frames)]
    return [key for key, _ in places], [(key + 1) % count for key, _ in places], [n / frames for _, n in places]


def _styles_along_w(film: Film) -> torch.Tensor:
    """Styles (count, latent) on straight lines between those of the seeds; a key's own are exact."""
    import torch

    keys = _filled(film.sampler, film.seeds, film.sampler.styles)[:, 0]
    before, after, share = _along(len(film.seeds), film.settings.frames)
    return torch.lerp(keys[before], keys[after], torch.tensor(share, device=keys.device)[:, None])


def _styles_along_z(film: Film) -> torch.Tensor:
    """Styles (count, latent) of latents on great circles between those of the seeds, truncated.

    Lengths do not matter: the mapping network begins with the projection onto the sphere.
    """
    import torch

    from unalike.generators.stylegan.sample import draw_normal

    sampler, model = film.sampler, film.sampler.model
    latents = torch.stack([draw_normal(seed, "latent", model.shape.latent) for seed in film.seeds])
    before, after, share = _along(len(film.seeds), film.settings.frames)
    z = _slerp(latents[before], latents[after], torch.tensor(share)[:, None]).to(model.place)
    label = sampler.label_of(film.seeds[0])
    parts = []
    for rows in _groups(film.count, _group_size(sampler)):
        w: torch.Tensor = model.network.mapping(z[rows], model.one_hot([label] * len(rows)))
        if sampler.centres is not None:
            index = model.labels.index(label) if model.labels else 0
            w = sampler.centres[[index] * len(rows)].lerp(w, film.settings.truncation)
        parts.append(w)
    return torch.cat(parts)[: film.count]


def _slerp(a: torch.Tensor, b: torch.Tensor, share: torch.Tensor) -> torch.Tensor:
    """Directions between a and b (n, latent), the angle growing evenly with ``share`` (n, 1) from 0 to 1.

    Exactly a at 0 (Shoemake 1985). Where both point the same way, or opposite ways and no circle is shortest, the line
    between them is taken.
    """
    import torch

    lengths = a.double().norm(dim=1, keepdim=True), b.double().norm(dim=1, keepdim=True)
    u, v = a / lengths[0], b / lengths[1]
    angle = torch.acos((u * v).sum(dim=1, keepdim=True).clamp(-1, 1))
    sine = torch.sin(angle)
    straight = sine < 1e-6
    sine = torch.where(straight, torch.ones_like(sine), sine)
    first = torch.where(straight, 1 - share, torch.sin((1 - share) * angle) / sine)
    second = torch.where(straight, share.double(), torch.sin(share * angle) / sine)
    between: torch.Tensor = (first * a + second * (b * lengths[0] / lengths[1])).to(a.dtype)
    return between


def _side_of(model: StyleganModel, layer: int) -> int:
    """Shorter side of the resolution that a layer's style acts on; the last style is that of the last output."""
    sizes = model.shape.sizes
    return min(sizes[min((layer + 1) // 2, len(sizes) - 1)])


def _sides(model: StyleganModel, layers: range) -> str:
    low, high = _side_of(model, layers[0]), _side_of(model, layers[-1])
    return f"side {low}" if low == high else f"sides {low} to {high}"


def _find_layers(name: str, model: StyleganModel) -> range:
    """The layers that ``name`` means for this network: coarse, middle, fine or A:B (A to B − 1, counted from 0)."""
    total = model.shape.layers
    bands: dict[str, range] = {}
    for band, (low, high) in BANDS.items():
        inside = [layer for layer in range(total) if low <= _side_of(model, layer) < high]
        if inside:
            bands[band] = range(inside[0], inside[-1] + 1)
    there = ", ".join(f"{band} ({one.start}:{one.stop}, {_sides(model, one)})" for band, one in bands.items())
    if name in bands:
        return bands[name]
    begin, colon, end = name.partition(":")
    if colon and begin.isdecimal() and end.isdecimal() and int(begin) < int(end) <= total:
        return range(int(begin), int(end))
    raise SettingsError(
        f"--layers {name}: this network has no such layers. There are: {there}; or A:B within 0:{total}."
    )


def _is_colour(channels: Sequence[str]) -> bool:
    return tuple(channels) == ("red", "green", "blue")


def _to_screen(images: Pixels, header: Header) -> _Gray:
    """Images as 8-bit gray levels, the run's brightest value being white: 8-bit ones stay as they are."""
    highest = int(header.content["highest"])
    if images.dtype == np.uint8 and highest == 255:
        return images
    screen: _Gray = np.rint(np.clip(images.astype(np.float64) * (255 / highest), 0, 255)).astype(np.uint8)
    return screen


def _pictures_of(images: Pixels, header: Header) -> list[Image.Image]:
    """Each image (n, C, H, W) as a picture: its channels side by side, or in colour where they are colours."""
    screen = _to_screen(images, header)
    if _is_colour(header.content["channels"]):
        return [Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0))) for image in screen]
    return [Image.fromarray(np.concatenate(list(image), axis=1)) for image in screen]


def _enlarge(picture: Image.Image, scale: int) -> Image.Image:
    return picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)


def _write_picture(picture: Image.Image, out: Path, form: str, options: dict[str, Any]) -> Path:
    """Write the file whole or not at all; it says nothing but its pixels."""
    encoded = io.BytesIO()
    picture.save(encoded, format=form, **options)
    temporary = out.with_name(out.name + ".partial")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as stream:
            stream.write(encoded.getbuffer())
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(out)
    except OSError as error:
        raise FolderError(f"{out} cannot be written ({error.strerror or error}). Choose another --out.") from error
    finally:
        with contextlib.suppress(OSError):  # there is none where all went well
            temporary.unlink()
    return out


def _read_targets(place: Path, header: Header, count: int) -> Targets:
    """The images to project, as the run of ``header`` would draw them."""
    content = header.content
    channels, size = tuple(content["channels"]), (int(content["height"]), int(content["width"]))
    kind = folders.kind_of(place)
    if kind is None:
        images = read_images(place, channels, size, content)[: count or None]
        names = np.array([str(index) for index in range(len(images))], dtype=np.str_)
        return Targets(images, names, "pictures", hashlib.sha256(images.tobytes()).hexdigest(), internal=False)
    if kind not in ("cohort", "samples"):
        raise InputError(f"{place} is a folder of kind {kind}. Give samples, a cohort, or a folder of pictures.")
    opened = open_images(place, kind=kind)
    if opened.channels != channels:
        raise InputError(f"{place} has channels {', '.join(opened.channels)}, the run has {', '.join(channels)}.")
    if opened.size != size or opened.dtype.name != content["dtype"]:
        raise InputError(
            f"{place} holds images of {opened.size[0]} × {opened.size[1]} pixels, {opened.dtype}; the run draws "
            f"{size[0]} × {size[1]}, {content['dtype']}. Give images like that."
        )
    rows = np.arange(min(count or len(opened), len(opened)), dtype=np.int64)
    if not len(rows):
        raise InputError(f"{place} holds no images. Give another folder.")
    internal = kind == "cohort" or bool(opened.header.content.get("holds_training_images"))
    groups = opened.column("subject")[rows]
    return Targets(opened.read(rows), groups, kind, folders.digest_of(place, kind=kind), internal)


def _draw_projections(targets: Pixels, drawn: Pixels, header: Header) -> Image.Image:
    """The first targets, a few a row, above what the run makes of them."""
    count = min(DRAWN, len(targets))
    shown = [_to_screen(images[:count], header) for images in (targets, drawn)]
    rows = []
    for number in range(math.ceil(count / PER_ROW)):
        part = slice(number * PER_ROW, (number + 1) * PER_ROW)
        title = f"{part.start} to {min(part.stop, count) - 1}"
        rows += [(f"images {title}", shown[0][part]), ("what the run makes of them", shown[1][part])]
    return draw_contact_sheet(rows, channels=header.content["channels"])
