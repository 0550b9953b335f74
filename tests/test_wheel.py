"""The wheel: everything that the package reads is in it, and nothing else."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

import unalike

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src"
MADE = ("__pycache__", ".mypy_cache", ".ruff_cache")  # by tools, beside the sources


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    if importlib.util.find_spec("hatchling") is None:
        pytest.skip("hatchling is not installed")
    out = tmp_path_factory.mktemp("dist")
    if importlib.util.find_spec("build") is not None:
        command = ["build", "--wheel", "--no-isolation", "--outdir", str(out), str(ROOT)]
    else:
        command = ["pip", "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(out), str(ROOT)]
    done = subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True, check=False, cwd=out)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = out.glob("*.whl")
    return zipfile.ZipFile(path)


def _sources() -> set[str]:
    """All files of the package, as a wheel names them."""
    files = (path for path in (SOURCE / "unalike").rglob("*") if path.is_file())
    return {
        path.relative_to(SOURCE).as_posix()
        for path in files
        if path.suffix != ".pyc" and not any(part in MADE for part in path.parts)
    }


def test_every_file_of_the_package_is_in_it(wheel: zipfile.ZipFile) -> None:
    inside = set(wheel.namelist())
    data = {name for name in _sources() if not name.endswith(".py")}
    assert {Path(name).suffix for name in data} >= {".toml", ".j2", ".css", ".typed"}
    assert data <= inside
    assert _sources() <= inside


def test_nothing_else_is_in_it(wheel: zipfile.ZipFile) -> None:
    about = f"unalike-{unalike.__version__}.dist-info/"
    strange = {name for name in wheel.namelist() if not name.startswith(("unalike/", about))}
    assert strange == set()
    for name in wheel.namelist():
        assert "test" not in Path(name).parts
        assert "tests" not in Path(name).parts
        assert Path(name).suffix not in {
            ".pyc",
            ".png",
            ".npz",
            ".parquet",
            ".nii",
            ".gz",
            ".dcm",
            ".safetensors",
            ".pth",
        }
    assert sum(entry.file_size for entry in wheel.infolist()) < 10 * 2**20


def test_files_are_the_ones_of_the_source(wheel: zipfile.ZipFile) -> None:
    for name in ("unalike/__init__.py", "unalike/report/templates/style.css", "unalike/cohort/recipes/brats21.toml"):
        assert wheel.read(name) == (SOURCE / name).read_bytes()


def test_licence_version_requirements_and_entry_point_are_there(wheel: zipfile.ZipFile) -> None:
    about = f"unalike-{unalike.__version__}.dist-info"
    assert wheel.read(f"{about}/licenses/LICENSE") == (ROOT / "LICENSE").read_bytes()
    assert "unalike = unalike.__main__:main" in wheel.read(f"{about}/entry_points.txt").decode()
    told = Parser().parsestr(wheel.read(f"{about}/METADATA").decode())
    assert told["Version"] == unalike.__version__
    assert told["Requires-Python"] == ">=3.11"
    assert any(line.startswith(("torch<", "torch>")) for line in told.get_all("Requires-Dist"))
    assert "Root-Is-Purelib: true" in wheel.read(f"{about}/WHEEL").decode()
