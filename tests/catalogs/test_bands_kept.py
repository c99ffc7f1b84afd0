"""What has a wavelength is a band, and what is missing is named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import rasterio
import xarray as xr
from pyproj import CRS
from rasterio.enums import ColorInterp

from hyperfuse.catalogs.errors import UsageError
from hyperfuse.catalogs.sensors import Source, sentinel2
from tests.catalogs.sensors.test_generic import CENTERS, GRID, by_band, counts, envi, opened, refused, whole, write
from tests.products.sentinel2 import sentinel2 as safe

# Bands that GDAL tags as alpha


def four_bytes() -> np.ndarray:
    data = np.random.default_rng(3).integers(20, 200, (4, 60, 60)).astype("uint8")
    data[3, 10:20, 10:20] = 0  # a lake
    return data


@pytest.mark.parametrize("tagged", [False, True])
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_near_infrared_tagged_as_alpha_is_a_band(
    tmp_path: Path,
    tagged: bool,  # noqa: FBT001
    dtype: str,
) -> None:
    data = four_bytes().astype(dtype)
    path = write(tmp_path / "a.tif", data, tags=by_band() if tagged else None, photometric="RGB", alpha="yes")
    with rasterio.open(path) as oracle:
        assert oracle.colorinterp[3] == ColorInterp.alpha
        expected = oracle.read()
    for settings in ({}, {"wavelengths": "450,550,650,850"}):
        if not tagged and not settings:
            refused(path, "no wavelengths")
            continue
        scene = opened(path, scale=1.0, **settings)
        np.testing.assert_array_equal(whole(scene), expected)
        assert any("band 4 is tagged as alpha but holds samples" in note for note in scene.notes)


def test_graded_alpha_is_a_mask_where_the_user_describes_the_other_bands(tmp_path: Path) -> None:
    data = four_bytes()
    path = write(tmp_path / "a.tif", data, photometric="RGB", alpha="yes")
    scene = opened(path, wavelengths="450,550,650")
    expected = np.where(data[3] > 0, data[:3].astype("float32"), np.nan)
    np.testing.assert_array_equal(whole(scene), expected)


def test_an_alpha_band_with_blurred_edges_is_a_mask(tmp_path: Path) -> None:
    data = four_bytes()
    data[3] = 255
    data[3, :10] = 0
    data[3, 10, :20] = 100
    scene = opened(write(tmp_path / "a.tif", data, photometric="RGB", alpha="yes"), wavelengths="450,550,650")
    assert scene.cube.shape == (3, 60, 60)
    assert np.isnan(whole(scene)[:, :10]).all()


# Units and zeros


@pytest.mark.parametrize(
    ("unit", "factor", "width", "expected"),
    [("Micrometers", 1e-3, 12.0, 12.0), ("Nanometers", 1.0, 0.012, 12.0), ("Micrometers", 1e-3, 0.3, 300.0),
     ("Nanometers", 1.0, 0.3, 0.3), ("Unknown", 1e-3, 12.0, 12.0)],
)  # fmt: skip
def test_widths_in_another_unit_than_the_centers(
    tmp_path: Path, unit: str, factor: float, width: float, expected: float
) -> None:
    path = envi(
        tmp_path / "a.img",
        counts(),
        header=f"wavelength units = {unit}\nwavelength = {{{', '.join(f'{c * factor:.5f}' for c in CENTERS)}}}\n"
        f"fwhm = {{{', '.join([str(width)] * 4)}}}",
    )
    scene = opened(path)
    np.testing.assert_allclose(scene.bands.center_nm, CENTERS)
    np.testing.assert_allclose(scene.bands.fwhm_nm, expected)
    mended = width != 0.3
    assert any("FWHM of" in note for note in scene.notes) == mended


@pytest.mark.parametrize("flags", ["bbl = {0, 1, 0, 1}", ""])
def test_bands_of_wavelength_0_are_left_out_and_named(tmp_path: Path, flags: str) -> None:
    data = counts()
    header = f"wavelength units = Nanometers\nwavelength = {{0.0, 850, 0.0, 450}}\nfwhm = {{0, 20, 0, 30}}\n{flags}"
    scene = opened(envi(tmp_path / "a.img", data, header=header))
    np.testing.assert_allclose(scene.bands.center_nm, [450, 850])
    np.testing.assert_allclose(scene.bands.fwhm_nm, [30, 20])
    assert scene.bands.source_band.tolist() == [3, 1]
    with rasterio.open(tmp_path / "a.img") as oracle:
        np.testing.assert_allclose(whole(scene), oracle.read([4, 2]) * 1e-4, rtol=1e-6)
    assert any("2 bands have no wavelength and are left out: 1, 3" in note for note in scene.notes)


# Dates are no bands

DATES = np.array(["2024-05-01", "2024-05-11T10:30", "2024-05-21", "2024-05-31"], "M8[ns]")


def series(data: np.ndarray, dims: tuple[str, ...]) -> xr.Dataset:
    height, width = data.shape[-2:]
    coords = {
        "y": GRID.f + GRID.e * (np.arange(height) + 0.5),
        "x": GRID.c + GRID.a * (np.arange(width) + 0.5),
        "time": DATES[: data.shape[0]],
        "spatial_ref": ((), 32633, {"crs_wkt": CRS(32633).to_wkt()}),
    }
    if "band" in dims:
        coords["center_wavelength"] = ("band", np.array(CENTERS) / 1e3)
    return xr.Dataset({"sr": (dims, data, {"grid_mapping": "spatial_ref"})}, coords=coords)


@pytest.mark.parametrize("store", ["nc", "zarr"])
def test_one_of_several_dates(tmp_path: Path, store: str) -> None:
    data = np.stack([counts(), counts() // 2])
    path = tmp_path / f"a.{store}"
    dataset = series(data, ("time", "band", "y", "x"))
    dataset.to_netcdf(path) if store == "nc" else dataset.to_zarr(path, zarr_format=3, consolidated=False)
    refused(
        path, r"sr holds 2 dates \(2024-05-01.*, 2024-05-11.*\), expected one; choose it with --set hsi\.variable=@"
    )
    options = {"engine": "netcdf4"} if store == "nc" else {"engine": "zarr", "consolidated": False}
    with xr.open_dataset(path, chunks=None, **options) as oracle:
        expected = oracle["sr"].sel(time="2024-05-11").to_numpy().reshape(4, 12, 9)
    for variable in ("sr@2024-05-11", "@2024-05-11T10"):
        scene = opened(path, variable=variable)
        np.testing.assert_allclose(whole(scene), expected * 1e-4, rtol=1e-6)
        assert scene.time is not None
        assert scene.time.isoformat() == "2024-05-11T10:30:00+00:00"
    refused(path, "2 of them begin with '2024'", variable="sr@2024")
    refused(path, "0 of them begin with '1999'", variable="sr@1999")


def test_a_series_of_one_band_is_not_as_many_bands(tmp_path: Path) -> None:
    series(counts(), ("time", "y", "x")).to_netcdf(tmp_path / "a.nc")
    refused(tmp_path / "a.nc", "sr holds 4 dates", wavelengths="450,550,650,850")
    scene = opened(tmp_path / "a.nc", wavelengths="650", variable="sr@2024-05-21", scale=1e-4)
    np.testing.assert_allclose(whole(scene), counts()[2:3] * 1e-4, rtol=1e-6)


# Sentinel-2


@pytest.mark.parametrize("level", ["L2A", "L1C"])
def test_a_band_that_the_metadata_list_and_that_is_not_there_is_named(tmp_path: Path, level: str) -> None:
    folder = safe(tmp_path, level=level)
    assert not any("no image of it is there" in n for n in sentinel2.open_scene(Source(uri=str(folder))).notes)
    next(folder.rglob("*_B08*.jp2")).unlink()
    scene = sentinel2.open_scene(Source(uri=str(folder)))
    assert "B08" not in scene.bands.names
    assert any(note.startswith("the metadata list B08 (10 m), no image of it is there") for note in scene.notes)
    with pytest.raises(UsageError, match="no band 'B08'"):
        sentinel2.open_scene(Source(uri=str(folder), bands="B04,B08"))
