"""Segmentation: labels of masks, plans, changes, a phantom that is learned, cells that go on, impossible input."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from unalike import folders
from unalike.cohort.roles import ImageSet, Roles
from unalike.cohort.store import ImageFolder, ImageWriter, open_images
from unalike.errors import FolderError, InputError, NonFiniteLossError
from unalike.utility import segment
from unalike.utility.overlap import count_pixels, dice_of
from unalike.utility.segment import run_segmentation
from unalike.utility.segmentation import (
    MILD,
    Augmentation,
    Labels,
    Plan,
    Segmenter,
    augment,
    find_labels,
    hold_apart,
    load_segmenter,
    loss_of,
    pairs_of_arrays,
    pairs_of_images,
    train_segmenter,
)
from unalike.utility.settings import UtilitySettings

CPU = torch.device("cpu")
SIDE = 16
LABELS = Labels(("disc",), (200,))
QUICK = UtilitySettings(
    task="segment", segment_updates=60, batch_size=8, learning_rate=3e-3, augment=False, precision="float32"
)


def draw_discs(random: np.random.Generator, count: int, *, side: int = SIDE) -> tuple[np.ndarray, np.ndarray]:
    """Images (n, 1, side, side) with a bright disc each, and where it is (n, side, side)."""
    rows, columns = np.mgrid[:side, :side]
    middle = random.uniform(0.3 * side, 0.7 * side, (2, count, 1, 1))
    radius = random.uniform(0.18 * side, 0.28 * side, (count, 1, 1))
    disc = (rows - middle[0]) ** 2 + (columns - middle[1]) ** 2 <= radius**2
    images = np.where(disc, 170, 70) + random.normal(0, 8, disc.shape)
    return np.clip(images, 0, 255).astype(np.uint8)[:, None], disc.astype(np.uint8)


@pytest.fixture
def make_folder(tmp_path: Path) -> Callable[..., ImageFolder]:
    """Write a cohort of these images (n, C, H, W), two a subject."""

    def make(
        name: str,
        images: np.ndarray,
        channels: Sequence[str] = ("mri", "mask"),
        *,
        names: dict[str, int] | None = None,
        affine: Sequence[float] = (),
    ) -> ImageFolder:
        out = tmp_path / name
        folders.begin_folder(out, kind="cohort", settings={})
        height, width = images.shape[2:]
        writer = ImageWriter(out, channels=channels, height=height, width=width, dtype=images.dtype)
        for index, image in enumerate(images):
            record = {"subject": f"{name}{index // 2:03d}", "source": str(index), "role": "train", "affine": affine}
            writer.append(image, record)
        content = {**writer.close(), **({"mask_names": names} if names else {})}
        folders.finish_folder(out, kind="cohort", settings={}, seed=0, inputs={}, content=content)
        return open_images(out)

    return make


def pair(random: np.random.Generator, count: int) -> np.ndarray:
    images, disc = draw_discs(random, count)
    return np.concatenate([images, (disc * 200)[:, None]], axis=1).astype(np.uint8)


def every(folder: ImageFolder) -> ImageSet:
    return ImageSet(folder, np.arange(len(folder), dtype=np.int64))


def cast(synthetic: ImageFolder, train: ImageFolder, holdout: ImageFolder) -> Roles:
    nobody = ImageSet(holdout, np.empty(0, np.int64))
    return Roles(every(synthetic), every(train), every(holdout), nobody, (), {})


# Labels


def test_each_pixel_goes_to_the_nearest_label() -> None:
    labels = Labels(("a", "b"), (127, 254))
    masks = np.array([[0, 63, 64, 127, 190, 191, 254, 255]], np.uint8)
    np.testing.assert_array_equal(labels.classes(masks), [[0, 0, 1, 1, 1, 2, 2, 2]])


def test_grey_pixels_are_counted_as_far_from_every_label() -> None:
    labels = Labels(("a", "b"), (100, 200))
    masks = np.array([[0, 10, 40, 60, 100, 120, 130, 200]], np.uint8)  # 40, 60 and 130 are more than 25 away
    assert labels.count_far(masks) == (3, 6)
    assert labels.count_far(np.array([[0, 100, 200]], np.uint8)) == (0, 2)


def test_labels_are_those_of_the_header_else_those_of_the_masks() -> None:
    assert find_labels({"b": 254, "a": 127}, [0, 127], where="x") == Labels(("a", "b"), (127, 254))
    assert find_labels(None, [0, 3, 9], where="x") == Labels(("3", "9"), (3, 9))


def test_masks_of_sixteen_values_are_labels_and_of_more_are_not() -> None:
    assert len(find_labels(None, range(17), where="x")) == 16
    with pytest.raises(InputError, match="17 values"):
        find_labels(None, range(18), where="x")


def test_no_label_in_any_mask_is_said_in_one_line() -> None:
    with pytest.raises(InputError, match="no train image has a label") as caught:
        find_labels({"a": 127}, [0], where="x")
    assert "\n" not in str(caught.value)


# Who learns, who chooses


def test_no_subject_is_on_both_sides_and_all_are_on_one() -> None:
    subjects = np.repeat([f"s{index}" for index in range(20)], 3)
    learn, choose = hold_apart(subjects, parts=5, seed=1)
    assert not set(subjects[learn]) & set(subjects[choose])
    np.testing.assert_array_equal(np.sort(np.concatenate([learn, choose])), np.arange(60))
    assert len(choose) == 12
    assert not np.array_equal(choose, hold_apart(subjects, parts=5, seed=2)[1])
    np.testing.assert_array_equal(choose, hold_apart(subjects, parts=5, seed=1)[1])


def test_one_of_two_subjects_chooses_and_one_alone_is_refused() -> None:
    learn, choose = hold_apart(np.array(["a", "b"]), parts=5, seed=0)
    assert (len(learn), len(choose)) == (1, 1)
    with pytest.raises(InputError, match="1 subject"):
        hold_apart(np.array(["a", "a"]), parts=5, seed=0)


# Networks


@pytest.mark.parametrize(
    ("preset", "size", "halvings"),
    [
        ("unet", (32, 32), 3),
        ("unet", (512, 512), 4),
        ("nnunet", (512, 512), 7),
        ("nnunet", (64, 40), 3),
        ("unet", (5, 9), 2),
    ],
)
def test_the_smaller_side_is_halved_while_four_pixels_stay(preset: str, size: tuple[int, int], halvings: int) -> None:
    assert Plan.of(preset, channels=1, classes=2, size=size).halvings == halvings


@pytest.mark.parametrize("preset", ["unet", "nnunet"])
@pytest.mark.parametrize("size", [(16, 16), (5, 9), (21, 35)])
def test_scores_have_the_size_of_the_image_whatever_the_network_needs(preset: str, size: tuple[int, int]) -> None:
    plan = Plan.of(preset, channels=2, classes=3, size=size)
    segmenter = Segmenter(plan, Labels(("a", "b"), (1, 2)), plan.build())
    images = np.random.default_rng(0).integers(0, 256, (3, 2, *size)).astype(np.uint8)
    assert segmenter.predict(images).shape == (3, *size)
    segmenter.network.train(True)
    heads = segmenter.scores(segmenter.prepare(images))
    assert heads.shape[-3:] == (3, *size)
    assert heads.ndim == (5 if preset == "nnunet" else 4)


@pytest.mark.parametrize("size", [(16, 16), (5, 9), (21, 35), (1, 130)])
def test_what_is_padded_for_the_network_is_cropped_at_the_same_place(size: tuple[int, int]) -> None:
    plan = Plan.of("unet", channels=2, classes=2, size=size)
    seen: list[torch.Size] = []

    class Copy(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            seen.append(images.shape)
            return images

    images = torch.from_numpy(np.random.default_rng(0).normal(size=(2, 2, *size)).astype(np.float32))
    assert torch.equal(Segmenter(plan, LABELS, Copy()).scores(images), images)
    assert all(side % plan.multiple == 0 and side >= 16 for side in seen[0][2:])


def test_images_are_standardized_one_by_one() -> None:
    plan = Plan.of("unet", channels=1, classes=2, size=(16, 16))
    segmenter = Segmenter(plan, LABELS, plan.build())
    random = np.random.default_rng(0)
    image = random.integers(0, 100, (1, 1, 16, 16)).astype(np.uint16)
    both = segmenter.prepare(np.concatenate([image, image * 300 + 7, np.full_like(image, 9)]))
    torch.testing.assert_close(both[0], both[1], atol=1e-4, rtol=0)
    assert both[0].mean().abs() < 1e-5
    assert both[0].std(correction=0) == pytest.approx(1, abs=1e-5)
    assert (both[2] == 0).all()


def test_the_loss_is_dice_and_cross_entropy_and_coarser_heads_weigh_half() -> None:
    classes = torch.zeros(1, 4, 4, dtype=torch.long)
    classes[:, :2] = 1
    sure = 30.0 * torch.nn.functional.one_hot(classes, 2).permute(0, 3, 1, 2)
    undecided = torch.zeros(1, 2, 4, 4)
    # Undecided: cross-entropy log 2; soft Dice 2 · ½ · 8 / (8 + 8) = ½.
    assert loss_of(sure, classes).item() == pytest.approx(0, abs=1e-5)
    assert loss_of(undecided, classes).item() == pytest.approx(np.log(2) + 0.5, abs=1e-5)
    heads = torch.stack([sure, undecided], dim=1)
    assert loss_of(heads, classes).item() == pytest.approx((np.log(2) + 0.5) / 3, abs=1e-5)


# Changes


def test_masks_follow_their_images() -> None:
    random = np.random.default_rng(4)
    _, disc = draw_discs(random, 24, side=32)
    classes = torch.from_numpy(disc).long()
    plain = replace(MILD, chance=1.0, contrast=(1, 1), brightness=0.0, gamma=(1, 1), noise=0.0)
    images, moved = augment(classes[:, None].float(), classes, plain, random)
    found = (images[:, 0] > 0.5).numpy().astype(np.uint8)
    dice = dice_of(count_pixels(moved.numpy().astype(np.uint8), found, labels=1))
    assert dice.min() > 0.9
    assert dice_of(count_pixels(disc, found, labels=1)).mean() < 0.9


def test_turning_does_not_shear_an_image_that_is_not_square() -> None:
    images = torch.zeros(1, 1, 31, 61)
    images[0, 0, 15, 20:41] = 1  # a line of 21 pixels through the middle
    quarter = Augmentation(1.0, 90.0, 0.0, 0.0, (1, 1), 0.0, (1, 1), 0.0)

    class Highest(np.random.Generator):
        def uniform(self, low: float = 0, high: float = 1, size: int | None = None) -> np.ndarray:
            return np.full(size, high)

    turned, _ = augment(images, images[:, 0].long(), quarter, Highest(np.random.PCG64(0)))
    torch.testing.assert_close(turned[0, 0, 5:26, 30], torch.ones(21), atol=1e-3, rtol=0)
    assert turned.sum() == pytest.approx(21, abs=0.1)


def test_a_chance_of_zero_changes_nothing() -> None:
    random = np.random.default_rng(0)
    image = torch.from_numpy(random.normal(size=(5, 2, 16, 16)).astype(np.float32))
    classes = (image[:, 0] > 0).long()
    none, same = augment(image, classes, replace(MILD, chance=0.0), random)
    torch.testing.assert_close(none, image, atol=1e-5, rtol=1e-5)
    assert torch.equal(same, classes)


def test_left_stays_left() -> None:
    ramp = torch.linspace(-1, 1, 16).expand(300, 1, 16, 16)
    moved, classes = augment(ramp, (ramp[:, 0] > 0).long(), MILD, np.random.default_rng(0))
    assert (moved[..., 8:].mean(dim=(1, 2, 3)) > moved[..., :8].mean(dim=(1, 2, 3))).all()
    assert (classes[..., 8:].sum(dim=(1, 2)) > classes[..., :8].sum(dim=(1, 2))).all()


# Learning


@pytest.mark.parametrize("preset", ["unet", "nnunet"])
def test_bright_discs_are_learned_and_the_model_is_read_back_the_same(preset: str, tmp_path: Path) -> None:
    images, classes = draw_discs(np.random.default_rng(0), 60)
    settings = replace(QUICK, segment_preset=preset, segment_updates=60 if preset == "unet" else 35)
    trained = train_segmenter(
        pairs_of_arrays(images[:40], classes[:40]),
        pairs_of_arrays(images[40:50], classes[40:50]),
        labels=LABELS,
        settings=settings,
        seed=0,
        device=CPU,
    )
    found = trained.segmenter.predict(images[50:])
    assert dice_of(count_pixels(classes[50:], found, labels=1)).mean() > 0.9
    assert trained.validation > 0.9
    assert 0 < trained.update <= trained.updates <= 60
    trained.segmenter.save(tmp_path / "model", about={})
    again = load_segmenter(tmp_path / "model", CPU)
    np.testing.assert_array_equal(again.predict(images[50:]), found)
    assert again.labels == LABELS
    (tmp_path / "model" / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(FolderError, match="damaged"):
        load_segmenter(tmp_path / "model", CPU)


def test_a_seed_gives_the_same_network_and_another_seed_another_and_the_best_is_kept() -> None:
    images, classes = draw_discs(np.random.default_rng(0), 20)
    learn, choose = pairs_of_arrays(images[:16], classes[:16]), pairs_of_arrays(images[16:], classes[16:])
    settings = replace(QUICK, segment_updates=6)

    def train(seed: int) -> tuple[torch.Tensor, float]:
        before = torch.get_rng_state()
        found = train_segmenter(learn, choose, labels=LABELS, settings=settings, seed=seed, device=CPU, augmented=True)
        assert torch.equal(torch.get_rng_state(), before)
        counts = count_pixels(classes[16:], found.segmenter.predict(images[16:]), labels=1).sum(axis=1)
        assert found.validation == pytest.approx(float(dice_of(counts)[0]))
        return torch.cat([weight.flatten() for weight in found.segmenter.network.parameters()]), found.validation

    one, same, other = train(1), train(1), train(2)
    assert torch.equal(one[0], same[0])
    assert not torch.equal(one[0], other[0])


def test_weights_stay_float32_when_the_network_computes_in_bfloat16() -> None:
    images, classes = draw_discs(np.random.default_rng(0), 8)
    both = pairs_of_arrays(images, classes)
    settings = replace(QUICK, segment_updates=3, precision="bfloat16")
    found = train_segmenter(both, both, labels=LABELS, settings=settings, seed=0, device=CPU)
    assert found.segmenter.precision == "bfloat16"
    assert {weight.dtype for weight in found.segmenter.network.parameters()} == {torch.float32}
    rough = found.segmenter.scores(found.segmenter.prepare(images)).detach()
    exact = replace(found.segmenter, precision="float32").scores(found.segmenter.prepare(images)).detach()
    assert 0 < (rough - exact).abs().max() < 0.1 * exact.abs().max()


def test_diverging_is_said() -> None:
    images, classes = draw_discs(np.random.default_rng(0), 8)
    both = pairs_of_arrays(images, classes)
    settings = replace(QUICK, segment_updates=20, learning_rate=1e30)
    with pytest.raises(NonFiniteLossError, match="--learning-rate"):
        train_segmenter(both, both, labels=LABELS, settings=settings, seed=0, device=CPU)


def test_pairs_of_several_folders_are_numbered_through(make_folder: Callable[..., ImageFolder]) -> None:
    random = np.random.default_rng(0)
    one, two = pair(random, 5), pair(random, 4)
    sets = [every(make_folder("a", one)), ImageSet(make_folder("b", two), np.array([1, 3]))]
    pairs = pairs_of_images(sets, LABELS, channels=[0], mask=1)
    images, classes = pairs.read(np.array([6, 0, 5, 0]))
    wanted = np.stack([two[3], one[0], two[1], one[0]])
    assert pairs.count == 7
    np.testing.assert_array_equal(images, wanted[:, :1])
    np.testing.assert_array_equal(classes, wanted[:, 1] == 200)


# The whole


def test_the_same_images_as_synthetic_ones_score_as_real_ones_do_and_a_second_run_reads_cells(
    make_folder: Callable[..., ImageFolder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    random = np.random.default_rng(0)
    train = make_folder("train", pair(random, 40), names={"disc": 200}, affine=np.diag([-2.0, 0.5, 1, 1]).ravel())
    test = make_folder("test", pair(random, 12), affine=np.diag([-2.0, 0.5, 1, 1]).ravel())
    roles = cast(train, train, test)
    roles = replace(
        roles, holdout=ImageSet(test, np.arange(8)), left_out=ImageSet(test, np.arange(8, 12, dtype=np.int64))
    )
    out = tmp_path / "out"
    settings = replace(QUICK, segment_updates=40)
    found = run_segmentation(roles, out, settings=settings, seed=3, device=CPU)
    rows = {row["source"]: row for row in found["table"]}
    assert list(rows) == ["synthetic", "real", "both"]
    for key in set(rows["real"]) - {"source", "title"}:
        assert rows["synthetic"][key] == rows["real"][key]
    assert rows["real"]["dice"]["disc"]["value"] > 0.9
    assert rows["real"]["dice"]["disc"]["n"] == 4
    assert rows["real"]["dice_with_leaks"]["disc"]["n"] == 6
    assert (rows["real"]["images"], rows["real"]["validation"], rows["both"]["images"]) == (32, 8, 72)
    nothing = found["differences"][0]["dice"]["disc"]
    assert (nothing["value"], nothing["low"], nothing["high"]) == (0, 0, 0)
    assert found["unit"] == "mm"
    assert found["labels"] == [
        {"name": "disc", "value": 200, "synthetic": 40, "train": 40, "holdout": 8, "left_out": 4}
    ]
    assert found["counts"]["far_share"] == 0
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert (out / "figures" / segment.PICTURE).is_file()
    assert np.load(out / "cells" / "real.npy", allow_pickle=False).shape == (12, SIDE, SIDE)
    assert load_segmenter(out / "models" / "both", CPU).labels == Labels(("disc",), (200,))

    asked: list[str] = []

    def refuse(*given: object, name: str, **named: object) -> None:
        asked.append(name)
        raise KeyboardInterrupt

    monkeypatch.setattr(segment, "train_segmenter", refuse)
    assert run_segmentation(roles, out, settings=settings, seed=3, device=CPU) == found
    (out / "cells" / "both.npy").write_bytes(b"torn")
    with pytest.raises(KeyboardInterrupt):
        run_segmentation(roles, out, settings=settings, seed=3, device=CPU)
    with pytest.raises(KeyboardInterrupt):
        run_segmentation(roles, out, settings=settings, seed=4, device=CPU)
    assert asked == ["real and synthetic", "synthetic"]


def test_shifted_predictions_have_the_known_dice_and_distance(
    make_folder: Callable[..., ImageFolder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = np.zeros((6, 2, SIDE, SIDE), np.uint8)
    pixels[:, 0] = np.arange(6)[:, None, None]
    pixels[:, 1, 4:10, 4:10] = 50
    folder = make_folder("all", pixels)
    shifts = iter([0, 1, 2, 3])

    class Shifted:
        def __init__(self, by: int) -> None:
            self.by = by

        def save(self, *given: object, **named: object) -> None:
            pass

        def predict(self, images: np.ndarray) -> np.ndarray:
            return np.roll(pixels[:, 1] // 50, self.by, axis=2)

    def plant(*given: object, **named: object) -> segment.Any:
        from unalike.utility.segmentation import Trained

        return Trained(Shifted(next(shifts)), 1.0, 1, 1)  # type: ignore[arg-type]

    monkeypatch.setattr(segment, "train_segmenter", plant)
    found = run_segmentation(
        cast(folder, folder, folder), tmp_path / "out", settings=replace(QUICK, augment=True), seed=0, device=CPU
    )
    for shift, row in enumerate(found["table"]):
        assert row["dice"]["50"]["value"] == pytest.approx(1 - shift / 6)
        assert row["hd95"]["50"]["value"] == pytest.approx(shift)
    gains = {row["source"]: row["dice"]["mean"] for row in found["differences"]}
    assert gains["synthetic"]["low"] == pytest.approx(1 / 6)
    assert gains["both"]["high"] == pytest.approx(-2 / 6)
    assert found["unit"] == "pixels"
    assert any("pixels" in note for note in found["notes"])


def test_what_cannot_work_is_said_in_one_line(make_folder: Callable[..., ImageFolder], tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    good = make_folder("good", pair(random, 6))
    bare = make_folder("bare", pair(random, 6)[:, :1], ["mri"])
    alone = make_folder("alone", pair(random, 6)[:, 1:], ["mask"])
    blank = make_folder("blank", pair(random, 6) * np.array([1, 0], np.uint8)[:, None, None])
    single = make_folder("single", pair(random, 2))
    for roles, said in (
        (cast(bare, bare, bare), "no channel mask"),
        (cast(bare, good, good), "no channel mask"),
        (cast(alone, alone, alone), "masks alone"),
        (cast(good, blank, good), "no train image has a label"),
        (cast(blank, good, good), "no sample has a label"),
        (cast(single, good, good), "1 synthetic images"),
        (cast(good, single, good), "1 train subjects"),
        (cast(good, good, single), "1 holdout subjects"),
    ):
        with pytest.raises(InputError, match=said) as caught:
            run_segmentation(roles, tmp_path / "out", settings=QUICK, seed=0, device=CPU)
        assert "\n" not in str(caught.value)
    shutil.rmtree(tmp_path / "out", ignore_errors=True)
