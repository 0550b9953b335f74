"""What a study file may say, and how its values are checked and turned into flags. No torch here."""

from __future__ import annotations

import dataclasses
import difflib
import types
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from unalike.errors import SettingsError

LAYOUTS = ("", "akbar2025", "nafi2024", "dewilde2023")
MEASURES = ("audit", "fidelity", "utility", "explain")
PATHS = frozenset({"attributes_table", "weights", "base", "base_config", "embeddings", "images", "redraw", "masks"})
"""Settings that name a file or folder: relative to the study file where it is there, and ``{data:NAME}`` is filled in.
A recipe that ends in .toml is one as well."""


@dataclass(frozen=True)
class CohortPlan:
    """One cohort: ``settings`` of prepare over a ``source`` (or a ``phantom``), or a ``folder`` that is there.

    ``key`` is a file that keys the pseudonyms, so that two studies name patients alike."""

    settings: Mapping[str, Any] = field(default_factory=dict)
    source: Path | None = None
    phantom: str = ""
    key: Path | None = None
    folder: Path | None = None
    seed: int | None = None
    about: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class GeneratorPlan:
    """One generator: what it is trained with, on which cohorts and numbers of subjects (0: all), how it is drawn from.

    ``variants`` are further trainings: what varies, and all settings of that training. A variant that trains as the
    plain settings do has None instead.
    """

    kind: str
    preset: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    cohorts: tuple[str, ...] = ()
    subjects: tuple[int, ...] = (0,)
    variants: tuple[tuple[Mapping[str, Any], Mapping[str, Any] | None], ...] = ()
    sample: Mapping[str, Any] = field(default_factory=dict)
    seed: int | None = None
    about: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class MeasurePlan:
    """One measure, of the samples of some cohorts and generators; ``of`` says what is explained."""

    settings: Mapping[str, Any] = field(default_factory=dict)
    cohorts: tuple[str, ...] = ()
    generators: tuple[str, ...] = ()
    of: tuple[str, ...] = ()
    seed: int | None = None


@dataclass(frozen=True)
class SweepPlan:
    """One table over settings, as ``unalike sweep`` makes it."""

    kind: str
    cohort: str
    train: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    sample: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)
    count: int | None = None
    seed: int | None = None
    about: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class CommandPlan:
    """Any other command; ``{STAGE:NAME}``, ``{data:NAME}`` and ``{out}`` in its words are filled in."""

    argv: tuple[str, ...]
    needs: tuple[str, ...] = ()
    about: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Study:
    """A study file, read and checked."""

    file: Path
    title: str
    layout: str = ""
    note: str = ""
    seed: int = 0
    data: Mapping[str, Path] = field(default_factory=dict)
    phantoms: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    cohorts: Mapping[str, CohortPlan] = field(default_factory=dict)
    generators: Mapping[str, GeneratorPlan] = field(default_factory=dict)
    samples: Mapping[str, Any] = field(default_factory=dict)
    measures: Mapping[str, MeasurePlan] = field(default_factory=dict)
    sweeps: Mapping[str, SweepPlan] = field(default_factory=dict)
    commands: Mapping[str, CommandPlan] = field(default_factory=dict)


def suggest(name: str, known: Iterable[str]) -> str:
    """``"; did you mean x?"``, or what there is where nothing is close."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=1)
    if close:
        return f"did you mean {close[0]}?"
    return f"there are: {', '.join(known)}." if known else "there are none."


def fit_table(types_: Mapping[str, Any], table: Mapping[str, Any], where: str, problems: list[str]) -> dict[str, Any]:
    """The values of a TOML table as the annotated types have them; hyphens in names are underscores.

    What is unknown or of another type is told in ``problems`` and left out.
    """
    found: dict[str, Any] = {}
    for given, value in table.items():
        name = given.replace("-", "_")
        if name not in types_:
            problems.append(f"{where} {given}: unknown; {suggest(name, types_)}")
            continue
        try:
            found[name] = fit_value(value, types_[name])
        except ValueError as error:
            problems.append(f"{where} {given} = {value!r}: give {error}.")
    return found


def fit_value(value: Any, wanted: Any) -> Any:
    """``value`` as TOML gives it, as the type ``wanted``; a `ValueError` says in words what is wanted."""
    origin, inner = get_origin(wanted), get_args(wanted)
    if origin in (Union, types.UnionType):
        return fit_value(value, next(one for one in inner if one is not type(None)))
    if origin is Literal:
        if value not in inner:
            raise ValueError("one of " + ", ".join(map(str, inner)))
        return value
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise ValueError("a list")
        kinds = inner[:1] * len(value) if inner[-1] is Ellipsis else inner
        if len(kinds) != len(value):
            raise ValueError(f"a list of {len(kinds)}")
        return tuple(fit_value(one, kind) for one, kind in zip(value, kinds, strict=True))
    if wanted is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if wanted is int and isinstance(value, int) and not isinstance(value, bool):
        return value
    if wanted in (bool, str) and isinstance(value, wanted):
        return value
    if wanted is Path and isinstance(value, str):
        return Path(value)
    if wanted is dict and isinstance(value, dict):
        return value
    names = {float: "a number", int: "a whole number", bool: "true or false", dict: "a table"}
    raise ValueError(names.get(wanted, "text"))


def types_of(kind: type[Any]) -> dict[str, Any]:
    """Names and types of a settings class."""
    hints = get_type_hints(kind)
    return {entry.name: hints[entry.name] for entry in dataclasses.fields(kind)}


def check_values(make: Any, values: Mapping[str, Any], where: str, problems: list[str]) -> Any:
    """Make the settings and let them check themselves; what they refuse is told in ``problems``, and None given."""
    try:
        made = make(**values)
        if hasattr(made, "check"):
            made.check()
    except SettingsError as error:
        problems.append(f"{where} {error}")
        return None
    return made


def as_flags(values: Mapping[str, Any]) -> tuple[str, ...]:
    """Settings as a user types them: ``--ema-decays 0.9 --ema-decays 0.99 --no-augment``."""
    words: list[str] = []
    for name, value in values.items():
        flag = "--" + name.replace("_", "-")
        if isinstance(value, bool):
            words.append(flag if value else flag.replace("--", "--no-", 1))
        elif isinstance(value, tuple) and not value:
            words.append(flag.replace("--", "--empty-", 1))
        elif isinstance(value, tuple):
            words += _list_words(flag, name, [str(entry) for entry in value])
        else:
            words += _one(flag, str(value))
    return tuple(words)


# A pair or a triple is one value of several words; all other lists repeat their flag.
_TOGETHER = frozenset({"percentiles", "spacing", "crop", "window", "box", "interpolate", "morph"})


def _list_words(flag: str, name: str, entries: list[str]) -> list[str]:
    if name in _TOGETHER:
        return [flag, *entries]
    return [word for entry in entries for word in _one(flag, entry)]


def _one(flag: str, value: str) -> list[str]:
    """A value that begins with a hyphen would be taken for a flag of its own."""
    return [f"{flag}={value}"] if value.startswith("-") else [flag, value]
