"""Gaussian blur of a field that can be computed anywhere, sampled at any positions.

Positions are in fine pixels with the corner of the first pixel at 0: pixel i has its center at i + 0.5. A sample is the
sum over the fine pixels within 4 standard deviations along each axis, with weights that sum to 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import cast

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
Field = Callable[[range, range], F32]
"""Values of any rows and columns of fine pixels, shape (layer, y, x)."""

_SUPPORT = 4.0  # in standard deviations; beyond lies 6e-5 of the weight along an axis
_GATHER_SAMPLES = 1 << 22  # fine samples copied at once, 16 MiB


def blur_separable(field: Field, row_px: F64, col_px: F64, sigma_px: float) -> F32:
    """Blur a field onto a grid whose axes are parallel to the fine one's: two matrix products.

    Parameters
    ----------
    field : callable
        What is blurred; asked once, for the pixels under the outermost samples and no more.
    row_px, col_px : ndarray, shapes (y,) and (x,)
        Positions of the samples.
    sigma_px : float
        Standard deviation of the Gaussian (fine pixels).

    Returns
    -------
    ndarray, shape (layer, y, x)
    """
    rows, cols = _reach(row_px, sigma_px), _reach(col_px, sigma_px)
    along_y = _weights(np.array(rows) + 0.5 - row_px[:, None], sigma_px)
    along_x = _weights(np.array(cols) + 0.5 - col_px[:, None], sigma_px)
    return cast("F32", along_y @ field(rows, cols) @ along_x.T)


def blur_gather(field: Field, row_px: F64, col_px: F64, sigma_px: float) -> F32:
    """Blur a field onto any positions: each sample gathers its own neighborhood.

    Parameters
    ----------
    field : callable
        What is blurred; asked once, for the pixels under the outermost samples.
    row_px, col_px : ndarray, shape (sample,)
        Positions of the samples.
    sigma_px : float
        Standard deviation of the Gaussian (fine pixels).

    Returns
    -------
    ndarray, shape (layer, sample)
    """
    taps = math.floor(2.0 * _SUPPORT * sigma_px) + 1
    rows, cols = _reach(row_px, sigma_px, margin=1), _reach(col_px, sigma_px, margin=1)
    fine = field(rows, cols)
    patches = np.lib.stride_tricks.sliding_window_view(fine, (taps, taps), axis=(1, 2))
    out = np.empty((fine.shape[0], row_px.size), dtype=np.float32)
    step = max(1, _GATHER_SAMPLES // (fine.shape[0] * taps * taps))
    for start in range(0, row_px.size, step):
        part = slice(start, start + step)
        first_row, along_y = _taps(row_px[part], taps, sigma_px)
        first_col, along_x = _taps(col_px[part], taps, sigma_px)
        near = patches[:, first_row - rows.start, first_col - cols.start]  # (layer, sample, tap, tap)
        out[:, part] = (along_y[:, None, :] @ near @ along_x[:, :, None])[..., 0, 0]
    return out


def _reach(at: F64, sigma_px: float, *, margin: int = 0) -> range:
    """Pixels whose centers lie under the Gaussian at any of these positions, and `margin` more at the end."""
    half = _SUPPORT * sigma_px
    return range(math.ceil(at.min() - half - 0.5), math.floor(at.max() + half - 0.5) + 1 + margin)


def _taps(at: F64, taps: int, sigma_px: float) -> tuple[NDArray[np.int64], F32]:
    """First pixel under the Gaussian at each position, and the weights of that one and those after it."""
    first = np.ceil(at - _SUPPORT * sigma_px - 0.5).astype(np.int64)
    return first, _weights(first[:, None] + np.arange(taps) + 0.5 - at[:, None], sigma_px)


def _weights(distance: F64, sigma_px: float) -> F32:
    """Gaussian weights at these distances (fine pixels), each row with a sum of 1."""
    # Not `models.operators.blur_matrix`, which knows the centers of coarse pixels only: here samples lie anywhere.
    weights = np.where(np.abs(distance) <= _SUPPORT * sigma_px, np.exp(-0.5 * (distance / sigma_px) ** 2), 0.0)
    return cast("F32", (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32))
