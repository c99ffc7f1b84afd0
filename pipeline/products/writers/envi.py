"""ENVI: a flat file of samples, band after band, and a header in words, for ENVI, Spectral Python, EnMAP-Box and IDL.

Why GDAL writes the header and not the samples: it knows every projection's `map info`, but it fills the file line by
line, and a window of a wide scene would have it read and write each line many times. The samples go through a mapping of
the file instead, one group of bands of one chunk at a time, so that few pages are ever in memory.

An ENVI file has no checksum of its own; the manifest has one.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import xarray as xr
from odc.geo.geobox import GeoBox
from rasterio.errors import RasterioError

from hyperfuse.catalogs.errors import HyperFuseError
from hyperfuse.catalogs.times import rfc3339
from hyperfuse.pipeline.composite import true_color
from hyperfuse.pipeline.job import store
from hyperfuse.pipeline.job.encoding import NODATA
from hyperfuse.pipeline.products.draft import Asset, BadProduct, FinishedCube
from hyperfuse.pipeline.products.records import ProductFacts
from hyperfuse.pipeline.products.writers._read_back import (
    n_valid,
    open_raster,
    require_grid,
    require_packing,
    require_valid,
    require_values,
)

SUFFIX = ".img"
"""Of the samples; the header lies beside them as `.hdr`."""
_BAND_GROUP = 32
"""Bands that are mapped at once: 256 lines of each touch about 32 MiB of pages, however long the lines are."""
_LINES = 256
"""Lines of a band that are looked at together."""
_GDAL = {"GDAL_PAM_ENABLED": "NO"}
"""What a reader knows must come from the header, not from a side file."""


def write(cube: FinishedCube) -> list[Asset]:
    """Build `<name>.img` and `<name>.hdr` from the mosaic; peak memory does not depend on the size of the scene."""
    image = cube.folder / f"{cube.name}{SUFFIX}"
    header = image.with_suffix(".hdr")
    for path in (image, header):
        path.unlink(missing_ok=True)
    _write_header(cube, image)
    array = store.open_array(cube.array)
    # A mapped page that finds no space on the disk kills the process, so the space is taken first.
    with image.open("r+b") as file:
        os.posix_fallocate(file.fileno(), 0, array.size * array.dtype.itemsize)
    for box in store.chunk_boxes(array.shape, array.chunks):
        samples = store.read(array, box)
        for first in range(0, array.shape[0], _BAND_GROUP):
            group = slice(first, first + _BAND_GROUP)
            mapped = np.memmap(image, dtype=array.dtype.newbyteorder("<"), mode="r+", shape=array.shape)
            mapped[(group, *box.slices)] = samples[group]
            del mapped
    return [
        Asset(
            key="envi",
            href=image.name,
            media_type="application/octet-stream",
            title="Fused cube, ENVI standard file",
            roles=("data", cube.quantity),
        ),
        Asset(key="envi-header", href=header.name, media_type="text/plain", title="ENVI header", roles=("metadata",)),
    ]


def check(folder: Path, expected: ProductFacts) -> None:
    """Read header and samples as a stranger would.

    Raises
    ------
    BadProduct
        With the property that is wrong.
    """
    path = folder / f"{expected.name}{SUFFIX}"
    try:
        with rasterio.Env(**_GDAL), rasterio.open(path, driver="ENVI") as source:
            _check_header(source, expected, path)
        _check_samples(path, expected)
    except HyperFuseError:
        raise
    except (RasterioError, OSError, ValueError, LookupError) as error:
        raise BadProduct(f"{path.name}: cannot be read ({error})") from error


def open_cube(path: Path) -> xr.Dataset:
    """The cube, lazy, in physical units."""
    return open_raster(path)


def _write_header(cube: FinishedCube, image: Path) -> None:
    bands, colors = cube.bands, true_color(cube.bands)
    height, width = cube.geobox.shape
    fields = {
        "wavelength": _listed(bands.center_nm),
        "fwhm": _listed(bands.fwhm_nm),
        "bbl": _listed(np.ones(len(bands), int)),
        "wavelength_units": "Nanometers",
        "data_units": cube.unit,
    }
    if colors is not None:
        fields["default_bands"] = _listed(np.array(colors) + 1)
    if cube.packed and cube.quantity == "reflectance":
        # GDAL reads the gains that it writes itself; spectral packages read counts per reflectance of 1.
        fields["reflectance_scale_factor"] = f"{1.0 / cube.scale:.12g}"
    if cube.time is not None:
        fields["acquisition_time"] = rfc3339(cube.time)
    with (
        rasterio.Env(**_GDAL),
        rasterio.open(
            image,
            "w",
            driver="ENVI",
            count=len(bands),
            height=height,
            width=width,
            dtype=cube.dtype,
            crs=cube.crs,
            transform=cube.geobox.affine,
            nodata=NODATA if cube.packed else np.nan,
            INTERLEAVE="BSQ",
        ) as target,
    ):
        target.scales = [cube.scale] * len(bands)
        target.update_tags(ns="ENVI", **{key: _braced(value) for key, value in fields.items()})
    # GDAL describes the file by the path where it was built, which is gone when anybody reads it.
    header = image.with_suffix(".hdr")
    about = f"{cube.name}: {cube.about}"
    text = header.read_text(encoding="utf-8").replace(str(image), about.translate({ord("{"): "(", ord("}"): ")"}), 1)
    header.write_text(text, encoding="utf-8")


def _listed(values: Any) -> str:
    """All digits of each number; an unknown width is `nan`, as readers of other languages spell it too."""
    return "{" + ", ".join(f"{value:.12g}" for value in values) + "}"


def _braced(value: str) -> str:
    """Text with blanks stands in braces in an ENVI header."""
    return f"{{{value}}}" if " " in value and not value.startswith("{") else value


def _check_header(source: Any, expected: ProductFacts, path: Path) -> None:
    of = path.name
    found = None if source.crs is None else GeoBox(source.shape, source.transform, source.crs.to_wkt())
    require_grid(found, expected, of)
    header = source.tags(ns="ENVI")
    require_packing(source, expected, of, units={header.get("data_units", "").strip("{}")})
    require_values(_numbers(header["wavelength"]), expected.wavelength_nm, f"{of}, wavelength")
    require_values(_numbers(header["fwhm"]), expected.fwhm_nm, f"{of}, fwhm")
    if header.get("wavelength_units") != "Nanometers":
        raise BadProduct(f"{of}: its wavelengths are in {header.get('wavelength_units')}, expected Nanometers")
    if _numbers(header["bbl"]) != [1.0] * source.count:
        raise BadProduct(f"{of}: its header marks bands as bad, expected good ones only")
    # GDAL reads a file that is cut short as zeros, without a word.
    size = source.count * source.height * source.width * np.dtype(source.dtypes[0]).itemsize
    if path.stat().st_size != size:
        raise BadProduct(f"{of}: {path.stat().st_size} bytes, expected {size}")


def _check_samples(path: Path, expected: ProductFacts) -> None:
    height, width = expected.shape
    shape = (len(expected.wavelength_nm), height, width)
    valid = 0
    for band in range(shape[0]):
        samples = np.memmap(path, dtype=np.dtype(expected.dtype).newbyteorder("<"), mode="r", shape=shape)[band]
        valid += sum(n_valid(samples[first : first + _LINES], expected) for first in range(0, height, _LINES))
    require_valid(valid, int(np.prod(shape)), expected, path.name)


def _numbers(text: str) -> list[float]:
    return [float(value) for value in text.strip("{} \n").split(",")]
