"""Noise: that of the HSI's bands and the components that stand out of it, and that of the MSI."""

from __future__ import annotations

import pytest
import torch

from models._denoise import LocalWiener
from models._layers import upsample
from models._subspace import MOST, Subspace

# --- noise of the HSI and its components ---------------------------------------------------------------------------


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


# --- noise of the MSI ----------------------------------------------------------------------------------------------


def textured(n_bands: int = 4, *, snr: float | None = None, size: int = 96):
    """A scene of coarse and fine texture that its bands share, in noise; its bands are of very different strength."""
    rng = torch.Generator().manual_seed(0)
    fields = [upsample(torch.rand(1, size // step, size // step, generator=rng), step) for step in (1, 4, 16)]
    strength = torch.logspace(-1, 1, n_bands)[:, None, None]
    mix = torch.rand(n_bands, 3, generator=rng)
    scene = strength * (1.0 + torch.einsum("bk,khw->bhw", mix, torch.cat(fields)))[None]
    shown = torch.ones(1, size, size, dtype=torch.bool)
    if snr is None:
        return scene, scene, shown
    rms = scene.square().mean(dim=(0, 2, 3)).sqrt()[:, None, None]
    return scene, scene + rms / snr * torch.randn(scene.shape, generator=rng), shown


@pytest.mark.parametrize("snr", [30.0, 100.0, 300.0])
def test_level_of_the_noise_under_texture(snr):
    _, noisy, shown = textured(snr=snr)
    level = LocalWiener.of(noisy, shown, [0, 1, 2, 3]).level
    assert level == pytest.approx(snr**-2, rel=0.3)
    clean, _, _ = textured()
    assert LocalWiener.of(clean, shown, [0, 1, 2, 3]).level < 0.2 * level


def test_what_is_hidden_does_not_count():
    _, noisy, shown = textured(snr=100.0)
    shown[:, 20:40, 30:70] = False
    other = noisy.clone()
    other[:, :, 20:40, 30:70] = 1e3
    filters = [LocalWiener.of(image, shown, [0, 1, 2, 3]) for image in (noisy, other)]
    assert filters[0].level == filters[1].level
    assert filters[0].level == pytest.approx(1e-4, rel=0.3)


@pytest.mark.parametrize("bands", [[], [1], [0, 2]])
def test_with_fewer_than_three_bands_nothing_is_filtered(bands):
    _, noisy, shown = textured(snr=30.0)
    assert LocalWiener.of(noisy, shown, bands)(noisy) is noisy


def test_filtering_takes_noise_away_and_leaves_other_bands_alone():
    clean, _, shown = textured(5)
    smooth = clean.clone()  # half of the scene is smooth
    smooth[..., 48:] = clean.mean(dim=(-2, -1), keepdim=True)
    rms = smooth.square().mean(dim=(0, 2, 3)).sqrt()[:, None, None]
    noisy = smooth + rms / 50 * torch.randn(smooth.shape, generator=torch.Generator().manual_seed(3))
    filtered = LocalWiener.of(noisy, shown, [0, 1, 3, 4])(noisy)
    assert torch.equal(filtered[:, 2], noisy[:, 2])
    before, after = (
        ((image - smooth) / rms)[:, [0, 1, 3, 4]].square().mean(dim=(0, 1, 2)) for image in (noisy, filtered)
    )
    assert after[50:].mean() < 0.3 * before[50:].mean()
    assert after[:46].mean() < before[:46].mean()
