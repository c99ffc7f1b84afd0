from __future__ import annotations

import pytest
import torch

from models import Observed
from models._guides import degrade_guides, guide_reach, low_pass_reach, smooth_guides
from models._layers import degrade, upsample


def observed(steps: tuple[int, ...], sigmas: tuple[float, ...] = (), ratio: int = 4) -> Observed:
    return Observed(
        hsi_bands=5, msi_bands=len(steps), ratio=ratio, psf_sigma_px=0.5 * ratio, msi_steps=steps, msi_sigma_px=sigmas
    )


def test_bands_of_step_one_are_not_touched():
    msi = torch.rand(1, 2, 16, 16, generator=torch.Generator().manual_seed(0))
    assert smooth_guides(msi, observed((1, 1))) is msi
    assert torch.equal(smooth_guides(msi, observed((1, 2)))[:, 0], msi[:, 0])


def test_guides_pass_through_the_blocks_centers():
    """At step 3 the center of a block is a pixel, where the interpolated band is what the sensor measured."""
    samples = torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    blocks = samples.repeat_interleave(3, dim=-2).repeat_interleave(3, dim=-1)
    guide = smooth_guides(blocks, observed((3,), ratio=3))
    torch.testing.assert_close(guide[..., 1::3, 1::3], samples)
    torch.testing.assert_close(guide, upsample(samples, 3))


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
    blurred = degrade(fine, 1, 1.2)
    lacking = degrade_guides(blurred.expand(1, 2, -1, -1), observed((1, 2), (0.0, 1.2)))
    whole = degrade(fine, 4, 2.0)
    inner = (..., slice(4, -4), slice(4, -4))
    assert (lacking[:, 1:] - whole)[inner].abs().max() < 2e-3
    # A band of step 1 keeps the HSI's full blur: its PSF is the product's own.
    assert (lacking[:, :1] - whole)[inner].abs().max() > 2e-2
