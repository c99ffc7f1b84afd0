"""Where a product lies on the globe: its outline in longitude and latitude, as GeoJSON."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from odc.geo.geobox import GeoBox
from odc.geo.geom import box, polygon
from pyproj import Transformer

_POINTS_PER_EDGE = 8
"""Straight edges of the grid bend in longitude and latitude."""
_WGS84 = "EPSG:4326"


def footprint(geobox: GeoBox) -> dict[str, Any]:
    """Outline of a grid: a GeoJSON Polygon, or a MultiPolygon cut at the date line.

    Longitudes lie in -180..180; seven decimals (a centimeter).
    """
    assert geobox.crs is not None  # noqa: S101 (our invariant: products have a CRS)
    height, width = geobox.shape
    part = np.linspace(0.0, 1.0, _POINTS_PER_EDGE, endpoint=False)
    zero, one = np.zeros_like(part), np.ones_like(part)
    cols = np.concatenate([part, one, 1 - part, zero]) * width
    rows = np.concatenate([zero, part, one, 1 - part]) * height
    a, b, c, d, e, f = tuple(geobox.affine)[:6]
    xs, ys = a * cols + b * rows + c, d * cols + e * rows + f
    transformer = Transformer.from_crs(geobox.crs.proj, _WGS84, always_xy=True)
    lon, lat = (np.asarray(values) for values in transformer.transform(xs, ys))
    if np.ptp(lon) <= 180:
        return {"type": "Polygon", "coordinates": [_ring(list(zip(lon, lat, strict=True)))]}
    # Half of the points lie west of the date line: east of 180 the outline is whole, and can be cut there.
    whole = polygon([(float(x) % 360, float(y)) for x, y in zip(lon, lat, strict=True)], crs=_WGS84)
    halves = ((whole & box(180 * k, -90, 180 * (k + 1), 90, crs=_WGS84), 360 * k) for k in (0, 1))
    rings = [[(x - shift, y) for x, y in half.exterior.points] for half, shift in halves]
    return {"type": "MultiPolygon", "coordinates": [[_ring(ring)] for ring in rings]}


def bbox(shape: dict[str, Any]) -> list[float]:
    """West, south, east, north of a footprint; across the date line west is the larger number, as RFC 7946 has it."""
    parts = shape["coordinates"] if shape["type"] == "MultiPolygon" else [shape["coordinates"]]
    corners = [(np.min(part[0], axis=0), np.max(part[0], axis=0)) for part in parts]
    south, north = (float(end(corner[i][1] for corner in corners)) for end, i in ((min, 0), (max, 1)))
    # One part gives both ends; of two, the first ends at 180 and the second begins at -180.
    return [float(corners[0][0][0]), south, float(corners[-1][1][0]), north]


def _ring(points: Sequence[tuple[float, float]]) -> list[list[float]]:
    """Closed, counterclockwise as RFC 7946 wants outer rings."""
    ring = [[round(float(x), 7), round(float(y), 7)] for x, y in points]
    if ring[0] != ring[-1]:
        ring.append(ring[0])
    area = sum(x0 * y1 - x1 * y0 for (x0, y0), (x1, y1) in pairwise(ring))
    return ring if area > 0 else ring[::-1]
