"""Both images side by side on the HSI's own pixels, block by block: what every measurement of a displacement looks at.

    HSI bands -> channels of a few bands -> combined as each MSI band sees them -> targets  (band, y, x)
    MSI bands -> blurred with the HSI's PSF, thinned, spline -> sampled anywhere -> samples  (band, y, x)

The HSI is never resampled, and the MSI is blurred before it is sampled: correlating sharp edges with soft ones biases
the shift. Moves are in coarse pixels (one HSI ground sampling distance) east and north in the product's CRS, and bring
the MSI onto the HSI: a pixel of the HSI at q is compared with the MSI at q - move.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox
from scipy.ndimage import gaussian_filter, map_coordinates, spline_filter

from hyperfuse.catalogs.bands import detector_of
from hyperfuse.catalogs.outline import area_on
from hyperfuse.catalogs.pairs import ScenePair
from hyperfuse.catalogs.scene import Window, pixel_size_m
from hyperfuse.pipeline.geometry.displacement import Displacement
from hyperfuse.pipeline.geometry.grids import NestedGrids
from hyperfuse.pipeline.geometry.resample import source_pixels, warp

Array = NDArray[np.floating]
Move = tuple[float, float]
"""Coarse pixels east and north."""

_MIN_COVERAGE = 0.3
"""Where the good HSI bands cover less of an MSI band's response, the nearest of them stands in."""
_CHANNELS = 8
"""Parts of the HSI's spectrum, equal in relative width, from which a band's true response may be learned ..."""
_PER_CHANNEL = 4
"""... and bands that are read for each."""
_PER_DETECTOR = 4
"""Parts of each detector's spectrum whose displacement is measured ..."""
_PER_PART = 6
"""... and bands that are read for each."""
_FEWEST_IN_DETECTOR = 3
"""Bands below which a detector is not measured by itself."""
_SAMPLE_PX = 2
"""Edge, in tie-point windows, of the blocks of a sample."""
_WORTH_READING = 1e-3
"""Weight of an HSI band in a response."""
_WINDOW_PX = (10, 32)
"""Smallest and largest edge of a tie-point window, HSI pixels: smaller ones are noise, larger ones hide the field ..."""
_SMALLEST_PX = 8
"""... but an overlap too small for three windows along its shorter side has windows down to this edge."""
_WINDOWS_ACROSS = 8
"""Windows along the shorter side of the overlap, if that keeps their size within the limits."""
_BLOCK_PX = 128
"""Edge of a block, HSI pixels ..."""
_BLOCK_FINE_PX = 1280
"""... and of what it covers of the MSI: memory does not grow with scene or ratio."""
_MAX_BLOCKS = 64
"""Of a scene; a larger one is looked at in as many blocks spread over it."""
_THINNED_SIGMA = 1.4
"""Steps: a Gaussian of this width loses nothing by sampling (5e-5 of its peak is left at the Nyquist frequency)."""
_ENOUGH = 0.5
"""Weight that a channel's valid bands must carry."""
_SHOWN = 0.99
"""Share of the PSF that valid pixels must carry."""
_SATURATED = 16
"""This many pixels at exactly the largest value of a band are saturation, not signal."""


@dataclass(frozen=True, kw_only=True)
class Survey:
    """What is compared, and where."""

    pair: ScenePair
    frame: GeoBox
    """Grid whose CRS moves and positions are in: the product's fine grid."""
    bands: tuple[int, ...]
    """MSI bands that take part, positions in the scene."""
    hsi_bands: tuple[int, ...]
    """HSI bands that make them up, positions in the scene."""
    response: NDArray[np.float32]
    """Weights of the HSI bands in each channel, shape (channel, HSI band): first one channel for each MSI band as its table
    tells, then parts of the spectrum, none of which mixes two detectors."""
    channel_nm: NDArray[np.float64]
    """Center (nm) of each channel, shape (channel,): the MSI band's, then that of the part."""
    mixing: Array
    """Weights of the channels in each target, shape (MSI band, channel)."""
    psf_sigma_px: float
    """Standard deviation of the HSI's PSF, in MSI pixels."""
    unit: tuple[float, float]
    """CRS units of a coarse pixel along x and y."""
    edge: int
    """Edge of a tie-point window, HSI pixels."""
    blocks: tuple[Window, ...]
    """Rows and columns of the HSI, each a whole number of tie-point windows."""
    around: Window
    """Rows and columns of the HSI that meet the product."""

    @classmethod
    def of(cls, pair: ScenePair, grids: NestedGrids, psf_sigma_px: float) -> Survey:
        """The survey of a pair; `psf_sigma_px` is in fine pixels of `grids`."""
        good = np.array(pair.hsi.good_bands)
        weights, coverage = pair.hsi.bands[good].srf(pair.msi.bands)
        bands = tuple(pair.msi.good_bands)
        center_nm = pair.hsi.bands.center_nm[good]
        nearest = np.abs(center_nm - pair.msi.bands.center_nm[:, None])
        stand_in = nearest == nearest.min(axis=1, keepdims=True)
        told = np.where(coverage[:, None] > _MIN_COVERAGE, weights, stand_in / stand_in.sum(axis=1, keepdims=True))
        parts = _parts(center_nm, _CHANNELS, _PER_CHANNEL)
        response = np.concatenate([told[list(bands)], parts]).astype(np.float32)
        channel_nm = np.concatenate([pair.msi.bands.center_nm[list(bands)], parts @ center_nm])
        # The far tails of a Gaussian response are not worth reading a band for.
        heavy = (response > _WORTH_READING).any(axis=0)
        frame = grids.fine
        fine_m = pixel_size_m(frame)
        around = _meeting(pair.hsi.geobox, grids.product)
        shortest = min(part.stop - part.start for part in around)
        edge = min(
            max(shortest // _WINDOWS_ACROSS, min(_WINDOW_PX[0], max(shortest // 3, _SMALLEST_PX))), _WINDOW_PX[1]
        )
        edge = min(edge, shortest)
        return cls(
            pair=pair,
            frame=frame,
            bands=bands,
            hsi_bands=tuple(int(k) for k in good[heavy]),
            response=response[:, heavy],
            channel_nm=channel_nm,
            mixing=np.eye(len(bands), len(response)),
            psf_sigma_px=psf_sigma_px * math.sqrt(fine_m[0] * fine_m[1]) / pair.msi.gsd_m,
            unit=(
                pair.hsi.gsd_m / fine_m[0] * abs(frame.affine.a),
                pair.hsi.gsd_m / fine_m[1] * abs(frame.affine.e),
            ),
            edge=edge,
            blocks=_blocks(around, edge, min(_BLOCK_PX, int(_BLOCK_FINE_PX / pair.gsd_ratio))),
            around=around,
        )

    def with_bands(self, chosen: Sequence[int]) -> Survey:
        """The same with some of its bands, all of one detector, by their place in `bands`."""
        picked = list(chosen)
        parts = np.arange(len(self.bands), len(self.response))
        own = parts[detector_of(self.channel_nm[parts]) == detector_of(self.channel_nm[picked[0]])]
        channels = [*picked, *(own if own.size else parts)]
        read = np.atleast_1d((self.response[channels] > _WORTH_READING).any(axis=0))
        return replace(
            self,
            bands=tuple(self.bands[i] for i in picked),
            hsi_bands=tuple(band for band, wanted in zip(self.hsi_bands, read, strict=True) if wanted),
            response=self.response[channels][:, read],
            channel_nm=self.channel_nm[channels],
            mixing=np.eye(len(picked), len(channels)),
        )

    def by_spectrum(self, bands: Sequence[int], blocks: Sequence[Window]) -> Survey:
        """Some of its blocks with parts of the spectrum as targets, `_PER_DETECTOR` for each detector, and bands of the MSI."""
        good = np.array(self.pair.hsi.good_bands)
        center_nm = self.pair.hsi.bands.center_nm[good]
        of = detector_of(center_nm)
        rows = []
        for detector in np.unique(of):
            own = of == detector
            if own.sum() >= _FEWEST_IN_DETECTOR:
                inside = np.zeros((_PER_DETECTOR, len(good)))
                parts = _parts(center_nm[own], _PER_DETECTOR, _PER_PART)
                inside[: len(parts), own] = parts
                rows.append(inside[: len(parts)])
        response = np.concatenate(rows) if rows else np.zeros((0, len(good)))
        read = response.any(axis=0)
        return replace(
            self,
            bands=tuple(bands),
            blocks=tuple(blocks),
            hsi_bands=tuple(int(k) for k in good[read]),
            response=response[:, read].astype(np.float32),
            channel_nm=response @ center_nm,
            mixing=np.eye(len(response)),
        )

    @property
    def n_windows(self) -> int:
        """Tie-point windows of the overlap, in its blocks or not."""
        down, across = (max(1, (part.stop - part.start) // self.edge) for part in self.around)
        return int(down * across)

    def sampled(self, n_windows: int) -> Survey:
        """The same with small blocks spread evenly over the overlap, of about `n_windows` in all."""
        blocks = _blocks(self.around, self.edge, _SAMPLE_PX * self.edge, most=None)
        rows, cols = (sorted({block[axis].start for block in blocks}) for axis in (0, 1))
        share = math.sqrt(n_windows / _SAMPLE_PX**2 / (len(rows) * len(cols)))
        picked = [
            {part[i] for i in np.linspace(0, len(part) - 1, max(2, round(len(part) * share))).round().astype(int)}
            for part in (rows, cols)
        ]
        return replace(self, blocks=tuple(b for b in blocks if b[0].start in picked[0] and b[1].start in picked[1]))

    @property
    def bounds(self) -> tuple[Array, Array]:
        """Smallest and largest position (x, y) of its HSI pixels in the frame's CRS, each of shape (2,)."""
        along = [np.linspace(part.start, part.stop - 1, 5).round().astype(int) for part in self.around]
        lines = [positions(self, (slice(row, row + 1), self.around[1])) for row in along[0]]
        lines += [positions(self, (self.around[0], slice(col, col + 1))) for col in along[1]]
        ends = np.array([[line.min(axis=(1, 2)), line.max(axis=(1, 2))] for line in lines])
        return ends[:, 0].min(axis=0), ends[:, 1].max(axis=0)

    def mean_move(self, displacement: Displacement) -> Move:
        """Mean of a displacement over the overlap, coarse pixels east and north."""
        low, high = self.bounds
        x, y = np.meshgrid(*(np.linspace(low[k], high[k], 33) for k in (0, 1)))
        east, north = self.moves(displacement, x, y).mean(axis=(1, 2))
        return float(east), float(north)

    def band_nm(self, k: int) -> float:
        """Center (nm) of one of its bands."""
        return float(self.pair.msi.bands.center_nm[self.bands[k]])

    def moves(self, displacement: Displacement, x: Array, y: Array) -> Array:
        """Move (coarse px) at positions in the frame, shape (2, *x.shape): east, north."""
        east, north = displacement.at(x, y)
        return np.stack([east / self.unit[0], north / self.unit[1]])


@dataclass(frozen=True, kw_only=True)
class View:
    """Both images over one block of HSI pixels."""

    survey: Survey
    window: Window
    """Rows and columns of the HSI."""
    channels: NDArray[np.float32]
    """HSI in channels, shape (channel, y, x); NaN where invalid."""
    x: Array
    """Positions of the pixel centers in the frame's CRS, shape (y, x)."""
    y: Array
    at: Array
    """Rows and columns of `spline` at the pixel centers, shape (2, y, x)."""
    to_msi: Array
    """Rows and columns of `spline` per coarse pixel east and north, shape (2, 2)."""
    to_hsi: Array
    """HSI rows and columns per coarse pixel east and north, shape (2, 2)."""
    origin: tuple[float, float]
    """Row and column, in the MSI, of the first sample of `spline` ..."""
    step: int
    """... and MSI pixels between samples."""
    spline: NDArray[np.float32]
    """Cubic B-spline coefficients of the blurred MSI, shape (band, Y, X)."""
    shown: NDArray[np.float32]
    """1 where the blurred MSI is valid in all bands, else 0, shape (Y, X)."""

    @property
    def nbytes(self) -> int:
        """Memory that the view holds."""
        return int(self.spline.nbytes + self.shown.nbytes + self.channels.nbytes + 4 * self.x.nbytes)

    def targets(self, mixing: Array) -> Array:
        """HSI as each MSI band sees it, shape (band, y, x); NaN where invalid."""
        return np.asarray(np.tensordot(mixing, self.channels, axes=1))

    def lattice(self, move: Move, margin: int) -> Array:
        """MSI on the lattice of the HSI, continued by `margin` pixels on each side; NaN where invalid."""
        rows, cols = self.window
        wider = (slice(rows.start - margin, rows.stop + margin), slice(cols.start - margin, cols.stop + margin))
        row, col = source_pixels(self.survey.pair.msi.geobox, self.survey.pair.hsi.geobox, wider)
        at = np.stack([(row - self.origin[0]) / self.step, (col - self.origin[1]) / self.step])
        return self._sampled(at - (self.to_msi @ np.asarray(move))[:, None, None])

    def samples(self, move: Array) -> Array:
        """MSI at each HSI pixel less `move` (coarse px, shape (2, y, x)); shape (band, y, x), NaN where invalid."""
        return self._sampled(self._moved(move))

    def gradients(self, move: Array) -> Array:
        """Change of `samples` per coarse pixel that the move goes east and north, shape (2, band, y, x)."""
        at = self._moved(move)
        # The derivative of a cubic spline is the quadratic one of its coefficients' differences, which lie half a step on.
        # Linear weights do: the gradient decides how fast the solution is reached, not where it lies.
        along = []
        for axis in (0, 1):
            half = at - np.array([0.5, 0.0] if axis == 0 else [0.0, 0.5])[:, None, None]
            along.append([_at(band, half, order=1) for band in np.diff(self.spline, axis=axis + 1)])
        return np.asarray(-np.einsum("am,abyx->mbyx", self.to_msi, np.asarray(along)))

    def _moved(self, move: Array) -> Array:
        return np.asarray(self.at - np.einsum("am,myx->ayx", self.to_msi, move))

    def _sampled(self, at: Array) -> Array:
        out = np.stack([_at(band, at, order=3) for band in self.spline])
        outside = map_coordinates(self.shown, at, order=1, mode="constant") < _SHOWN
        out[:, outside] = np.nan
        return out


def positions(survey: Survey, window: Window) -> Array:
    """Centers of HSI pixels in the frame's CRS, shape (2, y, x): x, y."""
    row, col = source_pixels(survey.frame, survey.pair.hsi.geobox, window)
    a, b, c, d, e, f = tuple(survey.frame.affine)[:6]
    return np.stack([a * (col + 0.5) + b * (row + 0.5) + c, d * (col + 0.5) + e * (row + 0.5) + f])


def open_view(survey: Survey, window: Window, reach: Sequence[Move]) -> View:
    """Read both images for one block.

    Parameters
    ----------
    survey : Survey
    window : (slice, slice)
        Rows and columns of the HSI.
    reach : sequence of (float, float)
        Moves (coarse px) that will be asked for, at most; the MSI is read as far as their extremes need.

    Raises
    ------
    InputRejected
        If an image cannot be read there.
    """
    pair, sigma = survey.pair, survey.psf_sigma_px
    row, col = source_pixels(pair.msi.geobox, pair.hsi.geobox, window)
    x, y = positions(survey, window)
    position = np.stack([x / survey.unit[0], y / survey.unit[1]])
    per_move = _jacobian(position, np.stack([row, col]))
    corners = per_move @ np.asarray(reach, float).T
    margin = math.ceil(4 * sigma) + 4
    first = [math.floor(part.min() - moved.max()) - margin for part, moved in zip((row, col), corners, strict=True)]
    last = [math.ceil(part.max() - moved.min()) + margin for part, moved in zip((row, col), corners, strict=True)]
    step = max(1, int(sigma / _THINNED_SIGMA))
    fine = warp(
        pair.msi, pair.msi.geobox, (slice(first[0], last[0] + 1), slice(first[1], last[1] + 1)), bands=survey.bands
    )
    fine[_saturated(fine)] = np.nan
    spline, shown = _blurred(fine, sigma, step)
    hsi = pair.hsi.read(window, survey.hsi_bands)
    index = np.mgrid[window[0].start : window[0].stop, window[1].start : window[1].stop]
    return View(
        survey=survey,
        window=window,
        channels=_combined(survey.response, hsi),
        x=x,
        y=y,
        at=np.stack([(row - first[0]) / step, (col - first[1]) / step]),
        to_msi=per_move / step,
        to_hsi=_jacobian(position, index),
        origin=(float(first[0]), float(first[1])),
        step=step,
        spline=spline,
        shown=shown,
    )


def smoothed(image: Array, sigma: float) -> tuple[Array, Array]:
    """Gaussian mean of the valid samples of an image (y, x), and the share of the kernel that they carry.

    Not `models.operators.degrade`: the blurred image is sampled later, at any position, and not at the centers of coarse pixels.
    """
    valid = np.isfinite(image)
    if valid.all():
        return gaussian_filter(image, sigma, mode="nearest"), np.ones_like(image)
    share = gaussian_filter(valid.astype(np.float32), sigma, mode="nearest")
    total = gaussian_filter(np.where(valid, image, 0.0), sigma, mode="nearest")
    return np.divide(total, share, out=np.full_like(image, np.nan), where=share > 1e-3), share


def _combined(weights: NDArray[np.float32], hsi: NDArray[np.float32]) -> NDArray[np.float32]:
    """Channels (channel, y, x) of HSI bands (band, y, x); a band that is missing is left out where it is."""
    valid = np.isfinite(hsi)
    if valid.all():
        return np.asarray(np.tensordot(weights, hsi, axes=1), np.float32)
    total = np.tensordot(weights, np.where(valid, hsi, 0.0), axes=1)
    weight = np.tensordot(weights, valid.astype(np.float32), axes=1)
    channels = np.divide(total, weight, out=np.full_like(total, np.nan), where=weight > _ENOUGH)
    absent = ~np.isfinite(channels).any(axis=(1, 2))
    # Dead detectors that no header tells of: a flat channel says nothing, one of NaN would silence all others.
    channels[absent & ~absent.all()] = 0.0
    return np.asarray(channels, np.float32)


def _blurred(fine: Array, sigma: float, step: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Spline coefficients (band, Y, X) of what is blurred and thinned, and 1 where it is valid in all bands that are alive."""
    alive = np.atleast_1d(np.isfinite(fine).any(axis=(1, 2)))
    spline, shown = [], np.full(fine[0, ::step, ::step].shape, alive.any())
    for band, lives in zip(fine, alive, strict=True):
        mean, share = smoothed(band, sigma)
        mean = mean[::step, ::step]
        if lives:
            shown &= share[::step, ::step] > _SHOWN
        filled = np.where(np.isfinite(mean), mean, np.nanmean(mean) if np.isfinite(mean).any() else 0.0)
        spline.append(spline_filter(filled, order=3, output=np.float32, mode="mirror"))
    return np.asarray(spline), shown.astype(np.float32)


def _saturated(cube: Array) -> NDArray[np.bool_]:
    """Samples at the largest value of their band, where many share it, shape of `cube`."""
    top = np.nanmax(np.where(np.isfinite(cube), cube, -np.inf), axis=(1, 2), keepdims=True)
    at_top = cube == top
    # A band of a single value is featureless, not saturated.
    many = (at_top.sum(axis=(1, 2), keepdims=True) >= _SATURATED) & (np.isfinite(cube) & ~at_top).any(
        axis=(1, 2), keepdims=True
    )
    return np.asarray(at_top & many)


def _at(image: Array, at: Array, *, order: int) -> Array:
    return np.asarray(map_coordinates(image, at, order=order, mode="nearest", prefilter=False))


def _jacobian(position: Array, index: Array) -> Array:
    """Best linear map from changes of position to changes of index, both of shape (2, y, x)."""
    thin = (
        slice(None),
        slice(None, None, max(1, position.shape[1] // 8)),
        slice(None, None, max(1, position.shape[2] // 8)),
    )
    a, b = position[thin].reshape(2, -1), index[thin].reshape(2, -1)
    a, b = a - a.mean(axis=1, keepdims=True), b - b.mean(axis=1, keepdims=True)
    return np.asarray(np.linalg.lstsq(a.T, b.T, rcond=None)[0].T)


def _parts(center_nm: NDArray[np.float64], n_parts: int, per_part: int) -> NDArray[np.float64]:
    """Parts of the spectrum of equal relative width, each the mean of a few bands of one detector; shape (part, band)."""
    edges = np.geomspace(center_nm[0], center_nm[-1] * (1 + 1e-9) + 1e-6, n_parts + 1)
    rows = []
    for low, high in pairwise(edges):
        for detector in (0, 1):
            inside = np.flatnonzero((center_nm >= low) & (center_nm < high) & (detector_of(center_nm) == detector))
            if inside.size:
                read = inside[np.linspace(0, inside.size - 1, min(inside.size, per_part)).round().astype(int)]
                rows.append(np.bincount(read, minlength=len(center_nm)) / len(read))
    return np.array(rows)


def _meeting(hsi: GeoBox, product: GeoBox) -> Window:
    """HSI pixels that lie in the product's extent."""
    length = max(product.boundingbox.span_x, product.boundingbox.span_y)
    outline = area_on(product.extent.segmented(length / 32), hsi).boundingbox
    corners = [~hsi.affine @ (x, y) for x in (outline.left, outline.right) for y in (outline.bottom, outline.top)]
    ranges = []
    for axis, size in ((1, hsi.shape[0]), (0, hsi.shape[1])):
        values = [corner[axis] for corner in corners]
        first = min(max(math.floor(min(values) + 1e-3), 0), size - 1)
        ranges.append(slice(first, max(min(math.ceil(max(values) - 1e-3), size), first + 1)))
    return ranges[0], ranges[1]


def _blocks(around: Window, edge: int, block: int, *, most: int | None = _MAX_BLOCKS) -> tuple[Window, ...]:
    """Blocks of whole windows, `most` of them; what is left over is shared by both rims."""
    per_block = max(1, block // edge)
    parts = []
    for part in around:
        n_windows = max(1, (part.stop - part.start) // edge)
        start = part.start + (part.stop - part.start - n_windows * edge) // 2
        parts.append(
            [
                slice(start + i * edge, start + min(i + per_block, n_windows) * edge)
                for i in range(0, n_windows, per_block)
            ]
        )
    blocks = [(rows, cols) for rows in parts[0] for cols in parts[1]]
    picked = np.linspace(0, len(blocks) - 1, min(len(blocks), most or len(blocks))).round().astype(int)
    return tuple(blocks[i] for i in picked)
