"""Reading volumes as `prepare` does, against reading and decompressing the same files alone, side by side in one run.

    python benchmarks/read_volumes.py              # 10 volumes of 240 × 240 × 155 voxels: 200 MiB of memory, 30 of disk
    python benchmarks/read_volumes.py --files 2    # a quick look

The volumes have the grid, type and compression of BraTS, two thirds of background zeros or more, smooth tissue and
noise. Per turn each way handles all files once, one way after the other; the table shows medians, and the ratios are
taken within each turn. All times are with the files in the page cache.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np

from unalike.images.volumes import read_volume, scale_intensity, slice_volume

SHAPE = (240, 240, 155)


def make_volumes(folder: Path, count: int) -> list[Path]:
    """Ellipsoids of smooth tissue with noise on a background of zeros: int16, left–posterior–superior, level 6."""
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, side, dtype=np.float32) for side in SHAPE), indexing="ij", sparse=True)
    nib.openers.Opener.default_compresslevel = 6
    paths = []
    for index in range(count):
        random = np.random.default_rng(index)
        a, b, c = random.uniform(2, 6, 3)
        tissue = 900 + 400 * np.cos(a * x + index) * np.cos(b * y) + 300 * np.cos(c * z)
        tissue = tissue + 25 * random.standard_normal(SHAPE, dtype=np.float32)
        head = (x / 0.6) ** 2 + (y / 0.75) ** 2 + (z / 0.9) ** 2 < 1
        voxels = np.where(head, np.maximum(tissue, 1), 0).astype(np.int16)
        paths.append(folder / f"case{index:02d}_t1.nii.gz")
        nib.save(nib.Nifti1Image(voxels, np.diag([-1.0, -1.0, 1.0, 1.0])), paths[-1])
    return paths


def decompress(path: Path) -> int:
    return len(zlib.decompress(path.read_bytes(), 31, 352 + 2 * int(np.prod(SHAPE))))


def prepare(path: Path) -> int:
    volume = read_volume(path)
    scaled = scale_intensity(volume.voxels, percentiles=(0.5, 99.5))
    slices, _ = slice_volume(replace(volume, voxels=scaled), "axial")
    return len(slices)


def seconds(work: Callable[[Path], int], paths: list[Path], threads: int) -> float:
    with ThreadPoolExecutor(threads) as pool:
        begin = time.perf_counter()
        list(pool.map(work, paths))
        return time.perf_counter() - begin


WAYS = {
    "decompress, 1 thread": (decompress, 1),
    "prepare, 1 thread": (prepare, 1),
    "decompress, 2 threads": (decompress, 2),
    "prepare, 2 threads": (prepare, 2),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=10)
    parser.add_argument("--turns", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        paths = make_volumes(Path(folder), options.files)
        size = sum(path.stat().st_size for path in paths) / len(paths) / 2**20
        for work in (decompress, prepare):
            seconds(work, paths[:1], 1)
        turns = [
            {name: seconds(work, paths, threads) for name, (work, threads) in WAYS.items()}
            for _ in range(options.turns)
        ]
    print(f"{options.files} volumes of {'×'.join(map(str, SHAPE))}, {size:.1f} MiB each, {options.turns} turns")
    print("| | ms a volume |\n| --- | --- |")
    for name in WAYS:
        print(f"| {name} | {statistics.median(turn[name] for turn in turns) / options.files * 1000:.1f} |")
    report("prepare / decompress, 1 thread", [t["prepare, 1 thread"] / t["decompress, 1 thread"] for t in turns])
    report("prepare / decompress, 2 threads", [t["prepare, 2 threads"] / t["decompress, 2 threads"] for t in turns])
    report(
        "speed-up of decompress by 2 threads", [t["decompress, 1 thread"] / t["decompress, 2 threads"] for t in turns]
    )
    report("speed-up of prepare by 2 threads", [t["prepare, 1 thread"] / t["prepare, 2 threads"] for t in turns])


def report(what: str, ratios: list[float]) -> None:
    print(f"{what}: {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    main()
