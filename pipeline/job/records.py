"""Records of a job: what is to be done, and what staging found."""

from __future__ import annotations

import hashlib
import json
from datetime import datetime
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from hyperfuse.catalogs.scene import Quantity, Scene
from hyperfuse.pipeline.config import RunConfig
from hyperfuse.pipeline.geometry.grids import GridRecord
from hyperfuse.pipeline.observation.harmonize import Harmony
from hyperfuse.pipeline.observation.sensor_model import Observation
from hyperfuse.pipeline.registration.record import Registration


class InputRecord(BaseModel):
    """An input as it was opened."""

    model_config = ConfigDict(frozen=True)

    name: str
    uri: str
    sensor: str
    sha256: str
    quantity: Quantity
    unit: str
    time: datetime | None
    gsd_m: float
    crs: str
    shape: tuple[int, int, int]
    bands: dict[str, list[Any]]
    notes: tuple[str, ...]

    @classmethod
    def of(cls, scene: Scene) -> InputRecord:
        """Record of a scene."""
        return cls(
            name=scene.name,
            uri=scene.uri,
            sensor=scene.sensor,
            sha256=scene.digest,
            quantity=scene.quantity,
            unit=scene.unit,
            time=scene.time,
            gsd_m=scene.gsd_m,
            crs=str(scene.geobox.crs),
            shape=scene.cube.shape,
            bands=scene.bands.to_json(),
            notes=scene.notes,
        )


class JobRecord(BaseModel):
    """What is to be done."""

    model_config = ConfigDict(frozen=True)

    key: str
    """SHA-256 of everything that decides the product's content."""
    config: RunConfig
    grid: GridRecord
    hsi: InputRecord
    msi: InputRecord
    psf_sigma_px: float
    """Standard deviation of the HSI's PSF by its MTF, in fine pixels."""
    weights: dict[str, Any] | None = None
    """Card of the weight file, with its digest."""

    @property
    def options(self) -> dict[str, Any]:
        """Options of the architecture that the weights were trained for."""
        return dict(self.weights["options"]) if self.weights else {}


class ImageSums(BaseModel):
    """Per-band statistics of a staged image."""

    model_config = ConfigDict(frozen=True)

    kept: list[int]
    """Bands of the staged cube that carry signal in the overlap; the others are excluded everywhere."""
    mean: list[float]
    """Mean of the valid samples, kept bands; fills the holes before fusion."""
    low: float
    """Smallest valid sample of the kept bands."""
    high: float
    """Largest valid sample of the kept bands."""
    valid_fraction: float
    """Share of pixels that are valid in all kept bands."""


class StagedRecord(BaseModel):
    """What staging found."""

    model_config = ConfigDict(frozen=True)

    registration: Registration
    hsi: ImageSums
    msi: ImageSums
    observation: Observation
    """How the two sensors see the scene."""
    scale: float
    """Physical value of one count of an int16 product."""
    harmony: Harmony | None = None
    """How the MSI is brought to the radiometry of the HSI."""

    def as_fused(self, msi: NDArray[np.float32]) -> NDArray[np.float32]:
        """A window of the staged MSI, kept bands, in the radiometry in which methods see it."""
        return msi if self.harmony is None else self.harmony.corrected(msi)


def job_key(record: dict[str, Any]) -> str:
    """SHA-256 of the canonical JSON of a record."""
    return hashlib.sha256(json.dumps(record, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


@cache
def code_version() -> str:
    """Version of this software, with a digest of its sources: another digest may mean other pixels."""
    root = Path(__file__).parents[2]
    digest = hashlib.sha256()
    for package in ("catalogs", "models", "pipeline"):
        for path in sorted((root / package).rglob("*.py")):
            digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return f"{version('hyperfuse')}+{digest.hexdigest()[:12]}"
