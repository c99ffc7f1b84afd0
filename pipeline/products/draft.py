"""A finished mosaic on its way to a product, and the assets that writers make of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, Literal

from odc.geo.geobox import GeoBox

from hyperfuse.catalogs.bands import Bands
from hyperfuse.catalogs.errors import HyperFuseError
from hyperfuse.catalogs.scene import Quantity
from hyperfuse.catalogs.times import rfc3339
from hyperfuse.pipeline.job import store
from hyperfuse.pipeline.job.completeness import MosaicSummary
from hyperfuse.pipeline.job.folder import StagedJob
from hyperfuse.pipeline.job.template import TITLES, lay_out
from hyperfuse.pipeline.products.records import Provenance

WORKPLACE = "writing"
"""Folder of a staging folder in which writers keep what is not finished."""


class BadProduct(HyperFuseError):
    """A product is not what its record says."""

    exit_code = 3
    reason = "bad_product"


@dataclass(frozen=True, kw_only=True)
class Asset:
    """A file or folder of the product, as the STAC item lists it."""

    key: str
    """Key in the item."""
    href: str
    """Path relative to the product folder."""
    media_type: str
    title: str
    roles: tuple[str, ...]
    extra: dict[str, Any] = field(default_factory=dict)
    """Further STAC fields of the asset."""
    is_folder: bool = False
    """Whether it is a folder of files that are read together."""


@dataclass(frozen=True, kw_only=True)
class FinishedCube:
    """A finished cube in a Zarr group as `pipeline.job.template` lays it out, and all that a writer may say of it."""

    name: str
    """Identifier of the product; every file of a format begins with it."""
    folder: Path
    """Where the product is built: writers put their files here."""
    workplace: Path
    """A folder on the same file system, outside of the product, that a writer may make, and then removes."""
    key: str
    """SHA-256 of everything that decides the content."""
    array: Path
    """The array (band, y, x); its group holds the spectrum and the axes."""
    geobox: GeoBox
    """Its grid."""
    crs: str
    """CRS of the grid as the record has it."""
    bands: Bands
    """Its bands."""
    dtype: Literal["int16", "float32"]
    """Type of the stored samples."""
    scale: float
    """Physical value of one stored count; 1 for floats."""
    quantity: Quantity
    """What the samples measure."""
    unit: str
    """Unit of the physical values."""
    time: datetime | None
    """Acquisition of the hyperspectral input; None if it is not known, or there are several."""
    title: str
    """What it is, in two or three words."""
    about: str
    """What it was made of, in a line."""
    closing: dict[str, Any]
    """Attributes of the group that only the finished cube knows: its history, and how much of it is valid."""
    errors: Path | None = None
    """The array of its standard errors, if it has some."""
    error_scale: float = 1.0
    """Physical value of one count of a standard error."""
    lay_out: Callable[[Path, GeoBox], None] | None = None
    """Makes a group like the cube's own, without samples, on another grid; None where no overviews are wanted."""

    @property
    def group(self) -> Path:
        """The Zarr group."""
        return self.array.parent

    @property
    def packed(self) -> bool:
        """Whether samples are stored as int16 counts."""
        return self.dtype == "int16"


@dataclass(frozen=True, kw_only=True)
class Draft:
    """A finished mosaic and everything that its product's records say of it."""

    job: StagedJob
    summary: MosaicSummary
    provenance: Provenance
    created: datetime
    """UTC."""

    @property
    def folder(self) -> Path:
        """Where the product is built."""
        return self.job.product

    @property
    def cube(self) -> FinishedCube:
        """The mosaic as writers take it."""
        job, facts = self.job, self.provenance.product
        hsi, msi = job.record.hsi, job.record.msi
        return FinishedCube(
            name=job.name,
            folder=self.folder,
            workplace=job.folder / WORKPLACE,
            key=job.record.key,
            array=job.fused,
            geobox=job.grids.product,
            crs=job.record.grid.crs,
            bands=job.bands,
            dtype=facts.dtype,
            scale=facts.scale,
            quantity=hsi.quantity,
            unit=hsi.unit,
            time=hsi.time,
            title=f"{TITLES[hsi.quantity]} cube",
            about=f"{hsi.name} fused with {msi.name} by {job.config.method}",
            closing=_closing_attributes(self),
            errors=job.errors if job.config.publish.uncertainty else None,
            error_scale=facts.error_scale or 1.0,
            lay_out=partial(lay_out, job) if job.config.publish.overviews else None,
        )


def _closing_attributes(draft: Draft) -> dict[str, Any]:
    job, summary, facts = draft.job, draft.summary, draft.provenance
    created, code = rfc3339(draft.created), facts.software["code_version"]
    record = store.attributes(job.fused.parent)["hrhsi"] | {
        "code_version": code,
        "weights_sha256": facts.method.weights_sha256,
        "valid_fraction": summary.valid_fraction,
        "clipped_samples": summary.clipped,
    }
    inputs = " and ".join(f"{scene.name} ({scene.sensor})" for scene in (job.record.hsi, job.record.msi))
    history = (
        f"{facts.started} HyperFuse {code}: last run started, "
        f"{facts.tiles.resumed} of {summary.n_tiles} tiles taken over from earlier runs\n"
        f"{facts.ended} HyperFuse {code}: {inputs} fused with {job.config.method}\n"
        f"{created} HyperFuse {code}: published"
    )
    return {"history": history, "date_created": created, "hrhsi": record}
