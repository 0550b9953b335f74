"""`score_fidelity` from folders to a folder: worlds with an obvious answer, references, and what must not change it."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from unalike import folders
from unalike.cohort.store import ImageFolder, ImageWriter, open_images
from unalike.errors import FolderError, InputError, SettingsError
from unalike.fidelity import score
from unalike.fidelity.pretrained import Backbone, Head, PretrainedFeatures
from unalike.fidelity.result import FidelityResult, read_fidelity
from unalike.fidelity.score import score_fidelity
from unalike.fidelity.settings import FidelitySettings
from unalike.records import FloatArray, Pixels
from unalike.report import write_report

CPU = torch.device("cpu")
SIDE = 16
HALF = SIDE // 2
QUICK = FidelitySettings(features="resnet18", weights="unused", resamples=16, neighbours=0, per_class=False)


class Quarters(nn.Module):
    """Brightness of the four quarters, and how much fine detail there is: blur changes the last, content the others."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        grey = images.mean(dim=1, keepdim=True)
        fine = grey - F.avg_pool2d(grey, 3, stride=1, padding=1, count_include_pad=False)
        return torch.cat([F.avg_pool2d(grey, HALF).flatten(1), 5 * fine.flatten(1).std(dim=1, keepdim=True)], dim=1)


# Two classes by the first quarter: dark and bright; and a third that nobody has.
HEAD = Head(np.array([[-0.2, 0, 0, 0, 0], [0.2, 0, 0, 0, 0], [0, 0, 0, 0, 0.0]]), np.array([25.0, -25.0, -9.0]))
KNOWN = PretrainedFeatures(Backbone("quarters", Quarters(), lambda x: x, "none", "abc", HEAD), (0,), "uint8", 255, CPU)


@dataclass(eq=False)
class Table:
    """Features that are given: the first two pixels of an image say which row of a table it has."""

    rows: FloatArray
    name: str = "a table"
    asked: list[int] = field(default_factory=list)

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.rows.tobytes()).hexdigest()

    def embed(self, images: Pixels) -> FloatArray:
        self.asked.append(len(images))
        found: FloatArray = self.rows[images[:, 0, 0, 0].astype(int) * 256 + images[:, 0, 0, 1]]
        return found


def draw(count: int, seed: int, *, each: int = 1) -> Pixels:
    """Images (count · each, 1, 16, 16) of so many subjects: four quarters of a brightness of one's own, and noise."""
    random = np.random.default_rng(seed)
    quarters = np.repeat(random.normal(128, 25, (count, 2, 2)), each, axis=0)
    quarters += random.normal(0, 3, quarters.shape)
    pixels = np.kron(quarters, np.ones((HALF, HALF))) + random.normal(0, 12, (count * each, SIDE, SIDE))
    return np.clip(np.rint(pixels), 0, 255).astype(np.uint8)[:, None]


def blur(images: Pixels) -> Pixels:
    found = F.avg_pool2d(torch.from_numpy(images.astype(np.float32)), 3, stride=1, padding=1, count_include_pad=False)
    return found.round().numpy().astype(np.uint8)


def number(first: int, count: int) -> Pixels:
    """Images that a `Table` finds in its rows ``first`` and on."""
    images = draw(count, first)
    place = np.arange(first, first + count)
    images[:, 0, 0, 0], images[:, 0, 0, 1] = place // 256, place % 256
    return images


def write_cohort(
    out: Path, train: Pixels, holdout: Pixels, *, each: int = 1, labels: list[str] | None = None
) -> ImageFolder:
    """Train images, then holdout images, ``each`` of a subject."""
    images = np.concatenate([train, holdout])
    records = [
        {
            "subject": f"pseudonym{place // each:04d}",
            "source": f"/clinic/doe-{place}.png",
            "role": "train" if place < len(train) else "holdout",
            "label": labels[place] if labels else "",
        }
        for place in range(len(images))
    ]
    return _write(out, "cohort", images, records, {})


def write_samples(out: Path, images: Pixels, cohort: ImageFolder, *, labels: list[str] | None = None) -> ImageFolder:
    records = [
        {
            "subject": f"sample-{place:04d}",
            "source": "drawn",
            "role": "synthetic",
            "seed": place,
            "label": labels[place] if labels else "",
        }
        for place in range(len(images))
    ]
    return _write(out, "samples", images, records, {"cohort": cohort.digest})


def _write(out: Path, kind: str, images: Pixels, records: list[dict[str, Any]], inputs: dict[str, str]) -> ImageFolder:
    folders.begin_folder(out, kind=kind, settings={})
    writer = ImageWriter(out, channels=("gray",), height=SIDE, width=SIDE, dtype=images.dtype)
    for image, record in zip(images, records, strict=True):
        writer.append(image, record)
    content = writer.close() | {"subjects": None, "subject_seed": 0}
    folders.finish_folder(out, kind=kind, settings={}, seed=0, inputs=inputs, content=content)
    return open_images(out, kind=kind)


@pytest.fixture(autouse=True)
def known_features(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(score, "open_features", lambda *_, **__: KNOWN)


@pytest.fixture
def measure(tmp_path: Path) -> Callable[..., FidelityResult]:
    """Score samples against one cohort of 60 train and 60 holdout subjects (others by keyword)."""

    def run(
        samples: Pixels,
        name: str = "a",
        *,
        train: Pixels | None = None,
        holdout: Pixels | None = None,
        each: int = 1,
        settings: FidelitySettings = QUICK,
        seed: int = 0,
    ) -> FidelityResult:
        place = tmp_path / name
        place.mkdir()
        cohort = write_cohort(
            place / "cohort", draw(60, 1) if train is None else train, draw(60, 2) if holdout is None else holdout,
            each=each,
        )  # fmt: skip
        write_samples(place / "samples", samples, cohort)
        return score_fidelity(
            synthetic=place / "samples", against=place / "cohort", out=place / "out", settings=settings, seed=seed
        )

    return run


def value(found: FidelityResult, measure: str, compared: str = "synthetic-train", label: str = "") -> float:
    estimate = found.find(measure, compared, label)
    assert estimate is not None, (measure, compared, label)
    return estimate.value


# Worlds with an obvious answer


def test_samples_that_are_further_patients_cannot_be_told_from_the_holdout(
    measure: Callable[..., FidelityResult],
) -> None:
    found = measure(draw(60, 3))
    for pair in ("synthetic-train", "holdout-train", "synthetic-holdout"):
        estimate = found.find("frechet", pair)
        assert estimate is not None
        assert estimate.low == 0
        assert estimate.n == 60
    for name in ("precision", "recall", "coverage"):
        yardstick = found.find(name, "holdout-train")
        assert yardstick is not None
        assert yardstick.low <= value(found, name) <= yardstick.high, name
        assert yardstick.value > 0.5
    kernel = found.find("kernel", "synthetic-train")
    assert kernel is not None
    assert kernel.low <= 0 <= kernel.high


def test_samples_that_are_train_images_are_closer_than_patients_can_be(measure: Callable[..., FidelityResult]) -> None:
    found = measure(draw(60, 1), settings=FidelitySettings(**_settings(QUICK, neighbours=20)))
    assert value(found, "frechet_plain") == pytest.approx(0, abs=1e-9)
    assert value(found, "frechet_plain", "holdout-train") > 10
    assert value(found, "frechet_plain", "synthetic-holdout") == pytest.approx(
        value(found, "frechet_plain", "holdout-train"), rel=1e-9
    )
    assert [value(found, name) for name in ("precision", "recall", "coverage")] == [1, 1, 1]
    near = "highest SSIM with a train image"
    assert value(found, near, "synthetic") == pytest.approx(1)
    assert value(found, near, "holdout") < 0.9


def test_half_of_the_samples_blurred_costs_precision_and_one_image_again_and_again_costs_recall(
    measure: Callable[..., FidelityResult],
) -> None:
    samples = draw(60, 3)
    whole = measure(samples, "whole")
    blurred = measure(np.concatenate([samples[:30], blur(samples[30:])]), "blurred")
    middle = KNOWN.embed(draw(60, 1))
    typical = draw(60, 1)[[int(np.linalg.norm(middle - middle.mean(axis=0), axis=1).argmin())]]
    repeated = measure(np.repeat(typical, 60, axis=0), "repeated")
    assert value(blurred, "precision") == pytest.approx(value(whole, "precision") / 2, abs=0.08)
    assert value(blurred, "recall") > value(whole, "recall") - 0.15
    assert value(repeated, "precision") == 1
    assert value(repeated, "recall") < 0.05
    assert value(repeated, "coverage") < value(whole, "coverage") / 2
    for worse in (blurred, repeated):
        estimate, yardstick = worse.find("frechet", "synthetic-train"), worse.find("frechet", "holdout-train")
        assert estimate is not None
        assert yardstick is not None
        assert estimate.low > yardstick.high


# References


def test_the_plain_distance_is_that_of_the_closed_form_of_normal_sets(
    measure: Callable[..., FidelityResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    mean, deviation = np.array([1.0, -2.0, 0.5]), np.array([0.5, 3.0, 2.0])
    points = np.random.default_rng(0).standard_normal((3, 40, 3))
    points -= points.mean(axis=1, keepdims=True)
    exact = np.sqrt(39) * np.linalg.qr(points)[0]  # mean 0, covariance 1 to the last digits
    table = Table(np.concatenate([exact[0], exact[1], exact[2] * deviation + mean]))
    monkeypatch.setattr(score, "open_features", lambda *_, **__: table)
    found = measure(number(80, 40), train=number(0, 40), holdout=number(40, 40))
    expected = float((mean**2).sum() + ((1 - deviation) ** 2).sum())
    assert value(found, "frechet_plain") == pytest.approx(expected, rel=1e-9)
    assert value(found, "frechet_plain", "synthetic-holdout") == pytest.approx(expected, rel=1e-9)
    assert value(found, "frechet_plain", "holdout-train") == pytest.approx(0, abs=1e-9)
    assert found.features == "a table"


def test_the_plain_distance_is_that_of_torchmetrics(measure: Callable[..., FidelityResult]) -> None:
    from torchmetrics.image.fid import _compute_fid

    samples = blur(draw(60, 3))
    found = measure(samples)
    sets = [torch.from_numpy(KNOWN.embed(images)) for images in (samples, draw(60, 1))]
    moments = [each for one in sets for each in (one.mean(dim=0), torch.cov(one.T))]
    assert value(found, "frechet_plain") == pytest.approx(float(_compute_fid(*moments)), rel=1e-6)


def test_the_kernel_distance_is_the_direct_double_sum(measure: Callable[..., FidelityResult]) -> None:
    samples = draw(60, 3)
    samples[:, :, :HALF] //= 2
    found = measure(samples)
    x, y = KNOWN.embed(samples), KNOWN.embed(draw(60, 1))

    def kernel(a: FloatArray, b: FloatArray) -> FloatArray:
        return np.asarray((a @ b.T / a.shape[1] + 1) ** 3)

    within = [(kernel(z, z).sum() - np.trace(kernel(z, z))) / (60 * 59) for z in (x, y)]
    assert value(found, "kernel") == pytest.approx(sum(within) - 2 * kernel(x, y).mean(), rel=1e-9)


def test_the_inception_score_is_of_the_samples_themselves(measure: Callable[..., FidelityResult]) -> None:
    samples, holdout = draw(60, 3), draw(60, 2)
    samples[:, :, :HALF, :HALF] = 40  # all of them of one class
    holdout[:30, :, :HALF, :HALF], holdout[30:, :, :HALF, :HALF] = 40, 210
    found = measure(samples, holdout=holdout)
    assert value(found, "inception score", "synthetic") == pytest.approx(1, abs=1e-3)
    assert value(found, "inception score", "holdout") == pytest.approx(2, abs=1e-2)
    chances = KNOWN.probabilities(draw(60, 1))
    divergence = (chances * np.log(chances / chances.mean(axis=0))).sum(axis=1)
    assert value(found, "inception score", "train") == pytest.approx(float(np.exp(divergence.mean())), rel=1e-9)
    assert found.find("inception score", "synthetic-train") is None


def test_features_without_classes_have_no_inception_score_and_say_so(
    measure: Callable[..., FidelityResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    table = Table(np.random.default_rng(0).standard_normal((60, 3)))
    monkeypatch.setattr(score, "open_features", lambda *_, **__: table)
    found = measure(number(40, 20), train=number(0, 20), holdout=number(20, 20))
    assert not [each for each in found.scores if each.measure == "inception score"]
    assert any("--features inception" in note for note in found.notes)


# Properties


def test_the_name_of_the_features_is_in_the_result_its_header_and_every_page(
    measure: Callable[..., FidelityResult],
) -> None:
    found = measure(draw(20, 3), train=draw(20, 1), holdout=draw(20, 2))
    assert found.features == KNOWN.name
    header = folders.read_header(found.path, kind="fidelity")
    assert header.content["features_digest"] == KNOWN.digest
    assert header.content["dimension"] == 5
    assert KNOWN.name in write_report(found.path).read_text()
    assert KNOWN.name in (found.path / "fidelity.md").read_text()
    assert read_fidelity(found.path) == found


def test_subjects_are_counted_not_images(measure: Callable[..., FidelityResult]) -> None:
    found = measure(draw(30, 3), train=draw(15, 1, each=2), holdout=draw(12, 2, each=2), each=2)
    assert found.counts["train"] == {"images": 30, "subjects": 15}
    assert found.counts["synthetic"] == {"images": 30, "subjects": 30}
    expected = {"synthetic-train": 15, "holdout-train": 12, "synthetic-holdout": 12}
    for pair, count in expected.items():
        estimate = found.find("frechet", pair)
        assert estimate is not None
        assert estimate.n == count
    assert {each.measure for each in found.scores} >= {"recall of 12", "coverage of 12"}


def test_each_class_is_measured_by_itself_where_it_has_enough_subjects(tmp_path: Path) -> None:
    train, holdout, samples = draw(44, 1), draw(24, 2), draw(40, 3)
    named = ["a", "b"] * 20 + ["rare", "alone"] * 2 + ["a", "b"] * 12
    cohort = write_cohort(tmp_path / "cohort", train, holdout, labels=named)
    write_samples(tmp_path / "samples", samples, cohort, labels=["a", "b"] * 18 + ["rare"] * 4)
    settings = FidelitySettings(**_settings(QUICK, per_class=True))
    found = score_fidelity(
        synthetic=tmp_path / "samples", against=tmp_path / "cohort", out=tmp_path / "out", settings=settings
    )
    assert {each.label for each in found.scores} == {"", "a", "b"}
    first, second = KNOWN.embed(samples[:36:2]), KNOWN.embed(train[:40:2])
    expected = score.frechet_distance(first, second)
    assert value(found, "frechet_plain", label="a") == pytest.approx(expected, rel=1e-9)
    assert any(note.startswith("rare:") for note in found.notes)
    assert any("No samples of alone" in note for note in found.notes)


def test_no_holdout_is_measured_without_a_yardstick_and_said(tmp_path: Path) -> None:
    cohort = write_cohort(tmp_path / "cohort", draw(20, 1), draw(0, 2))
    write_samples(tmp_path / "samples", draw(20, 3), cohort)
    found = score_fidelity(
        synthetic=tmp_path / "samples", against=tmp_path / "cohort", out=tmp_path / "out", settings=QUICK
    )
    assert {each.compared for each in found.scores} <= {"synthetic-train", "synthetic", "train"}
    assert any("no holdout" in note for note in found.notes)
    assert "nothing to hold that against" in write_report(found.path).read_text()


def test_the_same_seed_gives_the_same_numbers_and_torchs_own_stream_is_left_alone(
    measure: Callable[..., FidelityResult],
) -> None:
    sets = {"train": draw(20, 1), "holdout": draw(20, 2)}
    before = torch.get_rng_state()
    first, again, other = (
        measure(draw(20, 3), name, seed=seed, **sets) for name, seed in (("a", 0), ("b", 0), ("c", 1))
    )
    assert _plain(first) == _plain(again)
    assert _plain(first) != _plain(other)
    assert value(first, "frechet_plain") == value(other, "frechet_plain")
    assert torch.equal(torch.get_rng_state(), before)


def test_an_interrupted_measurement_goes_on_and_ends_with_the_same_numbers(
    measure: Callable[..., FidelityResult], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    sets = {"train": draw(20, 1), "holdout": draw(20, 2)}
    whole = measure(draw(20, 3), "whole", **sets)
    calls: list[str] = []
    distance, manifold = score.frechet_estimate, score.measure_manifold

    def count(*rest: Any, **named: Any) -> Any:
        calls.append("frechet")
        return distance(*rest, **named)

    def stop(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(score, "frechet_estimate", count)
    monkeypatch.setattr(score, "measure_manifold", stop)
    with pytest.raises(KeyboardInterrupt):
        measure(draw(20, 3), "cut", **sets)
    place = tmp_path / "cut"
    with pytest.raises(FolderError, match="unfinished"):
        read_fidelity(place / "out")
    assert calls == ["frechet"]
    folders._unlock(place / "out")  # as the end of the process would
    monkeypatch.setattr(score, "measure_manifold", manifold)
    given = {"synthetic": place / "samples", "against": place / "cohort", "out": place / "out"}
    with pytest.raises(FolderError, match="other settings"):
        score_fidelity(**given, settings=QUICK, seed=1)
    folders._unlock(place / "out")
    resumed = score_fidelity(**given, settings=QUICK)
    assert calls == ["frechet"] * 3  # of three pairs, one was finished before
    assert _plain(resumed) == _plain(whole)
    assert sorted(path.name for path in (place / "out").iterdir()) == ["fidelity.json"]


def test_a_damaged_part_is_measured_again(
    measure: Callable[..., FidelityResult], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    sets = {"train": draw(20, 1), "holdout": draw(20, 2)}
    whole = measure(draw(20, 3), "whole", **sets)
    cut = tmp_path / "cut"
    last = score.inception_score

    def stop(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(score, "inception_score", stop)
    with pytest.raises(KeyboardInterrupt):
        measure(draw(20, 3), "cut", **sets)
    monkeypatch.setattr(score, "inception_score", last)
    folders._unlock(cut / "out")
    # The first part is cut short, the second is another measure's.
    parts = sorted((cut / "out" / score.PARTS).iterdir())
    parts[0].write_text(parts[0].read_text()[:40])
    parts[1].write_bytes(parts[2].read_bytes())
    resumed = score_fidelity(synthetic=cut / "samples", against=cut / "cohort", out=cut / "out", settings=QUICK)
    assert _plain(resumed) == _plain(whole)


def test_features_are_kept_by_content_and_never_stale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    table = Table(random.standard_normal((256 * 256, 3)))
    monkeypatch.setattr(score, "open_features", lambda *_, **__: table)
    cohort = write_cohort(tmp_path / "cohort", number(0, 20), number(20, 20))
    samples = number(40, 20)
    write_samples(tmp_path / "first", samples, cohort)

    def run(name: str, out: str) -> float:
        found = score_fidelity(
            synthetic=tmp_path / name, against=tmp_path / "cohort", out=tmp_path / out, settings=QUICK
        )
        return value(found, "frechet_plain")

    before = run("first", "out-1")
    assert table.asked == [20, 20, 20]
    assert run("first", "out-2") == before
    assert table.asked == [20, 20, 20]  # nothing was asked again
    samples[7, 0, 0, 1] += 100  # one pixel of one sample: another row of the table
    write_samples(tmp_path / "second", samples, cohort)
    after = run("second", "out-3")
    assert table.asked == [20, 20, 20, 20]  # the changed set alone
    expected = score.frechet_distance(table.embed(samples), table.embed(number(0, 20)))
    assert after == pytest.approx(expected, rel=1e-12)
    assert after != before
    table.rows = table.rows + 1e-3 * random.standard_normal(table.rows.shape)  # other weights: nothing kept fits
    del table.asked[:]
    run("second", "out-4")
    assert table.asked == [20, 20, 20]


def test_the_folder_names_and_shows_nobody(measure: Callable[..., FidelityResult], tmp_path: Path) -> None:
    settings = FidelitySettings(resamples=16, neighbours=20, per_class=False)  # no weights: no path is a setting
    found = measure(draw(30, 3), train=draw(30, 1), holdout=draw(30, 2), settings=settings)
    page = write_report(found.path)
    for path in sorted(found.path.rglob("*")):
        if path.is_file():
            content = path.read_bytes()
            for told in (b"pseudonym", b"sample-00", b"doe-", b"clinic", str(tmp_path).encode()):
                assert told not in content, (path.name, told)
    html = page.read_text()
    assert "data:image" not in html
    assert "INTERNAL" not in html
    figures = {path.name for path in (found.path / folders.FIGURES).iterdir()}
    assert figures == {"distances.png", "distances.svg"}
    assert {path.suffix for path in found.path.iterdir() if path.is_file()} == {".json", ".md", ".tex", ".csv", ".html"}


def test_every_number_in_the_header_is_finite_or_null_and_between_its_ends(
    measure: Callable[..., FidelityResult],
) -> None:
    found = measure(np.repeat(draw(1, 3), 12, axis=0), train=draw(12, 1), holdout=draw(3, 2))
    text = (found.path / "fidelity.json").read_text()
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} in the header"))
    assert not re.search(r"\bnan\b", text, re.IGNORECASE)
    for each in found.scores:
        if not math.isnan(each.found.low):
            assert each.found.low <= each.found.value <= each.found.high, each


# Bad input


def test_what_cannot_be_measured_is_said_before_anything_is_written(tmp_path: Path) -> None:
    cohort = write_cohort(tmp_path / "cohort", draw(6, 1), draw(6, 2))
    write_samples(tmp_path / "one", draw(1, 3), cohort)
    write_samples(tmp_path / "some", draw(6, 3), cohort)
    out = tmp_path / "out"
    with pytest.raises(InputError, match=r"1 synthetic images\. Fidelity needs at least 2"):
        score_fidelity(synthetic=tmp_path / "one", against=tmp_path / "cohort", out=out, settings=QUICK)
    with pytest.raises(SettingsError, match="--seed -1"):
        score_fidelity(synthetic=tmp_path / "some", against=tmp_path / "cohort", out=out, settings=QUICK, seed=-1)
    with pytest.raises(SettingsError, match="--against"):
        score_fidelity(synthetic=tmp_path / "some", out=out, settings=QUICK)
    with pytest.raises(SettingsError, match="--resamples 3"):
        FidelitySettings(resamples=3).check()
    assert not out.exists()


def _settings(settings: FidelitySettings, **changes: Any) -> dict[str, Any]:
    from dataclasses import asdict

    return asdict(settings) | changes


def _plain(found: FidelityResult) -> list[Any]:
    """What can be compared: NaN is never equal to itself."""
    return [(each.label, each.measure, each.compared, str(each.found), each.found.n) for each in found.scores]
