"""Parts of a scene that match as well as the rest, but elsewhere: a bad seam between strips, an error of the terrain, a slide.

A window where the images do not show the same (cloud, change) says nothing. One that shows the same a pixel or more beside
the displacement contradicts it: it counts as disagreement, and neighbors that agree with each other are a part with a
move of its own, to be named with where it lies.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

from hyperfuse.pipeline.registration.tie_points import TiePoints
from hyperfuse.pipeline.registration.views import Array, Move

_NEAR_SPACINGS = 2.3
"""Mean distances of the windows within which two are neighbors."""
_ALIKE_PX = 0.5
"""Moves of neighbors of one part differ by no more (coarse px) ..."""
_ALIKE_SHARE = 0.25
"""... or by this share of them."""
_FEWEST = 3
"""Windows of a part ..."""
_LEAST_SHARE = 0.04
"""... and their share of all that match."""
_APART_PX = 0.5
"""A part's move from that of the rest (coarse px): less is a matter of the model."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """Neighboring windows with a move of their own."""

    members: NDArray[np.bool_]
    """Which tie points, shape (point,)."""
    move: Move
    """Median of their moves from the displacement, coarse pixels east and north."""
    bounds: tuple[float, float, float, float]
    """Left, bottom, right, top of the windows in the frame's CRS."""
    share: float
    """Of the windows in which both images show the same."""


def find_parts(
    points: TiePoints, beside: Array, contrary: NDArray[np.bool_], *, n_matching: int, unit: Move, half_px: float
) -> tuple[Part, ...]:
    """Parts with a move of their own, largest first.

    Parameters
    ----------
    points : TiePoints
        Of all windows.
    beside : ndarray, shape (2, point)
        Their moves (coarse px) from the displacement.
    contrary : ndarray of bool, shape (point,)
        Those that match, but not along the displacement.
    n_matching : int
        Windows that match anywhere.
    unit : (float, float)
        CRS units of a coarse pixel along x and y.
    half_px : float
        Half the edge of a window, coarse pixels.
    """
    index = np.flatnonzero(contrary)
    if index.size < _FEWEST:
        return ()
    at = np.stack([points.x / unit[0], points.y / unit[1]])
    spans = np.ptp(at, axis=1) + 2 * half_px
    spacing = np.sqrt(spans[0] * spans[1] / len(points))
    here, moves = at[:, index], beside[:, index]
    distance = np.hypot(*(here[:, :, None] - here[:, None, :]))
    differ = np.hypot(*(moves[:, :, None] - moves[:, None, :]))
    size = np.hypot(*moves)
    alike = differ <= np.maximum(_ALIKE_PX, _ALIKE_SHARE * np.minimum(size[:, None], size[None, :]))
    n_groups, label = connected_components(csr_array((distance <= _NEAR_SPACINGS * spacing) & alike), directed=False)
    parts = []
    for group in range(n_groups):
        own = label == group
        move = np.median(moves[:, own], axis=1)
        share = int(own.sum()) / max(n_matching, 1)
        if own.sum() < _FEWEST or share < _LEAST_SHARE or np.hypot(*move) < _APART_PX:
            continue
        members = np.zeros(len(points), bool)
        members[index[own]] = True
        low, high = (here[:, own].min(axis=1) - half_px), (here[:, own].max(axis=1) + half_px)
        bounds = tuple(float(v) for v in (low[0] * unit[0], low[1] * unit[1], high[0] * unit[0], high[1] * unit[1]))
        parts.append(
            Part(members=members, move=(float(move[0]), float(move[1])), bounds=bounds, share=share)  # type: ignore[arg-type]
        )
    return tuple(sorted(parts, key=lambda part: -part.share))
