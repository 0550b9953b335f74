"""StyleGAN's operations, losses and penalties against closed forms and the papers' equations written out."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.special import ndtri
from torch import nn

from unalike.generators.stylegan.layers import (
    GAIN,
    SLOPE,
    TAPS,
    TINY,
    EqualizedConv,
    EqualizedLinear,
    downsample,
    leak,
    low_pass,
    modulated_conv,
    unit_length,
    upsample,
)
from unalike.generators.stylegan.losses import (
    PATH_DECAY,
    discriminator_loss,
    follow_path_length,
    generator_loss,
    path_lengths,
    r1_penalty,
)
from unalike.generators.stylegan.network import add_deviation

FLAGS = list(itertools.product((False, True), repeat=3))  # fused, up, demodulate


def _normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


def _filter_matrix(length: int, *, before: int, after: int, stride: int = 1) -> torch.Tensor:
    """The filter (1, 3, 3, 1) / 8 on a row of pixels with zeros around, as a matrix."""
    rows = range(-before, length + after - 3, stride)
    matrix = np.zeros((len(rows), length))
    for row, first in enumerate(rows):
        for tap, place in enumerate(range(first, first + 4)):
            if 0 <= place < length:
                matrix[row, place] = (1, 3, 3, 1)[tap] / 8
    return torch.from_numpy(matrix)


def _both_ways(x: torch.Tensor, down: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    return down @ x @ right.T


def _ramp(height: int, width: int, *, slope: float) -> torch.Tensor:
    """(1, 1, H, W): three slopes brighter with each pixel to the right, two darker with each down; 5 in the centre."""
    y, x = np.mgrid[:height, :width]
    return torch.from_numpy(5 + slope * (3 * (x - (width - 1) / 2) - 2 * (y - (height - 1) / 2)))[None, None]


# Resampling


@pytest.mark.parametrize(("margin", "gain"), [(2, 1.0), (1, 4.0)])
def test_the_low_pass_filter_is_the_written_out_matrix(margin: int, gain: float) -> None:
    x = _normal(2, 3, 6, 10)
    down, right = (_filter_matrix(side, before=margin, after=margin) for side in (6, 10))
    torch.testing.assert_close(
        low_pass(x, margin=margin, gain=gain), gain * _both_ways(x, down, right), rtol=1e-12, atol=1e-12
    )


def test_downsampling_and_upsampling_are_their_matrices() -> None:
    x = _normal(2, 3, 6, 10)
    down, right = (_filter_matrix(side, before=1, after=1, stride=2) for side in (6, 10))
    torch.testing.assert_close(downsample(x), _both_ways(x, down, right), rtol=1e-12, atol=1e-12)
    # Zeros between the pixels: every other column of the filter's matrix; a factor of 2 along each axis fills them.
    down, right = (2 * _filter_matrix(2 * side, before=2, after=1)[:, ::2] for side in (6, 10))
    torch.testing.assert_close(upsample(x), _both_ways(x, down, right), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("slope", [0.0, 1.0])
def test_halving_and_doubling_are_exact_on_constants_and_ramps_inside(slope: float) -> None:
    # About the same centre, a ramp of fewer pixels is steeper.
    small, large = _ramp(8, 12, slope=2 * slope), _ramp(16, 24, slope=slope)
    torch.testing.assert_close(downsample(large)[..., 1:-1, 1:-1], small[..., 1:-1, 1:-1], rtol=0, atol=1e-12)
    torch.testing.assert_close(upsample(small)[..., 1:-1, 1:-1], large[..., 1:-1, 1:-1], rtol=0, atol=1e-12)


def test_upsampling_is_bilinear_inside() -> None:
    x = _normal(2, 3, 6, 10)
    expected = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
    torch.testing.assert_close(upsample(x)[..., 1:-1, 1:-1], expected[..., 1:-1, 1:-1], rtol=1e-12, atol=1e-12)
    assert upsample(x)[0, 0, 0, 0] == pytest.approx(9 / 16 * x[0, 0, 0, 0].item())  # zeros lie outside


def test_upsampling_is_four_times_the_adjoint_of_downsampling() -> None:
    x, y = _normal(2, 3, 6, 10), _normal(2, 3, 12, 20, seed=1)
    assert (upsample(x) * y).sum().item() == pytest.approx(4 * (x * downsample(y)).sum().item(), rel=1e-12)


def test_the_filter_lets_no_checkerboard_through() -> None:
    board = torch.ones(1, 1, 8, 8).double()
    board[..., ::2, 1::2] = board[..., 1::2, ::2] = -1
    assert downsample(board)[..., 1:-1, 1:-1].abs().max() < 1e-12
    assert sum(TAPS[::2]) == sum(TAPS[1::2])  # what makes upsampled constants constant


# Modulated convolutions


def _modulated(
    x: torch.Tensor, weight: torch.Tensor, styles: torch.Tensor, *, demodulate: bool, up: bool
) -> torch.Tensor:
    """Equations 1 to 3 of Karras et al. (2020), image by image and weight by weight."""
    made = []
    for image, style in zip(x, styles, strict=True):
        own = weight * style[None, :, None, None]  # equation 1
        if demodulate:  # equation 3
            own = torch.stack([kernel / (kernel.square().sum() + TINY).sqrt() for kernel in own])
        if not up:
            made.append(F.conv2d(image[None], own, padding=weight.shape[2] // 2)[0])
            continue
        channels, height, width = image.shape
        spread = image.new_zeros(1, channels, 2 * height - 1, 2 * width - 1)
        spread[0, :, ::2, ::2] = image
        wide = F.conv2d(spread, own.flip(2, 3), padding=weight.shape[2] - 1)[0]
        down, right = (_filter_matrix(side, before=1, after=1) for side in wide.shape[1:])
        made.append(4 * _both_ways(wide, down, right))
    return torch.stack(made)


def _convolution() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return _normal(3, 4, 5, 6), _normal(2, 4, 3, 3, seed=1), 1 + 0.5 * _normal(3, 4, seed=2)


@pytest.mark.parametrize(("fused", "up", "demodulate"), FLAGS)
def test_a_modulated_convolution_is_that_of_the_paper(fused: bool, up: bool, demodulate: bool) -> None:
    x, weight, styles = _convolution()
    found = modulated_conv(x, weight, styles, fused=fused, up=up, demodulate=demodulate)
    assert found.shape == ((3, 2, 10, 12) if up else (3, 2, 5, 6))
    expected = _modulated(x, weight, styles, up=up, demodulate=demodulate)
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("fused", [False, True])
def test_a_modulated_convolution_of_one_pixel_scales_by_the_styles(fused: bool) -> None:
    x, _, styles = _convolution()
    weight = _normal(2, 4, 1, 1, seed=1)
    found = modulated_conv(x, weight, styles, demodulate=False, fused=fused)
    expected = torch.einsum("oi,bi,bihw->bohw", weight[:, :, 0, 0], styles, x)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("fused", [False, True])
def test_doubling_with_a_kernel_of_one_point_is_upsampling(fused: bool) -> None:
    x = _normal(2, 1, 5, 6)
    weight = torch.zeros(1, 1, 3, 3).double()
    weight[0, 0, 1, 1] = 1
    found = modulated_conv(x, weight, torch.ones(2, 1).double(), demodulate=False, up=True, fused=fused)
    torch.testing.assert_close(found, upsample(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("up", "demodulate"), list(itertools.product((False, True), repeat=2)))
def test_first_and_second_gradients_do_not_depend_on_fusing(up: bool, demodulate: bool) -> None:
    found = []
    for fused in (False, True):
        given = [tensor.requires_grad_(True) for tensor in _convolution()]
        y = modulated_conv(*given, fused=fused, up=up, demodulate=demodulate)
        probe = _normal(*y.shape, seed=3)
        first = torch.autograd.grad((y.sin() * probe).sum(), given, create_graph=True)
        second = torch.autograd.grad(sum(gradient.square().sum() for gradient in first), given)
        found.append((*first, *second))
    assert all(gradient.abs().max() > 0 for gradient in found[0])
    torch.testing.assert_close(found[0], found[1], rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("fused", [False, True])
def test_gradients_are_those_of_finite_differences(fused: bool) -> None:
    given = (_normal(2, 2, 2, 2), _normal(1, 2, 3, 3, seed=1), 1 + 0.5 * _normal(2, 2, seed=2))
    inputs = [tensor.requires_grad_(True) for tensor in given]

    def convolve(*tensors: torch.Tensor) -> torch.Tensor:
        return modulated_conv(*tensors, fused=fused, up=True)

    assert torch.autograd.gradcheck(convolve, inputs)
    assert torch.autograd.gradgradcheck(convolve, inputs)


def test_demodulated_output_has_unit_variance() -> None:
    features, side = 16, 34
    x = _normal(4, features, side, side)
    styles = _normal(4, features, seed=1).exp() * torch.tensor([[1e-2], [1.0], [3.0], [1e2]])
    y = modulated_conv(x, _normal(8, features, 3, 3, seed=2), styles)[..., 1:-1, 1:-1]
    # The variance of n independent normal numbers is 1 ± √(2 / n); neighbours are correlated over 3 × 3 pixels at most.
    counted = y[0, 0].numel() / 9
    torch.testing.assert_close(
        y.square().mean(dim=(2, 3)), torch.ones(4, 8).double(), rtol=0, atol=5 * math.sqrt(2 / counted)
    )
    assert y.square().mean().item() == pytest.approx(1, abs=5 * math.sqrt(2 / (counted * 32)))


@pytest.mark.parametrize("fused", [False, True])
def test_demodulation_cancels_the_overall_scale_of_the_styles(fused: bool) -> None:
    x, weight, styles = _convolution()
    plain, scaled = (modulated_conv(x, weight, styles * scale, fused=fused) for scale in (1, -37.0))
    torch.testing.assert_close(scaled, -plain, rtol=1e-8, atol=1e-8)
    free, larger = (modulated_conv(x, weight, styles * s, fused=fused, demodulate=False) for s in (1, -37.0))
    torch.testing.assert_close(larger, -37 * free)


# Layers


@pytest.mark.parametrize("rate", [1.0, 0.01])
def test_effective_weights_of_a_linear_layer_have_the_deviation_of_their_fan_in(rate: float) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        layer = EqualizedLinear(64, 256, rate=rate, bias=1.5)
    assert layer.weight.std().item() == pytest.approx(1 / rate, rel=5 / math.sqrt(2 * 64 * 256))
    with torch.no_grad():
        effective = (layer(torch.eye(64)) - layer(torch.zeros(1, 64))).T
        bias = layer(torch.zeros(1, 64))[0]
    assert effective.std().item() == pytest.approx(1 / 8, rel=5 / math.sqrt(2 * 64 * 256))
    torch.testing.assert_close(bias, torch.full((256,), 1.5))


@pytest.mark.parametrize("rate", [1.0, 0.01])
def test_the_rate_slows_what_a_step_of_adam_changes(rate: float) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        layer = EqualizedLinear(4, 1, rate=rate)
    x = torch.ones(1, 4)
    before = layer(x).item()
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.01)
    layer(x).sum().backward()
    optimizer.step()
    # The first step moves each parameter by the learning rate: 4 weights of scale rate / 2, and a bias of scale rate.
    assert before - layer(x).item() == pytest.approx(0.01 * rate * (4 / 2 + 1), rel=1e-3, abs=1e-6)


def test_a_leaky_layer_leaks_after_its_bias() -> None:
    layer = EqualizedLinear(1, 1, bias=-3.0, leaky=True)
    with torch.no_grad():
        layer.weight.fill_(1.0)
        found = layer(torch.tensor([[1.0], [5.0]]))[:, 0].tolist()
    assert found == pytest.approx([-2 * SLOPE * GAIN, 2 * GAIN])


@pytest.mark.parametrize("kernel", [1, 3])
def test_effective_weights_of_a_convolution_have_the_deviation_of_their_fan_in(kernel: int) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        layer = EqualizedConv(32, 64, kernel=kernel)
    effective = layer.weight * layer.scale
    fan_in = 32 * kernel**2
    assert effective.std().item() == pytest.approx(1 / math.sqrt(fan_in), rel=5 / math.sqrt(2 * 64 * fan_in))
    x = _normal(1, 32, 5, 6).float()
    with torch.no_grad():
        torch.testing.assert_close(layer(x), F.conv2d(x, effective, layer.bias, padding=kernel // 2))


@pytest.mark.parametrize(("kernel", "bias"), [(1, False), (1, True), (3, True)])
def test_a_halving_convolution_is_a_filter_and_then_a_stride(kernel: int, bias: bool) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        layer = EqualizedConv(2, 3, kernel=kernel, down=True, bias=bias).double()
        if layer.bias is not None:
            nn.init.normal_(layer.bias)
    x = _normal(2, 2, 6, 8)
    wide = kernel // 2
    down, right = (_filter_matrix(side, before=1 + wide, after=1 + wide) for side in (6, 8))
    filtered = _both_ways(x, down, right)
    expected = torch.zeros(2, 3, 3, 4).double()
    weight = layer.weight.detach() / math.sqrt(2 * kernel**2)
    for row, column in itertools.product(range(3), range(4)):
        patch = filtered[:, :, 2 * row : 2 * row + kernel, 2 * column : 2 * column + kernel]
        expected[:, :, row, column] = torch.einsum("oikl,bikl->bo", weight, patch)
    if layer.bias is not None:
        expected += layer.bias.detach()[:, None, None]
    with torch.no_grad():
        torch.testing.assert_close(layer(x), expected, rtol=1e-12, atol=1e-12)


def test_a_halving_convolution_keeps_the_centre_of_the_image() -> None:
    x = _normal(1, 1, 8, 8)
    for kernel in (1, 3):
        layer = EqualizedConv(1, 1, kernel=kernel, down=True).double()
        with torch.no_grad():
            layer.weight.fill_(1.0)
            torch.testing.assert_close(layer(x.flip(2, 3)), layer(x).flip(2, 3), rtol=1e-12, atol=1e-12)


def test_the_leaky_rectifier_keeps_the_second_moment() -> None:
    # Quantiles stand for N(0, 1): E[leak(x)²] = 2 · ½ (1 + 0.2²), and with 0.2² left out it would be 1.
    x = torch.from_numpy(ndtri((np.arange(100_000) + 0.5) / 100_000))
    assert leak(x).square().mean().item() == pytest.approx(0.5 * (1 + 0.04) * 2, rel=1e-3)
    assert leak(torch.tensor([-1.0, 0.0, 1.0])).tolist() == pytest.approx([-0.2 * math.sqrt(2), 0, math.sqrt(2)])


def test_unit_length_is_a_mean_square_of_one() -> None:
    x = _normal(5, 7)
    torch.testing.assert_close(unit_length(x).square().mean(dim=1), torch.ones(5).double(), rtol=1e-6, atol=0)
    torch.testing.assert_close(unit_length(40 * x), unit_length(x), rtol=1e-6, atol=0)
    torch.testing.assert_close(unit_length(torch.tensor([[3.0, -3.0, 3.0]])), torch.tensor([[1.0, -1.0, 1.0]]))
    assert unit_length(torch.zeros(2, 3)).tolist() == [[0, 0, 0], [0, 0, 0]]


# How much the images of a group differ


def test_the_deviation_of_a_group_is_that_of_a_hand_example() -> None:
    # Two features of one pixel: deviations of 1 and 3 in the group of four, 2 on average.
    x = torch.tensor([[1.0, 6.0], [-1.0, 0.0], [1.0, 0.0], [-1.0, 6.0]])[:, :, None, None]
    y = add_deviation(x)
    assert y.shape == (4, 3, 1, 1)
    torch.testing.assert_close(y[:, :2], x)
    torch.testing.assert_close(y[:, 2:], torch.full((4, 1, 1, 1), 2.0))


def test_neighbours_in_fours_are_a_group() -> None:
    x = torch.zeros(8, 1, 2, 2)
    x[4:6], x[6:] = 5.0, -5.0
    deviations = add_deviation(x)[:, 1].mean(dim=(1, 2))
    torch.testing.assert_close(deviations, torch.tensor([1e-4] * 4 + [5.0] * 4))


@pytest.mark.parametrize("size", [4, 8])
def test_a_batch_split_in_fours_has_the_same_deviations(size: int) -> None:
    x = _normal(16, 3, 4, 5)
    whole, parts = add_deviation(x), torch.cat([add_deviation(part) for part in x.split(size)])
    assert torch.equal(whole, parts)
    assert len(whole[:, 3, 0, 0].unique()) == 4


@pytest.mark.parametrize(("count", "size"), [(1, 1), (2, 2), (3, 3), (5, 1), (6, 3), (7, 1), (9, 3), (10, 2), (12, 4)])
def test_batches_that_four_does_not_divide_have_smaller_groups(count: int, size: int) -> None:
    x = _normal(count, 2, 3, 3)
    found = add_deviation(x)[:, 2]
    for begin in range(0, count, size):
        group = x[begin : begin + size].numpy()
        expected = np.sqrt(group.var(axis=0) + 1e-8).mean()
        np.testing.assert_allclose(found[begin : begin + size], expected, rtol=1e-12)


def test_equal_images_deviate_by_nothing_and_can_be_differentiated_twice() -> None:
    x = torch.ones(4, 2, 3, 3).double().requires_grad_(True)
    deviation = add_deviation(x)[:, 2]
    assert deviation.abs().max().item() <= math.sqrt(TINY) * (1 + 1e-9)
    (first,) = torch.autograd.grad(deviation.sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), x)
    assert first.isfinite().all()
    assert second.isfinite().all()


# Losses


@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
def test_losses_are_their_closed_forms(kind: torch.dtype) -> None:
    zero = torch.zeros(3, dtype=kind)
    assert generator_loss(zero).item() == pytest.approx(math.log(2))
    assert discriminator_loss(zero, zero).item() == pytest.approx(2 * math.log(2))
    one, two = torch.tensor([1.0], dtype=kind), torch.tensor([2.0], dtype=kind)
    assert generator_loss(two).item() == pytest.approx(math.log(1 + math.exp(-2)))
    expected = math.log(1 + math.exp(-1)) + math.log(1 + math.exp(2))
    assert discriminator_loss(one, two).item() == pytest.approx(expected)


def test_losses_do_not_overflow() -> None:
    high, low = torch.full((2,), 1e4), torch.full((2,), -1e4)
    assert generator_loss(high).item() == 0
    assert generator_loss(low).item() == 1e4
    assert discriminator_loss(high, low).item() == 0
    assert discriminator_loss(low, high).item() == 2e4
    said = low.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(generator_loss(said), said)
    assert gradient.tolist() == pytest.approx([-0.5, -0.5])  # full strength, however sure the discriminator is


class _Judge(nn.Module):
    """A discriminator made of a function, with one weight vector."""

    def __init__(self, weight: torch.Tensor, judge: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.weight, self.judge = nn.Parameter(weight), judge

    def forward(self, images: torch.Tensor, label: torch.Tensor | None) -> torch.Tensor:
        said = self.judge(self.weight, images.flatten(1))
        return said if label is None else said * label[:, 0]


def test_r1_of_a_linear_discriminator_is_the_square_of_its_weights() -> None:
    judge = _Judge(_normal(24), lambda weight, x: x @ weight + 3)
    penalty = r1_penalty(judge, _normal(5, 2, 3, 4), None)
    assert penalty.item() == pytest.approx(judge.weight.square().sum().item())
    penalty.backward()
    torch.testing.assert_close(judge.weight.grad, 2 * judge.weight.detach())


def test_r1_of_a_quadratic_discriminator_is_its_closed_form() -> None:
    # D(x) = ½ xᵀ A x: ∇D = A x.
    images, matrix = _normal(5, 2, 3, 4), _normal(24, 24, seed=1)
    matrix = matrix + matrix.T
    judge = _Judge(matrix, lambda weight, x: 0.5 * torch.einsum("bi,ij,bj->b", x, weight, x))
    expected = (images.flatten(1) @ matrix).square().sum(dim=1).mean()
    torch.testing.assert_close(r1_penalty(judge, images, None), expected)
    # The images of a batch are penalized one by one, and the label is the discriminator's.
    label = torch.tensor([[0.0], [2.0], [0.0], [0.0], [0.0]]).double()
    alone = (images[1].flatten() @ matrix).square().sum() * 4 / 5
    torch.testing.assert_close(r1_penalty(judge, images, label), alone)
    assert not images.requires_grad


def test_r1_is_that_of_autograd_image_by_image() -> None:
    judge = _Judge(_normal(24), lambda weight, x: (x.sin() @ weight) * (x.square() @ weight.cos()))
    images = _normal(3, 2, 3, 4)
    rows = [
        torch.autograd.functional.jacobian(lambda image: judge(image[None], None)[0], image).square().sum()
        for image in images
    ]
    torch.testing.assert_close(r1_penalty(judge, images, None), torch.stack(rows).mean())


def _draw(ws: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """A curved toy generator: images (B, 2, 3, 4) of styles (B, 3, 5)."""
    return torch.einsum("bln,lnp->bp", ws.sin(), weight).tanh().view(-1, 2, 3, 4)


def test_path_lengths_are_those_of_the_full_jacobian() -> None:
    ws, weight, y = _normal(4, 3, 5), _normal(3, 5, 24, seed=1), _normal(4, 2, 3, 4, seed=2)
    expected = []
    for k in range(4):
        jacobian = torch.autograd.functional.jacobian(lambda w: _draw(w[None], weight)[0], ws[k])
        product = torch.einsum("chw,chwln->ln", y[k], jacobian) / math.sqrt(12)
        expected.append(product.square().sum(dim=1).mean().sqrt())
    ws.requires_grad_(True)
    torch.testing.assert_close(path_lengths(_draw(ws, weight), ws, y), torch.stack(expected))


def test_path_lengths_of_a_linear_generator_are_their_closed_form_and_scale_with_it() -> None:
    ws, weight, y = _normal(4, 3, 5).requires_grad_(True), _normal(3, 5, 24, seed=1), _normal(4, 2, 3, 4, seed=2)
    weight.requires_grad_(True)
    images = torch.einsum("bln,lnp->bp", ws, weight).view(4, 2, 3, 4)
    lengths = path_lengths(images, ws, y)
    product = torch.einsum("bp,lnp->bln", y.flatten(1), weight)
    expected = (product.square().sum(dim=(1, 2)) / (3 * 12)).sqrt()
    torch.testing.assert_close(lengths, expected)
    # A length is proportional to the weights: by Euler's theorem ⟨weight, ∇length⟩ is the length.
    (gradient,) = torch.autograd.grad(lengths.sum(), weight)
    assert (gradient * weight).sum().item() == pytest.approx(lengths.sum().item())


def test_the_penalty_of_path_lengths_can_be_differentiated_by_the_weights() -> None:
    ws, y = _normal(2, 3, 2).requires_grad_(True), _normal(2, 2, 3, 4, seed=2)
    weight = (0.3 * _normal(3, 2, 24, seed=1)).requires_grad_(True)

    def penalty(weight: torch.Tensor) -> torch.Tensor:
        return (path_lengths(_draw(ws, weight), ws, y) - 0.7).square().mean()

    assert torch.autograd.gradcheck(penalty, [weight])


def test_the_mean_path_length_follows_by_a_hundredth_and_is_not_differentiated() -> None:
    mean, lengths = torch.tensor(2.0), torch.tensor([3.0, 5.0], requires_grad=True)
    followed = follow_path_length(mean, lengths)
    assert followed.item() == pytest.approx(2 + PATH_DECAY * (4 - 2))
    assert PATH_DECAY == 0.01
    assert not followed.requires_grad
    for _ in range(2000):
        mean = follow_path_length(mean, lengths)
    assert mean.item() == pytest.approx(4, rel=1e-4)
