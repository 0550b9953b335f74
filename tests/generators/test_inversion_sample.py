"""Drawing from a base with learned concepts: what a prompt asks for, what a seed decides, and what diffusers says."""

from __future__ import annotations

import dataclasses
import shutil
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tests.generators.test_inversion_base import _as_first_published

from unalike import folders
from unalike.cohort.store import ImageWriter, open_images
from unalike.errors import FolderError, InputError, SettingsError
from unalike.generators.diffusion.sample import Given
from unalike.generators.inversion.base import libraries_silent, open_base
from unalike.generators.inversion.embedding import Embedding, read_embedding, write_embedding
from unalike.generators.inversion.model import InversionModel, open_model
from unalike.generators.inversion.prompts import expand_tokens
from unalike.generators.inversion.sample import GROUP, Composed, InversionSampler
from unalike.generators.inversion.settings import InversionDrawSettings
from unalike.generators.inversion.tiny import build_tiny_base, save_base
from unalike.runs.given import GivenSettings
from unalike.runs.sample import draw_samples
from unalike.runs.train import train_generator

Draw = Callable[..., np.ndarray]

TINY: dict[str, Any] = {"steps": 3, "batch_size": 2, "vectors": 3, "learning_rate": 0.2, "precision": "float32"}
QUICK: dict[str, Any] = {"steps": 2, "precision": "float32"}
SIDE = 12  # of the cohort's images; the base draws 16


def _write_cohort(out: Path, *, channels: Sequence[str] = ("t1",), dtype: Any = np.uint8) -> Path:
    """Eight train images of two classes, a quarter and three."""
    dtype = np.dtype(dtype)
    folders.begin_folder(out, kind="cohort", settings={})
    writer = ImageWriter(out, channels=tuple(channels), height=SIDE, width=SIDE, dtype=dtype)
    random = np.random.default_rng(3)
    for number, label in enumerate("abbbabbb"):
        image = random.integers(0, 255 if dtype == np.uint8 else 4000, (len(channels), SIDE, SIDE)).astype(dtype)
        name = {"subject": f"s{number}", "source": f"f{number}", "slice": 0, "role": "train", "label": label}
        writer.append(image, name)
    folders.finish_folder(out, kind="cohort", settings={}, seed=0, inputs={}, content=writer.close())
    return out


def _save_base(place: Path, *, seed: int = 5) -> Path:
    """A tiny base whose weights are as far from 0 as a training leaves them, so that prompts matter."""
    made = build_tiny_base(size=16, words=("brain", "tumor"))
    stream = torch.Generator().manual_seed(seed)
    for part in (made.text_encoder, made.vae, made.unet):
        for weight in part.parameters():
            weight.add_(0.05 * torch.randn(weight.shape, generator=stream))
    return save_base(made, place)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _save_base(tmp_path_factory.mktemp("bases") / "base")


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _write_cohort(tmp_path_factory.mktemp("cohorts") / "brains")


@pytest.fixture(scope="module")
def plain(cohort: Path, base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that learned one token, <ill>."""
    return _train(cohort, tmp_path_factory.mktemp("runs") / "plain", base, token="ill")


@pytest.fixture(scope="module")
def labelled(cohort: Path, base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that learned a token for each class, <a> and <b>."""
    return _train(cohort, tmp_path_factory.mktemp("runs") / "labelled", base, condition="label")


@pytest.fixture(scope="module")
def model(labelled: Path) -> InversionModel:
    """<a> and <b> on their base, the one as far from the other as two words are."""
    opened = _open(labelled)
    stream = torch.Generator().manual_seed(2)
    learned = {token: 0.5 * torch.randn(3, 32, generator=stream) for token in opened.learned}
    return dataclasses.replace(opened, learned=learned)


@pytest.fixture(scope="module")
def draw(model: InversionModel) -> Draw:
    def drawing(
        seeds: Sequence[int] = (1, 2), *, given: Given | None = None, count: int = 0, **order: Any
    ) -> np.ndarray:
        return InversionSampler(model, _order(**order), given=given, count=count).draw(list(seeds))

    return drawing


def _train(cohort: Path, out: Path, base: Path, **settings: Any) -> Path:
    order = TINY | {"base": str(base)} | settings
    return train_generator(kind="inversion", cohort=cohort, out=out, settings=order, device="cpu")


def _order(**order: Any) -> InversionDrawSettings:
    return InversionDrawSettings(**(QUICK | order))


def _open(run: Path, **order: Any) -> InversionModel:
    content = folders.read_header(run, kind="run").content
    return open_model(run / "model", content=content, device="cpu", precision="float32", **order)


def _assert_differs(a: np.ndarray, b: np.ndarray) -> None:
    """No image of the one is that of the other."""
    assert a.shape == b.shape
    assert (a != b).reshape(len(a), -1).any(axis=1).all()


# What a prompt asks for


@pytest.mark.parametrize("guidance", [1.0, 2.0])
@pytest.mark.parametrize(
    ("composed", "single"),
    [
        ("1*<a> AND 0*<b>", "<a>"),
        ("0*<a> AND 1*<b>", "<b>"),
        ("NOT 0*tumor AND <b>", "<b>"),
    ],
)
def test_a_concept_of_no_weight_is_as_if_it_were_not_there(
    draw: Draw, composed: str, single: str, guidance: float
) -> None:
    expected = draw(prompt=single, guidance=guidance)
    assert np.array_equal(draw(prompt=composed, guidance=guidance), expected)
    _assert_differs(expected, draw(prompt="0.5*<a> AND 0.5*<b>", guidance=guidance))


def test_one_concept_without_guidance_is_the_conditional_network(model: InversionModel, draw: Draw) -> None:
    asked: list[str] = []

    def tell(text: str) -> torch.Tensor:
        asked.append(text)
        return model.base.encode_text(text, dict(model.learned))

    z, t = torch.randn((2, 4, 4, 4), generator=torch.Generator().manual_seed(0)), torch.tensor(700)
    sampler = InversionSampler(model, _order(prompt="<a>"))
    with torch.inference_mode():
        found = Composed(model, [sampler.concepts(0)] * 2, 1.0, tell)(z, t)
        told = tell("<a>").expand(2, -1, -1)
        assert torch.equal(found, model.base.unet(z, t, encoder_hidden_states=told).sample)
    assert "" not in asked
    _assert_differs(draw(prompt="<a>", guidance=1.0), draw(prompt="<a>", guidance=3.0))


def test_composition_is_the_sum_that_the_paper_says(model: InversionModel) -> None:
    prompts = ["0.25*<a> AND 0.75*<b>", "<a> AND NOT 0.5*tumor", "<b>"]
    weights = [{"<a>": 0.25, "<b>": 0.75}, {"<a>": 1.0, "tumor": -0.5}, {"<b>": 1.0}]
    asked = [InversionSampler(model, _order(prompt=prompt)).concepts(0) for prompt in prompts]
    z, t = torch.randn((3, 4, 4, 4), generator=torch.Generator().manual_seed(0)), torch.tensor(300)

    def f(text: str, row: int) -> torch.Tensor:
        told = model.base.encode_text(text, dict(model.learned))
        return model.base.predict(z[row : row + 1], t, told[None])[0]

    with torch.inference_mode():
        found = Composed(model, asked, 2.0, lambda text: model.base.encode_text(text, dict(model.learned)))(z, t)
        for row, those in enumerate(weights):
            away = sum((w * (f(text, row) - f("", row)) for text, w in those.items()), torch.zeros_like(z[0]))
            torch.testing.assert_close(found[row], f("", row) + 2 * away, rtol=1e-4, atol=1e-5)


def test_neighbours_with_more_concepts_change_nothing(model: InversionModel) -> None:
    one, two = (InversionSampler(model, _order(prompt=text)).concepts(0) for text in ("<a>", "0.5*<a> AND 0.5*<b>"))
    z, t = torch.randn((4, 4, 4, 4), generator=torch.Generator().manual_seed(0)), torch.tensor(300)

    def tell(text: str) -> torch.Tensor:
        return model.base.encode_text(text, dict(model.learned))

    with torch.inference_mode():
        for guidance in (1.0, 2.0):
            alone = Composed(model, [one] * 4, guidance, tell)(z, t)
            mixed = Composed(model, [one, two, one, two], guidance, tell)(z, t)
            assert torch.equal(mixed[::2], alone[::2])
            assert not torch.equal(mixed[1::2], alone[1::2])


def test_a_concept_kept_away_from_leads_elsewhere(draw: Draw) -> None:
    wanted, away = draw(prompt="<a>"), draw(prompt="<a> AND NOT <b>")
    _assert_differs(wanted, away)
    _assert_differs(draw(prompt="<a> AND <b>"), away)


@pytest.mark.parametrize(("guidance", "sampler"), [(1.0, "ddim"), (2.0, "euler-a")])
def test_a_morph_begins_and_ends_with_its_prompts(draw: Draw, guidance: float, sampler: str) -> None:
    order = {"guidance": guidance, "sampler": sampler}
    between = draw(range(5), count=5, morph=("<a>", "0.5*<b> AND 0.5*tumor"), **order)
    assert np.array_equal(between[:1], draw([0], prompt="<a>", **order))
    assert np.array_equal(between[4:], draw([0], prompt="0.5*<b> AND 0.5*tumor", **order))
    assert np.array_equal(between[2:3], draw([0], prompt="0.5*<a> AND 0.25*<b> AND 0.25*tumor", **order))
    assert len({image.tobytes() for image in between}) == 5


def test_an_unknown_token_is_answered_with_the_nearest(draw: Draw, plain: Path) -> None:
    with pytest.raises(SettingsError, match=r"there is no <il>; did you mean <ill>\? There are: <ill>"):
        InversionSampler(_open(plain), _order(prompt="<il>"))
    with pytest.raises(SettingsError, match=r"--label c is unknown. There are: a, b\."):
        draw(label="c")
    with pytest.raises(SettingsError, match=r"--label a is unknown. There are: none: it was trained without"):
        InversionSampler(_open(plain), _order(label="a"))
    with pytest.raises(SettingsError, match=r"only one of prompt, morph and label"):
        draw(label="a", prompt="<a>")


def test_a_label_is_the_prompt_of_its_class_and_none_is_each_as_often_as_there_were(
    model: InversionModel, draw: Draw
) -> None:
    assert np.array_equal(draw(label="b"), draw(prompt="<b>"))
    sampler = InversionSampler(model, _order())
    labels = [sampler.describe(seed)["label"] for seed in range(400)]
    assert labels.count("a") / 400 == pytest.approx(1 / 4, abs=0.09)
    seeds = [labels.index("a"), labels.index("b")]
    drawn = sampler.draw(seeds)
    assert np.array_equal(drawn[:1], draw(seeds[:1], prompt="<a>"))
    assert np.array_equal(drawn[1:], draw(seeds[1:], prompt="<b>"))
    assert InversionSampler(model, _order(prompt="<a>")).describe(0) == {}


# What a seed decides


@pytest.mark.parametrize("order", [{}, {"prompt": "0.3*<a> AND 0.7*<b>", "sampler": "ddim"}])
def test_a_sample_depends_on_its_seed_alone(draw: Draw, order: dict[str, Any]) -> None:
    together = draw(range(GROUP["cpu"] + 2), **order)
    _assert_differs(together, np.roll(together, 1, axis=0))
    for seeds in ([5, 0, 3], [4], [2, 2]):
        assert np.array_equal(draw(seeds, **order), together[seeds])


def test_a_base_in_a_single_file_with_its_layout_beside_it_is_as_good(
    cohort: Path, base: Path, plain: Path, tmp_path: Path
) -> None:
    file = tmp_path / "model.safetensors"
    save_file(_as_first_published(open_base(base, device="cpu", precision="float32")), file)
    layout = shutil.copytree(base, tmp_path / "layout")
    for weights in layout.rglob("*.safetensors"):
        weights.unlink()
    run = _train(cohort, tmp_path / "run", file, base_config=str(layout))
    assert np.array_equal(_vectors(run), _vectors(plain))
    assert np.array_equal(
        InversionSampler(_open(run), _order()).draw([1]), InversionSampler(_open(plain), _order()).draw([1])
    )
    layout.rename(tmp_path / "moved")
    with pytest.raises(FolderError, match="--base"):
        _open(run)
    _open(run, base=str(file), config=str(tmp_path / "moved"))


def _vectors(run: Path) -> np.ndarray:
    (file,) = (run / "model").glob("*.safetensors")
    return read_embedding(file).vectors


def test_batches_change_no_sample_and_records_tell_seed_and_class(labelled: Path, tmp_path: Path) -> None:
    found = []
    for number, (count, first, size) in enumerate([(5, 0, 64), (3, 2, 1)]):
        order = QUICK | {"batch_size": size}
        place = tmp_path / str(number)
        draw_samples(run=labelled, out=place, count=count, first_seed=first, settings=order, device="cpu")
        found.append(open_images(place, kind="samples"))
    pixels = [samples.read(samples.rows("synthetic")) for samples in found]
    assert np.array_equal(pixels[0][2:], pixels[1])
    assert found[0].column("seed").tolist() == list("01234")
    assert found[0].column("label")[2:].tolist() == found[1].column("label").tolist()
    assert set(found[0].column("label").tolist()) <= {"a", "b"}


def test_samples_have_the_channels_size_and_depth_of_the_cohort(base: Path, tmp_path: Path) -> None:
    channels = ("t1", "t2")
    cohort = _write_cohort(tmp_path / "cohort", channels=channels, dtype=np.uint16)
    run = _train(cohort, tmp_path / "run", base, steps=1)
    draw_samples(run=run, out=tmp_path / "samples", count=3, settings=QUICK, device="cpu")
    samples = open_images(tmp_path / "samples", kind="samples")
    assert (samples.channels, samples.size, samples.dtype) == (channels, (SIDE, SIDE), np.dtype(np.uint16))
    pixels = samples.read(samples.rows("synthetic"))
    assert pixels.shape == (3, 2, SIDE, SIDE)
    assert 255 < pixels.max() <= open_images(cohort).read(np.arange(8)).max()
    assert pixels.std() > 0


# From given images


def _pictures(count: int = 3) -> np.ndarray:
    """Smooth images (n, 1, 12, 12)."""
    rows, columns = np.mgrid[:SIDE, :SIDE] / SIDE
    return np.stack([127 + 100 * np.sin(3 * rows + k) * np.cos(2 * columns - k) for k in range(count)])[:, None].astype(
        np.uint8
    )


@pytest.mark.parametrize("sampler", ["ddim", "euler-a"])
def test_outside_of_what_is_redrawn_no_pixel_changes(draw: Draw, sampler: str) -> None:
    images, keep = _pictures(), np.ones((3, 1, SIDE, SIDE), bool)
    keep[:, :, 3:8, 2:9] = False  # no multiple of anything: the base's latents are 4 × 4
    drawn = draw(range(3), given=Given(images=images, keep=keep), prompt="<a>", sampler=sampler)
    assert np.array_equal(drawn[keep], images[keep])
    inside = (drawn != images)[:, :, 3:8, 2:9]
    assert inside.mean() > 0.5
    again = draw([4], given=Given(images=images, keep=keep), prompt="<a>", sampler=sampler)
    assert np.array_equal(again[0][keep[1]], images[1][keep[1]])  # sample 4 takes image 4 modulo 3
    _assert_differs(again, drawn[1:2])


def test_a_share_that_is_given_back_is_kept_at_the_side_of_the_base(model: InversionModel) -> None:
    keep = np.ones((1, 1, SIDE, SIDE), bool)
    keep[0, 0, 3, 11] = False  # rows 3–4 of 12 are rows 4–5⅓ of 16, columns 11–12 are 14⅔–16
    sampler = InversionSampler(model, _order())
    lost = np.argwhere(~sampler._at_side(keep)[0, 0]).tolist()
    assert lost == [[4, 14], [4, 15], [5, 14], [5, 15]]
    same = dataclasses.replace(model, side=SIDE)
    assert np.array_equal(InversionSampler(same, _order())._at_side(keep), keep)


def test_little_strength_stays_near_the_image(model: InversionModel, draw: Draw) -> None:
    images = _pictures()
    back = model.decode(model.encode(images)).astype(float)  # the nearest that the autoencoder lets come

    def distance(strength: float, steps: int) -> float:
        order = {"strength": strength, "steps": steps, "prompt": "<a>", "sampler": "ddim"}
        return float(np.abs(draw(range(3), given=Given(images=images), **order) - back).mean())

    assert distance(0.001, 1000) < 0.5 * distance(0.5, 2)  # one step each, from t = 0 and t = 499


@pytest.mark.parametrize(
    ("given", "order", "says"),
    [
        (Given(images=_pictures()), {}, r"--images without --strength, --box or --redraw"),
        (Given(), {"strength": 0.5}, r"strength = 0.5 is for --images"),
        (Given(masks=_pictures()), {}, r"--masks: a text-to-image base draws for prompts"),
        (Given(ends=(1, 2), count=3), {"sampler": "euler-a"}, r"--interpolate needs a sampler without fresh noise"),
    ],
)
def test_what_cannot_be_drawn_together_is_refused(draw: Draw, given: Given, order: dict[str, Any], says: str) -> None:
    with pytest.raises(SettingsError, match=says):
        draw(given=given, **order)


def test_samples_of_a_run_are_redrawn_in_a_box(plain: Path, tmp_path: Path) -> None:
    draw_samples(run=plain, out=tmp_path / "first", count=2, settings=QUICK, device="cpu")
    given = GivenSettings(images=tmp_path / "first", box=(0, 0, 6, 6))
    draw_samples(
        run=plain, out=tmp_path / "next", count=2, settings=QUICK | {"prompt": "NOT <ill>"}, device="cpu", given=given
    )
    first, redrawn = (open_images(tmp_path / name, kind="samples").read(np.arange(2)) for name in ("first", "next"))
    assert np.array_equal(first[:, :, 6:], redrawn[:, :, 6:])
    assert np.array_equal(first[:, :, :, 6:], redrawn[:, :, :, 6:])
    _assert_differs(first, redrawn)


# Where the base is


def test_a_base_that_was_moved_is_found_where_one_says(cohort: Path, base: Path, tmp_path: Path) -> None:
    here = Path(shutil.copytree(base, tmp_path / "here"))
    run = _train(cohort, tmp_path / "run", here, token="ill", steps=1)
    before = InversionSampler(_open(run), _order()).draw([1])
    there = here.rename(tmp_path / "there")
    with pytest.raises(FolderError, match=rf"{here} does not exist.*say where it is with --base") as caught:
        _open(run)
    assert "\n" not in str(caught.value)
    assert np.array_equal(InversionSampler(_open(run, base=str(there)), _order()).draw([1]), before)
    with pytest.raises(FolderError, match=rf"{tmp_path / 'gone'} does not exist"):
        _open(run, base=str(tmp_path / "gone"))


def test_another_base_is_refused(plain: Path, tmp_path: Path) -> None:
    other = _save_base(tmp_path / "other", seed=6)
    with pytest.raises(FolderError, match=rf"{other} is not the base that {plain} was trained on. Give --base."):
        _open(plain, base=str(other))


# Concepts of others


def test_further_concepts_can_be_named(plain: Path, labelled: Path, base: Path, tmp_path: Path) -> None:
    file = str(labelled / "model" / "a.safetensors")
    opened = _open(plain, embeddings=(file,))
    assert list(opened.learned) == ["<ill>", "<a>"]
    draw_samples(
        run=plain,
        out=tmp_path / "samples",
        count=2,
        settings=QUICK | {"prompt": "<a>", "embeddings": (file,)},
        device="cpu",
    )
    drawn = open_images(tmp_path / "samples", kind="samples").read(np.arange(2))
    expected = InversionSampler(_open(labelled), _order(prompt="<a>")).draw([0, 1])
    assert np.array_equal(drawn, expected)
    with pytest.raises(InputError, match=rf"{file} is another <a>. Rename one of them."):
        _open(labelled, embeddings=(file,))
    wide = write_embedding(Embedding("<wide>", np.zeros((2, 768), np.float32)), tmp_path / "wide.safetensors")
    with pytest.raises(InputError, match=r"<wide> has 768 numbers a vector, the base's text encoder 32: it is for"):
        _open(plain, embeddings=(str(wide),))
    elsewhere = Embedding("<other>", np.zeros((2, 32), np.float32), base="sha256:" + "0" * 64)
    with pytest.raises(InputError, match=r"<other> was learned with another text encoder"):
        _open(plain, embeddings=(str(write_embedding(elsewhere, tmp_path / "other.pt")),))


def test_averages_that_were_kept_can_be_drawn_from(cohort: Path, base: Path, tmp_path: Path) -> None:
    run = _train(cohort, tmp_path / "run", base, token="ill", ema_decays=(0.0, 0.9))
    last, average = (_open(run, decay=decay).learned["<ill>"] for decay in (0.0, 0.9))
    assert torch.equal(last, _open(run).learned["<ill>"])
    assert not torch.equal(last, average)
    assert np.array_equal(read_embedding(run / "model" / "0.9" / "ill.pt").vectors, average.numpy())
    with pytest.raises(FolderError, match=r"no average of decay 0.5. There are: 0.0, 0.9"):
        _open(run, decay=0.5)


def test_additions_are_drawn_with(cohort: Path, base: Path, tmp_path: Path) -> None:
    run = _train(cohort, tmp_path / "run", base, method="lora", token="tumor", rank=2, learning_rate=0.05)
    order = {"guidance": 1.0, "sampler": "ddim"}
    bare = dataclasses.replace(_open(run), base=open_base(base, device="cpu", precision="float32"))
    _assert_differs(
        InversionSampler(_open(run), _order(**order)).draw([1, 2]), InversionSampler(bare, _order(**order)).draw([1, 2])
    )


# What diffusers says


def test_diffusers_reads_the_file_and_draws_the_same(labelled: Path, model: InversionModel, base: Path) -> None:
    opened = _open(labelled)
    with warnings.catch_warnings(), libraries_silent():
        warnings.simplefilter("ignore")
        from diffusers import DDIMScheduler, StableDiffusionPipeline

        pipeline = StableDiffusionPipeline.from_pretrained(base, safety_checker=None, feature_extractor=None)
        pipeline.load_textual_inversion(labelled / "model" / "a.safetensors")
        text = "a photo of <a>, brain"
        spelled = pipeline.maybe_convert_prompt(text, pipeline.tokenizer)
        assert spelled == expand_tokens(text, {"<a>": 3})
        theirs = pipeline.encode_prompt(text, "cpu", 1, do_classifier_free_guidance=False)[0][0]
        assert torch.equal(theirs, opened.base.encode_text(text, dict(opened.learned)))
        order = {"sampler": "ddim", "guidance": 3.0, "steps": 5, "prompt": text}
        noise = torch.randn((4, 4, 4), generator=torch.Generator().manual_seed(7))
        scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, timestep_spacing="trailing")
        pipeline.scheduler = scheduler
        pipeline.set_progress_bar_config(disable=True)
        drawn = pipeline(
            text,
            height=16,
            width=16,
            num_inference_steps=5,
            guidance_scale=3.0,
            latents=noise[None],
            output_type="latent",
        ).images
    kept: list[torch.Tensor] = []

    class Catching(InversionModel):
        def decode(self, latents: torch.Tensor) -> np.ndarray:
            kept.append(latents)
            return super().decode(latents)

    catching = Catching(**{field.name: getattr(opened, field.name) for field in dataclasses.fields(opened)})
    InversionSampler(catching, _order(**order)).draw([7])
    torch.testing.assert_close(kept[0][:1], drawn, rtol=1e-3, atol=1e-4)
