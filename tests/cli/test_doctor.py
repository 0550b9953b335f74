"""The doctor finds what is broken without breaking, and a real shell completes commands."""

from __future__ import annotations

import builtins
import importlib
import importlib.metadata
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from unalike.cli import build_app
from unalike.cli.completion import completion
from unalike.cli.doctor import doctor
from unalike.errors import RunError
from unalike.study import doctor as examining
from unalike.study.doctor import Check, examine_machine

completing = importlib.import_module("unalike.cli.completion")  # the package has a command of this name
completion_script = cache(completing.completion_script)  # each is made once
STATES = {"ok", "missing", "slow", "broken"}


def named(checks: tuple[Check, ...], what: str) -> Check:
    (found,) = [check for check in checks if check.what == what]
    return found


@pytest.fixture(scope="module")
def checks() -> tuple[Check, ...]:
    return examine_machine()


@pytest.fixture
def only(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Let the doctor look at these alone."""

    def keep(*kept: str) -> None:
        for name in ("python", "processor", "memory", "disk", "libraries", "torch", "products", "torchvision"):
            if name not in kept:
                monkeypatch.setattr(examining, f"_{name}", lambda: iter(()))
        for name in ("optional", "decoders", "weights", "terminal"):
            if name not in kept:
                monkeypatch.setattr(examining, f"_{name}", lambda: iter(()))

    return keep


def test_this_machine_works_and_every_line_says_what_to_do(checks: tuple[Check, ...]) -> None:
    assert [check for check in checks if check.stops] == []
    for check in checks:
        assert check.state in STATES
        assert check.found
        assert check.means
        assert bool(check.get) == (check.state != "ok"), check
    names = [check.what for check in checks]
    assert len(names) == len(set(names))
    assert named(checks, "numpy").found == importlib.metadata.version("numpy")
    assert named(checks, "exact products on cpu").state in ("ok", "slow")
    assert {"torch", "torchvision", "DICOM, JPEG-LS", "disk, here", "locale"} <= set(names)


def test_every_requirement_is_looked_at_once(checks: tuple[Check, ...]) -> None:
    needed = {name.lower() for name in examining._ranges()}
    assert {"torch", "numpy", "diffusers", "accelerate", "monai", "captum", "peft", "transformers"} <= needed
    assert "pytest" not in needed  # an extra
    assert needed <= {check.what.lower() for check in checks}


def test_the_slow_exact_product_is_told(only: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    from unalike.similarity import products

    only("products")
    monkeypatch.setattr(products, "_int8_is_exact", lambda kind: False)
    (check,) = examine_machine()
    assert check.state == "slow"
    assert check.found.startswith("float32")


def _specifier(text: str) -> Any:
    from packaging.specifiers import SpecifierSet

    return SpecifierSet(text)


def test_a_library_that_cannot_be_imported_is_a_line(
    only: Callable[..., None], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    only("libraries")
    real = importlib.import_module

    def broken(name: str, package: str | None = None) -> Any:
        if name == "monai":
            raise OSError("libsomething.so:\n undefined symbol")
        return real(name, package)

    monkeypatch.setattr(examining.importlib, "import_module", broken)
    monkeypatch.setattr(examining, "_ranges", lambda: {"monai": _specifier(">=1"), "numpy": _specifier(">=2")})
    found = examine_machine()
    assert named(found, "monai").state == "broken"
    assert "OSError: libsomething.so: undefined symbol" in named(found, "monai").found
    assert named(found, "numpy").state == "ok"
    with pytest.raises(RunError, match="monai") as raised:
        doctor()
    assert raised.value.exit_code == 1
    assert "pip install --force-reinstall 'monai>=1'" in capsys.readouterr().out


def test_missing_and_unfitting_versions_are_told(only: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    only("libraries")
    ranges = {"numpy": _specifier(">=99"), "no-such-library": _specifier(">=1")}
    monkeypatch.setattr(examining, "_ranges", lambda: ranges)
    found = examine_machine()
    assert named(found, "numpy").state == "broken"
    assert "outside >=99" in named(found, "numpy").found
    assert named(found, "no-such-library").state == "missing"
    assert all(check.stops for check in found)


def test_a_look_that_fails_is_a_line_and_not_needed_things_stop_nothing(
    only: Callable[..., None], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> Any:
        raise RuntimeError("no such thing")

    only()
    monkeypatch.setattr(examining, "_terminal", fail)
    (check,) = examine_machine()
    assert (check.what, check.state, check.found) == ("terminal", "broken", "RuntimeError: no such thing")
    doctor(json=True)
    document = json.loads(capsys.readouterr().out)
    assert document["works"] is True
    assert document["checks"][0]["state"] == "broken"


def test_weights_are_compared_with_their_names(
    only: Callable[..., None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    only("weights")
    folder = tmp_path / "unalike" / "weights"
    folder.mkdir(parents=True)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert [check.what for check in examine_machine()] == ["weights, Inception"]
    # The SHA-256 of "abc" begins with ba7816bf (FIPS 180-2, appendix B.1).
    (folder / "inception-ba7816bf.pth").write_bytes(b"abc")
    (folder / "resnet18-00000000.pth").write_bytes(b"abc")
    (folder / "half.partial").write_bytes(b"abc")
    found = examine_machine()
    assert {check.what: check.state for check in found} == {
        "weights, inception-ba7816bf.pth": "ok",
        "weights, resnet18-00000000.pth": "broken",
    }


def test_folders_without_permission_or_room_are_told(
    only: Callable[..., None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    only("disk")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "not" / "there"))
    monkeypatch.setattr(examining, "LITTLE_ROOM", 2**80)

    def refuse(*_: Any, dir: Path) -> Any:  # noqa: A002 - the name is tempfile's
        if dir == tmp_path:
            raise PermissionError(13, "Permission denied")
        return real(dir=dir)

    real = examining.tempfile.TemporaryFile
    monkeypatch.setattr(examining.tempfile, "TemporaryFile", refuse)
    found = examine_machine()
    assert named(found, "disk, cache").state == "broken"
    assert "Permission denied" in named(found, "disk, cache").found
    assert not named(found, "disk, cache").stops
    assert named(found, "disk, here").state == "slow"
    assert named(found, "disk, temporary files").state == "ok"
    assert list(tmp_path.iterdir()) == []


def test_the_doctor_itself_needs_no_library(tmp_path: Path) -> None:
    code = (
        "import sys, builtins\n"
        "real = builtins.__import__\n"
        "def none(name, *rest):\n"
        "    if name.split('.')[0] in ('numpy', 'torch', 'cyclopts', 'rich', 'packaging'):\n"
        "        raise ImportError(name)\n"
        "    return real(name, *rest)\n"
        "builtins.__import__ = none\n"
        "from unalike.study.doctor import examine_machine\n"
        "import unalike.study.doctor as d\n"
        "d.importlib.import_module = lambda name, package=None: none(name)\n"
        "print(len(examine_machine()))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 10
    assert builtins.__import__ is not None


def test_no_connection_is_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("the doctor phoned")

    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    assert [check for check in examine_machine() if "phoned" in check.found] == []


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("unalike au", "audit"),
        ("unalike train diffusion --tracker tens", "tensorboard"),
        ("unalike audit --agai", "--against"),
    ],
)
def test_bash_completes(line: str, expected: str) -> None:
    words = line.split()
    spelled = " ".join(f"'{word}'" for word in words)
    script = (
        f"{completion_script('bash')}\nCOMP_WORDS=({spelled}); COMP_CWORD={len(words) - 1}\n"
        "_unalike unalike\nprintf '%s\\n' \"${COMPREPLY[@]}\""
    )
    done = subprocess.run(["bash", "--norc"], input=script, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [expected]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_scripts_name_every_command_and_say_how_to_install_them(
    shell: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(completing, "completion_script", completion_script)
    completion(shell)
    printed = capsys.readouterr()
    names = [name for name in build_app() if not name.startswith("-")]
    assert len(names) > 15
    for name in names:
        assert name in printed.out
    assert f"unalike completion {shell} > " in printed.err
    assert printed.out.strip() == completion_script(shell).strip()
