"""How much each query stands out as one training subject's: mirrored, turned, moved, blurred or noisy copies included.

1. *Candidates.* All pairs are compared in three views, in all poses (mirror images and quarter turns), nothing moved.
   What comes out near the top in any of them goes on: some images, and the best image of each of some subjects.
2. *Alignment.* Each candidate is laid over the query, which is also turned by a few degrees, at all shifts of up to
   `REACH` pixels. The turn and shift of the highest correlation is kept, of images with equalized frequencies.
3. *Scores.* The similarity there, in each view, is turned into how far the best subject stands out
   from the others: what a query's blur or noise does to *all* similarities counts for nothing.

Every image is treated alike, whether it is synthetic, held out, or planted, and depends on the other queries in no
way. So p-values from held-out subjects are valid whatever the search leaves out; only power depends on it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from unalike.engine import map_in_order
from unalike.records import FloatArray, IntArray, Pixels, TextArray
from unalike.similarity.correlation import single_threaded_torch
from unalike.similarity.views import EQUALIZED, RAW, VIEWS, WHITENED, Equalizer, Views, shrink

# Pixels (of at most `views.SIDE`) and degrees by which a copy may have moved.
REACH = 2
TURNS = (0.0, -3.0, 3.0)
# Images, and different subjects, that go on from each view.
IMAGES, SUBJECTS = 4, 6
# The similarity with this many other subjects counts as what strangers reach.
OTHERS = 5
# Training images that views are fitted on.
FITTED = 2048
# Queries worked on together, and training images looked at together.
QUERIES = 8
LOOKED_AT = 256
# Pairs laid over each other together: few enough that memory freed by the last ones holds them.
PAIRS = 32
# Similarities of strangers below this count as this much.
LEAST = 0.05
# Scores are compared with one another: what rounding does in another order must not decide.
DECIMALS = 5


@dataclass(frozen=True)
class Pose:
    """A mirror image or quarter turn, as axes swapped and reversed."""

    name: str
    swap: bool
    flip: tuple[int, ...]

    def apply(self, images: torch.Tensor) -> torch.Tensor:
        """Images (…, h, w) in this pose."""
        turned = images.transpose(-1, -2) if self.swap else images
        return turned.flip(self.flip) if self.flip else turned


FLIPS = (
    Pose("as it is", False, ()),
    Pose("left-right", False, (-1,)),
    Pose("up-down", False, (-2,)),
    Pose("half turn", False, (-1, -2)),
)
POSES = (
    *FLIPS,
    Pose("diagonal", True, ()),
    Pose("quarter turn", True, (-1,)),
    Pose("three-quarter turn", True, (-2,)),
    Pose("other diagonal", True, (-1, -2)),
)


@dataclass(frozen=True)
class Resemblance:
    """Of n queries: how much each stands out as one subject's, in each view of `VIEWS`; and whose.

    ``scores`` (views, n) are comparable within a view, NaN where undefined (constant images); ``references``
    (views, n) is the training image each comes closest to, −1 for none; ``poses`` (views, n) indexes `POSES`.
    """

    scores: FloatArray
    references: IntArray
    poses: IntArray


@dataclass(frozen=True)
class _Candidates:
    """Of n queries: images (n, k), and the poses (n, k) of the query in which they were found."""

    images: torch.Tensor
    poses: torch.Tensor


class Gallery:
    """The training images in all views, to hold any number of queries against."""

    def __init__(self, images: Pixels, subjects: TextArray) -> None:
        """Fit the views on ``images`` (N, C, H, W), whose subjects (N,) are named, and look at all of them.

        Images that `shrink` has made small already are taken as they are, so a large set can come block by block.
        """
        small = torch.from_numpy(shrink(images))
        _, owners = np.unique(subjects, return_inverse=True)
        self.small = small
        self.owners = torch.from_numpy(owners.astype(np.int64))
        self.subjects = int(owners.max()) + 1 if len(owners) else 0
        height, width = small.shape[2:]
        self.reach = max(min(REACH, (min(height, width) - 5) // 2), 0)
        self.poses = POSES if height == width else FLIPS
        self.whole = Equalizer.of(height, width)
        spread = np.unique(np.linspace(0, max(len(small) - 1, 0), FITTED).astype(np.int64))
        # Few threads in torch, see `resemble`.
        with single_threaded_torch() as threads:
            self.views = Views.fit(self._inner(small[torch.from_numpy(spread)].to(torch.float32)))
            looked = list(map_in_order(self._look_at, torch.split(small, LOOKED_AT), workers=threads))
        self.tables = [torch.cat(parts) for parts in zip(*looked, strict=True)]

    def _look_at(self, small: torch.Tensor) -> list[torch.Tensor]:
        return self._look(small.to(torch.float32))

    def _inner(self, images: torch.Tensor, down: int = 0, across: int = 0) -> torch.Tensor:
        """The window that stays inside when images (…, h, w) are moved by up to ``reach``."""
        edge, (height, width) = self.reach, images.shape[-2:]
        return images[..., edge + down : height - edge + down, edge + across : width - edge + across]

    def _look(self, images: torch.Tensor) -> list[torch.Tensor]:
        """The vectors by which candidates are found: coarse, whitened, equalized."""
        window = self._inner(images)
        views = self.views.look(window)
        return [self.views.look_coarsely(window), views[WHITENED], views[EQUALIZED]]

    def resemble(self, queries: Pixels) -> Resemblance:
        """Hold queries (n, C, H, W) of the training images' geometry against all of them."""
        small = torch.from_numpy(shrink(queries))
        # Small steps: threads that do whole parts beat threads that share each step.
        with single_threaded_torch() as threads:
            waiting = torch.split(small, QUERIES) if len(small) else ()
            parts = list(map_in_order(self._resemble, waiting, workers=threads))
        if not parts:
            nothing = np.empty((len(VIEWS), 0))
            return Resemblance(nothing, nothing.astype(np.int64), nothing.astype(np.int64))
        return Resemblance(*(np.concatenate(column, axis=1) for column in zip(*parts, strict=True)))

    def _resemble(self, small: torch.Tensor) -> tuple[FloatArray, IntArray, IntArray]:
        images = small.to(torch.float32)
        posed = torch.stack([pose.apply(images) for pose in self.poses], dim=1)
        candidates = self._find_candidates(posed)
        similarities = self._compare(posed, candidates)
        owners = self.owners[candidates.images]
        constant = images.flatten(1).amax(dim=1) - images.flatten(1).amin(dim=1) == 0
        scores, references, poses = [], [], []
        for name in VIEWS:
            best = similarities[name].argmax(dim=1, keepdim=True)
            score = _SCORES[name](rank_subjects(similarities[name], owners))
            scores.append(np.where(constant, np.nan, np.round(score.numpy(), DECIMALS)))
            references.append(np.where(constant, -1, candidates.images.gather(1, best)[:, 0].numpy()))
            poses.append(np.where(constant, 0, candidates.poses.gather(1, best)[:, 0].numpy()))
        return np.stack(scores), np.stack(references), np.stack(poses)

    def _find_candidates(self, posed: torch.Tensor) -> _Candidates:
        """Compare posed queries (n, poses, C, h, w) with all images; only the coarse view looks at shifts as well."""
        count, number = posed.shape[:2]
        flat = posed.flatten(0, 1)
        still = self._look(flat)
        # In small images even the coarse view tells one pixel from the next.
        steps = range(-self.reach, self.reach + 1, 1 if min(self.small.shape[2:]) < 32 else max(self.reach, 1))
        moved = [self.views.look_coarsely(self._inner(flat, down, across)) for down in steps for across in steps]
        images, poses = [], []
        for table, looks in zip(self.tables, (moved, [still[1]], [still[2]]), strict=True):
            highest = torch.full((count, len(table)), -2.0)
            pose = torch.zeros(count, len(table), dtype=torch.int8)
            for vectors in looks:
                for index, own in enumerate(vectors.view(count, number, -1).unbind(dim=1)):
                    found = own @ table.T
                    pose.masked_fill_(found > highest, index)
                    highest = torch.maximum(highest, found)
            chosen = torch.cat([_best_images(highest), self._best_of_subjects(highest)], dim=1)
            images.append(chosen)
            poses.append(pose.gather(1, chosen).to(torch.int64))
        return _Candidates(torch.cat(images, dim=1), torch.cat(poses, dim=1))

    def _best_of_subjects(self, similarities: torch.Tensor) -> torch.Tensor:
        """The best image (n, k) of each of the k subjects that come closest."""
        count = len(similarities)
        highest = torch.full((count, self.subjects), -2.0)
        highest.scatter_reduce_(1, self.owners.expand(count, -1), similarities, "amax")
        values, subjects = highest.topk(min(SUBJECTS, self.subjects), dim=1)
        found = []
        for value, subject in zip(values.unbind(dim=1), subjects.unbind(dim=1), strict=True):
            own = (self.owners == subject[:, None]) & (similarities >= value[:, None])
            found.append(own.to(torch.int8).argmax(dim=1))
        return torch.stack(found, dim=1)

    def _compare(self, posed: torch.Tensor, candidates: _Candidates) -> dict[str, torch.Tensor]:
        """Similarities (n, k) of each view, each query laid over each candidate."""
        count, number = candidates.images.shape
        poses = posed.shape[1]
        # Only the poses in which something was found, each once.
        used, own = _distinct((torch.arange(count)[:, None] * poses + candidates.poses).flatten())
        turned = torch.stack([_turn(posed.flatten(0, 1)[used], turn) for turn in TURNS], dim=1)  # (m, turns, C, h, w)
        equal = self._equalize(turned.flatten(0, 1)).view(turned.shape)
        images, place = _distinct(candidates.images)
        references = self.small[images].to(torch.float32)
        level = self._equalize(references)
        aligned = [
            self._align(equal[query], level[reference])
            for query, reference in zip(torch.split(own, PAIRS), torch.split(place.flatten(), PAIRS), strict=True)
        ]
        turn, down, across = (torch.cat(column) for column in zip(*aligned, strict=True))
        seen = self._look_once(turned.flatten(0, 1), own * len(TURNS) + turn, None)
        other = self._look_once(references, place.flatten(), (down, across))
        return {name: torch.linalg.vecdot(seen[name], other[name]).view(count, number) for name in VIEWS}

    def _look_once(
        self, images: torch.Tensor, chosen: torch.Tensor, shift: tuple[torch.Tensor, torch.Tensor] | None
    ) -> dict[str, torch.Tensor]:
        """Views of the windows of ``chosen`` images, each at its shift; what occurs twice is looked at once."""
        edge, shifts = self.reach, 2 * self.reach + 1
        place = chosen * shifts**2 + (shift[0] * shifts + shift[1] if shift else edge * shifts + edge)
        different, back = _distinct(place)
        windows = images.unfold(2, images.shape[2] - 2 * edge, 1).unfold(3, images.shape[3] - 2 * edge, 1)
        which = different // shifts**2, different // shifts % shifts, different % shifts
        found = self.views.look(windows[which[0], :, which[1], which[2]])
        return {name: vectors[back] for name, vectors in found.items()}

    def _equalize(self, images: torch.Tensor) -> torch.Tensor:
        """Whole images (n, C, h, w) with their frequencies equalized, to be laid over each other."""
        return self.whole.restore(self.whole.transform(images))

    def _align(
        self, queries: torch.Tensor, references: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Turn, and shift down and across, (m,), at which queries (m, turns, C, h, w) and references (m, C, h, w)
        correlate best; shifts count from −``reach`` as 0."""
        turns, height = queries.shape[1], queries.shape[3]
        edge, shifts = self.reach, 2 * self.reach + 1
        inner = self._inner(queries)
        inner = inner - inner.mean(dim=(2, 3, 4), keepdim=True)  # which centres the products as well
        # The query's window beside zeros, one copy a shift across: then rows of the reference need no cutting.
        wide = torch.stack(
            [torch.nn.functional.pad(inner, (dx, 2 * edge - dx)) for dx in range(shifts)], dim=2
        ).flatten(3)
        tall = height - 2 * edge
        rows = torch.stack([references[:, :, dy : dy + tall].flatten(1) for dy in range(shifts)], dim=1)
        products = (wide.flatten(1, 2) @ rows.mT).view(-1, turns, shifts, shifts).transpose(2, 3)
        spread = self._spread(references)
        correlation = products / (inner.flatten(2).norm(dim=2)[:, :, None, None] * spread[:, None]).clamp(min=1e-6)
        place = correlation.flatten(1).argmax(dim=1)
        return place // shifts**2, place // shifts % shifts, place % shifts

    def _spread(self, images: torch.Tensor) -> torch.Tensor:
        """√Σ(a − ā)² of the window at each shift: (n, down, across), of images (n, C, h, w)."""
        height, width = (side - 2 * self.reach for side in images.shape[2:])
        sums = [
            torch.nn.functional.avg_pool2d(values.sum(dim=1, keepdim=True), (height, width), stride=1)[:, 0]
            for values in (images, images.square())
        ]
        channels = images.shape[1]
        variance = sums[1] / channels - (sums[0] / channels).square()
        return (variance.clamp(min=0) * channels * height * width).sqrt()


def _distinct(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Different values, and the place among them of each."""
    different, place = np.unique(values.numpy(), return_inverse=True)
    return torch.from_numpy(different), torch.from_numpy(place).view(values.shape)


def _best_images(similarities: torch.Tensor) -> torch.Tensor:
    return similarities.topk(min(IMAGES, similarities.shape[1]), dim=1).indices


def rank_subjects(values: torch.Tensor, owners: torch.Tensor) -> torch.Tensor:
    """artanh of the highest similarity with each different subject, falling, (n, `OTHERS` + 1) float64, of (n, k).

    Where there are fewer subjects the last one counts again; with one alone, the others count as 0.
    """
    values, order = values.sort(dim=1, descending=True, stable=True)
    owners = owners.gather(1, order)
    again = (owners[:, :, None] == owners[:, None, :]).tril(diagonal=-1).any(dim=2)
    first = values.masked_fill(again, -2.0).sort(dim=1, descending=True).values
    known = (first > -2.0).sum(dim=1, keepdim=True)
    place = torch.arange(OTHERS + 1).expand(len(values), -1)
    chosen = first.gather(1, torch.minimum(place, known - 1)).to(torch.float64)
    return torch.atanh(chosen.clamp(-1 + 1e-6, 1 - 1e-6)) * ((known > 1) | (place == 0))


def distance_above(ranked: torch.Tensor) -> torch.Tensor:
    """How far above the fifth other subject the best one is."""
    return ranked[:, 0] - ranked[:, OTHERS]


def _distance_for_its_level(ranked: torch.Tensor) -> torch.Tensor:
    """The same, over the root of what the next four reach: noise lowers all of them, and the distance with them."""
    return distance_above(ranked) / ranked[:, 1:OTHERS].mean(dim=1).clamp(min=LEAST).sqrt()


# What found most planted copies in each view (docs/evidence.md).
_SCORES = {RAW: distance_above, WHITENED: _distance_for_its_level, EQUALIZED: distance_above}


def _turn(images: torch.Tensor, degrees: float) -> torch.Tensor:
    """Images (n, C, h, w) turned about their middle, bilinear, edges repeated."""
    if degrees == 0:
        return images
    height, width = images.shape[-2:]
    angle = np.deg2rad(degrees)
    cosine, sine = float(np.cos(angle)), float(np.sin(angle))
    # In units of half a side, which differ if the sides do.
    matrix = torch.tensor([[cosine, -sine * height / width, 0.0], [sine * width / height, cosine, 0.0]])
    grid = torch.nn.functional.affine_grid(matrix.expand(len(images), 2, 3), list(images.shape), align_corners=False)
    return torch.nn.functional.grid_sample(images, grid, padding_mode="border", align_corners=False)
