"""A job: one fusion on disk, in a hidden folder beside the product that it will become.

    .<product>.<key of the samples>.staging/
        job.json              what is to be done (JobRecord); everything below follows from it
        weights.safetensors   copy of the network's weights
        stage/hsi.zarr        the HSI on the coarse grid      stage/msi.zarr   the MSI on the fine grid
        staged_files.json     digests of both
        staged.json           written when staging is complete (StagedRecord)
        registration.*        table and figure of the tie points
        sums.safetensors      the method's first pass      sums.json   its digest
        fill.safetensors      what holes are filled from   fill.json   its digest
        stage/features.zarr   the coarse part of a two-rate method      features.json, features_files.json   written when it is complete
        gate.json             whether a universal network's residual is applied
        strict.json           how far back-projection goes, if it is asked for
        method.json           what the method found out about the pair
        tiles/*.json          the ledger      fused.json   how fast
        incoming/             what arrives from a store, before it is in its place
        quarantine.json       tiles that killed workers
        calibration.json      how large standard errors are, if they are asked for
        errors/*.json         their ledger      errors.txt   the code that made them
        qa.json, report.html  the judgment
        product/              becomes the product folder by one rename
        release/              the same without the mosaic, where Zarr was not asked for
        lock                  held while a process works here

The folder goes when the product is in place.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from hyperfuse.catalogs.bands import Bands
from hyperfuse.catalogs.errors import InputRejected
from hyperfuse.catalogs.sensors import band_sigmas_px, sensor_module
from hyperfuse.models import ModelSpec, Observed, method
from hyperfuse.pipeline.config import RunConfig
from hyperfuse.pipeline.geometry.grids import NestedGrids, block_steps
from hyperfuse.pipeline.geometry.tiling import TilePlan
from hyperfuse.pipeline.job.encoding import ERRORS, VARIABLE
from hyperfuse.pipeline.job.ledger import Ledger
from hyperfuse.pipeline.job.records import JOB_SCHEMA, JobRecord, StagedRecord
from hyperfuse.pipeline.job.seals import read_record
from hyperfuse.pipeline.job.staging_folder import identity, made_by_another
from hyperfuse.pipeline.observation.psf_overlap import projection_reach
from hyperfuse.pipeline.observation.sensor_model import Observation, known

STAGED = "staged.json"
"""What staging found; its presence says that staging is complete."""
STAGED_FILES = "staged_files.json"
"""Digests of the files of the staged images."""


@dataclass(frozen=True)
class Job:
    """One fusion on disk, staged or not."""

    folder: Path
    """The staging folder."""
    record: JobRecord
    """What is to be done."""

    @classmethod
    def load(cls, folder: Path) -> Job:
        """The job of a staging folder.

        Raises
        ------
        InputRejected
            If another version of this software made it.
        """
        found = identity(folder)
        if found is not None and found.schema != JOB_SCHEMA:
            raise InputRejected(f"{folder}: {made_by_another(found, JOB_SCHEMA)}")
        return cls(folder, JobRecord.model_validate_json((folder / "job.json").read_bytes()))

    @property
    def config(self) -> RunConfig:
        """Settings."""
        return self.record.config

    @cached_property
    def grids(self) -> NestedGrids:
        """Product, fine and coarse grid."""
        return self.record.grid.grids()

    @property
    def is_staged(self) -> bool:
        """Whether both images are staged."""
        return (self.folder / STAGED).is_file()

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

    def tables(self, hsi_bands: Bands, msi_bands: Bands) -> Observation:
        """The observation model of these bands by the tables of the sensors."""
        origin: Literal["given", "sensor"] = "sensor" if self.config.psf_mtf is None else "given"
        return known(hsi_bands, msi_bands, psf_sigma_px=self.record.psf_sigma_px, psf_origin=origin)

    def specified(self, observation: Observation, msi_bands: Bands) -> ModelSpec:
        """Needs of the method for a pair observed in this way."""
        # A warped MSI has no blocks of equal pixels.
        blocks = self.record.grid.block > 1
        steps = block_steps(msi_bands, self.record.msi.gsd_m) if blocks else (1,) * len(msi_bands)
        stepped, chosen = max(steps, default=1) > 1, method(self.config.method)
        observed = Observed(
            hsi_bands=len(observation.srf[0]),
            msi_bands=len(observation.srf),
            ratio=self.record.grid.ratio,
            psf_sigma_px=observation.psf_sigma_px,
            srf=observation.srf,
            msi_steps=steps if stepped else (),
            msi_sigma_px=self._msi_sigma_px(steps, msi_bands) if stepped else (),
            hsi_shifts=observation.hsi_shifts(self.record.grid.ratio) if chosen.takes_displacement else (),
        )
        return chosen.specify(observed, **self.record.options)

    def tiled(self, spec: ModelSpec) -> TilePlan:
        """Tiles for a method of such needs."""
        tiles, margin = self.config.tiles, 0
        if self.config.strict:
            margin = projection_reach(self.record.grid.ratio, spec.observed.psf_sigma_px)
        if tiles.core is not None:
            return TilePlan(grids=self.grids, spec=spec, core=tiles.core, chunk=tiles.chunk, margin=margin)
        budget = int(tiles.memory_gb * 1e9)
        return TilePlan.fitting(self.grids, spec, chunk=tiles.chunk, budget=budget, margin=margin)

    @property
    def expected_plan(self) -> TilePlan:
        """Tiles as the headers let expect; staging may exclude bands and measure another PSF."""
        return self.tiled(self.specified(self.tables(*self.staged_bands), self.staged_bands[1]))

    def as_staged(self) -> StagedJob:
        """The same job, with what staging found.

        Raises
        ------
        FileNotFoundError
            If it is not staged, or its record is damaged.
        """
        record = read_record(self.folder / STAGED)
        if record is None:
            raise FileNotFoundError(f"{self.folder / STAGED}: is not there as it was written")
        staged = StagedRecord.model_validate_json(record)
        return StagedJob(self.folder, self.record, staged)

    def _msi_sigma_px(self, steps: tuple[int, ...], bands: Bands) -> tuple[float, ...]:
        """Standard deviation of the PSF of MSI bands by their MTF, in fine pixels; 0 for step 1."""
        return band_sigmas_px(sensor_module(self.record.msi.sensor).SENSOR, bands, steps)

    def own_blur_px(self, kept: list[int]) -> tuple[float, ...]:
        """Standard deviation of the blur that kept MSI bands of coarser pixels have of their own, in fine pixels."""
        if self.record.grid.block <= 1:
            return (0.0,) * len(kept)
        bands = self.staged_bands[1][kept]
        steps = block_steps(bands, self.record.msi.gsd_m)
        # The PSF, and the block of equal pixels as which a sample comes.
        return tuple(
            math.hypot(sigma, math.sqrt((step**2 - 1) / 12))
            for step, sigma in zip(steps, self._msi_sigma_px(steps, bands), strict=True)
        )

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
        return self.product / f"{self.name}.zarr" / VARIABLE

    @property
    def errors(self) -> Path:
        """The array with the standard error of each of its samples, if `publish.uncertainty` asks for it."""
        return self.fused.with_name(ERRORS)


@dataclass(frozen=True)
class StagedJob(Job):
    """A job whose images are staged: bands, observation model and tiles are settled."""

    staged: StagedRecord
    """What staging found."""

    @classmethod
    def load(cls, folder: Path) -> StagedJob:
        """The job of a staging folder."""
        return Job.load(folder).as_staged()

    @cached_property
    def bands(self) -> Bands:
        """Bands of the product: those of the HSI that carry signal."""
        return self.staged_bands[0][self.staged.hsi.kept]

    @property
    def observation(self) -> Observation:
        """How the two sensors see the scene."""
        return self.staged.observation

    @cached_property
    def spec(self) -> ModelSpec:
        """Needs of the method."""
        return self.specified(self.observation, self.staged_bands[1][self.staged.msi.kept])

    @cached_property
    def plan(self) -> TilePlan:
        """Tiles."""
        return self.tiled(self.spec)

    @property
    def packed(self) -> bool:
        """Whether samples are stored as int16 counts."""
        return self.config.publish.dtype == "int16"

    @property
    def error_scale(self) -> float:
        """Physical value of one count of an int16 standard error: errors are small, so a tenth of the samples' own."""
        return self.staged.scale / 10
