"""Cloud, sun and view of a product from what its metadata happen to tell.

They rank partners and open nothing, so a product is never refused over them: what is no number, or out of range, is
taken as unknown.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, SupportsFloat

from hyperfuse.catalogs.scene import Conditions

Told = SupportsFloat | str | None
"""A number as metadata give it: text, number, or nothing."""


def conditions(
    *,
    cloud_percent: Told = None,
    sun_elevation: Told = None,
    sun_zenith: Told = None,
    sun_azimuth: Told = None,
    off_nadir: Told = None,
    view_azimuth: Told = None,
) -> Conditions:
    """Conditions from numbers in the units of metadata: percent and degrees; azimuths of any turn.

    The sun is given by its elevation or by its zenith angle.
    """
    cloud, zenith = _number(cloud_percent), _number(sun_zenith)
    elevation = _number(sun_elevation) if zenith is None else 90.0 - zenith
    tilt = _number(off_nadir)
    return Conditions(
        cloud_cover=None if cloud is None or not 0 <= cloud <= 100 else cloud / 100,
        sun_elevation_deg=elevation if elevation is not None and abs(elevation) <= 90 else None,
        sun_azimuth_deg=_turn(sun_azimuth),
        off_nadir_deg=abs(tilt) if tilt is not None and abs(tilt) <= 90 else None,
        view_azimuth_deg=_turn(view_azimuth),
    )


def stac_conditions(properties: Mapping[str, Any]) -> Conditions:
    """Conditions that the properties of a STAC item tell, by its extensions eo and view."""
    return conditions(
        cloud_percent=properties.get("eo:cloud_cover"),
        sun_elevation=properties.get("view:sun_elevation"),
        sun_azimuth=properties.get("view:sun_azimuth"),
        off_nadir=properties.get("view:off_nadir"),
        view_azimuth=properties.get("view:azimuth"),
    )


def tilt_deg(across: Told, along: Told) -> float | None:
    """Angle (degrees) to the vertical of a line of sight that is tilted across and along the track."""
    x, y = _number(across), _number(along)
    if x is None or y is None or max(abs(x), abs(y)) >= 90:
        return None
    return math.degrees(math.atan(math.hypot(math.tan(math.radians(x)), math.tan(math.radians(y)))))


def _number(told: Told) -> float | None:
    try:
        number = float(told) if told is not None else math.nan
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def _turn(told: Told) -> float | None:
    number = _number(told)
    return None if number is None or abs(number) > 360 else number % 360.0
