"""Changed training images that do not leak into samples: the network is told what was done to each.

An image of a batch is mirrored, scaled, turned or shifted, each with the same probability, and a vector of numbers
that says so enters the network. Zeros mean "untouched", and zeros are what is given at sampling (Karras et al. 2022,
"Elucidating the Design Space of Diffusion-Based Generative Models", appendix F.2; Jun et al. 2020, "Distribution
Augmentation for Generative Modeling"; the transformations are of Karras et al. 2020, "Training Generative Adversarial
Networks with Limited Data").

Of the paper's transformations those are left out that a medical image is never seen under: quarter turns, upside down,
one-sided stretching. Turns and shifts are bounded and small, so that little of the filled-in surroundings is seen.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from unalike.errors import SettingsError

AUGMENT_LABELS = 6  # mirrored (0 or 1), scale, cos − 1 and sin of the turn, shift to the right, shift down

LARGEST_SCALE = 0.3  # octaves: content between 0.81 and 1.23 times its size; the scale's label is a share of this
LARGEST_TURN = math.pi / 6  # radians
LARGEST_SHIFT = 1 / 8  # of the image's shorter side; the shifts' labels are shares of this

_NUMBERS = 8  # drawn for each image: four coins, then scale, turn and the two shifts


@dataclass(frozen=True)
class Changes:
    """What is done to the n images of a batch. Both tensors are float32 and stay on the CPU.

    ``labels`` (n, `AUGMENT_LABELS`) is what the network is told. ``matrices`` (n, 2, 3) follow from them: for each
    place of the changed image the place to read from, as `torch.nn.functional.affine_grid` wants it for a square image.
    In an oblong one the unit of both axes is half the shorter side, so that a circle stays a circle.
    """

    matrices: torch.Tensor
    labels: torch.Tensor


def draw_changes(count: int, *, probability: float, random: np.random.Generator) -> Changes:
    """Changes for ``count`` images, each of the four transformations with ``probability`` (0 to below 1).

    How far is uniform within the largest scale, turn and shift. Image i's numbers are the i-th ones that
    ``random`` gives: they depend neither on ``count`` nor on what falls to other images.

    Raises `SettingsError` for another probability: at 1 the network would never see an untouched image, and it is
    untouched ones that are sampled.
    """
    if not 0 <= probability < 1:
        raise SettingsError(f"probability = {probability!r} of a change to an image: give a share from 0 to below 1.")
    drawn = random.random((count, _NUMBERS))
    coins, amounts = drawn[:, :4].T, 2 * drawn[:, 4:].T - 1
    mirrored, scaled, turned, shifted = coins < probability
    scale, turn, right, down = amounts
    angle = np.where(turned, turn * LARGEST_TURN, 0)
    columns = [
        mirrored,
        np.where(scaled, scale, 0),
        np.cos(angle) - 1,
        np.sin(angle),
        np.where(shifted, right, 0),
        np.where(shifted, down, 0),
    ]
    return changes_from_labels(torch.from_numpy(np.stack(columns, axis=1).astype(np.float32)))


def changes_from_labels(labels: torch.Tensor) -> Changes:
    """The changes that ``labels`` (n, `AUGMENT_LABELS`) tell of; nothing else enters.

    Content is mirrored left to right where the first number is 1, made 2 ** (`LARGEST_SCALE` · scale) times as large
    and turned clockwise about the image's centre, then shifted.
    """
    mirrored, scale, cosine, sine, right, down = labels.double().unbind(dim=1)
    cosine = cosine + 1
    zoom = torch.exp2(-LARGEST_SCALE * scale)
    # out = R S F in + t, hence in = F S⁻¹ Rᵀ (out − t). F is the mirror; x points right and y down.
    sign = 1 - 2 * mirrored
    linear = torch.stack([zoom * sign * cosine, zoom * sign * sine, -zoom * sine, zoom * cosine], dim=1).view(-1, 2, 2)
    # A side is 2 units long.
    shift = 2 * LARGEST_SHIFT * torch.stack([right, down], dim=1).unsqueeze(2)
    return Changes(matrices=torch.cat([linear, -linear @ shift], dim=2).float(), labels=labels.float())


@torch.no_grad()
def apply_changes(images: torch.Tensor, changes: Changes, *, nearest: Sequence[int] = ()) -> torch.Tensor:
    """The changed ``images`` (B, C, H, W), float32 in [−1, 1], on their device; the given ones stay as they are.

    Values between pixels are bilinear; what comes in from outside repeats the image's border. Channels at the
    positions ``nearest`` (masks) take the nearest pixel, so that no new level occurs. An image whose labels are all
    zero comes back bit for bit, and so does, mirrored, one that is only mirrored.
    """
    told = changes.labels
    moved = (told[:, 1:] != 0).any(dim=1)
    changed = images.clone()
    flips = _positions(~moved & (told[:, 0] != 0), images)
    if len(flips):
        changed[flips] = images[flips].flip(3)
    moves = _positions(moved, images)
    if len(moves):
        changed[moves] = _resample(images[moves], changes.matrices[moved], nearest)
    return changed


def _positions(chosen: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    """Indices of the true entries of ``chosen`` (on the CPU), on the device of ``images``."""
    return chosen.nonzero().squeeze(1).to(images.device)


def _resample(images: torch.Tensor, matrices: torch.Tensor, nearest: Sequence[int]) -> torch.Tensor:
    """``images`` (n, C, H, W) read at the places of ``matrices`` (n, 2, 3)."""
    height, width = images.shape[2:]
    # affine_grid's units are half the width and half the height; the matrices' are half the shorter side.
    units = torch.tensor([width, height], dtype=torch.float32) / min(height, width)
    fitted = matrices / units[:, None] * torch.cat([units, torch.ones(1)])
    grid = F.affine_grid(fitted.to(images.device), list(images.shape), align_corners=False)
    read = F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)
    masks = list(nearest)
    if masks:
        read[:, masks] = F.grid_sample(
            images[:, masks], grid, mode="nearest", padding_mode="border", align_corners=False
        )
    return read
