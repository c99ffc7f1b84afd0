"""A published product, as whoever reads it needs it: where its files are, and its record."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import xarray as xr
from pydantic import ValidationError

from hyperfuse.catalogs.notebook import rows_html
from hyperfuse.pipeline.formats import available
from hyperfuse.pipeline.job.product_files import PROVENANCE, QA, REPORT, THUMBNAIL
from hyperfuse.pipeline.products.draft import BadProduct
from hyperfuse.pipeline.products.records import ProductFacts
from hyperfuse.pipeline.products.writers import Writer, writer


@dataclass(frozen=True, kw_only=True)
class Product:
    """A published product."""

    path: Path
    """Its folder."""
    name: str
    """Identifier: the folder's name when it was published."""
    job_key: str
    """SHA-256 of everything that decides its content."""
    formats: tuple[str, ...]
    """Names of the formats that were published."""
    report: Path | None
    """The report to look at; None for a product that was made without."""
    provenance: dict[str, Any] = field(repr=False)
    """The record of how it came to be, as it stands in the file: products of other versions may have other fields."""

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
            name, formats = str(record["product"]["name"]), tuple(map(str, record["product"]["formats"]))
            key = str(record["job_key"])
        except FileNotFoundError as error:
            raise BadProduct(
                f"{path}: no record of a product, {PROVENANCE} is missing; name a product folder"
            ) from error
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise BadProduct(f"{path}: {PROVENANCE} is no record of a product ({error})") from error
        if Path(name).name != name:
            raise BadProduct(f"{path}: {PROVENANCE} gives the name {name!r}, expected a file name")
        report = path / REPORT if (path / REPORT).is_file() else None
        return cls(path=path, name=name, job_key=key, formats=formats, report=report, provenance=record)

    def path_of(self, name: str) -> Path | None:
        """What a reader of a format opens; None if it was not published.

        Raises
        ------
        LookupError
            If it was published by a version that knows more formats.
        """
        return writer(name).path(self.path, self.name) if name in self.formats else None

    @property
    def zarr(self) -> Path | None:
        """The Zarr group, if published."""
        return self.path_of("zarr")

    @property
    def cog(self) -> Path | None:
        """The cloud-optimized GeoTIFF, if published."""
        return self.path_of("cog")

    @property
    def netcdf(self) -> Path | None:
        """The NetCDF file, if published."""
        return self.path_of("netcdf")

    @property
    def envi(self) -> Path | None:
        """The ENVI image, if published; its header lies beside it."""
        return self.path_of("envi")

    @property
    def item(self) -> Path | None:
        """The STAC item, if published."""
        return self.path_of("stac")

    @property
    def files(self) -> dict[str, Path]:
        """What there is to open, by format; the STAC item is the `item`, and the `report` is among them."""
        found = {writer.name: writer.path(self.path, self.name) for writer in self._writers()}
        named = {"item" if name == "stac" else name: path for name, path in found.items()}
        return named if self.report is None else named | {"report": self.report}

    @cached_property
    def facts(self) -> ProductFacts:
        """What its record says of the product itself.

        Raises
        ------
        BadProduct
            If the record is damaged.
        """
        try:
            return ProductFacts.model_validate(self.provenance["product"])
        except ValidationError as error:
            where = ".".join(map(str, error.errors()[0]["loc"]))
            raise BadProduct(f"{self.path}: {PROVENANCE} does not describe a product (product.{where})") from error

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

        Of several formats the first that holds the standard errors too, or else the first.

        Raises
        ------
        LookupError
            If no format with samples was published.
        """
        for found in sorted(self._writers(), key=lambda one: not one.holds_errors):
            if found.open_cube is not None:
                return found.open_cube(found.path(self.path, self.name))
        raise LookupError(f"{self.path}: published as {', '.join(self.formats)}, none of which this version can open")

    def _repr_html_(self) -> str:
        grid = self.provenance.get("product", {})
        quality, registration = self.provenance.get("quality") or {}, self.provenance.get("registration") or {}
        shape, wavelength = grid.get("shape") or (0, 0), grid.get("wavelength_nm") or []
        scores = (quality.get("reduced_resolution") or {}).get(self.method) or {}
        rows = [
            ("folder", self.path),
            ("method", self.method or None),
            ("grid", f"{shape[0]} x {shape[1]} px, {len(wavelength)} bands"),
            ("valid", f"{100 * grid['valid_fraction']:.2f} %" if "valid_fraction" in grid else None),
            ("registration", registration.get("reason")),
            ("quality", quality.get("state")),
            ("at reduced resolution", f"{scores['psnr_db']:.2f} dB, {scores['sam_deg']:.2f} deg" if scores else None),
            *(("", warning) for warning in quality.get("warnings", [])),
            ("report", self.report),
        ]
        return rows_html(f"HyperFuse product {self.name}", rows, self.path / THUMBNAIL)

    def _writers(self) -> list[Writer]:
        """Writers of its formats, as far as this version has them."""
        return [writer(name) for name in self.formats if name in available()]
