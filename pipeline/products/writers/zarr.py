"""Zarr v3: the group that tiles write, laid out by `pipeline.job.template`; here it is closed, read back and opened."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import xarray as xr

from hyperfuse.catalogs.errors import HyperFuseError
from hyperfuse.pipeline.job import store
from hyperfuse.pipeline.job.encoding import ERRORS
from hyperfuse.pipeline.job.template import TITLES
from hyperfuse.pipeline.products.draft import Asset, BadProduct, FinishedCube
from hyperfuse.pipeline.products.records import ProductFacts
from hyperfuse.pipeline.products.writers import _overviews
from hyperfuse.pipeline.products.writers._read_back import n_valid, require_dataset, require_valid, variables

SUFFIX = ".zarr"
HOLDS_ERRORS = True
MEDIA_TYPE = _overviews.MEDIA_TYPE


def write(cube: FinishedCube) -> list[Asset]:
    """Add what is known only at the end; the samples are there already."""
    group = cube.group
    store.update_attributes(group, cube.closing)
    store.consolidate(group)
    assets = [
        Asset(
            key="zarr",
            href=group.name,
            media_type=MEDIA_TYPE,
            title=f"{cube.title}, Zarr v3 group",
            roles=("data", cube.quantity),
            is_folder=True,
        )
    ]
    if cube.errors is not None:
        assets.append(
            Asset(
                key="standard-error",
                href=f"{group.name}/{ERRORS}",
                media_type=MEDIA_TYPE,
                title=f"Standard error (k = 1) of the {TITLES[cube.quantity].lower()}, Zarr v3 array",
                roles=("uncertainty",),
                extra={"raster:scale": cube.error_scale},
                is_folder=True,
            )
        )
    if cube.lay_out is not None:
        assets.append(_overviews.create(cube, cube.lay_out))
    return assets


def check(folder: Path, expected: ProductFacts) -> None:
    """Read the group as a stranger would, and every chunk.

    Raises
    ------
    BadProduct
        With the file or property that is wrong.
    """
    path = folder / f"{expected.name}{SUFFIX}"
    try:
        with xr.open_zarr(path) as dataset:
            require_dataset(dataset, expected, path.name)
        for name in variables(expected):
            _check_chunks(path / name, expected)
    except HyperFuseError:
        raise
    except (OSError, ValueError, LookupError, RuntimeError, TypeError, AttributeError) as error:
        raise BadProduct(f"{path.name}: cannot be read ({error})") from error
    if expected.overviews:
        _overviews.check(folder, expected)


def open_cube(path: Path) -> xr.Dataset:
    """The cube, lazy, in physical units."""
    dataset: xr.Dataset = xr.open_zarr(path)
    return dataset


def _check_chunks(path: Path, expected: ProductFacts) -> None:
    """Every chunk is there and decodes, and together they hold as many valid samples as the record says."""
    array = store.open_array(path)
    of = f"{path.parent.name}/{path.name}"
    fill = array.fill_value
    if not (fill == expected.nodata or (expected.nodata is None and np.isnan(fill))):
        raise BadProduct(f"{of}: its fill value is {fill}, expected {expected.nodata or 'NaN'}")
    try:
        valid = sum(n_valid(chunk, expected) for chunk in store.chunks(path, array))
    except ValueError as error:
        raise BadProduct(str(error)) from error
    n_found, n_expected = store.n_chunk_files(path, array)
    if n_found != n_expected:
        raise BadProduct(f"{path}: {n_found} chunk files, expected {n_expected}")
    require_valid(valid, array.size, expected, of)
