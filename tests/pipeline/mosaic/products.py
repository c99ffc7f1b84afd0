"""Small published products with chosen samples, without a fusion."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from affine import Affine
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox

from hyperfuse.pipeline.products.publish import publish
from tests.pipeline.conftest import build_job

CRS = "EPSG:32633"
GSD = 10.0
ORIGIN = (500_000.0, 5_000_000.0)
N_BANDS = 3
TIMES = [datetime(2026, 6, day, 10, tzinfo=UTC) for day in range(1, 29)]


def grid(row: int, col: int, height: int, width: int, *, crs: str = CRS) -> GeoBox:
    """Part of the lattice on which most products of these tests lie."""
    affine = Affine(GSD, 0, ORIGIN[0] + col * GSD, 0, -GSD, ORIGIN[1] - row * GSD)
    return GeoBox((height, width), affine, crs)


def ground(height: int, width: int, n_bands: int = N_BANDS) -> NDArray[np.float32]:
    """A cube whose samples are whole counts of 1e-4 and tell their place."""
    band, row, col = np.ogrid[1 : n_bands + 1, :height, :width]
    return ((500 * band + 7 * row + 11 * col + (row * col) % 13) * 1e-4).astype(np.float32)


def product(folder: Path, name: str, cube: NDArray[np.float32], geobox: GeoBox, **options: Any) -> Path:
    """Publish a cube, NaN where invalid; `options` are those of `tests.pipeline.conftest.build_job`."""
    settings: dict[str, Any] = {
        "shape": cube.shape[1:], "n_bands": cube.shape[0], "geobox": geobox, "crs": str(geobox.crs), "cube": cube,
        "formats": ("zarr", "stac"), "core": 64, "chunk": 32,
    }  # fmt: skip
    return publish(build_job(folder, name=name, **(settings | options))).path
