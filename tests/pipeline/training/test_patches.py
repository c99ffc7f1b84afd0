"""Patches: the same pair that `simulate` makes, whatever the turn; each a function of its number; never on a hole."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from hyperfuse.catalogs.bands import Bands
from hyperfuse.catalogs.errors import InputRejected
from hyperfuse.catalogs.references.cubes import ReferenceCube
from hyperfuse.catalogs.sensors import sigma_from_mtf
from hyperfuse.models.operators import blur_matrix, blur_reach, degrade
from hyperfuse.pipeline.observation.simulate import simulate
from hyperfuse.pipeline.training.pairs import Ground
from hyperfuse.pipeline.training.patches import Samples, displaced_psf
from hyperfuse.pipeline.training.settings import SampleConfig, SimulationConfig

NM = np.arange(430.0, 900.0, 25.0)
BANDS = Bands.sort(NM, unit="nm", of="test", fwhm=np.full(NM.shape, 25.0))
CLEAN = SimulationConfig(hsi_snr_db=None)
STILL = SampleConfig(patch=8, turns=False)


def cube(height=80, width=72, seed=0) -> ReferenceCube:
    """Smooth land of three materials, sharp enough that a lost half pixel shows."""
    rng = np.random.default_rng(seed)
    spectra = np.abs(np.sin(NM[:, None] / np.array([150.0, 250.0, 400.0]))) + 0.1
    shares = rng.dirichlet(np.ones(3), (height, width))
    values = np.einsum("ck,yxk->cyx", spectra, shares).astype(np.float32)
    return ReferenceCube(name="land", values=values, bands=BANDS)


def ground(simulation=CLEAN, values=None, **size) -> Ground:
    made = cube(**size)
    made = made if values is None else replace(made, values=values)
    pair = simulate(made, simulation.protocol(noise=False))
    return Ground(pair=pair, bands=BANDS, license="CC0-1.0", sha256="", real=False)


def physical(image: torch.Tensor, field: Ground) -> np.ndarray:
    low, high = field.span
    return (image.numpy().astype(np.float64) + 1) / 2 * (high - low) + low


def place(sample, field: Ground, ratio: int = 4) -> tuple[int, int]:
    """First coarse pixel of an unturned sample, found by its truth."""
    truth = physical(sample.truth, field)[:, 0, 0]
    apart = np.abs(field.pair.truth[:, ::ratio, ::ratio] - truth[:, None, None]).max(axis=0)
    assert apart.min() < 1e-5
    return np.unravel_index(apart.argmin(), apart.shape)


def test_a_sample_is_a_window_of_the_simulated_pair():
    field = ground()
    samples = Samples([field], STILL, CLEAN, seed=3)
    for number in range(5):
        sample = samples[number]
        row, col = place(sample, field)
        fine = slice(4 * row, 4 * row + 32), slice(4 * col, 4 * col + 32)
        np.testing.assert_allclose(
            physical(sample.hsi, field), field.pair.hsi[:, row : row + 8, col : col + 8], atol=1e-6
        )
        np.testing.assert_allclose(physical(sample.truth, field), field.pair.truth[:, *fine], atol=1e-6)
        np.testing.assert_allclose(physical(sample.msi, field), field.pair.msi[:, *fine], atol=1e-6)
        assert torch.equal(sample.hsi, sample.again)


def test_the_range_is_that_of_the_scenes_hsi():
    field = ground()
    low, high = field.span
    assert low == field.pair.hsi.min()
    assert high == field.pair.hsi.max()
    sample = Samples([field], SampleConfig(patch=16, turns=False), CLEAN, seed=0)[0]
    assert -1 <= sample.hsi.min() < sample.hsi.max() <= 1
    assert sample.truth.abs().max() > 1  # sharp detail goes beyond what the blurred HSI shows


@pytest.mark.parametrize("ratio", [2, 3, 4])
def test_psf_without_displacement_is_the_protocols(ratio):
    sigma = sigma_from_mtf(0.3, ratio)
    margin = blur_reach(ratio, sigma)
    ours = displaced_psf(9, ratio, sigma, margin, 0.0)[4]
    theirs = blur_matrix(9 + 2 * margin, ratio, sigma)[4 + margin]
    np.testing.assert_allclose(ours, theirs[margin * ratio - margin : -(margin * ratio - margin) or None], atol=1e-5)


@pytest.mark.parametrize("moved", [-1, 1])
def test_a_displaced_hsi_sees_the_ground_beside(moved):
    """By whole fine pixels the displaced HSI is the plain one of the shifted land."""
    sigma, rng = sigma_from_mtf(0.3, 4), np.random.default_rng(0)
    land = rng.random((1, 120, 120)).astype(np.float32)
    margin = blur_reach(4, sigma) + 1
    window = land[:, 40 - margin : 72 + margin, 40 - margin : 72 + margin]
    down, still = (displaced_psf(8, 4, sigma, margin, by) for by in (moved, 0.0))
    plain = degrade(torch.from_numpy(np.roll(land, -moved, axis=1)), 4, sigma).numpy()[:, 10:18, 10:18]
    np.testing.assert_allclose(down @ window @ still.T, plain, atol=2e-4)


def test_displacement_is_drawn_up_to_its_limit_and_moves_the_hsi_alone():
    field = ground()
    still, moving = (Samples([field], replace_config(STILL, shift_px=shift), CLEAN, seed=1) for shift in (1e-6, 1.0))
    for number in range(4):
        a, b = still[number], moving[number]
        assert torch.equal(a.truth, b.truth)
        assert torch.equal(a.msi, b.msi)
        assert 0.01 < (a.hsi - b.hsi).abs().max() < 1


@pytest.mark.parametrize("psf", ["gaussian", "block"])
def test_all_turns_keep_the_images_together(psf):
    """Whatever the turn, the blurred truth is the HSI and the weighed truth is the MSI."""
    simulation = SimulationConfig(hsi_snr_db=None, psf=psf)
    field = ground(simulation)
    samples = Samples([field], SampleConfig(patch=16, gain=0.2), simulation, seed=5)
    weights = np.array(field.pair.observed.srf)
    sigma = field.pair.observed.psf_sigma_px
    for number in range(24):
        truth, hsi, msi = (physical(getattr(samples[number], name), field) for name in ("truth", "hsi", "msi"))
        np.testing.assert_allclose(np.einsum("kc,cyx->kyx", weights, truth), msi, atol=1e-5)
        if psf == "gaussian":
            blurred = degrade(torch.from_numpy(truth), 4, sigma).numpy()
            np.testing.assert_allclose(blurred[:, 4:-4, 4:-4], hsi[:, 4:-4, 4:-4], atol=2e-3)
    means = [float(samples[number].truth.mean()) for number in range(24)]
    assert np.std(means) > 0.05  # the gain varies


def test_the_eight_turns_of_a_square_all_occur():
    field = ground()
    still, turned = (Samples([field], SampleConfig(patch=8, turns=turns), CLEAN, seed=6) for turns in (False, True))
    found = set()
    for number in range(60):
        plain, image = still[number].msi.numpy(), turned[number].msi.numpy()
        eight = [np.rot90(side, k, axes=(1, 2)) for side in (plain, plain[:, :, ::-1]) for k in range(4)]
        (which,) = [k for k, candidate in enumerate(eight) if np.array_equal(candidate, image)]
        found.add(which)
    assert found == set(range(8))


def test_blocks_of_coarser_bands_stay_blocks():
    simulation = SimulationConfig(hsi_snr_db=None, msi_snr_db=20.0, msi="s2-10", ratio=3)
    field = ground(simulation)
    observed = field.pair.observed
    assert set(observed.steps) == {1, 2}
    assert observed.whole_blocks == 2
    samples = Samples([field], SampleConfig(patch=8), simulation, seed=0)
    for number in range(6):
        msi = samples[number].msi.numpy()
        for plane, step in zip(msi, observed.steps, strict=True):
            blocks = plane[::step, ::step].repeat(step, axis=0).repeat(step, axis=1)
            assert np.array_equal(plane, blocks)
            assert (np.diff(plane, axis=0) == 0).any() == (step == 2)


def test_a_sample_depends_on_seed_and_number_alone():
    fields = [ground(), ground(seed=1)]
    config, noisy = SampleConfig(patch=8, shift_px=1, gain=0.1, msi_gain=0.1), SimulationConfig(msi_snr_db=30.0)
    one, other = (Samples(fields, config, noisy, seed=7) for _ in range(2))
    for number in (5, 0, 123456):
        assert all(torch.equal(a, b) for a, b in zip(one[number], other[number], strict=True))
    one[0], one[1]
    assert torch.equal(one[5].hsi, other[5].hsi)
    assert not torch.equal(one[5].hsi, one[6].hsi)
    assert not torch.equal(one[5].hsi, Samples(fields, config, noisy, seed=8)[5].hsi)


def test_noise_has_its_power_and_is_drawn_twice():
    noisy = SimulationConfig(hsi_snr_db=20.0, msi_snr_db=30.0)
    field = ground()
    clean, made = (Samples([field], SampleConfig(patch=16), s, seed=2) for s in (CLEAN, noisy))
    for image, pair, db in (("hsi", "hsi", 20.0), ("again", "hsi", 20.0), ("msi", "msi", 30.0)):
        noise = np.concatenate(
            [physical(getattr(made[n], image), field) - physical(getattr(clean[n], image), field) for n in range(4)],
            axis=1,
        )
        power = (getattr(field.pair, pair).astype(float) ** 2).mean(axis=(1, 2))
        found = 10 * np.log10(power / noise.var(axis=(1, 2)))
        np.testing.assert_allclose(found, db, atol=1.0)
        assert abs(found.mean() - db) < 0.2
    first, again = (physical(getattr(made[0], n), field) - physical(clean[0].hsi, field) for n in ("hsi", "again"))
    assert abs(np.corrcoef(first.ravel(), again.ravel())[0, 1]) < 0.05
    real = Samples([replace(field, real=True)], SampleConfig(patch=16), noisy, seed=2)[0]
    assert torch.equal(real.hsi, real.again)


def test_gain_of_the_msi_moves_its_bands_alone():
    field = ground()
    plain, varied = (Samples([field], replace_config(STILL, msi_gain=gain), CLEAN, seed=4)[0] for gain in (0.0, 0.1))
    assert torch.equal(plain.hsi, varied.hsi)
    assert torch.equal(plain.truth, varied.truth)
    shares = physical(varied.msi, field) / physical(plain.msi, field)
    spread = shares.max(axis=(1, 2)) - shares.min(axis=(1, 2))
    assert spread.max() < 1e-3  # one gain per band ...
    gains = shares.mean(axis=(1, 2))
    assert np.unique(gains.round(3)).size == 4  # ... each its own
    assert np.abs(gains - 1).max() <= 0.1 + 1e-3


def test_no_patch_holds_a_hole():
    values = cube().values.copy()
    values[:, 30:34, 40] = np.nan
    field = ground(values=values)
    samples = Samples([field], SampleConfig(patch=4, shift_px=1), CLEAN, seed=0)
    assert all(torch.isfinite(image).all() for number in range(200) for image in samples[number])


def test_scenes_without_a_whole_patch_are_refused_or_left_out(caplog):
    large, small = ground(), replace(ground(height=40, width=40))
    with pytest.raises(InputRejected, match=r"no scene holds a patch of 16 x 16 coarse pixels.*land 10 x 10"):
        Samples([small], SampleConfig(patch=16), CLEAN, seed=0)
    Samples([large, small], SampleConfig(patch=16), CLEAN, seed=0)[0]
    assert "holds no whole patch" in caplog.text


def replace_config(config: SampleConfig, **changes) -> SampleConfig:
    return config.model_copy(update=changes)
