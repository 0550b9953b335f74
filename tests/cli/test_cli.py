"""The command line: help, exit codes, one-line errors, JSON, configuration files, and the whole way once."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unalike.cli import build_app, run

COMMANDS = (
    "adopt",
    "audit",
    "cohort",
    "completion",
    "demo",
    "doctor",
    "explain",
    "fidelity",
    "index",
    "inspect",
    "latent",
    "membership",
    "phantom",
    "prepare",
    "recipes",
    "release",
    "release-model",
    "report",
    "sample",
    "steps",
    "study",
    "sweep",
    "train",
    "utility",
    "verify",
)


@pytest.mark.parametrize(
    "command", [*((name,) for name in COMMANDS), ("train", "diffusion"), ("train", "stylegan"), ("train", "gaussian")]
)
def test_every_command_has_help(command: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*command, "--help"]) == 0
    text = capsys.readouterr().out
    assert "Usage: unalike" in text
    assert len(text.splitlines()) > 8


def test_every_command_is_documented() -> None:
    text = (Path(__file__).parents[2] / "docs" / "commands.md").read_text()
    for command in COMMANDS:
        assert f"## `unalike {command}" in text


def test_help_does_not_load_torch() -> None:
    code = "import sys; from unalike.cli import run; run(['--help']); sys.exit('torch' in sys.modules)"
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert finished.returncode == 0


def refuse(capsys: pytest.CaptureFixture[str], code: int, *arguments: object) -> str:
    assert run([str(argument) for argument in arguments]) == code
    captured = capsys.readouterr()
    errors = [line for line in captured.err.splitlines() if line.startswith("unalike: ")]
    assert len(errors) == 1
    assert "Traceback" not in captured.err
    return errors[0]


def test_usage_errors_are_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert "--sizze" in refuse(capsys, 2, "prepare", tmp_path, "--out", tmp_path / "c", "--sizze", 3)
    assert "preparre" in refuse(capsys, 2, "preparre", tmp_path)
    assert "size" in refuse(capsys, 2, "prepare", tmp_path, "--out", tmp_path / "c", "--size", "big")
    assert "out" in refuse(capsys, 2, "prepare", tmp_path).lower()
    assert "does not exist" in refuse(capsys, 2, "prepare", tmp_path / "nowhere", "--out", tmp_path / "c")
    unknown = refuse(capsys, 2, "prepare", tmp_path, "--out", tmp_path / "c", "--recipe", "dicomm")
    assert "all-leukemia, brain-tumor-mri" in unknown
    assert not (tmp_path / "c").exists()


def test_recipes_give_defaults_under_files_and_flags(
    make_pictures: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = make_pictures(subjects=5) / "NORMAL"
    source.mkdir()
    for path in source.parent.glob("*.png"):
        path.rename(source / f"person{path.stem[1:5]}_bacteria_{path.stem[-1]}.png")
    arguments = ["prepare", str(source.parent), "--out", str(tmp_path / "c"), "--dry-run", "--json"]
    recipe = [*arguments, "--recipe", "cxr-pneumonia"]
    config = tmp_path / "study.toml"
    config.write_text("[prepare]\nsize = 32\n")
    for command, size, fit in (
        (arguments, None, "pad"),
        (recipe, 256, "stretch"),
        ([*recipe, "--config", str(config)], 32, "stretch"),
        ([*recipe, "--config", str(config), "--size", "20", "--fit", "crop"], 20, "crop"),
    ):
        assert run(command) == 0
        told = json.loads(capsys.readouterr().out)
        assert (told["size"], told["fit"]) == (size, fit)
    assert told["plan"]["roles"]["train"] == {"pictures": 8, "subjects": 4, "classes": {"NORMAL": 8}}
    assert run([*recipe[:4], "--dry-run", "--recipe", "cxr-pneumonia"]) == 0
    assert "train: 8 pictures, 4 subjects (NORMAL 8)" in capsys.readouterr().out
    assert not (tmp_path / "c").exists()


def test_recipes_are_listed_and_explained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["recipes"]) == 0
    listed = capsys.readouterr().out
    assert run(["recipes", "--json"]) == 0
    every = json.loads(capsys.readouterr().out)
    assert len(every) == 13
    assert all(recipe["name"] in listed for recipe in every)
    assert run(["recipes", "brats20"]) == 0
    explained = capsys.readouterr().out
    assert "Akbar et al. 2025, section 2.1.1" in explained
    assert "--holdout 56" in explained
    assert "is unknown" in refuse(capsys, 2, "recipes", "brats19")
    (tmp_path / "mine.toml").write_text('title = "x"\n')
    assert "mine.toml is no recipe" in refuse(capsys, 2, "recipes", tmp_path / "mine.toml")


def test_configuration_files(make_pictures: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    source = str(make_pictures(subjects=5))
    config = tmp_path / "study.toml"
    config.write_text("[prepare]\nsize = 16\nholdout = 0.4\n")
    arguments = ["prepare", source, "--config", str(config), "--dry-run", "--json", "--out", str(tmp_path / "c")]
    assert run(arguments) == 0
    settings = json.loads(capsys.readouterr().out)
    assert (settings["size"], settings["holdout"]) == (16, 0.4)
    assert run([*arguments, "--size", "20"]) == 0
    assert json.loads(capsys.readouterr().out)["size"] == 20
    config.write_text("[prepare]\nsizze = 16\n")
    error = refuse(capsys, 2, *arguments)
    assert "sizze" in error
    assert "study.toml" in error
    config.write_text("[prepare\n")
    assert "study.toml" in refuse(capsys, 2, *arguments)
    config.write_text("[preparre]\nsize = 16\n")
    assert "preparre is no table" in refuse(capsys, 2, *arguments)
    config.write_text("[train]\nsteps = 16\n")
    assert "train.steps is no table" in refuse(capsys, 2, *arguments)
    assert "does not exist" in refuse(capsys, 2, "inspect", tmp_path, "--config", tmp_path / "none.toml")
    assert not (tmp_path / "c").exists()


def test_a_leaking_split_is_the_first_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    random = np.random.default_rng(0)
    for name in ("train/p1_0", "train/p2_0", "test/p2_1", "test/p3_0"):
        path = tmp_path / "x" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 255, (8, 8), dtype=np.uint8)).save(path)
    options = ["--split", "keep", "--subject-pattern", r"(p\d)_"]
    assert run(["prepare", str(tmp_path / "x"), "--out", str(tmp_path / "c"), *options]) == 0
    assert capsys.readouterr().out.startswith("LEAK: 1 of the 2 holdout patients also occur in train")


def test_skipped_files_are_counted_and_listed(
    make_pictures: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = make_pictures(subjects=5)
    (source / "p0001_0.png").write_text("no picture")
    refuse(capsys, 2, "prepare", source, "--out", tmp_path / "c")
    assert run(["prepare", str(source), "--out", str(tmp_path / "c"), "--on-bad-file", "skip"]) == 0
    captured = capsys.readouterr()
    assert "skipped p0001_0.png" in captured.err
    assert "1 of 10 items were skipped." in captured.out


def test_existing_and_foreign_outputs(
    make_pictures: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = make_pictures(subjects=5)
    assert run(["prepare", str(source), "--out", str(tmp_path / "c")]) == 0
    capsys.readouterr()
    assert "exists already" in refuse(capsys, 2, "prepare", source, "--out", tmp_path / "c")
    assert "no run folder" in refuse(capsys, 2, "sample", source, "--count", 3, "--out", tmp_path / "s")
    wrong = refuse(capsys, 2, "sample", tmp_path / "c", "--count", 3, "--out", tmp_path / "s")
    assert "is a folder of kind cohort" in wrong


def test_interruption_is_130(
    make_pictures: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    def interrupt(**_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("unalike.cohort.build.prepare_cohort", interrupt)
    assert "interrupted" in refuse(capsys, 130, "prepare", make_pictures(), "--out", tmp_path / "c")


def test_debug_shows_where(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["inspect", str(tmp_path / "nowhere"), "--debug"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_the_whole_way(make_pictures: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """prepare → train → sample → audit → report → inspect, with JSON on stdout and nothing else there."""
    source = make_pictures(subjects=40)
    cohort, runs, samples, audit = (str(tmp_path / name) for name in ("cohort", "run", "samples", "audit"))

    def call(*arguments: str) -> dict[str, object]:
        capsys.readouterr()
        assert run([*arguments, "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    prepared = call("prepare", str(source), "--out", cohort, "--subject-pattern", r"(p\d+)_", "--holdout", "0.5")
    assert prepared["images"] == 80
    assert call("train", "memorizer", cohort, "--out", runs)["train_images"] == 40
    assert call("sample", runs, "--count", "30", "--out", samples)["count"] == 30
    result = call("audit", samples, "--against", cohort, "--out", audit, "--planted", "8", "--level", "0.1")
    assert result["verdict"]["decision"] == "copies found"
    assert result["flagged"] >= 27
    assert Path(str(result["report"])).is_file()
    page = call("report", audit, "--shareable", "--out", str(tmp_path / "share.html"))["report"]
    assert Path(str(page)).is_file()
    assert call("inspect", cohort)["subjects_per_role"] == {"holdout": 20, "train": 20}
    assert "copies found" in str(call("inspect", audit)["verdict"])
    assert call("inspect", samples)["images"] == 30
    assert (Path(samples) / "contact-sheets" / "synthetic.png").is_file()
    assert call("inspect", runs)["generator"] == "memorizer"
    refused = refuse(capsys, 2, "sample", runs, "--count", 3, "--steps", 9, "--out", tmp_path / "other")
    assert "--steps: not for a run of memorizer" in refused


def test_the_application_can_be_built_without_arguments() -> None:
    assert {name for name in build_app() if not name.startswith("-")} == set(COMMANDS)


def test_an_interruption_while_loading_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from unalike.__main__ import main

    class Loading:
        def __getattr__(self, _: str) -> object:
            raise KeyboardInterrupt

    monkeypatch.setitem(sys.modules, "unalike.cli", Loading())
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 130
    assert capsys.readouterr().err == "unalike: interrupted\n"


@pytest.mark.parametrize("kind", ["diffusion", "stylegan", "inversion", "gaussian", "memorizer"])
def test_every_kind_takes_a_table_of_the_settings_file(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "settings.toml").write_text(f"[train.{kind}]\nseed = 3\n\n[cohort.drop]\nsubject = 'x'\n")
    # The file is taken; what is missing is the cohort.
    said = refuse(
        capsys, 2, "--config", tmp_path / "settings.toml", "train", kind, tmp_path / "none", "--out", tmp_path / "o"
    )
    assert "none" in said
    (tmp_path / "settings.toml").write_text("[train.gan]\nseed = 3\n")
    said = refuse(
        capsys, 2, "--config", tmp_path / "settings.toml", "train", kind, tmp_path / "none", "--out", tmp_path / "o"
    )
    assert "train.gan is no table of a command" in said
