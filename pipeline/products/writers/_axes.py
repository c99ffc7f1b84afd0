"""The small arrays beside a cube of a Zarr group: bands, pixel centers, grid mapping and time."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from odc.geo.geobox import GeoBox
from pyproj import CRS

from hyperfuse.catalogs.bands import Bands
from hyperfuse.pipeline.job import store

_CF_CRS_UNITS = {"metre": "m", "degree": "degree"}


def write_spectrum(group: Path, bands: Bands) -> None:
    """Wavelength axis and what goes with it."""
    dims, size = ("wavelength",), (len(bands),)
    center = {"standard_name": "radiation_wavelength", "long_name": "band center wavelength", "units": "nm"}
    width = {"long_name": "full width at half maximum of the band", "units": "nm"}
    good = {"long_name": "band carries signal", "flag_values": [0, 1], "flag_meanings": "bad good"}
    source = {"long_name": "position of the band in the hyperspectral input, from 0", "units": "1"}
    for name, dtype, attributes, data in (
        ("wavelength", "float64", center, bands.center_nm),
        ("fwhm", "float64", width, bands.fwhm_nm),
        ("good_band", "int8", good, bands.good),
        ("source_band", "int16", source, bands.source_band),
    ):
        array = np.asarray(data).astype(dtype)
        store.create_array(group, name, shape=size, dtype=dtype, dims=dims, attributes=attributes, data=array)


def write_axes(group: Path, geobox: GeoBox) -> None:
    """Pixel centers and the grid mapping."""
    assert geobox.crs is not None  # noqa: S101 (our invariant: products have a CRS)
    crs = CRS(geobox.crs.proj)
    a, b, c, d, e, f = tuple(geobox.affine)[:6]
    height, width = geobox.shape
    columns, rows = c + a * (np.arange(width) + 0.5), f + e * (np.arange(height) + 0.5)
    for name, attributes, data in (("x", _axis(crs, "x"), columns), ("y", _axis(crs, "y"), rows)):
        store.create_array(
            group, name, shape=data.shape, dtype="float64", dims=(name,), attributes=attributes, data=data
        )
    mapping = crs.to_cf() | {"spatial_ref": crs.to_wkt(), "GeoTransform": " ".join(repr(v) for v in (c, a, b, f, d, e))}
    store.create_array(
        group, "spatial_ref", shape=(), dtype="int32", dims=(), attributes=mapping, data=np.array(0, "int32")
    )


def _axis(crs: CRS, axis: str) -> dict[str, str]:
    if crs.is_geographic:
        name, unit = ("longitude", "degrees_east") if axis == "x" else ("latitude", "degrees_north")
        return {"standard_name": name, "long_name": f"{name} of the pixel center", "units": unit, "axis": axis.upper()}
    unit = crs.axis_info[0].unit_name if crs.axis_info else "metre"
    return {
        "standard_name": f"projection_{axis}_coordinate",
        "long_name": f"{axis} coordinate of the pixel center",
        "units": _CF_CRS_UNITS.get(unit, unit.replace(" ", "_")),
        "axis": axis.upper(),
    }


def write_time(group: Path, time: datetime) -> None:
    """Time of acquisition of the HSI."""
    attributes = {
        "standard_name": "time",
        "long_name": "acquisition of the hyperspectral input",
        "units": "microseconds since 1970-01-01 00:00:00",
        "calendar": "proleptic_gregorian",
        "units_metadata": "leap_seconds: none",
    }
    micros = np.datetime64(time.astimezone(UTC).replace(tzinfo=None), "us").astype("int64")
    store.create_array(group, "time", shape=(), dtype="int64", dims=(), attributes=attributes, data=np.asarray(micros))
