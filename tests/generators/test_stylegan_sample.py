"""Sampling from StyleGAN runs: samples that depend on their seed alone, labels, averages, damaged models, launchers."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from unalike import folders
from unalike.cohort.store import ImageFolder, ImageWriter, open_images
from unalike.errors import FolderError, InputError, SettingsError
from unalike.generators.stylegan.model import load_generator, open_model
from unalike.generators.stylegan.sample import GROUP, open_stylegan
from unalike.generators.stylegan.settings import StyleganDrawSettings
from unalike.runs.sample import draw_samples
from unalike.runs.train import train_generator

TINY: dict[str, Any] = {
    "capacity": 64,
    "max_features": 8,
    "latent": 8,
    "mapping_layers": 1,
    "batch_size": 8,
    "steps": 3,
    "precision": "float32",
}
LABELS = ["left", "right", "right", "right"] * 4  # a quarter, and three


def _train(cohort: Path, out: Path, **settings: Any) -> Path:
    return train_generator(kind="stylegan", cohort=cohort, out=out, settings=TINY | settings, device="cpu")


def _draw(run: Path, out: Path, count: int, *, first_seed: int = 0, **settings: Any) -> ImageFolder:
    order = {"precision": "float32"} | settings
    draw_samples(run=run, out=out, count=count, first_seed=first_seed, settings=order, device="cpu")
    return open_images(out, kind="samples")


def _pixels(samples: ImageFolder) -> np.ndarray:
    return samples.read(samples.rows("synthetic"))


def _content(run: Path) -> Mapping[str, Any]:
    return folders.read_header(run, kind="run").content


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixteen train images of two classes and two channels."""
    out = tmp_path_factory.mktemp("cohorts") / "cohort"
    folders.begin_folder(out, kind="cohort", settings={})
    writer = ImageWriter(out, channels=("t1", "t2"), height=16, width=16, dtype=np.dtype(np.uint8))
    random = np.random.default_rng(3)
    for number, label in enumerate(LABELS):
        image = random.integers(0, 255, (2, 16, 16)).astype(np.uint8)
        name = {"subject": f"s{number}", "source": f"f{number}", "slice": 0, "role": "train", "label": label}
        writer.append(image, name)
    folders.finish_folder(out, kind="cohort", settings={}, seed=0, inputs={}, content=writer.close())
    return out


@pytest.fixture(scope="module")
def plain(cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run without classes that keeps two weight averages."""
    return _train(cohort, tmp_path_factory.mktemp("runs") / "plain", ema_decays=(0.0, 0.9), learning_rate=0.02)


@pytest.fixture(scope="module")
def labelled(cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run conditioned on labels."""
    return _train(cohort, tmp_path_factory.mktemp("runs") / "labelled", condition="label")


# Seeds


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_sample_depends_on_its_seed_alone(plain: Path, tmp_path: Path, precision: str) -> None:
    more = {"precision": precision}
    together = _pixels(_draw(plain, tmp_path / "together", 20, batch_size=64, **more))
    for size in (1, 3):
        drawn = _pixels(_draw(plain, tmp_path / f"in-{size}", 20, batch_size=size, **more))
        np.testing.assert_array_equal(drawn, together)
    np.testing.assert_array_equal(_pixels(_draw(plain, tmp_path / "alone", 1, first_seed=17, **more)), together[17:18])
    assert len(np.unique(together.reshape(20, -1), axis=0)) == 20
    assert together.shape == (20, 2, 16, 16)
    assert 20 > GROUP["cpu"] > 3  # a group that is filled up, and several


def test_drawing_leaves_the_global_stream_as_it_was(plain: Path, tmp_path: Path) -> None:
    before = torch.random.get_rng_state()
    _draw(plain, tmp_path / "samples", 2)
    assert torch.equal(before, torch.random.get_rng_state())


def test_truncated_samples_gather_about_one(plain: Path, tmp_path: Path) -> None:
    spread = [
        _pixels(_draw(plain, tmp_path / str(psi), 16, truncation=psi)).astype(float).var(axis=0).mean()
        for psi in (0, 0.5, 1)
    ]
    assert spread[0] < 0.5 * spread[1] < spread[2]


def test_one_is_no_truncation(plain: Path, tmp_path: Path) -> None:
    drawn = [_pixels(_draw(plain, tmp_path / str(n), 4, **more)) for n, more in enumerate(({}, {"truncation": 1}))]
    np.testing.assert_array_equal(*drawn)


# Labels


def test_the_label_asked_for_is_drawn_and_recorded(labelled: Path, tmp_path: Path) -> None:
    drawn = {}
    for label in ("left", "right"):
        samples = _draw(labelled, tmp_path / label, 12, label=label)
        assert samples.column("label").tolist() == [label] * 12
        drawn[label] = _pixels(samples)
    mixed = _draw(labelled, tmp_path / "mixed", 12)
    labels = mixed.column("label").tolist()
    assert set(labels) == {"left", "right"}
    # The record says of each sample which of the two it is.
    for index, label in enumerate(labels):
        np.testing.assert_array_equal(_pixels(mixed)[index], drawn[label][index])
    assert (drawn["left"] != drawn["right"]).any(axis=(1, 2, 3)).all()


def test_labels_come_in_the_cohorts_proportions(labelled: Path) -> None:
    content = _content(labelled)
    assert content["label_counts"] == {"left": 4, "right": 12}
    sampler = open_stylegan(labelled, content=content, settings=StyleganDrawSettings(), device="cpu")
    labels = [sampler.label_of(seed) for seed in range(1000)]
    # A quarter of 1,000 is 250, with a standard deviation of 14.
    assert 195 < labels.count("left") < 305
    assert labels[700:710] == [sampler.label_of(seed) for seed in range(700, 710)]


def test_unknown_labels_are_refused_in_one_line(plain: Path, labelled: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"--label up is unknown\. There are: left, right\.$"):
        _draw(labelled, tmp_path / "samples", 1, label="up")
    with pytest.raises(SettingsError, match=r"--label left: this run was trained without labels\. Leave it out\.$"):
        _draw(plain, tmp_path / "samples", 1, label="left")
    assert not (tmp_path / "samples").exists()


# Weight averages


def test_a_decay_picks_its_weight_average(plain: Path, tmp_path: Path) -> None:
    orders: list[dict[str, float]] = [{}, {"ema_decay": 0.0}, {"ema_decay": 0.9}]
    first, named, other = (_pixels(_draw(plain, tmp_path / str(n), 4, **more)) for n, more in enumerate(orders))
    np.testing.assert_array_equal(first, named)
    assert (first != other).any(axis=(1, 2, 3)).all()
    state = load_file(sorted((plain / "checkpoints").iterdir())[-1] / "state.safetensors")
    for name, decay in (("generator.safetensors", 0.0), ("generator-0.9.safetensors", 0.9)):
        for weight, tensor in load_file(plain / "model" / name).items():
            assert torch.equal(tensor, state[f"average-{decay}/{weight}"])
    for weight, tensor in load_generator(plain / "model").state_dict().items():
        assert torch.equal(tensor, state[f"generator/weights/{weight}"])  # an average without memory


def test_an_unknown_decay_is_refused_in_one_line(plain: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no weight average of decay 0\.5\. There are: 0\.0, 0\.9\.$") as error:
        _draw(plain, tmp_path / "samples", 1, ema_decay=0.5)
    assert len(str(error.value).splitlines()) == 1
    assert not (tmp_path / "samples").exists()


# The model folder


def test_a_few_lines_draw_what_is_sampled(plain: Path, tmp_path: Path) -> None:
    network = load_generator(plain / "model")
    z = torch.randn(4, network.shape.latent, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        images = network(z)
    assert images.shape == (4, 2, 16, 16)
    assert not network.training
    # With latents and noise of the sampler, the network alone draws the samples.
    content = _content(plain)
    sampler = open_stylegan(plain, content=content, settings=StyleganDrawSettings(precision="float32"), device="cpu")
    seeds = range(GROUP["cpu"])
    with torch.inference_mode():
        drawn = network.synthesize(sampler.styles(seeds), sampler.noise(seeds))
    expected = np.rint(np.clip((drawn.double().numpy() + 1) * 127.5, 0, 255)).astype(np.uint8)
    np.testing.assert_array_equal(_pixels(_draw(plain, tmp_path / "samples", len(seeds))), expected)


def test_pixels_come_back_through_the_models_space(plain: Path) -> None:
    model = open_model(plain / "model", content=_content(plain), device="cpu", precision="float32")
    pixels = np.arange(512, dtype=np.uint16).reshape(1, 2, 16, 16).astype(np.uint8)
    encoded = model.encode(pixels)
    assert (encoded.min().item(), encoded.max().item()) == (-1, 1)
    np.testing.assert_array_equal(model.decode(encoded), pixels)
    far = torch.tensor([-9.0, 9.0]).expand(1, 2, 16, 8, 2).reshape(1, 2, 16, 16)
    assert set(np.unique(model.decode(far))) == {0, 255}


def test_the_model_folder_holds_no_discriminator_and_no_pixels(plain: Path, labelled: Path) -> None:
    for run, names in ((plain, {"generator-0.9.safetensors"}), (labelled, set())):
        found = {place.name for place in (run / "model").iterdir()}
        assert found == {"generator.safetensors", "stylegan.json"} | names
        description = json.loads((run / "model" / "stylegan.json").read_text())
        assert set(description) == {"shape", "labels"}
        assert description["labels"] == (["left", "right"] if run == labelled else [])
        tensors = load_file(run / "model" / "generator.safetensors")
        assert {name.split(".")[0] for name in tensors} == {"mapping", "constant", "convolutions", "outputs"}
        assert sum(tensor.numel() for tensor in tensors.values()) == _content(run)["parameters"]
        assert not list(run.rglob("*.pt"))
        assert not list(run.rglob("*.pkl"))


# Damage


def _copied(run: Path, out: Path) -> Path:
    shutil.copytree(run, out)
    return out


def test_a_model_that_was_changed_is_not_drawn_from(plain: Path, tmp_path: Path) -> None:
    run = _copied(plain, tmp_path / "run")
    weights = run / "model" / "generator.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\1")
    with pytest.raises(FolderError, match=r"not the model that run\.json describes"):
        _draw(run, tmp_path / "samples", 1)
    assert not (tmp_path / "samples").exists()


def _describe(**changes: Any) -> Callable[[Path], None]:
    def damage(model: Path) -> None:
        about = json.loads((model / "stylegan.json").read_text())
        about["shape"] |= changes
        (model / "stylegan.json").write_text(json.dumps(about))

    return damage


def _write(name: str, content: bytes) -> Callable[[Path], None]:
    return lambda model: (model / name).write_bytes(content) and None


def _truncate(model: Path) -> None:
    weights = model / "generator.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])


def _rename(model: Path) -> None:
    tensors = load_file(model / "generator.safetensors")
    save_file({f"other.{name}": tensor for name, tensor in tensors.items()}, model / "generator.safetensors")


@pytest.mark.parametrize(
    "damage",
    [
        _truncate,
        _rename,
        _write("generator.safetensors", b""),
        _write("generator.safetensors", b"\xff" * 64),
        _write("stylegan.json", b"{"),
        _write("stylegan.json", b"[]"),
        _write("stylegan.json", b'{"shape": [], "labels": []}'),
        _write("stylegan.json", b'{"labels": []}'),
        lambda model: (model / "generator.safetensors").unlink(),
        lambda model: (model / "stylegan.json").unlink(),
        _describe(features=[]),
        _describe(features=[8] * 17),
        _describe(features=8),
        _describe(features=[8, 8, 4.5, 2]),
        _describe(features=["many"]),
        _describe(base=[2**40, 4]),
        _describe(base=[4]),
        _describe(base=[0, 4]),
        _describe(base=["4", "4"]),
        _describe(latent=2**30),
        _describe(latent=-8),
        _describe(latent=None),
        _describe(latent=9),
        _describe(latent=float("nan")),
        _describe(latent=float("inf")),
        _describe(mapping_layers=2**30),
        _describe(mapping_layers=-1),
        _describe(channels=2**40),
        _describe(channels=-1),
        _describe(classes=2**40),
        _describe(classes=-3),
    ],
)
def test_a_damaged_model_is_refused_in_one_line(plain: Path, tmp_path: Path, damage: Callable[[Path], None]) -> None:
    model = Path(shutil.copytree(plain / "model", tmp_path / "model"))
    damage(model)
    with pytest.raises(FolderError) as error:
        load_generator(model)
    (line,) = str(error.value).splitlines()
    assert str(model) in line
    assert len(line) < 500


# Several processes


def test_the_launcher_itself_trains_by_two_as_one_does(cohort: Path, labelled: Path, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    launch += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    launch += ["--main_process_port", port, "-m", "unalike", "train", "stylegan", str(cohort)]
    settings = TINY | {"condition": "label", "device": "cpu", "out": tmp_path / "run"}
    launch += [word for name, value in settings.items() for word in ("--" + name.replace("_", "-"), str(value))]
    environment = os.environ | {"UNALIKE_PROGRESS": "off", "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    finished = subprocess.run(launch, check=False, capture_output=True, timeout=240, env=environment)
    assert finished.returncode == 0, finished.stderr[-2000:]
    assert _content(tmp_path / "run")["processes"] == 2
    found, whole = (load_file(run / "model" / "generator.safetensors") for run in (tmp_path / "run", labelled))
    assert found.keys() == whole.keys()
    difference = torch.cat([(found[name] - tensor).ravel() for name, tensor in whole.items()])
    assert difference.norm() < 1e-4 * torch.cat([tensor.ravel() for tensor in whole.values()]).norm()
