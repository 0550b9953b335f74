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
