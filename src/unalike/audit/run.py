"""`audit_samples`: the whole audit, from folders to a folder."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from unalike import folders
from unalike.audit import calibrate as calibration_room
from unalike.audit.blocks import BlockExaminer, Workshop, open_workshop
from unalike.audit.calibrate import Calibration
from unalike.audit.channels import correlate_by_channel
from unalike.audit.diversity import Diversity, measure_diversity
from unalike.audit.evidence import Evidence, Measure, pose_names
from unalike.audit.exposure import ExposedSubject, count_exposure, find_culprits
from unalike.audit.power import PowerRow, measure_power
from unalike.audit.rerank import measure_again
from unalike.audit.search import Comparison, compare_sets
from unalike.audit.settings import AuditSettings
from unalike.audit.statistics import whole_set_estimates
from unalike.audit.verdict import Verdict, reach_verdict
from unalike.audit.volumes import VolumeVote, vote_by_volume
from unalike.cohort.roles import ImageSet, Roles, choose_channels, open_roles
from unalike.devices import pick_device
from unalike.errors import SettingsError
from unalike.records import Estimate, FloatArray, IntArray, as_json
from unalike.seeds import generator_for
from unalike.stats.intervals import estimate_difference, estimate_mean, estimate_share


@dataclass(frozen=True)
class AuditResult:
    """What an audit found. The same stands in the folder's header (``audit.json``), tables and evidence."""

    path: Path
    name: str
    verdict: Verdict
    counts: Mapping[str, int]
    calibration: Mapping[str, Any]
    estimates: Mapping[str, Any]
    power: tuple[PowerRow, ...]
    measures: tuple[Measure, ...]
    volumes: tuple[VolumeVote, ...]
    diversity: Diversity
    flagged: int
    beyond_holdout: int
    exposed_subjects: int


def audit_samples(
    *,
    synthetic: str | Path,
    out: str | Path,
    against: str | Path | None = None,
    train: str | Path | None = None,
    holdout: str | Path | None = None,
    settings: AuditSettings | None = None,
    name: str | None = None,
    seed: int = 0,
    device: str = "auto",
    scheduler: str | None = None,
    workers: int | None = None,
) -> AuditResult:
    """Ask whether synthetic images copy training images, with error rates calibrated on held-out subjects.

    ``synthetic`` is a samples folder or a plain folder of pictures. Give the real images either as the cohort
    ``against`` (its roles are used; of samples drawn by unalike, subjects that the run did not see count as holdout)
    or as folders ``train`` and ``holdout``. The audit folder ``out`` holds pictures of real patients: it is internal.

    ``scheduler`` is the address of a Dask scheduler whose workers share the file system; otherwise ``workers`` blocks
    are worked on at once, by default one with all cores. The result is the same. An interrupted audit goes on where it
    was when it is called again.

    Raises an `InputError`, and leaves nothing behind, if the folders cannot be read or do not fit each other.
    """
    settings = settings or AuditSettings()
    settings.check()
    if seed < 0:
        raise SettingsError(f"--seed {seed}: give a whole number from 0 on.")
    where = pick_device(device)
    paths = [Path(path) if path is not None else None for path in (against, train, holdout)]
    with (
        open_roles(
            synthetic=Path(synthetic), against=paths[0], train=paths[1], holdout=paths[2], settings=settings
        ) as roles,
        open_workshop(Path(out), settings=settings, device=device, scheduler=scheduler, workers=workers) as workshop,
    ):
        return _audit(roles, Path(out), settings, name or Path(synthetic).name, seed, where, workshop)


def _audit(
    roles: Roles,
    out: Path,
    settings: AuditSettings,
    name: str,
    seed: int,
    device: torch.device,
    workshop: Workshop,
) -> AuditResult:
    channels = choose_channels(roles, settings.channels)
    comparisons = _compare(roles, settings, channels, device)
    copied = comparisons["synthetic-train"]
    held = comparisons.get("holdout-train")
    examiner = BlockExaminer(roles.train, channels=channels, settings=settings, seed=seed, workshop=workshop)
    evidence = examiner.examine_set(roles.synthetic, "Examining synthetic images")
    against = examiner.examine_set(roles.holdout, "Examining holdout images")
    calibration = calibration_room.calibrate(
        evidence,
        identical=np.isin(roles.synthetic.digests, roles.train.digests),
        holdout=against,
        subjects=roles.holdout.subjects,
        highest_holdout=float(np.nanmax(held.highest, initial=-1.0)) if held else math.nan,
        level=settings.level,
    )
    power: list[PowerRow] = []
    if held and settings.planted:
        for images in (roles.train, roles.holdout):
            examiner.examine_planted(images, count=settings.planted)
        power = measure_power(
            examiner=examiner, holdout=roles.holdout, evidence=against, count=settings.planted, seed=seed
        )
    culprits = find_culprits(calibration, evidence, copied)
    exposed = count_exposure(culprits, copied, calibration.flagged)
    votes = vote_by_volume(
        evidence,
        synthetic=roles.synthetic,
        holdout=roles.holdout,
        against=against,
        owners=roles.train.folder.column("subject"),
        level=settings.level,
    )
    undefined = int(np.isnan(copied.highest).sum())
    diversity = measure_diversity(roles.synthetic, roles.train, channels=channels, seed=seed, device=device)
    estimates = _estimate(comparisons, calibration, exposed, seed)
    result = AuditResult(
        path=out,
        name=name,
        verdict=reach_verdict(
            calibration,
            exposed_subjects=len(exposed),
            power=power,
            volumes=votes,
            warnings=[*diversity.warnings(), *roles.warnings, *_constant(undefined)],
        ),
        counts=_count(roles, undefined),
        calibration=calibration.summary(),
        estimates=estimates
        | whole_set_estimates(roles, comparisons, calibration, power, exposed, channels, seed, device),
        power=tuple(power),
        measures=tuple(evidence.measures),
        volumes=tuple(votes),
        diversity=diversity,
        flagged=int(calibration.flagged.sum()),
        beyond_holdout=int(calibration.beyond.sum()),
        exposed_subjects=len(exposed),
    )
    found = _Found(comparisons, calibration, evidence, culprits, exposed)
    _write(result, roles, found, channels, settings, seed, device, workshop)
    return result


@dataclass(frozen=True)
class _Found:
    """What is written to tables."""

    comparisons: Mapping[str, Comparison]
    calibration: Calibration
    evidence: Evidence
    culprits: IntArray
    exposed: list[ExposedSubject]


def _compare(roles: Roles, settings: AuditSettings, channels: list[int], device: torch.device) -> dict[str, Comparison]:
    """The three questions: synthetic → train, holdout → train, synthetic → holdout."""
    pairs = {"synthetic-train": (roles.synthetic, roles.train)}
    if len(roles.holdout):
        pairs |= {
            "holdout-train": (roles.holdout, roles.train),
            "synthetic-holdout": (roles.synthetic, roles.holdout),
        }
    return {
        name: compare_sets(
            queries,
            references,
            best=settings.best,
            channels=channels,
            device=device,
            title=f"Comparing {name.replace('-', ' → ')}",
        )
        for name, (queries, references) in pairs.items()
    }


def _constant(undefined: int) -> list[str]:
    if not undefined:
        return []
    return [f"{undefined} synthetic images are constant: their correlation is undefined and they count as not flagged."]


def _count(roles: Roles, undefined: int) -> dict[str, int]:
    return {
        "synthetic": len(roles.synthetic),
        "train": len(roles.train),
        "holdout": len(roles.holdout),
        "train_subjects": len(np.unique(roles.train.subjects)),
        "holdout_subjects": len(np.unique(roles.holdout.subjects)),
        "undefined": undefined,
    }


def _estimate(
    comparisons: Mapping[str, Comparison],
    calibration: Calibration,
    exposed: list[ExposedSubject],
    seed: int,
) -> dict[str, Any]:
    """The papers' figures and ours, each with its interval. Every synthetic image is a draw of its own."""

    def mean_of(values: FloatArray, comparison: Comparison, purpose: str) -> Estimate:
        return estimate_mean(values, comparison.queries.subjects, random=generator_for(seed, purpose))

    copied = comparisons["synthetic-train"]
    train_subjects = len(np.unique(copied.references.subjects))
    draws = int(np.isfinite(copied.highest).sum())
    estimates: dict[str, Any] = {
        "mean_highest_correlation": {
            name: mean_of(comparison.highest, comparison, f"highest {name}") for name, comparison in comparisons.items()
        },
        "mean_correlation": {
            name: mean_of(comparison.result.mean, comparison, f"mean {name}")
            for name, comparison in comparisons.items()
        },
        "flagged_share": estimate_share(int(calibration.flagged.sum()), draws),
        # Who was exposed is counted in this sample; a larger sample may expose more, so no interval is claimed.
        "exposed_subjects_share": Estimate(
            len(exposed) / train_subjects, math.nan, math.nan, train_subjects, "count in this sample"
        ),
    }
    if "holdout-train" in comparisons:
        held = comparisons["holdout-train"]
        estimates["excess_over_holdout"] = estimate_difference(
            (copied.highest, copied.queries.subjects),
            (held.highest, held.queries.subjects),
            random=generator_for(seed, "excess"),
        )
        estimates["beyond_holdout_share"] = estimate_share(int(calibration.beyond.sum()), draws)
    return estimates


def _write(
    result: AuditResult,
    roles: Roles,
    found: _Found,
    channels: list[int],
    settings: AuditSettings,
    seed: int,
    device: torch.device,
    workshop: Workshop,
) -> None:
    out, folder = result.path, roles.train.folder
    copied = found.comparisons["synthetic-train"]
    matches = pa.concat_tables(_match_tables(found.comparisons))
    pq.write_table(matches, out / folders.MATCHES)
    pq.write_table(_query_table(copied, found, channels), out / folders.QUERIES)
    fields = {name: [getattr(entry, name) for entry in found.exposed] for name in ExposedSubject.__dataclass_fields__}
    pq.write_table(pa.table(fields), out / folders.EXPOSURE)
    written = [folders.MATCHES, folders.QUERIES, folders.EXPOSURE, folders.EVIDENCE]
    if settings.rerank:
        pq.write_table(measure_again(copied, settings, channels, device), out / folders.RERANKED)
        written.append(folders.RERANKED)
    pairs = _gather_evidence(copied, found, settings.pairs)
    np.savez_compressed(out / folders.EVIDENCE, **pairs)
    summary = as_json(result)
    summary.pop("path")
    content = summary | {
        "internal": True,
        "channels": {
            "compared": [folder.channels[index] for index in channels],
            "all": list(folder.channels),
            "height": folder.size[0],
            "width": folder.size[1],
            "dtype": folder.dtype.name,
        },
        "tables": {name: folders.digest_file(out / name) for name in written},
    }
    workshop.remove_blocks()
    folders.finish_folder(out, kind="audit", settings=asdict(settings), seed=seed, inputs=roles.inputs, content=content)


def _match_tables(comparisons: Mapping[str, Comparison]) -> list[pa.Table]:
    tables = []
    for name, comparison in comparisons.items():
        queries, references = comparison.queries, comparison.references.folder
        rows, best = comparison.best_rows, comparison.best_rows.shape[1]
        flat = rows.reshape(-1)
        known = flat >= 0
        slices = references.numbers("slice")
        owners = references.column("subject")
        tables.append(
            pa.table(
                {
                    "comparison": [name] * len(flat),
                    "query": np.repeat(queries.rows, best).astype(np.int32),
                    "query_subject": np.repeat(queries.subjects, best).tolist(),
                    "rank": np.tile(np.arange(1, best + 1), len(rows)).astype(np.int32),
                    "reference": flat.astype(np.int32),
                    "reference_subject": np.where(known, owners[flat], "").tolist(),
                    "reference_slice": np.where(known, slices[flat], -1).astype(np.int32),
                    "similarity": comparison.result.similarities.reshape(-1),
                }
            )
        )
    return tables


def _query_table(copied: Comparison, found: _Found, channels: list[int]) -> pa.Table:
    queries, calibration, evidence = copied.queries, found.calibration, found.evidence
    owners = np.append(copied.references.folder.column("subject"), "")
    names = [measure.name for measure in evidence.measures]
    poses = pose_names(evidence)
    return pa.table(
        {
            "query": queries.rows.astype(np.int32),
            "subject": queries.subjects.tolist(),
            "seed": queries.folder.numbers("seed")[queries.rows],
            "similarity": copied.highest,
            "p_value": calibration.p_values,
            "q_value": calibration.q_values,
            "flagged": calibration.flagged,
            "beyond_holdout": calibration.beyond,
            "measure": [names[index] if index >= 0 else "" for index in calibration.spoke],
            "reference": found.culprits.astype(np.int32),
            "reference_subject": owners[found.culprits].tolist(),
            "pose": [poses[index][place] if index >= 0 else "" for place, index in enumerate(calibration.spoke)],
        }
        | correlate_by_channel(copied, channels)
        | {f"score_{name}": scores for name, scores in zip(names, evidence.scores, strict=True)}
        | {f"p_{name}": values for name, values in zip(names, calibration.by_measure, strict=True)}
    )


def _gather_evidence(copied: Comparison, found: _Found, pairs: int) -> dict[str, Any]:
    """Pictures of the pairs that speak most for a copy, their classes, and the slices beside the matched one."""
    calibration, highest = found.calibration, np.nan_to_num(copied.highest, nan=-2.0)
    p_values = np.nan_to_num(calibration.p_values, nan=2.0)
    order = np.lexsort((-highest, p_values, ~calibration.flagged))[:pairs]
    order = order[np.isfinite(copied.highest[order])]
    matched = found.culprits[order]
    folder, drawn = copied.references.folder, copied.queries.folder
    rows = copied.queries.rows[order]
    neighbours = _neighbours(copied.references, matched)
    return {
        "synthetic": drawn.read(rows),
        "train": folder.read(matched),
        "neighbours": folder.read(neighbours.reshape(-1).clip(0)).reshape(len(order), 2, *folder.images.shape[1:]),
        "neighbour_valid": neighbours >= 0,
        "synthetic_index": rows,
        "train_index": matched,
        "train_subject": folder.column("subject")[matched],
        # Classes, "" where there is none.
        "synthetic_label": drawn.column("label")[rows],
        "train_label": folder.column("label")[matched],
        "similarity": copied.highest[order],
        "flagged": calibration.flagged[order],
        "p_value": calibration.p_values[order],
        "seed": drawn.numbers("seed")[rows],
    }


def _neighbours(references: ImageSet, matched: IntArray) -> IntArray:
    """Rows (M, 2) of the nearest kept slices before and after each matched one in its volume; −1 for none."""
    sources, slices = references.folder.column("source"), references.folder.numbers("slice")
    rows = references.rows
    found = np.full((len(matched), 2), -1, dtype=np.int64)
    for pair, row in enumerate(matched):
        same = rows[(sources[rows] == sources[row]) & (slices[rows] >= 0)]
        before, after = same[slices[same] < slices[row]], same[slices[same] > slices[row]]
        if len(before):
            found[pair, 0] = before[np.argmax(slices[before])]
        if len(after):
            found[pair, 1] = after[np.argmin(slices[after])]
    return found
