"""How wrong a fused image may be, for every band and pixel: a standard error, calibrated on the scene itself.

    activity        a(p)      energy of the MSI's detail around a pixel, with mean 1 over the calibration window
    raw scale       s(b, p)   square root of calm_b + lively_b a(p), fitted at reduced resolution, where the HSI is the truth
    calibration     f(g)      conformal factor of a group of bands: |error| <= z f s holds for 90 % of the samples there
    scale gap       k         what the MSI's detail gains from reduced to full resolution, at least 1

    standard error = k f s    and 90 % of the errors are within 1.645 standard errors, if full resolution is like reduced

Nothing but the fused image is asked of a method, so the same holds for all of them.

Notes
-----
Measured on real cubes at ratios 2 and 4 and on synthetic land (`make bench-uncertainty`):

- Of the scales that can be had for any method (detail of the MSI, detail injected into the band, what a coarse regression
  leaves, brightness) the MSI's local detail orders the errors of most scenes as well as any other, and is one map for all
  bands. The pattern of errors within a coarse pixel varies by a fifth at most beyond the smallest scenes; it is left out.
- A posterior standard deviation knows nothing of wrong coefficients: 0.9 to 2.6 times too small, differently for each scene.
- The gap of an interpolated image is that of the MSI's detail to a tenth. That of methods which inject detail may be off
  by a third on real cubes, by half on synthetic land: nothing at reduced resolution shows how pure the fine pixels are,
  or what noise they have of their own. Taking the HSI's noise out before the gap, and measuring the gap on MSI bands that
  are withheld in turn, both did worse. It is never below 1, because noise and what a band does alone do not shrink with
  the detail of others.
- At full resolution the intervals of 90 % so hold 84 to 96 % of the errors on seven real cubes at ratio 2 (mean 89 for
  `gsa`, 90 for `map_subspace`), 88 to 94 % of those of `gsa` on synthetic land, and 99 % of those of `map_subspace` there,
  whose regression gains from pure pixels that no trial at reduced resolution has.
- Where a scene is too small for a trial, the distance from a second opinion, with what that leaves of the HSI, holds 86 to
  99 % of the errors of seven cubes at ratio 4.
- Errors are those against the HSI as measured, so its noise is within them.

References
----------
Wald, Ranchin & Mangolini (1997), Fusion of satellite images of different spatial resolutions, PE&RS 63(6), 691-699;
Papadopoulos, Proedrou, Vovk & Gammerman (2002), Inductive confidence machines for regression, ECML, 345-356 (split
conformal); Vovk, Lindsay, Nouretdinov & Gammerman (2003), Mondrian confidence machine (groups); Ilg et al. (2018),
Uncertainty estimates and multi-hypotheses networks for optical flow, ECCV, 677-693 (area under the sparsification error).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from torch.nn.functional import avg_pool2d, pad

from catalogs.errors import HyperFuseError
from models import Observed
from models._guides import low_pass_reach
from models._layers import degrade, upsample
from pipeline.simulate import SimulatedPair

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
NOMINAL = 0.9
"""Share of the errors that an interval should hold."""
Z = 1.6448536269514722
"""Half the width of that interval in standard errors, were errors normal."""
MIN_EDGE = 8
"""Coarse pixels along an axis, inside the rim, below which a trial calibrates nothing."""
CAVEAT = (
    "Coverage is measured at reduced resolution on quadrants that the fit did not see. At full resolution it holds as far as "
    "errors there are like those, scaled by the gap: nothing on the scene can prove it. It holds on average over pixels and "
    "bands of a group, not for each of them; errors of registration beyond those of the pair at reduced resolution are not in it."
)
"""What a reader must know before trusting an interval."""
_FOLDS = 4  # quadrants, each held back once
_LEVELS = 8  # quantiles of activity between which the raw scale is fitted
_ROUNDS = 4
_BANDS_PER_GROUP, _MOST_GROUPS = 8, 8
_LEAST_SHARE = 0.01  # of a band's mean square error that is kept where nothing is active
_STEPS = 20  # of the sparsification curve


class Group(BaseModel):
    """Bands that share one conformal factor."""

    model_config = ConfigDict(frozen=True)

    first: int
    """First band."""
    last: int
    """Band after the last."""
    factor: float
    """From the raw scale to the standard error at reduced resolution."""
    coverage: float | None
    """Share of held-back errors within the 90 % interval; None if nothing was calibrated."""


class Calibration(BaseModel):
    """All that the standard error of a scene depends on, besides its MSI."""

    model_config = ConfigDict(frozen=True)

    calm: list[float]
    """Variance of each band where the MSI has no detail, the HSI's unit squared."""
    lively: list[float]
    """Variance of each band added by an activity of 1, likewise."""
    energy: list[float]
    """Mean square detail of each MSI band at full resolution in the calibration window, the MSI's unit squared."""
    gap: float
    """Factor from errors at reduced resolution to those at full resolution."""
    groups: list[Group]
    calibrated: bool
    """False: the raw scale is a guess, see `guessed` and `reason`."""
    reason: str | None = None
    """Why nothing was calibrated."""
    coverage: float | None = None
    """Share of held-back errors within the 90 % interval: each quadrant of the window by a fit to the three others."""
    coverage_range: tuple[float, float] | None = None
    """The same of the quadrants that fare worst and best: it says more, for what one quadrant loses the others gain."""
    mean_width: float | None = None
    """Mean width of the 90 % intervals at reduced resolution, the HSI's unit."""
    ause: float | None = None
    """Area between the sparsification curves by standard error and by true error, RMSE 1 for all pixels; 0 is best."""
    pixels: int = 0
    """Pixels that the errors are from."""


class NotCalibrated(HyperFuseError):
    """A trial from which nothing can be learned; the message says why."""


def activity_reach(observed: Observed) -> int:
    """Coarse pixels from a pixel to the farthest one that its activity depends on."""
    return math.ceil((low_pass_reach(observed) + observed.ratio) / observed.ratio)


def detail_energy(msi: F32, ratio: int, psf_sigma_px: float) -> F32:
    """Local mean square of what the MSI has beyond its own image by the coarse sensor.

    Parameters
    ----------
    msi : ndarray, shape (c, h * ratio, w * ratio), float32
        Filled, no NaN.
    ratio : int
    psf_sigma_px : float
        Standard deviation of the HSI's PSF in fine pixels.

    Returns
    -------
    ndarray, shape (c, h * ratio, w * ratio), float32
        Means over about one coarse pixel around each pixel, the MSI's unit squared.
    """
    image = torch.from_numpy(np.ascontiguousarray(msi))[None]
    square = (image - upsample(degrade(image, ratio, psf_sigma_px), ratio)).square_()
    half = ratio // 2
    energy: F32 = avg_pool2d(pad(square, (half,) * 4, mode="replicate"), 2 * half + 1, stride=1)[0].numpy()
    return energy


def activity(msi: F32, energy: Sequence[float] | F64, ratio: int, psf_sigma_px: float) -> F32:
    """Detail of the MSI around each pixel in units of its usual detail, mean over bands, shape (y, x)."""
    usual = np.maximum(np.asarray(energy, np.float32), np.finfo(np.float32).tiny)
    relative: F32 = (detail_energy(msi, ratio, psf_sigma_px) / usual[:, None, None]).mean(axis=0)
    return relative


def standard_error(calibration: Calibration, active: F32) -> F32:
    """Standard error (k = 1) of every band, the HSI's unit.

    Parameters
    ----------
    calibration : Calibration
    active : ndarray, shape (y, x), float32
        From `activity`.

    Returns
    -------
    ndarray, shape (C, y, x), float32
    """
    variance = _raw(np.array(calibration.calm), np.array(calibration.lively), active)
    scale = np.concatenate([np.full(group.last - group.first, group.factor) for group in calibration.groups])
    error: F32 = np.sqrt(variance) * (calibration.gap * scale).astype(np.float32)[:, None, None]
    return error


def calibrate(trial: SimulatedPair, fused: F32, msi: F32) -> Calibration:
    """Fit and calibrate on a trial at reduced resolution.

    Parameters
    ----------
    trial : SimulatedPair
        From `pipeline.wald.degraded_pair`.
    fused : ndarray, shape (C, h * ratio, w * ratio), float32
        The method's image of the trial, in the truth's unit.
    msi : ndarray, shape (c, H, W), float32
        The MSI of the same ground at full resolution, in its own unit; NaN is filled.

    Raises
    ------
    NotCalibrated
        If fewer than `MIN_EDGE` coarse pixels along an axis can be scored, or no valid pixel is among them.
    """
    seen, rim = trial.observed, trial.rim_px
    ratio, sigma = seen.ratio, seen.psf_sigma_px
    height, width = (size - 2 * rim for size in trial.hsi.shape[1:])
    if min(height, width) < MIN_EDGE:
        raise NotCalibrated(
            f"the window at reduced resolution has {height} x {width} coarse pixels inside its rim, expected {MIN_EDGE} x {MIN_EDGE}"
        )
    low = filled(trial.msi)
    inside = (..., slice(rim * ratio, -rim * ratio or None), slice(rim * ratio, -rim * ratio or None))
    reduced = detail_energy(low, ratio, sigma)[inside].mean(axis=(1, 2), dtype=np.float64)
    full = detail_energy(filled(msi), ratio, sigma).mean(axis=(1, 2), dtype=np.float64)
    active = activity(low, reduced, ratio, sigma)[inside]
    error = np.abs(fused - trial.truth)[inside] * np.float32(trial.unit)
    shown = np.isfinite(error).all(axis=0)
    fold = _folds(shown.shape)[shown]
    if len(np.unique(fold)) < _FOLDS:
        raise NotCalibrated("the window at reduced resolution has too few valid pixels")
    error, active = error[:, shown], active[shown]
    spans = group_spans(len(error))
    within, raw = np.zeros(error.shape, bool), np.empty(error.shape, np.float32)
    for held in range(_FOLDS):
        used, tested = fold != held, fold == held
        factors = _learned(error[:, used], active[used], spans)
        raw[:, tested] = np.sqrt(_raw(*factors[:2], active[tested])) * factors[2][:, None]
        within[:, tested] = error[:, tested] <= Z * raw[:, tested]
    held_out = [float(within[:, fold == held].mean()) for held in range(_FOLDS)]
    calm, lively, factor = _learned(error, active, spans)
    return Calibration(
        calm=calm.tolist(),
        lively=lively.tolist(),
        energy=full.tolist(),
        gap=scale_gap(full, reduced * trial.unit**2),
        groups=[
            Group(first=first, last=last, factor=float(factor[first]), coverage=float(within[first:last].mean()))
            for first, last in spans
        ],
        calibrated=True,
        coverage=float(within.mean()),
        coverage_range=(min(held_out), max(held_out)),
        mean_width=float(2.0 * Z * raw.mean()),
        ause=sparsification(np.sqrt((raw**2).mean(axis=0)), np.sqrt((error**2).mean(axis=0))),
        pixels=error.shape[1],
    )


def guessed(hsi: F32, msi: F32, fused: F32, *, ratio: int, psf_sigma_px: float, reason: str) -> Calibration:
    """A raw scale where nothing can be calibrated: how far the fused image is from a second opinion, and that from the HSI.

    The second opinion is a linear regression of each HSI band on the MSI at the coarse pixels, applied to the fine ones.

    Parameters
    ----------
    hsi : ndarray, shape (C, h, w), float32
    msi : ndarray, shape (c, h * ratio, w * ratio), float32
        NaN in either input is filled.
    fused : ndarray, shape (C, h * ratio, w * ratio), float32
        NaN counts for nothing.
    ratio : int
    psf_sigma_px : float
    reason : str
        Why nothing can be calibrated.

    Returns
    -------
    Calibration
        Both mean squares added, half of them everywhere and half with the MSI's detail; no factor and no gap, because
        none was measured.
    """
    fine = filled(msi)
    low = degrade(torch.from_numpy(fine)[None], ratio, psf_sigma_px)[0].flatten(1).double().numpy()
    measured = filled(hsi).reshape(len(hsi), -1).astype(np.float64)
    slope, *_ = np.linalg.lstsq((low - low.mean(axis=1, keepdims=True)).T, measured.T, rcond=None)  # (c, C)
    offset = measured.mean(axis=1) - slope.T @ low.mean(axis=1)
    unexplained = ((measured - slope.T @ low - offset[:, None]) ** 2).mean(axis=1)
    apart = np.empty(len(hsi))
    for band in range(len(hsi)):  # one at a time: a second cube of the window is never held
        distance = fused[band] - np.tensordot(slope[:, band], fine, axes=1) - offset[band]
        shown = distance[np.isfinite(distance)]
        apart[band] = (shown**2).mean() if shown.size else 0.0
    half = (0.5 * (unexplained + apart)).tolist()
    return Calibration(
        calm=half,
        lively=half,
        energy=detail_energy(fine, ratio, psf_sigma_px).mean(axis=(1, 2), dtype=np.float64).tolist(),
        gap=1.0,
        groups=[Group(first=first, last=last, factor=1.0, coverage=None) for first, last in group_spans(len(hsi))],
        calibrated=False,
        reason=reason,
    )


def scale_gap(full: F64, reduced: F64) -> float:
    """Factor from errors at reduced to those at full resolution, by the mean square detail of each MSI band at both.

    Detail that the MSI gains is gained by what it cannot predict; noise, and what a band does alone, do not shrink with it.
    """
    both = (full > 0) & (reduced > 0)
    if not both.any():
        return 1.0
    return max(1.0, float(np.exp(0.5 * np.log(full[both] / reduced[both]).mean())))


def sparsification(predicted: NDArray[np.floating], found: NDArray[np.floating]) -> float:
    """Area between two curves: RMSE of the pixels left when those of the largest predicted, or true, errors go first.

    Parameters
    ----------
    predicted, found : ndarray, shape (n,)
        Standard error and true error of each pixel.

    Returns
    -------
    float
        In units of the RMSE of all pixels; 0 if the standard error orders the pixels as their errors do.
    """
    total = float((found**2).mean())
    if total == 0.0:
        return 0.0
    kept = (np.arange(1, _STEPS + 1) * len(found)) // _STEPS
    kept = kept[kept > 0]
    ours, best = (np.sqrt(np.cumsum(found[np.argsort(order)] ** 2)[kept - 1] / kept) for order in (predicted, found))
    return float((ours - best).mean() / math.sqrt(total))


def group_spans(n_bands: int) -> list[tuple[int, int]]:
    """First band, and band after the last, of each group: neighbors in wavelength, of about equal number."""
    n_groups = min(_MOST_GROUPS, max(n_bands // _BANDS_PER_GROUP, 1))
    edges = [n_bands * k // n_groups for k in range(n_groups + 1)]
    return list(itertools.pairwise(edges))


def filled(image: F32) -> F32:
    """The image with the mean of each band in its holes; shape (band, y, x)."""
    holes = np.isnan(image)
    if not holes.any():
        return image
    n_valid = np.maximum((~holes).sum(axis=(1, 2)), 1)
    mean = np.where(holes, 0.0, image).sum(axis=(1, 2), dtype=np.float64) / n_valid
    return np.where(holes, mean[:, None, None], image).astype(np.float32)


def _raw(calm: F64, lively: F64, active: F32) -> F32:
    """Variance of every band at every pixel: (C,), (C,), (...) -> (C, ...)."""
    shape = (-1, *(1,) * active.ndim)
    variance: F32 = calm.astype(np.float32).reshape(shape) + lively.astype(np.float32).reshape(shape) * active
    return variance


def _learned(error: F32, active: F32, spans: Sequence[tuple[int, int]]) -> tuple[F64, F64, F64]:
    """Both variances and the conformal factor of every band, from absolute errors (C, n) and activities (n,)."""
    calm, lively = _fitted(error, active)
    raw = np.sqrt(_raw(calm, lively, active))
    factor = np.empty(len(error))
    for first, last in spans:
        relative = np.divide(
            error[first:last], raw[first:last], out=np.zeros_like(raw[first:last]), where=raw[first:last] > 0
        )
        n_samples = relative.size
        # The finite-sample level of split conformal prediction; with as many samples as pixels hold it hardly matters.
        factor[first:last] = np.quantile(relative, min(math.ceil((n_samples + 1) * NOMINAL) / n_samples, 1.0)) / Z
    return calm, lively, factor


def _fitted(error: F32, active: F32) -> tuple[F64, F64]:
    """Line of each band's mean square error over activity, neither part negative; shapes (C,).

    A mean square is the less certain the larger it is, so each level counts by the inverse square of what is fitted.
    """
    level = np.searchsorted(np.quantile(active, np.arange(1, _LEVELS) / _LEVELS), active)
    present = np.flatnonzero(np.bincount(level, minlength=_LEVELS))
    x = np.array([active[level == k].mean(dtype=np.float64) for k in present])
    y = np.stack([(error[:, level == k] ** 2).mean(axis=1, dtype=np.float64) for k in present], axis=1)  # (C, levels)
    mean = np.maximum((error**2).mean(axis=1, dtype=np.float64), 1e-30)
    calm, lively = mean.copy(), np.zeros_like(mean)
    for _ in range(_ROUNDS):
        weight = (calm[:, None] + lively[:, None] * x) ** -2
        total = weight.sum(axis=1)
        mean_x, mean_y = (weight * x).sum(axis=1) / total, (weight * y).sum(axis=1) / total
        off = x - mean_x[:, None]
        spread = (weight * off**2).sum(axis=1)
        slope = np.divide((weight * off * y).sum(axis=1), spread, out=np.zeros_like(spread), where=spread > 0)
        least = _LEAST_SHARE * mean
        lively = np.clip(slope, 0.0, np.maximum(mean_y - least, 0.0) / np.maximum(mean_x, 1e-30))
        calm = np.maximum(mean_y - lively * mean_x, least)
    return calm, lively


def _folds(shape: tuple[int, ...]) -> NDArray[np.int64]:
    """Number of the quadrant of every pixel: another place, not the pixel next door, which errs alike."""
    rows, cols = (2 * np.arange(size) // size for size in shape)
    folds: NDArray[np.int64] = 2 * rows[:, None] + cols[None, :]
    return folds
