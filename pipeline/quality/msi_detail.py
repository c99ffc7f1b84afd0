"""Detail of the MSI: what it has beyond its own image by the coarse sensor, and how much of it is around each pixel."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import avg_pool2d, pad

from hyperfuse.models import Observed
from hyperfuse.models.operators import degrade, upsample
from hyperfuse.models.subspace.guides import low_pass_reach

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]


def activity_reach(observed: Observed) -> int:
    """Coarse pixels from a pixel to the farthest one that its activity depends on."""
    return math.ceil((low_pass_reach(observed) + observed.ratio) / observed.ratio)


def detail_energy(msi: F32, ratio: int, psf_sigma_px: float) -> F32:
    """Local mean square of what the MSI has beyond its own image by the coarse sensor.

    Parameters
    ----------
    msi : ndarray, shape (c, h * ratio, w * ratio), float32
        Filled, no NaN.
    ratio : int
    psf_sigma_px : float
        Standard deviation of the HSI's PSF in fine pixels.

    Returns
    -------
    ndarray, shape (c, h * ratio, w * ratio), float32
        Means over about one coarse pixel around each pixel, the MSI's unit squared.
    """
    image = torch.from_numpy(np.ascontiguousarray(msi))[None]
    square = (image - upsample(degrade(image, ratio, psf_sigma_px), ratio)).square_()
    half = ratio // 2
    energy: F32 = avg_pool2d(pad(square, (half,) * 4, mode="replicate"), 2 * half + 1, stride=1)[0].numpy()
    return energy


def activity(msi: F32, energy: Sequence[float] | F64, ratio: int, psf_sigma_px: float) -> F32:
    """Detail of the MSI around each pixel in units of its usual detail, mean over bands, shape (y, x)."""
    usual = np.maximum(np.asarray(energy, np.float32), np.finfo(np.float32).tiny)
    relative: F32 = (detail_energy(msi, ratio, psf_sigma_px) / usual[:, None, None]).mean(axis=0)
    return relative


def filled(image: F32) -> F32:
    """The image with the mean of each band in its holes; shape (band, y, x)."""
    holes = np.isnan(image)
    if not holes.any():
        return image
    n_valid = np.maximum((~holes).sum(axis=(1, 2)), 1)
    mean = np.where(holes, 0.0, image).sum(axis=(1, 2), dtype=np.float64) / n_valid
    return np.where(holes, mean[:, None, None], image).astype(np.float32)
