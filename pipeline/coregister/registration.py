"""The displacement of an MSI against an HSI: found by correlation, refined by the forward model, decided on by its tie points.

search    one whole-pixel move for the scene                                        search.find_peak
spread    one move per window, near that one                                        search.window_moves
refine    tie points along the model so far -> the model that predicts them best    tiepoints.measure, fitting.fit_best
decide    accept, warn or refuse                                                    decision.decide
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from catalogs.pairs import ScenePair
from pipeline.cluster import Spread, spread_over
from pipeline.config import AlignConfig
from pipeline.coregister.decision import Decision, Evidence, decide
from pipeline.coregister.dense import Normal, improved, normal_equations
from pipeline.coregister.fitting import MODELS, Fit, ModelName, fit_best
from pipeline.coregister.response import learned, moments
from pipeline.coregister.search import find_peak, search_windows, window_moves
from pipeline.coregister.tiepoints import TiePoints, measure
from pipeline.coregister.views import Array, Move, Survey, View, open_view
from pipeline.displacement import NO_DISPLACEMENT, Displacement
from pipeline.grids import NestedGrids
from pipeline.job import Registration

log = logging.getLogger(__name__)

_BANDS = 4
"""MSI bands that take part at most: those that match best."""
_LOCAL_PX = 5
"""HSI pixels by which a window may differ from the move of the scene."""
_MATCHED_SIGMA_PX = 0.15
"""Error of a whole-pixel match with a parabola through its peak."""
_MAX_STEPS = 6
_DENSE_STEPS = 3
"""Of the refinement of a field by every pixel."""
_SETTLED_PX = 3e-3
"""Change of the model (coarse px) at which refining ends."""
_DECOY_PX = 4.0
"""Coarse pixels east or west and north or south: nothing matches there but by chance."""
_MATCHED_CORRELATION = 0.3
"""Of the detail of a window, from which its whole-pixel match is a start."""
_CLEAR_EXPLAINED = 0.2
"""Of what chance leaves unexplained, from which a window's tie point can be believed ..."""
_CLEAR_SIGMA_PX = 0.25
"""... with at most this standard error ..."""
_CLEAR_SPLIT_PX = 0.75
"""... if the even and the odd pixels differ by no more."""
_NEAR_PX = 1.5
"""A step this long has left the range in which a linear step means anything."""
_CACHE_BYTES = 256 << 20

_AGREE_PX = 0.15
"""A tie point that keeps no more agrees with the displacement, however small the others' distances are."""
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
    pair: ScenePair, grids: NestedGrids, align: AlignConfig, psf_sigma_px: float, *, dask: str | None = None
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
    dask : str or None
        `local`, or the address of a scheduler, whose workers measure the tie points of a large scene.

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
    limit = int(align.max_shift_px)
    seen = [open_view(survey, window, _square((0, 0), limit + 1)) for window in search_windows(survey)]
    peak = find_peak(seen, limit, _BANDS)
    if peak is None:
        return _told(survey, "refuse", "the images have too few valid pixels in common")
    log.debug("search: %s", peak)
    survey = survey.with_bands(peak.bands)
    if peak.at_rim:
        reason = f"the best match lies at the rim of the search of {limit} coarse px; raise align.max_shift_px or check the grids"
        return _told(survey, "refuse", reason)
    with spread_over(dask if len(survey.blocks) >= _WORTH_A_CLUSTER else None) as spread:
        refined = _refined(_Blocks(survey, peak.move, spread), align)
    return _judged(survey, align, refined)


class _Blocks:
    """The blocks of a survey; in this process views are kept between passes as far as memory allows."""

    def __init__(self, survey: Survey, around: Move, spread: Spread) -> None:
        self.survey, self.around, self._spread = survey, around, spread
        self._reach = [*_square(around, _LOCAL_PX + _DECOY_PX), (0.0, 0.0)]
        self._kept: dict[int, View] = {}
        self.mixing = survey.mixing
        """Weights of the HSI's channels in each target; to be replaced when they have been learned."""

    def moments(self, displacement: Displacement) -> Array:
        """See `response.moments`."""
        return np.concatenate(list(self._spread(partial(self._moments, displacement), range(len(self.survey.blocks)))))

    def normals(self, displacement: Displacement, clear: NDArray[np.bool_]) -> list[Normal]:
        """See `dense.normal_equations`; `clear` is of all windows in the order of `along`."""
        sizes = [(w[0].stop - w[0].start) * (w[1].stop - w[1].start) // self.survey.edge**2 for w in self.survey.blocks]
        of_block = np.split(clear, np.cumsum(sizes)[:-1])
        return list(self._spread(partial(self._normals, displacement), enumerate(of_block)))

    def matched(self) -> TiePoints:
        """Whole-pixel matches of all windows."""
        return TiePoints.joined(list(self._spread(self._matched, range(len(self.survey.blocks)))))

    def along(self, *displacements: Displacement) -> list[TiePoints]:
        """Tie points of all windows along each of some displacements."""
        measured = list(self._spread(partial(self._measured, displacements), range(len(self.survey.blocks))))
        return [TiePoints.joined(list(parts)) for parts in zip(*measured, strict=True)]

    def __getstate__(self) -> dict[str, Any]:
        # What goes to a worker: it reads its block itself.
        return self.__dict__ | {"_kept": {}, "_spread": map}

    def _matched(self, index: int) -> TiePoints:
        return _matched(self._view(index), self.around)

    def _moments(self, displacement: Displacement, index: int) -> Array:
        return moments(self._view(index), displacement)

    def _normals(self, displacement: Displacement, block: tuple[int, NDArray[np.bool_]]) -> Normal:
        index, clear = block
        return normal_equations(self._view(index), self.mixing, displacement, clear)

    def _measured(self, displacements: tuple[Displacement, ...], index: int) -> list[TiePoints]:
        view = self._view(index)
        return [measure(view, self.mixing, displacement) for displacement in displacements]

    def _view(self, index: int) -> View:
        if index in self._kept:
            return self._kept[index]
        view = open_view(self.survey, self.survey.blocks[index], self._reach)
        if sum(kept.nbytes for kept in self._kept.values()) + view.nbytes <= _CACHE_BYTES:
            self._kept[index] = view
        return view


@dataclass(frozen=True, kw_only=True)
class _Refined:
    """The best model, and what the windows say of it."""

    fit: Fit | None
    points: TiePoints
    """Along the model."""
    at_rest: Array
    """Correlation of each window without any move."""
    chance: Array
    """See `_chance`."""


def _refined(blocks: _Blocks, align: AlignConfig) -> _Refined:
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
    points, *decoys = blocks.along(displacement, *_decoys(survey, displacement))
    chance = _chance(decoys)
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
            displacement = improved(displacement, blocks.normals(displacement, is_clear(points, chance)), survey.unit)
            (points,) = blocks.along(displacement)
        fit = replace(fit, displacement=displacement)
    (at_rest,) = blocks.along(NO_DISPLACEMENT)
    return _Refined(fit=fit, points=points, at_rest=at_rest.correlation, chance=chance)


def _decoys(survey: Survey, displacement: Displacement) -> list[Displacement]:
    """Displacements that are surely wrong."""
    return [
        displacement.model_copy(
            update={
                "east": displacement.east + x * _DECOY_PX * survey.unit[0],
                "north": displacement.north + y * _DECOY_PX * survey.unit[1],
            }
        )
        for x, y in ((1, 1), (-1, 1), (1, -1), (-1, -1))
    ]


def _chance(decoys: list[TiePoints]) -> Array:
    """Share of its target's variance that the regression explains in each window where the MSI is out of place."""
    variance = np.array([points.correlation**2 for points in decoys])
    known = np.isfinite(variance)
    # A window that no decoy reaches is compared with nothing: that chance explains nothing is the least that is true.
    return np.asarray(np.where(known, variance, 0.0).sum(axis=0) / np.maximum(known.sum(axis=0), 1))


def _matched(view: View, around: Move) -> TiePoints:
    """Whole-pixel matches as tie points: a start for the model."""
    move, correlation = window_moves(view, around, _LOCAL_PX)
    edge = view.survey.edge
    x, y = (axis.reshape(move.shape[1], edge, move.shape[2], edge).mean(axis=(1, 3)) for axis in (view.x, view.y))
    good = np.isfinite(move[0]) & (correlation > _MATCHED_CORRELATION)
    n = int(good.sum())
    return TiePoints(
        x=x[good],
        y=y[good],
        move=move[:, good],
        remainder=move[:, good] - np.asarray(around)[:, None],
        sigma=np.full(n, _MATCHED_SIGMA_PX),
        split=np.zeros(n),
        correlation=correlation[good],
    )


def is_clear(points: TiePoints, chance: Array) -> NDArray[np.bool_]:
    """Which tie points can be believed by themselves, shape (point,); `chance` is the variance explained out of place."""
    return np.asarray(
        (explained(points, chance) >= _CLEAR_EXPLAINED)
        & (points.sigma <= _CLEAR_SIGMA_PX)
        & (points.split <= _CLEAR_SPLIT_PX)
        & (np.hypot(*points.remainder) <= _NEAR_PX)
    )


def explained(points: TiePoints, chance: Array) -> Array:
    """Share that the right place explains of the variance that a wrong one leaves, at most 1, shape (point,)."""
    return np.asarray(1.0 - (1.0 - points.correlation**2) / (1.0 - np.minimum(chance, 0.999)))


def _judged(survey: Survey, align: AlignConfig, found: _Refined) -> Estimate:
    """The estimate with its decision."""
    fit, points = found.fit, found.points
    tried, clear = np.isfinite(points.correlation), is_clear(points, found.chance)
    distance = np.hypot(*points.remainder)
    near = max(_AGREE_PX, 3.0 * float(np.median(distance[clear]))) if clear.any() else 0.0
    used = clear & (distance <= near)
    agreeing = points.only(used)
    before, after = _mean(found.at_rest), _mean(points.correlation)
    residual = _rms(agreeing.remainder)
    evidence = Evidence(
        tried=int(tried.sum()),
        clear=int(clear.sum()),
        agreeing=len(agreeing),
        explained=_mean(explained(points, found.chance)),
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
        residual_before_px=_rms(agreeing.move),
        residual_after_px=residual,
        tie_points=len(agreeing),
        tie_points_tried=evidence.tried,
    )
    if decision == "refuse" or fit is None:
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
    residual_before_px: float
    residual_after_px: float
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


def _square(middle: Move, half: float) -> list[Move]:
    return [(middle[0] + x * half, middle[1] + y * half) for x in (-1, 1) for y in (-1, 1)]
