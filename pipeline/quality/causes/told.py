"""What the pair told of itself: how far the observation model that its files and tables tell is from what the scene shows.

    displacement of each detector    registration, then the method's own refinement
    width of the PSF                 measured on the pair, over that of the sensor's table
    changes between the dates        samples that miss the relation of the two images
    stripes of each detector         gains of the HSI's columns

A method that refines the model on the scene tells what it used; of others, what staging measured counts, and what they cannot
take into account is left in the product. Limits follow from standard errors, and so from the scene's noise, and from the ratio.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hyperfuse.catalogs.bands import detector_of
from hyperfuse.models._findings import Findings
from hyperfuse.pipeline.job.folder import StagedJob
from hyperfuse.pipeline.observation.psf import Psf
from hyperfuse.pipeline.observation.sample import Sample
from hyperfuse.pipeline.observation.stripes import stripes
from hyperfuse.pipeline.quality.records import Cause
from hyperfuse.pipeline.registration.detectors import NAMES

F64 = NDArray[np.float64]

_CLEAR = 5.0
"""Standard errors from which on a cause is told."""
_LEAST_PX, _LEAST_FINE_PX = 0.02, 0.1
"""Displacements below either (coarse px, fine px) are told by no method: bands of one image differ by as much."""
_UNREFINED_PX = 0.05
"""Least displacement (coarse px) that is told where no method refined it."""
_LEAST_PSF, _UNREFINED_PSF = 0.03, 0.15
"""Least relative misfit of the PSF's width that is told, as a method refined it and as staging alone measured it."""
_LEAST_CHANGED = 0.02
"""Share of samples: rare materials that break the relation of the two images are taken for changes as often."""
_LEAST_STRIPES = 0.001


@dataclass(frozen=True, kw_only=True, eq=False)
class _Seen:
    """What causes are judged by."""

    job: StagedJob
    found: tuple[Findings, ...]
    detectors: dict[str, NDArray[np.int64]]
    """Bands by the detector's name."""


def causes(job: StagedJob, found: tuple[Findings, ...], sample: Sample | None) -> list[Cause]:
    """All causes, whether significant or not; those that could not be measured have no value.

    Parameters
    ----------
    job : StagedJob
    found : tuple of Findings
        What the method found, empty if it looks for nothing.
    sample : Sample or None
        Of the staged pair; None if too few pixels are valid in both.
    """
    of = detector_of(job.bands.center_nm)
    detectors = {NAMES[number]: np.flatnonzero(of == number) for number in np.unique(of)}
    seen = _Seen(job=job, found=found, detectors=detectors)
    return [*_displacements(seen), _psf(seen), _changes(seen), *_stripes(seen, sample)]


def _displacements(seen: _Seen) -> list[Cause]:
    """Where each detector's samples lie beside the place that the file tells."""
    job, ratio = seen.job, seen.job.grids.ratio
    registration, observation = job.staged.registration, job.observation
    gsd = [abs(step) for step in (job.grids.coarse.resolution.y, job.grids.coarse.resolution.x)]
    common = np.array([registration.north / gsd[0], -registration.east / gsd[1]])
    n_bands = len(job.bands)
    beside = np.array(
        observation.band_shifts_px or registration.beside(job.bands.center_nm)[[1, 0]].T * [ratio, -ratio]
    )
    shown = (np.array(observation.psf_center_px) + beside) / ratio  # (band, 2): rows and columns, coarse px
    left = shown - np.array(job.spec.observed.hsi_shifts or np.zeros((n_bands, 2)))
    errors = np.full(n_bands, np.nan)
    for one in seen.found:
        own = list(one.bands)
        shown[own], left[own] = np.array(one.shift_px) / ratio, 0.0
        errors[own] = math.hypot(*one.shift_error_px) / ratio
    total = common + shown - np.array(job.staged.samples_beside_px or (0.0, 0.0)) / ratio
    told = []
    for name, bands in seen.detectors.items():
        refined = bool(np.isfinite(errors[bands]).all())
        error = float(errors[bands].mean()) if refined else _registered_to(seen, name)
        least = max(_LEAST_PX if refined else _UNREFINED_PX, _LEAST_FINE_PX / ratio)
        rows, cols = total[bands].mean(axis=0)
        size, remains = math.hypot(rows, cols), math.hypot(*left[bands].mean(axis=0))
        limit = max(least, _CLEAR * (error or 0.0))
        told.append(
            Cause(
                name="displacement",
                detector=name,
                value=size,
                expected=0.0,
                uncertainty=error,
                limit=limit,
                significant=size > limit or remains > limit,
                left=remains,
                unit="coarse px",
                sentence=_of_displacement(name, (rows, cols), remains if remains > limit else 0.0),
            )
        )
    return told


def _registered_to(seen: _Seen, name: str) -> float | None:
    """Standard error (coarse px) of a detector's displacement by registration, None if it has none."""
    registration = seen.job.staged.registration
    own = [detector.sigma_px for detector in registration.detectors if detector.name == name]
    if own and own[0] is not None:
        return own[0]
    if registration.residual_after_px is None or not registration.tie_points:
        return None
    return registration.residual_after_px / math.sqrt(registration.tie_points)


def _of_displacement(name: str, place: tuple[float, float], remains: float) -> str:
    rows, cols = place
    down, right = "south" if rows > 0 else "north", "east" if cols > 0 else "west"
    where = f"{math.hypot(rows, cols):.2f} coarse px ({abs(rows):.2f} {down}, {abs(cols):.2f} {right})"
    what = f"samples of the {name} lie {where} beside the place that the HSI's file tells"
    if remains:
        return (
            f"{what}, and {remains:.2f} px of it are left in the product, since the method takes one lattice for all bands; "
            "choose method=map_subspace, or co-register the detectors first"
        )
    return f"{what}; the product has it taken out, so correct the file before anything else is made of it"


def _psf(seen: _Seen) -> Cause:
    job, observation = seen.job, seen.job.observation
    table, ratio = job.record.psf_sigma_px, job.grids.ratio
    value, error, least = None, None, _UNREFINED_PSF
    if seen.found:
        best = min(seen.found, key=lambda one: one.sigma_error_px)
        value, error, least = best.sigma_px / table, best.sigma_error_px / table, _LEAST_PSF
    elif observation.psf_origin in {"measured", "blind"}:
        value = observation.psf_sigma_px / table
    limit = max(least, _CLEAR * (error or 0.0))
    modulation = math.exp(-0.5 * (math.pi * (value or 1.0) * table / ratio) ** 2)
    return Cause(
        name="psf",
        detector=None,
        value=value,
        expected=1.0,
        uncertainty=error,
        limit=limit,
        significant=value is not None and abs(value - 1.0) > limit,
        left=None if value is None else 0.0,
        unit="of the width that was told",
        sentence="the width of the PSF was not measured"
        if value is None
        else f"the HSI's PSF is {value:.2f} times as wide as its sensor's table or psf_mtf tells; the product was fused with the "
        f"measured one, so give psf_mtf={modulation:.3f} for other scenes of this sensor, or look for a resampling of the HSI",
    )


def _changes(seen: _Seen) -> Cause:
    # A group of bands that the MSI does not see takes structure of its own for changes; what changed, all groups tell.
    one = min(seen.found, key=lambda each: each.changed_share) if seen.found else None
    value = None if one is None else one.changed_share
    error = None if one is None else math.sqrt(max(one.changed_share * one.samples, 1.0)) / max(one.samples, 1)
    limit = (
        max(_LEAST_CHANGED, _CLEAR * error) if one is not None and error is not None and value == 0 else _LEAST_CHANGED
    )
    return Cause(
        name="changed",
        detector=None,
        value=value,
        expected=0.0,
        uncertainty=error,
        limit=limit,
        significant=value is not None and value > limit,
        left=None if value is None else 0.0,
        unit="of the samples",
        sentence="changes between the dates were not looked for"
        if value is None
        else f"{100 * value:.1f} % of the HSI's pixels show another scene than the MSI; there the product follows the HSI alone, "
        "so choose an MSI of a closer date, or without clouds, if that is too much",
    )


def _removed(job: StagedJob, bands: NDArray[np.int64]) -> float:
    """Standard deviation of the gains that were taken out of the columns of some bands of one detector."""
    gains = job.staged.column_gains
    return float(np.std(gains[int(detector_of(job.bands.center_nm[bands[0]]))])) if gains else 0.0


def _before(job: StagedJob, bands: NDArray[np.int64]) -> float | None:
    """Standard deviation of the gains before, as staging measured it."""
    return job.staged.stripes[int(detector_of(job.bands.center_nm[bands[0]]))]


def _stripes(seen: _Seen, sample: Sample | None) -> list[Cause]:
    psf = seen.job.observation.hsi_psf
    if seen.found:
        best = min(seen.found, key=lambda one: one.sigma_error_px)
        psf = Psf(best.sigma_px, *best.shift_px)
    told = []
    for name, bands in seen.detectors.items():
        found = None if sample is None else stripes(sample, psf, bands)
        left = None if found is None else found.amplitude
        limit = None if found is None else max(found.limit, _LEAST_STRIPES)
        removed = _removed(seen.job, bands)
        before = _before(seen.job, bands) if removed else None
        value = before or (None if left is None else math.hypot(left, removed))
        told.append(
            Cause(
                name="stripes",
                detector=name,
                value=value,
                expected=0.0,
                uncertainty=None if found is None else found.error,
                limit=limit,
                significant=value is not None and limit is not None and (removed > 0 or value > limit),
                left=left,
                unit="of the signal",
                sentence=f"stripes of the {name} could not be measured"
                if value is None
                else f"columns of the {name} differ by gains of {100 * value:.1f} % (stripes)"
                + (
                    f", of which {100 * removed:.1f} % were taken out"
                    if removed
                    else ", which the product has as well; destripe the HSI before it is fused"
                ),
            )
        )
    return told
