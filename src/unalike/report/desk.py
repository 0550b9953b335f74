"""The evidence desk: pairs of one audit as data in an internal page, for a steward who decides on each of them.

Pictures are packed into the page as losslessly as its size allows; the script beside them (``templates/desk.js``) works
on these data alone and asks nothing of any network. What an audit's pairs are, and their order, is `read.Pairs`.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

import numpy as np
from markupsafe import Markup
from scipy import fft

from unalike import folders
from unalike.records import FloatArray
from unalike.report import figures, pictures
from unalike.report.poses import AS_IT_IS
from unalike.report.read import Audit, Pairs, Pixels

# How far a training image is moved to lie on the synthetic one: this share of the shorter side.
REACH = 1 / 32
# Pairs from which the size of all is estimated: only one packing is made of all pairs, or where that is close, two.
SAMPLED = 24

Shift = tuple[int, int]


@dataclass(frozen=True)
class Packing:
    """How pictures are stored: at most so many pixels a side, as WebP of a quality (0: PNG, nothing is lost)."""

    side: int
    quality: int
    neighbours: bool = True


# The best first; pictures are never enlarged.
PACKINGS = (
    Packing(pictures.LARGEST_SIDE, 0),
    Packing(pictures.LARGEST_SIDE, 80),
    Packing(pictures.LARGEST_SIDE, 60),
    Packing(128, 75),
    Packing(128, 50),
    Packing(128, 50, neighbours=False),
)


@dataclass(frozen=True)
class Desk:
    """The desk as the template shows it.

    ``script`` and the two blocks of data are safe inside ``<script>``; ``policy`` allows that one script by its
    digest. ``channels`` are their names, ``subjects`` the pseudonyms that have a pair, ``classes`` those of the
    training images ("" last if some have none; empty if all have none), and ``notes`` what the page must say about its
    pictures.
    """

    script: Markup
    policy: str
    facts: Markup
    pictures: Markup
    channels: tuple[str, ...]
    subjects: frozenset[str]
    classes: tuple[str, ...]
    notes: tuple[str, ...]


@dataclass
class _Store:
    """Pictures in base64, each packed once: many synthetic images may be copies of the same training image."""

    packing: Packing
    budget: int
    data: list[str] = field(default_factory=list)
    places: dict[tuple[bytes, pictures.Window], int] = field(default_factory=dict)

    def add(self, pixels: Pixels, window: pictures.Window) -> int:
        key = _key(pixels, window)
        if key not in self.places:
            packed = pictures.pack_picture(
                pixels, window=window, largest=self.packing.side, quality=self.packing.quality
            )
            self.places[key] = len(self.data)
            self.data.append(packed)
            self.budget -= len(packed) + 3  # quotation marks and a comma
        return self.places[key]


def make_desk(audit: Audit, *, budget: int) -> Desk | None:
    """Put an audit's pairs on a desk; None if it kept none.

    ``budget`` bounds the characters of picture data. Each training image lies as the synthetic one does and is moved by
    `find_shift` of the compared channels.
    """
    pairs = audit.pairs
    if not pairs:
        return None
    compared = [audit.channels.index(name) for name in audit.compared]
    found = [
        find_shift(one[compared], other[compared]) for one, other in zip(pairs.synthetic, pairs.train, strict=True)
    ]
    windows = [
        pictures.show_window(pairs.synthetic[:, place], pairs.train[:, place], compared=name in audit.compared)
        for place, name in enumerate(audit.channels)
    ]
    store, packed = _pack(pairs, [shift for shift, _ in found], windows, budget=budget)
    rows = [
        _tell(pairs, row, shift=shift, laid=laid, packed=packed[row] if row < len(packed) else None)
        for row, (shift, laid) in enumerate(found)
    ]
    classes = _classes(pairs)
    facts = {
        "audit": folders.digest_of(audit.folder, kind="audit"),
        "name": audit.name,
        "canFlag": audit.can_flag,
        "channels": list(audit.channels),
        "size": list(audit.size),
        "type": "image/webp" if store.packing.quality else "image/png",
        "full": figures.DIFFERENCE_FULL,
        "palette": pictures.difference_palette().tolist(),
        "classes": list(classes),
        "pairs": rows,
    }
    script = read_script()
    return Desk(
        script=Markup(script),  # noqa: S704 - our own file
        policy=f"script-src '{digest_script(script)}'; ",
        facts=_embed(facts),
        pictures=_embed(store.data),
        channels=audit.channels,
        subjects=frozenset(pairs.train_subject.tolist()),
        classes=classes,
        notes=_note(audit, store.packing, left_out=len(pairs) - len(packed)),
    )


def read_script() -> str:
    """The one script that a page may run."""
    return resources.files("unalike.report").joinpath("templates/desk.js").read_text(encoding="utf-8")


def digest_script(script: str) -> str:
    """Name a script as a Content-Security-Policy does: its SHA-256 in base64."""
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")


def find_shift(first: Pixels, second: Pixels) -> tuple[Shift, float]:
    """Pixels (down, across) by which ``second`` (C, H, W) is moved to correlate best with ``first``, and its r.

    Shifts of up to `REACH` of the shorter side, at least one pixel, each judged by Pearson's r of the pixels that both
    images then have; the smallest wins a tie. r is NaN (and the shift nought) where no shift has one. Sums
    of products come from one convolution, other sums from integral images: exact up to rounding, far below what is
    shown.
    """
    height, width = first.shape[1:]
    reach = max(1, round(REACH * min(height, width)))
    steps = sorted(range(-reach, reach + 1), key=abs)
    shifts = sorted(((down, across) for down in steps for across in steps), key=lambda each: sum(map(abs, each)))
    down, across = np.asarray(shifts).T
    # Means are taken off first: r does not change, and large numbers do not swallow small ones.
    a, b = (image.astype(np.float64) - image.mean() for image in (first, second))
    shape = (fft.next_fast_len(height + reach, real=True), fft.next_fast_len(width + reach, real=True))
    spectrum = (fft.rfft2(a, s=shape) * np.conj(fft.rfft2(b, s=shape))).sum(axis=0)
    products = fft.irfft2(spectrum, s=shape)[down, across]
    n = len(first) * (height - abs(down)) * (width - abs(across))
    sum_a, squares_a = (_sum_overlap(values, down, across) for values in (a.sum(axis=0), (a * a).sum(axis=0)))
    sum_b, squares_b = (_sum_overlap(values, -down, -across) for values in (b.sum(axis=0), (b * b).sum(axis=0)))
    spread_a, spread_b = squares_a - sum_a**2 / n, squares_b - sum_b**2 / n
    known = (spread_a > 1e-9 * (1 + squares_a)) & (spread_b > 1e-9 * (1 + squares_b))
    if not known.any():
        return (0, 0), math.nan
    product = np.where(known, spread_a * spread_b, 1.0)
    r = np.clip(np.where(known, (products - sum_a * sum_b / n) / np.sqrt(product), -2.0), -2.0, 1.0)
    best = int(np.argmax(np.round(r, 9)))  # rounding errors do not break ties
    return shifts[best], float(r[best])


def _sum_overlap(values: FloatArray, down: FloatArray, across: FloatArray) -> FloatArray:
    """Sums of (H, W) over the part that lies on another image which is moved (down, across), for each shift (n,)."""
    height, width = values.shape
    integral = np.zeros((height + 1, width + 1))
    integral[1:, 1:] = values.cumsum(axis=0).cumsum(axis=1)
    top, bottom = np.maximum(down, 0), height + np.minimum(down, 0)
    left, right = np.maximum(across, 0), width + np.minimum(across, 0)
    found: FloatArray = integral[bottom, right] - integral[top, right] - integral[bottom, left] + integral[top, left]
    return found


def move(image: Pixels, shift: Shift) -> Pixels:
    """Move an image (…, H, W) by pixels (down, across); what comes in from outside is 0."""
    moved = np.zeros_like(image)
    (into, out_of), (into_columns, out_of_columns) = (
        (slice(max(step, 0), size + min(step, 0)), slice(max(-step, 0), size - max(step, 0)))
        for step, size in zip(shift, image.shape[-2:], strict=True)
    )
    moved[..., into, into_columns] = image[..., out_of, out_of_columns]
    return moved


def _pack(
    pairs: Pairs, shifts: list[Shift], windows: list[pictures.Window], *, budget: int
) -> tuple[_Store, list[list[list[int]]]]:
    """Pack pictures as well as the budget allows. If nothing fits, the last pairs go without.

    Which packing fits is estimated from some pairs: their characters a picture times the different pictures of all.
    """
    sampled = sorted(set(np.linspace(0, len(pairs) - 1, SAMPLED).round().astype(int).tolist()))
    different = _count(pairs, shifts, windows)
    for packing in PACKINGS:
        last = packing is PACKINGS[-1]
        trial = _Store(packing, budget)
        for row in sampled:
            _pack_pair(pairs, row, shifts[row], windows, trial)
        if not last and (budget - trial.budget) * different > 1.02 * budget * len(trial.data):
            continue
        store, packed = _Store(packing, budget), list[list[list[int]]]()
        for row, shift in enumerate(shifts):
            before = len(store.data)
            packed.append(_pack_pair(pairs, row, shift, windows, store))
            if store.budget < 0:
                break
        if store.budget >= 0:
            return store, packed
    del store.data[before:], packed[-1]
    return store, packed


def _pack_pair(pairs: Pairs, row: int, shift: Shift, windows: list[pictures.Window], store: _Store) -> list[list[int]]:
    """Store one pair's pictures. For each channel: where synthetic, train, before and after lie; −1 is none."""
    return [
        [
            -1 if each is None else store.add(each, window)
            for each in _shown(pairs, row, channel, shift, neighbours=store.packing.neighbours)
        ]
        for channel, window in enumerate(windows)
    ]


def _shown(pairs: Pairs, row: int, channel: int, shift: Shift, *, neighbours: bool) -> list[Pixels | None]:
    """One channel of a pair: synthetic, train, before and after as they lie."""
    beside = [
        move(pairs.neighbours[row, side, channel], shift) if neighbours and pairs.neighbour_valid[row, side] else None
        for side in (0, 1)
    ]
    return [pairs.synthetic[row, channel], move(pairs.train[row, channel], shift), *beside]


def _key(pixels: Pixels, window: pictures.Window) -> tuple[bytes, pictures.Window]:
    return hashlib.sha256(pixels.tobytes()).digest(), window


def _count(pairs: Pairs, shifts: list[Shift], windows: list[pictures.Window]) -> int:
    """Count the different pictures of all pairs."""
    found = {
        _key(each, window)
        for row, shift in enumerate(shifts)
        for channel, window in enumerate(windows)
        for each in _shown(pairs, row, channel, shift, neighbours=True)
        if each is not None
    }
    return len(found)


def _classes(pairs: Pairs) -> tuple[str, ...]:
    """Classes of the training images by name, "" last; none where no pair has one."""
    found = set(pairs.train_label.tolist())
    return tuple(sorted(found, key=lambda name: (not name, name))) if found - {""} else ()


def _tell(pairs: Pairs, row: int, *, shift: Shift, laid: float, packed: list[list[int]] | None) -> dict[str, Any]:
    """What the page knows of one pair; numbers that are undefined are left out."""
    numbers = {
        "similarity": float(pairs.similarity[row]),
        "correlation": float(pairs.correlation[row]),
        "laid": laid,
        "p": float(pairs.p_value[row]),
        "q": float(pairs.q_value[row]),
    }
    told: dict[str, Any] = {name: round(value, 8) for name, value in numbers.items() if math.isfinite(value)}
    told |= {
        "query": int(pairs.synthetic_index[row]),
        "reference": int(pairs.train_index[row]),
        "subject": str(pairs.train_subject[row]),
        "flagged": bool(pairs.flagged[row]),
        "measure": str(pairs.measure[row]),
        "pose": str(pairs.pose[row]),
        "turned": str(pairs.pose[row]) != AS_IT_IS,
        "shift": list(shift),
    }
    classes = {"syntheticClass": str(pairs.synthetic_label[row]), "trainClass": str(pairs.train_label[row])}
    told |= {name: label for name, label in classes.items() if label}
    if pairs.seed[row] >= 0:
        told["seed"] = int(pairs.seed[row])
    if packed is not None:
        told["pictures"] = packed
    return told


def _note(audit: Audit, packing: Packing, *, left_out: int) -> tuple[str, ...]:
    """What the page must say about its pictures."""
    notes = []
    height, width = audit.size
    factor = pictures.reduction((height, width), packing.side)
    if factor > 1:
        notes.append(
            f"Pictures are reduced to a {_ordinal(factor)} of their {height} × {width} pixels a side; "
            "all numbers come from the full ones."
        )
    if packing.quality:
        notes.append(
            f"Pictures are compressed with loss (WebP, quality {packing.quality}) to keep the page small: faint "
            "differences may be the compression's. Numbers come from the images themselves; their exact pixels are "
            "in evidence.npz."
        )
    if not packing.neighbours and bool(audit.pairs and audit.pairs.neighbour_valid.any()):
        notes.append("Slices before and after the training images are left out, to keep the page small.")
    if left_out:
        notes.append(f"The last {left_out} pairs have no pictures here, to keep the page small.")
    return tuple(notes)


def _ordinal(factor: int) -> str:
    return {2: "half", 3: "third", 4: "quarter"}.get(factor, f"{factor}th")


def _embed(value: Mapping[str, Any] | list[str]) -> Markup:
    """JSON that no text in it can end early: what could close a script or open a comment is written as escapes."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    for letter in "<>&":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return Markup(text)  # noqa: S704 - escaped just above
