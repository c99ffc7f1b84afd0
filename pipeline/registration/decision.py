"""Accept, warn or refuse: whether a measured displacement is believed, and the sentence that says why.

Wrong and refused costs a rerun; wrong and accepted costs a wrong product. So a displacement must be shown by tie points that
are many, agree, and leave little; everything else is refused, and then the geometry stays as it was.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from hyperfuse.pipeline.config import AlignConfig
from hyperfuse.pipeline.registration.tie_points import TiePoints
from hyperfuse.pipeline.registration.views import Array

Decision = Literal["accept", "warn", "refuse"]

_CLEAR_EXPLAINED = 0.2
"""Of what chance leaves unexplained, from which a window's tie point can be believed ..."""
_CLEAR_SIGMA_PX = 0.25
"""... with at most this standard error ..."""
_CLEAR_SPLIT_PX = 0.75
"""... if the even and the odd pixels differ by no more."""
_NEXT_TO_NOTHING = 0.01
"""Share of a target's variance that no comparison of two images resolves."""
_NEAR_PX = 1.5
"""A step this long has left the range in which a linear step means anything."""
_AGREE_PX = 0.15
"""A tie point that keeps no more agrees with the displacement, however small the others' distances are."""
_ELSEWHERE = 0.4
"""Of what chance leaves unexplained, from which a window's match beside the displacement is believed ..."""
_BETTER = 0.1
"""... if it explains so much more than the displacement does there."""
_MIN_CLEAR = 0.1
"""Share of the windows that must show the same: chance gives a few in any two images."""


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What speaks for a displacement."""

    tried: int
    """Windows with enough valid pixels."""
    clear: int
    """Those in which both images show the same detail, along the displacement or beside it."""
    agreeing: int
    """Those that agree with the displacement."""
    explained: float
    """Share of what a wrong place leaves unexplained that the displacement explains, in the better windows."""
    residual_px: float
    """Root mean square distance (coarse px) that the agreeing ones keep."""
    error_px: float
    """Error (coarse px) with which the model predicts tie points that it has not seen."""
    parts: str = ""
    """What is known of parts of the scene that match elsewhere; empty where there are none."""


def decide(evidence: Evidence, align: AlignConfig) -> tuple[Decision, str]:
    """The decision, and what decided; the reason is empty if nothing speaks against."""
    agreement = evidence.agreeing / max(evidence.clear, 1)
    told = f"{evidence.agreeing} of {evidence.clear} tie points agree"
    worst_px = max(evidence.residual_px, evidence.error_px)
    share = max(evidence.explained, 0.0)
    refusals = (
        (
            evidence.tried < align.min_tie_points,
            f"the images have valid pixels in common in {evidence.tried} windows only",
        ),
        (
            evidence.explained < align.min_explained,
            (
                f"the images do not show the same: their best match explains {share:.0%} of what a wrong place leaves, "
                f"at least {align.min_explained:.0%} expected"
            ),
        ),
        (
            evidence.clear < max(align.min_tie_points, _MIN_CLEAR * evidence.tried),
            f"only {evidence.clear} of {evidence.tried} windows show enough of the same detail",
        ),
        (evidence.agreeing < align.min_tie_points or agreement < align.min_agreement, f"only {told}"),
        (worst_px > align.max_residual_px, f"{told}, but to {worst_px:.2f} coarse px only"),
    )
    for holds, reason in refusals:
        if holds:
            return "refuse", reason
    doubts = (
        (bool(evidence.parts), f"{evidence.parts}; {told}"),
        (evidence.agreeing < 2 * align.min_tie_points, f"only {evidence.agreeing} tie points"),
        (agreement < (1.0 + align.min_agreement) / 2, f"only {told}"),
        (worst_px > align.max_residual_px / 2, f"tie points agree to {worst_px:.2f} coarse px only"),
        (
            evidence.explained < 1.5 * align.min_explained,
            f"the match explains {share:.0%} of what a wrong place leaves only",
        ),
    )
    for holds, reason in doubts:
        if holds:
            return "warn", reason
    return "accept", ""


def is_clear(points: TiePoints, chance: Array) -> NDArray[np.bool_]:
    """Which tie points can be believed by themselves, shape (point,); `chance` is that of `chance_level`."""
    return np.asarray(
        (explained(points, chance) >= _CLEAR_EXPLAINED)
        & (points.sigma <= _CLEAR_SIGMA_PX)
        & (points.split <= _CLEAR_SPLIT_PX)
        & (np.hypot(*points.remainder) <= _NEAR_PX)
    )


def is_clear_elsewhere(there: TiePoints, here: TiePoints, chance: Array) -> NDArray[np.bool_]:
    """Which windows, shape (point,), show the same at their own best match, and clearly more so than along the displacement."""
    # The best of many places explains more by chance than any one: hence the higher bar.
    better = explained(there, chance) - np.nan_to_num(explained(here, chance))
    return np.asarray(is_clear(there, chance) & (explained(there, chance) >= _ELSEWHERE) & (better >= _BETTER))


def explained(points: TiePoints, chance: Array) -> Array:
    """Share that the right place explains of the variance that a wrong one leaves, at most 1, shape (point,)."""
    # Among fits that leave next to nothing, which leaves less is chance: land that repeats itself is no match.
    return np.asarray((points.correlation**2 - chance) / (1.0 - chance + _NEXT_TO_NOTHING))


def agrees(points: TiePoints, clear: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Which of the clear points keep no more than the others do, shape (point,)."""
    distance = np.hypot(*points.remainder)
    near = max(_AGREE_PX, 3.0 * float(np.median(distance[clear]))) if clear.any() else 0.0
    return np.asarray(clear & (distance <= near))


def chance_level(decoys: list[TiePoints]) -> Array:
    """Share of its target's variance that the regression explains in each window where the MSI is out of place.

    Parameters
    ----------
    decoys : list of TiePoints
        Measured out of place, in opposite pairs: that of the two which explain more on average counts, so that land which
        looks the same along one direction, or repeats itself, is not taken for a match.
    """
    variance = np.array([points.correlation**2 for points in decoys]).reshape(-1, 2, len(decoys[0]))
    known = np.isfinite(variance)
    pairs = np.where(known, variance, 0.0).sum(axis=1) / np.maximum(known.sum(axis=1), 1)
    # A window that no decoy reaches is compared with nothing: that chance explains nothing is the least that is true.
    return np.asarray(pairs.max(axis=0))
