"""What a sample can be asked for: a class, attributes of the subject, a mask; and, in training, what was done to it.

A class is one row of a table of learned vectors; a last row stands for "no label". A numeric attribute enters as two
numbers (standardized value, 1), or (0, 0) where it is unknown; a categorical one as one number for each of its values,
one of them 1, or none where it is unknown. So "not asked for" always has a code of its own, which is what
classifier-free guidance needs (Ho and Salimans 2021, "Classifier-Free Diffusion Guidance").
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from unalike.errors import SettingsError
from unalike.generators.diffusion.augment import AUGMENT_LABELS
from unalike.records import MASK

LABEL = "label"  # with `MASK` the names that are no attribute's
LARGEST_NUMBER = 1e12  # a larger one is no measurement, and float32 might not hold it once standardized


@dataclass(frozen=True)
class Attribute:
    """One attribute of the subjects: numeric if ``values`` is empty, else one of these values.

    A number enters as (number − ``mean``) / ``deviation``, both over the training images that have one.
    """

    name: str
    values: tuple[str, ...]
    mean: float
    deviation: float

    @property
    def width(self) -> int:
        """Numbers that say its value."""
        return len(self.values) or 2


@dataclass(frozen=True)
class Conditions:
    """What a network can be asked for; stored in the run's header.

    ``labels`` are the K classes, or none; ``mask`` says that a mask is given beside the noisy image, ``augment`` that
    the network is told how an image was changed.
    """

    labels: tuple[str, ...] = ()
    attributes: tuple[Attribute, ...] = ()
    mask: bool = False
    augment: bool = False

    @property
    def vector(self) -> bool:
        """Whether anything enters as a vector, hence whether there is a `Conditioner`."""
        return bool(self.labels or self.attributes or self.augment)

    @property
    def width(self) -> int:
        """Numbers that say all attributes' values."""
        return sum(attribute.width for attribute in self.attributes)

    def to_content(self) -> dict[str, Any]:
        """As JSON; `from_content` reads it back."""
        attributes = [dataclasses.asdict(a) | {"values": list(a.values)} for a in self.attributes]
        return {"labels": list(self.labels), "attributes": attributes, "mask": self.mask, "augment": self.augment}

    @classmethod
    def from_content(cls, content: Mapping[str, Any] | None) -> Conditions:
        """Read back; None, as runs without conditions have it, is nothing to ask for."""
        if content is None:
            return cls()
        attributes = tuple(
            Attribute(str(a["name"]), tuple(a["values"]), float(a["mean"]), float(a["deviation"]))
            for a in content["attributes"]
        )
        return cls(tuple(content["labels"]), attributes, bool(content["mask"]), bool(content["augment"]))


@dataclass(frozen=True)
class Asked:
    """What is asked of the B images of a batch.

    ``label`` (B,) int64 is the number of the class, ``classes`` (K) where none is asked for; ``attributes``
    (B, `Conditions.width`) float32; ``augment`` (B, `AUGMENT_LABELS`) float32, zeros in sampling; ``mask``
    (B, 1, H, W) float32 in [−1, 1], or None.
    """

    label: torch.Tensor
    attributes: torch.Tensor
    augment: torch.Tensor
    mask: torch.Tensor | None
    classes: int

    def __len__(self) -> int:
        """Number of images."""
        return len(self.label)

    def to(self, device: torch.device) -> Asked:
        """The same on ``device``."""
        mask = None if self.mask is None else self.mask.to(device)
        return Asked(self.label.to(device), self.attributes.to(device), self.augment.to(device), mask, self.classes)

    def none(self) -> Asked:
        """The same batch with no label and no attributes asked for: the other half of guidance.

        Mask and augmentation stay: they are no wish but say what image this is.
        """
        label = torch.full_like(self.label, self.classes)
        return dataclasses.replace(self, label=label, attributes=torch.zeros_like(self.attributes))

    def cat(self, other: Asked) -> Asked:
        """This batch, then ``other`` of the same conditions."""
        if self.classes != other.classes or (self.mask is None) != (other.mask is None):
            raise ValueError("batches of other conditions cannot be joined")
        return Asked(
            label=torch.cat([self.label, other.label]),
            attributes=torch.cat([self.attributes, other.attributes]),
            augment=torch.cat([self.augment, other.augment]),
            mask=None if self.mask is None or other.mask is None else torch.cat([self.mask, other.mask]),
            classes=self.classes,
        )

    def take(self, index: torch.Tensor | slice) -> Asked:
        """The images at ``index``: positions, a boolean (B,) on the same device, or a slice."""
        mask = None if self.mask is None else self.mask[index]
        return Asked(self.label[index], self.attributes[index], self.augment[index], mask, self.classes)


class Conditioner(nn.Module):
    """What is asked for as one vector an image: the sum of what label, attributes and augmentation each give.

    Initialised from torch's current generator. Augmentation begins at zero, so that at first its labels, and at
    sampling their absence, change nothing.
    """

    def __init__(self, conditions: Conditions, width: int) -> None:
        """``width`` is the length of the vector."""
        super().__init__()
        self.width = width
        self.label = nn.Embedding(len(conditions.labels) + 1, width) if conditions.labels else None
        self.attributes: nn.Sequential | None = None
        if conditions.attributes:
            self.attributes = nn.Sequential(nn.Linear(conditions.width, width), nn.SiLU(), nn.Linear(width, width))
        self.augment: nn.Linear | None = None
        if conditions.augment:
            self.augment = nn.Linear(AUGMENT_LABELS, width, bias=False)
            nn.init.zeros_(self.augment.weight)

    def forward(self, asked: Asked) -> torch.Tensor:
        """The vectors (B, width); zeros if there is nothing to ask for."""
        # Summed in float32 also where the parts are computed in bfloat16.
        total = torch.zeros(len(asked), self.width, device=asked.label.device)
        if self.label is not None:
            total = total + self.label(asked.label)
        if self.attributes is not None:
            total = total + self.attributes(asked.attributes)
        if self.augment is not None:
            total = total + self.augment(asked.augment)
        return total

    def table(self) -> torch.Tensor:
        """The vectors (K + 1, width) of the classes, "no label" last; one row of zeros without classes.

        They are all of the vector where there are no attributes and nothing was done to the image.
        """
        return torch.zeros(1, self.width) if self.label is None else self.label.weight


def find_conditions(
    names: Sequence[str],
    *,
    labels: Sequence[str],
    attributes: Sequence[Mapping[str, str]],
    mask: bool,
    augment: bool,
) -> Conditions:
    """Conditions on what ``names`` lists: "label", "mask", or attributes of the subjects.

    ``labels`` and ``attributes`` are those of the training images, an entry each, empty where unknown; ``mask``
    says whether they have a mask, ``augment`` whether they will be changed. An attribute is numeric if every
    value given is a number of at most `LARGEST_NUMBER`, else categorical with its values sorted.

    Raises `SettingsError` if a label is asked for and there are fewer than two classes, a mask and there is none, or
    an attribute that no image has.
    """
    wanted = list(dict.fromkeys(names))
    classes = tuple(sorted({label for label in labels if label})) if LABEL in wanted else ()
    if LABEL in wanted and len(classes) < 2:
        there = f"only the class '{classes[0]}'" if classes else "no labels"
        raise SettingsError(
            f"the training images have {there}; a condition on 'label' needs two classes. Prepare the cohort with "
            "labels, or leave 'label' out of the conditions."
        )
    if MASK in wanted and not mask:
        raise SettingsError(
            "the training images have no mask channel. Prepare the cohort with one, or leave 'mask' out of the "
            "conditions."
        )
    known = sorted({name for entry in attributes for name, value in entry.items() if value})
    found = tuple(_find_attribute(name, attributes, known) for name in wanted if name not in (LABEL, MASK))
    return Conditions(labels=classes, attributes=found, mask=MASK in wanted, augment=augment)


def _find_attribute(name: str, entries: Sequence[Mapping[str, str]], known: Sequence[str]) -> Attribute:
    """The attribute ``name`` as the training images have it; ``known`` are the names that any has."""
    values = [value for entry in entries if (value := entry.get(name, ""))]
    if not values:
        raise SettingsError(
            f"no training image has the attribute '{name}'. There are: {', '.join(known) or 'none'}. Condition on one "
            "of these, or prepare the cohort with it."
        )
    numbers = [_number(value) for value in values]
    if None in numbers:
        return Attribute(name, tuple(sorted(set(values))), mean=0.0, deviation=1.0)
    array = np.array(numbers, dtype=np.float64)
    if array.min() == array.max():  # rounding may leave a deviation of 1e-17 here
        return Attribute(name, (), mean=float(array[0]), deviation=1.0)
    return Attribute(name, (), mean=float(array.mean()), deviation=float(array.std()) or 1.0)


def _number(text: str) -> float | None:
    """The number that ``text`` says, or None if it says none, or one beyond `LARGEST_NUMBER`."""
    try:
        number = float(text)
    except ValueError:
        return None
    return number if abs(number) <= LARGEST_NUMBER else None  # None for NaN too


def hide_conditions(asked: Asked, hidden: npt.NDArray[np.bool_]) -> Asked:
    """``asked`` in training for guidance: ``hidden`` (B,) images lose label and attributes together.

    So the network learns the unconditional distribution too (Ho and Salimans 2021, algorithm 1).
    """
    lost = torch.from_numpy(hidden).to(asked.label.device)
    nothing = asked.none()
    return dataclasses.replace(
        asked,
        label=torch.where(lost, nothing.label, asked.label),
        attributes=torch.where(lost[:, None], nothing.attributes, asked.attributes),
    )


def ask(conditions: Conditions, *, count: int, label: str | None, attributes: Mapping[str, str]) -> Asked:
    """The same wish for ``count`` images to sample; what is None, empty or not named is not asked for. No mask yet.

    Raises `SettingsError` for a label, an attribute or a value that the run does not know, and lists those it does.
    """
    if label and not conditions.labels:
        raise SettingsError(f"label '{label}' is unknown: the run was trained without labels. Leave it out.")
    names = [attribute.name for attribute in conditions.attributes]
    for name in attributes:
        if name not in names:
            there = (
                f"There are: {', '.join(names)}" if names else "The run was trained without attributes: leave it out"
            )
            raise SettingsError(f"attribute '{name}' is unknown. {there}.")
    return ask_each(conditions, [label or ""] * count, [attributes] * count)


def ask_each(conditions: Conditions, labels: Sequence[str], attributes: Sequence[Mapping[str, str]]) -> Asked:
    """What images of these ``labels`` and ``attributes`` are, one entry each; empty or missing is unknown. No mask yet.

    What the conditions do not know of at all (labels, or further attributes) is left out.

    Raises `SettingsError` for a class or a value that was not in training, or text where a number belongs.
    """
    numbers = [_class_number(conditions.labels, label) for label in labels]
    rows = [
        [number for attribute in conditions.attributes for number in _encode(attribute, entry.get(attribute.name, ""))]
        for entry in attributes
    ]
    return Asked(
        label=torch.tensor(numbers, dtype=torch.int64),
        attributes=torch.tensor(rows, dtype=torch.float32).reshape(len(numbers), conditions.width),
        augment=torch.zeros(len(numbers), AUGMENT_LABELS),
        mask=None,
        classes=len(conditions.labels),
    )


def _class_number(classes: Sequence[str], label: str) -> int:
    """Position of ``label``, or the number of classes where it is empty or there are none."""
    if not label or not classes:
        return len(classes)
    if label not in classes:
        raise SettingsError(f"label '{label}' is unknown. There are: {', '.join(classes)}.")
    return classes.index(label)


def _encode(attribute: Attribute, value: str) -> list[float]:
    """The numbers that say ``value`` of ``attribute``; zeros where it is empty."""
    if not value:
        return [0.0] * attribute.width
    if attribute.values:
        if value not in attribute.values:
            there = ", ".join(attribute.values)
            raise SettingsError(f"{attribute.name} '{value}' is unknown. There are: {there}.")
        return [float(value == known) for known in attribute.values]
    number = _number(value)
    if number is None:
        raise SettingsError(f"{attribute.name} '{value}' is no number. Give one, such as {attribute.mean:.4g}.")
    return [(number - attribute.mean) / attribute.deviation, 1.0]
