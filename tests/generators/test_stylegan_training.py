"""StyleGAN training: exact resuming, shared batches, lazy penalties, and what ends or worries a training.

The tests with killed and several processes have a server that imports the program once and forks a child for each
order, as in ``test_processes``.
"""

from __future__ import annotations

import json
import math
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tests.generators.server import Server

from unalike import folders
from unalike.cohort.store import ImageWriter, open_images
from unalike.errors import FolderError, InputError, NonFiniteLossError, SettingsError
from unalike.generators.data import open_train_images
from unalike.generators.processes import join_processes
from unalike.generators.settings import resolve_settings
from unalike.generators.stylegan import train as stylegan
from unalike.generators.stylegan.network import build_networks, choose_shape
from unalike.generators.stylegan.settings import StyleganSettings
from unalike.generators.stylegan.train import ALIKE, SETTLED, Adversaries
from unalike.runs.sample import draw_samples
from unalike.runs.train import train_generator

MakeCohort = Callable[..., Path]
State = dict[str, Any]

TINY: dict[str, Any] = {
    "capacity": 64,
    "max_features": 8,
    "latent": 8,
    "mapping_layers": 1,
    "batch_size": 4,
    "steps": 4,
    "checkpoint_every": 0,
    "log_every": 1,
    "precision": "float32",
}
# Both penalties and the adaptation fall into a few updates, and the strength of the augmentation moves.
BUSY: dict[str, Any] = {"r1_every": 3, "path_every": 2, "augment_strength": 0.4, "augment_kimg": 0.2, "steps": 9}


def _train(cohort: Path, out: Path, **settings: Any) -> Path:
    return train_generator(kind="stylegan", cohort=cohort, out=out, settings=TINY | settings, device="cpu")


def _write_cohort(out: Path, labels: Sequence[str], *, mask: bool = False, size: int = 8) -> Path:
    """A train image for each label, of a subject of its own; with a ``mask`` channel of three levels."""
    channels = ("t1", "mask") if mask else ("t1",)
    folders.begin_folder(out, kind="cohort", settings={})
    writer = ImageWriter(out, channels=channels, height=size, width=size, dtype=np.dtype(np.uint8))
    random = np.random.default_rng(3)
    for number, label in enumerate(labels):
        image = random.integers(0, 255, (len(channels), size, size)).astype(np.uint8)
        if mask:
            image[1] = random.choice([0, 50, 120], (size, size))
        name = {"subject": f"s{number}", "source": f"f{number}", "slice": 0, "role": "train", "label": label}
        writer.append(image, name)
    folders.finish_folder(out, kind="cohort", settings={}, seed=0, inputs={}, content=writer.close())
    return out


def _checkpoints(run: Path) -> list[Path]:
    return sorted(place for place in (run / "checkpoints").glob("*") if place.suffix != ".partial")


def _state(run: Path, step: int = 0) -> State:
    """All tensors of the checkpoint of this update, or of the newest."""
    place = run / "checkpoints" / f"step-{step:08d}" if step else _checkpoints(run)[-1]
    return load_file(place / "state.safetensors")


def _log(run: Path) -> list[dict[str, float]]:
    """A line for each update; of a step that stands there twice the last line counts."""
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [line for _, line in sorted({line["step"]: line for line in lines}.items())]


def _content(run: Path) -> Any:
    return folders.read_header(run, kind="run").content


def _assert_same_run(run: Path, whole: Path) -> None:
    found, expected = _state(run), _state(whole)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name
    assert _content(run)["model_digest"] == _content(whole)["model_digest"]
    assert not list(run.rglob("*.partial"))


def _joined(state: State, *beginnings: str) -> torch.Tensor:
    return torch.cat([tensor.ravel() for name, tensor in sorted(state.items()) if name.startswith(beginnings)])


WEIGHTS = ("generator/weights/", "discriminator/weights/")
GRADIENTS = ("generator/exp_avg/", "discriminator/exp_avg/")  # β₁ = 0: the first moment is the last gradient


def _assert_close_run(run: Path, whole: Path) -> None:
    """The first update has the same gradients but for rounding, and the last one the same weights within 1e-4."""
    first, expected = (_joined(_state(each, 1), *GRADIENTS) for each in (run, whole))
    assert expected.norm() > 0
    assert (first - expected).norm() < 1e-4 * expected.norm()
    last, expected = (_joined(_state(each), *WEIGHTS) for each in (run, whole))
    assert (last - expected).norm() < 1e-4 * expected.norm()
    for name in ("loss", "discriminator_loss", "augment", "r1", "path_length"):
        np.testing.assert_allclose([e[name] for e in _log(run)], [e[name] for e in _log(whole)], rtol=1e-3, atol=1e-6)


class _Gone(BaseException):
    pass


# Resuming


@pytest.mark.parametrize(
    ("conditional", "mask", "more"),
    [
        (False, False, {}),
        (True, True, {}),
        (False, False, {"precision": "bfloat16", "augment": "fixed", "augment_strength": 0.5}),
    ],
)
def test_a_resumed_training_equals_an_uninterrupted_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, conditional: bool, mask: bool, more: dict[str, Any]
) -> None:
    cohort = _write_cohort(tmp_path / "cohort", "abaabbab", mask=mask)
    settings = BUSY | more | ({"condition": "label"} if conditional else {})
    whole, run = _train(cohort, tmp_path / "whole", **settings), tmp_path / "run"
    update = Adversaries.update
    # Before and after updates with a penalty of either network, with both, and between two adaptations.
    for gone in (1, 2, 3, 4, 6, 7):
        with monkeypatch.context() as patch:

            def stopping(self: Adversaries, n: int, parts: Any, gone: int = gone) -> Any:
                if n == gone:
                    raise _Gone
                return update(self, n, parts)

            patch.setattr(Adversaries, "update", stopping)
            with pytest.raises(_Gone):
                _train(cohort, run, **settings)
        assert _checkpoints(run)[-1].name == f"step-{gone:08d}"
    _train(cohort, run, **settings)
    _assert_same_run(run, whole)
    state = _state(run)
    assert {name.split("/")[0] for name in state} == {
        "generator", "discriminator", "average-0.999", "penalties", "signs", "strength",
    }  # fmt: skip
    assert [e["augment"] for e in _log(run)] == [e["augment"] for e in _log(whole)]
    assert len({e["augment"] for e in _log(run)}) == (1 if more else 3)  # it has adapted twice, or not at all
    assert _content(run)["augment_strength"] == state["strength"][0].item()
    assert _content(run)["diversity"] == state["strength"][1].item() > 0
    assert _content(run)["label_counts"] == ({"a": 4, "b": 4} if conditional else {})


def test_ctrl_c_in_an_update_leaves_the_checkpoint_after_it(
    make_cohort: MakeCohort, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cohort = make_cohort()
    settings = {"checkpoint_every": 600, "log_every": 20}
    whole = _train(cohort, tmp_path / "whole", **settings)
    update = Adversaries.update

    def interrupted(self: Adversaries, n: int, parts: Any) -> Any:
        if n == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return update(self, n, parts)

    with monkeypatch.context() as patch:
        patch.setattr(Adversaries, "update", interrupted)
        with pytest.raises(KeyboardInterrupt):
            _train(cohort, tmp_path / "run", **settings)
    assert [place.name for place in _checkpoints(tmp_path / "run")] == ["step-00000003"]
    _train(cohort, tmp_path / "run", **settings)
    a, b = _state(tmp_path / "run"), _state(whole)
    assert all(torch.equal(a[name], b[name]) for name in b if name != "strength")  # diversity is of the log's lines
    assert _content(tmp_path / "run")["model_digest"] == _content(whole)["model_digest"]


def test_seeds_reproduce_and_differ(make_cohort: MakeCohort, tmp_path: Path) -> None:
    cohort = make_cohort()
    digests = []
    for index, seed in enumerate((0, 0, 1)):
        run = train_generator(
            kind="stylegan", cohort=cohort, out=tmp_path / str(index), settings=TINY | {"steps": 2}, seed=seed
        )
        digests.append(_content(run)["model_digest"])
    assert digests[0] == digests[1] != digests[2]


def test_checkpoints_of_others_are_refused_in_one_line(
    make_cohort: MakeCohort, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cohort, run = make_cohort(), tmp_path / "run"
    monkeypatch.setattr(stylegan, "save_model", lambda *given, **named: (_ for _ in ()).throw(_Gone))
    with pytest.raises(_Gone):
        _train(cohort, run, steps=1)
    for other in ({"gamma": 7.0}, {"latent": 9}, {"steps": 2}):
        with pytest.raises(FolderError) as refused:
            _train(cohort, run, **({"steps": 1} | other))
        assert len(str(refused.value).splitlines()) == 1
    images = open_train_images(open_images(cohort), subjects=None, seed=0)
    with pytest.raises(FolderError, match=r"another cohort or of other settings\. Train into another folder"):
        stylegan.train_stylegan(
            images,
            out=run,
            settings=resolve_settings(StyleganSettings, TINY | {"steps": 1}),
            seed=0,
            processes=join_processes("cpu"),
            identity="another",
        )
    assert [place.name for place in _checkpoints(run)] == ["step-00000001"]


# Shared batches


def test_parts_of_four_make_the_same_updates(tmp_path: Path) -> None:
    cohort = _write_cohort(tmp_path / "cohort", "abaabbab")
    settings = BUSY | {"batch_size": 8, "steps": 4, "keep": 4, "condition": "label"}
    runs = [_train(cohort, tmp_path / str(parts), accumulate=parts, **settings) for parts in (1, 2)]
    _assert_close_run(runs[1], runs[0])


def test_two_processes_make_the_updates_of_one_and_draw_its_samples(
    server: Server, labelled: Path, tmp_path: Path
) -> None:
    settings = TINY | BUSY | {"batch_size": 8, "steps": 4, "keep": 4, "condition": "label"}
    order = {"kind": "stylegan", "cohort": str(labelled), "settings": settings, "device": "cpu"}
    for processes in (1, 2):
        codes, said = server.run(order | {"out": str(tmp_path / str(processes))}, processes=processes)
        assert set(codes) == {0}, said
    assert [_content(tmp_path / str(processes))["processes"] for processes in (1, 2)] == [1, 2]
    _assert_close_run(tmp_path / "2", tmp_path / "1")
    drawing = {"batch_size": 3, "precision": "float32"}
    order = {"run": str(tmp_path / "1"), "count": 10, "settings": drawing, "device": "cpu"}
    drawn, contents = [], []
    for processes in (1, 2):
        out = tmp_path / f"drawn-by-{processes}"
        codes, said = server.run(order | {"out": str(out)}, processes=processes)
        assert set(codes) == {0}, said
        samples = open_images(out, kind="samples")
        drawn.append((samples.read(samples.rows("synthetic")).tolist(), samples.column("label").tolist()))
        contents.append(folders.read_header(out, kind="samples").content)
    assert drawn[0] == drawn[1]
    assert contents[0] == contents[1]


def test_killed_at_ten_random_moments_it_resumes_and_ends_equal(server: Server, labelled: Path, tmp_path: Path) -> None:
    settings = TINY | BUSY | {"steps": 25}
    order = {"kind": "stylegan", "cohort": str(labelled), "settings": settings, "device": "cpu"}
    codes, said = server.run(order | {"out": str(tmp_path / "whole")})
    assert codes == [0], said
    run, random = tmp_path / "run", np.random.default_rng(1)
    killed, newest = 0, 0
    for _ in range(10):
        codes, said = server.run(order | {"out": str(run)}, kill_after=random.uniform(0, 0.05), watched=run)
        if codes == [0]:
            break
        assert codes == [-signal.SIGKILL], said
        killed += 1
        for place in _checkpoints(run):
            assert json.loads((place / "state.json").read_text())["step"] == int(place.name[-8:])
            assert load_file(place / "state.safetensors")
        now = int(_checkpoints(run)[-1].name[-8:])
        assert now > newest  # it went on, and nothing that was finished is lost
        newest = now
    else:
        codes, said = server.run(order | {"out": str(run)})
        assert codes == [0], said
    assert killed
    _assert_same_run(run, tmp_path / "whole")


# Penalties and optimizers


def _adversaries(cohort: Path, **settings: Any) -> Adversaries:
    images = open_train_images(open_images(cohort), subjects=None, seed=0)
    chosen = resolve_settings(StyleganSettings, TINY | settings)
    height, width = images.cohort.size
    shape = choose_shape(chosen, channels=len(images.cohort.channels), height=height, width=width)
    networks = build_networks(shape, seed=0)
    processes = join_processes("cpu")
    return Adversaries(images, chosen, *networks, labels=[], classes=[], seed=0, processes=processes)


def test_adams_constants_are_corrected_for_lazy_penalties(make_cohort: MakeCohort) -> None:
    learner = _adversaries(make_cohort(), learning_rate=0.002)
    groups = {name: optimizer.param_groups[0] for name, optimizer in learner.optimizers.items()}
    # Every 16 updates the discriminator makes 17 steps, every 4 the generator 5 (Karras et al. 2020, appendix B).
    for name, share in (("discriminator/", 16 / 17), ("generator/", 4 / 5)):
        assert groups[name]["lr"] == pytest.approx(0.002 * share)
        assert groups[name]["betas"] == pytest.approx((0, 0.99**share))
        assert groups[name]["eps"] == 1e-8
        assert groups[name].get("weight_decay", 0) == 0


@pytest.mark.parametrize("none", [{"gamma": 0.0, "path_weight": 0.0}, {"r1_every": 0, "path_weight": 0.0}])
def test_without_penalties_adam_has_its_own_constants(make_cohort: MakeCohort, none: dict[str, Any]) -> None:
    for optimizer in _adversaries(make_cohort(), learning_rate=0.002, **none).optimizers.values():
        assert optimizer.param_groups[0]["lr"] == 0.002
        assert optimizer.param_groups[0]["betas"] == (0.0, 0.99)


@pytest.mark.parametrize("every", [0, 1, 3])
def test_penalties_fall_due_as_often_as_asked_for(make_cohort: MakeCohort, tmp_path: Path, every: int) -> None:
    rarely = {"r1_every": every, "path_every": every} if every else {"r1_every": 0, "path_weight": 0.0}
    learner = _adversaries(make_cohort(), **rarely)
    taken: list[str] = []
    step = learner._step
    learner._step = lambda name, works: taken.append(name) or step(name, works)  # type: ignore[func-returns-value,method-assign]
    for n in range(4):
        said = learner.update(n, [learner.batch(n, slice(0, 4))])
        assert said.shape == (len(Adversaries.numbers),)
        assert said.isfinite().all()
        assert (said[-2:] > 0).all() == (every > 0)
    due = 0 if every == 0 else -(-4 // every)
    assert taken.count("generator/") == taken.count("discriminator/") == 4 + due


def test_a_lazy_penalty_weighs_as_much_more(make_cohort: MakeCohort) -> None:
    cohort, losses = make_cohort(), {}
    for every in (1, 8):
        learner = _adversaries(cohort, r1_every=every, path_every=every, gamma=3.0)
        part = learner.batch(0, slice(0, 4))
        learner.compiled = learner.generator.synthesize, learner.discriminator
        loss, told = learner._smooth(0, part)()
        assert loss.item() == pytest.approx(1.5 * every * told.item())
        losses[every] = learner._straighten(0, part)()[0].item()
    assert losses[8] == pytest.approx(8 * losses[1])


def test_the_batch_of_real_images_is_the_cohorts_in_the_models_space(make_cohort: MakeCohort) -> None:
    learner = _adversaries(make_cohort(), batch_size=8)
    whole = learner.batch(0, slice(0, 8))
    real = learner.images.read_all().astype(np.float64) / 127.5 - 1
    found = sorted(whole.images.double().flatten(1).tolist())
    np.testing.assert_allclose(found, sorted(real.reshape(8, -1).tolist()), atol=1e-6)
    parts = [learner.batch(0, slice(begin, begin + 4)).images for begin in (0, 4)]
    assert torch.equal(torch.cat(parts), whole.images)


def test_mixed_styles_are_of_two_latents_from_some_layer_on(make_cohort: MakeCohort) -> None:
    learner = _adversaries(make_cohort(), mixing=0.5, batch_size=8)
    layers = learner.generator.shape.layers
    mixed = 0
    for n in range(20):
        ws, noise = learner._styles(n, learner.batch(n, slice(0, 8)), "path")
        assert noise.shape == (8, learner.generator.shape.noise_count)
        for styles in ws:
            same = (styles == styles[0]).all(dim=1).tolist()
            assert same == sorted(same, reverse=True)  # one cut, never back
            mixed += not all(same)
            assert len({tuple(row) for row in styles.tolist()}) <= 2
    assert layers == 4
    assert 0.35 < mixed / 160 < 0.65  # ½ ± 4 standard deviations


# Learning


def _distances(run: Path, out: Path, modes: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Grey levels (64, 8, 8) of samples, and how far each is from each mode (modes, 64), root mean square."""
    draw_samples(run=run, out=out, count=64, settings={"precision": "float32"}, device="cpu")
    samples = open_images(out, kind="samples")
    drawn = samples.read(samples.rows("synthetic"))[:, 0].astype(float)
    return drawn, np.stack([np.sqrt(np.square(drawn - mode).mean(axis=(1, 2))) for mode in modes])


def test_a_toy_of_two_modes_is_learned(make_cohort: MakeCohort, tmp_path: Path) -> None:
    modes = (30, 120)  # dark and grey images: a mean of 75, a deviation of 45
    pixels = np.repeat(np.resize(np.array(modes, np.uint8), (20, 1, 1, 1)), 64, axis=1).reshape(20, 1, 8, 8)
    cohort = make_cohort(subjects=20, slices=1, holdout=4, pixels=pixels)
    settings = {"batch_size": 8, "mixing": 0.0, "path_weight": 0.0, "r1_every": 4, "gamma": 0.3, "learning_rate": 0.01}
    settings |= {"augment": "none", "ema_decays": (0.98,), "checkpoint_every": 600, "log_every": 20}
    before = _train(cohort, tmp_path / "before", **settings, steps=1)
    after = _train(cohort, tmp_path / "after", **settings, steps=250)
    assert np.median(_distances(before, tmp_path / "drawn-before", modes)[1].min(axis=0)) > 35
    drawn, distances = _distances(after, tmp_path / "drawn-after", modes)
    # Wide margins: what it learns exactly depends on the seed, and on a processor's rounding.
    assert np.median(distances.min(axis=0)) < 25
    assert abs(drawn.mean() - 75) < 40
    assert 20 < np.sqrt(drawn.var(axis=0).mean()) < 70
    assert 0.1 < (distances.argmin(axis=0) == 0).mean() < 0.9


# What ends or worries a training


def test_divergence_names_the_update_and_keeps_the_checkpoint_before(
    make_cohort: MakeCohort, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = Adversaries.batch

    def poisoned(self: Adversaries, n: int, part: slice) -> Any:
        found = batch(self, n, part)
        return found if n != 2 else stylegan.RealBatch(found.images * math.nan, None, None, part)

    monkeypatch.setattr(Adversaries, "batch", poisoned)
    with pytest.raises(
        NonFiniteLossError, match=r"diverged at step 3: .*discriminator loss nan.* rate 0\.002"
    ) as error:
        _train(make_cohort(), tmp_path / "run")
    assert len(str(error.value).splitlines()) == 1
    assert _checkpoints(tmp_path / "run")[-1].name == "step-00000002"
    assert all(tensor.isfinite().all() for tensor in _state(tmp_path / "run").values())
    assert not (tmp_path / "run" / "model").exists()


def test_alike_samples_are_told_once_and_not_before_a_quarter_of_the_updates(
    make_cohort: MakeCohort, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    monkeypatch.setattr(stylegan, "tell", told.append)
    learner = _adversaries(make_cohort(), steps=100)
    assert SETTLED == 0.25
    assert learner.watch({"step": 24, "diversity": 0.01}) == "samples alike"
    assert told == []
    assert learner.watch({"step": 40, "diversity": ALIKE}) == ""
    assert told == []
    for step in (50, 60):
        assert learner.watch({"step": step, "diversity": 0.07}) == "samples alike"
    (line,) = told
    assert line.startswith("The samples are alike at step 50: they vary 7% as much as the training images")
    assert len(line.splitlines()) == 1
    assert learner.diversity == 0.07


def test_diversity_is_the_variance_of_samples_beside_that_of_training_images(make_cohort: MakeCohort) -> None:
    learner = _adversaries(make_cohort(), batch_size=8)
    part = learner.batch(0, slice(0, 8))
    learner.compiled = learner.generator.synthesize, learner.discriminator
    drawn = learner._draw(0, part, "discriminator").detach().double()
    _, said = learner._judge(0, part)()
    real = part.images.double()
    expected = drawn.var(dim=0, unbiased=False).mean() / real.var(dim=0, unbiased=False).mean()
    assert said[2].item() == pytest.approx(expected.item(), rel=1e-5)
    with torch.no_grad():  # one picture over and over
        for output in learner.generator.outputs:
            output.weight.zero_()
    assert learner._judge(0, part)()[1][2].item() == pytest.approx(0, abs=1e-6)


def test_the_header_and_the_log_tell_how_it_went(make_cohort: MakeCohort, tmp_path: Path) -> None:
    run = _train(make_cohort(channels=("a", "b")), tmp_path / "run")
    content, shape = _content(run), json.loads((run / "model" / "stylegan.json").read_text())["shape"]
    weights = load_file(run / "model" / "generator.safetensors")
    assert content["parameters"] == sum(tensor.numel() for tensor in weights.values())
    judged = sum(t.numel() for name, t in _state(run).items() if name.startswith("discriminator/weights/"))
    assert content["discriminator_parameters"] == judged
    assert content["diversity"] > 0
    assert content["augment_strength"] == _state(run)["strength"][0].item()
    assert content["holds_training_images"] is False
    assert content["ema_decays"] == [0.999]
    assert shape["channels"] == 2
    lines = _log(run)
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert all(line["learning_rate"] == 0.002 and -1 <= line["real_sign"] <= 1 for line in lines)


@pytest.mark.parametrize(
    "cohort",
    [
        {"channels": tuple("abcdefghi")},
        {"dtype": np.uint16},
        {"channels": ("t1", "mask"), "size": (8, 16)},
        {"pixels": np.full((12, 1, 8, 8), 100, np.uint8)},
    ],
    ids=["nine channels", "16 bits", "oblong with a mask", "constant"],
)
def test_cohorts_of_many_kinds_are_trained_on_and_drawn(
    make_cohort: MakeCohort, tmp_path: Path, cohort: dict[str, Any]
) -> None:
    place = make_cohort(**cohort)
    run = _train(place, tmp_path / "run", r1_every=1, path_every=1, augment="fixed", augment_strength=0.5)
    assert all(tensor.isfinite().all() for tensor in _state(run).values())
    assert all(math.isfinite(value) for line in _log(run) for value in line.values())
    draw_samples(run=run, out=tmp_path / "samples", count=3, settings={"precision": "float32"}, device="cpu")
    real, samples = open_images(place), open_images(tmp_path / "samples", kind="samples")
    drawn = samples.read(samples.rows("synthetic"))
    assert (samples.channels, samples.size, samples.dtype) == (real.channels, real.size, real.dtype)
    if "mask" in real.channels:
        assert set(np.unique(drawn[:, 1])) <= {0, 50, 120}
    if real.dtype == np.uint16:
        assert drawn.max() <= _content(run)["highest"] < 4000


def test_fewer_images_than_a_batch_are_refused(make_cohort: MakeCohort, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"8 training images are fewer than a batch of 9.*smaller --batch-size"):
        _train(make_cohort(), tmp_path / "run", batch_size=9)
    assert not (tmp_path / "run").exists()  # free for a corrected command


def test_images_that_do_not_fit_are_refused(make_cohort: MakeCohort, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"22 × 16 pixels cannot be halved.*prepare the cohort at 32 × 16"):
        _train(make_cohort(size=(22, 16)), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("labels", "complaint"),
    [
        ("aaaaaaaa", "no classes, or but one"),
        (["", "", "a", "a", "b", "b", "b", "b"], "no classes, or but one"),
        ("aaaaaaab", "class 'b' belongs to one patient"),
    ],
)
def test_classes_that_cannot_be_asked_for_are_refused(tmp_path: Path, labels: Sequence[str], complaint: str) -> None:
    cohort = _write_cohort(tmp_path / "cohort", labels)
    with pytest.raises(InputError, match=complaint) as error:
        _train(cohort, tmp_path / "run", condition="label")
    assert len(str(error.value).splitlines()) == 1
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight train images of two classes."""
    return _write_cohort(tmp_path_factory.mktemp("cohorts") / "cohort", "abaabbab")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    made = Server(tmp_path_factory.mktemp("server"), "stylegan")
    yield made
    made.close()
