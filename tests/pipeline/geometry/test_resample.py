"""The one resampling against GDAL, against closed forms, and against itself cut into windows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import rasterio.warp
from affine import Affine
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox
from rasterio.enums import Resampling

from hyperfuse.catalogs.bands import Bands
from hyperfuse.catalogs.scene import Scene
from hyperfuse.pipeline.geometry.displacement import Displacement
from hyperfuse.pipeline.geometry.resample import warp

SOURCE = GeoBox((90, 110), Affine(30, 0, 400_000, 0, -30, 5_800_000), "EPSG:32633")


@dataclass
class Held:
    """A cube in memory."""

    data: NDArray[np.float32]
    block: tuple[int, int] = (32, 32)

    @property
    def shape(self):
        return self.data.shape

    def read(self, bands, window):
        rows, cols = window
        assert 0 <= rows.start < rows.stop <= self.data.shape[1]
        assert 0 <= cols.start < cols.stop <= self.data.shape[2]
        return self.data[list(bands)][:, rows, cols].copy()


def held(data: NDArray[np.float32], geobox: GeoBox = SOURCE) -> Scene:
    bands = Bands.sort(np.linspace(500, 900, data.shape[0]), unit="nm", of="test")
    return Scene(
        name="held", uri="memory", sensor="generic", cube=Held(data.astype(np.float32)), bands=bands, geobox=geobox,
        quantity="reflectance", unit="1", time=None, digest="0",
    )  # fmt: skip


def smooth(geobox: GeoBox, crs: str = "EPSG:32633") -> NDArray[np.float64]:
    """A function of the ground, whatever the grid: its value at a pixel tells where the pixel lies."""
    from pyproj import Transformer

    height, width = geobox.shape
    col, row = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    x, y = geobox.affine @ (col, row)
    x, y = Transformer.from_crs(str(geobox.crs), crs, always_xy=True).transform(x, y)
    return np.stack([np.sin(x / 300) + np.cos(y / 240), x / 1e3 - 400, y / 1e3 - 5800])


def full(geobox: GeoBox):
    return slice(0, geobox.shape[0]), slice(0, geobox.shape[1])


def test_same_lattice_is_copied_bit_by_bit():
    data = np.random.default_rng(0).random((2, 90, 110)).astype(np.float32)
    target = SOURCE[10:50, 20:70]
    assert np.array_equal(warp(held(data), target, full(target), bands=[1]), data[1:, 10:50, 20:70])


def test_same_lattice_beyond_the_rim_is_nan():
    data = np.ones((1, 90, 110), np.float32)
    out = warp(held(data), SOURCE, (slice(-2, 3), slice(108, 113)), bands=[0])
    assert np.isnan(out[0, :2]).all()
    assert np.isnan(out[0, :, 2:]).all()
    assert (out[0, 2:, :2] == 1).all()


@pytest.mark.parametrize("crs", ["EPSG:32633", "EPSG:32632", "EPSG:4326"])
def test_another_grid_shows_the_same_ground(crs):
    """The warped function is the function on the target grid: the shift that would explain the difference is < 0.01 px."""
    if crs == "EPSG:32633":
        target = GeoBox((150, 160), Affine(10, 0, 400_500, 0, -10, 5_799_400), crs)
    else:
        left, bottom, right, top = SOURCE.extent.to_crs(crs).boundingbox
        width, height = right - left, top - bottom
        target = GeoBox((100, 110), Affine(width / 220, 0, left + width / 4, 0, -height / 200, top - height / 4), crs)
    got = warp(held(smooth(SOURCE)), target, full(target), bands=[0, 1, 2])
    want = smooth(target)
    assert np.abs(got[0] - want[0]).max() < 2e-3
    assert np.abs(got[1:] - want[1:]).max() < 3e-4  # kilometers: 0.3 m of 30 m pixels


def test_gdal_agrees():
    data = np.random.default_rng(1).random((2, 90, 110)).astype(np.float32)
    target = GeoBox((200, 210), Affine(12, 0, 400_200, 0, -12, 5_799_700), "EPSG:32633")
    oracle = np.zeros((2, 200, 210), np.float32)
    rasterio.warp.reproject(
        data, oracle, src_transform=SOURCE.affine, src_crs=str(SOURCE.crs), dst_transform=target.affine,
        dst_crs=str(target.crs), resampling=Resampling.cubic, tolerance=0,
    )  # fmt: skip
    ours = warp(held(data), target, full(target), bands=[0, 1])
    inner = slice(10, -10)
    np.testing.assert_allclose(ours[:, inner, inner], oracle[:, inner, inner], atol=2e-5)


@pytest.mark.parametrize("gsd", [7.0, 28.8, 95.0])
def test_windows_are_invisible(gsd):
    """Cut anywhere, the pieces are the whole: no seam, because every window reads its kernel's margin."""
    data = np.random.default_rng(2).random((2, 90, 110)).astype(np.float32)
    data[:, 40:44, 50:53] = np.nan
    size = int(1500 / gsd)
    target = GeoBox((size, size), Affine(gsd, 0, 400_603.3, 0, -gsd, 5_799_281.7), "EPSG:32633")
    move = Displacement(east=4.2, north=-7.7)
    whole = warp(held(data), target, full(target), bands=[0, 1], displacement=move)
    for rows in (slice(0, size // 3), slice(size // 3, size)):
        for cols in (slice(0, size // 2), slice(size // 2, size)):
            piece = warp(held(data), target, (rows, cols), bands=[0, 1], displacement=move)
            np.testing.assert_allclose(piece, whole[:, rows, cols], atol=1e-6)


def test_displacement_is_added_to_the_ground():
    target = GeoBox((60, 60), Affine(30, 0, 400_600, 0, -30, 5_799_400), "EPSG:32633")
    moved = warp(
        held(smooth(SOURCE)), target, full(target), bands=[1, 2], displacement=Displacement(east=12.5, north=-3.0)
    )
    plain = smooth(target)
    np.testing.assert_allclose(moved[0] - plain[1], 0.0125, atol=3e-4)
    np.testing.assert_allclose(moved[1] - plain[2], -0.003, atol=3e-4)


def test_coarser_targets_do_not_alias():
    """White noise brought to pixels four times as large loses its variance; sampled by points it would keep it."""
    noise = np.random.default_rng(3).standard_normal((1, 90, 110)).astype(np.float32)
    target = GeoBox((15, 18), Affine(120, 0, 400_300, 0, -120, 5_799_700), "EPSG:32633")
    assert 0.1 < warp(held(noise), target, full(target), bands=[0]).std() < 0.35


def test_holes_stay_holes_and_spread_no_nan():
    data = np.ones((2, 90, 110), np.float32)
    data[0, 40, 50] = np.nan
    target = GeoBox((270, 330), Affine(10, 0, 400_001, 0, -10, 5_799_999), "EPSG:32633")
    out = warp(held(data), target, full(target), bands=[0, 1])
    assert np.isfinite(out[1]).all()
    hole = np.isnan(out[0])
    assert 9 <= hole.sum() <= 25  # one source pixel of 3 x 3, and its near rim where the kernel loses half its weight
    assert hole[121, 151]
    np.testing.assert_allclose(out[0][~hole], 1.0, atol=1e-5)


def test_rim_is_repeated_for_one_pixel_only():
    data = np.ones((1, 90, 110), np.float32)
    target = GeoBox((90, 120), Affine(30, 0, 400_013, 0, -30, 5_800_000), "EPSG:32633")
    out = warp(held(data), target, full(target), bands=[0])
    assert np.isfinite(out[0, :, :110]).all()
    assert np.isnan(out[0, :, 111:]).all()


def test_the_sharp_kernel_keeps_detail_that_the_cubic_one_loses():
    """Waves of 2.7 pixels on a turned grid, against the waves themselves: a fifth of the cubic kernel's error or less."""

    def waves(geobox: GeoBox) -> NDArray[np.float64]:
        col, row = np.meshgrid(np.arange(geobox.shape[1]) + 0.5, np.arange(geobox.shape[0]) + 0.5)
        x, y = geobox.affine @ (col, row)
        return np.sin(2 * np.pi * (x - 400_000) / 80)[None] + np.sin(2 * np.pi * (y - 5_800_000) / 80)[None]

    target = GeoBox((40, 50), Affine(30, 0, 400_700, 0, -30, 5_799_200) @ Affine.rotation(1.0), "EPSG:32633")
    errors = [
        np.abs(warp(held(waves(SOURCE)), target, full(target), bands=[0], sharp=sharp) - waves(target)).mean()
        for sharp in (False, True)
    ]
    assert errors[1] < 0.2 * errors[0]


def test_windows_of_the_sharp_kernel_are_invisible():
    """Across a hole and across the scene's rim; where a sample is invalid, so is what lies on it."""
    data = np.random.default_rng(5).random((2, 90, 110)).astype(np.float32)
    data[:, 40:44, 50:53] = np.nan
    target = GeoBox((80, 90), Affine(30, 0, 399_950, 0, -30, 5_799_990) @ Affine.rotation(1.0), "EPSG:32633")
    whole = warp(held(data), target, full(target), bands=[0, 1], sharp=True)
    assert np.isnan(whole[:, 20:60, 30:70]).any()
    for rows in (slice(0, 33), slice(33, 80)):
        for cols in (slice(0, 47), slice(47, 90)):
            piece = warp(held(data), target, (rows, cols), bands=[0, 1], sharp=True)
            np.testing.assert_allclose(piece, whole[:, rows, cols], atol=1e-6)
