"""Noise of the MSI: how strong it is, and what takes it away, for bands of one step and of several."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import avg_pool2d

from hyperfuse.models import Observed
from hyperfuse.models.operators import degrade, upsample
from hyperfuse.models.subspace.guides import smooth_guides
from hyperfuse.models.subspace.noise import Denoiser, LocalWiener, noise_level, reach


def observed(steps, sigmas=()) -> Observed:
    return Observed(hsi_bands=5, msi_bands=len(steps), ratio=6, psf_sigma_px=3.0, msi_steps=steps, msi_sigma_px=sigmas)


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
    level = noise_level(noisy, shown)
    assert level == pytest.approx(snr**-2, rel=0.3)
    clean, _, _ = textured()
    assert noise_level(clean, shown) < 0.2 * level


def test_what_is_hidden_does_not_count():
    _, noisy, shown = textured(snr=100.0)
    shown[:, 20:40, 30:70] = False
    other = noisy.clone()
    other[:, :, 20:40, 30:70] = 1e3
    levels = [noise_level(image, shown) for image in (noisy, other)]
    assert levels[0] == levels[1]
    assert levels[0] == pytest.approx(1e-4, rel=0.3)


@pytest.mark.parametrize("steps", [(2, 2, 2), (2, 1, 2), (1, 2, 1)])
def test_with_fewer_than_three_bands_of_step_one_nothing_is_filtered(steps):
    _, noisy, shown = textured(3, snr=30.0)
    assert Denoiser.of(noisy, shown, observed(steps))(noisy) is noisy


def half_smooth(n_bands: int):
    """A scene that is smooth on the right, and its root mean squares."""
    clean, _, shown = textured(n_bands)
    scene = clean.clone()
    scene[..., 48:] = clean.mean(dim=(-2, -1), keepdim=True)
    return scene, scene.square().mean(dim=(0, 2, 3)).sqrt()[:, None, None], shown


def test_filtering_takes_noise_away():
    smooth, rms, shown = half_smooth(4)
    noisy = smooth + rms / 50 * torch.randn(smooth.shape, generator=torch.Generator().manual_seed(3))
    filtered = Denoiser.of(noisy, shown, observed((1,) * 4))(noisy)
    before, after = (((image - smooth) / rms).square().mean(dim=(0, 1, 2)) for image in (noisy, filtered))
    assert after[50:].mean() < 0.3 * before[50:].mean()
    assert after[:46].mean() < before[:46].mean()


def blocks_of(scene, steps, sigmas, noise_snr=None, seed=3):
    """What sensors of these steps see of a scene, as guides; with noise of that ratio of amplitudes."""
    rng, bands = torch.Generator().manual_seed(seed), []
    for k, (step, sigma) in enumerate(zip(steps, sigmas, strict=True)):
        band = scene[:, k : k + 1] if step == 1 else degrade(scene[:, k : k + 1], step, sigma)
        if noise_snr is not None:
            band = band + band.square().mean().sqrt() / noise_snr * torch.randn(band.shape, generator=rng)
        bands.append(band.repeat_interleave(step, -1).repeat_interleave(step, -2))
    return smooth_guides(torch.cat(bands, dim=1), observed(steps, sigmas))


def test_samples_of_coarser_bands_lose_their_noise_too():
    steps, sigmas = (1, 1, 1, 2, 2), (0.0, 0.0, 0.0, 1.0, 1.0)
    scene, _, shown = half_smooth(5)
    noisy, clean = (blocks_of(scene, steps, sigmas, snr) for snr in (50.0, None))
    filtered = Denoiser.of(noisy, shown, observed(steps, sigmas))(noisy)
    power = clean.square().mean(dim=(0, 2, 3))[3:, None, None]
    before, after = (
        (avg_pool2d(image - clean, 2)[:, 3:].square() / power).mean(dim=(0, 1, 2)) for image in (noisy, filtered)
    )
    assert after[26:46].mean() < 0.3 * before[26:46].mean()
    assert after[2:22].mean() < before[2:22].mean()
    # Together with the finer bands they lose more than by themselves.
    alone = LocalWiener.of(avg_pool2d(noisy, 2)[:, 3:], shown[:, ::2, ::2], (power[:, 0, 0] / 50**2).double())
    left = (alone(avg_pool2d(noisy, 2)[:, 3:]) - avg_pool2d(clean, 2)[:, 3:]).square() / power
    assert after.mean() < left.mean()


def test_what_is_hidden_changes_nothing_around():
    steps, sigmas = (1, 1, 1, 3), (0.0, 0.0, 0.0, 1.5)
    scene, _, shown = textured(4)
    guides = blocks_of(scene, steps, sigmas, 50.0)
    known = shown[:, None].clone()
    known[..., 30:45, 30:45] = False
    denoise = Denoiser.of(guides, known[:, 0], observed(steps, sigmas))
    other = guides.clone()
    other[..., 30:45, 30:45] = 7.0
    results = [denoise(image, known) for image in (guides, other)]
    torch.testing.assert_close(*(result * known for result in results))


@pytest.mark.parametrize(
    ("steps", "sigmas"), [((1, 1, 1), ()), ((1, 1, 1, 2), (0.0, 0.0, 0.0, 1.0)), ((1, 1, 1, 2, 6), (0.0, 0.0, 0.0, 1.0, 3.0))]
)  # fmt: skip
def test_reach_covers_what_a_pixel_changes(steps, sigmas):
    scene, _, shown = textured(len(steps))
    seen = observed(steps, sigmas)
    guides = blocks_of(scene, steps, sigmas or (0.0,) * 3, 50.0)
    denoise = Denoiser.of(guides, shown, seen)
    for y, x in ((42, 42), (47, 53)):
        changed = guides.clone()
        changed[..., y, x] += 5.0
        touched = torch.nonzero((denoise(changed) - denoise(guides)).abs().amax(dim=(0, 1)) > 1e-5)
        assert (touched - torch.tensor([y, x])).abs().max() <= reach(seen)
