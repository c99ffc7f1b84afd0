from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from hyperfuse.pipeline.config import AlignConfig
from hyperfuse.pipeline.geometry.grids import nest
from hyperfuse.pipeline.registration.search import find_peak, masked_correlation, window_moves
from hyperfuse.pipeline.registration.views import Survey, open_view
from tests.simulated import MTF_SIGMA, constant, simulate, synthetic_ground


@pytest.fixture(scope="module")
def ground():
    return synthetic_ground(240)


def view_of(pair, reach: float):
    survey = Survey.of(pair, nest(pair, AlignConfig(), None), MTF_SIGMA * pair.gsd_ratio)
    return open_view(survey, survey.blocks[0], [(x, y) for x in (-reach, reach) for y in (-reach, reach)])


def test_masked_correlation_is_the_plain_one_at_every_lag():
    rng = np.random.default_rng(0)
    target, fine = rng.standard_normal((20, 23)), rng.standard_normal((26, 29))
    target[:5, :9] = np.nan
    fine[rng.random(fine.shape) < 0.2] = np.nan
    correlation, count = masked_correlation(target, fine)
    assert correlation.shape == (7, 7)
    for dy in range(7):
        for dx in range(7):
            part = fine[dy : dy + 20, dx : dx + 23]
            both = np.isfinite(target) & np.isfinite(part)
            assert count[dy, dx] == both.sum()
            assert correlation[dy, dx] == pytest.approx(np.corrcoef(target[both], part[both])[0, 1], abs=1e-9)


def test_flat_images_correlate_nowhere():
    correlation, _ = masked_correlation(np.ones((20, 20)), np.ones((26, 26)))
    assert (correlation == -1).all()


@pytest.mark.parametrize(("east", "north"), [(0, 0), (3, -2), (-6, 7)])
def test_whole_pixels_are_found(ground, east, north):
    view = view_of(simulate(ground, ratio=3, move=constant(east, north)), 9)
    peak = find_peak(view.survey, [view], 8, 4)
    assert peak is not None
    assert peak.move == pytest.approx((east, north), abs=1e-6)
    assert peak.correlation > 0.9
    assert not peak.at_rim


def test_the_rim_of_the_search_is_told(ground):
    view = view_of(simulate(ground, ratio=3, move=constant(5, 0)), 4)
    peak = find_peak(view.survey, [view], 3, 4)
    assert peak is not None
    assert peak.at_rim


def test_every_window_finds_its_own_move(ground):
    """A field that turns from +2 to -2 px across the scene, seen from no move at all."""

    def move(x, y):
        return 2.0 - x / 10.0, 0.0 * y + 1.0

    view = view_of(simulate(ground, ratio=3, move=move), 8)
    found, correlation = window_moves(view, (0.0, 0.0), 5)
    edge = view.survey.edge
    east, north = move(np.arange(found.shape[2]) * edge + edge / 2, np.zeros(found.shape[2]))
    assert np.nanmax(np.abs(found[0] - east)) < 0.6
    assert np.nanmax(np.abs(found[1] - north)) < 0.6
    assert np.median(correlation) > 0.6


def test_windows_correlate_alike_with_and_without_invalid_pixels(ground):
    """One pixel that is missing beyond every window's reach changes the way of computing, and nothing else."""
    pair = simulate(ground, ratio=3, move=constant(2.0, -1.0))
    view = view_of(pair, 8)
    plain, correlation = window_moves(view, (0.0, 0.0), 3)
    spoiled = replace(view, channels=view.channels.copy())
    spoiled.channels[:, 0, 0] = np.nan
    other, masked = window_moves(spoiled, (0.0, 0.0), 3)
    np.testing.assert_allclose(other[:, 2:, 2:], plain[:, 2:, 2:], atol=0.02)
    np.testing.assert_allclose(masked[2:, 2:], correlation[2:, 2:], atol=0.01)
