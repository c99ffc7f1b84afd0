"""Tiles: integers that say which product pixels a tile writes and which coarse pixels it reads. No arrays, no I/O.

    window  (coarse pixels)   what the method is given: the core's coarse pixels and a halo, cut at the scene's rim
    core    (product pixels)  what the tile writes: whole Zarr chunks, so no two tiles ever share a chunk

The window lies on the coarse grid; the core need not, because cutting the fused window at any fine pixel is exact.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from models import ModelSpec
from pipeline.grids import NestedGrids

BASE_BYTES = 700 * 2**20
"""Interpreter, libraries and the allocator's slack, measured: `make bench-memory`."""
_FLOATS_PER_OUTPUT = 4.5
"""Copies of a fused window alive at once (interpolated, injected, unpacked, packed), measured likewise."""
STAGE_BLOCK_BYTES = 12 * 2**20
"""Budget of one staging step; `stage_edge` turns it into pixels."""
_STAGE_COPIES = 6
"""Copies of a staging step alive at once in the gather."""


@dataclass(frozen=True, kw_only=True)
class Box:
    """A half-open rectangle of pixels."""

    y0: int
    """First row."""
    y1: int
    """Row after the last."""
    x0: int
    """First column."""
    x1: int
    """Column after the last."""

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.y1 - self.y0, self.x1 - self.x0

    @property
    def slices(self) -> tuple[slice, slice]:
        """Index of the two last axes."""
        return slice(self.y0, self.y1), slice(self.x0, self.x1)

    def grown(self, margin: int) -> Box:
        """The rectangle and `margin` pixels around it."""
        return Box(y0=self.y0 - margin, y1=self.y1 + margin, x0=self.x0 - margin, x1=self.x1 + margin)

    def times(self, ratio: int) -> Box:
        """The same rectangle in pixels `ratio` times smaller."""
        return Box(y0=self.y0 * ratio, y1=self.y1 * ratio, x0=self.x0 * ratio, x1=self.x1 * ratio)


@dataclass(frozen=True, kw_only=True)
class Tile:
    """One unit of work."""

    row: int
    """Row of the tile in the plan."""
    col: int
    """Column of the tile in the plan."""
    core: Box
    """Product pixels that it writes."""
    window: Box
    """Coarse pixels that it reads; may reach beyond the far rim to keep `multiple_of`, where the rim is repeated."""

    @property
    def key(self) -> str:
        """Name in the ledger."""
        return f"{self.row}.{self.col}"


@dataclass(frozen=True, kw_only=True)
class TilePlan:
    """All tiles of one fusion.

    Raises
    ------
    ValueError
        If the core is no multiple of the chunk: writers that share a chunk lose pixels without an error.
    """

    grids: NestedGrids
    """Product and coarse grid."""
    spec: ModelSpec
    """Method, with its halo."""
    core: int
    """Edge of a tile in product pixels."""
    chunk: int
    """Edge of a Zarr chunk in product pixels."""

    def __post_init__(self) -> None:
        if self.core % self.chunk:
            raise ValueError(
                f"core {self.core} must be a multiple of chunk {self.chunk}: writers of one chunk overwrite each other"
            )

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of tiles."""
        height, width = self.grids.product.shape
        return -(-height // self.core), -(-width // self.core)

    @property
    def n_tiles(self) -> int:
        """Number of tiles."""
        return self.shape[0] * self.shape[1]

    def __iter__(self) -> Iterator[Tile]:
        for row in range(self.shape[0]):
            for col in range(self.shape[1]):
                yield self.tile(row, col)

    def tile(self, row: int, col: int) -> Tile:
        """The tile of a row and column of the plan."""
        height, width = self.grids.product.shape
        y0, x0 = row * self.core, col * self.core
        core = Box(y0=y0, y1=min(y0 + self.core, height), x0=x0, x1=min(x0 + self.core, width))
        return Tile(row=row, col=col, core=core, window=self._window(core))

    def batches(self, size: int, *, done: Collection[str] = ()) -> list[list[Tile]]:
        """Tiles that are not done, in groups of `size`."""
        todo = [tile for tile in self if tile.key not in done]
        return [todo[first : first + size] for first in range(0, len(todo), size)]

    @property
    def redundancy(self) -> float:
        """Fine pixels computed per product pixel."""
        ratio, height, width = self.grids.ratio, *self.grids.product.shape
        return sum(h * w for h, w in (tile.window.shape for tile in self)) * ratio**2 / (height * width)

    @property
    def peak_bytes(self) -> int:
        """Predicted peak memory of one process (bytes): the larger of staging and fusing, on top of the libraries."""
        observed = self.spec.observed
        window = self._window(Box(y0=0, y1=self.core, x0=0, x1=self.core)).times(observed.ratio).shape
        pixels = (window[0] + self.spec.tile_halo * observed.ratio) * (window[1] + self.spec.tile_halo * observed.ratio)
        per_pixel = _FLOATS_PER_OUTPUT * observed.hsi_bands + 3 * observed.msi_bands + self.spec.work_floats
        fuse = 4 * pixels * per_pixel
        return int(BASE_BYTES + max(fuse, _STAGE_COPIES * STAGE_BLOCK_BYTES))

    def disk_bytes(self, *, uncertain: bool) -> int:
        """Uncompressed size (bytes) of everything a run writes, with standard errors or without."""
        observed, (height, width) = self.spec.observed, self.grids.product.shape
        coarse = math.prod(self.grids.coarse_shape)
        cubes = 3 + 2 * uncertain  # standard errors come in Zarr and NetCDF
        return 4 * coarse * observed.hsi_bands + height * width * (
            4 * observed.msi_bands + cubes * 2 * observed.hsi_bands
        )

    def _window(self, core: Box) -> Box:
        rows = self._extent(core.y0, core.y1, self.grids.lead[0], self.grids.coarse_shape[0])
        cols = self._extent(core.x0, core.x1, self.grids.lead[1], self.grids.coarse_shape[1])
        return Box(y0=rows[0], y1=rows[1], x0=cols[0], x1=cols[1])

    def _extent(self, first: int, last: int, lead: int, size: int) -> tuple[int, int]:
        ratio = self.grids.ratio
        return aligned(
            (first + lead) // ratio, -(-(last + lead) // ratio), self.spec.tile_halo, self.spec.multiple_of, size
        )


def aligned(first: int, last: int, halo: int, step: int, size: int) -> tuple[int, int]:
    """A stretch of coarse pixels and its halo: cut at the scene's rim, begun and ended on multiples of `step`."""
    start = max(first - halo, 0) // step * step
    return start, -(-min(last + halo, size) // step) * step


def stage_edge(n_bands: int, chunk: int) -> int:
    """Edge of a staging step in pixels: a multiple of the chunk whose samples fit the budget, at least one chunk."""
    edge = int((STAGE_BLOCK_BYTES / (4 * n_bands)) ** 0.5)
    return min(max(edge // chunk, 1) * chunk, 4096 // chunk * chunk or chunk)
