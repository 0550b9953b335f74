"""An interrupted preparation goes on where it was, and ends in the cohort that an uninterrupted one makes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.conftest import draw_person

from unalike import folders
from unalike.cohort import build, store
from unalike.cohort.build import prepare_cohort
from unalike.cohort.journal import Journal, holds_finished_items
from unalike.cohort.plan import BadFile, Item, Loaded, MadeImage
from unalike.cohort.readers import load_item
from unalike.cohort.settings import PrepareSettings
from unalike.cohort.store import ImageFolder, ImageWriter, describe_pixels, open_images, verify_images
from unalike.errors import FolderError, InputError, PictureError

KEY = b"a key of the tests"
PATTERN = r"(p\d+)_"


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four images a chunk, so that a handful of pictures fills several."""
    monkeypatch.setattr(store, "LARGEST_CHUNK_IMAGES", 4)


@pytest.fixture
def source(make_pictures: Callable[..., Path]) -> Path:
    """Eleven subjects of two pictures: five chunks and a half."""
    return make_pictures(subjects=11)


class Loader:
    """Stands in for the workers' function: counts what is loaded and stops after so many."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.load, self.loaded, self.stop_after = build._load_one, [], 10**6
        monkeypatch.setattr(build, "_load_one", self)

    def __call__(self, item: Item, **options: Any) -> Loaded | BadFile:
        if len(self.loaded) >= self.stop_after:
            raise KeyboardInterrupt
        self.loaded.append(item.source)
        return self.load(item, **options)


def prepare(source: Path, out: Path, *, workers: int = 1, scheduler: str | None = None, **options: Any) -> ImageFolder:
    settings = PrepareSettings(**({"subject_pattern": PATTERN, "holdout": 0.3} | options))
    return prepare_cohort(source=source, out=out, settings=settings, key=KEY, workers=workers, scheduler=scheduler)


def interrupt(loader: Loader, source: Path, out: Path, *, after: int, **options: Any) -> int:
    """Prepare until so many items are loaded; gives how many the journal then holds."""
    loader.loaded.clear()
    loader.stop_after = after
    with pytest.raises(KeyboardInterrupt):
        prepare(source, out, **options)
    loader.loaded.clear()
    loader.stop_after = 10**6
    return len(journal_lines(out)) - 1 if out.exists() else 0


def journal_of(out: Path) -> Path:
    return out / folders.PRIVATE / folders.JOURNAL


def journal_lines(out: Path) -> list[str]:
    return journal_of(out).read_text().splitlines()


def what_it_is(cohort: ImageFolder) -> dict[str, Any]:
    """All that must not depend on interruptions, workers or the place."""
    assert sum(len(block) for block in verify_images(cohort)) == len(cohort)
    assert not journal_of(cohort.path).exists()
    assert not (cohort.path / folders.UNFINISHED).exists()
    private = cohort.path / folders.PRIVATE
    assert sorted(path.name for path in private.iterdir()) == [folders.KEY, folders.SKIPPED, folders.SOURCES]
    return {"content": cohort.header.content, "inputs": cohort.header.inputs, "settings": cohort.header.settings}


@pytest.mark.parametrize("after", [0, 3, 4, 5, 13, 21])
def test_interrupted_anywhere_gives_the_same(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    """What fills whole chunks is not read again; the rest is; nothing is left where no chunk was full."""
    whole = what_it_is(prepare(source, tmp_path / "whole"))
    loader = Loader(monkeypatch)
    assert interrupt(loader, source, tmp_path / "c", after=after) == after // 4 * 4
    assert (tmp_path / "c").exists() == (after >= 4)
    cohort = prepare(source, tmp_path / "c")
    assert loader.loaded == [path.name for path in sorted(source.iterdir())][after // 4 * 4 :]
    assert what_it_is(cohort) == whole


def test_interrupted_again_and_again(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = what_it_is(prepare(source, tmp_path / "whole"))
    loader = Loader(monkeypatch)
    assert [interrupt(loader, source, tmp_path / "c", after=5) for _ in range(4)] == [4, 8, 12, 16]
    assert what_it_is(prepare(source, tmp_path / "c")) == whole
    assert len(loader.loaded) == 6


def test_interrupted_when_all_is_read(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also the last chunk, which is not full, is not read again."""
    whole = what_it_is(prepare(source, tmp_path / "whole"))
    loader = Loader(monkeypatch)

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(build, "find_duplicates", stop)
        with pytest.raises(KeyboardInterrupt):
            prepare(source, tmp_path / "c")
    loader.loaded.clear()
    assert what_it_is(prepare(source, tmp_path / "c")) == whole
    assert loader.loaded == []


def test_volumes_of_several_slices_go_on_too(
    make_volumes: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A volume that ends within a chunk is read again, one whose slices are all on disk is not."""
    source = make_volumes(subjects=5)
    options = {"recipe": "nifti", "size": 14, "subject_pattern": None, "least_content": 0.0, "on_leak": "report"}
    whole = what_it_is(prepare(source, tmp_path / "whole", **options))
    loader = Loader(monkeypatch)
    assert interrupt(loader, source, tmp_path / "c", after=3, **options) == 2  # 18 slices, of which 16 fill chunks
    assert what_it_is(prepare(source, tmp_path / "c", **options)) == whole
    assert len(loader.loaded) == 3


@pytest.mark.parametrize("workers", [2, 3])
def test_the_number_of_workers_does_not_matter(source: Path, tmp_path: Path, workers: int) -> None:
    one = what_it_is(prepare(source, tmp_path / "one"))
    assert what_it_is(prepare(source, tmp_path / "more", workers=workers)) == one


@pytest.mark.parametrize("change", ["pixels", "one more", "one less"])
def test_a_changed_source_is_refused(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    loader = Loader(monkeypatch)
    interrupt(loader, source, tmp_path / "c", after=9)
    if change == "pixels":
        Image.fromarray(np.eye(24, dtype=np.uint8)).save(source / "p0003_0.png")
    elif change == "one more":
        Image.fromarray(np.eye(24, dtype=np.uint8)).save(source / "p0099_0.png")
    else:
        (source / "p0009_0.png").unlink()
    before = journal_lines(tmp_path / "c")
    with pytest.raises(FolderError, match="begun when the source had other files") as caught:
        prepare(source, tmp_path / "c")
    assert "\n" not in str(caught.value)
    assert loader.loaded == []
    assert journal_lines(tmp_path / "c") == before


def test_a_changed_source_does_not_matter_where_nothing_was_read(source: Path, tmp_path: Path) -> None:
    """A journal of bad files alone, or of none, holds nothing to lose."""
    out = tmp_path / "c"
    folders.begin_folder(out, kind="cohort", settings={})
    first = Journal(out, plan_digest="a")
    first.add({"bad": "x.png cannot be read"}, images=0, written=0)
    assert len(journal_lines(out)) == 2
    assert not holds_finished_items(out)
    assert Journal(out, plan_digest="b").entries == []
    assert journal_lines(out) == ['{"plan": "b"}']
    folders._unlock(out)


def test_other_settings_are_refused_and_late_ones_are_not(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loader = Loader(monkeypatch)
    interrupt(loader, source, tmp_path / "c", after=9)
    for other in ({"size": 16}, {"labels": False}, {"subject_pattern": None}):
        with pytest.raises(FolderError, match="begun with other settings") as caught:
            prepare(source, tmp_path / "c", **other)
        assert "\n" not in str(caught.value)
    late = {"on_leak": "drop", "near_duplicates": 0.0, "on_bad_file": "skip", "holdout": 0.5, "stratify": True}
    cohort = prepare(source, tmp_path / "c", **late)
    assert len(loader.loaded) == 14
    assert what_it_is(cohort) == what_it_is(prepare(source, tmp_path / "whole", **late))
    assert cohort.header.settings["holdout"] == 0.5


@pytest.mark.parametrize("torn", [b'{"digest": "ab', b"\xff\xfe\x00\x00", b"\x00\x00\x00", b"17\n", b'{"bad"'])
def test_a_torn_last_line_is_forgotten(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, torn: bytes
) -> None:
    whole = what_it_is(prepare(source, tmp_path / "whole"))
    loader = Loader(monkeypatch)
    assert interrupt(loader, source, tmp_path / "c", after=9) == 8
    with journal_of(tmp_path / "c").open("ab") as stream:
        stream.write(torn)
    assert what_it_is(prepare(source, tmp_path / "c")) == whole
    assert len(loader.loaded) == 14


def test_a_line_cut_in_the_middle_costs_its_items(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Images beyond what the journal still tells of are forgotten, also within a chunk."""
    whole = what_it_is(prepare(source, tmp_path / "whole"))
    loader = Loader(monkeypatch)
    interrupt(loader, source, tmp_path / "c", after=9)
    lines = journal_lines(tmp_path / "c")
    journal_of(tmp_path / "c").write_text("\n".join(lines[:7]) + "\n" + lines[7][:30])
    assert what_it_is(prepare(source, tmp_path / "c")) == whole
    assert len(loader.loaded) == 22 - 6


def test_a_stale_partial_chunk_goes(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loader = Loader(monkeypatch)
    interrupt(loader, source, tmp_path / "c", after=9)
    stale = tmp_path / "c" / folders.IMAGES / "c" / "2" / "0" / "0" / "0.123.partial"
    stale.parent.mkdir(parents=True)
    stale.write_bytes(b"half a chunk")
    cohort = prepare(source, tmp_path / "c")
    assert not list(cohort.path.rglob("*.partial"))
    assert what_it_is(cohort) == what_it_is(prepare(source, tmp_path / "whole"))


def test_a_lost_chunk_is_noticed(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Never black images in its place."""
    interrupt(Loader(monkeypatch), source, tmp_path / "c", after=9)
    (tmp_path / "c" / folders.IMAGES / "c" / "0" / "0" / "0" / "0").unlink()
    with pytest.raises(FolderError, match="again") as caught:
        prepare(source, tmp_path / "c")
    assert "\n" not in str(caught.value)
    with pytest.raises(FolderError):
        open_images(tmp_path / "c")


def test_a_bad_file_late_keeps_what_was_read(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (source / "p0008_1.png").write_text("no picture")
    loader = Loader(monkeypatch)
    with pytest.raises(PictureError, match=r"p0008_1\.png .* stays in .*: repeat the command") as caught:
        prepare(source, tmp_path / "c")
    assert "\n" not in str(caught.value)
    assert len(journal_lines(tmp_path / "c")) == 1 + 16
    loader.loaded.clear()
    cohort = prepare(source, tmp_path / "c", on_bad_file="skip")
    assert loader.loaded[0] == "p0008_0.png"
    assert (len(cohort), cohort.header.content["skipped"]) == (21, 1)
    assert what_it_is(cohort) == what_it_is(prepare(source, tmp_path / "whole", on_bad_file="skip"))


def test_a_bad_file_early_leaves_nothing(source: Path, tmp_path: Path) -> None:
    (source / "p0001_0.png").write_text("no picture")
    with pytest.raises(PictureError, match=r"p0001_0\.png"):
        prepare(source, tmp_path / "c")
    assert not (tmp_path / "c").exists()


def test_skipped_files_are_remembered(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files that an interrupted preparation skipped are not tried again, and count."""
    (source / "p0000_0.png").write_text("no picture")
    whole = what_it_is(prepare(source, tmp_path / "whole", on_bad_file="skip"))
    loader = Loader(monkeypatch)
    assert interrupt(loader, source, tmp_path / "c", after=7, on_bad_file="skip") == 5
    with pytest.raises(PictureError, match=r"p0000_0\.png"):
        prepare(source, tmp_path / "c", on_bad_file="error")
    assert what_it_is(prepare(source, tmp_path / "c", on_bad_file="skip")) == whole
    assert "p0000_0.png" not in loader.loaded


def test_nothing_stays_of_a_source_without_an_image(source: Path, tmp_path: Path) -> None:
    """Else the corrected source would be refused as another one."""
    whole = {path: path.read_bytes() for path in source.iterdir()}
    for path in whole:
        path.write_text("no picture")
    with pytest.raises(InputError, match="none of the 22 files could be read"):
        prepare(source, tmp_path / "c", on_bad_file="skip")
    assert not (tmp_path / "c").exists()
    for path, data in whole.items():
        path.write_bytes(data)
    assert len(prepare(source, tmp_path / "c", on_bad_file="skip")) == 22


def test_interrupted_while_dropped_images_are_taken_out(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The array is half rewritten then, so all is read again."""
    for number in (2, 5):
        (source / f"p0010_{number}.png").write_bytes((source / f"p000{number}_0.png").read_bytes())
    whole = what_it_is(prepare(source, tmp_path / "whole", on_leak="drop"))
    assert whole["content"]["images"] == 22
    keep = ImageWriter.keep

    def stop_midway(writer: ImageWriter, rows: Any) -> None:
        writer.array[:4] = writer.array.oindex[rows[-4:]]
        raise KeyboardInterrupt

    monkeypatch.setattr(ImageWriter, "keep", stop_midway)
    with pytest.raises(KeyboardInterrupt):
        prepare(source, tmp_path / "c", on_leak="drop")
    monkeypatch.setattr(ImageWriter, "keep", keep)
    assert what_it_is(prepare(source, tmp_path / "c", on_leak="drop")) == whole


def test_a_sheet_of_an_interrupted_preparation_goes(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pairs were drawn, then it stopped; repeated with other late settings there are none, and no picture of them."""
    (source / "p0010_2.png").write_bytes((source / "p0002_0.png").read_bytes())

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(build, "write_private", stop)
        with pytest.raises(KeyboardInterrupt):
            prepare(source, tmp_path / "c", on_leak="report")
    assert (tmp_path / "c" / folders.DUPLICATES_SHEET).is_file()
    cohort = prepare(source, tmp_path / "c", on_leak="drop")
    assert not (cohort.path / folders.DUPLICATES_SHEET).exists()


_KILLED = """
import sys, time
from pathlib import Path
from unalike.cohort import build, store
from unalike.cohort.settings import PrepareSettings
store.LARGEST_CHUNK_IMAGES = 4
load = build._load_one
def slow(item, **options):
    time.sleep(0.01)
    return load(item, **options)
build._load_one = slow
settings = PrepareSettings(subject_pattern=sys.argv[3], holdout=0.3)
source, out = Path(sys.argv[1]), Path(sys.argv[2])
build.prepare_cohort(source=source, out=out, settings=settings, key=b"a key of the tests", workers=1)
"""


def test_killed_in_the_middle(make_pictures: Callable[..., Path], tmp_path: Path) -> None:
    """SIGKILL leaves no time for anything, and a lock that the system takes away."""
    source, out = make_pictures("many", subjects=150, size=8), tmp_path / "c"
    process = subprocess.Popen([sys.executable, "-c", _KILLED, str(source), str(out), PATTERN])
    try:
        for _ in range(3000):
            if journal_of(out).is_file() and len(journal_lines(out)) > 40:
                break
            assert process.poll() is None
            time.sleep(0.01)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == -signal.SIGKILL
    done = len(journal_lines(out))
    assert 40 < done < 300
    assert what_it_is(prepare(source, out)) == what_it_is(prepare(source, tmp_path / "whole"))


def test_nothing_but_the_private_folder_names_files_meanwhile(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt(Loader(monkeypatch), source, tmp_path / "c", after=9)
    for path in (tmp_path / "c").rglob("*"):
        if path.is_file() and folders.PRIVATE not in path.parts:
            assert b"p000" not in path.read_bytes(), path
    assert journal_of(tmp_path / "c").stat().st_mode & 0o077 == 0
    assert (tmp_path / "c" / folders.PRIVATE).stat().st_mode & 0o077 == 0


def test_a_journal_speaks_of_items_whose_images_are_on_disk(tmp_path: Path) -> None:
    """By hand: items of 3, 2 and 4 images while 0, 4, 4 and 9 are on disk."""
    journal = Journal(tmp_path, plan_digest="d")
    told = []
    for number, (images, written) in enumerate([(3, 0), (5, 4), (9, 4)]):
        journal.add({"number": number}, images=images, written=written)
        told.append(len(journal_lines(tmp_path)) - 1)
    journal.catch_up(9)
    assert [*told, len(journal_lines(tmp_path)) - 1] == [0, 1, 1, 3]
    assert [json.loads(line).get("number") for line in journal_lines(tmp_path)] == [None, 0, 1, 2]
    journal.close(remove=True)
    assert not journal_of(tmp_path).exists()


@pytest.mark.filterwarnings("ignore")  # distributed warns of the worker that was killed and of its own shutdown
def test_a_cluster_that_loses_a_worker_gives_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two worker processes, of which one is killed in mid-run: its items are read by the other."""
    distributed = pytest.importorskip("distributed")
    source = tmp_path / "pictures"
    source.mkdir()
    random = np.random.default_rng(0)
    for subject in range(100):
        Image.fromarray(draw_person(random, size=8)[0]).save(source / f"p{subject:03d}_0.png")
    whole = what_it_is(prepare(source, tmp_path / "whole"))
    taken: list[int] = []
    with distributed.LocalCluster(
        n_workers=2,
        threads_per_worker=1,
        processes=True,
        dashboard_address=None,
        host="127.0.0.1",
        silence_logs=50,
        local_directory=str(tmp_path / "scratch"),
    ) as cluster:
        pids = [worker.pid for worker in cluster.workers.values()]
        take = build._Preparation._take

        def take_and_kill(preparation: Any, number: int, loaded: Any) -> None:
            taken.append(number)
            if number == 20:
                os.kill(pids[0], signal.SIGKILL)
            take(preparation, number, loaded)

        monkeypatch.setattr(build._Preparation, "_take", take_and_kill)
        monkeypatch.setattr(build, "_load_one", _load_slowly)
        cohort = prepare(source, tmp_path / "c", scheduler=cluster.scheduler_address)
    assert taken == list(range(100))
    assert what_it_is(cohort) == whole


def _load_slowly(item: Item, **options: Any) -> Loaded | BadFile:
    """As the workers' function does, slowly enough that a worker is killed while it reads."""
    time.sleep(0.02)
    loaded = load_item(item, **options)
    return replace(loaded, images=tuple(_describe(image) for image in loaded.images))


def _describe(image: MadeImage) -> MadeImage:
    return replace(image, record=describe_pixels(image.pixels) | dict(image.record))
