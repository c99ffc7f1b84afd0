from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.metrics import structural_similarity
from torchmetrics.functional.image import (
    error_relative_global_dimensionless_synthesis,
    peak_signal_noise_ratio,
    spectral_angle_mapper,
    structural_similarity_index_measure,
)

from hyperfuse.pipeline.quality.metrics import SSIM_REACH, Comparison


def scores(fused, reference, ratio=4):
    comparison = Comparison(fused.shape[0], ratio)
    comparison.add(fused, reference)
    return comparison.scores()


REFERENCE = np.random.default_rng(0).uniform(0.05, 0.5, (5, 20, 20))
NOISE = np.random.default_rng(1).normal(0, 1, REFERENCE.shape)


def test_by_hand():
    """Two bands of one row of two pixels."""
    reference = np.array([[[0.2, 0.4]], [[0.1, 0.3]]])
    fused = np.array([[[0.3, 0.4]], [[0.1, 0.1]]])
    got = scores(fused, reference, ratio=2)
    mse = np.array([0.005, 0.02])
    assert got.rmse == pytest.approx(np.sqrt(mse.mean()))
    assert got.psnr_db == pytest.approx(np.mean(-10 * np.log10(mse)))
    assert got.psnr_max_db == pytest.approx(np.mean(10 * np.log10(np.array([0.16, 0.09]) / mse)))
    assert got.ergas == pytest.approx(50 * np.sqrt(np.mean(mse / np.array([0.3, 0.2]) ** 2)))
    angles = [np.arccos((0.06 + 0.01) / np.sqrt(0.05 * 0.1)), np.arccos((0.16 + 0.03) / np.sqrt(0.25 * 0.17))]
    assert got.sam_deg == pytest.approx(np.degrees(np.mean(angles)))
    assert np.isnan(got.ssim)  # no window fits


def test_two_by_two_by_two_by_hand():
    """Band 1 misses one pixel by 0.2; band 2 is half of the truth, with its full correlation."""
    reference = np.array([[[0.2, 0.4], [0.6, 0.8]], [[0.4, 0.4], [0.8, 0.8]]])
    fused = np.array([[[0.4, 0.4], [0.6, 0.8]], [[0.2, 0.2], [0.4, 0.4]]])
    got = scores(fused, reference, ratio=4)
    mse = np.array([0.01, 0.1])  # 0.04 / 4; (2 * 0.04 + 2 * 0.16) / 4
    assert got.rmse == pytest.approx(np.sqrt(0.055))
    assert got.psnr_db == pytest.approx(15.0)  # mean of 20 and 10
    assert got.psnr_max_db == pytest.approx(15.0 + 20 * np.log10(0.8))
    assert got.ergas == pytest.approx(25 * np.sqrt((mse[0] / 0.25 + mse[1] / 0.36) / 2))
    assert got.cc == pytest.approx((0.035 / np.sqrt(0.0275 * 0.05) + 1.0) / 2)


def test_identity_and_gain():
    same = scores(REFERENCE, REFERENCE)
    assert same.psnr_db == same.psnr_max_db == np.inf
    assert same.sam_deg == pytest.approx(0, abs=1e-5)
    assert same.cc == same.ssim == pytest.approx(1)
    doubled = scores(2 * REFERENCE, REFERENCE)
    assert doubled.sam_deg == pytest.approx(0, abs=1e-5)
    assert doubled.ergas > 20
    assert doubled.cc == pytest.approx(1)
    assert doubled.ssim < 0.9


def test_blocks_add_up_and_bands_may_be_permuted():
    noisy = REFERENCE + 0.01 * NOISE
    whole = scores(noisy, REFERENCE)
    parts = Comparison(5, 4)
    for start, stop in ((0, 7), (7, 20)):
        first = max(start - SSIM_REACH, 0)
        rows = slice(first, stop + SSIM_REACH)
        parts.add(noisy[:, rows], REFERENCE[:, rows], core=(slice(start - first, stop - first), slice(None)))
    assert parts.scores().to_json() == pytest.approx(whole.to_json())
    order = [3, 1, 4, 0, 2]
    assert scores(noisy[order], REFERENCE[order]).to_json() == pytest.approx(whole.to_json())


def test_invalid_pixels_do_not_count():
    holed = REFERENCE.copy()
    holed[2, :5] = np.nan
    got = scores(holed, REFERENCE)
    assert got.pixels == 300
    assert got.psnr_db == np.inf
    assert got.ssim == pytest.approx(1)
    with pytest.raises(ValueError, match="no pixel"):
        scores(np.full_like(REFERENCE, np.nan), REFERENCE)


def test_what_lies_in_a_hole_changes_no_score():
    """The hole of one image may hold anything in the other."""
    holed, wild = REFERENCE.copy(), REFERENCE + 0.02 * NOISE
    holed[:, 4:6, 3] = np.nan
    expected = scores(wild, holed)
    wild[:, 4:6, 3] = 1e6
    assert scores(wild, holed).to_json() == pytest.approx(expected.to_json())


def test_noise_is_monotone():
    found = [scores(REFERENCE + sigma * NOISE, REFERENCE) for sigma in (0.001, 0.01, 0.1)]
    for key in ("psnr_db", "psnr_max_db", "ssim", "cc"):
        assert [getattr(s, key) for s in found] == sorted((getattr(s, key) for s in found), reverse=True)
    for key in ("sam_deg", "ergas", "rmse"):
        assert [getattr(s, key) for s in found] == sorted(getattr(s, key) for s in found)


@settings(max_examples=25, deadline=None)
@given(
    gain=st.floats(0.1, 10.0), sigma=st.floats(1e-4, 0.3), holes=st.floats(0.0, 0.9), turns=st.integers(0, 3),
    seed=st.integers(0, 99),
)  # fmt: skip
def test_invariances(gain, sigma, holes, turns, seed):
    rng = np.random.default_rng(seed)
    reference = rng.uniform(0.05, 0.5, (3, 16, 16))
    fused = reference + sigma * rng.standard_normal(reference.shape)
    fused[:, rng.random((16, 16)) < holes] = np.nan
    fused[:, 0, 0] = 0.3  # at least one pixel is left
    got = scores(fused, reference)
    for key, value in got.to_json().items():
        assert np.isfinite(value) or key == "ssim"
    turned = scores(np.rot90(fused, turns, (1, 2)), np.rot90(reference, turns, (1, 2)))
    assert turned.to_json() == pytest.approx(got.to_json(), nan_ok=True)
    brighter = scores(gain * fused, gain * reference)
    for key in ("sam_deg", "ergas", "cc", "psnr_max_db"):  # these know no unit
        assert getattr(brighter, key) == pytest.approx(getattr(got, key), rel=1e-6, abs=1e-6)
    assert brighter.rmse == pytest.approx(gain * got.rmse)
    assert brighter.psnr_db == pytest.approx(got.psnr_db - 20 * np.log10(gain))


@pytest.fixture(scope="module")
def natural():
    """A smooth image and a noisy, blurred one: local means, variances and covariances all differ."""
    rng = np.random.default_rng(3)
    rows, cols = np.mgrid[0:48, 0:40]
    reference = np.stack([0.3 + 0.2 * np.sin(rows / a) * np.cos(cols / (a + 1)) for a in (3.0, 5.0, 9.0)])
    return reference + 0.01 * rng.standard_normal(reference.shape) + 0.02, reference


def test_agrees_with_torchmetrics(natural):
    fused, reference = (torch.from_numpy(image)[None] for image in natural)
    got = scores(*natural, ratio=4)
    assert got.sam_deg == pytest.approx(float(torch.rad2deg(spectral_angle_mapper(fused, reference))), rel=1e-6)
    ergas = float(error_relative_global_dimensionless_synthesis(fused, reference, ratio=4))
    assert got.ergas == pytest.approx(ergas, rel=1e-6)
    per_band = [
        float(peak_signal_noise_ratio(f, x, data_range=1.0)) for f, x in zip(fused[0], reference[0], strict=True)
    ]
    assert got.psnr_db == pytest.approx(np.mean(per_band), abs=1e-5)
    ssim = float(structural_similarity_index_measure(fused, reference, data_range=1.0, sigma=1.5))
    assert got.ssim == pytest.approx(ssim, abs=2e-3)  # it treats the border in another way


def test_agrees_with_scikit_image(natural):
    fused, reference = natural
    expected = np.mean([
        structural_similarity(
            f, x, data_range=1.0, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
        )
        for f, x in zip(fused, reference, strict=True)
    ])  # fmt: skip
    assert scores(fused, reference).ssim == pytest.approx(expected, abs=1e-9)
