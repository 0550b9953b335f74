"""Conditions: the encoding number by number, and wishes that cannot be met refused by name."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unalike.errors import SettingsError
from unalike.generators.diffusion.augment import AUGMENT_LABELS
from unalike.generators.diffusion.conditions import (
    Asked,
    Attribute,
    Conditioner,
    Conditions,
    ask,
    ask_each,
    find_conditions,
    hide_conditions,
)

AGE = Attribute("age", (), mean=50.0, deviation=10.0)
SEX = Attribute("sex", ("F", "M"), mean=0.0, deviation=1.0)
VIEW = Attribute("view", ("AP", "LL", "PA"), mean=0.0, deviation=1.0)
FULL = Conditions(labels=("covid", "normal"), attributes=(AGE, VIEW), mask=True, augment=True)


def _find(
    *names: str, labels: Sequence[str] = (), attributes: Sequence[Mapping[str, str]] = (), mask: bool = False
) -> Conditions:
    return find_conditions(names, labels=labels, attributes=attributes, mask=mask, augment=False)


def _batch(count: int = 6, *, masks: bool = True) -> Asked:
    labels = ["covid", "normal"] * (count // 2)
    entries = [{"age": str(40 + i), "view": "AP"} for i in range(count)]
    asked = ask_each(FULL, labels, entries)
    mask = torch.arange(count * 4, dtype=torch.float32).view(count, 1, 2, 2) / (count * 4) if masks else None
    return dataclasses.replace(asked, augment=torch.full((count, AUGMENT_LABELS), 0.5), mask=mask)


def _equal(a: Asked, b: Asked) -> bool:
    masks = a.mask is b.mask if a.mask is None or b.mask is None else torch.equal(a.mask, b.mask)
    pairs = ((a.label, b.label), (a.attributes, b.attributes), (a.augment, b.augment))
    return masks and a.classes == b.classes and all(torch.equal(x, y) for x, y in pairs)


def _conditioner(conditions: Conditions, width: int = 5, seed: int = 0) -> Conditioner:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Conditioner(conditions, width)


# What there is to ask for


def test_conditions_are_found_with_their_known_numbers() -> None:
    entries = [
        {"age": "40", "sex": "M", "site": "a"},
        {"age": "", "sex": ""},
        {"age": "60", "sex": "F"},
        {},
    ]
    found = find_conditions(
        ("label", "age", "sex", "mask"), labels=["b", "", "a", "b"], attributes=entries, mask=True, augment=True
    )
    # Sorted classes; mean and deviation of 40 and 60 alone.
    assert found == Conditions(
        labels=("a", "b"),
        attributes=(Attribute("age", (), mean=50.0, deviation=10.0), SEX),
        mask=True,
        augment=True,
    )
    assert found.width == 4


def test_only_what_is_named_is_a_condition() -> None:
    entries = [{"age": "1"}, {"age": "2"}]
    assert _find(labels=["a", "b"], attributes=entries, mask=True) == Conditions()
    assert _find("age", "age", labels=["a", "b"], attributes=entries, mask=True).width == 2


@pytest.mark.parametrize("odd", ["60+", "nan", "inf", "-1e300", "old"])
def test_one_value_that_is_no_finite_number_makes_an_attribute_categorical(odd: str) -> None:
    found = _find("age", attributes=[{"age": "9"}, {"age": odd}, {"age": "10"}]).attributes[0]
    assert found.values == tuple(sorted(["9", "10", odd]))
    assert (found.mean, found.deviation) == (0.0, 1.0)


def test_a_number_that_never_varies_is_asked_for_as_zero() -> None:
    # The mean of these, as NumPy rounds it, is not 0.1.
    found = _find("dose", attributes=[{"dose": "0.1"}] * 3)
    assert found.attributes == (Attribute("dose", (), mean=0.1, deviation=1.0),)
    assert ask(found, count=1, label=None, attributes={"dose": "0.1"}).attributes.tolist() == [[0.0, 1.0]]


@pytest.mark.parametrize(
    ("name", "labels", "message"),
    [
        ("label", ["", ""], "have no labels"),
        ("label", ["covid", "", "covid"], "have only the class 'covid'"),
        ("mask", ["a", "b"], "have no mask channel"),
        ("age", ["a", "b"], "attribute 'age'. There are: sex, site"),
        ("blank", ["a", "b"], "attribute 'blank'. There are: sex, site"),
    ],
)
def test_conditions_that_the_images_do_not_carry_are_refused(name: str, labels: list[str], message: str) -> None:
    entries = [{"site": "x", "blank": ""}, {"sex": "F"}]
    with pytest.raises(SettingsError, match=message) as caught:
        _find(name, labels=labels, attributes=entries)
    assert "\n" not in str(caught.value)


def test_an_attribute_is_refused_where_there_are_none_at_all() -> None:
    with pytest.raises(SettingsError, match="There are: none"):
        _find("age", attributes=[{}, {}])


@pytest.mark.parametrize("conditions", [Conditions(), FULL, Conditions(attributes=(SEX,)), Conditions(mask=True)])
def test_conditions_travel_through_json(conditions: Conditions) -> None:
    assert Conditions.from_content(json.loads(json.dumps(conditions.to_content()))) == conditions


def test_no_content_is_no_condition() -> None:
    assert Conditions.from_content(None) == Conditions()


def test_a_mask_alone_is_no_vector() -> None:
    assert not Conditions(mask=True).vector
    for conditions in (Conditions(labels=("a", "b")), Conditions(attributes=(AGE,)), Conditions(augment=True)):
        assert conditions.vector
    assert FULL.width == 2 + 3


# The encoding


def test_each_image_is_encoded_number_by_number() -> None:
    asked = ask_each(
        FULL,
        ["normal", "", "covid"],
        [{"age": "65", "view": "LL", "site": "ignored"}, {}, {"age": "", "view": "PA"}],
    )
    assert asked.label.tolist() == [1, 2, 0]
    assert asked.attributes.tolist() == [[1.5, 1, 0, 1, 0], [0, 0, 0, 0, 0], [0, 0, 0, 0, 1]]
    assert torch.equal(asked.augment, torch.zeros(3, AUGMENT_LABELS))
    assert asked.mask is None
    assert (asked.classes, len(asked)) == (2, 3)
    assert (asked.label.dtype, asked.attributes.dtype) == (torch.int64, torch.float32)


def test_a_mean_value_is_not_the_same_as_an_unknown_one() -> None:
    known = ask(FULL, count=1, label=None, attributes={"age": "50"})
    unknown = ask(FULL, count=1, label=None, attributes={})
    assert known.attributes.tolist() == [[0, 1, 0, 0, 0]]
    assert not torch.equal(known.attributes, unknown.attributes)


def test_without_conditions_records_are_encoded_as_nothing() -> None:
    asked = ask_each(Conditions(), ["a", "b"], [{"age": "4"}, {}])
    assert asked.label.tolist() == [0, 0]
    assert asked.attributes.shape == (2, 0)
    assert ask_each(FULL, [], []).attributes.shape == (0, 5)


def test_a_wish_is_the_same_for_each_sample() -> None:
    asked = ask(FULL, count=3, label="normal", attributes={"view": "AP", "age": "40"})
    assert asked.label.tolist() == [1, 1, 1]
    assert asked.attributes.tolist() == [[-1, 1, 1, 0, 0]] * 3
    nothing = ask(FULL, count=2, label=None, attributes={"view": ""})
    assert _equal(nothing, nothing.none())
    assert _equal(nothing, ask(FULL, count=2, label="", attributes={}))


@pytest.mark.parametrize(
    ("label", "attributes", "message"),
    [
        ("x", {}, r"^label 'x' is unknown\. There are: covid, normal\.$"),
        (None, {"sex": "F"}, r"^attribute 'sex' is unknown\. There are: age, view\.$"),
        (None, {"view": "left"}, r"^view 'left' is unknown\. There are: AP, LL, PA\.$"),
        (None, {"age": "old"}, r"^age 'old' is no number\. Give one, such as 50\.$"),
        (None, {"age": "nan"}, r"^age 'nan' is no number\."),
        (None, {"age": "1e300"}, r"^age '1e300' is no number\."),
    ],
)
def test_wishes_that_the_run_does_not_know_are_refused(
    label: str | None, attributes: dict[str, str], message: str
) -> None:
    with pytest.raises(SettingsError, match=message):
        ask(FULL, count=1, label=label, attributes=attributes)


def test_a_run_without_conditions_takes_no_wish() -> None:
    with pytest.raises(SettingsError, match="trained without labels"):
        ask(Conditions(), count=1, label="x", attributes={})
    with pytest.raises(SettingsError, match="trained without attributes"):
        ask(Conditions(), count=1, label=None, attributes={"age": "4"})


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(-(10**6), 10**6), min_size=2, max_size=9))
def test_numbers_found_and_encoded_are_standardized(values: list[int]) -> None:
    # Whole numbers, so that the mean of equal ones is theirs.
    entries = [{"dose": repr(value)} for value in values]
    found = _find("dose", attributes=entries)
    encoded = ask_each(found, [""] * len(values), entries).attributes.double()
    assert torch.all(encoded[:, 1] == 1)
    # Within what float32 leaves of the numbers.
    wanted = (np.array(values) - np.mean(values)) / (np.std(values) or 1)
    np.testing.assert_allclose(encoded[:, 0].numpy(), wanted, atol=1e-6, rtol=1e-6)


# A batch of wishes


def test_asking_for_nothing_keeps_mask_and_augmentation() -> None:
    asked = _batch()
    nothing = asked.none()
    assert nothing.label.tolist() == [2] * 6
    assert not nothing.attributes.any()
    assert torch.equal(nothing.augment, asked.augment)
    assert nothing.mask is asked.mask


@pytest.mark.parametrize("masks", [True, False])
def test_batches_are_joined_and_taken_apart(masks: bool) -> None:
    asked = _batch(masks=masks)
    both = asked.cat(asked.none())
    assert len(both) == 12
    assert _equal(both.take(slice(0, 6)), asked)
    assert _equal(both.take(torch.arange(6, 12)), asked.none())
    last = asked.take(torch.tensor([5, 0]))
    assert last.attributes[:, 0].tolist() == pytest.approx([-0.5, -1.0])
    assert last.label.tolist() == [1, 0]
    assert (last.mask is None) is not masks


def test_batches_of_other_conditions_are_not_joined() -> None:
    with pytest.raises(ValueError, match="other conditions"):
        _batch().cat(_batch(masks=False))
    with pytest.raises(ValueError, match="other conditions"):
        _batch(masks=False).cat(ask_each(Conditions(), ["", ""], [{}, {}]))


@pytest.mark.parametrize("masks", [True, False])
def test_all_parts_go_to_the_device(masks: bool) -> None:
    moved = _batch(masks=masks).to(torch.device("meta"))
    parts = [moved.label, moved.attributes, moved.augment, *([] if moved.mask is None else [moved.mask])]
    assert len(parts) == 3 + masks
    assert {part.device.type for part in parts} == {"meta"}


# Guidance


def test_an_image_loses_its_whole_condition_or_nothing() -> None:
    asked = _batch(400)
    lost = np.random.default_rng(1).random(400) < 0.2
    kept = hide_conditions(asked, lost)
    where = torch.from_numpy(lost)
    assert (kept.label[where] == 2).all()
    assert not kept.attributes[where].any()
    assert torch.equal(kept.label[~where], asked.label[~where])
    assert torch.equal(kept.attributes[~where], asked.attributes[~where])
    assert torch.equal(kept.augment, asked.augment)
    assert kept.mask is asked.mask


def test_hiding_none_or_all() -> None:
    asked = _batch()
    assert _equal(hide_conditions(asked, np.zeros(len(asked), bool)), asked)
    assert _equal(hide_conditions(asked, np.ones(len(asked), bool)), asked.none())


# The vector


def test_the_vector_is_the_sum_of_its_parts() -> None:
    module = _conditioner(FULL)
    asked = _batch()
    assert module.label is not None
    assert module.attributes is not None
    assert module.augment is not None
    with torch.no_grad():
        torch.nn.init.ones_(module.augment.weight)
        first, _, second = module.attributes
        hidden = asked.attributes @ first.weight.T + first.bias
        told = (hidden * torch.sigmoid(hidden)) @ second.weight.T + second.bias
        wanted = module.label.weight[asked.label] + told + 0.5 * AUGMENT_LABELS
        torch.testing.assert_close(module(asked), wanted)


def test_parts_computed_in_bfloat16_are_summed_in_float32() -> None:
    module, asked = _conditioner(FULL), _batch()
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        rough = module(asked)
    assert rough.dtype == torch.float32
    torch.testing.assert_close(rough, module(asked).detach(), atol=0.02, rtol=0.02)


def test_without_attributes_and_changes_the_table_is_all_there_is() -> None:
    conditions = Conditions(labels=("a", "b", "c"), augment=True)
    module = _conditioner(conditions)
    table = module.table()
    assert table.shape == (4, 5)
    assert len(table.unique(dim=0)) == 4
    asked = ask_each(conditions, ["c", "", "a", "b"], [{}] * 4)
    assert torch.equal(module(asked), table[[2, 3, 0, 1]])


def test_augmentation_begins_without_effect_and_zeros_never_have_one() -> None:
    module = _conditioner(Conditions(augment=True))
    asked = dataclasses.replace(ask_each(Conditions(), [""] * 3, [{}] * 3), augment=torch.ones(3, AUGMENT_LABELS))
    assert not module(asked).any()
    # It learns nevertheless; and the answer to zeros stays zero, whatever it has learned.
    module(asked).sum().backward()
    assert module.augment is not None
    assert module.augment.weight.grad is not None
    assert module.augment.weight.grad.abs().min() > 0
    torch.nn.init.ones_(module.augment.weight)
    assert not module(dataclasses.replace(asked, augment=torch.zeros(3, AUGMENT_LABELS))).any()


def test_parts_that_are_not_conditions_have_no_weights() -> None:
    names = {name.split(".")[0] for name in _conditioner(Conditions(labels=("a", "b"))).state_dict()}
    assert names == {"label"}
    assert {name.split(".")[0] for name in _conditioner(FULL).state_dict()} == {"label", "attributes", "augment"}
    nothing = _conditioner(Conditions(mask=True))
    assert not nothing.state_dict()
    assert torch.equal(nothing(ask_each(Conditions(), ["", ""], [{}, {}])), torch.zeros(2, 5))
    assert torch.equal(nothing.table(), torch.zeros(1, 5))


def test_weights_come_from_the_current_stream_of_torch() -> None:
    first, again, other = (_conditioner(FULL, seed=seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["label.weight"], other["label.weight"])


def test_what_was_not_asked_for_reaches_no_class_of_its_own() -> None:
    module = _conditioner(FULL)
    asked = _batch()
    module(asked.none()).sum().backward()
    assert module.label is not None
    assert module.label.weight.grad is not None
    assert torch.equal(module.label.weight.grad.abs().sum(dim=1) > 0, torch.tensor([False, False, True]))
