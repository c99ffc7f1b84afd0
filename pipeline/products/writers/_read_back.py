"""What any reader must find in a product, whatever its format: the grid, the bands and the packing of its record."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import odc.geo.xr  # noqa: F401 (registers .odc)
import rioxarray
import xarray as xr
from numpy.typing import NDArray
from odc.geo.crs import CRS
from odc.geo.geobox import GeoBox
from pyproj import Transformer

from hyperfuse.pipeline.job.encoding import ERRORS, VARIABLE
from hyperfuse.pipeline.products.draft import BadProduct
from hyperfuse.pipeline.products.records import ProductFacts

_CORNER_PX = 1e-3
"""A reader may rebuild the grid from pixel centers; its corners may be off by rounding, not by more."""


def require_grid(found: GeoBox | None, expected: ProductFacts, of: str) -> None:
    """Refuse another grid.

    Raises
    ------
    BadProduct
        If size, CRS or a corner differ.
    """
    wanted = expected.geobox
    if found is None or found.crs is None or wanted.crs is None:
        raise BadProduct(f"{of}: a reader finds no CRS, expected {wanted.crs}")
    if tuple(found.shape) != tuple(wanted.shape):
        raise BadProduct(f"{of}: {tuple(found.shape)} pixels, expected {tuple(wanted.shape)}")
    height, width = wanted.shape
    corners = [(0, 0), (width, 0), (0, height), (width, height)]
    moved = max(max(map(abs, np.subtract(~wanted.affine @ (found.affine @ at), at))) for at in corners)
    if not moved <= _CORNER_PX:
        raise BadProduct(f"{of}: a corner is off by {moved:.3g} pixels: {found.affine!r}, expected {wanted.affine!r}")
    if not _same_crs(found.crs, wanted, [wanted.affine @ at for at in corners]):
        raise BadProduct(f"{of}: its CRS is {found.crs}, expected {wanted.crs}")


def require_values(found: Sequence[Any] | NDArray[Any], expected: Sequence[float | None], of: str) -> None:
    """Refuse other numbers; None and NaN mean the same.

    Raises
    ------
    BadProduct
        If one differs by more than a ten-millionth; the message gives the first.
    """
    wanted = np.array([np.nan if v is None else v for v in expected], dtype=np.float64)
    have = np.array([np.nan if v is None else v for v in found], dtype=np.float64)
    if have.shape != wanted.shape:
        raise BadProduct(f"{of}: {have.size} values, expected {wanted.size}")
    differ = ~np.isclose(have, wanted, rtol=1e-7, atol=0, equal_nan=True)
    if np.any(differ):
        first = int(np.argmax(differ))
        raise BadProduct(f"{of}: value {first + 1} is {have[first]:g}, expected {wanted[first]:g}")


def require_packing(source: Any, expected: ProductFacts, of: str, *, units: set[str | None]) -> None:
    """Refuse a raster of GDAL with another number of bands, or samples that mean something else.

    Parameters
    ----------
    source : rasterio.DatasetReader
    expected : ProductFacts
    of : str
        The file, for the message.
    units : set of str
        Units that the file gives, wherever its format keeps them.

    Raises
    ------
    BadProduct
        With the first property that differs.
    """
    n_bands = len(expected.wavelength_nm)
    if source.count != n_bands:
        raise BadProduct(f"{of}: {source.count} bands, expected {n_bands}")
    nodata = {None if value is None or np.isnan(value) else value for value in source.nodatavals}
    for what, have, wanted in (
        ("sample type", set(source.dtypes), expected.dtype),
        ("nodata", nodata, expected.nodata),
        ("scale", set(source.scales), expected.scale),
        ("offset", set(source.offsets), expected.offset),
        ("unit", units, expected.unit),
    ):
        if have != {wanted}:
            raise BadProduct(f"{of}: its {what} is {' or '.join(map(str, have))}, expected {wanted}")
    if source.nodata is None:
        raise BadProduct(f"{of}: it declares no nodata")


def require_dataset(dataset: xr.Dataset, expected: ProductFacts, of: str) -> None:
    """Refuse a dataset that xarray, rioxarray or odc-geo do not understand as the record has it.

    Raises
    ------
    BadProduct
        With the reader or the property that differs.
    """
    cube = dataset[VARIABLE]
    require_grid(cube.odc.geobox, expected, f"{of}, read with odc-geo")
    found = None if cube.rio.crs is None else GeoBox(cube.rio.shape, cube.rio.transform(), cube.rio.crs.to_wkt())
    require_grid(found, expected, f"{of}, read with rioxarray")
    for name, key in (("wavelength", "wavelength_nm"), ("fwhm", "fwhm_nm"), ("source_band", "source_band")):
        require_values(dataset[name].values, getattr(expected, key), f"{of}/{name}")
    packing = {
        "dtype": (str(cube.encoding["dtype"]), expected.dtype),
        "unit": (cube.attrs.get("units"), expected.unit),
        "scale": (cube.encoding.get("scale_factor", 1.0), expected.scale),
        "offset": (cube.encoding.get("add_offset", 0.0), expected.offset),
    }
    for what, (have, wanted) in packing.items():
        if have != wanted:
            raise BadProduct(f"{of}/{VARIABLE}: its {what} is {have}, expected {wanted}")
    _require_nodata(cube, expected, of)
    if expected.error_scale is not None:
        _require_errors(dataset, expected, of)


def open_raster(path: Path) -> xr.Dataset:
    """A raster that GDAL reads, lazy, in physical units, as every format's samples are opened."""
    cube = rioxarray.open_rasterio(path, mask_and_scale=True, chunks={})
    return cast("xr.DataArray", cube).to_dataset(name=VARIABLE)


def variables(expected: ProductFacts) -> tuple[str, ...]:
    """Names of the cubes that a product's record promises."""
    return (VARIABLE, ERRORS) if expected.error_scale is not None else (VARIABLE,)


def n_valid(samples: NDArray[Any], expected: ProductFacts) -> int:
    """Stored samples that are data."""
    return int(np.count_nonzero(np.isfinite(samples) if expected.nodata is None else samples != expected.nodata))


def require_valid(found: int, size: int, expected: ProductFacts, of: str) -> None:
    """Refuse another number of valid samples than the record's share of all.

    Raises
    ------
    BadProduct
        With both numbers.
    """
    wanted = round(expected.valid_fraction * size)
    if found != wanted:
        raise BadProduct(f"{of}: {found} valid samples, expected {wanted}")


def _require_nodata(cube: xr.DataArray, expected: ProductFacts, of: str) -> None:
    nodata = cube.encoding.get("_FillValue")
    if nodata is None or not (nodata == expected.nodata or (expected.nodata is None and np.isnan(nodata))):
        raise BadProduct(f"{of}/{cube.name}: its nodata is {nodata}, expected {expected.nodata or 'NaN'}")


def _require_errors(dataset: xr.Dataset, expected: ProductFacts, of: str) -> None:
    """Refuse standard errors that are not laid out as the cube, or not tied to it."""
    cube, errors = dataset[VARIABLE], dataset[ERRORS]
    _require_nodata(errors, expected, of)
    for what, have, wanted in (
        ("dimensions", errors.dims, cube.dims),
        ("shape", errors.shape, cube.shape),
        ("unit", errors.attrs.get("units"), expected.unit),
        ("dtype", str(errors.encoding["dtype"]), expected.dtype),
        ("scale", errors.encoding.get("scale_factor", 1.0), expected.error_scale),
    ):
        if have != wanted:
            raise BadProduct(f"{of}/{ERRORS}: its {what} is {have}, expected {wanted}")
    if cube.attrs.get("ancillary_variables") != ERRORS:
        raise BadProduct(f"{of}/{VARIABLE}: it does not name {ERRORS} among its ancillary variables")


def _same_crs(found: CRS, wanted: GeoBox, corners: list[tuple[float, float]]) -> bool:
    assert wanted.crs is not None  # noqa: S101 (require_grid has looked)
    if found == wanted.crs or found.proj.equals(wanted.crs.proj, ignore_axis_order=True):
        return True
    if wanted.crs.epsg is not None:
        return False
    # A CRS without a code may lose its names on the way through GeoTIFF keys; what counts is where it puts the pixels.
    transformer = Transformer.from_crs(wanted.crs.proj, found.proj, always_xy=True)
    pixel = min(abs(wanted.affine.a), abs(wanted.affine.e))
    return all(np.allclose(transformer.transform(*at), at, rtol=0, atol=0.01 * pixel) for at in corners)
