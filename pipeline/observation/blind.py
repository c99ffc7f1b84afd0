"""Blind estimation of the observation model, for pairs whose PSF or spectral responses (SRF) nobody knows.

Alternately, the SRF by regression where a strong blur has made the PSF unimportant, and the PSF by a search over the
width and the center of a Gaussian; after three rounds neither moves any more.

References
----------
Simoes, Bioucas-Dias, Almeida & Chanussot (2015), A convex formulation for hyperspectral image superresolution via
subspace-based regularization, IEEE TGRS 53(6), 3373-3388, section IV.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import eigh
from scipy.optimize import minimize, nnls

from hyperfuse.catalogs.bands import SIGMA_PER_FWHM, Bands
from hyperfuse.catalogs.sensors import sigma_from_mtf
from hyperfuse.pipeline.observation.psf import Psf
from hyperfuse.pipeline.observation.sample import BLUR, F64, MIN_PIXELS, MTF_RANGE, NotEstimable, Sample, centered
from hyperfuse.pipeline.observation.sensor_model import GOOD_R2, Observation, with_misfit

_ROUNDS = 3
"""Alternations of SRF and PSF."""
_COMPONENTS = 24
"""Principal components of the HSI among which its signal is sought."""
_MIN_SNR = 10.0
"""Variance of a spectral component over that of its noise, both strongly blurred, with which it counts. Regression on
noisy regressors finds slopes that are too small: with less than this a component bends the SRF more than it tells."""
_SUPPORT = 3.5
"""An SRF is sought within this many standard deviations of the response that the table tells."""
_FADING = 2.0
"""Freedom to depart from the table fades away from the band's center with this many of those standard deviations."""
_FREEDOM = 0.25
"""Prior standard deviation of the response at the band's center, in units of its peak. With it the centroids of right
tables stay within 5 nm, and about half of a table's error of 10 nm is found (real cubes, noise at 35 and 40 dB)."""
_MAX_CENTER = 1.0
"""Largest distance of the PSF's center from that of the coarse pixel that is searched, in coarse pixels."""
_HALVES_WIDTH, _HALVES_PX = 0.1, 0.1
"""Relative width, and center in coarse pixels, in which the PSFs of two halves of the sample may differ to be believed."""
_MAX_ERROR = 0.15
"""Largest standard error of the PSF's width, relative, with which the scene is taken to tell it."""


def blind(start: Observation, sample: Sample, hsi: Bands, msi: Bands) -> Observation:
    """The observation model, estimated from a sample of a registered pair.

    Parameters
    ----------
    start : Observation
        Of the tables: where the search for the PSF begins.
    sample : Sample
    hsi, msi : Bands
        Bands of both images. An SRF is sought around the center of its MSI band; where the HSI has no band there, its
        row is 0.

    Returns
    -------
    Observation
        With its misfit.

    Raises
    ------
    NotEstimable
        If no MSI band follows the HSI, or the scene has too little fine detail to tell the PSF.

    Notes
    -----
    Departures from the paper: the SRF is nonnegative and has a Gaussian prior around the response that the table tells,
    smooth and tighter away from the band's center, because weights of highly correlated bands are not identifiable; the
    PSF is a Gaussian of three parameters, not a free kernel; and each MSI band has its own gain and offset. The PSF
    maximizes the correlation of the degraded MSI with the prediction: unlike the squared error it does not improve by
    mere blurring, and by the Cauchy-Schwarz inequality white noise in the HSI does not move its maximum.
    """
    under = np.abs(hsi.center_nm - msi.center_nm[:, None]) <= 0.5 * hsi.width_nm()
    seen = [int(k) for k in np.flatnonzero(np.any(start.srf, axis=1) | under.any(axis=1))]
    if not seen:
        raise NotEstimable("no MSI band lies within the HSI's range")
    spectra = _Spectra.of(sample)
    psf = start.hsi_psf
    srf = np.zeros((len(msi), len(hsi)))
    for _ in range(_ROUNDS):
        blurred = sample.strongly_blurred(sample.degraded(psf)).mean(axis=0)
        for k in seen:
            srf[k] = _response(spectra, blurred[k], hsi, msi[[k]])
        fit = _PsfFit(sample=sample, predicted=centered(sample.predicted(srf[seen])), bands=seen)
        psf = fit.best(psf)
    estimate = start.model_copy(
        update={
            "psf_sigma_px": psf.sigma,
            "psf_center_px": (psf.y, psf.x),
            "psf_origin": "blind",
            "srf": tuple(tuple(row) for row in srf.tolist()),
            "srf_origin": "blind",
        }
    )
    found = with_misfit(estimate, sample)
    best = max((band.r2 for band in found.misfit if band is not None), default=0.0)
    if best < GOOD_R2:
        raise NotEstimable(f"the HSI predicts no MSI band well (R2 {best:.2f} at best, expected {GOOD_R2} or more)")
    if doubt := fit.doubt(psf):
        raise NotEstimable(doubt)
    return found


def measured_psf(start: Observation, sample: Sample, hsi: Bands, msi: Bands, *, is_centered: bool) -> Observation:
    """The observation model with the PSF that the pair shows, and the responses of the tables.

    Parameters
    ----------
    start : Observation
        Of the tables.
    sample : Sample
    hsi, msi : Bands
    is_centered : bool
        Whether the PSF's center is known, and only its width is sought.

    Raises
    ------
    NotEstimable
        As `blind`, and if the two halves of the sample do not agree: what a single object of the scene says, however
        clearly, is no measurement of the sensor.
    """
    estimate = blind(start, sample, hsi, msi)
    found, srf = estimate.hsi_psf, np.array(estimate.srf)
    seen = [int(k) for k in np.flatnonzero(srf.any(axis=1))]
    for half in sample.halves():
        if half.valid.sum() < MIN_PIXELS:
            raise NotEstimable(f"{half.valid.sum()} valid pixels in half of the sample, expected {MIN_PIXELS} or more")
        fit = _PsfFit(sample=half, predicted=centered(half.predicted(srf[seen])), bands=seen)
        other = fit.best(found)
        if doubt := fit.doubt(other):
            raise NotEstimable(f"in half of the sampled pixels, {doubt}")
        apart = math.hypot(other.y - found.y, other.x - found.x) / sample.ratio
        if abs(math.log(other.sigma / found.sigma)) > _HALVES_WIDTH or apart > _HALVES_PX:
            raise NotEstimable(
                f"halves of the sampled pixels show PSFs of {other.sigma:.2f} and {found.sigma:.2f} fine px, "
                f"{apart:.2f} coarse px apart"
            )
    center = start.psf_center_px if is_centered else (found.y, found.x)
    psf = {"psf_sigma_px": found.sigma, "psf_center_px": center, "psf_origin": "measured"}
    return with_misfit(start.model_copy(update=psf), sample)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Spectra:
    """The spectral components of the strongly blurred HSI that stand out of its noise."""

    loadings: F64
    """Shape (C, K)."""
    scores: F64
    """Less their mean, shape (K, pixel)."""

    @classmethod
    def of(cls, sample: Sample) -> _Spectra:
        pixels = sample.hsi[:, sample.valid]
        pixels -= pixels.mean(axis=1, keepdims=True)
        basis = np.linalg.eigh((pixels @ pixels.T).astype(np.float64))[1][:, ::-1][:, :_COMPONENTS]
        halves = sample.strongly_blurred(np.tensordot(basis.T.astype(np.float32), sample.hsi, axes=1))
        # What the two colors of the checkerboard share is signal, in what they differ is noise.
        both, noise = halves.mean(axis=0), (halves[0] - halves[1]) / 2.0
        total, noisy = both @ both.T, noise @ noise.T
        noisy += max(1e-9 * np.trace(total), 1e-30) * np.eye(len(total))
        snr, vectors = eigh(total, noisy)
        kept = snr >= min(_MIN_SNR, snr[-1])
        return cls(loadings=basis @ np.linalg.inv(vectors).T[:, kept], scores=vectors[:, kept].T @ both)


def _response(spectra: _Spectra, band: F64, hsi: Bands, msi: Bands) -> F64:
    """Weights of the HSI bands, shape (C,), sum 1, with which the blurred HSI follows one blurred MSI band (pixel,)."""
    sigma = math.hypot(msi.width_nm()[0], float(np.median(hsi.width_nm()))) * SIGMA_PER_FWHM
    distance = (hsi.center_nm - msi.center_nm[0]) / sigma
    near = np.flatnonzero(np.abs(distance) <= _SUPPORT)
    spacing = np.minimum(np.gradient(hsi.center_nm), 1.5 * hsi.width_nm())[near] if len(hsi) > 1 else np.ones(1)
    # Unknown is the response at each HSI band; its weight in the MSI band is the response times the area.
    area = spacing / (math.sqrt(2.0 * math.pi) * sigma)
    q, r = np.linalg.qr(spectra.scores.T)  # (pixel, K), (K, K): the pixels enter the fit through K numbers
    design, target = r @ spectra.loadings[near].T * area, q.T @ band
    expected = np.exp(-0.5 * distance[near] ** 2)
    # The images may have two units: the table tells a shape, the amplitude comes from the pair.
    expected *= np.linalg.norm(target) / max(float(np.linalg.norm(design @ expected)), 1e-30) or 1.0
    residual = max(float(band @ band - target @ target), 1e-8 * float(band @ band), 1e-30)
    # Blurred neighbors are not independent, so a pixel tells less than its residual suggests.
    per_pixel = math.sqrt(residual / band.size * 4.0 * math.pi * BLUR**2)
    freedom = _FREEDOM * expected.max() * np.exp(-0.5 * (distance[near] / _FADING) ** 2)
    prior = np.concatenate([_bends(hsi, near, sigma) / (_FREEDOM * expected.max()), np.diag(1.0 / freedom)])
    response, _ = nnls(
        np.concatenate([design / per_pixel, prior]), np.concatenate([target / per_pixel, prior @ expected])
    )
    weights = np.zeros(len(hsi))
    weights[near] = response * area
    return weights / max(float(weights.sum()), 1e-30)


def _bends(hsi: Bands, near: NDArray[np.int64], sigma: float) -> F64:
    """Second derivatives over neighboring bands, in units of a Gaussian's at its peak, shape (triple, band).

    None spans a gap in the spectrum: bands that were removed leave the response on either side free.
    """
    if len(near) < 3:
        return np.zeros((0, len(near)))
    usual = np.median(np.diff(hsi.center_nm))
    step = np.diff(hsi.center_nm[near])
    adjacent = step <= 1.5 * usual
    # Where two detectors overlap, bands lie so close that their difference is all noise.
    step = np.maximum(step, 0.2 * usual)
    slope = np.diff(np.eye(len(near)), axis=0) / step[:, None]
    bend = 2.0 * np.diff(slope, axis=0) / (step[1:] + step[:-1])[:, None]
    return sigma**2 * bend[adjacent[1:] & adjacent[:-1]]


@dataclass(frozen=True, kw_only=True, eq=False)
class _PsfFit:
    """The search for the PSF with which the degraded MSI follows the prediction from the HSI."""

    sample: Sample
    predicted: F64
    """Less its mean, shape (seen band, pixel)."""
    bands: list[int]
    """MSI bands that the HSI sees."""

    def cost(self, psf: Psf) -> float:
        """Mean over the bands of log(1 - r^2), r the positive correlation of the degraded MSI with the prediction."""
        low = centered(self.sample.degraded(psf)[self.bands][:, self.sample.valid])
        power = (low**2).sum(axis=1) * (self.predicted**2).sum(axis=1)
        r2 = np.maximum((low * self.predicted).sum(axis=1), 0.0) ** 2 / np.maximum(power, 1e-30)
        return float(np.log(np.maximum(1.0 - r2, 1e-9)).mean())

    def best(self, start: Psf) -> Psf:
        """The PSF of least cost."""
        ratio = self.sample.ratio
        narrow, wide = (math.log(sigma_from_mtf(mtf, ratio)) for mtf in MTF_RANGE)

        def at(place: F64) -> Psf:
            return Psf(math.exp(place[0]), float(place[1]) * ratio, float(place[2]) * ratio)

        # The simplex grows from the start toward wider PSFs and positive centers, which must lie inside the bounds.
        steps, limit = np.diag([0.2, 0.1, 0.1]), _MAX_CENTER
        first = np.array([math.log(start.sigma), start.y / ratio, start.x / ratio])
        first = np.clip(first, (narrow, -limit, -limit), np.array([wide, limit, limit]) - steps.sum(axis=0))
        found = minimize(
            lambda place: self.cost(at(place)),
            first,
            method="Nelder-Mead",
            bounds=[(narrow, wide), (-limit, limit), (-limit, limit)],
            options={"initial_simplex": np.concatenate([first[None], first + steps]), "xatol": 2e-3, "fatol": 1e-6},
        )
        return at(found.x)

    def doubt(self, psf: Psf) -> str:
        """Why the best PSF is not believed, empty if it is."""
        ratio, step = self.sample.ratio, 0.1
        below, above = (self.cost(psf._replace(sigma=psf.sigma * math.exp(change))) for change in (-step, step))
        curvature = (below + above - 2.0 * self.cost(psf)) / step**2
        # A band of n pixels has the log likelihood -n / 2 log(1 - r^2), whose curvature tells the error of log sigma.
        information = 0.5 * self.sample.valid.sum() * len(self.bands) * curvature
        if information < _MAX_ERROR**-2:
            return "the scene has too little fine detail to tell the width of the PSF"
        narrow, wide = (sigma_from_mtf(mtf, ratio) for mtf in MTF_RANGE)
        if not 1.01 * narrow < psf.sigma < 0.99 * wide or max(abs(psf.y), abs(psf.x)) > 0.99 * _MAX_CENTER * ratio:
            return (
                f"the best PSF, {psf.sigma:.2f} fine px wide and {psf.y:.2f}, {psf.x:.2f} (y, x) off center, lies at the limit "
                "of the search"
            )
        return ""
