"""The ledger: which tiles are finished, beside the data and nowhere else.

One small file per tile, written after its chunks and renamed into place, so that a process may die at any moment, the
scheduler may lose everything, and what is done stays done. A record that cannot be read, or whose chunks have changed
since, counts as absent.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from hyperfuse.pipeline.job.seals import read_record, write_record


class TileRecord(BaseModel):
    """What is known of a finished tile."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    key: str
    """Row and column of the tile in the plan."""
    sha256: str
    """Digest of the stored bytes of its chunks."""
    pixels: int
    """Product pixels of its core."""
    valid: list[int]
    """Valid samples per band."""
    total: list[float]
    """Sum of the valid samples per band, physical units."""
    low: list[float | None]
    """Smallest valid sample per band."""
    high: list[float | None]
    """Largest valid sample per band."""
    clipped: int
    """Samples outside the range of the product's type, set to its end."""
    seconds: float
    """Time from reading to record, monotonic."""
    busy_s: float = 0.0
    """Time that the device computed."""
    device: str
    """Where it was computed."""
    precision: str = "fp32"
    """Arithmetic in which it was computed."""


class Ledger:
    """Finished tiles of one job, in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def add(self, record: TileRecord) -> None:
        """Write a record so that it is there whole or not at all."""
        self.folder.mkdir(exist_ok=True)
        write_record(self.folder / f"{record.key}.json", record.model_dump_json())

    def record(self, key: str) -> TileRecord | None:
        """The record of a tile; None if it is not there, or not as it was written."""
        try:
            found = read_record(self.folder / f"{key}.json")
            return None if found is None else TileRecord.model_validate_json(found)
        except (ValidationError, OSError):
            return None

    def records(self, intact: Callable[[TileRecord], bool] | None = None) -> dict[str, TileRecord]:
        """Readable records by tile key, in the order of keys; only those that `intact` accepts."""
        found: dict[str, TileRecord] = {}
        for path in sorted(self.folder.glob("*.json")) if self.folder.is_dir() else ():
            record = self.record(path.stem)
            if record is not None and record.key == path.stem and (intact is None or intact(record)):
                found[record.key] = record
        return found
