"""Planted duplicates are found and dealt with as asked; what is said of them is true."""

from __future__ import annotations

import json
from collections import Counter
from itertools import combinations
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tests.conftest import draw_person

from unalike import folders
from unalike.cli import run
from unalike.cohort import duplicates as duplicate_search
from unalike.cohort import leaks
from unalike.cohort.build import prepare_cohort, pseudonym
from unalike.cohort.compare import find_leaks
from unalike.cohort.duplicates import Duplicates
from unalike.cohort.leaks import merge_subjects, rows_to_drop
from unalike.cohort.settings import PrepareSettings
from unalike.cohort.split import draw_holdout, draw_limited
from unalike.cohort.store import ImageFolder, open_images, verify_images
from unalike.errors import InputError

KEY = b"a key of the tests"
PATTERN = r"(p\d+)_"
SIZE = 24


def people(count: int, *, seed: int = 0, size: int = SIZE) -> list[np.ndarray]:
    """One picture each of so many people who are not alike."""
    random = np.random.default_rng(seed)
    return [draw_person(random, size=size)[0] for _ in range(count)]


def nearly(image: np.ndarray, *, seed: int = 0) -> np.ndarray:
    """The same picture with noise: r of about 0.98 to 0.99."""
    noise = np.random.default_rng(seed).normal(0, 0.15 * image.std(), image.shape)
    return np.clip(np.rint(image + noise), 0, 255).astype(np.uint8)


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.corrcoef(a.ravel().astype(float), b.ravel().astype(float))[0, 1])


def write(folder: Path, images: dict[str, np.ndarray]) -> Path:
    for name, image in images.items():
        path = folder / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    return folder


def clinic() -> dict[str, np.ndarray]:
    """A published split of 20 pictures with five planted pairs, and p04 on both sides with two pictures of their own.

    Sorted, the pictures of test come first.
    """
    one = people(15)
    images = {f"train/NORMAL/p{number:02d}_0": one[number] for number in range(6)}
    images |= {f"train/SICK/p{number:02d}_0": one[number] for number in range(6, 10)}
    images |= {f"test/NORMAL/p{number}_0": one[number] for number in (10, 11)}
    images |= {f"test/SICK/p{number}_0": one[number] for number in (12, 13)}
    return images | {
        "test/NORMAL/p04_1": one[14],
        "test/NORMAL/p14_0": one[0],  # exact, other role
        "test/SICK/p15_0": nearly(one[6]),  # near, other role
        "test/NORMAL/p16_0": one[1][:, ::-1],  # mirrored, other role
        "train/SICK/p17_0": one[2][::-1],  # mirrored, other class
        "train/NORMAL/p18_0": one[3][::-1, ::-1],  # mirrored
    }


PLANTED = {
    ("p14", "p00"): ("exact", "none"),
    ("p15", "p06"): ("near", "none"),
    ("p16", "p01"): ("mirrored", "left-right"),
    ("p02", "p17"): ("mirrored", "up-down"),
    ("p03", "p18"): ("mirrored", "both"),
}
ACROSS_ROLES = [("p14", "p00"), ("p15", "p06"), ("p16", "p01")]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write(tmp_path / "clinic", clinic())


def prepare(source: Path, out: Path, *, seed: int = 0, **options: Any) -> ImageFolder:
    chosen = PrepareSettings(**({"subject_pattern": PATTERN, "holdout": 0.3} | options))
    return prepare_cohort(source=source, out=out, settings=chosen, seed=seed, key=KEY, workers=1)


def check_whole(cohort: ImageFolder, *, names: list[str]) -> None:
    """Images, records and private table agree, and nothing outside it tells a name of the source."""
    opened = open_images(cohort.path)
    assert sum(len(block) for block in verify_images(opened)) == len(opened) == len(names)
    private = pq.read_table(cohort.path / folders.PRIVATE / folders.SOURCES).to_pydict()
    whose = dict(zip(private["source"], private["subject"], strict=True))
    path_of = dict(zip(private["source"], private["path"], strict=True))
    records = zip(opened.column("source"), opened.column("subject"), strict=True)
    assert all(whose[source] == subject for source, subject in records)
    assert [path_of[source] for source in opened.column("source")] == [f"{name}.png" for name in names]
    assert set(private["subject"]) == set(opened.column("subject"))
    for path in cohort.path.rglob("*"):
        if path.is_file() and folders.PRIVATE not in path.parts:
            text = path.read_bytes()
            tables = str(pq.read_table(path).to_pydict()).encode() if path.suffix == ".parquet" else b""
            assert b"_0" + b".png" not in text + tables, path
            assert not any(f"p{number:02d}_".encode() in text + tables for number in range(19)), path


def known(subject: str) -> str:
    return pseudonym(KEY, "subject", subject)


def role_of(cohort: ImageFolder) -> dict[str, str]:
    return dict(zip(cohort.column("subject").tolist(), cohort.column("role").tolist(), strict=True))


def test_noise_leaves_the_correlation_meant_here() -> None:
    one = people(15)
    assert 0.975 < correlation(one[6], nearly(one[6])) < 0.995
    images = list(clinic().values())
    alike = [
        (a, b)
        for a, b in combinations(range(len(images)), 2)
        if max(correlation(images[a], flip) for flip in flips(images[b])) >= 0.95
    ]
    assert len(alike) == len(PLANTED)


def flips(image: np.ndarray) -> list[np.ndarray]:
    return [image, image[..., ::-1], image[..., ::-1, :], image[..., ::-1, ::-1]]


def test_a_published_split_is_reported(source: Path, tmp_path: Path) -> None:
    cohort = prepare(source, tmp_path / "c", split="keep", on_leak="report")
    names = sorted(clinic())
    check_whole(cohort, names=names)
    assert cohort.column("role").tolist() == ["holdout"] * 8 + ["train"] * 12
    assert cohort.column("subject").tolist() == [known(name.split("/")[2][:3]) for name in names]
    assert cohort.header.content["leaks"] == {
        "shared_subjects": 1,
        "holdout_subjects": 8,
        "shared_holdout_images": 1,
        "holdout_images": 8,
        "redundant_images": 1,
        "near_pairs": 1,
        "mirrored_pairs": 3,
        "pairs_across_roles": 3,
        "exact_pairs_across_roles": 1,
        "pairs_across_classes": 1,
        "pairs_across_subjects": 5,
        "pairs_not_listed": 0,
        "merged_subjects": 0,
        "largest_merge": 0,
        "dropped_images": 0,
    }
    shared, across, classes, exact, near = cohort.header.content["notes"][:5]
    assert shared.startswith("LEAK: 1 of the 8 holdout patients also occur in train (1 of 8 holdout images)")
    assert across.startswith("LEAK: 3 pairs of duplicates stand in train and holdout, 1 of them pixel-identical")
    assert classes.startswith("1 pairs of duplicates bear different classes")
    assert exact.startswith("1 images are pixel-identical copies")
    assert near.startswith("1 pairs of near duplicates")
    assert "3 mirrored ones" in near
    assert "duplicates.png" in near


def test_pairs_are_listed_row_by_row(source: Path, tmp_path: Path) -> None:
    cohort = prepare(source, tmp_path / "c", split="keep", on_leak="report")
    names = sorted(clinic())
    images = [clinic()[name] for name in names]
    subjects = [name.split("/")[2][:3] for name in names]
    found = {}
    for pair in pq.read_table(cohort.path / folders.DUPLICATES).to_pylist():
        first, second = pair["first"], pair["second"]
        found[subjects[first], subjects[second]] = pair["kind"], pair["mirror"]
        best = max(correlation(images[first], flip) for flip in flips(images[second]))
        assert pair["similarity"] == pytest.approx(best, abs=1e-12)
        assert first < second
        assert not pair["same_subject"]
        assert pair["same_role"] == (names[first].split("/")[0] == names[second].split("/")[0])
        assert pair["same_label"] == (names[first].split("/")[1] == names[second].split("/")[1])
    assert found == PLANTED
    with Image.open(cohort.path / folders.DUPLICATES_SHEET) as sheet:
        assert sheet.format == "PNG"


def test_a_published_split_with_subjects_merged(source: Path, tmp_path: Path) -> None:
    """Roles stay as published; who shares a picture is one subject, named as the first of them."""
    cohort = prepare(source, tmp_path / "c", split="keep", on_leak="merge-subjects")
    names = sorted(clinic())
    check_whole(cohort, names=names)
    assert cohort.column("role").tolist() == ["holdout"] * 8 + ["train"] * 12
    first = {second: one for one, second in PLANTED}
    wanted = [name.split("/")[2][:3] for name in names]
    assert cohort.column("subject").tolist() == [known(first.get(name, name)) for name in wanted]
    counts = cohort.header.content["leaks"]
    assert (counts["merged_subjects"], counts["largest_merge"], counts["pairs_across_roles"]) == (5, 2, 3)
    notes = cohort.header.content["notes"]
    assert notes[1].startswith("LEAK: 3 pairs")
    assert "They count as one patient each" in notes[1]
    assert any(note.startswith("5 subjects were merged into others") for note in notes)


def test_a_published_split_with_duplicates_dropped(source: Path, tmp_path: Path) -> None:
    """The first of each pair stays, of contradictory classes none, and no holdout image of a train subject."""
    cohort = prepare(source, tmp_path / "c", split="keep", on_leak="drop")
    gone = {"train/NORMAL/p00_0", "train/SICK/p06_0", "train/NORMAL/p01_0"}
    gone |= {"train/NORMAL/p02_0", "train/SICK/p17_0", "train/NORMAL/p18_0", "test/NORMAL/p04_1"}
    left = [name for name in sorted(clinic()) if name not in gone]
    check_whole(cohort, names=left)
    np.testing.assert_array_equal(cohort.images[:, 0], [clinic()[name] for name in left])
    assert cohort.column("role").tolist() == ["holdout"] * 7 + ["train"] * 6
    assert cohort.column("label").tolist() == [name.split("/")[1] for name in left]
    assert cohort.header.content["leaks"]["dropped_images"] == 7
    assert pq.read_table(cohort.path / folders.DUPLICATES).num_rows == 0
    assert not (cohort.path / folders.DUPLICATES_SHEET).exists()
    notes = cohort.header.content["notes"]
    assert notes[0].startswith("LEAK: 1 of the 8")
    assert "Their holdout images were dropped" in notes[0]
    assert not any("duplicates.png" in note for note in notes)


@pytest.mark.parametrize("split", ["keep", "redraw"])
def test_leaks_as_an_error_name_a_pair(source: Path, tmp_path: Path, split: str) -> None:
    """One line; what was read stays, so that another --on-leak goes on from there."""
    with pytest.raises(InputError, match=r"such as .*correlation") as caught:
        prepare(source, tmp_path / "c", split=split, on_leak="error")
    assert "\n" not in str(caught.value)
    assert "1 pairs of duplicates bear different classes" in str(caught.value)
    assert ("1 subjects stand in train and holdout" in str(caught.value)) == (split == "keep")
    assert len(prepare(source, tmp_path / "c", split=split, on_leak="drop")) < 20


def test_a_clean_source_passes_every_mode(tmp_path: Path) -> None:
    images = {f"p{number:02d}_0": image for number, image in enumerate(people(10))}
    source = write(tmp_path / "clean", images)
    for mode in ("merge-subjects", "drop", "error", "report"):
        cohort = prepare(source, tmp_path / mode, on_leak=mode)
        check_whole(cohort, names=sorted(images))
        counts = cohort.header.content["leaks"]
        numbers = {name for name, count in counts.items() if count}
        assert numbers == {"holdout_subjects", "holdout_images"}
        assert not any(note.startswith("LEAK") for note in cohort.header.content["notes"])
        assert not (cohort.path / folders.DUPLICATES_SHEET).exists()


def test_no_pair_stands_on_both_sides_after_merging(source: Path, tmp_path: Path) -> None:
    """14 subjects are left of 19, and 0.3 of them make 4, whatever the seed."""
    held = Counter()
    for seed in range(12):
        cohort = prepare(source, tmp_path / f"c{seed}", seed=seed)
        role = role_of(cohort)
        assert Counter(role.values()) == {"train": 10, "holdout": 4}
        held.update(name for name, own in role.items() if own == "holdout")
        pairs = pq.read_table(cohort.path / folders.DUPLICATES).to_pydict()
        assert pairs["same_role"] == [True] * 5
        roles = cohort.column("role")
        assert (roles[pairs["first"]] == roles[pairs["second"]]).all()
        counts = cohort.header.content["leaks"]
        assert (counts["pairs_across_roles"], counts["shared_subjects"], counts["merged_subjects"]) == (0, 0, 5)
        assert not any(note.startswith("LEAK") for note in cohort.header.content["notes"])
    assert len(held) > 10


def test_a_drawn_split_that_is_only_reported_says_what_leaks(source: Path, tmp_path: Path) -> None:
    """A pair of different names may be torn apart by the draw: then the first line says so, else none does."""
    torn = []
    for seed in range(5):
        cohort = prepare(source, tmp_path / f"c{seed}", seed=seed, on_leak="report")
        role = role_of(cohort)
        wanted = sum(role[known(one)] != role[known(other)] for one, other in PLANTED)
        assert cohort.header.content["leaks"]["pairs_across_roles"] == wanted
        first = cohort.header.content["notes"][0]
        assert first.startswith(f"LEAK: {wanted} pairs of duplicates") == (wanted > 0)
        torn.append(wanted)
    assert max(torn) > 0


def test_a_drawn_split_with_duplicates_dropped(source: Path, tmp_path: Path) -> None:
    """Without names of train and test folders the order of the rows is that of the paths: p14 stays, p00 goes."""
    cohort = prepare(source, tmp_path / "c", on_leak="drop")
    gone = {"train/NORMAL/p00_0", "train/SICK/p06_0", "train/NORMAL/p01_0"}
    gone |= {"train/NORMAL/p02_0", "train/SICK/p17_0", "train/NORMAL/p18_0"}
    check_whole(cohort, names=[name for name in sorted(clinic()) if name not in gone])
    assert len(set(cohort.column("digest"))) == len(cohort) == 14


def test_without_near_duplicates_only_exact_ones_count(source: Path, tmp_path: Path) -> None:
    cohort = prepare(source, tmp_path / "c", split="keep", on_leak="report", near_duplicates=0.0)
    pairs = pq.read_table(cohort.path / folders.DUPLICATES).to_pydict()
    assert pairs["kind"] == ["exact"]
    counts = cohort.header.content["leaks"]
    assert (counts["near_pairs"], counts["mirrored_pairs"], counts["pairs_across_roles"]) == (0, 0, 1)


def test_everybody_alike_cannot_be_split(tmp_path: Path) -> None:
    image = people(1)[0]
    source = write(tmp_path / "same", {f"p{number:02d}_0": nearly(image, seed=number) for number in range(5)})
    with pytest.raises(InputError, match="all 5 subjects share pictures") as caught:
        prepare(source, tmp_path / "c")
    assert "\n" not in str(caught.value)


def test_slices_of_one_subject_are_no_near_duplicates(tmp_path: Path) -> None:
    """Neighbours are alike by nature; two equal ones are still counted, and leak nothing."""
    (tmp_path / "v").mkdir()
    for case, field in enumerate(people(4)):
        slices = [nearly(field, seed=index) for index in range(4)]
        slices[3] = slices[2] if case == 0 else slices[3]
        voxels = np.stack(slices, axis=2).astype(np.int16) + 1
        nib.save(nib.Nifti1Image(voxels, np.eye(4)), tmp_path / "v" / f"case{case}.nii.gz")
    options = {"recipe": "nifti", "size": SIZE, "subject_pattern": None, "least_content": 0.0, "holdout": 0.5}
    cohort = prepare(tmp_path / "v", tmp_path / "c", percentiles=(0, 100), **options)
    counts = cohort.header.content["leaks"]
    assert (counts["near_pairs"], counts["mirrored_pairs"], counts["redundant_images"]) == (0, 0, 1)
    assert (counts["pairs_across_subjects"], counts["merged_subjects"]) == (0, 0)
    assert pq.read_table(cohort.path / folders.DUPLICATES).to_pydict()["same_subject"] == [True]


# Pieces against brute force.


def components(count: int, edges: list[tuple[int, int]]) -> list[int]:
    """Lowest member of each one's connected component, by spreading until nothing changes."""
    lowest = list(range(count))
    for _ in range(count):
        for a, b in edges:
            lowest[a] = lowest[b] = min(lowest[a], lowest[b])
    return lowest


def plain(count: int, size: int) -> duplicate_search.Background:
    """No padding and no volumes."""
    return duplicate_search.Background(
        frames=np.tile(np.asarray([0, size, 0, size], dtype=np.int64), (count, 1)),
        sums=np.zeros((count, 1), dtype=np.int64),
        masked=np.zeros(count, dtype=np.bool_),
    )


def alike(a: np.ndarray, b: np.ndarray, at_least: float) -> bool:
    """Over all pixels and, at twice the distance, where either is brighter than 10 of 255."""
    lit = (a > 10) | (b > 10)
    return correlation(a, b) >= at_least - 1e-12 and correlation(a[lit], b[lit]) >= 2 * at_least - 1 - 1e-12


def test_padding_and_empty_space_make_nobody_alike(tmp_path: Path) -> None:
    """Two strangers in a wide black frame of ours correlate highly; what they show does not."""
    random = np.random.default_rng(0)
    for name in "abcdef":
        voxels = np.zeros((24, 24, 3), np.int16)
        voxels[6:18, 6:18] = random.integers(900, 1100, (12, 12, 3))
        nib.save(nib.Nifti1Image(voxels, np.eye(4)), tmp_path / f"{name}.nii.gz")
        Image.fromarray(random.integers(180, 255, (8, 30), dtype=np.uint8)).save(tmp_path / f"{name}.png")
    for recipe, size in (("nifti", 64), ("folder", 30)):
        settings = PrepareSettings(recipe=recipe, size=size, holdout=0.5, percentiles=(0, 100), least_content=0.0)
        cohort = prepare_cohort(source=tmp_path, out=tmp_path / recipe, settings=settings)
        a, b = cohort.read(np.asarray([1, len(cohort) - 1]))
        assert correlation(a, b) > 0.95
        assert cohort.header.content["leaks"]["near_pairs"] == 0


def made_duplicates(count: int, edges: list[tuple[int, int]], *, found: int | None = None) -> Duplicates:
    pairs = sorted({(min(edge), max(edge)) for edge in edges if edge[0] != edge[1]})
    first, second = (np.asarray([pair[side] for pair in pairs], dtype=np.int64) for side in (0, 1))
    return Duplicates(
        first=first,
        second=second,
        kind=np.asarray(["near"] * len(pairs), dtype=np.str_),
        mirror=np.asarray(["none"] * len(pairs), dtype=np.str_),
        similarity=np.ones(len(pairs)),
        found=len(pairs) if found is None else found,
        group=np.asarray(components(count, edges), dtype=np.int64),
    )


@st.composite
def graphs(draw: st.DrawFn) -> tuple[list[tuple[int, int]], np.ndarray, np.ndarray, np.ndarray]:
    """Pairs among a few rows with subjects, classes and roles."""
    count = draw(st.integers(1, 9))
    rows = st.integers(0, count - 1)
    edges = draw(st.lists(st.tuples(rows, rows), max_size=8))

    def column(values: str) -> np.ndarray:
        return np.asarray(draw(st.lists(st.sampled_from(values.split()), min_size=count, max_size=count)), np.str_)

    return edges, column("d c b a e"), column("x y"), column("train holdout")


@settings(deadline=None, max_examples=60)
@given(graphs())
def test_merging_joins_whoever_is_connected(graph: tuple[Any, ...]) -> None:
    edges, subjects, _, _ = graph
    count = len(subjects)
    same = [(a, b) for a, b in combinations(range(count), 2) if subjects[a] == subjects[b]]
    lowest = components(count, edges + same)
    merged = merge_subjects(made_duplicates(count, edges), subjects)
    assert merged.tolist() == [subjects[row] for row in lowest]


@settings(deadline=None, max_examples=60)
@given(graphs())
def test_dropping_takes_what_the_rules_say_and_no_more(graph: tuple[Any, ...]) -> None:
    edges, subjects, labels, roles = graph
    count = len(subjects)
    group = components(count, edges)
    kept = []
    for row in range(count):
        members = [other for other in range(count) if group[other] == group[row]]
        if row == members[0] and len({labels[other] for other in members}) == 1:
            kept.append(row)
    train = {subjects[row] for row in kept if roles[row] == "train"}
    kept = [row for row in kept if roles[row] == "train" or subjects[row] not in train]
    dropped = rows_to_drop(made_duplicates(count, edges), subjects=subjects, labels=labels, roles=roles)
    assert sorted({*range(count)} - set(dropped.tolist())) == kept
    assert dropped.tolist() == sorted(set(dropped.tolist()))
    # No pair is left, and nobody is on both sides.
    assert not [edge for edge in edges if edge[0] != edge[1] and set(edge) <= set(kept)]
    held = {subjects[row] for row in kept if roles[row] == "holdout"}
    assert not held & train


@settings(deadline=None, max_examples=60)
@given(graphs())
def test_pairs_keep_their_rows_when_others_go(graph: tuple[Any, ...]) -> None:
    edges, subjects, labels, roles = graph
    duplicates = made_duplicates(len(subjects), edges)
    table = duplicate_search.tabulate_duplicates(duplicates, subjects=subjects, labels=labels, roles=roles)
    kept = np.flatnonzero(labels == "x").astype(np.int64)
    rest = duplicate_search.keep_pairs(table, kept).to_pydict()
    named = [(int(kept[a]), int(kept[b])) for a, b in zip(rest["first"], rest["second"], strict=True)]
    pairs = zip(duplicates.first.tolist(), duplicates.second.tolist(), strict=True)
    assert named == [pair for pair in pairs if set(pair) <= set(kept.tolist())]


@settings(deadline=None, max_examples=60)
@given(graphs())
def test_leaks_beyond_the_list_are_refused_too(graph: tuple[Any, ...]) -> None:
    """More pairs than are listed: that a leak is among them shows in the groups."""
    edges, subjects, labels, roles = graph
    named = {"subjects": subjects, "labels": labels, "roles": roles}
    whole = made_duplicates(len(subjects), edges)
    group = whole.group
    cut = Duplicates(
        first=whole.first[:0],
        second=whole.second[:0],
        kind=whole.kind[:0],
        mirror=whole.mirror[:0],
        similarity=whole.similarity[:0],
        found=whole.found,
        group=group,
    )
    told, counted = leaks.count_leaks(cut, **named), leaks.count_leaks(whole, **named)
    for name in ("pairs_across_roles", "pairs_across_classes"):
        assert (told[name] > 0) == (counted[name] > 0)
        assert told[name] <= counted[name]
    assert told["pairs_not_listed"] == whole.found


@settings(deadline=None, max_examples=25)
@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.booleans()), min_size=2, max_size=8),
    st.sampled_from([0.0, 0.9, 1.0]),
    st.lists(st.sampled_from("abc"), min_size=8, max_size=8),
)
def test_found_pairs_are_those_of_brute_force(
    drawn: list[tuple[int, int, bool]], at_least: float, names: list[str]
) -> None:
    """Flipped and noisy pictures of four people, compared one by one with NumPy."""
    pool = people(4, size=8)
    images = np.stack([flips(nearly(pool[who], seed=who) if noisy else pool[who])[flip] for who, flip, noisy in drawn])
    subjects = np.asarray(names[: len(drawn)], dtype=np.str_)
    exact, near = set(), set()
    first_of = {image.tobytes(): row for row, image in reversed(list(enumerate(images)))}
    for row, image in enumerate(images):
        if first_of[image.tobytes()] != row:
            exact.add((first_of[image.tobytes()], row))
    for a, b in combinations(sorted(first_of.values()), 2):
        best = max(flips(images[b]), key=lambda flip: correlation(images[a], flip))
        if at_least and subjects[a] != subjects[b] and alike(images[a], best, at_least):
            near.add((a, b))
    found = duplicate_search.find_duplicates(
        digests=[image.tobytes().hex() for image in images],
        subjects=subjects,
        channels=("image",),
        read=lambda rows: images[rows][:, None],
        background=plain(len(images), 8),
        at_least=at_least,
    )
    pairs = list(zip(found.first.tolist(), found.second.tolist(), strict=True))
    assert {pair for pair, kind in zip(pairs, found.kind, strict=True) if kind == "exact"} == exact
    assert set(pairs) == exact | near
    assert found.found == len(pairs)
    assert found.group.tolist() == components(len(images), pairs)


def test_the_list_is_bounded_and_the_groups_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicate_search, "MOST_LISTED", 2)
    image = people(1)[0]
    images = np.stack([nearly(image, seed=seed) for seed in range(5)])
    names = np.asarray(list("abcde"), dtype=np.str_)
    found = duplicate_search.find_duplicates(
        digests=list("12345"),
        subjects=names,
        channels=("image",),
        read=lambda rows: images[rows][:, None],
        background=plain(5, SIZE),
        at_least=0.9,
    )
    assert (len(found.first), found.found) == (2, 10)
    assert found.group.tolist() == [0] * 5
    roles = np.asarray(["train"] * 4 + ["holdout"], dtype=np.str_)
    counts = leaks.count_leaks(found, subjects=names, labels=names, roles=roles)
    assert (counts["pairs_across_roles"], counts["pairs_not_listed"]) == (1, 8)
    with pytest.raises(InputError, match="1 pairs of duplicates stand in train and holdout"):
        leaks.refuse_leaks(counts, naming="")


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.sampled_from("abc"), min_size=1, max_size=40),
    st.one_of(st.none(), st.integers(1, 40)),
    st.booleans(),
    st.booleans(),
    st.integers(0, 5),
)
def test_limits_keep_the_proportions(
    classes: list[str], limit: int | None, balance: bool, shrink: bool, seed: int
) -> None:
    labels = np.asarray(classes, dtype=np.str_)
    roles = np.asarray(["holdout" if row % 3 == 2 else "train" for row in range(len(labels))], dtype=np.str_)
    rows = draw_limited(labels, roles, limit=limit, balance=balance, shrink_holdout=shrink, seed=seed)
    assert rows.tolist() == sorted(set(rows.tolist()))
    train = int((roles == "train").sum())
    factor = 1.0 if limit is None else min(1.0, limit / train)
    for role in ("train", "holdout"):
        here = Counter(labels[roles == role].tolist())
        kept = Counter(labels[rows][roles[rows] == role].tolist())
        total = sum(here.values())
        wanted = round(factor * total) if role == "train" or shrink else total
        if not total:
            continue
        if balance:
            each = min(min(here.values()), max(1, wanted // len(here)))
            assert kept == dict.fromkeys(here, each)
        else:
            assert sum(kept.values()) == wanted
            assert all(abs(kept[name] - wanted * count / total) < 1 for name, count in here.items())
    again = draw_limited(labels, roles, limit=limit, balance=balance, shrink_holdout=shrink, seed=seed)
    assert again.tolist() == rows.tolist()


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(st.integers(0, 12), st.sampled_from("xy")), min_size=2, max_size=40),
    st.floats(0, 0.99),
    st.integers(0, 5),
)
def test_a_share_is_held_out_within_each_class(drawn: list[tuple[int, str]], share: float, seed: int) -> None:
    subjects = np.asarray([f"s{number:02d}" for number, _ in drawn], dtype=np.str_)
    strata = np.asarray([label for _, label in drawn], dtype=np.str_)
    home = dict(reversed(list(zip(subjects.tolist(), strata.tolist(), strict=True))))  # by the first image
    if len(home) < 2:
        return
    roles = draw_holdout(subjects, share=share, seed=seed, strata=strata)
    held = set(subjects[roles == "holdout"].tolist())
    assert not held & set(subjects[roles == "train"].tolist())
    per_class = {label: [name for name, own in home.items() if own == label] for label in set(home.values())}
    wanted = {label: round(share * len(names)) for label, names in per_class.items()}
    if 0 < sum(wanted.values()) < len(home):
        assert {label: sum(name in held for name in names) for label, names in per_class.items()} == wanted
    elif share > 0:
        assert 0 < len(held) < len(home)


# Two folders, before anything is prepared.


@pytest.fixture
def two(tmp_path: Path) -> tuple[Path, Path]:
    """A and B: one picture shared exactly, one nearly, one mirrored, one enlarged; p03 in both with other pictures."""
    one = people(9, size=64)
    first = {f"p{number:02d}_0": one[number] for number in range(6)}
    large = np.asarray(Image.fromarray(one[4]).resize((96, 96), Image.Resampling.BICUBIC))
    second = {
        "q00_0": one[0],
        "q01_0": nearly(one[1]),
        "q02_0": one[2][:, ::-1],
        "p03_1": one[6],
        "q04_0": large,
        "q05_0": one[7],
        "q06_0": one[7][::-1],
    }
    return write(tmp_path / "A", first), write(tmp_path / "B", second)


def test_two_folders_are_compared(two: tuple[Path, Path], tmp_path: Path) -> None:
    report = find_leaks(*two, workers=1, sheet=tmp_path / "pairs.png")
    found = {(pair["first"][:5], pair["second"][:5]): (pair["kind"], pair["folders"]) for pair in report.pairs}
    assert found == {
        ("p00_0", "q00_0"): ("exact", (0, 1)),
        ("p01_0", "q01_0"): ("near", (0, 1)),
        ("p02_0", "q02_0"): ("mirrored", (0, 1)),
        ("p04_0", "q04_0"): ("near", (0, 1)),
        ("q05_0", "q06_0"): ("mirrored", (1, 1)),
    }
    assert [pair["across"] for pair in report.pairs] == [pair["folders"] == (0, 1) for pair in report.pairs]
    assert (report.images, report.shared_images, report.shared_subjects) == ((6, 7), 4, None)
    assert (report.exact_pairs, report.near_pairs, report.mirrored_pairs, report.across_pairs) == (1, 2, 2, 4)
    assert (report.pairs_not_listed, report.skipped) == (0, ())
    with Image.open(tmp_path / "pairs.png") as sheet:
        assert sheet.format == "PNG"


def test_shared_patients_need_a_pattern(two: tuple[Path, Path]) -> None:
    report = find_leaks(*two, workers=1, subject_pattern=r"^(\w\d+)_")
    assert (report.shared_subjects, report.shared_images) == (1, 4)
    alone = find_leaks(two[0], workers=1, subject_pattern=r"^(\w\d+)_")
    assert (alone.shared_subjects, alone.shared_images, alone.pairs) == (None, 0, ())


def test_the_same_name_in_two_folders_is_two_patients(tmp_path: Path) -> None:
    image = people(1, size=64)[0]
    write(tmp_path / "A", {"001": image})
    write(tmp_path / "B", {"001": nearly(image)})
    report = find_leaks(tmp_path / "A", tmp_path / "B", workers=1)
    assert [(pair["first"], pair["second"], pair["kind"]) for pair in report.pairs] == [("001.png", "001.png", "near")]


def test_one_folder_repeats_itself(tmp_path: Path) -> None:
    one = people(4, size=40)
    write(tmp_path / "A", {"a": one[0], "b": one[1], "c": one[0], "d": nearly(one[1])})
    report = find_leaks(tmp_path / "A", workers=1)
    assert [(pair["first"], pair["second"], pair["kind"]) for pair in report.pairs] == [
        ("a.png", "c.png", "exact"),
        ("b.png", "d.png", "near"),
    ]
    assert (report.images, report.across_pairs) == ((4,), 0)
    assert [pair["kind"] for pair in find_leaks(tmp_path / "A", near_duplicates=0.0, workers=1).pairs] == ["exact"]


def test_damaged_pictures_are_listed(two: tuple[Path, Path]) -> None:
    bad = two[1] / "q05_0.png"
    bad.write_bytes(bad.read_bytes()[:200])
    report = find_leaks(*two, workers=1)
    assert report.images == (6, 6)
    (reason,) = report.skipped
    assert "q05_0.png" in reason
    assert len(report.pairs) == 4


def test_folders_that_cannot_be_compared(two: tuple[Path, Path], tmp_path: Path) -> None:
    write(tmp_path / "A" / "inner", {"x": people(1)[0]})
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "x.png").write_text("no picture")
    (tmp_path / "empty").mkdir()
    for first, second, message in (
        (two[0], two[0], "are one folder"),
        (two[0], two[0] / "inner", "one lies in the other"),
        (two[0], tmp_path / "nowhere", "does not exist"),
        (two[0], tmp_path / "empty", "holds no"),
        (two[0], tmp_path / "bad", "none of the 1 pictures of .*bad could be read"),
        (tmp_path / "bad", None, "none of the 1 pictures of .*bad could be read"),
    ):
        with pytest.raises(InputError, match=message) as caught:
            find_leaks(first, second, workers=1)
        assert "\n" not in str(caught.value)
    for sheet in (tmp_path, tmp_path / "nowhere" / "x.png"):
        with pytest.raises(InputError, match="Give a PNG file"):
            find_leaks(*two, sheet=sheet, workers=1)


def test_inspecting_on_the_command_line(
    two: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (two[1] / "q09.png").write_text("no picture")
    command = ["inspect", str(two[0]), str(two[1]), "--leaks"]
    assert run([*command, "--json", "--subject-pattern", r"(\w\d+)[_.]"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["images"], told["shared_subjects"], told["shared_images"]) == ([6, 7], 1, 4)
    assert len(told["pairs"]) == 5
    assert len(told["skipped"]) == 1
    assert run([*command, "--pictures", str(tmp_path / "pairs.png")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"LEAK: 4 of the 7 pictures of {two[1]} are also in {two[0]}."
    assert "pairs of equal pixels 1, near duplicates 2, mirrored 2; 4 of them across the folders" in lines[1]
    assert lines[2].split() == ["exact", "1.0000", str(two[0] / "p00_0.png"), str(two[1] / "q00_0.png")]
    assert any(line.startswith("skipped: ") and "q09.png" in line for line in lines)
    assert lines[-1] == f"pairs drawn: {tmp_path / 'pairs.png'}"
    assert run([*command, "--near-duplicates", "0.2"]) == 2
    assert "--near-duplicates 0.2" in capsys.readouterr().err


def test_colour_and_depth_do_not_hide_a_copy(tmp_path: Path) -> None:
    """The same picture in gray, in colour and in 16 bits: other pixels, yet near."""
    image = people(1, size=64)[0]
    write(tmp_path / "A", {"gray": image})
    write(tmp_path / "B", {"rgb": np.stack([image] * 3, axis=-1), "deep": image.astype(np.uint16) * 257})
    report = find_leaks(tmp_path / "A", tmp_path / "B", workers=1)
    assert report.shared_images == 2
    assert all(pair["similarity"] > 0.999 for pair in report.pairs)
    assert {pair["kind"] for pair in report.pairs} == {"near"}


def test_leaks_leave_no_name_behind(source: Path, tmp_path: Path) -> None:
    """What an error of leaks names stays on the screen: the unfinished folder tells it in private alone."""
    with pytest.raises(InputError, match="such as"):
        prepare(source, tmp_path / "c", split="keep", on_leak="error")
    for path in (tmp_path / "c").rglob("*"):
        if path.is_file() and folders.PRIVATE not in path.parts:
            assert not any(f"p{number:02d}_".encode() in path.read_bytes() for number in range(19)), path
