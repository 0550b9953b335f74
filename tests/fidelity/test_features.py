"""Features are those of the train images' autoencoder, each image by itself; what a cache holds is checked."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from tests.conftest import draw_person

from unalike import folders
from unalike.cohort.store import ImageFolder, ImageWriter, open_images
from unalike.engine import Progress
from unalike.errors import InputError, PictureError, SettingsError
from unalike.fidelity import features as features_module
from unalike.fidelity.features import AutoencoderFeatures, Features, embed_cached, open_cohort_features
from unalike.similarity.embedding.settings import EmbeddingSettings
from unalike.similarity.embedding.train import cached_embedding

CPU = torch.device("cpu")
TINY = EmbeddingSettings(kind="autoencoder", dimension=8, side=16, width=8, steps=6, batch=8)
HELD = 4


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features_module, "SETTINGS", TINY)


def make(out: Path, *, channels: Sequence[str] = ("t1",), subjects: int = 12, dtype: Any = np.uint8) -> ImageFolder:
    """Subjects with two images each; the last four are held out, and image 5 is image 4 again."""
    folders.begin_folder(out, kind="cohort", settings={})
    writer = ImageWriter(out, channels=channels, height=24, width=24, dtype=np.dtype(dtype))
    random = np.random.default_rng(0)
    before = np.zeros(0)
    for subject in range(subjects):
        for number in range(2):
            image = np.concatenate([draw_person(random) for _ in channels]).astype(dtype)
            image = before if (subject, number) == (2, 1) else image
            before = image
            role = "holdout" if subject >= subjects - HELD else "train"
            record = {"subject": f"s{subject:02d}", "source": f"f{subject}", "slice": number, "role": role}
            writer.append(image, record)
    folders.finish_folder(out, kind="cohort", settings={}, seed=0, inputs={}, content=writer.close())
    return open_images(out)


@pytest.fixture
def cohort(tmp_path: Path) -> ImageFolder:
    return make(tmp_path / "cohort")


def learn(cohort: ImageFolder, **options: Any) -> AutoencoderFeatures:
    given: dict[str, Any] = {"rows": cohort.rows("train"), "seed": 0, "device": CPU} | options
    return open_cohort_features(cohort, **given)


# The cohort's autoencoder


def test_vectors_are_those_of_the_space_before_their_length_is_made_1(cohort: ImageFolder) -> None:
    features, images = learn(cohort), cohort.read(np.arange(24))
    found, unit = features.embed(images), features.space.embed(images)
    lengths = np.linalg.norm(found, axis=1, keepdims=True)
    assert found.shape == (24, 8)
    assert found.dtype == np.float64
    assert found / lengths == pytest.approx(unit, abs=1e-5)
    assert lengths.std() > 0.01 * lengths.mean()


def test_the_space_is_the_one_that_an_audit_learns(cohort: ImageFolder) -> None:
    rows = cohort.rows("train")
    features = learn(cohort)
    _, subjects = np.unique(cohort.column("subject")[rows], return_inverse=True)

    def unread(rows: np.ndarray) -> Any:
        raise AssertionError("the space is there already")

    space = cached_embedding(
        cache=cohort.path / folders.INDEX,
        digests=cohort.column("digest")[rows].tolist(),
        read=unread,
        rows=rows,
        channels=[0],
        settings=TINY,
        seed=0,
        device=CPU,
        subjects=subjects,
    )
    assert space.digest == features.space.digest


def test_name_and_digest_tell_features_apart(cohort: ImageFolder, tmp_path: Path) -> None:
    first, again, other = learn(cohort), learn(make(tmp_path / "again")), learn(cohort, seed=1)
    assert first.digest == again.digest != other.digest
    assert first.name == f"autoencoder of the cohort ({first.digest[:8]})"
    brighter = dataclasses.replace(first.space, highest=200)
    assert AutoencoderFeatures(brighter).digest != first.digest
    features: Features = first  # what fits the protocol
    assert features.name == again.name


def test_only_train_images_are_learned_from(cohort: ImageFolder) -> None:
    with pytest.raises(InputError, match=r"row 16 of .*cohort is no train image"):
        learn(cohort, rows=np.arange(20))
    with pytest.raises(InputError, match="no train image"):
        learn(cohort, rows=np.array([0, 1, 99]))
    with pytest.raises(InputError, match="2 images"):
        learn(cohort, rows=np.arange(1))


def test_the_order_of_rows_does_not_matter(cohort: ImageFolder) -> None:
    rows = cohort.rows("train")
    assert learn(cohort, rows=rows[::-1]).digest == learn(cohort, rows=np.append(rows, rows[:3])).digest
    assert learn(cohort, rows=rows[:10]).digest != learn(cohort).digest


def test_the_mask_does_not_count_where_there_is_more(tmp_path: Path) -> None:
    cohort = make(tmp_path / "masked", channels=("t1", "mask", "t2"))
    features, images = learn(cohort), cohort.read(np.arange(4))
    assert features.space.channels == (0, 2)
    changed = images.copy()
    changed[:, 1] = 0
    assert (features.embed(changed) == features.embed(images)).all()
    changed[:, 2] = 0
    assert (features.embed(changed) != features.embed(images)).any()
    assert learn(make(tmp_path / "masks", channels=("mask",))).space.channels == (0,)


def test_a_vector_does_not_depend_on_the_others(cohort: ImageFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    features, images = learn(cohort), cohort.read(np.arange(24))
    whole = features.embed(images)
    assert (features.embed(images) == whole).all()
    order = np.random.default_rng(0).permutation(24)
    monkeypatch.setattr(features_module, "AT_ONCE", 5)
    assert features.embed(images[order]) == pytest.approx(whole[order], abs=1e-5)
    assert features.embed(images[:0]).shape == (0, 8)


def test_images_of_16_bits(tmp_path: Path) -> None:
    cohort = make(tmp_path / "deep", dtype=np.uint16)
    assert np.isfinite(learn(cohort).embed(cohort.read(np.arange(24)))).all()


def test_side_is_that_of_the_network(cohort: ImageFolder) -> None:
    assert learn(cohort, side=32).space.settings == dataclasses.replace(TINY, side=32)
    with pytest.raises(SettingsError, match="side"):
        learn(cohort, side=20)


def test_images_that_do_not_fit(cohort: ImageFolder) -> None:
    features = learn(cohort)
    with pytest.raises(PictureError, match="uint16"):
        features.embed(cohort.read(np.arange(2)).astype(np.uint16))


def test_training_tells_its_progress(cohort: ImageFolder) -> None:
    class Counted(Progress):
        told = 0

        def advance(self, count: int = 1, text: str = "") -> None:
            self.told += count

    progress = Counted()
    learn(cohort, progress=progress)
    assert progress.told == TINY.steps


# The cache


class Means:
    """The mean of each channel, and how many images were asked about."""

    name = "means"

    def __init__(self, digest: str = "a") -> None:
        self.digest = digest
        self.asked = 0

    def embed(self, images: Any) -> np.ndarray:
        self.asked += len(images)
        found: np.ndarray = images.mean(axis=(2, 3), dtype=np.float64)
        return found


ROWS = np.array([7, 3, 20, 3, 5, 4, 11])  # 3 twice, and 4 and 5 are the same image


def means_of(cohort: ImageFolder, rows: np.ndarray = ROWS) -> np.ndarray:
    return Means().embed(cohort.read(rows))


def test_features_come_in_the_order_of_the_rows(cohort: ImageFolder) -> None:
    features = Means()
    assert (embed_cached(features, cohort, ROWS, None) == means_of(cohort)).all()
    assert features.asked == 5  # each image once
    assert embed_cached(features, cohort, ROWS[:0], None).shape == (0, 1)


def test_blocks_do_not_change_the_order(cohort: ImageFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features_module, "AT_ONCE", 2)
    rows = np.random.default_rng(0).permutation(24)
    assert (embed_cached(Means(), cohort, rows, None) == means_of(cohort, rows)).all()


def test_a_second_call_reads_what_the_first_one_kept(cohort: ImageFolder, tmp_path: Path) -> None:
    cache, features = tmp_path / "new" / "cache", Means()
    fresh = embed_cached(features, cohort, ROWS, cache)
    asked = features.asked
    assert embed_cached(features, cohort, ROWS, cache).tobytes() == fresh.tobytes()
    assert embed_cached(features, cohort, ROWS[::-1], cache).tobytes() == fresh[::-1].tobytes()
    assert features.asked == asked
    (file,) = cache.iterdir()
    assert file.name.startswith("features-")
    assert file.suffix == ".safetensors"


def test_learned_features_are_kept_to_the_last_bit(cohort: ImageFolder, tmp_path: Path) -> None:
    features = learn(cohort)
    fresh = embed_cached(features, cohort, ROWS, tmp_path / "cache")
    assert embed_cached(learn(cohort), cohort, ROWS, tmp_path / "cache").tobytes() == fresh.tobytes()
    assert fresh == pytest.approx(features.embed(cohort.read(ROWS)), abs=1e-5)


def test_other_features_or_images_are_another_file(cohort: ImageFolder, tmp_path: Path) -> None:
    other = Means("b")
    embed_cached(Means("a"), cohort, ROWS, tmp_path / "cache")
    embed_cached(other, cohort, ROWS, tmp_path / "cache")
    assert other.asked == 5
    embed_cached(Means("a"), cohort, ROWS[:2], tmp_path / "cache")
    assert len(list((tmp_path / "cache").iterdir())) == 3


def test_the_same_images_in_another_folder_are_the_same(cohort: ImageFolder, tmp_path: Path) -> None:
    embed_cached(Means(), cohort, ROWS, tmp_path / "cache")
    features = Means()
    found = embed_cached(features, make(tmp_path / "again"), ROWS, tmp_path / "cache")
    assert (found == means_of(cohort)).all()
    assert features.asked == 0


def read_header(file: Path) -> dict[str, str]:
    with safe_open(file, framework="numpy") as stream:
        return dict(stream.metadata())


@pytest.mark.parametrize(
    "damage", ["empty", "cut", "byte", "text", "folder", "value", "header", "key", "table", "list", "rows"]
)
def test_a_damaged_file_is_made_again(damage: str, cohort: ImageFolder, tmp_path: Path) -> None:
    embed_cached(Means(), cohort, ROWS, tmp_path)
    (file,) = tmp_path.glob("*.safetensors")
    whole, table, header = file.read_bytes(), load_file(file)["features"], read_header(file)
    told = json.loads(header["unalike"])
    if damage == "empty":
        file.write_bytes(b"")
    elif damage == "cut":
        file.write_bytes(whole[:-3])
    elif damage == "byte":
        file.write_bytes(whole[:-3] + bytes([whole[-3] ^ 1]) + whole[-2:])
    elif damage == "text":
        file.write_text("not features")
    elif damage == "folder":
        file.unlink()
        file.mkdir()
    elif damage == "value":
        save_file({"features": table + 1}, file, metadata=header)
    elif damage == "header":
        save_file({"features": table}, file)
    elif damage == "key":
        save_file({"features": table}, file, metadata={"unalike": json.dumps(told | {"key": "another"})})
    elif damage == "table":
        save_file({"another": table}, file, metadata=header)
    elif damage == "list":
        save_file({"features": table}, file, metadata={"unalike": "[]"})
    elif damage == "rows":
        digest = features_module._digest(table[:2])
        save_file({"features": table[:2]}, file, metadata={"unalike": json.dumps(told | {"digest": digest})})
    again = Means()
    assert (embed_cached(again, cohort, ROWS, tmp_path) == means_of(cohort)).all()
    assert again.asked == 5
    if damage != "folder":
        assert file.read_bytes() == whole
    assert not list(tmp_path.glob("*.partial"))


def test_a_cache_that_cannot_be_written_is_no_error(
    cohort: ImageFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("not a folder")
    assert (embed_cached(Means(), cohort, ROWS, tmp_path / "file") == means_of(cohort)).all()

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(features_module.os, "fsync", full)
    assert (embed_cached(Means(), cohort, ROWS, tmp_path / "cache") == means_of(cohort)).all()
    assert list((tmp_path / "cache").iterdir()) == []
