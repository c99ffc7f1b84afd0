"""A finished mosaic on its way to a product, and the assets that writers make of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from hyperfuse.catalogs.errors import HyperFuseError
from hyperfuse.pipeline.job.completeness import MosaicSummary
from hyperfuse.pipeline.job.folder import StagedJob


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


@dataclass(frozen=True, kw_only=True)
class Draft:
    """A finished mosaic and everything that writers may say of it."""

    job: StagedJob
    summary: MosaicSummary
    provenance: dict[str, Any]
    """The record of `pipeline.products.provenance`."""
    created: datetime
    """UTC."""

    @property
    def folder(self) -> Path:
        """Where the product is built."""
        return self.job.product
