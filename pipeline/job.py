"""A job: one fusion on disk, in a hidden folder beside the product that it will become.

    .<product>.<key>.staging/
        job.json              what is to be done (JobRecord); everything below follows from it
        weights.safetensors   copy of the network's weights
        stage/hsi.zarr        the HSI on the coarse grid      stage/msi.zarr   the MSI on the fine grid
        staged.json           written when staging is complete (StagedRecord)
        registration.*        table and figure of the tie points
        sums.safetensors      the method's first pass
        stage/features.zarr   the coarse part of a two-rate method      features.json   written when it is complete
        gate.json             whether a universal network's residual is applied
        strict.json           how far back-projection goes, if it is asked for
        tiles/*.json          the ledger      fused.json   how fast
        incoming/             what arrives from a store, before it is in its place
        quarantine.json       tiles that killed workers
        calibration.json      how large standard errors are, if they are asked for
        errors/*.json         their ledger
        qa.json, report.html  the judgment
        product/              becomes the product folder by one rename
        release/              the same without the mosaic, where Zarr was not asked for
        lock                  held while a process works here; the kernel releases it when the process dies

The folder goes when the product is in place.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import cache, cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from catalogs.bands import Bands
from catalogs.errors import Busy
from catalogs.scene import Quantity, Scene
from catalogs.sensors import sensor_module, sigma_from_mtf
from models import ModelSpec, Observed, method
from pipeline.backprojection import reach as projection_reach
from pipeline.config import RunConfig
from pipeline.displacement import NO_DISPLACEMENT, Displacement
from pipeline.grids import GridRecord, NestedGrids, block_steps
from pipeline.harmonize import Harmony
from pipeline.ledger import Ledger
from pipeline.observe import Observation, known
from pipeline.tiles import TilePlan


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


class Registration(BaseModel):
    """How the MSI lies on the HSI."""

    model_config = ConfigDict(frozen=True)

    decision: Literal["accept", "warn", "refuse"]
    """`warn`: the displacement is taken, and worth a look. `refuse`: it is not believed, and the geometry stays."""
    reason: str
    """One sentence with the figures that decided."""
    model: Literal["none", "shift", "affine", "field"]
    """Kind of displacement that the data supports."""
    east: float
    """Mean move along the CRS's x axis that brings the MSI onto the HSI, CRS units."""
    north: float
    """The same along y."""
    east_m: float
    """The same in meters on the ground."""
    north_m: float
    """The same in meters on the ground."""
    correlation_before: float | None
    """Of the HSI with what the MSI predicts of it, mean over the tie points, without any move."""
    correlation_after: float | None
    """The same along the displacement."""
    band_nm: float | None
    """Center of the MSI band that matches best."""
    residual_before_px: float | None = None
    """Root mean square distance (coarse px) of the tie points without any move."""
    residual_after_px: float | None = None
    """The same along the displacement: what it leaves, and the tie points' own noise."""
    tie_points: int = 0
    """Tie points that agree with the displacement ..."""
    tie_points_tried: int = 0
    """... of so many windows with enough valid pixels."""
    displacement: Displacement = NO_DISPLACEMENT
    """The move at every position, in units of the product's CRS."""


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


@dataclass(frozen=True)
class Job:
    """One fusion on disk."""

    folder: Path
    """The staging folder."""
    record: JobRecord
    """What is to be done."""

    @classmethod
    def load(cls, folder: Path) -> Job:
        """The job of a staging folder."""
        return cls(folder, JobRecord.model_validate_json((folder / "job.json").read_bytes()))

    @property
    def config(self) -> RunConfig:
        """Settings."""
        return self.record.config

    @cached_property
    def grids(self) -> NestedGrids:
        """Product, fine and coarse grid."""
        return self.record.grid.grids()

    @cached_property
    def staged(self) -> StagedRecord:
        """What staging found; only after staging."""
        return StagedRecord.model_validate_json((self.folder / "staged.json").read_bytes())

    @property
    def is_staged(self) -> bool:
        """Whether both images are staged."""
        return (self.folder / "staged.json").is_file()

    @cached_property
    def staged_hsi_bands(self) -> NDArray[np.int64]:
        """Positions, in the scene, of the bands that were staged."""
        return np.flatnonzero(np.array(self.record.hsi.bands["good"]))

    @cached_property
    def staged_msi_bands(self) -> NDArray[np.int64]:
        """Positions, in the scene, of the bands that were staged."""
        return np.flatnonzero(np.array(self.record.msi.bands["good"]))

    @cached_property
    def staged_bands(self) -> tuple[Bands, Bands]:
        """The same bands of the HSI and of the MSI."""
        hsi, msi = (Bands.from_json(image.bands) for image in (self.record.hsi, self.record.msi))
        return hsi[self.staged_hsi_bands], msi[self.staged_msi_bands]

    @cached_property
    def bands(self) -> Bands:
        """Bands of the product: those of the HSI that carry signal."""
        return self.staged_bands[0][self.staged.hsi.kept]

    def tables(self, hsi_bands: Bands, msi_bands: Bands) -> Observation:
        """The observation model of these bands by the tables of the sensors."""
        origin: Literal["given", "sensor"] = "sensor" if self.config.psf_mtf is None else "given"
        return known(hsi_bands, msi_bands, psf_sigma_px=self.record.psf_sigma_px, psf_origin=origin)

    @property
    def observation(self) -> Observation:
        """How the two sensors see the scene: what staging found, before it what the tables tell."""
        return self.staged.observation if self.is_staged else self.tables(*self.staged_bands)

    @cached_property
    def spec(self) -> ModelSpec:
        """Needs of the method; before staging, with the bands that the headers call good."""
        observation, steps = self.observation, self._msi_steps()
        observed = Observed(
            hsi_bands=len(observation.srf[0]),
            msi_bands=len(observation.srf),
            ratio=self.record.grid.ratio,
            psf_sigma_px=observation.psf_sigma_px,
            srf=observation.srf,
            msi_steps=steps if max(steps, default=1) > 1 else (),
            msi_sigma_px=self._msi_sigma_px(steps) if max(steps, default=1) > 1 else (),
        )
        return method(self.config.network).specify(observed, **self.record.options)

    def _msi_steps(self) -> tuple[int, ...]:
        """Fine pixels per block of equal pixels of each MSI band that is used; a warped MSI has no blocks."""
        bands = self.staged_bands[1]
        if self.is_staged:
            bands = bands[self.staged.msi.kept]
        return block_steps(bands, self.record.msi.gsd_m) if self.record.grid.block > 1 else (1,) * len(bands)

    def _msi_sigma_px(self, steps: tuple[int, ...]) -> tuple[float, ...]:
        """Standard deviation of the PSF of each MSI band by the MTF of its sensor, in fine pixels; 0 for step 1."""
        mtf = sensor_module(self.record.msi.sensor).SENSOR.mtf_nyquist
        return tuple(sigma_from_mtf(mtf, step) if step > 1 else 0.0 for step in steps)

    def own_blur_px(self, kept: list[int]) -> tuple[float, ...]:
        """Standard deviation of the blur that kept MSI bands of coarser pixels have of their own, in fine pixels."""
        if self.record.grid.block <= 1:
            return (0.0,) * len(kept)
        steps = block_steps(self.staged_bands[1][kept], self.record.msi.gsd_m)
        # The PSF, and the block of equal pixels as which a sample comes.
        return tuple(
            math.hypot(sigma, math.sqrt((step**2 - 1) / 12))
            for step, sigma in zip(steps, self._msi_sigma_px(steps), strict=True)
        )

    @cached_property
    def plan(self) -> TilePlan:
        """Tiles."""
        tiles = self.config.tiles
        margin = 0
        if self.config.strict:
            margin = projection_reach(self.record.grid.ratio, self.observation.psf_sigma_px)
        if tiles.core is not None:
            return TilePlan(grids=self.grids, spec=self.spec, core=tiles.core, chunk=tiles.chunk, margin=margin)
        budget = int(tiles.memory_gb * 1e9)
        return TilePlan.fitting(self.grids, self.spec, chunk=tiles.chunk, budget=budget, margin=margin)

    @property
    def ledger(self) -> Ledger:
        """Finished tiles."""
        return Ledger(self.folder / "tiles")

    @property
    def product(self) -> Path:
        """Folder that becomes the product."""
        return self.folder / "product"

    @property
    def name(self) -> str:
        """Identifier of the product: the name of its folder."""
        return self.config.output.name

    @property
    def fused(self) -> Path:
        """The array that tiles write."""
        return self.product / f"{self.name}.zarr" / "reflectance"

    @property
    def errors(self) -> Path:
        """The array with the standard error of each of its samples, if `publish.uncertainty` asks for it."""
        return self.fused.with_name("reflectance_standard_error")

    @property
    def error_scale(self) -> float:
        """Physical value of one count of an int16 standard error: errors are small, so a tenth of the samples' own."""
        return self.staged.scale / 10


def job_key(record: dict[str, Any]) -> str:
    """SHA-256 of the canonical JSON of a record."""
    return hashlib.sha256(json.dumps(record, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


@cache
def code_version() -> str:
    """Version of this software, with a digest of its sources: another digest may mean other pixels."""
    root = Path(__file__).parent.parent
    digest = hashlib.sha256()
    for package in ("catalogs", "models", "pipeline"):
        for path in sorted((root / package).rglob("*.py")):
            digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return f"{version('hyperfuse')}+{digest.hexdigest()[:12]}"


@contextmanager
def locked(folder: Path, told: str = "") -> Iterator[None]:
    """Hold a job folder; the kernel lets go when the process ends, however it ends.

    Parameters
    ----------
    folder : Path
    told : str, optional
        What is busy, where that is no job.

    Raises
    ------
    Busy
        If another process holds it, naming it.
    """
    path = folder / "lock"
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.seek(0)
            told = told or f"{folder.name}: another run works on this job"
            raise Busy(f"{told} ({file.read().strip()}); wait for it") from error
        file.seek(0)
        file.truncate()
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield


def is_held(folder: Path) -> bool:
    """Whether a process works in a job folder now."""
    try:
        with (folder / "lock").open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False
