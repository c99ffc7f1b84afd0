"""The MSI as a guide: bands of a coarser step without their blocks, and all bands as the coarse sensor sees them.

A band of step s reaches a method as blocks of s x s equal pixels, whose edges would be injected as detail. One sample
per block, parabolas through the blocks, and the band is as smooth as what it knows. The mean of each block remains the
sample, so that nothing which the band has measured is lost, and a guide is sharper than its band by the width of a block.
What a band does not know, the detail within its blocks, the bands of finer steps can lend it.

Reference: Colella & Woodward (1984), The piecewise parabolic method (PPM) for gas-dynamical simulations, Journal of
Computational Physics 54(1), 174-201 (section 1, without its limiters).
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray

from hyperfuse.models.operators import blur_reach, degrade
from hyperfuse.models.spec import Observed

_SHARP_PX = 0.3
"""Narrowest blur (fine pixels): a band whose own PSF is as wide as the HSI's is sampled almost as it is."""


def smooth_guides(msi: torch.Tensor, observed: Observed) -> torch.Tensor:
    """The MSI with every band of step > 1 interpolated from one sample per block.

    Parameters
    ----------
    msi : Tensor, shape (N, c, H, W)
        Begins, and ends, on a block of every band.
    observed : Observed

    Returns
    -------
    Tensor, shape (N, c, H, W)
        `msi` itself if every band has step 1.
    """
    if max(observed.steps) == 1:
        return msi
    guides = msi.clone()
    for step in sorted(set(observed.steps) - {1}):
        bands = [k for k, own in enumerate(observed.steps) if own == step]
        guides[:, bands] = from_blocks(msi[:, bands, ::step, ::step], step)
    return guides


def from_blocks(samples: torch.Tensor, step: int) -> torch.Tensor:
    """Fine pixels whose means over blocks are the samples; the outermost sample is repeated beyond the rim.

    Parameters
    ----------
    samples : Tensor, shape (..., h, w)
    step : int
        Fine pixels per block along one axis.

    Returns
    -------
    Tensor, shape (..., h * step, w * step)
    """
    height, width = samples.shape[-2:]
    rows, cols = (torch.as_tensor(_parabolas(size, step)).to(samples) for size in (height, width))
    return rows @ samples @ cols.T


def sharpen_guides(guides: torch.Tensor, transfer: torch.Tensor, observed: Observed) -> torch.Tensor:
    """The guides, with what each band of step > 1 cannot know of its own: the detail of the bands of finer steps.

    Parameters
    ----------
    guides : Tensor, shape (N, c, H, W)
        From `smooth_guides`.
    transfer : Tensor, shape (c, c)
        Change of each band (row) with those of finer steps (columns).
    observed : Observed

    Returns
    -------
    Tensor, shape (N, c, H, W)
        `guides` itself if every band has step 1.
    """
    coarser = [kind for kind in sorted(set(kinds(observed))) if kind[0] > 1]
    if not coarser:
        return guides
    sharpened = guides.clone()
    for step, sigma in coarser:  # from the finest on, so that each is lent what the last has gained
        bands = [k for k, kind in enumerate(kinds(observed)) if kind == (step, sigma)]
        finer = finer_bands(observed, step)
        lent = sharpened[:, finer]
        detail = lent - from_blocks(degrade(lent, step, max(sigma, _SHARP_PX)), step)
        sharpened[:, bands] += torch.einsum("kf,nfhw->nkhw", transfer[bands][:, finer].to(guides), detail)
    return sharpened


def finer_bands(observed: Observed, step: int) -> list[int]:
    """Indices of the MSI bands of a step below `step`."""
    return [k for k, own in enumerate(observed.steps) if own < step]


def degrade_guides(guides: torch.Tensor, observed: Observed) -> torch.Tensor:
    """The guides as the coarse sensor would have seen them: each with what its own PSF lacks of the HSI's.

    Parameters
    ----------
    guides : Tensor, shape (N, c, h * ratio, w * ratio)
        From `smooth_guides`.
    observed : Observed

    Returns
    -------
    Tensor, shape (N, c, h, w)
    """
    sigmas = lacking_sigmas(observed, observed.psf_sigma_px)
    if len(set(sigmas)) == 1:
        return degrade(guides, observed.ratio, sigmas[0], observed.shift_px)
    each = [degrade(guides[:, k], observed.ratio, sigma, observed.shift_px) for k, sigma in enumerate(sigmas)]
    return torch.stack(each, dim=1)


def guide_reach(observed: Observed) -> int:
    """Fine pixels from an MSI pixel to the farthest pixel of its interpolated guide: two blocks and its own."""
    step = max(observed.steps)
    return 0 if step == 1 else 3 * step - 1


def sharpened_reach(observed: Observed) -> int:
    """Fine pixels from an MSI pixel to the farthest pixel of a guide of `sharpen_guides`."""
    reach = 0
    for step, sigma in sorted({kind for kind in kinds(observed) if kind[0] > 1}):
        reach += blur_reach(step, max(sigma, _SHARP_PX)) + 3 * step
    return max(reach, guide_reach(observed))


def low_pass_reach(observed: Observed) -> int:
    """Fine pixels from a guide's pixel to the farthest one of the degraded and interpolated guide that it changes."""
    shift = max(map(abs, observed.shift_px))
    return blur_reach(observed.ratio, observed.psf_sigma_px, shift) + math.ceil(2.5 * observed.ratio + shift)


def kinds(observed: Observed) -> list[tuple[int, float]]:
    """Step and PSF (standard deviation, fine pixels) of each MSI band."""
    sigmas = observed.msi_sigma_px or (0.0,) * observed.msi_bands
    # The PSF of a band of step 1 is that of the product's pixel, in which the HSI's PSF is given.
    return [(step, sigma if step > 1 else 0.0) for step, sigma in zip(observed.steps, sigmas, strict=True)]


def guide_sigmas(observed: Observed) -> list[float]:
    """PSF (standard deviation, fine pixels) of each guide: that of its band less the width of a block."""
    return [math.sqrt(max(sigma**2 - block_variance(step), 0.0)) for step, sigma in kinds(observed)]


def block_variance(step: int) -> float:
    """Variance (fine pixels squared) of a mean over a block along one axis."""
    return (step**2 - 1) / 12


def lacking_sigmas(observed: Observed, sigma_px: float) -> list[float]:
    """Standard deviation (fine pixels) of the blur that takes each guide from its own PSF to one of `sigma_px`."""
    return [math.sqrt(max(sigma_px**2 - sigma**2, _SHARP_PX**2)) for sigma in guide_sigmas(observed)]


@lru_cache(maxsize=64)
def _parabolas(n_blocks: int, step: int) -> NDArray[np.float32]:
    """Means over fine pixels of parabolas that keep the means over blocks and meet at their edges: (n * step, n)."""
    left, middle, right = np.array([[-1, 7, 7, -1, 0], [0, 0, 12, 0, 0], [0, -1, 7, 7, -1]]) / 12  # of five samples
    curve = 6.0 * (middle - (left + right) / 2)
    edge = np.arange(step + 1) / step
    first, last = edge[:-1, None], edge[1:, None]
    linear, square = (first + last) / 2, (first**2 + first * last + last**2) / 3
    weights = left + (right - left) * linear + curve * (linear - square)  # (step, 5)
    matrix = np.zeros((n_blocks, step, n_blocks))
    for tap in range(5):
        at = np.clip(np.arange(n_blocks) + tap - 2, 0, n_blocks - 1)
        for phase in range(step):
            np.add.at(matrix[:, phase], (np.arange(n_blocks), at), weights[phase, tap])
    return matrix.reshape(n_blocks * step, n_blocks).astype(np.float32)
