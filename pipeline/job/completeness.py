"""Finished tiles to one product grid: tiles write their own chunks, so what is left is to prove that all are there."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from hyperfuse.catalogs.errors import Transient
from hyperfuse.pipeline.job import store
from hyperfuse.pipeline.job.folder import StagedJob
from hyperfuse.pipeline.job.ledger import Ledger, TileRecord


class MosaicSummary(BaseModel):
    """Statistics of a complete mosaic, in physical units."""

    model_config = ConfigDict(frozen=True)

    n_tiles: int
    """Tiles of the plan, all finished."""
    pixels: int
    """Pixels of the product grid."""
    valid: list[int]
    """Valid samples per band."""
    mean: list[float | None]
    """Mean of the valid samples per band, None where there is none."""
    low: list[float | None]
    """Smallest valid sample per band."""
    high: list[float | None]
    """Largest valid sample per band."""
    clipped: int
    """Samples outside the range of the product's type."""
    devices: list[str]
    """Where the tiles were computed."""
    precisions: list[str]
    """Arithmetic in which they were computed: one, unless a run was resumed on another device."""

    @property
    def valid_fraction(self) -> float:
        """Share of valid samples over all bands."""
        return sum(self.valid) / (self.pixels * len(self.valid))


def finished(job: StagedJob) -> dict[str, TileRecord]:
    """Records of the tiles whose chunks are stored as they were written."""
    return intact(job, job.ledger, job.fused)


def intact(job: StagedJob, ledger: Ledger, cube: Path) -> dict[str, TileRecord]:
    """Records of a ledger on tiles whose chunks of a cube are stored as they were written."""
    if not cube.is_dir():
        return {}
    array = store.open_array(cube)
    tiles = {tile.key: tile for tile in job.plan}

    def stored(record: TileRecord) -> bool:
        tile = tiles.get(record.key)
        return tile is not None and store.chunks_digest(cube, array, tile.core) == record.sha256

    return ledger.records(stored)


def mosaic(job: StagedJob) -> MosaicSummary:
    """Prove that every tile is there, unchanged, and sum up what they hold.

    Raises
    ------
    Transient
        If a tile is missing, or can no longer be read as it was written; the message names the first.
    """
    records = finished(job)
    missing = [tile.key for tile in job.plan if tile.key not in records]
    if missing:
        # All were recorded a moment ago, or the run would have ended: what is gone now is the disk's.
        raise Transient(
            f"{job.name}: {len(missing)} of {job.plan.n_tiles} tiles are not there as they were written (first: {missing[0]}); run "
            "again to resume"
        )
    return summarize(list(records.values()))


def summarize(records: Sequence[TileRecord]) -> MosaicSummary:
    """Statistics of a mosaic from the records of all its tiles."""
    per_band = list(zip(*(zip(r.valid, r.total, r.low, r.high, strict=True) for r in records), strict=True))
    valid = [sum(v for v, *_ in band) for band in per_band]
    return MosaicSummary(
        n_tiles=len(records),
        pixels=sum(record.pixels for record in records),
        valid=valid,
        mean=[sum(t for _, t, *_ in band) / n if n else None for band, n in zip(per_band, valid, strict=True)],
        low=[min((x for *_, x, _ in band if x is not None), default=None) for band in per_band],
        high=[max((x for *_, x in band if x is not None), default=None) for band in per_band],
        clipped=sum(record.clipped for record in records),
        devices=sorted({record.device for record in records}),
        precisions=sorted({record.precision for record in records}),
    )
