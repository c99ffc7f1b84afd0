"""The plain core: few weights, a short look, and nothing but its first HSI band at the coarse pixels."""

from __future__ import annotations

import pytest
import torch

from hyperfuse.models import Observed, _plain

OBSERVED = Observed(hsi_bands=4, msi_bands=6, ratio=3, psf_sigma_px=1.5)


def images(size: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(0)
    return torch.randn(1, 4, size, size, generator=rng), torch.randn(1, 6, 3 * size, 3 * size, generator=rng)


@pytest.mark.parametrize("options", [{}, {"width": 5, "depth": 2}, {"width": 8, "depth": 6}])
def test_it_has_the_parameters_that_it_says(options):
    spec = _plain.specify(OBSERVED, **options)
    assert sum(parameter.numel() for parameter in _plain.build(spec).parameters()) == spec.parameters


def test_it_reads_one_band_of_the_hsi():
    network, (hsi, msi) = _plain.build(_plain.specify(OBSERVED)), images()
    with torch.inference_mode():
        plain = network(hsi, msi)
        assert plain.shape == (1, 1, 36, 36)
        hsi[:, 1:] += 1.0
        assert torch.equal(network(hsi, msi), plain)
        hsi[:, 0] += 1.0
        assert not torch.equal(network(hsi, msi), plain)


@pytest.mark.parametrize("depth", [2, 4, 7])
def test_it_looks_as_far_as_it_says(depth):
    spec = _plain.specify(OBSERVED, depth=depth)
    network, (hsi, msi) = _plain.build(spec), images(size=24)
    with torch.inference_mode():
        plain = network(hsi, msi)
        msi[..., 36, 36] += 10.0
        far = torch.nonzero(network(hsi, msi) != plain)[:, 2:]
        assert (far - 36).abs().max() == spec.msi_reach
        _, msi = images(size=24)
        hsi[..., 12, 12] += 10.0
        far = torch.nonzero((network(hsi, msi) - plain).abs() > 1e-6)[:, 2:]
        assert 12 - spec.hsi_reach <= far.min() // 3 <= far.max() // 3 <= 12 + spec.hsi_reach


@pytest.mark.parametrize("options", [{"width": 0}, {"depth": 1}])
def test_options_out_of_range_are_refused(options):
    with pytest.raises(ValueError, match="width must be at least 1 and depth at least 2"):
        _plain.specify(OBSERVED, **options)
