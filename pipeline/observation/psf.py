"""The Gaussian PSF of the coarse sensor, sampled on fine pixels."""

from __future__ import annotations

from typing import NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

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
