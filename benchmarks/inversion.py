"""Learning a concept for a frozen text-to-image base, and drawing of several, side by side in one run.

    python benchmarks/inversion.py                  # a few minutes on two cores; nothing else should run
    python benchmarks/inversion.py --quick          # a look
    python benchmarks/inversion.py --base FOLDER    # a real base; hours without a graphics card
    python benchmarks/inversion.py --gpu            # Stable Diffusion 2's networks, random weights, 512×512
    OMP_NUM_THREADS=1 python benchmarks/inversion.py --processor-time   # beside other work: ratios can be trusted more

Without --base, networks are those of the tiny base, with random weights. Each table has a process of its own, in which
contenders take turns; medians of the turns are shown with the least and the most, and ratios are taken within each
turn. Opening the base, and computing latents once, are not counted.

"Tool" is `Training.run` with `InversionTask`: loop, read-ahead, streams of random numbers, log and progress, but no
checkpoint. "Diffusers' loop" is that of the published example of textual inversion without anything around it: the text
encoder's table of tokens gets new rows, AdamW trains the whole table, the gradient of all other rows is zeroed, the
autoencoder encodes the image in every update, and U-Net and autoencoder are cast to the number format as a whole.
Images lie ready, read and resized, in memory for everybody. That both learn by the same gradient is checked first.

Memory is the largest resident set (on a graphics card: memory in tensors) beyond that of the open base, each contender
in a fresh process, in which libraries have worked before. Where latents are computed once, the autoencoder has left by
the time of the updates. What is resident is known on Linux alone.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

# No torch up here: a process that is started inherits the largest resident set of the one that starts it.
import diffusion  # benchmarks/diffusion.py; its clock is everybody's
from diffusion import name_device, now, ratios, spread, take_turns, time_once

if TYPE_CHECKING:
    import torch

    from unalike.generators.inversion.base import BaseModel
    from unalike.generators.inversion.train import InversionTask

IMAGES = diffusion.Network("inversion", 1, 32)  # what `diffusion.make_cohort` makes images for
SUBJECTS = {"cpu": 4, "cuda": 16}  # with an image each; 16 is what the tool encodes at once
WARM_UP = 3  # updates
LARGE_BATCH = 64  # at least as many images in an update of the tiny base whose memory is measured: one needs none
ASKED = 50_000  # updates, as de Wilde et al. (2023)
TOKENS = ("<new>", "<other>", "<third>")
RANDOM = "random"  # the base with the sizes below

# Stable Diffusion 2, trained for 512×512, and its numbers of weights in millions.
UNET: dict[str, Any] = {
    "sample_size": 64,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    "cross_attention_dim": 1024,
    "attention_head_dim": (5, 10, 20, 20),
    "use_linear_projection": True,
}
TEXT_ENCODER: dict[str, Any] = {
    "vocab_size": 49_408,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "projection_dim": 512,
    "num_hidden_layers": 23,
    "num_attention_heads": 16,
    "max_position_embeddings": 77,
    "hidden_act": "gelu",
}
VAE: dict[str, Any] = {
    "sample_size": 512,
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 4,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "scaling_factor": 0.18215,
}
MILLIONS = {"unet": 866, "text_encoder": 340, "vae": 84}


@dataclass(frozen=True)
class Contender:
    """A way of learning: whose loop, what is learned, when images are encoded, whether features are kept."""

    text: str
    plain: bool = False
    encoding: bool = False
    lora: bool = False
    checkpointing: bool = False


CONTENDERS = {
    "tool": Contender("tool, embedding"),
    "encoding": Contender("tool, image encoded in every update", encoding=True),
    "plain": Contender("diffusers' loop", plain=True, encoding=True),
    "plain-once": Contender("diffusers' loop, latents computed once", plain=True),
    "checkpointed": Contender("tool, embedding, gradient checkpointing", checkpointing=True),
    "lora": Contender("tool, LoRA", lora=True),
    "lora-checkpointed": Contender("tool, LoRA, gradient checkpointing", lora=True, checkpointing=True),
}


def build_random(place: torch.device) -> dict[str, Any]:
    """The networks of Stable Diffusion 2 with random weights."""
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    with place, torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return {
            "unet": UNet2DConditionModel(**UNET),
            "text_encoder": CLIPTextModel(CLIPTextConfig(**TEXT_ENCODER)),
            "vae": AutoencoderKL(**VAE),
        }


def count_work() -> dict[str, dict[str, float]]:
    """Weights of each network of `build_random`, and operations of an update on one image, by shapes alone.

    Nothing is computed, and no memory taken. Ends if the numbers of weights are not the published ones.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    networks = build_random(torch.device("meta"))
    weights = {name: sum(weight.numel() for weight in network.parameters()) for name, network in networks.items()}
    for name, count in weights.items():
        if round(count / 1e6) != MILLIONS[name]:
            raise SystemExit(f"the {name} has {count:,} weights, not {MILLIONS[name]} million: correct its sizes")
    unet, text_encoder, vae = (networks[name].requires_grad_(False) for name in MILLIONS)
    operations: dict[str, float] = {}

    def counted(name: str, work: Callable[[], Any]) -> Any:
        with FlopCounterMode(display=False) as counter:
            found = work()
        operations[name] = float(counter.get_total_flops())
        return found

    with torch.device("meta"):
        x, z_t, t = torch.empty(1, 3, 512, 512), torch.empty(1, 4, 64, 64), torch.zeros(1, dtype=torch.long)
        vectors = torch.empty(1, 77, 1024, requires_grad=True)
        text_encoder.get_input_embeddings().register_forward_hook(lambda *_: vectors)
        numbers = torch.zeros(1, 77, dtype=torch.long)
        counted("encoding the image", lambda: vae.encode(x).latent_dist.mean)
        hidden = counted("text encoder", lambda: text_encoder(numbers).last_hidden_state)
        predicted = counted("U-Net", lambda: unet(z_t, t, encoder_hidden_states=hidden).sample)
        counted("backward to the vectors", lambda: predicted.sum().backward())
    return {"weights": weights, "operations": operations}


def open_given(base: str, *, device: str, precision: str) -> BaseModel:
    """The base in a folder, one of Stable Diffusion 2's sizes with random weights (`RANDOM`), or a tiny one ("")."""
    from unalike.devices import pick_device, resolve_precision
    from unalike.generators.inversion.base import PARTS, assemble_base, open_base
    from unalike.generators.inversion.tiny import build_tiny_base

    if base not in ("", RANDOM):
        return open_base(base, device=device, precision=precision)
    place = pick_device(device)
    tiny = build_tiny_base()
    parts: dict[str, Any] = {name: getattr(tiny, name) for name in PARTS}
    if base == RANDOM:
        parts |= build_random(place)
    return assemble_base(**parts, name=base or "tiny", device=place, precision=resolve_precision(precision, place))


def make_task(base: BaseModel, contender: Contender, *, batch: int, updates: int) -> InversionTask:
    """What `train_inversion` would train after `WARM_UP` and further updates.

    Of a contender that encodes in every update, the latents are the images (N, 3, H, W) in [−1, 1].
    """
    import torch

    from unalike.cohort.store import open_images
    from unalike.generators.data import open_train_images
    from unalike.generators.inversion.base import without_vae
    from unalike.generators.inversion.concept import Additions, Concept, begin_vectors
    from unalike.generators.inversion.pixels import choose_mapping, resize_to
    from unalike.generators.inversion.settings import InversionSettings
    from unalike.generators.inversion.train import InversionTask, LatentBatch, encode_all
    from unalike.generators.processes import join_processes

    class Encoding(InversionTask):
        """Encodes its images in every update."""

        def loss(self, network: torch.nn.Module, batch: LatentBatch) -> torch.Tensor:
            with torch.no_grad():
                latents = self.base.encode(batch.latents)
            return super().loss(network, replace(batch, latents=latents))

    settings = InversionSettings(
        base=base.name,
        steps=WARM_UP + updates,
        batch_size=batch,
        checkpoint_every=1e9,
        method="lora" if contender.lora else "embedding",
        learning_rate=1e-4 if contender.lora else 5e-3,
        gradient_checkpointing=contender.checkpointing,
        precision=base.precision,  # type: ignore[arg-type]
    )
    cohort = open_images(diffusion.make_cohort(IMAGES))
    images = open_train_images(cohort, subjects=SUBJECTS[base.place.type], seed=0)
    mapping, side = choose_mapping(images.scale.channels, images.scale.levels), max(base.native_size)
    if contender.encoding:
        shown: Any = resize_to(mapping.to_rgb(images.scale.to_unit(images.read_all())), side, side)
    else:
        shown = encode_all(images, base, mapping, side=side, processes=join_processes(str(base.place)))
        base = without_vae(base)
    if contender.checkpointing:
        base.unet.enable_gradient_checkpointing()
    network: Concept | Additions
    if contender.lora:
        network = Additions(base, rank=settings.rank, prompts=["a photo"], seed=0)
    else:
        first = begin_vectors(base, TOKENS[:1], count=settings.vectors, words="", seed=0)
        network = Concept(base, first, TOKENS[:1])
    kind = Encoding if contender.encoding else InversionTask
    return kind(images, shown, settings, base, network, mapping, [0] * len(images), side, 0)


def time_tool(task: InversionTask) -> float:
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

    processes = join_processes(str(task.base.place))
    with tempfile.TemporaryDirectory() as place:
        Unsaved(
            Timed(task, task.settings, seed=0, processes=processes),
            task.settings,
            out=Path(place),
            identity="benchmark",
            processes=processes,
            checkpoints="checkpoints",
        ).run()
    return (times[1] - times[0]) / (task.settings.steps - WARM_UP)


class Plain:
    """Diffusers' example of textual inversion on the task's base, images and first vectors."""

    def __init__(self, task: InversionTask) -> None:
        import torch

        from unalike.generators.inversion.base import libraries_silent

        self.task, self.base = task, task.base
        self.dtype = torch.bfloat16 if self.base.precision == "bfloat16" else torch.float32
        with libraries_silent():  # they ask for another way to cast
            self.base.unet.to(self.dtype)
            if self.base.vae is not None:
                self.base.vae.to(self.dtype)
        tokenizer, encoder = self.base.tokenizer, self.base.text_encoder
        (vectors,) = task.network.learned().values()
        self.known = encoder.get_input_embeddings().num_embeddings
        encoder.resize_token_embeddings(self.known + len(vectors), mean_resizing=False)
        self.table = encoder.get_input_embeddings().weight.requires_grad_(True)
        with torch.no_grad():
            self.table[self.known :] = vectors.to(self.table)
        numbers = [tokenizer.bos_token_id, *range(self.known, len(self.table)), tokenizer.eos_token_id]
        numbers += [tokenizer.pad_token_id] * (self.base.room + 2 - len(numbers))
        self.numbers = torch.tensor([numbers], device=self.base.place)
        # Decay would change the rows whose gradient is zero.
        self.optimizer = torch.optim.AdamW([self.table], lr=task.settings.learning_rate, weight_decay=0)
        self.images = torch.from_numpy(task.latents).to(self.base.place)

    def loss(self, z_0: torch.Tensor, epsilon: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """That of latents z_0 (B, c, h, w) with this noise at times t (B,)."""
        from torch.nn.functional import mse_loss

        from unalike.devices import compute_in

        scheduler = self.base.scheduler
        z_t = scheduler.add_noise(z_0, epsilon, t)
        with compute_in(self.base.precision, self.base.place):
            hidden = self.base.text_encoder(self.numbers.expand(len(z_0), -1))[0].to(self.dtype)
        predicted = self.base.unet(z_t, t, encoder_hidden_states=hidden).sample
        velocity = scheduler.config.prediction_type == "v_prediction"
        target = scheduler.get_velocity(z_0, epsilon, t) if velocity else epsilon
        return mse_loss(predicted.float(), target.float())

    def descend(self, loss: torch.Tensor) -> None:
        """The gradient of the new rows; that of all others is zeroed."""
        loss.backward()  # type: ignore[no-untyped-call]
        if self.table.grad is not None:
            self.table.grad[: self.known] = 0

    def update(self) -> None:
        import torch

        place = self.base.place
        picked = self.images[torch.randint(len(self.images), (self.task.settings.batch_size,))].to(self.dtype)
        if self.base.vae is not None:
            picked = self.base.vae.encode(picked).latent_dist.sample() * self.base.scale
        t = torch.randint(self.task.levels, (len(picked),), device=place)
        self.descend(self.loss(picked, torch.randn_like(picked), t))
        self.optimizer.step()
        self.optimizer.zero_grad()


def time_plain(task: InversionTask) -> float:
    """Seconds of an update of a loop that has nothing around it."""
    loop, updates = Plain(task), task.settings.steps - WARM_UP
    for _ in range(WARM_UP):
        loop.update()
    began = now(task.base.place)
    for _ in range(updates):
        loop.update()
    return (now(task.base.place) - began) / updates


def check_alike(base: str, *, device: str) -> float:
    """How far the gradients of both loops are apart, of their norm. Ends if they are not the same."""
    import torch

    task = make_task(open_given(base, device=device, precision="float32"), CONTENDERS["tool"], batch=2, updates=1)
    batch, place = task.batch(0, slice(2)), task.base.place
    epsilon = torch.randn(batch.latents.shape, generator=torch.Generator().manual_seed(0)).to(place)
    task.errors(task.network, batch, epsilon).mean().backward()  # type: ignore[no-untyped-call]
    (weight,) = task.network.parameters()
    plain = Plain(task)
    plain.descend(plain.loss(batch.latents.to(place), epsilon, batch.t.to(place)))
    one, other = weight.grad, plain.table.grad
    if one is None or other is None or not one.abs().max() > 0 or other[: plain.known].any():
        raise SystemExit("a loop has no gradient, or one where nothing is learned")
    apart = float((one - other[plain.known :]).norm() / one.norm())
    if not apart < 1e-3:
        raise SystemExit(f"the loops learn by different gradients: {apart:.1e} of their norm apart")
    return apart


def time_contender(base: str, name: str, *, batch: int, updates: int, device: str = "cpu") -> float:
    """Seconds of an update."""
    contender = CONTENDERS[name]
    task = make_task(open_given(base, device=device, precision="auto"), contender, batch=batch, updates=updates)
    return time_plain(task) if contender.plain else time_tool(task)


def measure_training(*, base: str, turns: int, batch: int, updates: int) -> dict[str, Any]:
    """Seconds of an update of each contender."""
    apart = check_alike(base, device="cpu")
    contenders: dict[str, Callable[[], float]] = {
        name: lambda name=name: time_contender(base, name, batch=batch, updates=updates)  # type: ignore[misc]
        for name in CONTENDERS
    }
    return {"turns": take_turns(contenders, turns), "apart": apart}


def resident(line: str) -> float:
    """MiB that are resident (VmRSS), or most that were since `begin_peak` (VmHWM)."""
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(text.split()[1]) for text in status if text.startswith(line)) / 1024


def begin_peak(place: torch.device) -> float:
    """Forget the largest memory until now; gives the memory there is (MiB)."""
    import torch

    gc.collect()
    if place.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(place)
        return torch.cuda.memory_allocated(place) / 2**20
    Path("/proc/self/clear_refs").write_text("5")
    return resident("VmRSS")


def peak(place: torch.device) -> float:
    """The largest memory since `begin_peak` (MiB)."""
    import torch

    return torch.cuda.max_memory_allocated(place) / 2**20 if place.type == "cuda" else resident("VmHWM")


def measure_memory(*, base: str, name: str, batch: int, updates: int, device: str) -> dict[str, Any]:
    """Memory (MiB) with the base open, and the most beyond that while latents are computed and in updates; and time."""
    contender = CONTENDERS[name]
    time_contender("", name, batch=1, updates=1, device=device)  # libraries load and keep what they need
    opened = open_given(base, device=device, precision="auto")
    place = opened.place
    rest = begin_peak(place)
    task = make_task(opened, contender, batch=batch, updates=updates)
    del opened
    encoding = peak(place) - rest
    begin_peak(place)
    seconds = time_plain(task) if contender.plain else time_tool(task)
    found = {"rest": rest, "encoding": encoding, "updates": peak(place) - rest, "seconds": seconds}
    return found | {"device": name_device(place), "side": task.side}


def measure_sampling(*, base: str, turns: int, steps: int) -> dict[str, list[float]]:
    """Seconds of an image for one, two and three concepts; as many are drawn as the tool draws at once."""
    from unalike.generators.inversion.concept import begin_vectors
    from unalike.generators.inversion.model import InversionModel
    from unalike.generators.inversion.sample import GROUP, InversionSampler
    from unalike.generators.inversion.settings import InversionDrawSettings, InversionSettings

    opened = open_given(base, device="cpu", precision="auto")
    task = make_task(opened, CONTENDERS["encoding"], batch=1, updates=1)
    learned = begin_vectors(opened, TOKENS, count=InversionSettings.vectors, words="", seed=0)
    model = InversionModel(opened, learned, {}, {}, task.images.scale, task.mapping, (IMAGES.side,) * 2, task.side)
    contenders: dict[str, Callable[[], float]] = {}
    many = GROUP["cpu"]
    for count in range(1, len(TOKENS) + 1):
        prompt = " AND ".join(f"{1 / count:.3f}*{token}" for token in TOKENS[:count])
        sampler = InversionSampler(model, InversionDrawSettings(steps=steps, prompt=prompt))
        sampler.draw([0])  # texts are encoded once
        contenders[str(count)] = lambda sampler=sampler: (  # type: ignore[misc]
            time_once(lambda: sampler.draw(range(many))) / many
        )
    return take_turns(contenders, turns)


MEASURES: dict[str, Callable[..., Any]] = {
    "work": count_work,
    "training": measure_training,
    "memory": measure_memory,
    "sampling": measure_sampling,
}


def measured(what: str, **options: Any) -> Any:
    """What a measure says in a process of its own."""
    command = [sys.executable, __file__, "--measure", what, "--options", json.dumps(options)]
    command += ["--processor-time"] if diffusion.clock is time.process_time else []
    # Larger tensors go back to the system as soon as they are free, or the resident set would say nothing of them.
    environment = os.environ | {"UNALIKE_PROGRESS": "off"}
    environment |= {"MALLOC_MMAP_THRESHOLD_": "65536"} if what == "memory" else {}
    printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment).stdout
    return json.loads(printed.splitlines()[-1])


def name_base(base: str) -> str:
    return Path(base).name if base else "tiny base"


def report_work(found: dict[str, dict[str, float]]) -> None:
    print("Stable Diffusion 2, weights: ", end="")
    print(", ".join(f"{name} {count:,}" for name, count in found["weights"].items()), end=".\n")
    encoding, *rest = found["operations"].values()
    print("GFLOP of an update on one image of 512×512: ", end="")
    print(", ".join(f"{name} {count / 1e9:,.0f}" for name, count in found["operations"].items()), end=". ")
    print(f"Encoding it in every update is {1 + encoding / sum(rest):.2f} times the work.")


def report_training(base: str, found: dict[str, Any], batch: int) -> None:
    turns = found["turns"]
    print(f"\n### Training: {name_base(base)}, batch {batch}\n")
    print("| | updates/s | takes so many times as long as the tool |\n| --- | --- | --- |")
    for name, seconds in turns.items():
        speeds = spread([1 / each for each in seconds])
        print(f"| {CONTENDERS[name].text} | {speeds} | {spread(ratios(seconds, turns['tool']))} |")
    print(f"\nGradients of the tool and of diffusers' loop are {found['apart']:.0e} of their norm apart (float32).")


def report_sampling(base: str, turns: dict[str, list[float]], steps: int) -> None:
    print(f"\n### Sampling: {name_base(base)}, {steps} steps\n")
    print(
        "| concepts | U-Net passes a step | images/s | takes so many times as long as one |\n| --- | --- | --- | --- |"
    )
    for count, seconds in turns.items():
        speeds = spread([1 / each for each in seconds])
        print(f"| {count} | {int(count) + 1} | {speeds} | {spread(ratios(seconds, turns['1']))} |")


def report_memory(base: str, found: dict[str, dict[str, Any]], batch: int) -> None:
    print(f"\n### Memory beyond the open base, MiB: {name_base(base)}, batch {batch}\n")
    print("| | base and libraries | computing latents once | updates |\n| --- | --- | --- | --- |")
    for name, told in found.items():
        once = "–" if CONTENDERS[name].encoding else f"{told['encoding']:,.1f}"
        print(f"| {CONTENDERS[name].text} | {told['rest']:,.0f} | {once} | {told['updates']:,.1f} |")


def report_device(base: str, found: dict[str, dict[str, Any]], batch: int) -> None:
    first = next(iter(found.values()))
    size = f"{first['side']}×{first['side']}"
    what = "Stable Diffusion 2's networks" if base == RANDOM else name_base(base)
    print(f"\n### {what}, {size}, batch {batch}, bfloat16, on one {first['device']}\n")
    print(f"| | updates/s | hours for {ASKED:,} | peak in updates, GiB | computing latents once, GiB |")
    print("| --- | --- | --- | --- | --- |")
    for name, told in found.items():
        # The base itself counts here: a card has to hold it.
        most, once = ((told["rest"] + told[key]) / 1024 for key in ("updates", "encoding"))
        hours = told["seconds"] * ASKED / 3600
        encoded = "–" if CONTENDERS[name].encoding else f"{once:.1f}"
        print(f"| {CONTENDERS[name].text} | {1 / told['seconds']:.2f} | {hours:.2f} | {most:.1f} | {encoded} |")


def main() -> None:
    sections = ("training", "sampling", "memory")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer turns, updates and steps: a look")
    parser.add_argument("--gpu", action="store_true", help="measure a graphics card instead")
    parser.add_argument("--base", default="", metavar="FOLDER", help="a folder of diffusers; default: random weights")
    parser.add_argument("--batch-size", type=int, default=1, help="images of an update; default: 1, as the tool's")
    parser.add_argument("--only", choices=sections, nargs="+")
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
    if options.base and not Path(options.base).is_dir():
        parser.error(f"{options.base} is no folder")
    if options.gpu:
        run_gpu(options.base or RANDOM, options.batch_size, quick=options.quick)
    else:
        run_cpu(options, options.only or sections, options.turns or (2 if options.quick else 7))
    shutil.rmtree(diffusion.WORK / f"diffusion-{IMAGES.size}", ignore_errors=True)


def run_gpu(base: str, batch: int, *, quick: bool) -> None:
    # Asked of another process: this one stays small.
    code = "import sys, torch; sys.exit(not torch.cuda.is_available())"
    report_work(measured("work"))
    if subprocess.run([sys.executable, "-c", code], check=False).returncode:
        print("\nNot measured on a GPU: torch sees none here.")
        return
    work = {"batch": batch, "updates": 10 if quick else 100, "device": "cuda"}
    report_device(base, {name: measured("memory", base=base, name=name, **work) for name in CONTENDERS}, batch)


def run_cpu(options: argparse.Namespace, wanted: Sequence[str], turns: int) -> None:
    print(f"{turns} turns, {os.environ.get('OMP_NUM_THREADS', os.cpu_count())} threads. Not measured on a GPU.")
    base, batch, quick = options.base, options.batch_size, options.quick
    updates = 2 if base else 10 if quick else 50
    if "training" in wanted:
        found = measured("training", base=base, turns=turns, batch=batch, updates=updates)
        report_training(base, found, batch)
        sys.stdout.flush()
    if "sampling" in wanted:
        steps = 5 if quick or base else 20
        report_sampling(base, measured("sampling", base=base, turns=turns, steps=steps), steps)
        sys.stdout.flush()
    if "memory" in wanted:
        batch = batch if base else max(batch, LARGE_BATCH)
        work = {"batch": batch, "updates": 1, "device": "cpu"}
        told = {name: measured("memory", base=base, name=name, **work) for name in CONTENDERS}
        report_memory(base, told, batch)


if __name__ == "__main__":
    main()
