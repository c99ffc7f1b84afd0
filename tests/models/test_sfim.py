"""SFIM: exact where an HSI band is a multiple of its guide, and guides of the finest step alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from hyperfuse.models import Observed
from hyperfuse.models._moments import Moments, MomentsPass, best_guide
from hyperfuse.models.operators import degrade, upsample
from hyperfuse.models.spec import ModelSpec
from hyperfuse.models.subspace.guides import from_blocks
from tests.models.scenes import error, fused, mixtures, response, seen


def smooth_planes(n_bands: int, size: int = 40, seed: int = 0) -> torch.Tensor:
    """Positive images with detail that a coarse sensor of ratio 4 loses, shape (1, n_bands, 4 size, 4 size)."""
    rng = torch.Generator().manual_seed(seed)
    return degrade(torch.rand(1, n_bands, 8 * size, 8 * size, generator=rng), 2, 3.0) + 0.2


def moments(hsi: torch.Tensor, msi: torch.Tensor, observed: Observed) -> Moments:
    spec = ModelSpec(name="sfim", observed=observed, halo=0, hsi_reach=0, msi_reach=0)
    return Moments.from_sums(spec, MomentsPass(spec).sums(hsi, msi, torch.ones(1, *hsi.shape[-2:], dtype=torch.bool)))


@pytest.mark.parametrize("name", ["sfim", "sfim-regressed"])
def test_multiples_of_a_guide_come_back_whole(name):
    """The ratio does not ask which multiple: fused = U * guide / low, and U is as many times low."""
    msi = smooth_planes(3)
    gain = torch.tensor([0.5, 1.0, 2.0]).repeat(3)[:, None, None]
    truth = msi.repeat_interleave(3, dim=1) * gain
    hsi, observed = degrade(truth, 4, 2.0), Observed(hsi_bands=9, msi_bands=3, ratio=4, psf_sigma_px=2.0)
    control = error(fused("bicubic", hsi, msi, observed), truth)
    assert error(fused(name, hsi, msi, observed), truth) < 0.01 * control


def test_selected_guide_against_the_formula():
    truth, _, _ = mixtures(3)
    hsi, msi, observed = seen(truth, response(3, 12), noise=0.01)
    guide = best_guide(moments(hsi, msi, observed), observed)
    low = upsample(degrade(msi, 4, 2.0), 4)
    expected = upsample(hsi, 4) * (msi / low)[:, guide]
    ours = fused("sfim", hsi, msi, observed)
    inside = ((msi / low)[:, guide] > 0.25) & ((msi / low)[:, guide] < 4.0) & (low[:, guide] > 0.05)
    torch.testing.assert_close(ours[inside], expected[inside], rtol=1e-4, atol=1e-5)


def test_a_dark_guide_does_not_explode():
    truth, _, _ = mixtures(3)
    hsi, msi, observed = seen(truth, response(3, 12))
    msi[..., 20:30, 20:30] = 0.0
    assert fused("sfim", hsi, msi, observed).abs().max() < 4.5 * hsi.abs().max()


@pytest.mark.parametrize("name", ["sfim", "gsa"])
def test_bands_of_coarser_steps_are_no_guides(name):
    """An HSI band that the MSI's 20 m band sees best takes its detail from the bands of 10 m all the same."""
    planes = smooth_planes(2)
    truth = torch.stack([planes[:, 0], 0.6 * planes[:, 0] + 0.4 * planes[:, 1]], dim=1)
    coarser = from_blocks(degrade(truth[:, 1:], 2, 1.0), 2)
    blocks = degrade(coarser, 2, 0.4).repeat_interleave(2, dim=-2).repeat_interleave(2, dim=-1)
    msi, hsi = torch.cat([truth[:, :1], blocks], dim=1), degrade(truth, 4, 2.0)
    one = Observed(hsi_bands=2, msi_bands=1, ratio=4, psf_sigma_px=2.0)
    two = replace(one, msi_bands=2, msi_steps=(1, 2), msi_sigma_px=(0.0, 1.0))
    assert best_guide(moments(hsi, msi, two), two).tolist() == [0, 0]
    assert best_guide(
        moments(hsi, msi, replace(two, msi_steps=(), msi_sigma_px=())), replace(two, msi_steps=())
    ).tolist() == [0, 1]
    torch.testing.assert_close(fused(name, hsi, msi, two), fused(name, hsi, msi[:, :1], one), rtol=1e-4, atol=1e-5)
