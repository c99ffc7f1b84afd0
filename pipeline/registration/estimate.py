"""The displacement of an MSI against an HSI: found by correlation, refined by the forward model, decided on by its tie points.

    search    one whole-pixel move for the scene                                        search.find_peak
    spread    one move per window, near that one                                        search.window_moves
    learn     what each MSI band sees of the HSI's spectrum                             response.learned
    refine    tie points along the model so far -> the model that predicts them best    tiepoints.measure, fitting.fit_best
    polish    a field: all of its coefficients from all pixels                          dense.improved
    decide    accept, warn or refuse                                                    decision.decide

A displacement that is refused is not used: the record then has none, and its reason has the figures.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, replace
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

from hyperfuse.catalogs.pairs import ScenePair
from hyperfuse.pipeline.config import AlignConfig
from hyperfuse.pipeline.geometry.displacement import NO_DISPLACEMENT, Displacement
from hyperfuse.pipeline.geometry.grids import NestedGrids
from hyperfuse.pipeline.pipelining import Workers, in_this_process
from hyperfuse.pipeline.registration.blocks import Blocks, square
from hyperfuse.pipeline.registration.decision import (
    Decision,
    Evidence,
    agrees,
    chance_level,
    decide,
    explained,
    is_clear,
)
from hyperfuse.pipeline.registration.dense_field import improved
from hyperfuse.pipeline.registration.fit import MODELS, Fit, ModelName, fit_best
from hyperfuse.pipeline.registration.record import Registration
from hyperfuse.pipeline.registration.response import learned
from hyperfuse.pipeline.registration.search import find_peak, search_windows
from hyperfuse.pipeline.registration.tie_points import TiePoints
from hyperfuse.pipeline.registration.views import Array, Move, Survey, open_view

log = logging.getLogger(__name__)

_BANDS = 4
"""MSI bands that take part at most: those that match best."""
_BETTER = 0.75
"""Quantile of the windows that tells whether the images show the same: clouds and change may spoil most of them."""
_MAX_STEPS = 6
_DENSE_STEPS = 3
"""Of the refinement of a field by every pixel."""
_AT_REST_PX = 0.5
"""Move (coarse px) up to which an overlap too small to be judged counts as registered, with a warning."""
_SETTLED_PX = 3e-3
"""Change of the model (coarse px) at which refining ends."""
_IN_WORDS = {
    "none": "the scenes are registered already",
    "shift": "one shift for the scene",
    "affine": "an affine displacement",
    "field": "a displacement that varies smoothly over the scene",
}
_WORTH_A_CLUSTER = 8
"""Blocks from which workers take part: fewer are done before they have started."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A displacement with what speaks for it."""

    survey: Survey
    """What was compared."""
    registration: Registration
    points: TiePoints | None
    """Tie points along the displacement that was found, taken or not; None where nothing was measured."""
    used: NDArray[np.bool_]
    """Those that agree with it, shape (point,)."""


def register(pair: ScenePair, grids: NestedGrids, align: AlignConfig, psf_sigma_px: float) -> Registration:
    """The record of `estimate`."""
    return estimate(pair, grids, align, psf_sigma_px).registration


def estimate(
    pair: ScenePair, grids: NestedGrids, align: AlignConfig, psf_sigma_px: float, *, workers: Workers = in_this_process
) -> Estimate:
    """The move that brings the MSI onto the HSI.

    Parameters
    ----------
    pair : ScenePair
    grids : NestedGrids
    align : AlignConfig
        Known move, or the search range and the thresholds of the decision.
    psf_sigma_px : float
        Standard deviation of the HSI's PSF, in fine pixels.
    workers : callable, optional
        Where the tie points of a large scene are measured; this process unless given.

    Returns
    -------
    Estimate
        With `model="none"` where the displacement is refused, is nothing, or was not to be estimated.
    """
    survey = Survey.of(pair, grids, psf_sigma_px)
    if align.east_m is not None or align.north_m is not None:
        per_m = survey.unit[0] / pair.hsi.gsd_m, survey.unit[1] / pair.hsi.gsd_m
        given = Displacement(east=(align.east_m or 0.0) * per_m[0], north=(align.north_m or 0.0) * per_m[1])
        return _told(survey, "accept", "the displacement was given", given, model="shift" if given else "none")
    if not align.estimate:
        return _told(survey, "accept", "the estimate is switched off")
    # One pixel further than asked for: a match there says that the truth may lie beyond.
    limit = math.ceil(align.max_shift_px) + 1
    seen = (open_view(survey, window, square((0, 0), limit + 1)) for window in search_windows(survey))
    peak = find_peak(survey, seen, limit, _BANDS)
    if peak is None:
        return _told(survey, "refuse", "the images have too few valid pixels in common")
    log.debug("search: %s", peak)
    survey = survey.with_bands(peak.bands)
    if peak.at_rim:
        reason = f"the best match lies at the rim of the search, {limit} coarse px; raise align.max_shift_px or check the grids"
        return _told(survey, "refuse", reason)
    with (workers if len(survey.blocks) >= _WORTH_A_CLUSTER else in_this_process)() as parallel_map:
        refined = _refined(Blocks(survey, peak.move, peak.rival, parallel_map), align)
    return _judged(survey, align, refined)


@dataclass(frozen=True, kw_only=True)
class _Refined:
    """The best model, and what the windows say of it."""

    fit: Fit | None
    points: TiePoints
    """Along the model."""
    at_rest: Array
    """Correlation of each window without any move."""
    chance: Array
    """See `decision.chance_level`."""
    rival: Array
    """The same at the place where the whole scene matches next best."""


def _refined(blocks: Blocks, align: AlignConfig) -> _Refined:
    """Refine from whole-pixel matches, until the model settles."""
    survey = blocks.survey
    models = MODELS[: MODELS.index(align.most) + 1]

    def best(points: TiePoints) -> Fit:
        return fit_best(points, models, bounds=survey.bounds, unit=survey.unit, spacing=survey.edge)

    found = blocks.matched()
    shift = Displacement(east=blocks.around[0] * survey.unit[0], north=blocks.around[1] * survey.unit[1])
    displacement = best(found).displacement if len(found) else shift
    (points,) = blocks.along(displacement)
    clear = is_clear(points, np.zeros(len(points)))
    if clear.any():
        blocks.mixing = learned(blocks.moments(displacement)[clear], len(blocks.mixing))
    points, *decoys = blocks.along(displacement, *(_aside(survey, displacement, off) for off in blocks.decoys))
    chance = chance_level(decoys)
    fit = None
    for step in range(_MAX_STEPS):
        clear = is_clear(points, chance)
        if not clear.any():
            break
        fit = best(points.only(clear))
        now, then = (survey.moves(model, points.x, points.y) for model in (fit.displacement, displacement))
        change = np.hypot(*(now - then))
        displacement = fit.displacement
        (points,) = blocks.along(displacement)
        log.debug("step %d: %s, error %.3f px, change %.3f px", step, fit.name, fit.error_px, change.max())
        if change.max() < _SETTLED_PX:
            break
    if fit is not None and fit.name == "field":
        for _ in range(_DENSE_STEPS):
            normal = blocks.normal_equations(displacement, is_clear(points, chance))
            displacement = improved(displacement, normal, survey.unit)
            (points,) = blocks.along(displacement)
        fit = replace(fit, displacement=displacement)
    # The rival is looked at only now: land that repeats itself fits there as well, but no better than the model fits here.
    rival, at_rest = blocks.along(_aside(survey, displacement, blocks.rival), NO_DISPLACEMENT)
    return _Refined(
        fit=fit, points=points, at_rest=at_rest.correlation, chance=chance, rival=np.nan_to_num(rival.correlation**2)
    )


def _aside(survey: Survey, displacement: Displacement, off: Move) -> Displacement:
    """A displacement, moved as a whole."""
    east, north = (part * unit for part, unit in zip(off, survey.unit, strict=True))
    return displacement.model_copy(update={"east": displacement.east + east, "north": displacement.north + north})


def _judged(survey: Survey, align: AlignConfig, found: _Refined) -> Estimate:
    """The estimate with its decision."""
    fit, points = found.fit, found.points
    tried, clear = np.isfinite(points.correlation), is_clear(points, found.chance)
    used = agrees(points, clear)
    agreeing = points.only(used)
    before, after = _mean(found.at_rest), _mean(points.correlation)
    residual = _rms(agreeing.remainder)
    shares = explained(points, np.maximum(found.chance, found.rival))[tried]
    evidence = Evidence(
        tried=int(tried.sum()),
        clear=int(clear.sum()),
        agreeing=len(agreeing),
        explained=float(np.quantile(shares, _BETTER)) if shares.size else 0.0,
        residual_px=residual,
        error_px=0.0 if fit is None else fit.error_px,
    )
    decision, doubt = decide(evidence, align)
    displacement = NO_DISPLACEMENT if fit is None else fit.displacement
    mean = survey.mean_move(displacement)
    told = (
        f"{mean[0]:+.2f} east, {mean[1]:+.2f} north coarse px, {len(agreeing)} tie points keep {residual:.2f}, "
        f"correlation {before:.3f} to {after:.3f}"
    )
    figures = _Figures(
        correlation_before=before,
        correlation_after=after,
        band_nm=survey.band_nm(0),
        residual_before_px=_rms(agreeing.move) if len(agreeing) else None,
        residual_after_px=residual if len(agreeing) else None,
        tie_points=len(agreeing),
        tie_points_tried=evidence.tried,
    )
    all_agree = evidence.agreeing == evidence.tried > 0 and evidence.explained >= align.min_explained
    if (
        decision == "refuse"
        and evidence.tried < align.min_tie_points
        and all_agree
        and math.hypot(*mean) <= _AT_REST_PX
    ):
        reason = f"the overlap is too small to measure a displacement, and shows none ({told}); the geometry was left as it was"
        made = _told(survey, "warn", reason, figures=figures)
    elif decision == "refuse" or fit is None:
        made = _told(survey, "refuse", f"{doubt} ({told}); the geometry was left as it was", figures=figures)
    else:
        what = _IN_WORDS[fit.name] if decision == "accept" else doubt
        made = _told(survey, decision, f"{what} ({told})", displacement, model=fit.name, figures=figures)
    return replace(made, points=points, used=used)


class _Figures(TypedDict, total=False):
    """What was measured, as fields of the record."""

    correlation_before: float
    correlation_after: float
    band_nm: float
    residual_before_px: float | None
    residual_after_px: float | None
    tie_points: int
    tie_points_tried: int


def _told(
    survey: Survey,
    decision: Decision,
    reason: str,
    displacement: Displacement = NO_DISPLACEMENT,
    *,
    model: ModelName = "none",
    figures: _Figures | None = None,
) -> Estimate:
    east, north = survey.mean_move(displacement)
    gsd = survey.pair.hsi.gsd_m
    record = Registration(
        decision=decision,
        reason=reason,
        model=model,
        east=east * survey.unit[0],
        north=north * survey.unit[1],
        east_m=east * gsd,
        north_m=north * gsd,
        displacement=displacement,
        **({"correlation_before": None, "correlation_after": None, "band_nm": None} | (figures or {})),
    )
    return Estimate(survey=survey, registration=record, points=None, used=np.zeros(0, bool))


def _mean(values: Array) -> float:
    """Mean of what is known, 0 if nothing is."""
    known = values[np.isfinite(values)]
    return float(known.mean()) if known.size else 0.0


def _rms(vectors: Array) -> float:
    """Root mean square length of vectors (2, n), 0 if there are none."""
    return float(np.sqrt((vectors**2).sum(axis=0).mean())) if vectors.size else 0.0
