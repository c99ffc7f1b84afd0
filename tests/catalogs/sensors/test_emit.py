"""The EMIT reader: planted values through the lookup table, and the geometry of a real granule."""

from __future__ import annotations

from datetime import UTC, datetime

import h5py
import numpy as np
import pytest

from hyperfuse.catalogs.errors import InputRejected
from hyperfuse.catalogs.sensors import Source, emit, open_scene
from tests import DATA
from tests.products import emit as built
from tests.synthetic import whole

REAL = DATA / "emit_l1b_l2a_fixture" / "EMIT_L2A_MASK_001_20220827T060753_9999999_999.nc"


def expected(*masked: str) -> np.ndarray:
    """Reflectance on the map: a loop over its cells, as a reader of the specification would write it."""
    data = built.reflectance().astype(np.float64)
    data[data == -9999] = np.nan
    for name in masked:
        data[built.MASKED[name]] = np.nan
    row, col = built.lookup()
    out = np.full((len(built.CENTER_NM), *built.MAP), np.nan)
    for y in range(built.MAP[0]):
        for x in range(built.MAP[1]):
            if row[y, x] >= 0:
                out[:, y, x] = data[row[y, x], col[y, x]]
    return out


def test_cells_show_the_pixels_that_the_table_names(tmp_path):
    scene = open_scene(Source(uri=str(built.emit(tmp_path))))
    assert (scene.sensor, scene.quantity) == ("emit", "reflectance")
    assert scene.time == datetime(2024, 5, 1, 10, 10, 10, tzinfo=UTC)
    assert scene.geobox.crs.epsg == 4326
    assert scene.geobox.affine @ (0, 0) == built.ORIGIN
    np.testing.assert_allclose(whole(scene), expected("Cloud flag", "Cirrus flag", "Spacecraft Flag"), rtol=1e-6)
    for part in ((slice(5, 13), slice(7, 15)), (slice(0, 2), slice(19, 22))):
        np.testing.assert_array_equal(scene.read(part, [3, 0]), whole(scene)[[3, 0]][:, *part])


def test_masks_are_the_users_choice(tmp_path):
    path = built.emit(tmp_path)
    np.testing.assert_allclose(whole(open_scene(Source(uri=str(path), mask="none"))), expected(), rtol=1e-6)
    water = whole(open_scene(Source(uri=str(path), mask="water")))
    np.testing.assert_allclose(water, expected("Water flag"), rtol=1e-6)


def test_good_wavelengths_decide(tmp_path):
    bands = open_scene(Source(uri=str(built.emit(tmp_path)))).bands
    np.testing.assert_array_equal(bands.good, np.array(built.GOOD, bool))
    np.testing.assert_allclose(bands.center_nm, built.CENTER_NM)
    np.testing.assert_allclose(bands.fwhm_nm, built.FWHM_NM, rtol=1e-6)


def test_a_mirrored_table_is_mirrored_back(tmp_path):
    scene = open_scene(Source(uri=str(built.emit(tmp_path, mirrored=True)), mask="none"))
    assert "glt_x of this file is mirrored" in scene.notes[0]
    np.testing.assert_allclose(whole(scene), expected(), rtol=1e-6)


def test_a_table_off_its_own_coordinates_is_refused(tmp_path):
    with pytest.raises(InputRejected, match="cells off its own latitudes and longitudes"):
        open_scene(Source(uri=str(built.emit(tmp_path, off_cells=3))))


def test_without_mask_file_it_is_told(tmp_path):
    path = built.emit(tmp_path, mask=False)
    scene = open_scene(Source(uri=str(tmp_path)))
    assert scene.name == path.stem
    assert any("clouds are not masked" in note for note in scene.notes)


def test_the_mask_of_another_granule_is_refused(tmp_path):
    with pytest.raises(InputRejected, match="fetch the mask of the same granule"):
        open_scene(Source(uri=str(built.emit(tmp_path, line="e2"))))


def test_indexes_beyond_the_sensor_are_no_data(tmp_path):
    path = built.emit(tmp_path)
    with h5py.File(path, "r+") as file:
        file["location/glt_x"][10, 10] = built.SENSOR[1] + 5
    values = whole(open_scene(Source(uri=str(path), mask="none")))
    assert np.isnan(values[:, 10, 10]).all()
    assert np.isfinite(values[0, 10, 9])


@pytest.mark.skipif(not REAL.is_file(), reason="real imagery is absent: emit_l1b_l2a_fixture (see the README)")
def test_real_geometry_and_masks(tmp_path):
    """A real table, real coordinates and real masks under planted reflectance: each pixel's value is its own place."""
    path = tmp_path / REAL.name.replace("MASK", "RFL")
    (tmp_path / REAL.name).write_bytes(REAL.read_bytes())
    with h5py.File(REAL) as real, h5py.File(path, "w") as file:
        lat, lon = real["location/lat"][()], real["location/lon"][()]
        for name in ("geotransform", "spatial_ref", "flight_line", "time_coverage_start"):
            file.attrs[name] = real.attrs[name]
        real.copy("location", file)
        file["reflectance"] = np.stack([lon - 61, lat - 36], axis=-1).astype(np.float32)
        for name, values in (("wavelengths", (500, 600)), ("fwhm", (8, 8)), ("good_wavelengths", (1, 1))):
            file[f"sensor_band_parameters/{name}"] = np.float32(values)
        flags = real["mask"][..., :2].max(axis=-1) == 1
    scene = open_scene(Source(uri=str(path), mask="none"))
    values = whole(scene)
    y, x = np.nonzero(np.isfinite(values[0]))
    at_x, at_y = ~scene.geobox.affine @ (values[0, y, x] + 61, values[1, y, x] + 36)
    # Nearest neighbors: the place of a pixel lies within about a cell of the cell's center.
    assert np.median(np.hypot(at_x - x - 0.5, at_y - y - 0.5)) < 0.6
    assert np.hypot(at_x - x - 0.5, at_y - y - 0.5).max() < 2
    masked = np.isnan(whole(open_scene(Source(uri=str(path), mask="cloud,cirrus")))[0]) & np.isfinite(values[0])
    assert masked.any() == flags.any()


def test_is_told_by_content(tmp_path):
    path = built.emit(tmp_path)
    other = path.rename(tmp_path / "a.bin")
    assert emit.accepts(str(other))
    assert not emit.accepts(str(tmp_path / built.NAME.replace("RFL", "MASK")))
