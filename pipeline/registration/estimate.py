"""The displacement of an MSI against an HSI: found by correlation, refined by the forward model, decided on by its tie points.

The module is one idea, the order of these steps:

    search    one whole-pixel move for the scene                                        search.find_peak
    spread    one move per window, near that one                                        search.window_moves
    learn     what each MSI band sees of the HSI's spectrum                             response.learned
    refine    tie points along the model so far -> the model that predicts them best    tie_points.measure, fit.fit_best
    polish    a field: all of its coefficients from all pixels                          dense_field.improved
    decide    accept, warn or refuse                                                    decision.decide

A displacement that is refused is not used: the record then has none, and its reason has the figures.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

from hyperfuse.catalogs.bands import detector_of
from hyperfuse.catalogs.pairs import ScenePair
from hyperfuse.pipeline.config import AlignConfig
from hyperfuse.pipeline.geometry.displacement import NO_DISPLACEMENT, Displacement
from hyperfuse.pipeline.geometry.grids import NestedGrids
from hyperfuse.pipeline.pipelining import ParallelMap, Workers, in_this_process
from hyperfuse.pipeline.registration.blocks import Blocks, square
from hyperfuse.pipeline.registration.decision import (
    Decision,
    Evidence,
    agrees,
    chance_level,
    decide,
    explained,
    is_clear,
    is_clear_elsewhere,
)
from hyperfuse.pipeline.registration.dense_field import improved
from hyperfuse.pipeline.registration.detectors import Spectral, by_detector, in_words, spectral
from hyperfuse.pipeline.registration.fit import MODELS, Fit, ModelName, fit_best, fit_through
from hyperfuse.pipeline.registration.parts import Part, find_parts
from hyperfuse.pipeline.registration.record import DisplacedPart, Registration
from hyperfuse.pipeline.registration.response import learned
from hyperfuse.pipeline.registration.search import WHOLE_PX, Peak, Shown, detail, edges, find_peak, search_windows
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
_ENOUGH_WINDOWS = 320
"""Windows beyond which a sample of them is tried first ..."""
_SAMPLED_WINDOWS = 144
"""... of about so many, whatever the size of the scene ..."""
_MOST_WINDOWS = 400
"""Windows that a field is measured in at most (about), spread over the scene: it has fewer knots."""
_CERTAIN_PX = 0.05
"""... and suffices if a shift or an affine move predicts unseen tie points to this (coarse px), and no part contradicts."""
_SPECTRAL_WINDOWS = 100
"""About so many windows tell the displacement of each detector."""
_CORRELATED = 0.5
"""Correlation of the detail from which images have the same contrast."""
_BEYOND_PX = 64
"""Coarse pixels up to which a match is looked for where there is none within the range of the search."""
_ASIDE_PX = 0.75
"""Whole-pixel matches nearer to the model are left to its own linear step (coarse px)."""
_ASIDE_STEPS = 2
"""Measurements of windows beside the model, each along the last one."""
_SEEN_PX = 0.1
"""Mean move (coarse px) up to which a small overlap is said to show none."""
_NAMED_PARTS = 3
"""Displaced parts that the reason names."""
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
    spectral: Spectral | None = None
    """What parts of the spectrum say beside the displacement; None where nothing was measured."""


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
    with (workers if len(survey.blocks) >= _WORTH_A_CLUSTER else in_this_process)() as parallel_map:
        return _searched(survey, align, parallel_map)


def _searched(survey: Survey, align: AlignConfig, parallel_map: ParallelMap) -> Estimate:
    """The estimate within the range of the search; where it is refused, what the edges say, and what lies beyond."""
    # One pixel further than asked for: a match there says that the truth may lie beyond.
    limit = math.ceil(align.max_shift_px) + 1
    first: Estimate | None = None
    bands: tuple[int, ...] = ()
    for shown in (detail, edges):
        seen = (open_view(survey, window, square((0, 0), limit + 1)) for window in search_windows(survey))
        peak = find_peak(survey, seen, limit, _BANDS, shown=shown)
        if peak is None:
            return first or _told(survey, "refuse", "the images have too few valid pixels in common")
        log.debug("search: %s", peak)
        if first is not None and not peak.stands_out:
            break
        bands = bands or peak.bands
        if peak.at_rim:
            reason = f"the best match lies at the rim of the search, {limit} coarse px"
            made = _told(survey.with_bands(peak.bands), "refuse", reason)
        else:
            made = _attempt(survey.with_bands(peak.bands), peak, align, parallel_map, shown)
        if made.registration.decision != "refuse":
            return _with_range(made, align)
        first = first or made
        if peak.correlation >= _CORRELATED:
            break  # what they show has the same contrast, so edges would tell nothing new
    assert first is not None  # noqa: S101 (the loop ran)
    return _with_range(_looked_beyond(survey.with_bands(bands), first, align, parallel_map), align)


def _attempt(survey: Survey, peak: Peak, align: AlignConfig, parallel_map: ParallelMap, shown: Shown) -> Estimate:
    """The estimate from one peak: first from a sample of a large scene, which suffices where a simple model explains it."""
    start: Fit | None = None
    if survey.n_windows > _ENOUGH_WINDOWS:
        sample = survey.sampled(_SAMPLED_WINDOWS)
        blocks = Blocks(sample, peak.move, peak.rival, parallel_map, shown=shown)
        refined = _refined(blocks, align, None)
        made = _judged(sample, align, refined)
        fit = refined.fit
        simple = fit is not None and fit.name != "field" and fit.error_px <= _CERTAIN_PX and not refined.parts
        if fit is None or (made.registration.decision == "accept" and simple) or refined.is_nothing(align):
            return _with_detectors(made, parallel_map)
        start = fit
        if survey.n_windows > 1.5 * _MOST_WINDOWS:
            survey = survey.sampled(_MOST_WINDOWS)
    blocks = Blocks(survey, peak.move, peak.rival, parallel_map, shown=shown)
    return _with_detectors(_judged(survey, align, _refined(blocks, align, start)), parallel_map)


def _looked_beyond(survey: Survey, refused: Estimate, align: AlignConfig, parallel_map: ParallelMap) -> Estimate:
    """What is refused within the range of the search, with a match beyond it named if there is one."""
    limit = _BEYOND_PX
    if align.max_shift_px >= limit:
        return refused
    windows = search_windows(survey, WHOLE_PX // 2)
    seen = (open_view(survey, window, square((0, 0), limit + 1)) for window in windows)
    peak = find_peak(survey, seen, limit, _BANDS)
    if peak is None or peak.at_rim or not peak.stands_out or max(map(abs, peak.move)) <= align.max_shift_px:
        return refused
    sample = survey.with_bands(peak.bands).sampled(_SAMPLED_WINDOWS)
    there = _judged(sample, align, _refined(Blocks(sample, peak.move, peak.rival, parallel_map), align, None))
    if there.registration.decision == "refuse":
        return refused
    east, north = sample.mean_move(there.registration.displacement)
    needed = math.ceil(max(abs(east), abs(north))) + 1
    reason = (
        f"the images match {east:+.1f} east, {north:+.1f} north coarse px away ({there.registration.tie_points} tie points "
        f"agree): raise align.max_shift_px to {needed} or more, or correct the georeference; the geometry was left as it was"
    )
    return _told(survey, "refuse", reason)


def _with_range(made: Estimate, align: AlignConfig) -> Estimate:
    """The estimate with the range that was searched, in its record and in the reason of a refusal."""
    record = made.registration
    reason = record.reason
    if record.decision == "refuse":
        reason += f"; searched up to {align.max_shift_px:g} coarse px (align.max_shift_px)"
    return replace(made, registration=record.model_copy(update={"reason": reason, "searched_px": align.max_shift_px}))


def _with_detectors(made: Estimate, parallel_map: ParallelMap) -> Estimate:
    """The estimate with the displacement of each detector beside it."""
    record, survey = made.registration, made.survey
    good = survey.pair.hsi.bands.center_nm[list(survey.pair.hsi.good_bands)]
    if record.decision == "refuse" or made.points is None or len(good) < 2:
        return made
    lead = int(detector_of(survey.channel_nm[0]))
    nm = survey.pair.msi.bands.center_nm
    others = [k for k in survey.pair.msi.good_bands if detector_of(nm[k]) != lead][:_BANDS]
    sizes = [(rows.stop - rows.start) * (cols.stop - cols.start) // survey.edge**2 for rows, cols in survey.blocks]
    n_blocks = min(len(sizes), math.ceil(_SPECTRAL_WINDOWS / max(sizes)))
    picked = np.linspace(0, len(sizes) - 1, n_blocks).round().astype(int)
    by_spectrum = survey.by_spectrum([*survey.bands, *others], [survey.blocks[k] for k in picked])
    # Where the scene does not agree with its displacement, its parts of the spectrum would not either.
    of_block = np.split(made.used, np.cumsum(sizes)[:-1])
    used = np.concatenate([of_block[k] for k in picked])
    if not len(by_spectrum.mixing):
        return made
    blocks = Blocks.of_spectrum(by_spectrum, record.displacement, parallel_map)

    def measured(displacement: Displacement) -> list[TiePoints]:
        return [points.only(used) for points in blocks.each(displacement)]

    found = spectral(by_spectrum, record.displacement, measured)
    detectors = by_detector(found, good, lead)
    words = in_words(detectors)
    reason = record.reason + (f"; {words}" if words else "")
    return replace(
        made, registration=record.model_copy(update={"detectors": detectors, "reason": reason}), spectral=found
    )


@dataclass(frozen=True, kw_only=True)
class _Refined:
    """The best model, and what the windows say of it."""

    fit: Fit | None
    points: TiePoints
    """Along the model; those that match elsewhere, there."""
    clear: NDArray[np.bool_]
    """Those that can be believed by themselves, along the model or elsewhere."""
    used: NDArray[np.bool_]
    """Those that agree with the model."""
    parts: tuple[Part, ...]
    at_rest: Array
    """Correlation of each window without any move."""
    chance: Array
    """See `decision.chance_level`."""
    rival: Array
    """The same at the place where the whole scene matches next best."""

    @property
    def explained(self) -> float:
        """Of what a wrong place leaves unexplained, in the better windows."""
        tried = np.isfinite(self.points.correlation)
        shares = explained(self.points, np.maximum(self.chance, self.rival))[tried]
        return float(np.quantile(shares, _BETTER)) if shares.size else 0.0

    def is_nothing(self, align: AlignConfig) -> bool:
        """Whether the images do not show the same."""
        return self.explained < align.min_explained


def _refined(blocks: Blocks, align: AlignConfig, start: Fit | None) -> _Refined:
    """Refine from whole-pixel matches, or from where a sample of the windows has led, until the model settles."""
    survey = blocks.survey
    models = MODELS[: MODELS.index(align.most) + 1]

    def best(points: TiePoints) -> Fit:
        return fit_best(points, models, bounds=survey.bounds, unit=survey.unit, spacing=survey.edge)

    displacement, matched = _begun(blocks, start, best)
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
        fit, points = _polished(blocks, fit, chance)
    if fit is not None:
        displacement = fit.displacement
    heard = _Heard.of(blocks, displacement, points, chance, matched)
    if fit is not None and heard.parts and align.most == "field":
        inside = heard.used | np.any([part.members for part in heard.parts], axis=0)
        through = fit_through(
            heard.points.only(inside), fit.displacement, bounds=survey.bounds, unit=survey.unit, spacing=survey.edge
        )
        if through is not None:
            fit, points = _polished(blocks, through, chance)
            displacement = fit.displacement
            # The parts stay named as they were found: the field follows them, but is soft where the scene has a step.
            heard = replace(_Heard.of(blocks, displacement, points, chance, matched), parts=heard.parts)
    # The rival is looked at only now: land that repeats itself fits there as well, but no better than the model fits here.
    rival, at_rest = blocks.along(_aside(survey, displacement, blocks.rival), NO_DISPLACEMENT)
    return _Refined(
        fit=fit, points=heard.points, clear=heard.clear, used=heard.used, parts=heard.parts, at_rest=at_rest.correlation,
        chance=chance, rival=np.nan_to_num(rival.correlation**2),
    )  # fmt: skip


def _begun(
    blocks: Blocks, start: Fit | None, best: Callable[[TiePoints], Fit]
) -> tuple[Displacement, TiePoints | None]:
    """A first displacement, and the whole-pixel matches that it comes from; None where a sample has led to it."""
    if start is not None:
        return start.displacement, None
    matched, unit = blocks.matched(), blocks.survey.unit
    known = np.isfinite(matched.move[0])
    if known.any():
        return best(matched.only(known)).displacement, matched
    return Displacement(east=blocks.around[0] * unit[0], north=blocks.around[1] * unit[1]), matched


def _polished(blocks: Blocks, fit: Fit, chance: Array) -> tuple[Fit, TiePoints]:
    """A field from every pixel, and the tie points along it."""
    displacement = fit.displacement
    (points,) = blocks.along(displacement)
    for _ in range(_DENSE_STEPS):
        normal = blocks.normal_equations(displacement, is_clear(points, chance))
        displacement = improved(displacement, normal, blocks.survey.unit)
        (points,) = blocks.along(displacement)
    return replace(fit, displacement=displacement), points


@dataclass(frozen=True, kw_only=True)
class _Heard:
    """All windows, those that match elsewhere than along the model included."""

    points: TiePoints
    clear: NDArray[np.bool_]
    used: NDArray[np.bool_]
    parts: tuple[Part, ...]

    @classmethod
    def of(
        cls, blocks: Blocks, displacement: Displacement, points: TiePoints, chance: Array, matched: TiePoints | None
    ) -> _Heard:
        """Look for the windows that do not agree at their own whole-pixel matches."""
        survey = blocks.survey
        clear = is_clear(points, chance)
        used = agrees(points, clear)
        tried = np.isfinite(points.correlation)
        elsewhere = np.zeros(len(points), bool)
        doubtful = tried & ~used
        if doubtful.any():
            matched = matched if matched is not None else blocks.matched(doubtful)
            model = points.move - points.remainder
            aside = np.where(doubtful, np.nan_to_num(matched.move - model), 0.0)
            aside[:, np.hypot(*aside) < _ASIDE_PX] = 0.0
            for _ in range(_ASIDE_STEPS):
                there = blocks.beside(displacement, aside)
                near = np.hypot(*there.remainder) <= 1.0
                aside = aside + np.where(near & aside.any(axis=0), there.remainder, 0.0)
            elsewhere = doubtful & aside.any(axis=0) & is_clear_elsewhere(there, points, chance)
            points = _replaced(points, there, elsewhere, model)
        parts = find_parts(
            points,
            np.nan_to_num(points.remainder),
            (clear & ~used) | elsewhere,
            n_matching=int((clear | elsewhere).sum()),
            unit=survey.unit,
            half_px=survey.edge / 2,
        )
        return cls(points=points, clear=clear | elsewhere, used=used & ~elsewhere, parts=parts)


def _aside(survey: Survey, displacement: Displacement, off: Move) -> Displacement:
    """A displacement, moved as a whole."""
    east, north = (part * unit for part, unit in zip(off, survey.unit, strict=True))
    return displacement.model_copy(update={"east": displacement.east + east, "north": displacement.north + north})


def _replaced(points: TiePoints, other: TiePoints, chosen: NDArray[np.bool_], model: Array) -> TiePoints:
    """Tie points of which the chosen are those of another measurement; `model` is the move along the first, (2, point)."""
    return TiePoints(
        x=np.where(chosen, other.x, points.x),
        y=np.where(chosen, other.y, points.y),
        move=np.where(chosen, other.move, points.move),
        remainder=np.where(chosen, other.move - model, points.remainder),
        sigma=np.where(chosen, other.sigma, points.sigma),
        split=np.where(chosen, other.split, points.split),
        correlation=np.where(chosen, other.correlation, points.correlation),
    )


def _judged(survey: Survey, align: AlignConfig, found: _Refined) -> Estimate:
    """The estimate with its decision."""
    fit, points = found.fit, found.points
    tried = np.isfinite(points.correlation)
    agreeing = points.only(found.used)
    before, after = _mean(found.at_rest), _mean(points.correlation)
    residual = _rms(agreeing.remainder)
    evidence = Evidence(
        tried=int(tried.sum()),
        clear=int(found.clear.sum()),
        agreeing=len(agreeing),
        explained=found.explained,
        residual_px=residual,
        error_px=0.0 if fit is None else fit.error_px,
        parts=_parts_in_words(found.parts, fit),
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
        parts=tuple(
            DisplacedPart(
                share=part.share, bounds=part.bounds, east_px=part.move[0], north_px=part.move[1],
                tie_points=int(part.members.sum()),
            )
            for part in found.parts
        ),
    )  # fmt: skip
    all_agree = evidence.agreeing == evidence.tried > 0 and evidence.explained >= align.min_explained
    size = math.hypot(*mean)
    if decision == "refuse" and evidence.tried < align.min_tie_points and all_agree and size <= _AT_REST_PX:
        error = float(np.sqrt((agreeing.sigma**2).sum())) / len(agreeing)
        shows = "shows none" if size <= max(_SEEN_PX, 2.0 * error) else f"shows one of about {size:.2f} coarse px"
        reason = f"the overlap is too small to be sure of a displacement, and {shows} ({told}); the geometry was left as it was"
        made = _told(survey, "warn", reason, figures=figures)
    elif decision == "refuse" or fit is None:
        made = _told(survey, "refuse", f"{doubt} ({told}); the geometry was left as it was", figures=figures)
    else:
        what = _IN_WORDS[fit.name] if decision == "accept" else doubt
        made = _told(survey, decision, f"{what} ({told})", displacement, model=fit.name, figures=figures)
    return replace(made, points=points, used=found.used)


def _parts_in_words(parts: tuple[Part, ...], fit: Fit | None) -> str:
    """What is said of parts that match elsewhere, and where they lie."""
    if not parts or fit is None:
        return ""
    phrases = [
        f"{part.share:.0%} of the scene (x {part.bounds[0]:.7g} to {part.bounds[2]:.7g}, y {part.bounds[1]:.7g} to "
        f"{part.bounds[3]:.7g}) lies {math.hypot(*part.move):.1f} coarse px from the rest ({part.move[0]:+.1f} east, "
        f"{part.move[1]:+.1f} north)"
        for part in parts[:_NAMED_PARTS]
    ]
    more = f", and {len(parts) - _NAMED_PARTS} more parts" if len(parts) > _NAMED_PARTS else ""
    # ^ a part that the field follows is right but for the rim
    how = "followed by a smooth field, which is soft along the step" if fit.name == "field" else "not corrected"
    return f"{'; '.join(phrases)}{more}; {how}"


class _Figures(TypedDict, total=False):
    """What was measured, as fields of the record."""

    correlation_before: float
    correlation_after: float
    band_nm: float
    residual_before_px: float | None
    residual_after_px: float | None
    tie_points: int
    tie_points_tried: int
    parts: tuple[DisplacedPart, ...]


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
