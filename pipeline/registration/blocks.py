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
from hyperfuse.pipeline.registration.search import Shown, detail, window_moves
from hyperfuse.pipeline.registration.tie_points import TiePoints, measure, measure_each
from hyperfuse.pipeline.registration.views import Array, Move, Survey, View, open_view

_DECOY_PX = 5.0
"""Coarse pixels east, west, north or south of the truth."""
_LOCAL_PX = 5
"""HSI pixels by which a window may differ from the move of the scene."""
_MATCHED_SIGMA_PX = 0.15
"""Error of a whole-pixel match with a parabola through its peak."""
_MATCHED_CORRELATION = 0.3
"""Of the detail of a window, from which its whole-pixel match is a start."""
_ASIDE_PX = 2.0
"""Coarse pixels beyond a displacement at which parts of the spectrum are measured."""
_CACHE_BYTES = 96 << 20
"""Of the views that this process keeps; what does not fit is read again in every pass."""


class Blocks:
    """The blocks of a survey; every process keeps the views that it has opened between passes, as far as memory allows."""

    def __init__(
        self, survey: Survey, around: Move, rival: Move, parallel_map: ParallelMap, *, shown: Shown = detail
    ) -> None:
        self.survey, self.around, self._map, self._shown = survey, around, parallel_map, shown
        self.decoys = [(x * _DECOY_PX, y * _DECOY_PX) for x, y in ((1, 0), (-1, 0), (0, 1), (0, -1))]
        """Moves off the truth, in opposite pairs, at which nothing matches but by chance."""
        self.rival = (rival[0] - around[0], rival[1] - around[1])
        """Move off the truth at which the whole scene matches best."""
        self._reach = [*square(around, _LOCAL_PX + _DECOY_PX), *square(rival, _LOCAL_PX), (0.0, 0.0)]
        self._kept: dict[int, View] = {}
        self.mixing = survey.mixing
        """Weights of the HSI's channels in each target; to be replaced when they have been learned."""

    @classmethod
    def of_spectrum(cls, survey: Survey, displacement: Displacement, parallel_map: ParallelMap) -> Blocks:
        """Blocks whose targets are parts of the spectrum, to be measured near a displacement."""
        low, high = survey.bounds
        x, y = np.meshgrid(*(np.linspace(low[k], high[k], 17) for k in (0, 1)))
        moves = survey.moves(displacement, x, y).reshape(2, -1)
        ends = [
            (float(e), float(n)) for e in (moves[0].min(), moves[0].max()) for n in (moves[1].min(), moves[1].max())
        ]
        made = cls(survey, ends[0], ends[0], parallel_map)
        made._reach = [corner for end in ends for corner in square(end, _ASIDE_PX)]
        return made

    def moments(self, displacement: Displacement) -> Array:
        """See `response.moments`."""
        return np.concatenate(list(self._map(partial(self._moments, displacement), range(len(self.survey.blocks)))))

    def normal_equations(self, displacement: Displacement, clear: NDArray[np.bool_]) -> Normal:
        """See `dense.normal_equations`; `clear` is of all windows in the order of `along`."""
        of_block = self._of_blocks(clear)
        # One by one: the equations of a large field are megabytes per block.
        total: Normal = reduce(Normal.plus, self._map(partial(self._normal, displacement), enumerate(of_block)))
        return total

    def matched(self, wanted: NDArray[np.bool_] | None = None) -> TiePoints:
        """Whole-pixel matches of all windows, NaN where there is none; of blocks without a window that is `wanted`, none."""
        chosen = (
            [True] * len(self.survey.blocks) if wanted is None else [bool(w.any()) for w in self._of_blocks(wanted)]
        )
        return TiePoints.joined(list(self._map(self._matched, enumerate(chosen))))

    def beside(self, displacement: Displacement, aside: Array) -> TiePoints:
        """Tie points of all windows, each beside a displacement by a move (coarse px) of its own, shape (2, window)."""
        of_block = enumerate(self._of_blocks(aside))
        return TiePoints.joined(list(self._map(partial(self._measured_aside, displacement), of_block)))

    def each(self, displacement: Displacement) -> list[TiePoints]:
        """Tie points of all windows by each target alone."""
        measured = list(self._map(partial(self._measured_each, displacement), range(len(self.survey.blocks))))
        return [TiePoints.joined(list(parts)) for parts in zip(*measured, strict=True)]

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

    def _of_blocks(self, values: NDArray[Any]) -> list[NDArray[Any]]:
        """Values (..., window) in the order of `along`, block by block."""
        sizes = [(w[0].stop - w[0].start) * (w[1].stop - w[1].start) // self.survey.edge**2 for w in self.survey.blocks]
        return np.split(values, np.cumsum(sizes)[:-1], axis=-1)

    def _matched(self, block: tuple[int, bool]) -> TiePoints:
        index, wanted = block
        return _matched(self._view(index), self.around, self._shown if wanted else None)

    def _measured_aside(self, displacement: Displacement, block: tuple[int, Array]) -> TiePoints:
        index, aside = block
        # Most blocks have no window that looks aside, and nobody asks what the others say again.
        return measure(self._view(index), self.mixing, displacement, aside) if aside.any() else _nothing(aside)

    def _measured_each(self, displacement: Displacement, index: int) -> list[TiePoints]:
        return measure_each(self._view(index), self.mixing, displacement)

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


def _matched(view: View, around: Move, shown: Shown | None) -> TiePoints:
    """Whole-pixel matches as tie points: a start for the model. NaN where there is none, or none is wanted (`shown` None)."""
    edge = view.survey.edge
    height, width = view.x.shape
    rows, cols = height // edge, width // edge
    x, y = (axis.reshape(rows, edge, cols, edge).mean(axis=(1, 3)).ravel() for axis in (view.x, view.y))
    n = rows * cols
    move, correlation = np.full((2, n), np.nan), np.full(n, np.nan)
    if shown is not None:
        moves, correlations = window_moves(view, around, _LOCAL_PX, shown=shown)
        good = np.isfinite(moves[0]) & (correlations > _MATCHED_CORRELATION)
        move, correlation = np.where(good, moves, np.nan).reshape(2, n), np.where(good, correlations, np.nan).ravel()
    return TiePoints(
        x=x,
        y=y,
        move=move,
        remainder=move - np.asarray(around)[:, None],
        sigma=np.full(n, _MATCHED_SIGMA_PX),
        split=np.zeros(n),
        correlation=correlation,
    )


def _nothing(aside: Array) -> TiePoints:
    """Tie points of windows that were not looked at."""
    unknown = np.full(aside.shape[-1], np.nan)
    return TiePoints(
        x=unknown, y=unknown, move=np.full(aside.shape, np.nan), remainder=np.full(aside.shape, np.nan), sigma=unknown,
        split=unknown, correlation=unknown,
    )  # fmt: skip


def square(middle: Move, half: float) -> list[Move]:
    """Corners of the moves that differ from one by no more than `half` along each axis."""
    return [(middle[0] + x * half, middle[1] + y * half) for x in (-1, 1) for y in (-1, 1)]
