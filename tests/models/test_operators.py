from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from hyperfuse.models.operators import degrade, upsample


@pytest.mark.parametrize("ratio", [2, 3, 5, 8])
def test_upsample_keeps_straight_lines(ratio):
    """Keys' kernel reproduces polynomials up to degree two; pixel is area, so centers line up without a half pixel."""
    x = torch.arange(20, dtype=torch.float64) + 0.5
    plane = 0.5 * x[:, None] - 2.0 * x[None, :] + 0.1 * x[:, None] ** 2
    fine = (torch.arange(20 * ratio, dtype=torch.float64) + 0.5) / ratio
    expected = 0.5 * fine[:, None] - 2.0 * fine[None, :] + 0.1 * fine[:, None] ** 2
    inner = slice(2 * ratio, -2 * ratio)
    torch.testing.assert_close(upsample(plane, ratio)[inner, inner], expected[inner, inner], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("ratio", [2, 3, 4, 7])
def test_degrade_keeps_lines_and_constants(ratio):
    x = torch.arange(24 * ratio, dtype=torch.float64) + 0.5
    coarse = (torch.arange(24, dtype=torch.float64) + 0.5) * ratio
    plane = 3.0 + x[:, None] - 0.5 * x[None, :]
    expected = 3.0 + coarse[:, None] - 0.5 * coarse[None, :]
    inner = slice(4, -4)
    torch.testing.assert_close(
        degrade(plane, ratio, 0.5 * ratio)[inner, inner], expected[inner, inner], rtol=1e-5, atol=1e-4
    )


def test_degrade_equals_a_gaussian_sampled_at_block_centers():
    rng = np.random.default_rng(0)
    fine = rng.random((90, 120))
    sigma, ratio = 2.0, 3  # odd: the centers of coarse pixels are fine pixels, where scipy can be sampled
    oracle = gaussian_filter(fine, sigma, truncate=5.0)[1::3, 1::3]
    ours = degrade(torch.from_numpy(fine), ratio, sigma).numpy()
    np.testing.assert_allclose(ours[5:-5, 5:-5], oracle[5:-5, 5:-5], atol=2e-4)


def test_upsample_then_sampling_the_centers_of_odd_ratios_is_identity():
    rng = torch.Generator().manual_seed(1)
    image = torch.rand(3, 9, 11, generator=rng)
    assert torch.allclose(upsample(image, 5)[:, 2::5, 2::5], image, atol=1e-6)
