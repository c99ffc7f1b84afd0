"""Stripes of a pushbroom's detector: how much the gains of the HSI's columns differ, measured against the MSI.

    HSI less what the MSI tells of it, each pixel less the mean of its neighbors in the row  ->  gain of a column in each strip of rows

The product cannot tell them, for it follows the HSI; the MSI was taken by another sensor and has none. A gain is the same
in all strips, noise and scenery are not: the covariance of two strips is the variance of the gains, whatever the noise. What
chance makes of it is seen where a strip is compared with other columns of another.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hyperfuse.pipeline.observation.psf import Psf
from hyperfuse.pipeline.observation.sample import Sample

F64 = NDArray[np.float64]

CLEAR = 4.0
"""Standard deviations of what chance does by which a variance of gains must differ from it."""
_STRIPS = 4
_FEWEST_COLUMNS = 12
_NEAREST = 3
"""Columns apart from which on two columns have no pixel in common."""
_CONTRAST = 1.5
"""Variance of a gain less the mean of two neighbors', over that of a gain."""
_SCATTER = 1.39
"""Standard deviation of the covariance of such contrasts over n columns apart, over their variance and 1 / sqrt(n)."""


@dataclass(frozen=True, kw_only=True)
class Stripes:
    """Of the gains of one detector's columns."""

    amplitude: float
    """Standard deviation from column to column, relative."""
    error: float
    """Its standard error."""
    limit: float
    """Amplitude that chance seldom reaches on this scene."""


def stripes(sample: Sample, psf: Psf, bands: NDArray[np.int64]) -> Stripes | None:
    """The stripes of some bands; None if too few pixels or columns are valid to tell.

    Parameters
    ----------
    sample : Sample
    psf : Psf
        Of the HSI.
    bands : ndarray, shape (n,), int
    """
    left, level = _contrasts(sample, psf, bands)
    gains = _gains(left, level)  # (band, strip, column)
    usable = np.isfinite(gains).all(axis=(0, 1))
    if usable.sum() < _FEWEST_COLUMNS:
        return None
    gains = gains[..., usable]
    correlation = _correlation(gains)
    chance = correlation[_NEAREST : len(correlation) - _NEAREST + 1].std()
    # Gains that a whole detector shares scatter there as well, and are no chance.
    own = _SCATTER * max(float(correlation[0]), 0.0) / math.sqrt(len(correlation))
    chance = max(math.sqrt(max(chance**2 - own**2, 0.0)), 0.5 * float(chance))
    amplitude = math.sqrt(max(float(correlation[0]), 0.0) / _CONTRAST)
    of_chance = math.sqrt(chance / _CONTRAST)
    # Near 0 the error of a root is that of a root of chance.
    error = 0.5 * chance / _CONTRAST / max(amplitude, 0.5 * of_chance)
    return Stripes(amplitude=amplitude, error=error, limit=math.sqrt(CLEAR) * of_chance)


def _correlation(gains: F64) -> F64:
    """Circular covariance over the columns, mean over bands and pairs of strips: at 0 that of gains, elsewhere chance."""
    spectra = np.fft.rfft(gains, axis=2)
    pairs = itertools.permutations(range(gains.shape[1]), 2)
    product = np.mean([spectra[:, s] * spectra[:, t].conj() for s, t in pairs], axis=(0, 1))
    return np.asarray(np.fft.irfft(product, gains.shape[2]) / gains.shape[2])


def _contrasts(sample: Sample, psf: Psf, bands: NDArray[np.int64]) -> tuple[F64, F64]:
    """Pixels less the mean of their neighbors to both sides and less what the MSI tells of that, and their level.

    Returns
    -------
    left, level : ndarray, shape (band, block, row, column - 2)
        NaN where a pixel or a neighbor is not valid.
    """
    hsi, low = sample.hsi[bands].astype(np.float64), sample.degraded(psf).astype(np.float64)
    contrast = [image[..., 1:-1] - 0.5 * (image[..., :-2] + image[..., 2:]) for image in (hsi, low)]
    valid = sample.valid[..., 1:-1] & sample.valid[..., :-2] & sample.valid[..., 2:]
    y, x = (image[:, valid].T for image in contrast)
    left = np.full_like(contrast[0], np.nan)
    if len(y) > x.shape[1]:
        left[:, valid] = (y - x @ np.linalg.lstsq(x, y, rcond=None)[0]).T
    level = (hsi[..., :-2] + hsi[..., 1:-1] + hsi[..., 2:]) / 3
    return left, np.where(valid, level, np.nan)


def _gains(left: F64, level: F64) -> F64:
    """Least-squares gain of each column in each strip of rows, shape (band, strip, block * column)."""
    gains = []
    for rows in np.array_split(np.arange(left.shape[2]), _STRIPS):
        part, weight = left[:, :, rows], level[:, :, rows]
        power = np.nansum(weight * weight, axis=2)
        # A column of which a strip shows less than half says little.
        enough = np.isfinite(part).sum(axis=2) * 2 > len(rows)
        with np.errstate(invalid="ignore", divide="ignore"):
            gain = np.where(enough & (power > 0), np.nansum(part * weight, axis=2) / power, np.nan)
        gains.append(gain.reshape(len(gain), -1))
    return np.stack(gains, axis=1)
