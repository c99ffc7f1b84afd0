from __future__ import annotations

import csv
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.io import loadmat

from hyperfuse import models
from hyperfuse.models import Observed
from hyperfuse.models.hysure import HALO, _Copy, _cosines, _Data, _gradient, _gradient_adjoint
from hyperfuse.models.operators import blur_matrix, degrade
from hyperfuse.pipeline.quality.metrics import Comparison
from tests import DATA
from tests.models.scenes import error, fused, mixtures, response, seen


@pytest.mark.parametrize("known", [True, False])
def test_mixtures_that_the_msi_tells_apart_come_back(known):
    """Four MSI bands and three materials: both data terms have one common solution, whatever the third term wants."""
    truth, _, _ = mixtures(3)
    hsi, msi, observed = seen(truth, response(4, 12), known=known)
    control = error(fused("bicubic", hsi, msi, observed), truth)
    assert error(fused("hysure", hsi, msi, observed), truth) < 0.05 * control


def test_gain_and_offset_of_the_msi_do_not_matter():
    truth, _, _ = mixtures(3)
    hsi, msi, observed = seen(truth, response(4, 12))
    torch.testing.assert_close(
        fused("hysure", hsi, 1e4 * msi - 300.0, observed), fused("hysure", hsi, msi, observed), rtol=1e-3, atol=1e-3
    )


def test_error_grows_with_noise_but_less_than_that_of_a_plain_guide():
    truth, _, _ = mixtures(5, n_bands=24)
    errors, guided = [], []
    for noise in (0.0, 0.01, 0.03, 0.1):
        pair = seen(truth, response(4, 24), noise=noise)
        errors.append(error(fused("hysure", *pair), truth))
        guided.append(error(fused("gsa-regressed", *pair), truth))
    assert errors == sorted(errors)
    assert errors[-1] < 0.7 * guided[-1]


def test_a_band_that_the_hsi_does_not_see_has_no_say():
    truth, _, _ = mixtures(3)
    hsi, msi, observed = seen(truth, response(4, 12))
    blind = replace(observed, srf=(*observed.srf[:3], (0.0,) * 12))
    other = msi.clone()
    other[:, 3] = torch.rand(msi.shape[-2:], generator=torch.Generator().manual_seed(5))
    torch.testing.assert_close(fused("hysure", hsi, msi, blind), fused("hysure", hsi, other, blind))


def test_bands_of_a_coarser_step_help():
    """The last two of five bands come in blocks of two, and still tell apart what the first three cannot."""
    truth, _, _ = mixtures(6, n_bands=24)
    hsi, msi, observed = seen(truth, response(5, 24))
    coarser = degrade(msi[:, 3:], 2, 1.0)
    blocks = coarser.repeat_interleave(2, dim=-2).repeat_interleave(2, dim=-1)
    three = replace(observed, msi_bands=3, srf=observed.srf[:3])
    five = replace(observed, msi_steps=(1, 1, 1, 2, 2), msi_sigma_px=(0.0, 0.0, 0.0, 1.0, 1.0))
    without = error(fused("hysure", hsi, msi[:, :3], three), truth)
    assert error(fused("hysure", hsi, torch.cat([msi[:, :3], blocks], dim=1), five), truth) < 0.8 * without


@pytest.mark.parametrize("noise", [0.0, 0.02])
def test_tiles_differ_little_from_the_whole(noise):
    truth, _, _ = mixtures(5, n_bands=24, size=40)
    hsi, msi, observed = seen(truth, response(4, 24), noise=noise)
    method = models.method("hysure")
    spec = method.specify(observed)
    assert spec.halo == HALO
    model = method.build(spec, method.first_pass(spec).sums(hsi, msi, torch.ones(1, *hsi.shape[-2:], dtype=torch.bool)))
    window, fine = slice(16 - HALO, 24 + HALO), slice((16 - HALO) * 4, (24 + HALO) * 4)
    tile = model(hsi[..., window, window], msi[..., fine, fine])[..., HALO * 4 : -HALO * 4, HALO * 4 : -HALO * 4]
    whole = model(hsi, msi)[..., 64:96, 64:96]
    assert (tile - whole).norm() < 5e-4 * whole.norm()
    assert (tile - whole).norm() < 0.05 * (whole - truth[..., 64:96, 64:96]).norm()


@pytest.mark.parametrize("with_fine", [True, False])
def test_a_copy_solves_its_normal_equations(with_fine):
    """Against one dense least squares over all pixels and components."""
    rng = torch.Generator().manual_seed(0)
    n_components, ratio, sigma, penalty, shape = 3, 3, 1.5, 0.3, (6, 9)
    coarse = _Data(
        values=torch.rand(1, 4, 2, 3, generator=rng),
        response=torch.rand(4, n_components, generator=rng, dtype=torch.float64),
        step=ratio,
        sigma_px=sigma,
    )
    fine = _Data(
        values=torch.rand(1, 2, *shape, generator=rng),
        response=torch.rand(2, n_components, generator=rng, dtype=torch.float64),
        step=1,
        sigma_px=sigma,
        weight=2.0,
    )
    z = torch.rand(1, n_components, *shape, generator=rng)
    sampling = np.kron(blur_matrix(2, ratio, sigma), blur_matrix(3, ratio, sigma)).astype(np.float64)
    blocks = [np.kron(coarse.response.numpy(), sampling), np.sqrt(penalty) * np.eye(z.numel())]
    right = [coarse.values.numpy().ravel(), np.sqrt(penalty) * z.numpy().ravel()]
    if with_fine:
        blocks.append(np.sqrt(2.0) * np.kron(fine.response.numpy(), np.eye(54)))
        right.append(np.sqrt(2.0) * fine.values.numpy().ravel())
    dense = np.linalg.lstsq(np.concatenate(blocks), np.concatenate(right))[0]
    ours = _Copy(coarse, fine if with_fine else None, shape, penalty)(z)
    np.testing.assert_allclose(ours.numpy().ravel(), dense, atol=1e-4)


def test_the_cosine_transform_diagonalizes_the_squared_gradient():
    image = torch.rand(1, 1, 7, 10, generator=torch.Generator().manual_seed(0))
    slopes = torch.rand(2, 1, 1, 7, 10, generator=torch.Generator().manual_seed(1))
    adjoint = _gradient_adjoint(slopes)
    torch.testing.assert_close((_gradient(image) * slopes).sum(), (image * adjoint).sum())
    (rows, row_powers), (cols, col_powers) = _cosines(7), _cosines(10)
    squared = _gradient_adjoint(_gradient(image))[0, 0].numpy()
    expected = rows.T @ ((row_powers[:, None] + col_powers) * (rows @ image[0, 0].numpy() @ cols.T)) @ cols
    np.testing.assert_allclose(squared, expected, atol=1e-5)


@pytest.mark.skipif(not DATA.is_dir(), reason="real imagery (shared/data) is not beside the checkout")
def test_jasper_ridge_reaches_what_the_public_code_reaches():
    """The public code's result on this cube: 34.66 dB, 4.06 degrees, ERGAS 2.63 (noise of 35/40 dB, four bands)."""
    table = DATA / "srf" / "derived" / "AVIRIS_classic_224.csv"
    with table.open() as lines:
        centers = np.array([float(row[1]) for row in csv.reader(lines) if row[0].isdigit()])
    cube = loadmat(DATA / "jasper_ridge" / "jasperRidge2_R198.mat")
    wave = centers[cube["SlectBands"].ravel().astype(int) - 1]
    good = (np.abs(wave - 1400) > 60) & (np.abs(wave - 1880) > 90) & (wave < 2450)  # outside the absorption of water
    wave, truth = wave[good], cube["Y"].astype(np.float64).reshape(198, 100, 100, order="F")[good]
    truth = torch.from_numpy(truth / np.percentile(truth, 99.9)).float()[None]
    bands = np.array([[492.4, 66], [559.8, 36], [664.6, 31], [832.8, 106]])  # Sentinel-2 B2, B3, B4, B8 (nm)
    srf = np.exp(-0.5 * ((wave - bands[:, :1]) / (bands[:, 1:] / 2.3548)) ** 2)
    srf = torch.from_numpy(srf / srf.sum(axis=1, keepdims=True)).float()
    sigma = 4 * np.sqrt(-2 * np.log(0.3)) / np.pi  # MTF 0.3 at the coarse Nyquist frequency
    rng = torch.Generator().manual_seed(0)
    pair = []
    for image, decibels in ((degrade(truth, 4, sigma), 35), (torch.einsum("kc,nchw->nkhw", srf, truth), 40)):
        level = image.square().mean(dim=(-2, -1), keepdim=True).sqrt() * 10 ** (-decibels / 20)
        pair.append(image + level * torch.randn(image.shape, generator=rng))
    rows = tuple(tuple(row) for row in srf.tolist())
    observed = Observed(hsi_bands=len(wave), msi_bands=4, ratio=4, psf_sigma_px=sigma, srf=rows)
    comparison = Comparison(len(wave), 4)
    comparison.add(fused("hysure", *pair, observed)[0, :, 4:-4, 4:-4].numpy(), truth[0, :, 4:-4, 4:-4].numpy())
    scores = comparison.scores()
    assert scores.psnr_db > 34.66 - 0.2
    assert scores.sam_deg < 4.06 + 0.1
    assert scores.ergas < 2.63
