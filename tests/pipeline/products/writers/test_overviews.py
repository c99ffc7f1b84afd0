"""Overviews: a naive loop as the oracle, readers that open every level, and damage that is named."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import odc.geo.xr  # noqa: F401 (registers .odc)
import pytest
import rioxarray  # noqa: F401 (registers .rio)
import xarray as xr
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox
from pyproj import CRS

from hyperfuse.pipeline.config import OutputConfig
from hyperfuse.pipeline.geometry.box import Box
from hyperfuse.pipeline.job import store
from hyperfuse.pipeline.products.draft import BadProduct, Draft
from hyperfuse.pipeline.products.product import Product
from hyperfuse.pipeline.products.publish import publish, verify
from hyperfuse.pipeline.products.writers import writer
from hyperfuse.pipeline.products.writers._overviews import halved, levels
from tests.pipeline.conftest import build_job, truth

CASES = {"utm": {}, "geographic": {"crs": "EPSG:4326"}, "float32": {"dtype": "float32"}}


@pytest.fixture(scope="module", params=CASES.values(), ids=CASES.keys())
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Draft, Product]:
    """Two levels, with chunks far smaller than a level and sizes that are odd at every level."""
    draft = build_job(
        tmp_path_factory.mktemp("overviews"), shape=(299, 517), n_bands=5, overviews=True, chunk=64, **request.param
    )
    return draft, publish(draft)


def naive(samples: np.ndarray, nodata: int | None) -> np.ndarray:
    bands, height, width = samples.shape
    result = np.full((bands, -(-height // 2), -(-width // 2)), np.nan if nodata is None else nodata, samples.dtype)
    for index in np.ndindex(result.shape):
        band, row, col = index
        cell = samples[band, 2 * row : 2 * row + 2, 2 * col : 2 * col + 2].ravel()
        good = cell[np.isfinite(cell) if nodata is None else cell != nodata].astype(np.float64)
        if good.size and 2 * good.size >= cell.size:
            result[index] = good.mean() if nodata is None else np.rint(good.mean())
    return result


@given(height=st.integers(1, 7), width=st.integers(1, 7), seed=st.integers(0, 99), packed=st.booleans())
def test_means_are_those_of_a_naive_loop(height: int, width: int, seed: int, *, packed: bool) -> None:
    rng = np.random.default_rng(seed)
    samples = rng.integers(-50, 20_000, (2, height, width)).astype(np.int16)
    samples[rng.random(samples.shape) < 0.4] = -32768
    if packed:
        np.testing.assert_array_equal(halved(samples, -32768), naive(samples, -32768))
    else:
        values = np.where(samples == -32768, np.nan, samples / 7).astype(np.float32)
        np.testing.assert_allclose(halved(values, None), naive(values, None), rtol=1e-6)


def test_levels_are_the_halved_product(case: tuple[Draft, Product]) -> None:
    draft, product = case
    root = product.path / "fused_overviews.zarr"
    expected = store.open_array(product.zarr / "reflectance")[...]
    nodata = -32768 if expected.dtype == np.int16 else None
    for level, shape in ((1, (150, 259)), (2, (75, 130))):
        expected = halved(expected, nodata)
        np.testing.assert_array_equal(store.open_array(root / str(level) / "reflectance")[...], expected)
        with xr.open_zarr(root, group=str(level)) as dataset:
            cube = dataset["reflectance"]
            assert cube.shape == (5, *shape)
            np.testing.assert_array_equal(dataset["wavelength"], draft.job.bands.center_nm)
            geobox = draft.job.grids.product
            wanted = GeoBox(shape, geobox.affine @ Affine.scale(2**level), geobox.crs)
            for found in (cube.odc.geobox, GeoBox(cube.rio.shape, cube.rio.transform(), cube.rio.crs.to_wkt())):
                assert CRS(found.crs.proj) == CRS(wanted.crs.proj)
                assert found.shape == wanted.shape
                assert found.affine.almost_equals(wanted.affine, 1e-9 * abs(wanted.affine.c))
            # The mean of the scene stays, but for what is at the rim of the hole.
            assert float(cube.mean()) == pytest.approx(float(np.nanmean(truth(5, (299, 517)))), rel=0.01)


def test_valid_area_neither_grows_nor_shrinks(case: tuple[Draft, Product]) -> None:
    _, product = case
    whole = np.isfinite(truth(1, (299, 517))[0])
    with xr.open_datatree(product.path / "fused_overviews.zarr", engine="zarr") as tree:
        assert set(tree.children) == {"1", "2"}
        for level in ("1", "2"):
            valid = np.isfinite(tree[level]["reflectance"].values[0])
            assert valid.mean() == pytest.approx(whole.mean(), abs=0.01)
            assert not valid[0, 0]


def test_a_constant_stays_constant() -> None:
    samples = np.full((3, 9, 11), 1234, np.int16)
    samples[:, 2:4, 2:4] = -32768
    assert set(np.unique(halved(samples, -32768))) == {1234, -32768}


def test_verify_and_item_know_them(case: tuple[Draft, Product]) -> None:
    _, product = case
    assert verify(product.path) == product
    item = json.loads(product.item.read_text())
    asset = item["assets"]["overviews"]
    assert asset["href"] == "./fused_overviews.zarr"
    assert asset["roles"] == ["overview"]


def test_the_product_itself_holds_no_other_cube(case: tuple[Draft, Product]) -> None:
    """GDAL opens the product's group as one image only while it holds a single cube."""
    _, product = case
    arrays = {path.parent.name: store.open_array(path.parent) for path in product.zarr.glob("*/zarr.json")}
    assert [name for name, array in arrays.items() if len(array.shape) > 1] == ["reflectance"]


def test_a_missing_chunk_of_a_level_is_named(tmp_path: Path) -> None:
    product = publish(build_job(tmp_path, overviews=True, formats=("zarr",)))
    chunk = product.path / "fused_overviews.zarr" / "1" / "reflectance" / "c" / "0" / "1" / "0"
    chunk.unlink()
    with pytest.raises(BadProduct, match=r"fused_overviews\.zarr/1"):
        writer("zarr").check(product.path, product.facts)


def test_small_products_have_one_level_and_blocks_line_up() -> None:
    grid = GeoBox((70, 90), Affine(10, 0, 0, 0, -10, 0), "EPSG:32633")
    assert [level.shape for level in levels(grid)] == [(35, 45)]
    big = GeoBox((5000, 100), grid.affine, grid.crs)
    assert [level.shape[0] for level in levels(big)] == [2500, 1250, 625, 313, 157]
    assert Box(y0=0, y1=1, x0=0, x1=1).times(2).shape == (2, 2)


def test_overviews_need_the_format_zarr() -> None:
    with pytest.raises(ValueError, match=r"add it to publish\.formats"):
        OutputConfig(formats=("cog", "stac"), overviews=True)


def test_geozarr_toolkit_accepts_product_and_overviews(case: tuple[Draft, Product]) -> None:
    toolkit = pytest.importorskip("geozarr_toolkit", reason="geozarr-toolkit is not installed; it wants Python 3.12")
    import zarr

    _, product = case
    root = product.path / "fused_overviews.zarr"
    groups = [product.zarr, root, root / "1", root / "2"]
    for path in groups:
        found = toolkit.validate_group(zarr.open_group(str(path), mode="r"))
        assert [message for messages in found.values() for message in messages] == [], path.name
    attributes = [toolkit.detect_conventions(dict(zarr.open_group(str(path)).attrs)) for path in groups]
    assert "multiscales" in attributes[1]
    assert {"proj", "spatial"} <= set(attributes[0]) & set(attributes[2])
