from __future__ import annotations

import pytest

from catalogs.pairs import ScenePair
from pipeline.config import AlignConfig
from pipeline.coregister import register
from pipeline.grids import nest
from tests.synthetic import scene


def estimate(recipe: str, **align):
    pair = ScenePair(hsi=scene("hsi", recipe), msi=scene("msi", recipe))
    config = AlignConfig(**align)
    grids = nest(pair, config, None)
    return register(pair, grids, config, 0.494 * pair.gsd_ratio)


@pytest.mark.parametrize(
    ("recipe", "ratio", "east", "north"),
    [
        ("size=400&ratio=4&bands=20&seed=1&east_m=17&north_m=-9", 4, 17, -9),
        ("size=400&ratio=3&bands=20&seed=2&east_m=-73&north_m=121", 3, -73, 121),
        ("size=400&ratio=6&bands=20&seed=4&east_m=3&north_m=4&holes_msi=0.05&holes_hsi=0.05", 6, 3, 4),
        ("size=500&ratio=8.33&bands=20&seed=4&east_m=33&north_m=-14", 8.33, 33, -14),
        ("size=500&ratio=4&bands=20&seed=3&hsi_crs=EPSG:32632&east_m=12&north_m=6", 4, 12, 6),
    ],
)
def test_known_displacements_are_found(recipe, ratio, east, north):
    """Within 0.03 coarse pixels, at any ratio, with holes, and between two zones."""
    found = estimate(recipe)
    assert found.decision == "accept"
    assert found.model == "shift"
    tolerance = 0.03 * ratio * 10.0
    assert found.east_m == pytest.approx(east, abs=tolerance)
    assert found.north_m == pytest.approx(north, abs=tolerance)
    assert found.correlation_after > found.correlation_before


def test_registered_scenes_are_left_alone():
    found = estimate("size=400&ratio=4&bands=20&seed=1")
    assert (found.decision, found.model, found.east_m, found.north_m) == ("accept", "none", 0, 0)


def test_featureless_scenes_are_refused_and_stay():
    found = estimate("size=300&ratio=4&bands=12&texture=0&snr_hsi=30&snr_msi=30")
    assert (found.decision, found.model) == ("refuse", "none")
    assert (found.east_m, found.north_m) == (0, 0)


def test_shift_beyond_the_search_is_refused_and_stays():
    found = estimate("size=400&ratio=4&bands=20&seed=1&east_m=400", max_shift_px=3)
    assert (found.decision, found.east_m) == ("refuse", 0)


def test_known_move_is_taken_as_it_is():
    found = estimate("size=200&ratio=4&bands=12", east_m=5.0)
    assert (found.east_m, found.north_m) == (pytest.approx(5.0), 0)
    assert found.east == pytest.approx(5.0, rel=2e-3)  # UTM's scale
    assert estimate("size=200&ratio=4&bands=12&east_m=30", estimate=False).model == "none"
