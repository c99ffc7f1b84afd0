"""From tie points to a displacement: the simplest model that predicts points which it has not seen.

    none < shift < affine < smooth field

Each model is a weighted linear fit, made robust by iteration; its worth is the error of every tie point under the fit of
the others, which for a linear fit needs no second fit (PRESS). A model with more freedom must predict clearly better.

References
----------
Allen (1974), The relationship between variable selection and data augmentation and a method for prediction,
Technometrics 16(1), 125-127.
Eilers & Marx (1996), Flexible smoothing with B-splines and penalties, Statistical Science 11(2), 89-121.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from hyperfuse.pipeline.geometry.displacement import Displacement, SmoothField, spline_taps
from hyperfuse.pipeline.registration.tie_points import TiePoints
from hyperfuse.pipeline.registration.views import Array

ModelName = Literal["none", "shift", "affine", "field"]
MODELS: tuple[ModelName, ...] = ("none", "shift", "affine", "field")
"""From least to most freedom."""

FEWEST: dict[ModelName, int] = {"none": 0, "shift": 1, "affine": 8, "field": 20}
"""Tie points that a model needs."""
_CLEARLY = {"none": 1.0, "shift": 0.97, "affine": 0.95, "field": 0.85}
"""A model's prediction error must fall to this share of that of every simpler one."""
_TUKEY = 4.685
_ROUNDS = 12
_FLOOR_PX = 0.01
"""No tie point is known better than this, whatever its window says."""
_OUTLIER_PX = 0.05
"""Scatter of tie points below which none is called an outlier."""
PENALTIES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1e0, 1e1, 1e2)
"""Weights of the field's roughness that are tried."""
_KNOT_SPACING = 1.25
"""Distance of knots in distances of tie points: about as many coefficients as points, held together by the penalty."""
_KNOTS = 12
"""Largest number of knot intervals along one axis."""


@dataclass(frozen=True, kw_only=True)
class Fit:
    """A model of the move."""

    name: ModelName
    displacement: Displacement
    error_px: float
    """Robust root mean square error with which it predicts points it has not seen, along one axis."""


@dataclass(frozen=True, kw_only=True)
class _Frame:
    """Coordinates of the fits: coarse pixels about the middle of the survey."""

    center: tuple[float, float]
    """CRS units."""
    unit: tuple[float, float]
    """CRS units of a coarse pixel."""
    low: tuple[float, float]
    """Smallest x and y (coarse px) of the HSI pixels in the survey ..."""
    high: tuple[float, float]
    """... and largest."""
    spacing: float
    """Distance (coarse px) of the tie points."""


def fit_best(
    points: TiePoints,
    models: tuple[ModelName, ...],
    *,
    bounds: tuple[Array, Array],
    unit: tuple[float, float],
    spacing: float,
) -> Fit:
    """The best of some models.

    Parameters
    ----------
    points : TiePoints
        At least one.
    models : tuple of str
        To be tried, ordered as in `MODELS`; those that need more points than there are are left out.
    bounds : (ndarray, ndarray)
        Smallest and largest position (x, y) in the frame's CRS where the displacement will be asked for.
    unit : (float, float)
        CRS units of a coarse pixel along x and y.
    spacing : float
        Distance of the tie points, coarse pixels.
    """
    frame, u, v = _framed(points, bounds=bounds, unit=unit, spacing=spacing)
    best: tuple[ModelName, _Solved, Displacement] | None = None
    for name in models:
        if FEWEST[name] > len(points):
            continue
        solved, displacement = (
            _field(points, u, v, frame) if name == "field" else _polynomial(points, name, u, v, frame)
        )
        if best is None or solved.loss_px(solved.spread) < _CLEARLY[name] * best[1].loss_px(solved.spread):
            best = name, solved, displacement
    if best is None:
        raise ValueError(f"none of the models {models} can be fitted to {len(points)} tie points")
    name, solved, displacement = best
    return Fit(name=name, displacement=displacement, error_px=solved.loss_px(solved.spread))


def fit_through(
    points: TiePoints,
    displacement: Displacement,
    *,
    bounds: tuple[Array, Array],
    unit: tuple[float, float],
    spacing: float,
) -> Fit | None:
    """The smooth field that follows every tie point, if it predicts them better than a displacement that does not.

    Parameters as in `fit_best`; none of the points is taken for an outlier.
    """
    if len(points) < FEWEST["field"]:
        return None
    frame, u, v = _framed(points, bounds=bounds, unit=unit, spacing=spacing)
    solved, field = _field(points, u, v, frame, rounds=1)
    east, north = displacement.at(points.x, points.y)
    left = points.move - np.stack([east / unit[0], north / unit[1]])
    plain, bent = (math.sqrt(float((size**2).mean()) / 2) for size in (np.hypot(*left), solved.unseen))
    if bent >= _CLEARLY["field"] * plain:
        return None
    # ^ compared over all points, the few along a step included; what the model is worth elsewhere is the robust error
    return Fit(name="field", displacement=field, error_px=solved.loss_px(solved.spread))


def _framed(
    points: TiePoints, *, bounds: tuple[Array, Array], unit: tuple[float, float], spacing: float
) -> tuple[_Frame, Array, Array]:
    """Coordinates of the fits, and where the points lie in them."""
    center = (float(bounds[0][0] + bounds[1][0]) / 2, float(bounds[0][1] + bounds[1][1]) / 2)
    low, high = (tuple(float((b[k] - center[k]) / unit[k]) for k in (0, 1)) for b in bounds)
    frame = _Frame(center=center, unit=unit, low=low, high=high, spacing=spacing)  # type: ignore[arg-type]
    return frame, (points.x - center[0]) / unit[0], (points.y - center[1]) / unit[1]


@dataclass(frozen=True, kw_only=True)
class _Solved:
    """A robust linear fit."""

    coefficients: Array
    """Shape (term, 2 components)."""
    unseen: Array
    """Length (coarse px) by which the fit of the others misses each point, shape (point,)."""
    prior: Array
    """Weight of each point by its own standard error, shape (point,)."""
    spread: float
    """Standard deviation (coarse px) of one component of what `unseen` is the length of, robust."""

    def loss_px(self, spread: float) -> float:
        """Root mean square of `unseen` along one axis, in which no point counts more than an outlier at `spread` does."""
        # Models must be compared at one spread: each at its own, the one that drops more points would seem the better.
        reach = _TUKEY * spread
        share = 1.0 - np.clip(1.0 - (self.unseen / reach) ** 2, 0.0, None) ** 3
        squared = reach**2 / 3.0 * float((self.prior * share).sum() / self.prior.sum()) / 2.0
        return math.hypot(math.sqrt(squared), _FLOOR_PX)


def _robust(points: TiePoints, basis: Array, penalty: Array, rounds: int = _ROUNDS) -> _Solved:
    """Iteratively reweighted fit of both components; one weight per point, because a wrong match is wrong in both.

    With one round, all points count.
    """
    n_terms = basis.shape[1]
    prior = 1.0 / (points.sigma**2 + _FLOOR_PX**2)
    prior = prior / prior.max()
    # The first guess is one that half of the points cannot spoil: the median move.
    residual = points.move - (np.median(points.move, axis=1, keepdims=True) if n_terms else 0.0)
    coefficients, free = np.zeros((n_terms, 2)), np.ones(len(points))
    spread = _spread(residual)
    for step in range(rounds if n_terms else 0):
        # Studentized: a flexible model passes near an outlier, and all the nearer at the rim.
        distance = np.hypot(*residual) / np.sqrt(free)
        reach = math.inf if rounds == 1 else (3.0 if step < 3 else 1.0) * _TUKEY * spread
        weight = prior * np.square(np.clip(1.0 - (distance / reach) ** 2, 0.0, None))
        weighted = (basis * weight[:, None]).T
        normal = weighted @ basis
        ridge = 1e-9 * np.trace(normal) / n_terms * np.eye(n_terms)
        solve = np.linalg.solve(normal + weight.sum() * penalty + ridge, weighted)
        coefficients = solve @ points.move.T
        free = np.maximum(1.0 - np.einsum("pt,tp->p", basis, solve), 1e-3)
        residual = points.move - (basis @ coefficients).T
        spread = _spread(residual / np.sqrt(free))
    return _Solved(
        coefficients=coefficients, unseen=np.hypot(*residual) / free, prior=prior, spread=_spread(residual / free)
    )


def _spread(residual: Array) -> float:
    """Standard deviation of one component of vectors (2, n), from the median of their lengths (Rayleigh)."""
    return max(float(np.median(np.hypot(*residual))) / 1.1774, _OUTLIER_PX / _TUKEY)


def _polynomial(points: TiePoints, name: ModelName, u: Array, v: Array, frame: _Frame) -> tuple[_Solved, Displacement]:
    """None, a shift or an affine move."""
    terms = {"none": [], "shift": [np.ones_like(u)], "affine": [np.ones_like(u), u, v]}[name]
    basis = np.stack(terms, axis=-1) if terms else np.zeros((len(u), 0))
    solved = _robust(points, basis, np.zeros((len(terms), len(terms))))
    if not terms:
        return solved, Displacement()
    unit = np.asarray(frame.unit)
    east, north = (float(value) for value in solved.coefficients[0] * unit)
    if len(terms) == 1:
        return solved, Displacement(east=east, north=north, center=frame.center)
    slope = solved.coefficients[1:].T * unit[:, None] / unit[None, :]  # (component, axis)
    return solved, Displacement(east=east, north=north, center=frame.center, slope=tuple(slope.ravel().tolist()))


def _field(points: TiePoints, u: Array, v: Array, frame: _Frame, rounds: int = _ROUNDS) -> tuple[_Solved, Displacement]:
    """A smooth field, of the roughness that predicts best."""
    knots = tuple(
        min(max(3, math.ceil((high - low) / (_KNOT_SPACING * frame.spacing))), _KNOTS)
        for low, high in zip(frame.low, frame.high, strict=True)
    )
    basis, rough = _splines(u, v, frame, knots), roughness(knots)
    tried = [_robust(points, basis, weight * rough, rounds) for weight in PENALTIES]
    smallest = min(solved.spread for solved in tried)
    best = min(tried, key=lambda solved: float((solved.unseen**2).mean()) if rounds == 1 else solved.loss_px(smallest))
    step = tuple(
        (high - low) / n * unit for low, high, n, unit in zip(frame.low, frame.high, knots, frame.unit, strict=True)
    )
    origin = tuple(
        center + low * unit - one
        for center, low, unit, one in zip(frame.center, frame.low, frame.unit, step, strict=True)
    )
    tables = best.coefficients.T.reshape(2, knots[1] + 3, knots[0] + 3) * np.asarray(frame.unit)[:, None, None]
    east, north = (tuple(tuple(float(value) for value in line) for line in table) for table in tables)
    return best, Displacement(field=SmoothField(origin=origin, step=step, east=east, north=north))


def _splines(u: Array, v: Array, frame: _Frame, knots: tuple[int, ...]) -> Array:
    """Every control point's share at every tie point, shape (point, control point), rows along y."""
    sizes = tuple(n + 3 for n in knots)
    (col, weight_x), (row, weight_y) = (
        spline_taps(np.asarray(1.0 + (at - low) / (high - low) * n, np.float64), size)
        for at, low, high, n, size in zip((u, v), frame.low, frame.high, knots, sizes, strict=True)
    )
    basis = np.zeros((len(u), sizes[1], sizes[0]))
    index = np.arange(len(u))
    for j in range(4):
        for i in range(4):
            basis[index, row + j, col + i] += weight_y[j] * weight_x[i]
    return basis.reshape(len(u), -1)


def roughness(knots: tuple[int, ...]) -> Array:
    """Second differences along and across both axes: the discrete bending energy, which planes do not have."""
    second = [np.diff(np.eye(n + 3), 2, axis=0) for n in knots]
    first = [np.diff(np.eye(n + 3), 1, axis=0) for n in knots]
    eye = [np.eye(n + 3) for n in knots]
    parts = [np.kron(eye[1], second[0]), np.kron(second[1], eye[0]), math.sqrt(2.0) * np.kron(first[1], first[0])]
    return np.asarray(sum(part.T @ part for part in parts) / ((knots[0] + 3) * (knots[1] + 3)))
