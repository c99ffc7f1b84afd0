"""What changed between the dates of the two images: where it is, in the flags of the product and in its standard error."""

from __future__ import annotations

import numpy as np
import pytest
import rasterio
import xarray as xr

import hyperfuse
from hyperfuse.pipeline.products.product import Product
from tests.synthetic import scene

RECIPE = "size=240&ratio=4&bands=24&seed=3&snr_hsi=40&snr_msi=45"
PATCH = slice(96, 136), slice(60, 100)
"""Rows and columns (fine pixels) that another place of the image takes, in one image alone."""
SETTINGS = {
    "align.estimate": False, "publish.uncertainty": True, "publish.formats": ["zarr"], "publish.dtype": "float32", "quality.gate": "off",
}  # fmt: skip


def pair(*, is_changed: bool) -> tuple[xr.DataArray, xr.DataArray]:
    hsi, msi = (scene(role, RECIPE).to_xarray().load() for role in ("hsi", "msi"))
    if is_changed:
        later = msi.copy(deep=True)
        later[:, *PATCH] = msi.to_numpy()[:, 150:190, 150:190]
        msi = later
    return hsi, msi


@pytest.fixture(scope="module", params=["map_subspace", "gsa"])
def products(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Product, Product]:
    folder = tmp_path_factory.mktemp("changed")
    return tuple(
        hyperfuse.fuse(*pair(is_changed=there), method=request.param, output=folder / str(there), settings=SETTINGS)
        for there in (False, True)
    )  # type: ignore[return-value]


def flags(product: Product) -> np.ndarray:
    assert product.flags is not None
    with rasterio.open(product.flags) as file:
        assert file.dtypes == ("uint8",)
        with product.open() as cube:
            assert file.shape == cube["reflectance"].shape[1:]
            assert file.transform == cube.rio.transform()
            assert file.crs == cube.rio.crs
        assert "changed" in file.tags(1)["bit_1"]
        return file.read(1)


def test_nothing_is_flagged_where_nothing_changed(products: tuple[Product, Product]) -> None:
    assert not flags(products[0]).any()


def test_what_changed_is_flagged_and_hardly_more(products: tuple[Product, Product]) -> None:
    found = (flags(products[1]) & 1).astype(bool)
    patch = np.zeros_like(found)
    patch[PATCH] = True
    assert found[patch].mean() > 0.8
    near = np.zeros_like(found)
    near[PATCH[0].start - 8 : PATCH[0].stop + 8, PATCH[1].start - 8 : PATCH[1].stop + 8] = True
    assert not found[~near].any()


def test_the_standard_error_there_holds_the_errors(products: tuple[Product, Product]) -> None:
    """Against the truth: the errors in what changed are larger, and so is what the product says of them."""
    truth = scene("truth", RECIPE).read((slice(0, 240), slice(0, 240)), range(24))
    with products[0].open() as before, products[1].open() as after:
        error = np.abs(after["reflectance"].to_numpy() - truth)
        told = after["reflectance_standard_error"].to_numpy()
        unchanged = before["reflectance_standard_error"].to_numpy()
    inside = slice(PATCH[0].start + 8, PATCH[0].stop - 8), slice(PATCH[1].start + 8, PATCH[1].stop - 8)
    assert (told[:, *inside] > 1.2 * unchanged[:, *inside]).mean() > 0.8
    outside = np.ones(error.shape[1:], bool)
    outside[PATCH[0].start - 12 : PATCH[0].stop + 12, PATCH[1].start - 12 : PATCH[1].stop + 12] = False
    assert np.median(told[:, outside] / unchanged[:, outside]) < 1.3
    if after.attrs.get("method", "map_subspace") == "map_subspace":
        assert (error[:, *inside] < 1.645 * told[:, *inside]).mean() > 0.6
