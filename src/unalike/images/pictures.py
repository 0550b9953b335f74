"""Pictures (PNG, JPEG, TIFF; 8 and 16 bits; gray and colour) as arrays (channels, height, width)."""

from __future__ import annotations

import math
import zlib
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import tifffile
from PIL import Image, ImageOps, UnidentifiedImageError

from unalike.errors import PictureError
from unalike.images.quiet import QUIET
from unalike.records import Pixels

Color = Literal["auto", "gray", "rgb"]

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".tif", ".tiff"})
# A file that announces more pixels is refused before any memory is taken (a damaged or hostile header).
LARGEST_PICTURE = 2**27
_MOST_SAMPLES = 4  # of a pixel: red, green, blue and alpha; or cyan, magenta, yellow and black
# Compressions of TIFF: none and PackBits, which makes of one byte at most 64; and two numbers of deflate.
_BOUNDED, _DEFLATE = frozenset({1, 32773}), frozenset({8, 32946})


def channel_names(count: int) -> tuple[str, ...]:
    """Names of the channels of a picture: ``gray``, or ``red``, ``green``, ``blue``."""
    return ("gray",) if count == 1 else ("red", "green", "blue")


def read_picture(path: Path, *, color: Color = "auto") -> Pixels:
    """Read one picture as unsigned integers (C, H, W), C = 1 or 3, 8 or 16 bits as in the file.

    ``color`` keeps what the file has (``auto``) or turns it into ``gray`` (ITU-R 601 luma) or ``rgb``. Palettes
    and CMYK become colour, an opaque alpha channel is dropped, the EXIF orientation is applied, and no
    other metadata is looked at.

    Raises `PictureError` if the file cannot be read whole, is animated, transparent, or of another depth.
    """
    try:
        with QUIET:  # of decompression bombs, too: `_refuse_huge` is the limit here
            array = _read_tiff(path) if path.suffix.lower() in {".tif", ".tiff"} else _read_with_pillow(path)
    except PictureError:
        raise
    except Exception as error:  # decoders raise whatever they like on damaged files
        said = " ".join(str(error).split())[:200] or type(error).__name__
        kind = "is not a picture" if isinstance(error, UnidentifiedImageError) else f"cannot be read ({said})"
        raise PictureError(f"{path} {kind}. Remove the file or pass --on-bad-file skip.") from error
    return convert_color(array, color)


def _refuse_huge(path: Path, height: int, width: int) -> None:
    if height * width > LARGEST_PICTURE:
        raise PictureError(f"{path} announces {width}×{height} pixels. Shrink or remove the file.")


def _read_with_pillow(path: Path) -> Pixels:
    picture: Image.Image
    with Image.open(path) as picture:
        _refuse_huge(path, picture.height, picture.width)
        if getattr(picture, "n_frames", 1) > 1:
            raise PictureError(f"{path} holds several frames. Save each as a file of its own.")
        if _bits_of_png(path) == 16 and not picture.mode.startswith("I"):
            raise PictureError(f"{path} is 16-bit colour PNG, of which only 8 bits can be read. Save it as TIFF.")
        picture.load()
        picture = ImageOps.exif_transpose(picture)
        if picture.mode.startswith("I"):
            return _as_unsigned(path, np.asarray(picture))[None]
        if picture.mode in {"1", "L"}:
            return np.asarray(picture.convert("L"))[None]
        if picture.mode == "F":
            raise PictureError(f"{path} holds floating-point pixels. Save it with 8 or 16 bits.")
        had_alpha = "A" in picture.mode or "transparency" in picture.info
        if "A" in picture.mode or "transparency" in picture.info:
            picture = _drop_alpha(path, picture)
        plain = picture.mode in {"RGB", "CMYK", "YCbCr", "LAB", "HSV"} and not had_alpha
        gray = picture.mode in {"L", "LA"}
        array = np.asarray(picture.convert("L" if gray else "RGB"))
        if not plain and not gray and (array == array[..., :1]).all():
            return np.ascontiguousarray(array[None, :, :, 0])  # a palette of grays, or gray saved with alpha
        return array[None] if gray else np.ascontiguousarray(array.transpose(2, 0, 1))


def _bits_of_png(path: Path) -> int:
    """Bit depth from a PNG's IHDR chunk; Pillow hides it for 16-bit colour. 0 for other files."""
    with path.open("rb") as stream:
        head = stream.read(26)
    return head[24] if head.startswith(b"\x89PNG\r\n\x1a\n") and len(head) == 26 else 0


def _drop_alpha(path: Path, picture: Image.Image) -> Image.Image:
    opaque = picture.convert("RGBA")
    if opaque.getchannel("A").getextrema() != (255, 255):
        raise PictureError(f"{path} is transparent in places. Flatten it onto a background first.")
    return picture.convert("L") if picture.mode == "LA" else opaque.convert("RGB")


def _read_tiff(path: Path) -> Pixels:
    with tifffile.TiffFile(path) as tiff:
        if len(tiff.pages) != 1:
            raise PictureError(f"{path} holds {len(tiff.pages)} pages. Save each as a file of its own.")
        page: Any = tiff.pages[0]
        _refuse_huge(path, page.imagelength, page.imagewidth)
        if math.prod(page.shape) > _MOST_SAMPLES * LARGEST_PICTURE:
            raise PictureError(f"{path} announces {page.samplesperpixel} samples a pixel. Shrink or remove the file.")
        if int(page.compression) not in _BOUNDED | _DEFLATE:
            return _read_with_pillow(path)  # its decoders stop where a strip is full
        if int(page.compression) in _DEFLATE:
            _refuse_swelling(path, tiff, page)
        photometric = int(page.photometric)
        array = page.asarray()
        if array.ndim == 3 and int(page.planarconfig) == 2:
            array = array.transpose(1, 2, 0)
    if photometric not in {0, 1, 2, 6}:
        return _read_with_pillow(path)  # palette, CMYK: Pillow converts them
    array = _as_unsigned(path, array)
    if photometric == 0:  # white is zero
        array = np.iinfo(array.dtype).max - array
    if array.ndim == 2:
        return array[None]
    if array.ndim == 3 and array.shape[2] == 3:
        return np.ascontiguousarray(array.transpose(2, 0, 1))
    if array.ndim == 3 and array.shape[2] == 4 and (array[..., 3] == np.iinfo(array.dtype).max).all():
        return np.ascontiguousarray(array[..., :3].transpose(2, 0, 1))
    raise PictureError(f"{path} has shape {array.shape}: one picture of 1 or 3 channels is needed.")


def _refuse_swelling(path: Path, tiff: tifffile.TiffFile, page: Any) -> None:
    """Refuse deflated strips that hold more than they announce: tifffile unpacks whatever is there, up to gigabytes."""
    announced = math.prod(page.chunks) * page.dtype.itemsize
    for offset, count in zip(page.dataoffsets, page.databytecounts, strict=True):
        tiff.filehandle.seek(offset)
        if len(zlib.decompressobj().decompress(tiff.filehandle.read(count), announced + 1)) > announced:
            raise PictureError(
                f"{path} cannot be read (it holds more than it announces). Remove the file or pass --on-bad-file skip."
            )


def _as_unsigned(path: Path, array: npt.NDArray[Any]) -> Pixels:
    if array.dtype in (np.uint8, np.uint16):
        return array
    if array.dtype == np.bool_:
        return array.astype(np.uint8) * np.uint8(255)
    if np.issubdtype(array.dtype, np.integer) and array.size and array.min() >= 0 and array.max() < 2**16:
        return array.astype(np.uint16)
    raise PictureError(f"{path} holds {array.dtype} pixels. Save it with 8 or 16 unsigned bits.")


def convert_color(array: Pixels, color: Color) -> Pixels:
    """The same picture (C, H, W) in gray (ITU-R 601 luma), colour, or (``auto``) as it is."""
    if color == "rgb" and len(array) == 1:
        return np.repeat(array, 3, axis=0)
    if color == "gray" and len(array) == 3:
        red, green, blue = array.astype(np.uint32)
        luma = 299 * red + 587 * green + 114 * blue  # thousandths: integers, so that halves round alike everywhere
        gray: Pixels = ((luma + 500) // 1000)[None].astype(array.dtype)
        return gray
    return array


def change_depth(array: Pixels, bits: int) -> Pixels:
    """The same picture with 8 or 16 bits: 255 and 65,535 are both white."""
    if bits == 8 and array.dtype == np.uint16:
        return np.rint(array / 257).astype(np.uint8)
    if bits == 16 and array.dtype == np.uint8:
        return array.astype(np.uint16) * np.uint16(257)
    return array
