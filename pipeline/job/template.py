"""Layout of a product's Zarr group, made before any tile is computed, so that every reader finds CRS, wavelengths and scale by itself.

Why so many attributes: no two readers look in the same place. `xr.open_zarr` needs the group attribute `coordinates` to
see `spatial_ref` as a coordinate, rioxarray and odc-geo then find the CRS in it; GDAL reads `grid_mapping` and Zarr's own
`fill_value`; GeoZarr readers look for the conventions `proj` and `spatial`, which were published under two names each.
One array with two or more axes lies in the group, because GDAL opens such a group as one image.

What only the finished mosaic knows is added by `pipeline.products.writers.zarr`.
"""

from __future__ import annotations

import base64
import math
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from odc.geo.geobox import GeoBox
from pyproj import CRS

from hyperfuse.catalogs.bands import Bands
from hyperfuse.catalogs.outline import bbox_of, grid_outline
from hyperfuse.catalogs.scene import Quantity
from hyperfuse.catalogs.times import rfc3339
from hyperfuse.models import method
from hyperfuse.pipeline.job import store
from hyperfuse.pipeline.job.encoding import ERRORS, NODATA, VARIABLE
from hyperfuse.pipeline.job.folder import StagedJob
from hyperfuse.pipeline.job.records import code_version

TITLES = {"reflectance": "Surface reflectance", "radiance": "Radiance", "digital_number": "Digital number"}
_PROJ, _PROJ_TEXT = (
    "f17cb550-5864-4468-aeb7-f3180cfb622f",
    "Coordinate reference system information for geospatial data",
)
_SPATIAL, _SPATIAL_TEXT = "689b58e2-cf7b-45e0-9fff-9cfc0883d6b4", "Spatial coordinate information"
_CF_CRS_UNITS = {"metre": "m", "degree": "degree"}


def create(job: StagedJob) -> None:
    """Build the group from its template, before any tile is computed.

    Parameters
    ----------
    job : StagedJob
        Staged: its scale and bands are known. What an earlier run left at the same place is lost.
    """
    job.fused.parent.parent.mkdir(exist_ok=True)
    lay_out(job, job.fused.parent, job.grids.product)


def prepare(job: StagedJob) -> None:
    """See that tiles can be written, and that all beside the samples is as this run publishes it.

    Samples of an earlier run stay where it was to write the same ones. It may have had another licence, and its folder may
    hold the product that it has replaced, which has other samples.
    """
    if not _holds_samples_of(job):
        create(job)
        return
    group = job.fused.parent
    if not job.config.publish.uncertainty:
        shutil.rmtree(job.errors, ignore_errors=True)
    store.replace_attributes(group, georeference(job.grids.product) | _describe(job))
    store.replace_attributes(job.fused, _cube_of(job, group) | georeference(job.grids.product))
    _auxiliaries(job, group, job.grids.product)


def _holds_samples_of(job: StagedJob) -> bool:
    """Whether the group was laid out for the job's samples, and as this version does it."""
    layout = _layout(job, job.grids.product)
    try:
        key = store.attributes(job.fused.parent)["hrhsi"]["samples_key"]
        array = store.open_array(job.fused)
    except (OSError, ValueError, LookupError, TypeError):
        return False
    same_fill = np.array_equal(array.fill_value, layout["fill"], equal_nan=True)
    return (
        same_fill
        and key == job.record.samples
        and (array.shape, array.chunks, array.dtype.name) == (layout["shape"], layout["chunks"], layout["dtype"])
        and store.dimensions(array) == layout["dims"]
    )


def lay_out(job: StagedJob, group: Path, geobox: GeoBox) -> None:
    """A group with the job's bands on some grid: its attributes, its axes, and a cube without samples.

    Parameters
    ----------
    job : StagedJob
        Staged.
    group : Path
        What lies there is lost.
    geobox : GeoBox
    """
    here = georeference(geobox)
    store.create_group(group, here | _describe(job))
    store.create_array(group, VARIABLE, attributes=_cube_of(job, group) | here, **_layout(job, geobox))
    _auxiliaries(job, group, geobox)


def _layout(job: StagedJob, geobox: GeoBox) -> dict[str, Any]:
    """Shape, chunks and type of the cube."""
    tiles, n_bands, (height, width) = job.config.tiles, len(job.bands), geobox.shape
    return {
        "shape": (n_bands, height, width),
        "chunks": (min(tiles.chunk_bands, n_bands), min(tiles.chunk, height), min(tiles.chunk, width)),
        "dtype": job.config.publish.dtype,
        "fill": NODATA if job.packed else math.nan,
        "dims": ("wavelength", "y", "x"),
    }


def _auxiliaries(job: StagedJob, group: Path, geobox: GeoBox) -> None:
    """The arrays beside the cube: its axes, bands, CRS and time."""
    write_spectrum(group, job.bands)
    write_axes(group, geobox)
    if job.record.hsi.time is not None:
        _time(group, job.record.hsi.time)


def create_errors(job: StagedJob) -> None:
    """Add the standard errors to the group, laid out as the cube; what an earlier run left there is lost."""
    like = store.open_array(job.fused)
    store.create_array(
        job.errors.parent,
        job.errors.name,
        shape=like.shape,
        chunks=like.chunks,
        dtype=like.dtype.name,
        fill=NODATA if job.packed else math.nan,
        dims=("wavelength", "y", "x"),
        attributes=_errors(job) | georeference(job.grids.product),
    )


def georeference(geobox: GeoBox) -> dict[str, Any]:
    """Conventions `proj` and `spatial`, under the names of v0.1 and those that rioxarray knows."""
    assert geobox.crs is not None  # noqa: S101 (our invariant: products have a CRS)
    box = geobox.boundingbox
    code = {} if geobox.crs.epsg is None else {"proj:code": f"EPSG:{geobox.crs.epsg}"}
    return code | {
        "zarr_conventions": _conventions(),
        "proj:wkt2": geobox.crs.to_wkt(),
        "spatial:dimensions": ["y", "x"],
        "spatial:transform": list(tuple(geobox.affine)[:6]),
        "spatial:shape": list(geobox.shape),
        "spatial:bbox": [box.left, box.bottom, box.right, box.top],
        "spatial:registration": "pixel",
    }


def _conventions() -> list[dict[str, str]]:
    # The specification tells tools to go by UUID; rioxarray goes by the older names, GeoZarr validators by the newer.
    return [
        {
            "uuid": uuid,
            "name": name,
            "schema_url": f"https://raw.githubusercontent.com/{repository}/refs/tags/{tag}/schema.json",
            "spec_url": f"https://github.com/{repository}/blob/{tag}/README.md",
            "description": description,
        }
        for uuid, name, repository, tag, description in (
            (_PROJ, "proj", "zarr-conventions/proj", "v0.1", _PROJ_TEXT),
            (_SPATIAL, "spatial", "zarr-conventions/spatial", "v0.1", _SPATIAL_TEXT),
            (_PROJ, "proj:", "zarr-experimental/geo-proj", "v1", _PROJ_TEXT),
            (_SPATIAL, "spatial:", "zarr-conventions/spatial", "v1", _SPATIAL_TEXT),
        )
    ]


def _describe(job: StagedJob) -> dict[str, Any]:
    """CF, ACDD and our own block; nothing that only the finished mosaic knows."""
    record, geobox = job.record, job.grids.product
    hsi, msi, card = record.hsi, record.msi, method(job.config.method).card
    west, south, east, north = bbox_of(grid_outline(geobox))
    attributes = {
        "coordinates": "spatial_ref",
        "Conventions": "CF-1.11, ACDD-1.3",
        "id": job.name,
        "naming_authority": "hyperfuse",
        "title": f"{TITLES[hsi.quantity]}, fused from {hsi.name} and {msi.name}",
        "summary": (
            f"Image cube with the bands of {hsi.name} ({hsi.sensor}, {hsi.gsd_m:.6g} m) and the pixels of {msi.name} "
            f"({msi.sensor}, {msi.gsd_m:.6g} m), computed by {card.title}."
        ),
        "source": f"{hsi.sensor}: {hsi.uri}; {msi.sensor}: {msi.uri}",
        "references": card.paper,
        "license": job.config.publish.license,
        "processing_level": processing_level(job),
        "comment": "x and y are pixel centers; samples without a valid input are nodata.",
        "geospatial_lat_min": south,
        "geospatial_lat_max": north,
        "geospatial_lon_min": west,
        "geospatial_lon_max": east,
        "hrhsi": {
            "job_key": record.key,
            "samples_key": record.samples,
            "code_version": code_version(),
            "method": job.config.method,
            "inputs": [{"href": s.uri, "sha256": s.sha256, "role": role} for role, s in (("hsi", hsi), ("msi", msi))],
            "scale_ratio": record.grid.ratio,
            "psf_sigma_px": job.observation.psf_sigma_px,
            "registration": job.staged.registration.model_dump(mode="json"),
            "manifest": "../manifest.json",
        },
    }
    if hsi.time is not None:
        times = sorted(time for time in (hsi.time, msi.time) if time is not None)
        attributes |= {"time_coverage_start": rfc3339(times[0]), "time_coverage_end": rfc3339(times[-1])}
    return attributes


def processing_level(job: StagedJob) -> str:
    """L4 if a trained network made the product, otherwise L3."""
    return "L4" if job.spec.parameters else "L3"


def cube_attributes(quantity: Quantity, unit: str, *, scale: float | None, timed: bool) -> dict[str, Any]:
    """Attributes of a cube.

    Parameters
    ----------
    quantity, unit
        Of the samples.
    scale : float or None
        Physical value of one count of an int16 cube; None for floats.
    timed : bool
        Whether the group tells the time.
    """
    auxiliary = ["fwhm", "good_band", "source_band"] + (["time"] if timed else [])
    attributes: dict[str, Any] = {
        "long_name": TITLES[quantity].lower(),
        "units": unit,
        "grid_mapping": "spatial_ref",
        "coordinates": " ".join(auxiliary),
        "cell_methods": "area: mean",
    }
    if quantity == "reflectance":
        attributes["standard_name"] = "surface_bidirectional_reflectance"
    return attributes | _packing(scale, lowest=NODATA + 1)


def _cube(job: StagedJob) -> dict[str, Any]:
    """Attributes of the cube."""
    hsi = job.record.hsi
    return cube_attributes(
        hsi.quantity, hsi.unit, scale=job.staged.scale if job.packed else None, timed=hsi.time is not None
    )


def _cube_of(job: StagedJob, group: Path) -> dict[str, Any]:
    """Attributes of the cube in a group: overviews are of the cube alone, without its standard errors."""
    uncertain = group == job.fused.parent and job.config.publish.uncertainty
    return _cube(job) | ({"ancillary_variables": ERRORS} if uncertain else {})


def _errors(job: StagedJob) -> dict[str, Any]:
    """Attributes of the standard errors."""
    cube = _cube(job)
    kept = {name: cube[name] for name in ("units", "grid_mapping", "coordinates")}
    named = {"standard_name": f"{cube['standard_name']} standard_error"} if "standard_name" in cube else {}
    told = {
        "long_name": f"standard error (k = 1) of the {cube['long_name']}",
        "comment": "calibrated at reduced resolution so that 1.645 standard errors hold 90 % of the errors; see qa.json",
    }
    return told | named | kept | _packing(job.error_scale if job.packed else None, lowest=0)


def _packing(scale: float | None, *, lowest: int) -> dict[str, Any]:
    """How samples are stored: counts of a scale, or floats."""
    if scale is not None:
        # xarray masks by the attribute, GDAL by the array's own fill value: both are needed.
        return {
            "_FillValue": NODATA,
            "scale_factor": scale,
            "add_offset": 0.0,
            "valid_min": lowest,
            "valid_max": -NODATA - 1,
        }
    # NaN is no JSON: xarray stores the bytes of a float fill value, little-endian, in base64.
    return {"_FillValue": base64.standard_b64encode(np.array(np.nan, "<f8").tobytes()).decode()}


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


def _time(group: Path, time: datetime) -> None:
    attributes = {
        "standard_name": "time",
        "long_name": "acquisition of the hyperspectral input",
        "units": "microseconds since 1970-01-01 00:00:00",
        "calendar": "proleptic_gregorian",
        "units_metadata": "leap_seconds: none",
    }
    micros = np.datetime64(time.astimezone(UTC).replace(tzinfo=None), "us").astype("int64")
    store.create_array(group, "time", shape=(), dtype="int64", dims=(), attributes=attributes, data=np.asarray(micros))
