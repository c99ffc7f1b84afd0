"""A second opinion on a fused image: each HSI band regressed on the MSI at the coarse pixels, applied to the fine ones.

How far an image is from it, and it from the HSI, can be had wherever there is a pair, whatever method made the image.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch

from hyperfuse.models.operators import CENTERED, Shift, degrade
from hyperfuse.pipeline.quality.msi_detail import F32, F64, filled


@dataclass(frozen=True, kw_only=True, eq=False)
class SecondOpinion:
    """fused band = offset + slope . MSI."""

    slope: F64
    """Shape (c, C)."""
    offset: F64
    """Shape (C,)."""
    unexplained: F64
    """Mean square per band that the regression leaves of the HSI at the coarse pixels, shape (C,)."""

    @classmethod
    def of(cls, hsi: F32, msi: F32, *, ratio: int, psf_sigma_px: float, shift_px: Shift = CENTERED) -> Self:
        """The regression of a pair.

        Parameters
        ----------
        hsi : ndarray, shape (C, h, w), float32
        msi : ndarray, shape (c, h * ratio, w * ratio), float32
            NaN in either image is filled.
        ratio : int
        psf_sigma_px : float
            Standard deviation of the HSI's PSF in fine pixels.
        shift_px : (float, float)
            Rows and columns (fine pixels) by which the HSI's samples lie beside their pixels.
        """
        low = degrade(torch.from_numpy(filled(msi))[None], ratio, psf_sigma_px, shift_px)[0].flatten(1).double().numpy()
        measured = filled(hsi).reshape(len(hsi), -1).astype(np.float64)
        centered = low - low.mean(axis=1, keepdims=True)
        slope, *_ = np.linalg.lstsq(centered.T, measured.T, rcond=None)  # (c, C)
        offset = measured.mean(axis=1) - slope.T @ low.mean(axis=1)
        left = measured - slope.T @ low - offset[:, None]
        return cls(slope=slope, offset=offset, unexplained=(left**2).mean(axis=1))

    def distance(self, strips: Iterable[tuple[F32, F32]]) -> F64:
        """Mean square distance of a fused image from the second opinion, per band.

        Parameters
        ----------
        strips : iterable of (fused, msi)
            Parts of both, shapes (C, y, x) and (c, y, x), float32, so that the whole is never held. NaN counts for nothing.

        Returns
        -------
        ndarray, shape (C,), float64
            0 where no pixel counts.
        """
        total, n_shown = np.zeros(len(self.offset)), np.zeros(len(self.offset), np.int64)
        for fused, msi in strips:
            for band, (slope, offset) in enumerate(zip(self.slope.T, self.offset, strict=True)):
                distance = fused[band] - np.tensordot(slope, msi, axes=1) - offset
                shown = distance[np.isfinite(distance)]
                total[band] += (shown**2).sum()
                n_shown[band] += shown.size
        return total / np.maximum(n_shown, 1)
