"""Zarr v3: the array that tiles write, laid out so that every reader finds CRS, wavelengths and scale by itself.

Why so many attributes: no two readers look in the same place. `xr.open_zarr` needs the group attribute `coordinates` to
see `spatial_ref` as a coordinate, rioxarray and odc-geo then find the CRS in it; GDAL reads `grid_mapping` and Zarr's own
`fill_value`; GeoZarr readers look for the conventions `proj` and `spatial`, which were published under two names each.
One array with two or more axes lies in the group, because GDAL opens such a group as one image.
"""

from __future__ import annotations

import base64
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from odc.geo.geobox import GeoBox

from hyperfuse.catalogs.errors import HyperFuseError
from hyperfuse.catalogs.outline import bbox_of, grid_outline
from hyperfuse.catalogs.scene import Quantity
from hyperfuse.catalogs.times import rfc3339
from hyperfuse.models import method
from hyperfuse.pipeline.job import store
from hyperfuse.pipeline.job.encoding import NODATA
from hyperfuse.pipeline.job.folder import StagedJob
from hyperfuse.pipeline.job.records import code_version
from hyperfuse.pipeline.products.draft import Asset, BadProduct, Draft
from hyperfuse.pipeline.products.writers import _overviews
from hyperfuse.pipeline.products.writers._axes import write_axes, write_spectrum, write_time
from hyperfuse.pipeline.products.writers._read_back import (
    ERRORS,
    VARIABLE,
    n_valid,
    require_dataset,
    require_valid,
    variables,
)

MEDIA_TYPE = _overviews.MEDIA_TYPE
TITLES = {"reflectance": "Surface reflectance", "radiance": "Radiance", "digital_number": "Digital number"}
_PROJ, _PROJ_TEXT = (
    "f17cb550-5864-4468-aeb7-f3180cfb622f",
    "Coordinate reference system information for geospatial data",
)
_SPATIAL, _SPATIAL_TEXT = "689b58e2-cf7b-45e0-9fff-9cfc0883d6b4", "Spatial coordinate information"


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
        "fill": NODATA if _packed(job) else math.nan,
        "dims": ("wavelength", "y", "x"),
    }


def _auxiliaries(job: StagedJob, group: Path, geobox: GeoBox) -> None:
    """The arrays beside the cube: its axes, bands, CRS and time."""
    write_spectrum(group, job.bands)
    write_axes(group, geobox)
    if job.record.hsi.time is not None:
        write_time(group, job.record.hsi.time)


def create_errors(job: StagedJob) -> None:
    """Add the standard errors to the group, laid out as the cube; what an earlier run left there is lost."""
    like = store.open_array(job.fused)
    store.create_array(
        job.errors.parent,
        job.errors.name,
        shape=like.shape,
        chunks=like.chunks,
        dtype=like.dtype.name,
        fill=NODATA if _packed(job) else math.nan,
        dims=("wavelength", "y", "x"),
        attributes=_errors(job) | georeference(job.grids.product),
    )


def write(draft: Draft) -> list[Asset]:
    """Add what is known only at the end; the samples are there already."""
    group = draft.job.fused.parent
    store.update_attributes(group, closing_attributes(draft))
    store.consolidate(group)
    quantity = draft.job.record.hsi.quantity
    cube = Asset(
        key="zarr",
        href=group.name,
        media_type=MEDIA_TYPE,
        title=f"{TITLES[quantity]} cube, Zarr v3 group",
        roles=("data", quantity),
    )
    overviews = [_overviews.create(draft.job, group.parent, lay_out)] if draft.job.config.publish.overviews else []
    if not draft.job.config.publish.uncertainty:
        return [cube, *overviews]
    errors = Asset(
        key="standard-error",
        href=f"{group.name}/{ERRORS}",
        media_type=MEDIA_TYPE,
        title=f"Standard error (k = 1) of the {TITLES[quantity].lower()}, Zarr v3 array",
        roles=("uncertainty",),
        extra={"raster:scale": draft.provenance["product"]["error_scale"]},
    )
    return [cube, errors, *overviews]


def closing_attributes(draft: Draft) -> dict[str, Any]:
    """Attributes of the group that only the finished mosaic knows: its history, and how much of it is valid."""
    job, summary, facts = draft.job, draft.summary, draft.provenance
    created, code = rfc3339(draft.created), facts["software"]["code_version"]
    record = store.attributes(job.fused.parent)["hrhsi"] | {
        "code_version": code,
        "weights_sha256": facts["method"]["weights_sha256"],
        "valid_fraction": summary.valid_fraction,
        "clipped_samples": summary.clipped,
    }
    inputs = " and ".join(f"{scene.name} ({scene.sensor})" for scene in (job.record.hsi, job.record.msi))
    history = (
        f"{facts['started']} HyperFuse {code}: last run started, "
        f"{facts['tiles']['resumed']} of {summary.n_tiles} tiles taken over from earlier runs\n"
        f"{facts['ended']} HyperFuse {code}: {inputs} fused with {job.config.network}\n"
        f"{created} HyperFuse {code}: published"
    )
    return {"history": history, "date_created": created, "hrhsi": record}


def check(folder: Path, expected: dict[str, Any]) -> None:
    """Read the group as a stranger would, and every chunk.

    Raises
    ------
    BadProduct
        With the file or property that is wrong.
    """
    path = folder / f"{expected['name']}.zarr"
    try:
        with xr.open_zarr(path) as dataset:
            require_dataset(dataset, expected, path.name)
        for name in variables(expected):
            _check_chunks(path / name, expected)
    except HyperFuseError:
        raise
    except (OSError, ValueError, LookupError, RuntimeError, TypeError, AttributeError) as error:
        raise BadProduct(f"{path.name}: cannot be read ({error})") from error
    if expected.get("overviews"):
        _overviews.check(folder, expected)


def _packed(job: StagedJob) -> bool:
    return job.config.publish.dtype == "int16"


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
    hsi, msi, card = record.hsi, record.msi, method(job.config.network).card
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
            "method": job.config.network,
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


def _cube(job: StagedJob) -> dict[str, Any]:
    """Attributes of the cube."""
    hsi = job.record.hsi
    return cube_attributes(
        hsi.quantity, hsi.unit, scale=job.staged.scale if _packed(job) else None, timed=hsi.time is not None
    )


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
    return told | named | kept | _packing(job.error_scale if _packed(job) else None, lowest=0)


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


def _check_chunks(path: Path, expected: dict[str, Any]) -> None:
    """Every chunk is there and decodes, and together they hold as many valid samples as the record says."""
    array = store.open_array(path)
    of = f"{path.parent.name}/{path.name}"
    fill = array.fill_value
    if not (fill == expected["nodata"] or (expected["nodata"] is None and np.isnan(fill))):
        raise BadProduct(f"{of}: its fill value is {fill}, expected {expected['nodata'] or 'NaN'}")
    try:
        valid = sum(n_valid(chunk, expected) for chunk in store.chunks(path, array))
    except ValueError as error:
        raise BadProduct(str(error)) from error
    n_found, n_expected = store.n_chunk_files(path, array)
    if n_found != n_expected:
        raise BadProduct(f"{path}: {n_found} chunk files, expected {n_expected}")
    require_valid(valid, array.size, expected, of)
