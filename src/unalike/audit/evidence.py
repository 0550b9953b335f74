"""What speaks for a copy: several measures of how much an image stands out as one training subject's.

Each image is held against all images of the train role by the views of `similarity.gallery` and, if asked for, in
learned spaces and by patches. A measure is a number per image, the higher the more it looks like a copy; what makes it
a finding is the same number of held-out subjects' images (``calibrate``).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from unalike import folders
from unalike.audit.settings import AuditSettings
from unalike.cohort.roles import ImageSet
from unalike.cohort.store import iterate_blocks
from unalike.engine import Progress, show_progress
from unalike.records import FloatArray, IntArray, Pixels
from unalike.similarity.correlation import Block
from unalike.similarity.embedding.settings import EmbeddingSettings
from unalike.similarity.gallery import POSES, Gallery, distance_above, rank_subjects
from unalike.similarity.views import EQUALIZED, RAW, WHITENED, shrink

LOCAL = "local"
# Images examined together by learned spaces and patches.
AT_ONCE = 256
# Nearest images in a learned space among which other subjects are looked for.
NEIGHBOURS = 64


@dataclass(frozen=True)
class Measure:
    """One measure: its name, how much it is trusted beside the others, and what it shows."""

    name: str
    weight: float
    meaning: str


# Plain correlation counts less: a smooth image correlates with everybody (docs/evidence.md).
MEASURES = (
    Measure(RAW, 0.1, "correlation of plain pixels, at the best small shift, turn and mirror image"),
    Measure(WHITENED, 0.75, "the same, with what is common to all patients counting little: finds noisy copies"),
    Measure(EQUALIZED, 1.0, "the same, with all frequencies equally strong: finds blurred, turned and blended copies"),
)
OPTIONAL = {
    "autoencoder": Measure("autoencoder", 0.5, "cosine in the space of an autoencoder of the train images"),
    "contrastive": Measure("contrastive", 0.5, "cosine in a space in which turned and moved copies lie near"),
    LOCAL: Measure(LOCAL, 0.5, "the best match of a patch: finds a lesion copied into another patient"),
}


@dataclass(frozen=True)
class Evidence:
    """What the measures say of n images.

    ``scores`` (measures, n), NaN where undefined; ``references`` (measures, n) are rows of the train folder, −1 for
    none; ``poses`` (measures, n) index `POSES`.
    """

    measures: tuple[Measure, ...]
    scores: FloatArray
    references: IntArray
    poses: IntArray

    @property
    def weights(self) -> list[float]:
        """Weight of each measure."""
        return [measure.weight for measure in self.measures]

    def part(self, chosen: IntArray | slice) -> Evidence:
        """That of some of the images."""
        return Evidence(self.measures, self.scores[:, chosen], self.references[:, chosen], self.poses[:, chosen])


def measures_of(settings: AuditSettings) -> tuple[Measure, ...]:
    """The measures that an audit with these settings takes, in order."""
    return MEASURES + tuple(OPTIONAL[name] for name in settings.extra_measures)


class Examiner:
    """Holds the train images, to examine any number of others."""

    def __init__(
        self, train: ImageSet, *, channels: Sequence[int], settings: AuditSettings, seed: int, device: torch.device
    ) -> None:
        """Look at all train images (of all subjects: the reference is never thinned out)."""
        self.train, self.channels, self.settings = train, list(channels), settings
        with show_progress("Looking at train images", total=len(train), unit="images") as progress:
            small = [shrink(pixels[:, self.channels]) for pixels in _watch(train, progress)]
        self.gallery = Gallery(np.concatenate(small), train.subjects)
        self.measures = measures_of(settings)
        self.spaces = [
            _Space(train, EmbeddingSettings(kind=kind), self.channels, seed, device)
            for kind in ("autoencoder", "contrastive")
            if kind in settings.learned
        ]

    def examine(self, blocks: Iterable[Pixels]) -> Evidence:
        """The evidence of images that come in blocks (n, C, H, W) of all channels."""
        parts = [self._examine(block) for block in blocks if len(block)]
        if not parts:
            nothing = np.empty((len(self.measures), 0), dtype=np.int64)
            return Evidence(self.measures, nothing.astype(np.float64), nothing, nothing)
        return Evidence(self.measures, *(np.concatenate(column, axis=1) for column in zip(*parts, strict=True)))

    def examine_set(self, images: ImageSet, title: str) -> Evidence:
        """The evidence of all images of a set, streamed."""
        with show_progress(title, total=len(images), unit="images") as progress:
            return self.examine(_watch(images, progress))

    def _examine(self, pixels: Pixels) -> tuple[FloatArray, IntArray, IntArray]:
        found = self.gallery.resemble(pixels[:, self.channels])
        scores, places = list(found.scores), list(found.references)
        for space in self.spaces:
            score, place = space.examine(pixels, self.gallery.owners)
            scores.append(np.where(np.isnan(found.scores[0]), np.nan, score))
            places.append(place)
        if self.settings.local:
            score, place = self._examine_patches(pixels)
            scores.append(score)
            places.append(place)
        poses = np.zeros((len(scores), len(pixels)), dtype=np.int64)
        poses[: len(found.poses)] = found.poses
        rows = np.append(self.train.rows, -1)  # place −1 reads the last entry
        return np.stack(scores), rows[np.stack(places)], poses

    def _examine_patches(self, pixels: Pixels) -> tuple[FloatArray, IntArray]:
        from unalike.similarity.local import find_local_matches

        folder = self.train.folder
        references = (Block(first, block) for first, block in iterate_blocks(folder, self.train.rows))
        found = find_local_matches(
            queries=pixels, references=references, channels=self.channels, mirrors=("none", "left-right")
        )
        return found.highest, found.references[:, 0]


class _Space:
    """The train images in a learned space."""

    def __init__(
        self, train: ImageSet, settings: EmbeddingSettings, channels: list[int], seed: int, device: torch.device
    ) -> None:
        from unalike.similarity.embedding.train import cached_embedding

        folder = train.folder
        _, subjects = np.unique(train.subjects, return_inverse=True)
        with show_progress(f"Learning a space ({settings.kind})", total=settings.steps, unit="steps") as progress:
            self.embedding = cached_embedding(
                cache=folder.path / folders.INDEX if folder.header.kind == "cohort" else None,
                digests=train.digests.tolist(),
                read=folder.read,
                rows=train.rows,
                channels=channels,
                settings=settings,
                seed=seed,
                device=device,
                subjects=subjects.astype(np.int64),
                progress=progress,
            )
        vectors = [self.embedding.embed(pixels) for _, pixels in iterate_blocks(folder, train.rows)]
        self.vectors = torch.from_numpy(np.concatenate(vectors))

    def examine(self, pixels: Pixels, owners: torch.Tensor) -> tuple[FloatArray, IntArray]:
        """How much each image stands out as one subject's, and the place of the nearest train image."""
        similarities = torch.from_numpy(self.embedding.embed(pixels)) @ self.vectors.T
        nearest = similarities.topk(min(NEIGHBOURS, similarities.shape[1]), dim=1)
        score = distance_above(rank_subjects(nearest.values, owners[nearest.indices]))
        return np.round(score.numpy(), 5), nearest.indices[:, 0].numpy()


def _watch(images: ImageSet, progress: Progress) -> Iterable[Pixels]:
    for _, pixels in iterate_blocks(images.folder, images.rows):
        for begin in range(0, len(pixels), AT_ONCE):
            yield pixels[begin : begin + AT_ONCE]
            progress.advance(len(pixels[begin : begin + AT_ONCE]))


def pose_names(evidence: Evidence) -> list[list[str]]:
    """The pose of each image under each measure, in words."""
    return [[POSES[pose].name for pose in row] for row in evidence.poses.tolist()]
