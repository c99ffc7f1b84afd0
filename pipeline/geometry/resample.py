"""The one resampling: a window of a target grid, gathered from a scene with all the margin that the kernel needs.

    target pixel centers -> target CRS -> scene CRS (+ displacement) -> scene pixels -> cubic gather, all bands at once

The coordinates are computed once and shared by all bands; the source window is what they span plus the kernel's
support, so no seam can occur between windows. GDAL's warp is the oracle in the tests.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from affine import Affine
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox
from pyproj import Transformer
from scipy.sparse import csr_matrix

from hyperfuse.catalogs.outline import in_turn
from hyperfuse.catalogs.scene import Scene, Window, pixel_size_m
from hyperfuse.models.operators import keys_kernel
from hyperfuse.pipeline.geometry.displacement import NO_DISPLACEMENT, Displacement
from hyperfuse.pipeline.geometry.grids import on_lattice

MIN_WEIGHT = 0.5
"""A sample is valid if its own source pixel is, and if valid pixels carry this share of the kernel."""
_AT_ONCE = 1 << 15
"""Points whose weights are held at a time."""
_LOBES = 6
"""Pixels to each side that the sharp kernel reaches."""

F32 = NDArray[np.float32]
Kernel = Callable[[torch.Tensor], torch.Tensor]
"""Weights of samples at distances in pixels."""
Taps = list[tuple[torch.Tensor, torch.Tensor]]
"""Pixels of one axis under the kernel, and their weights, at each point."""


def warp(
    scene: Scene,
    target: GeoBox,
    window: Window,
    *,
    bands: Sequence[int],
    displacement: Displacement = NO_DISPLACEMENT,
    sharp: bool = False,
) -> NDArray[np.float32]:
    """Samples of a scene at the pixel centers of a window of another grid.

    Parameters
    ----------
    scene : Scene
    target : GeoBox
        Any CRS and resolution. Where it is coarser than the scene the kernel is stretched, so nothing aliases.
    window : (slice, slice)
        Rows and columns of `target`; may reach beyond it.
    bands : sequence of int
        Bands to read.
    displacement : Displacement
        Takes the target's coordinates to those under which the scene shows the same ground, in the target's CRS.
    sharp : bool
        Take a windowed sinc where pixels are about as large in both grids: it keeps detail near the Nyquist frequency
        that the cubic kernel takes away, and reads more of the scene for it.

    Returns
    -------
    ndarray, shape (band, y, x), float32
        NaN where the scene's samples are invalid, and outside it; its outermost pixels are repeated for up to one
        target pixel, so that target pixels across its edge have a value. A lattice that coincides, displaced or not, is
        copied bit by bit.

    Raises
    ------
    InputRejected
        If the scene cannot be read there.

    References
    ----------
    Keys (1981), Cubic convolution interpolation for digital image processing, IEEE TASSP 29(6), 1153-1160 (a = -1/2).
    Duchon (1979), Lanczos filtering in one and two dimensions, J. Appl. Meteorology 18(8), 1016-1022.
    """
    rows, cols = window
    offset = on_lattice(scene.geobox, _moved(target, displacement))
    if offset is not None:
        return _copy(
            scene,
            (rows.start + offset[0], cols.start + offset[1]),
            (rows.stop - rows.start, cols.stop - cols.start),
            bands,
        )
    gather = gathering(scene.geobox, target, window, displacement=displacement, sharp=sharp)
    if gather is None:
        return np.full((len(bands), rows.stop - rows.start, cols.stop - cols.start), np.nan, np.float32)
    return gather(scene.read(gather.window, bands))


@dataclass(frozen=True, kw_only=True, eq=False)
class Gather:
    """How the pixels of a window of one grid are made of those of another."""

    window: Window
    """Rows and columns of the source that are needed."""
    inside: NDArray[np.bool_]
    """Pixels of the target that the source reaches, shape (y, x)."""
    at: tuple[torch.Tensor, torch.Tensor]
    """Rows and columns (pixels of the source's window) of the target's pixels, shape (y, x)."""
    taps: tuple[Taps, Taps]
    """Along rows and columns."""

    def __call__(self, samples: F32) -> F32:
        """Resample what lies on the source's pixels.

        Parameters
        ----------
        samples : ndarray, shape (band, *window), float32
            NaN where invalid.

        Returns
        -------
        ndarray, shape (band, y, x), float32
        """
        out: F32 = _gather(torch.from_numpy(samples), *self.at, *self.taps).numpy()
        out[:, ~self.inside] = np.nan
        return out


def gathering(
    source: GeoBox,
    target: GeoBox,
    window: Window,
    *,
    displacement: Displacement = NO_DISPLACEMENT,
    sharp: bool = False,
) -> Gather | None:
    """How a window of a grid is made of a scene on another; None if the scene does not reach it. Parameters are those of `warp`."""
    row, col = source_pixels(source, target, window, displacement)
    height, width = source.shape
    stretch_x, stretch_y = _stretch(source, target)
    inside = _near(row, height, stretch_y) & _near(col, width, stretch_x)
    if not inside.any():
        return None
    row, col = np.clip(row, 0, height - 1), np.clip(col, 0, width - 1)
    sharp = sharp and stretch_y == stretch_x == 1.0
    lobes = _LOBES if sharp else 2
    top, bottom = _span(row[inside], lobes * stretch_y, height)
    left, right = _span(col[inside], lobes * stretch_x, width)
    kernel = _lanczos_kernel if sharp else keys_kernel
    row_at, col_at = torch.from_numpy(row - top), torch.from_numpy(col - left)
    return Gather(
        window=(slice(top, bottom), slice(left, right)),
        inside=inside,
        at=(row_at, col_at),
        taps=(
            _taps(row_at.flatten(), stretch_y, kernel, lobes),
            _taps(col_at.flatten(), stretch_x, kernel, lobes),
        ),
    )


def is_copied(source: GeoBox, target: GeoBox, displacement: Displacement = NO_DISPLACEMENT) -> bool:
    """Whether `warp` copies a scene on that grid sample by sample."""
    return on_lattice(source, _moved(target, displacement)) is not None


@dataclass(frozen=True)
class Measured:
    """How a scene's own samples lie on another lattice of equal pixels: none is resampled."""

    displacement: Displacement
    """Whole pixels: takes each pixel of the target to the center of the scene's pixel that lies nearest."""
    offset_px: tuple[float, float]
    """Rows and columns (target pixels) by which those samples lie beside the centers of the target's pixels; at most a half."""


def as_measured(scene: GeoBox, target: GeoBox, displacement: Displacement = NO_DISPLACEMENT) -> Measured | None:
    """The scene's samples on a lattice of equal pixels, beside which they lie by one offset everywhere; None if they do not.

    Parameters
    ----------
    scene, target : GeoBox
    displacement : Displacement
        As for `warp`; only a shift is one offset everywhere.
    """
    at = source_pixels(scene, target, (slice(0, 1), slice(0, 1)), displacement)
    row, col = (float(axis[0, 0]) for axis in at)
    beside_row, beside_col = round(row) - row, round(col) - col
    # The move that takes centers to centers; the grids' own axes tell what a pixel is in units of the CRS.
    east, north = (
        target.affine.a * beside_col + target.affine.b * beside_row,
        target.affine.d * beside_col + target.affine.e * beside_row,
    )
    sign = -1.0 if displacement.backward else 1.0
    whole = displacement.model_copy(
        update={"east": displacement.east + sign * east, "north": displacement.north + sign * north}
    )
    if on_lattice(scene, _moved(target, whole)) is None:
        return None
    return Measured(displacement=whole, offset_px=(beside_row, beside_col))


def _moved(target: GeoBox, displacement: Displacement) -> GeoBox | None:
    """The lattice on which the scene shows the target's pixels; None where that is no lattice of equal pixels."""
    if not displacement:
        return target
    if displacement.slope != (0.0, 0.0, 0.0, 0.0) or displacement.field is not None:
        return None
    sign = -1.0 if displacement.backward else 1.0
    move = Affine.translation(sign * displacement.east, sign * displacement.north)
    return GeoBox(target.shape, move @ target.affine, target.crs)


def source_pixels(
    source: GeoBox, target: GeoBox, window: Window, displacement: Displacement = NO_DISPLACEMENT
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Where the pixel centers of a window lie in another grid.

    Returns
    -------
    row, col : ndarray, shape (y, x), float64
        Pixels of `source`; whole numbers are pixel centers. Infinite where the coordinate operation is not defined.
    """
    rows, cols = window
    col, row = np.meshgrid(np.arange(cols.start, cols.stop) + 0.5, np.arange(rows.start, rows.stop) + 0.5)
    x, y = displacement(*(np.asarray(axis) for axis in target.affine @ (col, row)))
    if source.crs != target.crs:
        x, y = _transformer(str(target.crs), str(source.crs)).transform(x, y)
    col, row = ~source.affine @ (in_turn(x, source), y)
    return _quantized(row), _quantized(col)


def target_pixels(
    target: GeoBox, source: GeoBox, window: Window, displacement: Displacement = NO_DISPLACEMENT
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Where pixel centers of a window of a scene lie in the grid that it is brought to: the inverse of `source_pixels`.

    Returns
    -------
    row, col : ndarray, shape (y, x), float64
        Pixels of `target`; whole numbers are pixel centers.
    """
    rows, cols = window
    col, row = np.meshgrid(np.arange(cols.start, cols.stop) + 0.5, np.arange(rows.start, rows.stop) + 0.5)
    x, y = (np.asarray(axis) for axis in source.affine @ (col, row))
    if source.crs != target.crs:
        x, y = _transformer(str(source.crs), str(target.crs)).transform(x, y)
    col, row = ~target.affine @ (-displacement)(in_turn(x, target), y)
    return np.asarray(row) - 0.5, np.asarray(col) - 0.5


def _quantized(corner_based: NDArray[np.float64]) -> NDArray[np.float64]:
    """Pixel centers at whole numbers, in steps of 2**-20 px."""
    # Subtracting a window's corner is then exact: a point midway between two pixels falls to the same one in every window.
    return np.round((np.asarray(corner_based) - 0.5) * 2**20) / 2**20


@lru_cache(maxsize=8)
def _transformer(source: str, target: str) -> Transformer:
    return Transformer.from_crs(source, target, always_xy=True)


def _copy(scene: Scene, first: tuple[int, int], shape: tuple[int, int], bands: Sequence[int]) -> NDArray[np.float32]:
    out = np.full((len(bands), *shape), np.nan, np.float32)
    height, width = scene.geobox.shape
    row0, col0 = max(first[0], 0), max(first[1], 0)
    row1, col1 = min(first[0] + shape[0], height), min(first[1] + shape[1], width)
    if row0 < row1 and col0 < col1:
        place = slice(row0 - first[0], row1 - first[0]), slice(col0 - first[1], col1 - first[1])
        out[:, *place] = scene.read((slice(row0, row1), slice(col0, col1)), bands)
    return out


@lru_cache(maxsize=16)
def _stretch(source: GeoBox, target: GeoBox) -> tuple[float, float]:
    """Source pixels per target pixel along x and y: the kernel must not be narrower than the target's pixel.

    Taken from the grids, not from the window: a kernel that changes between windows is a seam.
    """
    fine, coarse = pixel_size_m(source), pixel_size_m(target)
    # A few percent of shrinkage alias nothing; stretching there would only blur.
    return tuple(step if (step := c / f) > 1.1 else 1.0 for f, c in zip(fine, coarse, strict=True))  # type: ignore[return-value]


def _near(pixels: NDArray[np.float64], size: int, step: float) -> NDArray[np.bool_]:
    """Inside the image, or within one target pixel of it."""
    return (pixels > -0.5 - step) & (pixels < size - 0.5 + step)


def _span(pixels: NDArray[np.float64], reach: float, size: int) -> tuple[int, int]:
    first = int(np.floor(pixels.min() - reach))
    last = int(np.ceil(pixels.max() + reach)) + 1
    return max(first, 0), min(max(last, 1), size)


def _gather(samples: torch.Tensor, row: torch.Tensor, col: torch.Tensor, taps_y: Taps, taps_x: Taps) -> torch.Tensor:
    """Gather with validity weights; `row` and `col` (y, x) are pixels of `samples` (band, h, w)."""
    n_bands, height, width = samples.shape
    cube = samples.numpy().reshape(n_bands, -1)
    valid = np.isfinite(cube)
    # Bands of one pixel side by side: a row of the sparse matrix then adds up runs of memory, not single numbers.
    flat = np.ascontiguousarray(np.where(valid, cube, np.float32(0.0)).T)
    alike = bool((valid == valid[:1]).all())  # one column stands for all bands
    shown = np.ascontiguousarray(valid[:1].T if alike else valid.T).astype(np.float32)
    near = (
        (_nearest(row).clamp(0, height - 1) * width + _nearest(col).clamp(0, width - 1)).flatten().nan_to_num().long()
    )
    out = np.empty((row.numel(), n_bands), np.float32)
    for first in range(0, len(out), _AT_ONCE):
        part = slice(first, first + _AT_ONCE)
        matrix = _weights(
            [(y[part], w[part]) for y, w in taps_y], [(x[part], w[part]) for x, w in taps_x], (height, width)
        )
        weight = matrix @ shown
        good = (weight >= MIN_WEIGHT) & (shown[near[part].numpy()] > 0)
        np.divide(matrix @ flat, np.where(good, weight, np.nan), out=out[part])
    return torch.from_numpy(np.ascontiguousarray(out.T)).reshape(n_bands, *row.shape)


def _weights(taps_y: Taps, taps_x: Taps, shape: tuple[int, int]) -> csr_matrix:
    """Weight of each pixel of an image of that shape, row after row, at each point."""
    height, width = shape
    (y, weight_y), (x, weight_x) = (
        (torch.stack([at for at, _ in taps], 1), torch.stack([weight for _, weight in taps], 1))
        for taps in (taps_y, taps_x)
    )
    weight_y = torch.where((y >= 0) & (y < height), weight_y, 0.0)
    weight_x = torch.where((x >= 0) & (x < width), weight_x, 0.0)
    at = (y.clamp(0, height - 1) * width)[:, :, None] + x.clamp(0, width - 1)[:, None, :]
    weights = weight_y[:, :, None] * weight_x[:, None, :]
    n_points, per_point = len(at), at[0].numel()
    data, indices = weights.float().flatten().numpy(), at.int().flatten().numpy()
    indptr = np.arange(0, n_points * per_point + 1, per_point, dtype=np.int32)
    return csr_matrix((data, indices, indptr), shape=(n_points, height * width))


def _lanczos_kernel(distance: torch.Tensor) -> torch.Tensor:
    """Weight of a sample at a distance in pixels: a sinc under the main lobe of a wider one."""
    weight = torch.sinc(distance) * torch.sinc(distance / _LOBES)
    return torch.where(distance.abs() < _LOBES, weight, torch.zeros_like(distance))


def _nearest(pixels: torch.Tensor) -> torch.Tensor:
    # Not torch.round: it rounds halves to even numbers, which depend on where the window begins.
    return torch.floor(pixels + 0.5)


def _taps(pixels: torch.Tensor, stretch: float, kernel: Kernel, lobes: int) -> Taps:
    """Source pixels under the kernel and their weights, which sum to 1 at each point."""
    pixels = torch.where(torch.isfinite(pixels), pixels, -1e6)
    reach = int(np.ceil(lobes * stretch))
    base = torch.floor(pixels)
    at = [base + tap for tap in range(1 - reach, reach + 1)]
    weights = torch.stack([kernel((pixels - x) / stretch) for x in at])
    weights /= weights.sum(dim=0)
    return list(zip(at, weights, strict=True))
