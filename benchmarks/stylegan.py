"""Training and sampling of StyleGAN, and the operations it is made of, side by side in one run.

    python benchmarks/stylegan.py           # an hour or two on two cores; nothing else should run
    python benchmarks/stylegan.py --quick   # a look
    python benchmarks/stylegan.py --gpu     # five channels of 256×256 on a graphics card
    OMP_NUM_THREADS=1 python benchmarks/stylegan.py --processor-time   # beside other work: ratios can be trusted more

Each table has a process of its own, in which contenders take turns; medians of the turns are shown with the least and
the most, and ratios are taken within each turn. "Whole tool" is `Training.run` with `Adversaries`: loop, read-ahead,
streams of random numbers, weight averages, log and progress, but no checkpoint. "Bare loop" makes the same updates of
the same networks by the same optimizers, in the same precision, on one batch that lies ready, and keeps no averages.

Penalties come at every 4th (path length) and 16th (R1) update only. The time of an update is that of one without them
+ 1/4 of what the first adds + 1/16 of what the second adds, each the median of such updates. Memory is the largest
resident set of a fresh process.
"""

from __future__ import annotations

import argparse
import json
import math
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
import diffusion  # benchmarks/diffusion.py; its clock is everybody's
from diffusion import measure_peak, name_device, now, ratios, spread, take_turns, time_once

if TYPE_CHECKING:
    import torch

    from unalike.generators.stylegan.network import Generator
    from unalike.generators.stylegan.train import Adversaries

BATCH = 16
PERIOD = 16  # updates after which penalties come as before
STRENGTH = 0.5  # of the fixed augmentation
SAMPLED = 32  # images, four groups
ASKED = 100_000  # images, of the estimate for a graphics card: as many as Akbar et al. (2025) drew
FORMATS = ("float32", "bfloat16")
SIDES, FEATURES = (8, 16, 32, 64), (64, 128, 256, 512)
SMALL_WORK = 0.03  # seconds that a piece of work is repeated to fill


@dataclass(frozen=True)
class Network:
    """What is trained: a size of both networks, and the images it is for."""

    size: str
    channels: int
    side: int

    @property
    def text(self) -> str:
        return f"{self.size} {self.channels}×{self.side}×{self.side}"


NETWORKS = {
    "tiny-32": Network("tiny", 1, 32),
    "tiny-64": Network("tiny", 1, 64),
    "small-64": Network("small", 1, 64),
    "medium-256": Network("medium", 5, 256),
}


def images_of(name: str) -> diffusion.Network:
    """What `diffusion.make_cohort` makes images for."""
    return diffusion.Network(f"stylegan-{name}", NETWORKS[name].channels, NETWORKS[name].side)


def make_learner(
    name: str, *, precision: str, updates: int, augmented: bool = False, device: str = "cpu"
) -> Adversaries:
    """What `train_stylegan` would train, with weights that have seen nothing."""
    from unalike.cohort.store import open_images
    from unalike.generators.data import open_train_images
    from unalike.generators.processes import join_processes
    from unalike.generators.stylegan.network import build_networks, choose_shape
    from unalike.generators.stylegan.settings import StyleganSettings
    from unalike.generators.stylegan.train import Adversaries

    network = NETWORKS[name]
    settings = StyleganSettings(
        size=network.size,  # type: ignore[arg-type]
        steps=updates,
        batch_size=BATCH,
        checkpoint_every=1e9,
        precision=precision,  # type: ignore[arg-type]
        augment="fixed" if augmented else "none",
        augment_strength=STRENGTH if augmented else 0.0,
    )
    if settings.r1_every != PERIOD or PERIOD % settings.path_every:
        raise SystemExit("the penalties come at other updates by now: change PERIOD")
    shape = choose_shape(settings, channels=network.channels, height=network.side, width=network.side)
    images = open_train_images(open_images(diffusion.make_cohort(images_of(name))), subjects=None, seed=0)
    generator, discriminator = build_networks(shape, seed=0)
    processes = join_processes(device)
    return Adversaries(images, settings, generator, discriminator, labels=[], classes=(), seed=0, processes=processes)


# An update's seconds, in three parts: without penalties, and what path length penalty and R1 penalty add when due.
Parts = list[float]


def parts_of(seconds: dict[int, float], path_every: int) -> Parts:
    """Medians over updates: ``seconds`` by the number of the update."""
    kinds: dict[str, list[float]] = {"plain": [], "path": [], "both": []}
    for n, each in seconds.items():
        kinds["both" if n % PERIOD == 0 else "path" if n % path_every == 0 else "plain"].append(each)
    plain, path, both = (statistics.median(each) for each in kinds.values())
    return [plain, (path - plain) / path_every, (both - path) / PERIOD]


def time_tool(
    name: str, *, precision: str, updates: int, augmented: bool = False, device: str = "cpu"
) -> dict[int, float]:
    """Seconds of each update of the whole tool, from number `PERIOD` on; on a graphics card all have their mean."""
    from unalike.generators.loop import Training

    class Unsaved(Training):  # type: ignore[type-arg]
        """Writes no checkpoint."""

        def save(self) -> None:
            pass

    options: dict[str, Any] = {"precision": precision, "augmented": augmented, "device": device}
    learner = make_learner(name, updates=PERIOD + updates, **options)
    learner.prepare(0, [learner.batch(0, slice(BATCH))])()  # with both penalties: kernels are picked once
    update, times = learner.update, []
    asynchronous = learner.place.type == "cuda"

    def timed(n: int, parts: Any) -> torch.Tensor:
        told = update(n, parts)
        if not asynchronous or n + 1 in (PERIOD, PERIOD + updates):
            times.append(now(learner.place))
        return told

    learner.update = timed  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as place:
        training = Unsaved(
            learner,
            learner.settings,
            out=Path(place),
            identity="benchmark",
            processes=learner.processes,
            checkpoints="checkpoints",
        )
        training.step = PERIOD - 1
        training.run()
    if asynchronous:
        return dict.fromkeys(range(PERIOD, PERIOD + updates), (times[1] - times[0]) / updates)
    return {PERIOD + k: times[k + 1] - times[k] for k in range(updates)}


def time_bare(name: str, *, precision: str, updates: int) -> dict[int, float]:
    """Seconds of each update of a loop that has nothing around it, from number `PERIOD` on."""
    import torch

    from unalike.devices import compute_in
    from unalike.generators.stylegan.losses import (
        discriminator_loss,
        follow_path_length,
        generator_loss,
        path_lengths,
        r1_penalty,
    )

    learner = make_learner(name, precision=precision, updates=1)
    settings, place, optimizers = learner.settings, learner.place, learner.optimizers
    generator, discriminator = learner.generator, learner.discriminator
    real = learner.batch(0, slice(BATCH)).images
    mean = torch.zeros(())

    def ask(images: torch.Tensor) -> torch.Tensor:
        with compute_in(precision, place):
            said: torch.Tensor = discriminator(images)
        return said

    def draw() -> torch.Tensor:
        ws, noise = mixed_styles(generator, settings.mixing)
        with compute_in(precision, place):
            return generator.synthesize(ws, noise)

    def step(which: str, loss: torch.Tensor) -> None:
        optimizers[which].zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizers[which].step()

    def update(n: int) -> None:
        nonlocal mean
        generator.requires_grad_(True)
        discriminator.requires_grad_(False)
        step("generator/", generator_loss(ask(draw())))
        if n % settings.path_every == 0:
            ws, noise = mixed_styles(generator, settings.mixing)
            ws = ws[::2]
            images = generator.synthesize(ws, noise[::2])
            lengths = path_lengths(images, ws, torch.randn_like(images))
            weight = settings.path_weight * settings.path_every
            step("generator/", (lengths - mean).square().mean() * weight)
            mean = follow_path_length(mean, lengths)
        generator.requires_grad_(False)
        discriminator.requires_grad_(True)
        with torch.no_grad():
            fake = draw()
        step("discriminator/", discriminator_loss(ask(real), ask(fake)))
        if n % settings.r1_every == 0:
            step("discriminator/", r1_penalty(discriminator, real, None) * (settings.gamma / 2 * settings.r1_every))

    update(0)
    update(PERIOD - 1)
    return {n: time_once(lambda n=n: update(n)) for n in range(PERIOD, PERIOD + updates)}  # type: ignore[misc]


def mixed_styles(generator: Generator, mixing: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Styles of a batch, of two latents each, and the noise of all layers."""
    import torch

    shape = generator.shape
    z = torch.randn(2, BATCH, shape.latent)
    first, second = generator.mapping(z[0]), generator.mapping(z[1])
    cut = torch.where(torch.rand(BATCH) < mixing, torch.randint(1, shape.layers, (BATCH,)), shape.layers)
    later = torch.arange(shape.layers) >= cut[:, None]
    return torch.where(later[:, :, None], second[:, None], first[:, None]), torch.randn(BATCH, shape.noise_count)


def measure_training(*, network: str, turns: int, updates: int) -> dict[str, list[Parts]]:
    """Parts of an update, turn by turn: whole tool with and without augmentation, bare loop; in each precision."""
    every = make_learner(network, precision="float32", updates=1).settings.path_every
    contenders: dict[str, Callable[[], Any]] = {}
    for form in FORMATS:
        rest: dict[str, Any] = {"precision": form, "updates": updates}
        contenders[f"whole tool, {form}"] = lambda rest=rest: parts_of(time_tool(network, **rest), every)
        contenders[f"whole tool, {form}, augmented"] = lambda rest=rest: parts_of(
            time_tool(network, **rest, augmented=True), every
        )
        contenders[f"bare loop, {form}"] = lambda rest=rest: parts_of(time_bare(network, **rest), every)
    return take_turns(contenders, turns)  # type: ignore[return-value]


def measure_sampling(*, network: str, turns: int, steps: int) -> dict[str, list[float]]:
    """Seconds of an image: StyleGAN in each precision, and tiny diffusion in bfloat16."""
    from unalike.generators.stylegan.model import StyleganModel
    from unalike.generators.stylegan.sample import StyleganSampler
    from unalike.generators.stylegan.settings import StyleganDrawSettings

    learner = make_learner(network, precision="float32", updates=1)
    contenders: dict[str, Callable[[], float]] = {}
    for form in FORMATS:
        model = StyleganModel(learner.generator.train(False), (), learner.images.scale, learner.place, form)
        sampler = StyleganSampler(model, StyleganDrawSettings())
        contenders[form] = lambda sampler=sampler: time_once(lambda: sampler.draw(range(SAMPLED))) / SAMPLED
    contenders["diffusion"] = open_diffusion(network, steps=steps)
    for work in contenders.values():
        work()  # kernels are picked once
    return take_turns(contenders, turns)


def open_diffusion(network: str, *, steps: int) -> Callable[[], float]:
    """What says the seconds of an image that tiny diffusion draws by DPM-Solver++, in bfloat16."""
    from unalike.devices import pick_device
    from unalike.generators.diffusion.conditions import Conditions
    from unalike.generators.diffusion.model import DiffusionModel
    from unalike.generators.diffusion.network import build_network, place_network
    from unalike.generators.diffusion.sample import GROUP, DiffusionSampler
    from unalike.generators.diffusion.settings import DiffusionSettings, SampleSettings
    from unalike.generators.diffusion.train import scheduler_of

    settings, images = DiffusionSettings(size="tiny"), NETWORKS[network]
    place, count = pick_device("cpu"), GROUP["cpu"]
    built = build_network(settings, channels=images.channels, height=images.side, width=images.side, seed=0)
    model = DiffusionModel(
        network=place_network(built, place).train(False),
        scheduler=scheduler_of(settings),
        conditions=Conditions(),
        codec=None,
        scale=make_learner(network, precision="float32", updates=1).images.scale,
        place=place,
        precision="bfloat16",
    )
    sampler = DiffusionSampler(model, SampleSettings(steps=steps, sampler="dpm++"))
    return lambda: time_once(lambda: sampler.draw(range(count))) / count


def measure_memory(*, network: str, updates: int = 1) -> dict[str, float]:
    """Largest resident set (MiB) of this process once libraries and networks were there, and after a few updates.

    The first update, which does not count in `time_tool`, has both penalties.
    """
    learner = make_learner(network, precision="auto", updates=1)
    networks = (learner.generator, learner.discriminator)
    parameters = sum(weight.numel() for each in networks for weight in each.parameters())
    del learner, networks
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    time_tool(network, precision="auto", updates=updates)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"before": before, "after": after, "parameters": parameters}


def repeated(work: Callable[[], object], times: int) -> float:
    """Seconds of ``work``: the mean of so many."""

    def all_of_it() -> None:
        for _ in range(times):
            work()

    return time_once(all_of_it) / times


def take_pieces(works: dict[str, Callable[[], object]], turns: int) -> dict[str, list[float]]:
    """Seconds of each of these small works, which take turns; all are repeated as often."""
    for work in works.values():
        work()
    times = max(1, math.ceil(SMALL_WORK / max(1e-6, time_once(next(iter(works.values()))))))
    return take_turns({name: lambda work=work: repeated(work, times) for name, work in works.items()}, turns)


def passes_of(run: Callable[[], torch.Tensor], inputs: list[torch.Tensor]) -> dict[str, Callable[[], object]]:
    """``run`` forward alone, and forward and backward to ``inputs``."""
    import torch

    with torch.no_grad():
        slope = torch.randn_like(run())

    def forward() -> None:
        with torch.no_grad():
            run()

    return {"forward": forward, "both": lambda: torch.autograd.grad(run(), inputs, slope)}


def measure_modulated(*, turns: int, features: list[int], sides: list[int]) -> list[dict[str, Any]]:
    """Seconds of a modulated convolution of 8 images (a group of the sampler): fused, and scaled by channel."""
    import torch

    from unalike.devices import compute_in
    from unalike.generators.stylegan.layers import modulated_conv

    place, found = torch.device("cpu"), []
    random = torch.Generator().manual_seed(0)
    for count in features:
        for side in sides:
            for up in (False, True):
                weight = torch.randn(count, count, 3, 3, generator=random).requires_grad_(True)
                styles = (1 + torch.randn(8, count, generator=random) / 4).requires_grad_(True)
                entry: dict[str, Any] = {"features": count, "side": side, "up": up}
                drawn = torch.randn(8, count, side // (2 if up else 1), side // (2 if up else 1), generator=random)
                both = [modulated_conv(drawn, weight, styles, up=up, fused=fused) for fused in (True, False)]
                torch.testing.assert_close(*both, rtol=1e-3, atol=1e-3)
                for form in FORMATS:
                    x = drawn.to(getattr(torch, form)).requires_grad_(True)

                    def run(fused: bool, *, x: Any = x, weight: Any = weight, styles: Any = styles) -> Any:
                        with compute_in(form, place):  # noqa: B023 - it runs before the next form
                            return modulated_conv(x, weight, styles, up=up, fused=fused)  # noqa: B023

                    ways = {name: passes_of(lambda f=f: run(f), [x, weight, styles]) for name, f in KINDS.items()}
                    for part in ("forward", "both"):
                        works = {name: passes[part] for name, passes in ways.items()}
                        entry[f"{form} {part}"] = take_pieces(works, turns)
                found.append(entry)
    return found


KINDS = {"scaled": False, "fused": True}


def by_convolution(x: torch.Tensor, *, up: bool) -> torch.Tensor:
    """`layers.upsample` or `layers.downsample` as the depthwise convolution that they stand for."""
    import torch
    import torch.nn.functional as F

    from unalike.generators.stylegan.layers import TAPS

    taps = torch.tensor(TAPS, dtype=x.dtype, device=x.device) / sum(TAPS)
    kernel = torch.outer(taps, taps).expand(x.shape[1], 1, 4, 4)
    if not up:
        return F.conv2d(x, kernel, padding=1, stride=2, groups=x.shape[1])
    wide = x.new_zeros(*x.shape[:2], x.shape[2], 2, x.shape[3], 2)
    wide[:, :, :, 0, :, 0] = x
    return F.conv2d(F.pad(wide.flatten(4, 5).flatten(2, 3), (2, 1, 2, 1)), 4 * kernel, groups=x.shape[1])


def measure_resampling(*, turns: int, sizes: list[tuple[int, int]]) -> list[dict[str, Any]]:
    """Seconds of matrix products, as in `layers`, and of convolutions, on `BATCH` images of these (channels, side)."""
    import torch

    from unalike.generators.stylegan import layers

    found = []
    random = torch.Generator().manual_seed(0)
    for up, product in ((False, layers.downsample), (True, layers.upsample)):
        for channels, side in sizes:
            drawn = torch.randn(BATCH, channels, side, side, generator=random)
            ways = {"products": product, "convolution": lambda x, up=up: by_convolution(x, up=up)}
            torch.testing.assert_close(ways["convolution"](drawn), product(drawn), rtol=1e-4, atol=1e-5)
            entry: dict[str, Any] = {"up": up, "channels": channels, "side": side}
            for form in FORMATS:
                x = drawn.to(getattr(torch, form)).requires_grad_(True)
                passes = {text: passes_of(lambda way=way, x=x: way(x), [x]) for text, way in ways.items()}  # type: ignore[misc]
                for part in ("forward", "both"):
                    entry[f"{form} {part}"] = take_pieces({text: each[part] for text, each in passes.items()}, turns)
            found.append(entry)
    return found


def count_work(work: Callable[[], object]) -> float:
    """Operations of all matrix products and convolutions in ``work``, forward and backward.

    Torch's `FlopCounterMode` also follows modules, and cannot where a gradient is taken to be differentiated again.
    """
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils.flop_counter import flop_registry

    total = 0.0

    class Counter(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal total
            out = func(*args, **(kwargs or {}))
            count = flop_registry.get(func.overloadpacket)
            total += count(*args, **(kwargs or {}), out_val=out) if count else 0
            return out

    with Counter():
        work()
    return total


def measure_device(*, network: str, turns: int, updates: int, groups: int, device: str) -> dict[str, Any]:
    """Training against the measured peak of bfloat16 matrix products, and sampling, on one device."""
    from unalike.generators.stylegan.model import StyleganModel
    from unalike.generators.stylegan.sample import GROUP, StyleganSampler
    from unalike.generators.stylegan.settings import StyleganDrawSettings

    learner = make_learner(network, precision="bfloat16", updates=1, device=device)
    place, every = learner.place, learner.settings.path_every
    work: dict[int, float] = {}
    for n in (1, every, PERIOD):  # without penalties, with one, with both
        work[n] = count_work(learner.prepare(n, [learner.batch(n, slice(BATCH))]))
    count = groups * GROUP.get(place.type, 64)
    model = StyleganModel(learner.generator.train(False), (), learner.images.scale, place, "bfloat16")
    sampler = StyleganSampler(model, StyleganDrawSettings())
    sampler.draw(range(count))  # kernels are picked once
    drawing = [time_once(lambda: sampler.draw(range(count))) / count for _ in range(turns)]

    def update() -> float:
        seconds = time_tool(network, precision="bfloat16", updates=updates, device=device)
        return statistics.fmean(seconds.values())

    found = take_turns({"peak": lambda: measure_peak(place), "update": update}, turns)
    return {"turns": found, "flops": sum(parts_of(work, every)), "drawing": drawing, "device": name_device(place)}


MEASURES: dict[str, Callable[..., Any]] = {
    "training": measure_training,
    "sampling": measure_sampling,
    "modulated": measure_modulated,
    "resampling": measure_resampling,
    "memory": measure_memory,
    "device": measure_device,
}


def measured(what: str, **options: Any) -> Any:
    """What a measure says in a process of its own."""
    command = [sys.executable, __file__, "--measure", what, "--options", json.dumps(options)]
    command += ["--processor-time"] if diffusion.clock is time.process_time else []
    environment = os.environ | {"UNALIKE_PROGRESS": "off"}
    printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment).stdout
    return json.loads(printed.splitlines()[-1])


def report_training(name: str, found: dict[str, list[Parts]]) -> None:
    seconds = {text: [sum(parts) for parts in turns] for text, turns in found.items()}
    print(f"\n### Training: {NETWORKS[name].text}, batch {BATCH}\n")
    print("| | images/s | path length penalty, share of the time | R1 penalty, share |\n| --- | --- | --- | --- |")
    for text, turns in found.items():
        speeds = [BATCH / each for each in seconds[text]]
        shares = [spread([parts[k] / sum(parts) for parts in turns]) for k in (1, 2)]
        print(f"| {text} | {spread(speeds)} | {shares[0]} | {shares[1]} |")
    print("\n| so many times as fast | float32 | bfloat16 |\n| --- | --- | --- |")
    for text, one, other in (
        ("the whole tool as the bare loop", "bare loop, {}", "whole tool, {}"),
        ("with augmentation as without", "whole tool, {}", "whole tool, {}, augmented"),
    ):
        cells = [spread(ratios(seconds[one.format(form)], seconds[other.format(form)])) for form in FORMATS]
        print(f"| {text} | {cells[0]} | {cells[1]} |")
    gains = ratios(seconds["whole tool, float32"], seconds["whole tool, bfloat16"])
    print(f"\nbfloat16 trains {spread(gains)} times as fast as float32 (whole tool, no augmentation).")


def report_sampling(name: str, turns: dict[str, list[float]], steps: int) -> None:
    texts = {form: f"StyleGAN, {form}" for form in FORMATS}
    texts["diffusion"] = f"diffusion tiny, {steps} steps dpm++, bfloat16"
    print(f"\n### Sampling: {NETWORKS[name].text}\n")
    print("| | images/s | StyleGAN in bfloat16 is so many times as fast |\n| --- | --- | --- |")
    for key, seconds in turns.items():
        speeds, gains = [1 / each for each in seconds], ratios(seconds, turns["bfloat16"])
        print(f"| {texts[key]} | {spread(speeds)} | {'–' if key == 'bfloat16' else spread(gains)} |")


def report_modulated(found: list[dict[str, Any]]) -> None:
    print("\n### Modulated convolution 3×3, 8 images: fused (grouped) takes so many times as long as scaled\n")
    parts = [(f"{form} {part}", form, part) for form in FORMATS for part in ("forward", "both")]
    heads = [f"{form}, {'forward' if part == 'forward' else 'forward and backward'}" for _, form, part in parts]
    print(f"| features, side out | {' | '.join(heads)} |\n| --- |{' --- |' * len(heads)}")
    for entry in found:
        cells = [spread(ratios(entry[key]["fused"], entry[key]["scaled"])) for key, _, _ in parts]
        text = f"{entry['features']}, {entry['side']}{', doubled' if entry['up'] else ''}"
        print(f"| {text} | {' | '.join(cells)} |")


def report_resampling(found: list[dict[str, Any]]) -> None:
    print(f"\n### Resampling, {BATCH} images: a convolution takes so many times as long as two matrix products\n")
    parts = [(f"{form} {part}", form, part) for form in FORMATS for part in ("forward", "both")]
    heads = [f"{form}, {'forward' if part == 'forward' else 'forward and backward'}" for _, form, part in parts]
    print(f"| | {' | '.join(heads)} |\n| --- |{' --- |' * len(heads)}")
    for entry in found:
        cells = [spread(ratios(entry[key]["convolution"], entry[key]["products"])) for key, _, _ in parts]
        text = f"{'doubled' if entry['up'] else 'halved'}, {entry['channels']} × {entry['side']} × {entry['side']}"
        print(f"| {text} | {' | '.join(cells)} |")


def report_memory(found: dict[str, dict[str, float]]) -> None:
    print("\n### Memory: largest resident set of a fresh process, MiB\n")
    print("| | weights of both | libraries and networks | after training | growth |\n| --- | --- | --- | --- | --- |")
    for name, told in found.items():
        before, after = told["before"], told["after"]
        line = f"| {NETWORKS[name].text}, batch {BATCH} | {told['parameters']:,} | {before:,.0f} "
        print(f"{line}| {after:,.0f} | {after - before:,.0f} |")


def report_device(name: str, found: dict[str, Any]) -> None:
    turns = found["turns"]
    speeds = [BATCH / seconds for seconds in turns["update"]]
    shares = [found["flops"] / seconds / peak for seconds, peak in zip(turns["update"], turns["peak"], strict=True)]
    print(f"\n### {NETWORKS[name].text} on one {found['device']}, batch {BATCH}, bfloat16, no augmentation\n")
    print(f"Trained at {spread(speeds)} images/s, {found['flops'] / BATCH / 1e9:,.0f} GFLOP each: ", end="")
    print(
        f"{spread(shares)} of the measured peak ({statistics.median(turns['peak']) / 1e12:.1f} TFLOP/s in bfloat16;",
        end="",
    )
    print(" penalties are computed in float32 and counted alike).")
    print(f"{ASKED:,} images would be sampled in {spread([ASKED * each for each in found['drawing']])} s ", end="")
    print("(Akbar et al. 2025 report minutes for their StyleGAN).")


def main() -> None:
    names = [name for name in NETWORKS if name != "medium-256"]
    sections = ("training", "sampling", "modulated", "resampling", "memory")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer turns, steps and sizes: a look")
    parser.add_argument("--gpu", action="store_true", help="measure a graphics card instead")
    parser.add_argument("--only", choices=sections, nargs="+")
    parser.add_argument("--networks", choices=names, nargs="+", help="default: all, tiny-32 with --quick")
    parser.add_argument("--turns", type=int, help="default: 7, 2 with --quick")
    parser.add_argument("--processor-time", action="store_true", help="of all threads, instead of time; for one thread")
    parser.add_argument("--measure", choices=MEASURES, help=argparse.SUPPRESS)
    parser.add_argument("--options", type=json.loads, default={}, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.processor_time:
        diffusion.clock = time.process_time
    if options.measure:
        print(json.dumps(MEASURES[options.measure](**options.options)))
        return
    turns = options.turns or (2 if options.quick else 7)
    if options.gpu:
        run_gpu(turns)
    else:
        wanted, networks = options.only or sections, options.networks or (names[:1] if options.quick else names)
        run_cpu(wanted, networks, turns, quick=options.quick)
    for name in NETWORKS:
        shutil.rmtree(diffusion.WORK / f"diffusion-{images_of(name).size}", ignore_errors=True)


def run_gpu(turns: int) -> None:
    # Asked of another process: this one stays small.
    code = "import sys, torch; sys.exit(not torch.cuda.is_available())"
    if subprocess.run([sys.executable, "-c", code], check=False).returncode:
        print("Not measured on a GPU: torch sees none here.")
        return
    name = "medium-256"
    report_device(name, measured("device", network=name, turns=turns, updates=2 * PERIOD, groups=16, device="cuda"))


def run_cpu(wanted: list[str], networks: list[str], turns: int, *, quick: bool) -> None:
    print(f"{turns} turns, {os.environ.get('OMP_NUM_THREADS', os.cpu_count())} threads. Not measured on a GPU.")
    steps = 5 if quick else diffusion.DRAWN_STEPS
    for name in networks:
        large = NETWORKS[name].size != "tiny"
        # Five updates have each kind at least once.
        work = {"turns": min(turns, 3) if large else turns, "updates": 5 if quick or large else 2 * PERIOD}
        if "training" in wanted:
            report_training(name, measured("training", network=name, **work))
        if "sampling" in wanted:
            report_sampling(name, measured("sampling", network=name, turns=turns, steps=steps), steps)
        sys.stdout.flush()
    if "modulated" in wanted:
        features, sides = ((64, 256), (8, 32)) if quick else (FEATURES, SIDES)
        report_modulated(measured("modulated", turns=turns, features=features, sides=sides))
    if "resampling" in wanted:
        sizes = [(32, 32), (128, 32)] if quick else [(16, 64), (32, 32), (64, 16), (256, 16), (256, 64)]
        report_resampling(measured("resampling", turns=turns, sizes=sizes))
    sys.stdout.flush()
    if "memory" in wanted:
        for name in networks:  # the cohort is there by then, or is made first
            measured("memory", network=name)
        report_memory({name: measured("memory", network=name) for name in networks})


if __name__ == "__main__":
    main()
