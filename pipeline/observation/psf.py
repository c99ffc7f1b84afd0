"""The Gaussian PSF of the coarse sensor, sampled on fine pixels."""

from __future__ import annotations

from typing import NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from hyperfuse.models.operators import blur_reach

F32 = NDArray[np.float32]


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
    # Over four coarse pixels on each side they sum to 1; near the rim a part is missing, which `Sample` looks at.
    margin = 4 * ratio
    fine = np.arange(-margin, n_coarse * ratio + margin) + 0.5
    middle = (np.arange(n_coarse) + 0.5) * ratio + center
    weights = np.exp(-0.5 * ((fine - middle[:, None]) / sigma) ** 2)
    weights /= weights.sum(axis=1, keepdims=True)
    return weights[:, margin:-margin].astype(np.float32)


def taps(coarse: range, fine: range, ratio: int, sigma_px: float) -> F32:
    """Weights of a stretch of fine pixels in a stretch of coarse ones along one axis, as `models.operators.degrade` has them.

    Returns
    -------
    ndarray, shape (coarse pixel, fine pixel)
        A row sums to 1 where the stretch holds all that the PSF of its coarse pixel reaches.
    """
    reach = blur_reach(ratio, sigma_px)
    offset = np.arange(-reach, ratio + reach) - (ratio - 1) / 2
    total = np.exp(-0.5 * (offset / sigma_px) ** 2).sum()
    first = np.arange(fine.start, fine.stop)[None, :] - np.arange(coarse.start, coarse.stop)[:, None] * ratio
    weight = np.exp(-0.5 * ((first - (ratio - 1) / 2) / sigma_px) ** 2) / total
    return np.where((first >= -reach) & (first < ratio + reach), weight, 0.0).astype(np.float32)


def psf_reach(ratio: int, sigma_px: float) -> int:
    """Coarse pixels from a fine pixel's own to the farthest whose PSF sees it."""
    return -(-blur_reach(ratio, sigma_px) // ratio)
