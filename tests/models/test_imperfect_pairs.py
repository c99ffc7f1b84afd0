"""Pairs that break the ideal observation model: displaced samples, another PSF, detectors apart, changes between the dates."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from hyperfuse import models
from hyperfuse.models import Observed
from hyperfuse.models._change import Change
from hyperfuse.models._detectors import grouped, of_group
from hyperfuse.models.operators import blur_matrix, degrade, degrade_slopes, upsample
from hyperfuse.models.spec import merge_sums
from hyperfuse.models.subspace.kriging import filters, predict
from hyperfuse.models.subspace.regression import fit, fit_with, products
from tests.models.scenes import error, fused, mixtures, response

DISPLACED = ["map_subspace", "hysure", "gsa", "gsa-regressed", "mtf_glp", "sfim", "sfim-regressed"]
"""Methods that take the displacement of the samples."""


@pytest.fixture(autouse=True)
def as_the_pipeline_runs_it():
    with torch.inference_mode():
        yield


def white(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def seen_at(fine: torch.Tensor, shift: tuple[float, float], sigma: float = 2.0, ratio: int = 4) -> torch.Tensor:
    """Samples (N, C, h, w) that lie `shift` coarse pixels beside the centers of their blocks: a plain Gaussian sum."""
    factors = []
    for size, by in zip(fine.shape[-2:], shift, strict=True):
        center = (np.arange(size // ratio) + 0.5 + by) * ratio - 0.5
        reach = np.arange(-40, size + 40)
        weight = np.exp(-((reach - center[:, None]) ** 2) / (2 * sigma**2))
        weight /= weight.sum(axis=1, keepdims=True)
        matrix = np.zeros((len(center), size))
        np.add.at(matrix.T, np.clip(reach, 0, size - 1), weight.T)
        factors.append(torch.as_tensor(matrix).to(fine))
    return factors[0] @ fine @ factors[1].T


def pair(shift=(0.0, 0.0), *, sigma: float = 2.0, noise: float = 0.003, size: int = 24, n_bands: int = 24):
    """Truth and a pair of four MSI bands with noise, whose HSI is displaced or blurred otherwise than told."""
    truth, _, _ = mixtures(5, n_bands=n_bands, size=size)
    shifts = shift if isinstance(shift, list) else [shift] * n_bands
    hsi = torch.cat([seen_at(truth[:, k : k + 1], by, sigma) for k, by in enumerate(shifts)], dim=1)
    msi = torch.einsum("kc,nchw->nkhw", response(4, n_bands), truth)
    rng = torch.Generator().manual_seed(1)
    hsi, msi = (image + noise * torch.randn(image.shape, generator=rng) for image in (hsi, msi))
    return truth, hsi, msi, Observed(hsi_bands=n_bands, msi_bands=4, ratio=4, psf_sigma_px=2.0)


def db(one: float, other: float) -> float:
    """By how much the first error is the larger."""
    return 20.0 * float(np.log10(one / other))


def built(hsi, msi, observed, name="map_subspace"):
    method = models.method(name)
    spec = method.specify(observed)
    return method.build(spec, method.first_pass(spec).sums(hsi, msi, torch.ones(1, *hsi.shape[-2:], dtype=torch.bool)))


# --- the operator --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shift", [(0.0, 0.0), (0.5, -0.25), (1.3, 2.0)])
def test_displaced_samples_against_a_plain_sum(shift):
    fine = white(1, 2, 48, 40)
    ours = degrade(fine, 4, 1.7, shift)
    plain = seen_at(fine, (shift[0] / 4, shift[1] / 4), 1.7)
    torch.testing.assert_close(ours, plain, rtol=0, atol=2e-3)


def test_slopes_against_differences():
    fine = white(1, 1, 40, 40)
    at, step = (0.4, -0.7), 1e-2
    slopes = degrade_slopes(fine, 4, 1.7, at)[0, 0]
    moved = [
        (degrade(fine, 4, 1.7, (at[0] + dy, at[1] + dx)) - degrade(fine, 4, 1.7, (at[0] - dy, at[1] - dx))) / (2 * step)
        for dy, dx in ((step, 0.0), (0.0, step))
    ]
    wider, narrower = (degrade(fine, 4, (1.7**2 + sign * step) ** 0.5, at) for sign in (1, -1))
    expected = torch.stack([*(image[0, 0] for image in moved), ((wider - narrower) / (2 * step))[0, 0]])
    inner = (..., slice(3, -3), slice(3, -3))
    torch.testing.assert_close(slopes[inner], expected[inner], rtol=0, atol=2e-3)


def test_a_constant_has_no_slopes():
    for order in (1, 2):
        assert np.abs(blur_matrix(6, 4, 1.9, 0.3, order).sum(axis=1)).max() < 1e-6


def test_interpolation_from_displaced_samples_keeps_a_plane():
    rows, cols = torch.meshgrid(torch.arange(12.0), torch.arange(10.0), indexing="ij")
    shift = (0.8, -1.2)  # fine pixels
    samples = 2.0 * ((rows + 0.5) * 4 - 0.5 + shift[0]) - 3.0 * ((cols + 0.5) * 4 - 0.5 + shift[1])
    fine = upsample(samples, 4, shift)
    y, x = torch.meshgrid(torch.arange(48.0), torch.arange(40.0), indexing="ij")
    inner = slice(12, -12), slice(12, -12)
    torch.testing.assert_close(fine[inner], (2.0 * y - 3.0 * x)[inner], rtol=0, atol=1e-3)


def test_kriged_fields_honor_displaced_samples():
    """Blurred and sampled again where the samples lie, what they predict is the samples; beside them it is not."""
    weights, _ = filters(4, 0.5, 1.0, 1e6, shift=(0.25, -0.25))
    samples = white(1, 1, 24, 24).float()
    field = predict(samples, weights[None], 4)
    inner = (..., slice(8, -8), slice(8, -8))
    again, beside = degrade(field, 4, 2.0, (1.0, -1.0)), degrade(field, 4, 2.0)
    assert (again - samples)[inner].norm() < 0.03 * samples[inner].norm()
    assert (beside - samples)[inner].norm() > 0.2 * samples[inner].norm()


# --- told displacements --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DISPLACED)
def test_a_told_displacement_costs_nothing(name):
    """Samples stay where they were measured; what is interpolated by cubics depends on the phase a little."""
    shift = (0.15, 0.2)
    truth, hsi, msi, observed = pair()
    undisturbed = error(fused(name, hsi, msi, observed), truth)
    _, hsi, msi, _ = pair(shift)
    told = replace(observed, hsi_shifts=(shift,) * 24)
    assert db(error(fused(name, hsi, msi, told), truth), undisturbed) < (0.1 if name == "map_subspace" else 0.5)


@pytest.mark.parametrize("name", ["map_subspace", "hysure", "gsa-regressed"])
def test_detectors_that_are_told_apart_are_fused_apart(name):
    shifts = [(0.0, 0.0)] * 12 + [(0.2, 0.25)] * 12
    truth, hsi, msi, observed = pair(shifts)
    told = replace(observed, hsi_shifts=tuple(shifts))
    undisturbed = error(fused(name, *pair()[1:]), truth)
    ours = error(fused(name, hsi, msi, told), truth)
    assert db(ours, undisturbed) < 0.6
    middle = replace(observed, hsi_shifts=((0.1, 0.125),) * 24)
    if name != "map_subspace":  # which finds it by itself
        assert ours < 0.9 * error(fused(name, hsi, msi, middle), truth)


def test_methods_that_cannot_refuse():
    observed = Observed(hsi_bands=3, msi_bands=1, ratio=2, psf_sigma_px=1.0, hsi_shifts=((0.1, 0.0),) * 3)
    assert not models.method("cnmf").takes_displacement
    with pytest.raises(ValueError, match="cnmf cannot work with displaced samples; resample"):
        models.method("cnmf").specify(observed)
    models.method("cnmf").specify(replace(observed, hsi_shifts=((0.0, 0.0),) * 3))


@pytest.mark.parametrize("shifts", [((0.1, 0.0),) * 2, ((2.5, 0.0),) * 3])
def test_impossible_displacements_are_named(shifts):
    with pytest.raises(ValueError, match=r"one pair per HSI band|at most 2\.0 coarse pixels"):
        Observed(hsi_bands=3, msi_bands=1, ratio=2, psf_sigma_px=1.0, hsi_shifts=shifts)


def test_groups_are_those_of_the_displacement():
    shifts = [(0.0, 0.0), (0.3, 0.0), (0.01, 0.0), (0.29, 0.02)]
    assert grouped(shifts) == [[0, 2], [1, 3]]
    assert len(grouped([(0.0, 0.05 * k) for k in range(30)])) <= 4
    observed = Observed(hsi_bands=4, msi_bands=1, ratio=4, psf_sigma_px=2.0, hsi_shifts=tuple(shifts))
    part = of_group(observed, [1, 3])
    assert part.hsi_bands == 2
    assert part.shift_px == pytest.approx((4 * 0.295, 4 * 0.01))


@pytest.mark.parametrize("shifts", [[(0.3, -0.2)] * 9, [(0.0, 0.0)] * 5 + [(0.3, -0.2)] * 4])
def test_tiles_equal_the_whole_and_sums_merge(shifts):
    observed = Observed(hsi_bands=9, msi_bands=4, ratio=4, psf_sigma_px=2.0, hsi_shifts=tuple(shifts))
    method = models.method("map_subspace")
    spec = method.specify(observed)
    size, ratio = 2 * spec.halo + 4, 4
    rng = torch.Generator().manual_seed(0)
    msi = torch.rand(1, 4, size * ratio, size * ratio, generator=rng)
    mix = torch.rand(9, 4, generator=rng)
    hsi = degrade(torch.einsum("ck,nkhw->nchw", mix, msi), 4, 2.0) + 0.05 * torch.randn(1, 9, size, size, generator=rng)
    passed = method.first_pass(spec)
    valid = torch.ones(1, size, size, dtype=torch.bool)
    upper, lower = valid.clone(), valid.clone()
    upper[:, 16:], lower[:, :16] = False, False
    whole_sums = passed.sums(hsi, msi, valid)
    merged = merge_sums(passed, passed.sums(hsi, msi, upper), passed.sums(hsi, msi, lower))
    for key, value in whole_sums.items():
        torch.testing.assert_close(merged[key], value)
    model = method.build(spec, whole_sums)
    whole = model(hsi, msi)
    first = spec.halo
    window = slice(0, first + 2 + spec.halo)
    tile = model(hsi[..., window, window], msi[..., : window.stop * ratio, : window.stop * ratio])
    core = slice(first * ratio, (first + 2) * ratio)
    expected = whole[..., core, core]
    assert (tile[..., core, core] - expected).norm() < 1e-5 * expected.norm()


# --- what the default finds by itself ------------------------------------------------------------------------------


@pytest.mark.parametrize(("shift", "factor"), [((0.2, -0.3), 1.0), ((0.0, 0.0), 1.25), ((0.1, 0.1), 0.8)])
def test_the_operator_is_refined_on_the_scene(shift, factor):
    truth, hsi, msi, observed = pair(shift, sigma=2.0 * factor)
    model = built(hsi, msi, observed)
    found = model.calibration.operator
    assert found.shift_px == pytest.approx((4 * shift[0], 4 * shift[1]), abs=0.08)
    assert found.sigma_px == pytest.approx(2.0 * factor, rel=0.03)
    undisturbed = error(fused("map_subspace", *pair()[1:]), truth)
    assert db(error(model(hsi, msi), truth), undisturbed) < (2.0 if factor > 1 else 0.6)


def test_where_nothing_is_wrong_nothing_is_refined():
    _, hsi, msi, observed = pair()
    calibration = built(hsi, msi, observed).calibration
    assert calibration.operator == calibration.believed
    assert calibration.measured.shift_px == pytest.approx((0.0, 0.0), abs=0.08)
    assert calibration.measured.sigma_px == pytest.approx(2.0, rel=0.02)


def test_detectors_are_found_and_fused_apart():
    shifts = [(0.0, 0.0)] * 12 + [(0.2, 0.25)] * 12
    truth, hsi, msi, observed = pair(shifts)
    model = built(hsi, msi, observed)
    assert [list(group) for group in model.groups] == [list(range(12)), list(range(12, 24))]
    undisturbed = error(fused("map_subspace", *pair()[1:]), truth)
    assert db(error(model(hsi, msi), truth), undisturbed) < 0.8
    assert model.standard_error().shape == (24, 4, 4)


def test_doubts_are_taken_where_they_are_true_and_nowhere_else():
    """Components that depend on a column beyond the believed ones, and others that do not."""
    n_patches, edge = 8, 16
    columns = torch.cat([torch.ones(n_patches, edge**2, 1, dtype=torch.float64), white(n_patches, edge**2, 7)], dim=2)
    clean = columns[..., 1:2] * torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    values = clean + 0.3 * white(n_patches, edge**2, 3, seed=1)
    values[..., 2] += 0.2 * columns[..., 4]
    valid = torch.ones(n_patches, edge**2, dtype=torch.bool)
    whitened = products(torch.cat([columns, values], dim=2), valid, 0.5)
    sizes = {"n_free": 2, "n_components": 3, "n_samples": int(valid.sum())}
    doubts = (torch.tensor([2, 3, 4, 5]), torch.tensor([6, 7]))
    found = fit_with(whitened, torch.arange(2), doubts, (True, True), **sizes)
    assert (found.coefficients[:2, 2:] == 0).all()
    assert (found.coefficients[2, 6:] == 0).all()
    assert float(found.coefficients[2, 4]) == pytest.approx(0.2, abs=0.02)
    plain = fit(whitened, torch.arange(2), **sizes)
    torch.testing.assert_close(found.coefficients[:2, :2], plain.coefficients[:2])


# --- changes between the dates -------------------------------------------------------------------------------------


def changed_pair():
    """A square of the MSI, coarse pixels 10 to 13 along both axes, is another part of the scene."""
    truth, hsi, msi, observed = pair(size=32)
    other = msi.clone()
    other[..., 40:56, 40:56] = msi[..., 80:96, 100:116]
    return truth, hsi, msi, other, observed


def test_changes_are_found_where_they_are():
    _, hsi, msi, other, observed = changed_pair()
    assert not built(hsi, msi, observed).changed(hsi, msi).any()
    found = built(hsi, other, observed).changed(hsi, other)[0, 0]
    assert found[11:13, 11:13].all()
    found[9:15, 9:15] = False
    assert not found.any()


def test_changes_spoil_their_surroundings_little_and_follow_the_hsi():
    truth, hsi, msi, other, observed = changed_pair()
    plain, ours = (fused("map_subspace", hsi, image, observed) for image in (msi, other))
    control = fused("bicubic", hsi, other, observed)
    outside = torch.ones(128, 128, dtype=torch.bool)
    outside[36:60, 36:60] = False
    rms = [float((image - truth)[..., outside].square().mean().sqrt()) for image in (ours, plain)]
    assert db(*rms) < 1.0
    inside = (..., slice(44, 52), slice(44, 52))
    assert float((ours - control)[inside].square().mean().sqrt()) < 0.5 * float(
        (plain - control)[inside].square().mean().sqrt()
    )


def test_bands_that_the_hsi_does_not_see_are_no_witnesses():
    components, valid = white(1, 3, 24, 24), torch.ones(1, 24, 24, dtype=torch.bool)
    alien = white(1, 2, 24, 24, seed=3)
    alien[..., 4:8, 4:8] += 30.0
    change = Change.of(components, alien, valid)
    touched, changed = change(components.float(), alien.float(), valid[:, None])
    assert not touched.any()
    assert not changed.any()
    related = torch.einsum("ck,nkhw->nchw", white(2, 3, seed=4), components) + 0.01 * white(1, 2, 24, 24, seed=5)
    related[..., 4:8, 4:8] += 30.0
    touched, changed = Change.of(components, related, valid)(components.float(), related.float(), valid[:, None])
    assert changed[..., 4:8, 4:8].all()
    assert int(touched.sum()) == 16
