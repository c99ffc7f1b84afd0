"""The PRISMA reader: planted counts in a file laid out as the listing of a real one."""

from __future__ import annotations

import itertools
import json
import zipfile
from datetime import UTC, datetime
from pathlib import Path

import h5py
import numpy as np
import pytest

from hyperfuse.catalogs.errors import InputRejected
from hyperfuse.catalogs.sensors import Source, open_scene, prisma
from tests import DATA
from tests.products import prisma as built
from tests.synthetic import whole

ORDER = np.argsort(built.CENTER_NM)
LISTING = DATA / "prisma_product_headers" / "PRS_L2D_STD_20240402102837_20240402102842_0001_he5.json"


@pytest.fixture(scope="module")
def product(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built.prisma(tmp_path_factory.mktemp("prisma") / "PRS_L2D_STD_20240402102837_20240402102842_0001.he5")


def expected() -> np.ndarray:
    """Reflectance of the acquired bands by wavelength."""
    parts = []
    for kind, taken in (("Vnir", slice(1, None)), ("Swir", slice(None))):
        low, high = built.LIMITS[kind]
        parts.append(low + built.counts(kind)[:, taken].transpose(1, 0, 2) * (high - low) / 65535)
    values = np.concatenate(parts)
    values[:, 0] = np.nan
    for name in ("invalid", "saturated", "fill"):
        values[(0, *built.ERRORS[name])] = np.nan
    return values[ORDER]


def test_values_by_the_scale_of_each_detector(product):
    scene = open_scene(Source(uri=str(product)))
    assert (scene.sensor, scene.quantity, scene.unit) == ("prisma", "reflectance", "1")
    assert scene.time == datetime(2024, 4, 2, 10, 28, 37, 932000, tzinfo=UTC)
    np.testing.assert_allclose(whole(scene), expected(), rtol=1e-5, atol=1e-7)
    part = (slice(2, 9), slice(4, 11))
    np.testing.assert_array_equal(scene.read(part, [5, 0, 3]), whole(scene)[[5, 0, 3]][:, *part])


def test_a_negative_sample_is_valid_and_at_the_lower_limit(product):
    band = int(np.flatnonzero(ORDER == 0)[0])
    assert whole(open_scene(Source(uri=str(product))))[(band, *built.ERRORS["negative"])] == built.LIMITS["Vnir"][0]


def test_descending_overlapping_bands_are_sorted_and_absent_ones_left_out(product):
    bands = open_scene(Source(uri=str(product))).bands
    np.testing.assert_allclose(bands.center_nm, [450, 700, 945, 990, 1600, 2490])
    assert bands.names == ("VNIR 4", "VNIR 3", "SWIR 3", "VNIR 2", "SWIR 2", "SWIR 1")
    assert bands.good.all()


@pytest.mark.parametrize(("corners", "told"), [("centers", "centers of the corner pixels"), ("edges", "outer corners")])
def test_half_a_pixel(tmp_path, corners, told):
    """The same grid, whichever of the two its corner coordinates mean."""
    scene = open_scene(Source(uri=str(built.prisma(tmp_path / "a.he5", corners=corners))))
    np.testing.assert_allclose(tuple(scene.geobox.affine)[:6], tuple(built.GRID)[:6], atol=0.5)
    assert scene.geobox.crs.epsg == built.EPSG
    assert told in scene.notes[0]


def test_in_a_zip(product, tmp_path):
    for compression in (zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED):
        with zipfile.ZipFile(tmp_path / f"{compression}.zip", "w", compression) as archive:
            archive.write(product, product.name)
        scene = open_scene(Source(uri=str(tmp_path / f"{compression}.zip")))
        np.testing.assert_allclose(whole(scene), expected(), rtol=1e-5, atol=1e-7)


def test_other_levels_are_refused_by_name(tmp_path):
    path = built.prisma(tmp_path / "a.he5", level="2C")
    assert prisma.accepts(str(path))
    with pytest.raises(InputRejected, match="holds PRS_L2C_HCO, PRS_L2C_PCO, expected PRS_L2D_HCO"):
        open_scene(Source(uri=str(path)))


def test_contradictions_are_refused(tmp_path):
    with pytest.raises(InputRejected, match=r"put row 4, column 13 3\.0 px away"):
        open_scene(Source(uri=str(built.prisma(tmp_path / "a.he5", shift_px=3))))
    path = built.prisma(tmp_path / "b.he5")
    with h5py.File(path, "r+") as file:
        file.attrs["Product_LRcorner_easting"] = np.float32([551000])
    with pytest.raises(InputRejected, match="do not fit 26 x 20 pixels"):
        open_scene(Source(uri=str(path)))
    with h5py.File(path, "r+") as file:
        del file.attrs["List_Fwhm_Vnir"]
    with pytest.raises(InputRejected, match="is not the product that it seems to be"):
        open_scene(Source(uri=str(path)))


def test_links_to_other_files_are_refused(product, tmp_path):
    path = built.prisma(tmp_path / "a.he5")
    with h5py.File(path, "r+") as file:
        swath = file["HDFEOS/SWATHS/PRS_L2D_HCO/Data Fields"]
        del swath["SWIR_Cube"]
        swath["SWIR_Cube"] = h5py.ExternalLink(str(product), "HDFEOS/SWATHS/PRS_L2D_HCO/Data Fields/SWIR_Cube")
    with pytest.raises(InputRejected, match="is a link to another file"):
        open_scene(Source(uri=str(path)))


@pytest.mark.skipif(not LISTING.is_file(), reason="real headers are absent: prisma_product_headers (see the README)")
def test_the_builder_is_laid_out_as_a_real_file(product):
    """Names, band counts and wavelengths of the listing of a real L2D file, against what the builder writes."""
    listing = json.loads(LISTING.read_text())
    listing = listing.get("expectedContent", listing)
    names = {band["name"].rstrip("0123456789").rstrip("_") for band in listing["bands"]}
    with h5py.File(product) as file:
        swath = file["HDFEOS/SWATHS/PRS_L2D_HCO"]
        ours = {name.rpartition("/")[2] for name in _datasets(swath)}
    for name in ("Solar_Zenith_Angle", "Latitude", "Longitude", "VNIR_PIXEL_L2_ERR_MATRIX", "SWIR_PIXEL_L2_ERR_MATRIX"):
        assert name in ours
        assert f"HCO_{name}" in names
    centers = [float(b["spectralWavelength"]) for b in listing["bands"] if "Rrs" in b["name"]]
    swir, vnir = centers[:171], centers[171:]
    assert len(vnir) == 63
    assert all(a > b for kind in (swir, vnir) for a, b in itertools.pairwise(kind))
    assert min(swir) < max(vnir)


def _datasets(group: h5py.Group) -> list[str]:
    names: list[str] = []
    group.visititems(lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) else None)
    return names
