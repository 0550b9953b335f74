"""What may be done to a copied image: the changes by which the power of an audit is measured."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
from PIL import Image
from scipy import ndimage

from unalike.records import Pixels
from unalike.seeds import generator_for

# Works on one image (C, H, W) as float64 in units of 0–255, and another patient's; channels are changed alike.
Change = Callable[[Pixels, Pixels, np.random.Generator], Pixels]


def _jpeg(image: Pixels, _: Pixels, __: np.random.Generator) -> Pixels:
    planes = []
    for plane in image:
        stream = io.BytesIO()
        Image.fromarray(np.rint(np.clip(plane, 0, 255)).astype(np.uint8)).save(stream, "JPEG", quality=50)
        planes.append(np.asarray(Image.open(stream), dtype=np.float64))
    return np.stack(planes)


def _noise(deviation: float) -> Change:
    return lambda image, _, random: image + random.normal(0, deviation, image.shape)


def _blur(deviation: float) -> Change:
    return lambda image, _, __: ndimage.gaussian_filter(image, (0, deviation, deviation), mode="nearest")


def _shift(pixels: int) -> Change:
    return lambda image, _, __: ndimage.shift(image, (0, pixels, pixels), order=1, mode="nearest")


def _turn(degrees: float) -> Change:
    return lambda image, _, __: ndimage.rotate(image, degrees, axes=(1, 2), reshape=False, order=1, mode="nearest")


def _zoom(image: Pixels, _: Pixels, __: np.random.Generator) -> Pixels:
    """Cropped to the middle nine tenths and enlarged to the old size."""
    height, width = image.shape[1:]
    middle = (np.asarray([height, width]) - 1) / 2
    return np.stack(
        [ndimage.affine_transform(plane, [0.9, 0.9], middle * 0.1, order=1, mode="nearest") for plane in image]
    )


CHANGES: dict[str, Change] = {
    "none": lambda image, _, __: image,
    "noise, sd 5 of 255": _noise(5),
    "noise, sd 15 of 255": _noise(15),
    "noise, sd 40 of 255": _noise(40),
    "blur, sd 1 pixel": _blur(1),
    "blur, sd 2 pixels": _blur(2),
    "gamma 0.6": lambda image, _, __: 255 * (image / 255) ** 0.6,
    "JPEG, quality 50": _jpeg,
    "shift, 1 pixel": _shift(1),
    "shift, 2 pixels": _shift(2),
    "turn, 3 degrees": _turn(3),
    "turn, 6 degrees": _turn(6),
    "crop to 90 %": _zoom,
    "mirror image": lambda image, _, __: image[:, :, ::-1],
    "blend, 70 : 30": lambda image, other, _: 0.7 * image + 0.3 * other,
}


def change_images(images: Pixels, change: str, seed: int) -> Pixels:
    """Apply one of `CHANGES` to images (n, C, H, W) of 8 or 16 bits; the depth stays. Each is blended with the next."""
    unit = np.iinfo(images.dtype).max / 255
    changed = np.empty_like(images)
    others = np.roll(images, 1, axis=0)
    for index, (image, other) in enumerate(zip(images, others, strict=True)):
        random = generator_for(seed, change, index)
        result = CHANGES[change](image / unit, other / unit, random) * unit
        changed[index] = np.rint(np.clip(result, 0, np.iinfo(images.dtype).max))
    return changed
