"""Back-projection against a dense solution, its reach, and what it leaves."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hyperfuse.catalogs.sensors import sigma_from_mtf
from hyperfuse.pipeline.fusion.back_projection import LEAST, BackProjection, ResidualSpectrum, residual
from hyperfuse.pipeline.observation.psf import psf_reach, taps
from hyperfuse.pipeline.observation.psf_overlap import kernel_radius, projection_reach

CASES = [(2, 0.3), (3, 0.3), (4, 0.5), (8, 0.3)]
BANDS = 3


def scene(size: int, ratio: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """A fused image and an HSI that know nothing of each other."""
    rng = torch.Generator().manual_seed(seed)
    return torch.rand(BANDS, size * ratio, size * ratio, generator=rng), torch.rand(BANDS, size, size, generator=rng)


def all_valid(size: int, ratio: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.ones(size, size, dtype=torch.bool), torch.ones(size * ratio, size * ratio, dtype=torch.bool)


def rms(left: torch.Tensor, known: torch.Tensor) -> np.ndarray:
    return left[:, known].double().square().mean(dim=1).sqrt().numpy()


@pytest.mark.parametrize(("ratio", "mtf"), CASES)
@pytest.mark.parametrize("value", [LEAST, 0.03, 1.0])
def test_the_correction_is_that_of_the_dense_solution(ratio, mtf, value):
    """H^T (H H^T + lambda)^-1 r with all matrices written out, of a residual in the middle of a large image."""
    sigma, size = sigma_from_mtf(mtf, ratio), 44
    along = taps(range(size), range(size * ratio), ratio, sigma).astype(np.float64)
    gram = along @ along.T
    unit = gram[size // 2].sum() ** 2  # what H H^T does to a constant image
    values, vectors = np.linalg.eigh(gram)
    rng, left = np.random.default_rng(0), np.zeros((size, size))
    left[18:26, 18:26] = rng.standard_normal((8, 8))
    inner = vectors.T @ left @ vectors / (values[:, None] * values + value * unit)
    dense = along.T @ vectors @ inner @ vectors.T @ along
    fused = torch.zeros(1, size * ratio, size * ratio)
    BackProjection(np.array([value]), ratio=ratio, sigma_px=sigma)(
        fused, torch.from_numpy(left).float()[None], *all_valid(size, ratio)
    )
    # The kernel is cut where it may leave a hundredth of the largest residual, at most.
    assert np.abs(along @ (fused[0].numpy() - dense) @ along.T).max() < 0.01 * np.abs(left).max()
    assert np.abs(fused[0].numpy() - dense).max() < 0.02 * np.abs(dense).max()


@pytest.mark.parametrize(("ratio", "mtf"), CASES)
def test_almost_no_residual_is_left_and_holes_do_not_matter(ratio, mtf):
    sigma, size = sigma_from_mtf(mtf, ratio), 40
    fused, hsi = scene(size, ratio)
    shown, valid = all_valid(size, ratio)
    shown[14:17, 20:22], shown[30, 9] = False, False
    valid[5 * ratio : 6 * ratio + 1, 12 * ratio :] = False
    before, known = residual(fused, hsi, shown, valid, ratio=ratio, sigma_px=sigma)
    assert known[20, 20]
    assert not known[15, 21]
    assert not known[5, 30]
    assert not known[0].any()
    assert (before[:, ~known] == 0).all()
    BackProjection(np.full(BANDS, LEAST), ratio=ratio, sigma_px=sigma)(fused, hsi, shown, valid)
    after, again = residual(fused, hsi, shown, valid, ratio=ratio, sigma_px=sigma)
    assert torch.equal(known, again)
    assert (rms(after, known) < 0.02 * rms(before, known)).all()


@pytest.mark.parametrize(("ratio", "mtf"), CASES)
def test_a_window_with_its_reach_is_corrected_as_the_whole(ratio, mtf):
    """With holes and a rim that is no part of the product; and not with much less."""
    sigma = sigma_from_mtf(mtf, ratio)
    far, core = projection_reach(ratio, sigma), 4
    assert far == 2 * psf_reach(ratio, sigma) + kernel_radius(ratio, sigma)
    size = 2 * far + core + 6
    fused, hsi = scene(size, ratio)
    shown, valid = all_valid(size, ratio)
    shown[far, far + 2], valid[:, : 2 * ratio] = False, False
    project = BackProjection(np.array([LEAST, 0.1, np.inf]), ratio=ratio, sigma_px=sigma)
    whole = project(fused.clone(), hsi, shown, valid)
    assert torch.equal(whole[2], fused[2])
    inner = slice((far + 3) * ratio, (far + 3 + core) * ratio)

    def windowed(margin: int) -> torch.Tensor:
        coarse = slice(far + 3 - margin, far + 3 + core + margin)
        fine = slice(coarse.start * ratio, coarse.stop * ratio)
        part = project(fused[:, fine, fine].clone(), hsi[:, coarse, coarse], shown[coarse, coarse], valid[fine, fine])
        return part[:, margin * ratio : -margin * ratio, margin * ratio : -margin * ratio]

    torch.testing.assert_close(windowed(far), whole[:, inner, inner], rtol=1e-5, atol=1e-5)
    assert (windowed(far - 6) - whole[:, inner, inner]).abs().max() > 1e-5


def test_lambda_is_the_largest_that_reaches_the_noise():
    ratio, sigma = 4, sigma_from_mtf(0.3, 4)
    size = 64
    fused, hsi = scene(size, ratio)
    masks = all_valid(size, ratio)
    spectrum = ResidualSpectrum(BANDS, ratio=ratio, sigma_px=sigma)
    left, known = residual(fused, hsi, *masks, ratio=ratio, sigma_px=sigma)
    spectrum.add(left, known)
    assert spectrum.pixels == int(known.sum())
    np.testing.assert_allclose(spectrum.rms(), rms(left, known), rtol=1e-5)
    wanted = spectrum.rms() * np.array([0.7, 0.1, 1.1])
    lambdas = spectrum.lambdas(wanted)
    assert lambdas[0] > lambdas[1] > LEAST
    assert np.isinf(lambdas[2])
    BackProjection(lambdas, ratio=ratio, sigma_px=sigma)(fused, hsi, *masks)
    after = rms(residual(fused, hsi, *masks, ratio=ratio, sigma_px=sigma)[0], known)
    assert (after <= wanted * 1.001).all()
    assert (after[:2] > 0.85 * wanted[:2]).all()  # from below, but not far
    unreachable = spectrum.lambdas(np.zeros(BANDS))
    np.testing.assert_allclose(unreachable, LEAST, rtol=1e-6)


def test_doubt_is_the_error_of_a_sample():
    """Of many samples of a noise that varies from block to block, the spread is what each says of itself."""
    rng = np.random.default_rng(0)
    found, doubts = [], []
    for _ in range(60):
        spectrum = ResidualSpectrum(1, ratio=4, sigma_px=2.0)
        for _ in range(20):
            level = rng.uniform(0.5, 1.5)
            spectrum.add(
                torch.from_numpy(level * rng.standard_normal((1, 32, 32))), torch.ones(32, 32, dtype=torch.bool)
            )
        found.append(spectrum.rms()[0] ** 2)
        doubts.append(spectrum.doubt()[0])
    assert np.mean(doubts) == pytest.approx(np.std(found) / np.mean(found), rel=0.2)
