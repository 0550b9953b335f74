"""What the two networks are built of: layers of equalized learning rate, modulated convolutions, resampling.

Every tensor of images or features is (B, C, H, W).
"""

from __future__ import annotations

import functools
import math
from typing import Final

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

SLOPE: Final = 0.2  # of the leaky ReLU below zero
GAIN: Final = math.sqrt(2)  # keeps the variance of what a leaky ReLU lets through
TINY: Final = 1e-8
TAPS: Final = (1.0, 3.0, 3.0, 1.0)  # the low-pass filter of all resampling, bilinear upwards


class EqualizedLinear(nn.Module):
    """x W ᵀ c + b with weights of unit variance and the constant c = 1/√fan-in at run time.

    So every weight has the same dynamic range, and Adam the same speed (Karras et al. 2018, section 4.1).
    ``rate`` slows the layer down (0.01 in the mapping network), ``bias`` is where its bias starts.
    """

    def __init__(self, inputs: int, outputs: int, *, rate: float = 1.0, bias: float = 0.0, leaky: bool = False) -> None:
        """Weights ~ N(0, 1 / rate²)."""
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs) / rate)
        self.bias = nn.Parameter(torch.full((outputs,), bias / rate))
        self.scale, self.rate, self.leaky = rate / math.sqrt(inputs), rate, leaky

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, inputs) → (B, outputs)."""
        y = F.linear(x, self.weight * self.scale, self.bias * self.rate)
        return leak(y) if self.leaky else y


class EqualizedConv(nn.Module):
    """A convolution of equalized learning rate that may halve the resolution, behind a low-pass filter."""

    def __init__(self, inputs: int, outputs: int, *, kernel: int, down: bool = False, bias: bool = True) -> None:
        """Weights ~ N(0, 1)."""
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(outputs)) if bias else None
        self.scale, self.down, self.kernel = 1 / math.sqrt(inputs * kernel**2), down, kernel

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, inputs, H, W) → (B, outputs, H, W), half of these sides with ``down``."""
        weight = self.weight * self.scale
        if not self.down:
            return F.conv2d(x, weight, self.bias, padding=self.kernel // 2)
        if self.kernel == 1:
            return F.conv2d(downsample(x), weight, self.bias)
        # A filter of 4 taps and then one of 3 centred on the same places: 2 pixels more on each side.
        return F.conv2d(low_pass(x, margin=2), weight, self.bias, stride=2)


def leak(x: torch.Tensor) -> torch.Tensor:
    """Leaky ReLU, scaled so that it keeps the variance."""
    return F.leaky_relu(x, SLOPE) * GAIN


def unit_length(x: torch.Tensor) -> torch.Tensor:
    """Rows of x (B, n) with a mean square of 1."""
    return x * (x.square().mean(dim=1, keepdim=True) + TINY).rsqrt()


def modulated_conv(
    x: torch.Tensor,
    weight: torch.Tensor,
    styles: torch.Tensor,
    *,
    demodulate: bool = True,
    up: bool = False,
    fused: bool = False,
) -> torch.Tensor:
    """The convolution of each image with a weight of its own, w'_ijk = s_i w_ijk (Karras et al. 2020, equations 1–3).

    ``weight`` is (O, I, k, k), ``styles`` (B, I), float32. Demodulated, w''_ijk = w'_ijk / √(Σ_ik w'_ijk² + ε): for
    input of unit variance the output has unit variance as well. ``up`` doubles the resolution, and filters. ``fused``
    builds the B weights and convolves in B groups; otherwise input and output are scaled by channel instead: the
    same numbers up to rounding.
    """
    count, inputs = styles.shape
    scales = None
    if demodulate:
        # Σ_ik (s_i w_ijk)² = Σ_i s_i² Σ_k w_ijk², without the B weights.
        scales = (styles.square() @ weight.square().sum(dim=(2, 3)).T + TINY).rsqrt()
    if fused:
        weights = weight * styles[:, None, :, None, None]
        if scales is not None:
            weights = weights * scales[:, :, None, None, None]
        x = x.reshape(1, count * inputs, *x.shape[2:])
        y = _convolve(x, weights.flatten(0, 1), up=up, groups=count)
        return y.reshape(count, -1, *y.shape[2:])
    y = _convolve(x * styles[:, :, None, None].to(x.dtype), weight, up=up, groups=1)
    return y if scales is None else y * scales[:, :, None, None].to(y.dtype)


def _convolve(x: torch.Tensor, weight: torch.Tensor, *, up: bool, groups: int) -> torch.Tensor:
    """Convolution with ``weight`` (groups · O, I, k, k), at twice the resolution and low-passed with ``up``."""
    if not up:
        return F.conv2d(x, weight, padding=weight.shape[2] // 2, groups=groups)
    # A transposed convolution wants (groups · I, O, k, k). It spreads each pixel as if zeros lay between them, which
    # the filter, of gain 4, fills.
    outputs, inputs, *kernel = weight.shape
    spread = weight.view(groups, outputs // groups, inputs, *kernel).transpose(1, 2)
    y = F.conv_transpose2d(x, spread.reshape(groups * inputs, -1, *kernel), stride=2, groups=groups)
    return low_pass(y, margin=1, gain=4)


def low_pass(x: torch.Tensor, *, margin: int, gain: float = 1.0) -> torch.Tensor:
    """Convolution of each channel with the separable filter `TAPS`, of sum ``gain``, with zeros around the image.

    ``margin`` zeros on each side give an image 2 · margin − 3 pixels larger.
    """
    channels = x.shape[1]
    taps = torch.tensor(TAPS, dtype=x.dtype, device=x.device)
    kernel = torch.outer(taps, taps) * (gain / sum(TAPS) ** 2)
    return F.conv2d(x, kernel.expand(channels, 1, 4, 4), padding=margin, groups=channels)


def downsample(x: torch.Tensor) -> torch.Tensor:
    """Half the resolution, low-passed: exact on constants and ramps but for the outermost pixels."""
    height, width = (resampling(side // 2, x.dtype, x.device) for side in x.shape[2:])
    return height.T @ x @ width / 4


def upsample(x: torch.Tensor) -> torch.Tensor:
    """Twice the resolution, bilinear, in float32: zeros between the pixels, then the low-pass filter."""
    height, width = (resampling(side, x.dtype, x.device) for side in x.shape[2:])
    with torch.autocast(x.device.type, enabled=False):
        return height @ x @ width.T


@functools.lru_cache(maxsize=256)
def resampling(side: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """The matrix (2 · side, side) that doubles a row of pixels; its transpose over 2 halves one.

    Products with it are several times as fast on a processor as the strided depthwise convolutions that they stand for,
    above all in bfloat16 and backwards.
    """
    matrix = np.zeros((2 * side, side), np.float32)
    for place in range(side):
        for tap, weight in enumerate(TAPS, start=2 * place - 1):
            if 0 <= tap < 2 * side:
                matrix[tap, place] = 2 * weight / sum(TAPS)
    with torch.inference_mode(False):  # first asked for while sampling, it must still serve a gradient later
        return torch.from_numpy(matrix).to(device, dtype)
