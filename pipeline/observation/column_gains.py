"""Gains of the HSI's columns, by which the detectors of a pushbroom stripe it, estimated against the MSI and taken out.

    contrast of each pixel with its neighbors in the row, less what the other sensor tells of it      per detector
    -> gain of a column by least squares, in the metric of what is left    -> believed as far as two halves of the rows agree

A gain is common to the bands of a detector and to all rows; scenery, noise and what the MSI does not tell are not. Gains that
change slowly from column to column cannot be told from the scene and are left as they are, and so are gains of single bands:
what is left of one band once the others have told of it is too little on a scene of some hundred pixels.

References
----------
Aitken (1936), On least squares and linear combination of observations (the metric); Wiener (1949) for the shrinkage.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.fft import dct, idct

from hyperfuse.catalogs.bands import detector_of
from hyperfuse.pipeline.observation.psf import Psf
from hyperfuse.pipeline.observation.sample import Sample

F64 = NDArray[np.float64]

_FEWEST_COLUMNS, _FEWEST_ROWS = 12, 8
_COMPONENTS = 6
"""Components of the detectors before that tell more of a detector than the MSI."""
_RIDGE = 1e-3
"""Share of the mean variance of what is left that is added to it."""
_OUTLIER = 4.0
"""Pixels whose remainder is as many times the usual, squared, are left out: edges, and what changed between the dates."""
_AGREE, _AGREE_AGAIN = 0.65, 0.5
"""Correlation that the contrasts between the gains must have in two halves of the rows, at first and once some are found."""
_CLEAR, _CLEAR_AGAIN = 12.0, 5.0
"""Logarithm of the likelihood of the gains over that of none from which on they are believed, likewise; on seven real cubes without
stripes it was at most 2, with the HSI displaced by half a pixel or another date of the MSI at most 9, with gains of 1 % 15 to 290."""
_MOST_EXACT = 200
"""Columns up to which the ends of the rows are taken into account exactly."""
_LEAST_GAIN, _MOST_GAIN = 3e-4, 0.03
"""Standard deviations of the gains that are tried."""
_ROUNDS = 3


def column_gains(hsi: F64, low: F64, valid: NDArray[np.bool_], detectors: Sequence[NDArray[np.intp]]) -> F64 | None:
    """Gain of each column in each band; None where the pair shows no stripes.

    Parameters
    ----------
    hsi : ndarray, shape (C, row, column)
        Whole rows of the HSI as it was measured, along its lattice; what is not valid is finite.
    low : ndarray, shape (c, row, column)
        MSI as the HSI's sensor would have seen it.
    valid : ndarray, shape (row, column), bool
        Pixels that count.
    detectors : sequence of ndarray, int
        Bands of each, that which the MSI covers best first.

    Returns
    -------
    ndarray, shape (C, column), or None
        1 where nothing is known; a sample divided by its gain is what the detector should have measured.
    """
    seen = valid[:, 1:-1] & valid[:, :-2] & valid[:, 2:]
    told, gains, any_found = _contrast(low)[:, seen].T, np.ones(hsi.shape[::2]), False
    for bands in detectors:
        own, found = _of_detector(hsi[bands].astype(np.float64), told, seen)
        if found is not None:
            gains[bands], any_found = found, True
        left = own - own.mean(axis=0)
        _, axes = np.linalg.eigh(left.T @ left)  # in increasing order
        told = np.hstack([told, left @ axes[:, -_COMPONENTS:]])
    return gains if any_found else None


def gains_of_sample(sample: Sample, psf: Psf, center_nm: F64) -> F64 | None:
    """The same of blocks of whole rows.

    Parameters
    ----------
    sample : Sample
        Each block as wide as the HSI.
    psf : Psf
        Of the HSI.
    center_nm : ndarray, shape (C,)
        Centers of its bands.
    """
    n_bands, n_blocks, height, width = sample.hsi.shape
    low = sample.degraded(psf).astype(np.float64)
    of = detector_of(center_nm)
    return column_gains(
        sample.hsi.reshape(n_bands, n_blocks * height, width).astype(np.float64),
        low.reshape(len(low), n_blocks * height, width),
        sample.valid.reshape(n_blocks * height, width),
        [np.flatnonzero(of == number) for number in np.unique(of)],
    )


def _of_detector(cube: F64, told: F64, seen: NDArray[np.bool_]) -> tuple[F64, F64 | None]:
    """Contrasts (pixel, band) of a detector without its stripes, and the gains of its columns."""
    gain = np.ones(cube.shape[2])
    if seen.any(axis=0).sum() >= _FEWEST_COLUMNS and seen.any(axis=1).sum() >= _FEWEST_ROWS:
        for round_ in range(_ROUNDS):
            step = _step(cube / gain, told, seen, is_first=round_ == 0)
            if step is None:
                break
            gain = gain * (1.0 + step)
    return _contrast(cube / gain)[:, seen].T, None if (gain == 1.0).all() else gain


def _step(cube: F64, told: F64, seen: NDArray[np.bool_], *, is_first: bool) -> F64 | None:
    """Relative gains of the columns that are left; None if none are believed."""
    contrast = _contrast(cube)[:, seen].T  # (pixel, band)
    if len(contrast) < 2 * told.shape[1] + cube.shape[0] // 2:
        return None
    left = contrast - told @ np.linalg.lstsq(told, contrast, rcond=None)[0]
    covariance = left.T @ left / len(left)
    ridge = _RIDGE * max(float(np.trace(covariance)), 1e-30) / len(covariance)
    metric = np.linalg.inv(covariance + ridge * np.eye(len(covariance)))
    distance = ((left @ metric) * left).sum(axis=1)
    level = ((cube[..., :-2] + cube[..., 1:-1] + cube[..., 2:]) / 3)[:, seen].T
    weighted = level @ metric
    power, product = (weighted * level).sum(axis=1), (weighted * left).sum(axis=1)
    kept = (distance < _OUTLIER * np.median(distance)) & (power > 0)
    rows, columns = np.nonzero(seen)
    halves = []
    for odd in (0, 1):
        use = kept & (rows % 2 == odd)
        halves.append([np.bincount(columns[use], part[use], cube.shape[2] - 2) for part in (power, product)])
    known = np.all([half[0] > 0 for half in halves], axis=0)
    if known.sum() < _FEWEST_COLUMNS:
        return None
    one, two = (product[known] / power[known] for power, product in halves)
    agreement = float(np.mean(one * two)) / math.sqrt(float(np.mean(one**2) * np.mean(two**2)) + 1e-30)
    power, product = (first[known] + second[known] for first, second in zip(*halves, strict=True))
    gains, gained = _likeliest(product / power, 1.0 / power, known)
    sure, agrees = (_CLEAR, _AGREE) if is_first else (_CLEAR_AGAIN, _AGREE_AGAIN)
    return gains if gained > sure and agreement > agrees else None


def _likeliest(contrast: F64, noise: F64, known: NDArray[np.bool_]) -> tuple[F64, float]:
    """White gains of the likeliest variance, given contrasts between neighbors and the variance of their noise.

    Parameters
    ----------
    contrast, noise : ndarray, shape (known column,)
    known : ndarray, shape (column - 2,), bool

    Returns
    -------
    gains : ndarray, shape (column,)
        Their mean given the contrasts.
    gained : float
        Logarithm of the likelihood over that of no gains.
    """
    along, power, back = _along(contrast, noise, known)
    variances = np.concatenate([[0.0], np.geomspace(_LEAST_GAIN, _MOST_GAIN, 40) ** 2])
    gained = [0.5 * float(np.sum(along**2 * v * power / (1 + v * power) - np.log1p(v * power))) for v in variances]
    best = int(np.argmax(gained))
    v = variances[best]
    return back(v * np.sqrt(power) * along / (1 + v * power)), gained[best]


def _along(contrast: F64, noise: F64, known: NDArray[np.bool_]) -> tuple[F64, F64, Callable[[F64], F64]]:
    """Contrasts of a row of gains along directions in which they are independent, in units of their noise.

    Returns
    -------
    along, power : ndarray
        Of each direction, and its variance for gains of variance 1.
    back : callable
        From coefficients of the directions to gains.
    """
    n = len(known) + 2
    if n <= _MOST_EXACT:
        differences = np.zeros((len(known), n))
        at = np.arange(len(known))
        differences[at, at], differences[at, at + 1], differences[at, at + 2] = -0.5, 1.0, -0.5
        left, strength, right = np.linalg.svd(differences[known] / np.sqrt(noise)[:, None], full_matrices=False)
        return left.T @ (contrast / np.sqrt(noise)), strength**2, lambda coefficients: right.T @ coefficients
    # A wide scene is taken to be mirrored at its ends, its noise for the same in all columns: what that changes at its ends is little beside its width.
    level = math.sqrt(float(np.mean(noise)))
    row = np.zeros(n)
    row[1:-1][known] = contrast / level
    strength = (1.0 - np.cos(np.pi * np.arange(n) / n)) / level
    return dct(row, norm="ortho"), strength**2, lambda coefficients: idct(coefficients, norm="ortho")


def _contrast(image: F64) -> F64:
    """Each pixel less the mean of its neighbors in the row, shape (band, row, column - 2)."""
    inner: F64 = image[..., 1:-1] - 0.5 * (image[..., :-2] + image[..., 2:])
    return inner
