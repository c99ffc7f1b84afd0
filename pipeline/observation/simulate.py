"""Simulated pairs whose truth is known: what a coarse hyperspectral and a fine multispectral sensor would see of a cube.

    truth   the cube, cut to whole pixels of both sensors, divided by one constant
    HSI     truth * Gaussian PSF, sampled at the centers of the coarse pixels, plus noise
    MSI     responses of the sensor's bands, those of coarser sampling blurred and sampled likewise, plus noise

The rim is continued by mirroring; a hole of the cube is a hole of both images as far as the PSF carries it.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from hyperfuse.catalogs.bands import Bands
from hyperfuse.catalogs.errors import InputRejected
from hyperfuse.catalogs.references.cubes import ReferenceCube
from hyperfuse.catalogs.references.responses import BandSet, band_set
from hyperfuse.catalogs.sensors import sigma_from_mtf
from hyperfuse.models import Observed
from hyperfuse.models.operators import BLUR_REACH, CENTERED, Shift, degrade
from hyperfuse.pipeline.observation.field import (
    Planting,
    band_shifts,
    changed_squares,
    detectors,
    ramp_gains,
    sampled,
    smiled,
    stripe_gains,
)
from hyperfuse.pipeline.observation.protocol import Protocol
from hyperfuse.pipeline.observation.psf import gaussian_taps

log = logging.getLogger(__name__)

Cube = NDArray[np.float32]
MIN_COVERAGE = 0.5
"""An MSI band of whose response less than this lies under good HSI bands is left out."""
_MIN_SCORED = 4  # coarse pixels inside the rim along each axis
TOUCHED = 1e-3
"""Share of a coarse pixel's PSF: more of it over a hole makes the pixel invalid."""


@dataclass(frozen=True, kw_only=True, eq=False)
class SimulatedPair:
    """Both images of one place and the truth."""

    name: str
    """Of the cube."""
    truth: Cube
    """Shape (C, h * ratio, w * ratio); NaN where it is not known, and where a hole reaches through the PSF."""
    hsi: Cube
    """Shape (C, h, w); NaN where the PSF touches a hole."""
    msi: Cube
    """Shape (c, h * ratio, w * ratio); a band of step s in blocks of s x s equal pixels, NaN where it sees a hole."""
    observed: Observed
    """What methods are told."""
    rim_px: int = 1
    """Coarse pixels along the edge that are not scored."""
    unit: float = 1.0
    """Step of the cube's own unit per unit of `truth`."""
    notes: tuple[str, ...] = field(default=())
    """What had to be left out."""
    changed: NDArray[np.bool_] | None = None
    """Shape (y, x), fine pixels of the MSI that show another place; None if none does."""
    bands: tuple[Bands, Bands] | None = None
    """Those of HSI and MSI as a product tells them; None if they are not known."""
    protocol: Protocol | None = None
    """How it was simulated; None for a real pair."""
    told: Mapping[str, Any] = field(default_factory=dict)
    """What a row of a table says of the pair itself, such as its registration."""


def simulate(cube: ReferenceCube, protocol: Protocol) -> SimulatedPair:
    """What both sensors would see of a cube.

    Raises
    ------
    UsageError
        If there is no such band set.
    InputRejected
        If the cube is smaller than what is scored, holds too little, or covers no band of the MSI.

    References
    ----------
    Wald, Ranchin & Mangolini (1997), Fusion of satellite images of different spatial resolutions, PE&RS 63(6), 691-699.
    """
    responses = _seen(cube, protocol)
    good = np.flatnonzero(cube.bands.good)
    steps = responses.steps
    truth = _whole_pixels(cube.values[good], math.lcm(protocol.ratio, *steps), protocol, cube.name)
    truth, unit = _scaled(truth, protocol, cube.name)
    rng = np.random.default_rng(protocol.seed)
    hsi = _hyperspectral(truth, cube.bands.center_nm[good], protocol, rng)
    msi, changed = _multispectral(truth, responses.true_weights[:, good], steps, protocol, rng)
    weights = responses.weights[:, good]
    # A pixel that the PSF mixes with a hole is known to nobody, so no method is scored there.
    hole = np.isnan(hsi).any(axis=0)
    if hole.all():
        raise InputRejected(f"{cube.name}: the PSF touches a hole everywhere; give a cube with fewer holes")
    truth[:, hole.repeat(protocol.ratio, axis=0).repeat(protocol.ratio, axis=1)] = np.nan
    sigmas = tuple(0.0 if step == 1 else sigma_from_mtf(protocol.mtf_nyquist, step) for step in steps)
    return SimulatedPair(
        name=cube.name,
        truth=truth,
        hsi=hsi,
        msi=msi,
        observed=Observed(
            hsi_bands=len(good),
            msi_bands=len(steps),
            ratio=protocol.ratio,
            psf_sigma_px=protocol.sigma_px,
            srf=tuple(tuple(float(w) for w in row) for row in weights),
            msi_steps=steps if max(steps) > 1 else (),
            msi_sigma_px=sigmas if max(steps) > 1 else (),
        ),
        rim_px=protocol.rim_px,
        unit=unit,
        notes=responses.notes,
        changed=changed,
        bands=(cube.bands[good], responses.told),
        protocol=protocol,
    )


def blurred(fine: Cube, step: int, mtf_nyquist: float, shift_px: Shift = CENTERED) -> Cube:
    """A cube as a sensor with coarser pixels sees it: Gaussian PSF, block centers, mirrored rim.

    Parameters
    ----------
    fine : ndarray, shape (band, y, x), float32
        y and x are multiples of `step`.
    step : int
        Fine pixels per coarse pixel along one axis.
    mtf_nyquist : float
        Modulation at the Nyquist frequency of the coarse pixels.
    shift_px : (float, float)
        Rows and columns (fine pixels) by which the centers of the samples lie beside those of their blocks.

    Returns
    -------
    ndarray, shape (band, y / step, x / step), float32
        NaN where the PSF touches a hole.
    """
    return _degraded(fine, step, sigma_from_mtf(mtf_nyquist, step), shift_px)


def refuse_small(truth: Cube, protocol: Protocol, name: str) -> None:
    """Refuse a truth, shape (band, y, x), of which too little would be scored.

    Raises
    ------
    InputRejected
        If fewer than four coarse pixels are left inside the rim along an axis.
    """
    height, width = truth.shape[1:]
    least = protocol.ratio * (2 * protocol.rim_px + _MIN_SCORED)
    if min(height, width) < least:
        raise InputRejected(
            f"{name}: {height} x {width} whole pixels, expected at least {least} x {least} for ratio {protocol.ratio}; "
            "give a larger image or a smaller ratio"
        )


def _degraded(fine: Cube, step: int, sigma_px: float, shift_px: Shift = CENTERED) -> Cube:
    # `degrade` repeats the outermost pixel; mirroring is the protocol's, so a mirrored margin is added and cut off.
    margin = math.ceil((BLUR_REACH * sigma_px + step / 2 + max(map(abs, shift_px))) / step)
    invalid = np.isnan(fine)

    def coarse(image: Cube) -> Cube:
        wide = np.pad(image, ((0, 0), *2 * ((margin * step, margin * step),)), mode="symmetric")
        seen: Cube = degrade(torch.from_numpy(wide), step, sigma_px, shift_px).numpy()
        return seen[:, margin:-margin, margin:-margin]

    seen = coarse(np.where(invalid, np.float32(0), fine))
    if invalid.any():
        seen = np.where(coarse(invalid.astype(np.float32)) > TOUCHED, np.float32(np.nan), seen)
    return np.ascontiguousarray(seen)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Seen:
    """The bands of the MSI that the cube covers."""

    weights: NDArray[np.float64]
    """Shape (c, band), over all bands of the cube."""
    true_weights: NDArray[np.float64]
    """The same of the responses that the MSI really has."""
    steps: tuple[int, ...]
    """Fine pixels per own pixel of each."""
    told: Bands
    """Centers and widths that the MSI is said to have."""
    notes: tuple[str, ...]
    """Which were left out."""


def _seen(cube: ReferenceCube, protocol: Protocol) -> _Seen:
    bands = band_set(protocol.msi)
    weights, coverage = bands.weights(cube.bands)
    seen = coverage >= MIN_COVERAGE
    left_out = ", ".join(
        f"{response.name} ({share:.0%} covered)"
        for response, share in zip(bands.responses, coverage, strict=True)
        if share < MIN_COVERAGE
    )
    if not seen.any():
        raise InputRejected(
            f"{cube.name}: its good bands cover none of {protocol.msi}: {left_out}; choose another set of bands"
        )
    notes = (f"{cube.name}: left out of {protocol.msi}: {left_out}",) if left_out else ()
    for note in notes:
        log.warning("%s", note)
    return _Seen(
        weights=weights[seen],
        true_weights=_true(bands, protocol.planted).weights(cube.bands)[0][seen],
        steps=tuple(int(s) for s in np.array(bands.steps)[seen]),
        told=bands.bands[seen],
        notes=notes,
    )


def _true(bands: BandSet, planted: Planting) -> BandSet:
    return replace(
        bands,
        responses=tuple(
            replace(each, center_nm=each.center_nm + planted.srf_nm, fwhm_nm=each.fwhm_nm * planted.srf_factor)
            for each in bands.responses
        ),
    )


def _hyperspectral(truth: Cube, center_nm: NDArray[np.float64], protocol: Protocol, rng: np.random.Generator) -> Cube:
    """The HSI with what is planted and its noise, shape (C, h, w)."""
    planted = protocol.planted
    coarse = smiled(_coarse(truth, center_nm, protocol), center_nm, planted.smile_nm)
    if planted.stripes:
        gains = stripe_gains(center_nm, coarse.shape[2], planted)
        coarse = (coarse * gains[:, None, :]).astype(np.float32)
    return noisy(coarse, protocol.hsi_snr_db, rng, more_db=planted.swir_noise_db * detectors(center_nm))


def _multispectral(
    truth: Cube, weights: NDArray[np.float64], steps: tuple[int, ...], protocol: Protocol, rng: np.random.Generator
) -> tuple[Cube, NDArray[np.bool_] | None]:
    """The MSI with what is planted, and where it changed.

    Noise belongs to a band's own pixels: it is added before they become blocks.
    """
    planted = protocol.planted
    planes = np.einsum("kc,cyx->kyx", weights, truth).astype(np.float32)
    changed = None
    if planted.n_changed:
        planes, changed = changed_squares(planes, planted.n_changed)
    if planted.gain:
        planes = (planes * ramp_gains(len(planes), planes.shape[1:], planted)).astype(np.float32)
    bands = []
    for k, step in enumerate(steps):
        own = planes[k : k + 1] if step == 1 else blurred(planes[k : k + 1], step, protocol.mtf_nyquist)
        bands.append(noisy(own, protocol.msi_snr_db, rng).repeat(step, axis=1).repeat(step, axis=2))
    return np.concatenate(bands), changed


def _coarse(truth: Cube, center_nm: NDArray[np.float64], protocol: Protocol) -> Cube:
    """The HSI without noise."""
    ratio, planted = protocol.ratio, protocol.planted
    if planted.moves:
        return _displaced(truth, ratio, protocol.sigma_px * planted.psf_factor, band_shifts(center_nm, planted, ratio))
    if protocol.psf == "gaussian":
        return _degraded(truth, ratio, protocol.sigma_px * planted.psf_factor)
    # Nothing of the neighbors, as in the papers.
    along = gaussian_taps(np.arange(ratio) - (ratio - 1) / 2, protocol.sigma_px)
    n_bands, height, width = truth.shape
    blocks = truth.reshape(n_bands, height // ratio, ratio, width // ratio, ratio)
    coarse: Cube = np.einsum("byixj,i,j->byx", blocks, along, along).astype(np.float32)
    return coarse


def _displaced(fine: Cube, ratio: int, sigma_px: float, shifts: NDArray[np.float64]) -> Cube:
    invalid = np.isnan(fine)
    seen = sampled(np.where(invalid, np.float32(0), fine), ratio, sigma_px, shifts)
    if invalid.any():
        touched = sampled(invalid.astype(np.float32), ratio, sigma_px, shifts) > TOUCHED
        seen[touched] = np.nan
    return seen


def noisy(image: Cube, snr_db: float | None, rng: np.random.Generator, *, more_db: ArrayLike = 0.0) -> Cube:
    """The image with white noise, that of each band louder by `more_db`."""
    if snr_db is None:
        return image
    power = np.nanmean(image.astype(np.float64) ** 2, axis=(1, 2), keepdims=True)
    ratio = 10 ** ((snr_db - np.reshape(more_db, (-1, 1, 1))) / 10)
    noise = rng.standard_normal(image.shape) * np.sqrt(power / ratio)
    noisy: Cube = (image + noise).astype(np.float32)
    return noisy


def _whole_pixels(values: Cube, step: int, protocol: Protocol, name: str) -> Cube:
    height, width = (size // step * step for size in values.shape[1:])
    whole: Cube = values[:, :height, :width].astype(np.float32)
    refuse_small(whole, protocol, name)
    return whole


def _scaled(truth: Cube, protocol: Protocol, name: str) -> tuple[Cube, float]:
    """The truth in the protocol's range, and one unit of it in the cube's own unit."""
    finite = truth[np.isfinite(truth)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    if protocol.scale == "percentile" and finite.size:
        low, high = 0.0, float(np.percentile(finite, 99.9))
    if not high > low:
        raise InputRejected(f"{name}: has no sample above 0 that differs from others; there is nothing to score")
    return (truth - np.float32(low)) / np.float32(high - low), high - low
