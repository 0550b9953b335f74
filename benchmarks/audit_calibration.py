"""Do the audit's p-values and its false discovery rate keep what they promise? A simulation, with nothing timed.

    python benchmarks/audit_calibration.py            # 200 repetitions of each part: some seven minutes on one core
    python benchmarks/audit_calibration.py --quick    # a look: 8 repetitions
    python benchmarks/audit_calibration.py --plot     # draws docs/figures/audit-calibration.png as well

Part 1 draws everything anew in every repetition: training subjects, holdout subjects, synthetic images, copies. People
are smooth random fields around a common head, so that a repetition takes about a second. Part 2 asks what large
holdouts can certify: procedural brains, a pool of subjects per cohort, dealt out at random into holdout and synthetic
images in every repetition. What is written about the result is in docs/calibration.md.

Tables are printed as Markdown. Intervals are of 95 % over repetitions: within one, images share the holdout and the
training subjects, and are not independent.
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

from unalike.cohort.phantom import PhantomSettings, draw_anatomy, draw_pictures
from unalike.records import Estimate, FloatArray, IntArray, Pixels, TextArray
from unalike.seeds import generator_for
from unalike.similarity.gallery import Gallery
from unalike.similarity.views import EQUALIZED, RAW, VIEWS, WHITENED
from unalike.stats.combine import pooled_minimum_p_values
from unalike.stats.conformal import benjamini_hochberg, subject_p_values
from unalike.stats.intervals import estimate_mean, estimate_share

WEIGHTS = {RAW: 0.25, WHITENED: 1.0, EQUALIZED: 1.0}
LEVEL = 0.05
ALPHAS = (0.01, 0.05, 0.1)
POOLED, BY_IMAGE = "pooled", "pooled, every image on its own"
METHODS = (POOLED, *VIEWS, BY_IMAGE)
SYNTHETIC, COPIES, PLANTED = 100, 20, (1, 5, 20)
HOLDOUTS, LARGE_HOLDOUTS = (20, 50, 100, 200), (200, 500, 1000, 2000)
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
    """P-values of one repetition with one holdout, of each method: of images of nobody in training, and of copies."""

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


def outcome(innocent: FloatArray, copies: FloatArray, holdout: Scores, methods: Sequence[str] = METHODS) -> Outcome:
    """P-values of all methods, with one holdout."""
    return Outcome(
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
    copies: int = COPIES,
    few: int = FEW,
) -> dict[str, Outcome]:
    """Everything drawn anew: outcomes by the number of holdout subjects, and ``few`` with many uneven slices each.

    Training subjects have 4 slices each, others 1 to 3; the ``few`` of the last outcome 1 to `SLICES_OF_FEW`. Numbers
    of slices are drawn at random, whatever the subject.
    """
    random = generator_for(seed, "audit-calibration", index)
    known = draw_fields(random, counts=np.full(train, 4))
    gallery = Gallery(known.images, known.subjects.astype(np.str_))
    strangers = draw_fields(random, counts=random.integers(1, 4, synthetic)).one_each(random)
    innocent = gallery.resemble(strangers).scores
    planted = gallery.resemble(draw_copies(random, images=known.images, count=copies)).scores
    pool = draw_fields(random, counts=random.integers(1, 4, max(holdouts)))
    holdout = Scores(gallery.resemble(pool.images).scores, pool.subjects)
    made = {str(count): outcome(innocent, planted, holdout.of(np.arange(count))) for count in holdouts}
    scarce = draw_fields(random, counts=random.integers(1, SLICES_OF_FEW + 1, few))
    made["few"] = outcome(innocent, planted, Scores(gallery.resemble(scarce.images).scores, scarce.subjects))
    return made


@dataclass(frozen=True)
class Pool:
    """Scores of many subjects that a generator never saw, and of copies (measures, n)."""

    strangers: Scores
    copies: FloatArray

    @classmethod
    def draw(
        cls,
        random: np.random.Generator,
        *,
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
        return cls(Scores(gallery.resemble(others.images).scores, others.subjects), gallery.resemble(made).scores)

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
        return {
            str(count): outcome(innocent, planted, self.strangers.of(order[synthetic:][:count]), (POOLED,))
            for count in holdouts
        }


# --- what came out --------------------------------------------------------------------------------------------------


def over_repetitions(values: FloatArray) -> Estimate:
    """Mean of ``values`` (repetitions,), each from 0 to 1, with its interval over repetitions.

    Bootstrap of repetitions; where all are 0 (or 1) that knows no doubt, and the interval of the share of repetitions
    above 0 is given (Clopper & Pearson 1934), which is no narrower: a mean from 0 to 1 is at most that share.
    """
    values = values[np.isfinite(values)]
    if len(values) == 0 or values.min() == values.max():
        return estimate_share(int((values > 0).sum()), len(values))
    names = np.arange(len(values)).astype(np.str_)
    return estimate_mean(values, names, random=generator_for(0, "audit-calibration-interval"))


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


def print_null(
    title: str, results: Sequence[Mapping[str, Outcome]], keys: Sequence[str], methods: Sequence[str]
) -> None:
    """Table: share of p ≤ α and of repetitions with any flag, where nothing was copied."""
    columns = [f"p ≤ {alpha}, %" for alpha in ALPHAS]
    print(f"\n{title}\n\n| holdout subjects | p-value | {' | '.join(columns)} | any flag at q ≤ {LEVEL}, % |")
    print("| --- " * (len(ALPHAS) + 3) + "|")
    for key in keys:
        outcomes = [result[key] for result in results]
        for method in methods:
            shares = [percent(over_repetitions(shares_below(outcomes, method, alpha))) for alpha in ALPHAS]
            flags = percent(over_repetitions(planted(outcomes, method, 0)[0]))
            print(f"| {key} | {method} | {' | '.join(shares)} | {flags} |")


def print_planted(title: str, results: Sequence[Mapping[str, Outcome]], keys: Sequence[str]) -> None:
    """Table: realized false discovery rate and power, where copies were planted."""
    columns = [f"{part}, {count} copies, %" for count in PLANTED for part in ("FDR", "power")]
    print(f"\n{title}\n\n| holdout subjects | least copies | {' | '.join(columns)} | copies with p ≤ {LEVEL}, % |")
    print("| --- " * (len(columns) + 3) + "|")
    for key in keys:
        outcomes = [result[key] for result in results]
        cells = [percent(over_repetitions(part)) for count in PLANTED for part in planted(outcomes, POOLED, count)]
        alone = over_repetitions(np.array([(made.copies[POOLED] <= LEVEL).mean() for made in outcomes]))
        print(f"| {key} | {least_copies(int(key))} | {' | '.join(cells)} | {percent(alone)} |")


def least_copies(subjects: int, *, synthetic: int = SYNTHETIC, level: float = LEVEL) -> int:
    """Copies among ``synthetic`` images below which Benjamini–Hochberg can flag none, with the smallest p-values."""
    return int(np.ceil(synthetic / (level * (subjects + 1)) - 1e-9))


def plot(fresh: Sequence[Mapping[str, Outcome]], dealt: Sequence[Mapping[str, Outcome]]) -> None:
    """Left: share of p ≤ α against α. Right: power and false discovery rate against the holdout's size."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4.4), layout="constrained")
    levels = np.geomspace(0.002, 0.3, 60)
    lines = (("200", POOLED, "200 subjects, pooled"), ("few", POOLED, f"{FEW} subjects with many slices, pooled"))
    for key, method, label in (*lines, ("few", BY_IMAGE, "the same, every image on its own")):
        outcomes = [result[key] for result in fresh]
        left.plot(levels, [shares_below(outcomes, method, alpha).mean() for alpha in levels], label=label)
    left.plot(levels, levels, "k--", linewidth=1, label="promised: on or below this line")
    left.set(xscale="log", yscale="log", xlabel="α", ylabel="share of p ≤ α, nothing copied", ylim=(5e-4, 0.5))
    for results, keys, style, name in (
        (fresh, HOLDOUTS, "o-", "fields"),
        (dealt, LARGE_HOLDOUTS, "s--", "brains"),
    ):
        for count, color in zip(PLANTED, ("C0", "C1", "C2"), strict=True):
            found = [planted([result[str(key)] for result in results], POOLED, count) for key in keys]
            power = [over_repetitions(part[1]) for part in found]
            right.plot(keys, [e.value for e in power], style, color=color, label=f"power, {count} copies, {name}")
            right.plot(keys, [part[0].mean() for part in found], style[1:], color=color, linewidth=0.8, alpha=0.6)
    right.axhline(LEVEL, color="k", linewidth=1, linestyle=":", label="promised bound of the false discovery rate")
    right.set(
        xscale="log", xlabel="holdout subjects", ylabel="share (thin lines: false discovery rate)", ylim=(-0.02, 1.02)
    )
    for axis in (left, right):
        axis.grid(visible=True, alpha=0.3)
        axis.legend(fontsize=7)
    FIGURE.parent.mkdir(exist_ok=True)
    figure.savefig(FIGURE, dpi=120)
    print(f"\n{FIGURE.name} is drawn.")


def deal_brains(seed: int, *, cohorts: int, times: int) -> list[dict[str, Outcome]]:
    """``times`` deals of each of ``cohorts`` pools of brains."""
    results = []
    for number in range(cohorts):
        random = generator_for(seed, "audit-calibration-brains", number)
        pool = Pool.draw(random, subjects=SYNTHETIC + max(LARGE_HOLDOUTS), copies=5 * COPIES)
        results += [pool.deal(random, holdouts=LARGE_HOLDOUTS) for _ in range(times)]
    return results


def main() -> None:
    """Simulate both parts and print what came out."""
    parser = argparse.ArgumentParser(description="Calibration of the audit, by simulation.")
    parser.add_argument("--quick", action="store_true", help="8 repetitions instead of 200")
    parser.add_argument("--plot", action="store_true", help=f"draw docs/figures/{FIGURE.name}")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    begin = time.perf_counter()
    fresh = [fresh_repetition(options.seed, index) for index in range(8 if options.quick else 200)]
    middle = time.perf_counter()
    dealt = deal_brains(options.seed, cohorts=1 if options.quick else 4, times=8 if options.quick else 50)
    done = time.perf_counter()
    print(f"{len(fresh)} fresh repetitions in {middle - begin:.0f} s, {len(dealt)} deals in {done - middle:.0f} s.")
    print_null("Fields, nothing copied:", fresh, [str(count) for count in HOLDOUTS], METHODS)
    print_null(f"Fields, nothing copied, {FEW} subjects with up to {SLICES_OF_FEW} slices:", fresh, ["few"], METHODS)
    print_null("Brains, nothing copied:", dealt, [str(count) for count in LARGE_HOLDOUTS], (POOLED,))
    print_planted("Fields, copies planted:", fresh, [str(count) for count in HOLDOUTS])
    print_planted("Brains, copies planted:", dealt, [str(count) for count in LARGE_HOLDOUTS])
    if options.plot:
        plot(fresh, dealt)


if __name__ == "__main__":
    main()
