"""Whole-pixel search by correlation: first one move for the scene, then one for each tie-point window.

What is smoother than a few coarse pixels is illumination and land cover, which makes a broad, weak peak: it is removed
first (`detail`). Bands of opposite contrast, such as red and near infrared over vegetation, correlate with either sign from
field to field; the strength of their edges does not depend on it (`edges`). Invalid pixels take no part, at any lag.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.fft import irfft2, next_fast_len, rfft2

from hyperfuse.catalogs.bands import detector_of
from hyperfuse.catalogs.scene import Window
from hyperfuse.pipeline.registration.views import Array, Move, Survey, View, smoothed

Shown = Callable[[Array], Array]
"""What of an image (y, x) is correlated: `detail` or `edges`."""

DETAIL_PX = 3.0
"""Coarse pixels: what is smoother is not detail."""
WHOLE_PX = 256
"""Overlaps of up to this edge (HSI px; less where the ratio passes 8) are searched whole."""
_APART_PX = 3.0
"""HSI pixels: nearer, the flank of a peak is no rival to it."""
_STANDS_OUT = 0.8
"""Share of a peak's correlation that its rival must not reach where little else speaks for the peak."""
_MIN_SHARE = 0.25
"""A corner of the search that sees only a sliver of the scene can correlate by chance."""
_MIN_PIXELS = 48
"""Of a window; fewer do not tell one lag from another."""
_NEIGHBORS = np.outer((1, 2, 1), (1, 2, 1)) / 4.0
"""A window's correlation counts full, its neighbors' less: they move alike, and chance peaks do not."""


@dataclass(frozen=True, kw_only=True)
class Peak:
    """Best whole-pixel move of a scene."""

    move: Move
    """Coarse pixels."""
    correlation: float
    """Of the detail of the best bands there, in their mean."""
    rival: Move
    """The best move at some distance from it (coarse pixels)."""
    rival_correlation: float
    """The correlation there."""
    at_rim: bool
    """Whether it lies at the rim of the search, so that the truth may lie beyond."""
    bands: tuple[int, ...]
    """Bands that show it best, by their place in the survey, best first."""

    @property
    def stands_out(self) -> bool:
        """Whether no other place matches nearly as well, as it does on land that repeats itself."""
        return self.rival_correlation < _STANDS_OUT * self.correlation


def detail(image: Array) -> Array:
    """An image (y, x) without what is smoother than `DETAIL_PX`; NaN stays NaN."""
    return image - smoothed(image, DETAIL_PX)[0]


def edges(image: Array) -> Array:
    """Strength of the edges of an image (y, x) without what is smoother than `DETAIL_PX`."""
    along_y, along_x = np.gradient(detail(image))
    return detail(np.hypot(along_y, along_x))


def search_windows(survey: Survey, whole_px: int = WHOLE_PX) -> list[Window]:
    """HSI windows that the search for one move looks at: the whole overlap up to an edge of `whole_px`, else five parts of it."""
    rows, cols = survey.around
    height, width = rows.stop - rows.start, cols.stop - cols.start
    if max(height, width) * max(1.0, survey.pair.gsd_ratio / 8) <= whole_px:
        return [survey.around]
    part = max(1, int(whole_px / 2 / max(1.0, survey.pair.gsd_ratio / 8)))
    windows = []
    for share_y, share_x in ((0.5, 0.5), (0.1, 0.1), (0.1, 0.9), (0.9, 0.1), (0.9, 0.9)):
        y = rows.start + round(share_y * max(height - part, 0))
        x = cols.start + round(share_x * max(width - part, 0))
        windows.append((slice(y, min(y + part, rows.stop)), slice(x, min(x + part, cols.stop))))
    return windows


def find_peak(survey: Survey, views: Iterable[View], limit: int, n_bands: int, *, shown: Shown = detail) -> Peak | None:
    """The move that all views agree on best, None if they show too little.

    Parameters
    ----------
    survey : Survey
    views : iterable of View
        At least one of that survey, opened so that moves of `limit` are in reach; looked at one by one.
    limit : int
        Largest move, HSI pixels along rows and columns.
    n_bands : int
        Bands to keep, all of one of the HSI's detectors: a detector that looks beside the other has a move of its own.
    shown : callable
        What of the images is correlated.
    """
    n_lags = 2 * limit + 1
    total, weight = np.zeros((2, len(survey.bands), n_lags, n_lags))
    for view in views:
        to_hsi, fine = view.to_hsi, view.lattice((0.0, 0.0), limit)
        for k, (target, band) in enumerate(zip(view.targets(survey.mixing), fine, strict=True)):
            correlation, count = masked_correlation(shown(target), shown(band))
            total[k] += np.where(count > 0, correlation, 0.0) * count
            weight[k] += count
    mean = np.divide(total, weight, out=np.full_like(total, -1.0), where=weight > _MIN_SHARE * weight.max())
    if weight.max() < _MIN_PIXELS:
        return None
    best_of_band = mean.max(axis=(1, 2))
    good = best_of_band > 0.5 * best_of_band.max()
    if not good.any():
        return None
    detector = detector_of(survey.channel_nm[: len(survey.bands)])
    # The first detector leads where it shows the same as well as the second: guides and products begin there.
    good &= detector == detector[good].min()
    bands = tuple(int(k) for k in np.argsort(-best_of_band) if good[k])[:n_bands]
    shared = mean[list(bands)].mean(axis=0)
    row, col = np.unravel_index(int(np.argmax(shared)), shared.shape)
    y, x = np.ogrid[:n_lags, :n_lags]
    apart = np.where(np.hypot(y - row, x - col) >= _APART_PX, shared, -np.inf)
    other = np.unravel_index(int(np.argmax(apart)), shared.shape)

    def move(at_row: int, at_col: int) -> Move:
        # The HSI at q resembles the MSI a lag further on: the move that brings it back has the opposite sign.
        east, north = np.linalg.solve(to_hsi, [limit - at_row, limit - at_col])
        return float(east), float(north)

    return Peak(
        move=move(int(row), int(col)),
        correlation=float(shared[row, col]),
        rival=move(int(other[0]), int(other[1])),
        rival_correlation=float(apart[other]),
        at_rim=bool(max(abs(row - limit), abs(col - limit)) >= limit),
        bands=bands,
    )


def masked_correlation(target: Array, fine: Array) -> tuple[Array, Array]:
    """Normalized correlation of an image with a larger one at every lag that keeps it inside.

    Parameters
    ----------
    target : ndarray, shape (y, x)
        NaN where invalid.
    fine : ndarray, shape (y + 2 * limit, x + 2 * limit)
        NaN where invalid.

    Returns
    -------
    correlation : ndarray, shape (2 * limit + 1, 2 * limit + 1)
        Over the pixels that are valid in both; -1 where there are too few.
    count : ndarray, same shape
        Those pixels.

    References
    ----------
    Padfield (2012), Masked object registration in the Fourier domain, IEEE TIP 21(5), 2706-2718.
    """
    shape = [next_fast_len(size, real=True) for size in fine.shape]
    n_lags = tuple(large - small + 1 for large, small in zip(fine.shape, target.shape, strict=True))

    def transformed(image: Array) -> tuple[Array, Array, Array]:
        valid = np.isfinite(image)
        filled = np.where(valid, image, 0.0).astype(np.float64)
        return rfft2(valid.astype(np.float64), shape), rfft2(filled, shape), rfft2(filled * filled, shape)

    def against(a: Array, b: Array) -> Array:
        return np.asarray(irfft2(a.conj() * b, shape)[: n_lags[0], : n_lags[1]])

    (ones_a, a, aa), (ones_b, b, bb) = transformed(target), transformed(fine)
    count = np.round(against(ones_a, ones_b))
    n = np.maximum(count, 1.0)
    sum_a, sum_b = against(a, ones_b), against(ones_a, b)
    cross = against(a, b) - sum_a * sum_b / n
    square_a, square_b = against(aa, ones_b), against(ones_a, bb)
    spread_a, spread_b = square_a - sum_a**2 / n, square_b - sum_b**2 / n
    # Sums of a transform are good to about 1e-12 of the largest: what is less is a flat image.
    seen = [spread > 1e-9 * square.max() for spread, square in ((spread_a, square_a), (spread_b, square_b))]
    usable = (count >= _MIN_PIXELS) & seen[0] & seen[1]
    return np.divide(cross, np.sqrt(np.abs(spread_a * spread_b)), out=np.full(n_lags, -1.0), where=usable), count


def window_moves(view: View, around: Move, limit: int, *, shown: Shown = detail) -> tuple[Array, Array]:
    """The best move of each tie-point window near a move.

    Parameters
    ----------
    view : View
    around : (float, float)
        Coarse pixels.
    limit : int
        HSI pixels that a window may differ along rows and columns.
    shown : callable
        What of the images is correlated.

    Returns
    -------
    move : ndarray, shape (2, window rows, window columns)
        Coarse pixels east and north, to a fraction of a pixel by a parabola through the peak; NaN where the peak lies at
        the rim of the search or the window shows too little.
    correlation : ndarray, shape (window rows, window columns)
    """
    edge = view.survey.edge
    height, width = view.x.shape
    rows, cols = height // edge, width // edge
    fine = [shown(band) for band in view.lattice(around, limit)]
    targets = [shown(target) for target in view.targets(view.survey.mixing)]
    surface = np.zeros((rows, cols, 2 * limit + 1, 2 * limit + 1))
    for target, band in zip(targets, fine, strict=True):
        whole = bool(np.isfinite(target).all() and np.isfinite(band).all())
        correlated = _whole_correlation if whole else _valid_correlation
        surface += correlated(target, band, edge, limit) / len(fine)
    surface = _with_neighbors(surface)
    flat = surface.reshape(rows, cols, -1)
    best = flat.argmax(axis=-1)
    at_y, at_x = np.unravel_index(best, surface.shape[2:])
    inner = (at_y > 0) & (at_y < 2 * limit) & (at_x > 0) & (at_x < 2 * limit)
    y, x = np.clip(at_y, 1, 2 * limit - 1), np.clip(at_x, 1, 2 * limit - 1)
    i, j = np.ogrid[:rows, :cols]
    lag_y = at_y - limit + _vertex(*(surface[i, j, y + d, x] for d in (-1, 0, 1)))
    lag_x = at_x - limit + _vertex(*(surface[i, j, y, x + d] for d in (-1, 0, 1)))
    move = np.linalg.solve(view.to_hsi, -np.stack([lag_y, lag_x]).reshape(2, -1)).reshape(2, rows, cols)
    move += np.asarray(around)[:, None, None]
    correlation = np.take_along_axis(flat, best[..., None], axis=-1)[..., 0]
    move[:, ~inner | (correlation <= 0)] = np.nan
    return move, correlation


def _whole_correlation(target: Array, fine: Array, edge: int, limit: int) -> NDArray[np.float64]:
    """Correlation of every window at every lag, shape (window row, window column, lag, lag), where all pixels are valid."""
    height, width = target.shape
    n_lags, n = 2 * limit + 1, float(edge * edge)
    # About the mean, or the sums of squares lose what they are compared for.
    a, b = (np.asarray(image - image.mean(), np.float64) for image in (target, fine))
    a = a - (_window_sums(a, edge) / n).repeat(edge, axis=0).repeat(edge, axis=1)
    windows = a.reshape(height // edge, edge, width // edge, edge)
    spread_a = _window_sums(a * a, edge)
    sums = [_running(image, edge) for image in (b, b * b)]
    out = np.zeros((*spread_a.shape, n_lags, n_lags))
    for dy in range(n_lags):
        for dx in range(n_lags):
            moved = b[dy : dy + height, dx : dx + width].reshape(windows.shape)
            cross = np.einsum("iakb,iakb->ik", windows, moved)
            sum_b, bb = (part[dy : dy + height : edge, dx : dx + width : edge] for part in sums)
            spread = spread_a * (bb - sum_b**2 / n)
            out[:, :, dy, dx] = np.divide(
                cross, np.sqrt(np.abs(spread)), out=np.zeros_like(cross), where=(n >= _MIN_PIXELS) & (spread > 1e-30)
            )
    return out


def _running(image: Array, edge: int) -> NDArray[np.float64]:
    """Sum over the square of `edge` pixels that begins at each pixel, shape smaller by `edge` - 1."""
    total = np.pad(image, ((1, 0), (1, 0))).cumsum(axis=0).cumsum(axis=1)
    return np.asarray(total[edge:, edge:] - total[:-edge, edge:] - total[edge:, :-edge] + total[:-edge, :-edge])


def _valid_correlation(target: Array, fine: Array, edge: int, limit: int) -> NDArray[np.float64]:
    """The same over the pixels that are valid in both images."""
    height, width = target.shape
    n_lags = 2 * limit + 1
    lags = [
        _window_correlation(target, fine[dy : dy + height, dx : dx + width], edge)
        for dy in range(n_lags)
        for dx in range(n_lags)
    ]
    return np.stack(lags, axis=-1).reshape(*lags[0].shape, n_lags, n_lags)


def _window_correlation(target: Array, moved: Array, edge: int) -> NDArray[np.float64]:
    both = np.isfinite(target) & np.isfinite(moved)
    a, b = np.where(both, target, 0.0), np.where(both, moved, 0.0)
    n, sum_a, sum_b, aa, bb, ab = (_window_sums(v, edge) for v in (both, a, b, a * a, b * b, a * b))
    n_safe = np.maximum(n, 1.0)
    spread = (aa - sum_a**2 / n_safe) * (bb - sum_b**2 / n_safe)
    cross = ab - sum_a * sum_b / n_safe
    return np.divide(
        cross, np.sqrt(np.abs(spread)), out=np.zeros_like(cross), where=(n >= _MIN_PIXELS) & (spread > 1e-30)
    )


def _window_sums(values: Array | NDArray[np.bool_], edge: int) -> NDArray[np.float64]:
    rows, cols = values.shape[0] // edge, values.shape[1] // edge
    return np.asarray(values.reshape(rows, edge, cols, edge).sum(axis=(1, 3), dtype=np.float64))


def _with_neighbors(surface: Array) -> Array:
    rows, cols = surface.shape[:2]
    padded = np.pad(surface, ((1, 1), (1, 1), (0, 0), (0, 0)))
    return np.asarray(
        sum(_NEIGHBORS[i, j] * padded[i : i + rows, j : j + cols] for i in range(3) for j in range(3))
        / _NEIGHBORS.sum()
    )


def _vertex(left: Array, middle: Array, right: Array) -> Array:
    """Where the parabola through three equidistant values has its top, -1/2 to 1/2."""
    curvature = left - 2.0 * middle + right
    return np.clip(
        np.divide(0.5 * (left - right), curvature, out=np.zeros_like(middle), where=curvature < -1e-9), -0.5, 0.5
    )
