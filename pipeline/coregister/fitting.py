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

from pipeline.coregister.tiepoints import TiePoints
from pipeline.coregister.views import Array
from pipeline.displacement import Displacement, SmoothField, spline_taps

ModelName = Literal["none", "shift", "affine", "field"]
MODELS: tuple[ModelName, ...] = ("none", "shift", "affine", "field")
"""From least to most freedom."""

FEWEST: dict[ModelName, int] = {"none": 0, "shift": 1, "affine": 8, "field": 20}
"""Tie points that a model needs."""
_CLEARLY = {"none": 1.0, "shift": 0.97, "affine": 0.95, "field": 0.90}
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
    center = (float(bounds[0][0] + bounds[1][0]) / 2, float(bounds[0][1] + bounds[1][1]) / 2)
    low, high = (tuple(float((b[k] - center[k]) / unit[k]) for k in (0, 1)) for b in bounds)
    frame = _Frame(center=center, unit=unit, low=low, high=high, spacing=spacing)  # type: ignore[arg-type]
    best: Fit | None = None
    for name in models:
        if FEWEST[name] > len(points):
            continue
        fit = _fit(points, name, frame)
        if best is None or math.hypot(fit.error_px, _FLOOR_PX) < _CLEARLY[name] * math.hypot(best.error_px, _FLOOR_PX):
            best = fit
    if best is None:
        raise ValueError(f"none of the models {models} can be fitted to {len(points)} tie points")
    return best


def _fit(points: TiePoints, name: ModelName, frame: _Frame) -> Fit:
    u, v = (points.x - frame.center[0]) / frame.unit[0], (points.y - frame.center[1]) / frame.unit[1]
    if name == "field":
        knots = tuple(
            min(max(3, math.ceil((high - low) / (_KNOT_SPACING * frame.spacing))), _KNOTS)
            for low, high in zip(frame.low, frame.high, strict=True)
        )
        basis, rough = _splines(u, v, frame, knots), roughness(knots)
        best = min((_robust(points, basis, weight * rough) for weight in PENALTIES), key=lambda solved: solved.error_px)
        return Fit(name=name, displacement=_field(best.coefficients, frame, knots), error_px=best.error_px)
    terms = {"none": [], "shift": [np.ones_like(u)], "affine": [np.ones_like(u), u, v]}[name]
    basis = np.stack(terms, axis=-1) if terms else np.zeros((len(u), 0))
    solved = _robust(points, basis, np.zeros((len(terms), len(terms))))
    return Fit(name=name, displacement=_affine(solved.coefficients, frame), error_px=solved.error_px)


@dataclass(frozen=True, kw_only=True)
class _Solved:
    """A robust linear fit."""

    coefficients: Array
    """Shape (term, 2 components)."""
    error_px: float
    """See `Fit`."""


def _robust(points: TiePoints, basis: Array, penalty: Array) -> _Solved:
    """Iteratively reweighted fit of both components; one weight per point, because a wrong match is wrong in both."""
    n_terms = basis.shape[1]
    prior = 1.0 / (points.sigma**2 + _FLOOR_PX**2)
    prior = prior / prior.max()
    # The first guess is one that half of the points cannot spoil: the median move.
    unseen = points.move - (np.median(points.move, axis=1, keepdims=True) if n_terms else 0.0)
    weight = prior * _tukey(unseen, slack=3.0)
    coefficients = np.zeros((n_terms, 2))
    for step in range(_ROUNDS if n_terms else 0):
        weighted = (basis * weight[:, None]).T
        normal = weighted @ basis
        ridge = 1e-9 * np.trace(normal) / n_terms * np.eye(n_terms)
        solve = np.linalg.solve(normal + weight.sum() * penalty + ridge, weighted)
        coefficients = solve @ points.move.T
        leverage = np.einsum("pt,tp->p", basis, solve)
        free = np.maximum(1.0 - leverage, 1e-3)
        residual = points.move - (basis @ coefficients).T
        # Studentized: a flexible model passes near an outlier, and all the nearer at the rim.
        weight = prior * _tukey(residual / np.sqrt(free), slack=3.0 if step < 2 else 1.0)
        unseen = residual / free
    error = math.sqrt(float((weight * (unseen**2).sum(axis=0)).sum() / max(2.0 * weight.sum(), 1e-30)))
    # A model that throws points away until the rest agrees predicts nothing of them.
    return _Solved(coefficients=coefficients, error_px=error / max(float(weight.sum() / prior.sum()), 1e-3))


def _tukey(residual: Array, *, slack: float) -> Array:
    distance = np.hypot(*residual)
    # The Rayleigh median: 1.1774 standard deviations of one component.
    spread = max(float(np.median(distance)) / 1.1774, _OUTLIER_PX / _TUKEY)
    return np.asarray(np.square(np.clip(1.0 - (distance / (slack * _TUKEY * spread)) ** 2, 0.0, None)))


def _affine(coefficients: Array, frame: _Frame) -> Displacement:
    """Fitted coefficients, shape (0, 1 or 3 terms; 2 components), in CRS units."""
    if not len(coefficients):
        return Displacement()
    unit = np.asarray(frame.unit)
    shift = coefficients[0] * unit
    moved = {"east": float(shift[0]), "north": float(shift[1]), "center": frame.center}
    if len(coefficients) == 1:
        return Displacement(**moved)
    slope = coefficients[1:].T * unit[:, None] / unit[None, :]  # [component, axis]
    return Displacement(**moved, slope=tuple(float(value) for value in slope.ravel()))


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


def _field(coefficients: Array, frame: _Frame, knots: tuple[int, ...]) -> Displacement:
    step = tuple(
        (high - low) / n * unit for low, high, n, unit in zip(frame.low, frame.high, knots, frame.unit, strict=True)
    )
    origin = tuple(
        center + low * unit - one
        for center, low, unit, one in zip(frame.center, frame.low, frame.unit, step, strict=True)
    )
    tables = coefficients.T.reshape(2, knots[1] + 3, knots[0] + 3) * np.asarray(frame.unit)[:, None, None]
    east, north = (tuple(tuple(float(value) for value in line) for line in table) for table in tables)
    return Displacement(field=SmoothField(origin=origin, step=step, east=east, north=north))
