"""What resampling takes from the HSI, given back as far as the MSI tells of it.

Samples of a coarse sensor are not the values of a smooth image: detail beyond the Nyquist frequency is folded into them, and
no kernel makes of them what the sensor would have measured half a pixel further. But the MSI shows that detail. Seen through
the HSI's PSF it is known both where the samples lie and where they are wanted; of the part of the HSI that follows it linearly,
the error of the resampling is known with it, and taken out:

    HSI at the centers = R HSI + B (MSI at the centers - R MSI at the samples)

with the resampling R, and B from the regression of R HSI on R MSI over a sample of the scene.

References
----------
Regression kriging: Odeh, McBratney & Chittleborough (1995), Further results on prediction of soil properties from terrain
attributes, Geoderma 67(3-4), 215-226 (a trend known everywhere, and the remainder interpolated).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]

_RIDGE = 1e-4
"""Share of a guide's variance that is added to it."""
_FEWEST = 10
"""Samples per guide below which nothing is regressed."""


@dataclass(frozen=True, kw_only=True, eq=False)
class GuideMoments:
    """Sums over samples that HSI and MSI show both, band by band of the HSI, for its bands have holes of their own."""

    gram: F64
    """Products of the guides, the first of them constant, shape (C, 1 + c, 1 + c)."""
    product: F64
    """Products of guides and bands, shape (C, 1 + c)."""
    square: F64
    """Squares of the bands, shape (C,)."""

    @classmethod
    def of(cls, hsi: F32, guides: F32) -> Self:
        """Of a block.

        Parameters
        ----------
        hsi : ndarray, shape (C, h, w), float32
            Resampled; NaN where invalid.
        guides : ndarray, shape (c, h, w), float32
            The MSI through the HSI's PSF at the HSI's samples, resampled likewise; NaN where it is not known.
        """
        y = hsi.reshape(len(hsi), -1).astype(np.float64)
        x = np.vstack([np.ones((1, y.shape[1])), guides.reshape(len(guides), -1)])
        known = np.isfinite(x).all(axis=0)
        y, x = y[:, known], x[:, known]
        valid = np.isfinite(y)
        squares = (x[:, None] * x).reshape(-1, x.shape[1])
        gram = (valid.astype(np.float64) @ squares.T).reshape(len(y), len(x), len(x))
        filled = np.where(valid, y, 0.0)
        return cls(gram=gram, product=filled @ x.T, square=np.einsum("cp,cp->c", filled, filled))

    def __add__(self, other: GuideMoments) -> GuideMoments:
        return GuideMoments(
            gram=self.gram + other.gram, product=self.product + other.product, square=self.square + other.square
        )

    def weights(self) -> F32:
        """How each band follows the guides, shape (C, c), float32; 0 where there is too little to tell."""
        return self._solved()[0].astype(np.float32)

    def unexplained(self) -> float:
        """Share of a band's variance that does not follow the guides, the mean over the bands; 1 if there is too little to tell."""
        solved, shared, variance = self._solved()
        told = variance > 0
        if not told.any():
            return 1.0
        return float(1.0 - (np.einsum("cg,cg->c", solved, shared)[told] / variance[told]).mean())

    def _solved(self) -> tuple[F64, F64, F64]:
        """Weights (C, c), covariances of bands and guides (C, c), and variances of the bands (C,)."""
        n_samples, n_guides = self.gram[:, 0, 0], self.gram.shape[1] - 1
        n = np.maximum(n_samples, 1.0)[:, None]
        mean, level = self.gram[:, 0, 1:] / n, self.product[:, :1] / n
        covariance = self.gram[:, 1:, 1:] / n[..., None] - mean[:, :, None] * mean[:, None, :]
        shared = self.product[:, 1:] / n - mean * level
        ridge = _RIDGE * np.einsum("cgg->c", covariance) / n_guides + 1e-30
        solved = np.linalg.solve(covariance + ridge[:, None, None] * np.eye(n_guides), shared[..., None])[..., 0]
        enough = n_samples >= _FEWEST * n_guides
        spread = np.maximum(self.square / n[:, 0] - level[:, 0] ** 2, 0.0)
        return np.where(enough[:, None], solved, 0.0), shared, np.where(enough, spread, 0.0)


def restored(hsi: F32, centered: F32, resampled: F32, weights: F32) -> F32:
    """The HSI with what resampling took from it.

    Parameters
    ----------
    hsi : ndarray, shape (C, h, w), float32
        Resampled.
    centered, resampled : ndarray, shape (c, h, w), float32
        The MSI through the HSI's PSF: where samples are wanted, and resampled from where the HSI's lie. NaN where not known;
        there the HSI stays as it is.
    weights : ndarray, shape (C, c), float32
        From `GuideMoments.weights`.
    """
    lost = centered - resampled
    lost[:, ~np.isfinite(lost).all(axis=0)] = 0.0
    more: F32 = hsi + np.tensordot(weights, lost, axes=1)
    return more
