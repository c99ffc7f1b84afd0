"""What other people's readers find in a product."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import odc.geo.xr  # noqa: F401 (registers .odc)
import pystac
import pytest
import rasterio
import rioxarray  # noqa: F401 (registers .rio)
import xarray as xr
from odc.geo.geobox import GeoBox
from PIL import Image
from pyproj import CRS
from rasterio.enums import ColorInterp
from rio_cogeo.cogeo import cog_validate

from hyperfuse.pipeline.composite import true_color
from hyperfuse.pipeline.job import store
from hyperfuse.pipeline.products.draft import BadProduct, Draft
from hyperfuse.pipeline.products.publish import publish
from hyperfuse.pipeline.products.thumbnail import thumbnail
from hyperfuse.pipeline.products.writers import writer
from tests.pipeline.conftest import HSI_TIME, SCALE, truth

Make = Callable[..., Draft]
CASES = {
    "utm, ragged rim": {},
    "one chunk": {"shape": (20, 24)},
    "one band": {"n_bands": 1},
    "geographic": {"crs": "EPSG:4326"},
    "float": {"dtype": "float32", "quantity": "radiance"},
    "overviews, chunks off the tiles of the COG": {"shape": (300, 530), "n_bands": 3, "chunk": 100, "core": 200},
    "no times": {"hsi_time": None, "msi_time": None},
}


@pytest.fixture(params=CASES.values(), ids=CASES.keys())
def draft(request: pytest.FixtureRequest, finished_job: Make) -> Draft:
    return finished_job(**request.param)


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the network was asked for")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def test_every_reader_finds_the_same_cube(draft: Draft) -> None:
    job, facts = draft.job, draft.provenance.product
    product = publish(draft)
    geobox, bands = job.grids.product, job.bands
    wanted = truth(len(bands), tuple(geobox.shape))
    assert product.zarr is not None
    assert product.cog is not None

    dataset = xr.open_zarr(product.zarr)
    cube = dataset["reflectance"]
    assert cube.dims == ("wavelength", "y", "x")
    assert cube.dtype.kind == "f"
    np.testing.assert_allclose(cube.values, wanted, atol=0.5001 * SCALE if facts.dtype == "int16" else 0)
    np.testing.assert_array_equal(np.isnan(cube.values), np.isnan(wanted))
    assert cube.odc.geobox.crs == geobox.crs
    assert cube.odc.geobox.shape == geobox.shape
    assert cube.odc.geobox.affine.almost_equals(geobox.affine, 1e-9)
    assert CRS(cube.rio.crs) == CRS(geobox.crs.proj)
    assert cube.rio.transform() == geobox.affine
    assert cube.rio.encoded_nodata == -32768 if facts.dtype == "int16" else np.isnan(cube.rio.encoded_nodata)
    np.testing.assert_array_equal(dataset["wavelength"], bands.center_nm)
    np.testing.assert_array_equal(dataset["fwhm"], bands.fwhm_nm)
    np.testing.assert_array_equal(dataset["source_band"], bands.source_band)
    assert dataset["good_band"].values.all()
    assert set(dataset.data_vars) == {"reflectance"}

    with rasterio.open(product.cog) as source:
        assert CRS(source.crs.to_wkt()) == CRS(geobox.crs.proj)
        assert source.transform == geobox.affine
        assert source.dtypes == (facts.dtype,) * len(bands)
        assert source.nodata == facts.nodata or np.isnan(source.nodata)
        assert set(source.scales) == {facts.scale}
        microns = [float(source.tags(i, ns="IMAGERY")["CENTRAL_WAVELENGTH_UM"]) for i in source.indexes]
        np.testing.assert_allclose(microns, bands.center_nm / 1000, rtol=1e-11)
        assert set(source.units) == {facts.unit}
        assert source.descriptions == tuple(f"{nm:.1f} nm" for nm in bands.center_nm)
        stored = source.read()
        physical = np.where(source.read_masks() > 0, stored * np.array(source.scales)[:, None, None], np.nan)
    np.testing.assert_array_equal(stored, store.open_array(product.zarr / "reflectance")[...])
    np.testing.assert_allclose(physical, cube.values, rtol=1e-12)
    valid, errors, warnings = cog_validate(str(product.cog), quiet=True)
    assert (valid, errors, warnings) == (True, [], [])


def test_geobox_survives_odc_exactly(finished_job: Make) -> None:
    draft = finished_job()
    product = publish(draft)
    assert product.open()["reflectance"].odc.geobox == draft.job.grids.product


def test_time_units_and_names(finished_job: Make) -> None:
    product = publish(finished_job())
    dataset = product.open()
    assert dataset["time"].values == np.datetime64(HSI_TIME.replace(tzinfo=None), "ns")
    cube = dataset["reflectance"]
    assert cube.attrs["standard_name"] == "surface_bidirectional_reflectance"
    assert cube.attrs["units"] == "1"
    assert dataset["x"].attrs["units"] == "m"
    assert dataset["wavelength"].attrs["units"] == "nm"
    assert dataset.sel(wavelength=640, method="nearest")["wavelength"] == pytest.approx(642.857, abs=1e-3)


def test_geographic_axes_are_named_so(finished_job: Make) -> None:
    dataset = publish(finished_job(crs="EPSG:4326")).open()
    names = {axis: (dataset[axis].attrs["standard_name"], dataset[axis].attrs["units"]) for axis in "xy"}
    assert names == {"x": ("longitude", "degrees_east"), "y": ("latitude", "degrees_north")}


def test_only_reflectance_is_called_reflectance(finished_job: Make) -> None:
    cube = publish(finished_job(quantity="radiance", dtype="float32")).open()["reflectance"]
    assert "standard_name" not in cube.attrs
    assert cube.attrs["units"] == "W m-2 sr-1 nm-1"
    assert cube.attrs["long_name"] == "radiance"


def test_metadata_is_strict_json(finished_job: Make) -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    product = publish(finished_job())
    assert product.zarr is not None
    attributes = json.loads((product.zarr / "zarr.json").read_text(), parse_constant=refuse)["attributes"]
    assert attributes["proj:code"] == "EPSG:32633"
    assert [entry["name"] for entry in attributes["zarr_conventions"]] == ["proj", "spatial", "proj:", "spatial:"]
    assert attributes["spatial:transform"] == [10.0, 0.0, 500000.0, 0.0, -10.0, 5000000.0]
    assert attributes["coordinates"] == "spatial_ref"
    assert attributes["hrhsi"]["valid_fraction"] == pytest.approx(0.96)
    array = json.loads((product.zarr / "reflectance" / "zarr.json").read_text(), parse_constant=refuse)
    assert array["fill_value"] == array["attributes"]["_FillValue"] == -32768
    assert [codec["name"] for codec in array["codecs"]] == ["bytes", "zstd"]
    assert array["codecs"][1]["configuration"]["checksum"] is True


def test_a_crs_without_a_code_is_kept(finished_job: Make) -> None:
    crs = "+proj=laea +lat_0=47.1 +lon_0=11.3 +x_0=0 +y_0=0 +ellps=GRS80 +units=m"
    geobox = GeoBox.from_bbox((-450, -350, 450, 350), crs, shape=(70, 90), tight=True)
    product = publish(finished_job(geobox=geobox))
    item = json.loads(product.item.read_text()) if product.item else {}
    assert item["properties"]["proj:code"] is None
    assert "Lambert Azimuthal" in item["properties"]["proj:wkt2"]
    assert product.open()["reflectance"].odc.geobox.crs == geobox.crs


def test_true_color_for_viewers(finished_job: Make) -> None:
    draft = finished_job(n_bands=40)
    bands = draft.job.bands
    colors = true_color(bands)
    assert colors is not None
    np.testing.assert_allclose(bands.center_nm[list(colors)], [665, 560, 490], atol=8)
    product = publish(draft)
    with rasterio.open(product.cog) as source:
        found = [source.colorinterp[i] for i in colors]
    assert found == [ColorInterp.red, ColorInterp.green, ColorInterp.blue]


@pytest.mark.parametrize("span", [(450.0, 900.0), (1500.0, 2400.0)])
def test_thumbnail_shows_nodata_as_transparent(finished_job: Make, tmp_path: Path, span: tuple[float, float]) -> None:
    draft = finished_job(shape=(600, 1100), n_bands=8, chunk=64, core=512, span_nm=span)
    thumbnail(draft.job, tmp_path / "t.png")
    image = np.asarray(Image.open(tmp_path / "t.png"))
    assert image.shape == (200, 367, 4)
    opaque = np.isfinite(truth(8, (600, 1100))[0, ::3, ::3])
    np.testing.assert_array_equal(image[..., 3] > 0, opaque)
    assert image[opaque][:, :3].std() > 30


@pytest.mark.usefixtures("no_network")
def test_item_validates_offline(draft: Draft) -> None:
    product = publish(draft)
    assert product.item is not None
    item = pystac.Item.from_file(str(product.item))
    writer("stac").check(product.path, draft.provenance.product)
    assert item.id == "fused"
    names = {"zarr", "fused", "style", "quality-flags", "thumbnail", "provenance", "prov", "ro-crate", "manifest"}
    assert set(item.assets) == names
    assert (item.datetime is None) == (draft.job.record.hsi.time is None)
    record: dict[str, Any] = json.loads(product.item.read_text())
    for key in ("fused", "zarr"):
        asset = record["assets"][key]
        assert asset["proj:shape"] == list(draft.job.grids.product.shape)
        microns = [band["eo:center_wavelength"] for band in asset["bands"]]
        np.testing.assert_allclose(microns, draft.job.bands.center_nm / 1000, rtol=1e-11)
        assert {band["raster:scale"] for band in asset["bands"]} == {draft.provenance.product.scale}
    if draft.job.record.hsi.time is None:
        assert record["properties"]["hrhsi:time_unknown"] is True


def test_lost_samples_are_noticed(finished_job: Make) -> None:
    draft = finished_job()
    array = store.open_array(draft.job.fused, write=True)
    array[:, :32, 32:64] = -32768
    with pytest.raises(BadProduct, match="valid samples"):
        publish(draft)
    assert not draft.job.config.output.exists()
