from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from hyperfuse.pipeline.geometry.displacement import NO_DISPLACEMENT, Displacement
from hyperfuse.pipeline.registration.response import learned, moments
from hyperfuse.pipeline.registration.tie_points import TiePoints, measure
from tests.pipeline.registration.test_search import view_of
from tests.simulated import constant, held_scene, simulate, synthetic_ground


@pytest.fixture(scope="module")
def ground():
    return synthetic_ground(240)


def points_along(pair, displacement=NO_DISPLACEMENT) -> TiePoints:
    view = view_of(pair, 3)
    return measure(view, view.survey.mixing, displacement)


@pytest.mark.parametrize("ratio", [2, 3, 5])
def test_the_remainder_is_what_the_model_leaves(ground, ratio):
    """A third of a pixel nearly in one step; along the truth nothing remains."""
    pair = simulate(ground, ratio=ratio, move=constant(0.3, -0.2))
    rough = points_along(pair)
    np.testing.assert_allclose(np.median(rough.remainder, axis=1), (0.3, -0.2), atol=0.08)
    gsd = pair.hsi.gsd_m
    units = pair.hsi.geobox.resolution.x / gsd
    along = Displacement(east=0.3 * gsd * units, north=-0.2 * gsd * units)
    exact = points_along(pair, along)
    np.testing.assert_allclose(np.median(exact.remainder, axis=1), 0.0, atol=0.01)
    np.testing.assert_allclose(np.median(exact.move, axis=1), (0.3, -0.2), atol=0.01)
    assert (exact.correlation > 0.95).all()


def test_gain_and_offset_of_the_hsi_change_nothing(ground):
    """Another calibration, another haze: the regression takes them up."""
    pair = simulate(ground, ratio=3, move=constant(0.3, 0.1))
    hazy = held_scene(
        "hsi", 0.6 * pair.hsi.cube.data + 0.07, gsd=30.0, nm=pair.hsi.bands.center_nm, fwhm=pair.hsi.bands.fwhm_nm
    )
    plain, other = points_along(pair), points_along(replace(pair, hsi=hazy))
    np.testing.assert_allclose(other.move, plain.move, atol=2e-3)
    np.testing.assert_allclose(other.correlation, plain.correlation, atol=1e-3)


def test_standard_errors_are_not_optimistic(ground):
    """With white noise four targets know more than one, so the standard error is up to twice the real one; never less."""
    pair = simulate(ground, ratio=3, move=constant(0.0, 0.0), snr_db=15)
    points = points_along(pair)
    ratio = np.sqrt((points.remainder**2 / points.sigma**2).mean())
    assert 0.2 < ratio < 1.2


def test_windows_without_enough_valid_pixels_are_nan(ground):
    pair = simulate(ground, ratio=3, move=constant(0.0, 0.0))
    data = pair.hsi.cube.data.copy()
    data[:, :15] = np.nan
    holed = held_scene("hsi", data, gsd=30.0, nm=pair.hsi.bands.center_nm, fwhm=pair.hsi.bands.fwhm_nm)
    points = points_along(replace(pair, hsi=holed))
    n_rows = round(len(points) ** 0.5)
    blind = np.isnan(points.correlation).reshape(n_rows, n_rows)
    assert blind[0].all()
    assert not blind[2:].any()
    assert np.isfinite(points.x).all()


def test_the_response_of_a_broad_band_is_learned(ground):
    """A panchromatic image under the name of a red one: its table explains two thirds, what was learned nearly all."""
    pair = simulate(ground, ratio=3, move=constant(0.0, 0.0), snr_db=None)
    pan = held_scene("msi", pair.msi.cube.data.mean(axis=0, keepdims=True), gsd=10.0, nm=[665.0], fwhm=[31.0])
    view = view_of(replace(pair, msi=pan), 3)
    mixing = learned(moments(view, NO_DISPLACEMENT), 1)
    before, after = (measure(view, m, NO_DISPLACEMENT) for m in (view.survey.mixing, mixing))
    assert np.median(after.correlation) > 0.99
    assert np.median(before.correlation) < 0.95
    assert np.sqrt((after.remainder**2).mean()) < 0.3 * np.sqrt((before.remainder**2).mean())
