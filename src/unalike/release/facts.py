"""What the gate needs to know of an audit folder, read and checked once; and a steward's decisions on its pairs."""

from __future__ import annotations

import contextlib
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import ArrowException

from unalike import folders
from unalike.errors import FolderError, SettingsError
from unalike.records import Estimate, FloatArray, IntArray, estimate_from_json

# The audit's own, in modules that import torch; a test holds them equal.
PLAIN_COPIES = ("none", "noise, sd 5 of 255")  # audit/verdict.py
CAUGHT_AT = 0.01  # audit/power.py

COPY, NO_COPY, UNSURE = "copy", "not a copy", "unsure"
DECISIONS = (COPY, NO_COPY, UNSURE)
_TABLES = (folders.MATCHES, folders.QUERIES, folders.EXPOSURE, folders.EVIDENCE)
_DECISIONS_SCHEMA = 1

BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class AuditFacts:
    """What an audit found of n synthetic images, as far as a release depends on it.

    ``digest`` is that of the audit's header, by which decisions name it; ``inputs`` are the digests of what it was made
    of. ``level`` is the error rate it was made with, ``smallest_p`` the smallest p-value that its ``holdout_subjects``
    allow, and ``limit`` the p-value up to which a planted copy counted as caught.

    ``queries`` (n,) are rows of the samples, rising; ``p_values`` (n,) all measures together, NaN for constant images;
    ``measure_p`` (n,) of each measure alone. ``flagged`` (n,) also holds the slices of synthetic volumes that were
    flagged as a whole: ``by_volume`` (n,) are those. ``identical`` (n,) were flagged because they are a training image
    pixel for pixel, and for no other reason. ``pictured`` are the rows whose pair the audit kept pictures of.

    ``planted`` plain copies (of the kind, of `PLAIN_COPIES`, of which fewest were found) were planted and ``caught`` of
    them found, 0 of 0 where that was not measured; ``sham`` is the share of holdout images that the same change made
    look copied, NaN where unknown. ``by_measure`` has (caught, planted) of each measure alone, of the kind it is
    weakest at. ``closer`` is the share of samples closer to train than to as many holdout images, None where it was not
    measured. ``rejected`` counts samples that a guard rejected while these were drawn: copies went with them that
    no p-value here speaks of.
    """

    path: Path
    name: str
    created: str
    inputs: Mapping[str, str]
    settings: Mapping[str, Any]
    decision: str
    headline: str
    warnings: tuple[str, ...]
    level: float
    holdout_subjects: int
    smallest_p: float
    limit: float
    queries: IntArray
    p_values: FloatArray
    flagged: BoolArray
    identical: BoolArray
    exposed_subjects: int
    train_subjects: int
    planted: int
    caught: int
    sham: float
    by_measure: Mapping[str, tuple[int, int]]
    measure_p: Mapping[str, FloatArray]
    by_volume: BoolArray
    pictured: IntArray
    digest: str
    rejected: int = 0
    closer: Estimate | None = None


def limit_of(smallest_p: float) -> float:
    """The p-value up to which an image counts as caught, as `audit.power.caught` has it."""
    return max(CAUGHT_AT, smallest_p) * (1 + 1e-9)


def read_facts(audit: Path) -> AuditFacts:
    """Read a finished audit folder, whole and unchanged.

    Raises `FolderError` if it is missing, unfinished or damaged, or if a table is missing or was changed.
    """
    header = folders.read_header(audit, kind="audit")
    content = header.content
    _check_tables(audit, header)
    table = _read_queries(audit)
    pictured = _read_pictured(audit)
    with _damaged(header.path):
        calibration, verdict, counts = content["calibration"], content["verdict"], content["counts"]
        level, smallest = float(calibration["level"]), float(calibration["smallest_p"])
        identical = table.flagged & ~(table.q_values <= level)
        if int(identical.sum()) > int(calibration["identical"]) or int(table.flagged.sum()) != int(content["flagged"]):
            raise ValueError(f"its flags are not those of {folders.QUERIES}")
        volumes = {str(vote["volume"]) for vote in content.get("volumes") or [] if vote["flagged"]}
        by_volume = np.isin(table.subjects, sorted(volumes)) if volumes else np.zeros(len(table.queries), np.bool_)
        closer = (content.get("estimates") or {}).get("closer_to_train_share")
        planted = _read_planted(content.get("power") or [])
        warnings = tuple(str(warning) for warning in verdict["warnings"])
        measures = [str(measure["name"]) for measure in content.get("measures") or []]
        return AuditFacts(
            path=audit,
            name=str(content["name"]),
            created=header.created,
            inputs={str(role): str(digest) for role, digest in header.inputs.items()},
            settings=header.settings,
            decision=str(verdict["decision"]),
            headline=str(verdict["headline"]),
            warnings=warnings,
            level=level,
            holdout_subjects=int(calibration["holdout_subjects"]),
            smallest_p=smallest,
            limit=limit_of(smallest),
            queries=table.queries,
            p_values=table.p_values,
            flagged=table.flagged | by_volume,
            identical=identical,
            exposed_subjects=int(content["exposed_subjects"]),
            train_subjects=int(counts["train_subjects"]),
            planted=planted.planted,
            caught=planted.caught,
            sham=planted.sham,
            by_measure=planted.by_measure,
            measure_p={name: table.alone[name] for name in measures},
            by_volume=by_volume,
            pictured=pictured,
            digest=folders.digest_file(header.path),
            rejected=_count_rejected(warnings),
            closer=None if closer is None else estimate_from_json(closer),
        )


def read_decisions(path: Path, facts: AuditFacts) -> dict[int, str]:
    """What a steward decided of pairs of this audit: `DECISIONS` by row of the samples.

    The file is what the evidence page exports. Raises `SettingsError`, naming the file, if it is no such file or of
    another audit, or if a pair is unknown, decided twice, or decided as nothing known.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"{path} does not exist or cannot be read. Check --decisions.") from error
    except (ValueError, RecursionError) as error:
        raise SettingsError(f"{path} is no JSON file ({error}). Export the decisions again.") from error
    if not isinstance(document, dict) or document.get("kind") != "decisions":
        raise SettingsError(f"{path} holds no decisions. Export them from the audit's page.")
    if document.get("schema") != _DECISIONS_SCHEMA:
        raise SettingsError(
            f"{path} has schema {document.get('schema')!r}, this version reads {_DECISIONS_SCHEMA}. Export it again."
        )
    if document.get("audit") != facts.digest:
        raise SettingsError(f"{path} was decided on another audit than {facts.path}. Export it from this audit's page.")
    pairs = document.get("pairs")
    if not isinstance(pairs, list):
        raise SettingsError(f"{path} has no list of pairs. Export the decisions again.")
    known, decided = frozenset(facts.queries.tolist()), dict[int, str]()
    for pair in pairs:
        row, decision = _read_pair(path, pair)
        if row not in known:
            raise SettingsError(f"{path} decides on image {row}, which the audit does not know. Export it again.")
        if row in decided:
            raise SettingsError(f"{path} decides on image {row} twice. Keep one of the two.")
        decided[row] = decision
    return decided


def _read_pair(path: Path, pair: Any) -> tuple[int, str]:
    row = pair.get("query") if isinstance(pair, dict) else None
    if not isinstance(row, int) or isinstance(row, bool):
        raise SettingsError(f"{path} holds a pair without the number of its image (query). Export it again.")
    decision = pair.get("decision")
    if decision not in DECISIONS:
        raise SettingsError(f"{path} decides {decision!r} on image {row}. Write one of: {', '.join(DECISIONS)}.")
    return row, str(decision)


def _check_tables(audit: Path, header: folders.Header) -> None:
    """All tables are there and are those that the audit wrote."""
    with _damaged(header.path):
        digests = {str(name): str(digest) for name, digest in header.content["tables"].items()}
        absent = [name for name in _TABLES if name not in digests]
        if absent:
            raise ValueError(f"it has no digest of {', '.join(absent)}")
    for name, digest in digests.items():
        path = audit / Path(name).name
        if not path.is_file():
            raise FolderError(f"{path} is missing. Run the audit again.")
        if folders.digest_file(path) != digest:
            raise FolderError(f"{path} was changed since the audit. Run the audit again.")


def _count_rejected(warnings: tuple[str, ...]) -> int:
    """Samples that a guard rejected, from the sentence in which an audit says so; ValueError if it does not say how
    many."""
    guarded = [warning for warning in warnings if warning.startswith("GUARDED")]
    if not guarded:
        return 0
    said = re.search(r"of \d+ drawn it rejected (\d+)", guarded[0])
    if said is None:
        raise ValueError("it does not say how many samples the guard rejected")
    return int(said[1])


@contextlib.contextmanager
def _damaged(path: Path) -> Iterator[None]:
    """Turn whatever a damaged file makes NumPy, Arrow or a look-up raise into a `FolderError`."""
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, OSError, BadZipFile, ArrowException) as error:
        raise FolderError(f"{path} is damaged ({error}). Run the audit again.") from error


@dataclass(frozen=True)
class _Table:
    """The columns of `folders.QUERIES` that are needed, (n,) each; ``alone`` by measure."""

    queries: IntArray
    subjects: npt.NDArray[np.str_]
    p_values: FloatArray
    q_values: FloatArray
    flagged: BoolArray
    alone: Mapping[str, FloatArray]


def _read_queries(audit: Path) -> _Table:
    path = audit / folders.QUERIES
    with _damaged(path):
        table: pa.Table = pq.read_table(path).sort_by("query")
        queries = table["query"].to_numpy().astype(np.int64)
        if len(np.unique(queries)) < len(queries):
            raise ValueError("an image stands there twice")
        alone = [name for name in table.column_names if name.startswith("p_") and name != "p_value"]
        return _Table(
            queries=queries,
            subjects=np.asarray(table["subject"].to_pylist(), dtype=np.str_),
            p_values=table["p_value"].to_numpy().astype(np.float64),
            q_values=table["q_value"].to_numpy().astype(np.float64),
            flagged=np.asarray(table["flagged"].to_pylist(), dtype=np.bool_),
            alone={name.removeprefix("p_"): table[name].to_numpy().astype(np.float64) for name in alone},
        )


def _read_pictured(audit: Path) -> IntArray:
    path = audit / folders.EVIDENCE
    with _damaged(path), path.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
        rows: IntArray = np.unique(arrays["synthetic_index"].astype(np.int64))
        return rows


@dataclass(frozen=True)
class _Planted:
    """Planted plain copies, those caught, the share of sham copies, and (caught, planted) of each measure alone."""

    planted: int
    caught: int
    sham: float
    by_measure: Mapping[str, tuple[int, int]]


def _read_planted(power: list[Mapping[str, Any]]) -> _Planted:
    """The weakest plain copy of the audit's power; nothing planted if not all kinds of plain copy were."""
    rows = {str(row["change"]): row for row in power}
    plain = [rows[change] for change in PLAIN_COPIES if change in rows]
    shares = [None if row.get("planted") is None else estimate_from_json(row["planted"]) for row in plain]
    measured = [share for share in shares if share is not None and share.n > 0 and math.isfinite(share.value)]
    if len(measured) < len(PLAIN_COPIES):
        return _Planted(0, 0, math.nan, {})
    weakest = min(range(len(measured)), key=lambda place: measured[place].value)
    held = plain[weakest].get("sham")
    by_measure: dict[str, tuple[int, int]] = {}
    for row, share in zip(plain, measured, strict=True):
        for name, alone in (row.get("by_measure") or {}).items():
            found = 0 if alone is None else round(float(alone) * share.n)
            caught, planted = by_measure.get(str(name), (found, share.n))
            by_measure[str(name)] = min((caught, planted), (found, share.n), key=lambda each: each[0] / each[1])
    best = measured[weakest]
    sham = math.nan if held is None else estimate_from_json(held).value
    return _Planted(best.n, round(best.value * best.n), sham, by_measure)
