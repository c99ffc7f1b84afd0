"""Tiles that kill: found by what the dead leave behind, set aside, and named.

A worker marks the batch that it begins and takes the mark away when the batch ends, well or badly. A mark that stays is a
process that died of it, or beside it. So a batch that has killed once is cut into single tiles, and a tile that has
killed twice on its own is not begun a third time. Dask counts deaths too, but blames every batch that waited for the
same worker, as often as the scheduler's settings say.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from hyperfuse.catalogs.errors import HyperFuseError
from hyperfuse.catalogs.formats.files import write_atomic
from hyperfuse.pipeline.execution.exchange import Indices, Place

DEATHS = 2
"""Processes that a tile may kill on its own before it is set aside."""
_RUNNING = "running"
_RECORD = "quarantine.json"


class Lethal(HyperFuseError):
    """A batch is not begun because processes that began it have died; the engine splits it, or sets its tile aside."""


class Quarantined(BaseModel):
    """A tile that was set aside."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tile: tuple[int, int]
    """Row and column in the plan."""
    deaths: int
    """Processes that died while they fused nothing else."""
    reason: str
    """What is known of it."""


@contextmanager
def marked(place: Place, tiles: Indices) -> Iterator[None]:
    """Mark a batch as begun while it runs.

    Raises
    ------
    Lethal
        If those who began it before have died: once with several tiles, `DEATHS` times with one.
    """
    fs, root = place.filesystem()
    folder = f"{root}/{_RUNNING}/{_name(tiles)}"
    deaths = _count(fs, folder)
    if deaths >= (DEATHS if len(tiles) == 1 else 1):
        raise Lethal(f"{deaths} processes died while they fused {_named(tiles)}")
    mark = f"{folder}/{socket.gethostname()}-{os.getpid()}"
    fs.pipe_file(mark, b"")
    try:
        yield
    finally:
        fs.rm_file(mark)


def clear_marks(place: Place) -> None:
    """Forget who died in an earlier run: when a whole run is killed, no tile is to blame."""
    fs, root = place.filesystem()
    if fs.exists(f"{root}/{_RUNNING}"):
        fs.rm(f"{root}/{_RUNNING}", recursive=True)


def quarantined(folder: Path) -> list[Quarantined]:
    """Tiles of the job in a staging folder that were set aside; a record that cannot be read counts as absent."""
    try:
        return [Quarantined.model_validate(entry) for entry in json.loads((folder / _RECORD).read_bytes())]
    except (OSError, ValueError, TypeError, ValidationError):
        return []


def set_aside(folder: Path, tiles: list[Quarantined]) -> None:
    """Keep the record of tiles that were set aside, beside the ledger; none removes it."""
    if tiles:
        write_atomic(folder / _RECORD, json.dumps([tile.model_dump() for tile in tiles], indent=1))
    else:
        (folder / _RECORD).unlink(missing_ok=True)


def _name(tiles: Indices) -> str:
    """Of a batch, unlike that of its tiles alone."""
    (row, col), n = tiles[0], len(tiles)
    return f"{row}.{col}" if n == 1 else f"{row}.{col}+{n - 1}"


def _named(tiles: Indices) -> str:
    return f"tile {tuple(tiles[0])}" if len(tiles) == 1 else f"{len(tiles)} tiles from {tuple(tiles[0])} on"


def _count(fs: object, folder: str) -> int:
    try:
        return len(fs.ls(folder, detail=False))  # type: ignore[attr-defined]
    except FileNotFoundError:
        return 0
