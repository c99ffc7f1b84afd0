from __future__ import annotations

import torch

from hyperfuse.models import Observed
from hyperfuse.models.mtf_glp import GAINS
from hyperfuse.models.operators import degrade, upsample
from tests.models.scenes import error, fused, mixtures, response, seen


def test_exact_where_every_band_is_a_mixture_of_msi_bands():
    """Then the low-pass guide is the interpolated HSI, the gain is 1, and the detail is all that is lacking."""
    truth, _, _ = mixtures(3)
    srf = response(4, 12)
    hsi, msi, observed = seen(truth, srf)
    torch.testing.assert_close(fused("mtf_glp", hsi, msi, observed), truth, rtol=0, atol=2e-3)


def test_detail_follows_the_local_level():
    """One band is the other in a light that changes slowly: multiplied detail follows it, added detail cannot."""
    rows = torch.arange(126.0)[:, None]  # nine stripes
    texture = (0.5 + 0.3 * torch.sin(2 * torch.pi * rows / 14)).expand(1, 1, -1, 126)[..., :124, :124]
    light = torch.linspace(0.7, 1.3, 124)
    truth = torch.cat([texture, texture * light], dim=1)
    hsi, msi, observed = degrade(truth, 4, 2.0), texture, Observed(hsi_bands=2, msi_bands=1, ratio=4, psf_sigma_px=2.0)
    multiplied, added = (error(fused(name, hsi, msi, observed), truth) for name in ("mtf_glp", "gsa-regressed"))
    assert multiplied < 0.3 * added


def test_dark_and_negative_samples_do_not_multiply_noise():
    """Where the guide is dark the gain stays within its limits."""
    rng = torch.Generator().manual_seed(0)
    hsi, msi = torch.rand(1, 3, 16, 16, generator=rng) - 0.3, torch.rand(1, 2, 64, 64, generator=rng) - 0.3
    observed = Observed(hsi_bands=3, msi_bands=2, ratio=4, psf_sigma_px=2.0)
    interpolated = upsample(hsi, 4)
    multiplied = fused("mtf_glp", hsi, msi, observed) - interpolated
    added = fused("gsa-regressed", hsi, msi, observed) - interpolated
    assert (multiplied.abs() <= GAINS[1] * added.abs() + 1e-5).all()
