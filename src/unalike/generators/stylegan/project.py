"""Projection: the styles whose image comes nearest to a given one, and how near that is.

Karras et al. (2020, "Analyzing and Improving the Image Quality of StyleGAN", section 5 and appendix D) look for one
style w for all layers; Abdal, Qin and Wonka (2019) for one of each layer's own, in W+, which reproduces more of any
image. Adam's learning rate rises and falls. The way to W+ leads through W for the first half of the updates, which ends
nearer to the image than going there at once.

What differs from the papers. The search starts not at the mean style but at the nearest of it and some drawn styles:
from the mean alone it misses images that the generator knows by heart. The loss is the squared error of pixels: a
learned perceptual distance needs a network trained on photographs, which is neither at hand nor made for medical
images. The noise of the layers is fixed at zero: optimized as well, as in appendix D, it is a number a pixel, which
would draw any image, whether or not the generator knows anything of it. There is no noise on the style either, which
made no difference here, so that of all updates the best can be kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from unalike.errors import InputError
from unalike.generators.stylegan.model import StyleganModel
from unalike.generators.stylegan.settings import ProjectionSettings
from unalike.records import FloatArray, Pixels
from unalike.seeds import generator_for

RISE, FALL = 0.05, 0.25  # shares of the updates over which the learning rate rises and falls (appendix D)
STARTS = "projection-starts"
TIED = 0.5  # share of the updates in which all layers share one style, on the way to W+


@dataclass(frozen=True)
class Projection:
    """What n images became when a generator was made to draw them.

    ``styles`` (n, layers, latent), float32; ``images`` (n, C, H, W), what the generator draws of them without noise.
    ``distances`` (n,) is the root mean squared difference between ``images`` and the given ones, over all channels,
    in grey levels of 255; ``start`` (n,) the same at the mean style, of the class whose mean image is nearest.
    """

    styles: npt.NDArray[np.float32]
    images: Pixels
    distances: FloatArray
    start: FloatArray


def project_images(
    model: StyleganModel,
    images: Pixels,
    *,
    settings: ProjectionSettings,
    seed: int,
    progress: Callable[[int, str], None] | None = None,
) -> Projection:
    """Find styles from which ``model`` draws ``images`` (n, C, H, W), pixels of the size and type that it draws.

    The search starts at the style whose image is nearest: of the mean style and ``settings.starts`` styles of latents
    drawn from ``seed``, the same for all images. A generator with classes has these of every class; no label is asked
    for. Each image is searched for on its own, and its neighbours change nothing, to the last bit on one machine: the
    network always works on ``settings.batch_size`` images. It computes in float32 whatever the model's precision.
    ``progress(count, text)`` is called after each group of images.

    Raises `InputError` if the images are not of the size, channels and type that the model draws.
    """
    _check(model, images)
    count, shape, highest = len(images), model.shape, model.scale.highest
    found = Projection(
        styles=np.empty((count, shape.layers, shape.latent), np.float32),
        images=np.empty_like(images),
        distances=np.empty(count),
        start=np.empty(count),
    )
    with torch.no_grad():
        centres = model.centres()
        pictures = _draw(model, centres[:, None])
        starts = torch.cat([centres, _draw_styles(model, settings.starts, seed)])
        nearest = _find_nearest(model, images, starts, settings.batch_size)
    for begin in range(0, count, settings.batch_size):
        group = images[begin : begin + settings.batch_size]
        size, part = len(group), slice(begin, begin + len(group))
        filled = np.concatenate([group, np.repeat(group[-1:], settings.batch_size - size, axis=0)])
        wanted = model.encode(filled)
        begun = np.pad(nearest[part], (0, settings.batch_size - size), mode="edge")
        styles = _search(model, wanted, starts[torch.from_numpy(begun).to(model.place)], settings)
        with torch.no_grad():
            drawn = model.decode(_draw(model, styles))[:size]
        found.styles[part] = styles.expand(-1, shape.layers, -1)[:size].cpu().numpy()
        found.images[part] = drawn
        found.distances[part] = grey_distance(drawn, group, highest=highest)
        middle = [int(_errors(pictures, image).argmin()) for image in wanted[:size]]
        found.start[part] = grey_distance(model.decode(pictures[middle]), group, highest=highest)
        if progress is not None:
            progress(size, f"off by {np.median(found.distances[part]):.1f} grey levels")
    return found


def grey_distance(drawn: Pixels, given: Pixels, *, highest: int) -> FloatArray:
    """Root mean squared difference (n,) of images (n, C, H, W), in grey levels of 255, ``highest`` being white."""
    difference = (drawn.astype(np.float64) - given).reshape(len(given), -1)
    distance: FloatArray = np.sqrt(np.square(difference).mean(axis=1)) * (255 / highest)
    return distance


def _check(model: StyleganModel, images: Pixels) -> None:
    height, width = model.shape.sizes[-1]
    if images.shape[1:] != (model.shape.channels, height, width) or images.dtype != model.scale.dtype:
        raise InputError(
            f"images of {' × '.join(map(str, images.shape[1:]))} of {images.dtype}: this generator draws "
            f"{model.shape.channels} × {height} × {width} of {model.scale.dtype}. Prepare them as its cohort was."
        )


def _draw(model: StyleganModel, styles: torch.Tensor) -> torch.Tensor:
    """Images (B, C, H, W) of styles (B, layers or 1, latent), in float32 and without noise."""
    # In half precision the gradient of a small difference would be lost.
    with torch.autocast(model.place.type, enabled=False):
        return model.network.synthesize(styles.expand(-1, model.shape.layers, -1))


def _draw_styles(model: StyleganModel, count: int, seed: int) -> torch.Tensor:
    """Styles (classes or 1 times ``count``, latent): those of the same drawn latents in every class."""
    latents = generator_for(seed, STARTS).standard_normal((count, model.shape.latent), np.float32)
    z = torch.from_numpy(latents).to(model.place)
    asked = [model.one_hot([label] * count) for label in model.labels] or [None]
    return torch.cat([model.network.mapping(z, label) for label in asked])


def _find_nearest(model: StyleganModel, images: Pixels, styles: torch.Tensor, at_once: int) -> npt.NDArray[np.int64]:
    """Which of ``styles`` (k, latent) draws the image nearest to each of ``images`` (n, C, H, W): numbers (n,)."""
    least, nearest = np.full(len(images), math.inf), np.zeros(len(images), np.int64)
    # The pictures of all styles may be too many to keep, so each few meet all images. An image is compared alone, and
    # drawn pictures are the same whatever images there are: neighbours change nothing.
    for begin in range(0, len(styles), at_once):
        pictures = _draw(model, styles[begin : begin + at_once, None])
        for place in range(len(images)):
            error, which = _errors(pictures, model.encode(images[place : place + 1])).min(dim=0)
            if error.item() < least[place]:
                least[place], nearest[place] = error.item(), begin + which.item()
    return nearest


def _search(
    model: StyleganModel, wanted: torch.Tensor, start: torch.Tensor, settings: ProjectionSettings
) -> torch.Tensor:
    """The best styles (B, layers or 1, latent) on the way from ``start`` (B, latent) to ``wanted`` (B, C, H, W).

    The best are those with the smallest squared error of pixels, the start among them.
    """
    layers = model.shape.layers if settings.space == "w+" else 1
    styles = start[:, None].repeat(1, layers, 1).requires_grad_(True)
    # The loss is a sum over images and Adam works number by number: no image moves another.
    optimizer = torch.optim.Adam([styles])
    best, least = styles.detach().clone(), torch.full((len(wanted),), math.inf, device=model.place)
    for step in range(settings.steps + 1):
        difference = _draw(model, styles) - wanted
        error = difference.detach().square().mean(dim=(1, 2, 3))
        better = error < least
        least = torch.where(better, error, least)
        best = torch.where(better[:, None, None], styles.detach(), best)
        if step == settings.steps:  # the last update is looked at, and no more
            break
        (gradient,) = torch.autograd.grad(difference.square().mean(dim=(1, 2, 3)).sum(), styles)
        # With one gradient for all layers the search stays in W, and enters W+ from there.
        tied = step < TIED * settings.steps
        styles.grad = gradient.mean(dim=1, keepdim=True).expand_as(gradient).clone() if tied else gradient
        optimizer.param_groups[0]["lr"] = settings.learning_rate * rate_share(step, settings.steps)
        optimizer.step()
    return best


def _errors(pictures: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
    """Mean squared differences (n,) of pictures (n, C, H, W) and one image."""
    return (pictures - image).square().mean(dim=(1, 2, 3))


def rate_share(step: int, steps: int) -> float:
    """The learning rate of update ``step`` (from 0) of ``steps``, as a share of the largest one (appendix D).

    It rises in a straight line and falls as half a cosine, to nearly 0 at the last update.
    """
    rise = (step + 1) / (RISE * steps)
    fall = (steps - step) / (FALL * steps)
    return min(1.0, rise) * (0.5 - 0.5 * math.cos(math.pi * min(1.0, fall)))
