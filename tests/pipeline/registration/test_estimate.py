from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
from distributed.protocol.pickle import dumps, loads
from scipy.ndimage import gaussian_filter

from hyperfuse.catalogs.pairs import ScenePair
from hyperfuse.pipeline.config import AlignConfig
from hyperfuse.pipeline.geometry.grids import nest
from hyperfuse.pipeline.geometry.resample import warp
from hyperfuse.pipeline.registration import blocks, views
from hyperfuse.pipeline.registration import estimate as registration
from hyperfuse.pipeline.registration.estimate import estimate as estimate_pair
from tests.simulated import MTF_SIGMA, HeldCube, constant, held_scene, simulate, synthetic_ground
from tests.synthetic import scene


def estimate(recipe: str, **align):
    pair = ScenePair(hsi=scene("hsi", recipe), msi=scene("msi", recipe))
    config = AlignConfig(**align)
    grids = nest(pair, config, None)
    return estimate_pair(pair, grids, config, 0.494 * pair.gsd_ratio).registration


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


def test_an_overlap_too_small_to_judge_is_taken_as_it_is_only_if_nothing_moved():
    registered = estimate("size=40&ratio=4&bands=20")
    assert (registered.decision, registered.model) == ("warn", "none")
    assert "too small" in registered.reason
    assert "shows none" in registered.reason
    assert estimate("size=40&ratio=4&bands=20&east_m=120").decision == "refuse"


def test_what_a_small_overlap_shows_is_told():
    """0.3 px that were measured are not none, even where they are too few to be acted on."""
    found = estimate("size=40&ratio=4&bands=20&east_m=12")
    assert (found.decision, found.model) == ("warn", "none")
    assert "shows none" not in found.reason
    assert "about 0.3" in found.reason


def test_featureless_scenes_are_refused_and_stay():
    found = estimate("size=300&ratio=4&bands=12&texture=0&snr_hsi=30&snr_msi=30")
    assert (found.decision, found.model) == ("refuse", "none")
    assert (found.east_m, found.north_m) == (0, 0)


def test_shift_beyond_the_search_is_refused_and_stays():
    found = estimate("size=400&ratio=4&bands=20&seed=1&east_m=400", max_shift_px=3)
    assert (found.decision, found.east_m) == ("refuse", 0)


def test_a_match_just_beyond_the_search_is_refused_for_that_reason():
    """Four coarse pixels: the images agree there, so that nothing else speaks against it."""
    recipe = "size=200&ratio=4&bands=12&seed=1&east_m=160"
    beyond = estimate(recipe, max_shift_px=3)
    assert (beyond.decision, beyond.model, beyond.east_m) == ("refuse", "none", 0)
    assert "match +4.0 east, +0.0 north coarse px away" in beyond.reason
    assert "searched up to 3 coarse px (align.max_shift_px)" in beyond.reason
    within = estimate(recipe, max_shift_px=4)
    assert (within.decision, within.east_m) == ("accept", pytest.approx(160, abs=2))


def simulated(ground, move, **options):
    pair = simulate(ground, ratio=3, move=move, **options)
    config = AlignConfig()
    grids = nest(pair, config, None)
    return pair, estimate_pair(pair, grids, config, MTF_SIGMA * 3).registration


def error_px(pair, found, move) -> float:
    """Root mean square error (coarse px) over the HSI's pixels."""
    height, width = pair.hsi.geobox.shape
    x, y = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    got = found.displacement.at(*(pair.hsi.geobox.affine @ (x, y)))
    return float(np.sqrt(np.square(np.array(got) / 30.0 - move(x, y)).sum(axis=0).mean()))


@pytest.fixture(scope="module")
def ground():
    return synthetic_ground(480)


MOVES = {
    "shift": constant(-3.35, 6.2),
    "affine": lambda x, y: (1.0 + 0.02 * x - 0.015 * y, 0.01 * x + 0.02 * y - 2.0),
    "field": lambda x, y: (3.0 * np.sin(x / 13.0) + 1.0, 2.0 * np.cos(y / 15.0 + x / 40.0)),
}


@pytest.mark.parametrize("name", MOVES)
def test_the_model_is_found_with_the_move(ground, name):
    """Shift and affine within 0.02, a field of 3 px within 0.05 coarse px."""
    pair, found = simulated(ground, MOVES[name])
    assert (found.decision, found.model) == ("accept", name)
    assert error_px(pair, found, MOVES[name]) < (0.05 if name == "field" else 0.02)
    assert found.residual_after_px < 0.1 < found.residual_before_px
    assert found.tie_points <= found.tie_points_tried


@pytest.mark.parametrize("share", [0.3, 0.6])
def test_clouds_in_a_mask_cost_nothing(ground, share):
    pair = simulate(ground, ratio=3, move=MOVES["shift"])
    hole = gaussian_filter(np.random.default_rng(0).standard_normal(pair.hsi.geobox.shape), 6)
    data = np.where(hole > np.quantile(hole, 1 - share), np.nan, pair.hsi.cube.data)
    cloudy = replace(
        pair,
        hsi=held_scene("hsi", data, gsd=30.0, nm=pair.hsi.bands.center_nm, fwhm=pair.hsi.bands.fwhm_nm),
    )
    grids = nest(cloudy, AlignConfig(), None)
    found = estimate_pair(cloudy, grids, AlignConfig(), MTF_SIGMA * 3).registration
    assert found.decision == "accept"
    assert error_px(cloudy, found, MOVES["shift"]) < 0.03


def test_unrelated_images_are_refused(ground):
    _, found = simulated(ground, MOVES["shift"], later=ground[:, ::-1, ::-1].copy())
    assert (found.decision, found.model) == ("refuse", "none")
    assert "do not show the same" in found.reason
    assert not found.displacement


Y, X = np.mgrid[:480, :480] / 6.0  # coarse pixels
PATTERNS = {
    "straight lines": np.sin(2 * np.pi * (X + 0.4 * Y) / 8.3),
    "rows and columns that repeat": np.sign(np.sin(np.pi * X / 2)) * np.sign(np.sin(np.pi * Y / 2)),
}


@pytest.mark.parametrize("name", PATTERNS)
def test_land_that_fits_in_many_places_is_refused(name):
    """Along lines only noise tells the move; a pattern fits as well a period on. Both match almost perfectly."""
    pattern = (0.2 + 0.1 * PATTERNS[name])[None] * np.array([1.0, 0.9, 0.8, 1.2])[:, None, None]
    _, found = simulated(pattern, constant(2.3, 1.2))
    assert (found.decision, found.model) == ("refuse", "none")


def test_two_halves_that_move_apart_are_not_accepted_as_one_shift(ground):
    """No smooth model is right; taking the larger half for all would be wrong by 2 px in the other."""
    _, found = simulated(ground, lambda x, y: (np.where(y > 40, 2.0, 0.0) + 0.0 * x, 1.0 + 0.0 * y))
    assert found.decision != "accept" or found.model == "field"


@pytest.mark.parametrize("step", [1.0, 2.0, 3.0])
@pytest.mark.parametrize("share", [0.25, 0.35])
def test_a_part_with_a_move_of_its_own_is_named(ground, share, step):
    """An oblique step: never accepted as one shift; named with its size, its move and where it lies, and followed."""

    def inside(x, y):
        return x + 0.25 * (y - 40.0) < 80.0 * share

    def move(x, y):
        return np.where(inside(x, y), 1.0 + step, 1.0), np.full_like(x, -0.5)

    pair, found = simulated(ground, move)
    assert found.decision == "warn"
    part = found.parts[0]
    assert part.share == pytest.approx(share, abs=0.1)
    assert (part.east_px, part.north_px) == (pytest.approx(step, abs=0.3), pytest.approx(0.0, abs=0.3))
    left, bottom, right, top = part.bounds
    assert left < 400_000 + 6 * 30
    assert right < 400_000 + 30 * (80 * share + 20)
    assert top - bottom > 0.6 * 80 * 30
    assert "of the scene (x " in found.reason
    # One shift for all is wrong by this in the root mean square.
    assert error_px(pair, found, move) < 0.6 * step * np.sqrt(share)


def test_parts_are_not_seen_where_there_are_none(ground):
    for move in MOVES.values():
        assert not simulated(ground, move)[1].parts


@pytest.mark.parametrize("away", [12.0, 20.0])
def test_a_match_beyond_the_search_is_told_with_the_setting_that_reaches_it(ground, away):
    pair, found = simulated(ground, constant(away, -2.0))
    assert (found.decision, found.model) == ("refuse", "none")
    assert "do not show the same" not in found.reason
    assert f"{away:+.1f} east" in found.reason
    assert "align.max_shift_px" in found.reason
    wider = AlignConfig(max_shift_px=away + 1)
    again = estimate_pair(pair, nest(pair, wider, None), wider, MTF_SIGMA * 3).registration
    assert again.decision == "accept"
    assert error_px(pair, again, constant(away, -2.0)) < 0.03


def test_a_large_scene_is_judged_by_a_sample(ground, monkeypatch):
    """Fewer windows than the scene has, spread over it; the shift and an affine move are as right as from all."""
    monkeypatch.setattr(views, "_WINDOW_PX", (8, 8))
    monkeypatch.setattr(registration, "_ENOUGH_WINDOWS", 60)
    monkeypatch.setattr(registration, "_SAMPLED_WINDOWS", 36)
    for name in ("shift", "affine"):
        pair, found = simulated(ground, MOVES[name])
        assert (found.decision, found.model) == ("accept", name)
        assert found.tie_points_tried <= 40
        assert error_px(pair, found, MOVES[name]) < 0.02
    pair, found = simulated(ground, MOVES["field"])
    assert found.tie_points_tried == 100
    assert error_px(pair, found, MOVES["field"]) < 0.06


def test_images_without_a_common_pixel_are_refused(ground):
    pair = simulate(ground, ratio=3, move=MOVES["shift"])
    data = np.full_like(pair.hsi.cube.data, np.nan)
    data[:, :3, :3] = 0.1
    empty = held_scene("hsi", data, gsd=30.0, nm=pair.hsi.bands.center_nm, fwhm=pair.hsi.bands.fwhm_nm)
    found = estimate_pair(
        replace(pair, hsi=empty), nest(pair, AlignConfig(), None), AlignConfig(), MTF_SIGMA * 3
    ).registration
    assert found.decision == "refuse"
    assert "valid pixels in common" in found.reason


@pytest.mark.parametrize("reference", ["msi", "hsi"])
def test_the_displacement_brings_the_images_together(ground, reference):
    """Staged along it, either image lies on the other: no move is left, whichever is the reference."""
    pair = simulate(ground, ratio=3, move=MOVES["affine"])
    config = AlignConfig(reference=reference)
    grids = nest(pair, config, None)
    move = estimate_pair(pair, grids, config, MTF_SIGMA * 3).registration.displacement
    window = (slice(0, grids.fine.shape[0]), slice(0, grids.fine.shape[1]))
    if reference == "msi":
        coarse = slice(0, grids.coarse.shape[0]), slice(0, grids.coarse.shape[1])
        data = warp(pair.hsi, grids.coarse, coarse, bands=range(len(pair.hsi.bands)), displacement=move)
        together = replace(
            pair, hsi=held_scene("hsi", data, gsd=30.0, nm=pair.hsi.bands.center_nm, fwhm=pair.hsi.bands.fwhm_nm)
        )
    else:
        data = warp(pair.msi, grids.fine, window, bands=range(4), displacement=-move)
        together = replace(
            pair, msi=held_scene("msi", data, gsd=10.0, nm=pair.msi.bands.center_nm, fwhm=pair.msi.bands.fwhm_nm)
        )
    again = estimate_pair(together, nest(together, AlignConfig(), None), AlignConfig(), MTF_SIGMA * 3).registration
    assert again.decision == "accept"
    assert np.hypot(again.east_m, again.north_m) < 0.6  # 0.02 coarse px
    assert again.residual_before_px < 0.1


def test_blocks_and_workers_are_invisible(ground, monkeypatch):
    """Cut into nine blocks, none of them kept and each sent through a serializer, the result is that of one block."""
    pair, whole = simulated(ground, MOVES["field"])
    monkeypatch.setattr(views, "_BLOCK_PX", 40)
    monkeypatch.setattr(blocks, "_CACHE_BYTES", 0)
    monkeypatch.setattr(registration, "_WORTH_A_CLUSTER", 2)

    @contextmanager
    def through_a_serializer():
        yield lambda function, items: [loads(dumps(loads(dumps(function))(loads(dumps(item))))) for item in items]

    grids = nest(pair, AlignConfig(), None)
    cut = estimate_pair(pair, grids, AlignConfig(), MTF_SIGMA * 3, workers=through_a_serializer).registration
    assert cut.model == whole.model
    assert error_px(pair, cut, MOVES["field"]) < 0.05
    assert cut.east_m == pytest.approx(whole.east_m, abs=0.3)


def test_dead_bands_that_no_header_tells_of_cost_nothing(ground):
    pair = simulate(ground, ratio=3, move=MOVES["shift"])
    hsi, msi = pair.hsi.cube.data.copy(), pair.msi.cube.data.copy()
    hsi[[0, 5]], msi[1] = np.nan, np.nan
    dead = replace(
        pair,
        hsi=held_scene("hsi", hsi, gsd=30.0, nm=pair.hsi.bands.center_nm, fwhm=pair.hsi.bands.fwhm_nm),
        msi=held_scene("msi", msi, gsd=10.0, nm=pair.msi.bands.center_nm, fwhm=pair.msi.bands.fwhm_nm),
    )
    found = estimate_pair(dead, nest(dead, AlignConfig(), None), AlignConfig(), MTF_SIGMA * 3).registration
    assert found.decision == "accept"
    assert error_px(dead, found, MOVES["shift"]) < 0.02


@pytest.mark.parametrize("reference", ["msi", "hsi"])
def test_degrees_beside_meters(ground, reference):
    """The MSI in longitude and latitude: moves are still in meters on the ground, whoever gives the grid."""
    pair = simulate(ground, ratio=3, move=constant(2.4, -1.7))
    box = pair.msi.geobox.to_crs("EPSG:4326")
    window = slice(0, box.shape[0]), slice(0, box.shape[1])
    data = warp(pair.msi, box, window, bands=range(4))
    degrees = replace(pair.msi, geobox=box, cube=HeldCube(data))
    pair = replace(pair, msi=degrees)
    config = AlignConfig(reference=reference)
    found = estimate_pair(pair, nest(pair, config, None), config, MTF_SIGMA * 3).registration
    assert found.decision == "accept"
    # UTM's grid north is 1.2 degrees off at this place: 2.4 px east of it are 0.05 px north of true east.
    tolerance = 3.0 if reference == "msi" else 0.9
    assert (found.east_m, found.north_m) == pytest.approx((72.0, -51.0), abs=tolerance)


def test_less_freedom_on_demand(ground):
    pair = simulate(ground, ratio=3, move=MOVES["affine"])
    config = AlignConfig(most="shift")
    found = estimate_pair(pair, nest(pair, config, None), config, MTF_SIGMA * 3).registration
    assert found.model in {"none", "shift"}
    assert found.decision != "accept"


def test_known_move_is_taken_as_it_is():
    found = estimate("size=200&ratio=4&bands=12", east_m=5.0)
    assert (found.east_m, found.north_m) == (pytest.approx(5.0), 0)
    assert found.east == pytest.approx(5.0, rel=2e-3)  # UTM's scale
    assert estimate("size=200&ratio=4&bands=12&east_m=30", estimate=False).model == "none"


def test_opposite_contrast_from_field_to_field(ground):
    """One band each, bright where the other is dark in half of the fields: correlation cancels, edges do not."""
    fields = gaussian_filter(np.random.default_rng(3).standard_normal(ground.shape[1:]), 18) > 0
    sign = np.where(fields, 1.0, -1.0)
    middle = gaussian_filter(ground[2], 30)
    later = ground.copy()
    later[:] = middle + sign * (ground[2] - middle)
    pair = simulate(ground, ratio=3, move=MOVES["shift"], later=later, msi_bands=(2,))
    one = held_scene("hsi", pair.hsi.cube.data[6:7], gsd=30.0, nm=[pair.hsi.bands.center_nm[6]], fwhm=[40.0])
    pair = replace(pair, hsi=one)
    found = estimate_pair(pair, nest(pair, AlignConfig(), None), AlignConfig(), MTF_SIGMA * 3).registration
    assert found.decision != "refuse"
    assert error_px(pair, found, MOVES["shift"]) < 0.15
