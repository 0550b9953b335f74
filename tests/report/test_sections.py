"""Fidelity, utility and explain folders as parts of a page: what they say stands there, and nothing else does.

The folders are written by hand, in the shape that the headers of these stages have.
"""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Callable, Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from unalike import folders
from unalike.errors import FolderError
from unalike.records import Estimate
from unalike.report import figures, write_report
from unalike.report.frontier import find_points
from unalike.report.read import read_audit
from unalike.report.utility import utility_of

NAN = math.nan
HOSTILE = '<script>alert("x")</script> & $\\frac{1}{2}$ </textarea> --> \'"'
VOID = {"meta", "img", "br", "hr", "link", "input"}
SAMPLES, OTHERS = "5a" * 32, "6b" * 32
DIGESTS = {"synthetic": SAMPLES, "cohort": "c0" * 32}


class Page(HTMLParser):
    """Tags with attributes, visible text, and what each textarea holds."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.text: list[str] = []
        self.areas: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {key: value or "" for key, value in attrs}))
        if tag == "textarea":
            self.areas.append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {key: value or "" for key, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "textarea" in self.open:
            self.areas[-1] += data
        elif "style" not in self.open:
            self.text.append(data)

    def values(self, *names: str) -> list[str]:
        return [value for _, attributes in self.tags for key, value in attributes.items() if key in names]

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.text).split())


def about(value: float, low: float = NAN, high: float = NAN, n: int = 30) -> Estimate:
    return Estimate(value, low, high, n, "bootstrap of subjects")


def finish(out: Path, kind: str, content: Mapping[str, Any], *, inputs: Mapping[str, str] = DIGESTS) -> Path:
    out.mkdir()
    settings = {"weights": "/clinic/weights"}
    folders.finish_folder(out, kind=kind, settings=settings, seed=0, inputs=inputs, content=content)
    return out


def fidelity(out: Path, **changes: Any) -> Path:
    score = {"label": "", "measure": "frechet", "compared": "synthetic-train", "found": about(12.5, 10.25, 15)}
    content = {
        "name": "samples of a diffusion model",
        "features": "autoencoder (0123abcd)",
        "counts": {"synthetic": {"images": 1200, "subjects": 1200}, "train": {"images": 90, "subjects": 30}},
        "scores": [
            score,
            score | {"compared": "holdout-train", "found": about(1.5, 0, 3)},
            score | {"measure": "precision", "found": about(0.875, 0.75, 0.95)},
            score | {"measure": "recall", "found": about(NAN, n=0)},
            score | {"measure": "Vendi score of 30", "compared": "synthetic", "found": about(7.75, 7, 8.5)},
            score | {"label": "glioma", "found": about(21.5, 20, 23)},
        ],
        "notes": ["A note on fidelity."],
        "warnings": ["A warning on fidelity."],
    }
    return finish(out, "fidelity", content | changes)


def row(source: str, accuracy: Estimate, **changes: Any) -> dict[str, Any]:
    return {
        "network": "resnet18",
        "source": source,
        "weights": "random",
        "train_loss": 0.25,
        "validation_loss": 0.5,
        "train_accuracy": 0.96,
        "validation_accuracy": 0.91,
        "test_loss": about(0.625, 0.5, 0.75),
        "test_accuracy": accuracy,
        "precision": about(0.7, 0.6, 0.8),
        "recall": about(0.6, 0.5, 0.7),
        "f1": about(0.65, 0.55, 0.75),
        "auc": about(NAN, n=0),
        "confusion": [[8, 2], [2.5, 7.5]],
        "accuracy_with_leaks": None,
    } | changes


def classification(out: Path, *, inputs: Mapping[str, str] = DIGESTS, **changes: Any) -> Path:
    count = {"images": 60, "subjects": 30}
    mixed = {
        "real": 200,
        "synthetic": 2000,
        "augmentation": True,
        "repetitions": 10,
        "auc_mean": 0.8125,
        "auc_deviation": 0.0216,
        "auc": about(0.8125, 0.775, 0.845),
        "accuracy": about(0.75, 0.7, 0.8),
        "difference": about(-0.0316, -0.0524, -0.0106),
    }
    alone = mixed | {"synthetic": 0, "auc_mean": 0.844, "auc_deviation": None, "difference": None}
    content = {
        "tuned": [],
        "name": "samples of a diffusion model",
        "task": "classify",
        "classes": ["glioma", "none"],
        "counts": dict.fromkeys(("synthetic", "train", "holdout", "left_out"), count),
        "table": [row("synthetic", about(0.775, 0.7, 0.84)), row("real", about(0.9, 0.85, 0.95))],
        "differences": [
            {
                "network": "resnet18",
                "first": "synthetic",
                "second": "real",
                "accuracy": about(-0.125, -0.2, -0.05),
                "f1": about(-0.1, -0.2, 0.0),
                "auc": about(NAN, n=0),
            }
        ],
        "mixing": {
            "network": "resnet18", "rows": [alone, mixed], "validation_images": 40, "validation_subjects": 20,
            "notes": ["A note on mixing."],
        },
        "notes": ["A note on utility."],
        "warnings": ["A warning on utility."],
    }  # fmt: skip
    return finish(out, "utility", content | changes, inputs=inputs)


def segmentation(out: Path, **changes: Any) -> Path:
    def dice(middle: float) -> dict[str, Estimate]:
        return {"tumour": about(middle, middle - 0.05, middle + 0.05), "mean": about(middle, middle - 0.03, middle)}

    undefined = {"tumour": about(NAN, n=0), "mean": about(4.25, 3, 6)}
    roles = ("synthetic", "train", "holdout", "left_out")
    content = {
        "name": "samples with masks",
        "task": "segment",
        "unit": "mm",
        "labels": [{"name": "tumour", "value": 255}],
        "counts": {"images": dict.fromkeys(roles, 60), "subjects": dict.fromkeys(roles, 30), "far_share": 0.0},
        "table": [
            {"source": "synthetic", "title": "synthetic", "images": 60, "dice": dice(0.7), "hd95": undefined,
             "dice_with_leaks": None},
            {"source": "real", "title": "real", "images": 60, "dice": dice(0.8), "hd95": undefined,
             "dice_with_leaks": None},
        ],
        "differences": [
            {"source": "synthetic", "minus": "real", "hd95": undefined,
             "dice": {"tumour": about(-0.1, -0.2, -0.01), "mean": about(-0.1, -0.2, -0.01)}},
        ],
        "notes": [],
        "warnings": [],
    }  # fmt: skip
    finish(out, "utility", content | changes)
    picture(out / folders.FIGURES / "segmentation-internal.png")
    return out


def explanation(out: Path, **changes: Any) -> Path:
    numbers = {"fit": about(0.625, 0.5, 0.75), "lime_iou": about(NAN, n=0), "stability_rank": about(0.875)}
    content = {
        "internal": True,
        "models": [{"source": "synthetic", "name": "resnet18"}, {"source": "real", "name": "resnet18"}],
        "classes": ["glioma", "none"],
        "images": {"holdout": {"correct": 2, "wrong": 1}},
        "numbers": {"holdout": {"synthetic": numbers, "real": numbers}},
        "by_class": {},
        "agreement": {"holdout": {"agreement_rank": about(0.3125, 0.1, 0.5)}},
        "notes": ["A note on explanations."],
    }
    finish(out, "explain", content | changes)
    picture(out / folders.FIGURES / "0000-internal.png")
    picture(out / folders.FIGURES / "0000.png")
    return out


def evidence(out: Path, **changes: Any) -> Path:
    sheet = {
        "query": 17, "p_value": 0.0125, "q_value": None, "similarity": 0.984, "r": 0.991, "half_of_r_in_tiles": 3,
        "tiles": 16, "measure": "whitened", "pose": "as it is", "subject": "pseudonym0001",
    }  # fmt: skip
    content = {"internal": True, "audit": "an audit", "flagged": 1, "sheets": [sheet], "notes": []}
    finish(out, "explain", content | changes)
    picture(out / folders.FIGURES / "0000-internal.png")
    picture(out / folders.FIGURES / "index-internal.png")
    return out


def picture(path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(np.full((6, 8), 90, np.uint8)).save(path)


MAKERS: dict[str, Callable[..., Path]] = {
    "fidelity": fidelity,
    "classification": classification,
    "segmentation": segmentation,
    "explanation": explanation,
    "evidence": evidence,
}


@pytest.fixture(autouse=True)
def empty_figure_of_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The figure of pairs of an audit is no part of a page, and the slowest to draw."""
    monkeypatch.setattr(figures, "draw_pairs", lambda *_, **__: Figure(figsize=(1, 1)))


def all_folders(place: Path) -> list[Path]:
    return [make(place / name) for name, make in MAKERS.items()]


def show(source: Path | list[Path], **options: Any) -> Page:
    return Page(write_report(source, **options).read_text(encoding="utf-8"))


def twin(make_audit: Callable[..., Path], place: str = "audit", *, samples: str = SAMPLES, **changes: Any) -> Path:
    """An audit of samples with this digest."""
    folder = make_audit(place, pairs=1, **changes)
    path = folder / "audit.json"
    document = json.loads(path.read_text())
    document["inputs"] = {"synthetic": samples, "cohort": "c0" * 32}
    path.write_text(json.dumps(document))
    return folder


def in_cell(text: str) -> str:
    """A number with its interval as a table's cell shows it: beneath each other, without brackets."""
    return re.sub(r" \(([^()]* to [^()]*)\)", r" \1", text)


# What is said


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        (
            "fidelity",
            [
                "Fidelity of samples of a diffusion model",
                "12.5 (10.2 to 15)",
                "1.5 (0 to 3)",
                "87.5% (75.0% to 95.0%)",
                "7.75 (7 to 8.5)",
                "21.5 (20 to 23)",
                "autoencoder (0123abcd)",
                "1,200 synthetic images of 1,200 subjects",
                "Samples resemble the train images less well than other patients do.",
                "undefined",
                "not measured",
                "A note on fidelity.",
                "A warning on fidelity.",
            ],
        ),
        (
            "classification",
            [
                "77.5% (70.0% to 84.0%)",
                "90.0% (85.0% to 95.0%)",
                "random weights",
                "−12.5 points (−20.0 to −5.0): worse.",
                "0.812 ± 0.022",
                "−0.032 (−0.052 to −0.011)",
                "2,000",
                "Not run: ResNet-50, VGG-16, VGG-19, AlexNet, DenseNet-121, MobileNetV2, GoogLeNet.",
                "undefined",
                "A note on mixing.",
                "A note on utility.",
                "A warning on utility.",
            ],
        ),
        (
            "segmentation",
            [
                "0.700 (0.650 to 0.750)",
                "0.800 (0.750 to 0.850)",
                "4.25 (3 to 6)",
                "mean Dice by −0.100 (−0.200 to −0.010): worse.",
                "HD95, tumour, mm",
                "undefined",
            ],
        ),
        (
            "explanation",
            ["0.625 (0.500 to 0.750)", "0.875", "0.312 (0.100 to 0.500)", "2 correct, 1 wrong", "A note on explan"],
        ),
        ("evidence", ["Evidence of an audit", "0.0125", "0.984", "0.991", "3 of 16 tiles", "undefined", "whitened"]),
    ],
)
def test_numbers_stand_with_their_intervals_and_undefined_is_a_word(tmp_path: Path, kind: str, told: list[str]) -> None:
    page = show(MAKERS[kind](tmp_path / kind))
    for text in told:
        assert text in page.words or in_cell(text) in page.words, text
    assert not re.search(r"\b(nan|NaN|None|null)\b", page.words)


def test_a_measure_that_is_undefined_everywhere_is_no_row(tmp_path: Path) -> None:
    words = show(explanation(tmp_path / "explain")).words
    assert "LIME on the lesion" not in words
    assert "fit of LIME" in words


def test_samples_closer_than_patients_are_called_suspicious_and_equal_ones_equal(tmp_path: Path) -> None:
    def told(name: str, ours: Estimate, theirs: Estimate) -> str:
        score = {"label": "", "measure": "frechet"}
        scores = [
            score | {"compared": "synthetic-train", "found": ours},
            score | {"compared": "holdout-train", "found": theirs},
        ]
        return show(fidelity(tmp_path / name, scores=scores)).words

    assert "look for copies" in told("closer", about(0.5, 0.2, 0.9), about(1.5, 1, 2))
    assert "cannot be told from other patients" in told("alike", about(1.4, 0.5, 2.5), about(1.5, 1, 2))
    assert "undefined: too few subjects" in told("few", about(NAN, n=2), about(1.5, 1, 2))
    assert "nothing to hold that against" in told("alone", about(1.4, 0.5, 2.5), about(NAN, n=0))


def test_leaks_stand_beside_the_honest_accuracy_only_where_there_are_any(tmp_path: Path) -> None:
    assert "with leaks" not in show(classification(tmp_path / "none")).words.lower()
    leaky = [row("real", about(0.9, 0.85, 0.95), accuracy_with_leaks=about(0.97, 0.95, 0.99))]
    words = show(classification(tmp_path / "leaky", table=leaky)).words
    assert "test accuracy with leaks" in words
    assert in_cell("97.0% (95.0% to 99.0%)") in words


def test_what_a_search_chose_is_a_table_where_one_was_asked_for(tmp_path: Path) -> None:
    assert "Hyper-parameters" not in show(classification(tmp_path / "none")).words
    chosen = {"network": "vgg16", "source": "real", "learning_rate": 0.00025, "weight_decay": 0.01, "batch_size": 64}
    words = show(classification(tmp_path / "tuned", tuned=[chosen | {"trials": [{}] * 20}])).words
    assert "Hyper-parameters chosen" in words
    assert "VGG-16 real 0.00025 0.01 64 20" in " ".join(words.split())


def test_one_number_stands_for_a_utility(tmp_path: Path) -> None:
    classified = folders.read_header(classification(tmp_path / "c"), kind="utility")
    assert utility_of(classified) == ("accuracy of ResNet-18", about(0.775, 0.7, 0.84))
    assert utility_of(classified, "real") == ("accuracy of ResNet-18", about(0.9, 0.85, 0.95))
    assert utility_of(classified, "both") is None
    segmented = utility_of(folders.read_header(segmentation(tmp_path / "s"), kind="utility"))
    assert segmented is not None
    assert segmented[0] == "mean Dice"
    assert segmented[1].value == 0.7


# One page of several


def test_ids_are_unique_and_links_lead_somewhere(make_audit: Callable[..., Path], tmp_path: Path) -> None:
    sources = [twin(make_audit), *all_folders(tmp_path), fidelity(tmp_path / "again"), classification(tmp_path / "too")]
    page = show(sources, out=tmp_path / "page.html")
    html = (tmp_path / "page.html").read_text()
    ids = page.values("id")
    assert len(ids) == len(set(ids))
    targets = [value[1:] for value in page.values("href", "xlink:href") if value.startswith("#")]
    targets += re.findall(r"url\(#([^)]*)\)", html)
    targets += [name for value in page.values("aria-labelledby") for name in value.split()]
    targets += page.values("for")
    assert set(targets) <= set(ids)
    assert page.words.count("Fidelity of samples of a diffusion model") >= 2


@pytest.mark.parametrize("shareable", [False, True])
def test_nothing_is_asked_of_the_network(tmp_path: Path, shareable: bool) -> None:
    page = show(all_folders(tmp_path), out=tmp_path / "page.html", shareable=shareable)
    html = (tmp_path / "page.html").read_text()
    for value in page.values("src", "href", "xlink:href", "action", "data", "srcset", "poster"):
        assert value.startswith(("#", "data:image/png;base64,"))
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", html))
    assert not {tag for tag, _ in page.tags} & {"script", "link", "iframe", "object", "embed", "form", "base"}
    assert "@import" not in html


def test_a_shareable_page_has_no_picture_no_pseudonym_and_no_path(tmp_path: Path) -> None:
    sources = all_folders(tmp_path)
    whole = show(sources, out=tmp_path / "whole.html")
    shared = show(sources, out=tmp_path / "shared.html", shareable=True)
    assert len([tag for tag, _ in whole.tags if tag == "img"]) == 3  # segmentation, an explanation, a sheet
    assert not [tag for tag, _ in shared.tags if tag == "img"]
    html = (tmp_path / "shared.html").read_text()
    for told in ("data:image", "pseudonym0001", "/clinic", str(tmp_path), "INTERNAL"):
        assert told not in html, told
    assert "INTERNAL" in whole.words
    assert in_cell("87.5% (75.0% to 95.0%)") in shared.words


@pytest.mark.parametrize(("kind", "internal"), [("fidelity", False), ("segmentation", True), ("explanation", True)])
def test_a_page_with_pictures_is_called_internal_and_one_without_is_not(
    tmp_path: Path, kind: str, internal: bool
) -> None:
    assert ("INTERNAL" in show(MAKERS[kind](tmp_path / kind)).words) is internal


def test_names_are_text_and_nothing_else(tmp_path: Path) -> None:
    sources = [
        fidelity(tmp_path / "f", name=HOSTILE, features=HOSTILE, notes=[HOSTILE], warnings=[HOSTILE]),
        classification(tmp_path / "c", name=HOSTILE, classes=[HOSTILE, "none"], notes=[HOSTILE]),
        segmentation(tmp_path / "s", name=HOSTILE, labels=[{"name": "tumour", "value": 1}], notes=[HOSTILE]),
        explanation(tmp_path / "e", notes=[HOSTILE]),
        evidence(tmp_path / "v", audit=HOSTILE),
    ]
    page = show(sources, out=tmp_path / "page.html", title=HOSTILE)
    assert not {tag for tag, _ in page.tags} & {"script", "iframe"}
    assert page.words.count(" ".join(HOSTILE.split())) >= 6
    for area in page.areas:
        assert area.strip()
    titled = [text for text in page.areas if "Fidelity of" in text]
    assert any(HOSTILE in text for text in titled)


# Tables


@pytest.mark.parametrize("kind", list(MAKERS))
def test_each_table_can_be_copied_in_three_forms_and_lies_beside_the_header(tmp_path: Path, kind: str) -> None:
    folder = MAKERS[kind](tmp_path / kind)
    page = show(folder)
    tables = len([tag for tag, _ in page.tags if tag == "table"])
    assert tables > 0
    assert len(page.areas) == 3 * tables
    files = {suffix: sorted(folder.glob(f"*.{suffix}")) for suffix in ("md", "tex", "csv")}
    assert [len(found) for found in files.values()] == [tables] * 3
    # A browser drops the first line break of a textarea, and so does nobody else.
    written = sorted(path.read_text().strip() for found in files.values() for path in found)
    assert written == sorted(area.strip() for area in page.areas)


def test_a_csv_file_holds_all_digits_and_both_ends(tmp_path: Path) -> None:
    folder = classification(tmp_path / "c")
    write_report(folder)
    first, second = csv.DictReader((folder / "classifiers.csv").read_text().splitlines())
    assert (first["trained on"], second["trained on"]) == ("synthetic", "real")
    assert [first[f"test accuracy {side}"] for side in ("value", "low", "high")] == ["0.775", "0.7", "0.84"]
    assert first["AUC value"] == ""
    confusion = list(csv.DictReader((folder / "confusion-resnet18-synthetic.csv").read_text().splitlines()))
    assert [line["told none value"] for line in confusion] == ["2.0", "7.5"]


def test_figures_are_kept_beside_the_header(tmp_path: Path) -> None:
    for make, names in ((fidelity, {"distances"}), (classification, {"accuracy", "mixing"})):
        folder = make(tmp_path / make.__name__)
        write_report(folder)
        kept = {path.name for path in (folder / folders.FIGURES).iterdir()}
        assert kept == {f"{name}.{suffix}" for name in names for suffix in ("png", "svg")}


# Privacy against utility


def test_an_audit_and_a_utility_of_the_same_samples_make_a_point(
    make_audit: Callable[..., Path], tmp_path: Path
) -> None:
    sources = [twin(make_audit), classification(tmp_path / "same"), classification(tmp_path / "x", inputs={
        "synthetic": OTHERS, "cohort": "c0" * 32})]  # fmt: skip
    page = show(sources, out=tmp_path / "pages" / "page.html")
    assert "Privacy against utility" in page.words
    (line,) = csv.DictReader((tmp_path / "pages" / "frontier.csv").read_text().splitlines())
    assert line["samples"] == "diffusion, 8 subjects"
    assert line["flagged as copies value"] == "0.875"
    assert line["trained on samples: accuracy of ResNet-18 value"] == "0.775"
    assert line["trained on the real train images value"] == "0.9"
    assert (tmp_path / "pages" / folders.FIGURES / "frontier.svg").is_file()


def test_no_point_where_digests_differ_or_one_has_none(make_audit: Callable[..., Path], tmp_path: Path) -> None:
    classified = classification(tmp_path / "c")
    page = show([twin(make_audit, samples=OTHERS), classified], out=tmp_path / "page.html")
    assert "Privacy against utility" not in page.words
    assert not (tmp_path / "frontier.csv").exists()
    nameless = make_audit("nameless", pairs=1)  # its inputs name no synthetic images
    header = folders.read_header(classification(tmp_path / "n", inputs={}), kind="utility")
    assert find_points([read_audit(nameless, shareable=True)], [header]) == []


def test_an_audit_that_could_flag_nobody_has_no_copy_rate(make_audit: Callable[..., Path], tmp_path: Path) -> None:
    audit = twin(make_audit, holdout=0, copied=0.0, decision="cannot tell")
    (point,) = find_points(
        [read_audit(audit, shareable=True)], [folders.read_header(classification(tmp_path / "c"), kind="utility")]
    )
    assert math.isnan(point.copies.value)
    page = show([audit, tmp_path / "c"], out=tmp_path / "page.html")
    (line,) = csv.DictReader((tmp_path / "frontier.csv").read_text().splitlines())
    assert line["flagged as copies value"] == ""
    assert "undefined" in page.words
    assert not (tmp_path / folders.FIGURES / "frontier.svg").exists()


def test_each_audit_meets_the_utility_of_its_own_samples(make_audit: Callable[..., Path], tmp_path: Path) -> None:
    audits = [twin(make_audit, "one", name="first"), twin(make_audit, "two", samples=OTHERS, name="second")]
    table = [row("synthetic", about(0.6, 0.5, 0.7))]
    utilities = [
        classification(tmp_path / "b", inputs={"synthetic": OTHERS}, table=table),
        classification(tmp_path / "a"),
    ]
    headers = [folders.read_header(folder, kind="utility") for folder in utilities]
    points = find_points([read_audit(folder, shareable=True) for folder in audits], headers)
    assert [(point.name, point.utility.value) for point in points] == [("first", 0.775), ("second", 0.6)]
    assert points[1].real is None


# Damage


@pytest.mark.parametrize(
    ("kind", "key"),
    [
        ("fidelity", "scores"),
        ("fidelity", "features"),
        ("classification", "table"),
        ("classification", "counts"),
        ("segmentation", "labels"),
        ("explanation", "numbers"),
        ("evidence", "audit"),
    ],
)
def test_a_header_that_lacks_something_is_one_line(tmp_path: Path, kind: str, key: str) -> None:
    folder = MAKERS[kind](tmp_path / kind)
    (path,) = folder.glob("*.json")
    document = json.loads(path.read_text())
    document["content"].pop(key)
    path.write_text(json.dumps(document))
    with pytest.raises(FolderError, match="again") as caught:
        write_report(folder)
    assert "\n" not in str(caught.value)
    assert path.name in str(caught.value)
    assert not (folder / folders.REPORT).exists()


@pytest.mark.parametrize("kind", list(MAKERS))
def test_a_header_that_is_no_json_or_of_the_wrong_shape_is_one_line(tmp_path: Path, kind: str) -> None:
    folder = MAKERS[kind](tmp_path / kind)
    (path,) = folder.glob("*.json")
    document = json.loads(path.read_text())
    for text in ("{", "[]", json.dumps(document | {"content": {"notes": 3, "sheets": 4, "task": "classify"}})):
        path.write_text(text)
        with pytest.raises(FolderError) as caught:
            write_report(folder)
        assert path.name in str(caught.value)
        assert "\n" not in str(caught.value)


def test_the_same_folder_gives_the_same_page(tmp_path: Path) -> None:
    sources = all_folders(tmp_path)
    first = write_report(sources, out=tmp_path / "a.html").read_text()
    assert write_report(sources, out=tmp_path / "b.html").read_text() == first
