"""The one radiometric fit: an MSI band, degraded to the HSI's resolution, as a straight line of what the HSI predicts.

    degraded MSI = gain * (SRF x HSI) + offset

Clouds of one image, changes and glint are pixels off the line, so they must not move it: the line starts from the median
of many slopes, and pixels far from it lose their weight. Both sides have errors, which least squares of one on the other
would turn into a gain that is too small: the slope is the ratio of the spreads.

References
----------
Theil (1950) and Sen (1968), Estimates of the regression coefficient based on Kendall's tau, JASA 63(324), 1379-1389 (the
start); Beaton & Tukey (1974), The fitting of power series, Technometrics 16(2), 147-185 (the weights); Canty, Nielsen &
Schmidt (2004), Automatic radiometric normalization of multitemporal satellite imagery, RSE 91(3-4), 441-451 (why both
sides have errors); Liang & Zeger (1986), Longitudinal data analysis using generalized linear models, Biometrika 73(1),
13-22 (standard errors where neighbors are not independent).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

F64 = NDArray[np.float64]

_CUTOFF = 4.685
"""Scales from the line at which a pixel loses its last weight; 95 % efficient where errors are Gaussian."""
_ROUNDS = 30
_SETTLED = 1e-7


class RadiometricFit(BaseModel):
    """How one degraded MSI band follows from the HSI."""

    model_config = ConfigDict(frozen=True)

    gain: float
    """MSI per predicted MSI."""
    offset: float
    """MSI where 0 is predicted, in the MSI's unit."""
    relative_rmse: float
    """RMS of the residual over the RMS of the degraded band, least squares over all pixels."""
    r2: float
    """Share of the degraded band's variance that is predicted, 0 to 1, over all pixels."""
    gain_error: float = 0.0
    """Standard error of the gain: of the sample, and of not knowing which image has how much of the scatter."""
    offset_error: float = 0.0
    """Standard error of the offset, likewise."""
    residual: float = 0.0
    """RMS distance of the pixels from the line, weighted, in the MSI's unit."""
    r2_near: float = 0.0
    """Squared correlation of the pixels near the line, weighted."""
    near: float = 1.0
    """Share of the pixels that are near enough to the line to have weight."""
    pixels: int = 0
    """Coarse pixels that were compared."""


def fit_line(predicted: F64, measured: F64, cells: NDArray[np.int64]) -> RadiometricFit:
    """The line of one band.

    Parameters
    ----------
    predicted : ndarray, shape (pixel,)
        SRF x HSI.
    measured : ndarray, shape (pixel,)
        The degraded MSI band.
    cells : ndarray, shape (pixel,), int
        Label of the neighborhood of each pixel; pixels of one are not taken for independent.
    """
    gain, offset = _start(predicted, measured)
    weight = np.ones_like(predicted)
    for _ in range(_ROUNDS):
        weight = _weights(measured - gain * predicted - offset, float(np.abs(measured).max()))
        line = _Line.of(predicted, measured, weight)
        moved = abs(line.gain - gain) * line.spread + abs(
            line.offset + line.gain * line.center - offset - gain * line.center
        )
        gain, offset = line.gain, line.offset
        if moved <= _SETTLED * max(line.residual, 1e-12):
            break
    gain_error, offset_error = line.errors(predicted, measured, weight, cells)
    variance, mean_square = float(measured.var()), float((measured**2).mean())
    covariance = float(((measured - measured.mean()) * (predicted - predicted.mean())).mean())
    explained = min(covariance**2 / max(float(predicted.var()), 1e-30), variance)
    return RadiometricFit(
        gain=gain,
        offset=offset,
        relative_rmse=math.sqrt((variance - explained) / max(mean_square, 1e-30)),
        r2=explained / max(variance, 1e-30),
        gain_error=gain_error,
        offset_error=offset_error,
        residual=line.residual,
        r2_near=line.r2,
        near=float((weight > 0).mean()),
        pixels=len(predicted),
    )


class _Line:
    """Weighted moments of a cloud of pixels, and the line through it."""

    def __init__(self, *, total: float, center: float, level: float, moments: tuple[float, float, float]) -> None:
        self._total, self.center, self._level = total, center, level
        self._xx, self._yy, xy = moments
        self.r2 = min(xy**2 / (self._xx * self._yy), 1.0)
        self.gain = math.copysign(math.sqrt(self._yy / self._xx), xy)
        self.offset = level - self.gain * center
        self.spread = math.sqrt(self._xx)
        self.residual = math.sqrt(max(self._yy + self.gain**2 * self._xx - 2.0 * self.gain * xy, 0.0))

    @classmethod
    def of(cls, x: F64, y: F64, weight: F64) -> _Line:
        total = float(weight.sum())
        center, level = float(weight @ x) / total, float(weight @ y) / total
        dx, dy = x - center, y - level
        tiny = 1e-30
        moments = (
            max(float(weight @ dx**2) / total, tiny), max(float(weight @ dy**2) / total, tiny), float(weight @ (dx * dy)) / total,
        )  # fmt: skip
        return cls(total=total, center=center, level=level, moments=moments)

    def errors(self, x: F64, y: F64, weight: F64, cells: NDArray[np.int64]) -> tuple[float, float]:
        """Standard errors of gain and offset."""
        dx, dy = x - self.center, y - self._level
        # What each pixel does to gain and offset, summed over its neighborhood. A line that moves changes the weights too,
        # so each does more than its weight says: by the mean weight over the mean slope of weight times distance.
        root = np.sqrt(weight)
        total = max(float((root * (5.0 * root - 4.0)).sum()), 0.3 * self._total)
        of_gain = self.gain * 0.5 * weight * (dy**2 / self._yy - dx**2 / self._xx) / total
        of_offset = weight * (dy - self.gain * dx) / total - self.center * of_gain
        errors = []
        # The slope lies between the two regressions, of y on x and of x on y; evenly, for all that is known.
        correlation = math.sqrt(max(self.r2, 1e-12))
        open_slope = abs(self.gain) * (1.0 / correlation - correlation) / math.sqrt(12.0)
        for influence, slack in ((of_gain, open_slope), (of_offset, abs(self.center) * open_slope)):
            per_cell = np.bincount(cells, weights=influence)
            n_cells = max(int((np.bincount(cells) > 0).sum()), 2)
            errors.append(math.hypot(math.sqrt(float(per_cell @ per_cell) * n_cells / (n_cells - 1)), slack))
        return errors[0], errors[1]


def _start(x: F64, y: F64) -> tuple[float, float]:
    """Median of the slopes of pairs that lie half of the pixels apart, and of what it leaves."""
    order = np.argsort(x, kind="stable")
    half = len(x) // 2
    first, second = order[:half], order[half : 2 * half]
    apart = x[second] - x[first]
    far = apart > 1e-12 * max(float(np.abs(x).max()), 1e-30)
    slope = float(np.median((y[second] - y[first])[far] / apart[far])) if far.any() else 0.0
    return slope, float(np.median(y - slope * x))


def _weights(distance: F64, level: float) -> F64:
    """Tukey's biweight of distances from the line."""
    scale = 1.4826 * float(np.median(np.abs(distance)))
    # Noise-free images lie on the line to rounding; the scale must not fall to that.
    scale = max(scale, 1e-6 * level, 1e-30)
    weight: F64 = np.clip(1.0 - (distance / (_CUTOFF * scale)) ** 2, 0.0, None) ** 2
    return weight
