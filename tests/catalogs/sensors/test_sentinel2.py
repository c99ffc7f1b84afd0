"""The Sentinel-2 reader: planted counts of a SAFE product, and real COGs."""

from __future__ import annotations

import json
import shutil
import zipfile
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
import rasterio

from hyperfuse.catalogs.errors import InputRejected, UsageError
from hyperfuse.catalogs.formats.packages import open_package
from hyperfuse.catalogs.formats.raster import open_member
from hyperfuse.catalogs.sensors import Source, open_scene, sentinel2
from tests import DATA
from tests.products import sentinel2 as built
from tests.products.packing import raster, zipped
from tests.synthetic import whole

COGS = DATA / "s2_l2a_cog_fixture"
JP2 = DATA / "s2_l1c_jp2_fixture"
DEFAULT = ("B02", "B03", "B04", "B05", "B08", "B8A", "B11")
needs_cogs = pytest.mark.skipif(not COGS.is_dir(), reason="real imagery is absent: s2_l2a_cog_fixture (see the README)")


@pytest.fixture(scope="module")
def safe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built.sentinel2(tmp_path_factory.mktemp("s2"))


def expected(name: str, offset: int = -1000) -> np.ndarray:
    """Reflectance on the 10 m grid; NaN where the counts say so."""
    short = name.replace("B0", "B")
    gsd_m = built.BANDS[short][0]
    counts = built.counts(short, gsd_m).astype(np.float64)
    counts[(counts == 0) | (counts == 65535)] = np.nan
    return np.kron((counts + offset) / 10000, np.ones((gsd_m // 10, gsd_m // 10)))


@pytest.mark.parametrize("packing", ["folder", "xml", "zip", "stored zip"])
def test_every_packaging_gives_the_planted_values(safe, tmp_path, packing):
    place = {
        "folder": lambda: safe,
        "xml": lambda: safe / "MTD_MSIL2A.xml",
        "zip": lambda: zipped(safe, tmp_path / "a.zip"),
        "stored zip": lambda: zipped(safe, tmp_path / "a.zip", compression=zipfile.ZIP_STORED),
    }[packing]()
    scene = open_scene(Source(uri=str(place), mask="none"))
    assert (scene.sensor, scene.name) == ("sentinel2", built.NAME)
    assert tuple(scene.geobox.affine) == tuple(built.GRID)
    assert tuple(scene.geobox.shape) == built.SHAPE
    assert scene.geobox.crs.epsg == 32632
    assert scene.time == datetime(2024, 5, 1, 10, 30, 11, 459000, tzinfo=UTC)
    assert scene.bands.names == DEFAULT
    for values, name in zip(whole(scene), DEFAULT, strict=True):
        np.testing.assert_allclose(values, expected(name), rtol=1e-5, err_msg=name)


def test_bands_of_20_m_are_blocks_of_equal_pixels(safe):
    scene = open_scene(Source(uri=str(safe), mask="none"))
    assert list(scene.bands.gsd_m) == [10, 10, 10, 20, 10, 20, 20]
    blocks = whole(scene)[3].reshape(built.SHAPE[0] // 2, 2, built.SHAPE[1] // 2, 2)
    np.testing.assert_array_equal(blocks, blocks[:, :1, :, :1] * np.ones((1, 2, 1, 2), np.float32))
    odd = (slice(3, 8), slice(5, 12))  # a window that cuts blocks
    np.testing.assert_array_equal(scene.read(odd, [3, 0]), whole(scene)[[3, 0]][:, *odd])


def test_wavelengths_are_those_of_the_product(safe):
    bands = open_scene(Source(uri=str(safe))).bands
    assert list(bands.center_nm) == [492.1, 559.0, 665.0, 703.8, 833.0, 864.0, 1610.4]
    # The trapezoid is above half of its maximum over three quarters of its base.
    np.testing.assert_allclose(bands.fwhm_nm, 0.75 * np.array([77, 45, 38, 19, 133, 32, 141]), rtol=1e-4)


@pytest.mark.parametrize(("offset", "count"), [(None, 0), (-1000, -1000), (-500, -500)])
def test_the_offset_is_that_of_the_xml(tmp_path, offset, count):
    """The same counts under three offsets; the date and the baseline in the XML stay the same."""
    scene = open_scene(Source(uri=str(built.sentinel2(tmp_path, offset=offset)), mask="none"))
    np.testing.assert_allclose(whole(scene)[0], expected("B02", count), rtol=1e-5)


@pytest.mark.parametrize(
    ("mask", "classes"),
    [(None, {1, 3, 8, 9, 10}), ("none", set()), ("snow,water", {6, 11}), ("cloud", {8, 9})],
)
def test_scene_classification_masks_whole_blocks(safe, mask, classes):
    values = whole(open_scene(Source(uri=str(safe), mask=mask)))
    for value, (row, col) in built.CLASS_AT.items():
        block = values[0, 2 * row : 2 * row + 2, 2 * col : 2 * col + 2]
        assert np.isnan(block).all() if value in classes else np.isfinite(block).all(), value
    assert np.isfinite(values[0]).sum() == values[0].size - 2 * built.SHAPE[1] - 4 * len(classes)


def test_no_data_and_saturation(safe):
    scene = open_scene(Source(uri=str(safe), mask="none"))
    values = whole(scene)
    assert np.isnan(values[:, :2]).all()
    name, at = built.SATURATED
    assert [scene.bands.names[b] for b in np.flatnonzero(np.isnan(values[(slice(None), *at)]))] == [name]


def test_bands_can_be_chosen(safe):
    scene = open_scene(Source(uri=str(safe), bands="B8A, b1", mask="none"))
    assert scene.bands.names == ("B01", "B8A")
    assert tuple(scene.geobox.affine)[:6] == (20, 0, 499980, 0, -20, 5400000)
    assert list(scene.bands.gsd_m) == [60, 20]
    np.testing.assert_allclose(whole(scene)[0], expected("B01")[::2, ::2], rtol=1e-5)
    with pytest.raises(UsageError, match="there is no band 'B99'"):
        open_scene(Source(uri=str(safe), bands="B99"))


def test_l1c_and_its_cloud_layers(tmp_path):
    scene = open_scene(Source(uri=str(built.sentinel2(tmp_path, level="L1C"))))
    values = whole(scene)
    assert "Level-1C" in scene.notes[0]
    np.testing.assert_allclose(values[0, 2:6], expected("B02")[2:6], rtol=1e-5)
    for col, masked in ((1, True), (2, True), (3, False)):  # cloud, cirrus, snow
        assert np.isnan(values[0, 6:12, 6 * col : 6 * col + 6]).all() == masked


def test_products_without_masks_say_so(tmp_path):
    scene = open_scene(Source(uri=str(built.sentinel2(tmp_path, masks=False))))
    assert "no scene classification or cloud layers on this grid: clouds are not masked" in scene.notes


def test_contradictions_are_refused(tmp_path):
    safe = built.sentinel2(tmp_path)
    tile = safe / built.GRANULE / "MTD_TL.xml"
    xml = tile.read_text()
    tile.write_text(xml.replace("<ULX>499980", "<ULX>499985"))
    with pytest.raises(InputRejected, match=r"0\.50 px off the corner"):
        open_scene(Source(uri=str(safe)))
    tile.write_text(xml.replace("<NROWS>24", "<NROWS>240"))
    with pytest.raises(InputRejected, match="the product's metadata declare 240 x 36"):
        open_scene(Source(uri=str(safe)))
    tile.write_text(xml)
    shutil.copytree(safe / built.GRANULE, safe / "GRANULE" / "second")
    with pytest.raises(InputRejected, match="2 tiles"):
        open_scene(Source(uri=str(safe)))
    shutil.rmtree(safe / "GRANULE" / "second")
    metadata = safe / "MTD_MSIL2A.xml"
    metadata.write_text(metadata.read_text().replace('<BOA_ADD_OFFSET band_id="1">-1000</BOA_ADD_OFFSET>', ""))
    with pytest.raises(InputRejected, match="none for band B02"):
        open_scene(Source(uri=str(safe)))


@needs_cogs
def test_real_cogs():
    scene = open_scene(Source(uri=str(COGS), mask="none"))
    assert scene.sensor == "sentinel2"
    assert scene.bands.names == ("B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B11", "B12")
    assert scene.time == datetime(2020, 2, 19, 11, 34, 25, 405000, tzinfo=UTC)
    # The fixture is decimated by ten: the item's own corner, ten times its pixel.
    assert tuple(scene.geobox.affine)[:6] == (100, 0, 199980, 0, -100, 2800020)
    with rasterio.open(COGS / "B05.tif") as file:
        counts = file.read(1).astype(np.float64)
    counts[counts == 0] = np.nan
    np.testing.assert_allclose(whole(scene)[3], np.kron(counts, np.ones((2, 2))) * 1e-4, rtol=1e-5)


@needs_cogs
def test_real_scene_classification():
    with rasterio.open(COGS / "SCL.tif") as file:
        bad = np.kron(np.isin(file.read(1), (0, 1, 3, 8, 9, 10)), np.ones((2, 2), bool))
    assert 0 < bad.mean() < 1
    holes = np.isnan(whole(open_scene(Source(uri=str(COGS), bands="B02")))[0])
    assert np.all(holes[bad])
    assert (
        np.isnan(whole(open_scene(Source(uri=str(COGS), bands="B02", mask="none")))[0][~bad]).sum() == holes[~bad].sum()
    )


@pytest.mark.skipif(not JP2.is_dir(), reason="real imagery is absent: s2_l1c_jp2_fixture (see the README)")
def test_images_are_told_by_content_not_by_name():
    """The files of this fixture are named jp2 and are TIFF; without metadata they are no product."""
    package = open_package(str(JP2))
    assert not sentinel2.accepts(str(JP2))
    members = package.find("B*.jp2")
    assert len(members) == 13
    for member in members:
        image = open_member(member)
        assert tuple(image.affine)[:6] == (900, 0, 399960, 0, -900, 5400000)
        assert image.samples.shape == (1, 122, 122)


def cogs(folder: Path, **properties: object) -> Path:
    """A STAC item with two COGs; what it says of offsets is given."""
    listed = properties.pop("listed", 0)
    for name in ("B02", "B03"):
        raster(folder / f"{name}.tif", np.full((4, 6), 3000, np.uint16), built.GRID, built.CRS, nodata=0)
    bands = [{"scale": 1e-4, "offset": listed}]
    item = {
        "stac_version": "1.0.0", "type": "Feature", "id": "x",
        "properties": {"constellation": "sentinel-2", "datetime": built.SENSED, **properties},
        "assets": {n: {"href": f"https://example.org/elsewhere/{n}.tif", "raster:bands": bands} for n in ("B02", "B03")},
    }  # fmt: skip
    (folder / "item.json").write_text(json.dumps(item))
    return folder


@pytest.mark.parametrize(
    ("properties", "reflectance"),
    [
        ({"s2:processing_baseline": "03.01"}, 0.3),
        ({"s2:processing_baseline": "05.09", "listed": -0.1}, 0.2),
        ({"s2:processing_baseline": "05.09", "listed": -0.1, "earthsearch:boa_offset_applied": True}, 0.3),
    ],
)
def test_offset_of_cogs(tmp_path, properties, reflectance):
    scene = open_scene(Source(uri=str(cogs(tmp_path / "a", **properties))))
    np.testing.assert_allclose(whole(scene), reflectance, rtol=1e-6)


def test_an_offset_in_doubt_is_asked_for(tmp_path):
    folder = cogs(tmp_path / "a", **{"s2:processing_baseline": "05.09"})
    assert sentinel2.accepts(str(folder))
    with pytest.raises(InputRejected, match=r"give msi\.offset=-0\.1, or msi\.offset=0"):
        open_scene(Source(uri=str(folder)))
    np.testing.assert_allclose(whole(open_scene(Source(uri=str(folder), offset=-0.1))), 0.2, rtol=1e-6)
