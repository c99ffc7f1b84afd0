"""Area-to-point kriging: a random field between the samples of a blurring sensor, by stationary filters.

Reference: Kyriakidis (2004), A geostatistical framework for area-to-point spatial interpolation, Geographical Analysis
36(3), 259-289; for fusion: Wang, Shi, Atkinson & Zhao (2015), Downscaling MODIS images with area-to-point regression
kriging, Remote Sensing of Environment 166, 191-204.
Code: written from the papers for HyperFuse, Apache-2.0.

Notes
-----
The field has the covariance exp(-d / length), which is a mixture of Gaussians: exp(-a) = E[exp(-a^2 / (4 v^2))] under
the density exp(-v^2) / sqrt(pi). Blurring a Gaussian by a Gaussian PSF is closed, so the covariances of what a sensor
sees are one quadrature. Only the samples within `REACH` coarse pixels predict a fine pixel; the weights depend on its
phase within the coarse pixel alone, so that the prediction is a filter, and exact over tiles.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import avg_pool2d, pad, pixel_shuffle, unfold

REACH = 5
"""Coarse pixels on each side of a fine pixel's own that predict it."""
# The density on a logarithmic axis: for long fields what happens at small v decides, where the blur is as wide as they are.
_STEPS, _STEP = np.linspace(-11.0, 1.9, 160, retstep=True)
_NODES = np.exp(_STEPS)
_WEIGHTS = 2.0 * np.exp(-(_NODES**2)) * _NODES * _STEP

Array = NDArray[np.float64]


def covariance(distance: Array, length: float, blur_variance: float) -> Array:
    """Covariance of the field with itself after blurs, isotropic.

    Parameters
    ----------
    distance : ndarray
        Any shape; in the unit of `length`.
    length : float
        Distance at which the field's own covariance has fallen to 1 / e.
    blur_variance : float
        Sum of the variances of the Gaussian blurs of both ends; positive.

    Returns
    -------
    ndarray, shape of `distance`
        The field's own variance is 1.
    """
    own = 2.0 * (_NODES * length) ** 2
    both = own + blur_variance
    share = _WEIGHTS / np.sqrt(np.pi) * own / both
    covered: Array = np.exp(-0.5 * np.square(distance)[..., None] / both) @ share
    return covered


def coarse_covariance(edge: int, length: float, sigma: float) -> torch.Tensor:
    """Covariance of the samples of an `edge` x `edge` patch, row by row.

    Parameters
    ----------
    edge : int
        Coarse pixels.
    length, sigma : float
        Of the field, and of the PSF; in coarse pixels.

    Returns
    -------
    Tensor, shape (edge ** 2, edge ** 2), float64
    """
    y, x = (axis.ravel() for axis in np.mgrid[:edge, :edge].astype(np.float64))
    distance = np.hypot(y[:, None] - y, x[:, None] - x)
    return torch.from_numpy(covariance(distance, length, 2.0 * sigma**2))


@lru_cache(maxsize=256)
def filters(
    ratio: int,
    sigma: float,
    length: float,
    signal: float,
    target_sigma: float = 0.0,
    *,
    shift: tuple[float, float] = (0.0, 0.0),
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights of the samples around a coarse pixel in its fine pixels, and what they leave open.

    Parameters
    ----------
    ratio : int
        Fine pixels per coarse pixel along one axis.
    sigma, length : float
        Of the PSF, and of the field; in coarse pixels.
    signal : float
        Variance of the field over that of a sample's noise.
    target_sigma : float
        PSF of the fine pixels, in coarse pixels.
    shift : (float, float)
        Rows and columns by which the samples lie beside the centers of their blocks, in coarse pixels.

    Returns
    -------
    weights : Tensor, shape (ratio ** 2, (2 * REACH + 1) ** 2), float32
    variance : Tensor, shape (ratio ** 2,), float32
        Kriging variance, in units of the noise's.
    """
    y, x = (axis.ravel().astype(np.float64) for axis in np.mgrid[-REACH : REACH + 1, -REACH : REACH + 1])
    phase = (np.arange(ratio) + 0.5) / ratio - 0.5
    fine_y, fine_x = (axis.ravel() for axis in np.meshgrid(phase - shift[0], phase - shift[1], indexing="ij"))
    samples = signal * covariance(np.hypot(y[:, None] - y, x[:, None] - x), length, 2.0 * sigma**2)
    samples[np.diag_indices(len(samples))] += 1.0
    across = signal * covariance(np.hypot(fine_y[:, None] - y, fine_x[:, None] - x), length, sigma**2 + target_sigma**2)
    weights = np.linalg.solve(samples, across.T).T
    own = signal * covariance(np.zeros(1), length, 2.0 * target_sigma**2) if target_sigma else signal
    left = np.maximum(own - (weights * across).sum(axis=1), 0.0)
    return torch.from_numpy(weights).float(), torch.from_numpy(left).float()


def bridged(residual: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
    """Missing samples from the mean of those around them, and from 0, which the regression expects, beyond.

    Parameters
    ----------
    residual : Tensor, shape (N, K, h, w)
    known : Tensor, shape (N, 1, h, w), bool

    Returns
    -------
    Tensor, shape (N, K, h, w)
    """
    if known.all():
        return residual
    share = known.to(residual)
    around = avg_pool2d(residual * share, 3, stride=1, padding=1)
    return torch.where(known, residual, around / avg_pool2d(share, 3, stride=1, padding=1).clamp_min(1 / 9))


def predict(residual: torch.Tensor, weights: torch.Tensor, ratio: int) -> torch.Tensor:
    """The field at the fine pixels; at the rim the outermost sample is repeated.

    Parameters
    ----------
    residual : Tensor, shape (N, K, h, w)
        Samples of K fields.
    weights : Tensor, shape (K, ratio ** 2, (2 * REACH + 1) ** 2)
        From `filters`.
    ratio : int

    Returns
    -------
    Tensor, shape (N, K, h * ratio, w * ratio)
    """
    n_images, _, height, width = residual.shape
    around = pad(residual, (REACH,) * 4, mode="replicate")
    fields = [
        weights[k] @ unfold(around[:, k : k + 1], 2 * REACH + 1)  # (N, ratio ** 2, h * w)
        for k in range(residual.shape[1])
    ]
    phases = torch.stack(fields, dim=1).view(n_images, -1, height, width)
    return pixel_shuffle(phases, ratio)
