"""Three bands for a picture, and their stretch."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hyperfuse.catalogs.bands import Bands

_RED_GREEN_BLUE_NM = (665.0, 560.0, 490.0)
"""Centers of Sentinel-2's B4, B3 and B2."""


_STRETCH = (2.0, 98.0)
"""Percentiles that are shown darkest and brightest."""


def true_color(bands: Bands) -> tuple[int, int, int] | None:
    """Positions of the bands nearest to red, green and blue; None if one is missing."""
    try:
        red, green, blue = (bands.nearest(nm) for nm in _RED_GREEN_BLUE_NM)
    except LookupError:
        return None
    return (red, green, blue) if len({red, green, blue}) == 3 else None


def picture_bands(bands: Bands) -> tuple[int, int, int]:
    """Positions of the three bands of a picture.

    Without visible bands: long, middle and short end of the spectrum, where most materials differ.
    """
    good = np.flatnonzero(bands.good)
    far, middle, near = (int(good[min(good.size * k // 4, good.size - 1)]) for k in (3, 2, 1))
    return true_color(bands) or (far, middle, near)


def stretch_limits(values: NDArray[np.float32]) -> tuple[float, float] | None:
    """Values that are shown darkest and brightest, the 2nd and 98th percentile; None if they are all alike, or none."""
    if not values.size:
        return None
    low, high = np.percentile(values, _STRETCH)
    return (float(low), float(high)) if high > low else None


def stretched(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Values between their 2nd and 98th percentile as 0 to 255; one gray if they are all alike."""
    limits = stretch_limits(values)
    if limits is None:
        return np.full(values.shape, 128, np.uint8)
    low, high = limits
    return np.asarray(np.clip((values - low) / (high - low) * 255.0, 0, 255).round(), np.uint8)
