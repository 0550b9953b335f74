"""Learned spaces: copies lie near although pixels changed; files are whole, checked, and the same to the bit."""

from __future__ import annotations

import dataclasses
import json
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from scipy import ndimage
from tests.conftest import draw_person

from unalike.engine import Progress
from unalike.errors import FolderError, InputError, NonFiniteLossError, PictureError, SettingsError
from unalike.similarity.embedding import train
from unalike.similarity.embedding.network import area_weights, build_networks, shrink, turn
from unalike.similarity.embedding.settings import EmbeddingSettings, settings_from_json
from unalike.similarity.embedding.space import Embedding, find_by_cosine, load_embedding, save_embedding
from unalike.similarity.embedding.train import cached_embedding, embedding_key, nt_xent, train_embedding
from unalike.similarity.embedding.views import ViewNumbers, draw_numbers, draw_places, make_view

CPU = torch.device("cpu")
TINY = EmbeddingSettings(dimension=16, side=32, width=8, steps=4, batch=8)


def draw_people(count: int, *, size: int = 28, channels: int = 1, seed: int = 0) -> Any:
    """Images (count, channels, size, size) uint8, each of another person."""
    random = np.random.default_rng(seed)
    return np.stack([[draw_person(random, size=size)[0] for _ in range(channels)] for _ in range(count)])


def fit(images: np.ndarray, settings: EmbeddingSettings = TINY, **changes: Any) -> Embedding:
    options: dict[str, Any] = {"channels": range(images.shape[1]), "seed": 0} | changes
    rows = np.arange(len(images))
    return train_embedding(read=lambda wanted: images[wanted], rows=rows, settings=settings, device=CPU, **options)


def kind(name: Any, **changes: Any) -> EmbeddingSettings:
    return dataclasses.replace(TINY, kind=name, **changes)


def unit(vectors: np.ndarray) -> Any:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


# Known answers


@pytest.fixture(scope="module")
def contrast() -> tuple[np.ndarray, Embedding]:
    people = draw_people(120, size=32)
    settings = EmbeddingSettings(dimension=32, side=32, width=16, steps=150, batch=48, learning_rate=5e-3)
    return people, fit(people, settings)


@pytest.mark.parametrize(
    "change",
    [
        lambda images: images,
        lambda images: images[..., ::-1],
        lambda images: images[..., ::-1, :],
        lambda images: np.rot90(images, axes=(2, 3)),
        lambda images: ndimage.shift(images, (0, 0, 2, -2), order=0, mode="nearest"),
        lambda images: ndimage.rotate(images, 8, axes=(2, 3), reshape=False, order=1, mode="nearest"),
    ],
    ids=["same", "mirrored", "upside down", "quarter turn", "shifted", "turned"],
)
def test_a_changed_copy_is_nearest_to_its_original(contrast: tuple[np.ndarray, Embedding], change: Any) -> None:
    people, space = contrast
    indices, _ = find_by_cosine(
        queries_vectors=space.embed(np.ascontiguousarray(change(people))), reference_vectors=space.embed(people), best=1
    )
    assert np.mean(indices[:, 0] == np.arange(len(people))) > 0.9


def test_mirrored_and_quarter_turned_copies_have_the_same_vectors() -> None:
    people = draw_people(12, size=32, channels=2)
    space = fit(people)
    expected = space.embed(people)
    assert np.ptp(expected, axis=0).max() > 0.01
    for way in range(8):
        turned = turn(torch.from_numpy(people), way).numpy().copy()
        assert space.embed(turned) == pytest.approx(expected, abs=1e-5)


def test_copies_of_people_never_seen_are_found_too(contrast: tuple[np.ndarray, Embedding]) -> None:
    _, space = contrast
    others = draw_people(60, size=32, seed=7)
    indices, cosines = find_by_cosine(
        queries_vectors=space.embed(others[..., ::-1].copy()), reference_vectors=space.embed(others), best=2
    )
    assert np.mean(indices[:, 0] == np.arange(60)) > 0.9
    assert (cosines[:, 0] >= cosines[:, 1]).all()


def test_the_loss_of_an_autoencoder_falls() -> None:
    space = fit(draw_people(40), kind("autoencoder", steps=60, learning_rate=5e-3))
    assert len(space.losses) == 10
    assert space.losses[-1] < 0.6 * space.losses[0]


def test_vectors_of_an_autoencoder_have_no_common_direction() -> None:
    people = draw_people(40)
    vectors = fit(people, kind("autoencoder", steps=20)).embed(people)
    assert np.linalg.norm(vectors.mean(axis=0)) < 0.3


def test_nt_xent_by_hand() -> None:
    vectors = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 1.0]])
    # Each view: the other view scores 1/0.5 = 2, two views of the other image score 0.
    found = nt_xent(vectors, torch.tensor([0, 1]), temperature=0.5)
    assert found.item() == pytest.approx(np.log(1 + 2 * np.exp(-2)))


def test_nt_xent_as_written_in_the_paper() -> None:
    random = np.random.default_rng(3)
    vectors, subjects = unit(random.normal(size=(10, 6))).astype(np.float64), np.array([0, 1, 0, 2, 1])
    losses = []
    for i in range(10):
        j = (i + 5) % 10
        others = [k for k in range(10) if subjects[k % 5] != subjects[i % 5]]
        total = sum(np.exp(vectors[i] @ vectors[k] / 0.2) for k in [j, *others])
        losses.append(-np.log(np.exp(vectors[i] @ vectors[j] / 0.2) / total))
    found = nt_xent(torch.from_numpy(vectors), torch.from_numpy(subjects), temperature=0.2)
    assert found.item() == pytest.approx(np.mean(losses), rel=1e-6)


def test_other_images_of_a_subject_are_not_pushed_apart() -> None:
    vectors = torch.nn.functional.normalize(torch.randn(4, 3, generator=torch.Generator().manual_seed(0)))
    vectors.requires_grad_()
    loss = nt_xent(vectors, torch.tensor([5, 5]), temperature=0.1)
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.item() == 0
    assert vectors.grad is not None
    assert (vectors.grad == 0).all()


@pytest.mark.parametrize(("size", "side"), [(6, 3), (3, 6), (5, 2), (7, 7), (1, 4)])
def test_area_weights(size: int, side: int) -> None:
    weights = area_weights(size, side)
    # Every size is exact on the grid that both divide.
    fine = np.repeat(np.eye(size), side, axis=0)  # (size · side, size)
    assert weights == pytest.approx(fine.reshape(side, size, size).mean(axis=1), abs=1e-6)


def test_shrink_averages_and_picks_channels() -> None:
    images = np.zeros((2, 3, 4, 8), dtype=np.uint8)
    images[1, 2, :2, :4] = 100
    images[1, 2, 0, 0] = 255
    small = shrink(images, channels=[2, 0], side=2, highest=255)
    assert small.shape == (2, 2, 2, 2)
    assert small[1, 0].numpy() == pytest.approx(np.array([[(7 * 100 + 255) / 8 / 255, 0], [0, 0]]))
    assert small[:, 1].abs().sum() == 0


def plain_view(shape: tuple[int, ...], places: list[list[float]]) -> ViewNumbers:
    zero, one = torch.zeros(shape[0], 1, 1, 1), torch.ones(shape[0], 1, 1, 1)
    maps = torch.tensor(places).expand(shape[0], 2, 3)
    return ViewNumbers(places=maps, gamma=one, contrast=one, brightness=zero, blur=zero, noise=torch.zeros(shape))


@pytest.mark.parametrize(
    ("places", "expected"),
    [
        ([[1, 0, 0], [0, 1, 0]], lambda image: image),
        ([[-1, 0, 0], [0, 1, 0]], lambda image: image.flip(3)),
        ([[1, 0, 0], [0, -1, 0]], lambda image: image.flip(2)),
        ([[0, -1, 0], [1, 0, 0]], lambda image: torch.rot90(image, 1, (2, 3))),
    ],
)
def test_views_that_move_whole_pixels(places: list[list[float]], expected: Any) -> None:
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 0.9 + 0.05
    view = make_view(images, plain_view(tuple(images.shape), [[float(n) for n in row] for row in places]))
    assert view.numpy() == pytest.approx(expected(images).numpy(), abs=1e-5)


def test_blur_keeps_the_mean_and_noise_is_added() -> None:
    images = torch.full((1, 1, 16, 16), 0.2)
    images[0, 0, 8, 8] = 0.5
    numbers = plain_view((1, 1, 16, 16), [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    blurred = make_view(images, dataclasses.replace(numbers, blur=torch.ones(1, 1, 1, 1)))
    assert blurred[0, 0, 8, 8].item() == pytest.approx(0.2 + 0.3 * 36 / 256, abs=1e-5)
    assert blurred.mean().item() == pytest.approx(images.mean().item(), abs=1e-5)
    noisy = make_view(images, dataclasses.replace(numbers, noise=torch.full((1, 1, 16, 16), 0.125)))
    assert noisy.numpy() == pytest.approx(images.numpy() + 0.125, abs=1e-5)


def test_flips_turns_crops_and_shifts_are_as_large_as_said() -> None:
    maps = draw_places(4000, np.random.default_rng(0))
    crop = np.sqrt(np.abs(np.linalg.det(maps[:, :, :2])))
    assert 0.8 <= crop.min() < 0.81
    assert 0.99 < crop.max() <= 1
    assert 0.45 < np.mean(np.linalg.det(maps[:, :, :2]) < 0) < 0.55  # one flip: mirrored
    assert np.abs(maps[:, :, 2]).max() <= 0.2 + 0.16
    angle = np.degrees(np.arctan2(maps[:, 1, 0], maps[:, 0, 0])) % 90
    assert (np.minimum(angle, 90 - angle) <= 10 + 1e-9).all()


# Searching


def reference_search(queries: np.ndarray, references: np.ndarray, best: int) -> np.ndarray:
    scores = [[sum(int(a) * int(b) for a, b in zip(q, r, strict=True)) for r in references] for q in queries]
    return np.array([sorted(range(len(references)), key=lambda i: (-row[i], i))[:best] for row in scores])


def test_cosines_by_hand() -> None:
    references = np.array([[1, 0], [0, 1], [0.6, 0.8], [0, 1]], dtype=np.float32)
    indices, cosines = find_by_cosine(
        queries_vectors=np.array([[0, 1], [1, 0]], dtype=np.float32), reference_vectors=references, best=3
    )
    assert indices.tolist() == [[1, 3, 2], [0, 2, 1]]
    assert cosines == pytest.approx(np.array([[1, 1, 0.8], [1, 0.6, 0]]), abs=1e-7)
    assert (indices.dtype.name, cosines.dtype.name) == ("int64", "float64")


@given(seed=st.integers(0, 10**6), best=st.integers(1, 7), block=st.integers(1, 5))
@hypothesis_settings(max_examples=30, deadline=None)
def test_blocks_and_copies_change_no_bit(seed: int, best: int, block: int) -> None:
    random = np.random.default_rng(seed)
    references = unit(random.normal(size=(9, 5)))[random.integers(0, 9, 14)]  # some stand there several times
    queries = unit(random.normal(size=(6, 5)))
    whole = find_by_cosine(queries_vectors=queries, reference_vectors=references, best=best)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("unalike.similarity.embedding.space.QUERIES_AT_ONCE", block)
        patch.setattr("unalike.similarity.embedding.space.REFERENCES_AT_ONCE", block)
        parts = find_by_cosine(queries_vectors=queries, reference_vectors=references, best=best)
    assert whole[0].tolist() == parts[0].tolist()
    assert whole[1].tobytes() == parts[1].tobytes()
    whole_numbers = [np.rint(entry.astype(np.float64) * 2**26) for entry in (queries, references)]
    assert whole[0].tolist() == reference_search(whole_numbers[0], whole_numbers[1], best).tolist()
    assert whole[1] == pytest.approx(np.sort(queries.astype(np.float64) @ references.T)[:, ::-1][:, :best], abs=1e-7)


def test_fewer_references_than_asked_for() -> None:
    vectors = np.eye(2, dtype=np.float32)
    indices, _ = find_by_cosine(queries_vectors=vectors, reference_vectors=vectors, best=5)
    assert indices.tolist() == [[0, 1], [1, 0]]
    indices, cosines = find_by_cosine(queries_vectors=vectors, reference_vectors=vectors[:0], best=5)
    assert indices.shape == cosines.shape == (2, 0)


@pytest.mark.parametrize(
    "vectors", [np.ones((2, 3)), np.full((2, 2), np.nan), np.full((2, 2), 2.0), np.array([[np.inf, 0.0]])]
)
def test_vectors_that_do_not_fit_are_refused(vectors: np.ndarray) -> None:
    good = np.eye(2, dtype=np.float32)
    with pytest.raises(InputError):
        find_by_cosine(queries_vectors=vectors.astype(np.float32), reference_vectors=good, best=1)
    with pytest.raises(InputError):
        find_by_cosine(queries_vectors=good, reference_vectors=good, best=0)


# Training and embedding


@pytest.mark.parametrize("name", ["autoencoder", "contrastive"])
def test_a_seed_gives_the_same_weights_and_another_seed_others(name: str) -> None:
    people = draw_people(12)
    first, again, other = (fit(people, kind(name), seed=seed) for seed in (1, 1, 2))
    assert first.digest == again.digest
    assert first.losses == again.losses
    assert first.digest != other.digest


def test_training_leaves_the_global_stream_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    fit(draw_people(4))
    assert (torch.rand(3) == expected).all()


@pytest.mark.parametrize("name", ["autoencoder", "contrastive"])
@pytest.mark.parametrize(("channels", "dtype"), [(1, np.uint8), (4, np.uint8), (1, np.uint16), (4, np.uint16)])
def test_channels_and_depths(name: str, channels: int, dtype: Any) -> None:
    people = draw_people(10, channels=channels).astype(dtype)
    if dtype == np.uint16:
        people *= 16  # 12 of 16 bits
    space = fit(people, kind(name))
    vectors = space.embed(people)
    assert vectors.shape == (10, 16)
    assert vectors.dtype == np.float32
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(np.ones(10), abs=1e-5)
    assert space.highest == (255 if dtype == np.uint8 else people.max())


def test_vectors_do_not_depend_on_the_others_in_a_batch() -> None:
    people = draw_people(23)
    space = fit(people)
    whole = space.embed(people)
    for batch in (1, 7, 23):
        assert space.embed(people, batch=batch) == pytest.approx(whole, abs=1e-5)
    order = np.random.default_rng(0).permutation(23)
    assert space.embed(people[order], batch=5) == pytest.approx(whole[order], abs=1e-5)
    assert space.embed(people[:0]).shape == (0, 16)


def test_only_chosen_channels_count() -> None:
    people = draw_people(10, channels=3)
    space = fit(people, channels=[2, 0])
    changed = people.copy()
    changed[:, 1] = 255 - changed[:, 1]
    assert (space.embed(changed) == space.embed(people)).all()
    assert (fit(people[:, [2, 0]]).embed(people[:, [2, 0]]) == space.embed(people)).all()


def test_16_bit_images_are_the_same_whatever_bits_are_in_use() -> None:
    people = draw_people(10).astype(np.uint16)
    people[0, 0, 0, 0] = 255
    vectors = [fit(images).embed(images) for images in (people, people * 16)]
    assert vectors[0] == pytest.approx(vectors[1], abs=0.05)


def test_rows_name_the_images() -> None:
    people = draw_people(30)
    rows = np.arange(0, 30, 3)
    asked: list[int] = []

    def read(wanted: np.ndarray) -> Any:
        asked.extend(wanted.tolist())
        return people[wanted]

    space = train_embedding(read=read, rows=rows, channels=[0], settings=TINY, seed=0, device=CPU)
    assert asked == rows.tolist()
    assert space.digest == fit(people[rows]).digest


def test_of_many_images_some_are_drawn() -> None:
    people = draw_people(20)
    settings = dataclasses.replace(TINY, most_images=9)
    asked: list[int] = []

    def read(wanted: np.ndarray) -> Any:
        asked.extend(wanted.tolist())
        return people[wanted]

    train_embedding(read=read, rows=np.arange(20), channels=[0], settings=settings, seed=0, device=CPU)
    assert len(set(asked)) == 9
    assert asked == sorted(asked)


def test_subjects_change_the_training() -> None:
    people = draw_people(12)
    codes = np.repeat(np.arange(3), 4)
    grouped = fit(people, subjects=codes)
    assert grouped.digest != fit(people).digest
    assert grouped.digest == fit(people, subjects=codes * 100 + 7).digest
    assert fit(people, subjects=np.arange(12) + 40).digest == fit(people).digest


def test_flat_images_do_no_harm() -> None:
    flat = np.zeros((6, 1, 24, 24), dtype=np.uint8)
    for name in ("autoencoder", "contrastive"):
        vectors = fit(flat, kind(name)).embed(np.concatenate([flat, draw_people(2, size=24)]))
        assert np.isfinite(vectors).all()


def test_progress_is_told_of_each_update() -> None:
    class Counted(Progress):
        told = 0

        def advance(self, count: int = 1, text: str = "") -> None:
            self.told += count

    progress = Counted()
    fit(draw_people(4), progress=progress)
    assert progress.told == TINY.steps


def test_views_are_within_the_range_and_differ() -> None:
    images = torch.rand(5, 2, 16, 16, generator=torch.Generator().manual_seed(2))
    random = np.random.default_rng(0)
    first, second = (make_view(images, draw_numbers(tuple(images.shape), random, CPU)) for _ in range(2))
    assert first.shape == images.shape
    assert 0 <= first.min() <= first.max() <= 1
    assert (first != second).any()


# What is refused


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "other"},
        {"dimension": 1},
        {"dimension": 10**6},
        {"side": 40},
        {"side": 1024},
        {"width": 12},
        {"steps": 0},
        {"steps": 2.0},
        {"batch": True},
        {"learning_rate": float("nan")},
        {"learning_rate": "fast"},
        {"temperature": 0},
    ],
)
def test_settings_that_make_no_sense(change: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match=next(iter(change))):
        EmbeddingSettings(**change)
    with pytest.raises(SettingsError, match=next(iter(change))):
        settings_from_json(dataclasses.asdict(TINY) | change)


def test_missing_and_unknown_settings() -> None:
    with pytest.raises(SettingsError, match="colour"):
        settings_from_json(dataclasses.asdict(TINY) | {"colour": 1})
    with pytest.raises(SettingsError, match="kind"):
        settings_from_json({name: value for name, value in dataclasses.asdict(TINY).items() if name != "kind"})


def test_too_few_to_train_on() -> None:
    people = draw_people(6)
    with pytest.raises(InputError, match="2 images"):
        fit(people[:1], kind("autoencoder"))
    with pytest.raises(InputError, match="2 subjects"):
        fit(people, subjects=np.zeros(6, dtype=np.int64))
    fit(people, kind("autoencoder"), subjects=np.zeros(6, dtype=np.int64))


def test_arguments_that_do_not_fit() -> None:
    people = draw_people(6)
    with pytest.raises(InputError, match="subjects"):
        fit(people, subjects=np.arange(5))
    for channels in ([], [0, 0], [-1]):
        with pytest.raises(SettingsError, match="channels"):
            fit(people, channels=channels)
    with pytest.raises(PictureError, match="channel 1"):
        fit(people, channels=[1])
    space = fit(people)
    with pytest.raises(PictureError, match="uint16"):
        space.embed(people.astype(np.uint16))
    with pytest.raises(PictureError, match="float64"):
        shrink(people.astype(float), channels=[0], side=16, highest=255)
    with pytest.raises(PictureError, match="set of images"):
        space.embed(people[0])
    with pytest.raises(InputError, match="batch"):
        space.embed(people, batch=0)


def test_a_training_that_diverges_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "nt_xent", lambda vectors, *_, **__: vectors.sum() * float("nan"))
    with pytest.raises(NonFiniteLossError, match=r"step 1.*learning_rate"):
        fit(draw_people(6))


# Files


@pytest.fixture(scope="module")
def space() -> Embedding:
    return fit(draw_people(12, channels=2), key="who")


@pytest.mark.parametrize("name", ["autoencoder", "contrastive"])
def test_saved_and_loaded_to_the_bit(name: str, tmp_path: Path) -> None:
    people = draw_people(12, channels=2)
    space = fit(people, kind(name), channels=[1], seed=9, key="abc")
    save_embedding(space, tmp_path / "space.safetensors")
    found = load_embedding(tmp_path / "space.safetensors", device=CPU)
    assert found == space
    assert found.digest == space.digest
    assert found.embed(people).tobytes() == space.embed(people).tobytes()
    assert [entry.name for entry in tmp_path.iterdir()] == ["space.safetensors"]


def load_fails(path: Path) -> str:
    with pytest.raises(FolderError) as caught:
        load_embedding(path)
    said = str(caught.value)
    assert str(path) in said
    assert "\n" not in said
    assert said.endswith("Remove the file.")
    return said


def test_damaged_files(space: Embedding, tmp_path: Path) -> None:
    path = tmp_path / "space.safetensors"
    load_fails(path)
    save_embedding(space, path)
    whole = path.read_bytes()
    for damaged in (b"", whole[:7], whole[:200], whole[:-1], b"\xff" * 64, b"\n" * 4096, whole + b"more"):
        path.write_bytes(damaged)
        load_fails(path)
    path.write_bytes(whole[:-3] + bytes([whole[-3] ^ 1]) + whole[-2:])
    assert "digest" in load_fails(path)


@given(place=st.integers(0, 10**6), value=st.integers(0, 255))
@hypothesis_settings(max_examples=60, deadline=None)
def test_any_changed_byte_is_told_or_harmless(space: Embedding, place: int, value: int) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "space.safetensors"
        save_embedding(space, path)
        data = bytearray(path.read_bytes())
        data[place % 3000 if place % 2 else place % len(data)] = value
        path.write_bytes(data)
        try:
            assert load_embedding(path).digest == space.digest
        except FolderError as error:
            assert "\n" not in str(error)  # noqa: PT017


@pytest.mark.parametrize(
    "change",
    [
        {"format": 2},
        {"settings": {}},
        {"settings": dataclasses.asdict(TINY) | {"dimension": 4096}},
        {"settings": dataclasses.asdict(TINY) | {"width": 10**9}},
        {"channels": []},
        {"channels": [0, -1]},
        {"channels": "ab"},
        {"channels": [0] * 5000},
        {"dtype": "object"},
        {"highest": "x"},
        {"losses": [None]},
        {"losses": 3},
        {"seed": -1},
        {"digest": "0"},
        [],
        None,
    ],
)
def test_headers_that_do_not_fit(space: Embedding, tmp_path: Path, change: Any) -> None:
    path = tmp_path / "space.safetensors"
    save_embedding(space, path)
    header = json.loads(read_metadata(path)["unalike"])
    header = header | change if isinstance(change, dict) else change
    save_file(load_file(path), path, metadata={"unalike": json.dumps(header)})
    load_fails(path)


def read_metadata(path: Path) -> dict[str, str]:
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    found: dict[str, str] = json.loads(data[8 : 8 + length])["__metadata__"]
    return found


def test_files_of_others(tmp_path: Path) -> None:
    path = tmp_path / "space.safetensors"
    save_file({"weight": torch.zeros(3)}, path)
    load_fails(path)
    load_fails(tmp_path)


def test_saving_where_nothing_can_be_written(space: Embedding, tmp_path: Path) -> None:
    with pytest.raises(FolderError, match="cannot be written"):
        save_embedding(space, tmp_path / "missing" / "space.safetensors")
    (tmp_path / "taken").mkdir()
    with pytest.raises(FolderError, match="cannot be written"):
        save_embedding(space, tmp_path / "taken")
    assert [entry.name for entry in tmp_path.iterdir()] == ["taken"]


def test_the_header_tells_how_the_space_was_made(space: Embedding, tmp_path: Path) -> None:
    save_embedding(space, tmp_path / "space.safetensors")
    header = json.loads(read_metadata(tmp_path / "space.safetensors")["unalike"])
    assert header["settings"] == dataclasses.asdict(TINY)
    assert (header["seed"], header["channels"], header["key"]) == (0, [0, 1], "who")
    assert header["digest"] == space.digest


# The cache


class Reader:
    def __init__(self) -> None:
        self.images = draw_people(10)
        self.reads = 0

    def __call__(self, rows: np.ndarray) -> Any:
        self.reads += 1
        return self.images[rows]

    def cached(self, cache: Path | None, **changes: Any) -> Embedding:
        options: dict[str, Any] = {"digests": [f"{n:02d}" for n in range(10)], "seed": 0, "settings": TINY} | changes
        return cached_embedding(cache=cache, read=self, rows=np.arange(10), channels=[0], device=CPU, **options)


def test_a_space_is_trained_once(tmp_path: Path) -> None:
    reader, cache = Reader(), tmp_path / "cohort" / "index"
    first = reader.cached(cache)
    reads = reader.reads
    again = reader.cached(cache)
    assert reader.reads == reads
    assert first == again
    assert first.digest == again.digest
    assert [entry.name for entry in cache.iterdir()] == [f"embedding-{first.key[:32]}.safetensors"]


def test_whatever_changes_the_space_changes_its_name() -> None:
    given: dict[str, Any] = {"digests": ["a", "b"], "channels": [0], "settings": TINY, "seed": 0}
    changes: list[dict[str, Any]] = [
        {},
        {"digests": ["b", "a"]},
        {"digests": ["a"]},
        {"channels": [1]},
        {"seed": 1},
        {"settings": kind("autoencoder")},
        {"subjects": np.array([4, 4])},
        {"subjects": np.array([4, 5])},
    ]
    assert len({embedding_key(**(given | change)) for change in changes}) == len(changes)
    assert embedding_key(**given, subjects=np.array([1, 3])) == embedding_key(**given, subjects=np.array([4, 5]))


def test_a_damaged_file_is_replaced(tmp_path: Path) -> None:
    reader = Reader()
    first = reader.cached(tmp_path)
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:-9])
    again = reader.cached(tmp_path)
    assert again.digest == first.digest == load_embedding(path).digest


def test_a_file_of_another_key_is_not_taken(tmp_path: Path) -> None:
    reader = Reader()
    first, other = reader.cached(tmp_path), reader.cached(tmp_path, seed=1)
    path = tmp_path / f"embedding-{first.key[:32]}.safetensors"
    save_embedding(other, path)
    assert reader.cached(tmp_path).digest == first.digest == load_embedding(path).digest


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = Reader()
    (tmp_path / "file").write_text("not a folder")
    expected = reader.cached(None).digest
    assert reader.cached(tmp_path / "file").digest == expected
    locked = tmp_path / "locked"
    locked.mkdir()
    locked.chmod(stat.S_IRUSR | stat.S_IXUSR)
    assert reader.cached(locked).digest == expected
    locked.chmod(stat.S_IRWXU)


def test_digests_must_fit() -> None:
    with pytest.raises(InputError, match="digests"):
        Reader().cached(None, digests=["a"])


def test_weights_have_the_shapes_of_the_settings() -> None:
    encoder, decoder = build_networks(kind("autoencoder"), channels=3, seed=0)
    assert decoder is not None
    assert decoder(encoder(torch.rand(2, 3, 32, 32))).shape == (2, 3, 32, 32)
    assert build_networks(TINY, channels=3, seed=0)[1] is None
