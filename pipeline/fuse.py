"""Fuse tiles: one method per process and device, loaded once; a tile reads its window and writes its own chunks.

Padding, holes, cropping and packing happen here and nowhere else, so a method sees whole filled arrays only.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from catalogs.errors import OutOfResources
from pipeline import store
from pipeline.job import Job
from pipeline.ledger import TileRecord
from pipeline.provenance import NODATA
from pipeline.strict import load_projection
from pipeline.tiles import Tile
from pipeline.window import WindowFuser

INT16_RANGE = (-32767, 32767)
"""Stored values of valid samples; -32768 is nodata."""


class TileFuser:
    """The method of one job on one device, with the job's arrays opened."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.device = pick_device(job.config.device)
        self._window = WindowFuser(job, self.device, load_projection(job))
        self._pair = self._window.pair
        self._product = store.open_array(job.fused, write=True)
        self._integer = job.config.publish.dtype == "int16"

    @torch.inference_mode()
    def fuse(self, tile: Tile) -> TileRecord:
        """Fuse one tile, write its chunks, and return what its record must hold; the caller adds it to the ledger."""
        started = time.monotonic()
        fused = self._window(tile.window)
        cube = self._pair.unscaled(fused[0, :, *self._crop(tile)].float().cpu())
        del fused
        valid = self._pair.valid(tile).expand(cube.shape[0], -1, -1)
        packed, clipped = self._pack(cube, valid)
        store.write(self._product, tile.core, packed.numpy())
        # The file is what a resumed run will find, so it is what the record vouches for.
        digest = store.chunks_digest(self.job.fused, self._product, tile.core)
        n_valid = valid.sum(dim=(1, 2))
        low = torch.where(valid, cube, torch.inf).amin(dim=(1, 2))
        high = torch.where(valid, cube, -torch.inf).amax(dim=(1, 2))
        return TileRecord(
            key=tile.key,
            sha256=digest or "",
            pixels=cube.shape[1] * cube.shape[2],
            valid=n_valid.tolist(),
            total=torch.where(valid, cube, 0.0).sum(dim=(1, 2), dtype=torch.float64).tolist(),
            low=[v if n else None for v, n in zip(low.tolist(), n_valid.tolist(), strict=True)],
            high=[v if n else None for v, n in zip(high.tolist(), n_valid.tolist(), strict=True)],
            clipped=clipped,
            seconds=round(time.monotonic() - started, 4),
            device=str(self.device),
        )

    def _crop(self, tile: Tile) -> tuple[slice, slice]:
        """Where the core lies in the fused window."""
        ratio, lead = self.job.grids.ratio, self.job.grids.lead
        y = tile.core.y0 + lead[0] - tile.window.y0 * ratio
        x = tile.core.x0 + lead[1] - tile.window.x0 * ratio
        height, width = tile.core.shape
        return slice(y, y + height), slice(x, x + width)

    def _pack(self, cube: torch.Tensor, valid: torch.Tensor) -> tuple[torch.Tensor, int]:
        if not self._integer:
            return torch.where(valid, cube, torch.nan), 0
        counts = torch.round(cube / self.job.staged.scale)
        clipped = int((((counts < INT16_RANGE[0]) | (counts > INT16_RANGE[1])) & valid).sum())
        counts = counts.clamp_(*INT16_RANGE).to(torch.int16)
        return torch.where(valid, counts, torch.tensor(NODATA, dtype=torch.int16)), clipped


def pick_device(name: str) -> torch.device:
    """The device of a name; `auto` takes CUDA, then CPU.

    Raises
    ------
    OutOfResources
        If a device is asked for that is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise OutOfResources(f"there is no device {name!r}; choose auto, cpu, cuda or cuda:N") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise OutOfResources(
            f"device {name!r} is asked for and {torch.cuda.device_count()} CUDA devices are here; choose auto or cpu"
        )
    return device


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
    fuser = _fuser(Path(folder))
    done = []
    for row, col in tiles:
        record = fuser.fuse(fuser.job.plan.tile(row, col))
        fuser.job.ledger.add(record)
        done.append(record.key)
    return done


def _fuser(folder: Path) -> TileFuser:
    with _loading:
        if folder not in _fusers:
            # A worker that lives through an archive must not keep every scene's model.
            _fusers.clear()
            _fusers[folder] = TileFuser(Job.load(folder))
        return _fusers[folder]


def release() -> None:
    """Forget the loaded method and its arrays."""
    with _loading:
        _fusers.clear()
