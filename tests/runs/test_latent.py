"""Films, mixing sheets and projections: identical with samples where that is promised, and honest about the rest."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file

from unalike import folders
from unalike.cohort.store import open_images
from unalike.errors import FolderError, InputError, SettingsError
from unalike.generators.stylegan import project
from unalike.generators.stylegan.model import save_model
from unalike.generators.stylegan.network import NetworkShape, build_networks
from unalike.generators.stylegan.sample import StyleganSampler
from unalike.runs.latent import (
    Film,
    _find_layers,
    _slerp,
    make_film,
    make_mix,
    plan_film,
    plan_mix,
    plan_projection,
    project_folder,
    write_projection,
)
from unalike.runs.sample import draw_samples

MakeCohort = Callable[..., Path]
MakeRun = Callable[..., Path]


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    def make(
        *,
        channels: Sequence[str] = ("t1",),
        labels: Sequence[str] = (),
        dtype: str = "uint8",
        highest: int = 255,
        name: str = "run",
    ) -> Path:
        """A StyleGAN run that was never trained, whose layer noise and styles show in its images of 16 × 16 pixels."""
        out = tmp_path / name
        folders.begin_folder(out, kind="run", settings={})
        shape = NetworkShape(len(channels), (4, 4), (8, 8, 8), 8, 1, classes=len(labels))
        network, _ = build_networks(shape, seed=3)
        with torch.no_grad():
            for convolution in network.convolutions:
                convolution.noise_strength.fill_(0.3)
            for parameter in network.mapping.parameters():
                parameter.mul_(2)
        save_model({0.9: network.state_dict()}, shape=shape, labels=labels, place=out / folders.MODEL)
        content: dict[str, Any] = {
            "generator": "stylegan",
            "channels": list(channels),
            "height": 16,
            "width": 16,
            "dtype": dtype,
            "highest": highest,
            "levels": {"mask": [0, 50, 120]} if "mask" in channels else {},
            "subjects": None,
            "subject_seed": 0,
            "holds_training_images": False,
            "label_counts": dict.fromkeys(labels, 3),
            "ema_decays": [0.9],
            "model_digest": folders.digest_tree(out / folders.MODEL),
        }
        folders.finish_folder(out, kind="run", settings={}, seed=0, inputs={"cohort": "x"}, content=content)
        return out

    return make


def sample(run: Path, seed: int, **settings: Any) -> np.ndarray:
    """The image (C, H, W) of this seed, as a samples folder of nine has it."""
    first = max(0, seed - 4)
    out = run.with_name(f"samples-{seed}")
    draw_samples(run=run, out=out, count=9, first_seed=first, settings=settings, device="cpu")
    return open_images(out, kind="samples").read(np.array([seed - first]))[0]


def draw_alone(sampler: StyleganSampler, ws: torch.Tensor, noise: torch.Tensor | None) -> np.ndarray:
    """Reference: one image of styles (layers, latent) in a batch of one."""
    with torch.inference_mode():
        return sampler.model.decode(
            sampler.model.synthesize(ws[None].clone(), None if noise is None else noise[None].clone())
        )[0]


def film_of(run: Path, seeds: Sequence[int], **settings: Any) -> Film:
    return plan_film(run=run, seeds=seeds, out=run.with_name("film.gif"), settings=settings, device="cpu")


def close(one: np.ndarray, other: np.ndarray) -> bool:
    """Equal but for rounding: the batch has another shape, and the network may work in bfloat16."""
    return bool(np.abs(one.astype(int) - other.astype(int)).mean() < 1)


# Films


@pytest.mark.parametrize("space", ["w", "z"])
@pytest.mark.parametrize("truncation", [1.0, 0.7])
def test_the_first_frame_is_the_sample_of_the_first_seed_bit_for_bit(
    make_run: MakeRun, space: str, truncation: float
) -> None:
    run = make_run(channels=("t1", "mask"), labels=("a", "b"))
    film = film_of(run, [17, 3, 25], frames=5, space=space, truncation=truncation, label="b").draw()
    assert film.shape == (15, 2, 16, 16)
    np.testing.assert_array_equal(film[0], sample(run, 17, truncation=truncation, label="b"))
    assert set(np.unique(film[:, 1])) <= {0, 50, 120}


@pytest.mark.parametrize("space", ["w", "z"])
def test_key_frames_have_their_seeds_styles_and_the_first_seeds_noise(make_run: MakeRun, space: str) -> None:
    plan = film_of(make_run(), [3, 17, 25], frames=3, space=space)
    film = plan.draw()
    with torch.inference_mode():
        styles, noise = plan.sampler.styles([3, 17, 25]), plan.sampler.noise([3])[0]
    for key in range(3):
        assert close(film[3 * key], draw_alone(plan.sampler, styles[key], noise))
    assert not close(film[3], sample(make_run(name="again"), 17))  # which has noise of its own


def test_frames_between_lie_on_a_straight_line_of_styles_and_the_way_is_closed(make_run: MakeRun) -> None:
    plan = film_of(make_run(), [3, 17], frames=4)
    film = plan.draw()
    with torch.inference_mode():
        (a, b), noise = plan.sampler.styles([3, 17]), plan.sampler.noise([3])[0]
    quarter = draw_alone(plan.sampler, 0.75 * a + 0.25 * b, noise)
    assert close(film[1], quarter)
    assert close(film[7], quarter)
    assert not close(film[1], film[0])
    assert not close(film[1], film[2])


def test_without_layer_noise_there_is_none(make_run: MakeRun) -> None:
    plan = film_of(make_run(), [3, 17], frames=1, layer_noise="none")
    film = plan.draw()
    with torch.inference_mode():
        styles = plan.sampler.styles([3, 17])
    assert close(film[1], draw_alone(plan.sampler, styles[1], None))
    assert not close(film[0], film_of(plan.header.path.parent, [3, 17], frames=1).draw()[0])


def test_great_circles_turn_evenly_and_end_where_they_should() -> None:
    a, b = torch.eye(2)[:1], 3 * torch.eye(2)[1:]
    share = torch.tensor([[1 / 3]])
    known = torch.tensor([[math.cos(math.pi / 6), math.sin(math.pi / 6)]])
    torch.testing.assert_close(_slerp(a, b, share), known)
    random = torch.randn(5, 64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(_slerp(random, random.flip(0), torch.zeros(5, 1)), random)
    torch.testing.assert_close(_slerp(random, 2 * random, torch.full((5, 1), 0.4)), random)
    assert torch.isfinite(_slerp(a, -a, share)).all()


def test_in_z_all_seeds_must_have_one_class(make_run: MakeRun) -> None:
    run = make_run(labels=("a", "b"))
    seeds = list(range(8))
    assert len(film_of(run, seeds, frames=1).draw()) == 8
    with pytest.raises(SettingsError, match=r"classes a, b.*Give --label or --space w\.$"):
        film_of(run, seeds, frames=1, space="z")


@pytest.mark.parametrize("suffix", [".gif", ".png", ".webp"])
def test_a_file_holds_the_frames_enlarged_and_nothing_else(make_run: MakeRun, tmp_path: Path, suffix: str) -> None:
    run = make_run(channels=("t1", "flair", "mask"))
    out = tmp_path / "new" / f"film{suffix}"
    assert make_film(run=run, seeds=[3, 17, 25], out=out, settings={"frames": 4, "scale": 2}, device="cpu") == out
    wanted = film_of(run, [3, 17, 25], frames=4).draw()
    with Image.open(out) as film:
        assert film.n_frames == 12
        assert film.info["loop"] == 0
        assert set(film.info) <= {
            "loop",
            "duration",
            "background",
            "version",
            "extension",
            "default_image",
            "timestamp",
            "disposal",
            "blend",
            "transparency",
            "bbox",
        }
        assert not film.getexif()
        for number, image in enumerate(wanted):
            film.seek(number)
            shown = np.asarray(film.convert("RGB"))
            row = np.concatenate(list(image), axis=1).repeat(2, axis=0).repeat(2, axis=1)
            np.testing.assert_array_equal(shown, np.stack([row] * 3, axis=-1))
    data = out.read_bytes()
    assert str(tmp_path).encode() not in data
    assert b"unalike" not in data
    assert list(out.parent.iterdir()) == [out]


def test_colours_are_shown_as_colours(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run(channels=("red", "green", "blue"))
    out = make_film(
        run=run, seeds=[3, 17], out=tmp_path / "film.webp", settings={"frames": 2, "scale": 1}, device="cpu"
    )
    with Image.open(out) as film:
        shown = np.asarray(film.convert("RGB"))
    np.testing.assert_array_equal(shown, sample(run, 3).transpose(1, 2, 0))


def test_the_brightest_value_of_16_bit_images_is_white(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run(dtype="uint16", highest=1020)
    out = make_film(run=run, seeds=[3, 17], out=tmp_path / "film.png", settings={"frames": 1, "scale": 1}, device="cpu")
    wanted = sample(run, 3)[0]
    assert wanted.max() > 255
    with Image.open(out) as film:
        np.testing.assert_array_equal(np.asarray(film.convert("L")), np.rint(wanted / 4))


def test_a_file_that_cannot_be_written_is_an_error_that_leaves_no_part_of_it(
    make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run()
    (tmp_path / "file").write_text("mine")
    with pytest.raises(FolderError, match=r"film\.gif cannot be written .*Choose another --out"):
        make_film(run=run, seeds=[1, 2], out=tmp_path / "file" / "film.gif", settings={"frames": 1}, device="cpu")

    def fail(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(FolderError, match="No space left"):
        make_film(run=run, seeds=[1, 2], out=tmp_path / "new" / "film.gif", settings={"frames": 1}, device="cpu")
    assert list((tmp_path / "new").iterdir()) == []


# Style mixing


def test_a_sheet_shows_samples_at_its_edges_and_mixtures_within(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run(channels=("t1", "mask"), labels=("a", "b"))
    plan = plan_mix(
        run=run, rows=[1, 2, 3], columns=[4, 5], out=tmp_path / "s.png", settings={"layers": "2:5"}, device="cpu"
    )
    sheet = plan.draw()
    for place, seed in enumerate([1, 2, 3]):
        np.testing.assert_array_equal(sheet.rows[place], sample(run, seed))
    np.testing.assert_array_equal(sheet.columns[1], sample(run, 5))
    with torch.inference_mode():
        rows, columns = plan.sampler.styles([1, 2, 3]), plan.sampler.styles([4, 5])
        noise = plan.sampler.noise([1, 2, 3])
    for i in range(3):
        for j in range(2):
            ws = torch.cat([rows[i, :2], columns[j, 2:5], rows[i, 5:]])
            assert close(sheet.cells[i, j, :1], draw_alone(plan.sampler, ws, noise[i])[:1])
    assert not close(sheet.cells[0, 0], sheet.rows[0])
    assert not close(sheet.cells[0, 0], sheet.cells[0, 1])


def test_a_sample_mixed_with_itself_is_itself(make_run: MakeRun, tmp_path: Path) -> None:
    for layers in ("coarse", "middle", "0:6"):
        plan = plan_mix(
            run=make_run(name=f"run-{layers[0]}"),
            rows=[1, 2],
            columns=[1, 2],
            out=tmp_path / "s.png",
            settings={"layers": layers},
            device="cpu",
        )
        sheet = plan.draw()
        for k in range(2):
            np.testing.assert_array_equal(sheet.cells[k, k], sheet.rows[k])


def test_the_sheet_is_laid_out_as_in_the_paper(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run()
    out = make_mix(run=run, rows=[1, 2], columns=[4, 5, 6], out=tmp_path / "s.png", settings={"scale": 3}, device="cpu")
    sheet = plan_mix(run=run, rows=[1, 2], columns=[4, 5, 6], out=tmp_path / "t.png", device="cpu").draw()
    with Image.open(out) as opened:
        assert opened.info == {}
        shown = np.asarray(opened)[::3, ::3]
    assert shown.shape == (3 * 18 - 2, 4 * 18 - 2)
    cells = [[shown[r : r + 16, c : c + 16] for c in range(0, 72, 18)] for r in range(0, 54, 18)]
    assert (cells[0][0] == 255).all()
    assert (shown[16:18] == 255).all()
    np.testing.assert_array_equal(cells[0][1:], sheet.columns[:, 0])
    np.testing.assert_array_equal([row[0] for row in cells[1:]], sheet.rows[:, 0])
    np.testing.assert_array_equal([row[1:] for row in cells[1:]], sheet.cells[:, :, 0])


class Shaped:
    """Stands in for a model of which only the shape is asked."""

    def __init__(self, base: tuple[int, int], count: int) -> None:
        self.shape = NetworkShape(1, base, (8,) * count, 8, 1)


@pytest.mark.parametrize(
    ("base", "count", "coarse", "middle", "fine"),
    [
        ((4, 4), 6, range(3), range(3, 7), range(7, 12)),
        ((7, 9), 5, range(3), range(3, 7), range(7, 10)),
        ((4, 4), 3, range(3), range(3, 6), None),
        ((5, 5), 2, range(4), None, None),
    ],
)
def test_coarse_middle_and_fine_are_the_sides_of_the_paper(
    base: tuple[int, int], count: int, coarse: range, middle: range | None, fine: range | None
) -> None:
    model: Any = Shaped(base, count)
    for name, wanted in {"coarse": coarse, "middle": middle, "fine": fine}.items():
        if wanted is None:
            with pytest.raises(SettingsError, match=rf"--layers {name}: .*There are: coarse \(0:"):
                _find_layers(name, model)
        else:
            assert _find_layers(name, model) == wanted
    assert _find_layers("1:2", model) == range(1, 2)


@pytest.mark.parametrize("layers", ["3:3", "2:1", "0:7", "-1:2", "1", ":", "a:b", "rough", ""])
def test_layers_that_there_are_not_are_refused_with_those_that_there_are(
    make_run: MakeRun, tmp_path: Path, layers: str
) -> None:
    with pytest.raises(SettingsError) as told:
        plan_mix(run=make_run(), rows=[1], columns=[2], out=tmp_path / "s.png", settings={"layers": layers})
    assert "coarse (0:3, sides 4 to 8), middle (3:6, side 16); or A:B within 0:6." in str(told.value)


# Projection


def plant(monkeypatch: pytest.MonkeyPatch, distances: Sequence[float]) -> list[np.ndarray]:
    """Let the search find black images at these distances; gives the images it is asked for."""
    asked = []

    def find(model: Any, images: np.ndarray, *, settings: Any, seed: int, progress: Any) -> project.Projection:
        asked.append(images)
        progress(len(images), "")
        shape = (len(images), model.shape.layers, model.shape.latent)
        styles = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
        return project.Projection(styles, images // 2, np.array(distances), np.array(distances) * 2)

    monkeypatch.setattr(project, "project_images", find)
    return asked


def test_a_cohorts_projections_are_internal_and_their_interval_is_of_subjects(
    make_run: MakeRun, make_cohort: MakeCohort, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cohort, run = make_cohort(subjects=3, slices=2, holdout=1, size=(16, 16)), make_run()
    asked = plant(monkeypatch, [1.0, 3.0, 5.0, 7.0, 6.0, 8.0])
    said: list[str] = []
    monkeypatch.setattr("unalike.runs.latent.tell", said.append)
    out = project_folder(run=run, images=cohort, out=tmp_path / "p", seed=4, device="cpu")
    np.testing.assert_array_equal(asked[0], open_images(cohort).read(np.arange(6)))
    header = folders.read_header(out, kind="projection")
    content = header.content
    assert content["internal"] is True
    assert "will show patients" in said[0]
    assert (content["source"], content["images"], header.seed) == ("cohort", 6, 4)
    assert header.inputs == {
        "run": folders.digest_of(run, kind="run"),
        "cohort": folders.digest_of(cohort, kind="cohort"),
    }
    # Means of the subjects are 2, 6 and 7.
    assert content["distance"]["value"] == 5.0
    assert content["distance"]["n"] == 3
    assert 2 <= content["distance"]["low"] < 5 < content["distance"]["high"] <= 7
    assert content["start"]["value"] == 10.0
    assert content["distances"] == [1.0, 3.0, 5.0, 7.0, 6.0, 8.0]
    styles = load_file(out / "styles.safetensors")["styles"]
    np.testing.assert_array_equal(styles.ravel(), np.arange(6 * 6 * 8, dtype=np.float32))
    with Image.open(out / "projections.png") as sheet:
        assert sheet.info == {}
        shown = np.asarray(sheet.convert("L"))
    # A target above what was made of it, both enlarged to 96 pixels.
    np.testing.assert_array_equal(shown[16:112:6, 4:100:6], asked[0][0, 0])
    np.testing.assert_array_equal(shown[132:228:6, 4:100:6], asked[0][0, 0] // 2)
    with pytest.raises(FolderError, match="of kind projection, but one of kind samples"):
        open_images(out, kind="samples")


def test_samples_and_pictures_are_projected_by_the_real_search(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run()
    samples = draw_samples(run=run, out=tmp_path / "samples", count=3, device="cpu")
    out = project_folder(
        run=run, images=samples, out=tmp_path / "p", settings={"steps": 30, "batch_size": 4}, count=2, device="cpu"
    )
    content = folders.read_header(out, kind="projection").content
    assert (content["internal"], content["source"], content["images"]) == (False, "samples", 2)
    assert content["distance"]["value"] < content["start"]["value"]
    assert load_file(out / "styles.safetensors")["styles"].shape == (2, 6, 8)

    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for number, image in enumerate(open_images(samples, kind="samples").read(np.arange(2))):
        Image.fromarray(image[0]).save(pictures / f"{number}.png")
    again = project_folder(
        run=run, images=pictures, out=tmp_path / "q", settings={"steps": 30, "batch_size": 4}, device="cpu"
    )
    there = folders.read_header(again, kind="projection").content
    assert (there["internal"], there["source"]) == (False, "pictures")
    assert there["distances"] == content["distances"]


def test_samples_that_hold_training_images_are_internal_too(
    make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run()
    samples = draw_samples(run=run, out=tmp_path / "samples", count=1, device="cpu")
    document = folders.read_json(samples / "samples.json")
    document["content"]["holds_training_images"] = True
    folders.write_json(samples / "samples.json", document)
    plant(monkeypatch, [1.0])
    out = project_folder(run=run, images=samples, out=tmp_path / "p", device="cpu")
    assert folders.read_header(out, kind="projection").content["internal"] is True


def test_a_projection_that_fails_leaves_nothing_behind(
    make_run: MakeRun, make_cohort: MakeCohort, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_projection(run=make_run(), images=make_cohort(size=(16, 16)), out=tmp_path / "p", device="cpu")
    assert not (tmp_path / "p").exists()

    def fail(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(project, "project_images", fail)
    with pytest.raises(KeyboardInterrupt):
        write_projection(plan)
    assert not (tmp_path / "p").exists()


def test_images_that_do_not_fit_the_run_are_refused(make_run: MakeRun, make_cohort: MakeCohort, tmp_path: Path) -> None:
    run = make_run()
    small = make_cohort()
    out = tmp_path / "p"
    with pytest.raises(InputError, match="8 × 8 pixels, uint8; the run draws 16 × 16"):
        plan_projection(run=run, images=small, out=out)
    with pytest.raises(InputError, match="has channels t1, the run has flair"):
        plan_projection(run=make_run(channels=("flair",), name="flair"), images=small, out=out)
    with pytest.raises(InputError, match="does not exist"):
        plan_projection(run=run, images=tmp_path / "nowhere", out=out)
    with pytest.raises(InputError, match="folder of kind run"):
        plan_projection(run=run, images=run, out=out)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("years of work")
    with pytest.raises(FolderError, match="not empty"):
        plan_projection(run=run, images=small, out=tmp_path / "full")
    with pytest.raises(SettingsError, match="lies in"):
        plan_projection(run=run, images=small, out=small / "p")
    with pytest.raises(SettingsError, match="steps = 0"):
        plan_projection(run=run, images=small, out=out, settings={"steps": 0})
    assert not out.exists()


# What all refuse


def other_kind(run: Path) -> None:
    document = folders.read_json(run / "run.json")
    document["content"]["generator"] = "gaussian"
    folders.write_json(run / "run.json", document)


def test_other_kinds_of_runs_are_refused_by_name(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run()
    other_kind(run)
    told = r"is a gaussian run; .* need stylegan"
    with pytest.raises(SettingsError, match=told):
        film_of(run, [1, 2])
    with pytest.raises(SettingsError, match=told):
        plan_mix(run=run, rows=[1], columns=[2], out=tmp_path / "s.png")
    with pytest.raises(SettingsError, match=told):
        plan_projection(run=run, images=tmp_path, out=tmp_path / "p")


@pytest.mark.parametrize(
    ("seeds", "name", "settings", "told"),
    [
        ([3], "f.gif", {}, "--seeds: give at least 2"),
        ([3, -1], "f.gif", {}, "--seeds -1: give a whole number from 0"),
        ([3, 2**62], "f.gif", {}, "below 2 to the 62"),
        ([3, 4], "f.mp4", {}, r"f\.mp4: give a name that ends in \.gif or \.png or \.webp\."),
        ([3, 4], "run/f.gif", {}, "lies in"),
        ([3, 4], "f.gif", {"label": "sick"}, "--label sick: this run was trained without labels"),
        ([3, 4], "f.gif", {"frames": 0}, "frames = 0: give at least 1"),
        ([3, 4], "f.gif", {"scale": 0}, "scale = 0"),
        ([3, 4], "f.gif", {"scale": 2000}, "too large, 16,383 a side"),
        ([3, 4], "f.gif", {"truncation": 3.0}, "truncation = 3"),
        ([3, 4], "f.gif", {"layer_noise": "new"}, "layer_noise = 'new'"),
        ([3, 4], "f.gif", {"space": "x"}, "space = 'x'"),
    ],
)
def test_a_film_that_cannot_be_is_refused_in_one_line(
    make_run: MakeRun, tmp_path: Path, seeds: list[int], name: str, settings: dict[str, Any], told: str
) -> None:
    run = make_run()
    with pytest.raises(SettingsError, match=told) as error:
        plan_film(run=run, seeds=seeds, out=tmp_path / name, settings=settings)
    assert "\n" not in str(error.value)


def test_labels_are_checked_and_a_file_that_is_there_stays(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run(labels=("a", "b"))
    with pytest.raises(SettingsError, match=r"--label sick is unknown\. There are: a, b"):
        film_of(run, [1, 2], label="sick")
    (tmp_path / "film.gif").write_text("mine")
    with pytest.raises(FolderError, match=r"film\.gif exists already"):
        film_of(run, [1, 2])
    assert (tmp_path / "film.gif").read_text() == "mine"
    with pytest.raises(SettingsError, match=r"ends in \.png"):
        plan_mix(run=run, rows=[1], columns=[2], out=tmp_path / "s.gif")
    with pytest.raises(SettingsError, match="--columns: give at least 1"):
        plan_mix(run=run, rows=[1], columns=[], out=tmp_path / "s.png")


def test_a_model_that_was_changed_is_refused(make_run: MakeRun) -> None:
    run = make_run()
    weights = run / folders.MODEL / "generator.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    with pytest.raises(FolderError, match="is not the model that"):
        film_of(run, [1, 2])
