from __future__ import annotations

import pytest
import torch

from hyperfuse import models
from hyperfuse.models import Observed
from hyperfuse.models.operators import degrade, upsample
from tests.models.scenes import fused, seen


def pair(n_groups: int, *, ratio: int = 4):
    """Images in which each group of three HSI bands is a multiple of one MSI band: GSA has an exact answer."""
    rng = torch.Generator().manual_seed(0)
    fine = torch.rand(1, n_groups, 40 * ratio, 40 * ratio, generator=rng)
    # Blurred so that the coarse image loses little, and what is lost is what the MSI brings back.
    msi = degrade(torch.nn.functional.interpolate(fine, scale_factor=2), 2, 3.0)
    gain = torch.tensor([0.5, 1.0, 2.0]).repeat(n_groups)
    truth = msi.repeat_interleave(3, dim=1) * gain[None, :, None, None]
    return truth, degrade(truth, ratio, 0.5 * ratio), msi


def test_groups_are_found_and_gains_are_right():
    truth, hsi, msi = pair(3)
    method = models.method("gsa")
    spec = method.specify(Observed(hsi_bands=9, msi_bands=3, ratio=4, psf_sigma_px=2.0))
    sums = method.first_pass(spec).sums(hsi, msi, torch.ones(1, 40, 40, dtype=torch.bool))
    fused = method.build(spec, sums)(hsi, msi)
    control = models.method("bicubic").build(spec)(hsi, msi)
    inner = slice(16, -16)
    error = (fused - truth)[..., inner, inner].square().mean().sqrt()
    control_error = (control - truth)[..., inner, inner].square().mean().sqrt()
    assert error < 0.05 * control_error


def test_sums_add_up():
    """The first pass over two halves is the first pass over the whole: what makes it streamable."""
    _, hsi, msi = pair(2)
    method = models.method("gsa")
    spec = method.specify(Observed(hsi_bands=6, msi_bands=2, ratio=4, psf_sigma_px=2.0))
    valid = torch.ones(1, 40, 40, dtype=torch.bool)
    left, right = valid.clone(), valid.clone()
    left[..., 17:], right[..., :17] = False, False
    summed = method.first_pass(spec)
    whole = summed.sums(hsi, msi, valid)["products"]
    parts = summed.sums(hsi, msi, left)["products"] + summed.sums(hsi, msi, right)["products"]
    torch.testing.assert_close(parts, whole)


def test_constant_bands_do_not_break_it():
    rng = torch.Generator().manual_seed(0)
    hsi, msi = torch.rand(1, 4, 12, 12, generator=rng), torch.rand(1, 2, 48, 48, generator=rng)
    hsi[:, 1] = 0.3
    method = models.method("gsa")
    spec = method.specify(Observed(hsi_bands=4, msi_bands=2, ratio=4, psf_sigma_px=2.0))
    sums = method.first_pass(spec).sums(hsi, msi, torch.ones(1, 12, 12, dtype=torch.bool))
    assert torch.isfinite(method.build(spec, sums)(hsi, msi)).all()


def test_regressed_guides_are_exact_where_every_band_is_a_mixture_of_msi_bands():
    """Then the low-pass guide is the interpolated HSI, and what is added is all that it lacks."""
    _, _, msi = pair(3)
    mix = torch.rand(7, 3, generator=torch.Generator().manual_seed(2)) + 0.1
    truth = torch.einsum("ck,nkhw->nchw", mix, msi) + 0.2
    _, _, observed = seen(truth, torch.zeros(3, 7), known=False)
    fused_image = fused("gsa-regressed", degrade(truth, 4, 2.0), msi, observed)
    torch.testing.assert_close(fused_image, truth, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["gsa", "gsa-regressed", "mtf_glp"])
def test_a_flat_msi_leaves_plain_interpolation(name):
    hsi = torch.rand(1, 5, 12, 12, generator=torch.Generator().manual_seed(0))
    observed = Observed(hsi_bands=5, msi_bands=2, ratio=4, psf_sigma_px=2.0)
    flat = torch.full((1, 2, 48, 48), 0.3)
    torch.testing.assert_close(fused(name, hsi, flat, observed), upsample(hsi, 4), rtol=0, atol=1e-4)
