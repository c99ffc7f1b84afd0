"""A smooth field from every pixel: what tie points cannot tell, because a window has one move only.

The forward model of `tiepoints` is linear in the field's coefficients, so all windows together give one least-squares step
for all of them (Gauss-Newton). Roughness is weighed by how well a field from every other window predicts the rest.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hyperfuse.pipeline.geometry.displacement import Displacement, SmoothField, spline_taps
from hyperfuse.pipeline.registration.fit import PENALTIES, roughness
from hyperfuse.pipeline.registration.tie_points import cut, linearize
from hyperfuse.pipeline.registration.views import Array, View


@dataclass(frozen=True, kw_only=True)
class Normal:
    """Normal equations for changes of a field's coefficients (coarse px), from windows of either parity."""

    matrix: Array
    """Shape (parity, 2, control point, 2, control point): component and control point, twice."""
    pull: Array
    """Shape (parity, 2, control point)."""

    def plus(self, other: Normal) -> Normal:
        """Equations of the windows of both."""
        return Normal(matrix=self.matrix + other.matrix, pull=self.pull + other.pull)


def normal_equations(view: View, mixing: Array, displacement: Displacement, clear: NDArray[np.bool_]) -> Normal:
    """What the windows of a view that are `clear`, shape (window,), say of a field."""
    field = displacement.field
    assert field is not None  # noqa: S101 (only fields are refined)
    edge = view.survey.edge
    rows, cols = np.shape(field.east)
    found = linearize(view, mixing, displacement)
    first_x, weight_x = spline_taps(np.asarray((view.x - field.origin[0]) / field.step[0], np.float64), cols)
    first_y, weight_y = spline_taps(np.asarray((view.y - field.origin[1]) / field.step[1], np.float64), rows)
    first = [cut(part.astype(np.float64), edge).astype(int) for part in (first_y, first_x)]
    taps = [cut(part, edge) for part in (weight_y, weight_x)]  # (window, 4, pixel)
    matrix, pull = np.zeros((2, 2, rows * cols, 2, rows * cols)), np.zeros((2, 2, rows * cols))
    across = view.x.shape[1] // edge
    for window in np.flatnonzero(clear):
        parity = (window // across + window % across) % 2
        basis, reached = _basis([part[window] for part in first], [part[window] for part in taps], cols)
        weighted = np.einsum("pde,pk->dekp", found.information[window], basis)
        block = weighted @ basis  # (2, 2, control point, control point)
        for d in (0, 1):
            pull[parity, d, reached] += basis.T @ found.pull[window, :, d]
            for e in (0, 1):
                matrix[parity, d, reached[:, None], e, reached[None, :]] += block[d, e]
    return Normal(matrix=matrix, pull=pull)


def _basis(first: list[NDArray[np.int_]], taps: list[Array], cols: int) -> tuple[Array, NDArray[np.int_]]:
    """Shares of the control points that a window reaches, shape (pixel, reached), and which these are."""
    (low_y, low_x), (high_y, high_x) = [part.min() for part in first], [part.max() + 4 for part in first]
    n_pixels = len(first[0])
    basis = np.zeros((n_pixels, high_y - low_y, high_x - low_x))
    pixel = np.arange(n_pixels)
    for j in range(4):
        for i in range(4):
            basis[pixel, first[0] - low_y + j, first[1] - low_x + i] += taps[0][j] * taps[1][i]
    reached = (np.arange(low_y, high_y)[:, None] * cols + np.arange(low_x, high_x)[None, :]).ravel()
    return basis.reshape(n_pixels, -1), reached


def improved(displacement: Displacement, normal: Normal, unit: tuple[float, float]) -> Displacement:
    """The field after one step; `unit` is a coarse pixel along x and y in CRS units."""
    field = displacement.field
    assert field is not None  # noqa: S101 (only fields are refined)
    rows, cols = np.shape(field.east)
    size = rows * cols
    matrix, pull = normal.matrix.reshape(2, 2 * size, 2 * size), normal.pull.reshape(2, 2 * size)
    now = np.concatenate([np.ravel(field.east) / unit[0], np.ravel(field.north) / unit[1]])
    scale = np.trace(matrix.sum(axis=0)) / (2 * size)
    rough = np.kron(np.eye(2), roughness((cols - 3, rows - 3))) * size
    ridge = 1e-9 * scale * np.eye(2 * size)

    def step(half: Array, drawn: Array, weight: float) -> Array:
        penalty = weight * scale * rough
        return np.asarray(np.linalg.solve(half + penalty + ridge, drawn - penalty @ now))

    def unseen(weight: float) -> float:
        loss = 0.0
        for seen, other in ((0, 1), (1, 0)):
            change = step(matrix[seen], pull[seen], weight)
            loss += float(change @ matrix[other] @ change / 2 - pull[other] @ change)
        return loss

    change = step(matrix.sum(axis=0), pull.sum(axis=0), min(PENALTIES, key=unseen))
    east, north = ((now + change).reshape(2, rows, cols) * np.asarray(unit)[:, None, None]).tolist()
    tables = (tuple(tuple(line) for line in table) for table in (east, north))
    return displacement.model_copy(
        update={"field": SmoothField(origin=field.origin, step=field.step, east=next(tables), north=next(tables))}
    )
