"""How wrong a fused image may be, for every band and pixel: a standard error, calibrated on the scene itself.

    activity        a(p)      energy of the MSI's detail around a pixel, with mean 1 over the calibration window
    raw scale       s(b, p)   square root of calm_b + lively_b a(p), fitted to a rehearsal, see `pipeline.quality.rehearsal`
    calibration     f(g)      conformal factor of a group of bands: |error| <= z f s holds for 90 % of the samples there
    noise share     n(b)      of the mean square error in the rehearsal
    scale gap       k(b)      what the MSI's detail, and the band's distance from a second opinion, gain from reduced to full
                              resolution, at least 1

    standard error = f s sqrt(k^2 (1 - n) + n)

and 90 % of the errors are within 1.645 standard errors, if full resolution is like reduced. Nothing but fused images is asked
of a method, so the same holds for all of them. The error is that of what is on the ground: the noise of the HSI has no part
in it but by what a method lets through.

Notes
-----
Measured on seven real cubes at ratios 2, 3 and 4 and on synthetic land (`make bench-uncertainty`), each calibrated on itself,
with nothing learned from one scene for another. The cubes were measured themselves, and their noise is allowed for; where it
is not, the means below are lower, 84.5 to 92.1 %.

- Intervals of 90 % hold, in the mean over the cubes, 90.7, 91.1 and 92.4 % of the errors of `bicubic`, 90.1, 89.8 and 88.5 %
  of those of `gsa`, 88.8, 90.8 and 89.2 % of those of `map_subspace`. Single cubes lie between 84 and 96 % but for EnMAP
  Potsdam (78 to 86 %), whose infrared has detail of its own that the four MSI bands do not show, and `bicubic` on San Diego
  at ratio 4 (98 %), of which 6 x 6 coarse pixels could be rehearsed. On synthetic land they hold 92 % (`bicubic`, `gsa`) and
  98 % (`map_subspace`), whose regression gains from pure pixels that are rare in its rehearsal.
- Before, the trial was Wald's protocol alone, and all errors grew with the MSI's detail: 85 to 97 % on the same cubes at ratio
  2 (`map_subspace` 92.8 in the mean), 99 to 100 % for `map_subspace` on land, and at ratio 4 a guess, 81 to 99 %. Potsdam is
  where the noise of the truth had hidden what the MSI does not show.
- Each part earns its place. Where noise was let grow with the gap, methods that inject detail were 2 to 3 % too safe. The MSI's
  detail alone left gaps that scatter by 13 % for `gsa`, with the second opinion they do by 9 %.
- Tried without success: a gap that goes on as from a second, coarser rehearsal; the disagreement of the fused image with the
  MSI or the HSI at both resolutions; the gain of a method from more pixels to learn from; one factor per method, which on land
  and on real cubes would have to differ by 2.
- Of the scales that can be had for any method (detail of the MSI, detail injected into the band, what a coarse regression
  leaves, brightness) the MSI's local detail orders the errors of most scenes as well as any other, and is one map for all
  bands. The pattern of errors within a coarse pixel varies by a fifth at most beyond the smallest scenes; it is left out.
- A posterior standard deviation knows nothing of wrong coefficients: 0.9 to 2.6 times too small, differently for each scene.
- A scene too small for a rehearsal at its own ratio has one at a smaller ratio, whose gap is larger. Where none can be had,
  the distance from the second opinion, with what that leaves of the HSI, is a guess.

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
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from hyperfuse.catalogs.errors import HyperFuseError
from hyperfuse.models import Observed
from hyperfuse.models.operators import upsample
from hyperfuse.pipeline.quality.msi_detail import F32, F64, activity, detail_energy, filled
from hyperfuse.pipeline.quality.reference_regression import SecondOpinion
from hyperfuse.pipeline.quality.rehearsal import Rehearsal

NOMINAL = 0.9
"""Share of the errors that an interval should hold."""
Z = 1.6448536269514722
"""Half the width of that interval in standard errors, were errors normal."""
CAVEAT = (
    "Coverage is measured at reduced resolution on quadrants that the fit did not see. At full resolution it holds as far as "
    "errors there are like those, scaled by the gap: nothing on the scene can prove it. It holds on average over pixels and "
    "bands of a group, not for each of them; it is for what is on the ground, so a measurement to compare with brings noise of "
    "its own. Errors of registration beyond those of the pair at reduced resolution are not in it."
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
    gap: list[float]
    """Factor of each band from errors at reduced resolution to those at full resolution, where noise has no part in them."""
    noise_share: list[float]
    """Share of each band's mean square error at reduced resolution that is due to noise, which does not grow."""
    alone: list[float]
    """Standard error of each band, the HSI's unit, where nothing but the HSI tells of a pixel: detail that cubic convolution lacks."""
    groups: list[Group]
    calibrated: bool
    """False: the raw scale is a guess, see `guessed` and `reason`."""
    reason: str | None = None
    """Why nothing was calibrated."""
    ratio: int | None = None
    """Fine pixels per coarse pixel of what was fused at reduced resolution."""
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

    @property
    def growth(self) -> F64:
        """Factor of each band from errors at reduced resolution to those at full resolution, shape (C,)."""
        noise = np.array(self.noise_share)
        growth: F64 = np.sqrt(np.array(self.gap) ** 2 * (1.0 - noise) + noise)
        return growth


@dataclass(frozen=True, kw_only=True, eq=False)
class FullResolution:
    """What is known of a window at full resolution."""

    energy: F64
    """Mean square detail of each MSI band, shape (c,)."""
    opinion: SecondOpinion
    """A second opinion on the fused image ..."""
    apart: F64
    """... and its mean square distance from that per band, shape (C,)."""

    @classmethod
    def of(cls, hsi: F32, msi: F32, fused: Iterable[F32], seen: Observed) -> Self:
        """Of a pair and its fused image.

        Parameters
        ----------
        hsi : ndarray, shape (C, h, w), float32
        msi : ndarray, shape (c, h * ratio, w * ratio), float32
            NaN in either input is filled.
        fused : iterable of ndarray, shapes (C, y, w * ratio), float32
            Strips of the fused image from top to bottom; NaN counts for nothing.
        seen : Observed
        """

        def strips() -> Iterator[tuple[F32, F32]]:
            first = 0
            for strip in fused:
                yield strip, msi[:, first : first + strip.shape[1]]
                first += strip.shape[1]

        ratio, sigma = seen.ratio, seen.psf_sigma_px
        opinion = SecondOpinion.of(hsi, msi, ratio=ratio, psf_sigma_px=sigma, shift_px=seen.shift_px)
        energy = detail_energy(filled(msi), ratio, sigma).mean(axis=(1, 2), dtype=np.float64)
        return cls(energy=energy, opinion=opinion, apart=opinion.distance(strips()))


class NotCalibrated(HyperFuseError):
    """A trial from which nothing can be learned; the message says why."""


def standard_error(calibration: Calibration, active: F32, changed: NDArray[np.bool_] | None = None) -> F32:
    """Standard error (k = 1) of every band, the HSI's unit.

    Parameters
    ----------
    calibration : Calibration
    active : ndarray, shape (y, x), float32
        From `activity`.
    changed : ndarray, shape (y, x), bool, optional
        Pixels where the MSI shows something else than the HSI: there the error of the HSI alone is added, for the MSI's
        detail is missing in what follows the HSI, and wrong in what follows the MSI.

    Returns
    -------
    ndarray, shape (C, y, x), float32
    """
    variance = _raw(np.array(calibration.calm), np.array(calibration.lively), active)
    scale = np.concatenate([np.full(group.last - group.first, group.factor) for group in calibration.groups])
    error: F32 = np.sqrt(variance) * (calibration.growth * scale).astype(np.float32)[:, None, None]
    if changed is not None and changed.any():
        alone = np.array(calibration.alone, np.float32)[:, None]
        error[:, changed] = np.hypot(error[:, changed], alone)
    return error


def calibrate(rehearsal: Rehearsal, full: FullResolution) -> Calibration:
    """Fit and calibrate on a rehearsal at reduced resolution.

    Parameters
    ----------
    rehearsal : Rehearsal
    full : FullResolution
        The same ground.

    Raises
    ------
    NotCalibrated
        If no valid pixel is inside the rim of each quadrant.
    """
    pair, seen, inside = rehearsal.pair, rehearsal.pair.observed, (..., *rehearsal.inside)
    low, unit = filled(pair.msi), np.float32(pair.unit)
    reduced = detail_energy(low, seen.ratio, seen.psf_sigma_px)[inside].mean(axis=(1, 2), dtype=np.float64)
    active = activity(low, reduced, seen.ratio, seen.psf_sigma_px)[inside]
    error = np.abs(rehearsal.fused - pair.truth)[inside] * unit
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
    energy = full.energy
    other = SecondOpinion.of(pair.hsi, pair.msi, ratio=seen.ratio, psf_sigma_px=seen.psf_sigma_px)
    apart = other.distance([(rehearsal.fused[inside], pair.msi[inside])])
    return Calibration(
        calm=calm.tolist(),
        lively=lively.tolist(),
        energy=energy.tolist(),
        gap=scale_gap((energy, reduced * pair.unit**2), (full.apart, apart * pair.unit**2)).tolist(),
        noise_share=rehearsal.noise_share.tolist(),
        alone=(_detail(pair.hsi, pair.truth, seen.ratio, inside) * pair.unit).tolist(),
        groups=[
            Group(first=first, last=last, factor=float(factor[first]), coverage=float(within[first:last].mean()))
            for first, last in spans
        ],
        calibrated=True,
        ratio=seen.ratio,
        coverage=float(within.mean()),
        coverage_range=(min(held_out), max(held_out)),
        mean_width=float(2.0 * Z * raw.mean()),
        ause=sparsification(np.sqrt((raw**2).mean(axis=0)), np.sqrt((error**2).mean(axis=0))),
        pixels=error.shape[1],
    )


def guessed(full: FullResolution, *, reason: str) -> Calibration:
    """A raw scale where nothing can be calibrated: how far the fused image is from a second opinion, and that from the HSI.

    Parameters
    ----------
    full : FullResolution
    reason : str
        Why nothing can be calibrated.

    Returns
    -------
    Calibration
        Both mean squares added, half of them everywhere and half with the MSI's detail; no factor and no gap, because
        none was measured.
    """
    half = (0.5 * (full.opinion.unexplained + full.apart)).tolist()
    return Calibration(
        calm=half,
        lively=half,
        energy=full.energy.tolist(),
        gap=[1.0] * len(half),
        noise_share=[0.0] * len(half),
        alone=np.sqrt(full.opinion.unexplained + full.apart).tolist(),
        groups=[Group(first=first, last=last, factor=1.0, coverage=None) for first, last in group_spans(len(half))],
        calibrated=False,
        reason=reason,
    )


def _detail(hsi: F32, truth: F32, ratio: int, inside: Any) -> F64:
    """Root mean square of each band's detail that cubic convolution of the HSI lacks, shape (C,)."""
    lacking = upsample(torch.from_numpy(filled(hsi)), ratio).numpy() - truth
    root: F64 = np.sqrt(np.nanmean(lacking[inside].astype(np.float64) ** 2, axis=(1, 2)))
    return root


def scale_gap(detail: tuple[F64, F64], apart: tuple[F64, F64]) -> F64:
    """Factor of each band from errors at reduced to those at full resolution, by two things that grow as errors do.

    Parameters
    ----------
    detail : (full, reduced)
        Mean square detail of each MSI band at both resolutions, shape (c,).
    apart : (full, reduced)
        Mean square distance of each fused band from the second opinion, likewise, shape (C,).

    Returns
    -------
    ndarray, shape (C,), float64
        Geometric mean of the growth of the MSI's detail, the mean over its bands, and of the band's own distance. What a
        band does alone does not shrink with what it shares, so neither counts with less than 1.
    """
    of_detail, of_distance = np.log(_growth(*detail)), np.log(_growth(*apart))
    told = np.isfinite(of_distance)
    common = max(0.0, float(of_detail[np.isfinite(of_detail)].mean())) if np.isfinite(of_detail).any() else 0.0
    gap: F64 = np.exp(np.where(told, 0.5 * (common + np.maximum(of_distance, 0.0)), common))
    return gap


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


def _growth(full: F64, reduced: F64) -> F64:
    """Root of the ratio of mean squares; NaN where one of them is 0."""
    both = (full > 0) & (reduced > 0)
    growth: F64 = np.sqrt(np.divide(full, reduced, out=np.full(len(full), np.nan), where=both))
    return growth


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
