"""Spectra at a lattice of points, packed so that a page can carry them."""

from __future__ import annotations

import base64
from dataclasses import dataclass

import numpy as np

from hyperfuse.catalogs.bands import Bands
from hyperfuse.pipeline.job.encoding import NODATA
from hyperfuse.pipeline.quality.accumulators import F32
from hyperfuse.pipeline.reports.color_maps import nearest_bands

_POINTS = 40
"""Rows and columns of the lattice, at most."""
_MAX_SAMPLES = 300_000
"""Samples of the packed spectra of one cube, at most."""


@dataclass(frozen=True, kw_only=True)
class SpectrumPreset:
    """A point of the lattice that a button of the page leads to."""

    name: str
    row: int
    """Position on the lattice, not in the product."""
    col: int


def lattice_size(n_bands: int) -> int:
    """Rows and columns of a lattice whose spectra fit into a page."""
    return max(min(_POINTS, int((_MAX_SAMPLES / n_bands) ** 0.5)), 2)


def count_scale(*cubes: F32) -> float:
    """Value of one count with which all cubes fit into 16 bits."""
    highest = max((float(np.nanmax(np.abs(cube))) for cube in cubes if np.isfinite(cube).any()), default=1.0)
    return max(highest, 1e-12) / 32767


def packed(cube: F32, scale: float) -> str:
    """A cube (band, row, col) as little-endian int16 counts of `scale`, shape (row, col, band), in base64; NaN is -32768."""
    counts = np.where(np.isfinite(cube), np.round(np.nan_to_num(cube) / scale), NODATA)
    return base64.b64encode(np.ascontiguousarray(counts.transpose(1, 2, 0), "<i2").tobytes()).decode()


def presets(bands: Bands, cube: F32) -> list[SpectrumPreset]:
    """Pick a bright, a usual, a dark and a vegetated point, by percentiles that leave out extremes of noise.

    Parameters
    ----------
    bands : Bands
    cube : ndarray, shape (band, row, col)
        Spectra at a lattice of points.

    Returns
    -------
    list of SpectrumPreset
        Empty if no spectrum is complete.
    """
    valid = np.isfinite(cube).all(axis=0)
    if not valid.any():
        return []
    brightness = np.where(valid, cube.mean(axis=0), np.nan)
    wanted = {name: (brightness, share) for name, share in (("bright", 98), ("usual", 50), ("dark", 2))}
    pair = nearest_bands(bands, (860.0, 660.0))
    if pair is not None:
        infrared, red = cube[pair[0]], cube[pair[1]]
        total = np.maximum(np.abs(infrared + red), 1e-6)
        wanted["vegetated"] = (np.where(valid, (infrared - red) / total, np.nan), 99)
    chosen = []
    for name, (score, share) in wanted.items():
        row, col = np.unravel_index(np.nanargmin(np.abs(score - np.nanpercentile(score, share))), score.shape)
        chosen.append(SpectrumPreset(name=name, row=int(row), col=int(col)))
    return chosen
