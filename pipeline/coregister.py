"""Global displacement of the MSI against the HSI: one shift, sub-pixel, or none if it cannot be trusted.

    MSI band -> blurred with the HSI's PSF ----------+
    HSI bands -> combined with that band's response --+--> normalized correlation of the detail
        whole coarse pixels: every shift within the search range
        below: the correlation's maximum, by a simplex search on spline-sampled images

The MSI is blurred first: correlating sharp edges with soft ones biases the shift.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox
from scipy.ndimage import gaussian_filter, map_coordinates, spline_filter
from scipy.optimize import minimize

from catalogs.bands import Bands
from catalogs.pairs import ScenePair
from catalogs.scene import Window, pixel_size_m
from pipeline.config import AlignConfig
from pipeline.grids import NestedGrids
from pipeline.job import Registration
from pipeline.warp import source_pixels, warp

log = logging.getLogger(__name__)

MIN_CORRELATION = 0.4
"""Below this the two images do not show the same detail, and no shift is believed."""
MIN_GAIN = 5e-4
"""A shift that improves the correlation by less is within what interpolation does; the geometry stays."""
_FINE_EDGE = 1024
"""The estimate looks at a central window of about this many fine pixels; one global shift needs no more."""
_MIN_EDGE = 96
"""... and of at least this many HSI pixels, where the ratio is large."""
_DETAIL_PX = 3.0
"""Coarse pixels: what is smoother is illumination and land cover, which makes a broad, weak peak."""
_MIN_SAMPLES = 64
_AGREEMENT = 0.8
"""Share of the best band's correlation from which a band takes part in the fine search."""

Array = NDArray[np.floating]


@dataclass(frozen=True)
class _View:
    """Detail of both images over one window of the HSI's own grid; the HSI is not resampled for the estimate."""

    hsi: Array
    """Shape (y, x); NaN where invalid."""
    row: Array
    """Where the HSI's pixel centers lie in `msi`, rows, shape (y, x)."""
    col: Array
    """Likewise, columns."""
    msi: Array
    """Blurred with the HSI's PSF, on the fine grid with a margin, shape (Y, X)."""
    spline: Array
    """Spline coefficients of `msi`."""
    shown: Array
    """Where the blurred MSI is valid, 0 to 1."""

    def nearest(self, shift_y: int, shift_x: int) -> tuple[float, int]:
        """`correlation` at whole fine pixels, quickly."""
        at = (
            np.clip(np.round(self.row + shift_y).astype(int), 0, self.msi.shape[0] - 1),
            np.clip(np.round(self.col + shift_x).astype(int), 0, self.msi.shape[1] - 1),
        )
        return _correlation(self.hsi, self.msi[at], self.shown[at])

    def correlation(self, shift_y: float, shift_x: float) -> tuple[float, int]:
        """Correlation of the HSI with the MSI sampled `shift` fine pixels away, and the samples that counted."""
        at = self.row + shift_y, self.col + shift_x
        sampled = map_coordinates(self.spline, at, order=3, mode="nearest", prefilter=False)
        return _correlation(self.hsi, sampled, map_coordinates(self.shown, at, order=0, mode="constant"))


def _correlation(hsi: Array, msi: Array, shown: Array) -> tuple[float, int]:
    both = (shown > 0.99) & np.isfinite(hsi)
    n_samples = int(both.sum())
    if n_samples < _MIN_SAMPLES:
        return -1.0, n_samples
    a, b = hsi[both].astype(np.float64), msi[both].astype(np.float64)
    a, b = a - a.mean(), b - b.mean()
    # Sums, not dot products: BLAS starts threads for vectors of this length and loses more than it gains.
    norm = float(np.sqrt((a * a).sum() * (b * b).sum()))
    return (float((a * b).sum()) / norm if norm > 0 else -1.0), n_samples


def register(pair: ScenePair, grids: NestedGrids, align: AlignConfig, psf_sigma_px: float) -> Registration:
    """The move that brings the MSI onto the HSI.

    Parameters
    ----------
    pair : ScenePair
    grids : NestedGrids
    align : AlignConfig
        Known move, or the search range.
    psf_sigma_px : float
        Standard deviation of the HSI's PSF, in fine pixels.

    Returns
    -------
    Registration
        `model="none"` where the estimate is not trusted (`decision="warn"`), gains nothing, or is switched off.
    """
    units_per_m = _units_per_meter(grids)
    if align.east_m is not None or align.north_m is not None:
        east, north = (align.east_m or 0.0) * units_per_m[0], (align.north_m or 0.0) * units_per_m[1]
        return _record("accept", "the displacement was given", east, north, grids)
    if not align.estimate:
        return _record("accept", "the estimate is switched off", 0.0, 0.0, grids)
    views = _views(pair, grids, align, psf_sigma_px)
    if not views:
        return _record(
            "warn", "no MSI band shares detail with an HSI band; the geometry was left as it is", 0.0, 0.0, grids
        )
    best = max(views, key=lambda item: item[1][0])
    band_nm, (peak, coarse_y, coarse_x), _ = best
    # Bands that agree on the whole pixel share the fine search: what response mismatch does to one band's edges averages out.
    agreeing = [
        view
        for _, (value, y, x), view in views
        if value > _AGREEMENT * peak and max(abs(y - coarse_y), abs(x - coarse_x)) <= 1
    ]

    def correlation(shift: Array) -> float:
        return float(np.mean([view.correlation(shift[0], shift[1])[0] for view in agreeing]))

    limit = int(align.max_shift_px)
    start = np.array([coarse_y, coarse_x], float) * grids.ratio
    step = 0.5 * grids.ratio
    found = minimize(
        lambda shift: -correlation(shift),
        start,
        method="Nelder-Mead",
        options={"initial_simplex": start + step * np.array([[0, 0], [1, 0], [0, 1]]), "xatol": 2e-3, "fatol": 1e-9},
    )
    after, before = -float(found.fun), correlation(np.zeros(2))
    # The HSI shows at p + move what the MSI shows at p: the sampling shift has the opposite sign; rows run south.
    per_px = grids.fine.affine.a, grids.fine.affine.e
    east, north = -float(found.x[1]) * per_px[0], -float(found.x[0]) * per_px[1]
    figures = {"before": before, "after": after, "band_nm": band_nm}
    told = f"{found.x[1] / grids.ratio:.2f}, {found.x[0] / grids.ratio:.2f} coarse px, correlation {before:.3f} to {after:.3f}"
    doubt = _doubt(after, at_rim=max(abs(coarse_y), abs(coarse_x)) >= limit)
    if doubt:
        return _record("warn", f"{doubt} ({told}); the geometry was left as it was", 0.0, 0.0, grids, **figures)
    if after - before < MIN_GAIN:
        return _record("accept", f"the scenes are registered already ({told})", 0.0, 0.0, grids, **figures)
    return _record("accept", f"one shift for the scene ({told})", east, north, grids, **figures)


def _doubt(correlation: float, *, at_rim: bool) -> str:
    """Why an estimate is not believed, empty if it is."""
    if correlation < MIN_CORRELATION:
        return "the images do not match well enough"
    return "the best match lies at the rim of the search" if at_rim else ""


def _views(
    pair: ScenePair, grids: NestedGrids, align: AlignConfig, psf_sigma_px: float
) -> list[tuple[float, tuple[float, int, int], _View]]:
    """Per usable MSI band: its wavelength, the best whole coarse shift (correlation, y, x), and the window."""
    ratio, limit = grids.ratio, int(align.max_shift_px)
    window = _central(pair.hsi.geobox, grids, max(_FINE_EDGE // ratio, _MIN_EDGE))
    row, col = source_pixels(grids.fine, pair.hsi.geobox, window)
    margin = limit * ratio + int(np.ceil(4 * psf_sigma_px)) + 2
    first_row, first_col = int(np.floor(row.min())) - margin, int(np.floor(col.min())) - margin
    around = (
        slice(first_row, int(np.ceil(row.max())) + margin + 1),
        slice(first_col, int(np.ceil(col.max())) + margin + 1),
    )
    used = pair.hsi.good_bands
    hsi = pair.hsi.read(window, used)
    found = []
    for k in pair.msi.good_bands:
        weights = _combination(pair.hsi.bands[used], pair.msi.bands, k)
        if weights is None:
            continue
        fine = warp(pair.msi, grids.fine, around, bands=[k])[0]
        blurred, shown = _smooth(fine, psf_sigma_px)
        trend, _ = _smooth(np.where(shown > 0.99, blurred, np.nan), _DETAIL_PX * ratio)
        combined = np.tensordot(weights, hsi, axes=1)
        coarse_trend, _ = _smooth(combined, _DETAIL_PX)
        detail = np.nan_to_num(np.where(shown > 0.99, blurred - trend, 0.0))
        view = _View(
            hsi=combined - coarse_trend,
            row=row - first_row,
            col=col - first_col,
            msi=detail,
            spline=np.asarray(spline_filter(detail, order=3, output=np.float32)),
            shown=shown,
        )
        search = (
            (*view.nearest(dy * ratio, dx * ratio), dy, dx)
            for dy in range(-limit, limit + 1)
            for dx in range(-limit, limit + 1)
        )
        # A corner of the search that sees only a sliver of the scene can correlate by chance.
        enough = 0.25 * np.isfinite(view.hsi).sum()
        value, _, dy, dx = max((s for s in search if s[1] >= enough), default=(-1.0, 0, 0, 0))
        log.debug("band %.0f nm: correlation %.3f at %d, %d coarse px", pair.msi.bands.center_nm[k], value, dy, dx)
        if value > 0:
            found.append((float(pair.msi.bands.center_nm[k]), (value, dy, dx), view))
    return found


def _central(hsi: GeoBox, grids: NestedGrids, edge: int) -> Window:
    """A window of HSI pixels around the middle of the product; one global shift needs no more."""
    height, width = grids.fine.shape
    middle = slice(height // 2, height // 2 + 1), slice(width // 2, width // 2 + 1)
    row, col = (int(v[0, 0]) for v in source_pixels(hsi, grids.fine, middle))
    return _around(row, edge, hsi.shape[0]), _around(col, edge, hsi.shape[1])


def _around(center: int, edge: int, size: int) -> slice:
    first = min(max(center - edge // 2, 0), max(size - edge, 0))
    return slice(first, min(first + edge, size))


def _combination(hsi: Bands, msi: Bands, k: int) -> NDArray[np.float32] | None:
    """Weights of the HSI bands that make up an MSI band, None where the spectra do not meet."""
    weights, coverage = hsi.srf(msi)
    return weights[k].astype(np.float32) if coverage[k] > 0.3 else None


def _smooth(image: Array, sigma: float) -> tuple[Array, Array]:
    """Gaussian mean of the valid samples, and the share of the kernel that they carry."""
    valid = np.isfinite(image)
    weight = gaussian_filter(valid.astype(np.float32), sigma, mode="constant")
    total = gaussian_filter(np.where(valid, image, 0.0), sigma, mode="constant")
    reached = gaussian_filter(np.ones_like(image), sigma, mode="constant")
    return np.divide(total, weight, out=np.full_like(image, np.nan), where=weight > 1e-3), weight / reached


def _units_per_meter(grids: NestedGrids) -> tuple[float, float]:
    along_x, along_y = pixel_size_m(grids.product)
    return abs(grids.product.affine.a) / along_x, abs(grids.product.affine.e) / along_y


def _record(
    decision: str,
    reason: str,
    east: float,
    north: float,
    grids: NestedGrids,
    *,
    before: float | None = None,
    after: float | None = None,
    band_nm: float | None = None,
) -> Registration:
    per_x, per_y = _units_per_meter(grids)
    return Registration(
        decision=decision,
        reason=reason,
        model="shift" if east or north else "none",
        east=east,
        north=north,
        east_m=east / per_x,
        north_m=north / per_y,
        correlation_before=before,
        correlation_after=after,
        band_nm=band_nm,
    )
