"""Overviews of the Zarr product: the same cube in halved resolutions, in a group of their own beside it.

`<name>_overviews.zarr` holds the levels `1`, `2`, ... of 2, 4, ... product pixels, each a group laid out like the
product, so that `xr.open_zarr(path, group="2")` opens one and `xr.open_datatree(path)` all. They do not lie inside the
product's group: GDAL opens that as one image only while it holds a single cube.

A sample is the mean of those of its four that are valid, and is itself valid where at least half of those that exist
are: means are of measured values only, and holes neither grow nor shrink from level to level.

References
----------
Zarr convention `multiscales`, version 0.1, https://github.com/zarr-conventions/multiscales
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from affine import Affine
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox

from hyperfuse.catalogs.errors import HyperFuseError
from hyperfuse.pipeline.geometry.box import Box
from hyperfuse.pipeline.job import store
from hyperfuse.pipeline.job.encoding import VARIABLE
from hyperfuse.pipeline.products.draft import Asset, BadProduct, FinishedCube
from hyperfuse.pipeline.products.records import ProductFacts
from hyperfuse.pipeline.products.writers._read_back import require_dataset

MEDIA_TYPE = "application/vnd.zarr; version=3"
SMALLEST_PX = 256
"""Levels are added until the longer side has no more pixels than this."""
_CONVENTION = {
    "uuid": "d35379db-88df-4056-af3a-620245f8e347",
    "name": "multiscales",
    "schema_url": "https://raw.githubusercontent.com/zarr-conventions/multiscales/refs/tags/v0.1/schema.json",
    "spec_url": "https://github.com/zarr-conventions/multiscales/blob/v0.1/README.md",
    "description": "Multiscale layout of zarr datasets",
}


def folder_name(product: str) -> str:
    """Name of the group beside a product's own."""
    return f"{product}_overviews.zarr"


def levels(geobox: GeoBox) -> list[GeoBox]:
    """Grids of the levels, finest first; at least one. Pixels of the far rims reach beyond the product where its size is odd."""
    grids: list[GeoBox] = []
    while not grids or max(grids[-1].shape) > SMALLEST_PX:
        finer = grids[-1] if grids else geobox
        height, width = finer.shape
        grids.append(GeoBox((-(-height // 2), -(-width // 2)), finer.affine @ Affine.scale(2), finer.crs))
    return grids


def halved(samples: NDArray[Any], nodata: int | None) -> NDArray[Any]:
    """Every 2 x 2 samples as one.

    Parameters
    ----------
    samples : ndarray, shape (band, y, x)
        Stored values; the last row and column stand alone where the size is odd.
    nodata : int or None
        Stored value that means no data; None for NaN.

    Returns
    -------
    ndarray, shape (band, ceil(y / 2), ceil(x / 2))
        Of the same type; integers are rounded.
    """
    valid = np.isfinite(samples) if nodata is None else samples != nodata
    exists = np.ones((1, *samples.shape[1:]), np.int8)
    total = _quartered(np.where(valid, samples, 0).astype(np.float32))
    count, of = _quartered(valid.astype(np.int8)), _quartered(exists)
    mean = total / np.maximum(count, 1)
    kept = (2 * count >= of) & (count > 0)
    if np.issubdtype(samples.dtype, np.integer):
        assert nodata is not None  # noqa: S101 (our invariant: packed samples have a nodata value)
        return np.where(kept, np.rint(mean), nodata).astype(samples.dtype)
    return np.where(kept, mean, np.nan).astype(samples.dtype)


def create(cube: FinishedCube, lay_out: Callable[[Path, GeoBox], None]) -> Asset:
    """Build all levels from the finished mosaic.

    Parameters
    ----------
    cube : FinishedCube
    lay_out : callable
        Called with a group and its grid: makes the group with its empty cube, as the product's own is made.
    """
    root, grids = cube.folder / folder_name(cube.name), levels(cube.geobox)
    store.create_group(root, _describe(cube, grids))
    source = store.open_array(cube.array)
    for level, grid in enumerate(grids, start=1):
        group = root / str(level)
        lay_out(group, grid)
        target = store.open_array(group / VARIABLE, write=True)
        for box in store.chunk_boxes(target.shape, target.chunks):
            store.write(target, box, _averaged(source, box, target))
        store.consolidate(group)
        source = store.open_array(group / VARIABLE)
    store.consolidate(root)
    return Asset(
        key="overviews",
        href=root.name,
        media_type=MEDIA_TYPE,
        title="Overviews, Zarr v3 groups",
        roles=("overview",),
        is_folder=True,
    )


def check(folder: Path, expected: ProductFacts) -> None:
    """Read every level as a stranger would, and every chunk.

    Raises
    ------
    BadProduct
        With the file or property that is wrong.
    """
    root = folder / folder_name(expected.name)
    for level, grid in enumerate(levels(expected.geobox), start=1):
        of = f"{root.name}/{level}"
        # Standard errors have no overviews.
        here = expected.model_copy(
            update={"shape": tuple(grid.shape), "transform": tuple(grid.affine)[:6], "error_scale": None}
        )
        try:
            with xr.open_zarr(root, group=str(level)) as dataset:
                require_dataset(dataset, here, of)
            for _ in store.chunks(root / str(level) / VARIABLE, store.open_array(root / str(level) / VARIABLE)):
                pass
        except HyperFuseError:
            raise
        except (OSError, ValueError, LookupError, RuntimeError, TypeError, AttributeError) as error:
            raise BadProduct(f"{of}: cannot be read ({error})") from error


def _averaged(source: store.Array, box: Box, target: store.Array) -> NDArray[Any]:
    """Samples of a block of a level, from those of the level below; a few bands at a time."""
    height, width = source.shape[1:]
    below = box.times(2)
    fine = store.read(source, Box(y0=below.y0, y1=min(below.y1, height), x0=below.x0, x1=min(below.x1, width)))
    nodata = int(source.fill_value) if np.issubdtype(source.dtype, np.integer) else None
    bands, each = fine.shape[0], target.chunks[0]
    coarse = np.empty((bands, *box.shape), source.dtype)
    for first in range(0, bands, each):
        part = slice(first, min(first + each, bands))
        coarse[part] = halved(fine[part], nodata)
    return coarse


def _quartered(values: NDArray[Any]) -> NDArray[Any]:
    """Sums over 2 x 2; what is missing at the far rims counts as zero."""
    height, width = values.shape[1:]
    padded = np.pad(values, ((0, 0), (0, height % 2), (0, width % 2)))
    return np.asarray(padded[:, ::2, ::2] + padded[:, 1::2, ::2] + padded[:, ::2, 1::2] + padded[:, 1::2, 1::2])


def _describe(cube: FinishedCube, grids: list[GeoBox]) -> dict[str, Any]:
    """Attributes of the group that holds the levels."""
    layout: list[dict[str, Any]] = []
    for level, grid in enumerate(grids, start=1):
        entry: dict[str, Any] = {
            "asset": str(level),
            "spatial:shape": list(grid.shape),
            "spatial:transform": list(tuple(grid.affine)[:6]),
        }
        if layout:
            entry |= {
                "derived_from": layout[-1]["asset"],
                "transform": {"scale": [2.0, 2.0], "translation": [0.0, 0.0]},
            }
        layout.append(entry)
    return {
        "zarr_conventions": [_CONVENTION],
        "multiscales": {"layout": layout, "resampling_method": "average"},
        "title": f"Overviews of {cube.name}",
        "comment": "Level 1 has two pixels of the product along each axis, level 2 four; means of valid samples.",
        "hrhsi": {"job_key": cube.key, "product": f"../{cube.group.name}"},
    }
