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

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import torch

from hyperfuse.models.subspace.kriging import coarse_covariance

LENGTHS = (0.25, 1.0, 4.0)
"""Of the field, in coarse pixels."""
SIGNALS = tuple(10.0 ** (half / 2) for half in range(-4, 13))
"""Variance of the field over that of the noise."""
PENALTY = 1.0
"""Of a further free column, in logarithms of the number of samples: twice that of the Bayesian information criterion. Bands
of a good image differ by some hundredths of a pixel as well, and there the fine pixels do so too."""
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
    evidence: torch.Tensor
    """Log likelihood of each component, not restricted: comparable between sets of free columns; shape (K,), float64."""


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


def whitened_gram(samples: torch.Tensor, valid: torch.Tensor, field: Field, sigma: float) -> torch.Tensor:
    """Products of all columns under one field, shape (Q, Q); arguments are those of `products`."""
    edge = round(samples.shape[1] ** 0.5)
    return _whitened(samples, valid, field, _covariance(edge, field, sigma)).gram


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
    best, evidence = (torch.full((n_components,), -torch.inf, dtype=torch.float64) for _ in range(2))
    coefficients = torch.zeros(n_components, len(columns), dtype=torch.float64)
    noise = torch.ones(n_components, dtype=torch.float64)
    fields = [whitened[0].field] * n_components
    for sums in whitened:
        likelihood, candidate, variance, unrestricted = _likeliest(sums, columns, n_free, n_components, n_samples)
        better = likelihood > best
        best = torch.where(better, likelihood, best)
        coefficients[better] = candidate[better]
        noise[better] = variance[better]
        evidence[better] = unrestricted[better]
        for k in torch.nonzero(better).flatten().tolist():
            fields[k] = sums.field
    return Fit(coefficients=coefficients, fields=tuple(fields), noise=noise, evidence=evidence)


def fit_with(
    whitened: list[_Products],
    columns: torch.Tensor,
    doubts: Sequence[torch.Tensor],
    witnessed: Sequence[bool],
    *,
    n_free: int,
    n_components: int,
    n_samples: int,
) -> Fit:
    """The likeliest regression, with further free columns for each component that bears them out.

    Each set of `doubts` takes part in a component's regression if it is likelier by more than `PENALTY` allows for.

    Parameters
    ----------
    whitened, columns, n_free, n_components, n_samples
        As for `fit`.
    doubts : sequence of Tensor of int
        Sets of columns.
    witnessed : sequence of bool
        Whether each set is told by enough samples to be tried.

    Returns
    -------
    Fit
        Coefficients of `columns`, then of all doubts in turn, 0 where they take no part.

    References
    ----------
    Schwarz (1978), Estimating the dimension of a model, Annals of Statistics 6(2), 461-464.
    """
    free, rest = columns[:n_free], columns[n_free:]
    sizes = [len(free), *(len(doubt) for doubt in doubts), len(rest)]
    best = fit(whitened, columns, n_free, n_components, n_samples)
    # Further columns change the residual's field little, so that only fields are tried which the components have anyway.
    whitened = [sums for sums in whitened if sums.field in best.fields]
    score = torch.full((n_components,), -torch.inf, dtype=torch.float64)
    for taken in itertools.product(*((False, True) if may else (False,) for may in witnessed)):  # none first
        parts = [free, *(doubt for doubt, takes in zip(doubts, taken, strict=True) if takes), rest]
        n_taken = sum(len(part) for part in parts[:-1])
        fitted = fit(whitened, torch.cat(parts), n_taken, n_components, n_samples)
        split = list(fitted.coefficients.split([len(part) for part in parts], dim=1))
        at_free, at_rest, at_doubts = split[0], split[-1], iter(split[1:-1])
        each = [
            next(at_doubts) if takes else at_free.new_zeros(n_components, size)
            for takes, size in zip(taken, sizes[1:-1], strict=True)
        ]
        fitted = replace(fitted, coefficients=torch.cat([at_free, at_rest, *each], dim=1))
        criterion = fitted.evidence - PENALTY * n_taken * math.log(max(n_samples, 2))
        best = _either(criterion > score, fitted, best) if any(taken) else fitted
        score = torch.maximum(score, criterion)
    return best


def _either(first: torch.Tensor, one: Fit, other: Fit) -> Fit:
    """Components of one fit where `first` holds, of the other elsewhere."""
    return Fit(
        coefficients=torch.where(first[:, None], one.coefficients, other.coefficients),
        fields=tuple(a if takes else b for a, b, takes in zip(one.fields, other.fields, first.tolist(), strict=True)),
        noise=torch.where(first, one.noise, other.noise),
        evidence=torch.where(first, one.evidence, other.evidence),
    )


def _fields(edge: int, sigma: float) -> Iterator[tuple[Field, torch.Tensor]]:
    for length in LENGTHS:
        for signal in SIGNALS:
            field = Field(length=length, signal=signal)
            yield field, _covariance(edge, field, sigma)


def _covariance(edge: int, field: Field, sigma: float) -> torch.Tensor:
    """Of the samples of a patch, in units of the noise's variance."""
    shape = _shape(edge, field.length, sigma)
    return field.signal * shape + torch.eye(len(shape), dtype=shape.dtype)


@lru_cache(maxsize=16)
def _shape(edge: int, length: float, sigma: float) -> torch.Tensor:
    return coarse_covariance(edge, length, sigma)


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
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Restricted log likelihood, coefficients, noise variance and log likelihood of each component.

    All at the width of the prior where the restricted likelihood is largest.
    """
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
    noise = variance.gather(0, at[None])[0]
    n_all = max(n_samples, 1)
    evidence = -0.5 * (n_all * (noise * n_left / n_all).log() + freedom[at, 0] + sums.log_det)
    return best, coefficients, noise, evidence
