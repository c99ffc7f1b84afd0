"""Kriging, and the regression whose residuals it spreads: against brute force, and on fields of known covariance."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from hyperfuse.models.operators import degrade
from hyperfuse.models.subspace import kriging as _kriging
from hyperfuse.models.subspace.kriging import coarse_covariance, covariance, filters, predict
from hyperfuse.models.subspace.regression import LENGTHS, fit, products

EDGE, SIGMA = 16, 0.5
"""Of the patches of the regression, and the PSF, in coarse pixels."""


def white(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# --- covariances and filters ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("sigma", [0.35, 0.6])
def test_covariance_is_that_of_the_field_blurred_twice(length, sigma):
    """Against the covariance on a fine grid, blurred once for either end."""
    step, reach = 0.02, 350
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1] * step
    own = np.exp(-np.hypot(y, x) / length)
    blurred = gaussian_filter(gaussian_filter(own, sigma / step, truncate=6), sigma / step, truncate=6)
    at = np.array([0, 10, 25, 50, 75, 100])
    np.testing.assert_allclose(
        covariance(at * step, length, 2 * sigma**2), blurred[reach, reach + at], rtol=0.01, atol=1e-3
    )


@pytest.mark.parametrize("ratio", [2, 3, 4])
@pytest.mark.parametrize("length", [1.0, 4.0])
def test_a_strong_field_honors_its_samples(ratio, length):
    """Blurred and sampled again, what noise-free samples predict is the samples."""
    weights, _ = filters(ratio, SIGMA, length, 1e6)
    samples = white(1, 1, 24, 24).float()
    again = degrade(predict(samples, weights[None], ratio), ratio, SIGMA * ratio)
    inner = (..., slice(8, -8), slice(8, -8))
    assert (again - samples)[inner].norm() < 0.03 * samples[inner].norm()


def test_a_long_field_is_a_mean_of_its_samples():
    weights, _ = filters(4, SIGMA, 100.0, 1e4)
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(16), rtol=0, atol=0.01)
    drowned, _ = filters(4, SIGMA, 1.0, 1e-4)
    assert drowned.abs().max() < 1e-3  # in noise nothing is predicted


def test_what_is_left_open_grows_away_from_the_sample_and_falls_with_signal():
    _, left = filters(5, SIGMA, 1.0, 100.0)
    distance = (torch.arange(5) - 2.0)[:, None].square() + (torch.arange(5) - 2.0).square()
    order = distance.flatten().argsort(stable=True)
    assert (left[order].diff() > -1e-4 * left.max()).all()
    assert left[order[-1]] > 1.1 * left[order[0]]
    shares = [float((filters(5, SIGMA, 1.0, signal)[1] / signal).mean()) for signal in (0.01, 1.0, 100.0, 1e4)]
    assert shares == sorted(shares, reverse=True)
    assert 0.9 < shares[0] <= 1.0  # next to no signal: all of the field is left
    assert shares[-1] < 0.5


def test_prediction_moves_with_its_samples_and_is_exact_over_windows():
    ratio, reach = 3, _kriging.REACH
    weights = torch.stack([filters(ratio, SIGMA, length, 100.0)[0] for length in (0.25, 4.0)])
    samples = white(1, 2, 30, 31).float()
    whole = predict(samples, weights, ratio)
    inner = slice((reach + 3) * ratio, -(reach + 3) * ratio)
    moved = predict(samples.roll((2, -3), dims=(-2, -1)), weights, ratio)
    torch.testing.assert_close(
        moved[..., inner, inner], whole.roll((2 * ratio, -3 * ratio), dims=(-2, -1))[..., inner, inner]
    )
    window = predict(samples[..., 4:22, 6:25], weights, ratio)[
        ..., reach * ratio : -reach * ratio, reach * ratio : -reach * ratio
    ]
    at = slice((4 + reach) * ratio, (22 - reach) * ratio), slice((6 + reach) * ratio, (25 - reach) * ratio)
    torch.testing.assert_close(window, whole[..., at[0], at[1]])


def test_unknown_samples_are_bridged_by_their_neighbors():
    samples = white(1, 2, 5, 6).float()
    known = torch.ones(1, 1, 5, 6, dtype=torch.bool)
    assert torch.equal(_kriging.bridged(samples, known), samples)
    known[..., 2, 3] = False
    other = samples.clone()
    other[..., 2, 3] = 1e6
    filled = _kriging.bridged(other, known)
    around = (samples[..., 1:4, 2:5].sum(dim=(-2, -1)) - samples[..., 2, 3]) / 8
    torch.testing.assert_close(filled[..., 2, 3], around)
    assert torch.equal(filled[..., :2, :], samples[..., :2, :])


# --- regression ----------------------------------------------------------------------------------------------------


def colors(n_patches: int) -> torch.Tensor:
    """Constant, two guides and their product, shape (M, e ** 2, 4)."""
    first, second = white(2, n_patches, EDGE**2)
    return torch.stack([torch.ones_like(first), first, second, first * second], dim=-1)


def simulated(n_patches: int, length: float, signal: float) -> torch.Tensor:
    """A field in noise of variance 1, shape (M, e ** 2)."""
    both = signal * coarse_covariance(EDGE, length, SIGMA) + torch.eye(EDGE**2)
    return white(n_patches, EDGE**2, seed=1) @ torch.linalg.cholesky(both).T


def fitted(features: torch.Tensor, values: torch.Tensor, n_free: int, valid: torch.Tensor | None = None):
    """One component regressed on all features."""
    valid = torch.ones(features.shape[:2], dtype=torch.bool) if valid is None else valid
    samples = torch.cat([features, values[..., None]], dim=-1) * valid[..., None]
    columns = torch.arange(features.shape[-1])
    return fit(products(samples, valid, SIGMA), columns, n_free, 1, int(valid.sum()))


def test_planted_coefficients_come_back():
    features, planted = colors(4), torch.tensor([3.0, 20.0, -10.0, 5.0], dtype=torch.float64)
    found = fitted(features, features @ planted + white(4, EDGE**2, seed=2), n_free=3)
    error = 5.0 / 32  # five standard errors of a coefficient of 1024 samples
    torch.testing.assert_close(found.coefficients[0], planted, rtol=0, atol=error)
    assert float(found.noise[0]) == pytest.approx(1.0, rel=0.15)


def test_samples_that_are_not_valid_count_for_nothing():
    features, planted = colors(4), torch.tensor([3.0, 20.0, -10.0, 5.0], dtype=torch.float64)
    values = features @ planted + white(4, EDGE**2, seed=2)
    valid = torch.ones(4, EDGE**2, dtype=torch.bool)
    valid[1, 40:200], valid[3] = False, False
    found = fitted(features, torch.where(valid, values, 1e6), n_free=3, valid=valid)
    torch.testing.assert_close(found.coefficients[0], planted, rtol=0, atol=0.3)
    left_out = fitted(features[:3], values[:3], n_free=3, valid=valid[:3])
    torch.testing.assert_close(found.coefficients, left_out.coefficients)


def test_a_linear_scene_gets_no_bend():
    features = colors(4)
    linear = torch.tensor([3.0, 20.0, -10.0, 0.0], dtype=torch.float64)
    found = fitted(features, features @ linear + white(4, EDGE**2, seed=2), n_free=3)
    assert abs(float(found.coefficients[0, 3])) < 1 / 32  # less than a standard error of plain least squares
    torch.testing.assert_close(found.coefficients[0, :3], linear[:3], rtol=0, atol=5 / 32)


@pytest.mark.parametrize("length", LENGTHS)
def test_the_field_of_the_residual_is_found(length):
    signal = 1e3
    values = simulated(8, length, signal)
    found = fitted(torch.ones(8, EDGE**2, 1, dtype=torch.float64), values, n_free=1)
    assert found.fields[0].length == length
    # Signal and noise share the scale between them, so their product is what the samples tell.
    assert float(found.noise[0]) * found.fields[0].signal == pytest.approx(signal, rel=0.5)


def test_white_residuals_have_no_field():
    """One much shorter than the PSF is as good as white, so what is told is the variance that reaches a sample."""
    found = fitted(torch.ones(4, EDGE**2, 1, dtype=torch.float64), white(4, EDGE**2), n_free=1)
    (field,) = found.fields
    reaching = field.signal * float(covariance(np.zeros(1), field.length, 2 * SIGMA**2)[0])
    assert reaching < 0.2
    assert float(found.noise[0]) * (1.0 + reaching) == pytest.approx(1.0, rel=0.15)
