"""Numbers as text. What is undefined is called so, and never shown as "nan"."""

from __future__ import annotations

import math
from typing import Any, Literal

from markupsafe import Markup, escape

from unalike.records import Estimate

UNDEFINED = "undefined"
DIVERSITY_VERDICTS = ("alike", "varied", "cannot tell")
Kind = Literal["correlation", "share", "bound", "count"]


def _defined(value: Any) -> bool:
    return value is not None and math.isfinite(value)


def format_number(value: float | None, digits: int = 3) -> str:
    """Write a number with a true minus sign, or say that it is undefined."""
    if value is None or not math.isfinite(value):
        return UNDEFINED
    text = f"{value:.{digits}f}"
    return text.replace("-", "−") if text.strip("-0.") else text.removeprefix("-")


def format_percent(value: float | None, digits: int = 1) -> str:
    """Write a share in percent. Only nothing is 0%, and only all is 100%."""
    if value is None or not math.isfinite(value):
        return UNDEFINED
    if value in (0.0, 1.0):
        return f"{100 * value:.0f}%"
    least = 10.0**-digits
    if 0.0 < value < least / 200:
        return f"< {least:.{digits}f}%"
    if 1.0 > value > 1.0 - least / 200:
        return f"> {100 - least:.{digits}f}%"
    return f"{format_number(100 * value, digits)}%"


def format_count(value: int | None) -> str:
    """Write a whole number with separators."""
    return f"{int(value or 0):,}" if _defined(value) else UNDEFINED


def format_expected(value: float | None) -> str:
    """Write an expected count: with one decimal, unless it is whole."""
    if value is None or not math.isfinite(value):
        return UNDEFINED
    return f"{value:,.0f}" if round(value, 1) == round(value) else f"{value:,.1f}"


def format_probability(value: float | None) -> Markup:
    """Write a p-value to two significant digits, without powers of ten down to a millionth."""
    if value is None or not math.isfinite(value):
        return escape(UNDEFINED)
    if 0.0 < value < 1e-6:
        return Markup("&lt;&nbsp;0.000001")
    digits = 1 if value <= 0.0 else 1 - math.floor(math.log10(value))
    return escape(f"{value:.{digits}f}")


def format_value(value: float, kind: Kind) -> str:
    """Write one end or the middle of an estimate of this kind."""
    if kind == "correlation":
        return format_number(value)
    return format_expected(value) if kind == "count" else format_percent(value)


def format_estimate(estimate: Estimate, kind: Kind) -> str:
    """Write an estimate with its interval in one line of plain text; of a bound, what it excludes."""
    if kind == "bound":
        return f"at most {format_percent(estimate.high)}" if _defined(estimate.high) else UNDEFINED
    value = format_value(estimate.value, kind)
    if not _defined(estimate.value) or not _defined(estimate.low):
        return value
    return f"{value} ({format_value(estimate.low, kind)} to {format_value(estimate.high, kind)})"


def describe_diversity(verdict: str, *, m: int, alike: Estimate, spread: Estimate) -> str:
    """Say how varied ``m`` samples are: what an audit found (one of `DIVERSITY_VERDICTS`), and its numbers."""
    share = f"{format_estimate(alike, 'share')} of {format_count(m)} samples"
    than = "come closer to another sample than 95% of training patients come to another patient (about 5% is expected)"
    varied = f"The samples vary {format_number(spread.value, 2)} times as much as training images."
    if verdict == "alike":
        return (
            f"The samples are alike: {share} {than}: mode collapse, blur, or a few training images drawn again and "
            f"again. A copy rate of 0 says little about a generator that draws one picture. {varied}"
        )
    if verdict == "varied":
        return f"No sign that the samples are alike: {share} {than}. {varied}"
    return (
        f"Whether the samples are alike cannot be told from {format_count(m)} of them: at least 20 samples and 20 "
        "training subjects are needed."
    )
