"""An audit folder as a report needs it: checked once here, so that templates and figures can trust it."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import ArrowException

from unalike import folders
from unalike.errors import FolderError
from unalike.records import Estimate, FloatArray, IntArray, TextArray, estimate_from_json

COMPARISONS = ("synthetic-train", "holdout-train", "synthetic-holdout")
PER_COMPARISON = ("mean_highest_correlation", "mean_correlation")
SHARES = ("flagged_share", "beyond_holdout_share", "exposed_subjects_share", "excess_over_holdout")
REQUIRED = ("name", "verdict", "counts", "channels", "calibration", "estimates")

Pixels = npt.NDArray[np.unsignedinteger[Any]]
BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Pairs:
    """The closest synthetic images, each beside the training image that it matches best.

    Pictures are (pairs, channels, height, width); ``neighbours`` has the slices before and after the training
    image in its volume, where ``neighbour_valid`` says that there are any.
    """

    synthetic: Pixels
    train: Pixels
    neighbours: Pixels
    neighbour_valid: BoolArray
    synthetic_index: IntArray
    train_index: IntArray
    similarity: FloatArray
    p_value: FloatArray
    flagged: BoolArray
    seed: IntArray
    train_subject: TextArray

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
    """One kind of change: the share of planted copies caught, and of changed holdout images flagged."""

    change: str
    planted: Estimate | None
    sham: Estimate | None


@dataclass(frozen=True)
class Audit:
    """All that a page says about one audit. ``pairs`` is None in a shareable report: it was never read."""

    folder: Path
    header: folders.Header
    content: Mapping[str, Any]
    channels: tuple[str, ...]
    compared: tuple[str, ...]
    size: tuple[int, int]
    measures: Mapping[str, Mapping[str, Estimate]]
    estimates: Mapping[str, Estimate]
    power: tuple[Power, ...]
    highest: Mapping[str, FloatArray]
    exposure: tuple[Exposed, ...]
    q_values: Mapping[int, float]
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
    if absent:
        raise FolderError(f"{header.path} lacks {', '.join(absent)}. Run the audit again.")
    _check_tables(folder, content, shareable=shareable)
    exposure = _read_exposure(folder)
    if shareable:
        content = _without_pseudonyms(content, _read_subjects(folder))
    with _damaged(header.path):
        described, given = content["channels"], content["estimates"]
        channels, compared = tuple(described["all"]), tuple(described["compared"])
        size = int(described["height"]), int(described["width"])
        measures = {name: _estimates(given.get(name) or {}) for name in PER_COMPARISON}
        estimates = _estimates({name: given.get(name) for name in SHARES})
        power = tuple(
            Power(str(row["change"]), _estimate(row.get("planted")), _estimate(row.get("sham")))
            for row in content.get("power") or []
        )
    return Audit(
        folder=folder,
        header=header,
        content=content,
        channels=channels,
        compared=compared,
        size=size,
        measures=measures,
        estimates=estimates,
        power=power,
        highest=_read_highest(folder),
        exposure=exposure,
        q_values={} if shareable else _read_q_values(folder),
        pairs=None if shareable else _read_pairs(folder, channels=channels, size=size),
    )


@contextlib.contextmanager
def _damaged(path: Path) -> Iterator[None]:
    """Turn whatever a missing or damaged file makes NumPy, Arrow or a look-up raise into a `FolderError`."""
    if not path.is_file():
        raise FolderError(f"{path} is missing. Run the audit again.")
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, OSError, BadZipFile, ArrowException) as error:
        raise FolderError(f"{path} is damaged ({error}). Run the audit again.") from error


def _estimate(entry: Mapping[str, Any] | None) -> Estimate | None:
    return None if entry is None else estimate_from_json(entry)


def _estimates(entries: Mapping[str, Any]) -> dict[str, Estimate]:
    return {key: estimate_from_json(entry) for key, entry in entries.items() if entry is not None}


def _read_highest(folder: Path) -> dict[str, FloatArray]:
    """Similarity of each image with its best match, per comparison that the audit made."""
    path = folder / folders.MATCHES
    with _damaged(path):
        table = pq.read_table(path, columns=["comparison", "similarity"], filters=[("rank", "==", 1)])
        comparison = np.asarray(table["comparison"].to_pylist(), dtype=np.str_)
        similarity = table["similarity"].to_numpy().astype(np.float64)
    found = {name: similarity[comparison == name] for name in COMPARISONS}
    return {name: values for name, values in found.items() if values.size}


def _read_subjects(folder: Path) -> set[str]:
    """Pseudonyms of every real subject that the audit met."""
    path = folder / folders.MATCHES
    with _damaged(path):
        table = pq.read_table(path, columns=["comparison", "query_subject", "reference_subject"])
        real_queries = table.filter(pc.equal(table["comparison"], "holdout-train"))["query_subject"]
        subjects = [*pc.unique(table["reference_subject"]).to_pylist(), *pc.unique(real_queries).to_pylist()]
    return {str(subject) for subject in subjects if subject}


def _read_q_values(folder: Path) -> dict[int, float]:
    path = folder / folders.QUERIES
    with _damaged(path):
        table = pq.read_table(path, columns=["query", "q_value"])
        q_values = table["q_value"].to_numpy().astype(np.float64)
        return dict(zip(table["query"].to_pylist(), q_values.tolist(), strict=True))


def _read_exposure(folder: Path) -> tuple[Exposed, ...]:
    path = folder / folders.EXPOSURE
    with _damaged(path):
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


def _read_pairs(folder: Path, *, channels: tuple[str, ...], size: tuple[int, int]) -> Pairs:
    path = folder / folders.EVIDENCE
    with _damaged(path), path.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
        pairs = Pairs(**{name: arrays[name] for name in Pairs.__dataclass_fields__})
        expected = (len(pairs.similarity), len(channels), *size)
        if pairs.synthetic.shape != expected or pairs.train.shape != expected:
            raise ValueError(f"its pictures are not {expected} as the header says")
        return pairs


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
