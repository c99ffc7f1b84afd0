"""A rehearsal: the noise that it takes out and gives back, and what a method's error owes to it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hyperfuse.catalogs.references.cubes import ReferenceCube
from hyperfuse.models import Observed
from hyperfuse.models.operators import degrade, upsample
from hyperfuse.pipeline.observation.protocol import Protocol
from hyperfuse.pipeline.observation.simulate import SimulatedPair, simulate
from hyperfuse.pipeline.quality.reference_regression import SecondOpinion
from hyperfuse.pipeline.quality.rehearsal import kept_by_averaging, msi_noise, rehearse, without_noise
from tests.benchmarks.uncertainty import reduced
from tests.synthetic import scene, whole

SNR_DB = 30.0


def land(size: int = 192, *, snr_db: float | None = SNR_DB) -> SimulatedPair:
    """A pair at ratio 2 with as many decibels in both images."""
    truth = scene("truth", f"size={size}&bands=40&seed=5")
    protocol = Protocol(ratio=2, hsi_snr_db=snr_db, msi_snr_db=snr_db)
    return simulate(ReferenceCube(name="land", values=whole(truth), bands=truth.bands), protocol)


@pytest.fixture(scope="module")
def pair() -> SimulatedPair:
    return land()


def interpolated(pair: SimulatedPair) -> np.ndarray:
    """A method that lets part of the HSI's noise through, and nothing of the MSI's."""
    return upsample(torch.from_numpy(np.nan_to_num(pair.hsi))[None], pair.observed.ratio)[0].numpy()


def made_with(image: np.ndarray) -> np.ndarray:
    """The noise that an image was given, by its decibels."""
    return np.sqrt((image.astype(float) ** 2).mean(axis=(1, 2)) / (10 ** (SNR_DB / 10) + 1))


def test_the_noise_of_both_images_is_found(pair):
    _, of_hsi = without_noise(pair.hsi)
    # A band at an end, that is like few others, may be off by more.
    assert np.mean(np.abs(of_hsi / made_with(pair.hsi) - 1) < 0.1) > 0.9
    np.testing.assert_allclose(msi_noise(pair.msi, pair.observed.steps), made_with(pair.msi), rtol=0.15)
    assert not msi_noise(pair.msi, (2,) * 4).any()


def test_an_image_less_its_noise_is_nearer_to_what_it_shows_and_keeps_its_holes(pair):
    clean = land(snr_db=None).hsi
    holed = pair.hsi.copy()
    holed[3, 10:20, 30:40] = np.nan
    signal, _ = without_noise(holed)
    shown = np.isfinite(signal)
    np.testing.assert_array_equal(shown.all(axis=0), shown.any(axis=0))
    np.testing.assert_array_equal(~shown[0], np.isnan(holed[3]))
    assert np.std((signal - clean)[shown]) < 0.5 * np.std((holed - clean)[shown])


def test_a_band_like_no_other_is_signal_where_its_neighbors_agree(pair):
    """The subspace of few bands holds little; what is smooth in space is kept all the same."""
    rows = np.linspace(0, 40, pair.hsi.shape[1])[:, None]
    image = np.stack([np.sin(rows * (1 + 0.5 * k) + 0.1 * rows.T) for k in range(4)]).astype(np.float32)
    signal, noise = without_noise(image + 1)
    np.testing.assert_allclose(signal, image + 1, atol=0.05)
    assert noise.max() < 0.05


def test_averaging_keeps_as_much_noise_as_the_filter_says():
    noise = torch.from_numpy(np.random.default_rng(0).normal(size=(4, 240, 240)))
    for ratio, sigma in ((2, 1.0), (4, 2.0), (3, 0.9)):
        left = degrade(noise, ratio, sigma).var()
        assert kept_by_averaging(ratio, sigma) == pytest.approx(float(left), rel=0.05)


@pytest.mark.parametrize("ratio", [2, 4])
def test_images_are_as_noisy_as_at_full_resolution_and_the_truth_is_not(pair, ratio):
    rehearsal = rehearse(reduced(pair, ratio), pair.msi, pair.observed, interpolated)
    quiet = reduced(land(snr_db=None), ratio)
    unit = rehearsal.pair.unit
    for image, clean, given in ((rehearsal.pair.hsi, quiet.hsi, pair.hsi), (rehearsal.pair.msi, quiet.msi, pair.msi)):
        noise = (image * unit - clean * quiet.unit).std(axis=(1, 2))
        np.testing.assert_allclose(np.median(noise / made_with(given)), 1, atol=0.15)
    left = (rehearsal.pair.truth * unit - quiet.truth * quiet.unit).std(axis=(1, 2))
    assert np.median(left / made_with(pair.hsi)) < 0.5


def test_the_share_of_noise_is_that_of_its_making(pair):
    """An interpolation is linear, so what its noise makes of its error is known."""
    trial = reduced(pair, 2)
    rehearsal = rehearse(trial, pair.msi, pair.observed, interpolated)
    inside = (..., *rehearsal.inside)
    error = ((rehearsal.fused - rehearsal.pair.truth)[inside] ** 2).mean(axis=(1, 2))
    unit = np.random.default_rng(1).normal(size=(1, *trial.hsi.shape[1:])).astype(np.float32)
    passed = interpolated(SimulatedPair(name="noise", truth=trial.truth[:1], hsi=unit, msi=trial.msi,
                                        observed=trial.observed))[inside].var()  # fmt: skip
    expected = passed * (made_with(pair.hsi) / trial.unit) ** 2 / error
    assert np.median(expected) > 0.03
    np.testing.assert_allclose(np.median(rehearsal.noise_share / expected), 1, atol=0.2)
    again = rehearse(trial, pair.msi, pair.observed, interpolated)
    np.testing.assert_array_equal(again.fused, rehearsal.fused)


def test_a_scene_without_noise_has_none():
    quiet = land(96, snr_db=None)
    rehearsal = rehearse(reduced(quiet, 2), quiet.msi, quiet.observed, interpolated)
    assert rehearsal.noise_share.max() < 0.05


def test_a_second_opinion_that_is_right_is_at_no_distance():
    rng = np.random.default_rng(0)
    msi, mix = rng.normal(size=(3, 48, 48)).astype(np.float32), rng.normal(size=(6, 3)).astype(np.float32)
    fused = np.einsum("bk,kyx->byx", mix, msi) + np.float32(2)
    seen = Observed(hsi_bands=6, msi_bands=3, ratio=4, psf_sigma_px=2.0)
    hsi = degrade(torch.from_numpy(fused)[None], seen.ratio, seen.psf_sigma_px)[0].numpy()
    opinion = SecondOpinion.of(hsi, msi, ratio=seen.ratio, psf_sigma_px=seen.psf_sigma_px)
    np.testing.assert_allclose(opinion.slope, mix.T, atol=1e-3)
    assert opinion.unexplained.max() < 1e-8
    assert opinion.distance([(fused, msi)]).max() < 1e-6
    moved = fused + np.arange(6, dtype=np.float32)[:, None, None]
    moved[:, :9] = np.nan
    np.testing.assert_allclose(opinion.distance([(moved, msi)]), np.arange(6) ** 2, atol=1e-2)
    halves = [(moved[:, :17], msi[:, :17]), (moved[:, 17:], msi[:, 17:])]
    np.testing.assert_allclose(opinion.distance(halves), opinion.distance([(moved, msi)]))
    assert not opinion.distance([(np.full_like(fused, np.nan), msi)]).any()
