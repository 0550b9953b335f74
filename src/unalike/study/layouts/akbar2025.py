"""Tables 2 and 3 and figures 1 to 6 of Akbar et al. (2025), with what they leave out, and their three findings.

The paper's figures 1 to 3 are of slices of volumes (its brain MRI), 4 to 6 of single images (its chest x-rays): images
of patients and samples, closest pairs, and distributions of the highest correlation. So they are here, whatever the
data are.

Their number, the mean highest correlation with a training image, is high for smooth images whoever they show, and
higher the more training images there are. What new patients (holdout images) reach has the same faults; so the excess
over them is what is compared, beside the plain number.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow.parquet as pq

from unalike import folders
from unalike.records import Estimate, FloatArray, IntArray, Pixels, TextArray
from unalike.report.figures import choose_bins
from unalike.report.read import Audit
from unalike.report.tables import Cell, Column, Table, plain_number
from unalike.seeds import generator_for
from unalike.study.layouts.generic import (
    ALL,
    EXAMPLES,
    INTERVALS,
    KIND_NAMES,
    NOT_MEASURED,
    NOT_RUN,
    Drawing,
    Model,
    Part,
    Results,
    bound_of,
    cell_of,
    data_title,
    draw_pair_rows,
    draw_panels,
    draw_rows,
    examples_of,
    flagged_of,
    highest_of,
    power_of,
    subjects_of,
)
from unalike.study.layouts.papers import AKBAR, AKBAR_TABLE_2, AKBAR_TABLE_3

Answer = Literal["seen", "not seen", "cannot tell"]
Term = tuple[int, FloatArray, TextArray]  # sign, values (n,), and the subject of each
DRAWS = 2000
SIZES = ("tiny", "small", "medium", "large")
KNOWN = tuple(dict.fromkeys(row.data for row in AKBAR_TABLE_2))
FINDINGS = (
    "Diffusion copies more than StyleGAN",
    "Fewer training subjects, more copying",
    "Slices of volumes are copied more than single images",
)


def lay_out(results: Results) -> Iterator[Part]:
    """The parts of the page, in order."""
    yield answer_findings(results)
    yield Part("Table 2: fidelity and copies", tables=(tabulate_models(results),))
    yield Part("Table 3: size of the networks", tables=(tabulate_sizes(results),))
    for first, of_volumes, what in ((1, True, "slices of volumes"), (4, False, "single images")):
        cohorts = [name for name in results.cohorts() if results.of_volumes(name) is of_volumes]
        if cohorts:
            yield draw_figures(results, cohorts, first, what)


# Tables


def tabulate_models(results: Results) -> Table:
    """Table 2: a row for each model, and the paper's rows where the data are the paper's."""
    rows: list[tuple[Cell, ...]] = []
    features: dict[str, None] = {}
    for cohort in results.cohorts():
        for model in [each for each in results.models() if each.cohort == cohort]:
            rows.append(_model_row(results, model))
            fidelity = results.fidelity(model)
            features |= {} if fidelity is None else {fidelity.features: None}
        rows += [
            (
                f"{cohort} ({row.data})",
                KIND_NAMES[row.kind],
                AKBAR,
                "",
                plain_number(row.fid),
                "",
                plain_number(row.inception),
                plain_number(row.correlation),
                *[""] * 8,
            )
            for row in AKBAR_TABLE_2
            if row.data == results.paper(cohort)
        ]
    named = "; ".join(features) or "none measured"
    notes = [
        f"Fréchet distance: ours is corrected for the number of images, on the features: {named}. "
        f"Rows of {AKBAR} have the Fréchet inception distance: both compare only where the features are Inception's.",
        *(
            ["Features of the cohort's own are made offline: they are not Inception's."]
            if "of the cohort" in named
            else []
        ),
        "Inception score: where no network with classes was used, the Vendi score (effective number of different "
        "samples) stands for it; the two do not compare.",
        "Mean highest correlation: of each sample with the training image most like it, nothing turned. It is high for "
        "smooth images whoever they show: read it beside that of new patients (holdout images). Excess: the first "
        "minus the second.",
        "Flagged: stands out as one training subject's, calibrated on new patients. Power: so flagged of planted "
        "training images with slight noise. Closer to train: than to as many holdout images (50 % is chance).",
        INTERVALS,
    ]
    return Table(
        "table-2",
        "Table 2: how good the samples are as a set, and whom they copy",
        (
            Column("data"),
            Column("model"),
            Column("numbers"),
            Column("training subjects"),
            Column("Fréchet distance", "measure"),
            Column("of new patients", "measure"),
            Column("inception score or Vendi score", "number"),
            Column("mean highest correlation", "number"),
            Column("of new patients, mean highest correlation", "number"),
            Column("excess", "number"),
            Column("flagged", "share"),
            Column("copy rate at most", "share"),
            Column("closer to train", "share"),
            Column("power", "share"),
            Column("holdout subjects"),
            Column("verdict"),
        ),
        tuple(rows),
        tuple(notes),
    )


def _model_row(results: Results, model: Model) -> tuple[Cell, ...]:
    audit, fidelity = results.audit(model), results.fidelity(model)
    found = {} if audit is None else audit.estimates
    ran = audit is not None
    distances = [
        cell_of(None if fidelity is None else fidelity.find("frechet", f"{of}-train"), run=fidelity is not None)
        for of in ("synthetic", "holdout")
    ]
    score = None
    if fidelity is not None:
        names = [each.measure for each in fidelity.scores if each.compared == "synthetic"]
        names.sort(key=lambda name: name != "inception score")
        score = next((name for name in names if name == "inception score" or name.startswith("Vendi")), None)
    return (
        data_title(results, model.cohort, KNOWN),
        results.title(model),
        "ours",
        subjects_of(results, model),
        *distances,
        cell_of(
            None if fidelity is None or score is None else fidelity.find(score, "synthetic"), run=fidelity is not None
        ),
        highest_of(audit, "synthetic-train"),
        highest_of(audit, "holdout-train"),
        cell_of(found.get("excess_over_holdout"), run=ran),
        flagged_of(audit),
        bound_of(found.get("copy_rate_at_most"), run=ran),
        cell_of(found.get("closer_to_train_share"), run=ran),
        power_of(audit),
        NOT_RUN if audit is None else str(audit.content["counts"]["holdout_subjects"]),
        NOT_RUN if audit is None else str(audit.content["verdict"]["decision"]),
    )


def tabulate_sizes(results: Results) -> Table:
    """Table 3: mean highest correlation by size of the network, by data set, kind and number of subjects."""
    found: dict[tuple[str, str, str], dict[str, Model]] = {}
    for model in results.models():
        size = results.size(model)
        if size in SIZES:
            # Of several models of one size the study's first stands here.
            found.setdefault((model.cohort, results.kind(model), model.subjects), {}).setdefault(size, model)
    papers = [(cohort, kind) for cohort, kind, _ in found if (results.paper(cohort), kind) in AKBAR_TABLE_3]
    sizes = [size for size in SIZES if (papers and size != "tiny") or any(size in models for models in found.values())]
    rows: list[tuple[Cell, ...]] = []
    for (cohort, kind, subjects), models in found.items():
        name = KIND_NAMES.get(kind, kind)
        cells = [
            highest_of(results.audit(models[size]), "synthetic-train") if size in models else NOT_RUN for size in sizes
        ]
        rows.append((data_title(results, cohort, KNOWN), name, "ours", subjects, *cells))
        numbers = AKBAR_TABLE_3.get((results.paper(cohort), kind), {}) if subjects == ALL else {}
        if numbers:
            paper = [plain_number(numbers[size]) if size in numbers else "" for size in sizes]
            rows.append((f"{cohort} ({results.paper(cohort)})", name, AKBAR, subjects, *paper))
    columns = (Column("data"), Column("model"), Column("numbers"), Column("training subjects"))
    notes = (
        "Mean highest correlation of samples with a training image. A network too small for its data has a low one.",
        INTERVALS,
    )
    title = "Table 3: mean highest correlation by size of the network"
    return Table("table-3", title, (*columns, *(Column(size, "number") for size in sizes)), tuple(rows), notes)


# The three findings


@dataclass(frozen=True)
class Comparison:
    """Two models of which the first should copy more if the finding holds."""

    finding: str
    first: Model
    second: Model


def list_comparisons(results: Results) -> Iterator[Comparison]:
    """All pairs of models that speak of a finding: plain ones, and of a kind the first of the study."""
    models: dict[tuple[str, str, str], Model] = {}
    for model in results.models():
        if not model.varied:
            models.setdefault((model.cohort, results.kind(model), model.subjects), model)
    for (cohort, kind, subjects), model in models.items():
        other = models.get((cohort, "stylegan", subjects))
        if kind == "diffusion" and other is not None:
            yield Comparison(FINDINGS[0], model, other)
    networks = [each for each in models.values() if results.kind(each) in ("diffusion", "stylegan")]
    for few in networks:
        for many in networks:
            if _is_fewer(results, few, many):
                yield Comparison(FINDINGS[1], few, many)
    for slices in networks:
        for single in networks:
            alike = results.kind(slices) == results.kind(single) and slices.subjects == single.subjects
            if alike and results.of_volumes(slices.cohort) is True and results.of_volumes(single.cohort) is False:
                yield Comparison(FINDINGS[2], slices, single)


def _is_fewer(results: Results, few: Model, many: Model) -> bool:
    """Whether these are one kind on fewer and on more subjects: of one cohort, or of two sizes of one data set."""
    if results.kind(few) != results.kind(many):
        return False
    if few.cohort == many.cohort:
        return _number(few) < _number(many)
    family = results.about(few.cohort).get("family")
    if not family or family != results.about(many.cohort).get("family") or (few.subjects, many.subjects) != (ALL, ALL):
        return False
    audits = [results.audit(each) for each in (few, many)]
    counts = [each.content["counts"]["train_subjects"] if each is not None else 0 for each in audits]
    return bool(0 < counts[0] < counts[1])


def _number(model: Model) -> float:
    return float(model.subjects) if model.subjects.isdigit() else math.inf


def answer_findings(results: Results) -> Part:
    """The paper's findings, each seen, not seen, or beyond telling, with the numbers that say so."""
    rows: list[tuple[Cell, ...]] = []
    answers: dict[str, list[Answer | None]] = {finding: [] for finding in FINDINGS}
    for each in list_comparisons(results):
        row, answer = _compare(results, each)
        rows.append(row)
        answers[each.finding].append(answer)
    lead = []
    for number, (finding, given) in enumerate(answers.items(), 1):
        run = [answer for answer in given if answer is not None]
        told = [f"{answer} in {run.count(answer)}" for answer in ("seen", "not seen", "cannot tell") if answer in run]
        absent = "no comparison was planned" if not given else "not run"
        lead.append(
            f"{number}. {finding}: {', '.join(told)} of {len(run)} comparisons."
            if run
            else f"{number}. {finding}: {absent}."
        )
    notes = (
        "Excess: the mean highest correlation with a training image, less that of new patients. It is the fair number: "
        "smooth images correlate highly whoever they show, and more training images make any best match better.",
        "Seen: the first model's excess is larger, and above 0; or more of its samples are flagged. Not seen: it is "
        "smaller, or neither model comes closer to its training images than new patients do; or fewer are flagged. "
        "Where the two disagree, nothing can be told. Judged by 95 % intervals, each for itself: among 20 comparisons "
        "of equals one may seem to differ.",
        "The third finding compares different data: organ, number of images and network differ as well, so that seeing "
        "it does not say that slices are the reason.",
        "Shares of flagged samples differ by Newcombe's (1998) interval from exact limits.",
    )
    table = Table(
        "findings",
        "The paper's three findings",
        (
            Column("finding"),
            Column("first"),
            Column("second"),
            Column("answer"),
            Column("difference of the mean highest correlations", "number"),
            Column("difference of the excesses", "number"),
            Column("excess of the first", "number"),
            Column("excess of the second", "number"),
            Column("flagged, first", "share"),
            Column("flagged, second", "share"),
            Column("by excess"),
            Column("by flags"),
        ),
        tuple(rows),
        notes,
    )
    return Part("Were the paper's findings seen?", lead=tuple(lead), tables=(table,))


def _compare(results: Results, each: Comparison) -> tuple[tuple[Cell, ...], Answer | None]:
    models = (each.first, each.second)
    names = [f"{model.cohort}, {results.title(model)}, {_subjects(model)}" for model in models]
    audits = [results.audit(model) for model in models]
    if audits[0] is None or audits[1] is None:
        return (each.finding, *names, *[NOT_RUN] * 9), None
    first, second = audits[0], audits[1]
    parts = [_read_highest(audit, "synthetic-train") for audit in (first, second)]
    raw = combine_means([(1, *parts[0][1:]), (-1, *parts[1][1:])], purpose="raw")
    excess = combine_means(
        [(1, *parts[0][1:]), (-1, *parts[1][1:]), *_holdouts(first, second, same=models[0].cohort == models[1].cohort)],
        purpose="excess",
    )
    own = [audit.estimates.get("excess_over_holdout") for audit in (first, second)]
    shares = [audit.estimates["flagged_share"] if audit.can_flag else None for audit in (first, second)]
    by_excess = judge_excess(excess, own[0], own[1])
    by_flags = judge_shares(shares[0], shares[1])
    answer = join_answers(by_excess, by_flags)
    own_cells = [NOT_MEASURED if found is None else found for found in own]
    return (
        each.finding,
        *names,
        answer,
        raw,
        excess,
        *own_cells,
        flagged_of(first),
        flagged_of(second),
        by_excess,
        by_flags,
    ), answer


def _subjects(model: Model) -> str:
    return "all subjects" if model.subjects == ALL else f"{model.subjects} subjects"


def _read_highest(audit: Audit, comparison: str) -> tuple[IntArray, FloatArray, TextArray]:
    """Row of each image of one comparison, its highest correlation, and its subject."""
    filters = [("rank", "==", 1), ("comparison", "==", comparison)]
    columns = ["query", "query_subject", "similarity"]
    table = pq.read_table(audit.folder / folders.MATCHES, columns=columns, filters=filters)
    values = np.asarray([math.nan if v is None else v for v in table["similarity"].to_pylist()], dtype=np.float64)
    subjects = np.asarray(table["query_subject"].to_pylist(), dtype=np.str_)
    return table["query"].to_numpy().astype(np.int64), values, subjects


def _holdouts(first: Audit, second: Audit, *, same: bool) -> Sequence[Term]:
    """What new patients reach against each model's training images, to be taken off.

    Of one cohort they are the same images, so their differences are taken image by image before subjects are drawn.
    """
    one, two = (_read_highest(audit, "holdout-train") for audit in (first, second))
    if same and np.array_equal(one[0], two[0]) and np.array_equal(one[2], two[2]):
        return [(-1, one[1] - two[1], one[2])]
    return [(-1, *one[1:]), (1, *two[1:])]


def combine_means(parts: Sequence[Term], *, purpose: str) -> Estimate:
    """Sum of means with signs, with an interval from subjects of each part drawn anew, independently of one another.

    Cluster bootstrap with percentiles (Davison and Hinkley 1997, 3.8). Undefined if a part has no value; without an
    interval if one has a single subject.
    """
    method, random = "bootstrap of subjects, all sides", generator_for(0, f"study {purpose}")
    value, total, least = 0.0, np.zeros(DRAWS), math.inf
    for sign, values, subjects in parts:
        kept = np.isfinite(values)
        names, index = np.unique(subjects[kept], return_inverse=True)
        if not len(names):
            return Estimate(math.nan, math.nan, math.nan, 0, method)
        sums = np.bincount(index, weights=values[kept])
        counts = np.bincount(index).astype(np.float64)
        drawn = random.multinomial(len(names), np.full(len(names), 1 / len(names)), size=DRAWS)
        value += sign * float(sums.sum() / counts.sum())
        total += sign * (drawn @ sums) / (drawn @ counts)
        least = min(least, len(names))
    if least == 1:
        return Estimate(value, math.nan, math.nan, 1, method)
    low, high = np.quantile(total, [0.025, 0.975])
    return Estimate(value, float(low), float(high), int(least), method)


def share_difference(first: Estimate, second: Estimate) -> Estimate:
    """Difference of two independent shares from their own limits (Newcombe 1998, method 10, here with exact limits)."""
    value = first.value - second.value
    below = math.hypot(first.value - first.low, second.high - second.value)
    above = math.hypot(first.high - first.value, second.value - second.low)
    return Estimate(value, max(-1.0, value - below), min(1.0, value + above), min(first.n, second.n), "Newcombe")


def judge_excess(difference: Estimate, first: Estimate | None, second: Estimate | None) -> Answer:
    """What the excesses over new patients say: see the notes of the table."""
    if math.isnan(difference.low):
        return "cannot tell"
    if difference.high < 0:
        return "not seen"
    if first is not None and second is not None and first.high <= 0 and second.high <= 0:
        return "not seen"
    return "seen" if difference.low > 0 and first is not None and first.low > 0 else "cannot tell"


def judge_shares(first: Estimate | None, second: Estimate | None) -> Answer:
    """What the shares of flagged samples say; None where nothing could be flagged."""
    if first is None or second is None or math.isnan(first.low) or math.isnan(second.low):
        return "cannot tell"
    found = share_difference(first, second)
    return "seen" if found.low > 0 else "not seen" if found.high < 0 else "cannot tell"


def join_answers(one: Answer, two: Answer) -> Answer:
    """One answer of two: where one cannot tell the other's; where they disagree, none."""
    if one == two or two == "cannot tell":
        return one
    return two if one == "cannot tell" else "cannot tell"


# Figures


def draw_figures(results: Results, cohorts: Sequence[str], first: int, what: str) -> Part:
    """Three figures of cohorts of one sort: examples, closest pairs, distributions; the first is number ``first``."""
    drawings = []
    rows = [row for cohort in cohorts for row in _example_rows(results, cohort)]
    if rows:
        caption = f"Figure {first}. Training images, and samples of each model, drawn at random: {what}."
        drawings.append(Drawing(f"figure-{first}", draw_rows(rows), caption, patients=True))
    models = [model for model in results.models() if model.cohort in cohorts]
    audits = {model: audit for model in models if (audit := results.audit(model)) is not None}
    pairs = [
        (_label(results, model, cohort=True), audit, audit.pairs)
        for model, audit in audits.items()
        if audit.pairs is not None and len(audit.pairs)
    ]
    if pairs:
        caption = (
            f"Figure {first + 1}. The sample of each model that looks most like a copy, the training image it would be "
            "a copy of, their difference (brighter amber, darker blue) and pixel values; of volumes the next slices."
        )
        drawings.append(Drawing(f"figure-{first + 1}", draw_pair_rows(pairs), caption, patients=True))
    if audits:
        drawings.append(_draw_distributions(results, cohorts, models, audits, first + 2))
    return Part(f"Figures {first} to {first + 2}: {what}", drawings=tuple(drawings))


def _draw_distributions(
    results: Results, cohorts: Sequence[str], models: Sequence[Model], audits: Mapping[Model, Audit], number: int
) -> Drawing:
    labels = list(dict.fromkeys(_label(results, model) for model in models))
    panels = {
        (labels.index(_label(results, model)), list(cohorts).index(model.cohort)): audit
        for model, audit in audits.items()
    }
    bins = choose_bins([values for audit in audits.values() for values in audit.highest.values()])
    caption = (
        f"Figure {number}. How close each sample comes to its best match among training images, beside new patients' "
        "images (holdout → train), and among holdout images. Each curve has the same area. Copies show as a filled "
        "curve to the right of the dashed one."
    )
    return Drawing(f"figure-{number}", draw_panels(labels, list(cohorts), panels, bins=bins), caption)


def _example_rows(results: Results, cohort: str) -> Iterator[tuple[str, tuple[str, ...], Pixels]]:
    images = results.cohort(cohort)
    if images is not None and len(rows := images.rows("train")):
        yield f"{cohort}\ntraining", images.channels, examples_of(images, rows, purpose="examples")
    for model in results.models():
        samples = results.samples(model) if model.cohort == cohort else None
        if samples is not None and len(samples):
            rows = np.arange(len(samples))
            yield (
                _label(results, model),
                samples.channels,
                examples_of(samples, rows, purpose="examples", count=EXAMPLES),
            )


def _label(results: Results, model: Model, *, cohort: bool = False) -> str:
    place = f"{model.cohort}\n" if cohort else ""
    return f"{place}{results.title(model)}\n{_subjects(model)}"
