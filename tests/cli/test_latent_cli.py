"""``unalike latent`` from the command line: the whole way once, and errors in one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from unalike import folders
from unalike.cli import run
from unalike.cohort.store import open_images

TINY = "--capacity 64 --max-features 8 --latent 8 --mapping-layers 1 --batch-size 4 --steps 2 --checkpoint-every 0"


def call(capsys: pytest.CaptureFixture[str], *arguments: object) -> Any:
    """What a command prints with --json."""
    assert run([*map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def refuse(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert run([str(argument) for argument in arguments]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("unalike: ")]
    assert len(errors) == 1
    return errors[0]


def test_the_whole_way_from_pictures_to_films_sheets_and_projections(
    make_pictures: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, cohort, gan = make_pictures(subjects=6, size=16), tmp_path / "cohort", tmp_path / "gan"
    prepare = ["prepare", str(source), "--out", str(cohort), "--subject-pattern", r"(p\d+)_", "--holdout", "2"]
    assert run(prepare) == 0
    assert run(["train", "stylegan", str(cohort), "--out", str(gan), *TINY.split(), "--precision", "float32"]) == 0
    samples = tmp_path / "samples"
    assert run(["sample", str(gan), "--count", "1", "--first-seed", "17", "--out", str(samples)]) == 0
    capsys.readouterr()

    film = ("latent", "film", gan, "--seeds", 17, 3, "--frames", 2, "--scale", 2, "--out", tmp_path / "film.png")
    planned = call(capsys, *film, "--dry-run")
    assert (planned["seeds"], planned["frames"], planned["space"]) == ([17, 3], 2, "w")
    assert not (tmp_path / "film.png").exists()
    assert call(capsys, *film) == {"film": str(tmp_path / "film.png"), "frames": 4, "seeds": [17, 3]}
    with Image.open(tmp_path / "film.png") as opened:
        first = np.asarray(opened.convert("L"))[::2, ::2]
    np.testing.assert_array_equal(first, open_images(samples, kind="samples").read(np.array([0]))[0, 0])
    assert "film.png exists already" in refuse(capsys, *film)

    mix = ("latent", "mix", gan, "--rows", 1, 2, "--columns", 4, 5, 6, "--layers", "middle", "--scale", 1)
    sheet = tmp_path / "sheet.png"
    assert run([*map(str, mix), "--out", str(sheet)]) == 0
    assert "2 × 3 mixtures; layers 3:6 (side 16) of 6 are the column's" in capsys.readouterr().out
    with Image.open(sheet) as opened:
        assert opened.size == (4 * 18 - 2, 3 * 18 - 2)
    assert "no such layers" in refuse(capsys, *mix[:-3], "fine", "--out", tmp_path / "t.png")

    project = ("latent", "project", gan, "--images", cohort, "--steps", 3, "--batch-size", 4, "--count", 4)
    assert call(capsys, *project, "--out", tmp_path / "p", "--dry-run")["images"] == 4
    assert not (tmp_path / "p").exists()
    told = call(capsys, *project, "--out", tmp_path / "p")
    assert told["internal"] is True
    assert told["distance"]["value"] == pytest.approx(np.mean(told["distances"]))
    assert told["distance"]["n"] == len(set(open_images(cohort).column("subject")[:4]))
    assert run([*map(str, project), "--out", str(tmp_path / "q")]) == 0
    assert "is internal: it shows patients" in capsys.readouterr().out
    assert folders.read_header(tmp_path / "q", kind="projection").content["distances"] == told["distances"]
    assert "kind projection" in refuse(capsys, "audit", tmp_path / "q", "--against", cohort, "--out", tmp_path / "a")
    assert call(capsys, "inspect", tmp_path / "q")["internal"] is True


def test_errors_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, out = tmp_path / "nowhere", tmp_path / "f.gif"
    assert "does not exist" in refuse(capsys, "latent", "film", folder, "--seeds", 1, 2, "--out", out)
    assert "does not exist" in refuse(capsys, "latent", "mix", folder, "--rows", 1, "--columns", 2, "--out", out)
    assert "does not exist" in refuse(capsys, "latent", "project", folder, "--images", folder, "--out", out)
    assert "seeds" in refuse(capsys, "latent", "film", folder, "--seeds", "x", "--out", out)
    assert "frames" in refuse(capsys, "latent", "film", folder, "--seeds", 1, 2, "--out", out, "--frames", 0)
    assert "sizze" in refuse(capsys, "latent", "film", folder, "--seeds", 1, 2, "--out", out, "--sizze", 3)


def test_settings_may_come_from_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "film.toml"
    config.write_text("[latent.film]\nframes = 0\n")
    film = ("latent", "film", tmp_path / "nowhere", "--seeds", 1, 2, "--out", tmp_path / "f.gif")
    assert "frames" in refuse(capsys, *film, "--config", config)


@pytest.mark.parametrize("verb", ["film", "mix", "project"])
def test_each_verb_has_help(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["latent", verb, "--help"]) == 0
    text = capsys.readouterr().out
    assert f"Usage: unalike latent {verb}" in text
    assert "--dry-run" in text
