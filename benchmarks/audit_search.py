"""Exact correlation search from a cohort on disk, side by side with other ways, in one run.

    python benchmarks/audit_search.py                # 1,000 queries × 16,384 images × 256×256: 1 GiB disk, 6 GiB RAM
    python benchmarks/audit_search.py --large        # 1,000 queries × 91,271 images × 4×256×256: 24 GB disk
    python benchmarks/audit_search.py --data smooth  # random fields instead of procedural brain slices
    python benchmarks/audit_search.py --images 2048  # a quick look
    python benchmarks/audit_search.py --plot         # how time grows: docs/figures/audit-search-growth.png

Each contender runs in a process of its own, turn by turn; the table shows medians, and the ratio is taken within
each turn. unalike's time includes reading the images from disk; the search time of faiss and of the float32 product
does not, nor does it include standardizing the images. All search exhaustively in effect: unalike does not multiply
out the pairs that a certified bound rules out, and the answers must be the same. "Least" is what no exhaustive search
goes below: the images are read once, in order, and their bytes multiplied as they are. "One pair at a time" reads both
files for each pair and calls np.corrcoef: 200 pairs are timed, the rest is extrapolated. "Stored index" is a search
after an index was made: one of holdout subjects' images, and one of copies (reference images made 3 % darker, with
fresh noise). Images are in the system's memory of files where they fit.
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
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from unalike import folders
from unalike.cohort.phantom import PhantomSettings, draw_anatomy, draw_pictures
from unalike.cohort.store import ImageFolder, ImageWriter, describe_pixels, iterate_blocks, open_images, read_stored
from unalike.engine import map_in_order

SIZE = 256
WARM_UP = 256
LARGE_IMAGES, LARGE_SLICES = 91_271, 73  # BraTS 2021: 1,251 subjects
LARGE_CHANNELS = ("t1", "t1ce", "t2", "flair")
PAIRS = 200
NOISE = 5
WORK = Path(__file__).parent / "work"
FIGURE = Path(__file__).parent.parent / "docs" / "figures" / "audit-search-growth.png"


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


def brats_images(count: int, stream: int) -> Iterator[tuple[int, np.ndarray]]:
    """Procedural brain MRI of four modalities without skull, 73 slices a subject: (subject, image (4, 256, 256)).

    As `phantom_images`; the noise of the enlarged slices is taken from random places of a bank of 2²² values.
    """
    settings = PhantomSettings(slices=LARGE_SLICES, skull=False)
    draw = partial(draw_modalities, settings, stream, noise_bank())
    volumes = map_in_order(draw, range(-(-count // LARGE_SLICES)))
    slices = (zip(itertools.repeat(subject), volume, strict=False) for subject, volume in enumerate(volumes))
    return itertools.islice(itertools.chain.from_iterable(slices), count)


def noise_bank() -> np.ndarray:
    return (NOISE * np.random.default_rng(0).standard_normal(2**22, dtype=np.float32)).astype(np.float32)


def draw_modalities(settings: PhantomSettings, stream: int, bank: np.ndarray, subject: int) -> np.ndarray:
    import torch

    anatomy = draw_anatomy(settings=settings, seed=stream, index=subject)
    pictures = draw_pictures(anatomy=anatomy, settings=settings, seed=stream, index=subject)
    random = np.random.default_rng([stream, subject])
    places = np.linspace(0, settings.size - 1, SIZE)
    grid = np.arange(settings.size)
    rows = np.stack([np.interp(places, grid, row) for row in np.eye(settings.size)], axis=1)
    enlarge = torch.from_numpy(rows.astype(np.float32))
    images = np.empty((settings.slices, len(LARGE_CHANNELS), SIZE, SIZE), np.uint8)
    for channel, name in enumerate(LARGE_CHANNELS):
        volume = pictures[name].astype(np.float32)
        volume *= np.float32(220 / np.percentile(volume[volume > 0], 99.5))
        for index, picture in enumerate(np.ascontiguousarray(volume.transpose(2, 0, 1))):
            large = (enlarge @ torch.from_numpy(picture) @ enlarge.T).numpy()
            place = random.integers(len(bank) - SIZE * SIZE)
            inside = large > 1
            large += bank[place : place + SIZE * SIZE].reshape(SIZE, SIZE)
            large *= inside
            images[index, channel] = large.clip(0, 255)
    return images


DATA = {"smooth": smooth_images, "phantom": phantom_images, "brats": brats_images}


def make_cohort(data: str, images: int, queries: int) -> Path:
    """Write the train images, and holdout images of other subjects as queries."""
    out = WORK / f"{data}-{images}-{queries}"
    if folders.kind_of(out) == "cohort":
        return out
    # Loaded only here: faiss is measured in a process without torch.
    from unalike.similarity.correlation import single_threaded_torch

    channels = LARGE_CHANNELS if data == "brats" else ["gray"]
    settings = {"data": data, "images": images, "queries": queries}
    folders.begin_folder(out, kind="cohort", settings=settings)
    writer = ImageWriter(out, channels=channels, height=SIZE, width=SIZE, dtype=np.dtype(np.uint8))

    def finish(drawn: tuple[str, int, np.ndarray]) -> tuple[np.ndarray, dict[str, object]]:
        role, subject, image = drawn
        pixels = np.clip(image, 0, 255).astype(np.uint8).reshape(len(channels), SIZE, SIZE)
        name = f"{role}-{subject}"
        return pixels, {"subject": name, "source": name, "role": role} | describe_pixels(pixels)

    with single_threaded_torch():  # its threads, and NumPy's, would wait for each other
        for stream, (role, count) in enumerate({"train": images, "holdout": queries}.items()):
            drawn = ((role, subject, image) for subject, image in DATA[data](count, stream))
            for pixels, record in map_in_order(finish, drawn):
                writer.append(pixels, record)
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
    from unalike.cohort.roles import ImageSet
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


def run_torch(cohort: Path, k: int) -> dict[str, object]:
    """Standardized float32 images, one matrix product for 1,024 references."""
    import torch

    folder = open_images(cohort)

    def standardized(rows: np.ndarray) -> torch.Tensor:
        flat = torch.from_numpy(folder.read(rows).reshape(len(rows), -1)).to(torch.float32)
        flat -= flat.mean(dim=1, keepdim=True)
        return flat.div_(flat.norm(dim=1, keepdim=True))

    queries, train = standardized(folder.rows("holdout")), folder.rows("train")
    _ = queries @ standardized(train[:WARM_UP]).T
    build = search = 0.0
    values, places = [], []
    for first in range(0, len(train), 1024):
        begin = time.perf_counter()
        block = standardized(train[first : first + 1024])
        built = time.perf_counter()
        best = (queries @ block.T).topk(k, dim=1)
        search += time.perf_counter() - built
        build += built - begin
        values.append(best.values)
        places.append(best.indices + first)
    order = torch.cat(values, dim=1).argmax(dim=1, keepdim=True)
    best_places = torch.cat(places, dim=1).gather(1, order)[:, 0]
    return {"search": search, "build": build, "best": best_places.tolist()}


def run_least(cohort: Path, _: int) -> dict[str, object]:
    """Read the images once and multiply their bytes: the same arithmetic, without anything around it."""
    import torch

    from unalike.similarity.products import pick_product

    folder = open_images(cohort)
    product = pick_product(torch.device("cpu"))
    queries = folder.read(folder.rows("holdout"))
    left = torch.from_numpy(queries.reshape(len(queries), -1).view(np.int8))
    train = folder.rows("train")
    few = folder.read(train[:WARM_UP])
    product(left, torch.from_numpy(few.reshape(len(few), -1).view(np.int8)))
    read = multiplied = 0.0
    blocks = iterate_blocks(folder, train)
    while True:
        begin = time.perf_counter()
        block = next(blocks, None)
        between = time.perf_counter()
        read += between - begin
        if block is None:
            break
        product(left, torch.from_numpy(block[1].reshape(len(block[1]), -1).view(np.int8)))
        multiplied += time.perf_counter() - between
    return {"search": read + multiplied, "read": read, "product": multiplied}


def run_pairwise(cohort: Path, _: int) -> dict[str, object]:
    """One pair at a time: both files are read again, as programs of a few lines do."""
    folder = open_images(cohort)
    queries, train = folder.rows("holdout"), folder.rows("train")
    random = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as place:
        pairs = [(int(random.choice(queries)), int(random.choice(train))) for _ in range(PAIRS)]
        for row in {row for pair in pairs for row in pair}:
            np.save(Path(place) / f"{row}.npy", folder.read(np.array([row]))[0])
        begin = time.perf_counter()
        for pair in pairs:
            a, b = (np.load(Path(place) / f"{row}.npy").ravel() for row in pair)
            np.corrcoef(a, b)
        seconds = (time.perf_counter() - begin) / PAIRS
    return {"search": seconds * len(queries) * len(train)}


def run_stored(cohort: Path, k: int) -> dict[str, object]:
    """Searches with the stored index, which is made first."""
    from unalike.similarity.stored import build_index, find_stored, open_index

    folder = open_images(cohort)
    train, queries = folder.rows("train"), folder.read(folder.rows("holdout"))
    what = {
        "read": read_stored(folder.path / folders.IMAGES),
        "count": len(folder),
        "key": str(folder.header.content["images_digest"]),
        "folder": folder.path,
    }
    begin = time.perf_counter()
    build_index(**what)
    built = time.perf_counter()
    random = np.random.default_rng(1)
    copies = folder.read(np.sort(random.choice(train, len(queries), replace=False)))
    copied = copies * np.float32(0.97)
    for image in copied:
        image += NOISE * random.standard_normal(image.shape, dtype=np.float32) * (image > 1)
    copies = copied.clip(0, 255).astype(np.uint8)
    del copied
    with PeakMemory() as memory:
        begin_open = time.perf_counter()
        index = open_index(**what)
        opened = time.perf_counter()
        found = find_stored(queries=queries, index=index, rows=train, best=k)
        seconds = time.perf_counter() - opened
    begin_copies = time.perf_counter()
    of_copies = find_stored(queries=copies, index=index, rows=train, best=k)
    copies_took = time.perf_counter() - begin_copies
    few = {}
    for count in (1, 16, 100):
        times = []
        for turn in range(5):
            first = turn * count % max(len(queries) - count + 1, 1)
            part = queries[first : first + count]
            start = time.perf_counter()
            small = find_stored(queries=part, index=index, rows=train, best=k)
            times.append(time.perf_counter() - start)
        few[str(count)] = {"seconds": statistics.median(times), "read": small.share_read}
    return {
        "search": seconds,
        "build": built - begin,
        "open": opened - begin_open,
        "memory": memory.growth_mib,
        "index_mb": index.nbytes / 1e6,
        "share": found.share_multiplied,
        "read": found.share_read,
        "copies": copies_took,
        "copies_read": of_copies.share_read,
        "few": few,
        "best": found.references[:, 0].tolist(),
    }


CONTENDERS = {
    "unalike": run_unalike,
    "stored": run_stored,
    "least": run_least,
    "faiss": run_faiss,
    "torch": run_torch,
    "pairwise": run_pairwise,
}
NAMES = {
    "unalike": "unalike, `find_matches(mean=False)`",
    "stored": "unalike, stored index, second search",
    "least": "least: read once, bare integer product",
    "faiss": "faiss-cpu `IndexFlatIP`",
    "torch": "float32 product, torch",
    "pairwise": f"one pair at a time, from {PAIRS} pairs",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=DATA, help="images to search (default: phantom; brats with --large)")
    parser.add_argument("--large", action="store_true", help="as many and as large images as BraTS 2021 has")
    parser.add_argument("--images", type=int)
    parser.add_argument("--queries", type=int, default=1_000)
    parser.add_argument("--best", type=int, default=1, help="matches per query (default: 1, the highest correlation)")
    parser.add_argument("--turns", type=int, help="default: 3, 1 with --large")
    parser.add_argument("--keep", action="store_true", help="keep the cohort for the next run")
    parser.add_argument("--plot", action="store_true", help="draw how the time grows instead")
    parser.add_argument("--contender", choices=CONTENDERS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.data = options.data or ("brats" if options.large else "phantom")
    options.images = options.images or (LARGE_IMAGES if options.large else 16_384)
    options.turns = options.turns or (1 if options.large else 3)
    if not options.contender:
        options.images = fit_to_disk(options)
    cohort = make_cohort(options.data, options.images, options.queries)
    if options.contender:
        print(json.dumps(CONTENDERS[options.contender](cohort, options.best)))
        return
    if options.plot:
        plot_growth(cohort)
    else:
        # What holds all images as float32 has no room for a large set.
        names = ["unalike", "stored", "least"] if options.large else list(CONTENDERS)
        report(options, run_turns(options, names))
    if not options.keep:
        shutil.rmtree(cohort)


def fit_to_disk(options: argparse.Namespace) -> int:
    """As many images as fit on the disk with a third of it to spare; says so if that is fewer."""
    WORK.mkdir(exist_ok=True)
    image_bytes = SIZE * SIZE * (len(LARGE_CHANNELS) if options.data == "brats" else 1)
    room = int(shutil.disk_usage(WORK).free * 2 / 3 / (1.1 * image_bytes)) - options.queries
    if room < options.images:
        print(f"Scaled down to {room:,} of {options.images:,} images: the disk has no room for more.")
    return min(room, options.images)


def run_turns(options: argparse.Namespace, names: list[str]) -> dict[str, list[dict[str, object]]]:
    results: dict[str, list[dict[str, object]]] = {name: [] for name in names}
    for _ in range(options.turns):
        for name, runs in results.items():
            command = [sys.executable, __file__, "--contender", name]
            command += ["--data", options.data, "--best", str(options.best)]
            command += ["--images", str(options.images), "--queries", str(options.queries)]
            printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            runs.append(json.loads(printed.splitlines()[-1]))
    return results


def report(options: argparse.Namespace, results: dict[str, list[dict[str, object]]]) -> None:
    for mine, other in zip(results["unalike"], results["stored"], strict=True):
        assert mine["best"] == other["best"], "the stored index answers differently"
    channels = len(LARGE_CHANNELS) if options.data == "brats" else 1
    what = f"{options.queries:,} queries × {options.images:,} images × {channels}×{SIZE}×{SIZE}"
    print(f"{what} ({options.data}), best {options.best}, {options.turns} turns\n")
    print("| | search, s | before it, s | takes so many times as long as unalike | with what is before | memory, MiB |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name, runs in results.items():
        search, build = (statistics.median(run.get(key, 0.0) for run in runs) for key in ("search", "build"))
        ratio, total = ([], [])
        for run, ours in zip(runs, results["unalike"], strict=True):
            ratio.append(run["search"] / ours["search"])
            total.append((run["search"] + run.get("build", 0.0)) / ours["search"])
        spread = f"{statistics.median(ratio):.2f} ({min(ratio):.2f} to {max(ratio):.2f})"
        memory = f"{max(run['memory'] for run in runs):,.0f}" if "memory" in runs[0] else ""
        print(f"| {NAMES[name]} | {search:.2f} | {build:.2f} | {spread} | {statistics.median(total):.2f} | {memory} |")
    mine, stored, least = (results[name] for name in ("unalike", "stored", "least"))
    to_least = [a["search"] / b["search"] for a, b in zip(mine, least, strict=True)]
    for name in results.keys() & {"faiss", "torch"}:  # they round
        same = np.mean([np.equal(run["best"], mine[0]["best"]).mean() for run in results[name]])
        print(f"\n{NAMES[name]}: {same:.1%} of the best matches are the same.", end="")
    print(f"\n\nunalike takes {statistics.median(to_least):.2f} times as long as the least", end="")
    print(f" ({least[0]['read']:.2f} s reading, {least[0]['product']:.2f} s multiplying).")
    print(f"It multiplied {mine[0]['share']:.1%} of the pairs out in full, by {mine[0]['product']}.")
    last = stored[0]
    print(
        f"The stored index ({last['index_mb']:,.0f} MB, opened in {last['open']:.2f} s) read {last['read']:.1%}", end=""
    )
    print(f" of the pixels and multiplied {last['share']:.1%} of the pairs;")
    print(f"{options.queries:,} copies took {last['copies']:.2f} s and {last['copies_read']:.1%} of the pixels.")
    for count, few in last["few"].items():
        print(f"{count} queries: {1000 * few['seconds']:.0f} ms (median of 5), {few['read']:.1%} of the pixels.")


def plot_growth(cohort: Path) -> None:
    """Time against the number of images and of queries: the faster of two measurements each, in one process."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    from unalike.similarity.stored import find_stored, open_index

    folder = open_images(cohort)
    train, queries = folder.rows("train"), folder.read(folder.rows("holdout"))
    read = read_stored(folder.path / folders.IMAGES)
    index = open_index(read=read, count=len(folder), key=str(folder.header.content["images_digest"]), folder=cohort)
    ways = {
        NAMES["unalike"]: partial(search_stream, folder),
        NAMES["stored"]: lambda some, rows: find_stored(queries=some, index=index, rows=rows),
    }
    figure, axes = pyplot.subplots(1, 2, figsize=(10, 4), sharey=True, layout="constrained")
    growing = [len(train) >> power for power in range(5, -1, -1)]
    asking = [count for count in (1, 10, 100, 1000) if count <= len(queries)]
    for name, search in ways.items():
        search(queries[:16], train[:1024])
        axes[0].plot(growing, [timed(search, queries, train[:count]) for count in growing], "o-", label=name)
        axes[1].plot(asking, [timed(search, queries[:count], train) for count in asking], "o-", label=name)
    axes[0].set(xlabel=f"images of {SIZE} × {SIZE}, searched for {len(queries):,} queries", ylabel="seconds")
    axes[1].set(xlabel=f"queries, among {len(train):,} images")
    for axis in axes:
        axis.set(xscale="log", yscale="log")
        axis.grid(visible=True, alpha=0.3)
    axes[0].legend()
    FIGURE.parent.mkdir(exist_ok=True)
    figure.savefig(FIGURE, dpi=120)
    print(f"{FIGURE} is drawn.")


def search_stream(folder: ImageFolder, queries: np.ndarray, rows: np.ndarray) -> object:
    from unalike.audit.search import reference_blocks
    from unalike.cohort.roles import ImageSet
    from unalike.similarity.correlation import find_matches

    return find_matches(queries=queries, references=reference_blocks(ImageSet(folder, rows)), mean=False)


def timed(search: Callable[[np.ndarray, np.ndarray], object], queries: np.ndarray, rows: np.ndarray) -> float:
    times = []
    for _ in range(2):
        begin = time.perf_counter()
        search(queries, rows)
        times.append(time.perf_counter() - begin)
    return min(times)


if __name__ == "__main__":
    main()
