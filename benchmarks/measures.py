"""Fidelity, utility and explanation, each beside the plain library, side by side in one run.

    python benchmarks/measures.py           # about 40 minutes on two cores; nothing else should run
    python benchmarks/measures.py --quick   # everything at a tenth of the size: a look, its ratios say little
    python benchmarks/measures.py --gpu     # the networks on a graphics card
    OMP_NUM_THREADS=1 python benchmarks/measures.py --processor-time   # beside other work: ratios can be trusted more

Contenders take turns; medians of the turns are shown with the least and the most, and ratios are taken within each
turn. Weights are random, the architectures are the real ones. What libraries say is compared, and the run ends where
it differs: features by 1e-4 of the largest, distances by 1e-6 of their value, precision and recall by 0.002 (they
compute in float32).

* features: `embed_cached` without a cache, from a cohort on disk (1×256×256), against the network of torch-fidelity or
  torchvision called on images that lie in memory as it takes them, 64 at a time. There is no library for the cohort's
  own features: against them stands their encoder alone, on images made small before.
* distances: each contender in a fresh process. Memory is its largest resident set (VmHWM; Linux alone), libraries and
  both sets of features included. ``prc`` of torch-fidelity gets float32, as its networks give; all others float64.
* training: `train_with_checks` with ResNet-18, batches of 32, against a loop around the same network, optimizer and
  number format on batches that lie prepared on the device. Time runs from the end of one update to that of a later
  one. Waiting for data is the time from the end of an update until the next batch is about to enter the network:
  images are picked, brought to the device, resized and changed. On a graphics card both moments are events in its own
  queue, read when all is done: what was prepared while it still worked is no waiting.
* LIME: `explain_by_lime`, 50 superpixels and 300 pictures, against captum's Lime with superpixels found before, and
  against the network alone on as many pictures.

Distances are NumPy's and worked out by the processor, with ``--gpu`` too.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import numpy as np

# No torch up here: what computes distances without it has no need of its memory.
import diffusion  # benchmarks/diffusion.py; its clock is everybody's
import unalike  # noqa: F401 - loads nothing, but makes torchvision importable
from diffusion import name_device, now, ratios, spread, take_turns

if TYPE_CHECKING:
    import torch
    from torch import nn

    from unalike.cohort.store import ImageFolder
    from unalike.fidelity.features import Features
    from unalike.records import FloatArray, Pixels
    from unalike.utility.classifier import Classifier
    from unalike.utility.training import Frame, Labelled

SIDE = 256  # pixels of the images that features are made of
LIBRARY_BATCH = 64  # torch-fidelity's own
FEATURES = {"own": 2560, "inception": 256, "resnet50": 256}  # images of each
OWN_SIDE = 64

COUNT, WIDTH = 10_000, 2_048  # of two sets of features
LATENT = 16  # directions in which they really differ
MOST_MEMORY = 2048  # MiB
AGREEMENT = {"frechet": 1e-6, "kernel": 1e-6, "manifold": 2e-3}  # relative, but for the shares of the last
TABLES = 8  # of n × n float64 numbers, as many as a library may hold at once

BATCH = 32
WARM_UP = 1  # updates
STORED = {64: 64, 224: SIDE}  # side that the network takes: side of the stored images
UPDATES = {64: 40, 224: 10}
IMAGES = 8 * BATCH

SUPERPIXELS, PICTURES = 50, 300
EXPLAINED = {64: 4, 224: 1}  # images


def draw_images(count: int, side: int) -> Pixels:
    """Smooth random images (count, 1, side, side), 8 bits."""
    random = np.random.default_rng(0)
    mix = np.stack([np.interp(np.linspace(0, 7, side), np.arange(8), row) for row in np.eye(8)], axis=1)
    return np.stack([np.clip(mix @ random.normal(128, 60, (1, 8, 8)) @ mix.T, 0, 255) for _ in range(count)]).astype(
        np.uint8
    )


@contextlib.contextmanager
def made_cohort(images: Pixels) -> Iterator[ImageFolder]:
    """A cohort of these images, each of a subject of its own, for as long as the context."""
    from unalike import folders
    from unalike.cohort.store import ImageWriter, open_images

    with tempfile.TemporaryDirectory(prefix="unalike-measures-") as place:
        out = Path(place) / "cohort"
        folders.begin_folder(out, kind="cohort", settings={})
        height, width = images.shape[2:]
        writer = ImageWriter(out, channels=["t1"], height=height, width=width, dtype=images.dtype)
        for index, image in enumerate(images):
            writer.append(image, {"subject": f"s{index}", "source": f"f{index}", "slice": 0, "role": "train"})
        folders.finish_folder(out, kind="cohort", settings={}, seed=0, inputs={}, content=writer.close())
        yield open_images(out)


# Features


def measure_features(*, kind: str, count: int, turns: int, device: str) -> dict[str, Any]:
    """Seconds of an image: `embed_cached`, and what else there is for features of this kind."""
    from unalike.devices import pick_device
    from unalike.fidelity.features import embed_cached

    place, images = pick_device(device), draw_images(count, SIDE)
    opener = open_own if kind == "own" else open_inception if kind == "inception" else open_resnet
    with made_cohort(images) as folder:
        features, others = opener(folder, images, place)
        rows = np.arange(count)
        agree(embed_cached(features, folder, rows, None), others["library"](), kind)  # and kernels are picked once
        works: Works = {"unalike": lambda: embed_cached(features, folder, rows, None), **others}
        return {"turns": take_works(works, place, count, turns), "device": name_device(place)}


def take_works(
    works: dict[str, Callable[[], object]], place: torch.device, count: int, turns: int
) -> dict[str, list[float]]:
    """Seconds of one of ``count`` items of each of these works, which take turns."""

    def timed(work: Callable[[], object]) -> float:
        began = now(place)
        work()
        return (now(place) - began) / count

    contenders: dict[str, Callable[[], float]] = {}
    for name, work in works.items():
        contenders[name] = partial(timed, work)
    return take_turns(contenders, turns)


def agree(ours: FloatArray, theirs: FloatArray, kind: str) -> None:
    """End the run if features (n, D) differ. Own ones hold more behind those of their encoder."""
    difference = np.abs(ours[:, : theirs.shape[1]] - theirs).max() / np.abs(theirs).max()
    if not difference <= 1e-4:
        raise SystemExit(f"features {kind} differ by {difference:.1e} of the largest from those of the plain loop")


# Works of a kind of features: what `features` is measured against, by name.
Works = dict[str, Callable[[], Any]]


def open_own(folder: ImageFolder, images: Pixels, place: torch.device) -> tuple[Features, Works]:
    """The cohort's own features with random weights; their encoder alone, and their frequency bands alone."""
    import torch

    from unalike.fidelity.own import AT_ONCE, SETTINGS, AutoencoderFeatures, CohortFeatures, describe_bands
    from unalike.similarity.embedding.network import build_networks, shrink
    from unalike.similarity.embedding.space import Embedding

    encoder = build_networks(SETTINGS, channels=1, seed=0)[0].to(place).train(False).requires_grad_(False)
    space = Embedding(SETTINGS, 0, (0,), folder.dtype.name, 255, "", (), encoder)
    small = shrink(images, channels=(0,), side=SETTINGS.side, highest=255)

    @torch.no_grad()
    def plain() -> FloatArray:
        found = [(encoder(part.to(place)) - encoder.centre).cpu() for part in small.split(AT_ONCE)]  # type: ignore[no-untyped-call]
        return torch.cat(found).numpy().astype(np.float64)

    features = CohortFeatures(AutoencoderFeatures(space), folder.size)
    return features, {"library": plain, "bands": lambda: describe_bands(images, highest=255)}


def open_inception(folder: ImageFolder, images: Pixels, place: torch.device) -> tuple[Features, Works]:
    """Features of the FID's Inception-v3, and torch-fidelity's extractor on images of three colours in memory."""
    import torch
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    from unalike.fidelity.pretrained import _Inception, open_features

    with tempfile.TemporaryDirectory() as where:
        path = Path(where) / "inception.pth"
        torch.save(random_weights(_Inception), path)
        extractor = FeatureExtractorInceptionV3("x", ["2048"], str(path)).to(place)
        features = open_features("inception", cohort=folder, weights=path, fetch=False, device=place)
    ready = torch.from_numpy(images).expand(-1, 3, -1, -1).contiguous()
    return features, {"library": lambda: embed_plainly(lambda part: extractor(part)[0], ready, place)}


def open_resnet(folder: ImageFolder, images: Pixels, place: torch.device) -> tuple[Features, Works]:
    """Features of ResNet-50, and torchvision's network behind torchvision's transforms."""
    import torch
    from safetensors.torch import save_file
    from torchvision.models import resnet50
    from torchvision.transforms.v2 import functional as transforms

    from unalike.fidelity.pretrained import open_features
    from unalike.vision.networks import IMAGENET_DEVIATION, IMAGENET_MEAN

    with tempfile.TemporaryDirectory() as where:
        path, weights = Path(where) / "resnet50.safetensors", random_weights(resnet50)
        save_file(weights, path)
        features = open_features("resnet50", cohort=folder, weights=path, fetch=False, device=place)
    network = resnet50()
    network.load_state_dict(weights)
    network.fc = torch.nn.Identity()
    network = network.to(place).train(False)
    ready = torch.from_numpy(images).expand(-1, 3, -1, -1).contiguous()

    def ask(part: torch.Tensor) -> torch.Tensor:
        pixels = transforms.resize(part.float() / 255, [224, 224], antialias=True)
        found: torch.Tensor = network(transforms.normalize(pixels, list(IMAGENET_MEAN), list(IMAGENET_DEVIATION)))
        return found

    return features, {"library": lambda: embed_plainly(ask, ready, place)}


def embed_plainly(ask: Callable[[torch.Tensor], torch.Tensor], ready: torch.Tensor, place: torch.device) -> FloatArray:
    """What ``ask`` says of images (n, 3, H, W), in the library's batches."""
    import torch

    with torch.no_grad():
        found = torch.cat([ask(part.to(place)).cpu() for part in ready.split(LIBRARY_BATCH)])  # type: ignore[no-untyped-call]
    return np.asarray(found.double().numpy())


def random_weights(build: Callable[[], nn.Module]) -> dict[str, torch.Tensor]:
    """Weights of a network whose batch normalization has seen something: images stay apart in what it finds."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        state: dict[str, torch.Tensor] = build().state_dict()
        for key, tensor in state.items():
            if key.endswith("running_mean"):
                tensor.normal_(0, 0.1)
            elif key.endswith("running_var"):
                tensor.uniform_(0.05, 0.25)
    return state


# Distances


def draw_features(count: int, width: int) -> tuple[FloatArray, FloatArray]:
    """Real and synthetic features (count, width): normal, mostly in few directions, synthetic ones narrower and moved.

    Made block by block, so that memory peaks later.
    """
    mix = np.random.default_rng(0).standard_normal((LATENT, width)) / math.sqrt(LATENT)
    sides = []
    for side, (size, shift) in enumerate([(1.0, 0.0), (0.8, 0.2)]):
        random, found = np.random.default_rng(side + 1), np.empty((count, width))
        for begin in range(0, count, 500):
            part = found[begin : begin + 500]
            random.standard_normal(out=part)
            part *= 0.1
            part += (size * random.standard_normal((len(part), LATENT)) + shift) @ mix
        sides.append(found)
    return sides[0], sides[1]


def run_frechet(real: FloatArray, synthetic: FloatArray) -> list[float]:
    from unalike.fidelity.frechet import frechet_distance

    return [frechet_distance(real, synthetic)]


def run_torchmetrics_frechet(real: FloatArray, synthetic: FloatArray) -> list[float]:
    import torch
    from torchmetrics.image.fid import _compute_fid

    a, b = torch.from_numpy(real), torch.from_numpy(synthetic)
    return [float(_compute_fid(a.mean(dim=0), torch.cov(a.T), b.mean(dim=0), torch.cov(b.T)))]


def run_scipy_frechet(real: FloatArray, synthetic: FloatArray) -> list[float]:
    from scipy.linalg import sqrtm

    a, b = (np.cov(each, rowvar=False) for each in (real, synthetic))
    apart = ((real.mean(axis=0) - synthetic.mean(axis=0)) ** 2).sum()
    return [float(apart + np.trace(a) + np.trace(b) - 2 * np.trace(sqrtm(a @ b)).real)]


def run_manifold(real: FloatArray, synthetic: FloatArray) -> list[float]:
    from unalike.fidelity.manifold import measure_manifold

    names = np.arange(len(real)).astype(np.str_)
    found = measure_manifold(real, synthetic, real_subjects=names, synthetic_subjects=names)
    return [float(found.precision.mean()), float(found.recall.mean())]


def run_fidelity_manifold(real: FloatArray, synthetic: FloatArray) -> list[float]:
    import torch
    from torch_fidelity.metric_prc import prc_features_to_metric

    sides = [torch.from_numpy(each).float() for each in (synthetic, real)]
    found = prc_features_to_metric(*sides, verbose=False)
    return [found["precision"], found["recall"]]


def run_kernel(real: FloatArray, synthetic: FloatArray) -> list[float]:
    from unalike.fidelity.kernel import kernel_distance

    return [kernel_distance(real, synthetic)]


def run_fidelity_kernel(real: FloatArray, synthetic: FloatArray) -> list[float]:
    """One part of all images: the same number."""
    import torch
    from torch_fidelity.metric_kid import kid_features_to_metric

    sides = [torch.from_numpy(each) for each in (real, synthetic)]
    found = kid_features_to_metric(*sides, kid_subsets=1, kid_subset_size=len(real), verbose=False)
    return [found["kernel_inception_distance_mean"]]


DISTANCES: dict[str, dict[str, Callable[[FloatArray, FloatArray], list[float]]]] = {
    "frechet": {
        "unalike, `frechet_distance`": run_frechet,
        "torchmetrics, `_compute_fid` with the covariances": run_torchmetrics_frechet,
        "SciPy, `sqrtm` with the covariances": run_scipy_frechet,
    },
    "manifold": {
        "unalike, `measure_manifold`": run_manifold,
        "torch-fidelity, `prc` (no density, no coverage)": run_fidelity_manifold,
    },
    "kernel": {
        "unalike, `kernel_distance`": run_kernel,
        "torch-fidelity, KID of one part of all": run_fidelity_kernel,
    },
}


def measure_distance(*, section: str, name: str, count: int, width: int) -> dict[str, Any]:
    """Seconds, values, and MiB of this process at its largest; ``before`` is that with both sets in memory."""
    work = DISTANCES[section][name]
    real, synthetic = draw_features(count, width)
    few = slice(min(64, count))
    work(real[few], synthetic[few])  # libraries are imported
    before, began = peak_memory(), diffusion.clock()
    values = work(real, synthetic)
    seconds = diffusion.clock() - began
    return {"seconds": seconds, "values": values, "before": before, "peak": peak_memory()}


def peak_memory() -> float:
    """MiB that this process had resident at its largest (Linux; else NaN)."""
    told = [line.split()[1] for line in read_lines("/proc/self/status") if line.startswith("VmHWM")]
    return float(told[0]) / 1024 if told else math.nan


def read_lines(path: str) -> list[str]:
    with contextlib.suppress(OSError):
        return Path(path).read_text().splitlines()
    return []


def affordable(count: int) -> int:
    """As many images as `TABLES` tables of all pairs take half the free memory, at most ``count``."""
    told = [line.split()[1] for line in read_lines("/proc/meminfo") if line.startswith("MemAvailable")]
    return min(count, math.isqrt(int(told[0]) * 1024 // 2 // (8 * TABLES))) if told else count


# Training


class Moments:
    """Moments in the device's own time: on a graphics card events in its queue, for which nobody waits until asked."""

    def __init__(self, place: torch.device) -> None:
        self.place = place
        self.noted: dict[str, list[Any]] = {"ready": [], "done": []}

    def note(self, what: str) -> None:
        """The next batch is ``ready`` to enter the network, or an update is ``done``."""
        import torch

        if self.place.type == "cuda":
            moment: Any = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            moment.record()
        else:
            moment = diffusion.clock()
        self.noted[what].append(moment)

    def between(self, first: Any, last: Any) -> float:
        """Seconds."""
        import torch

        if self.place.type != "cuda":
            return float(last - first)
        torch.cuda.synchronize(self.place)
        return float(first.elapsed_time(last)) / 1000

    def results(self) -> list[float]:
        """Seconds of an update after the `WARM_UP`, and the share of them before its batch was ready."""
        done, ready = self.noted["done"][WARM_UP - 1 :], self.noted["ready"][WARM_UP:]
        whole = self.between(done[0], done[-1])
        waited = sum(self.between(*pair) for pair in zip(done[:-1], ready, strict=True))
        return [whole / (len(done) - 1), waited / whole]


@contextlib.contextmanager
def noted_moments(place: torch.device) -> Iterator[Moments]:
    """Moments of all trainings of classifiers in the context."""
    import torch
    from torch.optim.optimizer import register_optimizer_step_post_hook

    from unalike.utility.classifier import Classifier

    moments, logits = Moments(place), Classifier.logits

    def noting(self: Classifier, prepared: torch.Tensor) -> torch.Tensor:
        if torch.is_grad_enabled():  # not when it predicts
            moments.note("ready")
        return logits(self, prepared)

    hook = register_optimizer_step_post_hook(lambda *_: moments.note("done"))
    try:
        with mock.patch.object(Classifier, "logits", noting):
            yield moments
    finally:
        hook.remove()


def make_training(
    side: int, *, precision: str, updates: int, device: str
) -> tuple[Classifier, Labelled, Labelled, Frame]:
    """A fresh ResNet-18, images to train on and eight to check, and the frame of so many updates after `WARM_UP`."""
    from unalike.devices import pick_device
    from unalike.utility.settings import UtilitySettings
    from unalike.utility.training import Frame, Labelled, open_classifier

    settings = UtilitySettings(
        side=side,
        mix_batches=WARM_UP + updates,
        mix_checks=1,
        precision=precision,  # type: ignore[arg-type]
    )
    pixels = draw_images(IMAGES, STORED[side])
    truth = np.arange(IMAGES) % 2
    images = Labelled(pixels, truth, truth.astype(np.str_))
    frame = Frame(("a", "b"), (0,), (STORED[side], STORED[side]), 255, settings, 0, pick_device(device))
    return open_classifier(frame, "resnet18", images, seed=0), images, images.take(np.arange(8)), frame


def time_tool(side: int, *, augment: bool, **rest: Any) -> list[float]:
    """Seconds of an update of `train_with_checks`, and the share of waiting for data."""
    from unalike.utility.training import Recipe, train_with_checks

    classifier, images, check, frame = make_training(side, **rest)
    recipe = Recipe(1e-4, 0.0, BATCH, augment=augment)
    with noted_moments(frame.device) as moments:
        train_with_checks(classifier, images, check, recipe, frame=frame, seed=0, say=lambda _: None)
    return moments.results()


def time_bare(side: int, *, updates: int, **rest: Any) -> list[float]:
    """Seconds of an update of a loop that has nothing around it, and what passes between two updates."""
    import torch
    from torch.nn import functional as F

    classifier, images, _, frame = make_training(side, updates=updates, **rest)
    place, network = frame.device, classifier.network.train()
    ready = classifier.prepare(images.pixels).split(BATCH)  # type: ignore[no-untyped-call]
    truth = torch.from_numpy(images.truth).to(place).split(BATCH)  # type: ignore[no-untyped-call]
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-4)
    with noted_moments(place) as moments:
        for update in range(WARM_UP + updates):
            moments.note("ready")
            with torch.autocast(place.type, torch.bfloat16, enabled=classifier.precision == "bfloat16"):
                scores = network(ready[update % len(ready)])
            optimizer.zero_grad(set_to_none=True)
            F.cross_entropy(scores.float(), truth[update % len(ready)]).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    return moments.results()


def measure_training(*, side: int, updates: int, turns: int, device: str) -> dict[str, Any]:
    """Seconds of an update and shares of waiting, turn by turn, in each number format that the machine has."""
    from unalike.devices import has_bfloat16, pick_device

    place = pick_device(device)
    formats = ["float32", "bfloat16"] if has_bfloat16(place) else ["float32"]
    contenders: dict[str, Callable[[], Any]] = {}
    for form in formats:
        rest: dict[str, Any] = {"precision": form, "updates": updates, "device": device}
        contenders[f"bare loop, {form}"] = partial(time_bare, side, **rest)
        contenders[f"unalike, {form}"] = partial(time_tool, side, augment=False, **rest)
        contenders[f"unalike, {form}, augmented"] = partial(time_tool, side, augment=True, **rest)
    return {"turns": take_turns(contenders, turns), "device": name_device(place)}


# LIME


def measure_lime(*, side: int, count: int, turns: int, pictures: int, device: str) -> dict[str, Any]:
    """Seconds of an explanation: `explain_by_lime`, captum's Lime, and the network alone on as many pictures."""
    import torch
    from captum.attr import Lime

    from unalike.explain.lime import explain_by_lime, find_superpixels
    from unalike.utility.classifier import AT_ONCE

    classifier, images, _, frame = make_training(side, precision="auto", updates=1, device=device)
    place, pixels = frame.device, images.pixels[:count]
    classifier.network.train(False)
    ready = classifier.prepare(pixels)
    masks = [torch.from_numpy(find_superpixels(each[0], SUPERPIXELS)).to(place) for each in enlarged(ready)]

    def explain() -> None:
        for seed, image in enumerate(pixels):
            explain_by_lime(classifier, image, target=0, segments=SUPERPIXELS, samples=pictures, seed=seed)

    @torch.no_grad()
    def ask(shown: torch.Tensor) -> torch.Tensor:
        return classifier.logits(shown).softmax(dim=1)

    def captum() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # its Lasso may find nothing to say of random weights
            for image, mask in zip(ready, masks, strict=True):
                options = {"n_samples": pictures, "perturbations_per_eval": AT_ONCE}
                Lime(ask).attribute(image[None], target=0, feature_mask=mask[None, None], **options)

    many = ready[:1].expand(pictures, -1, -1, -1).contiguous()

    def alone() -> None:
        for _ in range(count):
            for part in many.split(AT_ONCE):  # type: ignore[no-untyped-call]
                ask(part)

    works: Works = {"unalike": explain, "captum": captum, "alone": alone}
    for work in works.values():
        work()  # kernels are picked once
    found = take_works(works, place, count, turns)
    return {"turns": found, "device": name_device(place), "precision": classifier.precision}


def enlarged(prepared: torch.Tensor) -> Iterator[Pixels]:
    """Each prepared image (1, C, S, S) as 8-bit pixels: superpixels for captum, of the size that it sees."""
    for image in prepared.cpu().numpy():
        low, high = image.min(), image.max()
        yield np.rint(255 * (image - low) / max(high - low, 1e-6)).astype(np.uint8)[None]


# Reports

MEASURES: dict[str, Callable[..., dict[str, Any]]] = {
    "features": measure_features,
    "distance": measure_distance,
    "training": measure_training,
    "lime": measure_lime,
}


def measured(what: str, **options: Any) -> dict[str, Any]:
    """What a measure says in a process of its own."""
    command = [sys.executable, __file__, "--measure", what, "--options", json.dumps(options)]
    command += ["--processor-time"] if diffusion.clock is time.process_time else []
    environment = os.environ | {"UNALIKE_PROGRESS": "off"}
    done = subprocess.run(command, check=False, stdout=subprocess.PIPE, text=True, env=environment)
    if done.returncode:
        raise SystemExit(f"{what} {options} could not be measured: see above")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def on(device: str) -> str:
    return "" if device == "cpu" else f", {device}"


FEATURE_NAMES = {
    "own": {
        "unalike": "unalike, own features",
        "library": "their encoder alone",
        "bands": "their frequency bands alone",
    },
    "inception": {"unalike": "unalike, Inception-v3", "library": "torch-fidelity's extractor"},
    "resnet50": {"unalike": "unalike, ResNet-50", "library": "torchvision's network"},
}


def report_features(found: dict[str, dict[str, Any]], counts: dict[str, int]) -> None:
    told = ", ".join(f"{counts[kind]:,} images for {kind}" for kind in found)
    print(f"\n### Features of 1×{SIDE}×{SIDE} ({told}{on(next(iter(found.values()))['device'])})\n")
    print("| | features/s | unalike takes so many times as long |\n| --- | --- | --- |")
    for kind, each in found.items():
        for name, seconds in each["turns"].items():
            ratio = "" if name == "unalike" else spread(ratios(each["turns"]["unalike"], seconds))
            print(f"| {FEATURE_NAMES[kind][name]} | {1 / statistics.median(seconds):.1f} | {ratio} |")


TITLES = {"frechet": "Fréchet distance", "manifold": "Precision and recall", "kernel": "Kernel distance"}


def report_distance(section: str, found: dict[str, list[dict[str, Any]]], count: int, width: int) -> None:
    print(f"\n### {TITLES[section]}: {count:,} and {count:,} × {width:,}\n")
    print("| | seconds | takes so many times as long as unalike | memory, MiB | of these before it | values |")
    print("| --- | --- | --- | --- | --- | --- |")
    ours = next(iter(found.values()))
    for name, runs in found.items():
        seconds = [run["seconds"] for run in runs]
        ratio = "" if runs is ours else spread(ratios(seconds, [run["seconds"] for run in ours]))
        memory = f"{max(run['peak'] for run in runs):,.0f} | {max(run['before'] for run in runs):,.0f}"
        values = ", ".join(f"{value:.9g}" for value in runs[0]["values"])
        print(f"| {name} | {statistics.median(seconds):.2f} | {ratio} | {memory} | {values} |")
    print(f"\nThey differ by {disagreement(section, found):.1e} at most ({AGREEMENT[section]:.0e} is allowed).")


def disagreement(section: str, found: dict[str, list[dict[str, Any]]]) -> float:
    """The largest difference from our values, relative but for precision and recall; ends the run if it is large."""
    ours = np.array(next(iter(found.values()))[0]["values"])
    scale = 1.0 if section == "manifold" else np.abs(ours)
    told = np.array([run["values"] for runs in found.values() for run in runs])
    most = float((np.abs(told - ours) / scale).max())  # NaN if any is
    if not most <= AGREEMENT[section]:
        raise SystemExit(f"{TITLES[section]}: values differ by {most:.1e} from those of the libraries")
    return most


def report_memory(peak: float, count: int, width: int) -> None:
    verdict = "within" if peak <= MOST_MEMORY else "ABOVE"
    print(f"\n`measure_manifold` of {count:,} × {count:,} × {width:,}: {peak:,.0f} MiB, {verdict} 2 GiB.")


def report_training(side: int, found: dict[str, Any], updates: int) -> None:
    print(f"\n### Training ResNet-18, {side} pixels, batch {BATCH}, {updates} updates{on(found['device'])}\n")
    print("| | images/s | takes so many times as long as the bare loop | waits for data |")
    print("| --- | --- | --- | --- |")
    for name, told in found["turns"].items():
        seconds, waited = ([each[part] for each in told] for part in (0, 1))
        bare = [each[0] for each in found["turns"][f"bare loop, {name.split(', ')[1]}"]]
        least = name.startswith("bare")
        ratio, share = ("", "") if least else (spread(ratios(seconds, bare)), f"{statistics.median(waited):.1%}")
        print(f"| {name} | {BATCH / statistics.median(seconds):.1f} | {ratio} | {share} |")
    if len(found["turns"]) == 3:
        print("\nbfloat16 is not in this machine's hardware: not measured.")
    print(f"\nImages are stored as 1×{STORED[side]}×{STORED[side]}.")


def report_lime(side: int, found: dict[str, Any], pictures: int) -> None:
    names = {"unalike": "unalike, `explain_by_lime`", "captum": "captum's Lime", "alone": "the network alone"}
    what = f"ResNet-18 in {found['precision']}, {side} pixels, {pictures} pictures{on(found['device'])}"
    print(f"\n### LIME: {what}\n")
    print("| | explanations/s | unalike takes so many times as long |\n| --- | --- | --- |")
    for name, seconds in found["turns"].items():
        ratio = "" if name == "unalike" else spread(ratios(found["turns"]["unalike"], seconds))
        print(f"| {names[name]} | {1 / statistics.median(seconds):.3f} | {ratio} |")


def hardware() -> str:
    model = next((line.split(":")[1].strip() for line in read_lines("/proc/cpuinfo") if "model name" in line), "")
    return f"{model or platform.machine()}, {os.cpu_count()} processors, Python {platform.python_version()}"


SECTIONS = ("features", *DISTANCES, "training", "lime")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of the size, one turn: a look")
    parser.add_argument("--gpu", action="store_true", help="networks on a graphics card: features, training, lime")
    parser.add_argument("--only", choices=SECTIONS, nargs="+")
    parser.add_argument("--turns", type=int, help="default: 5, 1 with --quick; at most 3 for distances")
    parser.add_argument("--processor-time", action="store_true", help="of all threads, instead of time; for one thread")
    parser.add_argument("--measure", choices=MEASURES, help=argparse.SUPPRESS)
    parser.add_argument("--options", type=json.loads, default={}, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.processor_time:
        diffusion.clock = time.process_time
    if options.measure:
        print(json.dumps(MEASURES[options.measure](**options.options)))
        return
    # Asked of another process: this one stays small.
    code = "import sys, torch; sys.exit(not torch.cuda.is_available())"
    if options.gpu and subprocess.run([sys.executable, "-c", code], check=False).returncode:
        print("Not measured on a GPU: torch sees none here.")
        return
    turns = options.turns or (1 if options.quick else 5)
    print(f"{hardware()}; {turns} turns, {os.environ.get('OMP_NUM_THREADS', os.cpu_count())} threads.")
    print("Measured on a GPU." if options.gpu else "Not measured on a GPU.", flush=True)
    wanted = options.only or (("features", "training", "lime") if options.gpu else SECTIONS)
    part, device = 10 if options.quick else 1, "cuda" if options.gpu else "cpu"
    for section in wanted:
        run_section(section, turns=turns, part=part, device=device)
        sys.stdout.flush()


def run_section(section: str, *, turns: int, part: int, device: str) -> None:
    """Measure and print it, at 1/``part`` of the size."""
    if section == "features":
        counts = {kind: count // part for kind, count in FEATURES.items()}
        work = {"turns": turns, "device": device}
        report_features({kind: measured("features", kind=kind, count=counts[kind], **work) for kind in counts}, counts)
    elif section == "training":
        for side, most in UPDATES.items():
            updates = max(1, most // part)
            found = measured("training", side=side, updates=updates, turns=turns, device=device)
            report_training(side, found, updates)
    elif section == "lime":
        for side, count in EXPLAINED.items():
            work = {"side": side, "count": max(1, count // part), "pictures": PICTURES // part, "turns": turns}
            report_lime(side, measured("lime", device=device, **work), PICTURES // part)
    else:
        run_distance(section, turns=min(turns, 3), count=COUNT // part, width=WIDTH // part)


def run_distance(section: str, *, turns: int, count: int, width: int) -> None:
    fitting = affordable(count) if section != "frechet" else count
    if fitting < count:
        print(f"\nScaled down to {fitting:,} of {count:,} images: the libraries need more memory than is free.")
    sized: dict[str, Any] = {"section": section, "width": width}
    contenders: dict[str, Callable[[], Any]] = {
        name: partial(measured, "distance", name=name, count=fitting, **sized) for name in DISTANCES[section]
    }
    found: dict[str, list[Any]] = take_turns(contenders, turns)
    report_distance(section, found, fitting, width)
    if section == "manifold":
        name = next(iter(found))
        runs = found[name] if fitting == count else [measured("distance", name=name, count=count, **sized)]
        report_memory(max(run["peak"] for run in runs), count, width)


if __name__ == "__main__":
    main()
