"""Limits of the gates where the settings give none: what a product can reach on this scene, by its noise and its ratio.

Two images of the same ground, one of which is noisy, lie as far apart as the noise takes them. A product that holds no noise
at all, degraded, differs from the HSI by that; one that follows the HSI differs by less. To this comes what few MSI bands
do not tell of the detail: one that has none of it, which is the HSI interpolated, differs by all that a second blur by the PSF
takes, and a product may lack a fifth of that.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from hyperfuse.pipeline.config import QualityConfig
from hyperfuse.pipeline.fusion.strict import noise
from hyperfuse.pipeline.job import store
from hyperfuse.pipeline.job.folder import StagedJob
from hyperfuse.pipeline.observation.sample import NotEstimable, Sample, sampled_blocks

F64 = NDArray[np.float64]

PLAUSIBLE = (-0.05, 1.6)
"""Reflectance outside this range is no reflectance."""
SLACK = 1.25
"""Factor on the spectral angle that noise makes: noise is measured to some ten percent."""
_LACKING = 0.2
"""Share of the angle by which a second blur turns the HSI's spectra that a product may lack."""
_UNKNOWN_SAM_DEG, _LEAST_SAM_DEG = 1.0, 0.25
"""Limit on the spectral angle where the noise is not known, and the least one: no sensor's spectra are truer."""
_LEAST_BIAS, _BIAS_NOISE = 0.01, 0.1
"""Share of a band's mean, and of its noise: a bias below either is seen by nobody."""
_LEAST_MSI_R2, _MOST_MSI_R2, _R2_SLACK = 0.9, 0.98, 2.0
"""Range of the limit on the agreement with the MSI, and how many times the variance that the HSI leaves of the degraded MSI a
product may leave of the MSI."""
_IMPLAUSIBLE = 0.001
"""Share of samples that are no reflectance, beyond that of the HSI."""


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
        implausible=_implausible(job, spectra) if asked.max_implausible is None else asked.max_implausible,
    )


def noise_angle_deg(spectra: NDArray[np.float32], sigma: F64) -> float:
    """Mean angle (degrees) between spectra with noise of these standard deviations, shape (band,), and without it."""
    power = np.maximum(np.square(spectra, dtype=np.float64).sum(axis=0) - np.square(sigma).sum(), 1e-30)
    # Noise along the spectrum itself turns nothing; in so many dimensions the length of the rest hardly varies.
    across = np.sqrt(np.square(sigma).sum() * (1.0 - 1.0 / len(sigma)) / power)
    return float(np.degrees(np.arctan(across)).mean())


def detail_angle_deg(sample: Sample, sigma_px: float, noise_deg: float) -> float:
    """Mean angle (degrees) by which a second blur by the PSF turns the HSI's spectra, without their noise.

    Parameters
    ----------
    sample : Sample
    sigma_px : float
        Standard deviation of the PSF, in coarse pixels.
    noise_deg : float
        Mean angle that noise makes.
    """
    blurred = gaussian_filter(sample.hsi, (0.0, 0.0, sigma_px, sigma_px))[:, sample.valid].astype(np.float64)
    sharp = sample.hsi[:, sample.valid].astype(np.float64)
    length = np.sqrt((blurred**2).sum(axis=0) * (sharp**2).sum(axis=0))
    shown = length > 0
    cosine = (blurred * sharp).sum(axis=0)[shown] / length[shown]
    angle = float(np.degrees(np.arccos(np.clip(cosine, -1.0, 1.0))).mean()) if shown.any() else 0.0
    return math.sqrt(max(angle**2 - noise_deg**2, 0.0))


def _sam_deg(job: StagedJob, spectra: NDArray[np.float32], sample: Sample | None, sigma: F64 | None) -> float:
    if sigma is None:
        return _UNKNOWN_SAM_DEG
    noisy = noise_angle_deg(spectra, sigma)
    detail = 0.0
    if sample is not None:
        detail = detail_angle_deg(sample, job.observation.psf_sigma_px / job.grids.ratio, noisy)
    return max(math.hypot(SLACK * noisy, _LACKING * detail), _LEAST_SAM_DEG)


def _msi_r2(job: StagedJob, covered: list[int]) -> float:
    """By how well the HSI itself predicts the degraded MSI: what it does not know, no product has of it."""
    told = [fit.r2 for k, fit in enumerate(job.observation.misfit) if k in covered and fit is not None]
    if not told:
        return _MOST_MSI_R2
    return float(np.clip(1.0 - _R2_SLACK * (1.0 - np.mean(told)), _LEAST_MSI_R2, _MOST_MSI_R2))


def _implausible(job: StagedJob, spectra: NDArray[np.float32]) -> float:
    if job.record.hsi.quantity != "reflectance" or not spectra.size:
        return _IMPLAUSIBLE
    low, high = PLAUSIBLE
    return _IMPLAUSIBLE + float(((spectra < low) | (spectra > high)).mean())
