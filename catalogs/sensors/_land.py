"""Procedural land: the share of each material at any fine pixel, computed from its position alone.

Large parcels (fields, forest, villages) with sharp edges and tracks between them, small objects (roofs, trees, ponds),
a river, and brightness texture at every scale down to the pixel. Positions are integers of any sign.

References
----------
Steele, Lea & Flood (2014), Fast splittable pseudorandom number generators, OOPSLA, doi:10.1145/2660193.2660195 (mixer).
Worley (1996), A cellular texture basis function, SIGGRAPH, doi:10.1145/237170.237267 (parcels on a jittered grid).
Box & Muller (1958), A note on the generation of random normal deviates, doi:10.1214/aoms/1177706645 (noise).
"""

from __future__ import annotations

from typing import NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from hyperfuse.catalogs.bands import Bands

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
U64 = NDArray[np.uint64]
Flags = NDArray[np.bool_]

MATERIALS = ("crop", "meadow", "forest", "straw", "loam", "peat", "water", "roof", "asphalt", "target")
CROP, MEADOW, FOREST, STRAW, LOAM, PEAT, WATER, ROOF, ASPHALT, TARGET = range(10)
TYPICAL_COVER = np.array([0.18, 0.22, 0.22, 0.10, 0.15, 0.04, 0.04, 0.025, 0.025, 0.0])
"""Share of each material in the land at large; noise is scaled by it."""

_DOT_SIGMA_PX = 1.0
_PARCEL_PX = 42
_OBJECT_PX = 8
_ARABLE = np.array([CROP, CROP, STRAW, LOAM, MEADOW, CROP, PEAT, STRAW, LOAM, MEADOW])
_PARTNER = np.array([LOAM, CROP, MEADOW, LOAM, STRAW, CROP, MEADOW, ASPHALT, LOAM, TARGET])
"""What a parcel of each material is mixed with."""
_TEXTURE = ((170, 0.16), (37, 0.16), (11, 0.14), (4, 0.14), (2, 0.20))
"""Periods (fine pixels) and amplitudes of the brightness."""


# --- hashing: numbers that depend on a position and nothing else ---------------------------------------------------


def key(seed: int, *stream: int) -> int:
    """Derive a 64-bit key for one stream of random numbers."""
    state = np.array([seed & (2**64 - 1)], dtype=np.uint64)
    for part in stream:
        state = _mix(state * np.uint64(0x9E3779B97F4A7C15) + np.uint64(part + 1))
    return int(state[0])


def hash_at(stream: int, y: I64, x: I64) -> U64:
    """64 random bits at each position of a grid, shape (y, x)."""
    row = _mix(y.astype(np.uint64) * np.uint64(0xD1342543DE82EF95) + np.uint64(stream))
    return _mix(row[:, None] + x.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15))


def unit(bits: U64, nth: int = 0) -> F32:
    """Uniform numbers in [0, 1) from 64 random bits; another `nth` gives independent ones."""
    mixed = _mix(bits + np.uint64(nth * 0xBF58476D1CE4E5B9 % 2**64)) if nth else bits
    return cast("F32", (mixed >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-24))


def normal(bits: U64) -> F32:
    """Turn 64 random bits each into standard normal numbers."""
    # One is added to the radius' half, since its logarithm is taken.
    radius = ((bits >> np.uint64(32)) + np.uint64(1)).astype(np.float32) * np.float32(2.0**-32)
    angle = (bits & np.uint64(0xFFFFFFFF)).astype(np.float32) * np.float32(2.0 * np.pi * 2.0**-32)
    return cast("F32", np.sqrt(np.float32(-2.0) * np.log(radius)) * np.cos(angle))


def holes(stream: int, y: I64, x: I64, *, period: int, share: float) -> Flags:
    """Round holes over `share` (0 to 0.45) of the area, one in each cell of `period` pixels, shape (y, x)."""
    cell_y, cell_x = y // period, x // period
    near_y, near_x = np.arange(cell_y[0], cell_y[-1] + 1), np.arange(cell_x[0], cell_x[-1] + 1)
    bits = hash_at(stream, near_y, near_x)
    # Areas of 0.4 to 1.6 times the share have the share as their mean, and each disk stays within its cell.
    radius = np.sqrt(np.float32(share / np.pi) * (np.float32(0.4) + np.float32(1.2) * unit(bits)))
    center_y, center_x = (radius + unit(bits, nth) * (np.float32(1.0) - np.float32(2.0) * radius) for nth in (1, 2))
    at = np.ix_(cell_y - near_y[0], cell_x - near_x[0])
    dy, dx = _fraction(y, period)[:, None] - center_y[at], _fraction(x, period) - center_x[at]
    return cast("Flags", dy * dy + dx * dx < radius[at] ** 2)


def _mix(bits: U64) -> U64:
    bits = bits ^ (bits >> np.uint64(30))
    bits *= np.uint64(0xBF58476D1CE4E5B9)
    bits ^= bits >> np.uint64(27)
    bits *= np.uint64(0x94D049BB133111EB)
    bits ^= bits >> np.uint64(31)
    return bits


def _fraction(at: I64, period: int) -> F32:
    """Position of pixel centers within their cell, 0 to 1."""
    return cast("F32", ((at % period).astype(np.float32) + np.float32(0.5)) / np.float32(period))


# --- land ----------------------------------------------------------------------------------------------------------


def abundance(
    seed: int, rows: range, cols: range, *, texture: float = 1.0, dot: tuple[float, float] | None = None
) -> F32:
    """Share of each material times the pixel's brightness (mean 1), shape (material, y, x).

    Parameters
    ----------
    seed : int
        The place.
    rows, cols : range
        Fine pixels, of any sign.
    texture : float
        Contrast, 0 (flat loam) to 1.
    dot : (float, float), optional
        Row and column (corner of pixel 0 at 0) of a Gaussian target that covers the land wholly at its center.
    """
    y, x = np.arange(rows.start, rows.stop), np.arange(cols.start, cols.stop)
    shares = np.zeros((len(MATERIALS), y.size, x.size), dtype=np.float32)
    if texture > 0:
        _mix_land(seed, y, x, shares)
    if texture < 1:
        shares *= np.float32(texture)
        shares[LOAM] += np.float32(1.0 - texture)
    if dot is not None:
        along_y, along_x = (
            np.exp(-0.5 * ((at + 0.5 - center) / _DOT_SIGMA_PX) ** 2).astype(np.float32)
            for at, center in zip((y, x), dot, strict=True)
        )
        covered = along_y[:, None] * along_x
        shares *= np.float32(1.0) - covered
        shares[TARGET] += covered
    return shares


def _mix_land(seed: int, y: I64, x: I64, out: F32) -> None:
    """Write the land's abundances into zeros of shape (material, y, x)."""
    first, share, tone = _cover(seed, y, x)
    second = _PARTNER.astype(np.int8)[first]
    for nth, (period, amplitude) in enumerate(_TEXTURE):
        tone += np.float32(amplitude) * (_smooth(key(seed, 20, nth), y, x, period) - np.float32(0.5))
    share *= tone
    flat, pixel = out.reshape(len(MATERIALS), -1), np.arange(y.size * x.size)
    flat[second.ravel(), pixel] = (tone - share).ravel()
    flat[first.ravel(), pixel] = share.ravel()


def _cover(seed: int, y: I64, x: I64) -> tuple[NDArray[np.int8], F32, F32]:
    """Find the main material, its share in the mixture and its brightness; each of shape (y, x)."""
    parcel = _voronoi(key(seed, 1), y, x, _PARCEL_PX)
    materials, villages, tones = _parcels(seed, parcel)
    first, in_village, tone = materials[parcel.cell], villages[parcel.cell], tones[parcel.cell]
    share = np.float32(0.55) + np.float32(0.45) * _smooth(key(seed, 3), y, x, 24)

    track = (parcel.gap_px < np.float32(1.8)) & (_smooth(key(seed, 4), y, x, 90) > np.float32(0.5))
    first[track] = LOAM
    first[track & in_village] = ASPHALT

    placed, material, brightness = _objects(seed, y, x, in_village)
    first[placed], share[placed], tone[placed] = material[placed], 0.95, brightness[placed]

    # A level line of smooth noise winds through the land without an end; the finer noise adds its bends.
    level = _smooth(key(seed, 5, 0), y, x, 410) + np.float32(0.3) * _smooth(key(seed, 5, 1), y, x, 97)
    river = np.abs(level - np.float32(0.65)) < np.float32(0.011)
    first[river], share[river], tone[river] = WATER, 1.0, 1.0
    return first, share, tone


def _parcels(seed: int, parcel: _Cells) -> tuple[NDArray[np.int8], Flags, F32]:
    """Material, whether it is a village, and brightness of each parcel; each of shape (cell,)."""
    bits = parcel.bits
    # Woods and villages lie together, hence noise over several parcels, not a draw for each.
    wooded, settled = (_smooth(key(seed, 2, nth), parcel.y, parcel.x, 4).ravel() for nth in (0, 1))
    material = _ARABLE[(unit(bits, 3) * np.float32(len(_ARABLE))).astype(np.intp)].astype(np.int8)
    material[wooded > np.float32(0.62)] = FOREST
    village = settled > np.float32(0.68)
    material[village] = MEADOW
    return material, village, np.float32(0.8) + np.float32(0.4) * unit(bits, 4)


def _objects(seed: int, y: I64, x: I64, in_village: Flags) -> tuple[Flags, NDArray[np.int8], F32]:
    """Find where roofs, yards, trees and ponds lie, of which material and brightness; each of shape (y, x)."""
    small = _voronoi(key(seed, 6), y, x, _OBJECT_PX)
    kind = unit(small.bits, 3)
    half_y, half_x = (np.float32(1.3) + np.float32(2.2) * unit(small.bits, nth) for nth in (4, 5))
    dy, dx = np.abs(small.dy_px) / half_y[small.cell], np.abs(small.dx_px) / half_x[small.cell]
    box, disk = np.maximum(dy, dx) < 1, dy * dy + dx * dx < 1

    built = np.array([ROOF, ASPHALT, ROOF, FOREST, LOAM, ASPHALT, ROOF, FOREST], dtype=np.int8)
    rural = np.array([FOREST, FOREST, MEADOW, FOREST, STRAW, MEADOW, FOREST, WATER], dtype=np.int8)
    drawn = (unit(small.bits, 6) * np.float32(8.0)).astype(np.intp)
    # Villages are dense; elsewhere trees stand in clumps.
    dense = _smooth(key(seed, 7), small.y, small.x, 9).ravel() ** 2 * np.float32(1.1)
    here = in_village & (kind < np.float32(0.9))[small.cell] & box
    there = ~in_village & (kind < dense)[small.cell] & disk
    material = np.where(in_village, built[drawn][small.cell], rural[drawn][small.cell])
    tone = np.float32(0.75) + np.float32(0.5) * unit(small.bits, 7)
    return here | there, material, tone[small.cell]


class _Cells(NamedTuple):
    """Pixels by their nearest seed on a jittered grid."""

    cell: NDArray[np.intp]  # cell of each pixel, shape (y, x), into the arrays of shape (cell,)
    dy_px: F32  # from the seed, shape (y, x)
    dx_px: F32
    gap_px: F32  # how much further the second nearest seed is, shape (y, x)
    bits: U64  # random bits of each cell, shape (cell,)
    y: I64  # rows and columns of the cells
    x: I64


def _voronoi(stream: int, y: I64, x: I64, period: int) -> _Cells:
    cell_y, cell_x = y // period, x // period
    near_y, near_x = np.arange(cell_y[0] - 1, cell_y[-1] + 2), np.arange(cell_x[0] - 1, cell_x[-1] + 2)
    bits = hash_at(stream, near_y, near_x)
    seed_y, seed_x = (np.float32(0.1) + np.float32(0.8) * unit(bits, nth) for nth in (1, 2))
    # Distances are taken within the cell: they are the same numbers whatever the window begins with.
    frac_y, frac_x = _fraction(y, period), _fraction(x, period)
    row, col = cell_y - near_y[0], cell_x - near_x[0]
    best = np.full((y.size, x.size), np.inf, dtype=np.float32)
    second, which = best.copy(), np.zeros(best.shape, dtype=np.int8)
    for nth, (down, right) in enumerate((a, b) for a in (-1, 0, 1) for b in (-1, 0, 1)):
        at_y, at_x = seed_y[row + down] + np.float32(down), seed_x[row + down] + np.float32(right)
        dy = frac_y[:, None] - at_y.take(col + right, axis=1)
        dx = frac_x - at_x.take(col + right, axis=1)
        distance = dy * dy + dx * dx
        np.copyto(which, np.int8(nth), where=distance < best)
        np.minimum(second, np.maximum(best, distance), out=second)
        np.minimum(best, distance, out=best)
    down_by, right_by = (which // np.int8(3) - np.int8(1)), (which % np.int8(3) - np.int8(1))
    index = (row[:, None] + down_by) * near_x.size + (col + right_by)
    bits = bits.ravel()
    dy = frac_y[:, None] - (seed_y.ravel()[index] + down_by)
    dx = frac_x - (seed_x.ravel()[index] + right_by)
    px = np.float32(period)
    return _Cells(index, dy * px, dx * px, (np.sqrt(second) - np.sqrt(best)) * px, bits, near_y, near_x)


def _smooth(stream: int, y: I64, x: I64, period: int) -> F32:
    """Value noise in [0, 1): random numbers every `period` pixels, joined smoothly, shape (y, x)."""
    cell_y, cell_x = y // period, x // period
    near_y, near_x = np.arange(cell_y[0], cell_y[-1] + 2), np.arange(cell_x[0], cell_x[-1] + 2)
    lattice = unit(hash_at(stream, near_y, near_x))
    along_y, along_x = (
        f * f * (np.float32(3.0) - np.float32(2.0) * f) for f in (_fraction(y, period), _fraction(x, period))
    )
    left = lattice[:, cell_x - near_x[0]]
    lines = left + (lattice[:, cell_x - near_x[0] + 1] - left) * along_x
    above = lines[cell_y - near_y[0]]
    return cast("F32", above + (lines[cell_y - near_y[0] + 1] - above) * along_y[:, None])


# --- spectra -------------------------------------------------------------------------------------------------------

STEP_NM = 2.5
"""Spacing at which the spectra are sampled; no band may be narrower."""


def spectra(nm: F64) -> F64:
    """Reflectance of the materials, shape (wavelength, material), 0 to 0.7; shaped after nature, measured nowhere.

    Parameters
    ----------
    nm : ndarray, shape (wavelength,)
        Wavelength (nm).
    """

    def bump(center: float, sigma: float) -> F64:
        return np.exp(-0.5 * ((nm - center) / sigma) ** 2)

    def rise(center: float, width: float) -> F64:
        return 1.0 / (1.0 + np.exp(-np.clip((nm - center) / width, -60, 60)))

    def leaves(green: float, infrared: float, edge: float, moisture: float) -> F64:
        # Liquid water absorbs at 970, 1200, 1450 and 1940 nm; chlorophyll everywhere below the red edge but near 550.
        water = 0.08 * bump(970, 25) + 0.12 * bump(1200, 40) + 0.55 * bump(1450, 55) + 0.75 * bump(1940, 75)
        plateau = infrared * rise(edge, 12.0) * (1.0 - 0.42 * rise(1330, 50) - 0.22 * rise(1850, 40))
        return (
            0.025
            + green * bump(552, 32)
            + 0.6 * green * rise(520, 12) * (1 - rise(650, 15))
            + plateau * (1 - moisture * water)
        )

    clay, iron = bump(2205, 22), bump(880, 90)
    damp = bump(1415, 30) + 1.4 * bump(1915, 40)
    table = {
        "crop": leaves(0.060, 0.50, 722, 1.0),
        "meadow": leaves(0.055, 0.34, 717, 0.8) + 0.03 * rise(600, 60),
        "forest": leaves(0.022, 0.29, 716, 1.1),
        "straw": 0.05
        + 0.12 * rise(515, 25)
        + 0.16 * rise(640, 90)
        + 0.12 * rise(1100, 90)
        - 0.07 * damp
        - 0.08 * bump(2100, 45)
        - 0.1 * rise(2280, 60),
        "loam": 0.045 + 0.17 * rise(610, 90) + 0.17 * rise(1250, 250) - 0.02 * iron - 0.05 * damp - 0.05 * clay,
        "peat": 0.035 + 0.08 * rise(760, 130) + 0.12 * rise(1350, 200) - 0.035 * damp - 0.015 * clay,
        "water": 0.002 + 0.045 * bump(540, 70) + 0.02 * bump(430, 60) + 0.008 * bump(700, 30),
        "roof": 0.05 + 0.25 * rise(598, 18) + 0.18 * rise(1050, 130) - 0.05 * iron - 0.02 * damp - 0.03 * clay,
        "asphalt": 0.11
        + 0.07 * rise(560, 120)
        + 0.04 * rise(1500, 200)
        - 0.015 * bump(2320, 40)
        - 0.03 * bump(1000, 120),
        "target": 0.62 * rise(405, 12) - 0.18 * bump(1730, 30) - 0.12 * bump(1210, 25) - 0.25 * rise(2200, 60),
    }
    return np.stack([table[name] for name in MATERIALS], axis=1)


def signatures(bands: Bands) -> F32:
    """Reflectance of each material in Gaussian bands, shape (band, material)."""
    center, fwhm = bands.center_nm[:, None], bands.fwhm_nm[:, None]
    nm = np.arange((center - 2 * fwhm).min(), (center + 2 * fwhm).max() + STEP_NM, STEP_NM)
    response = np.exp(-4.0 * np.log(2.0) * ((nm - center) / fwhm) ** 2)
    response /= response.sum(axis=1, keepdims=True)
    return cast("F32", (response @ spectra(nm)).astype(np.float32))
