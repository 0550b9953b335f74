"""Features are the train images' autoencoder and band powers, each image by itself; what a cache holds is checked."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from scipy import ndimage
from tests.conftest import draw_person

from unalike import folders
from unalike.cohort.store import ImageFolder, ImageWriter, open_images
from unalike.engine import Progress
from unalike.errors import InputError, PictureError, SettingsError
from unalike.fidelity import features as features_module
from unalike.fidelity import own as own_module
from unalike.fidelity.features import Features, embed_cached
from unalike.fidelity.frechet import frechet_distance
from unalike.fidelity.own import (
    FLOOR,
    AutoencoderFeatures,
    CohortFeatures,
    band_powers,
    count_bands,
    describe_bands,
    open_cohort_features,
)
from unalike.similarity.embedding.settings import EmbeddingSettings
from unalike.similarity.embedding.train import cached_embedding

CPU = torch.device("cpu")
TINY = EmbeddingSettings(kind="autoencoder", dimension=8, side=16, width=8, steps=6, batch=8)
HELD = 4


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own_module, "SETTINGS", TINY)


def make(
    out: Path,
    *,
    channels: Sequence[str] = ("t1",),
    subjects: int = 12,
    held: int = HELD,
    dtype: Any = np.uint8,
    dark: bool = False,
) -> ImageFolder:
    """Subjects with two images each (``dark``: all black); the last ones are held out, and image 5 is image 4 again."""
    folders.begin_folder(out, kind="cohort", settings={})
    writer = ImageWriter(out, channels=channels, height=24, width=24, dtype=np.dtype(dtype))
    random = np.random.default_rng(0)
    before = np.zeros(0)
    for subject in range(subjects):
        for number in range(2):
            image = np.concatenate([draw_person(random) for _ in channels]).astype(dtype)
            image = before if (subject, number) == (2, 1) else image
            image = np.zeros_like(image) if dark else image
            before = image
            role = "holdout" if subject >= subjects - held else "train"
            record = {"subject": f"s{subject:02d}", "source": f"f{subject}", "slice": number, "role": role}
            writer.append(image, record)
    folders.finish_folder(out, kind="cohort", settings={}, seed=0, inputs={}, content=writer.close())
    return open_images(out)


@pytest.fixture
def cohort(tmp_path: Path) -> ImageFolder:
    return make(tmp_path / "cohort")


def learn(cohort: ImageFolder, **options: Any) -> CohortFeatures:
    given: dict[str, Any] = {"rows": cohort.rows("train"), "seed": 0, "device": CPU} | options
    return open_cohort_features(cohort, **given)


# Bands of spatial frequency


def wave(down: float, across: float, *, height: int = 64, width: int = 64) -> np.ndarray:
    """An image (1, H, W) of one plane wave of amplitude 1, with so many cycles a pixel down and across."""
    rows, columns = np.mgrid[:height, :width]
    found: np.ndarray = np.cos(2 * np.pi * (down * rows + across * columns) + 0.7)[None]
    return found


@pytest.mark.parametrize(
    ("down", "across", "band"),
    [
        (0, 1 / 64, 0),
        (3 / 128, 0, 0),
        (0, 3 / 64, 1),
        (3 / 64, -0.05, 2),
        (3 / 16, 0, 3),
        (0, 3 / 16, 3),
        (0.3, 0.2, 4),
        (0, 0.4, 4),
        (0.45, -0.45, 5),
    ],
)
def test_a_wave_is_in_the_band_of_its_frequency(down: float, across: float, band: int) -> None:
    (powers,) = band_powers(wave(down, across))
    assert powers.shape == (6,)
    # The taper blurs frequencies by about one cycle in the image: long waves reach into the next band.
    assert powers[band] > (0.85 if band < 3 else 0.99) * powers.sum()
    # A wave of amplitude 1 has variance 1/2, whatever its frequency; of one cycle more or less is seen.
    assert powers.sum() == pytest.approx(0.5, rel=0.5 if band == 0 else 0.01)


def test_a_wave_from_edge_to_edge_is_not_fine_detail() -> None:
    # One and a half cycles: where the transform goes round, the brightest side meets the darkest.
    (powers,) = band_powers(wave(0, 1.5 / 64))
    assert powers[-3:].sum() < 1e-4 * powers.sum()


@pytest.mark.parametrize(("height", "width"), [(64, 64), (24, 31), (17, 40), (2, 3), (1, 5)])
def test_powers_sum_to_the_tapered_variance(height: int, width: int) -> None:
    images = np.random.default_rng(0).random((3, height, width))
    powers = band_powers(images)
    assert powers.shape == (3, count_bands(height, width))
    down, across = ((np.arange(size) + 0.5) / size for size in (height, width))
    sides = [np.sin(np.pi / 2 * np.clip(4 * np.minimum(side, 1 - side), 0, 1)) ** 2 for side in (down, across)]
    taper = sides[0][:, None] * sides[1]
    mean = np.average(images.reshape(3, -1), weights=taper.ravel(), axis=1)
    expected = [np.average((image - mu) ** 2, weights=taper**2) for image, mu in zip(images, mean, strict=True)]
    assert powers.sum(axis=1) == pytest.approx(np.array(expected), rel=1e-12)


def test_without_a_taper_powers_sum_to_the_variance(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own_module, "_fade", np.ones)
    own_module._grid.cache_clear()
    try:
        images = np.random.default_rng(0).random((2, 33, 48))
        assert band_powers(images).sum(axis=1) == pytest.approx(images.var(axis=(1, 2)), rel=1e-12)
    finally:
        own_module._grid.cache_clear()


def test_white_noise_has_equal_power_at_all_frequencies() -> None:
    powers = band_powers(np.random.default_rng(0).normal(0, 3, (200, 64, 64))).mean(axis=0)
    down, across = np.meshgrid(np.fft.fftfreq(64), np.fft.fftfreq(64))
    radius = np.hypot(down, across)
    edges = [0, 1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 1]
    # Without the mean, which is taken away.
    share = [((radius > low) & (radius <= high)).sum() / 4096 for low, high in pairwise(edges)]
    assert powers[1:] == pytest.approx(9 * np.array(share)[1:], rel=0.03)


def test_number_of_bands() -> None:
    sizes = [(1, 1), (16, 16), (24, 24), (64, 64), (64, 200), (255, 255), (256, 256), (1024, 1024)]
    assert [count_bands(*size) for size in sizes] == [1, 4, 4, 6, 6, 7, 8, 8]


def test_brightness_and_powers_stand_side_by_side() -> None:
    images = np.random.default_rng(0).integers(0, 201, (3, 2, 32, 32)).astype(np.uint16)
    found = describe_bands(images, highest=200)
    assert found.shape == (3, 2 * (2 + 5))
    unit = images[2, 1] / 200
    expected = np.log(np.array([unit.mean() ** 2, unit.var(), *band_powers(unit[None])[0]]) + FLOOR)
    assert found[2, 7:] == pytest.approx(expected, rel=1e-12)
    once, twice = (np.exp(describe_bands(images * gain, highest=400)) - FLOOR for gain in (1, 2))
    assert twice == pytest.approx(4 * once, rel=1e-6)


@pytest.mark.parametrize("level", [0, 7, 255])
def test_a_constant_image_is_finite(level: int) -> None:
    found = describe_bands(np.full((1, 1, 24, 24), level, np.uint8), highest=255)
    empty = np.log(FLOOR)
    assert found[0] == pytest.approx([np.log((level / 255) ** 2 + FLOOR), *[empty] * 5], abs=1e-9)


def test_brighter_than_the_brightest_counts_as_that() -> None:
    images = np.array([[[[0, 100], [50, 100]]], [[[0, 900], [50, 101]]]], np.uint16)
    found = describe_bands(images, highest=100)
    assert (found[0] == found[1]).all()


def test_bands_of_an_image_do_not_depend_on_the_others() -> None:
    images = np.random.default_rng(0).integers(0, 256, (9, 3, 24, 20)).astype(np.uint8)
    whole = describe_bands(images, highest=255)
    assert (describe_bands(images[::-1], highest=255)[::-1] == whole).all()
    assert (np.concatenate([describe_bands(image[None], highest=255) for image in images]) == whole).all()
    assert describe_bands(images[:0], highest=255).shape == (0, 18)


# Both blocks


def test_blocks_stand_side_by_side_each_divided_by_its_scale(cohort: ImageFolder) -> None:
    features, images = learn(cohort), cohort.read(np.arange(24))
    found = features.embed(images)
    assert found.shape == (24, 8 + 2 + 4)
    assert found[:, :8] == pytest.approx(features.autoencoder.embed(images) / features.scales[0], rel=1e-12)
    assert found[:, 8:] == pytest.approx(describe_bands(images, highest=255) / features.scales[1], rel=1e-12)


def test_total_variances_over_the_train_images_are_known(cohort: ImageFolder) -> None:
    # Image 5 is image 4 again: of equal images one counts. Scales have three digits.
    rows = np.setdiff1d(cohort.rows("train"), [5])
    found = learn(cohort).embed(cohort.read(rows))
    assert found[:, :8].var(axis=0).sum() == pytest.approx(1, abs=0.02)
    assert found[:, 8:].var(axis=0).sum() == pytest.approx(1, abs=0.02)


def test_what_is_done_to_images_takes_them_further_than_the_holdout_is(tmp_path: Path) -> None:
    cohort = make(tmp_path / "many", subjects=60, held=30)
    features, random = learn(cohort), np.random.default_rng(0)
    train, images = features.embed(cohort.read(cohort.rows("train"))), cohort.read(cohort.rows("holdout"))
    yardstick = frechet_distance(features.embed(images), train)

    def distance(changed: np.ndarray) -> float:
        pixels = np.rint(np.clip(changed, 0, 255)).astype(np.uint8)
        return frechet_distance(features.embed(pixels), train) / yardstick

    pixels = images.astype(np.float64)
    slight, strong = (distance(ndimage.gaussian_filter(pixels, (0, 0, sigma, sigma))) for sigma in (0.7, 1.5))
    assert 5 < slight < strong
    some, much = (distance(pixels + random.normal(0, deviation, pixels.shape)) for deviation in (5, 15))
    assert 1 < some < much
    assert much > 5
    assert distance(images[np.arange(len(images)) % 3]) > 1.5
    assert distance(images[::-1]) == pytest.approx(1, rel=1e-3)


def test_the_scales_are_kept_and_not_made_again(cohort: ImageFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    first = learn(cohort)
    (kept,) = (cohort.path / folders.INDEX).glob("scales-*.safetensors")
    assert load_file(kept)["features"].tolist() == list(first.scales)

    def unread(*_: Any) -> Any:
        raise AssertionError("the scales are there already")

    monkeypatch.setattr(own_module, "embed_rows", unread)
    again = learn(cohort)
    assert again.scales == first.scales
    assert again.digest == first.digest


@pytest.mark.parametrize("damage", ["empty", "value", "three"])
def test_damaged_scales_are_made_again(damage: str, cohort: ImageFolder) -> None:
    first = learn(cohort)
    (kept,) = (cohort.path / folders.INDEX).glob("scales-*.safetensors")
    whole, header = kept.read_bytes(), read_header(kept)
    if damage == "empty":
        kept.write_bytes(b"")
    elif damage == "value":
        save_file({"features": np.array([1.0, 2.0])}, kept, metadata=header)
    elif damage == "three":
        table = np.array([1.0, 2.0, 3.0])
        told = json.loads(header["unalike"]) | {"digest": features_module.table_digest(table)}
        save_file({"features": table}, kept, metadata={"unalike": json.dumps(told)})
    assert learn(cohort).scales == first.scales
    assert kept.read_bytes() == whole


def test_train_features_are_kept_with_the_scales(cohort: ImageFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    features, rows = learn(cohort), cohort.rows("train")
    fresh = embed_cached(features, cohort, rows, None)

    def unread(*_: Any) -> Any:
        raise AssertionError("the features are there already")

    monkeypatch.setattr(features_module, "embed_rows", unread)
    assert embed_cached(features, cohort, rows, cohort.path / folders.INDEX).tobytes() == fresh.tobytes()


def test_an_index_that_cannot_be_written_is_no_error(cohort: ImageFolder) -> None:
    first = learn(make(cohort.path.parent / "other"))
    (cohort.path / folders.INDEX).write_text("not a folder")
    assert learn(cohort).digest == first.digest


def test_equal_train_images_have_finite_features(tmp_path: Path) -> None:
    folder = make(tmp_path / "dark", dark=True)
    found = learn(folder).embed(folder.read(np.arange(24)))
    assert np.isfinite(found).all()


def test_other_scales_are_other_features(cohort: ImageFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    first = learn(cohort)
    assert dataclasses.replace(first, scales=(2.0, 3.0)).digest != first.digest
    assert dataclasses.replace(first, size=(24, 25)).digest != first.digest
    monkeypatch.setattr(own_module, "FLOOR", 2 * FLOOR)
    assert learn(cohort).digest != first.digest


# The cohort's autoencoder


def test_vectors_are_those_of_the_space_before_their_length_is_made_1(cohort: ImageFolder) -> None:
    features, images = learn(cohort).autoencoder, cohort.read(np.arange(24))
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
    assert space.digest == features.autoencoder.space.digest


def test_name_and_digest_tell_features_apart(cohort: ImageFolder, tmp_path: Path) -> None:
    first, again, other = learn(cohort), learn(make(tmp_path / "again")), learn(cohort, seed=1)
    assert first.digest == again.digest != other.digest
    assert first.name == f"autoencoder and frequency bands of the cohort ({first.digest[:8]})"
    learned = first.autoencoder
    assert learned.name == f"autoencoder of the cohort ({learned.digest[:8]})"
    brighter = AutoencoderFeatures(dataclasses.replace(learned.space, highest=200))
    assert brighter.digest != learned.digest
    assert dataclasses.replace(first, autoencoder=brighter).digest != first.digest
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
    assert features.autoencoder.space.channels == (0, 2)
    changed = images.copy()
    changed[:, 1] = 0
    assert (features.embed(changed) == features.embed(images)).all()
    changed[:, 2] = 0
    assert (features.embed(changed) != features.embed(images)).any()
    assert learn(make(tmp_path / "masks", channels=("mask",))).autoencoder.space.channels == (0,)


def test_a_vector_does_not_depend_on_the_others(cohort: ImageFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    features, images = learn(cohort), cohort.read(np.arange(24))
    whole = features.embed(images)
    assert (features.embed(images) == whole).all()
    order = np.random.default_rng(0).permutation(24)
    monkeypatch.setattr(own_module, "AT_ONCE", 5)
    assert features.embed(images[order]) == pytest.approx(whole[order], abs=1e-5)
    assert features.embed(images[:0]).shape == (0, 14)


def test_images_of_16_bits(tmp_path: Path) -> None:
    cohort = make(tmp_path / "deep", dtype=np.uint16)
    assert np.isfinite(learn(cohort).embed(cohort.read(np.arange(24)))).all()


def test_side_is_that_of_the_network(cohort: ImageFolder) -> None:
    assert learn(cohort, side=32).autoencoder.space.settings == dataclasses.replace(TINY, side=32)
    with pytest.raises(SettingsError, match="side"):
        learn(cohort, side=20)


def test_images_that_do_not_fit(cohort: ImageFolder) -> None:
    features = learn(cohort)
    with pytest.raises(PictureError, match="uint16"):
        features.embed(cohort.read(np.arange(2)).astype(np.uint16))
    with pytest.raises(PictureError, match=r"\(20, 24\) pixels.*\(24, 24\)"):
        features.embed(cohort.read(np.arange(2))[:, :, :20])


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
        digest = features_module.table_digest(table[:2])
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
