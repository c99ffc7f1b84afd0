"""A published product, as whoever reads it needs it: where its files are, and its record."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import rioxarray
import xarray as xr

from hyperfuse.pipeline.job.encoding import VARIABLE
from hyperfuse.pipeline.job.product_files import PROVENANCE, QA, REPORT
from hyperfuse.pipeline.products.draft import BadProduct


@dataclass(frozen=True, kw_only=True)
class Product:
    """A published product."""

    path: Path
    """Its folder."""
    name: str
    """Identifier: the folder's name when it was published."""
    job_key: str
    """SHA-256 of everything that decides its content."""
    zarr: Path | None
    """The Zarr group, if published."""
    cog: Path | None
    """The cloud-optimized GeoTIFF, if published."""
    netcdf: Path | None
    """The NetCDF file, if published."""
    envi: Path | None
    """The ENVI image, if published; its header lies beside it."""
    item: Path | None
    """The STAC item, if published."""
    report: Path | None
    """The report to look at; None for a product that was made without."""
    provenance: dict[str, Any]
    """The record of how it came to be."""

    @classmethod
    def load(cls, path: Path) -> Product:
        """A product as its provenance describes it; nothing is checked, see `verify`.

        Raises
        ------
        BadProduct
            If the folder holds no provenance record.
        """
        try:
            record = json.loads((path / PROVENANCE).read_bytes())
            name, formats = str(record["product"]["name"]), list(record["product"]["formats"])
            key = str(record["job_key"])
        except FileNotFoundError as error:
            raise BadProduct(
                f"{path}: no record of a product, {PROVENANCE} is missing; name a product folder"
            ) from error
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise BadProduct(f"{path}: {PROVENANCE} is no record of a product ({error})") from error
        if Path(name).name != name:
            raise BadProduct(f"{path}: {PROVENANCE} gives the name {name!r}, expected a file name")
        place = {
            field: path / f"{name}.{suffix}" if fmt in formats else None
            for field, (fmt, suffix) in {
                "zarr": ("zarr", "zarr"),
                "cog": ("cog", "tif"),
                "netcdf": ("netcdf", "nc"),
                "envi": ("envi", "img"),
                "item": ("stac", "json"),
            }.items()
        }
        report = path / REPORT if (path / REPORT).is_file() else None
        return cls(path=path, name=name, job_key=key, report=report, provenance=record, **place)

    @property
    def method(self) -> str:
        """Name of the method that made it; empty for a product that was put together from others."""
        return str(self.provenance.get("method", {}).get("name", ""))

    def scores(self) -> dict[str, Any] | None:
        """Content of `qa.json`; None for a product that was made without.

        Raises
        ------
        BadProduct
            If the file is damaged.
        """
        path = self.path / QA
        if not path.is_file():
            return None
        try:
            return dict(json.loads(path.read_bytes()))
        except (OSError, ValueError, TypeError) as error:
            raise BadProduct(f"{path}: cannot be read as scores ({error})") from error

    def open(self) -> xr.Dataset:
        """The cube, lazy, in physical units; variable `reflectance` with dimensions wavelength (or band), y, x.

        Raises
        ------
        LookupError
            If no format with samples was published.
        """
        if self.zarr is not None:
            dataset: xr.Dataset = xr.open_zarr(self.zarr)
            return dataset
        if self.netcdf is not None:
            return xr.open_dataset(self.netcdf, engine="netcdf4", chunks={})
        raster = self.cog or self.envi
        if raster is not None:
            cube = rioxarray.open_rasterio(raster, mask_and_scale=True, chunks={})
            return cast("xr.DataArray", cube).to_dataset(name=VARIABLE)
        raise LookupError(f"{self.path}: none of zarr, netcdf, cog and envi among its formats")
