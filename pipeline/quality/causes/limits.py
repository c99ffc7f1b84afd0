"""Limits of the gates where the settings give none: what a product can reach on this scene, by its noise and its ratio.

Two images of the same ground, one of which is noisy, lie as far apart as the noise takes them. A product that holds no noise
at all, degraded, differs from the HSI by that; one that follows the HSI differs by less. To this comes detail of single pixels
that neither the MSI nor their neighbors tell: it cannot be told from noise where it stands, and a product may leave out half of it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

from hyperfuse.pipeline.config import QualityConfig
from hyperfuse.pipeline.fusion.strict import noise
from hyperfuse.pipeline.job import store
from hyperfuse.pipeline.job.folder import StagedJob
from hyperfuse.pipeline.observation.psf import Psf
from hyperfuse.pipeline.observation.sample import NotEstimable, Sample, sampled_blocks

F64 = NDArray[np.float64]

PLAUSIBLE = (-0.05, 1.6)
"""Reflectance outside this range is no reflectance."""
SLACK = 1.25
"""Factor on the spectral angle that noise makes: noise is measured to some ten percent."""
_LONE = 0.5
"""Share of the power of what single pixels alone show that a product may leave out."""
_UNKNOWN_SAM_DEG, _LEAST_SAM_DEG = 1.0, 0.25
"""Limit on the spectral angle where the noise is not known, and the least one: no sensor's spectra are truer."""
_LEAST_BIAS, _BIAS_NOISE = 0.01, 0.1
"""Share of a band's mean, and of its noise: a bias below either is seen by nobody."""
_LEAST_MSI_R2, _MOST_MSI_R2, _R2_SLACK = 0.9, 0.98, 2.0
"""Range of the limit on the agreement with the MSI, and how many times the variance that the HSI leaves of the degraded MSI a
product may leave of the MSI."""
_IMPLAUSIBLE = 0.001
"""Share of samples that are no reflectance, beyond what the HSI's noise makes."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Limits:
    """Limits of one product."""

    hsi_sam_deg: float
    """Mean spectral angle to the HSI."""
    hsi_bias: F64
    """Bias of each band over its mean, shape (band,)."""
    msi_r2: float
    """Agreement with the MSI."""
    implausible: float
    """Share of samples."""


def staged_sample(job: StagedJob) -> tuple[NDArray[np.float32], Sample | None]:
    """Spectra of the staged HSI, shape (band, pixel), valid ones only, and the same blocks as a sample of the pair."""
    staged, ratio = job.staged, job.grids.ratio
    hsi, msi = (np.array(image.kept) for image in (staged.hsi, staged.msi))
    blocks = sampled_blocks(job.grids.coarse_shape, n_hsi=len(hsi), n_msi=len(msi), ratio=ratio)
    coarse, fine = (store.open_array(job.folder / f"stage/{role}.zarr") for role in ("hsi", "msi"))
    cube = np.stack([store.read(coarse, block, hsi) for block in blocks])
    spectra = cube.swapaxes(0, 1).reshape(cube.shape[1], -1)
    shown = spectra[:, np.isfinite(spectra).all(axis=0)]
    try:
        guides = np.stack([store.read(fine, block.times(ratio), msi) for block in blocks])
        return shown, Sample.of(cube, guides, ratio, job.own_blur_px(staged.msi.kept))
    except NotEstimable:
        return shown, None


def limits(job: StagedJob, spectra: NDArray[np.float32], sample: Sample | None, covered: list[int]) -> Limits:
    """Limits of a job: those that its settings give, and the others by the scene.

    Parameters
    ----------
    job : StagedJob
    spectra : ndarray, shape (band, pixel), float32
        Valid spectra of the HSI.
    sample : Sample or None
        Of the staged pair.
    covered : list of int
        Kept MSI bands that must agree.
    """
    asked: QualityConfig = job.config.quality
    sigma = noise(spectra)
    mean = np.abs(spectra.mean(axis=1, dtype=np.float64)) if spectra.size else np.ones(len(spectra))
    bias = np.full(len(spectra), _LEAST_BIAS)
    if sigma is not None:
        bias = np.maximum(bias, _BIAS_NOISE * sigma / np.maximum(mean, 1e-30))
    return Limits(
        hsi_sam_deg=asked.max_hsi_sam_deg or _sam_deg(job, spectra, sample, sigma),
        hsi_bias=np.full(len(bias), asked.max_hsi_bias) if asked.max_hsi_bias else bias,
        msi_r2=_msi_r2(job, covered) if asked.min_msi_r2 is None else asked.min_msi_r2,
        implausible=_implausible(job, spectra, sigma) if asked.max_implausible is None else asked.max_implausible,
    )


def noise_angle_deg(spectra: NDArray[np.float32], sigma: F64) -> float:
    """Mean angle (degrees) between spectra with noise of these standard deviations, shape (band,), and without it."""
    power = np.maximum(np.square(spectra, dtype=np.float64).sum(axis=0) - np.square(sigma).sum(), 1e-30)
    # Noise along the spectrum itself turns nothing; in so many dimensions the length of the rest hardly varies.
    across = np.sqrt(np.square(sigma).sum() * (1.0 - 1.0 / len(sigma)) / power)
    return float(np.degrees(np.arctan(across)).mean())


def lone_angle_deg(sample: Sample, psf: Psf) -> float:
    """Mean angle (degrees) between spectra with and without what neither the MSI nor a neighbor tells of them, noise included.

    Parameters
    ----------
    sample : Sample
    psf : Psf
        Of the HSI.
    """
    hsi, valid = sample.hsi.astype(np.float64), sample.valid
    known = np.concatenate([np.ones((1, int(valid.sum()))), sample.degraded(psf)[:, valid]]).T.astype(np.float64)
    spectra, left = hsi[:, valid].T, np.zeros_like(hsi)
    left[:, valid] = (spectra - known @ np.linalg.lstsq(known, spectra, rcond=None)[0]).T
    both = valid[..., 1:] & valid[..., :-1]
    # Half the mean square of a difference is the variance of what the two do not share.
    apart = (left[..., 1:] - left[..., :-1])[:, both] / math.sqrt(2.0)
    mean = 0.5 * (hsi[..., 1:] + hsi[..., :-1])[:, both]
    power = np.maximum((mean**2).sum(axis=0), 1e-30)
    across = (apart**2).sum(axis=0) - (apart * mean).sum(axis=0) ** 2 / power
    return float(np.degrees(np.arctan(np.sqrt(np.maximum(across, 0.0) / power))).mean()) if both.any() else 0.0


def _sam_deg(job: StagedJob, spectra: NDArray[np.float32], sample: Sample | None, sigma: F64 | None) -> float:
    if sigma is None:
        return _UNKNOWN_SAM_DEG
    noisy = SLACK * noise_angle_deg(spectra, sigma)
    lone = 0.0 if sample is None else lone_angle_deg(sample, job.observation.hsi_psf)
    return max(math.sqrt(noisy**2 + _LONE * max(lone**2 - noisy**2, 0.0)), _LEAST_SAM_DEG)


def _msi_r2(job: StagedJob, covered: list[int]) -> float:
    """By how well the HSI itself predicts the degraded MSI: what it does not know, no product has of it."""
    told = [fit.r2 for k, fit in enumerate(job.observation.misfit) if k in covered and fit is not None]
    if not told:
        return _MOST_MSI_R2
    return float(np.clip(1.0 - _R2_SLACK * (1.0 - np.mean(told)), _LEAST_MSI_R2, _MOST_MSI_R2))


def _implausible(job: StagedJob, spectra: NDArray[np.float32], sigma: F64 | None) -> float:
    """Noise of dead regions of the spectrum takes samples beyond the plausible range, and a product has some of it."""
    if job.record.hsi.quantity != "reflectance" or not spectra.size:
        return _IMPLAUSIBLE
    low, high = PLAUSIBLE
    if sigma is None:
        return _IMPLAUSIBLE + float(((spectra < low) | (spectra > high)).mean())
    beyond = [
        ndtr((low - band) / noisy) + ndtr((band - high) / noisy) for band, noisy in zip(spectra, sigma, strict=True)
    ]
    return _IMPLAUSIBLE + float(np.mean(beyond))
