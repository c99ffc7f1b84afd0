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


def upsample(coarse: torch.Tensor, ratio: int) -> torch.Tensor:
    """Cubic convolution from coarse to fine pixels, pixel is area.

    Parameters
    ----------
    coarse : Tensor, shape (..., h, w)
    ratio : int
        Fine pixels per coarse pixel along one axis.

    Returns
    -------
    Tensor, shape (..., h * ratio, w * ratio)

    References
    ----------
    Keys (1981), Cubic convolution interpolation for digital image processing, IEEE TASSP 29(6), 1153-1160 (a = -1/2).
    """
    height, width = coarse.shape[-2:]
    rows = torch.as_tensor(_cubic_matrix(height, ratio)).to(coarse)
    cols = torch.as_tensor(_cubic_matrix(width, ratio)).to(coarse)
    return rows @ coarse @ cols.T


def degrade(fine: torch.Tensor, ratio: int, psf_sigma_px: float) -> torch.Tensor:
    """What the coarse sensor would have seen: Gaussian PSF, sampled at the centers of the coarse pixels.

    Parameters
    ----------
    fine : Tensor, shape (..., h * ratio, w * ratio)
    ratio : int
    psf_sigma_px : float
        Standard deviation in fine pixels.

    Returns
    -------
    Tensor, shape (..., h, w)

    References
    ----------
    Wald, Ranchin & Mangolini (1997), Fusion of satellite images of different spatial resolutions, PE&RS 63(6), 691-699.
    """
    height, width = (size // ratio for size in fine.shape[-2:])
    rows = torch.as_tensor(blur_matrix(height, ratio, psf_sigma_px)).to(fine)
    cols = torch.as_tensor(blur_matrix(width, ratio, psf_sigma_px)).to(fine)
    return rows @ fine @ cols.T


def blur_reach(ratio: int, psf_sigma_px: float) -> int:
    """Fine pixels beyond a coarse pixel that `degrade` still looks at."""
    return int(np.ceil(BLUR_REACH * psf_sigma_px + ratio / 2))


def keys_kernel(distance: torch.Tensor) -> torch.Tensor:
    """Weight of a sample at a distance in pixels, Keys' cubic convolution with a = -1/2."""
    x = distance.abs()
    near = (1.5 * x - 2.5) * x**2 + 1.0
    far = ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0
    return torch.where(x < 1, near, torch.where(x < 2, far, torch.zeros_like(x)))


@lru_cache(maxsize=64)
def _cubic_matrix(n_coarse: int, ratio: int) -> NDArray[np.float32]:
    # The center of fine pixel i lies at (i + 1/2) / ratio - 1/2 on the axis of coarse centers.
    center = (np.arange(n_coarse * ratio) + 0.5) / ratio - 0.5
    base = np.floor(center).astype(int)
    matrix = np.zeros((n_coarse * ratio, n_coarse), np.float64)
    for tap in range(-1, 3):
        at = np.clip(base + tap, 0, n_coarse - 1)
        np.add.at(
            matrix, (np.arange(n_coarse * ratio), at), keys_kernel(torch.from_numpy(center - (base + tap))).numpy()
        )
    return matrix.astype(np.float32)


@lru_cache(maxsize=64)
def blur_matrix(n_coarse: int, ratio: int, sigma: float) -> NDArray[np.float32]:
    """Weights of the fine pixels along one axis in each coarse pixel, shape (n_coarse, n_coarse * ratio); rows sum to 1."""
    reach = blur_reach(ratio, sigma)
    # Taps are symmetric about the center of the coarse pixel, which falls between two fine pixels for even ratios.
    offset = np.arange(-reach, ratio + reach) - (ratio - 1) / 2
    weight = np.exp(-0.5 * (offset / sigma) ** 2)
    weight /= weight.sum()
    matrix = np.zeros((n_coarse, n_coarse * ratio), np.float64)
    first = np.arange(n_coarse)[:, None] * ratio + np.arange(-reach, ratio + reach)[None, :]
    at = np.clip(first, 0, n_coarse * ratio - 1)
    np.add.at(matrix, (np.broadcast_to(np.arange(n_coarse)[:, None], at.shape), at), weight[None, :])
    return matrix.astype(np.float32)
