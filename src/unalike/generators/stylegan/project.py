"""Projection: the styles whose image comes nearest to a given one, and how near that is.

Karras et al. (2020, "Analyzing and Improving the Image Quality of StyleGAN", section 5 and appendix D) look for one
style w for all layers; Abdal, Qin and Wonka (2019) for one of each layer's own, in W+, which reproduces more of any
image. Adam starts at the mean style, its learning rate rises and falls, and noise on the style, less and less of it,
keeps the search from the nearest valley.

Three things differ from the papers. The distance is the squared error of pixels, at full resolution and at each half
of it: a learned perceptual distance needs a network trained on photographs, which is neither at hand nor made for
medical images. The noise of the layers is fixed at zero: optimized as well, as in appendix D, it is a number a pixel
that would draw any image, whether or not the generator knows anything of it. And of all updates the best is kept.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from unalike.generators.stylegan.model import StyleganModel
from unalike.generators.stylegan.settings import ProjectionSettings
from unalike.records import FloatArray, Pixels

RISE, FALL = 0.05, 0.25  # shares of the updates over which the learning rate rises and falls (appendix D)
NOISY = 0.75  # share of the updates with noise on the style (appendix D)
SPREAD_DRAWS = 1024  # styles whose spread is the unit of that noise


@dataclass(frozen=True)
class Projection:
    """What n images became when a generator was made to draw them.

    ``styles`` (n, layers, latent), float32; ``images`` (n, C, H, W), what the generator draws of them without noise.
    ``distances`` (n,) is the root mean squared difference between ``images`` and the given ones, over all channels,
    in grey levels of 255; ``start`` (n,) the same at the mean style, before the first update.
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
    """Find styles from which ``model`` draws ``images`` (n, C, H, W), pixels of its own kind and size.

    A generator with classes starts from the mean style of the class whose mean image is nearest; no label is asked
    for. Each image is searched for on its own: all meet the same noise, which follows from ``seed``, and neighbours
    change nothing, to the last bit on one machine, as the network always works on ``settings.batch_size`` images. It
    computes in float32 whatever the model's precision. ``progress(count, text)`` is called after each such group.

    Raises `InputError` if the images are not of the size, channels and type that the model draws.
    """
    _check(model, images)
    with torch.no_grad():
        start = _Start.of(model)
    count, shape = len(images), model.shape
    found = Projection(
        styles=np.empty((count, shape.layers, shape.latent), np.float32),
        images=np.empty_like(images),
        distances=np.empty(count),
        start=np.empty(count),
    )
    for begin in range(0, count, settings.batch_size):
        group = images[begin : begin + settings.batch_size]
        filled = np.concatenate([group, np.repeat(group[-1:], settings.batch_size - len(group), axis=0)])
        part = slice(begin, begin + len(group))
        styles, first = _search(model, filled, start, settings, seed)
        with torch.no_grad():
            drawn = model.decode(_draw(model, styles))[: len(group)]
        found.styles[part], found.images[part] = styles.cpu().numpy()[: len(group)], drawn
        found.start[part] = grey_distance(first[: len(group)], group, highest=model.scale.highest)
        found.distances[part] = grey_distance(drawn, group, highest=model.scale.highest)
        if progress is not None:
            progress(len(group), f"off by {np.median(found.distances[part]):.1f} grey levels")
    return found


def grey_distance(drawn: Pixels, given: Pixels, *, highest: int) -> FloatArray:
    """Root mean squared difference (n,) of images (n, C, H, W), in grey levels of 255, ``highest`` being white."""
    difference = (drawn.astype(np.float64) - given).reshape(len(given), -1)
    distance: FloatArray = np.sqrt(np.square(difference).mean(axis=1)) * (255 / highest)
    return distance
