"""Laws of the synthetic land, and naive oracles for its blur and its mixing."""

from __future__ import annotations

import math
import pickle
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pyproj import Transformer

from hyperfuse.catalogs import sensors
from hyperfuse.catalogs.errors import InputRejected
from hyperfuse.catalogs.scene import Cube, Scene
from hyperfuse.catalogs.sensors import Source, _land, synthetic
from hyperfuse.catalogs.sensors.synthetic import Recipe, Role

CLEAN = Recipe(size=96, bands=24, snr_hsi=0, snr_msi=math.inf)
NOISY = Recipe(size=100, bands=5, ratio=3.7, holes_hsi=0.1, holes_msi=0.1, dot=(50.2, 40.9), seed=3)


def open_role(recipe: Recipe, role: Role) -> Scene:
    return sensors.open_scene(Source(uri=recipe.uri(role)))


def read_all(scene: Scene) -> NDArray[np.float32]:
    _, height, width = scene.cube.shape
    return scene.read((slice(0, height), slice(0, width)))


@pytest.mark.parametrize("hsi_crs", [None, "EPSG:32632"])
@pytest.mark.parametrize("role", ["hsi", "msi", "truth"])
@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_windows_are_cuts_of_the_whole(role, hsi_crs, data):
    scene = open_role(replace(NOISY, hsi_crs=hsi_crs), role)
    n_bands, height, width = scene.cube.shape
    spans = [sorted(data.draw(st.tuples(*[st.integers(0, n)] * 2))) for n in (height, width)]
    window = tuple(slice(*span) for span in spans)
    bands = data.draw(st.lists(st.integers(0, n_bands - 1), max_size=3))
    cut = read_all(scene)[bands][:, *window]
    np.testing.assert_allclose(scene.read(window, bands), cut, rtol=0, atol=1e-6)


@pytest.mark.parametrize("role", ["hsi", "msi", "truth"])
def test_parts_of_a_large_read_do_not_show(role):
    scene = open_role(replace(NOISY, height=30, width=9000, bands=2, ratio=2.5), role)
    whole = read_all(scene)
    for start in (140, 3070) if role == "hsi" else (4090, 8185):
        window = (slice(3, 9), slice(start, start + 20))
        np.testing.assert_allclose(scene.read(window), whole[:, *window], rtol=0, atol=1e-6)


def test_same_bytes_from_threads_and_after_pickling():
    scene = open_role(NOISY, "hsi")
    assert isinstance(scene.cube, Cube)
    again = pickle.loads(pickle.dumps(scene.cube))  # noqa: S301 - our own bytes
    window = (slice(2, 20), slice(1, 9))
    with ThreadPoolExecutor(4) as pool:
        reads = list(pool.map(lambda cube: cube.read([0, 4], window).tobytes(), [scene.cube, again] * 4))
    assert len(set(reads)) == 1


@pytest.mark.parametrize(
    "window", [(slice(0, 101), slice(0, 5)), (slice(-1, 3), slice(0, 5)), (slice(5, 2), slice(0, 5))]
)
def test_windows_outside_are_refused(window):
    with pytest.raises(ValueError, match="not inside"):
        open_role(NOISY, "msi").read(window)


@pytest.mark.parametrize("names", [4, 6])
def test_msi_is_the_truth_through_its_responses(names):
    recipe = replace(CLEAN, msi=names, bands=120)
    truth, msi = open_role(recipe, "truth"), open_role(recipe, "msi")
    weights, coverage = truth.bands.srf(msi.bands)
    assert coverage.min() > 0.95
    seen = np.einsum("cb,byx->cyx", weights, read_all(truth))
    np.testing.assert_allclose(read_all(msi), seen, rtol=0, atol=1e-2)
    assert np.corrcoef(read_all(msi)[3].ravel(), seen[3].ravel())[0, 1] > 0.9999


@pytest.mark.parametrize("ratio", [4.0, 8.33, 1.0])
def test_hsi_is_the_blurred_truth(ratio):
    """Against a loop over the fine pixels around an HSI pixel, far enough from the edge of the truth."""
    recipe = replace(CLEAN, ratio=ratio, east_m=13.0, north_m=-27.0, mtf=0.2)
    hsi, truth = open_role(recipe, "hsi"), read_all(open_role(recipe, "truth"))
    sigma = ratio * math.sqrt(-2 * math.log(0.2)) / math.pi
    middle = int(48 / ratio)
    for row, col in ((middle, middle), (middle - 1, middle + 1)):
        center_y, center_x = (row + 0.5) * ratio - 2.7, (col + 0.5) * ratio - 1.3
        total, weight = np.zeros(24), 0.0
        for y in range(96):
            for x in range(96):
                dy, dx = y + 0.5 - center_y, x + 0.5 - center_x
                if max(abs(dy), abs(dx)) <= 4 * sigma:
                    here = math.exp(-(dy * dy + dx * dx) / (2 * sigma * sigma))
                    total, weight = total + here * truth[:, y, x], weight + here
        seen = hsi.read((slice(row, row + 1), slice(col, col + 1)))[:, 0, 0]
        np.testing.assert_allclose(seen, total / weight, rtol=0, atol=1e-5)


@pytest.mark.parametrize("ratio", [1.0, 2.5, 8.33])
def test_both_ways_of_blurring_agree(ratio):
    recipe = replace(NOISY, ratio=ratio, east_m=4.2, north_m=17.0)
    rows, cols = range(1, 9), range(2, 12)
    parallel = synthetic._seen_parallel(recipe, rows, cols)
    np.testing.assert_allclose(synthetic._seen_anyhow(recipe, rows, cols), parallel, rtol=0, atol=1e-6)


def log_peak(image: NDArray[np.float32]) -> tuple[float, float]:
    """Position (row, column; corner at 0) of a sampled Gaussian: the logarithm is a parabola, so this is exact."""
    row, col = np.unravel_index(np.argmax(image), image.shape)
    at = []
    for line, k in ((image[:, col], int(row)), (image[row], int(col))):
        below, peak, above = np.log(line[k - 1 : k + 2].astype(np.float64))
        at.append(k + 0.5 + (above - below) / (4 * peak - 2 * below - 2 * above))
    return at[0], at[1]


@pytest.mark.parametrize("ratio", [4.0, 8.33])
@pytest.mark.parametrize("hsi_crs", [None, "EPSG:32632"])
def test_dot_lies_where_asked(ratio, hsi_crs):
    dot, east, north = (200.3, 151.8), 31.0, -45.0
    recipe = Recipe(
        size=400, bands=4, ratio=ratio, snr_hsi=0, texture=0, dot=dot, hsi_crs=hsi_crs, east_m=east, north_m=north
    )
    truth, hsi = open_role(recipe, "truth"), open_role(recipe, "hsi")

    def peak(role: Role) -> tuple[float, float]:
        background = read_all(open_role(replace(recipe, dot=None), role))[0]
        return log_peak(np.maximum(read_all(open_role(recipe, role))[0] - background, 1e-9))

    assert peak("truth") == pytest.approx(dot, abs=1e-3)
    y, x = peak("hsi")
    crs_x, crs_y = hsi.geobox.affine @ (x, y)
    to_fine = Transformer.from_crs(str(hsi.geobox.crs), str(truth.geobox.crs), always_xy=True)
    ground_x, ground_y = to_fine.transform(crs_x, crs_y)
    seen_x, seen_y = ~truth.geobox.affine @ (ground_x - east, ground_y - north)
    assert (seen_y, seen_x) == pytest.approx(dot, abs=0.01 * ratio)


def test_displacement_moves_the_hsi():
    plain = read_all(open_role(CLEAN, "hsi"))
    moved = read_all(open_role(replace(CLEAN, east_m=80.0, north_m=120.0), "hsi"))
    # 80 m east is 2 HSI pixels to the right; 120 m north is 3 up.
    np.testing.assert_allclose(moved[:, :-3, 2:], plain[:, 3:, :-2], rtol=0, atol=1e-6)
    msi = read_all(open_role(CLEAN, "msi"))
    np.testing.assert_array_equal(read_all(open_role(replace(CLEAN, east_m=80.0), "msi")), msi)


@pytest.mark.parametrize("share", [0.02, 0.2, 0.45])
@pytest.mark.parametrize("role", ["hsi", "msi"])
def test_holes_cover_the_share(role, share):
    recipe = Recipe(size=1200, ratio=2, bands=2, holes_hsi=share, holes_msi=share)
    cube = read_all(open_role(recipe, role))
    holes = np.isnan(cube)
    np.testing.assert_array_equal(holes.all(axis=0), holes.any(axis=0))
    assert holes[0].mean() == pytest.approx(share, rel=0.1)
    assert np.isfinite(read_all(open_role(replace(recipe, size=200), "truth"))).all()


@pytest.mark.parametrize(("role", "snr"), [("hsi", 30.0), ("msi", 45.0)])
def test_noise_is_white_and_of_the_asked_size(role, snr):
    recipe = Recipe(size=600, ratio=2, bands=3, snr_hsi=snr, snr_msi=snr)
    clean = read_all(open_role(replace(recipe, snr_hsi=0, snr_msi=0), role))
    noise = read_all(open_role(recipe, role)) - clean
    # The cover of one window differs from the typical one, hence 1.5 dB.
    measured = 10 * np.log10((clean**2).mean(axis=(1, 2)) / (noise**2).mean(axis=(1, 2)))
    np.testing.assert_allclose(measured, snr, atol=1.5)
    scaled = noise / noise.std(axis=(1, 2), keepdims=True)
    assert abs(scaled.mean()) < 0.01
    assert (scaled**4).mean() == pytest.approx(3.0, abs=0.1)  # the kurtosis of a normal distribution
    neighbors = [scaled[:, 1:] * scaled[:, :-1], scaled[:, :, 1:] * scaled[:, :, :-1], scaled[0] * scaled[1]]
    assert max(abs(product.mean()) for product in neighbors) < 0.015


def test_land_is_plausible():
    shares = _land.abundance(0, range(-500, 700), range(900))
    assert shares.min() >= 0
    assert shares.sum(axis=0).mean() == pytest.approx(1.0, abs=0.03)
    cover = shares.mean(axis=(1, 2))
    assert _land.TYPICAL_COVER.sum() == pytest.approx(1.0)
    assert (cover[: _land.TARGET] > 0.003).all()
    assert cover.max() < 0.5
    reflectance = _land.spectra(np.arange(350.0, 2600.0, 2.5))
    assert reflectance.min() >= 0
    assert reflectance.max() < 0.7
    truth = read_all(open_role(CLEAN, "truth"))
    assert 0 < truth.min() < truth.max() < 0.8


def test_grids():
    recipe = Recipe(height=512, width=100, ratio=8.33)
    fine, coarse = recipe.geobox("msi"), recipe.geobox("hsi")
    assert fine == recipe.geobox("truth")
    assert coarse.shape == (61, 12)
    assert (coarse.boundingbox.left, coarse.boundingbox.top) == (fine.boundingbox.left, fine.boundingbox.top)
    assert coarse.resolution.x == pytest.approx(83.3)
    assert open_role(recipe, "hsi").gsd_m == pytest.approx(83.3, rel=1e-3)
    other = replace(recipe, hsi_crs="EPSG:32634").geobox("hsi")
    assert other.crs.epsg == 32634
    to_other = Transformer.from_crs("EPSG:32633", "EPSG:32634", always_xy=True)
    left, bottom, right, top = to_other.transform_bounds(*fine.boundingbox.bbox)
    covered = other.boundingbox
    assert covered.left <= left < covered.left + 83.3
    assert covered.right - 83.3 < right <= covered.right
    assert covered.bottom <= bottom < top <= covered.top


@pytest.mark.parametrize("role", ["hsi", "msi", "truth"])
@given(
    recipe=st.builds(
        Recipe,
        size=st.integers(100, 10**5),
        width=st.none() | st.integers(100, 10**5),
        ratio=st.floats(1, 100),
        seed=st.integers(-(2**70), 2**70),
        dot=st.none() | st.tuples(st.floats(-1e3, 1e6), st.floats(-1e3, 1e6)),
        snr_msi=st.just(math.inf) | st.floats(0, 100),
        hsi_crs=st.sampled_from([None, "EPSG:32632", "+proj=utm +zone=32 +datum=WGS84"]),
    )
)
@settings(max_examples=20, deadline=None)
def test_address_gives_the_recipe_back(role, recipe):
    assert Recipe.parse(recipe.uri(role)) == (role, recipe)


def test_address_of_the_defaults():
    assert Recipe().uri("hsi") == "synthetic:hsi"
    assert Recipe(ratio=8.33, dot=(1.0, 2.5)).uri("msi") == "synthetic:msi?ratio=8.33&dot=1,2.5"


def test_digest_names_the_values():
    place = open_role(CLEAN, "hsi")
    assert place.digest == sensors.open_scene(Source(uri="synthetic:hsi?bands=24&snr_hsi=0&snr_msi=inf&size=96")).digest
    others = [open_role(CLEAN, "truth"), open_role(replace(CLEAN, seed=1), "hsi")]
    assert len({place.digest, *(other.digest for other in others)}) == 3
    assert np.abs(read_all(others[1]) - read_all(place)).max() > 0.05


@pytest.mark.parametrize(
    ("uri", "told"),
    [
        ("synthetic:pan?size=9", "synthetic:ROLE"),
        ("synthetic:hsi?sice=9", "keys are size"),
        ("synthetic:hsi?size=64&size=65", "twice"),
        ("synthetic:hsi?size", "key=value"),
        ("synthetic:hsi?size=big", "size=big"),
        ("synthetic:hsi?size=8&ratio=9", "size"),
        ("synthetic:hsi?ratio=0.5", "ratio"),
        ("synthetic:hsi?ratio=nan", "ratio"),
        ("synthetic:hsi?bands=1", "bands"),
        ("synthetic:hsi?bands=5000", "bands"),
        ("synthetic:hsi?msi=5", "msi"),
        ("synthetic:hsi?low_nm=900&high_nm=800", "low_nm"),
        ("synthetic:hsi?holes_hsi=0.9", "holes_hsi"),
        ("synthetic:hsi?dot=5", "dot=5"),
        ("synthetic:hsi?dot=5,inf", "dot"),
        ("synthetic:hsi?crs=EPSG:4326", "projected"),
        ("synthetic:hsi?crs=nowhere", "projected"),
        ("synthetic:hsi?hsi_crs=EPSG:32645", "zone nearby"),
    ],
)
def test_bad_addresses_are_rejected(uri, told):
    with pytest.raises(InputRejected, match=told):
        sensors.open_scene(Source(uri=uri))


def test_what_the_user_says_of_the_file_is_noted():
    scene = sensors.open_scene(Source(uri="synthetic:msi", scale=0.1, crs="EPSG:4326"))
    assert "crs, scale" in scene.notes[0]
    assert scene.sensor == "synthetic"
    assert scene.bands.names == ("B2", "B3", "B4", "B8")


@pytest.mark.parametrize("role", ["hsi", "msi", "truth"])
def test_large_scene_costs_its_window(role):
    recipe = Recipe(size=20_000, ratio=8.33, dot=(1e4, 1e4), holes_hsi=0.1)
    tracemalloc.start()
    try:
        scene = open_role(recipe, role)
        side = 48 if role == "hsi" else 256
        start = 1200 if role == "hsi" else 10_000
        assert scene.read((slice(start, start + side), slice(start, start + side))).shape[1:] == (side, side)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 100e6


def test_a_million_pixels_take_seconds():
    scene = open_role(Recipe(size=1000), "truth")
    start = time.perf_counter()
    read_all(scene)
    assert time.perf_counter() - start < 10  # 0.8 s on one core when written; the margin is for a busy machine
