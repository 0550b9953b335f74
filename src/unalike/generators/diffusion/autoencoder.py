"""The autoencoder of latent diffusion: images to latents four times smaller a side, and back.

Rombach et al., "High-Resolution Image Synthesis with Latent Diffusion Models" (2022): diffusion in the latent space of
an autoencoder that was trained before. Theirs was trained on photographs; this one sees the cohort's train images and
nothing else. It is diffusers' `AutoencoderKL`, without their perceptual and adversarial losses: those need a network
that knows photographs, and one that invents texture.

x are images (B, C, H, W) in [−1, 1], z latents (B, c, H / 4, W / 4), both float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from safetensors import SafetensorError
from torch import nn

from unalike.devices import compute_in, resolve_precision
from unalike.errors import FolderError, SettingsError
from unalike.generators.data import TrainImages
from unalike.generators.descent import Descent
from unalike.generators.diffusion.network import place_network
from unalike.generators.diffusion.settings import NORM_GROUPS, DiffusionSettings
from unalike.generators.loop import Training, batch_positions
from unalike.generators.processes import Processes
from unalike.generators.settings import TrainingSettings
from unalike.records import IntArray
from unalike.seeds import seed_for

CHANNELS = (32, 64, 64)  # at full, half and quarter resolution
FACTOR = 2 ** (len(CHANNELS) - 1)  # side of an image / side of its latent
KL_WEIGHT = 1e-6  # Rombach et al. (2022), section G
EMA_DECAY = 0.99
CHECKPOINTS = "checkpoints-autoencoder"

# Images the autoencoder works on at once. Part of what a sample is: changing it changes last bits.
GROUP = 8
READ_AT_ONCE = 256  # images
MEASURED = 256  # images whose reconstruction is looked at


def latent_size(height: int, width: int) -> tuple[int, int]:
    """Height and width of the latents of images of this size (pixels).

    Raises `SettingsError` if `FACTOR` does not divide both, naming sizes that fit.
    """
    if height % FACTOR or width % FACTOR:
        smaller = f"{max(height // FACTOR, 1) * FACTOR} × {max(width // FACTOR, 1) * FACTOR}"
        larger = f"{-(-height // FACTOR) * FACTOR} × {-(-width // FACTOR) * FACTOR}"
        raise SettingsError(
            f"images of {height} × {width} pixels have no latents: heights and widths must be multiples of {FACTOR}. "
            f"Prepare the cohort at {smaller} or {larger}, or train with latent = 0."
        )
    return height // FACTOR, width // FACTOR


def build_autoencoder(*, channels: int, latent_channels: int, seed: int) -> AutoencoderKL:
    """An autoencoder of images with ``channels`` channels, initialised from ``seed``, on the CPU in float32.

    It is convolutional throughout (no attention), so that any size that `FACTOR` divides fits.
    """
    # The global stream of torch is seeded for the initial weights alone, and left as it was.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return AutoencoderKL(
            in_channels=channels,
            out_channels=channels,
            down_block_types=("DownEncoderBlock2D",) * len(CHANNELS),
            up_block_types=("UpDecoderBlock2D",) * len(CHANNELS),
            block_out_channels=CHANNELS,
            layers_per_block=1,
            norm_num_groups=NORM_GROUPS,
            latent_channels=latent_channels,
            mid_block_add_attention=False,
        )


class Reconstruction(nn.Module):
    """One pass of training through an `AutoencoderKL`, as a module, so that it can be compiled and distributed."""

    def __init__(self, autoencoder: Any) -> None:
        """The weights are those of ``autoencoder``."""
        super().__init__()
        self.autoencoder = autoencoder

    def forward(self, x: torch.Tensor, noise: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(reconstruction of x, mean and log variance of q(z | x)), z being mean + deviation · ``noise``.

        The reconstruction is in the precision computed in, the others are float32.
        """
        posterior = self.autoencoder.encode(x).latent_dist
        mean, log_variance = posterior.mean.float(), posterior.logvar.float()
        z = mean + torch.exp(0.5 * log_variance) * noise
        return self.autoencoder.decode(z).sample, mean, log_variance


def autoencoder_loss(
    x: torch.Tensor, reconstruction: torch.Tensor, *, mean: torch.Tensor, log_variance: torch.Tensor
) -> torch.Tensor:
    """Mean |x̂ − x| + mean (x̂ − x)² + `KL_WEIGHT` · KL(q(z | x) ‖ N(0, I)) per number of x; a float32 scalar.

    The KL is a sum over the latent, shared out over the C·H·W numbers of its image: so the weight is the paper's,
    where both terms are sums. It only keeps the latents from drifting away (section G).
    """
    error = reconstruction.float() - x
    kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum() / x.numel()
    return error.abs().mean() + error.square().mean() + KL_WEIGHT * kl


@dataclass(frozen=True)
class AutoencoderBatch:
    """Images x (b, C, H, W) in [−1, 1] and the noise (b, c, H / 4, W / 4) of their latents, on the CPU."""

    x: torch.Tensor
    noise: torch.Tensor


@dataclass
class AutoencoderTask:
    """What update n of the autoencoder works on, and its loss; see `unalike.generators.descent.Task`.

    ``drawn`` are positions of channels; ``network`` is a `Reconstruction`; ``seed`` is the autoencoder's own.
    """

    images: TrainImages
    drawn: Sequence[int]
    network: nn.Module
    latent_channels: int
    batch_size: int
    place: torch.device
    precision: str
    seed: int
    name: str = "autoencoder"

    def batch(self, n: int, part: slice) -> AutoencoderBatch:
        """Images and noise; every number is the global batch's, of which this is a part."""
        x = self.read(batch_positions(n, len(self.images), self.batch_size, self.seed)[part])
        stream = torch.Generator().manual_seed(seed_for(self.seed, "latent", n))
        shape = (self.batch_size, self.latent_channels, *latent_size(*x.shape[2:]))
        return AutoencoderBatch(x, torch.randn(shape, generator=stream)[part])

    def read(self, positions: IntArray) -> torch.Tensor:
        """The drawn channels (b, C, H, W) in [−1, 1] of these training images, on the CPU."""
        pixels = self.images.read(positions)[:, list(self.drawn)]
        return torch.from_numpy(self.images.scale.to_unit(pixels))

    def loss(self, network: nn.Module, batch: AutoencoderBatch) -> torch.Tensor:
        """`autoencoder_loss`, a mean over the part's images."""
        x, noise = batch.x.to(self.place, non_blocking=True), batch.noise.to(self.place, non_blocking=True)
        with compute_in(self.precision, self.place):
            reconstruction, mean, log_variance = network(x, noise)
        return autoencoder_loss(x, reconstruction, mean=mean, log_variance=log_variance)


@dataclass(frozen=True)
class LatentCodec:
    """A trained autoencoder and the ``scale`` that gives its latents a standard deviation of 1.

    It always works on `GROUP` images in float32, the last group being filled up: the kernels of a CPU round
    differently for other batch shapes, and so no neighbour changes an image or a latent by one bit.
    """

    autoencoder: Any
    scale: float

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        """Latents z (B, c, h, w) of images x (B, C, H, W), B ≥ 1: ``scale`` times the mean of q(z | x).

        They are on the autoencoder's device, and the same at each call: nothing is drawn.
        """
        return self._in_groups(lambda group: self.scale * self.autoencoder.encode(group).latent_dist.mean, x)

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        """Images (B, C, H, W) of latents z (B, c, h, w), B ≥ 1, on the autoencoder's device; not clipped to [−1, 1]."""
        return self._in_groups(lambda group: self.autoencoder.decode(group / self.scale).sample, z)

    def to(self, device: torch.device) -> LatentCodec:
        """This codec, its autoencoder moved to ``device``."""
        return LatentCodec(self.autoencoder.to(device), self.scale)

    def _in_groups(self, work: Callable[[torch.Tensor], torch.Tensor], values: torch.Tensor) -> torch.Tensor:
        place: torch.device = self.autoencoder.device
        done = []
        # Not inference_mode: a network is trained on these latents afterwards.
        with torch.no_grad(), compute_in("float32", place):
            for group in torch.split(values.to(place, torch.float32), GROUP):
                filled = torch.cat([group, group[-1:].expand(GROUP - len(group), -1, -1, -1)])
                done.append(work(filled)[: len(group)])
        return torch.cat(done)


def measure_scale(autoencoder: Any, read: Callable[[IntArray], torch.Tensor], count: int) -> float:
    """1 / standard deviation of the latents' means over all numbers of all ``count`` images that ``read`` gives.

    Rombach et al. (2022), section D.1, take a first batch; here it is every image. ``read`` takes positions and gives
    images (b, C, H, W) in [−1, 1]. Sums are float64 (merged as in Chan, Golub and LeVeque 1983).

    Raises `SettingsError` if the latents do not vary, or are not finite.
    """
    codec = LatentCodec(autoencoder, scale=1.0)
    total, mean, squares = 0, 0.0, 0.0  # squares: Σ (z − mean)² of the numbers so far
    for begin in range(0, count, READ_AT_ONCE):
        z = codec.encode(read(np.arange(begin, min(begin + READ_AT_ONCE, count)))).cpu().double()
        ahead = float(z.mean()) - mean
        squares += float((z - z.mean()).square().sum()) + ahead**2 * total * z.numel() / (total + z.numel())
        total += z.numel()
        mean += ahead * z.numel() / total
    deviation = math.sqrt(squares / total)
    if not (math.isfinite(deviation) and deviation > 0):
        raise SettingsError(
            f"the autoencoder's latents of {count} train images have a standard deviation of {deviation}: it learned "
            "nothing. Give more autoencoder_steps, or latent = 0."
        )
    return 1 / deviation


def reconstruction_error(codec: LatentCodec, images: torch.Tensor) -> float:
    """Root mean squared error of decode(encode(x)), clipped to [−1, 1] as pixels are, in grey levels of 255.

    ``images`` are (n, C, H, W) in [−1, 1], n ≥ 1.
    """
    back = codec.decode(codec.encode(images)).clamp(-1, 1).cpu().double()
    return 127.5 * math.sqrt(float((back - images.double().cpu()).square().mean()))


def train_autoencoder(
    images: TrainImages,
    drawn: Sequence[int],
    *,
    out: Path,
    settings: DiffusionSettings,
    seed: int,
    processes: Processes,
    identity: str,
) -> tuple[LatentCodec, dict[str, Any]]:
    """Train on the channels ``drawn`` of ``images``, resuming from the newest checkpoint in ``out``.

    Returns the codec of the weight average, on the device of this process and with its scale in the autoencoder's
    config, and what the run's header says about it, under the one name ``autoencoder``: ``parameters`` (count),
    ``scale``, ``reconstruction_rmse`` (grey levels of 255, over at most `MEASURED` train images) and ``seconds``.

    Raises `SettingsError` if the image size does not fit, `FolderError` if the checkpoint is of other settings,
    `RunError` if none can be written, and `NonFiniteLossError` if training diverges; the last good one then stays.
    """
    latent_size(*images.cohort.size)
    # A seed of its own, so that no stream is one of diffusion's.
    own = seed_for(seed, "autoencoder")
    autoencoder = build_autoencoder(channels=len(drawn), latent_channels=settings.latent, seed=seed_for(own, "weights"))
    network = Reconstruction(autoencoder)
    task = AutoencoderTask(
        images=images,
        drawn=drawn,
        network=place_network(network, processes.place),
        latent_channels=settings.latent,
        batch_size=settings.batch_size,
        place=processes.place,
        precision=resolve_precision(settings.precision, processes.place),
        seed=own,
    )
    how = training_settings(settings)
    training = Training(
        Descent(task, how, seed=own, processes=processes),
        how,
        out=out,
        identity=identity,
        processes=processes,
        checkpoints=CHECKPOINTS,
    )
    training.run()
    network.load_state_dict(training.learner.averaged(EMA_DECAY))
    _settle(autoencoder)
    scale = measure_scale(autoencoder, task.read, len(images))
    autoencoder.register_to_config(scaling_factor=scale)
    codec = LatentCodec(autoencoder, scale)
    looked_at = np.unique(np.linspace(0, len(images) - 1, MEASURED).astype(np.int64))
    about = {
        "parameters": sum(weight.numel() for weight in autoencoder.parameters()),
        "scale": scale,
        "reconstruction_rmse": reconstruction_error(codec, task.read(looked_at)),
        "seconds": round(training.seconds, 1),
    }
    return codec, {"autoencoder": about}


def training_settings(settings: DiffusionSettings) -> TrainingSettings:
    """How the autoencoder of a diffusion training is trained: its own length and rate, the rest as diffusion."""
    return TrainingSettings(
        steps=settings.autoencoder_steps,
        batch_size=settings.batch_size,
        accumulate=settings.accumulate,
        learning_rate=1e-3,
        warmup=50,
        decay="linear",
        ema_decays=(EMA_DECAY,),
        precision=settings.precision,
        compile=settings.compile,
        checkpoint_every=settings.checkpoint_every,
        keep=settings.keep,
        log_every=settings.log_every,
    )


def open_codec(place: Path) -> LatentCodec:
    """The codec in a folder that `AutoencoderKL.save_pretrained` wrote, on the CPU; its scale stands in the config.

    Raises `FolderError` if it cannot be read.
    """
    try:
        autoencoder = AutoencoderKL.from_pretrained(
            place, use_safetensors=True, local_files_only=True, low_cpu_mem_usage=False
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        said = " ".join(str(error).split())[:200]
        raise FolderError(f"{place} cannot be read ({said}). Train the run again.") from error
    _settle(autoencoder)
    return LatentCodec(autoencoder, float(autoencoder.config.scaling_factor))


def _settle(autoencoder: Any) -> None:
    """Make it one that is used and no longer learns; weights contiguous, as safetensors wants them."""
    autoencoder.to(memory_format=torch.contiguous_format)
    autoencoder.train(False).requires_grad_(False)
