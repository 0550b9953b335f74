"""Training and sampling of diffusion, side by side in one run.

    python benchmarks/diffusion.py           # half an hour on two cores; nothing else should run
    python benchmarks/diffusion.py --quick   # a look
    python benchmarks/diffusion.py --gpu     # 256×256 on a graphics card, beside the paper's figure
    OMP_NUM_THREADS=1 python benchmarks/diffusion.py --processor-time   # beside other work: ratios can be trusted more

Each table has a process of its own for each network, in which contenders take turns; medians of the turns are shown,
and ratios are taken within each turn. "Whole tool" is `Training.run`: loop, read-ahead, streams of random numbers,
weight averages, log and progress, but no checkpoint. "Bare loop" trains the same network by the same optimizer, in the
same precision, with clipped gradients, on one batch that lies ready, and keeps no averages. Memory is the largest
resident set of a fresh process.

The work of layers is that of torch's profiler: time of each operation itself, forward and backward. It counts time
that other programs took, too: use a quiet machine.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

# No torch up here: a process that is started inherits the largest resident set of the one that starts it.
import numpy as np

if TYPE_CHECKING:
    import torch

    from unalike.generators.diffusion.train import DiffusionTask

WORK = Path(__file__).parent / "work"
clock: Callable[[], float] = time.perf_counter
BATCH = 16
IMAGES = 64
WARM_UP = 3  # updates
DRAWN_STEPS = 50
# Akbar et al. (2025, section 2.4): a day and a half on eight A100 for 100,000 images.
PAPER_IMAGES, PAPER_DAYS, PAPER_CARDS = 100_000, 1.5, 8


@dataclass(frozen=True)
class Network:
    """What is trained: a size of network, and the images it is for."""

    size: str
    channels: int
    side: int

    @property
    def text(self) -> str:
        return f"{self.size} {self.channels}×{self.side}×{self.side}"


NETWORKS = {"tiny": Network("tiny", 5, 32), "small": Network("small", 1, 64), "medium": Network("medium", 5, 256)}
KINDS = {  # of operations in the profile; the first part of a name that fits decides
    "convolution": ("convolution",),
    "group norm": ("group_norm", "groupnorm"),
    "SiLU": ("silu",),
    "attention": ("scaled_dot_product", "_attention", "softmax", "bmm"),
    "linear": ("addmm", "::mm", "linear"),
    "up- and downsampling": ("upsample", "avg_pool"),
    "optimizer and clipping": ("adam", "_foreach"),
    "casts and copies": ("copy", "::to", "contiguous"),
    "add, multiply, concatenate": ("::add", "::mul", "::cat", "::sum", "::div"),
}


def make_cohort(network: Network) -> Path:
    """Smooth random images, one a subject."""
    from unalike import folders
    from unalike.cohort.store import ImageWriter

    out = WORK / f"diffusion-{network.size}"
    if folders.kind_of(out) == "cohort":
        return out
    WORK.mkdir(exist_ok=True)
    folders.begin_folder(out, kind="cohort", settings={})
    names = [f"c{index}" for index in range(network.channels)]
    writer = ImageWriter(out, channels=names, height=network.side, width=network.side, dtype=np.dtype(np.uint8))
    random = np.random.default_rng(0)
    places = np.linspace(0, 7, network.side)
    mix = np.stack([np.interp(places, np.arange(8), row) for row in np.eye(8)], axis=1)
    for index in range(IMAGES):
        image = np.clip(mix @ random.normal(128, 60, (network.channels, 8, 8)) @ mix.T, 0, 255).astype(np.uint8)
        writer.append(image, {"subject": f"s{index}", "source": f"f{index}", "slice": 0, "role": "train"})
    folders.finish_folder(out, kind="cohort", settings={}, seed=0, inputs={}, content=writer.close())
    return out


def make_task(network: Network, *, precision: str, updates: int, device: str = "cpu") -> DiffusionTask:
    """What `train_diffusion` would train, with weights that have seen nothing."""
    from unalike.cohort.store import open_images
    from unalike.devices import pick_device, resolve_precision
    from unalike.generators.data import open_train_images
    from unalike.generators.diffusion.conditions import Conditions
    from unalike.generators.diffusion.network import build_network, place_network
    from unalike.generators.diffusion.settings import DiffusionSettings
    from unalike.generators.diffusion.train import DiffusionTask, scheduler_of

    settings = DiffusionSettings(size=network.size, steps=updates, batch_size=BATCH, checkpoint_every=1e9)
    place = pick_device(device)
    built = build_network(settings, channels=network.channels, height=network.side, width=network.side, seed=0)
    return DiffusionTask(
        images=open_train_images(open_images(make_cohort(network)), subjects=None, seed=0),
        settings=settings,
        conditions=Conditions(),
        codec=None,
        scheduler=scheduler_of(settings),
        network=place_network(built, place),
        place=place,
        precision=resolve_precision(precision, place),
        seed=0,
    )


def now(place: torch.device) -> float:
    """The time, when all that was asked of the device is done."""
    import torch

    if place.type == "cuda":
        torch.cuda.synchronize(place)
    return clock()


def time_tool(network: Network, *, precision: str, updates: int, device: str = "cpu") -> float:
    """Seconds of an update of the whole tool."""
    from unalike.generators.descent import Descent
    from unalike.generators.loop import Training
    from unalike.generators.processes import join_processes

    times: list[float] = []

    class Timed(Descent):  # type: ignore[type-arg]
        """Notes the time after the warm-up and after the last update."""

        def update(self, n: int) -> None:
            super().update(n)
            if n + 1 in (WARM_UP, self.settings.steps):
                times.append(now(self.place))

    class Unsaved(Training):  # type: ignore[type-arg]
        """Writes no checkpoint."""

        def save(self) -> None:
            pass

    task = make_task(network, precision=precision, updates=WARM_UP + updates, device=device)
    processes = join_processes(device)
    with tempfile.TemporaryDirectory() as place:
        Unsaved(
            Timed(task, task.settings, seed=0, processes=processes),
            task.settings,
            out=Path(place),
            identity="benchmark",
            processes=processes,
            checkpoints="checkpoints",
        ).run()
    return (times[1] - times[0]) / updates


def time_bare(network: Network, *, precision: str, updates: int, averages: bool = False) -> float:
    """Seconds of an update of a loop that has nothing around it, or weight averages alone."""
    import torch
    from torch.optim.swa_utils import get_ema_multi_avg_fn

    task = make_task(network, precision=precision, updates=updates)
    unet, x_0 = task.network.unet.train(), task.batch(0, slice(BATCH)).images
    weights = list(unet.parameters())
    kept = [weight.detach().clone() for weight in weights]
    optimizer = torch.optim.AdamW(weights, lr=task.settings.learning_rate, fused=True)
    bars = task.scheduler.alphas_cumprod
    began = 0.0
    for update in range(WARM_UP + updates):
        if update == WARM_UP:
            began = clock()
        t = torch.randint(len(bars), (BATCH,))
        bar = bars[t].reshape(-1, 1, 1, 1)
        noise = torch.randn_like(x_0)
        with torch.autocast("cpu", torch.bfloat16, enabled=task.precision == "bfloat16"):
            predicted = unet(bar.sqrt() * x_0 + (1 - bar).sqrt() * noise, t).sample
        loss = (predicted.float() - (bar.sqrt() * noise - (1 - bar).sqrt() * x_0)).square().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        if averages:
            get_ema_multi_avg_fn(0.995)(kept, weights, None)  # type: ignore[no-untyped-call]
    return (clock() - began) / updates


def take_turns(contenders: dict[str, Callable[[], float]], turns: int) -> dict[str, list[float]]:
    """What each contender says, turn by turn; every other turn goes backwards."""
    told: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(turns):
        names = list(contenders)
        for name in names[::-1] if turn % 2 else names:
            told[name].append(contenders[name]())
    return told


def measure_training(network: Network, *, turns: int, updates: int) -> dict[str, Any]:
    """Seconds of an update: whole tool, bare loop, bare loop with averages; and what the tool adds, piece by piece."""
    rest: dict[str, Any] = {"precision": "auto", "updates": updates}
    contenders = {
        "whole tool": lambda: time_tool(network, **rest),
        "bare loop": lambda: time_bare(network, **rest),
        "bare loop with weight averages": lambda: time_bare(network, **rest, averages=True),
    }
    return {"turns": take_turns(contenders, turns), "pieces": time_pieces(network)}


def time_pieces(network: Network) -> dict[str, float]:
    """Seconds of what an update of the tool does beyond a bare loop, each piece alone: medians of 20."""
    import torch
    from torch.optim.swa_utils import get_ema_multi_avg_fn

    from unalike.seeds import seed_for

    task = make_task(network, precision="auto", updates=1)
    weights = list(task.network.parameters())
    kept = [weight.detach().clone() for weight in weights]
    shape = task.batch(0, slice(BATCH)).images.shape

    def streams() -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_for(0, "layers", 0))

    pieces: dict[str, Callable[[], object]] = {
        "batch, in another thread": lambda: task.batch(1, slice(BATCH)),
        "weight averages": lambda: get_ema_multi_avg_fn(0.995)(kept, weights, None),  # type: ignore[no-untyped-call]
        "streams of layers": streams,
        "noise": lambda: torch.randn(shape, generator=torch.Generator().manual_seed(seed_for(0, "noise", 0))),
    }
    return {name: statistics.median(time_once(piece) for _ in range(20)) for name, piece in pieces.items()}


def time_once(work: Callable[[], object]) -> float:
    began = clock()
    work()
    return clock() - began


def measure_precision(network: Network, *, turns: int, updates: int) -> dict[str, Any]:
    """Seconds of an update in each precision, and of each kind of operation."""
    formats = ("float32", "bfloat16")
    contenders = {name: lambda name=name: time_tool(network, precision=name, updates=updates) for name in formats}
    profiles = {name: profile_layers(network, precision=name) for name in formats}
    return {"turns": take_turns(contenders, turns), "profiles": profiles}


def profile_layers(network: Network, *, precision: str, updates: int = 5) -> dict[str, float]:
    """Seconds of each kind of operation in an update without weight averages: the least of some updates."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    task = make_task(network, precision=precision, updates=1)
    batch, weights = task.batch(0, slice(BATCH)), list(task.network.train().parameters())
    optimizer = torch.optim.AdamW(weights, fused=True)

    def update() -> None:
        optimizer.zero_grad(set_to_none=True)
        task.loss(task.network, batch).backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()

    for _ in range(WARM_UP):
        update()
    least = dict.fromkeys([*KINDS, "rest"], float("inf"))
    for _ in range(updates):
        told = dict.fromkeys(least, 0.0)
        with profile(activities=[ProfilerActivity.CPU], acc_events=True) as seen:
            update()
        for event in seen.key_averages():
            name = event.key.lower()
            kind = next((kind for kind, parts in KINDS.items() if any(part in name for part in parts)), "rest")
            told[kind] += event.self_cpu_time_total / 1e6
        least = {kind: min(seconds, told[kind]) for kind, seconds in least.items()}
    return least


def measure_sampling(network: Network, *, turns: int, steps: int) -> dict[str, Any]:
    """Seconds of an image for each sampler; a group of the network is drawn at once."""
    from unalike.generators.diffusion.sample import GROUP, DiffusionSampler
    from unalike.generators.diffusion.samplers import SAMPLERS, count_calls
    from unalike.generators.diffusion.settings import SampleSettings

    task = make_task(network, precision="auto", updates=1)
    task.network.train(False)
    count = GROUP["cpu"]
    samplers = {
        name: DiffusionSampler(task.model, SampleSettings(steps=steps, sampler=name))  # type: ignore[arg-type]
        for name in SAMPLERS
    }
    DiffusionSampler(task.model, SampleSettings(steps=2)).draw(range(count))
    contenders = {
        name: lambda sampler=sampler: time_once(lambda: sampler.draw(range(count))) / count
        for name, sampler in samplers.items()
    }
    return {
        "turns": take_turns(contenders, turns),
        "calls": {name: count_calls(name, steps) for name in samplers},
    }


def measure_memory(network: Network, *, updates: int = 3) -> dict[str, Any]:
    """Largest resident set (MiB) of this process once torch and diffusers are loaded, and after a few updates."""
    task = make_task(network, precision="auto", updates=1)
    parameters = sum(weight.numel() for weight in task.network.parameters())
    del task
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    time_tool(network, precision="auto", updates=updates)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"before": before, "after": after, "parameters": parameters}


def measure_device(network: Network, *, turns: int, updates: int, steps: int, device: str) -> dict[str, Any]:
    """Training against the measured peak of bfloat16 matrix products, and sampling, on one device."""
    from torch.utils.flop_counter import FlopCounterMode

    from unalike.generators.diffusion.sample import GROUP, DiffusionSampler
    from unalike.generators.diffusion.settings import SampleSettings

    task = make_task(network, precision="bfloat16", updates=1, device=device)
    with FlopCounterMode(display=False) as counter:
        task.loss(task.network, task.batch(0, slice(BATCH))).backward()
    flops = counter.get_total_flops() / BATCH
    count = GROUP.get(task.place.type, 64)
    task.network.train(False)
    sampler = DiffusionSampler(task.model, SampleSettings(steps=steps, precision="bfloat16"))
    DiffusionSampler(task.model, SampleSettings(steps=2)).draw(range(count))  # kernels are picked once
    drawing = [time_once(lambda: sampler.draw(range(count))) / count for _ in range(turns)]
    found = take_turns(
        {
            "peak": lambda: measure_peak(task.place),
            "update": lambda: time_tool(network, precision="bfloat16", updates=updates, device=device),
        },
        turns,
    )
    return {"turns": found, "flops": flops, "drawing": drawing, "device": name_device(task.place)}


def measure_peak(place: torch.device) -> float:
    """Operations per second of the fastest of ten bfloat16 products of square matrices."""
    import torch

    side = 8192 if place.type == "cuda" else 1024
    a, b = (torch.randn(side, side, device=place, dtype=torch.bfloat16) for _ in range(2))
    best = float("inf")
    for _ in range(11):
        began = now(place)
        a @ b
        best = min(best, now(place) - began)
    return 2 * side**3 / best


def name_device(place: torch.device) -> str:
    import torch

    return torch.cuda.get_device_name(place) if place.type == "cuda" else "cpu"


MEASURES: dict[str, Callable[..., dict[str, Any]]] = {
    "training": measure_training,
    "precision": measure_precision,
    "sampling": measure_sampling,
    "memory": measure_memory,
    "device": measure_device,
}


def measured(what: str, name: str, **options: Any) -> dict[str, Any]:
    """What a measure says in a process of its own."""
    command = [sys.executable, __file__, "--measure", what, "--network", name, "--options", json.dumps(options)]
    command += ["--processor-time"] if clock is time.process_time else []
    environment = os.environ | {"UNALIKE_PROGRESS": "off"}
    printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment).stdout
    found: dict[str, Any] = json.loads(printed.splitlines()[-1])
    return found


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):.3f} ({min(values):.3f} to {max(values):.3f})"


def ratios(over: list[float], under: list[float]) -> list[float]:
    return [a / b for a, b in zip(over, under, strict=True)]


def report_training(name: str, found: dict[str, Any]) -> None:
    turns = found["turns"]
    tool = statistics.median(turns["whole tool"])
    print(f"\n### Training: {NETWORKS[name].text}, batch {BATCH}\n")
    print("| | images/s | the whole tool trains so many times as fast |\n| --- | --- | --- |")
    for contender, seconds in turns.items():
        speed = BATCH / statistics.median(seconds)
        print(f"| {contender} | {speed:.1f} | {spread(ratios(seconds, turns['whole tool']))} |")
    pieces = ", ".join(f"{piece} {1000 * s:.2f} ms ({s / tool:.1%})" for piece, s in found["pieces"].items())
    print(f"\nOf an update of {1000 * tool:.0f} ms: {pieces}.")


def report_precision(name: str, found: dict[str, Any]) -> None:
    turns, profiles = found["turns"], found["profiles"]
    gains = ratios(turns["float32"], turns["bfloat16"])
    speeds = {name: BATCH / statistics.median(seconds) for name, seconds in turns.items()}
    print(f"\n### Precision: {NETWORKS[name].text}, batch {BATCH}\n")
    print(f"bfloat16 trains {spread(gains)} times as fast as float32", end="")
    print(f" ({speeds['bfloat16']:.1f} against {speeds['float32']:.1f} images/s).\n")
    print("| operations, ms an update | float32 | bfloat16 | gain |\n| --- | --- | --- | --- |")
    for kind in profiles["float32"]:
        slow, fast = (1000 * profiles[precision][kind] for precision in ("float32", "bfloat16"))
        gain = f"{slow / fast:.2f}" if fast > 0 else "–"
        print(f"| {kind} | {slow:.1f} | {fast:.1f} | {gain} |")


def report_sampling(name: str, found: dict[str, Any], steps: int) -> None:
    turns = found["turns"]
    print(f"\n### Sampling: {NETWORKS[name].text}, {steps} steps\n")
    print("| | network calls | images/s | takes so many times as long as ddim |\n| --- | --- | --- | --- |")
    for sampler, seconds in turns.items():
        speed = 1 / statistics.median(seconds)
        print(f"| {sampler} | {found['calls'][sampler]} | {speed:.2f} | {spread(ratios(seconds, turns['ddim']))} |")


def report_memory(found: dict[str, dict[str, Any]]) -> None:
    print("\n### Memory: largest resident set of a fresh process, MiB\n")
    print("| | weights | libraries and network | after training | growth |\n| --- | --- | --- | --- | --- |")
    for name, told in found.items():
        before, after = told["before"], told["after"]
        line = f"| {NETWORKS[name].text}, batch {BATCH} | {told['parameters']:,} | {before:,.0f} "
        print(f"{line}| {after:,.0f} | {after - before:,.0f} |")


def report_device(name: str, found: dict[str, Any], steps: int) -> None:
    turns = found["turns"]
    speed = [BATCH / seconds for seconds in turns["update"]]
    shares = [found["flops"] * fast / peak for fast, peak in zip(speed, turns["peak"], strict=True)]
    drawn = 1 / statistics.median(found["drawing"])
    paper = PAPER_IMAGES / (PAPER_DAYS * 86_400 * PAPER_CARDS)
    print(f"\n### {NETWORKS[name].text} on one {found['device']}, batch {BATCH}\n")
    print(f"Trained at {statistics.median(speed):.1f} images/s, {found['flops'] / 1e9:,.0f} GFLOP each: ", end="")
    print(f"{spread(shares)} of the measured peak ({statistics.median(turns['peak']) / 1e12:.1f} TFLOP/s in bfloat16).")
    print(
        f"Sampled at {drawn:.2f} images/s in {steps} steps (ddim). The paper's figure is {paper:.3f} images/s on",
        end="",
    )
    print(f" one A100 (1.5 days on eight for 100,000), its own sampler: {drawn / paper:,.0f} times as fast here.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer turns and steps: a look")
    parser.add_argument("--gpu", action="store_true", help="measure a graphics card instead")
    parser.add_argument("--only", choices=("training", "precision", "sampling", "memory"), nargs="+")
    parser.add_argument("--networks", choices=("tiny", "small"), nargs="+", default=["tiny", "small"])
    parser.add_argument("--turns", type=int, help="default: 7, 2 with --quick")
    parser.add_argument("--processor-time", action="store_true", help="of all threads, instead of time; for one thread")
    parser.add_argument("--measure", choices=MEASURES, help=argparse.SUPPRESS)
    parser.add_argument("--network", choices=NETWORKS, help=argparse.SUPPRESS)
    parser.add_argument("--options", type=json.loads, default={}, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.processor_time:
        global clock
        clock = time.process_time
    if options.measure:
        print(json.dumps(MEASURES[options.measure](NETWORKS[options.network], **options.options)))
        return
    turns = options.turns or (2 if options.quick else 7)
    steps = 5 if options.quick else DRAWN_STEPS
    if options.gpu:
        run_gpu(turns, steps)
    else:
        run_cpu(options, turns, steps)
    for name in NETWORKS:
        shutil.rmtree(WORK / f"diffusion-{name}", ignore_errors=True)


def run_gpu(turns: int, steps: int) -> None:
    # Asked of another process: this one stays small.
    code = "import sys, torch; sys.exit(not torch.cuda.is_available())"
    if subprocess.run([sys.executable, "-c", code], check=False).returncode:
        print("Not measured on a GPU: torch sees none here.")
        return
    found = measured("device", "medium", turns=turns, updates=20, steps=steps, device="cuda")
    report_device("medium", found, steps)


def run_cpu(options: argparse.Namespace, turns: int, steps: int) -> None:
    wanted = options.only or ("training", "precision", "sampling", "memory")
    updates = {"tiny": 10 if options.quick else 30, "small": 3 if options.quick else 6}
    print(f"{turns} turns, {os.environ.get('OMP_NUM_THREADS', os.cpu_count())} threads. Not measured on a GPU.")
    for name in options.networks:
        work = {"turns": turns, "updates": updates[name]}
        if "training" in wanted:
            report_training(name, measured("training", name, **work))
        if "precision" in wanted:
            report_precision(name, measured("precision", name, **work))
        if "sampling" in wanted:
            report_sampling(name, measured("sampling", name, turns=min(turns, 3), steps=steps), steps)
        sys.stdout.flush()
    if "memory" in wanted:
        for name in options.networks:  # the cohort is there by then, or is made first
            measured("memory", name, updates=1)
        report_memory({name: measured("memory", name) for name in options.networks})


if __name__ == "__main__":
    main()
