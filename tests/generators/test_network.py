"""Networks: the papers' numbers of weights to the last one, sizes that fit, conditions folded into plain diffusers."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from unalike.errors import SettingsError
from unalike.generators.diffusion.augment import AUGMENT_LABELS
from unalike.generators.diffusion.conditions import Asked, Attribute, Conditions
from unalike.generators.diffusion.network import (
    PAPER_PARAMETERS,
    Denoiser,
    build_network,
    choose_shape,
    count_parameters,
    describe_size,
    fold_conditions,
)
from unalike.generators.diffusion.settings import PRESETS, DiffusionSettings


@pytest.mark.parametrize("size", ["small", "medium", "large"])
def test_the_papers_numbers_of_weights(size: str) -> None:
    # Akbar et al. (2025), section 2.4: which networks have exactly these numbers was found by counting.
    x_ray, brain = PAPER_PARAMETERS[size]
    settings = DiffusionSettings(size=size)  # type: ignore[arg-type]
    fewer = dataclasses.replace(settings, residual_blocks=2)
    assert count_parameters(fewer, channels=5, height=256, width=256) == x_ray
    assert count_parameters(settings, channels=3, height=256, width=256) == brain
    # One channel with three residual blocks, as the paper describes its x-ray network: a third more.
    assert count_parameters(settings, channels=1, height=256, width=256) > 1.3 * x_ray
    text = describe_size(settings, channels=1, height=256, width=256, parameters=123)
    assert f"{x_ray:,}" in text
    assert f"{brain:,}" in text


def test_the_preset_is_the_papers() -> None:
    preset = PRESETS["akbar2025"]
    assert (preset.size, preset.timesteps, preset.schedule, preset.batch_size) == ("medium", 4000, "linear", 12)
    assert preset.steps * preset.batch_size == 7800 * 1000


@pytest.mark.parametrize(
    ("side", "multipliers", "attended"),
    [
        (256, (1, 1, 2, 2, 4, 4), (16, 8)),
        (128, (1, 1, 2, 3, 4), (16, 8)),
        (64, (1, 2, 3, 4), (16, 8)),
        (32, (1, 2, 2, 2), (16, 8)),
        (240, (1, 1, 2, 2, 4, 4), ()),  # 240 cannot be halved five times
    ],
)
def test_the_larger_the_image_the_more_resolutions(
    side: int, multipliers: tuple[int, ...], attended: tuple[int, ...]
) -> None:
    settings = DiffusionSettings(size="small")
    if not attended:
        with pytest.raises(SettingsError, match=r"240 × 240.*multiples of 32 do fit.*256 × 256"):
            choose_shape(settings, height=side, width=side)
        return
    shape = choose_shape(settings, height=side, width=side)
    assert shape.channel_multipliers == multipliers
    assert tuple(side // 2**level for level, here in enumerate(shape.attention) if here) == attended
    assert (shape.residual_blocks, shape.base_channels) == (3, 32)


def test_attention_where_there_is_no_such_side() -> None:
    with pytest.raises(SettingsError, match="64, 32, 16, 8"):
        choose_shape(DiffusionSettings(attention=(12,)), height=64, width=64)
    assert choose_shape(DiffusionSettings(attention=(16,)), height=64, width=64).attention == (
        False,
        False,
        True,
        False,
    )


SMALL = DiffusionSettings(base_channels=8, channel_multipliers=(1, 2))


def _network(conditions: Conditions, **settings: object) -> Denoiser:
    chosen = dataclasses.replace(SMALL, **settings)  # type: ignore[arg-type]
    return build_network(chosen, channels=2, height=8, width=8, seed=1, conditions=conditions).train(False)


def _asked(conditions: Conditions, label: list[int]) -> Asked:
    count = len(label)
    mask = torch.rand(count, 1, 8, 8) if conditions.mask else None
    nothing = torch.zeros(count, AUGMENT_LABELS)
    return Asked(torch.tensor(label), torch.zeros(count, conditions.width), nothing, mask, len(conditions.labels))


def test_labels_become_the_networks_own_table() -> None:
    conditions = Conditions(labels=("a", "b"), augment=True)
    network = _network(conditions)
    assert network.conditioner is not None
    with torch.no_grad():
        network.conditioner.augment.weight.normal_()  # what it would tell is not told in sampling
    unet, left = fold_conditions(network, conditions)
    assert left is None
    assert unet.config.num_class_embeds == 3
    x_t, t = torch.randn(3, 2, 8, 8), torch.tensor([1, 50, 99])
    with torch.no_grad():
        expected = network(x_t, t, _asked(conditions, [0, 1, 2]))
        plain = unet.train(False)(x_t, t, class_labels=torch.tensor([0, 1, 2])).sample
        folded = Denoiser(unet)(x_t, t, _asked(conditions, [0, 1, 2]))
    torch.testing.assert_close(plain, expected)
    torch.testing.assert_close(folded, plain, rtol=0, atol=0)


def test_augmentation_alone_leaves_a_plain_network() -> None:
    conditions = Conditions(augment=True)
    network = _network(conditions)
    unet, left = fold_conditions(network, conditions)
    assert left is None
    assert unet.class_embedding is None
    x_t, t = torch.randn(2, 2, 8, 8), torch.tensor([1, 50])
    with torch.no_grad():
        expected = network(x_t, t, _asked(conditions, [0, 0]))
        torch.testing.assert_close(unet.train(False)(x_t, t).sample, expected)


def test_attributes_keep_their_conditioner() -> None:
    conditions = Conditions(attributes=(Attribute("age", (), mean=50, deviation=10),))
    network = _network(conditions)
    unet, left = fold_conditions(network, conditions)
    assert unet is network.unet
    assert left is network.conditioner


def test_a_mask_enters_beside_the_image_and_is_not_drawn() -> None:
    conditions = Conditions(mask=True)
    network = _network(conditions)
    assert (network.unet.config.in_channels, network.unet.config.out_channels) == (3, 2)
    asked = _asked(conditions, [0, 0])
    x_t, t = torch.randn(2, 2, 8, 8), torch.tensor([1, 50])
    with torch.no_grad():
        first = network(x_t, t, asked)
        other = network(x_t, t, dataclasses.replace(asked, mask=-asked.mask))  # type: ignore[operator]
    assert first.shape == x_t.shape
    assert not torch.allclose(first, other)


def test_learned_variance_doubles_what_comes_out() -> None:
    network = _network(Conditions(), learned_variance=True)
    with torch.no_grad():
        assert network(torch.randn(1, 2, 8, 8), torch.tensor([3])).shape == (1, 4, 8, 8)


def test_the_same_seed_is_the_same_network() -> None:
    first, again = (build_network(SMALL, channels=1, height=8, width=8, seed=5) for _ in range(2))
    other = build_network(SMALL, channels=1, height=8, width=8, seed=6)
    pairs = list(zip(first.parameters(), again.parameters(), other.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b, _ in pairs)
    assert not all(torch.equal(a, c) for a, _, c in pairs)
