"""StyleGAN's networks: shapes, numbers of weights, seeds, and what each input changes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from unalike.errors import SettingsError
from unalike.generators.data import PixelScale
from unalike.generators.stylegan.model import StyleganModel, one_hot
from unalike.generators.stylegan.network import (
    Discriminator,
    Generator,
    NetworkShape,
    build_networks,
    choose_shape,
    count_parameters,
    describe_size,
)
from unalike.generators.stylegan.sample import StyleganSampler
from unalike.generators.stylegan.settings import StyleganDrawSettings, StyleganSettings

TINY = StyleganSettings(capacity=64, max_features=8, latent=8, mapping_layers=2)


def _shape(height: int = 16, width: int = 16, *, channels: int = 1, classes: int = 0) -> NetworkShape:
    return choose_shape(TINY, channels=channels, height=height, width=width, classes=classes)


def _networks(shape: NetworkShape, *, seed: int = 0) -> tuple[Generator, Discriminator]:
    """Networks whose every weight was moved, as training does: noise and biases begin at zero."""
    networks = build_networks(shape, seed=seed)
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for network in networks:
            for weight in network.parameters():
                weight += 0.1 * torch.randn(weight.shape, generator=random)
    return networks


def _normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape).astype(np.float32))


def _model(generator: Generator, labels: Sequence[str] = (), *, precision: str = "float32") -> StyleganModel:
    names = tuple(f"c{index}" for index in range(generator.shape.channels))
    scale = PixelScale(names, "uint8", 255, {})
    return StyleganModel(generator.train(False), tuple(labels), scale, torch.device("cpu"), precision)


# Shapes


@pytest.mark.parametrize(
    ("height", "width", "base", "features", "layers", "noise_count"),
    [
        (8, 8, (4, 4), (8, 8), 4, 16 + 2 * 64),
        (16, 16, (4, 4), (8, 8, 4), 6, 16 + 2 * 64 + 2 * 256),
        (32, 32, (4, 4), (8, 8, 4, 2), 8, 16 + 2 * (64 + 256 + 1024)),
        (48, 48, (6, 6), (8, 5, 2, 1), 8, 36 + 2 * (144 + 576 + 2304)),
        (16, 32, (4, 8), (8, 4, 2), 6, 32 + 2 * (128 + 512)),
        (32, 16, (8, 4), (8, 4, 2), 6, 32 + 2 * (128 + 512)),
    ],
)
def test_networks_fit_images_of_any_size_that_can_be_halved(
    height: int, width: int, base: tuple[int, int], features: tuple[int, ...], layers: int, noise_count: int
) -> None:
    shape = _shape(height, width)
    assert (shape.base, shape.features, shape.layers, shape.noise_count) == (base, features, layers, noise_count)
    assert shape.sizes[-1] == (height, width)
    generator, discriminator = _networks(shape)
    images = generator(_normal(3, 8), noise=_normal(3, noise_count))
    assert images.shape == (3, 1, height, width)
    assert images.dtype == torch.float32
    assert images.isfinite().all()
    assert discriminator(images).shape == (3,)


@pytest.mark.parametrize("channels", [1, 5, 9])
@pytest.mark.parametrize("classes", [0, 3])
def test_networks_have_as_many_channels_and_classes_as_asked_for(channels: int, classes: int) -> None:
    generator, discriminator = _networks(_shape(channels=channels, classes=classes))
    label = one_hot([0, 2, 1, 0], classes) if classes else None
    images = generator(_normal(4, 8), label)
    assert images.shape == (4, channels, 16, 16)
    assert discriminator(images, label).shape == (4,)


@pytest.mark.parametrize(
    ("height", "width", "fitting"),
    [(7, 7, "8 × 8"), (50, 50, "64 × 64"), (4, 4, "8 × 8"), (4, 64, "8 × 64"), (32, 36, "32 × 64"), (1, 1, "8 × 8")],
)
def test_sizes_that_cannot_be_halved_are_refused_naming_one_that_can(height: int, width: int, fitting: str) -> None:
    with pytest.raises(SettingsError) as error:
        _shape(height, width)
    (line,) = str(error.value).splitlines()
    assert line.startswith(f"images of {height} × {width} pixels cannot be halved")
    assert f"prepare the cohort at {fitting} (" in line
    assert _shape(*map(int, fitting.split(" × "))).features  # what it names does fit


# Numbers of weights


@pytest.mark.parametrize(
    ("settings", "channels", "expected"),
    [
        # The discriminators of Akbar et al. (2025): brains of five channels, then chest x-rays.
        (StyleganSettings(size="small"), 5, 7_238_214),
        (StyleganSettings(size="large"), 5, 114_868_977),
        (StyleganSettings(size="medium"), 1, 28_863_873),
        (StyleganSettings(capacity=16_768, max_features=512, latent=512, mapping_layers=8), 1, 24_086_598),
    ],
)
def test_discriminators_have_the_papers_numbers_of_weights(
    settings: StyleganSettings, channels: int, expected: int
) -> None:
    shape = choose_shape(settings, channels=channels, height=256, width=256)
    assert count_parameters(shape)[1] == expected


def test_counted_weights_are_those_of_the_networks_and_are_told() -> None:
    shape = _shape(channels=2, classes=3)
    counted = count_parameters(shape)
    assert counted == tuple(sum(w.numel() for w in network.parameters()) for network in build_networks(shape, seed=0))
    said = describe_size(TINY, shape, parameters=counted)
    assert f"generator {counted[0]:,} weights, discriminator {counted[1]:,}, 2 channels, 16 × 16" in said
    paper = describe_size(StyleganSettings(size="small"), shape, parameters=counted)
    assert "7,238,214" in paper
    assert len(paper.splitlines()) == 1


def test_a_tiny_generator_has_the_numbers_of_weights_of_its_layers() -> None:
    shape = NetworkShape(channels=3, base=(4, 4), features=(8, 6), latent=5, mapping_layers=2)
    mapping = 2 * (5 * 5 + 5)
    convolutions = [(8, 8), (8, 6), (6, 6)]
    # A style of each input feature, the kernel, the strength of the noise, a bias.
    synthesis = sum((5 * i + i) + 9 * i * o + 1 + o for i, o in convolutions) + 8 * 4 * 4
    outputs = sum((5 * i + i) + 3 * i + 3 for i in (8, 6))
    judge = (3 * 6 + 6) + (9 * 36 + 6) + (9 * 48 + 8) + 48 + (9 * 9 * 8 + 8) + (8 * 16 * 8 + 8) + (8 + 1)
    assert count_parameters(shape) == (mapping + synthesis + outputs, judge)


# Seeds


def test_networks_depend_on_their_seed_alone_and_leave_the_global_stream_as_it_was() -> None:
    before = torch.random.get_rng_state()
    first, again, other = (build_networks(_shape(), seed=seed) for seed in (3, 3, 4))
    assert torch.equal(before, torch.random.get_rng_state())
    for index in range(2):
        assert all(torch.equal(a, b) for a, b in zip(first[index].parameters(), again[index].parameters(), strict=True))
        assert not torch.equal(next(first[index].parameters()), next(other[index].parameters()))


def test_the_weights_of_a_seed_do_not_depend_on_the_global_stream() -> None:
    first = build_networks(_shape(), seed=3)[0].constant
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1234)
        assert torch.equal(build_networks(_shape(), seed=3)[0].constant, first)


# What each input changes


def test_a_new_generator_draws_from_styles_alone_and_its_features_have_unit_scale() -> None:
    generator, _ = build_networks(_shape(), seed=0)
    z = _normal(64, 8)
    with torch.no_grad():
        images = generator(z)
        assert torch.equal(images, generator(z, noise=_normal(64, generator.shape.noise_count)))
    # Three outputs of unit variance add up, two of them smoothed; bounds that a forgotten factor leaves.
    assert 0.1 < images.var().item() < 5


def test_noise_has_an_influence_as_strong_as_its_strength() -> None:
    generator, _ = build_networks(_shape(), seed=0)
    z, noise = _normal(2, 8), _normal(2, generator.shape.noise_count)
    with torch.no_grad():
        plain = generator(z)
        for layer, convolution in enumerate(generator.convolutions):
            convolution.noise_strength.fill_(0.5)
            changed = generator(z, noise=noise)
            assert (changed - plain).abs().max() > 1e-3, layer
            assert torch.equal(generator(z), plain), layer  # no noise is noise of zero
            convolution.noise_strength.zero_()
        generator.convolutions[0].noise_strength.fill_(0.5)
        # The first layer takes the first numbers, and no others.
        only = noise.clone()
        only[:, 16:] = 0
        assert torch.equal(generator(z, noise=only), generator(z, noise=noise))


@pytest.mark.parametrize("layer", range(6))
def test_every_style_changes_the_image(layer: int) -> None:
    generator, _ = _networks(_shape())
    ws = generator.mapping(_normal(1, 8))[:, None].expand(-1, 6, -1)
    other = ws.clone()
    other[:, layer] = -other[:, layer]
    with torch.no_grad():
        assert (generator.synthesize(ws) - generator.synthesize(other)).abs().max() > 1e-3


def test_one_style_for_all_layers_is_what_the_generator_draws() -> None:
    generator, _ = _networks(_shape())
    z, noise = _normal(2, 8), _normal(2, generator.shape.noise_count)
    with torch.no_grad():
        ws = generator.mapping(z)[:, None].repeat(1, generator.shape.layers, 1)
        assert torch.equal(generator.synthesize(ws, noise), generator(z, noise=noise))


def test_an_image_does_not_depend_on_its_neighbours() -> None:
    generator, _ = _networks(_shape())
    z = _normal(5, 8)
    with torch.no_grad():
        together = generator(z)
        for index in range(5):
            torch.testing.assert_close(generator(z[index : index + 1])[0], together[index], rtol=1e-4, atol=1e-5)


def test_fused_and_unfused_networks_draw_the_same() -> None:
    generator, _ = _networks(_shape(channels=2))
    z, noise = _normal(3, 8), _normal(3, generator.shape.noise_count)
    with torch.no_grad():
        plain = generator(z, noise=noise)
        generator.fused = True
        torch.testing.assert_close(generator(z, noise=noise), plain, rtol=1e-4, atol=1e-5)


def test_the_image_is_the_sum_of_what_each_resolution_adds() -> None:
    generator, _ = build_networks(_shape(8, 8), seed=0)
    with torch.no_grad():
        for output, grey in zip(generator.outputs, (0.25, -0.5), strict=True):
            output.weight.zero_()
            output.bias.fill_(grey)
        image = generator(_normal(1, 8))[0, 0]
    assert image[1:-1, 1:-1].flatten().tolist() == pytest.approx([-0.25] * 36)
    assert image[0, 0].item() == pytest.approx(9 / 16 * 0.25 - 0.5)  # zeros lie outside


def test_the_length_of_a_latent_does_not_matter() -> None:
    generator, _ = _networks(_shape(classes=2))
    z, label = _normal(4, 8), one_hot([0, 1, 0, 1], 2)
    with torch.no_grad():
        w = generator.mapping(z, label)
        torch.testing.assert_close(generator.mapping(30 * z, label), w, rtol=1e-4, atol=1e-5)
        assert (generator.mapping(-z, label) - w).abs().max() > 1e-2


def test_a_label_changes_the_image_and_the_judgement() -> None:
    generator, discriminator = _networks(_shape(classes=2))
    z = _normal(4, 8)
    left, right = one_hot([0] * 4, 2), one_hot([1] * 4, 2)
    with torch.no_grad():
        images = generator(z, left)
        assert (images - generator(z, right)).flatten(1).abs().amax(dim=1).min() > 1e-2
        assert (discriminator(images, left) - discriminator(images, right)).abs().min() > 1e-4
        assert torch.equal(discriminator(images, left), discriminator(images, left.clone()))


def test_the_discriminator_judges_a_group_together_and_groups_apart() -> None:
    _, discriminator = _networks(_shape())
    images = _normal(8, 1, 16, 16)
    other = images.clone()
    other[5] = 3 * other[5]
    with torch.no_grad():
        change = (discriminator(other) - discriminator(images)).abs()
    assert change[:4].max() < 1e-5
    assert change[4:].min() > 1e-5


def test_bfloat16_draws_and_judges_nearly_the_same() -> None:
    generator, discriminator = _networks(_shape(32, 32, channels=2))
    z = _normal(8, 8)
    ws, noise = generator.mapping(z)[:, None].expand(-1, generator.shape.layers, -1), _normal(8, 16 + 2 * 1344)
    drawn = []
    with torch.inference_mode():
        for precision in ("float32", "bfloat16"):
            drawn.append(_model(generator, precision=precision).synthesize(ws, noise))
        judged = [discriminator(drawn[0])]
        with torch.autocast("cpu", torch.bfloat16):
            judged.append(discriminator(drawn[0]))
    for exact, rounded in (drawn, judged):
        assert rounded.dtype == torch.float32
        # Eight bits of each number: a few thousandths, layer upon layer.
        assert 0 < (rounded - exact).norm() < 0.03 * exact.norm()


# Truncation


def _sampler(truncation: float, labels: Sequence[str] = (), **settings: str) -> StyleganSampler:
    generator, _ = _networks(_shape(classes=len(labels)))
    draw_settings = StyleganDrawSettings(truncation=truncation, **settings)
    return StyleganSampler(_model(generator, labels), draw_settings)


def test_truncation_leads_from_the_centre_to_the_style_itself() -> None:
    nothing, half, whole, beyond = (_sampler(psi).styles(range(6)).detach() for psi in (0, 0.5, 1, 1.5))
    generator, _ = _networks(_shape())
    centre = _model(generator).centres().detach()
    assert torch.equal(nothing, centre[:, None].expand(6, 6, -1))
    torch.testing.assert_close(half, (nothing + whole) / 2, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(beyond, whole + (whole - nothing) / 2, rtol=1e-5, atol=1e-6)
    # Untruncated, a style is what the mapping makes of the latent, bit for bit.
    z = torch.stack([_latent(seed) for seed in range(6)])
    assert torch.equal(whole, generator.mapping(z).detach()[:, None].expand(-1, 6, -1))
    near = _sampler(1 - 2**-20).styles(range(6)).detach()
    torch.testing.assert_close(near, whole, rtol=1e-5, atol=1e-5)


def _latent(seed: int) -> torch.Tensor:
    from unalike.seeds import generator_for

    return torch.from_numpy(generator_for(seed, "stylegan-latent").standard_normal(8, np.float32))


def test_the_centre_is_the_mean_style_of_each_class() -> None:
    generator, _ = _networks(_shape(classes=2))
    centres = _model(generator, ("a", "b")).centres().detach()
    assert centres.shape == (2, 8)
    z = _normal(20_000, 8, seed=5)
    for index in range(2):
        with torch.no_grad():
            styles = generator.mapping(z, one_hot([index], 2).expand(len(z), -1))
        # The error of a mean over 4,096 draws beside one over 20,000.
        error = styles.std(dim=0) * (1 / 4096 + 1 / 20_000) ** 0.5
        assert ((centres[index] - styles.mean(dim=0)).abs() < 5 * error).all()
    nothing = _sampler(0, ("a", "b"), label="b").styles([1, 2]).detach()
    assert torch.equal(nothing, centres[1].expand(2, 6, -1))
