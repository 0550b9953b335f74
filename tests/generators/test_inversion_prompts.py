"""Prompts of several concepts: read by hand, refused by name, and what is written is what is read."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from unalike.errors import SettingsError
from unalike.generators.inversion.prompts import (
    LARGEST_WEIGHT,
    MOST_CONCEPTS,
    Concept,
    blend,
    expand_tokens,
    format_prompt,
    parse_prompt,
)

KNOWN = ("<healthy>", "<cardiomegaly>", "<pneumonia>")
HEALTHY, ILL = Concept("<healthy>", 1.0), Concept("<cardiomegaly>", 1.0)


def _parse(text: str) -> list[tuple[str, float]]:
    return [(concept.text, concept.weight) for concept in parse_prompt(text, known=KNOWN)]


def _refusal(text: str, known: Sequence[str] = KNOWN) -> str:
    with pytest.raises(SettingsError) as caught:
        parse_prompt(text, known=known)
    message = str(caught.value)
    assert "\n" not in message
    assert message.endswith(".")
    return message


# What is read


def test_the_papers_prompt() -> None:
    assert _parse("0.25*<healthy> AND 0.75*<cardiomegaly>") == [("<healthy>", 0.25), ("<cardiomegaly>", 0.75)]


@pytest.mark.parametrize(
    ("text", "concepts"),
    [
        ("<healthy>", [("<healthy>", 1)]),
        ("a chest x-ray of <healthy>, frontal", [("a chest x-ray of <healthy>, frontal", 1)]),
        ("  x-ray \n of\t<healthy> ", [("x-ray of <healthy>", 1)]),
        ("<healthy> AND <pneumonia> AND x-ray", [("<healthy>", 1), ("<pneumonia>", 1), ("x-ray", 1)]),
        ("<healthy>AND<pneumonia>", [("<healthy>", 1), ("<pneumonia>", 1)]),
        ("<healthy> <pneumonia>", [("<healthy> <pneumonia>", 1)]),
        ("<healthy> and BAND ANDY and-AND-or", [("<healthy> and BAND ANDY and-AND-or", 1)]),
        ("x-ray AND -0.5*<pneumonia>", [("x-ray", 1), ("<pneumonia>", -0.5)]),
        ("x-ray AND −0.5*<pneumonia>", [("x-ray", 1), ("<pneumonia>", -0.5)]),
        ("x-ray AND NOT <pneumonia>", [("x-ray", 1), ("<pneumonia>", -1)]),
        ("x-ray AND NOT<pneumonia>", [("x-ray", 1), ("<pneumonia>", -1)]),
        ("NOT 0.5 * <pneumonia> AND x-ray", [("<pneumonia>", -0.5), ("x-ray", 1)]),
        ("NOTHING else AND it is NOT him", [("NOTHING else", 1), ("it is NOT him", 1)]),
        (".5*a AND 2.*b AND +1e-2*c AND 1E1*d", [("a", 0.5), ("b", 2), ("c", 0.01), ("d", 10)]),
        ("0*<healthy> AND <pneumonia>", [("<healthy>", 0), ("<pneumonia>", 1)]),
        ("100*a AND -100*b", [("a", 100), ("b", -100)]),
        ("3 T brain AND 0.5*64 x 64", [("3 T brain", 1), ("64 x 64", 0.5)]),
        ("T2* AND 0.5*T2*-weighted AND r2* map", [("T2*", 1), ("T2*-weighted", 0.5), ("r2* map", 1)]),
    ],
)
def test_prompts_read_by_hand(text: str, concepts: list[tuple[str, float]]) -> None:
    assert _parse(text) == concepts


def test_a_token_may_be_named_like_a_separator_or_a_weight() -> None:
    known = ["<this AND that>", "<0.5*x>", "<*>"]
    parsed = parse_prompt("0.5*<this AND that> AND <0.5*x> AND 2*<*>", known=known)
    assert parsed == (Concept("<this AND that>", 0.5), Concept("<0.5*x>", 1.0), Concept("<*>", 2.0))
    assert parse_prompt(format_prompt(parsed), known=known) == parsed


# What is refused


@pytest.mark.parametrize(
    ("text", "place", "problem"),
    [
        ("<healthy> AND ", "concept 2 ('')", "a concept is empty"),
        ("AND <healthy>", "concept 1 ('')", "a concept is empty"),
        ("<healthy> AND AND x", "concept 2 ('')", "a concept is empty"),
        ("<healthy> AND NOT", "concept 2 ('NOT')", "a concept is empty"),
        ("<healthy> AND 0.5*", "concept 2 ('0.5*')", "the weight has no text"),
        ("0.5*AND <healthy>", "concept 1 ('0.5*')", "the weight has no text"),
        ("0.5 AND <healthy>", "concept 1 ('0.5')", "a number stands alone"),
        ("0.5*3", "concept 1 ('0.5*3')", "a number stands alone"),
        ("0.5 <healthy>", "concept 1", "no * between the number and the token"),
        ("0.5**<healthy>", "concept 1", "a second *"),
        ("0.5*0.5*<healthy>", "concept 1", "a second *"),
        ("0.5*<healthy> and 0.5*<pneumonia>", "concept 1", "AND (in capitals)"),
        ("*<healthy>", "concept 1", "no number before *"),
        ("NOT *<healthy>", "concept 1", "no number before *"),
        ("0,5*<healthy>", "concept 1", "'0,5' before * is no number"),
        ("O.5* <healthy>", "concept 1", "'O.5' before * is no number"),
        ("x-ray AND <healthy> 0.5*<pneumonia>", "concept 2", "'<healthy> 0.5' before * is no number"),
        ("nan*<healthy>", "concept 1", "'nan' before * is no number"),
        ("inf*<healthy>", "concept 1", "'inf' before * is no number"),
        ("1_0*<healthy>", "concept 1", "'1_0' before * is no number"),
        ("٣*<healthy>", "concept 1", "before * is no number"),
        ("1e999*<healthy>", "concept 1", "a weight of '1e999' makes no sense"),
        ("-100.1*<healthy>", "concept 1", "a weight of '-100.1' makes no sense"),
        ("NOT -1*<healthy>", "concept 1", "opposite things"),
        ("NOT NOT <healthy>", "concept 1", "NOT stands once"),
        ("0.5*NOT <healthy>", "concept 1", "NOT stands once"),
        ("x AND <healthy", "concept 2 ('<healthy')", "a < is not closed"),
        ("<healthy AND <pneumonia>", "concept 1 ('<healthy')", "a < is not closed"),
        ("<<healthy>", "concept 1", "a < is not closed"),
        ("healthy>", "concept 1", "a > without <"),
        ("<healthy> :0.25 AND <pneumonia>:0.75", "concept 1", "before its text"),
        ("<healthy>:0.25", "concept 1", "before its text"),
    ],
)
def test_what_is_malformed_is_refused_with_its_place(text: str, place: str, problem: str) -> None:
    message = _refusal(text)
    assert repr(text) in message
    assert place in message
    assert problem in message


@pytest.mark.parametrize("text", ["", "  \n"])
def test_an_empty_prompt_is_refused(text: str) -> None:
    assert "the prompt is empty" in _refusal(text)


def test_weights_that_are_all_zero_are_refused() -> None:
    assert "all weights are 0" in _refusal("0*<healthy> AND -0.0*<pneumonia>")


def test_as_many_concepts_as_allowed_and_no_more() -> None:
    text = " AND ".join(["x"] * MOST_CONCEPTS)
    assert len(_parse(text)) == MOST_CONCEPTS
    assert f"has {MOST_CONCEPTS + 1} concepts" in _refusal(text + " AND x")


def test_the_nearest_token_is_offered() -> None:
    message = _refusal("0.5*<healthy> AND 0.5*<cardiomegali>")
    assert message.endswith(
        "there is no <cardiomegali>; did you mean <cardiomegaly>? There are: <cardiomegaly>, <healthy>, <pneumonia>."
    )
    assert "did you mean <healthy>?" in _refusal("<Healthy>")
    assert "did you mean" not in _refusal("<zebra>")


def test_without_tokens_and_with_many() -> None:
    assert "nor any other token" in _refusal("<healthy>", known=())
    message = _refusal("<zebra>", known=[f"<{index:03}>" for index in range(500)])
    assert message.endswith("<018>, <019> and 480 more.")


def test_a_long_prompt_is_quoted_in_part_and_on_one_line() -> None:
    assert len(_refusal("x " * 5000 + "\n<zebra>")) < 700
    assert "\\n" in _refusal("x\n<zebra>")


# What is written


@pytest.mark.parametrize(
    ("concepts", "text"),
    [
        ([Concept("<healthy>", 0.25), Concept("<cardiomegaly>", 0.75)], "0.25*<healthy> AND 0.75*<cardiomegaly>"),
        ([Concept("x-ray", 1.0), Concept("<healthy>", -1.0)], "x-ray AND NOT <healthy>"),
        ([Concept("a", 2.0), Concept("b", -0.5), Concept("c", 0.0)], "2*a AND -0.5*b AND 0*c"),
        ([Concept("a", 1 / 3), Concept("b", 1e-20)], "0.3333333333333333*a AND 1e-20*b"),
        ([Concept("a", 3), Concept("b", 1)], "3*a AND b"),
    ],
)
def test_prompts_written_by_hand(concepts: list[Concept], text: str) -> None:
    assert format_prompt(concepts) == text


@pytest.mark.parametrize(
    "concepts",
    [
        [],
        [Concept("", 0.5)],
        [Concept("a AND b", 0.5)],
        [Concept("NOT a", 1.0)],
        [Concept("0.5*a", 1.0)],
        [Concept("two  spaces", 1.0)],
        [Concept("<a", 1.0)],
        [Concept("a", math.nan)],
        [Concept("a", math.inf)],
        [Concept("a", 101.0)],
        [Concept("a", 0.0)],
    ],
)
def test_what_would_be_read_in_another_way_is_not_written(concepts: list[Concept]) -> None:
    with pytest.raises(SettingsError):
        format_prompt(concepts)


WORDS = ["x-ray", "of", "<healthy>", "<pneumonia>", "T2*", "NOTE", "3", "a:b", "é", "and"]
TEXTS = st.lists(st.sampled_from(WORDS), max_size=3).map(lambda words: " ".join(["an", *words]))
WEIGHTS = st.floats(-LARGEST_WEIGHT, LARGEST_WEIGHT) | st.sampled_from([1.0, -1.0, 0.5, 0.0])
CONCEPTS = st.lists(st.builds(Concept, TEXTS, WEIGHTS), min_size=1, max_size=MOST_CONCEPTS).filter(
    lambda concepts: any(concept.weight for concept in concepts)
)


@settings(max_examples=60, deadline=None)
@given(CONCEPTS)
def test_what_is_written_is_read_back(concepts: list[Concept]) -> None:
    assert parse_prompt(format_prompt(concepts), known=KNOWN) == tuple(concepts)


PIECES = ["AND", "NOT", " ", " ", "*", "0.5", "-1", "<healthy>", "<", ">", ":", "T2*", "x", "1e3", "\n"]


def _reading(text: str) -> tuple[Concept, ...] | str:
    try:
        return parse_prompt(text, known=KNOWN)
    except SettingsError as error:
        return str(error)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from(PIECES), max_size=9).map("".join))
@example("NOT 0.5*T2* AND x")
@example("-1*AND")
@example("\x1c\u2028<\u00a0>\0\ud800")
def test_any_text_is_refused_in_one_line_or_can_be_written_again(text: str) -> None:
    found = _reading(text)
    if isinstance(found, str):
        assert len(found.splitlines()) == 1
    else:
        assert parse_prompt(format_prompt(found), known=KNOWN) == found


# From one prompt to another


def test_the_papers_row_from_healthy_to_ill() -> None:
    row = [format_prompt(blend([HEALTHY], [ILL], share)) for share in (0, 0.25, 0.5, 0.75, 1)]
    assert row == [
        "<healthy>",
        "0.75*<healthy> AND 0.25*<cardiomegaly>",
        "0.5*<healthy> AND 0.5*<cardiomegaly>",
        "0.25*<healthy> AND 0.75*<cardiomegaly>",
        "<cardiomegaly>",
    ]


def test_shares_are_written_as_one_would() -> None:
    assert format_prompt(blend([HEALTHY], [ILL], 0.7)) == "0.3*<healthy> AND 0.7*<cardiomegaly>"


@given(CONCEPTS, CONCEPTS)
@settings(max_examples=30, deadline=None)
def test_the_ends_are_the_prompts_themselves(a: list[Concept], b: list[Concept]) -> None:
    assert blend(a, b, 0) == tuple(a)
    assert blend(a, b, 1.0) == tuple(b)


def test_what_both_have_is_one_concept() -> None:
    a = [Concept("x-ray", 1.0), Concept("<healthy>", 0.5)]
    b = [Concept("<pneumonia>", 1.0), Concept("x-ray", 0.2)]
    assert blend(a, b, 0.5) == (Concept("x-ray", 0.6), Concept("<healthy>", 0.25), Concept("<pneumonia>", 0.5))
    assert blend(a, a, 0.3) == tuple(a)


def test_what_cancels_is_left_out() -> None:
    a, b = [HEALTHY, ILL], [Concept("<healthy>", -1.0), Concept("x-ray", 0.0)]
    assert blend(a, b, 0.5) == (Concept("<cardiomegaly>", 0.5),)
    with pytest.raises(SettingsError, match="cancel each other"):
        blend([HEALTHY], b, 0.5)


def test_a_blend_of_too_many_is_refused() -> None:
    a, b = ([Concept(f"{name} {index}", 1.0) for index in range(9)] for name in "ab")
    with pytest.raises(SettingsError, match="18 concepts"):
        blend(a, b, 0.5)


@pytest.mark.parametrize("share", [-0.1, 1.1, math.nan, math.inf])
def test_a_share_is_from_0_to_1(share: float) -> None:
    with pytest.raises(SettingsError, match="from 0 to 1"):
        blend([HEALTHY], [ILL], share)


# Tokens of several vectors


def test_tokens_are_spelled_out() -> None:
    vectors = {"<a>": 3, "<b>": 1, "<ab>": 2}
    assert expand_tokens("an <a>, <b> and <ab>; <c>", vectors) == "an <a> <a>_1 <a>_2, <b> and <ab> <ab>_1; <c>"
    assert expand_tokens("<a> <a>", {"<a>": 2}) == "<a> <a>_1 <a> <a>_1"
    assert expand_tokens("no token", vectors) == "no token"
    assert expand_tokens("<t>", {"<t>": 64}).split() == ["<t>", *(f"<t>_{index}" for index in range(1, 64))]


def test_a_token_of_no_vector_is_refused() -> None:
    with pytest.raises(SettingsError, match="<a> has 0 vectors"):
        expand_tokens("<a>", {"<a>": 0})


def test_tokens_are_spelled_as_diffusers_spells_them() -> None:
    loaders = pytest.importorskip("diffusers.loaders.textual_inversion")

    class Tokenizer:
        added_tokens_encoder = ("<a>", "<a>_1", "<a>_2", "<b>")

        @staticmethod
        def tokenize(text: str) -> list[str]:
            return text.replace(",", " ,").split()

    text = "an <a>, then <b> and <a> and <c>"
    theirs = loaders.TextualInversionLoaderMixin().maybe_convert_prompt(text, Tokenizer())
    assert expand_tokens(text, {"<a>": 3, "<b>": 1}) == theirs
