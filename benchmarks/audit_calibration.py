"""Do the audit's p-values and its false discovery rate keep what they promise? A simulation, with nothing timed.

    python benchmarks/audit_calibration.py            # 200 repetitions of each part: some seven minutes on one core
    python benchmarks/audit_calibration.py --quick    # a look: 8 repetitions
    python benchmarks/audit_calibration.py --plot     # draws docs/figures/audit-calibration.png as well

Part 1, nothing copied: everything is drawn anew in each repetition, training subjects, holdout subjects and synthetic
images. People are smooth random fields around a common head, so that a repetition takes little more than a second.
Part 2, copies planted, and what holdouts up to 2,000 subjects can certify: procedural brains, a pool of new subjects
for each cohort, dealt out at random into holdout and synthetic images in each repetition.

Tables are printed as Markdown; docs/calibration.md says what they mean. Intervals are of 95 %, over cohorts: images of
one repetition share the holdout, and repetitions of one cohort the training subjects.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy import ndimage

from unalike.audit.evidence import MEASURES
from unalike.cohort.phantom import PhantomSettings, draw_anatomy, draw_pictures
from unalike.records import Estimate, FloatArray, IntArray, Pixels, TextArray
from unalike.seeds import generator_for
from unalike.similarity.gallery import Gallery
from unalike.similarity.views import VIEWS
from unalike.stats.combine import pooled_minimum_p_values
from unalike.stats.conformal import benjamini_hochberg, subject_p_values
from unalike.stats.intervals import estimate_mean, estimate_share

WEIGHTS = {measure.name: measure.weight for measure in MEASURES}
LEVEL, REPETITIONS = 0.05, 200
ALPHAS = (0.01, 0.05, 0.1)
POOLED, BY_IMAGE = "pooled", "pooled, every image on its own"
METHODS = (POOLED, *VIEWS, BY_IMAGE)
SYNTHETIC, COPIES, PLANTED = 100, 20, (1, 5, 20)
HOLDOUTS = (20, 50, 100, 200)
# Cohorts, repetitions of each, and the holdouts dealt out of its pool.
DEALS = ((10, 20, (20, 50, 100, 200, 500)), (4, 50, (1000, 2000)))
FEW, SLICES_OF_FEW = 10, 30  # the holdout with which calibration by image fails
FIGURE = Path(__file__).parent.parent / "docs" / "figures" / "audit-calibration.png"


@dataclass(frozen=True)
class People:
    """Images (n, 1, size, size) uint8 and the number of the subject each shows, (n,)."""

    images: Pixels
    subjects: IntArray

    def one_each(self, random: np.random.Generator) -> Pixels:
        """An image of each subject, drawn at random."""
        order = random.permutation(len(self.subjects))
        _, first = np.unique(self.subjects[order], return_index=True)
        return self.images[order[first]]


@dataclass(frozen=True)
class Scores:
    """Scores (measures, n) and the subjects (n,) they belong to."""

    values: FloatArray
    subjects: IntArray

    def of(self, chosen: IntArray) -> Scores:
        """What belongs to the ``chosen`` subjects."""
        mine = np.isin(self.subjects, chosen)
        return Scores(self.values[:, mine], self.subjects[mine])


@dataclass(frozen=True)
class Outcome:
    """P-values of one repetition with one holdout, of each method: of images of nobody in training, and of copies.

    ``cohort`` numbers its training subjects: repetitions with the same ones are not independent.
    """

    cohort: int
    innocent: Mapping[str, FloatArray]
    copies: Mapping[str, FloatArray]


# --- people ---------------------------------------------------------------------------------------------------------


def enlarge(coarse: FloatArray, size: int) -> FloatArray:
    """Fields (…, k, k), linearly interpolated to (…, size, size)."""
    side = coarse.shape[-1]
    places = np.linspace(0, side - 1, size)
    mix = np.stack([np.interp(places, np.arange(side), row) for row in np.eye(side)], axis=1)
    return np.asarray(mix @ coarse @ mix.T)


def draw_fields(random: np.random.Generator, *, counts: IntArray, size: int = 24) -> People:
    """Subjects with ``counts`` (subjects,) slices each: a head that all have in common, a field of their own, noise.

    Slices of a subject are the field a little further along its depth (up to 0.2 radians), so they are nearly equal.
    """
    down, across = np.meshgrid(*[np.linspace(-1, 1, size)] * 2, indexing="ij")
    radius = np.hypot(down / 0.95, across / 0.8)
    head = np.where(radius < 1, 90 + 60 * np.cos(7 * radius), 0)
    front, behind = enlarge(random.normal(0, 45, (2, len(counts), 11, 11)), size)
    subjects = np.repeat(np.arange(len(counts)), counts)
    depth = random.uniform(-0.2, 0.2, (len(subjects), 1, 1))
    own = np.cos(depth) * front[subjects] + np.sin(depth) * behind[subjects]
    images = head + own * (radius < 1) + random.normal(0, 4, own.shape)
    return People(np.clip(np.rint(images), 0, 255).astype(np.uint8)[:, None], subjects)


def draw_brains(random: np.random.Generator, *, counts: IntArray, size: int = 24) -> People:
    """Procedural brains (T2, 3 mm between slices): the first ``counts`` (subjects,) of at most two slices each."""
    settings = PhantomSettings(size=size, slices=2)
    seed = int(random.integers(1 << 31))
    drawn = []
    for index, count in enumerate(counts):
        anatomy = draw_anatomy(settings=settings, seed=seed, index=index)
        volume = draw_pictures(anatomy=anatomy, settings=settings, seed=seed, index=index)["t2"]
        scaled = np.clip(np.rint(volume * (250 / np.percentile(volume, 99.5))), 0, 255).astype(np.uint8)
        drawn.append(np.moveaxis(scaled, 2, 0)[:count, None])
    return People(np.concatenate(drawn), np.repeat(np.arange(len(counts)), counts))


def draw_copies(random: np.random.Generator, *, images: Pixels, count: int) -> Pixels:
    """Copies of ``count`` random images (n, 1, h, w): noisy, blurred or shifted, one of the three drawn at random."""
    made = []
    for image in images[random.integers(len(images), size=count)].astype(np.float64):
        match random.integers(3):
            case 0:
                changed = image + random.normal(0, random.uniform(8, 25), image.shape)
            case 1:
                changed = ndimage.gaussian_filter(image, (0, *[random.uniform(0.6, 1.2)] * 2))
            case _:
                down, across = random.integers(-2, 3, size=2)
                padded = np.pad(image, ((0, 0), (2, 2), (2, 2)), mode="edge")
                changed = np.roll(padded, (down, across), axis=(1, 2))[:, 2:-2, 2:-2]
        made.append(changed + random.normal(0, 3, image.shape))
    pixels: Pixels = np.clip(np.rint(np.stack(made)), 0, 255).astype(np.uint8)
    return pixels


# --- p-values -------------------------------------------------------------------------------------------------------


def p_values(method: str, scores: FloatArray, holdout: Scores) -> FloatArray:
    """P-values (n,) of ``scores`` (measures, n): pooled, of one measure alone, or with images for subjects."""
    names: TextArray = holdout.subjects.astype(np.str_)
    if method in VIEWS:
        row = VIEWS.index(method)
        return subject_p_values(scores[row], holdout=holdout.values[row], subjects=names)
    if method == BY_IMAGE:
        names = np.arange(len(names)).astype(np.str_)
    weights = [WEIGHTS[view] for view in VIEWS]
    return pooled_minimum_p_values(scores, holdout=holdout.values, subjects=names, weights=weights)


def outcome(
    innocent: FloatArray, *, copies: FloatArray | None = None, holdout: Scores, cohort: int, methods: Sequence[str]
) -> Outcome:
    """P-values of ``methods``, with one holdout."""
    copies = innocent[:, :0] if copies is None else copies
    return Outcome(
        cohort,
        {method: p_values(method, innocent, holdout) for method in methods},
        {method: p_values(method, copies, holdout) for method in methods},
    )


def fresh_repetition(
    seed: int,
    index: int,
    *,
    holdouts: Sequence[int] = HOLDOUTS,
    train: int = 60,
    synthetic: int = SYNTHETIC,
    few: int = FEW,
    slices: int = SLICES_OF_FEW,
) -> dict[str, Outcome]:
    """Everything drawn anew, nothing copied: outcomes by the number of holdout subjects, and of a ``few``.

    Training subjects have 4 slices each, others 1 to 3; the ``few`` 1 to ``slices``, uneven numbers drawn at
    random, whatever the subject.
    """
    random = generator_for(seed, "audit-calibration", index)
    known = draw_fields(random, counts=np.full(train, 4))
    gallery = Gallery(known.images, known.subjects.astype(np.str_))
    strangers = draw_fields(random, counts=random.integers(1, 4, synthetic)).one_each(random)
    innocent = gallery.resemble(strangers).scores
    pool = draw_fields(random, counts=random.integers(1, 4, max(holdouts)))
    holdout = Scores(gallery.resemble(pool.images).scores, pool.subjects)
    scarce = draw_fields(random, counts=random.integers(1, slices + 1, few))
    sets = {str(count): holdout.of(np.arange(count)) for count in holdouts}
    sets["few"] = Scores(gallery.resemble(scarce.images).scores, scarce.subjects)
    return {key: outcome(innocent, holdout=part, cohort=index, methods=METHODS) for key, part in sets.items()}


@dataclass(frozen=True)
class Pool:
    """Scores of many subjects that a generator never saw, and of copies (measures, n), of one cohort."""

    cohort: int
    strangers: Scores
    copies: FloatArray

    @classmethod
    def draw(
        cls,
        random: np.random.Generator,
        *,
        cohort: int,
        people: Callable[..., People] = draw_brains,
        subjects: int,
        copies: int,
        train: int = 60,
    ) -> Pool:
        """A cohort: ``train`` subjects with two slices each, ``subjects`` others with one or two, and copies."""
        known = people(random, counts=np.full(train, 2))
        gallery = Gallery(known.images, known.subjects.astype(np.str_))
        others = people(random, counts=random.integers(1, 3, subjects))
        made = draw_copies(random, images=known.images, count=copies)
        strangers = Scores(gallery.resemble(others.images).scores, others.subjects)
        return cls(cohort, strangers, gallery.resemble(made).scores)

    def deal(
        self, random: np.random.Generator, *, holdouts: Sequence[int], synthetic: int = SYNTHETIC, copies: int = COPIES
    ) -> dict[str, Outcome]:
        """Subjects dealt out at random: one random image of each of the first, all images of the next.

        Given the pool, the subjects of both are exchangeable, so what is promised is promised for every pool.
        """
        order = random.permutation(self.strangers.subjects.max() + 1)
        images = random.permutation(len(self.strangers.subjects))
        _, first = np.unique(self.strangers.subjects[images], return_index=True)
        innocent = self.strangers.values[:, images[first[order[:synthetic]]]]
        planted = self.copies[:, random.permutation(self.copies.shape[1])[:copies]]
        hands = {str(count): self.strangers.of(order[synthetic:][:count]) for count in holdouts}
        return {
            key: outcome(innocent, copies=planted, holdout=hand, cohort=self.cohort, methods=(POOLED,))
            for key, hand in hands.items()
        }


# --- what came out --------------------------------------------------------------------------------------------------


def over_repetitions(values: FloatArray, outcomes: Sequence[Outcome]) -> Estimate:
    """Mean of ``values`` (repetitions,), each from 0 to 1, with its interval.

    Bootstrap of cohorts, each with all its repetitions. Where all values are 0 (or 1) that knows no doubt: then the
    interval of the share of repetitions above 0 is given (Clopper & Pearson 1934), which no mean of values from 0 to 1
    exceeds.
    """
    if values.min() == values.max():
        return estimate_share(int((values > 0).sum()), len(values))
    cohorts = np.array([made.cohort for made in outcomes]).astype(np.str_)
    return estimate_mean(values, cohorts, random=generator_for(0, "audit-calibration-interval"))


def shares_below(outcomes: Sequence[Outcome], method: str, alpha: float) -> FloatArray:
    """Share of p ≤ ``alpha`` among images that are no copies, of each repetition."""
    return np.array([(made.innocent[method] <= alpha).mean() for made in outcomes])


def discoveries(innocent: FloatArray, copies: FloatArray, *, level: float = LEVEL) -> tuple[float, float]:
    """False flags / flags (0 without flags) and flagged copies / copies (NaN without copies), Benjamini–Hochberg."""
    flagged = benjamini_hochberg(np.concatenate([innocent, copies])) <= level
    false, true = int(flagged[: len(innocent)].sum()), int(flagged[len(innocent) :].sum())
    return false / max(false + true, 1), true / len(copies) if len(copies) else float("nan")


def planted(outcomes: Sequence[Outcome], method: str, copies: int) -> tuple[FloatArray, FloatArray]:
    """False discovery share and power of each repetition, with ``copies`` in the place of as many other images."""
    found = []
    for made in outcomes:
        innocent = made.innocent[method]
        found.append(discoveries(innocent[: len(innocent) - copies], made.copies[method][:copies]))
    false, power = np.array(found).T
    return false, power


def percent(estimate: Estimate) -> str:
    """Value and interval in percent, as a table shows them."""
    return f"{100 * estimate.value:.1f} ({100 * estimate.low:.1f} to {100 * estimate.high:.1f})"


def print_null(results: Mapping[str, Sequence[Outcome]], methods: Sequence[str]) -> None:
    """Table: share of p ≤ α and of repetitions with any flag, where nothing was copied."""
    columns = [f"p ≤ {alpha}, %" for alpha in ALPHAS]
    print(f"\n| holdout subjects | p-value | {' | '.join(columns)} | any flag at q ≤ {LEVEL}, % |")
    print("| --- " * (len(ALPHAS) + 3) + "|")
    for key, outcomes in results.items():
        for method in methods:
            found = [shares_below(outcomes, method, alpha) for alpha in ALPHAS]
            found.append(planted(outcomes, method, 0)[0])
            print(f"| {key} | {method} | {' | '.join(percent(over_repetitions(part, outcomes)) for part in found)} |")


def print_planted(results: Mapping[str, Sequence[Outcome]]) -> None:
    """Table: realized false discovery rate and power, where copies were planted."""
    columns = [f"{part}, {count} % copies, %" for count in PLANTED for part in ("FDR", "power")]
    print(f"\n| holdout subjects | least copies | {' | '.join(columns)} | copies with p ≤ {LEVEL}, % |")
    print("| --- " * (len(columns) + 3) + "|")
    for key, outcomes in results.items():
        found = [part for count in PLANTED for part in planted(outcomes, POOLED, count)]
        found.append(np.array([(made.copies[POOLED] <= LEVEL).mean() for made in outcomes]))
        cells = [percent(over_repetitions(part, outcomes)) for part in found]
        print(f"| {key} | {least_copies(int(key))} | {' | '.join(cells)} |")


def least_copies(subjects: int, *, synthetic: int = SYNTHETIC, level: float = LEVEL) -> int:
    """Copies among ``synthetic`` images below which Benjamini–Hochberg can flag none, with the smallest p-values."""
    return int(np.ceil(synthetic / (level * (subjects + 1)) - 1e-9))


def plot(fresh: Mapping[str, Sequence[Outcome]], dealt: Mapping[str, Sequence[Outcome]]) -> None:
    """Left: share of p ≤ α against α, nothing copied. Right: power and false discovery rate by size of the holdout."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4.6), layout="constrained")
    levels = np.geomspace(0.003, 0.3, 80)
    lines = (("200", POOLED, "200 subjects"), ("few", POOLED, f"{FEW} subjects with 1 to {SLICES_OF_FEW} slices"))
    for key, method, label in (*lines, ("few", BY_IMAGE, "the same, every image counted on its own")):
        left.plot(levels, [shares_below(fresh[key], method, alpha).mean() for alpha in levels], label=label)
    left.plot(levels, levels, "k--", linewidth=1, label="promised: on or below this line")
    left.set(xscale="log", yscale="log", xlabel="α", ylabel="share of p ≤ α, nothing copied", ylim=(1e-3, 0.6))
    sizes = [int(key) for key in dealt]
    for count, color in zip(PLANTED, ("C0", "C1", "C2"), strict=True):
        rates, power = zip(*[planted(outcomes, POOLED, count) for outcomes in dealt.values()], strict=True)
        right.plot(sizes, [part.mean() for part in power], "o-", color=color, label=f"power, {count} % copies")
        right.plot(sizes, [part.mean() for part in rates], "x:", color=color, label=f"FDR, {count} % copies")
    right.axhline(LEVEL, color="k", linewidth=1, linestyle="--", label="promised bound of the FDR")
    right.set(
        xscale="log", xlabel="holdout subjects", ylabel=f"share, {SYNTHETIC} synthetic images", ylim=(-0.02, 1.02)
    )
    right.set_xticks(sizes, [f"{size:,}" for size in sizes], minor=False)
    right.minorticks_off()
    for axis in (left, right):
        axis.grid(visible=True, alpha=0.3)
        axis.legend(fontsize=8)
    FIGURE.parent.mkdir(exist_ok=True)
    figure.savefig(FIGURE, dpi=120)
    print(f"\n{FIGURE.name} is drawn.")


def deal_brains(seed: int, *, quick: bool) -> dict[str, list[Outcome]]:
    """Outcomes of all deals, by the number of holdout subjects."""
    results: dict[str, list[Outcome]] = {}
    for cohorts, times, holdouts in DEALS:
        for number in range(2 if quick else cohorts):
            random = generator_for(seed, f"audit-calibration-{max(holdouts)}", number)
            subjects = SYNTHETIC + max(holdouts)
            pool = Pool.draw(random, cohort=number, subjects=subjects, copies=5 * COPIES)
            for _ in range(4 if quick else times):
                for key, made in pool.deal(random, holdouts=holdouts).items():
                    results.setdefault(key, []).append(made)
    return results


def draw_fresh(seed: int, *, quick: bool) -> dict[str, list[Outcome]]:
    """Outcomes of all fresh repetitions, by the number of holdout subjects, and of the ``few``."""
    made = [fresh_repetition(seed, index) for index in range(8 if quick else REPETITIONS)]
    return {key: [result[key] for result in made] for key in made[0]}


def main() -> None:
    """Simulate both parts and print what came out."""
    parser = argparse.ArgumentParser(description="Calibration of the audit, by simulation.")
    parser.add_argument("--quick", action="store_true", help="8 repetitions of each part")
    parser.add_argument("--plot", action="store_true", help=f"draw docs/figures/{FIGURE.name}")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    begin = time.perf_counter()
    fresh = draw_fresh(options.seed, quick=options.quick)
    middle = time.perf_counter()
    print(f"Part 1, fields, nothing copied ({middle - begin:.0f} s):")
    print_null(fresh, METHODS)
    dealt = deal_brains(options.seed, quick=options.quick)
    print(f"\nPart 2, brains, nothing copied ({time.perf_counter() - middle:.0f} s):")
    print_null(dealt, (POOLED,))
    print(f"\nPart 2, brains, copies planted among {SYNTHETIC} synthetic images:")
    print_planted(dealt)
    if options.plot:
        plot(fresh, dealt)


if __name__ == "__main__":
    main()
