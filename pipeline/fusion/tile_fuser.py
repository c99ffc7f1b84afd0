"""Fuse tiles: one method per process and device, loaded once; a tile reads its window and writes its own chunks.

    load      windows of the staged pair, in a thread, brought to the device
    compute   the method, and the packing of what it gives, on the device
    save      encode, write whole chunks, add the record to the ledger, in a thread

Cropping and packing happen here; what a method sees and how it is called is `pipeline.fusion.method`'s, as everywhere. Where
memory runs out, the batch is halved, then the tile, with the same result.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hyperfuse.pipeline.fusion.device import (
    Lane,
    exhausted,
    give_back_memory,
    keep_freed_memory,
    one_thread,
    pick_device,
    share_heaps,
)
from hyperfuse.pipeline.fusion.findings import keep_findings
from hyperfuse.pipeline.fusion.method import job_fuser
from hyperfuse.pipeline.fusion.packing import Packed, Packing
from hyperfuse.pipeline.fusion.strict import load_projection
from hyperfuse.pipeline.fusion.windows import StagedPair
from hyperfuse.pipeline.geometry.box import Box
from hyperfuse.pipeline.geometry.tiling import Tile
from hyperfuse.pipeline.job import store
from hyperfuse.pipeline.job.folder import StagedJob
from hyperfuse.pipeline.job.ledger import TileRecord
from hyperfuse.pipeline.pipelining import convey, step_back

log = logging.getLogger(__name__)

_HALVINGS = 3
"""Times that a batch, then a tile, is halved for want of memory."""
_MOST_AT_ONCE = 16
"""Windows in one call of a method, however large the device: beyond, nothing gets faster."""
_DEVICE_SHARE = 0.6
"""Of a device's free memory that a batch may be predicted to take."""


@dataclass(frozen=True, kw_only=True)
class _Part:
    """Windows of equal shape as the method takes them, and what of each is wanted."""

    tiles: tuple[Tile, ...]
    cores: tuple[Box, ...]
    """Product pixels wanted of each window, in or equal to the core of its tile."""
    windows: tuple[Box, ...]
    """Coarse pixels of each window."""
    layers: tuple[tuple[torch.Tensor, int], ...]
    """Arguments of the method, shape (N, channel, y, x), and their pixels per coarse pixel; in strict mode also where the HSI
    and the product are valid, as the last two."""


@dataclass(frozen=True, kw_only=True)
class _Loaded:
    """Tiles whose windows are read."""

    part: _Part
    valid: tuple[torch.Tensor | None, ...]
    """Per tile, shape (band or 1, y, x); None if all is valid."""
    arrived: Any
    """When the copies on the device may be used."""
    started: float


@dataclass(frozen=True, kw_only=True)
class _Computed:
    """Tiles on their way to the disk."""

    tiles: tuple[Tile, ...]
    results: list[torch.Tensor]
    """Samples as stored, and their sums, of each tile in turn."""
    ticket: Any
    started: float


class TileFuser:
    """The method of one job on one device, with the job's arrays opened."""

    def __init__(self, job: StagedJob) -> None:
        self.job = job
        self.device = pick_device(job.config.device)
        if self.device.type == "cpu":
            share_heaps()
            keep_freed_memory()
        self._lane = Lane(self.device)
        self._pair = StagedPair(job)
        self._method = job_fuser(job, self._pair, self.device)
        keep_findings(job, self._method.model)
        self._project = load_projection(job)
        self._product = store.open_array(job.fused, write=True)
        for thread in store.codec_threads():
            step_back(thread)
        gain, offset = self._pair.unscaling
        scale = job.staged.scale if job.config.publish.dtype == "int16" else None
        self._packing = Packing(scale=scale, gain=gain, offset=offset)

    def fuse(self, tiles: Sequence[Tile]) -> Iterator[TileRecord]:
        """Fuse tiles, one batch after the other, reading and writing meanwhile; each is in the ledger when it is given."""
        groups = list(_alike(tiles, self._at_once()))
        for records in convey(groups, load=self.load, work=self.compute, store=self.save):
            yield from records

    def load(self, tiles: Sequence[Tile]) -> _Loaded:
        """Read the windows of tiles of one shape."""
        started = time.monotonic()
        windows = [self._pair.read(tile.window) for tile in tiles]
        ratio = self.job.grids.ratio
        columns = self._method.arguments(windows, [tile.window for tile in tiles])
        if self._project is not None:
            columns += [
                ([w.masks[0] for w in windows], 1),
                ([self._pair.valid_under(tile.window)[None, None] for tile in tiles], ratio),
            ]
        batched = [column[0] if len(tiles) == 1 else torch.cat(column) for column, _ in columns]
        valid = [self._pair.valid(tile) for tile in tiles]
        moved, arrived = self._lane.bring([*batched, *(v for v in valid if v is not None)])
        masks = iter(moved[len(batched) :])
        part = _Part(
            tiles=tuple(tiles),
            cores=tuple(tile.core for tile in tiles),
            windows=tuple(tile.window for tile in tiles),
            layers=tuple((layer, rate) for layer, (_, rate) in zip(moved, columns, strict=False)),
        )
        return _Loaded(
            part=part, valid=tuple(None if v is None else next(masks) for v in valid), arrived=arrived, started=started
        )

    @torch.inference_mode()
    def compute(self, loaded: _Loaded) -> _Computed:
        """Run the method, and pack what it gives."""
        tiles, spec = loaded.part.tiles, self.job.spec
        used = [*(layer for layer, _ in loaded.part.layers), *(v for v in loaded.valid if v is not None)]
        begun = self._lane.begin(used, loaded.arrived)
        packed = {
            tile.key: Packed(self._packing, spec.observed.hsi_bands, tile.core.shape, self.device) for tile in tiles
        }
        valid = {tile.key: mask for tile, mask in zip(tiles, loaded.valid, strict=True)}
        self._fill(loaded.part, packed, valid, _HALVINGS)
        results, ticket = self._lane.end(begun, [t for p in packed.values() for t in (p.stored, p.sums)])
        return _Computed(tiles=tiles, results=results, ticket=ticket, started=loaded.started)

    def save(self, computed: _Computed) -> list[TileRecord]:
        """Write the chunks of tiles, and vouch for them in the ledger."""
        busy_s = self._lane.take(computed.ticket) / len(computed.tiles)
        records = []
        for tile, stored, sums in zip(computed.tiles, computed.results[::2], computed.results[1::2], strict=True):
            store.write(self._product, tile.core, stored.numpy())
            valid, total, low, high, clipped = sums.tolist()
            record = TileRecord(
                key=tile.key,
                # The file is what a resumed run will find, so it is what the record vouches for.
                sha256=store.chunks_digest(self.job.fused, self._product, tile.core) or "",
                pixels=tile.core.shape[0] * tile.core.shape[1],
                valid=[int(n) for n in valid],
                total=total,
                low=[v if n else None for v, n in zip(low, valid, strict=True)],
                high=[v if n else None for v, n in zip(high, valid, strict=True)],
                clipped=int(sum(clipped)),
                seconds=round(time.monotonic() - computed.started, 4),
                busy_s=round(busy_s, 4),
                device=str(self.device),
                precision=self._method.precision,
            )
            self.job.ledger.add(record)
            records.append(record)
        return records

    def _fill(
        self, part: _Part, packed: dict[str, Packed], valid: dict[str, torch.Tensor | None], halvings: int
    ) -> None:
        try:
            fused = self._call(part)
        except (RuntimeError, MemoryError) as error:
            if halvings == 0 or not exhausted(error):
                raise
            log.warning("memory ran out on %s, going on with half of the batch or tile", self.device)
            fused = None
        if fused is None:
            # Outside the handler, whose traceback keeps alive what filled the memory.
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            for half in self._halves(part):
                self._fill(half, packed, valid, halvings - 1)
            return
        ratio, lead = self.job.grids.ratio, self.job.grids.lead
        for cube, tile, core, window in zip(fused, part.tiles, part.cores, part.windows, strict=True):
            y, x = core.y0 + lead[0] - window.y0 * ratio, core.x0 + lead[1] - window.x0 * ratio
            (height, width), (rows, cols), mask = core.shape, core.within(tile.core).slices, valid[tile.key]
            wanted = cube[:, y : y + height, x : x + width]
            with one_thread(self.device):
                packed[tile.key].add(wanted, None if mask is None else mask[:, rows, cols], rows, cols)

    def _call(self, part: _Part) -> torch.Tensor:
        layers = [layer for layer, _ in part.layers]
        if self._project is None:
            return self._method.fused(layers)
        fused = self._method.fused(layers[:-2]).float()
        for image, hsi, shown, valid in zip(fused, layers[0], *layers[-2:], strict=True):
            self._project(image, hsi, shown[0], valid[0])
        return fused

    def _halves(self, part: _Part) -> Iterator[_Part]:
        """Half of the tiles each; of a single tile, half of its core each, with the halo that it needs."""
        if len(part.tiles) > 1:
            middle = len(part.tiles) // 2
            for some in (slice(None, middle), slice(middle, None)):
                yield _Part(
                    tiles=part.tiles[some],
                    cores=part.cores[some],
                    windows=part.windows[some],
                    layers=tuple((layer[some], rate) for layer, rate in part.layers),
                )
            return
        (whole,) = part.windows
        for core in part.cores[0].halves():
            # The method's reach does not change with the tile: this window lies in the one that was read.
            window = self.job.plan.window(core)
            inside = window.within(whole)
            yield _Part(
                tiles=part.tiles,
                cores=(core,),
                windows=(window,),
                layers=tuple((layer[(..., *inside.times(rate).slices)], rate) for layer, rate in part.layers),
            )

    def _at_once(self) -> int:
        """Windows in one call: what is asked for, or what the device holds; on a CPU one, which keeps memory low."""
        if self.job.config.tiles.at_once is not None:
            return self.job.config.tiles.at_once
        if self.device.type != "cuda":
            return 1
        free, _ = torch.cuda.mem_get_info(self.device)
        return max(1, min(_MOST_AT_ONCE, int(_DEVICE_SHARE * free // self.job.plan.call_bytes)))


def _alike(tiles: Sequence[Tile], most: int) -> Iterator[list[Tile]]:
    """The tiles in groups of at most `most` with windows of equal shape, as they come."""
    group: list[Tile] = []
    for tile in tiles:
        if group and (len(group) == most or tile.window.shape != group[0].window.shape):
            yield group
            group = []
        group.append(tile)
    if group:
        yield group


_fusers: dict[Path, TileFuser] = {}
_loading = threading.Lock()


def fuse_batch(folder: str, tiles: Sequence[tuple[int, int]]) -> list[str]:
    """Fuse some tiles of the job in a staging folder; the work of one Dask task.

    Parameters
    ----------
    folder : str
        Staging folder; all workers see it under this path.
    tiles : sequence of (row, col)

    Returns
    -------
    list of str
        Keys of the tiles that are now in the ledger.
    """
    return [record.key for record in fuse_each(folder, tiles)]


def fuse_each(folder: str, tiles: Sequence[tuple[int, int]]) -> Generator[TileRecord, None, None]:
    """The same, one record after the other as tiles finish."""
    fuser = _fuser(Path(folder))
    yield from fuser.fuse([fuser.job.plan.tile(row, col) for row, col in tiles])


def _fuser(folder: Path) -> TileFuser:
    with _loading:
        if folder not in _fusers:
            # A worker that lives through an archive must not keep every scene's model.
            _fusers.clear()
            _fusers[folder] = TileFuser(StagedJob.load(folder))
        return _fusers[folder]


def release() -> None:
    """Forget the loaded method and its arrays."""
    with _loading:
        _fusers.clear()
    give_back_memory()
