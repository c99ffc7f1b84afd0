"""Which MSI goes with which HSI: candidates ranked with reasons, from what a catalogue knows of the scenes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta

from catalogs.items import SceneItem


@dataclass(frozen=True, kw_only=True)
class PairingRules:
    """What a partner must fulfil, and what makes one better than another."""

    min_overlap: float = 0.2
    """Share of the HSI's footprint that an MSI must cover."""
    max_gap: timedelta = timedelta(days=30)
    """Longest time between the acquisitions."""
    max_cloud: float = 0.5
    """Largest share of the overlap that may be clouded, or masked otherwise, in the MSI; and of the HSI as a whole."""
    weights: Mapping[str, float] = field(
        default_factory=lambda: {"overlap": 2.0, "gap": 1.0, "cloud": 1.0, "sun": 0.5, "view": 0.5, "season": 0.5}
    )
    """Exponents of the criteria in the score."""
    overrides: Mapping[str, str] = field(default_factory=dict)
    """Partners that the user chose, MSI identifier by HSI identifier, whatever the rules say."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Candidate:
    """An MSI that fulfils the rules for an HSI."""

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
    """Angle between the lines of sight (degrees)."""
    season_difference: float | None
    """Days between the acquisitions on the circle of the year, 0 to 183."""
    score: float
    """0 to 1: weighted geometric mean of the criteria."""
    reasons: tuple[str, ...]
    """Each criterion in words."""


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


MAX_CANDIDATES = 10
"""Candidates that are kept for each HSI."""


def pair(items: Iterable[SceneItem], rules: PairingRules) -> list[Pairing]:
    """One pairing for each HSI, sorted by identifier."""
    raise NotImplementedError
