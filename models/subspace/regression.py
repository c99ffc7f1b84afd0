"""Regression of spectral components on features of the MSI, with residuals that are correlated in space.

For each component k the coarse samples are

    c_k = features @ coefficients + field_k + noise,    field_k ~ signal * exp(-d / length), blurred by the PSF,

with a flat prior on the coefficients of the constant and of the guides themselves, and a Gaussian one on all others. Its
width, and the field's signal and length, are those of the largest restricted likelihood on a grid: so a scene that
shows no curvature gets none, and neighbors that err alike are not counted as independent witnesses.

References: Patterson & Thompson (1971), Recovery of inter-block information when block sizes are unequal, Biometrika
58(3), 545-554; Rasmussen & Williams (2006), Gaussian processes for machine learning, MIT Press, 2.7 and 5.4.
Code: written from the references for HyperFuse, Apache-2.0.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from hyperfuse.models.subspace.kriging import coarse_covariance

LENGTHS = (0.25, 1.0, 4.0)
"""Of the field, in coarse pixels."""
SIGNALS = tuple(10.0 ** (half / 2) for half in range(-4, 13))
"""Variance of the field over that of the noise."""
_WIDTHS = torch.logspace(-7, 3, 31, dtype=torch.float64)
"""Of the prior's inverse width, as a share of the largest eigenvalue per sample."""


@dataclass(frozen=True, kw_only=True)
class Field:
    """Covariance of a component's residual."""

    length: float
    """In coarse pixels."""
    signal: float
    """Variance over that of the noise."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Fit:
    """The likeliest regression of each component."""

    coefficients: torch.Tensor
    """Shape (K, Q), float64."""
    fields: tuple[Field, ...]
    """Of each component's residual."""
    noise: torch.Tensor
    """Variance of each component's noise, shape (K,), float64."""


@dataclass(frozen=True, kw_only=True, eq=False)
class _Products:
    """Products of the whitened samples under one field."""

    field: Field
    gram: torch.Tensor
    """Of [features, components], shape (Q + K, Q + K)."""
    log_det: float
    """Of the samples' covariance."""


def products(samples: torch.Tensor, valid: torch.Tensor, sigma: float) -> list[_Products]:
    """Sums that all regressions on these samples need, for every field of the grid.

    Parameters
    ----------
    samples : Tensor, shape (M, e ** 2, Q), float64
        Columns of M patches, 0 where not valid.
    valid : Tensor, shape (M, e ** 2), bool
    sigma : float
        PSF, in coarse pixels.
    """
    edge = round(samples.shape[1] ** 0.5)
    return [_whitened(samples, valid, field, covariance) for field, covariance in _fields(edge, sigma)]


def fit(whitened: list[_Products], columns: torch.Tensor, n_free: int, n_components: int, n_samples: int) -> Fit:
    """The likeliest regression of each component on some of the features.

    Parameters
    ----------
    whitened : list
        From `products`; the components are the last columns.
    columns : Tensor of int
        Features that take part; the first `n_free` have a flat prior.
    n_free, n_components, n_samples : int
    """
    best = torch.full((n_components,), -torch.inf, dtype=torch.float64)
    coefficients = torch.zeros(n_components, len(columns), dtype=torch.float64)
    noise = torch.ones(n_components, dtype=torch.float64)
    fields = [whitened[0].field] * n_components
    for sums in whitened:
        likelihood, candidate, variance = _likeliest(sums, columns, n_free, n_components, n_samples)
        better = likelihood > best
        best = torch.where(better, likelihood, best)
        coefficients[better] = candidate[better]
        noise[better] = variance[better]
        for k in torch.nonzero(better).flatten().tolist():
            fields[k] = sums.field
    return Fit(coefficients=coefficients, fields=tuple(fields), noise=noise)


def _fields(edge: int, sigma: float) -> Iterator[tuple[Field, torch.Tensor]]:
    for length in LENGTHS:
        shape = coarse_covariance(edge, length, sigma)
        for signal in SIGNALS:
            yield (
                Field(length=length, signal=signal),
                signal * shape + torch.eye(len(shape), dtype=shape.dtype, device=shape.device),
            )


def _whitened(samples: torch.Tensor, valid: torch.Tensor, field: Field, covariance: torch.Tensor) -> _Products:
    gram = samples.new_zeros(samples.shape[2], samples.shape[2])
    log_det = 0.0
    whole = valid.all(dim=1)
    if whole.any():  # they share one factor
        factor = torch.linalg.cholesky(covariance)
        many = samples[whole].movedim(0, 1).flatten(1)  # (e ** 2, M * Q)
        solved = torch.linalg.solve_triangular(factor, many, upper=False)
        solved = solved.unflatten(1, (int(whole.sum()), -1)).flatten(0, 1)
        gram += solved.T @ solved
        log_det += 2.0 * float(factor.diagonal().log().sum()) * int(whole.sum())
    for patch in torch.nonzero(~whole).flatten().tolist():
        shown = valid[patch]
        factor = torch.linalg.cholesky(covariance[shown][:, shown])
        solved = torch.linalg.solve_triangular(factor, samples[patch, shown], upper=False)
        gram += solved.T @ solved
        log_det += 2.0 * float(factor.diagonal().log().sum())
    return _Products(field=field, gram=gram, log_det=log_det)


def _likeliest(
    sums: _Products, columns: torch.Tensor, n_free: int, n_components: int, n_samples: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Restricted log likelihood, coefficients and noise variance of each component, at the best width of the prior."""
    split = sums.gram.shape[0] - n_components
    gram = sums.gram[columns][:, columns]
    cross = sums.gram[columns, split:]  # (Q, K)
    total = sums.gram.diagonal()[split:]  # (K,)
    free = gram[:n_free, :n_free]
    free = free + 1e-9 * free.diagonal().mean() * torch.eye(n_free, dtype=free.dtype)
    on_free = torch.linalg.solve(free, torch.cat([gram[:n_free, n_free:], cross[:n_free]], dim=1))
    of_rest, of_components = on_free.split([len(columns) - n_free, n_components], dim=1)
    rest = gram[n_free:, n_free:] - gram[n_free:, :n_free] @ of_rest
    rest_cross = cross[n_free:] - gram[n_free:, :n_free] @ of_components
    left = (total - (cross[:n_free] * of_components).sum(dim=0)).clamp_min(1e-30)
    n_left = max(n_samples - n_free, 1)
    values, vectors = torch.linalg.eigh(rest)
    values = values.clamp_min(0.0)
    along = vectors.T @ rest_cross  # (Q - free, K)
    largest = values[-1].clamp_min(1e-30) if len(values) else torch.ones(())
    inverse_width = (_WIDTHS * largest / n_samples)[:, None, None]  # (width, 1, 1)
    explained = (along.square() / (values[:, None] + inverse_width)).sum(dim=1)  # (width, K)
    variance = (left - explained).clamp_min(1e-12 * left) / n_left
    freedom = torch.log1p(values[:, None] / inverse_width).sum(dim=1)
    likelihood = -0.5 * (n_left * variance.log() + freedom + sums.log_det + torch.logdet(free))
    best, at = likelihood.max(dim=0)  # (K,)
    penalized = vectors @ (along / (values[:, None] + inverse_width[at, 0, 0]))
    coefficients = torch.cat([of_components - of_rest @ penalized, penalized]).T
    return best, coefficients, variance.gather(0, at[None])[0]
