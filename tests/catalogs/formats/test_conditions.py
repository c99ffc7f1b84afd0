"""Cloud, sun and view: planted in every product, and as real metadata have them."""

from __future__ import annotations

import zipfile

import h5py
import pytest

from hyperfuse.catalogs.formats.conditions import conditions, tilt_deg
from hyperfuse.catalogs.formats.markup import parse_xml
from hyperfuse.catalogs.scene import Conditions
from hyperfuse.catalogs.sensors import Source, emit, enmap, open_scene
from tests import DATA
from tests.products import desis as desis_product
from tests.products import emit as emit_product
from tests.products import enmap as enmap_product
from tests.products import landsat as landsat_product
from tests.products import planetscope as planetscope_product
from tests.products import prisma as prisma_product
from tests.products import sentinel2 as sentinel2_product


def told(uri) -> tuple[float | None, ...]:
    """Cloud, sun elevation and azimuth, off-nadir angle, view azimuth."""
    found = open_scene(Source(uri=str(uri))).conditions
    return (
        found.cloud_cover, found.sun_elevation_deg, found.sun_azimuth_deg, found.off_nadir_deg, found.view_azimuth_deg
    )  # fmt: skip


def test_every_product_tells_what_was_planted(tmp_path):
    # 3 and 4 degrees along and across: the tangents make a right angle.
    assert told(enmap_product.enmap(tmp_path / "enmap")) == (0.12, 58.5, 151.25, pytest.approx(4.99417, abs=1e-5), None)
    assert told(desis_product.desis(tmp_path / "desis")) == (None, 58.5, 140.5, 12.25, None)
    assert told(landsat_product.landsat(tmp_path / "landsat")) == (0.035, 55.25, 199.5, 7.25, None)
    assert told(planetscope_product.planetscope(tmp_path / "planet")) == (0.04, 53.5, 144.5, 2.5, 277.5)
    assert told(sentinel2_product.sentinel2(tmp_path)) == (0.215, 53.25, 155.5, 8.25, 286.5)
    assert told(emit_product.emit(tmp_path / "emit", observed=True)) == (None, 50, 30, 20, 10)
    assert told(emit_product.emit(tmp_path / "alone")) == (None,) * 5


def test_prisma_without_attributes_tells_the_angles_of_its_middle(tmp_path):
    path = prisma_product.prisma(tmp_path / "p.he5")
    assert told(path) == (0.0625, 42.5, 158.25, 9.5, None)
    with h5py.File(path, "a") as file:
        for name in ("Sun_zenith_angle", "Sun_azimuth_angle", "Cloudy_pixels_percentage"):
            del file.attrs[name]
    assert told(path) == (None, 40.5, None, 9.5, None)


def test_what_is_no_number_or_out_of_range_is_unknown():
    assert (
        conditions(cloud_percent="-999", sun_elevation="n/a", sun_azimuth=720, off_nadir=float("nan")) == Conditions()
    )
    assert conditions(sun_zenith="100", sun_azimuth="-90") == Conditions(sun_elevation_deg=-10, sun_azimuth_deg=270)
    assert tilt_deg("1", None) is None
    assert tilt_deg(0, -30) == pytest.approx(30)
    with pytest.raises(ValueError, match="cloud_cover is 40, expected 0 to 1"):
        Conditions(cloud_cover=40)


@pytest.mark.skipif(not DATA.is_dir(), reason=f"no real metadata in {DATA}")
def test_real_metadata():
    archive = DATA / "enmap_product_metadata" / "enmap_L2A_gtif_qualification.zip"
    with zipfile.ZipFile(archive) as packed:
        name = next(n for n in packed.namelist() if n.upper().endswith("METADATA.XML"))
        found = enmap._conditions(parse_xml(packed.read(name), archive))
    # The file says elsewhere that the sun's zenith angle is 26.96 degrees.
    assert (found.cloud_cover, found.sun_elevation_deg) == (0.0, pytest.approx(90 - 26.961616))
    assert found.off_nadir_deg == pytest.approx(0.147, abs=1e-3)
    beside = DATA / "emit_l1b_l2a_fixture" / "EMIT_L2A_RFL_001_20220827T060753_9999999_999.nc"
    assert emit._conditions(beside).sun_elevation_deg == pytest.approx(54.3, abs=0.1)
    assert told(DATA / "landsat8_c2l2_fixture") == (0.9994, 64.45083205, 118.08241478, 0.001, None)
    assert told(DATA / "s2_l2a_cog_fixture")[:3] == (0.04051854, 48.293248430895, 147.671041914385)
