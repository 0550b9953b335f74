"""The gate: which samples are removed, and whether what remains may leave the house. It reads and writes nothing.

Two steps, because an audit lies between them: `screen` says which samples are removed, what remains is audited again by
a second measure, and `judge` decides:

* RELEASE: nothing had to be removed;
* FILTERED: what remains may leave;
* HELD: a clause of the policy is not met. Every clause is judged and listed, so that one look shows all that is amiss.

What is promised is a bound of the share of copies among the images released: of copies changed no more than the
planted ones were, verbatim or with slight noise. Of copies changed otherwise it promises nothing; the audit's power
says how many of them would have been seen. The bound takes samples to be drawn each for itself: slices of one
synthetic volume are caught or missed together, and the vote of its slices is what speaks there. It holds in 95 of 100
uses of the gate at least, whatever is decided: not of those alone that end in a release.

A guard that rejected samples while they were drawn has hidden evidence: what it let through looks innocent, copies that
it missed too. Its rejections therefore count as removed, among all samples drawn.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from unalike.records import Estimate, FloatArray, IntArray
from unalike.release.facts import COPY, UNSURE, AuditFacts
from unalike.release.policy import ReleasePolicy
from unalike.stats.conformal import benjamini_hochberg, subjects_needed
from unalike.stats.intervals import estimate_share
from unalike.stats.rates import upper_bound_of_copy_rate, upper_bound_of_missed

Decision = Literal["RELEASE", "FILTERED", "HELD"]
BoolArray = npt.NDArray[np.bool_]

# Why an image is removed; the first that applies is given.
IDENTICAL = "a training image, pixel for pixel"
FLAGGED = "flagged as a copy"
OF_VOLUME = "slice of a volume that was flagged as a copy"
CAUGHT = "stands out as planted copies do"
SAID_COPY = "a copy, says the steward"
SAID_UNSURE = "the steward is unsure"

_SLACK = 1e-9  # shares that are equal but for rounding are equal
_HELP_POWER = "Audit with --learned autoencoder or contrastive, or of larger images."
_MORE_MISSED = "Audit with more planted copies (--planted)"


@dataclass(frozen=True)
class Screening:
    """Which of n samples stay, ``kept`` (n,), and why the others go, ``reasons`` (n,), "" for those that stay.

    ``left`` counts images that stay although a planted copy with their p-value counts as caught: only where the samples
    pass as they are. ``undecided`` are rows of flagged samples whose pictures the audit kept and on which no steward
    decided.
    """

    kept: BoolArray
    reasons: tuple[str, ...]
    left: int
    undecided: tuple[int, ...]


@dataclass(frozen=True)
class Clause:
    """One demand of the policy: what was ``wanted``, what was ``found``, and, if not ``passed``, the ``gap``: by how
    much it fails, and what would help. Sentences for a data steward."""

    name: str
    wanted: str
    found: str
    passed: bool
    gap: str = ""


@dataclass(frozen=True)
class GateResult:
    """The decision, all clauses, and ``copies``: the share of copies among the images kept, with its bound.

    Of the samples ``removed`` were by the screening, ``removed_by_second`` (rows of the samples:
    ``removed_by_second_rows``) by the second measure, and ``kept`` remain; of a held set, those that would be released
    if somebody overruled the gate. ``reasons`` says in sentences what the decision rests on; ``second`` are the facts
    of the second audit, None where there was none.
    """

    decision: Decision
    clauses: tuple[Clause, ...]
    copies: Estimate
    removed: int
    removed_by_second: int
    removed_by_second_rows: IntArray
    kept: int
    reasons: tuple[str, ...]
    second: AuditFacts | None = None

    @classmethod
    def held_without_audit(cls, clause: Clause, copies: Estimate) -> GateResult:
        """Held because there is no audit to go by; ``copies`` is undefined."""
        return cls("HELD", (clause,), copies, 0, 0, np.empty(0, np.int64), 0, (_complaint(clause),))


def screen(facts: AuditFacts, decisions: Mapping[int, str], policy: ReleasePolicy) -> Screening:
    """Which samples are removed: none if they pass as they are, else all that count as caught or were decided to be.

    Samples pass as they are if none was flagged, nor rejected by a guard, no steward asks to remove any, and the bound
    of their share of copies (`upper_bound_of_copy_rate`) is within ``policy.copy_rate``. Otherwise all go that are a
    training image pixel for pixel, flagged, have a p-value of at most ``facts.limit`` (the rule by which planted copies
    counted as caught: what it misses is known only because it is applied to all), or that a steward (``decisions``, by
    row of the samples) calls a copy, or is unsure of if ``policy.unsure`` is "remove". A steward's "not a copy" never
    brings an image back: the bound rests on the rule that was measured, and would not hold if a person overruled it.

    Constant images, which have no p-value and show nobody, stay unless a steward removes them.
    """
    caught = _caught(facts)
    said = np.asarray([decisions.get(row, "") for row in facts.queries.tolist()], dtype=np.str_)
    doubted = (said == UNSURE) & (policy.unsure == "remove")
    wanted: tuple[tuple[str, BoolArray], ...] = (
        (IDENTICAL, facts.identical),
        (OF_VOLUME, facts.by_volume),
        (FLAGGED, facts.flagged),
        (SAID_COPY, said == COPY),
        (SAID_UNSURE, doubted),
        (CAUGHT, caught),
    )
    looked_at = np.isin(facts.queries, facts.pictured) & facts.flagged & (said == "")
    undecided = tuple(facts.queries[looked_at].tolist())
    sure = np.logical_or.reduce([chosen for _, chosen in wanted[:-1]])
    if not facts.rejected and not sure.any() and _bound_as_it_is(facts).high <= policy.copy_rate + _SLACK:
        return Screening(np.ones(len(caught), np.bool_), ("",) * len(caught), int(caught.sum()), undecided)
    reasons = np.full(len(caught), "", dtype=object)
    for reason, chosen in reversed(wanted):  # the first is written last
        reasons[chosen] = reason
    return Screening(~(sure | caught), tuple(str(reason) for reason in reasons), 0, undecided)


def judge(
    policy: ReleasePolicy,
    facts: AuditFacts,
    screening: Screening,
    second: AuditFacts | None,
    *,
    fresh: Sequence[str],
    signatures: Mapping[str, str],
) -> GateResult:
    """Decide, by every clause of the policy, whether the samples that `screen` kept may leave.

    ``second`` is an audit of what remains (its ``queries`` are rows of the remainder, from 0 on) with the policy's
    second measure: images that Benjamini–Hochberg at ``policy.false_alarm_rate`` flags by that measure alone are
    removed too; None if it was not made. ``fresh`` says in words why the audit is not of these samples and this cohort
    (empty if it is). ``signatures`` maps a role to who signed.
    """
    found = np.zeros(0, np.bool_) if second is None else _found_by(policy, second)
    remainder = facts.queries[screening.kept]
    fits = second is not None and _misfit(policy, facts, second, len(remainder)) == ""
    flagged = remainder[found] if fits else np.empty(0, np.int64)
    kept = len(remainder) - len(flagged)
    copies = _bound(facts, screening, kept)
    clauses = (
        _judge_fresh(fresh),
        _judge_calibration(policy, facts),
        _judge_power(policy, facts),
        _judge_exposure(policy, facts),
        _judge_closeness(policy, facts),
        _judge_kept(policy, kept, facts.rejected + len(facts.queries)),
        _judge_copies(policy, facts, screening, copies),
        *_judge_second(policy, facts, second, remainder=len(remainder), found=int(found.sum())),
        _judge_decided(policy, screening),
        _judge_signatures(policy, signatures),
    )
    removed = int((~screening.kept).sum())
    failed = [clause for clause in clauses if not clause.passed]
    filtered = removed or len(flagged) or facts.rejected
    decision: Decision = "HELD" if failed else "FILTERED" if filtered else "RELEASE"
    reasons = [_complaint(clause) for clause in failed]
    if facts.rejected:
        reasons.append(f"{_count(facts.rejected, 'sample')} rejected by a guard while they were drawn.")
    reasons += [
        f"{_count(number, 'image')} removed: {reason}."
        for reason, number in Counter(reason for reason in screening.reasons if reason).items()
    ]
    if len(flagged):
        reasons.append(f"{_count(len(flagged), 'image')} removed: flagged by the second measure, {policy.second}.")
    if not math.isnan(copies.high):
        reasons.append(
            f"At most {_percent(copies.high)} of the {_count(kept, 'image')} kept are copies (verbatim, or with slight "
            f"noise), with {copies.confidence:.0%} confidence."
        )
    return GateResult(
        decision=decision,
        clauses=clauses,
        copies=copies,
        removed=removed,
        removed_by_second=len(flagged),
        removed_by_second_rows=flagged,
        kept=kept,
        reasons=tuple(reasons),
        second=second,
    )


# --- what counts, and the bound ---------------------------------------------------------------------------------------


def _caught(facts: AuditFacts) -> BoolArray:
    """Whether each image (n,) has a p-value with which a planted copy counts as caught."""
    with np.errstate(invalid="ignore"):  # NaN compares as False, as wanted
        caught: BoolArray = (facts.p_values <= facts.limit) & (facts.holdout_subjects > 0)
    return caught


def _bound_as_it_is(facts: AuditFacts) -> Estimate:
    """The share of copies among the samples if none is removed; constant ones do not dilute it."""
    return upper_bound_of_copy_rate(
        found=int(_caught(facts).sum()),
        n=int(np.isfinite(facts.p_values).sum()),
        sensitivity=estimate_share(facts.caught, facts.planted),
    )


def _bound(facts: AuditFacts, screening: Screening, kept: int) -> Estimate:
    """The share of copies among the ``kept`` images; those that the second measure removed hold no more copies than
    before, so the same number of copies counts among fewer images."""
    before = int(screening.kept.sum())
    if screening.left:
        bound = _bound_as_it_is(facts)
    else:
        bound = upper_bound_of_missed(
            removed=facts.rejected + len(facts.queries) - before,
            n=facts.rejected + len(facts.queries),
            caught=facts.caught,
            planted=facts.planted,
        )
    if kept == before:
        return bound
    if kept == 0:
        return replace(bound, value=math.nan, low=math.nan, high=math.nan, n=0)
    value, high = (min(share * before / kept, 1.0) for share in (bound.value, bound.high))
    return replace(bound, value=bound.value if math.isnan(bound.value) else value, high=high, n=kept)


def _found_by(policy: ReleasePolicy, second: AuditFacts) -> BoolArray:
    """What the second measure alone flags of the remainder."""
    p_values: FloatArray = second.measure_p.get(policy.second, np.full(len(second.queries), np.nan))
    with np.errstate(invalid="ignore"):
        found: BoolArray = benjamini_hochberg(p_values) <= policy.false_alarm_rate
    return found & (second.holdout_subjects > 0)


def _misfit(policy: ReleasePolicy, facts: AuditFacts, second: AuditFacts, remainder: int) -> str:
    """Why the second audit is not the one that is wanted, or nothing."""
    if {role: digest for role, digest in second.inputs.items() if role != "synthetic"} != {
        role: digest for role, digest in facts.inputs.items() if role != "synthetic"
    }:
        return "it was made with other real images."
    if second.queries.tolist() != list(range(remainder)):
        return f"it is of {_count(len(second.queries), 'image')}, but {remainder} remain."
    if policy.second not in second.measure_p:
        return f"it lacks the measure {policy.second}."
    if not second.holdout_subjects or second.smallest_p > policy.false_alarm_rate:
        return f"its {_count(second.holdout_subjects, 'holdout subject')} are too few for any flag."
    first = (facts.train_subjects, facts.holdout_subjects)
    if (second.train_subjects, second.holdout_subjects) != first:  # a cohort's roles depend on what the run saw
        return "it was made with other subjects in train and holdout."
    return ""


# --- the clauses ------------------------------------------------------------------------------------------------------


def _judge_fresh(problems: Sequence[str]) -> Clause:
    return Clause(
        "fresh audit",
        "the audit is of these samples and these real images",
        "it is" if not problems else "; ".join(problems),
        not problems,
        "" if not problems else "Nothing that was measured holds for these samples. Run the audit again.",
    )


def _judge_calibration(policy: ReleasePolicy, facts: AuditFacts) -> Clause:
    rate, subjects = policy.false_alarm_rate, facts.holdout_subjects
    gaps = []
    if subjects == 0:
        gaps.append("There is no holdout subject: prepare the cohort with --holdout 0.2, and audit again.")
    elif facts.smallest_p > rate + _SLACK:
        needed = subjects_needed(queries=1, level=rate)
        gaps.append(f"{_count(subjects, 'holdout subject')} too few: {needed} needed. Hold out more, and audit again.")
    if facts.level > rate + _SLACK:
        gaps.append(f"The level is {_points(facts.level - rate)} above. Audit again with --level {rate:g}.")
    return Clause(
        "calibrated",
        f"an error rate of at most {rate:g}, and holdout subjects enough for it",
        f"{_count(subjects, 'holdout subject')} (smallest p-value {facts.smallest_p:.2g}), level {facts.level:g}",
        not gaps,
        " ".join(gaps),
    )


def _judge_power(policy: ReleasePolicy, facts: AuditFacts) -> Clause:
    return _judge_caught(
        "power",
        f"at least {_percent(policy.power)} of planted plain copies caught",
        facts.caught,
        facts.planted,
        least=policy.power,
    )


def _judge_caught(name: str, wanted: str, caught: int, planted: int, *, least: float) -> Clause:
    if planted == 0:
        gap = "Without planted copies nobody knows what the audit misses: audit again with --planted 64."
        return Clause(name, wanted, "not measured", False, gap)
    found = f"{caught} of {planted} ({_percent(caught / planted)})"
    missing = least - caught / planted
    passed = missing <= _SLACK
    return Clause(name, wanted, found, passed, "" if passed else f"{_points(missing)} too few. {_HELP_POWER}")


def _judge_exposure(policy: ReleasePolicy, facts: AuditFacts) -> Clause:
    share = facts.exposed_subjects / max(facts.train_subjects, 1)
    passed = share <= policy.exposed + _SLACK
    gap = (
        f"{_points(share - policy.exposed)} above: the generator knows patients by heart, and other samples of it will "
        "show others. Train it on more subjects or for fewer steps."
    )
    found = f"{facts.exposed_subjects} of {facts.train_subjects} ({_percent(share)})"
    if facts.rejected:
        found += f", beside those of {_count(facts.rejected, 'sample')} that a guard rejected"
    return Clause(
        "exposed subjects",
        f"images of at most {_percent(policy.exposed)} of the training subjects reproduced",
        found,
        passed,
        "" if passed else gap,
    )


def _judge_closeness(policy: ReleasePolicy, facts: AuditFacts) -> Clause:
    wanted = f"not surely more than {_percent(policy.closer)} of the samples closer to train than to the holdout"
    share = facts.closer
    if share is None or math.isnan(share.low):
        return Clause("closer to train", wanted, "not measured", True)
    passed = share.low <= policy.closer + _SLACK
    gap = (
        f"{_points(share.low - policy.closer)} above: the samples lean on the training subjects, though none may be a "
        "copy of one. Train on more subjects or for fewer steps."
    )
    found = f"{_percent(share.value)} ({_percent(share.low)} to {_percent(share.high)})"
    return Clause("closer to train", wanted, found, passed, "" if passed else gap)


def _judge_kept(policy: ReleasePolicy, kept: int, n: int) -> Clause:
    share = kept / max(n, 1)
    passed = n > 0 and kept > 0 and share >= policy.kept - _SLACK
    short = math.ceil(policy.kept * n - _SLACK) - kept
    few = f"{_count(max(short, 1), 'image')} too few"
    gap = f"{few} ({_points(policy.kept - share)}). Draw from a generator that copies less."
    return Clause(
        "samples kept",
        f"at least {_percent(policy.kept)} of the samples drawn remain, and one at least",
        f"{kept} of {n} ({_percent(share)})",
        passed,
        "" if passed else gap,
    )


def _judge_copies(policy: ReleasePolicy, facts: AuditFacts, screening: Screening, copies: Estimate) -> Clause:
    passed = copies.high <= policy.copy_rate + _SLACK  # NaN is not
    undefined = math.isnan(copies.high)
    return Clause(
        "copy rate",
        f"at most {_percent(policy.copy_rate)} of what is released are copies, with {copies.confidence:.0%} confidence",
        "undefined: nothing remains"
        if undefined
        else f"at most {_percent(copies.high)} of {_count(copies.n, 'image')}",
        passed,
        "" if passed else _gap_of_copies(policy, facts, screening, copies),
    )


def _gap_of_copies(policy: ReleasePolicy, facts: AuditFacts, screening: Screening, copies: Estimate) -> str:
    if math.isnan(copies.high):
        return "There is nothing to release. Draw more samples."
    above = f"{_points(copies.high - policy.copy_rate)} above."
    if facts.planted == 0:
        return f"{above} Without planted copies nothing is excluded: audit again with --planted 64."
    # The best that so many planted copies allow, however many samples there are: all of them caught, none removed.
    best = upper_bound_of_missed(removed=0, n=10**6, caught=facts.planted, planted=facts.planted)
    least = round(best.high * best.n)
    if policy.copy_rate * copies.n < least - _SLACK:
        more = f", or draw {math.ceil(least / policy.copy_rate - _SLACK)} samples or more" if policy.copy_rate else ""
        return (
            f"{above} Even if all {facts.planted} planted copies were caught and nothing removed, "
            f"{_count(least, 'copy', 'copies')} could be among {_count(copies.n, 'image')}. {_MORE_MISSED}{more}."
        )
    if facts.caught < facts.planted:
        return f"{above} {facts.planted - facts.caught} of {facts.planted} planted copies were missed. {_HELP_POWER}"
    removed = facts.rejected + int((~screening.kept).sum())
    return f"{above} {removed} were removed, so some may have been missed. {_MORE_MISSED}, or train to copy less."


def _judge_second(
    policy: ReleasePolicy, facts: AuditFacts, second: AuditFacts | None, *, remainder: int, found: int
) -> tuple[Clause, ...]:
    measure = policy.second
    if second is None:
        wish = f"what remains audited again, with the measure {measure}"
        says = "not reached: it is made where all else passes"
        step = "Nothing is to be done here before the others hold."
        return (Clause("second audit made", wish, says, False, step),)
    problem = "there is none." if second is None else _misfit(policy, facts, second, remainder)
    made = Clause(
        "second audit made",
        f"what remains audited again, with the measure {measure}",
        "it was" if not problem else problem.rstrip("."),
        not problem,
        "" if not problem else "Audit what remains with this measure; unalike release does so where all else passes.",
    )
    caught, planted = (0, 0) if second is None else second.by_measure.get(measure, (0, 0))
    alone = f"at least {_percent(policy.second_power)} of planted plain copies caught by {measure} alone"
    power = _judge_caught("second power", alone, caught, planted, least=policy.second_power)
    if not power.passed and planted:
        others = " or ".join(other for other in ("autoencoder", "contrastive", "local") if other != measure)
        power = replace(power, gap=f"{_points(policy.second_power - caught / planted)} too few. Try second = {others}.")
    wanted = f"at most {_percent(policy.copy_rate)} of what remains flagged by {measure} alone"
    if problem:
        finds = Clause("second finds", wanted, "not measured", False, "There is no second audit that fits.")
        return made, power, finds
    share = found / max(remainder, 1)
    passed = share <= policy.copy_rate + _SLACK
    above = f"{_points(share - policy.copy_rate)} above"
    gap = f"{above}: {measure} sees what the first audit is blind to. Look at the second audit's pairs."
    says = f"{found} of {remainder} ({_percent(share)})"
    return made, power, Clause("second finds", wanted, says, passed, "" if passed else gap)


def _judge_decided(policy: ReleasePolicy, screening: Screening) -> Clause:
    left = len(screening.undecided)
    if not policy.decide_all:
        return Clause("decided", "a steward's decisions are not asked for", "not asked for", True)
    some = ", ".join(str(row) for row in screening.undecided[:5]) + (" …" if left > 5 else "")
    return Clause(
        "decided",
        "a steward has decided on every flagged pair whose pictures the audit kept",
        "all are decided" if left == 0 else f"{_count(left, 'pair')} undecided",
        left == 0,
        "" if left == 0 else f"{_count(left, 'pair')} to go (images {some}): decide on the audit's page, and export.",
    )


def _judge_signatures(policy: ReleasePolicy, signatures: Mapping[str, str]) -> Clause:
    if not policy.signatures:
        return Clause("signatures", "no signature is asked for", "not asked for", True)
    given = {role.strip().casefold() for role, who in signatures.items() if who.strip()}
    missing = [role for role in policy.signatures if role.strip().casefold() not in given]
    return Clause(
        "signatures",
        f"signed by: {', '.join(policy.signatures)}",
        "all have signed" if not missing else f"{len(missing)} of {len(policy.signatures)} missing",
        not missing,
        "" if not missing else f"Not signed by: {', '.join(missing)}.",
    )


# --- words ------------------------------------------------------------------------------------------------------------


def _complaint(clause: Clause) -> str:
    return f"{clause.name}: {clause.found}; wanted: {clause.wanted}. {clause.gap}".rstrip()


def _count(number: int, noun: str, plural: str = "") -> str:
    return f"{number} {noun if number == 1 else plural or noun + 's'}"


def _percent(share: float) -> str:
    return f"{100 * share:.3g}%"


def _points(difference: float) -> str:
    points = f"{100 * difference:.3g}"
    return f"{points} percentage point{'' if points == '1' else 's'}"
