"""The public door: what is exported exists, is documented, and loads nothing it need not."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import unalike

ROOT = Path(__file__).parents[1]


def test_exports_exist_are_sorted_and_documented() -> None:
    assert unalike.__all__ == sorted(unalike.__all__)
    for name in set(unalike.__all__) - {"__version__"}:
        assert (getattr(unalike, name).__doc__ or "").strip(), name


def test_type_checkers_see_what_is_exported() -> None:
    tree = ast.parse((ROOT / "src" / "unalike" / "__init__.py").read_text())
    seen = {alias.asname for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert seen - {None} == set(unalike.__all__) - {"__version__"}


def test_an_unknown_name_is_an_attribute_error() -> None:
    assert not hasattr(unalike, "surprise")


def test_the_report_does_not_load_torch() -> None:
    code = "import sys, unalike; unalike.write_report; unalike.inspect_folder; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_version_is_in_the_changelog_and_the_citation() -> None:
    assert f"## {unalike.__version__}" in (ROOT / "CHANGELOG.md").read_text()
    assert f"version: {unalike.__version__}\n" in (ROOT / "CITATION.cff").read_text()


def test_no_pickle_is_read_or_written() -> None:
    for path in (ROOT / "src").rglob("*.py"):
        text = path.read_text()
        for word in (
            "import pickle\n",
            "from pickle ",
            "torch.save(",
            "torch.load(",
            "allow_pickle=True",
            "np.load(path)",
        ):
            assert word not in text, f"{path}: {word}"
