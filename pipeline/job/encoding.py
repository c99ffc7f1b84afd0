"""How samples are stored, int16 counts of a scale or float32, and back; what stores them on a device is `fusion.packing`."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

VARIABLE = "reflectance"
"""Name of the cube whatever it measures, so that a reader needs to know one name."""
ERRORS = "reflectance_standard_error"
"""Name of its standard errors, in products that have them."""
WORKING_FORMAT = "zarr"
"""Format in whose layout tiles are written: a product that is published in it needs no copy."""
NODATA = -32768
"""Stored value of a sample that is not valid, int16 products; float32 products have NaN."""


INT16_RANGE = (-32767, 32767)
"""Stored values of valid samples."""


def valid_samples(stored: NDArray[Any]) -> NDArray[np.bool_]:
    """Which stored samples are valid, of their shape."""
    return np.asarray((stored != NODATA) if stored.dtype == np.int16 else np.isfinite(stored))


def decoded(stored: NDArray[Any], scale: float) -> NDArray[np.float32]:
    """Stored samples as physical values, NaN where they are not valid.

    Parameters
    ----------
    stored : ndarray
        int16 counts, or physical values.
    scale : float
        Physical value of one count.
    """
    if stored.dtype != np.int16:
        return np.asarray(stored, np.float32)
    return np.where(valid_samples(stored), stored * np.float32(scale), np.float32(np.nan)).astype(np.float32)


def encoded(samples: NDArray[np.float32], scale: float, valid: NDArray[np.bool_]) -> tuple[NDArray[np.int16], int]:
    """Physical values as int16 counts, and how many valid ones had to be set to the end of the range.

    Parameters
    ----------
    samples : ndarray, float32
    scale : float
        Physical value of one count.
    valid : ndarray, bool
        Of the same shape; the others become nodata.
    """
    counts = np.rint(np.where(valid, samples, np.float32(0)) / np.float32(scale))
    low, high = INT16_RANGE
    clipped = int(((counts < low) | (counts > high)).sum())
    return np.where(valid, np.clip(counts, low, high), NODATA).astype(np.int16), clipped
