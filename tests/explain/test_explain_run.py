"""`explain_predictions` in a world whose answer is known: models that look at the square, or do not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from safetensors.numpy import load_file
from tests.explain.conftest import build_network, draw_squares

from unalike import folders
from unalike.cohort.store import ImageFolder, ImageWriter, open_images
from unalike.errors import FolderError, InputError, SettingsError
from unalike.explain import run
from unalike.explain.run import explain_predictions
from unalike.explain.settings import ExplainSettings
from unalike.utility.classifier import Classifier
from unalike.utility.models import save_classifier
from unalike.vision import networks

QUICK = ExplainSettings(each=1, segments=30, samples=60, repetitions=2, top=3)


def write_images(out: Path, kind: str, seed: int, *, mask: bool, inputs: dict[str, str] | None = None) -> ImageFolder:
    """24 images, 2 a subject; of a cohort the first third is the train role. The mask is where the square is."""
    images, truth, squares = draw_squares(24, seed=seed)
    if mask:
        images = np.concatenate([images, squares[:, None].astype(np.uint8)], axis=1)
    folders.begin_folder(out, kind=kind, settings={})
    channels = ("gray", "mask") if mask else ("gray",)
    writer = ImageWriter(out, channels=channels, height=32, width=32, dtype=images.dtype)
    for place, image in enumerate(images):
        label = ("plain", "square")[truth[place]]
        role = "synthetic" if kind == "samples" else "train" if place < 8 else "holdout"
        subject = f"sample-{place:06d}" if kind == "samples" else f"person-{place // 2:02d}"
        writer.append(image, {"subject": subject, "source": "made", "role": role, "label": label, "seed": place})
    content = writer.close() | {"subjects": None, "subject_seed": 0}
    folders.finish_folder(out, kind=kind, settings={}, seed=0, inputs=inputs or {}, content=content)
    return open_images(out, kind=kind)


@pytest.fixture(autouse=True)
def _tiny_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(networks, "build_network", lambda name, **_: build_network(0))


@pytest.fixture
def world(tmp_path: Path, trained: Classifier, untrained: Callable[[int], Classifier]) -> dict[str, Path]:
    """A cohort with masks, samples, and a utility folder: trained on synthetic by the square, on real not at all."""
    cohort = write_images(tmp_path / "cohort", "cohort", 50, mask=True)
    write_images(tmp_path / "samples", "samples", 60, mask=True, inputs={"cohort": cohort.digest})
    utility = tmp_path / "utility"
    folders.begin_folder(utility, kind="utility", settings={})
    save_classifier(trained, utility / "models" / "tiny-synthetic")
    save_classifier(untrained(1), utility / "models" / "tiny-real")
    folders.finish_folder(
        utility, kind="utility", settings={}, seed=0, inputs={"cohort": cohort.digest}, content={"task": "classify"}
    )
    return {"utility": utility, "synthetic": tmp_path / "samples", "against": tmp_path / "cohort"}


def test_the_model_that_learnt_the_square_is_told_from_the_one_that_did_not(
    world: dict[str, Path], tmp_path: Path
) -> None:
    out = explain_predictions(**world, out=tmp_path / "explained", settings=QUICK)
    content = folders.read_header(out, kind="explain").content
    assert content["internal"]
    assert content["notes"] == []
    for role in ("holdout", "synthetic"):
        square = content["by_class"][role]["synthetic"]["square"]
        assert square["lime_inside"]["value"] > 0.5
        assert square["lime_inside_gain"]["value"] == pytest.approx(square["lime_inside"]["value"] - 64 / 1024)
        assert square["lesion_area"]["value"] == pytest.approx(64 / 1024)
        assert square["deletion_gain"]["value"] > 0
        assert content["by_class"][role]["synthetic"]["plain"]["lime_iou"]["value"] is None  # there is no square
        learnt, ignorant = (
            content["numbers"][role][model]["largest_weight"]["value"] for model in ("synthetic", "real")
        )
        assert ignorant < learnt
        assert -1 <= content["agreement"][role]["agreement_rank"]["value"] <= 1
        if role == "synthetic":  # each a subject of its own
            assert content["agreement"][role]["agreement_rank"]["n"] == sum(content["images"][role].values())


def test_tables_maps_and_figures_fit_each_other(world: dict[str, Path], tmp_path: Path) -> None:
    out = explain_predictions(**world, out=tmp_path / "explained", settings=QUICK)
    content = folders.read_header(out, kind="explain").content
    rows = pq.read_table(out / run.EXPLAINED).to_pylist()
    maps = load_file(out / run.MAPS)
    count = len(rows) // 2
    assert [row["image"] for row in rows] == np.repeat(np.arange(count), 2).tolist()
    assert maps["segments"].shape == (count, 32, 32)
    assert maps["lime"].shape == maps["gradcam"].shape == (count, 2, 32, 32)
    cohort = open_images(world["against"])
    for place, row in enumerate(rows):
        heat, segments = maps["lime"][row["image"], place % 2], maps["segments"][row["image"]]
        assert np.array_equal(heat, np.asarray(row["weights"], np.float32)[segments])
        if row["role"] == "holdout":
            assert cohort.column("role")[row["row"]] == "holdout"
            assert cohort.column("subject")[row["row"]] == row["subject"]
    figures = {path.name for path in (out / folders.FIGURES).iterdir()}
    assert figures == {f"{place:04d}{end}.png" for place in range(count) for end in ("", "-internal")}
    with Image.open(out / folders.FIGURES / "0000-internal.png") as picture:
        assert picture.width > 5 * 190
    assert content["tables"] == {name: folders.digest_file(out / name) for name in (run.MAPS, run.EXPLAINED)}
    assert {path.name for path in out.iterdir()} == {run.MAPS, run.EXPLAINED, folders.FIGURES, "explain.json"}


def test_the_picture_to_be_shown_does_not_depend_on_the_patients_pixels(tmp_path: Path) -> None:
    from unalike.explain import pictures

    heat = np.zeros((32, 32))
    heat[8:16, 8:16] = 1.0
    segments_show = pictures.colour_heat(heat)
    smooth = pictures.colour_heat(pictures.smooth_heat(heat))
    assert np.abs(np.diff(segments_show.astype(int), axis=0)).max() == 255  # an outline
    assert np.abs(np.diff(smooth.astype(int), axis=0)).max() < 100  # none


def test_an_interrupted_run_goes_on_and_ends_alike(
    world: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = world | {"synthetic": None}
    whole = explain_predictions(**world, out=tmp_path / "whole", settings=QUICK)
    real, explained = run._explain_image, []

    def explain(task: run._Task, job: run._Job) -> None:
        explained.append(task.number)
        if explained == [0, 1, 2]:
            raise KeyboardInterrupt
        real(task, job)

    monkeypatch.setattr(run, "_explain_image", explain)
    with pytest.raises(KeyboardInterrupt):
        explain_predictions(**world, out=tmp_path / "broken", settings=QUICK)
    with pytest.raises(FolderError, match="unfinished"):
        folders.read_header(tmp_path / "broken", kind="explain")
    folders._unlock(tmp_path / "broken")  # as the end of the process would
    broken = explain_predictions(**world, out=tmp_path / "broken", settings=QUICK)
    assert explained[3] == 2
    first, second = (folders.read_header(out, kind="explain").content for out in (whole, broken))
    assert first == second


def test_without_samples_and_without_masks_the_rest_is_told(tmp_path: Path, trained: Classifier) -> None:
    cohort = write_images(tmp_path / "cohort", "cohort", 50, mask=False)
    utility = tmp_path / "utility"
    folders.begin_folder(utility, kind="utility", settings={})
    save_classifier(trained, utility / "models" / "tiny-synthetic")
    folders.finish_folder(utility, kind="utility", settings={}, seed=0, inputs={"cohort": "other"}, content={})
    out = explain_predictions(
        utility=utility, synthetic=None, against=cohort.path, out=tmp_path / "explained", settings=QUICK
    )
    content = folders.read_header(out, kind="explain").content
    assert list(content["numbers"]) == ["holdout"]
    assert content["numbers"]["holdout"]["synthetic"]["lime_iou"]["value"] is None
    assert content["agreement"]["holdout"]["agreement_rank"]["value"] is None
    said = " ".join(content["notes"])
    assert "not measured on this cohort" in said
    assert "no mask channel" in said
    assert "trained on real images" in said


def test_what_cannot_be_explained_is_said_before_anything_is_written(world: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "explained"
    with pytest.raises(SettingsError, match="--network vgg16"):
        explain_predictions(**world, out=out, settings=ExplainSettings(network="vgg16"))
    with pytest.raises(SettingsError, match="--samples 3"):
        explain_predictions(**world, out=out, settings=ExplainSettings(samples=3))
    with pytest.raises(SettingsError, match="--seed"):
        explain_predictions(**world, out=out, seed=-1)
    with pytest.raises(FolderError, match="utility"):
        explain_predictions(**world | {"utility": world["against"]}, out=out)
    empty = tmp_path / "empty"
    folders.begin_folder(empty, kind="utility", settings={})
    folders.finish_folder(empty, kind="utility", settings={}, seed=0, inputs={}, content={})
    with pytest.raises(InputError, match="keeps no classifier"):
        explain_predictions(**world | {"utility": empty}, out=out)
    assert not out.exists()


def test_unknown_classes_are_said(world: dict[str, Path], tmp_path: Path, trained: Classifier) -> None:
    from dataclasses import replace

    strange = tmp_path / "strange"
    folders.begin_folder(strange, kind="utility", settings={})
    save_classifier(replace(trained, classes=("cat", "dog")), strange / "models" / "tiny-synthetic")
    folders.finish_folder(strange, kind="utility", settings={}, seed=0, inputs={}, content={})
    with pytest.raises(InputError, match="cat, dog"):
        explain_predictions(**world | {"utility": strange}, out=tmp_path / "explained")
