"""Arrows of the displacement: where they begin, where they point, and what the page says of them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from affine import Affine
from odc.geo.geobox import GeoBox
from pyproj import Transformer

from hyperfuse.pipeline.registration.report import TABLE
from hyperfuse.pipeline.reports.arrows import Arrows, displacement_arrows
from hyperfuse.pipeline.reports.html import render

UTM = GeoBox((100, 200), Affine(10, 0, 500_000, 0, -10, 5_000_000), "EPSG:32633")


def table(folder: Path, points: list[tuple[float, float, float, float, bool]], geobox: GeoBox = UTM) -> Path:
    """Tie points at (col, row) of a grid, moved by meters east and north."""
    features = []
    for col, row, east, north, used in points:
        lon, lat = Transformer.from_crs(geobox.crs.proj, 4326, always_xy=True).transform(*(geobox.affine @ (col, row)))
        properties = {"east_m": east, "north_m": north, "used": used}
        features.append({"geometry": {"type": "Point", "coordinates": [lon, lat]}, "properties": properties})
    (folder / TABLE).write_text(json.dumps({"features": features}))
    return folder


def drawn(arrows: Arrows) -> str:
    """The SVG element that the page carries."""
    return render("arrows.svg", arrows)


def shafts(svg: str, name: str) -> np.ndarray:
    """Tail and tip (col, row) of each arrow of a class, shape (n, 4)."""
    found = re.search(rf'<path class="{name}" d="([^"]*)"', svg)
    strokes = found.group(1).split("M")[1::2] if found else []
    return np.array([[float(v) for v in re.findall(r"-?[\d.]+", stroke)] for stroke in strokes])


def test_arrows_lie_on_their_points_and_point_where_the_image_moves(tmp_path: Path) -> None:
    folder = table(tmp_path, [(50, 40, 6.0, 0.0, True), (150, 60, 0.0, 6.0, True), (100, 50, -3.0, -3.0, False)])
    arrows = displacement_arrows(folder, UTM)
    assert arrows is not None
    agree, differ = (shafts(drawn(arrows), name) for name in ("agree", "differ"))
    np.testing.assert_allclose((agree[:, :2] + agree[:, 2:]) / 2, [[50, 40], [150, 60]], atol=0.1)
    # East is to the right and north is up; the longest arrow has 12 % of the longer side.
    np.testing.assert_allclose(agree[:, 2:] - agree[:, :2], [[24, 0], [0, -24]], atol=0.25)
    np.testing.assert_allclose(differ[0, 2:] - differ[0, :2], [-12, 12], atol=0.25)
    assert 'viewBox="0 0 200 100"' in drawn(arrows)
    assert "drawn 40 times as long" in arrows.about
    assert "longest 6 m" in arrows.about
    assert "Of 3 tie points here, 2 agree" in arrows.about


def test_in_degrees_arrows_have_the_same_length_everywhere(tmp_path: Path) -> None:
    """A degree of longitude is half a degree of latitude at 60 north: equal moves are equal on the ground, not on the grid."""
    geobox = GeoBox((400, 400), Affine(1e-4, 0, 14, 0, -1e-4, 60.02), "EPSG:4326")
    arrows = displacement_arrows(table(tmp_path, [(100, 200, 5, 0, True), (300, 200, 0, 5, True)], geobox), geobox)
    assert arrows is not None
    found = shafts(drawn(arrows), "agree")
    east, north = np.hypot(*(found[:, 2:] - found[:, :2]).T)
    assert east == pytest.approx(2 * north, rel=0.02)


def test_points_outside_do_not_count(tmp_path: Path) -> None:
    arrows = displacement_arrows(
        table(tmp_path, [(50, 40, 1, 1, True), (-3, 40, 1, 1, True), (50, 101, 1, 1, True)]), UTM
    )
    assert arrows is not None
    assert len(shafts(drawn(arrows), "agree")) == 1
    assert displacement_arrows(table(tmp_path, [(-3, 40, 1, 1, True)]), UTM) is None


def test_no_move_is_no_crash_and_no_table_no_arrow(tmp_path: Path) -> None:
    assert displacement_arrows(tmp_path, UTM) is None
    assert displacement_arrows(table(tmp_path, []), UTM) is None
    arrows = displacement_arrows(table(tmp_path, [(50, 40, 0, 0, True)]), UTM)
    assert arrows is not None
    assert "nan" not in drawn(arrows)
