"""What goes with the images: a card for machines (JSON), and for people a page, a README and a datasheet.

The datasheet asks the questions of Gebru et al. 2021 ("Datasheets for datasets") and answers them from what was
measured; what is not known is said to be so. No card names a patient, a path, or a digest of what stayed in the house.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from unalike import folders
from unalike.records import as_json

CARD, README, DATASHEET, PAGE = "card.json", "README.md", "datasheet.md", "card.html"
KIND, SCHEMA = "synthetic images", 1
UNKNOWN, UNMEASURED = "unknown", "not measured"
REQUIRED = ("title", "made_by", "created", "decision", "images", "formats")
INTENDED_USE = (
    "Developing and testing software, teaching, and research on methods, where likeness to real images is enough.",
    "Training together with real images, where the gain is measured on real images of other patients.",
)
NOT_FOR = (
    "Diagnosis, treatment, or any decision about a person.",
    "Conclusions about how often a finding occurs: the generator may draw it more or less often than patients have it.",
    "Attempts to find out who was among the training patients.",
)
LIMITS = (
    "Privacy was measured as likeness to the training images, for the kinds of copy that are listed with the power. "
    "A copy that was changed in another way may not have been noticed.",
    "The bound is a statement about the set as a whole, at its stated confidence; it certifies no single image.",
    "This is not anonymity in the sense of a law. Whether the images may be passed on is for a person to decide.",
    "Classes and rare findings may be missing, and what was filtered out takes some variety with it.",
    "An image can look right and be wrong in anatomy; nobody has checked each of them.",
    "A mask was drawn with its image; nobody has corrected it.",
)
CHECKS = (
    "sha256sum -c checksums.sha256 checks that no file was changed (on macOS: shasum -a 256 -c).",
    "unalike verify FOLDER also checks that nothing was added, that all formats show the same pixels, and computes the "
    "Fréchet distance of card.json anew from the images.",
    "Neither says who made the bundle: compare the SHA-256 of checksums.sha256 with the one its maker tells you.",
)
_PARTS = {
    "generator": "how the generator was made",
    "training": "how many patients' images it was trained on",
    "privacy": "privacy",
    "fidelity": "fidelity",
    "utility": "utility",
    "recompute": "what a recipient can recompute",
}


def build_card(*, facts: Mapping[str, Any]) -> dict[str, Any]:
    """The whole card, as JSON can hold it, from what is known.

    ``facts`` must have `REQUIRED`; ``images`` is {count, channels, height, width, dtype, labels}. Optional: override
    (None or {reason, by}), generator, training, privacy, fidelity, utility, recompute, signatures, intended_use,
    not_for, limits, licence, contact, checks. Lists of words that are missing or empty get what this module says; what
    was not measured is named under ``not_measured``.

    Raises `ValueError` if a required fact is missing.
    """
    missing = [name for name in REQUIRED if name not in facts]
    if missing:
        raise ValueError(f"the card lacks {', '.join(missing)}")
    card: dict[str, Any] = {"kind": KIND, "schema": SCHEMA, **as_json(facts)}
    card["override"] = card.get("override")
    words = {"intended_use": INTENDED_USE, "not_for": NOT_FOR, "limits": LIMITS, "checks": CHECKS}
    card |= {name: list(card.get(name) or default) for name, default in words.items()}
    card |= {name: card.get(name) or "not stated" for name in ("licence", "contact")}
    card["signatures"] = card.get("signatures") or {}
    for name in ("generator", "training", "privacy"):
        card[name] = card.get(name) or {}
    for name in ("fidelity", "utility"):
        card[name] = card.get(name) or []
    card["recompute"] = card.get("recompute") or {"descriptors": None, "frechet": None}
    absent = [name for name in _PARTS if name != "recompute" and not card[name]]
    absent += ["recompute"] if card["recompute"].get("descriptors") is None else []
    card["not_measured"] = absent
    return card


def write_cards(card: Mapping[str, Any], out: Path) -> None:
    """Write card.json, README.md, datasheet.md and card.html of a card of `build_card` into the folder ``out``."""
    folders.write_json(out / CARD, card)
    view = {"card": card, "parts": _PARTS}
    for name in (README, DATASHEET, PAGE):
        text = _environment(html=name == PAGE).get_template(f"{name}.j2").render(view)
        (out / name).write_text(text, encoding="utf-8", newline="\n")


@functools.cache
def _environment(*, html: bool) -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("unalike.release"),
        autoescape=html,  # noqa: S701  Markdown is escaped by `md`, expression by expression
        undefined=jinja2.Undefined,  # falsy: a part that was not measured is said to be so
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "md": escape_markdown,
        "say": say,
        "share": say_share,
        "seeds": say_seeds,
        "flat": flatten,
        "columns": columns_of,
        "cell": say_cell,
        "whole": take_whole,
    }
    return environment


def escape_markdown(value: object) -> str:
    """Text as one line of Markdown that shows just that text, in a table, too."""
    text = " ".join(str(value).split())
    for mark in "\\`*_[]|#":
        text = text.replace(mark, f"\\{mark}")
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def say(value: Any) -> str:
    """A value of the card in words: numbers to four digits, an estimate with its interval, never "None" or "nan"."""
    if (
        value is None
        or isinstance(value, jinja2.Undefined)
        or value == ""
        or (isinstance(value, float) and not math.isfinite(value))
    ):
        return UNMEASURED
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}".replace("-", "−")
    if _is_estimate(value):
        return _say_estimate(value, say)
    if isinstance(value, Mapping):
        return "; ".join(f"{name}: {text}" for name, text in flatten(value)) or "none"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(say(each) for each in value) or "none"
    return str(value)


def say_share(value: Any) -> str:
    """A share, or an estimate of one, in per cent."""
    if _is_estimate(value):
        return _say_estimate(value, say_share)
    if not isinstance(value, int | float) or not math.isfinite(value):
        return UNMEASURED
    return f"{100 * value:.3g} %"


def _is_estimate(value: Any) -> bool:
    return isinstance(value, Mapping) and {"value", "low", "high", "n", "method"} <= set(value)


def _say_estimate(entry: Mapping[str, Any], number: Any) -> str:
    if entry["value"] is None and entry["high"] is None:
        return UNMEASURED
    value = number(entry["value"]) if entry["value"] is not None else "undefined"
    if entry["low"] is None or entry["high"] is None:
        return f"{value} (no interval; n = {entry['n']}; {entry['method']})"
    bounds = f"{number(entry['low'])} to {number(entry['high'])}"
    return (
        f"{value} ({bounds}, {100 * entry.get('confidence', 0.95):.3g} % interval; n = {entry['n']}; {entry['method']})"
    )


def say_seeds(runs: Any, most: int = 12) -> str:
    """Seeds, given as a list of [first, last] or of numbers: "0 to 16, 18"."""
    if not runs:
        return UNKNOWN
    pairs = [(each, each) if isinstance(each, int) else (each[0], each[-1]) for each in runs]
    words = [str(first) if first == last else f"{first} to {last}" for first, last in pairs[:most]]
    rest = len(pairs) - most
    return ", ".join(words) + (f" and {rest} more runs (all in labels.csv)" if rest > 0 else "")


def flatten(entry: Mapping[str, Any], before: str = "") -> list[tuple[str, str]]:
    """(name, words) of everything in nested mappings; inner names follow the outer's: "labels, glioma, after"."""
    found: list[tuple[str, str]] = []
    for name, value in entry.items():
        label = f"{before}, {_spaced(name)}" if before else _spaced(name)
        if isinstance(value, Mapping) and value and not _is_estimate(value):
            found += flatten(value, label)
        else:
            found.append((label, say(value)))
    return found


def columns_of(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Columns of a table of mappings that a page shows: words, and numbers that carry their interval.

    Where none carries one, single numbers too. Everything else is in card.json.
    """
    names = list(dict.fromkeys(name for row in rows for name in row))
    estimates = [name for name in names if any(_is_estimate(row.get(name)) for row in rows)]
    shown = (str, *((int, float) if not estimates else ()))
    words = [name for name in names if all(isinstance(row.get(name), shown) for row in rows)]
    chosen = [name for name in names if name in {*estimates, *words}]
    return [name for name in chosen if any(_filled(row.get(name)) for row in rows)]


def say_cell(row: Mapping[str, Any], name: str) -> str:
    """A cell of a table: an empty label speaks of all classes together."""
    if row.get(name) == "":
        return "all" if name == "label" else "none"
    return say(row.get(name))


def take_whole(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Rows that speak of all classes together, where there are such; those of single classes are in card.json."""
    return [row for row in rows if not row.get("label")] or list(rows)


def _filled(value: Any) -> bool:
    return value is not None and value != ""


def _spaced(name: object) -> str:
    return str(name).replace("_", " ")
