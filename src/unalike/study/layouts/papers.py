"""What three papers found, as data: their tables' numbers, and the study files that repeat them.

* Akbar et al. (2025): tables 2 and 3.
* Nafi et al. (2024): tables 1 and 2.
* de Wilde et al. (2023): tables 1 to 4.

A study names a cohort's place in its paper under ``[cohorts.NAME.about]``: ``paper = "BRATS20"``.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from unalike.errors import SettingsError

_FOLDER = Path(__file__).parent.parent / "papers"


def list_papers() -> dict[str, Path]:
    """All study files that come with unalike, by name, in alphabetical order."""
    return {path.stem: path for path in sorted(_FOLDER.glob("*.toml"), key=lambda path: path.stem)}


def find_paper(name: str) -> Path:
    """The study file of this name, such as ``akbar2025-small``.

    Raises `SettingsError` that lists the names, the closest first, if there is none.
    """
    known = list_papers()
    if name in known:
        return known[name]
    close = difflib.get_close_matches(name, known, n=1)
    hint = f" Did you mean {close[0]}?" if close else ""
    raise SettingsError(f"{name} is no study that comes with unalike.{hint} There are: {', '.join(known)}.")


@dataclass(frozen=True)
class PaperModel:
    """A row of table 2 of Akbar et al. (2025): FID, inception score, mean highest correlation."""

    data: str
    kind: str
    fid: float
    inception: float
    correlation: float


AKBAR = "Akbar et al. 2025"
AKBAR_TABLE_2 = (
    PaperModel("BRATS20", "diffusion", 15.85417, 2.35191, 0.98510),
    PaperModel("BRATS20", "stylegan", 44.85624, 2.34184, 0.93037),
    PaperModel("BRATS21", "diffusion", 27.54855, 2.35156, 0.95718),
    PaperModel("BRATS21", "stylegan", 25.34607, 2.34360, 0.91907),
    PaperModel("CXR-5216", "diffusion", 53.81866, 2.32937, 0.85346),
    PaperModel("CXR-5216", "stylegan", 33.14418, 2.34287, 0.84356),
    PaperModel("CXR-1300", "diffusion", 57.45322, 2.05646, 0.87895),
    PaperModel("CXR-1300", "stylegan", 54.68277, 2.41764, 0.83847),
)
# Data, kind → mean highest correlation by model size. The paper says of BRATS20's small diffusion model that its
# images were extremely poor.
AKBAR_TABLE_3: Mapping[tuple[str, str], Mapping[str, float]] = MappingProxyType(
    {
        ("CXR-1300", "diffusion"): {"small": 0.86363, "medium": 0.87895, "large": 0.88519},
        ("CXR-1300", "stylegan"): {"small": 0.85299, "medium": 0.83847, "large": 0.84336},
        ("BRATS20", "diffusion"): {"small": 0.66744, "medium": 0.98510, "large": 0.97731},
        ("BRATS20", "stylegan"): {"small": 0.94756, "medium": 0.93037, "large": 0.92639},
    }
)


@dataclass(frozen=True)
class PaperClass:
    """A row of table 1 of Nafi et al. (2024): images of a class in all, sampled for the generator, and generated."""

    data: str
    label: str
    total: int
    sampled: int
    generated: int


@dataclass(frozen=True)
class PaperNetwork:
    """A row of table 2 of Nafi et al. (2024): losses, accuracies (percent) and, of the test, shares from 0 to 1."""

    network: str
    data: str
    train_loss: float
    validation_loss: float
    test_loss: float
    train_accuracy: float
    validation_accuracy: float
    test_accuracy: float
    precision: float
    recall: float
    f1: float


NAFI = "Nafi et al. 2024"
NAFI_TABLE_1 = (
    PaperClass("Brain Tumor", "Glioma", 1621, 325, 1700),
    PaperClass("Brain Tumor", "Meningioma", 1645, 330, 1700),
    PaperClass("Brain Tumor", "Notumor", 2000, 400, 1700),
    PaperClass("Brain Tumor", "Pituitary", 1757, 350, 1700),
    PaperClass("ALL", "Benign", 504, 101, 1000),
    PaperClass("ALL", "Early", 985, 197, 1000),
    PaperClass("ALL", "Pre", 963, 193, 1000),
    PaperClass("ALL", "Pro", 804, 161, 1000),
    PaperClass("Covid", "Covid", 1252, 251, 1500),
    PaperClass("Covid", "Non-Covid", 1229, 246, 1500),
)
NAFI_TABLE_2 = (
    PaperNetwork("resnet18", "Covid", 0.0103, 0.0232, 2.2450, 99.82, 99.55, 76.33, 0.75, 0.75, 0.75),
    PaperNetwork("resnet18", "Brain Tumor", 0.0179, 0.0372, 1.2192, 99.68, 98.99, 82.89, 0.87, 0.84, 0.84),
    PaperNetwork("resnet18", "ALL", 0.0287, 0.0149, 1.1923, 99.86, 99.67, 86.94, 0.87, 0.86, 0.86),
    PaperNetwork("resnet50", "Covid", 0.0083, 0.0320, 1.8761, 99.86, 99.55, 78.24, 0.77, 0.77, 0.77),
    PaperNetwork("resnet50", "Brain Tumor", 0.0074, 0.0734, 1.0452, 99.79, 98.80, 85.15, 0.89, 0.87, 0.87),
    PaperNetwork("resnet50", "ALL", 0.0166, 0.0165, 0.8619, 99.95, 99.51, 88.12, 0.89, 0.88, 0.88),
    PaperNetwork("vgg16", "Covid", 0.0074, 0.0154, 0.7655, 99.84, 99.51, 77.67, 0.77, 0.74, 0.74),
    PaperNetwork("vgg16", "Brain Tumor", 0.0077, 0.0399, 0.7887, 99.85, 99.10, 85.68, 0.89, 0.82, 0.82),
    PaperNetwork("vgg16", "ALL", 0.0078, 0.0136, 1.3405, 99.90, 99.70, 83.01, 0.88, 0.79, 0.78),
    PaperNetwork("vgg19", "Covid", 0.0079, 0.0158, 0.7703, 99.89, 99.60, 75.73, 0.75, 0.74, 0.73),
    PaperNetwork("vgg19", "Brain Tumor", 0.0100, 0.0589, 0.7354, 99.81, 99.07, 86.46, 0.88, 0.84, 0.85),
    PaperNetwork("vgg19", "ALL", 0.0063, 0.0105, 1.2673, 99.91, 99.67, 82.38, 0.86, 0.77, 0.76),
    PaperNetwork("alexnet", "Covid", 0.0369, 0.0383, 0.9169, 98.97, 98.70, 72.18, 0.71, 0.70, 0.70),
    PaperNetwork("alexnet", "Brain Tumor", 0.0360, 0.0875, 0.9130, 99.20, 98.37, 79.86, 0.85, 0.75, 0.76),
    PaperNetwork("alexnet", "ALL", 0.0236, 0.0318, 0.9822, 99.49, 99.21, 82.22, 0.86, 0.78, 0.77),
    PaperNetwork("densenet121", "Covid", 0.0132, 0.0172, 1.8653, 99.71, 99.33, 76.36, 0.76, 0.76, 0.75),
    PaperNetwork("densenet121", "Brain Tumor", 0.0059, 0.0521, 0.9798, 99.84, 98.99, 85.09, 0.89, 0.86, 0.87),
    PaperNetwork("densenet121", "ALL", 0.0286, 0.0118, 0.6045, 99.94, 99.73, 91.38, 0.92, 0.91, 0.92),
    PaperNetwork("mobilenet_v2", "Covid", 0.0205, 0.0305, 2.3197, 99.36, 98.92, 75.98, 0.75, 0.75, 0.75),
    PaperNetwork("mobilenet_v2", "Brain Tumor", 0.0190, 0.0856, 1.1486, 99.57, 98.56, 84.05, 0.89, 0.86, 0.87),
    PaperNetwork("mobilenet_v2", "ALL", 0.0470, 0.0264, 1.0470, 99.48, 99.18, 85.21, 0.89, 0.88, 0.88),
    PaperNetwork("googlenet", "Covid", 0.0165, 0.0229, 1.7411, 99.71, 99.33, 75.83, 0.75, 0.75, 0.75),
    PaperNetwork("googlenet", "Brain Tumor", 0.0143, 0.0475, 0.9578, 99.61, 98.91, 83.82, 0.88, 0.86, 0.87),
    PaperNetwork("googlenet", "ALL", 0.0400, 0.0254, 0.5807, 99.75, 99.46, 89.40, 0.91, 0.90, 0.90),
)


@dataclass(frozen=True)
class PaperMixture:
    """A row of table 4 of de Wilde et al. (2023): real and synthetic cases, cases per class that the embedding saw."""

    real: int
    synthetic: int
    cases: int
    auc: float
    deviation: float


DEWILDE = "de Wilde et al. 2023"
DEWILDE_DATA = "PI-CAI"
# Setting → Fréchet inception distance: (steps, guidance), vectors, training cases.
DEWILDE_TABLE_1: Mapping[tuple[int, float], float] = MappingProxyType(
    {
        (25, 2.0): 194,
        (50, 2.0): 184,
        (75, 2.0): 176,
        (100, 2.0): 171,
        (100, 1.0): 168,
        (100, 3.0): 202,
        (100, 4.0): 211,
        (100, 5.0): 222,
    }
)
DEWILDE_TABLE_2: Mapping[int, float] = MappingProxyType({8: 177, 16: 184, 32: 218, 64: 171})
DEWILDE_TABLE_3: Mapping[int, float] = MappingProxyType({5: 203, 10: 181, 50: 181, 100: 171})
DEWILDE_TABLE_4 = (
    PaperMixture(200, 0, 100, 0.780, 0.017),
    PaperMixture(0, 200, 100, 0.737, 0.019),
    PaperMixture(0, 2000, 100, 0.766, 0.020),
    PaperMixture(200, 200, 100, 0.773, 0.015),
    PaperMixture(200, 2000, 100, 0.803, 0.009),
    PaperMixture(0, 2000, 10, 0.562, 0.036),
    PaperMixture(200, 2000, 10, 0.745, 0.012),
)
