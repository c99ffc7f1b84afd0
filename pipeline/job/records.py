"""Records of a job: what is to be done, and what staging found."""

from __future__ import annotations

import hashlib
import json
from datetime import datetime
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from hyperfuse.catalogs.scene import Quantity, Scene
from hyperfuse.pipeline.config import RunConfig
from hyperfuse.pipeline.geometry.grids import GridRecord
from hyperfuse.pipeline.observation.harmonize import Harmony
from hyperfuse.pipeline.observation.sensor_model import Observation
from hyperfuse.pipeline.registration.record import Registration

_ROOT = Path(__file__).parents[2]
KEY = r"^[0-9a-f]{64}$"
"""Pattern of a key: it becomes part of the names of folders."""
JOB_SCHEMA: Final = "hyperfuse-job/2"
"""To be raised when the records or files of a job's folder change their meaning."""
_SAMPLES = (
    "catalogs",
    "models",
    *(f"pipeline/{room}" for room in ("geometry", "observation", "registration", "job", "fusion")),
    # The decision on a network's residual, and the trial at reduced resolution that it rests on.
    *(
        f"pipeline/quality/{module}.py"
        for module in (
            "job_trial",
            "metrics",
            "msi_detail",
            "reduced_resolution",
            "rehearsal",
            "residual_decision",
            "trials",
        )
    ),
)
"""Folders and modules whose code decides samples. `plan` is none of them: what it finds is part of the key by its value."""
_NO_SAMPLES = (
    "catalogs/pairing",
    "catalogs/stac",
    "catalogs/addresses.py",
    "catalogs/errors.py",
    "catalogs/locks.py",
    "catalogs/opening.py",
    "catalogs/remote",
)
"""Parts of these that do not: which scenes are fused, and what is said."""


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

    job_schema: Literal["hyperfuse-job/2"] = JOB_SCHEMA
    """Version of the job's folder: another is never read."""
    key: str = Field(pattern=KEY)
    """SHA-256 of everything that decides the product's content: the samples, and what is made of them."""
    samples: str = Field(pattern=KEY)
    """SHA-256 of what decides the fused samples as they are stored; names the staging folder, so that a run with another
    licence or other formats takes over the tiles of a run that was killed."""
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
    samples_beside_px: tuple[float, float] | None = None
    """Rows and columns (fine pixels) by which the HSI's samples lie beside their pixels, by grids and registration, where they
    were copied as they were measured; None where they were resampled to the centers of their pixels."""
    column_gains: tuple[tuple[float, ...], ...] = ()
    """Gains of the HSI's columns that were taken out of the staged samples, for each detector of `detector_of`; empty where the
    pair shows no stripes."""
    stripes: tuple[float | None, ...] = ()
    """Standard deviation of the gains of each detector's columns before, None where it could not be measured; likewise."""
    seal: str = ""
    """SHA-256 of the list of the digests of the staged chunks."""
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
    """Version of this software, with a digest of its sources: another digest may mean another product."""
    return f"{version('hyperfuse')}+{_digest(_sources('catalogs', 'models', 'pipeline'))}"


@cache
def samples_code() -> str:
    """Digest of the sources that decide samples: with another, tiles of an earlier run are not taken over."""
    return _digest(sample_sources())


def sample_sources() -> list[Path]:
    """Source files that decide samples."""
    left_out = set(_sources(*_NO_SAMPLES))
    return [path for path in _sources(*_SAMPLES) if path not in left_out]


def _sources(*names: str) -> list[Path]:
    """Python files that are named, and those of the folders that are."""
    found: set[Path] = set()
    for path in (_ROOT / name for name in names):
        found.update(path.rglob("*.py") if path.is_dir() else (path,))
    return sorted(found)


def _digest(paths: list[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.relative_to(_ROOT).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]
