"""Pictures and packed spectra as text, for pages that carry them."""

from __future__ import annotations

import base64
import io
from typing import Any

import matplotlib as mpl
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hyperfuse.catalogs.bands import Bands
from hyperfuse.pipeline.composite import true_color
from hyperfuse.pipeline.job.encoding import NODATA
from hyperfuse.pipeline.quality.accumulators import F32

EDGE_PX = 700
"""Longest side of a picture, in its own pixels."""
STRETCH = (2.0, 98.0)
"""Percentiles that are shown darkest and brightest."""
_INFRARED_NM = (860.0, 660.0, 560.0)
_COLORMAP = "viridis"


def choices(bands: Bands) -> dict[str, tuple[int, ...]]:
    """Names and bands (red, green, blue) of the pictures that a spectrum allows; at least one."""
    wanted = {"true color": true_color(bands), "color infrared": nearest(bands, _INFRARED_NM)}
    picked = {name: chosen for name, chosen in wanted.items() if chosen is not None}
    if not picked:
        last = len(bands) - 1
        picked = {"long, middle and short waves": (last, last // 2, 0)}
    centers = {name: ", ".join(f"{bands.center_nm[band]:.0f}" for band in chosen) for name, chosen in picked.items()}
    return {f"{name} ({centers[name]} nm)": chosen for name, chosen in picked.items()}


def nearest(bands: Bands, wanted_nm: tuple[float, ...]) -> tuple[int, ...] | None:
    """Positions of the bands at some wavelengths; None if one is missing."""
    try:
        return tuple(bands.nearest(nm) for nm in wanted_nm)
    except LookupError:
        return None


def stretch(band: F32) -> tuple[float, float]:
    """Values to show darkest and brightest."""
    shown = band[np.isfinite(band)]
    low, high = np.percentile(shown, STRETCH) if shown.size else (0.0, 1.0)
    return float(low), float(high) if high > low else float(low) + 1.0


def colored(image: F32, ranges: list[tuple[float, float]]) -> NDArray[np.uint8]:
    """Three bands as a picture, shape (y, x, 4); transparent where one is NaN.

    Parameters
    ----------
    image : ndarray, shape (3, y, x)
        Red, green and blue.
    ranges : list of (float, float)
        Darkest and brightest value of each.
    """
    shown = np.isfinite(image).all(axis=0)
    layers = [
        np.clip((np.nan_to_num(band) - low) / (high - low), 0, 1)
        for band, (low, high) in zip(image, ranges, strict=True)
    ]
    layers.append(shown.astype(np.float32))
    return (np.stack(layers, axis=-1) * 255).astype(np.uint8)


def mapped(values: F32) -> tuple[str, float] | None:
    """A map from 0 to its 98th percentile as a picture, and that value; None if there is nothing but NaN."""
    shown = np.isfinite(values)
    if not shown.any():
        return None
    high = float(np.percentile(values[shown], STRETCH[1])) or 1.0
    image = (mpl.colormaps[_COLORMAP](np.clip(np.nan_to_num(values) / high, 0, 1)) * 255).astype(np.uint8)
    image[..., 3] = np.where(shown, 255, 0)
    return png(image), high


def scale_colors(n: int = 9) -> tuple[str, ...]:
    """Colors of such a map from 0 up, evenly."""
    colormap = mpl.colormaps[_COLORMAP]
    return tuple(mpl.colors.to_hex(colormap(k / (n - 1))) for k in range(n))


def png(image: NDArray[np.uint8]) -> str:
    """A picture, shape (y, x, 3 or 4), as a data URI."""
    with io.BytesIO() as file:
        Image.fromarray(image).save(file, format="PNG", optimize=True)
        return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def packing(*cubes: F32) -> float:
    """Value of one count that lets all cubes fit into 16 bits."""
    highest = max((float(np.nanmax(np.abs(cube))) for cube in cubes if np.isfinite(cube).any()), default=1.0)
    return max(highest, 1e-12) / 32767


def packed(cube: F32, scale: float) -> str:
    """A cube (band, row, col) as little-endian int16 counts of `scale`, shape (row, col, band), in base64."""
    counts = np.where(np.isfinite(cube), np.round(np.nan_to_num(cube) / scale), NODATA)
    return base64.b64encode(np.ascontiguousarray(counts.transpose(1, 2, 0), "<i2").tobytes()).decode()


def presets(bands: Bands, cube: F32) -> list[dict[str, Any]]:
    """Points worth a look: a bright, a usual, a dark and a vegetated one, less the extremes of noise.

    Parameters
    ----------
    bands : Bands
    cube : ndarray, shape (band, row, col)
        Spectra at a lattice of points.

    Returns
    -------
    list of dict
        `name`, `row` and `col`, as positions on the lattice.
    """
    valid = np.isfinite(cube).all(axis=0)
    if not valid.any():
        return []
    brightness = np.where(valid, cube.mean(axis=0), np.nan)
    wanted = {name: (brightness, share) for name, share in (("bright", 98), ("usual", 50), ("dark", 2))}
    pair = nearest(bands, (860.0, 660.0))
    if pair is not None:
        infrared, red = cube[pair[0]], cube[pair[1]]
        total = np.maximum(np.abs(infrared + red), 1e-6)
        wanted["vegetated"] = (np.where(valid, (infrared - red) / total, np.nan), 99)
    found = []
    for name, (score, share) in wanted.items():
        row, col = np.unravel_index(np.nanargmin(np.abs(score - np.nanpercentile(score, share))), score.shape)
        found.append({"name": name, "row": int(row), "col": int(col)})
    return found
