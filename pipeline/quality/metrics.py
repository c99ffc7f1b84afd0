"""Metrics against a reference, in physical units, summed block by block so that any scene fits in memory.

Definitions (F fused, X reference, b bands, p pixels valid in both; r the ratio of the ground sampling distances):

- PSNR = mean_b 10 log10(1 / MSE_b), dB: the peak is 1, as for reflectance
- PSNR of the band's own peak = mean_b 10 log10(max_p(X_b)^2 / MSE_b), dB: as several papers give it
- SAM = mean_p arccos(<f, x> / (|f| |x|)), degrees; spectra of zero length are left out
- ERGAS = (100 / r) sqrt(mean_b(MSE_b / mean_b(X)^2))
- SSIM = mean_b mean_w of the structural similarity: Gaussian windows w of 11 x 11 pixels, sigma 1.5, K1 = 0.01,
  K2 = 0.03, range 1; windows that touch an invalid pixel or leave the image do not count
- RMSE = sqrt(mean_b MSE_b); CC = mean_b Pearson(F_b, X_b)

NaN is invalid everywhere, and a pixel that is invalid in one band is in all.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import correlate1d

from hyperfuse.catalogs.scene import Window

SSIM_REACH = 5
"""Pixels from the center of an SSIM window to its edge."""
_SSIM_SIGMA = 1.5
_SSIM_C1, _SSIM_C2 = 0.01**2, 0.03**2  # (K * range)^2
_BANDS_AT_ONCE = 16  # of the SSIM's local moments, five images per band


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Scores of a fused image against its reference."""

    psnr_db: float
    """Peak 1, mean over bands (dB); higher is better."""
    psnr_max_db: float
    """Peak of each band its own maximum in the reference, mean over bands (dB)."""
    sam_deg: float
    """Mean spectral angle (degrees); lower is better."""
    ergas: float
    """Relative global error; lower is better."""
    ssim: float
    """Structural similarity, at most 1; NaN where no window was whole."""
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
    (ERGAS); Kruse et al. (1993), The spectral image processing system (SIPS), RSE 44, 145-163 (SAM); Wang, Bovik,
    Sheikh & Simoncelli (2004), Image quality assessment: from error visibility to structural similarity, IEEE TIP
    13(4), 600-612 (SSIM).
    """

    def __init__(self, n_bands: int, ratio: float) -> None:
        self._ratio = ratio
        self._n = 0
        self._square = np.zeros(n_bands)
        self._moments = np.zeros((5, n_bands))  # sums of f, x, ff, xx, fx
        self._peak = np.full(n_bands, -np.inf)
        self._angle = 0.0
        self._angles = 0
        self._similarity = 0.0
        self._windows = 0

    def add(self, fused: NDArray[np.floating], reference: NDArray[np.floating], *, core: Window | None = None) -> None:
        """Compare two blocks.

        Parameters
        ----------
        fused, reference : ndarray, shape (band, y, x)
            NaN is not valid.
        core : (slice, slice), optional
            The pixels that count, all by default. The others serve the SSIM windows around those: blocks that overlap
            by `SSIM_REACH` on each side give the SSIM of the whole image.
        """
        both = np.isfinite(fused).all(axis=0) & np.isfinite(reference).all(axis=0)
        counted = np.zeros_like(both)
        counted[core or (slice(None), slice(None))] = True
        self._add_windows(fused, reference, both, counted)
        both &= counted
        f, x = fused[:, both].astype(np.float64), reference[:, both].astype(np.float64)
        if not f.size:
            return
        self._n += f.shape[1]
        self._square += ((f - x) ** 2).sum(axis=1)
        self._moments += np.stack([f.sum(1), x.sum(1), (f * f).sum(1), (x * x).sum(1), (f * x).sum(1)])
        self._peak = np.maximum(self._peak, x.max(axis=1))
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
            psnr_max = 10.0 * np.log10(self._peak**2 / mse)
            cc = np.where(spread > 0, (fx - f * x) / spread, 0.0)
            ergas = 100.0 / self._ratio * np.sqrt(np.mean(mse / x**2))
        return Scores(
            psnr_db=float(psnr.mean()),
            psnr_max_db=float(psnr_max.mean()),
            sam_deg=self._angle / max(self._angles, 1),
            ergas=float(ergas),
            ssim=self._similarity / (self._windows * len(mse)) if self._windows else float("nan"),
            rmse=float(np.sqrt(mse.mean())),
            cc=float(cc.mean()),
            pixels=self._n,
        )

    def _add_windows(
        self,
        fused: NDArray[np.floating],
        reference: NDArray[np.floating],
        both: NDArray[np.bool_],
        counted: NDArray[np.bool_],
    ) -> None:
        """Add the SSIM of the windows that are centered on counted pixels and hold valid ones only."""
        centers = _eroded(both, SSIM_REACH) & counted
        if not centers.any():
            return
        self._windows += int(centers.sum())
        for first in range(0, len(fused), _BANDS_AT_ONCE):
            part = slice(first, first + _BANDS_AT_ONCE)
            f, x = (np.where(both, image[part], 0.0).astype(np.float64) for image in (fused, reference))
            self._similarity += float(_ssim(f, x)[:, centers].sum())


def _ssim(f: NDArray[np.float64], x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Structural similarity of the windows around each pixel, shape (band, y, x)."""
    mean_f, mean_x = _windowed(f), _windowed(x)
    var_f, var_x, covariance = (
        _windowed(product) - mean
        for product, mean in ((f * f, mean_f**2), (x * x, mean_x**2), (f * x, mean_f * mean_x))
    )
    luminance = (2 * mean_f * mean_x + _SSIM_C1) / (mean_f**2 + mean_x**2 + _SSIM_C1)
    return luminance * (2 * covariance + _SSIM_C2) / (var_f + var_x + _SSIM_C2)


def _windowed(image: NDArray[np.float64]) -> NDArray[np.float64]:
    """Gaussian mean of the window around each pixel; what lies beyond the image is never counted."""
    taps = np.exp(-0.5 * (np.arange(-SSIM_REACH, SSIM_REACH + 1) / _SSIM_SIGMA) ** 2)
    taps /= taps.sum()
    smooth: NDArray[np.float64] = correlate1d(correlate1d(image, taps, axis=1), taps, axis=2)
    return smooth


def _eroded(valid: NDArray[np.bool_], reach: int) -> NDArray[np.bool_]:
    """Pixels whose square neighborhood is valid and inside, shape (y, x)."""
    size = np.ones(2 * reach + 1)
    invalid = correlate1d(correlate1d((~valid).astype(np.float64), size, axis=0, mode="constant", cval=1.0), size,
                          axis=1, mode="constant", cval=1.0)  # fmt: skip
    whole: NDArray[np.bool_] = invalid < 0.5
    return whole
