"""The gate on planted findings: what is removed, which clause fails and by how much, and whether the bound holds."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from unalike import folders
from unalike.cohort.roles import _distrust_drawing
from unalike.errors import FolderError, SettingsError
from unalike.records import Estimate, as_json
from unalike.release import facts as facts_room
from unalike.release.facts import AuditFacts, limit_of, read_decisions, read_facts
from unalike.release.gate import (
    CAUGHT,
    FLAGGED,
    IDENTICAL,
    OF_VOLUME,
    SAID_COPY,
    SAID_UNSURE,
    Clause,
    GateResult,
    judge,
    screen,
)
from unalike.release.policy import ReleasePolicy
from unalike.stats.conformal import benjamini_hochberg, smallest_p_value, subject_p_values
from unalike.stats.intervals import estimate_share
from unalike.stats.rates import upper_bound_of_copy_rate, upper_bound_of_missed

POLICY = ReleasePolicy()
REAL = {"synthetic": "s", "cohort": "c"}


def _facts(p_values: Any, **changes: Any) -> AuditFacts:
    """Facts of an audit of images with these p-values, flagged as the audit would."""
    p = np.asarray(p_values, dtype=np.float64)
    holdout = int(changes.pop("holdout_subjects", 500))
    smallest = smallest_p_value(holdout)
    with np.errstate(invalid="ignore"):
        flagged = benjamini_hochberg(p) <= 0.05
    plain = AuditFacts(
        path=Path("audit"),
        name="samples",
        created="",
        inputs=REAL,
        settings={},
        decision="",
        headline="",
        warnings=(),
        level=0.05,
        holdout_subjects=holdout,
        smallest_p=smallest,
        limit=limit_of(smallest),
        queries=np.arange(len(p)),
        p_values=p,
        flagged=flagged,
        identical=np.zeros(len(p), np.bool_),
        exposed_subjects=0,
        train_subjects=100,
        planted=64,
        caught=64,
        sham=0.0,
        by_measure={"autoencoder": (60, 64)},
        measure_p={"autoencoder": np.full(len(p), 0.5)},
        by_volume=np.zeros(len(p), np.bool_),
        pictured=np.empty(0, np.int64),
        digest="d",
    )
    return replace(plain, **changes)


def _go(
    facts: AuditFacts,
    policy: ReleasePolicy = POLICY,
    *,
    decisions: Mapping[int, str] | None = None,
    second: Callable[[AuditFacts], AuditFacts] = lambda facts: facts,
    **given: Any,
) -> GateResult:
    """Screen, audit again with nothing found (but for what ``second`` changes), judge."""
    screening = screen(facts, decisions or {}, policy)
    again = second(_facts(np.full(int(screening.kept.sum()), 0.5)))
    return judge(policy, facts, screening, again, **{"fresh": (), "signatures": {}, **given})


def _failed(result: GateResult) -> list[str]:
    return [clause.name for clause in result.clauses if not clause.passed]


def _clause(result: GateResult, name: str) -> Clause:
    return next(clause for clause in result.clauses if clause.name == name)


# What is removed


def test_clean_samples_are_released_whole() -> None:
    result = _go(_facts(np.full(1000, 0.4)))
    assert (result.decision, result.removed, result.removed_by_second, result.kept) == ("RELEASE", 0, 0, 1000)
    assert result.copies.high == 1 / 1000
    assert _failed(result) == []


def test_a_few_innocents_that_stand_out_stay_where_the_bound_allows_it() -> None:
    facts = _facts(np.append(np.full(998, 0.4), [0.009, 0.01]))
    screening = screen(facts, {}, POLICY)
    assert screening.kept.all()
    assert screening.left == 2
    result = _go(facts)
    assert result.decision == "RELEASE"
    assert result.copies == upper_bound_of_copy_rate(found=2, n=1000, sensitivity=estimate_share(64, 64))


def test_more_that_stand_out_than_the_bound_allows_are_removed() -> None:
    facts = _facts(np.append(np.full(990, 0.4), np.full(10, 0.009)), flagged=np.zeros(1000, np.bool_))
    result = _go(facts)
    assert (result.decision, result.removed, result.kept) == ("FILTERED", 10, 990)
    assert result.copies == upper_bound_of_missed(removed=10, n=1000, caught=64, planted=64)
    assert result.copies.high < 0.01


def test_one_certain_copy_brings_all_down_that_count_as_caught() -> None:
    p = np.append(np.full(996, 0.4), [0.002, 0.002, 0.009, 0.011])
    flagged = np.zeros(1000, np.bool_)
    flagged[996:998] = True
    screening = screen(_facts(p, flagged=flagged), {}, POLICY)
    assert np.flatnonzero(~screening.kept).tolist() == [996, 997, 998]
    assert screening.reasons[996:] == (FLAGGED, FLAGGED, CAUGHT, "")
    assert set(screening.reasons[:996]) == {""}


def test_the_limit_itself_counts_as_caught_and_what_lies_above_does_not() -> None:
    identical = np.array([False, False, True])
    facts = _facts([0.01, 0.0101, 0.4], identical=identical, flagged=identical)
    assert screen(facts, {}, POLICY).reasons == (CAUGHT, "", IDENTICAL)
    few = _facts([1 / 21, 1.01 / 21, 0.4], holdout_subjects=20, identical=identical, flagged=identical)
    assert screen(few, {}, POLICY).reasons == (CAUGHT, "", IDENTICAL)


def test_a_steward_removes_but_never_brings_back() -> None:
    p = np.full(200, 0.4)
    p[:3] = 0.0002
    facts = replace(_facts(p), queries=np.arange(200) * 2)
    decisions = {0: "not a copy", 2: "copy", 10: "copy", 12: "unsure", 14: "not a copy"}
    screening = screen(facts, decisions, POLICY)
    assert np.flatnonzero(~screening.kept).tolist() == [0, 1, 2, 5, 6]
    assert [screening.reasons[place] for place in (0, 1, 2, 5, 6, 7)] == [
        FLAGGED, FLAGGED, FLAGGED, SAID_COPY, SAID_UNSURE, "",
    ]  # fmt: skip
    kept = screen(facts, decisions, replace(POLICY, unsure="keep"))
    assert np.flatnonzero(~kept.kept).tolist() == [0, 1, 2, 5]


def test_a_decision_alone_filters_samples_in_which_nothing_was_flagged() -> None:
    facts = _facts(np.full(1000, 0.4))
    assert _go(facts, decisions={3: "not a copy"}).decision == "RELEASE"
    result = _go(facts, decisions={3: "copy"})
    assert (result.decision, result.removed) == ("FILTERED", 1)


def test_constant_images_stay_and_do_not_dilute_the_bound() -> None:
    p = np.append(np.full(200, 0.4), np.full(800, np.nan))
    p[0] = 0.009
    facts = _facts(p, flagged=np.zeros(1000, np.bool_))
    # 1 of 200 is more than the bound allows, though 1 of 1,000 would not be.
    screening = screen(facts, {}, POLICY)
    assert np.flatnonzero(~screening.kept).tolist() == [0]
    assert np.flatnonzero(~screen(facts, {900: "copy"}, POLICY).kept).tolist() == [0, 900]
    assert _go(_facts(np.full(5, np.nan))).kept == 5


def test_slices_of_a_flagged_volume_go_even_if_no_slice_was_flagged() -> None:
    by_volume = np.arange(300) < 4
    facts = _facts(np.full(300, 0.4), flagged=by_volume, by_volume=by_volume)
    assert screen(facts, {}, POLICY).reasons[3:5] == (OF_VOLUME, "")


def test_without_a_holdout_nothing_counts_as_caught_and_all_is_held() -> None:
    result = _go(_facts(np.ones(300), holdout_subjects=0, planted=0, caught=0, by_measure={}))
    assert (result.decision, result.removed) == ("HELD", 0)
    assert {"calibrated", "power", "copy rate"} <= set(_failed(result))
    assert "no holdout subject" in _clause(result, "calibrated").gap


def test_samples_that_a_guard_rejected_count_as_removed() -> None:
    facts = _facts(np.append(np.full(999, 0.4), 0.009), flagged=np.zeros(1000, np.bool_))
    assert _go(facts).decision == "RELEASE"
    few = _go(replace(facts, rejected=10))
    assert (few.decision, few.removed, few.kept) == ("FILTERED", 1, 999)
    assert few.copies == upper_bound_of_missed(removed=11, n=1010, caught=64, planted=64)
    many = _go(replace(facts, rejected=3000))
    assert _failed(many) == ["samples kept", "copy rate"]
    assert "3000 samples that a guard rejected" in _clause(many, "exposed subjects").found


# The clauses


def test_every_clause_is_listed_whatever_fails() -> None:
    good = _go(_facts(np.full(1000, 0.4)))
    p = np.append(np.full(40, 0.4), np.full(60, 0.001))
    bad = judge(
        replace(POLICY, decide_all=True, signatures=("officer",)),
        _facts(
            p, holdout_subjects=0, planted=0, caught=0, exposed_subjects=50, flagged=p < 0.01, pictured=np.arange(100)
        ),
        screen(_facts(p), {}, POLICY),
        None,
        fresh=["an image was changed", "the cohort is another"],
        signatures={},
    )
    unreached = ("second power", "second finds")
    assert [clause.name for clause in bad.clauses] == [c.name for c in good.clauses if c.name not in unreached]
    passed = [clause.name for clause in bad.clauses if clause.passed]
    assert passed == ["closer to train", "decided"]  # not measured; and this screening knew of no picture
    assert all(clause.gap for clause in bad.clauses if not clause.passed)
    assert not any(clause.gap for clause in good.clauses)
    assert bad.decision == "HELD"
    assert _clause(bad, "fresh audit").found == "an image was changed; the cohort is another"
    assert len([reason for reason in bad.reasons if "wanted:" in reason]) == len(_failed(bad))


@pytest.mark.parametrize(
    ("changes", "policy", "clause", "gap"),
    [
        ({"holdout_subjects": 17}, POLICY, "calibrated", "17 holdout subjects too few: 19 needed"),
        ({"level": 0.1}, POLICY, "calibrated", "The level is 5 percentage points above"),
        ({"caught": 48}, POLICY, "power", "5 percentage points too few"),
        ({"exposed_subjects": 6}, POLICY, "exposed subjects", "1 percentage point above"),
        ({"caught": 0, "planted": 0}, POLICY, "power", "--planted 64"),
        ({}, replace(POLICY, copy_rate=0.0), "copy rate", "0.1 percentage points above. Even if all 64 planted copies"),
    ],
)
def test_a_clause_that_fails_says_by_how_much(
    changes: dict[str, Any], policy: ReleasePolicy, clause: str, gap: str
) -> None:
    result = _go(_facts(np.full(1000, 0.4), **changes), policy)
    assert result.decision == "HELD"
    assert clause in _failed(result)
    assert gap in _clause(result, clause).gap


def test_nineteen_holdout_subjects_are_just_enough() -> None:
    assert "calibrated" not in _failed(_go(_facts(np.full(1000, 0.4), holdout_subjects=19)))


@pytest.mark.parametrize(
    ("changes", "clause"),
    [({"caught": 52, "planted": 65}, "power"), ({"exposed_subjects": 5}, "exposed subjects")],  # 52/65 = 0.8
)
def test_what_meets_a_clause_exactly_passes(changes: dict[str, Any], clause: str) -> None:
    assert clause not in _failed(_go(_facts(np.full(1000, 0.4), **changes)))


def test_too_few_samples_for_the_copy_rate_say_how_many_would_do() -> None:
    gap = _clause(_go(_facts(np.full(90, 0.4))), "copy rate").gap
    assert "1 copy could be among 90 images" in gap
    assert "draw 100 samples or more" in gap
    assert _go(_facts(np.full(100, 0.4))).decision == "RELEASE"


def test_where_half_the_samples_are_copies_what_remains_is_held() -> None:
    p = np.append(np.full(399, 0.4), np.full(601, 0.002))
    result = _go(_facts(p, exposed_subjects=80))
    assert (result.removed, result.kept) == (601, 399)
    assert {"exposed subjects", "samples kept", "copy rate"} == set(_failed(result))
    assert "101 images too few (10.1 percentage points)" in _clause(result, "samples kept").gap


def test_nothing_remains() -> None:
    result = judge(
        POLICY,
        _facts(np.full(50, 0.002)),
        screen(_facts(np.full(50, 0.002)), {}, POLICY),
        None,
        fresh=(),
        signatures={},
    )
    assert result.kept == 0
    assert math.isnan(result.copies.high)
    assert {"samples kept", "copy rate"} <= set(_failed(result))
    assert _failed(_go(_facts(np.empty(0))))  # no sample at all


def test_samples_that_surely_lean_on_the_training_subjects_are_held() -> None:
    def share(low: float) -> Estimate:
        return Estimate(min(low + 0.05, 1.0), low, 1.0, 1000, "known")

    facts = _facts(np.full(1000, 0.4))
    assert _failed(_go(replace(facts, closer=share(0.74)))) == []
    leaning = _go(replace(facts, closer=share(0.8)))
    assert _failed(leaning) == ["closer to train"]
    assert "5 percentage points above" in _clause(leaning, "closer to train").gap
    assert _clause(_go(facts), "closer to train").found == "not measured"


def test_a_second_audit_is_asked_for_and_must_be_of_the_remainder() -> None:
    facts = _facts(np.full(1000, 0.4))
    screening = screen(facts, {}, POLICY)
    none = judge(POLICY, facts, screening, None, fresh=(), signatures={})
    assert _failed(none) == ["second audit made"]
    wrong: dict[str, Callable[[AuditFacts], AuditFacts]] = {
        "other real images": lambda again: replace(again, inputs={"synthetic": "t", "cohort": "another"}),
        "but 1000 remain": lambda again: replace(again, queries=again.queries[:-1]),
        "lacks the measure": lambda again: replace(again, measure_p={"raw": again.p_values}),
        "too few for any flag": lambda again: replace(again, holdout_subjects=5, smallest_p=1 / 6),
        "other subjects in train": lambda again: replace(again, train_subjects=99),
    }
    for problem, change in wrong.items():
        made = _clause(_go(facts, second=change), "second audit made")
        assert not made.passed
        assert problem in made.found
    remainder = _go(facts, second=lambda again: replace(again, inputs={"synthetic": "remainder", "cohort": "c"}))
    assert remainder.decision == "RELEASE"


def test_a_second_measure_that_catches_too_little_alone_holds() -> None:
    weak = _go(_facts(np.full(1000, 0.4)), second=lambda again: replace(again, by_measure={"autoencoder": (16, 64)}))
    assert _failed(weak) == ["second power"]
    assert "25 percentage points too few" in _clause(weak, "second power").gap


def _with_second_finding(number: int) -> Callable[[AuditFacts], AuditFacts]:
    def change(again: AuditFacts) -> AuditFacts:
        p = np.full(len(again.queries), 0.5)
        p[-number:] = 1e-6
        return replace(again, measure_p={"autoencoder": p})

    return change


def test_a_few_that_the_second_measure_finds_are_removed_and_many_hold() -> None:
    facts = _facts(np.append(np.full(999, 0.4), 0.4), identical=np.arange(1000) == 0, flagged=np.arange(1000) == 0)
    few = _go(facts, second=_with_second_finding(5))
    assert (few.decision, few.removed, few.removed_by_second, few.kept) == ("FILTERED", 1, 5, 994)
    assert few.removed_by_second_rows.tolist() == [995, 996, 997, 998, 999]
    # The copies that may have been missed are as many, among fewer images.
    before = upper_bound_of_missed(removed=1, n=1000, caught=64, planted=64)
    assert few.copies.high == pytest.approx(before.high * 999 / 994)
    many = _go(facts, second=_with_second_finding(20))
    assert _failed(many) == ["second finds"]
    assert "1 percentage point above" in _clause(many, "second finds").gap


def test_rows_found_by_the_second_measure_are_rows_of_the_samples() -> None:
    facts = replace(_facts(np.append(np.full(5, 0.002), np.full(995, 0.4))), queries=np.arange(1000) + 7)
    result = _go(facts, second=_with_second_finding(1))
    assert result.removed_by_second_rows.tolist() == [1006]
    assert result.kept == 994


def test_all_flagged_pairs_with_pictures_must_be_decided_where_the_policy_says_so() -> None:
    p = np.append(np.full(996, 0.4), np.full(4, 0.0001))
    facts = _facts(p, pictured=np.array([3, 996, 997]))
    policy = replace(POLICY, decide_all=True)
    assert _failed(_go(facts)) == []
    undecided = _clause(_go(facts, policy, decisions={996: "copy"}), "decided")
    assert not undecided.passed
    assert "1 pair to go (images 997)" in undecided.gap
    assert _failed(_go(facts, policy, decisions={996: "copy", 997: "unsure"})) == []


def test_roles_that_have_not_signed_are_named() -> None:
    policy = replace(POLICY, signatures=("data protection officer", "head"))
    facts = _facts(np.full(1000, 0.4))
    result = _go(facts, policy, signatures={"Data Protection Officer": "A. B.", "head": " "})
    assert _failed(result) == ["signatures"]
    assert _clause(result, "signatures").gap == "Not signed by: head."
    assert _failed(_go(facts, policy, signatures={"head": "C.", "data protection officer": "A."})) == []


def test_samples_without_an_audit_are_held() -> None:
    clause = Clause("audit", "a finished audit", "there is none", False, "Audit.")
    held = GateResult.held_without_audit(clause, _go(_facts(np.empty(0))).copies)
    assert (held.decision, held.kept, held.clauses) == ("HELD", 0, (clause,))


# The promise, by simulation


def _one_release(random: np.random.Generator, *, copies: int, apart: float, n: int = 300) -> tuple[GateResult, int]:
    """Scores of innocents are standard normal, of copies ``apart`` higher; gives the result and copies let through."""
    holdout = random.normal(size=400)
    names = np.arange(400).astype(str)
    scores = random.normal(size=n)
    scores[:copies] += apart
    p = subject_p_values(scores, holdout=holdout, subjects=names)
    planted = subject_p_values(random.normal(apart, size=64), holdout=holdout, subjects=names)
    caught = int((planted <= limit_of(1 / 401)).sum())
    facts = _facts(p, holdout_subjects=400, caught=caught)
    screening = screen(facts, {}, POLICY)
    kept = int(screening.kept.sum())
    alone = {"autoencoder": random.uniform(0.01, 1, kept)}
    second = replace(_facts(np.full(kept, 0.5), holdout_subjects=400), measure_p=alone)
    result = judge(POLICY, facts, screening, second, fresh=(), signatures={})
    return result, int(screening.kept[:copies].sum())


@pytest.mark.parametrize(("copies", "apart"), [(0, 5.0), (3, 4.0), (15, 3.0), (60, 2.5)])
def test_the_promised_bound_is_broken_as_rarely_as_promised(copies: int, apart: float) -> None:
    rounds, broken, released = 200, 0, 0
    for number in range(rounds):
        result, through = _one_release(np.random.default_rng([copies, number]), copies=copies, apart=apart)
        assert result.kept + result.removed + result.removed_by_second == 300
        broken += through > result.copies.high * result.kept + 1e-9
        released += result.decision != "HELD"
        if result.decision != "HELD":
            assert result.copies.high <= POLICY.copy_rate + 1e-9
    assert broken <= 0.05 * rounds + 2.33 * math.sqrt(rounds * 0.05 * 0.95)
    if copies == 0:
        assert released > 0.5 * rounds  # a gate that holds everything promises nothing
    if copies == 60:
        assert released == 0


# What is read of an audit


def _power(change: str, caught: int, *, planted: int = 64, alone: Mapping[str, Any] | None = None) -> dict[str, Any]:
    return {
        "change": change,
        "planted": as_json(estimate_share(caught, planted)),
        "sham": as_json(estimate_share(2, planted)),
        "by_measure": dict(alone or {"raw": 1.0, "local": 0.5}),
    }


def _write_audit(out: Path, **content: Any) -> Path:
    """An audit folder of four images, written in disorder: 7 is a training image, 2 is constant, 5 is flagged."""
    folders.begin_folder(out, kind="audit", settings={})
    q_values = [0.4, np.nan, 0.03, 0.4]
    table = {
        "query": np.array([7, 2, 5, 0], np.int32),
        "subject": ["b", "b", "a", "c"],
        "p_value": np.array([0.3, np.nan, 0.01, 0.4]),
        "q_value": np.array(q_values),
        "flagged": np.array([True, False, True, False]),
        "p_raw": np.array([0.3, np.nan, 0.02, 0.5]),
        "p_local": np.array([0.1, np.nan, 0.2, 0.6]),
    }
    pq.write_table(pa.table(table), out / folders.QUERIES)
    for name in (folders.MATCHES, folders.EXPOSURE):
        pq.write_table(pa.table({"subject": ["p"]}), out / name)
    np.savez_compressed(out / folders.EVIDENCE, synthetic_index=np.array([7, 5]))
    names = (folders.MATCHES, folders.QUERIES, folders.EXPOSURE, folders.EVIDENCE)
    whole = {
        "name": "samples",
        "verdict": {"decision": "copies found", "headline": "2 of 4.", "reasons": [], "warnings": ["look"]},
        "counts": {"train_subjects": 12},
        "calibration": {"level": 0.05, "holdout_subjects": 199, "smallest_p": 0.005, "identical": 1},
        "power": [_power("none", 64), _power("noise, sd 5 of 255", 60, alone={"raw": 0.9375, "local": None})],
        "measures": [{"name": "raw"}, {"name": "local"}],
        "volumes": [],
        "flagged": 2,
        "exposed_subjects": 1,
        "tables": {name: folders.digest_file(out / name) for name in names},
    }
    folders.finish_folder(out, kind="audit", settings={"level": 0.05}, seed=0, inputs=REAL, content=whole | content)
    return out


def test_what_an_audit_found_is_read_in_the_order_of_the_samples(tmp_path: Path) -> None:
    facts = read_facts(_write_audit(tmp_path / "audit"))
    assert facts.queries.tolist() == [0, 2, 5, 7]
    assert facts.flagged.tolist() == [False, False, True, True]
    assert facts.identical.tolist() == [False, False, False, True]
    assert facts.pictured.tolist() == [5, 7]
    np.testing.assert_array_equal(facts.p_values, [0.4, np.nan, 0.01, 0.3])
    np.testing.assert_array_equal(facts.measure_p["local"], [0.6, np.nan, 0.2, 0.1])
    assert (facts.planted, facts.caught, facts.sham) == (64, 60, 2 / 64)
    assert dict(facts.by_measure) == {"raw": (60, 64), "local": (0, 64)}
    assert (facts.holdout_subjects, facts.exposed_subjects, facts.train_subjects) == (199, 1, 12)
    assert facts.limit == pytest.approx(0.01)
    assert (facts.name, facts.warnings, dict(facts.inputs)) == ("samples", ("look",), REAL)
    assert screen(facts, {}, POLICY).reasons == ("", "", FLAGGED, IDENTICAL)


def test_slices_of_flagged_volumes_count_as_flagged(tmp_path: Path) -> None:
    votes = [{"volume": "b", "flagged": True}, {"volume": "c", "flagged": False}]
    facts = read_facts(_write_audit(tmp_path / "audit", volumes=votes))
    assert facts.by_volume.tolist() == [False, True, False, True]
    assert facts.flagged.tolist() == [False, True, True, True]
    assert facts.identical.tolist() == [False, False, False, True]


@pytest.mark.parametrize("power", [[], [_power("none", 64)], [_power("blur, sd 1 pixel", 60)]])
def test_power_that_was_not_measured_of_all_plain_copies_counts_as_none(tmp_path: Path, power: list[Any]) -> None:
    facts = read_facts(_write_audit(tmp_path / "audit", power=power))
    assert (facts.planted, facts.caught, dict(facts.by_measure)) == (0, 0, {})


def test_what_a_guard_rejected_is_read_from_the_audits_own_sentence(tmp_path: Path) -> None:
    guard = {"drawn": 1250, "rejected": 250, "level": 0.01, "rejected_share": as_json(estimate_share(250, 1250))}
    warnings = ["look", *_distrust_drawing({"guard": guard})]
    verdict = {"decision": "no copies found", "headline": "", "reasons": [], "warnings": warnings}
    assert read_facts(_write_audit(tmp_path / "audit", verdict=verdict)).rejected == 250
    assert read_facts(_write_audit(tmp_path / "free")).rejected == 0
    unclear = verdict | {"warnings": ["GUARDED: by somebody."]}
    with pytest.raises(FolderError, match="how many samples the guard rejected"):
        read_facts(_write_audit(tmp_path / "unclear", verdict=unclear))


def test_the_restated_constants_are_the_audits_own() -> None:
    from unalike.audit import power, verdict

    assert facts_room.PLAIN_COPIES == verdict.PLAIN_COPIES
    assert facts_room.CAUGHT_AT == power.CAUGHT_AT
    for subjects in (5, 99, 100, 1000):
        p = np.array([1, 1.5, 2, 50]) / (subjects + 1)
        limit = limit_of(smallest_p_value(subjects))
        assert ((p <= limit) == power.caught(p, subjects)).all()


def _spoil_table(audit: Path) -> None:
    table = pq.read_table(audit / folders.QUERIES)
    pq.write_table(table.slice(1), audit / folders.QUERIES)


def _leave_out(name: str) -> Callable[[Path], None]:
    return lambda audit: (audit / name).unlink()


def _spoil_header(**content: Any) -> Callable[[Path], None]:
    def spoil(audit: Path) -> None:
        header = json.loads((audit / "audit.json").read_text())
        header["content"] |= content
        (audit / "audit.json").write_text(json.dumps(header))

    return spoil


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_spoil_table, "was changed since the audit"),
        (_leave_out(folders.EVIDENCE), "is missing"),
        (_leave_out(folders.EXPOSURE), "is missing"),
        (_leave_out("audit.json"), "no audit folder"),
        (_spoil_header(tables={}), "has no digest of"),
        (_spoil_header(flagged=1), "its flags are not those"),
        (_spoil_header(calibration={"level": 0.05}), "is damaged"),
        (_spoil_header(verdict=None), "is damaged"),
    ],
)
def test_audits_that_are_damaged_or_changed_are_refused(
    tmp_path: Path, spoil: Callable[[Path], None], message: str
) -> None:
    audit = _write_audit(tmp_path / "audit")
    spoil(audit)
    with pytest.raises(FolderError, match=message):
        read_facts(audit)


def test_folders_that_are_no_finished_audit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FolderError, match="does not exist"):
        read_facts(tmp_path / "none")
    folders.begin_folder(tmp_path / "begun", kind="audit", settings={})
    with pytest.raises(FolderError, match="unfinished"):
        read_facts(tmp_path / "begun")


# What a steward decided


def _decide(path: Path, facts: AuditFacts, pairs: Any = (), **changes: Any) -> Path:
    plain = {"kind": "decisions", "schema": 1, "audit": facts.digest, "name": "samples", "by": "A. B."}
    path.write_text(json.dumps(plain | {"pairs": pairs} | changes))
    return path


def test_decisions_are_read_by_row(tmp_path: Path) -> None:
    facts = read_facts(_write_audit(tmp_path / "audit"))
    pairs = [
        {"query": 5, "reference": 3, "decision": "copy", "note": "same scar"},
        {"query": 7, "reference": 1, "decision": "unsure", "note": ""},
        {"query": 0, "reference": 1, "decision": "not a copy", "note": ""},
    ]
    found = read_decisions(_decide(tmp_path / "d.json", facts, pairs), facts)
    assert found == {5: "copy", 7: "unsure", 0: "not a copy"}
    assert facts.digest == folders.digest_of(tmp_path / "audit", kind="audit")


ONE = {"query": 1, "decision": "copy"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"audit": "0" * 64}, "another audit"),
        ({"kind": "audit"}, "holds no decisions"),
        ({"schema": 2}, "schema 2"),
        ({"pairs": None}, "no list of pairs"),
        ({"pairs": [{"query": 99, "decision": "copy"}]}, "image 99, which the audit does not know"),
        ({"pairs": [ONE, ONE]}, "image 1 twice"),
        ({"pairs": [{"query": 1, "decision": "maybe"}]}, "decides 'maybe' on image 1"),
        ({"pairs": [{"query": 1, "decision": ["copy"]}]}, "on image 1"),
        ({"pairs": [{"query": True, "decision": "copy"}]}, "without the number"),
        ({"pairs": ["copy"]}, "without the number"),
    ],
)
def test_decisions_that_do_not_fit_are_refused_by_name(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    facts = _facts(np.full(4, 0.4))
    path = _decide(tmp_path / "d.json", facts, **changes)
    with pytest.raises(SettingsError, match=message) as caught:
        read_decisions(path, facts)
    assert str(path) in str(caught.value)


def test_files_that_hold_no_json_are_refused(tmp_path: Path) -> None:
    facts = _facts(np.full(4, 0.4))
    (tmp_path / "d.json").write_text("{")
    for path, message in ((tmp_path / "d.json", "no JSON file"), (tmp_path / "none.json", "does not exist")):
        with pytest.raises(SettingsError, match=message):
            read_decisions(path, facts)


def test_the_gate_needs_no_torch() -> None:
    rooms = ", ".join(f"unalike.release.{room}" for room in ("policy", "facts", "gate"))
    subprocess.run([sys.executable, "-c", f"import sys, {rooms}; assert 'torch' not in sys.modules"], check=True)
