"""The area on disk: what it holds, how its Zarr groups are laid out, and its record.

.<product>.<key>.staging/
    valid.zarr        one byte per pixel of each product: nothing, something or everything is valid
    tiles/*.json      the ledger of finished blocks
    seams/*.json      what can be seen of the joins in each of them
    product/          becomes the product folder by one rename
        <name>.zarr           the cube, laid out as that of a fused product
        <name>_source.zarr    source[y, x]: number of the product with the largest weight
    job.json          the key that names the folder
    lock
"""

from __future__ import annotations

import math
import platform
import socket
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field
from pyproj import CRS

from hyperfuse.catalogs.outline import bbox_of, grid_outline, projection
from hyperfuse.catalogs.scene import pixel_size_m
from hyperfuse.catalogs.stac.fused_products import JOB_KEY
from hyperfuse.catalogs.times import rfc3339
from hyperfuse.pipeline.geometry.grids import on_lattice
from hyperfuse.pipeline.job import store
from hyperfuse.pipeline.job.completeness import MosaicSummary
from hyperfuse.pipeline.job.encoding import NODATA, VARIABLE, encoded
from hyperfuse.pipeline.job.json_record import JsonRecord
from hyperfuse.pipeline.job.ledger import Ledger
from hyperfuse.pipeline.job.records import code_version, job_key
from hyperfuse.pipeline.job.staging_folder import staging_folder
from hyperfuse.pipeline.job.template import TITLES, cube_attributes, georeference, write_axes, write_spectrum
from hyperfuse.pipeline.mosaic.inputs import AreaInputs, ProductCube
from hyperfuse.pipeline.mosaic.settings import AreaConfig
from hyperfuse.pipeline.products.draft import WORKPLACE, FinishedCube
from hyperfuse.pipeline.products.provenance import software
from hyperfuse.pipeline.products.records import FacilityFacts, ProductFacts

SCHEMA = "hyperfuse-area/1"
SOURCE = "source"
"""Variable of the source layer."""
_PACKAGES = ("hyperfuse", "numpy", "scipy", "torch", "xarray", "zarr", "rasterio", "pyproj", "odc-geo")


@dataclass(frozen=True, kw_only=True, eq=False)
class Area:
    """One area mosaic on disk."""

    config: AreaConfig
    inputs: AreaInputs
    key: str
    """SHA-256 of everything that decides the content."""

    @classmethod
    def of(cls, config: AreaConfig, inputs: AreaInputs) -> Area:
        """The area of settings and opened products; touches nothing on disk."""
        target = inputs.target
        key = job_key(
            {
                "area": config.decisive(),
                "grid": [str(target.crs), list(target.shape), list(tuple(target.affine)[:6])],
                "inputs": [scene.digest for scene in inputs.scenes],
                "code": code_version(),
            }
        )
        return cls(config=config, inputs=inputs, key=key)

    @property
    def name(self) -> str:
        """Identifier of the product: the name of its folder."""
        return self.config.output.name

    @property
    def folder(self) -> Path:
        """The staging folder."""
        return staging_folder(self.config.output, self.key)

    @property
    def product(self) -> Path:
        """Folder that becomes the product."""
        return self.folder / "product"

    @property
    def fused(self) -> Path:
        """The array of the cube."""
        return self.product / f"{self.name}.zarr" / VARIABLE

    @property
    def source(self) -> Path:
        """The array of the source layer."""
        return self.product / f"{self.name}_source.zarr" / SOURCE

    @property
    def ledger(self) -> Ledger:
        """Finished blocks."""
        return Ledger(self.folder / "tiles")

    @property
    def integer(self) -> bool:
        """Whether samples are stored as int16, which they are if all products store them so."""
        return all(cube.nodata is not None for cube in self._cubes)

    @property
    def dtype(self) -> Literal["int16", "float32"]:
        """Type of the stored samples."""
        return "int16" if self.integer else "float32"

    @property
    def scale(self) -> float:
        """Physical value of one count: the largest of the products, which holds the range of all."""
        return max(cube.scale for cube in self._cubes) if self.integer else 1.0

    @property
    def bytes(self) -> int:
        """Size of the samples that are written, uncompressed; what lies outside of all products takes next to nothing."""
        pixels = sum(math.prod(scene.geobox.shape) for scene in self.inputs.scenes)
        return min(pixels, math.prod(self.inputs.target.shape)) * len(self.inputs.bands) * (2 if self.integer else 4)

    @property
    def _cubes(self) -> list[ProductCube]:
        return [scene.cube for scene in self.inputs.scenes if isinstance(scene.cube, ProductCube)]


def create_area(area: Area) -> None:
    """Lay out both Zarr groups, before any block is blended; what an earlier run left is lost."""
    config, inputs = area.config, area.inputs
    height, width = inputs.target.shape
    area.product.mkdir(exist_ok=True)
    here = georeference(inputs.target)
    cube, layer = area.fused.parent, area.source.parent
    first = inputs.scenes[0]
    store.create_group(cube, here | _described(area))
    store.create_array(
        cube,
        VARIABLE,
        shape=(len(inputs.bands), height, width),
        chunks=(min(config.chunk_bands, len(inputs.bands)), min(config.chunk, height), min(config.chunk, width)),
        dtype=area.dtype,
        fill=NODATA if area.integer else math.nan,
        dims=("wavelength", "y", "x"),
        attributes=cube_attributes(first.quantity, first.unit, scale=area.scale if area.integer else None, timed=False)
        | here,
    )
    write_spectrum(cube, inputs.bands)
    write_axes(cube, inputs.target)
    store.create_group(layer, here | {"coordinates": "spatial_ref", "Conventions": "CF-1.11", "title": "Sources"})
    store.create_array(
        layer,
        SOURCE,
        shape=(height, width),
        chunks=(min(config.chunk, height), min(config.chunk, width)),
        dtype="uint16",
        dims=("y", "x"),
        attributes={
            "long_name": "number of the product with the largest weight, 0 for none",
            "grid_mapping": "spatial_ref",
            "flag_values": list(range(len(inputs.names) + 1)),
            "flag_meanings": " ".join(("none", *(name.replace(" ", "_") for name in inputs.names))),
            "products": [entry | {"number": number} for number, entry in enumerate(_listed(area), start=1)],
        }
        | here,
    )
    write_axes(layer, inputs.target)


def finished_cube(area: Area, *, started: datetime, ended: datetime, summary: MosaicSummary) -> FinishedCube:
    """The area's cube as writers take it, with what only the finished mosaic knows."""
    first, code, n_products = area.inputs.scenes[0], code_version(), len(area.inputs.scenes)
    history = (
        f"{rfc3339(started)} HyperFuse {code}: last run started\n"
        f"{rfc3339(ended)} HyperFuse {code}: {n_products} products blended in {summary.n_tiles} blocks"
    )
    known = store.attributes(area.fused.parent)["hrhsi"]
    more = {"valid_fraction": summary.valid_fraction, "clipped_samples": summary.clipped}
    return FinishedCube(
        name=area.name,
        folder=area.product,
        workplace=area.folder / WORKPLACE,
        key=area.key,
        array=area.fused,
        geobox=area.inputs.target,
        crs=str(area.inputs.target.crs),
        bands=area.inputs.bands,
        dtype=area.dtype,
        scale=area.scale,
        quantity=first.quantity,
        unit=first.unit,
        time=None,
        title="Area mosaic",
        about=f"{n_products} products blended",
        closing={"history": history, "date_created": rfc3339(ended), "hrhsi": known | more},
    )


class AreaTiles(JsonRecord):
    """How the work was cut."""

    core: int
    """Edge of a block, pixels of the area."""
    finished: int
    resumed: int
    """Blocks that an earlier run had finished."""


class AreaProvenance(JsonRecord):
    """How an area mosaic came to be."""

    schema_: str = Field(alias="schema")
    """Name and version of this schema."""
    job_key: str
    """SHA-256 of everything that decides the content."""
    product: ProductFacts
    inputs: list[dict[str, Any]]
    """The products, in the order of their numbers in the source layer."""
    config: dict[str, Any]
    """Settings of the run, all of them."""
    seams: dict[str, Any]
    """Differences of the products where they overlap, and steps of the mosaic where its source changes."""
    tiles: AreaTiles
    software: dict[str, str]
    """Versions by package; `code_version` is that of HyperFuse with a digest of its sources."""
    facility: FacilityFacts
    started: str
    """RFC 3339, UTC."""
    ended: str
    """RFC 3339, UTC."""


def area_provenance(
    area: Area, summary: MosaicSummary, seams: dict[str, Any], *, started: datetime, ended: datetime, resumed: int
) -> AreaProvenance:
    """The record of a finished area.

    Parameters
    ----------
    area : Area
    summary : MosaicSummary
    seams : dict
        By `pipeline.mosaic.seams.seam_record`; goes into the record without the figures per band.
    started, ended : datetime
        UTC, of the run that finished it.
    resumed : int
        Blocks that an earlier run had finished.
    """
    return AreaProvenance(
        schema=SCHEMA,
        job_key=area.key,
        product=_facts(area, summary),
        inputs=_listed(area),
        config=area.config.model_dump(mode="json"),
        seams={
            "pairs": [{k: v for k, v in pair.items() if k not in {"mean", "rms"}} for pair in seams["pairs"]],
            "steps": seams["steps"],
        },
        tiles=AreaTiles(core=area.config.chunk, finished=summary.n_tiles, resumed=resumed),
        software=software(_PACKAGES),
        facility=FacilityFacts(host=socket.gethostname(), platform=platform.platform()),
        started=rfc3339(started),
        ended=rfc3339(ended),
    )


def item_properties(area: Area, facts: AreaProvenance, created: datetime) -> dict[str, Any]:
    """Properties of the STAC item."""
    pixel = pixel_size_m(area.inputs.target)
    sensors = sorted({sensor for product in area.inputs.products for sensor in _sensors(product.provenance["inputs"])})
    now, n_products = rfc3339(created), len(area.inputs.scenes)
    times = sorted(scene.time for scene in area.inputs.scenes if scene.time is not None)
    span = (rfc3339(times[0]), rfc3339(times[-1])) if times else (now, now)
    return {
        "datetime": None,
        "start_datetime": span[0],
        "end_datetime": span[1],
        **({} if times else {"hrhsi:time_unknown": True}),
        "title": f"Area mosaic of {n_products} fused products",
        "description": f"{', '.join(area.inputs.names[:5])}{' ...' * (n_products > 5)} on one grid, blended by distance to edges.",
        "created": now,
        "updated": now,
        "instruments": sensors,
        "gsd": float(f"{math.sqrt(pixel[0] * pixel[1]):.6g}"),
        "license": area.config.license,
        **projection(area.inputs.target),
        "processing:level": "L3",
        "processing:datetime": facts.ended,
        "processing:version": facts.software["code_version"],
        "processing:facility": facts.facility.host,
        "processing:lineage": f"{n_products} products blended over {area.config.feather_px} px from their edges",
        "processing:software": {name: str(value) for name, value in facts.software.items()},
        "processing:expression": {"format": "hyperfuse-area", "expression": facts.config},
        JOB_KEY: area.key,
        "hrhsi:valid_fraction": facts.product.valid_fraction,
        "hrhsi:clipped_samples": facts.product.clipped_samples,
        "hrhsi:seams": facts.seams["steps"],
    }


def _described(area: Area) -> dict[str, Any]:
    """CF, ACDD and our own block; nothing that only the finished mosaic knows."""
    inputs = area.inputs
    west, south, east, north = bbox_of(grid_outline(inputs.target))
    times = sorted(scene.time for scene in inputs.scenes if scene.time is not None)
    span = {"time_coverage_start": rfc3339(times[0]), "time_coverage_end": rfc3339(times[-1])} if times else {}
    return span | {
        "coordinates": "spatial_ref",
        "Conventions": "CF-1.11, ACDD-1.3",
        "id": area.name,
        "naming_authority": "hyperfuse",
        "title": f"{TITLES[inputs.scenes[0].quantity]}, area mosaic of {len(inputs.scenes)} products",
        "summary": f"Weighted mean of {len(inputs.scenes)} fused products; weights rise with the distance to a product's edge.",
        "source": "; ".join(scene.uri for scene in inputs.scenes),
        "license": area.config.license,
        "processing_level": "L3",
        "comment": "x and y are pixel centers; samples that no product has are nodata.",
        "geospatial_lat_min": south,
        "geospatial_lat_max": north,
        "geospatial_lon_min": west,
        "geospatial_lon_max": east,
        "hrhsi": {
            "job_key": area.key,
            "code_version": code_version(),
            "method": "mosaic",
            "inputs": [{"href": s.uri, "sha256": s.digest, "role": "product"} for s in inputs.scenes],
            "manifest": "../manifest.json",
        },
    }


def _facts(area: Area, summary: MosaicSummary) -> ProductFacts:
    """What anybody can check on the product itself."""
    target, bands, first = area.inputs.target, area.inputs.bands, area.inputs.scenes[0]
    return ProductFacts(
        name=area.name,
        crs=str(target.crs),
        crs_wkt=CRS.from_user_input(str(target.crs)).to_wkt(),
        shape=tuple(target.shape),
        transform=tuple(target.affine)[:6],
        wavelength_nm=bands.center_nm.tolist(),
        fwhm_nm=bands.to_json()["fwhm_nm"],
        source_band=bands.source_band.tolist(),
        quantity=first.quantity,
        unit=first.unit,
        dtype=area.dtype,
        scale=area.scale,
        offset=0.0,
        nodata=NODATA if area.integer else None,
        valid_fraction=summary.valid_fraction,
        clipped_samples=summary.clipped,
        formats=area.config.formats,
    )


def _listed(area: Area) -> list[dict[str, Any]]:
    """The products, in the order of their numbers."""
    inputs = area.inputs
    return [
        {
            "id": name,
            "uri": scene.uri,
            "manifest_sha256": scene.digest,
            "job_key": product.job_key,
            "time": None if scene.time is None else scene.time.isoformat(),
            "crs": str(scene.geobox.crs),
            "copied": on_lattice(scene.geobox, inputs.target) is not None,
            "bands_left_out_nm": list(left_out),
        }
        for name, scene, product, left_out in zip(
            inputs.names, inputs.scenes, inputs.products, inputs.left_out, strict=True
        )
    ]


def _sensors(inputs: Any) -> list[str]:
    """Sensors of a product's inputs; those of an area stand in the records of its products."""
    return [entry["sensor"] for entry in inputs.values()] if isinstance(inputs, dict) else []


def encoded_samples(samples: np.ndarray[Any, Any], area: Area) -> tuple[np.ndarray[Any, Any], int]:
    """Samples as they are stored, and how many had to be set to the end of the range."""
    if not area.integer:
        return samples.astype(np.float32), 0
    return encoded(samples, area.scale, np.isfinite(samples))
