"""Who plays which role: synthetic, train and holdout images, from folders of ours or plain folders of pictures."""

from __future__ import annotations

import contextlib
import hashlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from unalike import folders
from unalike.cohort.build import prepare_cohort
from unalike.cohort.settings import PictureSettings, PrepareSettings
from unalike.cohort.split import select_train_rows
from unalike.cohort.store import ImageFolder, open_images
from unalike.errors import InputError, SettingsError
from unalike.records import MASK, IntArray, TextArray, estimate_from_json


@dataclass(frozen=True)
class ImageSet:
    """The images of one role: some rows of one folder."""

    folder: ImageFolder
    rows: IntArray

    @property
    def digests(self) -> TextArray:
        """Digest of each image's pixels."""
        return self.folder.column("digest")[self.rows]

    @property
    def subjects(self) -> TextArray:
        """Subject of each image."""
        return self.folder.column("subject")[self.rows]

    @property
    def labels(self) -> TextArray:
        """Class of each image, "" where there is none."""
        return self.folder.column("label")[self.rows]

    def __len__(self) -> int:
        """Number of images."""
        return len(self.rows)


@dataclass(frozen=True)
class Roles:
    """Synthetic, train and holdout images, and what must be said before anything else (``warnings``).

    ``left_out`` are images of the holdout that were taken out of it, because their subject or picture is in train too.
    """

    synthetic: ImageSet
    train: ImageSet
    holdout: ImageSet
    left_out: ImageSet
    warnings: tuple[str, ...]
    inputs: dict[str, str]

    @property
    def channels(self) -> tuple[str, ...]:
        """Channels that all three share."""
        return self.train.folder.channels


@contextlib.contextmanager
def open_roles(
    *,
    synthetic: Path,
    against: Path | None,
    train: Path | None,
    holdout: Path | None,
    settings: PictureSettings,
    labels: bool = False,
) -> Iterator[Roles]:
    """Open what the user named; plain folders live in a temporary cohort for as long as the context.

    Either ``against`` (a cohort) or ``train`` (and ``holdout``, without which nothing can be calibrated). ``labels``:
    folders in plain folders are classes.

    Raises `InputError` if roles are missing or do not fit each other.
    """
    if against is not None and (train is not None or holdout is not None):
        raise SettingsError("--train and --holdout stand in for --against: a cohort has its own roles. Drop one.")
    with tempfile.TemporaryDirectory(prefix="unalike-") as scratch:
        real = [path for path in (train, holdout) if path is not None]
        opener = _Opener(Path(scratch), settings, labels, real)
        try:
            if against is not None:
                roles = _roles_of_cohort(opener, synthetic, open_images(against))
            elif train is not None:
                roles = _roles_of_folders(opener, synthetic, train, holdout)
            else:
                raise SettingsError("give --against COHORT, or --train FOLDER (with --holdout FOLDER).")
            roles = _distrust(roles)
            _check_fit(roles)
            yield roles
        except InputError as error:
            # What was given is what a message must name, not where it was prepared.
            named = str(error)
            for place, given in opener.given.items():
                named = named.replace(str(place), str(given))
            if named == str(error):
                raise
            raise type(error)(named) from error


class _Opener:
    """Opens folders of ours as they are and prepares plain folders of pictures into a scratch cohort."""

    def __init__(self, scratch: Path, settings: PictureSettings, labels: bool, real: Sequence[Path]) -> None:
        self.scratch, self.settings, self.labels, self.real = scratch, settings, labels, real
        self.given: dict[Path, Path] = {}

    def open(self, path: Path, *, like: ImageFolder | None = None, role: str) -> ImageFolder:
        kind = folders.kind_of(path) if path.is_dir() else None
        if kind in {"cohort", "samples"}:
            return open_images(path, kind=kind)
        if kind or (path / folders.UNFINISHED).is_file():
            folders.read_header(path, kind="samples")  # raises, saying what is there instead
        pattern = self.settings.volume_pattern if role == "synthetic" else self.settings.subject_pattern
        named = pattern is not None and role != "synthetic"
        wanted = PrepareSettings(
            size=self.settings.size,
            fit=self.settings.fit,
            color=self.settings.color,
            holdout=0.0,
            labels=self.labels,
            on_leak="report",  # whoever is compared is compared as he is
            near_duplicates=0.0,
            subject_pattern=pattern,
        )
        if like is not None and self.settings.size is None and like.size[0] == like.size[1]:
            wanted = replace(wanted, size=like.size[0])
        if like is not None and self.settings.color == "auto":
            wanted = replace(wanted, color="gray" if len(like.channels) == 1 else "rgb")
        # One key for all roles lets a shared patient be seen. Without a pattern the file name is no patient,
        # and "001.png" in two folders must not look like one.
        key = _key_of(*self.real) if named else _key_of(path)
        self.given[self.scratch / role] = path
        return prepare_cohort(source=path, out=self.scratch / role, settings=wanted, key=key)

    def digest(self, folder: ImageFolder) -> str:
        """What names a folder in the header: of a plain one its images and whose they are, which stay the same."""
        return str(folder.header.content["content_digest"]) if folder.path in self.given else folder.digest


def _key_of(*places: Path) -> bytes:
    """Key of pseudonyms for plain folders: the same as long as their files are, so that what is drawn stays the same.

    Pseudonyms order the subjects that are resampled. Sizes and times of files are known to who has the files.
    """
    hasher = hashlib.sha256()
    for place in places:
        for file in sorted(path for path in place.rglob("*") if path.is_file()):
            about = file.stat()
            hasher.update(
                f"{file.relative_to(place)}\0{about.st_size}\0{about.st_mtime_ns}\0{place.resolve()}\n".encode()
            )
    return hasher.digest()


def _all(folder: ImageFolder) -> ImageSet:
    return ImageSet(folder, np.arange(len(folder), dtype=np.int64))


def _roles_of_cohort(opener: _Opener, synthetic: Path, cohort: ImageFolder) -> Roles:
    samples = opener.open(synthetic, like=cohort, role="synthetic")
    warnings = []
    train, holdout = cohort.rows("train"), cohort.rows("holdout")
    made_from = samples.header.inputs.get("cohort")
    if samples.header.kind == "samples" and made_from == cohort.digest:
        subjects = samples.header.content.get("subjects")
        seen = select_train_rows(cohort, subjects=subjects, seed=samples.header.content.get("subject_seed", 0))
        # Train subjects whom this generator never saw are held out as well as any.
        holdout = np.sort(np.concatenate([holdout, np.setdiff1d(train, seen)]))
        train = seen
    elif samples.header.kind == "samples":
        warnings.append(
            "These samples were not made from this cohort (or it has changed since): what follows speaks of the "
            "cohort's train role, which the generator may not have seen."
        )
    return Roles(
        synthetic=_all(samples),
        train=ImageSet(cohort, train),
        holdout=ImageSet(cohort, holdout),
        warnings=tuple(warnings),
        inputs={"synthetic": opener.digest(samples), "cohort": cohort.digest},
        left_out=ImageSet(cohort, np.empty(0, np.int64)),
    )


def _roles_of_folders(opener: _Opener, synthetic: Path, train: Path, holdout: Path | None) -> Roles:
    seen = opener.open(train, role="train")
    held = opener.open(holdout, like=seen, role="holdout") if holdout else None
    samples = opener.open(synthetic, like=seen, role="synthetic")
    inputs = {"synthetic": samples, "train": seen} | ({"holdout": held} if held else {})
    assumed = opener.settings.subject_pattern is None and folders.kind_of(train) is None
    return Roles(
        synthetic=_all(samples),
        train=_all(seen),
        holdout=_all(held) if held else ImageSet(seen, np.empty(0, np.int64)),
        warnings=(
            "Each file is taken as a patient of its own, because no --subject-pattern was given: "
            "if patients have several, intervals are too narrow and patients in both roles go unnoticed.",
        )
        if assumed
        else (),
        inputs={name: opener.digest(folder) for name, folder in inputs.items()},
        left_out=ImageSet(held or seen, np.empty(0, np.int64)),
    )


def _distrust(roles: Roles) -> Roles:
    """Take out of the holdout who is also in train, and say so."""
    train, holdout = roles.train, roles.holdout
    subjects = holdout.subjects
    shared = np.isin(subjects, train.subjects)
    twins = np.isin(holdout.digests, train.digests) & ~shared
    suspects = np.unique(subjects[twins])
    out = shared | np.isin(subjects, suspects)
    warnings = []
    if shared.any():
        warnings.append(
            f"{len(np.unique(subjects[shared]))} of {len(np.unique(subjects))} holdout patients also occur in train: "
            "they were left out of the holdout."
        )
    if len(suspects):
        warnings.append(
            f"{len(suspects)} holdout patients have an image that is pixel-identical to a train image: "
            "they were left out of the holdout."
        )
    warnings += _distrust_drawing(roles.synthetic.folder.header.content)
    warnings += _distrust_shapes(roles)
    if roles.synthetic.folder.header.kind == "cohort" and (roles.synthetic.folder.column("role") != "train").any():
        warnings.append("The synthetic images are a cohort with a holdout of its own: are they real patients?")
    return replace(
        roles,
        holdout=ImageSet(holdout.folder, holdout.rows[~out]),
        left_out=ImageSet(holdout.folder, holdout.rows[out]),
        warnings=(*warnings, *roles.warnings),
    )


def _distrust_drawing(content: Mapping[str, Any]) -> list[str]:
    """What the samples' header says of how they were drawn, where that bears on what an audit can find."""
    warnings = []
    guard = content.get("guard")
    if guard:
        share = estimate_from_json(guard["rejected_share"])
        warnings.append(
            f"GUARDED: these samples are what a guard let through; of {guard['drawn']} drawn it rejected "
            f"{guard['rejected']} ({share.value:.1%}, {share.low:.1%} to {share.high:.1%}) as copies at p ≤ "
            f"{guard['level']:g}, by the measures used here. That none is flagged now follows from that; audit an "
            "unguarded draw of the run as well, or use --learned or --local."
        )
    if content.get("rejected"):
        warnings.append("REJECTED: these samples are those that a guard rejected as copies.")
    if (content.get("given") or {}).get("images"):
        warnings.append(
            "GIVEN: these samples were made from given images. If those were samples or pictures of patients, so may "
            "these be."
        )
    return warnings


def _distrust_shapes(roles: Roles) -> list[str]:
    """Pictures of another aspect ratio are padded differently, and a copy among them would not be found."""
    synthetic, train = (images.folder.header for images in (roles.synthetic, roles.train))
    if "aspect_ratios" not in synthetic.content or "aspect_ratios" not in train.content:
        return []  # drawn by a generator of ours: the same shape by construction
    if train.settings.get("fit") == "stretch":
        return []
    (low, high), (least, most) = synthetic.content["aspect_ratios"], train.content["aspect_ratios"]
    if low >= 0.98 * least and high <= 1.02 * most:
        return []
    return [
        f"The synthetic pictures are {low:.2f} to {high:.2f} times as wide as high, the train pictures {least:.2f} to "
        f"{most:.2f}: fitted to one size, copies may no longer lie on top of each other. Consider --fit stretch."
    ]


def _check_fit(roles: Roles) -> None:
    train = roles.train.folder
    for name, other in (("synthetic", roles.synthetic), ("holdout", roles.holdout)):
        folder = other.folder
        if folder.channels != train.channels:
            raise InputError(
                f"{folder.path} ({name}) has channels {', '.join(folder.channels)}, train has "
                f"{', '.join(train.channels)}. Prepare both with the same recipe (plain folders: --color gray)."
            )
        if (folder.size, folder.dtype) != (train.size, train.dtype):
            raise InputError(
                f"{folder.path} ({name}) has {folder.size[1]}×{folder.size[0]} {folder.dtype} images, train has "
                f"{train.size[1]}×{train.size[0]} {train.dtype}. Prepare both alike (plain folders: --size)."
            )
    if len(roles.train) == 0:
        raise InputError("there are no train images to compare with. Check --against or --train.")
    if len(roles.synthetic) == 0:
        raise InputError(f"{roles.synthetic.folder.path} holds no synthetic images. Draw some first.")


def pick_one_each(subjects: TextArray, count: int, random: np.random.Generator) -> IntArray:
    """Positions (count,) of one image each of ``count`` different ``subjects`` (n,), all drawn at random, ascending.

    Fewer subjects than ``count``: one image of all of them.
    """
    shuffled = random.permutation(len(subjects))
    _, first = np.unique(np.asarray(subjects)[shuffled], return_index=True)
    # Names sort, and who comes first must not be by name.
    return np.sort(shuffled[np.sort(first)[:count]]).astype(np.int64)


def choose_channels(roles: Roles, wanted: tuple[str, ...]) -> list[int]:
    """Indices of the channels to compare: the named ones, else all but the mask."""
    unknown = [name for name in wanted if name not in roles.channels]
    if unknown:
        raise SettingsError(f"--channels {', '.join(unknown)}: there are {', '.join(roles.channels)}.")
    chosen = [index for index, name in enumerate(roles.channels) if (name in wanted if wanted else name != MASK)]
    return chosen or list(range(len(roles.channels)))
