"""Prompts of several concepts: ``0.25*<healthy> AND 0.75*<cardiomegaly>``, read, written and blended. No torch here.

Liu et al. (2022), "Compositional Visual Generation with Composable Diffusion Models", conjunction and negation: each
concept i has a weight wᵢ and a noise prediction εᵢ of its own, and what is followed is

    ε = ε₀ + guidance · Σ wᵢ (εᵢ − ε₀),    ε₀ that of no prompt.

de Wilde et al. (2023), section 4.3, write prompts like this, move from healthy to diseased with weights that sum to 1,
and show several pathologies at 0.5 each. Weights are taken as written, never made to sum to 1.

    prompt   = concept { "AND" concept }
    concept  = [ "NOT" ] [ number "*" ] text        without a number 1; NOT turns the sign
    text     = words and <tokens>

AND and NOT are words in capital letters. A ``*`` follows a weight, or stands in the name of a sequence (T2*, R2*).
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from unalike.errors import SettingsError

LARGEST_WEIGHT = 100.0  # either sign; guidance multiplies it once more, and no picture survives that
MOST_CONCEPTS = 16  # each is a pass through the network at every step
LISTED = 20  # tokens that a message lists
QUOTED = 200  # characters of a prompt that a message quotes

_NUMBER = r"[+\-−]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?"
_TOKEN = re.compile(r"<[^<>]*>")
_AND = re.compile(r"<[^<>]*>|(?<![^\s>*])(AND)(?![^\s<])")  # a token is stepped over, whatever is written in it
_STAR = re.compile(r"<[^<>]*>|(?<!\b[TtRr]2)(\*)")
_NOT = re.compile(r"NOT(?![^\s<])")


@dataclass(frozen=True)
class Concept:
    """One concept of a prompt: its words and tokens, and how strongly it is asked for (negative: kept away from)."""

    text: str
    weight: float


def parse_prompt(text: str, *, known: Collection[str]) -> tuple[Concept, ...]:
    """The concepts of a prompt, in order; blanks within a text become single spaces.

    ``known`` are the tokens there are, with their brackets. A weight of 0 is kept: what to do with it is the sampler's.

    Raises `SettingsError`, quoting prompt and place, for an empty concept, a weight that is no number, that stands
    alone or is beyond ±`LARGEST_WEIGHT`, a second ``*``, an unpaired bracket, a token that is not known, more than
    `MOST_CONCEPTS` concepts, and weights that are all 0.
    """
    parts = _split(_AND, text)
    if parts == [""]:
        raise SettingsError("the prompt is empty. Give one such as '<token>', or '0.5*<one> AND 0.5*<other>'.")
    if len(parts) > MOST_CONCEPTS:
        raise SettingsError(f"prompt {_quote(text)} has {len(parts)} concepts: give at most {MOST_CONCEPTS}.")
    concepts = []
    for number, part in enumerate(parts, start=1):
        try:
            concepts.append(_read_concept(part, known))
        except ValueError as error:
            raise SettingsError(f"prompt {_quote(text)}, concept {number} ({_quote(part)}): {error}") from None
    if not any(concept.weight for concept in concepts):
        raise SettingsError(f"prompt {_quote(text)}: all weights are 0: nothing is asked for. Give one another weight.")
    return tuple(concepts)


def format_prompt(concepts: Sequence[Concept]) -> str:
    """The prompt that `parse_prompt` reads as just these ``concepts``.

    Raises `SettingsError` where there is none: a text that would be read in another way, weights it refuses.
    """
    written = " AND ".join(_write_concept(concept) for concept in concepts)
    tokens = {token for concept in concepts for token in _TOKEN.findall(concept.text)}
    if parse_prompt(written, known=tokens) != tuple(concepts):
        raise SettingsError(f"prompt {_quote(written)} would be read in another way. Leave AND, NOT, * out of texts.")
    return written


def blend(a: Sequence[Concept], b: Sequence[Concept], share: float) -> tuple[Concept, ...]:
    """A prompt between ``a`` and ``b``: the concepts of both, their weights times 1 − ``share`` and ``share``.

    At 0 it is ``a`` and at 1 ``b``, as they are. Between them a text that occurs more than once is one concept, its
    weights added, and a concept whose weight becomes 0 is left out. Weights are rounded to 12 decimals, so that
    1 − 0.7 is written as 0.3.

    Raises `SettingsError` if ``share`` is no number from 0 to 1, if the two cancel each other, or if there are more
    than `MOST_CONCEPTS` concepts.
    """
    if not 0 <= share <= 1:
        raise SettingsError(f"share = {share!r} of the second prompt: give a number from 0 to 1.")
    if share in (0, 1):
        return tuple(b if share else a)
    weights: dict[str, float] = {}
    for concepts, part in ((a, 1 - share), (b, share)):
        for concept in concepts:
            weights[concept.text] = weights.get(concept.text, 0.0) + part * concept.weight
    rounded = {text: round(weight, 12) for text, weight in weights.items()}
    blended = tuple(Concept(text, weight) for text, weight in rounded.items() if weight)
    if not blended:
        raise SettingsError(f"share = {share!r}: the two prompts cancel each other there. Give another share.")
    if len(blended) > MOST_CONCEPTS:
        raise SettingsError(f"the two prompts have {len(blended)} concepts together: give at most {MOST_CONCEPTS}.")
    return blended


def expand_tokens(text: str, vectors: Mapping[str, int]) -> str:
    """``text`` with each token of n vectors written as n: ``<t> <t>_1 … <t>_{n−1}``, as diffusers does.

    ``vectors`` gives the n of each token (with its brackets); other tokens stay as they are.

    Raises `SettingsError` for a token of no vector.
    """
    for token, count in vectors.items():
        if count < 1:
            raise SettingsError(f"{token} has {count} vectors: give an embedding of at least 1.")

    def spell(found: re.Match[str]) -> str:
        token = found[0]
        return " ".join([token, *(f"{token}_{index}" for index in range(1, vectors.get(token, 1)))])

    return _TOKEN.sub(spell, text)


def _split(separator: re.Pattern[str], text: str) -> list[str]:
    """The parts of ``text`` between what the separator's group finds, each with single spaces."""
    ends = [found.span() for found in separator.finditer(text) if found[1]]
    starts = [0, *(end for _, end in ends)]
    stops = [*(start for start, _ in ends), len(text)]
    return [" ".join(text[start:stop].split()) for start, stop in zip(starts, stops, strict=True)]


def _read_concept(part: str, known: Collection[str]) -> Concept:
    """The concept that is written in ``part``. Raises ValueError with what is wrong and the next step."""
    negated = _NOT.match(part)
    pieces = _split(_STAR, part[negated.end() :] if negated else part)
    if len(pieces) > 2:
        raise ValueError("there is a second *. Write one weight a concept, and AND (in capitals) between concepts.")
    weight, text = (_read_weight(pieces[0]), pieces[1]) if len(pieces) == 2 else (1.0, pieces[0])
    if not text:
        alone = "the weight has no text" if len(pieces) == 2 else "a concept is empty"
        raise ValueError(f"{alone}. Write NUMBER*text, and a concept on both sides of each AND.")
    if negated and weight < 0:
        raise ValueError("NOT and a negative weight say opposite things. Leave out one of them.")
    _check_text(text)
    for token in _TOKEN.findall(text):
        if token not in known:
            raise ValueError(_unknown(token, known))
    return Concept(text, -weight if negated else weight)


def _read_weight(written: str) -> float:
    """The number before a ``*``."""
    if not written:
        raise ValueError("there is no number before *. Write NUMBER*text, such as 0.5*<token>.")
    if not re.fullmatch(_NUMBER, written):
        raise ValueError(f"{_quote(written)} before * is no number. Write NUMBER*text, such as 0.5*<token>.")
    weight = float(written.replace("−", "-"))
    if not abs(weight) <= LARGEST_WEIGHT:
        raise ValueError(f"a weight of {_quote(written)} makes no sense. Give one from −100 to 100.")
    return weight


def _check_text(text: str) -> None:
    """Refuse a text that is probably meant otherwise than it would be read."""
    rest = _TOKEN.sub("", text)
    if "<" in rest:
        raise ValueError("a < is not closed. Write tokens as <name>.")
    if ">" in rest:
        raise ValueError("there is a > without <. Write tokens as <name>.")
    if re.fullmatch(_NUMBER, text):
        raise ValueError("a number stands alone. Write NUMBER*text, such as 0.5*<token>.")
    if re.match(rf"{_NUMBER} ?<", text):
        raise ValueError("there is no * between the number and the token. Write NUMBER*text, such as 0.5*<token>.")
    if re.search(rf"[> ]: ?{_NUMBER}$", text):
        raise ValueError("a weight stands before its text here, not behind it. Write NUMBER*text, such as 0.5*<token>.")
    if _NOT.match(text):
        raise ValueError("NOT stands once, before the weight. Write NOT 0.5*<token>.")


def _unknown(token: str, known: Collection[str]) -> str:
    """That there is no such token, which one is nearest, and which there are."""
    if not known:
        return f"there is no {token}, nor any other token here. Give the embedding's file, or leave the token out."
    folded = {name.casefold().strip("<>"): name for name in sorted(known)}
    nearest = difflib.get_close_matches(token.casefold().strip("<>"), folded, n=1)
    hint = f"; did you mean {folded[nearest[0]]}?" if nearest else "."
    listed = ", ".join(sorted(known)[:LISTED])
    more = f" and {len(known) - LISTED} more" if len(known) > LISTED else ""
    return f"there is no {token}{hint} There are: {listed}{more}."


def _write_concept(concept: Concept) -> str:
    """One concept as a prompt has it; the weight with as few digits as say it exactly."""
    if concept.weight == 1:
        return concept.text
    if concept.weight == -1:
        return f"NOT {concept.text}"
    short = f"{concept.weight:g}"
    exact = short if math.isnan(concept.weight) or float(short) == concept.weight else repr(float(concept.weight))
    return f"{exact}*{concept.text}"


def _quote(text: str) -> str:
    """``text`` in quotation marks on one line, its end left out where it is long."""
    return repr(text if len(text) <= QUOTED else f"{text[:QUOTED]}…")
