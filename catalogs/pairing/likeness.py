"""How alike two scenes are: area in common, season, sun and view, in columns over many scenes."""

from __future__ import annotations

import math

import numpy as np
import shapely
from numpy.typing import NDArray
from shapely.geometry.base import BaseGeometry

from hyperfuse.catalogs.scene import Conditions
from hyperfuse.catalogs.stac.clear_map import clear_share
from hyperfuse.catalogs.stac.items import SceneItem

F64 = NDArray[np.float64]

_UNMAPPED = 0.1
"""Share of clouds that a map may miss: masks and counts differ in what they call thin."""
YEAR_DAYS = 365.2425
"""Mean length of a year."""


def equal_area(footprint: BaseGeometry) -> BaseGeometry:
    """A footprint on the cylinder on which areas are those of the sphere: longitude over the sine of the latitude.

    References
    ----------
    Snyder (1987), Map projections: a working manual, USGS Professional Paper 1395, doi:10.3133/pp1395 (cylindrical
    equal-area).
    """
    return shapely.transform(
        footprint, lambda xy: np.column_stack([np.radians(xy[:, 0]), np.sin(np.radians(xy[:, 1]))])
    )


def seconds(scene: SceneItem) -> float:
    """Acquisition in seconds since 1970, NaN if unknown."""
    return math.nan if scene.time is None else scene.time.timestamp()


def sun_of(told: Conditions) -> tuple[float, float, float]:
    """Unit vector (east, north, up) to the sun, NaN if unknown."""
    if told.sun_elevation_deg is None or told.sun_azimuth_deg is None:
        return math.nan, math.nan, math.nan
    return _unit(math.radians(90 - told.sun_elevation_deg), math.radians(told.sun_azimuth_deg))


def view_of(told: Conditions) -> tuple[float, float]:
    """Angle to the vertical and azimuth (degrees) of the line of sight, NaN where unknown."""
    tilt, turn = told.off_nadir_deg, told.view_azimuth_deg
    return math.nan if tilt is None else tilt, math.nan if turn is None else turn


def sun_difference(suns: F64, sun: tuple[float, float, float]) -> F64:
    """Angles (degrees) between unit vectors, shape (scene, 3), and one."""
    return np.asarray(np.degrees(np.arccos(np.clip(suns @ np.asarray(sun), -1, 1))), np.float64)


def view_difference(views: F64, view: tuple[float, float]) -> F64:
    """Angles (degrees) between lines of sight, (scene, 2) as `view_of`, and one; the least possible without azimuths."""
    tilts, turns = np.radians(views[:, 0]), np.radians(views[:, 1])
    tilt, turn = math.radians(view[0]), math.radians(view[1])
    between = np.where(np.isnan(turns - turn), 0.0, turns - turn)
    cosine = np.cos(tilts) * math.cos(tilt) + np.sin(tilts) * math.sin(tilt) * np.cos(between)
    return np.asarray(np.degrees(np.arccos(np.clip(cosine, -1, 1))), np.float64)


def season_days(times: F64, time: float) -> F64:
    """Days between moments (seconds) on the circle of the year, 0 to half a year."""
    days = np.abs(times - time) / 86400 % YEAR_DAYS
    return np.asarray(np.minimum(days, YEAR_DAYS - days), np.float64)


def cloud_of(scene: SceneItem) -> float:
    """Share of a whole scene that is clouded or masked, NaN if unknown; of map and metadata the worse one counts."""
    known = [share for share in (_mapped(scene, scene.footprint), _told(scene)) if not math.isnan(share)]
    return max(known, default=math.nan)


def knows_clouds(scene: SceneItem) -> bool:
    """Whether a scene's map shows the clouds that its metadata count, about.

    One that shows far fewer was made without a cloud mask: PRISMA L2D and PlanetScope without UDM2 have none.
    """
    mapped = _mapped(scene, scene.footprint)
    return not math.isnan(mapped) and not _told(scene) > mapped + _UNMAPPED


def cloud_over(scene: SceneItem, part: BaseGeometry, *, mapped: bool) -> float:
    """Share of a part of a scene that is clouded or masked, by its map or else by its count for all of it; NaN if unknown."""
    share = _mapped(scene, part) if mapped else math.nan
    return _told(scene) if math.isnan(share) else share


def _mapped(scene: SceneItem, part: BaseGeometry) -> float:
    """Share of a part that is not clear by the scene's map, NaN if it has none there."""
    clear = None if scene.clear is None else clear_share(scene.clear, scene.footprint, part)
    return math.nan if clear is None else 1 - clear


def _told(scene: SceneItem) -> float:
    """Cloud cover by the scene's metadata, NaN if they do not tell."""
    return math.nan if scene.conditions.cloud_cover is None else scene.conditions.cloud_cover


def _unit(zenith: float, azimuth: float) -> tuple[float, float, float]:
    return math.sin(zenith) * math.sin(azimuth), math.sin(zenith) * math.cos(azimuth), math.cos(zenith)
