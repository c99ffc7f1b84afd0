"""The displacement as arrows over a product's picture: one per tie point of the registration's table."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox
from pyproj import Transformer

from hyperfuse.catalogs.scene import pixel_size_m
from hyperfuse.pipeline.registration.report import TABLE

_ARROW_SHARE = 0.12
"""Length of a long arrow, as a share of the picture's longer side."""
_LONG = 0.95
"""Quantile of the lengths that is drawn as a long arrow; not the maximum, since one outlier would shrink all others."""
_HEAD = 0.3
"""Length of an arrow's head, as a share of the arrow."""
_HEAD_DEG = 25.0
_CLASSES = {True: "agree", False: "differ"}
"""CSS class of the tie points that the displacement used, and of those that it rejected."""


@dataclass(frozen=True, kw_only=True)
class Arrows:
    """Arrows to draw over a picture of the product; `arrows.svg` is their template."""

    width: int
    """Of the product (px): arrows are in product pixels."""
    height: int
    outlines: dict[str, str]
    """Data of an SVG path per class, `agree` and `differ`, as far as there are such tie points."""
    about: str
    """What they show, in a sentence or two."""


def displacement_arrows(folder: Path, geobox: GeoBox) -> Arrows | None:
    """Arrows of the tie points that lie on a product.

    Parameters
    ----------
    folder : Path
        Holds the registration's table of tie points; it may be missing.
    geobox : GeoBox
        Grid of the product.

    Returns
    -------
    Arrows or None
        None if there is no table, or no tie point on the product.
    """
    if not (folder / TABLE).is_file():
        return None
    points = json.loads((folder / TABLE).read_text(encoding="utf-8"))["features"]
    if not points:
        return None
    at, move_m, used = _positions(points, geobox), _moves(points), np.array([p["properties"]["used"] for p in points])
    height, width = geobox.shape
    inside = (at >= 0).all(axis=0) & (at[0] < width) & (at[1] < height)
    if not inside.any():
        return None
    at, move_m, used = at[:, inside], move_m[:, inside], used[inside]
    cols_m, rows_m = pixel_size_m(geobox)
    moved = move_m / np.array([[cols_m], [-rows_m]])  # east and north (m) as columns and rows
    longest = float(np.quantile(np.hypot(*moved), _LONG))
    enlarged = _ARROW_SHARE * max(height, width) / longest if longest > 0 else 1.0
    outlines = {
        name: _outline(at[:, used == agrees], enlarged * moved[:, used == agrees])
        for agrees, name in _CLASSES.items()
        if (used == agrees).any()
    }
    return Arrows(width=width, height=height, outlines=outlines, about=_about(move_m, used, enlarged))


def _positions(points: list[dict[str, Any]], geobox: GeoBox) -> NDArray[np.float64]:
    """Columns and rows of the points, shape (2, n)."""
    assert geobox.crs is not None  # noqa: S101 (our invariant: products have a CRS)
    lon, lat = np.array([point["geometry"]["coordinates"] for point in points], np.float64).T
    x, y = Transformer.from_crs(4326, geobox.crs.proj, always_xy=True).transform(lon, lat)
    a, b, c, d, e, f = tuple(~geobox.affine)[:6]
    return np.stack([a * x + b * y + c, d * x + e * y + f])


def _moves(points: list[dict[str, Any]]) -> NDArray[np.float64]:
    """East and north (m), shape (2, n)."""
    return np.array([[point["properties"][key] for point in points] for key in ("east_m", "north_m")], np.float64)


def _outline(at: NDArray[np.float64], move: NDArray[np.float64]) -> str:
    """Arrows centered on their points, as the data of one SVG path."""
    tail, tip = at - move / 2, at + move / 2
    strokes = []
    for k in range(at.shape[1]):
        (x0, y0), (x1, y1) = tail[:, k], tip[:, k]
        barbs = [_turned(move[:, k], sign * _HEAD_DEG) for sign in (1, -1)]
        (left_x, left_y), (right_x, right_y) = (tip[:, k] - _HEAD * barb for barb in barbs)
        strokes.append(
            f"M{x0:.1f} {y0:.1f}L{x1:.1f} {y1:.1f}M{left_x:.1f} {left_y:.1f}L{x1:.1f} {y1:.1f}L{right_x:.1f} {right_y:.1f}"
        )
    return "".join(strokes)


def _turned(vector: NDArray[np.float64], degrees: float) -> NDArray[np.float64]:
    sine, cosine = np.sin(np.deg2rad(degrees)), np.cos(np.deg2rad(degrees))
    return np.array([cosine * vector[0] - sine * vector[1], sine * vector[0] + cosine * vector[1]])


def _about(move_m: NDArray[np.float64], used: NDArray[np.bool_], enlarged: float) -> str:
    lengths = np.hypot(*move_m)
    agree = int(used.sum())
    others = "" if agree == used.size else "; the others (red) do not"
    return (
        f"Arrows show how the MSI moves onto the HSI, drawn {enlarged:.3g} times as long as they are: median "
        f"{np.median(lengths):.3g} m, longest {lengths.max():.3g} m. Of {used.size} tie points here, {agree} agree with the "
        f"displacement (cyan){others}."
    )
