"""Universal networks: nothing at the start, the residual where it belongs, and one weight file for every pair."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional

from hyperfuse import models
from hyperfuse.models import Observed, universal
from hyperfuse.models.operators import upsample
from hyperfuse.models.subspace.guided import guided_detail
from hyperfuse.models.universal import Universal
from tests.models.scenes import fused, mixtures, response, seen

NETWORKS = [name for name in models.available() if name.startswith("universal-")]
SMALL = {"core": "csakd-student", "core_options": {"growth": 4, "layers": [0, 0, 0, 1]}, "components": 6}


@pytest.fixture(autouse=True)
def as_the_pipeline_runs_it():
    with torch.inference_mode():
        yield


def learnt(spec: models.ModelSpec, seed: int = 0) -> dict[str, torch.Tensor]:
    """Weights whose residual is not small."""
    core = universal.build_core(spec)
    nn.init.normal_(core.core.last.weight, std=0.1, generator=torch.Generator().manual_seed(seed))
    return core.state_dict()


def pair(n_bands: int = 24, msi_bands: int = 4, ratio: int = 4, size: int = 16, noise: float = 0.01):
    truth, _, _ = mixtures(6, n_bands=n_bands, size=size, ratio=ratio)
    return truth, *seen(truth, response(msi_bands, n_bands), ratio=ratio, noise=noise)


def built(hsi, msi, observed, weights=None, **options) -> Universal:
    chosen = models.method("universal-csakd-student")
    spec = chosen.specify(observed, **{**SMALL, **options})
    sums = chosen.first_pass(spec).sums(hsi, msi, torch.ones(1, *hsi.shape[-2:], dtype=torch.bool))
    return chosen.build(spec, sums, weights)


class Told(nn.Module):
    """A core that answers what it was told."""

    def __init__(self, residual: torch.Tensor) -> None:
        super().__init__()
        self.residual = residual

    def forward(self, coarse: torch.Tensor, fine: torch.Tensor) -> torch.Tensor:
        return self.residual.expand(len(coarse), -1, *fine.shape[-2:])


def test_all_five_are_there():
    assert [
        f"universal-{core}" for core in ("csakd-student", "csakd-teacher", "hyfusion-s", "plain", "s3rnet")
    ] == NETWORKS


@pytest.mark.parametrize("name", NETWORKS)
def test_without_weights_it_is_the_estimate_to_the_bit(name):
    _, hsi, msi, observed = pair()
    assert torch.equal(fused(name, hsi, msi, observed), fused("map_subspace", hsi, msi, observed))


@pytest.mark.parametrize("name", NETWORKS)
def test_a_fresh_network_changes_nothing_and_can_learn(name):
    chosen, observed = models.method(name), Observed(hsi_bands=24, msi_bands=4, ratio=4, psf_sigma_px=2.0)
    rng = torch.Generator().manual_seed(0)
    with torch.inference_mode(mode=False):
        core = universal.build_core(chosen.specify(observed))
        coarse, fine = torch.rand(2, 5, 8, 8, generator=rng), torch.rand(2, 15, 32, 32, generator=rng)
        residual = core.train()(coarse, fine)
        assert residual.shape == (2, 5, 32, 32)
        assert not residual.any()
        (residual - 1.0).square().sum().backward()
        assert core.core.last.weight.grad.any()
        assert core.share.grad.any()


def test_a_residual_goes_along_the_axes_of_its_planes():
    _, hsi, msi, observed = pair()
    model = built(hsi, msi, observed)
    plain = model(hsi, msi)
    residual = torch.linspace(-1, 1, 6).view(1, 6, 1, 1)
    model.core = Told(residual)
    wanted = model.scale * torch.einsum("cp,nphw->nchw", model.axes, residual)
    torch.testing.assert_close(model(hsi, msi) - plain, wanted.expand_as(plain), rtol=1e-4, atol=1e-5)


def test_axes_are_orthonormal_in_weighted_bands_so_that_errors_of_planes_are_errors_of_bands():
    _, hsi, msi, observed = pair()
    model = built(hsi, msi, observed, components=3)
    weighted = model.weights[:, None] * model.axes
    torch.testing.assert_close(weighted.T @ weighted, torch.eye(3), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(model.weights.square().mean(), torch.tensor(1.0))


def test_a_band_counts_by_how_much_of_it_is_unexplained_not_by_its_brightness():
    """Each band in a unit of its own, as digital numbers of a detector are: planes stay, and their spectra follow the units."""
    truth, hsi, msi, observed = pair(noise=0.02)
    units = torch.logspace(-1, 1, 24)[torch.randperm(24, generator=torch.Generator().manual_seed(0))].view(1, -1, 1, 1)
    model, other = built(hsi, msi, observed, components=3), built(units * hsi, msi, observed, components=3)
    signs = (other.weights[:, None] * other.axes * model.weights[:, None] * model.axes).sum(dim=0).sign()
    spectra = other.scale * signs * other.axes / units.view(-1, 1)
    torch.testing.assert_close(spectra, model.scale * model.axes, rtol=0.05, atol=0.02 * float(spectra.abs().max()))
    short = truth - model(hsi, msi)
    turned = signs.view(1, -1, 1, 1) * other.residual(units * short)
    wanted = model.residual(short)
    assert (turned - wanted).square().mean() < 1e-3 * wanted.square().mean()


def test_a_band_that_is_explained_whole_rules_no_others():
    truth, hsi, msi, observed = pair()
    hsi[:, 5] = truth[:, 5] = 0.3
    others = [k for k in range(24) if k != 5]
    model, without = (
        built(hsi[:, kept], msi, replace(observed, hsi_bands=len(kept), srf=()), components=2)
        for kept in (list(range(24)), others)
    )
    assert model.weights.argmax() == 5
    assert model.axes[5].abs().max() < 1e-3 * model.axes.abs().max()
    short = truth - model(hsi, msi)
    one, two = model.residual(short), without.residual(short[:, others])
    signs = (one * two).sum(dim=(0, 2, 3), keepdim=True).sign()
    assert (one - signs * two).square().mean() < 0.01 * one.square().mean()


def test_who_gives_the_residual_that_is_asked_for_leaves_nothing_in_the_planes():
    truth, hsi, msi, observed = pair()
    model = built(hsi, msi, observed)
    before = truth - model(hsi, msi)
    model.core = Told(model.residual(before))
    after = truth - model(hsi, msi)
    assert model.residual(after).abs().max() < 1e-3 * model.residual(before).abs().max()
    weights = model.weights.view(1, -1, 1, 1)
    assert (weights * after).square().sum() < 0.2 * (weights * before).square().sum()


def test_a_scene_with_fewer_components_has_planes_of_zeros():
    truth, _, _ = mixtures(3)
    hsi, msi, observed = seen(truth, response(4, 12), noise=0.02)
    model = built(hsi, msi, observed)
    planes = model.planes(model.base.parts(hsi, msi))
    n_known = int(model.axes.any(dim=0).sum())
    assert 1 <= n_known < 6
    assert not planes.coarse[:, n_known:].any()
    assert not any(part[:, n_known:].any() for part in planes.fine.chunk(3, dim=1))
    residual = torch.zeros(1, 6, 1, 1)
    residual[:, n_known:] = 1.0
    plain = model(hsi, msi)
    model.core = Told(residual)
    assert torch.equal(model(hsi, msi), plain)


@pytest.mark.parametrize(("n_bands", "msi_bands", "ratio"), [(24, 4, 4), (40, 6, 3), (31, 1, 6), (24, 2, 2)])
def test_one_weight_file_serves_every_pair(n_bands, msi_bands, ratio):
    spec = models.method("universal-csakd-student").specify(
        Observed(hsi_bands=9, msi_bands=3, ratio=5, psf_sigma_px=2.5), **SMALL
    )
    truth, hsi, msi, observed = pair(n_bands, msi_bands, ratio)
    image = built(hsi, msi, observed, learnt(spec))(hsi, msi)
    assert image.shape == truth.shape
    assert torch.isfinite(image).all()
    assert not torch.equal(image, built(hsi, msi, observed)(hsi, msi))


@pytest.mark.parametrize("name", NETWORKS)
def test_weights_do_not_depend_on_the_ratio(name):
    chosen = models.method(name)
    shapes = [
        {key: tuple(value.shape) for key, value in universal.build_core(chosen.specify(observed)).state_dict().items()}
        for observed in (
            Observed(hsi_bands=100, msi_bands=4, ratio=3, psf_sigma_px=1.5),
            Observed(hsi_bands=200, msi_bands=10, ratio=6, psf_sigma_px=3.0),
        )
    ]
    assert shapes[0] == shapes[1]


def test_what_the_core_sees_knows_no_unit():
    _, hsi, msi, observed = pair(noise=0.02)
    model, other = built(hsi, msi, observed), built(100.0 * hsi, 7.0 * msi, observed)
    one, two = model.planes(model.base.parts(hsi, msi)), other.planes(other.base.parts(100.0 * hsi, 7.0 * msi))
    for a, b in ((one.coarse, two.coarse), (one.fine, two.fine)):
        signs = (a * b).sum(dim=(0, 2, 3), keepdim=True).sign()  # those of planes mean nothing
        torch.testing.assert_close(b * signs, a, rtol=1e-2, atol=2e-2)


def test_the_sign_of_a_plane_means_nothing():
    spec = models.method("universal-csakd-student").specify(
        Observed(hsi_bands=9, msi_bands=3, ratio=2, psf_sigma_px=1.0), **SMALL
    )
    rng = torch.Generator().manual_seed(0)
    with torch.inference_mode(mode=False):
        core = universal.build_core(spec, learnt(spec))
        coarse, fine = torch.randn(2, 4, 8, 8, generator=rng), torch.randn(2, 12, 16, 16, generator=rng)
        signs = torch.tensor([1.0, -1.0, -1.0, 1.0]).view(1, 4, 1, 1)
        at_once = core(coarse, fine).detach()  # as in training
        with torch.no_grad():
            turned = core(coarse * signs, fine * signs.repeat(1, 3, 1, 1))
    assert at_once.abs().max() > 0.01
    torch.testing.assert_close(turned, at_once * signs, rtol=1e-4, atol=1e-6)


def test_detail_is_guessed_by_color():
    """Two materials that differ in color: mixed samples are told apart, pure ones have no detail."""
    ratio = 4
    share = torch.zeros(1, 1, 48, 48)
    share[..., 22:] = 1.0
    samples = functional.avg_pool2d(share, ratio)
    known = torch.ones_like(samples, dtype=torch.bool)
    detail = guided_detail(samples, known, 4.0 * share, ratio)
    wanted = share - upsample(samples, ratio)
    assert (detail - wanted).abs().mean() < 0.3 * wanted.abs().mean()
    assert detail[..., :6].abs().max() < 1e-5
    assert not guided_detail(torch.ones_like(samples), known, 4.0 * share, ratio).abs().gt(1e-5).any()


def test_windows_equal_the_whole():
    _, hsi, msi, observed = pair(size=52)
    spec = models.method("universal-csakd-student").specify(observed, **SMALL)
    model = built(hsi, msi, observed, learnt(spec))
    whole, halo, ratio = model(hsi, msi), spec.halo, 4
    assert halo < 24
    core = slice(24, 28)
    window = slice(core.start - halo, core.stop + halo)
    fine = slice(window.start * ratio, window.stop * ratio)
    part = model(hsi[..., window, window], msi[..., fine, fine])
    inner, at = slice(halo * ratio, (halo + 4) * ratio), slice(core.start * ratio, core.stop * ratio)
    torch.testing.assert_close(part[..., inner, inner], whole[..., at, at], rtol=1e-5, atol=1e-5)


def test_what_lies_in_a_hole_tells_nothing():
    _, hsi, msi, observed = pair(size=24)
    spec = models.method("universal-csakd-student").specify(observed, **SMALL)
    model = built(hsi, msi, observed, learnt(spec))
    masks = torch.ones(1, 1, 24, 24, dtype=torch.bool), torch.ones(1, 1, 96, 96, dtype=torch.bool)
    masks[0][..., 10, 10] = masks[1][..., 60:63, 60] = False
    plain = model(hsi, msi, *masks)
    hsi[..., 10, 10], msi[..., 60:63, 60] = 5.0, -3.0
    torch.testing.assert_close(model(hsi, msi, *masks), plain)


def test_a_core_must_not_sum_over_the_scene():
    observed = Observed(hsi_bands=24, msi_bands=4, ratio=4, psf_sigma_px=2.0)
    with pytest.raises(ValueError, match=r"s3rnet-paper .* sums over the scene"):
        universal.specify(observed, core="s3rnet-paper")
    with pytest.raises(ValueError, match="no method 'nothing'"):
        universal.specify(observed, core="nothing")
    with pytest.raises(ValueError, match="components must be at least 1"):
        universal.specify(observed, core="csakd-student", components=0)


def test_weights_of_another_core_are_refused():
    _, hsi, msi, observed = pair()
    spec = models.method("universal-hyfusion-s").specify(observed)
    with pytest.raises(ValueError, match="not weights"):
        built(hsi, msi, observed, learnt(spec))
