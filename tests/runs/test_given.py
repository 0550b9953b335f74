"""Given images and masks: what is kept is kept bit for bit, what is asked for changes, what does not fit is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from unalike import folders
from unalike.cohort.store import ImageFolder, ImageWriter, open_images
from unalike.errors import InputError, SettingsError, UnalikeError
from unalike.generators.diffusion.sample import DiffusionSampler, open_diffusion
from unalike.generators.diffusion.settings import SampleSettings
from unalike.runs.given import GivenSettings
from unalike.runs.sample import draw_samples
from unalike.runs.train import train_generator

SIZE = 16  # pixels a side
LEVELS = (0, 50, 120)  # of the mask
TINY: dict[str, Any] = {
    "steps": 4,
    "base_channels": 8,
    "channel_multipliers": (1, 2),
    "batch_size": 4,
    "warmup": 1,
    "timesteps": 100,
    "precision": "float32",
    "autoencoder_steps": 4,
}
BOX = (4, 8, 8, 4)  # top, left, height, width
INSIDE = (slice(None), slice(None), slice(4, 12), slice(8, 12))


def write_cohort(out: Path, *, channels: tuple[str, ...] = ("t1",)) -> Path:
    """Random images of 6 subjects, two classes and a mask where there is one."""
    random = np.random.default_rng(7)
    folders.begin_folder(out, kind="cohort", settings={})
    writer = ImageWriter(out, channels=channels, height=SIZE, width=SIZE, dtype=np.dtype(np.uint8))
    for subject in range(6):
        image = random.integers(0, 255, (len(channels), SIZE, SIZE)).astype(np.uint8)
        if "mask" in channels:
            image[channels.index("mask")] = random.choice(LEVELS, (SIZE, SIZE))
        record = {"subject": f"s{subject}", "source": f"f{subject}", "role": "train", "label": "ab"[subject % 2]}
        writer.append(image, record)
    folders.finish_folder(out, kind="cohort", settings={}, seed=0, inputs={}, content=writer.close())
    return out


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Cohorts, and a run of each kind: plain, of latents, of classes, given masks, and a memorizer."""
    house = tmp_path_factory.mktemp("house")
    plain = write_cohort(house / "cohort")
    masked = write_cohort(house / "masked", channels=("mask", "t1"))
    for name, cohort, settings in (
        ("plain", plain, {}),
        ("latent", plain, {"latent": 2}),
        ("classes", plain, {"condition": ("label",)}),
        ("masks", masked, {"condition": ("mask",)}),
    ):
        out = house / f"run-{name}"
        train_generator(kind="diffusion", cohort=cohort, out=out, settings=TINY | settings, device="cpu")
    train_generator(kind="memorizer", cohort=plain, out=house / "run-memorizer")
    draw_samples(run=house / "run-memorizer", out=house / "copies", count=2)
    return house


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three pictures of the run's size."""
    return write_pictures(tmp_path_factory.mktemp("elsewhere") / "given-pictures")


def write_pictures(place: Path, *, count: int = 3, size: tuple[int, int] = (SIZE, SIZE)) -> Path:
    random = np.random.default_rng(21)
    place.mkdir()
    for number in range(count):
        Image.fromarray(random.integers(0, 256, size).astype(np.uint8)).save(place / f"{number}.png")
    return place


def read_pictures(place: Path) -> np.ndarray:
    """(n, 1, H, W)."""
    return np.stack([np.asarray(Image.open(file))[None] for file in sorted(place.iterdir())])


Draw = Callable[..., np.ndarray]


@pytest.fixture
def draw(house: Path, tmp_path: Path) -> Draw:
    """Draw samples of a run; the pixels (n, C, H, W)."""
    numbers = iter(range(100))

    def draw(run: str = "plain", *, count: int = 3, given: dict[str, Any] | None = None, **settings: Any) -> np.ndarray:
        order = {"steps": 10, "precision": "float32"} | settings
        samples = draw_samples(
            run=house / f"run-{run}",
            out=tmp_path / f"samples-{next(numbers)}",
            count=count,
            settings=order,
            device="cpu",
            given=None if given is None else GivenSettings(**given),
        )
        opened = open_images(samples, kind="samples")
        return opened.read(opened.rows("synthetic"))

    return draw


def one_line(error: pytest.ExceptionInfo[BaseException]) -> None:
    assert len(str(error.value).splitlines()) == 1


def open_last(tmp_path: Path) -> ImageFolder:
    return open_images(sorted(tmp_path.glob("samples-*"))[-1], kind="samples")


# Drawn anew in part


@pytest.mark.parametrize(
    ("run", "sampler"),
    [*(("plain", name) for name in ("ddim", "ddpm", "dpm++", "euler", "euler-a", "heun")), ("latent", "ddim")],
)
def test_outside_the_box_nothing_changes(draw: Draw, pictures: Path, run: str, sampler: str) -> None:
    drawn = draw(run, count=5, given={"images": pictures, "box": BOX}, sampler=sampler)
    given = read_pictures(pictures)[[0, 1, 2, 0, 1]]
    outside = np.ones(given.shape, bool)
    outside[INSIDE] = False
    np.testing.assert_array_equal(drawn[outside], given[outside])
    assert (drawn[INSIDE] != given[INSIDE]).mean() > 0.8
    assert (drawn[0] != drawn[3])[:, 4:12, 8:12].mean() > 0.5  # of one image, by another seed


def test_a_picture_says_what_is_drawn_anew(draw: Draw, pictures: Path, tmp_path: Path) -> None:
    redraw = np.zeros((SIZE, SIZE), np.uint8)
    redraw[4:12, 8:12] = 255
    redraw[0, 0], redraw[15, 15] = 127, 128  # at most half bright is kept
    Image.fromarray(redraw).save(tmp_path / "redraw.png")
    drawn = draw(given={"images": pictures, "redraw": tmp_path / "redraw.png"})
    given = read_pictures(pictures)
    kept = np.broadcast_to(redraw <= 127, given.shape)
    np.testing.assert_array_equal(drawn[kept], given[kept])
    assert (drawn[~kept] != given[~kept]).mean() > 0.8


def test_the_same_rectangle_as_box_or_picture(draw: Draw, pictures: Path, tmp_path: Path) -> None:
    redraw = np.zeros((SIZE, SIZE), np.uint8)
    redraw[4:12, 8:12] = 255
    Image.fromarray(redraw).save(tmp_path / "redraw.png")
    by_box = draw(given={"images": pictures, "box": BOX})
    by_picture = draw(given={"images": pictures, "redraw": tmp_path / "redraw.png"})
    np.testing.assert_array_equal(by_box, by_picture)


def test_each_image_has_its_own_part(draw: Draw, pictures: Path, tmp_path: Path) -> None:
    place = tmp_path / "parts"
    place.mkdir()
    for number in range(3):
        redraw = np.zeros((SIZE, SIZE), np.uint8)
        redraw[number * 5 : number * 5 + 5] = 255
        Image.fromarray(redraw).save(place / f"{number}.png")
    drawn, given = draw(given={"images": pictures, "redraw": place}), read_pictures(pictures)
    for number in range(3):
        changed = (drawn[number, 0] != given[number, 0]).mean(axis=1) > 0.5
        assert np.flatnonzero(changed).tolist() == list(range(number * 5, number * 5 + 5))
    (place / "2.png").unlink()
    with pytest.raises(InputError, match="holds 2 pictures for 3 images") as error:
        draw(given={"images": pictures, "redraw": place})
    one_line(error)


def test_the_batch_size_changes_no_bit(draw: Draw, pictures: Path) -> None:
    given = {"images": pictures, "box": BOX}
    np.testing.assert_array_equal(
        draw(count=10, given=given, sampler="ddpm", batch_size=3), draw(count=10, given=given, sampler="ddpm")
    )


# Image to image


def test_the_smaller_the_strength_the_nearer_it_stays(draw: Draw, pictures: Path) -> None:
    given = read_pictures(pictures).astype(float)
    away = [
        np.abs(draw(given={"images": pictures}, steps=50, strength=strength) - given).mean()
        for strength in (0.02, 0.3, 0.9)
    ]
    assert away[0] < 8 < away[1] < away[2]


def test_samples_can_be_given(draw: Draw, tmp_path: Path) -> None:
    first = draw()
    changed = draw(given={"images": tmp_path / "samples-0"}, steps=50, strength=0.02)
    assert np.abs(changed.astype(float) - first).mean() < 8
    about = open_last(tmp_path).header.content["given"]
    assert len(about["images"]) == 64
    assert about["keep"] is about["masks"] is None


# Between two samples


@pytest.mark.parametrize("run", ["plain", "latent"])
def test_the_ends_of_an_interpolation_are_the_samples(draw: Draw, run: str) -> None:
    between = draw(run, count=5, given={"interpolate": (7, 2)})
    plain = draw(run, count=8)
    np.testing.assert_array_equal(between[0], plain[7])
    np.testing.assert_array_equal(between[4], plain[2])
    assert len(np.unique(between.reshape(5, -1), axis=0)) == 5


def test_an_interpolation_needs_one_class_and_no_fresh_noise(draw: Draw) -> None:
    between = draw("classes", count=3, given={"interpolate": (0, 1)}, label="b")
    np.testing.assert_array_equal(between[[0, 2]], draw("classes", count=2, label="b"))
    for settings, said in (({}, r"one --label .* There are: a, b"), ({"label": "a", "sampler": "ddpm"}, "Use ddim")):
        with pytest.raises(SettingsError, match=said) as error:
            draw("classes", given={"interpolate": (0, 1)}, **settings)
        one_line(error)
    with pytest.raises(SettingsError, match="needs 2 or more"):
        draw(count=1, given={"interpolate": (0, 1)})


# Guidance


def test_weight_1_is_the_conditional_and_weight_0_the_unconditional_model(house: Path, draw: Draw) -> None:
    run = house / "run-classes"
    content = folders.read_header(run, kind="run").content

    def alone(label: str) -> DiffusionSampler:
        """Without proportions of the classes, so that no label asks for none."""
        settings = SampleSettings(steps=10, precision="float32", label=label)
        return open_diffusion(run, content={**content, "label_counts": {}}, settings=settings, device="cpu")

    by_class = {label: draw("classes", label=label) for label in "ab"}
    for label, drawn in by_class.items():
        np.testing.assert_array_equal(draw("classes", label=label, guidance=1.0), drawn)
        np.testing.assert_array_equal(alone(label).draw(range(3)), drawn)
        np.testing.assert_array_equal(draw("classes", label=label, guidance=0.0), alone("").draw(range(3)))
    assert (by_class["a"] != by_class["b"]).any()
    assert (draw("classes", label="a", guidance=3.0) != by_class["a"]).any()
    with pytest.raises(SettingsError, match="without labels and attributes"):
        draw(guidance=2.0)


# Masks


def test_the_given_mask_is_the_samples_mask_bit_for_bit(draw: Draw, tmp_path: Path) -> None:
    random = np.random.default_rng(2)
    masks = random.choice(LEVELS, (2, SIZE, SIZE)).astype(np.uint8)
    place = tmp_path / "masks"
    place.mkdir()
    for number, mask in enumerate(masks):
        Image.fromarray(mask).save(place / f"{number}.png")
    drawn = draw("masks", count=4, given={"masks": place})
    np.testing.assert_array_equal(drawn[:, 0], masks[[0, 1, 0, 1]])
    assert len(np.unique(drawn[:, 1])) > 20
    # Of a samples folder, its mask channel.
    again = draw("masks", count=4, given={"masks": tmp_path / "samples-0"})
    np.testing.assert_array_equal(again, drawn)
    # The mask matters.
    other = draw("masks", count=2, given={"masks": write_masks(tmp_path / "black", 0)})
    assert (other[0, 1] != drawn[0, 1]).any()


def write_masks(place: Path, level: int) -> Path:
    place.mkdir()
    Image.fromarray(np.full((SIZE, SIZE), level, np.uint8)).save(place / "0.png")
    return place


def test_masks_that_do_not_fit_are_refused(draw: Draw, house: Path, tmp_path: Path) -> None:
    for run, given, said in (
        ("masks", {"masks": write_masks(tmp_path / "unknown", 77)}, "mask levels 77 .* 0, 50, 120"),
        ("masks", {"masks": house / "masked"}, "is a cohort"),
        ("masks", {"masks": write_pictures(tmp_path / "large", size=(32, 16))}, "32 × 16 pixels"),
        ("masks", None, "give --masks FOLDER"),
        ("plain", {"masks": tmp_path / "unknown"}, "no mask channel"),
    ):
        with pytest.raises(InputError, match=said) as error:
            draw(run, given=given)
        one_line(error)
    assert not list(tmp_path.glob("samples-*"))


# What is refused, and what is not told


def test_patients_images_are_refused(draw: Draw, house: Path, tmp_path: Path) -> None:
    for place, said in ((house / "cohort", "show patients"), (house / "copies", "copies of training images")):
        with pytest.raises(InputError, match=said) as error:
            draw(given={"images": place, "box": BOX})
        one_line(error)
    assert not list(tmp_path.glob("samples-*"))


def test_images_that_do_not_fit_are_refused(draw: Draw, house: Path, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong"
    wrong.mkdir()
    deep, large = wrong / "deep", wrong / "large"
    for place, dtype, size in ((deep, np.uint16, SIZE), (large, np.uint8, 2 * SIZE)):
        folders.begin_folder(place, kind="samples", settings={})
        writer = ImageWriter(place, channels=("t1",), height=size, width=size, dtype=np.dtype(dtype))
        writer.append(np.ones((1, size, size), dtype), {"subject": "x", "source": "run", "role": "synthetic"})
        folders.finish_folder(place, kind="samples", settings={}, seed=0, inputs={}, content=writer.close())
    mask = write_masks(wrong / "mask", 50)
    two = draw("masks", count=1, given={"masks": mask})
    assert two.shape[1] == 2
    (wrong / "empty").mkdir()
    for place, said in (
        (deep, r"16 × 16 pixels, uint16; the run draws 16 × 16, uint8"),
        (large, r"32 × 32 pixels, uint8; the run draws 16 × 16"),
        (tmp_path / "samples-0", "has channels mask, t1, the run has t1"),
        (write_pictures(wrong / "pictures", size=(SIZE, 24)), "is 16 × 24 pixels"),
        (wrong / "empty", "holds no pictures"),
        (wrong / "nowhere", "does not exist"),
        (house / "run-plain", "holds no pictures"),
    ):
        with pytest.raises(InputError, match=said) as error:
            draw(given={"images": place, "box": BOX})
        one_line(error)
    with pytest.raises(InputError, match=r"channels mask, t1\. Give a samples folder"):
        draw("masks", given={"images": wrong / "pictures", "box": BOX, "masks": mask})


@pytest.mark.parametrize("box", [(-1, 0, 4, 4), (0, 0, 17, 4), (0, 13, 4, 4), (2, 2, 0, 4)])
def test_a_box_outside_the_image_is_refused(draw: Draw, pictures: Path, box: tuple[int, int, int, int]) -> None:
    with pytest.raises(SettingsError, match="is not within 16 × 16") as error:
        draw(given={"images": pictures, "box": box})
    one_line(error)


def test_what_makes_no_sense_together_is_refused(draw: Draw, house: Path, pictures: Path, tmp_path: Path) -> None:
    for given, said in (
        ({"box": BOX}, "give --images"),
        ({"images": pictures, "box": BOX, "redraw": pictures}, "Give one of them"),
        ({"images": pictures, "interpolate": (0, 1)}, "Give one of them"),
    ):
        with pytest.raises(SettingsError, match=said):
            GivenSettings(**given)
    for order, said in (
        ({"given": {"images": pictures}}, "nothing of them would be left"),
        ({"given": {"images": pictures, "box": BOX}, "strength": 0.5}, "strength = 0.5"),
        ({"strength": 0.5}, "strength = 0.5"),
    ):
        with pytest.raises(SettingsError, match=said) as error:
            draw(**order)
        one_line(error)
    given = GivenSettings(images=pictures, box=BOX)
    with pytest.raises(SettingsError, match="given images are for diffusion"):
        draw_samples(run=house / "run-memorizer", out=tmp_path / "samples", count=1, given=given)


def test_a_picture_that_cannot_be_read_is_one_line(draw: Draw, pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no picture")
    for place in (tmp_path / "broken.png", tmp_path / "missing.png"):
        with pytest.raises(UnalikeError, match=place.name) as error:
            draw(given={"images": pictures, "redraw": place})
        one_line(error)


def test_the_header_does_not_tell_where_the_given_images_lie(draw: Draw, pictures: Path, tmp_path: Path) -> None:
    draw(given={"images": pictures, "box": BOX})
    samples = open_last(tmp_path)
    about = samples.header.content["given"]
    assert len(about["images"]) == len(about["keep"]) == 64
    for file in samples.path.rglob("*"):
        if file.is_file():
            data = file.read_bytes()
            assert b"given-pictures" not in data
            assert str(pictures.parent).encode() not in data


def test_a_drawing_is_not_resumed_with_other_images(
    draw: Draw, pictures: Path, house: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    order = {"run": house / "run-plain", "out": tmp_path / "out", "count": 2, "settings": {"steps": 2}}
    with monkeypatch.context() as patch:
        patch.setattr("unalike.runs.sample.Drawing.assemble", stop)
        with pytest.raises(KeyboardInterrupt):
            draw_samples(**order, given=GivenSettings(images=pictures, box=BOX))
    with pytest.raises(InputError, match="other settings"):
        draw_samples(**order, given=GivenSettings(images=pictures, box=(0, 0, 4, 4)))
    draw_samples(**order, given=GivenSettings(images=pictures, box=BOX))
