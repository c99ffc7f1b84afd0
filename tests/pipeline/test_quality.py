from __future__ import annotations

import numpy as np
import pytest

from pipeline.quality import Comparison


def scores(fused, reference, ratio=4):
    comparison = Comparison(fused.shape[0], ratio)
    comparison.add(fused, reference)
    return comparison.scores()


REFERENCE = np.random.default_rng(0).uniform(0.05, 0.5, (5, 20, 20))


def test_by_hand():
    reference = np.array([[[0.2, 0.4]], [[0.1, 0.3]]])
    fused = np.array([[[0.3, 0.4]], [[0.1, 0.1]]])
    got = scores(fused, reference, ratio=2)
    mse = np.array([0.005, 0.02])
    assert got.rmse == pytest.approx(np.sqrt(mse.mean()))
    assert got.psnr_db == pytest.approx(np.mean(-10 * np.log10(mse)))
    assert got.ergas == pytest.approx(50 * np.sqrt(np.mean(mse / np.array([0.3, 0.2]) ** 2)))
    angles = [np.arccos((0.06 + 0.01) / np.sqrt(0.05 * 0.1)), np.arccos((0.16 + 0.03) / np.sqrt(0.25 * 0.17))]
    assert got.sam_deg == pytest.approx(np.degrees(np.mean(angles)))


def test_identity_and_gain():
    same = scores(REFERENCE, REFERENCE)
    assert same.psnr_db == np.inf
    assert same.sam_deg == pytest.approx(0, abs=1e-5)
    assert same.cc == pytest.approx(1)
    doubled = scores(2 * REFERENCE, REFERENCE)
    assert doubled.sam_deg == pytest.approx(0, abs=1e-5)
    assert doubled.ergas > 20
    assert doubled.cc == pytest.approx(1)


def test_blocks_add_up_and_bands_may_be_permuted():
    noisy = REFERENCE + np.random.default_rng(1).normal(0, 0.01, REFERENCE.shape)
    whole = scores(noisy, REFERENCE)
    parts = Comparison(5, 4)
    for rows in (slice(0, 7), slice(7, 20)):
        parts.add(noisy[:, rows], REFERENCE[:, rows])
    assert parts.scores().to_json() == pytest.approx(whole.to_json())
    order = [3, 1, 4, 0, 2]
    assert scores(noisy[order], REFERENCE[order]).to_json() == pytest.approx(whole.to_json())


def test_invalid_pixels_do_not_count():
    holed = REFERENCE.copy()
    holed[2, :5] = np.nan
    got = scores(holed, REFERENCE)
    assert got.pixels == 300
    assert got.psnr_db == np.inf
    with pytest.raises(ValueError, match="no pixel"):
        scores(np.full_like(REFERENCE, np.nan), REFERENCE)


def test_noise_is_monotone():
    rng = np.random.default_rng(2)
    noise = rng.normal(0, 1, REFERENCE.shape)
    found = [scores(REFERENCE + sigma * noise, REFERENCE) for sigma in (0.001, 0.01, 0.1)]
    assert [s.psnr_db for s in found] == sorted((s.psnr_db for s in found), reverse=True)
    assert [s.sam_deg for s in found] == sorted(s.sam_deg for s in found)
