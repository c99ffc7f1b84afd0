"""Tie points: what remains of the displacement in a window of HSI pixels, by the forward model.

    target(q) = offset + trend (q) + sum over MSI bands of gain * sample(q - move(q) - remainder)

is fitted to the HSI in each window, all bands of the MSI against every target; gains, offset, trend and the remainder
of the move come out of one weighted least-squares step, in which whatever the regression already explains is taken out
of the gradients first (variable projection). Steps are repeated from outside, along a better model of the move each
time: at the end the remainder is what that model leaves.

References
----------
Lucas & Kanade (1981), An iterative image registration technique with an application to stereo vision, IJCAI, 674-679.
Baker & Matthews (2004), Lucas-Kanade 20 years on: a unifying framework, IJCV 56(3), 221-255.
Beaton & Tukey (1974), The fitting of power series, Technometrics 16(2), 147-185 (the weights).
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from hyperfuse.pipeline.geometry.displacement import Displacement
from hyperfuse.pipeline.registration.views import Array, View

_TUKEY = 4.685
"""Residuals beyond this many standard deviations do not count: clouds that no mask knows, fields that were harvested."""
_REWEIGHTED = 3
_MIN_SHARE = 0.3
"""A window needs valid values in this share of its pixels."""
_LEAST_ACROSS = 0.01
"""Information along a window's worst direction, in that along its best, below which the worst is taken for unknown."""
_RIDGE = 1e-7
"""Relative; keeps windows that show nothing solvable, whose result is then not believed."""


@dataclass(frozen=True, kw_only=True)
class TiePoints:
    """What windows say; one entry of each array per window, NaN where it has too few valid pixels."""

    x: Array
    """Where the window's information lies, frame CRS; its middle, where it has none."""
    y: Array
    move: Array
    """Measured move (coarse px) east and north, shape (2, point)."""
    remainder: Array
    """Its part that the model before the measurement did not have, shape (2, point)."""
    sigma: Array
    """Standard error (coarse px) of the move along its worst direction; infinite where that shows nothing."""
    split: Array
    """Distance (coarse px) between what the even and the odd pixels of the window say."""
    correlation: Array
    """Of the regression with the target it explains best, 0 to 1, corrected for its number of terms."""

    def __len__(self) -> int:
        return len(self.x)

    def only(self, kept: NDArray[np.bool_]) -> TiePoints:
        """Some of the points, by a mask of shape (point,)."""
        return TiePoints(**{field.name: getattr(self, field.name)[..., kept] for field in fields(self)})

    @classmethod
    def joined(cls, parts: list[TiePoints]) -> TiePoints:
        """All points of several measurements."""
        return cls(
            **{field.name: np.concatenate([getattr(p, field.name) for p in parts], axis=-1) for field in fields(cls)}
        )


@dataclass(frozen=True, kw_only=True)
class Linearized:
    """What every pixel of a view says of the remainder of the move, in windows (window, pixel)."""

    information: Array
    """Inverse covariance (1 / coarse px2) of the remainder, shape (window, pixel, 2, 2)."""
    pull: Array
    """Information times remainder, shape (window, pixel, 2)."""
    correlation: Array
    """Of each window's best target with its regression, shape (window,); NaN where too few pixels are valid."""


def linearize(view: View, mixing: Array, displacement: Displacement, aside: Array | None = None) -> Linearized:
    """The forward model about a displacement, from all targets together.

    Parameters
    ----------
    view : View
    mixing : ndarray, shape (target, channel)
        Weights of the HSI's channels in each target.
    displacement : Displacement
        Close to the truth: within about a coarse pixel.
    aside : ndarray, shape (2, window), optional
        Move (coarse px) of each window beside the displacement.
    """
    # Errors of the targets of one window are alike, so several of them are worth little more than one.
    parts = linearize_each(view, mixing, displacement, aside)
    return Linearized(
        information=np.asarray(sum(part.information for part in parts) / len(parts)),
        pull=np.asarray(sum(part.pull for part in parts) / len(parts)),
        correlation=np.asarray(np.max([part.correlation for part in parts], axis=0)),
    )


def linearize_each(
    view: View, mixing: Array, displacement: Displacement, aside: Array | None = None
) -> list[Linearized]:
    """The forward model about a displacement, from each target by itself; parameters as in `linearize`."""
    edge = view.survey.edge
    move = _moves(view, displacement, aside)
    samples = view.samples(move)
    valid = np.asarray(np.isfinite(samples).all(axis=0) & np.isfinite(view.channels).all(axis=0), np.float64)
    windows = _Windows(valid=cut(valid, edge), samples=cut(np.nan_to_num(samples), edge), edge=edge)
    slopes = cut(view.gradients(move), edge)  # (window, 2, band, pixel)
    blind = windows.valid.mean(axis=-1) < _MIN_SHARE
    parts = []
    for target in cut(np.nan_to_num(view.targets(mixing)), edge).transpose(1, 0, 2):
        fit = windows.explain(target)
        gradient = windows.projected(np.einsum("wb,wdbp->wpd", fit.gains, slopes), fit.weight)
        weighted = gradient * (fit.weight / np.maximum(fit.variance, 1e-30)[:, None])[..., None]
        parts.append(
            Linearized(
                information=weighted[..., :, None] * gradient[..., None, :],
                pull=weighted * fit.residual[..., None],
                correlation=np.where(blind, np.nan, fit.correlation),
            )
        )
    return parts


def measure(view: View, mixing: Array, displacement: Displacement, aside: Array | None = None) -> TiePoints:
    """Tie points of a view along a displacement; see `linearize`."""
    return _tie_points(view, linearize(view, mixing, displacement, aside), displacement, aside)


def measure_each(view: View, mixing: Array, displacement: Displacement) -> list[TiePoints]:
    """Tie points of a view by each target alone."""
    return [_tie_points(view, part, displacement, None) for part in linearize_each(view, mixing, displacement)]


def _moves(view: View, displacement: Displacement, aside: Array | None) -> Array:
    """Move at every pixel of a view, shape (2, y, x)."""
    move = view.survey.moves(displacement, view.x, view.y)
    if aside is None:
        return move
    edge = view.survey.edge
    rows, cols = (size // edge for size in view.x.shape)
    return np.asarray(move + aside.reshape(2, rows, cols).repeat(edge, axis=1).repeat(edge, axis=2))


def _tie_points(view: View, found: Linearized, displacement: Displacement, aside: Array | None) -> TiePoints:
    edge = view.survey.edge
    whole = found.information.sum(axis=1)
    step = _solved(whole, found.pull.sum(axis=1))
    odd = np.add.outer(np.arange(edge), np.arange(edge)).ravel() % 2 == 1
    halves = [_solved(found.information[:, half].sum(axis=1), found.pull[:, half].sum(axis=1)) for half in (odd, ~odd)]
    worth = np.trace(found.information, axis1=2, axis2=3)
    total = worth.sum(axis=1, keepdims=True)
    share = np.divide(worth, total, out=np.full_like(worth, 1.0 / edge**2), where=total > 0)
    x, y = ((cut(axis, edge) * share).sum(axis=-1) for axis in (view.x, view.y))
    here = view.survey.moves(displacement, x, y) + (0.0 if aside is None else aside)
    eigenvalues = np.linalg.eigvalsh(whole)
    sigma = np.sqrt(1.0 / np.maximum(eigenvalues[:, 0], 1e-30))
    # Along straight lines only noise has a gradient, and it would pass for knowledge.
    sigma[eigenvalues[:, 0] < _LEAST_ACROSS * eigenvalues[:, 1]] = np.inf
    blind = np.isnan(found.correlation) | (total[:, 0] <= 0)
    step[blind] = np.nan
    return TiePoints(
        x=x,
        y=y,
        move=here + step.T,
        remainder=step.T,
        sigma=np.where(blind, np.nan, sigma),
        split=np.linalg.norm(halves[0] - halves[1], axis=-1),
        correlation=np.where(blind, np.nan, found.correlation),
    )


@dataclass(frozen=True, kw_only=True)
class _Fit:
    """A regression of one target in every window."""

    gains: Array
    """Of each MSI band, shape (window, band)."""
    residual: Array
    """What it leaves, shape (window, pixel)."""
    weight: Array
    """Of each pixel, shape (window, pixel)."""
    variance: Array
    """Of the residual, shape (window,)."""
    correlation: Array
    """Shape (window,)."""


class _Windows:
    """The regressors of all windows: 1, x, y, and the MSI's bands; shape (window, pixel, term)."""

    def __init__(self, *, valid: Array, samples: Array, edge: int) -> None:
        n_windows, n_pixels = valid.shape
        bands = samples.transpose(0, 2, 1)
        total = np.maximum(valid.sum(axis=-1), 1.0)
        center = (bands * valid[..., None]).sum(axis=1) / total[:, None]
        bands = (bands - center[:, None]) * valid[..., None]
        spread = np.sqrt((bands**2).sum(axis=1) / total[:, None])
        self._scale = np.where(spread > 0, spread, 1.0)
        self._terms = np.concatenate(
            [np.broadcast_to(trend(edge), (n_windows, n_pixels, 3)), bands / self._scale[:, None]], axis=-1
        )
        self.valid = valid

    def explain(self, target: Array) -> _Fit:
        """Robust regression of a target, shape (window, pixel)."""
        weight = self.valid
        n_terms = self._terms.shape[-1]
        for _ in range(_REWEIGHTED):
            coefficients = self._regressed(target[..., None], weight)[..., 0]
            residual = (target - np.einsum("wpt,wt->wp", self._terms, coefficients)) * self.valid
            spread = 1.4826 * _median(np.abs(residual), self.valid)
            reach = _TUKEY * np.maximum(spread, 1e-12)[:, None]
            weight = self.valid * np.square(np.clip(1.0 - (residual / reach) ** 2, 0.0, None))
        n = weight.sum(axis=-1)
        freedom = np.maximum(n - n_terms, 1.0)
        variance = (weight * residual**2).sum(axis=-1) / freedom
        # The trend is no evidence that both images show the same, so it does not count as explained.
        plain = target - np.einsum("wpt,wt->wp", self._terms[..., :3], self._trend(target, weight))
        total = (weight * plain**2).sum(axis=-1) / np.maximum(n - 3.0, 1.0)
        explained = 1.0 - np.divide(variance, total, out=np.ones_like(total), where=total > 0)
        return _Fit(
            gains=coefficients[:, 3:] / self._scale,
            residual=residual,
            weight=weight,
            variance=np.maximum(variance, 1e-6 * total),
            correlation=np.sqrt(np.clip(explained, 0.0, 1.0)),
        )

    def projected(self, gradient: Array, weight: Array) -> Array:
        """Gradients (window, pixel, 2) less what the regressors explain of them."""
        return np.asarray(gradient - self._terms @ self._regressed(gradient, weight))

    def _regressed(self, values: Array, weight: Array) -> Array:
        """Coefficients (window, term, k) of values (window, pixel, k)."""
        return least_squares(self._terms, values, weight)

    def _trend(self, target: Array, weight: Array) -> Array:
        return least_squares(self._terms[..., :3], target[..., None], weight)[..., 0]


def trend(edge: int) -> Array:
    """1, x and y over the pixels of a window, shape (pixel, 3)."""
    along = (np.arange(edge) - (edge - 1) / 2) / edge
    y, x = np.meshgrid(along, along, indexing="ij")
    return np.stack([np.ones(edge * edge), x.ravel(), y.ravel()], axis=-1)


def least_squares(terms: Array, values: Array, weight: Array) -> Array:
    """Coefficients (window, term, k) that make values (window, pixel, k) of terms (window, pixel, term)."""
    weighted = (terms * weight[..., None]).transpose(0, 2, 1)
    normal = weighted @ terms
    ridge = _RIDGE * np.trace(normal, axis1=1, axis2=2) / terms.shape[-1] + 1e-12
    return np.asarray(np.linalg.solve(normal + ridge[:, None, None] * np.eye(terms.shape[-1]), weighted @ values))


def _solved(information: Array, pull: Array) -> NDArray[np.float64]:
    ridge = 1e-9 * np.trace(information, axis1=1, axis2=2) + 1e-12
    return np.asarray(np.linalg.solve(information + ridge[:, None, None] * np.eye(2), pull[..., None])[..., 0])


def _median(values: Array, valid: Array) -> Array:
    """Median of the valid values of each window, 0 where there is none; shape (window,)."""
    ordered = np.sort(np.where(valid > 0, values, np.inf), axis=-1)
    middle = np.maximum(valid.sum(axis=-1).astype(int) - 1, 0) // 2
    found = np.take_along_axis(ordered, middle[:, None], axis=-1)[:, 0]
    return np.where(np.isfinite(found), found, 0.0)


def cut(image: Array, edge: int) -> Array:
    """Windows of an image (..., y, x), shape (window, ..., pixel)."""
    *lead, height, width = image.shape
    cut = image.reshape(*lead, height // edge, edge, width // edge, edge)
    order = (len(lead), len(lead) + 2, *range(len(lead)), len(lead) + 1, len(lead) + 3)
    return np.asarray(cut.transpose(order).reshape(-1, *lead, edge * edge))
