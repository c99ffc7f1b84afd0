"""The Landsat reader: planted counts, each bit of the quality bands, and a real product."""

from __future__ import annotations

from datetime import UTC, datetime

import numpy as np
import pytest
import rasterio

from hyperfuse.catalogs.errors import InputRejected
from hyperfuse.catalogs.sensors import Source, landsat, open_scene
from tests import DATA
from tests.products import landsat as built
from tests.products.packing import planted, tarred
from tests.synthetic import whole

REAL = DATA / "landsat8_c2l2_fixture"
needs_real = pytest.mark.skipif(
    not REAL.is_dir(), reason="real imagery is absent: landsat8_c2l2_fixture (see the README)"
)


def expected(*flags: str) -> np.ndarray:
    """Reflectance; NaN at fill, saturation, and the pixels of some bits."""
    values = (planted(7, *built.SHAPE).astype(float) + 8000) * built.MULT + built.ADD
    for at in (built.SATURATED, built.QA["fill"], *(built.QA[flag] for flag in flags)):
        values[(slice(None), *at)] = np.nan
    return values


@pytest.mark.parametrize("form", ["json", "xml", "txt"])
def test_the_three_forms_of_the_metadata_agree(tmp_path, form):
    folder = built.landsat(tmp_path / "a", forms=(form,))
    scene = open_scene(Source(uri=str(folder)))
    assert (scene.sensor, scene.name) == ("landsat", built.NAME)
    assert scene.time == datetime(2024, 5, 1, 10, 3, 24, 123456, tzinfo=UTC)
    assert tuple(scene.geobox.affine) == tuple(built.GRID)
    assert scene.bands.names == ("B1", "B2", "B3", "B4", "B5", "B6", "B7")
    np.testing.assert_allclose(whole(scene), expected("cloud", "shadow", "cirrus"), rtol=1e-5)


@pytest.mark.parametrize(
    ("mask", "flags"),
    [("none", []), ("dilated_cloud,snow", ["dilated_cloud", "snow"]), ("water", ["water"]), ("cirrus", ["cirrus"])],
)
def test_each_bit_is_one_flag(tmp_path, mask, flags):
    values = whole(open_scene(Source(uri=str(built.landsat(tmp_path / "a")), mask=mask)))
    np.testing.assert_allclose(values, expected(*flags), rtol=1e-5)


def test_in_a_tar_and_by_its_metadata_file(tmp_path):
    folder = built.landsat(tmp_path / "a")
    for place in (tarred(folder, tmp_path / "a.tar"), folder / f"{built.NAME}_MTL.txt"):
        assert landsat.accepts(str(place))
        np.testing.assert_allclose(
            whole(open_scene(Source(uri=str(place)))), expected("cloud", "shadow", "cirrus"), rtol=1e-5
        )


def test_half_a_pixel_off_is_refused(tmp_path):
    with pytest.raises(InputRejected, match=r"0\.50 px off the corner"):
        open_scene(Source(uri=str(built.landsat(tmp_path / "a", shift_px=0.5))))


def test_other_products_are_refused(tmp_path):
    folder = built.landsat(tmp_path / "a", forms=("json",))
    metadata = folder / f"{built.NAME}_MTL.json"
    right = metadata.read_text()
    for old, new, sentence in (
        ("LANDSAT_9", "LANDSAT_5", "is LANDSAT_5 Collection 02 L2SP, expected Landsat 8 or 9"),
        ("L2SP", "L1TP", "L1TP, expected"),
        ('"REFLECTANCE_ADD_BAND_3"', '"X"', "REFLECTANCE_ADD_BAND_3"),
    ):
        metadata.write_text(right.replace(old, new))
        with pytest.raises(InputRejected, match=sentence):
            open_scene(Source(uri=str(folder)))


@needs_real
def test_a_real_product():
    scene = open_scene(Source(uri=str(REAL), mask="none"))
    assert scene.time == datetime(2020, 10, 31, 14, 31, 47, 808399, tzinfo=UTC)
    assert "resampled from 7731 x 7581" in scene.notes[0]
    stem = "LC08_L2SP_001062_20201031_20201106_02_T2"
    with rasterio.open(REAL / f"{stem}_SR_B4.TIF") as file:
        counts = file.read(1).astype(float)
        assert scene.geobox.affine == file.transform
    with rasterio.open(REAL / f"{stem}_QA_PIXEL.TIF") as file:
        qa = file.read(1)
    with rasterio.open(REAL / f"{stem}_QA_RADSAT.TIF") as file:
        bad = (counts == 0) | (qa & 1 > 0) | (file.read(1) & 0x7F > 0)
    want = np.where(bad, np.nan, counts * 2.75e-5 - 0.2)
    np.testing.assert_allclose(whole(scene)[3], want, rtol=1e-5)
    cloudy = np.isnan(whole(open_scene(Source(uri=str(REAL))))[3])
    np.testing.assert_array_equal(cloudy, bad | (qa & 0b11100 > 0))


@needs_real
def test_the_three_forms_of_real_metadata_agree():
    package = landsat.open_package(str(REAL))
    forms = {m.base.rpartition(".")[2]: landsat._parsed(package.read(m), m) for m in landsat._metadata(package)}
    assert list(forms) == ["json", "xml", "txt"]
    for group in ("PRODUCT_CONTENTS", "IMAGE_ATTRIBUTES", "LEVEL2_SURFACE_REFLECTANCE_PARAMETERS"):
        for form in ("xml", "txt"):
            for key, value in forms["json"][group].items():
                other = forms[form][group].get(key)
                assert other == value or float(other) == float(value), (form, key)
