"""Run batches of tiles: in this process, on a Dask cluster started here, or on the scheduler at an address.

Dask carries batch numbers, never arrays: workers read and write the shared staging folder. What is done is in the
ledger, so losing the scheduler loses no finished tile.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

from catalogs.errors import HyperFuseError
from pipeline.cluster import connected
from pipeline.fuse import fuse_batch, fuse_each, release
from pipeline.tiles import Tile

log = logging.getLogger(__name__)

Done = Callable[[Sequence[str]], None]
"""Called with the keys of tiles that just finished; their records are in the ledger."""


def run_batches(folder: Path, batches: Sequence[Sequence[Tile]], *, dask: str | None, done: Done) -> None:
    """Fuse all batches.

    Parameters
    ----------
    folder : Path
        Staging folder of the job.
    batches : sequence of sequences of Tile
    dask : str or None
        None works in this process; `local` starts worker processes; else the address of a scheduler.
    done : callable
        Told of every batch that finishes.

    Raises
    ------
    HyperFuseError
        If tiles failed; the others are finished and recorded.
    OutOfResources
        If no scheduler answers at the address.
    """
    if not batches:
        return
    work = [[(tile.row, tile.col) for tile in batch] for batch in batches]
    if dask is None:
        try:
            # Not batch by batch: reading and writing go on across their ends.
            with closing(fuse_each(str(folder), [tile for batch in work for tile in batch])) as records:
                for record in records:
                    done([record.key])
        finally:
            release()
    else:
        _on_cluster(folder.resolve(), work, dask, done)


def _on_cluster(folder: Path, work: list[list[tuple[int, int]]], address: str, done: Done) -> None:
    from distributed import as_completed  # noqa: PLC0415 (a second that only clusters need)

    with connected(address) as client:
        futures = client.map(fuse_batch, [str(folder)] * len(work), work, pure=False, retries=1)
        batch_of = {future.key: batch for future, batch in zip(futures, work, strict=True)}
        failed: list[tuple[list[tuple[int, int]], BaseException]] = []
        for future in as_completed(futures, raise_errors=False):
            if future.status == "finished":
                done([f"{row}.{col}" for row, col in batch_of[future.key]])
            else:
                failed.append((batch_of[future.key], future.exception()))
                log.error("tiles %s failed: %s", batch_of[future.key], future.exception())
            # A held result would be recomputed when the worker that made it dies.
            future.release()
    if failed:
        tiles, error = failed[0]
        raise HyperFuseError(
            f"{sum(len(batch) for batch, _ in failed)} tiles failed, first {tiles[0]}: {error}; the others are finished, "
            "run again to resume"
        ) from error
