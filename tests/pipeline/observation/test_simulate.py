"""Simulated pairs: laws of the two sensors, and what becomes of holes, rims and bands that are not seen."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from hyperfuse.catalogs.bands import Bands
from hyperfuse.catalogs.errors import InputRejected, UsageError
from hyperfuse.catalogs.references.cubes import ReferenceCube
from hyperfuse.catalogs.sensors import sigma_from_mtf
from hyperfuse.pipeline.observation.protocol import Protocol
from hyperfuse.pipeline.observation.simulate import blurred, simulate

NM = np.arange(420.0, 2400.0, 10.0)
CLEAN = Protocol(hsi_snr_db=None, msi_snr_db=None)


def cube(height=48, width=40, nm=NM, seed=0):
    rng = np.random.default_rng(seed)
    spectra = np.abs(np.sin(nm[:, None] / np.array([300.0, 500.0, 900.0]))) + 0.1
    shares = rng.dirichlet(np.ones(3), (height, width))
    values = np.einsum("ck,yxk->cyx", spectra, shares).astype(np.float32)
    bands = Bands.sort(nm, unit="nm", of="test", fwhm=np.full(nm.shape, 10.0))
    return ReferenceCube(name="test", values=values, bands=bands)


@pytest.mark.parametrize("ratio", [2, 3, 4, 5])
def test_blur_against_a_plain_sum(ratio):
    """Mirrored rim, Gaussian of the protocol, centers of the coarse pixels, for even and odd ratios."""
    fine = np.random.default_rng(1).random((1, 6 * ratio, 5 * ratio)).astype(np.float32)
    sigma = sigma_from_mtf(0.3, ratio)
    reach = 20
    wide = np.pad(fine[0].astype(float), reach, mode="symmetric")
    expected = np.empty((6, 5))
    for row in range(6):
        for col in range(5):
            y, x = ((n + 0.5) * ratio - 0.5 for n in (row, col))
            dy, dx = np.arange(-reach, 6 * ratio + reach) - y, np.arange(-reach, 5 * ratio + reach) - x
            weight = np.exp(-(dy[:, None] ** 2 + dx[None] ** 2) / (2 * sigma**2))
            expected[row, col] = (weight * wide).sum() / weight.sum()
    np.testing.assert_allclose(blurred(fine, ratio, 0.3)[0], expected, atol=5e-4)


@pytest.mark.parametrize("ratio", [2, 4, 5])
def test_modulation_at_the_coarse_nyquist_frequency(ratio):
    wave = np.cos(np.pi * (np.arange(24 * ratio) + 0.5 - ratio / 2) / ratio)  # its crests lie on the block centers
    fine = np.broadcast_to(wave, (1, 24 * ratio, 24 * ratio)).astype(np.float32)
    seen = blurred(fine, ratio, 0.3)[0, 12, 6:-6]
    np.testing.assert_allclose(np.abs(seen), 0.3, atol=2e-3)


def test_mirrored_cube_gives_the_mirrored_pair():
    """No half pixel is lost anywhere."""
    plain = cube()
    mirrored = replace(plain, values=np.ascontiguousarray(plain.values[:, ::-1, ::-1]))
    protocol = replace(CLEAN, msi="s2-10")
    ours, theirs = simulate(plain, protocol), simulate(mirrored, protocol)
    for image, turned in ((ours.hsi, theirs.hsi), (ours.msi, theirs.msi), (ours.truth, theirs.truth)):
        np.testing.assert_allclose(turned[:, ::-1, ::-1], image, atol=1e-6)


def test_a_flat_cube_stays_flat_and_the_msi_is_its_response():
    flat = replace(cube(), values=np.broadcast_to(cube().values[:, :1, :1], (len(NM), 48, 40)).copy())
    pair = simulate(flat, CLEAN)
    np.testing.assert_allclose(pair.hsi, np.broadcast_to(pair.truth[:, :1, :1], pair.hsi.shape), rtol=1e-5)
    expected = np.array(pair.observed.srf) @ pair.truth[:, 0, 0]
    np.testing.assert_allclose(pair.msi, np.broadcast_to(expected[:, None, None], pair.msi.shape), rtol=1e-5)
    assert pair.unit * pair.truth.max() == pytest.approx(flat.values.max())


def test_noise_has_its_level_and_its_seed():
    clean, noisy = simulate(cube(200, 200), CLEAN), simulate(cube(200, 200), Protocol())
    for sharp, rough, snr_db in ((clean.hsi, noisy.hsi, 35.0), (clean.msi, noisy.msi, 40.0)):
        power = np.mean(sharp**2, axis=(1, 2)) / np.var(rough - sharp, axis=(1, 2))
        assert np.mean(10 * np.log10(power)) == pytest.approx(snr_db, abs=0.1)
    np.testing.assert_array_equal(simulate(cube(200, 200), Protocol()).hsi, noisy.hsi)
    assert not np.array_equal(simulate(cube(200, 200), Protocol(seed=1)).hsi, noisy.hsi)


def test_bands_of_coarser_sampling_come_in_blocks():
    pair = simulate(cube(), replace(CLEAN, msi="s2-10", msi_snr_db=40.0))
    assert pair.observed.msi_steps == (1, 1, 1, 2, 2, 2, 1, 2, 2, 2)  # by wavelength: B2 B3 B4 B5 B6 B7 B8 B8A B11 B12
    assert pair.observed.msi_sigma_px[3] == pytest.approx(sigma_from_mtf(0.3, 2))
    assert pair.observed.msi_sigma_px[0] == 0.0
    for plane, step in zip(pair.msi, pair.observed.steps, strict=True):
        blocks = plane.reshape(24, 2, 20, 2)
        assert (np.ptp(blocks, axis=(1, 3)) == 0).all() == (step == 2)
    quiet = simulate(cube(), replace(CLEAN, msi="s2-10"))
    same_gsd = simulate(cube(), replace(CLEAN, msi="s2-6"))
    np.testing.assert_allclose(quiet.msi[8, ::2, ::2], blurred(same_gsd.msi[4:5], 2, 0.3)[0], atol=1e-5)


def test_the_cube_is_cut_to_whole_pixels_of_both_sensors():
    assert simulate(cube(47, 41), CLEAN).truth.shape[1:] == (44, 40)
    # Odd ratio and blocks of two: the cut must hold whole pixels of both.
    pair = simulate(cube(47, 41), replace(CLEAN, ratio=3, msi="s2-10"))
    assert pair.truth.shape[1:] == (42, 36)
    assert pair.observed.whole_blocks == 2


def test_bands_that_are_not_seen_are_left_out(caplog):
    pair = simulate(cube(nm=np.arange(420.0, 1000.0, 10.0)), replace(CLEAN, msi="s2-6"))
    assert pair.observed.msi_bands == len(pair.observed.srf) == len(pair.msi) == 4
    assert "B11 (0% covered), B12 (0% covered)" in caplog.text
    with pytest.raises(InputRejected, match="cover none of s2-4: B2"):
        simulate(cube(nm=np.arange(1500.0, 2000.0, 10.0)), CLEAN)


def test_bad_bands_take_no_part():
    bad = cube()
    bad.values[7] = 1e6
    pair = simulate(replace(bad, bands=bad.bands.mark_bad(np.arange(len(NM)) == 7)), CLEAN)
    assert len(pair.truth) == pair.observed.hsi_bands == len(NM) - 1
    assert pair.msi.max() < 2


def test_a_hole_reaches_as_far_as_the_psf():
    holed = cube()
    holed.values[:, 20, 20] = np.nan
    pair, whole = simulate(holed, CLEAN), simulate(cube(), CLEAN)
    assert np.isnan(pair.hsi[:, 5, 5]).all()
    assert np.isnan(pair.truth[:, 20:24, 20:24]).all()
    assert np.argwhere(np.isnan(pair.msi).any(axis=0)).tolist() == [[20, 20]]
    far = np.isfinite(pair.hsi).all(axis=0)
    assert 0.8 < far.mean() < 1.0
    np.testing.assert_allclose(pair.hsi[:, far] * pair.unit, whole.hsi[:, far] * whole.unit, rtol=2e-3)


def test_block_psf_and_range():
    protocol = replace(CLEAN, psf="block", psf_sigma_px=1.7, scale="range", msi="landsat-6", rim_px=0)
    spot = cube()
    spot.values[:, 20, 20] += 5.0
    pair, plain = simulate(spot, protocol), simulate(cube(), protocol)
    assert pair.truth.min() == 0.0
    assert pair.truth.max() == 1.0
    # One bright pixel changes its own coarse pixel and, but for the common scale, no other.
    low, _ = cube().values.min(), cube().values.max()
    changed = np.abs((pair.hsi * pair.unit + low) - (plain.hsi * plain.unit + low)).max(axis=0) > 1e-4
    assert np.argwhere(changed).tolist() == [[5, 5]]


def test_sigma_of_the_field():
    assert sigma_from_mtf(0.3, 3) == pytest.approx(1.48, abs=0.005)  # the textbook's example
    assert Protocol(ratio=4).sigma_px == pytest.approx(4 / math.pi * math.sqrt(-2 * math.log(0.3)))


def test_refusals():
    with pytest.raises(InputRejected, match="at least 24 x 24"):
        simulate(cube(20, 40), CLEAN)
    with pytest.raises(UsageError, match="no band set"):
        simulate(cube(), Protocol(msi="s3"))
    with pytest.raises(InputRejected, match="nothing to score"):
        simulate(replace(cube(), values=np.full_like(cube().values, np.nan)), CLEAN)
    with pytest.raises(ValueError, match="ratio >= 2"):
        Protocol(ratio=1)
