"""SceneItem: what a catalogue knows of a scene without opening it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

from shapely.geometry.base import BaseGeometry

from catalogs.scene import Conditions
from catalogs.sensors import Source

Role = Literal["hsi", "msi"]


@dataclass(frozen=True, kw_only=True)
class Fingerprint:
    """What tells whether a product on disk is still the one that was catalogued."""

    sha256: str
    """Digest of the scene's bytes, as `Scene.digest`."""
    size: int
    """Bytes of all files."""
    mtime_ns: int
    """Last change of the latest file."""


@dataclass(frozen=True, kw_only=True, eq=False)
class SceneItem:
    """A scene as its catalogue describes it; nothing of it is open."""

    id: str
    """Name, unique in the catalogue."""
    role: Role
    """Which part of a pair it can be."""
    sensor: str | None
    """Module in `catalogs.sensors` that opens it; None lets the modules choose."""
    uri: str
    """Path, glob, `synthetic:` or https address; checked against the allowed roots and hosts."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """What its files do not tell, by field names of `catalogs.sensors.Source`."""
    footprint: BaseGeometry
    """Outline of its valid data, longitude and latitude (degrees); cut at the date line."""
    clear: tuple[str, ...] | None = None
    """Where its pixels are valid: see `catalogs.clear`; None if nobody looked."""
    gsd_m: float
    """Ground sampling distance (m)."""
    n_bands: int
    """Number of bands."""
    time: datetime | None
    """Acquisition, UTC."""
    conditions: Conditions = field(default=Conditions())
    """Cloud, sun and view."""
    fingerprint: Fingerprint | None = None
    """Of the files; None for items that others made."""

    def source(self) -> Source:
        """Where a reader finds it, with what the user said of it when it was added."""
        return Source(uri=self.uri, sensor=self.sensor, **self.settings)
