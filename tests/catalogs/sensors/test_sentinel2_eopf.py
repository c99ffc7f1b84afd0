"""Sentinel-2 as EOPF Zarr, compared with what xarray decodes of the same folder."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import xarray as xr

from hyperfuse.catalogs.errors import InputRejected, UsageError
from hyperfuse.catalogs.sensors import Source, open_scene, sentinel2_eopf
from tests.products import sentinel2_eopf as built
from tests.products.sentinel2 import CLASS_AT
from tests.synthetic import whole


@pytest.fixture(params=[2, 3])
def product(request, tmp_path):
    return built.sentinel2_eopf(tmp_path, zarr_format=request.param)


def decoded(product, band):
    """Reflectance on the 10 m grid by xarray; nothing where the count is 0 or 65535."""
    group = f"measurements/reflectance/r{built.BANDS[band]}m"
    with xr.open_zarr(product, group=group, consolidated=False, mask_and_scale=False) as data:
        raw = data[band].to_numpy().astype(float)
        values = raw * data[band].attrs["scale_factor"] + data[band].attrs["add_offset"]
    values = np.where((raw == 0) | (raw == 65535), np.nan, values)
    return np.kron(values, np.ones((2, 2))) if built.BANDS[band] == 20 else values


def test_values_grid_and_metadata(product):
    assert sentinel2_eopf.accepts(str(product))
    scene = open_scene(Source(uri=str(product), mask="none"))
    assert (scene.sensor, scene.bands.names) == ("sentinel2_eopf", ("B02", "B04", "B08", "B8A", "B11"))
    for name, values in zip(scene.bands.names, whole(scene), strict=True):
        np.testing.assert_allclose(values, decoded(product, name.lower()), atol=1e-6)
    with xr.open_zarr(product, group="measurements/reflectance/r10m", consolidated=False) as data:
        assert scene.geobox.affine.c == float(data.x[0]) - 5
        assert scene.geobox.affine.f == float(data.y[0]) + 5
    assert scene.geobox.crs.epsg == 32632
    assert scene.bands.gsd_m is not None
    np.testing.assert_array_equal(scene.bands.gsd_m, [10, 10, 10, 20, 20])
    assert (scene.conditions.cloud_cover, scene.conditions.sun_elevation_deg) == (0.125, 51.0)
    assert str(scene.time).startswith("2024-05-01 10:30:11")


def test_the_scene_classification_masks(product):
    free, masked = (np.isfinite(whole(open_scene(Source(uri=str(product), mask=mask)))[0]) for mask in ("none", None))
    for value, (row, col) in CLASS_AT.items():
        block = (slice(2 * row, 2 * row + 2), slice(2 * col, 2 * col + 2))
        assert free[block].all()
        assert masked[block].all() == (value not in (1, 3, 8, 9, 10)), value


def test_bands_that_are_chosen(product):
    scene = open_scene(Source(uri=str(product), bands="B11,b8a"))
    assert (scene.bands.names, scene.geobox.affine.a) == (("B8A", "B11"), 20)
    with pytest.raises(UsageError, match="there is no band 'B03'; choose some of B02, B04, B08, B8A, B11"):
        open_scene(Source(uri=str(product), bands="B03"))


def test_the_digest_is_of_what_was_used(product):
    one = open_scene(Source(uri=str(product), bands="B02"))
    both = open_scene(Source(uri=str(product), bands="B02,B04"))
    assert one.digest != both.digest
    shutil.rmtree(product / "measurements/reflectance/r10m/b08")
    assert open_scene(Source(uri=str(product), bands="B02")).digest == one.digest


def test_what_is_not_whole(tmp_path):
    with pytest.raises(InputRejected, match=r"expected at most 0\.1; fetch the product again"):
        open_scene(Source(uri=str(built.sentinel2_eopf(tmp_path / "a", shift_px=0.5))))
    with pytest.raises(InputRejected, match="B02 has neither scale_factor nor add_offset"):
        open_scene(Source(uri=str(built.sentinel2_eopf(tmp_path / "b", packed=False))))
    product = built.sentinel2_eopf(tmp_path / "c")
    for band in ("b02", "b04", "b08"):
        shutil.rmtree(product / "measurements/reflectance/r10m" / band)
    with pytest.raises(InputRejected, match="holds no band of 10 m"):
        open_scene(Source(uri=str(product)))
