"""The blocks of a survey, gone through once per measurement, here or on the workers of a cluster."""

from __future__ import annotations

from functools import lru_cache, partial, reduce
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hyperfuse.pipeline.geometry.displacement import Displacement
from hyperfuse.pipeline.pipelining import ParallelMap
from hyperfuse.pipeline.registration.dense_field import Normal, normal_equations
from hyperfuse.pipeline.registration.response import moments
from hyperfuse.pipeline.registration.search import window_moves
from hyperfuse.pipeline.registration.tie_points import TiePoints, measure
from hyperfuse.pipeline.registration.views import Array, Move, Survey, View, open_view

_DECOY_PX = 5.0
"""Coarse pixels east, west, north or south of the truth."""
_LOCAL_PX = 5
"""HSI pixels by which a window may differ from the move of the scene."""
_MATCHED_SIGMA_PX = 0.15
"""Error of a whole-pixel match with a parabola through its peak."""
_MATCHED_CORRELATION = 0.3
"""Of the detail of a window, from which its whole-pixel match is a start."""
_CACHE_BYTES = 96 << 20
"""Of the views that this process keeps; what does not fit is read again in every pass."""


class Blocks:
    """The blocks of a survey; every process keeps the views that it has opened between passes, as far as memory allows."""

    def __init__(self, survey: Survey, around: Move, rival: Move, parallel_map: ParallelMap) -> None:
        self.survey, self.around, self._map = survey, around, parallel_map
        self.decoys = [(x * _DECOY_PX, y * _DECOY_PX) for x, y in ((1, 0), (-1, 0), (0, 1), (0, -1))]
        """Moves off the truth, in opposite pairs, at which nothing matches but by chance."""
        self.rival = (rival[0] - around[0], rival[1] - around[1])
        """Move off the truth at which the whole scene matches best."""
        self._reach = [*square(around, _LOCAL_PX + _DECOY_PX), *square(rival, _LOCAL_PX), (0.0, 0.0)]
        self._kept: dict[int, View] = {}
        self.mixing = survey.mixing
        """Weights of the HSI's channels in each target; to be replaced when they have been learned."""

    def moments(self, displacement: Displacement) -> Array:
        """See `response.moments`."""
        return np.concatenate(list(self._map(partial(self._moments, displacement), range(len(self.survey.blocks)))))

    def normal_equations(self, displacement: Displacement, clear: NDArray[np.bool_]) -> Normal:
        """See `dense.normal_equations`; `clear` is of all windows in the order of `along`."""
        sizes = [(w[0].stop - w[0].start) * (w[1].stop - w[1].start) // self.survey.edge**2 for w in self.survey.blocks]
        of_block = np.split(clear, np.cumsum(sizes)[:-1])
        # One by one: the equations of a large field are megabytes per block.
        total: Normal = reduce(Normal.plus, self._map(partial(self._normal, displacement), enumerate(of_block)))
        return total

    def matched(self) -> TiePoints:
        """Whole-pixel matches of all windows."""
        return TiePoints.joined(list(self._map(self._matched, range(len(self.survey.blocks)))))

    def along(self, *displacements: Displacement) -> list[TiePoints]:
        """Tie points of all windows along each of some displacements."""
        measured = list(self._map(partial(self._measured, displacements), range(len(self.survey.blocks))))
        return [TiePoints.joined(list(parts)) for parts in zip(*measured, strict=True)]

    def __getstate__(self) -> dict[str, Any]:
        # What goes to a worker: it reads its blocks itself.
        return self.__dict__ | {"_kept": {}, "_map": map}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        survey = self.survey
        parts = survey.bands, survey.blocks, self._reach, survey.psf_sigma_px
        self._kept = _views_of_worker(f"{survey.pair.hsi.digest} {survey.pair.msi.digest} {parts}")

    def _matched(self, index: int) -> TiePoints:
        return _matched(self._view(index), self.around)

    def _moments(self, displacement: Displacement, index: int) -> Array:
        return moments(self._view(index), displacement)

    def _normal(self, displacement: Displacement, block: tuple[int, NDArray[np.bool_]]) -> Normal:
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


@lru_cache(maxsize=1)
def _views_of_worker(_survey: str) -> dict[int, View]:
    """What a worker has opened of one survey; another survey takes its place."""
    return {}


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


def square(middle: Move, half: float) -> list[Move]:
    """Corners of the moves that differ from one by no more than `half` along each axis."""
    return [(middle[0] + x * half, middle[1] + y * half) for x in (-1, 1) for y in (-1, 1)]
