"""Scenes across the antimeridian and on 0-360 grids: every pixel lands where pyproj says that it lies."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import rasterio
import xarray as xr
from affine import Affine
from pyproj import Transformer

from hyperfuse.catalogs.errors import ExpectedSkip
from hyperfuse.catalogs.pairs import ScenePair
from hyperfuse.catalogs.scene import Scene
from hyperfuse.catalogs.sensors import Source, open_scene
from hyperfuse.pipeline.config import AlignConfig
from hyperfuse.pipeline.geometry.grids import nest
from hyperfuse.pipeline.geometry.resample import source_pixels, warp

STEP_X, STEP_Y = 2.8e-4, 2.7e-4
NORTH = -17.0
SIZE = 60
CENTERS = ", ".join(str(450 + 20 * i) for i in range(6))


def degrees(folder: Path, west: float, form: str) -> Scene:
    """An HSI in degrees whose first two bands are the degrees of a pixel's center east and south of the corner."""
    lon = west + STEP_X * (np.arange(SIZE) + 0.5)
    lat = NORTH - STEP_Y * (np.arange(SIZE) + 0.5)
    east, south = np.meshgrid(lon - west, NORTH - lat)
    noise = np.random.default_rng(1).uniform(0.1, 0.2, (4, SIZE, SIZE))
    data = np.concatenate([[east, south], noise])
    if form == "tif":
        path = folder / "hsi.tif"
        with rasterio.open(
            path, "w", driver="GTiff", width=SIZE, height=SIZE, count=6, dtype="float64", crs="EPSG:4326",
            transform=Affine(STEP_X, 0, west, 0, -STEP_Y, NORTH),
        ) as file:  # fmt: skip
            file.write(data)
    else:
        path = folder / "hsi.nc"
        if form == "split":  # as software writes it that keeps to -180..180
            lon = np.where(lon > 180, lon - 360, lon)
        xr.Dataset(
            {"refl": (("band", "lat", "lon"), data)},
            coords={
                "lat": ("lat", lat, {"units": "degrees_north"}),
                "lon": ("lon", lon, {"units": "degrees_east"}),
            },
        ).to_netcdf(path)
    return open_scene(Source(uri=str(path), wavelengths=CENTERS, quantity="reflectance"))


def meters(folder: Path, west: float, epsg: int) -> Scene:
    """An MSI of 10 m that covers about the same ground."""
    x, y = Transformer.from_crs(4326, epsg, always_xy=True).transform(west, NORTH)
    data = np.random.default_rng(2).uniform(0.1, 0.2, (3, 180, 180)).astype("float32")
    path = folder / "msi.tif"
    with rasterio.open(
        path, "w", driver="GTiff", width=180, height=180, count=3, dtype="float32", crs=f"EPSG:{epsg}",
        transform=Affine(10, 0, round(x, -1), 0, -10, round(y, -1)),
    ) as file:  # fmt: skip
        file.write(data)
    return open_scene(Source(uri=str(path), wavelengths="490, 510, 540", quantity="reflectance"))


@pytest.mark.parametrize(
    ("west", "form", "epsg"),
    [(179.99, "tif", 32760), (179.99, "nc", 32760), (179.99, "split", 32760), (179.998, "tif", 32701), (-180.01, "tif", 32760),
     (200.0, "nc", 32704), (200.0, "tif", 32704), (-160.0, "tif", 32704), (359.99, "nc", 32730), (359.995, "tif", 32731)],
)  # fmt: skip
def test_every_pixel_lands_where_pyproj_says(tmp_path: Path, west: float, form: str, epsg: int) -> None:
    hsi, msi = degrees(tmp_path, west, form), meters(tmp_path, west, epsg)
    pair = ScenePair(hsi=hsi, msi=msi)
    grids = nest(pair, AlignConfig(), None)
    height, width = grids.product.shape
    assert height > 160
    assert width > 160
    rows, cols = grids.coarse.shape
    values = warp(hsi, grids.coarse, (slice(0, rows), slice(0, cols)), bands=[0, 1])
    col, row = np.meshgrid(np.arange(cols) + 0.5, np.arange(rows) + 0.5)
    x, y = grids.coarse.affine @ (col, row)
    lon, lat = Transformer.from_crs(epsg, 4326, always_xy=True).transform(x, y)
    inside = (slice(3, -3), slice(3, -3))
    # The bands are linear in place, so the cubic gather gives them back; 1e-6 degrees are a tenth of a meter.
    east = (lon - west + 180) % 360 - 180
    np.testing.assert_allclose(values[0][inside], east[inside], atol=1e-6)
    np.testing.assert_allclose(values[1][inside], NORTH - lat[inside], atol=1e-6)
    assert np.isfinite(values[:, 1:-1, 1:-1]).all()


@pytest.mark.parametrize("west", [179.99, 200.0, -180.01])
def test_an_msi_in_degrees_of_another_turn(tmp_path: Path, west: float) -> None:
    hsi = degrees(tmp_path, west, "tif")
    data = np.random.default_rng(2).uniform(0.1, 0.2, (3, 180, 180)).astype("float32")
    path = tmp_path / "msi.tif"
    turned = west + 360 if west < 0 else west - 360
    with rasterio.open(
        path, "w", driver="GTiff", width=180, height=180, count=3, dtype="float32", crs="EPSG:4326",
        transform=Affine(STEP_X / 3, 0, turned, 0, -STEP_Y / 3, NORTH),
    ) as file:  # fmt: skip
        file.write(data)
    msi = open_scene(Source(uri=str(path), wavelengths="490, 510, 540", quantity="reflectance"))
    grids = nest(ScenePair(hsi=hsi, msi=msi), AlignConfig(), None)
    assert grids.product.shape == (180, 180)
    row, col = source_pixels(hsi.geobox, grids.coarse, (slice(0, SIZE), slice(0, SIZE)))
    np.testing.assert_allclose(row, np.broadcast_to(np.arange(SIZE)[:, None], row.shape), atol=1e-5)
    np.testing.assert_allclose(col, np.broadcast_to(np.arange(SIZE), col.shape), atol=1e-5)
    got = warp(hsi, grids.coarse, (slice(0, SIZE), slice(0, SIZE)), bands=[2])
    np.testing.assert_array_equal(got, hsi.read((slice(0, SIZE), slice(0, SIZE)), [2]))


def test_an_hsi_in_meters_under_an_msi_in_degrees(tmp_path: Path) -> None:
    """The product keeps the lattice of the image in degrees, on both sides of 180 degrees."""
    coarse, fine = meters(tmp_path, 179.99, 32760), degrees(tmp_path, 179.99, "tif")
    pair = ScenePair(hsi=fine, msi=coarse)
    grids = nest(pair, AlignConfig(reference="hsi"), 3)
    assert min(grids.product.shape) > 160
    west, _, east, _ = grids.product.boundingbox
    assert west < 180 < east
    rows, cols = grids.product.shape
    values = warp(coarse, grids.product, (slice(0, rows), slice(0, cols)), bands=[0])
    assert np.isfinite(values).mean() > 0.98


def test_scenes_on_both_sides_that_do_not_meet(tmp_path: Path) -> None:
    hsi, msi = degrees(tmp_path, 179.95, "tif"), meters(tmp_path, -179.9, 32701)
    with pytest.raises(ExpectedSkip, match="do not overlap"):
        ScenePair(hsi=hsi, msi=msi)
