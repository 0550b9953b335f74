"""Live use: hold images against a cohort while they are made, in training or in sampling.

A `CopyIndex` looks at the train images once (`Gallery`), holds the held-out subjects' images against them once, and
keeps both beside the coarse index under the cohort's ``index/``. What it then says of an image is the p-value that
an audit gives it (`pooled_minimum_p_values` with the weights of `evidence.MEASURES`), of that image alone: nothing is
corrected for how many images are asked about, so of images that are no copies up to ``level`` are flagged.

The file is derived from patients' pixels, so it lies in their folder and is as internal as that. It holds arrays and
a JSON header (safetensors), is written whole or not at all, and is made again where it does not fit.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from zlib_ng import zlib_ng

from unalike import folders
from unalike.audit.evidence import MEASURES
from unalike.cohort.store import ImageFolder, digest_pixels, iterate_blocks, open_images
from unalike.engine import show_progress
from unalike.errors import InputError, RunError, SettingsError
from unalike.records import MASK, FloatArray, IntArray, Pixels, TextArray
from unalike.similarity import gallery as gallery_code
from unalike.similarity import views as views_code
from unalike.similarity.gallery import FLIPS, POSES, Gallery, Resemblance
from unalike.similarity.stored import CoarseIndex, Notice, find_stored, open_index, pick_channels
from unalike.similarity.views import COARSE_FREQUENCY, COMPONENTS, VIEWS, Equalizer, Views, Whitening, shrink
from unalike.stats.combine import pooled_minimum_p_values
from unalike.stats.conformal import smallest_p_value, subject_p_values

# What the file means; another number is another format, and it is made again.
FORMAT = 1
HEADER = "unalike"
# What opening a missing, stale or damaged file may raise.
MISFIT = (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError)
# How numbers are stored, unless as float32.
TYPES = {"small": "U8", "scores": "F64", "references": "I64", "poses": "I64"}
# A sampler is asked for at most this many times as many images as are wanted.
PATIENCE = 10

WEIGHTS = tuple(next(measure.weight for measure in MEASURES if measure.name == view) for view in VIEWS)

Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class CopyFindings:
    """What is known of n images, each on its own.

    ``p_values`` (n,): if the image were one of a further subject whom the generator never saw, how often would it
    stand out as one train subject's as much as it does; NaN for constant images. ``flagged`` (n,) have p ≤ ``level`` or
    are, pixel for pixel, a train image (``identical``, (n,)). ``similarities`` (n,) are the exact correlations with
    the best train image as it lies, which is the cohort's row ``nearest`` (n,). ``spoke`` (n,) names the measure with
    the smallest weighted p-value, ``references`` (n,) the cohort's row that this measure comes closest to, in which
    of the ``poses`` (n,), and ``subjects`` (n,) whose image that is, as a pseudonym; −1 and "" where there is none.
    ``smallest_p`` is the smallest p-value that the holdout can give. ``share_read`` is the share of the train
    images' pixels that were read.
    """

    p_values: FloatArray
    flagged: Flags
    identical: Flags
    similarities: FloatArray
    nearest: IntArray
    references: IntArray
    poses: TextArray
    subjects: TextArray
    spoke: TextArray
    level: float
    smallest_p: float
    share_read: float

    @property
    def can_flag(self) -> bool:
        """Whether the holdout is large enough to flag anything but identical images at this level."""
        return self.smallest_p <= self.level


@dataclass(frozen=True)
class StoredPart:
    """One part of an index: what it is, where it lies (None: in memory only), and its bytes."""

    what: str
    place: Path | None
    bytes: int


@dataclass(frozen=True)
class IndexSummary:
    """What an index holds: images and subjects of each role, the smallest p-value it can give, and its parts."""

    cohort: Path
    channels: tuple[str, ...]
    train_images: int
    train_subjects: int
    holdout_images: int
    holdout_subjects: int
    smallest_p: float
    stored: tuple[StoredPart, ...]


@dataclass(frozen=True, eq=False)
class CopyIndex:
    """The train images of a cohort and how its held-out subjects resemble them, to ask about new images any time.

    Make one with `CopyIndex.open`. It belongs to the cohort as it was then.
    """

    folder: ImageFolder
    channels: tuple[int, ...]
    train: IntArray
    holdout: IntArray
    gallery: Gallery = field(repr=False)
    known: Resemblance = field(repr=False)
    coarse: CoarseIndex = field(repr=False)
    place: Path | None
    digest: str

    @classmethod
    def open(
        cls,
        cohort: str | Path | ImageFolder,
        *,
        channels: Sequence[str] | None = None,
        train_rows: IntArray | None = None,
        holdout_rows: IntArray | None = None,
        notice: Notice | None = None,
    ) -> CopyIndex:
        """Open the index of a cohort, or make it if it is missing, damaged, or of other images.

        ``channels`` are names (None: all but the mask). ``train_rows`` are the rows that the generator saw (None: the
        train role), ``holdout_rows`` those of subjects whom it did not see (None: the holdout role, and whoever of
        the train role is left). Holdout subjects who also occur in train, or have an image that is pixel-identical
        to a train image, are left out, as in an audit. ``notice`` is told, in a line each, what is made and why, and
        what the index cannot do. Where the cohort cannot be written the index is kept in memory.

        Raises `FolderError` if the cohort cannot be used, `SettingsError` if there is no such channel, `InputError` if
        rows are not the cohort's, there is no train image, or the cohort has changed since it was opened.
        """
        tell = notice or _ignore
        opened = cohort if isinstance(cohort, ImageFolder) else open_images(cohort)
        digest = opened.digest
        if folders.read_header(opened.path, kind=opened.header.kind) != opened.header:
            raise InputError(f"{opened.path} has changed since it was opened. Open it again.")
        chosen = _choose_channels(opened, channels)
        train, holdout = _choose_rows(opened, train_rows, holdout_rows, tell)
        selection = None if train_rows is None and holdout_rows is None else (train, holdout)
        source = _Source(opened, chosen, train, holdout)
        coarse = open_coarse(opened, channels=chosen, notice=tell)
        gallery, known, place = _open_gallery(source, _name(chosen, selection), tell)
        return cls(opened, chosen, train, holdout, gallery, known, coarse, place, digest)

    @functools.cached_property
    def subjects(self) -> TextArray:
        """Pseudonym of each image of the cohort."""
        return self.folder.column("subject")

    @functools.cached_property
    def smallest_p(self) -> float:
        """The smallest p-value that the holdout can give."""
        return smallest_p_value(self._count_held())

    @functools.cached_property
    def _rows_of_digests(self) -> dict[str, int]:
        """The first train row of each digest."""
        digests = self.folder.column("digest")[self.train].tolist()
        return dict(zip(digests[::-1], self.train[::-1].tolist(), strict=True))

    def _count_held(self) -> int:
        usable = np.isfinite(self.known.scores).any(axis=0)
        return len(np.unique(self.subjects[self.holdout[usable]]))

    def query(self, images: Pixels, *, level: float = 0.01) -> CopyFindings:
        """Hold images (n, C, H, W) of the cohort's channels, size and depth against its train images.

        Raises `InputError` if the images do not fit, or the cohort has changed since the index was opened, and
        `SettingsError` unless 0 < level < 1.
        """
        _check_level(level)
        images = self._checked(images)
        chosen = pick_channels(images, self.channels)
        found = self.gallery.resemble(chosen)
        owners = self.subjects[self.holdout]
        p_values = pooled_minimum_p_values(found.scores, holdout=self.known.scores, subjects=owners, weights=WEIGHTS)
        speaker = self._speaker(found, owners)
        exact = find_stored(queries=images, index=self.coarse, rows=self.train)
        # Place −1, for none, reads the last entry.
        rows, every = np.append(self.train, -1), np.arange(len(images))
        same = np.array([self._rows_of_digests.get(digest_pixels(image), -1) for image in images], dtype=np.int64)
        defined = np.isfinite(p_values)  # a constant image is no copy of a constant one
        identical = (same >= 0) & defined
        references = np.where(identical, same, rows[np.where(defined, found.references[speaker, every], -1)])
        poses = np.where(identical, 0, found.poses[speaker, every])
        return CopyFindings(
            p_values=p_values,
            flagged=identical | (defined & (p_values <= level)),
            identical=identical,
            similarities=exact.highest,
            nearest=rows[exact.references[:, 0]],
            references=references,
            poses=np.where(defined, np.array([pose.name for pose in POSES])[poses], ""),
            subjects=np.where(defined, self.subjects[references], ""),
            spoke=np.where(defined, np.array(VIEWS)[speaker], ""),
            level=level,
            smallest_p=self.smallest_p,
            share_read=exact.share_read,
        )

    def _speaker(self, found: Resemblance, owners: TextArray) -> IntArray:
        """The view (n,) whose p-value is the smallest for its weight: the first of equals, 0 if none is defined."""
        values = [
            subject_p_values(scores, holdout=held, subjects=owners) / weight
            for scores, held, weight in zip(found.scores, self.known.scores, WEIGHTS, strict=True)
        ]
        smallest: IntArray = np.nan_to_num(np.stack(values), nan=np.inf).argmin(axis=0).astype(np.int64)
        return smallest

    def _checked(self, images: Pixels) -> Pixels:
        """The images if they fit, in memory in their order."""
        folder = self.folder
        wanted = (len(folder.channels), *folder.size)
        if not isinstance(images, np.ndarray) or images.ndim != 4:
            there = f"of shape {images.shape}" if isinstance(images, np.ndarray) else f"a {type(images).__name__}"
            raise InputError(f"images are {there}, not an array (n, channels, height, width). Pass one of that shape.")
        if images.shape[1:] != wanted or images.dtype != folder.dtype:
            raise InputError(
                f"images are {images.shape[1:]} {images.dtype}, but those of {folder.path} are {wanted} "
                f"{folder.dtype} (channels, height, width). Pass all channels, in size and depth as there."
            )
        try:
            changed = folder.digest != self.digest
        except OSError:
            changed = True
        if changed:
            raise InputError(f"{folder.path} has changed since the index was opened. Open the index again.")
        return np.ascontiguousarray(images)

    def summary(self) -> IndexSummary:
        """What the index holds, and where."""
        arrays = _pack(self.gallery, self.known).values()
        gallery = self.place.stat().st_size if self.place else sum(array.nbytes for array in arrays)
        place = self.coarse.place
        coarse = sum(file.stat().st_size for file in place.iterdir()) if place else self.coarse.nbytes
        parts = (StoredPart("gallery", self.place, gallery), StoredPart("coarse index", place, coarse))
        return IndexSummary(
            cohort=self.folder.path,
            channels=tuple(self.folder.channels[channel] for channel in self.channels),
            train_images=len(self.train),
            train_subjects=len(np.unique(self.subjects[self.train])),
            holdout_images=len(self.holdout),
            holdout_subjects=self._count_held(),
            smallest_p=self.smallest_p,
            stored=parts,
        )


def open_coarse(opened: ImageFolder, *, channels: Sequence[int], notice: Notice | None = None) -> CoarseIndex:
    """The coarse index of all images of a cohort, stored in its ``index/``; its key is the digest of all digests."""
    return open_index(
        read=opened.read,
        count=len(opened),
        channels=channels,
        key=str(opened.header.content["images_digest"]),
        folder=opened.path,
        notice=notice,
    )


# Sampling


@dataclass(frozen=True)
class KeptImages:
    """Images (count, C, H, W) that were not flagged, their p-values (count,), and how many were drawn and rejected."""

    images: Pixels
    p_values: FloatArray
    drawn: int
    rejected: int


def reject_copies(
    draw: Callable[[int], Pixels], *, count: int, index: CopyIndex, level: float = 0.01, limit: int | None = None
) -> KeptImages:
    """Ask a sampler for images until ``count`` of them are not flagged as copies at ``level``.

    ``draw(n)`` gives n new images (n, C, H, W), others each time. At most ``limit`` are drawn (None: 10 for each image
    wanted). Of images that are no copies, up to a share of ``level`` is rejected as well.

    Rejection hides evidence. What is left has p-values above ``level`` by construction, so an audit by the same
    measures finds nothing even where copies that these measures miss went through; filters of this kind have been
    reported to give a false sense of security (arXiv 2510.01793). Audit the kept images by another measure (a learned
    space, patches), audit an unfiltered draw as well, and report how many were rejected.

    Raises `SettingsError` if the holdout is too small to reject anything at this level, `InputError` if the sampler
    gives other than it was asked for, and `RunError` if ``limit`` images were drawn and too few are left.
    """
    _check_rejection(count, index, level)
    limit = PATIENCE * count if limit is None else limit
    kept: list[Pixels] = []
    p_values: list[FloatArray] = []
    left, drawn = count, 0
    while left:
        asked = min(left, limit - drawn)
        if asked <= 0:
            raise RunError(
                f"{drawn} images were drawn and {drawn - count + left} of them look like copies: {count - left} of "
                f"{count} are left. Train on more subjects or for fewer steps, or raise the limit of {limit}."
            )
        images = draw(asked)
        if not isinstance(images, np.ndarray) or len(images) != asked:
            given = len(images) if isinstance(images, np.ndarray) else f"a {type(images).__name__}"
            raise InputError(
                f"the sampler was asked for {asked} images and gave {given}. Let it give an array of them."
            )
        found = index.query(images, level=level)
        kept.append(images[~found.flagged])
        p_values.append(found.p_values[~found.flagged])
        drawn += asked
        left -= len(kept[-1])
    return KeptImages(np.concatenate(kept), np.concatenate(p_values), drawn, drawn - count)


def _check_rejection(count: int, index: CopyIndex, level: float) -> None:
    _check_level(level)
    if count < 1:
        raise SettingsError(f"{count} images are wanted. Ask for 1 or more.")
    if index.smallest_p > level:
        raise SettingsError(
            f"level {level} rejects no image: {index.folder.path} has {round(1 / index.smallest_p) - 1} holdout "
            f"subjects, so no p-value is below {index.smallest_p:.3g}. Raise the level, or hold out more subjects."
        )


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise SettingsError(f"level {level}: give a rate between 0 and 1, such as 0.01.")


# Who plays which role


def _ignore(message: str) -> None:
    """For callers who want no notices."""


def _choose_channels(opened: ImageFolder, wanted: Sequence[str] | None) -> tuple[int, ...]:
    """Indices of the channels to compare: the named ones, else all but the mask."""
    names = opened.channels
    given = (wanted,) if isinstance(wanted, str) else tuple(wanted or ())
    unknown = [name for name in given if name not in names]
    if unknown:
        raise SettingsError(f"channels {', '.join(unknown)} are not in {opened.path}. It has {', '.join(names)}.")
    chosen = [at for at, name in enumerate(names) if (name in given if given else name != MASK)]
    return tuple(chosen or range(len(names)))


def _choose_rows(
    opened: ImageFolder, train_rows: IntArray | None, holdout_rows: IntArray | None, tell: Notice
) -> tuple[IntArray, IntArray]:
    """Rows of train and of holdout, ascending; a subject in both, or with an identical image, is in train alone."""
    role = opened.rows("train")
    train = role if train_rows is None else _checked_rows(opened, train_rows, "train_rows")
    if len(train) == 0:
        raise InputError(f"{opened.path} has no train image to compare with. Check the rows, or prepare it again.")
    rest = np.union1d(opened.rows("holdout"), np.setdiff1d(role, train)).astype(np.int64)
    holdout = rest if holdout_rows is None else _checked_rows(opened, holdout_rows, "holdout_rows")
    subjects, digests = opened.column("subject"), opened.column("digest")
    shared = np.isin(subjects[holdout], subjects[train])
    twins = np.unique(subjects[holdout][np.isin(digests[holdout], digests[train])])
    out = shared | np.isin(subjects[holdout], twins)
    if out.any():
        tell(
            f"{len(np.unique(subjects[holdout[out]]))} holdout subjects of {opened.path} also occur in train, or have "
            "an image that does: they are left out of the holdout."
        )
    holdout = holdout[~out]
    if len(holdout) == 0:
        tell(f"{opened.path} has no holdout to compare with: only images that are pixel-identical to one are flagged.")
    return train, holdout


def _checked_rows(opened: ImageFolder, rows: IntArray, name: str) -> IntArray:
    """Different rows of the cohort, ascending."""
    given = np.asarray(rows)
    if given.ndim != 1 or (len(given) and given.dtype.kind not in "iu"):
        raise InputError(f"{name} are no list of whole numbers. Pass rows of {opened.path}.")
    different = np.unique(given).astype(np.int64)
    if len(different) and not 0 <= different[0] <= different[-1] < len(opened):
        raise InputError(
            f"{name} go from {different[0]} to {different[-1]}. {opened.path} has rows 0 to {len(opened) - 1}."
        )
    return different


# Making, storing and opening the gallery


@dataclass(frozen=True)
class _Source:
    """The images that a gallery is made of."""

    opened: ImageFolder
    channels: tuple[int, ...]
    train: IntArray
    holdout: IntArray

    @property
    def subjects(self) -> TextArray:
        """Subject of each train image."""
        return self.opened.column("subject")[self.train]

    def key(self) -> str:
        """SHA-256 of all that gallery and holdout depend on: images, who they are of, channels, code."""
        digests, subjects = self.opened.column("digest"), self.opened.column("subject")
        content = [column[rows].tolist() for rows in (self.train, self.holdout) for column in (digests, subjects)]
        told = [FORMAT, _digest_code(), list(self.channels), self.opened.dtype.name, content]
        return hashlib.sha256(json.dumps(told).encode()).hexdigest()

    def blocks(self, rows: IntArray, title: str) -> Iterable[Pixels]:
        """Images of ``rows``, chosen channels only, block by block, with progress."""
        with show_progress(title, total=len(rows), unit="images") as progress:
            for _, pixels in iterate_blocks(self.opened, rows):
                yield pick_channels(pixels, self.channels)
                progress.advance(len(pixels))


@functools.cache
def _digest_code() -> str:
    """Digest of the code that views and scores come from: scores of other code must not be compared with ours."""
    files = [Path(str(module.__file__)) for module in (views_code, gallery_code)]
    # Where only compiled code is installed, the version must do.
    content = b"".join(file.read_bytes() if file.is_file() else folders.made_by().encode() for file in files)
    return hashlib.sha256(content).hexdigest()


def _name(channels: tuple[int, ...], selection: tuple[IntArray, IntArray] | None) -> str:
    """Name of the file: one for each choice of channels and rows, the same when the cohort changes."""
    name = "-".join(["gallery", "channels", *map(str, channels)])
    if selection is not None:
        told = json.dumps([rows.tolist() for rows in selection])
        name += f"-rows-{hashlib.sha256(told.encode()).hexdigest()[:16]}"
    return f"{name}.safetensors"


def _open_gallery(source: _Source, name: str, tell: Notice) -> tuple[Gallery, Resemblance, Path | None]:
    """The gallery and the holdout's resemblance, from the file if it fits, else made and kept there."""
    place, key = source.opened.path / folders.INDEX / name, source.key()
    try:
        gallery, known = _load(place, source, key)
    except FileNotFoundError:
        tell(f"{place} is made: later it is read instead.")
    except MISFIT as error:
        said = " ".join(str(error).split())[:200] or type(error).__name__
        tell(f"{place} does not fit ({said}). It is made again.")
    else:
        return gallery, known, place
    small = [shrink(pixels) for pixels in source.blocks(source.train, "Looking at train images")]
    gallery = Gallery(np.concatenate(small), source.subjects)
    held = [gallery.resemble(pixels) for pixels in source.blocks(source.holdout, "Looking at holdout images")]
    known = _join(held)
    try:
        _keep(place, gallery, known, key)
    except (OSError, SafetensorError) as error:
        said = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        tell(f"{place} cannot be written ({said}). It is kept in memory for now.")
        return gallery, known, None
    return gallery, known, place


def _join(parts: Sequence[Resemblance]) -> Resemblance:
    if not parts:
        nothing = np.empty((len(VIEWS), 0), dtype=np.int64)
        return Resemblance(nothing.astype(np.float64), nothing, nothing)
    columns = ([getattr(part, name) for part in parts] for name in ("scores", "references", "poses"))
    return Resemblance(*(np.concatenate(column, axis=1) for column in columns))


def _pack(gallery: Gallery, known: Resemblance) -> dict[str, torch.Tensor]:
    """The arrays that cannot be told from the size of the images."""
    whitened, equalized = gallery.views.whitened, gallery.views.equalized
    return {
        "small": gallery.small,
        **{f"table-{at}": table for at, table in enumerate(gallery.tables)},
        "whitened-mean": whitened.mean,
        "whitened-components": whitened.components,
        "equalized-mean": equalized.mean,
        "equalized-components": equalized.components,
        "scores": torch.from_numpy(np.ascontiguousarray(known.scores)),
        "references": torch.from_numpy(np.ascontiguousarray(known.references)),
        "poses": torch.from_numpy(np.ascontiguousarray(known.poses)),
    }


def _check(tensor: torch.Tensor) -> int:
    return int(zlib_ng.crc32(tensor.numpy().reshape(-1).view(np.uint8).data))


def _keep(place: Path, gallery: Gallery, known: Resemblance, key: str) -> None:
    """Write the file, whole or not at all."""
    arrays = {name: array.contiguous() for name, array in _pack(gallery, known).items()}
    header = {
        "key": key,
        "reach": gallery.reach,
        "poses": [pose.name for pose in gallery.poses],
        "checks": {name: _check(array) for name, array in arrays.items()},
    }
    place.parent.mkdir(exist_ok=True)
    # A name of its own: two processes may write the same file.
    partial = place.with_name(f"{place.name}.{secrets.token_hex(4)}.partial")
    try:
        save_file(arrays, partial, metadata={HEADER: json.dumps(header)})
        with partial.open("rb") as stream:
            os.fsync(stream.fileno())
        partial.replace(place)
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def _load(place: Path, source: _Source, key: str) -> tuple[Gallery, Resemblance]:
    """Read what `_keep` wrote; shapes are checked before memory is taken. Raises one of `MISFIT` if it does not fit."""
    if not place.is_file():
        raise FileNotFoundError(f"{place} is missing")
    with safe_open(place, framework="pt") as stream:
        header = json.loads((stream.metadata() or {})[HEADER])
        if header["key"] != key:
            raise ValueError("it was made of other images, or by another version")
        parts = {name: stream.get_slice(name) for name in stream.keys()}  # noqa: SIM118
        shapes = {name: tuple(part.get_shape()) for name, part in parts.items()}
        gallery = _frame(source, header)
        types = {name: part.get_dtype() for name, part in parts.items()}
        if shapes != _layout(gallery, source, shapes) or types != {name: TYPES.get(name, "F32") for name in shapes}:
            raise ValueError("its arrays are of other sizes")
        # Copies: the file may be replaced while we hold them.
        arrays = {name: stream.get_tensor(name).clone() for name in shapes}
    if {name: _check(array) for name, array in arrays.items()} != header["checks"]:
        raise ValueError("it is damaged")
    whitened, equalized = (
        Whitening(arrays[f"{view}-mean"], arrays[f"{view}-components"]) for view in ("whitened", "equalized")
    )
    height, width = (side - 2 * gallery.reach for side in gallery.small.shape[2:])
    coarse = Equalizer.of(height, width, upto=COARSE_FREQUENCY)
    gallery.views = Views(Equalizer.of(height, width), coarse, whitened, equalized)
    gallery.small = arrays["small"]
    gallery.tables = [arrays[f"table-{at}"] for at in range(3)]
    return gallery, Resemblance(*(arrays[name].numpy() for name in ("scores", "references", "poses")))


def _frame(source: _Source, header: Mapping[str, Any]) -> Gallery:
    """A gallery without its views and tables; ``small`` has the right shape and takes no memory."""
    channels = len(source.channels)
    height, width = shrink(np.empty((0, channels, *source.opened.size), source.opened.dtype)).shape[2:]
    gallery = Gallery.__new__(Gallery)
    _, owners = np.unique(source.subjects, return_inverse=True)
    gallery.small = torch.empty((len(owners), channels, height, width), dtype=torch.uint8, device="meta")
    gallery.owners = torch.from_numpy(owners.astype(np.int64))
    gallery.subjects = int(owners.max()) + 1
    gallery.reach = header["reach"]
    if not isinstance(gallery.reach, int) or not 0 <= 2 * gallery.reach < min(height, width):
        raise ValueError("its header is damaged")
    names = header["poses"]
    if names not in ([pose.name for pose in POSES], [pose.name for pose in FLIPS]):
        raise ValueError("its header is damaged")
    gallery.poses = POSES if len(names) == len(POSES) else FLIPS
    gallery.whole = Equalizer.of(height, width)
    return gallery


def _layout(gallery: Gallery, source: _Source, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Shape of each array; only the numbers of principal components are taken from the file, within their limit."""
    count, channels, *size = gallery.small.shape
    height, width = (side - 2 * gallery.reach for side in size)
    kept, low = (
        channels * len(equalizer.kept)
        for equalizer in (Equalizer.of(height, width), Equalizer.of(height, width, upto=COARSE_FREQUENCY))
    )
    first, second = (min(shapes[f"{view}-components"][-1], COMPONENTS) for view in ("whitened", "equalized"))
    pixels, held = channels * height * width, (len(VIEWS), len(source.holdout))
    return {
        "small": tuple(gallery.small.shape),
        "table-0": (count, low),
        "table-1": (count, first),
        "table-2": (count, second),
        "whitened-mean": (pixels,),
        "whitened-components": (pixels, first),
        "equalized-mean": (kept,),
        "equalized-components": (kept, second),
        "scores": held,
        "references": held,
        "poses": held,
    }
