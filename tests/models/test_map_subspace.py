"""The estimate in the scene's subspace: known answers, tiles, holes, and real cubes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from hyperfuse import models
from hyperfuse.models import Observed
from hyperfuse.models.operators import degrade
from hyperfuse.models.spec import merge_sums
from hyperfuse.models.subspace import patches as _patches
from hyperfuse.models.subspace.patches import PatchPass
from hyperfuse.pipeline.evaluation.presets import CUBES, PRESETS, preset_trials
from hyperfuse.pipeline.quality.trials import fuse_whole, score
from tests import DATA
from tests.models.scenes import error, fused, mixtures, response, seen

METHOD = models.method("map_subspace")


@pytest.fixture(autouse=True)
def as_the_pipeline_runs_it():
    with torch.inference_mode():
        yield


def built(hsi: torch.Tensor, msi: torch.Tensor, observed: Observed, valid: torch.Tensor | None = None):
    """The method on a whole scene."""
    spec = METHOD.specify(observed)
    valid = torch.ones(1, *hsi.shape[-2:], dtype=torch.bool) if valid is None else valid
    return METHOD.build(spec, METHOD.first_pass(spec).sums(hsi, msi, valid))


def random_pair(observed: Observed, size: int):
    """Random images with blocks, of which the HSI is seen partly by the MSI."""
    rng = torch.Generator().manual_seed(0)
    msi = torch.rand(1, observed.msi_bands, size * observed.ratio, size * observed.ratio, generator=rng)
    for band, step in enumerate(observed.steps):
        blocks = msi[:, band, ::step, ::step]
        msi[:, band] = blocks.repeat_interleave(step, dim=-2).repeat_interleave(step, dim=-1)
    mix = torch.rand(observed.hsi_bands, observed.msi_bands, generator=rng)
    hsi = torch.einsum("ck,nkhw->nchw", mix, degrade(msi, observed.ratio, observed.psf_sigma_px))
    return hsi + 0.05 * torch.randn(hsi.shape, generator=rng), msi


# --- known answers -------------------------------------------------------------------------------------------------


def test_a_scene_linear_in_the_msi_is_solved():
    truth, _, _ = mixtures(3)
    hsi, msi, observed = seen(truth, response(4, 12))
    control = error(fused("bicubic", hsi, msi, observed), truth)
    assert error(fused("map_subspace", hsi, msi, observed), truth) < 1e-4 * control


def test_a_scene_quadratic_in_the_msi_is_bent_to():
    """Where no linear map of the MSI can follow; the HSI's mixtures are those of bent pixels."""
    rng = torch.Generator().manual_seed(0)
    shares, _, _ = mixtures(3, n_bands=3, size=32)
    msi = shares[:, :2]
    powers = torch.cat([msi, msi.square(), (msi[:, :1] * msi[:, 1:])], dim=1)
    truth = torch.einsum("ck,nkhw->nchw", torch.rand(20, 5, generator=rng) - 0.3, powers)
    hsi = degrade(truth, 4, 2.0)
    hsi += 1e-3 * torch.randn(hsi.shape, generator=rng)
    observed = Observed(hsi_bands=20, msi_bands=2, ratio=4, psf_sigma_px=2.0)
    linear = error(fused("gsa-regressed", hsi, msi, observed), truth)
    assert error(fused("map_subspace", hsi, msi, observed), truth) < 0.4 * linear


def test_gain_and_offset_of_the_msi_do_not_matter():
    truth, _, _ = mixtures(3)
    hsi, msi, observed = seen(truth, response(4, 12), noise=0.01)
    torch.testing.assert_close(
        fused("map_subspace", hsi, 1e4 * msi, observed), fused("map_subspace", hsi, msi, observed), rtol=1e-3, atol=1e-3
    )


def test_error_grows_with_noise_but_less_than_that_of_a_plain_guide():
    truth, _, _ = mixtures(5, n_bands=24)
    errors, guided = [], []
    for noise in (0.0, 0.01, 0.03, 0.1):
        pair = seen(truth, response(4, 24), noise=noise)
        errors.append(error(fused("map_subspace", *pair), truth))
        guided.append(error(fused("gsa-regressed", *pair), truth))
    assert errors == sorted(errors)
    assert all(ours < 0.8 * plain for ours, plain in zip(errors[1:], guided[1:], strict=True))
    assert errors[-1] < 0.6 * guided[-1]


@pytest.mark.parametrize("noise", [0.0, 0.01])
def test_bands_that_the_msi_does_not_see_are_no_worse_than_the_control(noise):
    """An HSI whose last bands show a field of their own, and an MSI with a band of something that the HSI lacks."""
    truth, _, _ = mixtures(3, size=24)
    alien, _, _ = mixtures(3, size=24, seed=7)
    hsi, msi, observed = seen(torch.cat([truth, alien[:, :4]], dim=1), torch.cat([response(3, 12), torch.zeros(3, 4)], 1),
                              noise=noise)  # fmt: skip
    beyond, _, _ = mixtures(2, n_bands=1, size=24, seed=9)
    msi, observed = torch.cat([msi, beyond], dim=1), replace(observed, msi_bands=4, srf=())
    ours, control = (fused(name, hsi, msi, observed) for name in ("map_subspace", "bicubic"))
    assert error(ours[:, 12:], alien[:, :4]) < 1.02 * error(control[:, 12:], alien[:, :4])
    assert error(ours[:, :12], truth) < 0.3 * error(control[:, :12], truth)


def test_bands_of_a_coarser_step_help():
    """The last two of five bands come in blocks of two, and still tell apart what the first three cannot."""
    truth, _, _ = mixtures(6, n_bands=24, size=24)
    hsi, msi, observed = seen(truth, response(5, 24), noise=0.003)
    coarser = degrade(msi[:, 3:], 2, 1.0)
    blocks = coarser.repeat_interleave(2, dim=-2).repeat_interleave(2, dim=-1)
    three = replace(observed, msi_bands=3, srf=observed.srf[:3])
    five = replace(observed, msi_steps=(1, 1, 1, 2, 2), msi_sigma_px=(0.0, 0.0, 0.0, 1.0, 1.0))
    without = error(fused("map_subspace", hsi, msi[:, :3], three), truth)
    assert error(fused("map_subspace", hsi, torch.cat([msi[:, :3], blocks], dim=1), five), truth) < 0.8 * without


@pytest.mark.parametrize("steps", [(), (1, 1, 2, 2)])
def test_standard_error_shrinks_with_the_noise(steps):
    truth, _, _ = mixtures(5, n_bands=24, size=24)
    errors = []
    for noise in (0.003, 0.01, 0.03):
        hsi, msi, observed = seen(truth, response(4, 24), noise=noise)
        observed = replace(observed, msi_steps=steps)
        errors.append(built(hsi, msi, observed).standard_error())
    size = 2 if steps else 4
    assert all(each.shape == (24, size, size) and (each > 0).all() for each in errors)
    assert errors[0].mean() < errors[1].mean() < errors[2].mean()


def test_runs_are_equal():
    truth, _, _ = mixtures(4, n_bands=24)
    pair = seen(truth, response(4, 24), noise=0.01)
    assert torch.equal(fused("map_subspace", *pair), fused("map_subspace", *pair))


# --- tiles and holes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ratio", "msi_bands", "steps"),
    [
        *((ratio, 4, ()) for ratio in (2, 3, 4, 6, 10)),
        *((4, msi_bands, ()) for msi_bands in (1, 12)),
        *((ratio, 4, (1, 1, 2, 2)) for ratio in (3, 4, 6)),
        (4, 4, (1, 2, 2, 4)),
    ],
)
def test_tiles_equal_the_whole(ratio, msi_bands, steps):
    observed = Observed(hsi_bands=9, msi_bands=msi_bands, ratio=ratio, psf_sigma_px=0.5 * ratio, msi_steps=steps)
    step = METHOD.specify(observed).multiple_of
    halo = -(-METHOD.specify(observed).halo // step) * step
    size = 2 * halo + 4 * step
    hsi, msi = random_pair(observed, size)
    model = built(hsi, msi, observed)
    whole = model(hsi, msi)
    for first in (0, halo + step):  # in the corner, and amid the scene
        window = slice(max(first - halo, 0), first + 2 * step + halo)
        fine = slice(window.start * ratio, window.stop * ratio)
        tile = model(hsi[..., window, window], msi[..., fine, fine])
        core = slice(first * ratio, (first + 2 * step) * ratio)
        at = slice(core.start - fine.start, core.stop - fine.start)
        expected = whole[..., core, core]
        assert (tile[..., at, at] - expected).norm() < 1e-5 * expected.norm()
        assert (tile[..., at, at] - expected).abs().max() < 1e-4 * expected.abs().max()


@pytest.mark.parametrize("steps", [(), (1, 1, 2, 2)])
def test_holes_do_not_reach_beyond_what_is_said(steps):
    """What lies under a mask does not matter; outside the reaches the scene stays as good as it was."""
    truth, _, _ = mixtures(4, n_bands=24, size=24)
    hsi, msi, observed = seen(truth, response(4, 24), noise=0.003)
    observed = replace(observed, msi_steps=steps)
    for band, step in enumerate(steps):
        msi[:, band] = msi[:, band, ::step, ::step].repeat_interleave(step, dim=-2).repeat_interleave(step, dim=-1)
    hsi_valid = torch.ones(1, 1, 24, 24, dtype=torch.bool)
    msi_valid = torch.ones(1, 1, 96, 96, dtype=torch.bool)
    hsi_valid[..., 8:10, 9:12] = False
    msi_valid[..., 52:60, 56:62] = False
    filled = [
        image.where(valid, image.mean(dim=(-2, -1), keepdim=True))
        for image, valid in ((hsi, hsi_valid), (msi, msi_valid))
    ]
    whole = torch.nn.functional.max_pool2d((~msi_valid).float(), 4)[0] == 0
    model = built(*filled, observed, valid=hsi_valid[0] & whole)
    masked, plain = model(*filled, hsi_valid, msi_valid), built(hsi, msi, observed)(hsi, msi)
    reach = model.spec.msi_reach
    out = torch.ones(96, 96, dtype=torch.bool)
    out[32:40, 36:48] = False
    out[52 - reach : 60 + reach, 56 - reach : 62 + reach] = False
    out[:8], out[-8:], out[:, :8], out[:, -8:] = False, False, False, False
    out[:24], out[72:], out[:, :24], out[:, 76:] = False, False, False, False  # near the holes alone
    before, after = ((image - truth)[..., out].square().mean().sqrt() for image in (plain, masked))
    assert after < 1.2 * before
    under = filled[0].where(hsi_valid, 50.0), filled[1].where(msi_valid, -30.0)
    torch.testing.assert_close(model(*under, hsi_valid, msi_valid)[..., out], masked[..., out], rtol=1e-5, atol=1e-5)


# --- the sample ----------------------------------------------------------------------------------------------------


def sampled(observed: Observed, hsi, msi, valid, windows):
    """The merged sample of windows (rows, columns) that partition the scene."""
    passed = PatchPass(METHOD.specify(observed))
    total, ratio = None, observed.ratio
    for rows, cols in windows:
        y, x = (slice(max(axis.start - passed.margin, 0), axis.stop + passed.margin) for axis in (rows, cols))
        core = torch.zeros_like(valid)
        core[:, rows, cols] = valid[:, rows, cols]
        part = passed.sums(
            hsi[..., y, x],
            msi[..., y.start * ratio : y.stop * ratio, x.start * ratio : x.stop * ratio],
            core[:, y, x],
            (y.start, x.start),
        )
        total = part if total is None else merge_sums(passed, total, part)
    return total


@pytest.mark.parametrize("most", [64, 5])
def test_any_windows_in_any_order_give_the_same_sample(most, monkeypatch):
    monkeypatch.setattr(_patches, "MOST", most)
    observed = Observed(hsi_bands=5, msi_bands=2, ratio=2, psf_sigma_px=1.0, msi_steps=(1, 2))
    hsi, msi = random_pair(observed, 48)
    hsi, msi = hsi[..., :41], msi[..., :82]
    valid = torch.rand(1, 48, 41, generator=torch.Generator().manual_seed(1)) < 0.9
    whole = sampled(observed, hsi, msi, valid, [(slice(0, 48), slice(0, 41))])
    assert len(whole["place"]) == min(most, 9)
    quarters = [(rows, cols) for rows in (slice(0, 16), slice(16, 48)) for cols in (slice(0, 32), slice(32, 41))]
    rows = [(slice(first, first + 16), slice(0, 41)) for first in (0, 16, 32)]
    for windows in (quarters, quarters[::-1], rows, rows[::-1]):
        found = sampled(observed, hsi, msi, valid, windows)
        for name, values in whole.items():
            torch.testing.assert_close(found[name], values, msg=lambda text, name=name: f"{name}: {text}")


def test_what_is_kept_lies_all_over_the_scene(monkeypatch):
    monkeypatch.setattr(_patches, "MOST", 8)
    observed = Observed(hsi_bands=1, msi_bands=1, ratio=2, psf_sigma_px=1.0)
    hsi, msi = random_pair(observed, 128)
    places = PatchPass(METHOD.specify(observed)).sums(hsi, msi, torch.ones(1, 128, 128, dtype=torch.bool))["place"]
    assert len(torch.unique(places, dim=0)) == 8
    assert len(torch.unique(places // 4, dim=0)) >= 3  # of the four quarters


def test_too_few_pixels_are_named():
    observed = Observed(hsi_bands=3, msi_bands=1, ratio=2, psf_sigma_px=1.0)
    hsi, msi = random_pair(observed, 16)
    valid = torch.zeros(1, 16, 16, dtype=torch.bool)
    for count in (0, 15):
        valid.view(-1)[:count] = True
        with pytest.raises(ValueError, match=f"map_subspace needs at least 16 coarse pixels .* found {count}"):
            built(hsi, msi, observed, valid)
    valid.view(-1)[:16] = True
    assert torch.isfinite(built(hsi, msi, observed, valid)(hsi, msi)).all()


# --- real cubes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["jasper-ridge", "berlin-enmap"])
def test_real_cubes_come_out_better_than_by_a_plain_guide(name):
    if not (DATA / CUBES[name].uri).is_file():
        pytest.skip(f"real imagery is absent: {CUBES[name].uri} (see the README)")
    protocol = PRESETS["real-4"].protocols[0]
    assert (protocol.msi, protocol.hsi_snr_db, protocol.msi_snr_db) == ("s2-4", 35.0, 40.0)
    (trial,) = (t for t in preset_trials("real-4", DATA) if t.cube == name and t.protocol == protocol)
    pair = trial.make()
    ours, guided, control = (
        score(fuse_whole(method, pair).image, pair) for method in ("map_subspace", "gsa-regressed", "bicubic")
    )
    assert ours.psnr_db > guided.psnr_db + 1.0
    assert ours.sam_deg < min(guided.sam_deg, control.sam_deg)
