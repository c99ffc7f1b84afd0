"""The Gaussian PSF of the coarse sensor, sampled on fine pixels.

What a coarse pixel sees is `models.operators.blur_matrix`; here are stretches of it (`taps`), and the Gaussians that differ from
it on purpose: of a displaced center, or cut elsewhere (`gaussian_taps`).
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from hyperfuse.models.operators import blur_matrix, blur_reach

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]


class Psf(NamedTuple):
    """A Gaussian, in fine pixels."""

    sigma: float
    """Standard deviation."""
    y: float = 0.0
    """Row of its center from that of the coarse pixel."""
    x: float = 0.0
    """Column of the same."""


def blurred_by(fine: F32, ratio: int, psf: Psf) -> F32:
    """Sums of fine pixels (..., h * ratio, w * ratio) under the PSF of each coarse pixel; nothing lies outside the image."""
    height, width = (size // ratio for size in fine.shape[-2:])
    return cast("F32", taps_of(height, ratio, psf.sigma, psf.y) @ fine @ taps_of(width, ratio, psf.sigma, psf.x).T)


def taps_of(n_coarse: int, ratio: int, sigma: float, center: float) -> F32:
    """Weights of the fine pixels of one axis, shape (coarse pixel, fine pixel)."""
    # Over four coarse pixels on each side they sum to 1; near the rim a part is missing, which `Sample` looks at. Not cut as those
    # of `blur_matrix` are: a search for width and center wants weights that change with both without a jump.
    margin = 4 * ratio
    fine = np.arange(-margin, n_coarse * ratio + margin) + 0.5
    middle = (np.arange(n_coarse) + 0.5) * ratio + center
    return gaussian_taps(fine - middle[:, None], sigma)[:, margin:-margin].astype(np.float32)


def gaussian_taps(distance: NDArray[np.floating], sigma: float, cut: float = math.inf) -> F64:
    """Weights at distances from the center, along the last axis, where they sum to 1; 0 beyond `cut`."""
    weights = np.exp(-0.5 * (distance / sigma) ** 2) * (np.abs(distance) <= cut)
    return cast("F64", weights / weights.sum(axis=-1, keepdims=True))


def taps(coarse: range, fine: range, ratio: int, sigma_px: float, shift_px: float = 0.0) -> F32:
    """Weights of a stretch of fine pixels in a stretch of coarse ones along one axis, as `models.operators.degrade` has them.

    Returns
    -------
    ndarray, shape (coarse pixel, fine pixel)
        A row sums to 1 where the stretch holds all that the PSF of its coarse pixel reaches.
    """
    kernel = coarse_pixel(ratio, sigma_px, shift_px)
    reach = (len(kernel) - ratio) // 2
    at = np.arange(fine.start, fine.stop) - np.arange(coarse.start, coarse.stop)[:, None] * ratio + reach
    return np.asarray(np.where((at >= 0) & (at < len(kernel)), kernel[at.clip(0, len(kernel) - 1)], np.float32(0)))


@lru_cache(maxsize=64)
def coarse_pixel(ratio: int, sigma_px: float, shift_px: float = 0.0) -> F32:
    """Weights of the fine pixels that one coarse pixel sees along an axis: its own and `blur_reach` on each side.

    Its center lies `shift_px` fine pixels beside that of its block.
    """
    around = psf_reach(ratio, sigma_px, shift_px)
    reach = blur_reach(ratio, sigma_px, shift_px)
    # The middle of as many coarse pixels as keep the rim out of its reach.
    middle: F32 = blur_matrix(2 * around + 1, ratio, sigma_px, shift_px)[around]
    return middle[around * ratio - reach : (around + 1) * ratio + reach]


def psf_reach(ratio: int, sigma_px: float, shift_px: float = 0.0) -> int:
    """Coarse pixels from a fine pixel's own to the farthest whose PSF sees it."""
    return -(-blur_reach(ratio, sigma_px, shift_px) // ratio)
