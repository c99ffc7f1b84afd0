"""Pictures from arrays, as data URIs: composites of three bands, and maps of one quantity in colors."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass

import matplotlib as mpl
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hyperfuse.catalogs.bands import Bands
from hyperfuse.pipeline.composite import true_color
from hyperfuse.pipeline.quality.accumulators import F32

STRETCH = (2.0, 98.0)
"""Percentiles that are shown darkest and brightest."""
_EDGE_PX = 700
"""Longest side of a picture, in its own pixels."""
_INFRARED_NM = (860.0, 660.0, 560.0)
_COLORMAP = "viridis"


@dataclass(frozen=True, kw_only=True)
class Map:
    """One quantity as a picture in colors."""

    title: str
    unit: str
    image: str
    """Data URI of a PNG; transparent where the quantity is NaN."""
    high: float
    """Value of the last color; the first is 0."""
    colors: tuple[str, ...]
    """Colors from 0 to `high`, evenly spaced."""


def picture_step(height: int, width: int) -> int:
    """Pixels of a scene per pixel of its picture, along each axis."""
    return -(-max(height, width) // _EDGE_PX)


def composite_bands(bands: Bands) -> dict[str, tuple[int, ...]]:
    """Titles of the composites that the bands allow, with their band positions (red, green, blue); at least one."""
    wanted = {"true color": true_color(bands), "color infrared": nearest_bands(bands, _INFRARED_NM)}
    possible = {name: chosen for name, chosen in wanted.items() if chosen is not None}
    if not possible:
        last = len(bands) - 1
        possible = {"long, middle and short waves": (last, last // 2, 0)}
    centers = {name: ", ".join(f"{bands.center_nm[band]:.0f}" for band in chosen) for name, chosen in possible.items()}
    return {f"{name} ({centers[name]} nm)": chosen for name, chosen in possible.items()}


def nearest_bands(bands: Bands, wanted_nm: tuple[float, ...]) -> tuple[int, ...] | None:
    """Positions of the bands at some wavelengths; None if one is missing."""
    try:
        return tuple(bands.nearest(nm) for nm in wanted_nm)
    except LookupError:
        return None


def stretch(band: F32) -> tuple[float, float]:
    """Values to show darkest and brightest."""
    finite = band[np.isfinite(band)]
    low, high = np.percentile(finite, STRETCH) if finite.size else (0.0, 1.0)
    return float(low), float(high) if high > low else float(low) + 1.0


def color_composite(image: F32, ranges: list[tuple[float, float]]) -> str:
    """Three bands as a picture, transparent where one is NaN.

    Parameters
    ----------
    image : ndarray, shape (3, y, x)
        Red, green and blue.
    ranges : list of (float, float)
        Darkest and brightest value of each.

    Returns
    -------
    str
        Data URI of a PNG.
    """
    visible = np.isfinite(image).all(axis=0)
    layers = [
        np.clip((np.nan_to_num(band) - low) / (high - low), 0, 1)
        for band, (low, high) in zip(image, ranges, strict=True)
    ]
    layers.append(visible.astype(np.float32))
    return _png((np.stack(layers, axis=-1) * 255).astype(np.uint8))


def color_map(title: str, values: F32, unit: str) -> Map | None:
    """Show a quantity from 0 to its 98th percentile.

    Parameters
    ----------
    title : str
    values : ndarray, shape (y, x)
        Not negative; NaN where there is no value.
    unit : str

    Returns
    -------
    Map or None
        None if all values are NaN.
    """
    visible = np.isfinite(values)
    if not visible.any():
        return None
    high = float(np.percentile(values[visible], STRETCH[1])) or 1.0
    image = (mpl.colormaps[_COLORMAP](np.clip(np.nan_to_num(values) / high, 0, 1)) * 255).astype(np.uint8)
    image[..., 3] = np.where(visible, 255, 0)
    return Map(title=title, unit=unit, image=_png(image), high=high, colors=scale_colors())


def scale_colors(n: int = 9) -> tuple[str, ...]:
    """The colors of `color_map` from 0 up, evenly spaced, as hexadecimal RGB."""
    colormap = mpl.colormaps[_COLORMAP]
    return tuple(mpl.colors.to_hex(colormap(k / (n - 1))) for k in range(n))


def _png(image: NDArray[np.uint8]) -> str:
    """A picture, shape (y, x, 4), as a data URI."""
    with io.BytesIO() as file:
        Image.fromarray(image).save(file, format="PNG", optimize=True)
        return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
