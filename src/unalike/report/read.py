"""An audit folder as a report needs it: checked once here, so that templates and figures can trust it."""

from __future__ import annotations

import contextlib
import itertools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import ArrowException

from unalike import folders
from unalike.errors import FolderError
from unalike.records import Estimate, FloatArray, IntArray, TextArray, estimate_from_json
from unalike.report.poses import AS_IT_IS, lay_like_query
from unalike.report.statistics import PER_COMPARISON
from unalike.report.words import DIVERSITY_VERDICTS
from unalike.seeds import generator_for
from unalike.stats.intervals import estimate_mean

COMPARISONS = ("synthetic-train", "holdout-train", "synthetic-holdout")
SINGLE = (
    "flagged_share",
    "beyond_holdout_share",
    "exposed_subjects_share",
    "excess_over_holdout",
    "closer_to_train_share",
    "copy_rate_at_most",
    "exposed_subjects_in_the_long_run",
    "further_subjects_if_doubled",
)
REQUIRED = {
    "name": (),
    "verdict": ("decision", "headline", "reasons", "warnings"),
    "counts": ("synthetic", "train", "holdout", "train_subjects", "holdout_subjects", "undefined"),
    "channels": ("all", "compared", "height", "width", "dtype"),
    "calibration": ("level", "holdout_subjects", "smallest_p", "certifies_single_image", "subjects_needed", "rule"),
    "estimates": (),
    "flagged": (),
    "beyond_holdout": (),
    "exposed_subjects": (),
}

Pixels = npt.NDArray[np.unsignedinteger[Any]]
BoolArray = npt.NDArray[np.bool_]


# Arrays of the evidence; audits of all versions wrote them.
STORED = (
    "synthetic",
    "train",
    "neighbours",
    "neighbour_valid",
    "synthetic_index",
    "train_index",
    "similarity",
    "p_value",
    "flagged",
    "seed",
    "train_subject",
)
# Arrays that older audits lack: classes, "" where there is none.
LABELS = ("synthetic_label", "train_label")


@dataclass(frozen=True)
class Pairs:
    """The synthetic images that look most like copies, each beside the training image that it would be a copy of.

    Pictures are (pairs, channels, height, width); ``neighbours`` has the slices before and after the training
    image in its volume, where ``neighbour_valid`` says that there are any. Where the match was found in another
    ``pose``, training image and neighbours are already turned to lie as the synthetic image does.
    ``similarity`` is the highest correlation with any training image, nothing turned; ``correlation`` that of the two
    pictures as shown. ``measure`` (which spoke loudest) is empty in audits that had only one, and labels (classes) are
    empty where an image has none and in audits that did not write them.
    """

    synthetic: Pixels
    train: Pixels
    neighbours: Pixels
    neighbour_valid: BoolArray
    synthetic_index: IntArray
    train_index: IntArray
    similarity: FloatArray
    correlation: FloatArray
    p_value: FloatArray
    q_value: FloatArray
    flagged: BoolArray
    seed: IntArray
    train_subject: TextArray
    synthetic_label: TextArray
    train_label: TextArray
    measure: TextArray
    pose: TextArray

    def __len__(self) -> int:
        """Count the pairs."""
        return len(self.synthetic)


@dataclass(frozen=True)
class Exposed:
    """A training subject that a flagged synthetic image matches best."""

    subject: str
    copies: int
    share: float
    highest: float
    images: int


@dataclass(frozen=True)
class Power:
    """One kind of change: the share of planted copies caught, and of changed holdout images flagged.

    ``by_measure`` is the share of planted copies that each measure alone would catch; empty in older audits.
    """

    change: str
    planted: Estimate | None
    sham: Estimate | None
    by_measure: Mapping[str, float]


@dataclass(frozen=True)
class Measure:
    """One kind of evidence: its name, how much it counts beside the others, and what it shows."""

    name: str
    weight: float
    meaning: str


@dataclass(frozen=True)
class Queries:
    """What the table of synthetic images says of each (n,); texts are empty in audits that had one measure only."""

    query: IntArray
    subject: TextArray
    p_value: FloatArray
    q_value: FloatArray
    flagged: BoolArray
    measure: TextArray
    pose: TextArray

    def place_of(self, rows: IntArray) -> IntArray:
        """Where the images in these rows of the samples stand in the table; LookupError if one does not."""
        places = {row: place for place, row in enumerate(self.query.tolist())}
        return np.asarray([places[row] for row in rows.tolist()], dtype=np.int64)


@dataclass(frozen=True)
class Reranked:
    """The best matches by another measure: their mean, and how many are the best match by correlation too."""

    measure: str
    mean: Estimate
    same: int
    images: int


@dataclass(frozen=True)
class Diversity:
    """How varied ``m`` samples are beside images of as many training subjects.

    Mean highest correlation with another image of the same set, share of samples that are alike, and total variance of
    the samples over that of the training images.
    """

    m: int
    samples_mean: Estimate
    train_mean: Estimate
    alike: Estimate
    spread: Estimate
    verdict: str


@dataclass(frozen=True)
class Audit:
    """All that a page says about one audit. ``pairs`` is None in a shareable report: it was never read.

    ``diversity`` is None in audits that were made before it was measured.
    """

    folder: Path
    header: folders.Header
    content: Mapping[str, Any]
    channels: tuple[str, ...]
    compared: tuple[str, ...]
    size: tuple[int, int]
    per_comparison: Mapping[str, Mapping[str, Estimate]]
    measures: tuple[Measure, ...]
    estimates: Mapping[str, Estimate]
    power: tuple[Power, ...]
    highest: Mapping[str, FloatArray]
    exposure: tuple[Exposed, ...]
    queries: Queries
    reranked: tuple[Reranked, ...]
    diversity: Diversity | None
    pairs: Pairs | None

    @property
    def name(self) -> str:
        """Title of what was audited."""
        return str(self.content["name"])

    @property
    def can_flag(self) -> bool:
        """Whether anything could be flagged. If not, "0 flagged" says nothing and must not be shown.

        Pixel-identical images are flagged without a holdout.
        """
        calibration = self.content["calibration"]
        if self.content["flagged"]:
            return True
        return bool(calibration["holdout_subjects"]) and calibration["smallest_p"] <= calibration["level"]

    @property
    def highest_holdout(self) -> float:
        """The highest correlation of any holdout image with a training image; NaN without a holdout."""
        values = self.highest.get("holdout-train", np.empty(0))
        values = values[np.isfinite(values)]
        return float(values.max()) if values.size else float("nan")


def _check_tables(folder: Path, content: Mapping[str, Any], *, shareable: bool) -> None:
    """Compare the tables with the digests in the header: a report must not show what the audit did not find."""
    for name, digest in content.get("tables", {}).items():
        if shareable and name == folders.EVIDENCE:
            continue
        path = folder / Path(name).name
        if path.is_file() and folders.digest_file(path) != digest:
            raise FolderError(f"{path} was changed since the audit. Run the audit again.")


def read_audit(folder: Path, *, shareable: bool) -> Audit:
    """Read an audit folder. A shareable report never opens the evidence, so no picture can slip into it.

    Raises `FolderError` if the folder is no finished audit, or a part of it is missing or damaged.
    """
    header = folders.read_header(folder, kind="audit")
    content = header.content
    absent = [key for key in REQUIRED if key not in content]
    with damaged(header.path):
        absent += [
            f"{key}.{part}" for key in REQUIRED if key in content for part in REQUIRED[key] if part not in content[key]
        ]
    if absent:
        raise FolderError(f"{header.path} lacks {', '.join(absent)}. Run the audit again.")
    _check_tables(folder, content, shareable=shareable)
    exposure = _read_exposure(folder)
    if shareable:
        content = _without_pseudonyms(content, _read_subjects(folder))
    with damaged(header.path):
        described, given = content["channels"], content["estimates"]
        channels, compared = tuple(described["all"]), tuple(described["compared"])
        size = int(described["height"]), int(described["width"])
        per_comparison = {name: _estimates(given.get(name) or {}) for name in PER_COMPARISON}
        estimates = _estimates({name: given.get(name) for name in SINGLE})
        measures = tuple(
            Measure(str(row["name"]), float(row["weight"]), str(row["meaning"]))
            for row in content.get("measures") or []
        )
        power = tuple(read_power(row) for row in content.get("power") or [])
        diversity = _read_diversity(content.get("diversity"))
    queries, best = _read_queries(folder), _read_best(folder)
    return Audit(
        folder=folder,
        header=header,
        content=content,
        channels=channels,
        compared=compared,
        size=size,
        per_comparison=per_comparison,
        measures=measures,
        estimates=estimates,
        power=power,
        highest=_highest(best),
        exposure=exposure,
        queries=queries,
        reranked=_read_reranked(folder, header, best=best, queries=queries),
        diversity=diversity,
        pairs=None if shareable else _read_pairs(folder, queries, channels=channels, compared=compared, size=size),
    )


@contextlib.contextmanager
def damaged(path: Path) -> Iterator[None]:
    """Turn whatever a missing or damaged file makes NumPy, Arrow or a look-up raise into a `FolderError`."""
    if not path.is_file():
        raise FolderError(f"{path} is missing. Run the audit again.")
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, OSError, BadZipFile, ArrowException) as error:
        raise FolderError(f"{path} is damaged ({error}). Run the audit again.") from error


def read_estimates(given: Mapping[str, Any]) -> dict[str, Estimate | dict[str, Estimate]]:
    """Read all estimates of an audit's header: single ones, and those by comparison."""
    found: dict[str, Estimate | dict[str, Estimate]] = {}
    found |= {name: _estimates(given.get(name) or {}) for name in PER_COMPARISON}
    return found | _estimates({name: given.get(name) for name in SINGLE})


def _estimate(entry: Mapping[str, Any] | None) -> Estimate | None:
    return None if entry is None else estimate_from_json(entry)


def _estimates(entries: Mapping[str, Any]) -> dict[str, Estimate]:
    return {key: estimate_from_json(entry) for key, entry in entries.items() if entry is not None}


def read_power(row: Mapping[str, Any]) -> Power:
    """Read one change from an audit's header, of any version."""
    alone = {str(name): _number(share) for name, share in (row.get("by_measure") or {}).items()}
    return Power(str(row["change"]), _estimate(row.get("planted")), _estimate(row.get("sham")), alone)


def _read_diversity(entry: Mapping[str, Any] | None) -> Diversity | None:
    if entry is None:
        return None
    verdict = str(entry["verdict"])
    if verdict not in DIVERSITY_VERDICTS:
        raise ValueError(f"its diversity is {verdict!r}")
    names = ("samples_mean", "train_mean", "alike", "spread")
    return Diversity(m=int(entry["m"]), verdict=verdict, **{name: estimate_from_json(entry[name]) for name in names})


def _read_best(folder: Path) -> pa.Table:
    """Each image with its best match, of every comparison that the audit made."""
    path = folder / folders.MATCHES
    with damaged(path):
        columns = ["comparison", "query", "reference", "similarity"]
        return pq.read_table(path, columns=columns, filters=[("rank", "==", 1)])


def _highest(best: pa.Table) -> dict[str, FloatArray]:
    """Similarity of each image with its best match, by comparison."""
    comparison = np.asarray(best["comparison"].to_pylist(), dtype=np.str_)
    similarity = best["similarity"].to_numpy().astype(np.float64)
    found = {name: similarity[comparison == name] for name in COMPARISONS}
    return {name: values for name, values in found.items() if values.size}


def _read_subjects(folder: Path) -> set[str]:
    """Pseudonyms of every real subject that the audit met."""
    path = folder / folders.MATCHES
    with damaged(path):
        table = pq.read_table(path, columns=["comparison", "query_subject", "reference_subject"])
        real_queries = table.filter(pc.equal(table["comparison"], "holdout-train"))["query_subject"]
        subjects = [*pc.unique(table["reference_subject"]).to_pylist(), *pc.unique(real_queries).to_pylist()]
    return {str(subject) for subject in subjects if subject}


def _read_queries(folder: Path) -> Queries:
    path = folder / folders.QUERIES
    with damaged(path):
        table = pq.read_table(path)
        nothing = [""] * table.num_rows

        def text(name: str) -> TextArray:
            given = table[name].to_pylist() if name in table.column_names else nothing
            return np.asarray(given, dtype=np.str_)

        return Queries(
            query=table["query"].to_numpy().astype(np.int64),
            subject=np.asarray(table["subject"].to_pylist(), dtype=np.str_),
            p_value=table["p_value"].to_numpy().astype(np.float64),
            q_value=table["q_value"].to_numpy().astype(np.float64),
            flagged=np.asarray(table["flagged"].to_pylist(), dtype=np.bool_),
            measure=text("measure"),
            pose=text("pose"),
        )


def _read_reranked(folder: Path, header: folders.Header, *, best: pa.Table, queries: Queries) -> tuple[Reranked, ...]:
    """The best matches by other measures, where the audit looked for any."""
    path = folder / folders.RERANKED
    if not path.is_file() and folders.RERANKED not in header.content.get("tables", {}):
        return ()
    with damaged(path):
        columns = ["measure", "query", "reference", "similarity"]
        table = pq.read_table(path, columns=columns, filters=[("rank", "==", 1)])
        copied = best.filter(pc.equal(best["comparison"], "synthetic-train"))
        by_correlation = dict(zip(copied["query"].to_pylist(), copied["reference"].to_pylist(), strict=True))
        names = dict.fromkeys(table["measure"].to_pylist())  # in the order of the file
        return tuple(
            _rerank(name, table.filter(pc.equal(table["measure"], name)), by_correlation, queries, header.seed)
            for name in names
        )


def _rerank(name: str, table: pa.Table, by_correlation: Mapping[int, int], queries: Queries, seed: int) -> Reranked:
    rows = table["query"].to_numpy().astype(np.int64)
    values = table["similarity"].to_numpy().astype(np.float64)
    values = np.where(np.isfinite(values), values, np.nan)
    pairs = zip(rows.tolist(), table["reference"].to_pylist(), strict=True)
    defined = np.isfinite(values).tolist()
    return Reranked(
        measure=name,
        mean=estimate_mean(
            values, queries.subject[queries.place_of(rows)], random=generator_for(seed, f"report {name}")
        ),
        same=sum(by_correlation[row] == reference for row, reference in itertools.compress(pairs, defined)),
        images=sum(defined),
    )


def _read_exposure(folder: Path) -> tuple[Exposed, ...]:
    path = folder / folders.EXPOSURE
    with damaged(path):
        rows = pq.read_table(path).to_pylist()
        exposed = (
            Exposed(
                subject=str(row["subject"]),
                copies=int(row["copies"]),
                share=_number(row["share"]),
                highest=_number(row["highest"]),
                images=int(row["images"]),
            )
            for row in rows
        )
        return tuple(sorted(exposed, key=lambda row: (-row.copies, -row.highest, row.subject)))


def _number(value: float | None) -> float:
    return float("nan") if value is None else float(value)


def _read_pairs(
    folder: Path, queries: Queries, *, channels: tuple[str, ...], compared: tuple[str, ...], size: tuple[int, int]
) -> Pairs:
    path = folder / folders.EVIDENCE
    with damaged(path), path.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
        stored = {name: arrays[name] for name in STORED}
        nothing = np.full(len(stored["similarity"]), "")
        stored |= {name: arrays[name].astype(np.str_) if name in arrays else nothing for name in LABELS}
        expected = (len(stored["similarity"]), len(channels), *size)
        if stored["synthetic"].shape != expected or stored["train"].shape != expected:
            raise ValueError(f"its pictures are not {expected} as the header says")
        order = np.lexsort((-stored["similarity"], np.nan_to_num(stored["p_value"], nan=2.0), ~stored["flagged"]))
        stored = {name: values[order] for name, values in stored.items()}
        return _turn(stored, queries, [channels.index(name) for name in compared])


def _turn(stored: dict[str, Any], queries: Queries, compared: list[int]) -> Pairs:
    """Lay training images as the synthetic ones lie, and correlate what is then shown."""
    places = queries.place_of(stored["synthetic_index"])
    equal = (stored["synthetic"] == stored["train"]).all(axis=(1, 2, 3))
    # An equal image needs no turning, whatever the measure found in a symmetric picture.
    poses = np.where(equal | (queries.pose[places] == ""), AS_IT_IS, queries.pose[places])
    for name in ("train", "neighbours"):
        turned = [lay_like_query(pictures, pose) for pictures, pose in zip(stored[name], poses.tolist(), strict=True)]
        stored[name] = np.stack(turned) if turned else stored[name]
    shown = zip(stored["synthetic"][:, compared], stored["train"][:, compared], strict=True)
    return Pairs(
        **stored,
        correlation=np.asarray([_correlate(*each) for each in shown], dtype=np.float64),
        q_value=queries.q_value[places],
        measure=queries.measure[places],
        pose=poses,
    )


def _correlate(first: Pixels, second: Pixels) -> float:
    """Pearson's correlation of two pictures; NaN if either is constant."""
    centred = [(pixels.astype(np.float64) - pixels.mean()).ravel() for pixels in (first, second)]
    norm = float(np.sqrt((centred[0] @ centred[0]) * (centred[1] @ centred[1])))
    return float(np.clip(centred[0] @ centred[1] / norm, -1.0, 1.0)) if norm > 0 else float("nan")


def _without_pseudonyms(content: Any, subjects: set[str]) -> Any:
    """Take pseudonyms out of the audit's sentences.

    Short all-digit pseudonyms are let stand: nobody could tell them from the counts in a sentence.
    """
    telling = [re.escape(subject) for subject in subjects if len(subject) >= 6 or not subject.isdigit()]
    if not telling:
        return content
    pattern = re.compile(rf"(?<!\w)({'|'.join(sorted(telling, key=lambda text: (-len(text), text)))})(?!\w)")

    def clean(value: Any) -> Any:
        if isinstance(value, str):
            return pattern.sub("[subject]", value)
        if isinstance(value, list):
            return [clean(entry) for entry in value]
        if isinstance(value, Mapping):
            return {key: clean(entry) for key, entry in value.items()}
        return value

    return clean(content)
