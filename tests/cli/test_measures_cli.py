"""fidelity, utility, explain and report from the command line: what a user gives wrongly, and the whole way once."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import urllib.error
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from safetensors.torch import save_file
from tests.cli.test_cli import refuse
from tests.report.conftest import FakeAudit

from unalike import folders
from unalike.cli import run
from unalike.cohort.store import ImageFolder, ImageWriter, open_images
from unalike.fidelity import own
from unalike.report import figures
from unalike.vision import fetch

SIDE = 16
CLASSIFY = ("--networks", "resnet18", "--side", 32, "--epochs", 1, "--folds", 2, "--batch-size", 8, "--no-augment")

MIX = ("--mix", "8:0", "--mix", "8:all", "--mix-batches", 1, "--mix-checks", 1, "--repetitions", 1)


def write(
    out: Path,
    kind: str,
    labels: list[str],
    roles: list[str],
    *,
    inputs: dict[str, str] | None = None,
    mask: bool = False,
    seed: int = 0,
) -> ImageFolder:
    """A folder of images of a subject each: class b has a bright square, which a mask marks."""
    random = np.random.default_rng(seed)
    folders.begin_folder(out, kind=kind, settings={})
    channels = ("gray", "mask") if mask else ("gray",)
    writer = ImageWriter(out, channels=channels, height=SIDE, width=SIDE, dtype=np.dtype(np.uint8))
    for place, (label, role) in enumerate(zip(labels, roles, strict=True)):
        pixels = random.integers(0, 120, (len(channels), SIDE, SIDE)).astype(np.uint8)
        square = (slice(4, 11), slice(4, 11))
        if label == "b" or mask:
            pixels[0][square] = 230
        if mask:
            pixels[1] = 0
            pixels[1][square] = 255
        subject = f"{kind}-{place:04d}"
        writer.append(pixels, {"subject": subject, "source": "made", "role": role, "label": label, "seed": place})
    content = writer.close() | {"subjects": None, "subject_seed": 0}
    folders.finish_folder(out, kind=kind, settings={}, seed=0, inputs=inputs or {}, content=content)
    return open_images(out, kind=kind)


def make_world(
    place: Path,
    *,
    train: str = "ab" * 6,
    holdout: str = "ab" * 3,
    samples: str | list[str] = "ab" * 6,
    mask: bool = False,
) -> tuple[Path, Path]:
    """Folders of samples and of a cohort with these classes, a letter an image."""
    place.mkdir(exist_ok=True)
    roles = ["train"] * len(train) + ["holdout"] * len(holdout)
    cohort = write(place / "cohort", "cohort", [*train, *holdout], roles, mask=mask)
    inputs = {"cohort": cohort.digest}
    write(place / "samples", "samples", [*samples], ["synthetic"] * len(samples), inputs=inputs, mask=mask, seed=1)
    return place / "samples", place / "cohort"


def refuse_and_leave_nothing(capsys: pytest.CaptureFixture[str], out: Path, *arguments: object, code: int = 2) -> str:
    """The one line; there must be no folder, and none of the others may hold anything unfinished."""
    said = refuse(capsys, code, *arguments, "--out", out)
    assert not out.exists()
    assert not list(out.parent.rglob(folders.UNFINISHED))
    assert not list(out.parent.rglob("*.partial"))
    assert said.endswith(".")
    return said


# Bad input: utility


def test_one_class_only_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    samples, cohort = make_world(tmp_path, train="a" * 8, holdout="a" * 4, samples="a" * 8)
    said = refuse_and_leave_nothing(capsys, tmp_path / "out", "utility", samples, "--against", cohort, *CLASSIFY)
    assert "all images are of one class, 'a'" in said
    assert str(cohort) in said
    assert "two classes or more" in said


@pytest.mark.parametrize(("poor", "named"), [("samples", "samples"), ("holdout", "cohort"), ("train", "cohort")])
def test_a_class_missing_somewhere_is_one_line_that_names_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], poor: str, named: str
) -> None:
    samples, cohort = make_world(tmp_path, **{poor: "a" * 8})
    said = refuse_and_leave_nothing(capsys, tmp_path / "out", "utility", samples, "--against", cohort, *CLASSIFY)
    role = "synthetic" if poor == "samples" else poor
    assert f"class 'b' is missing in {role}" in said
    assert str(tmp_path / named) in said
    assert "Add images of it" in said


@pytest.mark.parametrize("source", ["samples", "train"])
def test_fewer_images_than_folds_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], source: str) -> None:
    samples, cohort = make_world(tmp_path, **{source: "aaaaaabbb"})
    said = refuse_and_leave_nothing(
        capsys, tmp_path / "out", "utility", samples, "--against", cohort, "--side", 32, "--folds", 5
    )
    assert "class 'b' has 3 subjects, fewer than the 5 folds" in said
    assert str(samples if source == "samples" else cohort) in said
    assert "--folds" in said


@pytest.mark.parametrize("verb", ["fidelity", "utility"])
def test_fewer_than_two_samples_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], verb: str) -> None:
    samples, cohort = make_world(tmp_path, samples="a")
    said = refuse_and_leave_nothing(capsys, tmp_path / "out", verb, samples, "--against", cohort)
    assert f"{samples} has 1 synthetic images" in said
    assert "at least 2" in said


def test_unknown_labels_are_one_line_that_says_how_to_get_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    samples, cohort = make_world(tmp_path, samples=[""] * 8)
    said = refuse_and_leave_nothing(capsys, tmp_path / "out", "utility", samples, "--against", cohort)
    assert "8 of 8 images have no class" in said
    assert str(samples) in said
    assert "--condition label" in said


def test_no_holdout_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    samples, cohort = make_world(tmp_path, holdout="")
    said = refuse_and_leave_nothing(capsys, tmp_path / "out", "utility", samples, "--against", cohort)
    assert f"{cohort} has no holdout" in said
    assert "--holdout" in said


def test_masks_absent_for_segmentation_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    samples, cohort = make_world(tmp_path)
    said = refuse_and_leave_nothing(
        capsys, tmp_path / "out", "utility", samples, "--against", cohort, "--task", "segment"
    )
    assert f"{cohort} has no channel mask" in said
    assert "--task classify" in said


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--mix", "200-0"], "--mix 200-0: give real:synthetic"),
        (["--mix", "0:0"], "--mix 0:0"),
        (["--mix", "al:0"], "--mix al:0"),
        (["--mix", "5:5:5"], "--mix 5:5:5"),
        (["--networks", "resnet19"], "--networks resnet19: there are resnet18"),
        (["--folds", "1"], "--folds 1: give 2 or more"),
        (["--epochs", "0"], "--epochs 0"),
        (["--task", "classfy"], "classfy"),
        (["--learning-rate", "0"], "--learning-rate must be above 0"),
        (["--seed", "-1"], "--seed -1"),
        (["--device", "tpu"], "tpu"),
    ],
)
def test_settings_that_make_no_sense_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], told: str
) -> None:
    samples, cohort = make_world(tmp_path)
    arguments = ("utility", samples, "--against", cohort, *options)
    assert told in refuse(capsys, 2, *arguments, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_mix_of_more_images_than_there_are_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    samples, cohort = make_world(tmp_path)
    said = refuse_and_leave_nothing(
        capsys, tmp_path / "out", "utility", samples, "--against", cohort, *CLASSIFY, "--mix", "0:2000"
    )
    assert "--mix asks for 2000 synthetic images, there are 12" in said
    assert "write all" in said


def test_a_folder_of_weights_that_lacks_one_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    samples, cohort = make_world(tmp_path)
    (tmp_path / "weights").mkdir()
    said = refuse_and_leave_nothing(
        capsys, tmp_path / "out", "utility", samples, "--against", cohort, "--folds", 2,
        "--weights", tmp_path / "weights",
    )  # fmt: skip
    assert str(tmp_path / "weights") in said
    assert "resnet18" in said


# Bad input: fidelity


def test_features_that_need_weights_say_how_to_give_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    samples, cohort = make_world(tmp_path)
    arguments = ("fidelity", samples, "--against", cohort, "--features")
    for name in ("inception", "resnet18", "radimagenet", "dinov2"):
        said = refuse_and_leave_nothing(capsys, tmp_path / "out", *arguments, name)
        assert f"--features {name} needs weights" in said
        assert "--weights" in said
    assert "Choose one of own, inception" in refuse_and_leave_nothing(capsys, tmp_path / "out", *arguments, "incepton")
    said = refuse_and_leave_nothing(capsys, tmp_path / "out", *arguments, "own", "--weights", "x.pth")
    assert "--weights" in said
    said = refuse_and_leave_nothing(capsys, tmp_path / "out", *arguments, "inception", "--weights", tmp_path / "x.pth")
    assert str(tmp_path / "x.pth") in said


def test_weights_that_cannot_be_fetched_say_how_to_give_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(url: str) -> Any:
        raise urllib.error.URLError(f"no route to {url[:20]}")

    samples, cohort = make_world(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(fetch, "open_url", unreachable)
    said = refuse_and_leave_nothing(
        capsys, tmp_path / "out", "fidelity", samples, "--against", cohort, "--features", "inception", "--fetch-weights"
    )
    assert "cannot be fetched" in said
    assert "no route" in said
    assert "--weights FILE" in said
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


def test_nothing_is_fetched_unless_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(url: str) -> Any:
        raise AssertionError(url)

    samples, cohort = make_world(tmp_path)
    monkeypatch.setattr(fetch, "open_url", refused)
    said = refuse_and_leave_nothing(
        capsys, tmp_path / "out", "fidelity", samples, "--against", cohort, "--features", "inception"
    )
    assert "--fetch-weights" in said


@pytest.mark.parametrize("content", ["shape", "other", "text"])
def test_weights_of_another_network_are_one_line_that_names_the_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str
) -> None:
    samples, cohort = make_world(tmp_path)
    path = tmp_path / "weights.safetensors"
    if content == "text":
        path.write_text("these are no weights")
    else:
        save_file({"conv1.weight" if content == "shape" else "layer": torch.zeros(2, 3, 7, 7)}, path)
    said = refuse_and_leave_nothing(
        capsys, tmp_path / "out", "fidelity", samples, "--against", cohort, "--features", "resnet18", "--weights", path
    )
    assert str(path) in said


# Bad input: folders


@pytest.mark.parametrize("verb", ["fidelity", "utility", "explain"])
def test_paths_that_do_not_exist_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str], verb: str) -> None:
    here = tmp_path / "here"
    here.mkdir()
    for arguments in ((tmp_path / "nowhere", "--against", here), (here, "--against", tmp_path / "nowhere")):
        said = refuse_and_leave_nothing(capsys, tmp_path / "out", verb, *arguments)
        assert f"{tmp_path / 'nowhere'} does not exist" in said


@pytest.mark.parametrize("verb", ["fidelity", "utility"])
def test_a_folder_that_is_there_is_never_touched(tmp_path: Path, capsys: pytest.CaptureFixture[str], verb: str) -> None:
    samples, cohort = make_world(tmp_path)
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("precious")
    if verb == "fidelity":
        options: tuple[object, ...] = ()
        (cohort / folders.INDEX).mkdir()
    else:
        options = CLASSIFY
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(own, "SETTINGS", dataclasses.replace(own.SETTINGS, steps=1))
        said = refuse(capsys, 2, verb, samples, "--against", cohort, "--out", out, *options)
    assert f"{out} exists already" in said
    assert "Choose another --out" in said
    assert [path.name for path in out.iterdir()] == ["mine.txt"]


def test_explain_takes_a_utility_or_an_audit_and_nothing_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    samples, cohort = make_world(tmp_path)
    plain = tmp_path / "plain"
    plain.mkdir()
    for source in (cohort, samples, plain):
        said = refuse_and_leave_nothing(capsys, tmp_path / "out", "explain", source, "--against", cohort)
        assert f"{source} is no finished utility or audit folder" in said
    utility = tmp_path / "utility"
    utility.mkdir()
    folders.finish_folder(utility, kind="utility", settings={}, seed=0, inputs={}, content={"task": "segment"})
    assert "--against COHORT" in refuse_and_leave_nothing(capsys, tmp_path / "out", "explain", utility)
    said = refuse_and_leave_nothing(capsys, tmp_path / "out", "explain", utility, "--against", cohort)
    assert "keeps no classifier" in said
    assert "--task classify" in said


def test_report_takes_what_it_knows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, cohort = make_world(tmp_path)
    assert "at least one" in refuse(capsys, 2, "report")
    assert str(cohort) in refuse(capsys, 2, "report", cohort)
    assert "does not exist" in refuse(capsys, 2, "report", tmp_path / "nowhere")
    utility = tmp_path / "utility"
    utility.mkdir()
    folders.finish_folder(utility, kind="utility", settings={}, seed=0, inputs={}, content={"notes": []})
    assert "utility.json lacks" in refuse(capsys, 2, "report", utility)
    assert not list(tmp_path.rglob("*.html"))


@pytest.mark.parametrize("verb", ["fidelity", "utility"])
def test_a_dry_run_prints_the_settings_and_does_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], verb: str
) -> None:
    samples, cohort = make_world(tmp_path)
    before = sorted(path for path in tmp_path.rglob("*"))
    arguments = [verb, str(samples), "--against", str(cohort), "--out", str(tmp_path / "out"), "--dry-run"]
    assert run(arguments) == 0
    assert "settings: " in capsys.readouterr().out
    assert run([*arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["subject_pattern"] is None
    assert sorted(path for path in tmp_path.rglob("*")) == before


def test_several_networks_and_mixtures_may_follow_one_flag_each(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    samples, cohort = make_world(tmp_path)
    arguments = ["utility", str(samples), "--against", str(cohort), "--out", str(tmp_path / "o"), "--dry-run", "--json"]
    assert run([*arguments, "--networks", "resnet18", "--networks", "vgg16", "--mix", "8:0", "--mix", "0:all"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["networks"], told["mix"]) == (["resnet18", "vgg16"], ["8:0", "0:all"])


# The whole way once


@dataclasses.dataclass(frozen=True)
class Study:
    """Folders of one small study, and what each command printed."""

    place: Path
    told: dict[str, dict[str, Any]]

    def out(self, name: str) -> Path:
        return self.place / name


def tell(*arguments: object) -> dict[str, Any]:
    """Run a command with --json and read what it printed."""
    printed, aside = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(aside):
        code = run([*map(str, arguments), "--json"])
    assert code == 0, aside.getvalue()
    found: dict[str, Any] = json.loads(printed.getvalue(), parse_constant=lambda name: pytest.fail(name))
    return found


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """Fidelity, both utilities, both explanations of small folders, each by its command."""
    place = tmp_path_factory.mktemp("study")
    samples, cohort = make_world(place)
    masked, masks = make_world(place / "masks", mask=True)
    audit = FakeAudit(pairs=2, copied=0.875).write(place / "audit")
    header = audit / "audit.json"
    document = json.loads(header.read_text())
    document["inputs"] = {"synthetic": folders.digest_of(samples, kind="samples")}
    document["content"]["tables"] = {
        name: folders.digest_file(audit / name) for name in (folders.EVIDENCE, folders.QUERIES)
    }
    header.write_text(json.dumps(document))
    told = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(own, "SETTINGS", dataclasses.replace(own.SETTINGS, steps=4))
        told["fidelity"] = tell(
            "fidelity", samples, "--against", cohort, "--out", place / "fidelity", "--resamples", 16,
            "--name", "small samples",
        )  # fmt: skip
        told["classify"] = tell("utility", samples, "--against", cohort, "--out", place / "classify", *CLASSIFY, *MIX)
        told["segment"] = tell(
            "utility", masked, "--against", masks, "--out", place / "segment", "--task", "segment",
            "--segment-updates", 2, "--batch-size", 4, "--no-augment",
        )  # fmt: skip
        told["explain"] = tell(
            "explain", place / "classify", "--against", cohort, "--out", place / "explain", "--each", 1,
            "--samples", 20, "--repetitions", 2,
        )  # fmt: skip
        told["evidence"] = tell("explain", audit, "--out", place / "evidence", "--sheets", 1)
    return Study(place, told)


def test_fidelity_tells_what_its_header_holds(study: Study) -> None:
    told = study.told["fidelity"]
    assert told["name"] == "small samples"
    assert told["counts"]["synthetic"] == {"images": 12, "subjects": 12}
    assert "autoencoder" in told["features"]
    measures = {(score["measure"], score["compared"]) for score in told["scores"]}
    assert {("frechet", "synthetic-train"), ("frechet", "holdout-train"), ("precision", "synthetic-train")} <= measures
    assert Path(told["report"]) == study.out("fidelity") / folders.REPORT
    assert "Fidelity of small samples" in Path(told["report"]).read_text()


def test_utility_of_classification_has_a_row_a_source(study: Study) -> None:
    told = study.told["classify"]
    assert [row["source"] for row in told["table"]] == ["synthetic", "real"]
    for row in told["table"]:
        assert (row["network"], row["weights"], row["folds"]) == ("resnet18", "random", 2)
        assert row["test_accuracy"]["n"] == 6
        assert np.sum(row["confusion"]) == 6
    mixed = [(row["real"], row["synthetic"], row["augmentation"]) for row in told["mixing"]["rows"]]
    assert mixed == [(8, 0, True), (8, 0, False), (8, 12, True)]
    assert {path.stem for path in study.out("classify").glob("*.md")} >= {"classifiers", "differences", "mixing"}
    assert "ResNet-18" in Path(told["report"]).read_text()


def test_utility_of_segmentation_has_a_row_a_source_and_a_page(study: Study) -> None:
    told = study.told["segment"]
    assert [row["source"] for row in told["table"]] == ["synthetic", "real", "both"]
    assert all(0 <= row["dice"]["mean"]["value"] <= 1 for row in told["table"])
    html = Path(told["report"]).read_text()
    assert "12 samples with masks" in html
    assert "tested on 6 images of 6 subjects" in html


def test_explanations_have_numbers_and_maps(study: Study) -> None:
    told = study.told["explain"]
    assert list(told["numbers"]) == ["holdout"]
    assert set(told["numbers"]["holdout"]) == {"synthetic", "real"}
    assert (study.out("explain") / "maps.safetensors").is_file()
    assert "What classifiers looked at" in Path(told["report"]).read_text()


def test_evidence_has_a_sheet(study: Study) -> None:
    told = study.told["evidence"]
    assert len(told["sheets"]) == 1
    assert (study.out("evidence") / folders.FIGURES / "0000-internal.png").is_file()


def test_one_page_tells_of_all_and_holds_privacy_against_utility(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    # The figure of an audit's pairs is no part of a page, and the slowest to draw.
    monkeypatch.setattr(figures, "draw_pairs", lambda *_, **__: Figure(figsize=(1, 1)))
    sources = [study.out(name) for name in ("audit", "fidelity", "classify", "segment", "explain", "evidence")]
    page = study.out("pages") / "all.html"
    assert tell("report", *sources, "--out", page, "--title", "A study") == {"report": str(page)}
    html = page.read_text()
    for text in (
        "A study",
        "Privacy against utility",
        "Fidelity of small samples",
        "Utility of samples",
        "Evidence of",
    ):
        assert text in html
    shared = study.out("pages") / "shared.html"
    tell("report", *sources, "--out", shared, "--shareable")
    assert "data:image" not in shared.read_text()


def test_a_finished_folder_is_not_measured_over(study: Study, capsys: pytest.CaptureFixture[str]) -> None:
    samples, cohort = study.place / "samples", study.place / "cohort"
    before = (study.out("classify") / "utility.json").read_bytes()
    said = refuse(capsys, 2, "utility", samples, "--against", cohort, "--out", study.out("classify"), *CLASSIFY, *MIX)
    assert "is finished. Choose another --out or remove it." in said
    assert (study.out("classify") / "utility.json").read_bytes() == before
