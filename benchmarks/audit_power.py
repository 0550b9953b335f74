"""Which measure finds which copy of a patient, and what false alarms a change alone causes, on real images.

    python benchmarks/audit_power.py --data FOLDER                        # all three data sets, about 15 minutes
    python benchmarks/audit_power.py --data FOLDER --only brain-tumor-mri --measures quick   # views and correlation
    python benchmarks/audit_power.py --data FOLDER --only brain-tumor-mri --pictures OUTSIDE/missed.png
    python benchmarks/audit_power.py --data FOLDER --splits 3             # of brain-tumor-mri, other random splits

FOLDER holds ``brain-tumor-mri`` (Training/CLASS/FILE.jpg), ``chest-xray`` (train and test, CLASS/PATIENT_….jpeg) and
``hippocampus`` (imagesTr/….nii.gz); none of it comes with unalike. Images are brought to 64 × 64 and divided by
subject into train and holdout.

*Planted copies* are train images that were changed; *sham copies* are holdout images with the very same changes. Both
are held against the train images, and get p-values from the holdout images. A sham copy's own subject is left out of
these, and so is, for planted and sham copies alike, the other patient of a blend or a pasted lesion, who is a holdout
subject as well. So a sham copy is an image of a new patient that was changed: what is found of it is a false alarm.

Tables show the share of planted / of sham copies, in percent, with a p-value of at most 0.01, and of at most 0.05.
Measures that take long see fewer copies, and the local search fewer kinds. Pictures show patients: keep them private.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from PIL import Image
from scipy import ndimage

from unalike.audit.evidence import MEASURES
from unalike.errors import InputError
from unalike.records import FloatArray, IntArray, Pixels, TextArray
from unalike.seeds import generator_for
from unalike.similarity.correlation import Block, correlate, find_matches
from unalike.similarity.embedding.settings import EmbeddingSettings, Kind
from unalike.similarity.embedding.space import find_by_cosine
from unalike.similarity.embedding.train import train_embedding
from unalike.similarity.gallery import Gallery
from unalike.similarity.local import find_local_matches
from unalike.similarity.mutual_information import find_by_mutual_information
from unalike.similarity.ssim import find_by_ssim
from unalike.similarity.views import EQUALIZED, VIEWS, Views
from unalike.stats.combine import pooled_minimum_p_values
from unalike.stats.intervals import estimate_share

SIDE = 64
SEED = 2026
# Planted (and as many sham) copies of each kind, for quick measures and for slow ones.
COPIES, SLOW_COPIES = 230, 120
LEVELS = (0.01, 0.05)
# The default audit: trust in each view of `VIEWS`.
WEIGHTS = tuple(measure.weight for measure in MEASURES)
# Pictures of one data set that correlate more than this are taken for the same picture, or its neighbour.
NEAR_DUPLICATE = 0.9
# What two slices of one patient may reach in the equalized view, and hardly two of different ones.
TWIN = 0.5
# Side of a pasted lesion, and the width of its soft rim.
LESION, RIM = 16, 3
EMBEDDING_STEPS = 100
# Kinds of copy that other random splits are tried with.
SPLIT_KINDS = ("noise, sd 15", "noise, sd 40", "blur, sd 1", "blur, sd 2", "turn 6°", "blend 70:30")
LOCAL_KINDS = ("none", "shift 2 px", "mirror", "blend 70:30", "lesion 16 × 16")
DEFAULT = "default audit"

Picture = FloatArray  # one image (H, W), 0 to 255
Change = Callable[[Picture, Picture, np.random.Generator], Picture]
Measure = Callable[[Pixels], FloatArray]  # images (n, 1, H, W) → scores (rows, n), higher is closer


# ---- Data -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Images:
    """Images (n, 1, H, W) uint8 and the subject (n,) of each."""

    pixels: Pixels
    subjects: TextArray

    def part(self, chosen: IntArray) -> Images:
        return Images(self.pixels[chosen], self.subjects[chosen])

    def of(self, subjects: Iterable[str]) -> Images:
        return self.part(np.flatnonzero(np.isin(self.subjects, list(subjects))))


def fit(picture: Image.Image) -> Pixels:
    """Longest side 64, padded with black to a square: (64, 64) uint8."""
    scale = SIDE / max(picture.size)
    size = (max(round(picture.width * scale), 1), max(round(picture.height * scale), 1))
    square = Image.new("L", (SIDE, SIDE))
    small = picture.convert("L").resize(size, Image.Resampling.LANCZOS)
    square.paste(small, ((SIDE - size[0]) // 2, (SIDE - size[1]) // 2))
    return np.asarray(square)


def files_of(folder: Path, pattern: str) -> list[Path]:
    files = sorted(folder.rglob(pattern))
    if not files:
        raise InputError(f"{folder} holds no {pattern}. Pass the folder of the data sets by --data.")
    return files


def read_pictures(files: list[Path]) -> Pixels:
    made = []
    for file in files:
        with Image.open(file) as picture:
            made.append(fit(picture))
    return np.stack(made)[:, None]


def load_brain(folder: Path) -> tuple[Images, Images]:
    """Near duplicates removed, random thirds: the second is train, the third holdout. Subjects are unknown."""
    pixels = read_pictures(files_of(folder / "Training", "*.jpg"))
    return split_in_thirds(pixels, kept_pictures(correlate(pixels, pixels)))


def kept_pictures(similarities: FloatArray, least: float = NEAR_DUPLICATE) -> IntArray:
    """Pictures that are no near duplicate of an earlier one that is kept."""
    kept: list[int] = []
    for index, row in enumerate(similarities >= least):
        if not row[kept].any():
            kept.append(index)
    return np.array(kept)


def split_in_thirds(pixels: Pixels, kept: IntArray, seed: int = SEED) -> tuple[Images, Images]:
    """Each kept image is a subject of its own; the first third is not used."""
    order = generator_for(seed, "thirds").permutation(kept)
    everything, third = Images(pixels, np.array([f"{index:05}" for index in range(len(pixels))])), len(order) // 3
    return everything.part(order[third : 2 * third]), everything.part(order[2 * third :])


def find_twins(pixels: Pixels, kept: IntArray, reach: int = 2) -> IntArray:
    """Of the images kept, those that are no twin of an earlier one in the equalized view, moved by up to 2 pixels."""

    def cut(down: int, across: int) -> torch.Tensor:
        window = pixels[kept, :, reach + down : SIDE - reach + down, reach + across : SIDE - reach + across]
        return torch.from_numpy(window.astype(np.float32))

    # Fitted on all images, before roles are drawn: what is removed favours neither.
    views = Views.fit(cut(0, 0))
    still, steps = views.look(cut(0, 0))[EQUALIZED], range(-reach, reach + 1)
    highest = torch.full((len(kept), len(kept)), -1.0)
    for down, across in itertools.product(steps, steps):
        highest = torch.maximum(highest, still @ views.look(cut(down, across))[EQUALIZED].T)
    highest = torch.maximum(highest, highest.T)
    return kept[kept_pictures(highest.numpy().astype(np.float64), TWIN)]


def load_chest(folder: Path) -> tuple[Images, Images]:
    files = files_of(folder, "*.jpeg")
    return split_by_subject(Images(read_pictures(files), np.array([file.name[:8] for file in files])))


def load_hippocampus(folder: Path) -> tuple[Images, Images]:
    """Every third slice of the middle half of each volume, scaled between its 0.5 % and 99.5 % quantiles."""
    pixels, subjects = [], []
    for file in files_of(folder / "imagesTr", "*.nii.gz"):
        volume = np.asarray(nib.load(file).dataobj, dtype=np.float64)
        low, high = np.quantile(volume, (0.005, 0.995))
        scaled = np.rint(255 * np.clip((volume - low) / max(high - low, 1e-9), 0, 1)).astype(np.uint8)
        depth = volume.shape[2]
        for position in range(depth // 4, depth - depth // 4, 3):
            edges = [((SIDE - side) // 2, SIDE - side - (SIDE - side) // 2) for side in volume.shape[:2]]
            pixels.append(np.pad(scaled[:, :, position], edges))
            subjects.append(file.name)
    return split_by_subject(Images(np.stack(pixels)[:, None], np.array(subjects)))


def split_by_subject(images: Images) -> tuple[Images, Images]:
    """Half of the subjects each."""
    names = generator_for(SEED, "halves").permutation(np.unique(images.subjects))
    return images.of(names[: len(names) // 2]), images.of(names[len(names) // 2 :])


DATA: dict[str, Callable[[Path], tuple[Images, Images]]] = {
    "brain-tumor-mri": load_brain,
    "chest-xray": load_chest,
    "hippocampus": load_hippocampus,
}


# ---- Copies ---------------------------------------------------------------------------------------------------------


def add_noise(image: Picture, deviation: float, random: np.random.Generator) -> Picture:
    return image + random.normal(0, deviation, image.shape)


def shift(image: Picture, pixels: int, random: np.random.Generator) -> Picture:
    """Along one of the four diagonals; the edge repeats."""
    return np.asarray(ndimage.shift(image, pixels * random.choice((-1, 1), 2), order=1, mode="nearest"))


def turn(image: Picture, degrees: float, random: np.random.Generator) -> Picture:
    angle = degrees * random.choice((-1, 1))
    return np.asarray(ndimage.rotate(image, angle, reshape=False, order=1, mode="nearest"))


def compress(image: Picture, quality: int) -> Picture:
    stream = BytesIO()
    Image.fromarray(as_pixels(image)).save(stream, "JPEG", quality=quality)
    return np.asarray(Image.open(stream), dtype=np.float64)


def paste_lesion(donor: Picture, host: Picture, random: np.random.Generator) -> Picture:
    """A patch of the donor at the same place of the host: one of the tenth with most structure, away from the edge."""
    edge, last = SIDE // 8, SIDE - SIDE // 8 - LESION
    means = [ndimage.uniform_filter(image, LESION, origin=-(LESION // 2)) for image in (donor, donor**2)]
    spread = (means[1] - means[0] ** 2)[edge : last + 1, edge : last + 1]
    places = np.argwhere(spread >= np.quantile(spread, 0.9))
    top, left = places[random.integers(len(places))] + edge
    ramp = np.minimum(np.minimum(np.arange(LESION), np.arange(LESION)[::-1]) + 0.5, RIM) / RIM
    soft, place = np.outer(ramp, ramp), np.s_[top : top + LESION, left : left + LESION]
    made = host.copy()
    made[place] += soft * (donor[place] - host[place])
    return made


CHANGES: dict[str, Change] = {
    "none": lambda image, *_: image,
    "noise, sd 15": lambda image, _, random: add_noise(image, 15, random),
    "noise, sd 40": lambda image, _, random: add_noise(image, 40, random),
    "blur, sd 1": lambda image, *_: ndimage.gaussian_filter(image, 1),
    "blur, sd 2": lambda image, *_: ndimage.gaussian_filter(image, 2),
    "gamma 0.6": lambda image, *_: 255 * (image / 255) ** 0.6,
    "contrast 0.7, +20": lambda image, *_: 0.7 * image + 20,
    "JPEG 50": lambda image, *_: compress(image, 50),
    "shift 1 px": lambda image, _, random: shift(image, 1, random),
    "shift 2 px": lambda image, _, random: shift(image, 2, random),
    "turn 3°": lambda image, _, random: turn(image, 3, random),
    "turn 6°": lambda image, _, random: turn(image, 6, random),
    "mirror": lambda image, *_: image[:, ::-1],
    "quarter turn": lambda image, *_: np.rot90(image),
    "blend 70:30": lambda image, other, _: 0.7 * image + 0.3 * other,
    "mirror, 2 px, noise 10": lambda image, _, random: add_noise(shift(image[:, ::-1], 2, random), 10, random),
    "lesion 16 × 16": paste_lesion,
}


def as_pixels(image: Picture) -> Pixels:
    return np.rint(np.clip(image, 0, 255)).astype(np.uint8)


@dataclass(frozen=True)
class Copies:
    """Changed images of each kind, {kind: (n, 1, H, W)}; what they were made of, and which subjects do not count."""

    changed: dict[str, Pixels]
    sources: IntArray  # (n,) indices among the images they were made of
    left_out: list[set[str]]  # of the holdout, for each copy


def make_copies(images: Images, holdout: Images, *, purpose: str, count: int = COPIES) -> Copies:
    """``count`` copies of ``images``, of one image of each subject where there are as many subjects.

    The other patient of a blend or lesion is of the ``holdout``, and so may the images be.
    """
    random = generator_for(SEED, purpose)
    sources = pick_by_subject(images.subjects, count, random)
    others, left_out = [], []
    for source in sources:
        strangers = np.flatnonzero(holdout.subjects != images.subjects[source])
        others.append(int(random.choice(strangers)))
        left_out.append({str(images.subjects[source]), str(holdout.subjects[others[-1]])})
    changed = {}
    for kind, change in CHANGES.items():
        made = []
        for number, (source, other) in enumerate(zip(sources, others, strict=True)):
            pair = (images.pixels[source, 0].astype(np.float64), holdout.pixels[other, 0].astype(np.float64))
            made.append(as_pixels(change(*pair, generator_for(SEED, f"{purpose} {kind}", number))))
        changed[kind] = np.stack(made)[:, None]
    return Copies(changed, sources, left_out)


def pick_by_subject(subjects: TextArray, count: int, random: np.random.Generator) -> IntArray:
    """Indices (≤ count,): one image of every subject before there is a second of any."""
    order = random.permutation(len(subjects))
    seen: dict[str, int] = {}
    rounds = []
    for index in order:
        rounds.append(seen.get(subjects[index], 0))
        seen[subjects[index]] = rounds[-1] + 1
    return order[np.argsort(rounds, kind="stable")][:count]


# ---- Measures -------------------------------------------------------------------------------------------------------


def one_row(values: FloatArray) -> FloatArray:
    return np.asarray(values, dtype=np.float64)[None]


def by_views(train: Images) -> Measure:
    gallery = Gallery(train.pixels, train.subjects)
    return lambda images: gallery.resemble(images).scores


def by_correlation(train: Images) -> Measure:
    return lambda images: one_row(find_matches(queries=images, references=[Block(0, train.pixels)], mean=False).highest)


def by_ssim(train: Images) -> Measure:
    return lambda images: one_row(find_by_ssim(queries=images, references=[Block(0, train.pixels)]).highest)


def by_mutual_information(train: Images) -> Measure:
    return lambda images: one_row(
        find_by_mutual_information(queries=images, references=[Block(0, train.pixels)]).highest
    )


def by_embedding(kind: Kind) -> Callable[[Images], Measure]:
    def make(train: Images) -> Measure:
        _, owners = np.unique(train.subjects, return_inverse=True)
        space = train_embedding(
            read=lambda rows: train.pixels[rows],
            rows=np.arange(len(train.pixels)),
            channels=[0],
            settings=EmbeddingSettings(kind=kind, steps=EMBEDDING_STEPS),
            seed=SEED,
            device=torch.device("cpu"),
            subjects=owners,
        )
        known = space.embed(train.pixels)

        def measure(images: Pixels) -> FloatArray:
            return find_by_cosine(queries_vectors=space.embed(images), reference_vectors=known, best=1)[1].T

        return measure

    return make


def by_local_search(train: Images) -> Measure:
    return lambda images: one_row(find_local_matches(queries=images, references=[Block(0, train.pixels)]).highest)


@dataclass(frozen=True)
class Contender:
    """How a measure is made of the train images, how many copies it sees, and of which kinds (None: all)."""

    make: Callable[[Images], Measure]
    copies: int
    kinds: tuple[str, ...] | None = None


QUICK = {"correlation": Contender(by_correlation, COPIES), "views": Contender(by_views, COPIES)}
SLOW = {
    "SSIM": Contender(by_ssim, SLOW_COPIES),
    "mutual information": Contender(by_mutual_information, SLOW_COPIES),
    "autoencoder": Contender(by_embedding("autoencoder"), SLOW_COPIES),
    "contrastive": Contender(by_embedding("contrastive"), SLOW_COPIES),
    "local search": Contender(by_local_search, SLOW_COPIES, LOCAL_KINDS),
}
CONTENDERS = {"quick": QUICK, "slow": SLOW}
COLUMNS = (
    "correlation", "SSIM", "mutual information", "autoencoder", "contrastive", "local search", *VIEWS, DEFAULT,
)  # fmt: skip


# ---- P-values -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Found:
    """P-values (n,) of planted and of sham copies, of each kind, under one column of the table."""

    planted: dict[str, FloatArray]
    sham: dict[str, FloatArray]


def p_values(
    scores: FloatArray, copies: Copies, *, holdout: FloatArray, subjects: TextArray, weights: tuple[float, ...] | None
) -> FloatArray:
    """P-values (kinds, n) of scores (rows, kinds, n), each without the holdout subjects that do not count for it."""
    made = np.empty(scores.shape[1:])
    for number in range(scores.shape[2]):
        counts = ~np.isin(subjects, list(copies.left_out[number]))
        made[:, number] = pooled_minimum_p_values(
            scores[:, :, number], holdout=holdout[:, counts], subjects=subjects[counts], weights=weights
        )
    return made


def compare(
    contender: Contender, train: Images, holdout: Images, planted: Copies, sham: Copies, columns: tuple[str, ...]
) -> dict[str, Found]:
    """What each column finds that the contender's scores give."""
    measure = contender.make(train)
    known = measure(holdout.pixels)
    kinds = contender.kinds or tuple(CHANGES)
    sides: list[dict[str, dict[str, FloatArray]]] = []
    for copies in (planted, sham):
        scores = np.stack([measure(copies.changed[kind][: contender.copies]) for kind in kinds], axis=1)
        made = {}
        for row, column in enumerate(columns):
            rows = slice(None) if column == DEFAULT else slice(row, row + 1)
            weights = WEIGHTS if column == DEFAULT else None
            p = p_values(scores[rows], copies, holdout=known[rows], subjects=holdout.subjects, weights=weights)
            made[column] = dict(zip(kinds, p, strict=True))
        sides.append(made)
    return {column: Found(sides[0][column], sides[1][column]) for column in columns}


def share(p: FloatArray, level: float) -> float:
    return float(np.mean(p <= level))


# ---- Output ---------------------------------------------------------------------------------------------------------


def write_table(found: dict[str, Found], level: float) -> str:
    """Markdown: share of planted / of sham copies found, in percent."""
    columns = [column for column in COLUMNS if column in found]
    lines = ["| change | " + " | ".join(columns) + " |", "| --- " * (len(columns) + 1) + "|"]
    for kind in CHANGES:
        cells = []
        for column in columns:
            entry = found[column]
            if kind not in entry.planted:
                cells.append("–")
                continue
            hit, false = (100 * share(side[kind], level) for side in (entry.planted, entry.sham))
            cells.append(f"{hit:.0f} / {false:.1f}")
        lines.append(f"| {kind} | " + " | ".join(cells) + " |")
    every = [np.concatenate(list(found[column].sham.values())) for column in columns]
    lines.append("| sham, all kinds | " + " | ".join(f"{100 * share(p, level):.2f}" for p in every) + " |")
    return "\n".join(lines)


def describe(name: str, train: Images, holdout: Images, copies: int) -> str:
    half = [
        100 * (estimate.high - estimate.low) / 2
        for estimate in (estimate_share(round(rate * copies), copies) for rate in (0.5, 0.95, 0.01))
    ]
    return (
        f"{name}: train {len(train.pixels)} images of {len(set(train.subjects))} subjects, holdout "
        f"{len(holdout.pixels)} of {len(set(holdout.subjects))}; {copies} copies of each kind; half-width of the 95 % "
        f"Clopper–Pearson interval around 50, 95, 1 %: {half[0]:.1f}, {half[1]:.1f}, {half[2]:.1f} points"
    )


def draw_pictures(
    path: Path, found: Found, train: Images, holdout: Images, planted: Copies, sham: Copies, *, rows: int = 6
) -> None:
    """Missed copies and false alarms of the default audit: query, original, and what the equalized view took it for."""
    gallery = Gallery(train.pixels, train.subjects)
    tiles = []
    for side, source, copies, wrong in (
        (found.planted, train, planted, np.greater),
        (found.sham, holdout, sham, np.less_equal),
    ):
        cases = [(kind, number) for kind, p in side.items() for number in np.flatnonzero(wrong(p, LEVELS[0]))]
        picked = generator_for(SEED, "pictures").permutation(len(cases))[:rows]
        for kind, number in (cases[index] for index in picked):
            query = copies.changed[kind][number : number + 1]
            reference = gallery.resemble(query).references[-1, 0]
            original = source.pixels[copies.sources[number]]
            tiles.append(np.concatenate([query[0, 0], original[0], train.pixels[reference, 0]], axis=1))
            print(f"{len(tiles)}: {kind}, p = {side[kind][number]:.4f}", file=sys.stderr)
    wide = len(tiles) // 2 + len(tiles) % 2
    sheet = np.full((wide * (SIDE + 4), 2 * (3 * SIDE + 8)), 128, np.uint8)
    for place, tile in enumerate(tiles):
        top, left = place % wide * (SIDE + 4), place // wide * (3 * SIDE + 8)
        sheet[top : top + SIDE, left : left + 3 * SIDE] = tile
    Image.fromarray(sheet).resize((sheet.shape[1] * 2, sheet.shape[0] * 2)).save(path)


def run(name: str, folder: Path, *, copies: int, measures: str | None, pictures: Path | None) -> dict[str, Found]:
    train, holdout = DATA[name](folder)
    # One of each subject: several of one would count the same mistake several times.
    copies = min(copies, len(set(train.subjects)), len(set(holdout.subjects)))
    planted = make_copies(train, holdout, purpose="planted", count=copies)
    sham = make_copies(holdout, holdout, purpose="sham", count=copies)
    print(f"\n{describe(name, train, holdout, len(planted.sources))}\n", flush=True)
    found: dict[str, Found] = {}
    for label, contender in (CONTENDERS[measures] if measures else {**QUICK, **SLOW}).items():
        begin = time.perf_counter()
        columns = (*VIEWS, DEFAULT) if label == "views" else (label,)
        found.update(compare(contender, train, holdout, planted, sham, columns))
        print(f"{name}, {label}: {time.perf_counter() - begin:.0f} s", file=sys.stderr, flush=True)
    for level in LEVELS:
        print(f"p ≤ {level}\n\n{write_table(found, level)}\n", flush=True)
    if pictures and DEFAULT in found:
        draw_pictures(pictures, found[DEFAULT], train, holdout, planted, sham)
    return found


def repeat_splits(folder: Path, count: int) -> str:
    """Markdown: planted copies (of `SPLIT_KINDS`) the default audit finds at p ≤ 0.01 under other random splits."""
    pixels = read_pictures(files_of(folder / "Training", "*.jpg"))
    lines = ["| split | duplicates removed | images | " + " | ".join(SPLIT_KINDS) + " | sham |"]
    lines.append("| --- " * (len(SPLIT_KINDS) + 4) + "|")
    views = Contender(by_views, SLOW_COPIES, SPLIT_KINDS)
    kept = kept_pictures(correlate(pixels, pixels))
    pruned = {"in place": kept, "twins as well": find_twins(pixels, kept)}
    for number, (name, kept) in itertools.product(range(count), pruned.items()):
        train, holdout = split_in_thirds(pixels, kept, SEED + number)
        planted = make_copies(train, holdout, purpose="planted", count=SLOW_COPIES)
        sham = make_copies(holdout, holdout, purpose="sham", count=SLOW_COPIES)
        found = compare(views, train, holdout, planted, sham, (*VIEWS, DEFAULT))[DEFAULT]
        cells = [f"{100 * share(found.planted[kind], LEVELS[0]):.0f}" for kind in SPLIT_KINDS]
        false = 100 * share(np.concatenate(list(found.sham.values())), LEVELS[0])
        lines.append(f"| {number + 1} | {name} | {len(kept)} | " + " | ".join(cells) + f" | {false:.2f} |")
        print(lines[-1], file=sys.stderr, flush=True)
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets")
    parser.add_argument("--only", choices=list(DATA), help="one data set")
    parser.add_argument("--copies", type=int, default=COPIES, help="of each kind, at most one per subject")
    parser.add_argument("--measures", choices=list(CONTENDERS), help="quick (views and correlation) or slow (the rest)")
    parser.add_argument("--pictures", type=Path, help="PNG of missed copies and false alarms; it shows patients")
    parser.add_argument("--splits", type=int, default=0, help="of brain-tumor-mri instead: so many other random splits")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    if chosen.splits:
        print(repeat_splits(chosen.data / "brain-tumor-mri", chosen.splits))
        return
    for name in [chosen.only] if chosen.only else list(DATA):
        run(name, chosen.data / name, copies=chosen.copies, measures=chosen.measures, pictures=chosen.pictures)


if __name__ == "__main__":
    main()
