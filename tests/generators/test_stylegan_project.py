"""Projection: what a generator drew is found again, what it never saw is not, and an image stands for itself alone."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.conftest import draw_person

from unalike.audit.membership import estimate_auc
from unalike.cli import run as run_command
from unalike.cohort.build import prepare_cohort
from unalike.cohort.settings import PrepareSettings
from unalike.errors import FolderError, InputError, SettingsError
from unalike.generators import losses as loss_models
from unalike.generators.data import PixelScale
from unalike.generators.losses import LEAST_ERROR, StyleganLosses, open_loss_model
from unalike.generators.stylegan.model import StyleganModel
from unalike.generators.stylegan.network import Generator, NetworkShape, build_networks
from unalike.generators.stylegan.project import Projection, grey_distance, project_images
from unalike.generators.stylegan.settings import ProjectionSettings
from unalike.runs.train import train_generator
from unalike.seeds import generator_for

TINY: dict[str, Any] = {
    "capacity": 64,
    "max_features": 8,
    "latent": 8,
    "mapping_layers": 1,
    "batch_size": 4,
    "steps": 4,
    "checkpoint_every": 0,
    "precision": "float32",
}
SHAPE = NetworkShape(channels=1, base=(4, 4), features=(16, 16, 8), latent=8, mapping_layers=1)
FEW = ProjectionSettings(steps=6, batch_size=4, starts=8)


def wrap(network: Generator, scale: PixelScale | None = None, labels: tuple[str, ...] = ()) -> StyleganModel:
    """A model on the CPU that says it computes in bfloat16, which a projection must not."""
    scale = scale or PixelScale(("t1",), "uint8", 255, {})
    return StyleganModel(network.train(False), labels, scale, torch.device("cpu"), "bfloat16")


def random_model(shape: NetworkShape = SHAPE, *, scale: PixelScale | None = None) -> StyleganModel:
    """Random weights that draw within [−1, 1] for the most part, and another image for each style."""
    network = build_networks(shape, seed=1)[0]
    with torch.no_grad():
        for output in network.outputs:
            output.weight *= 0.3
    return wrap(network, scale, tuple("abc"[: shape.classes]))


def draw_own(model: StyleganModel, count: int, *, seed: int = 5) -> np.ndarray:
    """Images that the model draws without noise, one style each; of its first class if it has any."""
    z = torch.from_numpy(np.random.default_rng(seed).standard_normal((count, model.shape.latent), np.float32))
    with torch.no_grad():
        w = model.network.mapping(z, model.one_hot(["a"] * count))
        return model.decode(model.network.synthesize(w[:, None].expand(-1, model.shape.layers, -1)))


def people(count: int, *, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    return np.stack([draw_person(random, size=16) for _ in range(count)])


@functools.cache
def overfitted() -> tuple[StyleganModel, np.ndarray]:
    """A generator that was fitted to six people and nobody else, and these people."""
    model, known = random_model(), people(6)
    z = torch.from_numpy(np.random.default_rng(2).standard_normal((6, SHAPE.latent), np.float32))
    wanted = model.encode(known)
    optimizer = torch.optim.Adam(model.network.parameters(), lr=0.02)
    for _ in range(250):
        optimizer.zero_grad()
        (model.network(z) - wanted).square().mean().backward()
        optimizer.step()
    return model, known


def test_the_distance_by_hand() -> None:
    one, other = np.zeros((2, 1, 2, 2), np.uint8), np.zeros((2, 1, 2, 2), np.uint8)
    one[1] = [[3, 0], [0, 4]]
    assert grey_distance(one, other, highest=255).tolist() == [0.0, 2.5]
    assert grey_distance(other, one, highest=255).tolist() == [0.0, 2.5]
    assert grey_distance(one.astype(np.uint16), other.astype(np.uint16), highest=510).tolist() == [0.0, 1.25]


@pytest.mark.parametrize("space", ["w", "w+"])
def test_what_the_generator_drew_is_found_again(space: Any) -> None:
    model = random_model()
    images = draw_own(model, 4)
    found = project_images(model, images, settings=ProjectionSettings(steps=80, batch_size=4, space=space), seed=0)
    assert found.start.min() > 10
    assert found.distances.max() < 2
    assert (found.distances < found.start / 10).all()
    np.testing.assert_array_equal(found.distances, grey_distance(found.images, images, highest=255))


def test_the_styles_are_those_of_the_images_and_in_w_one_for_all_layers() -> None:
    model, images = random_model(), people(3)
    for space in ("w", "w+"):
        found = project_images(model, images, settings=dataclasses.replace(FEW, space=space), seed=0)
        assert (found.styles.shape, found.styles.dtype) == ((3, SHAPE.layers, SHAPE.latent), np.float32)
        with torch.no_grad():
            drawn = model.decode(model.network.synthesize(torch.from_numpy(found.styles)))
        # Rounding to whole grey levels, of another batch shape.
        assert np.abs(drawn.astype(int) - found.images).max() <= 1
        assert (found.styles == found.styles[:, :1]).all() == (space == "w")
        assert (found.distances < found.start).all()


@pytest.mark.parametrize("classes", [0, 3])
def test_without_drawn_styles_the_mean_image_is_where_the_search_starts(classes: int) -> None:
    model = random_model(dataclasses.replace(SHAPE, classes=classes))
    with torch.no_grad():
        centres = model.centres()
        pictures = model.decode(model.network.synthesize(centres[:, None].expand(-1, SHAPE.layers, -1)))
    assert len(pictures) == max(1, classes)
    found = project_images(model, pictures, settings=ProjectionSettings(steps=1, starts=0), seed=0)
    # Of every class its own centre: those of the others lie further away.
    assert found.start.max() < 0.5
    assert (found.distances <= found.start).all()
    assert classes == 0 or grey_distance(pictures[1:], pictures[:-1], highest=255).min() > 1


@pytest.mark.parametrize("classes", [0, 3])
def test_the_search_starts_at_the_nearest_of_the_means_and_the_drawn_styles(classes: int) -> None:
    model = random_model(dataclasses.replace(SHAPE, classes=classes))
    z = torch.from_numpy(generator_for(7, "projection-starts").standard_normal((12, SHAPE.latent), np.float32))
    with torch.no_grad():
        asked = [model.one_hot([label] * 12) for label in model.labels] or [None]
        styles = torch.cat([model.centres(), *[model.network.mapping(z, label) for label in asked]])
        pictures = model.decode(model.network.synthesize(styles[:, None].expand(-1, SHAPE.layers, -1)))
    assert len(styles) == 13 * max(1, classes)
    still = ProjectionSettings(steps=1, learning_rate=1e-9, batch_size=5, starts=12)
    # What was drawn is found before the first update, of whatever class.
    found = project_images(model, pictures, settings=still, seed=7)
    np.testing.assert_allclose(found.styles, styles.numpy()[:, None].repeat(SHAPE.layers, axis=1), atol=1e-5)
    assert found.distances.max() < 0.5
    assert found.start.max() > 10
    assert project_images(model, pictures, settings=still, seed=8).distances.max() > 5
    # Of what was not drawn, the nearest by the distance itself.
    images = people(5)
    nearest = [
        grey_distance(pictures, image[None].repeat(len(pictures), axis=0), highest=255).min() for image in images
    ]
    found = project_images(model, images, settings=still, seed=7)
    np.testing.assert_allclose(found.distances, nearest, atol=0.05)


def test_classes_masks_and_16_bits_take_part() -> None:
    scale = PixelScale(("t1", "mask"), "uint16", 4000, {"mask": [0, 2000, 4000]})
    model = random_model(dataclasses.replace(SHAPE, channels=2, classes=2), scale=scale)
    images, settings = draw_own(model, 3), ProjectionSettings(batch_size=4, steps=50, starts=32)
    found = project_images(model, images, settings=settings, seed=0)
    assert found.images.dtype == np.uint16
    assert set(np.unique(found.images[:, 1])) <= {0, 2000, 4000}
    assert found.distances.mean() < found.start.mean() / 2
    # A mask of other classes is another image, though its brightness is the same.
    other = images.copy()
    other[:, 1] = (other[:, 1] + 2000) % 6000
    worse = project_images(model, other, settings=settings, seed=0)
    assert worse.distances.mean() > 1.5 * found.distances.mean()


def test_neighbours_change_nothing_and_the_batch_size_only_rounding() -> None:
    model, images = random_model(), people(7)
    whole = project_images(model, images, settings=FEW, seed=0)
    again = project_images(model, images, settings=FEW, seed=0)
    alone = project_images(model, images[5:6], settings=FEW, seed=0)
    for name in ("styles", "images", "distances", "start"):
        np.testing.assert_array_equal(getattr(again, name), getattr(whole, name))  # to the last bit
        np.testing.assert_array_equal(getattr(alone, name), getattr(whole, name)[5:6])
    other = project_images(model, images, settings=dataclasses.replace(FEW, batch_size=3), seed=0)
    np.testing.assert_allclose(other.distances, whole.distances, rtol=0.01)


def test_the_noise_of_the_layers_plays_no_part_and_weights_stay_as_they_are() -> None:
    model, images = random_model(), people(2)
    quiet = project_images(model, images, settings=FEW, seed=0)
    with torch.no_grad():
        for convolution in model.network.convolutions:
            convolution.noise_strength.fill_(3.0)
    before = {name: weight.clone() for name, weight in model.network.named_parameters()}
    loud = project_images(model, images, settings=FEW, seed=0)
    np.testing.assert_array_equal(loud.styles, quiet.styles)
    for name, weight in model.network.named_parameters():
        assert torch.equal(weight, before[name])
        assert weight.grad is None
        assert weight.requires_grad


def test_progress_counts_images_not_what_fills_the_group_up() -> None:
    told: list[tuple[int, str]] = []
    settings = dataclasses.replace(FEW, steps=1)
    project_images(
        random_model(), people(6), settings=settings, seed=0, progress=lambda count, text: told.append((count, text))
    )
    assert [count for count, _ in told] == [4, 2]
    assert all("grey levels" in text for _, text in told)


def test_no_image_is_no_error() -> None:
    found = project_images(random_model(), people(1)[:0], settings=FEW, seed=0)
    assert (found.styles.shape, found.images.shape, found.distances.shape) == ((0, 6, 8), (0, 1, 16, 16), (0,))


def test_images_of_another_kind_are_refused_in_one_line() -> None:
    images = people(2)
    for wrong in (images[:, :, :8], images.astype(np.uint16), images[0], np.repeat(images, 2, axis=1)):
        with pytest.raises(InputError, match="this generator draws 1 × 16 × 16 of uint8") as refused:
            project_images(random_model(), wrong, settings=FEW, seed=0)
        assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "wrong",
    [
        {"steps": 0},
        {"batch_size": 0},
        {"starts": -1},
        {"learning_rate": 0.0},
        {"learning_rate": np.inf},
        {"space": "z"},
    ],
)
def test_settings_that_make_no_sense_are_refused_by_name(wrong: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match=next(iter(wrong))):
        ProjectionSettings(**wrong)


# The probe


def areas(losses: np.ndarray, members: int) -> list[Any]:
    """AUC of each level with its interval; the first so many images are the members, each a subject."""
    member = np.arange(len(losses)) < members
    return [estimate_auc(-column, member, random=np.random.default_rng(0)) for column in losses.T]


def test_a_generator_that_knows_a_few_people_by_heart_gives_them_away() -> None:
    model, known = overfitted()
    losses = StyleganLosses(model, steps=60).losses(np.concatenate([known, people(10, seed=1)]), seed=0)
    distances = np.exp(losses / 2)
    # From the mean style alone one of the known ends in a valley, 34 grey levels away in W.
    assert distances[:6].max() < 12
    # W+ has room for what the generator itself never draws.
    assert distances[6:].min(axis=0) == pytest.approx(np.array([24, 16]), abs=8)
    for area in areas(losses, 6):
        assert area.value == 1
        assert area.low > 0.6


def test_a_generator_that_saw_neither_side_gives_nothing_away() -> None:
    losses = StyleganLosses(random_model(), steps=25).losses(people(16, seed=2), seed=0)
    for area in areas(losses, 8):
        assert area.low < 0.5 < area.high


def test_losses_are_logs_of_squared_distances_and_depend_on_the_image_alone() -> None:
    model, known = overfitted()
    asked = StyleganLosses(model, steps=5)
    assert (asked.name, asked.levels) == ("stylegan", ("projected into W", "projected into W+"))
    images = np.concatenate([known[:2], people(2, seed=1)])
    found = asked.losses(images, seed=0)
    for column, space in enumerate(("w", "w+")):
        projected = project_images(model, images, settings=ProjectionSettings(steps=5, space=space), seed=0)
        np.testing.assert_array_equal(found[:, column], np.log(np.square(projected.distances)))
    np.testing.assert_array_equal(asked.losses(images[2:3], seed=0), found[2:3])
    # A generator that draws the image exactly has a loss all the same.
    flat = random_model()
    with torch.no_grad():
        for output in flat.network.outputs:
            output.weight.zero_()
        flat.network.outputs[-1].bias.fill_(-1.0)
    assert StyleganLosses(flat, steps=1).losses(np.zeros_like(known), seed=0).max() == np.log(LEAST_ERROR)


def test_membership_of_a_run_from_end_to_end(
    make_pictures: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def project_briefly(model: Any, images: np.ndarray, *, settings: ProjectionSettings, seed: int) -> Projection:
        assert (settings.steps, settings.starts) == (100, 256)
        settings = dataclasses.replace(settings, steps=2, starts=4)
        return project_images(model, images, settings=settings, seed=seed)

    monkeypatch.setattr(loss_models, "project_images", project_briefly)
    settings = PrepareSettings(subject_pattern=r"(p\d+)_", holdout=0.5)
    cohort = prepare_cohort(
        source=make_pictures(subjects=16, images=1, size=16), out=tmp_path / "cohort", settings=settings
    ).path
    run = train_generator(kind="stylegan", cohort=cohort, out=tmp_path / "run", settings=TINY, device="cpu")
    few = ["--splits", "5", "--permutations", "50"]
    command = ["membership", str(run), "--against", str(cohort), "--out", str(tmp_path / "m"), "--device", "cpu", *few]
    assert run_command(command) == 0
    told = capsys.readouterr().out
    assert "8 members, 8 non-members" in told
    for level in ("projected into W", "projected into W+"):
        assert f"AUC of {level}: 0." in told
    line = next(line for line in told.splitlines() if line.startswith("AUC of projected into W+"))
    assert "(" in line
    assert " to " in line
    assert (tmp_path / "m" / "membership.json").exists()
    weights = next((run / "model").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(FolderError, match="not the model that"):
        open_loss_model(run)
