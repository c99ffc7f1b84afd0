"""The displacement of each of the HSI's detectors beside that of the scene, and its change over the wavelength.

An imaging spectrometer sees VNIR and SWIR with two detectors, through optics of their own: the second may look beside the
first, and either may spread its bands along a line (keystone). Parts of each detector's spectrum are measured by the
forward model of `tiepoints`, each alone, against all bands of the MSI; bands that the MSI lacks are matched by what their
structure has in common with those that it has, in each window by itself.

    move of a band = displacement of the scene + offset of its detector + slope * (wavelength - middle of the detector)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from hyperfuse.catalogs.bands import detector_of
from hyperfuse.pipeline.geometry.displacement import Displacement
from hyperfuse.pipeline.registration.record import DetectorDisplacement
from hyperfuse.pipeline.registration.tie_points import TiePoints
from hyperfuse.pipeline.registration.views import Array, Survey

NAMES = ("VNIR", "SWIR")
_PASSES = 3
"""Measurements, each along what the last one found."""
_EXPLAINED = 0.25
"""Share of a target's variance in a window from which its tie point counts ..."""
_SIGMA_PX = 0.3
"""... with at most this standard error."""
_SPLIT_PX = 0.75
"""Distance between what the even and the odd pixels of a window say."""
_NEAR_PX = 1.5
"""Remainders beyond it are no small steps."""
_NOISE_PX = 0.05
"""Scatter of tie points beyond their own standard errors: what a band shows and the MSI does not."""
_TUKEY = 4.685
_ROUNDS = 8
_FLOOR_PX = 0.01
"""No part of the spectrum is known better ..."""
_UNSEEN_PX = 0.1
"""... and this times the share of its variance that the MSI does not explain is its error at least: structure that one image
has and the other has not pulls all windows of a kind alike, so that their scatter does not show it."""
_FEWEST = 6
"""Tie points that a part of the spectrum needs."""
_SIGNIFICANT = 3.0
"""Standard errors from which an offset or a slope is told ..."""
_TOLD_PX = 0.05
"""... if it moves a band by at least this (coarse px)."""
_SURE_PX = 0.05
"""Standard error up to which a detector's displacement is accepted ..."""
_DOUBTED_PX = 0.15
"""... and up to which it is taken with a warning."""


@dataclass(frozen=True, kw_only=True)
class Spectral:
    """What the parts of the spectrum say, one entry of each array per part."""

    center_nm: Array
    beside: Array
    """Move (coarse px) beside the scene's displacement, shape (2, part); NaN where too little was seen."""
    sigma: Array
    """Standard error (coarse px) along one axis."""
    tie_points: NDArray[np.intp]


Measured = Callable[[Displacement], list[TiePoints]]
"""Tie points of each part of the spectrum along a displacement."""


def spectral(survey: Survey, displacement: Displacement, measured: Measured) -> Spectral:
    """Displacement of each part of the spectrum beside that of the scene; `survey` is one by `Survey.by_spectrum`."""
    of = detector_of(survey.channel_nm)
    offsets = {int(detector): np.zeros(2) for detector in np.unique(of)}
    for _ in range(_PASSES):
        parts: list[tuple[Array, float, int]] = [(np.zeros(2), np.inf, 0)] * len(of)
        for detector, offset in offsets.items():
            points = measured(_aside(displacement, offset, survey.unit))
            for k in np.flatnonzero(of == detector):
                step, sigma, n = _middle(points[k])
                parts[k] = (offset + step, sigma, n)
        for detector in offsets:
            own = [part for part, its in zip(parts, of, strict=True) if its == detector and np.isfinite(part[1])]
            if own:
                weight = np.array([1.0 / part[1] ** 2 for part in own])
                offsets[detector] = weight @ np.array([part[0] for part in own]) / weight.sum()
        if len(offsets) == 1 or all(np.hypot(*offset) < _TOLD_PX for offset in offsets.values()):
            break  # so near that one step was enough
    sigmas = np.array([part[1] for part in parts])
    beside = np.array([part[0] for part in parts]).T
    beside[:, ~np.isfinite(sigmas)] = np.nan
    return Spectral(
        center_nm=np.asarray(survey.channel_nm), beside=beside, sigma=sigmas, tie_points=np.array([p[2] for p in parts])
    )


def by_detector(found: Spectral, hsi_nm: NDArray[np.float64], lead: int) -> tuple[DetectorDisplacement, ...]:
    """The record of each detector.

    Parameters
    ----------
    found : Spectral
    hsi_nm : ndarray, shape (band,)
        Centers of the HSI's good bands.
    lead : int
        Detector that the scene's displacement was measured with: its own offset is 0.
    """
    of, of_band = detector_of(found.center_nm), detector_of(hsi_nm)
    records = []
    for detector in np.unique(of_band):
        bands, own = hsi_nm[of_band == detector], of == detector
        known = own & np.isfinite(found.sigma)
        middle = float(bands.min() + bands.max()) / 2
        offset: Array = np.zeros(2)
        slope: Array = np.zeros(2)
        sigma, significant = math.inf, False
        if known.any():
            offset, slope, sigma, significant = _line(
                found.center_nm[known] - middle, found.beside[:, known], found.sigma[known], float(np.ptp(bands))
            )
        if detector == lead:
            offset = np.zeros(2)
        told = significant or np.hypot(*offset) >= max(_TOLD_PX, _SIGNIFICANT * sigma)
        decision, reason = _decided(sigma, int(found.tie_points[own].max(initial=0)))
        if decision == "refuse":
            offset, slope, told = np.zeros(2), np.zeros(2), False
        records.append(
            DetectorDisplacement(
                name=NAMES[detector],
                first_nm=float(bands.min()),
                last_nm=float(bands.max()),
                center_nm=middle,
                east_px=float(offset[0]),
                north_px=float(offset[1]),
                east_px_per_um=float(slope[0]),
                north_px_per_um=float(slope[1]),
                sigma_px=float(sigma) if math.isfinite(sigma) else None,
                tie_points=int(found.tie_points[own].max(initial=0)),
                significant=bool(told),
                decision=decision,
                reason=reason,
            )
        )
    return tuple(records)


def in_words(records: tuple[DetectorDisplacement, ...]) -> str:
    """What is significant, in one phrase; empty if nothing is."""
    phrases = []
    for record in records:
        if not record.significant:
            continue
        words = []
        if math.hypot(record.east_px, record.north_px) >= _TOLD_PX:
            words.append(
                f"lies {math.hypot(record.east_px, record.north_px):.2f} coarse px beside the scene's displacement "
                f"({record.east_px:+.2f} east, {record.north_px:+.2f} north)"
            )
        span = (record.last_nm - record.first_nm) / 1e3
        if (drift := span * math.hypot(record.east_px_per_um, record.north_px_per_um)) > 0:
            words.append(
                f"drifts by {drift:.2f} coarse px from {record.first_nm:.0f} to {record.last_nm:.0f} nm "
                f"({span * record.east_px_per_um:+.2f} east, {span * record.north_px_per_um:+.2f} north)"
            )
        doubt = "" if record.decision == "accept" else f" ({record.decision}: {record.reason})"
        phrases.append(f"the {record.name} {' and '.join(words)}{doubt}")
    return "; ".join(phrases)


def _decided(sigma: float, tie_points: int) -> tuple[Literal["accept", "warn", "refuse"], str]:
    if sigma <= _SURE_PX:
        return "accept", f"known to {sigma:.3f} coarse px from {tie_points} tie points"
    if sigma <= _DOUBTED_PX:
        return "warn", f"known to {sigma:.2f} coarse px only, from {tie_points} tie points"
    return "refuse", f"not measured: the MSI shows too little of what it shows ({tie_points} tie points)"


def _aside(displacement: Displacement, offset: Array, unit: tuple[float, float]) -> Displacement:
    return displacement.model_copy(
        update={
            "east": displacement.east + float(offset[0]) * unit[0],
            "north": displacement.north + float(offset[1]) * unit[1],
        }
    )


def _middle(points: TiePoints) -> tuple[Array, float, int]:
    """Robust mean of the remainders, its standard error along one axis from their scatter, and how many counted."""
    good = (
        (points.correlation**2 >= _EXPLAINED)
        & (points.sigma <= _SIGMA_PX)
        & (points.split <= _SPLIT_PX)
        & (np.hypot(*points.remainder) <= _NEAR_PX)
    )
    n = int(good.sum())
    if n < _FEWEST:
        return np.zeros(2), math.inf, n
    steps = points.remainder[:, good]
    prior = 1.0 / (points.sigma[good] ** 2 + _NOISE_PX**2)
    mean, weight = np.median(steps, axis=1), prior
    for _ in range(_ROUNDS):
        distance = np.hypot(*(steps - mean[:, None]))
        reach = _TUKEY * max(float(np.median(distance)) / 1.1774, _FLOOR_PX)
        weight = prior * np.square(np.clip(1.0 - (distance / reach) ** 2, 0.0, None))
        mean = steps @ weight / weight.sum()
    left = weight * np.hypot(*(steps - mean[:, None]))
    sigma = math.sqrt(float((left**2).sum()) / 2.0) / float(weight.sum())
    unseen = _UNSEEN_PX * (1.0 - float(np.median(points.correlation[good] ** 2)))
    return mean, math.hypot(sigma, _FLOOR_PX, unseen), n


def _line(nm: Array, beside: Array, sigma: Array, span_nm: float) -> tuple[Array, Array, float, bool]:
    """Offset (coarse px) at 0, slope (coarse px per um) if it is significant, standard error of the offset, and whether."""
    weight = 1.0 / sigma**2
    mean = beside @ weight / weight.sum()
    # The scatter about the line counts where it is larger than what the parts say of themselves.
    scatter = _scatter(beside - mean[:, None], weight, 1)
    error = math.sqrt(scatter / float(weight.sum()))
    if len(nm) < 3:
        return mean, np.zeros(2), error, False
    um = nm / 1e3
    middle = float(um @ weight / weight.sum())
    inertia = float(((um - middle) ** 2) @ weight)
    slope = (beside * weight) @ (um - middle) / inertia
    left = beside - mean[:, None] - slope[:, None] * (um - middle)
    scatter = _scatter(left, weight, 2)
    slope_error = math.sqrt(scatter / inertia)
    size = float(np.hypot(*slope))
    if size < _SIGNIFICANT * slope_error or size * span_nm / 1e3 < _TOLD_PX:
        return mean, np.zeros(2), error, False
    return mean - slope * middle, slope, math.sqrt(scatter / float(weight.sum())), True


def _scatter(left: Array, weight: Array, n_terms: int) -> float:
    """Reduced chi-square of residuals (2, part), at least 1."""
    freedom = 2.0 * (left.shape[1] - n_terms)
    return max(1.0, float((weight * left**2).sum()) / freedom) if freedom > 0 else 1.0
