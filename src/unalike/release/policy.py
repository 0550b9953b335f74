"""The policy of a release: what must hold before synthetic images leave the house, as a small TOML file."""

from __future__ import annotations

import ast
import difflib
import inspect
import itertools
import json
import math
import textwrap
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

from unalike.errors import SettingsError

Second = Literal["autoencoder", "contrastive", "local"]
Unsure = Literal["remove", "keep"]
_CHOICES: Mapping[str, tuple[str, ...]] = {"second": get_args(Second), "unsure": get_args(Unsure)}


@dataclass(frozen=True)
class ReleasePolicy:
    """What must hold before samples leave the house. Every clause is judged; one that fails holds the samples."""

    copy_rate: float = 0.01
    """Largest share of copies among the images released: the upper bound of its 95 % interval must not exceed it."""

    false_alarm_rate: float = 0.05
    """Largest error rate that the audit may have been made with, and the smallest p-value its holdout must allow."""

    power: float = 0.8
    """Least share of planted plain copies (verbatim, or with slight noise) that the audit must have caught."""

    exposed: float = 0.05
    """Largest share of training subjects whose images the generator reproduced, before anything is removed."""

    closer: float = 0.75
    """Largest share of samples that lie closer to the training images than to as many holdout images, of which one half
    is expected: the lower bound of its 95 % interval must not exceed it. A generator can lean on its training subjects
    without copying any of them alone."""

    kept: float = 0.5
    """Least share of the samples that must remain when copies are removed."""

    second: Second = "autoencoder"
    """Second measure, by which what remains is audited again: autoencoder, contrastive or local."""

    second_power: float = 0.5
    """Least share of planted plain copies that the second measure must catch alone."""

    unsure: Unsure = "remove"
    """What is done with images that a steward is unsure about: remove or keep."""

    decide_all: bool = False
    """A steward must have decided on every flagged pair whose pictures the audit kept."""

    signatures: tuple[str, ...] = ()
    """Roles who must sign, such as "data protection officer"."""

    def check(self) -> None:
        """Raise `SettingsError`, with all that is wrong in one line."""
        problems = list(_find_problems(asdict(self)))
        if problems:
            raise SettingsError(f"the policy cannot be used: {'; '.join(problems)}. Mend it.")


def read_policy(path: Path) -> ReleasePolicy:
    """Read a policy from a TOML file with the fields of `ReleasePolicy` as top-level keys; what is absent is default.

    Raises `SettingsError`, one line with all problems and the file, if it cannot be read, has keys that no policy has,
    or values of a wrong type or out of range.
    """
    try:
        given = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"{path} does not exist or cannot be read. Check the path of the policy.") from error
    except ValueError as error:
        raise SettingsError(f"{path} is no TOML file ({_on_one_line(error)}). Mend it.") from error
    known = [each.name for each in fields(ReleasePolicy)]
    problems = [_unknown(name, known) for name in given if name not in known]
    values = {name: given[name] for name in known if name in given}
    problems += _find_problems(values)
    if problems:
        raise SettingsError(f"{path} is no policy: {'; '.join(problems)}. Mend the file.")
    return ReleasePolicy(**{name: _as_field(value) for name, value in values.items()})


def write_policy(policy: ReleasePolicy) -> str:
    """The policy as TOML with a comment on every field; `read_policy` reads it back."""
    meanings, values = _meanings(), asdict(policy)
    blocks = [f"{textwrap.indent(meanings[name], '# ')}\n{name} = {_as_toml(values[name])}\n" for name in values]
    head = "# What must hold before synthetic images leave the house. A line that is left out has the default value.\n"
    return "\n".join([head, *blocks])


def _find_problems(values: Mapping[str, Any]) -> Iterator[str]:
    for name, value in values.items():
        problem = _find_problem(name, value)
        if problem:
            yield f"{name} = {_as_toml(value)}, but {problem}"


def _find_problem(name: str, value: Any) -> str:
    """What is wrong with a value, or nothing."""
    if name in _CHOICES:
        return "" if isinstance(value, str) and value in _CHOICES[name] else f"give {' or '.join(_CHOICES[name])}"
    if name == "decide_all":
        return "" if isinstance(value, bool) else "give true or false"
    if name == "signatures":
        return _find_problem_of_roles(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return "give a number"
    if name == "false_alarm_rate":  # no holdout is large enough for 0
        return "" if 0 < value < 1 else "give a rate between 0 and 1, such as 0.05"
    return "" if 0 <= value <= 1 else "give a share from 0 to 1"


def _find_problem_of_roles(value: Any) -> str:
    if not isinstance(value, list | tuple) or not all(isinstance(role, str) and role.strip() for role in value):
        return 'give a list of roles, such as ["data protection officer"]'
    if len({role.strip().casefold() for role in value}) < len(value):
        return "a role is named twice: name each once"
    return ""


def _unknown(name: str, known: list[str]) -> str:
    nearest = difflib.get_close_matches(name.casefold().replace("-", "_"), known, n=1)
    meant = f"did you mean {nearest[0]}?" if nearest else f"there are: {', '.join(known)}"
    return f"there is no {name!r} ({meant})"


def _as_field(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(value)
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _as_toml(value: Any) -> str:
    """A value as TOML writes it; of other types only as far as a message needs it."""
    if isinstance(value, list | tuple):
        return f"[{', '.join(_as_toml(entry) for entry in value)}]"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        # JSON's escapes are TOML's, but that TOML wants DEL escaped as well.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return str(value)


def _on_one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _meanings() -> dict[str, str]:
    """What each field means: the text below it, which is what ``--help`` shows too."""
    parsed = ast.walk(ast.parse(inspect.getsource(ReleasePolicy)))
    body = next(node for node in parsed if isinstance(node, ast.ClassDef)).body
    meanings = {}
    for before, after in itertools.pairwise(body):
        if not (isinstance(before, ast.AnnAssign) and isinstance(before.target, ast.Name)):
            continue
        if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
            meanings[before.target.id] = textwrap.fill(" ".join(str(after.value.value).split()), 100)
    return meanings
