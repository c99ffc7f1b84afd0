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

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.fft import next_fast_len

from hyperfuse.pipeline.observation.psf import taps
from hyperfuse.pipeline.observation.psf_overlap import GRID, LEAST, constant_gain, kernel_radius, transfer

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]

MAX_LOST = 1e-3
"""A coarse pixel counts if less than this share of its PSF falls on invalid pixels or outside the product."""
_BLOCK = 32
"""Edge of the blocks (coarse px) whose spectra are taken, padded to twice that."""
_BANDS = 32
"""Bands that are projected at once, which bounds the memory."""


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
        gain, unit = transfer(GRID, ratio, sigma_px), constant_gain(ratio, sigma_px)
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
        self._gain = transfer(2 * _BLOCK, ratio, sigma_px)
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
