"""The demo in miniature: four generators, one page, resumed where it stopped."""

from __future__ import annotations

from pathlib import Path

import pytest

from unalike import folders
from unalike.errors import FolderError, SettingsError
from unalike.study import demo
from unalike.study.demo import run_demo
from unalike.study.settings import DemoSettings

SMALL = DemoSettings(subjects=60, size=16, steps=2, count=24, few=4, holdout=0.5)


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten sampling steps would do, fifty are the default: the demo's own sampler settings stay, the network is tiny."""
    from unalike.generators.diffusion.settings import DiffusionSettings

    def tiny(*, steps: int) -> DiffusionSettings:
        return DiffusionSettings(steps=steps, base_channels=8, channel_multipliers=(1, 1), batch_size=2)

    monkeypatch.setattr(demo, "DiffusionSettings", tiny)


@pytest.mark.usefixtures("fast")
def test_the_demo_finds_the_memorizer_and_clears_the_gaussian_and_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "demo"
    real = demo.train_generator

    def interrupted(*, kind: str, **options: object) -> object:
        if kind == "diffusion":
            raise KeyboardInterrupt
        return real(kind=kind, **options)

    monkeypatch.setattr(demo, "train_generator", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_demo(out=out, settings=SMALL)
    assert folders.kind_of(out) is None
    assert folders.kind_of(out / "audits" / "memorizer") == "audit"
    monkeypatch.setattr(demo, "train_generator", real)
    capsys.readouterr()
    result = run_demo(out=out, settings=SMALL)
    assert "Training memorizer: done already" in capsys.readouterr().err
    rows = {row.name: row for row in result.rows}
    assert list(rows) == ["gaussian", "memorizer", "diffusion, 4 subjects", "diffusion, all subjects"]
    assert rows["memorizer"].flagged >= 0.9 * 24
    assert rows["gaussian"].flagged == 0
    assert result.report.is_file()
    assert "memorizer" in result.table()
    assert run_demo(out=out, settings=SMALL) == result
    with pytest.raises(FolderError, match="demo with other settings"):
        run_demo(out=out, settings=SMALL, seed=1)
    with pytest.raises(SettingsError, match="at least 30"):
        run_demo(out=tmp_path / "other", settings=DemoSettings(subjects=5))


@pytest.mark.usefixtures("fast")
def test_the_demo_on_pictures(make_pictures, tmp_path: Path) -> None:
    source = make_pictures(subjects=60, images=1)
    settings = DemoSettings(data=source, size=16, steps=1, count=24, few=4, holdout=0.5, subject_pattern=r"(p\d+)_")
    result = run_demo(out=tmp_path / "demo", settings=settings)
    assert {row.name: row.decision for row in result.rows}["memorizer"] == "copies found"
    header = folders.read_header(tmp_path / "demo", kind="demo")
    assert header.settings["size"] == 16
