"""An audit in blocks: interrupted, damaged, or worked on by a cluster, it ends in the same tables."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tests.audit.test_audit import PATTERN, new_people, write_samples

from unalike import folders
from unalike.audit import blocks, evidence, search
from unalike.audit.blocks import Arrays, Part, SharedSet, Workshop, cut, digest_set, open_workshop, use_workshop
from unalike.audit.changes import CHANGES
from unalike.audit.run import audit_samples
from unalike.audit.search import compare_sets
from unalike.audit.settings import AuditSettings
from unalike.cohort.build import prepare_cohort
from unalike.cohort.roles import ImageSet
from unalike.cohort.settings import PrepareSettings
from unalike.cohort.store import ImageFolder
from unalike.engine import Progress, map_in_order
from unalike.errors import FolderError, SettingsError
from unalike.similarity.correlation import correlate

SETTINGS = AuditSettings(planted=4)
CPU = torch.device("cpu")


@pytest.fixture(autouse=True, scope="module")
def small_blocks() -> Iterator[None]:
    """Some queries a block, so that a handful of images fills several."""
    changes = {name: CHANGES[name] for name in list(CHANGES)[:2]}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search, "QUERIES", 8)
        patch.setattr(search, "QUERIES_ELSEWHERE", 5)
        patch.setattr(blocks, "AT_ONCE", 8)
        patch.setattr(blocks, "CHANGES", changes)
        patch.setattr("unalike.audit.power.CHANGES", changes)
        yield


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> ImageFolder:
    """30 subjects with 1 image each, a third of them held out."""
    place = tmp_path_factory.mktemp("cohort")
    (place / "pictures").mkdir()
    for subject, image in enumerate(new_people(30, seed=0)):
        Image.fromarray(image[0]).save(place / "pictures" / f"p{subject:03d}_0.png")
    settings = PrepareSettings(subject_pattern=PATTERN, holdout=1 / 3)
    return prepare_cohort(source=place / "pictures", out=place / "cohort", settings=settings)


@pytest.fixture(scope="module")
def samples(cohort: ImageFolder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 images of whom the first 3 are copies."""
    copies = cohort.read(cohort.rows("train")[:3])
    place = tmp_path_factory.mktemp("samples")
    return write_samples(place / "s", np.concatenate([copies, new_people(17)]), cohort)


@pytest.fixture(scope="module")
def whole(cohort: ImageFolder, samples: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What an audit comes to that nothing interrupts."""
    return tables_of(cohort, samples, tmp_path_factory.mktemp("whole") / "audit")


def tables_of(cohort: ImageFolder, samples: Path, out: Path, **options: Any) -> dict[str, Any]:
    """Audit, and give all that must not depend on interruptions or on who worked."""
    audit_samples(**({"synthetic": samples, "against": cohort.path, "out": out, "settings": SETTINGS} | options))
    header = folders.read_header(out, kind="audit")
    assert not (out / blocks.FOLDER).exists()
    assert not (out / folders.UNFINISHED).exists()
    content = {name: value for name, value in header.content.items() if name != "name"}
    return {"content": content, "inputs": header.inputs, "evidence": (out / folders.EVIDENCE).read_bytes()}


def files_of(out: Path) -> list[Path]:
    return sorted((out / blocks.FOLDER).glob("*.npz"))


class Counter:
    """Counts the blocks that are worked out, and stops before one of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.parts: list[tuple[str, Part]] = []
        self.stop_after = 10**6
        counter, work = self, blocks._Task.__call__

        def call(task: Any, part: Part, progress: Progress | None = None) -> Arrays:
            if len(counter.parts) >= counter.stop_after:
                raise KeyboardInterrupt
            counter.parts.append((task.work.__name__, part))
            return work(task, part, progress)

        monkeypatch.setattr(blocks._Task, "__call__", call)

    def interrupt(self, after: int, *arguments: Any, **options: Any) -> list[tuple[str, Part]]:
        """Audit until so many blocks are worked out; gives them."""
        self.parts.clear()
        self.stop_after = after
        with pytest.raises(KeyboardInterrupt):
            tables_of(*arguments, **options)
        done = list(self.parts)
        self.parts.clear()
        self.stop_after = 10**6
        return done


# By hand: 20 queries and 10 of the holdout in blocks of 8 are 3 and 2 blocks, against train and against the holdout;
# the same evidence again, two changes of two sets, and train thinned out to the holdout's size.
EVERYTHING = [
    *[("compare_part", part) for part in [(0, 8), (8, 16), (16, 20)]],  # synthetic → train
    *[("compare_part", part) for part in [(0, 8), (8, 10)]],  # holdout → train
    *[("compare_part", part) for part in [(0, 8), (8, 16), (16, 20)]],  # synthetic → holdout
    *[("examine_part", part) for part in [(0, 8), (8, 16), (16, 20)]],
    *[("examine_part", part) for part in [(0, 8), (8, 10)]],
    *[("examine_planted_part", part) for part in [(0, 1), (1, 2)] * 2],
    *[("compare_part", part) for part in [(0, 8), (8, 16), (16, 20)]],  # both of the same size
]


@pytest.mark.parametrize("after", [0, 1, 7, 14, 19])
def test_interrupted_anywhere_gives_the_same(
    cohort: ImageFolder,
    samples: Path,
    whole: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    after: int,
) -> None:
    """What was worked out is not worked out again; nothing is left where nothing was."""
    out, counter = tmp_path / "audit", Counter(monkeypatch)
    assert counter.interrupt(after, cohort, samples, out) == EVERYTHING[:after]
    assert out.exists() == (after > 0)
    assert len(files_of(out)) == after
    assert tables_of(cohort, samples, out) == whole
    assert counter.parts == EVERYTHING[after:]


def test_interrupted_again_and_again(
    cohort: ImageFolder,
    samples: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """And it says what was found, and where it stays."""
    out, counter = tmp_path / "audit", Counter(monkeypatch)
    done = [part for _ in range(2) for part in counter.interrupt(4, cohort, samples, out)]
    assert done == EVERYTHING[:8]
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("UNALIKE_PROGRESS", "on")
    counter.stop_after = 0
    with pytest.raises(KeyboardInterrupt, match=r"stays in .*audit: repeat the command to go on"):
        tables_of(cohort, samples, out)
    assert "Comparing synthetic → train: 3 of 3 blocks were found" in capsys.readouterr().err


def test_interrupted_while_tables_are_written(
    cohort: ImageFolder, samples: Path, whole: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, counter = tmp_path / "audit", Counter(monkeypatch)

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("unalike.audit.run._gather_evidence", stop)
        with pytest.raises(KeyboardInterrupt):
            tables_of(cohort, samples, out)
    counter.parts.clear()
    assert tables_of(cohort, samples, out) == whole
    assert counter.parts == []


def test_plain_folders_go_on_too(
    make_pictures: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their scratch cohorts get new pseudonyms each time; the images are the same."""
    train, holdout = make_pictures("t", subjects=10), make_pictures("h", subjects=6, seed=1)
    fakes = make_pictures("f", subjects=9, images=1, seed=2)
    out, counter = tmp_path / "audit", Counter(monkeypatch)
    options: dict[str, Any] = {"synthetic": fakes, "train": train, "holdout": holdout, "out": out}
    options["settings"] = AuditSettings(planted=0, subject_pattern=PATTERN)
    counter.stop_after = 8
    with pytest.raises(KeyboardInterrupt):
        audit_samples(**options)
    counter.parts.clear()
    counter.stop_after = 10**6
    audit_samples(**options)
    # Left are the evidence of the holdout, and train thinned out to its size.
    assert counter.parts == [("examine_part", part) for part in [(0, 8), (8, 12)]] + [
        ("compare_part", part) for part in [(0, 8), (8, 9)]
    ]


@pytest.mark.parametrize("change", ["samples", "seed"])
def test_with_other_inputs_blocks_are_ignored(
    cohort: ImageFolder, samples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    out, counter = tmp_path / "audit", Counter(monkeypatch)
    counter.interrupt(14, cohort, samples, out)
    options: dict[str, Any] = {"seed": 1}
    if change == "samples":
        options = {"synthetic": write_samples(tmp_path / "other", new_people(20, seed=3), cohort)}
    again = tables_of(cohort, samples, out, **options)
    # What is compared exactly knows no seed, and what becomes of holdout and train no samples.
    reused = EVERYTHING[:8] if change == "seed" else [*EVERYTHING[3:5], *EVERYTHING[11:14]]
    left = [*EVERYTHING]
    for part in reused:
        left.remove(part)
    assert sorted(counter.parts) == sorted(left)
    assert again == tables_of(cohort, samples, tmp_path / "whole", **options)


def test_other_settings_are_refused(
    cohort: ImageFolder, samples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Counter(monkeypatch).interrupt(4, cohort, samples, tmp_path / "audit")
    with pytest.raises(FolderError, match="begun with other settings") as caught:
        tables_of(cohort, samples, tmp_path / "audit", settings=AuditSettings(planted=5))
    assert "\n" not in str(caught.value)
    assert len(files_of(tmp_path / "audit")) == 4


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "text"])
def test_a_damaged_block_is_worked_out_again(
    cohort: ImageFolder,
    samples: Path,
    whole: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    damage: str,
) -> None:
    out, counter = tmp_path / "audit", Counter(monkeypatch)
    done = counter.interrupt(9, cohort, samples, out)
    victims = files_of(out)[::4]
    for victim in victims:
        stored = bytearray(victim.read_bytes())
        stored[len(stored) // 2] ^= 1
        made = {"cut": bytes(stored[:-9]), "flip": bytes(stored), "empty": b"", "text": b"no block"}
        victim.write_bytes(made[damage])
    (out / blocks.FOLDER / "half.npz.1.partial").write_bytes(b"of a killed process")
    assert tables_of(cohort, samples, out) == whole
    assert len(counter.parts) == len(EVERYTHING) - len(done) + len(victims)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EACCES])
def test_a_full_disk_is_told_in_one_line(
    cohort: ImageFolder, samples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """Nothing half written, and what was there before serves the next time."""
    out, counter = tmp_path / "audit", Counter(monkeypatch)
    write = Path.write_bytes

    def fail(path: Path, data: bytes) -> int:
        if path.name.endswith(".partial") and len(counter.parts) == 6:
            write(path, data[: len(data) // 2])
            raise OSError(code, os.strerror(code))
        return write(path, data)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", fail)
        with pytest.raises(FolderError) as caught:
            tables_of(cohort, samples, out)
    reason = "Permission denied" if code == errno.EACCES else "the disk is full"
    assert f"{out / blocks.FOLDER} cannot keep what was computed ({reason})" in str(caught.value)
    assert "repeat the command" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(files_of(out)) == len(list((out / blocks.FOLDER).iterdir())) == 5
    counter.parts.clear()
    tables_of(cohort, samples, out)
    assert counter.parts == EVERYTHING[5:]


_KILLED = """
import sys, time
from unalike.audit import blocks, search
from unalike.audit.changes import CHANGES
from unalike.audit.run import audit_samples
from unalike.audit.settings import AuditSettings
search.QUERIES = blocks.AT_ONCE = 8
call = blocks._Task.__call__
def slow(task, part, progress=None):
    time.sleep(0.05)
    return call(task, part, progress)
blocks._Task.__call__ = slow
synthetic, against, out = sys.argv[1:]
audit_samples(synthetic=synthetic, against=against, out=out, settings=AuditSettings(planted=4))
"""


def test_killed_in_the_middle(
    cohort: ImageFolder, samples: Path, whole: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGKILL leaves no time for anything, and a lock that the system takes away."""
    out = tmp_path / "audit"
    process = subprocess.Popen([sys.executable, "-c", _KILLED, str(samples), str(cohort.path), str(out)])
    try:
        for _ in range(6000):
            if len(files_of(out)) > 9:
                break
            assert process.poll() is None
            time.sleep(0.01)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == -signal.SIGKILL
    found, counter = len(files_of(out)), Counter(monkeypatch)
    assert found > 9
    made = tables_of(cohort, samples, out)
    assert len(counter.parts) == len(EVERYTHING) - found
    assert made == whole


@contextlib.contextmanager
def start_cluster(scratch: Path) -> Iterator[Any]:
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(
        n_workers=2,
        threads_per_worker=1,
        processes=True,
        dashboard_address=None,
        host="127.0.0.1",
        silence_logs=50,
        local_directory=str(scratch),
    ) as cluster:
        yield cluster


@pytest.mark.filterwarnings("ignore")  # distributed warns of the worker that was killed and of its own shutdown
def test_a_cluster_that_loses_a_worker_gives_the_same(
    cohort: ImageFolder, samples: Path, whole: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two worker processes, of which one is killed in mid-run: its blocks are worked out by the other."""
    with start_cluster(tmp_path / "scratch") as cluster:
        pids = [worker.pid for worker in cluster.workers.values()]
        save, saved = Workshop._save, []

        def save_and_kill(workshop: Workshop, name: str, block: Arrays) -> None:
            saved.append(name)
            if len(saved) == 14:  # in the midst of the evidence
                os.kill(pids[0], signal.SIGKILL)
            save(workshop, name, block)

        def send(task: Any, parts: Any, **options: Any) -> Any:
            assert len(repr(task)) < 2000  # paths, digests and numbers
            return map_in_order(task, parts, **options)

        monkeypatch.setattr(Workshop, "_save", save_and_kill)
        monkeypatch.setattr(blocks, "map_in_order", send)
        made = tables_of(cohort, samples, tmp_path / "audit", scheduler=cluster.scheduler_address)
    assert len(saved) == len(set(saved)) == 4 + 2 + 4 + 3 + 2 + 4 + 4
    assert made == whole


@pytest.mark.parametrize("workers", [1, 3])
def test_blocks_worked_on_at_once_give_the_same(
    cohort: ImageFolder, samples: Path, whole: dict[str, Any], tmp_path: Path, workers: int
) -> None:
    assert tables_of(cohort, samples, tmp_path / "audit", workers=workers) == whole


def test_workers_and_schedulers_that_cannot_be(cohort: ImageFolder, samples: Path, tmp_path: Path) -> None:
    for options, message in (
        ({"workers": 0}, "--workers 0"),
        ({"workers": 2, "scheduler": "tcp://127.0.0.1:1"}, "Drop one"),
    ):
        with pytest.raises(SettingsError, match=message):
            tables_of(cohort, samples, tmp_path / "audit", **options)
        assert not (tmp_path / "audit").exists()


def test_a_worker_that_does_not_see_the_files_says_so(cohort: ImageFolder, tmp_path: Path) -> None:
    entry = SharedSet("c", cohort.path, "cohort", cohort.digest, tmp_path / "rows-c.npy")
    with pytest.raises(FolderError, match="Workers must see the same files"):
        entry.open()
    nowhere = SharedSet("n", tmp_path / "nowhere", "cohort", cohort.digest, tmp_path / "rows-c.npy")
    with pytest.raises(FolderError, match=r"does not exist.*Workers must see the same files"):
        nowhere.open()
    changed = SharedSet("d", cohort.path, "cohort", "0" * 64, tmp_path / "rows-c.npy")
    with pytest.raises(FolderError, match="has changed since the audit began"):
        changed.open()


def test_a_worker_opens_the_same_set(cohort: ImageFolder, tmp_path: Path) -> None:
    """And keeps few of them."""
    images = ImageSet(cohort, cohort.rows("train")[::2])
    shop = Workshop(tmp_path / "kept", scheduler="tcp://nowhere:1")
    with use_workshop(shop):
        shared = shop.share(images)
        assert shared.open() is images
    for number in range(2 * blocks._MOST_SETS):
        other = SharedSet(f"{number}", shared.folder, shared.kind, shared.digest, shared.rows)
        assert digest_set(other.open()) == shared.content
        assert other.open() is other.open()
    assert len(blocks._sets) <= blocks._MOST_SETS
    blocks._sets.clear()


def test_the_digest_of_a_set_knows_images_subjects_and_rows(cohort: ImageFolder) -> None:
    rows = cohort.rows("train")
    digests = {digest_set(ImageSet(cohort, part)) for part in (rows, rows[1:], rows[::-1], cohort.rows("holdout"))}
    assert len(digests) == 4
    assert digest_set(ImageSet(cohort, rows.copy())) in digests


@given(st.integers(0, 40), st.integers(1, 45))
def test_parts_cover_everything_once(count: int, size: int) -> None:
    parts = cut(count, size)
    assert [row for begin, end in parts for row in range(begin, end)] == list(range(count))
    assert all(0 < end - begin <= size for begin, end in parts)


@pytest.mark.parametrize("size", [1, 3, 7, 100])
def test_the_size_of_blocks_does_not_matter(cohort: ImageFolder, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    """Against all pairs at once, also without a workshop."""
    monkeypatch.setattr(search, "QUERIES", size)
    queries, references = (ImageSet(cohort, cohort.rows(role)) for role in ("holdout", "train"))
    found = compare_sets(queries, references, best=2, channels=[0], device=CPU, title="")
    everything = correlate(cohort.read(queries.rows), cohort.read(references.rows))
    np.testing.assert_array_equal(found.result.similarities, -np.sort(-everything, axis=1)[:, :2])
    np.testing.assert_array_equal(found.result.references, np.argsort(-everything, axis=1, kind="stable")[:, :2])
    np.testing.assert_allclose(found.result.mean, everything.mean(axis=1), atol=1e-11)
    assert not blocks._sets


def test_nothing_is_examined_twice_for_the_power(
    cohort: ImageFolder, samples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What power asks for is known by its pixels; what is not known is examined here."""
    examined: list[int] = []
    examine = evidence.Examiner.examine

    def count(examiner: evidence.Examiner, images: Any) -> evidence.Evidence:
        images = list(images)
        examined.extend(len(block) for block in images)
        return examine(examiner, images)

    monkeypatch.setattr(evidence.Examiner, "examine", count)
    tables_of(cohort, samples, tmp_path / "audit")
    assert sum(examined) == 20 + 10 + 2 * 2 * 4
    images = ImageSet(cohort, cohort.rows("train"))
    with use_workshop(Workshop()) as shop:
        options: dict[str, Any] = {"channels": [0], "settings": SETTINGS, "seed": 0}
        examiner = blocks.BlockExaminer(images, workshop=shop, **options)
        pixels = new_people(5)
        found = examiner.examine([pixels])
        wanted = evidence.Examiner(images, device=CPU, **options).examine([pixels])
        np.testing.assert_array_equal(found.scores, wanted.scores)
        np.testing.assert_array_equal(found.references, wanted.references)
        assert examiner.examine([]).scores.shape == (3, 0)
    assert not blocks._examiners


def test_a_failure_before_the_first_block_leaves_nothing(tmp_path: Path) -> None:
    out = tmp_path / "audit"
    with (
        pytest.raises(RuntimeError),
        open_workshop(out, settings=SETTINGS, device="cpu", scheduler=None, workers=None),
    ):
        raise RuntimeError
    assert not out.exists()
