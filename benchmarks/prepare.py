"""Preparation of a cohort from volumes: speed against reading and decompressing alone, two workers against one, memory.

    python benchmarks/prepare.py               # 16 subjects in the layout and size of BraTS: 130 MiB of files
    python benchmarks/prepare.py --subjects 2  # a quick look

Turn by turn in one run: (a) the files are read and decompressed by zlib (as `gzip` and nibabel do), nothing else; (b)
`prepare_cohort` reads them, scales, slices, pads, hashes, writes, looks for duplicates and finishes the cohort. Each
with one worker on one core, and with two on two. Ratios are taken within each turn. Memory: the peak of a process that
prepares the subjects, and of one that prepares four times as many (links to the same files).
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy import ndimage

from unalike.cohort.build import prepare_cohort
from unalike.cohort.recipes import recipe_settings

WORK = Path(__file__).parent / "work"
SHAPE = (240, 240, 155)
CHANNELS = ("t1", "t1ce", "t2", "flair", "seg")


def make_subject(out: Path, index: int) -> None:
    """Five int16 volumes: smooth tissue with noise in an ellipsoid, zeros around it as after brain extraction."""
    random = np.random.default_rng(index)
    axes = np.meshgrid(*(np.linspace(-1, 1, side, dtype=np.float32) for side in SHAPE), indexing="ij", sparse=True)
    half = random.uniform(0.6, 0.75, 3)
    brain = sum((axis / side) ** 2 for axis, side in zip(axes, half, strict=True)) < 1
    name = f"BraTS20_Training_{index:03d}"
    (out / name).mkdir(parents=True)
    for channel in CHANNELS:
        coarse = random.normal(600, 160, (16, 16, 12)).astype(np.float32)
        field = ndimage.zoom(coarse, [side / low for side, low in zip(SHAPE, coarse.shape, strict=True)], order=1)
        if channel == "seg":
            voxels = np.where(brain & (field > 900), 4, np.where(brain & (field > 850), 2, 0)).astype(np.uint8)
        else:
            voxels = np.where(brain, np.maximum(field + random.normal(0, 25, SHAPE), 1), 0).astype(np.int16)
        content = nib.Nifti1Image(voxels, np.diag([-1.0, -1.0, 1.0, 1.0])).to_bytes()
        (out / name / f"{name}_{channel}.nii.gz").write_bytes(gzip.compress(content, compresslevel=6, mtime=0))


def make_source(subjects: int) -> Path:
    """Write the subjects that are not there yet."""
    out = WORK / f"volumes-{subjects}"
    done = out / "done"
    if not done.is_file():
        shutil.rmtree(out, ignore_errors=True)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(lambda index: make_subject(out, index), range(1, subjects + 1)))
        done.touch()
    return out


def link_source(source: Path, copies: int) -> Path:
    """The same subjects under several names, by symbolic links."""
    out = WORK / f"{source.name}-times-{copies}"
    shutil.rmtree(out, ignore_errors=True)
    for copy in range(copies):
        for folder in sorted(path for path in source.iterdir() if path.is_dir()):
            name = f"{folder.name}-{copy}"
            (out / name).mkdir(parents=True)
            for file in folder.iterdir():
                (out / name / file.name.replace(folder.name, name)).symlink_to(file.resolve())
    return out


def decompress(source: Path, workers: int) -> None:
    files = sorted(source.rglob("*.nii.gz"))
    with ThreadPoolExecutor(workers) as pool:
        for _ in pool.map(lambda path: len(zlib.decompress(path.read_bytes(), wbits=31)), files):
            pass


def prepare(source: Path, workers: int, out: Path) -> dict[str, object]:
    """Prepare into ``out``, where nothing is."""
    settings = recipe_settings("brats20", holdout=0.25, on_leak="report")
    cohort = prepare_cohort(source=source, out=out, settings=settings, key=b"benchmark", workers=workers)
    return {"images": len(cohort), "digest": cohort.header.content["content_digest"]}


def seconds(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def peak_of(source: Path, out: Path) -> dict[str, float]:
    """Peak resident memory in MiB of a process that prepares ``source``, and how many images it made."""
    shutil.rmtree(out, ignore_errors=True)
    code = (
        "import json, resource, sys; from pathlib import Path; sys.path.insert(0, sys.argv[1]);"
        "from prepare import prepare; made = prepare(Path(sys.argv[2]), 2, Path(sys.argv[3]));"
        "peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024;"
        "print(json.dumps({'peak_mib': peak, 'images': made['images']}))"
    )
    arguments = [sys.executable, "-c", code, str(Path(__file__).parent), str(source), str(out)]
    done = subprocess.run(arguments, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--subjects", type=int, default=16)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--no-memory", action="store_true")
    options = parser.parse_args()
    os.environ["UNALIKE_PROGRESS"] = "off"
    source = make_source(options.subjects)
    size = sum(path.stat().st_size for path in source.rglob("*.nii.gz"))
    print(f"{options.subjects} subjects, {5 * options.subjects} volumes, {size / 2**20:.0f} MiB compressed")
    out = WORK / "prepared"
    shutil.rmtree(out, ignore_errors=True)
    prepare(source, 2, out)  # imports, page cache
    cores = sorted(os.sched_getaffinity(0))
    times: dict[str, list[float]] = {}
    digests = set()
    for _ in range(options.turns):
        for workers in (1, 2):
            os.sched_setaffinity(0, cores[:workers])
            times.setdefault(f"read {workers}", []).append(seconds(lambda w=workers: decompress(source, w)))
            made: list[dict[str, object]] = []
            shutil.rmtree(out)
            spent = seconds(lambda w=workers, m=made: m.append(prepare(source, w, out)))
            times.setdefault(f"prepare {workers}", []).append(spent)
            digests.add(made[0]["digest"])
    assert len(digests) == 1, "other digests with other workers"
    os.sched_setaffinity(0, cores)
    for name, values in times.items():
        print(f"{name} core(s): median {statistics.median(values):.2f} s ({min(values):.2f} to {max(values):.2f})")
    for title, above, below in (
        ("prepare / read, 2 cores", "prepare 2", "read 2"),
        ("prepare / read, 1 core", "prepare 1", "read 1"),
        ("prepare 1 core / 2 cores", "prepare 1", "prepare 2"),
    ):
        ratios = [a / b for a, b in zip(times[above], times[below], strict=True)]
        print(f"{title}: median {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
    rate = 5 * options.subjects / statistics.median(times["prepare 2"])
    print(f"volumes/s with 2 cores: {rate:.1f}")
    if not options.no_memory:
        one = peak_of(source, out)
        four = peak_of(link_source(source, 4), out)
        growth = four["peak_mib"] / one["peak_mib"]
        print(
            f"peak memory: {one['peak_mib']:.0f} MiB for {one['images']} images, {four['peak_mib']:.0f} MiB for "
            f"{four['images']}: {growth:.2f} times"
        )
    shutil.rmtree(out, ignore_errors=True)


if __name__ == "__main__":
    main()
