from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import nn

from unalike import folders
from unalike.cohort.roles import ImageSet, Roles, open_roles
from unalike.cohort.store import SCHEMA, ImageFolder
from unalike.errors import FolderError, InputError, NonFiniteLossError, RunError
from unalike.folders import Header
from unalike.records import Estimate, as_json
from unalike.seeds import seed_for
from unalike.utility import classify, training
from unalike.utility.classifier import Classifier
from unalike.utility.classify import run_classification
from unalike.utility.models import load_classifier, save_classifier
from unalike.utility.settings import UtilitySettings

CPU = torch.device("cpu")
SIDE = 12
QUICK = UtilitySettings(
    folds=2, epochs=6, patience=6, batch_size=8, learning_rate=3e-3, augment=False, precision="float32"
)


@dataclasses.dataclass(frozen=True)
class HeldFolder(ImageFolder):
    """A folder whose pixels are in memory."""

    pixels: Any = None

    def read(self, rows: Any) -> Any:
        return self.pixels[rows]


def hold(pixels: np.ndarray, labels: list[str], subjects: list[str], name: str = "cohort") -> ImageFolder:
    count = len(pixels)
    blank: dict[str, list[Any]] = {column: [None] * count for column in SCHEMA.names}
    digests = [f"{name}{index}" for index in range(count)]
    table = pa.table(blank | {"label": labels, "subject": subjects, "digest": digests}, schema=SCHEMA)
    content = {"channels": ["gray"], "height": SIDE, "width": SIDE, "dtype": pixels.dtype.name}
    header = Header(kind="cohort", settings={}, seed=0, inputs={}, content=content)
    return HeldFolder(Path(f"/{name}"), header, table, pixels)


def rows_of(folder: ImageFolder, begin: int, end: int) -> ImageSet:
    return ImageSet(folder, np.arange(begin, end, dtype=np.int64))


def squares(random: np.random.Generator, labels: list[str]) -> np.ndarray:
    """Noise, and for class b a bright square somewhere."""
    pixels = random.integers(0, 120, (len(labels), 1, SIDE, SIDE))
    for image, label in zip(pixels, labels, strict=True):
        if label == "b":
            row, column = random.integers(0, SIDE - 5, 2)
            image[0, row : row + 5, column : column + 5] = 250
    return pixels.astype(np.uint8)


def make_roles(*, train: int = 40, test: int = 40, copy: bool = False, left_out: int = 0) -> Roles:
    """Two classes told by a bright square; each subject has two images."""
    random = np.random.default_rng(4)
    count = train + test + left_out
    labels = ["ab"[index // 2 % 2] for index in range(count)]
    subjects = [f"s{index // 2:03d}" for index in range(count)]
    cohort = hold(squares(random, labels), labels, subjects)
    pixels = cohort.read(np.arange(train)) if copy else squares(random, labels[:train])
    names = [f"z{100 - index // 2}" if copy else f"sample-{index}" for index in range(train)]
    samples = hold(pixels, labels[:train], names, "samples")
    return Roles(
        synthetic=rows_of(samples, 0, train),
        train=rows_of(cohort, 0, train),
        holdout=rows_of(cohort, train, train + test),
        left_out=rows_of(cohort, train + test, count),
        warnings=(),
        inputs={},
    )


@pytest.fixture(autouse=True)
def tiny_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A network of seconds in place of ResNet-18's minutes."""

    def build(name: str, *, classes: int, channels: int, seed: int) -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(seed_for(seed, name))
            return nn.Sequential(
                nn.Conv2d(channels, 8, 5), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveMaxPool2d(1), nn.Flatten(),
                nn.Dropout(0.1), nn.Linear(8, classes),
            )  # fmt: skip

    monkeypatch.setattr("unalike.vision.networks.build_network", build)
    monkeypatch.setattr("unalike.vision.networks.smallest_side", lambda name: 1)


def run(roles: Roles, out: Path, *, seed: int = 0, **changes: Any) -> dict[str, Any]:
    out.mkdir(exist_ok=True)
    return run_classification(roles, out, settings=dataclasses.replace(QUICK, **changes), seed=seed, device=CPU)


def test_class_told_by_a_bright_square_is_learned_from_either_source(tmp_path: Path):
    found = run(make_roles(train=64), tmp_path, augment=True, epochs=15, learning_rate=2e-2)
    assert [row["source"] for row in found["table"]] == ["synthetic", "real", "real-augmented"]
    for row in found["table"]:
        assert row["test_accuracy"].value > 0.9, row["source"]
        assert row["test_accuracy"].n == 20
        assert row["auc"].value > 0.95
        assert np.sum(row["confusion"]) == 40
        assert row["accuracy_with_leaks"] is None
        assert row["weights"] == "random"
    assert {(each["first"], each["second"]) for each in found["differences"]} == {
        ("synthetic", "real"), ("synthetic", "real-augmented"), ("real-augmented", "real"),
    }  # fmt: skip
    assert found["counts"]["train"] == {"images": 64, "subjects": 32, "classes": {"a": 32, "b": 32}}
    assert any("ImageNet" in note for note in found["notes"])
    json.dumps(as_json(found), allow_nan=False)


def test_synthetic_images_that_are_the_train_images_score_exactly_as_they(tmp_path: Path):
    found = run(make_roles(copy=True), tmp_path)
    synthetic, real = (
        {key: value for key, value in row.items() if key not in {"source", "seconds", "seconds_each"}}
        for row in found["table"]
    )
    assert synthetic == real
    difference = found["differences"][0]
    assert (difference["auc"].value, difference["auc"].low, difference["auc"].high) == (0, 0, 0)


def test_the_same_seed_gives_the_same_numbers_and_another_seed_others(tmp_path: Path):
    first, again, other = (
        run(make_roles(), tmp_path / name, seed=seed, epochs=2, augment=True)["table"]
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    )
    losses = [[row["test_loss_each"] for row in table] for table in (first, again, other)]
    assert losses[0] == losses[1]
    assert losses[0] != losses[2]


def test_finished_cells_are_not_computed_again_and_an_interrupted_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    whole = run(make_roles(), tmp_path / "whole", tune=2, epochs=2)
    calls: list[str] = []
    train = training.train_with_stopping

    def interrupted(classifier: Classifier, *rest: Any, **named: Any) -> Any:
        calls.append(classifier.name)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return train(classifier, *rest, **named)

    for module in ("crossval", "tuning"):
        monkeypatch.setattr(f"unalike.utility.{module}.train_with_stopping", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(make_roles(), tmp_path / "cut", tune=2, epochs=2)
    assert len(list((tmp_path / "cut" / "cells").glob("*.json"))) == 3
    resumed = run(make_roles(), tmp_path / "cut", tune=2, epochs=2)
    assert len(calls) == 4 + 5  # eight cells in all, three of them finished before
    again = run(make_roles(), tmp_path / "cut", tune=2, epochs=2)
    assert len(calls) == 4 + 5
    assert as_json(again) == as_json(resumed)
    for row, expected in zip(resumed["table"], whole["table"], strict=True):
        assert row["test_loss_each"] == expected["test_loss_each"]
    assert not list((tmp_path / "cut").rglob("*.partial"))


def test_damaged_cell_is_computed_again(tmp_path: Path):
    before = run(make_roles(), tmp_path, epochs=2)
    file = tmp_path / "cells" / "resnet18-real-fold0.test.npy"
    file.write_bytes(file.read_bytes()[:-8])
    after = run(make_roles(), tmp_path, epochs=2)
    assert [row["test_loss_each"] for row in after["table"]] == [row["test_loss_each"] for row in before["table"]]


def test_cells_of_other_settings_or_images_are_refused(tmp_path: Path):
    run(make_roles(), tmp_path, epochs=1)
    with pytest.raises(FolderError, match="other images, settings or another seed"):
        run(make_roles(), tmp_path, epochs=1, seed=1)
    with pytest.raises(FolderError, match="other images, settings or another seed"):
        run(make_roles(copy=True), tmp_path, epochs=1)


def test_predictions_on_disk_are_what_the_table_counts(tmp_path: Path):
    found = run(make_roles(), tmp_path, epochs=3)
    predictions = found["predictions"]
    assert predictions["rows"] == list(range(40, 80))
    for entry, row in zip(predictions["files"], found["table"], strict=True):
        arrays = [np.load(tmp_path / file, allow_pickle=False) for file in entry["files"]]
        right = [(array.argmax(axis=1) == predictions["truth"]).mean() for array in arrays]
        assert right == pytest.approx(row["test_accuracy_each"])
        assert row["test_accuracy"].value == pytest.approx(np.mean(right))


def test_kept_model_predicts_what_the_first_fold_predicted(tmp_path: Path):
    roles = make_roles()
    found = run(roles, tmp_path, epochs=2)
    for entry, files in zip(found["models"], found["predictions"]["files"], strict=True):
        classifier = load_classifier(tmp_path / entry["folder"], device=CPU)
        images = roles.holdout.folder.read(roles.holdout.rows)
        assert np.array_equal(classifier.predict(images), np.load(tmp_path / files["files"][0]))


def test_changed_weights_or_description_of_a_model_are_refused(tmp_path: Path):
    network = training.networks.build_network("resnet18", classes=2, channels=1, seed=0)
    save_classifier(Classifier("resnet18", ("a", "b"), (0,), SIDE, 255, (0.5,), (0.2,), network), tmp_path)
    assert load_classifier(tmp_path, device=CPU).classes == ("a", "b")
    weights = tmp_path / "classifier.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(bytes(content))
    with pytest.raises(FolderError, match="changed since"):
        load_classifier(tmp_path, device=CPU)
    (tmp_path / "classifier.json").unlink()
    with pytest.raises(FolderError, match="holds no classifier"):
        load_classifier(tmp_path, device=CPU)


@pytest.mark.parametrize(
    "error", [NonFiniteLossError("diverged"), MemoryError(), torch.OutOfMemoryError("CUDA out of memory.")]
)
def test_network_that_fails_is_noted_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
):
    train = training.train_with_stopping

    def failing(classifier: Classifier, *rest: Any, **named: Any) -> Any:
        if classifier.name == "resnet18":
            raise error
        return train(classifier, *rest, **named)

    monkeypatch.setattr("unalike.utility.crossval.train_with_stopping", failing)
    found = run(make_roles(), tmp_path, networks=("resnet18", "alexnet"), epochs=1)
    assert [row["network"] for row in found["table"]] == ["alexnet", "alexnet"]
    assert [each["cell"] for each in found["failed"]] == ["resnet18-synthetic", "resnet18-real"]
    assert sum("was not finished" in note for note in found["notes"]) == 2
    with pytest.raises(RunError, match="nothing could be trained"):
        run(make_roles(), tmp_path / "alone", epochs=1)


def test_full_disk_stops_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(*rest: Any, **named: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(classify.np, "save", full)
    with pytest.raises(RunError, match="No space left"):
        run(make_roles(), tmp_path, networks=("resnet18", "alexnet"), epochs=1)
    assert not list((tmp_path / "cells").glob("*.json"))


def test_random_labels_are_told_only_where_test_subjects_are_in_train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def remember(name: str, *, classes: int, channels: int, seed: int) -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return nn.Sequential(nn.Flatten(), nn.Linear(channels * SIDE**2, 128), nn.ReLU(), nn.Linear(128, classes))

    monkeypatch.setattr("unalike.vision.networks.build_network", remember)
    random = np.random.default_rng(11)
    people, each = 90, 6
    faces = random.integers(60, 190, (people, 1, SIDE, SIDE))
    coins = np.array(["a", "b"])[random.permutation(people) % 2]  # a class says nothing of the face
    pixels = np.repeat(faces, each, axis=0) + random.integers(-9, 10, (people * each, 1, SIDE, SIDE))
    cohort = hold(
        pixels.astype(np.uint8), np.repeat(coins, each).tolist(), [f"s{n // each}" for n in range(people * each)]
    )
    place = np.arange(people * each)
    person, image = place // each, place % each
    train = place[(person < 40) & (image < 4)]
    leaked, honest = place[(person < 40) & (image >= 4)], place[person >= 40]
    roles = Roles(
        synthetic=ImageSet(cohort, train[::4]),
        train=ImageSet(cohort, train),
        holdout=ImageSet(cohort, honest),
        left_out=ImageSet(cohort, leaked),
        warnings=(),
        inputs={},
    )
    found = run(roles, tmp_path, folds=4, epochs=3, batch_size=8, learning_rate=2e-3)
    row = found["table"][1]
    assert row["test_accuracy"].low < 0.5 < row["test_accuracy"].high
    assert row["accuracy_with_leaks"].n == 90
    known = np.mean(
        [
            np.load(tmp_path / "cells" / f"resnet18-real-fold{fold}.leaked.npy").argmax(axis=1)
            == (np.repeat(coins, each)[leaked] == "b")
            for fold in range(4)
        ]
    )
    assert known > 0.75  # three quarters of them are known by heart, the rest are guessed
    expected = (row["test_accuracy"].value * len(honest) + known * len(leaked)) / (len(honest) + len(leaked))
    assert row["accuracy_with_leaks"].value == pytest.approx(expected)
    assert row["accuracy_with_leaks"].value > row["test_accuracy"].value + 0.02
    assert any("With leaks" in note for note in found["notes"])


def test_shuffled_labels_give_chance(tmp_path: Path):
    roles = make_roles(train=40, test=120)
    shuffled = np.random.default_rng(5).permutation(roles.synthetic.labels).tolist()
    folder = roles.synthetic.folder
    samples = hold(folder.pixels, shuffled, folder.column("subject").tolist(), "samples")  # type: ignore[attr-defined]
    found = run(dataclasses.replace(roles, synthetic=rows_of(samples, 0, 40)), tmp_path, epochs=2)
    accuracy: Estimate = found["table"][0]["test_accuracy"]
    assert 0.3 < accuracy.value < 0.7
    assert found["table"][1]["test_accuracy"].value > accuracy.value


def _without(images: ImageSet, label: str) -> ImageSet:
    return ImageSet(images.folder, images.rows[images.labels != label])


@pytest.mark.parametrize("role", ["synthetic", "train", "holdout"])
def test_class_missing_in_a_role_is_one_line_that_names_folder_class_and_role(tmp_path: Path, role: str):
    roles = make_roles()
    poorer = dataclasses.replace(roles, **{role: _without(getattr(roles, role), "b")})
    with pytest.raises(InputError, match=f"class 'b' is missing in {role}") as caught:
        run(poorer, tmp_path)
    assert str(getattr(roles, role).folder.path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_one_class_only_is_refused(tmp_path: Path):
    roles = make_roles()
    alone = {role: _without(getattr(roles, role), "b") for role in ("synthetic", "train", "holdout")}
    with pytest.raises(InputError, match="all images are of one class, 'a'"):
        run(dataclasses.replace(roles, **alone), tmp_path)


def test_unknown_classes_are_refused_with_what_to_do(tmp_path: Path):
    roles = make_roles()
    folder = roles.synthetic.folder
    nameless = hold(folder.pixels, [""] * 40, folder.column("subject").tolist(), "samples")  # type: ignore[attr-defined]
    with pytest.raises(InputError, match=r"/samples \(synthetic\): 40 of 40 images have no class.*--condition label"):
        run(dataclasses.replace(roles, synthetic=rows_of(nameless, 0, 40)), tmp_path)


def test_no_test_images_are_refused(tmp_path: Path):
    roles = make_roles()
    with pytest.raises(InputError, match="no holdout images"):
        run(dataclasses.replace(roles, holdout=rows_of(roles.train.folder, 0, 0)), tmp_path)


def test_fewer_subjects_than_folds_are_refused(tmp_path: Path):
    with pytest.raises(InputError, match=r"/cohort \(real\): class 'a' has 10 subjects, fewer than the 11 folds"):
        run(make_roles(), tmp_path, folds=11)


def test_missing_weights_are_said_before_anything_is_trained(tmp_path: Path):
    weights = tmp_path / "weights"
    weights.mkdir()
    with pytest.raises(InputError, match="resnet18"):
        run(make_roles(), tmp_path / "out", weights=str(weights))
    assert not (tmp_path / "out" / "cells").exists()


def test_sixteen_bits_learn_as_well(tmp_path: Path):
    roles = make_roles(train=64)
    deep = {}
    for role in ("synthetic", "train", "holdout"):
        images: ImageSet = getattr(roles, role)
        pixels = images.folder.read(images.rows).astype(np.uint16) * 16
        held = hold(pixels, images.labels.tolist(), images.subjects.tolist(), role)
        deep[role] = rows_of(held, 0, len(pixels))
    found = run(dataclasses.replace(roles, **deep), tmp_path, epochs=15, learning_rate=2e-2)
    assert found["table"][1]["test_accuracy"].value > 0.9


def test_folders_of_pictures_go_the_whole_way(tmp_path: Path):
    from PIL import Image

    random = np.random.default_rng(0)
    for role, count in (("synthetic", 12), ("train", 12), ("holdout", 10)):
        labels = ["a", "b"] * (count // 2)
        for index, (image, label) in enumerate(zip(squares(random, labels), labels, strict=True)):
            place = tmp_path / role / label
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image[0]).save(place / f"{index}.png")
    with open_roles(
        synthetic=tmp_path / "synthetic",
        against=None,
        train=tmp_path / "train",
        holdout=tmp_path / "holdout",
        settings=QUICK,
        labels=True,
    ) as roles:
        found = run(roles, tmp_path / "out", epochs=1)
    assert found["classes"] == ["a", "b"]
    assert found["counts"]["holdout"]["subjects"] == 10
    assert not math.isnan(found["table"][0]["auc"].low)
    assert folders.read_json(tmp_path / "out" / "cells" / "resnet18-real-fold1.json")["numbers"]["epochs"] == 1


def test_mixing_is_part_of_the_run_and_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    named = {"mix": ("16:0", "16:all"), "mix_batches": 2, "mix_checks": 1, "repetitions": 2, "epochs": 1}
    found = run(make_roles(), tmp_path, **named)
    rows = [(row["real"], row["synthetic"], row["augmentation"]) for row in found["mixing"]["rows"]]
    assert rows == [(16, 0, True), (16, 0, False), (16, 40, True)]
    assert all(row["auc"].n == 20 for row in found["mixing"]["rows"])

    def never(*given: Any, **named: Any) -> None:
        raise AssertionError("computed again")

    monkeypatch.setattr(classify, "train_mixture", never)
    assert as_json(run(make_roles(), tmp_path, **named)) == as_json(found)


def test_search_keeps_the_best_trial_and_proposes_the_same_after_an_interruption():
    from unalike.utility.crossval import Source
    from unalike.utility.training import CellResult, Frame, Recipe
    from unalike.utility.tuning import Search, tune_recipe

    frame = Frame(("a", "b"), (0,), (SIDE, SIDE), 255, dataclasses.replace(QUICK, tune=16), 0, CPU)
    images = training.Labelled(np.zeros((4, 1, SIDE, SIDE), np.uint8), np.arange(4) % 2, np.arange(4).astype(str))
    search = Search(Source("real", images, Path("cohort")), np.arange(1), "resnet18", frame)
    given = Recipe(learning_rate=1.0, weight_decay=0.0, batch_size=8)  # outside of what is searched

    def keep(name: str, work: Any) -> CellResult:
        recipe = work.args[1]
        told = {name: getattr(recipe, name) for name in ("learning_rate", "weight_decay", "batch_size")}
        distance = abs(math.log10(recipe.learning_rate) + 3)
        diverged = recipe.batch_size == 64
        return CellResult(told | {"validation_loss": None if diverged else distance})

    chosen, about = tune_recipe(search, given, keep=keep)
    trials = about["trials"]
    assert len(trials) == 16
    assert trials[0]["learning_rate"] == 1.0
    assert len({trial["learning_rate"] for trial in trials}) == 16
    assert all(1e-5 <= trial["learning_rate"] <= 1e-2 for trial in trials[1:])
    best = min((trial for trial in trials if trial["validation_loss"] is not None), key=lambda t: t["validation_loss"])
    assert (chosen.learning_rate, chosen.batch_size) == (best["learning_rate"], best["batch_size"])
    assert 2e-4 < chosen.learning_rate < 5e-3
    assert tune_recipe(search, given, keep=keep)[1] == about
    with pytest.raises(NonFiniteLossError, match="all trials"):
        tune_recipe(search, given, keep=lambda name, work: CellResult({"validation_loss": None, "learning_rate": 1.0}))
