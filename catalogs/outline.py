"""Outlines on the globe: longitude and latitude (degrees), cut at the date line as RFC 7946 wants it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import shapely
from affine import Affine
from numpy.typing import ArrayLike, NDArray
from odc.geo.geobox import GeoBox
from odc.geo.geom import Geometry
from pyproj import Transformer
from shapely.geometry import mapping, shape
from shapely.geometry.base import BaseGeometry

from hyperfuse.catalogs.errors import InputRejected

MAX_POINTS = 10_000
"""Points of an outline, at most."""
_DECIMALS = 7
"""A centimeter."""
_POINTS_PER_EDGE = 8
"""Straight edges of a grid bend in longitude and latitude."""


def outline(lon: ArrayLike, lat: ArrayLike) -> BaseGeometry:
    """The area inside a ring of points, which may cross the date line but holds no pole.

    Parameters
    ----------
    lon, lat : array_like, shape (point,)
        Degrees, in order around the area; longitudes of any turn.

    Returns
    -------
    Polygon or MultiPolygon
        Longitudes in -180..180; outer rings counterclockwise.
    """
    x, y = np.asarray(lon, np.float64), np.asarray(lat, np.float64)
    # Neighbours lie closer than half a turn: unwrapped, the ring is whole, wherever it crosses.
    whole = shapely.Polygon(np.column_stack([np.unwrap(x, period=360.0), y]))
    west, _, east, _ = whole.bounds
    parts = []
    for turn in range(int(np.floor((west + 180) / 360)), int(np.ceil((east + 180) / 360))):
        part = whole.intersection(shapely.box(360.0 * turn - 180, -90, 360.0 * turn + 180, 90))
        parts += [shapely.transform(p, lambda xy, turn=turn: xy - [360.0 * turn, 0]) for p in _polygons(part)]
    rounded = shapely.MultiPolygon([shapely.orient_polygons(p) for p in parts]) if len(parts) != 1 else parts[0]
    return shapely.orient_polygons(shapely.transform(rounded, lambda xy: np.round(xy, _DECIMALS)))


def grid_outline(geobox: GeoBox) -> BaseGeometry:
    """The area that a grid covers, by the outer edges of its pixels."""
    height, width = geobox.shape
    part = np.linspace(0.0, 1.0, _POINTS_PER_EDGE, endpoint=False)
    zero, one = np.zeros_like(part), np.ones_like(part)
    col, row = np.concatenate([part, one, 1 - part, zero]), np.concatenate([zero, part, one, 1 - part])
    return outline(*lonlat(geobox, width * col, height * row))


def lonlat(geobox: GeoBox, col: NDArray[Any], row: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Longitude and latitude (degrees) of places on a grid, in pixels from its upper left corner."""
    a, b, c, d, e, f = tuple(geobox.affine)[:6]
    assert geobox.crs is not None  # noqa: S101 (our invariant: scenes and products have a CRS)
    lon, lat = Transformer.from_crs(geobox.crs.proj, 4326, always_xy=True).transform(
        a * col + b * row + c, d * col + e * row + f
    )
    return np.asarray(lon), np.asarray(lat)


def in_turn(x: ArrayLike, geobox: GeoBox) -> NDArray[np.float64]:
    """X coordinates as a grid counts them: longitudes within half a turn of its center, others unchanged.

    Files count longitudes from -180 to 180, from 0 to 360, or on beyond 180 across the antimeridian; coordinate operations
    end at -180 to 180. Coordinates of the right turn are returned bit by bit.
    """
    values = np.asarray(x, np.float64)
    if geobox.crs is None or not geobox.crs.geographic:
        return values
    height, width = geobox.shape
    center = float((geobox.affine @ (width / 2, height / 2))[0])
    with np.errstate(invalid="ignore"):
        turns = np.round((values - center) / 360.0)
    return np.where(np.isfinite(turns) & (turns != 0), values - 360.0 * np.where(np.isfinite(turns), turns, 0), values)


def on_turn_of(geobox: GeoBox, other: GeoBox) -> GeoBox:
    """The same grid with its longitudes counted as those of another grid; grids that are not geographic are unchanged."""
    if geobox.crs is None or not geobox.crs.geographic:
        return geobox
    height, width = geobox.shape
    center = float((geobox.affine @ (width / 2, height / 2))[0])
    move = float(in_turn(center, other)) - center
    return geobox if move == 0 else GeoBox(geobox.shape, Affine.translation(move, 0) @ geobox.affine, geobox.crs)


def area_on(area: Geometry, geobox: GeoBox) -> Geometry:
    """An area in the CRS of a grid, its longitudes counted as the grid counts them.

    Raises
    ------
    InputRejected
        If the area has no place in that CRS.
    """
    assert geobox.crs is not None  # noqa: S101 (our invariant: scenes and products have a CRS)
    moved = area if area.crs == geobox.crs else area.to_crs(geobox.crs)
    ring = shapely.transform(moved.geom, lambda xy: np.column_stack([in_turn(xy[:, 0], geobox), xy[:, 1]]))
    if not np.isfinite(shapely.get_coordinates(ring)).all():
        raise InputRejected(f"an image lies where the CRS {str(geobox.crs)[:40]} of the other has no coordinates")
    return Geometry(ring, geobox.crs)


def projection(geobox: GeoBox) -> dict[str, Any]:
    """CRS of a grid as STAC has it: a code if it has one, otherwise WKT 2."""
    assert geobox.crs is not None  # noqa: S101 (our invariant: scenes and products have a CRS)
    if geobox.crs.epsg is not None:
        return {"proj:code": f"EPSG:{geobox.crs.epsg}"}
    return {"proj:code": None, "proj:wkt2": geobox.crs.to_wkt()}


def box_of(area: BaseGeometry) -> tuple[float, float, float, float]:
    """West, south, east, north of an area; east is above 180 where it crosses the date line."""
    west, south, east, north = area.bounds
    if east - west > 180 and len(parts := _polygons(area)) > 1:
        west = min(p.bounds[0] for p in parts if p.bounds[0] >= 0)
        east = max(p.bounds[2] for p in parts if p.bounds[0] < 0) + 360
    return west, south, east, north


def bbox_of(area: BaseGeometry) -> list[float]:
    """The same as RFC 7946 has it: across the date line west is the larger number."""
    west, south, east, north = box_of(area)
    return [west, south, east - 360 if east > 180 else east, north]


def to_geojson(area: BaseGeometry) -> dict[str, Any]:
    """The geometry of a STAC item."""
    record: dict[str, Any] = mapping(area)
    return {"type": record["type"], "coordinates": _lists(record["coordinates"])}


def from_geojson(record: object, label: str) -> BaseGeometry:
    """The area of a STAC item's geometry, mended where its rings touch themselves.

    Raises
    ------
    InputRejected
        If it is no area on the globe.
    """
    try:
        with np.errstate(invalid="ignore"):
            area = shape(record)
        points = shapely.get_coordinates(area)
    except (shapely.errors.ShapelyError, ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise InputRejected(
            f"{label}: its geometry is no GeoJSON ({str(error)[:100]}); write the item again"
        ) from error
    on_globe = bool((np.abs(points) <= [180, 90]).all())  # what is no number is not
    if len(points) > MAX_POINTS or not on_globe or area.geom_type not in ("Polygon", "MultiPolygon"):
        raise InputRejected(
            f"{label}: its geometry is a {area.geom_type} of {len(points)} points within {area.bounds}, expected an area of "
            f"at most {MAX_POINTS} points in longitude and latitude"
        )
    if not area.is_valid:
        area = shapely.make_valid(area, method="structure", keep_collapsed=False)
    if not area.area > 0:
        raise InputRejected(f"{label}: its geometry covers nothing; write the item again")
    return area


def _polygons(area: BaseGeometry) -> Sequence[BaseGeometry]:
    return [p for p in shapely.get_parts(area) if p.geom_type == "Polygon" and p.area > 0]


def _lists(coordinates: Any) -> Any:
    return [_lists(c) for c in coordinates] if isinstance(coordinates, (tuple, list)) else float(coordinates)
