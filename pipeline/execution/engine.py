"""Run batches of tiles: in this process, on a Dask cluster started here, or on that of a scheduler.

Dask carries tile numbers, never arrays: what a batch needs and makes lies at the job's place. What is done is in the
ledger, so losing the scheduler loses no finished tile.

    a batch ends badly        why                                      what follows
    exception                 a tile of it, or its data                each of its tiles alone; alone, it has failed
    StoreLost                 the store is lost, or this worker's      its tiles have failed; three in a row end the run
                              way to it
    HyperFuseError            known to be of no use again              its tiles have failed
    Lethal                    a process that ran it died               each of its tiles alone; alone and twice, set aside
    KilledWorker              processes died that had it, or only      it is run again, a few times
                              held it while they ran another
    cancelled                 the scheduler is gone                    the run ends, and a rerun resumes
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING

from hyperfuse.catalogs.errors import HyperFuseError, OutOfResources, Poisoned
from hyperfuse.pipeline.execution.cluster import GPU, connected, first_worker
from hyperfuse.pipeline.execution.exchange import Indices, Place, SharedFolder, StoreLost, forget_mirrors, place_of
from hyperfuse.pipeline.execution.quarantine import (
    DEATHS,
    Lethal,
    Quarantined,
    clear_marks,
    marked,
    quarantined,
    set_aside,
)
from hyperfuse.pipeline.fusion.tile_fuser import fuse_batch, fuse_each, release
from hyperfuse.pipeline.geometry.tiling import Tile
from hyperfuse.pipeline.job.folder import StagedJob
from hyperfuse.pipeline.job.records import code_version

if TYPE_CHECKING:
    from distributed import Client, Future

log = logging.getLogger(__name__)

Done = Callable[[Sequence[str]], None]
"""Called with the keys of tiles that just finished; their records are in the ledger."""
_LOOK_SECONDS = 5.0
"""Between two looks at the scheduler while no batch ends."""
SCHEDULER_SECONDS = 60.0
"""After which a scheduler that does not answer counts as lost."""
_STORELESS = 3
"""Batches, with none between that finished, that end because of the store: then it counts as lost, and the others are not tried."""
_AGAIN = 5
"""Times that a batch is run again which Dask gave up though no process died of it."""


def run_batches(job: StagedJob, batches: Sequence[Sequence[Tile]], *, done: Done) -> None:
    """Fuse all batches, but for tiles that were set aside in an earlier run.

    Parameters
    ----------
    job : StagedJob
        Staged; `dask` and `store` of its settings decide where its batches run.
    batches : sequence of sequences of Tile
    done : callable
        Told of every batch that finishes.

    Raises
    ------
    Poisoned
        If tiles kill the processes that fuse them; the others are finished and recorded.
    HyperFuseError
        If tiles failed; the others are finished and recorded.
    OutOfResources
        If no scheduler answers, it is lost, no worker comes, or the store cannot be reached.
    """
    if job.config.tiles.retry_quarantined:
        set_aside(job.folder, [])
    poison = quarantined(job.folder)
    known = {tile.tile for tile in poison}
    work = [[at for tile in batch if (at := (tile.row, tile.col)) not in known] for batch in batches]
    work = [batch for batch in work if batch]
    place = place_of(job)
    try:
        if work and job.config.dask is not None:
            place.offer(job)
            clear_marks(place)
            crew = _on_cluster(job, place, work, done)
            poison += crew.poison
            set_aside(job.folder, poison)
            crew.require_all()
        elif work:
            _here(job, place, work, done)
    finally:
        release()
        forget_mirrors()
    if poison:
        raise Poisoned(
            f"{job.name}: tile {poison[0].tile}{f' and {len(poison) - 1} more' if len(poison) > 1 else ''} set aside: "
            f"{poison[0].reason}; all others are finished and nothing is published; find out what kills it, or try again with "
            "--set tiles.retry_quarantined=true"
        )


def attempt(place: Place, tiles: Indices, code: str) -> None:
    """Fuse a batch of the job at a place; the work of one Dask task.

    Raises
    ------
    Lethal
        If processes that began it have died.
    OutOfResources
        If this worker runs another version of this software, or does not see the place.
    """
    if code != code_version():
        raise OutOfResources(
            f"a worker runs {code_version()}, this run {code}: their pixels may differ; install the same version everywhere"
        )
    with marked(place, tiles), place.opened(tiles) as folder:
        fuse_batch(str(folder), tiles)


def _here(job: StagedJob, place: Place, work: list[list[tuple[int, int]]], done: Done) -> None:
    if isinstance(place, SharedFolder):
        # Not batch by batch: reading and writing go on across their ends.
        with closing(fuse_each(str(job.folder), [tile for batch in work for tile in batch])) as records:
            for record in records:
                done([record.key])
        return
    place.offer(job)
    for batch in work:
        with place.opened(batch) as folder:
            fuse_batch(str(folder), batch)
        place.collect(job, batch)
        done(_keys(batch))


def _on_cluster(job: StagedJob, place: Place, work: list[list[tuple[int, int]]], done: Done) -> _Crew:
    config = job.config
    assert config.dask is not None  # noqa: S101 (the caller's branch)
    with connected(config.dask, device=config.device) as client:
        owned = first_worker(client, config.dask_wait_s) and config.device != "cpu"
        crew = _Crew(client, place, needs_device=owned, wait_s=config.dask_wait_s)
        for batch in work:
            crew.submit(batch)
        for finished in crew.finished():
            place.collect(job, finished)
            done(_keys(finished))
    return crew


def _keys(tiles: Indices) -> list[str]:
    """Names in the ledger."""
    return [f"{row}.{col}" for row, col in tiles]


class _Crew:
    """The workers of a cluster, with the batches that they were given."""

    def __init__(self, client: Client, place: Place, *, needs_device: bool, wait_s: float) -> None:
        self._failed: list[tuple[Indices, BaseException]] = []
        self.poison: list[Quarantined] = []
        self._client, self._place, self._wait_s = client, place, wait_s
        # Where workers own devices, each has one batch at a time on its own, however many threads it has.
        self._resources = {GPU: 1} if needs_device else None
        self._batches: dict[Future[None], tuple[Indices, int]] = {}
        self._ended: SimpleQueue[Future[None]] = SimpleQueue()
        self._answered = self._manned = time.monotonic()
        self._storeless = 0

    def submit(self, tiles: Indices, *, again: int = 0) -> None:
        """Hand a batch to whoever is free."""
        future = self._client.submit(
            attempt, self._place, tiles, code_version(), pure=False, retries=1, resources=self._resources
        )
        self._batches[future] = tiles, again
        future.add_done_callback(self._ended.put)

    def finished(self) -> Iterator[Indices]:
        """Batches as they finish, until all tiles are finished, failed or set aside."""
        while self._batches:
            try:
                future = self._ended.get(timeout=_LOOK_SECONDS)
            except Empty:
                self._look()
                continue
            tiles, again = self._batches.pop(future)
            self._answered = self._manned = time.monotonic()
            if future.status in {"finished", "lost"}:  # what is lost is the empty result, with the worker that held it
                self._storeless = 0
                yield tiles
            elif future.status == "error":
                self._judge(tiles, future.exception(), again)
            else:
                raise self._lost()
            # A held result would be recomputed when the worker that made it dies.
            future.release()

    def require_all(self) -> None:
        """Refuse to go on if tiles failed; the error is of the kind of the first."""
        if not self._failed:
            return
        tiles, error = self._failed[0]
        kind = type(error) if isinstance(error, HyperFuseError) else HyperFuseError
        raise kind(
            f"{sum(len(batch) for batch, _ in self._failed)} tiles failed, first {tuple(tiles[0])}: {error}; the others are "
            "finished, run again to resume"
        ) from error

    def _judge(self, tiles: Indices, error: BaseException, again: int) -> None:
        from distributed import KilledWorker  # noqa: PLC0415 (a second that only clusters need)

        if isinstance(error, StoreLost):
            self._storeless += 1
            if self._storeless >= _STORELESS:
                raise error
        if isinstance(error, KilledWorker) and again < _AGAIN:
            self.submit(tiles, again=again + 1)
        elif len(tiles) > 1 and (isinstance(error, Lethal) or not isinstance(error, HyperFuseError)):
            log.warning("%s; its tiles are run one by one", error)
            for tile in tiles:
                self.submit([tile])
        elif isinstance(error, Lethal):
            log.error("%s; it is set aside", error)
            row, col = tiles[0]
            self.poison.append(Quarantined(tile=(row, col), deaths=DEATHS, reason=str(error)))
        else:
            self._failed.append((tiles, error))
            log.error("tiles %s failed: %s", tiles, error)

    def _look(self) -> None:
        """Make sure that somebody is there who may still end a batch."""
        now, scheduler = time.monotonic(), self._client.scheduler
        try:
            workers = scheduler and self._client.sync(scheduler.ncores, callback_timeout=_LOOK_SECONDS)
        except (OSError, TimeoutError):
            workers = None
        if workers is not None:
            self._answered = now
        if workers is None or workers:
            self._manned = now
        if now - self._answered > SCHEDULER_SECONDS:
            raise self._lost()
        if now - self._manned > self._wait_s:
            raise OutOfResources(
                f"the Dask scheduler has had no worker for {self._wait_s:g} s; finished tiles are kept: start workers and run "
                "again to resume"
            )

    def _lost(self) -> OutOfResources:
        return OutOfResources(
            "the Dask scheduler was lost; finished tiles are kept: see that it runs, and run again to resume"
        )
