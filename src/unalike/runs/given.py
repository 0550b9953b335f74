"""Images and masks that samples are made from besides noise: which they are, where they come from, what is refused."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from unalike import folders
from unalike.cohort.store import open_images
from unalike.engine import tell
from unalike.errors import InputError, PictureError, SettingsError
from unalike.images.pictures import change_depth, read_picture
from unalike.records import MASK, Pixels

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")

if TYPE_CHECKING:
    from unalike.generators.diffusion.sample import Given


@dataclass(frozen=True)
class GivenSettings:
    """What samples are made from besides noise, as a user says it."""

    images: Path | None = None
    """Samples folder, or folder of pictures: images to change (--strength), or to draw anew in part."""

    redraw: Path | None = None
    """Picture that is bright (above half) where the images are to be drawn anew, or a folder with one for each."""

    box: tuple[int, int, int, int] | None = None
    """Rectangle to draw anew: top, left, height, width (pixels)."""

    masks: Path | None = None
    """Samples folder with a mask channel, or folder of pictures: masks to draw images for."""

    interpolate: tuple[int, int] | None = None
    """Seeds of the two samples between which all others lie."""

    def __post_init__(self) -> None:
        """Refuse what makes no sense together."""
        redraws = self.redraw is not None or self.box is not None
        if redraws and self.images is None:
            raise SettingsError("--redraw and --box are a part of given images: give --images FOLDER.")
        if self.redraw is not None and self.box is not None:
            raise SettingsError("--redraw and --box both say what is drawn anew. Give one of them.")
        if self.interpolate is not None and self.images is not None:
            raise SettingsError("--interpolate lies between two noises, --images begins with images. Give one of them.")


def read_given(settings: GivenSettings, *, content: Mapping[str, Any], count: int) -> tuple[Given, dict[str, Any]]:
    """The images, masks and ends, fitted to the run whose header has this ``content``, and what names them.

    Raises `InputError` for a cohort folder (patients' pixels must not become samples), and for images of another
    size or depth; `SettingsError` for a box outside the image.
    """
    from unalike.generators.diffusion.sample import Given

    channels, size = tuple(content["channels"]), (int(content["height"]), int(content["width"]))
    images = None if settings.images is None else read_images(settings.images, channels, size, content)
    masks = None if settings.masks is None else _read_masks(settings.masks, channels, size, content)
    keep = None
    if settings.box is not None:
        keep = _keep_outside(settings.box, size)
    elif settings.redraw is not None:
        files = _pictures(settings.redraw) if settings.redraw.is_dir() else [settings.redraw]
        keep = np.stack([_keep_dark(file, size) for file in files])
    if keep is not None and images is not None and len(keep) not in (1, len(images)):
        raise InputError(
            f"{settings.redraw} holds {len(keep)} pictures for {len(images)} images. Give one, or one for each."
        )
    if keep is not None and images is not None:
        keep = np.broadcast_to(keep, (len(images), *keep.shape[1:]))
    given = Given(images=images, keep=keep, masks=masks, ends=settings.interpolate, count=count)
    # Where they lie must not enter the samples; what they are may.
    name = {
        "images": _digest(images),
        "keep": _digest(keep),
        "masks": _digest(masks),
        "interpolate": settings.interpolate,
    }
    return given, name


def _digest(array: npt.NDArray[Any] | None) -> str | None:
    return None if array is None else hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def read_images(place: Path, channels: tuple[str, ...], size: tuple[int, int], content: Mapping[str, Any]) -> Pixels:
    """Images (n, C, H, W) of a samples folder or of pictures, with the run's channels, size and depth."""
    kind = folders.kind_of(place)
    if kind == "cohort":
        raise InputError(
            f"{place} is a cohort: its images show patients and must not become samples. Give a samples folder."
        )
    if kind == "samples":
        opened = open_images(place, kind="samples")
        if opened.header.content.get("holds_training_images"):
            raise InputError(
                f"{place} holds copies of training images, which must not become samples. Give other samples."
            )
        if opened.channels != channels:
            raise InputError(f"{place} has channels {', '.join(opened.channels)}, the run has {', '.join(channels)}.")
        images = opened.read(np.arange(len(opened)))
    else:
        tell(
            f"{place} holds pictures of unknown origin: what is kept of them is in the samples. If they show patients, "
            "so will the samples, and no audit can say otherwise."
        )
        if len(channels) > 1 and channels != ("red", "green", "blue"):
            raise InputError(
                f"{place} holds pictures, but the run has the channels {', '.join(channels)}. Give a samples folder."
            )
        color = "gray" if len(channels) == 1 else "rgb"
        images = np.stack([_read_one(file, color, size, content) for file in _pictures(place)])
    if images.shape[2:] != size or images.dtype.name != content["dtype"]:
        raise InputError(
            f"{place} holds images of {images.shape[2]} × {images.shape[3]} pixels, {images.dtype}; the run draws "
            f"{size[0]} × {size[1]}, {content['dtype']}. Give images like that."
        )
    return np.ascontiguousarray(images)


def _pictures(place: Path) -> list[Path]:
    if not place.is_dir():
        raise InputError(f"{place} does not exist or is no folder. Give a samples folder or a folder of pictures.")
    files = sorted(file for file in place.iterdir() if file.suffix.lower() in SUFFIXES)
    if not files:
        raise InputError(
            f"{place} holds no pictures (PNG, JPEG or TIFF). Give a samples folder or a folder of pictures."
        )
    return files


def _read_one(file: Path, color: Any, size: tuple[int, int], content: Mapping[str, Any]) -> Pixels:
    picture = read_picture(file, color=color)
    if picture.shape[1:] != size:
        raise PictureError(
            f"{file} is {picture.shape[1]} × {picture.shape[2]} pixels, the run draws {size[0]} × {size[1]}. Resize it."
        )
    return change_depth(picture, 8 if content["dtype"] == "uint8" else 16)


def _keep_dark(file: Path, size: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """(1, H, W): true where the picture is at most half bright."""
    picture = _read_one(file, "gray", size, {"dtype": "uint8"})
    return picture[:1] <= 127


def _keep_outside(box: tuple[int, int, int, int], size: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """(1, 1, H, W): true outside the box."""
    top, left, height, width = box
    if min(top, left) < 0 or min(height, width) < 1 or top + height > size[0] or left + width > size[1]:
        raise SettingsError(
            f"--box {top} {left} {height} {width} (top, left, height, width) is not within {size[0]} × {size[1]}."
        )
    keep = np.ones((1, 1, *size), bool)
    keep[:, :, top : top + height, left : left + width] = False
    return keep


def _read_masks(place: Path, channels: tuple[str, ...], size: tuple[int, int], content: Mapping[str, Any]) -> Pixels:
    """Masks (n, 1, H, W) with the levels of the run's own."""
    if MASK not in channels:
        raise SettingsError("--masks: this run has no mask channel. Leave it out.")
    if folders.kind_of(place) in ("cohort", "samples"):
        masks = read_images(place, channels, size, content)[:, channels.index(MASK)][:, None]
    else:
        masks = np.stack([_read_one(file, "gray", size, content) for file in _pictures(place)])
    levels = sorted(content["levels"].get(MASK, []))
    unknown = sorted(set(np.unique(masks).tolist()) - set(levels))
    if unknown:
        raise InputError(
            f"{place} has mask levels {', '.join(map(str, unknown[:5]))} that training did not. It had "
            f"{', '.join(map(str, levels))}."
        )
    return masks
