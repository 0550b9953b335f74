"""Teaching a frozen base a concept: what is learned and nothing else, exact resuming, classes, privacy, processes.

The tests with killed and several processes have a server that imports the program once and forks a child for each
order, as in ``test_processes``.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import signal
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tests.generators.server import Server, newest_step

from unalike import folders
from unalike.cohort.store import ImageWriter, open_images
from unalike.errors import FolderError, InputError, SettingsError
from unalike.generators.data import open_train_images
from unalike.generators.descent import Descent
from unalike.generators.inversion import private
from unalike.generators.inversion import train as inversion
from unalike.generators.inversion.base import BaseModel, libraries_silent, open_base
from unalike.generators.inversion.concept import Additions, Concept, begin_vectors
from unalike.generators.inversion.embedding import Embedding, read_embedding, write_embedding
from unalike.generators.inversion.pixels import choose_mapping
from unalike.generators.inversion.private import DELTA_SHARE, PrivateDescent, account
from unalike.generators.inversion.settings import InversionSettings
from unalike.generators.inversion.tiny import build_tiny_base, save_base
from unalike.generators.inversion.train import InversionTask, encode_all, name_tokens
from unalike.generators.processes import join_processes
from unalike.runs.settings import WatchSettings
from unalike.runs.train import train_generator

MakeCohort = Callable[..., Path]
State = dict[str, Any]

TINY: dict[str, Any] = {
    "steps": 4,
    "batch_size": 2,
    "vectors": 3,
    "learning_rate": 0.05,
    "precision": "float32",
    "log_every": 1,
    "checkpoint_every": 0,
}


def _write_cohort(
    out: Path, labels: Sequence[str], *, owners: Sequence[int] = (), channels: Sequence[str] = ("t1",), holdout: int = 0
) -> Path:
    """A train image for each label, of a subject of its own or of ``owners``; then held-out subjects."""
    folders.begin_folder(out, kind="cohort", settings={})
    writer = ImageWriter(out, channels=tuple(channels), height=16, width=16, dtype=np.dtype(np.uint8))
    random = np.random.default_rng(3)
    for number in range(len(labels) + holdout):
        image = random.integers(0, 255, (len(channels), 16, 16)).astype(np.uint8)
        if "mask" in channels:
            image[list(channels).index("mask")] = random.choice([0, 50], (16, 16))
        train = number < len(labels)
        name = {"subject": f"s{owners[number] if train and owners else number}", "source": f"f{number}", "slice": 0}
        writer.append(image, name | {"role": "train" if train else "holdout", "label": labels[number] if train else ""})
    folders.finish_folder(out, kind="cohort", settings={}, seed=0, inputs={}, content=writer.close())
    return out


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny base whose weights are as far from 0 as a training leaves them."""
    made = build_tiny_base(size=16, words=("brain", "tumor"))
    stream = torch.Generator().manual_seed(5)
    for part in (made.text_encoder, made.vae, made.unet):
        for weight in part.parameters():
            weight.add_(0.05 * torch.randn(weight.shape, generator=stream))
    return save_base(made, tmp_path_factory.mktemp("bases") / "base")


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight train images of two classes, and six held-out subjects."""
    return _write_cohort(tmp_path_factory.mktemp("cohorts") / "brains", "abaabbab", holdout=6)


@pytest.fixture(scope="module")
def whole(cohort: Path, base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was not disturbed."""
    return _train(cohort, tmp_path_factory.mktemp("runs") / "whole", base)


def _train(cohort: Path, out: Path, place: Path, *, watch: WatchSettings | None = None, **settings: Any) -> Path:
    order = TINY | {"base": str(place)} | settings
    return train_generator(kind="inversion", cohort=cohort, out=out, settings=order, device="cpu", watch=watch)


def _content(run: Path) -> Any:
    return folders.read_header(run, kind="run").content


@pytest.fixture(autouse=True)
def _same_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(private, "draw_secret", lambda: 7)


def _state(run: Path, step: int = 0) -> State:
    """All tensors of the checkpoint of this update, or of the newest."""
    places = sorted(place for place in (run / "checkpoints").glob("*") if place.suffix != ".partial")
    return load_file((run / "checkpoints" / f"step-{step:08d}" if step else places[-1]) / "state.safetensors")


def _log(run: Path) -> list[dict[str, float]]:
    """A line for each update; of a step that stands there twice the last line counts."""
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [line for _, line in sorted({line["step"]: line for line in lines}.items())]


def _assert_same_run(run: Path, whole: Path) -> None:
    found, expected = _state(run), _state(whole)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name
    assert _content(run)["model_digest"] == _content(whole)["model_digest"]
    assert not list(run.rglob("*.partial"))


def _assert_close_run(run: Path, whole: Path) -> None:
    for name, tensor in _state(whole).items():
        torch.testing.assert_close(_state(run)[name], tensor, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose([e["loss"] for e in _log(run)], [e["loss"] for e in _log(whole)], rtol=1e-5)


def _weights(base: BaseModel) -> State:
    """All tensors of the base, copied."""
    parts = {"vae": base.vae, "unet": base.unet, "text": base.text_encoder}
    return {
        f"{p}.{n}": w.clone() for p, part in parts.items() if part is not None for n, w in part.state_dict().items()
    }


def _task(cohort: Path, base: Path, *, opened: BaseModel | None = None, **given: Any) -> InversionTask:
    """What an update works on, as a training makes it."""
    settings = InversionSettings(**(TINY | {"base": str(base)} | given))
    images = open_train_images(open_images(cohort), subjects=None, seed=0)
    opened = opened or open_base(base, device="cpu", precision="float32")
    mapping = choose_mapping(images.scale.channels, images.scale.levels)
    latents = encode_all(images, opened, mapping, side=16, processes=join_processes("cpu"))
    labels, names = name_tokens(images, settings)
    first = begin_vectors(opened, names, count=settings.vectors, words=settings.initialize, seed=0)
    network = Concept(opened, first, [settings.template.format(name) for name in names])
    return InversionTask(images, latents, settings, opened, network, mapping, labels, 16, 0)


def _keep_base(monkeypatch: pytest.MonkeyPatch) -> list[BaseModel]:
    """The bases that trainings open from now on."""
    opened: list[BaseModel] = []

    def opening(*place: Any, **rest: Any) -> BaseModel:
        opened.append(open_base(*place, **rest))
        return opened[-1]

    monkeypatch.setattr(inversion, "open_base", opening)
    return opened


def _stop_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Ctrl-C as it comes from a terminal, in the middle of update ``step`` (from 1)."""
    update = Descent.update

    def stopping(self: Descent[Any], n: int) -> None:
        if n == step - 1:
            os.kill(os.getpid(), signal.SIGINT)
        update(self, n)

    monkeypatch.setattr(Descent, "update", stopping)


# What is learned


def test_only_the_vectors_change_and_nothing_of_the_base(
    cohort: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, files = _weights(open_base(base, device="cpu")), folders.digest_tree(base)
    opened = _keep_base(monkeypatch)
    run = _train(cohort, tmp_path / "run", base)
    after = _weights(opened[0])
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert torch.equal(after[name], tensor), name
    assert all(weight.grad is None for part in (opened[0].unet, opened[0].text_encoder) for weight in part.parameters())
    assert folders.digest_tree(base) == files
    first = begin_vectors(opened[0], ["<brains>"], count=3, words="", seed=0)["<brains>"]
    learned = _state(run)["weights/vectors.0"]
    assert ((learned - first).abs().amax(dim=1) > 0.01).all()


def test_a_checkpoint_holds_what_is_learned_and_not_the_base(whole: Path) -> None:
    state = _state(whole)
    assert sorted(state) == [f"{kind}/vectors.0" for kind in ("average-0.0", "exp_avg", "exp_avg_sq", "weights")]
    assert all(tensor.shape == (3, 32) for tensor in state.values())
    assert torch.equal(state["average-0.0/vectors.0"], state["weights/vectors.0"])


def test_every_vector_stands_in_the_prompt_and_counts(cohort: Path, base: Path) -> None:
    task = _task(cohort, base, vectors=5, template="a photo of {}", token="ill")
    ids, places = task.base.tokenize(task.network.prompts[0], {"<ill>": 5})
    assert places == [("<ill>", 3)]
    assert ids[3:] == [task.base.tokenizer.bos_token_id] * 5
    assert len(ids) == 3 + 5
    vectors = task.network.learned()["<ill>"].detach()
    told = task.base.encode_text("a photo of <ill>", {"<ill>": vectors})
    for index in range(5):
        changed = vectors.clone()
        changed[index] += 0.1
        other = task.base.encode_text("a photo of <ill>", {"<ill>": changed})
        assert torch.equal(other[: 4 + index], told[: 4 + index])  # attention looks back only; 4: the start as well
        assert (other[4 + index :] != told[4 + index :]).any(dim=1).all()


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_the_loss_is_that_of_the_base(cohort: Path, base: Path, prediction: str) -> None:
    opened = open_base(base, device="cpu", precision="float32")
    opened.scheduler.register_to_config(prediction_type=prediction)
    task = _task(cohort, base, opened=opened, batch_size=6)
    batch = task.batch(3, slice(0, 6))
    noise = torch.randn(batch.latents.shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found = task.errors(task.network, batch, noise)
        told = opened.encode_text("<brains>", task.network.learned())
        for i in range(6):
            kept = float(opened.scheduler.alphas_cumprod[batch.t[i]])
            z, e = batch.latents[i], noise[i]
            z_t = math.sqrt(kept) * z + math.sqrt(1 - kept) * e
            target = e if prediction == "epsilon" else math.sqrt(kept) * e - math.sqrt(1 - kept) * z
            said = opened.unet(z_t[None], batch.t[i], encoder_hidden_states=told[None]).sample[0]
            assert float(found[i]) == pytest.approx(float(((said - target) ** 2).mean()), rel=1e-4)


def test_the_loss_on_fixed_noise_falls(cohort: Path, base: Path, tmp_path: Path) -> None:
    task = _task(cohort, base, batch_size=8)
    run = _train(cohort, tmp_path / "run", base, steps=20, batch_size=4, checkpoint_every=120)

    def fixed_loss(vectors: torch.Tensor) -> float:
        with torch.no_grad():
            task.network.vectors[0].copy_(vectors)
            return float(np.mean([float(task.loss(task.network, task.batch(n, slice(0, 8)))) for n in range(100, 105)]))

    first = task.network.vectors[0].detach().clone()
    assert fixed_loss(_state(run)["weights/vectors.0"]) < 0.99 * fixed_loss(first)


def test_vectors_begin_with_the_words_they_are_told(cohort: Path, base: Path) -> None:
    opened = open_base(base, device="cpu")
    table = opened.text_encoder.get_input_embeddings().weight
    brain, tumor = opened.tokenizer("brain tumor", add_special_tokens=False).input_ids
    found = begin_vectors(opened, ["<a>", "<b>"], count=3, words="brain tumor", seed=0)
    for vectors in found.values():
        assert torch.equal(vectors, table[[brain, tumor, brain]])
    noise = begin_vectors(opened, ["<a>", "<b>"], count=64, words="", seed=0)
    assert not torch.equal(noise["<a>"], noise["<b>"])
    np.testing.assert_allclose(noise["<a>"].std(dim=0), table.std(dim=0), rtol=0.5)
    again = begin_vectors(opened, ["<a>"], count=64, words="", seed=0)
    assert torch.equal(again["<a>"], noise["<a>"])
    assert not torch.equal(begin_vectors(opened, ["<a>"], count=64, words="", seed=1)["<a>"], noise["<a>"])


def test_additions_change_nothing_before_they_have_learned(base: Path) -> None:
    plain, bearing = (open_base(base, device="cpu", precision="float32") for _ in range(2))
    made = Additions(bearing, rank=2, prompts=["brain"], seed=0)
    z, t = torch.randn((2, 4, 4, 4), generator=torch.Generator().manual_seed(1)), torch.tensor([3, 700])
    expected = plain.predict(z, t, plain.encode_text("brain").expand(2, -1, -1))
    with torch.no_grad():
        assert torch.equal(made(z, t, [0, 0]), expected)
    assert {name.rsplit(".", 3)[1] for name, w in made.named_parameters() if w.requires_grad} == {"lora_A", "lora_B"}


# Classes


def test_each_class_learns_a_token_and_only_from_its_own_images(cohort: Path, base: Path, tmp_path: Path) -> None:
    order = {"condition": "label", "weight_decay": 0.0, "batch_size": 1, "steps": 3}
    task = _task(cohort, base, **order)
    labels = open_images(cohort).column("label")[task.images.rows].tolist()
    run = _train(cohort, tmp_path / "run", base, **order, keep=3)
    assert _content(run)["tokens"] == ["<a>", "<b>"]
    assert _content(run)["label_counts"] == {"a": 4, "b": 4}
    before = {index: vectors.detach() for index, vectors in enumerate(task.network.vectors)}
    seen = set()
    for n in range(3):
        (which,) = task.batch(n, slice(0, 1)).which
        seen.add(which)
        state = _state(run, n + 1)
        for index in range(2):
            after = state[f"weights/vectors.{index}"]
            if index == which:
                assert not torch.equal(after, before[index])
            elif index not in seen:
                assert torch.equal(after, before[index])
            before[index] = after
    assert seen == {0, 1}  # or there would be nothing to see
    assert [task.labels[k] for k in range(8)] == ["ab".index(label) for label in labels]
    assert sorted(path.name for path in (run / "model").iterdir()) == ["a.pt", "a.safetensors", "b.pt", "b.safetensors"]


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        ("aaaab", r"class 'b' belongs to one patient"),
        ("aaaaa", r"no classes, or but one"),
        (["a b", "a b", "a-b", "a-b"], r"several classes would be called <a-b>"),
        (["a/b", "a/b", "c", "c"], r"'a/b' cannot be the name of a file"),
    ],
)
def test_classes_that_cannot_be_learned_apart_are_refused(
    base: Path, tmp_path: Path, labels: Sequence[str], says: str
) -> None:
    cohort = _write_cohort(tmp_path / "cohort", labels)
    with pytest.raises(SettingsError, match=says):
        _train(cohort, tmp_path / "run", base, condition="label")
    assert not (tmp_path / "run").exists()


# What is refused


@pytest.mark.parametrize(
    ("order", "says"),
    [
        ({"vectors": 76}, r"vectors = 76: .*room for 75"),
        ({"vectors": 75, "template": "a photo of {}"}, r"has 78 tokens; the text encoder has room for 75"),
        ({"initialize": " "}, r"initialize = ' ': give words"),
        ({"token": "../ill"}, r"token '../ill' cannot be the name of a file"),
        ({"token": "<>"}, r"token '<>' cannot be the name of a file"),
        ({"base": ""}, r"base = '': give --base"),
        ({"template": "a photo"}, r"template = 'a photo': give a text with one {}"),
        ({"token": "x", "condition": "label"}, r"none with condition label"),
        ({"method": "lora", "private_noise": 1.0}, r"embedding with private_noise"),
        ({"private_noise": 1.0, "batch_size": 9}, r"batch_size = 9: with private_noise at most the 8 patients"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(
    cohort: Path, base: Path, tmp_path: Path, order: dict[str, Any], says: str
) -> None:
    with pytest.raises(InputError, match=says) as caught:
        _train(cohort, tmp_path / "run", base, **order)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_word_that_the_base_knows_is_no_new_token(base: Path) -> None:
    opened = open_base(base, device="cpu", parts=("text_encoder",))
    with pytest.raises(SettingsError, match=r"token 'brain' is a word of base already.*<brain>"):
        begin_vectors(opened, ["brain"], count=1, words="", seed=0)


def test_folders_that_are_no_base_are_refused(cohort: Path, tmp_path: Path) -> None:
    for place in (tmp_path / "nowhere", cohort):
        with pytest.raises(FolderError, match=str(place)):
            _train(cohort, tmp_path / "run", place)


@pytest.mark.parametrize("channels", [("t1", "mask"), ("t1", "t1ce", "t2", "flair")])
def test_channels_that_no_colour_is_left_for_are_refused(base: Path, tmp_path: Path, channels: Sequence[str]) -> None:
    cohort = _write_cohort(tmp_path / "cohort", "aaaa", channels=channels)
    with pytest.raises(SettingsError, match=r"channels (mask|t1) would be left out"):
        _train(cohort, tmp_path / "run", base)


def test_three_channels_are_the_three_colours(base: Path, tmp_path: Path) -> None:
    cohort = _write_cohort(tmp_path / "cohort", "aaaa", channels=("t1", "t2", "flair"))
    task = _task(cohort, base)
    pixels = torch.from_numpy(task.images.scale.to_unit(task.images.read_all()))
    torch.testing.assert_close(torch.from_numpy(task.latents), task.base.encode(pixels))
    one = _task(_write_cohort(tmp_path / "grey", "aaaa"), base)
    grey = torch.from_numpy(one.images.scale.to_unit(one.images.read_all())).expand(-1, 3, -1, -1)
    torch.testing.assert_close(torch.from_numpy(one.latents), one.base.encode(grey))


# Going on


@pytest.mark.parametrize(
    "order",
    [
        {},
        {"condition": "label", "batch_size": 1},
        {"method": "lora", "rank": 2, "ema_decays": (0.0, 0.9)},
    ],
    ids=["embedding", "classes", "lora"],
)
def test_a_resumed_training_equals_an_uninterrupted_one(
    cohort: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, order: dict[str, Any]
) -> None:
    order = order | {"steps": 4, "checkpoint_every": 120}
    expected = _train(cohort, tmp_path / "whole", base, **order)
    with monkeypatch.context() as patch:
        _stop_at(patch, 3)
        with pytest.raises(KeyboardInterrupt):
            _train(cohort, tmp_path / "pieces", base, **order)
    assert [path.name for path in (tmp_path / "pieces" / "checkpoints").iterdir()] == ["step-00000003"]
    _assert_same_run(_train(cohort, tmp_path / "pieces", base, **order), expected)


def test_parts_of_a_batch_make_the_same_update(cohort: Path, base: Path, whole: Path, tmp_path: Path) -> None:
    _assert_close_run(_train(cohort, tmp_path / "parts", base, accumulate=2), whole)


def test_features_computed_twice_make_the_same_update(
    cohort: Path, base: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = _keep_base(monkeypatch)
    run = _train(cohort, tmp_path / "run", base, gradient_checkpointing=True)
    assert opened[0].unet.is_gradient_checkpointing
    _assert_close_run(run, whole)


# Files


def test_both_files_hold_the_vectors_and_the_header_says_of_what(whole: Path, cohort: Path, base: Path) -> None:
    opened, content = open_base(base, device="cpu"), _content(whole)
    assert sorted(path.name for path in (whole / "model").iterdir()) == ["brains.pt", "brains.safetensors"]
    for path in (whole / "model").iterdir():
        found = read_embedding(path)
        assert np.array_equal(found.vectors, _state(whole)["weights/vectors.0"].numpy())
        assert (found.token, found.base, found.steps) == ("<brains>", opened.identity, 4)
        assert found.cohort == open_images(cohort).digest
    said = {
        name: content[name] for name in ("base_identity", "tokens", "prompts", "resolution", "method", "parameters")
    }
    assert said == {
        "base_identity": opened.identity,
        "tokens": ["<brains>"],
        "prompts": ["<brains>"],
        "resolution": 16,
        "method": "embedding",
        "parameters": 96,
    }
    assert content["holds_training_images"] is False


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_a_concept_of_64_vectors_of_1024_fits_in_300_kb(tmp_path: Path, suffix: str) -> None:
    vectors = np.random.default_rng(0).standard_normal((64, 1024)).astype(np.float32)
    place = write_embedding(
        Embedding("<ill>", vectors, "sha256:" + "0" * 64, "sd21", 50_000, "0" * 64), tmp_path / f"ill{suffix}"
    )
    assert vectors.nbytes < place.stat().st_size < 300_000


def test_additions_are_read_by_diffusers_itself(cohort: Path, base: Path, tmp_path: Path) -> None:
    run = _train(cohort, tmp_path / "run", base, method="lora", rank=2, token="tumor", learning_rate=0.01)
    state = _state(run)
    assert all("lora_" in name for name in state)
    assert [path.name for path in (run / "model").iterdir()] == ["pytorch_lora_weights.safetensors"]
    bearing, bare = (open_base(base, device="cpu", precision="float32") for _ in range(2))
    made = Additions(bearing, rank=2, prompts=["tumor"], seed=0)
    with torch.no_grad():
        for name, weight in made.named_parameters():
            if weight.requires_grad:
                weight.copy_(state[f"weights/{name}"])
    with warnings.catch_warnings(), libraries_silent():
        warnings.simplefilter("ignore")
        from diffusers import StableDiffusionPipeline

        pipeline = StableDiffusionPipeline.from_pretrained(base, safety_checker=None, feature_extractor=None)
        pipeline.load_lora_weights(run / "model")
    z, t = torch.randn((1, 4, 4, 4), generator=torch.Generator().manual_seed(1)), torch.tensor([500])
    told = bare.encode_text("tumor")[None]
    with torch.no_grad():
        theirs = pipeline.unet(z, t, encoder_hidden_states=told).sample
        torch.testing.assert_close(theirs, made(z, t, [0]), rtol=1e-5, atol=1e-5)
        assert (theirs - bare.predict(z, t, told)).abs().max() > 1e-3


# Watching


def test_a_watched_training_draws_as_it_goes(cohort: Path, base: Path, tmp_path: Path) -> None:
    watch = WatchSettings(every=2, samples=4, steps=2)
    run = _train(cohort, tmp_path / "run", base, condition="label", watch=watch)
    lines = [json.loads(line) for line in (run / "watch.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4]
    assert _content(run)["chosen_step"] in (2, 4)


# Privacy


def _private(cohort: Path, base: Path, **given: Any) -> PrivateDescent:
    task = _task(cohort, base, **({"private_noise": 1e-6} | given))
    return PrivateDescent(task, task.settings, seed=0, processes=join_processes("cpu"))


def _sum(learner: PrivateDescent, batch: list[Any]) -> torch.Tensor:
    """The sum of the clipped gradients with its noise."""
    learner._gradient(0, [batch])
    sums = [weight.grad for weight in learner.weights.values()]
    return torch.cat([total.ravel() for total in sums if total is not None]) * learner.private.batch_size


def test_a_patient_moves_the_sum_by_the_clip_at_most(cohort: Path, base: Path) -> None:
    free = _private(cohort, base, private_clip=1e6, private_noise=1e-12, condition="label")
    everybody = [free.work.take([k], np.array([200 * k + 50]), 0, slice(k, k + 1)) for k in range(4)]
    norms = [float(_sum(free, [image]).norm()) for image in everybody]
    clip = float(np.median(norms))  # so that half are shortened, and half are not
    tight = _private(cohort, base, private_clip=clip, condition="label")
    total = _sum(tight, everybody)
    for k, norm in enumerate(norms):
        without = _sum(tight, everybody[:k] + everybody[k + 1 :])
        assert float((total - without).norm()) == pytest.approx(min(norm, clip), rel=1e-3)


def test_an_empty_batch_gives_noise_of_the_right_size(cohort: Path, base: Path) -> None:
    learner = _private(cohort, base, private_noise=3.0, private_clip=0.5, vectors=64)
    loss, norm = learner._gradient(0, [[]])
    noise = learner.weights["vectors.0"].grad
    assert noise is not None
    assert float(loss) == 0
    assert float(norm) == pytest.approx(float(noise.norm()))
    # 2,048 numbers, divided by the expected number of patients.
    assert float(noise.std()) == pytest.approx(3.0 * 0.5 / 2, rel=0.08)
    assert abs(float(noise.mean())) < 5 * 0.75 / math.sqrt(2048)
    learner._gradient(1, [[]])
    assert not torch.equal(learner.weights["vectors.0"].grad, noise)


def test_patients_take_part_independently_and_with_one_image(base: Path, tmp_path: Path) -> None:
    owners = [0, 0, 0, 0, 1, 1, 2, 3]  # patient 0 has half of the images
    learner = _private(_write_cohort(tmp_path / "cohort", "aaaaaaaa", owners=owners), base, batch_size=1)
    latents, updates, rate = torch.from_numpy(learner.work.latents), 800, 1 / 4
    there, images = np.zeros((updates, 4)), np.zeros(8)
    for n in range(updates):
        for image in learner.batch(n, slice(0, 1)):
            (k,) = [k for k in range(8) if torch.equal(latents[k], image.latents[0])]
            there[n, owners[k]] += 1
            images[k] += 1
    assert there.max() == 1  # never two images of a patient
    tolerance = 4.5 * math.sqrt(rate * (1 - rate) / updates)
    np.testing.assert_allclose(there.mean(axis=0), rate, atol=tolerance)
    together = there.sum(axis=1)
    assert (together == 0).any()
    assert together.var() == pytest.approx(4 * rate * (1 - rate), rel=0.25)
    np.testing.assert_allclose(images[:4] / images[:4].sum(), 0.25, atol=0.12)


def test_the_order_of_images_does_not_matter(cohort: Path, base: Path) -> None:
    learner = _private(cohort, base, batch_size=4)
    task = learner.work
    order = np.random.default_rng(2).permutation(8)
    images = dataclasses.replace(task.images, rows=task.images.rows[order], held=None)
    other = InversionTask(
        images, task.latents[order], task.settings, task.base, task.network, task.mapping, [0] * 8, 16, 0
    )
    shuffled = PrivateDescent(other, task.settings, seed=0, processes=join_processes("cpu"))
    for n in range(5):
        a, b = (each.batch(n, slice(0, 4)) for each in (learner, shuffled))
        assert len(a) == len(b)
        assert all(torch.equal(x.latents, y.latents) and torch.equal(x.t, y.t) for x, y in zip(a, b, strict=True))


def test_epsilon_is_that_of_opacus_and_of_the_closed_form() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from opacus.accountants import RDPAccountant

        theirs = RDPAccountant()
        for _ in range(50):
            theirs.step(noise_multiplier=1.2, sample_rate=4 / 200)
        expected = theirs.get_epsilon(delta=DELTA_SHARE / 200)
    said = account(InversionSettings(private_noise=1.2, batch_size=4, steps=50), subjects=200)
    assert said["epsilon"] == pytest.approx(expected, rel=1e-9)
    assert said["delta"] == pytest.approx(0.1 / 200)
    assert said["unit"] == "patient"
    # All patients in each update: Gaussian mechanism, ε(α) = T α / 2σ² (Mironov 2017), brought to (ε, δ) as Balle et
    # al. (2020, theorem 21) do.
    said = account(InversionSettings(private_noise=8.0, batch_size=20, steps=10), subjects=20)
    delta = 0.1 / 20
    orders = [1 + x / 10 for x in range(1, 100)] + list(range(12, 64))
    known = min(10 * a / (2 * 64) + math.log((a - 1) / a) - (math.log(delta) + math.log(a)) / (a - 1) for a in orders)
    assert said["epsilon"] == pytest.approx(known, rel=1e-9)


def test_epsilon_falls_with_noise_and_rises_with_updates() -> None:
    def epsilon(noise: float, steps: int) -> float:
        settings = InversionSettings(private_noise=noise, batch_size=4, steps=steps)
        return float(account(settings, subjects=400)["epsilon"])

    assert epsilon(0.8, 100) > epsilon(1.0, 100) > epsilon(2.0, 100) > 0
    assert epsilon(1.0, 400) > epsilon(1.0, 100)


def test_a_private_run_tells_its_promise(cohort: Path, base: Path, tmp_path: Path) -> None:
    run = _train(cohort, tmp_path / "run", base, private_noise=1.0, condition="label")
    expected = account(InversionSettings(private_noise=1.0, batch_size=2, steps=4), subjects=8)
    assert _content(run)["privacy"] == expected
    assert "privacy" not in _content(_train(cohort, tmp_path / "plain", base, steps=1))


def test_the_noise_of_a_private_run_follows_from_no_seed_and_goes_on_after_an_interruption(
    cohort: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = {"private_noise": 0.5, "private_clip": 0.01, "checkpoint_every": 120}
    with monkeypatch.context() as patch:
        patch.setattr(private, "draw_secret", lambda: 1234567890123456789)
        whole = _train(cohort, tmp_path / "whole", base, **order)
        _stop_at(patch, 3)
        with pytest.raises(KeyboardInterrupt):
            _train(cohort, tmp_path / "pieces", base, **order)
    # Resumed by a process that drew another secret.
    pieces = _train(cohort, tmp_path / "pieces", base, **order)
    other = _train(cohort, tmp_path / "other", base, **order)
    digests = [_content(run)["model_digest"] for run in (whole, pieces, other)]
    assert digests[0] == digests[1] != digests[2]
    for path in (entry for entry in whole.rglob("*") if entry.is_file()):
        data = path.read_bytes()
        assert b"1234567890123456789" not in data
        assert (1234567890123456789).to_bytes(8, "little") not in data


def test_several_processes_are_refused_with_privacy(cohort: Path, base: Path) -> None:
    task = _task(cohort, base, private_noise=1.0)
    several: Any = SimpleNamespace(count=2, place=torch.device("cpu"))
    with pytest.raises(SettingsError, match=r"private_noise works in one process: leave accelerate launch out"):
        PrivateDescent(task, task.settings, seed=0, processes=several)


# Processes


def _order(cohort: Path, out: Path, base: Path, **settings: Any) -> dict[str, Any]:
    order = TINY | {"base": str(base)} | settings
    return {"kind": "inversion", "cohort": str(cohort), "out": str(out), "settings": order, "device": "cpu"}


def test_two_processes_learn_what_one_does(server: Server, cohort: Path, base: Path, tmp_path: Path) -> None:
    # A batch of two images: in most updates each process sees but one of the classes.
    order = {"condition": "label"}
    alone = _train(cohort, tmp_path / "one", base, **order)
    codes, said = server.run(_order(cohort, tmp_path / "two", base, **order), processes=2)
    assert codes == [0, 0], said
    assert _content(tmp_path / "two")["processes"] == 2
    _assert_close_run(tmp_path / "two", alone)


def test_a_killed_training_goes_on(server: Server, cohort: Path, base: Path, tmp_path: Path) -> None:
    order = {"steps": 24, "batch_size": 1}
    expected = _train(cohort, tmp_path / "whole", base, **order)
    run, before = tmp_path / "run", 0
    for moment in (0.0, 0.02):
        codes, said = server.run(_order(cohort, run, base, **order), kill_after=moment, watched=run)
        assert codes == [-signal.SIGKILL], said
        assert before < newest_step(str(run)) < 24
        before = newest_step(str(run))
    _assert_same_run(_train(cohort, run, base, **order), expected)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    made = Server(tmp_path_factory.mktemp("server"), "inversion")
    yield made
    made.close()
