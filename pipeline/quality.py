"""Metrics against a reference, in physical units, summed block by block so that any scene fits in memory.

Definitions (F fused, X reference, b bands, p pixels valid in both; r the ratio of the ground sampling distances):

- PSNR = mean_b 10 log10(1 / MSE_b), dB: the peak is 1, as for reflectance
- SAM = mean_p arccos(<f, x> / (|f| |x|)), degrees; spectra of zero length are left out
- ERGAS = (100 / r) sqrt(mean_b(MSE_b / mean_b(X)^2))
- RMSE = sqrt(mean_b MSE_b); CC = mean_b Pearson(F_b, X_b)
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Scores of a fused image against its reference."""

    psnr_db: float
    """Peak 1, mean over bands (dB); higher is better."""
    sam_deg: float
    """Mean spectral angle (degrees); lower is better."""
    ergas: float
    """Relative global error; lower is better."""
    rmse: float
    """In the reference's unit."""
    cc: float
    """Mean correlation over bands."""
    pixels: int
    """Pixels that counted: valid in all bands of both images."""

    def to_json(self) -> dict[str, float | int]:
        """Plain numbers."""
        return asdict(self)


class Comparison:
    """Running sums of a comparison.

    Parameters
    ----------
    n_bands : int
    ratio : float
        HSI over MSI ground sampling distance, above 1.

    References
    ----------
    Wald (2000), Quality of high resolution synthesised images: is there a simple criterion?, Fusion of Earth Data
    (ERGAS); Kruse et al. (1993), The spectral image processing system (SIPS), RSE 44, 145-163 (SAM).
    """

    def __init__(self, n_bands: int, ratio: float) -> None:
        self._ratio = ratio
        self._n = 0
        self._square = np.zeros(n_bands)
        self._moments = np.zeros((5, n_bands))  # sums of f, x, ff, xx, fx
        self._angle = 0.0
        self._angles = 0

    def add(self, fused: NDArray[np.floating], reference: NDArray[np.floating]) -> None:
        """Compare two blocks of shape (band, y, x); NaN is not valid."""
        both = np.isfinite(fused).all(axis=0) & np.isfinite(reference).all(axis=0)
        f, x = fused[:, both].astype(np.float64), reference[:, both].astype(np.float64)
        self._n += f.shape[1]
        self._square += ((f - x) ** 2).sum(axis=1)
        self._moments += np.stack([f.sum(1), x.sum(1), (f * f).sum(1), (x * x).sum(1), (f * x).sum(1)])
        length = np.sqrt((f * f).sum(axis=0) * (x * x).sum(axis=0))
        shown = length > 0
        cosine = (f * x).sum(axis=0)[shown] / length[shown]
        self._angle += float(np.degrees(np.arccos(np.clip(cosine, -1.0, 1.0))).sum())
        self._angles += int(shown.sum())

    def scores(self) -> Scores:
        """Scores of everything that was added.

        Raises
        ------
        ValueError
            If no pixel was valid in both images.
        """
        if self._n == 0:
            raise ValueError("no pixel is valid in both the fused image and its reference")
        mse = self._square / self._n
        f, x, ff, xx, fx = self._moments / self._n
        spread = np.sqrt(np.maximum(ff - f * f, 0) * np.maximum(xx - x * x, 0))
        with np.errstate(divide="ignore", invalid="ignore"):
            psnr = 10.0 * np.log10(1.0 / mse)
            cc = np.where(spread > 0, (fx - f * x) / spread, 0.0)
            ergas = 100.0 / self._ratio * np.sqrt(np.mean(mse / x**2))
        return Scores(
            psnr_db=float(psnr.mean()),
            sam_deg=self._angle / max(self._angles, 1),
            ergas=float(ergas),
            rmse=float(np.sqrt(mse.mean())),
            cc=float(cc.mean()),
            pixels=self._n,
        )
