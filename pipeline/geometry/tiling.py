"""Tiles: integers that say which product pixels a tile writes and which coarse pixels it reads. No arrays, no I/O.

    window  (coarse pixels)   what the method is given: the core's coarse pixels and a halo, cut at the scene's rim
    core    (product pixels)  what the tile writes: whole Zarr chunks, so no two tiles ever share a chunk

The window lies on the coarse grid; the core need not, because cutting the fused window at any fine pixel is exact.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from hyperfuse.models import ModelSpec
from hyperfuse.pipeline.geometry.box import Box
from hyperfuse.pipeline.geometry.grids import NestedGrids

BASE_BYTES = 700 * 2**20
"""Interpreter, libraries and the allocator's slack, measured: `make bench-memory`."""
_WINDOWS = 3
"""Copies of a tile's inputs alive at once: in the method, read ahead, and on the way between."""
_PACKED = 2.5
"""Packed tiles alive at once: computed, being written, and its chunks being encoded."""
_MARGIN_FLOATS = 80
"""Numbers per fine pixel that what reads the margin holds at once: a group of bands, twice, and masks."""
STAGE_BLOCK_BYTES = 12 * 2**20
"""Budget of one staging step; `stage_edge` turns it into pixels."""
_STAGE_COPIES = 6
"""Copies of a staging step alive at once in the gather."""


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


_THRIFTY = 1.2
"""Fine pixels computed per product pixel up to which a tile is large enough."""


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
    margin: int = 0
    """Coarse pixels around a tile that are wanted beyond the method's halo: what is done to the fused image reads them."""

    def __post_init__(self) -> None:
        if self.core % self.chunk:
            raise ValueError(
                f"core {self.core} must be a multiple of chunk {self.chunk}: writers of one chunk overwrite each other"
            )

    @classmethod
    def fitting(cls, grids: NestedGrids, spec: ModelSpec, *, chunk: int, budget: int, margin: int = 0) -> TilePlan:
        """The plan with the tile that the method prefers, or the largest of whole chunks whose peak memory fits a budget (bytes).

        Where the halo is so small that a smaller tile costs next to nothing, that one is taken: it holds less. Where nothing
        fits, tiles are one chunk, and `peak_bytes` tells by how much it is too little.
        """
        most = max(spec.tile // chunk, 1)
        plans = [cls(grids=grids, spec=spec, core=n * chunk, chunk=chunk, margin=margin) for n in range(1, most + 1)]
        enough = next((plan.core for plan in plans if plan.thrifty), plans[-1].core)
        return next((plan for plan in reversed(plans) if plan.core <= enough and plan.peak_bytes <= budget), plans[0])

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
        return Tile(row=row, col=col, core=core, window=self.window(core))

    def batches(self, size: int, *, done: Collection[str] = ()) -> list[list[Tile]]:
        """Tiles that are not done, in groups of `size`."""
        todo = [tile for tile in self if tile.key not in done]
        return [todo[first : first + size] for first in range(0, len(todo), size)]

    @property
    def halo(self) -> int:
        """Coarse pixels that a tile reads around its core."""
        return self.spec.tile_halo + self.margin

    @property
    def redundancy(self) -> float:
        """Fine pixels computed per product pixel."""
        ratio, height, width = self.grids.ratio, *self.grids.product.shape
        return sum(h * w for h, w in (tile.window.shape for tile in self)) * ratio**2 / (height * width)

    @property
    def thrifty(self) -> bool:
        """Whether a larger tile would save next to nothing."""
        return self._window_pixels <= _THRIFTY * self.core**2

    @property
    def peak_bytes(self) -> int:
        """Predicted peak memory of one process (bytes): the larger of staging and fusing, on top of the libraries."""
        packed = 4 * self.core**2 * self.spec.observed.hsi_bands
        fuse = self.call_bytes + (_WINDOWS - 1) * self._input_bytes + _PACKED * packed
        return int(BASE_BYTES + max(fuse, _STAGE_COPIES * STAGE_BLOCK_BYTES))

    @property
    def call_bytes(self) -> int:
        """Predicted memory of one call of the method with the largest window (bytes), its inputs counted."""
        per_pixel = self.spec.band_copies * self.spec.observed.hsi_bands + self.spec.work_floats
        if self.margin:
            per_pixel += _MARGIN_FLOATS
        return int(4 * self._window_pixels * per_pixel) + self._input_bytes

    @property
    def _window_pixels(self) -> int:
        """Fine pixels of the largest window: a core with its halo on all sides."""
        ratio, step = self.spec.observed.ratio, self.spec.multiple_of
        edge = -(-self.core // ratio) + 1 + 2 * self.halo
        return ((-(-edge // step) + 1) * step * ratio) ** 2 if step > 1 else (edge * ratio) ** 2

    @property
    def _input_bytes(self) -> int:
        observed, rates = self.spec.observed, self.spec.two_rate
        coarse = observed.hsi_bands + (rates.channels * rates.rate**2 if rates else 0)
        return int(4 * self._window_pixels * (observed.msi_bands + coarse / observed.ratio**2))

    def disk_bytes(self, *, uncertain: bool) -> int:
        """Uncompressed size (bytes) of everything a run writes, with standard errors or without."""
        observed, (height, width) = self.spec.observed, self.grids.product.shape
        coarse = math.prod(self.grids.coarse_shape)
        cubes = 3 + 2 * uncertain  # standard errors come in Zarr and NetCDF
        return 4 * coarse * observed.hsi_bands + height * width * (
            4 * observed.msi_bands + cubes * 2 * observed.hsi_bands
        )

    def window(self, core: Box) -> Box:
        """Coarse pixels that must be read to compute some product pixels."""
        rows = self._extent(core.y0, core.y1, self.grids.lead[0], self.grids.coarse_shape[0])
        cols = self._extent(core.x0, core.x1, self.grids.lead[1], self.grids.coarse_shape[1])
        return Box(y0=rows[0], y1=rows[1], x0=cols[0], x1=cols[1])

    def _extent(self, first: int, last: int, lead: int, size: int) -> tuple[int, int]:
        ratio = self.grids.ratio
        return aligned((first + lead) // ratio, -(-(last + lead) // ratio), self.halo, self.spec.multiple_of, size)


def aligned(first: int, last: int, halo: int, step: int, size: int) -> tuple[int, int]:
    """A stretch of coarse pixels and its halo: cut at the scene's rim, begun and ended on multiples of `step`."""
    start = max(first - halo, 0) // step * step
    return start, -(-min(last + halo, size) // step) * step


def stage_edge(n_bands: int, chunk: int) -> int:
    """Edge of a staging step in pixels: a multiple of the chunk whose samples fit the budget, at least one chunk."""
    edge = int((STAGE_BLOCK_BYTES / (4 * n_bands)) ** 0.5)
    return min(max(edge // chunk, 1) * chunk, 4096 // chunk * chunk or chunk)
