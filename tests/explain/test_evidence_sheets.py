"""Evidence sheets: contributions that add up, known shifts and poses, an audit with planted copies."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unalike import folders
from unalike.audit.run import audit_samples
from unalike.audit.settings import AuditSettings
from unalike.cohort.build import prepare_cohort
from unalike.cohort.settings import PrepareSettings
from unalike.cohort.store import ImageWriter, open_images
from unalike.errors import FolderError
from unalike.explain.evidence import (
    cut_into_tiles,
    draw_evidence,
    find_shift,
    lay_like_query,
    map_regions,
    overlay,
    read_pairs,
)
from unalike.explain.settings import ExplainSettings
from unalike.similarity.gallery import POSES


def noise(seed: int, shape: tuple[int, ...] = (2, 21, 30), dtype: type = np.uint8) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max, shape, dtype=dtype)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_parts_add_up_to_the_correlation_of_numpy(dtype: type) -> None:
    first = noise(0, dtype=dtype)
    second = (first // 2 + noise(1, dtype=dtype) // 2).astype(dtype)
    found = map_regions(first, second, tile=8)
    expected = np.corrcoef(first.ravel(), second.ravel())[0, 1]
    assert found.parts.sum() == pytest.approx(found.correlation, abs=1e-12)
    assert found.correlation == pytest.approx(expected, abs=1e-12)
    assert len(found.parts) == 3 * 4


def test_leaving_a_tile_out_is_the_correlation_of_the_other_pixels() -> None:
    first, second = noise(0), noise(0) // 2 + noise(1) // 2
    found = map_regions(first, second, tile=8)
    for tile in range(len(found.parts)):
        rest = np.broadcast_to(found.regions != tile, first.shape)
        assert found.without[tile] == pytest.approx(np.corrcoef(first[rest], second[rest])[0, 1], abs=1e-10)


def test_a_match_of_one_region_is_carried_by_that_region() -> None:
    first, second = noise(0, (1, 32, 32)), noise(1, (1, 32, 32))
    second[:, 8:16, 16:24] = first[:, 8:16, 16:24]
    found = map_regions(first, second, tile=8)
    place = 1 * 4 + 2
    assert found.parts.argmax() == place
    assert np.nanargmin(found.without) == place
    assert found.parts[place] > 0.5 * found.correlation
    assert abs(found.without[place]) < 0.1


def test_constant_images_have_no_correlation_to_divide() -> None:
    found = map_regions(np.full((1, 16, 16), 9, np.uint8), noise(0, (1, 16, 16)), tile=8)
    assert np.isnan(found.correlation)
    assert np.isnan(found.parts).all()
    only = np.zeros((1, 16, 16), np.uint8)
    only[0, :8, :8] = noise(1, (8, 8))
    assert np.isnan(map_regions(only, only, tile=8).without[0])  # nothing but black is left


def test_tiles_cover_images_that_they_do_not_divide() -> None:
    tiles = cut_into_tiles(10, 17, 8)
    assert tiles.max() == 5
    assert np.bincount(tiles.ravel()).tolist() == [64, 64, 8, 16, 16, 2]


@pytest.mark.parametrize("shift", [(0, 0), (1, -2), (-2, 0), (2, 2)])
def test_a_shift_is_found_and_undone(shift: tuple[int, int]) -> None:
    wide = noise(3, (2, 80, 76))
    first = wide[:, 8:72, 8:68]
    second = wide[:, 8 + shift[0] : 72 + shift[0], 8 + shift[1] : 68 + shift[1]]
    assert find_shift(first, second) == shift
    one, other = overlay(first, second, shift)
    assert np.array_equal(one, other)
    assert one.shape == (2, 64 - abs(shift[0]), 60 - abs(shift[1]))


@pytest.mark.parametrize("pose", POSES, ids=lambda pose: pose.name)
def test_matches_are_laid_as_the_query_lies(pose: object) -> None:
    import torch

    query = noise(4, (2, 9, 9))
    match = pose.apply(torch.from_numpy(query)).numpy()  # type: ignore[attr-defined]
    assert np.array_equal(lay_like_query(match, pose.name), query)  # type: ignore[attr-defined]


def test_unknown_poses_are_said() -> None:
    with pytest.raises(FolderError, match="'upside'"):
        lay_like_query(noise(0), "upside")


@pytest.fixture
def audited(make_pictures: Callable[..., Path], tmp_path: Path) -> Callable[[list[str]], Path]:
    """Audit 20 samples of which the first are train images: as they are, mirrored, or strangers."""
    settings = PrepareSettings(subject_pattern=r"(p\d+)_", holdout=1 / 3)
    cohort = prepare_cohort(source=make_pictures(subjects=60), out=tmp_path / "cohort", settings=settings)

    def make(changes: list[str]) -> Path:
        train = cohort.read(cohort.rows("train")[::2][: len(changes)])
        turned = [
            image[..., ::-1] if change == "mirror" else image for image, change in zip(train, changes, strict=True)
        ]
        other = prepare_cohort(
            source=make_pictures("others", subjects=20, images=1, seed=5), out=tmp_path / "o", settings=settings
        )
        images = np.concatenate([np.stack(turned), other.read(np.arange(20))]) if turned else other.read(np.arange(20))
        out = tmp_path / "samples"
        folders.begin_folder(out, kind="samples", settings={})
        writer = ImageWriter(out, channels=cohort.channels, height=24, width=24, dtype=images.dtype)
        for seed, image in enumerate(np.ascontiguousarray(images)):
            writer.append(image, {"subject": f"sample-{seed:06d}", "source": "r", "role": "synthetic", "seed": seed})
        content = writer.close() | {"subjects": None, "subject_seed": 0}
        folders.finish_folder(
            out, kind="samples", settings={}, seed=0, inputs={"cohort": cohort.digest}, content=content
        )
        audit = tmp_path / "audit"
        audit_samples(synthetic=out, against=cohort.path, out=audit, settings=AuditSettings(planted=0, pairs=6))
        return audit

    return make


def test_flagged_copies_get_a_sheet_each_with_their_numbers(
    audited: Callable[[list[str]], Path], tmp_path: Path
) -> None:
    audit = audited(["same", "mirror", "same"])
    out = draw_evidence(audit, tmp_path / "evidence")
    content = folders.read_header(out, kind="explain").content
    sheets = {sheet["query"]: sheet for sheet in content["sheets"]}
    assert content["flagged"] == 2
    assert set(sheets) == {0, 2}
    for sheet in sheets.values():
        assert sheet["flagged"]
        assert sheet["shift"] == [0, 0]
        assert sheet["r"] == pytest.approx(1.0)
        assert sheet["p_value"] <= 0.05
        assert sheet["tiles"] == 9
        assert 1 <= sheet["half_of_r_in_tiles"] <= 5
        with Image.open(out / folders.FIGURES / sheet["file"]) as picture:
            assert picture.width > 1000
    assert content["notes"] == []
    train = open_images(tmp_path / "cohort")
    pairs, compared = read_pairs(audit)
    assert compared == [0]
    # With 20 holdout subjects the mirror image cannot be flagged, but it comes next, and lies as the sample does.
    assert [pair.query for pair in pairs[:3]] in ([0, 2, 1], [2, 0, 1])
    assert pairs[2].pose == "left-right"
    for pair in pairs[:3]:
        assert np.array_equal(pair.synthetic, pair.train)
        assert pair.subject == train.column("subject")[pair.reference]
    assert (out / folders.FIGURES / "index-internal.png").is_file()


def test_where_nothing_is_flagged_the_closest_pairs_are_shown_and_said_to_be_no_evidence(
    audited: Callable[[list[str]], Path], tmp_path: Path
) -> None:
    out = draw_evidence(audited([]), tmp_path / "evidence", settings=ExplainSettings(sheets=2))
    content = folders.read_header(out, kind="explain").content
    assert content["flagged"] == 0
    assert [sheet["flagged"] for sheet in content["sheets"]] == [False, False]
    assert "not evidence of copying" in content["notes"][0]
    # What was changed since, or is no audit, is refused, and nothing is left of the attempt.
    audit, again = tmp_path / "audit", tmp_path / "again"
    with pytest.raises(FolderError, match="kind audit"):
        draw_evidence(tmp_path / "cohort", again)
    (audit / folders.EVIDENCE).write_bytes(b"other")
    with pytest.raises(FolderError, match="was changed since the audit"):
        draw_evidence(audit, again)
    (audit / folders.EVIDENCE).unlink()
    with pytest.raises(FolderError, match="is missing"):
        draw_evidence(audit, again)
    assert not again.exists()
