"""How much the PSFs of coarse pixels overlap: H H^T, where H blurs with the PSF and samples.

On the coarse grid H H^T is a convolution with a short kernel, so its regularized inverse is one too, and decays fast. How
fast decides how far around a tile back-projection has to read.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from hyperfuse.pipeline.observation.psf import coarse_pixel, psf_reach

F64 = NDArray[np.float64]

LEAST = 1e-3
"""Least lambda, in units of what H H^T does to a constant image: frequencies that the HSI hardly sees are left alone."""
_CUT = 1e-2
"""What the cut of the kernel may leave of a residual in addition: a share of its largest value, at most."""
GRID = 128
"""Coarse pixels of the periodic grid on which kernels are computed; they have decayed long before its edge."""


@lru_cache(maxsize=16)
def kernel_radius(ratio: int, sigma_px: float) -> int:
    """Coarse pixels after which the regularized inverse of H H^T is cut, for any lambda from `LEAST` on."""
    gain = transfer(GRID, ratio, sigma_px)
    left = np.abs(np.fft.ifft2(1.0 / (gain + LEAST)).real)
    distance = np.minimum(np.arange(GRID), GRID - np.arange(GRID))
    beyond = np.maximum(distance[:, None], distance)
    # |H H^T (K - K_cut) r| <= |H H^T| |K - K_cut| |r| in the largest norm; the first is 1 in these units.
    radii = (radius for radius in range(GRID // 2) if left[beyond > radius].sum() <= _CUT)
    return next(radii, GRID // 2 - 1)


def projection_reach(ratio: int, sigma_px: float) -> int:
    """Coarse pixels around a tile that decide its correction: PSF, kernel, and PSF once more."""
    return 2 * psf_reach(ratio, sigma_px) + kernel_radius(ratio, sigma_px)


@lru_cache(maxsize=16)
def overlap(ratio: int, sigma_px: float) -> F64:
    """Overlaps of the PSFs of two coarse pixels by their distance along one axis, from 0 on."""
    weight = coarse_pixel(ratio, sigma_px).astype(np.float64)
    return np.array([(weight[d:] * weight[: len(weight) - d]).sum() for d in range(0, len(weight), ratio)])


def constant_gain(ratio: int, sigma_px: float) -> float:
    """What H H^T does to a constant image."""
    along = overlap(ratio, sigma_px)
    return float(along[0] + 2.0 * along[1:].sum()) ** 2


def transfer(size: int, ratio: int, sigma_px: float) -> F64:
    """H H^T by frequency on a periodic grid, in units of `constant_gain`, shape (size, size)."""
    taken = overlap(ratio, sigma_px)
    phase = 2.0 * np.pi * np.outer(np.arange(len(taken)), np.arange(size)) / size
    along = taken[0] + 2.0 * taken[1:] @ np.cos(phase[1:])
    # The PSF is cut, so rounding may make the smallest value negative.
    along = np.maximum(along / along[0], 0.0)
    transfer: F64 = along[:, None] * along
    return transfer
