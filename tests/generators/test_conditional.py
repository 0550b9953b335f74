"""Conditional runs from training to samples: classes that differ, attributes, and the models that diffusers opens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from unalike import folders
from unalike.cohort.store import ImageFolder, ImageWriter, open_images
from unalike.errors import InputError, SettingsError
from unalike.generators.diffusion.conditions import Conditions, ask_each
from unalike.generators.diffusion.model import CONDITIONER, open_model
from unalike.runs.sample import draw_samples
from unalike.runs.train import train_generator

SIZE = 8  # pixels a side
CLASSES = ("left", "right")
TINY: dict[str, Any] = {
    "steps": 4,
    "base_channels": 8,
    "channel_multipliers": (1, 2),
    "batch_size": 8,
    "warmup": 1,
    "timesteps": 100,
    "precision": "float32",
    "autoencoder_steps": 4,
}
Record = Mapping[str, Any]


def draw_image(random: np.random.Generator, label: str, size: int = SIZE) -> np.ndarray:
    """(1, size, size): noise, bright on the side that the class is called after."""
    image = random.normal(60, 12, (1, size, size))
    half = slice(0, size // 2) if label == "left" else slice(size // 2, size)
    image[:, :, half] += 120
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)


def write_cohort(out: Path, records: Sequence[Record], *, size: int = SIZE) -> Path:
    """A cohort of the train role with an image of each record's class; subjects are numbered if not named."""
    random = np.random.default_rng(5)
    folders.begin_folder(out, kind="cohort", settings={})
    writer = ImageWriter(out, channels=("t1",), height=size, width=size, dtype=np.dtype(np.uint8))
    for number, record in enumerate(records):
        told = {"subject": f"s{number:02d}", "source": f"f{number:02d}", "role": "train"} | dict(record)
        writer.append(draw_image(random, told.get("label", "left"), size), told)
    folders.finish_folder(out, kind="cohort", settings={}, seed=0, inputs={}, content=writer.close())
    return out


def train(cohort: Path, out: Path, **settings: Any) -> Path:
    return train_generator(kind="diffusion", cohort=cohort, out=out, settings=TINY | settings, device="cpu")


def draw(run: Path, out: Path, count: int, *, first_seed: int = 0, **settings: Any) -> ImageFolder:
    order = {"steps": 10, "precision": "float32"} | settings
    draw_samples(run=run, out=out, count=count, first_seed=first_seed, settings=order, device="cpu")
    return open_images(out, kind="samples")


def pixels(samples: ImageFolder) -> np.ndarray:
    return samples.read(samples.rows("synthetic"))


def content_of(run: Path) -> Mapping[str, Any]:
    return folders.read_header(run, kind="run").content


def one_line(error: pytest.ExceptionInfo[BaseException]) -> None:
    assert len(str(error.value).splitlines()) == 1


# Classes


@pytest.fixture(scope="module")
def sides(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has learned two classes, of which the right is three times as frequent."""
    house = tmp_path_factory.mktemp("sides")
    cohort = write_cohort(house / "cohort", [{"label": CLASSES[number % 4 > 0]} for number in range(32)])
    settings = {"steps": 60, "learning_rate": 1e-2, "ema_decays": (0.9,)}
    return train(cohort, house / "run", condition=("label",), **settings)


def classify(images: np.ndarray) -> list[str]:
    """The class whose mean real image is nearest."""
    random = np.random.default_rng(99)
    means = [np.mean([draw_image(random, label) for _ in range(50)], axis=0) for label in CLASSES]
    distances = np.stack([np.square(images - mean).sum(axis=(1, 2, 3)) for mean in means])
    return [CLASSES[place] for place in distances.argmin(axis=0)]


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_samples_of_a_class_are_told_from_those_of_another(sides: Path, tmp_path: Path, guidance: float) -> None:
    for label in CLASSES:
        samples = draw(sides, tmp_path / label, 20, label=label, guidance=guidance, sampler="dpm++")
        assert np.mean([found == label for found in classify(pixels(samples))]) >= 0.9
        assert set(samples.column("label")) == {label}


def test_classes_that_are_not_asked_for_come_in_the_cohorts_proportions(sides: Path, tmp_path: Path) -> None:
    assert content_of(sides)["label_counts"] == {"left": 8, "right": 24}
    samples = draw(sides, tmp_path / "samples", 200, steps=1)
    labels = samples.column("label")
    # Of 200 a quarter is 50, with a standard deviation of 6.
    assert 30 < (labels == "left").sum() < 70
    np.testing.assert_array_equal(
        labels[150:], draw(sides, tmp_path / "later", 50, first_seed=150, steps=1).column("label")
    )


def test_what_is_recorded_is_what_was_drawn(sides: Path, tmp_path: Path) -> None:
    samples = draw(sides, tmp_path / "samples", 12, sampler="dpm++")
    labels = samples.column("label").tolist()
    assert set(labels) == set(CLASSES)
    for label in CLASSES:
        asked = draw(sides, tmp_path / label, 12, sampler="dpm++", label=label)
        chosen = [place for place, drawn in enumerate(labels) if drawn == label]
        np.testing.assert_array_equal(pixels(samples)[chosen], pixels(asked)[chosen])


def test_an_unknown_class_is_refused_and_those_there_are_listed(sides: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"label 'up' is unknown. There are: left, right") as error:
        draw(sides, tmp_path / "samples", 1, label="up")
    one_line(error)
    with pytest.raises(SettingsError, match="attribute 'age' is unknown") as error:
        draw(sides, tmp_path / "samples", 1, attributes=("age=3",))
    one_line(error)
    assert not (tmp_path / "samples").exists()


def test_plain_diffusers_has_the_classes_as_numbers(sides: Path) -> None:
    unet = diffusers.UNet2DModel.from_pretrained(sides / "model" / "unet", low_cpu_mem_usage=False)
    assert not (sides / "model" / CONDITIONER).exists()
    assert unet.config.num_class_embeds == 3
    ours = open_model(sides / "model", content=content_of(sides), device="cpu", precision="float32")
    asked = ask_each(ours.conditions, ["left", "right", ""], [{}] * 3)
    assert asked.label.tolist() == [0, 1, 2]  # no label is the last row
    x = torch.randn((3, 1, SIZE, SIZE), generator=torch.Generator().manual_seed(0))
    t = torch.tensor(50)
    with torch.inference_mode():
        theirs = unet(x, t, class_labels=torch.arange(3)).sample
        np.testing.assert_array_equal(theirs, ours.predict(x, t, asked))
        one = x[:1].expand(3, -1, -1, -1)
        answers = ours.predict(one, t, asked)
    assert all((answers[a] != answers[b]).any() for a, b in ((0, 1), (0, 2), (1, 2)))


def test_the_folded_model_is_the_network_that_was_trained(sides: Path) -> None:
    state = load_file(sorted((sides / "checkpoints").iterdir())[-1] / "state.safetensors")
    weights = load_file(sides / "model" / "unet" / "diffusion_pytorch_model.safetensors")
    for name, weight in weights.items():
        known = "conditioner.label.weight" if name == "class_embedding.weight" else f"unet.{name}"
        assert torch.equal(weight, state[f"average-0.9/{known}"]), name


def test_what_changed_images_are_told_falls_away_in_the_model(tmp_path: Path) -> None:
    cohort = write_cohort(tmp_path / "cohort", [{}] * 8)
    run = train(cohort, tmp_path / "run", augment=0.5)
    unet = diffusers.UNet2DModel.from_pretrained(run / "model" / "unet", low_cpu_mem_usage=False)
    assert unet.config.class_embed_type is None
    assert unet.config.num_class_embeds is None
    assert len(draw(run, tmp_path / "samples", 2)) == 2


# Attributes


def people(count: int = 8) -> list[dict[str, Any]]:
    """Ages and scanners, each scanner of half the subjects."""
    return [{"attributes": {"age": str(30 + number), "scanner": "AB"[number % 2]}} for number in range(count)]


@pytest.fixture(scope="module")
def aged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run conditioned on age and scanner, with two weight averages."""
    house = tmp_path_factory.mktemp("aged")
    cohort = write_cohort(house / "cohort", people())
    return train(cohort, house / "run", condition=("age", "scanner"), ema_decays=(0.1, 0.9))


def test_attributes_keep_the_conditioner_beside_the_network(aged: Path, tmp_path: Path) -> None:
    assert (aged / "model" / CONDITIONER).is_file()
    assert (aged / "model" / "conditioner-0.9.safetensors").is_file()
    conditions = Conditions.from_content(content_of(aged)["conditions"])
    assert [(found.name, found.values) for found in conditions.attributes] == [("age", ()), ("scanner", ("A", "B"))]
    assert conditions.attributes[0].mean == 33.5
    young, old, nobody = (
        pixels(draw(aged, tmp_path / name, 2, attributes=asked))
        for name, asked in (("young", ("age=30", "scanner=A")), ("old", ("age=80", "scanner=A")), ("nobody", ()))
    )
    assert (young != old).any()
    assert (young != nobody).any()
    records = open_images(tmp_path / "old", kind="samples").attributes()
    assert records == [{"age": "80", "scanner": "A"}] * 2
    assert open_images(tmp_path / "nobody", kind="samples").attributes() == [{}, {}]


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (("scanner=C",), "scanner 'C' is unknown. There are: A, B"),
        (("height=180",), "attribute 'height' is unknown. There are: age, scanner"),
        (("age=old",), "age 'old' is no number"),
        (("age",), "name=value"),
    ],
)
def test_unknown_attributes_are_refused_by_name(aged: Path, tmp_path: Path, asked: tuple[str], said: str) -> None:
    with pytest.raises(SettingsError, match=said) as error:
        draw(aged, tmp_path / "samples", 1, attributes=asked)
    one_line(error)
    assert not (tmp_path / "samples").exists()


def test_an_attribute_no_image_has_is_refused(tmp_path: Path) -> None:
    cohort = write_cohort(tmp_path / "cohort", people())
    with pytest.raises(SettingsError, match=r"no training image has the attribute 'sex'\. There are: age, scanner"):
        train(cohort, tmp_path / "run", condition=("sex",))
    assert not (tmp_path / "run").exists()


def test_a_value_of_a_single_patient_is_refused(tmp_path: Path) -> None:
    records = people()
    records[5]["attributes"]["scanner"] = "C"
    cohort = write_cohort(tmp_path / "cohort", records)
    with pytest.raises(SettingsError, match="value 'C' of attribute 'scanner' belongs to one patient") as error:
        train(cohort, tmp_path / "run", condition=("scanner",))
    one_line(error)
    assert not (tmp_path / "run").exists()
    train(cohort, tmp_path / "run", condition=("age",), steps=1)  # numbers, and attributes that are not asked for, are


def test_many_images_of_one_patient_are_one_patient(tmp_path: Path) -> None:
    records = people()
    records[5] = records[5] | {"attributes": {"scanner": "C"}}
    records[6] = records[6] | {"attributes": {"scanner": "C"}, "subject": "s05"}
    cohort = write_cohort(tmp_path / "cohort", records)
    with pytest.raises(SettingsError, match=r"value 'C' .* one patient"):
        train(cohort, tmp_path / "run", condition=("scanner",))


def test_names_of_patients_cannot_be_asked_for(tmp_path: Path) -> None:
    records = [{"attributes": {"name": f"patient {number}"}} for number in range(6)]
    with pytest.raises(SettingsError, match="value 'patient 0' of attribute 'name' belongs to one patient"):
        train(write_cohort(tmp_path / "cohort", records), tmp_path / "run", condition=("name",))


def test_conditions_are_those_of_the_subjects_that_are_trained_on(tmp_path: Path) -> None:
    records = people(8)
    cohort = write_cohort(tmp_path / "cohort", records)
    out = tmp_path / "run"
    order = {"kind": "diffusion", "cohort": cohort, "out": out, "device": "cpu"}
    # Of two subjects each scanner is at most one's, unless both have the same.
    seed = next(seed for seed in range(20) if len(scanners(cohort, seed)) == 2)
    with pytest.raises(SettingsError, match="one patient"):
        train_generator(**order, settings=TINY | {"condition": ("scanner",)}, subjects=2, seed=seed)


def scanners(cohort: Path, seed: int) -> set[str]:
    from unalike.cohort.split import select_train_rows

    opened = open_images(cohort)
    entries = opened.attributes()
    return {entries[row]["scanner"] for row in select_train_rows(opened, subjects=2, seed=seed).tolist()}


# Weight averages


def test_samples_can_be_drawn_from_each_weight_average(aged: Path, tmp_path: Path) -> None:
    drawn = {decay: pixels(draw(aged, tmp_path / str(decay), 2, ema_decay=decay)) for decay in (0.0, 0.1, 0.9)}
    np.testing.assert_array_equal(drawn[0.0], drawn[0.1])  # 0 is the first one
    assert (drawn[0.9] != drawn[0.1]).any()
    with pytest.raises(InputError, match=r"no weight average of decay 0\.99\. There are: 0\.1, 0\.9") as error:
        draw(aged, tmp_path / "unknown", 1, ema_decay=0.99)
    one_line(error)
    assert not (tmp_path / "unknown").exists()


# What diffusers opens


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cohort without classes, of 16 × 16 pixels."""
    return write_cohort(tmp_path_factory.mktemp("plain") / "cohort", [{}] * 8, size=16)


def ask_pipeline(pipeline: Any, seed: int) -> np.ndarray:
    pipeline.set_progress_bar_config(disable=True)
    stream = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        images = pipeline(generator=stream, num_inference_steps=10, output_type="np", return_dict=False)[0]
    return np.asarray(images)


def test_a_run_of_latents_is_a_latent_diffusion_pipeline(plain: Path, tmp_path: Path) -> None:
    run = train(plain, tmp_path / "run", latent=2)
    about = content_of(run)["autoencoder"]
    assert about["parameters"] > 0
    drawn = pixels(draw(run, tmp_path / "samples", 3))
    assert drawn.shape == (3, 1, 16, 16)
    assert len(np.unique(drawn.reshape(3, -1), axis=0)) == 3
    pipeline = diffusers.LDMPipeline.from_pretrained(run / "model", low_cpu_mem_usage=False)
    assert pipeline.vqvae.config.scaling_factor == about["scale"]
    theirs = ask_pipeline(pipeline, 0)
    assert theirs.shape == (1, 16, 16, 1)
    assert np.isfinite(theirs).all()
    # Without fresh noise, which their pipeline takes from no seed of ours, it is the same sample.
    pipeline.scheduler = diffusers.DDIMScheduler.from_config(pipeline.scheduler.config, timestep_spacing="trailing")
    theirs = ask_pipeline(pipeline, 2)
    # One grey level: their networks work on one image at a time, ours on a group.
    assert np.abs(theirs[0].transpose(2, 0, 1) * 255 - drawn[2].astype(float)).max() <= 1.0


def test_a_run_with_learned_variances_is_a_diffusion_pipeline(plain: Path, tmp_path: Path) -> None:
    run = train(plain, tmp_path / "run", learned_variance=True)
    pipeline = diffusers.DDPMPipeline.from_pretrained(run / "model", low_cpu_mem_usage=False)
    assert pipeline.unet.config.out_channels == 2
    assert pipeline.scheduler.config.variance_type == "learned_range"
    theirs = ask_pipeline(pipeline, 3)
    assert theirs.shape == (1, 16, 16, 1)
    assert np.isfinite(theirs).all()
    assert len(draw(run, tmp_path / "samples", 2, sampler="ddpm")) == 2


@pytest.mark.parametrize(
    ("settings", "sampler"),
    [
        ({"zero_terminal_snr": True}, "ddim"),
        ({"zero_terminal_snr": True, "prediction": "sample"}, "dpm++"),
        ({"min_snr": 5.0}, "ddim"),
        ({"min_snr": 5.0, "prediction": "epsilon"}, "ddpm"),
        ({"prediction": "sample"}, "ddim"),
        ({"schedule": "linear"}, "euler"),
        ({"learned_variance": True, "schedule": "linear", "prediction": "epsilon"}, "heun"),
        ({"dropout": 0.3, "augment": 0.4, "accumulate": 2}, "euler-a"),
        ({"latent": 3, "augment": 0.4, "condition": ("scanner",)}, "dpm++"),
        ({"latent": 2, "learned_variance": True, "min_snr": 5.0}, "ddpm"),
    ],
)
def test_every_way_to_train_gives_finite_weights_and_images(
    tmp_path: Path, settings: dict[str, Any], sampler: str
) -> None:
    cohort = write_cohort(tmp_path / "cohort", people())
    run = train(cohort, tmp_path / "run", **settings, ema_decays=(0.0,))
    model = open_model(run / "model", content=content_of(run), device="cpu", precision="float32")
    assert all(weight.isfinite().all() for weight in model.network.parameters())
    drawn = pixels(draw(run, tmp_path / "samples", 2, sampler=sampler))
    assert drawn.shape == (2, 1, SIZE, SIZE)
    assert drawn.std(axis=(1, 2, 3)).min() > 0
    x = torch.randn((2, *model.shape), generator=torch.Generator().manual_seed(1))
    asked = model.ask_nothing(drawn)
    with torch.inference_mode():
        assert all(model.predict(x, torch.tensor(t), asked).isfinite().all() for t in (0, 50, 99))
