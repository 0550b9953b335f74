"""A procedural cohort: brain MRI of people who never lived, as NIfTI files in the layout of BraTS.

For demonstrations and tests without patient data. A subject is a set of smooth functions of a place in
millimetres, so the same person is drawn at any matrix size, and neighbouring slices belong together:

    pose and deformation → hull of the brain → scalp, bone, fluid around it
                                             → sulci → grey ribbon → white matter
                                             → deep grey, ventricles, tumour

Sulci are the zero surfaces of a random wave field that hardly changes along the depth: they wind over the
hull as real ones do and cut into it at right angles. Tissues become pictures through the equations of
spin-echo and inversion-recovery imaging, a coil's uneven sensitivity, and Rician noise.

Places are MNI-like: x to the right, y to the front, z up, but with the origin in the middle of the brain.
"""

from __future__ import annotations

import gzip
import math
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from enum import IntEnum
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from unalike.engine import map_in_order, show_progress
from unalike.errors import FolderError, SettingsError
from unalike.seeds import generator_for

MODALITIES = ("t1", "t1ce", "t2", "flair")
FIELD_MM = 240.0  # BraTS: 240 voxels of 1 mm
SLICE_MM = 3.0
_HEIGHT_MM = 60.0  # the most that is shown: cerebellum, face and crown are left out
_LOWEST_MM = -24.0
_MIDDLE_MM = -6.0  # a thin slab lies around the lateral ventricles
_FINE = 2  # tissues are drawn on a grid this many times finer, so that voxels can hold several
_CHUNK = 1 << 16  # points drawn at a time: bounds memory at full BraTS size

Floats = NDArray[np.float32]
Labels = NDArray[np.uint8]


@dataclass(frozen=True)
class PhantomSettings:
    """What to draw: ``subjects`` volumes of ``size`` × ``size`` × ``slices`` voxels.

    The field of view is 240 mm, so a voxel is 240 / ``size`` mm wide. Slices are 3 mm apart, or closer where
    more than 20 are asked for: they cover the ventricles and what is above, 60 mm at most. ``tumour_share``
    (0 to 1) is each subject's chance of a tumour. ``noise`` (0 to 0.5) is the standard deviation of the
    Rician noise as a share of the signal of the brightest healthy brain tissue (white matter in T1, fluid in
    T2, grey matter in FLAIR). Without ``skull`` all outside the brain is exactly 0, as in BraTS.

    Raises `SettingsError` for values outside these ranges.
    """

    subjects: int = 64
    size: int = 64
    slices: int = 24
    tumour_share: float = 0.7
    noise: float = 0.02
    skull: bool = True

    def __post_init__(self) -> None:
        """Refuse what cannot be drawn."""
        for name, low, high in (
            ("subjects", 1, 9999),
            ("size", 16, 512),
            ("slices", 1, 256),
            ("tumour_share", 0, 1),
            ("noise", 0, 0.5),
        ):
            value = getattr(self, name)
            if not low <= value <= high:
                raise SettingsError(f"phantom: {name} is {value}. Give a value from {low} to {high}.")

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Size of a voxel in mm: x, y, z."""
        return FIELD_MM / self.size, FIELD_MM / self.size, min(SLICE_MM, _HEIGHT_MM / self.slices)


DEFAULTS = PhantomSettings()


class Tissue(IntEnum):
    """What a point of the head consists of."""

    AIR = 0
    FLUID = 1
    GREY = 2
    WHITE = 3
    DEEP_GREY = 4
    NECROSIS = 5
    OEDEMA = 6
    ENHANCING = 7
    BONE = 8
    MARROW = 9
    MUSCLE = 10
    FAT = 11


SEGMENTATION = {Tissue.NECROSIS: 1, Tissue.OEDEMA: 2, Tissue.ENHANCING: 4}
"""BraTS labels of the tumour's parts."""

# Proton density (relative), T1 and T2 in ms: typical values at 1.5 T. Grey and white matter lie between the
# BrainWeb simulator (Kwan et al. 1999, IEEE TMI 18:1085) and Stanisz et al. 2005 (Magn Reson Med 54:507);
# fluid is that of long measurements; parts of a tumour are typical of glioma, and chosen to look like it.
RELAXATION: Mapping[Tissue, tuple[float, float, float]] = {
    Tissue.AIR: (0.0, 1000.0, 100.0),
    Tissue.FLUID: (1.00, 4200.0, 1800.0),
    Tissue.GREY: (0.83, 1050.0, 98.0),
    Tissue.WHITE: (0.75, 590.0, 74.0),
    Tissue.DEEP_GREY: (0.80, 880.0, 82.0),
    Tissue.NECROSIS: (0.96, 2300.0, 260.0),
    Tissue.OEDEMA: (0.90, 1250.0, 140.0),
    Tissue.ENHANCING: (0.88, 1300.0, 115.0),
    Tissue.BONE: (0.06, 500.0, 20.0),
    Tissue.MARROW: (0.55, 420.0, 60.0),
    Tissue.MUSCLE: (0.80, 950.0, 45.0),
    Tissue.FAT: (0.85, 300.0, 68.0),
}


def spin_echo_signal(*, density: Any, t1: Any, t2: Any, tr: float, te: float) -> Any:
    """Signal of a spin echo, density · (1 − e^(−TR/T1)) · e^(−TE/T2); all times in the same unit.

    Source: Bernstein, King and Zhou, Handbook of MRI Pulse Sequences (2004), section 14.3.
    """
    return density * (1 - np.exp(-tr / t1)) * np.exp(-te / t2)


def inversion_recovery_signal(*, density: Any, t1: Any, t2: Any, tr: float, te: float, ti: float) -> Any:
    """Magnitude after inversion, |density · (1 − 2e^(−TI/T1) + e^(−TR/T1)) · e^(−TE/T2)|; same unit of time.

    Source: Bernstein, King and Zhou, Handbook of MRI Pulse Sequences (2004), section 14.2.
    """
    return np.abs(density * (1 - 2 * np.exp(-ti / t1) + np.exp(-tr / t1)) * np.exp(-te / t2))


def add_rician_noise(*, signal: Floats, sigma: float, random: np.random.Generator) -> Floats:
    """Magnitude of ``signal`` (any shape) plus complex Gaussian noise, standard deviation ``sigma`` per part.

    Where the signal is 0 the result is Rayleigh distributed, with mean sigma · √(π/2).
    Source: Gudbjartsson and Patz 1995 (Magn Reson Med 34:910).
    """
    real, imaginary = random.standard_normal((2, *signal.shape), dtype=np.float32) * np.float32(sigma)
    magnitude: Floats = np.hypot(signal + real, imaginary)
    return magnitude


@dataclass(frozen=True)
class _Waves:
    """A smooth random field: a sum of plane waves, so it has a value at any place and no grid."""

    vectors: Floats  # (waves, 3), radians per mm
    phases: Floats  # (waves, 1)
    weights: Floats  # (channels, waves)

    @classmethod
    def draw(
        cls,
        random: np.random.Generator,
        *,
        waves: int,
        shortest: float,
        longest: float,
        spread: float = 1.0,
        channels: int = 1,
    ) -> _Waves:
        """Field of mean 0 and standard deviation about ``spread``, wavelengths in mm."""
        direction = random.standard_normal((waves, 3))
        direction /= np.linalg.norm(direction, axis=1, keepdims=True)
        length = random.uniform(shortest, longest, (waves, 1))
        weights = random.standard_normal((channels, waves))
        weights *= spread * math.sqrt(2) / np.linalg.norm(weights, axis=1, keepdims=True)
        phases = random.uniform(0, 2 * math.pi, (waves, 1))
        return cls(
            (2 * math.pi * direction / length).astype(np.float32),
            phases.astype(np.float32),
            weights.astype(np.float32),
        )

    def at(self, points: Floats) -> Floats:
        """Values (channels, N) at ``points`` (3, N)."""
        values = np.empty((len(self.weights), points.shape[1]), np.float32)
        for block in _blocks(points.shape[1]):
            wave = np.cos(self.vectors @ points[:, block] + self.phases)
            values[:, block] = np.einsum("ck,kn->cn", self.weights, wave)
        return values

    def distance_to_zero(self, points: Floats) -> Floats:
        """Distance (N,) in mm to the nearest zero surface of the first channel, to first order."""
        distance = np.empty(points.shape[1], np.float32)
        weighted = np.ascontiguousarray((self.vectors * self.weights[0][:, None]).T)
        for block in _blocks(points.shape[1]):
            angle = self.vectors @ points[:, block] + self.phases
            value = np.einsum("k,kn->n", self.weights[0], np.cos(angle))
            slope = np.linalg.norm(weighted @ np.sin(angle, out=angle), axis=0)
            # The floor keeps flat extrema of the field from becoming lakes of fluid.
            distance[block] = np.abs(value) / np.maximum(slope, 0.05)
        return distance


def _blocks(count: int) -> Iterator[slice]:
    # Small enough for the cache, and for BLAS to leave its threads asleep: waking them costs more here.
    return (slice(first, first + 2048) for first in range(0, count, 2048))


@dataclass(frozen=True)
class _Tumour:
    centre: Floats  # (3, 1), mm
    stretch: Floats  # (3, 1)
    radius: float  # mm
    rim: float  # mm
    oedema: float  # mm beyond the radius
    push: float  # how far it displaces what is around it, as a share of the distance
    border: _Waves


@dataclass(frozen=True)
class _Person:
    """All that makes one subject's anatomy; lengths in mm."""

    rotation: Floats  # (3, 3)
    shift: Floats  # (3, 1)
    half_axes: Floats  # (3, 1) of the brain's hull
    taper: float
    deformation: _Waves  # 3 channels
    fluid: float  # width of the space around the brain
    bone: float
    scalp: float
    muscle: float
    ribbon: float  # thickness of the cortex
    gap: float  # half the width of a sulcus
    folds: tuple[tuple[_Waves, float], ...]  # field, depth of its sulci
    fold_depth: _Waves
    midline: _Waves
    ventricles: Floats  # scale of length, width on the left, on the right
    deep_grey: float
    tumour: _Tumour | None


def _draw_person(random: np.random.Generator, tumour_share: float) -> _Person:
    uniform = random.uniform
    age = random.beta(1.2, 1.6)  # 0 young, 1 old: fluid widens, cortex thins
    angles = random.normal(0, (4.0, 4.0, 6.0))  # nodding, tilting, turning, in degrees
    fold_length = uniform(24, 34)
    width = 0.75 + 0.9 * age + uniform(-0.15, 0.25)
    half_axes = random.normal((66, 84, 67), (3.6, 4.6, 2.7))
    healthy = _Person(
        rotation=_rotation(np.radians(angles)),
        shift=random.normal(0, (3.5, 3.5, 4.0)).astype(np.float32)[:, None],
        half_axes=half_axes.clip((58, 74, 60), (76, 94, 74)).astype(np.float32)[:, None],
        taper=uniform(0.02, 0.2),
        deformation=_Waves.draw(random, waves=9, shortest=110, longest=230, spread=3.6, channels=3),
        fluid=1.0 + 2.5 * age + uniform(0, 0.8),
        bone=uniform(4.5, 9.0),
        scalp=uniform(3.5, 9.0),
        muscle=uniform(2, 7),
        ribbon=uniform(2.9, 3.9) - 0.5 * age,
        gap=0.25 + 1.1 * age + uniform(0, 0.3),
        folds=(
            (_Waves.draw(random, waves=16, shortest=0.8 * fold_length, longest=1.25 * fold_length), 24.0),
            (_Waves.draw(random, waves=12, shortest=0.5 * fold_length, longest=0.75 * fold_length), 8.0),
        ),
        fold_depth=_Waves.draw(random, waves=5, shortest=35, longest=80),
        midline=_Waves.draw(random, waves=5, shortest=50, longest=120, spread=1.2),
        ventricles=np.array(
            (uniform(0.85, 1.12), width * uniform(0.85, 1.15), width * uniform(0.85, 1.15)), np.float32
        ),
        deep_grey=uniform(0.88, 1.12),
        tumour=None,
    )
    if random.random() >= tumour_share:
        return healthy
    return replace(healthy, tumour=_draw_tumour(random, healthy))


def _draw_tumour(random: np.random.Generator, person: _Person) -> _Tumour:
    uniform = random.uniform
    radius = uniform(9, 26)
    # Within the hemisphere, near the slab that every setting shows.
    angle, reach = uniform(0, 2 * math.pi), math.sqrt(uniform(0.1, 0.5))
    centre = np.array((reach * math.cos(angle), reach * math.sin(angle), 0)) * person.half_axes[:, 0]
    centre[0] += math.copysign(6, centre[0])
    centre[2] = uniform(-16, 8)
    return _Tumour(
        centre=centre.astype(np.float32)[:, None],
        stretch=uniform(0.8, 1.25, (3, 1)).astype(np.float32),
        radius=radius,
        rim=uniform(3.0, 6.5),
        oedema=uniform(4, 24),
        push=uniform(0.1, 0.45),
        border=_Waves.draw(random, waves=12, shortest=0.9 * radius, longest=3.0 * radius, channels=2),
    )


def _rotation(angles: NDArray[np.float64]) -> Floats:
    (cx, cy, cz), (sx, sy, sz) = np.cos(angles), np.sin(angles)
    about_x = np.array(((1, 0, 0), (0, cx, -sx), (0, sx, cx)))
    about_y = np.array(((cy, 0, sy), (0, 1, 0), (-sy, 0, cy)))
    about_z = np.array(((cz, -sz, 0), (sz, cz, 0), (0, 0, 1)))
    rotation: Floats = (about_x @ about_y @ about_z).astype(np.float32)
    return rotation


def _hull_depth(person: _Person, points: Floats) -> tuple[Floats, Floats]:
    """How deep below the brain's hull points lie, as mm and as a share (1 on the hull, 0 in the middle)."""
    narrowed = points / person.half_axes
    narrowed[0] *= 1 + person.taper * narrowed[1]  # foreheads are narrower
    share = np.sqrt(np.einsum("in,in->n", narrowed, narrowed)) + np.float32(1e-3)
    radius = np.sqrt(np.einsum("in,in->n", points, points))
    return radius / share - radius, share


def _classify(person: _Person, scanner: Floats) -> Labels:
    """Tissue (N,) at places ``scanner`` (3, N) in mm of the scanner."""
    tissue = np.zeros(scanner.shape[1], np.uint8)
    points = person.rotation.T @ (scanner - person.shift)
    rough, _ = _hull_depth(person, points)
    # Most of a picture is air: the rest is drawn where the head can be.
    margin = person.fluid + person.bone + person.scalp + person.muscle + 14
    near = np.flatnonzero(rough > -margin)
    points = points[:, near]
    points += person.deformation.at(points)
    depth, share = _hull_depth(person, points)
    drawn = _draw_covers(person, points, depth)
    inside = np.flatnonzero(depth > 0)
    drawn[inside] = _draw_brain(person, points[:, inside], depth[inside], share[inside])
    tissue[near] = drawn
    return tissue


def _draw_covers(person: _Person, points: Floats, depth: Floats) -> Labels:
    x, y, z = points
    # The temporal muscle lies on the temples, below the top of the ear.
    side = (x / 60) ** 6
    temple = np.exp(-(((y - 22) / 30) ** 2) - ((z + 36) / 26) ** 2) * side / (1 + side)
    muscle = 2 * person.muscle * temple
    bone = person.bone * (1 - 0.2 * np.tanh((y + 40) / 25))  # thickest at the back
    tissue = np.zeros(depth.shape, np.uint8)
    above = -depth - person.fluid
    layers = (
        (person.scalp + muscle + bone, Tissue.MUSCLE),  # the skin has a muscle's signal
        (person.scalp + muscle + bone - 1.6, Tissue.FAT),
        (muscle + bone + 0.25 * person.scalp, Tissue.MUSCLE),
        (bone, Tissue.BONE),
        (0.68 * bone, Tissue.MARROW),
        (0.3 * bone, Tissue.BONE),
        (np.float32(0), Tissue.FLUID),
    )
    for outer, kind in layers:
        tissue[above < outer] = kind
    return tissue


def _draw_brain(person: _Person, points: Floats, depth: Floats, share: Floats) -> Labels:
    tumour = person.tumour
    if tumour is not None:
        away = points - tumour.centre
        squared = np.einsum("in,in->n", away, away) / np.float32((1.7 * tumour.radius) ** 2)
        points = points - away * (tumour.push * np.exp(-squared))
    middle = points[0] + person.midline.at(points)[0]
    pial = _pial_distance(person, points, middle, depth, share)
    tissue = np.full(depth.shape, Tissue.WHITE, np.uint8)
    tissue[pial < person.ribbon] = Tissue.GREY
    tissue[pial < 0] = Tissue.FLUID
    core = np.flatnonzero(share < 0.85)
    tissue[core] = _draw_core(person, points[:, core], middle[core], tissue[core])
    if tumour is not None:
        _draw_tumour_parts(tumour, away, depth, tissue)
    return tissue


def _pial_distance(person: _Person, points: Floats, middle: Floats, depth: Floats, share: Floats) -> Floats:
    """Distance (N,) in mm to the folded surface of the brain; negative in the fluid of a sulcus."""
    pial: Floats = np.where(depth < 0.3, np.float32(-1), depth)
    # Drawn outwards to the hull, so that a fold hardly changes with depth and its walls stand upright.
    draw_out = share**-0.5
    for field, fold_depth in person.folds:
        shell = np.flatnonzero(depth < 1.8 * fold_depth + person.ribbon)
        on_hull = points[:, shell] * draw_out[shell]
        aside = field.distance_to_zero(on_hull) / draw_out[shell]
        below = depth[shell] - fold_depth * (1 + 0.35 * person.fold_depth.at(on_hull)[0])
        pial[shell] = np.minimum(pial[shell], np.hypot(aside, np.maximum(below, 0)) - person.gap)
    # The fissure between the hemispheres stops at the corpus callosum.
    _, y, z = points
    bridge = 36 * np.maximum(1 - np.sqrt(((y - 8) / 42) ** 2 + ((z + 6) / 26) ** 2), 0)
    np.minimum(pial, np.hypot(middle, bridge) - 0.4 - person.gap, out=pial)
    # The Sylvian fissure runs in from the temple to the insula.
    x = np.abs(middle)
    sheet = np.hypot(y - 22 + 0.35 * (x - 40), 0.6 * np.maximum(z - 2, 0))
    inward = np.maximum(40 - x, 0)
    np.minimum(pial, np.hypot(sheet, inward) - 1.2 - 1.3 * person.gap, out=pial)
    return pial


# Lateral ventricle: places of its axis with their radius (mm), from the frontal to the occipital horn.
_HORNS = (
    ((14.0, 48.0, -18.0), 2.2),
    ((9.0, 37.0, -10.0), 4.4),
    ((8.0, 18.0, 1.0), 4.6),
    ((12.0, -5.0, 4.0), 4.6),
    ((24.0, -26.0, -5.0), 6.2),
    ((23.0, -50.0, -13.0), 2.4),
)
# Ellipsoids of deep grey matter: centre and half axes (mm).
_NUCLEI = (
    ((12.0, 0.0, -11.0), (8.5, 14.0, 10.0)),  # thalamus
    ((15.0, 32.0, -11.0), (5.5, 9.5, 10.0)),  # head of the caudate
    ((26.0, 20.0, -16.0), (6.0, 16.0, 12.0)),  # lentiform
)


def _draw_core(person: _Person, points: Floats, middle: Floats, tissue: Labels) -> Labels:
    """Deep grey matter and ventricles over ``tissue`` (N,)."""
    length, left, right = person.ventricles
    side = np.abs(middle)
    width = np.where(middle > 0, right, left)
    place = np.stack((side, points[1], points[2]))
    for centre, half_axes in _NUCLEI:
        offset = (place - _column(centre)) / (_column(half_axes) * person.deep_grey)
        tissue[np.einsum("in,in->n", offset, offset) < 1] = Tissue.DEEP_GREY
    place /= length
    # Wide ventricles grow outwards: the septum between them stays.
    place[0] -= 3.0 * (width - 1)
    nearest = np.full(side.shape, np.inf, np.float32)
    for (start, begin), (stop, end) in pairwise(_HORNS):
        axis = _column(stop) - _column(start)
        offset = place - _column(start)
        along = (np.einsum("in,i->n", offset, axis[:, 0]) / (axis**2).sum()).clip(0, 1)
        offset -= axis * along
        np.minimum(
            nearest,
            np.sqrt(np.einsum("in,in->n", offset, offset)) - width * (begin + (end - begin) * along),
            out=nearest,
        )
    tissue[(nearest < 0) & (side > 0.9)] = Tissue.FLUID
    _, y, z = points
    third = ((y - 4) / 15) ** 2 + ((z + 16) / 13) ** 2 < 1
    tissue[third & (side < 1.0 + 1.3 * width)] = Tissue.FLUID
    return tissue


def _column(place: tuple[float, float, float]) -> Floats:
    return np.array(place, np.float32)[:, None]


def _draw_tumour_parts(tumour: _Tumour, away: Floats, depth: Floats, tissue: Labels) -> None:
    reach = tumour.radius + tumour.oedema
    around = np.flatnonzero(np.einsum("in,in->n", away, away) < (2.0 * reach) ** 2)
    away = away[:, around]
    rough, spread = tumour.border.at(away)
    offset = away * tumour.stretch
    outside = np.sqrt(np.einsum("in,in->n", offset, offset)) - tumour.radius * (1 + 0.17 * rough)
    found = tissue[around]
    # Oedema follows the white matter, and leaves the fluid alone.
    width = tumour.oedema * np.maximum(1 + 0.5 * spread, 0.1)
    soaked = np.where(found == Tissue.WHITE, width, 0.35 * width)
    found[(outside < soaked) & (found != Tissue.FLUID)] = Tissue.OEDEMA
    solid = depth[around] > 1.5
    found[(outside < 0) & solid] = Tissue.ENHANCING
    found[(outside < -tumour.rim * (1 + 0.35 * spread)) & solid] = Tissue.NECROSIS
    tissue[around] = found


@dataclass(frozen=True)
class Anatomy:
    """Tissues of one subject.

    ``tissue`` (2·size, 2·size, slices) holds `Tissue` numbers on a grid twice as fine as the pictures, in
    the slice's plane; axes run to the right, the front and up. ``affine`` (4, 4) maps voxels of the
    *pictures* to mm.
    """

    tissue: Labels
    affine: NDArray[np.float64]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels of a picture: right, front, up."""
        height, width, slices = self.tissue.shape
        return height // _FINE, width // _FINE, slices

    @property
    def segmentation(self) -> Labels:
        """BraTS labels (size, size, slices): 0, 1 necrotic core, 2 oedema, 4 enhancing rim."""
        chosen = np.zeros(self.shape, np.uint8)
        best = np.full(chosen.shape, 0.49, np.float32)
        for kind, label in SEGMENTATION.items():
            part = _shrink((self.tissue == kind).astype(np.float32))
            chosen[part > best] = label
            np.maximum(best, part, out=best)
        return chosen

    @property
    def brain(self) -> NDArray[np.bool_]:
        """Where the pictures (size, size, slices) show the brain and the fluid around it."""
        held = (self.tissue >= Tissue.FLUID) & (self.tissue <= Tissue.ENHANCING)
        return _shrink(held.astype(np.float32)) >= 0.5


def _shrink(fine: Floats) -> Floats:
    """Mean over blocks of the fine grid."""
    height, width, slices = fine.shape
    blocks = fine.reshape(height // _FINE, _FINE, width // _FINE, _FINE, slices)
    mean: Floats = blocks.mean(axis=(1, 3), dtype=np.float32)
    return mean


def draw_anatomy(*, settings: PhantomSettings = DEFAULTS, seed: int = 0, index: int = 0) -> Anatomy:
    """Draw subject number ``index`` of the cohort ``seed``.

    The person depends on ``seed``, ``index`` and ``settings.tumour_share`` alone: other settings show the
    same person on another grid.
    """
    person = _draw_person(generator_for(seed, "phantom", index), settings.tumour_share)
    wide, _, thick = settings.spacing
    count = settings.size * _FINE
    across = ((np.arange(count) + 0.5) * (wide / _FINE) - FIELD_MM / 2).astype(np.float32)
    lowest = max(_MIDDLE_MM - thick * (settings.slices - 1) / 2, _LOWEST_MM)
    up = (lowest + thick * np.arange(settings.slices)).astype(np.float32)
    tissue = np.empty((count, count, settings.slices), np.uint8)
    step = max(_CHUNK // count**2, 1)
    for first in range(0, settings.slices, step):
        grid = np.meshgrid(across, across, up[first : first + step], indexing="ij")
        points = np.stack([axis.ravel() for axis in grid])
        tissue[:, :, first : first + step] = _classify(person, points).reshape(grid[0].shape)
    affine = np.diag((wide, wide, thick, 1.0))
    affine[:3, 3] = (wide - FIELD_MM) / 2, (wide - FIELD_MM) / 2, lowest
    return Anatomy(tissue, affine)


def draw_signals(*, random: np.random.Generator) -> Floats:
    """Signal of each tissue, (4 modalities, 12 tissues); 1 is the brightest healthy tissue of the brain.

    Relaxation times vary a little from subject to subject, and the scanner's TR and TE more.
    """
    density, t1, t2 = np.array([RELAXATION[kind] for kind in Tissue]).T
    density = density * np.exp(random.normal(0, 0.03, density.shape))
    t1 = t1 * np.exp(random.normal(0, 0.04, t1.shape))
    t2 = t2 * np.exp(random.normal(0, 0.06, t2.shape))
    uniform = random.uniform
    enhanced = t1.copy()
    enhanced[Tissue.ENHANCING] *= uniform(0.22, 0.4)  # gadolinium leaks in
    tr, te = uniform(380, 620), uniform(8, 16)
    plain = spin_echo_signal(density=density, t1=t1, t2=t2, tr=tr, te=te)
    contrast = spin_echo_signal(density=density, t1=enhanced, t2=t2, tr=tr, te=te)
    weighted = spin_echo_signal(density=density, t1=t1, t2=t2, tr=uniform(3500, 6500), te=uniform(75, 120))
    tr = uniform(8000, 10000)
    # The inversion time that nulls fluid, as the operator would set it from a textbook.
    fluid = RELAXATION[Tissue.FLUID][1]
    ti = fluid * math.log(2 / (1 + math.exp(-tr / fluid)))
    flair = inversion_recovery_signal(density=density, t1=t1, t2=t2, tr=tr, te=uniform(85, 130), ti=ti)
    signals = np.stack((plain, contrast, weighted, flair), dtype=np.float32)
    signals /= signals[:, Tissue.FLUID : Tissue.DEEP_GREY + 1].max(axis=1, keepdims=True)
    return signals


def draw_pictures(
    *, anatomy: Anatomy, settings: PhantomSettings = DEFAULTS, seed: int = 0, index: int = 0
) -> dict[str, NDArray[np.int16]]:
    """Scan a subject: modality → int16 (size, size, slices).

    The brightest healthy tissue of the brain has about 1000 times a gain (0.7 to 1.4) of the scanner.
    """
    random = generator_for(seed, "phantom-scan", index)
    signals = draw_signals(random=random)
    coil = _draw_coil(random, anatomy)
    brain = anatomy.brain
    pictures = {}
    for modality, tissues in zip(MODALITIES, signals, strict=True):
        gain = 1000 * random.uniform(0.7, 1.4)
        clean = _shrink(tissues[anatomy.tissue])
        # The point spread of the scanner in the plane, the slice profile across it.
        ndimage.gaussian_filter(clean, (0.45, 0.45, 0.35), output=clean)
        noisy = add_rician_noise(signal=clean * coil, sigma=settings.noise, random=random)
        if not settings.skull:
            noisy[~brain] = 0
        pictures[modality] = np.rint(noisy * gain).astype(np.int16)
    return pictures


def _draw_coil(random: np.random.Generator, anatomy: Anatomy) -> Floats:
    """Sensitivity of the receiving coil, about 1, smooth over the head."""
    waves = _Waves.draw(random, waves=4, shortest=220, longest=420, spread=0.14)
    total = np.zeros(anatomy.shape, np.float32)
    voxel = (waves.vectors @ anatomy.affine[:3, :3]).astype(np.float32)
    for vector, phase, weight in zip(voxel, waves.phases, waves.weights[0], strict=True):
        x, y, z = (np.arange(n, dtype=np.float32) * step for n, step in zip(anatomy.shape, vector, strict=True))
        total += weight * np.cos(x[:, None, None] + y[:, None] + z + phase)
    return np.exp(total)


def make_phantom(*, out: Path, settings: PhantomSettings = DEFAULTS, seed: int = 0) -> Path:
    """Write a cohort of procedural brain MRI to ``out`` and return ``out``.

    Each subject is a folder ``BraTS_phantom_0001`` with ``…_t1``, ``_t1ce``, ``_t2``, ``_flair`` (int16) and
    ``_seg`` (uint8; labels 0, 1, 2, 4) as ``.nii.gz``, all (size, size, slices), RAS. A subject's files
    depend on ``seed``, its number and the settings, never on how many subjects there are.

    If it fails or is interrupted, ``out`` is left empty.

    Raises `FolderError` if ``out`` exists and is not empty or cannot be written, `SettingsError` for a
    negative ``seed``.
    """
    out = Path(out)
    if seed < 0:
        raise SettingsError(f"phantom: seed is {seed}. Give 0 or more.")
    try:
        out.mkdir(parents=True, exist_ok=True)
        if any(out.iterdir()):
            raise FolderError(f"{out} exists already and is not empty. Choose another folder or remove it.")
        _write_subjects(out, settings, seed)
    except OSError as error:
        reason = error.strerror or error
        raise FolderError(f"{out} cannot be written ({reason}). Choose another folder.") from error
    return out


def _write_subjects(out: Path, settings: PhantomSettings, seed: int) -> None:
    write = partial(_write_subject, out, settings, seed)
    try:
        with show_progress("drawing subjects", total=settings.subjects, unit="subjects") as progress:
            # Threads: nearly all of the work is in NumPy and zlib, which let go of the interpreter.
            for _ in map_in_order(write, range(settings.subjects)):
                progress.advance()
    except BaseException:
        # A part of a cohort must not be taken for the whole of it.
        for folder in out.iterdir():
            shutil.rmtree(folder, ignore_errors=True)
        raise


def _write_subject(out: Path, settings: PhantomSettings, seed: int, index: int) -> None:
    name = f"BraTS_phantom_{index + 1:04d}"
    folder = out / name
    folder.mkdir()
    anatomy = draw_anatomy(settings=settings, seed=seed, index=index)
    volumes: dict[str, NDArray[Any]] = {"seg": anatomy.segmentation}
    volumes |= draw_pictures(anatomy=anatomy, settings=settings, seed=seed, index=index)
    for part, voxels in volumes.items():
        image = nibabel.Nifti1Image(voxels, anatomy.affine)
        image.header.set_xyzt_units("mm", "sec")
        # Level 1: noise hardly compresses. No time stamp: the same seed gives the same bytes.
        (folder / f"{name}_{part}.nii.gz").write_bytes(gzip.compress(image.to_bytes(), 1, mtime=0))
