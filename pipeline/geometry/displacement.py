"""Displacement: where the ground that the MSI shows lies in the HSI, as a value that can be evaluated, stored and undone.

    what the HSI shows at q, the MSI shows at q - move(q)

    move(q) = constant + slope (q - center) + smooth field (q)

The move is a function of the position in the HSI, because there it is measured. Going the other way (for a position in the MSI, the
position in the HSI) is a fixed point, found by iteration; a registration's displacement changes so slowly that eight
steps leave no error that a resampling could show.

Positions and moves are in units of one CRS, that of the product grid: x runs east, y north.
"""

from __future__ import annotations

from typing import Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import BaseModel, ConfigDict, model_validator

Coordinates = NDArray[np.float64]
_STEPS = 8
"""Of the fixed point: with a field that changes by 0.2 px per px, 0.2**8 = 3e-6 of the move remains."""


class SmoothField(BaseModel):
    """A uniform cubic B-spline surface for each component: twice continuously differentiable, and local.

    Beyond the knots the field goes on with the value at their rim.

    References
    ----------
    Rueckert et al. (1999), Nonrigid registration using free-form deformations, IEEE TMI 18(8), 712-721.
    """

    model_config = ConfigDict(frozen=True)

    origin: tuple[float, float]
    """Position (x, y) of the first control point."""
    step: tuple[float, float]
    """Distance of the control points along x and y; positive."""
    east: tuple[tuple[float, ...], ...]
    """Coefficients of the move along x, shape (y, x), at least 4 x 4."""
    north: tuple[tuple[float, ...], ...]
    """Coefficients of the move along y, of the same shape."""

    @model_validator(mode="after")
    def _is_a_lattice(self) -> Self:
        shapes = {np.shape(self.east), np.shape(self.north)}
        if len(shapes) != 1 or len(shape := shapes.pop()) != 2 or min(shape) < 4:
            raise ValueError(f"a smooth field needs two equal tables of at least 4 x 4 coefficients, found {shapes}")
        if not min(self.step) > 0:
            raise ValueError(f"control points must be a positive distance apart, found {self.step}")
        return self

    def at(self, x: Coordinates, y: Coordinates) -> tuple[Coordinates, Coordinates]:
        """Move east and north at positions of any shape."""
        tables = np.array([self.east, self.north])
        col, weight_x = spline_taps((x - self.origin[0]) / self.step[0], tables.shape[2])
        row, weight_y = spline_taps((y - self.origin[1]) / self.step[1], tables.shape[1])
        move = np.zeros((2, *np.shape(x)))
        for j in range(4):
            for i in range(4):
                move += tables[:, row + j, col + i] * (weight_y[j] * weight_x[i])
        return move[0], move[1]


class Displacement(BaseModel):
    """The move that brings the MSI onto the HSI, in units of the product's CRS; falsy if it moves nothing.

    `displacement(x, y)` takes positions in the MSI to positions in the HSI, `(-displacement)(x, y)` takes them back.
    """

    model_config = ConfigDict(frozen=True)

    east: float = 0.0
    """Move along x at the center."""
    north: float = 0.0
    """Move along y at the center."""
    slope: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    """Change of the move east along x and along y, and of the move north along x and along y; per unit."""
    center: tuple[float, float] = (0.0, 0.0)
    """Position (x, y) in the HSI where the slope adds nothing."""
    field: SmoothField | None = None
    """What is neither shift nor affine."""
    backward: bool = False
    """Whether a call takes positions from the HSI to the MSI."""

    def __bool__(self) -> bool:
        return bool(self.east or self.north or any(self.slope) or self.field)

    def __neg__(self) -> Displacement:
        return self.model_copy(update={"backward": not self.backward})

    def at(self, x: ArrayLike, y: ArrayLike) -> tuple[Coordinates, Coordinates]:
        """Move east and north, whichever way the displacement points, at positions (x, y) in the HSI."""
        x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
        dx, dy = x - self.center[0], y - self.center[1]
        east = self.east + self.slope[0] * dx + self.slope[1] * dy
        north = self.north + self.slope[2] * dx + self.slope[3] * dy
        if self.field is not None:
            more = self.field.at(x, y)
            east, north = east + more[0], north + more[1]
        return east, north

    def __call__(self, x: Coordinates, y: Coordinates) -> tuple[Coordinates, Coordinates]:
        """Positions in the other image."""
        if not self:
            return x, y
        if self.backward:
            east, north = self.at(x, y)
            return x - east, y - north
        there = x, y
        # The number of steps is fixed: one that stopped early would depend on the window, and show as a seam.
        for _ in range(_STEPS if any(self.slope) or self.field else 1):
            east, north = self.at(*there)
            there = x + east, y + north
        return there


NO_DISPLACEMENT = Displacement()


def spline_taps(knots: Coordinates, size: int) -> tuple[NDArray[np.intp], Coordinates]:
    """First of the four control points that reach a position, and their weights.

    Parameters
    ----------
    knots : ndarray
        Positions in steps from the first control point; clipped to where four points are in reach.
    size : int
        Control points along the axis.

    Returns
    -------
    first : ndarray of int, shape of `knots`
    weight : ndarray, shape (4, *knots.shape)
        Sums to 1.
    """
    knots = np.nan_to_num(np.clip(knots, 1.0, size - 2.0), nan=1.0)
    first = np.minimum(np.floor(knots).astype(np.intp), size - 3) - 1
    t = knots - first - 1.0
    weight = np.stack([(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3]) / 6.0
    return first, weight
