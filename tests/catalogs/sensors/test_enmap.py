"""The EnMAP reader: planted values through every packaging, and the metadata of real products."""

from __future__ import annotations

import zipfile
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from pyproj import Transformer

from hyperfuse.catalogs.errors import InputRejected, UsageError
from hyperfuse.catalogs.formats.markup import lonlat
from hyperfuse.catalogs.scene import Cube
from hyperfuse.catalogs.sensors import Source, enmap, open_scene
from tests import DATA
from tests.products import enmap as built
from tests.products.packing import planted, tarred, zipped
from tests.synthetic import whole

ORDER = np.argsort(built.CENTER_NM)
METADATA = DATA / "enmap_product_metadata"


@pytest.fixture(scope="module")
def product(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built.enmap(tmp_path_factory.mktemp("enmap") / "ENMAP.HSI.L2A")


def expected() -> np.ndarray:
    """Reflectance by wavelength, NaN where background or a mask of the default choice lies."""
    values = planted(6, *built.SHAPE) * built.GAIN + np.array(built.OFFSET)[:, None, None]
    values[built.DEAD] = 0
    values[:, 0] = np.nan
    for word in ("CLOUD", "CLOUDSHADOW", "CIRRUS"):
        values[(slice(None), *built.MASKED[word])] = np.nan
    return values[ORDER]


@pytest.mark.parametrize("packing", ["folder", "metadata file", "zip", "stored zip", "tar", "tar.gz"])
def test_every_packaging_gives_the_planted_values(product, tmp_path, packing):
    place = {
        "folder": lambda: product,
        "metadata file": lambda: product / f"{built.PREFIX}METADATA.XML",
        "zip": lambda: zipped(product, tmp_path / "a.zip"),
        "stored zip": lambda: zipped(product, tmp_path / "a.zip", compression=zipfile.ZIP_STORED),
        "tar": lambda: tarred(product, tmp_path / "a.tar"),
        "tar.gz": lambda: tarred(product, tmp_path / "a.tar.gz"),
    }[packing]()
    scene = open_scene(Source(uri=str(place)))
    assert scene.sensor == "enmap"
    assert isinstance(scene.cube, Cube)
    assert tuple(scene.geobox.affine) == tuple(built.GRID)
    assert scene.geobox.crs.epsg == 32632
    assert (scene.quantity, scene.unit) == ("reflectance", "1")
    assert scene.time == datetime(2024, 5, 1, 10, 20, 30, 500000, tzinfo=UTC)
    np.testing.assert_allclose(whole(scene), expected(), rtol=1e-6)
    part = (slice(3, 9), slice(2, 11))
    np.testing.assert_array_equal(scene.read(part, [4, 1]), whole(scene)[[4, 1]][:, *part])


def test_overlap_is_sorted_and_the_dead_band_marked(product):
    bands = open_scene(Source(uri=str(product))).bands
    np.testing.assert_array_equal(bands.center_nm, np.sort(built.CENTER_NM))
    np.testing.assert_array_equal(bands.source_band, ORDER)
    np.testing.assert_array_equal(bands.fwhm_nm, np.array(built.FWHM_NM)[ORDER])
    assert list(bands.center_nm[~bands.good]) == [built.CENTER_NM[built.DEAD]]


@pytest.mark.parametrize(
    ("mask", "words"),
    [("none", []), ("haze,snow", ["HAZE", "SNOW"]), ("cloud", ["CLOUD"]), ("water", ["WATER"])],
)
def test_mask_is_the_users_choice(product, mask, words):
    places = built.MASKED | {"WATER": built.WATER}
    holes = np.isnan(whole(open_scene(Source(uri=str(product), mask=mask)))[0])
    assert holes[0].all()  # background is never valid
    assert {(row, col) for row, col in np.argwhere(holes) if row} == {places[word] for word in words}


def test_l1c_is_radiance(tmp_path):
    scene = open_scene(Source(uri=str(built.enmap(tmp_path / "a", level="L1C"))))
    assert (scene.quantity, scene.unit) == ("radiance", "W m-2 sr-1 nm-1")


def test_names_may_vary(tmp_path):
    folder = built.enmap(tmp_path / "a", cog="_COG", suffix="tif")
    (folder / f"{built.PREFIX}METADATA.XML").rename(folder / f"{built.PREFIX}metadata.xml")
    np.testing.assert_allclose(whole(open_scene(Source(uri=str(folder)))), expected(), rtol=1e-6)


def test_a_missing_mask_is_told(tmp_path):
    folder = built.enmap(tmp_path / "a")
    (folder / f"{built.PREFIX}QL_QUALITY_CIRRUS.TIF").unlink()
    scene = open_scene(Source(uri=str(folder)))
    assert "no QL_QUALITY_CIRRUS in the product: cirrus is not masked" in scene.notes
    assert np.isfinite(whole(scene)[(0, *built.MASKED["CIRRUS"])])


def test_contradictions_are_refused(tmp_path):
    cases = {
        "L1B": (built.metadata("L1B"), "EnMAP L1B has no map grid"),
        "zone": (built.metadata().replace("UTM_Zone32", "UTM_Zone33"), "METADATA.XML says EPSG:32633"),
        "torn": (built.metadata()[:-20], "not well-formed XML"),
        "bands": (
            built.metadata().replace("bandCharacterisation", "bandCharacterization"),
            "has 6 bands, .* describes 0",
        ),
        "entity": (
            '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]>' + built.metadata().partition("?>")[2],
            "declares entities or a document type",
        ),
        "gain": (
            built.metadata().replace("<GainOfBand>0.0001", "<GainOfBand>much", 1),
            "GainOfBand is 'much', expected a number",
        ),
    }
    for name, (xml, sentence) in cases.items():
        folder = built.enmap(tmp_path / name, xml=xml)
        assert enmap.accepts(str(folder)), name
        with pytest.raises(InputRejected, match=sentence):
            open_scene(Source(uri=str(folder)))


def test_an_image_off_its_corners_is_refused(tmp_path):
    with pytest.raises(InputRejected, match="expected inside"):
        open_scene(Source(uri=str(built.enmap(tmp_path / "a", shift_px=3.0))))


def test_two_products_in_a_folder_are_told_apart(tmp_path):
    built.enmap(tmp_path / "both" / "one")
    built.enmap(tmp_path / "both" / "two")
    with pytest.raises(InputRejected, match="holds 2 EnMAP products"):
        open_scene(Source(uri=str(tmp_path / "both")))
    one = open_scene(Source(uri=str(tmp_path / "both" / "one" / f"{built.PREFIX}METADATA.XML")))
    assert one.digest == open_scene(Source(uri=str(tmp_path / "both" / "one"))).digest


def test_constants_of_the_product_are_not_overridden(product):
    with pytest.raises(UsageError, match="takes scale from the product"):
        open_scene(Source(uri=str(product), scale=1e-4))
    with pytest.raises(UsageError, match="there is no flag 'fog'"):
        open_scene(Source(uri=str(product), mask="fog"))


def test_a_vrt_named_tif_is_refused(tmp_path):
    folder = built.enmap(tmp_path / "a")
    image = folder / f"{built.PREFIX}SPECTRAL_IMAGE.TIF"
    image.write_text(f"<VRTDataset rasterXSize='30' rasterYSize='24'><SRS>{built.CRS}</SRS></VRTDataset>")
    with pytest.raises(InputRejected, match="expected GeoTIFF or JPEG 2000"):
        open_scene(Source(uri=str(folder)))


@pytest.mark.skipif(not METADATA.is_dir(), reason="real metadata are absent: enmap_product_metadata (see the README)")
@pytest.mark.parametrize(("level", "gain"), [("L1C", 2.45729411573e-06), ("L2A", 1e-4)])
def test_real_metadata(tmp_path, level, gain):
    """Real XML; its rasters are empty files, so that the product is recognized and its image refused."""
    path = METADATA / f"enmap_{level}_gtif_qualification.zip"
    assert enmap.accepts(str(path))
    with pytest.raises(InputRejected, match=r"SPECTRAL_IMAGE\.TIF: is empty \(0 bytes\)"):
        open_scene(Source(uri=str(path)))
    package = enmap.open_package(str(path))
    member = package.one("*METADATA.XML")
    bands = enmap._bands(package.xml(member), member.label)
    assert len(bands.center_nm) == 218
    assert (bands.center_nm[0], bands.fwhm_nm[0], bands.gain[0]) == (423.03, 6.93, gain)
    assert bands.good.all()


@pytest.mark.skipif(not METADATA.is_dir(), reason="real metadata are absent: enmap_product_metadata (see the README)")
def test_real_class_layer_lies_on_the_corners_of_its_metadata():
    """The swath touches all four edges of its grid: the outermost corners lie within a pixel of the grid's edges."""
    package = enmap.open_package(str(METADATA / "enmap_L2A_gtif_qualification.zip"))
    member = package.one("*QL_QUALITY_CLASSES.TIF")
    image = enmap.open_member(package.in_place([member])[member.name])
    root = package.xml(package.one("*METADATA.XML"))
    corners = [lonlat(p, member.label) for p in root.iterfind("base/spatialCoverage/boundingPolygon/point")]
    enmap.refuse_outside(image.affine, image.samples.shape[1:], "EPSG:32632", corners, Path("real"))
    to_utm = Transformer.from_crs(4326, 32632, always_xy=True)
    at = np.array([~image.affine @ to_utm.transform(lon, lat) for lon, lat in corners])
    _, height, width = image.samples.shape
    np.testing.assert_allclose(at.min(axis=0), [0, 0], atol=1)
    np.testing.assert_allclose(at.max(axis=0), [width, height], atol=1)
