"""The reader matrix: what each package finds in each format of a product, by its default options.

`zarr` and `cog` are read in `test_writers` too; here every format meets every package that claims to read it.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import netCDF4
import numpy as np
import odc.geo.xr  # noqa: F401 (registers .odc)
import pystac
import pytest
import rasterio
import rioxarray
import xarray as xr
from odc.geo.geobox import GeoBox
from pyproj import CRS

from hyperfuse.catalogs.sensors import Source, open_scene
from hyperfuse.pipeline.formats import available
from hyperfuse.pipeline.job import store
from hyperfuse.pipeline.products.draft import BadProduct, Draft
from hyperfuse.pipeline.products.product import Product
from hyperfuse.pipeline.products.publish import publish, verify
from hyperfuse.pipeline.products.writers import writer
from tests.checkers import assert_follows_cf
from tests.pipeline.conftest import HSI_TIME, SCALE, build_job, truth

CASES = {
    "utm": {},
    "geographic": {"crs": "EPSG:4326"},
    "radiance in float32": {"dtype": "float32", "quantity": "radiance"},
    "wider than a chunk": {"shape": (70, 300), "n_bands": 40},
}


@pytest.fixture(scope="module", params=CASES.values(), ids=CASES.keys())
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Draft, Product]:
    draft = build_job(tmp_path_factory.mktemp("matrix"), formats=available(), **request.param)
    return draft, publish(draft)


def expected(draft: Draft) -> tuple[np.ndarray, float]:
    """Physical values, and by how much packing may change them."""
    geobox = draft.job.grids.product
    packed = draft.provenance.product.dtype == "int16"
    return truth(len(draft.job.bands), tuple(geobox.shape)), 0.5001 * SCALE if packed else 0.0


def same_grid(found: GeoBox, draft: Draft) -> bool:
    wanted = draft.job.grids.product
    return (
        CRS(found.crs.proj) == CRS(wanted.crs.proj)
        and found.shape == wanted.shape
        and found.affine.almost_equals(wanted.affine, 1e-9 * abs(wanted.affine.c))
    )


@pytest.mark.parametrize("fmt", ["zarr", "netcdf"])
def test_xarray_rioxarray_and_odc_geo(case: tuple[Draft, Product], fmt: str) -> None:
    draft, product = case
    with xr.open_zarr(product.zarr) if fmt == "zarr" else xr.open_dataset(product.netcdf) as dataset:
        cube, (values, atol) = dataset["reflectance"], expected(draft)
        np.testing.assert_allclose(cube.values, values, atol=atol)
        np.testing.assert_array_equal(dataset["wavelength"], draft.job.bands.center_nm)
        np.testing.assert_array_equal(dataset["fwhm"], draft.job.bands.fwhm_nm)
        assert dataset["good_band"].values.all()
        assert dataset["time"].values == np.datetime64(HSI_TIME.replace(tzinfo=None), "ns")
        assert CRS(cube.rio.crs) == CRS(draft.job.grids.product.crs.proj)
        np.testing.assert_allclose(cube.rio.transform(), draft.job.grids.product.affine, rtol=1e-12)
        assert same_grid(cube.odc.geobox, draft)


@pytest.mark.parametrize("fmt", ["cog", "envi"])
def test_rasterio_and_rioxarray(case: tuple[Draft, Product], fmt: str) -> None:
    draft, product = case
    path, (values, atol) = getattr(product, fmt), expected(draft)
    with rasterio.open(path) as source:
        assert same_grid(GeoBox(source.shape, source.transform, source.crs.to_wkt()), draft)
        shown = np.where(source.read_masks() > 0, source.read() * np.array(source.scales)[:, None, None], np.nan)
        centers = [float(source.tags(i)["wavelength"]) for i in source.indexes]
        microns = [float(source.tags(i, ns="IMAGERY")["CENTRAL_WAVELENGTH_UM"]) for i in source.indexes]
    np.testing.assert_allclose(shown, values, atol=atol, rtol=1e-6)
    np.testing.assert_allclose(centers, draft.job.bands.center_nm, rtol=1e-11)
    # What GDAL derives from an ENVI header it rounds to a nanometer.
    np.testing.assert_allclose(
        microns, draft.job.bands.center_nm / 1000, rtol=0, atol=5.1e-4 if fmt == "envi" else 1e-12
    )
    with rioxarray.open_rasterio(path, mask_and_scale=True) as cube:
        assert same_grid(cube.odc.geobox, draft)
        np.testing.assert_allclose(cube.values, values, atol=atol, rtol=1e-6)


def test_spectral_python(case: tuple[Draft, Product]) -> None:
    envi = pytest.importorskip("spectral.io.envi", reason="Spectral Python is not installed")
    draft, product = case
    values, atol = expected(draft)
    image = envi.open(str(product.envi.with_suffix(".hdr")))
    np.testing.assert_allclose(image.bands.centers, draft.job.bands.center_nm, rtol=1e-11)
    np.testing.assert_allclose(image.bands.bandwidths, draft.job.bands.fwhm_nm, rtol=1e-11)
    assert image.bands.band_unit == "Nanometers"
    row, col = values.shape[1] - 1, values.shape[2] - 1
    np.testing.assert_allclose(image.read_pixel(row, col), values[:, row, col], atol=max(atol, 1e-7))


def test_our_own_reader_takes_every_raster_back(case: tuple[Draft, Product]) -> None:
    """A product is an input like any other: `hyperfuse fuse product.img ...` must see the same spectra."""
    draft, product = case
    values, atol = expected(draft)
    for path in (product.cog, product.envi):
        scene = open_scene(Source(uri=str(path)))
        np.testing.assert_allclose(scene.bands.center_nm, draft.job.bands.center_nm, rtol=1e-6)
        height, width = scene.geobox.shape
        found = scene.read((slice(0, height), slice(0, width)))
        np.testing.assert_allclose(found, values, atol=max(atol, 1e-7), err_msg=path.name)


def test_netcdf_passes_a_cf_checker(case: tuple[Draft, Product], tmp_path: Path) -> None:
    assert case[1].netcdf is not None
    assert_follows_cf(case[1].netcdf, tmp_path)


def test_netcdf_is_chunked_compressed_and_checked(case: tuple[Draft, Product]) -> None:
    _, product = case
    with netCDF4.Dataset(product.netcdf) as dataset:
        filters = dataset["reflectance"].filters()
        assert (filters["zlib"], filters["shuffle"], filters["fletcher32"]) == (True, True, True)
        assert tuple(dataset["reflectance"].chunking()) == store.open_array(product.zarr / "reflectance").chunks


def test_item_lists_every_format(case: tuple[Draft, Product]) -> None:
    item = pystac.Item.from_file(str(case[1].item))
    data = {key for key, asset in item.assets.items() if "data" in asset.roles}
    assert data == {"zarr", "fused", "netcdf", "envi"}
    for key in data:
        assert len(item.assets[key].extra_fields["bands"]) == len(case[0].job.bands)


def test_odc_stac_reads_the_cog(case: tuple[Draft, Product]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its own dependencies
        stac = pytest.importorskip("odc.stac", reason="odc-stac is not installed")
        draft, product = case
        parsed = stac.parse_item(pystac.Item.from_file(str(product.item)))
    assert len([band for band in parsed.bands if band[0] == "fused"]) == len(draft.job.bands)


@pytest.mark.parametrize("fmt", ["netcdf", "envi", "cog"])
def test_product_opens_from_any_single_format(finished_job: Callable[..., Draft], fmt: str) -> None:
    draft = finished_job(formats=(fmt,))
    product = publish(draft)
    values, atol = expected(draft)
    with product.open() as dataset:
        np.testing.assert_allclose(dataset["reflectance"].values, values, atol=atol, rtol=1e-6)
    assert verify(product.path).path == product.path


@pytest.mark.parametrize("fmt", ["netcdf", "envi"])
def test_a_changed_sample_is_noticed(finished_job: Callable[..., Draft], fmt: str) -> None:
    product = publish(finished_job(formats=(fmt, "stac")))
    path = getattr(product, fmt)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x10
    path.write_bytes(content)
    with pytest.raises(BadProduct, match="has changed"):
        verify(product.path)


def test_a_netcdf_that_points_elsewhere_is_refused(finished_job: Callable[..., Draft], tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    draft = finished_job(formats=("netcdf",))
    product = publish(draft)
    with h5py.File(product.netcdf, "a") as file:
        file["elsewhere"] = h5py.ExternalLink(str(tmp_path / "other.nc"), "/secret")
    with pytest.raises(BadProduct, match="link to another file"):
        writer("netcdf").check(product.path, draft.provenance.product)


def test_a_short_envi_file_is_refused(finished_job: Callable[..., Draft]) -> None:
    draft = finished_job(formats=("envi",))
    product = publish(draft)
    with product.envi.open("r+b") as file:
        file.truncate(product.envi.stat().st_size - 100)
    with pytest.raises(BadProduct, match="bytes, expected"):
        writer("envi").check(product.path, draft.provenance.product)


def test_envi_header_says_how_to_show_it(finished_job: Callable[..., Draft]) -> None:
    product = publish(finished_job(formats=("envi",), n_bands=40))
    header = product.envi.with_suffix(".hdr").read_text()
    assert "default bands = {19, 10, 4}" in header
    assert "bbl = {1, 1," in header
    assert "reflectance scale factor = 10000" in header
    assert "map info = {UTM, 1, 1, 500000, 5000000, 10, 10, 33, North" in header
    assert "acquisition time = 2026-06-01T10:30:05.250000Z" in header
    assert str(product.path.parent) not in header
