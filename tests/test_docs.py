"""The tutorial is run as it stands, links lead somewhere, and the rooms of the architecture page exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from unalike.cli import run

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), flags=re.DOTALL)


def test_the_tutorial_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for block in blocks(ROOT / "docs" / "tutorial.md", "sh"):
        for line in block.strip().splitlines():
            program, *arguments = shlex.split(line)
            assert program == "unalike"
            assert run(arguments) == 0, line
    capsys.readouterr()
    (code,) = blocks(ROOT / "docs" / "tutorial.md", "python")
    exec(compile(code, "tutorial.md", "exec"), {})
    assert len(capsys.readouterr().out.splitlines()) == 3
    assert (tmp_path / "comparison.html").is_file()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target


def test_the_rooms_on_the_map_are_the_rooms_there_are() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    (house,) = re.findall(r"src/unalike/\n(.*?)```", text, flags=re.DOTALL)
    named = {match.rstrip("/") for match in re.findall(r"^  (\S+)", house, flags=re.MULTILINE)}
    there = {
        path.name
        for path in (ROOT / "src" / "unalike").iterdir()
        if not path.name.startswith("_") and path.name != "py.typed"
    }
    assert named == there


def test_the_readme_names_things_that_exist() -> None:
    import unalike

    text = (ROOT / "README.md").read_text()
    for name in re.findall(r"unalike\.([A-Za-z_]+)\(", text):
        assert name in unalike.__all__
    (code,) = blocks(ROOT / "README.md", "python")
    compile(code, "README.md", "exec")


def test_every_recipe_and_every_key_of_a_recipe_is_explained() -> None:
    from dataclasses import fields

    from unalike.cohort.recipes import Layout, list_recipes

    text = (ROOT / "docs" / "recipes.md").read_text()
    rows = "\n".join(line.split("|")[1] for line in text.splitlines() if line.startswith("| "))
    for recipe in list_recipes():
        assert f"`{recipe.name}`" in rows
    for entry in fields(Layout):
        assert f"`{entry.name}`" in rows


def test_the_recipe_and_the_code_of_the_recipes_page_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import nibabel as nib
    import numpy as np

    from unalike.cohort.recipes import find_recipe

    text = (ROOT / "docs" / "recipes.md").read_text()
    (own,) = re.findall(r"```toml\n(.*?)```", text, flags=re.DOTALL)
    (tmp_path / "my-study.toml").write_text(own)
    assert find_recipe(str(tmp_path / "my-study.toml")).settings["axis"] == "sagittal"
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(0)
    for patient in ("p1", "p2", "p3"):
        (tmp_path / "scans" / patient).mkdir(parents=True)
        for channel in ("pd", "t2"):
            voxels = random.integers(0, 900, (5, 20, 30)).astype(np.int16)
            nib.save(nib.Nifti1Image(voxels, np.eye(4)), tmp_path / "scans" / patient / f"v1_{channel}.nii.gz")
    assert run(["prepare", "scans", "--recipe", "my-study.toml", "--out", "cohort", "--holdout", "1"]) == 0
    (code,) = blocks(ROOT / "docs" / "recipes.md", "python")
    exec(compile(code, "recipes.md", "exec"), {})
    assert nib.load(tmp_path / "slice.nii.gz").shape == (128, 128, 1)
