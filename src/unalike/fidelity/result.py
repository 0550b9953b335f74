"""What a measurement of fidelity says, and how it is read back; a report needs no more than this."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unalike import folders
from unalike.errors import FolderError
from unalike.records import Estimate, estimate_from_json

SYNTHETIC, HOLDOUT, TRAIN = "synthetic", "holdout", "train"
COMPARISONS = ((SYNTHETIC, TRAIN), (HOLDOUT, TRAIN), (SYNTHETIC, HOLDOUT))


@dataclass(frozen=True)
class Score:
    """One number: of which class ("" for all), by which measure, of which set or pair of sets ("synthetic-train")."""

    label: str
    measure: str
    compared: str
    found: Estimate


@dataclass(frozen=True)
class FidelityResult:
    """What was found; the same stands in the folder's header (``fidelity.json``).

    ``features`` is the name of what images were compared by, part of every number's name; ``counts`` are images and
    subjects of each set.
    """

    path: Path
    name: str
    features: str
    counts: Mapping[str, Mapping[str, int]]
    scores: tuple[Score, ...]
    notes: tuple[str, ...]
    warnings: tuple[str, ...]

    def find(self, measure: str, compared: str, label: str = "") -> Estimate | None:
        """The number of this name, or None if it was not measured."""
        for each in self.scores:
            if (each.measure, each.compared, each.label) == (measure, compared, label):
                return each.found
        return None


def read_fidelity(folder: str | Path) -> FidelityResult:
    """What `score_fidelity` wrote. Raises `FolderError` if the folder is no finished one or is damaged."""
    header = folders.read_header(Path(folder), kind="fidelity")
    try:
        content = header.content
        return FidelityResult(
            path=header.path.parent,
            name=str(content["name"]),
            features=str(content["features"]),
            counts=dict(content["counts"]),
            scores=tuple(read_score(entry) for entry in content["scores"]),
            notes=tuple(content["notes"]),
            warnings=tuple(content["warnings"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise FolderError(f"{header.path} is damaged ({error!r}). Make the folder again.") from error


def read_score(entry: Mapping[str, Any]) -> Score:
    """A `Score` as JSON holds it. Raises KeyError, TypeError or ValueError if it is none."""
    label, measure, compared = (str(entry[key]) for key in ("label", "measure", "compared"))
    return Score(label, measure, compared, estimate_from_json(entry["found"]))
