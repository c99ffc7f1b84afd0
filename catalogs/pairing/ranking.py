"""Which MSI goes with which HSI: candidates ranked with reasons, from what a catalogue knows of the scenes.

A score is the weighted geometric mean of six criteria, each 1 at its best: a partner that fails in one is not saved by
the others. Overlap counts as it is and cloud as the clear share of the overlap; a time gap halves at `HALF_GAP`; sun
and view lose in proportion to the angle between both directions, down to nothing at a right angle and at half of one,
because relief shifts pixels with the view and only shades them with the sun; the season is the cosine over the circle
of the year. What is not known counts as `UNKNOWN`. These scales are judgement, not measurement: they rank, and the
limits in the rules are what refuses.

Why no mosaic of tiles: a source is one product, and two granules of one acquisition are two. Where a neighbor of the
same acquisition would cover more, the reason says so: fuse the scene with each, and mosaic the products.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, NamedTuple

import numpy as np
import shapely
from numpy.typing import NDArray
from shapely.geometry.base import BaseGeometry

from hyperfuse.catalogs.pairing.likeness import (
    F64,
    YEAR_DAYS,
    cloud_of,
    cloud_over,
    equal_area,
    knows_clouds,
    season_days,
    seconds,
    sun_difference,
    sun_of,
    view_difference,
    view_of,
)
from hyperfuse.catalogs.pairs import RATIOS
from hyperfuse.catalogs.stac.items import SceneItem

log = logging.getLogger(__name__)

CRITERIA = ("overlap", "gap", "cloud", "sun", "view", "season")
MAX_CANDIDATES = 10
"""Candidates that are kept for each HSI."""
HALF_GAP = timedelta(days=10)
"""Time between the acquisitions after which the land counts as half changed."""
UNKNOWN = 0.5
"""What a criterion counts whose value nobody told."""
_TOUCH = 1e-9
"""Share of the HSI below which footprints only touch."""
_LEAST = 0.01
"""What a criterion counts at least, so that the others still rank."""
_SAME_ACQUISITION = timedelta(minutes=10)
_WORTH_TELLING = 0.05
"""Share of the HSI that a neighboring tile must add to be named."""


@dataclass(frozen=True, kw_only=True)
class PairingRules:
    """What a partner must fulfil, and what makes one better than another.

    Raises
    ------
    ValueError
        If a share is out of range, a time negative, or a weight unknown or negative.
    """

    min_overlap: float = 0.2
    """Share of the HSI's footprint that an MSI must cover."""
    max_gap: timedelta = timedelta(days=30)
    """Longest time between the acquisitions."""
    max_cloud: float = 0.5
    """Largest share of the overlap that may be clouded, or masked otherwise, in the MSI; and of the HSI as a whole."""
    weights: Mapping[str, float] = field(
        default_factory=lambda: {"overlap": 2.0, "gap": 1.0, "cloud": 1.0, "sun": 0.5, "view": 0.5, "season": 0.5}
    )
    """Weights of the criteria in the score; one that is not named counts nothing."""
    overrides: Mapping[str, str] = field(default_factory=dict)
    """Partners that the user chose, MSI identifier by HSI identifier, whatever the limits say; an empty one means none."""

    def __post_init__(self) -> None:
        for name in ("min_overlap", "max_cloud"):
            if not 0 <= (value := getattr(self, name)) <= 1:
                raise ValueError(f"{name} is {value:g}, expected a share from 0 to 1")
        if self.max_gap < timedelta():
            raise ValueError(f"max_gap is {self.max_gap}, expected no negative time")
        if unknown := sorted(set(self.weights) - set(CRITERIA)):
            raise ValueError(f"there is no criterion {unknown[0]!r}; choose some of {', '.join(CRITERIA)}")
        if min(self.weights.values(), default=0) < 0 or not sum(self.weights.values()) > 0:
            raise ValueError(f"weights are {dict(self.weights)}, expected none negative and some positive")


@dataclass(frozen=True, kw_only=True, eq=False)
class Candidate:
    """An MSI that fulfils the rules for an HSI, or that the user chose."""

    hsi: SceneItem
    msi: SceneItem
    overlap: float
    """Share of the HSI's footprint that the MSI covers, 0 to 1."""
    gap: timedelta | None
    """Time between the acquisitions; None if one is unknown."""
    cloud: float | None
    """Share of the overlap that is not clear in the MSI, 0 to 1; of the whole MSI where nothing finer is known."""
    sun_difference: float | None
    """Angle between the directions of the sun (degrees)."""
    view_difference: float | None
    """Angle between the lines of sight (degrees); the least possible where an azimuth is unknown."""
    season_difference: float | None
    """Days between the acquisitions on the circle of the year, 0 to 183."""
    score: float
    """0 to 1: weighted geometric mean of the criteria."""
    reasons: tuple[str, ...]
    """Each criterion in words, in the order of `CRITERIA`."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Pairing:
    """The partner of one HSI."""

    hsi: SceneItem
    chosen: Candidate | None
    """The best candidate, or the one that the user chose; None if there is none."""
    candidates: tuple[Candidate, ...]
    """Best first, at most `MAX_CANDIDATES`."""
    reason: str
    """One sentence: why this one, or why none."""


def pair(items: Iterable[SceneItem], rules: PairingRules) -> list[Pairing]:
    """One pairing for each HSI, sorted by identifier.

    Parameters
    ----------
    items : iterable of SceneItem
        Scenes of both roles.
    rules : PairingRules
        An override of what is no HSI scene is told in the log: an archive that lost a scene goes on without it.
    """
    scenes = sorted(items, key=lambda scene: scene.id)
    for missing in sorted(set(rules.overrides) - {scene.id for scene in scenes if scene.role == "hsi"}):
        log.warning("a partner is chosen for %s, which is no HSI scene of the catalogue", missing)
    partners = _Partners.of([scene for scene in scenes if scene.role == "msi"])
    return [_pairing(hsi, partners, rules) for hsi in scenes if hsi.role == "hsi"]


class _Partners(NamedTuple):
    """All MSI scenes as columns, and the index of their footprints."""

    scenes: Sequence[SceneItem]
    areas: NDArray[np.object_]
    """Footprints on the equal-area cylinder."""
    tree: shapely.STRtree
    time: F64
    """Seconds since 1970."""
    gsd_m: F64
    sun: F64
    """Unit vectors, shape (scene, 3)."""
    view: F64
    """Angle to the vertical and azimuth (degrees), shape (scene, 2)."""

    mapped: NDArray[np.bool_]
    """Whether the map of clear pixels shows the clouds."""

    @classmethod
    def of(cls, scenes: Sequence[SceneItem]) -> _Partners:
        areas = np.array([equal_area(scene.footprint) for scene in scenes], dtype=object)
        return cls(
            scenes=scenes,
            areas=areas,
            tree=shapely.STRtree(areas),
            time=np.array([seconds(scene) for scene in scenes], np.float64),
            gsd_m=np.array([scene.gsd_m for scene in scenes], np.float64),
            sun=np.array([sun_of(scene.conditions) for scene in scenes], np.float64).reshape(-1, 3),
            view=np.array([view_of(scene.conditions) for scene in scenes], np.float64).reshape(-1, 2),
            mapped=np.array([knows_clouds(scene) for scene in scenes], bool),
        )


class _Measured(NamedTuple):
    """The criteria of some partners of one HSI, as columns; NaN where something is unknown."""

    place: NDArray[np.intp]
    """Positions among the partners."""
    overlap: F64
    gap: F64
    """Seconds."""
    cloud: F64
    sun: F64
    view: F64
    season: F64

    def only(self, keep: NDArray[Any]) -> _Measured:
        """Some rows, by a mask or in an order."""
        return _Measured(*(column[keep] for column in self))


def _pairing(hsi: SceneItem, partners: _Partners, rules: PairingRules) -> Pairing:
    if hsi.id in rules.overrides:
        return _overridden(hsi, partners, rules)
    if (cloud := cloud_of(hsi)) > rules.max_cloud:
        return _none(hsi, f"it is itself clouded or masked to {cloud:.0%}, above the {rules.max_cloud:.0%} allowed")
    area = equal_area(hsi.footprint)
    met = np.sort(partners.tree.query(area, predicate="intersects"))
    if not met.size:
        return _none(hsi, f"none of {len(partners.scenes)} MSI scenes meets it")
    fitting, refused = _fitting(hsi, area, met, partners, rules)
    if not fitting.place.size:
        why = ", ".join(f"{n} {reason}" for reason, n in refused.items() if n)
        return _none(hsi, f"of {met.size} MSI scenes that meet it, {why}")
    score = _score(fitting, rules)
    order = np.argsort(-score, kind="stable")
    best = fitting.only(order[:MAX_CANDIDATES])
    candidates = _candidates(hsi, partners, best, score[order])
    chosen = candidates[0]
    reason = (
        f"{chosen.msi.id} is the best of {score.size} that fit, score {chosen.score:.2f}: {', '.join(chosen.reasons)}"
    )
    return Pairing(
        hsi=hsi, chosen=chosen, candidates=candidates, reason=reason + _neighbors(chosen, area, partners, fitting)
    )


def _fitting(
    hsi: SceneItem, area: BaseGeometry, met: NDArray[np.intp], partners: _Partners, rules: PairingRules
) -> tuple[_Measured, dict[str, int]]:
    """Partners that fulfil the rules, and how many fail in which; the cheap rules come first."""
    refused: dict[str, int] = {}

    def sift(keep: NDArray[Any], why: str) -> None:
        nonlocal met
        refused[why] = int(met.size - np.count_nonzero(keep))
        met = np.asarray(met[keep], np.intp)

    ratio = np.round(hsi.gsd_m / partners.gsd_m[met])
    sift((ratio >= RATIOS[0]) & (ratio <= RATIOS[1]), f"are not {RATIOS[0]} to {RATIOS[1]} times sharper")
    limit = rules.max_gap.total_seconds()
    # An unknown time is no reason to refuse: it ranks low.
    sift(~(np.abs(partners.time[met] - seconds(hsi)) > limit), f"lie more than {_span(limit)} apart")
    overlap = _overlap(area, met, partners)
    wide = overlap >= max(rules.min_overlap, _TOUCH)
    sift(wide, f"cover less than {rules.min_overlap:.0%} of it")
    measured = _measure(hsi, met, overlap[wide], partners)
    clear = ~(measured.cloud > rules.max_cloud)
    sift(clear, f"are clouded or masked to more than {rules.max_cloud:.0%} there")
    return measured.only(clear), refused


def _measure(hsi: SceneItem, met: NDArray[np.intp], overlap: F64, partners: _Partners) -> _Measured:
    time = seconds(hsi)
    return _Measured(
        place=met,
        overlap=overlap,
        gap=np.abs(partners.time[met] - time),
        cloud=np.array(
            [cloud_over(partners.scenes[i], hsi.footprint, mapped=bool(partners.mapped[i])) for i in met], np.float64
        ),
        sun=sun_difference(partners.sun[met], sun_of(hsi.conditions)),
        view=view_difference(partners.view[met], view_of(hsi.conditions)),
        season=season_days(partners.time[met], time),
    )


def _overlap(area: BaseGeometry, met: NDArray[np.intp], partners: _Partners) -> F64:
    common = shapely.area(shapely.intersection(partners.areas[met], area)) / area.area
    return np.asarray(np.minimum(common, 1.0), np.float64)


def _score(measured: _Measured, rules: PairingRules) -> F64:
    """Weighted geometric mean of the criteria, shape (partner,)."""
    quality = {
        "overlap": measured.overlap,
        "gap": 1 / (1 + measured.gap / HALF_GAP.total_seconds()),
        "cloud": 1 - measured.cloud,
        "sun": 1 - measured.sun / 90,
        "view": 1 - measured.view / 45,
        "season": (1 + np.cos(2 * np.pi * measured.season / YEAR_DAYS)) / 2,
    }
    total = np.zeros(measured.place.size)
    for name, weight in rules.weights.items():
        known = np.where(np.isnan(quality[name]), UNKNOWN, quality[name])
        total += weight * np.log(np.clip(known, _LEAST, 1.0))
    return np.asarray(np.exp(total / sum(rules.weights.values())), np.float64)


def _candidates(hsi: SceneItem, partners: _Partners, measured: _Measured, score: F64) -> tuple[Candidate, ...]:
    """Rows as records, with words."""
    columns = [[None if math.isnan(v) else v for v in column.tolist()] for column in measured[1:]]
    made = []
    for i, overlap, gap, cloud, sun, view, season, value in zip(
        measured.place.tolist(), *columns, score.tolist(), strict=False
    ):
        words = (
            f"overlap {overlap:.0%}",
            "time unknown" if gap is None else f"{_span(gap)} apart",
            "cloud unknown" if cloud is None else f"{cloud:.0%} clouded or masked",
            "sun unknown" if sun is None else f"sun {sun:.0f} deg",
            "view unknown" if view is None else f"view {view:.0f} deg",
            "season unknown" if season is None else f"season {season:.0f} d",
        )
        made.append(
            Candidate(
                hsi=hsi,
                msi=partners.scenes[i],
                overlap=overlap or 0.0,
                gap=None if gap is None else timedelta(seconds=gap),
                cloud=cloud,
                sun_difference=sun,
                view_difference=view,
                season_difference=season,
                score=value,
                reasons=words,
            )
        )
    return tuple(made)


def _overridden(hsi: SceneItem, partners: _Partners, rules: PairingRules) -> Pairing:
    """The partner that the user chose; limits do not count, but there must be something in common."""
    wanted = rules.overrides[hsi.id]
    if not wanted:
        return _none(hsi, "the user wants none")
    index = next((i for i, scene in enumerate(partners.scenes) if scene.id == wanted), None)
    if index is None:
        return _none(hsi, f"the user chose {wanted}, which is no MSI scene of the catalogue")
    met = np.array([index])
    measured = _measure(hsi, met, _overlap(equal_area(hsi.footprint), met, partners), partners)
    if not measured.overlap[0] > _TOUCH:
        return _none(hsi, f"the user chose {wanted}, which does not meet it")
    candidates = _candidates(hsi, partners, measured, _score(measured, rules))
    reason = f"{wanted} was chosen by the user: {', '.join(candidates[0].reasons)}"
    return Pairing(hsi=hsi, chosen=candidates[0], candidates=candidates, reason=reason)


def _neighbors(chosen: Candidate, area: BaseGeometry, partners: _Partners, fitting: _Measured) -> str:
    """A sentence of the tiles beside the chosen one that were taken with it, if they would cover more."""
    if chosen.overlap > 1 - _WORTH_TELLING or chosen.msi.time is None:
        return ""
    moment = chosen.msi.time.timestamp()
    together = [
        i
        for i in fitting.place.tolist()
        if partners.scenes[i].sensor == chosen.msi.sensor
        and abs(partners.time[i] - moment) <= _SAME_ACQUISITION.total_seconds()
    ]
    covered = float(shapely.intersection(shapely.union_all(partners.areas[together]), area).area / area.area)
    if covered < chosen.overlap + _WORTH_TELLING:
        return ""
    names = " and ".join(partners.scenes[i].id for i in together if partners.scenes[i] is not chosen.msi)
    return (
        f"; with {names} of the same acquisition {covered:.0%} would be covered: fuse with each and mosaic the products"
    )


def _none(hsi: SceneItem, why: str) -> Pairing:
    return Pairing(hsi=hsi, chosen=None, candidates=(), reason=f"no partner: {why}")


def _span(length_s: float) -> str:
    """A length of time in words."""
    if length_s < 2 * 3600:
        return f"{length_s / 60:.0f} min"
    return f"{length_s / 3600:.0f} h" if length_s < 2 * 86400 else f"{length_s / 86400:.0f} d"
