"""Outlines on the globe and maps of clear pixels: known places, the date line, and what is refused."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox

from hyperfuse.catalogs.errors import InputRejected
from hyperfuse.catalogs.formats.documents import parse_document, read_document, write_document
from hyperfuse.catalogs.outline import MAX_POINTS, bbox_of, box_of, from_geojson, grid_outline, outline, to_geojson
from hyperfuse.catalogs.stac.clear_map import CELLS, clear_map, clear_share, is_clear_map

SQUARE = np.array([[0, 0], [1, 0], [1, 1], [0, 1]], np.float64)


def square(west: float, south: float, edge: float = 2.0) -> shapely.Polygon:
    return outline(west + edge * SQUARE[:, 0], south + edge * SQUARE[:, 1])


@given(st.floats(-180, 178), st.floats(-80, 80))
def test_an_outline_keeps_its_area_and_turns_left(west, south):
    area = square(west, south)
    assert area.area == pytest.approx(4, rel=1e-5)
    assert all(part.exterior.is_ccw for part in shapely.get_parts(area))
    assert from_geojson(to_geojson(area), "here").equals(area)
    assert box_of(area) == pytest.approx((west, south, west + 2, south + 2), abs=1e-6)


def test_across_the_date_line():
    lon = (179 + 2 * SQUARE[:, 0] + 180) % 360 - 180  # 179, -179, -179, 179
    area = outline(lon, 10 + 2 * SQUARE[:, 1])
    assert area.geom_type == "MultiPolygon"
    assert area.area == pytest.approx(4)
    assert area.equals(shapely.union(shapely.box(179, 10, 180, 12), shapely.box(-180, 10, -179, 12)))
    assert box_of(area) == (179, 10, 181, 12)
    assert bbox_of(area) == [179, 10, -179, 12]


@pytest.mark.parametrize(
    ("geometry", "why"),
    [
        (None, "no GeoJSON"),
        ({"type": "Polygon"}, "no GeoJSON"),
        ({"type": "Polygon", "coordinates": [[[0, 0], [1, "x"], [1, 1], [0, 0]]]}, "no GeoJSON"),
        ({"type": "Point", "coordinates": [1, 2]}, "is a Point of 1 points"),
        ({"type": "Polygon", "coordinates": [[[0, 0], [600000, 0], [600000, 5000000], [0, 0]]]}, "longitude and latitude"),
        ({"type": "Polygon", "coordinates": [[[0, 0], [1, 0], [2, 0], [0, 0]]]}, "covers nothing"),
        ({"type": "Polygon", "coordinates": [[[i / 1e5, 0] for i in range(MAX_POINTS)] + [[0, 1], [0, 0]]]}, "at most"),
        ({"type": "Polygon", "coordinates": [[[0, 0], [float("nan"), 0], [1, 1], [0, 0]]]}, "longitude and latitude"),
    ],
)  # fmt: skip
def test_what_is_no_area(geometry, why):
    with pytest.raises(InputRejected, match=why):
        from_geojson(geometry, "here")


def test_a_bow_tie_is_mended():
    record = {"type": "Polygon", "coordinates": [[[0, 0], [2, 2], [2, 0], [0, 2], [0, 0]]]}
    assert from_geojson(record, "here").area == pytest.approx(2)


@pytest.mark.parametrize("west", [10.0, 179.0])
def test_a_map_tells_what_is_clear_in_a_part(west):
    area = square(west, 40)
    lon, lat = np.meshgrid(west + np.linspace(0.005, 1.995, 400), 40 + np.linspace(0.005, 1.995, 400))
    cloudy = (lon > west + 1) & (lat > 41)  # the northeastern quarter
    rows = clear_map(((lon + 180) % 360 - 180).ravel(), lat.ravel(), ~cloudy.ravel(), area)
    assert rows[0] == "f" * (CELLS // 2) + "0" * (CELLS // 2)
    assert rows[-1] == "f" * CELLS
    assert is_clear_map(rows)
    assert clear_share(rows, area, area) == pytest.approx(0.75)
    assert clear_share(rows, area, square(west + 1, 41, 1.0)) == 0
    assert clear_share(rows, area, square(west + 0.5, 41, 1.0)) == pytest.approx(0.5)
    # Smaller than a cell: the cell that holds it.
    assert clear_share(rows, area, square(west + 1.5, 41.51, 0.001)) == 0
    assert clear_share(rows, area, square(west + 0.51, 40.51, 0.001)) == 1


def test_a_swath_that_lies_askew_is_clear():
    area = outline([11, 12, 11, 10], [40, 41, 42, 41])
    lon, lat = np.meshgrid(np.linspace(10, 12, 400), np.linspace(40, 42, 400))
    imaged = np.abs(lon - 11) + np.abs(lat - 41) < 0.999
    rows = clear_map(lon.ravel(), lat.ravel(), imaged.ravel(), area)
    assert rows[0][0] == rows[-1][-1] == "-"
    assert clear_share(rows, area, area) == pytest.approx(1, abs=0.01)


def test_cells_without_samples_are_unknown():
    area = square(10, 40)
    rows = clear_map([10.5], [40.5], [True], area)
    assert sum(row.count("-") for row in rows) == CELLS**2 - 1
    assert clear_share(rows, area, square(11, 41, 0.5)) is None
    assert clear_share(rows, area, area) == 1
    assert not is_clear_map(rows[:-1])
    assert not is_clear_map(["g" * CELLS] * CELLS)
    assert not is_clear_map("f" * CELLS)


def test_documents_are_bounded(tmp_path):
    path = tmp_path / "a.json"
    write_document(path, {"a": "é"})
    assert read_document(path) == {"a": "é"}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]
    with pytest.raises(ValueError, match="JSON compliant"):
        write_document(path, {"a": float("nan")})
    assert read_document(path) == {"a": "é"}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]
    with pytest.raises(InputRejected, match="more than 5 bytes"):
        read_document(path, limit=5)
    with pytest.raises(InputRejected, match="cannot be read"):
        read_document(tmp_path / "absent.json")
    for text, why in (
        (b"[" * 200_000, "nested too deeply"),
        (b'{"a":' * 200_000 + b"1" + b"}" * 200_000, "nested too deeply"),
        (b'{"a": NaN}', "no number of JSON"),
        (b"[1]", "holds a list"),
        (b"\xff", "no JSON"),
        (b'{"a"', "no JSON"),
    ):
        with pytest.raises(InputRejected, match=why):
            parse_document(text, "here")


def test_outline_of_a_grid_is_counterclockwise_and_encloses_the_grid() -> None:
    geobox = GeoBox.from_bbox((500_000, 4_990_000, 510_000, 5_000_000), "EPSG:32633", shape=(10, 10), tight=True)
    area = grid_outline(geobox)
    (ring,) = to_geojson(area)["coordinates"]
    assert ring[0] == ring[-1]
    assert sum(a[0] * b[1] - b[0] * a[1] for a, b in pairwise(ring)) > 0
    west, south, east, north = bbox_of(area)
    assert west == pytest.approx(15.0)
    assert (south, north) == pytest.approx((45.0635, 45.1535), abs=1e-3)
    assert east == pytest.approx(15.1271, abs=1e-3)


def test_outline_of_a_grid_is_cut_at_the_date_line() -> None:
    geobox = GeoBox.from_bbox((780_000, 0, 880_000, 50_000), "EPSG:32660", shape=(10, 20), tight=True)
    area = grid_outline(geobox)
    assert area.geom_type == "MultiPolygon"
    west, _, east, _ = bbox_of(area)
    assert 179 < west < 180
    assert -180 < east < -179
    longitudes = [x for part in to_geojson(area)["coordinates"] for x, _ in part[0]]
    assert min(longitudes) == -180
    assert max(longitudes) == 180
