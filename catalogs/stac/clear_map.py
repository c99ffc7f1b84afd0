"""Map of where a scene is clear: the share of valid pixels in each cell of its outline's box.

A scene's cloud cover is one number for 110 km; what counts is the sky over the 30 km of its partner. The map is small
enough for a STAC item: a row is a word, north first, with one character per cell from west to east: `-` where the scene
has no pixel, otherwise a hexadecimal digit, 0 (no pixel is valid) to f (all are).
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import shapely
from numpy.typing import ArrayLike, NDArray
from shapely.geometry.base import BaseGeometry

from hyperfuse.catalogs.outline import box_of

CELLS = 24
"""Cells along each side."""
_DIGITS = "0123456789abcdef"


def clear_map(lon: ArrayLike, lat: ArrayLike, valid: ArrayLike, area: BaseGeometry) -> tuple[str, ...]:
    """The map of some samples.

    Parameters
    ----------
    lon, lat : array_like, shape (sample,)
        Degrees.
    valid : array_like of bool, shape (sample,)
        Whether the pixel can be used.
    area : shapely geometry
        Outline whose box is divided; samples outside of it do not count.
    """
    west, south, east, north = box_of(area)
    shapely.prepare(area)
    x = (np.asarray(lon, np.float64) - west) % 360 / (east - west)
    y = (north - np.asarray(lat, np.float64)) / (north - south)
    # Around a swath that lies askew the image is empty: that is no cloud.
    inside = shapely.intersects_xy(area, (np.asarray(lon, np.float64) + 180) % 360 - 180, np.asarray(lat, np.float64))
    inside &= (x >= 0) & (x <= 1) & (y >= 0) & (y <= 1)
    col, row = (np.minimum((part[inside] * CELLS).astype(int), CELLS - 1) for part in (x, y))
    cell, good = row * CELLS + col, np.asarray(valid, bool)[inside]
    total = np.bincount(cell, minlength=CELLS**2)
    share = np.bincount(cell, weights=good, minlength=CELLS**2) / np.maximum(total, 1)
    digits = [_DIGITS[round(15 * s)] if n else "-" for s, n in zip(share.tolist(), total.tolist(), strict=True)]
    return tuple("".join(digits[start : start + CELLS]) for start in range(0, CELLS**2, CELLS))


def is_clear_map(rows: object) -> bool:
    """Whether something is such a map."""
    return (
        isinstance(rows, (list, tuple))
        and len(rows) == CELLS
        and all(isinstance(row, str) and len(row) == CELLS and set(row) <= set(_DIGITS + "-") for row in rows)
    )


def clear_share(rows: tuple[str, ...], area: BaseGeometry, part: BaseGeometry) -> float | None:
    """Share of valid pixels (0 to 1) within part of an area, None if the map has no pixel there.

    Cells count whose centers lie in the part; where there is none, those that its box meets.
    """
    west, south, east, north = box_of(area)
    left, bottom, right, top = box_of(part)
    begin = (left - west + 180) % 360 - 180
    cols = _cells(begin / (east - west), (begin + right - left) / (east - west))
    rows_met = _cells((north - top) / (north - south), (north - bottom) / (north - south))
    share = _decoded(rows)[rows_met, cols]
    lon = west + (np.arange(CELLS)[cols] + 0.5) / CELLS * (east - west)
    lat = north - (np.arange(CELLS)[rows_met] + 0.5) / CELLS * (north - south)
    inside = np.isfinite(share)
    if share.size > 1:
        centered = shapely.contains_xy(part, (lon[None, :] + 180) % 360 - 180, lat[:, None])
        # A part without any cell's center is smaller than a cell: those that it meets stand for it.
        inside = inside & centered if centered.any() else inside
    return float(share[inside].mean()) if inside.any() else None


def _cells(begin: float, end: float) -> slice:
    """Cells between two places, 0 to 1, along one side; at least one."""
    first = min(max(math.floor(begin * CELLS), 0), CELLS - 1)
    return slice(first, max(first + 1, min(math.ceil(end * CELLS), CELLS)))


@lru_cache(maxsize=20_000)
def _decoded(rows: tuple[str, ...]) -> NDArray[np.float32]:
    values = [[np.nan if c == "-" else _DIGITS.index(c) / 15 for c in row] for row in rows]
    return np.array(values, np.float32)
