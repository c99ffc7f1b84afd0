"""One file per format, found by its module name.

A writer module defines

- `write(draft) -> list[Asset]`: builds its files inside `draft.folder` from the finished mosaic,
- `check(folder, expected) -> None`: reads them back, as a stranger would, and raises `BadProduct` if they differ.

The working array of the mosaic already lies in the layout of the `zarr` writer; the STAC item is built by
`pipeline.publish`, last, because it describes all the others.
"""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any, Protocol, cast

from catalogs.errors import HyperFuseError
from pipeline.job import Job
from pipeline.mosaic import MosaicSummary


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

    job: Job
    summary: MosaicSummary
    provenance: dict[str, Any]
    """The record of `pipeline.provenance`."""
    created: datetime
    """UTC."""

    @property
    def folder(self) -> Path:
        """Where the product is built."""
        return self.job.product


class Writer(Protocol):
    """The names that a writer module defines."""

    def write(self, draft: Draft) -> list[Asset]:
        """Build the files."""

    def check(self, folder: Path, expected: dict[str, Any]) -> None:
        """Read them back; `expected` is the `product` part of the provenance record."""


@cache
def available() -> tuple[str, ...]:
    """Names of all writers, sorted."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_")))


def writer(name: str) -> Writer:
    """The writer of that name.

    Raises
    ------
    LookupError
        If there is none; the message lists those that exist.
    """
    if name not in available():
        raise LookupError(f"there is no format {name!r}; choose one of {', '.join(available())}")
    return cast("Writer", importlib.import_module(f"{__name__}.{name}"))
