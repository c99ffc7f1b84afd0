"""NetCDF-4 after the CF conventions: for xarray, Panoply, CDO and archives that take nothing else.

It is the Zarr group in another container: the same variables, names and attributes, less those that only Zarr readers
look for. Every chunk is compressed and carries a Fletcher-32 checksum, so that a flipped bit is an error on reading.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import netCDF4
import numpy as np
import xarray as xr

from hyperfuse.catalogs.errors import HyperFuseError
from hyperfuse.catalogs.formats.arrays import refuse_hdf5_surprises
from hyperfuse.pipeline.job import store
from hyperfuse.pipeline.job.encoding import ERRORS, NODATA, VARIABLE
from hyperfuse.pipeline.products.draft import Asset, BadProduct, FinishedCube
from hyperfuse.pipeline.products.records import ProductFacts
from hyperfuse.pipeline.products.writers._read_back import (
    n_valid,
    require_dataset,
    require_valid,
    variables,
)

SUFFIX = ".nc"
HOLDS_ERRORS = True
_LEVEL = 4
_ZARR_ONLY = ("zarr_conventions", "proj:", "spatial:")
"""GeoZarr's conventions; a colon is no character of a CF attribute's name."""
_LIKE_SAMPLES = {"valid_min", "valid_max", "flag_values"}
"""Attributes that CF wants in the type of the variable itself."""


def write(cube: FinishedCube) -> list[Asset]:
    """Build `<name>.nc` from the mosaic, chunk by chunk; peak memory does not depend on the size of the scene."""
    target, group = cube.folder / f"{cube.name}{SUFFIX}", cube.group
    target.unlink(missing_ok=True)
    dataset: Any
    with netCDF4.Dataset(target, "w", format="NETCDF4") as dataset:
        dataset.set_auto_maskandscale(False)
        _set_attributes(dataset, store.attributes(group) | cube.closing)
        array = store.open_array(cube.array)
        for dimension, size in zip(("wavelength", "y", "x"), array.shape, strict=True):
            dataset.createDimension(dimension, size)
        for path in sorted(path.parent for path in group.glob("*/zarr.json")):
            if path.name not in {VARIABLE, ERRORS}:
                _copy(dataset, path)
        for path in (cube.array,) if cube.errors is None else (cube.array, cube.errors):
            _copy_cube(dataset, path)
    return [
        Asset(
            key="netcdf",
            href=target.name,
            media_type="application/x-netcdf",
            title="Fused cube, NetCDF-4 after the CF conventions",
            roles=("data", cube.quantity),
        )
    ]


def check(folder: Path, expected: ProductFacts) -> None:
    """Read the file as a stranger would, and every chunk of it.

    Raises
    ------
    BadProduct
        With the property that is wrong.
    """
    path = folder / f"{expected.name}{SUFFIX}"
    try:
        refuse_hdf5_surprises(path)
        with xr.open_dataset(path, engine="netcdf4") as dataset:
            require_dataset(dataset, expected, path.name)
        with netCDF4.Dataset(path) as dataset:
            for name in variables(expected):
                cube = dataset[name]
                cube.set_auto_maskandscale(False)
                boxes = store.chunk_boxes(cube.shape, cube.chunking())
                valid = sum(n_valid(cube[(slice(None), *box.slices)], expected) for box in boxes)
                require_valid(valid, int(np.prod(cube.shape)), expected, f"{path.name}/{name}")
    except BadProduct:
        raise
    except (HyperFuseError, OSError, ValueError, LookupError, RuntimeError, TypeError, AttributeError) as error:
        raise BadProduct(f"{path.name}: cannot be read ({error})") from error


def open_cube(path: Path) -> xr.Dataset:
    """The cube, lazy, in physical units."""
    return xr.open_dataset(path, engine="netcdf4", chunks={})


def _copy_cube(dataset: Any, path: Path) -> None:
    """A cube of the Zarr group, chunk by chunk."""
    array = store.open_array(path)
    cube = dataset.createVariable(
        path.name,
        array.dtype.name,
        ("wavelength", "y", "x"),
        chunksizes=array.chunks,
        compression="zlib",
        complevel=_LEVEL,
        shuffle=True,
        fletcher32=True,
        fill_value=NODATA if array.dtype == np.int16 else np.nan,
    )
    cube.set_auto_maskandscale(False)
    _set_attributes(cube, store.attributes(path))
    for box in store.chunk_boxes(array.shape, array.chunks):
        cube[(slice(None), *box.slices)] = store.read(array, box)


def _copy(dataset: Any, path: Path) -> None:
    """A coordinate or grid mapping of the Zarr group."""
    array = store.open_array(path)
    variable = dataset.createVariable(path.name, array.dtype.name, store.dimensions(array))
    variable.set_auto_maskandscale(False)
    _set_attributes(variable, store.attributes(path))
    variable[...] = np.asarray(array[...])


def _set_attributes(owner: Any, attributes: dict[str, Any]) -> None:
    for name, value in attributes.items():
        if name == "_FillValue" or name.startswith(_ZARR_ONLY):
            continue  # the fill value is set when the variable is made
        if isinstance(value, dict):
            owner.setncattr(name, json.dumps(value, sort_keys=True, allow_nan=False))
        elif name in _LIKE_SAMPLES:
            owner.setncattr(name, np.asarray(value, owner.dtype))
        else:
            owner.setncattr(name, value)
