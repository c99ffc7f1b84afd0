"""How the two sensors see one scene: the PSF of the HSI and the spectral responses (SRF) of the MSI.

    degraded MSI = gain * (SRF x HSI) + offset            per MSI band, at the coarse pixels

holds for the right SRF, and for the right PSF, with which the MSI is degraded. What the tables of the sensors tell is
`known`, a `Sample` of the pair tests it, and how far it is from holding is the misfit; `pipeline.observation.blind` seeks PSF and
SRF such that it holds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from hyperfuse.catalogs.sensors import sigma_from_mtf
from hyperfuse.pipeline.geometry.box import Box
from hyperfuse.pipeline.observation.psf import F32, Psf, blurred_by

F64 = NDArray[np.float64]

MAX_PIXELS = 25_600
"""Coarse pixels that are looked at, at most; fewer where the bands are so many that `_MAX_SAMPLES` is reached."""
MIN_PIXELS = 64
"""Fewer valid coarse pixels than these tell nothing."""
MTF_RANGE = (0.9, 0.05)
"""Modulation at the Nyquist frequency of the narrowest and the widest PSF that is believed."""
BLUR = 1.5
"""Standard deviation of the strong blur, in coarse pixels: three times that of a usual PSF."""
_EDGE = 40
"""Coarse pixels along the edge of a sampled block."""
_SHARP_PX = 0.3
"""Narrowest blur, in fine pixels."""
_HALF = 20
"""Coarse pixels along the edge of the squares of which two halves of a sample are made."""
_CELL = 5
"""Coarse pixels along the edge of a neighborhood whose residuals are not taken for independent."""
_MAX_SAMPLES = 1 << 23
"""Samples of both images that are looked at, at most: 32 MiB in single precision."""
_MAX_LOST = 0.05
"""A coarse pixel counts if less than this share of the widest PSF falls on invalid fine pixels."""


class NotEstimable(ValueError):
    """The pair does not tell how it was observed; the message says why."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Sample:
    """Blocks of both images, filled; only coarse pixels that are valid in both are compared."""

    ratio: int
    """Fine pixels per coarse pixel along one axis."""
    hsi: F32
    """Shape (C, block, h, w)."""
    msi: F32
    """Less `msi_mean`, 0 in holes, shape (c, block, h * ratio, w * ratio)."""
    msi_mean: F64
    """Shape (c,)."""
    msi_weight: F32
    """1 where all bands are valid, else 0, shape (block, h * ratio, w * ratio)."""
    valid: NDArray[np.bool_]
    """Coarse pixels that count, shape (block, h, w)."""
    own_sigma_px: tuple[float, ...]
    """Standard deviation of the blur that each MSI band has of its own, in fine pixels."""

    @classmethod
    def of(cls, hsi: F32, msi: F32, ratio: int, own_sigma_px: Sequence[float] = ()) -> Sample:
        """A sample of blocks as they are read.

        Parameters
        ----------
        hsi : ndarray, shape (block, C, h, w), float32
            NaN where invalid.
        msi : ndarray, shape (block, c, h * ratio, w * ratio), float32
            NaN where invalid; registered to the HSI.
        ratio : int
        own_sigma_px : sequence of float, optional
            Standard deviation of the blur that each MSI band has of its own, in fine pixels; 0 unless given.

        Raises
        ------
        NotEstimable
            If fewer than `MIN_PIXELS` coarse pixels are valid in both images, away from holes and from the rim.
        """
        hsi_valid, msi_valid = (np.isfinite(image).all(axis=1) for image in (hsi, msi))
        weight: F32 = np.asarray(msi_valid, np.float32)
        reached = blurred_by(weight, ratio, Psf(sigma_from_mtf(MTF_RANGE[1], ratio)))
        valid = hsi_valid & (reached > 1.0 - _MAX_LOST)
        if valid.sum() < MIN_PIXELS:
            raise NotEstimable(
                f"{valid.sum()} of {valid.size} sampled coarse pixels are valid in both images, away from holes and from the "
                f"rim, expected {MIN_PIXELS} or more"
            )
        coarse, fine = (image.swapaxes(0, 1) for image in (hsi, msi))
        coarse_mean, fine_mean = coarse[:, valid].mean(axis=1), fine[:, msi_valid].mean(axis=1, dtype=np.float64)
        return cls(
            ratio=ratio,
            hsi=np.where(valid, coarse, _per_band(coarse_mean)),
            msi=np.where(msi_valid, fine - _per_band(fine_mean), np.float32(0.0)),
            msi_mean=fine_mean,
            msi_weight=weight,
            valid=valid,
            own_sigma_px=tuple(own_sigma_px) or (0.0,) * len(fine),
        )

    def degraded(self, psf: Psf) -> F32:
        """The MSI less its mean as the HSI's sensor would see it, shape (c, block, h, w)."""
        seen = np.empty((len(self.msi), *self.valid.shape), np.float32)
        for own in set(self.own_sigma_px):
            # A band of coarser pixels is blurred already; what it lacks of the HSI's PSF is left to do.
            lacking = psf._replace(sigma=math.sqrt(max(psf.sigma**2 - own**2, _SHARP_PX**2)))
            reached = blurred_by(self.msi_weight, self.ratio, lacking)
            bands = [k for k, sigma in enumerate(self.own_sigma_px) if sigma == own]
            seen[bands] = blurred_by(self.msi[bands], self.ratio, lacking) / np.maximum(reached, np.float32(0.5))
        return seen

    def halves(self) -> tuple[Sample, Sample]:
        """The same images, of which every other cell of the valid pixels counts, and the others; see `cells`."""
        first = np.zeros_like(self.valid)
        block, y, x = np.nonzero(self.valid)
        first[block, y, x] = (block + y // _HALF + x // _HALF) % 2 == 0
        return replace(self, valid=self.valid & first), replace(self, valid=self.valid & ~first)

    @property
    def cells(self) -> NDArray[np.int64]:
        """Label of the neighborhood of each valid pixel, shape (pixel,)."""
        block, y, x = np.nonzero(self.valid)
        rows, cols = (-(-size // _CELL) for size in self.valid.shape[1:])
        labels: NDArray[np.int64] = (block * rows + y // _CELL) * cols + x // _CELL
        return labels

    def strongly_blurred(self, images: F32) -> F64:
        """Two strong blurs of coarse images (layer, block, h, w), less their means, shape (2, layer, pixel).

        Each blurs the valid pixels of one color of a checkerboard: the same scene, with independent noise.
        """
        color = np.indices(self.valid.shape[1:]).sum(axis=0) % 2
        return np.stack([self._blurred_over(images, self.valid & (color == used)) for used in (0, 1)])

    def predicted(self, srf: F64) -> F64:
        """SRF x HSI at the valid pixels, shape (c, pixel)."""
        return (srf.astype(np.float32) @ self.hsi[:, self.valid]).astype(np.float64)

    def _blurred_over(self, images: F32, used: NDArray[np.bool_]) -> F64:
        share = gaussian_filter(used.astype(np.float32), (0.0, BLUR, BLUR), mode="constant")
        total = gaussian_filter(np.where(used, images, np.float32(0.0)), (0.0, 0.0, BLUR, BLUR), mode="constant")
        return centered(total[:, self.valid] / np.maximum(share[self.valid], 1e-6))


def sampled_blocks(shape: tuple[int, ...], *, n_hsi: int, n_msi: int, ratio: int) -> list[Box]:
    """Blocks of equal shape (coarse pixels), evenly over the scene, `MAX_PIXELS` in all at most but one block at least.

    Parameters
    ----------
    shape : (int, int)
        Rows and columns of the coarse grid.
    n_hsi, n_msi : int
        Bands of both images.
    ratio : int
    """
    edges = [min(_EDGE, size) for size in shape]
    most = min(MAX_PIXELS, _MAX_SAMPLES // (n_hsi + n_msi * ratio**2)) // math.prod(edges)
    # As many per row as per column, by the shape of the scene.
    rows = min(max(round(math.sqrt(most * shape[0] / shape[1])), 1), shape[0] // edges[0])
    cols = min(max(most // rows, 1), shape[1] // edges[1])
    starts = [
        [(size - edge * n) * (2 * i + 1) // (2 * n) + edge * i for i in range(n)]
        for size, edge, n in zip(shape, edges, (rows, cols), strict=True)
    ]
    return [Box(y0=y, y1=y + edges[0], x0=x, x1=x + edges[1]) for y in starts[0] for x in starts[1]]


def centered(pixels: NDArray[Any]) -> F64:
    """Pixels (layer, pixel) less the mean of their layer."""
    return cast("F64", pixels - pixels.mean(axis=1, keepdims=True, dtype=np.float64))


def _per_band(values: NDArray[Any]) -> F32:
    return values.astype(np.float32)[:, None, None, None]
