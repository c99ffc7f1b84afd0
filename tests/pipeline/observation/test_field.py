"""The field protocol: every disturbance against a plain sum or a loop that shares no code with it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from hyperfuse.catalogs.bands import Bands
from hyperfuse.catalogs.errors import UsageError
from hyperfuse.catalogs.references.cubes import ReferenceCube
from hyperfuse.catalogs.references.responses import SENTINEL_2A
from hyperfuse.catalogs.sensors import sigma_from_mtf
from hyperfuse.pipeline.observation.field import ROWS, SEED, Planting, planting, sampled
from hyperfuse.pipeline.observation.protocol import Protocol
from hyperfuse.pipeline.observation.simulate import simulate

NM = np.arange(420.0, 2400.0, 20.0)
SWIR = NM > 1000
CLEAN = Protocol(hsi_snr_db=None, msi_snr_db=None)
U = np.array([0.6, 0.8])


@pytest.fixture(scope="module")
def cube():
    rng = np.random.default_rng(3)
    spectra = np.abs(np.sin(NM[:, None] / np.array([300.0, 500.0, 900.0]))) + 0.1
    values = np.einsum("ck,yxk->cyx", spectra, rng.dirichlet(np.ones(3), (48, 40))).astype(np.float32)
    return ReferenceCube(name="test", values=values, bands=Bands.sort(NM, unit="nm", of="test", fwhm=[20.0] * len(NM)))


@pytest.fixture(scope="module")
def plain(cube):
    return simulate(cube, CLEAN)


def planted(cube, row, **settings):
    return simulate(cube, replace(CLEAN, planted=planting(row), **settings))


def dense_sample(plane, sigma, y, x):
    """One sample of a plane whose rim is mirrored, as a sum over all pixels within 20."""
    reach = 20
    wide = np.pad(plane.astype(float), reach, mode="symmetric")
    dy, dx = (np.arange(-reach, size + reach) - at for size, at in zip(plane.shape, (y, x), strict=True))
    weight = np.exp(-(dy[:, None] ** 2 + dx**2) / (2 * sigma**2))
    return (weight * wide).sum() / weight.sum()


def dense(truth, band, sigma, shift, at):
    y, x = ((n + 0.5 + s) * 4 - 0.5 for n, s in zip(at, shift, strict=True))
    return dense_sample(truth[band], sigma, y, x)


# --- the HSI -------------------------------------------------------------------------------------------------------

KEYSTONE = (np.arange(len(NM)) / (len(NM) - 1) - 0.5)[:, None] * [0.0, 1.0]
SAMPLED = {  # row: displacement of each band (coarse pixels), factor of the PSF
    "shift-0.1": (0.1 * U, 1.0),
    "shift-0.5": (0.5 * U, 1.0),
    "psf-1.3": (0.0 * U, 1.3),
    "psf-0.77": (0.0 * U, 0.77),
    "vswir-0.3": (0.3 * SWIR[:, None] * U, 1.0),
    "keystone-0.3": (0.3 * KEYSTONE, 1.0),
}


@pytest.mark.parametrize("row", SAMPLED)
def test_samples_against_a_plain_sum(row, cube, plain):
    """In the middle and at every rim, for bands of both detectors; methods are told what they always are."""
    shifts, factor = SAMPLED[row]
    shifts = np.broadcast_to(shifts, (len(NM), 2))
    pair, sigma = planted(cube, row), sigma_from_mtf(0.3, 4) * factor
    for band in (0, 17, 60, len(NM) - 1):
        for at in ((5, 5), (0, 3), (11, 9), (6, 0)):
            assert pair.hsi[band, *at] == pytest.approx(dense(plain.truth, band, sigma, shifts[band], at), abs=5e-4)
    assert pair.observed == plain.observed
    np.testing.assert_array_equal(pair.msi, plain.msi)
    np.testing.assert_array_equal(pair.truth, plain.truth)


def test_the_mix_of_displacements_psf_and_stripes(cube, plain):
    """0.10 u in the VNIR, 0.22 u in the SWIR, keystone 0.1 over all, PSF 1.15 x, and columns of 0.5 %."""
    pair, sigma = planted(cube, "mix"), sigma_from_mtf(0.3, 4) * 1.15
    gains = 1 + 0.005 * np.random.default_rng(SEED).standard_normal((len(NM), 10))
    for band in (0, 29, 30, 98):
        shift = (0.22 if NM[band] > 1000 else 0.10) * U + 0.1 * KEYSTONE[band]
        for at in ((5, 5), (2, 7)):
            expected = dense(plain.truth, band, sigma, shift, at) * gains[band, at[1]]
            assert pair.hsi[band, *at] == pytest.approx(expected, abs=5e-4)


def test_a_displacement_of_whole_fine_pixels_is_that_of_the_cube(cube):
    """A quarter of a coarse pixel along columns is one fine pixel."""
    fine = cube.values[:3]
    moved = sampled(fine, 4, 2.0, np.array([[0.0, 0.25]] * 3))
    whole = sampled(np.roll(fine, -1, axis=2), 4, 2.0, np.zeros((3, 2)))
    np.testing.assert_allclose(moved[:, :, 3:-3], whole[:, :, 3:-3], atol=1e-6)


def test_stripes(cube, plain):
    """Gains are the same down a column; per detector also over its bands, and not over both."""
    for row, size in (("stripe-0.01", len(NM)), ("cstripe-0.01", 2)):
        gains = planted(cube, row).hsi / plain.hsi
        np.testing.assert_allclose(gains, np.broadcast_to(gains[:, :1], gains.shape), atol=1e-5)
        assert len(np.unique(np.round(gains[:, 0], 5), axis=0)) == size
        assert gains[:, 0].std() == pytest.approx(0.01, rel=0.4)
    per_detector = gains[:, 0]
    np.testing.assert_allclose(per_detector[SWIR], per_detector[-1:].repeat(SWIR.sum(), axis=0), atol=1e-5)


def test_smile(cube):
    """Spectra that are straight lines: moved by v t^2 nm they rise by their slope times that, and the middle stays."""
    lines = np.outer(NM, np.ones(48 * 40)).reshape(-1, 48, 40) / NM.max()
    straight = replace(cube, values=lines.astype(np.float32))
    gap = simulate(straight, replace(CLEAN, planted=planting("smile-2"))).hsi - simulate(straight, CLEAN).hsi
    unit = simulate(straight, CLEAN).unit
    t = np.linspace(-1, 1, 10)
    expected = np.broadcast_to(2 * t**2 / NM.max() / unit, gap.shape)
    np.testing.assert_allclose(gap, expected, atol=1e-6)


def test_noise_of_the_swir():
    rng = np.random.default_rng(0)
    values = (rng.random((len(NM), 200, 200)) + 1).astype(np.float32)
    wide = ReferenceCube(name="test", values=values, bands=Bands.sort(NM, unit="nm", of="test"))
    clean = simulate(wide, CLEAN)
    for row, expected in (("nothing", 35.0), ("swirnoise", 25.0)):
        noise = simulate(wide, Protocol(planted=planting(row))).hsi - clean.hsi
        snr_db = 10 * np.log10((clean.hsi**2).mean(axis=(1, 2)) / noise.var(axis=(1, 2)))
        assert snr_db[SWIR].mean() == pytest.approx(expected, abs=0.1)
        assert snr_db[~SWIR].mean() == pytest.approx(35.0, abs=0.1)


def test_the_noise_is_that_of_the_undisturbed_pair(cube):
    """So that rows differ by what is planted alone."""
    noisy = Protocol()
    for row in ("srf-10", "gain-0.05"):
        np.testing.assert_array_equal(
            simulate(cube, replace(noisy, planted=planting(row))).hsi, simulate(cube, noisy).hsi
        )
    for row in ("shift-0.25", "smile-2"):
        np.testing.assert_array_equal(
            simulate(cube, replace(noisy, planted=planting(row))).msi, simulate(cube, noisy).msi
        )


# --- the MSI -------------------------------------------------------------------------------------------------------


def gaussian_responses(truth, shift_nm, factor):
    planes = []
    for name in ("B2", "B3", "B4", "B8"):
        sigma = SENTINEL_2A[name].fwhm_nm * factor / 2.354820045
        weight = np.exp(-0.5 * ((NM - SENTINEL_2A[name].center_nm - shift_nm) / sigma) ** 2)
        planes.append(np.tensordot(weight / weight.sum(), truth, 1))
    return np.stack(planes)


def test_responses(cube, plain):
    """The bands lie elsewhere than told: what is told still makes the undisturbed MSI of the truth."""
    pair = planted(cube, "srf-10")
    np.testing.assert_allclose(pair.msi, gaussian_responses(plain.truth, 10.0, 1.0), atol=1e-5)
    told = np.einsum("kc,cyx->kyx", np.array(pair.observed.srf), pair.truth)
    np.testing.assert_allclose(told, plain.msi, atol=1e-5)
    assert np.abs(told - pair.msi).max() > 0.005


def test_responses_and_ramps_of_the_mix(cube, plain):
    """4 nm longer, 1.1 times as wide, then ramps that are not scaled."""
    pair = planted(cube, "mix")
    gains = pair.msi / gaussian_responses(plain.truth, 4.0, 1.1)
    y, x = np.linspace(-1, 1, 48), np.linspace(-1, 1, 40)
    for gain in gains:
        down, right = (gain[-1, 0] - gain[0, 0]) / 2, (gain[0, -1] - gain[0, 0]) / 2
        np.testing.assert_allclose(gain, 1 + down * y[:, None] + right * x, atol=1e-5)
        assert np.hypot(down, right) == pytest.approx(0.02, rel=1e-3)


def test_ramps(cube, plain):
    """Planes over the image with extremes of 5 %: of each band its own, or for all the one that the protocol names."""
    y, x = np.linspace(-1, 1, 48), np.linspace(-1, 1, 40)
    own = planted(cube, "gain-0.05").msi / plain.msi
    for gain in own:
        down, right = (gain[-1, 0] - gain[0, 0]) / 2, (gain[0, -1] - gain[0, 0]) / 2
        np.testing.assert_allclose(gain, 1 + down * y[:, None] + right * x, atol=1e-5)
        assert np.abs(gain - 1).max() == pytest.approx(0.05, rel=1e-3)
    assert np.abs(own[0] - own[1]).max() > 0.01
    common = 1 + 0.05 * (0.8 * y[:, None] + 0.6 * x) / 1.4
    ours = planted(cube, "cgain-0.05").msi / plain.msi
    np.testing.assert_allclose(ours, np.broadcast_to(common, ours.shape), atol=1e-5)


def test_changed_squares(cube, plain):
    """Outside the squares nothing changed, inside each pixel is one of the undisturbed MSI, and not that of its place."""
    pair = planted(cube, "date-3")
    differs = (pair.msi != plain.msi).any(axis=0)
    assert pair.changed is not None
    assert not (differs & ~pair.changed).any()
    assert differs[pair.changed].mean() > 0.99
    assert 100 <= pair.changed.sum() <= 300
    known = {tuple(spectrum) for spectrum in plain.msi.reshape(4, -1).T}
    assert all(tuple(spectrum) in known for spectrum in pair.msi[:, pair.changed].T)
    np.testing.assert_array_equal(pair.hsi, plain.hsi)
    assert plain.changed is None


def test_bands_of_20_m_change_before_they_are_sampled(cube):
    """Blocks of a coarser MSI band stay blocks of equal pixels, whatever is planted."""
    for row in ("date-3", "mix"):
        pair = planted(cube, row, msi="s2-10")
        assert pair.observed.msi_steps == (1, 1, 1, 2, 2, 2, 1, 2, 2, 2)
        for plane, step in zip(pair.msi, pair.observed.steps, strict=True):
            assert (np.ptp(plane.reshape(24, 2, 20, 2), axis=(1, 3)) == 0).all() == (step == 2)


# --- names ---------------------------------------------------------------------------------------------------------


def test_every_row_plants_something_of_its_own(cube):
    pairs = {row: planted(cube, row, hsi_snr_db=35.0) for row in ROWS}
    seen = {(pair.hsi.tobytes(), pair.msi.tobytes()) for pair in pairs.values()}
    assert len(seen) == len(ROWS)
    assert [planting(row).name for row in ROWS] == list(ROWS)


def test_names():
    assert planting("shift-0.15") == Planting(name="shift-0.15", vnir_px=0.15, swir_px=0.15)
    assert planting("mix").to_json() == {
        "name": "mix", "vnir_px": 0.10, "swir_px": 0.22, "keystone_px": 0.1, "psf_factor": 1.15, "swir_noise_db": 5.0,
        "stripes": 0.005, "srf_nm": 4.0, "srf_factor": 1.1, "gain": 0.02, "ramp": "raw",
    }  # fmt: skip
    for wrong in ("shift", "shift-x", "shift-0", "psf-inf", "fog-1", ""):
        with pytest.raises(UsageError, match="there is no row"):
            planting(wrong)
    assert "planted" not in Protocol().to_json()
    assert Protocol(planted=planting("smile-2")).to_json()["planted"] == {"name": "smile-2", "smile_nm": 2.0}
    with pytest.raises(ValueError, match="block PSF"):
        Protocol(psf="block", planted=planting("psf-1.3"))
