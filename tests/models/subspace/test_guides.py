from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn.functional import avg_pool2d

from hyperfuse.models import Observed
from hyperfuse.models._moments import transfer_to_coarser
from hyperfuse.models.operators import degrade, upsample
from hyperfuse.models.subspace.guides import (
    degrade_guides,
    from_blocks,
    guide_reach,
    low_pass_reach,
    sharpen_guides,
    smooth_guides,
)
from tests.models.scenes import error, fused, mixtures, response, seen


def observed(steps: tuple[int, ...], sigmas: tuple[float, ...] = (), ratio: int = 4) -> Observed:
    return Observed(
        hsi_bands=5, msi_bands=len(steps), ratio=ratio, psf_sigma_px=0.5 * ratio, msi_steps=steps, msi_sigma_px=sigmas
    )


def test_bands_of_step_one_are_not_touched():
    msi = torch.rand(1, 2, 16, 16, generator=torch.Generator().manual_seed(0))
    assert smooth_guides(msi, observed((1, 1))) is msi
    assert torch.equal(smooth_guides(msi, observed((1, 2)))[:, 0], msi[:, 0])


@pytest.mark.parametrize("step", [2, 3, 6])
def test_blocks_keep_their_means_and_a_parabola_comes_back(step):
    samples = torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    blocks = samples.repeat_interleave(step, dim=-2).repeat_interleave(step, dim=-1)
    guide = smooth_guides(blocks, observed((step,), ratio=step))
    torch.testing.assert_close(avg_pool2d(guide, step), samples)
    # Away from the rim, where the outermost sample is repeated; x is the far edge of each pixel.
    x = torch.arange(12 * step + 1, dtype=torch.float64) / step
    pixels = (x.diff() * 3 - (x**3).diff() / 30) * step  # means over pixels of 3 - x^2 / 10
    curve = pixels.float().expand(1, 1, 12 * step, -1)
    inner = slice(2 * step, -2 * step)
    torch.testing.assert_close(from_blocks(avg_pool2d(curve, step), step)[..., inner], curve[..., inner])


@pytest.mark.parametrize("step", [1, 2, 3, 4, 6])
def test_reach_is_the_farthest_change(step):
    blocks = torch.zeros(1, 1, 24 * step, 24 * step)
    at = slice(12 * step, 13 * step)
    seen = observed((step,))
    changed = blocks.clone()
    changed[..., at, at] = 1.0
    touched = torch.nonzero(smooth_guides(changed, seen)[0, 0])
    # Measured from the far side of the block: some pixel of it must be that far from what it touches.
    assert touched.max() - at.start == guide_reach(seen)
    assert at.stop - 1 - touched.min() == guide_reach(seen)


@pytest.mark.parametrize("ratio", [2, 3, 4, 6])
def test_low_pass_reach_covers_every_pixel(ratio):
    seen = observed((1,), ratio=ratio)
    for pixel in range(10 * ratio, 11 * ratio):
        image = torch.zeros(1, 1, 24 * ratio, 24 * ratio)
        image[..., pixel, pixel] = 1.0
        touched = torch.nonzero(upsample(degrade_guides(image, seen), ratio)[0, 0])
        assert (touched - pixel).abs().max() <= low_pass_reach(seen)


def test_a_band_is_blurred_by_what_its_own_psf_lacks():
    """Blur of 1.2 px by the band's sensor, then what is lacking, is the HSI's blur of 2 px in one go."""
    x = torch.arange(96.0)
    fine = (torch.sin(x / 5)[:, None] * torch.cos(x / 7))[None, None]
    seen = observed((1, 2), (0.0, 1.2))
    blocks = degrade(fine, 2, 1.2).repeat_interleave(2, dim=-2).repeat_interleave(2, dim=-1)
    lacking = degrade_guides(smooth_guides(torch.cat([fine, blocks], dim=1), seen), seen)
    whole = degrade(fine, 4, 2.0)
    inner = (..., slice(4, -4), slice(4, -4))
    assert (lacking[:, 1:] - whole)[inner].abs().max() < 2e-3
    # A band of step 1 gets the HSI's full blur: its PSF is the product's own.
    torch.testing.assert_close(lacking[:, :1], whole)


def test_finer_bands_lend_the_detail_within_blocks():
    """A band of step 2 is twice a fine band and one of step 4 the sum of both: each comes back whole, one after another."""
    rng = torch.Generator().manual_seed(0)
    fine = torch.rand(1, 1, 48, 48, generator=rng)
    truth = torch.cat([3.0 * fine, fine, 2.0 * fine], dim=1)
    seen = observed((4, 1, 2), (2.0, 0.0, 1.0))
    msi = truth.clone()
    for band, step in ((0, 4), (2, 2)):
        samples = degrade(truth[:, band], step, 0.5 * step)
        msi[:, band] = samples.repeat_interleave(step, dim=-2).repeat_interleave(step, dim=-1)
    transfer = torch.tensor([[0.0, 1.0, 1.0], [0.0, 0.0, 0.0], [0.0, 2.0, 0.0]])
    torch.testing.assert_close(sharpen_guides(smooth_guides(msi, seen), transfer, seen), truth)


def test_transfer_is_the_regression_on_finer_bands():
    """Known weights, from moments of samples that hold them exactly; columns of no finer step are 0."""
    seen = observed((2, 1, 1))
    fine = torch.rand(2, 500, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    samples = torch.cat([(2.0 * fine[0] - 0.5 * fine[1] + 3.0)[None], fine])
    transfer = transfer_to_coarser(samples.mean(dim=1), torch.cov(samples), seen)
    expected = torch.tensor([[0.0, 2.0, -0.5], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    torch.testing.assert_close(transfer, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["gsa-regressed", "mtf_glp", "cnmf"])
def test_bands_of_a_coarser_step_help(name):
    """The last two of five bands come in blocks of two, and still tell apart what the first three cannot."""
    truth, _, _ = mixtures(6, n_bands=24)
    hsi, msi, known = seen(truth, response(5, 24), noise=0.003)
    coarser = degrade(msi[:, 3:], 2, 1.0)
    blocks = coarser.repeat_interleave(2, dim=-2).repeat_interleave(2, dim=-1)
    three = replace(known, msi_bands=3, srf=known.srf[:3])
    five = replace(known, msi_steps=(1, 1, 1, 2, 2), msi_sigma_px=(0.0, 0.0, 0.0, 1.0, 1.0))
    without = error(fused(name, hsi, msi[:, :3], three), truth)
    assert error(fused(name, hsi, torch.cat([msi[:, :3], blocks], dim=1), five), truth) < 0.8 * without
