"""Evidence sheets of an audit: a flagged sample beside the training image it seems to copy, and which regions say so.

Pearson's r of two images is a sum over pixels: r = Σ zₐ·z_b with z = (x − mean)/‖x − mean‖. Summed in tiles, it shows
where the match lies: the parts add up to r. Beside it, r of all the other pixels when a tile is left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from unalike import folders
from unalike.devices import pick_device
from unalike.engine import show_progress
from unalike.errors import FolderError, SettingsError
from unalike.explain.settings import ExplainSettings
from unalike.images.contact import draw_pairs
from unalike.records import FloatArray, IntArray, Pixels
from unalike.similarity.gallery import POSES

INDEX_SHEET = "index-internal.png"
REACH = 1 / 32  # shifts tried, as a share of the shorter side: what the audit's alignment looks at
CHANNELS_SHOWN = 4
INDEX_ENTRIES = 60
DOTS = 110
INK = "#1c2024"
Shift = tuple[int, int]


@dataclass(frozen=True)
class RegionMap:
    """Where the correlation of two images (C, H, W) comes from.

    ``regions`` (H, W) numbers the tiles; ``parts`` (R,) adds up to ``correlation``; ``without`` (R,) is the
    correlation of all other pixels, NaN where the rest of either image is constant. All NaN if an image is constant.
    """

    regions: IntArray
    parts: FloatArray
    without: FloatArray
    correlation: float


def cut_into_tiles(height: int, width: int, tile: int) -> IntArray:
    """Number the tiles (H, W) of ``tile`` pixels a side, row by row; the last ones may be smaller."""
    across = -(-width // tile)
    tiles: IntArray = ((np.arange(height) // tile)[:, None] * across + np.arange(width) // tile).astype(np.int64)
    return tiles


def map_regions(first: Pixels, second: Pixels, *, tile: int) -> RegionMap:
    """Divide Pearson's r of two images (C, H, W) among tiles of ``tile`` × ``tile`` pixels, all channels together."""
    regions = cut_into_tiles(first.shape[1], first.shape[2], tile)
    a, b = first.astype(np.float64), second.astype(np.float64)
    place = regions.ravel()

    def total(values: FloatArray) -> FloatArray:
        return np.bincount(place, weights=values.sum(axis=0).ravel()).astype(np.float64)

    n = np.bincount(place).astype(np.float64) * len(a)
    sums = np.stack([total(values) for values in (a, b, a * a, b * b, a * b)])
    whole = sums.sum(axis=1)
    correlation = float(_correlate(n.sum(), whole[:, None])[0])
    mean_a, mean_b = whole[0] / n.sum(), whole[1] / n.sum()
    spread = np.sqrt(((a - mean_a) ** 2).sum() * ((b - mean_b) ** 2).sum())
    with np.errstate(invalid="ignore", divide="ignore"):
        parts = total((a - mean_a) * (b - mean_b)) / (spread if correlation == correlation else np.nan)
    return RegionMap(regions, parts, _correlate(n.sum() - n, whole[:, None] - sums), correlation)


def _correlate(n: Any, sums: FloatArray) -> FloatArray:
    """Pearson's r from n and Σa, Σb, Σa², Σb², Σab (5, R); NaN if either image is constant."""
    a, b, aa, bb, ab = sums
    spread_a, spread_b = n * aa - a * a, n * bb - b * b
    product = np.maximum(spread_a, 0.0) * np.maximum(spread_b, 0.0)
    known = product > 0
    r: FloatArray = np.where(known, (n * ab - a * b) / np.sqrt(np.where(known, product, 1.0)), np.nan)
    return np.clip(r, -1.0, 1.0)


def lay_like_query(images: Pixels, pose: str) -> Pixels:
    """Images (…, H, W) matched by a query in ``pose``, turned to lie as the query does.

    Raises `FolderError` for a pose that this version does not know.
    """
    found = [each for each in POSES if each.name == pose]
    if not found:
        raise FolderError(f"the audit names a pose {pose!r} that is not known here. Run the audit again.")
    turned = np.flip(images, found[0].flip) if found[0].flip else images
    return np.ascontiguousarray(np.swapaxes(turned, -1, -2) if found[0].swap else turned)


def find_shift(first: Pixels, second: Pixels) -> Shift:
    """Pixels (down, across) by which ``second`` (C, H, W) is moved to correlate best with ``first``.

    Shifts of up to `REACH` of the shorter side, at least one pixel, each judged by the pixels that both then have; the
    smallest one wins a tie.
    """
    reach = max(1, round(REACH * min(first.shape[1:])))
    steps = sorted(range(-reach, reach + 1), key=abs)
    shifts = sorted(
        ((down, across) for down in steps for across in steps), key=lambda each: abs(each[0]) + abs(each[1])
    )
    values = [map_regions(*overlay(first, second, shift), tile=max(first.shape)).correlation for shift in shifts]
    return shifts[int(np.argmax(np.nan_to_num(values, nan=-2.0)))]


def overlay(first: Pixels, second: Pixels, shift: Shift) -> tuple[Pixels, Pixels]:
    """The parts of both images (C, h, w) that lie on each other when ``second`` is moved by ``shift``."""
    cuts = [
        (slice(max(step, 0), size + min(step, 0)), slice(max(-step, 0), size - max(step, 0)))
        for step, size in zip(shift, first.shape[1:], strict=True)
    ]
    (rows, other_rows), (columns, other_columns) = cuts
    return first[:, rows, columns], second[:, other_rows, other_columns]


@dataclass(frozen=True, eq=False)
class EvidencePair:
    """What an audit kept of one synthetic image and the training image that it would be a copy of.

    Pictures are (C, H, W) and, like ``before`` and ``after`` (its neighbours in the volume, or None), the training
    image is turned to lie as the synthetic one. ``similarity`` is the highest correlation with any training image, as
    it is; ``p_value`` and ``q_value`` are the audit's.
    """

    synthetic: Pixels
    train: Pixels
    before: Pixels | None
    after: Pixels | None
    query: int
    reference: int
    subject: str
    similarity: float
    p_value: float
    q_value: float
    flagged: bool
    measure: str
    pose: str


def draw_evidence(
    audit: Path,
    out: Path,
    *,
    settings: ExplainSettings | None = None,
    seed: int = 0,
    device: str = "auto",
) -> Path:
    """Draw an evidence sheet of each flagged sample in the folder ``audit``, or of the closest pairs if none is.

    Sheets are of the pairs whose pictures the audit kept (its setting ``pairs``). ``out`` holds ``figures/``:
    ``NNNN-internal.png``, a sheet each, and an index of all; everything here shows patients and is internal. The
    header's content has ``sheets`` (a list: numbers of the pair, shift, r as laid over, and ``regions``: tile, part of
    r and r without, the strongest first), ``flagged`` (by the audit, in all) and ``notes``. Nothing is random:
    ``seed`` is recorded only, and all work is done by the processor.

    Raises `FolderError` if the audit is missing, unfinished or damaged.
    """
    settings = settings or ExplainSettings()
    settings.check()
    if seed < 0:
        raise SettingsError(f"--seed {seed}: give a whole number from 0 on.")
    pick_device(device)  # an unknown name is an error everywhere
    header = folders.read_header(audit, kind="audit")
    pairs, compared = read_pairs(audit)
    flagged = [pair for pair in pairs if pair.flagged]
    chosen = (flagged or pairs)[: settings.sheets or None]
    names = tuple(header.content["channels"]["all"])
    with folders.new_folder(out, kind="explain", settings=asdict(settings)):
        room = out / folders.FIGURES
        room.mkdir()
        sheets = []
        with show_progress("Drawing evidence", total=len(chosen), unit="sheets") as progress:
            for number, pair in enumerate(chosen):
                sheets.append(_draw_sheet(pair, names, compared, settings.tile, room / f"{number:04d}-internal.png"))
                progress.advance()
        if chosen:
            draw_pairs(
                [(f"{number:04d}  r {sheet['r']:.3f}  p {pair.p_value:.2g}", pair.synthetic, pair.train)
                 for number, (pair, sheet) in enumerate(zip(chosen, sheets, strict=True))][:INDEX_ENTRIES],
                channels=names,
            ).save(room / INDEX_SHEET)  # fmt: skip
        content = {
            "internal": True,
            "audit": header.content["name"],
            "flagged": header.content["flagged"],
            "sheets": sheets,
            "notes": _note(int(header.content["flagged"]), len(flagged), len(chosen)),
        }
        inputs = {"audit": folders.digest_of(audit, kind="audit")}
        folders.finish_folder(out, kind="explain", settings=asdict(settings), seed=seed, inputs=inputs, content=content)
    return out


def _note(flagged: int, kept: int, drawn: int) -> list[str]:
    if not flagged:
        return [f"The audit flagged no image: these are its {drawn} closest pairs, which are not evidence of copying."]
    if drawn < flagged:
        return [f"{drawn} of {flagged} flagged images are shown (the audit kept pictures of {kept}; see its --pairs)."]
    return []


def read_pairs(audit: Path) -> tuple[list[EvidencePair], list[int]]:
    """Pairs that a finished audit kept, in its order, and the indices of the channels that it compared.

    Raises `FolderError` if a file is missing, changed since the audit, or damaged.
    """
    content = folders.read_header(audit, kind="audit").content
    for name in (folders.EVIDENCE, folders.QUERIES):
        path = audit / name
        if not path.is_file():
            raise FolderError(f"{path} is missing. Run the audit again.")
        if folders.digest_file(path) != content.get("tables", {}).get(name, ""):
            raise FolderError(f"{path} was changed since the audit. Run the audit again.")
    try:
        compared = [content["channels"]["all"].index(name) for name in content["channels"]["compared"]]
        rows = {row["query"]: row for row in pq.read_table(audit / folders.QUERIES).to_pylist()}
        with np.load(audit / folders.EVIDENCE, allow_pickle=False) as arrays:
            stored = {name: arrays[name] for name in arrays.files}
        return [_pair_of(stored, place, rows) for place in range(len(stored["similarity"]))], compared
    except (LookupError, ValueError, TypeError, BadZipFile, pa.ArrowException) as error:
        raise FolderError(f"{audit / folders.EVIDENCE} is damaged ({error}). Run the audit again.") from error


def _pair_of(stored: Mapping[str, Any], place: int, rows: Mapping[int, Mapping[str, Any]]) -> EvidencePair:
    row = rows[int(stored["synthetic_index"][place])]
    synthetic, train = stored["synthetic"][place], stored["train"][place]
    # An equal image needs no turning, whatever the measure found in a symmetric picture.
    pose = POSES[0].name if np.array_equal(synthetic, train) else str(row.get("pose") or POSES[0].name)
    before, after = (
        lay_like_query(picture, pose) if valid else None
        for picture, valid in zip(stored["neighbours"][place], stored["neighbour_valid"][place], strict=True)
    )
    return EvidencePair(
        synthetic=synthetic,
        train=lay_like_query(train, pose),
        before=before,
        after=after,
        query=int(stored["synthetic_index"][place]),
        reference=int(stored["train_index"][place]),
        subject=str(stored["train_subject"][place]),
        similarity=float(stored["similarity"][place]),
        p_value=_number(stored["p_value"][place]),
        q_value=_number(row.get("q_value")),
        flagged=bool(stored["flagged"][place]),
        measure=str(row.get("measure") or ""),
        pose=pose,
    )


def _number(value: Any) -> float:
    return float("nan") if value is None else float(value)


def _draw_sheet(
    pair: EvidencePair, names: tuple[str, ...], compared: list[int], tile: int, path: Path
) -> dict[str, Any]:
    """Draw one sheet and give its numbers."""
    shift = find_shift(pair.synthetic[compared], pair.train[compared])
    synthetic, train = overlay(pair.synthetic[compared], pair.train[compared], shift)
    found = map_regions(synthetic, train, tile=tile)
    shown = compared[:CHANNELS_SHOWN]
    figure = Figure(figsize=(10.5, 2.15 * (len(shown) + 1) + 0.2), layout="constrained")
    grid = figure.subplots(len(shown) + 1, 5, squeeze=False)
    for axes, channel, one, other in zip(grid, shown, synthetic, train, strict=False):
        _draw_channel(axes, names[channel], pair.synthetic[channel], pair.train[channel], one, other)
    last = grid[-1]
    first = shown[0]
    for axes, title, picture in ((last[0], "slice before", pair.before), (last[1], "slice after", pair.after)):
        _show_grey(axes, title, None if picture is None else picture[first])
    reach = float(np.nanmax(np.abs(found.parts), initial=1e-12))
    _show_map(figure, last[2], f"part of r (sums to {found.correlation:.3f})", found.parts[found.regions], reach)
    # As a change, so that both maps read alike: amber regions carry the match, blue ones speak against it.
    loss = found.correlation - found.without
    reach = float(np.nanmax(np.abs(loss), initial=1e-12))
    _show_map(figure, last[3], "r lost without the tile", loss[found.regions], reach)
    numbers = _describe(pair, shift, found, path.name)
    _write_text(last[4], numbers)
    figure.savefig(path, format="png", dpi=DOTS, metadata={"Software": None})
    return numbers


def _describe(pair: EvidencePair, shift: Shift, found: RegionMap, name: str) -> dict[str, Any]:
    order = np.argsort(-np.nan_to_num(found.parts, nan=-2.0), kind="stable")[:10]
    tops = [np.argwhere(found.regions == place)[0].tolist() for place in order]
    return {
        "file": name,
        "query": pair.query,
        "reference": pair.reference,
        "subject": pair.subject,
        "flagged": pair.flagged,
        "similarity": pair.similarity,
        "p_value": pair.p_value,
        "q_value": pair.q_value,
        "measure": pair.measure,
        "pose": pair.pose,
        "shift": list(shift),
        "r": found.correlation,
        "least_without": float(np.nanmin(found.without)) if np.isfinite(found.without).any() else float("nan"),
        "half_of_r_in_tiles": _count_half(found),
        "tiles": len(found.parts),
        "regions": [
            {"top": top, "left": left, "part": float(found.parts[place]), "without": float(found.without[place])}
            for place, (top, left) in zip(order.tolist(), tops, strict=True)
        ],
    }


def _count_half(found: RegionMap) -> int:
    """The fewest tiles whose parts reach half of r: a match of one region has few, of whole images many."""
    if not found.correlation > 0:
        return 0
    return int(np.searchsorted(np.cumsum(np.sort(found.parts)[::-1]), found.correlation / 2)) + 1


def _draw_channel(
    axes: Sequence[Axes], name: str, whole: Pixels, whole_train: Pixels, synthetic: Pixels, train: Pixels
) -> None:
    """One channel: both whole images, and what lies on each other as overlay, difference and scatter."""
    high = float(max(1, whole.max(), whole_train.max()))
    _show_grey(axes[0], f"synthetic, {name}", whole, high)
    _show_grey(axes[1], "training image", whole_train, high)
    one, other = synthetic / high, train / high
    _undress(axes[2], "overlay: red synthetic, cyan training")
    axes[2].imshow(np.stack([one, other, other], axis=-1), interpolation="nearest")
    _undress(axes[3], "difference, ±25 %")
    axes[3].imshow(one - other, cmap="PuOr_r", vmin=-0.25, vmax=0.25, interpolation="nearest")
    counts, _, _ = np.histogram2d(one.ravel(), other.ravel(), bins=48, range=((0, 1), (0, 1)))
    _undress(axes[4], "pixels: training across, synthetic up")
    axes[4].imshow(np.log1p(counts), cmap="Blues", origin="lower", extent=(0, 1, 0, 1), interpolation="nearest")
    axes[4].plot((0, 1), (0, 1), color=INK, linewidth=0.6)


def _undress(axes: Axes, title: str) -> None:
    axes.set_title(title, fontsize=7.5, color=INK, parse_math=False)
    axes.set_xticks([])
    axes.set_yticks([])


def _show_grey(axes: Axes, title: str, picture: Pixels | None, high: float | None = None) -> None:
    _undress(axes, title if picture is not None else f"{title}: none")
    if picture is None:
        axes.axis("off")
    else:
        axes.imshow(picture, cmap="gray", vmin=0, vmax=high or float(max(1, picture.max())), interpolation="nearest")


def _show_map(figure: Figure, axes: Axes, title: str, values: FloatArray, reach: float) -> None:
    _undress(axes, title)
    drawn = axes.imshow(values, cmap="PuOr_r", vmin=-reach, vmax=reach, interpolation="nearest")
    bar = figure.colorbar(drawn, ax=axes, fraction=0.05, pad=0.02)
    bar.ax.tick_params(labelsize=6)


def _write_text(axes: Axes, numbers: Mapping[str, Any]) -> None:
    down, across = numbers["shift"]
    lines = [
        f"synthetic image {numbers['query']}: {'FLAGGED' if numbers['flagged'] else 'not flagged'}",
        f"p {numbers['p_value']:.3g}, q {numbers['q_value']:.3g}",
        f"measure that spoke: {numbers['measure'] or 'none'}",
        f"training image {numbers['reference']}",
        f"of {numbers['subject']}",
        f"pose: {numbers['pose']}",
        f"moved {down} down, {across} across",
        f"r as laid over: {numbers['r']:.4f}",
        f"highest r, nothing turned: {numbers['similarity']:.4f}",
        f"half of r in {numbers['half_of_r_in_tiles']} of {numbers['tiles']} tiles",
    ]
    axes.axis("off")
    axes.text(0, 1, "\n".join(lines), va="top", fontsize=7.5, color=INK, parse_math=False, transform=axes.transAxes)
