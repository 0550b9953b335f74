from __future__ import annotations

import itertools
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from unalike.release.card import (
    build_card,
    columns_of,
    escape_markdown,
    flatten,
    say,
    say_seeds,
    say_share,
    write_cards,
)

ESTIMATE = {"value": 0.25, "low": 0.125, "high": None, "n": 8, "method": "exact", "confidence": 0.95}
SHARE = {"value": 0.01, "low": 0.0, "high": 0.02, "n": 100, "method": "exact", "confidence": 0.95}
LEAST: dict[str, Any] = {
    "title": "Brains",
    "made_by": "unalike 1",
    "created": "2026-01-02",
    "decision": "RELEASE",
    "images": {"count": 3, "channels": ["t1"], "height": 8, "width": 9, "dtype": "uint8", "labels": {"cat": 3}},
    "formats": ["png"],
}
AUDIT = {
    "decision": "no copies found",
    "headline": "None is flagged.",
    "warnings": ["Blind to blur."],
    "level": 0.05,
    "holdout_subjects": 40,
    "power": [{"change": "none", "planted": SHARE, "sham": SHARE}],
}
WHOLE: dict[str, Any] = LEAST | {
    "generator": {"kind": "diffusion", "sampling": {"steps": 25}, "training": {}, "seeds": [[0, 4], [6, 6]]},
    "training": {"subjects": 70, "images": 90},
    "privacy": {
        "clauses": [{"name": "power", "wanted": "80 %", "found": "70 %", "passed": False, "gap": "10 points below"}],
        "copies": SHARE,
        "audit": AUDIT,
        "second": AUDIT | {"measure": "autoencoder"},
        "removed": {"count": 2, "share": 0.4, "reasons": {"flagged": 2}},
        "diversity_lost": {"labels": {"cat": {"before": 0.5, "after": 0.25}}},
    },
    "fidelity": [
        {"label": "", "measure": "frechet", "compared": "synthetic-train", "found": SHARE, "features": "own"},
        {
            "label": "cat",
            "measure": "frechet of cats",
            "compared": "synthetic-train",
            "found": SHARE,
            "features": "own",
        },
    ],
    "utility": [{"task": "classify", "table": [{"network": "small", "accuracy": SHARE, "folds_each": [1, 2]}]}],
    "recompute": {"descriptors": {"n_images": 90, "n_subjects": 70}, "frechet": 1.25},
    "signatures": {"data protection officer": "A. Person"},
}
PAGES = ("README.md", "datasheet.md", "card.html")


class _Page(HTMLParser):
    """Tags of a page, headings in order, and whether every tag is closed."""

    void = frozenset({"meta", "link", "br", "img", "input", "hr"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.void:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def _write(tmp_path: Path, facts: dict[str, Any]) -> dict[str, str]:
    write_cards(build_card(facts=facts), tmp_path)
    return {name: (tmp_path / name).read_text(encoding="utf-8") for name in (*PAGES, "card.json")}


def test_a_card_of_the_least_that_is_known_says_what_was_not_measured(tmp_path: Path) -> None:
    texts = _write(tmp_path, LEAST)
    card = json.loads(texts["card.json"])
    assert card["not_measured"] == ["generator", "training", "privacy", "fidelity", "utility", "recompute"]
    assert card["licence"] == card["contact"] == "not stated"
    assert card["override"] is None
    assert card["intended_use"]
    for name in PAGES:
        assert "not measured" in texts[name].lower()
        assert "None" not in texts[name].replace("None beyond", "").replace("None. Samples", "")
        assert "nan" not in texts[name].lower().split()
    assert "Privacy was not measured." in texts["README.md"]


def test_a_whole_card_shows_every_number_in_every_page(tmp_path: Path) -> None:
    texts = _write(tmp_path, WHOLE)
    assert json.loads(texts["card.json"])["not_measured"] == []
    for name in PAGES:
        for words in ("1 % (0 % to 2 %, 95 % interval; n = 100; exact)", "10 points below", "flagged: 2", "A. Person"):
            assert words in texts[name], (name, words)
        assert "Blind to blur." in texts[name]
        assert "0 to 4, 6" in texts[name]
        assert "autoencoder" in texts[name]
        assert "override" not in texts[name].lower()
    for name in ("datasheet.md", "card.html"):
        assert "frechet" in texts[name]
        assert "frechet of cats" not in texts[name]  # rows of single classes are in card.json
        assert "1.25" in texts[name]
        assert "accuracy" in texts[name]
        assert "folds" not in texts[name]
    for part in ("Motivation", "Composition", "Collection", "Preprocessing", "Uses", "Distribution", "Maintenance"):
        assert f"## {part}" in texts["datasheet.md"]


def test_an_override_is_told_in_every_page_and_nothing_is_promised(tmp_path: Path) -> None:
    facts = WHOLE | {"decision": "HELD", "override": {"reason": "We were in a hurry", "by": "J. Doe"}}
    texts = _write(tmp_path, facts)
    assert json.loads(texts["card.json"])["override"] == {"reason": "We were in a hurry", "by": "J. Doe"}
    for name in PAGES:
        assert "RELEASED BY OVERRIDE" in texts[name].upper()
        assert "We were in a hurry" in texts[name]
        assert "J. Doe" in texts[name]
        assert "none was taken of a patient" not in texts[name]


def test_words_of_others_stay_words(tmp_path: Path) -> None:
    title = "<script>alert(1)</script> | **bold** [link](javascript:x)\n# Heading"
    texts = _write(tmp_path, WHOLE | {"title": title})
    assert "<script" not in texts["card.html"]
    assert "&lt;script&gt;" in texts["card.html"]
    for name in ("README.md", "datasheet.md"):
        assert "<script" not in texts[name]
        assert "\n# Heading" not in texts[name]
        assert "**bold**" not in texts[name]
    assert escape_markdown("a|b_c") == "a\\|b\\_c"


def test_the_page_is_whole_closed_and_asks_for_nothing(tmp_path: Path) -> None:
    text = _write(tmp_path, WHOLE)["card.html"]
    assert text.lstrip().startswith("<!doctype html>")
    page = _Page(text)
    assert page.open == []
    names = {tag for tag, _ in page.tags}
    assert not names & {"script", "link", "img", "iframe"}
    assert "url(" not in text
    assert not any("href" in attributes or "src" in attributes for _, attributes in page.tags)
    assert ("html", {"lang": "en"}) in page.tags
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    assert all("scope" in attributes for tag, attributes in page.tags if tag == "th")
    assert sum(tag == "table" for tag, _ in page.tags) == sum(tag == "caption" for tag, _ in page.tags)
    identifiers = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(set(identifiers)) == len(identifiers)


def test_markdown_tables_have_equally_many_cells_in_each_row(tmp_path: Path) -> None:
    for text in (_write(tmp_path, WHOLE)[name] for name in ("README.md", "datasheet.md")):
        for block in re.findall(r"(?:^\|.*\n)+", text, re.M):
            cells = {len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}
            assert len(cells) == 1, block
            assert re.fullmatch(r"\|( --- \|)+", block.splitlines()[1])


def test_the_same_facts_make_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    assert _write(tmp_path / "a", WHOLE) == _write(tmp_path / "b", WHOLE)


def test_values_in_words() -> None:
    assert say(None) == say(float("nan")) == say("") == "not measured"
    assert say(True) == "yes"
    assert say(0.123456) == "0.1235"
    assert say(-0.5) == "−0.5"
    assert say(ESTIMATE) == "0.25 (no interval; n = 8; exact)"
    assert say([1, "two"]) == "1, two"
    assert say_share(SHARE) == "1 % (0 % to 2 %, 95 % interval; n = 100; exact)"
    assert say_share(None) == "not measured"
    assert say_seeds([[0, 16], [18, 18], 20]) == "0 to 16, 18, 20"
    assert say_seeds([]) == "unknown"
    assert say_seeds([[n, n] for n in range(0, 40, 2)]).endswith("22 and 8 more runs (all in labels.csv)")
    assert flatten({"a_b": {"c": 1}, "d": []}) == [("a b, c", "1"), ("d", "none")]
    assert columns_of([{"name": "x", "found": SHARE, "seconds": 3.0, "each": [1]}]) == ["name", "found"]
    assert columns_of([{"name": "x", "seconds": 3.0}]) == ["name", "seconds"]


def test_an_undefined_bound_is_not_called_zero() -> None:
    unknown = {"value": None, "low": None, "high": None, "n": 0, "method": "no power", "confidence": 0.95}
    assert say_share(unknown) == "not measured"


def test_a_card_without_its_decision_is_not_made() -> None:
    with pytest.raises(ValueError, match="decision"):
        build_card(facts={name: value for name, value in LEAST.items() if name != "decision"})
