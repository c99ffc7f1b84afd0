"""The command's work: the record, its files, and the image that is moved."""

from __future__ import annotations

import json

import numpy as np
import pytest
import rasterio
from PIL import Image

from hyperfuse.catalogs.errors import InputRejected, QualityRefused
from hyperfuse.pipeline.register import register_alone
from tests.synthetic import config

MOVED = "size=360&ratio=3&bands=20&seed=2&east_m=-31&north_m=17"


@pytest.fixture(scope="module")
def registered(tmp_path_factory):
    folder = tmp_path_factory.mktemp("registered")
    record = register_alone(
        config(folder / "none", MOVED),
        table=folder / "points.geojson",
        figure=folder / "figure.png",
        moved=folder / "moved.tif",
    )
    return folder, record


def test_the_record(registered):
    _, record = registered
    assert record["decision"] == "accept"
    assert record["model"] == "shift"
    assert (record["east_m"], record["north_m"]) == pytest.approx((-31, 17), abs=0.6)
    assert record["residual_after_px"] < 0.1 < record["residual_before_px"]
    assert record["tie_points"] == record["tie_points_tried"] == 64
    json.dumps(record)


def test_the_table_lies_where_the_scene_lies(registered):
    """GeoJSON has longitude and latitude; the synthetic origin is 400 km E, 5800 km N in UTM 33."""
    folder, record = registered
    table = json.loads((folder / "points.geojson").read_text())
    assert table["registration"]["east_m"] == record["east_m"]
    points = table["features"]
    assert len(points) == record["tie_points_tried"]
    lon, lat = np.array([point["geometry"]["coordinates"] for point in points]).T
    assert 13.5 < lon.min() < lon.max() < 13.6
    assert 52.3 < lat.min() < lat.max() < 52.35
    east, north, left = (
        np.array([point["properties"][key] for point in points]) for key in ("east_m", "north_m", "left_east_px")
    )
    assert np.median(east) == pytest.approx(-31, abs=0.6)
    assert np.median(north) == pytest.approx(17, abs=0.6)
    assert np.abs(left).max() < 0.2
    assert sum(point["properties"]["used"] for point in points) == record["tie_points"]


def test_the_figure_is_a_picture_and_always_the_same(registered, tmp_path):
    folder, _ = registered
    with Image.open(folder / "figure.png") as picture:
        assert min(picture.size) > 400
        assert np.asarray(picture.convert("L")).std() > 10
    register_alone(config(tmp_path / "none", MOVED), figure=tmp_path / "again.png")
    assert (tmp_path / "again.png").read_bytes() == (folder / "figure.png").read_bytes()


def test_the_moved_image_needs_no_more_moving(registered, tmp_path):
    """Written along the displacement and registered again, it lies on the HSI; its grid and bands are the MSI's."""
    folder, _ = registered
    with rasterio.open(folder / "moved.tif") as file:
        assert file.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        assert (file.count, file.shape, file.crs.to_epsg()) == (4, (360, 360), 32633)
        assert np.isnan(file.nodata)
        assert file.tags(1, ns="IMAGERY")["CENTRAL_WAVELENGTH_UM"] == "0.49"
    again = register_alone(config(tmp_path / "none", MOVED, msi__uri=str(folder / "moved.tif")))
    assert again["decision"] == "accept"
    assert np.hypot(again["east_m"], again["north_m"]) < 0.6
    assert sorted(path.name for path in folder.iterdir()) == ["figure.png", "moved.tif", "points.geojson"]


def test_nothing_is_moved_by_a_refused_displacement(tmp_path):
    flat = "size=240&ratio=4&bands=12&texture=0&snr_hsi=30&snr_msi=30"
    with pytest.raises(QualityRefused, match="was not moved"):
        register_alone(config(tmp_path / "none", flat), moved=tmp_path / "moved.tif")
    assert list(tmp_path.iterdir()) == []


def test_an_existing_file_is_not_replaced(tmp_path):
    (tmp_path / "moved.tif").write_text("mine")
    with pytest.raises(InputRejected, match="exists"):
        register_alone(config(tmp_path / "none", MOVED), moved=tmp_path / "moved.tif")
    assert (tmp_path / "moved.tif").read_text() == "mine"


def test_swapped_images_are_refused(tmp_path):
    swapped = config(tmp_path / "none", MOVED, hsi__uri=f"synthetic:msi?{MOVED}", msi__uri=f"synthetic:hsi?{MOVED}")
    record = register_alone(swapped)
    assert (record["decision"], record["model"], record["tie_points"]) == ("refuse", "none", 0)
    assert "swapped" in record["reason"]


def test_two_images_of_one_resolution_can_be_registered(tmp_path):
    """Ratio 1: nothing to fuse, but something to register."""
    recipe = "size=120&ratio=1&bands=20&seed=4&gsd=30&east_m=20&north_m=-45"
    record = register_alone(config(tmp_path / "none", recipe))
    assert record["decision"] == "accept"
    assert (record["east_m"], record["north_m"]) == pytest.approx((20, -45), abs=1.5)
