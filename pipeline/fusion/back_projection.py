"""Back-projection: the smallest change of a fused image with which it agrees with the HSI as far as noise lets it.

    F' = F + H^T (H H^T + lambda)^-1 (L - H F)

H is the blur and the sampling that `pipeline.quality.consistency` judges with. On the coarse grid H H^T is a convolution with a
short kernel, so its regularized inverse is one too, and decays fast: cut where what is left of it is proven small, the
correction is local, and a tile that reads `reach` coarse pixels around itself is corrected as the whole image is.

Where the HSI is not valid, or its pixel looks at what is no part of the product, nothing is known and nothing is
demanded: the correction is then exact at every other pixel, because H H^T (H H^T)^-1 r = r for any r, holes of zeros
included.

References
----------
Irani & Peleg (1991), Improving resolution by image registration, CVGIP 53(3), 231-239 (back-projection); Tikhonov's
regularization with the parameter chosen by the discrepancy principle, Morozov (1966), On the solution of functional
equations by the method of regularization, Soviet Math. Doklady 7, 414-417.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.fft import next_fast_len

from hyperfuse.models.operators import blur_reach

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]

MAX_LOST = 1e-3
"""A coarse pixel counts if less than this share of its PSF falls on invalid pixels or outside the product."""
LEAST = 1e-3
"""Least lambda, in units of what H H^T does to a constant image: frequencies that the HSI hardly sees are left alone."""
_CUT = 1e-2
"""What the cut of the kernel may leave of a residual in addition: a share of its largest value, at most."""
_GRID = 128
"""Coarse pixels of the periodic grid on which kernels are computed; they have decayed long before its edge."""
_BLOCK = 32
"""Edge of the blocks (coarse px) whose spectra are taken, padded to twice that."""
_BANDS = 32
"""Bands that are projected at once, which bounds the memory."""


def taps(coarse: range, fine: range, ratio: int, sigma_px: float) -> F32:
    """Weights of a stretch of fine pixels in a stretch of coarse ones along one axis, as `models.operators.degrade` has them.

    Returns
    -------
    ndarray, shape (coarse pixel, fine pixel)
        A row sums to 1 where the stretch holds all that the PSF of its coarse pixel reaches.
    """
    reach = blur_reach(ratio, sigma_px)
    offset = np.arange(-reach, ratio + reach) - (ratio - 1) / 2
    total = np.exp(-0.5 * (offset / sigma_px) ** 2).sum()
    first = np.arange(fine.start, fine.stop)[None, :] - np.arange(coarse.start, coarse.stop)[:, None] * ratio
    weight = np.exp(-0.5 * ((first - (ratio - 1) / 2) / sigma_px) ** 2) / total
    return np.where((first >= -reach) & (first < ratio + reach), weight, 0.0).astype(np.float32)


def psf_reach(ratio: int, sigma_px: float) -> int:
    """Coarse pixels from a fine pixel's own to the farthest whose PSF sees it."""
    return -(-blur_reach(ratio, sigma_px) // ratio)


@lru_cache(maxsize=16)
def kernel_radius(ratio: int, sigma_px: float) -> int:
    """Coarse pixels after which the regularized inverse of H H^T is cut, for any lambda from `LEAST` on."""
    gain = _transfer(_GRID, ratio, sigma_px)
    left = np.abs(np.fft.ifft2(1.0 / (gain + LEAST)).real)
    distance = np.minimum(np.arange(_GRID), _GRID - np.arange(_GRID))
    beyond = np.maximum(distance[:, None], distance)
    # |H H^T (K - K_cut) r| <= |H H^T| |K - K_cut| |r| in the largest norm; the first is 1 in these units.
    radii = (radius for radius in range(_GRID // 2) if left[beyond > radius].sum() <= _CUT)
    return next(radii, _GRID // 2 - 1)


def reach(ratio: int, sigma_px: float) -> int:
    """Coarse pixels around a tile that decide its correction: PSF, kernel, and PSF once more."""
    return 2 * psf_reach(ratio, sigma_px) + kernel_radius(ratio, sigma_px)


def residual(
    fused: torch.Tensor, hsi: torch.Tensor, shown: torch.Tensor, valid: torch.Tensor, *, ratio: int, sigma_px: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """What the HSI has more than the degraded fused image.

    Parameters
    ----------
    fused : Tensor, shape (C, h * ratio, w * ratio)
        Finite everywhere.
    hsi : Tensor, shape (C, h, w)
        Finite everywhere.
    shown : Tensor, shape (h, w), bool
        Where the HSI is valid in all bands.
    valid : Tensor, shape (h * ratio, w * ratio), bool
        Where the fused image is a valid part of the product.
    ratio : int
    sigma_px : float
        Standard deviation of the HSI's PSF, in fine pixels.

    Returns
    -------
    residual : Tensor, shape (C, h, w)
        0 where nothing can be compared.
    known : Tensor, shape (h, w), bool
        Where it can: the HSI is valid, and all of the PSF but `MAX_LOST` lies on valid pixels.
    """
    rows, cols = _axes(hsi.shape[-2:], ratio, sigma_px, fused)
    share = rows @ valid.to(fused) @ cols.T
    known = shown & (share > 1.0 - MAX_LOST)
    whole = bool(valid.all())
    left = torch.empty_like(hsi)
    for group in _groups(len(fused)):
        seen = fused[group] if whole else fused[group] * valid
        left[group] = torch.where(known, hsi[group] - (rows @ seen @ cols.T) / share.clamp_min(0.5), 0.0)
    return left, known


class BackProjection:
    """The correction with one lambda per band.

    Parameters
    ----------
    lambdas : sequence of float
        Per band, in units of what H H^T does to a constant image; infinite where nothing is to be corrected.
    ratio : int
    sigma_px : float
    """

    def __init__(self, lambdas: NDArray[np.float64], *, ratio: int, sigma_px: float) -> None:
        self._ratio, self._sigma, self._radius = ratio, sigma_px, kernel_radius(ratio, sigma_px)
        self._bands = np.flatnonzero(np.isfinite(lambdas))
        gain, unit = _transfer(_GRID, ratio, sigma_px), _unit(ratio, sigma_px)
        inner = np.r_[-self._radius : self._radius + 1]
        kernels = np.empty((len(self._bands), len(inner), len(inner)), np.float32)
        for kernel, value in zip(kernels, np.maximum(lambdas[self._bands], LEAST), strict=True):
            kernel[...] = np.fft.ifft2(1.0 / (unit * (gain + value))).real[np.ix_(inner, inner)]
        self._kernels = torch.from_numpy(kernels)

    def __call__(
        self, fused: torch.Tensor, hsi: torch.Tensor, shown: torch.Tensor, valid: torch.Tensor
    ) -> torch.Tensor:
        """The corrected image; parameters as those of `residual`, `fused` is changed in place."""
        rows, cols = _axes(hsi.shape[-2:], self._ratio, self._sigma, fused)
        left, _ = residual(fused, hsi, shown, valid, ratio=self._ratio, sigma_px=self._sigma)
        for group in _groups(len(self._bands)):
            bands = self._bands[group]
            fused[bands] += rows.T @ _convolved(left[bands], self._kernels[group].to(fused)) @ cols
        return fused


class ResidualSpectrum:
    """Power of residuals by frequency, per band, from which lambda follows; blocks of a scene add up.

    Parameters
    ----------
    n_bands : int
    ratio : int
    sigma_px : float
    """

    def __init__(self, n_bands: int, *, ratio: int, sigma_px: float) -> None:
        self._gain = _transfer(2 * _BLOCK, ratio, sigma_px)
        self._power = np.zeros((n_bands, 2 * _BLOCK, 2 * _BLOCK))
        self.pixels = 0
        self._blocks: list[tuple[int, F64]] = []  # pixels, and per band the sum of their squares

    def add(self, left: torch.Tensor, known: torch.Tensor) -> None:
        """Add a residual, shape (C, h, w), and where it is known, shape (h, w)."""
        values, counted = left.double().cpu().numpy(), known.cpu().numpy()
        for y in range(0, values.shape[1], _BLOCK):
            for x in range(0, values.shape[2], _BLOCK):
                block = values[:, y : y + _BLOCK, x : x + _BLOCK]
                n_known = int(counted[y : y + _BLOCK, x : x + _BLOCK].sum())
                self._blocks.append((n_known, (block**2).sum(axis=(1, 2))))
                self.pixels += n_known
                # Zeros around the block stand for what is not known; the edge that they make sends power to high
                # frequencies, which are corrected least: lambda errs on the small side.
                spectrum = np.fft.fft2(block, s=self._gain.shape)
                self._power += (spectrum.real**2 + spectrum.imag**2) / self._gain.size

    def doubt(self) -> F64:
        """Relative standard error per band of the mean square of a residual, by how the blocks differ; 0 of one block."""
        n_known, squares = np.array([n for n, _ in self._blocks]), np.array([total for _, total in self._blocks])
        if len(n_known) < 2 or not self.pixels:
            return np.zeros(self._power.shape[0])
        mean = squares.sum(axis=0) / self.pixels
        # The variance of a ratio estimator: blocks count by their pixels.
        off = squares - n_known[:, None] * mean
        error = np.sqrt((off**2).sum(axis=0) * len(off) / (len(off) - 1)) / self.pixels
        doubt: F64 = error / np.maximum(mean, 1e-30)
        return doubt

    def rms(self, lambdas: NDArray[np.float64] | None = None) -> F64:
        """Root mean square of the residual per band, after the correction with these lambdas if they are given."""
        power = self._power
        if lambdas is not None:
            value = np.minimum(lambdas, 1e12)[:, None, None]
            power = power * (value / (self._gain + value)) ** 2
        left: F64 = np.sqrt(power.sum(axis=(1, 2)) / max(self.pixels, 1))
        return left

    def lambdas(self, wanted: F64) -> F64:
        """The largest lambda per band with which the residual has at most the wanted RMS; infinite where it has anyway.

        Where no lambda from `LEAST` on reaches it, that is taken.
        """
        low, high = np.full(len(wanted), math.log(LEAST)), np.full(len(wanted), math.log(1e6))
        for _ in range(30):
            middle = 0.5 * (low + high)
            enough = self.rms(np.exp(middle)) <= wanted
            low, high = np.where(enough, middle, low), np.where(enough, high, middle)
        return np.where(self.rms() <= wanted, np.inf, np.exp(low))


def _axes(shape: tuple[int, ...], ratio: int, sigma_px: float, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """H along rows and columns, shapes (h, h * ratio) and (w, w * ratio); nothing lies outside the window."""
    rows, cols = (torch.from_numpy(taps(range(size), range(size * ratio), ratio, sigma_px)).to(like) for size in shape)
    return rows, cols


def _convolved(images: torch.Tensor, kernels: torch.Tensor) -> torch.Tensor:
    """Each image (band, h, w), zero around, with its symmetric kernel (band, k, k); by FFT, six times faster than directly."""
    (height, width), radius = images.shape[-2:], kernels.shape[-1] // 2
    size = [next_fast_len(n + 2 * radius, real=True) for n in (height, width)]
    product = torch.fft.rfft2(images, s=size) * torch.fft.rfft2(kernels, s=size)
    full: torch.Tensor = torch.fft.irfft2(product, s=size)
    return full[:, radius : radius + height, radius : radius + width]


def _groups(n_bands: int) -> list[slice]:
    return [slice(first, min(first + _BANDS, n_bands)) for first in range(0, n_bands, _BANDS)]


@lru_cache(maxsize=16)
def _along(ratio: int, sigma_px: float) -> F64:
    """Overlaps of the PSFs of two coarse pixels by their distance along one axis, from 0 on."""
    reach_px = blur_reach(ratio, sigma_px)
    weight = taps(range(1), range(-reach_px, ratio + reach_px), ratio, sigma_px)[0].astype(np.float64)
    return np.array([(weight[d:] * weight[: len(weight) - d]).sum() for d in range(0, len(weight), ratio)])


def _unit(ratio: int, sigma_px: float) -> float:
    """What H H^T does to a constant image."""
    overlap = _along(ratio, sigma_px)
    return float(overlap[0] + 2.0 * overlap[1:].sum()) ** 2


def _transfer(size: int, ratio: int, sigma_px: float) -> F64:
    """H H^T by frequency on a periodic grid, in units of `_unit`, shape (size, size)."""
    overlap = _along(ratio, sigma_px)
    phase = 2.0 * np.pi * np.outer(np.arange(len(overlap)), np.arange(size)) / size
    along = overlap[0] + 2.0 * overlap[1:] @ np.cos(phase[1:])
    # The PSF is cut, so rounding may make the smallest value negative.
    along = np.maximum(along / along[0], 0.0)
    transfer: F64 = along[:, None] * along
    return transfer
