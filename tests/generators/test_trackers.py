"""Trackers: what they are told, that they change nothing, and that their failures stop no training."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import pytest
from safetensors.torch import load_file

from unalike import folders
from unalike.errors import SettingsError
from unalike.generators import trackers
from unalike.generators.diffusion.settings import DiffusionSettings
from unalike.generators.inversion.settings import InversionSettings
from unalike.generators.trackers import TrackerSettings, send, start_trackers, tellable, tracking
from unalike.runs.settings import WatchSettings
from unalike.runs.train import train_generator

MakeCohort = Callable[..., Path]
TINY: dict[str, Any] = {
    "steps": 4,
    "base_channels": 8,
    "channel_multipliers": (1, 2),
    "batch_size": 4,
    "warmup": 2,
    "log_every": 1,
    "timesteps": 100,
    "precision": "float32",
}
TINY_GAN: dict[str, Any] = {
    "steps": 2,
    "batch_size": 4,
    "log_every": 1,
    "capacity": 32,
    "max_features": 8,
    "latent": 8,
    "mapping_layers": 1,
    "precision": "float32",
}


class Recorder:
    """In place of Accelerate's tracker: keeps what it is told, and fails where it is asked to."""

    def __init__(self, fails: str = "") -> None:
        self.fails, self.told, self.calls = fails, {}, []
        self.lines: list[tuple[int | None, dict[str, float]]] = []
        self.defined: list[str] = []
        self.tracker = self

    def _do(self, call: str) -> None:
        self.calls.append(call)
        if call == self.fails:
            raise ConnectionError("the server\nis away")

    def start(self) -> None:
        self._do("start")

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self._do("store")
        self.told = values

    def define_metric(self, name: str, *, step_metric: str) -> None:
        self.defined.append(step_metric)

    def log(self, values: dict[str, float], step: int | None = None) -> None:
        self._do("log")
        self.lines.append((step, values))

    def finish(self) -> None:
        self._do("finish")


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    kept = Recorder()
    monkeypatch.setattr(trackers, "_build", lambda *_: kept)
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda _: object())
    return kept


def _train(cohort: Path, out: Path, **options: Any) -> Path:
    return train_generator(kind="diffusion", cohort=cohort, out=out, settings=TINY, device="cpu", **options)


def _log(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / folders.LOG).read_text().splitlines()]


def _weights(run: Path) -> dict[str, list[float]]:
    (file,) = sorted((run / "checkpoints").glob(f"*{TINY['steps']}/state.safetensors"))
    return {name: tensor.tolist() for name, tensor in load_file(file).items()}


def test_tensorboard_holds_the_losses_of_the_log_and_the_run_is_the_one_without_it(
    make_cohort: MakeCohort, tmp_path: Path
) -> None:
    pytest.importorskip("tensorboard")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        cohort = make_cohort()
        run = _train(cohort, tmp_path / "shown", trackers=TrackerSettings(("tensorboard",)))
        events = EventAccumulator(str(run / "tracker" / "tensorboard"))
        events.Reload()
    lines = _log(run)
    for key in ("loss", "learning_rate"):
        seen = [(event.step, event.value) for event in events.Scalars(f"train/{key}")]
        assert [step for step, _ in seen] == [1, 2, 3, 4]
        assert [value for _, value in seen] == pytest.approx([line[key] for line in lines], rel=1e-6)
    plain = _train(cohort, tmp_path / "plain")
    headers = [folders.read_header(each, kind="run") for each in (run, plain)]
    assert headers[0].settings == headers[1].settings
    assert headers[0].content["model_digest"] == headers[1].content["model_digest"]
    assert _weights(run) == _weights(plain)


def test_a_stylegan_is_shown_and_the_tracker_finished(
    make_cohort: MakeCohort, tmp_path: Path, recorder: Recorder
) -> None:
    run = train_generator(
        kind="stylegan",
        cohort=make_cohort(),
        out=tmp_path / "run",
        settings=TINY_GAN,
        device="cpu",
        trackers=TrackerSettings(("mlflow",)),
    )
    names = set(_log(run)[0]) - {"step"}
    assert [step for step, _ in recorder.lines] == [1, 2]
    assert set(recorder.lines[0][1]) == {f"train/{name}" for name in names}
    assert recorder.calls == ["start", "store", "log", "log", "finish"]
    assert recorder.told["generator"] == "stylegan"
    assert recorder.told["capacity"] == 32


def test_a_failing_tracker_is_told_once_and_training_goes_on(
    make_cohort: MakeCohort, tmp_path: Path, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(trackers, "tell", said.append)
    recorder.fails = "log"
    run = _train(make_cohort(), tmp_path / "run", trackers=TrackerSettings(("mlflow",)))
    assert len(_log(run)) == 4
    assert len(said) == 1
    assert "--tracker mlflow failed (the server is away)" in said[0]
    assert recorder.calls == ["start", "store", "log", "finish"]


@pytest.mark.parametrize("stage", ["start", "store", "finish"])
def test_whatever_fails_is_told_once(
    stage: str, tmp_path: Path, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(trackers, "tell", said.append)
    recorder.fails = stage
    with tracking(TrackerSettings(("mlflow",)), out=tmp_path, name="run", about={}):
        start_trackers()
        send({"step": 1, "loss": 1.0}, under="train")
    assert len(said) == 1
    assert len(recorder.lines) == (1 if stage == "finish" else 0)


def test_an_interrupted_training_is_finished_too(
    make_cohort: MakeCohort, tmp_path: Path, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    from unalike.generators.loop import Training

    cohort, note = make_cohort(), Training.note

    presses = iter([KeyboardInterrupt])

    def interrupted(self: Any, unseen: list[Any], seconds: float) -> str:
        for press in presses if self.step == 2 else ():
            raise press
        return note(self, unseen, seconds)

    wanted = TrackerSettings(("mlflow",))
    monkeypatch.setattr(Training, "note", interrupted)
    with pytest.raises(KeyboardInterrupt):
        _train(cohort, tmp_path / "run", trackers=wanted)
    assert [step for step, _ in recorder.lines] == [1, 2]
    assert recorder.calls[-1] == "finish"
    run = _train(cohort, tmp_path / "run")  # resumed without a tracker: it is no part of whose run this is
    assert [line["step"] for line in _log(run)][-1] == 4
    assert recorder.calls.count("start") == 1


def test_weights_and_biases_counts_by_a_step_that_may_begin_again(tmp_path: Path, recorder: Recorder) -> None:
    with tracking(TrackerSettings(("wandb", "wandb")), out=tmp_path, name="run", about={"seed": 3}):
        start_trackers()
        start_trackers()
        send({"step": 9, "loss": 1.5}, under="autoencoder")
        send({"step": 1, "loss": 0.5, "of": "text", "bad": float("nan")}, under="train")
    assert recorder.defined == ["step"]
    assert recorder.lines == [(None, {"autoencoder/loss": 1.5, "step": 9}), (None, {"train/loss": 0.5, "step": 1})]
    assert recorder.told == {"seed": 3}
    send({"step": 2, "loss": 0.1}, under="train")  # nothing is open any more
    assert len(recorder.lines) == 2


def test_nothing_is_started_where_the_training_is_refused(
    make_cohort: MakeCohort, tmp_path: Path, recorder: Recorder
) -> None:
    cohort = make_cohort()
    with pytest.raises(SettingsError, match="batch"):
        train_generator(
            kind="stylegan",
            cohort=cohort,
            out=tmp_path / "run",
            settings=TINY_GAN | {"batch_size": 64},
            device="cpu",
            trackers=TrackerSettings(("tensorboard",)),
        )
    assert recorder.calls == []
    assert not (tmp_path / "run").exists()


def test_looks_for_copies_are_sent_when_they_are_kept(tmp_path: Path, recorder: Recorder) -> None:
    from unalike.generators.watching import Glance

    kept: list[Any] = []

    @dataclass
    class Fake:
        every: int = 2
        steps: int = 5
        strict: bool = False
        stopped: bool = False

        def look(self, draw: Any, *, step: int) -> Glance:
            return Glance(
                {"step": step, "flagged_share": 0.25, "best": True, "features": "ab12"}, best=True, stop=False
            )

        def record(self, glance: Glance) -> None:
            kept.append(glance)

        def seen(self, step: int) -> bool:
            return step == 7

    shown = trackers.ShownLooks(Fake())
    assert (shown.every, shown.steps, shown.strict, shown.stopped, shown.seen(7)) == (2, 5, False, False, True)
    with tracking(TrackerSettings(("mlflow",)), out=tmp_path, name="run", about={}):
        start_trackers()
        shown.record(shown.look(None, step=2))
    assert len(kept) == 1
    assert recorder.lines == [(2, {"watch/flagged_share": 0.25, "watch/best": 1.0})]


def test_only_numbers_and_choices_of_settings_are_told() -> None:
    @dataclass(frozen=True)
    class Settings:
        rate: float = 0.5
        sides: tuple[int, ...] = (1, 2)
        kind: Literal["a", "b"] = "b"
        base: str = "/data/mueller"
        condition: tuple[str, ...] = ("grade",)
        nothing: tuple[str, ...] = ()
        wanted: bool = True

    assert tellable(Settings()) == {"rate": 0.5, "sides": "1, 2", "kind": "b", "wanted": True}
    told = tellable(InversionSettings(base="/data/mueller/sd", token="<mueller>", template="a scan of {}"))
    assert "mueller" not in str(told)
    assert not {"base", "base_config", "token", "initialize", "template"} & set(told)
    assert tellable(DiffusionSettings(condition=("label",)))["prediction"] == "v_prediction"
    assert "condition" not in tellable(DiffusionSettings(condition=("label",)))
    assert tellable(WatchSettings())["samples"] == 200


@pytest.mark.parametrize("name", ["mlflow", "wandb", "tensorboard"])
def test_a_missing_package_is_refused_before_anything_is_made(
    name: Any, make_cohort: MakeCohort, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(SettingsError, match=f"pip install {name}"):
        _train(make_cohort(), tmp_path / "run", trackers=TrackerSettings((name,)))
    assert not (tmp_path / "run").exists()


def test_unknown_trackers_odd_projects_and_controls_are_refused(make_cohort: MakeCohort, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="tensorboard, mlflow, wandb"):
        TrackerSettings(("neptune",))  # type: ignore[arg-type]
    for project in ("", "a'b", "../x", "x" * 101):
        with pytest.raises(SettingsError, match="--tracker-project"):
            TrackerSettings(("mlflow",), project)
    with pytest.raises(SettingsError, match="not trained step by step"):
        train_generator(
            kind="gaussian",
            cohort=make_cohort(),
            out=tmp_path / "run",
            trackers=TrackerSettings(("tensorboard",)),
        )


@pytest.fixture
def fake_wandb(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    asked: dict[str, Any] = {}

    class Run:
        def define_metric(self, *_: Any, **__: Any) -> None: ...
        def log(self, values: Any, step: Any = None) -> None:
            asked.setdefault("lines", []).append(values)

        def finish(self) -> None:
            asked["finished"] = True

    module = ModuleType("wandb")
    module.init = lambda **options: asked.update(options) or Run()  # type: ignore[attr-defined]
    module.config = type("Config", (), {"update": lambda self, values, **_: asked.update(config=values)})()  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", module)
    return asked


def test_weights_and_biases_is_asked_to_keep_paths_code_and_the_command_line_to_itself(
    fake_wandb: dict[str, Any], tmp_path: Path
) -> None:
    from accelerate import PartialState

    PartialState(cpu=True)
    wanted = TrackerSettings(("wandb",), "study-7")
    with tracking(wanted, out=tmp_path, name="diffusion-1234abcd", about={"seed": 0}):
        start_trackers()
        send({"step": 1, "loss": 2.0}, under="train")
    assert fake_wandb["project"] == "study-7"
    assert fake_wandb["name"] == "diffusion-1234abcd"
    assert fake_wandb["dir"] == str(tmp_path / "tracker")
    quiet = fake_wandb["settings"]
    assert quiet["x_disable_meta"]
    assert quiet["disable_git"]
    assert quiet["disable_code"]
    assert quiet["console"] == "off"
    assert fake_wandb["config"] == {"seed": 0}
    assert fake_wandb["lines"] == [{"train/loss": 2.0, "step": 1}]
    assert fake_wandb["finished"]


def test_mlflow_is_asked_to_keep_paths_and_users_to_itself(tmp_path: Path) -> None:
    built = trackers._build("mlflow", TrackerSettings(("mlflow",), "study-7"), tmp_path, "run")
    assert (built.experiment_name, built.run_name) == ("study-7", "run")
    for tag in ("source.name", "user", "source.git.repoURL", "source.git.commit"):
        assert built.tags[f"mlflow.{tag}"] in ("", "unalike", "unknown")
