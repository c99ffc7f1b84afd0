"""The AVIRIS reader: planted values, a rotated grid by its own geometry, and what is refused."""

from __future__ import annotations

from datetime import UTC, datetime

import numpy as np
import pytest
from affine import Affine
from odc.geo.geobox import GeoBox

from hyperfuse.catalogs.errors import InputRejected, UsageError
from hyperfuse.catalogs.sensors import Source, aviris, open_scene
from hyperfuse.pipeline.geometry.resample import warp
from tests import DATA
from tests.products import aviris as built
from tests.synthetic import whole

REAL = DATA / "emit_aviris_ng_chips" / "ang20170323t202244_rdn_7000-7010"


def expected() -> np.ndarray:
    data = built.reflectance().astype(np.float64)
    data[data == -9999] = np.nan
    return data


@pytest.mark.parametrize("integers", [False, True])
def test_an_envi_image_has_its_values_and_its_bands(tmp_path, integers):
    path = built.aviris(tmp_path, integers=integers)
    for uri in (path, path.with_name(f"{path.name}.hdr"), tmp_path):
        scene = open_scene(Source(uri=str(uri)))
        assert (scene.sensor, scene.quantity, scene.unit) == ("aviris", "reflectance", "1")
        assert scene.time == datetime(2017, 3, 23, 20, 22, 44, tzinfo=UTC)
        np.testing.assert_allclose(whole(scene), expected(), rtol=1e-6)
        np.testing.assert_allclose(scene.bands.center_nm, built.CENTER_NM)
        np.testing.assert_allclose(scene.bands.fwhm_nm, built.FWHM_NM)
        np.testing.assert_array_equal(scene.bands.good, np.array(built.GOOD, bool))
    assert any("x 10000" in note for note in scene.notes) == integers


@pytest.mark.parametrize("rotation", [0.0, 30.0, -75.0, 150.0])
def test_the_rotation_turns_the_grid_about_its_corner(tmp_path, rotation):
    scene = open_scene(Source(uri=str(built.aviris(tmp_path, rotation=f"rotation={rotation:.8f}"))))
    assert scene.geobox.crs.epsg == built.EPSG
    for row, col in ((0, 0), (0, 16), (24, 0), (24, 16), (3.5, 4.5)):
        np.testing.assert_allclose(scene.geobox.affine @ (col, row), built.place(row, col, rotation), atol=1e-6)
    assert scene.gsd_m == pytest.approx(built.GSD, rel=1e-3)


def test_a_rotated_scene_is_resampled_where_it_lies(tmp_path):
    """The planted plane, on a north-up grid, at the place that the map info gives."""
    scene = open_scene(Source(uri=str(built.aviris(tmp_path))))
    east, north = built.place(16, 8)
    target = GeoBox((6, 6), Affine(2, 0, east - 6, 0, -2, north + 6), f"EPSG:{built.EPSG}")
    got = warp(scene, target, (slice(0, 6), slice(0, 6)), bands=[0])
    for row in range(6):
        for col in range(6):
            x, y = target.affine @ (col + 0.5, row + 0.5)
            right, down = x - built.CORNER[0], built.CORNER[1] - y
            angle = np.radians(built.ROTATION_DEG)
            at_col = (right * np.cos(angle) - down * np.sin(angle)) / built.GSD - 0.5
            at_row = (right * np.sin(angle) + down * np.cos(angle)) / built.GSD - 0.5
            assert got[0, row, col] == pytest.approx(0.1 + 0.002 * at_row + 0.0001 * at_col, abs=2e-6)


def test_a_netcdf_file_has_its_values_and_its_grid(tmp_path):
    scene = open_scene(Source(uri=str(built.aviris3(tmp_path / "AV320230821t173024_L2A_RFL_ORT.nc"))))
    assert (scene.sensor, scene.geobox.crs.epsg) == ("aviris", built.EPSG)
    assert scene.time == datetime(2023, 8, 21, 17, 30, 24, tzinfo=UTC)
    assert scene.geobox.affine == Affine(built.GSD, 0, built.CORNER[0], 0, -built.GSD, built.CORNER[1])
    np.testing.assert_allclose(whole(scene), expected(), rtol=1e-6)
    np.testing.assert_allclose(scene.bands.fwhm_nm, built.FWHM_NM, rtol=1e-6)
    part = (slice(2, 9), slice(1, 12))
    np.testing.assert_array_equal(scene.read(part, [3, 1]), whole(scene)[[3, 1]][:, *part])


def test_what_is_no_orthocorrected_reflectance_is_refused_in_a_sentence(tmp_path):
    raw = built.aviris(tmp_path / "a", mapped=False)
    with pytest.raises(InputRejected, match="has no map info, expected an orthocorrected image"):
        open_scene(Source(uri=str(raw)))
    radiance = built.aviris(tmp_path / "b", name=f"{built.LINE}_rdn_v2p9_img", description="radiance")
    with pytest.raises(InputRejected, match="neither name nor description says reflectance"):
        open_scene(Source(uri=str(radiance)))
    sensor_grid = built.aviris3(tmp_path / "c" / "a.nc", lookup=True)
    with pytest.raises(InputRejected, match="lies on the sensor's own grid"):
        open_scene(Source(uri=str(sensor_grid)))
    level1 = built.aviris3(tmp_path / "d" / "a.nc", group="radiance")
    with pytest.raises(InputRejected, match="holds radiance, expected reflectance"):
        open_scene(Source(uri=str(level1)))
    built.aviris(tmp_path / "e")
    built.aviris(tmp_path / "e", name="f110803t01p00r04_refl_img")
    with pytest.raises(InputRejected, match="holds 2 AVIRIS reflectance images"):
        open_scene(Source(uri=str(tmp_path / "e")))
    with pytest.raises(UsageError, match="takes scale from the product"):
        open_scene(Source(uri=str(built.aviris(tmp_path / "f")), scale=1.0))


def test_the_flight_line_may_be_in_name_or_description_and_must_be_in_one(tmp_path):
    assert aviris.accepts(str(built.aviris(tmp_path, name="image", description="f110803t01p00r04_refl")))
    assert not aviris.accepts(str(built.aviris(tmp_path, name="other_rfl", description="reflectance")))
    classic = built.aviris(tmp_path, name="f110803t01p00r04_refl", description="", integers=True)
    assert open_scene(Source(uri=str(classic))).time is None


@pytest.mark.skipif(not REAL.exists(), reason="../shared/data is not beside the checkout")
def test_a_real_chip_of_radiance_without_a_map_is_refused_in_a_sentence():
    assert aviris.accepts(str(REAL))
    with pytest.raises(InputRejected, match="neither name nor description says reflectance"):
        open_scene(Source(uri=str(REAL)))
