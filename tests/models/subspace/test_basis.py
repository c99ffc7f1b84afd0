"""Noise of the HSI's bands, and the components that stand out of it."""

from __future__ import annotations

import pytest
import torch

from hyperfuse.models.subspace.basis import MOST, Subspace


def planted(n_components: int, n_bands: int, n_pixels: int, *, seed: int = 0):
    """Spectra (C, n) of strong factors in noise that grows tenfold over the bands; the noise (C,); the factors (C, K)."""
    rng = torch.Generator().manual_seed(seed)
    noise = torch.logspace(-2, -1, n_bands, dtype=torch.float64)
    factors = torch.randn(n_bands, n_components, generator=rng, dtype=torch.float64)
    weights = torch.randn(n_components, n_pixels, generator=rng, dtype=torch.float64)
    white = torch.randn(n_bands, n_pixels, generator=rng, dtype=torch.float64)
    return 5.0 + factors @ weights + noise[:, None] * white, noise, factors


@pytest.mark.parametrize(("n_bands", "n_pixels"), [(60, 600), (100, 1000), (200, 2000)])
@pytest.mark.parametrize("n_components", [2, 5, 12])
def test_noise_and_components_of_a_factor_model(n_components, n_bands, n_pixels):
    spectra, noise, factors = planted(n_components, n_bands, n_pixels)
    found = Subspace.of(spectra)
    assert ((found.noise / noise).log().square().mean().sqrt()) < 0.1
    assert found.basis.shape[1] in (n_components, n_components + 1)
    # The factors lie in the subspace.
    inside = found.synthesis @ (found.analysis @ factors)
    assert (inside - factors).norm() < 0.01 * factors.norm()


def test_components_have_white_noise_of_variance_one():
    spectra, noise, _ = planted(4, 100, 1000)
    found = Subspace.of(spectra)
    of_noise = (found.analysis * noise) @ (found.analysis * noise).T
    torch.testing.assert_close(of_noise, torch.eye(len(of_noise), dtype=torch.float64), rtol=0, atol=0.1)
    torch.testing.assert_close(found.analysis @ found.synthesis, torch.eye(len(of_noise), dtype=torch.float64))


def test_fewer_pixels_than_bands():
    spectra, noise, factors = planted(4, 200, 120)
    found = Subspace.of(spectra)
    assert torch.isfinite(found.noise).all()
    assert 0.7 < float((found.noise / noise).log().mean().exp()) < 1.3
    assert found.basis.shape[1] in (4, 5)
    assert (found.synthesis @ (found.analysis @ factors) - factors).norm() < 0.02 * factors.norm()


@pytest.mark.parametrize("n_bands", [1, 2, 30])
def test_without_noise_nothing_fails(n_bands):
    rng = torch.Generator().manual_seed(0)
    spectra = torch.rand(n_bands, 3, generator=rng).double() @ torch.rand(3, 400, generator=rng).double()
    found = Subspace.of(spectra)
    assert (found.noise > 0).all()
    assert 1 <= found.basis.shape[1] <= MOST
    centered = spectra - found.mean[:, None]
    if n_bands > 9:  # three components are a third of the bands at most
        torch.testing.assert_close(found.synthesis @ (found.analysis @ centered), centered, rtol=0, atol=1e-3)
    assert torch.isfinite(Subspace.of(torch.full((n_bands, 50), 0.3, dtype=torch.float64)).synthesis).all()
