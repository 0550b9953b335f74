"""A model trained elsewhere becomes a run, so that it can be sampled, guarded and audited like our own.

It is a folder as diffusers writes it: ``unet/`` and ``scheduler/``, and ``vqvae/`` or ``vae/`` if latents are diffused.
Whoever wrote it is not trusted: code and pickles are never loaded, and networks are first built without memory, so that
what the weights' headers say is compared before a weight is read. What is written is written anew, setting by setting
and tensor by tensor (in float32): diffusers notes in its files where a model was loaded from.
"""

from __future__ import annotations

import inspect
import json
import math
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import AutoencoderKL, DDPMScheduler, SchedulerMixin, UNet2DModel
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from unalike import folders
from unalike.cohort.store import ImageFolder, open_images
from unalike.errors import FolderError, InputError, SettingsError
from unalike.generators.data import describe_training, open_train_images
from unalike.generators.diffusion.conditions import Conditions

PICKLED = (".bin", ".ckpt", ".pt", ".pth", ".pkl")
WEIGHTS = "diffusion_pytorch_model"
CLASS_TABLE = "class_embedding.weight"
NUMBER_FORMATS = ("F32", "F16", "BF16")
MOST_LEVELS = 100_000  # noise levels; a scheduler makes tables of them as soon as it is built
PREDICTIONS = ("epsilon", "sample", "v_prediction")
VARIANCES = ("fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log", "learned", "learned_range")
# What a DDPMScheduler knows, too, of how x̂₀ is kept within the range of images.
RANGES = ("thresholding", "dynamic_thresholding_ratio", "clip_sample_range", "sample_max_value")
# Names that attention had before diffusers 0.15: the files of many published models still have them.
FORMER_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
# What libraries raise at settings that make no sense.
REFUSALS = (TypeError, ValueError, RuntimeError, AttributeError, LookupError, ArithmeticError, ImportError)


@dataclass(frozen=True)
class Elsewhere:
    """A model as it was found: networks without memory ("meta"), with the folders that hold their weights."""

    place: Path
    unet: Any
    autoencoder: Any | None
    autoencoder_place: Path
    scheduler: DDPMScheduler
    scheduler_name: str

    @property
    def channels(self) -> int:
        """Channels of its images (count)."""
        return int((self.unet if self.autoencoder is None else self.autoencoder).config.in_channels)

    @property
    def factor(self) -> int:
        """Side of an image / side of what is diffused."""
        return 1 if self.autoencoder is None else int(2 ** (len(self.autoencoder.config.block_out_channels) - 1))

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of its images (pixels)."""
        height, width = _sample_size(self.unet, self.place)
        return height * self.factor, width * self.factor


def adopt_model(*, model: str | Path, cohort: str | Path, out: str | Path, labels: Sequence[str] = ()) -> Path:
    """Make the diffusers folder ``model`` a run folder ``out``, as if trained on all train images of ``cohort``.

    ``model`` holds ``unet/`` (`UNet2DModel`) and ``scheduler/`` (any of diffusers with betas; it becomes a
    `DDPMScheduler` of the same noise levels), and ``vqvae/`` or ``vae/`` (`AutoencoderKL`) if it diffuses latents.
    Pixels are taken to enter it as they do ours: zero as −1, the brightest as 1. ``labels`` name the classes of a
    class-conditional network, in its order: one for each row of its table, or one fewer where the last row stands for
    no label, as in our runs. With one for each, nothing is drawn without a label, and guidance has to stay 1: the
    header says so with ``guidable`` false, and the mean of the rows stands where a table of ours has "no label".

    That the model was trained on just these images is the caller's word; nobody can check it here. Returns ``out``.

    Raises `FolderError` if ``model`` is no such folder, its weights are pickled, damaged or do not fit its settings,
    or ``out`` is taken; `InputError` if the cohort's channels or size are not the model's; `SettingsError` if labels do
    not fit.
    """
    model, out = Path(model), Path(out)
    found = _open_elsewhere(model)
    opened = open_images(cohort)
    _check_fit(found, opened)
    _check_labels(found, labels)
    unet = _read_weights(found.unet, model / "unet")
    decoder = None if found.autoencoder is None else _read_weights(found.autoencoder, found.autoencoder_place)
    guidable = _settle_classes(found.unet, unet, labels)
    images = open_train_images(opened, subjects=None, seed=0)
    settings = {
        "model": type(found.unet).__name__,
        "scheduler": found.scheduler_name,
        "autoencoder": None if found.autoencoder is None else type(found.autoencoder).__name__,
        "labels": list(labels),
    }
    # Resumable, lest a training that was interrupted in ``out`` be taken for ours and emptied.
    folders.begin_folder(out, kind="run", settings={"adopted": settings, "cohort": opened.digest}, resumable=True)
    _write_model(found, unet, decoder, out / folders.MODEL)
    folders.finish_folder(
        out,
        kind="run",
        settings=settings,
        seed=0,
        inputs={"cohort": opened.digest},
        content={
            "generator": "diffusion",
            **describe_training(images, subjects=None, seed=0),
            "trained_elsewhere": True,
            "parameters": sum(weight.numel() for weight in unet.values()),
            "ema_decays": [],
            "conditions": Conditions(labels=tuple(labels)).to_content(),
            "label_counts": dict.fromkeys(labels, 1),
            "guidable": guidable,
            "holds_training_images": False,
            "model_digest": folders.digest_tree(out / folders.MODEL),
        },
    )
    return out


def _open_elsewhere(place: Path) -> Elsewhere:
    """The model in ``place``; nothing but settings is read, and what they say holds together."""
    if not place.is_dir():
        raise FolderError(f"{place} does not exist or is no folder. Give a folder of diffusers; none is downloaded.")
    for part in ("unet", "scheduler"):
        if not (place / part).is_dir():
            raise FolderError(
                f"{place} is no diffusers folder of a UNet2DModel ({part}/ is missing). Give one that "
                "pipeline.save_pretrained(folder) wrote."
            )
    unet = _build(place / "unet", UNet2DModel)
    _check_unet(unet, place / "unet")
    autoencoder, autoencoder_place = None, place / "vqvae"
    if not autoencoder_place.is_dir():
        autoencoder_place = place / "vae"
    if autoencoder_place.is_dir():
        autoencoder = _build(autoencoder_place, AutoencoderKL)
        _check_autoencoder(autoencoder, autoencoder_place, unet)
    scheduler, name = _convert_scheduler(
        place / "scheduler",
        latent=autoencoder is not None,
        learned=unet.config.out_channels == 2 * unet.config.in_channels,
    )
    return Elsewhere(place, unet, autoencoder, autoencoder_place, scheduler, name)


def _read_config(path: Path) -> dict[str, Any]:
    """The settings in a JSON file of diffusers."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise FolderError(f"{path} cannot be read as JSON ({_brief(error)}). Save the model again.") from error
    if not isinstance(config, dict):
        raise FolderError(f"{path} holds no settings. Save the model again.")
    return config


def _known(kind: Any, config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that ``kind`` takes: not where the model was loaded from, nor those of other versions."""
    names = inspect.signature(kind.__init__).parameters
    return {name: value for name, value in config.items() if name in names and name != "self"}


def _build(place: Path, kind: Any) -> Any:
    """The network of this ``kind`` that the settings in ``place`` describe, without memory for its weights."""
    path = place / "config.json"
    config = _read_config(path)
    if config.get("_class_name") != kind.__name__:
        named = str(config.get("_class_name"))[:80]
        raise FolderError(f"{path} describes a {named}; only {kind.__name__} can be adopted. Give a model with that.")
    with _refused(f"{path} describes no network that diffusers can build"), torch.device("meta"):
        return kind(**_known(kind, config))


@contextmanager
def _refused(message: str) -> Iterator[None]:
    """Turn what libraries raise at settings into a line of ours."""
    try:
        yield
    except REFUSALS as error:
        raise FolderError(f"{message} ({_brief(error)}). Save the model again.") from error


def _brief(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]


def _sample_size(unet: Any, place: Path) -> tuple[int, int]:
    """Height and width of what is diffused."""
    size = unet.config.sample_size
    pair = tuple(size) if isinstance(size, list | tuple) else (size, size)
    if len(pair) != 2 or not all(type(side) is int and side > 0 for side in pair):
        raise FolderError(
            f"{place} says no sample_size in its config.json ({str(size)[:40]}). Write there the size it was trained "
            "at, such as 32 or [32, 48]."
        )
    return pair


def _check_unet(unet: Any, place: Path) -> None:
    """Refuse networks that are told other things than ours are, and such as cannot compute at their own size."""
    config = unet.config
    path = place / "config.json"
    for name, wanted in (("class_embed_type", None), ("time_embedding_type", "positional")):
        if config[name] != wanted:
            raise FolderError(
                f"{path} has {name} = {str(config[name])[:40]!r}; a network with any but "
                f"{json.dumps(wanted)} cannot be adopted. Train one without it."
            )
    if config.out_channels not in (config.in_channels, 2 * config.in_channels):
        raise FolderError(
            f"{path} has {config.in_channels} channels in and {config.out_channels} out; as many, or twice as many "
            "with a learned variance, can be adopted. A network that is given more than the noisy image cannot."
        )
    classes = config.num_class_embeds
    if classes is not None and classes < 1:
        raise FolderError(f"{path} has num_class_embeds = {classes}. Save the model again.")
    height, width = _sample_size(unet, path.parent)
    with _refused(f"{path} describes a network that cannot draw {height} × {width}"), torch.no_grad():
        t = torch.zeros(1, dtype=torch.int64, device="meta")
        x_t = torch.empty(1, config.in_channels, height, width, device="meta")
        unet(x_t, t, class_labels=None if classes is None else t)


def _check_autoencoder(autoencoder: Any, place: Path, unet: Any) -> None:
    """Refuse an autoencoder whose latents are not the network's, or are more than scaled."""
    config, path = autoencoder.config, place / "config.json"
    if config.in_channels != config.out_channels:
        raise FolderError(
            f"{path} has {config.in_channels} channels in and {config.out_channels} out; they have to be the same. "
            "Give another autoencoder."
        )
    if config.latent_channels != unet.config.in_channels:
        raise FolderError(
            f"{path} has latents of {config.latent_channels} channels, the network in unet/ takes "
            f"{unet.config.in_channels}. Give the autoencoder it was trained with."
        )
    for name in ("shift_factor", "latents_mean", "latents_std"):
        if config[name] is not None:
            raise FolderError(f"{path} has {name}; only scaling_factor can be adopted. Train with that alone.")
    scale = config.scaling_factor
    if not (_is_number(scale) and scale > 0):
        raise FolderError(f"{path} has scaling_factor = {str(scale)[:40]}. Write there a number above 0.")
    height, width = _sample_size(unet, path.parent.parent / "unet")
    with _refused(f"{path} describes an autoencoder that cannot decode {height} × {width}"), torch.no_grad():
        factor = 2 ** (len(config.block_out_channels) - 1)
        x = torch.empty(1, config.in_channels, height * factor, width * factor, device="meta")
        z = autoencoder.encode(x).latent_dist.mean
        if z.shape[2:] != (height, width) or autoencoder.decode(z).sample.shape != x.shape:
            raise ValueError("images and latents are of other sizes")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _convert_scheduler(place: Path, *, latent: bool, learned: bool) -> tuple[DDPMScheduler, str]:
    """The scheduler in ``place`` as a `DDPMScheduler` of the same noise levels, and the name of its class.

    Time steps are spaced "trailing", as ours are (Lin et al. 2024, table 2). Where the scheduler does not say, pixels
    are clipped to their range and ``latent``s, which have none, are not. ``learned``: the network gives a variance.
    """
    path = place / "scheduler_config.json"
    source = _build_scheduler(path)
    name, config = type(source).__name__, source.config
    prediction = config.get("prediction_type", "epsilon")
    if prediction not in PREDICTIONS:
        raise FolderError(
            f"{path} has prediction_type = {str(prediction)[:40]!r}; a model can be adopted that predicts "
            f"{', '.join(PREDICTIONS)}. Train it so."
        )
    variance = config.get("variance_type") or ("learned_range" if learned else "fixed_small")
    if variance not in VARIANCES or (variance.startswith("learned") and not learned):
        raise FolderError(
            f"{path} has variance_type = {str(variance)[:40]!r}, which does not fit the network in unet/. "
            "Write there 'fixed_small'."
        )
    clip = config.get("clip_sample")
    common: dict[str, Any] = {entry: config[entry] for entry in RANGES if config.get(entry) is not None}
    common["clip_sample"] = not latent if clip is None else clip
    odd = [entry for entry, value in common.items() if not _is_number(value)]
    if odd:
        raise FolderError(f"{path} has {odd[0]} = {str(common[odd[0]])[:40]!r}, which is no number. Write there one.")
    common |= {"prediction_type": prediction, "variance_type": variance, "timestep_spacing": "trailing"}
    with _refused(f"{path} describes noise levels that cannot be written as betas"):
        return _with_levels_of(source, common), name


def _build_scheduler(path: Path) -> Any:
    """The scheduler that diffusers makes of the settings in ``path``; it has betas, one for each noise level."""
    config = _read_config(path)
    name = str(config.get("_class_name"))[:80]
    with _refused(f"{path} describes no scheduler that diffusers can build"):
        kind = getattr(diffusers, name, None) if name.endswith("Scheduler") else None
        if not (isinstance(kind, type) and issubclass(kind, SchedulerMixin)):
            raise ValueError(f"it knows no {name}")
        levels = config.get("num_train_timesteps", 1000)
        if type(levels) is not int or not 2 <= levels <= MOST_LEVELS:
            raise ValueError(f"num_train_timesteps is {str(levels)[:40]}")
        source = kind(**_known(kind, config))
    betas, alpha_bars = getattr(source, "betas", None), getattr(source, "alphas_cumprod", None)
    # A continuous time is log σ / 4, no number of a noise level.
    counted = source.config.get("timestep_type", "discrete") == "discrete"
    if betas is None or alpha_bars is None or not counted:
        raise FolderError(
            f"{path} describes a {name} without betas. A model can be adopted that was trained on the noise levels of "
            "one with betas, such as DDPMScheduler."
        )
    return source


def _with_levels_of(source: Any, common: Mapping[str, Any]) -> DDPMScheduler:
    """A `DDPMScheduler` with the ᾱ of ``source``: by the name of its schedule where that gives the same betas.

    Raises ValueError if betas do not say what the levels are: some schedulers shift ᾱ afterwards.
    """
    config, betas = source.config, source.betas
    levels = int(config.num_train_timesteps)
    if len(betas) != levels or not ((betas >= 0) & (betas <= 1)).all():
        raise ValueError(f"{len(betas)} betas, not all from 0 to 1, for {levels} levels")
    named = {}
    if config.get("trained_betas") is None:
        names = ("beta_schedule", "beta_start", "beta_end", "rescale_betas_zero_snr")
        named = {name: config[name] for name in names if config.get(name) is not None}
    try:
        scheduler = DDPMScheduler(num_train_timesteps=levels, **named, **common)
        same = torch.equal(scheduler.betas, betas)
    except REFUSALS:  # a schedule that it does not know by name
        same = False
    if not same:
        scheduler = DDPMScheduler(num_train_timesteps=levels, trained_betas=betas.tolist(), **common)
    # With zero terminal SNR, some write 2⁻²⁴ for the last ᾱ instead of 0.
    if not torch.allclose(scheduler.alphas_cumprod, source.alphas_cumprod.float(), rtol=1e-4, atol=1e-6):
        raise ValueError("they are shifted")
    return scheduler


def _check_fit(found: Elsewhere, cohort: ImageFolder) -> None:
    """Refuse a cohort whose images are not such as the model draws."""
    if found.channels != len(cohort.channels):
        raise InputError(
            f"{found.place} draws images of {found.channels} channel{'s' * (found.channels != 1)}, {cohort.path} has "
            f"{len(cohort.channels)} ({', '.join(cohort.channels)}). Give the cohort it was trained on, or prepare one "
            "with its channels."
        )
    if found.size != cohort.size:
        height, width = found.size
        latent = f" (latents times {found.factor})" if found.factor > 1 else ""
        option = f" (--size {height})" if height == width else ""
        raise InputError(
            f"{found.place} draws images of {height} × {width} pixels{latent}, those of {cohort.path} are "
            f"{cohort.size[0]} × {cohort.size[1]}. Prepare the cohort at {height} × {width}{option}."
        )


def _check_labels(found: Elsewhere, labels: Sequence[str]) -> None:
    """Refuse labels that do not name the classes of the network."""
    classes = found.unet.config.num_class_embeds
    if classes is None:
        if labels:
            raise SettingsError(f"--labels: the network of {found.place} has no classes. Leave it out.")
        return
    if not labels or len(labels) not in (classes, classes - 1):
        raise SettingsError(
            f"--labels: the network of {found.place} has a table of {classes} classes, and {len(labels)} names are "
            "given. Give one for each, in its order, or one fewer if the last row stands for no label."
        )
    if len(set(labels)) < len(labels) or not all(labels):
        raise SettingsError(f"--labels {' '.join(labels)}: give each class a name of its own.")


def _settle_classes(unet: Any, weights: dict[str, torch.Tensor], labels: Sequence[str]) -> bool:
    """Let the last row of the table, if there is one, stand for no label; gives whether it was trained to.

    Where every row is a class, the mean of all is added. It keeps what asks for no label, such as the losses of
    membership, within the table; it was never trained.
    """
    classes = unet.config.num_class_embeds
    if classes is None or len(labels) < classes:
        return classes is not None
    table = weights[CLASS_TABLE]
    weights[CLASS_TABLE] = torch.cat([table, table.mean(dim=0, keepdim=True)])
    unet.register_to_config(num_class_embeds=classes + 1)
    return False


def _read_weights(network: Any, place: Path) -> dict[str, torch.Tensor]:
    """The weights of ``network`` in the safetensors of ``place``, float32; their headers are compared first."""
    files = _weight_files(place)
    wanted = {name: tuple(weight.shape) for name, weight in network.state_dict().items()}
    try:
        found: dict[str, tuple[Any, str]] = {}
        for file in files:
            with safe_open(file, framework="pt") as stream:
                parts = {name: stream.get_slice(name) for name in stream.keys()}  # noqa: SIM118 - no mapping
                found |= {_present_name(name): (tuple(p.get_shape()), p.get_dtype()) for name, p in parts.items()}
        _compare(wanted, found, place)
        weights = {}
        for file in files:
            with safe_open(file, framework="pt") as stream:
                for name in stream.keys():  # noqa: SIM118 - no mapping
                    weights[_present_name(name)] = stream.get_tensor(name).float().contiguous()
    except (OSError, SafetensorError) as error:
        raise FolderError(f"the weights in {place} cannot be read ({_brief(error)}). Save the model again.") from error
    odd = [name for name, weight in weights.items() if not weight.isfinite().all()]
    if odd:
        raise FolderError(f"{place}: {odd[0]} holds numbers that are not finite. Give a model that was trained well.")
    return weights


def _weight_files(place: Path) -> list[Path]:
    """The safetensors of a network: one, or as many as diffusers has split it into."""
    whole = place / f"{WEIGHTS}.safetensors"
    files = [whole] if whole.is_file() else sorted(place.glob(f"{WEIGHTS}-*-of-*.safetensors"))
    if files:
        return files
    pickled = sorted(file.name for file in place.iterdir() if file.suffix in PICKLED)
    if pickled:
        raise FolderError(
            f"{place / pickled[0]} is pickled and is not opened: save it as safetensors: "
            "pipeline.save_pretrained(folder, safe_serialization=True)."
        )
    raise FolderError(
        f"{place} holds no {whole.name}. Save the model with pipeline.save_pretrained(folder, safe_serialization=True)."
    )


def _present_name(name: str) -> str:
    """The name of a weight as diffusers has it now."""
    return re.sub(
        r"\.(query|key|value|proj_attn)\.(weight|bias)$", lambda part: f".{FORMER_NAMES[part[1]]}.{part[2]}", name
    )


def _compare(wanted: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[Any, str]], place: Path) -> None:
    """Refuse weights that are not those of the network: name by name, shape by shape."""
    for name in sorted({*wanted, *found}):
        if name not in found:
            trouble = f"{name} is missing"
        elif name not in wanted:
            trouble = f"{name[:120]} is not in the network"
        elif found[name][0] != wanted[name]:
            trouble = f"{name} has the shape {found[name][0]}, not {wanted[name]}"
        elif found[name][1] not in NUMBER_FORMATS:
            trouble = f"{name} holds {found[name][1]}, not one of {', '.join(NUMBER_FORMATS)}"
        else:
            continue
        raise FolderError(f"the weights in {place} are not those of its config.json: {trouble}. Save the model again.")


def _write_model(
    found: Elsewhere, unet: Mapping[str, torch.Tensor], autoencoder: Mapping[str, torch.Tensor] | None, place: Path
) -> None:
    """Write the folder ``model/`` as our own training does; whole or not at all."""
    temporary = place.with_suffix(".partial")
    for leftover in (temporary, place):
        shutil.rmtree(leftover, ignore_errors=True)
    height, width = _sample_size(found.unet, found.place)
    found.unet.register_to_config(sample_size=height if height == width else [height, width])  # as LDMPipeline wants it
    _write_network(found.unet, unet, temporary / "unet")
    parts = {"scheduler": "DDPMScheduler", "unet": "UNet2DModel"}
    if autoencoder is not None:
        _write_network(found.autoencoder, autoencoder, temporary / "vqvae")
        parts["vqvae"] = "AutoencoderKL"
    found.scheduler.save_config(temporary / "scheduler")
    index: dict[str, Any] = {"_class_name": "DDPMPipeline" if autoencoder is None else "LDMPipeline"}
    index |= {"_diffusers_version": diffusers.__version__} | {part: ["diffusers", kind] for part, kind in parts.items()}
    folders.write_json(temporary / "model_index.json", index)
    temporary.rename(place)


def _write_network(network: Any, weights: Mapping[str, torch.Tensor], place: Path) -> None:
    network.save_config(place)
    save_file(dict(weights), place / f"{WEIGHTS}.safetensors", metadata={"format": "pt"})
