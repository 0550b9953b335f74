"""A fake audit folder, made of small procedural pictures and laid out as the audit room writes it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from unalike import folders
from unalike.records import Estimate
from unalike.report import figures

Pixels = npt.NDArray[np.unsignedinteger[Any]]
NAN = float("nan")
MEASURES = [
    {"name": "raw", "weight": 0.25, "meaning": "correlation of plain pixels"},
    {"name": "whitened", "weight": 1.0, "meaning": "finds noisy copies"},
    {"name": "equalized", "weight": 1.0, "meaning": "finds blurred copies"},
]


def procedural_images(count: int, channels: int, side: int, *, seed: int, dtype: str = "uint8") -> Pixels:
    """Smooth blobs with a little noise: alike as patients are, and no two equal."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[-1 : 1 : side * 1j, -1 : 1 : side * 1j]
    images = np.empty((count, channels, side, side))
    for image in images:
        tilt, wide, bend = random.normal(0, 0.25), random.uniform(0.5, 0.9), random.uniform(2, 6)
        for channel in range(channels):
            body = np.exp(-(((x - tilt * y) / wide) ** 2 + (y / 0.8) ** 2) * 2)
            image[channel] = body * (0.75 + 0.25 * np.sin(bend * (channel + 1) * x + 3 * y))
    images += random.normal(0, 0.03, images.shape)
    return np.rint(np.clip(images, 0, 1) * np.iinfo(dtype).max).astype(dtype)


@dataclass
class FakeAudit:
    """What the fake says; tests change a field and write."""

    name: str = "diffusion, 8 subjects"
    decision: str = "copies found"
    headline: str = "112 of 128 synthetic images are copies of 8 patients."
    warnings: list[str] = field(default_factory=list)
    reasons: list[str] = field(
        default_factory=lambda: [
            "112 images pass Benjamini–Hochberg at 5 %.",
            "113 lie beyond the holdout.",
        ]
    )
    internal: bool = True
    synthetic: int = 128
    train_subjects: int = 8
    train: int = 640
    holdout: int = 160
    copied: float = 0.875
    undefined: int = 0
    power: bool = True
    channels: tuple[str, ...] = ("t1",)
    compared: tuple[str, ...] = ("t1",)
    volumes: bool = True
    pictures: tuple[Pixels, Pixels] | None = None
    side: int = 32
    pairs: int = 3
    dtype: str = "uint8"
    settings: Mapping[str, Any] = field(default_factory=lambda: {"level": 0.05, "cohort": "/hospital/cohort"})
    seed: int = 0
    modern: bool = True  # False: as the first version wrote it, with one measure and fewer statistics
    poses: tuple[str, ...] = ("as it is",)
    reranked: bool = False
    diversity: str | None = None  # the verdict; None: as audits were before it was measured

    @property
    def subjects(self) -> list[str]:
        """Pseudonyms of the training subjects."""
        return [f"pseu{number:02d}{'abcdef'[number % 6] * 4}" for number in range(self.train_subjects)]

    def write(self, folder: Path) -> Path:
        """Write the whole folder, header last."""
        folder.mkdir(parents=True)
        random = np.random.default_rng(self.seed)
        flagged = round(self.copied * self.synthetic)
        highest = {
            "synthetic-train": np.concatenate(
                [random.beta(300, 3, flagged), random.beta(60, 6, self.synthetic - flagged)]
            ),
            "holdout-train": random.beta(60, 6, self.holdout),
            "synthetic-holdout": random.beta(55, 6, self.synthetic),
        }
        highest["synthetic-train"][self.synthetic - self.undefined :] = NAN
        if not self.holdout:
            highest = {"synthetic-train": highest["synthetic-train"]}
        self._write_tables(folder, highest, flagged)
        self._write_evidence(folder, highest["synthetic-train"], flagged)
        folders.finish_folder(
            folder,
            kind="audit",
            settings=self.settings,
            seed=self.seed,
            inputs={"samples": "5a" * 32, "cohort": "c0" * 32},
            content=self.content(highest, flagged),
        )
        return folder

    def content(self, highest: Mapping[str, npt.NDArray[np.float64]], flagged: int) -> dict[str, Any]:
        """The header's content."""
        subjects = self.holdout
        return {
            "name": self.name,
            "internal": self.internal,
            "verdict": {
                "decision": self.decision,
                "headline": self.headline,
                "reasons": self.reasons,
                "warnings": self.warnings,
            },
            "counts": {
                "synthetic": self.synthetic,
                "train": self.train,
                "holdout": self.holdout,
                "train_subjects": self.train_subjects,
                "holdout_subjects": subjects,
                "undefined": self.undefined,
            },
            "channels": {
                "compared": list(self.compared),
                "all": list(self.channels),
                "height": self.pictures[0].shape[2] if self.pictures else self.side,
                "width": self.pictures[0].shape[3] if self.pictures else self.side,
                "dtype": self.dtype,
            },
            "calibration": {
                "level": 0.05,
                "holdout_subjects": subjects,
                "smallest_p": 1 / (1 + subjects) if subjects else None,
                "certifies_single_image": False,
                "subjects_needed": round(self.synthetic / 0.05) - 1,
                "fewest_copies": 16,
                "rule": "Benjamini–Hochberg",
            },
            "estimates": self.estimates(highest, flagged),
            "flagged": flagged,
            "beyond_holdout": flagged,
            "exposed_subjects": self.train_subjects if flagged else 0,
            "power": self.power_rows() if self.power else [],
        } | self.further_content()

    def further_content(self) -> dict[str, Any]:
        """What earlier versions did not write."""
        found: dict[str, Any] = {"measures": MEASURES} if self.modern else {}
        if self.diversity is not None:
            boot = "bootstrap of subjects"
            found["diversity"] = {
                "m": 100,
                "samples_mean": Estimate(0.912, 0.901, 0.923, 100, boot),
                "train_mean": Estimate(0.734, 0.721, 0.745, 100, boot),
                "alike": Estimate(0.62, 0.517, 0.715, 100, "Clopper–Pearson"),
                "spread": Estimate(1.25, 0.9, 1.5, 100, boot),
                "verdict": self.diversity,
            }
        return found

    def estimates(self, highest: Mapping[str, npt.NDArray[np.float64]], flagged: int) -> dict[str, Any]:
        """Estimates with plausible intervals; undefined without a holdout."""
        share = _share(flagged, self.synthetic)
        means = {
            name: float(np.nanmean(values)) if np.isfinite(values).any() else NAN for name, values in highest.items()
        }
        boot = "percentile bootstrap over subjects"
        estimates: dict[str, Any] = {
            measure: {
                name: Estimate(mean * scale, mean * scale - 0.006, mean * scale + 0.005, len(highest[name]), boot)
                for name, mean in means.items()
            }
            for measure, scale in (("mean_highest_correlation", 1.0), ("mean_correlation", 0.8))
        }
        excess = means["synthetic-train"] - means.get("holdout-train", NAN)
        if self.modern:
            estimates |= self.further_estimates(flagged)
        return estimates | {
            "excess_over_holdout": Estimate(excess, excess - 0.02, excess + 0.02, self.holdout, boot),
            "flagged_share": share,
            "beyond_holdout_share": share if self.holdout else Estimate(NAN, NAN, NAN, 0, "no holdout"),
            "exposed_subjects_share": _share(self.train_subjects if flagged else 0, self.train_subjects),
        }

    def further_estimates(self, flagged: int) -> dict[str, Any]:
        """What the first version did not estimate; without a holdout or copies some are left out, as the audit does."""
        boot = "bootstrap of subjects"
        sides = ("synthetic-train", "holdout-train") if self.holdout else ("synthetic-train",)
        ratios = {"synthetic-train": 0.123, "holdout-train": 0.946}
        found: dict[str, Any] = {
            "distance_ratio": {name: Estimate(ratios[name], ratios[name] - 0.01, 0.99, 128, boot) for name in sides}
        }
        if self.holdout:
            found["closer_to_train_share"] = Estimate(0.625, 0.5, 0.75, self.synthetic, boot)
        if self.power and self.holdout:
            found["copy_rate_at_most"] = Estimate(0.9, 0.0, 0.987, self.synthetic, "Clopper–Pearson, one-sided")
        if flagged:
            found["exposed_subjects_in_the_long_run"] = Estimate(21.25, 9.0, 40.0, flagged, "Chao1")
            found["further_subjects_if_doubled"] = Estimate(3.0, 0.5, 7.75, flagged, "iNEXT")
        return found

    def power_rows(self) -> list[dict[str, Any]]:
        """Planted copies and their sham."""
        caught = {
            "none": (64, 3),
            "noise, sd 15 of 255": (61, 2),
            "blur, sd 1 px": (63, 9),
            "shift, 1 px": (5, 3),
        }
        return [
            {"change": change, "planted": _share(hit, 64), "sham": _share(false, 64)}
            | ({"by_measure": {"raw": 0.25, "whitened": hit / 64, "equalized": NAN}} if self.modern else {})
            for change, (hit, false) in caught.items()
        ]

    def _write_tables(self, folder: Path, highest: Mapping[str, Any], flagged: int) -> None:
        subjects = self.subjects
        rows = [
            {
                "comparison": name,
                "query": query,
                "query_subject": f"hold{query:03d}" if name == "holdout-train" else f"synthetic-{query}",
                "rank": rank,
                "reference": (query + rank) % self.train,
                "reference_subject": subjects[query % len(subjects)],
                "reference_slice": query % 20 if self.volumes else -1,
                "similarity": float(value) - 0.01 * (rank - 1),
            }
            for name, values in highest.items()
            for query, value in enumerate(values)
            for rank in (1, 2)
        ]
        _write(folder / folders.MATCHES, rows)
        queries = [
            {
                "query": query,
                "subject": f"synthetic-{query}",
                "seed": 1000 + query,
                "similarity": float(value),
                "p_value": 1 / (1 + self.holdout) if self.holdout else NAN,
                "q_value": 0.0071 if self.holdout else NAN,
                "flagged": query < flagged,
                "beyond_holdout": query < flagged,
            }
            | (
                {
                    "measure": "whitened" if query % 2 else "equalized",
                    "reference": (query + 1) % self.train,
                    "reference_subject": subjects[query % len(subjects)],
                    "pose": self.poses[query % len(self.poses)],
                }
                if self.modern
                else {}
            )
            for query, value in enumerate(highest["synthetic-train"])
        ]
        _write(folder / folders.QUERIES, queries)
        if self.reranked:
            # The best match by correlation of image q is q + 1; every fourth has another by this measure.
            again = [
                {
                    "measure": "ssim",
                    "query": query,
                    "rank": rank,
                    "reference": (query + rank + (query % 4 == 0)) % self.train,
                    "similarity": (NAN if np.isnan(value) else 0.75) if rank == 1 else 0.5,
                }
                for query, value in enumerate(highest["synthetic-train"])
                for rank in (1, 2)
            ]
            _write(folder / folders.RERANKED, again)
        exposure = [
            {
                "subject": subject,
                "copies": max(1, flagged // len(subjects) - place),
                "share": max(1, flagged // len(subjects) - place) / self.synthetic,
                "highest": 0.998 - 0.001 * place,
                "images": 3,
            }
            for place, subject in enumerate(subjects if flagged else [])
        ]
        empty = {"subject": "", "copies": 0, "share": 0.0, "highest": 0.0, "images": 0}
        table = pa.Table.from_pylist(exposure or [empty])
        pq.write_table(table if exposure else table.slice(0, 0), folder / folders.EXPOSURE)

    def _write_evidence(self, folder: Path, similarity: npt.NDArray[np.float64], flagged: int) -> None:
        count, channels = self.pairs, len(self.channels)
        train = procedural_images(count, channels, self.side, seed=self.seed, dtype=self.dtype)
        noise = np.random.default_rng(9).normal(0, 0.03 * np.iinfo(self.dtype).max, train.shape)
        synthetic = np.clip(np.rint(train + noise), 0, np.iinfo(self.dtype).max).astype(self.dtype)
        if self.pictures is not None:
            synthetic, train = self.pictures
        order = np.argsort(-similarity)[:count]
        valid = np.full((count, 2), self.volumes)
        valid[:1, 0] = False
        np.savez(
            folder / folders.EVIDENCE,
            synthetic=synthetic,
            train=train,
            neighbours=np.stack([np.roll(train, 1, axis=-1), np.roll(train, -1, axis=-1)], axis=1),
            neighbour_valid=valid,
            synthetic_index=order,
            train_index=np.arange(count) * 7,
            similarity=similarity[order],
            flagged=order < flagged,
            p_value=np.full(count, 1 / (1 + self.holdout) if self.holdout else NAN),
            seed=order + 1000,
            train_subject=np.asarray([self.subjects[place % self.train_subjects] for place in range(count)]),
        )


def _share(part: int, whole: int) -> Estimate:
    value = part / whole
    return Estimate(value, max(0.0, value - 0.07), min(1.0, value + 0.06), whole, "Wilson")


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    pq.write_table(pa.Table.from_pylist(rows), path)


@pytest.fixture(autouse=True)
def coarse_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw PNG files coarsely: no test looks at their dots, and drawing them is most of the time."""
    monkeypatch.setattr(figures, "DOTS", 30)


@pytest.fixture
def make_audit(tmp_path: Path) -> Callable[..., Path]:
    """Write a fake audit folder; keywords change what it says."""

    def make(folder: str = "audit", **changes: Any) -> Path:
        return FakeAudit(**changes).write(tmp_path / folder)

    return make
