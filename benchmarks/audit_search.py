"""Exact correlation search from a cohort on disk, against faiss-cpu's exact flat index, side by side in one run.

    python benchmarks/audit_search.py                # 1,000 queries × 16,384 images × 256×256: 1 GiB disk, 6 GiB RAM
    python benchmarks/audit_search.py --data smooth  # random fields instead of procedural brain slices
    python benchmarks/audit_search.py --images 2048  # a quick look

Each contender runs in a process of its own, turn by turn; the table shows medians, and the ratio is taken within
each turn. unalike's time includes reading the images from disk; faiss's search time does not, nor does it include
building its index. Both search exhaustively in effect: unalike does not multiply out the pairs that a certified
bound rules out, and the answers must be the same.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from unalike import folders
from unalike.cohort.phantom import PhantomSettings, draw_anatomy, draw_pictures
from unalike.cohort.store import ImageWriter, open_images
from unalike.engine import map_in_order

SIZE = 256
WARM_UP = 256
WORK = Path(__file__).parent / "work"


def smooth_images(count: int, stream: int) -> Iterator[tuple[int, np.ndarray]]:
    """Smooth random fields with noise, eight to a subject: (subject, image). No two are alike, not even neighbours."""
    random = np.random.default_rng(stream)
    mix = np.stack([np.interp(np.linspace(0, 15, SIZE), np.arange(16), row) for row in np.eye(16)], axis=1)
    for index in range(count):
        field = mix @ random.normal(128, 60, (16, 16)) @ mix.T
        yield index // 8, field + random.integers(-12, 13, (SIZE, SIZE), dtype=np.int8)


def phantom_images(count: int, stream: int) -> Iterator[tuple[int, np.ndarray]]:
    """Procedural brain MRI (T1), the slices of a volume one after the other: (subject, image).

    Drawn at 64 × 64, enlarged, with fresh noise in every pixel of every image.
    """
    settings = PhantomSettings()
    slices = itertools.chain.from_iterable(
        zip(itertools.repeat(subject), volume, strict=False)
        for subject, volume in enumerate(
            map_in_order(partial(draw_volume, settings, stream), range(-(-count // settings.slices)))
        )
    )
    return itertools.islice(slices, count)


def draw_volume(settings: PhantomSettings, stream: int, subject: int) -> list[np.ndarray]:
    anatomy = draw_anatomy(settings=settings, seed=stream, index=subject)
    volume = draw_pictures(anatomy=anatomy, settings=settings, seed=stream, index=subject)["t1"].astype(np.float32)
    volume *= 220 / np.percentile(volume, 99.5)
    random = np.random.default_rng([stream, subject])
    return [
        np.asarray(Image.fromarray(picture).resize((SIZE, SIZE), Image.Resampling.BICUBIC))
        + 5 * random.standard_normal((SIZE, SIZE), dtype=np.float32)
        for picture in np.ascontiguousarray(volume.transpose(2, 0, 1))
    ]


DATA = {"smooth": smooth_images, "phantom": phantom_images}


def make_cohort(data: str, images: int, queries: int) -> Path:
    """Write the train images, and holdout images of other subjects as queries."""
    out = WORK / f"{data}-{images}-{queries}"
    if folders.kind_of(out) == "cohort":
        return out
    settings = {"data": data, "images": images, "queries": queries}
    folders.begin_folder(out, kind="cohort", settings=settings)
    writer = ImageWriter(out, channels=["gray"], height=SIZE, width=SIZE, dtype=np.dtype(np.uint8))
    for stream, (role, count) in enumerate({"train": images, "holdout": queries}.items()):
        for subject, image in DATA[data](count, stream):
            name = f"{role}-{subject}"
            pixels = np.clip(image, 0, 255).astype(np.uint8)[None]
            writer.append(pixels, {"subject": name, "source": name, "role": role})
    folders.finish_folder(out, kind="cohort", settings=settings, seed=0, inputs={}, content=writer.close())
    return out


class PeakMemory:
    """Growth of the resident set, sampled: MiB above what was there at the start."""

    def __enter__(self) -> PeakMemory:
        self.start = self.peak = self._now()
        self.running = True
        self.thread = threading.Thread(target=self._watch)
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.running = False
        self.thread.join()
        self.growth_mib = (self.peak - self.start) / 2**20

    def _now(self) -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def _watch(self) -> None:
        while self.running:
            self.peak = max(self.peak, self._now())
            time.sleep(0.005)


def run_unalike(cohort: Path, best: int) -> dict[str, object]:
    import torch

    from unalike.audit.search import reference_blocks
    from unalike.audit.sets import ImageSet
    from unalike.similarity.correlation import find_matches
    from unalike.similarity.products import pick_product

    folder = open_images(cohort)
    train = ImageSet(folder, folder.rows("train"))
    queries = folder.read(folder.rows("holdout"))
    product = pick_product(torch.device("cpu"))
    few = ImageSet(folder, train.rows[:WARM_UP])  # threads and kernels are made once per process, not per search
    find_matches(queries=queries[:WARM_UP], references=reference_blocks(few), best=best, mean=False)
    with PeakMemory() as memory:
        begin = time.perf_counter()
        found = find_matches(queries=queries, references=reference_blocks(train), best=best, mean=False)
        seconds = time.perf_counter() - begin
    return {
        "search": seconds,
        "memory": memory.growth_mib,
        "product": product.__name__,
        "share": found.share_multiplied,
        "best": found.references[:, 0].tolist(),
    }


def run_faiss(cohort: Path, k: int) -> dict[str, object]:
    import faiss

    faiss.omp_set_num_threads(os.cpu_count() or 1)
    folder = open_images(cohort)

    def standardized(rows: np.ndarray) -> np.ndarray:
        flat = folder.read(rows).reshape(len(rows), -1).astype(np.float32)
        flat -= flat.mean(axis=1, keepdims=True)
        flat /= np.linalg.norm(flat, axis=1, keepdims=True)
        return flat

    queries = standardized(folder.rows("holdout"))
    few = faiss.IndexFlatIP(SIZE * SIZE)
    few.add(standardized(folder.rows("train")[:WARM_UP]))
    few.search(queries[:WARM_UP], k)
    few.reset()
    with PeakMemory() as memory:
        begin = time.perf_counter()
        index = faiss.IndexFlatIP(SIZE * SIZE)
        for rows in np.split(folder.rows("train"), range(1024, len(folder.rows("train")), 1024)):
            index.add(standardized(rows))
        built = time.perf_counter()
        _, best = index.search(queries, k)
        seconds = time.perf_counter() - built
    return {
        "search": seconds,
        "build": built - begin,
        "memory": memory.growth_mib,
        "best": best[:, 0].tolist(),
    }


CONTENDERS = {"unalike": run_unalike, "faiss": run_faiss}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=DATA, default="phantom", help="images to search (default: phantom)")
    parser.add_argument("--images", type=int, default=16_384)
    parser.add_argument("--queries", type=int, default=1_000)
    parser.add_argument("--best", type=int, default=1, help="matches per query (default: 1, the highest correlation)")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--keep", action="store_true", help="keep the cohort for the next run")
    parser.add_argument("--contender", choices=CONTENDERS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    cohort = make_cohort(options.data, options.images, options.queries)
    if options.contender:
        print(json.dumps(CONTENDERS[options.contender](cohort, options.best)))
        return
    results: dict[str, list[dict[str, object]]] = {name: [] for name in CONTENDERS}
    for _ in range(options.turns):
        for name, runs in results.items():
            command = [sys.executable, __file__, "--contender", name]
            command += ["--data", options.data, "--best", str(options.best)]
            command += ["--images", str(options.images), "--queries", str(options.queries)]
            printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            runs.append(json.loads(printed.splitlines()[-1]))
    report(options, results)
    if not options.keep:
        shutil.rmtree(WORK)


def report(options: argparse.Namespace, results: dict[str, list[dict[str, object]]]) -> None:
    ours, theirs = results["unalike"], results["faiss"]
    assert all(mine["best"] == other["best"] for mine, other in zip(ours, theirs, strict=True)), "different answers"
    what = f"{options.queries:,} queries × {options.images:,} images × {SIZE}×{SIZE}"
    print(f"{what} ({options.data}), best {options.best}, {options.turns} turns, same best matches")
    print("| | search, s | with build, s | memory growth, MiB |\n| --- | --- | --- | --- |")
    for name, runs in results.items():
        search = statistics.median(run["search"] for run in runs)
        build = statistics.median(run.get("build", 0.0) for run in runs)
        memory = max(run["memory"] for run in runs)
        print(f"| {name} | {search:.2f} | {search + build:.2f} | {memory:,.0f} |")
    ratios = [other["search"] / mine["search"] for mine, other in zip(ours, theirs, strict=True)]
    built = [(o["search"] + o["build"]) / m["search"] for m, o in zip(ours, theirs, strict=True)]
    spread = f"{min(ratios):.1f} to {max(ratios):.1f}"
    print(f"faiss's search alone takes {statistics.median(ratios):.1f} times as long ({spread});")
    print(f"with its build {statistics.median(built):.1f} times.")
    print(f"unalike multiplied {ours[0]['share']:.1%} of the pairs out in full, by {ours[0]['product']}.")


if __name__ == "__main__":
    main()
