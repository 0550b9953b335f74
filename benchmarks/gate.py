"""What the gate releases, filters and holds of real images with copies planted among them, against what it promises.

    python benchmarks/gate.py COHORT                                # 200 repetitions of every rate, 400 samples each
    python benchmarks/gate.py COHORT --repetitions 5 --count 100 --most 200     # a look
    python benchmarks/gate.py COHORT --out OUTSIDE/gate.md

COHORT has roles; none of its images comes with unalike. Holdout subjects play new patients: in every repetition half of
them calibrate, and the others' images are the samples, with copies of train images among them. Their evidence is that
of the audit's own examiner (default measures, and the autoencoder's as the second), computed once; flags, screening and
decision are the library's own functions. The power is measured in every repetition on 64 other planted copies.

Plain copies are half verbatim, half with slight noise. A verbatim copy is not recognized here by its pixels, as if one
bit of it had been changed: an audit would find it without statistics. Blurred copies show what becomes of a kind that
no power was asked for: no bound is promised of it.

A promise is broken if more copies are among the images kept than the bound says: of held sets too, which somebody might
release by override. Repetitions share the train images and one pool of holdout subjects; the interval of broken
promises is of repetitions on this cohort. Tables are Markdown.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from unalike.audit.calibrate import Calibration, calibrate, p_values_of
from unalike.audit.changes import change_images
from unalike.audit.evidence import MEASURES, Evidence, Examiner
from unalike.audit.power import pick_one_per_subject
from unalike.audit.settings import AuditSettings
from unalike.cohort.roles import ImageSet
from unalike.cohort.store import open_images
from unalike.records import MASK, FloatArray, IntArray, TextArray
from unalike.release.facts import PLAIN_COPIES, AuditFacts, limit_of
from unalike.release.gate import GateResult, judge, screen
from unalike.release.policy import ReleasePolicy
from unalike.seeds import generator_for
from unalike.stats.conformal import smallest_p_value, subject_p_values
from unalike.stats.intervals import estimate_share

SEED, PLANTED = 2026, 64
RATES = (0.0, 0.01, 0.05, 0.2)
BLURRED = "blur, sd 1 pixel"
KINDS: Mapping[str, tuple[str, ...]] = {"plain": PLAIN_COPIES, "blurred by 1 pixel": (BLURRED,)}
POLICY = ReleasePolicy()


@dataclass(frozen=True)
class Pool:
    """Evidence that repetitions draw from: one image of each holdout subject, and changed train images of each kind.

    ``innocent`` has the holdout's ``subjects`` (h,), ``copies`` of each change one of every train image chosen, in the
    same order. ``owners`` names the subject of each row of the cohort.
    """

    innocent: Evidence
    subjects: TextArray
    copies: Mapping[str, Evidence]
    owners: TextArray
    train_subjects: int


@dataclass(frozen=True)
class Outcome:
    """One repetition: the gate's result, how many copies there were, and how many are among the images kept."""

    result: GateResult
    copies: int
    through: int

    @property
    def let_out(self) -> int:
        """Copies that leave the house: none of a held set."""
        return 0 if self.result.decision == "HELD" else self.through

    @property
    def innocents_removed(self) -> int:
        return self.result.removed + self.result.removed_by_second - (self.copies - self.through)

    @property
    def broken(self) -> bool:
        return self.result.kept > 0 and self.through > self.result.copies.high * self.result.kept + 1e-9


def fill_pool(cohort: Path, *, most: int) -> Pool:
    """Examine one image of each holdout subject and copies of train images, of at most ``most`` subjects each."""
    folder = open_images(cohort)
    train, held = (ImageSet(folder, folder.rows(role)) for role in ("train", "holdout"))
    channels = [place for place, name in enumerate(folder.channels) if name != MASK]
    settings = AuditSettings(learned=("autoencoder",))  # the second measure of the default policy
    examiner = Examiner(train, channels=channels, settings=settings, seed=SEED, device=torch.device("cpu"))
    chosen = [
        pick_one_per_subject(images, min(most, len(np.unique(images.subjects))), SEED) for images in (train, held)
    ]
    originals, innocent = (
        folder.read(images.rows[rows]) for images, rows in zip((train, held), chosen, strict=True)
    )  # fmt: skip
    return Pool(
        innocent=examiner.examine([innocent]),
        subjects=held.subjects[chosen[1]],
        copies={
            change: examiner.examine([change_images(originals, change, SEED)]) for change in (*PLAIN_COPIES, BLURRED)
        },
        owners=folder.column("subject"),
        train_subjects=len(np.unique(train.subjects)),
    )


def first_measures(evidence: Evidence) -> Evidence:
    """What an audit without the second measure would have."""
    few = len(MEASURES)
    return Evidence(MEASURES, evidence.scores[:few], evidence.references[:few], evidence.poses[:few])


def join(parts: Sequence[Evidence]) -> Evidence:
    columns = (
        np.concatenate([getattr(part, name) for part in parts], axis=1) for name in ("scores", "references", "poses")
    )
    return Evidence(parts[0].measures, *columns)


@dataclass(frozen=True)
class Audits:
    """Makes the facts of an audit, as one would be with these holdout subjects and these planted copies."""

    pool: Pool
    calibrating: IntArray
    planted: IntArray

    def make(self, samples: Evidence, *, second: bool) -> AuditFacts:
        """``samples`` (n,) have all measures; an audit that is not the ``second`` does without its measure."""
        narrow = (lambda evidence: evidence) if second else first_measures
        held = narrow(self.pool.innocent.part(self.calibrating))
        evidence, subjects = narrow(samples), self.pool.subjects[self.calibrating]
        found = calibrate(
            evidence,
            identical=np.zeros(evidence.scores.shape[1], np.bool_),
            holdout=held,
            subjects=subjects,
            highest_holdout=float("nan"),
            level=POLICY.false_alarm_rate,
        )
        limit = limit_of(smallest_p_value(len(subjects)))
        plain = [narrow(self.pool.copies[change].part(self.planted)) for change in PLAIN_COPIES]
        caught = [int((p_values_of(copies, holdout=held, subjects=subjects) <= limit).sum()) for copies in plain]
        names = [measure.name for measure in evidence.measures]
        alone = [[self._count_alone(row, copies, held, limit) for copies in plain] for row in range(len(names))]
        n = len(found.p_values)
        return AuditFacts(
            path=Path("audit"),
            name="samples",
            created="",
            inputs={"cohort": "cohort"},
            settings={},
            decision="",
            headline="",
            warnings=(),
            level=found.level,
            holdout_subjects=found.holdout_subjects,
            smallest_p=found.smallest_p,
            limit=limit,
            queries=np.arange(n),
            p_values=found.p_values,
            flagged=found.flagged,
            identical=found.identical,
            exposed_subjects=self._count_exposed(found, evidence),
            train_subjects=self.pool.train_subjects,
            planted=len(self.planted),
            caught=min(caught),
            sham=float("nan"),
            by_measure={name: (min(counts), len(self.planted)) for name, counts in zip(names, alone, strict=True)},
            measure_p=dict(zip(names, found.by_measure, strict=True)),
            by_volume=np.zeros(n, np.bool_),
            pictured=np.empty(0, np.int64),
            digest="",
        )

    def _count_alone(self, row: int, copies: Evidence, held: Evidence, limit: float) -> int:
        subjects = self.pool.subjects[self.calibrating]
        p_values: FloatArray = subject_p_values(copies.scores[row], holdout=held.scores[row], subjects=subjects)
        return int((p_values <= limit).sum())

    def _count_exposed(self, found: Calibration, evidence: Evidence) -> int:
        """Train subjects that flagged images point at, by the measure that spoke loudest."""
        flagged = np.flatnonzero(found.flagged)
        return len(np.unique(self.pool.owners[evidence.references[found.spoke[flagged], flagged]]))


def release_once(pool: Pool, *, rate: float, kinds: Sequence[str], count: int, repetition: int) -> Outcome:
    """Deal out subjects, plant copies of these ``kinds`` in turn, and let the gate decide."""
    random = generator_for(SEED, f"gate {rate:g} {kinds[0]}", repetition)
    dealt = random.permutation(len(pool.subjects))
    half = len(dealt) // 2
    copies = round(rate * count)
    sources = random.permutation(pool.copies[PLAIN_COPIES[0]].scores.shape[1])
    playing, planted = dealt[half : half + count - copies], sources[copies : copies + PLANTED]
    parts = [pool.copies[kind].part(sources[:copies][place :: len(kinds)]) for place, kind in enumerate(kinds)]
    samples = join([*parts, pool.innocent.part(playing)])
    audits = Audits(pool, np.sort(dealt[:half]), planted)
    facts = audits.make(samples, second=False)
    screening = screen(facts, {}, POLICY)
    kept = np.flatnonzero(screening.kept)
    second = audits.make(samples.part(kept), second=True) if len(kept) else None
    result = judge(POLICY, facts, screening, second, fresh=(), signatures={})
    left = np.setdiff1d(kept, result.removed_by_second_rows)
    return Outcome(result, copies, int((left < copies).sum()))


def check_size(pool: Pool, count: int) -> None:
    """End with what is missing, if the cohort has too few subjects."""
    half, sources = len(pool.subjects) // 2, pool.copies[BLURRED].scores.shape[1]
    needed = round(max(RATES) * count) + PLANTED
    if len(pool.subjects) - half < count or sources < needed:
        sys.exit(
            f"{len(pool.subjects)} holdout and {sources} train subjects, but {count} samples need {2 * count} and "
            f"{needed}. Choose a smaller --count or a larger cohort."
        )


def write_row(rate: float, outcomes: Sequence[Outcome]) -> str:
    decisions = Counter(outcome.result.decision for outcome in outcomes)
    removed, through, let_out = (
        np.asarray([getattr(outcome, name) for outcome in outcomes])
        for name in ("innocents_removed", "through", "let_out")
    )
    bounds = np.asarray([outcome.result.copies.high for outcome in outcomes])
    broken = estimate_share(sum(outcome.broken for outcome in outcomes), len(outcomes))
    cells = [
        f"{rate:.0%}",
        *(str(decisions[decision]) for decision in ("RELEASE", "FILTERED", "HELD")),
        f"{removed.mean():.1f}",
        f"{through.mean():.2f}, {through.max()}",
        f"{let_out.mean():.2f}, {let_out.max()}",
        f"{np.nanmean(bounds):.2%}",
        f"{broken.value:.1%} ({broken.low:.1%} to {broken.high:.1%})",
    ]
    return f"| {' | '.join(cells)} |"


def write_table(found: Mapping[float, Sequence[Outcome]]) -> str:
    """Markdown: a row a rate, and below it which clauses held how many sets."""
    heads = (
        "copies planted", "RELEASE", "FILTERED", "HELD", "innocents removed, mean", "copies kept: mean, most",
        "copies let out: mean, most", "promised bound, mean", "broken promises (95% interval)",
    )  # fmt: skip
    lines = [f"| {' | '.join(heads)} |", "| --- " * len(heads) + "|"]
    lines += [write_row(rate, outcomes) for rate, outcomes in found.items()]
    for rate, outcomes in found.items():
        failed = Counter(clause.name for outcome in outcomes for clause in outcome.result.clauses if not clause.passed)
        if failed:
            held = ", ".join(f"{name} {number}" for name, number in failed.most_common())
            lines.append(f"\nHeld at {rate:.0%} by: {held}.")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cohort", type=Path)
    parser.add_argument("--repetitions", type=int, default=200)
    parser.add_argument("--count", type=int, default=400, help="samples of a repetition, copies among them")
    parser.add_argument("--most", type=int, default=100_000, help="train and holdout subjects, at most so many of each")
    parser.add_argument("--out", type=Path, help="file for the tables; default only printed")
    options = parser.parse_args()
    pool = fill_pool(options.cohort, most=options.most)
    check_size(pool, options.count)
    text = [
        f"{options.repetitions} repetitions, {options.count} samples each; train {pool.train_subjects} subjects, "
        f"holdout {len(pool.subjects)}, of whom half calibrate; {PLANTED} planted copies measure the power; default "
        f"policy (at most {POLICY.copy_rate:.0%} copies)."
    ]
    for title, kinds in KINDS.items():
        found = {}
        for rate in RATES if title == "plain" else RATES[1:]:
            drawn = range(options.repetitions)
            found[rate] = [
                release_once(pool, rate=rate, kinds=kinds, count=options.count, repetition=number) for number in drawn
            ]
            print(f"{title}, {rate:.0%}: done", file=sys.stderr, flush=True)
        text.append(f"Copies {title if title != 'plain' else 'verbatim or with slight noise'}:\n\n{write_table(found)}")
    tables = "\n\n".join(text) + "\n"
    print(tables)
    if options.out:
        options.out.write_text(tables, encoding="utf-8")


if __name__ == "__main__":
    main()
