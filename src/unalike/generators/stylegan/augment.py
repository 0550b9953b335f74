"""Adaptive discriminator augmentation: the critic sees real and generated images changed in the same random ways.

Each transformation happens to an image with probability p, the strength, which follows how far the critic overfits
(Karras et al. 2020, "Training Generative Adversarial Networks with Limited Data", section 3 and appendix B). As long as
an image is left as it is often enough, the distribution of changed images tells that of unchanged ones apart, and the
generator learns no change: the mixing of, say, quarter turns has the eigenvalues 1 and 1 − p, and none is zero.

Of the paper's transformations these are here: exact copies of pixels (mirror, quarter turn, whole-pixel shift), general
geometry (scale, turn, stretch, fractional shift) and intensity (brightness, contrast, inversion about mid-grey, which
is the luma flip of a grey image). Hue and saturation turn and stretch the colour space about the grey axis of red,
green and blue; channels of a medical image are no colours, and there is no such axis. Intensity is drawn once for an
image and changes its channels alike, but no mask's.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from scipy.special import ndtri

from unalike.errors import SettingsError

LARGEST_SHIFT = 1 / 8  # of the image's shorter side, in whole pixels
SCALE_OCTAVES = 0.2  # standard deviation, of scale and of stretch: the paper's lognormal of σ = 0.2 · ln 2
FRACTIONAL_SHIFT = 0.125  # standard deviation, a share of the shorter side
BRIGHTNESS = 0.2  # standard deviation, where black to white is 2
CONTRAST_OCTAVES = 0.5  # standard deviation: the paper's lognormal of σ = 0.5 · ln 2

_COINS = 11  # one for each transformation, in the order of draw_transforms
_UNIFORMS = 7  # mirror, quarter turn, two whole shifts, two turns, inversion
_NORMALS = 6  # scale, stretch, two fractional shifts, brightness, contrast
_LOBES = 3  # of the Lanczos kernel: pixels to each side that a doubled one is made from

_Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Transforms:
    """What is done to n images. All tensors stay on the CPU and but for ``moved`` are float32.

    ``matrices`` (n, 2, 3) hold all of the geometry: for each place of the changed image the place to read from, as
    `torch.nn.functional.affine_grid` wants it for a square image. In an oblong one the unit of both axes is half the
    shorter side, so that a circle stays a circle. They are used where ``moved`` (n, bool): some of it is no exact copy
    of pixels. Elsewhere ``blits`` (n, 4) say the same: mirrored left to right (0 or 1), then quarter turns clockwise
    (0 to 3), then shifts to the right and down, as shares of the shorter side, rounded to whole pixels when applied.

    Intensity x in [−1, 1] becomes ``gain`` · x + ``offset`` (n,); a negative gain inverts.
    """

    matrices: torch.Tensor
    blits: torch.Tensor
    moved: torch.Tensor
    gain: torch.Tensor
    offset: torch.Tensor

    def __len__(self) -> int:
        """Number of images."""
        return len(self.moved)

    def __getitem__(self, part: slice) -> Transforms:
        """Those of the images in ``part``."""
        return Transforms(
            matrices=self.matrices[part],
            blits=self.blits[part],
            moved=self.moved[part],
            gain=self.gain[part],
            offset=self.offset[part],
        )


def draw_transforms(count: int, *, strength: float, random: np.random.Generator, square: bool) -> Transforms:
    """Transforms for ``count`` images, each transformation with probability ``strength`` (0 to 1; the paper's p).

    Within its probability a mirror image is left as it is half of the time, a quarter turn is uniform over 0 to 3, a
    whole shift and a turn are uniform, the others normal. A turn comes before and after the stretch, each with
    probability 1 − √(1 − p), so that one of them happens with p (appendix B). Quarter turns only where
    images are ``square``. Shifts are shares of the shorter side along both axes.

    Image i's numbers are the i-th ones that ``random`` gives: they depend neither on ``count`` nor on what falls to
    other images. NumPy alone computes here, so that a reader thread may call it.

    Raises `SettingsError` for a strength outside [0, 1].
    """
    if not 0 <= strength <= 1:
        raise SettingsError(f"strength = {strength!r} of the augmentation: give a share from 0 to 1.")
    drawn = random.random((count, _COINS + _UNIFORMS + _NORMALS))
    chances = np.full(_COINS, float(strength))
    chances[[4, 6]] = 1 - math.sqrt(1 - strength)
    mirrors, quarters, shifts, scales, turns, stretches, turns_after, fractions, lights, contrasts, inversions = (
        drawn[:, :_COINS] < chances
    ).T
    mirror, quarter, right, down, turn, turn_after, inversion = drawn[:, _COINS : _COINS + _UNIFORMS].T
    # A uniform number may be 0, where the normal one would be infinite.
    normals = ndtri(np.maximum(drawn[:, -_NORMALS:], 2.0**-54)).T
    scale, stretch, right_after, down_after, light, contrast = normals

    blits = np.stack(
        [
            mirrors & (mirror < 0.5),
            np.where(quarters & square, np.floor(4 * quarter), 0),
            np.where(shifts, (2 * right - 1) * LARGEST_SHIFT, 0),
            np.where(shifts, (2 * down - 1) * LARGEST_SHIFT, 0),
        ],
        axis=1,
    )
    size = np.where(scales, 2.0 ** (SCALE_OCTAVES * scale), 1)
    width = np.where(stretches, 2.0 ** (SCALE_OCTAVES * stretch), 1)
    general = (
        _shifts(FRACTIONAL_SHIFT * np.where(fractions, [right_after, down_after], 0))
        @ _turns(np.where(turns_after, (2 * turn_after - 1) * math.pi, 0))
        @ _scales(width, 1 / width)
        @ _turns(np.where(turns, (2 * turn - 1) * math.pi, 0))
        @ _scales(size, size)
    )
    sign = np.where(inversions & (inversion < 0.5), -1, 1)
    gain = sign * np.where(contrasts, 2.0 ** (CONTRAST_OCTAVES * contrast), 1)
    return Transforms(
        matrices=_tensor(np.linalg.inv(general @ _blit_matrices(blits))[:, :2]),
        blits=_tensor(blits),
        moved=torch.from_numpy(scales | turns | stretches | turns_after | fractions),
        gain=_tensor(gain),
        offset=_tensor(gain * np.where(lights, BRIGHTNESS * light, 0)),
    )


def apply_transforms(images: torch.Tensor, transforms: Transforms, *, masks: Sequence[int] = ()) -> torch.Tensor:
    """The changed ``images`` (B, C, H, W), float32 about [−1, 1], on their device; the given ones stay as they are.

    Differentiable with respect to ``images``, but once only: a penalty on the critic's gradient is to be taken at the
    changed images. Nothing is clipped. Channels at the positions ``masks`` (from 0) follow the geometry, where each
    pixel takes the nearest one, so that no new level occurs, and never the intensity.

    An image to which nothing geometric happened keeps its pixels bit for bit, and one that is only mirrored, turned by
    quarters or shifted by whole pixels is an exact copy of pixels. All others are read between the pixels of the image
    at twice its size, and the result is halved, both with a Lanczos kernel: the paper does the same with a wavelet's.
    What comes in from outside is the image reflected at its edge.

    Raises `ValueError` for an odd number of quarter turns of an oblong image.
    """
    blitted = (transforms.blits != 0).any(dim=1) & ~transforms.moved
    # In half precision a place in a large image would be known to a few pixels.
    with torch.autocast(images.device.type, enabled=False):
        images = images.float()
        changed = images.clone()
        if bool(blitted.any()):
            rows = _positions(blitted, images)
            changed[rows] = _copy_pixels(images[rows], transforms.blits[blitted])
        if bool(transforms.moved.any()):
            rows = _positions(transforms.moved, images)
            changed[rows] = _resample(images[rows], transforms.matrices[transforms.moved], masks)
        return _change_intensity(changed, transforms, masks)


def adapt_strength(
    strength: float, sign: float, *, images: int, target: float = 0.6, kimg: float = 500.0, highest: float = 0.8
) -> float:
    """The strength to go on with, where ``sign`` is the mean of sign(D(real)) over the ``images`` since the last time.

    ``sign`` is the paper's r_t (equation 1): 0 where the critic does not overfit, 1 where it knows all real images.
    Above ``target`` the strength rises, below it falls, by so much that all the way from 0 to 1 takes ``kimg`` thousand
    images; it stays within 0 and ``highest``. The paper finds (section 2.2) that above about 0.8 changes
    begin to leak into generated images.
    """
    step = images / (kimg * 1000)
    moved = strength + step * ((sign > target) - (sign < target))
    return min(max(moved, 0.0), highest)


def _tensor(values: npt.NDArray[np.generic]) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))


# Forward maps (n, 3, 3): the place where content at (x, y, 1) goes. x points right, y down, the centre is 0.


def _shifts(shares: _Floats) -> _Floats:
    """Shifts right and down by ``shares`` (2, n) of the shorter side, which is 2 units long."""
    matrices = _identities(shares.shape[1])
    matrices[:, :2, 2] = 2 * shares.T
    return matrices


def _scales(right: _Floats, down: _Floats) -> _Floats:
    """Factors (n,) along both axes."""
    matrices = _identities(len(right))
    matrices[:, 0, 0], matrices[:, 1, 1] = right, down
    return matrices


def _turns(angles: _Floats) -> _Floats:
    """Clockwise turns by ``angles`` (n,) in radians."""
    return _turns_of(np.cos(angles), np.sin(angles))


def _turns_of(cosine: _Floats, sine: _Floats) -> _Floats:
    matrices = _identities(len(cosine))
    matrices[:, 0, 0], matrices[:, 0, 1] = cosine, -sine
    matrices[:, 1, 0], matrices[:, 1, 1] = sine, cosine
    return matrices


def _identities(count: int) -> _Floats:
    return np.tile(np.eye(3), (count, 1, 1))


def _blit_matrices(blits: _Floats) -> _Floats:
    """The forward maps of ``blits`` (n, 4), whose shifts are not rounded here: what is resampled needs no rounding."""
    mirrored, quarters, right, down = blits.T
    turns = quarters.astype(int)
    turned = _turns_of(np.array([1.0, 0, -1, 0])[turns], np.array([0, 1.0, 0, -1])[turns])
    return _shifts(np.stack([right, down])) @ turned @ _scales(1 - 2 * mirrored, np.ones(len(blits)))


def _positions(chosen: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    """Indices of the true entries of ``chosen`` (on the CPU), on the device of ``images``."""
    return chosen.nonzero().squeeze(1).to(images.device)


def _copy_pixels(images: torch.Tensor, blits: torch.Tensor) -> torch.Tensor:
    """``images`` (n, C, H, W) mirrored, turned and shifted by ``blits`` (n, 4): a gather of their own pixels."""
    count, channels, height, width = images.shape
    quarters = blits[:, 1].long()
    if height != width and bool((quarters % 2).any()):
        raise ValueError(f"an image of {height} × {width} pixels cannot be turned by a quarter: draw with square=False")
    shifts = (blits[:, 2:].double() * min(height, width)).round().long()
    cosine, sine = torch.tensor([[1, 0, -1, 0], [0, 1, 0, -1]])[:, quarters]
    numbers = torch.stack([shifts[:, 0], shifts[:, 1], cosine, sine, 1 - 2 * blits[:, 0].long()])
    right, down, cosine, sine, sign = numbers.to(images.device)[:, :, None, None]
    # Twice the distance from the centre is a whole number. Backwards: the shift, the turn, the mirror.
    x = 2 * (torch.arange(width, device=images.device) - right) - (width - 1)
    y = 2 * (torch.arange(height, device=images.device)[:, None] - down) - (height - 1)
    column = _reflect((sign * (cosine * x + sine * y) + width - 1) // 2, width)
    row = _reflect((cosine * y - sine * x + height - 1) // 2, height)
    source = (row * width + column).flatten(1)[:, None].expand(-1, channels, -1)
    return images.flatten(2).gather(2, source).view(count, channels, height, width)


def _reflect(places: torch.Tensor, length: int) -> torch.Tensor:
    """Whole ``places`` brought back into 0 to ``length`` − 1, reflected at the edges: −1 is 0 again."""
    inside = places % (2 * length)
    return torch.minimum(inside, 2 * length - 1 - inside)


def _resample(images: torch.Tensor, matrices: torch.Tensor, masks: Sequence[int]) -> torch.Tensor:
    """``images`` (n, C, H, W) read at the places of ``matrices`` (n, 2, 3)."""
    height, width = images.shape[2:]
    # affine_grid's units are half the width and half the height; the matrices' are half the shorter side.
    units = torch.tensor([width, height], dtype=torch.float32) / min(height, width)
    places = (matrices / units[:, None] * torch.cat([units, torch.ones(1)])).to(images.device)
    if not masks:
        return _read_between(images, places)
    smooth = [channel for channel in range(images.shape[1]) if channel not in masks]
    read = torch.empty_like(images)
    read[:, list(masks)] = _read(images[:, list(masks)], places, mode="nearest")
    if smooth:
        read[:, smooth] = _read_between(images[:, smooth], places)
    return read


def _read_between(images: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """``images`` at twice their size, read at ``places`` (n, 2, 3) on as fine a grid, and halved again."""
    down, right = (torch.from_numpy(_doubling(length)).to(images.device) for length in images.shape[2:])
    doubled = _read(down @ images @ right.T, places, mode="bilinear")
    # A doubled pixel counts as a half along each axis.
    return (down.T / 2) @ doubled @ (right / 2)


def _read(images: torch.Tensor, places: torch.Tensor, *, mode: str) -> torch.Tensor:
    grid = F.affine_grid(places, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode=mode, padding_mode="reflection", align_corners=False)


@functools.lru_cache(maxsize=8)
def _doubling(length: int) -> npt.NDArray[np.float32]:
    """The matrix (2 · length, length) that doubles a row of pixels, reflected at both ends, with Lanczos' kernel.

    Rows sum to 1 and columns to 2, so that a constant stays one on the way there and, by half the transpose, back. A
    matrix and no convolution, as it holds the reflection too; kept in NumPy, as a tensor made in inference mode could
    not be trained through later.
    """
    places = (np.arange(2 * length) + 0.5) / 2 - 0.5
    taps = np.floor(places).astype(int)[:, None] + np.arange(1 - _LOBES, _LOBES + 1)
    distances = places[:, None] - taps
    weights = np.sinc(distances) * np.sinc(distances / _LOBES)
    weights /= weights.sum(axis=1, keepdims=True)
    inside = taps % (2 * length)
    matrix = np.zeros((2 * length, length))
    np.add.at(matrix, (np.arange(2 * length)[:, None], np.minimum(inside, 2 * length - 1 - inside)), weights)
    return matrix.astype(np.float32)


def _change_intensity(images: torch.Tensor, transforms: Transforms, masks: Sequence[int]) -> torch.Tensor:
    """``images`` (n, C, H, W) with their gain and offset on all channels but ``masks``."""
    numbers = torch.stack([transforms.gain, transforms.offset])[:, :, None].repeat(1, 1, images.shape[1])
    if masks:
        numbers[:, :, list(masks)] = torch.tensor([1.0, 0.0])[:, None, None]
    gain, offset = numbers.to(images.device)[..., None, None]
    return torch.addcmul(offset, images, gain)
