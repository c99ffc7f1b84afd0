"""Operators that several methods share exactly: cubic interpolation, and the blur of the coarse sensor.

Both are separable and act along one axis as a banded matrix; at the rim of what they are given the outermost pixel is
repeated. A matrix product is fast on every device and costs the same few lines for every ratio.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray

BLUR_REACH = 4.0
"""The Gaussian PSF is cut at this many standard deviations (5e-4 of its peak)."""


Shift = tuple[float, float]
"""Rows and columns by which the center of a coarse sample lies beside the center of its block."""
CENTERED: Shift = (0.0, 0.0)


def upsample(coarse: torch.Tensor, ratio: int, shift_px: Shift = CENTERED) -> torch.Tensor:
    """Cubic convolution from coarse to fine pixels, pixel is area.

    Parameters
    ----------
    coarse : Tensor, shape (..., h, w)
    ratio : int
        Fine pixels per coarse pixel along one axis.
    shift_px : (float, float)
        Displacement of the samples, in fine pixels.

    Returns
    -------
    Tensor, shape (..., h * ratio, w * ratio)

    References
    ----------
    Keys (1981), Cubic convolution interpolation for digital image processing, IEEE TASSP 29(6), 1153-1160 (a = -1/2).
    """
    height, width = coarse.shape[-2:]
    rows = torch.as_tensor(_cubic_matrix(height, ratio, shift_px[0])).to(coarse)
    cols = torch.as_tensor(_cubic_matrix(width, ratio, shift_px[1])).to(coarse)
    return rows @ coarse @ cols.T


def degrade(fine: torch.Tensor, ratio: int, psf_sigma_px: float, shift_px: Shift = CENTERED) -> torch.Tensor:
    """What the coarse sensor would have seen: Gaussian PSF, sampled at the centers of the coarse pixels.

    Parameters
    ----------
    fine : Tensor, shape (..., h * ratio, w * ratio)
    ratio : int
    psf_sigma_px : float
        Standard deviation in fine pixels.
    shift_px : (float, float)
        Displacement of the samples, in fine pixels.

    Returns
    -------
    Tensor, shape (..., h, w)

    References
    ----------
    Wald, Ranchin & Mangolini (1997), Fusion of satellite images of different spatial resolutions, PE&RS 63(6), 691-699.
    """
    height, width = (size // ratio for size in fine.shape[-2:])
    rows, cols = (
        torch.as_tensor(blur_matrix(size, ratio, psf_sigma_px, shift)).to(fine)
        for size, shift in zip((height, width), shift_px, strict=True)
    )
    return rows @ fine @ cols.T


def degrade_slopes(fine: torch.Tensor, ratio: int, psf_sigma_px: float, shift_px: Shift = CENTERED) -> torch.Tensor:
    """How `degrade` changes with the displacement of its samples and with the width of its PSF, to first order.

    Parameters
    ----------
    fine, ratio, psf_sigma_px, shift_px
        As for `degrade`.

    Returns
    -------
    Tensor, shape (..., 3, h, w)
        Change per fine pixel of displacement along rows and along columns, and per fine pixel squared of the PSF's variance.
    """
    sizes = [size // ratio for size in fine.shape[-2:]]
    rows, cols = (
        [torch.as_tensor(blur_matrix(n, ratio, psf_sigma_px, shift, order)).to(fine) for order in range(3)]
        for n, shift in zip(sizes, shift_px, strict=True)
    )
    along = [row @ fine for row in rows]  # of the three orders, (..., h, W)
    wider = (along[2] @ cols[0].T + along[0] @ cols[2].T) / 2
    return torch.stack([along[1] @ cols[0].T, along[0] @ cols[1].T, wider], dim=-3)


def blur_reach(ratio: int, psf_sigma_px: float, shift_px: float = 0.0) -> int:
    """Fine pixels beyond a coarse pixel that `degrade` still looks at."""
    return int(np.ceil(BLUR_REACH * psf_sigma_px + ratio / 2 + abs(shift_px)))


def keys_kernel(distance: torch.Tensor) -> torch.Tensor:
    """Weight of a sample at a distance in pixels, Keys' cubic convolution with a = -1/2."""
    x = distance.abs()
    near = (1.5 * x - 2.5) * x**2 + 1.0
    far = ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0
    return torch.where(x < 1, near, torch.where(x < 2, far, torch.zeros_like(x)))


@lru_cache(maxsize=64)
def _cubic_matrix(n_coarse: int, ratio: int, shift: float) -> NDArray[np.float32]:
    # The center of fine pixel i lies at (i + 1/2) / ratio - 1/2 on the axis of block centers.
    center = (np.arange(n_coarse * ratio) + 0.5 - shift) / ratio - 0.5
    base = np.floor(center).astype(int)
    matrix = np.zeros((n_coarse * ratio, n_coarse), np.float64)
    for tap in range(-1, 3):
        at = np.clip(base + tap, 0, n_coarse - 1)
        np.add.at(
            matrix, (np.arange(n_coarse * ratio), at), keys_kernel(torch.from_numpy(center - (base + tap))).numpy()
        )
    return matrix.astype(np.float32)


@lru_cache(maxsize=128)
def blur_matrix(n_coarse: int, ratio: int, sigma: float, shift: float = 0.0, order: int = 0) -> NDArray[np.float32]:
    """Samples (n_coarse) of fine pixels (n_coarse * ratio) along one axis, or their derivative with respect to `shift`.

    Parameters
    ----------
    n_coarse, ratio : int
    sigma, shift : float
        Standard deviation of the Gaussian, and displacement of the samples, in fine pixels.
    order : {0, 1, 2}
        Of the derivative; the second is also twice that with respect to the variance.
    """
    reach = blur_reach(ratio, sigma, shift)
    # Taps are symmetric about the center of the sample, which falls between two fine pixels for even ratios.
    offset = (np.arange(-reach, ratio + reach) - (ratio - 1) / 2 - shift) / sigma
    weight = np.exp(-0.5 * offset**2)
    weight /= weight.sum()
    if order:
        slope = (offset / sigma, (offset**2 - 1.0) / sigma**2)[order - 1]
        # A constant has no derivative, although the Gaussian is cut and sampled.
        weight *= slope - weight @ slope
    matrix = np.zeros((n_coarse, n_coarse * ratio), np.float64)
    first = np.arange(n_coarse)[:, None] * ratio + np.arange(-reach, ratio + reach)[None, :]
    at = np.clip(first, 0, n_coarse * ratio - 1)
    np.add.at(matrix, (np.broadcast_to(np.arange(n_coarse)[:, None], at.shape), at), weight[None, :])
    return matrix.astype(np.float32)
