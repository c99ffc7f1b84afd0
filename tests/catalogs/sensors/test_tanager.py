"""Planet Tanager, by files of the published layout: place, samples, masks, time; against another library's reading."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import h5py
import numpy as np
import pytest
import rasterio
import xarray as xr
from affine import Affine

from hyperfuse.catalogs.errors import InputRejected
from hyperfuse.catalogs.sensors import Source, open_scene
from hyperfuse.flows.cli import main
from tests.products.tanager import CORNER, EPSG, STEP, TIME, WAVELENGTHS, basic, cube, ortho
from tests.synthetic import scene


def whole(uri: Path, **settings: str):
    opened = open_scene(Source(uri=str(uri), **settings))
    height, width = opened.geobox.shape
    return opened, opened.read((slice(0, height), slice(0, width)), range(len(opened.bands)))


def test_an_ortho_product_is_what_another_library_reads(tmp_path: Path) -> None:
    path = ortho(tmp_path / "20250608_091615_90_4001_ortho_sr_hdf5.h5", cube(9, 7))
    opened, values = whole(path, mask="none")
    with xr.open_dataset(path, engine="tanager") as other:
        theirs = other["reflectance"].to_numpy()
        x, y = other["x"].to_numpy(), other["y"].to_numpy()
        np.testing.assert_allclose(opened.bands.center_nm, other["wavelength"])
        np.testing.assert_allclose(opened.bands.fwhm_nm, other["fwhm"])
    theirs[:, 2, 3] = np.nan  # nodata_pixels
    np.testing.assert_array_equal(values, theirs)
    assert opened.sensor == "tanager"
    assert (opened.quantity, str(opened.geobox.crs)) == ("reflectance", f"EPSG:{EPSG}")
    np.testing.assert_allclose(opened.geobox.affine @ (0.5, 0.5), (x[0], y[0]))
    np.testing.assert_allclose(opened.geobox.affine @ (6.5, 8.5), (x[-1], y[-1]))
    assert opened.time == datetime.fromtimestamp(TIME, UTC)
    assert opened.bands.good.tolist() == [False] + [True] * 11
    assert opened.conditions.sun_elevation_deg == pytest.approx(58.5)


def test_clouds_and_cirrus_are_masked_by_default(tmp_path: Path) -> None:
    path = ortho(tmp_path / "a.h5", cube(9, 7))
    _, values = whole(path)
    gone = np.argwhere(np.isnan(values[3])).tolist()
    assert gone == [[0, 1], [2, 3], [4, 5], [6, 2]]
    with h5py.File(path, "a") as file:
        del file["HDFEOS/GRIDS/HYP/Data Fields/beta_cirrus_mask"]
    opened, _ = whole(path)
    assert any("no beta_cirrus_mask in the product: cirrus is not masked" in note for note in opened.notes)


def test_a_basic_product_shows_the_nearest_pixel(tmp_path: Path) -> None:
    """Oracle: the distances of all pixels to all cells."""
    affine, shape = Affine(STEP, 0, CORNER[0], 0, -STEP, CORNER[1]), (14, 13)
    turn = Affine.translation(2.0, 3.0) @ Affine.rotation(11.0) @ Affine.scale(0.97)
    path = basic(tmp_path / "a_basic_sr_hdf5.h5", cube(9, 8), affine, shape, turn)
    opened, values = whole(path, mask="none")
    col, row = np.meshgrid(np.arange(8) + 0.5, np.arange(9) + 0.5)
    at_x, at_y = turn @ (col.ravel(), row.ravel())
    cell_x, cell_y = np.meshgrid(np.arange(13) + 0.5, np.arange(14) + 0.5)
    apart = np.hypot(cell_x.ravel()[:, None] - at_x, cell_y.ravel()[:, None] - at_y)
    raw = cube(9, 8)
    raw[:, 0, 1] = raw[:, 2, 3] = np.nan
    expected = np.where(apart.min(axis=1) < 1.0, raw.reshape(12, -1)[:, apart.argmin(axis=1)], np.nan).reshape(
        12, 14, 13
    )
    np.testing.assert_array_equal(values, expected)
    assert np.isfinite(values[3]).sum() > 60
    assert opened.geobox.affine == affine
    assert any("up to half a pixel off" in note for note in opened.notes)


HARM: dict[str, tuple[Callable[[h5py.File], object], str]] = {
    "no wavelengths": (
        lambda f: f["HDFEOS/GRIDS/HYP/Data Fields/surface_reflectance"].attrs.pop("wavelengths"),
        "has no wavelengths",
    ),
    "no code": (lambda f: f["HDFEOS/GRIDS/HYP"].attrs.pop("epsg_code"), "tells no corners or no epsg_code"),
    "odd code": (lambda f: f["HDFEOS/GRIDS/HYP"].attrs.modify("epsg_code", 99), "its epsg_code is none"),
    "no corners": (lambda f: f.__delitem__("HDFEOS INFORMATION"), "tells no corners"),
    "few wavelengths": (
        lambda f: f["HDFEOS/GRIDS/HYP/Data Fields/surface_reflectance"].attrs.__setitem__(
            "wavelengths", WAVELENGTHS[:4]
        ),
        "has 12 bands and 4 wavelengths",
    ),
}


@pytest.mark.parametrize("harm", HARM)
def test_a_damaged_product_is_a_sentence(tmp_path: Path, harm: str) -> None:
    path = ortho(tmp_path / "a.h5", cube(9, 7))
    do, told = HARM[harm]
    with h5py.File(path, "a") as file:
        do(file)
    with pytest.raises(InputRejected, match=f"a.h5: .*{told}"):
        open_scene(Source(uri=str(path)))


def test_a_basic_product_without_places_asks_for_the_ortho_product(tmp_path: Path) -> None:
    affine = Affine(STEP, 0, CORNER[0], 0, -STEP, CORNER[1])
    path = basic(tmp_path / "a.h5", cube(9, 8), affine, (14, 13), Affine.identity())
    with h5py.File(path, "a") as file:
        file["HDFEOS/SWATHS/HYP/Geolocation Fields"].attrs["Planet_Ortho_Framing"] = "no json"
    with pytest.raises(InputRejected, match="order the ortho product"):
        open_scene(Source(uri=str(path)))


def test_a_scene_is_fused_to_ten_meters(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With an image of 10 m of the same ground; the truth is known."""
    recipe = "size=180&ratio=3&bands=12&seed=5&snr_hsi=0&snr_msi=0"
    coarse, fine, truth = (scene(role, recipe) for role in ("hsi", "msi", "truth"))
    own = coarse.read((slice(0, 60), slice(0, 60)), range(12))
    corner = (coarse.geobox.affine.c, coarse.geobox.affine.f)
    path = ortho(tmp_path / "t_ortho_sr_hdf5.h5", own, corner=corner, epsg=32633)
    with h5py.File(path, "a") as file:
        data = file["HDFEOS/GRIDS/HYP/Data Fields"]
        data["surface_reflectance"].attrs["wavelengths"] = coarse.bands.center_nm
        data["surface_reflectance"].attrs["fwhm"] = coarse.bands.fwhm_nm
        data["surface_reflectance"].attrs["good_wavelengths"] = np.ones(12)
        for mask in ("nodata_pixels", "beta_cloud_mask", "beta_cirrus_mask"):
            data[mask][...] = 0
    msi = str(tmp_path / "msi.tif")
    with rasterio.open(
        msi,
        "w",
        driver="GTiff",
        width=180,
        height=180,
        count=4,
        dtype="float32",
        crs="EPSG:32633",
        transform=fine.geobox.affine,
    ) as file:
        file.write(fine.read((slice(0, 180), slice(0, 180)), range(4)))
    told = ",".join(f"{nm:.1f}" for nm in fine.bands.center_nm)
    arguments = ["fuse", str(path), msi, "--output", str(tmp_path / "p"), "--set", f"msi.wavelengths={told}"]
    arguments += ["--set", "quality.gate=off", "--set", "publish.formats=[zarr]", "--set", "msi.quantity=reflectance"]
    assert main(arguments) == 0, capsys.readouterr().err
    with xr.open_zarr(tmp_path / "p" / "p.zarr", consolidated=False) as product:
        fused = product["reflectance"].to_numpy()
        assert abs(product["x"][1] - product["x"][0]) == 10.0
    expected = truth.read((slice(0, 180), slice(0, 180)), range(12))
    repeated = own.repeat(3, axis=1).repeat(3, axis=2)
    assert np.sqrt(np.nanmean((fused - expected) ** 2)) < 0.6 * np.sqrt(np.mean((repeated - expected) ** 2))
