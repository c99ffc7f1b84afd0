"""Cloud-optimized GeoTIFF, and its QGIS style: for QGIS, EnMAP-Box and everything else that reads GDAL.

Why DEFLATE: its checksum (Adler-32) betrays a flipped bit on reading, TIFF's ZSTD does not.

Why two steps: GDAL's COG driver only copies, so the mosaic goes to a temporary tiled GeoTIFF window by window. That one is
interleaved by band and gets its overviews before the copy: left to the COG driver, which interleaves by pixel, they took
90 s instead of 1 s for 2,000 x 2,000 pixels and 60 bands, because every band of a block was read for each band.
It is not compressed: that took half as long again. So publishing needs 4/3 of the cube's bytes of disk for a while.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import rasterio.shutil
import xarray as xr
from odc.geo.geobox import GeoBox
from rasterio.enums import ColorInterp, Resampling
from rasterio.errors import RasterioError
from rasterio.windows import Window

from hyperfuse.catalogs.errors import HyperFuseError
from hyperfuse.pipeline.composite import true_color
from hyperfuse.pipeline.cores import usable_cores
from hyperfuse.pipeline.geometry.box import Box
from hyperfuse.pipeline.job import store
from hyperfuse.pipeline.job.encoding import NODATA
from hyperfuse.pipeline.products.draft import Asset, BadProduct, FinishedCube
from hyperfuse.pipeline.products.records import ProductFacts
from hyperfuse.pipeline.products.writers import _qgis_style
from hyperfuse.pipeline.products.writers._read_back import open_raster, require_grid, require_packing, require_values

SUFFIX = ".tif"
MEDIA_TYPE = "image/tiff; application=geotiff; profile=cloud-optimized"
BLOCK = 256
"""Edge of a tile of the file."""
CACHE_MB = 128
"""GDAL's block cache; by default it would take 5 % of the machine."""
_SAMPLED_BLOCKS = 16
_GDAL = {
    "GDAL_CACHEMAX": CACHE_MB,
    # What a reader knows must come from the file itself, not from a side file outside the manifest.
    "GDAL_PAM_ENABLED": "NO",
    "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",
}


def write(cube: FinishedCube) -> list[Asset]:
    """Build `<name>.tif` and `<name>.qml`; peak memory does not depend on the size of the scene.

    Raises
    ------
    BadProduct
        If a chunk of the cube does not decode.
    """
    target, workplace = cube.folder / f"{cube.name}{SUFFIX}", cube.workplace
    # Outside the product folder: a killed GDAL leaves a file that opens and reads as zeros, and side files.
    workplace.mkdir(exist_ok=True)
    plain, final = workplace / "plain.tif", workplace / "final.tif"
    for leftover in workplace.iterdir():
        leftover.unlink()
    with rasterio.Env(**_GDAL):
        _write_plain(cube, plain)
        with rasterio.open(plain, "r+") as source:
            source.build_overviews(_levels(tuple(cube.geobox.shape)), Resampling.average)
        rasterio.shutil.copy(
            plain,
            final,
            driver="COG",
            COMPRESS="DEFLATE",
            LEVEL=6,
            PREDICTOR="YES",
            BLOCKSIZE=BLOCK,
            OVERVIEWS="AUTO",
            BIGTIFF="IF_SAFER",
            NUM_THREADS=str(min(usable_cores(), 4)),
        )
    plain.unlink()
    final.replace(target)
    workplace.rmdir()
    return [
        Asset(
            key="fused",
            href=target.name,
            media_type=MEDIA_TYPE,
            title="Fused cube, cloud-optimized GeoTIFF",
            roles=("data", cube.quantity),
        ),
        _qgis_style.write_style(cube),
    ]


def check(folder: Path, expected: ProductFacts) -> None:
    """Read the files as a stranger would: everything they say of themselves, and a sample of the image's blocks.

    Raises
    ------
    BadProduct
        With the property or window that is wrong.
    """
    path = folder / f"{expected.name}{SUFFIX}"
    try:
        # What a viewer wrote beside the file (.aux.xml) is not read: the file itself must say all.
        with rasterio.Env(**_GDAL), rasterio.open(path, driver="GTiff") as source:
            _check_metadata(source, expected, path.name)
            _check_blocks(source, expected, path.name)
    except HyperFuseError:
        raise
    except (RasterioError, OSError, ValueError, LookupError) as error:
        raise BadProduct(f"{path.name}: cannot be read ({error})") from error
    _qgis_style.check_style(folder, expected)


def open_cube(path: Path) -> xr.Dataset:
    """The cube, lazy, in physical units."""
    return open_raster(path)


def _write_plain(cube: FinishedCube, path: Path) -> None:
    array = store.open_array(cube.array)
    n_bands, height, width = array.shape
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        count=n_bands,
        height=height,
        width=width,
        dtype=str(array.dtype),
        crs=cube.crs,
        transform=cube.geobox.affine,
        nodata=NODATA if array.dtype == np.int16 else np.nan,
        tiled=True,
        blockxsize=BLOCK,
        blockysize=BLOCK,
        interleave="band",
        bigtiff="IF_SAFER",
        photometric="MINISBLACK",
        # Every block is written once and whole: filling the file first would write it twice.
        SPARSE_OK=True,
    ) as target:
        _describe(target, cube)
        edge = max(-(-array.chunks[1] // BLOCK), -(-array.chunks[2] // BLOCK)) * BLOCK
        for y0 in range(0, height, edge):
            for x0 in range(0, width, edge):
                box = Box(y0=y0, y1=min(y0 + edge, height), x0=x0, x1=min(x0 + edge, width))
                try:
                    samples = store.read(array, box)
                except (RuntimeError, ValueError, OSError) as error:
                    raise BadProduct(
                        f"{cube.array}: a chunk under {box} does not decode ({error}); run again"
                    ) from error
                target.write(samples, window=Window(x0, y0, box.x1 - x0, box.y1 - y0))


def _levels(shape: Sequence[int]) -> list[int]:
    """Overviews down to one block."""
    return [2**k for k in range(1, 32) if max(shape) > BLOCK * 2 ** (k - 1)]


def _describe(target: Any, cube: FinishedCube) -> None:
    """Scale, unit and spectrum of every band, in all the places where readers look."""
    bands, colors = cube.bands, true_color(cube.bands)
    n_bands = len(bands)
    target.scales = [cube.scale] * n_bands
    target.offsets = [0.0] * n_bands
    target.units = [cube.unit] * n_bands
    target.descriptions = [f"{nm:.1f} nm" for nm in bands.center_nm]
    interpretation = [ColorInterp.gray] + [ColorInterp.undefined] * (n_bands - 1)
    if colors is not None:
        interpretation[0] = ColorInterp.undefined
        for index, color in zip(colors, (ColorInterp.red, ColorInterp.green, ColorInterp.blue), strict=True):
            interpretation[index] = color
    target.colorinterp = interpretation
    for band, (center, width) in enumerate(zip(bands.center_nm, bands.fwhm_nm, strict=True), start=1):
        imagery, plain = {"CENTRAL_WAVELENGTH_UM": _micro(center)}, {"wavelength": repr(float(center))}
        if np.isfinite(width):
            imagery["FWHM_UM"] = _micro(width)
            plain["fwhm"] = repr(float(width))
        target.update_tags(band, ns="IMAGERY", **imagery)
        target.update_tags(band, wavelength_units="Nanometers", **plain)


def _micro(nm: float) -> str:
    """Micrometers with all digits of a double and none of the noise of a division."""
    return f"{nm / 1000.0:.12g}"


def _check_metadata(source: Any, expected: ProductFacts, of: str) -> None:
    found = None if source.crs is None else GeoBox(source.shape, source.transform, source.crs.to_wkt())
    require_grid(found, expected, of)
    require_packing(source, expected, of, units=set(source.units))
    tags = [source.tags(band) for band in source.indexes]
    imagery = [source.tags(band, ns="IMAGERY") for band in source.indexes]
    require_values([float(t["wavelength"]) for t in tags], expected.wavelength_nm, f"{of}, wavelength")
    require_values([float(t.get("fwhm", "nan")) for t in tags], expected.fwhm_nm, f"{of}, fwhm")
    centers = [float(t["CENTRAL_WAVELENGTH_UM"]) * 1000.0 for t in imagery]
    require_values(centers, expected.wavelength_nm, f"{of}, CENTRAL_WAVELENGTH_UM")
    widths = [float(t.get("FWHM_UM", "nan")) * 1000.0 for t in imagery]
    require_values(widths, expected.fwhm_nm, f"{of}, FWHM_UM")
    if set(source.block_shapes) != {(BLOCK, BLOCK)}:
        raise BadProduct(f"{of}: its blocks are {source.block_shapes[0]}, expected tiles of {BLOCK} x {BLOCK}")
    if len(source.overviews(1)) != len(_levels(source.shape)):
        raise BadProduct(f"{of}: it has no overviews")
    if source.tags(ns="IMAGE_STRUCTURE").get("LAYOUT") != "COG":
        raise BadProduct(f"{of}: it is no cloud-optimized GeoTIFF")


def _check_blocks(source: Any, expected: ProductFacts, of: str) -> None:
    rows, cols = (-(-size // BLOCK) for size in expected.shape)
    for block in np.unique(np.linspace(0, rows * cols - 1, _SAMPLED_BLOCKS).round().astype(int)):
        row, col = divmod(int(block), cols)
        height, width = (min(BLOCK, size - n * BLOCK) for n, size in zip((row, col), expected.shape, strict=True))
        try:
            source.read(window=Window(col * BLOCK, row * BLOCK, width, height))
        except RasterioError as error:
            raise BadProduct(f"{of}: block {row}, {col} does not decode ({error})") from error
