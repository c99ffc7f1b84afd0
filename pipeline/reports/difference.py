"""Difference of two cubes on one grid, accumulated block by block: statistics per band, and maps."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hyperfuse.pipeline.geometry.box import Box
from hyperfuse.pipeline.quality.accumulators import F32

F64 = NDArray[np.float64]
CELLS = 64
"""Cells along the longer side of the map of each band, at most."""
MAX_CELL_SAMPLES = 800_000
"""Cells of all bands, at most: a page carries a byte for each."""


@dataclass(kw_only=True, eq=False)
class Difference:
    """Sums over the blocks that were added; a sample counts where both cubes are valid."""

    shape: tuple[int, int, int]
    """Bands, rows and columns of the cubes."""
    step: int
    """Spacing (px) of the rows and columns of `map`."""
    n: F64 = field(init=False)
    """Samples per band."""
    moments: F64 = field(init=False)
    """Sums per band, shape (6, band): a, b, a squared, b squared, a times b, square of the difference b - a."""
    largest: F64 = field(init=False)
    """Largest absolute difference per band."""
    cells: F64 = field(init=False)
    """Sum and number of the squared differences in each cell, shape (2, band, row, col)."""
    map: F32 = field(init=False)
    """Root mean square of the difference over bands at every `step`-th pixel, NaN where no band is valid in both."""
    angle: float = field(init=False, default=0.0)
    """Sum of the angles (rad) between spectra of which all bands are valid in both cubes."""
    pixels: int = field(init=False, default=0)
    """Number of such spectra."""

    def __post_init__(self) -> None:
        bands, height, width = self.shape
        self.n, self.largest, self.moments = np.zeros(bands), np.zeros(bands), np.zeros((6, bands))
        edge = max(min(CELLS, int((MAX_CELL_SAMPLES / bands) ** 0.5)), 1)
        longer = max(height, width)
        rows, cols = (max(1, round(size * min(edge, longer) / longer)) for size in (height, width))
        self.cells = np.zeros((2, bands, rows, cols))
        self.map = np.full((-(-height // self.step), -(-width // self.step)), np.nan, np.float32)

    def add(self, box: Box, a: F32, b: F32) -> None:
        """Add a block of both cubes.

        Parameters
        ----------
        box : Box
            Where the block lies.
        a, b : ndarray, shape (band, y, x)
            Physical values, NaN where invalid.
        """
        both = np.isfinite(a) & np.isfinite(b)
        a, b = np.where(both, a, np.float32(0)), np.where(both, b, np.float32(0))
        square = (b - a) ** 2
        self.n += both.sum(axis=(1, 2))
        sums = [values.sum(axis=(1, 2), dtype=np.float64) for values in (a, b)]
        products = [np.einsum("byx,byx->b", *pair, dtype=np.float64) for pair in ((a, a), (b, b), (a, b))]
        self.moments += np.stack([*sums, *products, square.sum(axis=(1, 2), dtype=np.float64)])
        self.largest = np.maximum(self.largest, np.sqrt(square.max(axis=(1, 2))))
        for cell, values in zip(self.cells, (square, both), strict=True):
            _add_cells(cell, values, box, self.shape)
        self._add_angles(a, b, np.logical_and.reduce(both, axis=0))
        rows, cols = (np.arange(-(-low // self.step) * self.step, high, self.step) for low, high in _spans(box))
        if rows.size and cols.size:
            inside = np.ix_(np.arange(self.shape[0]), rows - box.y0, cols - box.x0)
            count = both[inside].sum(axis=0)
            total = square[inside].sum(axis=0, dtype=np.float64)
            rms = np.sqrt(np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0))
            self.map[np.ix_(rows // self.step, cols // self.step)] = rms

    def _add_angles(self, a: F32, b: F32, whole: NDArray[np.bool_]) -> None:
        """Add the angles of spectra with all bands valid in both blocks; a spectrum of zeros has no angle."""
        dot, lengths = (a * b).sum(axis=0, dtype=np.float64), [(v * v).sum(axis=0, dtype=np.float64) for v in (a, b)]
        product = np.sqrt(lengths[0] * lengths[1])
        whole = whole & (product > 0)
        self.angle += float(np.arccos(np.clip(dot[whole] / product[whole], -1.0, 1.0)).sum())
        self.pixels += int(whole.sum())

    def to_json(self) -> dict[str, Any]:
        """Figures over all samples and per band; None where no sample is valid in both cubes."""
        total, n = self.moments.sum(axis=1), float(self.n.sum())
        band_rmse, band_bias = self._rmse(), _ratio(self.moments[1] - self.moments[0], self.n)
        return {
            "samples": int(n),
            "pixels": self.pixels,
            "rmse": float(np.sqrt(total[5] / n)) if n else None,
            "bias": float((total[1] - total[0]) / n) if n else None,
            "largest": float(self.largest.max()) if n else None,
            "sam_deg": float(np.degrees(self.angle / self.pixels)) if self.pixels else None,
            "r2": _mean(self._r2()),
            "band_rmse": _listed(band_rmse),
            "band_bias": _listed(band_bias),
            "band_r2": _listed(self._r2()),
            "band_largest": _listed(np.where(self.n > 0, self.largest, np.nan)),
        }

    def cell_rms(self) -> F64:
        """Root mean square of the difference in each cell, shape (band, row, col), NaN in empty cells."""
        return np.sqrt(_ratio(self.cells[0], self.cells[1]))

    def _rmse(self) -> F64:
        return np.sqrt(_ratio(self.moments[5], self.n))

    def _r2(self) -> F64:
        """Squared correlation per band; NaN where a cube is constant."""
        a, b, aa, bb, ab, _ = self.moments
        covariance = self.n * ab - a * b
        spread = (self.n * aa - a * a) * (self.n * bb - b * b)
        return _ratio(covariance**2, np.where(spread > 0, spread, 0.0))


@dataclass(kw_only=True, eq=False)
class Sampled:
    """Some bands of a cube at the crossings of some rows and columns, picked from its blocks."""

    bands: NDArray[np.int64]
    rows: NDArray[np.int64]
    """Increasing."""
    cols: NDArray[np.int64]
    """Increasing."""
    values: F32 = field(init=False)
    """Shape (band, row, col), NaN where nothing was added."""

    def __post_init__(self) -> None:
        self.values = np.full((self.bands.size, self.rows.size, self.cols.size), np.nan, np.float32)

    def add(self, box: Box, block: F32) -> None:
        """Pick from a block, shape (band, y, x) with all bands."""
        (top, bottom), (left, right) = (
            np.searchsorted(at, span) for at, span in zip((self.rows, self.cols), _spans(box), strict=True)
        )
        rows, cols = self.rows[top:bottom] - box.y0, self.cols[left:right] - box.x0
        self.values[:, top:bottom, left:right] = block[np.ix_(self.bands, rows, cols)]


def _spans(box: Box) -> tuple[tuple[int, int], tuple[int, int]]:
    return (box.y0, box.y1), (box.x0, box.x1)


def _add_cells(cell: F64, values: NDArray[Any], box: Box, shape: tuple[int, int, int]) -> None:
    """Add the sums of a block over the cells that it touches; every pixel is in one cell."""
    sums: NDArray[Any] = values
    places = []
    for axis, (low, high) in enumerate(_spans(box), start=1):
        ids, starts = np.unique(np.arange(low, high) * cell.shape[axis] // shape[axis], return_index=True)
        sums = np.add.reduceat(sums, starts, axis=axis, dtype=np.float64)
        places.append(ids)
    cell[:, places[0][:, None], places[1]] += sums


def _ratio(top: F64, bottom: F64) -> F64:
    result: F64 = np.divide(top, bottom, out=np.full(np.shape(top), np.nan), where=bottom > 0)
    return result


def _mean(values: F64) -> float | None:
    known = values[np.isfinite(values)]
    return float(known.mean()) if known.size else None


def _listed(values: F64) -> list[float | None]:
    return [float(value) if np.isfinite(value) else None for value in values]
